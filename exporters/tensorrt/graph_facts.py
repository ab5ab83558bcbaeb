"""What a graph says about itself that goes into the spec of its engine."""

from __future__ import annotations

from collections import Counter

import onnx

from deploykit.engine_spec import TensorInfo


def bare_graph(model: onnx.ModelProto) -> bytes:
    """Serialise a graph without the metadata of the file, which has no part in the engine.

    The same graph gives the same bytes, whatever was measured about it.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return bytes(bare.SerializeToString(deterministic=True))


def inputs_of(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """Return the inputs of a graph, weights left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_info(value) for value in model.graph.input if value.name not in weights)


def outputs_of(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """Return the outputs of a graph."""
    return tuple(_info(value) for value in model.graph.output)


def result_types(model: onnx.ModelProto) -> dict[str, int]:
    """Count the element types of the results of all nodes, constants left out."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in inferred.graph.value_info}
    values |= {value.name: value for value in inferred.graph.output}
    counts = Counter(
        _type_name(values[name])
        for node in inferred.graph.node
        for name in node.output
        if node.op_type != "Constant" and name in values
    )
    return dict(counts.most_common())


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    sizes = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    )
    return TensorInfo(value.name, _type_name(value), sizes)


def _type_name(value: onnx.ValueInfoProto) -> str:
    name = str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
