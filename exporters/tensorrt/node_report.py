"""Errors of TensorRT in the words of the model: which node, which module, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from deploykit.tensorrt_flavour import TITLES

# ``deploykit.exporters.graph_cleanup`` writes it into every node.
MODULE_KEY = "deploykit.module"
SEAM_DOMAIN = "deploykit"

_PRIMITIVE = "export the checkpoint with --lowering primitive"
# Operators that a TensorRT without a plugin for them cannot build, and what to do about them.
_REMEDIES = {
    "NonMaxSuppression": _PRIMITIVE,
    "RoiAlign": _PRIMITIVE,
    "NonZero": f"its result has no fixed size; {_PRIMITIVE}",
    "DeformConv": "deformable convolutions have no form that TensorRT builds yet",
}
_TOP_K_LIMIT = 3840


@dataclass(frozen=True)
class Place:
    """A node of the graph.

    Args:
        operator: With its domain where that is not ONNX's own.
        name: Of the node.
        module: Path of the PyTorch module that it comes from, if known.
    """

    operator: str
    name: str
    module: str

    def __str__(self) -> str:
        name = f" '{self.name}'" if self.name else ""
        return f"{self.operator}{name}" + (f" of the module '{self.module}'" if self.module else "")


class NodeReport:
    """Finds the nodes of a graph that TensorRT speaks of.

    Args:
        model: The graph that is built.
        flavour: ``"tensorrt"`` or ``"rtx"``.
    """

    def __init__(self, model: onnx.ModelProto, flavour: str) -> None:
        self.title = TITLES[flavour]
        self.flavour = flavour
        self.nodes = list(_all_nodes(model.graph.node))
        for function in model.functions:
            self.nodes += _all_nodes(function.node)
        self.main = model.graph.node

    def parser_errors(self, errors: Sequence[Any]) -> str:
        """Describe why the parser refuses a graph.

        Args:
            errors: ``ParserError`` objects.
        """
        lines = []
        for error in errors:
            text = _first_sentence(error.desc())
            place = self._place(error.node_name(), error.node_operator(), error.node())
            if place is None:
                lines.append(f"{self.title} cannot read the graph: {text}")
            else:
                reason = self._remedy(place.operator) or text
                if reason == "false":  # all that is said about an operator that it does not know
                    reason = "it has no such operator"
                lines.append(f"{self.title} cannot build {place}: {reason}")
        unique = list(dict.fromkeys(lines))
        more = f" (and {len(unique) - 1} more)" if len(unique) > 1 else ""
        return (unique[0] if unique else f"{self.title} cannot read the graph") + more

    def build_errors(self, messages: Sequence[str]) -> str:
        """Describe why the builder gave up.

        Args:
            messages: The errors that it logged, the first being the cause.
        """
        if not messages:
            return f"{self.title} built no engine and logged no error"
        node = next((node for text in messages if (node := self._mentioned(text))), None)
        place = f" at {_place_of(node)}" if node is not None else ""
        text = _first_sentence(messages[0])
        advice = self._advice(messages, node)
        return f"{self.title} cannot build the engine{place}: {text}" + (
            f"; {advice}" if advice else ""
        )

    def _place(self, name: str, operator: str, index: int) -> Place | None:
        for node in self.nodes:
            if name and node.name == name:
                return _place_of(node)
        if 0 <= index < len(self.main) and self.main[index].op_type == operator:
            return _place_of(self.main[index])
        return Place(operator, name, "") if operator else None

    def _mentioned(self, text: str) -> onnx.NodeProto | None:
        """Return the node with the longest name in a message; TensorRT may number its layers."""
        found = [
            node
            for node in self.nodes
            if node.name and re.search(rf"(?<![\w./]){re.escape(node.name)}(_\d+)?(?![\w/])", text)
        ]
        return max(found, key=lambda node: len(node.name), default=None)

    def _remedy(self, operator: str) -> str:
        if operator.startswith(f"{SEAM_DOMAIN}::"):
            if self.flavour == "rtx":
                return f"it needs our plugins, which {self.title} does not take; {_PRIMITIVE}"
            return (
                "its plugin is not registered; convert the model with 'deploykit convert --to "
                f"tensorrt', which does that, or {_PRIMITIVE}"
            )
        return _REMEDIES.get(operator, "")

    def _advice(self, messages: Sequence[str], node: onnx.NodeProto | None) -> str:
        everything = " ".join(messages)
        if "K exceeds the maximum" in everything:
            return f"it selects at most {_TOP_K_LIMIT} candidates; export with a lower --nms-pre"
        if "out of memory" in everything.lower() or "OutOfMemory" in everything:
            return "build on a GPU with more free memory, or with a smaller --workspace or --batch"
        return self._remedy(_place_of(node).operator) if node is not None else ""


def has_seam_nodes(model: onnx.ModelProto) -> bool:
    """Return whether a graph has nodes of our own domain."""
    return any(node.domain == SEAM_DOMAIN for node in _all_nodes(model.graph.node))


def _all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _place_of(node: onnx.NodeProto) -> Place:
    module = next((entry.value for entry in node.metadata_props if entry.key == MODULE_KEY), "")
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return Place(operator, node.name, module)


def _first_sentence(text: str) -> str:
    """Return a message of TensorRT on one line, without the places in its own sources."""
    text = re.sub(r"\s+In \w+ at /\S+", "", " ".join(text.split()))
    text = re.sub(r"^(\S+:|\[\S+\]) Error Code \d+: ", "", text)
    return text.rstrip(". ")[:400]
