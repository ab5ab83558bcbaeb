"""Validation while training, and what follows from it: the best checkpoint, an early end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from deploykit.detections import Detections
from deploykit.errors import TrainingError
from deploykit.runtimes.detector import Detector
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.data import build_dataset
from deploykit.training.engine import Hook, Trainer
from deploykit.training.evaluation import build_metrics, evaluate_detector
from deploykit.training.registry import HOOKS
from deploykit.training.structures import Batch

MakeConfig = Callable[..., Config]
Train = Callable[..., Any]  # see the fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@HOOKS.register()
class ScoreHook(Hook):
    """Replaces the metrics by given ones."""

    priority = "HIGH"

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        metrics["coco/bbox_mAP"] = self.scores[trainer.epoch - 1]


def test_the_best_checkpoint_is_the_best_epoch(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    config = make_config(epochs=4)
    config["custom_hooks"].append(dict(type="ScoreHook", scores=[0.1, 0.3, 0.2, 0.3]))
    train(config, tmp_path)
    assert read_checkpoint(tmp_path / "best.pth")["meta"]["epoch"] == 2


def test_several_best_checkpoints(make_config: MakeConfig, train: Train, tmp_path: Path) -> None:
    config = make_config(epochs=1)
    config["default_hooks"]["checkpoint"] |= dict(save_best=["coco/bbox_mAP", "coco/bbox_mAP_50"])
    train(config, tmp_path)
    names = {path.name for path in tmp_path.glob("best*.pth")}
    assert names == {"best_coco_bbox_mAP.pth", "best_coco_bbox_mAP_50.pth"}
    config["default_hooks"]["checkpoint"] |= dict(save_best="bbox_mAP")
    with pytest.raises(TrainingError, match="save_best='bbox_mAP' is not a metric"):
        train(config, tmp_path)


@HOOKS.register()
class KeepDetections(Hook):
    """Keeps what validation finds, by file name."""

    found: ClassVar[dict[str, Detections]] = {}

    def after_val_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: list[Detections]
    ) -> None:
        for meta, detections in zip(data_batch.metas, outputs, strict=True):
            self.found[meta["img_path"]] = detections


def test_validation_equals_what_the_detector_measures(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    """In-training numbers are those of ``deploykit test``: same images, same detections."""
    # The IoU thresholds are low enough for a network that has hardly learned anything.
    evaluator = dict(type="CocoMetric", metric="bbox", iou_thrs=[0.05, 0.2])
    config = make_config(epochs=6, val_evaluator=evaluator, test_evaluator=evaluator)
    config["train_dataloader"]["dataset"]["pipeline"] = config["custom_hooks"][1]["switch_pipeline"]
    config["optim_wrapper"]["optimizer"]["lr"] = 0.02
    config["param_scheduler"] = []
    config["custom_hooks"].append(dict(type="KeepDetections"))
    run = train(config, tmp_path)
    dataset = build_dataset(config["test_dataloader"]["dataset"])
    metrics = build_metrics(config["test_evaluator"], dataset)
    with Detector(tmp_path / "last.pth", device="cpu", score_threshold=0.0) as detector:
        measured = evaluate_detector(detector, dataset, metrics)
        assert len(KeepDetections.found) == 5
        for path, expected in KeepDetections.found.items():
            found = detector(path)
            assert len(found) == len(expected) > 0
            assert found.image_size == expected.image_size
            assert found.boxes == pytest.approx(expected.boxes, abs=1e-3)
            assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert measured == pytest.approx(run.metrics, abs=1e-6)
    assert measured["coco/bbox_mAP"] > 0


def test_validation_of_images_of_different_sizes(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    """Without padding to one size, an image must not feel the others of its batch."""
    config = make_config(epochs=1)
    pipeline = config["val_dataloader"]["dataset"]["pipeline"]
    pipeline[1] = dict(type="Resize", scale=(80, 60), keep_ratio=True)
    pipeline[2] = dict(type="Pad", size_divisor=32, pad_val=dict(img=(114, 114, 114)))
    config["test_dataloader"] = config["val_dataloader"]
    run = train(config, tmp_path)
    validator = run.trainer.validator
    assert validator is not None
    run.trainer.model.eval()
    batch = next(iter(validator.dataloader))
    together = validator.detect(run.trainer.model, batch, torch.device("cpu"))
    tall = batch.images[:1].transpose(1, 2).contiguous()
    canvas = torch.zeros(2, 128, 128, 3, dtype=torch.uint8)
    canvas[0, : batch.images.shape[1], : batch.images.shape[2]] = batch.images[0]
    canvas[1, : tall.shape[1], : tall.shape[2]] = tall[0]
    mixed = type(batch)(
        canvas,
        torch.tensor([batch.images.shape[1:3], tall.shape[1:3]], dtype=torch.int32),
        [],
        [batch.metas[0], batch.metas[0]],
    )
    found = validator.detect(run.trainer.model, mixed, torch.device("cpu"))
    assert len(found[0]) == len(together[0]) > 0
    assert found[0].boxes == pytest.approx(together[0].boxes, abs=1e-3)
    assert found[0].scores == pytest.approx(together[0].scores, abs=1e-5)


def test_without_validation(make_config: MakeConfig, train: Train, tmp_path: Path) -> None:
    run = train(make_config(epochs=1, val_dataloader=None, val_evaluator=None), tmp_path)
    assert run.metrics == {}
    assert not (tmp_path / "best.pth").exists()


@HOOKS.register()
class ConstantScoreHook(Hook):
    """Adds a metric that never gets better."""

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        metrics["score"] = 1.0


def test_early_stopping_ends_and_saves(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    config = make_config(epochs=9)
    config["default_hooks"]["checkpoint"] = dict(interval=4)
    config["custom_hooks"] += [
        dict(type="ConstantScoreHook"),
        dict(type="EarlyStoppingHook", monitor="score", rule="greater", patience=2),
    ]
    run = train(config, tmp_path)
    assert run.trainer.epoch == 3
    assert "training ends early: score did not improve" in run.text
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["epoch"] == 3
