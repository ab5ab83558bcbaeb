"""``MultilevelRoIAlign`` in every lowering, run in ONNX Runtime, against the definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_align_cases import STRIDES, TOLERANCES, build, load, run, unlowered
from torchvision.ops import roi_align

from deploykit.exporters.lowerings import lowering
from deploykit.exporters.onnx_checks import check_operators
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


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("levels", [1, 4])
def test_no_regions(name, levels):
    crops = run(name, pyramid(levels=levels), np.zeros((0, 5), np.float32))
    assert crops.shape == (0, 2, 7, 7)


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


ELONGATED, TALL = [0, 1500, 20], [0, 20, 1500]
BULKY, SMALL = [1, 215, 221], [0, 20, 30]


@pytest.mark.parametrize("name", ["primitive", "plugin"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "kinds",
    [[BULKY], [ELONGATED], [TALL], [ELONGATED, BULKY, TALL, SMALL], [SMALL] * 15 + [TALL]],
    ids=["bulky", "elongated", "tall", "mixed", "few"],
)
def test_more_windows_than_are_computed_ahead(name, static, kinds):
    """Regions of up to 375 cells length: what is not computed ahead has its turn in the loop."""
    rng = np.random.default_rng(0)
    rois = np.zeros((150, 5), np.float32)
    kind = np.float32([kinds[row % len(kinds)] for row in range(150)])
    rois[:, 0] = rng.integers(0, 2, 150)
    rois[:, 1:3] = rng.uniform(0, 90, (150, 2))
    rois[:, 3:] = rois[:, 1:3] + kind[:, 1:] * rng.uniform(0.9, 1, (150, 2))
    features = pyramid(height=1600, width=1600)
    shape = (150, 2, 2, 1600, 1600) if static else None
    crops = run(name, features, rois, finest=112, static=shape, tolerance=2e-4)
    assert np.abs(crops).max(axis=(1, 2, 3)).min() > 0


size_of_side = st.sampled_from([0.0, 3.0, 30.0, 70.0, 130.0, 250.0])
many = st.lists(
    st.tuples(st.integers(0, 1), coordinate, coordinate, size_of_side, size_of_side),
    min_size=1,
    max_size=12,
)


@given(rows=many, copies=st.sampled_from([1, 7, 31]))
@settings(max_examples=40, deadline=None)
def test_any_mixture_of_sizes(rows, copies):
    """Each region is that of a list of its own, whatever else is in the list and in the batch."""
    rois = np.float32([(i, x, y, x + w, y + h) for i, x, y, w, h in rows] * copies)
    features = pyramid(height=256, width=256)
    crops = run("primitive", features, rois, finest=500)
    for row in range(len(rows)):
        image = int(rois[row, 0])
        one = rois[row : row + 1] * np.float32([0, 1, 1, 1, 1])
        alone = run("primitive", [level[image : image + 1] for level in features], one, finest=500)
        np.testing.assert_allclose(crops[row :: len(rows)], np.repeat(alone, copies, 0), atol=1e-6)


def test_what_is_left_of_one_image_does_not_touch_another():
    bulky, small = [0, 1, 1, 200, 200], [1, 3, 5, 40, 60]
    features = pyramid(height=256, width=256)
    rois = np.float32([bulky] * 120 + [small] * 5)
    crops = run("primitive", features, rois, finest=500)
    alone = run("primitive", features, np.float32([small] * 5), finest=500)
    np.testing.assert_array_equal(crops[120:], alone)


@pytest.mark.parametrize("static", [(1000, 1, 2, 320, 320), (1000, 1, 2, 64, 64), None])
@pytest.mark.parametrize("name", LOWERINGS)
def test_no_limits(name, static):
    assert lowering(name)(unlowered((7, 7), 0, True, 56, 4, False, static)) == {}


@pytest.mark.parametrize(
    ("static", "loops"),
    [((1000, 1, 2, 64, 64), 0), ((1000, 1, 2, 320, 320), 1), ((8, 1, 2, 320, 320), 1), (None, 1)],
)
def test_a_loop_only_where_windows_can_be_left(static, loops):
    proto = build("primitive", (7, 7), 0, True, 56, 4, False, static)
    assert sum(node.op_type == "Loop" for node in proto.graph.node) == loops


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
        check_operators(proto, name)


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
