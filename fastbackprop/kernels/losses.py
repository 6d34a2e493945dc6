"""The losses of fastbackprop.losses in compiled form, over the output's rows of one tile.

Rows of a tile, from the first of the output on:

    output, then dl/df_K | target | sample weights | one number for each sample: two sums, a maximum

Loops over the samples are innermost, and few arrays are in each: above a few pairs of them, LLVM no longer checks
whether they overlap, and makes no vectors. Those of the cross-entropies stand in one function because numba compiles
each on its own as well.

A gradient with a cross-entropy took 2 to 6 % longer than with a squared error for layers (16, 64, 64, 64, 64, 10),
about 1 % for (784, 100, 10), and half again as long for (1, 6, 6, 6, 6, 6, 3), whose whole gradient takes 10 to 17 ns a
sample (one thread, Zen 5, targets' check included).
"""

import functools

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbackprop.kernels import BINARY, LOSS_ROWS, SQUARED_ERROR
from fastbackprop.kernels.elementary import exp, log1p
from fastbackprop.kernels.jit import compile_callback, inner, source_digest
from fastbackprop.kernels.simd import outlined


@inner
def take_loss(loss_lanes, rows, stride, units, target_rows, count, mode, factor, scale, cross_entropy):
    """Over `count` samples of a tile, dl/df_K in place of the output, and loss_lanes += the loss, sample by sample.

    loss_lanes (float64) has an entry for each sample. The rows, of `stride` elements, are those of the module's table;
    cross_entropy is the address of what deals with the losses other than the squared error, see there.
    """
    if mode == SQUARED_ERROR:
        squared_error(loss_lanes, rows, stride, units, count, factor, scale)
    else:
        call_cross_entropy(cross_entropy, loss_lanes, rows, stride, units, target_rows, count, mode, scale)


@intrinsic
def squared_error(typing_context, loss_lanes, rows, stride, units, count, factor, scale):
    """output = scale w 2 factor (o - y); loss_lanes += w factor (o - y)^2, see take_loss."""

    def emit(simd, loss_lanes, rows, stride, units, count, factor, scale):
        builder, double = simd.builder, ir.DoubleType()
        slope = simd.narrowed(builder.fmul(builder.fmul(ir.Constant(double, 2.0), factor), scale))
        target_rows = simd.mul(units, stride)
        weights = simd.item(rows, simd.mul(2, target_rows))
        with simd.loop(units) as i:
            output = simd.item(rows, simd.mul(i.index, stride))
            target = simd.item(output, target_rows)
            with simd.loop(count) as s:
                o, y, w = (simd.load_item(row, s.index) for row in (output, target, weights))
                error = builder.fsub(o, y)
                lane = builder.gep(loss_lanes, [s.index], source_etype=double)
                loss = builder.fmul(factor, simd.widened(w))
                for _ in range(2):
                    loss = builder.fmul(loss, simd.widened(error))
                builder.store(builder.fadd(builder.load(lane, typ=double), loss), lane)
                simd.store(builder.fmul(builder.fmul(slope, w), error), simd.item(output, s.index), 0)

    arguments = loss_lanes, rows, *[types.intp] * 3, types.float64, types.float64
    return types.void(*arguments), outlined("squared_error", rows.dtype, emit)


@functools.cache
def cross_entropy(dtype):
    """The cross-entropies over one tile, compiled for float32 or float64, with an `address` that kernels call.

    Within the sweep, it would take a quarter of what everybody waits for at the first gradient.
    """
    digest = source_digest()

    def take_cross_entropy(lanes_start, rows_start, stride, units, target_rows, count, mode, scale):
        """Over `count` samples of a tile, dl/df_K in place of the output, and the lanes += the loss, sample by sample.

        binary     output = scale w (sigmoid(o) - y);    lanes += w (max(o, 0) - o y + log1p(exp(-|o|)))
        softmax    output = scale w (m softmax(o) - y);  lanes += w (m ln(sum_j exp(o_j - peak)) - sum_i y_i z_i)
                   with peak = max_j o_j, z_i = o_i - peak and m = sum_i y_i

        lanes_start: an entry (float64) for each sample. rows_start: the rows, of `stride` elements, are those of the
        module's table; the target's are overwritten. For the softmax, a single row of several is class numbers c for
        y_c = 1. Only exponentials of what is not positive are taken, so nothing overflows; NaN and infinities go where
        these formulas take them.
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        loss_lanes, rows = numba.carray(lanes_start, count), numba.carray(rows_start, (2 * units + LOSS_ROWS) * stride)
        real = rows.dtype.type
        one, zero, slope = real(1.0), real(0.0), real(scale)
        at = 2 * units * stride
        weight = rows[at : at + count]
        if mode == BINARY:
            for i in range(units):
                output = rows[i * stride : i * stride + count]
                target = rows[(i + units) * stride : (i + units) * stride + count]
                for s in range(count):
                    o, y = output[s], target[s]
                    small = exp(-abs(o))
                    positive = max(o, zero)  # in this order, NaN stays
                    loss_lanes[s] += np.float64(weight[s]) * np.float64((positive - o * y) + log1p(small))
                    output[s] = slope * weight[s] * ((small if o < zero else one) / (one + small) - y)
            return

        has_classes = target_rows < units
        mass, crossed, total = rows[at + stride :], rows[at + 2 * stride :], rows[at + 3 * stride :]
        classes = rows[units * stride :]
        for s in range(count):
            mass[s] = one if has_classes else zero
            crossed[s] = zero
            total[s] = real(-np.inf)
        for i in range(units):
            output = rows[i * stride :]
            for s in range(count):
                total[s] = max(total[s], output[s])  # the peak; a NaN need not stay, it will be one of the exponentials
        for i in range(units - 1, -1, -1):  # the row of the class numbers is overwritten last
            output, target = rows[i * stride :], rows[(units + i) * stride :]
            for s in range(count):
                output[s] -= total[s]
            if has_classes:
                # No product with 0: outputs of other classes may be infinite. Loads in a branch would not be made
                # vectors.
                number = real(i)
                for s in range(count):
                    hit, z, before = classes[s] == number, output[s], crossed[s]
                    crossed[s] = z if hit else before
                    target[s] = one if hit else zero
            else:
                for s in range(count):
                    crossed[s] += target[s] * output[s]
                for s in range(count):
                    mass[s] += target[s]
        for s in range(count):
            total[s] = zero
        for i in range(units):
            output = rows[i * stride :]
            for s in range(count):
                output[s] = exp(output[s])
                total[s] += output[s]
        for s in range(count):  # a total is 1 at least
            loss = np.float64(mass[s]) * np.float64(log1p(total[s] - one)) - np.float64(crossed[s])
            loss_lanes[s] += np.float64(weight[s]) * loss
            total[s] = mass[s] / total[s]
        for i in range(units):
            output, target = rows[i * stride :], rows[(units + i) * stride :]
            for s in range(count):
                output[s] = slope * weight[s] * (total[s] * output[s] - target[s])

    return compile_callback(take_cross_entropy, cross_entropy_type(numba.from_dtype(dtype)))


def cross_entropy_type(element):
    """The signature of a compiled cross-entropy."""
    return types.void(types.CPointer(types.float64), types.CPointer(element), *[types.int64] * 5, types.float64)


@intrinsic
def call_cross_entropy(typing_context, address, loss_lanes, rows, stride, units, target_rows, count, mode, scale):
    """Call the function at that address. Only data must not be reached through integers: see simd."""

    def generate(context, builder, signature, arguments):
        address, *passed = arguments
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
        builder.call(builder.inttoptr(address, kind.as_pointer()), passed)
        return context.get_dummy_value()

    called = cross_entropy_type(rows.dtype)
    return types.void(types.int64, *called.args), generate
