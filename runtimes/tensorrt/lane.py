"""``Lane``: what one thread at a time runs an engine with.

A lane has a stream of its own, on which everything it queues runs in order, staging blocks for
inputs and outputs, scratch memory that its execution contexts share, and CUDA graphs.

A graph repeats the launches of an inference for one set of shapes and addresses at the cost of one
launch. TensorRT wants an execution context to itself for each graph and one run before the capture.
So for an engine whose shapes are fixed the first inference runs plainly and the second is captured.
An engine with dynamic shapes runs a shape that it has not seen lately in a context that all such
shapes share; only a shape that comes back gets a context and a graph of its own. The least recently
used graph goes when there are too many.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt.device import (
    ALIGNMENT,
    Device,
    Engine,
    Event,
    ExecutionContext,
    Graph,
    Memory,
    Shape,
)
from deploykit.runtimes.tensorrt.device_arrays import DeviceArray, DeviceInput, ResultBlock
from deploykit.runtimes.tensorrt.shape_plan import RunShapes
from deploykit.runtimes.tensorrt.staging import Layout, Staging

Feed = npt.NDArray[Any] | DeviceInput

# Shapes that are remembered in order to notice one that comes back.
_REMEMBERED_SHAPES = 64
RunKey = tuple[tuple[str, Shape], ...]


class GraphSwitch:
    """Whether graphs are captured; off for good, with one warning, once a capture has failed.

    Args:
        enabled: Whether they are at first.
        limit: Most graphs of one lane.
        capture_first: Whether a shape is worth a graph when it is seen for the first time.
    """

    def __init__(self, enabled: bool, limit: int, capture_first: bool) -> None:
        self._lock = Lock()
        self.enabled = enabled and limit > 0
        self.limit = limit
        self.capture_first = capture_first

    def turn_off(self, reason: str) -> None:
        """Capture no more."""
        with self._lock:
            was_enabled, self.enabled = self.enabled, False
        if was_enabled:
            warnings.warn(
                f"this engine runs without CUDA graphs: {reason}", RuntimeWarning, stacklevel=2
            )


@dataclass
class _Run:
    """An execution context that is set up for certain shapes.

    ``in_place`` holds the addresses of inputs that are read where the caller has them, not in the
    input block.
    """

    key: RunKey
    context: ExecutionContext
    inputs: Layout
    outputs: Layout
    in_place: Mapping[str, int]
    has_run: bool = False
    graph: Graph | None = None

    def free(self) -> None:
        if self.graph is not None:
            self.graph.free()
        self.context.free()


class Lane:
    """Runs an engine for one thread at a time; see the text of this module.

    Args:
        device: Where the engine is.
        engine: The engine.
        graphs: Whether to capture graphs; shared by all lanes of an engine.
    """

    def __init__(self, device: Device, engine: Engine, graphs: GraphSwitch) -> None:
        self._device = device
        self._engine = engine
        self._graphs = graphs
        self._dtypes = {tensor.name: tensor.dtype for tensor in engine.tensors}
        self._output_names = [tensor.name for tensor in engine.tensors if not tensor.is_input]
        self._inputs, self._outputs = Staging(device), Staging(device)
        self._runs: OrderedDict[RunKey, _Run] = OrderedDict()
        self._seen: OrderedDict[RunKey, None] = OrderedDict()
        self._shared_context: ExecutionContext | None = None
        self._latest: _Run | None = None  # what the shared context is set up for
        self._pinned_is_read = False
        with device.activated():
            self._stream = device.create_stream()
            self._event = device.create_event()
            self._scratch: Memory = device.allocate(engine.scratch_bytes)

    def run(
        self, shapes: RunShapes, feeds: Mapping[str, Feed], stream: int
    ) -> dict[str, npt.NDArray[Any]]:
        """Run one batch and wait for its outputs.

        Args:
            shapes: The shapes to run, with the feeds' rows in them.
            feeds: Every input of the engine.
            stream: The caller's stream, after whose work feeds on the device are complete.

        Returns:
            Every output, without the rows that were filled up.
        """
        with self._device.activated():
            run = self._enqueue(shapes, feeds, stream)
            self._device.copy_out(
                self._outputs.pinned,
                0,
                self._outputs.address,
                run.outputs.nbytes,
                self._stream.handle,
            )
            self._wait()
        return {
            name: self._outputs.view(slot)[: shapes.rows].copy()
            for name, slot in run.outputs.slots.items()
        }

    def run_on_device(
        self, shapes: RunShapes, feeds: Mapping[str, Feed], stream: int
    ) -> dict[str, DeviceArray]:
        """Queue one batch and leave its outputs on the device, without waiting for them.

        Work that the caller queues on ``stream`` afterwards finds the outputs complete and may
        overwrite the feeds. Arguments as for ``run``.
        """
        with self._device.activated():
            run = self._enqueue(shapes, feeds, stream)
            result = Layout()
            for name, slot in run.outputs.slots.items():
                result.add(name, (shapes.rows, *slot.shape[1:]), slot.dtype)
            block = ResultBlock(self._device, result.nbytes)
            start = block.memory.address
            targets = {name: start + slot.offset for name, slot in result.slots.items()}
            self._hand_out(run, shapes.rows, targets, block.ready, stream)
        return {
            name: DeviceArray(block, slot.offset, slot.shape, slot.dtype, stream)
            for name, slot in result.slots.items()
        }

    def run_into(
        self,
        shapes: RunShapes,
        feeds: Mapping[str, Feed],
        stream: int,
        out: Mapping[str, DeviceInput],
    ) -> None:
        """Queue one batch and what copies its outputs into arrays of the caller.

        Args:
            shapes: As for ``run``.
            feeds: As for ``run``.
            stream: As for ``run_on_device``; ``out`` is overwritten in its order, too.
            out: Arrays for the outputs that are wanted.

        Raises:
            UsageError: One of them has another shape or type than its output.
        """
        with self._device.activated():
            run = self._enqueue(shapes, feeds, stream)
            for name, array in out.items():
                slot = run.outputs.slots[name]
                shape = (shapes.rows, *slot.shape[1:])
                if (array.shape, array.dtype) != (shape, slot.dtype):
                    raise UsageError(
                        f"'{name}' of out is {array.dtype}{list(array.shape)}; expected "
                        f"{slot.dtype}{list(shape)}"
                    )
            # What the caller still does with the arrays comes first.
            self._wait_for_producers(out.values(), stream)
            targets = {name: array.address for name, array in out.items()}
            self._hand_out(run, shapes.rows, targets, self._event, stream)

    def _hand_out(
        self, run: _Run, rows: int, targets: Mapping[str, int], ready: Event, stream: int
    ) -> None:
        """Queue copies of outputs, and let the caller's stream wait for them."""
        for name, target in targets.items():
            slot = run.outputs.slots[name]
            source = self._outputs.address + slot.offset
            self._device.copy_within(target, source, slot.nbytes(rows), self._stream.handle)
        ready.record(self._stream.handle)
        self._device.wait(stream, ready)

    def free(self) -> None:
        """Wait for the work of the lane and give everything back."""
        with self._device.activated():
            # After an error of the device its work is gone, but what it used is still ours.
            with suppress(BackendError):
                self._stream.synchronize()
            self._drop_runs()
            if self._shared_context is not None:
                self._shared_context.free()
                self._shared_context = None
            for part in (self._inputs, self._outputs, self._scratch, self._event, self._stream):
                part.free()

    def _enqueue(self, shapes: RunShapes, feeds: Mapping[str, Feed], stream: int) -> _Run:
        """Queue the inputs and the inference; the outputs are then in ``self._outputs``."""
        self._wait_for_producers(feeds.values(), stream)
        in_place = {} if self._graphs.enabled else _usable_in_place(feeds, shapes)
        key = shapes.inputs
        run = self._find(key, in_place) or self._set_up(key, in_place)
        self._load(run, shapes.rows, feeds)
        if run.graph is None and run.has_run and self._is_kept(run):
            self._capture(run)
            if run.graph is None:
                # Nobody knows what state the failure left the context in.
                self._wait()
                self._drop_runs()
                run = self._set_up(key, {})
        if run.graph is not None:
            run.graph.launch(self._stream.handle)
        else:
            run.context.enqueue(self._stream.handle)
            run.has_run = True
        return run

    def _wait(self) -> None:
        """Wait on the host for the work of the lane."""
        self._stream.synchronize()
        self._pinned_is_read = False

    def _wait_for_producers(self, feeds: Iterable[Feed], stream: int) -> None:
        """Let the lane's stream wait for whoever writes the feeds on the device."""
        arrays = [feed for feed in feeds if isinstance(feed, DeviceInput)]
        producers = {array.stream for array in arrays if array.stream is not None}
        for producer in producers | ({stream} if arrays else set()):
            self._event.record(producer)
            self._device.wait(self._stream.handle, self._event)

    def _find(self, key: RunKey, in_place: Mapping[str, int]) -> _Run | None:
        """Return a run that is set up already."""
        kept = self._runs.get(key)
        if kept is not None:
            self._runs.move_to_end(key)
            return kept
        latest = self._latest
        if self._graphs.enabled or latest is None or latest.key != key:
            return None
        return latest if latest.in_place == in_place else None

    def _set_up(self, key: RunKey, in_place: Mapping[str, int]) -> _Run:
        """Return a new run for these shapes, with all addresses set."""
        inputs = Layout()
        for name, shape in key:
            inputs.add(name, shape, self._dtypes[name])
        self._make_room(self._inputs, inputs)
        keep = self._graphs.enabled and self._comes_back(key)
        context = self._new_context(for_graph=True) if keep else self._context_for_all()
        for name, shape in key:
            context.set_shape(name, shape)
        outputs = Layout()
        for name in self._output_names:
            outputs.add(name, context.shape(name), self._dtypes[name])
        self._make_room(self._outputs, outputs)
        for name, slot in inputs.slots.items():
            context.set_address(name, in_place.get(name, self._inputs.address + slot.offset))
        for name, slot in outputs.slots.items():
            context.set_address(name, self._outputs.address + slot.offset)
        run = _Run(key, context, inputs, outputs, in_place)
        if keep:
            self._keep(key, run)
        else:
            self._latest = run
        return run

    def _comes_back(self, key: RunKey) -> bool:
        """Return whether a shape is worth a graph: it was seen before, or it is the only one."""
        if self._graphs.capture_first or key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED_SHAPES:
            self._seen.popitem(last=False)
        return False

    def _keep(self, key: RunKey, run: _Run) -> None:
        """Keep a run for its graph; the least recently used one goes."""
        if len(self._runs) >= self._graphs.limit:
            self._wait()
            self._runs.popitem(last=False)[1].free()
        self._runs[key] = run

    def _is_kept(self, run: _Run) -> bool:
        return self._graphs.enabled and self._runs.get(run.key) is run

    def _drop_runs(self) -> None:
        while self._runs:
            self._runs.popitem()[1].free()

    def _new_context(self, *, for_graph: bool) -> ExecutionContext:
        stream = self._stream.handle
        return self._engine.create_context(self._scratch, stream, for_graph=for_graph)

    def _context_for_all(self) -> ExecutionContext:
        if self._shared_context is None:
            self._shared_context = self._new_context(for_graph=False)
        return self._shared_context

    def _make_room(self, staging: Staging, layout: Layout) -> None:
        """Let a block grow if it has to; graphs, which hold its addresses, go with the old one."""
        if layout.nbytes > staging.capacity:
            self._wait()
            self._drop_runs()
            self._latest = None
            staging.grow(layout.nbytes)

    def _load(self, run: _Run, rows: int, feeds: Mapping[str, Feed]) -> None:
        """Queue what brings the feeds into the input block, with zeros after their rows."""
        stream, device, inputs = self._stream.handle, self._device, run.inputs
        on_host = {name for name, feed in feeds.items() if isinstance(feed, np.ndarray)}
        if on_host and self._pinned_is_read:
            # An earlier run_on_device did not wait for its copy from the block.
            self._wait()
        for name, slot in inputs.slots.items():
            feed = feeds[name]
            if isinstance(feed, np.ndarray):
                view = self._inputs.view(slot)
                view[:rows] = feed
                view[rows:] = 0
            elif name not in run.in_place:
                target = self._inputs.address + slot.offset
                device.copy_within(target, feed.address, feed.nbytes, stream)
                if padding := slot.nbytes() - feed.nbytes:
                    device.clear(target + feed.nbytes, padding, stream)
        if len(on_host) == len(inputs.slots):
            device.copy_in(self._inputs.address, self._inputs.pinned, 0, inputs.nbytes, stream)
        else:
            for name in on_host:
                slot = inputs.slots[name]
                target = self._inputs.address + slot.offset
                device.copy_in(target, self._inputs.pinned, slot.offset, slot.nbytes(), stream)
        self._pinned_is_read = self._pinned_is_read or bool(on_host)

    def _capture(self, run: _Run) -> None:
        """Capture a run into its graph, or turn graphs off."""
        stream = self._stream
        try:
            stream.begin_capture()
            try:
                run.context.enqueue(stream.handle)
            except BackendError:
                with suppress(BackendError):
                    stream.end_capture().free()
                raise
            run.graph = stream.end_capture()
        except BackendError as error:
            self._graphs.turn_off(str(error))


def _usable_in_place(feeds: Mapping[str, Feed], shapes: RunShapes) -> dict[str, int]:
    """Return the addresses of the feeds that the engine can read where they are."""
    return {
        name: feed.address
        for name, feed in feeds.items()
        if isinstance(feed, DeviceInput)
        and feed.address % ALIGNMENT == 0
        and feed.shape[0] == shapes.bucket
    }
