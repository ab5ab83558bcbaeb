"""Small graphs that TensorRT-RTX builds in a blink, with the input of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import parser

from deploykit.onnx_seal import BLANK_SEAL, SEAL_KEY, seal
from deploykit.spec import DimRange, InputSpec, ModelSpec, OutputSpec

STATIC = InputSpec(DimRange.fixed(2), DimRange.fixed(64), DimRange.fixed(96))
DYNAMIC = InputSpec(DimRange(1, 2, 4), DimRange(32, 64, 128), DimRange(32, 96, 128))
BODY = """
  pixels = Cast <to = 1> (images)
  means = ReduceMean <keepdims = 0> (pixels)
  scores = Sigmoid (means)
"""


def parse(text: str, opsets: str = '"": 18') -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(
        f"<ir_version: 9, opset_import: [{opsets}]>\n{text}"
    )
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"head/{node.op_type}_{number}"
        node.metadata_props.add(key="deploykit.module", value="head")
    return model


def detector_graph(spec: InputSpec = STATIC, body: str = BODY) -> onnx.ModelProto:
    """A graph with the input of the spec, and ``scores`` float32."""
    shape = "2,64,96,3" if spec.is_static else "batch,height,width,3"
    return parse(f"g (uint8[{shape}] images) => (float scores) {{ {body} }}")


def detector_spec(inputs: InputSpec = STATIC, **changes: Any) -> ModelSpec:
    values = {"output": OutputSpec(("scores",)), "lowering": "primitive"} | changes
    return ModelSpec("Toy", ("circle",), inputs, **values)


def write_onnx(path: Path, model: onnx.ModelProto, spec: ModelSpec | None) -> Path:
    """Write a graph as ``deploykit convert`` does, with its spec and its checksum."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if spec is not None:
        copy.metadata_props.add(key="deploykit", value=spec.to_json())
    copy.metadata_props.add(key=SEAL_KEY, value=BLANK_SEAL)
    path.write_bytes(seal(copy.SerializeToString()))
    return path
