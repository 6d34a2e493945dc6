"""The box of a worker, see team: columns of a row of int64, each on a cache line of its own."""

AWAY, WAITING, CALLED, HERE, GO = range(5)
LINE = 8
STATE, THREAD, RUN, LEAVE = range(0, 4 * LINE, LINE)
BOX = 4 * LINE
