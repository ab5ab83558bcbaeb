"""As many candidates per feature level as engines without ONNX's NonMaxSuppression can sort."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from deploykit.exporters.lowerings.primitive_nms import LARGEST_TOPK
from deploykit.exporters.lowerings.rewriting import Limits
from deploykit.training.models.heads.dense_detections import DenseTestConfig


@contextmanager
def limited_candidates(detector: nn.Module, lowering: str) -> Iterator[Limits]:
    """Lower ``nms_pre`` of dense heads, inside the context, to what TensorRT's TopK takes.

    The ``standard`` lowering is left alone. For the others nothing is lost by it: suppression in
    plain ONNX looks at no more candidates of all levels together.

    Args:
        detector: The detector; the same again after the context.
        lowering: Name of the lowering.

    Yields:
        The ``nms_pre`` of the heads that had a larger one, or nothing if none had.
    """
    originals = {} if lowering == "standard" else _heads_with_more(detector)
    for head, config in originals.items():
        head.test_config = replace(config, nms_pre=LARGEST_TOPK)
    try:
        yield {"nms_pre": LARGEST_TOPK} if originals else {}
    finally:
        for head, config in originals.items():
            head.test_config = config


def _heads_with_more(detector: nn.Module) -> dict[Any, DenseTestConfig]:
    heads: dict[Any, DenseTestConfig] = {}
    for module in detector.modules():
        config = getattr(module, "test_config", None)
        # Heads of regions have no priors, and take the regions as they come.
        if not isinstance(config, DenseTestConfig) or not hasattr(module, "prior_generator"):
            continue
        if config.nms_pre is None or config.nms_pre > LARGEST_TOPK:
            heads[module] = config
    return heads
