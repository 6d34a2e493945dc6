"""The box of a worker, see team: a row of int64, whose columns are a cache line wide.

The table of boxes may begin anywhere in a cache line: NumPy aligns arrays to 16 bytes. Threads look at a state while
they wait. No other number of the table that is in use shares its line. The state of the first box may share its line
with the memory before the table. LEAVE may share a line with the last number of RUN, depending on the address. This
costs a worker at most one more cache miss a call, because RUN is written once a call.
"""

AWAY, WAITING, CALLED, HERE, GO = range(5)
LINE = 8
STATE, THREAD, RUN, LEAVE = range(0, 4 * LINE, LINE)
BOX = 4 * LINE
