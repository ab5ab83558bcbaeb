"""Starting weights from a checkpoint of another training."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, ConfigError
from deploykit.training.checkpoint import read_checkpoint, weights_of

logger = logging.getLogger(__name__)


class PretrainedWeightsWarning(UserWarning):
    """A config names pretrained weights that were not loaded."""


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights into a module.

    Args:
        loaded: Names that were filled.
        missing: Names of the module that the weights lack.
        unexpected: Names among the weights that the module lacks.
        mismatched: Names with another shape on the two sides; not loaded.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_matching_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> LoadReport:
    """Copy the weights whose name and shape fit, and report the rest.

    Args:
        module: Module to fill.
        weights: Tensors by name.
    """
    own = module.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape
    }
    module.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in weights),
        unexpected=tuple(name for name in weights if name not in own),
        mismatched=tuple(name for name in weights if name in own and name not in fitting),
    )


def load_pretrained(
    module: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = "cpu",
    name: str = "model",
) -> LoadReport | None:
    """Fill a module from the file of a ``Pretrained`` init config.

    Nothing is downloaded: for an address the file is looked up in torch's download folder, and if
    it is not there a ``PretrainedWeightsWarning`` says what was not loaded.

    Args:
        module: Module to fill.
        checkpoint: Path of a checkpoint, or its http(s) address.
        prefix: Take only the weights whose names start so, and drop that part of the name.
        map_location: Accepted for compatibility; weights are copied to where the module is.
        name: What the module is, for messages.

    Returns:
        What was loaded, or ``None`` when nothing was.

    Raises:
        ConfigError: The path does not exist.
        CheckpointError: The file is damaged, or none of its weights fits the module.
    """
    path = _local_path(checkpoint, name)
    if path is None:
        return None
    weights = weights_of(read_checkpoint(path), str(path))
    if prefix:
        stem = prefix.rstrip(".") + "."
        weights = {
            key[len(stem) :]: value for key, value in weights.items() if key.startswith(stem)
        }
    report = load_matching_weights(module, weights)
    if not report.loaded:
        raise CheckpointError(
            f"{path} has no weights for the {name}"
            + (f" under the prefix '{prefix}'" if prefix else "")
            + "; check init_cfg (the file, and 'prefix')"
        )
    logger.info("%s: %d weights loaded from %s", name, len(report.loaded), path)
    for kind in ("missing", "unexpected", "mismatched"):
        names = getattr(report, kind)
        if names:
            logger.warning("%s: %d %s in %s: %s", name, len(names), kind, path, ", ".join(names))
    return report


def _local_path(checkpoint: str, name: str) -> Path | None:
    if "://" not in checkpoint:
        path = Path(os.path.expanduser(checkpoint))
        if not path.is_file():
            raise ConfigError(f"pretrained weights of the {name}: no file '{checkpoint}'")
        return path
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(checkpoint).path).name
    if cached.is_file():
        return cached
    warnings.warn(
        f"the pretrained weights of the {name} were NOT loaded: {checkpoint} is an address and "
        f"nothing is downloaded. Put the file at {cached}, or set init_cfg.checkpoint to a local "
        "file; until then the weights are random",
        PretrainedWeightsWarning,
        stacklevel=2,
    )
    return None
