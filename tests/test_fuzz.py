"""Random calls against the oracle in float64: shapes, layouts, dtypes, losses, special values, schedules.

Data are small whole numbers times a power of two. Their products and sums are exact in any order: no sample is at a
kink because of rounding, and results equal the oracle's. Where something has to be rounded, the limit is proportional
to the sum of the magnitudes of all terms.

The long run is not part of the gate: pytest -m fuzz --hypothesis-seed=1
"""

import contextlib
import copy
import itertools
import pickle
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import fastbackprop as fb
from fastbackprop import reference
from fastbackprop.engine import engine, plan, pool
from tests import test_layouts
from tests.conftest import assert_same_bits

LAYOUTS = [lambda array, _path: array, *[layout for layout in test_layouts.ZOO if layout.__name__ != "memory_mapped"]]
CUT = {"CHUNK_FLOPS": 1, "CHUNK_SAMPLES": 16, "TWO_CHUNKS": 17}
SHARED = {"PRIVATE_BYTES": 100, "SHARED_FLOPS": 1}
SCHEDULES = {
    "as planned": {},
    "many chunks": CUT,
    "many chunks, in slices": CUT | {"SLICE_FLOPS": 1},
    "shared": SHARED,
    "shared, in groups": SHARED | {"GROUP_TILES": 2, "GROUP_BYTES": 1},
}
SQUARES, CROSS_ENTROPIES = ["least_squares", "half_least_squares"], ["softmax_cross_entropy", "binary_cross_entropy"]
EXPONENTS = {"float32": [20, -20, 60, 100, -70, -149], "float64": [20, -20, 500, 900, -540, -1074]}
"""Units whose squares are ordinary, infinite, or 0; the last one is the smallest subnormal number."""


@dataclass(frozen=True)
class Problem:
    """One network, one batch, and how they are passed; the numbers follow from the seed."""

    layer_sizes: tuple
    samples: int
    dtype: str
    loss: str
    is_mean: bool
    is_weighted: bool
    is_mixed: bool
    schedule: str
    exponent: int | None
    special: float | None
    threads: int
    seed: int


def problems():
    """Narrow networks of up to ten layers, and networks with one wide layer; batches of few samples, one tile, many."""
    narrow = st.lists(st.integers(1, 9), min_size=2, max_size=10)
    units = st.integers(1, 40) | st.just(270)  # after which sums of derivatives are cut in two
    wide = st.tuples(st.integers(1, 40), st.sampled_from([24, 25, 33, 64, 130]), units, st.integers(1, 30))
    return st.builds(
        Problem,
        layer_sizes=(narrow | wide).map(tuple),
        samples=st.integers(0, 40) | st.sampled_from([64, 95, 96, 97, 127, 128, 129, 256, 300, 513, 700]),
        dtype=st.sampled_from(list(EXPONENTS)),
        loss=st.sampled_from(SQUARES + CROSS_ENTROPIES),
        is_mean=st.booleans(),
        is_weighted=st.booleans(),
        is_mixed=st.booleans(),
        schedule=st.sampled_from(list(SCHEDULES)),
        exponent=st.none() | st.integers(0, 5),
        special=st.none() | st.sampled_from([np.nan, np.inf, -np.inf]),
        threads=st.integers(1, 3),
        seed=st.integers(0, 2**32 - 1),
    )


@contextlib.contextmanager
def scheduled(name):
    """Plan as for other sizes of caches and batches."""
    with contextlib.ExitStack() as stack:
        for constant, value in SCHEDULES[name].items():
            stack.enter_context(mock.patch.object(plan, constant, value))
        if "slices" in name:
            stack.enter_context(mock.patch.object(engine, "STAGED_BYTES", 1))
            stack.enter_context(mock.patch.object(engine, "GIVEN_BYTES", 1))
        stack.enter_context(mock.patch.object(pool, "_free", {}))
        yield


def whole(rng, shape, nonzero=1.0):
    """Whole numbers from -2 to 2, of which at most that share is not 0; zeros have either sign."""
    numbers = rng.integers(-2, 3, shape) * (rng.random(shape) < nonzero)
    return np.where(numbers == 0, rng.choice([0.0, -0.0], shape), numbers)


def target(rng, loss, outputs, samples):
    """A target of a loss, in one of the shapes that are broadcast."""
    shapes = [(outputs, samples), (outputs, 1), (1, 1), ()] + [(samples,)] * (outputs == 1)
    shape = shapes[rng.integers(len(shapes))]
    if loss in SQUARES:
        return whole(rng, shape)
    if loss == "binary_cross_entropy":
        return np.asarray(rng.choice([0.0, 0.25, 0.5, 1.0], shape))
    if outputs > 1 and rng.random() < 0.5:
        return np.asarray(rng.integers(0, outputs, [(samples,), (1, samples), (1, 1), ()][rng.integers(4)]))
    classes = rng.integers(0, outputs, (2, samples if rng.random() < 0.5 else 1))
    return (np.eye(outputs)[:, classes[0]] + np.eye(outputs)[:, classes[1]]) / 2


def passes(x, weights, biases, derivative):
    """All results of the oracle, from the derivative of a loss by the output as a function of it."""
    output, f, h = reference.compute_network_output(x, weights, biases)
    back = reference.backward_pass(
        weights, biases, f, h, None, loss=lambda output, _: derivative(output), intermediates=True
    )
    names = "weights", "biases", "dl_dh", "dl_df"
    return {"output": output, "f": f, "h": h[1:]} | dict(zip(names, back, strict=True))


class Data:
    """The arrays of a problem, in float64 and as they are passed, and what has to come out."""

    def __init__(self, problem):
        self.problem, self.rng = problem, np.random.default_rng(problem.seed)
        rng, sizes, samples = self.rng, problem.layer_sizes, problem.samples
        self.weights = [whole(rng, (b, a), min(1.5 / a, 1)) for a, b in itertools.pairwise(sizes)]
        self.biases = [whole(rng, (units, 1)) for units in sizes[1:]]
        self.x, self.seed = whole(rng, (sizes[0], samples)), whole(rng, (sizes[-1], samples))
        self.y = target(rng, problem.loss, sizes[-1], samples)
        self.sample_weight = rng.integers(1, 4, samples).astype(float) if problem.is_weighted else None
        self.reduction = "mean" if problem.is_mean and samples else "sum"
        self.options = {"loss": problem.loss, "reduction": self.reduction, "sample_weight": self.sample_weight}
        self.bounds, self.seed_bounds = self.sums_of_magnitudes()
        self.terms = 4 * (samples + sum(sizes) + 16)
        assume(largest(self.bounds["f"]) < 1 / np.finfo(problem.dtype).eps)  # the forward pass is exact
        self.unit = np.float64(1.0)
        if problem.loss in SQUARES and problem.exponent is not None:  # the cross-entropies are not homogeneous
            self.unit = np.ldexp(1.0, EXPONENTS[problem.dtype][problem.exponent])
            self.biases = [self.unit * biases for biases in self.biases]
            self.x, self.seed, self.y = self.unit * self.x, self.unit * self.seed, self.unit * self.y
        if problem.special is not None:
            self.put_special_values()
        self.expected = self.oracle(lambda output: reference.loss_derivative(output, self.y, **self.options))
        self.expected["loss"] = reference.loss_value(self.expected["output"], self.y, **self.options)
        self.seed_expected = self.oracle(lambda _: self.seed)
        self.pass_arrays()

    def sums_of_magnitudes(self):
        """The same results where every term of a sum has its magnitude, for the loss and for the seed of vjp."""
        weights, biases = ([abs(array) for array in arrays] for arrays in (self.weights, self.biases))
        if np.isinf(self.problem.special or 0.0):  # which may switch on a unit whose terms are all 0
            biases = [array + 1 for array in biases]
        weight, divisor = reference._weighting(self.x, self.reduction, self.sample_weight)
        size = abs(self.y) if self.problem.loss in SQUARES else 1

        def slope(output):
            return 2 * ((output if self.problem.loss in SQUARES else 0) + size) * weight / divisor + 0 * output

        bounds = passes(abs(self.x), weights, biases, slope)
        bounds["loss"] = np.sum((bounds["output"] + size + 2) ** 2 * weight) / divisor
        return bounds, passes(abs(self.x), weights, biases, lambda _: abs(self.seed))

    def put_special_values(self):
        """NaN or an infinity in one or two places; the target of a cross-entropy is finite."""
        arrays = [*self.weights, *self.biases, self.x, self.seed] + [self.y] * (self.problem.loss in SQUARES)
        for array in self.rng.permutation(len(arrays))[: self.rng.integers(1, 3)]:
            if arrays[array].size and arrays[array].ndim:
                arrays[array].flat[self.rng.integers(arrays[array].size)] = self.problem.special

    def oracle(self, derivative):
        return passes(self.x, self.weights, self.biases, derivative)

    def pass_arrays(self):
        """Copies in some dtype and layout; and the dtype of results, by the rule of the documents."""
        kinds = dict.fromkeys(("weights", "biases", "x", "seed", "y"), np.dtype(self.problem.dtype))
        if self.problem.is_mixed and self.unit == 1:
            kinds[self.rng.choice(list(kinds))] = np.dtype("float64")
            if np.isfinite(self.x).all():
                kinds["x"] = np.dtype(self.rng.choice([kinds["x"].name, "int16", "int64"]))
        if self.y.dtype.kind == "i":
            kinds["y"] = self.y.dtype
        biases = [array.ravel() for array in self.biases] if self.rng.random() < 0.5 else self.biases
        self.network = [[self.passed(array, kinds["weights"]) for array in self.weights]]
        self.network.append([self.passed(array, kinds["biases"]) for array in biases])
        self.given = {name: self.passed(getattr(self, name), kinds[name]) for name in ("x", "seed", "y")}
        self.given["weight"] = None if self.sample_weight is None else self.passed(self.sample_weight, np.float64)
        counted = {name: np.dtype("float64") if kind.kind == "i" else kind for name, kind in kinds.items()}
        self.dtype = np.result_type(*[counted[name] for name in ("weights", "biases", "x")])
        self.seed_dtype = np.result_type(self.dtype, kinds["seed"])
        self.target_dtype = self.dtype if kinds["y"].kind == "i" else np.result_type(self.dtype, kinds["y"])

    def passed(self, array, dtype):
        array = array.astype(dtype)
        return LAYOUTS[self.rng.integers(len(LAYOUTS))](array, None) if array.ndim else array

    def check(self, name, got, dtype, *, is_seeded=False):
        """Compare one result, or a list of them, with the oracle's."""
        expected = (self.seed_expected if is_seeded else self.expected)[name]
        bounds = self.seed_bounds if is_seeded else self.bounds
        is_sum = is_seeded or (self.problem.loss in SQUARES and self.reduction == "sum")
        epsilon = 0.0 if is_sum and self.is_exact(bounds) else np.finfo(self.problem.dtype).eps
        arrays = [[item] if not isinstance(item, list) else item for item in (got, expected, bounds[name])]
        unit = self.unit**2 if name in ("weights", "loss") else self.unit
        for k, (array, wanted, bound) in enumerate(zip(*arrays, strict=True)):
            label = f"{name}[{k}]"
            array = np.asarray(array)
            assert array.dtype == dtype, label
            self.compare(label, array.astype(np.float64), np.reshape(wanted, array.shape), bound, unit, epsilon, dtype)

    def is_exact(self, bounds):
        """Whether whole numbers stay small enough to be added without rounding."""
        return max(map(largest, bounds.values())) < 1 / np.finfo(self.problem.dtype).eps

    def compare(self, label, got, wanted, bound, unit, epsilon, dtype):
        """Equal, close by the magnitudes of the terms, or not finite where these overflow."""
        if np.array_equal(got, wanted):
            return
        terms = self.terms
        bound = np.reshape(bound, got.shape)
        limit = terms * epsilon * bound * unit + terms * (bound + 1) * np.finfo(dtype).smallest_subnormal * (unit < 1)
        right = (got == wanted) | (np.isnan(got) & np.isnan(wanted)) | (abs(got - wanted) <= limit)
        right |= ~np.isfinite(got) & (bound * unit >= np.finfo(dtype).max / 4)
        assert right.all(), f"{label}: got {got[~right][:3]}, expected {wanted[~right][:3]}"


def largest(arrays):
    """The largest entry of an array or of a list of them."""
    arrays = arrays if isinstance(arrays, list) else [arrays]
    return max((float(np.max(array, initial=0)) for array in arrays), default=0.0)


def check_fused(data):
    """The functions, a Workspace with lists and with a vector, `out`, and callables: all of them give the same bits."""
    x, network, y, dtype = data.given["x"], data.network, data.given["y"], data.target_dtype
    options = {"loss": data.problem.loss, "reduction": data.reduction, "sample_weight": data.given["weight"]}
    loss, *gradients, dl_dinput = fb.loss_and_gradients(
        x, *network, y, **options, input_gradient=True, num_threads=data.problem.threads
    )
    data.check("loss", loss, np.float64)
    data.check("weights", gradients[0], dtype)
    data.check("biases", gradients[1], dtype)
    check_shapes(gradients, network)
    data.expected["dl_dinput"], data.bounds["dl_dinput"] = data.expected["dl_dh"][0], data.bounds["dl_dh"][0]
    data.check("dl_dinput", dl_dinput, dtype)
    workspace = fb.Workspace(data.problem.layer_sizes, dtype, num_threads=data.problem.threads)
    out = [[np.full(array.shape, 7, dtype) for array in arrays] for arrays in network]
    again = workspace.loss_and_gradients(x, *network, y, **options, input_gradient=True, out=tuple(out))
    assert_same_bits([*again], [loss, *gradients, dl_dinput])
    assert all(given is returned for given, returned in zip(out, again[1:3], strict=True))
    packed, expected = fb.pack(*network).astype(dtype), fb.pack(*gradients)
    assert_same_bits([*workspace.loss_and_gradients(x, packed, None, y, **options)], [loss, expected])


def check_callables(data):
    """A pair of callables."""
    x, network, y, loss = data.given["x"], data.network, data.given["y"], data.problem.loss
    pair = (lambda o, y: reference.loss_value(o, y, loss), lambda o, y: reference.loss_derivative(o, y, loss))
    if data.reduction == "sum" and data.sample_weight is None:
        _, *gradients = fb.loss_and_gradients(x, *network, y, loss=pair)
        data.check("weights", gradients[0], data.target_dtype)
        data.check("biases", gradients[1], data.target_dtype)


def check_seeded(data):
    """vjp and predict."""
    x, network, seed = data.given["x"], data.network, data.given["seed"]
    gradients = fb.vjp(x, *network, seed, num_threads=data.problem.threads)
    data.check("weights", gradients[0], data.seed_dtype, is_seeded=True)
    data.check("biases", gradients[1], data.seed_dtype, is_seeded=True)
    workspace = fb.Workspace(data.problem.layer_sizes, data.seed_dtype, num_threads=data.problem.threads)
    packed = fb.pack(*network).astype(data.seed_dtype)
    assert_same_bits(workspace.vjp(x, packed, None, seed), fb.pack(*gradients))
    data.check("output", fb.predict(x, *network, num_threads=data.problem.threads), data.dtype)


def check_notebook(data):
    """The notebooks' two passes; the backward pass takes the lists in other layouts as well."""
    x, network, y = data.given["x"], data.network, data.given["y"]
    output, all_f, all_h = fb.compute_network_output(x, *network)
    assert output is all_f[-1]
    assert all_h[0] is x
    data.check("f", all_f, data.dtype)
    data.check("h", all_h[1:], data.dtype)
    if data.rng.random() < 0.5:
        all_f, all_h = [data.passed(f, f.dtype) for f in all_f], [x, *(data.passed(h, h.dtype) for h in all_h[1:])]
    *gradients, dl_dh, dl_df = fb.backward_pass(
        *network, all_f, all_h, None, loss=lambda *_: data.given["seed"], intermediates=True
    )
    found = {"weights": gradients[0], "biases": gradients[1], "dl_dh": dl_dh, "dl_df": dl_df}
    for name, arrays in found.items():
        data.check(name, arrays, data.seed_dtype, is_seeded=True)
    check_shapes(gradients, network)
    if data.reduction == "sum" and data.sample_weight is None:
        gradients = fb.backward_pass(*network, all_f, all_h, y, loss=data.problem.loss)
        data.check("weights", gradients[0], data.target_dtype)
        data.check("biases", gradients[1], data.target_dtype)


PER_SAMPLE = {
    "clipped_gradients": (3.0,),
    "per_sample_gradient_norms": (),
    "squared_gradient_sums": (),
    "per_sample_gradients": (),
}


def check_per_sample(data):
    """Clipped sums, norms, sums of squares and gradients of single samples, of whole numbers."""
    problem, is_sum = data.problem, data.problem.loss in SQUARES and data.reduction == "sum"
    if not (is_sum and data.unit == 1 and problem.special is None and data.is_exact(data.bounds)):
        return
    error = data.terms * np.finfo(problem.dtype).eps
    for name, more in PER_SAMPLE.items():
        got = getattr(fb, name)(data.given["x"], *data.network, data.given["y"], *more, loss=problem.loss)
        expected = getattr(reference, name)(data.x, data.weights, data.biases, data.y, *more, loss=problem.loss)
        limits = {"rtol": error, "atol": 3 * error if more else 0.0}
        for found, wanted in zip(got, expected, strict=True):
            pairs = zip(found, wanted, strict=True) if isinstance(found, list) else [(found, wanted)]
            for array, exact in pairs:
                np.testing.assert_allclose(np.ravel(array), np.ravel(exact), err_msg=name, **limits)


def check_shapes(gradients, network):
    """A gradient has its parameter's shape."""
    for arrays, parameters in zip(gradients, network, strict=True):
        assert [array.shape for array in arrays] == [parameter.shape for parameter in parameters]


def check_any_call(problem):
    """All passes over one problem; what is passed in stays as it is."""
    with scheduled(problem.schedule), np.errstate(all="ignore"):
        data = Data(problem)
        passed = [*data.network, [array for array in data.given.values() if array is not None]]
        before = copy.deepcopy(passed)
        for check in check_fused, check_callables, check_seeded, check_notebook, check_per_sample:
            check(data)
        assert_same_bits(passed, before)


@settings(max_examples=300)
@given(problems())
def test_any_call(problem):
    check_any_call(problem)


LONG = settings(derandomize=False, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.fuzz
@settings(LONG, max_examples=20_000)
@given(problems())
def test_any_call_for_long(problem):
    check_any_call(problem)


class Session(RuleBasedStateMachine):
    """A Workspace in a session: calls, calls that fail, parameters and batches edited in place, copies."""

    @initialize(
        layer_sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5).map(tuple),
        dtype=st.sampled_from([np.float32, np.float64]),
        threads=st.integers(1, 3),
        seed=st.integers(0, 2**32 - 1),
    )
    def begin(self, layer_sizes, dtype, threads, seed):
        self.rng, self.sizes, self.dtype = np.random.default_rng(seed), layer_sizes, np.dtype(dtype)
        self.workspace = fb.Workspace(layer_sizes, dtype, num_threads=threads)
        parameters = sum((a + 1) * b for a, b in itertools.pairwise(layer_sizes))
        self.vector = whole(self.rng, parameters, 0.3).astype(dtype)
        self.network = fb.unpack(self.vector, layer_sizes)
        self.returned, self.copies = [], []
        self.bring(5)

    @rule(samples=st.integers(0, 20) | st.sampled_from([100, 300, 700]))
    def bring(self, samples):
        """Another batch."""
        sizes = self.sizes[0], self.sizes[-1]
        self.x, self.y = (whole(self.rng, (size, samples)).astype(self.dtype) for size in sizes)

    @rule(in_batch=st.booleans(), where=st.integers(0, 2**32 - 1), value=st.integers(-2, 2))
    def edit(self, in_batch, where, value):
        """In place, as scripts do between calls."""
        array = self.x if in_batch and self.x.size else self.vector
        array.flat[where % array.size] = value

    @rule()
    def differentiate(self):
        loss, *gradients, dl_dinput = self.workspace.loss_and_gradients(
            self.x, *self.network, self.y, input_gradient=True
        )
        expected_loss, *expected, expected_dl_dinput = self.oracle(reference.loss_and_gradients, input_gradient=True)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        self.keep([*gradients[0], *gradients[1], dl_dinput], [*expected[0], *expected[1], expected_dl_dinput])

    @rule()
    def differentiate_vector(self):
        out = np.full_like(self.vector, 7)
        _, gradient = self.workspace.loss_and_gradients(self.x, self.vector, None, self.y, out=out)
        assert gradient is out
        self.keep([gradient], [fb.pack(*self.oracle(reference.loss_and_gradients)[1:])])

    @rule()
    def seed(self):
        self.keep([self.workspace.vjp(self.x, self.vector, None, self.y)], [fb.pack(*self.oracle(reference.vjp))])

    @rule()
    def predict(self):
        x, weights, biases, _ = self.wide()
        self.keep([self.workspace.predict(self.x, *self.network)], [reference.predict(x, weights, biases)])

    @rule()
    def call_with_a_wrong_shape(self):
        with pytest.raises(ValueError, match=r"y has shape .*; expected"):
            self.workspace.loss_and_gradients(self.x, *self.network, np.ones((self.sizes[-1] + 1, self.x.shape[1] + 2)))

    @rule()
    def call_with_a_wrong_type(self):
        with pytest.raises(TypeError, match="net_input has dtype complex"):
            self.workspace.predict(self.x.astype(complex), *self.network)

    @rule(error=st.sampled_from([ZeroDivisionError, KeyboardInterrupt, MemoryError]))
    def call_that_is_interrupted(self, error):
        """By what progress raises, which is called between slices."""

        def progress(_done, _total):
            raise error

        if self.x.shape[1]:
            with mock.patch.object(plan, "SLICE_FLOPS", 1), pytest.raises(error):
                self.workspace.loss_and_gradients(self.x, *self.network, self.y, progress=progress)

    @rule(is_pickled=st.booleans())
    def copy(self, is_pickled):
        before, self.workspace = (
            self.workspace,
            (pickle.loads(pickle.dumps(self.workspace)) if is_pickled else copy.deepcopy(self.workspace)),
        )
        assert repr(before) == repr(self.workspace)

    @invariant()
    def what_was_returned_stays(self):
        assert_same_bits(self.returned, self.copies)

    def wide(self):
        weights, biases = ([array.astype(np.float64) for array in arrays] for arrays in self.network)
        return self.x.astype(np.float64), weights, biases, self.y.astype(np.float64)

    def oracle(self, function, **options):
        return function(*self.wide(), **options)

    def keep(self, got, expected):
        """Compare, and look at it again after each step."""
        for array, wanted in zip(got, expected, strict=True):
            assert array.dtype == self.dtype
            np.testing.assert_allclose(array, wanted, rtol=0, atol=1e-6 * np.max(abs(wanted), initial=0))
        self.returned.extend(got)
        self.copies.extend(copy.deepcopy(got))


def test_a_session_with_a_workspace():
    run_state_machine_as_test(Session, settings=settings(max_examples=40, stateful_step_count=30))


@pytest.mark.fuzz
def test_a_session_with_a_workspace_for_long():
    run_state_machine_as_test(Session, settings=settings(LONG, max_examples=1000, stateful_step_count=50))
