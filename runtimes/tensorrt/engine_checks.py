"""What is checked of an engine before TensorRT sees it: everything that its spec tells.

TensorRT's own refusals come late, name numbers instead of causes, or are no refusals at all.
"""

from __future__ import annotations

from pathlib import Path

from deploykit.engine_spec import EngineSpec
from deploykit.errors import BackendError
from deploykit.runtimes.tensorrt.device import Device, EngineTensor
from deploykit.spec import ModelSpec
from deploykit.tensorrt_flavour import TITLES, version_tuple

_BUILD = "build it here with: deploykit convert --to tensorrt"
# Engines that were built hardware-compatible run on Ampere and newer.
_OLDEST_COMPATIBLE_GPU = (8, 0)


def check_version(spec: EngineSpec, installed: str, path: Path) -> None:
    """Refuse an engine of another version of TensorRT.

    Raises:
        BackendError: Both versions are in the message.
    """
    title = TITLES[spec.flavour]
    built, here = version_tuple(spec.tensorrt_version), version_tuple(installed)
    if built == here:
        return
    if not spec.build_flags.version_compatible:
        raise BackendError(
            f"{path} was built with {title} {spec.tensorrt_version}, but {installed} is installed, "
            f"and an engine runs with its own version only: install that one, or {_BUILD}"
        )
    if built[:1] != here[:1] or here < built:
        raise BackendError(
            f"{path} was built with {title} {spec.tensorrt_version} as version-compatible: it runs "
            f"with that version and newer ones of the same major version, but {installed} is "
            f"installed; install one of those, or {_BUILD}"
        )


def check_device(spec: EngineSpec, device: Device, path: Path) -> None:
    """Refuse an engine that was built for another GPU or with a newer driver.

    Drivers of one major CUDA version run each other's code, except for kernels that they have to
    compile themselves: those of our plugins.

    Raises:
        BackendError: Both values are in the message.
    """
    here = device.compute_capability
    where = f"cuda:{device.index} ({device.name})"
    flags = spec.build_flags
    if flags.compute_capabilities:
        _check_listed(flags.compute_capabilities, here, where, path)
    elif spec.compute_capability is not None:
        built = version_tuple(spec.compute_capability)
        if flags.hardware_compatible:
            fits = here >= _OLDEST_COMPATIBLE_GPU
            expected = "one of compute capability 8.0 or newer"
        else:
            fits = here == built
            expected = f"{spec.device_name or 'a GPU'} with compute capability {_dots(built)}"
        if not fits:
            raise BackendError(
                f"{path} was built for {expected}, but {where} has compute capability "
                f"{_dots(here)}; {_BUILD}"
            )
    if spec.driver_version is not None:
        needed = version_tuple(spec.driver_version)
        parts = 2 if spec.plugins else 1
        if device.driver_version[:parts] < needed[:parts]:
            raise BackendError(
                f"{path} was built with a driver for CUDA {spec.driver_version}, but the driver "
                f"here supports CUDA {_dots(device.driver_version)} at most; update the NVIDIA "
                f"driver, or {_BUILD}"
            )


def _check_listed(listed: tuple[str, ...], here: tuple[int, int], where: str, path: Path) -> None:
    if here not in {version_tuple(text) for text in listed}:
        raise BackendError(
            f"{path} holds code for compute capability {', '.join(listed)}, but {where} has "
            f"{_dots(here)}; {_BUILD}"
        )


def check_tensors(model: ModelSpec, tensors: tuple[EngineTensor, ...], path: Path) -> None:
    """Refuse an engine whose inputs and outputs are not those that its spec promises.

    Raises:
        BackendError: Both are in the message.
    """
    expected = {"images": "uint8"}
    if model.input.image_sizes_input:
        expected["image_sizes"] = "int32"
    if model.input.proposals:
        expected["proposals"] = "float32"
    inputs = {tensor.name: tensor.dtype.name for tensor in tensors if tensor.is_input}
    if inputs != expected:
        raise BackendError(f"{path} has the inputs {inputs}, its spec says {expected}")
    outputs = {tensor.name for tensor in tensors if not tensor.is_input}
    if missing := set(model.output.names) - outputs:
        raise BackendError(
            f"{path} lacks the outputs {sorted(missing)} of its spec; it has {sorted(outputs)}"
        )


def _dots(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
