"""What TensorRT gets to read of a graph with nodes of our own domain."""

from __future__ import annotations

import genuine_tensorrt
import pytest
from nms_cases import build

from deploykit.exporters.tensorrt.build_device import BuildDevice
from deploykit.exporters.tensorrt.plugin_graph import with_plugins
from deploykit.plugins_trt.kernel import Kernel, source_digest


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory):
    if missing := genuine_tensorrt.missing_packages():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return genuine_tensorrt.load(tmp_path_factory.mktemp("libraries"))


def test_plugins_take_the_place_of_our_nodes(tensorrt):
    device = BuildDevice("a GPU", "8.6", "13.0")
    model, kernels = with_plugins(build("plugin", 0.5, 30, optimise=True), tensorrt, device)
    names = {node.op_type for node in model.graph.node if node.domain == "deploykit"}
    assert names == {"NmsSort", "NmsGather", "NmsMask", "NmsScan"}
    assert not model.functions
    sources = ["nms_gather", "nms_mask", "nms_scan", "nms_sort"]
    assert [kernel.name for kernel in kernels] == sources
    assert [kernel.sha256 for kernel in kernels] == [source_digest(name) for name in sources]
    registry = tensorrt.get_plugin_registry()
    assert all(registry.get_creator(name, "1", "deploykit") is not None for name in names)


def test_other_graphs_stay_as_they_are():
    model = build("primitive", 0.5, 30)
    assert with_plugins(model, None, None) == (model, ())


def test_the_digest_changes_with_anything_that_is_included(monkeypatch):
    from deploykit.plugins_trt import kernel

    before, text = source_digest("nms_mask"), kernel.source_text
    constants = Kernel("nms_mask", (("IOU_THRESHOLD", "0x1p-1f"),), (), (), ()).digest
    assert constants != Kernel("nms_mask", (("IOU_THRESHOLD", "0x1p-2f"),), (), (), ()).digest

    def changed(name):
        return text(name) + ("//" if name == "nms_common.cuh" else "")

    monkeypatch.setattr(kernel, "source_text", changed)
    assert source_digest("nms_mask") != before
    assert source_digest("multilevel_roi_align") == source_digest("multilevel_roi_align")
