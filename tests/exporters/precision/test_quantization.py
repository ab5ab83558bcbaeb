import numpy as np
import onnx
import pytest
from graphs import model_of, run
from onnx import numpy_helper

from deploykit.errors import ExportError
from deploykit.exporters.precision.quantization import quantize

GRAPH = """
g (float[1,3,8,8] x) => (float[1,4,8,8] y)
<float[6,3,3,3] w1, float[6] b1, float[4,6,1,1] w2>
{
    a = Conv<pads = [1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    y = Conv(r, w2)
}
"""


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    values = {
        "w1": rng.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.3, 6).astype(np.float32),
        "w2": rng.normal(0, 0.3, (4, 6, 1, 1)).astype(np.float32),
    }
    return model_of(GRAPH, ["backbone.conv1", "backbone.relu", "bbox_head.conv"], values)


@pytest.fixture
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(0, 1, (1, 3, 8, 8)).astype(np.float32)} for _ in range(6)]


def tensors(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_scales_of_minmax_are_those_of_symmetric_quantisation(model, feeds):
    quantised = quantize(model, ["backbone.conv1/Conv"], feeds, "minmax")
    values = tensors(quantised)
    nodes = {node.name: node for node in quantised.graph.node}
    convolution = nodes["backbone.conv1/Conv"]
    producers = {name: node for node in quantised.graph.node for name in node.output}
    data, weight = (producers[name] for name in convolution.input[:2])
    assert data.op_type == weight.op_type == "DequantizeLinear"
    largest = max(np.abs(feed["x"]).max() for feed in feeds)
    assert values[data.input[1]] == pytest.approx(largest / 127, rel=0.01)
    exact = tensors(model)["w1"]
    np.testing.assert_allclose(
        values[weight.input[1]], np.abs(exact).max(axis=(1, 2, 3)) / 127, rtol=0.01
    )
    assert values[weight.input[0]].dtype == np.int8
    for node in (data, weight):
        assert not values[node.input[2]].any()  # zero points
    assert convolution.input[2] in values  # the bias stays float32
    assert values[convolution.input[2]].dtype == np.float32


def test_only_the_named_nodes_change(model, feeds):
    quantised = quantize(model, ["backbone.conv1/Conv"], feeds, "minmax")
    kinds = [node.op_type for node in quantised.graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    head = next(node for node in quantised.graph.node if node.name == "bbox_head.conv/Conv")
    assert head.input[1] == "w2"


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_the_result_is_near_and_runs(model, feeds, method):
    nodes = ["backbone.conv1/Conv", "bbox_head.conv/Conv"]
    quantised = quantize(model, nodes, feeds, method)
    onnx.checker.check_model(quantised, full_check=True)
    for feed in feeds:
        (exact,), (rounded,) = run(model, **feed), run(quantised, **feed)
        error = np.abs(exact - rounded)
        assert 0 < error.mean() < 0.02 * np.abs(exact).max()


def test_an_outlier_widens_minmax_but_not_percentile(model, feeds):
    feeds[3]["x"][0, 0, 0, 0] = 500.0
    scale = {}
    for method in ("minmax", "percentile"):
        quantised = quantize(model, ["backbone.conv1/Conv"], feeds, method, percentile=99.0)
        first = next(n for n in quantised.graph.node if n.op_type == "QuantizeLinear")
        scale[method] = float(tensors(quantised)[first.input[1]])
    assert scale["minmax"] == pytest.approx(500 / 127, rel=0.01)
    assert scale["percentile"] < scale["minmax"] / 20


def test_nothing_to_calibrate_on_or_to_quantise(model, feeds):
    with pytest.raises(ExportError, match="without images"):
        quantize(model, ["backbone.conv1/Conv"], [], "minmax")
    with pytest.raises(ExportError, match="nothing to quantise"):
        quantize(model, [], feeds, "minmax")


def test_values_that_may_be_empty_are_not_calibrated(model, feeds):
    """A pyramid level without any region gives RoIAlign nothing to do."""
    text = """
    g (float[1,3,8,8] x) => (float[1,4,8,8] y, float[N,3,8,8] some)
    <float[6,3,3,3] w1, float[6] b1, float[4,6,1,1] w2, float big>
    {
        level = ReduceMax<keepdims = 0>(x)
        above = Greater(level, big)
        flat = Reshape(above, one)
        index = NonZero(flat)
        row = Squeeze(index, zero)
        picked = Gather<axis = 0>(x, row)
        some = Relu(picked)
        a = Conv<pads = [1,1,1,1]>(x, w1, b1)
        r = Relu(a)
        y = Conv(r, w2)
    }
    """
    values = tensors(model) | {
        "big": np.float32(1e9),
        "one": np.asarray([1], np.int64),
        "zero": np.asarray([0], np.int64),
    }
    modules = [None] * 7 + ["backbone.conv1", "backbone.relu", "bbox_head.conv"]
    dispatching = model_of(text, modules, values)
    quantised = quantize(dispatching, ["backbone.conv1/Conv"], feeds, "minmax")
    y, some = run(quantised, **feeds[0])
    assert some.size == 0
    assert y.any()
