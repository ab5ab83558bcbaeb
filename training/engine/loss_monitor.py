"""``LossMonitor``: brings losses to the host without making a GPU wait, and stops at nonsense."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deploykit.errors import TrainingError

_IMAGES_NAMED = 8


@dataclass
class IterationRecord:
    """What is known about one finished iteration.

    Args:
        iteration: 1-based number of the iteration.
        epoch: 1-based number of the epoch.
        learning_rate: Learning rate of the first parameter group.
        images: Paths of the images of the batch.
        terms: The loss terms and their sum ``loss``.
        grad_norm: Norm of the gradients before clipping, if a step was made.
        seconds: Seconds per phase.
    """

    iteration: int
    epoch: int
    learning_rate: float
    images: Sequence[str]
    terms: dict[str, float] = field(default_factory=dict)
    grad_norm: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class LossMonitor:
    """Checks the losses of every iteration and hands out its records.

    On a GPU the values are copied while it works on, and looked at one iteration later.

    Args:
        device: Where the losses are.
        skips_overflow: Whether non-finite gradients are no error (float16 with loss scaling).
    """

    def __init__(self, device: torch.device, skips_overflow: bool = False) -> None:
        self._on_gpu = device.type == "cuda"
        self._skips_overflow = skips_overflow
        self._pending: deque[_Pending] = deque()
        self._finished: list[IterationRecord] = []

    def submit(
        self, record: IterationRecord, terms: Mapping[str, Tensor], grad_norm: Tensor | None
    ) -> None:
        """Take the losses (scalars) and the gradient norm of an iteration.

        Raises:
            TrainingError: Those of this iteration (on a GPU: of the one before) are not finite.
        """
        values = [value.detach().float().reshape(()) for value in terms.values()]
        if grad_norm is not None:
            values.append(grad_norm.detach().float().reshape(()))
        self._pending.append(
            _Pending(record, list(terms), grad_norm is not None, torch.stack(values), self._on_gpu)
        )
        while len(self._pending) > int(self._on_gpu):
            self._finish(self._pending.popleft())

    def settle(self) -> None:
        """Wait for all values.

        Raises:
            TrainingError: Some are not finite.
        """
        while self._pending:
            self._finish(self._pending.popleft())

    def take(self) -> list[IterationRecord]:
        """Return the records of the iterations that finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _finish(self, pending: _Pending) -> None:
        record, values = pending.record, pending.values()
        record.terms = dict(zip(pending.names, values, strict=False))
        if pending.has_norm:
            record.grad_norm = values[-1]
        bad_losses = [name for name, value in record.terms.items() if not math.isfinite(value)]
        bad_norm = record.grad_norm is not None and not math.isfinite(record.grad_norm)
        if bad_losses or (bad_norm and not self._skips_overflow):
            raise TrainingError(_complaint(record, "loss" if bad_losses else "gradient"))
        self._finished.append(record)


class _Pending:
    """Values on their way to the host."""

    def __init__(
        self,
        record: IterationRecord,
        names: list[str],
        has_norm: bool,
        values: Tensor,
        on_gpu: bool,
    ) -> None:
        self.record, self.names, self.has_norm = record, names, has_norm
        self._event: torch.cuda.Event | None = None
        if on_gpu:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = values

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._host.tolist()]


def _complaint(record: IterationRecord, what: str) -> str:
    shown = ", ".join(str(path) for path in record.images[:_IMAGES_NAMED])
    more = f" and {len(record.images) - _IMAGES_NAMED} more" * (len(record.images) > _IMAGES_NAMED)
    terms = ", ".join(f"{name}={value:g}" for name, value in record.terms.items())
    norm = "" if record.grad_norm is None else f", grad_norm={record.grad_norm:g}"
    return (
        f"the {what} is not finite in iteration {record.iteration} (epoch {record.epoch}): "
        f"{terms}{norm}; images: {shown}{more}. No checkpoint was written since the last good one. "
        "Look at these images and their boxes, lower the learning rate, lengthen the warm-up, or "
        "clip gradients (optim_wrapper.clip_grad)"
    )
