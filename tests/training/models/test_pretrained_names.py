from __future__ import annotations

import logging

import pytest
import torch
import torchvision

from deploykit.errors import ConfigError
from deploykit.training.models.backbones.resnet import ResNet
from deploykit.training.models.pretrained import PretrainedWeightsWarning, load_pretrained


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The folder that torch downloads to."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torchvision://resnet18", "resnet18-f37072fd.pth"),
        ("torchvision://resnet50", "resnet50-0676ba61.pth"),
        ("torchvision://resnet50.imagenet1k_v2", "resnet50-11ad3fa6.pth"),
        ("open-mmlab://detectron2/resnet50_caffe", "resnet50_msra-5891d200.pth"),
        ("openmmlab://resnext101_32x4d", "resnext101_32x4d-a5af3160.pth"),
    ],
)
def test_names_stand_for_published_files(downloads, name, file):
    model = torch.nn.Conv2d(3, 4, 1)
    with pytest.warns(PretrainedWeightsWarning, match=rf"{name} \(https://.*{file}\).*{file}"):
        assert load_pretrained(model, name, name="backbone") is None
    donor = torch.nn.Conv2d(3, 4, 1)
    torch.save(donor.state_dict(), downloads / file)
    assert load_pretrained(model, name).missing == ()
    assert torch.equal(model.weight, donor.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision://resnet51", "torchvision has no 'torchvision://resnet51'"),
        ("torchvision://resnet50.imagenet1k_v9", "torchvision has no"),
        ("open-mmlab://resnet5000", "unknown name 'open-mmlab://resnet5000'"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        load_pretrained(torch.nn.Conv2d(3, 4, 1), name)


def test_backbone_takes_all_that_torchvision_gives(downloads, caplog):
    donor = torchvision.models.resnet18(weights=None).state_dict()
    # The published file is older than the counters of batch norms.
    old = {name: v for name, v in donor.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, downloads / "resnet18-f37072fd.pth")
    model = ResNet(18, init_cfg={"type": "Pretrained", "checkpoint": "torchvision://resnet18"})
    with caplog.at_level(logging.INFO):
        model.init_weights()
    for name, value in model.state_dict().items():
        if name in old:
            assert torch.equal(value, old[name])
    assert "100 weights loaded" in caplog.text
    assert "2 unexpected" in caplog.text
    assert "missing" not in caplog.text


def test_backbone_without_its_file_says_so_and_starts_in_hes_way(downloads):
    torch.manual_seed(0)
    model = ResNet(18, init_cfg={"type": "Pretrained", "checkpoint": "torchvision://resnet18"})
    with pytest.warns(PretrainedWeightsWarning, match="backbone were NOT loaded"):
        model.init_weights()
    weight = model.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert (model.layer4[1].bn2.weight == 1).all()
