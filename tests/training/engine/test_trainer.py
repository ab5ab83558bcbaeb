"""Whole training runs of a tiny RTMDet on drawn images, in this process."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from deploykit.detections import Detections
from deploykit.errors import CheckpointError, ConfigError, TrainingError, UsageError
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.pytorch_backend import PyTorchBackend
from deploykit.spec import ModelSpec
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.data import build_dataset
from deploykit.training.engine import Hook, RunLog, RunOptions, Trainer, build_trainer
from deploykit.training.engine.trainer import total_loss
from deploykit.training.evaluation import build_metrics, evaluate_detector
from deploykit.training.model_spec import load_model
from deploykit.training.registry import HOOKS
from deploykit.training.structures import Batch

MakeConfig = Callable[..., Config]


class Run:
    """A finished run."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer = trainer
        self.folder = folder
        self.metrics = trainer.metrics
        self.rows = [json.loads(line) for line in (folder / "log/scalars.jsonl").open()]
        self.text = (folder / "log/train.log").read_text()


def train(config: Config, folder: Path, **options: Any) -> Run:
    with RunLog(folder / "log") as log:
        trainer = build_trainer(config, RunOptions(folder, device="cpu", **options), log)
        trainer.train()
    return Run(trainer, folder)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_run_from_config_to_checkpoint(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=3)
    config["default_scope"] = "mmdet"
    config["visualizer"] = dict(type="DetLocalVisualizer")
    run = train(config, tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"log", "config.py", "epoch_2.pth", "epoch_3.pth", "last.pth", "best.pth"}
    assert (tmp_path / "last.pth").samefile(tmp_path / "epoch_3.pth")
    assert list((tmp_path / "log").glob("events.out.tfevents.*"))
    assert Config.from_text((tmp_path / "config.py").read_text()) == config

    last, best = read_checkpoint(tmp_path / "last.pth"), read_checkpoint(tmp_path / "best.pth")
    assert (last["meta"]["epoch"], last["meta"]["iter"], last["meta"]["seed"]) == (3, 9, 3)
    assert last["meta"]["dataset_meta"]["classes"] == ("box", "ball")
    assert Config.from_text(last["meta"]["cfg"]) == config
    spec = ModelSpec.from_json(last["meta"]["deploykit"])
    assert (spec.architecture, spec.classes) == ("RTMDet", ("box", "ball"))
    assert {"optimizer", "param_schedulers", "ema_state_dict", "rng", "hooks"} <= last.keys()
    assert not {"optimizer", "ema_state_dict"} & best.keys()
    # The averages differ from the weights that the optimizer works on.
    name = "backbone.stem.0.conv.weight"
    assert not torch.equal(last["state_dict"][name], last["ema_state_dict"][f"module.{name}"])

    training = [row for row in run.rows if row["kind"] == "train"]
    assert [row["step"] for row in training] == list(range(1, 10))
    assert [row["epoch"] for row in training] == [1] * 3 + [2] * 3 + [3] * 3
    for key in ("lr", "loss", "loss_cls", "loss_bbox", "time", "data_time", "memory", "grad_norm"):
        assert all(isinstance(row[key], float | int) for row in training), key
    assert training[0]["lr"] == pytest.approx(0.002 * 0.01)
    assert training[3]["lr"] == pytest.approx(0.002, rel=1e-6)
    validations = [row for row in run.rows if row["kind"] == "val"]
    assert [row["epoch"] for row in validations] == [1, 2, 3]
    assert validations[-1]["coco/bbox_mAP"] == run.metrics["coco/bbox_mAP"]
    assert run.text.count("visualizer (images are drawn by") == 1
    assert "device cpu, precision float32" in run.text
    assert "training set: 12 images in batches of 4" in run.text


@HOOKS.register()
class ScoreHook(Hook):
    """Replaces the metrics by given ones."""

    priority = "HIGH"

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        metrics["coco/bbox_mAP"] = self.scores[trainer.epoch - 1]


def test_the_best_checkpoint_is_the_best_epoch(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=4)
    config["custom_hooks"].append(dict(type="ScoreHook", scores=[0.1, 0.3, 0.2, 0.3]))
    train(config, tmp_path)
    assert read_checkpoint(tmp_path / "best.pth")["meta"]["epoch"] == 2


def test_equal_seeds_give_equal_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    weights = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(make_config(), tmp_path / folder, seed=seed)
        weights.append(read_checkpoint(tmp_path / folder / "last.pth")["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


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
    make_config: MakeConfig, tmp_path: Path
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


def test_validation_of_images_of_different_sizes(make_config: MakeConfig, tmp_path: Path) -> None:
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


class Recorder(Hook):
    """Writes down the points it is called at."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]], priority: int = 50) -> None:
        self.name, self.calls, self.priority = name, calls, priority

    def __getattribute__(self, attribute: str) -> Any:
        if attribute.startswith(("before_", "after_")):

            def record(trainer: Trainer, **arguments: Any) -> None:
                self.calls.append(
                    (self.name, attribute, trainer.epoch, trainer.iter, sorted(arguments))
                )

            return record
        return super().__getattribute__(attribute)


def test_hooks_are_called_at_mmengines_points(make_config: MakeConfig, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    config = make_config(epochs=2, train_cfg=dict(max_epochs=2, val_interval=2))
    config["train_dataloader"]["batch_size"] = 6
    config["custom_hooks"] = []
    with RunLog(None) as log:
        trainer = build_trainer(config, RunOptions(tmp_path, device="cpu"), log)
        hooks = [Recorder("late", calls, 95), *trainer.hooks, Recorder("early", calls, 5)]
        dataclasses.replace(trainer, hooks=hooks).train()
    early = [call[1:] for call in calls if call[0] == "early"]
    batch = ["batch_idx", "data_batch"]

    def epoch(number: int) -> list[tuple[Any, ...]]:
        start = 2 * number
        return [
            ("before_train_epoch", number, start, []),
            ("before_train_iter", number, start, batch),
            ("after_train_iter", number, start, [*batch, "outputs"]),
            ("before_train_iter", number, start + 1, batch),
            ("after_train_iter", number, start + 1, [*batch, "outputs"]),
            ("after_train_epoch", number, start + 2, []),
        ]

    saving = [("before_save_checkpoint", 0, 2, ["checkpoint"])]
    assert early == [
        ("before_run", 0, 0, []),
        ("before_train", 0, 0, []),
        *epoch(0),
        *saving,
        *epoch(1),
        ("before_save_checkpoint", 1, 4, ["checkpoint"]),
        ("before_val", 2, 4, []),
        ("before_val_epoch", 2, 4, []),
        ("after_val_iter", 2, 4, [*batch, "outputs"]),
        ("after_val_iter", 2, 4, [*batch, "outputs"]),
        ("after_val_epoch", 2, 4, ["metrics"]),
        ("before_save_checkpoint", 2, 4, ["checkpoint"]),
        ("after_val", 2, 4, []),
        ("after_train", 2, 4, []),
        ("after_run", 2, 4, []),
    ]
    points = [call[:2] for call in calls if call[1] == "after_train_iter"]
    assert points[:2] == [("early", "after_train_iter"), ("late", "after_train_iter")]


@HOOKS.register()
class PoisonHook(Hook):
    """Makes the network return nonsense from an iteration on."""

    def __init__(self, iteration: int, where: str) -> None:
        self.iteration, self.where = iteration, where

    def before_train_iter(self, trainer: Trainer, batch_idx: int, data_batch: Any) -> None:
        if trainer.iter + 1 == self.iteration:
            parameter = next(trainer.model.parameters())
            if self.where == "weights":
                parameter.data.fill_(float("nan"))
            else:
                parameter.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(("where", "what"), [("weights", "loss"), ("gradients", "gradient")])
def test_non_finite_values_stop_training(
    make_config: MakeConfig, tmp_path: Path, where: str, what: str
) -> None:
    config = make_config(epochs=3)
    config["custom_hooks"].append(dict(type="PoisonHook", iteration=5, where=where))
    with pytest.raises(TrainingError) as caught:
        train(config, tmp_path)
    message = str(caught.value)
    assert f"the {what} is not finite in iteration 5 (epoch 2)" in message
    assert "loss_cls=" in message
    assert "loss_bbox=" in message
    assert message.count(".jpg") == 4
    saved = read_checkpoint(tmp_path / "last.pth")
    assert saved["meta"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    assert {path.name for path in tmp_path.glob("*.pth")} == {"epoch_1.pth", "last.pth", "best.pth"}


@HOOKS.register()
class RuinWeightsHook(Hook):
    """Ruins the weights behind the back of the loss check, right before they are saved."""

    priority = "LOW"

    def after_train_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch == 1:
            next(trainer.model.parameters()).data.fill_(float("nan"))


def test_non_finite_weights_are_not_saved(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=3, custom_hooks=[dict(type="RuinWeightsHook")])
    with pytest.raises(TrainingError, match="weights are not finite"):
        train(config, tmp_path)
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["epoch"] == 1


def test_training_by_iterations(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=7, val_interval=4),
        param_scheduler=[dict(type="PolyLR", by_epoch=False)],
        default_hooks=dict(
            logger=dict(interval=2),
            checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=2),
        ),
    )
    config["train_dataloader"]["sampler"] = dict(type="InfiniteSampler", shuffle=True)
    run = train(config, tmp_path)
    assert [row["step"] for row in run.rows if row["kind"] == "val"] == [4, 7]
    assert [row["step"] for row in run.rows if row["kind"] == "train"] == [2, 4, 6]
    assert {path.name for path in tmp_path.glob("iter_*.pth")} == {"iter_6.pth", "iter_7.pth"}
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["iter"] == 7


def same_state(first: Path, second: Path) -> bool:
    one, two = read_checkpoint(first), read_checkpoint(second)
    return all(
        torch.equal(one[part][name], two[part][name])
        for part in ("state_dict", "ema_state_dict")
        for name in one[part]
    )


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("sampler", ["DefaultSampler", "InfiniteSampler"])
def test_resuming_within_an_epoch(
    make_config: MakeConfig, tmp_path: Path, sampler: str, caches: bool
) -> None:
    """Iteration checkpoints resume exactly too, with and without caches of mosaic and mixup."""
    config = make_config(
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=8, val_interval=100),
        param_scheduler=[dict(type="PolyLR", by_epoch=False)],
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1)),
        val_dataloader=None,
        val_evaluator=None,
    )
    config["optim_wrapper"]["accumulative_counts"] = 3
    config["train_dataloader"]["sampler"] = dict(type=sampler, shuffle=True)
    if not caches:
        dataset = config["train_dataloader"]["dataset"]
        dataset["pipeline"] = [t for t in dataset["pipeline"] if "Cached" not in t["type"]]
    train(config, tmp_path / "whole")
    for stop in (2, 5):
        folder = tmp_path / str(stop)
        run = train(config, folder, resume=tmp_path / f"whole/iter_{stop}.pth")
        assert ("seen before" in run.text) is caches
        assert same_state(folder / "last.pth", tmp_path / "whole/last.pth"), stop


def test_resume_auto_begins_anew_where_nothing_is(make_config: MakeConfig, tmp_path: Path) -> None:
    run = train(make_config(epochs=1), tmp_path, resume="auto")
    assert "nothing to resume" in run.text
    assert run.trainer.iter == 3
    again = train(make_config(epochs=1), tmp_path, resume="auto")
    assert again.trainer.iter == 3
    assert again.metrics == run.metrics


def test_resuming_with_another_config_is_reported(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(epochs=1), tmp_path / "a")
    last = tmp_path / "a/last.pth"
    config = make_config(epochs=1, randomness=dict(seed=99))
    config["train_dataloader"]["batch_size"] = 6
    run = train(config, tmp_path / "b", resume=last)
    assert "WARNING: the config is not that of the run to be resumed" in run.text
    assert "train_dataloader.batch_size, randomness.seed" in run.text
    assert "has seed 3, so 99 is not used" in run.text
    assert "an epoch has 2 iterations now and had 3" in run.text
    same = train(make_config(epochs=1), tmp_path / "c", resume=last)
    assert "WARNING" not in same.text


def test_what_cannot_be_resumed(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(epochs=1), tmp_path / "a")
    last, best = tmp_path / "a/last.pth", tmp_path / "a/best.pth"
    with pytest.raises(CheckpointError, match=r"weights only \(best\.pth\)"):
        train(make_config(), tmp_path / "b", resume=best)
    with pytest.raises(CheckpointError, match="no EMAHook"):
        train(make_config(custom_hooks=[]), tmp_path / "b", resume=last)
    other = make_config()
    other["model"]["neck"]["num_csp_blocks"] = 2
    with pytest.raises(CheckpointError, match="does not fit the config"):
        train(other, tmp_path / "b", resume=last)


def test_load_from_takes_the_weights_that_fit(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(epochs=1), tmp_path / "a")
    config = make_config(epochs=1, load_from=str(tmp_path / "a/best.pth"))
    config["model"]["bbox_head"]["stacked_convs"] = 2
    run = train(config, tmp_path / "b")
    assert "weights are missing: bbox_head.cls_convs.0.1" in run.text
    assert run.rows[0]["step"] == 1
    with pytest.raises(CheckpointError, match="does not exist"):
        train(config, tmp_path / "c", load_from=tmp_path / "none.pth")


def test_precision_and_layout_options(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=1)
    config["optim_wrapper"] |= dict(type="AmpOptimWrapper", dtype="bfloat16")
    config["optim_wrapper"]["clip_grad"] = dict(max_norm=5.0)
    config["auto_scale_lr"] = dict(enable=True, base_batch_size=16)
    run = train(config, tmp_path)
    assert "precision bfloat16" in run.text
    assert "learning rate scaled by 0.25" in run.text
    weight = run.trainer.model.backbone.stem[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float32
    plain = train(config, tmp_path / "plain", channels_last=False).trainer
    assert plain.model.backbone.stem[0].conv.weight.is_contiguous()
    peak = max(row["lr"] for row in run.rows if row["kind"] == "train")
    assert peak <= 0.002 * 0.25 * (1 + 1e-6)
    loaded = load_model(tmp_path / "last.pth")
    assert PyTorchBackend(tmp_path / "last.pth", device="cpu", loaded=loaded).spec.classes


def test_compiled_parts_train_to_the_same_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=1, val_dataloader=None, val_evaluator=None)
    train(config, tmp_path / "plain")
    config["compile"] = dict(backend="eager")
    run = train(config, tmp_path / "compiled")
    assert run.trainer.model.backbone._compiled_call_impl is not None
    first, second = (read_checkpoint(tmp_path / n / "last.pth") for n in ("plain", "compiled"))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, weight in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_training_on_a_gpu(make_config: MakeConfig, tmp_path: Path, precision: str) -> None:
    config = make_config(epochs=3)
    config["optim_wrapper"] |= dict(type="AmpOptimWrapper", dtype=precision)
    config["train_dataloader"] |= dict(num_workers=1, pin_memory=True)
    with RunLog(tmp_path / "log") as log:
        trainer = build_trainer(config, RunOptions(tmp_path, device="cuda"), log)
        trainer.train()
    rows = Run(trainer, tmp_path).rows
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 10))
    weights = read_checkpoint(tmp_path / "last.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    config["custom_hooks"].append(dict(type="PoisonHook", iteration=5, where="weights"))
    with pytest.raises(TrainingError, match="not finite in iteration 5"), RunLog(None) as log:
        build_trainer(config, RunOptions(tmp_path / "bad", device="cuda"), log).train()


@HOOKS.register()
class ConstantScoreHook(Hook):
    """Adds a metric that never gets better."""

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        metrics["score"] = 1.0


def test_early_stopping_ends_and_saves(make_config: MakeConfig, tmp_path: Path) -> None:
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


def test_several_best_checkpoints(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=1)
    config["default_hooks"]["checkpoint"] |= dict(save_best=["coco/bbox_mAP", "coco/bbox_mAP_50"])
    train(config, tmp_path)
    names = {path.name for path in tmp_path.glob("best*.pth")}
    assert names == {"best_coco_bbox_mAP.pth", "best_coco_bbox_mAP_50.pth"}
    config["default_hooks"]["checkpoint"] |= dict(save_best="bbox_mAP")
    with pytest.raises(TrainingError, match="save_best='bbox_mAP' is not a metric"):
        train(config, tmp_path)


def test_no_process_is_left_behind(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(epochs=2)
    for loader in ("train_dataloader", "val_dataloader"):
        config[loader] |= dict(num_workers=1, persistent_workers=True)
    before = len(multiprocessing.active_children())
    train(config, tmp_path)
    config["custom_hooks"].append(dict(type="PoisonHook", iteration=5, where="weights"))
    with pytest.raises(TrainingError):
        train(config, tmp_path)
    assert len(multiprocessing.active_children()) == before


def test_without_validation(make_config: MakeConfig, tmp_path: Path) -> None:
    run = train(make_config(epochs=1, val_dataloader=None, val_evaluator=None), tmp_path)
    assert run.metrics == {}
    assert not (tmp_path / "best.pth").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(train_dataloader=None), "no train_dataloader"),
        (dict(optim_wrapper=None), "no optim_wrapper"),
        (dict(val_evaluator=None), "no val_evaluator"),
        (dict(val_dataloader=None), "no val_dataloader"),
        (dict(randomness=dict(seed=-1)), "randomness.seed"),
        (dict(randomness=dict(sead=1)), "'sead'"),
        (dict(custom_hooks=[dict(type="EMAHok")]), "Did you mean EMAHook"),
        (dict(custom_hooks=[dict(type="EMAHook", priority="FIRST")]), "priority"),
        (dict(custom_hooks=["EMAHook"]), "must be a dict"),
        (dict(auto_scale_lr=dict(enable=True)), "base_batch_size"),
        (dict(default_hooks=dict(checkpoint=dict(interval=0))), "interval"),
        (dict(default_hooks=dict(logger=dict(interval=0))), "interval"),
    ],
)
def test_bad_configs(make_config: MakeConfig, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_config(**change), tmp_path)


def test_data_that_gives_no_batch(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    config["train_dataloader"] |= dict(batch_size=100, drop_last=True)
    with pytest.raises(ConfigError, match="12 images in batches of 100"):
        train(config, tmp_path)
    config["train_dataloader"] |= dict(
        batch_size=4, drop_last=False, sampler=dict(type="InfiniteSampler")
    )
    with pytest.raises(ConfigError, match="InfiniteSampler has no epochs"):
        train(config, tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_devices_that_do_not_exist(make_config: MakeConfig, tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match=device.split(":")[0]), RunLog(None) as log:
        build_trainer(make_config(), RunOptions(tmp_path, device=device), log)


def test_total_loss() -> None:
    terms = {
        "loss_cls": torch.tensor([1.0, 3.0]),
        "loss_bbox": [torch.tensor(1.0), torch.tensor(4.0)],
        "accuracy": torch.tensor(9.0),
    }
    outputs = total_loss(terms)
    assert {name: value.item() for name, value in outputs.items()} == {
        "loss": 7.0,
        "loss_cls": 2.0,
        "loss_bbox": 5.0,
        "accuracy": 9.0,
    }
    with pytest.raises(TrainingError, match="no loss"):
        total_loss({"accuracy": torch.tensor(1.0)})


def test_the_log_gives_the_root_logger_back() -> None:
    root = logging.getLogger("deploykit")
    before = list(root.handlers), root.level
    with RunLog(None):
        assert len(root.handlers) == len(before[0]) + 1
    assert (list(root.handlers), root.level) == before
