"""The ``plugin`` lowering: what an engine with our plugins reads, and what others run."""

from __future__ import annotations

import onnx
import pytest
from nms_cases import build
from onnx import helper

from deploykit.errors import ExportError
from deploykit.exporters.onnx_checks import check_operators


@pytest.fixture(params=[("B", "N"), (2, 500)])
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return build("plugin", 0.65, 30, dims=request.param, optimise=True)


def seam_node(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [node for node in model.graph.node if node.domain == "deploykit"]
    return node


def test_the_node_says_all_that_the_plugin_needs(model):
    node = seam_node(model)
    assert node.op_type == "BatchedNMS"
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert attributes == {"iou_threshold": pytest.approx(0.65), "max_out": 30}
    assert len(node.input) == 3
    (output,) = model.graph.output
    tensor = output.type.tensor_type
    assert tensor.elem_type == onnx.TensorProto.INT64
    assert tensor.shape.dim[1].dim_value == 30


def test_the_body_is_a_function_of_the_same_name_in_plain_onnx(model):
    (body,) = model.functions
    assert (body.domain, body.name) == ("deploykit", "BatchedNMS")
    assert set(body.attribute) == {"iou_threshold", "max_out"}
    assert {node.domain for node in body.node} == {""}
    references = {
        entry.ref_attr_name for node in body.node for entry in node.attribute if entry.ref_attr_name
    }
    assert references == {"iou_threshold", "max_out"}
    check_operators(model, "plugin")


def test_shapes_after_the_node_are_known_without_its_body():
    inner = build("plugin", 0.5, 30, dims=(2, 500))
    node = seam_node(inner)
    inner.graph.node.append(helper.make_node("Neg", [node.output[0]], ["negated"]))
    inner.graph.value_info.append(inner.graph.output[0])
    del inner.graph.output[:], inner.functions[:]
    inner.graph.output.append(helper.make_tensor_value_info("negated", 7, None))
    inferred = onnx.shape_inference.infer_shapes(inner)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 30]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: seam_node(m).attribute.pop(), "lacks the attributes"),
        (lambda m: m.functions.pop(), "has no function deploykit::BatchedNMS"),
        (lambda m: m.graph.output[0].type.Clear(), "type and shape of the output"),
        (lambda m: setattr(m.graph.node[0], "op_type", "NonZero"), "holds NonZero"),
        (lambda m: m.opset_import.add(domain="other", version=1), "needs operator sets"),
    ],
    ids=["attribute", "function", "shape", "operator", "domain"],
)
def test_checks_notice_what_an_engine_would_refuse(damage, message):
    model = build("plugin", 0.5, 30)
    check_operators(model, "plugin")
    damage(model)
    with pytest.raises(ExportError, match=message):
        check_operators(model, "plugin")


def test_checks_refuse_a_sort_that_is_too_large():
    count = helper.make_tensor("k", onnx.TensorProto.INT64, [1], [3841])
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["values", "places"], name="head/TopK")],
        "sort",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 9000])],
        [helper.make_tensor_value_info("values", onnx.TensorProto.FLOAT, [1, 3841])],
        [count],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    check_operators(model, "standard")
    with pytest.raises(ExportError, match="'head/TopK' sorts 3841 values.*--nms-pre"):
        check_operators(model, "primitive")
    with pytest.raises(ExportError, match=r"needs operator sets"):
        check_operators(build("plugin", 0.5, 3), "primitive")
