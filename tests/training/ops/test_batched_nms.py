from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.plugins_trt import nms_reference
from deploykit.training.ops import batched_nms as module
from deploykit.training.ops.batched_nms import batched_nms


def reference(boxes, scores, labels, threshold, max_out) -> torch.Tensor:
    return torch.from_numpy(
        nms_reference.batched_nms(boxes.numpy(), scores.numpy(), labels.numpy(), threshold, max_out)
    )


def torchvision_nms(boxes, scores, labels, threshold) -> torch.Tensor:
    """One image, class by class; ties by index, an order that torchvision leaves open."""
    kept = torchvision.ops.boxes._batched_nms_vanilla(boxes, scores, labels, threshold)
    kept = kept.sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def random_scene(seed, batch, count, classes, spread=100.0, size=40.0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(batch, count, 2, generator=generator) * spread
    half = torch.rand(batch, count, 2, generator=generator) * size / 2 + 1
    boxes = torch.cat((centers - half, centers + half), dim=2)
    scores = torch.rand(batch, count, generator=generator)
    labels = torch.randint(classes, (batch, count), generator=generator)
    return boxes, scores, labels


# Few distinct values make ties, duplicates, equal edges and empty boxes frequent.
@st.composite
def scenes(draw):
    batch, count = draw(st.integers(1, 3)), draw(st.integers(0, 40))
    low = st.integers(0, 6)
    extent = st.integers(0, 5)
    box = st.tuples(low, low, extent, extent).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    score = st.sampled_from([0.9, 0.5, 0.5, 0.25, 1e-30, 0.0, -1.0, float("nan"), float("inf")])
    total = batch * count
    boxes = draw(st.lists(box, min_size=total, max_size=total))
    scores = draw(st.lists(score, min_size=total, max_size=total))
    labels = draw(st.lists(st.integers(0, 2), min_size=total, max_size=total))
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(batch, count, 4),
        torch.tensor(scores, dtype=torch.float32).reshape(batch, count),
        torch.tensor(labels, dtype=torch.int64).reshape(batch, count),
    )


@given(
    scene=scenes(),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.65, 1.0]),
    max_out=st.integers(1, 45),
    chunk=st.sampled_from([1, 3, 8, 1024]),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_definition(scene, threshold, max_out, chunk):
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(module, "_FIRST_CHUNK", chunk)
        context.setattr(module, "_LARGEST_CHUNK", 2 * chunk)
        actual = batched_nms(*scene, threshold, max_out)
    assert actual.dtype == torch.int64
    assert torch.equal(actual, reference(*scene, threshold, max_out))


@pytest.mark.parametrize("classes", [1, 5, 80])
@pytest.mark.parametrize("threshold", [0.3, 0.65])
def test_equals_torchvision_class_by_class(classes, threshold):
    boxes, scores, labels = random_scene(classes, 2, 3000, classes)
    actual = batched_nms(boxes, scores, labels, threshold, 3000)
    for image in range(2):
        kept = torchvision_nms(boxes[image], scores[image], labels[image], threshold)
        assert torch.equal(actual[image, : len(kept)], kept)
        assert (actual[image, len(kept) :] == -1).all()


@pytest.mark.parametrize("size", [40.0, 90.0])
def test_many_candidates_and_few_results(size):
    """Ninety thousand candidates: the first ones of the complete suppression are found."""
    boxes, scores, labels = random_scene(0, 1, 90_000, 80, spread=640.0, size=size)
    kept = torchvision_nms(boxes[0], scores[0], labels[0], 0.65)
    assert torch.equal(batched_nms(boxes, scores, labels, 0.65, 300)[0], kept[:300])


def test_escalates_until_enough_survive():
    """The best 5,000 boxes are one object seen again and again; the others are spread out."""
    crowd = torch.tensor([10.0, 10.0, 50.0, 50.0]) + torch.linspace(0, 1, 5000)[:, None]
    spread, _, _ = random_scene(1, 1, 2000, 1, spread=10_000.0)
    boxes = torch.cat((crowd, spread[0]))[None]
    scores = torch.linspace(1, 0.1, 7000)[None]
    labels = torch.zeros(1, 7000, dtype=torch.int64)
    actual = batched_nms(boxes, scores, labels, 0.5, 100)
    assert torch.equal(actual, reference(boxes, scores, labels, 0.5, 100))
    assert (actual[0] >= 5000).sum() == 99


def test_one_score_for_all_keeps_the_order_of_the_input():
    boxes, scores, labels = random_scene(2, 1, 5000, 3, spread=300.0)
    scores = torch.full_like(scores, 0.5)
    actual = batched_nms(boxes, scores, labels, 0.5, 50)
    assert torch.equal(actual, reference(boxes, scores, labels, 0.5, 50))
    assert (actual[0].diff() > 0).all()


def test_large_coordinates_and_many_classes_lose_no_precision():
    """Boxes a pixel apart at 4,000,000 and label 10,000: a shift by class would merge them."""
    corner = torch.tensor([4_000_000.0, 4_000_000.0])
    boxes = torch.stack(
        [torch.cat((corner + i, corner + i + torch.tensor([2.0, 2.0]))) for i in range(8)]
    )[None]
    scores = torch.linspace(0.9, 0.2, 8)[None]
    labels = torch.tensor([[10_000, 10_000, 3, 3, 10_000, 0, 0, 0]])
    actual = batched_nms(boxes, scores, labels, 0.1, 8)
    assert torch.equal(actual, reference(boxes, scores, labels, 0.1, 8))
    assert actual.tolist() == [[0, 2, 4, 5, 7, -1, -1, -1]]


def test_an_overlap_of_exactly_the_threshold_is_kept():
    # 0.6 is larger as float32 than as a double; engines compare float32 numbers.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 6]]])
    scores, labels = torch.tensor([[0.9, 0.8]]), torch.zeros(1, 2, dtype=torch.int64)
    assert batched_nms(boxes, scores, labels, 0.6, 2).tolist() == [[0, 1]]
    assert batched_nms(boxes, scores, labels, 0.5999, 2).tolist() == [[0, -1]]


def test_rows_of_a_batch_do_not_influence_one_another():
    boxes, scores, labels = random_scene(3, 4, 500, 4)
    scores[1] = 0
    together = batched_nms(boxes, scores, labels, 0.5, 60)
    for image in range(4):
        one = slice(image, image + 1)
        alone = batched_nms(boxes[one], scores[one], labels[one], 0.5, 60)
        assert torch.equal(together[one], alone)
    assert (together[1] == -1).all()


@pytest.mark.parametrize(("batch", "count"), [(0, 5), (2, 0), (1, 1)])
def test_small_and_empty_inputs(batch, count):
    actual = batched_nms(*random_scene(0, batch, count, 2), 0.5, 3)
    assert actual.shape == (batch, 3)
    assert actual.tolist() == [[0, -1, -1] if count else [-1, -1, -1]] * batch


def test_inputs_are_not_changed():
    scene = random_scene(4, 2, 300, 3)
    copies = [tensor.clone() for tensor in scene]
    batched_nms(*scene, 0.5, 10)
    assert all(torch.equal(a, b) for a, b in zip(scene, copies, strict=True))


def test_operator_is_registered_as_torch_expects():
    scene = random_scene(5, 2, 50, 3)
    torch.library.opcheck(torch.ops.deploykit.batched_nms.default, (*scene, 0.5, 10))


def test_shape_is_known_without_data():
    boxes, scores, labels = (tensor.to("meta") for tensor in random_scene(6, 2, 50, 3))
    output = torch.ops.deploykit.batched_nms(boxes, scores, labels, 0.5, 10)
    assert (output.shape, output.dtype) == ((2, 10), torch.int64)


def test_scores_that_are_not_positive_never_come_back():
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49], [60, 60, 69, 69]]])
    scores = torch.tensor([[float("nan"), 0.0, -0.5, 0.3]])
    labels = torch.zeros(1, 4, dtype=torch.int64)
    assert batched_nms(boxes, scores, labels, 0.5, 4).tolist() == [[3, -1, -1, -1]]
    assert np.isnan(scores[0, 0])
