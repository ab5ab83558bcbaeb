"""Checkpoints as MMEngine's Runner writes them."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit import Detector
from deploykit.inspection import inspect_model
from deploykit.runtimes.pytorch_backend import PyTorchBackend
from deploykit.training.checkpoint import read_checkpoint, weights_of
from deploykit.training.model_spec import load_model

FOLDER = Path(__file__).parent / "mmengine_run"
CHECKPOINT = FOLDER / "tiny_retinanet.pth"


def expected() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "tiny_retinanet.npz") as file:
        return dict(file)


def check_detections(detector: Detector) -> None:
    reference = expected()
    found = detector(reference["image_bgr"])
    assert len(found) == len(reference["scores"]) == 20
    assert found.labels.tolist() == reference["labels"].tolist()
    np.testing.assert_allclose(found.boxes, reference["boxes"], atol=0.05, rtol=0)
    np.testing.assert_allclose(found.scores, reference["scores"], atol=1e-4, rtol=0)


def test_the_file_alone_gives_mmdetections_results():
    # The test pipeline in the file resizes to 1333x800; MMDetection was given the image as it is.
    check_detections(Detector(CHECKPOINT, device="cpu", score_threshold=0, input_size=(128, 128)))


def test_with_its_config_it_gives_mmdetections_results():
    loaded = load_model(CHECKPOINT, FOLDER / "tiny_retinanet.py")
    backend = PyTorchBackend(CHECKPOINT, device="cpu", loaded=loaded)
    check_detections(Detector(CHECKPOINT, backend=backend, score_threshold=0))


def test_everything_in_it_is_plain():
    content = read_checkpoint(CHECKPOINT)
    assert sorted(content) == ["message_hub", "meta", "optimizer", "param_schedulers", "state_dict"]
    hub = content["message_hub"]
    loss = hub["log_scalars"]["train/loss"]
    values = np.asarray(loss["_log_history"])
    assert values.dtype == np.float64 and values.size and np.isfinite(values).all()
    assert np.asarray(loss["_count_history"]).shape == values.shape
    assert type(hub["runtime_info"]["eta"]) is float
    assert content["meta"]["dataset_meta"]["classes"] == ("c0", "c1", "c2")


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch(tmp_path: Path, zipped: bool):
    content = read_checkpoint(CHECKPOINT)
    wrapped = {f"module.{name}": value for name, value in content["state_dict"].items()}
    path = tmp_path / "copy.pth"
    meta = {"cfg": content["meta"]["cfg"], "dataset_meta": {"CLASSES": ("a", "b", "c")}}
    torch.save(
        {"meta": meta, "state_dict": OrderedDict(wrapped)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    loaded = load_model(path)
    assert loaded.spec.classes == ("a", "b", "c")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, content["state_dict"][name]), name


def test_averaged_weights_are_those_of_state_dict():
    """MMEngine's EMAHook writes the averages to ``state_dict`` and what it trains to the other."""
    trained, averaged = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    swapped = {"module.w": trained["w"], "steps": torch.tensor(7)}
    both = {"state_dict": averaged, "ema_state_dict": swapped}
    assert weights_of(both)["w"].tolist() == [1, 1]
    assert list(weights_of({"ema_state_dict": {"module.w": averaged["w"], "steps": 7}})) == ["w"]


def test_inspect_shows_it(capsys: pytest.CaptureFixture[str]):
    from deploykit.cli import main

    found = inspect_model(CHECKPOINT)
    assert found.spec is not None and found.spec.architecture == "RetinaNet"
    assert found.facts["epoch"] == 1 and found.facts["mmengine_version"]
    assert "message_hub" in found.facts["contents"]
    assert main(["inspect", str(CHECKPOINT), "--fit"]) == 0
    count = len(read_checkpoint(CHECKPOINT)["state_dict"])
    assert f"all {count} tensors" in " ".join(capsys.readouterr().out.split())


class ConfigDict(dict[str, Any]):
    """Pickles as mmengine's does."""

    __module__ = "mmengine.config.config"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (dict(self),), None, None, None


class Config:
    """Pickles as mmengine's does: with a tuple as its state."""

    __module__ = "mmengine.config.config"

    def __init__(self, values: ConfigDict) -> None:
        self.values = values

    def __getstate__(self) -> Any:
        return self.values, "config.py", "text", {}


@pytest.mark.parametrize("form", ["dict", "config"])
def test_configs_as_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    module = types.ModuleType("mmengine.config.config")
    vars(module).update(ConfigDict=ConfigDict, Config=Config)
    for name in ("mmengine", "mmengine.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    original = load_model(CHECKPOINT)
    values = ConfigDict(
        {
            key: ConfigDict(value) if isinstance(value, dict) else value
            for key, value in original.config.items()
        }
    )
    config: Any = values if form == "dict" else Config(values)
    meta = {"cfg": config, "dataset_meta": {"classes": ["a", "b", "c"]}}
    path = tmp_path / "object.pth"
    torch.save({"meta": meta, "state_dict": original.model.state_dict()}, path)
    for name in ("mmengine", "mmengine.config", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    loaded = load_model(path)
    assert loaded.config["model"] == original.config["model"]


def test_counters_of_batch_norms_may_be_missing(tmp_path: Path):
    content = read_checkpoint(CHECKPOINT)
    weights = {
        name: value
        for name, value in content["state_dict"].items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(weights) < len(content["state_dict"])
    path = tmp_path / "old.pth"
    meta = {"cfg": content["meta"]["cfg"], "CLASSES": ["a", "b", "c"]}
    torch.save({"meta": meta, "state_dict": weights}, path)
    assert load_model(path).spec.classes == ("a", "b", "c")
