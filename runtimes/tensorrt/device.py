"""The seam between the logic of the TensorRT backend and the hardware under it.

``CudaDevice`` and ``TensorRTEngine`` implement these protocols with cuda-bindings and TensorRT. All
that is decided above them (the pool, buckets, graphs, buffers, order of work) depends on nothing
else, so it is tested on a CPU with an implementation that checks every rule stated here.

Sizes are in bytes, addresses are those of CUDA, streams are given by their handle (``CUstream``).
Every method but ``free`` may raise ``BackendError`` with the name of the call that failed. What
is not freed is given back when it is forgotten, after waiting for the work of the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

# TensorRT asks for this alignment of every tensor and of its scratch memory.
ALIGNMENT = 256
# CUDA's name for the stream of work that names none. It waits for all blocking streams.
LEGACY_DEFAULT_STREAM = 1


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine.

    Args:
        name: Its name in the graph.
        dtype: Type of its elements.
        shape: Its shape; -1 for what is known at run time only.
        is_input: Whether it is an input.
        profile: Smallest, best and largest shape of an input; ``None`` for outputs.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    is_input: bool
    profile: tuple[Shape, Shape, Shape] | None = None


class Memory(Protocol):
    """A block of memory on the device."""

    address: int
    nbytes: int

    def free(self) -> None:
        """Give it back; nothing that is queued may use it any more. Again: does nothing."""
        ...


class PinnedMemory(Protocol):
    """A block of page-locked memory on the host, which the device copies from and to.

    Args:
        array: The bytes. They may be touched only while no copy from or to them is queued.
    """

    array: npt.NDArray[np.uint8]
    nbytes: int

    def free(self) -> None:
        """Give it back; no copy from or to it may be queued. Again: does nothing."""
        ...


class Event(Protocol):
    """A point in the work of a stream."""

    def record(self, stream: int) -> None:
        """Move the event behind all work that ``stream`` has now."""
        ...

    def free(self) -> None:
        """Give it back. Again: does nothing."""
        ...


class Graph(Protocol):
    """Work that was captured and can be repeated."""

    def launch(self, stream: int) -> None:
        """Queue the work."""
        ...

    def free(self) -> None:
        """Give it back; no launch may be queued. Again: does nothing."""
        ...


class Stream(Protocol):
    """A queue of work of this process, not bound to the legacy default stream."""

    handle: int

    def synchronize(self) -> None:
        """Wait on the host until all its work is done."""
        ...

    def begin_capture(self) -> None:
        """Record what this thread queues from now on instead of running it."""
        ...

    def end_capture(self) -> Graph:
        """Stop recording and return what was recorded; raises if that is not possible."""
        ...

    def free(self) -> None:
        """Give it back; it must have no work left. Again: does nothing."""
        ...


class Device(Protocol):
    """One GPU, through its primary context, which every library in the process shares.

    Args:
        index: The N of ``cuda:N``.
        name: What the driver calls it.
        compute_capability: (major, minor).
        driver_version: (major, minor) of the newest CUDA that the driver supports.
        dlpack_type: DLPack's number for this kind of device.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    driver_version: tuple[int, int]
    dlpack_type: int

    def activated(self) -> AbstractContextManager[None]:
        """Make the device current for this thread, and what was current before it afterwards.

        All other calls, those of the objects it makes included, belong inside.
        """
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Return memory aligned to ``ALIGNMENT``."""
        ...

    def allocate_pinned(self, nbytes: int) -> PinnedMemory:
        """Return page-locked memory of the host."""
        ...

    def create_stream(self) -> Stream:
        """Return a new stream."""
        ...

    def create_event(self) -> Event:
        """Return a new event."""
        ...

    def wait(self, stream: int, event: Event) -> None:
        """Let ``stream`` wait for ``event`` before it does what is queued later."""
        ...

    def copy_in(
        self, target: int, source: PinnedMemory, offset: int, nbytes: int, stream: int
    ) -> None:
        """Queue a copy of ``source[offset:offset + nbytes]`` to an address of the device."""
        ...

    def copy_out(
        self, target: PinnedMemory, offset: int, source: int, nbytes: int, stream: int
    ) -> None:
        """Queue a copy from an address of the device to ``target[offset:offset + nbytes]``."""
        ...

    def copy_within(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy between two addresses of the device."""
        ...

    def clear(self, target: int, nbytes: int, stream: int) -> None:
        """Queue writing zeros."""
        ...

    def check_address(self, address: int) -> None:
        """Raise ``UsageError`` unless ``address`` is memory of this device and context."""
        ...

    def check_stream(self, stream: int) -> None:
        """Raise ``UsageError`` unless ``stream`` belongs to this device and context."""
        ...


class ExecutionContext(Protocol):
    """The state of an engine for one inference at a time. All its work shares one stream."""

    def set_shape(self, name: str, shape: Shape) -> None:
        """Set the shape of an input."""
        ...

    def shape(self, name: str) -> Shape:
        """Return the shape of an output for the shapes of the inputs that were set."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Set where a tensor is (inputs) or goes to (outputs)."""
        ...

    def enqueue(self, stream: int) -> None:
        """Queue one inference."""
        ...

    def free(self) -> None:
        """Give it back; none of its work may be queued. Again: does nothing."""
        ...


class Engine(Protocol):
    """A deserialised engine.

    Args:
        tensors: Its inputs and outputs.
        scratch_bytes: Memory that one execution context needs besides the tensors.
    """

    tensors: tuple[EngineTensor, ...]
    scratch_bytes: int

    def create_context(self, scratch: Memory, stream: int, *, for_graph: bool) -> ExecutionContext:
        """Return a context that works in ``scratch``.

        Contexts may share ``scratch`` if their work is on one stream.

        Args:
            scratch: At least ``scratch_bytes``; it outlives the context.
            stream: The stream of its work.
            for_graph: Whether it is going to be captured: then it runs one shape many times.
        """
        ...

    def free(self) -> None:
        """Give it back after its contexts. Again: does nothing."""
        ...
