"""The whole path: proposal network, proposal file, Fast R-CNN trained, tested and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import Detector
from deploykit.cli import main
from deploykit.exporters.onnx_exporter import ParityOptions, export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.proposals import read_proposals
from deploykit.training.checkpoint import write_checkpoint
from deploykit.training.config import load_config
from deploykit.training.data.drawn_dataset import write_drawn_dataset
from deploykit.training.engine.overrides import with_image_size
from deploykit.training.models import build_detector
from deploykit.training.recipes import find_config

CLASSES = ("circle", "square", "star")
SIZE = (96, 128)
PROPOSALS = 40


def small_config(recipe: str, data: Path):
    """A recipe for three classes, small images and a network of some thousand weights."""
    config = with_image_size(load_config(find_config(recipe)), SIZE)
    model = config["model"]
    model["backbone"] |= {"depth": 18, "base_channels": 4, "init_cfg": None, "frozen_stages": -1}
    model["neck"] |= {"in_channels": [4, 8, 16, 32], "out_channels": 8}
    if "rpn_head" in model:
        model["rpn_head"] |= {"in_channels": 8, "feat_channels": 8}
        model["test_cfg"]["rpn"] |= {"nms_pre": 60, "max_per_img": PROPOSALS}
    if "roi_head" in model:
        model["roi_head"]["bbox_roi_extractor"] |= {"out_channels": 8}
        head = {"in_channels": 8, "fc_out_channels": 32, "num_classes": len(CLASSES)}
        model["roi_head"]["bbox_head"] |= head
        model["test_cfg"]["rcnn"] |= {"max_per_img": 10, "score_thr": 0.0}
    for split, name in (("train", "train"), ("val", "val"), ("test", "val")):
        loader = config[f"{split}_dataloader"]
        loader |= {"num_workers": 0, "persistent_workers": False}
        loader["dataset"] |= {
            "data_root": f"{data}/",
            "ann_file": f"annotations/{name}.json",
            "data_prefix": {"img": f"{name}/"},
            "metainfo": {"classes": CLASSES},
        }
        if "proposal_file" in loader["dataset"]:
            loader["dataset"]["proposal_file"] = f"proposals/{name}.pkl"
            loader["dataset"]["pipeline"][1]["num_max_proposals"] = PROPOSALS
    for split in ("val", "test"):
        config[f"{split}_evaluator"]["ann_file"] = f"{data}/annotations/val.json"
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_drawn_dataset(folder, CLASSES, counts=(8, 4), size=SIZE)
    return folder


@pytest.fixture(scope="module")
def proposal_files(data: Path) -> dict[str, Path]:
    """What an untrained proposal network finds in the training and validation images."""
    torch.manual_seed(0)
    files = {}
    for split in ("train", "val"):
        config = small_config("rpn_r50_fpn_1x_coco", data)
        files[split] = data / "proposals" / f"{split}.pkl"
        config["test_dataloader"]["dataset"] |= {
            "ann_file": f"annotations/{split}.json",
            "data_prefix": {"img": f"{split}/"},
        }
        config["test_evaluator"]["ann_file"] = f"{data}/annotations/{split}.json"
        checkpoint = data / "rpn.pth"
        if split == "train":
            model = build_detector(config["model"])
            meta = {"cfg": config.dumps(), "dataset_meta": {"classes": ("object",)}}
            write_checkpoint(checkpoint, {"meta": meta, "state_dict": model.state_dict()})
        path = data / f"rpn_{split}.py"
        path.write_text(config.dumps())
        command = ["test", str(path), str(checkpoint), "--device", "cpu"]
        assert main([*command, "--dump-proposals", str(files[split])]) == 0
    return files


@pytest.fixture(scope="module")
def trained(data: Path, proposal_files: dict[str, Path]) -> Path:
    """The checkpoint of a Fast R-CNN after two epochs on those proposals."""
    config = small_config("fast-rcnn_r50_fpn_1x_coco", data)
    path = data / "fast.py"
    path.write_text(config.dumps())
    arguments = [
        "train",
        str(path),
        "--work-dir",
        str(data / "run"),
        "--epochs",
        "2",
        "--seed",
        "0",
    ]
    assert main([*arguments, "--device", "cpu"]) == 0
    return data / "run" / "last.pth"


def test_the_file_holds_proposals_of_every_image(
    data: Path, proposal_files: dict[str, Path]
) -> None:
    for split, count in (("train", 8), ("val", 4)):
        table = read_proposals(proposal_files[split])
        assert len(table) == count
        for number in range(count):
            rows = table.find(data / split / f"{number:05}.jpg")
            assert 5 < len(rows) <= PROPOSALS
            assert (np.diff(rows[:, 4]) <= 0).all()
            assert (rows[:, :4] >= 0).all() and (rows[:, 2] <= SIZE[1]).all()


def test_drawn_data_bring_proposals(data: Path, tmp_path: Path) -> None:
    config = small_config("fast-rcnn_r50_fpn_1x_coco", data)
    path = tmp_path / "fast.py"
    path.write_text(config.dumps())
    command = ["train", str(path), "--work-dir", str(tmp_path / "run"), "--epochs", "1"]
    assert main([*command, "--synthetic-data", "--device", "cpu"]) == 0
    assert (tmp_path / "run" / "last.pth").is_file()


@pytest.mark.slow
def test_training_and_testing_measure_the_same(data: Path, trained: Path) -> None:
    scalars = (data / "run").glob("*/scalars.jsonl")
    lines = [json.loads(line) for path in scalars for line in path.read_text().splitlines()]
    validated = [line for line in lines if line["kind"] == "val"][-1]
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    report = data / "metrics.json"
    command = ["test", str(trained), "--device", "cpu", "--classwise", "--json", str(report)]
    assert main(command) == 0
    metrics = json.loads(report.read_text())["metrics"]
    for name in ("coco/bbox_mAP", "coco/bbox_mAP_50"):
        assert metrics[name] == pytest.approx(validated[name], abs=1e-6)


@pytest.mark.slow
def test_exported_measured_and_compared(
    data: Path, trained: Path, proposal_files: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    exported = export_onnx(
        trained,
        data / "fast.onnx",
        shape=ShapeRequest.parse(dynamic="96x96:96x128:128x160", batch="1:2:3"),
        parity=ParityOptions([data / "val"]),
    )
    assert exported.spec.input.proposals == PROPOSALS
    assert exported.spec.input.names == ("images", "image_sizes", "proposals")
    runs = exported.parity.summary()["runs"]
    assert all(run["matched"] > 0 and run["unmatched"] == 0 for run in runs)

    images = sorted((data / "val").glob("*.jpg"))
    table = read_proposals(proposal_files["val"])
    given = [table.find(path) for path in images]
    with Detector(trained, device="cpu", score_threshold=0) as eager:
        expected = eager(images, proposals=given)
    with Detector(exported.path, score_threshold=0, batch_size=3) as detector:
        found = detector(images, proposals=given)
        other = detector(images, proposals=[[[0, 0, 20, 20]]] * len(images))
    for one, two, three in zip(expected, found, other, strict=True):
        assert len(one) == len(two) > 0
        np.testing.assert_allclose(one.boxes, two.boxes, atol=0.01)
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
        assert len(three) <= len(CLASSES)  # one proposal is one object of each class at most

    folder = str(data / "val")
    both = [str(trained), str(exported.path)]
    assert main(["parity", *both, "--images", folder, "--score", "0", "--device", "cpu"]) == 0
    benchmark = ["benchmark", str(exported.path), "--rounds", "1", "--min-time", "0"]
    assert main([*benchmark, "--device", "cpu"]) == 0
    assert "fast.onnx" in capsys.readouterr().out


@pytest.mark.slow
def test_export_of_one_size_without_sizes_of_images(data: Path, trained: Path) -> None:
    config = load_config(data / "fast.py")
    pad = {"type": "Pad", "size": (SIZE[1], SIZE[0]), "pad_val": 0}
    config["test_dataloader"]["dataset"]["pipeline"].insert(3, pad)
    exported = export_onnx(
        trained,
        data / "static.onnx",
        config=config,
        shape=ShapeRequest.parse(shape=f"{SIZE[0]}x{SIZE[1]}"),
        parity=ParityOptions(sorted((data / "val").glob("*.jpg"))[:2]),
    )
    assert exported.spec.input.names == ("images", "proposals")
    assert exported.spec.input.is_static
    (run,) = exported.parity.summary()["runs"]
    assert run["matched"] > 0 and run["unmatched"] == 0
