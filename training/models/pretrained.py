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

TORCHVISION, OPENMMLAB = "torchvision://", "open-mmlab://"
_THIRD_PARTY = "https://download.openmmlab.com/pretrain/third_party/"
# What OpenMMLab's names of backbones stand for.
OPENMMLAB_FILES: Mapping[str, str] = {
    "detectron/resnet50_caffe": "resnet50_caffe-788b5fa3.pth",
    "detectron/resnet101_caffe": "resnet101_caffe-3ad79236.pth",
    "detectron2/resnet50_caffe": "resnet50_msra-5891d200.pth",
    "detectron2/resnet101_caffe": "resnet101_msra-6cc46731.pth",
    "detectron2/resnext101_32x8d": "resnext101_32x8d-1516f1aa.pth",
    "resnext50_32x4d": "resnext50-32x4d-0ab1a123.pth",
    "resnext101_32x4d": "resnext101_32x4d-a5af3160.pth",
    "resnext101_64x4d": "resnext101_64x4d-ee2c6f71.pth",
    "resnet18_v1c": "resnet18_v1c-b5776b93.pth",
    "resnet50_v1c": "resnet50_v1c-2cccc1ad.pth",
    "resnet101_v1c": "resnet101_v1c-e67eebb6.pth",
}


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
        # Counters of batch norms are no weights, and old files lack them.
        missing=tuple(
            name for name in own if name not in weights and not name.endswith("num_batches_tracked")
        ),
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
        checkpoint: Path of a checkpoint, its http(s) address, ``torchvision://resnet50`` (the
            first ImageNet weights of that model; others as ``torchvision://resnet50.imagenet1k_v2``)
            or the name of an OpenMMLab backbone, such as ``open-mmlab://resnext101_32x4d``.
        prefix: Take only the weights whose names start so, and drop that part of the name.
        map_location: Accepted for compatibility; weights are copied to where the module is.
        name: What the module is, for messages.

    Returns:
        What was loaded, or ``None`` when nothing was.

    Raises:
        ConfigError: The path does not exist, or a name is unknown.
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
    address = _address(checkpoint, name)
    if "://" not in address:
        path = Path(os.path.expanduser(address))
        if not path.is_file():
            raise ConfigError(f"pretrained weights of the {name}: no file '{checkpoint}'")
        return path
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(address).path).name
    if cached.is_file():
        return cached
    source = checkpoint if address == checkpoint else f"{checkpoint} ({address})"
    warnings.warn(
        f"the pretrained weights of the {name} were NOT loaded: {source} is an address and "
        f"nothing is downloaded. Put the file at {cached}, or set init_cfg.checkpoint to a local "
        "file; until then the weights are random",
        PretrainedWeightsWarning,
        stacklevel=2,
    )
    return None


def _address(checkpoint: str, name: str) -> str:
    """Return the path or http(s) address that a checkpoint's name stands for."""
    if checkpoint.startswith(TORCHVISION):
        return _torchvision_address(checkpoint, name)
    for prefix in (OPENMMLAB, "openmmlab://"):
        if checkpoint.startswith(prefix):
            file = OPENMMLAB_FILES.get(checkpoint.removeprefix(prefix))
            if file is None:
                raise ConfigError(
                    f"pretrained weights of the {name}: unknown name '{checkpoint}', expected "
                    f"{OPENMMLAB} and one of {', '.join(OPENMMLAB_FILES)}, an address or a file"
                )
            return _THIRD_PARTY + file
    return checkpoint


def _torchvision_address(checkpoint: str, name: str) -> str:
    from torchvision.models import get_model_weights

    model, _, version = checkpoint.removeprefix(TORCHVISION).partition(".")
    try:
        weights = get_model_weights(model)
        # The names without a version are older than the second version.
        return str(weights[(version or "imagenet1k_v1").upper()].url)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"pretrained weights of the {name}: torchvision has no '{checkpoint}' ({error}); "
            "expected for example torchvision://resnet50"
        ) from None
