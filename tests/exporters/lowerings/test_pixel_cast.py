"""Pixels are cast before they are moved."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from deploykit.exporters.lowerings.pixel_cast import cast_pixels_first


def rewritten(body: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    text = f'<ir_version: 8, opset_import: ["": 18]>\ng (uint8[2,6,5,3] images) => {body}'
    before = onnx.shape_inference.infer_shapes(parser.parse_model(text))
    graph = ir.from_proto(before)
    cast_pixels_first(graph)
    after = ir.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    return before, after


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    return session.run(None, {"images": images})


def consumers(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if "images" in node.input]


@pytest.mark.parametrize(
    "body",
    [
        """(float[2,3,6,5] y) {
          a = Transpose<perm = [0, 3, 1, 2]>(images)
          s = Constant<value = int64[1] {-1}>()
          e = Constant<value = int64[1] {-10}>()
          x = Constant<value = int64[1] {1}>()
          b = Slice(a, s, e, x, s)
          c = Cast<to = 1>(b)
          y = Neg(c)
        }""",
        """(float[2,3,6,5] y) {
          a = Transpose<perm = [0, 3, 1, 2]>(images)
          y = Cast<to = 1>(a)
        }""",
        """(float[2,3,6,5] y, float[2,6,5,3] z, int64[4] s) {
          s = Shape(images)
          a = Transpose<perm = [0, 3, 1, 2]>(images)
          b = Cast<to = 1>(a)
          y = Neg(b)
          c = Cast<to = 1>(images)
          z = Neg(c)
        }""",
    ],
    ids=["transpose and flip", "result is an output", "two uses and the shape"],
)
def test_the_results_are_the_same_and_only_the_cast_sees_uint8(body: str):
    before, after = rewritten(body)
    for old, new in zip(run(before), run(after), strict=True):
        np.testing.assert_array_equal(old, new)
    assert set(consumers(before)) - {"Shape"} != {"Cast"}
    assert set(consumers(after)) - {"Shape"} == {"Cast"}
    assert sum(node.op_type == "Cast" for node in after.graph.node) == 1


@pytest.mark.parametrize(
    "body",
    [
        "(uint8[2,3,6,5] y) { y = Transpose<perm = [0, 3, 1, 2]>(images) }",
        """(float[2,3,6,5] y, uint8[2,6,5,3] z) {
          a = Transpose<perm = [0, 3, 1, 2]>(images)
          y = Cast<to = 1>(a)
          z = Max(images, images)
        }""",
        """(int32[2,3,6,5] y) {
          a = Transpose<perm = [0, 3, 1, 2]>(images)
          y = Cast<to = 6>(a)
        }""",
        "(float[2,6,5,3] y) { y = Cast<to = 1>(images) }",
    ],
    ids=["stays uint8", "arithmetic on uint8", "becomes an integer", "cast first already"],
)
def test_graphs_that_do_something_else_with_pixels_are_left_alone(body: str):
    before, after = rewritten(body)
    assert [node.op_type for node in after.graph.node] == [
        node.op_type for node in before.graph.node
    ]
