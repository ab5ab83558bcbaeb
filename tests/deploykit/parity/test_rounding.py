"""Differences that rounding decides are told from real ones by runs of the reference with noise."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.parity import ParityTolerances, compare
from deploykit.parity.matching import DetectionRows
from deploykit.parity.rounding import RUNS, RoundingRuns

SURE = [(40.0 * i, 0, 40.0 * i + 20, 20, 0.9 - 0.1 * i, 0) for i in range(4)]
# Two overlapping boxes (IoU 0.82) of nearly the same score: NMS keeps one of them.
FIRST, SECOND = (2, 30, 22, 50, 0.4, 1), (4, 30, 24, 50, 0.40001, 1)
FAR = (2, 80, 22, 100, 0.4, 1)


@pytest.fixture
def compare_rows(fakes):
    """Compare two answers for one image; ``noisy`` are the reference's, run by run, repeated."""

    def run(reference, candidate, noisy=None, tolerances=None, **options):
        models = [
            fakes.Detector({7: fakes.rows_of(*sorted(rows, key=lambda row: -row[4]))}, scale=1)
            for rows in (reference, candidate)
        ]
        calls = []
        if noisy is not None:

            def infer_with_noise(images, image_sizes, noise, seed):
                calls.append((images.shape, noise, seed))
                rows = noisy[seed % len(noisy)]
                outputs = fakes.rows_of(*sorted(rows, key=lambda row: -row[4]))
                return {name: array[None] for name, array in outputs.items()}

            models[0].backend.infer_with_noise = infer_with_noise
        report = compare(*models, [fakes.image_of(7, 120, 160)], tolerances, **options)
        return report, calls

    return run


def explained(report):
    (image,) = report.images
    return [(item.side, item.score) for item in image.agreement.explained]


def test_a_swap_of_nearly_tied_boxes_is_explained_and_reported(compare_rows):
    reference, candidate = [*SURE, FIRST], [*SURE, SECOND]
    report, calls = compare_rows(reference, candidate, [reference, candidate])
    assert report.passed
    assert explained(report) == [
        ("reference", pytest.approx(0.4)),
        ("candidate", pytest.approx(0.40001)),
    ]
    numbers = report.statistics()
    assert (numbers["matched"], numbers["unmatched"], numbers["explained"]) == (4, 0, 2)
    assert numbers["box_error_px"]["max"] == 0
    assert "2 detections differ where rounding decides" in report.notes[0]
    assert len(report.to_dict()["images"][0]["explained"]) == 2
    assert report.summary()["explained"] == 2
    assert calls == [((1, 120, 160, 3), 1e-6, seed) for seed in range(RUNS)]


def test_the_same_swap_fails_when_the_reference_is_sure_of_its_choice(compare_rows):
    reference, candidate = [*SURE, FIRST], [*SURE, SECOND]
    report, _ = compare_rows(reference, candidate, [reference])
    assert report.reasons == ("box error above 0.1 px in 1 image: 2 px in image 0",)
    assert explained(report) == []


def test_a_moved_box_of_equal_score_is_never_explained(compare_rows):
    # The reference wavers between two boxes; the candidate has neither of them.
    moved = (3, 30, 23, 50, 0.4, 1)
    report, _ = compare_rows(
        [*SURE, FIRST], [*SURE, moved], [[*SURE, FIRST], [*SURE, SECOND], SURE]
    )
    assert not report.passed and explained(report) == []


def test_half_of_a_difference_explains_none_of_it(compare_rows):
    # That the reference may lack its box does not excuse what the candidate has in its place.
    report, _ = compare_rows([*SURE, FIRST], [*SURE, SECOND], [[*SURE, FIRST], SURE])
    assert report.reasons == ("box error above 0.1 px in 1 image: 2 px in image 0",)


@pytest.mark.parametrize("side", [0, 1])
def test_a_detection_of_one_side_only(compare_rows, side):
    rows = [SURE, [*SURE, FAR]]
    reference, candidate = rows[::-1] if side == 0 else rows
    wavering, _ = compare_rows(reference, candidate, rows)
    assert wavering.passed and len(explained(wavering)) == 1
    firm, _ = compare_rows(reference, candidate, [reference])
    assert firm.reasons == ("unmatched detections in 1 image: 1 in image 0",)


def test_a_flip_of_the_class(compare_rows):
    other = (*FAR[:5], 2)
    rows = [[*SURE, FAR], [*SURE, other]]
    assert compare_rows(*rows, rows)[0].passed
    assert not compare_rows(*rows, [rows[0]])[0].passed
    assert not compare_rows(*rows, [rows[0], SURE])[0].passed


def test_noise_that_changes_everything_proves_nothing(compare_rows):
    reference, candidate = [*SURE, FIRST], [*SURE, SECOND]
    shaken = [(x1, y1, x2 + 0.08, y2, score, label) for x1, y1, x2, y2, score, label in candidate]
    report, _ = compare_rows(reference, candidate, [shaken])
    assert not report.passed and explained(report) == []


def test_without_noise_nothing_is_explained(compare_rows):
    reference, candidate = [*SURE, FIRST], [*SURE, SECOND]
    assert not compare_rows(reference, candidate)[0].passed
    off = ParityTolerances(explained=0)
    report, calls = compare_rows(reference, candidate, [reference, candidate], off)
    assert not report.passed and calls == []


def test_equal_models_need_no_runs_with_noise(compare_rows):
    report, calls = compare_rows([*SURE, FIRST], [*SURE, FIRST], [SURE])
    assert report.passed and calls == []


def test_more_than_a_few_explained_differences_fail(fakes):
    def models(images):
        answers = [{key: fakes.rows_of(*SURE, tied) for key in images} for tied in (FIRST, SECOND)]
        detectors = [fakes.Detector(each, scale=1) for each in answers]

        def infer_with_noise(pixels, image_sizes, noise, seed):
            outputs = answers[seed % 2][int(pixels[0, 0, 0, 0])]
            return {name: array[None] for name, array in outputs.items()}

        detectors[0].backend.infer_with_noise = infer_with_noise
        return detectors

    pictures = [fakes.image_of(key, 120, 160) for key in (1, 2, 3)]
    few = compare(*models((1, 2)), pictures[:2])
    assert few.passed and few.statistics()["explained"] == 4
    many = compare(*models((1, 2, 3)), pictures)
    assert many.reasons == (
        "6 of 30 detections differ where rounding decides, more than 1 % of them",
    )
    assert compare(*models((1, 2, 3)), pictures, ParityTolerances(explained=0.2)).passed


def rows_of(*detections):
    values = np.array(detections, np.float64).reshape(-1, 6)
    return DetectionRows(values[:, :4], values[:, 4], values[:, 5].astype(np.int64))


def test_undecided_means_that_some_runs_have_it_and_others_do_not():
    scale = np.ones(4)
    tolerances = ParityTolerances()
    first, second = rows_of(*SURE, FIRST), rows_of(*SURE, SECOND)
    runs = RoundingRuns([first, second])
    found = rows_of(SURE[0], FIRST, SECOND, FAR)
    assert runs.undecided(found, scale, tolerances).tolist() == [False, True, True, False]
    assert not RoundingRuns([first]).undecided(found, scale, tolerances).any()
    nearly = rows_of((2.09, 30, 22, 50, 0.40001, 1), (2.11, 30, 22, 50, 0.4, 1))
    assert runs.undecided(nearly, scale, tolerances).tolist() == [True, False]
    # The tolerance is in pixels of the network input.
    assert not runs.undecided(nearly, 2 * scale, tolerances).any()


def test_runs_that_repeat_too_little_are_left_out():
    reference = rows_of(*SURE)
    shaken = rows_of(*[(*row[:4], row[4] + 6e-4, row[5]) for row in SURE])
    kept = RoundingRuns.of(reference, [reference, shaken], np.ones(4), ParityTolerances())
    assert kept.runs == [reference, reference]
    # What lies below the count threshold does not matter.
    faint = rows_of(*SURE, (0, 0, 1, 1, 0.01, 0))
    kept = RoundingRuns.of(faint, [reference], np.ones(4), ParityTolerances())
    assert kept.runs == [faint, reference]
