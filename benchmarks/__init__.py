"""Performance, tracked and seen.

suite               what asv tracks from commit to commit
check_regression    two commits, round by round: fails on a slowdown
compare             this package beside other libraries
per_sample          what each sample says, beside the gradient and other libraries
growth, products    how cost grows; the products of one layer alone
document            charts, and the tables in README.md and docs/performance.md, from what these three have measured
cases, timing, peak, machine, libraries, memory   what they share
"""
