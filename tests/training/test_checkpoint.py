from __future__ import annotations

import collections
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.errors import CheckpointError
from deploykit.training.checkpoint import read_checkpoint, weights_of, write_checkpoint


def make_checkpoint(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.rand(2, 3, 8, 8, generator=generator)).sum().backward()
    optimizer.step()
    return {
        "meta": {"epoch": 3, "classes": ("a", "b"), "palette": [(1, 2, 3)], "time": "now"},
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate()},
        "dtype": torch.bfloat16,
    }


def test_round_trip_keeps_every_value(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    path = tmp_path / "new" / "epoch_1.pth"
    write_checkpoint(path, checkpoint)
    back = read_checkpoint(path)
    assert list(back) == list(checkpoint)
    assert back["meta"] == checkpoint["meta"]
    assert back["rng"]["python"] == checkpoint["rng"]["python"]
    assert back["dtype"] is torch.bfloat16
    for name, tensor in checkpoint["state_dict"].items():
        assert torch.equal(back["state_dict"][name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == ["epoch_1.pth"]


@pytest.mark.parametrize(
    "value",
    [np.float64(1.0), np.zeros(2), {1, 2}, collections.Counter("a"), Path("x"), print],
    ids=lambda value: type(value).__name__,
)
def test_only_plain_types_are_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\['meta'\]\['x'\]\[0\] is of type"):
        write_checkpoint(tmp_path / "a.pth", {"meta": {"x": [value]}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    write_checkpoint(path, {"state_dict": {"w": torch.ones(2)}})
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        write_checkpoint(path, {"state_dict": {"w": torch.zeros(2)}, "bad": object()})
    assert path.read_bytes() == before


def test_every_single_damaged_byte_is_noticed(tmp_path: Path) -> None:
    """Bits flipped anywhere either leave the content intact (padding) or raise CheckpointError."""
    path, broken = tmp_path / "a.pth", tmp_path / "b.pth"
    weights = torch.arange(256.0)
    write_checkpoint(path, {"state_dict": {"w": weights}, "meta": {"epoch": 7}})
    data = path.read_bytes()
    chosen = random.Random(0)
    noticed = 0
    for position in chosen.sample(range(len(data)), 300):
        damaged = bytearray(data)
        damaged[position] ^= 1 << chosen.randrange(8)
        broken.write_bytes(damaged)
        try:
            content = read_checkpoint(broken)
        except CheckpointError as error:
            assert "b.pth" in str(error)
            assert "\n" not in str(error)
            noticed += 1
        else:
            assert content["meta"] == {"epoch": 7}
            assert torch.equal(content["state_dict"]["w"], weights)
    start = data.find(weights.numpy().tobytes())
    assert start > 0
    assert noticed > 300 * weights.numel() * 4 / len(data) * 0.5


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_cut_file(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.pth"
    write_checkpoint(path, make_checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("seed", range(40))
def test_garbage_is_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    path = tmp_path / "noise.pth"
    prefix = chosen.choice([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00(", b"<html>"])
    path.write_bytes(prefix + chosen.randbytes(chosen.randrange(1, 400)))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


class Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cannot_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Attack()}, "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir|nt\.mkdir"):
        read_checkpoint("evil.pth")
    assert not Path("attacked").exists()


def test_old_torch_format_is_read(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    torch.save(checkpoint, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    back = read_checkpoint(tmp_path / "old.pth")
    assert torch.equal(back["state_dict"]["0.weight"], checkpoint["state_dict"]["0.weight"])


def test_weights_of_takes_the_forms_in_use() -> None:
    weights = {"a": torch.ones(1), "b.c": torch.zeros(2)}
    assert weights_of({"state_dict": weights}) == weights
    assert weights_of(weights) == weights
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    assert weights_of({"state_dict": wrapped}) == weights
    assert list(weights_of({"module.a": weights["a"], "b": weights["b.c"]})) == ["module.a", "b"]


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, {"state_dict": 3}, {"state_dict": {"a": 1}}, {"meta": {}}]
)
def test_no_weights(content: dict) -> None:
    with pytest.raises(CheckpointError, match=r"f\.pth"):
        weights_of(content, "f.pth")


WRITE_FOREVER = """
import sys, torch
from deploykit.training.checkpoint import write_checkpoint
version = 0
while True:
    version += 1
    values = torch.full((500_000,), float(version))
    write_checkpoint(sys.argv[1], {"state_dict": {"w": values}, "meta": {"version": version}})
    print(version, flush=True)
"""


def test_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    chosen = random.Random(0)
    interrupted = 0
    for attempt in range(12):
        command = [sys.executable, "-c", WRITE_FOREVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), "the writer did not start"
            time.sleep(chosen.uniform(0.0, 0.02))
            process.kill()
        content = read_checkpoint(path)
        version = content["meta"]["version"]
        assert torch.equal(content["state_dict"]["w"], torch.full((500_000,), float(version)))
        interrupted += len(list(tmp_path.glob(".last.*.partial.pth")))
        if interrupted and attempt:
            break
    assert interrupted > 0, "no process was killed in the middle of a write"
