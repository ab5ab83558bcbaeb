"""Where the inputs or the outputs of a run are: a block on the device and its twin on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError
from deploykit.runtimes.tensorrt.device import ALIGNMENT, Device, Memory, PinnedMemory, Shape


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in a block.

    Args:
        offset: In bytes.
        shape: With the rows that are run.
        dtype: Type of its elements.
    """

    offset: int
    shape: Shape
    dtype: np.dtype[Any]

    def nbytes(self, rows: int | None = None) -> int:
        """Return the size in bytes, of the first ``rows`` rows if given."""
        count = self.shape[0] if rows is None else rows
        return count * math.prod(self.shape[1:]) * self.dtype.itemsize


class Layout:
    """Tensors one after the other in a block, each aligned as TensorRT wants it."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.nbytes = 0

    def add(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> None:
        """Append a tensor.

        Raises:
            BackendError: Its shape is not known.
        """
        if not shape or min(shape) < 0:
            raise BackendError(
                f"the engine gives '{name}' the shape {list(shape)}; expected one that is known "
                "before the run and starts with the batch"
            )
        slot = Slot(self.nbytes, shape, dtype)
        self.slots[name] = slot
        self.nbytes += -(-slot.nbytes() // ALIGNMENT) * ALIGNMENT


class Staging:
    """A block on the device and one in pinned memory, both as large as the largest layout so far.

    Args:
        device: Where to allocate.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.capacity = 0
        self._memory: Memory | None = None
        self._pinned: PinnedMemory | None = None

    @property
    def address(self) -> int:
        """Where the block on the device starts."""
        assert self._memory is not None  # noqa: S101 - grow comes first
        return self._memory.address

    @property
    def pinned(self) -> PinnedMemory:
        """The block on the host."""
        assert self._pinned is not None  # noqa: S101 - grow comes first
        return self._pinned

    def grow(self, nbytes: int) -> None:
        """Make room for ``nbytes``; addresses change, and no work may be queued that uses them.

        Room doubles, so that a series of rising sizes allocates few times.
        """
        capacity = max(nbytes, 2 * self.capacity)
        self.free()
        self._memory = self._device.allocate(capacity)
        self._pinned = self._device.allocate_pinned(capacity)
        self.capacity = capacity

    def view(self, slot: Slot) -> npt.NDArray[Any]:
        """Return a tensor of the block on the host as an array."""
        data = self.pinned.array[slot.offset : slot.offset + slot.nbytes()]
        return data.view(slot.dtype).reshape(slot.shape)

    def free(self) -> None:
        """Give both blocks back."""
        for block in (self._memory, self._pinned):
            if block is not None:
                block.free()
        self._memory = self._pinned = None
        self.capacity = 0
