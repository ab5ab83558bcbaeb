from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from deploykit.parity import compare
from deploykit.parity.report import ErrorStatistics
from deploykit.spec import ModelSpec

CAT = (2, 3, 8, 9, 0.9, 0)


@pytest.fixture
def report(fakes):
    """Three images: equal, moved by 0.25 px, and one that only the candidate finds."""
    reference = {1: fakes.rows_of(CAT), 2: fakes.rows_of(CAT), 3: fakes.rows_of()}
    candidate = {
        1: fakes.rows_of(CAT),
        2: fakes.rows_of((2.25, 3, 8, 9, 0.9, 0)),
        3: fakes.rows_of(CAT),
    }
    images = [fakes.image_of(key) for key in reference]
    return compare(fakes.Detector(reference), fakes.Detector(candidate), images, batch_size=2)


def text_of(report, width=80):
    stream = StringIO()
    Console(file=stream, width=width).print(report.render())
    return stream.getvalue()


def test_statistics_equal_numpys(fakes):
    values = [np.array([0.5, 0.1]), np.array([]), np.array([0.3])]
    merged = np.concatenate(values)
    assert ErrorStatistics.of(values) == ErrorStatistics(
        merged.mean(), np.percentile(merged, 99), 0.5
    )
    assert ErrorStatistics.of([]) == ErrorStatistics(0.0, 0.0, 0.0)


def test_the_worst_images_come_first_and_identical_ones_not_at_all(report):
    assert [image.name for image in report.worst_images()] == ["image 2", "image 1"]
    assert len(report.worst_images(1)) == 1


def test_the_json_holds_verdict_numbers_and_every_image(report, tmp_path):
    report.write_json(tmp_path / "parity.json")
    data = json.loads((tmp_path / "parity.json").read_text())
    assert data == json.loads(json.dumps(report.to_dict()))
    assert data["version"] == 1
    assert data["passed"] is False
    assert data["reasons"] == [
        "box error above 0.1 px in 1 image: 0.25 px in image 1",
        "unmatched detections in 1 image: 1 in image 2",
    ]
    assert data["overall"]["images_failed"] == 2
    assert data["overall"]["reference_detections"] == 2
    assert data["overall"]["candidate_detections"] == 3
    assert [image["failures"] for image in data["images"]] == [
        [],
        ["box error: 0.25 px"],
        ["unmatched detections: 1"],
    ]
    assert data["images"][2]["unmatched"] == [
        {"side": "candidate", "box": [4, 6, 16, 18], "score": pytest.approx(0.9), "label": 0}
    ]
    assert data["images"][1]["box_error_px"]["max"] == 0.25
    assert data["images"][1]["batch_raw"]["identical_images"] == 1
    assert data["tolerances"]["margin"] == data["tolerances"]["score"] == 1e-3


def test_the_summary_is_small_and_fits_into_a_spec(report, fakes):
    summary = report.summary()
    assert summary["passed"] is False and summary["max_box_error_px"] == 0.25
    assert (summary["images"], summary["matched"], summary["unmatched"]) == (3, 2, 1)
    assert summary["max_batch_box_error_px"] == 0.0
    spec = replace(fakes.Detector({}).spec, parity=summary)
    assert ModelSpec.from_json(spec.to_json()).parity == summary


def test_the_table_says_what_was_compared_and_why_it_failed(report):
    text = text_of(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "box (px of the network input)" in text and "2.50e-01" in text
    assert "batch 2 to" in text
    assert "parity: FAIL" in text and "parity: PASS" not in text
    assert "- unmatched detections in 1 image: 1 in image 2" in text


def test_the_table_of_a_pass(fakes):
    detector = fakes.Detector({1: fakes.rows_of(CAT)})
    text = text_of(compare(detector, detector, [fakes.image_of(1)], names=("[a].pth", "b.onnx")))
    assert "parity: PASS" in text and "FAIL" not in text
    assert "[a].pth" in text
    assert "Largest differences" not in text
