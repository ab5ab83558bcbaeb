"""A detector whose stages take exactly the simulated time that a test gives them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.spec import DimRange, InputSpec, ModelSpec

MS = 1_000_000


class SimulatedClock:
    """A clock in nanoseconds that only moves when someone works."""

    def __init__(self):
        self.now = 1_000

    def __call__(self):
        return self.now

    def work(self, milliseconds):
        self.now += round(milliseconds * MS)


class SimulatedBackend:
    name = "simulated"
    device = "cpu"

    def __init__(self, owner):
        self.owner = owner
        self.spec = owner.spec

    def infer(self, images, image_sizes):
        self.owner.calls.append(images[:, 0, 0, 0].tolist())
        self.owner.log.append(self.owner.name)
        times = self.owner.inference_ms
        number = len(self.owner.calls) - 1
        self.owner.clock.work(times(number) if callable(times) else times)
        return {}


class SimulatedDetector:
    """Takes ``preprocess_ms`` per image, ``inference_ms`` per call, ``postprocess_ms`` per image.

    ``inference_ms`` may be a function of the number of the call.
    """

    def __init__(
        self, name, clock, log, inference_ms, preprocess_ms=2, postprocess_ms=1, batch=(1, 1, 8)
    ):
        side = DimRange(1, 64, 4096)
        inputs = InputSpec(batch=DimRange(*batch), height=side, width=side)
        self.spec = ModelSpec("Simulated", ("cat",), inputs)
        self.name, self.clock, self.log = name, clock, log
        self.inference_ms = inference_ms
        self.preprocess_ms, self.postprocess_ms = preprocess_ms, postprocess_ms
        self.calls = []
        self.closed = False
        self.backend = SimulatedBackend(self)

    def prepare(self, images):
        self.clock.work(self.preprocess_ms * len(images))
        batch, sizes = np.stack(images), np.zeros((len(images), 2), np.int32)
        return SimpleNamespace(images=batch, image_sizes=sizes, inputs=(batch, sizes))

    def finish(self, outputs, prepared):
        assert outputs == {}
        self.clock.work(self.postprocess_ms * len(prepared.images))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True


@pytest.fixture
def simulation():
    """Return a clock, a log of whose network ran, and a maker of detectors that share them."""
    clock, log = SimulatedClock(), []

    def detector(name, inference_ms, **options):
        return SimulatedDetector(name, clock, log, inference_ms, **options)

    images = [np.full((8, 8, 3), number, np.uint8) for number in range(3)]
    return SimpleNamespace(clock=clock, log=log, detector=detector, images=images, MS=MS)
