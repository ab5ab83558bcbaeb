"""The logic above the seam, on a fake device that checks the rules of CUDA and TensorRT.

Nothing here has touched a GPU: see ``tests/support/fake_cuda.py`` for what is checked.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDevice, FakeEngine, UserArray

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt.device import EngineTensor
from deploykit.runtimes.tensorrt.session import EngineSession, SessionOptions

UINT8, INT32, FLOAT32 = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.float32)
DYNAMIC = ((1, 8, 8, 3), (4, 16, 16, 3), (8, 32, 32, 3))
STATIC = ((4, 8, 8, 3),) * 3


def detect(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Rows that depend on all of their image and on nothing else."""
    weights = np.arange(images[0].size, dtype=np.float64).reshape(images[0].shape) + 1
    total = (images * weights).sum(axis=(1, 2, 3)).astype(np.float32)
    return {
        "boxes": (total[:, None, None] + np.arange(8, dtype=np.float32).reshape(2, 4)),
        "labels": image_sizes * np.int32(3),
        "num_dets": images[:, 0, 0, 0].astype(np.int32),
    }


def make_engine(device: FakeDevice, profile: Any = DYNAMIC) -> FakeEngine:
    low, best, high = profile
    static = low == high
    batch = low[0] if static else -1
    sizes = tuple((shape[0], 2) for shape in profile)
    shape = low if static else (-1, -1, -1, 3)
    return FakeEngine(
        device,
        (
            EngineTensor("images", UINT8, shape, True, (low, best, high)),
            EngineTensor("image_sizes", INT32, (batch, 2), True, sizes),
            EngineTensor("boxes", FLOAT32, (batch, 2, 4), False),
            EngineTensor("labels", INT32, (batch, 2), False),
            EngineTensor("num_dets", INT32, (batch,), False),
        ),
        detect,
    )


def make_session(device: FakeDevice, profile: Any = DYNAMIC, **options: Any) -> EngineSession:
    with device.activated():
        engine = make_engine(device, profile)
    return EngineSession(device, engine, Path("model.engine"), SessionOptions(**options))


def batch(rows: int, size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "images": generator.integers(0, 256, (rows, size, size, 3), np.uint8),
        "image_sizes": generator.integers(0, 1000, (rows, 2), np.int32),
    }


def assert_equal(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    expected = detect(**inputs)
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_array_equal(outputs[name], value)


@pytest.fixture(params=range(3))
def device(request: pytest.FixtureRequest) -> Iterator[FakeDevice]:
    """A device that must be left clean."""
    device = FakeDevice(request.param)
    yield device
    device.check_all_given_back()


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


def test_a_failed_capture_gives_one_warning_and_plain_runs(device: FakeDevice) -> None:
    device.capture_fails = True
    session = make_session(device, STATIC)
    session.run(batch(4))
    inputs = batch(4, seed=1)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: .*CAPTURE_INVALIDATED"):
        assert_equal(session.run(inputs), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(4):
            inputs = batch(3, seed=number)
            assert_equal(session.run(inputs), inputs)
    assert device.calls.count("begin_capture") == 1 and device.live["context"] == 1
    session.close()


def test_a_failed_capture_while_work_is_queued(device: FakeDevice) -> None:
    device.capture_fails = True
    session = make_session(device, STATIC, lanes=1)
    items = [batch(4, seed=seed) for seed in range(3)]
    # Inputs on the device: for those of the host a lane waits for its earlier copies.
    feeds = [{n: device.user_array(value, 1) for n, value in item.items()} for item in items]
    with pytest.warns(RuntimeWarning, match="without CUDA graphs"):
        results = [session.run_on_device(arrays) for arrays in feeds]
    for inputs, arrays in zip(items, results, strict=True):
        assert_equal({name: device.read(array, 1) for name, array in arrays.items()}, inputs)
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


def test_arrays_on_the_device(device: FakeDevice) -> None:
    for options in ({"cuda_graphs": True}, {"cuda_graphs": False}):
        session = make_session(device, **options)
        stream = device.user_stream()
        for number in range(12):
            inputs = batch((1, 2, 3, 8)[number % 4], 16, number)
            images = device.user_array(inputs["images"], stream, align=(256, 16)[number % 2])
            sizes: Any = inputs["image_sizes"]
            if number % 3:
                sizes = device.user_array(sizes, stream)
            feeds = {"images": images, "image_sizes": sizes}
            if number % 2:
                outputs = session.run(feeds, stream)
            else:
                arrays = session.run_on_device(feeds, stream)
                # Queued behind the inference, so it comes too late to do harm.
                device.overwrite(images, stream)
                outputs = {name: device.read(array, stream) for name, array in arrays.items()}
            assert_equal(outputs, inputs)
        session.close()


def test_outputs_into_arrays_of_the_caller(device: FakeDevice) -> None:
    session = make_session(device, lanes=2)
    stream = device.user_stream()
    expected = detect(**batch(3))
    out = {name: device.user_array(expected[name] * 0, stream) for name in ("num_dets", "boxes")}
    session.run_on_device(batch(3), stream, out)
    allocated = device.calls.count("allocate")
    for number in range(5):
        inputs = batch(3, seed=number)
        for array in out.values():
            device.overwrite(array, stream)  # queued before the inference, so it does no harm
        assert session.run_on_device(inputs, stream, out) == out
        for name, array in out.items():
            np.testing.assert_array_equal(device.read(array, stream), detect(**inputs)[name])
    assert device.calls.count("allocate") == allocated
    for wrong, message in (
        ({"bixes": out["boxes"]}, r"out has \['bixes'\]; the outputs are \['boxes', 'labels'"),
        ({"boxes": expected["boxes"]}, "'boxes' of out is a ndarray; expected an array on the GPU"),
        ({"boxes": out["num_dets"]}, r"'boxes' of out is int32\[3\]; expected float32\[3, 2, 4\]"),
    ):
        with pytest.raises(UsageError, match=message):
            session.run_on_device(batch(3), stream, wrong)
    with pytest.raises(UsageError, match=r"'boxes' of out is float32\[3, 2, 4\]; expected"):
        session.run_on_device(batch(4), stream, {"boxes": out["boxes"]})
    session.close()


def test_aligned_arrays_are_read_in_place_without_graphs(device: FakeDevice) -> None:
    session = make_session(device, cuda_graphs=False)
    stream = device.user_stream()
    for rows, align, copies in ((4, 256, 0), (4, 64, 2), (3, 256, 2)):
        inputs = batch(rows)
        feeds = {name: device.user_array(v, stream, align) for name, v in inputs.items()}
        before = device.calls.count("copy_within")
        assert_equal(session.run(feeds, stream), inputs)
        assert device.calls.count("copy_within") - before == copies
    session.close()


def test_host_inputs_of_a_run_that_nobody_waited_for(device: FakeDevice) -> None:
    session = make_session(device, lanes=1)
    stream = device.user_stream()
    items = [batch(4, seed=seed) for seed in range(6)]
    results = [session.run_on_device(inputs, stream) for inputs in items]
    for inputs, arrays in zip(items, results, strict=True):
        assert_equal({n: device.read(a, stream) for n, a in arrays.items()}, inputs)
    session.close()


def test_no_stream_means_the_legacy_default_stream(device: FakeDevice) -> None:
    session = make_session(device)
    inputs = batch(2)
    feeds = {name: device.user_array(value, 1) for name, value in inputs.items()}
    arrays = session.run_on_device(feeds)
    assert arrays["boxes"].stream == 1
    assert_equal({name: device.read(array, 1) for name, array in arrays.items()}, inputs)
    session.close()


def test_the_stream_of_the_array_interface_is_waited_for(device: FakeDevice) -> None:
    session = make_session(device)
    producer, caller = device.user_stream(), device.user_stream()
    inputs = batch(2)
    images = device.user_array(inputs["images"], producer)
    images.extra["stream"] = producer
    outputs = session.run({**inputs, "images": images}, caller)
    assert_equal(outputs, inputs)
    session.close()


def test_outputs_outlive_the_session(device: FakeDevice) -> None:
    session = make_session(device)
    inputs = batch(5)
    arrays = session.run_on_device(inputs)
    session.close()
    assert device.live["memory"] == 1
    assert_equal({name: device.read(array, 1) for name, array in arrays.items()}, inputs)
    boxes = np.from_dlpack(arrays.pop("boxes"))
    del arrays
    gc.collect()
    assert device.live["memory"] == 1, "numpy still holds it"
    np.testing.assert_array_equal(boxes, detect(**inputs)["boxes"])
    del boxes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((9, 8, 8, 3), np.uint8), "image_sizes": np.zeros((9, 2), np.int32)},
         BackendError, r"batches of 1 to 8 images, got 9"),
        ({"images": np.zeros((2, 8, 40, 3), np.uint8)},
         BackendError, r"'images' of shape \[1..8, 8..32, 8..32, 3\], got \[2, 8, 40, 3\]"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, UsageError, "is float32.*expected uint8"),
        ({"images": np.zeros((8, 8, 3), np.uint8)}, UsageError, "expected uint8 with 4 axes"),
        ({"images": np.zeros((3, 8, 8, 3), np.uint8)}, UsageError, "different numbers of rows"),
        ({"images": [1, 2]}, UsageError, "'images' is a list; expected a numpy array"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8), "image_sizes": np.zeros((0, 2), np.int32)},
         BackendError, "batches of 1 to 8 images, got 0"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(
    device: FakeDevice, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    session = make_session(device)
    with pytest.raises(error, match=message) as caught:
        session.run({**batch(2), **change})
    assert "\n" not in str(caught.value)
    inputs = batch(2)
    assert_equal(session.run(inputs), inputs)
    session.close()


def test_device_arrays_that_do_not_fit(device: FakeDevice) -> None:
    session = make_session(device)
    inputs = batch(2)
    good = device.user_array(inputs["images"], 1)

    def run(images: Any, stream: Any = None) -> None:
        session.run({**inputs, "images": images}, stream)

    def changed(**extra: Any) -> UserArray:
        array = UserArray(device, good.address, good.shape, good.dtype)
        array.extra = extra
        return array

    with pytest.raises(UsageError, match="expected C-contiguous"):
        run(changed(strides=(1, 2, 3, 4)))
    with pytest.raises(UsageError, match="masked"):
        run(changed(mask=good))
    with pytest.raises(UsageError, match="is int8.*expected uint8"):
        run(changed(typestr="|i1"))
    with pytest.raises(UsageError, match="is not memory that CUDA knows"):
        run(changed(data=(12345 * 256, False)))
    device.foreign_streams.add(77)
    with pytest.raises(UsageError, match="another CUDA context"):
        run(good, 77)
    with pytest.raises(UsageError, match="another CUDA context"):
        run(changed(stream=77))
    with pytest.raises(UsageError, match="cannot read a CUDA stream from str"):
        run(good, "stream")
    run(changed(strides=(8 * 8 * 3, 8 * 3, 3, 1)))
    session.close()


def test_options_that_make_no_sense(device: FakeDevice) -> None:
    for options in ({"lanes": 0}, {"max_graphs": 0}):
        with pytest.raises(UsageError, match="must be at least 1, got 0"):
            SessionOptions(**options)
    for buckets in ((), (0,), (4, 9)):
        with pytest.raises(UsageError, match=r"within the engine's batches of 1 to 8"):
            make_session(device, batch_buckets=buckets)


def test_use_after_close(device: FakeDevice) -> None:
    session = make_session(device)
    session.run(batch(1))
    session.close()
    session.close()
    with pytest.raises(BackendError, match=r"model\.engine is closed"):
        session.run(batch(1))


def test_close_while_in_use(device: FakeDevice) -> None:
    """Who has a lane finishes; who waits for one is turned away; then all is freed."""
    session = make_session(device, lanes=1)
    entered, go = threading.Event(), threading.Event()

    lanes = session._open().lanes
    original = device.activated

    class Blocking:
        def __enter__(self) -> None:
            self.manager = original()
            self.manager.__enter__()
            if threading.current_thread().name.startswith("first") and self.is_in_lane():
                entered.set()
                assert go.wait(10)

        def is_in_lane(self) -> bool:
            return lanes._alive > 0

        def __exit__(self, *error: Any) -> None:
            self.manager.__exit__(*error)

    device.activated = Blocking  # type: ignore[method-assign,assignment]
    results: dict[str, Any] = {}

    def work(name: str) -> None:
        try:
            results[name] = session.run(batch(2))
        except BackendError as error:
            results[name] = error

    threads = [threading.Thread(target=work, args=(n,), name=n) for n in ("first", "second")]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    _wait_until(lambda: len(lanes._waiting) == 1)
    closer = threading.Thread(target=session.close)
    closer.start()
    _wait_until(lambda: "second" in results)
    assert closer.is_alive()
    go.set()
    for thread in (*threads, closer):
        thread.join(10)
    assert isinstance(results["second"], BackendError)
    assert_equal(results["first"], batch(2))


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def scenario(device: FakeDevice) -> list[Exception]:
    """Run everything there is once; return the errors that callers saw."""
    errors: list[Exception] = []
    session: EngineSession | None = None

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except BackendError as error:
            errors.append(error.with_traceback(None))

    session = attempt(lambda: make_session(device, lanes=1, max_graphs=1))
    if session is None:
        return errors
    stream = device.user_stream()
    for size in (8, 16, 8, 8, 16):
        inputs = batch(3, size, size)
        outputs = attempt(lambda inputs=inputs: session.run(inputs))
        if outputs is not None:
            assert_equal(outputs, inputs)
        feeds = {name: device.user_array(value, stream) for name, value in inputs.items()}
        arrays = attempt(lambda feeds=feeds: session.run_on_device(feeds, stream))
        if arrays is not None:
            assert_equal({n: device.read(a, stream) for n, a in arrays.items()}, inputs)
    attempt(session.close)
    return errors


@pytest.mark.filterwarnings("ignore:this engine runs without CUDA graphs")
def test_any_call_may_fail() -> None:
    """Each call fails once: the caller gets an error or a right result, and nothing leaks."""
    clean = FakeDevice()
    assert scenario(clean) == []
    clean.check_all_given_back()
    number = len(clean.calls)
    assert number > 150
    for call in range(1, number + 1):
        device = FakeDevice(call, fail_at=call)
        errors = scenario(device)
        assert len(errors) <= 1 and all("made to" in str(error) for error in errors)
        assert errors or "begin_capture" in device.calls
        del errors
        device.check_all_given_back()
