from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.errors import ConfigError
from deploykit.training.models.layers.activation import build_activation
from deploykit.training.models.layers.channel_attention import ChannelAttention
from deploykit.training.models.layers.conv_module import (
    ConvModule,
    DepthwiseSeparableConvModule,
)
from deploykit.training.models.layers.csp_layer import CSPLayer, CSPNeXtBlock, DarknetBottleneck
from deploykit.training.models.layers.normalization import build_norm
from deploykit.training.models.layers.spatial_pyramid_pooling import SPPBottleneck

BN, SILU = {"type": "BN"}, {"type": "SiLU"}


def test_conv_module_is_convolution_norm_activation():
    module = ConvModule(4, 6, 3, padding=1, norm_cfg=BN, act_cfg=SILU).eval()
    x = torch.randn(2, 4, 5, 7)
    expected = nn.functional.silu(module.bn(nn.functional.conv2d(x, module.conv.weight, padding=1)))
    torch.testing.assert_close(module(x), expected)
    assert set(module.state_dict()) == {
        "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
        "bn.num_batches_tracked",
    }  # fmt: skip


def test_convolutions_without_norm_have_a_bias():
    assert ConvModule(2, 2, 1).conv.bias is not None
    assert ConvModule(2, 2, 1, norm_cfg=BN).conv.bias is None
    assert ConvModule(2, 2, 1, bias=True, norm_cfg=BN).conv.bias is not None


def test_conv_modules_start_with_kaiming_weights_for_the_fan_out():
    torch.manual_seed(0)
    module = ConvModule(32, 64, 3, norm_cfg=BN, act_cfg=SILU)
    assert module.conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


def test_depthwise_separable_convolution():
    module = DepthwiseSeparableConvModule(4, 6, 5, padding=2, norm_cfg=BN, act_cfg=SILU)
    assert module.depthwise_conv.conv.groups == 4
    assert module.pointwise_conv.conv.kernel_size == (1, 1)
    assert module(torch.randn(2, 4, 8, 8)).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("size", [(20, 20), (3, 7), (1, 1)])
@pytest.mark.parametrize("kernels", [(5, 9, 13), (3, 5, 11), (1, 3)])
def test_stepwise_pooling_equals_direct_pooling(size, kernels):
    module = SPPBottleneck(8, 8, kernels, norm_cfg=BN, act_cfg=SILU).eval()
    x = torch.randn(2, 8, *size)
    inner = module.conv1(x)
    pooled = [nn.functional.max_pool2d(inner, k, stride=1, padding=k // 2) for k in kernels]
    assert torch.equal(module(x), module.conv2(torch.cat([inner, *pooled], dim=1)))


@pytest.mark.parametrize("kernels", [(), (4,), (9, 5)])
def test_pooling_sizes_are_checked(kernels):
    with pytest.raises(ConfigError, match="SPP"):
        SPPBottleneck(8, 8, kernels)


def test_channel_attention_gates_by_the_mean():
    module = ChannelAttention(3)
    x = torch.randn(2, 3, 4, 5)
    gate = nn.functional.hardsigmoid(module.fc(x.mean((2, 3))[:, :, None, None]))
    torch.testing.assert_close(module(x), x * gate)


@pytest.mark.parametrize("block", [CSPNeXtBlock, DarknetBottleneck])
def test_blocks_add_their_input_where_the_channels_agree(block):
    options = {"norm_cfg": BN, "act_cfg": SILU}
    x = torch.randn(1, 4, 6, 6)
    with_shortcut = block(4, 4, **options).eval()
    without = block(4, 4, add_identity=False, **options).eval()
    without.load_state_dict(with_shortcut.state_dict())
    torch.testing.assert_close(with_shortcut(x), without(x) + x)
    assert not block(4, 8, **options).add_identity


@pytest.mark.parametrize("cspnext", [True, False])
@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_csp_layer_variants(cspnext, depthwise, attention):
    layer = CSPLayer(
        6, 8, num_blocks=2, use_cspnext_block=cspnext, use_depthwise=depthwise,
        channel_attention=attention, norm_cfg=BN, act_cfg=SILU,
    )  # fmt: skip
    assert layer(torch.randn(2, 6, 5, 5)).shape == (2, 8, 5, 5)
    assert ("attention.fc.weight" in layer.state_dict()) == attention
    second = type(layer.blocks[0].conv1 if cspnext else layer.blocks[0].conv2)
    assert second is (DepthwiseSeparableConvModule if depthwise else ConvModule)


def test_sync_batch_norm_is_batch_norm_in_a_single_process():
    name, layer = build_norm({"type": "SyncBN", "momentum": 0.03}, 4)
    assert (name, type(layer), layer.momentum, layer.eps) == ("bn", nn.BatchNorm2d, 0.03, 1e-5)


def test_sync_batch_norm_synchronises_where_a_training_is_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert type(build_norm({"type": "SyncBN"}, 4)[1]) is nn.SyncBatchNorm


def test_other_norms():
    name, layer = build_norm({"type": "GN", "num_groups": 2, "requires_grad": False}, 4)
    assert (name, layer.num_groups, layer.num_channels) == ("gn", 2, 4)
    assert not layer.weight.requires_grad
    assert build_norm({"type": "LN"}, 4)[0] == "ln"
    for config, text in (
        ({"type": "XN"}, "unknown norm"),
        ({}, "unknown norm"),
        ({"type": "BN", "epsilon": 1}, "epsilon"),
        ({"type": "GN", "num_groups": 3}, "divisible"),
    ):
        with pytest.raises(ConfigError, match=text):
            build_norm(config, 4)


def test_activations():
    assert isinstance(build_activation({"type": "Swish"}), nn.SiLU)
    assert build_activation({"type": "ReLU"}).inplace
    assert not build_activation({"type": "mmdet.SiLU", "inplace": False}).inplace
    assert build_activation({"type": "LeakyReLU", "negative_slope": 0.1}).negative_slope == 0.1
    with pytest.raises(ConfigError, match="unknown activation"):
        build_activation({"type": "Relu"})
    with pytest.raises(ConfigError, match="slope"):
        build_activation({"type": "ReLU", "slope": 1})


def test_other_convolutions_are_refused():
    with pytest.raises(ConfigError, match="conv_cfg"):
        ConvModule(2, 2, 1, conv_cfg={"type": "DCNv2"})
