"""Proposals of every level as rows of one suppression, against suppression by level labels."""

from __future__ import annotations

import pytest
import torch

from deploykit.plugins_trt import nms_reference
from deploykit.training.models.heads.rpn_head import RPNHead


def head_of(**test_cfg) -> RPNHead:
    torch.manual_seed(0)
    head = RPNHead(
        4,
        feat_channels=4,
        anchor_generator={
            "type": "AnchorGenerator",
            "scales": [8],
            "ratios": [0.5, 1.0, 2.0],
            "strides": [4, 8, 16],
        },
        test_cfg={"nms": {"type": "nms", "iou_threshold": 0.7}, **test_cfg},
    ).eval()
    # Scores that do not saturate, or most would be equal.
    for layer, std in ((head.rpn_conv, 0.3), (head.rpn_cls, 0.1), (head.rpn_reg, 0.3)):
        torch.nn.init.normal_(layer.weight, std=std)
    return head


@torch.no_grad()
@pytest.mark.parametrize(
    "test_cfg",
    [
        {"nms_pre": 100, "max_per_img": 60},
        {"nms_pre": 100, "max_per_img": 400},  # more than there are
        {"nms_pre": 20, "max_per_img": 30, "min_bbox_size": 12},
        {"nms_pre": -1, "max_per_img": 50},
    ],
)
def test_levels_do_not_suppress_each_other(test_cfg):
    head = head_of(**test_cfg)
    feats = [torch.randn(2, 4, 64 // stride, 96 // stride) for stride in (4, 8, 16)]
    outputs, limits = head(feats), torch.tensor([[[96.0, 64, 96, 64]]])
    boxes, scores, labels, counts = head.predict_by_feat(outputs, limits)

    config = head.test_config
    levels = head._candidates(outputs, config)
    all_boxes, all_scores = head._decode(levels, limits)
    groups = torch.cat(
        [torch.full_like(level.labels, index) for index, level in enumerate(levels)], dim=1
    )
    large = (all_boxes[..., 2:] - all_boxes[..., :2] > config.min_bbox_size).all(dim=-1)
    expected = nms_reference.batched_nms(
        all_boxes.numpy(),
        torch.where(large, all_scores, 0.0).numpy(),
        groups.numpy(),
        0.7,
        config.max_per_img,
    )
    for image, indices in enumerate(torch.from_numpy(expected)):
        indices = indices[indices >= 0]
        count = len(indices)
        assert 0 < count == counts[image]
        assert torch.equal(scores[image, :count], all_scores[image, indices])
        found = torch.cat((scores[image, :count, None], boxes[image, :count]), dim=1)
        wanted = torch.cat((all_scores[image, indices, None], all_boxes[image, indices]), dim=1)
        assert sorted(found.tolist()) == sorted(wanted.tolist())  # equal scores in any order
        assert (boxes[image, count:] == 0).all() and (scores[image, count:] == 0).all()
        assert labels[image].tolist() == [0] * count + [-1] * (config.max_per_img - count)
    assert boxes.shape == (2, config.max_per_img, 4)
