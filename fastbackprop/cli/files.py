"""The files of the command line: networks and data in, gradients out.

Nothing is ever unpickled. Whatever is wrong with a file is a ValueError of one line that names it, or a TypeError
where it is the dtype of an array.
"""

import contextlib
import mmap
import os
import re
import secrets
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from fastbackprop.arguments.checks import FLOAT32, Array, DType, as_array

SHOWN = 6
"""Largest number of names of a file's arrays in an error."""

NAMES = "weights_{}", "biases_{}"
"""What the arrays of a network are called, {} being the number of the layer."""

DATA_NAMES = "net_input", "y"
"""What the arrays of a batch are called."""

TARGET = re.compile(r"(^|_)(y|targets?|labels?|class(es)?|outputs?)(_|$)", re.IGNORECASE)
"""Finds words in the name of an array that say that it is the target."""


def read_network(
    path: Path, dtype: DType | None = None, names: Sequence[str] = NAMES
) -> tuple[list[Array], list[Array]]:
    """all_weights and all_biases: the arrays of an .npz file with these names, from 0 or 1 up, and no others."""
    with _archive(path) as archive:
        found = _names(archive)
        first = next((k for k in (0, 1) for name in names if name.replace("{}", str(k)) in found), 0)
        patterns = [re.compile(re.escape(name).replace(r"\{\}", r"(\d{1,9})")) for name in names]
        numbers = [[int(match[1]) for name in found if (match := pattern.fullmatch(name))] for pattern in patterns]
        layers = max(map(len, numbers))
        expected = [name.replace("{}", str(first + k)) for k in range(max(layers, 1)) for name in names]
        hint = _other_names(found, names)
        if layers and max(map(max, filter(None, numbers))) >= first + layers:
            hint = "; layers are numbered from 0 or 1 without gaps: save them under new names"
        arrays = [_converted(array, name, dtype) for name, array in _members(path, archive, expected, hint)]
    return arrays[::2], arrays[1::2]


def read_data(
    paths: Sequence[Path], dtype: DType | None = None, rows: bool = False, names: Sequence[str] = DATA_NAMES
) -> tuple[Array, Array]:
    """net_input and y: the arrays of one .npz file with these names, or two .npy files, which stay on disk.

    Samples that are rows in the files become columns.
    """
    if names[0] == names[1]:
        raise ValueError(f"--data-names gives {names[0]!r} twice; expected two names, of net_input and of y")
    for path in paths:
        if path.suffix.lower() == ".csv":
            array = str(path.with_suffix(".npy"))
            remedy = f"np.save({array!r}, np.loadtxt({str(path)!r}, delimiter=','))"
            raise ValueError(f"{path} is not an .npy file; convert it with {remedy}")
    if len(paths) == 1 and paths[0].suffix == ".npy":
        raise ValueError(f"{paths[0]} is given alone; expected one .npz file or two .npy files, X.npy Y.npy")
    if len(paths) == 1:
        with _archive(paths[0]) as archive:
            arrays = list(_members(paths[0], archive, names, _other_data_names(_names(archive))))
    elif len(paths) == 2 and names is not DATA_NAMES:
        raise ValueError("--data-names is given for two .npy files; expected one .npz file: leave it out")
    elif len(paths) == 2:
        arrays = [(str(path), _mapped(path)) for path in paths]
    else:
        raise ValueError(f"{len(paths)} data files are given; expected one .npz file or two .npy files, X.npy Y.npy")
    (label, net_input), (y_label, y) = arrays
    if rows:
        net_input, y = net_input.T, y.T
    # Integers for y may be classes, and never count towards the dtype of the result.
    return _converted(net_input, label, dtype), _converted(y, y_label, dtype if y.dtype.kind == "f" else None)


def release_pages(arrays: Iterable[Array]) -> None:
    """Let go of what has been read of the arrays that lie on disk: it counts as memory of this process.

    The system keeps it while it has room, so that nothing is read from disk twice.
    """
    for array in arrays:
        mapping = _mapping(array)
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output file that could not be written, or would replace an input, before anything is computed."""
    with _naming(f"{path} cannot be written"):
        if path.exists():
            if not path.is_file():
                raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
            for other in inputs:
                if path.samefile(other):
                    raise ValueError("it is an input")
            if not os.access(path, os.W_OK):
                raise ValueError("it is read-only")
        with _temporary(path):
            pass


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file; after an error or an interrupt, the path is as it was before."""
    with _naming(f"{path} cannot be written"), _temporary(path) as file:
        # np.savez of NumPy 2.0 leaves its archive open after an error, and Python then prints more than one line.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, np.asarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
        file.close()  # Windows does not rename open files
        Path(file.name).replace(path.resolve())


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `path`, where links lead: gone at the end, unless it was renamed."""
    temporary = path.resolve().with_name(f".fastbackprop-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say in one line what could not be done, whatever is raised: what foreign bytes set off has no end of types."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{what}: {' '.join(reason.split())}") from error


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with contextlib.ExitStack() as stack:
        with _naming(f"{path} cannot be read as an .npz file"):
            archive = stack.enter_context(zipfile.ZipFile(path))
        yield archive


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _other_names(found: list[str], names: Sequence[str]) -> str:
    """What to pass for a file whose arrays have other names: those that its names suggest, or an example."""
    patterns = list(dict.fromkeys(re.sub(r"\d+(?=\D*$)", "{}", name) for name in found))
    if not found or set(patterns) & set(names):
        return ""
    if len(patterns) != 2 or not all("{}" in pattern for pattern in patterns):
        patterns = ["W{}", "b{}"]
    weights, biases = sorted(patterns, key=lambda pattern: "b" in pattern.lower())
    return f"; pass their names, as in --names {weights!r} {biases!r}"


def _other_data_names(found: list[str]) -> str:
    """What to pass for a batch whose arrays have other names: those of its two arrays, or an example."""
    targets = [name for name in found if TARGET.search(name)]
    names = sorted(found, key=targets.count) if len(found) == 2 and len(targets) == 1 else ["X", "Y"]
    return f"; pass their names, as in --data-names {' '.join(map(shlex.quote, names))}"


def _members(
    path: Path, archive: zipfile.ZipFile, expected: Sequence[str], hint: str = ""
) -> Iterator[tuple[str, Array]]:
    """The arrays of an archive that has these and no others, each with what an error calls it.

    Others are refused, because a name that is mistyped would be ignored, and with it a layer.
    """
    found = _names(archive)
    for name in expected:
        if name not in found:
            raise ValueError(f"{path} has no {name}; found {_listed(found)}{hint}")
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(f"{path} has {_listed(unknown)}; expected {_listed(expected)} and nothing else")
    for name in expected:
        label = f"{name} of {path}"
        with _naming(f"{label} cannot be read"), archive.open(f"{name}.npy") as member:
            array = npy.read_array(member, allow_pickle=False)
        as_array(array, label)
        yield label, array


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = [name if name.isprintable() else repr(name) for name in names[:SHOWN]]
    return ", ".join(shown) + more or "no arrays"


def _mapping(array: Array) -> mmap.mmap | None:
    """The file on disk that an array is a view of."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _mapped(path: Path) -> Array:
    with _naming(f"{path} cannot be read as an .npy file"), np.errstate(all="ignore"):  # its shape may overflow
        array = npy.open_memmap(path, mode="r")
    as_array(array, str(path))  # what it returns is no longer the array that can be told from one in memory
    return array


def _converted(array: Array, label: str, dtype: DType | None) -> Array:
    """An array as a dtype: one on disk only as far as the call converts it itself, slice by slice."""
    if dtype is None or array.dtype.newbyteorder("=") == dtype:
        return array
    if _mapping(array) is None:
        return array.astype(dtype)
    if dtype == FLOAT32:
        raise ValueError(
            f"{label} has dtype {array.dtype}; expected float32, because .npy files are not narrowed: "
            "save it as float32, or save both arrays in one .npz file"
        )
    return array
