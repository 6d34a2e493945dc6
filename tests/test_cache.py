"""Compiled kernels on disk: whatever happens to them, results are right."""

import ctypes
import errno
import functools
import io
import logging
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import llvmlite
import numba
import numpy as np
import pytest
from numba import types
from numba.core import codegen, compiler, runtime

from fastbackprop.kernels import cache, jit
from tests.test_package import COMPILED, GRADIENT, ROOT, run

POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of POSIX")
SIGNATURE = types.int64(types.int64)
COMPILERS = pytest.mark.parametrize("compiler", [jit.compile_entry, jit.compile_callback])


def multiply_by(factor, compiler=jit.compile_entry, signature=SIGNATURE):
    """A kernel as small as can be, asked for as in a new process."""

    def multiply(x):
        return factor * x

    return compiler(multiply, signature)


def call(kernel):
    """What a kernel or a callback gives for 5."""
    return kernel(5) if callable(kernel) else ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(kernel.address)(5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, for this process and those that it starts; nothing has failed yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "failed", threading.Event())
    return tmp_path / "cache" / "fastbackprop"


@pytest.fixture
def compiled(monkeypatch):
    """The names of functions that this process compiles, but those of numba."""
    names = []

    def watch(*arguments, original, **options):
        def compile_it(function):
            if not function.__module__.startswith("numba."):
                names.append(function.__name__)
            return original(*arguments, **options)(function)

        return compile_it

    for name in "njit", "cfunc":
        monkeypatch.setattr(numba, name, functools.partial(watch, original=getattr(numba, name)))
    return names


@pytest.fixture
def assert_in_memory(compiled):
    """A check that kernels are compiled at each use, with one warning, which names the folder and the reason."""

    def check(folder, reason, compiler=jit.compile_entry):
        cache.failed.clear()
        before = len(compiled)
        with pytest.warns(RuntimeWarning) as warned:
            got = [call(multiply_by(factor, compiler)) for factor in (3, 3, 4)]
        assert got == [15, 15, 20]
        assert len(compiled) == before + 3
        (text,) = (str(warning.message) for warning in warned)
        assert text.startswith(f"The cache of compiled kernels in {folder} cannot be used: ")
        assert reason in text
        assert text.endswith(" Set NUMBA_CACHE_DIR to a folder that only you can write to.")

    return check


def test_kernels_are_compiled_once(folder, compiled):
    for _ in range(2):
        assert multiply_by(3)(5) == 15
        assert multiply_by(3, signature=types.float64(types.float64))(0.5) == 1.5
        assert multiply_by(4)(5) == 20
    assert len(compiled) == len(list(folder.iterdir())) == 3


def test_callbacks_are_compiled_once(folder, compiled):
    for _ in range(2):
        assert call(multiply_by(3, jit.compile_callback)) == 15
        assert call(multiply_by(4, jit.compile_callback)) == 20
    assert len(compiled) == len(list(folder.iterdir())) == 2


DAMAGE = {
    "empty": lambda *_: b"",
    "cut within the checksum": lambda content, _: content[:10],
    "cut in half": lambda content, _: content[: len(content) // 2],
    "zeros": lambda content, _: bytes(len(content)),
    "garbage": lambda content, _: bytes(range(256)) * (len(content) // 256 + 1),
    "one bit": lambda content, _: content[:-99] + bytes([content[-99] ^ 1]) + content[-98:],
    "something behind": lambda content, _: content + b"more",
    "another kernel's": lambda _, other: other,
}


@COMPILERS
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_written_again(kind, compiler, folder, compiled):
    multiply_by(4, compiler)
    (other,) = folder.iterdir()
    multiply_by(3, compiler)
    (file,) = set(folder.iterdir()) - {other}
    file.write_bytes(DAMAGE[kind](file.read_bytes(), other.read_bytes()))
    for _ in range(2):
        assert call(multiply_by(3, compiler)) == 15
    assert len(compiled) == 3


def test_the_newest_files_stay(folder, monkeypatch):
    monkeypatch.setattr(cache, "KEPT_FILES", 3)
    folder.mkdir(mode=0o700, parents=True)
    for age in range(5):
        file = folder / f"old-{age}.nbc"
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    multiply_by(3)
    names = sorted(file.name for file in folder.iterdir())
    assert [name.partition("-")[0] for name in names] == ["multiply", "old", "old"]
    assert names[1:] == ["old-0.nbc", "old-1.nbc"]


@COMPILERS
@pytest.mark.parametrize(
    ("owner", "method", "kept"),
    [
        (codegen.JITCodeLibrary, "_finalize_specific", 0),
        (codegen.CodeLibrary, "_get_compiled_object", 0),
        (codegen.JITCPUCodegen, "unserialize_library", 1),
    ],
)
def test_an_interrupt_in_a_callback_of_llvm_is_an_interrupt(owner, method, kept, compiler, folder, monkeypatch):
    """While a kernel is compiled, written or loaded. What a callback raises, ctypes only prints."""

    @ctypes.CFUNCTYPE(None)
    def interrupt():
        raise KeyboardInterrupt

    def interrupted(*arguments):
        interrupt()
        return original(*arguments)

    if kept:
        multiply_by(3, compiler)
    original = getattr(owner, method)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            multiply_by(3, compiler)
    assert len(list(folder.iterdir())) == kept
    assert call(multiply_by(3, compiler)) == 15


@pytest.mark.parametrize("module", [numba, llvmlite, np])
def test_other_versions_have_files_of_their_own(module, folder, compiled, monkeypatch):
    multiply_by(3)
    with monkeypatch.context() as patch:
        patch.setattr(module, "__version__", "2.99.0")
        assert multiply_by(3)(5) == 15
    assert multiply_by(3)(5) == 15
    assert len(compiled) == len(list(folder.iterdir())) == 2


VALUES = 1, 1.0, np.float32(1), True, "1", b"1", None, (1, 2), (1, (2,)), np.dtype("f4"), types.float32, types.float64


def test_kernels_differ_by_what_their_closures_hold(folder, compiled):
    def close_over(value):
        def add(x):
            return x + (0 if value is None else 1)

        return add

    def call_closure_over(value):
        called = jit.phase(close_over(value))

        def calling(x):
            return called(x)

        return calling

    for _ in range(2):
        for value in VALUES:
            for maker in close_over, call_closure_over:
                assert jit.compile_entry(maker(value), SIGNATURE)(5) == (5 if value is None else 6)
    assert len(compiled) == len(list(folder.iterdir())) == 2 * len(VALUES)


def test_closures_without_a_meaning_in_another_process(folder, compiled):
    array = np.arange(3)

    def add(x):
        return x + array[2]

    with pytest.warns(RuntimeWarning, match=r"closure of a kernel holds array\(\[0, 1, 2\]\)"):
        assert jit.compile_entry(add, SIGNATURE)(5) == 7
    assert compiled == ["add"]
    assert not list(folder.iterdir())


ADD_TWO = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda x: x + 2)


def test_kernels_that_hold_addresses_of_this_process(folder):
    def add(x):
        return ADD_TWO(x)

    with pytest.warns(RuntimeWarning, match="a kernel holds addresses"):
        assert jit.compile_entry(add, SIGNATURE)(5) == 7
    assert not list(folder.iterdir())


@POSIX
def test_files_are_for_the_user_alone(folder):
    before = os.umask(0)
    try:
        multiply_by(3)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600]


@POSIX
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(mode, folder, compiled, assert_in_memory):
    multiply_by(3)
    folder.chmod(mode)
    assert_in_memory(folder, f"other users can write to {folder}")
    assert jit.cache_folder() is None
    folder.chmod(0o700)
    assert jit.cache_folder() == str(folder)
    before = len(compiled)
    assert multiply_by(3)(5) == 15
    assert len(compiled) == before


@POSIX
def test_files_that_others_can_write_to_are_refused(folder, assert_in_memory):
    for factor in 3, 4:
        multiply_by(factor)
    for file in folder.iterdir():
        file.chmod(0o666)
    assert_in_memory(folder, f"other users can write to {folder}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_other_users_is_refused(folder, assert_in_memory):
    for factor in 3, 4:
        multiply_by(factor)
    files = list(folder.iterdir())
    for paths in files, [folder]:
        for path in paths:
            os.chown(path, 12345, 12345)
        assert_in_memory(folder, f"other users can write to {folder}")
        for path in paths:
            os.chown(path, 0, 0)


HOME = "HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA"


def test_without_a_setting_files_are_among_the_users_caches(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    for name in HOME:
        monkeypatch.setenv(name, str(tmp_path / "home"))
    multiply_by(3)
    (file,) = (tmp_path / "home").rglob("*.nbc")
    assert jit.cache_folder() == str(file.parent)
    assert not folder.exists()


@pytest.mark.parametrize("names", [["NUMBA_CACHE_DIR"], HOME])
def test_no_folder_can_be_made(names, folder, monkeypatch, assert_in_memory):
    """There is a file in its place."""
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    folder.parent.touch()
    for name in names:
        monkeypatch.setenv(name, str(folder.parent))
    assert_in_memory(cache.wanted_folder(), str(folder.parent))
    assert jit.cache_folder() is None


@pytest.mark.usefixtures("folder")
def test_without_a_home(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in "NUMBA_CACHE_DIR", *HOME:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.warns(RuntimeWarning, match="of this user cannot be used: Could not determine home directory"):
        assert multiply_by(3)(5) == 15
    assert jit.cache_folder() is None


@COMPILERS
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full(number, compiler, folder, monkeypatch, assert_in_memory):
    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:1000])
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", Full)
        assert_in_memory(folder, os.strerror(number), compiler)
    assert not list(folder.iterdir())


def test_a_file_that_outgrows_a_limit(folder, assert_in_memory):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert_in_memory(folder, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(folder.iterdir())


PARTS_TO_WRITE = {
    "targets": lambda patch: patch.setattr(codegen.JITCPUCodegen, "magic_tuple", None),
    "numbers of functions": lambda patch: patch.setitem(sys.modules, "numba.core.bytecode", None),
    "states": lambda patch: patch.delattr(compiler.CompileResult, "_reduce"),
}
PARTS_TO_READ = {
    "states": lambda patch: patch.delattr(compiler.CompileResult, "_rebuild"),
    "run time": lambda patch: patch.delattr(runtime, "rtsys"),
}


@pytest.mark.parametrize("part", PARTS_TO_WRITE)
def test_files_cannot_be_written_with_another_numba(part, folder, monkeypatch, assert_in_memory):
    """The cache needs parts of numba that are not public. Without one of them, kernels are compiled in memory."""
    PARTS_TO_WRITE[part](monkeypatch)
    assert_in_memory(folder, "")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("part", PARTS_TO_READ)
def test_files_cannot_be_read_with_another_numba(part, folder, monkeypatch, assert_in_memory):
    for factor in 3, 4:
        multiply_by(factor)
    PARTS_TO_READ[part](monkeypatch)
    assert_in_memory(folder, "")


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG, logging.ERROR])
@pytest.mark.usefixtures("folder")
def test_loggers_of_numba(level, caplog):
    """A root logger at DEBUG does not hear how kernels are compiled, unless the user asks for it."""
    logger = logging.getLogger("numba")
    before = logger.level
    with caplog.at_level(logging.DEBUG):
        logger.setLevel(level)
        try:
            assert multiply_by(3)(5) == 15
            assert logger.level == level
        finally:
            logger.setLevel(before)
    assert bool(caplog.records) == (level == logging.DEBUG)


# What follows is about processes.

TINY = (
    COMPILED
    + """
import warnings
from numba import types
from fastbackprop.kernels import jit

told = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *_: told.append(str(message))

def multiply_by(factor, signature=types.int64(types.int64)):
    def multiply(x):
        return factor * x
    return jit.compile_entry(multiply, signature)
"""
)
SHOW = """
print(multiply_by(3)(5), multiply_by(4)(5), len(compiled), len(told), *told)
"""


def test_other_processors_and_settings_have_files_of_their_own(folder):
    assert run(TINY + SHOW) == "15 20 2 0"
    for setting in {"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_FEATURES": ""}, {"NUMBA_OPT": "1"}:
        assert run(TINY + SHOW, **setting) == "15 20 2 0"
    assert run(TINY + SHOW) == "15 20 0 0"
    assert len(list(folder.iterdir())) == 8


def test_gradients_without_a_folder(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    assert run(TINY + GRADIENT + "print(loss, len(told))", NUMBA_CACHE_DIR=blocked) == "3.0 1"


LATE = """
from numba.core.runtime import rtsys
initialize, calls = type(rtsys).initialize, []
def late(self, context):
    calls.append(1)
    if len(calls) > 1:
        initialize(self, context)
type(rtsys).initialize = late
"""


@pytest.mark.usefixtures("folder")
def test_machine_code_waits_for_the_functions_that_it_calls():
    """As if numba's run-time functions were there only after all that compilation needs. LLVM would call address 0."""
    code = (
        TINY
        + """
import numpy as np
def size(array):
    return array.size
"""
    )
    call = "print(jit.compile_entry(size, types.int64(types.float64[:]))(np.ones(7)), len(compiled), len(told))"
    assert run(code + call) == "7 1 0"
    assert run(code + LATE + call) == "7 0 0"


CLOSURES = """
from numba.extending import register_jitable
step = "    if x % {} == {}: t += x * {} // (t + {}); s += t % 9\\n"
steps = "".join(step.format(k + 3, k, k * k + 1, k + 1) for k in range(60))
exec(f"def maker(factor):\\n  def helper(x):\\n    t, s = 1, 0\\n{steps}    return factor * (s + t)\\n  return helper")

def kernel(factor, compiled):
    helper = register_jitable(error_model="numpy")(maker(factor)) if compiled else maker(factor)
    def calls(x):
        total = 0
        for k in range(x):
            total += helper(k) + helper(x) - helper(total % 7)
        return total + factor
    return calls

for factor in FACTORS:
    got = jit.compile_entry(kernel(factor, True), types.int64(types.int64))(9)
    print(got == kernel(factor, False)(9), len(compiled), end=" ")
"""


@pytest.mark.usefixtures("folder")
def test_closures_that_kernels_call():
    """numba gives them the same symbol in two processes. The third must not run one in place of the other."""
    for factors in "[1]", "[2]":
        assert run(TINY + CLOSURES.replace("FACTORS", factors)) == "True 1"
    for factors in "[1, 2]", "[2, 1]":
        assert run(TINY + CLOSURES.replace("FACTORS", factors)) == "True 0 True 0"


@pytest.fixture
def archive(tmp_path):
    """The package in a .zip, which is made with something more in one of its files, and code that imports it."""

    def make(more):
        path = str(tmp_path / "package.zip")
        with zipfile.ZipFile(path, "w") as file:
            for source in sorted((ROOT / "fastbackprop").rglob("*.py")):
                text = source.read_text(encoding="utf-8") + (more if source.name == "layers.py" else "")
                file.writestr(source.relative_to(ROOT).as_posix(), text)
        return f"import sys\nsys.path.insert(0, {path!r})\n{TINY}\nassert jit.__file__.startswith({path!r})\n"

    return make


@pytest.mark.usefixtures("folder")
def test_a_package_in_an_archive(archive, tmp_path):
    code = archive("") + SHOW
    assert run(code, cwd=tmp_path) == "15 20 2 0"
    assert run(code, cwd=tmp_path) == "15 20 0 0"
    assert run(archive("# another version\n") + SHOW, cwd=tmp_path) == "15 20 2 0"
    gradient = archive("") + GRADIENT + "print(loss, len(compiled) > 0, len(told))"
    assert run(gradient, cwd=tmp_path) == "3.0 True 0"
    assert run(gradient, cwd=tmp_path) == "3.0 False 0"


def test_a_package_that_is_replaced_under_a_process(copy, folder):
    """Its kernels are those of the sources that it has read. They are kept for nobody."""
    replace = """
print(multiply_by(3)(5))
file = __import__("pathlib").Path("fastbackprop/kernels/layers.py")
file.write_text(file.read_text() + "# another version")
"""
    assert run(TINY + replace + SHOW, cwd=copy) == "15\n15 20 2 0"
    assert len(list(folder.iterdir())) == 1
    assert run(TINY + SHOW, cwd=copy) == "15 20 2 0"


@pytest.mark.usefixtures("folder")
def test_a_package_without_sources(copy):
    run("import compileall; compileall.compile_dir('fastbackprop', legacy=True, quiet=2)", cwd=copy)
    for file in (copy / "fastbackprop").rglob("*.py"):
        file.unlink()
    printed = run(TINY + SHOW, cwd=copy)
    assert printed.startswith("15 20 2 1 ")
    assert "no sources" in printed


def at_once(*codes):
    """What processes print that run at the same time."""
    command = [sys.executable, "-c"]
    processes = [subprocess.Popen([*command, code], stdout=subprocess.PIPE, text=True, cwd=ROOT) for code in codes]
    return [process.communicate(timeout=300)[0].strip() for process in processes]


FOUR = """
signature = types.DTYPE(types.DTYPE)
print([multiply_by(k, signature)(0.5) for k in range(4)] == [k / 2 for k in range(4)], len(told), end=" ")
"""
BOTH = """
import numpy as np, fastbackprop as fb
rng = np.random.default_rng(0)
weights = [rng.normal(size=size).astype("DTYPE") for size in ((8, 3), (2, 8))]
biases = [np.zeros((8, 1), "DTYPE"), np.zeros((2, 1), "DTYPE")]
x, y = rng.normal(size=(3, 60)).astype("DTYPE"), rng.normal(size=(2, 60)).astype("DTYPE")
got, expected = fb.loss_and_gradients(x, weights, biases, y), fb.reference.loss_and_gradients(x, weights, biases, y)
print(np.isclose(got[0], expected[0], 1e-4) and np.allclose(got[1][0], expected[1][0], 1e-3, 1e-2), len(told), end=" ")
"""


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("code", "times"), [(FOUR, 2), (BOTH, 1)], ids=["kernels", "gradients"])
def test_processes_that_compile_both_dtypes_at_once(code, times):
    codes = [TINY + code.replace("DTYPE", dtype) for dtype in ("float32", "float64")]
    assert at_once(*codes * times) == ["True 0"] * 2 * times
    assert at_once(*[code + "print(len(compiled))" for code in codes]) == ["True 0 0"] * 2
