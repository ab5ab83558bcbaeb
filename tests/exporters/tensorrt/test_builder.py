"""ONNX graphs to engines, built by TensorRT-RTX itself; no engine is run here."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engine_graphs import BODY, DYNAMIC, STATIC, detector_graph, detector_spec, parse, write_onnx

from deploykit.engine_spec import BuildFlags, TensorInfo, engine_spec_path, write_engine
from deploykit.errors import ExportError, MissingDependencyError, UsageError
from deploykit.exporters.tensorrt import builder
from deploykit.exporters.tensorrt.build_device import BuildDevice
from deploykit.exporters.tensorrt.builder import BuildOptions, BuiltEngine, build_engine
from deploykit.exporters.tensorrt.engine_cache import EngineCache, cache_folder
from deploykit.spec import DimRange, InputSpec

Build = Callable[..., BuiltEngine]


def test_static_engine_and_its_spec(build: Build, rtx: ModuleType):
    built = build()
    spec = built.spec
    assert len(built.plan) > 1000 and built.plan[:4] == b"vtrt"
    assert (spec.flavour, spec.tensorrt_version) == ("rtx", rtx.__version__)
    assert spec.engine_sha256 == hashlib.sha256(built.plan).hexdigest()
    assert spec.engine_bytes == len(built.plan)
    assert spec.inputs == (TensorInfo("images", "uint8", (2, 64, 96, 3)),)
    assert spec.outputs == (TensorInfo("scores", "float32", ()),)
    # An engine of TensorRT-RTX is tied to no GPU, and without one only the graph can tell types.
    assert (spec.compute_capability, spec.device_name, spec.driver_version) == (None, None, None)
    assert (spec.precision_used.source, spec.precision_used.types) == ("graph", {"float32": 3})
    assert spec.build_log.seconds > 0
    assert any(text.startswith("INFO: ") for text in spec.build_log.messages)
    assert built.cached is None


def test_dynamic_engine_names_its_axes(build: Build):
    built = build(inputs=DYNAMIC)
    assert built.spec.inputs == (TensorInfo("images", "uint8", ("batch", "height", "width", 3)),)


def test_nothing_is_printed(build: Build, capfd: pytest.CaptureFixture[str]):
    build()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_all_inputs_of_detectors_get_a_profile(build: Build):
    inputs = InputSpec(
        DYNAMIC.batch, DYNAMIC.height, DYNAMIC.width, image_sizes_input=True, proposals=7
    )
    graph = parse(
        """g (uint8[b,h,w,3] images, int32[b,2] image_sizes, float[b,7,4] proposals)
             => (float scores) {
          pixels = Cast <to = 1> (images)
          sizes = Cast <to = 1> (image_sizes)
          a = ReduceMean <keepdims = 0> (pixels)
          b = ReduceMean <keepdims = 0> (sizes)
          c = ReduceMean <keepdims = 0> (proposals)
          d = Add (a, b)
          scores = Add (c, d)
        }"""
    )
    names = [info.name for info in build(graph, inputs).spec.inputs]
    assert names == ["images", "image_sizes", "proposals"]


def test_types_follow_the_graph_strictly(build: Build):
    body = """
      half = Cast <to = 10> (images)
      squares = Mul (half, half)
      full = Cast <to = 1> (squares)
      scores = ReduceMean <keepdims = 0> (full)
    """
    used = build(detector_graph(body=body)).spec.precision_used
    assert (used.source, used.types) == ("graph", {"float16": 2, "float32": 2})


@pytest.mark.parametrize(
    ("shape", "inputs", "message"),
    [
        ("2,64,95,3", STATIC, r"\[2, 64, 95, 3\], but its spec asks for \[2, 64, 96, 3\]"),
        ("2,64,96,3", DYNAMIC, r"\[2, 64, 96, 3\], but its spec asks for \[1, 32, 32, 3\]"),
        ("2,64,96", STATIC, r"\[2, 64, 96\], but its spec asks for"),
    ],
)
def test_graphs_that_do_not_take_the_shapes_of_the_spec(
    build: Build, shape: str, inputs: InputSpec, message: str
):
    graph = parse(f"g (uint8[{shape}] images) => (float scores) {{ {BODY} }}")
    with pytest.raises(ExportError, match=message):
        build(graph, inputs)


def test_graphs_with_other_inputs(build: Build):
    graph = parse("g (uint8[2,64,96,3] pixels) => (float scores) { scores = Cast <to=1> (pixels) }")
    with pytest.raises(ExportError, match="has the inputs pixels, but its spec says images"):
        build(graph)


def test_shapes_that_the_engine_would_fail_at_are_an_error(build: Build):
    """TensorRT only warns of them, and builds an engine that fails when it is run."""
    body = """
      pixels = Cast <to = 1> (images)
      minus = Constant <value = int64[1] {-1}> ()
      flat = Reshape (pixels, minus)
      all = Shape (flat)
      best, places = TopK (flat, all)
      scores = ReduceMean <keepdims = 0> (best)
    """
    small = InputSpec(DimRange.fixed(1), DimRange(1, 2, 32), DimRange(1, 2, 32))
    assert build(detector_graph(DYNAMIC, body), small).plan  # up to 32 * 32 * 3 = 3072
    large = InputSpec(DimRange.fixed(1), DimRange(1, 2, 64), DimRange(1, 2, 64))
    with pytest.raises(ExportError, match=r"at TopK 'head/TopK_4' of the module 'head'.*3840") as e:
        build(detector_graph(DYNAMIC, body), large)
    assert "--nms-pre" in str(e.value) and "\n" not in str(e.value)


def test_progress_counts_up_to_the_end(build: Build):
    seen: list[tuple[str, int, int]] = []
    build(report=lambda *values: seen.append(values))
    assert seen[0][:2] == ("Building engine", 0)
    last = {phase: (done, total) for phase, done, total in seen}
    assert len(last) > 1 and all(done == total for done, total in last.values())
    for phase in last:
        steps = [done for name, done, _ in seen if name == phase]
        assert steps == sorted(steps)


def test_ctrl_c_ends_the_build_and_is_handed_on(build: Build, cache: Path):
    def interrupt(phase: str, done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(report=interrupt, cache=EngineCache(cache))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not cache.exists()
    assert build().plan  # and the process goes on


def test_a_build_that_is_killed_leaves_nothing(rtx: ModuleType, tmp_path: Path, cache: Path):
    support = Path(__file__).parents[2] / "support"
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(support)!r})
        from engine_graphs import detector_graph, detector_spec, write_onnx
        from pathlib import Path
        from deploykit.exporters.tensorrt.builder import BuildOptions
        from deploykit.exporters.tensorrt.engine_cache import EngineCache
        from deploykit.exporters.tensorrt.engine_exporter import export_engine

        def kill(phase, done, total):
            if done == total - 1 and phase == "Building engine":
                os.kill(os.getpid(), signal.SIGKILL)

        source = write_onnx(Path("graph.onnx"), detector_graph(), detector_spec())
        cache = EngineCache(Path({str(cache)!r}))
        export_engine(source, "out.engine", BuildOptions("rtx", cache=cache, report=kill))
    """
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=work, timeout=120
    )
    assert process.returncode == -signal.SIGKILL
    assert [file.name for file in work.iterdir()] == ["graph.onnx"]
    assert not cache.exists()


class TestCache:
    def test_a_second_build_comes_from_the_cache(self, build: Build, cache: Path):
        first = build(cache=EngineCache(cache))
        second = build(cache=EngineCache(cache))
        assert first.cached is None and second.cached is not None
        assert second.cached.parent == cache == cache_folder()
        assert second.plan == first.plan and second.spec == first.spec

    def test_the_spec_is_that_of_the_model_at_hand(self, rtx: ModuleType, cache: Path):
        options = BuildOptions("rtx", cache=EngineCache(cache))
        build_engine(detector_graph(), detector_spec(), options, "a" * 64)
        graph = detector_graph()
        graph.metadata_props.add(key="deploykit", value="measured again")  # not the engine's
        spec = detector_spec(score_threshold=0.7)
        found = build_engine(graph, spec, options, "b" * 64)
        assert found.cached is not None
        assert found.spec.model.score_threshold == 0.7 and found.spec.onnx_sha256 == "b" * 64

    @pytest.mark.parametrize(
        ("model", "inputs", "flags"),
        [
            (detector_graph(body=BODY.replace("Sigmoid", "Tanh")), STATIC, BuildFlags()),
            (detector_graph(DYNAMIC), DYNAMIC, BuildFlags()),
            (None, STATIC, BuildFlags(workspace=1 << 26)),
            (None, STATIC, BuildFlags(tf32=True)),
            (None, STATIC, BuildFlags(compute_capabilities=("8.6",))),
        ],
        ids=["graph", "shapes", "workspace", "tf32", "compute capability"],
    )
    def test_anything_else_is_built(
        self, build: Build, cache: Path, model: Any, inputs: InputSpec, flags: BuildFlags
    ):
        build(cache=EngineCache(cache))
        other = build(model, inputs, cache=EngineCache(cache), flags=flags)
        assert other.cached is None
        assert len(list(cache.glob("*.engine"))) == 2

    def test_a_narrower_range_of_the_same_graph_is_another_engine(self, build: Build, cache: Path):
        build(detector_graph(DYNAMIC), DYNAMIC, cache=EngineCache(cache))
        narrow = InputSpec(DimRange(1, 1, 2), DYNAMIC.height, DYNAMIC.width)
        assert build(detector_graph(DYNAMIC), narrow, cache=EngineCache(cache)).cached is None

    @pytest.mark.parametrize("damage", ["engine", "spec", "no spec"])
    def test_a_damaged_entry_is_built_again(self, build: Build, cache: Path, damage: str):
        first = build(cache=EngineCache(cache))
        (file,) = cache.glob("*.engine")
        if damage == "engine":
            file.write_bytes(first.plan[:-7])
        elif damage == "spec":
            engine_spec_path(file).write_text("{}")
        else:
            engine_spec_path(file).unlink()
        second = build(cache=EngineCache(cache))
        assert second.cached is None
        assert build(cache=EngineCache(cache)).cached == file

    def test_a_cache_that_cannot_be_written_is_no_failure(self, build: Build, tmp_path: Path):
        blocked = tmp_path / "file"
        blocked.write_text("not a folder")
        assert build(cache=EngineCache(blocked / "engines")).plan

    def test_the_least_recently_used_engines_go_first(self, build: Build, cache: Path):
        built = build()
        store = EngineCache(cache, largest=3 * len(built.plan))
        for number in range(4):
            store.store(f"engine{number}", built.plan, built.spec)
            for name in (f"engine{number}.engine",):
                os.utime(cache / name, (number, number))
            if number == 2:
                assert store.find("engine0") is not None  # used just now
        assert sorted(file.name for file in cache.glob("*.engine")) == [
            "engine0.engine",
            "engine2.engine",
            "engine3.engine",
        ]
        assert len(list(cache.iterdir())) == 6


class TestWithoutAGpu:
    def test_tensorrt_says_what_it_needs(self, rtx: ModuleType, monkeypatch: pytest.MonkeyPatch):
        """TensorRT's bindings raise TypeError when there is no builder, for want of a driver."""

        class NoBuilder(ModuleType):
            __version__ = "11.4.0"

            def __getattr__(self, name: str) -> Any:
                if name == "Builder":
                    return no_builder
                return getattr(rtx, name)

        def no_builder(log: Any) -> None:
            log.log(rtx.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        module = NoBuilder("tensorrt")
        monkeypatch.setattr(builder, "load_flavour", lambda name: module)
        with pytest.raises(ExportError) as caught:
            build_engine(detector_graph(), detector_spec(), BuildOptions("tensorrt"))
        text = str(caught.value)
        assert "failure with error: 35" in text and "--flavour rtx" in text and "\n" not in text


def test_a_missing_flavour_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"deploykit\[tensorrt\]"):
        build_engine(detector_graph(), detector_spec(), BuildOptions("tensorrt"))


def test_the_device_is_recorded_for_tensorrt(rtx: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """TensorRT-RTX stands in for TensorRT: what is tested is the record, not the engine."""
    device = BuildDevice("NVIDIA RTX A4000", "8.6", "13.0")
    monkeypatch.setattr(builder, "load_flavour", lambda name: rtx)
    monkeypatch.setattr(builder, "build_device", lambda: device)
    spec = build_engine(detector_graph(), detector_spec(), BuildOptions("tensorrt")).spec
    assert (spec.flavour, spec.compute_capability) == ("tensorrt", "8.6")
    assert (spec.device_name, spec.driver_version) == ("NVIDIA RTX A4000", "13.0")


@pytest.mark.parametrize(
    "change",
    [{"name": "NVIDIA T4"}, {"compute_capability": "7.5"}, {"driver_version": "12.9"}],
)
def test_engines_of_another_gpu_or_driver_are_not_taken_from_the_cache(
    rtx: ModuleType, monkeypatch: pytest.MonkeyPatch, cache: Path, change: dict[str, str]
):
    values = {"name": "NVIDIA RTX A4000", "compute_capability": "8.6", "driver_version": "13.0"}
    monkeypatch.setattr(builder, "load_flavour", lambda name: rtx)
    options = BuildOptions("tensorrt", cache=EngineCache(cache))
    cached = []
    for facts in (values, values, values | change):
        monkeypatch.setattr(builder, "build_device", lambda facts=facts: BuildDevice(**facts))
        cached.append(build_engine(detector_graph(), detector_spec(), options).cached is not None)
    assert cached == [False, True, False]


def test_nodes_of_the_seam_become_plugins(rtx: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """TensorRT-RTX stands in for TensorRT, and knows no plugins: it names the first one."""
    graph = parse(
        """g (uint8[2,64,96,3] images) => (int64[2,9] keep) {
          pixels = Cast <to = 1> (images)
          box_shape = Constant <value = int64[3] {2, -1, 4}> ()
          boxes = Reshape (pixels, box_shape)
          last = Constant <value = int64[1] {2}> ()
          scores = ReduceMean <keepdims = 0> (boxes, last)
          labels = Cast <to = 7> (scores)
          keep = deploykit.BatchedNMS <iou_threshold = 0.5, max_out = 9> (boxes, scores, labels)
        }""",
        '"": 18, "deploykit": 1',
    )
    registered: list[Any] = []
    monkeypatch.setattr(builder, "load_flavour", lambda name: rtx)
    device = BuildDevice("NVIDIA RTX A4000", "8.6", "13.0")
    monkeypatch.setattr(builder, "build_device", lambda: device)
    monkeypatch.setattr(
        "deploykit.exporters.tensorrt.plugin_graph.register_plugins",
        lambda module, capability: registered.append(capability),
    )
    for flags in (BuildFlags(), BuildFlags(hardware_compatible=True)):
        with pytest.raises(ExportError, match="TensorRT cannot build deploykit::NmsSort"):
            build_engine(graph, detector_spec(), BuildOptions("tensorrt", flags))
    assert registered == [(8, 6), None]


def test_an_onnx_file_is_built_without_torch(rtx: ModuleType, tmp_path: Path):
    source = write_onnx(tmp_path / "model.onnx", detector_graph(), detector_spec())
    program = f"""
        import sys
        sys.modules["torch"] = None
        from deploykit import cli
        sys.exit(cli.main(["convert", {str(source)!r}, "--to", "tensorrt", "--flavour", "rtx"]))
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == b""
    assert (tmp_path / "model.engine.json").is_file()


class TestFlags:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (BuildFlags(version_compatible=True), "--version-compatible is for --flavour tensorrt"),
            (
                BuildFlags(hardware_compatible=True),
                "--hardware-compatible is for --flavour tensorrt",
            ),
            (
                BuildFlags(compute_capabilities=("9.0",)),
                r"7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1, got '9\.0'",
            ),
        ],
    )
    def test_what_rtx_does_not_have_is_refused(self, build: Build, flags: BuildFlags, message: str):
        with pytest.raises(UsageError, match=message):
            build(flags=flags)

    def test_a_timing_cache_is_refused_for_rtx(self, build: Build, tmp_path: Path):
        with pytest.raises(UsageError, match="--timing-cache is for --flavour tensorrt"):
            build(timing_cache=tmp_path / "timing")

    def test_engines_for_chosen_gpus_are_recorded(self, build: Build):
        flags = BuildFlags(compute_capabilities=("8.6", "12.0"), workspace=1 << 28)
        built = build(flags=flags)
        assert built.spec.build_flags == flags
        assert built.plan != build().plan


def test_the_engine_written_is_the_engine_read(build: Build, tmp_path: Path):
    built = build()
    write_engine(tmp_path / "m.engine", built.plan, built.spec)
    from deploykit.engine_spec import read_engine

    assert read_engine(tmp_path / "m.engine") == (built.spec, built.plan)
