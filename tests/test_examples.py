"""Every example, as people run it: in a process of its own, from a folder where it may leave a picture."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "swap_the_import.py": ["matplotlib"],
    "digits.py": ["matplotlib", "sklearn", "tqdm"],
    "private_digits.py": ["matplotlib", "sklearn"],
    "outliers.py": ["matplotlib", "sklearn"],
    "lbfgs.py": ["matplotlib", "scipy"],
    "scikit_learn.py": ["matplotlib", "sklearn"],
    "pytorch.py": ["matplotlib", "torch"],
    "shattered_gradients.py": ["matplotlib"],
    "bigger_than_memory.py": ["dask", "distributed", "matplotlib", "scipy", "zarr"],
}


def run(name, folder, *arguments):
    """What an example prints; a picture of its name is left in the folder if it draws one."""
    missing = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed, see the extras `examples` and `torch`")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    picture = folder / name.replace(".py", ".png")
    if "matplotlib" in NEEDS[name]:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000
    return done.stdout


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(NEEDS)
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 75


def test_swap_the_import(tmp_path):
    printed = run("swap_the_import.py", tmp_path)
    errors = re.findall(r"^(NumPy|import swapped|fused calls) +(0\.0\d+) .* s .*x$", printed, re.MULTILINE)
    assert len(errors) == 3
    assert len({error for _, error in errors}) == 1


def test_digits(tmp_path):
    printed = run("digits.py", tmp_path)
    assert float(re.search(r"held-out digits: ([\d.]+)%", printed)[1]) >= 97


def test_private_digits(tmp_path):
    """Noise costs accuracy, but not much."""
    printed = run("private_digits.py", tmp_path)
    private, plain = map(float, re.search(r"held-out digits: ([\d.]+)%, ([\d.]+)% without", printed).groups())
    assert 90 < private < plain
    assert plain >= 97


def test_outliers(tmp_path):
    printed = run("outliers.py", tmp_path)
    wrong, found, precision = re.search(
        r"^(\d+) of 1797 labels are wrong\nof the (\d+) digits .*, ([\d.]+)% have a wrong label", printed
    ).groups()
    assert wrong == found
    assert float(precision) >= 85


def test_lbfgs(tmp_path):
    printed = run("lbfgs.py", tmp_path)
    errors = [float(text) for text in re.findall(r"mean squared error ([\d.]+)", printed)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1.1 * 0.09 < errors[0]
    assert float(re.search(r"distance to the truth: ([\d.]+)", printed)[1]) < 0.1


def test_scikit_learn(tmp_path):
    printed = run("scikit_learn.py", tmp_path)
    rows = re.findall(r"^(scikit-learn|fastbackprop) +[\d.]+ s +([\d.]+) +([\d.]+)% +(\S+)$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["scikit-learn", "fastbackprop"]
    assert rows[0][1:] == rows[1][1:]
    assert float(rows[0][2]) > 95


def test_pytorch(tmp_path):
    printed = run("pytorch.py", tmp_path)
    rows = re.findall(r"^(plain module|accelerated|fused loss) +(0\.\d+) +([\d.]+)% .* s .*x$", printed, re.MULTILINE)
    assert len(rows) == 3
    assert len({loss for _, loss, _ in rows}) == 1
    assert all(float(accuracy) > 95 for *_, accuracy in rows)


def test_shattered_gradients(tmp_path):
    """Autocorrelation falls with the distance, and with the depth at each distance."""
    printed = run("shattered_gradients.py", tmp_path)
    table = [list(map(float, row)) for row in re.findall(r"layers? +(\S+) +(\S+) +(\S+)$", printed, re.MULTILINE)]
    assert len(table) == 3
    for line in [*table, *zip(*table, strict=True)]:
        assert list(line) == sorted(set(line), reverse=True)
    assert table[0][1] > 0.6
    assert table[-1][1] < 0.2


def test_bigger_than_memory(tmp_path):
    printed = run("bigger_than_memory.py", tmp_path, "0.02")
    assert re.search(r"^dashboard: http://\S+/status$", printed, re.MULTILINE)
    assert "555,556 samples in 3 chunks" in printed
    assert "100% Completed" in printed
    errors = [float(text) for text in re.findall(r"mean squared error ([\d.]+)", printed)]
    assert errors[-1] < 0.5 * errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["bigger_than_memory.png"]
