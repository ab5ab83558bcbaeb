"""The logic above the seam, on a fake device that checks the rules of CUDA and TensorRT.

Nothing here has touched a GPU: see ``tests/support/fake_cuda.py`` for what is checked.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_sessions import DYNAMIC, STATIC, assert_equal, batch, detect, make_engine, make_session
from fake_cuda import FakeDevice

from deploykit.runtimes.tensorrt.session import EngineSession, SessionOptions


def test_batches_of_all_sizes_and_shapes(device: FakeDevice) -> None:
    session = make_session(device)
    order = [(rows, size) for rows in range(1, 9) for size in (8, 24, 32)] * 3
    random.Random(0).shuffle(order)
    for number, (rows, size) in enumerate(order):
        inputs = batch(rows, size, number)
        assert_equal(session.run(inputs), inputs)
    session.close()


def test_batches_run_in_few_sizes_and_the_rest_is_zeros(device: FakeDevice) -> None:
    seen = []

    def note(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        seen.append((images.copy(), image_sizes.copy()))
        return detect(images, image_sizes)

    with device.activated():
        engine = make_engine(device)
    engine.function = note
    session = EngineSession(device, engine, Path("m.engine"), SessionOptions(batch_buckets=(3, 5)))
    for rows in [*range(1, 9)] * 2:
        inputs = batch(rows)
        feeds: dict[str, Any] = inputs
        if len(seen) >= 8:
            feeds = {name: device.user_array(value, 1) for name, value in inputs.items()}
        assert_equal(session.run(feeds), inputs)
        images, sizes = seen[-1]
        assert len(images) == len(sizes) == next(size for size in (3, 5, 8) if size >= rows)
        assert not images[rows:].any() and not sizes[rows:].any()
    session.close()


def test_a_static_engine_is_captured_at_its_second_run(device: FakeDevice) -> None:
    session = make_session(device, STATIC)
    counts = []
    for number in range(5):
        inputs = batch(1 + number % 4, seed=number)
        assert_equal(session.run(inputs), inputs)
        counts.append((device.calls.count("enqueue"), device.calls.count("launch")))
    # The second enqueue is the one that the capture records.
    assert counts == [(1, 0), (2, 1), (2, 2), (2, 3), (2, 4)]
    assert device.live["context"] == device.live["graph"] == 1
    session.close()


def test_a_dynamic_engine_captures_shapes_that_come_back(device: FakeDevice) -> None:
    session = make_session(device, max_graphs=2)
    for number, size in enumerate((8, 12, 16, 20, 24)):
        session.run(batch(1, size, number))
    assert device.live["context"] == 1 and device.calls.count("create_context") == 1
    for _ in range(3):
        session.run(batch(1, 8))
    assert device.live["graph"] == 1 and device.live["context"] == 2
    for size in (12, 16, 20) * 3:  # more than are kept, so none is ever found again
        inputs = batch(1, size)
        assert_equal(session.run(inputs), inputs)
        assert device.live["graph"] <= 2 and device.live["context"] <= 3
    session.close()


def test_the_least_recently_used_graph_goes(device: FakeDevice) -> None:
    session = make_session(device, max_graphs=2, cuda_graphs=True)

    def launches(size: int) -> int:
        before = device.calls.count("launch")
        inputs = batch(2, size)
        assert_equal(session.run(inputs), inputs)
        return device.calls.count("launch") - before

    for size in (32, 16):
        assert [launches(size) for _ in range(4)] == [0, 0, 1, 1]
    assert launches(32) == 1  # 16 is now the one that was not used for longest
    assert [launches(24) for _ in range(3)] == [0, 0, 1]
    assert launches(32) == 1
    assert launches(16) == 0
    session.close()


@pytest.mark.parametrize("profile", [STATIC, DYNAMIC])
def test_without_graphs(device: FakeDevice, profile: Any) -> None:
    session = make_session(device, profile, cuda_graphs=False)
    for number in range(6):
        inputs = batch(1 + number % 4, seed=number)
        assert_equal(session.run(inputs), inputs)
    assert "begin_capture" not in device.calls and device.peak["context"] == 1
    session.close()


def test_graphs_that_go_while_work_is_queued(device: FakeDevice) -> None:
    session = make_session(device, lanes=1, max_graphs=1)
    session.run(batch(8, 32))  # so that no block has to grow
    items = [batch(2, size, number) for number, size in enumerate((8, 16, 8, 8, 8, 16, 8, 16))]
    results = [session.run_on_device(inputs) for inputs in items]
    for inputs, arrays in zip(items, results, strict=True):
        assert_equal({name: device.read(array, 1) for name, array in arrays.items()}, inputs)
    session.close()


def test_growing_while_work_is_queued(device: FakeDevice) -> None:
    session = make_session(device, lanes=1)
    items = [batch(rows, size) for rows, size in ((1, 8), (2, 8), (2, 16), (8, 16), (8, 32))]
    results = [session.run_on_device(inputs) for inputs in items]
    for inputs, arrays in zip(items, results, strict=True):
        assert_equal({name: device.read(array, 1) for name, array in arrays.items()}, inputs)
    session.close()


def test_buffers_are_reused_and_grow(device: FakeDevice) -> None:
    session = make_session(device)
    for size in (8, 16, 32):
        for number in range(4):
            inputs = batch(8, size, number)
            assert_equal(session.run(inputs), inputs)
    made = device.calls.count("allocate"), device.calls.count("allocate_pinned")
    for number in range(100):
        session.run(batch(1 + number % 8, 32, number))
    assert made == (device.calls.count("allocate"), device.calls.count("allocate_pinned"))
    assert device.live["memory"] == 3 and device.live["pinned"] == 2
    session.close()


def test_threads_share_few_lanes(device: FakeDevice) -> None:
    session = make_session(device, lanes=3)
    items = [batch(1 + seed % 8, (8, 16, 32)[seed % 3], seed) for seed in range(120)]
    with ThreadPoolExecutor(8) as pool:
        for inputs, outputs in zip(items, pool.map(session.run, items), strict=True):
            assert_equal(outputs, inputs)
    assert 1 <= device.peak["stream"] <= 3
    session.close()
