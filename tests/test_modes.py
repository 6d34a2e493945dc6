"""Modes that an environment variable chooses: NUMBA_DISABLE_JIT (the oracle) and FASTBACKPROP_DEBUG (checks)."""

import os
import subprocess
import sys

import pytest

from fastbackprop.engine import oracle
from fastbackprop.engine.plan import COMPUTATIONS
from tests.test_package import ROOT


def run(code, **environment):
    """A process in such a mode, with all warnings shown."""
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


EVERYTHING = """
import itertools
import numpy as np
import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from tests.conftest import assert_close, smooth_batch, target_of

for dtype, sizes, samples in itertools.product(("f4", "f8"), ((1, 6, 6, 1), (5, 30, 7, 3), (3, 2)), (0, 1, 300)):
    dtype = np.dtype(dtype)
    parameters = weights, biases = network(sizes, dtype)
    biases[0] = biases[0][:, 0]
    x, y = smooth_batch(sizes, samples, weights, biases, dtype)
    for options in {}, {"sample_weight": np.linspace(0.5, 2, samples), "input_gradient": True}, {"reduction": "mean"}:
        for loss in reference.LOSSES if samples > 0 or "reduction" not in options else []:
            targets = [target_of(loss, y)]
            if loss.startswith("softmax") and sizes[-1] > 1:
                targets.append(np.arange(samples) % sizes[-1])
            for target in targets:
                got = fb.loss_and_gradients(x, weights, biases, target, loss=loss, **options)
                expected = reference.loss_and_gradients(x, weights, biases, target, loss=loss, **options)
                assert_close(got[1:], expected[1:])
                assert abs(got[0] - expected[0]) <= 1e-5 * abs(expected[0])
    pair = fb.least_squares_loss, fb.d_loss_d_output
    expected = reference.loss_and_gradients(x, weights, biases, y)
    assert_close(fb.loss_and_gradients(x, weights, biases, y, loss=pair)[1:], expected[1:])
    assert_close(fb.predict(x, weights, biases), reference.predict(x, weights, biases))
    vector, workspace, done = fb.pack(weights, biases), fb.Workspace(sizes, dtype), []
    out = fb.unpack(np.empty_like(vector), sizes)
    out[1][0] = out[1][0][:, 0]
    result = workspace.loss_and_gradients(x, weights, biases, y, out=out, progress=lambda *given: done.append(given))
    assert done == [(samples, samples)] * (samples > 0)
    assert result[1] is out[0] and result[2] is out[1]
    assert_close(out, expected[1:])
    written = np.empty_like(vector)
    assert workspace.loss_and_gradients(x, vector, None, y, out=written)[1] is written
    assert_close(written, fb.pack(*expected[1:]))
    assert_close(workspace.vjp(x, vector, None, y), fb.pack(*reference.vjp(x, weights, biases, y)))
    assert_close(workspace.predict(x, vector, None), reference.predict(x, weights, biases))
    passed = list(reference.compute_network_output(x, weights, biases))
    got = list(fb.compute_network_output(x, weights, biases))
    assert got[0] is got[1][-1] and got[2][0] is x
    assert_close(got, passed)
    for intermediates in False, True:
        back = fb.backward_pass(weights, biases, *passed[1:], y, intermediates=intermediates)
        assert_close(back, reference.backward_pass(weights, biases, *passed[1:], y, intermediates=intermediates))
    weight = {"sample_weight": np.linspace(0.5, 2, samples)}
    for name, more, options in (
        ("clipped_gradients", [0.5], weight),
        ("clipped_gradients", [0.5], {"reduction": "mean"} if samples else {}),
        ("squared_gradient_sums", [], {}),
        ("per_sample_gradient_norms", [], {}),
        ("per_sample_gradient_norms", [], {"per_layer": True}),
        ("per_sample_gradients", [], {}),
    ):
        passed = x, weights, biases, y, *more
        expected = getattr(reference, name)(*passed, **options)
        for function in getattr(fb, name), getattr(workspace, name):
            assert_close(list(function(*passed, **options)), list(expected), 1e-5)
    if samples > 0:
        losses, of_samples = workspace.per_sample_gradients(x, vector, None, y)
        assert_close(of_samples.sum(axis=0), fb.pack(*reference.loss_and_gradients(x, weights, biases, y)[1:]), 1e-5)
    if samples == 300:
        assert fb.check_gradients(x, weights, biases, y).passed
net_input = np.array([[np.inf, np.nan, 1e300]])
with np.errstate(all="raise"):
    fb.loss_and_gradients(net_input, [np.ones((1, 1))], [np.zeros(1)], 0.0)
fb.warmup("float32")
"""


def test_without_compilation_the_functions_run_on_the_oracle():
    done = run(EVERYTHING + "import sys; print('fastbackprop.passes.entry' in sys.modules)", NUMBA_DISABLE_JIT="1")
    assert done.stdout == "False\n"
    assert done.stderr.count("Warning") == 1
    assert "RuntimeWarning: NUMBA_DISABLE_JIT is set: the functions of fastbackprop run in plain NumPy" in done.stderr


def test_the_oracle_has_a_pass_for_all_that_is_computed():
    assert oracle.PASSES.keys() == COMPUTATIONS.keys()


def test_the_checks_accept_every_call():
    done = run(EVERYTHING + "print(type(workspace._engine).__name__)", FASTBACKPROP_DEBUG="1")
    assert (done.stdout, done.stderr) == ("DebugEngine\n", "")


PLANTED = """
import numpy as np
import fastbackprop as fb
from fastbackprop.kernels.simd import advance
from fastbackprop.losses import half_least_squares

def writing_to(index):
    def stray(losses, rows, stride, units, target_rows, count, scale):
        advance(losses, 8 * index)[0] = 1.0
    return stray

half_least_squares.tile_loss = writing_to({index})
x, weights, biases = np.ones((1, 5)), [np.ones((1, 1))], [np.ones(1)]
workspace = fb.Workspace((1, 1))
for call in workspace.loss_and_gradients, fb.loss_and_gradients:
    try:
        call(x, weights, biases, 0.0, loss="half_least_squares")
    except RuntimeError as error:
        print(error)
    print(call(x, weights, biases, 0.0)[0])
"""


@pytest.mark.parametrize(
    ("index", "where"), [(8, "up to 8 bytes behind"), (-2, "up to 16 bytes before"), (0, None), (7, None)]
)
def test_a_planted_write_outside_of_a_buffer_is_caught(index, where):
    """A loss that writes beside the buffer of 8 samples' losses, or within. The calls after it are right."""
    done = run(PLANTED.format(index=index), FASTBACKPROP_DEBUG="1")
    line = f"internal error: compiled code wrote outside of the buffer 'sample_losses', to 8 bytes {where} it"
    assert done.stdout.splitlines() == [*[line] * (where is not None), "20.0"] * 2


PLANTED_IN_LISTS = """
import ctypes
import numpy as np
import fastbackprop as fb
from fastbackprop.passes import entry

compiled = entry.entry

def stray(*passed):
    found = compiled(np.dtype("f8"))(*passed)
    ctypes.c_char.from_address(int(passed[7][-1, 0]) - 1).value = 0  # before the last array of a list
    return found

x, weights, biases = np.ones((1, 5)), [np.ones((1, 1)), np.ones((1, 1))], [np.ones(1), np.ones(1)]
_, all_f, all_h = fb.compute_network_output(x, weights, biases)
entry.entry = lambda dtype: stray
for call in (
    lambda: fb.per_sample_gradients(x, weights, biases, 0.0),
    lambda: fb.compute_network_output(x, weights, biases),
    lambda: fb.backward_pass(weights, biases, all_f, all_h, np.zeros((1, 5)), intermediates=True),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


def test_a_planted_write_outside_of_an_array_of_a_list_is_caught():
    lines = [
        f"internal error: compiled code wrote outside of the buffer {name!r}, to 1 bytes up to 1 bytes before it"
        for name in ("sample_gradients[3]", "columns[1]", "columns[5]")
    ]
    assert run(PLANTED_IN_LISTS, FASTBACKPROP_DEBUG="1").stdout.splitlines() == lines


WRONG = """
import numpy as np
import fastbackprop as fb
from fastbackprop.engine import engine
native = engine.native
engine.native = lambda arrays, dtype: [{} for array in native(arrays, dtype)]
try:
    fb.loss_and_gradients(np.ones((3, 5)), [np.ones((2, 3))], [np.ones(2)], 0.0)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("wrong", "found", "expected"),
    [("array.astype('f4')", "float32 and shape (3, 5)", "(3, 5)"), ("array.T", "float64 and shape (5, 3)", "(3, 3)")],
)
def test_an_array_that_compiled_code_does_not_read_is_refused(wrong, found, expected):
    done = run(WRONG.format(wrong), FASTBACKPROP_DEBUG="1")
    found = f"net_input given to compiled code is a ndarray of {found}"
    assert done.stdout == f"internal error: {found}; expected float64 and one of the shapes [{expected}]\n"


@pytest.mark.parametrize("setting", ["", "0"])
def test_the_checks_are_off_unless_asked_for(setting):
    code = "import fastbackprop as fb; print(type(fb.Workspace((1, 1))._engine).__name__)"
    assert run(code, FASTBACKPROP_DEBUG=setting).stdout == "Engine\n"
