import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import model_of, node_types, run

from deploykit.exporters.precision.apply import apply_precision
from deploykit.exporters.precision.float16 import to_float16
from deploykit.exporters.precision.float16_rounding import with_explicit_rounding
from deploykit.exporters.precision.options import PrecisionOptions

NETWORK = """
g (float[1,3,16,16] x) => (float[1,8,32,32] y, float[1,8,1,1] m)
<float[8,3,3,3] w, float[8] b, float[8] gamma, float[8] beta, float[8] mean, float[8] variance,
 float[4] scales>
{
    c = Conv<pads = [1,1,1,1]>(x, w, b)
    n = BatchNormalization(c, gamma, beta, mean, variance)
    r = Relu(n)
    u = Resize<mode = "nearest">(r, , scales)
    y = Add(u, u)
    m = ReduceMax<keepdims = 1>(r, axes)
}
"""
MODULES = ["backbone.conv", "backbone.bn", "backbone.act", "neck", "neck.sum", None]


def weights(rng, variance=1.0):
    return {
        "w": rng.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.2, 8).astype(np.float32),
        "gamma": (rng.uniform(0.5, 1.5, 8) * np.sqrt(variance)).astype(np.float32),
        "beta": rng.normal(0, 0.2, 8).astype(np.float32),
        "mean": rng.normal(0, 0.2, 8).astype(np.float32),
        "variance": (rng.uniform(0.5, 2, 8) * variance).astype(np.float32),
        "scales": np.asarray([1, 1, 2, 2], np.float32),
        "axes": np.asarray([2, 3], np.int64),
    }


def converted(model, chosen=None):
    graph = ir.from_proto(model)
    nodes = [n for n in graph.graph if (chosen(n) if chosen else n.op_type != "ReduceMax")]
    done = to_float16(graph, nodes)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto, done


@pytest.fixture
def image():
    return np.random.default_rng(1).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)


def test_the_network_computes_in_float16_and_its_borders_stay_float32(image):
    model = model_of(NETWORK, MODULES, weights(np.random.default_rng(0)))
    proto, done = converted(model)
    types = node_types(proto)
    assert {tuple(types[name]) for name in done.converted} == {("FLOAT16",)}
    assert types["predict/ReduceMax"] == {"FLOAT"}
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)]
    assert {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)} == {1}
    assert [output.name for output in proto.graph.output] == ["y", "m"]
    for exact, half in zip(run(model, x=image), run(proto, x=image), strict=True):
        assert 0 < np.abs(exact - half).max() < 0.02


def test_each_value_is_cast_once(image):
    model = model_of(NETWORK, MODULES, weights(np.random.default_rng(0)))
    proto, done = converted(model)
    # x goes in; r (for ReduceMax) and y come out.
    assert done.casts == 3 == sum(node.op_type == "Cast" for node in proto.graph.node)


def test_the_scales_of_a_resize_stay_float32():
    proto, _ = converted(model_of(NETWORK, MODULES, weights(np.random.default_rng(0))))
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert types["scales"] == onnx.TensorProto.FLOAT
    assert "w" not in types  # the float32 weight is gone
    assert types["w_fp16"] == onnx.TensorProto.FLOAT16


def test_statistics_of_a_batch_norm_need_not_fit_float16(image):
    # Variances of 1e10 are infinite in float16; the factor gamma / sqrt(variance) is about 1.
    model = model_of(NETWORK, MODULES, weights(np.random.default_rng(0), variance=1e10))
    proto, _ = converted(model)
    for exact, half in zip(run(model, x=image), run(proto, x=image), strict=True):
        assert np.abs(exact - half).max() < 0.02


def test_nodes_that_are_not_chosen_compute_as_before(image):
    model = model_of(NETWORK, MODULES, weights(np.random.default_rng(0)))
    proto, done = converted(model, chosen=lambda node: node.op_type == "Add")
    assert done.converted == ["neck.sum/Add"]
    exact, half = run(model, x=image), run(with_explicit_rounding(proto), x=image)
    np.testing.assert_array_equal(exact[1], half[1])
    u = exact[0] / 2
    expected = (u.astype(np.float16) + u.astype(np.float16)).astype(np.float32)
    np.testing.assert_array_equal(half[0], expected)


def test_weights_that_round_to_zero_are_counted():
    values = weights(np.random.default_rng(0))
    values["w"][:] = 1e-9
    proto, done = converted(model_of(NETWORK, MODULES, values))
    rounded = values["w"].size
    # Weights and bias of the convolution, factor and offset of the batch norm.
    assert done.vanished == pytest.approx(rounded / (rounded + 8 + 8 + 8))
    assert proto is not None


def test_written_out_rounding_is_that_of_float16_arithmetic(image):
    proto, _ = converted(model_of(NETWORK, MODULES, weights(np.random.default_rng(0))))
    rounded = with_explicit_rounding(proto)
    onnx.checker.check_model(rounded, full_check=True)
    y, m = run(rounded, x=image)
    # Every value that leaves the network is one that float16 has ...
    for array in (y, m):
        np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32))
    # ... and the steps round one by one, as numpy's float16 does where no sums are involved.
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    graph = ir.from_proto(proto).graph
    convolution = next(node for node in graph if node.op_type == "Conv")
    convolved = onnx.helper.make_tensor_value_info(
        convolution.outputs[0].name, onnx.TensorProto.FLOAT16, None
    )
    rounded.graph.output.append(
        onnx.helper.make_tensor_value_info(
            f"{convolved.name}_rounded", onnx.TensorProto.FLOAT16, None
        )
    )
    step = run(rounded, x=image)[2]
    assert step.dtype == np.float16
    factor, offset = (
        tensors[f"backbone.bn/BatchNormalization/{n}_fp16"] for n in ("factor", "offset")
    )
    relu = np.maximum((step * factor).astype(np.float16) + offset, np.float16(0))
    np.testing.assert_array_equal(m[0, :, 0, 0], relu.max(axis=(2, 3))[0].astype(np.float32))


def test_a_loop_sees_float32_values_of_a_float16_network(image):
    """Bodies read values of the graph around them; outputs of a loop have no type of their own."""
    text = """
    g (float[1,3,16,16] x, int64 times) => (float[1,8,16,16] y)
    <float[8,3,3,3] w, float[8] b, float[8,8,1,1] v>
    {
        c = Conv<pads = [1,1,1,1]>(x, w, b)
        r = Relu(c)
        yes = Constant<value = bool {1}>()
        total = Loop(times, yes, r) <body = body (int64 i, bool on, float[1,8,16,16] before)
            => (bool again, float[1,8,16,16] after) { again = Identity(on) after = Add(before, r) }>
        y = Conv(total, v)
    }
    """
    rng = np.random.default_rng(0)
    values = {name: weights(rng)[name] for name in ("w", "b")}
    values["v"] = rng.normal(0, 0.3, (8, 8, 1, 1)).astype(np.float32)
    modules = ["backbone.conv", "backbone.act", None, None, "neck.conv"]
    model = model_of(text, modules, values)
    del model.graph.value_info[:]
    feed = {"x": image, "times": np.asarray(3, np.int64)}
    converted, record = apply_precision(model, PrecisionOptions("fp16"), [feed], "noise")
    assert record.converted == {"Conv": 2, "Relu": 1}
    (exact,), (half,) = run(model, **feed), run(with_explicit_rounding(converted), **feed)
    assert 0 < np.abs(exact - half).max() < 0.02 * np.abs(exact).max()
