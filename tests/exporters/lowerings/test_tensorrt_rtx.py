"""Plain NMS built as an engine by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import pytest
from nms_cases import build

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
    network = built_network(build("primitive", 0.5, 100, dims=(2, 3200), optimise=True))
    assert tuple(network.get_output(0).shape) == (2, 100)
    assert network.get_output(0).dtype == trt.int64


def test_dynamic_batch_and_number_of_candidates():
    model = build("primitive", 0.5, 100, optimise=True)
    sizes = [(1, 300), (2, 3000), (4, 9000)]
    profile = {"scores": sizes, "labels": sizes, "boxes": [(*size, 4) for size in sizes]}
    network = built_network(model, profile)
    assert tuple(network.get_output(0).shape) == (-1, 100)
