"""What TensorRT-RTX cannot build, and what is said about it; docs/tensorrt.md lists the same.

When a newer version learns one of these, its test fails, and the limit can go.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from engine_graphs import parse

from deploykit.errors import ExportError
from deploykit.exporters.tensorrt.builder import BuildOptions, build_engine
from deploykit.spec import DimRange, InputSpec, ModelSpec

DOCS = Path(__file__).parents[3] / "docs" / "tensorrt.md"
SPEC = ModelSpec(
    "Toy", ("circle",), InputSpec(DimRange.fixed(1), DimRange.fixed(8), DimRange.fixed(8))
)
HEAD = """
  pixels = Cast <to = 1> (images)
  flat = Flatten <axis = 1> (pixels)
"""
BOXES = """
  boxes_shape = Constant <value = int64[3] {1, 48, 4}> ()
  boxes = Reshape (flat, boxes_shape)
"""


def graph(body: str, output: str, opset: int = 18, opsets: str = "") -> onnx.ModelProto:
    return parse(
        f"g (uint8[1,8,8,3] images) => ({output}) {{ {HEAD} {body} }}", f'"": {opset}{opsets}'
    )


def error_of(model: onnx.ModelProto) -> str:
    with pytest.raises(ExportError) as caught:
        build_engine(model, SPEC, BuildOptions("rtx"))
    text = str(caught.value)
    assert "\n" not in text and text.startswith("TensorRT-RTX cannot build")
    return text


PRIMITIVE = "--lowering primitive"
LIMITS = {
    "NonZero": ("y = NonZero (flat)", "int64[2,n] y", 18, PRIMITIVE),
    "NonMaxSuppression": (
        f"""{BOXES}
          scores_shape = Constant <value = int64[3] {{1, 4, 48}}> ()
          scores = Reshape (flat, scores_shape)
          k = Constant <value = int64 {{5}}> ()
          y = NonMaxSuppression (boxes, scores, k)""",
        "int64[n,3] y",
        18,
        PRIMITIVE,
    ),
    "RoiAlign": (
        f"""{BOXES}
          zero = Constant <value = int64[1] {{0}}> ()
          rois = Squeeze (boxes, zero)
          first = Constant <value_ints = [0]> ()
          count = Constant <value = int64[1] {{48}}> ()
          images_of = Expand (first, count)
          map = Transpose <perm = [0, 3, 1, 2]> (pixels)
          y = RoiAlign <output_height = 7, output_width = 7> (map, rois, images_of)""",
        "float[48,3,7,7] y",
        18,
        PRIMITIVE,
    ),
    "DeformConv": (
        """map = Transpose <perm = [0, 3, 1, 2]> (pixels)
          weight = Constant <value_floats = [1.0, 1.0, 1.0]> ()
          shape = Constant <value = int64[4] {1, 3, 1, 1}> ()
          kernel = Reshape (weight, shape)
          small = Constant <value = int64[4] {0, 0, 0, 0}> ()
          ends = Constant <value = int64[4] {1, 2, 8, 8}> ()
          offsets = Slice (map, small, ends)
          y = DeformConv (map, kernel, offsets)""",
        "float[1,1,8,8] y",
        19,
        "deformable convolutions",
    ),
    "Unique": ("y = Unique (flat)", "float[n] y", 18, "it has no such operator"),
    "Compress": (
        """zero = Constant <value = float {0.0}> ()
          line = Flatten <axis = 0> (flat)
          sign = Greater (line, zero)
          axis = Constant <value = int64[1] {0}> ()
          choice = Squeeze (sign, axis)
          y = Compress <axis = 1> (flat, choice)""",
        "float[1,n] y",
        18,
        "it has no such operator",
    ),
}


@pytest.mark.parametrize("operator", LIMITS)
def test_operators_that_rtx_does_not_build(rtx: ModuleType, operator: str):
    body, output, opset, advice = LIMITS[operator]
    text = error_of(graph(body, output, opset))
    assert re.search(rf"{operator} 'head/{operator}_\d+' of the module 'head'", text), text
    assert advice in text
    assert operator in DOCS.read_text()


def test_top_k_selects_at_most_3840(rtx: ModuleType):
    body = """
      many = Constant <value = int64[2] {1, 60}> ()
      long = Tile (flat, many)
      k = Constant <value = int64[1] {3841}> ()
      y, places = TopK (long, k)
    """
    text = error_of(graph(body, "float[1,3841] y"))
    assert "at TopK 'head/TopK_5' of the module 'head'" in text
    assert "maximum value allowed (3840); " in text and "--nms-pre" in text
    build_engine(graph(body.replace("3841", "3840"), "float[1,3840] y"), SPEC, BuildOptions("rtx"))
    assert "3840" in DOCS.read_text()


def test_uint8_is_cast_before_anything_else(rtx: ModuleType):
    model = parse(
        """g (uint8[1,8,8,3] images) => (float[1,3,8,8] y) {
          moved = Transpose <perm = [0, 3, 1, 2]> (images)
          y = Cast <to = 1> (moved)
        }"""
    )
    text = error_of(model)
    assert "Transpose 'head/Transpose_0' of the module 'head'" in text and "UInt8" in text
    assert "uint8" in DOCS.read_text()


def test_int16_is_no_type(rtx: ModuleType):
    model = parse("g (uint8[1,8,8,3] images) => (int16[1,8,8,3] y) { y = Cast <to = 5> (images) }")
    with pytest.raises(ExportError, match="TensorRT-RTX cannot"):
        build_engine(model, SPEC, BuildOptions("rtx"))


SEAM = """
  scores_shape = Constant <value = int64[2] {1, 48}> ()
  first = Constant <value = int64[3] {0, 0, 0}> ()
  ends = Constant <value = int64[3] {1, 48, 1}> ()
  column = Slice (boxes, first, ends)
  scores = Reshape (column, scores_shape)
  labels = Cast <to = 7> (scores)
  y = deploykit.BatchedNMS <iou_threshold = 0.5, max_out = 3> (boxes, scores, labels)
"""


def test_a_node_of_the_seam_without_its_plugin(rtx: ModuleType):
    text = error_of(graph(BOXES + SEAM, "int64[1,3] y", opsets=', "deploykit": 1'))
    assert "deploykit::BatchedNMS 'head/BatchedNMS" in text and "of the module 'head'" in text
    assert "needs our plugins" in text and PRIMITIVE in text


def test_a_node_of_the_seam_with_a_body_is_built_from_that(rtx: ModuleType):
    model = graph(BOXES + SEAM, "int64[1,3] y", opsets=', "deploykit": 1')
    body = onnx.parser.parse_function(
        """<domain: "deploykit", opset_import: ["": 18]>
        BatchedNMS <iou_threshold, max_out> (boxes, scores, labels) => (indices) {
          k = Constant <value_int: int = @max_out> ()
          axis = Constant <value = int64[1] {0}> ()
          count = Unsqueeze (k, axis)
          best, indices = TopK (scores, count)
        }"""
    )
    model.functions.append(body)
    assert build_engine(model, SPEC, BuildOptions("rtx")).plan


def test_several_errors_are_counted(rtx: ModuleType):
    text = error_of(graph("a = Unique (flat)\n b = Det (pixels)\n y = Add (a, b)", "float[n] y"))
    assert text.count("cannot build") == 1 and text.endswith("(and 1 more)")


def test_garbage_is_one_line(rtx: ModuleType):
    """Whatever TensorRT says about a graph that makes no sense."""
    model = parse("g (uint8[1,8,8,3] images) => (float[2] y) { y = Sigmoid (nowhere) }")
    with pytest.raises(ExportError) as caught:
        build_engine(model, SPEC, BuildOptions("rtx"))
    assert "\n" not in str(caught.value)
