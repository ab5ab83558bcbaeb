"""The operators that inference engines disagree about, as ONNX nodes of our own domain.

The exporter first writes ``torch.ops.deploykit.*`` calls as opaque nodes (``deploykit::BatchedNMS``
with all attributes). A lowering (``deploykit.exporters.lowerings``) then decides what they become.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

import deploykit.training.ops.batched_nms  # noqa: F401  # registers torch.ops.deploykit

DOMAIN = "deploykit"
VERSION = 1
BATCHED_NMS = "BatchedNMS"

_BATCHED_NMS_SCHEMA = OpSchema(
    BATCHED_NMS,
    DOMAIN,
    VERSION,
    doc="Class-wise NMS of each image; see deploykit.training.ops.batched_nms.",
    inputs=[
        OpSchema.FormalParameter("boxes", "tensor(float)", "[B, N, 4], xyxy in pixels"),
        OpSchema.FormalParameter("scores", "tensor(float)", "[B, N]; <= 0 is never returned"),
        OpSchema.FormalParameter("labels", "tensor(int64)", "[B, N], not negative"),
    ],
    outputs=[
        OpSchema.FormalParameter("indices", "tensor(int64)", "[B, max_out], -1 in empty places"),
    ],
    attributes=[
        OpSchema.Attribute("iou_threshold", OpSchema.AttrType.FLOAT, required=True),
        OpSchema.Attribute("max_out", OpSchema.AttrType.INT, required=True),
    ],
)
_batched_nms = Op(Opset(DOMAIN, VERSION), BATCHED_NMS, _BATCHED_NMS_SCHEMA)


def _translate_batched_nms(
    boxes: Any, scores: Any, labels: Any, iou_threshold: float, max_out: int
) -> Any:
    return _batched_nms(boxes, scores, labels, iou_threshold=iou_threshold, max_out=max_out)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export``."""
    return {torch.ops.deploykit.batched_nms.default: _translate_batched_nms}
