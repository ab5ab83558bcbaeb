"""The sweep over configs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.errors import ConfigError
from deploykit.training.model_coverage import (
    Coverage,
    config_files,
    read_layouts,
    read_record,
    record_text,
    sweep,
)
from deploykit.training.model_coverage_table import coverage_page, totals
from deploykit.training.recipes import FOLDER as RECIPES

LAYOUTS = Path(__file__).parent / "models" / "data" / "mmdetection_layouts.json"
SPEC = importlib.util.find_spec("mmdet")
WHEEL = Path(SPEC.origin).parent / ".mim" / "configs" if SPEC and SPEC.origin else None
needs_wheel = pytest.mark.skipif(
    WHEEL is None, reason="needs the files of mmdet: pip install --no-deps mmdet==3.3.0"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "configs"
    (root / "_base_").mkdir(parents=True)
    (root / "sub").mkdir()
    model = (RECIPES / "retinanet_r50_fpn_1x_coco.py").as_posix()
    (root / "_base_" / "ignored.py").write_text("x = 1")
    (root / "good.py").write_text(f"_base_ = {model!r}\n")
    (root / "same.py").write_text(f"_base_ = {model!r}\ntrain_cfg = dict(max_epochs=3)\n")
    (root / "sub" / "unknown.py").write_text("model = dict(type='Nobody')")
    (root / "sub" / "wrong.py").write_text("x = open('a')")
    (root / "none.py").write_text("lr = 1")
    return root


def test_how_far_each_config_gets(folder: Path):
    found = sweep(folder, {"good.py": "31183db19335a243", "same.py": "0" * 16})
    assert sorted(found) == ["good.py", "none.py", "same.py", "sub/unknown.py", "sub/wrong.py"]
    good = found["good.py"]
    assert (good.detector, good.built, good.keys) == ("RetinaNet", True, 354)
    assert (good.parameters, good.layout) == (37_968_692, "31183db19335a243")
    assert (good.layout_verdict, found["same.py"].layout_verdict) == ("equal", "differs")
    assert good.model == found["same.py"].model
    assert found["sub/unknown.py"].reason == "unknown model type 'Nobody'."
    wrong = found["sub/wrong.py"]
    assert not wrong.resolved and wrong.reason.startswith("wrong.py:1:5: 'open()' cannot be called")
    assert found["none.py"].reason == "the config has no model"


def test_exports_are_kept_while_the_model_is_the_same(folder: Path):
    first = sweep(folder)
    exported = {
        name: replace(value, exported={"standard": "ok"}, parity={"standard": "1e-5 px"})
        for name, value in first.items()
    }
    again = sweep(folder, earlier=exported)
    assert again["good.py"].exported == {"standard": "ok"}
    text = (folder / "good.py").read_text()
    (folder / "good.py").write_text(text + "model = dict(test_cfg=dict(score_thr=0.1))\n")
    changed = sweep(folder, earlier=exported)
    assert changed["good.py"].exported == {} and changed["same.py"].exported == {"standard": "ok"}
    assert changed["sub/unknown.py"].exported == {}


def test_the_record_reads_back(tmp_path: Path, folder: Path):
    found = sweep(folder)
    file = tmp_path / "record.json"
    file.write_text(record_text(found))
    assert read_record(file) == found
    assert read_record(tmp_path / "none.json") == {}
    for damaged in ("[]", "{", '{"configs": {"a": {"x": 1}}}', '{"configs": [1]}'):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match="no record of a sweep"):
            read_record(file)


def test_layouts_of_another_form(tmp_path: Path):
    file = tmp_path / "layouts.json"
    for content in ("[1]", '{"a": 1}', "{"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"layouts\.json"):
            read_layouts(file)


def test_a_folder_without_configs(tmp_path: Path):
    with pytest.raises(ConfigError, match="there are no configs"):
        config_files(tmp_path)


def test_the_page_counts_and_escapes():
    results = {
        "a.py": Coverage(
            True, "A", True, parameters=1_500_000, layout="x", expected="x",
            exported={"standard": "ok", "primitive": "no | way", "plugin": "ok"},
            parity={"standard": "1e-5 px"},
        ),
        "b.py": Coverage(True, "B", reason="unknown <type>"),
        "c.py": Coverage(False, reason="unknown <type>"),
    }  # fmt: skip
    assert totals(results) == {
        "configs": 3,
        "resolved": 2,
        "built": 1,
        "layout compared": 1,
        "layout equal": 1,
        "exported": 1,
        "exported in every lowering": 0,
    }
    page = coverage_page(results)
    assert "| a.py | A | 1.5 M | equal | standard, not primitive: no \\| way, plugin |" in page
    assert "| standard: 1e-5 px |" in page
    assert "| 2 | unknown &lt;type> |" in page
    tables = [line for line in page.splitlines() if line.startswith("| ") and ".py" in line]
    assert len(tables) == 3


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record, table = tmp_path / "coverage.json", tmp_path / "coverage.md"
    arguments = ["coverage", str(folder), "--record", str(record), "--table", str(table)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "good.py: RetinaNet: 38.0 M\n" in out and "5 configs, 4 resolved, 2 built" in out
    assert json.loads(record.read_text())["configs"]["good.py"]["built"]
    assert table.read_text().startswith("# Model coverage\n")
    assert main(["coverage", str(tmp_path / "nowhere")]) == 2


@needs_wheel
@pytest.mark.slow
def test_mmdetections_own_configs():
    """Every config is read or refused by name, and what is built has MMDetection's layout."""
    assert WHEEL is not None
    found = sweep(WHEEL, read_layouts(LAYOUTS))
    counts = totals(found)
    assert counts["configs"] == 823
    assert counts["resolved"] == 811  # docs/config.md lists the others
    assert counts["built"] >= 217
    unequal = [name for name, value in found.items() if value.layout_verdict == "differs"]
    assert not unequal
    broken = {
        name: value.reason
        for name, value in found.items()
        if not value.built and value.reason.split(":")[0].endswith(("Error", "Exception"))
    }
    assert not broken  # a refusal, never a crash


def test_an_export_counts_for_every_config_with_the_same_model_and_input(folder: Path):
    from export_coverage import share

    found = sweep(folder)
    assert share(found, "good.py", ({"standard": "ok"}, {"standard": "1e-05 px"})) == 2
    assert share(found, "good.py", ({"plugin": "parity"}, {})) == 2
    for name in ("good.py", "same.py"):
        assert found[name].exported == {"standard": "ok", "plugin": "parity"}
        assert found[name].parity == {"standard": "1e-05 px"}
    assert found["sub/unknown.py"].exported == {}


@pytest.mark.slow
def test_a_model_is_exported_for_the_table(folder: Path, tmp_path: Path):
    from detector_checkpoints import write_photographs
    from export_coverage import try_lowerings

    text = (folder / "good.py").read_text()
    (folder / "good.py").write_text(
        f"{text}model = dict(backbone=dict(depth=18, base_channels=8),"
        "neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),"
        "bbox_head=dict(in_channels=16, feat_channels=16, num_classes=3))\n"
    )
    images = sorted(write_photographs(tmp_path / "photographs").iterdir())[::12]
    exported, parity = try_lowerings(folder / "good.py", 128, images, ["standard"])
    assert exported == {"standard": "ok"} and " px, " in parity["standard"]
    exported, parity = try_lowerings(folder / "sub" / "unknown.py", 128, images, ["standard"])
    assert "ok" not in exported["standard"] and not parity
