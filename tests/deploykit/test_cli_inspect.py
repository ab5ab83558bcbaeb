"""``deploykit inspect``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploykit import cli
from deploykit.cli.inspect import EXAMPLES
from deploykit.engine_spec import EngineSpec, write_engine
from deploykit.inspection import inspect_model
from deploykit.spec import DimRange, InputSpec, ModelSpec, OutputSpec

Capture = pytest.CaptureFixture[str]

PARITY = {
    "passed": True,
    "image_source": "6 drawn images",
    "max_box_error_px": 0.0012,
    "max_score_error": 3.4e-6,
    "runs": [
        {"input_size": None, "batch_size": 2, "matched": 9, "unmatched": 0, "images": 6},
        {"input_size": [64, 96], "batch_size": 1, "matched": 5, "unmatched": 0, "images": 3},
    ],
}
SPEC = ModelSpec(
    architecture="RTMDet",
    classes=tuple(f"class {number}" for number in range(25)),
    input=InputSpec(DimRange(1, 2, 4), DimRange.fixed(64), DimRange(32, 96, 128), scale=(96, 64)),
    output=OutputSpec(max_per_img=7),
    lowering="primitive",
    lowering_limits={"nms_candidates": 2048, "nms_steps": 24},
    checkpoint_sha256="c" * 64,
    versions={"deploykit": "0.1.0"},
    parity=PARITY,
)


def write_onnx(path: Path, metadata: dict[str, str]) -> Path:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["scaled"], ["negated"])],
        "branch",
        [],
        [helper.make_tensor_value_info("negated", TensorProto.FLOAT, ["batch", 64, "width", 3])],
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "weight"], ["scaled"]),
        helper.make_node("If", ["flag"], ["boxes"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 64, "width", 3])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", None, "width", 3])],
        [
            numpy_helper.from_array(np.ones((1, 1, 3), np.float32), "weight"),
            numpy_helper.from_array(np.array(True), "flag"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="somebody", ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def shown(capsys: Capture, *words: object) -> str:
    assert cli.main(["inspect", *map(str, words)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_an_onnx_file_is_described(tmp_path: Path, capsys: Capture):
    path = write_onnx(tmp_path / "model.onnx", {"deploykit": SPEC.to_json(), "note": "hello"})
    text = shown(capsys, path)
    for part in (
        "lowering primitive",
        "nms_candidates 2048, nms_steps 24",
        "RTMDet",
        "25: class 0, class 1,",
        "and 5 more",
        "1:2:4",
        "32:96:128 (multiples of 32)",
        "up to 7 an image",
        "verdict pass",
        "6 drawn images",
        "1.20e-03 px",
        "3.40e-06",
        "input pipeline, batch 2 9 matched, 0 unmatched in 6 images",
        "input 64x96, batch 1 5 matched",
        "input images uint8 [batch, 64, width, 3]",
        "output boxes float32 [batch, ?, width, 3]",
        "5 2 Neg, 1 Cast, 1 Mul, 1 If",
        "parameters 3",
        "note hello",
        "somebody",
    ):
        assert part in text, part
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text.replace(" ", "")


def test_without_onnx_the_runtime_tells_what_it_knows(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    path = write_onnx(tmp_path / "model.onnx", {"deploykit": SPEC.to_json()})
    monkeypatch.setattr("deploykit.inspection.find_spec", lambda name: None)
    found = inspect_model(path)
    assert found.spec == SPEC and found.parameters is None and not found.operators
    assert found.inputs[0].shape == ("batch", 64, "width", 3)
    assert (found.inputs[0].dtype, found.outputs[0].dtype) == ("uint8", "float32")
    assert "deploykit[export]" in shown(capsys, path)
    path.write_bytes(b"garbage")
    assert cli.main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_of_somebody_else_is_shown_without_a_spec(tmp_path: Path, capsys: Capture):
    path = write_onnx(tmp_path / "model.onnx", {})
    text = shown(capsys, path)
    assert "no model spec: its metadata has no 'deploykit' entry" in text
    assert "uint8 [batch, 64, width, 3]" in text


@pytest.mark.parametrize("stored", ["{", '{"version": 99}', '{"version": 1}'])
def test_a_spec_that_cannot_be_read_is_said_so(stored: str, tmp_path: Path, capsys: Capture):
    path = write_onnx(tmp_path / "model.onnx", {"deploykit": stored})
    text = shown(capsys, path)
    assert "no model spec: " in text and "uint8" in text


def test_json_holds_everything(tmp_path: Path, capsys: Capture):
    path = write_onnx(tmp_path / "model.onnx", {"deploykit": SPEC.to_json()})
    assert cli.main(["inspect", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["kind"] == "onnx" and found["parameters"] == 3
    assert ModelSpec.from_json(json.dumps(found["spec"])) == SPEC
    assert found["operators"] == {"Neg": 2, "Cast": 1, "Mul": 1, "If": 1}
    assert found["inputs"] == [
        {"name": "images", "dtype": "uint8", "shape": ["batch", 64, "width", 3]}
    ]


def test_a_checkpoint_is_described(small_checkpoint: Path, capsys: Capture):
    text = shown(capsys, small_checkpoint)
    for part in ("kind checkpoint", "RTMDet", "3: circle, square, star", "128x128", "state_dict"):
        assert part in text, part
    found = inspect_model(small_checkpoint)
    weights = torch.load(small_checkpoint, weights_only=True)["state_dict"].values()
    assert found.parameters == sum(value.numel() for value in weights if value.is_floating_point())
    assert found.spec is not None and found.spec.lowering == "eager"


def test_checkpoints_with_a_spec_and_with_nothing(tmp_path: Path, capsys: Capture):
    weights = {"weight": torch.ones(2, 3)}
    stored = tmp_path / "stored.pth"
    meta = {"deploykit": SPEC.to_json(), "epoch": 12}
    torch.save({"state_dict": weights, "meta": meta}, stored)
    text = shown(capsys, stored)
    assert "25: class 0" in text and "epoch 12" in text
    bare = tmp_path / "bare.pth"
    torch.save(weights, bare)
    text = shown(capsys, bare)
    assert "parameters 6" in text
    assert "no model spec: the checkpoint holds neither a model spec nor a config" in text
    broken = tmp_path / "broken.pth"
    torch.save({"state_dict": weights, "meta": {"cfg": "model = dict(type='Unheard')"}}, broken)
    assert "no model spec: " in shown(capsys, broken)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"", "damaged, or not an ONNX model"),
        ("model.onnx", b"not a protobuf at all", "damaged, or not an ONNX model"),
        ("model.pth", b"PK garbage", "damaged"),
        ("model.onnx", None, "missing"),
        ("model.pth", None, "does not exist"),
        ("model.txt", b"text", "expected a .pth, .pt, .onnx or .engine file"),
    ],
)
def test_bad_files_are_one_line_and_exit_2(
    name: str, content: bytes | None, message: str, tmp_path: Path, capsys: Capture
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_of_the_help_works(
    line: str, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("model.pth").write_bytes(small_checkpoint.read_bytes())
    write_onnx(Path("model.onnx"), {"deploykit": SPEC.to_json()})
    plan = b"a plan"
    digest = hashlib.sha256(plan).hexdigest()
    write_engine("model.engine", plan, EngineSpec(SPEC, "rtx", "1.7", digest, len(plan), "0" * 64))
    assert cli.main(line.split()[1:]) == 0
