"""Plain NMS built as an engine by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import pytest
from nms_cases import build
from rtx_network import built_network

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


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
