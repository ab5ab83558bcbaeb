"""How a lowering replaces the nodes of the seam: by calls of functions, which are then inlined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from deploykit.errors import ExportError
from deploykit.exporters import seam
from deploykit.exporters.graph_capture import OPSET
from deploykit.exporters.lowerings.graph_writer import GraphWriter

# Of the functions that nodes of the seam are turned into; gone after ``inline``.
DOMAIN = "deploykit.lowering"

# What the results of a lowering are limited by; see ``ModelSpec.lowering_limits``.
Limits = dict[str, int]
# Changes a model and a node of the seam in it, in place.
Rewrite = Callable[[ir.Model, ir.Node], Limits]


def rewrite_seam(model: ir.Model, rewrites: Mapping[str, Rewrite]) -> Limits:
    """Hand each node of the seam to the function that replaces it.

    Args:
        model: An exported model.
        rewrites: By operator of the seam: changes a model and a node of it in place.

    Returns:
        What the results are limited by: of each kind the largest limit of any node.

    Raises:
        ExportError: There is none for an operator.
    """
    limits: Limits = {}
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain != seam.DOMAIN:
            continue
        if node.op_type not in rewrites:
            raise ExportError(f"this lowering has no form of {node.domain}::{node.op_type}")
        for name, limit in rewrites[node.op_type](model, node).items():
            limits[name] = max(limit, limits.get(name, limit))
    return limits


def add_functions(model: ir.Model, *functions: Any) -> None:
    """Add onnxscript functions to a model, for nodes to call.

    Args:
        model: The model.
        functions: Functions compiled by ``onnxscript.script``, callees first.
    """
    for function in functions:
        definition = ir.serde.deserialize_function(function.to_function_proto())
        model.functions[definition.identifier()] = definition


def add_written_function(
    model: ir.Model,
    domain: str,
    name: str,
    body: GraphWriter,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    attributes: Mapping[str, ir.AttributeType],
    overload: str = "",
) -> None:
    """Add a function to a model whose body was written node by node.

    Args:
        model: The model.
        domain: Of the function.
        name: Of the function.
        body: The nodes.
        inputs: What they take.
        outputs: What they make.
        attributes: The attributes of the function, all required.
        overload: Tells functions of one name apart.
    """
    opsets = {"": OPSET}
    graph = ir.Graph(inputs, outputs, nodes=body.nodes, opset_imports=opsets)
    parameters = [ir.Attr(attribute, kind, None) for attribute, kind in attributes.items()]
    function = ir.Function(domain, name, overload, graph=graph, attributes=parameters)
    model.functions[function.identifier()] = function


def inline(model: ir.Model) -> None:
    """Inline all functions and leave no trace of the domains of the seam, in place."""
    InlinePass()(model)
    for domain in (seam.DOMAIN, DOMAIN):
        model.opset_imports.pop(domain, None)
