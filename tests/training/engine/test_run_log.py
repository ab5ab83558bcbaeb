from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path

import pytest
from rich.console import Console

from deploykit.errors import TrainingError
from deploykit.training.engine.run_log import ROOT, TERMINAL_ONLY, TEXT_ONLY, RunLog

logger = logging.getLogger("deploykit.somewhere")


def test_numbers_are_json_and_tensorboard_events(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.scalars("train", 5, 1, {"loss": 1.5, "grad_norm": math.inf, "other": None})
        log.scalars("val", 6, 2, {"coco/bbox_mAP": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert rows == [
        {"kind": "train", "step": 5, "epoch": 1, "loss": 1.5, "grad_norm": None, "other": None},
        {"kind": "val", "step": 6, "epoch": 2, "coco/bbox_mAP": 0.5},
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/grad_norm", "val/coco/bbox_mAP"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(5, 1.5)]


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    """A killed process must not take the last numbers with it."""
    with RunLog(tmp_path) as log:
        log.scalars("train", 1, 1, {"loss": 2.0})
        assert json.loads((tmp_path / "scalars.jsonl").read_text())["loss"] == 2.0


@pytest.mark.parametrize("terminal", [True, False])
def test_what_the_screen_and_the_file_show(tmp_path: Path, terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120)
    with RunLog(tmp_path, console=console) as log:
        log.start_progress(10, 0)
        logger.info("for all")
        logger.info("every few iterations", extra=TEXT_ONLY)
        logger.info("every epoch", extra=TERMINAL_ONLY)
        logger.warning("take care")
        log.progress(3, "epoch 1/2", "loss 1.25  ETA 0:00:07")
    shown, written = screen.getvalue(), (tmp_path / "train.log").read_text()
    assert "for all" in shown
    assert ("every few iterations" in shown) is not terminal
    assert ("every epoch" in shown) is terminal
    assert ("ETA 0:00:07" in shown) is terminal
    assert "every few iterations" in written
    assert "every epoch" not in written
    assert "WARNING: take care" in written
    assert "WARNING" in shown


def test_without_a_console_only_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(None):
        logger.info("quiet")
        logger.warning("loud")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "quiet" not in captured.err
    assert "WARNING: loud" in captured.err


@pytest.mark.parametrize(
    ("error", "lines"),
    [(TrainingError("the loss is not finite"), 1), (ZeroDivisionError("1 / 0"), 4)],
)
def test_the_file_keeps_the_error_that_ended_the_run(
    tmp_path: Path, error: Exception, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), RunLog(tmp_path):
        raise error
    text = (tmp_path / "train.log").read_text()
    assert f"ERROR: {error}" in text
    assert len(text.splitlines()) >= lines
    assert ("Traceback" in text) is (lines > 1)
    captured = capsys.readouterr()
    assert str(error) not in captured.out + captured.err


def test_training_goes_on_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with caplog.at_level(logging.WARNING), RunLog(tmp_path) as log:
        log.scalars("train", 1, 1, {"loss": 2.0})
    assert "pip install 'deploykit[train]'" in caplog.text
    assert (tmp_path / "scalars.jsonl").read_text()


def test_closing_gives_everything_back(tmp_path: Path) -> None:
    handlers, level = list(ROOT.handlers), ROOT.level
    log = RunLog(tmp_path, level="DEBUG")
    assert ROOT.level == logging.DEBUG
    log.close()
    log.close()
    assert (list(ROOT.handlers), ROOT.level) == (handlers, level)
