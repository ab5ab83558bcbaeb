from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from deploykit.errors import BackendError, MediaError, UsageError
from deploykit.image_io import write_image
from deploykit.parity import ParityTolerances, compare
from deploykit.spec import DimRange

CAT = (2, 3, 8, 9, 0.9, 0)
DOG = (1, 1, 9, 9, 0.5, 1)


@pytest.fixture
def compare_rows(fakes):
    """Compare what two models say about one image; the network sees it at half size."""

    def run(reference, candidate, tolerances=None, **options):
        first = fakes.Detector({7: fakes.rows_of(*reference)})
        second = fakes.Detector({7: fakes.rows_of(*candidate)})
        return compare(first, second, [fakes.image_of(7)], tolerances, **options)

    return run


def reasons(report):
    return " | ".join(report.reasons)


def test_equal_models_pass_without_any_difference(compare_rows):
    report = compare_rows([CAT, DOG], [CAT, DOG])
    assert report.passed and report.reasons == () and report.notes == ()
    numbers = report.statistics()
    assert numbers["matched"] == numbers["reference_detections"] == 2
    assert numbers["raw"]["identical_images"] == numbers["images_with_equal_counts"] == 1
    assert numbers["box_error_px"] == {"mean": 0.0, "p99": 0.0, "max": 0.0}
    assert report.worst_images() == []


def test_box_errors_are_judged_in_the_network_frame_and_given_in_both(compare_rows):
    moved = (2, 3, 8.125, 9, 0.9, 0)
    report = compare_rows([CAT, DOG], [moved, DOG])
    numbers = report.statistics()
    assert numbers["box_error_px"] == {
        "mean": 0.0625,
        "p99": pytest.approx(0.12375),
        "max": 0.125,
    }
    assert numbers["box_error_original_px"]["max"] == 0.25
    assert report.reasons == ("box error above 0.1 px in 1 image: 0.125 px in image 0",)
    assert compare_rows([CAT], [moved], ParityTolerances(box=0.125)).passed


def test_score_errors(compare_rows):
    report = compare_rows([CAT], [(2, 3, 8, 9, 0.89, 0)])
    assert reasons(report) == "score error above 0.001 in 1 image: 1.00e-02 in image 0"
    assert compare_rows([CAT], [(2, 3, 8, 9, 0.89, 0)], ParityTolerances(score=0.011)).passed


def test_a_label_flip_fails_and_is_described(compare_rows):
    report = compare_rows([CAT], [(2, 3, 8, 9, 0.8, 2)])
    assert reasons(report) == "label flips in 1 image: 1 in image 0"
    (flip,) = report.images[0].agreement.label_flips
    assert (flip.reference_label, flip.candidate_label) == (0, 2)
    assert flip.box == (4, 6, 16, 18)  # original image: twice the network input
    assert (flip.reference_score, flip.candidate_score) == pytest.approx((0.9, 0.8))


@pytest.mark.parametrize(
    ("reference", "candidate", "side"),
    [([CAT, DOG], [CAT], "reference"), ([CAT], [CAT, DOG], "candidate")],
)
def test_a_detection_of_one_side_only_fails(compare_rows, reference, candidate, side):
    report = compare_rows(reference, candidate)
    assert reasons(report) == "unmatched detections in 1 image: 1 in image 0"
    (lone,) = report.images[0].agreement.unmatched
    assert (lone.side, lone.box, lone.score, lone.label) == (side, (2, 2, 18, 18), 0.5, 1)


def at(score, label=0):
    return (2, 3, 8, 9, score, label)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ([CAT, at(0.0503, 1)], [CAT, at(0.0497, 1)]),  # both there, one counts
        ([CAT, at(0.0503, 1)], [CAT]),  # the other side's own threshold cut it
        ([CAT], [CAT, at(0.0509, 1)]),
    ],
)
def test_cases_at_the_count_threshold_are_listed_and_do_not_fail(
    compare_rows, reference, candidate
):
    report = compare_rows(reference, candidate)
    assert report.passed
    assert len(report.boundary) == 1
    assert report.equal_counts == 0
    assert "1 boundary cases" in report.notes[0]


def test_beyond_the_margin_a_missing_detection_fails(compare_rows):
    assert not compare_rows([CAT, at(0.052, 1)], [CAT]).passed
    assert compare_rows([CAT, at(0.052, 1)], [CAT], ParityTolerances(score_margin=3e-3)).passed


def test_which_of_equal_scores_gets_the_last_row_is_a_boundary_case(compare_rows):
    boxes = [(10.0 * i, 0, 10.0 * i + 8, 8) for i in range(9)]  # one more than there are rows
    full = [(*box, 0.9 if i < 7 else 0.4, 0) for i, box in enumerate(boxes)]
    report = compare_rows(full[:8], [*full[:7], full[8]])
    assert report.passed
    assert len(report.boundary) == 2
    # Not so where the other side had a row left, or where the score was clearly better.
    assert not compare_rows(full[:7], [*full[:6], full[8]]).passed
    better = (*boxes[8], 0.41, 0)
    assert not compare_rows(full[:8], [*full[:7], better]).passed


def test_boundary_cases_alone_are_no_comparison(compare_rows):
    boxes = [(10.0 * i, 0, 10.0 * i + 8, 8) for i in range(16)]
    rows = [(*box, 0.4, 0) for box in boxes]
    report = compare_rows(rows[:8], rows[8:])
    assert reasons(report) == "nothing compared: every detection is a boundary case"


def test_a_pair_that_crosses_the_threshold_beyond_the_margin_fails(compare_rows):
    wide = ParityTolerances(score=0.1, score_margin=1e-3)
    report = compare_rows([CAT, at(0.06, 1)], [CAT, at(0.04, 1)], wide)
    assert reasons(report).startswith("detections across the count threshold in 1 image: 1 in")
    assert compare_rows([CAT, at(0.06, 1)], [CAT, at(0.04, 1)], ParityTolerances(score=0.1)).passed


def test_rows_below_the_threshold_do_not_decide(compare_rows):
    report = compare_rows([CAT, at(0.04, 1)], [CAT, (0, 0, 1, 1, 0.01, 2)])
    assert report.passed
    assert report.statistics()["raw"]["labels"] == 1


def test_nothing_compared_is_not_a_pass(compare_rows):
    report = compare_rows([at(0.01)], [])
    assert reasons(report) == (
        "nothing compared: neither model has a detection with a score of 0.05 or more in 1 image"
    )
    assert compare_rows([at(0.01)], [], ParityTolerances(allow_empty=True)).passed


def test_a_swap_of_rows_changes_the_raw_outputs_and_not_the_verdict(compare_rows):
    first, second = at(0.7), (20, 20, 28, 28, 0.7, 0)
    report = compare_rows([first, second], [second, first])
    assert report.passed
    raw = report.statistics()["raw"]
    assert (raw["order_changes"], raw["identical_images"], raw["boxes"]) == (2, 0, 20.0)


def break_boxes(outputs):
    outputs["boxes"][0, 1] = np.nan


def break_padding(outputs):
    outputs["boxes"][5] = 1


def break_padding_label(outputs):
    outputs["labels"][5] = 0


def break_order(outputs):
    outputs["scores"][:2] = outputs["scores"][1::-1].copy()


def break_label(outputs):
    outputs["labels"][0] = 3


def break_count(outputs):
    outputs["num_dets"] = np.int32(99)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (break_boxes, "1 non-finite values in boxes"),
        (break_padding, "rows past num_dets are not zero"),
        (break_padding_label, "labels past num_dets are not -1"),
        (break_order, "rows are not sorted by descending score"),
        (break_label, "labels 1..3 among the detections, but there are 3 classes"),
        (break_count, "num_dets is 99, outside 0..8"),
    ],
)
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_malformed_outputs_fail_on_either_side(fakes, fault, words, side):
    good = {7: fakes.rows_of(CAT, DOG)}
    bad = {7: fakes.rows_of(CAT, DOG)}
    fault(bad[7])
    answers = (bad, good) if side == "reference" else (good, bad)
    report = compare(*map(fakes.Detector, answers), [fakes.image_of(7)])
    assert f"malformed outputs of the {side} in 1 image: {words} in image 0" in report.reasons
    json.dumps(report.to_dict(), allow_nan=False)


def test_two_models_with_the_same_nan_do_not_agree(fakes):
    answers = {7: fakes.rows_of(CAT, DOG)}
    break_boxes(answers[7])
    report = compare(fakes.Detector(answers), fakes.Detector(answers), [fakes.image_of(7)])
    assert not report.passed


def test_a_row_count_other_than_the_specs_fails(fakes):
    answers = {7: fakes.rows_of(CAT, rows=5)}
    report = compare(fakes.Detector(answers), fakes.Detector(answers), [fakes.image_of(7)])
    assert "5 rows, but the spec says 8" in reasons(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out.pop("labels"), "other gives no output named labels"),
        (lambda out: out.update(scores=out["scores"][:-1]), "output scores of other must have"),
    ],
)
def test_outputs_that_are_not_a_detectors_are_refused(fakes, change, message):
    good, bad = {7: fakes.rows_of(CAT)}, {7: fakes.rows_of(CAT)}
    change(bad[7])
    with pytest.raises(BackendError, match=message):
        compare(
            fakes.Detector(good),
            fakes.Detector(bad),
            [fakes.image_of(7)],
            names=("one", "other"),
        )


def test_models_that_scale_differently_are_compared_in_the_references_frame(fakes):
    half = fakes.Detector({7: fakes.rows_of(CAT)})
    whole = fakes.Detector({7: fakes.rows_of((4, 6, 16, 18.0625, 0.9, 0))}, scale=1)
    report = compare(half, whole, [fakes.image_of(7, 20, 30)])
    assert report.passed
    assert report.statistics()["box_error_px"]["max"] == 0.03125
    assert report.statistics()["box_error_original_px"]["max"] == 0.0625
    assert "different network inputs for 1 image (10x15 and 20x30 for image 0)" in report.notes[0]


def masked(fakes, columns, logit=0.8, box=CAT):
    """A detector that finds ``box`` with a mask of 4x4 cells, of which some columns are set."""
    outputs = fakes.rows_of(box)
    outputs["masks"] = np.zeros((fakes.ROWS, 4, 4), np.float32)
    outputs["masks"][0] = -logit
    outputs["masks"][0, :, :columns] = logit
    return fakes.Detector({7: outputs})


def test_masks_are_compared_by_probability_and_iou(fakes):
    same = compare(masked(fakes, 2), masked(fakes, 2), [fakes.image_of(7)])
    numbers = same.statistics()
    assert same.passed and numbers["mask_iou_min"] == numbers["pasted_mask_iou_min"] == 1.0
    assert numbers["mask_probability_error_max"] == 0
    report = compare(masked(fakes, 2), masked(fakes, 3), [fakes.image_of(7)])
    # Probabilities 0.69 and 0.31. Pasted into 6x6 pixels: 3 columns without two corners (16), and
    # two columns more, of which the second, just at 0.5, falls below it at the ends (26).
    assert report.reasons == (
        "mask probability error above 0.001 in 1 image: 3.80e-01 in image 0",
        "mask IoU below 0.99 in 1 image: 0.6667 in image 0",
        "pasted mask IoU below 0.99 in 1 image: 0.6154 in image 0",
    )
    assert report.summary()["min_mask_iou"] == pytest.approx(2 / 3)


def test_masks_on_one_side_only_fail(fakes):
    bare = compare(masked(fakes, 2), fakes.Detector({7: fakes.rows_of(CAT)}), [fakes.image_of(7)])
    assert "masks in 1 image: not given by both models in the same size" in reasons(bare)
    assert bare.statistics()["mask_iou_min"] is None


def test_the_mask_tolerance_decides_and_the_iou_alone_can_fail(fakes):
    weak = masked(fakes, 2, 0.8), masked(fakes, 2, 0.81)
    report = compare(*weak, [fakes.image_of(7)])
    assert reasons(report) == "mask probability error above 0.001 in 1 image: 2.14e-03 in image 0"
    assert compare(*weak, [fakes.image_of(7)], ParityTolerances(mask_probability=0.01)).passed
    wide = ParityTolerances(mask_probability=0.4)
    assert compare(masked(fakes, 2), masked(fakes, 3), [fakes.image_of(7)], wide).passed
    strict = ParityTolerances(mask_probability=0.38)
    assert "mask IoU" in reasons(
        compare(masked(fakes, 2, 3.0), masked(fakes, 3, 3.0), [fakes.image_of(7)], strict)
    )


def test_mask_pixels_that_neither_model_is_sure_of_count_for_no_iou(fakes):
    # The cells of the third column have a probability of 0.5002 and of 0.4998.
    detectors = masked(fakes, 2), masked(fakes, 2)
    for detector, logit in zip(detectors, (8e-4, -8e-4), strict=True):
        detector.backend.answers[7]["masks"][0, :, 2] = logit
    report = compare(*detectors, [fakes.image_of(7)])
    assert report.passed and report.statistics()["mask_iou_min"] == 1.0
    strict = ParityTolerances(mask_probability=1e-5)
    assert "mask IoU below" in reasons(compare(*detectors, [fakes.image_of(7)], strict))


def test_a_box_error_within_its_tolerance_is_no_error_of_the_mask(fakes):
    # The edge of the mask lies 1e-5 px beside the centre of a column of pixels.
    first, second = (2, 3, 5 - 2e-5, 9, 0.9, 0), (2, 3, 5 + 2e-5, 9, 0.9, 0)
    sharp = {"columns": 2, "logit": 9.0}
    same = compare(masked(fakes, **sharp, box=first), masked(fakes, **sharp, box=second),
                   [fakes.image_of(7)])  # fmt: skip
    assert same.passed and same.statistics()["pasted_mask_iou_min"] == 1.0
    other = masked(fakes, 3, 9.0, second)
    report = compare(masked(fakes, **sharp, box=first), other, [fakes.image_of(7)])
    assert "pasted mask IoU" in reasons(report)


def test_the_mask_of_the_matched_row_is_compared(fakes):
    def answers(order):
        outputs = fakes.rows_of(*[(CAT, (*DOG[:4], 0.9, 1))[i] for i in order])
        outputs["masks"] = np.zeros((fakes.ROWS, 4, 4), np.float32)
        for row, detection in enumerate(order):
            outputs["masks"][row] = -3
            outputs["masks"][row, : detection + 1] = 3
        return fakes.Detector({7: outputs})

    assert compare(answers([0, 1]), answers([1, 0]), [fakes.image_of(7)]).passed


def test_batches_are_full_grouped_by_shape_and_results_keep_their_order(fakes):
    answers = {key: fakes.rows_of((key, 0, key + 5, 5, 0.9, 0)) for key in range(10, 16)}
    images = [fakes.image_of(key, 20 if key % 2 else 40) for key in answers]
    candidate = fakes.Detector(answers)
    calls = []
    report = compare(
        fakes.Detector(answers),
        candidate,
        images,
        batch_size=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert report.passed
    assert [image.name for image in report.images] == [f"image {index}" for index in range(6)]
    assert candidate.backend.batches.count(2) == 4  # 3 images a shape: two batches each
    assert candidate.backend.batches.count(1) == 6
    assert calls == [(done, 6) for done in range(1, 7)]
    invariance = report.statistics()["batch_invariance"]
    assert (invariance["identical_images"], invariance["images"]) == (6, 6)
    assert invariance["failed_images"] == 0


def test_rows_that_influence_one_another_are_found(fakes):
    answers = {key: fakes.rows_of((2, 3, 8, 9, 0.9, 0), rows=1) for key in (10, 11)}
    images = [fakes.image_of(key) for key in answers]
    one_row = {"output": replace(fakes.Detector({}).spec.output, max_per_img=1)}
    report = compare(
        fakes.Detector(answers, **one_row),
        fakes.Detector(answers, leak=0.02, **one_row),
        images,
        batch_size=2,
    )
    assert report.reasons == (
        "box error above 0.1 px in 1 image: 0.2 px in image 1",
        "batch against batch 1: box error above 0.1 px in 1 image: 0.2 px in image 1",
    )
    invariance = report.statistics()["batch_invariance"]
    assert invariance["identical_images"] == 1
    assert invariance["max_box_error_px"] == pytest.approx(0.2, rel=1e-5)


def test_a_batch_is_filled_with_other_content_than_its_images(fakes):
    image = fakes.image_of(7)
    image[:, 0] = 7
    image[:, 10:] = 99
    candidate = fakes.Detector({7: fakes.rows_of(CAT)})
    seen = []
    infer = candidate.backend.infer
    candidate.backend.infer = lambda images, sizes: seen.append(images) or infer(images, sizes)
    assert compare(candidate, candidate, [image], batch_size=3).passed
    (batch,) = (images for images in seen if len(images) == 3)
    assert np.array_equal(batch[1], batch[0][:, ::-1])
    assert not np.array_equal(batch[1], batch[0])


def test_a_static_batch_is_used_and_what_cannot_be_measured_is_said(fakes):
    answers = {7: fakes.rows_of(CAT)}
    candidate = fakes.Detector(answers, batch=(4, 4, 4))
    report = compare(fakes.Detector(answers, batch=(2, 2, 2)), candidate, [fakes.image_of(7)])
    assert report.passed and report.batch_size == 4
    assert candidate.backend.batches == [4]
    assert report.notes == (
        "batch invariance was not measured: the candidate does not take batch size 1 (it takes 4)",
    )


def test_wrong_input_is_refused(fakes, tmp_path):
    detector = fakes.Detector({7: fakes.rows_of(CAT)})
    with pytest.raises(UsageError, match="at least one image"):
        compare(detector, detector, [])
    with pytest.raises(UsageError, match="takes batch size 1:1:8, not 9"):
        compare(detector, detector, [fakes.image_of(7)], batch_size=9)
    other = fakes.Detector({}, classes=("cat",))
    with pytest.raises(UsageError, match=r"different classes.* 3 \(cat, dog, bird\) and 1 \(cat\)"):
        compare(detector, other, [fakes.image_of(7)])
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(MediaError, match=r"broken\.png"):
        compare(detector, detector, [tmp_path / "broken.png"])


def test_images_by_path(fakes, tmp_path):
    write_image(tmp_path / "a.png", fakes.image_of(7))
    detector = fakes.Detector({7: fakes.rows_of(CAT)})
    report = compare(detector, detector, [tmp_path / "a.png"])
    assert report.passed
    assert report.images[0].name == str(tmp_path / "a.png")
    assert report.images[0].size == (20, 30)


@pytest.mark.parametrize(
    "wrong",
    [
        {"box": -1},
        {"score": 2},
        {"box": float("nan")},
        {"box": float("inf")},
        {"count_threshold": -0.1},
        {"match_iou": 0},
    ],
)
def test_tolerances_are_checked(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} "):
        ParityTolerances(**wrong)


def test_the_batch_range_of_the_spec_is_respected(fakes):
    detector = fakes.Detector({7: fakes.rows_of(CAT)}, batch=(2, 4, 8))
    assert detector.spec.input.batch == DimRange(2, 4, 8)
    assert compare(detector, detector, [fakes.image_of(7)]).batch_size == 2
