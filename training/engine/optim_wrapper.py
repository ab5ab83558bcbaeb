"""From a loss to new weights: precision, gradient accumulation, clipping and the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from deploykit.errors import ConfigError
from deploykit.training.engine.optimizer import build_optimizer

_DTYPES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
}


class OptimWrapper:
    """An optimizer with what belongs around it (MMEngine's ``OptimWrapper`` and its AMP variant).

    Args:
        optimizer: The optimizer.
        device: The device of the model.
        accumulative_counts: Iterations whose gradients are averaged for one step. The last step of
            a run takes what is left.
        clip_grad: ``dict(max_norm=..., norm_type=2)`` or ``dict(type="value", clip_value=...)``.
        dtype: Precision of the forward pass; float32 means no autocast.
        loss_scale: For float16: ``"dynamic"``, a constant, or arguments of ``GradScaler``.

    Attributes:
        grad_norm: float32 scalar, L2 norm (or ``norm_type``) of the gradients of the last step
            before clipping; ``None`` before the first step.
        skips_overflow: Whether a step with non-finite gradients is left out, as float16 with loss
            scaling does by design.

    Raises:
        ConfigError: Options that make no sense or that the device cannot do.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        loss_scale: float | str | Mapping[str, Any] = "dynamic",
    ) -> None:
        if not isinstance(accumulative_counts, int) or accumulative_counts < 1:
            raise ConfigError(
                f"optim_wrapper.accumulative_counts must be at least 1, got {accumulative_counts!r}"
            )
        if dtype == torch.float16 and device.type == "cpu":
            raise ConfigError("float16 training needs a GPU; use bfloat16 (--amp bf16) on the CPU")
        self.optimizer, self.device, self.dtype = optimizer, device, dtype
        self.accumulate = accumulative_counts
        self.grad_norm: Tensor | None = None
        self._clip = _clip_arguments(clip_grad)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._static_scale = float(loss_scale) if isinstance(loss_scale, (int, float)) else None
        self._scaler = _build_scaler(device, dtype, loss_scale)
        self._count, self._total = 0, 0

    @property
    def skips_overflow(self) -> bool:
        """See the class."""
        return bool(self._scaler.is_enabled())

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def start(self, iterations_done: int, iterations_total: int) -> None:
        """Tell where training begins and ends, for gradient accumulation."""
        self._count, self._total = iterations_done, iterations_total

    def autocast(self) -> torch.autocast:
        """Return the context for the forward pass."""
        enabled = self.dtype != torch.float32
        return torch.autocast(
            self.device.type, dtype=self.dtype if enabled else None, enabled=enabled
        )

    @property
    def accumulates_next(self) -> bool:
        """Whether the next ``backward`` is not followed by a step."""
        return not self._due(self._count + 1)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss (scalar)."""
        scaled: Tensor = self._scaler.scale(loss / self._divisor())
        scaled.backward()  # type: ignore[no-untyped-call]
        self._count += 1

    def step(self) -> bool:
        """Change the weights if enough gradients are there.

        Returns:
            Whether a step was due.
        """
        if not self._due(self._count):
            return False
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
        self.grad_norm = self._clip_gradients()
        self._scaler.step(self.optimizer)
        if self._scaler.is_enabled():
            self._scaler.update(self._static_scale)
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, of the loss scale and of gradients not yet used."""
        state: dict[str, Any] = self.optimizer.state_dict()
        if self._scaler.is_enabled():
            state["loss_scaler"] = self._scaler.state_dict()
        if not self._due(self._count):
            state["pending_gradients"] = [p.grad for p in self._parameters]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        state = dict(state)
        scaler, gradients = state.pop("loss_scaler", None), state.pop("pending_gradients", None)
        self.optimizer.load_state_dict(state)
        if scaler is not None and self._scaler.is_enabled():
            self._scaler.load_state_dict(scaler)
        if gradients is not None:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def _due(self, count: int) -> bool:
        return count % self.accumulate == 0 or count == self._total

    def _divisor(self) -> int:
        """Return over how many iterations the gradients of this one are averaged."""
        left_over = self._total % self.accumulate
        is_last = left_over > 0 and self._count >= self._total - left_over
        return left_over if is_last else self.accumulate

    def _clip_gradients(self) -> Tensor | None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            return None
        norm_type = float(self._clip.get("norm_type", 2.0))
        norm = torch.nn.utils.get_total_norm(gradients, norm_type)
        if "max_norm" in self._clip:
            max_norm = float(self._clip["max_norm"])
            torch.nn.utils.clip_grads_with_norm_(self._parameters, max_norm, norm)
        elif "clip_value" in self._clip:
            torch.nn.utils.clip_grad_value_(self._parameters, float(self._clip["clip_value"]))
        return norm.detach()


def build_optim_wrapper(
    model: nn.Module, config: Mapping[str, Any], device: torch.device
) -> OptimWrapper:
    """Build ``optim_wrapper`` of a config.

    Args:
        model: The model, on ``device``.
        config: ``type`` is ``OptimWrapper`` (the default) or ``AmpOptimWrapper``; ``optimizer``,
            ``paramwise_cfg``, ``clip_grad``, ``accumulative_counts``, ``dtype``, ``loss_scale``.
        device: The device to train on.

    Raises:
        ConfigError: Unknown keys or types, or values that make no sense.
    """
    if not isinstance(config, Mapping) or "optimizer" not in config:
        raise ConfigError(
            f"optim_wrapper must be a dict with an 'optimizer', got {config!r:.120}; "
            "several optimizers are not supported"
        )
    options = dict(config)
    kind = str(options.pop("type", "OptimWrapper")).split(".")[-1]
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise ConfigError(f"unknown optim_wrapper '{kind}'; use OptimWrapper or AmpOptimWrapper")
    constructor = options.pop("constructor", "DefaultOptimWrapperConstructor")
    if constructor != "DefaultOptimWrapperConstructor":
        raise ConfigError(f"optim_wrapper.constructor '{constructor}' is not supported")
    optimizer, paramwise = options.pop("optimizer"), options.pop("paramwise_cfg", None)
    allowed = {"accumulative_counts", "clip_grad"}
    if kind == "AmpOptimWrapper":
        allowed |= {"dtype", "loss_scale"}
        options["dtype"] = amp_dtype(options.get("dtype"), device)
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigError(
            f"{kind} has no option '{unknown[0]}'; it takes {', '.join(sorted(allowed))}"
        )
    return OptimWrapper(build_optimizer(model, optimizer, paramwise), device, **options)


def amp_dtype(name: object, device: torch.device) -> torch.dtype:
    """Return the autocast type of a config's ``dtype``; by default what suits the device."""
    if name is None:
        return torch.bfloat16 if device.type == "cpu" else torch.float16
    if name not in _DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; use one of {', '.join(_DTYPES)}")
    return _DTYPES[str(name)]


def _clip_arguments(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if not config:
        return {}
    arguments = dict(config)
    kind = arguments.pop("type", "norm")
    names = {"norm": ("max_norm", "norm_type"), "value": ("clip_value",)}
    if kind not in names:
        raise ConfigError(f"clip_grad.type must be 'norm' or 'value', got {kind!r}")
    if names[kind][0] not in arguments or not set(arguments) <= set(names[kind]):
        raise ConfigError(
            f"clip_grad of type '{kind}' takes {' and '.join(names[kind])}, got {arguments!r:.80}"
        )
    if not all(_is_positive(value) for value in arguments.values()):
        raise ConfigError(f"clip_grad must hold positive numbers, got {arguments!r:.80}")
    return arguments


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0 and not math.isnan(value)


def _build_scaler(
    device: torch.device, dtype: torch.dtype, loss_scale: float | str | Mapping[str, Any]
) -> GradScaler:
    enabled = dtype == torch.float16
    if isinstance(loss_scale, Mapping):
        return GradScaler(device.type, enabled=enabled, **loss_scale)
    if isinstance(loss_scale, (int, float)) and not isinstance(loss_scale, bool):
        return GradScaler(device.type, init_scale=float(loss_scale), enabled=enabled)
    if loss_scale != "dynamic":
        raise ConfigError(
            f"optim_wrapper.loss_scale must be 'dynamic', a number or a dict, got {loss_scale!r}"
        )
    return GradScaler(device.type, enabled=enabled)
