"""Runs that stop, or never begin: values that are not finite, configs that make no sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import ConfigError, TrainingError, UsageError
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.engine import Hook, RunLog, RunOptions, Trainer, build_trainer
from deploykit.training.registry import HOOKS

MakeConfig = Callable[..., Config]
Train = Callable[..., Any]  # see the fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("where", "what"), [("weights", "loss"), ("gradients", "gradient")])
def test_non_finite_values_stop_training(
    make_config: MakeConfig, train: Train, tmp_path: Path, where: str, what: str
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


def test_non_finite_weights_are_not_saved(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    config = make_config(epochs=3, custom_hooks=[dict(type="RuinWeightsHook")])
    with pytest.raises(TrainingError, match="weights are not finite"):
        train(config, tmp_path)
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["epoch"] == 1


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
def test_bad_configs(
    make_config: MakeConfig, train: Train, tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_config(**change), tmp_path)


def test_data_that_gives_no_batch(make_config: MakeConfig, train: Train, tmp_path: Path) -> None:
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
