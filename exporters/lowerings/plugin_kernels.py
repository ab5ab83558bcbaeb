"""Nodes of the seam as the plugins of our kernels: what TensorRT's parser reads.

A ``deploykit::BatchedNMS`` node becomes the four plugins of batched NMS, a
``deploykit::MultilevelRoIAlign`` node the plugin for its number of levels. The functions that are
their bodies for other engines go: the parser would import a body in place of the plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from deploykit.errors import ExportError
from deploykit.exporters import seam
from deploykit.plugins_trt.nms_kernels import default_window
from deploykit.plugins_trt.plugin import NAMESPACE
from deploykit.plugins_trt.roi_align_kernels import RoIAlignParameters
from deploykit.plugins_trt.roi_align_plugin import plugin_name

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def expand(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the plugins of our kernels in place of the nodes of the seam.

    Args:
        model: A model with the ``plugin`` lowering; others come back as they are.

    Raises:
        ExportError: A node is of a type or has inputs that the kernels do not take.
    """
    if not any(entry.domain == seam.DOMAIN for entry in model.opset_import):
        return model
    expanded = ir.serde.deserialize_model(model)
    bodies = [name for name in expanded.functions if name[0] == seam.DOMAIN]
    for name in bodies:
        del expanded.functions[name]
    for node in list(ir.traversal.RecursiveGraphIterator(expanded.graph)):
        if node.domain != seam.DOMAIN:
            continue
        if node.op_type not in _EXPANSIONS:
            raise ExportError(f"there is no plugin for {node.domain}::{node.op_type}")
        _EXPANSIONS[node.op_type](node)
    return ir.serde.serialize_model(expanded)


def _expand_nms(node: ir.Node) -> None:
    """Replace a node by sort, gather, mask and scan; labels are int32 inside."""
    boxes, scores, labels = _inputs(node)
    for value in (boxes, scores):
        _check_type(node, value, _FLOATS)
    threshold = node.attributes["iou_threshold"].as_float()
    max_out = node.attributes["max_out"].as_int()
    window = default_window(max_out)
    prefix = node.name or f"{seam.BATCHED_NMS}_{node.outputs[0].name}"

    small_labels = _node("Cast", [labels], {"to": _INT32.value}, [f"{prefix}/labels"])
    labels = small_labels.outputs[0]
    names = _names(prefix, "keys", "tile_counts")
    sort = _plugin("NmsSort", [scores], {}, names)
    names = _names(prefix, "order", "sorted_boxes", "sorted_labels", "counts")
    gather = _plugin("NmsGather", [boxes, labels, *sort.outputs], {"window": window}, names)
    order, sorted_boxes, sorted_labels, counts = gather.outputs
    mask = _plugin(
        "NmsMask",
        [sorted_boxes, sorted_labels, counts],
        {"iou_threshold": threshold},
        _names(prefix, "mask"),
    )
    attributes = {"iou_threshold": threshold, "max_out": max_out, "window": window}
    scan_inputs = [boxes, labels, order, counts, mask.outputs[0]]
    scan = _plugin("NmsScan", scan_inputs, attributes, _names(prefix, "indices"))
    result = _node("Cast", [scan.outputs[0]], {"to": _INT64.value}, [f"{prefix}/result"])
    _replace(node, [small_labels, sort, gather, mask, scan, result])


def _expand_roi_align(node: ir.Node) -> None:
    """Replace a node by the plugin for its number of levels."""
    rois, *features = _inputs(node)
    _check_type(node, rois, (ir.DataType.FLOAT,))
    for feature in features:
        _check_type(node, feature, (features[0].dtype or _FLOATS[0],))
    _check_type(node, features[0], _FLOATS)
    attributes = seam.RoIAlignAttributes.of(node)
    RoIAlignParameters(  # refuses more levels than there are plugins for
        attributes.output_size,
        attributes.sampling_ratio,
        attributes.spatial_scales,
        attributes.finest_scale,
        attributes.aligned,
    )
    if len(features) != len(attributes.spatial_scales):
        raise ExportError(
            f"node '{node.name}' has {len(features)} feature maps and "
            f"{len(attributes.spatial_scales)} spatial scales"
        )
    values = {
        "output_height": attributes.output_size[0],
        "output_width": attributes.output_size[1],
        "sampling_ratio": attributes.sampling_ratio,
        "spatial_scales": list(attributes.spatial_scales),
        "finest_scale": attributes.finest_scale,
        "aligned": int(attributes.aligned),
    }
    prefix = node.name or f"{seam.MULTILEVEL_ROI_ALIGN}_{node.outputs[0].name}"
    name = plugin_name(len(features))
    _replace(node, [_plugin(name, [rois, *features], values, _names(prefix, "crops"))])


_EXPANSIONS: dict[str, Callable[[ir.Node], None]] = {
    seam.BATCHED_NMS: _expand_nms,
    seam.MULTILEVEL_ROI_ALIGN: _expand_roi_align,
}


def _inputs(node: ir.Node) -> list[ir.Value]:
    inputs = [value for value in node.inputs if value is not None]
    if len(inputs) != len(node.inputs):
        raise ExportError(f"an input of node '{node.name}' ({node.op_type}) is left out")
    return inputs


def _check_type(node: ir.Node, value: ir.Value, expected: Sequence[ir.DataType]) -> None:
    """Check the type of a value, where the graph tells it."""
    if value.dtype is not None and value.dtype not in expected:
        raise ExportError(
            f"input '{value.name}' of node '{node.name}' ({node.op_type}) is "
            f"{value.dtype.name}, its plugin takes {' or '.join(one.name for one in expected)}"
        )


def _names(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}/{name}" for name in names]


def _node(
    op_type: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, Any],
    outputs: Sequence[str],
    domain: str = "",
) -> ir.Node:
    values = [ir.Value(name=name) for name in outputs]
    written = ir.convenience.convert_attributes(attributes)
    return ir.Node(domain, op_type, inputs, written, outputs=values, name=f"{outputs[0]}/{op_type}")


def _plugin(
    name: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], outputs: Sequence[str]
) -> ir.Node:
    """Return a node by which the parser finds a plugin: by name, version and namespace."""
    place = {"plugin_version": "1", "plugin_namespace": NAMESPACE}
    return _node(name, inputs, dict(attributes) | place, outputs, seam.DOMAIN)


def _replace(node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put nodes, in order, in the place of one node; the last one gives its output."""
    (output,) = node.outputs
    (result,) = nodes[-1].outputs
    result.type, result.shape, result.name = output.type, output.shape, output.name
    for new in nodes:  # an error message of TensorRT is told its place by it
        new.metadata_props.update(node.metadata_props)
    if node.graph is None:
        raise ExportError(f"node '{node.name}' is in no graph")
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, [output], [result])
