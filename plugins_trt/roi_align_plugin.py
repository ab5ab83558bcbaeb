"""Multi-level RoIAlign as TensorRT plugins, one per number of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.plugins_trt.kernel import Kernel, Launch
from deploykit.plugins_trt.plugin import Plugin, TensorInfo
from deploykit.plugins_trt.roi_align_kernels import (
    CHANNEL_CHOICES,
    MOST_LEVELS,
    RoIAlignParameters,
    roi_align_kernel,
    roi_align_launch,
)


def plugin_name(levels: int) -> str:
    """Return the name of the plugin for a number of levels; a plugin's inputs are fixed."""
    return f"MultilevelRoIAlign{levels}"


class MultilevelRoIAlign(Plugin):
    """RoIAlign from a pyramid of so many levels.

    Tactics are indices into ``CHANNEL_CHOICES``, from 1: which is fastest depends on how many
    regions there are.
    """

    source = "multilevel_roi_align"
    attributes = (
        ("output_height", int),
        ("output_width", int),
        ("sampling_ratio", int),
        ("spatial_scales", npt.NDArray[np.float32]),
        ("finest_scale", int),
        ("aligned", int),
    )
    output_count = 1
    tactics = tuple(range(1, len(CHANNEL_CHOICES) + 1))

    def __init__(self, levels: int) -> None:
        self.name = plugin_name(levels)
        self.inputs = ("rois", *(f"feature_{level}" for level in range(levels)))

    def dtypes(self, inputs: Sequence[TensorInfo]) -> list[str]:
        """Regions are float32, features of one type."""
        return ["float32"] + [inputs[1].dtype] * (len(self.inputs) - 1)

    def describe(
        self, inputs: Sequence[TensorInfo], attributes: Mapping[str, Any], arithmetic: Any
    ) -> list[TensorInfo]:
        """Return the crops."""
        size = attributes["output_height"], attributes["output_width"]
        return [TensorInfo((inputs[0].shape[0], inputs[1].shape[1], *size), inputs[1].dtype)]

    def kernel(
        self,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        arithmetic: Any,
        tactic: int,
    ) -> tuple[Kernel, Launch]:
        """Return the kernel and its launch."""
        parameters = RoIAlignParameters(
            (attributes["output_height"], attributes["output_width"]),
            attributes["sampling_ratio"],
            tuple(float(scale) for scale in attributes["spatial_scales"]),
            attributes["finest_scale"],
            bool(attributes["aligned"]),
        )
        channels = CHANNEL_CHOICES[max(tactic, 1) - 1]
        features = [feature.shape for feature in inputs[1:]]
        launch = roi_align_launch(inputs[0].shape[0], features, channels, arithmetic)
        return roi_align_kernel(parameters, inputs[1].dtype, channels), launch


ROI_ALIGN_PLUGINS: tuple[Plugin, ...] = tuple(
    MultilevelRoIAlign(levels) for levels in range(1, MOST_LEVELS + 1)
)
