"""Pixels become floats before they are moved: TensorRT takes uint8 inputs, and only casts them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

# Operators that only move elements of their first input.
_MOVES = frozenset(
    ("Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
)


def cast_pixels_first(model: ir.Model) -> None:
    """Cast each uint8 input to float32 at once, in place, where that is what becomes of it.

    Inputs that something else is done to than moving elements, taking the shape and casting to
    float32 are left alone.

    Args:
        model: A graph of plain ONNX operators, with types.
    """
    for value in model.graph.inputs:
        uses = list(_uses(value))
        casts = [node for node in uses if _is_cast(node)]
        moves = [node for node in uses if node.op_type in _MOVES]
        only_moved = len(casts) + len(moves) == len(uses)
        shown = any(node.outputs[0].is_graph_output() for node in moves)
        if value.dtype != ir.DataType.UINT8 or not moves or not only_moved or shown:
            continue
        users = _data_users(value)
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
        cast.metadata_props.update(casts[0].metadata_props if casts else {})
        pixels = cast.outputs[0]
        pixels.name, pixels.shape = f"{value.name}_as_float", value.shape
        for node in users:
            node.replace_input_with(0, pixels)
        model.graph.insert_before(model.graph[0], cast)
        for float_value in (pixels, *(node.outputs[0] for node in moves)):
            float_value.dtype = ir.DataType.FLOAT
        for node in casts:
            node.op_type = "Identity"  # which the optimiser drops
            node.attributes.clear()


def _uses(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that take the elements of a value, moved or not."""
    for node in _data_users(value):
        yield node
        if node.op_type in _MOVES:
            yield from _uses(node.outputs[0])


def _data_users(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type != "Shape"]


def _is_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT.value
