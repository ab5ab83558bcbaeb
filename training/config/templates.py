"""The ``{{ ... }}`` templates of MMEngine: base values, file names and environment variables.

MMEngine pastes text into the source before Python parses it. Here the source is parsed as it is:
``{{ x }}`` outside a string is, to Python, a set in a set, which the interpreter recognises, and
strings are searched for templates when they are read. Only ``{{ $NAME:default }}`` is no Python; it
is masked by a name of the same length, so that lines and columns stay those of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.training.config.limits import EvaluationError

FILE_VARIABLES = ("fileDirname", "fileBasename", "fileBasenameNoExtension", "fileExtname")
# Every part is bounded or ends at a brace, so that no text makes the search take quadratic time.
_ENVIRONMENT = re.compile(
    r"\{\{(?P<inner>['\"]?[ \t]{0,20}\$(?P<name>\w{1,200})[ \t]{0,20}:"
    r"(?P<default>[^\n{}]{0,1000}))\}\}"
)
# CJK Extension A: letters that may stand in a Python name, and that hardly any config contains.
_MASKS = range(0x3400, 0x4DC0)
_MASK = re.compile("([\u3400-\u4dbf])\\1*")
_IN_STRING = re.compile(
    r"\{\{\s*(?:_base_\.(?P<path>[\w.]+)|(?P<file>" + "|".join(FILE_VARIABLES) + r")|"
    "(?P<mask>([\u3400-\u4dbf])\\4*))\\s*\\}\\}"
)
# In an f-string the parser has turned "{{" and "}}" into single braces already.
_IN_FSTRING = re.compile(_IN_STRING.pattern.replace(r"\{\{", r"\{", 1).replace(r"\}\}", r"\}"))


@dataclass(frozen=True)
class EnvironmentVariable:
    """One ``{{ $NAME:default }}`` of a file."""

    name: str
    default: str

    def value(self) -> str:
        """Return the variable's value, or the default if it is not set.

        Raises:
            EvaluationError: It is empty or not set, and there is no default.
        """
        value = os.environ.get(self.name, self.default)
        if not value:
            raise EvaluationError(
                f"the environment variable '{self.name}' is empty or not set and has no default; "
                f"set it or write {{{{ ${self.name}:default }}}}"
            )
        return value


def mask_environment(text: str) -> tuple[str, dict[str, EnvironmentVariable]]:
    """Replace what stands in ``{{ $NAME:default }}`` by names of the same length.

    Args:
        text: The source of a config.

    Returns:
        The masked text, and the variable that each masking letter stands for.
    """
    variables: dict[str, EnvironmentVariable] = {}
    letters: Iterator[str] = (chr(code) for code in _MASKS if chr(code) not in text)

    def mask(match: re.Match[str]) -> str:
        letter = next(letters, None)
        if letter is None:
            raise EvaluationError("too many environment variables in one file")
        default = match["default"].strip(" \t")
        if match["inner"][0] in "'\"" and default.endswith(match["inner"][0]):
            default = default[:-1].rstrip(" \t")
        variables[letter] = EnvironmentVariable(match["name"], default)
        return "{{" + letter * len(match["inner"]) + "}}"

    return _ENVIRONMENT.sub(mask, text), variables


class Templates:
    """The templates that one file may use.

    Args:
        path: The file, for the file name variables; None for text without a file.
        environment: From masking letters to variables, as :func:`mask_environment` returns it.
        base_value: Finds a value of the base by its dotted path.
    """

    def __init__(
        self,
        path: Path | None,
        environment: Mapping[str, EnvironmentVariable],
        base_value: Callable[[str], Any],
    ) -> None:
        self._path = path
        self._environment = environment
        self._base_value = base_value

    def file_variable(self, name: str) -> str:
        """Return ``fileDirname``, ``fileBasename``, ``fileBasenameNoExtension`` or ``fileExtname``.

        Raises:
            EvaluationError: The config has no file.
        """
        if self._path is None:
            raise EvaluationError(f"'{{{{ {name} }}}}' needs a config that is a file")
        values = (self._path.parent.as_posix(), self._path.name, self._path.stem, self._path.suffix)
        return values[FILE_VARIABLES.index(name)]

    def variable(self, name: str) -> EnvironmentVariable | None:
        """Return the environment variable that a name in the masked source stands for, if any."""
        return self._environment.get(name[0]) if _MASK.fullmatch(name) else None

    def in_string(self, text: str, *, fstring: bool = False) -> str:
        """Return a string literal with its templates filled in."""
        pattern = _IN_FSTRING if fstring else _IN_STRING
        return pattern.sub(self._fill, text)

    def _fill(self, match: re.Match[str]) -> str:
        if match["file"]:
            return self.file_variable(match["file"])
        if match["mask"]:
            variable = self.variable(match["mask"])
            return match[0] if variable is None else variable.value()
        value = self._base_value(match["path"])
        if isinstance(value, str | int | float) or value is None:
            return str(value)
        raise EvaluationError(
            f"'{match[0]}' in a string is a {type(value).__name__}; "
            "write it without quotes to get the value itself"
        )


def has_template(text: str) -> bool:
    """Return whether reading ``text`` back as a string literal would fill in a template."""
    return bool(_IN_STRING.search(text) or _ENVIRONMENT.search(text))
