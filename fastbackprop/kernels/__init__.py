"""Compiled code: sweep, wide and few (a batch through the network), lists (reading arrays), team (a call's threads).

Importing this compiles nothing.
"""

CACHE_LINE = 64

PANEL = 64
"""Samples: rows of a tile have room for a multiple of it, a multiple of the panels of every target."""

FEW = 8
"""The most samples that go through the network with vector lanes along the units: see few.

A call with 8 samples of 784-100-10 took 23 (float32) and 48 microseconds (float64) where tiles of samples took 58 and
80; with 16 of 40-200-70-2, the kernel alone took 36 in float32 where a call with tiles took 21 (AVX-512).
"""

ALONG_UNITS = 24
"""Layers with fewer units on either side take the weight gradient along the samples: below, vectors of units are mostly
padding, or the transposition is not worth its product."""

STRIP = 16
"""Samples: where lanes share a tile, each takes a multiple of them forward and back, and where they share chunks, these
begin at multiples. A cache line at least.

With 32, 96 samples of 784-100x3-10 and 160 of 64-128x4-10, of which one of two lanes had twice as many, took 10 to 15 %
longer; others as long (Zen 4).
"""

IN_PLACE_UNITS = 256
"""Up to so many in each hidden layer, the notebooks' passes go through the network in the caller's arrays, if these
hold whole vectors: f_k and h_k are not copied from a tile, nor h_k to one.

Both passes of 1,000 to 100,000 samples of 1-6x5-1 and 8-16x3-1 took 3 to 16 % less time so, of 16-64x4-4 up to 9; of
networks of 1024 units, 2 to 9 more, as rows of such arrays are too far apart for many to be in a cache.
"""

INPUT_COLUMNS = 128
"""Inputs, for each lane: where lanes share a tile and there are as many, each takes columns of the first layer's weight
gradient, else rows. For rows, each would read what the others have transposed.

32 and 64 samples of 784-100-10 took 4 % less time so, those of 784-100-100-100-10 up to 2 (two lanes, Zen 5).
"""

INPUT_BYTES = 1024
"""At most, from one row of the input to the next: if these hold whole vectors, they are read where they are, not copied
to a tile.

64 to 128 samples of 784-100-10 took 1 to 6 % less time so. Long rows of many inputs fall into few sets of a cache.
"""

FLUSH_TILES = 8
"""Tiles whose weight gradients are summed in the element type before they are added to sums in float64; or, of few
chunks that have no more each, to those of other chunks."""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, in which losses keep the weight of each sample and sums over the outputs."""

PREDICT, SEED, SQUARED_ERROR, SOFTMAX, BINARY = range(5)
"""What a sweep does at the output: copy it out; take the target for dl/df_K; take dl/df_K from the loss."""

UNITS_IN, UNITS_OUT, WEIGHTS_AT, BIASES_AT, ROW, PARTIAL_AT, BACK_ROW, TRANSPOSED_WEIGHTS_AT, TRANSPOSED_AT = range(9)
"""The columns of the table of a network's layers, see parameters.layout_table."""

ALL_WEIGHTS, ALL_BIASES, ALL_F, ALL_H, ALL_DL_DH, ALL_DL_DF = range(6)
"""The lists in a table of places, one behind the other, with a row for each layer: where an array is, and the strides
of its rows and columns.

The first two are always there, with zeros where the parameters are one vector (and no transposed weights beside them).
The others are of the notebooks' passes, arrays (D_{k+1}, N), and there two by two: all_f[k] and all_h[k + 1] (of the
last layer, the output again), written by the forward pass and read by the backward pass; all_dl_dh[k + 1] (of the last
layer, anything) and all_dl_df[k], written by the backward pass where they are wanted.
"""

AWAY, WAITING, CALLED, HERE, GO = range(5)
"""The states of a worker that may help with calls, see team."""

LINE = 8
STATE, LANE, RUN, LEAVE = range(0, 4 * LINE, LINE)
BOX, MOST_HELPERS = 4 * LINE, 63
"""What is in the row of a worker, see team."""
