"""Compiled code: register tiles, the products of a layer, what is done to rows, records, and how all is compiled.

Importing this compiles nothing, and imports no numba.
"""

CACHE_LINE = 64
