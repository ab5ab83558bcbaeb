from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.models.box_overlaps import pairwise_iou
from deploykit.training.models.coders.distance_point import DistancePointBBoxCoder
from deploykit.training.models.priors.point_generator import MlvlPointGenerator

number = st.floats(-100, 100, width=32)


@pytest.mark.parametrize(("offset", "first"), [(0, [0.0, 0.0]), (0.5, [8.0, 8.0])])
def test_points_run_row_by_row(offset, first):
    points = MlvlPointGenerator([8, 16], offset=offset).level_points(1, (2, 3))
    steps = torch.tensor([[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]])
    torch.testing.assert_close(points, torch.tensor(first) + steps)


def test_priors_of_all_levels_carry_their_strides():
    generator = MlvlPointGenerator([(8, 8), 16], offset=0)
    priors = generator.grid_priors([(4, 6), (2, 3)])
    assert generator.num_levels == 2
    assert priors.shape == (30, 3)
    assert priors[:24, 2].unique().tolist() == [8]
    assert priors[24:, 2].unique().tolist() == [16]
    torch.testing.assert_close(priors[24:, :2], generator.level_points(1, (2, 3)))


def test_points_on_the_padding_of_a_batch_are_not_valid():
    generator = MlvlPointGenerator([8, 16], offset=0)
    flags = generator.valid_flags([(4, 6), (2, 3)], torch.tensor([[32, 48], [17, 33], [16, 32]]))
    assert flags.shape == (3, 30)
    assert flags[0].all()
    # 17 pixels reach into the third row of stride 8 and the second of stride 16.
    assert flags[1, :24].view(4, 6).sum(1).tolist() == [5, 5, 5, 0]
    assert flags[1, 24:].view(2, 3).sum(1).tolist() == [3, 3]
    assert flags[2, :24].view(4, 6).sum(1).tolist() == [4, 4, 0, 0]
    assert flags[2, 24:].view(2, 3).sum(1).tolist() == [2, 0]


def test_strides_that_differ_between_axes_are_refused():
    with pytest.raises(ConfigError, match="stride"):
        MlvlPointGenerator([(8, 16)])


@given(
    st.tuples(number, number),
    st.tuples(number, number, number, number),
)
@settings(max_examples=60, deadline=None)
def test_decoding_what_was_encoded_gives_the_box(point, box):
    coder = DistancePointBBoxCoder()
    points, boxes = torch.tensor([point]), torch.tensor([box])
    torch.testing.assert_close(
        coder.decode(points, coder.encode(points, boxes)), boxes, atol=1e-4, rtol=1e-5
    )


def test_decoding_clips_to_the_limits():
    points, distances = torch.tensor([[5.0, 5.0]]), torch.tensor([[9.0, 2.0, 30.0, 1.0]])
    limits = torch.tensor([20.0, 10.0, 20.0, 10.0])
    assert DistancePointBBoxCoder().decode(points, distances, limits).tolist() == [[0, 3, 20, 6]]
    free = DistancePointBBoxCoder(clip_border=False).decode(points, distances, limits)
    assert free.tolist() == [[-4, 3, 35, 6]]


def test_encoding_clips_to_a_largest_distance():
    points, boxes = torch.tensor([[5.0, 5.0]]), torch.tensor([[-10.0, 8.0, 7.0, 99.0]])
    encoded = DistancePointBBoxCoder().encode(points, boxes, max_dis=10.0, eps=0.5)
    assert encoded.tolist() == [[9.5, 0, 2, 9.5]]


def test_pairwise_iou():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 5, 5]]])
    others = torch.tensor([[[0.0, 0, 10, 5], [5, 5, 15, 15], [20, 20, 30, 30]]])
    expected = torch.tensor([[[0.5, 25 / 175, 0], [0, 0, 0]]])
    torch.testing.assert_close(pairwise_iou(boxes, others), expected)
