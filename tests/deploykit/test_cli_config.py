from __future__ import annotations

import json
import re

import pytest

from deploykit.cli import main
from deploykit.cli.config import EXAMPLES
from deploykit.training.config import Config, load_config
from deploykit.training.recipes import find_config

BASE = "model = dict(type='A', backbone=dict(depth=50, scale=(1, 2)))\nnames = [\n 'x',\n 'a  b']\n"
CHILD = """_base_ = 'base.py'
model = dict(backbone=dict(depth=18))
empty = []
mixed = [1, dict(p=2)]
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    return "child.py"


def test_prints_text_that_reads_back(child, capsys):
    assert main(["config", child]) == 0
    assert Config.from_text(capsys.readouterr().out) == load_config(child)


def test_options_and_key(child, capsys):
    code = main(
        [
            "config",
            child,
            "--key",
            "model.backbone",
            "--cfg-options",
            "model.backbone.depth=7",
            "names=a,b",
        ]
    )
    assert code == 0
    assert capsys.readouterr().out == "dict(depth=7, scale=(1, 2))\n"
    assert main(["config", child, "--key", "model.backbone.scale.1"]) == 0
    assert capsys.readouterr().out == "2\n"


def test_origins_are_aligned_and_name_file_and_line(child, capsys):
    assert main(["config", child, "--origins", "--cfg-options", "new=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [line.split("  ", 1)[0] for line in lines]
    texts = [line.split("  ", 1)[1].strip() for line in lines]
    assert dict(zip(texts, places, strict=True)) == {
        "model.type = 'A'": "base.py:1",
        "model.backbone.depth = 18": "child.py:2",
        "model.backbone.scale = (1, 2)": "base.py:1",
        "names = ['x', 'a  b']": "base.py:3-4",
        "empty = []": "child.py:3",
        "mixed.0 = 1": "child.py:4",
        "mixed.1.p = 2": "child.py:4",
        "new = 1": "<options>:1",
    }
    assert len({line.index(text) for line, text in zip(lines, texts, strict=True)}) == 1


def test_a_list_whose_elements_come_from_two_files_is_shown_element_by_element(child, capsys):
    assert main(["config", child, "--origins", "--key", "names", "--cfg-options", "names.0=z"]) == 0
    assert capsys.readouterr().out == "<options>:1  names.0 = 'z'\nbase.py:4    names.1 = 'a  b'\n"


def test_json(child, capsys):
    assert main(["config", child, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == {
        "type": "A",
        "backbone": {"depth": 18, "scale": [1, 2]},
    }
    assert (
        main(["config", child, "--format", "json", "--origins", "--key", "model.backbone.depth"])
        == 0
    )
    assert json.loads(capsys.readouterr().out) == {
        "model.backbone.depth": {"value": 18, "file": "child.py", "line": 2, "column": 28}
    }


def test_what_json_cannot_hold(child, capsys):
    assert main(["config", child, "--format", "json", "--cfg-options", "model.x=inf"]) == 2
    assert "'model.x' is inf, which JSON cannot hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "there is no config file 'missing.py'"),
        (["child.py", "--key", "model.head"], "'model' has no key 'head'; it has: type, backbone"),
        (["child.py", "--key", "modle"], "the config has no key 'modle'; it has: model, names"),
        (["child.py", "--key", "names.2"], "'names' has the indices 0 to 1, not '2'"),
        (["child.py", "--key", "empty.0"], "'empty' is empty"),
        (["child.py", "--key", "model.type.x"], "'model.type' is 'A' and has no key 'x'"),
        (["child.py", "--cfg-options", "novalue"], "'novalue' is not of the form KEY=VALUE"),
        (["child.py", "--cfg-options", "names.5=1"], "index out of range in 'names.5'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(child, capsys, arguments, message):
    assert main(["config", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("deploykit: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_broken_config_names_file_line_and_column(child, capsys, tmp_path):
    (tmp_path / "broken.py").write_text("a = 1\nb = open('x')\n")
    assert main(["config", "broken.py"]) == 2
    assert "broken.py:2:5: 'open()' cannot be called in a config" in capsys.readouterr().err


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_work(example, capsys):
    assert main(example.split()[1:]) == 0
    assert capsys.readouterr().out


def test_a_recipe_by_name(capsys):
    assert main(["config", "rtmdet_tiny"]) == 0
    assert Config.from_text(capsys.readouterr().out) == load_config(find_config("rtmdet_tiny"))


def test_a_terminal_gets_colours_and_the_same_text(child, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for arguments, text in (
        (["--key", "model.backbone"], "dict(depth=18, scale=(1, 2))"),
        (["--origins"], "child.py:2   model.backbone.depth = 18"),
    ):
        assert main(["config", child, *arguments]) == 0
        output = capsys.readouterr().out
        assert "\x1b[" in output
        assert text in re.sub(r"\x1b\[[0-9;]*m", "", output)
