"""Point priors on feature grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.registry import TASK_UTILS


@TASK_UTILS.register()
class MlvlPointGenerator:
    """One point per cell of every feature map.

    Args:
        strides: Stride of each level, an int or equal (w, h) pairs.
        offset: Place of the point within its cell, as a fraction of the stride.

    Raises:
        ConfigError: The strides are not positive or differ between the axes.
    """

    def __init__(self, strides: Sequence[int | Sequence[int]], offset: float = 0.5) -> None:
        self.strides = tuple(_square(stride) for stride in strides)
        self.offset = offset

    @property
    def num_levels(self) -> int:
        """Number of feature levels."""
        return len(self.strides)

    def level_points(
        self, level: int, size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the points of one level.

        Args:
            level: Index of the level.
            size: (height, width) of its feature map.
            device: Where the points are made.

        Returns:
            float32 [height * width, 2], (x, y) in pixels of the network input, row by row.
        """
        height, width = size
        stride = self.strides[level]
        x = (torch.arange(width, device=device, dtype=torch.float32) + self.offset) * stride
        y = (torch.arange(height, device=device, dtype=torch.float32) + self.offset) * stride
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        return grid.reshape(-1, 2)

    def grid_priors(
        self, sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the points of all levels with their strides.

        Args:
            sizes: (height, width) of each feature map.
            device: Where the priors are made.

        Returns:
            float32 [P, 3], (x, y, stride) in pixels, level by level.
        """
        levels = []
        for level, size in enumerate(sizes):
            points = self.level_points(level, size, device)
            stride = points.new_full((len(points), 1), float(self.strides[level]))
            levels.append(torch.cat((points, stride), dim=1))
        return torch.cat(levels)

    def valid_flags(self, sizes: Sequence[tuple[int, int]], image_sizes: Tensor) -> Tensor:
        """Tell which points lie on the image and not on what it was padded with for its batch.

        Args:
            sizes: (height, width) of each feature map.
            image_sizes: int [B, 2], (height, width) of the images in pixels.

        Returns:
            bool [B, P], in the order of ``grid_priors``.
        """
        flags = []
        for stride, (height, width) in zip(self.strides, sizes, strict=True):
            cells = torch.div(image_sizes + stride - 1, stride, rounding_mode="floor")
            rows = torch.arange(height, device=image_sizes.device) < cells[:, :1]
            columns = torch.arange(width, device=image_sizes.device) < cells[:, 1:]
            flags.append((rows[:, :, None] & columns[:, None, :]).flatten(1))
        return torch.cat(flags, dim=1)


def _square(stride: int | Sequence[int]) -> int:
    values = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(values) != 2 or values[0] != values[1] or values[0] < 1:
        raise ConfigError(f"a stride must be a positive integer or two equal ones, got {stride!r}")
    return int(values[0])
