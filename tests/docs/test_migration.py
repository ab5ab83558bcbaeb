"""The page for users of MMDetection names commands and files that exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, build_parser

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (FOLDER / "migration.md").read_text(encoding="utf-8")
LINES = [line.strip() for line in PAGE.splitlines() if line.startswith("    deploykit ")]
INLINE = re.findall(r"`(deploykit [^`]+)`", PAGE)


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


def options_of(command: str) -> set[str]:
    """The options of a command and of its subcommands."""
    found: set[str] = set()

    def collect(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    if parser.prog != "deploykit" or name == command:
                        collect(inner)

    collect(build_parser(command))
    return found


def test_there_are_commands():
    assert len(LINES) >= 10 and len(INLINE) >= 10


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_parsed(line: str):
    words = words_of(line)
    arguments = build_parser(words[0]).parse_args(words)
    assert callable(arguments.run)


@pytest.mark.parametrize("line", sorted(set(INLINE)))
def test_every_command_in_the_text_exists(line: str):
    command, *rest = words_of(line)
    assert command in COMMANDS
    given = {word for word in rest if word.startswith("--")}
    assert given <= options_of(command)
    if len([word for word in rest if not word.startswith("-")]) > 1:  # a whole line
        assert callable(build_parser(command).parse_args([command, *rest]).run)


def table(heading: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| \n").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


@pytest.mark.parametrize(
    ("heading", "command"),
    [("Training", "train"), ("Testing", "test"), ("Deploying", "convert")],
)
def test_every_option_in_the_tables_exists(heading: str, command: str):
    rows = table(heading)
    assert len(rows) > 8
    known = options_of(command)
    for row in rows:
        ours = row[1] if len(row) > 1 else ""
        if "torchrun" in ours:
            continue
        for code in re.findall(r"`([^`]+)`", ours):
            words = code.split()
            if words[0] == "deploykit":
                assert set(w for w in words if w.startswith("--")) <= options_of(words[1]), row
            elif words[0].startswith("--"):
                assert words[0] in known, row


def test_linked_pages_exist():
    for name in re.findall(r"\]\(([\w.-]+\.md)\)", PAGE):
        assert (FOLDER / name).is_file(), name
