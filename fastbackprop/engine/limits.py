"""Limits: the constants of a plan and its layout, and how they were measured: how a batch is cut, what threads share,
and where rows lie.

Figures are of 2 processors with AVX-512 and 1 MB of L2 (Zen 4 and Zen 5, 2026-11).
"""

FEW = 8
"""Samples: batches of at most so many go through the network with vector lanes along the units, see passes.few."""

GRAIN = 16
"""Samples: chunks and strips begin at multiples of it. A cache line of float32.

Measured: with 32, 96 samples of 784-100x3-10 and 160 of 64-128x4-10, of which one of two threads had twice as many,
took 10 to 15 % longer, others as long.
"""

TILE_BYTES = 256 * 1024
"""Bytes of a tile's rows that are aimed at, half of an L2 of 512 KB: the least samples of a tile come first."""

TILE_SAMPLES = 128, 512
"""Samples of a tile, at least and at most: weights and gradients are read once for every tile.

Measured: with 64 at least, 64-128x4-10 and 784-100x3-10 took 2 to 7 % longer.
"""

TILE_STEP = 64
"""Samples: tiles have multiples of it, whole vectors and cache lines of both dtypes."""

LARGE_WEIGHTS_BYTES, BESIDE_LARGE_WEIGHTS = 1024 * 1024, 64
"""Bytes of a layer's weights that drive a tile out of an L2, and the samples of a tile beside these, at least.

Measured: 1,000 samples of 3072-100-10 took 6 % (float32) and 9 % (float64) less time than with 128.
"""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, for the weight of each sample and sums over the outputs."""

ALONG_UNITS = 24
"""Units: layers with fewer on either side take the weight gradient along the samples. Below, vectors of units are
mostly padding, or the transposition is not worth its product."""

CHUNK_TILES = 8
"""Tiles of a chunk, at most: their weight gradients are summed in the element type, those of chunks in double
precision.

So a sum of millions of samples in float32 rounds as rarely as NumPy's, see tests.test_numerics.
"""

CHUNK_FLOPS = 2**20
"""Floating-point operations of a chunk, at least: 10 to 20 us.

Measured: with 2**23, 5,000 samples of 1-6x5-1 and 2,000 of 8-16x3-1 were not shared by two threads, and took a fifth
longer.
"""

CHUNK_SAMPLES = 128
"""Samples of a chunk, at least. A chunk costs the time of 5 to 10 samples, in which its partial gradient is written and
read again."""

TWO_CHUNKS = 96
"""Samples from which a batch is cut in two though chunks are shorter than that, so that two threads need not read from
each other's caches."""

CHUNK_GRADIENT_BYTES = 8192
"""Bytes of a partial gradient for each sample of its chunk, at most, up to four times CHUNK_SAMPLES: larger partial
gradients leave the caches.

Measured: with 16384, 4,096 samples of 784-256x3-10 took 3 (float32) to 4 % (float64) longer.
"""

MANY_CHUNKS = 32
"""Chunks into which a batch is cut, at most, unless they would have more than CHUNK_TILES tiles: enough for 32 threads.

Measured: this costs two threads 3 (float64) to 5 % (float32) of 4,096 samples of 784-100x3-10, compared with 16 chunks.
"""

PRIVATE_BYTES = 4 * 1024 * 1024
"""Bytes of a partial gradient, at most: larger gradients are shared."""

PARTIALS_BYTES = 128 * 1024 * 1024
"""Bytes of all partial gradients of a slice, at most: there is room for 32, if there are as many threads."""

SLICE_FLOPS = 2**31
"""Floating-point operations of a slice for each thread, at most, if that is more than a chunk or a group: 20 to 40 ms.
Ctrl-C and progress are answered between slices."""

STAGED_BYTES = 2 * 1024 * 1024
"""Bytes of the columns of a slice, at most, where these are converted first, if each thread has more than one chunk."""

GIVEN_BYTES = 64 * 1024 * 1024
"""Bytes of lists of arrays that a slice reads or writes, at most, if each thread has more than one chunk: the
system may take seconds to find new memory."""

SHARED_FLOPS = 2**22
"""Floating-point operations of a batch of one chunk from which threads share it: 50 us."""

SHARED_TILE_SAMPLES = 128
"""Samples of a tile whose group is shared."""

GROUP_TILES = 8
"""Tiles of a group, at most. A block of the gradient reads a part of each, and is written once for the group.

Measured: 784-1024-1024-1024-10 took 230, 214, 207, 205 and 210 ms with 1, 2, 4, 8 and 16 (float32, one thread).
"""

GROUP_BYTES = 128 * 1024 * 1024
"""Bytes of the tiles of a group, at most, if it has more than two."""

BLOCK_ROWS, BLOCK_COLUMNS = 128, 448
"""Rows and columns of a block of a shared gradient, at most: so that it stays in an L2, and there are enough blocks.

Measured: with 256 rows, 784-1024x3-10 took 2 to 3 % less time, but had too few blocks for 32 threads. Of 64 samples of
784-100x3-10, each of two threads has a block of the first layer: with 128 columns they took 3 % longer, with 784
columns 17 % (float32, float64).
"""

BLOCK_STEP = 64
"""Columns: blocks begin at multiples of it, whole vectors and cache lines of both dtypes."""

BLOCK_ELEMENTS = 4096
"""Elements of a block that is summed over partial gradients."""
