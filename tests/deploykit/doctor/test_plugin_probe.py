import numpy as np
import pytest

from deploykit.doctor.plugin_engine import plugin_graph
from deploykit.doctor.plugin_probe import compare_with_references, compile_kernels, scene
from deploykit.errors import BackendError
from deploykit.exporters.lowerings.plugin_kernels import expand
from deploykit.plugins_trt.host_emulation import HostDevice
from deploykit.plugins_trt.registration import PLUGINS


def test_all_kernels_compile():
    assert compile_kernels() == 9


def test_emulated_kernels_equal_their_references(tmp_path):
    assert "equal their references" in compare_with_references(HostDevice(tmp_path))


@pytest.mark.parametrize(("ndim", "message"), [(2, "NMS on the GPU"), (4, "RoIAlign on the GPU")])
def test_a_wrong_result_is_noticed(tmp_path, ndim, message):
    class Wrong(HostDevice):
        def download(self, array):
            result = super().download(array)
            if result.ndim == ndim:
                np.copyto(result, result + 1)
            return result

    with pytest.raises(BackendError, match=message):
        compare_with_references(Wrong(tmp_path))


def test_the_graph_for_the_engine_is_one_of_plugins():
    expanded = expand(plugin_graph())
    kinds = {node.op_type for node in expanded.graph.node if node.domain == "deploykit"}
    names = {plugin.name for plugin in PLUGINS}
    assert kinds == {name for name in names if name.startswith("Nms")} | {"MultilevelRoIAlign2"}
    assert kinds <= names
    assert {value.name for value in expanded.graph.input} == set(scene())
    outputs = {value.name: value.type.tensor_type for value in expanded.graph.output}
    assert [dim.dim_value for dim in outputs["indices"].shape.dim] == [2, 100]
    assert [dim.dim_value for dim in outputs["crops"].shape.dim] == [16, 8, 7, 7]
