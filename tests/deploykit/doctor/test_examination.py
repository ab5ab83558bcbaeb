import json
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import parser

from deploykit.doctor import probes
from deploykit.doctor.examination import ANSWER, Probe, examine
from deploykit.errors import MissingDependencyError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that probes import; each test writes what it does when imported."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_working_parts_say_their_version():
    import cv2

    (finding,) = examine([Probe("OpenCV", "opencv", needed=True)])
    assert finding.status == "works"
    assert finding.detail.startswith(cv2.__version__)
    assert finding.needed
    assert finding.to_dict()["name"] == "OpenCV"


def test_a_crash_is_a_finding_and_the_others_are_tried(package):
    package("cv2", f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    seen = []
    findings = examine(
        [Probe("OpenCV", "opencv"), Probe("engine", "onnxruntime")], report=seen.append
    )
    assert findings == seen
    assert [finding.status for finding in findings] == ["failed", "works"]
    assert "killed by SIGSEGV" in findings[0].detail


def test_a_broken_library_is_a_finding(package):
    package("cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    (finding,) = examine([Probe("OpenCV", "opencv")])
    assert finding.status == "failed"
    assert "libGL.so.1" in finding.detail
    assert finding.advice


def test_a_wrong_result_is_a_failure(package):
    package(
        "cv2",
        "__version__ = '0'\nIMREAD_COLOR = 1\n"
        "def imencode(*_): return True, b''\ndef imdecode(*_): return None\n",
    )
    (finding,) = examine([Probe("OpenCV", "opencv")])
    assert finding.status == "failed"
    assert "JPEG" in finding.detail


def test_a_probe_that_hangs_is_a_failure(package):
    package("cv2", "import time; time.sleep(60)")
    (finding,) = examine([Probe("OpenCV", "opencv")], timeout=3)
    assert finding.status == "failed"
    assert "no answer within 3 s" in finding.detail


def test_a_library_may_print(package):
    package("faster_coco_eval", f"print('hello'); print('{ANSWER}', 'not json'.upper(), end=' ')")
    (finding,) = examine([Probe("metrics", "coco")])
    assert finding.status == "works"


def test_a_missing_package_is_absent_and_the_extra_is_named():
    error = MissingDependencyError(
        "Training needs the package 'torch', which is not installed. "
        "Install it with: pip install 'deploykit[train]'"
    )
    answer = probes.failure(error)
    assert answer.status == "absent"
    assert answer.detail == "Training needs the package 'torch', which is not installed"
    assert "deploykit[train]" in answer.advice


def test_the_model_for_execution_providers():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        "tiny (float[4,4] x) => (float[4,4] y) { m = MatMul(x, x) y = Relu(m) }"
    )
    assert onnx.load_from_string(probes.TINY_MODEL) == model


def test_a_provider_that_computes_wrongly_fails(monkeypatch):
    import onnxruntime

    session = onnxruntime.InferenceSession

    class Wrong(session):
        def run(self, *args):
            return [np.zeros((4, 4), np.float32)]

    assert probes.run_probe("provider", "CPUExecutionProvider").status == "works"
    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    assert probes.run_probe("provider", "CPUExecutionProvider").status == "failed"


def test_a_provider_that_is_not_really_there_is_absent(monkeypatch):
    import onnxruntime

    session = onnxruntime.InferenceSession

    def falls_back(model, options, providers):
        return session(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    answer = probes.run_probe("provider", "CUDAExecutionProvider")
    assert answer.status == "absent"
    assert "fell back to CPUExecutionProvider" in answer.detail


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    from deploykit.cli import main

    target = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    statuses = {each["name"]: each["status"] for each in report["findings"]}
    assert statuses["OpenCV"] == statuses["ONNX Runtime"] == "works"
    assert statuses["ONNX Runtime, CPUExecutionProvider"] == "works"
    assert "failed" not in statuses.values()
    assert len(statuses) == len(report["findings"])
    text = capsys.readouterr().out
    assert "everything that is installed works" in text
    assert all(name in text for name in statuses)


@pytest.mark.parametrize("missing", [True, False])
def test_what_is_needed_decides_the_verdict(missing, monkeypatch, capsys):
    from deploykit.cli import main
    from deploykit.doctor import examination

    status = "absent" if missing else "works"
    answers = {
        "opencv": probes.Answer(status, "detail", "advice"),
        "torch": probes.Answer("absent", "not installed", "install it"),
    }
    monkeypatch.setattr(
        probes, "all_probes", lambda: [Probe("OpenCV", "opencv", needed=True), Probe("T", "torch")]
    )
    monkeypatch.setattr(
        examination,
        "_run",
        lambda probe, timeout: examination.Finding(
            probe.name, *answers[probe.key], needed=probe.needed
        ),
    )
    assert main(["doctor"]) == int(missing)
    assert ("without: OpenCV" in capsys.readouterr().out) == missing
