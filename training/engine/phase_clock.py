"""``PhaseClock``: where the time of an iteration goes."""

from __future__ import annotations

import time

import torch

PHASES = ("data", "forward", "backward", "step", "hooks")


class PhaseClock:
    """Splits the time of an iteration into phases.

    Args:
        device: A device to wait for at the end of each phase. Without one the phases of a GPU tell
            how long its work took to be queued, and nothing is slowed down.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._last = time.perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def start(self) -> None:
        """Begin an iteration."""
        # What follows the weights' step is over only after the iteration was reported, so it counts
        # for the next one.
        self.seconds = dict.fromkeys(PHASES, 0.0) | {"hooks": self.seconds["hooks"]}
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """Set the time of ``phase`` to that since the last call."""
        now = self._now()
        self.seconds[phase] = now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
