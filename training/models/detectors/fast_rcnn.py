"""Fast R-CNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor

from deploykit.errors import ConfigError, UsageError
from deploykit.training.models.detectors.base import BaseDetector
from deploykit.training.models.detectors.single_stage import box_limits
from deploykit.training.models.roi_heads.roi_sampling import Proposals
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Batch


@MODELS.register()
class FastRCNN(BaseDetector):
    """Fast R-CNN: the second stage of a detector, on proposals that come with the images.

    Source: Girshick, "Fast R-CNN", arXiv:1504.08083.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck, or ``None``.
        roi_head: Config of the head that classifies proposals.
        train_cfg: Its ``rcnn`` is handed to the head.
        test_cfg: Its ``rcnn`` is handed to the head.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Config of the initialisation of the whole.
    """

    takes_proposals: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Mapping[str, Any],
        roi_head: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        neck: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        configs = {
            "train_cfg": (train_cfg or {}).get("rcnn"),
            "test_cfg": (test_cfg or {}).get("rcnn"),
        }
        self.roi_head = MODELS.build({**roi_head, **configs})

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See ``BaseDetector.loss``; the batch must bring proposals.

        Raises:
            ConfigError: It brings none.
        """
        if batch.proposals is None:
            raise ConfigError(
                "Fast R-CNN trains on proposals, but the batch has none; give the data set a "
                "proposal_file and its pipeline dict(type='LoadProposals', num_max_proposals=2000)"
            )
        feats = self.extract_feat(self.data_preprocessor(batch.images, batch.image_sizes))
        proposals = Proposals.of_boxes(batch.proposals)
        limits = box_limits(batch.images, batch.image_sizes)
        losses = self.roi_head.loss(feats, proposals, batch.targets, limits)
        return cast(dict[str, Tensor], losses)

    def predict(
        self,
        images: Tensor,
        image_sizes: Tensor | None = None,
        proposals: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Classify and refine proposals; see ``BaseDetector.predict``.

        Args:
            images: uint8 [B, H, W, 3], RGB.
            image_sizes: int32 [B, 2] or ``None``.
            proposals: float32 [B, P, 4], xyxy in pixels of the network input; rows without area are
                empty.

        Raises:
            UsageError: There are no proposals.
        """
        if proposals is None:
            raise UsageError("Fast R-CNN needs proposals, float32 [B, P, 4], beside the images")
        feats = self.extract_feat(self.data_preprocessor(images, image_sizes))
        limits = box_limits(images, image_sizes)
        found = self.roi_head.predict(feats, Proposals.of_boxes(proposals), limits)
        return cast(tuple[Tensor, ...], found)
