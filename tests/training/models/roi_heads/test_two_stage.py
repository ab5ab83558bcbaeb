from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from deploykit.errors import ConfigError
from deploykit.training.structures import Batch

NAMES = ["faster-rcnn", "mask-rcnn", "cascade-mask-rcnn"]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_a_fixed_shape_and_empty_rows(small_two_stage, mixed_batch, name):
    model = small_two_stage(name, {"test_cfg.rcnn.score_thr": 0.6})
    with torch.inference_mode():
        boxes, scores, labels, counts, *masks = model.predict(
            mixed_batch.images, mixed_batch.image_sizes
        )
    assert (boxes.shape, scores.shape, labels.shape) == ((4, 10, 4), (4, 10), (4, 10))
    assert (boxes.dtype, labels.dtype, counts.dtype) == (torch.float32, torch.int32, torch.int32)
    assert counts.min() < 10 or name == "cascade-mask-rcnn"
    assert counts.max() > 0
    for image, count in enumerate(counts.tolist()):
        assert (scores[image].diff() <= 0).all()
        assert (labels[image, count:] == -1).all()
        assert not boxes[image, count:].any()
        assert not scores[image, count:].any()
        height, width = mixed_batch.image_sizes[image].tolist()
        assert (boxes[image] <= torch.tensor([width, height, width, height])).all()
    assert len(masks) == ("mask" in name)
    for logits in masks:
        assert (logits.shape, logits.dtype) == ((4, 10, 28, 28), torch.float32)
        for image, count in enumerate(counts.tolist()):
            assert logits[image, :count].flatten(1).any(dim=1).all()
            assert not logits[image, count:].any()


@pytest.mark.parametrize("name", NAMES)
def test_no_image_influences_another(small_two_stage, mixed_batch, name):
    model = small_two_stage(name)
    images, sizes = mixed_batch.images, mixed_batch.image_sizes
    with torch.inference_mode():
        together = model.predict(images, sizes)
        alone = [model.predict(images[i : i + 1], sizes[i : i + 1]) for i in range(4)]
    for output, singles in zip(together, zip(*alone, strict=True), strict=True):
        # Convolution libraries may block a batch differently, hence not bit by bit.
        torch.testing.assert_close(output, torch.cat(singles), atol=2e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask-rcnn", "cascade-mask-rcnn"])
def test_export_with_dynamic_shapes_gives_the_same_results(small_two_stage, mixed_batch, name):
    model = small_two_stage(name)
    rows, columns = Dim("rows", min=4, max=40), Dim("columns", min=4, max=40)
    batch = Dim("batch", min=1, max=16)
    shapes = ({0: batch, 1: 32 * rows, 2: 32 * columns}, {0: batch})
    example = (mixed_batch.images[:2], mixed_batch.image_sizes[:2])
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    operators = {str(node.target) for node in program.graph.nodes}
    assert "deploykit.multilevel_roi_align.default" in operators
    assert not {name for name in operators if "nonzero" in name or "_local_scalar" in name}
    exported = program.module()
    wide = torch.nn.functional.pad(mixed_batch.images, (0, 0, 0, 32, 0, 32))
    for images, sizes in (
        (wide, mixed_batch.image_sizes),
        (mixed_batch.images[2:3], mixed_batch.image_sizes[2:3]),
    ):
        with torch.inference_mode():
            expected, actual = model.predict(images, sizes), exported(images, sizes)
        assert expected[3].max() > 0
        for output, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(output, reference, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [slice(0, 4), slice(1, 2)])
def test_training_step_reaches_every_weight(small_two_stage, mixed_batch, name, images):
    model = small_two_stage(name)
    model.train()
    batch = Batch(
        mixed_batch.images[images],
        mixed_batch.image_sizes[images],
        mixed_batch.targets[images],
        mixed_batch.metas[images],
    )
    torch.manual_seed(0)
    losses = model(batch)
    assert all(value.isfinite() for value in losses.values())
    sum(value for key, value in losses.items() if "loss" in key).backward()
    # Images without objects train the negatives, and still give every weight a gradient.
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


def test_losses_go_down(small_two_stage, mixed_batch):
    torch.manual_seed(0)
    model = small_two_stage("mask-rcnn")
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        losses = model(mixed_batch)
        total = sum(value for key, value in losses.items() if "loss" in key)
        history.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert sum(history[-3:]) < 0.7 * sum(history[:3])


def test_training_needs_a_train_cfg(small_two_stage, mixed_batch):
    for name in ("faster-rcnn", "cascade-rcnn"):
        model = small_two_stage(name, {"train_cfg.rcnn": None})
        with pytest.raises(ConfigError, match="train_cfg"):
            model(mixed_batch)


def test_initial_weights(small_two_stage):
    model = small_two_stage("cascade-mask-rcnn")
    model.init_weights()
    for head in model.roi_head.bbox_head:
        assert 0.005 < head.fc_cls.weight.std() < 0.02
        assert 0.0005 < head.fc_reg.weight.std() < 0.002
        assert not head.fc_cls.bias.any()
    for head in model.roi_head.mask_head:
        assert not head.upsample.bias.any()
