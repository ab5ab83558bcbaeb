"""Weight initialisation from ``init_cfg`` dicts, with MMEngine's types and rules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.pretrained import load_pretrained

Distribution = Literal["uniform", "normal"]
InitConfig = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


def constant_init(module: nn.Module, val: float, bias: float = 0.0) -> None:
    """Fill the weight and the bias of a module with one value each."""
    _fill(module, lambda weight: nn.init.constant_(weight, val), bias)


def normal_init(module: nn.Module, mean: float = 0.0, std: float = 1.0, bias: float = 0.0) -> None:
    """Draw the weight from a normal distribution and fill the bias."""
    _fill(module, lambda weight: nn.init.normal_(weight, mean, std), bias)


def trunc_normal_init(
    module: nn.Module,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    bias: float = 0.0,
) -> None:
    """Draw the weight from a normal distribution cut off at ``a`` and ``b``; fill the bias."""
    _fill(module, lambda weight: nn.init.trunc_normal_(weight, mean, std, a, b), bias)


def uniform_init(module: nn.Module, a: float = 0.0, b: float = 1.0, bias: float = 0.0) -> None:
    """Draw the weight uniformly from [a, b] and fill the bias."""
    _fill(module, lambda weight: nn.init.uniform_(weight, a, b), bias)


def xavier_init(
    module: nn.Module,
    gain: float = 1.0,
    bias: float = 0.0,
    distribution: Distribution = "normal",
) -> None:
    """Glorot's initialisation of the weight; fill the bias.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.
    """
    draw = nn.init.xavier_uniform_ if distribution == "uniform" else nn.init.xavier_normal_
    _fill(module, lambda weight: draw(weight, gain=gain), bias)


def kaiming_init(
    module: nn.Module,
    a: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_out",
    nonlinearity: Literal["relu", "leaky_relu"] = "relu",
    bias: float = 0.0,
    distribution: Distribution = "normal",
) -> None:
    """He's initialisation of the weight; fill the bias.

    Source: He et al., "Delving Deep into Rectifiers", arXiv:1502.01852.
    """
    draw = nn.init.kaiming_uniform_ if distribution == "uniform" else nn.init.kaiming_normal_
    _fill(module, lambda weight: draw(weight, a=a, mode=mode, nonlinearity=nonlinearity), bias)


def bias_for_probability(probability: float) -> float:
    """Return the bias at which a sigmoid gives ``probability`` for an input of zero."""
    return -math.log((1.0 - probability) / probability)


INITIALIZERS: dict[str, Callable[..., None]] = {
    "Constant": constant_init,
    "Normal": normal_init,
    "TruncNormal": trunc_normal_init,
    "Uniform": uniform_init,
    "Xavier": xavier_init,
    "Kaiming": kaiming_init,
}


def initialize(module: nn.Module, init_cfg: InitConfig, name: str = "model") -> None:
    """Initialise a module as its ``init_cfg`` says.

    Each entry has a ``type`` and its arguments, ``layer`` (class names of the submodules that it
    applies to), optionally ``bias_prob`` instead of ``bias``, and optionally ``override`` (entries
    with a ``name``, for single submodules). ``Pretrained`` entries come last, whatever their place.

    Args:
        module: The module.
        init_cfg: One entry, several, or ``None`` for no change.
        name: What the module is, for messages.

    Raises:
        ConfigError: An entry has an unknown type or arguments that do not fit, or a pretrained file
            does not exist.
        CheckpointError: A pretrained file is damaged or has no weights for the module.
    """
    if init_cfg is None:
        return
    entries = [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg)
    for entry in entries:
        if not isinstance(entry, Mapping) or "type" not in entry:
            raise ConfigError(f"init_cfg entries must be dicts with a 'type' key, got {entry!r}")
    pretrained = [entry for entry in entries if entry["type"] == "Pretrained"]
    with torch.no_grad():
        for entry in entries:
            if entry["type"] != "Pretrained":
                _apply(module, entry)
        for entry in pretrained:
            arguments = {key: value for key, value in entry.items() if key != "type"}
            try:
                inspect.signature(load_pretrained).bind(module, name=name, **arguments)
            except TypeError as error:
                raise ConfigError(f"init_cfg of type 'Pretrained': {error}") from None
            load_pretrained(module, name=name, **arguments)


def _apply(module: nn.Module, entry: Mapping[str, Any]) -> None:
    arguments = dict(entry)
    override = arguments.pop("override", None)
    layers = arguments.pop("layer", ())
    layers = {layers} if isinstance(layers, str) else set(layers)
    draw = _initializer(arguments)
    for submodule in module.modules():
        names = {kind.__name__ for kind in (type(submodule), *type(submodule).__bases__)}
        if layers & names:
            draw(submodule)
    overrides = [override] if isinstance(override, Mapping) else override or []
    for replacement in overrides:
        rest = {key: value for key, value in replacement.items() if key != "name"}
        target = getattr(module, str(replacement.get("name")), None)
        if not isinstance(target, nn.Module):
            raise ConfigError(
                f"init_cfg override {dict(replacement)!r} needs the 'name' of a submodule"
            )
        draw_override = _initializer(rest or arguments)
        for submodule in target.modules():
            draw_override(submodule)


def _initializer(entry: Mapping[str, Any]) -> Callable[[nn.Module], None]:
    arguments = dict(entry)
    kind = arguments.pop("type", None)
    if kind == "Caffe2Xavier":
        kind = "Kaiming"
        fixed = {"a": 1, "mode": "fan_in", "nonlinearity": "leaky_relu", "distribution": "uniform"}
        arguments = {**fixed, **arguments}
    if kind not in INITIALIZERS:
        raise ConfigError(
            f"unknown init_cfg type {kind!r}, expected one of "
            f"{', '.join(INITIALIZERS)}, Caffe2Xavier, Pretrained"
        )
    probability = arguments.pop("bias_prob", None)
    if probability is not None:
        arguments["bias"] = bias_for_probability(probability)
    function = INITIALIZERS[kind]
    try:
        inspect.signature(function).bind(None, **arguments)
    except TypeError as error:
        raise ConfigError(f"init_cfg of type '{kind}': {error}") from None
    return lambda module: function(module, **arguments)


def _fill(module: nn.Module, draw: Callable[[Tensor], object], bias: float) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        draw(weight)
    offset = getattr(module, "bias", None)
    if isinstance(offset, Tensor):
        nn.init.constant_(offset, bias)
