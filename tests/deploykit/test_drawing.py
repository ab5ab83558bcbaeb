import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import deploykit.drawing
from deploykit import Detections
from deploykit.drawing import DrawStyle
from deploykit.errors import UsageError

RED, GREEN = (255, 0, 0), (0, 255, 0)
PLAIN = DrawStyle(line_width=1, labels=False)


def grey_image(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def one(box: list[float], **more: object) -> Detections:
    arguments = {"class_names": ("cat", "dog"), "image_size": (120, 160), "palette": (RED, GREEN)}
    return Detections([box], [0.9], [0], **(arguments | more))


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=-1)


def test_the_image_is_not_changed() -> None:
    image = grey_image()
    picture = one([10, 10, 60, 60]).draw(image)
    assert (image == 90).all()
    assert picture.shape == image.shape and picture.dtype == np.uint8
    nothing = Detections.empty((120, 160)).draw(image)
    assert nothing is not image and (nothing == image).all()


def test_a_box_outlines_the_pixels_it_covers() -> None:
    picture = one([10, 20, 30, 50]).draw(grey_image(), PLAIN)
    expected = np.zeros((120, 160), bool)
    expected[20:50, 10:30] = True
    expected[21:49, 11:29] = False
    np.testing.assert_array_equal((picture == (0, 0, 255)).all(axis=-1), expected)
    np.testing.assert_array_equal(changed(grey_image(), picture), expected)


def test_higher_scores_are_drawn_on_top() -> None:
    boxes = [[10, 10, 50, 50]] * 2
    for scores, color in (([0.9, 0.8], (0, 0, 255)), ([0.8, 0.9], (0, 255, 0))):
        found = Detections(boxes, scores, [0, 1], image_size=(120, 160), palette=(RED, GREEN))
        picture = found.draw(grey_image(), PLAIN)
        assert tuple(picture[10, 10]) == color


@pytest.mark.parametrize(
    "box",
    [[-50, -50, 40, 40], [100, 90, 900, 900], [0, 0, 160, 120], [155, 0, 160, 5], [70, 2, 75, 4]],
)
def test_labels_stay_inside(box: list[float]) -> None:
    """The filled label has its full width and height whatever the place of the box."""
    inside = one([40, 60, 100, 100]).draw(grey_image(), DrawStyle(line_width=1, text_size=12))
    label_area = changed(grey_image(), inside)[:60].sum()
    picture = one(box).draw(grey_image(), DrawStyle(line_width=1, text_size=12))
    without = one(box).draw(grey_image(), PLAIN)
    covered = changed(grey_image(), picture) | changed(grey_image(), without)
    assert covered.sum() >= label_area


def test_labels_stay_inside_low_images() -> None:
    """Neither above nor below the edge of the box is room: the label moves up."""
    found = one([40, 12, 100, 23], image_size=(24, 160))
    image = grey_image(24)
    picture = found.draw(image, DrawStyle(line_width=1, text_size=12, boxes=False))
    assert changed(image, picture).any(axis=1).tolist() == [False] * 8 + [True] * 16


def test_text_is_readable_on_its_label() -> None:
    for color, text in (((20, 20, 120), 255), ((250, 250, 80), 0)):
        picture = one([40, 60, 100, 100], palette=(color,)).draw(
            grey_image(), DrawStyle(text_size=16)
        )
        label = picture[38:60]
        assert (label == text).all(axis=-1).sum() > 10


@pytest.mark.parametrize("with_fonts", [True, False])
def test_both_text_renderers(monkeypatch: pytest.MonkeyPatch, with_fonts: bool) -> None:
    """OpenCV 4 has no ``FontFace``; non-ASCII names must not break it."""
    if with_fonts and not hasattr(cv2, "FontFace"):
        pytest.skip("this OpenCV has no FontFace")
    monkeypatch.setattr(deploykit.drawing, "_has_fonts", lambda: with_fonts)
    found = one([40, 60, 100, 100], class_names=("Größe 車 \U0001f4a5",))
    with_label = found.draw(grey_image())
    assert changed(with_label, found.draw(grey_image(), DrawStyle(labels=False))).any()


def test_many_labels_give_way_to_a_legend() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 500, (150, 2))
    found = Detections(
        np.hstack([corners, corners + 12]),
        random.random(150),
        np.arange(150) % 2,
        class_names=("nucleus", "cell"),
        image_size=(520, 520),
    )
    black = np.zeros((520, 520, 3), np.uint8)
    legend = found.draw(black)
    labels = found.draw(black, DrawStyle(labels=True))
    boxes = found.draw(black, DrawStyle(labels=False))
    assert changed(black, labels).mean() > 2 * changed(black, legend).mean()
    differs = np.argwhere(changed(legend, boxes))
    assert len(differs) and differs.max() < 200, "the legend stays in the top left corner"


def test_long_names_are_cut() -> None:
    found = one([10, 60, 60, 100], class_names=("x" * 400,))
    assert found.draw(grey_image()).shape == (120, 160, 3)


def test_masks_are_blended_and_outlined() -> None:
    mask = np.zeros((1, 120, 160), bool)
    mask[0, 30:70, 40:90] = True
    found = one([40, 30, 90, 70], masks=mask)
    picture = found.draw(grey_image(), DrawStyle(boxes=False, labels=False, mask_opacity=0.5))
    assert picture[50, 60].tolist() == [45, 45, 172]
    np.testing.assert_allclose(picture[30, 60].astype(int), [0, 0, 255], atol=20)
    margin = np.ones((120, 160), bool)
    margin[28:72, 38:92] = False
    assert not changed(grey_image(), picture)[margin].any()


def test_an_empty_mask_draws_nothing() -> None:
    found = one([40, 30, 90, 70], masks=np.zeros((1, 120, 160), bool))
    picture = found.draw(grey_image(), DrawStyle(boxes=False, labels=False))
    assert (picture == 90).all()


def test_lines_and_text_grow_with_the_image() -> None:
    def covered(scale: int) -> float:
        size = (120 * scale, 160 * scale)
        found = one([40 * scale, 60 * scale, 100 * scale, 100 * scale], image_size=size)
        image = grey_image(*size)
        return float(changed(image, found.draw(image)).mean())

    assert covered(20) == pytest.approx(covered(8), rel=0.25)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(UsageError, match="120x160 image, but the picture to draw on is 160x120"):
        one([0, 0, 9, 9]).draw(np.zeros((160, 120, 3), np.uint8))


def test_grey_images_become_colour() -> None:
    assert one([0, 0, 9, 9]).draw(np.zeros((120, 160), np.uint8)).shape == (120, 160, 3)


@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_any_box_on_any_image_can_be_drawn(boxes: np.ndarray, height: int, width: int) -> None:
    found = Detections(boxes, [0.1, 0.2, 0.3], [0, 1, 2], image_size=(height, width))
    image = np.zeros((height, width, 3), np.uint8)
    for style in (None, DrawStyle(labels=True), PLAIN):
        assert found.draw(image, style).shape == image.shape
