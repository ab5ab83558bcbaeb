"""Plain ONNX written node by node: for operators whose number of inputs or steps varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

Constant = int | float | Sequence[int] | Sequence[float]
Operand = ir.Value | Constant | None


class GraphWriter:
    """Collects nodes of the default operator set; a call adds one.

    ``write("Add", x, 1.0)`` returns the output of a new node. Integers become constants of type
    int64, other numbers float32; sequences become vectors.
    """

    def __init__(self) -> None:
        self._tape = Tape()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, op_type: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """Add a node with one output.

        Args:
            op_type: An ONNX operator.
            *inputs: Values, constants, or ``None`` for optional inputs left out.
            **attributes: Its attributes.
        """
        return self._tape.op(op_type, self._values(inputs), attributes)

    def several(
        self, outputs: int, op_type: str, *inputs: Operand, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node with that many outputs."""
        return self._tape.op_multi_out(
            op_type, self._values(inputs), attributes, num_outputs=outputs
        )

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What was written, in order."""
        return self._tape.nodes

    def take_place_of(self, node: ir.Node, value: ir.Value) -> None:
        """Put the nodes where ``node`` is, which goes, and ``value`` in place of its output."""
        graph, (output,) = node.graph, node.outputs
        if graph is None:
            raise ValueError(f"the node {node.name} is in no graph")
        for new in self.nodes:
            new.metadata_props.update(node.metadata_props)
        value.type, value.shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], list(self.nodes), [output], [value]
        )

    def _values(self, inputs: Sequence[Operand]) -> list[ir.Value | None]:
        return [
            value if value is None or isinstance(value, ir.Value) else self._constant(value)
            for value in inputs
        ]

    def _constant(self, value: Constant) -> ir.Value:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._tape.op("Constant", [], {"value": ir.tensor(array)})
        return self._constants[key]
