"""``deploykit convert --to tensorrt``, with TensorRT-RTX; no engine is run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from engine_graphs import DYNAMIC, detector_graph, detector_spec, write_onnx

from deploykit import cli
from deploykit.cli.convert_tensorrt import EXAMPLES
from deploykit.engine_spec import read_engine

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def folder(rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a graph in it; the cache is elsewhere."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    write_onnx(work / "model.onnx", detector_graph(DYNAMIC), detector_spec(DYNAMIC))
    return work


def convert(*words: str) -> int:
    return cli.main(["convert", *words, "--to", "tensorrt"])


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_an_onnx_file_becomes_an_engine(folder: Path, rtx: ModuleType, capsys: Capture):
    words = ["--flavour", "rtx", "--batch", "1:1:2", "--workspace", "1GiB", "--tf32"]
    assert convert("model.onnx", "--compute-capability", "8.6", *words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in (
        f"MiB, TensorRT-RTX {rtx.__version__}, Toy, batch 1:1:2",
        "build engine",
        "results in the graph: 3 float32",
        "has not been run",
        "deploykit parity model.onnx model.engine",
    ):
        assert text in captured.out, text
    spec, _ = read_engine("model.engine")
    flags = spec.build_flags
    assert (flags.workspace, flags.tf32, flags.compute_capabilities) == (1 << 30, True, ("8.6",))
    assert names(folder) == {"model.onnx", "model.engine", "model.engine.json"}


def test_the_same_engine_comes_from_the_cache(folder: Path, capsys: Capture):
    assert convert("model.onnx") == convert("model.onnx", "--out", "two.engine") == 0
    output = capsys.readouterr().out
    assert output.count("build engine") == 1 and "built before, taken from" in output
    assert Path("two.engine").read_bytes() == Path("model.engine").read_bytes()
    assert convert("model.onnx", "--no-cache") == 0
    assert "build engine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.onnx"], "this is missing: gone.onnx"),
        (["gone.pth"], "gone.pth"),
        (["model.onnx", "--out", "model.plan"], "must be an .engine file, got 'model.plan'"),
        (["model.onnx", "--shape", "64x999"], "multiple of 32"),
        (["model.onnx", "--batch", "9"], "batches of 1 to 4, got 9"),
        (["model.onnx", "--shape", "64x64", "--dynamic", "32x32:64x64:96x96"], "not both"),
        (["model.onnx", "--precision", "fp16"], "is in fp32, not fp16"),
        (["model.onnx", "--nms-pre", "100"], "--nms-pre is for checkpoints"),
        (["model.onnx", "--lowering", "primitive"], "--lowering is for checkpoints"),
        (["model.onnx", "--keep-onnx"], "--keep-onnx is for checkpoints"),
        (["model.pth", "--lowering", "standard"], "--lowering standard is for ONNX Runtime"),
        (["model.onnx", "--workspace", "lots"], "--workspace needs a size such as 512MiB"),
        (["model.onnx", "--version-compatible"], "is for --flavour tensorrt"),
        (["model.onnx", "--hardware-compatible"], "is for --flavour tensorrt"),
        (["model.onnx", "--timing-cache", "timings"], "is for --flavour tensorrt"),
        (["model.onnx", "--compute-capability", "9.0"], "got '9.0'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    words: list[str], message: str, folder: Path, capsys: Capture
):
    assert convert(*words, "--flavour", "rtx") == 2
    error = capsys.readouterr().err
    assert error.startswith("deploykit: error: ") and message in error, error
    assert error.count("\n") == 1
    assert names(folder) == {"model.onnx"}


def test_a_graph_for_onnx_runtime_is_refused_with_advice(folder: Path, capsys: Capture):
    spec = detector_spec(DYNAMIC, lowering="standard")
    write_onnx(folder / "standard.onnx", detector_graph(DYNAMIC), spec)
    assert convert("standard.onnx", "--flavour", "rtx") == 2
    error = capsys.readouterr().err
    assert "--lowering standard" in error and "again with --lowering primitive" in error


def test_a_graph_that_cannot_be_built_is_one_line_and_exit_2(folder: Path, capsys: Capture):
    graph = detector_graph(DYNAMIC, "a = Cast <to = 1> (images)\n scores = Det (a)")
    write_onnx(folder / "det.onnx", graph, detector_spec(DYNAMIC))
    assert convert("det.onnx", "--flavour", "rtx") == 2
    error = capsys.readouterr().err
    assert "cannot build Det 'head/Det_1' of the module 'head'" in error
    assert error.count("\n") == 1 and names(folder) == {"model.onnx", "det.onnx"}


@pytest.mark.parametrize(
    ("words", "missing", "message"),
    [
        (["--flavour", "tensorrt"], ("tensorrt",), "deploykit[tensorrt]"),
        (["--flavour", "rtx"], ("tensorrt_rtx", "tensorrt_rtx_bindings"), "deploykit[rtx]"),
        ([], ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"), "deploykit[tensorrt]"),
    ],
)
def test_a_missing_flavour_names_its_extra_before_anything_is_exported(
    words: list[str],
    missing: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
):
    def not_found(name: str) -> ModuleType:
        if name in missing:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return sys.modules[name]

    monkeypatch.setattr("deploykit.tensorrt_flavour.import_module", not_found)
    assert convert("model.pth", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not words or "'deploykit[rtx]'" in error or "'deploykit[tensorrt]'" in error


@pytest.mark.parametrize(
    "word", ["--flavour=rtx", "--workspace=1G", "--tf32", "--keep-onnx", "--no-cache"]
)
def test_options_of_tensorrt_are_not_for_onnx(word: str, capsys: Capture):
    assert cli.main(["convert", "model.pth", "--to", "onnx", word]) == 2
    assert f"{word.split('=')[0]} is for --to tensorrt" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_found_out_at_once(folder: Path, capsys: Capture):
    (folder / "model.engine").mkdir()
    assert convert("model.onnx") == 2
    assert "is a folder; name a file to write" in capsys.readouterr().err


@pytest.mark.slow
class TestFromACheckpoint:
    @pytest.fixture(autouse=True)
    def checkpoint(self, folder: Path, toy_checkpoint: Path) -> None:
        (folder / "model.pth").write_bytes(toy_checkpoint.read_bytes())
        (folder / "model.onnx").unlink()

    def test_the_graph_goes_unless_it_is_kept(self, folder: Path, capsys: Capture):
        assert convert("model.pth", "--shape", "96x160", "--out", "a.engine") == 0
        assert "Parity with PyTorch" in capsys.readouterr().out
        assert names(folder) == {"model.pth", "a.engine", "a.engine.json"}
        assert convert("model.pth", "--shape", "96x160", "--out", "b.engine", "--keep-onnx") == 0
        assert "built before" in capsys.readouterr().out  # the same graph
        assert names(folder) >= {"b.engine", "b.onnx"}
        assert convert("b.onnx", "--out", "c.engine") == 0
        engines = {Path(f"{name}.engine").read_bytes() for name in "abc"}
        assert len(engines) == 1

    def test_failed_parity_exits_1_and_writes_nothing(self, folder: Path, capsys: Capture):
        words = ["--shape", "96x160", "--score-tolerance", "0", "--box-tolerance", "0"]
        assert convert("model.pth", *words) == 1
        assert "not written: model.engine" in capsys.readouterr().out
        assert names(folder) == {"model.pth"}

    @pytest.mark.parametrize("line", EXAMPLES)
    def test_every_example_of_the_help_works(self, line: str, folder: Path):
        write_onnx(folder / "primitive.onnx", detector_graph(DYNAMIC), detector_spec(DYNAMIC))
        program, *words = shlex.split(line)
        assert program == "deploykit"
        assert cli.main(words) == 0
        (engine,) = folder.glob("*.engine")
        read_engine(engine)
