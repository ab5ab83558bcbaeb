"""What an artefact says about itself, and what can be seen in it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.atomic_file import sha256_of_file
from deploykit.engine_spec import TensorInfo, engine_spec_path, read_engine
from deploykit.errors import BackendError, ConfigError, SpecError, UsageError
from deploykit.onnx_seal import is_damaged
from deploykit.optional_imports import import_optional
from deploykit.spec import METADATA_KEY, ModelSpec
from deploykit.tensorrt_flavour import TITLES

if TYPE_CHECKING:
    import onnx
    import torch


@dataclass(frozen=True)
class Inspection:
    """What is in a model file.

    Args:
        path: The file.
        kind: ``"checkpoint"``, ``"onnx"`` or ``"engine"``.
        size: In bytes.
        sha256: Hash of the content.
        parameters: Number of floating-point weights, buffers and other constants included; ``None``
            where the means to count them are not installed.
        spec: What the file says about itself, if it does.
        missing_spec: Why there is no spec, if there is none.
        inputs: Of a graph.
        outputs: Of a graph.
        operators: How often each operator occurs in a graph, subgraphs included.
        facts: Further findings by name.
    """

    path: str
    kind: str
    size: int
    sha256: str
    parameters: int | None
    spec: ModelSpec | None = None
    missing_spec: str = ""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        return dataclasses.asdict(self)


def inspect_model(path: str | os.PathLike[str], fit: str | None = None) -> Inspection:
    """Look into a model file without running it.

    Args:
        path: A checkpoint (``.pth``, ``.pt``), an ``.onnx`` or an ``.engine`` file.
        fit: Also say how the weights of a checkpoint fit a model: that of this config file or
            recipe, or of the checkpoint's own config if it is empty.

    Raises:
        UsageError: The suffix is unknown, or ``fit`` was asked for a file that is no checkpoint.
        ConfigError: There is no config to compare with, or it cannot be built.
        CheckpointError: The checkpoint is missing or damaged.
        BackendError: The ONNX file or the engine is missing or damaged.
        SpecError: The engine has no spec beside it, or a damaged one.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in (".pth", ".pt"):
        return _inspect_checkpoint(file, fit)
    if fit is not None:
        raise UsageError(f"only the weights of a checkpoint (.pth) can be fitted, not {path}")
    if suffix == ".onnx":
        return _inspect_onnx(file)
    if suffix == ".engine":
        return _inspect_engine(file)
    raise UsageError(f"cannot tell what '{path}' is; expected a .pth, .pt, .onnx or .engine file")


def _inspect_checkpoint(file: Path, fit: str | None) -> Inspection:
    import_optional("torch", "train", "Inspecting a checkpoint")
    from deploykit.training.checkpoint import read_checkpoint, weights_of

    checkpoint = read_checkpoint(file)
    weights = weights_of(checkpoint, str(file))
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    spec, missing = _checkpoint_spec(file, meta)
    facts = {
        name: meta[name]
        for name in ("epoch", "iter", "seed", "time", "mmdet_version", "mmengine_version")
        if isinstance(meta.get(name), int | float | str)
    }
    return Inspection(
        path=str(file),
        kind="checkpoint",
        size=file.stat().st_size,
        sha256=sha256_of_file(file),
        parameters=sum(value.numel() for value in weights.values() if value.is_floating_point()),
        spec=spec,
        missing_spec=missing,
        facts=facts
        | {
            "tensors": len(weights),
            "dtypes": _dtypes(weights),
            "contents": sorted(str(key) for key in checkpoint),
        }
        | ({} if fit is None else _fit_facts(file, fit, meta, weights)),
    )


def _fit_facts(
    file: Path, config: str, meta: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Say how weights fit the model of a config, with the names of those that do not."""
    import torch

    from deploykit.training.model_spec import config_for
    from deploykit.training.models import build_detector
    from deploykit.training.weight_fit import weight_fit

    with torch.device("meta"):
        model = build_detector(config_for(config or None, meta, file)["model"])
    found = weight_fit(model, weights)
    if found.exact:
        return {"fit": f"all {found.fitting} tensors have the names and shapes of the model"}
    return {
        "fit": f"{found.fitting} tensors have the names and shapes of the model",
        f"missing ({len(found.missing)})": list(found.missing_groups),
        f"unexpected ({len(found.unexpected)})": list(found.unexpected_groups),
        f"of another shape ({len(found.mismatched)})": list(found.mismatched),
    }


def _checkpoint_spec(file: Path, meta: Mapping[str, Any]) -> tuple[ModelSpec | None, str]:
    """Return the spec in a checkpoint, or the one that its config implies, or why there is none."""
    from deploykit.training.checkpoint_config import stored_config
    from deploykit.training.model_spec import class_names, spec_from_config

    stored = meta.get(METADATA_KEY)
    try:
        if isinstance(stored, str):
            return ModelSpec.from_json(stored, str(file)), ""
        config = stored_config(meta, str(file))
        if config is not None:
            return spec_from_config(config, *class_names(config, meta)), ""
    except (SpecError, ConfigError) as error:
        return None, str(error)
    return None, "the checkpoint holds neither a model spec nor a config"


def _dtypes(weights: Mapping[str, torch.Tensor]) -> str:
    counts = Counter(str(value.dtype).removeprefix("torch.") for value in weights.values())
    return ", ".join(f"{count} {dtype}" for dtype, count in counts.most_common())


def _inspect_engine(file: Path) -> Inspection:
    spec, plan = read_engine(file)
    flags, used = spec.build_flags, spec.precision_used
    place = "any GPU that TensorRT-RTX supports"
    if spec.compute_capability:
        place = f"compute capability {spec.compute_capability} ({spec.device_name})"
        place += ", and 8.0 or newer" if flags.hardware_compatible else ""
    elif flags.compute_capabilities:
        place = f"compute capability {', '.join(flags.compute_capabilities)}"
    return Inspection(
        path=str(file),
        kind="engine",
        size=len(plan),
        sha256=spec.engine_sha256,
        parameters=None,
        spec=spec.model,
        inputs=spec.inputs,
        outputs=spec.outputs,
        facts={
            "flavour": f"{TITLES.get(spec.flavour, spec.flavour)} {spec.tensorrt_version}",
            "runs on": place,
            "driver": spec.driver_version or "built without a GPU",
            f"types in the {used.source}": used.types,
            "plugins": [kernel.name for kernel in spec.plugins] or "none",
            "flags": {
                name.replace("_", " "): value
                for name, value in dataclasses.asdict(flags).items()
                if value not in (None, False, ())
            },
            "build": f"{spec.build_log.seconds:.1f} s, {len(spec.build_log.warnings)} warnings "
            f"(log in {engine_spec_path(file).name})",
            "onnx sha256": spec.onnx_sha256,
        },
    )


def _inspect_onnx(file: Path) -> Inspection:
    if not file.is_file():
        what = "a directory" if file.is_dir() else "missing"
        raise BackendError(f"expected a model file, but this is {what}: {file}")
    if find_spec("onnx") is None:
        return _inspect_session(file)
    onnx = import_module("onnx")
    try:
        model = onnx.load(str(file), load_external_data=False)
        if not model.graph.node:
            raise ValueError("it holds no graph")
        if is_damaged(file):
            raise ValueError("its checksum does not match")
    except Exception as error:  # protobuf raises several unrelated classes on damaged files
        raise BackendError(
            f"{file} is damaged, or not an ONNX model ({type(error).__name__}: {error}); "
            "make it again with: deploykit convert"
        ) from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    spec, missing = _pop_spec(metadata, file)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    return Inspection(
        path=str(file),
        kind="onnx",
        size=file.stat().st_size,
        sha256=sha256_of_file(file),
        parameters=sum(
            math.prod(tensor.dims)
            for tensor in model.graph.initializer
            if onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind == "f"
        ),
        spec=spec,
        missing_spec=missing,
        inputs=tuple(_tensor_info(onnx, value) for value in inputs),
        outputs=tuple(_tensor_info(onnx, value) for value in model.graph.output),
        operators=dict(_count_operators(model.graph).most_common()),
        facts={
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
            "ir_version": model.ir_version,
            "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            "metadata": metadata,
        },
    )


def _inspect_session(file: Path) -> Inspection:
    """Look into a graph with ONNX Runtime, which tells less, where ``onnx`` is not installed."""
    ort = import_optional("onnxruntime", "all", "Inspecting an .onnx file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors come back as exceptions
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
        raise BackendError(
            f"{file} is damaged, or not an ONNX model: {' '.join(str(error).split())[:300]}"
        ) from None
    described = session.get_modelmeta()
    metadata = dict(described.custom_metadata_map)
    spec, missing = _pop_spec(metadata, file)
    inputs, outputs = (
        tuple(
            TensorInfo(
                node.name,
                {"float": "float32"}.get(kind := node.type[len("tensor(") : -1], kind),
                tuple("?" if size is None else size for size in node.shape),
            )
            for node in nodes
        )
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Inspection(
        path=str(file),
        kind="onnx",
        size=file.stat().st_size,
        sha256=sha256_of_file(file),
        parameters=None,
        spec=spec,
        missing_spec=missing,
        inputs=inputs,
        outputs=outputs,
        facts={
            "producer": described.producer_name,
            "metadata": metadata,
            "not shown": "operators and weights; pip install 'deploykit[export]' to see them",
        },
    )


def _pop_spec(metadata: dict[str, str], file: Path) -> tuple[ModelSpec | None, str]:
    """Take the spec out of an ONNX file's metadata, or say why there is none."""
    if METADATA_KEY not in metadata:
        return None, f"its metadata has no '{METADATA_KEY}' entry"
    try:
        return ModelSpec.from_json(metadata.pop(METADATA_KEY), str(file)), ""
    except SpecError as error:
        return None, str(error)


def _tensor_info(onnx: Any, value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    sizes = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )
    return TensorInfo(value.name, {"float": "float32"}.get(name, name), sizes)


def _count_operators(graph: onnx.GraphProto) -> Counter[str]:
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                counts.update(_count_operators(subgraph))
    return counts
