"""The ``primitive`` lowering: operators of the seam as ONNX that every engine builds (opset 18)."""

from __future__ import annotations

import onnx_ir as ir

from deploykit.exporters.lowerings import primitive_nms, primitive_roi_align
from deploykit.exporters.lowerings.pixel_cast import cast_pixels_first
from deploykit.exporters.lowerings.rewriting import Limits, Rewrite, inline, rewrite_seam
from deploykit.exporters.seam import BATCHED_NMS, MULTILEVEL_ROI_ALIGN

REWRITES: dict[str, Rewrite] = {
    BATCHED_NMS: primitive_nms.rewrite,
    MULTILEVEL_ROI_ALIGN: primitive_roi_align.rewrite,
}


def lower(model: ir.Model) -> Limits:
    """Replace the nodes of our own domain by plain ONNX, in place; its only control flow is a Loop.

    Args:
        model: An exported model with nodes of the seam.

    Returns:
        What the results are limited by, see ``ModelSpec.lowering_limits``.
    """
    limits = rewrite_seam(model, REWRITES)
    inline(model)
    cast_pixels_first(model)
    return limits
