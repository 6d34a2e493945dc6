"""Limits: the constants of a plan and its layout, with their measurements.

Figures are of 2 processors with AVX-512 and 1 MB of L2 (Zen 4 and Zen 5, 2026-11).
"""

FEW = 8
"""Largest batch, in samples, that goes through the network with vector lanes along the units: see passes.few."""

GRAIN = 16
"""Samples: chunks and strips begin at multiples of it. A cache line of float32.

Measured: with 32, 96 samples of 784-100x3-10 and 160 samples of 64-128x4-10 took 10 to 15 % longer, because one of two
threads had twice the samples of the other. Other batches took as long.
"""

TILE_BYTES = 256 * 1024
"""Largest size of a tile's rows, in bytes, if the tile has more than its least samples: half of an L2 of 512 KB."""

TILE_SAMPLES = 128, 512
"""Smallest and largest number of samples of a tile: weights and gradients are read once for every tile.

Measured: with 64 as the smallest, 64-128x4-10 and 784-100x3-10 took 2 to 7 % longer.
"""

TILE_STEP = 64
"""Samples: the length of a tile is a multiple of it, whole vectors and cache lines of both dtypes."""

LARGE_WEIGHTS_BYTES, BESIDE_LARGE_WEIGHTS = 1024 * 1024, 64
"""Largest size of a layer's weights, in bytes, beside which a tile stays in an L2. And the smallest number of samples
of a tile beside larger weights.

Measured: 1,000 samples of 3072-100-10 took 6 % (float32) and 9 % (float64) less time than with 128.
"""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, for the weight of each sample and sums over the outputs."""

ALONG_UNITS = 24
"""Smallest number of units on each side of a layer whose weight gradient is taken along the units. In narrower layers,
vectors of units are mostly padding, or the transposition takes longer than it saves."""

CHUNK_TILES = 8
"""Largest number of tiles of a chunk: a chunk sums weight gradients in the element type, chunks are added in double
precision.

So a sum of millions of samples in float32 rounds as rarely as NumPy's: see tests.test_numerics.
"""

CHUNK_FLOPS = 2**20
"""Smallest number of floating-point operations of a chunk: 10 to 20 us.

Measured: with 2**23, 5,000 samples of 1-6x5-1 and 2,000 of 8-16x3-1 were not shared by two threads, and took a fifth
longer.
"""

CHUNK_SAMPLES = 128
"""Smallest number of samples of a chunk. To write and read its partial gradient takes the time of 5 to 10 samples."""

TWO_CHUNKS = 96
"""Smallest batch, in samples, that is cut in two although chunks are shorter than CHUNK_SAMPLES. So two threads need
not read from each other's caches. Batches with larger gradients are shared instead, by more than two threads.

Measured: if they were cut in two as well, 100 to 300 samples of networks of 256 to 512 units took 0 to 8 % less time on
two threads, but no third thread could help (2026-11).
"""

CHUNK_GRADIENT_BYTES = 8192
"""Largest number of bytes of a partial gradient for each sample of its chunk, up to 4 CHUNK_SAMPLES samples: larger
partial gradients leave the caches.

Measured: with 16384, 4,096 samples of 784-256x3-10 took 3 (float32) to 4 % (float64) longer.
"""

MANY_CHUNKS = 32
"""Largest number of chunks of a batch, unless chunks would have more than CHUNK_TILES tiles: enough for 32 threads.

Measured: this costs two threads 3 (float64) to 5 % (float32) of 4,096 samples of 784-100x3-10, compared with 16 chunks.
"""

PRIVATE_BYTES = 4 * 1024 * 1024
"""Largest partial gradient, in bytes: larger gradients are shared."""

PARTIALS_BYTES = 128 * 1024 * 1024
"""Largest size of all partial gradients of a slice, in bytes: room for 32 of the largest."""

SLICE_FLOPS = 2**31
"""Largest number of floating-point operations of a slice for each thread, if that is more than a chunk or a group: 20
to 40 ms. Ctrl-C and progress are answered between slices."""

STAGED_BYTES = 2 * 1024 * 1024
"""Largest size of a slice's columns, in bytes, if they are converted first and each thread has more than one chunk."""

GIVEN_BYTES = 64 * 1024 * 1024
"""Largest size of the lists of arrays that a slice reads or writes, in bytes, if each thread has more than one chunk.
The system may take seconds to find new memory."""

SHARED_FLOPS = 2**22
"""Smallest number of floating-point operations of a batch of one chunk that threads share: 50 us."""

SHARED_TILE_SAMPLES = 128
"""Largest number of samples of a tile of a shared pass."""

GROUP_TILES = 8
"""Largest number of tiles of a group. A block of the gradient reads a part of each tile, and is written once a group.

Measured: 784-1024-1024-1024-10 took 230, 214, 207, 205 and 210 ms with 1, 2, 4, 8 and 16 (float32, one thread).
"""

GROUP_BYTES = 128 * 1024 * 1024
"""Largest size of the tiles of a group, in bytes, if it has more than two."""

BLOCK_ROWS, BLOCK_COLUMNS = 128, 448
"""Largest number of rows and columns of a block of a shared gradient. So it stays in an L2, and blocks are many.

Measured: with 256 rows, 784-1024x3-10 took 2 to 3 % less time, but had too few blocks for 32 threads. 64 samples of
784-100x3-10 took 0 to 12 % longer with 128 columns, and 6 to 21 % with 832 columns, where the first layer is one block
for two threads (float32 and float64, Zen 4, 2026-11).
"""

BLOCK_STEP = 64
"""Columns: blocks begin at multiples of it, whole vectors and cache lines of both dtypes."""

BLOCK_ELEMENTS = 4096
"""Largest number of elements of a block that is summed over partial gradients."""

DEPTH = 256
"""Largest number of units whose terms a product sums at once, of one sample's activations or derivatives.

The sum of each part is added to the sum of the parts before it, so that products of wide layers round as rarely as
NumPy's. The activations of a part stay in L2.

Measured: with 512, 784-1024x3-10, 784-256x3-10 and 784-100x3-10 took the same time within 1 %, but the float32 output
of networks of 64 to 900 units had 1.3 to 1.8 times NumPy's error. With 256, it has 1.0 to 1.3 times (Zen 4, 2026-11).
"""

PAGES, PAGE_BYTES = 64, 4096
"""Largest number of pages of weights that the backward product reads at once, a row each: the entries of a first-level
TLB. And the bytes of a page.

Measured: with whole columns, the backward product of 1024 units ran at 44 instead of 51 GFLOP/s in float64 (Zen 4,
2026-11).
"""
