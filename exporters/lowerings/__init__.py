"""Lowerings: what the operators of the seam become in the exported graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from deploykit.errors import UsageError
from deploykit.exporters.lowerings import standard

LOWERINGS: dict[str, Callable[[ir.Model], None]] = {"standard": standard.lower}


def lowering(name: str) -> Callable[[ir.Model], None]:
    """Return the lowering of this name: a function that rewrites an ``onnx_ir`` model in place.

    Raises:
        UsageError: There is none.
    """
    if name not in LOWERINGS:
        raise UsageError(f"unknown lowering '{name}', expected one of: {', '.join(LOWERINGS)}")
    return LOWERINGS[name]
