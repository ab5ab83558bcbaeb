"""ONNX functions written node by node in Python, where their size depends on the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from deploykit.exporters.graph_capture import OPSET


class FunctionBuilder:
    """Collects the nodes of an ONNX function.

    An operator is a method call: ``build.Add(x, 1.0, axis=0)`` appends a node and returns its
    output. Plain numbers and lists of them become constants: int64, or float32 where one is a
    float.

    Args:
        domain: Of the function.
        name: Of the function.
        inputs: Names of its inputs.
        attributes: Its attributes, all required.
    """

    def __init__(
        self,
        domain: str,
        name: str,
        inputs: Sequence[str],
        attributes: Mapping[str, ir.AttributeType],
    ) -> None:
        self._domain, self._name = domain, name
        self._attributes = dict(attributes)
        self._nodes: list[ir.Node] = []
        self.inputs = [ir.Value(name=name) for name in inputs]

    def __getattr__(self, op_type: str) -> Any:
        """Return the function that appends a node of this type."""
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def append(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            values = [self._value(value) for value in inputs]
            return self._append(op_type, values, outputs, attributes)

        return append

    def attribute(self, name: str) -> ir.Value:
        """Return the value of an attribute of the function, as a scalar."""
        kind = self._attributes[name]
        reference = ir.RefAttr(f"value_{kind.name.lower()}", name, kind)
        return self._add(ir.Node("", "Constant", [], [reference]))

    def function(self, outputs: Sequence[ir.Value], overload: str = "") -> ir.Function:
        """Return the function.

        Args:
            outputs: What it returns.
            overload: Tells functions of one name apart.
        """
        graph = ir.Graph(self.inputs, outputs, nodes=self._nodes, opset_imports={"": OPSET})
        attributes = [ir.Attr(name, kind, None) for name, kind in self._attributes.items()]
        return ir.Function(
            self._domain, self._name, overload, graph=graph, attributes=attributes
        )

    def _value(self, value: Any) -> ir.Value | None:
        if value is None or isinstance(value, ir.Value):
            return value
        floats = any(isinstance(v, float) for v in (value if isinstance(value, list) else [value]))
        kind = ("float" if floats else "int") + ("s" if isinstance(value, list) else "")
        return self._append("Constant", [], 1, {f"value_{kind}": value})

    def _append(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Mapping[str, Any],
    ) -> Any:
        converted = ir.convenience.convert_attributes(attributes)
        return self._add(ir.Node("", op_type, inputs, converted, num_outputs=outputs))

    def _add(self, node: ir.Node) -> Any:
        self._nodes.append(node)
        for index, output in enumerate(node.outputs):
            output.name = f"{node.op_type.lower()}_{len(self._nodes)}_{index}"
        return node.outputs[0] if len(node.outputs) == 1 else tuple(node.outputs)
