"""The two flavours of TensorRT: one place that loads them, and one logger for each.

``tensorrt`` is TensorRT 10.12 to 11.x, whose engines fit the GPU that built them; ``rtx`` is
TensorRT-RTX, whose engines are compiled for the GPU at hand when they are loaded. Both have the
same API.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

from deploykit.errors import MissingDependencyError, UsageError

FlavourName = Literal["tensorrt", "rtx"]
FLAVOURS: tuple[FlavourName, ...] = get_args(FlavourName)
TITLES: dict[str, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
# Most severe first, as TensorRT orders them.
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

_MODULES: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
# What the extras of pyproject.toml ask for.
_OLDEST: dict[str, tuple[int, int]] = {"tensorrt": (10, 12), "rtx": (1, 7)}
_KEPT_MESSAGES = 200


def load_flavour(name: str) -> ModuleType:
    """Import a flavour of TensorRT.

    Args:
        name: ``"tensorrt"`` or ``"rtx"``.

    Returns:
        The module, with ``Builder``, ``Runtime`` and so on.

    Raises:
        UsageError: There is no such flavour.
        MissingDependencyError: It is not installed, cannot be loaded or is too old; the message
            names the extra that installs it.
    """
    if name not in FLAVOURS:
        raise UsageError(f"unknown TensorRT flavour '{name}', expected one of: tensorrt, rtx")
    install = f"Install it with: pip install 'deploykit[{name}]'"
    module = None
    for candidate in _MODULES[name]:
        try:
            module = import_module(candidate)
            break
        except (ImportError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name in _MODULES[name]:
                continue
            text = " ".join(str(error).split())
            raise MissingDependencyError(
                f"{TITLES[name]} is installed, but its libraries cannot be loaded: {text}. "
                f"{install} --force-reinstall"
            ) from error
    if module is None:
        raise MissingDependencyError(
            f"{TITLES[name]} needs the package '{_MODULES[name][0]}', which is not installed. "
            f"{install}"
        )
    if version_tuple(module.__version__)[:2] < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name]))
        raise MissingDependencyError(
            f"{TITLES[name]} {module.__version__} is too old, deploykit needs {oldest} or newer. "
            f"{install} --upgrade"
        )
    return module


def default_flavour() -> FlavourName:
    """Return ``"tensorrt"`` where it can be imported, else ``"rtx"``.

    Raises:
        MissingDependencyError: Neither can; the message names both extras.
    """
    reasons = []
    for name in FLAVOURS:
        try:
            load_flavour(name)
        except MissingDependencyError as error:
            reasons.append(str(error))
        else:
            return name
    if all("which is not installed" in reason for reason in reasons):
        raise MissingDependencyError(
            "neither TensorRT nor TensorRT-RTX is installed. Install one with: pip install "
            "'deploykit[tensorrt]' (GPUs of data centres and Jetson too, plugins) or pip install "
            "'deploykit[rtx]' (GeForce and RTX GPUs)"
        )
    raise MissingDependencyError(" ".join(reasons))


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, such as ``(1, 7, 1, 116)``; what follows them is dropped."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


@dataclass(frozen=True)
class Message:
    """A line of TensorRT's log.

    Args:
        severity: One of ``SEVERITIES``.
        text: What it says.
    """

    severity: str
    text: str

    def is_at_least(self, severity: str) -> bool:
        """Return whether this is as severe as ``severity`` or more."""
        return SEVERITIES.index(self.severity) <= SEVERITIES.index(severity)


@dataclass
class MessageLog:
    """Messages that were collected.

    Args:
        messages: In order.
    """

    messages: list[Message] = field(default_factory=list)

    def at_least(self, severity: str) -> list[Message]:
        """Return the messages of this severity or a higher one."""
        return [message for message in self.messages if message.is_at_least(severity)]

    @property
    def errors(self) -> list[str]:
        """The texts of the errors."""
        return [message.text for message in self.at_least("ERROR")]


class _Messages:
    """Where the logger of a flavour puts its messages; TensorRT calls it from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.logs: list[tuple[MessageLog, int]] = []
        self.recent: deque[Message] = deque(maxlen=_KEPT_MESSAGES)

    def add(self, severity: Any, text: str) -> None:
        level = min(max(int(severity), 0), len(SEVERITIES) - 1)
        name = SEVERITIES[level]
        with self.lock:
            if level <= SEVERITIES.index("WARNING"):
                self.recent.append(Message(name, text))
            for log, limit in self.logs:
                if level <= limit:
                    log.messages.append(Message(name, text))


@cache
def _messages(flavour: ModuleType) -> _Messages:
    return _Messages()


@cache
def logger(flavour: ModuleType) -> Any:
    """Return the ``ILogger`` of a flavour, to make builders, parsers and runtimes with.

    It is one for the whole process: TensorRT sends what does not belong to one object to the logger
    that it saw first, and that one has to outlive everything. It prints nothing.

    Args:
        flavour: What ``load_flavour`` returned.
    """
    messages = _messages(flavour)
    base: Any = flavour.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.add(severity, msg)

    return Logger()


@contextmanager
def collect_messages(flavour: ModuleType, least: str = "INFO") -> Iterator[MessageLog]:
    """Collect what TensorRT logs while the block runs.

    What other threads do with the same flavour meanwhile is collected, too.

    Args:
        flavour: What ``load_flavour`` returned.
        least: The least severity to keep, one of ``SEVERITIES``.

    Yields:
        The log, which is filled as messages come.
    """
    messages, log = _messages(flavour), MessageLog()
    entry = (log, SEVERITIES.index(least))
    with messages.lock:
        messages.logs.append(entry)
    try:
        yield log
    finally:
        with messages.lock:
            messages.logs = [other for other in messages.logs if other[0] is not log]


def recent_messages(flavour: ModuleType) -> list[Message]:
    """Return the last warnings and errors of a flavour in this process, oldest first."""
    messages = _messages(flavour)
    with messages.lock:
        return list(messages.recent)
