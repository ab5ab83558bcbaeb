"""How the weights of a checkpoint fit a model, by name and shape."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from deploykit.errors import CheckpointError

_SHOWN_GROUPS = 5  # in a message of one line
_COUNTER = "num_batches_tracked"  # of a batch norm: no weight, and old files lack it
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightFit:
    """What a checkpoint and a model have in common.

    Args:
        fitting: Number of tensors that have a name and shape of the model.
        missing: What the model has and the checkpoint lacks.
        unexpected: What the checkpoint has and the model lacks.
        mismatched: Names of both whose shapes differ, with the two shapes.
        missing_groups: ``missing`` with modules that are missing as a whole as one entry,
            ``"neck.* (8)"``.
        unexpected_groups: The same of ``unexpected``.
    """

    fitting: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    missing_groups: tuple[str, ...]
    unexpected_groups: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """Return the differences on one line, the first of each kind by name."""
        kinds = (
            (len(self.missing), "missing", self.missing_groups),
            (len(self.unexpected), "unexpected", self.unexpected_groups),
            (len(self.mismatched), "of another shape", self.mismatched),
        )
        return "; ".join(
            f"{count} {kind} ({', '.join(names[:_SHOWN_GROUPS])}"
            f"{', ...' * (len(names) > _SHOWN_GROUPS)})"
            for count, kind, names in kinds
            if count
        )


def weight_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> WeightFit:
    """Compare the weights of a checkpoint with those of a model.

    Counters of batch norms may be missing, and the flat buffers ``ema_...`` in which MMDetection
    2.x kept a second set of weights are left out of account.

    Args:
        model: The model.
        weights: Tensors by name.
    """
    expected = model.state_dict()
    weights = _without_averages(expected, weights)
    missing = [name for name in expected if name not in weights and not name.endswith(_COUNTER)]
    unexpected = [name for name in weights if name not in expected]
    mismatched = [
        f"{name} {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    return WeightFit(
        fitting=len(weights) - len(unexpected) - len(mismatched),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        missing_groups=tuple(_grouped(missing, expected)),
        unexpected_groups=tuple(_grouped(unexpected, weights)),
    )


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, allow_mismatch: bool = False
) -> WeightFit:
    """Load the weights of a checkpoint into a model.

    Args:
        model: The model.
        weights: Tensors by name.
        source: Where they came from, for messages.
        allow_mismatch: Load those that fit and log a warning of the others, which keep the values
            that the model was built with.

    Raises:
        CheckpointError: They are not those of the model; or none of them fits.
    """
    fit = weight_fit(model, weights)
    if not fit.exact:
        if not allow_mismatch:
            raise CheckpointError(
                f"{source} does not fit the model of the config: {fit.summary()}. Use the config "
                "that it was trained with; 'deploykit inspect FILE --fit CONFIG' lists everything"
            )
        if not fit.fitting:
            raise CheckpointError(f"{source}: none of its weights fits the model of the config")
        logger.warning("%s: %d weights loaded; %s", source, fit.fitting, fit.summary())
    expected = model.state_dict()
    model.load_state_dict(
        {
            name: value
            for name, value in weights.items()
            if name in expected and expected[name].shape == value.shape
        },
        strict=False,
    )
    return fit


def _without_averages(
    expected: Collection[str], weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    averages = {f"ema_{name.replace('.', '_')}" for name in expected}
    return {name: value for name, value in weights.items() if name not in averages}


def _grouped(chosen: Collection[str], every: Collection[str]) -> list[str]:
    """Return names, those of modules of which all are chosen as one entry each."""
    wanted = set(chosen)

    def walk(prefix: str, names: list[str]) -> list[str]:
        hits = sum(name in wanted for name in names)
        if not hits:
            return []
        if hits == len(names) > 1 and prefix:
            return [f"{prefix}* ({hits})"]
        children: dict[str, list[str]] = {}
        for name in names:
            children.setdefault(name[len(prefix) :].partition(".")[0], []).append(name)
        entries: list[str] = []
        for child, members in children.items():
            if members == [prefix + child]:
                entries += [name for name in members if name in wanted]
            else:
                entries += walk(f"{prefix}{child}.", members)
        return entries

    # Counters are not reported, so a module may be missing as a whole without them.
    return walk("", [name for name in every if not name.endswith(_COUNTER) or name in wanted])
