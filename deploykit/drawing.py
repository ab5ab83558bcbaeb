"""Pictures of detections: boxes, labels, masks, a legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError
from deploykit.image_io import as_bgr
from deploykit.palette import Rgb, class_palette, text_color_on

if TYPE_CHECKING:
    from deploykit.detections import Detections

Image = npt.NDArray[np.uint8]

# Labels that would cover more of the picture than this are left out, and a legend stands for them.
_MAX_LABEL_COVER = 0.15
_TEXT_WEIGHT = 500


@dataclass(frozen=True)
class DrawStyle:
    """How detections are drawn. ``None`` means: chosen from the image and its objects.

    Args:
        line_width: Width of the boxes in pixels.
        text_size: Text height in pixels.
        labels: Whether every box gets a label. By default it does unless the labels would hide
            the picture (many small objects); then a legend with counts is drawn.
        scores: Whether the labels show the scores.
        boxes: Whether boxes are drawn.
        mask_opacity: Opacity 0..1 of the masks' fill.
    """

    line_width: int | None = None
    text_size: int | None = None
    labels: bool | None = None
    scores: bool = True
    boxes: bool = True
    mask_opacity: float = 0.4


def draw_detections(image: Image, detections: Detections, style: DrawStyle | None = None) -> Image:
    """Return a copy of an image with its detections drawn on it.

    Detections with a higher score are drawn over those with a lower one; labels stay inside the
    image.

    Args:
        image: uint8 [H, W, 3] BGR (grey and BGRA are converted).
        detections: What was found in this image.
        style: How to draw.

    Returns:
        uint8 [H, W, 3], BGR.

    Raises:
        UsageError: ``detections.image_size`` is not the size of the image.
        MediaError: The image is not a uint8 image.
    """
    style = style or DrawStyle()
    canvas = as_bgr(image).copy()
    height, width = canvas.shape[:2]
    if detections.image_size != (height, width):
        raise UsageError(
            f"the detections are of a {detections.image_size[0]}x{detections.image_size[1]} image, "
            f"but the picture to draw on is {height}x{width}"
        )
    if not len(detections):
        return canvas
    order = np.argsort(detections.scores, kind="stable")
    labels = detections.labels[order]
    palette = class_palette(int(labels.max()) + 1, detections.palette)
    boxes = _pixel_boxes(detections.boxes[order], height, width)
    line_width = style.line_width or _line_width(boxes, height, width)
    text_size = style.text_size or max(11, round(0.018 * float(np.sqrt(height * width))))

    if detections.masks is not None:
        for mask, label in zip(detections.masks[order], labels, strict=True):
            _draw_mask(canvas, mask, palette[label], style.mask_opacity, line_width)
    if style.boxes:
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            cv2.rectangle(canvas, (x1, y1), (x2, y2), _bgr(palette[label]), line_width)

    texts = [
        detections.name_of(int(label)) + (f" {score:.2f}" if style.scores else "")
        for label, score in zip(labels, detections.scores[order], strict=True)
    ]
    if style.labels is False:
        return canvas
    if style.labels or _labels_fit(texts, text_size, height, width):
        for text, (x1, y1, _, _), label in zip(texts, boxes, labels, strict=True):
            _draw_label(canvas, text, (x1, y1), text_size, palette[label], line_width)
    else:
        _draw_legend(canvas, detections, palette, text_size)
    return canvas


def _pixel_boxes(boxes: npt.NDArray[np.float32], height: int, width: int) -> list[list[int]]:
    """Return the first and last pixel that each box covers, clipped to the image."""
    finite = np.nan_to_num(boxes, nan=0.0, posinf=max(height, width), neginf=0.0)
    limits = np.array([width - 1, height - 1] * 2)
    corners = np.rint(finite) - np.array([0, 0, 1, 1])
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
    clipped: list[list[int]] = np.clip(corners, 0, limits).astype(int).tolist()
    return clipped


def _line_width(boxes: list[list[int]], height: int, width: int) -> int:
    by_image = 0.003 * float(np.sqrt(height * width))
    sides = [min(x2 - x1, y2 - y1) + 1 for x1, y1, x2, y2 in boxes]
    by_objects = float(np.median(sides)) / 12
    return max(1, round(min(by_image, max(by_objects, 1.0))))


def _draw_mask(
    canvas: Image, mask: npt.NDArray[np.bool_], color: Rgb, opacity: float, line_width: int
) -> None:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return
    window = np.s_[top : top + height, left : left + width]
    inside = mask[window]
    part = canvas[window]
    part[inside] = np.rint(part[inside] * (1 - opacity) + np.array(_bgr(color)) * opacity)
    contours, _ = cv2.findContours(
        inside.astype(np.uint8),
        cv2.RETR_EXTERNAL,
        cv2.CHAIN_APPROX_NONE,
        offset=(left, top),
    )
    cv2.drawContours(canvas, contours, -1, _bgr(color), max(1, line_width // 2), cv2.LINE_AA)


def _labels_fit(texts: list[str], size: int, height: int, width: int) -> bool:
    cover = sum(_label_size(text, size)[0] for text in texts) * _label_size("", size)[1]
    return len(texts) <= 3 or cover <= _MAX_LABEL_COVER * height * width


def _draw_label(
    canvas: Image, text: str, corner: tuple[int, int], size: int, color: Rgb, line_width: int
) -> None:
    """Draw a filled label above the box, or inside its top where there is no room above."""
    height, width = canvas.shape[:2]
    text = _shortened(text, size, width)
    label_width, label_height = _label_size(text, size)
    x1, y1 = corner
    half = line_width // 2
    left = min(max(0, x1 - half), max(0, width - label_width))
    top = y1 - half - label_height if y1 - half >= label_height else y1
    top = min(max(0, top), max(0, height - label_height))
    cv2.rectangle(
        canvas,
        (left, top),
        (left + label_width - 1, top + label_height - 1),
        _bgr(color),
        cv2.FILLED,
    )
    _put_text(canvas, text, (left, top), size, text_color_on(color))


def _draw_legend(
    canvas: Image, detections: Detections, palette: tuple[Rgb, ...], size: int
) -> None:
    """Draw a panel in the top left corner: a swatch, the name and the count of every class."""
    height, width = canvas.shape[:2]
    line = _label_size("", size)[1] + size // 3
    counts = np.bincount(detections.labels, minlength=len(palette))
    present = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    rows = [
        (f"{counts[label]} {detections.name_of(int(label))}", palette[label])
        for label in present[: max(1, (height - size) // line)]
    ]
    panel_width = max(_label_size(text, size)[0] for text, _ in rows) + 2 * size
    panel = canvas[: min(height, len(rows) * line + size // 2), : min(width, panel_width)]
    panel[:] = np.rint(panel * 0.3)
    for row, (text, color) in enumerate(rows):
        top = size // 2 + row * line
        swatch = (size // 2, top + size // 6), (size // 2 + size - 1, top + size // 6 + size - 1)
        cv2.rectangle(canvas, *swatch, _bgr(color), cv2.FILLED)
        shown = _shortened(text, size, width - 2 * size)
        _put_text(canvas, shown, (2 * size - size // 3, top), size, (255, 255, 255))


def _shortened(text: str, size: int, width: int) -> str:
    """Cut a text so that its label is at most ``width`` pixels wide."""
    if _label_size(text, size)[0] <= width:
        return text
    while text and _label_size(text + "...", size)[0] > width:
        text = text[:-1]
    return text + "..." if text else ""


def _label_size(text: str, size: int) -> tuple[int, int]:
    """Return (width, height) in pixels of a label, its margins included."""
    return _text_width(text, size) + 2 * max(2, size // 3), round(1.35 * size)


def _text_width(text: str, size: int) -> int:
    if _has_fonts():
        box = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, _TEXT_WEIGHT)
        return int(box[0] + box[2])
    scale, thickness = _hershey(size)
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0])


def _put_text(canvas: Image, text: str, corner: tuple[int, int], size: int, color: Rgb) -> None:
    """Write a text into the label whose top left pixel is ``corner``."""
    x, y = corner[0] + max(2, size // 3), corner[1] + round(1.01 * size)
    if _has_fonts():
        cv2.putText(
            canvas, text, (x, y), _bgr(color), _font(), size, _TEXT_WEIGHT, cv2.PUT_TEXT_ALIGN_LEFT
        )
        return
    scale, thickness = _hershey(size)
    plain = text.encode("ascii", "replace").decode("ascii")
    cv2.putText(
        canvas,
        plain,
        (x, y),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        _bgr(color),
        thickness,
        cv2.LINE_AA,
    )


def _has_fonts() -> bool:
    """Return whether this OpenCV (5 and newer) renders Unicode text with a real font."""
    return hasattr(cv2, "FontFace")


def _font() -> Any:
    return cv2.FontFace("sans")


def _hershey(size: int) -> tuple[float, int]:
    """Return (scale, thickness) of OpenCV 4's stroke font, whose capitals are 21 units high."""
    return 0.72 * size / 21, max(1, round(size / 14))


def _bgr(color: Rgb) -> tuple[int, int, int]:
    return color[2], color[1], color[0]
