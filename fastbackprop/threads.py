"""Who runs which chunk: kernels release the GIL, Python threads carry them.

numba's ``parallel=True`` is not used: a child forked after an OpenMP region is killed at its own first one, and the
workqueue layer aborts the process on concurrent calls. Workers are parked on a lock between calls, which wakes them
sooner than an executor's queue does, and end before a fork.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

Work = Callable[[int, int, int, int], None]
Progress = Callable[[int, int], object]


def check_num_threads(num_threads: Any) -> int | None:
    """num_threads as a whole number from 1 up, or None for as many as are available."""
    if num_threads is None:
        return None
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise TypeError(f"num_threads is {num_threads!r}; expected a whole number from 1 up, or None")
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; expected a whole number from 1 up, or None")
    return int(num_threads)


def available_threads() -> int:
    """FASTBACKPROP_NUM_THREADS, or the number of processors this process may run on."""
    setting = os.environ.get("FASTBACKPROP_NUM_THREADS", "").strip()
    if not setting:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(f"FASTBACKPROP_NUM_THREADS is {setting!r}; expected a whole number from 1 up")
    return int(setting)


def run(
    work: Work,
    chunks: Sequence[tuple[int, int]],
    slice_columns: int,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Call work(lane, chunk, first, last) for all columns of all chunks, on up to num_threads threads.

    Each chunk (first, last) is worked on by one lane, in slices from left to right. Lanes are numbered from 0, the
    calling thread, which also calls progress(done, total); work is never called twice at once with the same lane.
    Raises what a lane raised, after all of them have stopped.
    """
    if len(chunks) == 1 and chunks[0][1] <= slice_columns and progress is None:
        work(0, 0, *chunks[0])
        return
    if num_threads is None and len(chunks) > 1:
        num_threads = available_threads()
    Job(work, chunks, slice_columns, progress).run(min(num_threads or 1, len(chunks)))


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
        self.stopped = False

    def run(self, lanes: int) -> None:
        """Work on that many lanes until nothing is left."""
        workers: list[Worker] = []
        try:
            _engage(self, lanes - 1, workers)
            self.run_lane(0)
        except BaseException:
            self.stopped = True
            raise
        finally:
            _dismiss(self, workers)
        if self.error is not None:
            raise self.error
        self.report()

    def run_lane(self, lane: int) -> None:
        """Take chunks until there are no more, or the job is stopped."""
        done = 0
        while not self.stopped:
            try:
                chunk, (first, last) = self.queue.popleft()
            except IndexError:
                return
            for start in range(first, last, self.slice_columns):
                if self.stopped:
                    return
                stop = min(start + self.slice_columns, last)
                self.work(lane, chunk, start, stop)
                done += stop - start
                self.done[lane] = done
                if lane == 0:
                    self.report()

    def report(self) -> None:
        """Tell how many columns are done, where that has changed."""
        if self.progress is not None:
            done = sum(self.done.copy().values())
            if done != self.reported:
                self.reported = done
                self.progress(done, self.total)

    def fail(self, error: BaseException) -> None:
        """Stop all lanes and keep what is to be raised."""
        self.error = error
        self.stopped = True


class Worker:
    """A parked thread that runs one lane of a job at a time."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.lane = 0
        self.wake, self.finished = threading.Lock(), threading.Lock()
        self.wake.acquire()
        self.finished.acquire()
        self.thread = threading.Thread(target=self._loop, name="fastbackprop", daemon=True)
        self.thread.start()

    def start(self, job: Job | None, lane: int) -> None:
        """Wake the thread; no job ends it."""
        self.job, self.lane = job, lane
        self.wake.release()

    def stop(self) -> None:
        """End the thread."""
        self.start(None, 0)
        self.thread.join()

    def _loop(self) -> None:
        while True:
            self.wake.acquire()
            if self.job is None:
                return
            try:
                self.job.run_lane(self.lane)
            except BaseException as error:  # raised again on the calling thread
                self.job.fail(error)
            self.job = None
            self.finished.release()


_idle: list[Worker] = []


def _engage(job: Job, count: int, workers: list[Worker]) -> None:
    """Set `count` workers to work on lanes 1, 2, ...; they leave the list of idle ones for `workers`."""
    for lane in range(1, count + 1):
        try:
            worker = _idle.pop() if _idle else Worker()
        except (
            IndexError,
            RuntimeError,
        ):  # another call took the last one, or no thread can be started: go on with fewer
            return
        workers.append(worker)
        worker.start(job, lane)


def _dismiss(job: Job, workers: list[Worker]) -> None:
    """Wait for the workers and park them. An interrupt stops the job and is raised once all of them have stopped."""
    interrupt: BaseException | None = None
    for worker in workers:
        while True:
            try:
                # With a timeout, because without one Ctrl-C does not wake a waiting thread on Windows.
                if worker.finished.acquire(timeout=0.1):
                    _idle.append(worker)
                    break
                if not worker.thread.is_alive():  # this is a child forked from within the job
                    break
                job.report()
            except BaseException as error:
                job.stopped = True
                interrupt = error
    if interrupt is not None:
        raise interrupt


def _stop_idle() -> None:
    while _idle:
        _idle.pop().stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_stop_idle)
