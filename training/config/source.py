"""The text of one config file, parsed, with positions as people count them."""

from __future__ import annotations

import ast
import os
import warnings
from bisect import bisect_left
from pathlib import Path

from deploykit.errors import ConfigError
from deploykit.training.config.limits import MAX_CHARACTERS, EvaluationError
from deploykit.training.config.templates import mask_environment
from deploykit.training.config.tracked import Origin

SUFFIXES = (".py", ".json", ".yaml", ".yml")


class Source:
    """Text to interpret.

    Args:
        text: The text.
        label: What messages and origins call it: the file's path.
        path: The absolute path; None for text without a file.

    Raises:
        ConfigError: It is too long.
    """

    def __init__(self, text: str, label: str, path: Path | None) -> None:
        self.label, self.path = label, path
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(f"the config has more than {MAX_CHARACTERS:,} characters", label)
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        try:
            self.text, self.environment = mask_environment(text)
        except EvaluationError as error:
            raise ConfigError(str(error), label) from None
        self._lines: list[bytes] | None = None
        self._inner_bytes: dict[int, list[int]] = {}

    def parse(self) -> ast.Module:
        """Return the syntax tree of a Python config.

        Raises:
            ConfigError: It is not valid Python.
        """
        module = self._parse(self.text, "exec")
        assert isinstance(module, ast.Module)  # noqa: S101 - tells mypy what "exec" means
        return module

    def parse_expression(self) -> ast.expr:
        """Return the syntax tree of text that is one expression."""
        # A line that begins with a space would be indented; line numbers must stay.
        text = self.text.lstrip()
        lines_before = self.text[: len(self.text) - len(text)].count("\n")
        self.text = "\n" * lines_before + text
        expression = self._parse(self.text, "eval")
        assert isinstance(expression, ast.Expression)  # noqa: S101 - as above
        return expression.body

    def _parse(self, text: str, mode: str) -> ast.AST:
        try:
            with warnings.catch_warnings():
                # Python warns of "\d" in a string; the config's author cannot see why here.
                warnings.simplefilter("ignore")
                return ast.parse(text, self.label, mode)
        except SyntaxError as error:
            raise ConfigError(
                f"not valid Python: {error.msg}", self.label, error.lineno, error.offset or None
            ) from None
        except ValueError as error:
            raise ConfigError(f"not valid Python: {error}", self.label) from None
        except (RecursionError, MemoryError):
            raise ConfigError("the source is nested too deeply", self.label) from None

    def origin(self, node: ast.expr | ast.stmt | ast.keyword | ast.alias) -> Origin:
        """Return where a node begins."""
        column = node.col_offset - bisect_left(self._continuations(node.lineno), node.col_offset)
        return Origin(self.label, node.lineno, column + 1)

    def segment(self, node: ast.expr) -> str:
        """Return the text of a node that stands on one line."""
        return self._line(node.lineno)[node.col_offset : node.end_col_offset].decode()

    def _continuations(self, number: int) -> list[int]:
        """Return where a line has bytes that do not begin a character: Python counts in bytes."""
        if self.text.isascii():
            return []
        if number not in self._inner_bytes:
            line = self._line(number)
            self._inner_bytes[number] = (
                [] if line.isascii() else [n for n, byte in enumerate(line) if byte & 0xC0 == 0x80]
            )
        return self._inner_bytes[number]

    def _line(self, number: int) -> bytes:
        if self._lines is None:
            self._lines = self.text.encode().split(b"\n")
        # Within f-strings, Python up to 3.11 counts lines wrongly: the line may not exist.
        return self._lines[number - 1] if number <= len(self._lines) else b""

    def error(
        self, node: ast.expr | ast.stmt | ast.keyword | ast.alias, message: str
    ) -> ConfigError:
        """Return an error that stands at a node."""
        return ConfigError(message, *self.origin(node))


def read_source(path: Path) -> Source:
    """Read a config file.

    Raises:
        ConfigError: It is missing, no regular file, too large, not UTF-8, or of an unknown kind.
    """
    label = str(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a config ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}", label)
    try:
        if not path.exists():
            raise ConfigError("there is no such config file", label)
        if not path.is_file():
            raise ConfigError("the config is not a regular file", label)
        with path.open("rb") as stream:
            # No character has more than four bytes; the rest of a huge file is not read.
            data = stream.read(4 * MAX_CHARACTERS + 4)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config cannot be read: {error}", label) from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config is not UTF-8 text: {error}", label) from None
    return Source(text, label, Path(os.path.abspath(path)))
