"""The schemes `results` and `chunks`: a batch is cut into chunks. Threads take chunks until none is left, tile by tile.

What happens to one tile is a *tile function*, which is called by its address. So these loops are compiled once for a
dtype. With a copy for each of eight tile functions, `warmup()` took 3 s longer.
"""

from fastbackprop.engine import plan
from fastbackprop.kernels.jit import phase
from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.rows import clear, sum_row
from fastbackprop.kernels.simd import advance
from fastbackprop.parallel.team import BLOCKS, PIECES, claim, finish, meet


def each_tile(call, thread, threads):
    """Take every tile of the chunks: call.take_tile runs on the samples [first, first + count)."""
    tile = advance(call.tiles, thread * call.tile_bytes)
    chunk = call.first_chunk + claim(call, PIECES)
    while chunk < call.end_chunk:
        begin, end = samples_of(call, chunk)
        for first in range(begin, end, call.tile_samples):
            call.take_tile(call, tile, first, min(call.tile_samples, end - first))
        chunk = call.first_chunk + claim(call, PIECES)
    finish(call, thread, threads, 0)


def sum_over_tiles(call, thread, threads):
    """Take every tile of the chunks, and sum a loss and a gradient over the tiles of each chunk.

    call.add_tile adds the gradient of a tile to the partial gradient of its chunk, and the losses to `losses`. Its last
    argument is the number of samples in the chunk's earlier tiles.
    """
    tile = advance(call.tiles, thread * call.tile_bytes)
    losses = advance(call.sample_losses, thread * call.tile_samples * 8)
    chunk = call.first_chunk + claim(call, PIECES)
    while chunk < call.end_chunk:
        partial = begin_chunk(call, losses, chunk)
        begin, end = samples_of(call, chunk)
        for first in range(begin, end, call.tile_samples):
            count = min(call.tile_samples, end - first)
            call.add_tile(call, tile, partial, losses, first, count, first - begin)
        keep_loss(call, losses, chunk)
        chunk = call.first_chunk + claim(call, PIECES)
    add_chunks(call, thread, threads)


LOOPS = {"results": (each_tile, "take_tile"), "chunks": (sum_over_tiles, "add_tile")}
"""scheme: its pass, and the field with the address of its tile function, see records.call_record."""

cut = phase(plan.cut)


@phase
def samples_of(call, chunk):
    """The samples of a chunk, counted from the first of the slice: [begin, end)."""
    begin = cut(call.batch_samples, call.chunks, chunk)
    end = cut(call.batch_samples, call.chunks, chunk + 1)
    return begin - call.first_sample, end - call.first_sample


@phase
def begin_chunk(call, losses, chunk):
    """The partial gradient of a chunk, cleared where products add to it from the start. Clears the losses too."""
    partial = advance(call.partials, (chunk - call.first_chunk) * call.partial_bytes)
    for number in range(call.gradients):
        clear(advance(partial, number * call.squares_at + call.cleared_at), call.cleared_bytes // call.itemsize)
    clear(losses, call.tile_samples)
    return partial


@phase
def keep_loss(call, losses, chunk):
    """The loss of a chunk: the sum of the row of losses."""
    call.chunk_losses[chunk - call.first_chunk] = sum_row(losses, call.tile_samples)


@phase
def add_chunks(call, thread, threads):
    """The gradient = the sum of the chunks' partial gradients, the loss = the sum of their losses, in a fixed order.

    Each thread takes blocks of the gradient. The slices of a long batch add to the totals, in double precision; the
    last slice writes the gradient.
    """
    chunks = call.end_chunk - call.first_chunk
    meet(call, threads)
    number = claim(call, BLOCKS)
    while number < call.blocks:
        block = record_at(call.block, number)
        partials = advance(call.partials, block.partial_at)
        add_block(
            call, block.gradient_at, block.gradient_row, partials, block.partial_row, chunks, block.rows, block.columns
        )
        number = claim(call, BLOCKS)
    if thread == 0:
        add_losses(call, call.chunk_losses, chunks)
    finish(call, thread, threads, 1)


@phase
def add_block(call, gradient_at, gradient_row, partials, partial_row, count, rows, columns):
    """A block of the gradient = the totals so far + the same block of `count` partial gradients."""
    # fmt: off
    call.add_partials(
        advance(call.gradient, gradient_at), gradient_row,
        advance(call.totals, 2 * gradient_at),
        partials, partial_row, call.partial_bytes, count,
        rows, columns, call.is_first, call.is_last,
    )
    # fmt: on


@phase
def add_losses(call, losses, count):
    """The loss of the batch so far."""
    total = 0.0 if call.is_first else call.loss_sum
    for number in range(count):
        total += losses[number]
    call.loss_sum = total
