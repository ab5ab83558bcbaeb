"""Both plugins inside a small TensorRT engine: built and run where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from deploykit.doctor.plugin_probe import IOU_THRESHOLD, MAX_OUT, REGIONS, check_results, scene
from deploykit.errors import BackendError
from deploykit.optional_imports import import_optional
from deploykit.tensorrt_flavour import collect_messages, logger

if TYPE_CHECKING:
    import onnx

_DOMAIN = "deploykit"


def plugin_graph() -> onnx.ModelProto:
    """Return a graph of one node of each operator, for the inputs of ``plugin_probe.scene``."""
    package: Any = import_optional("onnx", "export", "Building an engine")
    helper, types = package.helper, package.TensorProto
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in scene().items()
    ]
    nms = helper.make_node(
        "BatchedNMS",
        ["boxes", "scores", "labels"],
        ["indices"],
        domain=_DOMAIN,
        iou_threshold=IOU_THRESHOLD,
        max_out=MAX_OUT,
    )
    roi_align = helper.make_node(
        "MultilevelRoIAlign",
        ["rois", "feature0", "feature1"],
        ["crops"],
        domain=_DOMAIN,
        output_size=REGIONS.output_size,
        sampling_ratio=REGIONS.sampling_ratio,
        spatial_scales=REGIONS.spatial_scales,
        finest_scale=REGIONS.finest_scale,
        aligned=int(REGIONS.aligned),
    )
    outputs = [
        helper.make_tensor_value_info("indices", types.INT64, [2, MAX_OUT]),
        helper.make_tensor_value_info("crops", types.FLOAT, [16, 8, *REGIONS.output_size]),
    ]
    graph = helper.make_graph([nms, roi_align], "plugins", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_DOMAIN, 1)]
    return cast("onnx.ModelProto", helper.make_model(graph, opset_imports=opsets, ir_version=10))


def run_plugins_in_engine(tensorrt: ModuleType) -> str:
    """Build an engine with both plugins, run it, and compare with numpy.

    Args:
        tensorrt: What ``load_flavour("tensorrt")`` returned.

    Returns:
        What was done, in words.

    Raises:
        BackendError: It cannot be built or run, or a result is wrong.
        MissingDependencyError: A package of the extra ``export`` is missing.
    """
    from deploykit.exporters.tensorrt.build_device import build_device
    from deploykit.exporters.tensorrt.plugin_graph import with_plugins
    from deploykit.runtimes.tensorrt.cuda_device import CudaDevice
    from deploykit.runtimes.tensorrt.engine import TensorRTEngine
    from deploykit.runtimes.tensorrt.session import EngineSession

    graph, _ = with_plugins(plugin_graph(), tensorrt, build_device())
    plan = _build(tensorrt, graph.SerializeToString())
    device, path = CudaDevice(0), Path("doctor.engine")
    with device.activated():
        engine = TensorRTEngine(tensorrt, "tensorrt", plan, path)
    session = EngineSession(device, engine, path)
    inputs = scene()
    try:
        results = session.run(inputs)
    finally:
        session.close()
    check_results(inputs, results["indices"], results["crops"])
    return "an engine with both plugins equals their references"


def _build(tensorrt: ModuleType, graph: bytes) -> bytes:
    trt: Any = tensorrt
    with collect_messages(tensorrt, "ERROR") as log:
        builder = trt.Builder(logger(tensorrt))
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parsed = trt.OnnxParser(network, logger(tensorrt)).parse(graph)
        plan = parsed and builder.build_serialized_network(network, builder.create_builder_config())
    if not plan:
        reason = " ".join(" ".join(log.errors).split())[:300]
        raise BackendError(f"TensorRT does not build an engine with our plugins: {reason}")
    return bytes(plan)
