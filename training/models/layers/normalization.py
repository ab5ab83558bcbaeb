"""Normalisation layers from ``norm_cfg`` dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deploykit.errors import ConfigError

# Type name -> (layer, the name under which a ConvModule holds it).
_LAYERS: dict[str, tuple[type[nn.Module], str]] = {
    "BN": (nn.BatchNorm2d, "bn"),
    "BN1d": (nn.BatchNorm1d, "bn"),
    "BN2d": (nn.BatchNorm2d, "bn"),
    "BN3d": (nn.BatchNorm3d, "bn"),
    "SyncBN": (nn.SyncBatchNorm, "bn"),
    "GN": (nn.GroupNorm, "gn"),
    "LN": (nn.LayerNorm, "ln"),
    "IN": (nn.InstanceNorm2d, "in"),
    "IN2d": (nn.InstanceNorm2d, "in"),
}
NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def build_norm(norm_cfg: Mapping[str, Any], num_features: int) -> tuple[str, nn.Module]:
    """Build a normalisation layer.

    ``SyncBN`` is ``BatchNorm2d`` where there is nothing to synchronise with; the parameters have
    the same names either way.

    Args:
        norm_cfg: ``type`` and the arguments of the layer; ``requires_grad=False`` freezes its
            weight and bias.
        num_features: Number of channels.

    Returns:
        The name for the attribute that holds the layer (``"bn"``, ``"gn"``...) and the layer.

    Raises:
        ConfigError: The type is unknown or the arguments do not fit.
    """
    arguments = dict(norm_cfg)
    name = str(arguments.pop("type", None)).split(".")[-1]
    if name not in _LAYERS:
        raise ConfigError(f"unknown norm type '{name}', expected one of {', '.join(_LAYERS)}")
    layer, attribute = _LAYERS[name]
    if layer is nn.SyncBatchNorm and not _is_distributed():
        layer = nn.BatchNorm2d
    requires_grad = bool(arguments.pop("requires_grad", True))
    arguments.setdefault("eps", 1e-5)
    channels = "num_channels" if layer is nn.GroupNorm else None
    try:
        module = (
            layer(**arguments, **{channels: num_features})
            if channels
            else layer(num_features, **arguments)
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"norm '{name}' with {num_features} channels: {error}") from None
    for parameter in module.parameters():
        parameter.requires_grad = requires_grad
    return attribute, module


def _is_distributed() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
