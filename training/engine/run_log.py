"""``RunLog``: the files and the screen that a training run reports to."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)

from deploykit.errors import DeploykitError, MissingDependencyError
from deploykit.optional_imports import import_optional

ROOT = logging.getLogger("deploykit")
SCALARS = "scalars.jsonl"
TEXT = "train.log"

# Records of ``logging`` carry where they belong: a terminal with a progress bar shows a line per
# epoch, a log file or a pipe shows a line every few iterations.
TERMINAL_ONLY = {"belongs_to": "terminal"}
TEXT_ONLY = {"belongs_to": "text"}
FILE_ONLY = {"belongs_to": "file"}


class RunLog:
    """Writes ``train.log``, ``scalars.jsonl`` and TensorBoard events, and shows progress.

    Args:
        folder: Folder for the files, or ``None`` to write none.
        level: Lowest level of messages, e.g. ``"INFO"``.
        console: Where to show messages and progress; ``None`` shows warnings alone, as plain text.
    """

    def __init__(
        self, folder: Path | None, level: str = "INFO", console: Console | None = None
    ) -> None:
        self.folder = folder
        self._console = console
        self._handlers: list[logging.Handler] = [_screen_handler(console)]
        self._scalars = None
        self._events: Any = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._old_level = ROOT.level
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._handlers.append(_file_handler(folder / TEXT))
            self._scalars = (folder / SCALARS).open("a", encoding="utf-8")
        ROOT.setLevel(level)
        for handler in self._handlers:
            ROOT.addHandler(handler)
        if folder is not None:
            self._events = _event_writer(folder)

    def scalars(self, kind: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Record numbers.

        Args:
            kind: ``"train"`` or ``"val"``.
            step: Iterations done.
            epoch: 1-based epoch.
            values: The numbers; ``None`` and those that are not finite become ``null``.
        """
        if self._scalars is not None:
            clean = {name: _finite(value) for name, value in values.items()}
            row = {"kind": kind, "step": step, "epoch": epoch, **clean}
            self._scalars.write(json.dumps(row) + "\n")
            self._scalars.flush()
        if self._events is not None:
            for name, value in values.items():
                if value is not None:
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def start_progress(self, total: int, done: int) -> None:
        """Show a progress bar if the screen is a terminal."""
        if self._console is None or not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, status="")
        self._progress.start()

    def progress(self, done: int, title: str, status: str) -> None:
        """Move the progress bar.

        Args:
            done: Iterations done.
            title: Where training is.
            status: How it goes.
        """
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, description=title, status=status)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # The command line shows the error; the file keeps it.
            expected = isinstance(error, DeploykitError)
            text = str(error) or type(error).__name__
            ROOT.error("%s", text, exc_info=None if expected else error, extra=FILE_ONLY)
        self.close()

    def close(self) -> None:
        """Close the files and give the screen back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None
        if self._events is not None:
            self._events.close()
            self._events = None
        for handler in self._handlers:
            ROOT.removeHandler(handler)
            handler.close()
        self._handlers = []
        ROOT.setLevel(self._old_level)


def _screen_handler(console: Console | None) -> logging.Handler:
    if console is None:
        plain = logging.StreamHandler(sys.stderr)
        plain.setLevel(logging.WARNING)
        plain.setFormatter(_timed_lines())
        plain.addFilter(_without("file"))
        return plain
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_level=False, markup=False, log_time_format="%X"
        )
        handler.setFormatter(_LevelFormatter("%(message)s", "%(levelname)s: %(message)s"))
        handler.addFilter(_without("text", "file"))
        return handler
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(_timed_lines())
    handler.addFilter(_without("terminal", "file"))
    return handler


def _file_handler(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_timed_lines())
    handler.addFilter(_without("terminal"))
    return handler


def _without(*places: str) -> Callable[[logging.LogRecord], bool]:
    """Return a filter that drops what belongs to these places."""
    return lambda record: getattr(record, "belongs_to", "") not in places


class _LevelFormatter(logging.Formatter):
    """One format for information and another one, with the level, for warnings."""

    def __init__(self, normal: str, serious: str) -> None:
        super().__init__()
        self._normal = logging.Formatter(normal, "%Y-%m-%d %H:%M:%S")
        self._serious = logging.Formatter(serious, "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        is_serious = record.levelno >= logging.WARNING
        return (self._serious if is_serious else self._normal).format(record)


def _timed_lines() -> logging.Formatter:
    return _LevelFormatter("%(asctime)s %(message)s", "%(asctime)s %(levelname)s: %(message)s")


def _event_writer(folder: Path) -> Any:
    try:
        import_optional("tensorboard", "train", "Writing TensorBoard events")
    except MissingDependencyError as error:
        ROOT.warning("%s (training goes on without)", error)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
