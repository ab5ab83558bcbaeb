from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from deploykit.plugins_trt import roi_align_reference
from deploykit.training.ops.multilevel_roi_align import multilevel_roi_align, roi_levels

STRIDES = (4, 8, 16, 32)
SCALES = [1 / stride for stride in STRIDES]


def pyramid(batch=2, channels=3, height=96, width=128, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, height // stride, width // stride, generator=generator).to(
            dtype
        )
        for stride in STRIDES
    ]


def regions(count, batch=2, seed=0, largest=160.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 120 - 20
    size = torch.rand(count, 2, generator=generator) ** 2 * largest
    image = torch.randint(batch, (count, 1), generator=generator).float()
    return torch.cat((image, corner, corner + size), dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_torchvision_on_each_level(ratio, aligned):
    features, rois = pyramid(), regions(200)
    finest = 14  # so that all levels occur
    crops = multilevel_roi_align(features, rois, [7, 5], ratio, SCALES, finest, aligned)
    side = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    edges = [(0, 28), (28, 56), (56, 112), (112, 1e9)]
    for feature, scale, (low, high) in zip(features, SCALES, edges, strict=True):
        own = (side >= low) & (side < high)
        assert own.sum() > 5
        expected = roi_align(feature, rois[own], (7, 5), scale, ratio, aligned)
        torch.testing.assert_close(crops[own], expected, atol=1e-5, rtol=1e-5)


# Corners on a grid make empty, inverted and outside regions frequent, and edges coincide.
coordinate = st.sampled_from(
    [-40.0, -4.0, 0.0, 2.5, 8.0, 17.25, 32.0, 64.0, 200.0, float("nan"), float("inf")]
)


@given(
    boxes=st.lists(st.tuples(st.integers(0, 1), *[coordinate] * 4), max_size=4),
    ratio=st.sampled_from([0, 1, 2]),
    aligned=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_reference(boxes, ratio, aligned):
    features = pyramid(channels=2, height=32, width=64)
    rois = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    crops = multilevel_roi_align(features, rois, [2, 3], ratio, SCALES, 8, aligned)
    expected = roi_align_reference.multilevel_roi_align(
        [feature.numpy() for feature in features], rois.numpy(), (2, 3), ratio, SCALES, 8, aligned
    )
    np.testing.assert_allclose(crops.numpy(), expected, atol=2e-5)


def test_levels_change_at_powers_of_two():
    sides = torch.tensor([0.0, 1, 55.9, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 1e5, 3e38])
    rois = torch.zeros(len(sides), 5)
    rois[:, 3:] = sides[:, None]
    levels = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert roi_levels(rois, 4, 56).tolist() == levels
    assert roi_align_reference.roi_levels(rois[:-1].numpy(), 4, 56).tolist() == levels[:-1]


def test_sizes_that_are_not_numbers_belong_to_the_first_level():
    rois = torch.tensor([[0.0, 5, 5, 2, 9], [0, float("nan"), 0, 9, 9]])
    assert roi_levels(rois, 4, 56).tolist() == [0, 0]
    assert roi_align_reference.roi_levels(rois.numpy(), 4, 56).tolist() == [0, 0]


def test_no_regions():
    crops = multilevel_roi_align(pyramid(), torch.zeros(0, 5), [7, 7], 0, SCALES, 56, True)
    assert crops.shape == (0, 3, 7, 7)


def test_half_precision_is_that_of_the_features():
    features, rois = pyramid(dtype=torch.float16), regions(20)
    rois[0, 1:] = torch.tensor([2100.3, 100.2, 2160.7, 180.9])  # float16 has steps of 2 there
    crops = multilevel_roi_align(features, rois, [7, 7], 0, SCALES, 14, True)
    exact = multilevel_roi_align([f.float() for f in features], rois, [7, 7], 0, SCALES, 14, True)
    assert crops.dtype == torch.float16
    torch.testing.assert_close(crops, exact.half())


def test_gradients_are_those_of_torchvision():
    features = [feature.requires_grad_() for feature in pyramid()]
    rois, weights = regions(60), torch.randn(60, 3, 7, 7)
    crops = multilevel_roi_align(features, rois, [7, 7], 2, SCALES, 14, True)
    (crops * weights).sum().backward()
    levels = roi_levels(rois, 4, 14)
    for level, feature in enumerate(features):
        own = levels == level
        alone = feature.detach().clone().requires_grad_()
        expected = roi_align(alone, rois[own], (7, 7), SCALES[level], 2, True)
        (expected * weights[own]).sum().backward()
        torch.testing.assert_close(feature.grad, alone.grad, atol=1e-5, rtol=1e-5)


def test_levels_without_regions_get_zero_gradients():
    features = [feature.requires_grad_() for feature in pyramid()]
    rois = torch.tensor([[0.0, 4, 4, 20, 20]])
    multilevel_roi_align(features, rois, [7, 7], 0, SCALES, 56, True).sum().backward()
    assert features[0].grad.abs().sum() > 0
    assert not any(feature.grad.any() for feature in features[1:])


def test_operator_contract():
    features, rois = pyramid(height=32, width=32), regions(5)
    arguments = (features, rois, [3, 3], 2, SCALES, 14, True)
    torch.library.opcheck(torch.ops.deploykit.multilevel_roi_align.default, arguments)
