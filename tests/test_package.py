"""The package as a whole: what importing costs, when kernels are compiled."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastbackprop

ROOT = Path(__file__).parents[1]


def run(code, cwd=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env=os.environ | {key: str(value) for key, value in environment.items()},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_does_not_import_numba():
    """Nor does packing parameters."""
    code = """
import sys, numpy as np, fastbackprop
fastbackprop.unpack(fastbackprop.pack([np.ones((2, 3))], [np.ones((2, 1))]), (3, 2))
print('numba' in sys.modules, 'llvmlite' in sys.modules)
"""
    assert run(code) == "False False"


INTERRUPTED_IMPORT = """
import signal, sys, threading
import numpy as np, fastbackprop as fb
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == "numba.core.typing":
            sys.meta_path.remove(Interrupting)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
def call():
    return fb.loss_and_gradients(np.ones((1, 3)), [np.ones((1, 1))], [np.zeros((1, 1))], 0.0)[0]
try:
    call()
except KeyboardInterrupt:
    print(call())
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupted_import_of_numba_spoils_nothing():
    assert run(INTERRUPTED_IMPORT) == "3.0"


def test_public_names_are_documented():
    assert set(fastbackprop.__all__) >= {"loss_and_gradients", "vjp", "predict", "Workspace", "check_gradients"}
    for name in fastbackprop.__all__:
        assert getattr(fastbackprop, name).__doc__


def test_version_of_the_distribution():
    assert importlib.metadata.version("fastbackprop") == fastbackprop.__version__


def test_run_time_dependencies():
    required = [text for text in importlib.metadata.requires("fastbackprop") if "extra ==" not in text]
    assert sorted(re.match(r"\w+", text)[0] for text in required) == ["numba", "numpy"]


GRADIENT = """
import numpy as np, fastbackprop as fb
loss, _, _ = fb.loss_and_gradients(np.ones((1, 3)), [np.ones((1, 1))], [np.zeros((1, 1))], 0.0)
"""
# What a process compiles, by the names of functions: numba itself compiles some, too.
COMPILED = """
import numba
compiled = []
for compiler in "njit", "cfunc":
    def watch(*arguments, original=getattr(numba, compiler), **options):
        def compile(function):
            if not function.__module__.startswith("numba.") and options.get("inline") != "always":
                compiled.append(function.__name__)
            return original(*arguments, **options)(function)
        return compile
    setattr(numba, compiler, watch)
"""
OF_FEW_SAMPLES = "few_gradient_pass read run_call tile_loss write_rows write_samples"
COMPILED_GRADIENT = COMPILED + GRADIENT + "print(loss, *sorted(compiled))"


def test_kernels_are_cached_and_compiled_again_when_any_source_changes(copy):
    cache = copy / "cache"
    environment = {"cwd": copy, "NUMBA_CACHE_DIR": cache}
    assert run(COMPILED_GRADIENT, **environment) == f"3.0 {OF_FEW_SAMPLES}"
    assert run(COMPILED_GRADIENT, **environment) == "3.0"
    # A file that the kernel calls into but does not live in.
    file = copy / "fastbackprop" / "kernels" / "layers.py"
    text = file.read_text()
    file.write_text(text.replace("def forward_layer(", "def forward_layer(  # edited\n", 1))
    assert file.read_text() != text
    assert run(COMPILED_GRADIENT, **environment) == f"3.0 {OF_FEW_SAMPLES}"


def test_warmup_leaves_nothing_to_compile(tmp_path):
    code = """
import os
from pathlib import Path
import numpy as np, fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import losses
from fastbackprop.engine import plan, pool
compiled = lambda: {str(file) for file in Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nb?")}
fb.warmup("float32")
before = compiled()
assert before
for plan.PRIVATE_BYTES in plan.PRIVATE_BYTES, 10:
    pool._free.clear()
    for samples in 3, 40, 20_000:
        weights, biases = network((3, 30, 30, 2), np.float32)
        x, y = batch((3, 30, 30, 2), samples, np.float32)
        _, all_f, all_h = fb.compute_network_output(x, weights, biases)
        fb.backward_pass(weights, biases, all_f, all_h, y, intermediates=True)
        for loss in losses.LOSSES:
            fb.loss_and_gradients(x, weights, biases, np.full((2, samples), np.float32(0.5)), loss=loss)
        fb.vjp(x, weights, biases, y)
        fb.predict(x, weights, biases)
        fb.clipped_gradients(x, weights, biases, y, 1.0)
        fb.squared_gradient_sums(x, weights, biases, y)
        fb.per_sample_gradients(x, weights, biases, y)
        for per_layer in False, True:
            fb.per_sample_gradient_norms(x, weights, biases, y, per_layer=per_layer)
print(compiled() == before)
"""
    assert run(code, NUMBA_CACHE_DIR=tmp_path) == "True"


@pytest.mark.parametrize(
    ("name", "features"), [("generic", ""), ("haswell", "+avx,+avx2,+fma"), ("generic", "+avx,+sse4.2")]
)
def test_other_targets_give_the_same_numbers(name, features, tmp_path):
    """Vectors of 16 and 32 bytes, with and without fused multiply-add."""
    code = """
import numpy as np, fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.engine import plan, pool
from fastbackprop.kernels import simd

def close(got, expected):
    for g, e in zip(got[0] + got[1], expected[0] + expected[1], strict=True):
        assert np.linalg.norm(g - e) <= limit * np.linalg.norm(e)

for dtype, limit in (np.float64, 1e-12), (np.float32, 1e-4):
    for sizes in (1, 6, 6, 1), (5, 17, 9, 3), (33, 40, 30, 3):
        weights, biases = network(sizes, dtype)
        for samples in 1, 8, 333:
            x, y = batch(sizes, samples, dtype)
            expected = reference.loss_and_gradients(x, weights, biases, y)[1:]
            close(fb.loss_and_gradients(x, weights, biases, y)[1:], expected)
            _, all_f, all_h = fb.compute_network_output(x, weights, biases)
            close(fb.backward_pass(weights, biases, all_f, all_h, y), expected)
    classes, loss = np.arange(333) % 3, "softmax_cross_entropy"
    expected = reference.loss_and_gradients(x, weights, biases, classes, loss=loss)[1:]
    close(fb.loss_and_gradients(x, weights, biases, classes, loss=loss)[1:], expected)
    default, plan.PRIVATE_BYTES = plan.PRIVATE_BYTES, 100
    pool._free.clear()
    close(fb.loss_and_gradients(x, weights, biases, classes, loss=loss)[1:], expected)
    plan.PRIVATE_BYTES = default
    pool._free.clear()
print(simd.host_target()[0].vector_bytes, simd.host_target()[0].has_fma)
"""
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("these are targets of x86-64")
    printed = run(code, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=tmp_path)
    assert printed == f"{16 if 'avx' not in features else 32} {'fma' in features}"
