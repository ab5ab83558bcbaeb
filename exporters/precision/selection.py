"""Which nodes of an exported detector compute in a lower precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from deploykit.errors import UsageError
from deploykit.exporters.graph_cleanup import MODULE_KEY
from deploykit.exporters.precision.float16 import FLOAT16_MAX

# Operators whose float16 form loses nothing but the last bits of its result. Sums over many
# elements, exponentials and normalisations are left in float32 on purpose.
FLOAT16_OPS = frozenset(
    (
        *("Add", "Clip", "Div", "Elu", "Expand", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
        *(
            "LeakyRelu",
            "Max",
            "Min",
            "Mish",
            "Mul",
            "Neg",
            "PRelu",
            "Relu",
            "Sigmoid",
            "Sub",
            "Tanh",
        ),
        *("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"),
        *("AveragePool", "GlobalMaxPool", "MaxPool", "Resize"),
        *("Concat", "DepthToSpace", "Flatten", "Gather", "Pad", "Reshape", "Slice", "SpaceToDepth"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    )
)
# Modules whose arithmetic is about coordinates or raw pixels.
FLOAT32_MODULES = ("data_preprocessor*", "*roi_extractor*")
INT8_OPS = ("Conv", "Gemm", "MatMul")
# Regression and classification outputs lose too much in 8 bits.
INT8_MODULES = ("backbone.*", "neck.*")


@dataclass(frozen=True)
class KeepFloat32:
    """What stays in float32 although it could be converted.

    Args:
        ops: Operator types.
        nodes: Shell patterns (``*``, ``?``) on node names and on module paths.
        grouped_convolutions: Convolutions with groups; some TensorRT 11 releases have no float16
            kernel for them.
        headroom: A node is kept when a value of it came within this factor of float16's largest.
    """

    ops: Sequence[str] = ()
    nodes: Sequence[str] = ()
    grouped_convolutions: bool = False
    headroom: float = 4.0

    def __post_init__(self) -> None:
        if self.headroom < 1:
            raise UsageError(f"the headroom must be at least 1, got {self.headroom}")


@dataclass
class Selection:
    """The nodes to convert, and why the others of the network are not.

    Args:
        nodes: To be converted.
        kept: Reason by node name, of nodes of the network that stay in float32.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def network_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that come from a module of the network, in order.

    Decoding, top-k and suppression are functions of the detector and belong to no module.
    """
    return [node for node in graph if node.metadata_props.get(MODULE_KEY)]


def float_values(node: ir.Node) -> Iterable[ir.Value]:
    """Return the float32 inputs and outputs of a node."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == ir.DataType.FLOAT:
            yield value


def select_float16(
    graph: ir.Graph, ranges: Mapping[str, float], keep: KeepFloat32 | None = None
) -> Selection:
    """Choose the nodes that can compute in float16.

    Args:
        graph: A float32 graph with module paths in its nodes' metadata.
        ranges: Largest magnitude of each value that a node of the network computes.
        keep: What to leave in float32.

    Raises:
        UsageError: A pattern of ``keep`` matches nothing.
    """
    keep = keep or KeepFloat32()
    nodes = network_nodes(graph)
    _check_patterns(keep, nodes)
    limit = FLOAT16_MAX / keep.headroom
    selection = Selection()
    for node in nodes:
        if all(value.dtype != ir.DataType.FLOAT for value in node.outputs):
            continue  # arithmetic of shapes
        reason = _why_float32(node, keep) or _out_of_range(node, ranges, limit)
        if reason is None:
            selection.nodes.append(node)
        else:
            selection.kept[node.name or node.op_type] = reason
    return selection


def select_int8(graph: ir.Graph, keep: KeepFloat32 | None = None) -> Selection:
    """Choose the convolutions and matrix products that are worth quantising.

    Args:
        graph: As in ``select_float16``.
        keep: What to leave in float32.

    Raises:
        UsageError: A pattern of ``keep`` matches nothing.
    """
    keep = keep or KeepFloat32()
    nodes = network_nodes(graph)
    _check_patterns(keep, nodes)
    selection = Selection()
    for node in nodes:
        if node.op_type not in INT8_OPS:
            continue
        module = node.metadata_props[MODULE_KEY]
        reason = _why_float32(node, keep)
        if reason is None and not _matches(module, INT8_MODULES):
            reason = "head"
        if reason is None and (len(node.inputs) < 2 or not _is_constant(node.inputs[1])):
            reason = "no constant weight"
        if reason is None:
            selection.nodes.append(node)
        else:
            selection.kept[node.name or node.op_type] = reason
    return selection


def _why_float32(node: ir.Node, keep: KeepFloat32) -> str | None:
    module = node.metadata_props[MODULE_KEY]
    if _matches(module, FLOAT32_MODULES):
        return "coordinates or pixels"
    if node.op_type not in FLOAT16_OPS:
        return f"operator {node.op_type}"
    if node.op_type in keep.ops:
        return "operator kept on request"
    if _matches(node.name or "", keep.nodes) or _matches(module, keep.nodes):
        return "kept on request"
    if keep.grouped_convolutions and node.attributes.get_int("group", 1) > 1:
        return "grouped convolution kept on request"
    return None


def _out_of_range(node: ir.Node, ranges: Mapping[str, float], limit: float) -> str | None:
    for value in float_values(node):
        if _is_constant(value) and value.const_value is not None:
            array = value.const_value.numpy()
            largest = float(np.abs(array).max()) if array.size else 0.0
            what = "weight"
        else:
            largest, what = ranges.get(value.name or "", 0.0), "value"
        if not largest <= limit:
            return f"{what} up to {largest:.3g}"
    return None


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.producer() is None


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _check_patterns(keep: KeepFloat32, nodes: Sequence[ir.Node]) -> None:
    names = [node.name or "" for node in nodes] + [
        node.metadata_props[MODULE_KEY] for node in nodes
    ]
    for pattern in keep.nodes:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"no node of the network matches '{pattern}'; names look like '{names[0]}'"
                if names
                else f"no node of the network matches '{pattern}': it has no nodes"
            )
    ops = {node.op_type for node in nodes}
    for name in keep.ops:
        if name not in ops:
            raise UsageError(
                f"the network has no operator '{name}'; it has: {', '.join(sorted(ops))}"
            )
