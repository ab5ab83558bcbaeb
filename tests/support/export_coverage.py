"""Exports models of MMDetection's configs in every lowering, for the table of model coverage.

    python tests/support/export_coverage.py mmdet/.mim/configs docs/model-coverage.json \
        'retinanet/retinanet_r50_fpn_1x_coco.py' 'atss/*_1x_coco.py'

Weights are those of ``detector_checkpoints``, images its photographs. The results go to every
config of the record that has the same model and input; ``deploykit coverage`` keeps them as long as
that stays so.
"""

from __future__ import annotations

import argparse
import fnmatch
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from detector_checkpoints import load_recipe, write_detector_checkpoint, write_photographs

from deploykit.atomic_file import write_atomic
from deploykit.errors import DeploykitError
from deploykit.exporters.lowerings import LOWERINGS
from deploykit.exporters.onnx_exporter import ConversionParityError, ParityOptions, export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.parity import ParityTolerances
from deploykit.training.model_coverage import Coverage, read_record, record_text
from deploykit.training.model_coverage_table import coverage_page

# What a conversion with random weights may differ by, see docs/validation.md.
TOLERANCES = ParityTolerances(box=0.05, score=1e-4)
FEWEST_DETECTIONS = 5  # of all images together; fewer prove nothing


def try_lowerings(
    config_file: Path, size: int, images: list[Path], lowerings: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Export a model in several lowerings.

    Returns:
        From each lowering to ``"ok"`` or the error, and to the parity in words.
    """
    exported: dict[str, str] = {}
    parity: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pth"
        try:
            write_detector_checkpoint(checkpoint, load_recipe(str(config_file), size), size)
        except Exception as error:  # whatever a model does that is not finished
            reason = f"{type(error).__name__}: {error}"
            return dict.fromkeys(lowerings, " ".join(reason.split())[:120]), parity
        for lowering in lowerings:
            options = ParityOptions(images, TOLERANCES)
            shape = ShapeRequest.parse(f"{size}x{size}")
            output = Path(folder) / f"{lowering}.onnx"
            try:
                done = export_onnx(
                    checkpoint, output, shape=shape, lowering=lowering, parity=options
                )
            except ConversionParityError as error:
                exported[lowering] = "parity"
                reasons = "; ".join(error.parity.reasons).replace(f"{images[0].parent}/", "")
                parity[lowering] = f"FAIL {reasons[:120]}"
            except (DeploykitError, RuntimeError, ValueError) as error:
                exported[lowering] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            else:
                summary = done.parity.summary()
                matched = summary["runs"][0]["matched"]
                few = matched < FEWEST_DETECTIONS
                exported[lowering] = "too few detections" if few else "ok"
                parity[lowering] = (
                    f"{summary['max_box_error_px']:.0e} px, {summary['max_score_error']:.0e}, "
                    f"{matched} detections"
                )
                output.unlink()
    return exported, parity


def share(record: dict[str, Coverage], name: str, result: tuple[dict[str, str], ...]) -> int:
    """Give a result to all configs with the same model and input; return how many there are."""
    exported, parity = result
    same = [other for other, value in record.items() if value.model == record[name].model]
    for other in same:
        value = record[other]
        record[other] = replace(
            value, exported=value.exported | exported, parity=value.parity | parity
        )
    return len(same)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("patterns", nargs="+")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--lowerings", nargs="+", default=list(LOWERINGS))
    parser.add_argument("--images", type=int, default=4, help="photographs compared (4)")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = read_record(args.record)
    with tempfile.TemporaryDirectory() as folder:
        photographs = sorted(write_photographs(Path(folder) / "images").iterdir())
        images = photographs[:: max(1, len(photographs) // args.images)]
        for name in sorted(record):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in args.patterns):
                continue
            value = record[name]
            if not value.built or (not args.again and set(args.lowerings) <= set(value.exported)):
                continue
            start = time.perf_counter()
            result = try_lowerings(args.folder / name, args.size, images, args.lowerings)
            count = share(record, name, result)
            print(
                f"{name} (and {count - 1}): {result} {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            write_atomic(args.record, record_text(record))
            write_atomic(args.record.with_suffix(".md"), coverage_page(record))


if __name__ == "__main__":
    main()
