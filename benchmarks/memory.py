"""How much the peak memory of a process grows while one gradient is taken, its arguments in place.

    python -m benchmarks.memory LIBRARY CASE DTYPE THREADS

Printed in MB. Before, the same library has taken the gradient of a few samples, so that what is loaded or compiled
once is not counted. Each library is measured in a process of its own: memory that one gives back hides what another
takes.
"""

import contextlib
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.cases import Case, arguments
from benchmarks.libraries import LIBRARIES

FEW = 64


def growth(library, case, dtype, threads):
    """In MB, measured in a new process; None where the system cannot tell, or the library cannot do it."""
    command = [sys.executable, "-m", "benchmarks.memory", library, *map(str, dataclasses.astuple(case))]
    done = subprocess.run([*command, dtype, str(threads)], capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def peak():
    """The largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts from the size of the process that has started this one
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def grown(call):
    """How much the peak memory of this process grows during a call, in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # on Linux, the peak starts from now
    before = peak()
    call()
    return peak() - before


def main():
    """Measure in this process."""
    library, *numbers, dtype, threads = sys.argv[1:]
    case = Case(*map(int, numbers))
    make = LIBRARIES[library].gradient
    few = dataclasses.replace(case, samples=min(FEW, case.samples))
    make(few, dtype, arguments(few, dtype), int(threads))()
    print(grown(make(case, dtype, arguments(case, dtype), int(threads))))


if __name__ == "__main__":
    main()
