from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.errors import ConfigError
from deploykit.training.models.backbones.cspnext import CSPNeXt
from deploykit.training.models.necks.cspnext_pafpn import CSPNeXtPAFPN

SMALL = {"deepen_factor": 0.167, "widen_factor": 0.125}


@pytest.mark.parametrize(
    ("arch", "indices", "channels"),
    [("P5", (2, 3, 4), (32, 64, 128)), ("P6", (0, 2, 4, 5), (8, 32, 96, 128)), ("P5", (1,), (16,))],
)
def test_outputs_have_the_strides_they_claim(arch, indices, channels):
    backbone = CSPNeXt(arch, out_indices=indices, **SMALL)
    outputs = backbone(torch.randn(2, 3, 128, 64))
    assert backbone.out_strides == tuple(2 ** (i + 1) for i in indices)
    assert [tuple(output.shape) for output in outputs] == [
        (2, c, 128 // s, 64 // s) for c, s in zip(channels, backbone.out_strides, strict=True)
    ]


def test_depth_and_width_multipliers():
    backbone = CSPNeXt(deepen_factor=0.67, widen_factor=0.375)
    blocks = [len(getattr(backbone, f"stage{i}")[-1].blocks) for i in range(1, 5)]
    assert blocks == [2, 4, 4, 2]
    assert [layer.conv.out_channels for layer in backbone.stem] == [12, 12, 24]


def test_only_the_last_stage_pools_and_has_no_shortcuts():
    backbone = CSPNeXt(**SMALL)
    lengths = [len(getattr(backbone, f"stage{i}")) for i in range(1, 5)]
    shortcuts = [getattr(backbone, f"stage{i}")[-1].blocks[0].add_identity for i in range(1, 5)]
    assert lengths == [2, 2, 2, 3]
    assert shortcuts == [True, True, True, False]


def test_depthwise_and_attention_options():
    plain, depthwise = CSPNeXt(**SMALL), CSPNeXt(use_depthwise=True, **SMALL)
    assert "stage1.0.conv.weight" in plain.state_dict()
    assert "stage1.0.depthwise_conv.conv.weight" in depthwise.state_dict()
    assert "stem.0.conv.weight" in depthwise.state_dict()
    without = CSPNeXt(channel_attention=False, **SMALL).state_dict()
    assert not [name for name in without if "attention" in name]


def test_own_architecture():
    rows = [[64, 128, 1, True, False], [128, 256, 2, False, True]]
    backbone = CSPNeXt(arch_ovewrite=rows, widen_factor=0.125, out_indices=(1, 2))
    assert [o.shape[1] for o in backbone(torch.randn(1, 3, 32, 32))] == [16, 32]
    with pytest.raises(ConfigError, match="arch_ovewrite"):
        CSPNeXt(arch_ovewrite=[[64, 128]])


def test_frozen_stages_neither_learn_nor_count_statistics():
    backbone = CSPNeXt(frozen_stages=1, **SMALL)
    frozen = {name: p.requires_grad for name, p in backbone.named_parameters()}
    assert {name.split(".")[0] for name, learns in frozen.items() if not learns} == {
        "stem",
        "stage1",
    }
    backbone.train()
    before = backbone.stage1[0].bn.running_mean.clone()
    sum(o.sum() for o in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert torch.equal(before, backbone.stage1[0].bn.running_mean)
    assert backbone.stage2[0].bn.running_mean.any()
    assert backbone.stem[0].conv.weight.grad is None
    assert backbone.stage2[0].conv.weight.grad is not None


def test_norm_eval_keeps_statistics_but_learns():
    backbone = CSPNeXt(norm_eval=True, **SMALL).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)
    assert backbone.stem.training


@pytest.mark.parametrize(
    "options", [{"arch": "P7"}, {"out_indices": (5,)}, {"frozen_stages": 5}, {"frozen_stages": -2}]
)
def test_impossible_arguments_are_refused(options):
    with pytest.raises(ConfigError, match="CSPNeXt"):
        CSPNeXt(**options)


def test_default_initialisation_of_the_backbone():
    torch.manual_seed(0)
    backbone = CSPNeXt(**SMALL)
    backbone.init_weights()
    weight = backbone.stage4[0].conv.weight
    bound = (1 / (64 * 9)) ** 0.5  # uniform in +-sqrt(1 / fan_in)
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not backbone.stage4[-1].attention.fc.bias.any()


@pytest.mark.parametrize("depthwise", [True, False])
def test_neck_keeps_sizes_and_unifies_channels(depthwise):
    neck = CSPNeXtPAFPN([8, 16, 24, 32], 12, num_csp_blocks=1, use_depthwise=depthwise)
    inputs = [torch.randn(2, c, 64 // s, 32 // s) for c, s in ((8, 1), (16, 2), (24, 4), (32, 8))]
    outputs = neck(inputs)
    assert [tuple(o.shape) for o in outputs] == [(2, 12, 64 // s, 32 // s) for s in (1, 2, 4, 8)]


def test_information_flows_down_and_up_the_pyramid():
    neck = CSPNeXtPAFPN([4, 8, 16], 4, num_csp_blocks=1).eval()
    inputs = [torch.randn(1, c, 16 // s, 16 // s) for c, s in ((4, 1), (8, 2), (16, 4))]
    before = neck(inputs)
    for changed in (0, 2):
        moved = list(inputs)
        moved[changed] = moved[changed] + 1
        assert all(not torch.equal(a, b) for a, b in zip(before, neck(moved), strict=True))


def test_neck_arguments_are_checked():
    with pytest.raises(ConfigError, match="upsample_cfg"):
        CSPNeXtPAFPN([8, 16], 8, upsample_cfg={"scale_factor": 4, "mode": "nearest"})
    with pytest.raises(ConfigError, match="feature maps"):
        CSPNeXtPAFPN([8, 16], 8)([torch.randn(1, 8, 4, 4)])
