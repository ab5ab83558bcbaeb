"""What a conversion is asked for in precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.errors import UsageError
from deploykit.exporters.precision.quantization import CALIBRATIONS, Calibration
from deploykit.exporters.precision.selection import KeepFloat32

PRECISIONS = ("fp32", "fp16", "int8")
# What a low precision may cost in mAP before the conversion counts as failed.
LARGEST_MAP_DROP = {"fp16": 0.002, "int8": 0.01}


@dataclass(frozen=True)
class PrecisionOptions:
    """How the graph of a detector is rewritten for a lower precision.

    Args:
        precision: ``"fp32"`` leaves it alone; ``"fp16"`` lets the network compute in float16;
            ``"int8"`` quantises the convolutions and matrix products of backbone and neck.
        keep: What stays in float32 besides.
        calibration: How int8 ranges follow from the values seen.
        images: Files and folders to measure ranges on; by default the training images of the
            config that exist on disk, else its validation images, else (fp16 only) drawn ones.
        max_images: At most so many of them are used.
        max_map_drop: Largest loss of mAP on the config's validation set, when it is on disk; by
            default 0.002 for fp16 and 0.01 for int8.
    """

    precision: str = "fp32"
    keep: KeepFloat32 = field(default_factory=KeepFloat32)
    calibration: Calibration = "percentile"
    images: Sequence[str | Path] = ()
    max_images: int = 64
    max_map_drop: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision '{self.precision}', expected one of: {', '.join(PRECISIONS)}"
            )
        if self.calibration not in CALIBRATIONS:
            raise UsageError(
                f"unknown calibration '{self.calibration}', expected one of: "
                f"{', '.join(CALIBRATIONS)}"
            )
        if self.max_images < 1:
            raise UsageError(f"at least one calibration image is needed, got {self.max_images}")

    @property
    def map_drop_limit(self) -> float:
        """The largest loss of mAP that passes."""
        if self.max_map_drop is not None:
            return self.max_map_drop
        return LARGEST_MAP_DROP.get(self.precision, 0.0)
