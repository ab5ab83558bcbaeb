"""``deploykit convert``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import onnx
import pytest

from deploykit import cli
from deploykit.cli.convert import EXAMPLES
from deploykit.errors import MissingDependencyError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``model.pth`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pth").write_bytes(toy_checkpoint.read_bytes())
    return tmp_path / "model.pth"


def stored_parity(path: Path) -> dict[str, Any]:
    (entry,) = [entry for entry in onnx.load(path).metadata_props if entry.key == "deploykit"]
    parity: dict[str, Any] = json.loads(entry.value)["parity"]
    return parity


def test_writes_the_file_and_prints_steps_parity_and_shapes(model: Path, capsys: Capture):
    words = ["--shape", "96x160", "--batch", "2", "--max-per-img", "6", "--out", "out/small.onnx"]
    assert cli.main(["convert", str(model), "--to", "onnx", *words]) == 0
    output = capsys.readouterr().out
    for step in ("load checkpoint", "export graph", "lower and optimise", "check", "parity, input"):
        assert re.search(rf"{step}.* \d+\.\d s", output), step
    assert "Parity with PyTorch on 6 drawn images" in output
    assert re.search(r"pipeline .* 2 .* 6 .* 36 .* 0 .* pass", output)
    written = Path("out/small.onnx")
    assert str(written) in output and "batch 2, height 96, width 160" in output
    assert stored_parity(written)["passed"]
    assert [path.name for path in written.parent.iterdir()] == ["small.onnx"]


def test_a_failed_parity_exits_1_shows_where_and_writes_nothing(model: Path, capsys: Capture):
    words = ["--shape", "96x160", "--score-tolerance", "0", "--box-tolerance", "0"]
    assert cli.main(["convert", str(model), "--to", "onnx", *words]) == 1
    captured = capsys.readouterr()
    assert "FAIL" in captured.out and "score error above 0" in captured.out
    assert "not written: " in captured.out and "Traceback" not in captured.err
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pth"]


def test_finding_nothing_exits_1_and_says_what_to_do(model: Path, capsys: Capture):
    words = ["--shape", "96x160", "--score-threshold", "0.99"]
    assert cli.main(["convert", str(model), "--to", "onnx", *words]) == 1
    output = capsys.readouterr().out
    assert "nothing compared" in output
    assert "Name images with objects in them with --parity-images" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "100x160"], "height must be a multiple of 32, got 100"),
        (
            ["--dynamic", "96x96:64x64:128x128"],
            "must satisfy 1 <= min <= opt <= max, got 96:64:128",
        ),
        (["--shape", "96x96", "--dynamic", "32x32:64x64:96x96"], "not both"),
        (["--batch", "0"], "--batch must satisfy"),
        (["--batch", "1000"], "batches of 1 to 64, got 1000"),
        (["--batch", "many"], "--batch needs a number"),
        (["--out", "model.plan"], "must be an .onnx file, got 'model.plan'"),
        (["--lowering", "magic"], "unknown lowering 'magic'"),
        (["--nms-pre", "0"], "--nms-pre must be at least 1"),
        (["--max-per-img", "-3"], "--max-per-img must be at least 1"),
        (["--score-threshold", "1.5"], "--score-threshold must be within 0..1"),
        (["--box-tolerance", "-1"], "tolerance box must be within"),
        (["--config", "no_such_recipe"], "no_such_recipe"),
        (["--parity-images", "nowhere.png"], "nowhere.png"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    words: list[str], message: str, model: Path, capsys: Capture
):
    assert cli.main(["convert", str(model), "--to", "onnx", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deploykit: error: ") and message in error
    assert error.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("content", [b"", b"PK not really", b"\x80\x02garbage"])
def test_unreadable_checkpoints(content: bytes, tmp_path: Path, capsys: Capture):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert cli.main(["convert", str(path), "--to", "onnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error
    assert cli.main(["convert", str(tmp_path / "gone.pth"), "--to", "onnx"]) == 2
    assert "gone.pth" in capsys.readouterr().err


def test_an_existing_file_is_kept_when_the_conversion_fails(model: Path, capsys: Capture):
    target = Path("model.onnx")
    target.write_bytes(b"the old one")
    words = ["--shape", "96x160", "--score-threshold", "0.99"]
    assert cli.main(["convert", str(model), "--to", "onnx", *words]) == 1
    assert target.read_bytes() == b"the old one"


def test_without_the_export_extra_the_message_names_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    def missing(module: str, extra: str, purpose: str) -> None:
        raise MissingDependencyError(f"{purpose} needs deploykit[{extra}]")

    monkeypatch.setattr("deploykit.cli.convert.import_optional", missing)
    assert cli.main(["convert", str(model), "--to", "onnx"]) == 2
    assert "deploykit[export]" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in EXAMPLES if "--to onnx" in line])
def test_every_example_of_the_help_works(
    line: str, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from deploykit.exporters.parity_images import draw_scene
    from deploykit.image_io import write_image

    monkeypatch.chdir(tmp_path)
    Path("model.pth").write_bytes(toy_checkpoint.read_bytes())
    for number in range(2):
        write_image(f"photos/{number}.png", draw_scene(number, (120, 160)))
    program, *words = shlex.split(line)
    assert program == "deploykit"
    assert cli.main(words) == 0
    (written,) = Path().glob("*.onnx")
    assert stored_parity(written)["passed"]
