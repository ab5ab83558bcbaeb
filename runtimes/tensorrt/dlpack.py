"""DLPack capsules without a framework: reading those of others, making our own.

Layout of the structures: ``dlpack.h`` of DLPack 0.8 (the unversioned capsule ``dltensor``, which
every producer and consumer still understands).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.runtimes.tensorrt.device import Shape

CPU, CUDA = 1, 2
_NAME = b"dltensor"
# DLPack's codes of types, as numpy's kinds.
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
)

_new_capsule: Any = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_pointer: Any = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# In its destructor a capsule may no longer be referenced as an object, hence the plain address.
_dying_is_valid: Any = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer: Any = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# What consumers hold: by address, the structure, its shape, and what owns the memory.
_exported: dict[int, tuple[Any, ...]] = {}


def read_capsule(capsule: Any) -> tuple[int, Shape, Shape | None, np.dtype[Any], tuple[int, int]]:
    """Return address, shape, strides, type and (device type, index) of a tensor.

    The memory is valid as long as the capsule is referenced, which stays the owner.

    Args:
        capsule: What ``__dlpack__`` of the producer returned.

    Returns:
        Strides are in bytes, or ``None`` for C-contiguous.

    Raises:
        UsageError: Elements of a type that numpy lacks.
    """
    address = _capsule_pointer(capsule, _NAME)
    tensor = ctypes.cast(address, ctypes.POINTER(_ManagedTensor)).contents.tensor
    kind = _KINDS.get(tensor.dtype.code)
    if kind is None or tensor.dtype.lanes != 1 or tensor.dtype.bits % 8:
        raise UsageError(
            f"a DLPack tensor of type code {tensor.dtype.code} with {tensor.dtype.bits} bits was "
            "given; expected integers or floats"
        )
    dtype = np.dtype(f"{kind}{tensor.dtype.bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim))
    device = (tensor.device.type, tensor.device.index)
    return (tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, device


def make_capsule(
    address: int, shape: Shape, dtype: np.dtype[Any], device: tuple[int, int], owner: object
) -> Any:
    """Return a capsule for C-contiguous memory.

    Args:
        address: Where the elements are.
        shape: Their shape.
        dtype: Their type.
        device: (device type, index), e.g. ``(CUDA, 0)``.
        owner: What is kept alive until the consumer is done.
    """
    code = next(code for code, kind in _KINDS.items() if kind == dtype.kind)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _ManagedTensor(
        _Tensor(
            address,
            _Device(*device),
            len(shape),
            _DataType(code, dtype.itemsize * 8, 1),
            ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
            None,
            0,
        ),
        None,
        _deleter,
    )
    place = ctypes.addressof(managed)
    _exported[place] = (managed, sizes, owner)
    return _new_capsule(place, _NAME, ctypes.cast(_destructor, ctypes.c_void_p))


def _release(managed: Any) -> None:
    """What the consumer calls when it is done."""
    _exported.pop(ctypes.addressof(managed.contents), None)


def _release_unused(capsule: int) -> None:
    """What Python calls with a capsule that goes away; a consumer has renamed those it took."""
    if _dying_is_valid(capsule, _NAME):
        _exported.pop(_dying_pointer(capsule, _NAME), None)


_deleter = _Deleter(_release)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_release_unused)
