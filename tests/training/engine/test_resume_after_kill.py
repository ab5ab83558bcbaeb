"""Training runs that are killed with SIGKILL and resumed end in the same bits as one that was not.

The runs are ``deploykit train`` in processes of their own, with a loader worker and with the caches
of mosaic and mixup.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config

MakeConfig = Callable[..., Config]
StartProcess = Callable[..., BaseProcess]

EPOCHS = 5

# A hook that kills its own process at a chosen point, once.
KILLER = '''
import os, signal
from pathlib import Path
from deploykit import atomic_file
from deploykit.training.engine import Hook
from deploykit.training.registry import HOOKS

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

@HOOKS.register()
class KillHook(Hook):
    """Kills the process at the point that a file names, and removes the file."""

    priority = "HIGHEST"

    def __init__(self, order):
        self.order = Path(order)
        self.point = self.order.read_text() if self.order.exists() else ""

    def die(self):
        self.order.unlink()
        kill()

    def strike(self, point, *place):
        if self.point == ":".join(map(str, (point, *place))):
            self.die()

    def before_train_iter(self, trainer, batch_idx, data_batch):
        self.strike("before_iter", trainer.iter)

    def after_train_epoch(self, trainer):
        self.strike("after_epoch", trainer.epoch)

    def after_val_iter(self, trainer, batch_idx, data_batch, outputs):
        self.strike("validation", trainer.epoch)

    def after_val_epoch(self, trainer, metrics):
        self.strike("after_validation", trainer.epoch)

    def before_save_checkpoint(self, trainer, checkpoint):
        point, _, place = self.point.partition(":")
        if point not in ("half_written", "written", "renamed") or int(place) != trainer.epochs_done:
            return
        if point == "half_written":
            import torch
            save = torch.save
            def half(content, path):
                save(content, path)
                os.truncate(path, os.path.getsize(path) // 2)
                self.die()
            torch.save = half
        else:
            replace = os.replace
            def replace_and_die(source, target):
                if point == "renamed":
                    replace(source, target)
                self.die()
            atomic_file.os.replace = replace_and_die
'''


class RunFolder:
    """A config with its work directory, which several processes train in one after another."""

    def __init__(self, folder: Path, config: Config, start_process: StartProcess) -> None:
        self.start_process = start_process
        self.work_dir = folder / "work"
        self.order = folder / "kill_at"
        config["custom_imports"] = dict(imports=["killer_hook"])
        config["custom_hooks"].append(dict(type="KillHook", order=str(self.order)))
        for loader in ("train_dataloader", "val_dataloader"):
            config[loader] |= dict(num_workers=1, persistent_workers=True)
        self.config = folder / "config.py"
        self.config.write_text(config.dumps())

    def start(self, kill_at: str = "") -> BaseProcess:
        if kill_at:
            self.order.write_text(kill_at)
        options = ("--resume", "--device", "cpu", "--threads", 1, "--allow-custom-imports")
        return self.start_process("train", self.config, "--work-dir", self.work_dir, *options)

    def run(self, kill_at: str = "") -> int | None:
        process = self.start(kill_at)
        process.join(300)
        return process.exitcode

    def text(self) -> str:
        logs = sorted(self.work_dir.glob("*/train.log"))
        return "".join(path.read_text() for path in logs)

    def iterations_logged(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.work_dir.glob("*/scalars.jsonl"))


@pytest.fixture(scope="module")
def make_run(
    make_config: MakeConfig,
    start_process: StartProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], RunFolder]]:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "killer_hook.py").write_text(KILLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(modules)  # processes inherit the path
        yield lambda: RunFolder(
            tmp_path_factory.mktemp("run"), make_config(epochs=EPOCHS), start_process
        )


@pytest.fixture(scope="module")
def uninterrupted(make_run: Callable[[], RunFolder]) -> dict[str, Any]:
    """Return the checkpoints of the run that nothing happens to."""
    run = make_run()
    assert run.run() == 0
    return contents(run)


def contents(run: RunFolder) -> dict[str, Any]:
    return {name: read_checkpoint(run.work_dir / name) for name in ("last.pth", "best.pth")}


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Return where two nested contents differ, bit by bit."""
    if isinstance(first, torch.Tensor):
        same = isinstance(second, torch.Tensor) and first.dtype == second.dtype
        return [] if same and torch.equal(first, second) else [place]
    if isinstance(first, dict):
        if not isinstance(second, dict) or first.keys() != second.keys():
            return [f"{place} keys"]
        # Paths and times are those of each run.
        own = ("time", "cfg", "deploykit") if place == "/meta" else ()
        keys = [key for key in first if key not in own]
        return [d for key in keys for d in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, list | tuple):
        if type(first) is not type(second) or len(first) != len(second):
            return [f"{place} length"]
        pairs = enumerate(zip(first, second, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{place}/{i}")]
    return [] if first == second else [f"{place}: {first!r} and {second!r}"]


def assert_same_end(run: RunFolder, expected: dict[str, Any]) -> None:
    found = contents(run)
    for name, checkpoint in expected.items():
        assert not differences(checkpoint, found[name]), name
    names = {path.name for path in run.work_dir.iterdir() if path.suffix == ".pth"}
    assert names == {"epoch_4.pth", "epoch_5.pth", "last.pth", "best.pth"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "points",
    [
        # Within an epoch; while a checkpoint is written, before and after it gets its name.
        ["before_iter:1", "half_written:1", "written:2", "renamed:2", "before_iter:10"],
        # Between an epoch and its checkpoint, in its validation, and right after it.
        ["after_epoch:1", "validation:1", "validation:3", "after_validation:4"],
    ],
    ids=["writing", "validating"],
)
def test_killed_at_chosen_points(
    make_run: Callable[[], RunFolder], uninterrupted: dict[str, Any], points: list[str]
) -> None:
    run = make_run()
    for point in points:
        assert run.run(kill_at=point) == -signal.SIGKILL, f"{point}: {run.text()}"
        assert not run.order.exists()
        for path in run.work_dir.glob("[!.]*.pth"):
            read_checkpoint(path)
    assert run.run() == 0, run.text()
    assert "resumed after epoch" in run.text()
    assert_same_end(run, uninterrupted)


@pytest.mark.slow
def test_killed_at_random_moments(
    make_run: Callable[[], RunFolder], uninterrupted: dict[str, Any]
) -> None:
    run = make_run()
    chosen = random.Random(int.from_bytes(os.urandom(4), "little"))
    for _ in range(3):
        logged = run.iterations_logged()
        process = run.start()
        while process.is_alive() and run.iterations_logged() == logged:
            time.sleep(0.01)
        time.sleep(chosen.uniform(0, 0.5))
        process.kill()
        process.join()
    assert run.run() == 0, run.text()
    assert_same_end(run, uninterrupted)
