"""The CUDA source of multi-level RoIAlign, emulated on the host, against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.errors import BackendError, UsageError
from deploykit.plugins_trt import kernel_chain
from deploykit.plugins_trt.roi_align_kernels import RoIAlignParameters, level_bound
from deploykit.plugins_trt.roi_align_reference import multilevel_roi_align, roi_levels

SCALES = (0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125)
# (output size, sampling ratio, levels, aligned, element type)
CONFIGURATIONS = [
    ((7, 7), 0, 4, True, "float32"),
    ((7, 7), 2, 4, False, "float32"),
    ((3, 5), 0, 1, False, "float32"),
    ((2, 2), 3, 2, True, "float32"),
    ((7, 7), 0, 5, True, "float16"),
    ((1, 4), 1, 6, True, "float16"),
]
SCENES, REGIONS = 13, 15  # of a configuration; 1,170 regions in all


def random_regions(rng, images, count, extent):
    """Regions of all sizes, also beyond the image, inverted, without area or not finite."""
    sides = np.exp(rng.uniform(0, np.log(2 * extent), (count, 2)))
    corner = rng.uniform(-0.3 * extent, extent, (count, 2))
    image = rng.integers(0, images, (count, 1))
    regions = np.concatenate([image, corner, corner + sides], axis=1)
    # On a grid that float32 holds exactly: else the number of adaptive samples is a matter of luck.
    regions = np.round(regions * 8) / 8
    oddities = rng.random(count)
    regions[oddities < 0.1] = regions[oddities < 0.1][:, [0, 3, 2, 1, 4]]
    flat = (oddities > 0.1) & (oddities < 0.2)
    regions[flat, 4] = regions[flat, 2]
    broken = (oddities > 0.2) & (oddities < 0.25)
    regions[broken, rng.integers(1, 5)] = rng.choice([np.nan, np.inf, -np.inf])
    return regions.astype(np.float32)


def random_features(rng, images, channels, side, levels, dtype):
    sizes = [(max(side >> level, 1), max((side + 5) >> level, 1)) for level in range(levels)]
    return [rng.normal(size=(images, channels, *size)).astype(dtype) for size in sizes]


def run(device, features, rois, parameters, channels_per_block=64):
    return kernel_chain.multilevel_roi_align(
        device,
        [device.upload(feature) for feature in features],
        device.upload(rois),
        parameters,
        channels_per_block,
    )


def reference(features, rois, parameters):
    return multilevel_roi_align(
        [feature.astype(np.float32) for feature in features],
        rois,
        parameters.output_size,
        parameters.sampling_ratio,
        parameters.spatial_scales,
        parameters.finest_scale,
        parameters.aligned,
    )


def decided(rois, features, parameters):
    """Which regions have no sample within rounding of where the map ends: -1 or the side."""
    levels = roi_levels(rois, len(features), parameters.finest_scale)
    decided = np.ones(len(rois), bool)
    for row, (roi, level) in enumerate(zip(rois.astype(np.float64), levels, strict=True)):
        for axis, side in ((0, features[level].shape[3]), (1, features[level].shape[2])):
            count = parameters.output_size[1 - axis]
            start = roi[1 + axis] * parameters.spatial_scales[level] - 0.5 * parameters.aligned
            length = (roi[3 + axis] - roi[1 + axis]) * parameters.spatial_scales[level]
            size = max(length, 0.0 if parameters.aligned else 1.0) / count
            if not np.isfinite([start, size]).all():
                continue
            samples = max(parameters.sampling_ratio or int(np.ceil(size)), 1)
            places = start + (np.arange(count * samples) + 0.5) * size / samples
            decided[row] &= min(abs(places + 1).min(), abs(places - side).min()) > 1e-4
    return decided


def assert_agrees(found, expected):
    half = found.dtype == np.float16
    np.testing.assert_allclose(
        found.astype(np.float32), expected, rtol=1e-3 if half else 2e-5, atol=1e-3 if half else 2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("output_size", "ratio", "levels", "aligned", "dtype"), CONFIGURATIONS)
def test_random_regions(emulated, output_size, ratio, levels, aligned, dtype):
    rng = np.random.default_rng(levels)
    parameters = RoIAlignParameters(output_size, ratio, SCALES[:levels], 16, aligned)
    compared = 0
    for number in range(SCENES):
        features = random_features(rng, 2, 2, int(rng.integers(5, 40)), levels, dtype)
        rois = random_regions(rng, 2, REGIONS, 4 * features[0].shape[3])
        with np.errstate(invalid="ignore"):
            expected = reference(features, rois, parameters)
            chosen = decided(rois, features, parameters)
        assert_agrees(run(emulated(number), features, rois, parameters)[chosen], expected[chosen])
        compared += chosen.sum()
    assert compared > 0.9 * SCENES * REGIONS


@pytest.mark.parametrize("channels_per_block", [16, 64])
def test_channels_that_do_not_fill_a_block(emulated, channels_per_block):
    rng = np.random.default_rng(0)
    parameters = RoIAlignParameters((7, 7), 2, SCALES[:2], 16, True)
    features = random_features(rng, 2, 70, 16, 2, "float32")
    rois = random_regions(rng, 2, 3, 64)
    found = run(emulated(1), features, rois, parameters, channels_per_block)
    assert_agrees(found, reference(features, rois, parameters))


@pytest.mark.parametrize("sides", [(209, 211), (211, 1), (20, 240)])
def test_bins_too_wide_for_shared_memory_give_the_same(emulated, sides):
    """Bins of 30 cells and less are taken from tables, wider ones sample by sample."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(1, 2, 250, 260)).astype(np.float32)]
    parameters = RoIAlignParameters((7, 7), 0, (1.0,), 16, True)
    rois = np.float32([[0, 3.5, 4.25, 3.5 + sides[0], 4.25 + sides[1]]])
    assert_agrees(
        run(emulated(1), features, rois, parameters), reference(features, rois, parameters)
    )


@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_far_beyond_the_map_cost_nothing(emulated, ratio):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(1, 2, 8, 8)).astype(np.float32)]
    parameters = RoIAlignParameters((7, 7), ratio, (1.0,), 16, True)
    rois = np.float32(
        [
            [0, 0, 0, 1e9, 1e9],
            [0, -1e9, -1e9, 1e9, 1e9],
            [0, 1e9, 0, 2e9, 4],
            [0, -3e38, -3e38, 3e38, 3e38],
            [0, 1e30, 1e30, 2e30, 2e30],
            [0, 0, 0, 1e-40, 1e-40],
        ]
    )
    found = run(emulated(1), features, rois, parameters)
    assert np.isfinite(found).all()
    assert not found[2:5].any()


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, np.nan, np.inf])
def test_regions_of_no_image_give_zeros(emulated, index):
    features = [np.ones((2, 1, 8, 8), np.float32)]
    parameters = RoIAlignParameters((2, 2), 2, (1.0,), 16, True)
    found = run(
        emulated(1), features, np.float32([[index, 0, 0, 4, 4], [1, 0, 0, 4, 4]]), parameters
    )
    assert not found[0].any()
    np.testing.assert_allclose(found[1], 1, rtol=1e-6)


def test_no_regions(emulated):
    features = [np.ones((2, 1, 8, 8), np.float32)]
    parameters = RoIAlignParameters((2, 2), 2, (1.0,), 16, True)
    assert run(emulated(), features, np.zeros((0, 5), np.float32), parameters).shape == (0, 1, 2, 2)


def test_levels_at_and_next_to_the_bounds(emulated):
    """Each level holds its own number, so the crop says which level was taken."""
    features = [np.full((1, 1, 4, 4), level, np.float32) for level in range(4)]
    parameters = RoIAlignParameters((1, 1), 1, (1e-6,) * 4, 56, True)
    sides = np.float32([56, 112, 224, 448])
    sides = np.concatenate(
        [sides, np.nextafter(sides, np.float32(0)), sides * np.float32(1 - 1e-5)]
    )
    rois = np.zeros((len(sides), 5), np.float32)
    rois[:, 3] = rois[:, 4] = sides
    found = run(emulated(1), features, rois, parameters)[:, 0, 0, 0]
    np.testing.assert_array_equal(found, roi_levels(rois, 4, 56))


def test_bounds_are_where_the_logarithm_reaches_the_level():
    for level in range(1, 6):
        bound = np.float32(level_bound(level))
        assert np.floor(np.log2(bound)) == level
        assert np.floor(np.log2(np.nextafter(bound, np.float32(0)))) == level - 1


def test_the_order_in_which_threads_run_does_not_matter(emulated):
    rng = np.random.default_rng(3)
    features = random_features(rng, 2, 20, 20, 2, "float32")
    parameters = RoIAlignParameters((7, 7), 0, SCALES[:2], 16, True)
    rois = random_regions(rng, 2, 6, 80)
    results = [
        run(emulated(seed, fill), features, rois, parameters)
        for seed in (0, 1)
        for fill in (0, 0xFF)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_what_the_kernel_does_not_do_is_refused(emulated):
    with pytest.raises(UsageError, match="got 7 levels, expected 1 to 6"):
        RoIAlignParameters((7, 7), 0, (1.0,) * 7, 56, True)
    features = [np.ones((1, 1, 4, 4))]
    with pytest.raises(BackendError, match="features must be float32 or float16"):
        run(
            emulated(),
            features,
            np.zeros((1, 5), np.float32),
            RoIAlignParameters((1, 1), 1, (1.0,), 56, True),
        )
