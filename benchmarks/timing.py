"""How a call is timed on a machine that others use too: in turns with what it is compared to, round by round."""

import time

from benchmarks import peak

TURN = 0.01  # seconds that the calls of a turn take, or more
LONG = 1.0  # seconds of a call that is timed without a warm-up
ROUNDS = 9  # at most, and three at least: no more are begun after SECONDS
SECONDS = 1.0
STEP = 0.005  # seconds
MOST_STEPS = 100


def settle():
    """Wait until the threads of other libraries have gone to sleep.

    OpenBLAS's spin after their work, and take a processor each: for 2^26 ticks of a clock, which were 108 ms on a
    machine where pauses of 40 ms made this package's calls look up to twice as long.
    """
    for _ in range(MOST_STEPS):
        before = time.process_time()
        time.sleep(STEP)
        if time.process_time() - before < STEP / 5:
            break


def turn(call, seconds=None):
    """Mean seconds of a call over `seconds`, after a warm-up of the same length, unless a call is LONG.

    After a pause of 5 to 20 ms, calls of 0.18 ms took 0.55, 0.29, 0.25, ... and 0.20 only after 2 ms: caches are cold,
    and the processor slow. A first call of PyTorch took 11 ms instead of 0.5 if both of its threads woke up on one
    processor.
    """
    if seconds is None:
        seconds = TURN
    for _ in range(2):
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() < start + seconds:
            call()
            count += 1
        mean = (time.perf_counter() - start) / count
        if mean > LONG:
            break
    return mean


def settled_turn(call):
    """The same, after waiting for other libraries' threads."""
    settle()
    return turn(call)


def over_peak(call, flops, dtype, num_threads):
    """Seconds of a call over the seconds that its flops take at the FMA peak of as many threads: 1 is the least.

    Of the best peak and the shortest of some turns, because what else runs on the machine only ever adds.
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
