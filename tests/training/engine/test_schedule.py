from __future__ import annotations

import pytest

from deploykit.errors import ConfigError
from deploykit.training.engine.schedule import TrainSchedule


def points(config: dict, total: int) -> list[int]:
    schedule = TrainSchedule.from_config(config)
    return [done for done in range(total + 1) if schedule.validates(done)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (dict(max_epochs=6), [1, 2, 3, 4, 5, 6]),
        (dict(max_epochs=6, val_interval=4), [4, 6]),
        (dict(max_epochs=6, val_begin=3), [3, 4, 5, 6]),
        (dict(max_epochs=7, val_begin=3, val_interval=2), [4, 6, 7]),
        (dict(type="mmdet.EpochBasedTrainLoop", max_epochs=2), [1, 2]),
        (dict(type="IterBasedTrainLoop", max_iters=2500), [1000, 2000, 2500]),
        (dict(type="IterBasedTrainLoop", max_iters=10, val_interval=4), [4, 8, 10]),
        (dict(by_epoch=False, max_iters=10, val_interval=5), [5, 10]),
        # RTMDet: rarely at first, after every epoch in the last stage. The interval in force is
        # that of the next epoch, so the epoch before the stage is measured too.
        (
            dict(max_epochs=30, val_interval=10, dynamic_intervals=[(25, 1)]),
            [10, 20, 24, 25, 26, 27, 28, 29, 30],
        ),
        (
            dict(max_epochs=12, val_interval=6, dynamic_intervals=[(4, 2), (10, 1)]),
            [4, 6, 8, 9, 10, 11, 12],
        ),
    ],
)
def test_when_to_validate(config: dict, expected: list[int]) -> None:
    assert points(config, expected[-1]) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no train_cfg"),
        (dict(), "needs max_epochs"),
        (dict(type="EpochBasedTrainLoop", max_iters=5), "needs max_epochs"),
        (dict(type="TeacherStudentLoop", max_epochs=5), "unknown train_cfg.type"),
        (dict(max_epochs=0), "at least 1"),
        (dict(max_epochs=1.5), "whole number"),
        (dict(max_epochs="12"), "whole number"),
        (dict(max_epochs=12, val_interval=0), "val_interval"),
        (dict(max_epochs=12, val_intervall=2), "val_intervall"),
        (dict(max_epochs=12, dynamic_intervals=[3, 1]), "pairs"),
        (dict(max_epochs=12, dynamic_intervals=[(5, 1), (3, 1)]), "ascending"),
    ],
)
def test_bad_configs(config: dict | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSchedule.from_config(config)
