"""``MultilevelRoIAlign`` in every lowering, run in ONNX Runtime, against the definition."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.exporters.lowerings import lowering
from deploykit.plugins_trt import roi_align_reference
from deploykit.training.ops.multilevel_roi_align import multilevel_roi_align

STRIDES = (4, 8, 16, 32)
LOWERINGS = ["standard", "primitive", "plugin"]
# Half precision of the result alone: all arithmetic is in float32.
TOLERANCES = {np.float32: 2e-5, np.float16: 4e-3}


def build(name, output_size, ratio, aligned, finest, levels, half, static):
    features = [f"feature{level}" for level in range(levels)]
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    node = helper.make_node(
        "MultilevelRoIAlign",
        ["rois", *features],
        ["crops"],
        domain="deploykit",
        output_size=output_size,
        sampling_ratio=ratio,
        spatial_scales=[1 / stride for stride in STRIDES[:levels]],
        finest_scale=finest,
        aligned=int(aligned),
    )
    count, batch, channels, height, width = static or ("R", "B", 2, None, None)
    inputs = [helper.make_tensor_value_info("rois", TensorProto.FLOAT, [count, 5])]
    for feature, stride in zip(features, STRIDES, strict=False):
        sides = [height // stride, width // stride] if height else [f"h{stride}", f"w{stride}"]
        shape = [batch, channels, *sides]
        inputs.append(helper.make_tensor_value_info(feature, kind, shape))
    output = helper.make_tensor_value_info("crops", kind, [count, channels, *output_size])
    graph = helper.make_graph([node], "roi_align", inputs, [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deploykit", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    lowering(name)(model)
    return ir.to_proto(model)


@cache
def session(*arguments):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        build(*arguments).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(name, features, rois, output_size=(7, 7), ratio=0, aligned=True, finest=56, static=None):
    """Run a lowering, and check it against the eager operator."""
    half = features[0].dtype == np.float16
    lowered = session(name, tuple(output_size), ratio, aligned, finest, len(features), half, static)
    feeds = {f"feature{level}": feature for level, feature in enumerate(features)}
    (crops,) = lowered.run(None, {"rois": rois, **feeds})
    eager = multilevel_roi_align(
        [torch.from_numpy(feature) for feature in features],
        torch.from_numpy(rois),
        list(output_size),
        ratio,
        [1 / stride for stride in STRIDES[: len(features)]],
        finest,
        aligned,
    )
    assert crops.dtype == features[0].dtype
    np.testing.assert_allclose(crops, eager.numpy(), atol=TOLERANCES[features[0].dtype.type])
    return crops


def reference(features, rois, output_size=(7, 7), ratio=0, aligned=True, finest=56):
    scales = [1 / stride for stride in STRIDES[: len(features)]]
    features = [feature.astype(np.float32) for feature in features]
    return roi_align_reference.multilevel_roi_align(
        features, rois, output_size, ratio, scales, finest, aligned
    )


def pyramid(batch=2, channels=2, height=96, width=128, levels=4, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((batch, channels, height // stride, width // stride)).astype(dtype)
        for stride in STRIDES[:levels]
    ]


# Corners on a grid make empty, inverted and outside regions frequent, and edges coincide; with
# finest_scale 8 sides of 16, 32 and 64 lie on the borders between levels.
coordinate = st.sampled_from([-300.0, -4.0, 0.0, 2.5, 16.0, 17.25, 32.0, 63.99, 64.0, 130.0, 500.0])
broken = st.sampled_from([float("nan"), float("inf"), float("-inf")])
box = st.tuples(*[coordinate] * 4) | st.tuples(*[coordinate | broken] * 4)
scene = st.lists(st.tuples(st.integers(0, 1), box), max_size=6).map(
    lambda rows: np.float32([(image, *corners) for image, corners in rows]).reshape(-1, 5)
)


@pytest.mark.parametrize("name", LOWERINGS)
@given(
    rois=scene,
    output_size=st.sampled_from([(2, 3), (7, 7)]),
    ratio=st.sampled_from([0, 2]),
    aligned=st.booleans(),
    finest=st.sampled_from([8, 56]),
    dtype=st.sampled_from([np.float32, np.float16]),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(name, rois, output_size, ratio, aligned, finest, dtype):
    features = pyramid(height=32, width=64, dtype=dtype)
    options = (output_size, ratio, aligned, finest)
    crops = run(name, features, rois, *options)
    expected = reference(features, rois, *options)
    np.testing.assert_allclose(crops, expected, atol=TOLERANCES[dtype])
