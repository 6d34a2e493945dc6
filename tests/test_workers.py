"""Workers: threads that share a call within a kernel, fall asleep, end before a fork, and keep off each other."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import engine, pool, reference, sweeps, threads, wide
from fastbackprop.kernels import AWAY, BOX, CALLED, GO, HERE, STATE, WAITING
from fastbackprop.wide import numbered
from tests.conftest import assert_close, assert_same_bits, smooth_batch


@pytest.fixture
def patient(monkeypatch, wide_from):
    """Every call waits long for helpers, however many more threads than processors there are; and counts its lanes."""
    wide_from(3 * 2**19)  # 40-500-300-7
    monkeypatch.setattr(threads, "processors", lambda: 64)
    monkeypatch.setattr(sweeps, "LEAST_TEAM_FLOPS", 0)
    for module in sweeps, wide:
        monkeypatch.setattr(module, "pauses", lambda _flops: 2**22)
    seen = []

    def counted(*arguments):
        seen.append(sweep(*arguments))
        return seen[-1]

    def patient_workspace(layer_sizes, dtype, num_threads):
        nonlocal sweep
        workspace = fb.Workspace(layer_sizes, dtype, num_threads=num_threads)
        assert isinstance(workspace._engine, wide.WideEngine) == (500 in layer_sizes)
        sweep, address = workspace._engine.sweep_kernel
        workspace._engine.sweep_kernel = counted, address
        return workspace

    sweep = None
    return patient_workspace, seen


@pytest.mark.parametrize(
    ("layer_sizes", "samples"),
    [
        ((130, 200, 220, 3), 17),
        ((130, 200, 220, 3), 64),
        ((130, 200, 220, 3), 100),
        ((130, 200, 220, 3), 600),
        ((30, 24, 50, 23, 40), 300),
        ((1, 6, 6, 6, 6, 6, 1), 1500),
        ((2, 8, 1), 40),
        ((40, 500, 300, 7), 100),
        ((16, 64, 64, 64, 64, 4), 2000),
        ((1, 6, 6, 6, 6, 6, 1), 40_000),
    ],
    ids=str,
)
def test_teams(layer_sizes, samples, dtype, patient):
    """Threads that share a call, its chunks or its tiles, and the rows of its gradients: same gradient, same bits."""
    assert_teams_agree(layer_sizes, samples, dtype, patient)


@pytest.mark.parametrize("layer_sizes", [(130, 200, 220, 3), (30, 24, 50, 23, 40), (300, 20, 5)], ids=str)
def test_teams_on_all_tiles_of_a_chunk(layer_sizes, dtype, patient, monkeypatch):
    """As those of networks with large gradients, of which 255 samples are one chunk."""
    monkeypatch.setattr(engine, "CHUNK_SAMPLES", {})
    assert_teams_agree(layer_sizes, 1100, dtype, patient)


def assert_teams_agree(layer_sizes, samples, dtype, patient):
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
    for count in 2, 3, 5:
        workspace = make(layer_sizes, dtype, count)
        seen.clear()
        for _ in range(3):
            assert_same_bits(list(workspace.loss_and_gradients(*arguments, **options)), alone)
            assert_same_bits(workspace.predict(net_input, all_weights, all_biases), output)
        assert max(seen) == count or (count > 2 and max(seen) > 1)


def test_two_threads_may_call_for_the_first_time_at_once(monkeypatch):
    """One looks for workers while the other has their boxes made, which takes seconds where it compiles."""
    monkeypatch.setattr(threads, "processors", lambda: 2)
    crew, found = threads.Crew(), []
    make = crew._make_boxes

    def make_slowly():
        monkeypatch.setattr(crew, "_make_boxes", make)
        found.append(len(crew.muster(1)))
        make()

    monkeypatch.setattr(crew, "_make_boxes", make_slowly)
    try:
        found.append(len(crew.muster(1)))
        assert found == [1, 1]
    finally:
        crew.dismiss()


def test_a_long_call_of_one_chunk_is_shared(dtype, patient, monkeypatch):
    """It is a job, so that Ctrl-C is answered between its slices; each of these has both threads."""
    make, seen = patient
    monkeypatch.setattr(engine.Engine, "call_flops", 0)
    monkeypatch.setattr(sweeps, "SLICE_FLOPS", 1)
    monkeypatch.setattr(engine, "CHUNK_SAMPLES", {})
    parameters = network((300, 120, 3), dtype)
    net_input, y = batch((300, 120, 3), 1100, dtype)
    for count in 1, 2:
        workspace = make((300, 120, 3), dtype, count)
        assert len(workspace._engine.chunks(1100)) == 1
        assert workspace._engine.direct_samples < 1100  # or it would be one slice
        seen.clear()
        got = workspace.loss_and_gradients(net_input, *parameters, y)
        assert seen == [count, count]
        assert_close(got[1:], reference.loss_and_gradients(net_input, *parameters, y)[1:])


@pytest.mark.parametrize(("samples", "chunks"), [(101, 2), (300, 2), (1037, 4), (2100, 8), (20_000, 16)])
def test_chunks_of_a_call_and_of_a_job(samples, chunks, dtype, patient, monkeypatch):
    """The gradients of few chunks are added up by the lanes of a call or behind a job: same bits, as the oracle."""
    make, seen = patient
    layer_sizes = 16, 64, 64, 64, 5
    parameters = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, *parameters, dtype)
    arguments = net_input, *parameters, y
    expected = reference.loss_and_gradients(*arguments)
    alone = list(make(layer_sizes, dtype, 1).loss_and_gradients(*arguments))
    assert alone[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(alone[1:], expected[1:])
    for count, call_flops in (2, 0), (3, 0), (3, engine.Engine.call_flops):
        monkeypatch.setattr(engine.Engine, "call_flops", call_flops)
        workspace = make(layer_sizes, dtype, count)
        assert len(workspace._engine.chunks(samples)) == chunks
        seen.clear()
        for _ in range(3):
            assert_same_bits(list(workspace.loss_and_gradients(*arguments)), alone)
        assert (set(seen) == {1}) == (call_flops == 0)


@pytest.mark.parametrize(
    ("layer_sizes", "samples"), [((130, 200, 3), 100), ((3, 24, 50, 23, 2), 70), ((40, 500, 300, 7), 300)], ids=str
)
def test_teams_in_the_notebooks_passes(layer_sizes, samples, dtype, patient, monkeypatch):
    """Lanes copy columns of their own in and out of a tile that they share: as the oracle, and the same bits."""
    make, seen = patient
    parameters = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, samples, dtype)
    expected = reference.compute_network_output(net_input, *parameters)
    expected_back = reference.backward_pass(*parameters, *expected[1:], y, intermediates=True)
    alone = None
    for count in 1, 2, 3, 5:
        monkeypatch.setenv("FASTBACKPROP_NUM_THREADS", str(count))
        seen.clear()
        for _ in range(3):
            engine = make(layer_sizes, dtype, count)._engine
            pool._free[engine.layer_sizes, engine.dtype] = engine
            got = fb.compute_network_output(net_input, *parameters)
            back = fb.backward_pass(*parameters, *expected[1:], y, intermediates=True)
            assert_close(got, expected)
            assert_close(back, expected_back)
            alone = alone or [*got, *back]
            assert_same_bits([*got, *back], alone)
        assert set(seen) == {1} if count == 1 else max(seen) > 1


def test_helpers_that_do_not_answer_are_let_go(dtype, patient):
    """Boxes whose workers never come, or left, or belong to another call: the call goes on with those it has."""
    make, seen = patient
    layer_sizes = 16, 32, 3
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 200, dtype)
    expected = list(make(layer_sizes, dtype, 1).loss_and_gradients(net_input, all_weights, all_biases, y))
    workspace = make(layer_sizes, dtype, 4)
    sweep, address = workspace._engine.sweep_kernel
    boxes = np.zeros((3, BOX), np.int64)
    workspace._engine.sweep_kernel = lambda *a: sweep(*a[:-3], boxes, 1000, a[-1]), address
    for state in AWAY, WAITING, CALLED, HERE, GO:
        boxes[:, STATE] = state
        seen.clear()
        assert_same_bits(list(workspace.loss_and_gradients(net_input, all_weights, all_biases, y)), expected)
        assert seen == [1]
        assert boxes[:, STATE].tolist() == [state] * 3


def test_helpers_go_to_sleep_and_leave_when_asked():
    crew = threads._crew
    for _ in range(3):
        assert crew.muster(1)[0, STATE] in (AWAY, WAITING)
        until(lambda: crew.calls.empty() and crew.boxes[0, STATE] == AWAY)
    crew.pauses, pauses = 10**12, crew.pauses
    try:
        crew.muster(1)
        until(lambda: crew.boxes[0, STATE] == WAITING)
        time.sleep(0.05)
        assert crew.boxes[0, STATE] == WAITING
        _, lanes, _ = placed(2)  # which wants the thread
        assert len(lanes) == 2
        assert crew.boxes[0, STATE] == AWAY
        crew.muster(1)
        until(lambda: crew.boxes[0, STATE] == WAITING)
        threads._dismiss_crew()
        assert not crew.workers
    finally:
        crew.pauses = pauses


def test_callers_that_share_helpers_which_fall_asleep(dtype):
    """Two of them, with pauses about as long as helpers stay awake: each lane of a call runs once."""
    layer_sizes = 16, 64, 64, 4
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 300, dtype)
    arguments = net_input, all_weights, all_biases, y
    expected = list(fb.loss_and_gradients(*arguments, num_threads=1))

    def call(seed):
        pauses = np.random.default_rng(seed).uniform(0.8, 1.6, 400) * threads.AWAKE_SECONDS
        for pause in pauses.tolist():
            assert_same_bits(list(fb.loss_and_gradients(*arguments, num_threads=2)), expected)
            time.sleep(pause)

    with ThreadPoolExecutor(2) as callers:
        list(callers.map(call, range(2)))
    until(lambda: set(threads._crew.boxes[:, STATE].tolist()) == {AWAY})


def test_workers_that_are_busy_are_not_sent_for_again():
    crew, begun, done = threads._crew, threading.Barrier(3, timeout=10), threading.Event()

    def work(*_):
        begun.wait()
        done.wait(10)

    job = threading.Thread(target=threads.run, args=(work, numbered(range(2)), 1, 2))
    job.start()
    begun.wait()
    for _ in range(50):
        crew.muster(1)
    assert crew.calls.qsize() <= 1
    done.set()
    job.join()
    until(crew.calls.empty)


def test_threads_that_ended_are_replaced():
    for _ in range(3):
        placed(2)
        old = threads._crew.workers
        threads._dismiss_crew()
        threads._dismiss_crew()
        assert not any(worker.is_alive() for worker in old)
    _, lanes, _ = placed(2)
    assert len(lanes) == 2


def until(condition):
    """Wait for something to become true."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + 10
        time.sleep(0)


def placed(num_threads, progress=None):
    """The processors that each lane may use while a job runs, and those of the calling thread before and after."""
    before, lanes = os.sched_getaffinity(0), {}
    inside = threading.Barrier(num_threads, timeout=10)

    def work(lane, *_):
        inside.wait()
        lanes[lane] = os.sched_getaffinity(0)
        inside.wait()

    threads.run(work, numbered(range(num_threads)), 1, num_threads, progress)
    return before, lanes, os.sched_getaffinity(0)


@pytest.mark.skipif(threads._processor is None, reason="threads cannot be placed here")
def test_threads_keep_off_each_other():
    processors = len(os.sched_getaffinity(0))
    for num_threads in 2, processors, processors + 1, 2:
        before, lanes, after = placed(num_threads)
        assert after == before
        if 1 < num_threads <= processors:
            assert len(lanes[0]) == (1 if num_threads == processors else processors)
            for lane in range(1, num_threads):
                assert len(lanes[lane]) == processors - 1
        elif num_threads > processors:
            assert all(lanes[lane] == before for lane in lanes)
    _, lanes, _ = placed(2, progress=lambda *_: None)
    assert lanes[0] == before


@pytest.mark.skipif(threads._processor is None, reason="threads cannot be placed here")
def test_new_workers_are_placed_too():
    placed(2)
    threads._dismiss_crew()
    _, lanes, _ = placed(2)
    assert len(lanes[1]) == max(len(os.sched_getaffinity(0)) - 1, 1)


@pytest.mark.skipif(threads._processor is None, reason="threads cannot be placed here")
def test_a_processor_that_is_not_known_places_nothing(monkeypatch):
    monkeypatch.setattr(threads, "_processor", lambda: -1)
    before, lanes, after = placed(2)
    assert lanes == {0: before, 1: before}
    assert after == before


@pytest.mark.skipif(threads._processor is None, reason="threads cannot be placed here")
def test_the_calling_thread_may_move_again_after_an_error():
    before = os.sched_getaffinity(0)

    def work(lane, *_):
        time.sleep(0.01)
        raise RuntimeError(f"lane {lane}")

    for _ in range(20):
        with pytest.raises(RuntimeError, match="lane"):
            threads.run(work, numbered(range(4)), 1, 2)
        assert os.sched_getaffinity(0) == before
