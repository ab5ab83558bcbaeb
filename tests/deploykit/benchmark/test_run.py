from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from rich.console import Console

from deploykit.benchmark import BenchmarkRequest, MeasurementPlan, run_benchmark
from deploykit.benchmark.fresh_process import FreshProcess
from deploykit.benchmark.machine import Gpu, Machine
from deploykit.benchmark.run import short_names
from deploykit.benchmark.workload_images import artificial_images, describe_images
from deploykit.cli import main
from deploykit.errors import UsageError
from deploykit.image_io import write_image

MACHINE = Machine(
    cpu="Test CPU",
    logical_cores=4,
    usable_cores=2.0,
    memory_mib=8192,
    governor="performance",
    system="Linux-6.1",
    python="CPython 3.11",
    packages={"numpy": "2.2"},
    threads={"opencv": "2"},
    gpus=(Gpu("Test GPU", 16384, "1.2"),),
    load_average=0.1,
)
PLAN = MeasurementPlan(rounds=6, min_seconds=0.0, warmup_calls=1, turn_seconds=0.0)
FRESH = FreshProcess(1.5, 0.25, 100.0, 180.0, 220.5, None)
INFERENCE_MS = {"a.pth": 17, "b.onnx": 7}


@pytest.fixture
def run(simulation):
    """Run a benchmark of ``a.pth`` (17 ms per call) and ``b.onnx`` (7 ms) in simulated time."""
    simulation.opened = []

    def run(models=("a.pth", "b.onnx"), images=simulation.images, plan=PLAN, **options):
        def open_detector(path, input_size):
            detector = simulation.detector(path.name, INFERENCE_MS[path.name])
            simulation.opened.append((path, input_size, detector))
            return detector

        request = BenchmarkRequest(tuple(map(Path, models)), plan=plan, **options)
        return run_benchmark(
            request,
            images,
            clock=simulation.clock,
            open_detector=open_detector,
            probe_model=lambda request: simulation.requests.append(request) or FRESH,
            machine=MACHINE,
        )

    simulation.requests = []
    return run


def text_of(report, width=80):
    stream = StringIO()
    Console(file=stream, width=width).print(report.render())
    return stream.getvalue()


def test_every_workload_is_measured_with_models_opened_once_per_shape(run, simulation):
    report = run(batch_sizes=(1, 4), input_sizes=((64, 64), (32, 32)))
    assert [(one.input_size, one.batch_size) for one in report.workloads] == [
        ((64, 64), 1),
        ((64, 64), 4),
        ((32, 32), 1),
        ((32, 32), 4),
    ]
    assert [(path.name, size) for path, size, _ in simulation.opened] == [
        ("a.pth", (64, 64)),
        ("b.onnx", (64, 64)),
        ("a.pth", (32, 32)),
        ("b.onnx", (32, 32)),
    ]
    assert all(detector.closed for _, _, detector in simulation.opened)
    assert len(simulation.requests) == 8
    assert simulation.requests[2].batch_size == 4 and simulation.requests[2].image_size == (8, 8)


def test_numbers_of_a_workload(run):
    (workload,) = run(batch_sizes=(2,)).workloads
    first, second = workload.results
    # 2 ms per image before, 1 ms per image after.
    assert (first.latency.p50, second.latency.p50) == (23, 13)
    assert {stage: one.mean for stage, one in second.stages.items()} == {
        "preprocess": 4,
        "inference": 7,
        "postprocess": 2,
    }
    assert second.overhead == pytest.approx(6 / 13)
    assert workload.images_per_second(second) == pytest.approx(2000 / 13)
    ratio = workload.ratios[1]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((13 / 23,) * 3)
    assert workload.title == "batch 2, network input 8x8"
    assert second.drift == 0


def test_a_model_that_slows_down_is_noted(run, simulation, monkeypatch):
    monkeypatch.setitem(INFERENCE_MS, "a.pth", lambda call: 17 if call < 20 else 40)
    report = run(models=["a.pth"], plan=replace(PLAN, rounds=20))
    assert any("the median changed by +115%" in note for note in report.notes)
    assert any("20 calls were timed" in note for note in report.notes)


def test_a_steady_run_needs_no_note(run):
    assert run(plan=replace(PLAN, rounds=100)).notes == ()


def test_rounds_that_a_time_limit_cut_are_noted(run):
    report = run(plan=replace(PLAN, rounds=100, max_seconds=0.3))
    assert (
        "network input 8x8: ended after 6 of 100 rounds at the time limit of 0.3 s"
        in (report.notes[0])
    )


def test_notes_on_a_busy_machine_artificial_images_and_a_restless_model(simulation):
    report = run_benchmark(
        BenchmarkRequest((Path("a.pth"),), plan=PLAN, fresh_processes=False),
        clock=simulation.clock,
        open_detector=lambda path, size: simulation.detector("a", lambda call: 1.3**call),
        machine=replace(MACHINE, load_average=1.5),
    )
    notes = " | ".join(report.notes)
    assert "the images are artificial" in notes
    assert "busy at the start: load 1.5 on 2 cores" in notes
    assert "the latency had not settled after" in notes
    assert report.images == "8 artificial images, 1280x720"
    assert report.workloads[0].results[0].fresh is None


def test_the_json_holds_everything_and_the_calls_give_the_summary_again(run, tmp_path):
    report = run()
    report.write_json(tmp_path / "benchmark.json")
    data = json.loads((tmp_path / "benchmark.json").read_text())
    assert data["version"] == 1
    assert data["images"] == "3 real images, 8x8" and data["artificial_images"] is False
    assert data["machine"]["gpus"] == [{"name": "Test GPU", "memory_mib": 16384, "driver": "1.2"}]
    assert data["plan"]["rounds"] == 6
    (workload,) = data["workloads"]
    model = workload["models"][1]
    assert (model["name"], model["backend"], model["device"]) == ("b.onnx", "simulated", "cpu")
    assert model["input_shapes"] == [[8, 8]]
    assert model["fresh_process"]["peak_mib"] == 220.5
    assert model["fresh_process"]["model_mib"] == 120.5
    calls = model["calls"]
    assert calls["round"] == list(range(6))
    totals = np.sum([calls[f"{stage}_ms"] for stage in model["stages_ms"]], axis=0)
    assert np.percentile(totals, 95) == pytest.approx(model["latency_ms"]["p95"])
    assert model["ratio_to_first"]["value"] == 0.5
    assert data["notes"] == list(report.notes)


def test_the_tables_name_models_machine_and_ratios(run):
    text = text_of(run())
    assert max(map(len, text.splitlines())) <= 80
    for part in ("Test CPU, 2 cores, 8 GiB, Test GPU (16 GiB)", "fed: 3 real images", "a.pth"):
        assert part in text
    assert "0.5 [0.5, 0.5]" in text
    assert "images/s" in text and "100.0" in text  # 10 ms per image
    assert "load s" in text and "1.50" in text
    assert "load s" not in text_of(run(fresh_processes=False))


@pytest.mark.parametrize("width", [60, 80])
def test_no_number_or_header_is_cut_off_in_a_narrow_terminal(run, simulation, monkeypatch, width):
    names = ("faster-rcnn_r50_fpn_1x_coco.pth", "faster-rcnn-primitive.onnx")
    for name, milliseconds in zip(names, (1234, 987), strict=True):
        monkeypatch.setitem(INFERENCE_MS, name, milliseconds)
    text = text_of(run(models=names), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    headers = ["p50", "p90", "p95", "p99", "mean", "std", "min", "images/s", "inference"]
    for header in [*headers, "ratio [95 %]"]:
        assert header in text
    assert re.search(r"0\.\d+ \[0\.\d+, 0\.\d+\]", text)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_plot_is_a_picture(run, tmp_path, suffix):
    path = tmp_path / f"latency{suffix}"
    run(batch_sizes=(1, 2)).write_plot(path)
    content = path.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    if suffix == ".png":
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 400
        assert picture[:100, :200].std() > 20  # the title, so it is not blank
    assert list(tmp_path.iterdir()) == [path]


def test_the_plot_says_what_it_shows(run, tmp_path):
    path = tmp_path / "latency.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        run(models=["a.pth", "b.onnx", "b.onnx"]).write_plot(path)
    text = path.read_text()
    for part in ("b.onnx #2", "batch 1, network input 8x8", "0.5x the time", "inference"):
        assert part in text


def test_models_of_very_different_speed_are_drawn_on_a_log_axis(run, tmp_path, monkeypatch):
    monkeypatch.setitem(INFERENCE_MS, "a.pth", 700)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        run().write_plot(tmp_path / "latency.svg")
    assert "(log axis)" in (tmp_path / "latency.svg").read_text()


def test_a_plot_of_another_format_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf, got 'a\.gif'"):
        run().write_plot(tmp_path / "a.gif")


def test_wrong_requests_are_refused(run, simulation):
    with pytest.raises(UsageError, match="at least one model"):
        run(models=[])
    with pytest.raises(UsageError, match=r"a\.pth takes batch size 1:1:8, not 9"):
        run(batch_sizes=(1, 9))
    assert all(detector.closed for _, _, detector in simulation.opened)
    assert simulation.log == []  # refused before anything was measured


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.onnx", "y/b.onnx"], ["a.onnx", "b.onnx"]),
        (["x/a.onnx", "y/a.onnx", "b.pth"], ["x/a.onnx", "y/a.onnx", "b.pth"]),
        (["a.onnx", "a.onnx", "a.onnx"], ["a.onnx", "a.onnx #2", "a.onnx #3"]),
        (["a.onnx", "x/a.onnx"], ["a.onnx", "x/a.onnx"]),
    ],
)
def test_names_are_short_and_distinct(paths, names):
    assert short_names([Path(path) for path in paths]) == [str(Path(name)) for name in names]


def test_artificial_images_are_always_the_same_and_never_flat():
    first, second = artificial_images(2, (48, 64)), artificial_images(2, (48, 64))
    assert all(map(np.array_equal, first, second))
    assert not np.array_equal(first[0], first[1])
    assert first[0].shape == (48, 64, 3) and first[0].dtype == np.uint8
    assert first[0].std() > 20
    assert describe_images(first, True) == "2 artificial images, 64x48"
    assert describe_images([first[0], first[0][:20]], False) == "2 real images, 64x20 to 64x48"


@pytest.fixture
def command(monkeypatch, simulation):
    """Let the command open simulated models, and keep it from starting processes."""
    import deploykit.benchmark
    import deploykit.benchmark.run as module

    opened = []

    def open_detector(self, path, input_size):
        opened.append((path.name, input_size, self.num_threads, self.device))
        return simulation.detector(path.name, INFERENCE_MS[path.name])

    def run_simulated(request, images=None, **options):
        return module.run_benchmark(
            request,
            images,
            clock=simulation.clock,
            probe_model=lambda request: FRESH,
            machine=MACHINE,
            **options,
        )

    monkeypatch.setattr(BenchmarkRequest, "open", open_detector)
    monkeypatch.setattr(deploykit.benchmark, "run_benchmark", run_simulated)
    monkeypatch.setattr(cv2, "setNumThreads", lambda threads: opened.append(("opencv", threads)))
    return opened


def test_the_command(command, simulation, tmp_path, capsys):
    for number, image in enumerate(simulation.images):
        write_image(tmp_path / "images" / f"{number}.png", image)
    out, plot = tmp_path / "out" / "latency.json", tmp_path / "out" / "latency.png"
    arguments = ["--batch", "1,2", "--shape", "64x96", "--images", str(tmp_path / "images")]
    arguments += ["--limit", "2", "--rounds", "3", "--warmup", "2", "--min-time", "0"]
    arguments += ["--threads", "2", "--device", "cpu", "--json", str(out), "--plot", str(plot)]
    assert main(["benchmark", "a.pth", "b.onnx", *arguments]) == 0
    assert command == [("opencv", 2), ("a.pth", (64, 96), 2, "cpu"), ("b.onnx", (64, 96), 2, "cpu")]
    data = json.loads(out.read_text())
    assert [one["batch_size"] for one in data["workloads"]] == [1, 2]
    assert data["images"] == "2 real images, 8x8"
    assert (data["plan"]["warmup_calls"], data["plan"]["min_seconds"]) == (2, 0)
    assert data["workloads"][0]["models"][0]["fresh_process"]["load_seconds"] == 1.5
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "batch 2, network input" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch needs numbers"),
        (["--batch", "1,x"], "--batch needs numbers"),
        (["--batch", "16"], "takes batch size 1:1:8, not 16"),
        (["--shape", "64"], "expected HEIGHTxWIDTH"),
        (["--images", "missing.png"], "image file not found"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--warmup", "0"], "at least 1 warm-up call"),
        (["--min-time", "-1"], "at least 0 s"),
        (["--max-time", "0"], "above 0 s"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--plot", "latency.gif"], "got 'latency.gif'"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(command, capsys, arguments, message):
    assert main(["benchmark", "a.pth", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deploykit: error: ") and error.count("\n") == 1
    assert message in error


def test_matplotlib_is_loaded_only_for_a_plot_and_torch_never():
    program = (
        "import sys, deploykit.benchmark, deploykit.parity\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "LOADED []\n"
