import numpy as np
import onnx_ir as ir
import pytest
from graphs import model_of

from deploykit.errors import UsageError
from deploykit.exporters.precision.selection import KeepFloat32, select_float16, select_int8

GRAPH = """
g (float[1,4,8,8] images) => (float[1,4,8,8] y)
<float[4,4,1,1] w1, float[4,1,3,3] w2, float[4,4,1,1] w3, float[1] half>
{
    p = Mul(images, half)
    a = Conv(p, w1)
    b = Conv<group = 4, pads = [1,1,1,1]>(a, w2)
    e = Exp(b)
    c = Add(a, e)
    d = Conv(c, w3)
    y = Sigmoid(d)
}
"""
MODULES = (
    "data_preprocessor",
    "backbone.conv1",
    "backbone.conv2",
    "backbone.exp",
    "neck.sum",
    "bbox_head.conv",
    None,
)


def graph_of(scale=1.0):
    ones = {"w1": (4, 4, 1, 1), "w2": (4, 1, 3, 3), "w3": (4, 4, 1, 1), "half": (1,)}
    values = {name: np.ones(shape, np.float32) for name, shape in ones.items()}
    values["w2"] *= scale
    return ir.from_proto(model_of(GRAPH, MODULES, values)).graph


def names(selection):
    return [node.name for node in selection.nodes]


def test_float16_takes_the_network_without_pixels_exponentials_and_decoding():
    selection = select_float16(graph_of(), {})
    assert names(selection) == [
        "backbone.conv1/Conv",
        "backbone.conv2/Conv",
        "neck.sum/Add",
        "bbox_head.conv/Conv",
    ]
    assert selection.kept == {
        "data_preprocessor/Mul": "coordinates or pixels",
        "backbone.exp/Exp": "operator Exp",
    }


def test_values_near_the_end_of_float16_keep_their_nodes():
    limit = 65504 / 4
    assert len(select_float16(graph_of(), {"a": limit * 0.99}).nodes) == 4
    selection = select_float16(graph_of(), {"a": limit * 1.01})
    # The node that computes the value, and those that read it.
    assert names(selection) == ["bbox_head.conv/Conv"]
    assert selection.kept["backbone.conv1/Conv"].startswith("value up to")
    assert len(select_float16(graph_of(), {"a": 60000.0}, KeepFloat32(headroom=1)).nodes) == 4


@pytest.mark.parametrize("largest", [np.inf, np.nan])
def test_values_that_are_not_finite_keep_their_nodes(largest):
    assert "neck.sum/Add" not in names(select_float16(graph_of(), {"c": largest}))


def test_large_weights_keep_their_node():
    selection = select_float16(graph_of(scale=1e5), {})
    assert selection.kept["backbone.conv2/Conv"] == "weight up to 1e+05"


def test_what_the_user_keeps():
    keep = KeepFloat32(ops=["Add"], nodes=["bbox_head.*"], grouped_convolutions=True)
    selection = select_float16(graph_of(), {}, keep)
    assert names(selection) == ["backbone.conv1/Conv"]
    by_node = KeepFloat32(nodes=["backbone.conv1/Conv"])
    assert "backbone.conv1/Conv" not in names(select_float16(graph_of(), {}, by_node))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (KeepFloat32(nodes=["stem.*"]), r"no node of the network matches 'stem\.\*'"),
        (KeepFloat32(ops=["Softmax"]), "no operator 'Softmax'; it has: Add, Conv, Exp"),
    ],
)
def test_a_pattern_that_matches_nothing_is_a_mistake(keep, message):
    for select in (
        lambda: select_float16(graph_of(), {}, keep),
        lambda: select_int8(graph_of(), keep),
    ):
        with pytest.raises(UsageError, match=message):
            select()


def test_int8_takes_the_products_of_backbone_and_neck():
    selection = select_int8(graph_of())
    assert names(selection) == ["backbone.conv1/Conv", "backbone.conv2/Conv"]
    assert selection.kept == {"bbox_head.conv/Conv": "head"}


def test_int8_needs_constant_weights():
    text = "g (float[1,4] x) => (float[4,4] y) { t = Transpose(x) y = MatMul(t, x) }"
    graph = ir.from_proto(model_of(text, ["backbone.a", "backbone.b"])).graph
    selection = select_int8(graph)
    assert not selection.nodes
    assert selection.kept == {"backbone.b/MatMul": "no constant weight"}
