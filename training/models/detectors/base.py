"""What every detector can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast, overload

from torch import Tensor, nn

from deploykit.training.models.data_preprocessor import DetDataPreprocessor
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS
from deploykit.training.structures import Batch


class BaseDetector(nn.Module, ABC):
    """A network from images to losses in training and to detections otherwise.

    ``predict`` is what ``torch.export`` exports: its shapes depend on the shape of the input alone,
    and no image of a batch influences another. Call it in eval mode and without gradients.

    Args:
        data_preprocessor: Config of the data preprocessor; the default passes BGR pixels on as
            they are.
        init_cfg: Config of the initialisation of the whole, usually pretrained weights.

    Attributes:
        takes_proposals: Whether ``predict`` has a third input ``proposals`` float32 [B, P, 4] (xyxy
            in pixels of the network input, rows without area are empty) and ``loss`` needs those of
            the batch.
    """

    takes_proposals: ClassVar[bool] = False
    # Subclasses build them; a detector of another make overrides what uses them.
    backbone: Any
    neck: Any

    def __init__(
        self, data_preprocessor: Mapping[str, Any] | None = None, init_cfg: InitConfig = None
    ) -> None:
        super().__init__()
        self.data_preprocessor: DetDataPreprocessor = MODELS.build(
            data_preprocessor or {}, type="DetDataPreprocessor"
        )
        self.init_cfg = init_cfg

    @property
    def size_divisor(self) -> int:
        """What height and width of the network input must be multiples of.

        The coarsest stride of the backbone, or the preprocessor's divisor if that is larger.
        """
        return int(max(*self.backbone.out_strides, self.data_preprocessor.pad_size_divisor))

    def extract_feat(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the features of normalised images [B, 3, H, W], one tensor per level."""
        feats = self.backbone(pixels)
        return cast(tuple[Tensor, ...], feats if self.neck is None else self.neck(feats))

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the training losses.

        Args:
            batch: Images and ground truth.

        Returns:
            Scalars; the sum of those with "loss" in their name is minimised.
        """

    @abstractmethod
    def predict(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: uint8 [B, H, W, 3], RGB; H and W are multiples of ``size_divisor``.
            image_sizes: int32 [B, 2], (height, width) of each image where it does not fill the
                batch: the rest counts as padding and boxes are clipped to the image. ``None`` where
                the test pipeline pads the images itself.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K]
            (descending), labels int32 [B, K] and the number of detections int32 [B]; where masks
            are predicted also their logits float32 [B, K, h, w], each in the frame of its box. Rows
            past that number are zero, with label -1.
        """

    @overload
    def forward(self, inputs: Batch) -> dict[str, Tensor]: ...

    @overload
    def forward(
        self, inputs: Tensor, image_sizes: Tensor | None = None, proposals: Tensor | None = None
    ) -> tuple[Tensor, ...]: ...

    def forward(
        self,
        inputs: Batch | Tensor,
        image_sizes: Tensor | None = None,
        proposals: Tensor | None = None,
    ) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Return the ``loss`` of a batch or ``predict`` on images."""
        if isinstance(inputs, Batch):
            return self.loss(inputs)
        others = [image_sizes] if proposals is None else [image_sizes, proposals]
        return self.predict(inputs, *others)

    def init_weights(self) -> None:
        """Initialise the weights: each part in its own way, then ``init_cfg`` of the whole."""
        for module in self.children():
            init = getattr(module, "init_weights", None)
            if init is not None:
                init()
        initialize(self, self.init_cfg, "detector")
