"""Ground truth in the form that COCO's evaluation wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import DatasetError
from deploykit.training.data.coco_file import CocoFile, read_coco_file
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.data.report import AnnotationReport
from deploykit.training.data.sample import ImageRecord


@dataclass
class GroundTruth:
    """Images and objects, with ids that an evaluation can rely on.

    Ids are numbered anew from 1: COCO's matching takes an annotation id of 0 for "not matched", and
    ids in files are not always unique. Images keep the order of their ids and annotations that of
    the file, since both decide ties.

    Args:
        classes: The class names; a label is an index into them, its category id one more.
        image_ids: The ids of the file in the order of the new ids.
        sizes: (height, width) of each image as annotated, in pixels.
        annotations: COCO annotations with the new ids.
        category_ids: The file's category id of each class, for result files.
        report: What was wrong with the annotations.
    """

    classes: tuple[str, ...]
    image_ids: list[int | str]
    sizes: list[tuple[int, int]]
    annotations: list[dict[str, Any]] = field(default_factory=list)
    category_ids: list[int | str] = field(default_factory=list)
    report: AnnotationReport = field(default_factory=lambda: AnnotationReport(""))

    def __post_init__(self) -> None:
        self.number_of = {image_id: index for index, image_id in enumerate(self.image_ids, 1)}

    def to_coco(self, with_segmentation: bool) -> dict[str, Any]:
        """Return the ground truth as a COCO data set.

        Args:
            with_segmentation: Whether to include the segmentations; annotations without any are
                then left out.
        """
        annotations = []
        for annotation in self.annotations:
            kept = dict(annotation)
            if not with_segmentation:
                kept.pop("segmentation", None)
            elif not kept.get("segmentation"):
                continue
            annotations.append(kept)
        return {
            "images": [
                {"id": number, "height": height, "width": width}
                for number, (height, width) in enumerate(self.sizes, 1)
            ],
            "categories": [
                {"id": number, "name": name} for number, name in enumerate(self.classes, 1)
            ],
            "annotations": annotations,
        }

    @classmethod
    def from_file(
        cls,
        path: str,
        classes: Sequence[str],
        image_ids: Iterable[int | str] | None = None,
        needs_annotations: bool = True,
    ) -> GroundTruth:
        """Read ground truth from a COCO file.

        All annotations of the classes count, also those too small to train on, as in COCO's own
        evaluation.

        Args:
            path: The json file.
            classes: The class names, in the order of the labels.
            image_ids: The images that are evaluated; all of the file by default.
            needs_annotations: Whether a file without ``annotations`` is refused.

        Raises:
            DatasetError: The file cannot be used, or lacks a class or an image.
        """
        coco = read_coco_file(path, needs_annotations)
        wanted = list(coco.images) if image_ids is None else list(image_ids)
        missing = [image_id for image_id in wanted if image_id not in coco.images]
        if missing:
            raise DatasetError(
                f"{path} does not list image {missing[0]} of the data set that is evaluated "
                f"({len(missing)} of {len(wanted)} are missing); the metric's ann_file must be "
                f"that of the data set"
            )
        category_ids = [_category_of(coco, name) for name in classes]
        order = _sorted_ids(wanted)
        truth = cls(
            tuple(classes),
            order,
            [(coco.images[each].height, coco.images[each].width) for each in order],
            category_ids=category_ids,
            report=coco.report,
        )
        label_of = {name: label for label, name in enumerate(classes)}
        for image_id in order:
            for annotation in coco.annotations.get(image_id, ()):
                label = label_of.get(coco.categories[annotation.category_id])
                if label is not None:
                    truth._append(
                        image_id,
                        label,
                        list(annotation.box),
                        annotation.area,
                        annotation.crowd,
                        annotation.segmentation,
                    )
        return truth

    @classmethod
    def from_dataset(cls, dataset: DetectionDataset) -> GroundTruth:
        """Take ground truth from the records of a data set, areas from the boxes.

        Raises:
            DatasetError: Two images have the same id.
        """
        records: dict[int | str, ImageRecord] = {}
        for index in range(len(dataset)):
            record = dataset.record(index)
            if record.image_id in records:
                raise DatasetError(
                    f"image id {record.image_id} occurs twice in the data set that is evaluated "
                    f"({records[record.image_id].path} and {record.path}); evaluate the parts "
                    f"separately"
                )
            records[record.image_id] = record
        order = _sorted_ids(list(records))
        truth = cls(
            dataset.classes,
            order,
            [(records[each].height, records[each].width) for each in order],
            category_ids=list(range(1, len(dataset.classes) + 1)),
        )
        for image_id in order:
            record = records[image_id]
            boxes = record.boxes.copy()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(
                boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), record.segmentations,
                strict=True,
            )  # fmt: skip
            for box, label, crowd, segmentation in rows:
                truth._append(image_id, label, box, box[2] * box[3], crowd, segmentation)
        return truth

    def _append(
        self,
        image_id: int | str,
        label: int,
        box: list[float],
        area: float,
        crowd: bool,
        segmentation: Any,
    ) -> None:
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": self.number_of[image_id],
            "category_id": label + 1,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        if segmentation is not None:
            annotation["segmentation"] = segmentation
        self.annotations.append(annotation)


def _category_of(coco: CocoFile, name: str) -> int | str:
    for category_id, category_name in coco.categories.items():
        if category_name == name:
            return category_id
    raise DatasetError(
        f"{coco.path} has no category '{name}'; it has "
        f"{', '.join(map(repr, list(coco.categories.values())[:20]))}"
    )


def _sorted_ids(image_ids: list[int | str]) -> list[int | str]:
    return sorted(image_ids, key=lambda each: (isinstance(each, str), each))
