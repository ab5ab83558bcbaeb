"""``deploykit train`` and ``deploykit test`` on drawn images, from command line to files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deploykit.cli import main
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.data.drawn_dataset import write_drawn_dataset

TRAIN = ["--image-size", "64x64", "--batch-size", "4", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_drawn_dataset(folder, ("object",), counts=(8, 3), size=(70, 90), objects=(2, 5))
    return folder


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a config that narrows the recipe of the demo to seconds of training."""
    path = tmp_path_factory.mktemp("config") / "narrow.py"
    path.write_text(
        "_base_ = 'rtmdet_demo.py'\n"
        "model = dict(\n"
        "    backbone=dict(widen_factor=0.0625),\n"
        "    neck=dict(in_channels=[16, 32, 64], out_channels=16),\n"
        "    bbox_head=dict(in_channels=16, feat_channels=16),\n"
        ")\n"
        "train_dataloader = dict(dataset=dict(times=1))\n"
        "val_evaluator = dict(iou_thrs=[0.01, 0.1])\n"
        "test_evaluator = val_evaluator\n"
    )
    from deploykit.training.recipes import find_config

    base = find_config("rtmdet_demo")
    path.write_text(path.read_text().replace("rtmdet_demo.py", str(base)))
    return path


@pytest.fixture(scope="module")
def work_dir(config: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = ["--data-root", str(data), "--epochs", "2", "--work-dir", str(folder), *TRAIN]
    options += ["--cfg-options", "optim_wrapper.optimizer.lr=0.01", "param_scheduler=[]"]
    assert main(["train", str(config), *options]) == 0
    return folder


def test_training_leaves_a_checkpoint_that_says_how(work_dir: Path) -> None:
    meta = read_checkpoint(work_dir / "last.pth")["meta"]
    assert meta["epoch"] == 2
    assert "lr=0.01" in meta["cfg"]
    assert {"best.pth", "last.pth", "config.py"} <= {path.name for path in work_dir.iterdir()}


def test_metrics_of_the_checkpoint_are_those_of_its_training(
    work_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "metrics.json"
    assert main(["test", str(work_dir / "last.pth"), "--json", str(out), "--device", "cpu"]) == 0
    report = json.loads(out.read_text())
    rows = [json.loads(line) for path in work_dir.glob("*/scalars.jsonl") for line in path.open()]
    trained = [row for row in rows if row["kind"] == "val"][-1]
    assert report["images"] == 3
    for name, value in report["metrics"].items():
        assert value == pytest.approx(trained[name], abs=1e-6), name
    assert report["metrics"]["coco/bbox_mAP"] > 0
    assert re.search(r"coco/bbox_mAP\s+│\s+0\.\d{4}", capsys.readouterr().out)


def test_config_and_checkpoint_and_classes(
    config: Path, data: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data-root", str(data), "--classwise", "--batch-size", "2", "--device", "cpu"]
    size = ["--cfg-options", "test_dataloader.dataset.pipeline.1.scale=(64,64)"]
    assert main(["test", str(config), str(work_dir / "best.pth"), *options, *size]) == 0
    assert re.search(r"object\s+│\s+\d+\s+│", capsys.readouterr().out)


@pytest.mark.slow
def test_metrics_of_the_onnx_file_are_those_of_the_checkpoint(
    work_dir: Path, tmp_path: Path
) -> None:
    onnx = tmp_path / "model.onnx"
    assert main(["convert", str(work_dir / "last.pth"), "--to", "onnx", "--out", str(onnx)]) == 0
    reports = []
    for arguments in ([str(work_dir / "last.pth")], [str(work_dir / "config.py"), str(onnx)]):
        out = tmp_path / "metrics.json"
        assert main(["test", *arguments, "--json", str(out), "--device", "cpu"]) == 0
        reports.append(json.loads(out.read_text())["metrics"])
    assert reports[1] == pytest.approx(reports[0], abs=1e-3)
    assert reports[1]["coco/bbox_mAP"] > 0


def test_a_finished_run_resumes_to_nothing(
    config: Path, data: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (work_dir / "last.pth").read_bytes()
    options = ["--data-root", str(data), "--epochs", "2", "--work-dir", str(work_dir), *TRAIN]
    options += ["--cfg-options", "optim_wrapper.optimizer.lr=0.01", "param_scheduler=[]"]
    assert main(["train", str(config), *options, "--resume"]) == 0
    assert "resumed after epoch 2" in capsys.readouterr().out
    assert (work_dir / "last.pth").read_bytes() == before


def test_profile_on_drawn_images(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "profile.json"
    arguments = ["train", str(config), "--synthetic-data", "--profile-iterations", "4", *TRAIN]
    assert main([*arguments, "--profile-out", str(out)]) == 0
    profile = json.loads(out.read_text())
    assert profile["iterations"] == 4
    phases = {name: spread["mean"] for name, spread in profile["seconds"].items()}
    assert all(seconds > 0 for seconds in phases.values())
    total = phases.pop("total")
    assert sum(phases.values()) == pytest.approx(total, rel=1e-6)
    assert re.search(r"\d\.\d{3} s per iteration \(median of 4;", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "rtmdet_tinny"], "Did you mean rtmdet_tiny"),
        (["train", "rtmdet_demo", "--device", "cuda:77"], "cuda:77"),
        (["train", "rtmdet_demo", "--synthetic-data", "--amp", "fp16"], "needs a GPU"),
        (["train", "rtmdet_demo", "--synthetic-data", "--epochs", "0"], "--epochs"),
        (["train", "rtmdet_demo", "--synthetic-data", "--resume", "none.pth"], "does not exist"),
        (["train", "rtmdet_demo", "--synthetic-data", "--threads", "0"], "--threads"),
        (["train", "rtmdet_demo", "--data-root", "nowhere"], "nowhere"),
        (["train", "rtmdet_demo", "--cfg-options", "model.type"], "model.type"),
        (["test", "model.onnx"], "carries no config"),
        (["test", "none.pth"], "does not exist"),
        (["test", "rtmdet_demo", "none.pth", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    device = [] if "--device" in arguments or arguments[0] == "test" else ["--device", "cpu"]
    assert main([*arguments, *device]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_checkpoint_of_another_model_is_refused(
    work_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data-root", str(data), "--device", "cpu"]
    assert main(["test", "rtmdet_demo", str(work_dir / "best.pth"), *options]) == 2
    assert "of another shape" in capsys.readouterr().err


def test_custom_imports_need_leave(
    config: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A config's own code runs only when the user says so."""
    (tmp_path / "shouting_hook.py").write_text(
        "from pathlib import Path\n"
        "from deploykit.training.engine import Hook\n"
        "from deploykit.training.registry import HOOKS\n"
        "@HOOKS.register()\n"
        "class ShoutingHook(Hook):\n"
        "    def before_train(self, trainer):\n"
        "        (trainer.work_dir / 'shout').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "custom.py"
    path.write_text(
        config.read_text()
        + "custom_imports = dict(imports=['shouting_hook'])\n"
        + "custom_hooks = [dict(type='ShoutingHook')]\n"
    )
    arguments = ["train", str(path), "--data-root", str(data), "--epochs", "1", *TRAIN]
    arguments += ["--work-dir", str(tmp_path / "work")]
    assert main(arguments) == 2
    assert "unknown hook type 'ShoutingHook'" in capsys.readouterr().err
    assert main([*arguments, "--allow-custom-imports"]) == 0
    assert (tmp_path / "work/shout").exists()
    path.write_text(path.read_text().replace("'shouting_hook'", "'no_such_module_here'"))
    assert main([*arguments, "--allow-custom-imports"]) == 2
    assert "module 'no_such_module_here' cannot be imported" in capsys.readouterr().err
