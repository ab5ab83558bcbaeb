"""``EngineSession``: inferences with a loaded engine, from any number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt.device import Device, Engine, EngineTensor
from deploykit.runtimes.tensorrt.device_arrays import (
    DeviceInput,
    is_device_array,
    read_device_array,
    stream_handle,
)
from deploykit.runtimes.tensorrt.fair_pool import FairPool
from deploykit.runtimes.tensorrt.lane import Feed, GraphSwitch, Lane
from deploykit.runtimes.tensorrt.shape_plan import RunShapes, ShapePlan


@dataclass(frozen=True)
class SessionOptions:
    """How an engine is run.

    Args:
        lanes: Most inferences at a time.
        cuda_graphs: Whether to capture CUDA graphs.
        max_graphs: Most graphs of one lane.
        batch_buckets: Batch sizes to run, or ``None`` for powers of two, the smallest and the
            largest.
    """

    lanes: int = 2
    cuda_graphs: bool = True
    max_graphs: int = 8
    batch_buckets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("lanes", "max_graphs"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class _Loaded:
    """What goes when a session is closed, the device's context included."""

    device: Device
    engine: Engine
    lanes: FairPool[Lane]

    def free(self) -> None:
        self.lanes.close()
        with self.device.activated():
            self.engine.free()


class EngineSession:
    """Runs a loaded engine.

    Args:
        device: Where it is.
        engine: The engine; the session owns it.
        path: Where it came from, for messages.
        options: How to run it.

    Raises:
        UsageError: Batch buckets that the engine does not take.
    """

    def __init__(
        self, device: Device, engine: Engine, path: Path, options: SessionOptions | None = None
    ) -> None:
        options = options or SessionOptions()
        self._closed_message = f"{path} is closed; open it again to detect"
        self._inputs = {tensor.name: tensor for tensor in engine.tensors if tensor.is_input}
        self._outputs = {tensor.name for tensor in engine.tensors if not tensor.is_input}
        self._plan = ShapePlan(engine.tensors, options.batch_buckets)
        graphs = GraphSwitch(options.cuda_graphs, options.max_graphs, self._plan.is_static)
        lanes = FairPool(lambda: Lane(device, engine, graphs), options.lanes, self._closed_message)
        self._loaded: _Loaded | None = _Loaded(device, engine, lanes)

    def run(self, inputs: Mapping[str, Any], stream: object = None) -> dict[str, npt.NDArray[Any]]:
        """Run one batch and return its outputs as arrays of the host.

        Args:
            inputs: An array for every input of the engine, on the host or on the device.
            stream: The stream after whose work the inputs on the device are complete; see
                ``stream_handle``.

        Raises:
            UsageError: An array or stream that cannot be used.
            BackendError: The engine takes no such shapes, failed, or is closed.
        """
        loaded = self._open()
        shapes, feeds, handle = self._prepare(loaded.device, inputs, stream)
        with loaded.lanes.lend() as lane:
            return lane.run(shapes, feeds, handle)

    def run_on_device(
        self,
        inputs: Mapping[str, Any],
        stream: object = None,
        out: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Queue one batch and return its outputs as arrays of the device, without waiting.

        Args:
            inputs: As for ``run``.
            stream: The stream that the inputs on the device are complete on, and that the outputs
                will be complete on: what is queued on it afterwards may use them.
            out: Arrays on the device that are written to; by default new ones are made.

        Returns:
            ``DeviceArray`` for every output, or ``out``.

        Raises:
            UsageError: An array or stream that cannot be used.
            BackendError: The engine takes no such shapes, failed, or is closed.
        """
        loaded = self._open()
        shapes, feeds, handle = self._prepare(loaded.device, inputs, stream)
        if out is None:
            with loaded.lanes.lend() as lane:
                return dict(lane.run_on_device(shapes, feeds, handle))
        targets = self._targets(loaded.device, out, handle)
        with loaded.lanes.lend() as lane:
            lane.run_into(shapes, feeds, handle, targets)
        return dict(out)

    def close(self) -> None:
        """Wait for the inferences that are under way and free everything."""
        loaded = self._loaded
        if loaded is not None:
            loaded.free()
            self._loaded = None

    def _open(self) -> _Loaded:
        if self._loaded is None:
            raise BackendError(self._closed_message)
        return self._loaded

    def _targets(
        self, device: Device, out: Mapping[str, Any], stream: int
    ) -> dict[str, DeviceInput]:
        if unknown := sorted(set(out) - self._outputs):
            raise UsageError(f"out has {unknown}; the outputs are {sorted(self._outputs)}")
        targets = {}
        with device.activated():
            for name, value in out.items():
                if not is_device_array(value):
                    raise UsageError(
                        f"'{name}' of out is a {type(value).__name__}; expected an array on the GPU"
                    )
                targets[name] = _on_device(device, name, value, stream)
        return targets

    def _prepare(
        self, device: Device, inputs: Mapping[str, Any], stream: object
    ) -> tuple[RunShapes, dict[str, Feed], int]:
        handle = stream_handle(stream)
        with device.activated():
            device.check_stream(handle)
            feeds = {
                name: _feed(device, tensor, inputs[name], handle)
                for name, tensor in self._inputs.items()
            }
        rows = {name: feed.shape[:1] for name, feed in feeds.items()}
        if len(set(rows.values())) > 1:
            raise UsageError(f"the inputs have different numbers of rows: {rows}")
        return self._plan.choose({name: feed.shape for name, feed in feeds.items()}), feeds, handle


def _feed(device: Device, tensor: EngineTensor, value: Any, stream: int) -> Feed:
    """Return an input as the lanes take it, with everything about it checked but its sizes."""
    feed: Feed
    if is_device_array(value):
        feed = _on_device(device, tensor.name, value, stream)
    elif isinstance(value, np.ndarray):
        feed = value
    else:
        raise UsageError(
            f"'{tensor.name}' is a {type(value).__name__}; expected a numpy array, or an array "
            "on the GPU with __dlpack__ or __cuda_array_interface__"
        )
    if feed.dtype != tensor.dtype or len(feed.shape) != len(tensor.shape):
        raise UsageError(
            f"'{tensor.name}' is {feed.dtype}{list(feed.shape)}; expected {tensor.dtype} with "
            f"{len(tensor.shape)} axes"
        )
    return feed


def _on_device(device: Device, name: str, value: Any, stream: int) -> DeviceInput:
    """Return an array that is on this device."""
    array = read_device_array(value, name, stream)
    device.check_address(array.address)
    if array.stream is not None:
        device.check_stream(array.stream)
    return array
