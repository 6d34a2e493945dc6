"""How many threads a call may have: the variable, the affinity, and the CPU quota of a cgroup."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastbackprop.cli import main
from fastbackprop.parallel import cpus, workers


@pytest.fixture
def cgroups(monkeypatch, tmp_path):
    """A file system of cgroups that a test fills, and the lines of /proc/self/cgroup."""

    def fill(lines, files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(cpus, "CGROUPS", tmp_path)
        read_text = Path.read_text
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda path, **options: lines if str(path) == "/proc/self/cgroup" else read_text(path, **options),
        )
        cpus.quota.cache_clear()
        return cpus.quota()

    yield fill
    cpus.quota.cache_clear()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("nonsense", None)],
)
def test_version_2(cgroups, limit, expected):
    assert cgroups("0::/user/job\n", {"user/job/cpu.max": limit}) == expected


def test_the_smallest_quota_around_counts(cgroups):
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000", "a/b/c/cpu.max": "max 100000"}
    assert cgroups("0::/a/b/c\n", files) == 1


def test_within_a_container_the_path_may_be_that_of_the_host(cgroups):
    assert cgroups("0::/../host/path\n", {"cpu.max": "300000 100000"}) == 3


GROUP = f"fastbackprop-test-{os.getpid()}"


@pytest.mark.skipif(cpus.affinity() == 1, reason="needs two processors")
@pytest.mark.parametrize(
    ("folder", "file", "limit"),
    [("cpu", "cpu.cfs_quota_us", "100000"), ("", "cpu.max", "100000 100000")],
    ids=["version 1", "version 2"],
)
def test_a_group_of_this_machine(folder, file, limit):
    """A process in a real cgroup with a quota of one processor uses one thread."""
    group = cpus.CGROUPS / folder / GROUP
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        if not (group / file).exists():
            pytest.skip(f"cgroups have no {file}")
        (group / file).write_text(limit)
        join = f"echo $$ > {group / 'cgroup.procs'} && exec {shlex.quote(sys.executable)} -m fastbackprop info"
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        done = subprocess.run(["sh", "-c", join], check=True, capture_output=True, text=True, env=environment)
        assert re.search(r"^threads +1 on \d+ processors?, decided by CPU quota$", done.stdout, re.MULTILINE)
    finally:
        group.rmdir()


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("250000", 3)])
def test_version_1(cgroups, quota, expected):
    files = {"cpu/job/cpu.cfs_quota_us": quota, "cpu/job/cpu.cfs_period_us": "100000"}
    assert cgroups("4:cpu,cpuacct:/job\n3:memory:/job\n0::/\n", files) == expected


def test_lines_of_another_form_say_nothing(cgroups):
    assert cgroups("nonsense\n1:2\n0::/\udcff\n", {}) is None


def test_without_cgroups(cgroups, monkeypatch):
    assert cgroups("", {}) is None
    monkeypatch.setattr(Path, "read_text", lambda path, **_: path.stat() and "")
    monkeypatch.setattr(cpus, "Path", lambda _path: Path("nowhere"))
    cpus.quota.cache_clear()
    assert cpus.quota() is None


def test_the_quota_bounds_the_processors(monkeypatch):
    allowed = cpus.processors()
    monkeypatch.setattr(cpus, "quota", lambda: 1)
    assert cpus.processors() == 1
    monkeypatch.setattr(cpus, "quota", lambda: 10**6)
    assert cpus.processors() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    assert allowed <= cpus.processors()


@pytest.fixture
def surroundings(monkeypatch):
    """A process that may run on 8 processors, and the variables of a test."""

    def have(quota=None, **variables):
        for name in cpus.SETTING, *cpus.SURROUNDINGS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(cpus, "affinity", lambda: 8)
        monkeypatch.setattr(cpus, "quota", lambda: quota)
        cpus.surroundings.cache_clear()

    yield have
    cpus.surroundings.cache_clear()


@pytest.mark.parametrize(
    ("found", "expected", "decided_by"),
    [
        ({}, 8, "CPU affinity"),
        ({"quota": 3}, 3, "CPU quota"),
        ({"quota": 9}, 8, "CPU affinity"),
        ({"OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, 4, "OMP_NUM_THREADS"),
        ({"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "4"}, 2, "NUMBA_NUM_THREADS"),
        ({"NUMBA_NUM_THREADS": "4", "OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4", "quota": 3}, 3, "CPU quota"),
        ({"OMP_NUM_THREADS": "64"}, 8, "CPU affinity"),
        ({"OMP_NUM_THREADS": "dynamic", "NUMBA_NUM_THREADS": "0"}, 8, "CPU affinity"),
        ({"FASTBACKPROP_NUM_THREADS": " ", "OMP_NUM_THREADS": ""}, 8, "CPU affinity"),
        ({"FASTBACKPROP_NUM_THREADS": "5", "OMP_NUM_THREADS": "2", "quota": 3}, 5, "FASTBACKPROP_NUM_THREADS"),
    ],
)
def test_what_decides_the_number_of_threads(found, expected, decided_by, surroundings, capsys):
    surroundings(**found)
    assert (cpus.available_threads(), cpus.decided_by()) == (expected, decided_by)
    assert main.main(["info"]) == 0
    line = f"threads       {expected} on {os.cpu_count()} processors, decided by {decided_by}\n"
    assert line in capsys.readouterr().out


def test_an_argument_decides_before_all_variables(surroundings, capsys):
    surroundings(FASTBACKPROP_NUM_THREADS="5", OMP_NUM_THREADS="2")
    assert workers.count_threads(7, 100) == 7
    assert main.main(["info", "--threads", "7"]) == 0
    assert f"threads       7 on {os.cpu_count()} processors, decided by --threads\n" in capsys.readouterr().out
