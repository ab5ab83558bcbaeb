"""Engine sessions on the fake device, with an engine whose results are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeDevice
from fake_engine import FakeEngine

from deploykit.runtimes.tensorrt.device import EngineTensor
from deploykit.runtimes.tensorrt.session import EngineSession, SessionOptions

UINT8, INT32, FLOAT32 = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.float32)
DYNAMIC = ((1, 8, 8, 3), (4, 16, 16, 3), (8, 32, 32, 3))
STATIC = ((4, 8, 8, 3),) * 3


def detect(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Rows that depend on all of their image and on nothing else."""
    weights = np.arange(images[0].size, dtype=np.float64).reshape(images[0].shape) + 1
    total = (images * weights).sum(axis=(1, 2, 3)).astype(np.float32)
    return {
        "boxes": (total[:, None, None] + np.arange(8, dtype=np.float32).reshape(2, 4)),
        "labels": image_sizes * np.int32(3),
        "num_dets": images[:, 0, 0, 0].astype(np.int32),
    }


def make_engine(device: FakeDevice, profile: Any = DYNAMIC) -> FakeEngine:
    low, best, high = profile
    static = low == high
    batch = low[0] if static else -1
    sizes = tuple((shape[0], 2) for shape in profile)
    shape = low if static else (-1, -1, -1, 3)
    return FakeEngine(
        device,
        (
            EngineTensor("images", UINT8, shape, True, (low, best, high)),
            EngineTensor("image_sizes", INT32, (batch, 2), True, sizes),
            EngineTensor("boxes", FLOAT32, (batch, 2, 4), False),
            EngineTensor("labels", INT32, (batch, 2), False),
            EngineTensor("num_dets", INT32, (batch,), False),
        ),
        detect,
    )


def make_session(device: FakeDevice, profile: Any = DYNAMIC, **options: Any) -> EngineSession:
    with device.activated():
        engine = make_engine(device, profile)
    return EngineSession(device, engine, Path("model.engine"), SessionOptions(**options))


def batch(rows: int, size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "images": generator.integers(0, 256, (rows, size, size, 3), np.uint8),
        "image_sizes": generator.integers(0, 1000, (rows, 2), np.int32),
    }


def assert_equal(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    expected = detect(**inputs)
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_array_equal(outputs[name], value)
