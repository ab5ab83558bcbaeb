"""PyTorch operators that are written to ONNX in another way than PyTorch's exporter does it.

Each is here because the exporter's way computes something else than PyTorch, within its rounding or
beyond. The functions are traced by the exporter: their tensors are symbols of the ONNX graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

from deploykit.exporters import seam

op: Any = opset18  # called with symbols of the graph and plain numbers, unlike its annotations say


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export``."""
    return {
        **seam.translation_table(),
        torch.ops.aten.div.Tensor_mode: _divide,
        torch.ops.aten.div.Scalar_mode: _divide,
        torch.ops.aten.mean.dim: _mean,
    }


def _divide(self: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """Divide, integers as integers.

    The exporter goes through float32, which is exact up to 2**24 only; the candidates of a large
    input are more.
    """
    if self.dtype.is_integer() and rounding_mode is not None:
        if rounding_mode == "floor":
            self = op.Sub(self, op.Mod(self, other))  # Mod has the sign of the divisor
        return op.Div(self, other)
    quotient = op.Div(self, other)
    if rounding_mode == "floor":
        return op.Floor(quotient)
    if rounding_mode == "trunc":
        return op.Mul(op.Sign(quotient), op.Floor(op.Abs(quotient)))
    return quotient


def _mean(
    self: Any, dim: Sequence[int] | None, keepdim: bool = False, dtype: int | None = None
) -> Any:
    """Average over one axis after the other.

    ONNX Runtime adds up the elements of one ReduceMean one by one. Over a feature map of 160x160
    that is off by 1e-4 of the result, two hundred times more than in two steps, and was the largest
    error of a whole RTMDet (channel attention averages whole feature maps). It is faster, too.
    """
    if dtype is not None and dtype != -1:
        self = op.Cast(self, to=dtype)
    rank = len(self.shape)
    axes = sorted(axis % rank for axis in dim) if dim else list(range(rank))
    for axis in axes:
        self = op.ReduceMean(self, op.Constant(value_ints=[axis]), keepdims=1)
    return self if keepdim else op.Squeeze(self, op.Constant(value_ints=axes))
