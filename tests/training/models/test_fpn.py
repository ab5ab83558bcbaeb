from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.necks.fpn import FPN

CHANNELS = [3, 5, 7]


@pytest.fixture
def feats():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, 48 // 2**level, 32 // 2**level, generator=generator)
        for level, channels in enumerate(CHANNELS)
    ]


def build(**options) -> FPN:
    torch.manual_seed(1)
    neck = FPN(CHANNELS, 4, **{"num_outs": 3, **options})
    neck.init_weights()
    return neck.eval()


def top_down(neck: FPN, feats, upsample):
    """Laterals and outputs of the levels that have a feature, from the definition."""
    laterals = [conv(feat) for conv, feat in zip(neck.lateral_convs, feats, strict=True)]
    for level in range(len(laterals) - 2, -1, -1):
        laterals[level] = laterals[level] + upsample(laterals[level + 1])
    outputs = [neck.fpn_convs[level](lateral) for level, lateral in enumerate(laterals)]
    return laterals, outputs


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def assert_all_close(actual, expected):
    assert len(actual) == len(expected)
    for output, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(output, wanted)


def test_pyramid_adds_coarse_features_to_finer_ones(feats):
    neck = build()
    assert_all_close(neck(feats), top_down(neck, feats, doubled)[1])
    assert [tuple(conv.conv.weight.shape) for conv in neck.lateral_convs] == [
        (4, channels, 1, 1) for channels in CHANNELS
    ]


def test_further_levels_without_convolutions_take_every_other_pixel(feats):
    neck = build(num_outs=5)
    outputs = neck(feats)
    assert len(neck.fpn_convs) == 3
    assert torch.equal(outputs[3], outputs[2][:, :, ::2, ::2])
    assert torch.equal(outputs[4], outputs[3][:, :, ::2, ::2])


@pytest.mark.parametrize("source", [True, "on_input", "on_lateral", "on_output"])
@pytest.mark.parametrize("relu", [False, True])
def test_further_levels_by_convolutions(feats, source, relu):
    neck = build(num_outs=4, start_level=1, add_extra_convs=source, relu_before_extra_convs=relu)
    laterals, expected = top_down(neck, feats[1:], doubled)
    start = {"on_lateral": laterals[-1], "on_output": expected[-1]}.get(source, feats[-1])
    expected.append(neck.fpn_convs[2](start))
    expected.append(neck.fpn_convs[3](F.relu(expected[-1]) if relu else expected[-1]))
    assert_all_close(neck(feats), expected)
    assert expected[-1].shape == (2, 4, 3, 2)


def test_end_level_leaves_out_the_coarsest_features(feats):
    neck = build(end_level=1, num_outs=2)
    assert_all_close(neck(feats), top_down(neck, feats[:2], doubled)[1])


def test_upsampling_by_a_factor_or_to_a_size(feats):
    bilinear = build(upsample_cfg={"mode": "bilinear"})
    expected = top_down(
        bilinear, feats, lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")
    )
    assert_all_close(bilinear(feats), expected[1])
    factor = build(upsample_cfg={"scale_factor": 2, "mode": "nearest"})
    assert_all_close(factor(feats), build()(feats))
    odd = [torch.randn(1, c, h, h) for c, h in zip(CHANNELS, (13, 7, 4), strict=True)]
    assert [output.shape[2] for output in build()(odd)] == [13, 7, 4]


def test_norms_and_activations():
    neck = build(
        norm_cfg={"type": "BN"}, act_cfg={"type": "ReLU"}, no_norm_on_lateral=True, num_outs=4,
        add_extra_convs="on_output",
    )  # fmt: skip
    assert all(conv.norm is None and conv.conv.bias is not None for conv in neck.lateral_convs)
    assert all(isinstance(conv.norm, nn.BatchNorm2d) for conv in neck.fpn_convs)
    assert all(isinstance(conv.activate, nn.ReLU) for conv in neck.fpn_convs)


def test_weights_start_with_xavier():
    torch.manual_seed(0)
    neck = FPN([64], 128, num_outs=1)
    neck.init_weights()
    weight = neck.fpn_convs[0].conv.weight
    bound = (6 / (128 * 9 + 128 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert not neck.fpn_convs[0].conv.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_outs": 2}, "at least 3"),
        ({"end_level": 1, "num_outs": 3}, "must be 2, as end_level is not the last"),
        ({"start_level": 3}, "start_level"),
        ({"end_level": 3}, "end_level"),
        ({"add_extra_convs": "on_neck"}, "add_extra_convs"),
    ],
)
def test_pyramids_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
