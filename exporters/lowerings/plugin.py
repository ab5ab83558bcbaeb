"""The ``plugin`` lowering: operators of the seam stay nodes, for TensorRT with our plugins.

Each is also an ONNX function of the model with the ``primitive`` form as its body, so that an
engine without the plugin runs the same file.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from deploykit.exporters.lowerings import primitive_nms, primitive_roi_align
from deploykit.exporters.lowerings.pixel_cast import cast_pixels_first
from deploykit.exporters.lowerings.rewriting import Limits, Rewrite, rewrite_seam
from deploykit.exporters.seam import BATCHED_NMS, MULTILEVEL_ROI_ALIGN

# Each gives a node, which stays, its body, and its outputs their types and shapes.
REWRITES: dict[str, Rewrite] = {
    BATCHED_NMS: primitive_nms.add_body,
    MULTILEVEL_ROI_ALIGN: primitive_roi_align.add_body,
}


def lower(model: ir.Model) -> Limits:
    """Give the nodes of our own domain bodies, and inline all other functions, in place.

    Args:
        model: An exported model with nodes of the seam.

    Returns:
        What the results of the bodies are limited by, see ``ModelSpec.lowering_limits``.
    """
    InlinePass()(model)
    cast_pixels_first(model)
    return rewrite_seam(model, REWRITES)
