"""Resuming within this process; ``test_resume_after_kill`` kills processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import CheckpointError
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config

MakeConfig = Callable[..., Config]
Train = Callable[..., Any]  # see the fixture
pytestmark = pytest.mark.usefixtures("one_thread")


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
    make_config: MakeConfig, train: Train, tmp_path: Path, sampler: str, caches: bool
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


def test_resume_auto_begins_anew_where_nothing_is(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
    run = train(make_config(epochs=1), tmp_path, resume="auto")
    assert "nothing to resume" in run.text
    assert run.trainer.iter == 3
    again = train(make_config(epochs=1), tmp_path, resume="auto")
    assert again.trainer.iter == 3
    assert again.metrics == run.metrics


def test_resuming_with_another_config_is_reported(
    make_config: MakeConfig, train: Train, tmp_path: Path
) -> None:
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


def test_what_cannot_be_resumed(make_config: MakeConfig, train: Train, tmp_path: Path) -> None:
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
