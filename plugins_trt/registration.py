"""Registers our plugins with TensorRT, as quickly deployable plugins compiled ahead of time.

The PTX of a kernel goes into the engine: where it runs, it needs no plugin library, no Python and
no compiler. This works with TensorRT 10.12 to 11.x; TensorRT-RTX takes no plugins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from deploykit.errors import BackendError, MissingDependencyError
from deploykit.plugins_trt.kernel import Kernel
from deploykit.plugins_trt.nms_plugin import NMS_PLUGINS
from deploykit.plugins_trt.nvrtc import architecture_for, compile_ptx
from deploykit.plugins_trt.plugin import NAMESPACE, Plugin, TensorInfo
from deploykit.plugins_trt.roi_align_plugin import ROI_ALIGN_PLUGINS

PLUGINS: tuple[Plugin, ...] = (*NMS_PLUGINS, *ROI_ALIGN_PLUGINS)

# Names of element types: numpy's to TensorRT's, and to those of its autotuner.
_TRT_TYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32"}
_TUNER_TYPES = {"float32": "FP32", "float16": "FP16", "int32": "INT32"}


class Registration:
    """Our plugins in TensorRT's registry.

    Args:
        tensorrt: The module.
        compute_capability: Of the GPUs that engines are built for; None: any from 7.5 on.
    """

    def __init__(self, tensorrt: ModuleType, compute_capability: tuple[int, int] | None) -> None:
        self._tensorrt = tensorrt
        self._plugin_module: Any = import_module(f"{tensorrt.__name__}.plugin")
        self._numpy_names = {
            getattr(tensorrt.DataType, trt): name for name, trt in _TRT_TYPES.items()
        }
        self.compute_capability = compute_capability
        # Kernels that engines were built with, by name of the plugin.
        self.kernels: dict[str, set[Kernel]] = {}
        for plugin in PLUGINS:
            self._register(plugin)

    def _register(self, plugin: Plugin) -> None:
        trtp, identifier = self._plugin_module, f"{NAMESPACE}::{plugin.name}"
        attributes = dict(plugin.attributes)
        results = _generic(tuple, *[trtp.TensorDesc] * plugin.output_count)
        tensors = dict.fromkeys(plugin.inputs, trtp.TensorDesc)
        outputs = {"outputs": results}

        def describe(*inputs: Any, **values: Any) -> Any:
            found = plugin.describe(self._infos(inputs), values, trtp)
            descriptions = tuple(self._description(info) for info in found)
            return descriptions if len(descriptions) > 1 else descriptions[0]

        def autotune(*arguments: Any) -> Any:
            inputs, _, results = self._split(plugin, arguments, with_attributes=False)
            return [self._combination(plugin, inputs, results)]

        def aot_impl(*arguments: Any) -> Any:
            inputs, values, (*_, tactic) = self._split(plugin, arguments, with_attributes=True)
            return self._compile(plugin, inputs, values, tactic)

        compiled = _generic(tuple, str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs)
        returned = results if plugin.output_count > 1 else trtp.TensorDesc
        _sign(describe, tensors | attributes, returned)
        _sign(autotune, tensors | outputs, _generic(list, trtp.AutoTuneCombination))
        _sign(aot_impl, tensors | attributes | outputs | {"tactic": int}, compiled)
        trtp.register(identifier)(describe)
        trtp.autotune(identifier)(autotune)
        trtp.aot_impl(identifier)(aot_impl)

    def _split(
        self, plugin: Plugin, arguments: Sequence[Any], with_attributes: bool
    ) -> tuple[list[TensorInfo], dict[str, Any], Sequence[Any]]:
        """Part positional arguments into inputs, attributes and what follows."""
        names = [name for name, _ in plugin.attributes] if with_attributes else []
        first, last = len(plugin.inputs), len(plugin.inputs) + len(names)
        values = dict(zip(names, arguments[first:last], strict=True))
        return self._infos(arguments[:first]), values, arguments[last:]

    def _infos(self, descriptions: Sequence[Any]) -> list[TensorInfo]:
        return [
            TensorInfo(
                tuple(description.shape_expr),
                self._numpy_names.get(description.dtype, str(description.dtype)),
            )
            for description in descriptions
        ]

    def _description(self, info: TensorInfo) -> Any:
        dtype = getattr(self._tensorrt.DataType, _TRT_TYPES[info.dtype])
        return self._plugin_module.from_shape_expr(info.shape, dtype)

    def _combination(
        self, plugin: Plugin, inputs: Sequence[TensorInfo], results: Sequence[Any]
    ) -> Any:
        """Return the one combination of types that the network has; it is strongly typed."""
        (outputs,) = results
        dtypes = plugin.dtypes(inputs)
        for name, info, dtype in zip(plugin.inputs, inputs, dtypes, strict=True):
            if info.dtype != dtype or dtype not in _TUNER_TYPES:
                raise BackendError(
                    f"{plugin.name}: input {name} is {info.dtype}, expected "
                    f"{dtype if dtype in _TUNER_TYPES else 'float32, float16 or int32'}: "
                    "cast it before the node"
                )
        dtypes = dtypes + [info.dtype for info in self._infos(outputs)]
        types = ", ".join(_TUNER_TYPES[dtype] for dtype in dtypes)
        return self._plugin_module.AutoTuneCombination(
            types, "LINEAR", list(plugin.tactics) or None
        )

    def _compile(
        self,
        plugin: Plugin,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        tactic: int,
    ) -> tuple[str, bytes, Any, Any]:
        trtp = self._plugin_module
        kernel, launch = plugin.kernel(inputs, attributes, trtp, tactic)
        ptx = compile_ptx(kernel, architecture_for(self.compute_capability))
        params = trtp.KernelLaunchParams()
        params.grid_x, params.grid_y, params.grid_z = launch.grid
        params.block_x = launch.threads
        scalars = trtp.SymIntExprs(len(launch.scalars))
        for place, value in enumerate(launch.scalars):
            scalars[place] = trtp.SymInt32(value)
        self.kernels.setdefault(plugin.name, set()).add(kernel)
        return kernel.name, ptx.rstrip(b"\0"), params, scalars


def _generic(base: Any, *arguments: Any) -> Any:
    """Return ``base[arguments]`` of types that are known only when this runs."""
    return base[arguments if len(arguments) > 1 or base is tuple else arguments[0]]


def _sign(function: Callable[..., Any], parameters: Mapping[str, Any], returned: Any) -> None:
    """Give a function the signature by which TensorRT knows its arguments."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=type_) for name, type_ in parameters.items()],
        return_annotation=returned,
    )


_registrations: dict[str, Registration] = {}


def register_plugins(
    tensorrt: ModuleType, compute_capability: tuple[int, int] | None = None
) -> Registration:
    """Register our plugins, once per process.

    Args:
        tensorrt: The module ``tensorrt``, 10.12 or newer.
        compute_capability: Of the GPUs that engines are built for from now on; None: PTX that runs
            on any from 7.5 on.

    Returns:
        The registration, which knows what kernels were compiled.

    Raises:
        MissingDependencyError: This TensorRT knows no plugins compiled ahead of time.
    """
    if not hasattr(tensorrt, "QuickPluginCreationRequest"):
        version = getattr(tensorrt, "__version__", "")
        raise MissingDependencyError(
            f"{tensorrt.__name__} {version} takes no plugins that are compiled ahead of time, "
            "which needs TensorRT 10.12 or newer. Install it with: "
            "pip install 'deploykit[tensorrt]'"
        )
    name = tensorrt.__name__
    if name not in _registrations:
        _registrations[name] = Registration(tensorrt, compute_capability)
    registration = _registrations[name]
    registration.compute_capability = compute_capability
    return registration
