"""A backend that computes every input once, for a reference that many models are compared with."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt


class RememberedBackend:
    """Answers an input that it has seen from memory, and all else as ``backend`` does.

    Args:
        backend: A backend of PyTorch, whose results depend on nothing but their input.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._answers: dict[tuple[Any, ...], dict[str, npt.NDArray[Any]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def infer(self, *inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """See ``Backend.infer``."""
        return self._answer(("infer",), inputs, lambda: self.backend.infer(*inputs))

    def infer_with_noise(
        self, *inputs: npt.NDArray[Any], noise: float, seed: int
    ) -> dict[str, npt.NDArray[Any]]:
        """See ``PyTorchBackend.infer_with_noise``."""
        key = ("noise", noise, seed)
        return self._answer(
            key, inputs, lambda: self.backend.infer_with_noise(*inputs, noise=noise, seed=seed)
        )

    def _answer(self, key: tuple[Any, ...], inputs: Any, compute: Any) -> dict[str, Any]:
        arrays = [np.ascontiguousarray(array) for array in inputs]
        digests = (hashlib.sha256(array.tobytes()).digest() for array in arrays)
        key += tuple(zip((array.shape for array in arrays), digests, strict=True))
        if key not in self._answers:
            self._answers[key] = compute()
        return self._answers[key]
