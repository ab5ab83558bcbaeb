"""Our plugins as operators of ONNX's reference evaluator, computed by the emulated kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from deploykit.plugins_trt.host_emulation import HostDevice
from deploykit.plugins_trt.kernel import Numbers
from deploykit.plugins_trt.plugin import Plugin, TensorInfo
from deploykit.plugins_trt.registration import PLUGINS


def operators(device: HostDevice) -> list[type[OpRun]]:
    """Return an operator for each plugin."""
    return [*(_operator(plugin, device) for plugin in PLUGINS), GatherElements]


def _operator(plugin: Plugin, device: HostDevice) -> type[OpRun]:
    def run(self: Any, *arrays: Any, **given: Any) -> tuple[Any, ...]:
        assert (given.pop("plugin_namespace"), given.pop("plugin_version")) == ("deploykit", "1")
        attributes = {name: given.pop(name) for name, _ in plugin.attributes}
        assert not given
        infos = [TensorInfo(array.shape, str(array.dtype)) for array in arrays]
        assert [info.dtype for info in infos] == plugin.dtypes(infos)
        kernel, launch = plugin.kernel(infos, attributes, Numbers, max(plugin.tactics, default=0))
        assert len(arrays) == len(kernel.inputs)
        tensors = {
            name: device.upload(np.ascontiguousarray(array))
            for name, array in zip(kernel.inputs, arrays, strict=True)
        }
        outputs = plugin.describe(infos, attributes, Numbers)
        for name, info in zip(kernel.outputs, outputs, strict=True):
            tensors[name] = device.empty(info.shape, info.dtype)
        device.launch(kernel, launch, tensors)
        return tuple(device.download(tensors[name]) for name in kernel.outputs)

    return type(plugin.name, (OpRun,), {"op_domain": "deploykit", "_run": run})


class GatherElements(OpRun):
    """ONNX's own, without its limit of 64 elements along the axis."""

    def _run(self, data, indices, axis=None):
        size = data.shape[axis]
        return (np.take_along_axis(data, np.where(indices < 0, indices + size, indices), axis),)
