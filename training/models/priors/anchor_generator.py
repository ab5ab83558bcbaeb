"""Anchor boxes on feature grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.registry import TASK_UTILS


@TASK_UTILS.register()
class AnchorGenerator:
    """Boxes of several sizes and shapes around every cell of every feature map.

    A base size times each scale is the square root of an anchor's area; a ratio is its height over
    its width. Numbers and order are those of MMDetection.

    Args:
        strides: Stride of each level in pixels, an int or (width, height).
        ratios: Height over width.
        scales: Factors of the base size; or else ``octave_base_scale`` and ``scales_per_octave``.
        base_sizes: Base size of each level in pixels; the (smaller) stride by default.
        scale_major: Whether anchors of one cell are ordered by ratio first and then by scale, or
            the other way round (``False``).
        octave_base_scale: Smallest scale, with ``scales_per_octave`` scales up to (and without)
            its double.
        scales_per_octave: See ``octave_base_scale``.
        centers: Centre (x, y) of the anchors of the first cell of each level, in pixels.
        center_offset: The same as a fraction of the base size, 0 to 1.
        use_box_type: Accepted for compatibility; anchors are always tensors.

    Raises:
        ConfigError: The arguments contradict each other or are out of range.
    """

    def __init__(
        self,
        strides: Sequence[int | Sequence[int]],
        ratios: Sequence[float],
        scales: Sequence[float] | None = None,
        base_sizes: Sequence[float] | None = None,
        scale_major: bool = True,
        octave_base_scale: float | None = None,
        scales_per_octave: int | None = None,
        centers: Sequence[Sequence[float]] | None = None,
        center_offset: float = 0.0,
        use_box_type: bool = False,
    ) -> None:
        self.strides = tuple(_pair(stride) for stride in strides)
        self.base_sizes = tuple(
            [min(stride) for stride in self.strides] if base_sizes is None else base_sizes
        )
        self.ratios = torch.tensor(list(ratios), dtype=torch.float32, device="cpu")
        self.scales = _scales(scales, octave_base_scale, scales_per_octave)
        self.scale_major = scale_major
        if len(self.ratios) == 0 or min(ratios) <= 0:
            raise ConfigError(f"AnchorGenerator: ratios must be positive, got {list(ratios)}")
        for name, values in (("base_sizes", self.base_sizes), ("centers", centers)):
            if values is not None and len(values) != len(self.strides):
                raise ConfigError(
                    f"AnchorGenerator: {name} and strides must be as many as there are levels, got "
                    f"{len(values)} and {len(self.strides)}"
                )
        if not 0 <= center_offset <= 1 or (center_offset and centers is not None):
            raise ConfigError(
                "AnchorGenerator: center_offset must be from 0 to 1, and 0 when centers are given, "
                f"got {center_offset}"
            )
        self.base_anchors = [
            self._base_anchors(
                size,
                (center_offset * size, center_offset * size) if centers is None else centers[level],
            )
            for level, size in enumerate(self.base_sizes)
        ]

    @property
    def num_levels(self) -> int:
        """Number of feature levels."""
        return len(self.strides)

    @property
    def num_base_priors(self) -> list[int]:
        """Number of anchors per cell of each level."""
        return [len(anchors) for anchors in self.base_anchors]

    def level_priors(
        self, level: int, size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the anchors of one level.

        Args:
            level: Index of the level.
            size: (height, width) of its feature map.
            device: Where the anchors are made.

        Returns:
            float32 [height * width * A, 4], xyxy in pixels of the network input, row by row and the
            A anchors of a cell together.
        """
        height, width = size
        stride_x, stride_y = self.strides[level]
        x = torch.arange(width, device=device).float() * stride_x
        y = torch.arange(height, device=device).float() * stride_y
        x, y = x.expand(height, width), y[:, None].expand(height, width)
        shifts = torch.stack((x, y, x, y), dim=-1)[:, :, None]
        return (shifts + self.base_anchors[level].to(device)).reshape(-1, 4)

    def grid_priors(
        self, sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the anchors of all levels.

        Args:
            sizes: (height, width) of each feature map.
            device: Where the anchors are made.

        Returns:
            float32 [P, 4], xyxy in pixels, level by level.

        Raises:
            ConfigError: There are more or fewer feature maps than levels.
        """
        self._check_levels(sizes)
        return torch.cat(
            [self.level_priors(level, size, device) for level, size in enumerate(sizes)]
        )

    def valid_flags(self, sizes: Sequence[tuple[int, int]], image_sizes: Tensor) -> Tensor:
        """Tell which anchors stand on the image and not on what it was padded with for its batch.

        Args:
            sizes: (height, width) of each feature map.
            image_sizes: int [B, 2], (height, width) of the images in pixels.

        Returns:
            bool [B, P], in the order of ``grid_priors``.

        Raises:
            ConfigError: There are more or fewer feature maps than levels.
        """
        self._check_levels(sizes)
        device = image_sizes.device
        flags = []
        for stride, count, (height, width) in zip(
            self.strides, self.num_base_priors, sizes, strict=True
        ):
            stride_yx = torch.tensor(stride[::-1], device=device)
            cells = torch.div(image_sizes + stride_yx - 1, stride_yx, rounding_mode="floor")
            rows = torch.arange(height, device=device) < cells[:, :1]
            columns = torch.arange(width, device=device) < cells[:, 1:]
            grid = rows[:, :, None] & columns[:, None, :]
            flags.append(grid.flatten(1).repeat_interleave(count, dim=1))
        return torch.cat(flags, dim=1)

    def _check_levels(self, sizes: Sequence[tuple[int, int]]) -> None:
        if len(sizes) != self.num_levels:
            raise ConfigError(
                f"the anchor generator has {self.num_levels} strides, but the head gets "
                f"{len(sizes)} feature maps"
            )

    def _base_anchors(self, size: float, center: Sequence[float]) -> Tensor:
        """Return the anchors float32 [A, 4] of the cell at the origin."""
        tall = self.ratios.sqrt()
        wide = 1 / tall
        if self.scale_major:
            widths = (size * wide[:, None] * self.scales).flatten()
            heights = (size * tall[:, None] * self.scales).flatten()
        else:
            widths = (size * self.scales[:, None] * wide).flatten()
            heights = (size * self.scales[:, None] * tall).flatten()
        x, y = center
        return torch.stack(
            (x - 0.5 * widths, y - 0.5 * heights, x + 0.5 * widths, y + 0.5 * heights), dim=-1
        )


def _pair(stride: int | Sequence[int]) -> tuple[int, int]:
    values = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(values) != 2 or min(values) < 1:
        raise ConfigError(
            f"AnchorGenerator: a stride must be a positive integer or (width, height), got {stride}"
        )
    return int(values[0]), int(values[1])


def _scales(
    scales: Sequence[float] | None, octave_base: float | None, per_octave: int | None
) -> Tensor:
    if octave_base is not None and per_octave is not None and scales is None:
        scales = (octave_base * 2 ** (np.arange(per_octave) / per_octave)).tolist()
    elif octave_base is not None or per_octave is not None or scales is None:
        raise ConfigError(
            "AnchorGenerator: give either scales or octave_base_scale with scales_per_octave"
        )
    if len(scales) == 0 or min(scales) <= 0:
        raise ConfigError(f"AnchorGenerator: scales must be positive, got {list(scales)}")
    return torch.tensor(list(scales), dtype=torch.float32, device="cpu")
