"""Plain RoIAlign built as an engine by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import pytest
from roi_align_cases import STRIDES, build
from rtx_network import built_network

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


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
