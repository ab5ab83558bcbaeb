"""``Hook``: code that runs at fixed points of training, at MMEngine's points and in its order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit.errors import ConfigError
from deploykit.training.registry import HOOKS

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer
    from deploykit.training.structures import Batch

PRIORITIES = {
    "HIGHEST": 0,
    "VERY_HIGH": 10,
    "HIGH": 30,
    "ABOVE_NORMAL": 40,
    "NORMAL": 50,
    "BELOW_NORMAL": 60,
    "LOW": 70,
    "VERY_LOW": 90,
    "LOWEST": 100,
}


class Hook:
    """Base class of hooks. Override the points you need.

    Hooks of lower priority number run first, those of equal priority in the order of the config.
    As in MMEngine, ``trainer.epoch`` and ``trainer.iter`` count what is finished, so within
    ``after_train_iter`` and ``after_train_epoch`` the current one is ``+ 1``.

    Register a hook and name it in ``custom_hooks`` of a config::

        from deploykit.training.engine import Hook
        from deploykit.training.registry import HOOKS

        @HOOKS.register()
        class PrintBatchSize(Hook):
            def before_train_iter(self, trainer, batch_idx, data_batch):
                trainer.logger.info("batch of %d", len(data_batch.images))
    """

    priority: int | str = "NORMAL"

    def before_run(self, trainer: Trainer) -> None:
        """Everything is built, nothing is loaded."""

    def after_load_checkpoint(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read and is about to be applied; it may be changed."""

    def before_train(self, trainer: Trainer) -> None:
        """Weights are loaded, training begins."""

    def before_train_epoch(self, trainer: Trainer) -> None:
        """An epoch begins (for iteration-based training the whole run is one)."""

    def before_train_iter(self, trainer: Trainer, batch_idx: int, data_batch: Batch) -> None:
        """A batch is there."""

    def after_train_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: dict[str, Any]
    ) -> None:
        """The weights have changed. ``outputs`` holds the loss terms and their sum ``loss``."""

    def after_train_epoch(self, trainer: Trainer) -> None:
        """All batches of an epoch are done."""

    def before_val(self, trainer: Trainer) -> None:
        """Validation begins."""

    def before_val_epoch(self, trainer: Trainer) -> None:
        """Validation begins (after every ``before_val``)."""

    def before_val_iter(self, trainer: Trainer, batch_idx: int, data_batch: Batch) -> None:
        """A validation batch is there."""

    def after_val_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: Any
    ) -> None:
        """``outputs`` holds the ``Detections`` of each image of the batch."""

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """The metrics are computed."""

    def after_val(self, trainer: Trainer) -> None:
        """Validation is over."""

    def before_save_checkpoint(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written; it may be changed."""

    def after_train(self, trainer: Trainer) -> None:
        """Training ended well."""

    def after_run(self, trainer: Trainer) -> None:
        """The last point."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a resume, as plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""


def build_hook(config: Mapping[str, Any] | Hook) -> Hook:
    """Build one entry of ``default_hooks`` or ``custom_hooks``.

    Args:
        config: A hook, or a dict with its ``type``, arguments and optionally a ``priority``.

    Raises:
        ConfigError: Unknown type, arguments that do not fit or an unknown priority.
    """
    if isinstance(config, Hook):
        return config
    arguments = dict(config) if isinstance(config, Mapping) else config
    priority = arguments.pop("priority", None) if isinstance(arguments, dict) else None
    hook = HOOKS.build(arguments)
    if not isinstance(hook, Hook):
        raise ConfigError(f"hook '{arguments['type']}' is not a subclass of Hook")
    if priority is not None:
        hook.priority = priority
    priority_number(hook)
    return hook


def priority_number(hook: Hook) -> int:
    """Return the priority of a hook as a number from 0 (first) to 100 (last)."""
    priority = hook.priority
    number = PRIORITIES.get(priority.upper()) if isinstance(priority, str) else priority
    if not isinstance(number, int) or not 0 <= number <= 100:
        raise ConfigError(
            f"the priority of {type(hook).__name__} must be 0..100 or one of "
            f"{', '.join(PRIORITIES)}, got {priority!r}"
        )
    return number
