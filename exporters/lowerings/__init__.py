"""Lowerings: what the operators of the seam become in the exported graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from deploykit.errors import UsageError
from deploykit.exporters.lowerings import plugin, primitive, standard
from deploykit.exporters.lowerings.rewriting import Limits

LOWERINGS: dict[str, Callable[[ir.Model], Limits]] = {
    "standard": standard.lower,
    "plugin": plugin.lower,
    "primitive": primitive.lower,
}


def lowering(name: str) -> Callable[[ir.Model], Limits]:
    """Return the lowering of this name.

    It is a function that rewrites an ``onnx_ir`` model in place and returns what the results are
    limited by, see ``ModelSpec.lowering_limits``.

    Raises:
        UsageError: There is none.
    """
    if name not in LOWERINGS:
        raise UsageError(f"unknown lowering '{name}', expected one of: {', '.join(LOWERINGS)}")
    return LOWERINGS[name]
