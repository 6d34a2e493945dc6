"""What figures were measured on, and when."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
from pathlib import Path

import fastbackprop
from benchmarks import peak
from fastbackprop.parallel.cpus import available_threads

VERSIONS = ["numba", "numpy", "torch", "jax", "scikit-learn", "opacus", "dask"]
THREAD_VARIABLES = ["FASTBACKPROP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]


def save(file, command, results, **measured):
    """Write a file of results, one to a line, behind what they were measured on."""
    head = json.dumps(_rounded(describe(command) | measured), indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(_rounded(result)) for result in results)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(f'{head},\n "results": [\n{lines}\n]}}\n', encoding="utf-8")


def describe(command):
    """The machine, versions, command and date."""
    return {
        "processor": processor(),
        "processors": available_threads(),
        "vector_bits": 8 * peak.vector_bytes(),
        "flags": flags(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"fastbackprop": fastbackprop.__version__}
        | {name: version for name in VERSIONS if (version := _version(name))},
        "environment": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "command": shlex.join(["python", "-m", *command]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def sentence(described):
    """The same in one sentence, for a document."""
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    processors = "1 processor" if described["processors"] == 1 else f"{described['processors']} processors"
    return (
        f"Measured on {described['date']} on {processors}, {described['processor']} with "
        f"{described['vector_bits']}-bit vectors; Python {described['python']}, {versions}."
    )


def processor():
    """Its name, with the numbers that tell its generation where the system has them."""
    lines = _cpu_lines()
    name = lines.get("model name") or platform.processor() or platform.machine()
    generation = [f"{key} {lines[key]}" for key in ("cpu family", "model") if key in lines]
    return f"{name} ({', '.join(generation)})" if generation else name


def flags():
    """The instruction sets that matter here."""
    words = _cpu_lines().get("flags", _cpu_lines().get("Features", "")).split()
    return [word for word in words if word.startswith(("sse4", "avx", "fma", "asimd", "sve"))]


def _rounded(value):
    """The same with floats of four digits."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cpu_lines():
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    first = file.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
