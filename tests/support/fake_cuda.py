"""An implementation of ``deploykit.runtimes.tensorrt.device`` on the CPU that checks its rules.

Work is queued as on a GPU and done late, in an order that a seed chooses among those that streams
and events allow. Memory holds junk until it is written. So what relies on an order that nothing
guarantees computes wrong numbers here, and what breaks a rule (use after free, host memory touched
while a copy is queued, a context on two streams, a free while work is queued, a call without an
active device...) is recorded in ``violations``. ``live`` counts what was not given back.

It says nothing about the real calls: ``cuda_device.py`` and ``engine.py`` are not involved.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt.device import ALIGNMENT, Shape
from deploykit.runtimes.tensorrt.dlpack import CPU

JUNK = 0xCD
Span = tuple[int, int]


@dataclass
class Op:
    """Something queued: what it touches, and what it does."""

    name: str
    work: Callable[[], None]
    spans: tuple[Span, ...] = ()
    uses: tuple[object, ...] = ()  # objects that must not be freed or changed before it is done
    wait: tuple[FakeEvent, int] | None = None


@dataclass
class Queue:
    ops: deque[Op] = field(default_factory=deque)
    capturing: list[Op] | None = None
    alive: bool = True


class FakeDevice:
    """See ``Device``.

    Args:
        seed: Chooses the order of work.
        fail_at: The number of the call that raises ``BackendError``, counted from 1.
    """

    dlpack_type = CPU  # its memory is the host's, so numpy can read what it exports
    index = 0
    name = "fake"
    compute_capability = (8, 6)
    driver_version = (13, 0)

    def __init__(self, seed: int = 0, fail_at: int | None = None) -> None:
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        # With 0 nothing is done before somebody waits for it.
        self.eagerness = (0.0, 0.3, 0.8)[seed % 3]
        self.fail_at = fail_at
        self.calls: list[str] = []
        self.violations: list[str] = []
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.blocks: dict[int, np.ndarray] = {}
        self.queues: dict[int, Queue] = {1: Queue()}
        self.foreign_streams: set[int] = set()
        self.capture_fails = False
        self._next_handle = 100
        self._active = threading.local()

    # What tests use.

    def user_stream(self) -> int:
        """Return the handle of a stream that the caller owns."""
        with self.lock:
            self._next_handle += 1
            self.queues[self._next_handle] = Queue()
            return self._next_handle

    def user_array(self, values: np.ndarray, stream: int, align: int = ALIGNMENT) -> UserArray:
        """Queue writing ``values`` to new memory on ``stream``; until then it holds junk."""
        with self.lock:
            block, address = _aligned(values.nbytes + align, align)
            self.blocks[address] = block

            def write() -> None:
                self.bytes_at(address, values.nbytes)[:] = values.reshape(-1).view(np.uint8)

            self._queue(stream, Op("user write", write, ((address, values.nbytes),)))
            return UserArray(self, address, values.shape, values.dtype)

    def overwrite(self, array: UserArray, stream: int) -> None:
        """Queue filling the caller's array with junk."""
        with self.lock:
            span = (array.address, array.nbytes)

            def write() -> None:
                self.bytes_at(*span)[:] = JUNK

            self._queue(stream, Op("user overwrite", write, (span,)))

    def read(self, array: Any, stream: int) -> np.ndarray:
        """Read an array as work of ``stream`` would find it."""
        found = []
        with self.lock:
            span = (array.address, array.nbytes)
            op = Op("user read", lambda: found.append(self.bytes_at(*span).copy()), (span,))
            self._queue(stream, op)
            self.finish(stream)
        return found[0].view(array.dtype).reshape(array.shape)

    def check_all_given_back(self) -> None:
        """Fail if a rule was broken or something is still alive."""
        if any(self.live.values()):
            gc.collect()
        assert self.violations == []
        assert {kind: count for kind, count in self.live.items() if count} == {}

    # Device.

    @contextmanager
    def activated(self) -> Iterator[None]:
        self._active.depth = getattr(self._active, "depth", 0) + 1
        try:
            yield
        finally:
            self._active.depth -= 1

    def allocate(self, nbytes: int) -> FakeMemory:
        self.enter("allocate")
        return FakeMemory(self, nbytes)

    def allocate_pinned(self, nbytes: int) -> FakePinned:
        self.enter("allocate_pinned")
        return FakePinned(self, nbytes)

    def create_stream(self) -> FakeStream:
        self.enter("create_stream")
        return FakeStream(self)

    def create_event(self) -> FakeEvent:
        self.enter("create_event")
        return FakeEvent(self)

    def wait(self, stream: int, event: FakeEvent) -> None:
        self.enter("wait")
        self._queue(stream, Op("wait", lambda: None, uses=(event,), wait=(event, event.asked)))

    def copy_in(
        self, target: int, source: FakePinned, offset: int, nbytes: int, stream: int
    ) -> None:
        self.enter("copy_in")
        start = source.address + offset
        if offset + nbytes > source.nbytes:
            self.violations.append("copy_in reads past its source")
        self._copy("copy_in", target, start, nbytes, stream, (source,))

    def copy_out(
        self, target: FakePinned, offset: int, source: int, nbytes: int, stream: int
    ) -> None:
        self.enter("copy_out")
        if offset + nbytes > target.nbytes:
            self.violations.append("copy_out writes past its target")
        self._copy("copy_out", target.address + offset, source, nbytes, stream, (target,))

    def copy_within(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.enter("copy_within")
        self._copy("copy_within", target, source, nbytes, stream, ())

    def clear(self, target: int, nbytes: int, stream: int) -> None:
        self.enter("clear")

        def work() -> None:
            self.bytes_at(target, nbytes)[:] = 0

        self._queue(stream, Op("clear", work, ((target, nbytes),)))

    def check_address(self, address: int) -> None:
        self.enter("check_address")
        if self._block_of(address, 1) is None:
            raise UsageError(f"the array at {address:#x} is not memory that CUDA knows")

    def check_stream(self, stream: int) -> None:
        self.enter("check_stream")
        if stream in self.foreign_streams:
            raise UsageError(f"the stream {stream:#x} belongs to another CUDA context")

    # How it works.

    def enter(self, name: str) -> None:
        """Note a call, let other work go on, and fail if this is the one."""
        with self.lock:
            self.calls.append(name)
            if not getattr(self._active, "depth", 0):
                self.violations.append(f"{name} without an active device")
            for handle in list(self.queues):
                while self.random.random() < self.eagerness and self._step(handle):
                    pass
            if self.fail_at is not None and len(self.calls) == self.fail_at:
                raise BackendError(f"CUDA: {name} failed: made to")

    def bytes_at(self, address: int, nbytes: int) -> np.ndarray:
        """Return memory as bytes; a view."""
        block = self._block_of(address, nbytes)
        if block is None:
            self.violations.append(f"{nbytes} bytes at {address:#x} are used after their free")
            return np.zeros(nbytes, np.uint8)
        start = address - block.ctypes.data
        return block[start : start + nbytes]

    def is_queued(self, thing: object) -> bool:
        """Return whether queued work uses ``thing``."""
        return any(thing in op.uses for queue in self.queues.values() for op in queue.ops)

    def touches(self, address: int, nbytes: int) -> bool:
        """Return whether queued work touches memory."""
        return any(
            start < address + nbytes and address < start + size
            for queue in self.queues.values()
            for op in queue.ops
            for start, size in op.spans
        )

    def finish(self, stream: int | None = None) -> None:
        """Do the work of a stream, or all."""
        for handle in [stream] if stream is not None else list(self.queues):
            while self._step(handle):
                pass

    def queue_op(self, stream: int, op: Op) -> None:
        with self.lock:
            self._queue(stream, op)

    def _queue(self, stream: int, op: Op) -> None:
        queue = self.queues.get(stream)
        if queue is None or not queue.alive:
            self.violations.append(f"{op.name} on a stream that was given back")
        elif queue.capturing is not None:
            queue.capturing.append(op)
        else:
            queue.ops.append(op)

    def _step(self, handle: int) -> bool:
        """Do the next piece of work of a stream."""
        ops = self.queues[handle].ops
        if not ops:
            return False
        op = ops[0]
        if op.wait is not None:
            event, version = op.wait
            while version and version not in event.done:
                if not self._step(event.streams[version]):
                    self.violations.append("a wait for work that is never done")
                    break
            if not ops or ops[0] is not op:
                return True
        op.work()
        ops.popleft()
        return True

    def _copy(
        self, name: str, target: int, source: int, nbytes: int, stream: int, uses: tuple[Any, ...]
    ) -> None:
        def work() -> None:
            self.bytes_at(target, nbytes)[:] = self.bytes_at(source, nbytes)

        self._queue(stream, Op(name, work, ((target, nbytes), (source, nbytes)), uses))

    def _block_of(self, address: int, nbytes: int) -> np.ndarray | None:
        for block in self.blocks.values():
            start = block.ctypes.data
            if start <= address and address + nbytes <= start + block.nbytes:
                return block
        return None

    def count(self, kind: str, change: int) -> None:
        self.live[kind] += change
        self.peak[kind] = max(self.peak[kind], self.live[kind])


def _aligned(nbytes: int, align: int) -> tuple[np.ndarray, int]:
    """Return junk that holds ``nbytes`` after an address with exactly this alignment."""
    raw = np.full(nbytes + 2 * ALIGNMENT, JUNK, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT + (align if align < ALIGNMENT else 0)
    block = raw[start : start + max(nbytes, 1)]
    return block, block.ctypes.data


class UserArray:
    """An array of the caller, through the CUDA array interface."""

    def __init__(
        self, device: FakeDevice, address: int, shape: Shape, dtype: np.dtype[Any]
    ) -> None:
        self.device, self.address, self.shape, self.dtype = device, address, shape, dtype
        self.nbytes = int(np.prod(shape)) * dtype.itemsize
        self.extra: dict[str, Any] = {}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            **self.extra,
        }


class _Block:
    """Memory that is junk at first. ``kind`` counts it."""

    kind = ""

    def __init__(self, device: FakeDevice, nbytes: int) -> None:
        with device.lock:
            self.device = device
            self.nbytes = nbytes
            block, self.address = _aligned(nbytes, ALIGNMENT)
            device.blocks[self.address] = block
            device.count(self.kind, 1)
        self._forget = weakref.finalize(self, self._forgotten, device, self.address, self.kind)

    @staticmethod
    def _forgotten(device: FakeDevice, address: int, kind: str) -> None:
        with device.lock:
            device.finish()
            del device.blocks[address]
            device.count(kind, -1)

    def free(self) -> None:
        with self.device.lock:
            if not self._forget.alive:
                return
            if self.device.touches(self.address, self.nbytes):
                self.device.violations.append(f"{self.kind} freed while work is queued on it")
            self._forget()


class FakeMemory(_Block):
    kind = "memory"


class FakePinned(_Block):
    kind = "pinned"

    @property
    def array(self) -> np.ndarray:
        with self.device.lock:
            if self.device.touches(self.address, self.nbytes):
                self.device.violations.append("pinned memory touched while a copy is queued")
            return self.device.blocks[self.address][: self.nbytes]


class Counted:
    """Something that is not memory. ``kind`` counts it."""

    kind = ""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        with device.lock:
            device.count(self.kind, 1)
        self._forget = weakref.finalize(self, device.count, self.kind, -1)

    def free(self) -> None:
        with self.device.lock:
            if self._forget.alive and self.device.is_queued(self):
                self.device.violations.append(f"{self.kind} freed while work uses it")
            self._forget()

    def state(self) -> Any:
        """Return what must not change between a capture and a launch."""

    def check_stream(self, stream: int) -> None:
        """Note it if this works on another stream than ``stream``."""

    def use(self, what: str) -> None:
        if not self._forget.alive:
            self.device.violations.append(f"{what} of a {self.kind} that was given back")


class FakeEvent(Counted):
    kind = "event"

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(device)
        # Whoever waits for an event waits for its latest record before the wait.
        self.asked = 0
        self.done: set[int] = set()
        self.streams: dict[int, int] = {}

    def record(self, stream: int) -> None:
        self.device.enter("record")
        self.use("record")
        with self.device.lock:
            self.asked += 1
            version = self.asked
            self.streams[version] = stream
            op = Op("record", lambda: self.done.add(version), uses=(self,))
            self.device.queue_op(stream, op)


class FakeStream(Counted):
    kind = "stream"

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(device)
        self.handle = device.user_stream()

    def free(self) -> None:
        with self.device.lock:
            if self._forget.alive:
                if self.device.queues[self.handle].ops:
                    self.device.violations.append("stream freed with work in it")
                self.device.queues[self.handle].alive = False
        super().free()

    def synchronize(self) -> None:
        self.device.enter("synchronize")
        self.use("synchronize")
        with self.device.lock:
            if self.device.queues[self.handle].capturing is not None:
                self.device.violations.append("synchronize during a capture")
            self.device.finish(self.handle)

    def begin_capture(self) -> None:
        self.device.enter("begin_capture")
        self.device.queues[self.handle].capturing = []

    def end_capture(self) -> FakeGraph:
        queue = self.device.queues[self.handle]
        ops, queue.capturing = queue.capturing, None
        self.device.enter("end_capture")
        if ops is None:
            raise BackendError("CUDA: cuStreamEndCapture failed: no capture")
        if self.device.capture_fails:
            raise BackendError(
                "CUDA: cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
            )
        return FakeGraph(self.device, ops)


class FakeGraph(Counted):
    kind = "graph"

    def __init__(self, device: FakeDevice, ops: list[Op]) -> None:
        super().__init__(device)
        self.ops = ops
        self.contexts = [use for op in ops for use in op.uses if isinstance(use, Counted)]
        self.states = [context.state() for context in self.contexts]

    def launch(self, stream: int) -> None:
        self.device.enter("launch")
        self.use("launch")
        if [context.state() for context in self.contexts] != self.states:
            self.device.violations.append("a graph's context was changed after the capture")
        for op in self.ops:
            for context in self.contexts:
                context.check_stream(stream)
            self.device.queue_op(stream, Op("graph", op.work, op.spans, (*op.uses, self)))
