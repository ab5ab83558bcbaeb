"""Arrays on the device, in and out, on the fake device: no GPU is involved."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from engine_sessions import assert_equal, batch, detect, make_session
from fake_cuda import FakeDevice, UserArray

from deploykit.errors import UsageError


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
