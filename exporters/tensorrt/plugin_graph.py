"""Our plugins in a graph that TensorRT is about to read."""

from __future__ import annotations

from types import ModuleType

import onnx
import onnx_ir as ir

from deploykit.engine_spec import PluginKernel
from deploykit.exporters import seam
from deploykit.exporters.lowerings.plugin_kernels import expand
from deploykit.exporters.tensorrt.build_device import BuildDevice
from deploykit.plugins_trt.kernel import source_digest
from deploykit.plugins_trt.registration import PLUGINS, register_plugins


def with_plugins(
    model: onnx.ModelProto, tensorrt: ModuleType, device: BuildDevice | None
) -> tuple[onnx.ModelProto, tuple[PluginKernel, ...]]:
    """Put plugins in place of the nodes of our own domain, and register them.

    Args:
        model: A graph; without such nodes it comes back as it is, and nothing is registered.
        tensorrt: The module.
        device: The GPU that the engine is built for; None: any from compute capability 7.5 on.

    Returns:
        The graph for TensorRT's parser, and the kernels that the engine will hold.

    Raises:
        ExportError: A node is of a type or has inputs that the kernels do not take.
        MissingDependencyError: This TensorRT takes no such plugins.
    """
    expanded = expand(model)
    graph = ir.serde.deserialize_model(expanded).graph
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    names = {node.op_type for node in nodes if node.domain == seam.DOMAIN}
    if not names:
        return model, ()
    capability = None
    if device is not None:
        major, minor = device.compute_capability.split(".")
        capability = int(major), int(minor)
    register_plugins(tensorrt, capability)
    sources = sorted({plugin.source for plugin in PLUGINS if plugin.name in names})
    return expanded, tuple(PluginKernel(source, source_digest(source)) for source in sources)
