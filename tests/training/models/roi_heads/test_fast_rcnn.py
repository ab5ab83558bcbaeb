"""Fast R-CNN: Faster R-CNN's second stage on proposals that come with the images."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from deploykit.errors import ConfigError, UsageError
from deploykit.training.models import build_detector
from deploykit.training.models.detectors.single_stage import box_limits
from deploykit.training.models.roi_heads.roi_sampling import Proposals


def without_proposal_network(model):
    """Return the config of Fast R-CNN for one of Faster R-CNN."""
    model = copy.deepcopy(model)
    del model["rpn_head"]
    model["type"] = "FastRCNN"
    model["train_cfg"] = {"rcnn": model["train_cfg"]["rcnn"]}
    model["test_cfg"] = {"rcnn": model["test_cfg"]["rcnn"]}
    return model


@pytest.fixture(scope="module")
def pair(small_two_stage, shrunk_recipe):
    """A small Faster R-CNN and the Fast R-CNN with its weights."""
    faster = small_two_stage("faster-rcnn")
    fast = build_detector(without_proposal_network(shrunk_recipe("faster-rcnn")["model"]))
    loaded = fast.load_state_dict(faster.state_dict(), strict=False)
    assert not loaded.missing_keys
    assert all(name.startswith("rpn_head.") for name in loaded.unexpected_keys)
    return faster.eval(), fast.eval()


@pytest.fixture(scope="module")
def proposals(pair, mixed_batch):
    """What the Faster R-CNN proposes, with empty rows."""
    faster, _ = pair
    batch = mixed_batch
    with torch.no_grad():
        feats = faster.extract_feat(faster.data_preprocessor(batch.images, batch.image_sizes))
        boxes, _, _, counts = faster.rpn_head.predict(
            feats, box_limits(batch.images, batch.image_sizes)
        )
    assert counts.min() > 5
    return boxes


def test_the_recipe_is_faster_rcnn_without_its_first_stage(recipe):
    fast, faster = (
        recipe(f"{name}_r50_fpn_1x_coco")["model"] for name in ("fast-rcnn", "faster-rcnn")
    )
    assert fast == without_proposal_network(faster)


def test_same_proposals_same_detections(pair, mixed_batch, proposals):
    faster, fast = pair
    images, sizes = mixed_batch.images, mixed_batch.image_sizes
    with torch.inference_mode():
        expected, found = faster.predict(images, sizes), fast.predict(images, sizes, proposals)
        called = fast(images, sizes, proposals)
    assert expected[3].max() > 0
    for reference, output, again in zip(expected, found, called, strict=True):
        assert torch.equal(reference, output) and torch.equal(output, again)


def test_same_proposals_same_losses(pair, mixed_batch, proposals):
    faster, fast = pair
    batch = replace(mixed_batch, proposals=proposals)
    feats = faster.extract_feat(faster.data_preprocessor(batch.images, batch.image_sizes))
    counts = (proposals[..., 2] > proposals[..., 0]).sum(dim=1)
    torch.manual_seed(0)
    expected = faster.roi_head.loss(
        feats,
        Proposals.of_counts(proposals, counts),
        batch.targets,
        box_limits(batch.images, batch.image_sizes),
    )
    torch.manual_seed(0)
    losses = fast(batch)
    assert losses.keys() == expected.keys() >= {"loss_cls", "loss_bbox"}
    for name, value in expected.items():
        assert torch.equal(losses[name], value)


def test_rows_without_area_are_no_proposals(pair, mixed_batch, proposals):
    _, fast = pair
    images, sizes = mixed_batch.images, mixed_batch.image_sizes
    empty = torch.tensor([[0, 0, 0, 0], [30, 30, 30, 60], [50, 40, 20, 80], [9, 9, 9, 9]])
    padded = torch.cat((proposals, empty.float().expand(4, 4, 4)), dim=1)
    with torch.inference_mode():
        expected, found = (fast.predict(images, sizes, rows) for rows in (proposals, padded))
        nothing = fast.predict(images, sizes, torch.zeros(4, 3, 4))
    for reference, output in zip(expected, found, strict=True):
        torch.testing.assert_close(output, reference, atol=1e-5, rtol=1e-5)
    assert nothing[3].tolist() == [0] * 4
    assert (nothing[2] == -1).all()


def test_no_image_influences_another(pair, mixed_batch, proposals):
    _, fast = pair
    images, sizes = mixed_batch.images, mixed_batch.image_sizes
    with torch.inference_mode():
        together = fast.predict(images, sizes, proposals)
        alone = [
            fast.predict(images[i : i + 1], sizes[i : i + 1], proposals[i : i + 1])
            for i in range(4)
        ]
    for output, singles in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(output, torch.cat(singles), atol=2e-3, rtol=1e-4)


def test_proposals_are_needed(pair, mixed_batch):
    _, fast = pair
    with pytest.raises(UsageError, match="needs proposals"):
        fast.predict(mixed_batch.images, mixed_batch.image_sizes)
    with pytest.raises(ConfigError, match="proposal_file"):
        fast(mixed_batch)


def around(boxes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Boxes near the given ones and elsewhere, float32 [40, 4]."""
    near = [boxes + torch.tensor(rng.uniform(-6, 6, (len(boxes), 4))).float() for _ in range(5)]
    rows = torch.cat(near)[:20]
    corners = torch.tensor(rng.uniform(0, 60, (40 - len(rows), 2))).float()
    return torch.cat((rows, torch.cat((corners, corners + 35), dim=1)))


@pytest.mark.slow
def test_learns_a_batch_by_heart(shrunk_recipe, mixed_batch):
    torch.manual_seed(0)
    model = without_proposal_network(shrunk_recipe("faster-rcnn")["model"])
    model["backbone"] |= {"base_channels": 8, "norm_eval": False}
    model["neck"] |= {"in_channels": [8, 16, 32, 64], "out_channels": 16}
    model["roi_head"]["bbox_roi_extractor"]["out_channels"] = 16
    model["roi_head"]["bbox_head"] |= {"in_channels": 16, "fc_out_channels": 64}
    fast = build_detector(model)
    fast.init_weights()
    rng = np.random.default_rng(0)
    rows = torch.stack([around(target.boxes, rng) for target in mixed_batch.targets])
    batch = replace(mixed_batch, proposals=rows)
    optimizer = torch.optim.Adam(fast.parameters(), lr=3e-3)
    fast.train()
    history = []
    for _ in range(80):
        losses = fast(batch)
        total = losses["loss_cls"] + losses["loss_bbox"]
        history.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert sum(history[-5:]) < 0.3 * sum(history[:5])
    fast.train()  # statistics of this batch, which is all that it knows
    with torch.no_grad():
        boxes, scores, labels, counts = fast.predict(batch.images, batch.image_sizes, rows)
    for image, target in enumerate(batch.targets):
        sure = scores[image] > 0.5
        assert counts[image] >= len(target.boxes)
        for box, label in zip(target.boxes, target.labels, strict=True):
            same = sure & (labels[image] == label)
            assert box_iou(box[None], boxes[image][same]).max() > 0.6
