"""Checkpoint to ONNX: capture, lower, optimise, check, and prove equal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from deploykit import __version__
from deploykit.atomic_file import atomic_path, sha256_of_file
from deploykit.errors import ExportError, ParityError, UsageError
from deploykit.exporters.candidate_limit import limited_candidates
from deploykit.exporters.conversion_parity import ConversionParity, Step, measure
from deploykit.exporters.graph_capture import capture
from deploykit.exporters.graph_cleanup import clean_up
from deploykit.exporters.lowerings import lowering as find_lowering
from deploykit.exporters.onnx_checks import check_model
from deploykit.exporters.onnx_file import set_spec, write_model
from deploykit.exporters.parity_images import choose_images
from deploykit.exporters.precision.calibration_images import calibration_images
from deploykit.exporters.precision.cost import PrecisionCost
from deploykit.exporters.precision.lower import lower_precision
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.parity import ParityTolerances
from deploykit.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from deploykit.runtimes.pytorch_backend import PyTorchBackend
from deploykit.spec import ModelSpec
from deploykit.training.model_spec import LoadedModel, load_model

if TYPE_CHECKING:
    from deploykit.training.config import Config

# Protocol buffers, the container of ONNX files, hold no more.
LARGEST_FILE = 2**31 - 1
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportedModel:
    """An artefact that was written.

    Args:
        path: The file.
        spec: What is in its metadata.
        parity: How its float32 graph compares with the checkpoint.
        cost: What a lower precision costs; ``None`` in float32.
    """

    path: Path
    spec: ModelSpec
    parity: ConversionParity
    cost: PrecisionCost | None = None


class ConversionParityError(ParityError):
    """The exported model does not do the same as the checkpoint; nothing was written.

    Args:
        parity: The measurements.
    """

    def __init__(self, parity: ConversionParity) -> None:
        self.parity = parity
        super().__init__(
            f"the exported model differs from the checkpoint, so nothing was written: "
            f"{'; '.join(parity.reasons)}"
        )


@dataclass(frozen=True)
class ParityOptions:
    """How the parity of a conversion is measured.

    Args:
        images: Files and folders; by default images of the config's validation set that exist on
            disk, else drawn ones.
        tolerances: What may differ.
    """

    images: Sequence[str | Path] = ()
    tolerances: ParityTolerances = field(default_factory=ParityTolerances)


def export_onnx(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: Config | str | os.PathLike[str] | None = None,
    shape: ShapeRequest | None = None,
    lowering: str = "standard",
    test_options: Mapping[str, float] | None = None,
    precision: PrecisionOptions | None = None,
    parity: ParityOptions | None = None,
    step: Step = nullcontext,
) -> ExportedModel:
    """Convert a checkpoint to an ONNX file and prove that both detect the same.

    The file carries its ``ModelSpec`` with the parity record in ``metadata_props["deploykit"]``. It
    appears under its name only when every check has passed.

    Args:
        checkpoint: A ``.pth`` file.
        output: The ``.onnx`` file to write.
        config: A config, a config file or a shipped recipe, in place of the checkpoint's own.
        shape: The input shapes to take; by default what the test pipeline produces, at batch 1.
        lowering: What the operators of the seam become, see ``deploykit.exporters.lowerings``.
        test_options: Replacements for ``nms_pre``, ``score_thr`` and ``max_per_img``.
        precision: What the network computes in; float32 by default.
        parity: Images and tolerances of the parity check, which is that of the float32 graph.
        step: Called with the name of each step; the step runs inside the context it returns.

    Raises:
        ConversionParityError: The exported model does not do the same as the checkpoint.
        PrecisionError: The lower precision costs more accuracy than it may.
        ExportError: The model cannot be exported, or the file cannot be written.
        CheckpointError: The checkpoint is damaged or does not fit its config.
        ConfigError: The config is missing or wrong.
        MediaError: A parity image is missing or damaged.
        UsageError: The shapes or the lowering do not fit.
    """
    shape, parity, output = shape or ShapeRequest(), parity or ParityOptions(), Path(output)
    precision = precision or PrecisionOptions()
    lower = find_lowering(lowering)
    if output.suffix != ".onnx":
        raise UsageError(f"the output must be an .onnx file, got '{output}'")
    with step("load checkpoint"):
        loaded = load_model(checkpoint, config, test_options=test_options)
        spec = _artefact_spec(loaded.spec, shape, lowering, Path(checkpoint))
        images, source = choose_images(parity.images, loaded.config)
        calibration = calibration_images(precision, loaded.config)
    with limited_candidates(loaded.model, lowering) as limits:
        for name, limit in limits.items():
            with step(f"limit {name} to {limit} for '{lowering}'"):
                pass  # done; it only shows the user
        with step("export graph"):
            graph = capture(loaded.model, spec)
    with step("lower and optimise"):
        spec = replace(spec, lowering_limits=limits | lower(graph))
        clean_up(graph)
        model = _to_proto(graph, spec)
    with step("check"):
        check_model(model, spec)
    try:
        with atomic_path(output) as temporary:
            write_model(model, temporary)
            reference, candidate = _backends(loaded, Path(checkpoint), spec, temporary)
            names = (str(checkpoint), str(output))
            outcome = measure(reference, candidate, images, source, parity.tolerances, names, step)
            if not outcome.passed:
                raise ConversionParityError(outcome)
            spec, cost = replace(spec, parity=outcome.summary()), None
            if precision.precision != "fp32":
                model, cost = lower_precision(
                    model, spec, candidate, images, calibration, loaded.config, precision, step
                )
                record = outcome.summary() | {"precision": cost.summary()}
                spec = replace(spec, precision=precision.precision, parity=record)
                check_model(model, spec)
            candidate.close()
            set_spec(model, spec)
            write_model(model, temporary)
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror or error}") from error
    return ExportedModel(output, spec, outcome, cost)


def _artefact_spec(
    spec: ModelSpec, shape: ShapeRequest, lowering: str, checkpoint: Path
) -> ModelSpec:
    return replace(
        spec,
        input=shape.apply(spec.input),
        lowering=lowering,
        checkpoint_sha256=sha256_of_file(checkpoint),
        versions=spec.versions | {package: version(package) for package in _PACKAGES},
    )


def _to_proto(graph: ir.Model, spec: ModelSpec) -> onnx.ModelProto:
    graph.producer_name, graph.producer_version = "deploykit", __version__
    graph.graph.name = spec.architecture
    model = ir.to_proto(graph)
    set_spec(model, spec)
    if model.ByteSize() > LARGEST_FILE:
        raise ExportError(
            f"the model takes {model.ByteSize() / 2**30:.1f} GiB; an ONNX file holds at most 2 GiB"
        )
    return model


def _backends(
    loaded: LoadedModel, checkpoint: Path, spec: ModelSpec, artefact: Path
) -> tuple[PyTorchBackend, OnnxRuntimeBackend]:
    """Return the model and its export, both with the input that the export takes."""
    # The checkpoint itself takes every batch size and runs one image after the other.
    like_export = replace(spec.input, batch=loaded.spec.input.batch)
    model = replace(loaded, spec=replace(loaded.spec, input=like_export))
    return (
        PyTorchBackend(checkpoint, device="cpu", loaded=model),
        OnnxRuntimeBackend(artefact, device="cpu"),
    )
