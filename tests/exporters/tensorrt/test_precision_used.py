"""What the engine inspector tells about types."""

from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_graphs import detector_graph

from deploykit.exporters.tensorrt import precision_used as module
from deploykit.exporters.tensorrt.build_device import BuildDevice
from deploykit.exporters.tensorrt.precision_used import precision_used, types_of_layers


def layer(name: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"Name": name, "LayerType": "CaskConvolution", "Outputs": list(outputs)}


# As in the documentation of the engine inspector, for several versions of TensorRT.
LAYERS = [
    layer("a", {"Name": "x", "Dimensions": [1], "Format/Datatype": "Row major linear FP32"}),
    layer("b", {"Name": "y", "Format/Datatype": "Channel major FP16 format where C % 8 == 0"}),
    layer(
        "c",
        {
            "Name": "z",
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
        },
        {"Name": "i", "Format/Datatype": "Int64"},
    ),
    layer("d", {"Name": "w", "Datatype": "Half"}),
    layer("e", {"Name": "v", "Format/Datatype": "N/A due to dynamic shapes"}),
]


def test_types_are_counted_by_outputs_of_layers():
    assert types_of_layers(json.dumps({"Layers": LAYERS, "Bindings": ["images"]})) == {
        "float16": 2,
        "float32": 1,
        "int8": 1,
        "int64": 1,
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": ["conv1", "conv2"]}', "not json", '{"Layers": []}']
)
def test_engines_that_tell_nothing_give_nothing(text: str):
    """Without detailed profiling verbosity the layers are names alone."""
    assert types_of_layers(text) == {}


def fake_tensorrt(rtx: ModuleType, information: str | None) -> Any:
    inspector = SimpleNamespace(get_engine_information=lambda format: information)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    loaded = None if information is None else engine
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: loaded)

    class Module(ModuleType):
        ILogger = rtx.ILogger
        LayerInformationFormat = rtx.LayerInformationFormat

        def Runtime(self, log: Any) -> Any:
            return runtime

    return Module("tensorrt")


@pytest.mark.parametrize(
    ("information", "source"),
    [(json.dumps({"Layers": LAYERS}), "engine"), ("{}", "graph"), (None, "graph")],
    ids=["told", "not told", "not loaded"],
)
def test_the_engine_is_believed_before_the_graph(
    rtx: ModuleType, monkeypatch: pytest.MonkeyPatch, information: str | None, source: str
):
    monkeypatch.setattr(module, "build_device", lambda: BuildDevice("GPU", "8.6", "13.0"))
    used = precision_used(b"plan", detector_graph(), fake_tensorrt(rtx, information))
    assert used.source == source
    assert used.types["float32"] == (1 if source == "engine" else 3)
