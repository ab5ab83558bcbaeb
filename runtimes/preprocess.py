"""Host preprocessing: from BGR images to one padded uint8 RGB batch.

The resize and the padding are those of MMDetection's ``Resize`` and ``Pad`` transforms, bit by bit,
and the same for every backend, so that a difference between two results is the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError
from deploykit.image_io import BgrImage, as_bgr
from deploykit.spec import DimRange, InputSpec

Size = tuple[int, int]

_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True)
class Prepared:
    """A batch as the network takes it, and what is needed to map its detections back.

    A batch may hold more rows than images were given, when the artefact only takes larger batches;
    the rows past ``len(prepared)`` are padding.

    Args:
        images: uint8 [B, H, W, 3], RGB, padded at the bottom and right.
        image_sizes: int32 [B, 2], (height, width) of each image in the batch before padding.
        scale_factors: float64 [B, 2], (width, height) factors from original to resized image.
        original_sizes: (height, width) of each original image.
        proposals: float32 [B, P, 4], xyxy in pixels of the network input, for artefacts that take
            proposals; rows without area are empty.
    """

    images: npt.NDArray[np.uint8]
    image_sizes: npt.NDArray[np.int32]
    scale_factors: npt.NDArray[np.float64]
    original_sizes: tuple[Size, ...]
    proposals: npt.NDArray[np.float32] | None = None

    @property
    def inputs(self) -> tuple[npt.NDArray[Any], ...]:
        """The arguments of ``Backend.infer``."""
        if self.proposals is None:
            return self.images, self.image_sizes
        return self.images, self.image_sizes, self.proposals

    def __len__(self) -> int:
        return len(self.original_sizes)


class Preprocessor:
    """Resizes and pads images for one artefact.

    - An artefact with a static height and width gets exactly that size, and so does everyone with
      ``input_size``.
    - With ``pad_size`` in the spec every image is padded to it.
    - Otherwise the batch is as large as its largest resized image, rounded up to the divisor and
      at least the smallest size the artefact takes.

    An image that would not fit after the spec's resize is scaled to fit, its ratio kept.

    Args:
        spec: The input of the artefact.
        input_size: (height, width) that every image is fitted and padded to instead.

    Raises:
        UsageError: The artefact does not take ``input_size``.
    """

    def __init__(self, spec: InputSpec, input_size: Size | None = None) -> None:
        self.spec = spec
        self._limit = (spec.height.max, spec.width.max)
        self._fixed: Size | None = spec.pad_size
        self._fills = False
        if input_size is not None:
            self._fixed = check_input_size(spec, input_size)
            self._fills = spec.resize != "none"
        elif spec.height.is_static and spec.width.is_static:
            self._fixed = self._limit
            self._fills = spec.pad_size is not None and spec.pad_size != self._fixed
        if self._fixed is not None:
            self._limit = self._fixed

    def __call__(self, images: Sequence[BgrImage]) -> Prepared:
        """Prepare images of any sizes as one batch.

        Args:
            images: uint8 [h, w, 3], BGR (grey and BGRA are converted); at most as many as the
                artefact's largest batch.

        Raises:
            UsageError: No image, or more than the artefact takes.
            MediaError: An array that is no such image.
        """
        if not 1 <= len(images) <= self.spec.batch.max:
            raise UsageError(
                f"the model takes 1 to {self.spec.batch.max} images at once, got {len(images)}"
            )
        images = [as_bgr(image) for image in images]
        originals = [(image.shape[0], image.shape[1]) for image in images]
        sizes = [self.resized_size(size) for size in originals]
        height, width = self._canvas_size(sizes)
        rows = max(len(images), self.spec.batch.min)
        batch = np.empty((rows, height, width, 3), np.uint8)
        # Whole padded rows are copied as bytes: broadcasting a colour pixel by pixel is many times
        # slower and would cost more than the resize.
        padding = np.tile(np.array(self.spec.pad_value, np.uint8), width)
        for canvas, image, size in zip(batch, images, sizes, strict=False):
            self._place(canvas, image, size, padding)
        batch.reshape(rows, height, width * 3)[len(images) :] = padding
        filler = [(height, width)] * (rows - len(images))
        factors = np.ones((rows, 2))
        factors[: len(images)] = [
            (size[1] / original[1], size[0] / original[0])
            for size, original in zip(sizes, originals, strict=True)
        ]
        return Prepared(batch, np.array(sizes + filler, np.int32), factors, tuple(originals))

    def resized_size(self, original: Size) -> Size:
        """Return the (height, width) that an image of this (height, width) is resized to."""
        if not self._fills:
            size = self._natural_size(original)
            if size[0] <= self._limit[0] and size[1] <= self._limit[1]:
                return size
        if self.spec.resize == "stretch":
            return self._limit
        return fit_size(original, self._limit)

    def _natural_size(self, original: Size) -> Size:
        width, height = self.spec.scale
        if self.spec.resize == "stretch":
            return height, width
        if self.spec.resize == "none":
            return original
        return rescaled_size(original, self.spec.scale)

    def _canvas_size(self, sizes: Sequence[Size]) -> Size:
        if self._fixed is not None:
            return self._fixed
        divisor = self.spec.divisor
        height, width = (
            max(-(-max(sides) // divisor) * divisor, allowed.min)
            for sides, allowed in zip(
                zip(*sizes, strict=True), (self.spec.height, self.spec.width), strict=True
            )
        )
        return height, width

    def _place(
        self,
        canvas: npt.NDArray[np.uint8],
        image: BgrImage,
        size: Size,
        padding: npt.NDArray[np.uint8],
    ) -> None:
        """Write one image, resized and as RGB, into the top left of its canvas; pad the rest.

        Args:
            canvas: uint8 [H, W, 3], RGB.
            image: uint8 [h, w, 3], BGR.
            size: (height, width) to resize to.
            padding: uint8 [W * 3], one row of padding.
        """
        height, width = size
        target = canvas[:height, :width]
        if size == image.shape[:2]:
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=target)
        else:
            interpolation = _INTERPOLATIONS[self.spec.interpolation]
            cv2.resize(image, (width, height), dst=target, interpolation=interpolation)
            cv2.cvtColor(target, cv2.COLOR_BGR2RGB, dst=target)
        rows = canvas.reshape(canvas.shape[0], -1)
        rows[:height, width * 3 :] = padding[width * 3 :]
        rows[height:] = padding


def rescaled_size(original: Size, scale: Size) -> Size:
    """Return the size of an image after mmcv's ``Resize(scale, keep_ratio=True)``.

    Args:
        original: (height, width) in pixels.
        scale: Two numbers of which the larger bounds the long edge and the smaller the short one.

    Returns:
        (height, width), each rounded half up and at least 1.
    """
    height, width = original
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def fit_size(original: Size, box: Size) -> Size:
    """Return the largest (height, width) of the same ratio within the (height, width) ``box``."""
    height, width = original
    factor = min(box[0] / height, box[1] / width)
    fitted = (int(height * factor + 0.5), int(width * factor + 0.5))
    return max(1, min(fitted[0], box[0])), max(1, min(fitted[1], box[1]))


def check_input_size(spec: InputSpec, input_size: Size) -> Size:
    """Return ``input_size`` if the artefact takes it.

    Args:
        spec: The input of the artefact.
        input_size: (height, width) in pixels.

    Raises:
        UsageError: Out of range, or not a multiple of the divisor.
    """
    height, width = (int(side) for side in input_size)
    axes: tuple[tuple[str, int, DimRange], ...] = (
        ("height", height, spec.height),
        ("width", width, spec.width),
    )
    for axis, side, allowed in axes:
        if side not in allowed:
            takes = allowed.opt if allowed.is_static else f"{allowed.min} to {allowed.max}"
            raise UsageError(f"the model takes an input {axis} of {takes}, got {side}")
        if side % spec.divisor:
            below = side // spec.divisor * spec.divisor
            raise UsageError(
                f"the input {axis} must be a multiple of {spec.divisor}, got {side}; "
                f"try {max(below, allowed.min)} or {min(below + spec.divisor, allowed.max)}"
            )
    return height, width
