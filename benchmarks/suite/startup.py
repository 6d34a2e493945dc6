"""What a new process waits for: the import, and the first call with nothing compiled (cold) or everything (warm)."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

IMPORT = "import fastbackprop"
FIRST_CALL = """
import numpy, time, fastbackprop
start = time.perf_counter()
fastbackprop.loss_and_gradients(numpy.ones((1, 100)), [numpy.ones((1, 1))], [numpy.zeros((1, 1))], 0.0)
print(time.perf_counter() - start)
"""


def run(code, cache):
    """What a process prints whose kernels are cached in that folder; an error where it fails."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(Path(cache).resolve())}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


class Import:
    number, repeat, warmup_time = 1, 5, 0

    def time_interpreter(self):
        run("", ".")

    def time_import_numpy(self):
        run("import numpy", ".")

    def time_import(self):
        run(IMPORT, ".")

    def peakmem_import(self):
        import fastbackprop  # noqa: F401


class FirstCall:
    def setup_cache(self):
        """The cold call; asv keeps this folder for the warm ones."""
        return float(run(FIRST_CALL, "kernels"))

    def track_cold(self, cold):
        return cold

    def track_warm(self, _cold):
        return statistics.median(float(run(FIRST_CALL, "kernels")) for _ in range(5))

    setup_cache.timeout = 600
    track_cold.unit = track_warm.unit = "seconds"
