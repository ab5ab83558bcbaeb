from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

from deploykit import __version__
from deploykit.cli import COMMANDS, build_parser, main
from deploykit.errors import DeploykitError


def test_version(capsys):
    with pytest.raises(SystemExit) as info:
        main(["--version"])
    assert info.value.code == 0
    assert capsys.readouterr().out == f"deploykit {__version__}\n"


def test_overview_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^    {name}\s", out, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as info:
        main([name, "--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    module = import_module(f"deploykit.cli.{name}")
    assert module.EXAMPLES
    for example in module.EXAMPLES:
        words = example.split("#")[0].split()
        assert words[:2] == ["deploykit", name], example
        build_parser(name).parse_args(words[1:])


@pytest.mark.parametrize("arguments", [[], ["fly"], ["detect", "--no-such-option"]])
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DeploykitError("the file is broken"), 2, "deploykit: error: the file is broken\n"),
        (OSError(28, "No space left", "a.json"), 2, "deploykit: error: a.json: No space left\n"),
        (OSError(5, "Input/output error"), 2, "deploykit: error: Input/output error\n"),
        (KeyboardInterrupt(), 130, "deploykit: interrupted\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(monkeypatch, capsys, error, code, line):
    module = import_module("deploykit.cli.config")

    def run(args: object) -> int:
        raise error

    monkeypatch.setattr(module, "run", run)
    assert main(["config", "some.py"]) == code
    assert capsys.readouterr().err == line


def test_a_reader_that_goes_away_is_no_error():
    command = "import os, sys; from deploykit.cli import main; sys.exit(main(sys.argv[1:]))"
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", command, "config", "rtmdet_tiny"]
    with os.fdopen(writer, "wb") as closed:
        result = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_rich_reports_the_same(monkeypatch):
    module = import_module("deploykit.cli.config")

    def run(args: object) -> int:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904 - what rich does

    monkeypatch.setattr(module, "run", run)
    assert main(["config", "some.py"]) == 0


def test_importing_the_package_and_showing_help_loads_no_heavy_module():
    program = (
        "import sys, deploykit, deploykit.cli\n"
        "try:\n    deploykit.cli.main(['detect', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'matplotlib', 'pycocotools'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("LOADED []\n")
