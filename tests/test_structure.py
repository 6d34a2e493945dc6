"""The layers of the code: which file may import which, and that phases are compiled within passes alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fastbackprop"
FLOORS = [
    [
        "reference.py",
        "lean.py",
        "kernels/__init__.py",
        "losses/__init__.py",
        "parallel/__init__.py",
        "passes/__init__.py",
    ],
    ["engine/__init__.py", "arguments/__init__.py", "cli/__init__.py", "parallel/boxes.py", "parallel/cpus.py"],
    ["arguments/checks.py", "engine/limits.py", "engine/layout.py", "engine/plan.py"],
    ["kernels/"],
    ["parallel/"],
    ["losses/"],
    ["passes/"],
    ["arguments/"],
    ["engine/"],
    ["gradients.py", "notebook.py", "workspace.py", "packing.py", "checking.py", "per_sample.py"],
    ["__init__.py"],
    ["cli/"],
    ["__main__.py"],
]
"""From the ground up: a file imports files of its own floor and of those below, but for adapters."""


def floor(file):
    """The floor of a file: by its name, or by its room."""
    for number, names in enumerate(FLOORS):
        if file in names:
            return number
    return next(number for number, names in enumerate(FLOORS) if f"{file.split('/')[0]}/" in names)


def imported(file):
    """The package's files that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastbackprop":
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] == "fastbackprop"]
        for module in modules:
            path = "/".join(module.split(".")[1:])
            for candidate in (f"{path}.py", f"{path}/__init__.py") if path else ("__init__.py",):
                if (ROOT / candidate).is_file():
                    yield candidate


FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
ADAPTERS = ["sklearn.py", "torch.py", "dask.py"]


@pytest.mark.parametrize("file", [file for file in FILES if file not in ADAPTERS])
def test_no_file_imports_a_file_above_it(file):
    above = [other for other in imported(file) if floor(other) > floor(file)]
    # The package itself is imported by whoever imports a part of it.
    assert [other for other in above if other != "__init__.py"] == []


def test_there_is_no_circle():
    graph = {file: {other for other in imported(file) if other not in (file, "__init__.py")} for file in FILES}
    left = dict(graph)
    while left:
        free = [file for file, others in left.items() if not others & left.keys()]
        assert free, f"these import each other: {sorted(left)}"
        for file in free:
            del left[file]


@pytest.mark.parametrize("file", [file for file in FILES if file != "__main__.py" and file not in ADAPTERS])
def test_each_file_can_be_imported_first(file):
    module = ".".join(["fastbackprop", *Path(file).with_suffix("").parts]).removesuffix(".__init__")
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=60)


def test_phases_are_compiled_within_passes_alone():
    code = """
import numba, fastbackprop
fastbackprop.warmup("float64")
import importlib, pkgutil
from fastbackprop import losses, parallel, passes
packages = losses, parallel, passes
files = [file for package in packages for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
modules = [importlib.import_module(file.name) for file in files]
values = {name: value for module in modules for name, value in vars(module).items()}
names = {name: value for name, value in values.items() if hasattr(value, "signatures")}
assert {"forward", "meet", "squared_error"} <= names.keys(), names
print(sorted(name for name, phase in names.items() if phase.signatures))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n"
