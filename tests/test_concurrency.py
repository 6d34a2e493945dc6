"""Minutes of threads, processes, forks, interrupts and exits; not part of the gate: pytest -m concurrency -s"""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.concurrency,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks and timers of POSIX"),
]
POOLS = ["fork", "spawn", "forkserver", "loky", "threading"]


@pytest.mark.parametrize("scenario", ["threads", "forks", "interrupts", *POOLS])
def test_storms(scenario):
    if scenario in ("loky", "threading"):
        pytest.importorskip("joblib")
    command = [sys.executable, "-m", "tests.storms", scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    print(f"{scenario}: {done.stdout}", end="")
    assert done.returncode == 0, done.stderr[-2000:]


EXIT = """
import atexit, os, sys, threading, time
from tests.storms import digest
expected = digest(2)

def call(times=1, digest=digest):
    for _ in range(times):
        assert digest(2) == expected

def last(call=call, write=os.write):
    call()
    write(1, b"last ")

class Last:
    def __del__(self, last=last):
        last()

def start(**options):
    threading.Thread(target=call, args=(10**9,), **options).start()
    time.sleep(0.05)
"""
EXITS = {
    "while a thread calls": ("start(daemon=True)", 0, ""),
    "by sys.exit while two threads call": ("start(daemon=True); start(daemon=True); sys.exit(3)", 3, ""),
    "by os._exit while a thread calls": ("start(daemon=True); os._exit(4)", 4, ""),
    "by an error while a thread calls": ("start(daemon=True); 1 / 0", 1, ""),
    "with a call of atexit": ("atexit.register(last)", 0, "last "),
    "with a call of atexit while a thread calls": ("atexit.register(last); start(daemon=True)", 0, "last "),
    "with a call of a destructor": ("held = Last()", 0, "last "),
    "by a signal while a thread calls": ("start(daemon=True); os.kill(os.getpid(), 15); time.sleep(60)", -15, ""),
    "with calls of a thread that ends later": ("threading.Thread(target=call, args=(200,)).start()", 0, ""),
}


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("way", EXITS)
def test_exits(way, turn):  # noqa: ARG001 - each way several times
    code, status, out = EXITS[way]
    command = [sys.executable, "-c", EXIT + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (status, out), done.stderr[-2000:]
