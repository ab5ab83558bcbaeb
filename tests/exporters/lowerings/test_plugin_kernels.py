"""Graphs as TensorRT's parser reads them, run with the emulated kernels in place of the plugins."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from emulated_operators import operators
from nms_cases import build as build_nms
from onnx import helper
from onnx.reference import ReferenceEvaluator

from deploykit.errors import ExportError, UsageError
from deploykit.exporters.graph_capture import capture
from deploykit.exporters.lowerings import lowering
from deploykit.exporters.lowerings.plugin_kernels import expand
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.plugins_trt.host_emulation import HostDevice
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.plugins_trt.registration import PLUGINS
from deploykit.plugins_trt.roi_align_reference import multilevel_roi_align
from deploykit.training.model_spec import load_model

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    return lambda model: ReferenceEvaluator(model, new_ops=operators(HostDevice(folder, seed=1)))


def build_roi_align(levels=3, dtype=onnx.TensorProto.FLOAT, roi_dtype=None, **changes):
    names = [f"feature{level}" for level in range(levels)]
    attributes = {
        "output_size": [7, 5],
        "sampling_ratio": 0,
        "spatial_scales": [0.25 / 2**level for level in range(levels)],
        "finest_scale": 16,
        "aligned": 1,
    } | changes
    node = helper.make_node(
        "MultilevelRoIAlign", ["rois", *names], ["crops"], domain="deploykit", **attributes
    )
    rois = helper.make_tensor_value_info("rois", roi_dtype or onnx.TensorProto.FLOAT, ["R", 5])
    maps = [helper.make_tensor_value_info(name, dtype, ["B", 4, None, None]) for name in names]
    crops = helper.make_tensor_value_info("crops", dtype, ["R", 4, 7, 5])
    graph = helper.make_graph([node], "roi_align", [rois, *maps], [crops])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deploykit", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def plugin_nodes(model):
    return [node for node in model.graph.node if node.domain == "deploykit"]


def assert_fits_the_plugins(model):
    """Each node has the inputs, outputs and attributes that its plugin is registered with."""
    onnx.checker.check_model(model)
    by_name = {plugin.name: plugin for plugin in PLUGINS}
    assert not model.functions
    for node in plugin_nodes(model):
        plugin = by_name[node.op_type]
        assert len(node.input) == len(plugin.inputs)
        assert len(node.output) == plugin.output_count
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        assert attributes.pop("plugin_namespace") == b"deploykit"
        assert attributes.pop("plugin_version") == b"1"
        assert set(attributes) == {name for name, _ in plugin.attributes}
        for name, kind in plugin.attributes:
            expected = kind if kind in (int, float) else list
            assert isinstance(attributes[name], expected)


def test_nms_becomes_a_chain_of_plugins():
    model = expand(build_nms("plugin", 0.65, 30, optimise=True))
    assert_fits_the_plugins(model)
    names = [node.op_type for node in model.graph.node]
    assert names == ["Cast", "NmsSort", "NmsGather", "NmsMask", "NmsScan", "Cast"]
    assert [value.name for value in model.graph.output] == ["indices"]
    (scan,) = [node for node in plugin_nodes(model) if node.op_type == "NmsScan"]
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in scan.attribute}
    assert attributes["iou_threshold"] == pytest.approx(0.65)
    assert (attributes["max_out"], attributes["window"]) == (30, 4096)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_chain_computes_nms(emulated, dtype):
    model = expand(build_nms("plugin", 0.5, 20, dtype=dtype))
    assert_fits_the_plugins(model)
    evaluator, rng = emulated(model), np.random.default_rng(0)
    for candidates in (1, 65, 300):
        corner = rng.uniform(0, 60, (2, candidates, 2))
        sides = rng.uniform(5, 40, (2, candidates, 2))
        boxes = np.concatenate([corner, corner + sides], axis=2).astype(dtype)
        scores = rng.uniform(-0.2, 1, (2, candidates)).astype(dtype)
        labels = rng.integers(0, 3, (2, candidates))
        feeds = {"boxes": boxes, "scores": scores, "labels": labels}
        (found,) = evaluator.run(None, feeds)
        assert found.dtype == np.int64
        single = boxes.astype(np.float32), scores.astype(np.float32)
        np.testing.assert_array_equal(found, batched_nms(*single, labels, 0.5, 20))


@needs_compiler
@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16])
def test_roi_align_becomes_the_plugin_for_its_levels(emulated, levels, kind):
    model = expand(build_roi_align(levels, kind))
    assert_fits_the_plugins(model)
    assert [node.op_type for node in model.graph.node] == [f"MultilevelRoIAlign{levels}"]
    rng, dtype = np.random.default_rng(0), helper.tensor_dtype_to_np_dtype(kind)
    maps = [rng.normal(size=(2, 4, 24 >> i, 32 >> i)).astype(dtype) for i in range(levels)]
    rois = np.float32([[0, 1, 2, 30, 40], [1, 5, 5, 100, 90], [0, 3, 3, 4, 5]])
    feeds = {"rois": rois} | {f"feature{level}": one for level, one in enumerate(maps)}
    (found,) = emulated(model).run(None, feeds)
    scales = [0.25 / 2**level for level in range(levels)]
    single = [one.astype(np.float32) for one in maps]
    expected = multilevel_roi_align(single, rois, (7, 5), 0, scales, 16, True)
    tolerance = 1e-3 if dtype == np.float16 else 2e-5
    np.testing.assert_allclose(found.astype(np.float32), expected, tolerance, tolerance)


@needs_compiler
@pytest.mark.slow
def test_a_whole_detector_detects_what_it_detects_in_pytorch(emulated, detector_checkpoint):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = load_model(detector_checkpoint("faster-rcnn"))
    shape = ShapeRequest.parse("96x96", batch="2")
    graph = capture(loaded.model, replace(loaded.spec, input=shape.apply(loaded.spec.input)))
    lowering("plugin")(graph)
    model = expand(ir.to_proto(graph))
    assert_fits_the_plugins(model)
    nms = ["NmsSort", "NmsGather", "NmsMask", "NmsScan"]
    names = [node.op_type for node in plugin_nodes(model)]
    assert names == [*nms, "MultilevelRoIAlign4", *nms]

    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    sizes = np.array([[96, 96], [80, 96]])
    found = emulated(model).run(None, {"images": images, "image_sizes": sizes})
    with torch.no_grad():
        expected = loaded.model.predict(torch.from_numpy(images), torch.from_numpy(sizes))
    torch.set_num_threads(threads)
    boxes, scores, labels, counts = (value.numpy() for value in expected)
    assert counts.min() > 5
    np.testing.assert_allclose(found[0], boxes, atol=5e-3)
    np.testing.assert_allclose(found[1], scores, atol=2e-4)
    np.testing.assert_array_equal(found[2], labels)
    np.testing.assert_array_equal(found[3], counts)


def test_new_nodes_know_the_place_of_the_old_one():
    model = build_roi_align()
    model.graph.node[0].metadata_props.add(key="module", value="roi_head.extractor")
    (node,) = expand(model).graph.node
    assert [(one.key, one.value) for one in node.metadata_props] == [
        ("module", "roi_head.extractor")
    ]


def test_a_model_without_our_nodes_stays_as_it_is():
    model = build_nms("primitive", 0.5, 5)
    assert expand(model) is model


def test_bodies_in_subgraphs_are_replaced_too():
    inner = build_nms("plugin", 0.5, 5, dims=(1, 9))
    (node,) = plugin_nodes(inner)
    branches = [
        helper.make_graph([onnx.NodeProto.FromString(node.SerializeToString())], name, [], [output])
        for name, output in (("then", inner.graph.output[0]), ("else", inner.graph.output[0]))
    ]
    branch = helper.make_node(
        "If", ["condition"], ["indices"], then_branch=branches[0], else_branch=branches[1]
    )
    del inner.graph.node[:]
    inner.graph.node.append(branch)
    flag = helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, [])
    inner.graph.input.append(flag)
    (expanded,) = expand(inner).graph.node
    for attribute in expanded.attribute:
        assert [node.op_type for node in attribute.g.node][1:-1] == [
            "NmsSort",
            "NmsGather",
            "NmsMask",
            "NmsScan",
        ]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (build_roi_align(7), UsageError, "got 7 levels, expected 1 to 6"),
        (build_roi_align(3, spatial_scales=[0.5]), ExportError, "3 feature maps and 1 spatial"),
        (
            build_roi_align(roi_dtype=onnx.TensorProto.FLOAT16),
            ExportError,
            r"input 'rois' of node '.*' \(MultilevelRoIAlign\) is FLOAT16, its plugin takes FLOAT",
        ),
        (
            build_roi_align(dtype=onnx.TensorProto.DOUBLE),
            ExportError,
            "is DOUBLE, its plugin takes FLOAT or FLOAT16",
        ),
    ],
)
def test_what_no_plugin_takes_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        expand(model)


def test_unknown_nodes_of_our_domain_are_refused():
    model = build_roi_align()
    model.graph.node[0].op_type = "Mystery"
    with pytest.raises(ExportError, match="no plugin for deploykit::Mystery"):
        expand(model)
