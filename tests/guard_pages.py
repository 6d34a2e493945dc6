"""Run everything with all arrays at the edge of a page that may not be touched; a kernel that leaves them is killed.

Usage: python -m tests.guard_pages before|after SEED
"""

import ctypes
import itertools
import mmap
import random
import sys

import numpy as np

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import notebook, packing
from fastbackprop.arguments import addresses
from fastbackprop.arguments import batch as batches
from fastbackprop.engine import calls, engine, plan, pool
from tests.conftest import target_of

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """numpy, but for arrays that touch a forbidden page: the byte before the first, or behind the last, of theirs."""

    def __init__(self, side):
        self.side = side

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float, alignment=1):
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        size = int(np.prod(shape)) * dtype.itemsize
        pages = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, pages + 2 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in address, address + PAGE + pages:
            if LIBC.mprotect(guard, PAGE, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = PAGE if self.side == "before" else PAGE + (pages - size) // alignment * alignment
        return np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)

    def zeros(self, shape, dtype=float):
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def ascontiguousarray(self, values, dtype=None):
        """Guarded where it is a copy."""
        array = np.ascontiguousarray(values, dtype)
        return values if array is values else self.place(array)

    def place(self, values):
        """A copy of an array, with the same memory order."""
        copy = self.empty(values.T.shape if values.flags.f_contiguous else values.shape, values.dtype)
        copy = copy.T if values.flags.f_contiguous else copy
        copy[...] = values
        return copy


def everything(layer_sizes, samples, dtype, layout, guarded):
    """Every public call on one network; NaN where a result is not finite would go unseen, so the sums are looked at."""
    parameters_given = [[layout(array) for array in arrays] for arrays in network(layer_sizes, dtype)]
    net_input, y = (layout(array) for array in batch(layer_sizes, samples, dtype))
    place = guarded.place
    all_weights, all_biases = [[place(array) for array in arrays] for arrays in parameters_given]
    net_input, y, weight = place(net_input), place(y), place(np.ones(samples, dtype))
    options = {"sample_weight": weight, "input_gradient": True}
    for num_threads in 1, 2:
        fb.loss_and_gradients(net_input, all_weights, all_biases, y, num_threads=num_threads, **options)
        fb.vjp(net_input, all_weights, all_biases, y, num_threads=num_threads)
        fb.predict(net_input, all_weights, all_biases, num_threads=num_threads)
        given = net_input, all_weights, all_biases, y
        fb.clipped_gradients(*given, 1.0, sample_weight=weight, num_threads=num_threads)
        fb.squared_gradient_sums(*given, num_threads=num_threads)
        for per_layer in False, True:
            fb.per_sample_gradient_norms(*given, per_layer=per_layer, num_threads=num_threads)
    shapes = [[(samples, *array.shape) for array in arrays] for arrays in (all_weights, all_biases)]
    if samples * max(layer_sizes) < 10_000:
        out = tuple([[guarded.empty(shape, dtype) for shape in part] for part in shapes])
        fb.per_sample_gradients(*given, out=out)
    parameters = all_weights, all_biases
    out = tuple([place(array) for array in arrays] for arrays in parameters)
    fb.loss_and_gradients(net_input, *parameters, y, loss="half_least_squares", out=out, **options)
    fb.loss_and_gradients(net_input, *parameters, y, loss=(fb.least_squares_loss, fb.d_loss_d_output))
    if samples:
        fb.loss_and_gradients(net_input, *parameters, y, reduction="mean", **options)
    workspace, vector = fb.Workspace(layer_sizes, dtype), place(fb.pack(*parameters))
    workspace.loss_and_gradients(net_input, vector, None, y, out=place(vector), **options)
    workspace.vjp(net_input, vector, None, y, input_gradient=True)
    workspace.predict(net_input, vector, None)
    workspace.vjp(net_input, *fb.unpack(vector, layer_sizes), y)
    if 0 < samples < 10:
        fb.check_gradients(net_input, *parameters, y, every_entry=False)
    targets = {loss: [place(layout(target_of(loss, y)))] for loss in ("softmax_cross_entropy", "binary_cross_entropy")}
    targets["softmax_cross_entropy"] += [place(np.arange(samples) % y.shape[0])] * (y.shape[0] > 1)
    losses = [(loss, target) for loss, given in targets.items() for target in given]
    for loss, target in losses:
        fb.loss_and_gradients(net_input, all_weights, all_biases, target, loss=loss, **options)
    net_output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
    all_f, all_h = [place(layout(f)) for f in all_f], [place(layout(h)) for h in all_h]
    fb.backward_pass(*parameters, all_f, all_h, y, loss=fb.d_loss_d_output)
    for loss, target in losses:
        fb.backward_pass(all_weights, all_biases, all_f, all_h, target, loss=loss)
    for intermediates in False, True:
        results = fb.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=intermediates)
    assert all(np.isfinite(array).all() for arrays in results for array in arrays)
    assert np.isfinite(net_output).all()


def main(side, seed):
    """Networks of every width from 1 to 40 and every number of hidden layers from 0 to 60, batches of every size from 0
    to 70, and a few wide networks."""
    guarded = Guarded(side)
    for module in addresses, batches, calls, engine, packing:
        module.np = guarded
    engine.empty = guarded.empty
    notebook.empty_columns = lambda sizes, samples, dtype: [guarded.empty((units, samples), dtype) for units in sizes]
    engine.aligned = lambda size, dtype: guarded.empty(size, dtype, alignment=64)
    # Two threads share every call, if there are two processors.
    plan.CHUNK_FLOPS = 1
    plan.SHARED_FLOPS = 1
    engine.pauses = lambda _flops: 2**22
    layouts = [np.ascontiguousarray, np.asfortranarray]
    rng = random.Random(seed)
    cases = list(itertools.product(range(1, 41), ["float32", "float64"], layouts))
    sizes = list(range(71)) * 3
    rng.shuffle(sizes)
    for number, (width, dtype, layout) in enumerate(cases):
        pool._free.clear()
        inner = [width] * rng.randint(1, 3) if number % 2 else [rng.randint(1, 40), width]
        layer_sizes = (rng.randint(1, 40), *inner, rng.randint(1, 12))
        everything(layer_sizes, sizes[number], dtype, layout, guarded)
    for hidden in range(61):
        pool._free.clear()
        layer_sizes = (rng.randint(1, 40), *[rng.choice((3, 6, 10, 30))] * hidden, rng.randint(1, 5))
        dtype, layout = ("float32", "float64")[hidden % 2], layouts[hidden // 2 % 2]
        everything(layer_sizes, rng.choice((rng.randint(1, 8), rng.randint(9, 300))), dtype, layout, guarded)
    shapes = (17, 64, 33, 3), (17, 130, 33, 3), (17, 48, 33, 3), (257, 31, 3), (300, 110, 30, 3), (1024, 400, 3)
    shapes += ((9, 40, 270, 3),)  # sums of derivatives in two parts
    for layer_sizes, samples in zip(shapes, (513, 70, 1030, 70, 64, 70, 150), strict=True):
        for dtype in "float32", "float64":
            everything(layer_sizes, samples, dtype, np.ascontiguousarray, guarded)
    plan.PRIVATE_BYTES = 100
    for layer_sizes, samples in (
        ((37, 18, 40, 3), 300),
        ((130, 5, 1), 1),
        ((5, 131, 2), 129),
        ((40, 40), 70),
        ((2000, 130), 300),
    ):
        for dtype in "float32", "float64":
            pool._free.clear()
            everything(layer_sizes, samples, dtype, np.asfortranarray, guarded)
    print("nothing was touched")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
