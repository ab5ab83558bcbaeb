"""What shapes an engine is run with: limits, and buckets of batch sizes.

Rows of a batch do not influence one another, so a batch may be filled up with rows of zeros whose
results are dropped. Only few batch sizes are run then (powers of two, and the largest), so that few
graphs serve all. Height and width are never filled up: more padding is another input to the
network, with other results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt.device import EngineTensor, Shape


@dataclass(frozen=True)
class RunShapes:
    """The shapes of one run.

    Args:
        rows: Rows that the caller gave.
        inputs: Shape of every input with the rows of the bucket, in the engine's order. It is what
            graphs are kept by.
    """

    rows: int
    inputs: tuple[tuple[str, Shape], ...]

    @property
    def bucket(self) -> int:
        """Rows that are run."""
        return self.inputs[0][1][0]


class ShapePlan:
    """Chooses the shapes of a run.

    Args:
        tensors: Inputs and outputs of the engine; the first axis of each is the batch.
        batch_buckets: Batch sizes to run, or ``None`` for powers of two and the largest.

    Raises:
        UsageError: A bucket that the engine does not take.
    """

    def __init__(
        self, tensors: tuple[EngineTensor, ...], batch_buckets: tuple[int, ...] | None = None
    ) -> None:
        self.profiles = {
            tensor.name: tensor.profile for tensor in tensors if tensor.profile is not None
        }
        self.is_static = all(low == high for low, _, high in self.profiles.values())
        batches = [(low[0], high[0]) for low, _, high in self.profiles.values()]
        self.smallest = max(low for low, _ in batches)
        self.largest = min(high for _, high in batches)
        self.buckets = self._buckets(batch_buckets)

    def _buckets(self, asked: tuple[int, ...] | None) -> tuple[int, ...]:
        low, high = self.smallest, self.largest
        if asked is None:
            powers = {1 << power for power in range(high.bit_length())}
            return tuple(sorted({size for size in powers if low <= size <= high} | {low, high}))
        if not asked or any(not low <= size <= high for size in asked):
            raise UsageError(
                f"batch_buckets must be within the engine's batches of {low} to {high}, got "
                f"{list(asked)}"
            )
        return tuple(sorted({*asked, high}))

    def choose(self, shapes: Mapping[str, Shape]) -> RunShapes:
        """Return what to run for inputs of these shapes, whose first axes agree.

        Raises:
            BackendError: The engine takes no such shape; the message has its limits.
        """
        rows = next(iter(shapes.values()))[0]
        if not 1 <= rows <= self.largest:
            raise BackendError(
                f"the engine takes batches of 1 to {self.largest} images, got {rows}"
            )
        bucket = next(size for size in self.buckets if size >= rows)
        inputs = []
        for name, (low, _, high) in self.profiles.items():
            shape = (bucket, *shapes[name][1:])
            fits = len(shape) == len(low) and all(
                smallest <= size <= largest
                for smallest, size, largest in zip(low, shape, high, strict=True)
            )
            if not fits:
                raise BackendError(
                    f"the engine takes '{name}' of shape {_limits(low, high)}, got "
                    f"{list(shapes[name])}"
                )
            inputs.append((name, shape))
        return RunShapes(rows, tuple(inputs))


def _limits(low: Shape, high: Shape) -> str:
    """Return limits such as ``[1..8, 320..640, 320..640, 3]``."""
    sizes = (str(a) if a == b else f"{a}..{b}" for a, b in zip(low, high, strict=True))
    return f"[{', '.join(sizes)}]"
