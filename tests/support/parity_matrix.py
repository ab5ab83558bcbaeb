"""Measure how full-size recipes agree between PyTorch and ONNX Runtime, and print it as a table.

    python tests/support/parity_matrix.py --detectors mask-rcnn retinanet --lowerings standard
        --out parity-r50.json

Every detector is exported in every lowering and compared on 24 crops of photographs, at the
smallest and at the largest batch size; rows of a batch are different images and are compared with
batch 1, too. Weights are those of ``detector_checkpoints.py``. Results are added to those in the
file ``--out``, and the table shows all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detector_checkpoints import load_recipe, write_detector_checkpoint, write_photographs
from remembered_backend import RememberedBackend

from deploykit.exporters.lowerings import LOWERINGS
from deploykit.exporters.onnx_exporter import ConversionParityError, ParityOptions, export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.parity import ParityReport, compare
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.pytorch_backend import PyTorchBackend

DETECTORS = (
    "faster-rcnn",
    "mask-rcnn",
    "cascade-rcnn",
    "cascade-mask-rcnn",
    "rpn",
    "retinanet",
)
COLUMNS = (
    "detector",
    "lowering",
    "shape",
    "batch",
    "matched",
    "unmatched",
    "explained",
    "box, px",
    "score",
    "mask",
    "pasted IoU",
    "against batch 1: box, px",
    "score",
    "verdict",
)
KEY = ("detector", "lowering", "shape", "batches", "batch")

Record = dict[str, Any]


def measure(
    arguments: argparse.Namespace, name: str, folder: Path, photos: list[Path]
) -> Iterator[Record]:
    """Yield the parity of one detector, lowering by lowering and batch size by batch size."""
    checkpoint = write_detector_checkpoint(
        folder / f"{name}.pth",
        load_recipe(arguments.recipe.format(name), arguments.size),
        arguments.size,
    )
    text = f"{arguments.size}x{arguments.size}"
    shape = ShapeRequest.parse(
        None if arguments.dynamic else text, arguments.dynamic, arguments.batch
    )
    reference = RememberedBackend(PyTorchBackend(checkpoint, device="cpu", num_threads=1))
    size = (arguments.size, arguments.size)
    for lowering in arguments.lowerings:
        key = {
            "detector": name,
            "lowering": lowering,
            "shape": arguments.dynamic or text,
            "batches": arguments.batch,
        }
        path = folder / f"{name}-{lowering}.onnx"
        try:
            # The images are compared below, all of them; here one proves that the file works.
            few = ParityOptions(photos[:1])
            export_onnx(checkpoint, path, shape=shape, lowering=lowering, parity=few)
        except ConversionParityError as error:
            yield key | {"batch": shape.batch.opt, "failed": list(error.parity.reasons)}
            continue
        with Detector(path, device="cpu", input_size=size, num_threads=1) as candidate:
            for batch in sorted({shape.batch.min, shape.batch.max}):
                report = compare(
                    Detector(None, backend=reference, input_size=size),
                    candidate,
                    photos,
                    batch_size=batch,
                )
                yield key | {"batch": batch} | outcome(report)


def outcome(report: ParityReport) -> Record:
    """Return the verdict and the numbers of a report."""
    return {
        "passed": report.passed,
        "reasons": list(report.reasons),
        "notes": list(report.notes),
        "overall": report.statistics(),
    }


def table_row(record: Record) -> list[str]:
    """Return the cells of a record."""
    cells = [str(record[name]) for name in ("detector", "lowering", "shape", "batch")]
    if "failed" in record:
        return [*cells, *[""] * (len(COLUMNS) - len(cells) - 1), "; ".join(record["failed"])]
    numbers = record["overall"]
    masks, iou = numbers["mask_probability_error_max"], numbers["pasted_mask_iou_min"]
    rows = numbers["batch_invariance"]
    cells += [str(numbers[name]) for name in ("matched", "unmatched", "explained")]
    cells += [f"{numbers['box_error_px']['max']:.1e}", f"{numbers['score_error']['max']:.1e}"]
    cells += ["" if masks is None else f"{masks:.1e}", "" if iou is None else f"{iou:.4f}"]
    cells += [
        "" if rows is None else f"{rows[name]:.1e}"
        for name in ("max_box_error_px", "max_score_error")
    ]
    return [*cells, "pass" if record["passed"] else "; ".join(record["reasons"])]


def table(records: list[Record]) -> str:
    """Return all records as a table in Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(table_row(record) for record in records)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def add(path: Path, record: Record) -> list[Record]:
    """Add a record to a file in place of an older one of the same; return all that are in it."""
    records = json.loads(path.read_text()) if path.exists() else []
    others = [one for one in records if any(one[name] != record[name] for name in KEY)]
    path.write_text(json.dumps([*others, record], indent=1) + "\n")
    return [*others, record]


def main() -> int:
    """Measure and print; return 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", nargs="+", default=DETECTORS, help="names of recipes")
    parser.add_argument(
        "--recipe", default="{}_r50_fpn_1x_coco", help="recipe of a detector ({}_r50_fpn_1x_coco)"
    )
    parser.add_argument("--lowerings", nargs="+", choices=LOWERINGS, default=["standard"])
    parser.add_argument("--size", type=int, default=320, help="side of the input, pixels (320)")
    parser.add_argument("--dynamic", metavar="HxW:HxW:HxW", help="sizes the files take")
    parser.add_argument("--batch", default="1:1:3", help="batch sizes the files take (1:1:3)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to add the results to")
    arguments = parser.parse_args()
    passed, records = True, []
    with TemporaryDirectory() as temporary:
        photos = sorted(write_photographs(Path(temporary) / "photos").iterdir())
        for name in arguments.detectors:
            for record in measure(arguments, name, Path(temporary), photos):
                records = add(arguments.out, record)
                passed &= record.get("passed", False)
                print(" | ".join(table_row(record)), file=sys.stderr, flush=True)
    print(table(records))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
