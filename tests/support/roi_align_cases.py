"""``MultilevelRoIAlign`` lowered, run in ONNX Runtime, and compared with the eager operator."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper

from deploykit.exporters.lowerings import lowering
from deploykit.training.ops.multilevel_roi_align import multilevel_roi_align

STRIDES = (4, 8, 16, 32)
# Half precision of the result alone: all arithmetic is in float32.
TOLERANCES = {np.float32: 2e-5, np.float16: 4e-3}


def build(name, *arguments):
    model = unlowered(*arguments)
    lowering(name)(model)
    return ir.to_proto(model)


def unlowered(output_size, ratio, aligned, finest, levels, half, static):
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
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@cache
def session(*arguments):
    return load(build(*arguments))


def load(proto):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    name,
    features,
    rois,
    output_size=(7, 7),
    ratio=0,
    aligned=True,
    finest=56,
    static=None,
    tolerance=None,
):
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
    tolerance = tolerance or TOLERANCES[features[0].dtype.type]
    np.testing.assert_allclose(crops, eager.numpy(), atol=tolerance)
    return crops
