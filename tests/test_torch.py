"""fastbackprop.torch beside the plain modules of PyTorch, which share no code with it."""

import copy
import io
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="see the extra `torch`")

from torch import nn
from torch.nn import functional

from fastbackprop.torch import Accelerated, accelerate

ROOT = Path(__file__).parents[1]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
LOSSES = {
    "least_squares": lambda output, y: ((output - y) ** 2).sum(),
    "half_least_squares": lambda output, y: ((output - y) ** 2).sum() / 2,
    "softmax_cross_entropy": lambda output, y: -(y * output.log_softmax(-1)).sum(),
    "binary_cross_entropy": lambda output, y: (
        -(y * functional.logsigmoid(output) + (1 - y) * functional.logsigmoid(-output)).sum()
    ),
}


INSTEAD = "call the plain module, whose parameters are the same$"


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads of OpenMP take seconds where another process keeps a processor busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(*sizes, dtype=torch.float64, bias=True, seed=0):
    """A plain module of layers of these sizes."""
    torch.manual_seed(seed)
    layers = []
    for units_in, units_out in itertools.pairwise(sizes):
        layers += [nn.Linear(units_in, units_out, dtype=dtype, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def samples(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_close(got, expected, tolerance=None):
    """Compare tensors, or lists of them, in dtype, shape and relative norm."""
    if isinstance(expected, (list, tuple)):
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e, tolerance)
        return
    if expected is None:
        assert got is None
        return
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if tolerance is None:
        tolerance = TOLERANCE[expected.dtype]
    assert torch.linalg.vector_norm(got - expected) <= tolerance * torch.linalg.vector_norm(expected) + 1e-30


def gradients(module, total):
    """The gradients of all parameters, which are cleared."""
    module.zero_grad()
    total.backward()
    found = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    return found


def target_of(loss, output):
    y = samples(*output.shape, dtype=output.dtype, seed=2)
    return {"softmax_cross_entropy": y.softmax(-1), "binary_cross_entropy": y.sigmoid()}.get(loss, y)


@pytest.mark.parametrize("sizes", [(3, 1), (1, 6, 1), (5, 8, 7, 2), (4, 6, 6, 6, 6, 6, 3), (20, 130, 10)])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (300,), (2, 3, 4)])
def test_output_and_gradients(sizes, shape):
    module = network(*sizes)
    x, seed = samples(*shape, sizes[0]).requires_grad_(), samples(*shape, sizes[-1], seed=2)
    found = []
    for call in accelerate(module), module:
        output = call(x)
        assert output.is_contiguous()
        found.append([output, *gradients(module, (output * seed).sum()), x.grad])
        x.grad = None
    assert_close(*found)


@pytest.mark.parametrize("sizes", [(3, 1), (2, 3, 2), (4, 5, 3, 2)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("loss", [None, *LOSSES])
def test_gradcheck(sizes, shape, loss):
    accelerated = accelerate(network(*sizes))
    x = samples(*shape, sizes[0]).requires_grad_()
    y = target_of(loss, accelerated(x).detach())

    def function(x, *_):
        return accelerated(x) if loss is None else accelerated.loss(x, y, loss, reduction="mean")

    assert torch.autograd.gradcheck(function, (x, *accelerated.parameters()))


def test_gradcheck_notices_a_wrong_gradient(monkeypatch):
    accelerated = accelerate(network(3, 4, 1))
    monkeypatch.setattr(
        "fastbackprop.torch.vjp", lambda x, weights, biases, *_, **__: (weights, biases, np.ones(x.shape))
    )
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda x, *_: accelerated(x), (samples(5, 3), *accelerated.parameters()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(), (9,), (200,), (3, 1, 5)])
def test_fused_losses(dtype, loss, reduction, shape):
    module = network(4, 16, 9, 3, dtype=dtype)
    accelerated = accelerate(module)
    x = samples(*shape, 4, dtype=dtype).requires_grad_()
    y = target_of(loss, module(x).detach())
    expected = LOSSES[loss](module(x), y) / (x[..., 0].numel() if reduction == "mean" else 1)
    expected_all = [expected.detach(), *gradients(module, expected), x.grad]
    x.grad = None
    got = accelerated.loss(x, y, loss, reduction=reduction)
    assert_close([got.detach(), *gradients(module, got), x.grad], expected_all)
    with torch.no_grad():
        assert_close(accelerated.loss(x, y, loss, reduction), expected_all[0])


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("integers", [torch.int64, torch.int32])
def test_class_numbers(shape, integers):
    module = network(4, 6, 3)
    accelerated, x = accelerate(module), samples(*shape, 4)
    classes = torch.randint(3, shape, generator=torch.Generator().manual_seed(0)).to(integers)
    expected = functional.cross_entropy(module(x).reshape(-1, 3), classes.reshape(-1).long())
    one_hot = functional.one_hot(classes.long(), 3)
    for y in classes, one_hot, one_hot.double():
        got = accelerated.loss(x, y, "softmax_cross_entropy")
        assert_close(got, expected)
        assert_close(gradients(module, got), torch.autograd.grad(expected, module.parameters(), retain_graph=True))
        with torch.no_grad():
            assert_close(accelerated.loss(x, y, "softmax_cross_entropy"), expected.detach())


def test_one_output_takes_a_target_without_its_dimension():
    accelerated, x, y = accelerate(network(4, 6, 1)), samples(5, 4), samples(5)
    assert accelerated.loss(x, y, "least_squares") == accelerated.loss(x, y[:, None], "least_squares")


@pytest.mark.parametrize("factor", [1.0, 0.25, -3.0, 0.0])
def test_a_fused_loss_in_a_larger_one(factor):
    module, x, y = network(4, 6, 2), samples(5, 4).requires_grad_(), samples(5, 2)
    accelerated, found = accelerate(module), []
    for part in accelerated.loss(x, y, "least_squares", "sum"), LOSSES["least_squares"](module(x), y):
        penalty = sum((parameter**2).sum() for parameter in module.parameters())
        found.append([*gradients(module, factor * part + penalty), x.grad])
        x.grad = None
    assert_close(*found)


def test_gradients_are_added_up():
    """Also with retain_graph, where a parameter's grad is what was handed out before."""
    module, x, y = network(4, 6, 2), samples(5, 4), samples(5, 2)
    accelerated = accelerate(module)
    for total in accelerated.loss(x, y, "least_squares"), accelerated(x).square().sum():
        expected = [3 * gradient for gradient in torch.autograd.grad(total, module.parameters(), retain_graph=True)]
        for last in False, False, True:
            total.backward(retain_graph=not last)
        assert_close([parameter.grad for parameter in module.parameters()], expected)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            total.backward()
        module.zero_grad()


@pytest.mark.parametrize(
    "change",
    [lambda x: x[::2], lambda x: x.t().contiguous().t(), lambda x: x[:1].expand(9, 4), lambda x: x[:, [3, 2, 1, 0]]],
)
def test_inputs_that_are_not_contiguous(change):
    module = network(4, 6, 2)
    accelerated, x = accelerate(module), change(samples(9, 4)).requires_grad_()
    y = change(samples(9, 4, seed=2))[:, :2]
    found = [torch.autograd.grad(call(x), [x, *module.parameters()], y) for call in (accelerated, module)]
    assert_close(*found)
    got = accelerated.loss(x, y, "least_squares")
    assert_close(got, LOSSES["least_squares"](module(x), y) / len(x))


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_empty_batches(shape):
    module = network(4, 6, 2)
    accelerated, x = accelerate(module), samples(*shape, 4).requires_grad_()
    output = accelerated(x)
    assert output.shape == (*shape, 2)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(module, output.sum()))
    assert x.grad.shape == x.shape
    total = accelerated.loss(x, samples(*shape, 2), "least_squares", "sum")
    assert total == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(module, total))
    assert accelerated.loss(x, samples(*shape, 2), "least_squares").isnan()  # as torch.mean has it


def test_without_gradients():
    module, x = network(4, 6, 2), samples(5, 4)
    accelerated = accelerate(module)
    for context in torch.no_grad, torch.inference_mode:
        with context():
            output = accelerated(x)
            assert not output.requires_grad
            assert_close(output, module(x))
    module.requires_grad_(False)
    assert not accelerated(x).requires_grad
    total = accelerated.loss(x, samples(5, 2), "least_squares")
    assert not total.requires_grad
    assert_close(total, LOSSES["least_squares"](module(x), samples(5, 2)) / 5)


def test_gradients_of_wide_networks_are_those_of_pytorch_unless_fused():
    module, x, y = network(4, 200, 200, 2), samples(5, 4), samples(5, 2)
    accelerated = accelerate(module)
    assert not runs_on_kernels(accelerated, x)
    expected = gradients(module, LOSSES["least_squares"](module(x), y))
    fused = accelerated.loss(x, y, "least_squares", "sum")
    assert type(fused.grad_fn).__name__ == "_LossBackward"
    for total in fused, LOSSES["least_squares"](accelerated(x), y):
        assert_close(gradients(module, total), expected)
    with torch.no_grad():
        assert_close(accelerated(x), module(x))


def test_frozen_parameters_get_no_gradient():
    module, x, y = network(4, 6, 2), samples(5, 4), samples(5, 2)
    accelerated = accelerate(module)
    expected = gradients(module, LOSSES["least_squares"](module(x), y))
    module[0].requires_grad_(False)
    module[2].bias.requires_grad_(False)
    for total in accelerated.loss(x, y, "least_squares", "sum"), LOSSES["least_squares"](accelerated(x), y):
        assert_close(gradients(module, total), [None, None, expected[2], None])
    module.requires_grad_(False)
    x.requires_grad_()
    for total in accelerated.loss(x, y, "least_squares"), LOSSES["least_squares"](accelerated(x), y) / 5:
        (got,) = torch.autograd.grad(total, x)
        assert_close(got, torch.autograd.grad(LOSSES["least_squares"](module(x), y) / 5, x)[0])


def test_layers_without_bias():
    module, x = network(4, 6, 2, bias=False), samples(5, 4)
    accelerated = accelerate(module)
    assert_close(accelerated(x), module(x))
    assert_close(gradients(module, accelerated(x).sum()), gradients(module, module(x).sum()))


def test_a_layer_used_twice():
    shared, relu = nn.Linear(4, 4, dtype=torch.float64), nn.ReLU()
    module, x = nn.Sequential(shared, relu, shared, relu, nn.Linear(4, 1, dtype=torch.float64)), samples(5, 4)
    accelerated = accelerate(module)
    assert len(accelerated) == 5
    assert_close(gradients(module, accelerated(x).sum()), gradients(module, module(x).sum()))


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 6)])
def test_nested_layers_that_do_nothing(shape):
    layers = network(6, 8, 7, 2)
    module = nn.Sequential(
        nn.Flatten(),
        nn.Identity(),
        nn.Sequential(layers[0], nn.Dropout(), nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), layers[2])),
        nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Dropout(0.5)),
        layers[4],
        nn.Identity(),
    ).eval()
    accelerated, x = accelerate(module), samples(*shape).requires_grad_()
    assert [*accelerated.state_dict()] == [*module.state_dict()]
    found = []
    for call in accelerated, module:
        found.append([call(x), *gradients(module, call(x).sum()), x.grad])
        x.grad = None
    assert_close(*found)


def test_a_flatten_between_layers_is_no_identity_for_three_dimensions():
    module = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        accelerate(module)(torch.ones(5, 3, 4))
    module = nn.Sequential(nn.Linear(4, 2), nn.Flatten())
    assert accelerate(module)(torch.ones(5, 3, 4)).shape == (5, 6)


def plain(module):
    """A copy that PyTorch runs."""
    return copy.deepcopy(nn.Sequential(*module))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", None])
@pytest.mark.parametrize(
    ("optimiser", "options"),
    [
        (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.LBFGS, {"max_iter": 2, "line_search_fn": "strong_wolfe"}),
    ],
)
def test_training_gives_the_losses_of_the_plain_module(loss, optimiser, options):
    module = network(8, 16, 16, 3)
    accelerated, reference = accelerate(module), plain(module)
    x, y = samples(120, 8), torch.randint(3, (120,), generator=torch.Generator().manual_seed(0))
    losses = {"accelerated": [], "reference": []}
    for name, trained in ("accelerated", accelerated), ("reference", reference):
        steps = optimiser(trained.parameters(), **options)

        def closure(steps=steps, trained=trained, name=name):
            steps.zero_grad()
            if loss is not None and trained is accelerated:
                total = accelerated.loss(x, y, loss)
            else:
                total = functional.cross_entropy(trained(x), y)
            total.backward()
            losses[name].append(total.item())
            return total

        for _ in range(20):
            steps.step(closure)
    np.testing.assert_allclose(losses["accelerated"], losses["reference"], rtol=1e-9)
    assert losses["reference"][-1] < 0.9 * losses["reference"][0]


def test_state_dicts_are_those_of_the_plain_module():
    module, other, x = network(4, 6, 2), network(4, 6, 2, seed=1), samples(5, 4)
    accelerated = accelerate(module)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for assign in False, True:
        accelerated.load_state_dict(state, assign=assign)
        assert_close(accelerated(x), other(x))
        assert_close(module(x), other(x))
        nn.init.normal_(state["0.weight"])
        other.load_state_dict(state)
    file = io.BytesIO()
    torch.save(accelerated.state_dict(), file)
    file.seek(0)
    plain(module).load_state_dict(torch.load(file))


def test_copies_have_parameters_of_their_own():
    module, x = network(4, 6, 2), samples(5, 4)
    accelerated = accelerate(module)
    before = accelerated(x)
    file = io.BytesIO()
    torch.save(accelerated, file)
    file.seek(0)
    for other in copy.deepcopy(accelerated), torch.load(file, weights_only=False):
        assert type(other) is Accelerated
        with torch.no_grad():
            other[0].weight.mul_(2)
        assert_close(accelerated(x), before)
        assert_close(other(x), plain(other)(x))
        assert not torch.equal(other(x), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.data.mul_(2),
        lambda m: setattr(m[0].weight, "data", samples(6, 4, seed=5)),
        lambda m: setattr(m[2].weight, "data", m[2].weight.data.t()),
        lambda m: setattr(m[0], "weight", nn.Parameter(samples(6, 4, seed=5))),
        lambda m: setattr(m[0], "bias", None),
        lambda m: m.__setitem__(2, nn.Linear(6, 6, dtype=torch.float64)),
        lambda m: m.append(nn.ReLU()).append(nn.Linear(6, 1, dtype=torch.float64)),
        lambda m: m.float(),
        lambda m: m.half().float(),
    ],
    ids=["in place", "data", "transposed data", "parameter", "bias", "layer", "layers", "dtype", "dtypes"],
)
def test_what_is_changed_later_counts(change):
    accelerated = accelerate(network(4, 6, 6))
    x = samples(5, 4)
    before = accelerated(x)
    change(accelerated)
    x = x.to(accelerated[0].weight.dtype)
    assert_close(accelerated(x), plain(accelerated)(x))
    assert accelerated(x).shape != before.shape or not torch.equal(accelerated(x).double(), before)


def test_rows_of_a_weight_that_are_cut_off():
    """As pruning does: the address is the same."""
    accelerated, x = accelerate(network(4, 6, 6)), samples(5, 4)
    accelerated(x)
    for layer in accelerated[2:]:
        layer.weight.data, layer.bias.data = layer.weight.data[:3], layer.bias.data[:3]
    assert_close(accelerated(x), plain(accelerated)(x))


def runs_on_kernels(accelerated, x):
    return "_Output" in type(accelerated(x).grad_fn).__name__


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_run_the_module_as_it_is(dtype):
    module = network(4, 6, 2)
    accelerated = accelerate(module)
    assert runs_on_kernels(accelerated, samples(5, 4))
    module.to(dtype)
    x, y = samples(5, 4).to(dtype), samples(5, 2).to(dtype)
    assert not runs_on_kernels(accelerated, x)
    assert torch.equal(accelerated(x), module(x))
    got, expected = accelerated.loss(x, y, "least_squares"), LOSSES["least_squares"](module(x), y) / 5
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(module, got), gradients(module, expected))


def test_other_devices_run_the_module_as_it_is():
    accelerated = accelerate(network(4, 6, 2).to("meta"))
    x, y = torch.ones(5, 4, dtype=torch.float64, device="meta"), torch.ones(5, 2, dtype=torch.float64, device="meta")
    assert accelerated(x).device.type == "meta"
    assert accelerated(x).shape == (5, 2)
    for loss in LOSSES:
        total = accelerated.loss(x, y, loss)
        assert all(gradient.is_meta for gradient in gradients(accelerated, total))


def test_autocast_runs_the_module_as_it_is():
    module = network(4, 6, 2, dtype=torch.float32)
    accelerated, x = accelerate(module), samples(5, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert accelerated(x).dtype == torch.bfloat16
        assert torch.equal(accelerated(x), module(x))
    assert runs_on_kernels(accelerated, x)


def test_traced_modules_are_not_constants():
    accelerated, x = accelerate(network(4, 6, 2)), samples(5, 4)
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        traced = torch.jit.trace(accelerated, x)
    assert_close(traced(2 * x), accelerated(2 * x))
    exported = torch.export.export(accelerated, (x,), strict=False).module()
    assert_close(exported(2 * x), accelerated(2 * x))


def test_errors_of_pytorch_stay_what_they_are():
    accelerated = accelerate(network(4, 6, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        accelerated(samples(5, 3))
    with pytest.raises(RuntimeError, match="same dtype"):
        accelerated(samples(5, 4, dtype=torch.float32))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("edited", ["parameter", "x"])
def test_tensors_edited_between_forward_and_backward(fused, edited):
    accelerated, x = accelerate(network(4, 6, 2)), samples(5, 4)
    total = accelerated.loss(x, samples(5, 2), "least_squares") if fused else accelerated(x).sum()
    with torch.no_grad():
        (x if edited == "x" else accelerated[0].weight).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_hooks_of_inner_layers_are_refused():
    x = samples(5, 4)
    for register in "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook":
        module = nn.Sequential(network(4, 6), nn.ReLU(), network(6, 2))
        accelerated = accelerate(module)
        accelerated(x)
        for layer, name in (module[0][0], "layer 0.0"), (module[2], "layer 2"):
            handle = getattr(layer, register)(lambda *_: None)
            message = f"^{name} has hooks, which the kernels would not call; .*{INSTEAD}"
            with pytest.raises(RuntimeError, match=message):
                accelerated(x)
            with pytest.raises(RuntimeError, match=message):
                accelerate(module)
            handle.remove()
        accelerated(x)
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"^module has hooks"):
        accelerate(module)


def test_hooks_of_the_module_itself_and_of_parameters_are_called():
    accelerated, x, called = accelerate(network(4, 6, 2)), samples(5, 4), []
    accelerated.register_forward_hook(lambda *_: called.append("forward"))
    accelerated.register_full_backward_hook(lambda *_: called.append("backward"))
    accelerated[0].weight.register_hook(lambda gradient: called.append(gradient.shape))
    accelerated(x.requires_grad_()).sum().backward()
    assert called[0] == "forward"
    assert set(called[1:]) == {"backward", (6, 4)}


def test_hooks_of_all_modules_are_refused():
    accelerated = accelerate(network(4, 6, 2))
    accelerated(samples(5, 4))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(RuntimeError, match="every module has hooks, which the kernels would not call"):
            accelerated(samples(5, 4))
    finally:
        handle.remove()
    accelerated(samples(5, 4))


def test_second_derivatives_are_refused():
    accelerated, x = accelerate(network(4, 6, 2)), samples(5, 4).requires_grad_()
    for total in accelerated(x).sum(), accelerated.loss(x, samples(5, 2), "least_squares"):
        with pytest.raises(RuntimeError, match=f"expected no create_graph, .*{INSTEAD}"):
            torch.autograd.grad(total, x, create_graph=True)


def test_transforms_are_refused():
    accelerated, x, y = accelerate(network(4, 6, 2)), samples(5, 4), samples(5, 2)
    parameters = dict(accelerated.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(accelerated, parameters, (x, y))

    assert_close(loss(parameters), accelerated.loss(x, y, "least_squares"))
    for call in (
        lambda: torch.func.grad(loss)(parameters),
        lambda: torch.func.vmap(accelerated)(x),
        lambda: torch.func.jacrev(accelerated)(x),
        lambda: torch.func.jvp(accelerated, (x,), (x,)),
        lambda: torch.autograd.functional.jacobian(accelerated, x, vectorize=True),
    ):
        with pytest.raises(RuntimeError, match=f"torch.func transform.*{INSTEAD}"):
            call()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=INSTEAD):
        accelerated(torch.autograd.forward_ad.make_dual(x, x))
    accelerated(x)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (nn.Linear(2, 2), TypeError, "module is a Linear; expected a torch.nn.Sequential"),
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), TypeError, "layer 1 is a Tanh; expected Linear, "),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), ValueError, r"layer 1.0 is a Linear after a "),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), ValueError, "layer 0 is a ReLU before the first Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ValueError, "the last layer is not a Linear; expected one"),
        (nn.Sequential(), ValueError, "the last layer is not a Linear; expected one"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
            RuntimeError,
            "layer 1 is a Dropout in training mode; expected ",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)), ValueError, r"layer 1 is a Flatten\(start_dim=0, end_dim=-1\)"),
        (
            nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(2, 1)),
            ValueError,
            r"Linear\(in_features=2, .*\) comes after Linear\(.*out_features=3, .*\); expected in_features=3",
        ),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
            TypeError,
            "layer 0 is a ParametrizedLinear; expected ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_relu_network_is_refused(module, error, message):
    with pytest.raises(error, match=f"^{message}"):
        accelerate(module)


def test_layers_that_are_no_relu_network_later_are_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    accelerated = accelerate(module)
    accelerated.train()
    with pytest.raises(RuntimeError, match=f"layer 1 is a Dropout in training mode; .*{INSTEAD}"):
        accelerated(torch.ones(1, 2))
    module[1].p = 0.0
    accelerated(torch.ones(1, 2))
    nn.utils.parametrizations.weight_norm(module[0])
    with pytest.raises(TypeError, match="layer 0 is a ParametrizedLinear; expected"):
        accelerated(torch.ones(1, 2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("y", "loss", "reduction", "error", "message"),
    [
        (samples(5, 2), "mse", "sum", ValueError, "loss is 'mse'; expected one of least_squares, "),
        (samples(5, 2), "least_squares", "none", ValueError, "reduction is 'none'; expected 'mean' or 'sum'"),
        (samples(5, 2).requires_grad_(), "least_squares", "sum", ValueError, "y requires grad; expected a constant"),
        (samples(5, 2).float(), "least_squares", "sum", TypeError, "y has dtype torch.float32; expected torch.float64"),
        (samples(2, 5), "least_squares", "sum", ValueError, r"y has shape \(2, 5\) .*; expected \(5, 2\), that of the"),
        (samples(5), "least_squares", "sum", ValueError, r"y has shape \(5,\) .*; expected \(5, 2\), that of the"),
        (samples(5), "softmax_cross_entropy", "sum", ValueError, r"y has .*, or class numbers \(5,\) of an integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_of_a_loss(device, y, loss, reduction, error, message):
    accelerated, x = accelerate(network(4, 6, 2).to(device)), samples(5, 4).to(device)
    with pytest.raises(error, match=f"^{message}"):
        accelerated.loss(x, y.detach().to(device).requires_grad_(y.requires_grad), loss, reduction)


def test_wrong_class_numbers():
    accelerated, x = accelerate(network(4, 6, 2)), samples(2, 4)
    with pytest.raises(ValueError, match=r"y\[1\] is 2; expected class numbers in 0 .. 1"):
        accelerated.loss(x, torch.tensor([0, 2]), "softmax_cross_entropy")


def test_threads_of_pytorch_are_the_threads_of_the_kernels(monkeypatch):
    seen = []
    original = sys.modules["fastbackprop.torch"].predict
    monkeypatch.setattr(
        "fastbackprop.torch.predict", lambda *a, **options: seen.append(options) or original(*a, **options)
    )
    accelerated = accelerate(network(4, 6, 2))
    for threads in 1, 2:
        torch.set_num_threads(threads)
        accelerated(samples(5, 4))
    assert seen == [{"num_threads": 1}, {"num_threads": 2}]


def run(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_does_not_import_pytorch():
    assert run("import sys, fastbackprop; print('torch' in sys.modules)") == "False"
    assert run("import sys, fastbackprop.torch; print('torch._dynamo' in sys.modules)") == "False"


def test_the_error_without_pytorch():
    code = """
import sys
sys.modules["torch"] = None
try:
    import fastbackprop.torch
except ImportError as error:
    print(error)
"""
    assert run(code) == "fastbackprop.torch needs PyTorch: pip install 'fastbackprop[torch]'"


COMPILED = """
import torch
from torch import nn
from fastbackprop.torch import accelerate
module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
accelerated, x, y = accelerate(module), torch.ones(5, 4), torch.zeros(5, 2)
step = torch.compile(lambda x: (2 * accelerated(x + 1)).square().mean() + accelerated.loss(x, y, "least_squares"))
expected = (2 * module(x + 1)).square().mean() + (module(x) ** 2).sum() / 5
for _ in range(3):
    torch.testing.assert_close(step(x), expected)
    got = torch.autograd.grad(step(x), module.parameters())
    torch.testing.assert_close(got, torch.autograd.grad(expected, module.parameters(), retain_graph=True))
print("_Output" in type(torch.compile(accelerated)(x).grad_fn).__name__)
"""


def test_compiled_code_around_it():
    assert run(COMPILED) == "True"


DISTRIBUTED = """
import os
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from fastbackprop.torch import accelerate


def work(rank, processes, file):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x, y = torch.randn(12, 4).double(), torch.randn(12, 2).double()
    rows = slice(12 // processes * rank, 12 // processes * (rank + 1))
    trained = DistributedDataParallel(accelerate(module))
    steps = torch.optim.SGD(trained.parameters(), lr=0.1)
    for step in range(6):
        steps.zero_grad()
        if step % 2:
            trained(x[rows], y[rows], "least_squares").backward()
        else:
            (trained(x[rows]) - y[rows]).square().sum(1).mean().backward()
        steps.step()
    if rank == 0:
        print(*(value.hex() for value in nn.utils.parameters_to_vector(module.parameters()).tolist()), flush=True)
    distributed.destroy_process_group()


work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
# Gloo's threads outlive destroy_process_group, with the plain module too. One that drops a tensor while the interpreter
# shuts down ends the process: "terminate called without an active exception".
os._exit(0)
"""


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
def test_two_processes_give_the_same_as_one(tmp_path):
    one = run(DISTRIBUTED, "0", "1", str(tmp_path / "one"))
    file = str(tmp_path / "two")
    other = subprocess.Popen([sys.executable, "-c", DISTRIBUTED, "1", "2", file], cwd=ROOT)
    try:
        two = run(DISTRIBUTED, "0", "2", file)
        assert other.wait(60) == 0
    finally:
        other.kill()
    found = [np.array([float.fromhex(word) for word in text.split()]) for text in (one, two)]
    np.testing.assert_allclose(*found, rtol=1e-12)
    assert len(found[0]) == 44
