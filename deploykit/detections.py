"""``Detections``: what a detector found in one image. Needs numpy alone.

The conventions are those of the ``supervision`` package: boxes are xyxy in pixels of the image,
indexing and slicing give ``Detections`` again, iteration gives one item per object.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deploykit import detection_formats
from deploykit.detection_formats import class_index
from deploykit.errors import UsageError
from deploykit.mask_paste import paste_masks

if TYPE_CHECKING:
    from deploykit.drawing import DrawStyle

Floats = npt.NDArray[np.float32]
Index = int | slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]


class Detection(NamedTuple):
    """One object, as iterating over ``Detections`` gives it.

    Args:
        box: float32 [4], xyxy in pixels of the image.
        score: Confidence, 0..1.
        label: Class index.
        name: Class name.
        mask: bool [H, W] of the whole image, or ``None``.
    """

    box: Floats
    score: float
    label: int
    name: str
    mask: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image.

    Arrays are converted to the types below and checked on construction; they are not copied when
    they already have them.

    Args:
        boxes: float32 [N, 4], xyxy in pixels of the original image. Boxes may reach beyond the
            image: they are not clipped.
        scores: float32 [N], confidences.
        labels: int64 [N], indices into ``class_names``.
        masks: bool [N, H, W] with (H, W) = ``image_size``, or ``None``.
        class_names: Name of every class the model knows.
        image_size: (height, width) of the image in pixels.
        palette: One RGB colour per class for drawing, or empty for generated colours.

    Raises:
        UsageError: Shapes, lengths or label values do not fit together.

    Example:
        >>> import numpy as np
        >>> from deploykit import Detections
        >>> found = Detections(
        ...     boxes=np.array([[10, 20, 60, 80], [5, 5, 15, 15], [40, 0, 99, 50]]),
        ...     scores=np.array([0.9, 0.4, 0.7]),
        ...     labels=np.array([0, 1, 0]),
        ...     class_names=("cat", "dog"),
        ...     image_size=(100, 100),
        ... )
        >>> found
        Detections(3 in 100x100 px: 2 cat, 1 dog)
        >>> len(found[found.scores > 0.5])
        2
        >>> found.filter(score=0.5, classes="cat").scores.tolist() == found.scores[[0, 2]].tolist()
        True
        >>> for box, score, label, name, mask in found[:1]:
        ...     print(name, box.tolist())
        cat [10.0, 20.0, 60.0, 80.0]
    """

    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_] | None = field(default=None, kw_only=True)
    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    image_size: tuple[int, int] = field(kw_only=True)
    palette: tuple[tuple[int, int, int], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        boxes = _as_array(self.boxes, np.float32, "boxes")
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        scores = _as_array(self.scores, np.float32, "scores")
        labels = _as_array(self.labels, np.int64, "labels")
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UsageError(f"boxes must have shape [N, 4], got {list(boxes.shape)}")
        count = len(boxes)
        for name, array in (("scores", scores), ("labels", labels)):
            if array.shape != (count,):
                raise UsageError(
                    f"{name} must have shape [{count}] like the boxes, got {list(array.shape)}"
                )
        height, width = (int(size) for size in self.image_size)
        if height < 1 or width < 1:
            raise UsageError(f"image_size must be (height, width) >= 1, got {self.image_size}")
        names = tuple(self.class_names)
        if count and labels.min() < 0:
            raise UsageError(f"labels must be >= 0, got {labels.min()}")
        if count and names and labels.max() >= len(names):
            raise UsageError(
                f"label {labels.max()} has no name: there are {len(names)} class names"
            )
        masks = self.masks
        if masks is not None:
            masks = np.asarray(masks).astype(bool, copy=False)
            if masks.shape != (count, height, width):
                raise UsageError(
                    f"masks must have shape [{count}, {height}, {width}] (number of boxes and "
                    f"image_size), got {list(masks.shape)}"
                )
        for name, value in (
            ("boxes", boxes),
            ("scores", scores),
            ("labels", labels),
            ("masks", masks),
            ("class_names", names),
            ("image_size", (height, width)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def empty(
        cls,
        image_size: tuple[int, int],
        class_names: Sequence[str] = (),
        palette: Sequence[tuple[int, int, int]] = (),
    ) -> Detections:
        """Return the detections of an image in which nothing was found.

        Args:
            image_size: (height, width) in pixels.
            class_names: Name of every class the model knows.
            palette: One RGB colour per class, or empty.

        Example:
            >>> Detections.empty(image_size=(480, 640))
            Detections(0 in 480x640 px)
        """
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            class_names=tuple(class_names),
            image_size=image_size,
            palette=tuple(palette),
        )

    @classmethod
    def from_model_outputs(
        cls,
        boxes: npt.NDArray[Any],
        scores: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        num_dets: int,
        masks: npt.NDArray[Any] | None = None,
        *,
        scale_factor: tuple[float, float],
        image_size: tuple[int, int],
        class_names: Sequence[str] = (),
        score_threshold: float = 0.0,
        palette: Sequence[tuple[int, int, int]] = (),
    ) -> Detections:
        """Turn one row of a model's fixed-shape outputs into detections of the original image.

        Boxes are multiplied by the float32 reciprocal of the scale factor, as MMDetection's dense
        heads rescale, and not clipped to the image.

        Args:
            boxes: float [K, 4], xyxy in pixels of the network input.
            scores: float [K], descending.
            labels: int [K].
            num_dets: How many of the K rows are detections; the others are padding.
            masks: float [K, h, w], mask logits in the frame of each box, or ``None``.
            scale_factor: (width, height) factors from the original image to the network input.
            image_size: (height, width) of the original image in pixels.
            class_names: Name of every class the model knows.
            score_threshold: Lowest score that is kept.
            palette: One RGB colour per class, or empty.

        Raises:
            UsageError: Shapes do not fit, or ``num_dets`` is not within 0..K.

        Example:
            >>> found = Detections.from_model_outputs(
            ...     boxes=np.array([[8.0, 8.0, 16.0, 32.0], [0.0, 0.0, 0.0, 0.0]]),
            ...     scores=np.array([0.75, 0.0]),
            ...     labels=np.array([0, -1]),
            ...     num_dets=1,
            ...     scale_factor=(0.5, 0.5),
            ...     image_size=(100, 200),
            ... )
            >>> found.boxes.tolist()
            [[16.0, 16.0, 32.0, 64.0]]
        """
        count = int(num_dets)
        if not 0 <= count <= len(boxes):
            raise UsageError(f"num_dets must be within 0..{len(boxes)}, got {count}")
        kept = np.flatnonzero(np.asarray(scores[:count], np.float32) >= score_threshold)
        width_factor, height_factor = scale_factor
        back = np.array([1 / width_factor, 1 / height_factor] * 2, np.float32)
        kept_boxes = np.asarray(boxes, np.float32)[kept] * back
        return cls(
            kept_boxes,
            scores[kept],
            labels[kept],
            masks=None if masks is None else paste_masks(masks[kept], kept_boxes, image_size),
            class_names=tuple(class_names),
            image_size=image_size,
            palette=tuple(palette),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for index in range(len(self)):
            label = int(self.labels[index])
            yield Detection(
                self.boxes[index],
                float(self.scores[index]),
                label,
                self.name_of(label),
                None if self.masks is None else self.masks[index],
            )

    def __getitem__(self, index: Index) -> Detections:
        """Return the chosen detections: an int gives one, a mask or indices give several."""
        if isinstance(index, int | np.integer):
            index = [int(index)]
        elif not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0 and index.dtype != bool:
                index = index.astype(np.int64)
        return Detections(
            self.boxes[index],
            self.scores[index],
            self.labels[index],
            masks=None if self.masks is None else self.masks[index],
            class_names=self.class_names,
            image_size=self.image_size,
            palette=self.palette,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        masks_equal = (
            self.masks is other.masks
            if self.masks is None or other.masks is None
            else np.array_equal(self.masks, other.masks)
        )
        return (
            masks_equal
            and self.image_size == other.image_size
            and self.class_names == other.class_names
            and np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.labels, other.labels)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def __repr__(self) -> str:
        found = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        height, width = self.image_size
        return f"Detections({len(self)} in {height}x{width} px{': ' + found if found else ''})"

    def name_of(self, label: int) -> str:
        """Return the name of a class, or ``"class N"`` when the names are unknown."""
        return self.class_names[label] if self.class_names else f"class {label}"

    def counts(self) -> dict[str, int]:
        """Return the number of detections per class name, most frequent first."""
        counted = Counter(self.labels.tolist())
        return {
            self.name_of(label): count
            for label, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        }

    def filter(
        self,
        *,
        score: float | None = None,
        classes: str | int | Sequence[str | int] | None = None,
    ) -> Detections:
        """Return the detections that pass every given condition.

        Args:
            score: Lowest score that is kept.
            classes: Class name(s) or label(s) that are kept.

        Raises:
            UsageError: A class that the model does not know.
        """
        keep = np.ones(len(self), bool)
        if score is not None:
            keep &= self.scores >= score
        if classes is not None:
            wanted = [classes] if isinstance(classes, str | int | np.integer) else list(classes)
            keep &= np.isin(self.labels, [class_index(item, self.class_names) for item in wanted])
        return self[keep]

    def draw(
        self, image: npt.NDArray[np.uint8], style: DrawStyle | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return a copy of the image with boxes, labels and masks drawn on it.

        Args:
            image: uint8 [H, W, 3], BGR; the image the detections belong to.
            style: Line width, text size, what to show; scaled to the image by default.

        Returns:
            uint8 [H, W, 3], BGR.

        Raises:
            UsageError: The image has another size.
        """
        from deploykit.drawing import draw_detections

        return draw_detections(image, self, style)

    def to_dict(self) -> dict[str, Any]:
        """Return the detections as plain lists and scalars that JSON can hold.

        Returns:
            ``image_size`` [height, width], ``class_names`` and ``detections``, a list of ``box``
            (xyxy), ``score``, ``label``, ``name`` and, with masks, ``mask`` (COCO RLE).
        """
        return detection_formats.to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Detections:
        """Read back what ``to_dict`` gave; the float32 values are the same to the last bit.

        Raises:
            UsageError: Keys are missing or hold something else.
        """
        return cls(**detection_formats.arguments_from_dict(data))

    def to_json(self, indent: int | None = None) -> str:
        """Return the detections as JSON text (see ``to_dict`` for the layout).

        Example:
            >>> found = Detections([[1, 2, 3, 4]], [0.9], [0], image_size=(8, 8))
            >>> Detections.from_json(found.to_json()) == found
            True
        """
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Detections:
        """Read back what ``to_json`` gave.

        Raises:
            UsageError: The text is not JSON, or not of detections.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UsageError(f"detections cannot be read, this is not JSON: {error}") from None
        return cls.from_dict(data)

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the detections as COCO results.

        Args:
            image_id: The image's id in the COCO annotation file.
            category_ids: COCO category id of every class, in the order of ``class_names``; label
                + 1 by default.

        Returns:
            A list of ``image_id``, ``category_id``, ``bbox`` [x, y, width, height] in pixels,
            ``score`` and, with masks, ``segmentation`` (compressed RLE).

        Raises:
            UsageError: A label has no category id.

        Example:
            >>> found = Detections([[10, 20, 30, 60]], [0.5], [2], image_size=(100, 100))
            >>> found.to_coco(image_id=7)
            [{'image_id': 7, 'category_id': 3, 'bbox': [10.0, 20.0, 20.0, 40.0], 'score': 0.5}]
        """
        return detection_formats.to_coco(self, image_id, category_ids)

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections`` with the class names in ``data["class_name"]``.

        Raises:
            MissingDependencyError: The optional package ``supervision`` is not installed.
        """
        return detection_formats.to_supervision(self)


def _as_array(value: Any, dtype: type[np.generic], name: str) -> Any:
    try:
        return np.asarray(value).astype(dtype, copy=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be an array of numbers: {error}") from None
