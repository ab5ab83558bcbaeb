from __future__ import annotations

import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models import build_detector
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.box_overlaps import generalized_iou
from deploykit.training.structures import Batch, Targets


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    model = build_detector(small_config())
    model.init_weights()
    return model.train()


def test_forward_of_a_batch_is_its_loss(model, make_batch):
    batch = make_batch([2, 3])
    model.eval()  # so that statistics do not move between the two calls
    losses = model(batch)
    assert set(losses) == {"loss_cls", "loss_bbox"}
    assert all(torch.equal(losses[name], value) for name, value in model.loss(batch).items())


def test_overfitting_one_batch_finds_its_objects(small_config):
    torch.manual_seed(0)
    model = build_detector(small_config(exp_on_reg=True)).train()
    model.init_weights()
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    images[0, 16:48, 8:36] = torch.tensor([250, 30, 30], dtype=torch.uint8)
    images[1, 20:62, 22:60] = torch.tensor([30, 250, 30], dtype=torch.uint8)
    boxes = torch.tensor([[8.0, 16, 36, 48], [22, 20, 60, 62]])
    targets = [Targets(boxes[i : i + 1], torch.tensor([i])) for i in range(2)]
    batch = Batch(images, torch.full((2, 2), 64, dtype=torch.int32), targets, [{}, {}])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    history = []
    for _ in range(100):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert max(history[-5:]) < 0.25 * history[0]
    with torch.inference_mode():
        found, _, labels, _ = model.eval().predict(images)
    assert labels[:, 0].tolist() == [0, 1]
    assert (generalized_iou(found[:, 0], boxes) > 0.6).all()


def test_gradients_reach_every_parameter(small_detector, make_batch):
    model = small_detector().train()
    sum(model(make_batch([20, 20])).values()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_objects(model, make_batch, counts):
    losses = model(make_batch(counts))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_cls"] > 0
    assert (losses["loss_bbox"] > 0) == (sum(counts) > 0)
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_loss_is_that_of_the_images_together(model, make_batch):
    """Sums over the images, divided by the sum of the qualities of all positives."""
    model.eval()
    batch = make_batch([3, 5])
    whole = model(batch)
    sums = {"loss_cls": 0.0, "loss_bbox": 0.0}
    quality = 0.0
    for i in range(2):
        one = Batch(
            batch.images[i : i + 1], batch.image_sizes[i : i + 1], batch.targets[i : i + 1], [{}]
        )
        head = model.bbox_head
        feats = model.extract_feat(model.data_preprocessor(one.images))
        scores, distances = head(feats)
        factor = max(1.0, _quality(head, scores, distances, one))
        quality += _quality(head, scores, distances, one)
        for name, value in model(one).items():
            sums[name] += value.item() * factor
    for name, total in sums.items():
        assert whole[name].item() == pytest.approx(total / max(1.0, quality), rel=1e-4)


def _quality(head, scores, distances, batch) -> float:
    priors = head.prior_generator.grid_priors([s.shape[2:] for s in scores])
    offsets = torch.cat([d.flatten(2) for d in distances], 2).transpose(1, 2)
    assignment = head.assigner.assign(
        torch.cat([s.flatten(2) for s in scores], 2),
        head.bbox_coder.decode(priors[:, :2], offsets),
        priors,
        PaddedTargets.from_targets(batch.targets),
    )
    return float(assignment.overlap.sum())


def test_padding_of_the_batch_is_not_trained(model):
    model.eval()
    images = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[64, 32]], dtype=torch.int32)
    targets = [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]
    padded = model(Batch(images, sizes, targets, [{}]))
    feats = model.extract_feat(model.data_preprocessor(images, sizes))
    scores, _ = model.bbox_head(feats)
    expected = 0.0
    for score, stride in zip(scores, (8, 16, 32), strict=True):
        inside = score[0, :, : 64 // stride, : 32 // stride]
        expected += (torch.nn.functional.softplus(inside) * inside.sigmoid() ** 2).sum().item()
    assert padded["loss_cls"].item() == pytest.approx(expected, rel=1e-4)


def test_half_precision_training_keeps_the_loss_in_float32(model, make_batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch([2, 2]))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_plain_head_shares_everything_between_levels(small_config, make_batch):
    config = small_config()
    for key in ("share_conv", "exp_on_reg"):
        config["bbox_head"].pop(key)
    config["bbox_head"] |= {"type": "RTMDetHead", "with_objectness": True, "pred_kernel_size": 3}
    model = build_detector(config)
    model.init_weights()
    names = set(model.bbox_head.state_dict())
    assert {"rtm_cls.weight", "rtm_reg.bias", "rtm_obj.weight", "scales.2.scale"} <= names
    sum(model(make_batch([3, 1])).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.bbox_head.parameters())
    assert model.eval().predict(make_batch([0]).images)[0].shape == (1, 20, 4)


def test_levels_share_convolutions_but_not_norms(small_config):
    shared = build_detector(small_config()).bbox_head
    own = build_detector(small_config(share_conv=False)).bbox_head
    assert shared.cls_convs[0][1].conv is shared.cls_convs[2][1].conv
    assert shared.cls_convs[0][1].bn is not shared.cls_convs[2][1].bn
    assert own.cls_convs[0][1].conv is not own.cls_convs[2][1].conv
    assert set(shared.state_dict()) == set(own.state_dict())


def test_training_needs_an_assigner(small_config, make_batch):
    config = small_config()
    config["train_cfg"] = None
    with pytest.raises(ConfigError, match="train_cfg"):
        build_detector(config)(make_batch([1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "CSPNeXt"}, "must be a detector"),
        ({"type": "RTMDetX"}, "Did you mean RTMDet"),
        ({"train_cfg": {"assigner": {"type": "DynamicSoftLabelAssigner"}, "allowed_border": 0}},
         "allowed_border"),
        ({"train_cfg": {"assign": {}}}, "assigner"),
        ({"backbones": {}}, "RTMDet"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_built_are_refused(small_config, change, message):
    config = {**small_config(), **change}
    if change.get("type") == "CSPNeXt":
        config = change
    with pytest.raises(ConfigError, match=message):
        build_detector(config)


def test_inputs_must_be_multiples_of_the_coarsest_stride(model):
    assert model.size_divisor == 32
