"""Which ways of building a flavour of TensorRT has, and how they are set."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from deploykit.engine_spec import BuildFlags
from deploykit.errors import UsageError
from deploykit.tensorrt_flavour import FlavourName

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(option: str, text: str) -> int:
    """Read a size such as ``"512MiB"``, ``"2G"`` or ``"1073741824"``; units are powers of 1024.

    Args:
        option: What the size is for, to begin messages with.
        text: The size.

    Raises:
        UsageError: The text is not a size above zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError(f"{option} needs a size such as 512MiB or 4GiB, got '{text}'")
    return size


def check_flags(
    flags: BuildFlags, flavour: FlavourName, module: ModuleType, timing_cache: bool = False
) -> None:
    """Refuse what a flavour cannot do, before anything is built.

    Args:
        flags: How the engine is asked for.
        flavour: Name of the flavour.
        module: The flavour itself.
        timing_cache: Whether a timing cache was named.

    Raises:
        UsageError: The flavour cannot do it; the message says what to do.
    """
    if flavour == "tensorrt":
        if flags.compute_capabilities:
            raise UsageError(
                "--compute-capability is for --flavour rtx; TensorRT builds for the GPU it runs on "
                "(--hardware-compatible: for compute capability 8.0 and newer)"
            )
        return
    if flags.version_compatible:
        raise UsageError(
            "--version-compatible is for --flavour tensorrt; TensorRT-RTX ships no lean runtime to "
            "load such engines with"
        )
    if flags.hardware_compatible:
        raise UsageError(
            "--hardware-compatible is for --flavour tensorrt; a TensorRT-RTX engine is compiled "
            "for the GPU at hand when it is loaded, so leave the option out"
        )
    if timing_cache:
        raise UsageError(
            "--timing-cache is for --flavour tensorrt; TensorRT-RTX times nothing while it builds"
        )
    for capability in flags.compute_capabilities:
        _compute_capability(module, capability)


def apply_flags(config: Any, flags: BuildFlags, module: ModuleType) -> None:
    """Set the flags of a builder configuration.

    Args:
        config: An ``IBuilderConfig``.
        flags: How the engine is asked for; ``check_flags`` has seen them.
        module: The flavour.
    """
    if flags.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, flags.workspace)
    if flags.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if flags.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if not flags.tf32:
        config.clear_flag(module.BuilderFlag.TF32)
    if flags.compute_capabilities:
        config.num_compute_capabilities = len(flags.compute_capabilities)
        for index, text in enumerate(flags.compute_capabilities):
            config.set_compute_capability(_compute_capability(module, text), index)
    # Without it the inspector tells nothing about the types inside the engine.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED


def _compute_capability(module: ModuleType, text: str) -> Any:
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in module.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if text not in known:
        raise UsageError(
            f"TensorRT-RTX {module.__version__} builds for compute capability "
            f"{', '.join(known)}, got '{text}'; without the option it builds for all"
        )
    return known[text]
