"""Checkpoints of small detectors that find something in any image.

``small_checkpoint`` is a real RTMDet; ``toy_checkpoint`` a detector of one convolution, for what
does not depend on the network: it exports in a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL_RTMDET = """
norm = dict(type="BN", eps=0.5)  # a network of few channels amplifies rounding errors otherwise
activation = dict(type="SiLU", inplace=True)
model = dict(
    type="RTMDet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[103.53, 116.28, 123.675],
        std=[57.375, 57.12, 58.395],
        bgr_to_rgb=False,
    ),
    backbone=dict(
        type="CSPNeXt",
        arch="P5",
        deepen_factor=0.167,
        widen_factor=0.0625,
        norm_cfg=norm,
        act_cfg=activation,
    ),
    neck=dict(
        type="CSPNeXtPAFPN",
        in_channels=[16, 32, 64],
        out_channels=16,
        num_csp_blocks=1,
        norm_cfg=norm,
        act_cfg=activation,
    ),
    bbox_head=dict(
        type="RTMDetSepBNHead",
        num_classes=3,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        with_objectness=False,
        norm_cfg=norm,
        act_cfg=activation,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.65),
        max_per_img=40,
    ),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="Pad", size=(128, 128), pad_val=dict(img=(114, 115, 116))),
    dict(type="PackDetInputs"),
]
val_dataloader = dict(
    dataset=dict(
        type="CocoDataset",
        data_root="no-such-folder/",
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        metainfo=dict(classes=("circle", "square", "star")),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
"""
TOY = """
model = dict(
    type="ToyDetector",
    num_classes=3,
    data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
    test_cfg=dict(
        nms_pre=100,
        score_thr=0.3,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=20,
    ),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 96), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_dataloader = dict(dataset=dict(type="CocoDataset", pipeline=test_pipeline))
"""
CLASSES = ("circle", "square", "star")
PALETTE = [(220, 20, 60), (119, 11, 32), (0, 0, 142)]


def small_rtmdet(text: str = SMALL_RTMDET, seed: int = 0) -> tuple[Any, Any]:
    """Return a config and a model whose scores are spread and whose boxes overlap."""
    import torch

    from deploykit.exporters.parity_images import draw_scene
    from deploykit.training.config import Config
    from deploykit.training.models import build_detector

    torch.manual_seed(seed)
    config = Config.from_text(text)
    model = build_detector(config["model"])
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    images = torch.stack([torch.from_numpy(draw_scene(number, (128, 128))) for number in range(4)])
    for norm in norms:  # statistics of these images, so that activations neither die nor explode
        norm.momentum = None
        norm.train()
    head = model.bbox_head
    with torch.no_grad():
        scores, distances = head(model.extract_feat(model.data_preprocessor(images)))
        for level, (score, distance) in enumerate(zip(scores, distances, strict=True)):
            stride = head.prior_generator.strides[level]
            head.rtm_cls[level].weight *= 8 / score.abs().amax()
            head.rtm_cls[level].bias.fill_(-2.0)
            head.rtm_reg[level].weight *= 0.7 / (distance.std() / stride)
            head.rtm_reg[level].bias.fill_(1.5)
    return config, model.eval()


@pytest.fixture(scope="session")
def toy_detector() -> type[Any]:
    """The class of the toy detector, registered as ``ToyDetector``."""
    import torch
    from torch import nn

    from deploykit.training.models.detectors.base import BaseDetector
    from deploykit.training.models.heads.dense_detections import (
        DenseTestConfig,
        gather_rows,
        suppress,
        top_candidates,
    )
    from deploykit.training.registry import MODELS

    class ToyDetector(BaseDetector):
        size_divisor = 32

        def __init__(self, num_classes: int, data_preprocessor: Any, test_cfg: Any) -> None:
            super().__init__(data_preprocessor)
            self.num_classes = num_classes
            self.test_config = DenseTestConfig.from_config(test_cfg)
            self.backbone = nn.Sequential(nn.Conv2d(3, num_classes + 4, 8, stride=8), nn.Tanh())
            nn.init.constant_(self.backbone[0].bias, -1)  # what is only padding is no object

        def loss(self, batch: Any) -> Any:
            raise AssertionError("this detector is not trained")

        def predict(self, images: Any, image_sizes: Any = None) -> Any:
            features = self.backbone(self.data_preprocessor(images, image_sizes) / 64)
            scores, distances = features.split([self.num_classes, 4], dim=1)
            best, labels, location = top_candidates(2 * scores, self.test_config.nms_pre)
            row = torch.arange(features.shape[2])[:, None] * torch.ones_like(features[0, 0])
            column = torch.arange(features.shape[3]) * torch.ones_like(features[0, 0])
            points = 8 * torch.stack((column, row), dim=-1).flatten(0, 1)[location]
            sides = gather_rows(distances.flatten(2).transpose(1, 2), location) * 16 + 16
            boxes = torch.cat((points - sides[..., :2], points + sides[..., 2:]), dim=-1)
            if image_sizes is not None:
                limits = image_sizes.flip(1).repeat(1, 2).float().unsqueeze(1)
                boxes = torch.minimum(boxes.clamp(min=0), limits)
            return suppress(boxes, best.sigmoid(), labels, self.test_config)

    MODELS.register()(ToyDetector)
    return ToyDetector


@pytest.fixture(scope="session")
def write_toy_checkpoint(toy_detector: type[Any]) -> Callable[..., Path]:
    """Return ``write(path, text=..., **changes)``, which writes a checkpoint of the toy detector.

    ``changes`` replace keys of the checkpoint.
    """
    import torch

    from deploykit.training.checkpoint import write_checkpoint
    from deploykit.training.config import Config
    from deploykit.training.models import build_detector

    def write(path: Path, text: str = TOY, **changes: Any) -> Path:
        torch.manual_seed(0)
        config = Config.from_text(text)
        weights = build_detector(config["model"]).state_dict()
        meta = {"cfg": config.dumps(), "dataset_meta": {"classes": CLASSES, "palette": PALETTE}}
        write_checkpoint(path, {"meta": meta, "state_dict": weights} | changes)
        return path

    return write


@pytest.fixture(scope="session")
def toy_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, write_toy_checkpoint: Callable[..., Path]
) -> Path:
    """A checkpoint of the toy detector for images of 96x160 and three classes. Do not change it."""
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint") / "toy.pth")


@pytest.fixture(scope="session")
def write_small_checkpoint() -> Callable[..., Path]:
    """Return ``write(path, text=..., meta=...)``, which writes a checkpoint of a small RTMDet."""
    from deploykit.training.checkpoint import write_checkpoint

    def write(path: Path, text: str = SMALL_RTMDET, meta: dict[str, Any] | None = None) -> Path:
        config, model = small_rtmdet(text)
        if meta is None:
            dataset_meta = {"classes": CLASSES, "palette": PALETTE}
            meta = {"cfg": config.dumps(), "dataset_meta": dataset_meta}
        write_checkpoint(path, {"meta": meta, "state_dict": model.state_dict()})
        return path

    return write


@pytest.fixture(scope="session")
def small_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, write_small_checkpoint: Callable[..., Path]
) -> Path:
    """A checkpoint of a small RTMDet for 128x128 images and three classes. Do not change it."""
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.pth")
