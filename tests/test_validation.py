"""Bad input gets a clear error that names the argument, and changes nothing."""

import re

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network

LAYER_SIZES = (2, 6, 5, 3)
SAMPLES = 4


@pytest.fixture
def arguments():
    all_weights, all_biases = network(LAYER_SIZES)
    net_input, y = batch(LAYER_SIZES, SAMPLES)
    return {"net_input": net_input, "all_weights": all_weights, "all_biases": all_biases, "y": y}


def replaced(arrays, k, array):
    return [*arrays[:k], array, *arrays[k + 1 :]]


CASES = {
    "columns do not match": (
        lambda a: {"all_weights": replaced(a["all_weights"], 1, np.ones((5, 7)))},
        ValueError,
        "all_weights[1] has shape (5, 7); expected (5, 6): its columns must match the rows of all_weights[0]",
    ),
    "one-dimensional weights": (
        lambda a: {"all_weights": replaced(a["all_weights"], 2, np.ones(5))},
        ValueError,
        "all_weights[2] has shape (5,); expected (D_3, D_2), both at least 1",
    ),
    "empty weights": (
        lambda a: {"all_weights": replaced(a["all_weights"], 0, np.ones((0, 2)))},
        ValueError,
        "all_weights[0] has shape (0, 2); expected (D_1, D_0), both at least 1",
    ),
    "bias of another length": (
        lambda a: {"all_biases": replaced(a["all_biases"], 1, np.ones((6, 1)))},
        ValueError,
        "all_biases[1] has shape (6, 1); expected (5, 1) or (5,): one for each row of all_weights[1]",
    ),
    "bias as a row": (
        lambda a: {"all_biases": replaced(a["all_biases"], 0, np.ones((1, 6)))},
        ValueError,
        "all_biases[0] has shape (1, 6); expected (6, 1) or (6,)",
    ),
    "fewer biases": (
        lambda a: {"all_biases": a["all_biases"][:2]},
        ValueError,
        "all_biases has 2 entries; expected 3: one for each entry of all_weights",
    ),
    "no layers": (
        lambda _: {"all_weights": [], "all_biases": []},
        ValueError,
        "all_weights is empty; expected one array (D_{k+1}, D_k) for each layer",
    ),
    "an array for a list": (
        lambda a: {"all_weights": a["all_weights"][0]},
        TypeError,
        "all_weights has type ndarray; expected a list of arrays, one for each layer",
    ),
    "float16": (
        lambda a: {"net_input": a["net_input"].astype(np.float16)},
        TypeError,
        "net_input has dtype float16; expected float32 or float64 (integers count as float64): "
        "pass net_input.astype(np.float64)",
    ),
    "longdouble": (
        lambda a: {"all_biases": replaced(a["all_biases"], 2, np.ones((3, 1), np.longdouble))},
        TypeError,
        "all_biases[2] has dtype",
    ),
    "complex": (
        lambda a: {"all_weights": replaced(a["all_weights"], 1, np.ones((5, 6), complex))},
        TypeError,
        "all_weights[1] has dtype complex128; expected float32 or float64",
    ),
    "object": (
        lambda a: {"net_input": a["net_input"].astype(object)},
        TypeError,
        "net_input has dtype object; expected float32 or float64",
    ),
    "text": (lambda _: {"net_input": "data"}, TypeError, "net_input has dtype <U4"),
    "ragged": (lambda _: {"net_input": [[1.0], [1.0, 2.0]]}, ValueError, "net_input cannot be made an array"),
    "masked": (
        lambda a: {"net_input": np.ma.masked_array(a["net_input"])},
        TypeError,
        "net_input is a masked array; expected a plain one",
    ),
    "samples as rows": (
        lambda a: {"net_input": a["net_input"].T},
        ValueError,
        "net_input has shape (4, 2); expected (2, N): its rows must match the columns of all_weights[0], "
        "one column for each sample (samples are columns: pass net_input.T)",
    ),
    "one-dimensional input": (
        lambda a: {"net_input": a["net_input"][:, 0]},
        ValueError,
        "net_input has shape (2,); expected (2, N)",
    ),
    "target of another length": (
        lambda a: {"y": a["y"][:, :2]},
        ValueError,
        "y has shape (3, 2); expected (3, 4), the shape of the network's output, or (3, 1), (1, 1) or a scalar",
    ),
    "target as rows": (
        lambda a: {"y": a["y"].T},
        ValueError,
        "y has shape (4, 3); expected (3, 4), the shape of the network's output, or (3, 1), (1, 1) or a scalar "
        "(samples are columns: pass y.T)",
    ),
    "one-dimensional target": (lambda a: {"y": a["y"][0]}, ValueError, "y has shape (4,); expected (3, 4)"),
    "complex target": (lambda a: {"y": a["y"] + 1j}, TypeError, "y has dtype complex128"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_every_call_refuses(case, arguments):
    change, error, message = CASES[case]
    changed = {**arguments, **change(arguments)}
    y = changed.pop("y")
    with pytest.raises(error, match=re.escape(message)):
        fb.loss_and_gradients(**changed, y=y)
    with pytest.raises(error, match=re.escape(message)):
        fb.check_gradients(**changed, y=y)
    if "y" not in change(arguments):
        for call in fb.predict, fb.compute_network_output:
            with pytest.raises(error, match=re.escape(message)):
                call(**changed)
        with pytest.raises(error, match=re.escape(message)):
            fb.vjp(**changed, dl_doutput=y)
    if "net_input" not in change(arguments):
        _, all_f, all_h = fb.compute_network_output(*list(arguments.values())[:3])
        with pytest.raises(error, match=re.escape(message)):
            fb.backward_pass(changed["all_weights"], changed["all_biases"], all_f, all_h, y)


OPTIONS = [
    (
        {"loss": "squares"},
        ValueError,
        "loss is 'squares'; expected one of 'binary_cross_entropy', 'half_least_squares', 'least_squares', ",
    ),
    ({"loss": np.sum}, TypeError, "expected a name or a pair of callables (value, derivative)"),
    ({"reduction": "max"}, ValueError, "reduction is 'max'; expected 'sum' or 'mean'"),
    ({"sample_weight": np.ones(3)}, ValueError, "sample_weight has shape (3,); expected (4,): one for each sample"),
    (
        {"sample_weight": np.zeros(4), "reduction": "mean"},
        ValueError,
        "reduction is 'mean' and the sum of sample_weight is 0",
    ),
    ({"loss": (np.sum, np.sum), "reduction": "mean"}, ValueError, "reduction or sample_weight is given with callables"),
    ({"loss": (np.sum, np.sum), "sample_weight": np.ones(4)}, ValueError, "reduction or sample_weight is given"),
    (
        {"loss": (lambda _o, _y: 0.0, lambda o, _y: o[:1])},
        ValueError,
        "what the derivative of loss returned has shape (1, 4); expected (3, 4): the shape of the network's output",
    ),
    ({"num_threads": 0}, ValueError, "num_threads is 0; expected a whole number from 1 up, or None"),
    ({"num_threads": 1.5}, TypeError, "num_threads is 1.5; expected a whole number from 1 up, or None"),
    ({"num_threads": True}, TypeError, "num_threads is True; expected a whole number from 1 up, or None"),
    ({"out": 3}, TypeError, "out is a int; expected a pair of lists (all_dl_dweights, all_dl_dbiases)"),
    ({"out": ([], [])}, ValueError, "out[0] has 0 entries; expected 3: one for each layer"),
    ({"out": (3, 4)}, TypeError, "out[0] is a int; expected a list of arrays, one for each layer"),
    ({"out": ([], [], [])}, TypeError, "out is a tuple of length 3; expected a pair of lists"),
    ({"progress": 3}, TypeError, "progress is 3; expected a callable (done, total), or None"),
    ({"num_threads": np.ones(2)}, TypeError, "num_threads is array([1., 1.]); expected a whole number"),
    (
        {"loss": (lambda o, _y: o, lambda o, _y: o)},
        ValueError,
        "what the value of loss returned has shape (3, 4); expected one number",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_options_that_are_refused(options, error, message, arguments):
    with pytest.raises(error, match=re.escape(message)):
        fb.loss_and_gradients(**arguments, **options)


def outputs():
    all_weights, all_biases = network(LAYER_SIZES)
    return [np.full_like(array, 7) for array in all_weights], [np.full_like(array, 7) for array in all_biases]


def test_out_is_checked_before_anything_is_written(arguments):
    read_only = np.full((3, 1), 7.0)
    read_only.flags.writeable = False
    for array, error, message in [
        (np.full((3, 2), 7.0), ValueError, "out[1][2] has shape (3, 2); expected (3, 1), its parameter's"),
        (np.full((3, 1), 7, np.float32), TypeError, "out[1][2] has dtype float32; expected float64"),
        (np.full((3, 1), 7), TypeError, "out[1][2] has dtype int64; expected float64"),
        ([7.0] * 3, TypeError, "out[1][2] is a list; expected an array"),
        (read_only, ValueError, "out[1][2] is read-only; expected an array to write to"),
    ]:
        out = outputs()
        out[1][2] = array
        with pytest.raises(error, match=re.escape(message)):
            fb.loss_and_gradients(**arguments, out=out)
        with pytest.raises(error, match=re.escape(message)):
            fb.vjp(*list(arguments.values())[:3], arguments["y"], out=out)
        assert all((np.asarray(array) == 7).all() for part in out for array in part)


def test_what_the_backward_pass_refuses(arguments):
    _, all_f, all_h = fb.compute_network_output(*list(arguments.values())[:3])
    parameters = arguments["all_weights"], arguments["all_biases"]
    y = arguments["y"]
    for f, h, error, message in [
        (all_f[:2], all_h, ValueError, "all_f has 2 entries; expected 3: one for each entry of all_weights"),
        (all_f, all_h[:2], ValueError, "all_h has 2 entries; expected 3 or 4: one for each entry of all_weights"),
        (all_f[0], all_h, TypeError, "all_f is a ndarray; expected a list of arrays, one for each layer"),
        (all_f, None, TypeError, "all_h is a NoneType; expected a list of arrays, one for each layer"),
        (replaced(all_f, 1, all_f[1][:, :3]), all_h, ValueError, "all_f[1] has shape (5, 3); expected (5, 4)"),
        (all_f, replaced(all_h, 2, all_h[2][:4]), ValueError, "all_h[2] has shape (4, 4); expected (5, 4)"),
        (replaced(all_f, 0, None), all_h, TypeError, "all_f[0] has dtype object"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            fb.backward_pass(*parameters, f, h, y)
    with pytest.raises(ValueError, match=re.escape("loss is 'squares'")):
        fb.backward_pass(*parameters, all_f, all_h, y, loss="squares")
    with pytest.raises(TypeError, match=re.escape("expected a name or a callable (net_output, y) -> dl_doutput")):
        fb.backward_pass(*parameters, all_f, all_h, y, loss=(np.sum, np.sum))
    with pytest.raises(TypeError, match=re.escape("loss is 3; expected a name or a callable (net_output, y)")):
        fb.backward_pass(*parameters, all_f, all_h, y, loss=3)
    with pytest.raises(ValueError, match=re.escape("what loss returned has shape (1, 4); expected (3, 4)")):
        fb.backward_pass(*parameters, all_f, all_h, y, loss=lambda o, _y: o[:1])


def test_what_a_workspace_refuses(arguments):
    with pytest.raises(
        ValueError, match=re.escape("layer_sizes is (3,); expected at least two whole numbers from 1 up")
    ):
        fb.Workspace((3,))
    with pytest.raises(ValueError, match=re.escape("layer_sizes is (3, 0); expected at least two")):
        fb.Workspace((3, 0))
    with pytest.raises(TypeError, match=re.escape("layer_sizes is (3, 1.5); expected at least two")):
        fb.Workspace((3, 1.5))
    with pytest.raises(TypeError, match=re.escape("layer_sizes is 3; expected at least two")):
        fb.Workspace(3)
    for dtype, name in (np.float16, "float16"), (int, "int64"), ("what", "'what'"):
        with pytest.raises(TypeError, match=f"dtype is {name}; expected float32 or float64"):
            fb.Workspace((3, 2), dtype)
    with pytest.raises(ValueError, match="num_threads is 0"):
        fb.Workspace((3, 2), num_threads=0)
    with pytest.raises(ValueError, match=re.escape("layer sizes (2, 6, 5, 3); expected (2, 6, 6, 3), those of this")):
        fb.Workspace((2, 6, 6, 3)).loss_and_gradients(**arguments)
    narrow = fb.Workspace(LAYER_SIZES, np.float32)
    parameters = [[array.astype(np.float32) for array in arguments[name]] for name in ("all_weights", "all_biases")]
    x, y = (arguments[name].astype(np.float32) for name in ("net_input", "y"))
    for call, message in [
        (lambda: narrow.loss_and_gradients(arguments["net_input"], *parameters, y), "net_input has dtype float64"),
        (lambda: narrow.loss_and_gradients(x, *parameters, arguments["y"]), "y has dtype float64"),
        (lambda: narrow.vjp(x, *parameters, arguments["y"]), "dl_doutput has dtype float64"),
        (lambda: narrow.predict(x, parameters[0], arguments["all_biases"]), "all_biases[0] has dtype float64"),
    ]:
        with pytest.raises(TypeError, match=re.escape(f"{message}; expected float32, the dtype of this Workspace")):
            call()
    for target in 1, 0.5, True, y.astype(np.int64):
        assert narrow.loss_and_gradients(x.astype(np.int32), *parameters, target)[1][0].dtype == np.float32


def test_what_pack_and_unpack_refuse():
    with pytest.raises(
        ValueError, match=re.escape("vector has shape (4,); expected (3,): the parameters of layer sizes")
    ):
        fb.unpack(np.ones(4), (2, 1))
    with pytest.raises(TypeError, match="vector has dtype int64; expected float32 or float64"):
        fb.unpack(np.arange(3), (2, 1))
    with pytest.raises(ValueError, match="vector is not contiguous; expected one that can be viewed"):
        fb.unpack(np.ones(6)[::2], (2, 1))
    with pytest.raises(ValueError, match="all_biases has 0 entries; expected 1"):
        fb.pack([np.ones((1, 1))], [])


def test_a_refused_call_leaves_nothing_behind(arguments):
    copies = {
        name: np.copy(value) if name in ("net_input", "y") else [np.copy(v) for v in value]
        for name, value in arguments.items()
    }
    with pytest.raises(ValueError, match="out"):
        fb.loss_and_gradients(**arguments, out=([], []))
    with pytest.raises(ZeroDivisionError):
        fb.loss_and_gradients(**arguments, loss=(lambda _o, _y: 1 / 0, lambda o, _y: o))
    for name, value in arguments.items():
        for array, copy in zip(value, copies[name], strict=True):
            np.testing.assert_array_equal(array, copy)
    assert fb.loss_and_gradients(**arguments)[0] > 0


def test_weights_the_other_way_round_are_told_where_they_can_be():
    """Of later layers, the transposed weights would not match the layer before."""
    weights, biases = [np.ones((2, 6)), np.ones((3, 2))], [np.ones((6, 1)), np.ones((2, 1))]
    with pytest.raises(ValueError, match=re.escape("(weights are (out, in): pass all_weights[0].T)")):
        fb.loss_and_gradients(np.ones((6, 3)), weights, biases, 0.0)
    biases[0] = np.ones((2, 1))
    with pytest.raises(ValueError, match=re.escape("one for each row of all_weights[1]") + "$"):
        fb.loss_and_gradients(np.ones((6, 3)), weights, biases, 0.0)
