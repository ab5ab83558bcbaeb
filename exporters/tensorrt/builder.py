"""From an ONNX graph to a serialised TensorRT engine and its spec."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from deploykit.engine_spec import BuildFlags, BuildRecord, EngineSpec, PluginKernel
from deploykit.errors import ExportError
from deploykit.exporters.tensorrt.build_device import BuildDevice, build_device
from deploykit.exporters.tensorrt.build_flags import apply_flags, check_flags
from deploykit.exporters.tensorrt.engine_cache import EngineCache, cache_key
from deploykit.exporters.tensorrt.graph_facts import bare_graph, inputs_of, outputs_of
from deploykit.exporters.tensorrt.node_report import NodeReport, has_seam_nodes
from deploykit.exporters.tensorrt.precision_used import precision_used
from deploykit.exporters.tensorrt.profiles import add_profile
from deploykit.exporters.tensorrt.progress import (
    Report,
    interruptible,
    no_report,
    progress_monitor,
)
from deploykit.exporters.tensorrt.timing_cache import load_timing_cache, save_timing_cache
from deploykit.optional_imports import import_optional
from deploykit.spec import ModelSpec
from deploykit.tensorrt_flavour import (
    TITLES,
    FlavourName,
    MessageLog,
    collect_messages,
    load_flavour,
    logger,
)

_UNFIT = "values are not self-consistent"


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    Args:
        flavour: ``"tensorrt"`` or ``"rtx"``.
        flags: What is built.
        timing_cache: A file that keeps TensorRT's timings from build to build.
        cache: Where engines that were built before are, if they may be used.
        report: Called with the progress of the build.
    """

    flavour: FlavourName
    flags: BuildFlags = field(default_factory=BuildFlags)
    timing_cache: Path | None = None
    cache: EngineCache | None = None
    report: Report = no_report


@dataclass(frozen=True)
class BuiltEngine:
    """An engine.

    Args:
        plan: The serialised engine.
        spec: What is known about it.
        cached: The file in the cache that it was taken from, or ``None`` if it was built.
        warnings: What is worth telling about the build.
    """

    plan: bytes
    spec: EngineSpec
    cached: Path | None = None
    warnings: tuple[str, ...] = ()


def build_engine(
    model: onnx.ModelProto,
    spec: ModelSpec,
    options: BuildOptions,
    onnx_sha256: str = "",
) -> BuiltEngine:
    """Build an engine, or take it from the cache.

    Args:
        model: A graph that fits the spec, all weights inside. Nodes of our own domain need the
            flavour ``"tensorrt"``, or a function of the model as their body.
        spec: The spec of the model; its input shapes are those that the engine takes.
        options: How to build.
        onnx_sha256: Hash of the file that the graph comes from, for the record.

    Raises:
        ExportError: TensorRT does not build the graph, or there is no GPU for ``"tensorrt"``.
        UsageError: The flavour does not have one of the flags.
        MissingDependencyError: The flavour is not installed.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    module = load_flavour(options.flavour)
    check_flags(options.flags, options.flavour, module, options.timing_cache is not None)
    kernels: tuple[PluginKernel, ...] = ()
    # A TensorRT-RTX engine is compiled for the GPU that loads it, whichever one is here, and of
    # nodes of our own domain it takes the bodies.
    device = build_device() if options.flavour == "tensorrt" else None
    if device is not None and has_seam_nodes(model):
        import_optional("torch", "export", "Putting our plugins into a graph")
        from deploykit.exporters.tensorrt.plugin_graph import with_plugins

        portable = options.flags.hardware_compatible
        model, kernels = with_plugins(model, module, None if portable else device)
    graph = bare_graph(model)
    described = EngineSpec(
        model=spec,
        flavour=options.flavour,
        tensorrt_version=module.__version__,
        engine_sha256="",
        engine_bytes=0,
        onnx_sha256=onnx_sha256,
        inputs=inputs_of(model),
        outputs=outputs_of(model),
        compute_capability=device.compute_capability if device else None,
        device_name=device.name if device else None,
        driver_version=device.driver_version if device else None,
        plugins=kernels,
        build_flags=options.flags,
    )
    key = _key(graph, described, device)
    if options.cache is not None and (found := options.cache.find(key)) is not None:
        return BuiltEngine(
            found[1],
            replace(found[0], model=spec, onnx_sha256=onnx_sha256),
            cached=options.cache.path(key),
        )
    built = _build(module, graph, model, described, options)
    if options.cache is not None:
        options.cache.store(key, built.plan, built.spec)
    return built


def _key(graph: bytes, spec: EngineSpec, device: BuildDevice | None) -> str:
    return cache_key(
        graph,
        spec.model.input,
        spec.build_flags,
        spec.flavour,
        spec.tensorrt_version,
        device,
        spec.plugins,
    )


def _build(
    module: ModuleType,
    graph: bytes,
    model: onnx.ModelProto,
    spec: EngineSpec,
    options: BuildOptions,
) -> BuiltEngine:
    start = time.perf_counter()
    with collect_messages(module) as log:
        plan, warning = _serialised_engine(
            module, graph, NodeReport(model, spec.flavour), log, spec, options
        )
    seconds = time.perf_counter() - start
    messages = tuple(f"{message.severity}: {message.text}" for message in log.messages)
    finished = replace(
        spec,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        precision_used=precision_used(plan, model, module),
        build_log=BuildRecord(seconds, messages),
    )
    return BuiltEngine(plan, finished, warnings=(warning,) if warning else ())


def _serialised_engine(
    module: ModuleType,
    graph: bytes,
    report: NodeReport,
    log: MessageLog,
    spec: EngineSpec,
    options: BuildOptions,
) -> tuple[bytes, str]:
    """Return the plan, and a warning about the timing cache or nothing."""
    builder = _builder(module, log, spec.flavour)
    network = builder.create_network(_network_flags(module))
    parser = module.OnnxParser(
        network, logger(module)
    )  # owns the weights until the engine is built
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ExportError(report.parser_errors(errors))
    config = builder.create_builder_config()
    apply_flags(config, spec.build_flags, module)
    add_profile(builder, config, network, spec.model.input)
    warning = ""
    if options.timing_cache is not None:
        warning = load_timing_cache(config, options.timing_cache, module)
    with interruptible() as interruption:
        monitor = progress_monitor(module, options.report, interruption)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    # TensorRT only warns of shapes within the profile that the engine will fail at.
    unfit = [message.text for message in log.messages if _UNFIT in message.text]
    if plan is None or unfit:
        raise ExportError(report.build_errors(log.errors if plan is None else unfit))
    if options.timing_cache is not None:
        save_timing_cache(config, options.timing_cache)
    return bytes(plan), warning


def _builder(module: ModuleType, log: MessageLog, flavour: str) -> Any:
    try:
        return module.Builder(logger(module))
    except TypeError as error:  # how the bindings say that there is no builder
        said = f" ({log.errors[0]})" if log.errors else ""
        raise ExportError(
            f"{TITLES[flavour]} cannot build here{said}; it needs an NVIDIA GPU and its driver. "
            "Build on the machine that will run the engine, or use --flavour rtx, which needs none"
        ) from error


def _network_flags(module: ModuleType) -> int:
    """Return the flag for strong typing, which TensorRT 11 networks have in any case."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
