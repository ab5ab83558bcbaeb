"""Bounds that keep a hostile config from hanging the reader or exhausting memory.

Every step of the interpreter and every element or character it produces is paid from one
:class:`Budget` per load. The largest configs of MMDetection, MMPretrain, MMSegmentation, MMPose and
MMYOLO stay far below the bounds.
"""

from __future__ import annotations

from typing import Any

MAX_CHARACTERS = 1_000_000
MAX_STEPS = 1_000_000
MAX_NESTING = 80
MAX_EXPRESSION_DEPTH = 120
MAX_INTEGER_BITS = 2048
MAX_FORMAT_WIDTH = 4096
MAX_BASE_DEPTH = 32
STEPS_PER_FILE = 1_000
STEPS_PER_RESULT = 4
CHARACTERS_PER_STEP = 16


class EvaluationError(Exception):
    """A construct or operation that the dialect refuses; the caller adds the place."""


class Budget:
    """The work that one load may still do, in steps of about a microsecond.

    Args:
        steps: Steps before :class:`EvaluationError` is raised.
    """

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.steps = steps
        self.left = steps

    def spend(self, steps: int) -> None:
        """Pay for work that is about to be done."""
        self.left -= steps
        if self.left < 0:
            raise EvaluationError(
                f"the config needs more than {self.steps:,} steps to evaluate; "
                "make its lists, strings or loops smaller"
            )

    def spend_text(self, characters: int) -> None:
        """Pay for a string of that many characters."""
        self.spend(1 + characters // CHARACTERS_PER_STEP)

    def charge(self, value: Any, depth: int = 0) -> None:
        """Pay for a walk over all of ``value``, shared parts counted each time they occur.

        Raises:
            EvaluationError: The budget is used up, or the value is nested too deeply or contains
                itself.
        """
        check_depth(depth)
        if isinstance(value, str):
            self.spend_text(len(value))
        elif isinstance(value, dict):
            self.spend(1)
            for key, item in value.items():
                self.charge(key, depth + 1)
                self.charge(item, depth + 1)
        elif isinstance(value, list | tuple | set):
            self.spend(1)
            for item in value:
                self.charge(item, depth + 1)
        else:
            self.spend(1)


def check_integer(value: Any) -> Any:
    """Return ``value``; refuse an integer too long to compute with in constant time."""
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise EvaluationError(f"the integer has more than {MAX_INTEGER_BITS} bits")
    return value


def check_depth(depth: int) -> None:
    """Refuse a value that is nested too deeply, which includes one that contains itself."""
    if depth > MAX_NESTING:
        raise EvaluationError(
            f"the value is nested deeper than {MAX_NESTING} levels, or contains itself"
        )
