"""Plain RoIAlign built as an engine by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import pytest
from roi_align_cases import STRIDES, build

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


class Log(trt.ILogger):
    """Keeps the errors."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def built_network(model, profile=None):
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), log.errors
    config = builder.create_builder_config()
    if profile is not None:
        shapes = builder.create_optimization_profile()
        for name, sizes in profile.items():
            shapes.set_shape(name, *sizes)
        config.add_optimization_profile(shapes)
    assert builder.build_serialized_network(network, config) is not None, log.errors
    return network


def test_static_shapes():
    model = build("primitive", (7, 7), 0, True, 56, 4, False, (200, 1, 8, 320, 320))
    network = built_network(model)
    assert tuple(network.get_output(0).shape) == (200, 8, 7, 7)
    assert network.get_output(0).dtype == trt.float32


@pytest.mark.slow
def test_dynamic_shapes():
    model = build("primitive", (7, 7), 0, True, 56, 4, False, None)
    profile = {"rois": [(20, 5), (200, 5), (400, 5)]}
    for level, stride in enumerate(STRIDES):
        sizes = ((1, 64), (1, 320), (2, 640))
        profile[f"feature{level}"] = [(b, 2, side // stride, side // stride) for b, side in sizes]
    network = built_network(model, profile)
    assert tuple(network.get_output(0).shape) == (-1, 2, 7, 7)
