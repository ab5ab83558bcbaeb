"""From a float32 graph to one in the precision that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from deploykit.errors import ExportError
from deploykit.exporters.precision.activation_ranges import Feeds, activation_ranges
from deploykit.exporters.precision.float16 import to_float16
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.exporters.precision.quantization import quantize
from deploykit.exporters.precision.selection import (
    Selection,
    network_nodes,
    select_float16,
    select_int8,
)


@dataclass(frozen=True)
class PrecisionRecord:
    """What a precision pass did to a graph.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        converted: Number of nodes in that precision, by operator.
        kept: Reason by node name, of nodes of the network that stayed in float32.
        images: On which images ranges were measured, in words.
        details: More facts, by name.
    """

    precision: str
    converted: dict[str, int]
    kept: dict[str, str]
    images: str
    details: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return the record that goes into the spec of the artefact."""
        return {
            "precision": self.precision,
            "converted_nodes": self.converted,
            "kept_in_fp32": dict(Counter(self.kept.values())),
            "ranges_measured_on": self.images,
            **self.details,
        }


def apply_precision(
    model: onnx.ModelProto, options: PrecisionOptions, feeds: Sequence[Feeds], images: str
) -> tuple[onnx.ModelProto, PrecisionRecord]:
    """Rewrite a graph for a lower precision. Inputs and outputs keep their types.

    Args:
        model: A cleaned-up float32 graph that ONNX Runtime runs; not changed.
        options: The precision, and what to leave out.
        feeds: Inputs to measure ranges on.
        images: What they are, in words.

    Returns:
        The graph, and what was done to it.

    Raises:
        ExportError: Nothing of the network could be converted, or ONNX Runtime fails.
        UsageError: What is to be left out does not exist.
    """
    passes = {"fp16": _float16, "int8": _int8}
    if options.precision not in passes:
        raise ExportError(f"there is no pass for precision '{options.precision}'")
    converted, selection, details = passes[options.precision](model, options, feeds)
    counts = Counter(node.op_type for node in selection.nodes)
    record = PrecisionRecord(
        options.precision, dict(counts), selection.kept, images, details | {"runs": len(feeds)}
    )
    try:
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())[:300]
        raise ExportError(f"the graph in {options.precision} is not valid ONNX: {text}") from error
    return converted, record


def _float16(
    model: onnx.ModelProto, options: PrecisionOptions, feeds: Sequence[Feeds]
) -> tuple[onnx.ModelProto, Selection, dict[str, Any]]:
    # A loop or a function does not tell the types of its outputs; the pass has to know them.
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    computed = [
        value.name
        for node in network_nodes(graph.graph)
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name
    ]
    ranges = activation_ranges(model, computed, feeds)
    selection = select_float16(graph.graph, ranges, options.keep)
    _check_found(selection)
    counts = Counter(node.op_type for node in selection.nodes)
    done = to_float16(graph, selection.nodes)
    details = {
        "casts": done.casts,
        "weights_rounded_to_zero": done.vanished,
        "largest_value": max(ranges.values(), default=0.0),
        "nodes": sum(counts.values()),
    }
    return ir.to_proto(graph), selection, details


def _int8(
    model: onnx.ModelProto, options: PrecisionOptions, feeds: Sequence[Feeds]
) -> tuple[onnx.ModelProto, Selection, dict[str, Any]]:
    selection = select_int8(ir.from_proto(model).graph, options.keep)
    _check_found(selection)
    names = [node.name for node in selection.nodes if node.name]
    quantised = quantize(model, names, feeds, options.calibration)
    return quantised, selection, {"calibration": options.calibration}


def _check_found(selection: Selection) -> None:
    if not selection.nodes:
        reasons = ", ".join(f"{count} x {why}" for why, count in _reasons(selection))
        raise ExportError(f"no node of the network can be converted ({reasons or 'none found'})")


def _reasons(selection: Selection) -> list[tuple[str, int]]:
    return Counter(selection.kept.values()).most_common(5)
