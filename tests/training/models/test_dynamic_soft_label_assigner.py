from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models.assigners import dynamic_soft_label_assigner as module
from deploykit.training.models.assigners.dynamic_soft_label_assigner import (
    DynamicSoftLabelAssigner,
)
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.priors.point_generator import MlvlPointGenerator
from deploykit.training.structures import Targets


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return overlap / max(areas - overlap, 1e-6)


def slow_cost(logits, label, overlap, point, box, stride, radius, iou_weight):
    """Cost of one prior for one object, as the paper defines it."""
    class_cost = 0.0
    for index, logit in enumerate(logits):
        target = overlap if index == label else 0.0
        probability = 1 / (1 + math.exp(-logit))
        entropy = -target * math.log(probability) - (1 - target) * math.log(1 - probability)
        class_cost += entropy * (target - probability) ** 2
    center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    distance = math.dist(point, center) / stride
    return class_cost - iou_weight * math.log(overlap + 1e-7) + 10 ** (distance - radius)


def slow_assign(logits, boxes, priors, targets, valid, radius=3.0, topk=13, iou_weight=3.0):
    """One image, one pair at a time, in float64."""
    gt_index = np.full(len(priors), -1)
    overlap_of = np.zeros(len(priors))
    objects = targets.boxes.tolist()
    part = [
        p
        for p, (x, y, _) in enumerate(priors)
        if valid[p] and any(b[0] < x < b[2] and b[1] < y < b[3] for b in objects)
    ]
    if not part:
        return gt_index, overlap_of
    overlap = np.array([[slow_iou(boxes[p], box) for box in objects] for p in part])
    cost = np.array(
        [
            [
                slow_cost(
                    logits[:, p],
                    int(targets.labels[g]),
                    overlap[row, g],
                    priors[p][:2],
                    box,
                    priors[p][2],
                    radius,
                    iou_weight,
                )
                for g, box in enumerate(objects)
            ]
            for row, p in enumerate(part)
        ]
    )
    claimed_by = [[] for _ in part]
    for g in range(len(objects)):
        best = np.sort(overlap[:, g])[::-1][:topk]
        for row in np.argsort(cost[:, g])[: max(1, int(best.sum()))]:
            claimed_by[row].append(g)
    for row, p in enumerate(part):
        if claimed_by[row]:
            alone = len(claimed_by[row]) == 1
            gt_index[p] = claimed_by[row][0] if alone else int(np.argmin(cost[row]))
            overlap_of[p] = overlap[row, gt_index[p]]
    return gt_index, overlap_of


def random_case(seed, counts, size=64, num_classes=4, quality=6.0):
    """Random objects, and predictions that overlap them more or less."""
    generator = torch.Generator().manual_seed(seed)
    priors = MlvlPointGenerator([8, 16, 32], offset=0).grid_priors([(8, 8), (4, 4), (2, 2)])
    targets, logits, boxes = [], [], []
    for count in counts:
        centers = torch.rand(count, 2, generator=generator) * size
        half = torch.rand(count, 2, generator=generator) * 14 + 3
        labels = torch.randint(num_classes, (count,), generator=generator)
        targets.append(Targets(torch.cat((centers - half, centers + half), 1), labels))
        noise = torch.randn(len(priors), 4, generator=generator) * quality
        if count:
            nearest = torch.cdist(priors[:, :2], centers).argmin(1)
            boxes.append(targets[-1].boxes[nearest] + noise)
        else:
            boxes.append(priors[:, [0, 1, 0, 1]] + noise)
        logits.append(torch.randn(num_classes, len(priors), generator=generator) * 2 - 2)
    return torch.stack(logits), torch.stack(boxes), priors, targets


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("counts", [(1,), (7, 0, 3), (0, 25, 12, 1)])
def test_batched_result_is_the_definition_image_by_image(seed, counts):
    logits, boxes, priors, targets = random_case(seed, counts)
    valid = torch.ones(len(counts), len(priors), dtype=torch.bool)
    valid[-1, 5::7] = False
    assignment = DynamicSoftLabelAssigner().assign(
        logits, boxes, priors, PaddedTargets.from_targets(targets), valid
    )
    assert assignment.gt_index.dtype == torch.int64
    assert (assignment.gt_index >= 0).sum() >= sum(counts) // 2
    for image, truth in enumerate(targets):
        gt_index, overlap = slow_assign(
            logits[image].double().numpy(),
            boxes[image].double().numpy(),
            priors.double().numpy(),
            truth,
            valid[image].numpy(),
        )
        np.testing.assert_array_equal(assignment.gt_index[image].numpy(), gt_index)
        np.testing.assert_allclose(assignment.overlap[image].numpy(), overlap, atol=1e-5)


@pytest.mark.parametrize("options", [{"topk": 3}, {"soft_center_radius": 1.0}, {"iou_weight": 0.5}])
def test_options_mean_what_the_definition_says(options):
    logits, boxes, priors, targets = random_case(11, (9,))
    assignment = DynamicSoftLabelAssigner(**options).assign(
        logits, boxes, priors, PaddedTargets.from_targets(targets)
    )
    slow_options = {key.replace("soft_center_", ""): value for key, value in options.items()}
    expected, _ = slow_assign(
        logits[0].double().numpy(),
        boxes[0].double().numpy(),
        priors.double().numpy(),
        targets[0],
        np.ones(len(priors), bool),
        **slow_options,
    )
    np.testing.assert_array_equal(assignment.gt_index[0].numpy(), expected)


def test_padding_and_slices_of_the_batch_do_not_matter(monkeypatch):
    logits, boxes, priors, targets = random_case(3, (2, 14, 0, 5, 9))
    assigner = DynamicSoftLabelAssigner()
    whole = assigner.assign(logits, boxes, priors, PaddedTargets.from_targets(targets))
    monkeypatch.setattr(module, "_MAX_PAIRS", 2 * 14 * len(priors))
    sliced = assigner.assign(logits, boxes, priors, PaddedTargets.from_targets(targets))
    for image in range(len(targets)):
        one = slice(image, image + 1)
        alone = assigner.assign(
            logits[one], boxes[one], priors, PaddedTargets.from_targets(targets[one])
        )
        for batch in (whole, sliced):
            assert torch.equal(batch.gt_index[one], alone.gt_index)
            assert torch.equal(batch.overlap[one], alone.overlap)


def test_an_object_between_the_points_gets_nothing():
    logits, boxes, priors, _ = random_case(0, (1,))
    tiny = Targets(torch.tensor([[9.0, 9.0, 15.0, 15.0]]), torch.tensor([0]))
    assignment = DynamicSoftLabelAssigner().assign(
        logits, boxes, priors, PaddedTargets.from_targets([tiny])
    )
    assert (assignment.gt_index == -1).all()
    assert not assignment.overlap.any()


def test_every_object_with_a_point_inside_gets_a_prior_however_far_predictions_are():
    logits, boxes, priors, _ = random_case(0, (1,))
    objects = Targets(
        torch.tensor([[1.0, 1.0, 12.0, 12.0], [30.0, 30.0, 60.0, 60.0]]), torch.tensor([0, 1])
    )
    assignment = DynamicSoftLabelAssigner().assign(
        logits, boxes * 0 - 1000, priors, PaddedTargets.from_targets([objects])
    )
    assert set(assignment.gt_index[0].tolist()) == {-1, 0, 1}


def test_no_objects_at_all():
    logits, boxes, priors, targets = random_case(0, (0, 0))
    assignment = DynamicSoftLabelAssigner().assign(
        logits, boxes, priors, PaddedTargets.from_targets(targets)
    )
    assert (assignment.gt_index == -1).all()
    assert assignment.gt_index.shape == assignment.overlap.shape == (2, len(priors))


def test_far_priors_overflow_to_a_cost_that_is_still_ordered():
    generator = MlvlPointGenerator([8], offset=0)
    priors = generator.grid_priors([(64, 64)])  # 512 pixels: 10 ** 60 strides away and more
    targets = [
        Targets(
            torch.tensor([[0.0, 0.0, 511.0, 511.0], [3.0, 3.0, 13.0, 13.0]]), torch.zeros(2).long()
        )
    ]
    boxes = torch.tensor([3.0, 3.0, 13.0, 13.0]).expand(1, len(priors), 4)
    valid = torch.zeros(1, len(priors), dtype=torch.bool)
    valid[0, -3:] = True  # the three points farthest from the small object
    assignment = DynamicSoftLabelAssigner().assign(
        torch.zeros(1, 1, len(priors)), boxes, priors, PaddedTargets.from_targets(targets), valid
    )
    assert not (assignment.gt_index[0, :-3] >= 0).any()
    assert (assignment.gt_index[0, -3:] >= 0).any()


def test_unsupported_options_are_refused():
    with pytest.raises(ConfigError, match="iou_calculator"):
        DynamicSoftLabelAssigner(iou_calculator={"type": "BboxOverlaps2D_GLIP"})
    with pytest.raises(ConfigError, match="topk"):
        DynamicSoftLabelAssigner(topk=0)
