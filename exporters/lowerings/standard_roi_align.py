"""``deploykit::MultilevelRoIAlign`` as ONNX ``RoiAlign`` (opset 18), of the ``standard`` lowering.

Each level crops only the regions that belong to it. The crops of all levels, one level after the
other, are then put into the order of the regions by one gather.
"""

from __future__ import annotations

import onnx_ir as ir

from deploykit.exporters.lowerings.graph_writer import GraphWriter
from deploykit.exporters.lowerings.rewriting import Limits
from deploykit.exporters.lowerings.roi_levels import write_levels, write_usable_rois
from deploykit.exporters.seam import RoIAlignAttributes

_FLOAT = ir.DataType.FLOAT.value


def rewrite(model: ir.Model, node: ir.Node) -> Limits:
    """Replace a ``deploykit::MultilevelRoIAlign`` node, in place.

    Args:
        model: Where the node is.
        node: The node.

    Returns:
        No limits.
    """
    del model
    write, options = GraphWriter(), RoIAlignAttributes.of(node)
    rois, *features = (value for value in node.inputs if value is not None)
    images, boxes = write_usable_rois(write, rois)
    levels = write_levels(write, boxes, len(features), options.finest_scale)
    half = any(feature.dtype == ir.DataType.FLOAT16 for feature in features)
    crops, places = [], []
    for level, feature in enumerate(features):
        own = write("NonZero", write("Equal", levels, level))
        own = write("Squeeze", own, [0])
        places.append(own)
        crops.append(
            write(
                "RoiAlign",
                write("Cast", feature, to=_FLOAT) if half else feature,
                write("Gather", boxes, own, axis=0),
                write("Gather", images, own, axis=0),
                mode="avg",
                output_height=options.output_size[0],
                output_width=options.output_size[1],
                sampling_ratio=options.sampling_ratio,
                spatial_scale=options.spatial_scales[level],
                coordinate_transformation_mode=(
                    "half_pixel" if options.aligned else "output_half_pixel"
                ),
            )
        )
    result = _in_order(write, crops, places, levels)
    if half:
        result = write("Cast", result, to=ir.DataType.FLOAT16.value)
    write.take_place_of(node, result)
    return {}


def _in_order(
    write: GraphWriter, crops: list[ir.Value], places: list[ir.Value], levels: ir.Value
) -> ir.Value:
    """Write the crops of all levels in the order of the regions."""
    if len(crops) == 1:
        return crops[0]
    places_of_rows = write("Concat", *places, axis=0)
    count = write("Squeeze", write("Shape", levels), [0])
    rows = write("Range", 0, count, 1)
    row_of_place = write("ScatterElements", levels, places_of_rows, rows, axis=0)
    return write("Gather", write("Concat", *crops, axis=0), row_of_place, axis=0)
