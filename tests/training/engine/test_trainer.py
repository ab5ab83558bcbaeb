"""Whole training runs of a tiny RTMDet on drawn images, in this process."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import CheckpointError, TrainingError
from deploykit.runtimes.pytorch_backend import PyTorchBackend
from deploykit.spec import ModelSpec
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.engine import Hook, RunLog, RunOptions, Trainer, build_trainer
from deploykit.training.engine.trainer import total_loss
from deploykit.training.model_spec import load_model

MakeConfig = Callable[..., Config]
Train = Callable[..., Any]  # see the fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_from_config_to_checkpoint(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
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


def test_equal_seeds_give_equal_weights(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    weights = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(make_config(), tmp_path / folder, seed=seed)
        weights.append(read_checkpoint(tmp_path / folder / "last.pth")["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


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


def test_training_by_iterations(make_config: MakeConfig, train: Train, tmp_path: Path) -> None:
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


def test_load_from_takes_the_weights_that_fit(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    train(make_config(epochs=1), tmp_path / "a")
    config = make_config(epochs=1, load_from=str(tmp_path / "a/best.pth"))
    config["model"]["bbox_head"]["stacked_convs"] = 2
    run = train(config, tmp_path / "b")
    assert "weights are missing: bbox_head.cls_convs.0.1" in run.text
    assert run.rows[0]["step"] == 1
    with pytest.raises(CheckpointError, match="does not exist"):
        train(config, tmp_path / "c", load_from=tmp_path / "none.pth")


def test_precision_and_layout_options(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
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


def test_compiled_parts_train_to_the_same_weights(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
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
def test_training_on_a_gpu(
    make_config: MakeConfig, train: Train, tmp_path: Path, precision: str
) -> None:
    config = make_config(epochs=3)
    config["optim_wrapper"] |= dict(type="AmpOptimWrapper", dtype=precision)
    config["train_dataloader"] |= dict(num_workers=1, pin_memory=True)
    rows = train(config, tmp_path, device="cuda").rows
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 10))
    weights = read_checkpoint(tmp_path / "last.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    config["custom_hooks"].append(dict(type="PoisonHook", iteration=5, where="weights"))
    with pytest.raises(TrainingError, match="not finite in iteration 5"), RunLog(None) as log:
        build_trainer(config, RunOptions(tmp_path / "bad", device="cuda"), log).train()


def test_no_process_is_left_behind(make_config: MakeConfig, train: Train, tmp_path: Path) -> None:
    config = make_config(epochs=2)
    for loader in ("train_dataloader", "val_dataloader"):
        config[loader] |= dict(num_workers=1, persistent_workers=True)
    before = len(multiprocessing.active_children())
    train(config, tmp_path)
    config["custom_hooks"].append(dict(type="PoisonHook", iteration=5, where="weights"))
    with pytest.raises(TrainingError):
        train(config, tmp_path)
    assert len(multiprocessing.active_children()) == before


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
