"""The number of threads of a call: set by the user or the environment, and limited by this process's processors."""

import functools
import math
import os
from pathlib import Path

SETTING = "FASTBACKPROP_NUM_THREADS"
SURROUNDINGS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"
"""Variables that joblib, Dask and schedulers set in their workers."""

CGROUPS = Path("/sys/fs/cgroup")


def threads_setting() -> int | None:
    """FASTBACKPROP_NUM_THREADS, or None where it is not set."""
    if SETTING not in os.environ:  # half a microsecond faster than `get`
        return None
    setting = os.environ[SETTING].strip()
    if not setting:
        return None
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(f"{SETTING} is {setting!r}; expected a whole number from 1 up")
    return int(setting)


def available_threads() -> int:
    """FASTBACKPROP_NUM_THREADS, or the smallest limit of the surroundings."""
    return threads_setting() or min(thread_limits().values())


def decided_by() -> str:
    """The limit that available_threads follows: a variable, the CPU affinity or the CPU quota."""
    found = thread_limits()
    return SETTING if threads_setting() else min(found, key=lambda name: found[name])


def thread_limits() -> dict[str, int]:
    """The limits of the number of threads if the user has not set it, by name."""
    return surroundings() | processor_limits()


@functools.cache
def surroundings() -> dict[str, int]:
    """The limits in SURROUNDINGS, read once, as OpenMP and numba do. Invalid values are ignored."""
    found = {name: os.environ.get(name, "").partition(",")[0].strip() for name in SURROUNDINGS}  # OpenMP knows "4,2"
    return {name: int(first) for name, first in found.items() if first.isdecimal() and int(first) > 0}


def processors() -> int:
    """The number of processors this process may use."""
    return min(processor_limits().values())


def processor_limits() -> dict[str, int]:
    """The limits of the number of processors: the thread's affinity, and a CPU quota of the cgroup, rounded up."""
    share = quota()
    return {"CPU affinity": affinity()} | ({} if share is None else {"CPU quota": share})


def affinity() -> int:
    """The number of processors that the calling thread may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def quota() -> int | None:
    """The processors that the cgroup of this process may use at once, rounded up; None if there is no quota."""
    try:
        lines = Path("/proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    groups = [line.split(":", 2)[1:] for line in lines if line.count(":") >= 2]
    shares = [share for controllers, path in groups for share in shares_of(controllers, path)]
    return max(math.ceil(min(shares)), 1) if shares else None


def shares_of(controllers: str, path: str) -> list[float]:
    """The quotas of a cgroup and its parents, in processors. Within a container, the path may be the host's."""
    version_1 = "cpu" in controllers.split(",")
    if controllers and not version_1:
        return []
    root = CGROUPS / "cpu" if version_1 else CGROUPS
    inner = root / path.lstrip("/")
    folders = [inner, *inner.parents]
    return [share for folder in folders if folder.is_relative_to(root) and (share := share_of(folder)) is not None]


def share_of(folder: Path) -> float | None:
    """The quota of one cgroup, of version 2 or 1."""
    for names in ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        try:
            limit, period = " ".join((folder / name).read_text() for name in names).split()
            if limit.isdecimal() and int(period) > 0:
                return int(limit) / int(period)
        except (OSError, ValueError):
            continue
    return None
