"""A float32 graph rewritten to compute its network in float16, inputs and outputs unchanged."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

FLOAT16_MAX = 65504.0
# Below half of the smallest positive float16 a value becomes zero.
FLOAT16_TINY = 2.0**-25
# Inputs of an operator that stay float32 although its data is float16.
_FLOAT32_INPUTS = {"Resize": (1, 2)}


@dataclass
class Float16Graph:
    """What the pass did.

    Args:
        converted: Names of the nodes that compute in float16.
        casts: Number of casts at the borders.
        vanished: Share of the non-zero weights in float16 that became zero.
    """

    converted: list[str] = field(default_factory=list)
    casts: int = 0
    vanished: float = 0.0


def to_float16(model: ir.Model, nodes: Collection[ir.Node]) -> Float16Graph:
    """Let the given nodes compute in float16, in place.

    Their float32 inputs and outputs become float16: weights are rounded, values that come from or
    go to other nodes are cast, once each. Batch norms that are left become a multiplication and an
    addition with factors computed in float64, because variances need not fit float16.

    Args:
        model: A float32 graph; types of all values known.
        nodes: Nodes of the main graph without subgraphs, of operators that have a float16 form.

    Returns:
        What was done.
    """
    graph = model.graph
    chosen = {node for node in graph if node in set(nodes)}
    chosen = _fold_batch_norms(graph, chosen)
    rewriter = _Rewriter(graph, chosen)
    for node in list(graph):
        if node in chosen:
            rewriter.convert_inputs(node)
    for node in list(graph):
        if node in chosen:
            rewriter.convert_outputs(node)
    RemoveUnusedNodesPass()(model)  # and the float32 weights that nobody reads any more
    return rewriter.summary()


class _Rewriter:
    """Casts and rounded weights of one graph, each made once."""

    def __init__(self, graph: ir.Graph, chosen: Collection[ir.Node]) -> None:
        self.graph = graph
        self.chosen = set(chosen)
        self.half_of: dict[ir.Value, ir.Value] = {}
        self.casts = 0
        self.weights = 0
        self.vanished = 0

    def summary(self) -> Float16Graph:
        names = [node.name or node.op_type for node in self.graph if node in self.chosen]
        return Float16Graph(names, self.casts, self.vanished / max(1, self.weights))

    def convert_inputs(self, node: ir.Node) -> None:
        """Make the float32 inputs of a chosen node float16."""
        kept = _FLOAT32_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or index in kept:
                continue
            producer = value.producer()
            if producer is not None and producer in self.chosen:
                continue  # becomes float16 itself
            node.replace_input_with(index, self._half(value))

    def convert_outputs(self, node: ir.Node) -> None:
        """Make the float32 outputs of a chosen node float16, and cast them for all others."""
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            value.dtype = ir.DataType.FLOAT16
            others = [
                (user, index)
                for user, index in value.uses()
                if user not in self.chosen or index in _FLOAT32_INPUTS.get(user.op_type, ())
            ]
            if not others and not value.is_graph_output():
                continue
            cast = self._cast(value, ir.DataType.FLOAT, after=node)
            for user, index in others:
                user.replace_input_with(index, cast)
            if value.is_graph_output():
                # The promised name stays with the float32 value.
                value.name, cast.name = f"{value.name}_fp16", value.name
                for place, output in enumerate(self.graph.outputs):
                    if output is value:
                        self.graph.outputs[place] = cast

    def _half(self, value: ir.Value) -> ir.Value:
        """Return the float16 form of a value that no chosen node computes."""
        if value not in self.half_of:
            if value.const_value is not None and value.producer() is None:
                self.half_of[value] = self._rounded(value)
            else:
                self.half_of[value] = self._cast(value, ir.DataType.FLOAT16, value.producer())
        return self.half_of[value]

    def _rounded(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None  # noqa: S101  # for the type checker
        exact = value.const_value.numpy()
        with np.errstate(over="ignore"):
            rounded = exact.astype(np.float16)
        self.weights += int(np.count_nonzero(exact))
        self.vanished += int(np.count_nonzero((rounded == 0) & (exact != 0)))
        name = f"{value.name}_fp16"
        half = ir.Value(name=name, const_value=ir.tensor(rounded, name=name))
        half.dtype, half.shape = ir.DataType.FLOAT16, value.shape
        self.graph.register_initializer(half)
        return half

    def _cast(self, value: ir.Value, dtype: ir.DataType, after: ir.Node | None) -> ir.Value:
        node = ir.node("Cast", [value], {"to": dtype.value})
        suffix = "fp16" if dtype == ir.DataType.FLOAT16 else "fp32"
        node.name = f"{value.name}/Cast_{suffix}"
        output = node.outputs[0]
        output.name, output.dtype, output.shape = f"{value.name}_to_{suffix}", dtype, value.shape
        if after is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(after, node)
        self.casts += 1
        return output


def _fold_batch_norms(graph: ir.Graph, chosen: set[ir.Node]) -> set[ir.Node]:
    """Replace the batch norms among the chosen nodes by ``x * factor + offset``."""
    result = set(chosen)
    for node in list(graph):
        if node not in chosen or node.op_type != "BatchNormalization":
            continue
        parameters = [value.const_value for value in node.inputs[1:] if value is not None]
        if any(parameter is None for parameter in parameters):
            result.discard(node)
            continue
        gamma, beta, mean, variance = (
            parameter.numpy().astype(np.float64) for parameter in parameters if parameter
        )
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        data, output = node.inputs[0], node.outputs[0]
        rank = len(output.shape) if output.shape is not None else 4
        scaled = ir.node("Mul", [data, _channel_values(graph, node, "factor", factor, rank)])
        shifted = ir.node(
            "Add",
            [scaled.outputs[0], _channel_values(graph, node, "offset", beta - mean * factor, rank)],
        )
        for new in (scaled, shifted):
            new.name = f"{node.name}/{new.op_type}"
            new.metadata_props.update(node.metadata_props)
            new.outputs[0].type, new.outputs[0].shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [scaled, shifted], [output], shifted.outputs
        )
        result.discard(node)
        result.update((scaled, shifted))
    return result


def _channel_values(
    graph: ir.Graph, node: ir.Node, what: str, values: np.ndarray, rank: int
) -> ir.Value:
    name = f"{node.name}/{what}"
    array = values.astype(np.float32).reshape(-1, *[1] * (rank - 2))
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    graph.register_initializer(value)
    return value
