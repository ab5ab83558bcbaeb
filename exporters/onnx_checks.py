"""Checks that an exported graph is valid, has the promised signature, and runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnxruntime

from deploykit.errors import ExportError
from deploykit.exporters import seam
from deploykit.exporters.graph_capture import OPSET, example_inputs
from deploykit.exporters.lowerings.primitive_nms import LARGEST_TOPK
from deploykit.spec import InputSpec, ModelSpec

_TYPES = {
    "boxes": onnx.TensorProto.FLOAT,
    "scores": onnx.TensorProto.FLOAT,
    "labels": onnx.TensorProto.INT32,
    "num_dets": onnx.TensorProto.INT32,
}
Shape = tuple[int, int, int]

# Operators of ONNX that TensorRT-RTX lacks, or whose shapes or flow depend on values. RoIAlign has
# a Loop, of operators that are none of these either.
NOT_PRIMITIVE = frozenset(
    {"NonMaxSuppression", "RoiAlign", "NonZero", "Compress", "Unique", "If", "Scan"}
)
_PLAIN = {"ai.onnx": OPSET}
_OPSETS = {"plugin": _PLAIN | {seam.DOMAIN: seam.VERSION}}


def check_model(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Check an exported model in every way that needs no reference.

    The ONNX checker with shape inference, the operator set, the names, types and fixed sizes of the
    outputs, and a run in ONNX Runtime at the smallest and at the optimal input shape.

    Args:
        model: The model.
        spec: What it is meant to be.

    Raises:
        ExportError: A check failed.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())[:500]
        raise ExportError(f"the exported graph is not valid ONNX: {text}") from error
    check_operators(model, spec.lowering)
    _check_signature(inferred.graph, spec)
    _check_runs(model, spec)


def check_operators(model: onnx.ModelProto, lowering: str) -> None:
    """Check that a graph uses the operators that its lowering promises, and no others.

    Args:
        model: The model.
        lowering: ``"standard"``, ``"plugin"`` or ``"primitive"``.

    Raises:
        ExportError: It uses another operator set, or one that is not for this lowering; a node of
            the seam lacks an attribute, a function or the shape of its output.
    """
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    expected = _OPSETS.get(lowering, _PLAIN)
    if versions not in (expected, _PLAIN):
        raise ExportError(f"the exported graph needs operator sets {versions}, expected {expected}")
    if lowering == "standard":
        return
    bodies = [model.graph.node, *(body.node for body in model.functions)]
    refused = sorted({node.op_type for nodes in bodies for node in _nested(nodes)} & NOT_PRIMITIVE)
    if refused:
        raise ExportError(
            f"the exported graph holds {', '.join(refused)}, which '{lowering}' does without"
        )
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "TopK" and node.input[1] in constants:
            count = int(onnx.numpy_helper.to_array(constants[node.input[1]]).item())
            if count > LARGEST_TOPK:
                raise ExportError(
                    f"'{node.name}' sorts {count} values, TensorRT at most {LARGEST_TOPK}; pass a "
                    "smaller --nms-pre or --max-per-img"
                )
        elif node.domain == seam.DOMAIN:
            _check_plugin_node(node, model)


def _nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nested(attribute.g.node)


def _check_plugin_node(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    """Check that a node says all that an engine needs, which knows nothing of the operator."""
    bodies = [
        body
        for body in model.functions
        if (body.domain, body.name, body.overload) == (node.domain, node.op_type, node.overload)
    ]
    if not bodies:
        raise ExportError(f"'{node.name}' has no function {seam.DOMAIN}::{node.op_type}")
    missing = set(bodies[0].attribute) - {attribute.name for attribute in node.attribute}
    if missing:
        raise ExportError(f"'{node.name}' lacks the attributes {', '.join(sorted(missing))}")
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    for name in node.output:
        tensor = known[name].type.tensor_type if name in known else onnx.TypeProto.Tensor()
        if not tensor.elem_type or not tensor.HasField("shape"):
            raise ExportError(f"the type and shape of the output '{name}' are not written")


def _check_signature(graph: onnx.GraphProto, spec: ModelSpec) -> None:
    found = {value.name: value.type.tensor_type for value in graph.output}
    if tuple(found) != spec.output.names:
        raise ExportError(
            f"the exported graph has outputs {tuple(found)}, expected {spec.output.names}"
        )
    rows = spec.output.max_per_img
    sizes: Mapping[str, tuple[int, ...]] = {
        "boxes": (rows, 4),
        "scores": (rows,),
        "labels": (rows,),
    }
    for name, tensor in found.items():
        fixed = tuple(dim.dim_value for dim in tensor.shape.dim[1:])
        expected = sizes.get(name, fixed if name == "masks" else ())
        if tensor.elem_type != _TYPES.get(name, onnx.TensorProto.FLOAT) or fixed != expected:
            raise ExportError(
                f"the output '{name}' of the exported graph has type {tensor.elem_type} and shape "
                f"[B, {', '.join(map(str, fixed))}], expected {_TYPES.get(name)} and {expected}"
            )


def _check_runs(model: onnx.ModelProto, spec: ModelSpec) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come back as exceptions
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for batch, height, width in _shapes_to_run(spec.input):
            inputs = example_inputs(spec.input, batch, height, width)
            names = [node.name for node in session.get_inputs()]
            feeds = {name: array.numpy() for name, array in zip(names, inputs, strict=True)}
            outputs = session.run(list(spec.output.names), feeds)
            for name, array in zip(spec.output.names, outputs, strict=True):
                if array.shape[0] != batch or not np.isfinite(array).all():
                    raise ExportError(
                        f"ONNX Runtime computed '{name}' of shape {list(array.shape)} for input "
                        f"{batch}x{height}x{width}, not finite values for {batch} images"
                    )
    except ExportError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
        text = " ".join(str(error).split())[:500]
        raise ExportError(f"ONNX Runtime cannot run the exported graph: {text}") from error


def _shapes_to_run(spec: InputSpec) -> list[Shape]:
    """Return the smallest and the optimal (batch, height, width), without repetition.

    The largest is left to the parity check, which measures it instead of only running it.
    """
    shapes = [
        (spec.batch.min, spec.height.min, spec.width.min),
        (spec.batch.opt, spec.height.opt, spec.width.opt),
    ]
    return list(dict.fromkeys(shapes))
