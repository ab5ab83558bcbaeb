"""An ONNX file of ours to an engine file with its spec."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from deploykit.atomic_file import sha256_of_file
from deploykit.engine_spec import EngineSpec, write_engine
from deploykit.errors import ExportError, SpecError, UsageError
from deploykit.exporters.tensorrt.builder import BuildOptions, build_engine
from deploykit.exporters.tensorrt.shape_choice import ShapeChoice
from deploykit.onnx_seal import is_damaged
from deploykit.spec import METADATA_KEY, ModelSpec
from deploykit.tensorrt_flavour import TITLES, FlavourName

# What the operators of the seam become on the way from a checkpoint to an engine.
LOWERINGS: dict[FlavourName, str] = {"tensorrt": "plugin", "rtx": "primitive"}
_BUILDABLE = ("plugin", "primitive")


@dataclass(frozen=True)
class ExportedEngine:
    """An engine that was written.

    Args:
        path: The file.
        spec: What is beside it.
        cached: The file in the cache that it was copied from, or ``None`` if it was built.
        warnings: What is worth telling about the build.
    """

    path: Path
    spec: EngineSpec
    cached: Path | None
    warnings: tuple[str, ...]


def export_engine(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: BuildOptions,
    *,
    shapes: ShapeChoice | None = None,
    precision: str | None = None,
) -> ExportedEngine:
    """Build an engine from an ONNX file of ours, and write it with its spec.

    Args:
        source: An ``.onnx`` file that ``deploykit convert`` wrote, with the ``plugin`` or the
            ``primitive`` lowering.
        output: The ``.engine`` file to write.
        options: How to build.
        shapes: Which of the graph's input shapes the engine takes; by default all.
        precision: What the graph is expected to be in; by default whatever it is.

    Raises:
        UsageError: The graph's lowering, precision or shapes do not fit, or a flag does not.
        SpecError: The file carries no spec, or a newer deploykit wrote it.
        ExportError: The file is damaged, or TensorRT does not build it.
        MissingDependencyError: The flavour is not installed.
    """
    source, output = Path(source), Path(output)
    if output.suffix != ".engine":
        raise UsageError(f"the output must be an .engine file, got '{output}'")
    model, spec = read_onnx(source)
    if spec.lowering not in _BUILDABLE:
        raise UsageError(
            f"{source} was exported with --lowering {spec.lowering}, which "
            f"{TITLES[options.flavour]} cannot build; give the checkpoint in its place, or export "
            f"it again with --lowering {LOWERINGS[options.flavour]}"
        )
    if precision is not None and precision != spec.precision:
        raise UsageError(
            f"{source} is in {spec.precision}, not {precision}; precision is written into the "
            "graph, so give the checkpoint in its place"
        )
    if shapes is not None:
        spec = replace(spec, input=shapes.apply(spec.input, str(source)))
    built = build_engine(model, spec, options, sha256_of_file(source))
    try:
        write_engine(output, built.plan, built.spec)
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror or error}") from error
    return ExportedEngine(output, built.spec, built.cached, built.warnings)


def read_onnx(path: Path) -> tuple[onnx.ModelProto, ModelSpec]:
    """Read an ONNX file of ours.

    Raises:
        UsageError: It is missing.
        ExportError: It is damaged.
        SpecError: It carries no spec, or one that cannot be read.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "missing"
        raise UsageError(f"expected an .onnx file, but this is {what}: {path}")
    again = "make it again with: deploykit convert --to onnx"
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf raises several unrelated classes on damaged files
        raise ExportError(
            f"{path} is damaged, or not an ONNX model ({type(error).__name__}); {again}"
        ) from None
    if is_damaged(path):
        raise ExportError(f"{path} is damaged: its checksum does not match; {again}")
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return model, ModelSpec.from_json(entry.value, str(path))
    raise SpecError(
        f"{path} carries no model spec, so its classes and its input are not known; export the "
        "checkpoint with: deploykit convert --to tensorrt"
    )
