"""How a call is timed on a machine that others use too: in turns with what it is compared to, round by round."""

import time

from benchmarks import peak

TURN = 0.002  # seconds at least; a time is the mean over the calls of a turn
ROUNDS = 9  # at most, and three at least: no more are begun after so many seconds
SECONDS = 1.0
STEP = 0.005  # seconds
MOST_STEPS = 100


def settle():
    """Wait until the threads of other libraries have gone to sleep.

    OpenBLAS's spin after their work, and take a processor each: for 2^26 ticks of a clock, 25 ms on one machine and
    108 on another. A pause of 40 ms there made this package's calls look up to twice as long.
    """
    for _ in range(MOST_STEPS):
        before = time.process_time()
        time.sleep(STEP)
        if time.process_time() - before < STEP / 5:
            break


def turn(call):
    """Seconds of a call, after one that is not timed unless it takes long: after a pause the caches are cold."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 10 * TURN:
        return first
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() < start + TURN:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def settled_turn(call):
    """The same, alone."""
    settle()
    return turn(call)


def over_peak(call, flops, dtype, num_threads):
    """Seconds of a call over the seconds that its flops take at the FMA peak of as many threads: 1 is the least.

    Of the best peak and the shortest of many short turns, because what else runs on the machine only ever adds.
    """
    peaks, times = [], []
    settle()
    for _ in _rounds():
        peaks.append(peak.flops(dtype, num_threads, 0.005))
        times.append(turn(call))
    return max(peaks) * min(times) / flops


def over(call, other):
    """Seconds of a call over the seconds of another, in turns; the shortest of either."""
    times = [(settled_turn(call), settled_turn(other)) for _ in _rounds()]
    return min(ours for ours, _ in times) / min(others for _, others in times)


def _rounds():
    end = time.perf_counter() + SECONDS
    for count in range(ROUNDS):
        if count >= 3 and time.perf_counter() > end:
            break
        yield
