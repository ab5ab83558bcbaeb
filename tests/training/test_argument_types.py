from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from deploykit.training.argument_types import misfit


class Layer:
    def __init__(
        self,
        width: int = 1,
        scale: float | None = None,
        mode: Literal["a", "b"] = "a",
        name: str = "",
        norm: Mapping[str, Any] | None = None,
        sizes: Sequence[int] | int = (),
        anything: Any = None,
        unannotated=None,
    ) -> None: ...


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 3, "scale": 1, "mode": "a", "name": "x", "norm": {"type": "BN"}, "sizes": [1]},
        {"sizes": 3, "scale": None, "norm": None, "width": 2.0},
        {"anything": "x", "unannotated": object()},
        {"width": None, "unknown": 3},
    ],
)
def test_what_fits(arguments):
    assert misfit(Layer, arguments) is None


@pytest.mark.parametrize(
    ("arguments", "clause"),
    [
        ({"width": "3"}, "width must be a number, got '3'"),
        ({"scale": [1]}, r"scale must be a number, got \[1\]"),
        ({"mode": 1}, "mode must be a string, got 1"),
        ({"name": {}}, "name must be a string, got {}"),
        ({"norm": "BN"}, "norm must be a dict, got 'BN'"),
        ({"sizes": "12"}, "sizes must be a list or tuple or a number, got '12'"),
    ],
)
def test_what_does_not(arguments, clause):
    found = misfit(Layer, arguments)
    assert found is not None
    assert found == clause.replace("\\", "")


def test_functions_and_unresolvable_hints():
    def build(size: int) -> None: ...

    def lazy(size: Unknown) -> None: ...  # noqa: F821

    assert misfit(build, {"size": "x"}) == "size must be a number, got 'x'"
    assert misfit(lazy, {"size": "x"}) is None
