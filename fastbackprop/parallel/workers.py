"""The workers: threads that help with calls. Compiled code releases the GIL, Python threads carry it.

A worker that has just helped stays awake for a millisecond, in compiled code, and looks at its box (see team); then it
sleeps in Python until its bell is rung. A call that finds too few workers awake runs with fewer threads.

numba's `parallel=True` is not used: a child forked after an OpenMP region is killed at its own first one, and the
workqueue layer aborts the process on concurrent calls. Workers end before a fork.

A call into compiled code returns when no worker touches its arrays any longer. So an interrupt, which Python raises
between two lines, never finds a worker at work for the interrupted call.
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
"""Seconds that a worker looks at its box after the last call that it helped with."""

TRIED_LOOKS = 10_000
"""Looks that are timed, to find how many fit into that time."""

MOST_HELPERS = 63
"""Workers, at most: a call keeps those it has called as bits of an integer."""

NO_HELPERS = np.zeros((0, BOX), np.int64)

Progress = Callable[[int, int], object]


def count_threads(num_threads: int | None, pieces: int) -> int:
    """How many threads work on a call that has so many pieces."""
    if pieces < 2:
        return 1
    return min(num_threads or cpus.available_threads(), pieces)


def helpers(threads: int) -> Array:
    """The boxes of the workers that may share a call with this thread: no more than there are other processors."""
    return _crew.muster(threads - 1) if threads > 1 else NO_HELPERS


class Crew:
    """The workers of this process: each has a box, and a bell that wakes it."""

    def __init__(self) -> None:
        self.boxes = NO_HELPERS
        self.bells: list[SimpleQueue[bool]] = []
        self.workers: list[threading.Thread] = []
        self.looks = 0
        self.lock = threading.RLock()

    def muster(self, count: int) -> Array:
        """The boxes of so many workers, who are woken where they sleep, or as many as there are other processors."""
        boxes = self.boxes[:count]
        if len(self.workers) < count or AWAY in boxes[:, STATE].tolist():
            with self.lock:
                boxes = self.wake(count)
        return boxes

    def wake(self, count: int) -> Array:
        """The same, where some workers sleep or do not exist."""
        count = min(count, cpus.processors() - 1, MOST_HELPERS)
        if count > 0 and len(self.boxes) == 0:
            self.make_boxes()
        while len(self.workers) < count and not sys.is_finalizing():
            if not self.hire():
                break
        boxes = self.boxes[: min(count, len(self.workers))]
        for worker in self.workers[: len(boxes)]:
            place(worker.native_id, count)
        for number, state in enumerate(boxes[:, STATE].tolist()):
            if state == AWAY and self.bells[number].empty():
                self.boxes[number, LEAVE] = 0
                self.bells[number].put(True)
        return boxes

    def make_boxes(self) -> None:
        """Make the boxes, and find how many looks a worker stays awake."""
        from fastbackprop.parallel.team import serve  # imports numba

        shortest = math.inf
        for _ in range(3):
            start = time.perf_counter()
            serve()(np.zeros((1, BOX), np.int64), 0, TRIED_LOOKS)
            shortest = min(shortest, time.perf_counter() - start)
        self.looks = round(AWAKE_SECONDS / shortest * TRIED_LOOKS)
        self.boxes = np.zeros((MOST_HELPERS, BOX), np.int64)

    def hire(self) -> bool:
        """Start one more worker; whether that was possible."""
        number, bell = len(self.workers), SimpleQueue[bool]()
        worker = threading.Thread(target=self.work, args=(number, bell), name="fastbackprop", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # no more threads can be started
            return False
        self.bells.append(bell)
        self.workers.append(worker)
        return True

    def work(self, number: int, bell: "SimpleQueue[bool]") -> None:
        """Help with calls whenever the bell is rung, until it is rung for the last time."""
        from fastbackprop.parallel.team import serve  # imports numba

        run = serve()
        while bell.get():
            run(self.boxes, number, self.looks)

    def dismiss(self) -> None:
        """End the workers, those that help with a call after it. Later calls hire new ones."""
        with self.lock:
            self.boxes[:, LEAVE] = 1
            for bell in self.bells:
                bell.put(False)
            for worker in self.workers:
                worker.join()
            self.workers, self.bells = [], []


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
