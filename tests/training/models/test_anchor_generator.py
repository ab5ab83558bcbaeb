from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models.priors.anchor_generator import AnchorGenerator


def slow_anchors(shapes, stride, height, width, centre=(0.0, 0.0)):
    """Anchors (width, height) around the corner of every cell, row by row."""
    rows = []
    for row, column in product(range(height), range(width)):
        x, y = column * stride[0] + centre[0], row * stride[1] + centre[1]
        rows += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for w, h in shapes]
    return torch.tensor(rows)


def test_anchors_of_retinanet_are_those_of_its_paper():
    """Areas 32 ** 2 to 512 ** 2, three per octave, aspect ratios 1:2, 1:1 and 2:1."""
    generator = AnchorGenerator(
        strides=[8, 16, 32, 64, 128],
        ratios=[0.5, 1.0, 2.0],
        octave_base_scale=4,
        scales_per_octave=3,
    )
    assert generator.num_levels == 5
    assert generator.num_base_priors == [9] * 5
    for level, size in enumerate((32, 64, 128, 256, 512)):
        anchors = generator.base_anchors[level].double()
        areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
        octaves = torch.tensor([size * 2 ** (i / 3) for i in range(3)], dtype=torch.float64)
        torch.testing.assert_close(areas.view(3, 3), (octaves**2).expand(3, 3), rtol=1e-6, atol=0)
        ratios = (anchors[:, 3] - anchors[:, 1]) / (anchors[:, 2] - anchors[:, 0])
        torch.testing.assert_close(
            ratios, torch.tensor([0.5] * 3 + [1.0] * 3 + [2.0] * 3, dtype=torch.float64)
        )


def test_grids_equal_the_slow_definition():
    generator = AnchorGenerator(
        strides=[(4, 8), 16], ratios=[0.25, 1.0], scales=[2, 3], base_sizes=[5, 20]
    )
    sizes = [(3, 5), (2, 1)]
    expected = []
    for stride, base, size in zip(((4, 8), (16, 16)), (5, 20), sizes, strict=True):
        shapes = [
            (base * scale / math.sqrt(ratio), base * scale * math.sqrt(ratio))
            for ratio in (0.25, 1.0)
            for scale in (2, 3)
        ]
        expected.append(slow_anchors(shapes, stride, *size))
    torch.testing.assert_close(generator.grid_priors(sizes), torch.cat(expected))
    torch.testing.assert_close(generator.level_priors(1, sizes[1]), expected[1])


def test_scale_minor_order_and_centres():
    options = {"strides": [8], "ratios": [1.0, 4.0], "scales": [1, 2]}
    shapes = [(8 * s / r, 8 * s * r) for s in (1, 2) for r in (1, 2)]
    minor = AnchorGenerator(**options, scale_major=False, center_offset=0.5)
    torch.testing.assert_close(
        minor.grid_priors([(2, 3)]), slow_anchors(shapes, (8, 8), 2, 3, (4.0, 4.0))
    )
    placed = AnchorGenerator(**options, scale_major=False, centers=[(1.0, 3.0)])
    torch.testing.assert_close(
        placed.grid_priors([(2, 3)]), slow_anchors(shapes, (8, 8), 2, 3, (1.0, 3.0))
    )


def test_anchors_do_not_depend_on_the_device_they_are_configured_on():
    with torch.device("meta"):
        generator = AnchorGenerator(strides=[8], ratios=[1.0], scales=[1])
    assert generator.grid_priors([(1, 2)], "cpu").tolist() == [[-4, -4, 4, 4], [4, -4, 12, 4]]


def test_anchors_on_padding_are_invalid():
    generator = AnchorGenerator(strides=[(8, 4), 16], ratios=[1.0, 2.0], scales=[1])
    sizes = [(8, 5), (2, 3)]
    image_sizes = torch.tensor([[32, 40], [9, 17], [16, 16]], dtype=torch.int32)
    flags = generator.valid_flags(sizes, image_sizes)
    expected = []
    for height, width in image_sizes.tolist():
        row = []
        for (stride_x, stride_y), (rows, columns) in zip(((8, 4), (16, 16)), sizes, strict=True):
            for y, x in product(range(rows), range(columns)):
                # A cell counts if it starts on the image.
                row += [y * stride_y < height and x * stride_x < width] * 2
        expected.append(row)
    assert flags.tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": None}, "either scales or octave_base_scale"),
        ({"octave_base_scale": 4, "scales_per_octave": 3}, "either scales or octave_base_scale"),
        ({"scales": []}, "scales must be positive"),
        ({"ratios": [0.0]}, "ratios must be positive"),
        ({"base_sizes": [1, 2]}, "base_sizes and strides"),
        ({"centers": [(0, 0), (1, 1)]}, "centers and strides"),
        ({"center_offset": 2.0}, "center_offset"),
        ({"center_offset": 0.5, "centers": [(0, 0)]}, "center_offset"),
        ({"strides": [(8, 8, 8)]}, "stride must be"),
        ({"strides": [0]}, "stride must be"),
    ],
)
def test_mistakes_are_refused(change, message):
    options = {"strides": [8], "ratios": [1.0], "scales": [1], **change}
    with pytest.raises(ConfigError, match=message):
        AnchorGenerator(**options)


def test_number_of_levels_must_be_that_of_the_features():
    generator = AnchorGenerator(strides=[8, 16], ratios=[1.0], scales=[1])
    with pytest.raises(ConfigError, match=r"2 strides.*3 feature maps"):
        generator.grid_priors([(2, 2)] * 3)
