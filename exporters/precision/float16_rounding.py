"""A float16 graph with every rounding written out, so that a CPU shows what float16 costs.

ONNX Runtime has no float16 kernels for x86 processors. It computes in float32 between casts that it
inserts, and drops the pairs of casts in between, and with them most of the rounding. Casts that
stand in the graph it keeps.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def with_explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes each float16 node in float32 and rounds its results to float16.

    That is what tensor cores do: products and sums in float32, results in float16.

    Args:
        model: A graph with float16 nodes; not changed. Types of all values known.
    """
    result = ir.from_proto(model)
    graph = result.graph
    widened: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == _HALF:
                if value not in widened:
                    widened[value] = _widen(graph, value)
                node.replace_input_with(index, widened[value])
        for value in node.outputs:
            if value.dtype == _HALF:
                _round(graph, node, value)
    return ir.to_proto(result)


def _widen(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return the float32 form of a float16 value."""
    name = f"{value.name}_widened"
    if value.const_value is not None and value.producer() is None:
        array = value.const_value.numpy().astype(np.float32)
        wide = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        wide.dtype, wide.shape = _FLOAT, value.shape
        graph.register_initializer(wide)
        return wide
    cast = ir.node("Cast", [value], {"to": _FLOAT.value}, name=f"{name}/Cast")
    cast.outputs[0].name, cast.outputs[0].dtype = name, _FLOAT
    cast.outputs[0].shape = value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return cast.outputs[0]


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Put a cast behind a node, which computes ``value`` in float32 from now on."""
    users = list(value.uses())
    cast = ir.node("Cast", [value], {"to": _HALF.value}, name=f"{value.name}/Cast_round")
    rounded = cast.outputs[0]
    rounded.name, rounded.dtype, rounded.shape = f"{value.name}_rounded", _HALF, value.shape
    value.dtype = _FLOAT
    graph.insert_after(node, cast)
    for user, index in users:
        user.replace_input_with(index, rounded)
