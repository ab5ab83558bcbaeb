"""``CocoDataset``: images with boxes and masks from a COCO json file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import ConfigError, DatasetError
from deploykit.proposals import read_proposals
from deploykit.training.data.coco_classes import COCO_CLASSES, COCO_PALETTE
from deploykit.training.data.coco_file import (
    CocoAnnotation,
    CocoFile,
    CocoImage,
    read_coco_file,
)
from deploykit.training.data.dataset import OnError, PipelineDataset, class_names
from deploykit.training.data.report import AnnotationReport
from deploykit.training.data.sample import ImageRecord
from deploykit.training.registry import DATASETS


@DATASETS.register()
class CocoDataset(PipelineDataset):
    """A COCO json data set with the arguments of MMDetection's.

    A label is an index into ``classes``: those of ``metainfo`` in the order given there, else the
    80 of COCO if the file lists only such, else those of the file. Annotations of other classes
    are left out.

    Args:
        ann_file: The json file; relative to ``data_root``.
        data_root: Folder that relative paths start from.
        data_prefix: ``img`` is the image folder; relative to ``data_root``.
        metainfo: ``classes`` (names, or a file with one name per line) and ``palette`` (RGB).
        filter_cfg: ``filter_empty_gt`` leaves out images without annotations of the classes,
            ``min_size`` those whose shorter side is less. Not applied in ``test_mode``.
        indices: Use only these images of the file, by position: the first n (the last if
            negative), or a list. Chosen before filtering.
        serialize_data: Whether to keep the records pickled in one array, which forked workers share
            without copying.
        pipeline: Transforms, as config dicts or objects.
        test_mode: Whether the samples are for validation: nothing is filtered, each index gives its
            own image.
        lazy_init: Whether to put off reading the file until it is needed.
        max_refetch: How many other images to draw when one gives no usable sample.
        backend_args: Accepted for MMDetection's configs; only local files (``None`` or
            ``backend="local"``) are read.
        on_error: See ``PipelineDataset``.
        proposal_file: Region proposals of the images (see ``deploykit.proposals``); relative to
            ``data_root``.

    Raises:
        DatasetError: The file is missing or not COCO, no image is usable, an image has no entry in
            the proposal file, or there are problems and ``on_error`` is ``"raise"``.
        ConfigError: Arguments that make no sense.
    """

    METAINFO: ClassVar[Mapping[str, Any]] = {"classes": COCO_CLASSES, "palette": COCO_PALETTE}

    def __init__(
        self,
        ann_file: str = "",
        data_root: str | None = "",
        data_prefix: Mapping[str, str] | None = None,
        metainfo: Mapping[str, Any] | None = None,
        filter_cfg: Mapping[str, Any] | None = None,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        lazy_init: bool = False,
        max_refetch: int = 1000,
        backend_args: Mapping[str, Any] | None = None,
        on_error: OnError | None = None,
        proposal_file: str | None = None,
    ) -> None:
        super().__init__(
            pipeline=pipeline,
            test_mode=test_mode,
            serialize_data=serialize_data,
            max_refetch=max_refetch,
            on_error=on_error,
        )
        if not ann_file:
            raise ConfigError("CocoDataset needs ann_file, the COCO json file")
        check_backend(backend_args)
        root = Path(data_root or "")
        self.ann_file = str(root / ann_file)
        self.image_folder = root / (data_prefix or {}).get("img", "")
        self._metainfo = dict(metainfo or {})
        self._asked_classes = class_names(metainfo)
        self._filter = _filter_options(filter_cfg)
        self._indices = indices
        self.proposal_file = None if proposal_file is None else str(root / proposal_file)
        self._report = AnnotationReport(self.ann_file)
        self._category_to_label: dict[int | str, int] = {}
        self._classes: tuple[str, ...] | None = self._asked_classes
        if not lazy_init:
            self.full_init()

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The class names; a label is an index into them."""
        if self._classes is None:
            self.full_init()
        assert self._classes is not None  # noqa: S101 - set by full_init
        return self._classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:  # type: ignore[override]
        """One RGB colour per class, or empty."""
        given = self._metainfo.get("palette")
        if isinstance(given, Sequence) and not isinstance(given, str) and len(given):
            return tuple((int(red), int(green), int(blue)) for red, green, blue in given)
        palette: tuple[tuple[int, int, int], ...] = self.METAINFO["palette"]
        return palette if self.classes == self.METAINFO["classes"] else ()

    @property
    def report(self) -> AnnotationReport:
        """What was wrong with the annotation file."""
        self.full_init()
        return self._report

    def reports(self) -> list[AnnotationReport]:
        """Return the report of the annotation file."""
        return [self.report]

    @property
    def category_ids(self) -> dict[int | str, int]:
        """Label of every category id of the file that is used."""
        self.full_init()
        return self._category_to_label

    def load_records(self) -> list[ImageRecord]:
        """Read the file, choose classes and images, drop unusable boxes, report all of it."""
        coco = read_coco_file(self.ann_file, needs_annotations=not self.test_mode)
        self._report = coco.report
        self._choose_classes(coco)
        images = self._select(list(coco.images.values()))
        listing = _FolderListing()
        present = [image for image in images if self._exists(image, listing)]
        if not present:
            raise DatasetError(_nothing_usable(self.ann_file, self.image_folder, images))
        if len(present) < len(images) and self.test_mode and self.on_error is None:
            missing = self._report.problems["missing_file"]
            raise DatasetError(
                f"{self.ann_file}: {missing.count} of {len(images)} image files do not exist "
                f"({missing.examples[0]}); a test set must be complete, or set on_error='skip'"
            )
        records = []
        for image in present:
            annotations = coco.annotations.get(image.image_id, [])
            if self._passes_filter(image, annotations):
                records.append(self._to_record(image, annotations))
        self._finish_report(len(records))
        if self.proposal_file is None:
            return records
        table = read_proposals(self.proposal_file)
        return [
            replace(record, proposals=table.find(record.path, record.image_id))
            for record in records
        ]

    def _choose_classes(self, coco: CocoFile) -> None:
        names = tuple(dict.fromkeys(coco.categories.values()))
        if self._asked_classes is not None:
            classes = self._asked_classes
            missing = [name for name in classes if name not in names]
            if missing:
                raise DatasetError(
                    f"{self.ann_file} has no category {', '.join(map(repr, missing[:5]))} that "
                    f"metainfo['classes'] asks for; it has {', '.join(map(repr, names[:20]))}"
                )
        elif not names:
            raise DatasetError(f"{self.ann_file} lists no usable category")
        else:
            known: tuple[str, ...] = self.METAINFO["classes"]
            classes = known if set(names) <= set(known) else names
        self._classes = classes
        label_of = {name: label for label, name in enumerate(classes)}
        self._category_to_label = {
            category_id: label_of[name]
            for category_id, name in coco.categories.items()
            if name in label_of
        }

    def _select(self, images: list[CocoImage]) -> list[CocoImage]:
        if self._indices is None:
            return images
        if isinstance(self._indices, int):
            count = self._indices
            return images[:count] if count >= 0 else images[count:]
        try:
            return [images[int(index)] for index in self._indices]
        except (IndexError, TypeError, ValueError):
            raise ConfigError(
                f"indices must be a number or a list of positions among the {len(images)} images "
                f"of {self.ann_file}, got {self._indices!r:.80}"
            ) from None

    def _exists(self, image: CocoImage, listing: _FolderListing) -> bool:
        path = self._path(image)
        if listing.holds(path):
            return True
        self._report.add("missing_file", f"image {image.image_id}: {path}")
        return False

    def _path(self, image: CocoImage) -> str:
        return os.path.join(self.image_folder, image.file_name)

    def _passes_filter(self, image: CocoImage, annotations: list[CocoAnnotation]) -> bool:
        if self.test_mode:
            return True
        filter_empty, min_size = self._filter
        # As in MMDetection, any annotation of the classes counts here, usable or not.
        named = any(each.category_id in self._category_to_label for each in annotations)
        if not named:
            self._report.add("image_without_objects", f"image {image.image_id}: {image.file_name}")
        return (named or not filter_empty) and min(image.width, image.height) >= min_size

    def _to_record(self, image: CocoImage, annotations: list[CocoAnnotation]) -> ImageRecord:
        kept = [
            each
            for each in annotations
            if not each.ignore
            and each.category_id in self._category_to_label
            and self._is_usable(each, image)
        ]
        boxes = np.array([each.box for each in kept], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [self._category_to_label[each.category_id] for each in kept]
        return ImageRecord(
            image.image_id,
            self._path(image),
            image.width,
            image.height,
            boxes,
            np.array(labels, np.int64),
            np.array([each.crowd for each in kept], bool),
            tuple(each.segmentation for each in kept),
        )

    def _is_usable(self, annotation: CocoAnnotation, image: CocoImage) -> bool:
        """Apply MMDetection's rules for boxes and report what falls to them."""
        x, y, width, height = annotation.box
        name = f"annotation {annotation.annotation_id} of image {image.image_id}"
        inner_width = min(x + width, image.width) - max(x, 0)
        inner_height = min(y + height, image.height) - max(y, 0)
        if width < 1 or height < 1 or annotation.area <= 0:
            self._report.add(
                "empty_box", f"{name}: {width:g} x {height:g}, area {annotation.area:g}"
            )
            return False
        if inner_width <= 0 or inner_height <= 0:
            self._report.add(
                "box_outside_image",
                f"{name}: x {x:g}, y {y:g} in {image.width} x {image.height}",
            )
            return False
        if width - inner_width > 1 or height - inner_height > 1:
            beyond = max(width - inner_width, height - inner_height)
            self._report.add("box_beyond_image", f"{name}: by {beyond:g} px")
        return True

    def _finish_report(self, count: int) -> None:
        self._report.log()
        if not count:
            raise DatasetError(
                f"{self.ann_file}: no image is left after filtering (filter_cfg: filter_empty_gt="
                f"{self._filter[0]}, min_size={self._filter[1]}; classes: "
                f"{', '.join(self.classes[:10])})"
            )
        if self.on_error == "raise" and self._report.has_errors:
            raise DatasetError(
                f"{self.ann_file} has problems and on_error='raise': {self._report.first_errors()}"
            )


class _FolderListing:
    """Lists a folder once instead of asking for every file (there may be 100,000)."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def holds(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder))
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder]


def check_backend(backend_args: Mapping[str, Any] | None) -> None:
    """Refuse file backends other than the local disk.

    Raises:
        ConfigError: ``backend_args`` names another backend.
    """
    backend = (backend_args or {}).get("backend", "local")
    if backend not in ("local", "disk"):
        raise ConfigError(
            f"backend_args asks for the file backend '{backend}'; only local files are read "
            f"(backend_args=None)"
        )


def _filter_options(filter_cfg: Mapping[str, Any] | None) -> tuple[bool, int]:
    options = dict(filter_cfg or {})
    filter_empty, min_size = options.pop("filter_empty_gt", False), options.pop("min_size", 0)
    if options:
        raise ConfigError(
            f"filter_cfg knows filter_empty_gt and min_size, got {', '.join(map(str, options))}"
        )
    return bool(filter_empty), int(min_size)


def _nothing_usable(ann_file: str, folder: Path, images: Sequence[CocoImage]) -> str:
    if not images:
        return f"{ann_file} lists no usable image (or indices choose none)"
    first = folder / images[0].file_name
    reason = "exists" if folder.is_dir() else "does not exist"
    return (
        f"none of the {len(images)} images of {ann_file} was found: the image folder {folder} "
        f"{reason}, the first image would be {first}; check data_root and data_prefix['img']"
    )
