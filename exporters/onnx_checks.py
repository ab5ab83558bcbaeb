"""Checks that an exported graph is valid, has the promised signature, and runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from deploykit.errors import ExportError
from deploykit.exporters.graph_capture import OPSET, example_inputs
from deploykit.spec import InputSpec, ModelSpec

_TYPES = {
    "boxes": onnx.TensorProto.FLOAT,
    "scores": onnx.TensorProto.FLOAT,
    "labels": onnx.TensorProto.INT32,
    "num_dets": onnx.TensorProto.INT32,
}
Shape = tuple[int, int, int]


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
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    if spec.lowering == "standard" and versions != {"ai.onnx": OPSET}:
        raise ExportError(f"the exported graph needs operator sets {versions}, not plain {OPSET}")
    _check_signature(inferred.graph, spec)
    _check_runs(model, spec)


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
