"""Region proposal network as a detector of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS


@MODELS.register()
class RPN(SingleStageDetector):
    """Region proposal network whose detections are proposals, all of class 0.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck, or ``None``.
        rpn_head: Config of the head.
        train_cfg: Its ``rpn`` is handed to the head.
        test_cfg: Its ``rpn`` is handed to the head.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Config of the initialisation of the whole.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any] | None,
        rpn_head: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(
            backbone,
            neck,
            {**rpn_head, "num_classes": 1},
            (train_cfg or {}).get("rpn"),
            (test_cfg or {}).get("rpn"),
            data_preprocessor,
            init_cfg,
        )
