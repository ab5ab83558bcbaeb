"""What a plugin of ours is, apart from TensorRT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from deploykit.plugins_trt.kernel import Kernel, Launch

NAMESPACE = "deploykit"


@dataclass(frozen=True)
class TensorInfo:
    """Shape and element type of a tensor.

    Args:
        shape: Numbers, or TensorRT's expressions.
        dtype: numpy's name.
    """

    shape: tuple[Any, ...]
    dtype: str


class Plugin(ABC):
    """One kernel as an operator of a network."""

    name: str
    source: str  # name of the kernel
    inputs: tuple[str, ...]
    attributes: ClassVar[tuple[tuple[str, Any], ...]] = ()
    output_count: int
    tactics: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def describe(
        self, inputs: Sequence[TensorInfo], attributes: Mapping[str, Any], arithmetic: Any
    ) -> list[TensorInfo]:
        """Return the outputs.

        Args:
            inputs: The inputs.
            attributes: By name.
            arithmetic: A ``ShapeArithmetic``.
        """

    @abstractmethod
    def kernel(
        self,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        arithmetic: Any,
        tactic: int,
    ) -> tuple[Kernel, Launch]:
        """Return the kernel and its launch.

        Args:
            inputs: The inputs.
            attributes: By name.
            arithmetic: A ``ShapeArithmetic``.
            tactic: One of ``tactics``; 0 where there are none.
        """

    def dtypes(self, inputs: Sequence[TensorInfo]) -> list[str]:
        """Return the element types that the inputs must have, given those they have."""
        return [tensor.dtype for tensor in inputs]
