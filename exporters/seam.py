"""The operators that inference engines disagree about, as ONNX nodes of our own domain.

The exporter first writes ``torch.ops.deploykit.*`` calls as opaque nodes (``deploykit::BatchedNMS``
with all attributes). A lowering (``deploykit.exporters.lowerings``) then decides what they become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

import deploykit.training.ops.batched_nms  # registers torch.ops.deploykit
import deploykit.training.ops.multilevel_roi_align  # noqa: F401  # likewise

DOMAIN = "deploykit"
VERSION = 1
BATCHED_NMS = "BatchedNMS"
MULTILEVEL_ROI_ALIGN = "MultilevelRoIAlign"

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

_ATTRIBUTE = OpSchema.AttrType
_MULTILEVEL_ROI_ALIGN_SCHEMA = OpSchema(
    MULTILEVEL_ROI_ALIGN,
    DOMAIN,
    VERSION,
    doc="RoIAlign from a feature pyramid; see deploykit.training.ops.multilevel_roi_align.",
    inputs=[
        # One parameter: the exporter repeats what stands before a variadic one.
        OpSchema.FormalParameter(
            "rois_and_features",
            "T",
            "float32 [R, 5] (image, x1, y1, x2, y2), then [B, C, H_i, W_i] per level, finest first",
            param_option=OpSchema.FormalParameterOption.Variadic,
            is_homogeneous=False,
            min_arity=2,
        ),
    ],
    outputs=[OpSchema.FormalParameter("crops", "T", "[R, C, height, width]")],
    type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "Type of the features.")],
    attributes=[
        OpSchema.Attribute("output_size", _ATTRIBUTE.INTS, "height, width", required=True),
        OpSchema.Attribute("sampling_ratio", _ATTRIBUTE.INT, "0: adaptive", required=True),
        OpSchema.Attribute("spatial_scales", _ATTRIBUTE.FLOATS, "one per level", required=True),
        OpSchema.Attribute("finest_scale", _ATTRIBUTE.INT, "in pixels", required=True),
        OpSchema.Attribute("aligned", _ATTRIBUTE.INT, "0 or 1", required=True),
    ],
)
_multilevel_roi_align = Op(
    Opset(DOMAIN, VERSION), MULTILEVEL_ROI_ALIGN, _MULTILEVEL_ROI_ALIGN_SCHEMA
)


@dataclass(frozen=True)
class RoIAlignAttributes:
    """The attributes of a ``MultilevelRoIAlign`` node, as the operator's arguments.

    Args:
        output_size: (height, width) of the crops.
        sampling_ratio: Samples per bin and axis; 0: adaptive.
        spatial_scales: Feature cells per pixel, one per level.
        finest_scale: Regions of less than twice this size, in pixels, come from the first level.
        aligned: Cell centres lie at half coordinates.
    """

    output_size: tuple[int, int]
    sampling_ratio: int
    spatial_scales: tuple[float, ...]
    finest_scale: int
    aligned: bool

    @classmethod
    def of(cls, node: ir.Node) -> RoIAlignAttributes:
        """Read them from a node."""
        attributes = node.attributes
        height, width = attributes["output_size"].as_ints()
        return cls(
            (height, width),
            attributes["sampling_ratio"].as_int(),
            tuple(attributes["spatial_scales"].as_floats()),
            attributes["finest_scale"].as_int(),
            bool(attributes["aligned"].as_int()),
        )


def _translate_batched_nms(
    boxes: Any, scores: Any, labels: Any, iou_threshold: float, max_out: int
) -> Any:
    return _batched_nms(boxes, scores, labels, iou_threshold=iou_threshold, max_out=max_out)


def _translate_multilevel_roi_align(
    features: Sequence[Any],
    rois: Any,
    output_size: Sequence[int],
    sampling_ratio: int,
    spatial_scales: Sequence[float],
    finest_scale: int,
    aligned: bool,
) -> Any:
    return _multilevel_roi_align(
        rois,
        *features,
        output_size=list(output_size),
        sampling_ratio=sampling_ratio,
        spatial_scales=list(spatial_scales),
        finest_scale=finest_scale,
        aligned=int(aligned),
    )


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export``."""
    return {
        torch.ops.deploykit.batched_nms.default: _translate_batched_nms,
        torch.ops.deploykit.multilevel_roi_align.default: _translate_multilevel_roi_align,
    }
