"""Where the config of a published model comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploykit.training import zoo_model
from deploykit.training.recipes import recipe_paths
from deploykit.training.zoo_model import zoo_config
from deploykit.zoo import ZooEntry

NAME = "retinanet_r50_fpn_1x_coco"


@pytest.fixture
def entry() -> ZooEntry:
    return ZooEntry(NAME, f"retinanet/{NAME}.py", "https://h/a-00000000.pth", {}, "COCO")


def write(path: Path, meta: object) -> Path:
    torch.save({"meta": meta, "state_dict": {"w": torch.ones(1)}}, path)
    return path


class Package:
    def __init__(self, folder: Path) -> None:
        self.submodule_search_locations = [str(folder)]


def test_a_file_of_3_brings_its_own(entry: ZooEntry, tmp_path: Path):
    assert zoo_config(entry, write(tmp_path / "a.pth", {"cfg": "model = dict()"})) is None


def test_for_a_file_of_2_the_config_of_3_is_taken(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write(tmp_path / "a.pth", {"config": "model = dict()", "CLASSES": ("a",)})
    monkeypatch.setattr(zoo_model, "find_spec", lambda name: Package(tmp_path))
    assert zoo_config(entry, file) == recipe_paths()[NAME]
    installed = tmp_path / ".mim" / "configs" / entry.config
    installed.parent.mkdir(parents=True)
    installed.write_text("model = dict()")
    assert zoo_config(entry, file) == installed
    monkeypatch.setattr(zoo_model, "find_spec", lambda name: None)
    assert zoo_config(entry, file) == recipe_paths()[NAME]


def test_without_either_it_is_what_the_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zoo_model, "find_spec", lambda name: None)
    other = ZooEntry("other", "other/other.py", "https://h/a-00000000.pth", {}, "COCO")
    assert zoo_config(other, write(tmp_path / "a.pth", {"config": "model = dict()"})) is None
    assert zoo_config(other, write(tmp_path / "b.pth", None)) is None
