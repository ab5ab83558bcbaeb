"""Optimisation, names and metadata of an exported graph."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from deploykit.exporters.graph_capture import module_path

# Constants up to this many elements are computed at export; priors of any usual input among them.
FOLD_LIMIT = 1 << 18
MODULE_KEY = "deploykit.module"
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_PREFIX = "detector."


def clean_up(model: ir.Model) -> None:
    """Optimise a lowered graph and make it readable, in place.

    Constants are folded (with a static input all priors are), batch norms merge into convolutions,
    and what is double or unused goes. Nodes are named ``module/OpType`` after the PyTorch module
    they come from, which ``metadata_props["deploykit.module"]`` of the node repeats; initializers
    get their state-dict names; PyTorch's stack traces, which hold paths of this machine, go.

    Args:
        model: A lowered graph.
    """
    optimizer.optimize_ir(
        model,
        num_iterations=3,
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
        inline=False,  # the functions that a lowering leaves are meant to stay
    )
    for one_pass in (
        passes.CommonSubexpressionEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.TopologicalSortPass(),
    ):
        one_pass(model)
    _name_initializers(model.graph)
    _name_nodes(model.graph)
    _name_values(model.graph)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None


def _name_initializers(graph: ir.Graph) -> None:
    for name in list(graph.initializers):
        value = graph.initializers[name]
        value.metadata_props.clear()
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in graph.initializers:
            value.name = name.removeprefix(_PREFIX)


def _name_nodes(graph: ir.Graph) -> None:
    counts: Counter[str] = Counter()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
        path = module_path(scopes)
        node.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
        stem = f"{path or 'predict'}/{node.op_type}"
        node.name = f"{stem}_{counts[stem]}" if counts[stem] else stem
        counts[stem] += 1
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()


def _name_values(graph: ir.Graph) -> None:
    """Give values of subgraphs names of their own: ONNX propagates data by name alone."""
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        subgraphs = [
            attribute.as_graph()
            for attribute in node.attributes.values()
            if attribute.type == ir.AttributeType.GRAPH
        ]
        inputs = [value for subgraph in subgraphs for value in subgraph.inputs]
        for value in (*node.outputs, *inputs):
            name, number = value.name or node.op_type, 1
            while value.name in taken:
                number += 1
                value.name = f"{name}_{number}"
            taken.add(value.name)
