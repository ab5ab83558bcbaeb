"""How large the values of a graph become on given images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from deploykit.errors import ExportError

Feeds = Mapping[str, npt.NDArray[Any]]
_PREFIX = "largest_magnitude/"


def activation_ranges(
    model: onnx.ModelProto, names: Iterable[str], feeds: Iterable[Feeds]
) -> dict[str, float]:
    """Run a graph and record the largest magnitude of each of the named values.

    The reduction is part of the graph that runs, so whole feature maps never leave it.

    Args:
        model: A float32 graph that ONNX Runtime runs; not changed.
        names: Values of the main graph, float32.
        feeds: The inputs of each run.

    Returns:
        By name; infinite where a value was infinite or not a number.

    Raises:
        ExportError: There is nothing to run on, or ONNX Runtime cannot run the graph.
    """
    wanted = list(dict.fromkeys(names))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            _with_magnitudes(model, wanted).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
        text = " ".join(str(error).split())[:300]
        raise ExportError(f"the ranges of the graph cannot be measured: {text}") from error
    largest = np.zeros(len(wanted), np.float32)
    runs = 0
    for feed in feeds:
        outputs = session.run([_PREFIX + name for name in wanted], dict(feed))
        values = np.asarray([float(value) for value in outputs], np.float32)
        largest = np.maximum(largest, np.where(np.isnan(values), np.inf, values))
        runs += 1
    if not runs:
        raise ExportError("the ranges of the graph cannot be measured without an image")
    return dict(zip(wanted, (float(value) for value in largest), strict=True))


def _with_magnitudes(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a copy of the model whose outputs are the largest magnitudes alone."""
    measured = ir.serde.deserialize_model(model)
    graph = measured.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    for name in names:
        magnitude = ir.node("Abs", [values[name]])
        # An axis is not given: the maximum of all elements. An empty value counts as 0.
        zero = ir.node("Constant", [], {"value_floats": ir.AttrFloat32s("value_floats", [0.0])})
        flat = ir.node("Reshape", [magnitude.outputs[0], _shape(graph)])
        joined = ir.node("Concat", [flat.outputs[0], zero.outputs[0]], {"axis": 0})
        largest = ir.node("ReduceMax", [joined.outputs[0]], {"keepdims": 0})
        output = largest.outputs[0]
        output.name, output.dtype, output.shape = _PREFIX + name, ir.DataType.FLOAT, ir.Shape([])
        graph.extend([magnitude, zero, flat, joined, largest])
        graph.outputs.append(output)
    return ir.serde.serialize_model(measured)


def _shape(graph: ir.Graph) -> ir.Value:
    name = _PREFIX + "flat"
    if name not in graph.initializers:
        graph.register_initializer(
            ir.Value(name=name, const_value=ir.tensor(np.asarray([-1], np.int64), name=name))
        )
    return graph.initializers[name]
