"""The ``standard`` lowering: operators of the seam as ONNX operators made for them (opset 18)."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from deploykit.exporters.lowerings import standard_nms, standard_roi_align
from deploykit.exporters.lowerings.rewriting import Limits, inline, rewrite_seam
from deploykit.exporters.seam import BATCHED_NMS, MULTILEVEL_ROI_ALIGN


def lower(model: ir.Model, prefix: int = standard_nms.PREFIX) -> Limits:
    """Replace the nodes of our own domain by plain ONNX, in place.

    Args:
        model: An exported model with nodes of the seam.
        prefix: How many of the best candidates NMS examines before the rest.

    Returns:
        What the results are limited by: nothing.
    """
    limits = rewrite_seam(
        model,
        {
            BATCHED_NMS: partial(standard_nms.rewrite, prefix=prefix),
            MULTILEVEL_ROI_ALIGN: standard_roi_align.rewrite,
        },
    )
    inline(model)
    return limits
