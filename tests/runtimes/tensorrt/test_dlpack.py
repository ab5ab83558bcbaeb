from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.runtimes.tensorrt import dlpack
from deploykit.runtimes.tensorrt.device_arrays import (
    is_device_array,
    read_device_array,
    stream_handle,
)


class Owner:
    """Owns memory that is handed out."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def capsule(self, device: tuple[int, int] = (dlpack.CPU, 0)) -> Any:
        values = self.values
        return dlpack.make_capsule(values.ctypes.data, values.shape, values.dtype, device, self)

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0


DTYPES = (np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 4)])
def test_numpy_and_pytorch_read_what_is_exported(dtype: Any, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for read in (np.from_dlpack, lambda owner: torch.from_dlpack(owner).numpy()):
        found = read(Owner(values))
        assert found.dtype == values.dtype and found.shape == values.shape
        np.testing.assert_array_equal(found, values)


def test_memory_lives_as_long_as_the_consumer() -> None:
    owner = Owner(np.arange(6, dtype=np.int32))
    alive = weakref.ref(owner)
    held = len(dlpack._exported)
    array = np.from_dlpack(owner)
    del owner
    gc.collect()
    assert alive() is not None and array.tolist() == [0, 1, 2, 3, 4, 5]
    del array
    gc.collect()
    assert alive() is None and len(dlpack._exported) == held


def test_a_capsule_that_nobody_takes_is_given_back() -> None:
    held = len(dlpack._exported)
    for _ in range(100):
        Owner(np.zeros(3)).capsule()
    gc.collect()
    assert len(dlpack._exported) == held


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_pytorch_exports_is_read(dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tensor = torch.from_numpy(values)
    address, shape, strides, found, device = dlpack.read_capsule(tensor[1:].__dlpack__())
    assert address == values.ctypes.data + values.strides[0] and shape == (1, 3, 4)
    assert strides is None or strides[1:] == values.strides[1:]
    assert found == values.dtype and device[0] == dlpack.CPU
    _, shape, strides, _, _ = dlpack.read_capsule(tensor.transpose(0, 2).__dlpack__())
    assert shape == (4, 3, 2) and strides == values.transpose(2, 1, 0).strides


def test_types_that_numpy_lacks() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="type code 4 with 16 bits"):
        dlpack.read_capsule(torch.zeros(2, dtype=torch.bfloat16).__dlpack__())


class OnGpu(Owner):
    """Looks like an array of a framework on a GPU, which notes the streams it is asked for."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values)
        self.streams: list[Any] = []

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.capsule((dlpack.CUDA, 0))

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    @property
    def __cuda_array_interface__(self) -> Any:
        raise AssertionError("DLPack tells about streams, so it comes first")


def test_dlpack_comes_first_and_hears_of_the_stream() -> None:
    array = OnGpu(np.zeros((2, 3), np.uint8))
    assert is_device_array(array)
    found = read_device_array(array, "images", 77)
    assert (found.address, found.shape, found.dtype) == (
        array.values.ctypes.data,
        (2, 3),
        np.uint8,
    )
    assert array.streams == [77] and found.nbytes == 6 and found.stream is None


def test_what_is_no_array_on_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    for value in (np.zeros(3), torch.zeros(3), Owner(np.zeros(3)), [1, 2], None, "text"):
        assert not is_device_array(value)


class Stream:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class CudaStream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 55


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (None, 1),
        (0, 1),
        (1, 1),
        (2, 2),
        (np.int64(99), 99),
        (Stream(cuda_stream=0), 1),
        (Stream(cuda_stream=33), 33),
        (Stream(ptr=44), 44),
        (Stream(handle=66), 66),
        (CudaStream(), 55),
    ],
)
def test_streams_of_all_makers(stream: Any, handle: int) -> None:
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", ["s", 1.5, True, object()])
def test_what_is_no_stream(stream: Any) -> None:
    with pytest.raises(UsageError, match="cannot read a CUDA stream from"):
        stream_handle(stream)
