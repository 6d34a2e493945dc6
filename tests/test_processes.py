"""The commands as processes of their own: limits, interrupts, memory, terminals and pipes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from benchmarks.cases import network
from tests.network_files import GRADIENTS, ON_DISK_GRADIENTS, named, write_problem


@pytest.fixture(autouse=True)
def problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_problem("float64")


def run(*arguments, **options):
    command = [sys.executable, "-m", "fastbackprop", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


FULL = """
import resource, signal, sys
from fastbackprop.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import fastbackprop
fastbackprop.warmup("float64")  # so that nothing else has to be written
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_a_file_that_outgrows_its_limit():
    command = [sys.executable, "-c", FULL, *GRADIENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr == "fastbackprop gradients: grads.npz cannot be written: File too large\n"
    assert not Path("grads.npz").exists()
    assert not list(Path().glob(".*"))


def big_batch(inputs, samples):
    """Zeros that take no room on the disk."""
    for name, rows in ("x.npy", inputs), ("y.npy", 1):
        open_memmap(name, "w+", np.float64, (rows, samples))
    sizes = (inputs, 16, 1)
    np.savez("net.npz", **named(*network(sizes)))


WATCHED = """
import signal, sys, time
import fastbackprop
from fastbackprop.cli.main import main
from fastbackprop.engine import plan
plan.SLICE_FLOPS = 1  # so that a short call reports its progress as a long one does
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
inner = fastbackprop.loss_and_gradients
def watched(*arguments, progress, **options):
    def report(done, total):
        {}
        progress(done, total)
    return inner(*arguments, progress=report, **options)
fastbackprop.loss_and_gradients = watched
sys.exit(main([*sys.argv[1:], "--threads", "1"]))
"""
INTERRUPTED = WATCHED.format("signal.raise_signal(signal.SIGINT)")
SLOW = WATCHED.format("time.sleep(0.04)")


def test_ctrl_c_leaves_no_file_and_no_traceback():
    big_batch(1, 200_000)
    command = [sys.executable, "-c", INTERRUPTED, *ON_DISK_GRADIENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not Path("grads.npz").exists()
    assert not list(Path().glob(".*"))


GROWTH = """
import sys
import numpy as np
from fastbackprop.cli import demonstration
from fastbackprop.cli.main import main
x, y = np.load("x.npy", mmap_mode="r"), np.load("y.npy", mmap_mode="r")
np.save("first_x.npy", x[:, :300_000])
np.save("first_y.npy", y[:, :300_000])
del x, y
main(["gradients", "net.npz", "first_x.npy", "first_y.npy", "--out", "grads.npz", "--threads", "1"])
demonstration.reset_peak_memory()
before = demonstration.peak_memory()
assert main([*sys.argv[1:], "--threads", "1"]) == 0
print(demonstration.peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, pages of files count as long as the system keeps them")
def test_batches_on_disk_take_no_memory():
    big_batch(8, 2_500_000)
    assert Path("x.npy").stat().st_size > 150e6
    command = [sys.executable, "-c", GROWTH, *ON_DISK_GRADIENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout.splitlines()[-1]) < 64


def on_a_terminal(code):
    """What a program with a terminal for standard error writes to it."""
    import pty
    import termios

    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *ON_DISK_GRADIENTS], stderr=follower, stdout=subprocess.PIPE
    )
    os.close(follower)
    written = b""
    try:
        while block := os.read(leader, 4096):
            written += block
    except OSError:  # how Linux tells that the other end is closed
        pass
    finally:
        os.close(leader)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, written
    assert out.count(b"\n") == 1
    return written.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_long_calls_show_a_bar_on_a_terminal():
    pytest.importorskip("tqdm")
    big_batch(1, 4_000_000)
    written = on_a_terminal(SLOW)
    assert "samples/s" in written
    assert "4.00M" in written
    without = on_a_terminal("import sys; sys.modules['tqdm'] = None\n" + SLOW)
    assert not without


def test_no_bar_where_there_is_no_terminal():
    big_batch(1, 4_000_000)
    done = subprocess.run(
        [sys.executable, "-c", SLOW, *ON_DISK_GRADIENTS], capture_output=True, timeout=300, check=True
    )
    assert not done.stderr


def test_as_a_program():
    done = run(*GRADIENTS)
    assert done.returncode == 0
    assert not done.stderr
    assert Path("grads.npz").exists()
    assert run("check", "net.npz", "data.npz").returncode == 0
    done = run("check", "none.npz", "data.npz")
    assert done.returncode == 2
    line = "none.npz cannot be read as an .npz file: No such file or directory"
    assert (done.stdout, done.stderr) == ("", f"fastbackprop check: {line}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes of POSIX")
def test_broken_pipes_are_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fastbackprop", "check", "net.npz", "data.npz"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=300, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_that_cannot_be_written():
    command = [sys.executable, "-m", "fastbackprop", "check", "net.npz", "data.npz"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (2, b"fastbackprop check: [Errno 28] No space left on device\n")
