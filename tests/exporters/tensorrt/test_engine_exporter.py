"""ONNX files of ours to engine files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from engine_graphs import DYNAMIC, STATIC, detector_graph, detector_spec, write_onnx

from deploykit.atomic_file import sha256_of_file
from deploykit.engine_spec import engine_spec_path, read_engine
from deploykit.errors import ExportError, SpecError, UsageError
from deploykit.exporters.graph_cleanup import MODULE_KEY
from deploykit.exporters.tensorrt import node_report
from deploykit.exporters.tensorrt.builder import BuildOptions
from deploykit.exporters.tensorrt.engine_exporter import export_engine
from deploykit.exporters.tensorrt.shape_choice import ShapeChoice
from deploykit.spec import DimRange, ModelSpec

pytestmark = pytest.mark.usefixtures("rtx")
RTX = BuildOptions("rtx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.onnx", detector_graph(DYNAMIC), detector_spec(DYNAMIC))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_module_key_is_that_of_the_exporter():
    assert node_report.MODULE_KEY == MODULE_KEY


def test_engine_and_spec_are_written(source: Path, tmp_path: Path):
    exported = export_engine(source, tmp_path / "out" / "model.engine", RTX)
    spec, plan = read_engine(exported.path)
    assert spec == exported.spec and len(plan) == spec.engine_bytes
    assert spec.model == detector_spec(DYNAMIC)
    assert spec.onnx_sha256 == sha256_of_file(source)
    assert names(tmp_path / "out") == ["model.engine", "model.engine.json"]


@pytest.mark.parametrize(
    ("words", "batch", "height", "width"),
    [
        ({}, "1:2:4", "32:64:128", "32:96:128"),
        ({"batch": "1:1:2"}, "1:1:2", "32:64:128", "32:96:128"),
        ({"shape": "64x128"}, "1:2:4", "64", "128"),
        ({"dynamic": "32x32:64x64:96x128", "batch": "3"}, "3", "32:64:96", "32:64:128"),
    ],
)
def test_an_engine_may_take_fewer_shapes_than_its_graph(
    source: Path, tmp_path: Path, words: dict[str, str], batch: str, height: str, width: str
):
    shapes = ShapeChoice.parse(**words)
    spec = export_engine(source, tmp_path / "m.engine", RTX, shapes=shapes).spec.model.input
    assert (str(spec.batch), str(spec.height), str(spec.width)) == (batch, height, width)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"batch": "8"}, "batches of 1 to 4, got 8"),
        ({"shape": "64x256"}, "an input width of at most 128, got 256"),
        ({"dynamic": "64x64:64x64:160x64"}, "an input height of at most 128, got 160"),
        ({"shape": "64x100"}, "must be a multiple of 32"),
    ],
)
def test_shapes_outside_the_graphs_are_refused(
    source: Path, tmp_path: Path, words: dict[str, str], message: str
):
    with pytest.raises(UsageError, match=message):
        export_engine(source, tmp_path / "m.engine", RTX, shapes=ShapeChoice.parse(**words))
    assert names(tmp_path) == ["model.onnx"]


def test_smaller_shapes_than_the_graphs_are_refused(tmp_path: Path):
    spec = replace(DYNAMIC, height=DimRange(64, 64, 128), batch=DimRange(2, 2, 4))
    with pytest.raises(UsageError, match=r"g\.onnx takes a height of 64:64:128, not 32;"):
        ShapeChoice.parse(shape="32x64").apply(spec, "g.onnx")
    with pytest.raises(UsageError, match=r"takes a batch of 2:2:4, not 1;"):
        ShapeChoice.parse(batch="1").apply(spec, "g.onnx")


@pytest.mark.parametrize("lowering", ["standard", "eager"])
def test_other_lowerings_are_refused_with_advice(tmp_path: Path, lowering: str):
    spec = detector_spec(lowering=lowering)
    source = write_onnx(tmp_path / "model.onnx", detector_graph(), spec)
    with pytest.raises(UsageError) as caught:
        export_engine(source, tmp_path / "m.engine", RTX)
    text = str(caught.value)
    assert f"--lowering {lowering}" in text and text.endswith("again with --lowering primitive")


def test_precision_is_that_of_the_graph(tmp_path: Path):
    spec = detector_spec(precision="fp16")
    source = write_onnx(tmp_path / "model.onnx", detector_graph(), spec)
    with pytest.raises(UsageError, match="is in fp16, not fp32"):
        export_engine(source, tmp_path / "m.engine", RTX, precision="fp32")
    exported = export_engine(source, tmp_path / "m.engine", RTX, precision="fp16")
    assert exported.spec.model.precision == "fp16"


class TestDamagedFiles:
    def refused(self, path: Path, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            export_engine(path, path.with_name("m.engine"), RTX)
        assert "\n" not in str(caught.value)
        assert "m.engine" not in names(path.parent)

    def test_missing(self, tmp_path: Path):
        self.refused(tmp_path / "gone.onnx", UsageError, "this is missing")
        self.refused(tmp_path, UsageError, "this is a folder")

    @pytest.mark.parametrize("content", [b"", b"garbage" * 20])
    def test_no_onnx(self, tmp_path: Path, content: bytes):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        self.refused(path, (ExportError, SpecError), "damaged|no model spec")  # type: ignore[arg-type]

    def test_flipped_bit(self, source: Path):
        content = bytearray(source.read_bytes())
        content[content.index(b"Sigmoid") + 1] ^= 2
        source.write_bytes(content)
        self.refused(source, ExportError, "its checksum does not match")

    def test_no_spec(self, tmp_path: Path):
        path = write_onnx(tmp_path / "model.onnx", detector_graph(), None)
        self.refused(path, SpecError, "carries no model spec")

    def test_spec_of_a_newer_version(self, tmp_path: Path):
        graph = detector_graph()
        graph.metadata_props.add(key="deploykit", value='{"version": 99}')
        path = write_onnx(tmp_path / "model.onnx", graph, None)
        self.refused(path, SpecError, "Upgrade deploykit")


def test_outputs_have_the_suffix_that_loaders_know(source: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"must be an \.engine file"):
        export_engine(source, tmp_path / "model.plan", RTX)


def test_an_older_engine_is_kept_when_the_build_fails(tmp_path: Path):
    good = write_onnx(tmp_path / "good.onnx", detector_graph(), detector_spec())
    target = tmp_path / "m.engine"
    export_engine(good, target, RTX)
    before = target.read_bytes(), engine_spec_path(target).read_bytes()
    graph = detector_graph(body="a = Cast <to = 1> (images)\n scores = Det (a)")
    bad = write_onnx(tmp_path / "bad.onnx", graph, detector_spec())
    with pytest.raises(ExportError, match="Det 'head/Det_1' of the module 'head'"):
        export_engine(bad, target, RTX)
    assert (target.read_bytes(), engine_spec_path(target).read_bytes()) == before


def test_files_without_weights_of_their_own_are_named(tmp_path: Path):
    """A graph whose weights are in another file that was not copied along."""
    spec: ModelSpec = detector_spec(STATIC)
    graph = detector_graph(body="p = Cast <to=1> (images)\n q = Mul (p, w)\n scores = Neg (q)")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    graph.graph.initializer.append(tensor)
    path = write_onnx(tmp_path / "model.onnx", graph, spec)
    with pytest.raises(ExportError, match="damaged, or not an ONNX model"):
        export_engine(path, tmp_path / "m.engine", RTX)
