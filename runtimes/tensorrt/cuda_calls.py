"""Calls of the CUDA driver through cuda-bindings, with every result checked."""

from __future__ import annotations

from functools import cache
from typing import Any

from deploykit.errors import BackendError, DeploykitError
from deploykit.optional_imports import import_optional
from deploykit.runtimes.backend import one_line

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_ADVICE = "run the .onnx file of the model instead, or use a machine with an NVIDIA GPU"


@cache
def load_driver() -> Any:
    """Return ``cuda.bindings.driver``, with the driver initialised.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        BackendError: There is no NVIDIA driver, or no GPU.
    """
    driver = import_optional("cuda.bindings.driver", "tensorrt", "Running an engine")
    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # cuda-bindings raises what its loader of libraries raises
        raise BackendError(
            "an engine needs an NVIDIA GPU, but no NVIDIA driver can be loaded "
            f"({type(error).__name__}: libcuda): install the NVIDIA driver (580 or newer for CUDA "
            f"13), {_ADVICE}"
        ) from error
    if int(status) == _NO_DEVICE:
        raise BackendError(
            "an engine needs an NVIDIA GPU, but the NVIDIA driver sees none "
            f"(CUDA_ERROR_NO_DEVICE; is CUDA_VISIBLE_DEVICES set?): {_ADVICE}"
        )
    if int(status):
        raise BackendError(f"the NVIDIA driver does not start: cuInit: {_describe(driver, status)}")
    return driver


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA driver and return its results without the status.

    Args:
        name: Such as ``"cuMemAlloc"``.
        arguments: As cuda-bindings takes them.

    Returns:
        ``None``, the one result, or a tuple of them.

    Raises:
        BackendError: The call failed; the message has its name and CUDA's reason.
    """
    driver = load_driver()
    try:
        status, *results = getattr(driver, name)(*arguments)
    except DeploykitError:
        raise
    except Exception as error:  # a function that this driver is too old for
        raise BackendError(f"CUDA: {name} cannot be called: {one_line(error)}") from error
    if int(status):
        raise BackendError(f"CUDA: {name} failed: {_describe(driver, status)}")
    if len(results) > 1:
        return tuple(results)
    return results[0] if results else None


def _describe(driver: Any, status: Any) -> str:
    """Return an error of CUDA as ``NAME (reason)``."""
    texts = []
    for function in (driver.cuGetErrorName, driver.cuGetErrorString):
        failed, text = function(status)
        texts.append("unknown" if int(failed) or text is None else text.decode())
    return f"{texts[0]} ({texts[1]})"
