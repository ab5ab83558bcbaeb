"""Training by two processes that talk over gloo."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.engine import distributed

MakeConfig = Callable[..., Config]
StartProcess = Callable[..., BaseProcess]


# A detector whose loss is a mean over images, so that the mean over processes is that of the batch.
TOY = '''
import torch
from torch import nn
from deploykit.training.models import BaseDetector
from deploykit.training.registry import MODELS

@MODELS.register()
class OneBoxDetector(BaseDetector):
    """Predicts the mean box of an image."""

    size_divisor = 32

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, 4), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 4, 3, 2)
        )

    def boxes(self, images):
        return self.layers(self.data_preprocessor(images)).mean((2, 3))

    def loss(self, batch):
        wanted = torch.stack([target.boxes.mean(0) for target in batch.targets]) / 64
        return {"loss_box": (self.boxes(batch.images) - wanted).square().mean()}

    def predict(self, images, image_sizes=None):
        boxes = self.boxes(images)[:, None] * 64
        count = len(boxes)
        return (
            boxes,
            torch.ones(count, 1),
            torch.zeros(count, 1, dtype=torch.int32),
            torch.ones(count, dtype=torch.int32),
        )
'''


def train_together(
    start_process: StartProcess, config: Path, work_dir: Path, *options: object
) -> list[int | None]:
    """Train with two processes as torchrun would start them; return their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ("train", config, "--work-dir", work_dir, "--device", "cpu", "--threads", 1)
    options = (*options, "--allow-custom-imports")
    processes = [
        start_process(
            *arguments,
            *options,
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=2,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def validations(work_dir: Path) -> list[dict[str, Any]]:
    rows = [
        json.loads(line)
        for path in sorted(work_dir.glob("*/scalars.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [row for row in rows if row["kind"] == "val"]


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_whole_batch(
    make_config: MakeConfig,
    start_process: StartProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    (tmp_path / "one_box_detector.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, batch_size: int, epochs: int) -> Path:
        config = make_config(
            epochs=epochs,
            model=dict(
                type="OneBoxDetector", data_preprocessor=make_config()["model"]["data_preprocessor"]
            ),
            custom_imports=dict(imports=["one_box_detector"]),
            param_scheduler=[],
        )
        pipeline = config["custom_hooks"][1]["switch_pipeline"]
        plain = [t for t in pipeline if t["type"] != "RandomFlip"]
        config["train_dataloader"]["dataset"]["pipeline"] = plain
        config["train_dataloader"] |= dict(
            batch_size=batch_size, sampler=dict(type="DefaultSampler", shuffle=False)
        )
        config["val_evaluator"]["iou_thrs"] = [0.05, 0.3]
        config["optim_wrapper"]["optimizer"] = dict(type="SGD", lr=0.05, momentum=0.9)
        config["optim_wrapper"]["paramwise_cfg"] = None
        config["optim_wrapper"]["accumulative_counts"] = 2
        config["custom_hooks"] = config["custom_hooks"][:1]
        path = tmp_path / name
        path.write_text(config.dumps())
        return path

    one, two = write("one.py", 4, 2), write("two.py", 2, 2)
    options = ("--work-dir", tmp_path / "one", "--device", "cpu", "--allow-custom-imports")
    alone = start_process("train", one, *options)
    assert train_together(start_process, two, tmp_path / "two") == [0, 0]
    alone.join(300)
    assert alone.exitcode == 0

    single, double = (read_checkpoint(tmp_path / name / "last.pth") for name in ("one", "two"))
    assert double["meta"]["iter"] == single["meta"]["iter"] == 6
    start = read_checkpoint(tmp_path / "two/epoch_1.pth")["ema_state_dict"]
    for name, weight in single["ema_state_dict"].items():
        torch.testing.assert_close(double["ema_state_dict"][name], weight, rtol=1e-4, atol=1e-6)
    assert not all(torch.equal(start[name], single["ema_state_dict"][name]) for name in start)
    # One process writes, each looks at its share of the validation images, all count.
    assert len(list((tmp_path / "two").glob("*/train.log"))) == 1
    for expected, found in zip(
        validations(tmp_path / "one"), validations(tmp_path / "two"), strict=True
    ):
        assert found["coco/bbox_mAP"] == pytest.approx(expected["coco/bbox_mAP"], abs=1e-3)
    assert expected["coco/bbox_mAP"] > 0

    # A run of two processes resumes exactly as well.
    assert train_together(start_process, write("three.py", 2, 3), tmp_path / "whole") == [0, 0]
    code = train_together(
        start_process,
        tmp_path / "three.py",
        tmp_path / "cut",
        "--resume",
        tmp_path / "two/last.pth",
    )
    assert code == [0, 0]
    whole, cut = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "cut"))
    for part in ("state_dict", "ema_state_dict"):
        for name, weight in whole[part].items():
            assert torch.equal(weight, cut[part][name]), name


def test_a_single_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed.join("cpu")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather("x") == ["x"]
    assert distributed.broadcast("x") == "x"
