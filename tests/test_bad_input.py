"""Bad input: a table of malformed calls. Each raises an error that names the argument, and changes nothing.

A row of the table is tried with every call that takes what it changes. Targets of the cross-entropies are in
test_losses.py, what else the calls on single samples refuse is in test_per_sample.py, files and options of the command
line are in test_files.py and test_main.py.
"""

import warnings

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from tests.conftest import assert_same_bits

LAYER_SIZES = (2, 6, 5, 3)
SAMPLES = 4
COMMON = "net_input all_weights all_biases "
FUSED = "loss reduction sample_weight "
SHARED = "input_gradient out progress "
CALLS = {
    "ReLU": (fb.ReLU, "preactivation"),
    "indicator_function": (fb.indicator_function, "x"),
    "least_squares_loss": (fb.least_squares_loss, "net_output y"),
    "d_loss_d_output": (fb.d_loss_d_output, "net_output y"),
    "compute_network_output": (fb.compute_network_output, COMMON),
    "backward_pass": (fb.backward_pass, "all_weights all_biases all_f all_h y loss"),
    "loss_and_gradients": (fb.loss_and_gradients, COMMON + "y num_threads " + FUSED + SHARED),
    "vjp": (fb.vjp, COMMON + "dl_doutput num_threads " + SHARED),
    "predict": (fb.predict, COMMON + "num_threads progress"),
    "check_gradients": (fb.check_gradients, COMMON + "y gradients tolerance seed " + FUSED),
    "clipped_gradients": (fb.clipped_gradients, COMMON + "y max_norm sample_weight out num_threads progress"),
    "per_sample_gradient_norms": (fb.per_sample_gradient_norms, COMMON + "y num_threads progress"),
    "squared_gradient_sums": (fb.squared_gradient_sums, COMMON + "y num_threads progress"),
    "per_sample_gradients": (fb.per_sample_gradients, COMMON + "y num_threads progress"),
    "pack": (fb.pack, "all_weights all_biases"),
    "unpack": (fb.unpack, "vector layer_sizes"),
    "warmup": (fb.warmup, "dtype"),
    "Workspace": (lambda layer_sizes, **more: repr(fb.Workspace(layer_sizes, **more)), "layer_sizes dtype num_threads"),
    "Workspace.loss_and_gradients": (
        lambda **given: fb.Workspace(LAYER_SIZES).loss_and_gradients(**given),
        COMMON + "y " + FUSED + SHARED,
    ),
    "Workspace.vjp": (lambda **given: fb.Workspace(LAYER_SIZES).vjp(**given), COMMON + "dl_doutput " + SHARED),
    "Workspace.predict": (lambda **given: fb.Workspace(LAYER_SIZES).predict(**given), COMMON + "progress"),
}
"""Every public call, and arguments it takes."""


def problem():
    """Good arguments, by name."""
    all_weights, all_biases = network(LAYER_SIZES)
    net_input, y = batch(LAYER_SIZES, SAMPLES)
    net_output, all_f, all_h = reference.compute_network_output(net_input, all_weights, all_biases)
    return {
        "net_input": net_input,
        "all_weights": all_weights,
        "all_biases": all_biases,
        "y": y,
        "dl_doutput": np.ones_like(y),
        "max_norm": 1.0,
        "net_output": net_output,
        "all_f": all_f,
        "all_h": all_h,
        "preactivation": all_f[0],
        "x": all_f[0],
        "vector": fb.pack(all_weights, all_biases),
        "layer_sizes": LAYER_SIZES,
        "dtype": np.float64,
    }


class Sparse:
    """What scipy.sparse has: a method that makes an array of it, which NumPy does not call."""

    def toarray(self):
        return np.ones((2, 2))


class Tensor:
    """A tensor that NumPy cannot take: one with a gradient, or of bfloat16."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


REQUIRES_GRAD = RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
BFLOAT16 = TypeError("Got unsupported ScalarType BFloat16")
FLOATS = "expected float32 or float64 (integers count as float64)"
LISTS = "expected a list of arrays, one for each layer"
PARENTHESES = "(samples are columns: transpose "


def arrays_refused(make, name):
    """Rows for what no array of numbers is, in the place of an argument or of an entry of a list."""
    kinds = {
        "text": ("data", TypeError, f"{name} has dtype <U4; expected "),
        "objects": (np.full((2, 2), None), TypeError, f"{name} has dtype object; expected "),
        "nothing": (None, TypeError, f"{name} is None; expected an array"),
        "complex": (np.ones((2, 2), complex), TypeError, f"{name} has dtype complex128; expected "),
        "dates": (np.zeros((2, 2), "M8[s]"), TypeError, f"{name} has dtype datetime64[s]; expected "),
        "records": (
            np.zeros((2, 2), "f8,f8"),
            TypeError,
            f"{name} has dtype [('f0', '<f8'), ('f1', '<f8')]; expected ",
        ),
        "ragged": ([[1.0], [1.0, 2.0]], ValueError, f"{name} cannot be made an array: setting an array element with"),
        "masked": (
            np.ma.masked_array(np.ones((2, 2))),
            TypeError,
            f"{name} is a masked array; expected a plain one: pass {name}.filled(...)",
        ),
        "sparse": (Sparse(), TypeError, f"{name} is a sparse array; expected a dense one: pass {name}.toarray()"),
        "requires grad": (Tensor(REQUIRES_GRAD), TypeError, f"{name} cannot be made an array: {REQUIRES_GRAD}"),
        "bfloat16": (Tensor(BFLOAT16), TypeError, f"{name} cannot be made an array: {BFLOAT16}"),
    }
    return {f"{name}: {kind}": (lambda a, v=v: make(a, v), error, text) for kind, (v, error, text) in kinds.items()}


def narrow_refused(make, name):
    """Rows for floating types that kernels do not take."""
    rows = {}
    for kind in "float16", np.dtype(np.longdouble).name:
        if kind != "float64":
            text = f"{name} has dtype {kind}; {FLOATS}: pass {name}.astype(np.float64)"
            rows[f"{name}: {kind}"] = (lambda a, kind=kind: make(a, np.ones((2, 2), kind)), TypeError, text)
    return rows


def instead(name):
    return lambda _, value: {name: value}


def entry(name, k):
    return lambda a, value: {name: replaced(a[name], k, value)}


def replaced(arrays, k, array):
    return [*arrays[:k], array, *arrays[k + 1 :]]


def row(error, text, **changes):
    """A row with fixed values: of an argument, or (entry, value) of a list of arrays."""

    def change(arguments):
        return {
            name: replaced(arguments[name], *value) if isinstance(value, Entry) else value
            for name, value in changes.items()
        }

    return change, error, text


class Entry(tuple):
    """A number, and what stands at it in a list."""


def read_only(shape):
    array = np.full(shape, 7.0)
    array.flags.writeable = False
    return array


def out(k=2, array=None):
    """Arrays to write a gradient to, with another array for the biases of one layer."""
    all_weights, all_biases = network(LAYER_SIZES)
    lists = [np.full_like(a, 7) for a in all_weights], [np.full_like(a, 7) for a in all_biases]
    return lists if array is None else (lists[0], replaced(lists[1], k, array))


WHOLE = "expected at least two whole numbers from 1 up"
THREADS = "expected a whole number from 1 up, or None"
PAIR = "expected a pair of lists (all_dl_dweights, all_dl_dbiases)"
CALLABLES = "expected a name or a pair of callables (value, derivative)"
BAD_OUTPUTS = {
    "shape": (np.full((3, 2), 7.0), ValueError, "[1][2] has shape (3, 2); expected (3, 1), its parameter's"),
    "a list": ([7.0] * 3, TypeError, "[1][2] has type list; expected an array"),
    "text": (np.full((3, 1), "7.0"), TypeError, "[1][2] has dtype <U3; expected "),
}
PAIRS = {
    "an int": (3, TypeError, f" has type int; {PAIR}"),
    "three lists": (([], [], []), TypeError, f" has type tuple and length 3; {PAIR}"),
    "numbers": ((3, 4), TypeError, f"[0] has type int; {LISTS}"),
    "empty lists": (([], []), ValueError, "[0] has 0 entries; expected 3: one for each layer"),
}

TABLE = {
    **arrays_refused(instead("net_input"), "net_input"),
    **arrays_refused(entry("all_weights", 1), "all_weights[1]"),
    **arrays_refused(entry("all_biases", 2), "all_biases[2]"),
    **arrays_refused(instead("y"), "y"),
    **arrays_refused(instead("dl_doutput"), "dl_doutput"),
    **arrays_refused(entry("all_f", 1), "all_f[1]"),
    **arrays_refused(entry("all_h", 0), "all_h[0]"),
    **arrays_refused(instead("net_output"), "net_output"),
    **arrays_refused(instead("preactivation"), "preactivation"),
    **arrays_refused(instead("x"), "x"),
    **arrays_refused(instead("vector"), "vector"),
    **arrays_refused(instead("sample_weight"), "sample_weight"),
    **narrow_refused(instead("net_input"), "net_input"),
    **narrow_refused(entry("all_weights", 1), "all_weights[1]"),
    **narrow_refused(entry("all_biases", 2), "all_biases[2]"),
    **narrow_refused(instead("dl_doutput"), "dl_doutput"),
    # Shapes of the network.
    "columns do not match": row(
        ValueError,
        "all_weights[1] has shape (5, 7); expected (5, 6): its columns must match the rows of all_weights[0]",
        all_weights=Entry((1, np.ones((5, 7)))),
    ),
    "weights of one dimension": row(
        ValueError,
        "all_weights[2] has shape (5,); expected (D_3, D_2), both at least 1",
        all_weights=Entry((2, np.ones(5))),
    ),
    "weights of three": row(
        ValueError,
        "all_weights[0] has shape (1, 6, 2); expected (D_1, D_0)",
        all_weights=Entry((0, np.ones((1, 6, 2)))),
    ),
    "no rows": row(
        ValueError, "all_weights[0] has shape (0, 2); expected (D_1, D_0)", all_weights=Entry((0, np.ones((0, 2))))
    ),
    "no columns": row(
        ValueError, "all_weights[0] has shape (6, 0); expected (D_1, D_0)", all_weights=Entry((0, np.ones((6, 0))))
    ),
    "no layers": row(
        ValueError,
        "all_weights is empty; expected one array (D_{k+1}, D_k) for each layer",
        all_weights=[],
        all_biases=[],
    ),
    "more parameters than any memory holds": row(
        ValueError,
        "all_weights has 70,368,752,566,272 parameters; expected at most 17,592,186,044,416",
        all_weights=[np.broadcast_to(1.0, (2**23, 2**23))],
        all_biases=[np.broadcast_to(1.0, 2**23)],
    ),
    "an array for the list of weights": row(
        TypeError, f"all_weights has type ndarray; {LISTS}", all_weights=np.ones(3)
    ),
    "None for the list of weights": row(TypeError, f"all_weights has type NoneType; {LISTS}", all_weights=None),
    "text for the list of weights": row(TypeError, f"all_weights has type str; {LISTS}", all_weights="weights"),
    "a dict for the list of biases": row(TypeError, f"all_biases has type dict; {LISTS}", all_biases={}),
    "bias of another length": row(
        ValueError,
        "all_biases[1] has shape (6, 1); expected (5, 1) or (5,): one for each row of all_weights[1]",
        all_biases=Entry((1, np.ones((6, 1)))),
    ),
    "bias as a number": row(
        ValueError, "all_biases[1] has shape (); expected (5, 1) or (5,)", all_biases=Entry((1, np.float64(1)))
    ),
    "bias as a row": row(
        ValueError,
        "all_biases[0] has shape (1, 6); expected (6, 1) or (6,): one for each row of all_weights[0] "
        "(biases are columns: transpose all_biases[0])",
        all_biases=Entry((0, np.ones((1, 6)))),
    ),
    "bias as a row of a later layer": row(
        ValueError,
        "one for each row of all_weights[2] (biases are columns: transpose all_biases[2])",
        all_biases=Entry((2, np.ones((1, 3)))),
    ),
    "weights (in, out)": row(
        ValueError,
        "all_biases[0] has shape (6, 1); expected (2, 1) or (2,): one for each row of all_weights[0] "
        "(weights are (out, in): transpose every array of all_weights that is (in, out), square ones too)",
        all_weights=Entry((0, np.ones((2, 6)))),
    ),
    "weights (in, out) of the last layer": row(
        ValueError,
        "its columns must match the rows of all_weights[1] "
        "(weights are (out, in): transpose every array of all_weights that is (in, out), square ones too)",
        all_weights=Entry((2, np.ones((5, 3)))),
    ),
    "no array for a bias": row(
        TypeError,
        "all_biases[1] is None; expected an array: pass zeros for a layer without biases",
        all_biases=Entry((1, None)),
    ),
    "weights (in, out) beside biases as rows": row(
        ValueError,
        "all_biases[0] has shape (1, 6); expected (2, 1) or (2,): one for each row of all_weights[0] "
        "(biases are columns: transpose each of them) (weights are (out, in): transpose every array of ",
        all_weights=Entry((0, np.ones((2, 6)))),
        all_biases=Entry((0, np.ones((1, 6)))),
    ),
    "fewer biases": row(
        ValueError,
        "all_biases has 2 entries; expected 3: one for each entry of all_weights",
        all_biases=[np.ones((6, 1)), np.ones((5, 1))],
    ),
    "no biases": row(ValueError, "all_biases has 0 entries; expected 3", all_biases=()),
    # Shapes of the batch.
    "samples as rows": row(
        ValueError,
        "net_input has shape (4, 2); expected (2, N): its rows must match the columns of all_weights[0], "
        f"one column for each sample {PARENTHESES}net_input)",
        net_input=np.ones((4, 2)),
    ),
    "input of one dimension": row(
        ValueError,
        "net_input has shape (2,); expected (2, N): its rows must match the columns of all_weights[0], "
        "one column for each sample (a sample is a column: reshape net_input to (2, 1))",
        net_input=np.ones(2),
    ),
    "input of three": row(ValueError, "net_input has shape (2, 4, 1); expected (2, N)", net_input=np.ones((2, 4, 1))),
    "an empty list": row(ValueError, "net_input has shape (0,); expected (2, N)", net_input=[]),
    "fewer features": row(ValueError, "net_input has shape (1, 4); expected (2, N)", net_input=np.ones((1, 4))),
    "seed of another length": row(
        ValueError,
        "dl_doutput has shape (3, 2); expected (3, 4): the shape of the network's output",
        dl_doutput=np.ones((3, 2)),
    ),
    "seed as rows": row(ValueError, f"output {PARENTHESES}dl_doutput)", dl_doutput=np.ones((4, 3))),
    "seed as a number": row(ValueError, "dl_doutput has shape (); expected (3, 4)", dl_doutput=1.0),
    # What the forward pass returned.
    "fewer preactivations": row(
        ValueError, "all_f has 2 entries; expected 3: one for each entry of all_weights", all_f=[np.ones((6, 4))] * 2
    ),
    "fewer activations": row(ValueError, "all_h has 2 entries; expected 3 or 4", all_h=[np.ones((2, 4))] * 2),
    "an array for the list of preactivations": row(TypeError, f"all_f has type ndarray; {LISTS}", all_f=np.ones(3)),
    "None for the list of activations": row(TypeError, f"all_h has type NoneType; {LISTS}", all_h=None),
    "preactivations of fewer samples": row(
        ValueError,
        "all_f[1] has shape (5, 3); expected (5, 4): it must match all_weights[1] and the samples of all_h[0]",
        all_f=Entry((1, np.ones((5, 3)))),
    ),
    "activations of fewer units": row(
        ValueError, "all_h[2] has shape (4, 4); expected (5, 4)", all_h=Entry((2, np.ones((4, 4))))
    ),
    # Vectors and sizes.
    "a vector of another length": row(
        ValueError,
        "vector has shape (4,); expected (71,): the parameters of layer sizes (2, 6, 5, 3)",
        vector=np.ones(4),
    ),
    "a vector of integers": row(
        TypeError,
        "vector has dtype int64; expected float32 or float64, whose views can be trained",
        vector=np.arange(71),
    ),
    "a vector with strides": row(
        ValueError, "vector is not contiguous; expected one that can be viewed", vector=np.ones(142)[::2]
    ),
    "one size": row(ValueError, f"layer_sizes is (3,); {WHOLE}", layer_sizes=(3,)),
    "no sizes": row(ValueError, f"layer_sizes is (); {WHOLE}", layer_sizes=[]),
    "a size of 0": row(ValueError, f"layer_sizes is (3, 0); {WHOLE}", layer_sizes=(3, 0)),
    "a negative size": row(ValueError, f"layer_sizes is (3, -1); {WHOLE}", layer_sizes=(3, -1)),
    "a broken size": row(TypeError, f"layer_sizes is (3, 1.5); {WHOLE}", layer_sizes=(3, 1.5)),
    "sizes as text": row(TypeError, f"layer_sizes is '3,2'; {WHOLE}", layer_sizes="3,2"),
    "a number for sizes": row(TypeError, f"layer_sizes is 3; {WHOLE}", layer_sizes=3),
    "None for sizes": row(TypeError, f"layer_sizes is None; {WHOLE}", layer_sizes=None),
    "sizes beyond 64 bits": row(
        ValueError,
        "layer_sizes is (4611686018427387904, 4611686018427387904), which has 21,267,647,932,558,653,971,072,",
        layer_sizes=(2**62, 2**62),
    ),
    "a thousand sizes of 0": row(ValueError, f", ...); {WHOLE}", layer_sizes=(0,) * 1000),
    "float16 as dtype": row(TypeError, "dtype is float16; expected float32 or float64", dtype=np.float16),
    "integers as dtype": row(TypeError, "dtype is int64; expected float32 or float64", dtype=np.int64),
    "no dtype": row(TypeError, "dtype is 'what'; expected float32 or float64", dtype="what"),
    "an array as dtype": row(TypeError, "dtype is array([[0., 0., 0., ..., ", dtype=np.zeros((300, 300))),
    # Options.
    "an unknown loss": row(ValueError, "loss is 'squares'; expected one of 'binary_cross_entropy', ", loss="squares"),
    "no loss": row(TypeError, "loss is None; expected a name or a ", loss=None),
    "a number as loss": row(TypeError, "loss is 3; expected a name or a ", loss=3),
    "a tuple of names": row(
        TypeError, "loss is ('least_squares', 'l2'); expected a name or a ", loss=("least_squares", "l2")
    ),
    "callables beside a mean": row(
        ValueError,
        "reduction or sample_weight is given with callables for loss; expected a name",
        loss=(np.sum, np.sum),
        reduction="mean",
    ),
    "callables beside weights": row(
        ValueError, "reduction or sample_weight is given", loss=(np.sum, np.sum), sample_weight=np.ones(4)
    ),
    "an unknown reduction": row(ValueError, "reduction is 'max'; expected 'sum' or 'mean'", reduction="max"),
    "no reduction": row(ValueError, "reduction is None; expected 'sum' or 'mean'", reduction=None),
    "a number as reduction": row(ValueError, "reduction is 1; expected 'sum' or 'mean'", reduction=1),
    "fewer sample weights": row(
        ValueError, "sample_weight has shape (3,); expected (4,): one for each sample", sample_weight=np.ones(3)
    ),
    "sample weights as a row": row(
        ValueError, "sample_weight has shape (1, 4); expected (4,)", sample_weight=np.ones((1, 4))
    ),
    "sample weights of sum 0": row(
        ValueError,
        "reduction is 'mean' and the sum of sample_weight is 0; expected something to divide by",
        reduction="mean",
        sample_weight=np.zeros(4),
    ),
    "no threads": row(ValueError, f"num_threads is 0; {THREADS}", num_threads=0),
    "less than no threads": row(ValueError, f"num_threads is -1; {THREADS}", num_threads=-1),
    "one and a half threads": row(TypeError, f"num_threads is 1.5; {THREADS}", num_threads=1.5),
    "True threads": row(TypeError, f"num_threads is True; {THREADS}", num_threads=True),
    "threads as text": row(TypeError, f"num_threads is '2'; {THREADS}", num_threads="2"),
    "an array of threads": row(TypeError, f"num_threads is array([1., 1.]); {THREADS}", num_threads=np.ones(2)),
    "progress": row(TypeError, "progress is 3; expected a callable (done, total), or None", progress=3),
    "a norm of 0": row(ValueError, "max_norm is 0; expected a positive number", max_norm=0),
    "text as norm": row(TypeError, "max_norm is '1'; expected a positive number", max_norm="1"),
    "a tolerance below 0": row(ValueError, "tolerance is -1; expected a number from 0 up, or None", tolerance=-1),
    "a tolerance of NaN": row(ValueError, "tolerance is nan; expected a number from 0 up, or None", tolerance=np.nan),
    "text as tolerance": row(TypeError, "tolerance is 'a'; expected a number from 0 up, or None", tolerance="a"),
    "a seed below 0": row(ValueError, "seed is -1; expected a whole number from 0 up", seed=-1),
    "text as seed": row(TypeError, "seed is 'a'; expected a whole number from 0 up", seed="a"),
    # Gradients to write, or to check.
    **{
        f"out: {kind}": row(error, f"out{text}", out=out(array=array))
        for kind, (array, error, text) in BAD_OUTPUTS.items()
    },
    **{f"out: {kind}": row(error, f"out{text}", out=value) for kind, (value, error, text) in PAIRS.items()},
    "out: float32": row(
        TypeError,
        "out[1][2] has dtype float32; expected float64, that of the gradient",
        out=out(array=np.full((3, 1), 7, "f4")),
    ),
    "out: integers": row(TypeError, "out[1][2] has dtype int64; expected float64", out=out(array=np.full((3, 1), 7))),
    "out: read-only": row(
        ValueError, "out[1][2] is read-only; expected an array to write to", out=out(array=read_only((3, 1)))
    ),
    **{
        f"gradients: {kind}": row(error, f"gradients{text}", gradients=out(array=array))
        for kind, (array, error, text) in BAD_OUTPUTS.items()
    },
    **{
        f"gradients: {kind}": row(error, f"gradients{text}", gradients=value)
        for kind, (value, error, text) in PAIRS.items()
    },
}
"""Each row: what it changes of good arguments, and the error."""

del TABLE["sample_weight: nothing"]  # None is its default

ONE_CALL = {
    "least_squares_loss": {
        "target of another length": row(
            ValueError, "y has shape (3, 2); expected one that broadcasts with net_output, (3, 4)", y=np.ones((3, 2))
        ),
    },
    "loss_and_gradients": {
        "target of another length": row(
            ValueError,
            "y has shape (3, 2); expected (3, 4), the shape of the network's output, or (3, 1), (1, 1) or a scalar",
            y=np.ones((3, 2)),
        ),
        "target as rows": row(ValueError, f"or a scalar {PARENTHESES}y)", y=np.ones((4, 3))),
        "target of one dimension": row(ValueError, "y has shape (4,); expected (3, 4)", y=np.ones(4)),
        "class numbers": row(ValueError, "(class numbers need the loss 'softmax_cross_entropy')", y=np.arange(4) % 3),
        "a value of three by four": row(
            ValueError,
            "what the value of loss returned has shape (3, 4); expected one number",
            loss=(lambda o, _y: o, lambda o, _y: o),
        ),
        "a value that is text": row(
            TypeError,
            "what the value of loss returned has dtype <U1; expected real numbers",
            loss=(lambda _o, _y: "a", lambda o, _y: o),
        ),
        "a derivative of one row": row(
            ValueError,
            "what the derivative of loss returned has shape (1, 4); expected (3, 4): the shape of the network's output",
            loss=(lambda _o, _y: 0.0, lambda o, _y: o[:1]),
        ),
        "no derivative": row(
            TypeError,
            "what the derivative of loss returned is None; expected an array",
            loss=(lambda _o, _y: 0.0, lambda _o, _y: None),
        ),
    },
    "backward_pass": {
        "what loss returned": row(
            ValueError, "what loss returned has shape (1, 4); expected (3, 4)", loss=lambda o, _y: o[:1]
        ),
        "a pair of callables": row(
            TypeError, "expected a name or a callable (net_output, y) -> dl_doutput", loss=(np.sum, np.sum)
        ),
    },
    "vjp": {
        "float16 as seed": row(
            TypeError,
            f"dl_doutput has dtype float16; {FLOATS}: pass dl_doutput.astype(np.float64)",
            dl_doutput=np.ones((3, 4), np.float16),
        ),
    },
    "Workspace.predict": {
        "other sizes": row(
            ValueError,
            "all_weights has layer sizes (2, 3); expected (2, 6, 5, 3), those of this Workspace",
            all_weights=[np.ones((3, 2))],
            all_biases=[np.ones(3)],
        ),
        "a vector of another length": row(
            ValueError,
            "all_weights has shape (70,); expected (71,): the parameters of layer sizes (2, 6, 5, 3)",
            all_weights=np.ones(70),
            all_biases=None,
        ),
        "a vector of complex numbers": row(
            TypeError,
            "all_weights has dtype complex128; expected float",
            all_weights=np.ones(71, complex),
            all_biases=None,
        ),
        "a vector beside a list": row(TypeError, f"all_weights has type ndarray; {LISTS}", all_weights=np.ones(71)),
    },
    "Workspace.loss_and_gradients": {
        "lists to write the gradient of a vector": row(
            TypeError,
            "out has type tuple; expected an array (P,), as the parameters are one vector",
            all_weights=np.ones(71),
            all_biases=None,
            out=([], []),
        ),
        "a vector to write that is short": row(
            ValueError,
            "out has shape (2,); expected (71,)",
            all_weights=np.ones(71),
            all_biases=None,
            out=np.ones(2),
        ),
        "a vector to write that is narrow": row(
            TypeError,
            "out has dtype float32; expected float64",
            all_weights=np.ones(71),
            all_biases=None,
            out=np.ones(71, np.float32),
        ),
        "a vector to write that is read-only": row(
            ValueError, "out is read-only", all_weights=np.ones(71), all_biases=None, out=read_only(71)
        ),
    },
}
"""Rows for one call alone."""

GOOD = problem()
NAMES = {name: set(taken.split()) for name, (_, taken) in CALLS.items()}
ROWS = [
    pytest.param(call, *rows[label], id=f"{call}: {label}")
    for call in CALLS
    for rows in (TABLE, ONE_CALL.get(call, {}))
    for label in rows
    if set(rows[label][0](GOOD)) <= NAMES[call]
]


def snapshot(value):
    """What a refused call must leave as it is."""
    if isinstance(value, (list, tuple)):
        return [snapshot(part) for part in value]
    if isinstance(value, np.ndarray) and value.dtype != object and 0 not in value.strides:
        return value.shape, value.dtype, value.tobytes()
    return id(value)


@pytest.mark.parametrize(("call", "change", "error", "text"), ROWS)
def test_bad_input(call, change, error, text):
    function, _ = CALLS[call]
    good = {name: value for name, value in problem().items() if name in NAMES[call]}
    expected = function(**good)
    bad = good | change(good)
    before = snapshot(list(bad.values()))
    with pytest.raises(error) as raised:
        function(**bad)
    message = str(raised.value)
    assert text in message
    assert "\n" not in message
    assert len(message) < 400
    assert snapshot(list(bad.values())) == before
    assert_same(function(**good), expected)


def assert_same(got, expected):
    if isinstance(expected, fb.checking.Report):
        assert got.entries == expected.entries
    elif isinstance(expected, str) or expected is None:
        assert got == expected
    else:
        assert_same_bits(got, expected)


def test_the_table_is_large_and_has_every_call():
    assert len(ROWS) >= 150
    assert {values.values[0] for values in ROWS} == set(CALLS)
    assert set(fb.__all__) - set(CALLS) == {"reference"}  # which does not check
    changed = {name for values in ROWS for name in values.values[1](GOOD)}
    assert set.union(*NAMES.values()) - changed == {"input_gradient"}  # anything is true or false


def test_numbers_too_wide_for_a_workspace():
    problem_ = problem()
    narrow = fb.Workspace(LAYER_SIZES, np.float32)
    x, y = (problem_[name].astype(np.float32) for name in ("net_input", "y"))
    parameters = [[array.astype(np.float32) for array in problem_[name]] for name in ("all_weights", "all_biases")]
    for call, message in [
        (lambda: narrow.loss_and_gradients(problem_["net_input"], *parameters, y), "net_input has dtype float64"),
        (lambda: narrow.loss_and_gradients(x, *parameters, problem_["y"]), "y has dtype float64"),
        (lambda: narrow.vjp(x, *parameters, problem_["y"]), "dl_doutput has dtype float64"),
        (lambda: narrow.predict(x, parameters[0], problem_["all_biases"]), "all_biases[0] has dtype float64"),
    ]:
        with pytest.raises(TypeError) as raised:
            call()
        assert str(raised.value).startswith(f"{message}; expected float32, the dtype of this Workspace: pass .astype")
    for target in 1, 0.5, True, y.astype(np.int64):
        assert narrow.loss_and_gradients(x.astype(np.int32), *parameters, target)[1][0].dtype == np.float32


def test_an_error_of_a_callable_passes_through():
    good = {name: value for name, value in problem().items() if name in ("net_input", "all_weights", "all_biases", "y")}
    with pytest.raises(ZeroDivisionError):
        fb.loss_and_gradients(**good, loss=(lambda _o, _y: 1 / 0, lambda o, _y: o))
    assert fb.loss_and_gradients(**good)[0] > 0


@pytest.mark.parametrize("library", ["scipy.sparse", "torch"])
def test_arrays_of_other_libraries(library):
    """The stand-ins of the table behave as these libraries do."""
    module = pytest.importorskip(library)
    if library == "torch":
        ones = module.ones(2, 2)
        cases = (ones.clone().requires_grad_(), "cannot be made an array"), (ones.bfloat16(), "cannot be made an array")
    else:
        cases = (
            (module.csr_array(np.ones((2, 2))), "is a sparse array; expected a dense one: pass net_input.toarray()"),
        )
    for value, text in cases:
        with pytest.raises(TypeError) as raised, warnings.catch_warnings():
            fb.predict(value, [np.ones((1, 2))], [np.ones(1)])
        assert str(raised.value).startswith(f"net_input {text}")
