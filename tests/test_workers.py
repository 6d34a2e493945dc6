"""Workers: threads that share a call, fall asleep, end before a fork, and leave the calling thread alone."""

import ctypes
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.engine import engine, plan, pool
from fastbackprop.engine.calls import Call
from fastbackprop.engine.plan import COMPUTATIONS
from fastbackprop.parallel import cpus, workers
from fastbackprop.parallel.boxes import AWAY, BOX, CALLED, GO, HERE, STATE, WAITING
from tests.conftest import assert_close, assert_same_bits, smooth_batch

A_MINUTE = 2**31
"""Pauses: so long a call waits for its workers, which a busy machine may keep from running."""


@pytest.fixture
def patient(monkeypatch, shared_from):
    """Every call waits for all its workers, even for more than there are processors; and counts its threads."""
    shared_from(2**19)  # 40-500-300-7
    monkeypatch.setattr(cpus, "processors", lambda: 64)
    monkeypatch.setattr(plan, "CHUNK_FLOPS", 2**12)
    monkeypatch.setattr(plan, "SHARED_FLOPS", 0)
    monkeypatch.setattr(engine, "pauses", lambda _flops: A_MINUTE)
    seen, make = [], Call.__init__

    def counted(call, *arguments):
        make(call, *arguments)
        run = call.run_call

        def noted(*passed):
            seen.append(run(*passed))

        call.run_call = noted

    monkeypatch.setattr(Call, "__init__", counted)
    crew = workers.Crew()
    crew.make_boxes()
    crew.looks = 10**12  # workers stay awake: a call is not to wait for one that falls asleep after it was looked for
    monkeypatch.setattr(workers, "_crew", crew)
    yield lambda sizes, dtype, threads: fb.Workspace(sizes, dtype, num_threads=threads), seen
    crew.dismiss()


@pytest.mark.parametrize(
    ("layer_sizes", "samples"),
    [
        ((130, 200, 220, 3), 17),
        ((130, 200, 220, 3), 64),
        ((130, 200, 220, 3), 100),
        ((130, 200, 220, 3), 600),
        ((30, 24, 50, 23, 40), 300),
        ((1, 6, 6, 6, 6, 6, 1), 1500),
        ((2, 8, 1), 300),
        ((40, 500, 300, 7), 100),
        ((16, 64, 64, 64, 64, 4), 2000),
        ((1, 6, 6, 6, 6, 6, 1), 40_000),
    ],
    ids=str,
)
def test_teams(layer_sizes, samples, dtype, patient):
    """Threads that share chunks, or strips and blocks: the oracle's gradient, and the same bits."""
    make, seen = patient
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
    arguments = net_input, all_weights, all_biases, y
    options = {"input_gradient": True, "sample_weight": np.linspace(0, 2, samples).astype(dtype)}
    expected = reference.loss_and_gradients(*arguments, **options)
    alone = list(make(layer_sizes, dtype, 1).loss_and_gradients(*arguments, **options))
    assert set(seen) == {1}
    assert alone[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(alone[1:], expected[1:])
    output = fb.predict(net_input, all_weights, all_biases, num_threads=1)
    plans = [COMPUTATIONS[what].plan(layer_sizes, dtype.itemsize, samples) for what in ("gradient", "prediction")]
    most = max(made.most_threads for made in plans)
    for count in 2, 3, 5, 8:
        workspace, wanted = make(layer_sizes, dtype, count), min(count, most)
        seen.clear()
        for _ in range(3):
            assert_same_bits(list(workspace.loss_and_gradients(*arguments, **options)), alone)
            assert_same_bits(workspace.predict(net_input, all_weights, all_biases), output)
        assert max(seen) == wanted


@pytest.mark.parametrize(
    ("layer_sizes", "samples"), [((130, 200, 3), 300), ((3, 24, 50, 23, 2), 270), ((40, 500, 300, 7), 300)], ids=str
)
def test_teams_in_the_notebooks_passes(layer_sizes, samples, dtype, patient, monkeypatch):
    """As the oracle, and the same bits."""
    _, seen = patient
    parameters = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, samples, dtype)
    expected = reference.compute_network_output(net_input, *parameters)
    expected_back = reference.backward_pass(*parameters, *expected[1:], y, intermediates=True)
    alone = None
    for count in 1, 2, 3, 5:
        monkeypatch.setenv("FASTBACKPROP_NUM_THREADS", str(count))
        pool._free.clear()
        seen.clear()
        for _ in range(3):
            got = fb.compute_network_output(net_input, *parameters)
            back = fb.backward_pass(*parameters, *expected[1:], y, intermediates=True)
            assert_close(got, expected)
            assert_close(back, expected_back)
            alone = alone or [*got, *back]
            assert_same_bits([*got, *back], alone)
        assert set(seen) == {1} if count == 1 else max(seen) > 1


def test_two_threads_may_call_for_the_first_time_at_once(monkeypatch):
    """One looks for workers while the other has their boxes made, which takes seconds where it compiles."""
    monkeypatch.setattr(cpus, "processors", lambda: 2)
    crew, found = workers.Crew(), []
    make = crew.make_boxes

    def make_slowly():
        time.sleep(0.2)
        make()

    monkeypatch.setattr(crew, "make_boxes", make_slowly)
    callers = [threading.Thread(target=lambda: found.append(len(crew.muster(1)))) for _ in range(3)]
    try:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert found == [1, 1, 1]
        assert len(crew.workers) == 1
    finally:
        crew.dismiss()


def test_workers_that_do_not_answer_are_left_out(dtype, patient, monkeypatch):
    """Boxes whose workers never come, or left, or belong to another call: the call goes on with those it has."""
    make, seen = patient
    layer_sizes = 16, 32, 3
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 600, dtype)
    expected = list(make(layer_sizes, dtype, 1).loss_and_gradients(net_input, all_weights, all_biases, y))
    workspace, boxes = make(layer_sizes, dtype, 4), np.zeros((3, BOX), np.int64)
    monkeypatch.setattr(engine, "helpers", lambda _threads: boxes)
    monkeypatch.setattr(engine, "pauses", lambda _flops: 1000)
    for state in AWAY, WAITING, CALLED, HERE, GO:
        boxes[:, STATE] = state
        seen.clear()
        assert_same_bits(list(workspace.loss_and_gradients(net_input, all_weights, all_biases, y)), expected)
        assert seen == [1]
        assert boxes[:, STATE].tolist() == [state] * 3


def test_workers_fall_asleep_and_end_when_asked():
    crew = workers._crew
    if len(crew.muster(1)) == 0:
        pytest.skip("there is one processor")
    for _ in range(3):
        assert crew.muster(1)[0, STATE] in (AWAY, WAITING)
        until(lambda: crew.workers[0].bell.empty() and crew.boxes[0, STATE] == AWAY)
    crew.looks, looks = 10**12, crew.looks
    try:
        crew.muster(1)
        until(lambda: crew.boxes[0, STATE] == WAITING)
        time.sleep(0.05)
        assert crew.boxes[0, STATE] == WAITING
        crew.dismiss()  # though it would wait for hours
        assert not crew.workers
    finally:
        crew.looks = looks


def test_callers_that_share_helpers_which_fall_asleep(dtype):
    """Two of them, with pauses about as long as helpers stay awake: each lane of a call runs once."""
    layer_sizes = 16, 64, 64, 4
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 300, dtype)
    arguments = net_input, all_weights, all_biases, y
    expected = list(fb.loss_and_gradients(*arguments, num_threads=1))

    def call(seed):
        pauses = np.random.default_rng(seed).uniform(0.8, 1.6, 400) * workers.AWAKE_SECONDS
        for pause in pauses.tolist():
            assert_same_bits(list(fb.loss_and_gradients(*arguments, num_threads=2)), expected)
            time.sleep(pause)

    with ThreadPoolExecutor(2) as callers:
        list(callers.map(call, range(2)))
    until(lambda: set(workers._crew.boxes[:, STATE].tolist()) == {AWAY})


def test_workers_that_are_on_their_way_are_not_woken_again():
    crew = workers._crew
    if len(crew.muster(1)) == 0:
        pytest.skip("there is one processor")
    for _ in range(50):
        crew.muster(1)
        assert crew.workers[0].bell.qsize() <= 1
    until(lambda: crew.boxes[0, STATE] == AWAY and crew.workers[0].bell.empty())


def test_workers_that_ended_are_replaced():
    crew = workers._crew
    if len(crew.muster(1)) == 0:
        pytest.skip("there is one processor")
    for _ in range(3):
        crew.muster(1)
        old = list(crew.workers)
        crew.dismiss()
        crew.dismiss()
        assert not any(worker.is_alive() for worker in old)
    assert len(crew.muster(1)) == 1


def test_a_worker_that_died_is_replaced(monkeypatch):
    """As after an interrupt in the middle of a fork, or memory that ran out."""
    monkeypatch.setattr(cpus, "processors", lambda: 3)
    crew = workers.Crew()
    try:
        crew.muster(2)
        first, second = crew.workers
        until(lambda: crew.boxes[:2, STATE].tolist() == [AWAY, AWAY])
        first.bell.put(False)
        first.join()
        assert not first.is_working
        assert len(crew.muster(2)) == 2
        assert crew.workers[0] is not first
        assert crew.workers[1] is second
        until(lambda: crew.boxes[0, STATE] == WAITING)
    finally:
        crew.dismiss()


def test_a_worker_that_was_not_started_is_replaced(monkeypatch):
    """An interrupt came before it was."""
    monkeypatch.setattr(cpus, "processors", lambda: 2)
    crew, start = workers.Crew(), threading.Thread.start

    def interrupted(_thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        crew.muster(1)
    monkeypatch.setattr(threading.Thread, "start", start)
    try:
        assert len(crew.muster(1)) == 1
        assert [worker.is_working for worker in crew.workers] == [True]
    finally:
        crew.dismiss()


def test_more_threads_than_processors_are_not_counted(monkeypatch):
    monkeypatch.setattr(cpus, "processors", lambda: 4)
    assert [workers.count_threads(threads, 100) for threads in (1, 2, 3, 4, 5, 1000)] == [1, 2, 3, 4, 4, 4]
    assert workers.count_threads(1000, 3) == 3


def test_no_more_workers_than_processors(monkeypatch):
    crew = workers.Crew()
    try:
        for processors in 1, 3, 2:
            monkeypatch.setattr(cpus, "processors", lambda processors=processors: processors)
            assert len(crew.muster(10)) == processors - 1
        assert len(crew.workers) == 2
    finally:
        crew.dismiss()


def test_a_system_without_threads(monkeypatch, dtype):
    """No thread can be started: a call runs alone."""
    crew = workers.Crew()
    monkeypatch.setattr(workers, "_crew", crew)
    monkeypatch.setattr(cpus, "processors", lambda: 4)

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    parameters = network((5, 20, 1), dtype)
    net_input, y = batch((5, 20, 1), 30_000, dtype)
    got = fb.loss_and_gradients(net_input, *parameters, y, num_threads=4)
    assert not any(worker.is_working for worker in crew.workers)
    assert_same_bits(list(got), list(fb.loss_and_gradients(net_input, *parameters, y, num_threads=1)))


def until(condition):
    """Wait for something to become true."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + 60
        time.sleep(0)


@pytest.mark.skipif(workers._processor is None, reason="threads cannot be placed here")
def test_workers_are_kept_off_the_calling_threads_processor():
    before = os.sched_getaffinity(0)
    crew = workers.Crew()
    try:
        if len(crew.muster(1)) == 0:
            pytest.skip("there is one processor")
        assert len(os.sched_getaffinity(crew.workers[0].native_id)) == len(before) - 1
        assert os.sched_getaffinity(0) == before
    finally:
        crew.dismiss()


@pytest.mark.skipif(workers._processor is None, reason="threads cannot be placed here")
def test_a_processor_that_is_not_known_places_nothing(monkeypatch):
    monkeypatch.setattr(workers, "_processor", lambda: -1)
    crew = workers.Crew()
    try:
        if len(crew.muster(1)) == 0:
            pytest.skip("there is one processor")
        assert os.sched_getaffinity(crew.workers[0].native_id) == os.sched_getaffinity(0)
    finally:
        crew.dismiss()


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"),
    reason="the register is reached through glibc's fesetenv on x86-64",
)
def test_workers_flush_subnormal_numbers_where_the_calling_thread_does():
    """As after torch.set_flush_denormal(True). The register is each thread's own, and ends with it."""
    layer_sizes = (8, 16, 16, 1)
    all_weights, all_biases = network(layer_sizes, np.float32)
    net_input = np.full((8, 20_000), 1e-39, np.float32)
    all_biases = [0 * array for array in all_biases]

    def vjp(threads):
        return fb.vjp(net_input, all_weights, all_biases, np.ones((1, 20_000), np.float32), num_threads=threads)

    kept = vjp(2)  # workers that exist from here on do not inherit the register of the thread below
    found = []

    def flush():
        libm, words = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
        libm.fegetenv(words)
        words[7] |= 0x8040  # flush to zero, denormals are zero
        libm.fesetenv(words)
        found.extend(vjp(threads) for threads in [1, *[2] * 30])

    thread = threading.Thread(target=flush)
    thread.start()
    thread.join()
    alone, *shared = found
    assert kept[0][0].any()
    assert not alone[0][0].any()
    for got in shared:
        assert_same_bits(list(got), list(alone))
    assert_same_bits(list(vjp(2)), list(kept))


LOOKING = """
import ctypes
import llvmlite.binding as llvm, numpy as np
from fastbackprop.parallel import boxes, team

yields = []
count = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: yields.append(1) or 0)
llvm.add_symbol(team.YIELD, ctypes.cast(count, ctypes.c_void_p).value)
for looks in team.SPINS // 2, team.SPINS + 100:
    yields.clear()
    team.serve()(np.zeros((1, boxes.BOX), np.int64), 0, looks)
    print(len(yields), max(looks + 3 - team.SPINS, 0))
"""


def test_a_thread_that_looks_in_vain_pauses_and_then_yields(tmp_path):
    """Of the looks of a worker that nobody calls, those from SPINS on yield the processor."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOOKING], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "0 0\n103 103\n"
