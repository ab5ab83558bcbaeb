from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from deploykit.errors import ConfigError
from deploykit.training.models.coders.delta_xywh import DeltaXYWHBBoxCoder

coordinate = st.floats(-100, 100, width=32)
side = st.floats(1, 80, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
MEANS, STDS = (0.1, -0.2, 0.0, 0.3), (0.1, 0.1, 0.2, 0.2)


@given(pairs=st.lists(st.tuples(box, box), min_size=1, max_size=5), scaled=st.booleans())
@settings(max_examples=80, deadline=None)
def test_decoding_inverts_encoding(pairs, scaled):
    coder = DeltaXYWHBBoxCoder(MEANS, STDS) if scaled else DeltaXYWHBBoxCoder()
    anchors = torch.tensor([a for a, _ in pairs])
    boxes = torch.tensor([b for _, b in pairs])
    ratio = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    deltas = coder.encode(anchors, boxes)
    reached = ((ratio > 0.017) & (ratio < 60)).all(dim=1)  # the coder's own bound is 62.5
    decoded = coder.decode(anchors, deltas)
    torch.testing.assert_close(decoded[reached], boxes[reached], atol=5e-3, rtol=1e-4)


def test_torchvision_encodes_and_decodes_alike():
    torch.manual_seed(0)
    corners = torch.rand(50, 2) * 100
    anchors = torch.cat((corners, corners + torch.rand(50, 2) * 60 + 1), dim=1)
    boxes = anchors.roll(1, 0)
    # Its weights are the inverse of the deviations; it bounds growing, but not shrinking.
    oracle = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    coder = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    deltas = coder.encode(anchors, boxes)
    torch.testing.assert_close(deltas, oracle.encode_single(boxes, anchors))
    deltas[:, 2:] = deltas[:, 2:].clamp(min=-6) * 3
    torch.testing.assert_close(
        coder.decode(anchors, deltas), oracle.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3
    )


def test_deltas_by_hand():
    anchor = torch.tensor([[10.0, 20, 30, 60]])  # 20 x 40 around (20, 40)
    target = torch.tensor([[25.0, 30, 35, 110]])  # 10 x 80 around (30, 70)
    coder = DeltaXYWHBBoxCoder()
    expected = [0.5, 0.75, math.log(0.5), math.log(2.0)]
    assert coder.encode(anchor, target)[0].tolist() == pytest.approx(expected)
    assert coder.decode(anchor, torch.tensor([expected]))[0].tolist() == pytest.approx(
        target[0].tolist()
    )


def test_scaling_is_bounded_by_the_ratio():
    anchor = torch.tensor([[0.0, 0, 100, 100]])
    deltas = torch.tensor([[0.0, 0, 9, -9]])
    x1, y1, x2, y2 = DeltaXYWHBBoxCoder().decode(anchor, deltas)[0].tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((6250, 1.6), rel=1e-4)
    x1, y1, x2, y2 = DeltaXYWHBBoxCoder().decode(anchor, deltas, wh_ratio_clip=0.5)[0].tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((200, 50), rel=1e-4)


def test_movement_is_bounded_where_that_is_asked_for():
    anchor = torch.tensor([[0.0, 0, 100, 100]])
    deltas = torch.tensor([[1.0, -0.1, -9, 0]])
    coder = DeltaXYWHBBoxCoder(add_ctr_clamp=True, ctr_clamp=32)
    x1, y1, x2, y2 = coder.decode(anchor, deltas)[0].tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((82, 40))
    assert x2 - x1 == pytest.approx(100 * math.exp(-9), rel=1e-2)  # shrinking is not bounded


def test_clipping_to_each_image():
    anchors = torch.tensor([[-10.0, -10, 50, 50], [20, 20, 90, 90]]).expand(2, 2, 4)
    limits = torch.tensor([[[40.0, 30, 40, 30]], [[80, 60, 80, 60]]])
    deltas = torch.zeros(2, 2, 4)
    clipped = DeltaXYWHBBoxCoder().decode(anchors, deltas, limits)
    assert clipped.tolist() == [
        [[0, 0, 40, 30], [20, 20, 40, 30]],
        [[0, 0, 50, 50], [20, 20, 80, 60]],
    ]
    unclipped = DeltaXYWHBBoxCoder(clip_border=False).decode(anchors, deltas, limits)
    assert torch.equal(unclipped, anchors)


def test_deltas_of_several_classes():
    coder = DeltaXYWHBBoxCoder(MEANS, STDS)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 20, 30]]])
    deltas = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    together = coder.decode(boxes[:, :, None], deltas)
    for label in range(3):
        torch.testing.assert_close(together[:, :, label], coder.decode(boxes, deltas[:, :, label]))


@pytest.mark.parametrize(
    "options", [{"target_means": [0.0] * 3}, {"target_stds": [1.0, 1, 1, 0]}, {"target_stds": [1]}]
)
def test_wrong_means_and_deviations_are_refused(options):
    with pytest.raises(ConfigError, match="four numbers"):
        DeltaXYWHBBoxCoder(**options)
