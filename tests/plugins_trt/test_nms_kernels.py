"""The CUDA source of batched NMS, emulated on the host, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchvision.ops.boxes import _batched_nms_vanilla as batched_nms_of_torchvision

from deploykit.errors import BackendError, UsageError
from deploykit.plugins_trt import kernel_chain, nms_kernels
from deploykit.plugins_trt.nms_reference import batched_nms

# (threshold, results, window, element type): each is another set of compiled kernels.
CONFIGURATIONS = [
    (0.5, 20, 256, "float32"),
    (0.65, 3, 256, "float32"),
    (0.3, 70, 512, "float32"),
    (0.5, 300, None, "float32"),
    (0.0, 20, 256, "float16"),
    (0.7, 100, 512, "float16"),
]
SCENES_PER_CONFIGURATION = 170  # 1,020 in all
# Around the sizes of words, windows, chunks and tiles.
SIZES = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300]
LARGE_SIZES = [511, 513, 767, 769, 1025, 2047, 2048, 2049, 4100]


def random_scene(rng, images, candidates, dtype="float32"):
    """Boxes that overlap a lot, on a grid (equal IoUs) or off it, with ties and oddities."""
    crowd = rng.uniform(10, 300)
    corner = rng.uniform(0, crowd, (images, candidates, 2))
    sides = rng.uniform(0, rng.uniform(5, 80), (images, candidates, 2))
    boxes = np.concatenate([corner, corner + sides], axis=2)
    if rng.random() < 0.5:
        boxes = boxes.round()
    scores = rng.uniform(rng.choice([-0.5, 0, 0.4]), 1, (images, candidates))
    if rng.random() < 0.5:
        scores = scores.round(1)
    labels = rng.integers(0, rng.choice([1, 2, 80]), (images, candidates))
    oddities = rng.random((images, candidates))
    share = rng.choice([0, 0.1])
    boxes[oddities < share] = boxes[oddities < share][:, [2, 1, 0, 3]]  # inverted
    boxes[oddities < share / 2, rng.integers(4)] = rng.choice([np.nan, np.inf, -np.inf, 1e30, 0])
    scores[oddities < share / 3] = rng.choice([np.nan, np.inf, -np.inf, 0, 6e-8, -0.0])
    with np.errstate(over="ignore"):
        return boxes.astype(dtype), scores.astype(dtype), labels.astype(np.int64)


def run(device, boxes, scores, labels, threshold, max_out, window=None):
    arrays = [device.upload(array) for array in (boxes, scores, labels.astype(np.int32))]
    return kernel_chain.batched_nms(device, *arrays, threshold, max_out, window).astype(np.int64)


def brute_force(boxes, scores, labels, threshold, max_out):
    with np.errstate(invalid="ignore", over="ignore"):
        return batched_nms(
            boxes.astype(np.float32), scores.astype(np.float32), labels, threshold, max_out
        )


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "max_out", "window", "dtype"), CONFIGURATIONS)
def test_random_scenes(emulated, threshold, max_out, window, dtype):
    rng = np.random.default_rng(CONFIGURATIONS.index((threshold, max_out, window, dtype)))
    for number in range(SCENES_PER_CONFIGURATION):
        scene = random_scene(rng, rng.integers(1, 3), rng.choice(SIZES), dtype)
        found = run(emulated(seed=number), *scene, threshold, max_out, window)
        expected = brute_force(*scene, threshold, max_out)
        np.testing.assert_array_equal(found, expected, err_msg=f"scene {number}")


@pytest.mark.parametrize("candidates", LARGE_SIZES)
def test_around_the_edges_of_tiles_and_chunks(emulated, candidates):
    rng = np.random.default_rng(candidates)
    scene = random_scene(rng, 2, candidates)
    for window in (512, None):
        found = run(emulated(1), *scene, 0.5, 300, window)
        np.testing.assert_array_equal(found, brute_force(*scene, 0.5, 300))


def test_more_tiles_than_searches_that_run_at_once(emulated):
    rng = np.random.default_rng(0)
    scene = random_scene(rng, 1, 11 * nms_kernels.TILE - 5)
    np.testing.assert_array_equal(
        run(emulated(1), *scene, 0.5, 300, 256), brute_force(*scene, 0.5, 300)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidates", "max_out", "classes"), [(80_000, 300, 80), (10_000, 10_000, 1)]
)
def test_as_many_candidates_as_detectors_give(emulated, candidates, max_out, classes):
    """All classes of 1000 proposals; and all survivors of 10,000 boxes, as torchvision gives."""
    rng = np.random.default_rng(0)
    middle = rng.uniform(0, 1300, (candidates // 10, 2))[
        rng.integers(0, candidates // 10, candidates)
    ]
    middle += rng.normal(0, 8, (candidates, 2))
    half = rng.uniform(10, 80, (candidates, 2))
    boxes = np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)[None]
    scores = ((rng.permutation(candidates) + 1) / (candidates + 1)).astype(np.float32)[None]
    labels = rng.integers(0, classes, (1, candidates))
    found = run(emulated(1), boxes, scores, labels, 0.5, max_out)
    tensors = (torch.from_numpy(one[0]) for one in (boxes, scores, labels))
    expected = batched_nms_of_torchvision(*tensors, 0.5)[:max_out].numpy()
    np.testing.assert_array_equal(found[0, : len(expected)], expected)
    assert (found[0, len(expected) :] == -1).all()


@pytest.mark.parametrize("candidates", [100, 2048, 2049, 5 * 2048 + 7])
def test_the_sorted_order_is_complete(emulated, candidates):
    rng = np.random.default_rng(candidates)
    boxes = rng.uniform(0, 100, (2, candidates, 4)).astype(np.float32)
    scores = rng.uniform(-0.2, 1, (2, candidates)).astype(np.float32).round(3)
    labels = rng.integers(0, 9, (2, candidates)).astype(np.int32)
    device, sizes = emulated(1), nms_kernels.NmsSizes(2, candidates, 1024)
    tensors = {
        name: device.empty(shape, nms_kernels.SCRATCH_DTYPES[name])
        for name, shape in sizes.shapes.items()
    }
    for name, array in (("boxes", boxes), ("scores", scores), ("labels", labels)):
        tensors[name] = device.upload(array)
    device.launch(nms_kernels.sort_kernel("float32"), sizes.sort_launch(), tensors)
    device.launch(nms_kernels.gather_kernel("float32"), sizes.gather_launch(), tensors)
    for image in range(2):
        positive = np.flatnonzero(scores[image] > 0)
        order = positive[np.argsort(-scores[image][positive], kind="stable")]
        assert tensors["counts"][image] == len(order)
        np.testing.assert_array_equal(tensors["order"][image, : len(order)], order)
        best = order[: sizes.span]
        np.testing.assert_array_equal(
            tensors["sorted_boxes"][image, : len(best)], boxes[image, best]
        )
        np.testing.assert_array_equal(
            tensors["sorted_labels"][image, : len(best)], labels[image, best]
        )


@pytest.mark.parametrize("window", [256, 1536])
def test_many_survivors_in_a_crowd(emulated, window):
    rng = np.random.default_rng(1)
    corner, sides = rng.uniform(0, 300, (1, 2500, 2)), rng.uniform(10, 30, (1, 2500, 2))
    boxes = np.concatenate([corner, corner + sides], axis=2).astype(np.float32)
    scores = rng.uniform(0.01, 1, (1, 2500)).astype(np.float32)
    scene = boxes, scores, rng.integers(0, 2, (1, 2500))
    found = run(emulated(1), *scene, 0.3, 700, window)
    np.testing.assert_array_equal(found, brute_force(*scene, 0.3, 700))


def box_row(count, overlap):
    """Boxes of width 10, each of which overlaps the next one with this IoU."""
    step = 10 * (1 - overlap) / (1 + overlap)
    left = np.arange(count) * step
    return np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1).astype(np.float32)[None]


@pytest.mark.parametrize("count", [63, 64, 65, 200, 600, 700])
@pytest.mark.parametrize("window", [256, 1024])
def test_the_longest_chain_keeps_every_second_box(emulated, count, window):
    boxes, labels = box_row(count, 0.6), np.zeros((1, count), np.int64)
    scores = np.linspace(1, 0.1, count, dtype=np.float32)[None]
    found = run(emulated(2), boxes, scores, labels, 0.5, 400, window)
    kept = np.arange(0, count, 2)
    np.testing.assert_array_equal(found[0, : len(kept)], kept)
    assert (found[0, len(kept) :] == -1).all()


@pytest.mark.parametrize("count", [1, 64, 65, 1000])
def test_one_survivor_of_equal_boxes_per_label(emulated, count):
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, count, 1))
    scores = np.full((1, count), 0.5, np.float32)
    labels = np.arange(count)[None] % 3
    found = run(emulated(3), boxes, scores, labels, 0.5, 10, 256)
    expected = [*range(min(count, 3)), *[-1] * (10 - min(count, 3))]
    assert found[0].tolist() == expected


@pytest.mark.parametrize("candidates", [1, 64, 700])
@pytest.mark.parametrize("score", [0.0, -1.0, np.nan])
def test_nothing_to_keep(emulated, candidates, score):
    boxes = np.tile(np.float32([0, 0, 10, 10]), (2, candidates, 1))
    scores = np.full((2, candidates), score, np.float32)
    labels = np.zeros((2, candidates), np.int64)
    assert (run(emulated(1), boxes, scores, labels, 0.5, 8, 256) == -1).all()


def test_no_candidates(emulated):
    scene = np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.float32), np.zeros((2, 0), int)
    assert (run(emulated(), *scene, 0.5, 5) == -1).all()


def test_a_negative_threshold_suppresses_what_does_not_even_touch(emulated):
    scene = random_scene(np.random.default_rng(4), 2, 100)
    found = run(emulated(), *scene, -0.5, 20, 256)
    np.testing.assert_array_equal(found, brute_force(*scene, -0.5, 20))


def test_an_overlap_of_exactly_the_threshold_is_allowed(emulated):
    # 1/3 in float32, from a division, against 1/3 rounded to float32 and its neighbours.
    boxes = np.float32([[[0, 0, 10, 10], [5, 0, 15, 10]]])
    scores, labels = np.float32([[0.9, 0.8]]), np.zeros((1, 2), np.int64)
    third = np.float32(1) / np.float32(3)
    below = np.nextafter(third, np.float32(0))
    assert run(emulated(), boxes, scores, labels, third, 2)[0].tolist() == [0, 1]
    assert run(emulated(), boxes, scores, labels, below, 2)[0].tolist() == [0, -1]


def test_the_order_in_which_threads_run_does_not_matter(emulated):
    scene = random_scene(np.random.default_rng(7), 2, 900)
    results = [
        run(emulated(seed, fill), *scene, 0.5, 300, window)
        for seed, fill, window in itertools.product((0, 1, 2), (0, 0xFF), (256, 1024))
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("seed", range(8))
def test_no_input_makes_a_kernel_hang_or_write_elsewhere(emulated, seed):
    """While an engine is tuned, a kernel may run on memory of any content."""
    rng = np.random.default_rng(seed)
    device = emulated(1)
    sizes = nms_kernels.NmsSizes(2, int(rng.integers(1, 3000)), 512)
    shapes = sizes.shapes | {
        "boxes": (2, sizes.candidates, 4),
        "scores": (2, sizes.candidates),
        "labels": (2, sizes.candidates),
        "indices": (2, 20),
    }
    floats = {"boxes": "float32", "scores": "float32"}
    tensors = {}
    for name, shape in shapes.items():
        dtype = floats.get(name) or nms_kernels.SCRATCH_DTYPES.get(name, "int32")
        noise = rng.integers(0, 256, (*shape, 4), np.uint8)
        if name == "tile_counts" and seed % 2:
            noise[..., 1:] = 0  # else nearly all are huge or negative
        tensors[name] = device.upload(noise.view(dtype).reshape(shape))
    kernels = [
        (nms_kernels.gather_kernel("float32"), sizes.gather_launch()),
        (nms_kernels.mask_kernel(0.5), nms_kernels.mask_launch(2, sizes.span)),
        (nms_kernels.scan_kernel("float32", 0.5, 20, 512), sizes.scan_launch()),
    ]
    for kernel, launch in kernels:
        noise = {name: device.upload(tensor) for name, tensor in tensors.items()}
        if seed > 3 and "counts" in kernel.inputs:
            noise["counts"][...] = sizes.candidates
        device.launch(kernel, launch, noise)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="multiple of 256"):
        nms_kernels.scan_kernel("float32", 0.5, 10, 300)
    with pytest.raises(UsageError, match="up to 16384"):
        nms_kernels.scan_kernel("float32", 0.5, 10, 32768)
    for max_out in (1, 100, 300, 1000, 10_000, 100_000):
        window = nms_kernels.default_window(max_out)
        nms_kernels.check_window(window)
        assert window >= min(8 * max_out, nms_kernels.LARGEST_WINDOW)


def test_other_types_are_refused():
    with pytest.raises(BackendError, match="scores must be float32 or float16 .* got float64"):
        nms_kernels.sort_kernel("float64")
