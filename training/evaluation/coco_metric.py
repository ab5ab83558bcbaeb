"""``CocoMetric``: COCO's average precision and recall for boxes and masks."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.atomic_file import write_atomic
from deploykit.detections import Detections
from deploykit.errors import ConfigError, DatasetError
from deploykit.mask_rle import encode_mask
from deploykit.training.data.coco import CocoDataset, check_backend
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.evaluation.coco_scores import (
    PRECISION_ITEMS,
    UNDEFINED,
    ClassScores,
    ScoreTables,
)
from deploykit.training.evaluation.ground_truth import GroundTruth
from deploykit.training.evaluation.metric import Metric
from deploykit.training.evaluation.proposal_recall import average_recalls
from deploykit.training.registry import METRICS

logger = logging.getLogger(__name__)

KINDS = ("bbox", "segm", "proposal", "proposal_fast")
_CLASSLESS = {"proposal", "proposal_fast"}


@METRICS.register()
class CocoMetric(Metric):
    """COCO's average precision and recall with the arguments and names of MMDetection's.

    Measured by faster-coco-eval, whose numbers are those of pycocotools. Values are not rounded; -1
    means that there is no ground truth to measure on.

    Args:
        ann_file: The COCO json file; by default that of the data set. All its annotations of the
            classes count, restricted to the images of the data set.
        metric: ``"bbox"``, ``"segm"``, ``"proposal"`` (recall regardless of class),
            ``"proposal_fast"`` (the same by a simpler matching, crowds left out), or several.
        classwise: Whether ``compute`` also gives ``{class}_precision`` for each class.
        proposal_nums: Numbers of detections per image that recall is measured at; the largest is
            the most that count for precision.
        iou_thrs: IoU threshold(s); 0.50, 0.55, ... 0.95 by default.
        metric_items: The items to give (``mAP``, ``mAP_50``, ``AR@100``...); by default the six of
            precision, or for proposals those of recall.
        format_only: Whether to write result files without measuring.
        outfile_prefix: Write results to ``{outfile_prefix}.bbox.json`` (and ``.segm.json``).
        backend_args: Only local files are read.
        collect_device: Accepted for MMDetection's configs.
        prefix: What the names start with, before a slash.
        sort_categories: Accepted for MMDetection's configs.
        use_mp_eval: Accepted for MMDetection's configs.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = "bbox",
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        backend_args: Mapping[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = "coco",
        sort_categories: bool = False,
        use_mp_eval: bool = False,
    ) -> None:
        self.kinds = [metric] if isinstance(metric, str) else list(metric)
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(
                    f"CocoMetric: metric must be one or several of {', '.join(KINDS)}, got {kind!r}"
                )
        if format_only and outfile_prefix is None:
            raise ConfigError("CocoMetric: format_only=True needs outfile_prefix")
        check_backend(backend_args)
        self.ann_file = ann_file
        self.classwise = classwise
        self.proposal_nums = _counts(proposal_nums)
        self.iou_thresholds = _thresholds(iou_thrs)
        self.metric_items = None if metric_items is None else list(metric_items)
        self._check_items()
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.prefix = prefix
        self.class_scores: dict[str, list[ClassScores]] = {}
        self._truth: GroundTruth | None = None
        self._results: dict[int | str, list[dict[str, Any]]] = {}

    def bind(self, dataset: DetectionDataset) -> None:
        """Take classes, images and, without an ``ann_file``, ground truth from a data set."""
        path = self.ann_file
        if path is None and isinstance(dataset, CocoDataset):
            path = dataset.ann_file
        if path is None:
            self._truth = GroundTruth.from_dataset(dataset)
        else:
            image_ids = [dataset.record(index).image_id for index in range(len(dataset))]
            self._truth = GroundTruth.from_file(
                path, dataset.classes, image_ids, needs_annotations=not self.format_only
            )
        if self.ann_file is not None:
            self._truth.report.log()
        self.reset()

    def bind_ground_truth(self, truth: GroundTruth) -> None:
        """Take ground truth as it is, for evaluation without a data set."""
        self._truth = truth
        self.reset()

    @property
    def ground_truth(self) -> GroundTruth:
        """The ground truth that detections are measured against.

        Raises:
            ConfigError: ``bind`` was not called.
        """
        if self._truth is None:
            raise ConfigError("CocoMetric.bind(dataset) must be called first")
        return self._truth

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names that labels index."""
        return self.ground_truth.classes

    def reset(self) -> None:
        """Forget all detections."""
        self._results = {}
        self.class_scores = {}

    def add(self, image_id: int | str, detections: Detections) -> None:
        """Take the detections of one image (see the base class)."""
        truth = self.ground_truth
        if image_id not in truth.number_of:
            raise DatasetError(f"image {image_id} is not one of those that are evaluated")
        if image_id in self._results:
            raise DatasetError(f"the detections of image {image_id} were given twice")
        names = detections.class_names
        # Proposals are of one class of their own, and recall regardless of class suits them.
        by_class = not set(self.kinds) <= _CLASSLESS
        if by_class and names and tuple(names) != truth.classes:
            raise DatasetError(
                f"the model's {len(names)} classes ({', '.join(names[:5])}...) are not the data "
                f"set's {len(truth.classes)} ({', '.join(truth.classes[:5])}...); evaluate with "
                f"the classes the model was trained on"
            )
        labels = detections.labels.tolist()
        if labels and max(labels) >= len(truth.classes):
            raise DatasetError(
                f"a detection has label {max(labels)}, the data set {len(truth.classes)} classes"
            )
        masks = detections.masks if "segm" in self.kinds else None
        if masks is None and "segm" in self.kinds and labels:
            raise DatasetError("metric 'segm' needs masks, but the model gives none")
        self._check_size(image_id, detections)
        self._results[image_id] = [
            _result(truth.number_of[image_id], label, box, score, None if masks is None else mask)
            for label, box, score, mask in zip(
                labels,
                detections.boxes.tolist(),
                detections.scores.tolist(),
                [None] * len(labels) if masks is None else masks,
                strict=True,
            )
        ]

    def collected(self) -> dict[int | str, Any]:
        """Return results in COCO's form by image, masks run-length encoded."""
        return dict(self._results)

    def merge(self, collected: Mapping[int | str, Any]) -> None:
        """Take what another process collected; images that are known already are passed over."""
        self._results = {**collected, **self._results}

    def _check_size(self, image_id: int | str, detections: Detections) -> None:
        """Masks are compared pixel by pixel, so their size must be the annotated one."""
        expected = self.ground_truth.sizes[self.ground_truth.number_of[image_id] - 1]
        if "segm" in self.kinds and tuple(detections.image_size) != expected:
            raise DatasetError(
                f"image {image_id} is {detections.image_size[1]} x {detections.image_size[0]}, but "
                f"annotated as {expected[1]} x {expected[0]}; masks cannot be compared"
            )

    def compute(self) -> dict[str, float]:
        """Return the numbers by name, e.g. ``coco/bbox_mAP``; ``{}`` with ``format_only``.

        Raises:
            DatasetError: ``"segm"`` is asked for and the ground truth has no masks.
        """
        self._warn_of_gaps()
        if self.outfile_prefix is not None:
            self._write_results(self.outfile_prefix)
        if self.format_only:
            return {}
        numbers: dict[str, float] = {}
        for kind in self.kinds:
            if kind == "proposal_fast":
                numbers |= self._chosen(self._fast_recalls())
                continue
            tables = self._measure(kind)
            if kind == "proposal":
                numbers |= self._chosen(tables.recall_items())
                continue
            scores = tables.class_scores(self.classes, self._objects_per_class())
            self.class_scores[kind] = scores
            if self.classwise:
                numbers |= {f"{each.name}_precision": each.mAP for each in scores}
            items = {item: tables.average_precision(item) for item in PRECISION_ITEMS}
            if self.metric_items is not None:
                items |= tables.recall_items()
            numbers |= {f"{kind}_{item}": value for item, value in self._chosen(items).items()}
        start = f"{self.prefix}/" if self.prefix else ""
        return {start + name: value for name, value in numbers.items()}

    def _chosen(self, items: dict[str, float]) -> dict[str, float]:
        if self.metric_items is None:
            return items
        return {item: items[item] for item in self.metric_items if item in items}

    def _check_items(self) -> None:
        most = self.proposal_nums[-1]
        recalls = [f"AR@{count}" for count in self.proposal_nums]
        recalls += [f"AR_{area}@{most}" for area in "sml"]
        known = [*recalls] if set(self.kinds) <= _CLASSLESS else [*PRECISION_ITEMS, *recalls]
        for item in self.metric_items or ():
            if item not in known:
                raise ConfigError(
                    f"CocoMetric: metric_items knows {', '.join(known)}; got {item!r}"
                )

    def _objects_per_class(self) -> list[int]:
        counts = [0] * len(self.classes)
        for annotation in self.ground_truth.annotations:
            if not annotation["iscrowd"]:
                counts[annotation["category_id"] - 1] += 1
        return counts

    def _warn_of_gaps(self) -> None:
        truth = self.ground_truth
        missing = len(truth.image_ids) - len(self._results)
        if missing:
            logger.warning(
                "%d of %d images were not evaluated; their objects count as missed",
                missing,
                len(truth.image_ids),
            )
        if not truth.annotations:
            logger.warning("there is no ground truth: every score is undefined (%g)", UNDEFINED)
        elif not any(self._results.values()):
            logger.warning("there is not a single detection: every score is 0")

    def _measure(self, kind: str) -> ScoreTables:
        # Imported here: it pulls in plotting packages that nothing else of the training needs.
        from faster_coco_eval import COCO, COCOeval_faster

        with_masks = kind == "segm"
        truth = self.ground_truth.to_coco(with_segmentation=with_masks)
        if with_masks and self.ground_truth.annotations:
            left_out = len(self.ground_truth.annotations) - len(truth["annotations"])
            if not truth["annotations"]:
                raise DatasetError("metric 'segm' needs ground truth with masks; there are none")
            if left_out:
                logger.warning("%d objects without masks do not count for 'segm'", left_out)
        coco_truth = COCO(truth)
        coco_found = coco_truth.loadRes(self._all_results(with_masks))
        evaluation = COCOeval_faster(
            coco_truth, coco_found, "segm" if with_masks else "bbox", print_function=_silent
        )
        parameters = evaluation.params
        parameters.catIds = list(range(1, len(self.classes) + 1))
        parameters.imgIds = list(range(1, len(self.ground_truth.image_ids) + 1))
        parameters.maxDets = list(self.proposal_nums)
        parameters.iouThrs = self.iou_thresholds
        parameters.useCats = int(kind != "proposal")
        evaluation.evaluate()
        evaluation.accumulate()
        shape = (len(self.iou_thresholds), -1, 4, len(self.proposal_nums))
        recall = np.asarray(evaluation.eval["recall"], np.float64).reshape(shape)
        precision = np.asarray(evaluation.eval["precision"], np.float64)
        return ScoreTables(
            precision.reshape(shape[0], -1, *recall.shape[1:]),
            recall,
            self.iou_thresholds,
            self.proposal_nums,
        )

    def _fast_recalls(self) -> dict[str, float]:
        truth = self.ground_truth
        objects: dict[int, list[list[float]]] = {number: [] for number in truth.number_of.values()}
        for annotation in truth.annotations:
            if not annotation["iscrowd"]:
                objects[annotation["image_id"]].append(annotation["bbox"])
        found = [self._results.get(image_id, []) for image_id in truth.image_ids]
        ranked = [sorted(rows, key=lambda row: -row["score"]) for rows in found]
        recalls = average_recalls(
            [_corners(boxes) for boxes in objects.values()],
            [_corners([row["bbox"] for row in rows]) for rows in ranked],
            self.proposal_nums,
            self.iou_thresholds,
        )
        return {f"AR@{n}": recall for n, recall in zip(self.proposal_nums, recalls, strict=True)}

    def _all_results(self, with_masks: bool) -> list[dict[str, Any]]:
        """Return the results for faster-coco-eval, which writes into them: copies."""
        dropped = "bbox" if with_masks else "segmentation"
        # Without their boxes, masks are sorted into area ranges by their own areas.
        return [
            {key: value for key, value in result.items() if key != dropped}
            for results in self._results.values()
            for result in results
        ]

    def _write_results(self, prefix: str) -> None:
        truth = self.ground_truth
        for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
            if kind == "segm" and "segm" not in self.kinds:
                continue
            rows = [
                {
                    "image_id": image_id,
                    "category_id": truth.category_ids[result["category_id"] - 1],
                    key: result[key],
                    "score": result["score"],
                }
                for image_id, results in self._results.items()
                for result in results
            ]
            write_atomic(f"{prefix}.{kind}.json", json.dumps(rows))


def _silent(*_: Any) -> None:
    """Swallow the progress lines of faster-coco-eval."""


def _result(number: int, label: int, box: list[float], score: float, mask: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    result: dict[str, Any] = {
        "image_id": number,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": score,
    }
    if mask is not None:
        result["segmentation"] = encode_mask(mask)
    return result


def _corners(boxes: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    """Return boxes (x, y, width, height) as float32 [N, 4], xyxy."""
    rows = np.array(boxes, np.float64).reshape(-1, 4)
    rows[:, 2:] += rows[:, :2]
    return rows.astype(np.float32)


def _counts(proposal_nums: Sequence[int]) -> tuple[int, ...]:
    counts = sorted({int(count) for count in proposal_nums})
    if not counts or counts[0] < 1:
        raise ConfigError(
            f"CocoMetric: proposal_nums must be numbers of detections >= 1, got {proposal_nums!r}"
        )
    return tuple(counts)


def _thresholds(iou_thrs: float | Sequence[float] | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    if iou_thrs is None:
        return np.linspace(0.5, 0.95, 10)
    thresholds = np.atleast_1d(np.asarray(iou_thrs, np.float64))
    if not thresholds.size or thresholds.min() <= 0 or thresholds.max() > 1:
        raise ConfigError(f"CocoMetric: iou_thrs must be within 0..1, got {iou_thrs!r}")
    return thresholds
