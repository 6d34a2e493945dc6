"""Compiled kernels on disk: one file each, named by a hash of everything that its machine code depends on.

A file is never changed. It is written under another name and renamed, so that other processes find all of it or
nothing. It begins with a checksum, which is verified before anything else is read. A folder or file that other users
could have written is refused.

Whatever fails, the kernel is compiled in memory. The first failure of a process is a warning with the folder and the
reason.
"""

import contextlib
import functools
import hashlib
import importlib.resources
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

KEPT_FILES = 500
"""Largest number of files in the folder: the newest stay. All kernels of both dtypes are 46 files and 1.4 MB."""

CHECKSUM_BYTES = 32

USER_CACHES = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
"""The environment variable that names the folder of a user's caches, and where it is at home without that variable."""

_one_at_a_time = threading.RLock()

failed = threading.Event()
"""Set at the first failure of this process."""


def fetch(
    name: Callable[[], str],
    make: Callable[[], Made],
    dump: Callable[[Made], bytes],
    load: Callable[[bytes], Made],
    keeping: Callable[[], AbstractContextManager[None]],
) -> Made:
    """The kernel that `load` reads from the file of that name, or that `make` makes and `dump` writes there.

    keeping: the context in which a kernel is made that is written to a file.
    """
    with _one_at_a_time, contextlib.ExitStack() as stack:
        try:
            path = folder() / name()
            content = read(path)
            if content is not None:
                return load(content)
            stack.enter_context(keeping())
        except Exception as error:  # numba raises anything for what it does not know
            _warn(error)
            return make()
        made = make()
        try:
            content = dump(made)
            if read_sources() == source_digest():  # otherwise the package was changed under this process
                write(path, content)
        except Exception as error:
            _warn(error)
        return made


def wanted_folder() -> Path:
    """The folder for kernels: in NUMBA_CACHE_DIR if it is set, otherwise among the user's caches."""
    variable, standard = USER_CACHES.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    parent = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get(variable) or Path.home() / standard
    return Path(parent).absolute() / "fastbackprop"


def folder() -> Path:
    """The folder for kernels, made if it is missing. Raises OSError or RuntimeError if there is no trusted folder."""
    path = wanted_folder()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_what_others_write(path, path.stat())
    return path


def read(path: Path) -> bytes | None:
    """The content of a file; None if there is no such file, or if its checksum is wrong."""
    try:
        with path.open("rb") as file:
            _refuse_what_others_write(path, os.fstat(file.fileno()))
            written = file.read()
    except FileNotFoundError:
        return None
    content = written[CHECKSUM_BYTES:]
    return content if written[:CHECKSUM_BYTES] == _checksum(path, content) else None


def write(path: Path, content: bytes) -> None:
    """Write content to a file, or replace it. Removes the oldest files of the folder."""
    handle, name = tempfile.mkstemp(suffix=".nbc", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_checksum(path, content) + content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # another process may be removing them
        for old in sorted(path.parent.glob("*.nbc"), key=lambda old: old.stat().st_mtime)[:-KEPT_FILES]:
            old.unlink()


@functools.cache
def source_digest() -> str:
    """The digest of the package's sources at the first call, which is before any kernel is compiled."""
    return read_sources()


def read_sources() -> str:
    """A digest of all sources of the package. Its loader finds them: they may be in a .zip."""
    found, places = [], [importlib.resources.files(__package__.partition(".")[0])]
    for place in places:
        for entry in sorted(place.iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                found.append((place.name, entry.name, entry.read_bytes()))
            elif entry.is_dir():
                places.append(entry)
    if not found:
        raise FileNotFoundError("the package has no sources that would tell its versions apart")
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _checksum(path: Path, content: bytes) -> bytes:
    """The checksum of content and name, so that a renamed file is not read as another kernel."""
    return hashlib.sha256(path.name.encode() + content).digest()


def _refuse_what_others_write(path: Path, status: os.stat_result) -> None:
    """Refuse files of other users, because machine code runs unchecked. root is allowed: it could change Python too."""
    if hasattr(os, "geteuid") and (status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022):
        raise PermissionError(f"other users can write to {path}")


def _warn(error: Exception) -> None:
    if failed.is_set():
        return
    failed.set()
    try:
        place = f"in {wanted_folder()}"
    except RuntimeError:
        place = "of this user"
    warnings.warn(
        f"The cache of compiled kernels {place} cannot be used: {str(error) or type(error).__name__}. "
        "Kernels are compiled again in every process. Set NUMBA_CACHE_DIR to a folder that only you can write to.",
        RuntimeWarning,
        stacklevel=2,
    )
