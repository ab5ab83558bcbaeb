from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError, ConfigError
from deploykit.training.models import build_detector
from deploykit.training.models.pretrained import (
    PretrainedWeightsWarning,
    load_matching_weights,
    load_pretrained,
)
from deploykit.training.models.weight_init import (
    bias_for_probability,
    initialize,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 32, 3)
        self.linear = nn.Linear(200, 100)
        self.norm = nn.BatchNorm2d(8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_layers_are_picked_by_class_name_and_base_class(net):
    linear = net.linear.weight.clone()
    initialize(net, {"type": "Constant", "layer": ["Conv2d", "_BatchNorm"], "val": 2, "bias": 3})
    assert (net.conv.weight == 2).all()
    assert (net.conv.bias == 3).all()
    assert (net.norm.weight == 2).all()
    assert torch.equal(net.linear.weight, linear)


@pytest.mark.parametrize(
    ("config", "std", "bound"),
    [
        ({"type": "Normal", "std": 0.02}, 0.02, None),
        ({"type": "Uniform", "a": -0.3, "b": 0.3}, 0.3 / 3**0.5, 0.3),
        ({"type": "TruncNormal", "std": 1.0, "a": -2, "b": 2}, 0.88, 2.0),
        ({"type": "Xavier"}, (2 / 300) ** 0.5, None),
        ({"type": "Xavier", "distribution": "uniform"}, (2 / 300) ** 0.5, (6 / 300) ** 0.5),
        ({"type": "Kaiming"}, (2 / 100) ** 0.5, None),
        ({"type": "Kaiming", "mode": "fan_in"}, (2 / 200) ** 0.5, None),
        ({"type": "Caffe2Xavier"}, (1 / 200) ** 0.5, (3 / 200) ** 0.5),
    ],
)
def test_distributions(net, config, std, bound):
    initialize(net, {**config, "layer": "Linear"})
    assert net.linear.weight.std().item() == pytest.approx(std, rel=0.03)
    assert not net.linear.bias.any()
    if bound is not None:
        assert net.linear.weight.abs().max() <= bound * 1.0001


def test_bias_for_a_probability(net):
    initialize(net, {"type": "Normal", "layer": "Linear", "std": 0.01, "bias_prob": 0.2})
    assert torch.sigmoid(net.linear.bias[0]).item() == pytest.approx(0.2)
    assert bias_for_probability(0.01) == pytest.approx(-math.log(99))


def test_override_reaches_one_submodule(net):
    config = {
        "type": "Constant",
        "layer": "Linear",
        "val": 1,
        "override": {"name": "conv", "type": "Constant", "val": 5, "bias": 7},
    }
    initialize(net, config)
    assert (net.linear.weight == 1).all()
    assert (net.conv.weight == 5).all()
    assert (net.conv.bias == 7).all()


@pytest.mark.parametrize(
    "config",
    [
        {"type": "Orthogonal", "layer": "Linear"},
        {"layer": "Linear"},
        {"type": "Normal", "layer": "Linear", "sigma": 1},
        {"type": "Constant", "val": 1, "override": {"type": "Constant", "val": 1}},
        {"type": "Pretrained"},
        {"type": "Pretrained", "checkpoint": "x.pth", "strict": True},
    ],
)
def test_mistakes_are_refused(net, config):
    with pytest.raises(ConfigError, match="init_cfg"):
        initialize(net, config)


def test_detector_starts_as_published(small_config):
    torch.manual_seed(0)
    model = build_detector(small_config())
    model.init_weights()
    for layer in model.bbox_head.rtm_cls:
        assert torch.sigmoid(layer.bias).tolist() == pytest.approx([0.01] * 3)
    for layer in model.bbox_head.rtm_reg:
        assert not layer.bias.any()
    convolutions = [m for m in model.bbox_head.modules() if isinstance(m, nn.Conv2d)]
    deviations = torch.cat([m.weight.flatten() for m in convolutions]).std()
    assert deviations.item() == pytest.approx(0.01, rel=0.05)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


def test_weights_of_a_file_are_taken_by_prefix(tmp_path, small_config, caplog):
    donor = build_detector(small_config())
    path = tmp_path / "backbone.pth"
    state = {f"module.{name}": value for name, value in donor.state_dict().items()}
    del state["module.backbone.stem.0.conv.weight"]
    torch.save({"state_dict": state}, path)
    config = small_config()
    config["backbone"]["init_cfg"] = {
        "type": "Pretrained",
        "checkpoint": str(path),
        "prefix": "backbone.",
    }
    model = build_detector(config)
    with caplog.at_level(logging.INFO):
        model.init_weights()
    for name, value in model.backbone.state_dict().items():
        if name != "stem.0.conv.weight":
            assert torch.equal(value, donor.backbone.state_dict()[name])
    assert "weights loaded" in caplog.text
    assert "1 missing" in caplog.text
    assert "stem.0.conv.weight" in caplog.text


def test_report_of_what_fits(net):
    weights = dict(net.state_dict())
    weights["linear.weight"] = torch.zeros(3, 200)
    weights["head.weight"] = weights.pop("conv.weight")
    report = load_matching_weights(Net(), weights)
    assert report.missing == ("conv.weight",)
    assert report.unexpected == ("head.weight",)
    assert report.mismatched == ("linear.weight",)
    assert set(report.loaded) == set(weights) - {"head.weight", "linear.weight"}


def test_address_is_not_fetched_and_that_is_said(net, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    address = "https://example.com/models/net.pth"
    before = net.conv.weight.clone()
    with pytest.warns(PretrainedWeightsWarning, match=r"NOT loaded.*net\.pth"):
        assert load_pretrained(net, address, name="backbone") is None
    assert torch.equal(net.conv.weight, before)
    # A file in the download folder of torch is used.
    (tmp_path / "checkpoints").mkdir()
    torch.save(Net().state_dict(), tmp_path / "checkpoints" / "net.pth")
    assert load_pretrained(net, address, name="backbone").missing == ()
    assert not torch.equal(net.conv.weight, before)


def test_files_that_are_of_no_use_are_refused(net, tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        load_pretrained(net, str(tmp_path / "missing.pth"))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no weights for the backbone"):
        load_pretrained(net, str(tmp_path / "other.pth"), prefix="backbone", name="backbone")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(CheckpointError, match="damaged"):
        load_pretrained(net, str(tmp_path / "damaged.pth"))
