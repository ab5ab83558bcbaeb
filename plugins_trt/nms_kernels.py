"""The four kernels of batched NMS: constants, scratch tensors and launches.

sort -> gather -> mask -> scan; ``docs/plugins.md`` describes the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploykit.errors import UsageError
from deploykit.plugins_trt.kernel import (
    Kernel,
    Launch,
    Numbers,
    ShapeArithmetic,
    constants,
    float_type,
)

# As in the sources.
TILE = 2048
GATHER_THREADS = 256
MASK_COLUMNS = 256
WORD_BITS = 64
SCAN_THREADS = 512

# The matrix of a window this wide is 2 MiB per image; more is hardly ever looked at.
SMALLEST_WINDOW = 4096
LARGEST_WINDOW = 16384  # bounded by the scan's shared memory
_WINDOW_PER_RESULT = 8


def default_window(max_out: int) -> int:
    """Return how many of the best candidates get a row in the bit matrix.

    Args:
        max_out: Number of results per image.
    """
    wanted = -(-max_out * _WINDOW_PER_RESULT // MASK_COLUMNS) * MASK_COLUMNS
    return min(max(wanted, SMALLEST_WINDOW), LARGEST_WINDOW)


def check_window(window: int) -> None:
    """Check the size of a window.

    Raises:
        UsageError: It is no multiple of 256 from 256 to 16384.
    """
    if window % MASK_COLUMNS or not 0 < window <= LARGEST_WINDOW:
        raise UsageError(
            f"the window of batched NMS is {window}, expected a multiple of {MASK_COLUMNS} up to "
            f"{LARGEST_WINDOW}"
        )


def sort_kernel(score_dtype: str) -> Kernel:
    """Return the kernel that sorts tiles of candidates by score."""
    score = float_type(score_dtype, "scores")
    return Kernel(
        "nms_sort",
        constants({"SCORE": score}),
        inputs=("scores",),
        scalars=("candidates",),
        outputs=("keys", "tile_counts"),
    )


def gather_kernel(box_dtype: str) -> Kernel:
    """Return the kernel that merges the tiles and gathers boxes and labels in order."""
    return Kernel(
        "nms_gather",
        constants({"BOX": float_type(box_dtype, "boxes")}),
        inputs=("boxes", "labels", "keys", "tile_counts"),
        scalars=("candidates", "tiles", "span"),
        outputs=("order", "sorted_boxes", "sorted_labels", "counts"),
    )


def mask_kernel(iou_threshold: float) -> Kernel:
    """Return the kernel that compares the best candidates with each other."""
    return Kernel(
        "nms_mask",
        constants({"IOU_THRESHOLD": float(iou_threshold)}),
        inputs=("sorted_boxes", "sorted_labels", "counts"),
        scalars=("span",),
        outputs=("mask",),
    )


def scan_kernel(box_dtype: str, iou_threshold: float, max_out: int, window: int) -> Kernel:
    """Return the kernel that picks the survivors."""
    check_window(window)
    values: dict[str, int | float | str] = {
        "BOX": float_type(box_dtype, "boxes"),
        "IOU_THRESHOLD": float(iou_threshold),
        "MAX_OUT": max_out,
        "WINDOW": window,
    }
    return Kernel(
        "nms_scan",
        constants(values),
        inputs=("boxes", "labels", "order", "counts", "mask"),
        scalars=("candidates", "span"),
        outputs=("indices",),
    )


@dataclass(frozen=True)
class NmsSizes:
    """The sizes of scratch tensors and launches, as numbers or as TensorRT's expressions.

    Args:
        batch: Images.
        candidates: Per image.
        window: How many of the best candidates get a row in the bit matrix, at most.
        arithmetic: What to compute with.
    """

    batch: Any
    candidates: Any
    window: int
    arithmetic: ShapeArithmetic = Numbers

    @property
    def tiles(self) -> Any:
        """Tiles of candidates of an image."""
        return self.arithmetic.cdiv(self.candidates, TILE)

    @property
    def span(self) -> Any:
        """Rows of the bit matrix of an image."""
        rounded = self.arithmetic.cdiv(self.candidates, MASK_COLUMNS) * MASK_COLUMNS
        return self.arithmetic.min(rounded, self.window)

    @property
    def shapes(self) -> dict[str, tuple[Any, ...]]:
        """Shapes of the scratch tensors, by name. 64-bit values are pairs of int32."""
        batch, span = self.batch, self.span
        return {
            "keys": (batch, self.tiles * TILE, 2),
            "tile_counts": (batch, self.tiles),
            "order": (batch, self.candidates),
            "sorted_boxes": (batch, span, 4),
            "sorted_labels": (batch, span),
            "counts": (batch,),
            "mask": (batch, span, span // 32),
        }

    def sort_launch(self) -> Launch:
        """Return the launch of the sort kernel: a block per tile."""
        return Launch((self.tiles, self.batch, 1), TILE // 2, (self.candidates,))

    def gather_launch(self) -> Launch:
        """Return the launch of the gather kernel: a thread per place of a tile."""
        blocks = self.tiles * (TILE // GATHER_THREADS)
        scalars = (self.candidates, self.tiles, self.span)
        return Launch((blocks, self.batch, 1), GATHER_THREADS, scalars)

    def scan_launch(self) -> Launch:
        """Return the launch of the scan kernel: a block per image."""
        return Launch((self.batch, 1, 1), SCAN_THREADS, (self.candidates, self.span))


def mask_launch(batch: Any, span: Any) -> Launch:
    """Return the launch of the mask kernel: a block per 64 rows and 256 columns.

    Args:
        batch: Images.
        span: Rows of the bit matrix of an image.
    """
    grid = (span // MASK_COLUMNS, span // WORD_BITS, batch)
    return Launch(grid, MASK_COLUMNS, (span,))


# Element types of the scratch tensors and the result.
SCRATCH_DTYPES = {
    "keys": "int32",
    "tile_counts": "int32",
    "order": "int32",
    "sorted_boxes": "float32",
    "sorted_labels": "int32",
    "counts": "int32",
    "mask": "int32",
    "indices": "int32",
}
