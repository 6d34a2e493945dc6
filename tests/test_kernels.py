"""Each kernel against one NumPy expression, over all heights and widths of its register tile."""

import inspect
import math
import re

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from fastbackprop.engine import limits
from fastbackprop.kernels import layers, rows, samples, simd

CACHE_LINE = 64
SAMPLES = 128
kernel = numba.njit(nogil=True, error_model="numpy")


@kernel
def run_forward_layer(f, weights, biases, h, samples, has_relu):
    layers.forward_layer(
        simd.pointer(f),
        f.strides[0],
        simd.pointer(weights),
        simd.pointer(biases),
        simd.pointer(h),
        h.strides[0],
        weights.shape[0],
        weights.shape[1],
        samples,
        has_relu,
    )


@kernel
def run_backward_layer(dl_dh, h, weights, dl_df, samples, masked, most_terms):
    layers.backward_layer(
        simd.pointer(dl_dh),
        dl_dh.strides[0],
        simd.pointer(h),
        h.strides[0],
        simd.pointer(weights),
        simd.pointer(dl_df),
        dl_df.strides[0],
        weights.shape[0],
        weights.shape[1],
        samples,
        masked,
        most_terms,
    )


@kernel
def run_dot_gradient(dl_dweights, dl_dbiases, dl_df, h, ones, first, samples):
    layers.dot_gradient(
        simd.pointer(dl_dweights),
        dl_dweights.strides[0],
        simd.pointer(dl_dbiases),
        simd.pointer(dl_df),
        dl_df.strides[0],
        simd.pointer(h),
        h.strides[0],
        simd.pointer(ones),
        dl_dweights.shape[0],
        h.shape[0],
        first,
        samples,
    )


@kernel
def run_weight_gradient(dl_dweights, dl_df, transposed, h, units_in, samples, count, added):
    stride = transposed.strides[0]
    layers.transpose(simd.pointer(transposed), stride, simd.pointer(h), h.strides[0], units_in, samples)
    layers.weight_gradient(
        simd.pointer(dl_dweights),
        dl_dweights.strides[0],
        simd.pointer(dl_df),
        dl_df.strides[0],
        simd.pointer(transposed),
        stride,
        dl_dweights.shape[0],
        units_in,
        count,
        added,
    )


@kernel
def run_copy_rows(target, source, count):
    rows.copy_rows(
        simd.pointer(target),
        target.strides[0],
        simd.pointer(source),
        source.strides[0],
        source.strides[1],
        target.shape[0],
        count,
    )


@kernel
def run_clear_tail(tile, count, samples):
    rows.clear_tail(simd.pointer(tile), tile.strides[0], tile.shape[0], count, samples)


def values(rows, columns, dtype, seed):
    """Standard normal numbers, contiguous."""
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)


def tile(rows, dtype, seed=0, count=SAMPLES):
    """Rows of a tile: the leading dimension is one cache line more than the samples."""
    return values(rows, count + CACHE_LINE // dtype.itemsize, dtype, seed)


def tolerance(dtype):
    return {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 5e-5, "atol": 5e-5}


@pytest.mark.parametrize("depth", [1, 9, 512, 513, 1100])
@pytest.mark.parametrize("units", [*range(1, 15), 64, 65])
def test_forward_layer(units, depth, dtype):
    weights, biases, h = values(units, depth, dtype, 1), tile(units, dtype, 2)[:, 0].copy(), tile(depth, dtype, 3)
    weights /= np.sqrt(dtype.type(depth))
    for has_relu in 0, 1:
        f = tile(units + 1, dtype, 4)
        f[:, SAMPLES:] = f[units] = 7
        run_forward_layer(f[:units], weights, biases, h, SAMPLES, has_relu)
        expected = weights @ h[:, :SAMPLES] + biases[:, None]
        expected = np.maximum(expected, 0) if has_relu else expected
        np.testing.assert_allclose(f[:units, :SAMPLES], expected, **tolerance(dtype))
        assert (f[:, SAMPLES:] == 7).all()
        assert (f[units] == 7).all()


def test_nan_and_infinities_pass_a_deep_layer(dtype):
    depth = 2 * limits.DEPTH
    h = np.zeros((depth, SAMPLES + 16), dtype)
    h[depth - 1, 0], h[0, 1], h[0, 2] = np.nan, np.nan, -np.inf
    f = np.full((1, SAMPLES + 16), 7, dtype)
    run_forward_layer(f, np.ones((1, depth), dtype), np.zeros(1, dtype), h, SAMPLES, 1)
    np.testing.assert_array_equal(f[0, :4], [np.nan, np.nan, 0, 0])


@pytest.mark.parametrize("depth", [9, 513, 1025])
@pytest.mark.parametrize("units", [*range(1, 15), 64, 65])
def test_backward_layer(units, depth, dtype):
    weights, dl_df = values(depth, units, dtype, 1) / np.sqrt(dtype.type(depth)), tile(depth, dtype, 2)
    for masked in 0, 1:
        h = tile(units, dtype, 3)
        mask = h[:, :SAMPLES] > 0 if masked else 1
        expected = (weights.T @ dl_df[:, :SAMPLES]) * mask
        # The second overwrites what the mask is taken from.
        for dl_dh, most_terms in (np.full_like(h, np.nan), 256), (h, depth):
            run_backward_layer(dl_dh, h, weights, dl_df, SAMPLES, masked, most_terms)
            np.testing.assert_allclose(dl_dh[:, :SAMPLES], expected, **tolerance(dtype))


def test_large_weights(dtype):
    """Whose backward product goes through them in parts."""
    units, depth = 1100, 1030
    weights, h = values(units, depth, dtype, 1) / np.sqrt(dtype.type(depth)), tile(depth, dtype, 3)
    biases, f = tile(units, dtype, 2)[:, 0].copy(), tile(units, dtype, 4)
    run_forward_layer(f, weights, biases, h, SAMPLES, 0)
    np.testing.assert_allclose(f[:, :SAMPLES], weights @ h[:, :SAMPLES] + biases[:, None], **tolerance(dtype))
    mask, expected = h[:, :SAMPLES] > 0, weights.T @ f[:, :SAMPLES]
    for dl_dh, most_terms in (np.full_like(h, np.nan), limits.PAGES), (h, units):
        run_backward_layer(dl_dh, h, weights, f, SAMPLES, 1, most_terms)
        np.testing.assert_allclose(dl_dh[:, :SAMPLES], expected * mask, **tolerance(dtype))


def test_the_mask_multiplies_and_is_zero_at_zero(dtype):
    values = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -1e-30], dtype)
    dl_dh = np.zeros((1, SAMPLES + 16), dtype)
    dl_dh[0, :7] = values
    dl_df = np.full((1, SAMPLES + 16), 3, dtype)
    dl_df[0, 7] = np.inf
    run_backward_layer(dl_dh, dl_dh, np.ones((1, 1), dtype), dl_df, SAMPLES, 1, 1)
    np.testing.assert_array_equal(dl_dh[0, :8], [0, 0, np.nan, 3, 0, 3, 0, np.nan])


@pytest.mark.parametrize("units_out", [1, 2, 3, 4, 5, 6, 7, 12, 13, 70])
@pytest.mark.parametrize("units_in", [1, 2, 3, 4, 5, 6, 9, 70])
def test_dot_gradient(units_out, units_in, dtype):
    dl_df, h = tile(units_out, dtype, 1), tile(units_in, dtype, 2)
    expected = dl_df[:, :SAMPLES].astype(np.float64) @ h[:, :SAMPLES].T.astype(np.float64)
    for first in 0, units_in:
        storage, dl_dbiases = np.full((units_out, units_in + 3), 0.5, dtype), np.full(units_out, 0.25, dtype)
        dl_dweights = storage[:, :units_in]
        run_dot_gradient(dl_dweights, dl_dbiases, dl_df, h, np.ones(SAMPLES, dtype), first, SAMPLES)
        np.testing.assert_allclose(dl_dweights, 0.5 + (expected if first == 0 else 0), **tolerance(dtype))
        np.testing.assert_allclose(dl_dbiases, dl_df[:, :SAMPLES].sum(1, np.float64) + 0.25, **tolerance(dtype))
        assert (storage[:, units_in:] == 0.5).all()


@pytest.mark.parametrize("units_out", [1, 2, 3, 4, 5, 6, 7, 13, 70])
@pytest.mark.parametrize("units_in", [1, 7, 16, 17, 33, 48, 64, 70, 130, 512, 1030, 1045])
def test_weight_gradient_along_the_units(units_out, units_in, dtype):
    dl_df, h = tile(units_out, dtype, 1, 256), tile(units_in, dtype, 2, 256)
    for count in 1, 100, 128, 129, 256:
        dl_dweights = np.full((units_out, units_in + 20), 0.5, dtype)
        dl_dweights[:, -4:] = 7
        transposed = np.full((256, units_in + 20), np.nan, dtype)
        sums = dl_dweights[:, :units_in]
        run_weight_gradient(sums, dl_df, transposed, h, units_in, 256, count, 1)
        np.testing.assert_array_equal(transposed[:, :units_in], h[:, :256].T)
        expected = dl_df[:, :count].astype(np.float64) @ h[:, :count].T.astype(np.float64)
        np.testing.assert_allclose(sums, 0.5 + expected, **tolerance(dtype))
        sums[...] = np.nan
        run_weight_gradient(sums, dl_df, transposed, h, units_in, 256, count, 0)
        np.testing.assert_allclose(sums, expected, **tolerance(dtype))
        assert (dl_dweights[:, -4:] == 7).all()


def test_copy_rows_of_any_strides(dtype):
    storage = tile(20, dtype)
    for source in storage[:3], storage[:, :3].T, storage[::-2, ::-1], np.broadcast_to(storage[:4, :1], (4, 40)):
        target = np.full((source.shape[0], 50), 7, dtype)
        count = min(source.shape[1], 33)
        run_copy_rows(target, source, count)
        np.testing.assert_array_equal(target[:, :count], source[:, :count])
        assert (target[:, count:] == 7).all()


@pytest.mark.parametrize("count", [1, 7, 16, 33, 48])
@pytest.mark.parametrize("units", [1, 3, 8, 15, 16, 17, 40])
def test_copy_rows_of_contiguous_columns(units, count, dtype):
    source = np.random.default_rng(0).standard_normal((count, units + 2)).astype(dtype)[:, :units].T
    bytes_apart = (
        np.frombuffer(b"x" + source.T.tobytes(), np.uint8)[1:].view(dtype).reshape(count, units).T
    )  # unaligned
    for columns in source, bytes_apart:
        target = np.full((units + 1, 50), 7, dtype)
        run_copy_rows(target[:units], columns, count)
        np.testing.assert_array_equal(target[:units, :count], columns)
        assert (target[:, count:] == 7).all()
        assert (target[units] == 7).all()


def test_clear_tail(dtype):
    got = np.full((3, SAMPLES + 16), np.nan, dtype)
    run_clear_tail(got, 100, SAMPLES)
    assert np.isnan(got[:, :100]).all()
    assert (got[:, 100:SAMPLES] == 0).all()
    assert np.isnan(got[:, SAMPLES:]).all()


@kernel
def run_add_partials(gradient, total, partials, columns, is_first, is_last):
    rows.add_partials(
        simd.pointer(gradient),
        gradient.strides[0],
        simd.pointer(total),
        simd.pointer(partials),
        partials.strides[1],
        partials.strides[0],
        partials.shape[0],
        gradient.shape[0],
        columns,
        is_first,
        is_last,
    )


@pytest.mark.parametrize("columns", [1, 3, 8, 15, 16, 17, 64, 70, 129])
def test_add_partials(columns, dtype):
    """In double precision, of doubles even more exactly, at once or in two steps; nothing behind columns is written."""
    random = np.random.default_rng(0)
    for count in 1, 2, 5, 50:
        partials = random.standard_normal((count, 3, columns + 5)).astype(dtype)
        exact = [[math.fsum(partials[:, i, p].tolist()) for p in range(columns)] for i in range(3)]
        doubles = 2 if dtype == np.float64 else 1
        results = []
        for cut in 0, count // 2:
            gradient, total = np.full((3, columns + 2), 7, dtype), np.full((3, doubles * (columns + 2)), 7.0)
            if cut:
                run_add_partials(gradient, total, partials[:cut], columns, 1, 0)
                assert (gradient == 7).all()
            run_add_partials(gradient, total, partials[cut:], columns, cut == 0, 1)
            assert (gradient[:, columns:] == 7).all()
            assert (total[:, 0 if cut == 0 else doubles * columns :] == 7).all()
            results.append(gradient[:, :columns])
        np.testing.assert_allclose(results[0], exact, rtol=np.finfo(dtype).eps)
        np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e308])
def test_add_partials_that_overflow(value):
    partials, gradient = np.full((4, 1, 9), value), np.zeros((1, 9))
    run_add_partials(gradient, np.zeros((1, 18)), partials, 9, 1, 1)
    np.testing.assert_array_equal(gradient, np.full((1, 9), 4 * value))


@kernel
def run_sum_row(row):
    return rows.sum_row(simd.pointer(row), row.size)


def test_sum_row():
    row = np.random.default_rng(0).standard_normal(320)
    assert run_sum_row(row) == pytest.approx(row.sum(), rel=1e-14)


@pytest.mark.parametrize(
    ("triple", "features", "expected"),
    [
        ("x86_64-unknown-linux-gnu", "+sse2", simd.Target(16, 16, False)),
        ("x86_64-unknown-linux-gnu", "+sse2,+avx,+avx2,+fma", simd.Target(32, 16, True)),
        ("x86_64-unknown-linux-gnu", "+avx,-fma,-avx512f", simd.Target(32, 16, False)),
        ("x86_64-pc-windows-msvc", "+avx,+fma,+avx512f", simd.Target(64, 32, True)),
        ("aarch64-unknown-linux-gnu", "", simd.Target(16, 32, True)),
        ("arm64-apple-darwin", "+neon", simd.Target(16, 32, True)),
    ],
)
def test_targets(triple, features, expected):
    assert simd.read_target(triple, features) == expected


@kernel
def run_forward_samples(f, weights, biases, h):
    samples.forward_samples(
        simd.pointer(f),
        f.strides[0],
        simd.pointer(weights),
        simd.pointer(biases),
        simd.pointer(h),
        h.strides[0],
        weights.shape[0],
        weights.shape[1],
        h.shape[0],
    )


@kernel
def run_multiply_samples(c, h, a, b, with_mask):
    samples.multiply_samples(
        simd.pointer(c),
        c.strides[0],
        simd.pointer(h),
        simd.pointer(a),
        a.strides[0],
        a.strides[1],
        simd.pointer(b),
        b.strides[0],
        c.shape[0],
        c.shape[1],
        a.shape[1],
        with_mask,
    )


def padded_rows(count, columns, dtype, seed):
    """Rows that another array's values stand behind."""
    return values(count + 1, columns + 3, dtype, seed)[:count, :columns]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("units_in", [*range(1, 20), 31, 32, 33, 64, 70, 200])
def test_forward_samples(units_in, count, dtype):
    for units_out in 1, 2, 5, 6, 7, 13:
        weights, biases = values(units_out, units_in, dtype, 1), values(1, units_out, dtype, 2)[0]
        h, storage = padded_rows(count, units_in, dtype, 3), np.full((count + 1, units_out + 3), 7, dtype)
        run_forward_samples(storage[:count, :units_out], weights, biases, h)
        np.testing.assert_allclose(storage[:count, :units_out], h @ weights.T + biases, **tolerance(dtype))
        assert (storage[:, units_out:] == 7).all()
        assert (storage[count] == 7).all()


@pytest.mark.parametrize("depth", [1, 2, 8, limits.PAGES, limits.PAGES + 1, 3 * limits.PAGES])
@pytest.mark.parametrize("columns", [*range(1, 20), 33, 64, 70, 200])
def test_multiply_samples(columns, depth, dtype):
    for count in 1, 2, 6, 7, 13:
        a, b = padded_rows(depth, count, dtype, 1).T / np.sqrt(dtype.type(depth)), padded_rows(depth, columns, dtype, 2)
        h = np.full((count + 1, columns + 3), np.nan, dtype)
        h[:count, :columns] = padded_rows(count, columns, dtype, 3)
        for with_mask in 0, 1:
            storage = np.full((count + 1, columns + 3), 7, dtype)
            c = storage[:count, :columns]
            run_multiply_samples(c, h if with_mask else c, a, b, with_mask)
            mask = h[:count, :columns] > 0 if with_mask else 1
            np.testing.assert_allclose(c, (a @ b) * mask, **tolerance(dtype))
            assert (storage[:, columns:] == 7).all()
            assert (storage[count] == 7).all()


class ForeignContext:
    """What the code generators ask of numba's target context, for a target that is not this machine's."""

    def __init__(self, triple, features):
        self.target = triple, "", features
        self.get_value_type = cpu_target.target_context.get_value_type

    def codegen(self):
        return self

    def magic_tuple(self):
        return self.target

    def get_dummy_value(self):
        return None


@pytest.mark.parametrize(
    ("triple", "features", "product"),
    [
        ("x86_64-unknown-linux-gnu", "+sse2", r"\tmulp[sd]\t.*%xmm"),
        ("x86_64-unknown-linux-gnu", "+sse2,+avx", r"\tvmulp[sd]\t.*%ymm"),
        ("x86_64-unknown-linux-gnu", "+sse2,+avx,+avx2,+fma", r"\tvfmadd\d+p[sd]\t.*%ymm"),
        ("x86_64-unknown-linux-gnu", "+sse2,+avx,+avx2,+fma,+avx512f", r"\tvfmadd\d+p[sd]\t.*%zmm"),
        ("aarch64-unknown-linux-gnu", "", r"\tfmla\tv\d+\.(4s|2d)"),
    ],
)
@pytest.mark.parametrize("kernel", [layers.forward_layer, layers.backward_layer, layers.weight_gradient])
def test_kernels_compile_for_other_targets(kernel, triple, features, product, dtype):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    element = numba.from_dtype(dtype)
    address = types.CPointer(element)
    names = list(inspect.signature(kernel._defn).parameters)[1:]
    pointers = {"f", "weights", "biases", "h", "result", "dl_df", "dl_dweights", "transposed"}
    kinds = [address if name in pointers else types.intp for name in names]
    signature, generate = kernel._defn(None, *kinds)
    context = ForeignContext(triple, features)
    module = ir.Module()
    module.triple = triple
    kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(argument) for argument in kinds])
    function = ir.Function(module, kind, "entry")
    builder = ir.IRBuilder(function.append_basic_block())
    generate(context, builder, signature, function.args)
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=2)
    assembly = machine.emit_assembly(parsed)
    # Every height, of tiles of two or more vectors, and of one.
    heights = range(1, simd.Simd(context, builder, element).tile_rows + 1)
    assert len(re.findall(product, assembly)) >= 3 * sum(heights)
    assert "fmaf" not in assembly
