"""The runs of a conversion's parity check, with backends of known outputs."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from deploykit.cli.convert import _print_parity
from deploykit.exporters.conversion_parity import ParityRun, measure, plan_runs
from deploykit.parity import ParityTolerances
from deploykit.spec import DimRange, InputSpec, ModelSpec, OutputSpec

FIXED = DimRange.fixed
STATIC = InputSpec(FIXED(1), FIXED(64), FIXED(96), scale=(96, 64), pad_size=(64, 96))
DYNAMIC = InputSpec(
    DimRange(1, 2, 16), DimRange(32, 64, 128), DimRange(32, 96, 160), scale=(96, 64)
)


class Backend:
    """Finds one object in every image; ``shift`` moves its box, depending on the shape."""

    device = "cpu"

    def __init__(self, name, inputs, score=0.9, shift=lambda shape: 0.0):
        self.name, self.score, self.shift = name, score, shift
        self.spec = ModelSpec("Fake", ("thing",), inputs, OutputSpec(max_per_img=2))
        self.shapes = []

    def infer(self, images, image_sizes):
        self.shapes.append(images.shape[:3])
        batch = len(images)
        mean = images.mean((1, 2, 3), dtype=np.float32) / 64
        boxes = np.zeros((batch, 2, 4), np.float32)
        boxes[:, 0, 2:] = 20 + mean[:, None] + self.shift(images.shape)
        scores = np.zeros((batch, 2), np.float32)
        scores[:, 0] = self.score
        found = self.score > 0
        labels = np.full((batch, 2), -1, np.int32)
        labels[:, 0] = 0 if found else -1
        if not found:
            boxes[:] = 0
        return {
            "boxes": boxes,
            "scores": scores,
            "labels": labels,
            "num_dets": np.full(batch, int(found), np.int32),
        }

    def close(self):
        pass


def pictures(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (50 + 7 * i, 70, 3), np.uint8) for i in range(count)]


def compare(inputs, score=0.9, images=5, **candidate):
    reference = Backend("pytorch", replace(inputs, batch=DimRange(1, 1, 64)), score)
    exported = Backend("onnxruntime", inputs, score, **candidate)
    outcome = measure(
        reference, exported, pictures(images), "5 pictures", ParityTolerances(), ("a", "b")
    )
    return outcome, exported


def test_a_static_model_is_compared_once():
    assert plan_runs(STATIC, 10) == [ParityRun(None, 1, 10)]
    assert plan_runs(replace(STATIC, batch=FIXED(12)), 10) == [ParityRun(None, 12, 10)]


def test_a_dynamic_batch_is_compared_at_its_largest_too():
    runs = plan_runs(replace(STATIC, batch=DimRange(1, 2, 64)), 10)
    assert runs == [ParityRun(None, 2, 10), ParityRun(None, 8, 3)]


def test_dynamic_sizes_are_compared_at_the_extremes():
    assert plan_runs(DYNAMIC, 2) == [
        ParityRun(None, 2, 2),
        ParityRun((32, 32), 8, 2),
        ParityRun((64, 96), 2, 2),
        ParityRun((128, 160), 1, 2),
    ]


def test_an_optimal_size_that_is_the_largest_is_compared_once():
    inputs = InputSpec(FIXED(1), DimRange(32, 160, 160), DimRange(32, 160, 160), scale=(160, 160))
    assert plan_runs(inputs, 5) == [
        ParityRun(None, 1, 5),
        ParityRun((32, 32), 1, 3),
        ParityRun((160, 160), 1, 3),
    ]


def test_equal_models_pass_at_every_shape():
    outcome, exported = compare(DYNAMIC)
    assert outcome.passed and not outcome.reasons
    assert {(2, 64, 96), (8, 32, 32), (1, 128, 160)} <= set(exported.shapes)
    summary = outcome.summary()
    assert summary["passed"] and summary["image_source"] == "5 pictures"
    assert [run["input_size"] for run in summary["runs"]] == [None, [32, 32], [64, 96], [128, 160]]
    assert [run["images"] for run in summary["runs"]] == [5, 3, 3, 3]


@pytest.mark.parametrize(
    ("shape", "place"), [((8, 32, 32, 3), "input 32x32"), ((1, 128, 160, 3), "input 128x160")]
)
def test_a_difference_at_one_size_alone_fails_and_is_located(shape, place):
    outcome, _ = compare(DYNAMIC, shift=lambda found: 0.2 * (found == shape))
    assert not outcome.passed
    assert len(outcome.reasons) >= 1
    assert all(reason.startswith(place) for reason in outcome.reasons)


def test_rows_that_depend_on_their_batch_fail():
    outcome, _ = compare(DYNAMIC, shift=lambda shape: 0.2 * (shape[0] > 1))
    assert any("batch" in reason for reason in outcome.reasons)


def test_an_unsure_model_is_compared_at_its_own_scores():
    outcome, _ = compare(STATIC, score=0.01)
    assert outcome.passed and not outcome.nothing_found
    assert outcome.summary()["runs"][0]["matched"] == 5
    outcome, _ = compare(STATIC, score=0.01, shift=lambda shape: 0.2)
    assert not outcome.passed


def test_finding_nothing_at_all_is_no_proof():
    outcome, _ = compare(STATIC, score=0.0)
    assert not outcome.passed and outcome.nothing_found
    assert "nothing compared" in outcome.reasons[0]


class MaskBackend(Backend):
    """Gives a mask of half of the box, whose logits ``mask_shift`` moves."""

    mask_shift = 0.0

    def infer(self, images, image_sizes):
        outputs = super().infer(images, image_sizes)
        logits = np.where(np.arange(28) < 14, 4.0, -4.0).astype(np.float32)
        masks = np.zeros((len(images), 2, 28, 28), np.float32)
        masks[:, 0] = logits + self.mask_shift
        return outputs | {"masks": masks}


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (0.01, True), (0.2, False)])
def test_masks_are_compared_and_recorded(shift, passed):
    reference, exported = MaskBackend("pytorch", STATIC), MaskBackend("onnxruntime", STATIC)
    exported.mask_shift = shift
    outcome = measure(
        reference, exported, pictures(3), "3 pictures", ParityTolerances(), ("a", "b")
    )
    assert outcome.passed == passed
    summary = outcome.summary()
    steepest = shift * 0.0177  # the slope of the sigmoid at 4
    assert summary["max_mask_probability_error"] == pytest.approx(steepest, rel=0.15)
    assert summary["min_pasted_mask_iou"] == pytest.approx(1, abs=0.05)
    assert summary["explained"] == 0
    text = io.StringIO()
    _print_parity(Console(file=text, width=80), outcome)
    assert "masks: largest probability error" in text.getvalue()
    assert "…" not in text.getvalue().split("masks:")[0]
