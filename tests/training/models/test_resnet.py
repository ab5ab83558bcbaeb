from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from deploykit.errors import ConfigError
from deploykit.training.models.backbones.resnet import ResNet, ResNetV1d, ResNeXt
from deploykit.training.models.layers.residual_blocks import Bottleneck


def randomize(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def torchvision_stages(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    outputs = []
    for index in range(1, 5):
        x = getattr(model, f"layer{index}")(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize(
    ("oracle", "build"),
    [
        ("resnet18", lambda: ResNet(18)),
        ("resnet34", lambda: ResNet(34)),
        ("resnet50", lambda: ResNet(50)),
        ("resnext50_32x4d", lambda: ResNeXt(50, groups=32, base_width=4)),
    ],
)
def test_features_are_torchvisions_with_its_names(oracle, build):
    expected = randomize(torchvision.models.get_model(oracle, weights=None))
    model = build().eval()
    result = model.load_state_dict(expected.state_dict(), strict=False)
    assert not result.missing_keys
    assert result.unexpected_keys == ["fc.weight", "fc.bias"]
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, reference = model(images), torchvision_stages(expected, images)
    for feature, wanted in zip(features, reference, strict=True):
        torch.testing.assert_close(feature, wanted)
    assert model.out_strides == (4, 8, 16, 32)
    assert model.out_channels == tuple(feature.shape[1] for feature in features)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        # Published sizes of the classifiers, less their last layer.
        (lambda: ResNet(101), 44_549_160 - 2_049_000),
        (lambda: ResNet(152), 60_192_808 - 2_049_000),
        (lambda: ResNeXt(101, groups=64, base_width=4), 83_455_272 - 2_049_000),
        (lambda: ResNetV1d(50), 25_576_264 - 2_049_000),  # timm's resnet50d
    ],
)
def test_number_of_parameters(build, count):
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_caffe_style_strides_in_the_first_convolution():
    model = ResNet(50, base_channels=4, style="caffe")
    block = model.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    block = ResNet(50, base_channels=4).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    assert model.eval()(torch.zeros(1, 3, 64, 64))[3].shape == (1, 128, 2, 2)


def test_dilation_keeps_the_resolution():
    model = ResNet(
        50,
        base_channels=4,
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        out_indices=(0, 2),
    ).eval()
    features = model(torch.zeros(1, 3, 64, 64))
    assert [feature.shape[1:] for feature in features] == [(16, 16, 16), (64, 8, 8)]
    assert model.out_strides == (4, 8)
    assert model.layer3[1].conv2.dilation == (2, 2)


def test_deep_stem_and_average_pooling():
    model = ResNetV1d(50, base_channels=8)
    stem = [type(layer).__name__ for layer in model.stem]
    assert stem == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert [model.stem[i].stride[0] for i in (0, 3, 6)] == [2, 1, 1]
    pool, conv, _ = model.layer2[0].downsample
    assert isinstance(pool, nn.AvgPool2d)
    assert (pool.stride, conv.stride) == (2, (1, 1))
    assert model.eval()(torch.zeros(1, 3, 64, 64))[0].shape == (1, 32, 16, 16)


def test_frozen_stages_and_norms_stay_in_evaluation():
    model = ResNet(18, base_channels=4, frozen_stages=2, norm_eval=False).train()
    frozen = {"conv1", "bn1", "layer1", "layer2"}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] not in frozen)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (name.split(".")[0] not in frozen)
    model = ResNet(18, base_channels=4, norm_eval=True).train()
    assert model.layer4.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(parameter.requires_grad for parameter in model.parameters())
    fixed = ResNet(18, base_channels=4, norm_cfg={"type": "BN", "requires_grad": False})
    assert not fixed.layer3[0].bn1.weight.requires_grad
    deep = ResNetV1d(50, base_channels=4, frozen_stages=0).train()
    assert not any(parameter.requires_grad for parameter in deep.stem.parameters())


def test_recomputing_activations_changes_nothing():
    torch.manual_seed(0)
    plain = ResNet(50, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1),
                   out_indices=(1,), norm_eval=False)  # fmt: skip
    saving = ResNet(50, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1),
                    out_indices=(1,), norm_eval=False, with_cp=True)  # fmt: skip
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for model in (plain, saving):
        model.train()(images)[0].square().sum().backward()
    for own, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert torch.equal(plain.bn1.running_mean, saving.bn1.running_mean)


def test_weights_start_as_published():
    torch.manual_seed(0)
    model = ResNet(50, base_channels=16)
    model.init_weights()
    conv = model.layer4[1].conv2
    fan_out = conv.out_channels * 9
    assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            assert (block.bn1.weight == 1).all()
            assert not block.bn3.weight.any()  # every branch starts by adding nothing
    plain = ResNet(50, base_channels=16, zero_init_residual=False)
    plain.init_weights()
    assert (plain.layer4[1].bn3.weight == 1).all()


def test_pretrained_weights_of_torchvision(tmp_path):
    donor = torchvision.models.resnet18(weights=None)
    torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
    path = str(tmp_path / "resnet18.pth")
    for options in ({"pretrained": path}, {"init_cfg": {"type": "Pretrained", "checkpoint": path}}):
        model = ResNet(18, **options)
        model.init_weights()
        for name, value in model.state_dict().items():
            assert torch.equal(value, donor.state_dict()[name])


def test_other_norms_have_their_own_names():
    model = ResNet(18, base_channels=8, norm_cfg={"type": "GN", "num_groups": 2})
    names = set(model.state_dict())
    assert {"gn1.weight", "layer1.0.gn2.bias", "layer2.0.downsample.1.weight"} <= names


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet(51), "unknown depth 51"),
        (lambda: ResNeXt(18), "ResNeXt: unknown depth 18"),
        (lambda: ResNet(50, style="tensorflow"), "style"),
        (lambda: ResNet(50, plugins=[{"cfg": {}}]), "plugins"),
        (lambda: ResNet(50, dcn={"type": "DCNv2"}), "dcn"),
        (lambda: ResNet(50, num_stages=5), "num_stages"),
        (lambda: ResNet(50, strides=(1, 2)), "strides"),
        (lambda: ResNet(50, out_indices=(4,)), "out_indices"),
        (lambda: ResNet(50, frozen_stages=5), "frozen_stages"),
        (lambda: ResNet(50, conv_cfg={"type": "DCNv2"}), "conv_cfg"),
        (lambda: ResNet(50, pretrained="a.pth", init_cfg={"type": "Kaiming"}), "either"),
    ],
)
def test_what_is_not_supported_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
