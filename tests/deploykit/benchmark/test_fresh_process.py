from __future__ import annotations

import json
import subprocess

import pytest

import deploykit.runtimes.detector
from deploykit.benchmark import fresh_process
from deploykit.benchmark.fresh_process import FreshProcess, ModelRequest, main, probe
from deploykit.errors import BackendError

REQUEST = ModelRequest("model.onnx", 2, (64, 96), (30, 40), "cpu", 1)


def test_the_model_of_the_request_is_loaded_called_ten_times_and_reported(
    simulation, monkeypatch, capsys
):
    opened = []
    detector = simulation.detector("a", 1)

    def open_detector(path, **options):
        opened.append((path, options))
        return detector

    monkeypatch.setattr(deploykit.runtimes.detector, "Detector", open_detector)

    def run_here(arguments):
        assert arguments[:2] == ["-m", "deploykit.benchmark.fresh_process"]
        code = main(arguments[2:])
        return subprocess.CompletedProcess(arguments, code, capsys.readouterr().out, "")

    found = probe(REQUEST, run_here)
    assert opened == [("model.onnx", {"device": "cpu", "input_size": (64, 96), "num_threads": 1})]
    assert [len(call) for call in detector.calls] == [2] * 10
    assert detector.closed
    assert found.load_seconds >= 0 and found.first_call_seconds >= 0
    assert found.device_mib is None
    assert 0 < found.baseline_mib <= found.loaded_mib <= found.peak_mib
    assert found.model_mib == found.peak_mib - found.baseline_mib


def test_memory_that_the_system_hides_is_none():
    assert FreshProcess(1.0, 1.0, None, None, None, None).model_mib is None


def test_the_line_is_found_among_other_output():
    values = {
        "load_seconds": 1.0,
        "first_call_seconds": 0.5,
        "baseline_mib": 80.0,
        "loaded_mib": 100.0,
        "peak_mib": 120.0,
        "device_mib": 300,
    }

    def run(arguments):
        out = f"a library says hello\nfresh process: {json.dumps(values)}\nbye\n"
        return subprocess.CompletedProcess(arguments, 0, out, "")

    assert probe(REQUEST, run) == FreshProcess(**values)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [("warning\nout of memory\n", "failed: out of memory"), ("", "failed: exit code -9")],
)
def test_a_process_that_dies_is_an_error(stderr, message):
    def run(arguments):
        return subprocess.CompletedProcess(arguments, -9, "", stderr)

    with pytest.raises(BackendError, match=message):
        probe(REQUEST, run)


def test_a_real_process_reports_what_is_wrong(tmp_path):
    request = ModelRequest(str(tmp_path / "missing.onnx"), 1, None, (30, 40))
    with pytest.raises(BackendError, match=r"this is missing: .*missing\.onnx"):
        probe(request)


def test_the_child_prints_one_line_for_bad_input(capsys):
    arguments = json.dumps(
        {"path": "missing.onnx", "batch_size": 1, "input_size": None, "image_size": [8, 8]}
    )
    assert fresh_process.main([arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
