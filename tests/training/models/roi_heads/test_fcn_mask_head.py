from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.errors import DatasetError
from deploykit.training.models.roi_heads.fcn_mask_head import FCNMaskHead
from deploykit.training.models.roi_heads.mask_targets import mask_targets
from deploykit.training.models.roi_heads.roi_sampling import RoITrainConfig, SampledRoIs
from deploykit.training.structures import Targets

CONFIG = RoITrainConfig(
    {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5},
        "sampler": {"type": "PseudoSampler"},
        "mask_size": 8,
    }
)


def objects(*masks):
    count = len(masks)
    bitmaps = torch.from_numpy(np.array(masks, np.uint8).reshape(count, 32, 48))
    return Targets(torch.zeros(count, 4), torch.arange(count), masks=bitmaps)


def half_planes():
    """Masks of 48 x 32 pixels: left of column 20, and above row 12."""
    left, top = np.zeros((32, 48)), np.zeros((32, 48))
    left[:, :20] = 1
    top[:12] = 1
    return left, top


def test_targets_are_the_mask_within_the_region():
    truth = [objects(*half_planes()), objects(half_planes()[1])]
    rois = torch.tensor([[0.0, 16, 0, 24, 8], [0, 16, 8, 24, 16], [1, 0, 4, 32, 20]])
    found = mask_targets(rois, torch.tensor([0, 1, 0]), truth, (8, 8))
    expected = torch.zeros(3, 8, 8)
    expected[0, :, :4] = 1
    expected[1, :4] = 1
    expected[2, :4] = 1
    assert torch.equal(found, expected)


def test_soft_targets_are_covered_fractions():
    rois = torch.tensor([[0.0, 15, 0, 23, 8]])
    hard = mask_targets(rois, torch.tensor([0]), [objects(half_planes()[0])], (2, 2))
    soft = mask_targets(rois, torch.tensor([0]), [objects(half_planes()[0])], (2, 2), soft=True)
    assert hard.tolist() == [[[1, 0], [1, 0]]]
    np.testing.assert_allclose(soft[0], [[1, 0.25], [1, 0.25]], atol=0.01)


def test_regions_are_clipped_to_the_masks():
    rois = torch.tensor([[0.0, 40, -5, 90, 70]])
    clipped = torch.tensor([[0.0, 40, 0, 48, 32]])
    truth = [objects(half_planes()[1])]
    index = torch.tensor([0])
    targets = mask_targets(rois, index, truth, (8, 8))
    assert torch.equal(targets, mask_targets(clipped, index, truth, (8, 8)))
    assert targets[0, :3].all()
    assert not targets[0, 3:].any()


def test_masks_must_be_loaded():
    truth = [Targets(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))]
    with pytest.raises(DatasetError, match="with_mask=True"):
        mask_targets(torch.zeros(1, 5), torch.tensor([0]), truth, (8, 8))


@pytest.mark.parametrize(
    ("upsample", "size"),
    [
        ({"type": "deconv", "scale_factor": 2}, 8),
        ({"type": "nearest", "scale_factor": 3}, 12),
        ({"type": "bilinear", "scale_factor": 2}, 8),
        ({"type": None}, 4),
    ],
)
def test_upsampling(upsample, size):
    head = FCNMaskHead(
        num_convs=1, in_channels=3, conv_out_channels=5, num_classes=2, upsample_cfg=upsample
    )
    head.init_weights()
    assert head(torch.randn(6, 3, 4, 4)).shape == (6, 2, size, size)
    assert head(torch.randn(0, 3, 4, 4)).shape == (0, 2, size, size)
    assert not head.conv_logits.bias.any()


def test_the_mask_of_the_class():
    logits = torch.randn(3, 4, 2, 2)
    own = FCNMaskHead(in_channels=2, num_classes=4).of_class(logits, torch.tensor([2, -1, 0]))
    assert torch.equal(own, torch.stack((logits[0, 2], logits[1, 0], logits[2, 0])))
    agnostic = FCNMaskHead(in_channels=2, num_classes=4, class_agnostic=True)
    assert torch.equal(agnostic.of_class(logits[:, :1], torch.tensor([2, -1, 0])), logits[:, 0])


def sampled(positive):
    count = len(positive)
    rois = torch.tensor([[0.0, 16, 0, 24, 8]]).repeat(count, 1)
    zeros = torch.zeros(count, dtype=torch.int64)
    labels = torch.ones(count, dtype=torch.int64)
    return SampledRoIs(
        rois, zeros, zeros, torch.tensor(positive, dtype=torch.bool), zeros, rois[:, 1:], labels
    )


def test_loss_is_the_binary_cross_entropy_of_the_class():
    head = FCNMaskHead(in_channels=2, num_classes=3)
    logits = torch.randn(2, 3, 8, 8)
    truth = [objects(half_planes()[0])]
    loss = head.loss(logits, sampled([True, False, True]), truth, CONFIG)["loss_mask"]
    target = torch.zeros(8, 8)
    target[:, :4] = 1
    own = logits[:, 1].sigmoid()
    expected = -(target * own.log() + (1 - target) * (1 - own).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_without_positives_is_zero_and_has_gradients():
    head = FCNMaskHead(num_convs=1, in_channels=2, conv_out_channels=4, num_classes=3)
    logits = head(torch.randn(0, 2, 4, 4))
    loss = head.loss(logits, sampled([False, False]), [objects(half_planes()[0])], CONFIG)
    loss["loss_mask"].backward()
    assert loss["loss_mask"] == 0
    assert all(parameter.grad is not None for parameter in head.parameters())
