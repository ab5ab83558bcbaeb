"""Flags of a build."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.engine_spec import BuildFlags
from deploykit.errors import UsageError
from deploykit.exporters.tensorrt.build_flags import apply_flags, check_flags, parse_bytes
from deploykit.tensorrt_flavour import logger


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1073741824", 2**30),
        ("4GiB", 2**32),
        ("4 gb", 2**32),
        ("512M", 2**29),
        ("1.5G", 3 * 2**29),
        ("64 KiB", 2**16),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_bytes("--workspace", text) == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "4TiBs", "G", "1e9", "0.1", "4 G iB"])
def test_what_is_no_size(text: str):
    with pytest.raises(UsageError, match="--workspace needs a size such as 512MiB"):
        parse_bytes("--workspace", text)


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_a_usage_error(text: str):
    try:
        assert parse_bytes("--workspace", text) >= 1
    except UsageError as error:
        assert repr(text)[1:-1] in str(error) or text in str(error)


def test_flags_reach_the_configuration(rtx: ModuleType):
    config = rtx.Builder(logger(rtx)).create_builder_config()
    assert config.get_flag(rtx.BuilderFlag.TF32)  # TensorRT's own choice, not ours
    flags = BuildFlags(workspace=1 << 25, compute_capabilities=("8.6", "12.0"))
    check_flags(flags, "rtx", rtx)
    apply_flags(config, flags, rtx)
    assert not config.get_flag(rtx.BuilderFlag.TF32)
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 1 << 25
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(1) == rtx.ComputeCapability.SM120
    assert config.profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
    apply_flags(config, BuildFlags(tf32=True, version_compatible=True), rtx)
    assert config.get_flag(rtx.BuilderFlag.VERSION_COMPATIBLE)


def test_compute_capabilities_are_not_for_tensorrt(rtx: ModuleType):
    with pytest.raises(UsageError, match="--compute-capability is for --flavour rtx"):
        check_flags(BuildFlags(compute_capabilities=("8.6",)), "tensorrt", rtx)
    check_flags(
        BuildFlags(version_compatible=True, hardware_compatible=True), "tensorrt", rtx, True
    )
