"""``deploykit detect``: annotated pictures, videos and result files from any artefact."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import MediaError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task
    from rich.text import Text

    from deploykit.proposals import ProposalTable
    from deploykit.runtimes.detection_run import DetectionRun
    from deploykit.runtimes.detector import Detector
    from deploykit.runtimes.file_inputs import FileInput

SUMMARY = """\
Find objects in images, folders, videos or a camera, and write annotated pictures and result files.

INPUT is an image, a video, a folder, a quoted glob pattern, the URL of a stream, or the index of a
camera (Ctrl-C ends a camera or stream). Files that cannot be read are reported by name and the run
goes on; the exit code is 2 only if nothing could be read. Input files are never overwritten."""

EXAMPLES = (
    "deploykit detect model.onnx street.jpg",
    "deploykit detect model.onnx images --out results --score 0.5 --save-json",
    "deploykit detect model.onnx 'images/*.png' --no-images --save-coco detections.json",
    "deploykit detect model.onnx clip.mp4 --batch-size 4 --hide-labels",
    "deploykit detect fast_rcnn.onnx images --proposals proposals.npz",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a .pth, .onnx or .engine file")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="what to detect in")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("detections"),
        metavar="DIR",
        help="folder to write (detections)",
    )
    parser.add_argument(
        "--score", type=float, metavar="S", help="lowest score shown; default: the model's own"
    )
    parser.add_argument("--classes", metavar="A,B", help="only these classes (names or indices)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the network")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images run at once")
    parser.add_argument(
        "--shape",
        metavar="HxW",
        help="network input, for models that take several sizes",
    )
    parser.add_argument(
        "--proposals",
        type=Path,
        metavar="FILE",
        help="region proposals of the images (.pkl, .npz, .json), for models that need them",
    )
    parser.add_argument(
        "--save-json", action="store_true", help="write DIR/detections.json as well"
    )
    parser.add_argument(
        "--save-coco", type=Path, metavar="FILE", help="write a COCO file with scores as well"
    )
    parser.add_argument(
        "--no-images", action="store_true", help="write no annotated pictures or videos"
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--show-labels",
        dest="labels",
        action="store_true",
        default=None,
        help="label every box, even where that hides the picture",
    )
    labels.add_argument(
        "--hide-labels", dest="labels", action="store_false", help="draw boxes alone"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; see the module's ``SUMMARY``."""
    _quiet_opencv()
    from rich.console import Console

    from deploykit.drawing import DrawStyle
    from deploykit.input_size import parse_input_size
    from deploykit.runtimes.detection_run import DetectionRun
    from deploykit.runtimes.detector import Detector
    from deploykit.runtimes.file_inputs import expand_inputs, plan_outputs, refuse_overwriting
    from deploykit.runtimes.result_files import DetectionLog

    console = Console(soft_wrap=True, highlight=False, markup=False)
    inputs, failures = expand_inputs(args.inputs)
    pictures: list[Path | None] = [None] * len(inputs)
    if not args.no_images:
        pictures[:] = plan_outputs(inputs, args.out)
    json_path = args.out / "detections.json" if args.save_json else None
    written = [path for path in (*pictures, json_path, args.save_coco) if path is not None]
    sources = [item.source for item in inputs if isinstance(item.source, Path)]
    refuse_overwriting(written, [*sources, Path(args.model)])

    with (
        Detector(
            args.model,
            device=args.device,
            score_threshold=args.score,
            input_size=None if args.shape is None else parse_input_size(args.shape),
            num_threads=args.threads,
            batch_size=args.batch_size,
        ) as detector,
        _progress_display(console) as progress,
    ):
        proposals = _read_proposals(args.proposals, detector)
        bar = progress.add_task("detecting", total=_total(inputs))
        log = DetectionLog(args.model, detector.class_names, bool(json_path or args.save_coco))
        detection = DetectionRun(
            detector,
            log,
            batch_size=args.batch_size or max(1, detector.spec.input.batch.min),
            classes=_parse_classes(args.classes, detector.class_names),
            proposals=proposals,
            style=DrawStyle(labels=args.labels),
            on_progress=lambda count: progress.advance(bar, count),
            on_failure=lambda failure: console.print(f"failed: {failure}"),
        )
        for failure in failures:
            detection.fail(failure)
        planned = list(zip(inputs, pictures, strict=True))
        detection.images([(item, path) for item, path in planned if not item.is_video])
        for item, path in planned:
            if item.is_video:
                detection.video(item, path)

    if json_path is not None:
        log.write_json(json_path)
    if args.save_coco is not None:
        log.write_coco(args.save_coco)
    _print_summary(console, detection, [path for path in written if path.exists()])
    return 0 if log.images + log.frames else 2


def _read_proposals(path: Path | None, detector: Detector) -> ProposalTable | None:
    """Return the proposals that the model needs.

    Raises:
        UsageError: It needs them and there is no file, or the other way round.
        DatasetError: The file cannot be used.
    """
    from deploykit.proposals import read_proposals

    architecture = detector.spec.architecture
    if detector.spec.input.proposals and path is None:
        raise UsageError(
            f"{architecture} needs region proposals: --proposals FILE; a region proposal network "
            f"writes one with: deploykit detect rpn.onnx INPUT --score 0 --save-coco FILE"
        )
    if path is not None and not detector.spec.input.proposals:
        raise UsageError(f"{architecture} finds its own regions; leave out --proposals")
    return None if path is None else read_proposals(path)


def _print_summary(console: Console, detection: DetectionRun, written: list[Path]) -> None:
    from rich.table import Table

    log = detection.log
    count = log.images + log.frames
    if log.detections:
        table = Table("class", title=f"{log.detections.total()} detections")
        table.add_column("detections", justify="right")
        table.add_column("images with it" if not log.frames else "frames with it", justify="right")
        for name, number in log.detections.most_common():
            table.add_row(name, str(number), str(log.images_with[name]))
        console.print(table)
    parts = [f"{log.images} image{'s' * (log.images > 1)}"] if log.images else []
    parts += [f"{log.frames} video frame{'s' * (log.frames > 1)}"] if log.frames else []
    parts += [f"{len(log.failures)} failed"] if log.failures else []
    console.print(", ".join(parts) or "nothing to detect in")
    if count:
        stages = {name: 1000 * spent / count for name, spent in detection.seconds.items()}
        total = sum(stages.values())
        split = " + ".join(f"{spent:.2f} {name}" for name, spent in stages.items())
        console.print(f"{total:.1f} ms per image ({split}), {1000 / total:.1f} FPS")
    folders = sorted({str(path.parent) for path in written})
    if folders:
        console.print(
            f"wrote {len(written)} file{'s' * (len(written) > 1)} to {', '.join(folders)}"
        )


def _progress_display(console: Console) -> Progress:
    """Return a progress display with frames per second and the time left."""
    from rich import progress
    from rich.text import Text

    class SpeedColumn(progress.ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} FPS")

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        SpeedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _total(inputs: Sequence[FileInput]) -> int | None:
    """Return the number of images and frames, or ``None`` when nobody knows."""
    from deploykit.runtimes.sources import VideoReader

    total = sum(not item.is_video for item in inputs)
    for item in inputs:
        if item.is_live:
            return None
        if item.is_video:
            try:
                with VideoReader(item.source) as reader:
                    count = reader.frame_count
            except MediaError:  # reported when its turn comes
                continue
            if count is None:
                return None
            total += count
    return total


def _parse_classes(text: str | None, class_names: Sequence[str]) -> list[int] | None:
    """Return the labels of a comma-separated list of class names or labels."""
    from deploykit.detection_formats import class_index

    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"--classes names no class. Known: {', '.join(class_names)}")
    return [
        class_index(int(w) if w.isdecimal() and w not in class_names else w, class_names)
        for w in words
    ]


def _quiet_opencv() -> None:
    """Silence what OpenCV and FFmpeg print about broken files: we report those ourselves.

    OpenCV reads these variables when it is first imported.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
