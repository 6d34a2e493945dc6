"""Who runs which chunk: kernels release the GIL, Python threads carry them.

A short call is shared within the kernel, by the calling thread and those workers that are awake, see kernels.team. Of a
long one, chunks are given out here, slice by slice, so that Ctrl-C and progress are attended to in between.

numba's ``parallel=True`` is not used: a child forked after an OpenMP region is killed at its own first one, and the
workqueue layer aborts the process on concurrent calls. Workers that do not stay awake are parked in a queue, and end
before a fork.

An interrupt can be raised between any two lines of the calling thread, never in a worker. So the calling thread
holds no lock and keeps no count: it closes a job, which can be done twice, and waits until no worker is inside, which
can be asked again. Who is inside is told by the workers alone.

Linux often wakes a thread on the processor of the one that wakes it, though another is idle, and leaves both there for
some milliseconds. So the workers are kept off the calling thread's processor, and where a job takes all processors, the
calling thread is kept on it meanwhile: on two processors, after pauses of 40 ms, fused calls of 5.5 ms took 10 in three
of eight cases without this. It is the workers that let the calling thread go again.
"""

import contextlib
import ctypes
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeAlias

import numpy as np

from fastbackprop.kernels import AWAY, BOX, LEAVE, MOST_HELPERS, STATE
from fastbackprop.validation import Array

SETTING = "FASTBACKPROP_NUM_THREADS"
AWAKE_SECONDS = 1e-3  # that a worker spins after the last call that it helped with
TRIED_PAUSES = 1000  # to find how long one takes
NO_HELPERS = np.zeros((0, BOX), np.int64)

Work = Callable[[int, int, int, int], None]
Progress = Callable[[int, int], object]


def threads_setting() -> int | None:
    """FASTBACKPROP_NUM_THREADS, or None where it is not set."""
    if SETTING not in os.environ:  # half a microsecond sooner than to get what is not there
        return None
    setting = os.environ[SETTING].strip()
    if not setting:
        return None
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(f"{SETTING} is {setting!r}; expected a whole number from 1 up")
    return int(setting)


def available_threads() -> int:
    """FASTBACKPROP_NUM_THREADS, or the number of processors this process may run on."""
    return threads_setting() or processors()


def processors() -> int:
    """The number of processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lanes(num_threads: int | None, chunks: int) -> int:
    """On how many threads that many chunks are worked on."""
    if chunks < 2:
        return 1
    return min(num_threads or available_threads(), chunks)


def run(
    work: Work,
    chunks: Sequence[tuple[int, int]],
    slice_columns: int,
    num_lanes: int,
    progress: Progress | None = None,
) -> None:
    """Call work(lane, chunk, first, last) for all columns of all chunks, on that many threads.

    Each chunk (first, last) is worked on by one lane, in slices from left to right. Lanes are numbered from 0, the
    calling thread, which also calls progress(done, total); work is never called twice at once with the same lane.
    Raises what a lane raised, after all of them have stopped.
    """
    if len(chunks) == 1 and chunks[0][1] <= slice_columns and progress is None:
        work(0, 0, *chunks[0])
    else:
        Job(work, chunks, slice_columns, progress).run(num_lanes)


def helpers(num_lanes: int) -> Array:
    """The boxes of workers that share a call with this thread, on so many lanes if there are as many processors."""
    return _crew.muster(num_lanes - 1) if num_lanes > 1 else NO_HELPERS


class Job:
    """The chunks that are still to be worked on, and what has been done; see run."""

    def __init__(
        self, work: Work, chunks: Sequence[tuple[int, int]], slice_columns: int, progress: Progress | None
    ) -> None:
        self.work = work
        self.queue = deque(enumerate(chunks))
        self.total = chunks[-1][1] if chunks else 0
        self.slice_columns = slice_columns
        self.progress = progress
        self.done: dict[int, int] = {}
        self.reported = 0
        self.error: BaseException | None = None
        self.closed = False
        self.caller: Caller | None = None
        self.inside: set[int] = set()
        self.left: SimpleQueue[int] = SimpleQueue()
        self.crew = _crew

    def run(self, lanes: int) -> None:
        """Work on that many lanes until nothing is left."""
        try:
            self.crew.call(self, lanes - 1)
            self.run_lane(0)
            self.wait()
            self.report()
            if self.error is None and sum(self.done.values()) < self.total:
                raise RuntimeError("a call was forked while its threads were running; the child has not all results")
        finally:
            self.closed = True
            self.wait()
        if self.error is not None:
            raise self.error

    def help(self, lane: int) -> None:
        """What a worker does with a job: it enters before it looks whether the job is closed."""
        self.inside.add(lane)
        try:
            if not self.closed:
                # Not where a callback might start threads, which would inherit this.
                caller = self.caller if lane == 1 and self.progress is None else None
                with caller or contextlib.nullcontext():
                    self.run_lane(lane)
        except BaseException as error:  # raised again on the calling thread
            self.error = error
            self.closed = True
        finally:
            self.inside.discard(lane)
            self.left.put(lane)

    def run_lane(self, lane: int) -> None:
        """Take chunks until there are no more, or the job is closed."""
        done = 0
        while not self.closed:
            try:
                chunk, (first, last) = self.queue.popleft()
            except IndexError:
                return
            for start in range(first, last, self.slice_columns):
                if self.closed:
                    return
                stop = min(start + self.slice_columns, last)
                self.work(lane, chunk, start, stop)
                done += stop - start
                self.done[lane] = done
                if lane == 0:
                    self.report()

    def wait(self) -> None:
        """Return when no worker is inside; after an interrupt as well, which is raised then."""
        interrupt: BaseException | None = None
        while self.inside:
            try:
                if self.crew is not _crew:
                    raise RuntimeError("the process was forked by a callback of a call that is still running")
                # With a timeout, because without one Ctrl-C does not wake a waiting thread on Windows.
                with contextlib.suppress(Empty):
                    self.left.get(timeout=0.1)
                if not self.closed:
                    self.report()
            except BaseException as error:
                self.closed = True
                interrupt = error
                if self.crew is not _crew:
                    break
        if interrupt is not None:
            raise interrupt

    def report(self) -> None:
        """Tell how many columns are done, where that has changed."""
        if self.progress is not None:
            done = sum(self.done.copy().values())
            if done != self.reported:
                self.reported = done
                self.progress(done, self.total)


class Caller:
    """The calling thread and the processors it may run on; as a context, it stays on the one where it is."""

    def __init__(self, here: int) -> None:
        self.thread = threading.get_native_id()
        self.allowed = os.sched_getaffinity(0)
        self.here = here

    def __enter__(self) -> None:
        place(self.thread, {self.here})

    def __exit__(self, *_: object) -> None:
        place(self.thread, self.allowed)


def place(thread: int | None, processors: set[int]) -> None:
    """Let a thread run on these processors only; nothing where it has ended, or must not be placed."""
    if thread is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, processors)


Calls: TypeAlias = "SimpleQueue[tuple[Job, int] | int | None]"


class Crew:
    """Threads that wait for jobs, or to help with a call. What comes to more of them than are idle goes on without."""

    def __init__(self) -> None:
        self.calls: Calls = SimpleQueue()
        self.workers: set[threading.Thread] = set()
        self.placed: dict[threading.Thread, set[int]] = {}
        self.boxes = NO_HELPERS
        self.most_helpers = 0
        self.pauses = 0

    def call(self, job: Job, helpers: int) -> None:
        """Have `helpers` threads run lanes 1, 2, ... of a job."""
        self._hire(helpers)
        if helpers > 0:
            job.caller = self._make_room(helpers)
            self.boxes[:, LEAVE] = 1
        for lane in range(1, min(helpers, len(self.workers)) + 1):
            self.calls.put((job, lane))

    def muster(self, helpers: int) -> Array:
        """The boxes of that many workers, or as many as there are processors for, who are sent for where they sleep."""
        state = self.boxes.item
        if helpers > self.most_helpers or AWAY in [state(number, STATE) for number in range(helpers)]:
            helpers = self._send_for(helpers)
        return self.boxes[:helpers]

    def _send_for(self, helpers: int) -> int:
        """Wake workers, or start them. Only then is it asked how many processors there are."""
        most = min(processors() - 1, MOST_HELPERS)
        helpers = min(helpers, most)
        if helpers > 0 and len(self.boxes) == 0:
            self._make_boxes()
        self.most_helpers = min(most, len(self.boxes))  # last: another thread may look for their boxes meanwhile
        asleep = [number for number in range(helpers) if self.boxes.item(number, STATE) == AWAY]
        # What is in the queue is for workers that are on their way already, or busy with a job.
        if asleep and self.calls.empty():
            self._hire(helpers)
            self._make_room(helpers)
            for number in asleep:
                self.boxes[number, LEAVE] = 0
                self.calls.put(number)
        return helpers

    def _make_boxes(self) -> None:
        """Make the boxes, and find how many pauses a worker stays awake."""
        from fastbackprop.kernels.team import serve  # imports numba

        shortest = math.inf
        for _ in range(3):
            start = time.perf_counter()
            serve()(np.zeros((1, BOX), np.int64), 0, TRIED_PAUSES)
            shortest = min(shortest, time.perf_counter() - start)
        self.pauses = round(AWAKE_SECONDS / shortest * TRIED_PAUSES)
        self.boxes = np.zeros((MOST_HELPERS, BOX), np.int64)

    def _hire(self, helpers: int) -> None:
        """Start threads, until there are so many."""
        self.workers = {worker for worker in self.workers if worker.is_alive()}
        while len(self.workers) < helpers:
            worker = threading.Thread(target=self._serve, args=(self.calls,), name="fastbackprop", daemon=True)
            try:
                worker.start()
            except RuntimeError:  # no more threads can be started
                break
            self.workers.add(worker)

    def _make_room(self, helpers: int) -> Caller | None:
        """Leave the calling thread's processor to it alone, if there are enough others; it, where it takes the last."""
        if _processor is None:
            return None
        caller = Caller(_processor())
        others = caller.allowed - {caller.here}
        takes_last = len(others) == helpers and caller.here in caller.allowed
        if len(others) < helpers:
            others = caller.allowed
        for worker in list(self.workers):
            if self.placed.get(worker) != others:
                place(worker.native_id, others)
                self.placed[worker] = others
        return caller if takes_last else None

    def _serve(self, calls: Calls) -> None:
        while (call := calls.get()) is not None:
            if isinstance(call, int):
                self._stay_awake(call)
            else:
                job, lane = call
                job.help(lane)
                del call, job  # or the last job's arrays would live until the next

    def _stay_awake(self, number: int) -> None:
        """Help with calls, until there have been none for a while."""
        from fastbackprop.kernels.team import serve  # imports numba

        serve()(self.boxes, number, self.pauses)

    def dismiss(self) -> None:
        """End the threads; those inside a job end after it. Later calls get new ones, and a queue of their own."""
        workers, calls = self.workers, self.calls
        self.workers, self.calls, self.placed = set(), SimpleQueue(), {}
        self.boxes[:, LEAVE] = 1
        for _ in workers:
            calls.put(None)
        for worker in workers:
            worker.join(timeout=1.0)


_processor: Callable[[], int] | None = None
if hasattr(os, "sched_setaffinity"):
    with contextlib.suppress(OSError, AttributeError):
        _processor = ctypes.PyDLL(None).sched_getcpu  # PyDLL keeps the GIL: the call is shorter than giving it up

_crew = Crew()


def _dismiss_crew() -> None:
    _crew.dismiss()


def _new_crew() -> None:
    global _crew  # noqa: PLW0603 - threads and queues do not come along into a child
    _crew = Crew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_dismiss_crew, after_in_child=_new_crew)
