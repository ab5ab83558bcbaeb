"""Any ONNX graph built by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from deploykit.tensorrt_flavour import collect_messages, load_flavour, logger

Shape = tuple[int, ...]


def built_network(
    model: onnx.ModelProto, profile: Mapping[str, Sequence[Shape]] | None = None
) -> Any:
    """Build an engine and return its network.

    Args:
        model: The graph.
        profile: Smallest, optimal and largest shape by input, for a graph with dynamic axes.
    """
    rtx = load_flavour("rtx")
    with collect_messages(rtx, "ERROR") as log:
        builder = rtx.Builder(logger(rtx))
        network = builder.create_network(0)
        parser = rtx.OnnxParser(network, logger(rtx))
        assert parser.parse(model.SerializeToString()), log.errors
        config = builder.create_builder_config()
        if profile is not None:
            shapes = builder.create_optimization_profile()
            for name, sizes in profile.items():
                shapes.set_shape(name, *sizes)
            config.add_optimization_profile(shapes)
        assert builder.build_serialized_network(network, config) is not None, log.errors
    return network
