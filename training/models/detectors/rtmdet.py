"""RTMDet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS


@MODELS.register()
class RTMDet(SingleStageDetector):
    """RTMDet, a real-time one-stage detector.

    Source: Lyu et al., "RTMDet: An Empirical Study of Designing Real-Time Object Detectors",
    arXiv:2212.07784.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck.
        bbox_head: Config of the head.
        train_cfg: Handed to the head.
        test_cfg: Handed to the head.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Config of the initialisation of the whole.
        use_syncbn: Accepted for compatibility; ``norm_cfg`` decides, and ``SyncBN`` synchronises
            wherever a training is distributed.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any],
        bbox_head: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
        use_syncbn: bool = True,
    ) -> None:
        super().__init__(
            backbone, neck, bbox_head, train_cfg, test_cfg, data_preprocessor, init_cfg
        )
