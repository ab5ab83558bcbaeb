"""The kernels compile for every GPU generation, to the parameters that TensorRT passes."""

from __future__ import annotations

import re
import sys

import pytest

from deploykit.errors import BackendError, MissingDependencyError
from deploykit.plugins_trt import nms_kernels, nvrtc
from deploykit.plugins_trt.kernel import Kernel
from deploykit.plugins_trt.roi_align_kernels import RoIAlignParameters, roi_align_kernel

FPN = RoIAlignParameters((7, 7), 0, (0.25, 0.125, 0.0625, 0.03125), 56, True)
MASKS = RoIAlignParameters((14, 14), 2, (0.25,), 56, False)
KERNELS = [
    *(nms_kernels.sort_kernel(dtype) for dtype in ("float32", "float16")),
    *(nms_kernels.gather_kernel(dtype) for dtype in ("float32", "float16")),
    nms_kernels.mask_kernel(0.5),
    nms_kernels.scan_kernel("float32", 0.65, 300, 4096),
    nms_kernels.scan_kernel("float16", 0.5, 1000, nms_kernels.LARGEST_WINDOW),
    roi_align_kernel(FPN, "float32"),
    roi_align_kernel(FPN, "float16", 16),
    roi_align_kernel(MASKS, "float16", 256),
]


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_kernel_compiles_for_every_architecture(kernel, architecture):
    ptx = nvrtc.compile_ptx(kernel, architecture).decode()
    assert f".target sm_{architecture}" in ptx
    entry = re.search(rf"\.entry {kernel.name}\((.*?)\)", ptx, re.DOTALL)[1]
    inputs, scalars, outputs = map(len, (kernel.inputs, kernel.scalars, kernel.outputs))
    assert entry.count(".param") == inputs + scalars + outputs
    if kernel.name != "multilevel_roi_align":
        assert "fma" not in ptx  # would decide overlaps in another precision


@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_the_assembler_takes_it_and_shared_memory_fits(architecture):
    """NVRTC compiles to machine code for a given GPU by the assembler that drivers have, too."""
    for kernel in (KERNELS[0], KERNELS[2], KERNELS[4], KERNELS[6], KERNELS[7], KERNELS[9]):
        binary = nvrtc._compile(kernel, architecture, "sm")
        assert binary[:4] == b"\x7fELF"


def test_ptx_is_compiled_once():
    first = nvrtc.compile_ptx(KERNELS[0], 75)
    assert nvrtc.compile_ptx(nms_kernels.sort_kernel("float32"), 75) is first
    assert nvrtc.compile_ptx(nms_kernels.sort_kernel("float16"), 75) is not first
    assert KERNELS[0].digest != KERNELS[1].digest


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        (".param .u64 a, .param .u64 b, .param .u32 n, .param .u64 c, .param .u64 d", "5"),
        (".param .u64 a, .param .u64 n, .param .u64 c, .param .u64 d", "4"),
        (".param .u64 a", "1"),
        ("", "0"),
    ],
)
def test_other_parameters_than_expected_are_an_error(parameters, found):
    ptx = f".visible .entry nms_sort({parameters})".encode()
    with pytest.raises(BackendError, match=rf"takes {found}.*expected 4 \(u64, u32, u64, u64\)"):
        nvrtc.check_parameters(ptx, KERNELS[0])


def test_another_entry_point_is_an_error():
    with pytest.raises(BackendError, match="entry points: other"):
        nvrtc.check_parameters(b".visible .entry other(.param .u64 a)", KERNELS[0])
    with pytest.raises(BackendError, match="entry points: none"):
        nvrtc.check_parameters(b".version 8.0", KERNELS[0])


def test_code_that_does_not_compile_gives_the_compilers_message():
    broken = Kernel("nms_sort", (("SCORE", "no_such_type"),), (), (), ())
    with pytest.raises(BackendError, match='identifier "no_such_type" is undefined'):
        nvrtc.compile_ptx(broken, 75)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [(None, 75), ((7, 5), 75), ((8, 7), 86), ((8, 9), 89), ((9, 0), 90), ((12, 1), 120)],
)
def test_the_best_architecture_that_a_gpu_runs(capability, architecture):
    assert nvrtc.architecture_for(capability) == architecture


def test_gpus_that_are_too_old_are_refused():
    with pytest.raises(BackendError, match=r"compute capability 7\.0, our kernels need 7\.5"):
        nvrtc.architecture_for((7, 0))


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    nvrtc._nvrtc.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit\[tensorrt\]'"):
        nvrtc.compile_ptx(nms_kernels.mask_kernel(0.123), 75)


def test_without_the_library_the_error_says_so(monkeypatch):
    from cuda.bindings import nvrtc as bindings

    def missing():
        raise RuntimeError("Failed to load libnvrtc.so")

    nvrtc._nvrtc.cache_clear()
    monkeypatch.setattr(bindings, "nvrtcVersion", missing)
    with pytest.raises(MissingDependencyError, match="NVRTC cannot be loaded: Failed to load"):
        nvrtc.compile_ptx(nms_kernels.mask_kernel(0.124), 75)
    nvrtc._nvrtc.cache_clear()
