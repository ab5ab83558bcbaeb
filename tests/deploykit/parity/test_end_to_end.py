"""Real models through the real ``Detector``: a checkpoint, a copy with a fault, an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deploykit.benchmark.fresh_process import ModelRequest, probe
from deploykit.cli import main
from deploykit.parity import compare
from deploykit.runtimes.detector import Detector
from deploykit.training.checkpoint import read_checkpoint, write_checkpoint

CHINA = Path(__file__).parents[2] / "data" / "china.jpg"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path):
    """Write crops of a photograph, of several sizes and shapes."""
    from deploykit.image_io import read_image, write_image

    image = read_image(CHINA)
    for number, (top, left, height, width) in enumerate(
        [(0, 0, 427, 640), (100, 50, 200, 150), (0, 300, 128, 128), (200, 0, 90, 400)]
    ):
        crop = image[top : top + height, left : left + width].copy()
        write_image(tmp_path / "photos" / f"{number}.png", crop)
    return tmp_path / "photos"


def test_a_checkpoint_agrees_with_itself_to_the_last_bit(small_checkpoint, photos):
    images = sorted(photos.iterdir())
    with Detector(small_checkpoint) as reference, Detector(small_checkpoint) as candidate:
        report = compare(reference, candidate, images)
    assert report.passed and report.notes == ()
    numbers = report.statistics()
    assert numbers["raw"]["identical_images"] == numbers["images_with_equal_counts"] == 4
    assert numbers["matched"] == numbers["reference_detections"] > 4


def test_a_nudged_weight_is_found(small_checkpoint, photos, tmp_path, capsys):
    checkpoint = read_checkpoint(small_checkpoint)
    for level in range(3):
        checkpoint["state_dict"][f"bbox_head.rtm_cls.{level}.bias"] += 0.1
    faulty = tmp_path / "faulty.pth"
    write_checkpoint(faulty, checkpoint)
    out = tmp_path / "parity.json"
    arguments = [str(small_checkpoint), str(faulty), "--images", str(photos), "--json", str(out)]
    assert main(["parity", *arguments]) == 1
    assert "score error above 0.001 in" in capsys.readouterr().out
    numbers = json.loads(out.read_text())["overall"]
    # The slope of the sigmoid is at most 1/4.
    assert 1e-3 < numbers["score_error"]["max"] <= 0.025 + 1e-6


@pytest.mark.slow
def test_an_export_agrees_in_batches_and_is_benchmarked(small_checkpoint, photos, tmp_path, capsys):
    onnx, out = tmp_path / "small.onnx", tmp_path / "parity.json"
    from deploykit.exporters.onnx_exporter import export_onnx
    from deploykit.exporters.shape_request import ShapeRequest
    from deploykit.spec import DimRange

    side = DimRange.fixed(128)
    export_onnx(small_checkpoint, onnx, shape=ShapeRequest(side, side, DimRange(1, 2, 4)))
    models = [str(small_checkpoint), str(onnx)]
    arguments = ["--images", str(photos), "--threads", "1"]
    assert main(["parity", *models, *arguments, "--batch-size", "4", "--json", str(out)]) == 0
    numbers = json.loads(out.read_text())["overall"]
    assert numbers["images_with_equal_counts"] == 4 and numbers["matched"] > 4
    assert numbers["batch_invariance"]["failed_images"] == 0

    out = tmp_path / "latency.json"
    arguments += ["--rounds", "2", "--warmup", "1", "--min-time", "0", "--json", str(out)]
    assert main(["benchmark", *models, *arguments, "--no-memory", "--batch", "1,4"]) == 0
    assert "ratio to the first" in capsys.readouterr().out
    workloads = json.loads(out.read_text())["workloads"]
    assert [one["batch_size"] for one in workloads] == [1, 4]
    for model in (model for workload in workloads for model in workload["models"]):
        assert model["input_shapes"] == [[128, 128]]
        assert 0 < model["overhead"] < 1

    fresh = probe(ModelRequest(str(onnx), 2, None, (90, 120), "cpu", 1))
    assert 0 < fresh.model_mib < fresh.peak_mib
    assert fresh.load_seconds > 0 and fresh.first_call_seconds > 0
