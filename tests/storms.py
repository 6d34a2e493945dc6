"""Calls from many threads and processes, beside forks, interrupts and exits: the same bits, no hang, no thread left.

Usage: python -m tests.storms threads|forks|interrupts|fork|spawn|forkserver|loky|threading
"""

import hashlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time

import numpy as np

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop.parallel import cpus

SECONDS, THREADS = 60, 16
TIMES = 200
"""Forks, and interrupts."""

PROBLEMS = [
    ((1, 6, 6, 6, 1), 30_000, "float64"),
    ((8, 32, 32, 1), 5000, "float32"),
    ((16, 64, 64, 4), 256, "float64"),
    ((784, 100, 10), 64, "float32"),
    ((5, 20, 1), 3, "float64"),
    ((600, 950, 3), 150, "float64"),
]
"""Networks of each pass: chunks with gradients of their own, a shared gradient, few samples."""


def data(number):
    """What a gradient is taken of."""
    layer_sizes, samples, dtype = PROBLEMS[number]
    net_input, y = batch(layer_sizes, samples, dtype)
    return net_input, *network(layer_sizes, dtype), y


DATA = [data(number) for number in range(len(PROBLEMS))]


def digest(number, call=fb.loss_and_gradients):
    """The bits of a result, as a hash."""
    loss, *gradients = call(*DATA[number])
    found = hashlib.sha256(np.float64(loss).tobytes())
    for array in itertools.chain.from_iterable(gradients):
        found.update(array.tobytes())
    return found.hexdigest()


def workspace(number):
    """The gradient on a workspace."""
    layer_sizes, _, dtype = PROBLEMS[number]
    return fb.Workspace(layer_sizes, dtype).loss_and_gradients


def digests():
    """Of all problems."""
    return [digest(number) for number in range(len(PROBLEMS))]


def check_threads():
    """Of the package there are no more threads than other processors; of this script there are none."""
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    left = names.count("fastbackprop")
    assert left <= cpus.processors() - 1, names
    if hasattr(os, "register_at_fork"):
        assert set(names) <= {"fastbackprop"}, names
    return left


def threads():
    """16 threads for a minute: the functions, workspaces that they share and workspaces of their own."""
    expected, shared = digests(), [workspace(number) for number in range(len(PROBLEMS))]
    wrong, counts, end = [], [0] * THREADS, time.monotonic() + SECONDS

    def work(which):
        own = [workspace(number) for number in range(len(PROBLEMS))]
        rng = random.Random(which)
        while time.monotonic() < end:
            number = rng.randrange(len(PROBLEMS))
            call = rng.choice((fb.loss_and_gradients, shared[number], own[number]))
            if digest(number, call) != expected[number]:
                wrong.append(number)
            counts[which] += 1

    callers = [threading.Thread(target=work, args=(which,), daemon=True) for which in range(THREADS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(SECONDS + 120)
        assert not caller.is_alive(), "a thread hangs"
    assert not wrong, wrong
    assert min(counts) > 0, counts
    print(f"{sum(counts)} calls, at least {min(counts)} of each of {THREADS} threads; {check_threads()} workers")


def forks():
    """200 forks at random moments, while two threads call: parent and children go on with the same bits."""
    expected, stop, wrong = digests(), threading.Event(), []

    def train(number):
        while not stop.is_set():
            if digest(number) != expected[number]:
                wrong.append(number)

    callers = [threading.Thread(target=train, args=(number,), daemon=True) for number in (1, 2)]
    for caller in callers:
        caller.start()
    rng, seconds = random.Random(0), []
    for turn in range(TIMES):
        time.sleep(0.01 * rng.random())
        number, start = turn % len(PROBLEMS), time.monotonic()
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that hangs
            os._exit(0 if digest(number) == expected[number] else 1)
        seconds.append(time.monotonic() - start)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, (turn, status)
    stop.set()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive(), "a thread hangs"
    assert not wrong, wrong
    assert digests() == expected
    print(f"{TIMES} forks, the longest took {max(seconds):.3f} s; {check_threads()} workers")


def interrupts():
    """200 interrupts at random moments of calls: the next call is right, on as many threads."""
    expected, rng, count = digests(), random.Random(0), 0

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    while count < TIMES:
        number = count % len(PROBLEMS)
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + 0.01 * rng.random())
            for _ in range(3):
                fb.loss_and_gradients(*DATA[number])
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            count += 1
            assert digest(number) == expected[number], number
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert digests() == expected
    print(f"{count} interrupts; {check_threads()} workers")


def processes(method):
    """A pool of processes, or of threads, of each kind, twice, with calls of the parent in between."""
    expected = digests()
    numbers = list(range(len(PROBLEMS))) * 10
    for _ in range(2):
        if method in ("loky", "threading"):
            import joblib

            found = joblib.Parallel(3, backend=method)(joblib.delayed(digest)(number) for number in numbers)
        else:
            with multiprocessing.get_context(method).Pool(3) as pool:
                found = pool.map(digest, numbers, chunksize=1)
        assert found == [expected[number] for number in numbers]
        assert digests() == expected
    print(f"{2 * len(numbers)} calls in workers of {method}")


if __name__ == "__main__":
    scenario = {"threads": threads, "forks": forks, "interrupts": interrupts}.get(sys.argv[1])
    if scenario is None:
        processes(sys.argv[1])
    else:
        scenario()
