"""The workers: threads that help with calls. Compiled code releases the GIL, Python threads carry it.

A worker that has just helped stays awake for a millisecond, in compiled code, and looks at its box (see team); then it
sleeps in Python until its bell is rung. A call that finds too few workers awake runs with fewer threads.

numba's `parallel=True` is not used: a child forked after an OpenMP region is killed at its own first region, and the
workqueue layer aborts the process on concurrent calls. Workers end before a fork.

A call into compiled code returns when no worker touches its arrays any longer. So no worker is still at work for a call
that is interrupted: Python raises interrupts between two lines.
"""

import contextlib
import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from fastbackprop.arguments.checks import Array
from fastbackprop.parallel import cpus
from fastbackprop.parallel.boxes import AWAY, BOX, LEAVE, STATE

AWAKE_SECONDS = 1e-3
"""Time, in seconds, that a worker stays awake after the last call that it helped with."""

MOST_HELPERS = 63
"""Largest number of workers: a call keeps the workers that it has called as bits of an integer."""

NO_HELPERS = np.zeros((0, BOX), np.int64)

Progress = Callable[[int, int], object]


def count_threads(num_threads: int | None, pieces: int) -> int:
    """Largest number of threads for a call of that number of pieces: at most one for each processor, or two.

    Two are not checked here, because that would ask the system in each call. On one processor, Crew.wake provides no
    worker, and the call runs on one thread.
    """
    if pieces < 2:
        return 1
    threads = min(num_threads or cpus.available_threads(), pieces)
    return threads if threads <= 2 else min(threads, cpus.processors(), MOST_HELPERS + 1)


def helpers(threads: int) -> Array:
    """The boxes of the workers that may share a call with this thread: at most one for each other processor."""
    return _crew.muster(threads - 1) if threads > 1 else NO_HELPERS


class Worker(threading.Thread):
    """A thread that helps with the calls that are posted to its box, whenever its bell is rung."""

    def __init__(self, crew: "Crew", number: int) -> None:
        super().__init__(name="fastbackprop", daemon=True)
        self.crew, self.number = crew, number
        self.bell: SimpleQueue[bool] = SimpleQueue()
        self.has_ended = False

    @property
    def is_working(self) -> bool:
        """Whether it was started and has not ended. Thread.is_alive may be wrong after an interrupt (Python 3.11)."""
        return self.ident is not None and not self.has_ended

    def run(self) -> None:
        """Help until the bell says False."""
        from fastbackprop.parallel.team import serve  # imports numba

        try:
            while self.bell.get():
                serve()(self.crew.boxes, self.number, self.crew.looks)
        finally:
            self.has_ended = True


class Crew:
    """The workers of this process, each with a box of its own."""

    def __init__(self) -> None:
        self.boxes = NO_HELPERS
        self.workers: list[Worker] = []
        self.looks = 0
        self.lock = threading.RLock()

    def muster(self, count: int) -> Array:
        """The boxes of that number of workers, at most one for each other processor. Sleeping workers are woken."""
        boxes = self.boxes[:count]
        if len(self.workers) < count or AWAY in boxes[:, STATE].tolist():
            with self.lock:
                boxes = self.wake(count)
        return boxes

    def wake(self, count: int) -> Array:
        """The same, if some workers sleep, have ended or do not exist."""
        count = min(count, cpus.processors() - 1, MOST_HELPERS)
        if count > 0 and len(self.boxes) == 0:
            self.make_boxes()
        for number in range(count):
            if not (number < len(self.workers) and self.workers[number].is_working) and not self.hire(number):
                count = number
                break
        for number, state in enumerate(self.boxes[:count, STATE].tolist()):
            worker = self.workers[number]
            place(worker.native_id, count)
            if state == AWAY and worker.bell.empty():
                self.boxes[number, LEAVE] = 0
                worker.bell.put(True)
        return self.boxes[:count]

    def make_boxes(self) -> None:
        """Make the boxes, and measure how many looks a worker stays awake: the first looks pause, the others yield."""
        from fastbackprop.parallel.team import SPINS, serve  # imports numba

        seconds = [math.inf, math.inf]
        for _ in range(3):
            for k, looks in enumerate((SPINS, 2 * SPINS)):
                start = time.perf_counter()
                serve()(np.zeros((1, BOX), np.int64), 0, looks)
                seconds[k] = min(seconds[k], time.perf_counter() - start)
        one_yield = max(seconds[1] - seconds[0], 1e-6) / SPINS
        self.looks = SPINS + max(round((AWAKE_SECONDS - seconds[0]) / one_yield), 0)
        self.boxes = np.zeros((MOST_HELPERS, BOX), np.int64)

    def hire(self, number: int) -> bool:
        """Start the worker of that number; returns whether that was possible."""
        if sys.is_finalizing():  # a new thread would never come to run
            return False
        worker = Worker(self, number)
        self.workers[number : number + 1] = [worker]  # before it starts, so that an interrupt does not lose it
        try:
            worker.start()
        except RuntimeError:  # no more threads can be started
            return False
        return True

    def dismiss(self) -> None:
        """End the workers, after the call that they help with. Later calls hire new ones."""
        with self.lock:
            workers, self.workers = self.workers, []
            self.boxes[:, LEAVE] = 1
            for worker in workers:
                worker.bell.put(False)
            for worker in workers:
                if worker.is_working:
                    worker.join()


def place(worker: int | None, helpers: int) -> None:
    """Keep a worker off the calling thread's processor, if there are others for all: Linux often wakes a thread there.

    Measured: on two processors, after pauses of 40 ms, calls of 5.5 ms took 10 in three of eight cases without this
    (2026-11). The calling thread itself may go on running anywhere.
    """
    if _processor is not None and worker is not None:
        allowed = os.sched_getaffinity(0)
        others = allowed - {_processor()}
        with contextlib.suppress(OSError):  # the thread has ended, or must not be placed
            os.sched_setaffinity(worker, others if len(others) >= helpers else allowed)


_processor: Callable[[], int] | None = None
if hasattr(os, "sched_setaffinity"):
    with contextlib.suppress(OSError, AttributeError):
        _processor = ctypes.PyDLL(None).sched_getcpu  # PyDLL keeps the GIL: the call is shorter than giving it up

_crew = Crew()


def _before_fork() -> None:
    _crew.lock.acquire()  # until after the fork: no worker is hired in between
    _crew.dismiss()


def _after_fork_in_parent() -> None:
    _crew.lock.release()


def _after_fork_in_child() -> None:
    global _crew  # noqa: PLW0603 - threads do not come along into a child
    _crew = Crew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
