"""Our plugins inside engines of TensorRT: needs a GPU and the package ``tensorrt``."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx_ir as ir
import pytest
from nms_cases import build as build_nms
from roi_align_cases import unlowered

from deploykit.errors import BackendError
from deploykit.exporters.lowerings import lowering
from deploykit.exporters.tensorrt.build_device import build_device
from deploykit.exporters.tensorrt.plugin_graph import with_plugins
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.plugins_trt.roi_align_reference import multilevel_roi_align
from deploykit.tensorrt_flavour import load_flavour, logger

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu():
    from deploykit.kernel_device import KernelDevice

    if find_spec("tensorrt") is None:
        pytest.skip("TensorRT is not installed")
    try:
        return KernelDevice()
    except BackendError as error:
        pytest.skip(str(error))


class Engine:
    """An engine of a graph; ``profile`` gives (min, opt, max) shapes of dynamic inputs by name."""

    def __init__(self, model, gpu, profile):
        trt = load_flavour("tensorrt")
        graph, kernels = with_plugins(model, trt, build_device())
        assert kernels
        builder = trt.Builder(logger(trt))
        strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strong is None else 1 << int(strong))
        parser = trt.OnnxParser(network, logger(trt))
        assert parser.parse(graph.SerializeToString()), [
            str(parser.get_error(index)) for index in range(parser.num_errors)
        ]
        config = builder.create_builder_config()
        shapes = builder.create_optimization_profile()
        for name, sizes in profile.items():
            shapes.set_shape(name, *sizes)
        config.add_optimization_profile(shapes)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None
        self.runtime = trt.Runtime(logger(trt))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        self.gpu, self.trt = gpu, trt

    def __call__(self, output, **inputs):
        arrays = {name: self.gpu.upload(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            assert self.context.set_input_shape(name, tuple(array.shape))
            self.context.set_tensor_address(name, array.address)
        dtype = np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(output)))
        result = self.gpu.empty(tuple(self.context.get_tensor_shape(output)), str(dtype))
        self.context.set_tensor_address(output, result.address)
        with self.gpu.gpu.activated():
            assert self.context.execute_async_v3(self.gpu._stream.handle)
        return self.gpu.download(result)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nms_in_an_engine(gpu, dtype):
    model = build_nms("plugin", 0.5, 100, dtype=dtype)
    sizes = ((1, 1), (2, 1000), (4, 5000))
    profile = {name: sizes for name in ("scores", "labels")}
    profile["boxes"] = tuple((*size, 4) for size in sizes)
    engine, rng = Engine(model, gpu, profile), np.random.default_rng(0)
    for batch, candidates in ((1, 1), (2, 64), (4, 1000), (1, 5000)):
        corner = rng.uniform(0, 300, (batch, candidates, 2))
        sides = rng.uniform(5, 60, (batch, candidates, 2))
        boxes = np.concatenate([corner, corner + sides], axis=2).astype(dtype)
        scores = rng.uniform(-0.2, 1, (batch, candidates)).astype(dtype)
        labels = rng.integers(0, 3, (batch, candidates))
        found = engine("indices", boxes=boxes, scores=scores, labels=labels)
        single = boxes.astype(np.float32), scores.astype(np.float32)
        np.testing.assert_array_equal(found, batched_nms(*single, labels, 0.5, 100))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("levels", [1, 4])
def test_roi_align_in_an_engine(gpu, half, levels):
    static = (50, 2, 40, 192, 256)
    graph = unlowered((7, 7), 0, True, 56, levels, half, static)
    lowering("plugin")(graph)
    engine = Engine(ir.to_proto(graph), gpu, {})
    rng, dtype = np.random.default_rng(0), np.float16 if half else np.float32
    strides = [4 * 2**level for level in range(levels)]
    features = {
        f"feature{level}": rng.normal(size=(2, 40, 192 // s, 256 // s)).astype(dtype)
        for level, s in enumerate(strides)
    }
    corner, sides = rng.uniform(-20, 150, (50, 2)), rng.uniform(1, 180, (50, 2))
    rois = np.concatenate([rng.integers(0, 2, (50, 1)), corner, corner + sides], axis=1)
    rois = (np.round(rois * 8) / 8 + 0.01 * np.array([0, 1, 1, 1, 1])).astype(np.float32)
    found = engine("crops", rois=rois, **features)
    maps = [feature.astype(np.float32) for feature in features.values()]
    scales = [1 / stride for stride in strides]
    expected = multilevel_roi_align(maps, rois, (7, 7), 0, scales, 56, True)
    tolerance = 4e-3 if half else 1e-4
    wrong = np.abs(found.astype(np.float32) - expected) > tolerance * (1 + np.abs(expected))
    assert wrong.any(axis=(1, 2, 3)).mean() <= 0.02
