"""An engine on the device of ``fake_cuda.py``: a function of numpy arrays, run as queued work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fake_cuda import JUNK, Counted, FakeDevice, FakeMemory, Op, Span

from deploykit.errors import BackendError
from deploykit.runtimes.tensorrt.device import ALIGNMENT, EngineTensor, Shape


class FakeContext(Counted):
    """See ``ExecutionContext``."""

    kind = "context"

    def __init__(self, engine: FakeEngine, scratch: FakeMemory, for_graph: bool) -> None:
        super().__init__(engine.device)
        self.engine, self.scratch, self.for_graph = engine, scratch, for_graph
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.ran: set[Any] = set()
        if scratch.nbytes < engine.scratch_bytes:
            self.device.violations.append("scratch memory is too small")

    def state(self) -> Any:
        return tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items()))

    def set_shape(self, name: str, shape: Shape) -> None:
        self.device.enter("set_shape")
        self.use("set_shape")
        low, _, high = next(t.profile for t in self.engine.tensors if t.name == name)
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            raise BackendError(f"TensorRT: set_input_shape failed: {name} {shape}")
        self.shapes[name] = shape

    def shape(self, name: str) -> Shape:
        self.device.enter("shape")
        tensor = next(tensor for tensor in self.engine.tensors if tensor.name == name)
        return (self.shapes["images"][0], *tensor.shape[1:])

    def set_address(self, name: str, address: int) -> None:
        self.device.enter("set_address")
        self.use("set_address")
        if address % ALIGNMENT:
            self.device.violations.append(f"the address of {name} is not aligned")
        self.addresses[name] = address

    def check_stream(self, stream: int) -> None:
        """Note it if this context, or one with the same scratch memory, works elsewhere."""
        for handle, queue in self.device.queues.items():
            for op in queue.ops if handle != stream else ():
                for use in op.uses:
                    if isinstance(use, FakeContext) and use.scratch is self.scratch:
                        self.device.violations.append("contexts share scratch on two streams")

    def enqueue(self, stream: int) -> None:
        self.device.enter("enqueue")
        self.use("enqueue")
        with self.device.lock:
            capturing = self.device.queues[stream].capturing is not None
            if capturing and self.state() not in self.ran:
                raise BackendError("TensorRT: execute_async_v3 failed: captured before a first run")
            self.ran.add(self.state())
            self.check_stream(stream)
            shapes, addresses = dict(self.shapes), dict(self.addresses)
            spans = {t.name: self._span(t, addresses[t.name], shapes) for t in self.engine.tensors}
            scratch = (self.scratch.address, self.scratch.nbytes)

            def work() -> None:
                self.device.bytes_at(*scratch)[:] = JUNK
                feeds = {
                    t.name: self.device.bytes_at(*spans[t.name])
                    .view(t.dtype)
                    .reshape(shapes[t.name])
                    for t in self.engine.tensors
                    if t.is_input
                }
                for name, value in self.engine.function(**feeds).items():
                    self.device.bytes_at(*spans[name])[:] = value.reshape(-1).view(np.uint8)

            op = Op("inference", work, (*spans.values(), scratch), (self,))
            self.device.queue_op(stream, op)

    def _span(self, tensor: EngineTensor, address: int, shapes: dict[str, Shape]) -> Span:
        rows = shapes["images"][0]
        shape = shapes[tensor.name] if tensor.is_input else (rows, *tensor.shape[1:])
        return address, int(np.prod(shape)) * tensor.dtype.itemsize


class FakeEngine(Counted):
    """See ``Engine``.

    Args:
        device: Where it is.
        tensors: Its inputs and outputs.
        function: Computes the outputs, by name, from the inputs.
    """

    kind = "engine"
    scratch_bytes = 1000

    def __init__(
        self,
        device: FakeDevice,
        tensors: tuple[EngineTensor, ...],
        function: Callable[..., dict[str, np.ndarray]],
    ) -> None:
        super().__init__(device)
        self.tensors = tensors
        self.function = function

    def create_context(self, scratch: FakeMemory, stream: int, *, for_graph: bool) -> FakeContext:
        self.device.enter("create_context")
        self.use("create_context")
        return FakeContext(self, scratch, for_graph)

    def free(self) -> None:
        if self._forget.alive and self.device.live["context"]:
            self.device.violations.append("engine freed before its contexts")
        super().free()
