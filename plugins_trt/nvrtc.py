"""Compiles kernels to PTX with NVRTC, which needs neither a GPU nor a CUDA toolkit."""

from __future__ import annotations

import re
import threading
from functools import cache
from types import ModuleType
from typing import Any, Literal

from deploykit.errors import BackendError, MissingDependencyError
from deploykit.plugins_trt.kernel import Kernel, included_files, source_text

# What kernels are compiled for: PTX of one runs on this compute capability and on all later ones.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

# The IoU is defined operation by operation; what may be fused says so itself.
OPTIONS = ("--std=c++17", "--fmad=false")

_INSTALL = "Install it with: pip install 'deploykit[tensorrt]'"
_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)")

_compiled: dict[tuple[str, int], bytes] = {}
_lock = threading.Lock()


def architecture_for(compute_capability: tuple[int, int] | None) -> int:
    """Return the best of ``ARCHITECTURES`` for a GPU.

    Args:
        compute_capability: Of the GPU; None: of the oldest GPU, so that the PTX runs on any.

    Raises:
        BackendError: The GPU is too old.
    """
    if compute_capability is None:
        return ARCHITECTURES[0]
    number = 10 * compute_capability[0] + compute_capability[1]
    fitting = [architecture for architecture in ARCHITECTURES if architecture <= number]
    if not fitting:
        raise BackendError(
            f"the GPU has compute capability {compute_capability[0]}.{compute_capability[1]}, our "
            "kernels need 7.5 (Turing) or newer"
        )
    return fitting[-1]


def compile_ptx(kernel: Kernel, architecture: int) -> bytes:
    """Compile a kernel, or return it from the cache of this process.

    Args:
        kernel: The kernel.
        architecture: One of ``ARCHITECTURES``.

    Returns:
        PTX, as text that ends with a zero byte.

    Raises:
        MissingDependencyError: cuda-bindings or NVRTC is missing.
        BackendError: The kernel does not compile, or not to the parameters that it should have.
    """
    key = (kernel.digest, architecture)
    with _lock:
        if key not in _compiled:
            ptx = _compile(kernel, architecture)
            check_parameters(ptx, kernel)
            _compiled[key] = ptx
        return _compiled[key]


def check_parameters(ptx: bytes, kernel: Kernel) -> None:
    """Check that PTX has one entry point with the parameters of a kernel.

    TensorRT passes inputs, scalars and outputs by position; one parameter too many or too few would
    make the kernel write to any address.

    Raises:
        BackendError: It has not.
    """
    entries = _ENTRY.findall(ptx.decode())
    if [name for name, _ in entries] != [kernel.name]:
        names = ", ".join(name for name, _ in entries) or "none"
        raise BackendError(f"PTX of {kernel.name} has the entry points: {names}")
    # The newest compilers mark pointers after the type.
    found = _PARAMETER.findall(entries[0][1])
    if found != kernel.parameter_types:
        raise BackendError(
            f"PTX of {kernel.name} takes {len(found)} parameters ({', '.join(found)}), expected "
            f"{len(kernel.parameter_types)} ({', '.join(kernel.parameter_types)})"
        )


@cache
def _nvrtc() -> ModuleType:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise MissingDependencyError(
            f"compiling our kernels needs the package cuda-bindings. {_INSTALL}"
        ) from error
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:  # whatever the loader of the library raises
        text = " ".join(str(error).split())
        raise MissingDependencyError(
            f"the compiler NVRTC cannot be loaded: {text}. {_INSTALL}"
        ) from error
    module: ModuleType = nvrtc
    return module


def _compile(
    kernel: Kernel, architecture: int, kind: Literal["compute", "sm"] = "compute"
) -> bytes:
    """Return PTX (``compute``) or machine code (``sm``)."""
    nvrtc = _nvrtc()
    names = [name.encode() for name in included_files(f"{kernel.name}.cu")]
    headers = [source_text(name.decode()).encode() for name in names]
    program = _call(
        nvrtc.nvrtcCreateProgram,
        kernel.source.encode(),
        f"{kernel.name}.cu".encode(),
        len(names),
        headers,
        names,
    )
    try:
        options = [f"--gpu-architecture={kind}_{architecture}", *OPTIONS]
        options += [f"-D{name}={value}" for name, value in kernel.constants]
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise BackendError(
                f"{kernel.name} does not compile for sm_{architecture}:\n{_log(nvrtc, program)}"
            )
        form = "PTX" if kind == "compute" else "CUBIN"
        result = bytearray(_call(getattr(nvrtc, f"nvrtcGet{form}Size"), program))
        _call(getattr(nvrtc, f"nvrtcGet{form}"), program, result)
        return bytes(result)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _log(nvrtc: ModuleType, program: Any) -> str:
    log = bytearray(_call(nvrtc.nvrtcGetProgramLogSize, program))
    _call(nvrtc.nvrtcGetProgramLog, program, log)
    return log.decode(errors="replace").rstrip("\0\n")


def _call(function: Any, *arguments: Any) -> Any:
    """Call NVRTC, return its result, raise if it failed."""
    status, *results = function(*arguments)
    nvrtc = _nvrtc()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, text = nvrtc.nvrtcGetErrorString(status)
        raise BackendError(f"{function.__name__} failed: {text.decode()}")
    return results[0] if results else None
