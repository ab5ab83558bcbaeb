"""In what precision an engine computes: read back from it, else from the graph it was built of."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import ModuleType
from typing import Any

import onnx

from deploykit.engine_spec import PrecisionUsed
from deploykit.exporters.tensorrt.build_device import build_device
from deploykit.exporters.tensorrt.graph_facts import result_types
from deploykit.tensorrt_flavour import logger

# How the inspector names types, at the end of a description such as "Row major linear FP32".
_TYPES = {
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "bool": "bool",
}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)


def precision_used(plan: bytes, model: onnx.ModelProto, module: ModuleType) -> PrecisionUsed:
    """Find out in what precision an engine computes.

    Args:
        plan: The serialised engine.
        model: The strongly typed graph it was built of.
        module: The flavour of TensorRT.

    Returns:
        The types of the layers' outputs as TensorRT's inspector tells them where the engine can be
        loaded, which takes a GPU; else those of the results of the graph's nodes.
    """
    types = _types_of_engine(plan, module) if build_device() is not None else {}
    return PrecisionUsed("engine", types) if types else PrecisionUsed("graph", result_types(model))


def types_of_layers(information: str) -> dict[str, int]:
    """Count the types in what the engine inspector says.

    Args:
        information: JSON as ``IEngineInspector.get_engine_information`` gives it for an engine that
            was built with detailed profiling verbosity.

    Returns:
        By type, the number of outputs of layers; empty where they are not told.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    counts: Counter[str] = Counter()
    for layer in layers:
        outputs = layer.get("Outputs", ()) if isinstance(layer, dict) else ()
        for output in outputs:
            text = str(output.get("Format/Datatype") or output.get("Datatype") or "")
            found = _TYPE.findall(text)
            if found:
                counts[_TYPES[found[-1].lower()]] += 1
    return dict(counts.most_common())


def _types_of_engine(plan: bytes, module: ModuleType) -> dict[str, int]:
    engine: Any = module.Runtime(logger(module)).deserialize_cuda_engine(plan)
    if engine is None:
        return {}
    inspector = engine.create_engine_inspector()
    return types_of_layers(inspector.get_engine_information(module.LayerInformationFormat.JSON))
