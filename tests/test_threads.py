"""Threads: the same bits for any number, shared workspaces, forks, interrupts, progress."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop.arguments.batch import Batch
from fastbackprop.engine import engine, plan
from tests.conftest import assert_same_bits

LAYER_SIZES = (2, 6, 6, 1)


@pytest.fixture(params=["at once", "in slices"])
def problem(dtype, request, monkeypatch):
    """A batch that is computed in one call into compiled code, or slice by slice."""
    if request.param == "in slices":
        monkeypatch.setattr(plan, "SLICE_FLOPS", 1)
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 200_003, dtype)
    return net_input, all_weights, all_biases, y


@pytest.mark.parametrize("layer_sizes", [(40, 150, 3), (3, 30, 70, 2), (1, 6, 6, 6, 6, 6, 1)], ids=str)
def test_same_bits_for_other_networks(layer_sizes, dtype):
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 9001, dtype)
    expected = list(fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True, num_threads=1))
    for count in 2, 3, 5, 8:
        got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True, num_threads=count)
        assert_same_bits(list(got), expected)


@pytest.mark.parametrize("samples", [1, 6000, 20_000, 200_003])
def test_same_bits_for_any_number_of_threads(problem, samples):
    net_input, all_weights, all_biases, y = problem
    x, t = net_input[:, :samples], y[:, :samples]
    expected = list(fb.loss_and_gradients(x, all_weights, all_biases, t, input_gradient=True, num_threads=1))
    for count in 2, 3, 5, 8:
        got = fb.loss_and_gradients(x, all_weights, all_biases, t, input_gradient=True, num_threads=count)
        assert_same_bits(list(got), expected)
        workspace = fb.Workspace(LAYER_SIZES, net_input.dtype, num_threads=count)
        got = workspace.loss_and_gradients(x, all_weights, all_biases, t, input_gradient=True)
        assert_same_bits(list(got), expected)
        got = fb.predict(x, all_weights, all_biases, num_threads=count)
        assert_same_bits(got, fb.predict(x, all_weights, all_biases, num_threads=1))


def test_the_notebooks_passes_give_the_same_bits(problem, monkeypatch):
    net_input, all_weights, all_biases, y = problem
    results = []
    for count in "1", "2", "3", "8":
        monkeypatch.setenv("FASTBACKPROP_NUM_THREADS", count)
        _, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
        results.append([all_f, all_h, *fb.backward_pass(all_weights, all_biases, all_f, all_h, y)])
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_passes_over_large_lists_are_cut_into_slices(problem, monkeypatch):
    """Between which an interrupt is answered: kernels get no more than so many bytes of columns at once."""
    net_input, all_weights, all_biases, y = problem

    def passes():
        _, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
        return [all_f, all_h, *fb.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=True)]

    expected = passes()
    monkeypatch.setattr(engine, "GIVEN_BYTES", 2**20)
    lengths = []

    def noted(self, dtype, first, last):
        lengths.append(last - first)
        return locate(self, dtype, first, last)

    locate = Batch.locate
    monkeypatch.setattr(Batch, "locate", noted)
    assert_same_bits(passes(), expected)
    assert max(lengths) < 20_000


def test_columns_that_are_converted_slice_by_slice(problem, monkeypatch):
    """The same bits as in one slice: the chunks are the same."""
    net_input, all_weights, all_biases, y = problem
    arguments = (100 * net_input).astype(np.int32), all_weights, all_biases, y
    whole = fb.Workspace(LAYER_SIZES, y.dtype).loss_and_gradients(*arguments, input_gradient=True)
    monkeypatch.setattr(engine, "STAGED_BYTES", 1)
    done = []
    cut = fb.Workspace(LAYER_SIZES, y.dtype).loss_and_gradients(
        *arguments, input_gradient=True, progress=lambda samples, _total: done.append(samples)
    )
    assert_same_bits(list(cut), list(whole))
    assert len(done) > 10


def test_concurrent_calls(problem):
    net_input, all_weights, all_biases, y = problem
    expected = [
        fb.loss_and_gradients(net_input[:, :n], all_weights, all_biases, y[:, :n]) for n in (10, 20_000, 200_003)
    ]
    workspace = fb.Workspace(LAYER_SIZES, net_input.dtype)

    def call(k):
        n = (10, 20_000, 200_003)[k % 3]
        run = workspace.loss_and_gradients if k % 2 else fb.loss_and_gradients
        return run(net_input[:, :n], all_weights, all_biases, y[:, :n])

    with ThreadPoolExecutor(6) as pool:
        for k, got in enumerate(pool.map(call, range(60))):
            assert_same_bits(list(got), list(expected[k % 3]))


def test_progress_is_told_in_samples_on_the_calling_thread(problem):
    net_input, all_weights, all_biases, y = problem
    for count in 1, 2:
        calls = []

        def progress(done, total, calls=calls):
            calls.append((done, total, threading.get_ident()))

        got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, num_threads=count, progress=progress)
        assert_same_bits(list(got), list(fb.loss_and_gradients(net_input, all_weights, all_biases, y)))
        done = [call[0] for call in calls]
        assert done == sorted(set(done))
        assert done[-1] == 200_003
        assert (len(done) > 3) == (plan.SLICE_FLOPS == 1)
        assert {call[1:] for call in calls} == {(200_003, threading.get_ident())}
    fb.predict(net_input, all_weights, all_biases, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (200_003, 200_003)


def test_an_error_in_progress_stops_the_call(problem):
    net_input, all_weights, all_biases, y = problem

    def progress(_done, _total):
        raise RuntimeError("enough")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="enough"):
            fb.loss_and_gradients(net_input, all_weights, all_biases, y, progress=progress)
    fb.loss_and_gradients(net_input, all_weights, all_biases, y)


@pytest.mark.parametrize("setting", ["0", "-1", "two", "1.5"])
def test_a_wrong_environment_variable_is_named(problem, monkeypatch, setting):
    monkeypatch.setenv("FASTBACKPROP_NUM_THREADS", setting)
    net_input, all_weights, all_biases, y = problem
    message = r"FASTBACKPROP_NUM_THREADS is '.*'; expected a whole number from 1 up"
    for samples in 60_000, 200_003:  # a call that is too small to be shared does not look at it
        x, t = net_input[:, :samples], y[:, :samples]
        calls = [
            lambda x=x: fb.predict(x, all_weights, all_biases),
            lambda x=x: fb.compute_network_output(x, all_weights, all_biases),
            lambda x=x, t=t: fb.loss_and_gradients(x, all_weights, all_biases, t),
            lambda x=x, t=t: fb.Workspace(LAYER_SIZES, t.dtype).vjp(x, all_weights, all_biases, t),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()
        fb.loss_and_gradients(x, all_weights, all_biases, t, num_threads=2)  # does not look at it


def test_callbacks_may_call_the_workspace_between_its_calls_but_not_within(problem):
    net_input, all_weights, all_biases, y = problem
    workspace = fb.Workspace(LAYER_SIZES, net_input.dtype)

    def value(output, target):
        predicted = workspace.predict(net_input, all_weights, all_biases)
        return ((predicted - output) ** 2).sum() + ((output - target) ** 2).sum()

    pair = (value, lambda output, target: 2 * (output - target))
    got = workspace.loss_and_gradients(net_input, all_weights, all_biases, y, loss=pair)
    expected = workspace.loss_and_gradients(net_input, all_weights, all_biases, y)
    assert got[0] == pytest.approx(expected[0], rel=1e-4)
    with pytest.raises(RuntimeError, match="the progress callback called its own Workspace again"):
        workspace.loss_and_gradients(
            net_input,
            all_weights,
            all_biases,
            y,
            progress=lambda *_: workspace.predict(net_input, all_weights, all_biases),
        )
    assert_same_bits(list(workspace.loss_and_gradients(net_input, all_weights, all_biases, y)), list(expected))


def test_a_workspace_can_be_copied_and_sent(problem):
    workspace = fb.Workspace(LAYER_SIZES, problem[0].dtype, num_threads=3)
    for other in copy.deepcopy(workspace), pickle.loads(pickle.dumps(workspace)):
        assert repr(other) == repr(workspace)
        assert_same_bits(list(other.loss_and_gradients(*problem)), list(workspace.loss_and_gradients(*problem)))


SHOWER = """
import random, signal, threading, time
import fastbackprop as fb
from benchmarks.cases import batch, network
weights, biases = network((5, 20, 1))
x, y = batch((5, 20, 1), 60_000)
expected = fb.loss_and_gradients(x, weights, biases, y, num_threads=2)[0]
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
random.seed(0)
interrupts = 0
while interrupts < 500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-5 + 0.004 * random.random())
        for _ in range(3):
            fb.loss_and_gradients(x, weights, biases, y, num_threads=2)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert fb.loss_and_gradients(x, weights, biases, y, num_threads=2)[0] == expected
assert threading.active_count() <= 3
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_interrupts_at_any_moment_neither_hang_nor_spoil():
    done = subprocess.run([sys.executable, "-c", SHOWER], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


FORK = """
import os, sys, threading, warnings
warnings.simplefilter("error")
import numpy as np
import fastbackprop as fb
from benchmarks.cases import batch, network
sizes = (2, 6, 6, 1)
weights, biases = network(sizes)
x, y = batch(sizes, 100_000)
workspace = fb.Workspace(sizes, num_threads=2)
def gradient():
    results = [run(x, weights, biases, y) for run in (fb.loss_and_gradients, workspace.loss_and_gradients)]
    return [array for result in results for arrays in result[1:] for array in arrays]
expected = gradient()
for generation in range(2):
    child = os.fork()
    if child == 0:
        if not all(np.array_equal(got, want) for got, want in zip(gradient(), expected)):
            os._exit(1)
        if generation == 1:
            os._exit(0)
    else:
        _, status = os.waitpid(child, 0)
        gradient()
        os._exit(os.waitstatus_to_exitcode(status))
"""


FORK_WITHIN = """
import os
import numpy as np
import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop.engine import plan
plan.SLICE_FLOPS = 1
weights, biases = network((5, 20, 1))
x, y = batch((5, 20, 1), 600_000)
expected = fb.loss_and_gradients(x, weights, biases, y, num_threads=2)
children = []
def progress(done, total):
    if not children and done > total // 2:
        children.append(os.fork())
got = fb.loss_and_gradients(x, weights, biases, y, num_threads=2, progress=progress)
same = all(np.array_equal(*pair) for which in (1, 2) for pair in zip(got[which], expected[which], strict=True))
if children == [0]:
    os._exit(7 if same else 1)
_, status = os.waitpid(children[0], 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert same
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_within_a_call_leaves_two_that_finish_it():
    """It happens between slices, when no worker is at work."""
    subprocess.run([sys.executable, "-c", FORK_WITHIN], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_are_survived_by_parents_and_children():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


INTERRUPT = """
import signal, sys, time
import numpy as np
import fastbackprop as fb
from benchmarks.cases import batch, network
sizes = (1, 64, 64, 64, 1)
weights, biases = network(sizes)
x = np.broadcast_to(np.float64(0.5), (1, 2_000_000_000))
fb.loss_and_gradients(x[:, :1000], weights, biases, 1.0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
said = []
def progress(done, total):
    if not said:
        said.append(print("ready", flush=True))
try:
    fb.loss_and_gradients(x, weights, biases, 1.0, progress=progress)
except KeyboardInterrupt:
    print("interrupted", flush=True)
fb.loss_and_gradients(x[:, :100_000], weights, biases, 1.0)
print("works", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_is_answered_soon_and_leaves_everything_usable():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPT], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    # A slice takes some tens of milliseconds; the rest is for a busy machine. The whole call would take half an hour.
    assert process.communicate(timeout=60)[0] == "interrupted\nworks\n"
    assert process.returncode == 0
