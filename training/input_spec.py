"""From a config's test pipeline to the input spec that every runtime reproduces.

A pipeline that a spec cannot express is refused: a runtime that prepares images in another way
than training did loses accuracy without a sign. Semantics are those of MMDetection 3.x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from deploykit.errors import ConfigError
from deploykit.spec import DimRange, InputSpec

BATCH_RANGE = DimRange(1, 1, 64)
# Proposals per image where a config that needs them does not limit them; what an RPN gives.
DEFAULT_PROPOSALS = 1000
# Eager PyTorch takes any size; this bounds what a spec promises (pixels).
LARGEST_SIDE = 4096


Mode = Literal["keep_ratio", "stretch"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]


@dataclass(frozen=True)
class _Resize:
    mode: Mode
    scale: tuple[int, int]
    interpolation: Interpolation


def input_spec_from_config(config: Mapping[str, Any]) -> InputSpec:
    """Translate a config's test pipeline and data preprocessor into an input spec.

    The semantics are those of MMDetection 3.x and mmcv 2.x transforms: ``Resize`` with ``scale``
    (width, height), ``Pad`` with ``size`` (width, height) before normalisation, and the data
    preprocessor's padding after it.

    Raises:
        ConfigError: There is no test pipeline, or a spec cannot express it.
    """
    filename = config_filename(config)
    pipeline = inference_pipeline(config)
    resize: _Resize | None = None
    pad: Mapping[str, Any] | None = None
    for transform in pipeline:
        name = str(transform.get("type", "")).split(".")[-1]
        if name == "Resize" and resize is None and pad is None:
            resize = _read_resize(transform, filename)
        elif name == "Pad" and pad is None:
            pad = transform
        elif not name.startswith(("Load", "Pack")):
            raise ConfigError(
                f"the test pipeline's {name or 'transform without a type'} cannot be reproduced "
                "outside of training; a test pipeline is Load..., Resize, Pad, Pack... in that "
                "order, each at most once",
                filename,
            )
    if resize is None:
        raise ConfigError("the test pipeline has no Resize with a scale", filename)

    divisor = size_divisor(config)
    if pad is not None:
        divisor = math.lcm(divisor, int(pad.get("size_divisor") or 1))
    pad_size = _pad_size(pad, resize, divisor, filename)
    height, width = pad_size or (round_up(side, divisor) for side in resize.scale[::-1])
    largest = max(LARGEST_SIDE // divisor * divisor, height, width)
    fills_input = resize.mode == "stretch" and (height, width) == resize.scale[::-1]
    return InputSpec(
        batch=BATCH_RANGE,
        height=DimRange(divisor, height, largest),
        width=DimRange(divisor, width, largest),
        resize=resize.mode,
        scale=resize.scale,
        interpolation=resize.interpolation,
        pad_size=pad_size,
        pad_value=_pad_value(pad, filename),
        divisor=divisor,
        image_sizes_input=pad is None and not fills_input,
        proposals=_num_proposals(config, pipeline) if needs_proposals(config) else 0,
    )


def needs_proposals(config: Mapping[str, Any]) -> bool:
    """Return whether a model classifies proposals that it does not make itself."""
    model = model_config(config)
    return model.get("roi_head") is not None and model.get("rpn_head") is None


def _num_proposals(config: Mapping[str, Any], pipeline: list[Mapping[str, Any]]) -> int:
    """Return P, the limit of the pipeline's ``LoadProposals``."""
    limits = [
        transform.get("num_max_proposals")
        for transform in pipeline
        if str(transform.get("type", "")).split(".")[-1] == "LoadProposals"
    ]
    limit = next((limit for limit in limits if limit is not None), DEFAULT_PROPOSALS)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(
            f"LoadProposals.num_max_proposals must be a positive integer, got {limit!r}",
            config_filename(config),
        )
    return limit


def inference_pipeline(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the transforms that a config applies to test images, those of broadcasters in line.

    Taken from ``test_dataloader``, else from ``val_dataloader`` (through data set wrappers), else
    from the name ``test_pipeline``.

    Raises:
        ConfigError: There is none.
    """
    for name in ("test_dataloader", "val_dataloader"):
        pipeline = dataset_config(config, name).get("pipeline")
        if pipeline:
            return _flat(pipeline)
    pipeline = config.get("test_pipeline")
    if not pipeline:
        raise ConfigError(
            "no test pipeline: expected test_dataloader.dataset.pipeline, "
            "val_dataloader.dataset.pipeline or test_pipeline",
            config_filename(config),
        )
    return _flat(pipeline)


def _flat(pipeline: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    flat: list[Mapping[str, Any]] = []
    for transform in pipeline:
        broadcasts = str(transform.get("type", "")).split(".")[-1] == "ProposalBroadcaster"
        flat += _flat(transform.get("transforms") or ()) if broadcasts else [transform]
    return flat


def dataset_config(config: Mapping[str, Any], dataloader: str) -> Mapping[str, Any]:
    """Return the innermost data set of a data loader, or an empty dict when there is none.

    Args:
        config: The config.
        dataloader: ``"train_dataloader"``, ``"val_dataloader"`` or ``"test_dataloader"``.
    """
    dataset: Any = (config.get(dataloader) or {}).get("dataset") or {}
    while isinstance(dataset, Mapping) and not dataset.get("pipeline"):
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets") or ()), None)
        if not isinstance(inner, Mapping):
            break
        dataset = inner
    return dataset if isinstance(dataset, Mapping) else {}


def size_divisor(config: Mapping[str, Any]) -> int:
    """Return what the height and width of the network input must be multiples of.

    The data preprocessor's ``pad_size_divisor``, or the largest stride of the priors when it pads
    to none (feature pyramids that are merged need exact halvings).
    """
    model = model_config(config)
    divisor = int((model.get("data_preprocessor") or {}).get("pad_size_divisor") or 1)
    if divisor > 1:
        return divisor
    head = model.get("bbox_head") or model.get("rpn_head") or {}
    priors = head.get("anchor_generator") or head.get("prior_generator") or {}
    strides = priors.get("strides") or head.get("strides") or [32]
    return int(max(max(s) if isinstance(s, (list, tuple)) else s for s in strides))


def _read_resize(transform: Mapping[str, Any], filename: str | None) -> _Resize:
    scale = transform.get("scale")
    if isinstance(scale, int):
        scale = (scale, scale)
    if not (
        isinstance(scale, (list, tuple))
        and len(scale) == 2
        and all(isinstance(side, int) and side > 0 for side in scale)
    ):
        raise ConfigError(
            f"the test pipeline's Resize must have a scale of (width, height), got {scale!r}",
            filename,
        )
    backend = transform.get("backend", "cv2")
    interpolation = transform.get("interpolation", "bilinear")
    known = get_args(Interpolation)
    if backend != "cv2" or interpolation not in known:
        raise ConfigError(
            f"the test pipeline's Resize uses backend {backend!r} with interpolation "
            f"{interpolation!r}; expected backend 'cv2' with one of {', '.join(known)}",
            filename,
        )
    mode: Mode = "keep_ratio" if transform.get("keep_ratio", False) else "stretch"
    return _Resize(mode, (scale[0], scale[1]), interpolation)


def _pad_size(
    pad: Mapping[str, Any] | None, resize: _Resize, divisor: int, filename: str | None
) -> tuple[int, int] | None:
    """Return the fixed (height, width) that the pipeline pads to, if it does."""
    if pad is None:
        return None
    if pad.get("padding_mode", "constant") != "constant":
        raise ConfigError(
            f"the test pipeline's Pad has padding_mode {pad['padding_mode']!r}, expected "
            "'constant'",
            filename,
        )
    if pad.get("pad_to_square"):
        width, height = resize.scale
        if width != height:
            raise ConfigError(
                f"the test pipeline pads to a square after a Resize to {resize.scale}; a fixed "
                "input needs a square Resize scale",
                filename,
            )
        return round_up(height, divisor), round_up(width, divisor)
    size = pad.get("size")
    if size is None:
        return None
    width, height = (int(side) for side in size)
    if max(resize.scale) > max(width, height) or min(resize.scale) > min(width, height):
        raise ConfigError(
            f"the test pipeline resizes to {resize.scale} and then pads to only "
            f"{(width, height)} (width, height)",
            filename,
        )
    if width % divisor or height % divisor:
        raise ConfigError(
            f"the test pipeline pads to {width}x{height} (width x height), which the model's size "
            f"divisor {divisor} does not divide",
            filename,
        )
    return height, width


def _pad_value(pad: Mapping[str, Any] | None, filename: str | None) -> tuple[int, int, int]:
    """Return the padding colour in RGB; configs give it in the order of the image, BGR."""
    if pad is None:
        return (0, 0, 0)  # the model overwrites what lies outside of the image
    value = pad.get("pad_val", 0)
    if isinstance(value, Mapping):
        value = value.get("img", 0)
    channels = [value] * 3 if isinstance(value, (int, float)) else list(value)
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise ConfigError(
            f"the test pipeline's Pad must have a pad_val of one or three numbers in 0..255, got "
            f"{value!r}",
            filename,
        )
    blue, green, red = (round(channel) for channel in channels)
    return red, green, blue


def round_up(size: int, divisor: int) -> int:
    """Return the smallest multiple of ``divisor`` that is not below ``size``."""
    return -(-size // divisor) * divisor


def model_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the model of a config.

    Raises:
        ConfigError: There is none.
    """
    model = config.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        raise ConfigError(
            "the config has no model (model = dict(type=...))", config_filename(config)
        )
    return model


def config_filename(config: Mapping[str, Any]) -> str | None:
    """Return the file that a config was read from, if it was."""
    return getattr(config, "filename", None)
