"""What goes wrong, and random sequences of all there is, on the fake device."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_sessions import DYNAMIC, STATIC, assert_equal, batch, detect, make_session
from fake_cuda import FakeDevice, UserArray

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt.session import EngineSession, SessionOptions


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


def random_sequence(device: FakeDevice, choose: random.Random, steps: int) -> None:
    """Run anything in any order on one lane; check each result, some at once and some later."""
    static = choose.random() < 0.3
    session = make_session(
        device,
        STATIC if static else DYNAMIC,
        lanes=1,
        max_graphs=choose.randint(1, 3),
        cuda_graphs=choose.random() < 0.8,
    )
    streams = [1, device.user_stream(), device.user_stream()]
    pending: list[tuple[dict[str, Any], dict[str, np.ndarray], int]] = []

    def check_one() -> None:
        arrays, inputs, stream = pending.pop(choose.randrange(len(pending)))
        assert_equal({name: device.read(arrays[name], stream) for name in detect(**inputs)}, inputs)

    for step in range(steps):
        stream = choose.choice(streams)
        rows = choose.randint(1, 4 if static else 8)
        inputs = batch(rows, 8 if static else choose.choice((8, 8, 12, 16, 32)), step)
        feeds: dict[str, Any] = dict(inputs)
        for name, value in inputs.items():
            if choose.random() < 0.6:
                feeds[name] = device.user_array(value, stream, choose.choice((256, 64)))
        way = choose.choice(("host", "device", "device", "into"))
        if way == "host":
            assert_equal(session.run(feeds, stream), inputs)
            continue
        out = None
        if way == "into":
            shapes = detect(**inputs)
            out = {name: device.user_array(value * 0, stream) for name, value in shapes.items()}
        pending.append((session.run_on_device(feeds, stream, out), inputs, stream))
        for feed in feeds.values():
            if isinstance(feed, UserArray):
                device.overwrite(feed, stream)
        if choose.random() < 0.3:
            check_one()
    while pending:
        check_one()
    session.close()


def test_random_sequences() -> None:
    for seed in range(120):
        device = FakeDevice(seed)
        random_sequence(device, random.Random(seed), steps=20)
        device.check_all_given_back()
