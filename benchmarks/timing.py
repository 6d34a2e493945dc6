"""How a call is timed on a machine that others use too: in turns with what it is compared to, round by round."""

import time

from benchmarks import peak

PAUSE = 0.04  # seconds: OpenBLAS's workers spin for 2^26 cycles after their work, and take a processor each
TURN = 0.002  # seconds at least; a time is the mean over the calls of a turn
ROUNDS = 9  # at most, and three at least: no more are begun after so many seconds
SECONDS = 1.0


def turn(call):
    """Seconds of a call, after one that is not timed unless it takes long: after a pause the caches are cold."""
    time.sleep(PAUSE)
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


def over_peak(call, flops, dtype, num_threads):
    """Seconds of a call over the seconds that its flops take at the FMA peak of as many threads: 1 is the least.

    Of the best peak and the shortest of many short turns, because what else runs on the machine only ever adds.
    """
    peaks, times = [], []
    for _ in _rounds():
        time.sleep(PAUSE)
        peaks.append(peak.flops(dtype, num_threads, 0.005))
        times.append(turn(call))
    return max(peaks) * min(times) / flops


def over(call, other):
    """Seconds of a call over the seconds of another, in turns; the shortest of either."""
    times = [(turn(call), turn(other)) for _ in _rounds()]
    return min(ours for ours, _ in times) / min(others for _, others in times)


def _rounds():
    end = time.perf_counter() + SECONDS
    for count in range(ROUNDS):
        if count >= 3 and time.perf_counter() > end:
            break
        yield
