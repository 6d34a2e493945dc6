"""The plan: how batches are cut, and that nothing in a tile, a partial gradient or the gradient lies over another."""

import itertools

import numpy as np
import pytest

from fastbackprop.arguments.checks import parameter_count
from fastbackprop.engine import layout as layouts
from fastbackprop.engine import limits, plan
from fastbackprop.engine.plan import COMPUTATIONS
from fastbackprop.kernels import CACHE_LINE

NETWORKS = [
    (1, 6, 6, 6, 6, 6, 1),
    (8, 32, 32, 32, 1),
    (30, 24, 50, 23, 40),
    (64, 128, 128, 128, 128, 10),
    (784, 256, 256, 256, 10),
    (784, 1024, 1024, 1024, 10),
    (10_000, 50, 10),
    (7, 3),
    (8, *[64] * 90, 1),
    (8, *[6] * 3000, 1),
]
SAMPLES = [9, 17, 64, 95, 96, 255, 256, 1000, 4096, 20_000, 100_000, 10**7]
PLANNED = pytest.mark.parametrize("what", list(COMPUTATIONS))
of_networks = pytest.mark.parametrize("layer_sizes", NETWORKS, ids=lambda sizes: "-".join(map(str, sizes[:7])))


@pytest.fixture(params=[4, 8], ids=["float32", "float64"])
def itemsize(request):
    return request.param


@PLANNED
@of_networks
def test_chunks_cover_the_batch(layer_sizes, itemsize, what):
    for samples in SAMPLES:
        made = COMPUTATIONS[what].plan(layer_sizes, itemsize, samples)
        bounds = [made.cut(chunk) for chunk in range(made.chunks + 1)]
        assert bounds[0] == 0
        assert bounds[-1] == samples
        lengths = np.diff(bounds)
        assert lengths.min() > 0
        assert lengths.max() <= made.longest < lengths.max() + limits.GRAIN
        assert lengths.max() - lengths.min() <= limits.GRAIN
        assert all(bound % limits.GRAIN == 0 for bound in bounds[:-1])
        assert made.tile_samples <= made.layout.tile_samples
        assert made.tile_samples % limits.GRAIN == 0
        for threads, most in itertools.product((1, 2, 3, 64), (None, 1, 1000)):
            slices = made.slices(threads, most)
            assert list(itertools.chain.from_iterable(range(*part) for part in slices)) == list(range(made.chunks))
            lengths = [end - first for first, end in slices]
            assert max(lengths) <= max(made.most_chunks, 1)
            assert all(length == lengths[0] for length in lengths[:-1])
            assert lengths[0] % threads == 0 or lengths[0] == min(made.most_chunks, made.chunks)


@of_networks
def test_partial_gradients_have_room(layer_sizes, itemsize):
    """As many as a slice has chunks; and a chunk is summed in the element type over few tiles."""
    for samples in SAMPLES:
        made = plan.plan_gradient(layer_sizes, itemsize, samples)
        if made.scheme == "chunks":
            assert made.layout.partial_bytes <= limits.PRIVATE_BYTES
            assert made.most_chunks * made.layout.partial_bytes <= limits.PARTIALS_BYTES
            assert made.most_chunks >= 32
            assert made.longest <= limits.CHUNK_TILES * made.layout.tile_samples
        else:
            tiles = -(-made.longest // made.tile_samples)
            assert tiles <= limits.GROUP_TILES
            assert tiles <= 2 or tiles * made.layout.tile_bytes <= limits.GROUP_BYTES


@pytest.mark.parametrize(("samples", "chunks"), [(95, 1), (96, 2), (255, 2), (256, 2), (511, 2), (512, 4)])
def test_small_batches_are_cut_in_two(samples, chunks):
    made = COMPUTATIONS["gradient"].plan((64, 128, 128, 10), 4, samples)
    assert (made.scheme, made.chunks) == ("shared" if chunks == 1 else "chunks", chunks)


@pytest.mark.parametrize(("samples", "chunks"), [(96, 1), (300, 1), (512, 1), (513, 2)])
def test_batches_are_shared_where_gradients_are_large(samples, chunks):
    """So more than two threads can help."""
    made = COMPUTATIONS["gradient"].plan((784, 512, 512, 10), 4, samples)
    assert (made.scheme, made.chunks) == ("shared" if chunks == 1 else "chunks", chunks)
    assert made.most_threads == (chunks if chunks > 1 else -(-samples // limits.GRAIN))


@of_networks
def test_the_blocks_are_the_gradient(layer_sizes, itemsize):
    """Each element of the weights is in one block; those of chunks have the biases too."""
    of_chunks, shared = layouts.chunk_layout(layer_sizes, itemsize), layouts.shared_layout(layer_sizes, itemsize)
    for layout in of_chunks, shared:
        taken = np.zeros(parameter_count(layer_sizes), np.int8)
        for block in layout.blocks:
            for row in range(block["rows"]):
                start = (block["gradient_at"] + row * block["gradient_row"]) // itemsize
                taken[start : start + block["columns"]] += 1
        if layout is shared:
            for layer in layout.layers:
                start = layer["biases_at"] // itemsize
                taken[start : start + layer["units_out"]] += 1
        assert (taken == 1).all()


@pytest.mark.parametrize(("largest", "unit"), [(448, 64), (128, 1), (4096, 1), (64, 64)])
def test_parts_are_even_and_never_too_large(largest, unit):
    for total in [*range(1, 1500), 2000, 4095, 4096, 4097, 10_000]:
        parts = layouts.parts(total, largest, unit)
        assert [first for first, _ in parts] + [total] == [0] + [last for _, last in parts]
        sizes = [last - first for first, last in parts]
        assert min(sizes) > 0
        assert max(sizes) <= largest
        assert max(sizes) - min(sizes) < 2 * unit
        assert all(first % unit == 0 for first, _ in parts)
        assert len(parts) == -(-total // largest)


def test_blocks_fit_into_the_scratch_memory(itemsize):
    for width in [*range(1, 1300, 7), 2000, 3072, 10_000]:
        layout = layouts.shared_layout((width, width, 3), itemsize)
        call = layout.call
        for block in layout.blocks:
            layer = layout.layers[block["k"]]
            assert block["rows"] * block["partial_row"] <= layer["partial_biases_at"]
            assert layer["partial_biases_at"] + block["rows"] * itemsize <= call["transposed_at"]
            assert block["columns"] * itemsize <= layer["transposed_row"]
            transposed = limits.SHARED_TILE_SAMPLES * layer["transposed_row"]
            assert call["transposed_at"] + transposed <= layout.partial_bytes


@of_networks
@pytest.mark.parametrize("kept", [False, True])
def test_partial_gradients_do_not_overlap(layer_sizes, itemsize, kept):
    """Rows of wide layers are whole vectors of every target; the blocks read what the products write."""
    layout = layouts.kept_layout(layer_sizes, itemsize, 1, 1) if kept else layouts.chunk_layout(layer_sizes, itemsize)
    taken = np.zeros(layout.partial_bytes // itemsize, np.int8)
    for layer in layout.layers:
        width = layer["partial_row"] // itemsize
        assert width >= layer["units_in"]
        if layer["along_units"]:
            assert width % 16 == 0
            assert layer["partial_at"] + layer["units_out"] * layer["partial_row"] <= layout.call["cleared_at"]
        else:
            assert width == layer["units_in"]
            assert layer["partial_at"] >= layout.call["cleared_at"]
        start, biases = layer["partial_at"] // itemsize, layer["partial_biases_at"] // itemsize
        taken[start : start + layer["units_out"] * width] += 1
        taken[biases : biases + layer["units_out"]] += 1
        assert layer["partial_biases_at"] >= layout.call["cleared_at"]
    assert taken.max() == 1
    end = (layout.call["cleared_at"] + layout.call["cleared_bytes"]) // itemsize
    assert (taken[:end] == 1).all()
    of_layers = {layer["weights_at"]: layer for layer in layout.layers}
    of_layers |= {layer["biases_at"]: layer for layer in layout.layers}
    for block in layout.blocks:
        layer = of_layers.get(block["gradient_at"])
        if layer is not None:
            in_biases = block["gradient_at"] == layer["biases_at"]
            assert block["partial_at"] == layer["partial_biases_at" if in_biases else "partial_at"]


@of_networks
def test_squares_stand_behind_a_gradient_and_are_summed_like_it(layer_sizes, itemsize):
    once, twice = (layouts.kept_layout(layer_sizes, itemsize, 1, gradients) for gradients in (1, 2))
    assert twice.sums == 2 * once.sums == 2 * parameter_count(layer_sizes)
    assert twice.call["squares_at"] == once.partial_bytes
    assert twice.partial_bytes == 2 * once.partial_bytes
    half = len(once.blocks)
    assert twice.blocks[:half] == once.blocks
    for block, squares in zip(once.blocks, twice.blocks[half:], strict=True):
        behind = {"gradient_at": once.parameters * itemsize, "partial_at": once.partial_bytes}
        assert squares == block | {name: block[name] + offset for name, offset in behind.items()}


@of_networks
def test_doubles_stand_behind_the_rows_of_a_tile(layer_sizes, itemsize):
    """A row of losses, and one of norms, or one for each layer; in front of them a sample's activations fit."""
    layers = len(layer_sizes) - 1
    for norms in {1, layers}:
        layout = layouts.kept_layout(layer_sizes, itemsize, norms, 1)
        call, row = layout.call, 8 * layout.tile_samples
        transposed = layout.tile_samples * max(layer["transposed_row"] for layer in layout.layers)
        assert layout.rows * call["row_bytes"] <= call["transposed_at"]
        assert call["transposed_at"] + transposed <= call["losses_at"]
        assert call["losses_at"] + row <= call["norms_at"]
        assert call["norms_at"] + norms * row <= layout.tile_bytes
        assert call["norms_row"] == (row if norms == layers else 0)


@of_networks
def test_rows_of_a_tile_do_not_overlap(layer_sizes, itemsize):
    tiled = [layouts.chunk_layout(layer_sizes, itemsize), layouts.shared_layout(layer_sizes, itemsize)]
    kept = [layouts.kept_layout(layer_sizes, itemsize, norms, 1) for norms in (1, len(layer_sizes) - 1)]
    for layout in [*tiled, *kept]:
        call, row, inputs, outputs = layout.call, layout.call["row_bytes"], layer_sizes[0], layer_sizes[-1]
        places = [(0, inputs), *((layer["f_at"], layer["units_out"]) for layer in layout.layers)]
        places += [(call["target_at"], outputs), (call["sample_weight_at"], limits.LOSS_ROWS), (call["ones_at"], 1)]
        own = [(layer["dl_df_at"], layer["units_out"]) for layer in layout.layers if layer["dl_df_at"] != layer["f_at"]]
        places += own + [(call["dl_dinput_at"], inputs)] * bool(call["dl_dinput_at"])
        if "results_at" in call:
            places.append((call["results_at"], 1 + call["norms"]))
        taken = np.zeros(layout.rows, np.int8)
        for at, rows in places:
            taken[at // row : at // row + rows] += 1
        assert (taken == 1).all()
        assert row % CACHE_LINE == 0
        assert row // CACHE_LINE % 2 == 1
        assert layout.rows * row <= layout.tile_bytes


@of_networks
def test_few_samples_do_not_overlap(layer_sizes, itemsize):
    layout = layouts.few_layout(layer_sizes, itemsize)
    call = layout.call
    places = [(0, layer_sizes[0]), *((layer["f_at"], layer["units_out"]) for layer in layout.layers)]
    places += [(layer["dl_df_at"], layer["units_out"]) for layer in layout.layers[:-1]]
    places += [(call["dl_dinput_at"], layer_sizes[0]), (call["target_at"], 2 * layer_sizes[-1] + limits.LOSS_ROWS)]
    taken = np.zeros(layout.rows, np.int8)
    for at, units in places:
        taken[at // itemsize : at // itemsize + units] += 1
    assert (taken == 1).all()
    assert layout.tile_bytes == limits.FEW * layout.rows * itemsize


@pytest.mark.parametrize(
    ("layer_sizes", "samples"),
    [
        ((1, 6, 6, 6, 6, 6, 1), 64_000_000),
        ((8, 16, 16, 16, 1), 6_400_000),
        ((16, 64, 64, 64, 64, 4), 16_384),
        ((64, 128, 128, 128, 128, 10), 1_280_000),
        ((784, 256, 256, 256, 10), 262_144),
        ((784, 1024, 1024, 1024, 10), 131_072),
        ((1, 6, 6, 6, 6, 6, 1), 64_000),
    ],
)
def test_there_is_work_for_many_threads(layer_sizes, samples, itemsize):
    made = plan.plan_gradient(layer_sizes, itemsize, samples)
    assert made.most_threads >= 32
    if made.scheme == "shared":
        assert len(made.layout.blocks) >= 64
