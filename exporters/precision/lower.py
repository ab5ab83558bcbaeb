"""The precision step of a conversion: rewrite the float32 graph and measure what that costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from deploykit.exporters.onnx_file import set_spec, write_model
from deploykit.exporters.parity_images import Image
from deploykit.exporters.precision.apply import apply_precision
from deploykit.exporters.precision.calibration_images import graph_inputs
from deploykit.exporters.precision.cost import PrecisionCost, measure_cost
from deploykit.exporters.precision.float16_rounding import with_explicit_rounding
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.runtimes.backend import Backend
from deploykit.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from deploykit.spec import ModelSpec

if TYPE_CHECKING:
    from deploykit.training.config import Config


def lower_precision(
    model: onnx.ModelProto,
    spec: ModelSpec,
    reference: Backend,
    images: Sequence[Image],
    calibration: tuple[Sequence[Image], str],
    config: Config,
    options: PrecisionOptions,
    step: Callable[[str], AbstractContextManager[Any]],
) -> tuple[onnx.ModelProto, PrecisionCost]:
    """Rewrite a float32 graph in a lower precision and measure what it costs.

    Args:
        model: The float32 graph; not changed.
        spec: What it is.
        reference: The same graph, running.
        images: To measure the drift on.
        calibration: To measure ranges on, see ``calibration_images``.
        config: The model's config, for the validation set.
        options: The precision.
        step: Called with the name of each step; the step runs inside the context it returns.

    Raises:
        PrecisionError: It costs more mAP than it may.
        ExportError: The graph cannot be converted.
        UsageError: The options do not fit the model.
    """
    chosen, source = calibration
    with step(f"rewrite in {options.precision} ({source})"):
        feeds = graph_inputs(chosen, spec.input)
        converted, record = apply_precision(model, options, feeds, source)
        set_spec(converted, replace(spec, precision=options.precision))
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        path = Path(folder) / "model.onnx"
        runs = with_explicit_rounding(converted) if options.precision == "fp16" else converted
        write_model(runs, path)
        candidate = OnnxRuntimeBackend(path, device="cpu")
        try:
            cost = measure_cost(reference, candidate, record, images, config, options, step)
        finally:
            candidate.close()
    return converted, cost
