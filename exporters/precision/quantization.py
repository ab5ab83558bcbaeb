"""int8 quantisation of a graph: calibrated quantise/dequantise pairs, written by ONNX Runtime."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from deploykit.errors import ExportError
from deploykit.exporters.precision.activation_ranges import Feeds
from deploykit.exporters.precision.selection import INT8_OPS

Calibration = Literal["entropy", "percentile", "minmax"]
CALIBRATIONS: dict[str, CalibrationMethod] = {
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "minmax": CalibrationMethod.MinMax,
}
# ONNX Runtime keeps the activations of so many images at once; those of all would fill the memory.
_IMAGES_AT_A_TIME = 1


def quantize(
    model: onnx.ModelProto,
    nodes: Sequence[str],
    feeds: Sequence[Feeds],
    method: Calibration = "entropy",
    percentile: float = 99.99,
) -> onnx.ModelProto:
    """Quantise the inputs and weights of the named nodes to int8.

    Symmetric, as TensorRT asks: activations with one scale per tensor, weights with one per output
    channel, biases and results in float32.

    Args:
        model: A float32 graph.
        nodes: Names of Conv, Gemm and MatMul nodes with constant weights.
        feeds: Inputs to calibrate on, one image each.
        method: How the range of a tensor follows from its values: ``"entropy"`` loses the least
            information, ``"percentile"`` cuts off the largest values, ``"minmax"`` none.
        percentile: Of the values that ``"percentile"`` covers.

    Returns:
        The graph with QuantizeLinear and DequantizeLinear nodes.

    Raises:
        ExportError: ONNX Runtime cannot calibrate or quantise the graph.
    """
    if not feeds:
        raise ExportError("the graph cannot be quantised without images to calibrate on")
    if not nodes:
        raise ExportError("there is nothing to quantise: no convolution of the network is left")
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder, _quiet():
        # From a file: of a model in memory it would move the weights to a temporary file for good.
        source, target = Path(folder) / "float32.onnx", Path(folder) / "quantised.onnx"
        try:
            onnx.save(model, source)
            quantize_static(
                source,
                target,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                # Only what these read and write is calibrated; some other values may be empty.
                op_types_to_quantize=list(INT8_OPS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(nodes),
                calibrate_method=CALIBRATIONS[method],
                extra_options=_options(percentile, method),
            )
        except Exception as error:  # ONNX Runtime's quantiser raises what its parts raise
            text = " ".join(str(error).split())[:300]
            raise ExportError(f"the graph cannot be quantised: {text}") from error
        return onnx.load(target)


def _options(percentile: float, method: Calibration) -> dict[str, Any]:
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        # TensorRT takes no int32 bias behind a DequantizeLinear.
        "QuantizeBias": False,
        # A pair behind a convolution as well would round its result before the activation.
        "OpTypesToExcludeOutputQuantization": list(INT8_OPS),
        "CalibStridedMinMax": _IMAGES_AT_A_TIME,  # in spite of its name for every method
    }
    if method == "percentile":
        options["CalibPercentile"] = percentile
    return options


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base class
    """Hands out the inputs of a range, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds
        self.set_range(0, len(feeds))

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._pending = iter(self._feeds[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self._pending, None)
        return None if feed is None else dict(feed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's quantiser: it prints, and advises what does not fit these graphs."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
