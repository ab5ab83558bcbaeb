from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.training.models.heads.dense_detections import DenseTestConfig
from deploykit.training.models.roi_heads.bbox_head import BBoxHead
from deploykit.training.models.roi_heads.convfc_bbox_head import ConvFCBBoxHead
from deploykit.training.models.roi_heads.roi_sampling import Proposals, SampledRoIs

STDS = np.array([0.1, 0.1, 0.2, 0.2])
LIMITS = torch.tensor([[[90.0, 60, 90, 60]], [[80.0, 70, 80, 70]]])


def decode(box, delta, limits):
    """One box, from the definition of the deltas."""
    dx, dy, dw, dh = delta * STDS
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    w, h = w * np.exp(dw), h * np.exp(dh)
    return np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, limits)


def slow_detections(boxes, logits, deltas, limits, config):
    """MMDetection's test path for one image: every region and class for itself."""
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = []
    for region, (box, row) in enumerate(zip(boxes, scores, strict=True)):
        for label, score in enumerate(row[:-1]):
            if score > config.score_thr:
                own = deltas[region].reshape(-1, 4)
                delta = own[label] if len(own) > 1 else own[0]
                found.append((decode(box, delta, limits), score, label))
    if not found:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    boxes, scores, labels = (np.array(column) for column in zip(*found, strict=True))
    keep = batched_nms(
        boxes[None].astype(np.float32),
        scores[None].astype(np.float32),
        labels[None],
        config.iou_threshold,
        config.max_per_img,
    )[0]
    keep = keep[keep >= 0]
    return boxes[keep], scores[keep], labels[keep]


def scene(classes, agnostic, seed=0, count=30):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator) * 60
    size = torch.rand(2, count, 2, generator=generator) * 30 + 2
    boxes = torch.cat((corner, corner + size), dim=2)
    logits = torch.randn(2, count, classes + 1, generator=generator) * 2
    deltas = torch.randn(2, count, 4 if agnostic else 4 * classes, generator=generator)
    proposals = Proposals.of_counts(boxes, torch.tensor([count, count // 2]))
    return proposals, logits, deltas


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("score_thr", [0.0, 0.05, 0.3, 0.9])
def test_detections_equal_the_slow_definition(agnostic, score_thr):
    head = BBoxHead(num_classes=40, in_channels=2, reg_class_agnostic=agnostic)
    config = DenseTestConfig(score_thr=score_thr, iou_threshold=0.4, max_per_img=50)
    proposals, logits, deltas = scene(40, agnostic)
    boxes, scores, labels, counts = head.predict_by_feat(proposals, logits, deltas, LIMITS, config)
    assert boxes.shape == (2, 50, 4)
    for image, real in enumerate((30, 15)):
        expected = slow_detections(
            proposals.boxes[image, :real].double().numpy(),
            logits[image, :real].double().numpy(),
            deltas[image, :real].double().numpy(),
            LIMITS[image, 0].numpy(),
            config,
        )
        count = int(counts[image])
        assert count == len(expected[1])
        np.testing.assert_allclose(boxes[image, :count], expected[0], atol=1e-3)
        np.testing.assert_allclose(scores[image, :count], expected[1], atol=1e-6)
        np.testing.assert_array_equal(labels[image, :count], expected[2])


def test_no_class_above_the_threshold_is_left_out():
    # With nine scores just above a tenth, the bound on classes per region must be all nine.
    head = BBoxHead(num_classes=50, in_channels=2, reg_class_agnostic=True)
    logits = torch.full((1, 1, 51), -20.0)
    logits[..., 7:16] = 0.0
    proposals = Proposals(torch.tensor([[[1.0, 1, 9, 9]]]), torch.ones(1, 1, dtype=torch.bool))
    config = DenseTestConfig(score_thr=0.1, max_per_img=20)
    outputs = head.predict_by_feat(proposals, logits, torch.zeros(1, 1, 4), LIMITS[:1], config)
    assert outputs[3].tolist() == [9]
    assert sorted(outputs[2][0, :9].tolist()) == list(range(7, 16))


def samples(labels, gt_boxes, rois):
    count = len(labels)
    positive = labels >= 0
    return SampledRoIs(
        rois=torch.cat((torch.zeros(count, 1), rois), dim=1),
        image=torch.zeros(count, dtype=torch.int64),
        proposal=torch.arange(count),
        positive=positive,
        gt_index=torch.zeros(count, dtype=torch.int64),
        gt_boxes=gt_boxes,
        gt_labels=labels.clamp(min=0),
    )


@pytest.mark.parametrize("agnostic", [True, False])
def test_losses_equal_the_definition(agnostic):
    torch.manual_seed(0)
    loss_bbox = {"type": "L1Loss", "loss_weight": 2.0}
    head = BBoxHead(num_classes=3, in_channels=2, reg_class_agnostic=agnostic, loss_bbox=loss_bbox)
    labels = torch.tensor([2, -1, 0, -1, -1])
    rois = torch.rand(5, 4) * 20 + torch.tensor([0.0, 0, 40, 40])
    boxes = torch.rand(5, 4) * 20 + torch.tensor([0.0, 0, 40, 40])
    logits, deltas = torch.randn(5, 4), torch.randn(5, 4 if agnostic else 12)
    losses = head.loss(logits, deltas, samples(labels, boxes, rois), pos_weight=3.0)
    targets = [2, 3, 0, 3, 3]
    entropy = [-logits[row].log_softmax(0)[label] for row, label in enumerate(targets)]
    weighted = 3 * entropy[0] + entropy[1] + 3 * entropy[2] + entropy[3] + entropy[4]
    box_loss = torch.zeros(())
    for row in (0, 2):
        own = deltas[row] if agnostic else deltas[row].view(3, 4)[labels[row]]
        box_loss = box_loss + (own - head.bbox_coder.encode(rois[row], boxes[row])).abs().sum()
    assert losses["loss_cls"].item() == pytest.approx(weighted.item() / 5, rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(2 * box_loss.item() / 5, rel=1e-5)
    right = sum(int(row.argmax()) == label for row, label in zip(logits, targets, strict=True))
    assert losses["acc"].item() == pytest.approx(20.0 * right)


@pytest.mark.parametrize("count", [0, 3])
def test_losses_without_positives_are_finite_and_have_gradients(count):
    head = ConvFCBBoxHead(num_shared_fcs=1, fc_out_channels=8, num_classes=3, in_channels=2)
    logits, deltas = head(torch.randn(count, 2, 7, 7))
    background = torch.full((count,), -1)
    losses = head.loss(
        logits, deltas, samples(background, torch.zeros(count, 4), torch.rand(count, 4))
    )
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert losses["loss_bbox"] == 0
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(value.isfinite() for value in losses.values())


def test_refine_takes_the_deltas_of_the_class():
    head = BBoxHead(num_classes=3, in_channels=2)
    box = torch.tensor([[10.0, 10, 30, 20]])
    deltas = torch.zeros(1, 12)
    deltas[0, 4:8] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    limits = torch.tensor([[31.0, 40, 31, 40]])
    moved = head.refine(box, deltas, torch.tensor([1]), limits)
    assert moved.tolist() == [[12, 10, 31, 20]]  # by a tenth of the width, then clipped
    assert head.refine(box, deltas, torch.tensor([2]), limits).tolist() == box.tolist()


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize(
    "depths",
    [
        {"num_shared_fcs": 2},
        {"num_shared_convs": 1, "num_shared_fcs": 1},
        {"num_shared_convs": 1},
        {"num_cls_convs": 1, "num_reg_fcs": 1},
        {"num_shared_convs": 1, "num_cls_fcs": 1, "num_reg_convs": 1},
        {"num_shared_fcs": 1, "num_cls_fcs": 1},
    ],
)
def test_branches_fit_together(depths, pooled):
    head = ConvFCBBoxHead(
        with_avg_pool=pooled,
        roi_feat_size=3,
        in_channels=4,
        conv_out_channels=5,
        fc_out_channels=6,
        num_classes=2,
        **depths,
    )
    logits, deltas = head(torch.randn(7, 4, 3, 3))
    assert (logits.shape, deltas.shape) == ((7, 3), (7, 8))
    head.init_weights()
    assert head.fc_cls.weight.std() < 0.05
    assert head.fc_reg.weight.std() < 0.005


def test_heads_need_layers_of_their_own():
    with pytest.raises(ConfigError, match="at least one layer"):
        ConvFCBBoxHead()
