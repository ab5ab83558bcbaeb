from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.models.assigners import max_iou_assigner
from deploykit.training.models.assigners.max_iou_assigner import MaxIoUAssigner
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.box_overlaps import pairwise_iof, pairwise_iou
from deploykit.training.structures import Targets

BACKGROUND, IGNORED = -1, -2
PRIORS = 16


def slow_assignment(priors, target, mask, options):
    """The rules for one image, one prior and one object at a time."""
    if len(target.boxes) == 0:
        return torch.where(mask, BACKGROUND, IGNORED).tolist()
    overlaps = pairwise_iou(target.boxes, priors)
    if options["ignore_iof_thr"] > 0 and len(target.ignored_boxes):
        if options["ignore_wrt_candidates"]:
            covered = pairwise_iof(priors, target.ignored_boxes).amax(1)
        else:
            covered = pairwise_iof(target.ignored_boxes, priors).amax(0)
        overlaps[:, covered > options["ignore_iof_thr"]] = -1
    overlaps[:, ~mask] = -1
    low, high = options["neg_iou_thr"]
    result = []
    for column in overlaps.T:
        best = int(column.argmax())
        index = IGNORED
        if low <= column[best] < high:
            index = BACKGROUND
        if column[best] >= options["pos_iou_thr"]:
            index = best
        result.append(index)
    if options["match_low_quality"]:
        for index, row in enumerate(overlaps):
            highest = row.max()
            if highest >= max(0.0, options["min_pos_iou"]):
                best = (row == highest).nonzero().flatten().tolist()
                for prior in best if options["gt_max_assign_all"] else best[:1]:
                    result[prior] = index
    return result


@st.composite
def scenes(draw):
    """A batch of images with few distinct coordinates, so that overlaps tie."""
    number = st.integers(0, 6)

    def boxes(count):
        rows = [
            (x := draw(number), y := draw(number), x + 1 + draw(number), y + 1 + draw(number))
            for _ in range(count)
        ]
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    images = draw(st.integers(1, 3))
    targets = []
    for _ in range(images):
        count = draw(st.integers(0, 4))
        labels = torch.zeros(count, dtype=torch.int64)
        targets.append(Targets(boxes(count), labels, boxes(draw(st.integers(0, 2)))))
    priors = torch.stack([boxes(PRIORS) for _ in range(images)])
    mask = torch.tensor(
        draw(st.lists(st.booleans(), min_size=images * PRIORS, max_size=images * PRIORS))
    ).view(images, PRIORS)
    options = {
        "pos_iou_thr": draw(st.sampled_from([0.3, 0.5, 0.7])),
        "neg_iou_thr": draw(st.sampled_from([(0.0, 0.3), (0.0, 0.5), (0.1, 0.3)])),
        "min_pos_iou": draw(st.sampled_from([0.0, 0.3, 0.5])),
        "gt_max_assign_all": draw(st.booleans()),
        "ignore_iof_thr": draw(st.sampled_from([-1, 0.5])),
        "ignore_wrt_candidates": draw(st.booleans()),
        "match_low_quality": draw(st.booleans()),
        "gpu_assign_thr": draw(st.sampled_from([-1, 2])),
    }
    return priors, targets, mask, options


@given(scene=scenes())
@settings(max_examples=150, deadline=None)
def test_assignment_follows_the_rules(scene):
    priors, targets, mask, options = scene
    assigner = MaxIoUAssigner(**options)
    assignment = assigner.assign(priors, PaddedTargets.from_targets(targets), mask)
    for image, target in enumerate(targets):
        expected = slow_assignment(priors[image], target, mask[image], options)
        assert assignment.gt_index[image].tolist() == expected


def example_targets(*images):
    targets = []
    for objects, crowds in images:
        boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
        ignored = torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4)
        targets.append(Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), ignored))
    return PaddedTargets.from_targets(targets)


def test_thresholds_by_hand():
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4.5], [0, 0, 10, 2]])
    targets = example_targets(([(0, 0, 10, 8)], []))  # IoU 0.8, 1, 0.56, 0.25
    assigner = MaxIoUAssigner(pos_iou_thr=0.7, neg_iou_thr=0.3, match_low_quality=False)
    assignment = assigner.assign(priors, targets)
    assert assignment.gt_index.tolist() == [[0, 0, IGNORED, BACKGROUND]]
    assert assignment.overlap[0].tolist() == pytest.approx([0.8, 1.0, 0.5625, 0.25])


def test_an_object_takes_its_best_prior_from_another():
    priors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    # Both objects overlap the first prior most: the first one by 0.9, the second one by 0.8.
    targets = example_targets(([(0, 0, 10, 9), (0, 0, 10, 8)], []))
    options = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.3}
    assert MaxIoUAssigner(**options).assign(priors, targets).gt_index.tolist() == [[1, -1]]
    second_stage = MaxIoUAssigner(**options, match_low_quality=False)
    assert second_stage.assign(priors, targets).gt_index.tolist() == [[0, -1]]


def test_crowds_count_only_where_there_are_objects():
    priors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    crowd = [(19, 19, 31, 31)]
    targets = example_targets(([(0, 0, 10, 10)], crowd), ([], crowd), ([(0, 0, 10, 10)], []))
    assigner = MaxIoUAssigner(0.5, 0.4, ignore_iof_thr=0.5)
    index = assigner.assign(priors, targets).gt_index
    assert index.tolist() == [[0, IGNORED], [BACKGROUND, BACKGROUND], [0, BACKGROUND]]


def test_no_objects_and_no_priors():
    assigner = MaxIoUAssigner(0.5, 0.4)
    nothing = assigner.assign(torch.rand(3, 4), example_targets(([], []), ([], [])))
    assert nothing.gt_index.tolist() == [[-1] * 3] * 2
    assert not nothing.overlap.any()
    empty = assigner.assign(torch.zeros(0, 4), example_targets(([(0, 0, 1, 1)], [])))
    assert empty.gt_index.shape == (1, 0)


def test_many_pairs_are_assigned_in_parts(monkeypatch):
    torch.manual_seed(0)
    corners = torch.rand(5, 40, 2) * 20
    priors = torch.cat((corners, corners + torch.rand(5, 40, 2) * 20 + 1), dim=2)
    targets = example_targets(*[([(i, i, i + 9, i + 12), (3, 3, 20, 20)], []) for i in range(5)])
    assigner = MaxIoUAssigner(0.5, 0.4)
    whole = assigner.assign(priors, targets)
    monkeypatch.setitem(max_iou_assigner._MAX_PAIRS, "cpu", 160)
    parts = assigner.assign(priors, targets)
    assert torch.equal(whole.gt_index, parts.gt_index)
    assert torch.equal(whole.overlap, parts.overlap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_iou_thr": 1.5, "neg_iou_thr": 0.5}, "from 0 to 1"),
        ({"pos_iou_thr": 0.5, "neg_iou_thr": (0.5, 0.1)}, "growing order"),
        ({"pos_iou_thr": 0.5, "neg_iou_thr": (0.1, 0.2, 0.3)}, "growing order"),
        (
            {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "iou_calculator": {"type": "BBoxOverlaps3D"}},
            "iou_calculator",
        ),
        (
            {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "perm_repeat_gt_cfg": {"iou_thr": 0.7}},
            "perm_repeat_gt_cfg",
        ),
    ],
)
def test_unsupported_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MaxIoUAssigner(**options)
