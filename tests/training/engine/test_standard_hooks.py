from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from deploykit.errors import ConfigError, TrainingError
from deploykit.training.engine import EarlyStoppingHook, Hook
from deploykit.training.engine.checkpoint_hook import greater_is_better
from deploykit.training.engine.hook import build_hook, priority_number
from deploykit.training.engine.standard_hooks import YOLOXModeSwitchHook


def stub_trainer(**attributes: Any) -> Any:
    return SimpleNamespace(
        logger=logging.getLogger("deploykit.training"), stop_training=False, **attributes
    )


def stops_after(hook: EarlyStoppingHook, values: list[float]) -> int | None:
    """Return after how many validations training stops."""
    trainer = stub_trainer()
    for count, value in enumerate(values, 1):
        hook.after_val_epoch(trainer, {"metric": value})
        if trainer.stop_training:
            return count
    return None


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        (dict(rule="greater", patience=2, min_delta=0.1), [0.1, 0.3, 0.35, 0.39], 4),
        (dict(rule="greater", patience=2, min_delta=0.1), [0.1, 0.3, 0.35, 0.41, 0.6], None),
        (dict(rule="less", patience=2, min_delta=0.1), [5, 4, 3.95, 3.95], 4),
        (dict(rule="less", patience=2, min_delta=0.1), [5, 4, 3, 2], None),
        (dict(rule="greater", stopping_threshold=0.5), [0.3, 0.5, 0.6], 3),
        (dict(rule="less", stopping_threshold=0.5), [0.8, 0.4], 2),
        (dict(rule="greater"), [0.1, float("nan")], 2),
        (dict(rule="greater", check_finite=False, patience=9), [0.1, float("nan"), 0.2], None),
    ],
)
def test_early_stopping(options: dict, values: list[float], expected: int | None) -> None:
    assert stops_after(EarlyStoppingHook("metric", **options), values) == expected


def test_early_stopping_remembers_across_a_resume() -> None:
    first = EarlyStoppingHook("metric", rule="greater", patience=3)
    assert stops_after(first, [0.5, 0.4, 0.4]) is None
    second = EarlyStoppingHook("metric", rule="greater", patience=3)
    second.load_state_dict(first.state_dict())
    assert stops_after(second, [0.4]) == 1


def test_a_metric_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    hook = EarlyStoppingHook("coco/bbox_mAP")
    with caplog.at_level(logging.WARNING):
        hook.after_val_epoch(stub_trainer(), {"mAP": 1.0})
    assert "no metric 'coco/bbox_mAP' among mAP" in caplog.text
    with pytest.raises(TrainingError, match="no metric"):
        EarlyStoppingHook("mAP", strict=True).after_val_epoch(stub_trainer(), {"loss": 1.0})


@pytest.mark.parametrize(
    ("metric", "rule", "expected"),
    [
        ("coco/bbox_mAP", None, True),
        ("coco/AR@100", None, True),
        ("loss_cls", None, False),
        ("coco/bbox_mAP", "less", False),
        ("depth", "greater", True),
    ],
)
def test_which_direction_is_better(metric: str, rule: str | None, expected: bool) -> None:
    assert greater_is_better(metric, rule) is expected


def test_a_direction_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="rule='greater'"):
        greater_is_better("depth")
    with pytest.raises(ConfigError, match="'greater' or 'less'"):
        greater_is_better("depth", "more")


class Loader:
    def __init__(self) -> None:
        self.skipped: list[tuple[str, ...]] = []

    def skip_transforms(self, types: tuple[str, ...]) -> None:
        self.skipped.append(types)


def test_yolox_mode_switch() -> None:
    head, loader = SimpleNamespace(use_l1=False), Loader()
    trainer = stub_trainer(
        epoch=0, max_epochs=10, train_dataloader=loader, model=SimpleNamespace(bbox_head=head)
    )
    hook = YOLOXModeSwitchHook(num_last_epochs=3)
    switched = []
    for trainer.epoch in range(10):
        hook.before_train_epoch(trainer)
        switched.append(head.use_l1)
    assert switched == [False] * 7 + [True] * 3
    assert loader.skipped == [("Mosaic", "RandomAffine", "MixUp")]
    trainer.model = SimpleNamespace()
    with pytest.raises(ConfigError, match="L1"):
        YOLOXModeSwitchHook().before_train_epoch(trainer)


@pytest.mark.parametrize(
    ("priority", "number"), [("HIGHEST", 0), ("very_low", 90), (49, 49), ("NORMAL", 50)]
)
def test_priorities(priority: int | str, number: int) -> None:
    hook = build_hook(dict(type="ParamSchedulerHook", priority=priority))
    assert priority_number(hook) == number


def test_priorities_that_make_no_sense() -> None:
    for priority in ("FIRST", -1, 101, 1.5):
        with pytest.raises(ConfigError, match="priority"):
            build_hook(dict(type="ParamSchedulerHook", priority=priority))


def test_hooks_are_taken_as_they_are() -> None:
    hook = Hook()
    assert build_hook(hook) is hook
