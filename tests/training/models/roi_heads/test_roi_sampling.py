from __future__ import annotations

import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.roi_heads.roi_sampling import Proposals, RoITrainConfig
from deploykit.training.structures import Targets

ASSIGNER = {
    "type": "MaxIoUAssigner",
    "pos_iou_thr": 0.5,
    "neg_iou_thr": 0.5,
    "min_pos_iou": 0.5,
    "match_low_quality": False,
}
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]])
SHIFTED = BOXES + torch.tensor([1.0, 0, 1, 0])


def config(num=100, with_objects=True, **options):
    sampler = {
        "type": "RandomSampler",
        "num": num,
        "pos_fraction": 0.25,
        "add_gt_as_proposals": with_objects,
    }
    return RoITrainConfig({"assigner": ASSIGNER, "sampler": sampler, **options})


def targets(*images):
    return PaddedTargets.from_targets(
        [
            Targets(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))
            for boxes, labels in images
        ]
    )


def test_proposals_as_rois():
    proposals = Proposals.of_counts(BOXES.repeat(2, 1, 1), torch.tensor([3, 1]))
    assert proposals.mask.tolist() == [[True] * 3, [True, False, False]]
    rois = proposals.to_rois()
    assert rois[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(rois[:, 1:], BOXES.repeat(2, 1))


@pytest.mark.parametrize("with_objects", [True, False])
def test_regions_and_their_objects(with_objects):
    truth = targets((BOXES[[1, 0]].tolist(), [7, 4]), ([], []))
    proposals = Proposals.of_counts(SHIFTED.repeat(2, 1, 1), torch.tensor([3, 2]))
    found = config(with_objects=with_objects).sample(proposals, truth)
    first = found.image == 0
    # The first image: objects (if they take part), then the proposals.
    numbers = [-2, -1, 0, 1, 2] if with_objects else [0, 1, 2]
    assert found.proposal[first].tolist() == numbers
    positive = [True, True, True, True, False] if with_objects else [True, True, False]
    assert found.positive[first].tolist() == positive
    assert found.gt_index[first].tolist()[-3:] == [1, 0, 0]
    assert found.labels(80)[first].tolist()[-3:] == [4, 7, 80]
    assert torch.equal(found.gt_boxes[first][-3:], torch.stack((*BOXES[:2], torch.zeros(4))))
    # The second one has no object, and two proposals.
    second = ~first
    assert found.proposal[second].tolist() == [0, 1]
    assert found.labels(80)[second].tolist() == [80, 80]
    assert torch.equal(found.rois[second, 1:], SHIFTED[:2])
    assert found.rois[second, 0].tolist() == [1, 1]


def test_no_proposals_and_no_objects():
    proposals = Proposals.of_counts(torch.zeros(2, 5, 4), torch.tensor([0, 0]))
    assert len(config().sample(proposals, targets(([], []), ([], [])))) == 0


def test_the_number_of_regions_is_bounded():
    torch.manual_seed(0)
    proposals = Proposals.of_counts(SHIFTED.repeat(1, 50, 1), torch.tensor([150]))
    found = config(num=40).sample(proposals, targets((BOXES[:1].tolist(), [0])))
    assert len(found) == 40
    assert found.positive.sum() == 10


def test_options():
    options = config(mask_size=14, pos_weight=-1)
    assert (options.mask_size, options.pos_weight, options.soft_mask_target) == (
        (14, 14),
        1.0,
        False,
    )
    assert config(mask_size=(7, 14), pos_weight=2).mask_size == (7, 14)
    with pytest.raises(ConfigError, match=r"train_cfg\.rcnn"):
        config(poz_weight=1)
