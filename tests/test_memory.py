"""Memory of large results: used again after the last view is gone, and never before."""

import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop.engine import memory
from tests.conftest import assert_same_bits

LARGE = (4, memory.REUSED_BYTES // 8)


@pytest.fixture(autouse=True)
def nothing_kept():
    memory._free.clear()


def address(array):
    return array.__array_interface__["data"][0]


def kept_bytes():
    return sum(size * len(kept) for size, kept in memory._free.items())


def test_memory_is_used_again_after_the_last_view(dtype):
    array = memory.empty(LARGE, dtype)
    array[...] = 7.0
    where, view = address(array), memoryview(array[1:, ::3])
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.dtype is dtype
    del array
    other = memory.empty(LARGE, dtype)
    other[...] = 8.0
    assert address(other) != where
    assert np.all(np.asarray(view) == 7.0)
    del view
    again = memory.empty((LARGE[0] * LARGE[1] - 5,), dtype)  # of a similar size
    assert address(again) == where


def test_memory_whose_base_is_kept_is_left_alone(dtype):
    array = memory.empty(LARGE, dtype)
    base, where = array.base, address(array)
    while getattr(base, "base", None) is not None:
        base = base.base
    del array
    assert address(memory.empty(LARGE, dtype)) != where
    del base
    assert address(memory.empty(LARGE, dtype)) == where


def test_arrays_are_as_numpys_own(dtype):
    array = memory.empty(LARGE, dtype)
    assert type(array) is type(array[1:]) is np.ndarray
    array.flags.writeable = False
    array.flags.writeable = True
    assert type(pickle.loads(pickle.dumps(array))) is np.ndarray
    assert array.copy().base is None


def test_sizes_fall_into_few_classes():
    for size in [*range(memory.REUSED_BYTES, memory.REUSED_BYTES + 3000, 7), 2**28 - 1, 2**28, 2**28 + 1]:
        assert size <= memory.size_class(size) <= size * 1.125
    assert len({memory.size_class(size) for size in range(2**20, 2**21 + 1, 8)}) == 9


def test_small_arrays_are_numpys_own(dtype):
    assert memory.empty((3, 5), dtype).base is None
    assert memory.empty((0, 10**9), dtype).shape == (0, 10**9)
    assert kept_bytes() == 0


def test_no_more_is_kept_than_said(monkeypatch, dtype):
    monkeypatch.setattr(memory, "FREE_BYTES", 3 * memory.REUSED_BYTES)
    for number in range(1, 8):
        arrays = [memory.empty((memory.REUSED_BYTES // dtype.itemsize,), dtype) for _ in range(number)]
        arrays.append(memory.empty((3 * memory.REUSED_BYTES // dtype.itemsize // 2,), dtype))
        where = [address(array) for array in arrays]
        assert len(set(where)) == number + 1
        del arrays
        assert 0 < max(size * len(kept) for size, kept in memory._free.items()) <= memory.FREE_BYTES
        again = memory.empty((memory.REUSED_BYTES // dtype.itemsize,), dtype)
        assert address(again) in where
        assert kept_bytes() <= memory.FREE_BYTES
        del again
    assert memory.empty((4 * memory.REUSED_BYTES,), dtype).base is None  # too large for any of this


INTERRUPTED = """
import signal
import numpy as np
from fastbackprop.engine import memory
interrupts, lost = [], 0
def interrupt(*_):
    interrupts.append("now")
    raise KeyboardInterrupt
def use_memory(number):  # a loop of its own: Python 3.13 jumps back outside of a `try` around the loop
    while len(interrupts) == number:
        memory.empty((2**16,), np.dtype(float))
signal.signal(signal.SIGALRM, interrupt)
for number in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        use_memory(number)
        lost += 1
    except KeyboardInterrupt:
        pass
print(lost)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_no_interrupt_is_lost_where_memory_is_given_back():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_arrays_that_live_until_the_end():
    """The interpreter takes modules apart before the last arrays: no word of it."""
    program = (
        "import sys, numpy as np; from fastbackprop.engine import memory\n"
        "kept = sys.modules['kept'] = [memory.empty((10**6,), np.dtype(float)) for _ in range(3)]\n"
        "class Late:\n"
        "    def __del__(self, arrays=[memory.empty((10**6,), np.dtype(float))]): arrays.clear()\n"
        "sys.late = Late()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_threads_never_share_memory():
    wrong = []

    def use(mark):
        for _ in range(300):
            array = memory.empty(LARGE, np.dtype(np.float32))
            array[...] = mark
            if not np.all(array == mark):
                wrong.append(mark)

    users = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not wrong


def test_results_of_calls_stay_what_they_were(dtype):
    """Those of one call, while the next ones are computed and dropped."""
    sizes = (3, 8, 8, 2)
    net_input, y = batch(sizes, 40_000, dtype)
    parameters = network(sizes, dtype)

    def call(x):
        net_output, all_f, all_h = fb.compute_network_output(x, *parameters)
        *_, all_dl_dh, all_dl_df = fb.backward_pass(*parameters, all_f, all_h, y, intermediates=True)
        gradients = fb.loss_and_gradients(x, *parameters, y, input_gradient=True)
        return [net_output, *all_f, *all_h[1:], *all_dl_dh, *all_dl_df, gradients[-1], fb.predict(x, *parameters)]

    first = call(net_input)
    before = [array.copy() for array in first]
    for factor in 2.0, 3.0, 1.0:
        again = call(factor * net_input)
    assert_same_bits(first, before)
    assert_same_bits(again, before)
    assert not any(np.shares_memory(array, other) for array in first[:3] for other in again)


def test_small_gradients_do_not_keep_the_large_ones_in_memory(dtype):
    sizes = (784, 700, 10)
    parameters = network(sizes, dtype)
    for samples in 3, 100:
        net_input, y = batch(sizes, samples, dtype)
        _, all_dl_dweights, all_dl_dbiases = fb.loss_and_gradients(net_input, *parameters, y)
        assert all(array.base is None for array in all_dl_dbiases)
        assert all_dl_dweights[0].base is not None


def test_more_than_all_addresses_is_refused_where_the_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory.os, "sysconf_names", {}, raising=False)
    memory.check_size(2**60, "some arrays", "take fewer")
    with pytest.raises(MemoryError, match=r"some arrays take 1\.1e\+12 GiB, and there are .*: take fewer"):
        memory.check_size(2**70, "some arrays", "take fewer")
