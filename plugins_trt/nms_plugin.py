"""Batched NMS as four TensorRT plugins, one per kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.plugins_trt import nms_kernels
from deploykit.plugins_trt.kernel import Kernel, Launch
from deploykit.plugins_trt.nms_kernels import SCRATCH_DTYPES, NmsSizes
from deploykit.plugins_trt.plugin import Plugin, TensorInfo

# A window for sizes that do not depend on it.
_ANY = nms_kernels.SMALLEST_WINDOW


def _batch_and_count(tensor: TensorInfo) -> tuple[Any, Any]:
    batch, count = tensor.shape[:2]
    return batch, count


def _outputs(sizes: NmsSizes, *names: str) -> list[TensorInfo]:
    return [TensorInfo(sizes.shapes[name], SCRATCH_DTYPES[name]) for name in names]


class NmsSort(Plugin):
    """Sorts tiles of candidates by score."""

    name = "NmsSort"
    source = "nms_sort"
    inputs = ("scores",)
    output_count = 2

    def describe(
        self, inputs: Sequence[TensorInfo], attributes: Mapping[str, Any], arithmetic: Any
    ) -> list[TensorInfo]:
        """Return keys and counts of the tiles."""
        sizes = NmsSizes(*_batch_and_count(inputs[0]), _ANY, arithmetic)
        return _outputs(sizes, "keys", "tile_counts")

    def kernel(
        self,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        arithmetic: Any,
        tactic: int,
    ) -> tuple[Kernel, Launch]:
        """Return the kernel and its launch."""
        sizes = NmsSizes(*_batch_and_count(inputs[0]), _ANY, arithmetic)
        return nms_kernels.sort_kernel(inputs[0].dtype), sizes.sort_launch()


class NmsGather(Plugin):
    """Merges the sorted tiles and gathers boxes and labels in order."""

    name = "NmsGather"
    source = "nms_gather"
    inputs = ("boxes", "labels", "keys", "tile_counts")
    attributes = (("window", int),)
    output_count = 4

    def describe(
        self, inputs: Sequence[TensorInfo], attributes: Mapping[str, Any], arithmetic: Any
    ) -> list[TensorInfo]:
        """Return the order, the best boxes and labels in order, and the number of candidates."""
        sizes = NmsSizes(*_batch_and_count(inputs[0]), attributes["window"], arithmetic)
        return _outputs(sizes, "order", "sorted_boxes", "sorted_labels", "counts")

    def kernel(
        self,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        arithmetic: Any,
        tactic: int,
    ) -> tuple[Kernel, Launch]:
        """Return the kernel and its launch."""
        sizes = NmsSizes(*_batch_and_count(inputs[0]), attributes["window"], arithmetic)
        return nms_kernels.gather_kernel(inputs[0].dtype), sizes.gather_launch()


class NmsMask(Plugin):
    """Compares the best candidates with each other."""

    name = "NmsMask"
    source = "nms_mask"
    inputs = ("sorted_boxes", "sorted_labels", "counts")
    attributes = (("iou_threshold", float),)
    output_count = 1

    def describe(
        self, inputs: Sequence[TensorInfo], attributes: Mapping[str, Any], arithmetic: Any
    ) -> list[TensorInfo]:
        """Return the bit matrix."""
        batch, span = inputs[0].shape[:2]
        return [TensorInfo((batch, span, span // 32), SCRATCH_DTYPES["mask"])]

    def kernel(
        self,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        arithmetic: Any,
        tactic: int,
    ) -> tuple[Kernel, Launch]:
        """Return the kernel and its launch."""
        launch = nms_kernels.mask_launch(*inputs[0].shape[:2])
        return nms_kernels.mask_kernel(attributes["iou_threshold"]), launch


class NmsScan(Plugin):
    """Picks the survivors."""

    name = "NmsScan"
    source = "nms_scan"
    inputs = ("boxes", "labels", "order", "counts", "mask")
    attributes = (("iou_threshold", float), ("max_out", int), ("window", int))
    output_count = 1

    def describe(
        self, inputs: Sequence[TensorInfo], attributes: Mapping[str, Any], arithmetic: Any
    ) -> list[TensorInfo]:
        """Return the indices of the survivors."""
        return [TensorInfo((inputs[0].shape[0], attributes["max_out"]), SCRATCH_DTYPES["indices"])]

    def kernel(
        self,
        inputs: Sequence[TensorInfo],
        attributes: Mapping[str, Any],
        arithmetic: Any,
        tactic: int,
    ) -> tuple[Kernel, Launch]:
        """Return the kernel and its launch."""
        sizes = NmsSizes(*_batch_and_count(inputs[0]), attributes["window"], arithmetic)
        kernel = nms_kernels.scan_kernel(
            inputs[0].dtype,
            attributes["iou_threshold"],
            attributes["max_out"],
            attributes["window"],
        )
        return kernel, sizes.scan_launch()


NMS_PLUGINS: tuple[Plugin, ...] = (NmsSort(), NmsGather(), NmsMask(), NmsScan())
