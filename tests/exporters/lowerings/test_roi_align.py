"""``MultilevelRoIAlign`` in every lowering, run in ONNX Runtime, against the definition."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_align_cases import STRIDES, TOLERANCES, build, load, run, unlowered
from torchvision.ops import roi_align

from deploykit.exporters.lowerings import lowering, primitive_roi_align
from deploykit.exporters.lowerings.primitive_roi_align import RoIAlignSize
from deploykit.exporters.lowerings.rewriting import rewrite_seam
from deploykit.plugins_trt import roi_align_reference

LOWERINGS = ["standard", "primitive", "plugin"]


def reference(features, rois, output_size=(7, 7), ratio=0, aligned=True, finest=56):
    scales = [1 / stride for stride in STRIDES[: len(features)]]
    features = [feature.astype(np.float32) for feature in features]
    return roi_align_reference.multilevel_roi_align(
        features, rois, output_size, ratio, scales, finest, aligned
    )


def pyramid(batch=2, channels=2, height=96, width=128, levels=4, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((batch, channels, height // stride, width // stride)).astype(dtype)
        for stride in STRIDES[:levels]
    ]


# Corners on a grid make empty, inverted and outside regions frequent, and edges coincide; with
# finest_scale 8 sides of 16, 32 and 64 lie on the borders between levels.
coordinate = st.sampled_from([-300.0, -4.0, 0.0, 2.5, 16.0, 17.25, 32.0, 63.99, 64.0, 130.0, 500.0])
broken = st.sampled_from([float("nan"), float("inf"), float("-inf")])
box = st.tuples(*[coordinate] * 4) | st.tuples(*[coordinate | broken] * 4)
scene = st.lists(st.tuples(st.integers(0, 1), box), min_size=1, max_size=6).map(
    lambda rows: np.float32([(image, *corners) for image, corners in rows]).reshape(-1, 5)
)
# output_size, sampling_ratio, aligned, finest_scale, type of the features
CASES = [
    ((7, 7), 0, True, 8, np.float32),
    ((7, 7), 0, True, 56, np.float16),
    ((2, 3), 0, True, 8, np.float32),
    ((4, 4), 2, True, 8, np.float16),
    ((3, 2), 2, False, 8, np.float32),
    ((2, 2), 0, False, 8, np.float32),
]


@pytest.mark.parametrize("name", LOWERINGS)
@given(rois=scene, case=st.sampled_from(CASES))
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(name, rois, case):
    *options, dtype = case
    features = pyramid(height=32, width=64, dtype=dtype)
    crops = run(name, features, rois, *options)
    expected = reference(features, rois, *options)
    np.testing.assert_allclose(crops, expected, atol=TOLERANCES[dtype])


def test_no_regions_in_standard():
    """``primitive`` takes one region or more; a model always has some."""
    assert run("standard", pyramid(), np.zeros((0, 5), np.float32)).shape == (0, 2, 7, 7)


def regions(count, seed=0, batch=2, width=128, height=96, largest=160):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, (width, height), (count, 2))
    size = rng.random((count, 2)) ** 2 * largest
    image = rng.integers(0, batch, (count, 1))
    return np.concatenate([image, corner, corner + size], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("static", [False, True])
def test_equals_torchvision_on_each_level(name, static):
    features, rois = pyramid(), regions(250)
    crops = run(name, features, rois, finest=14, static=(250, 2, 2, 96, 128) if static else None)
    side = np.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    edges = [(0, 28), (28, 56), (56, 112), (112, 1e9)]
    for feature, stride, (low, high) in zip(features, STRIDES, edges, strict=True):
        own = (side >= low) & (side < high)
        assert own.sum() > 5
        arguments = torch.from_numpy(feature), torch.from_numpy(rois[own]), (7, 7), 1 / stride
        expected = roi_align(*arguments, 0, True).numpy()
        np.testing.assert_allclose(crops[own], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("side", [16.0, 32.0, 64.0])
def test_borders_between_levels(name, side):
    """The last float32 before a border and the first after it: levels must be the operator's."""
    rois = np.zeros((81, 5), np.float32)
    rois[:, 3:] = side
    rois[:, 3] += np.spacing(np.float32(side)) * np.arange(-40, 41, dtype=np.float32)
    constant = [np.full_like(level, i) for i, level in enumerate(pyramid(height=128), start=1)]
    assert len(np.unique(run(name, constant, rois, finest=8).round(3))) == 2


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("largest", [8, 100])
def test_levels_without_regions(name, largest):
    rois = regions(20, largest=largest)
    run(name, pyramid(), rois, finest=1000)
    run(name, pyramid(), rois, finest=1)
    run(name, pyramid(levels=1), rois)


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", [(32, 1600), (1600, 32)])
def test_elongated_regions(name, shape, static):
    """Many windows per region: the maps are up to 400 cells long.

    There a float32 has steps of 3e-5, and up to 200 samples of a bin are added up.
    """
    height, width = shape
    rng = np.random.default_rng(0)
    rois = np.zeros((24, 5), np.float32)
    rois[:, 0] = rng.integers(0, 2, 24)
    rois[:, 1:3] = rng.uniform(-9, 9, (24, 2))
    rois[:, 3] = width - rng.uniform(-20, width * 0.8, 24)
    rois[:, 4] = height - rng.uniform(-20, height * 0.5, 24)
    features = pyramid(height=height, width=width)
    for size, finest in (((7, 7), 56), ((7, 7), 14), ((2, 3), 56)):
        run(
            name,
            features,
            rois,
            size,
            finest=finest,
            static=(24, 2, 2, height, width) if static else None,
            tolerance=2e-4,
        )


@pytest.mark.parametrize("name", LOWERINGS)
def test_mask_size_with_many_regions_and_static_shapes(name):
    features, rois = pyramid(height=320, width=320), regions(300, width=320, height=320)
    run(name, features, rois, (14, 14), static=(300, 2, 2, 320, 320))


def test_regions_beyond_the_limit_of_primitive_are_as_many_as_it_says():
    elongated = np.float32([[0, 0, 0, 319, 20]])
    bulky = np.float32([[0, 10, 10, 120, 120]])
    features = pyramid(batch=1, height=320, width=320)
    rois = np.concatenate([elongated] * 5 + [bulky] * 40)
    eager = run("standard", features, rois)
    model = unlowered((7, 7), 0, True, 56, 4, False, (45, 1, 2, 320, 320))
    limits = rewrite_seam(
        model,
        {
            "MultilevelRoIAlign": partial(
                primitive_roi_align.rewrite, size=RoIAlignSize(elongated=3, share=100)
            )
        },
    )
    assert limits == {"elongated_rois": 3}
    feeds = {f"feature{level}": feature for level, feature in enumerate(features)}
    (crops,) = load(ir.to_proto(model)).run(None, {"rois": rois, **feeds})
    wrong = np.abs(crops - eager).max(axis=(1, 2, 3)) > 1e-3
    assert wrong.sum() == 5 - 3
    assert not wrong[5:].any()


@pytest.mark.parametrize(
    ("static", "limit"),
    [
        ((1000, 1, 2, 320, 320), 166),
        ((100, 1, 2, 320, 320), None),  # few regions
        ((1000, 1, 2, 64, 64), None),  # maps that two windows cover
        (None, 128),
    ],
)
def test_limits_of_primitive(static, limit):
    model = unlowered((7, 7), 0, True, 56, 4, False, static)
    assert lowering("primitive")(model) == ({} if limit is None else {"elongated_rois": limit})


@pytest.mark.parametrize("static", [None, (40, 2, 2, 96, 128)])
@pytest.mark.parametrize("name", LOWERINGS)
def test_graph_is_valid_onnx_with_the_shape_of_the_output(name, static):
    proto = build(name, (7, 7), 0, True, 56, 4, False, static)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    dims = [dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert dims == [40 if static else 0, 2, 7, 7]
    domains = {opset.domain for opset in inferred.opset_import}
    assert domains == ({"", "deploykit"} if name == "plugin" else {""})
    if name == "primitive":
        operators = {node.op_type for node in proto.graph.node}
        assert not operators & {"RoiAlign", "NonZero", "If", "Loop", "Scan"}


def test_plugin_nodes_with_other_attributes_share_a_model():
    """As the box and the mask head of Mask R-CNN do."""
    model = unlowered((7, 7), 0, True, 56, 4, False, None)
    (boxes,) = model.graph
    attributes = [*boxes.attributes.values()]
    masks = ir.Node("deploykit", "MultilevelRoIAlign", boxes.inputs, attributes)
    masks.attributes["output_size"] = ir.AttrInt64s("output_size", [14, 14])
    masks.outputs[0].name = "masks"
    model.graph.append(masks)
    model.graph.outputs.append(masks.outputs[0])
    lowering("plugin")(model)
    assert masks.outputs[0].type == ir.TensorType(ir.DataType.FLOAT)
    assert [str(size) for size in masks.outputs[0].shape] == ["R", "2", "14", "14"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    nodes = [node for node in proto.graph.node if node.op_type == "MultilevelRoIAlign"]
    assert len(nodes) == 2
    for node in nodes:
        names = {attribute.name for attribute in node.attribute}
        assert names == {
            "aligned",
            "finest_scale",
            "output_size",
            "sampling_ratio",
            "spatial_scales",
        }
    features, rois = pyramid(), regions(20)
    feeds = {f"feature{level}": feature for level, feature in enumerate(features)}
    small, large = load(proto).run(None, {"rois": rois, **feeds})
    np.testing.assert_allclose(small, run("standard", features, rois), atol=2e-5)
    np.testing.assert_allclose(large, run("standard", features, rois, (14, 14)), atol=2e-5)
