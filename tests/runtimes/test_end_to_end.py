"""A real (very small, untrained) RTMDet behind the detector: as a checkpoint and exported."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit import Detections, Detector
from deploykit.cli import main
from deploykit.errors import BackendError, CheckpointError
from deploykit.exporters.onnx_exporter import export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.spec import DimRange
from deploykit.training.checkpoint import write_checkpoint
from deploykit.training.config import Config
from deploykit.training.model_spec import load_model, spec_from_config
from deploykit.training.models import build_detector

CONFIG = """
norm_cfg = dict(type="BN")
act_cfg = dict(type="SiLU", inplace=True)
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
        expand_ratio=0.5,
        deepen_factor=0.167,
        widen_factor=0.125,
        channel_attention=True,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    neck=dict(
        type="CSPNeXtPAFPN",
        in_channels=[32, 64, 128],
        out_channels=32,
        num_csp_blocks=1,
        expand_ratio=0.5,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    bbox_head=dict(
        type="RTMDetSepBNHead",
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        share_conv=True,
        pred_kernel_size=1,
        exp_on_reg=False,
        with_objectness=False,
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    test_cfg=dict(
        nms_pre=200,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.65),
        max_per_img=20,
    ),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="Pad", size=(96, 96), pad_val=dict(img=(114, 114, 114))),
    dict(type="PackDetInputs"),
]
"""
CLASSES = ("cell", "nucleus", "debris")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights are random, but large enough to find things of every class."""
    config = Config.from_text(CONFIG, filename="small_rtmdet.py")
    torch.manual_seed(0)
    model = build_detector(config["model"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rtm_cls." in name:
                parameter.normal_(0, 2) if name.endswith("weight") else parameter.zero_()
            if ".rtm_reg." in name and name.endswith("bias"):
                parameter.fill_(1.5)
    spec = spec_from_config(config, CLASSES, palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    path = tmp_path_factory.mktemp("model") / "small.pth"
    meta = {
        "cfg": config.dumps(),
        "dataset_meta": {"classes": CLASSES},
        "deploykit": spec.to_json(),
    }
    write_checkpoint(path, {"meta": meta, "state_dict": model.state_dict()})
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """The same model for batches of 1 to 4 and inputs of 64 to 128."""
    sides = DimRange(64, 96, 128)
    shape = ShapeRequest(height=sides, width=sides, batch=DimRange(1, 2, 4))
    return export_onnx(checkpoint, checkpoint.with_suffix(".onnx"), shape=shape).path


@pytest.fixture
def images() -> list[np.ndarray]:
    """Blurred noise, which excites the network more evenly than pixels do, in several sizes."""
    random = np.random.default_rng(0)
    shapes = [(96, 96), (70, 130), (140, 60), (96, 80), (33, 47)]
    return [
        cv2.resize(random.integers(0, 256, (9, 9, 3), np.uint8), (width, height))
        for height, width in shapes
    ]


def assert_alike(ours: Detections, theirs: Detections) -> None:
    assert len(ours) == len(theirs) > 0
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.05)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_a_checkpoint_gives_what_predict_gives(checkpoint: Path, images: list[np.ndarray]) -> None:
    detector = Detector(checkpoint, score_threshold=0.0)
    assert detector.class_names == CLASSES
    assert (detector.backend.name, detector.spec.architecture) == ("pytorch", "RTMDet")
    model = load_model(checkpoint).model
    for image in images:
        found = detector(image)
        height, width = image.shape[:2]
        factor = min(96 / height, 96 / width)
        resized = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
        canvas = np.full((96, 96, 3), 114, np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        rgb = np.ascontiguousarray(canvas[None, ..., ::-1])
        with torch.no_grad():
            boxes, scores, labels, count = model.predict(torch.from_numpy(rgb))
        kept = int(count[0])
        factors = [resized.shape[1] / width, resized.shape[0] / height] * 2
        assert len(found) == kept > 0
        np.testing.assert_allclose(found.boxes, boxes[0, :kept].numpy() / factors, rtol=1e-4)
        np.testing.assert_allclose(found.scores, scores[0, :kept].numpy(), rtol=1e-5)
        np.testing.assert_array_equal(found.labels, labels[0, :kept].numpy())


def test_rows_of_a_batch_equal_single_images(checkpoint: Path, images: list[np.ndarray]) -> None:
    detector = Detector(checkpoint, score_threshold=0.0)
    for image, found in zip(images, detector(images), strict=True):
        assert_alike(found, detector(image))


@pytest.mark.slow
def test_the_exported_model_finds_the_same(
    checkpoint: Path, exported: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    reference = Detector(checkpoint, score_threshold=0.0)
    detector = Detector(exported, score_threshold=0.0)
    assert detector.class_names == CLASSES
    assert detector.spec.palette == reference.spec.palette
    expected = [reference(image) for image in images]
    for found, theirs in zip(detector(images), expected, strict=True):
        assert_alike(found, theirs)
    for index, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"image{index}.png"), image)
    for found, theirs in zip(detector(tmp_path), expected, strict=True):
        assert_alike(found, theirs)
    for batch_size in (1, 3):
        stream = detector.stream(tmp_path, batch_size=batch_size)
        for (_, found), theirs in zip(stream, expected, strict=True):
            assert_alike(found, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("input_size", [(64, 128), (128, 96)])
def test_input_sizes(
    checkpoint: Path, exported: Path, images: list[np.ndarray], input_size: tuple[int, int]
) -> None:
    reference = Detector(checkpoint, score_threshold=0.0, input_size=input_size)
    detector = Detector(exported, score_threshold=0.0, input_size=input_size)
    for found, theirs in zip(detector(images), reference(images), strict=True):
        assert_alike(found, theirs)


@pytest.mark.slow
def test_the_command_with_both(
    checkpoint: Path, exported: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), images[0])
    results = []
    for model in (checkpoint, exported):
        out = tmp_path / model.suffix[1:]
        arguments = ["detect", str(model), str(tmp_path / "image.png"), "--out", str(out)]
        assert main([*arguments, "--save-json", "--score", "0"]) == 0
        assert (out / "image.png").exists()
        data = json.loads((out / "detections.json").read_text())
        results.append(
            Detections.from_dict(data["images"][0] | {"class_names": data["class_names"]})
        )
    assert_alike(*results)


@pytest.mark.slow
def test_detecting_with_an_export_imports_no_torch(exported: Path) -> None:
    code = (
        "import sys, numpy, deploykit\n"
        f"detector = deploykit.Detector({str(exported)!r}, score_threshold=0.0)\n"
        "assert len(detector(numpy.full((50, 60, 3), 99, numpy.uint8))) > 0\n"
        "print([name for name in ('torch', 'torchvision', 'onnx') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("content", ["half", b"", b"text"])
def test_damaged_checkpoints(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes | str
) -> None:
    data = checkpoint.read_bytes()
    path = tmp_path / "damaged.pth"
    path.write_bytes(data[: len(data) // 2] if content == "half" else content)
    with pytest.raises(CheckpointError, match=r"damaged\.pth"):
        Detector(path)
    assert main(["detect", str(path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_checkpoint(checkpoint: Path, images: list[np.ndarray]) -> None:
    with Detector(checkpoint) as detector:
        detector(images[0])
    with pytest.raises(BackendError, match="is closed"):
        detector(images[0])
