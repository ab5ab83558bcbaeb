"""The progress of a build, and how to interrupt one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

# Called with the name of a phase, how many of its steps are done, and how many there are.
Report = Callable[[str, int, int], None]


class Interruption:
    """Whether a build is to stop; set from a signal handler, read from TensorRT's callbacks."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn Ctrl-C into a request, and raise it when the block has ended.

    An exception inside a callback of TensorRT would end the process without clean-up. A second
    Ctrl-C does end it, which leaves nothing behind either: files are written after the build.

    Yields:
        The request.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def request(number: int, frame: FrameType | None) -> None:
        interruption.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)
        if interruption.requested:
            raise KeyboardInterrupt


def progress_monitor(module: ModuleType, report: Report, interruption: Interruption) -> Any:
    """Return an ``IProgressMonitor`` that reports the outermost phases of a build.

    Args:
        module: The flavour of TensorRT.
        report: Called for the two outer levels of phases; inner ones are many and short.
        interruption: Stops the build at its next step.
    """
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.sizes: dict[str, int] = {}
            self.depths: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.depths[phase_name] = self.depths.get(parent_phase or "", 0) + 1
            self.sizes[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return not interruption.requested

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.sizes.get(phase_name, 0))
            self.depths.pop(phase_name, None)

        def tell(self, phase_name: str, done: int) -> None:
            if self.depths.get(phase_name, 3) <= 2:
                report(phase_name, done, self.sizes.get(phase_name, 0))

    return Monitor()


def no_report(phase: str, done: int, total: int) -> None:
    """Report nothing."""
