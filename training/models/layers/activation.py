"""Activation layers from ``act_cfg`` dicts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from deploykit.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "HSigmoid": nn.Hardsigmoid,
    "HSwish": nn.Hardswish,
    "LeakyReLU": nn.LeakyReLU,
    "PReLU": nn.PReLU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "Swish": nn.SiLU,
    "Tanh": nn.Tanh,
}


def build_activation(act_cfg: Mapping[str, Any]) -> nn.Module:
    """Build an activation layer.

    Args:
        act_cfg: ``type`` is a key of ``ACTIVATIONS``; the other keys are its arguments. Layers that
            can work in place do so unless ``inplace`` is given.

    Raises:
        ConfigError: The type is unknown or the arguments do not fit.
    """
    arguments = dict(act_cfg)
    name = str(arguments.pop("type", None)).split(".")[-1]
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"unknown activation type '{name}', expected one of {', '.join(ACTIVATIONS)}"
        )
    layer = ACTIVATIONS[name]
    if "inplace" in inspect.signature(layer).parameters:
        arguments.setdefault("inplace", True)
    try:
        return layer(**arguments)
    except TypeError as error:
        raise ConfigError(f"activation '{name}': {error}") from None
