import cv2
import numpy as np
import pytest

from deploykit.palette import class_palette, relative_luminance, text_color_on


@pytest.mark.parametrize(("count", "distance"), [(10, 40), (20, 25), (40, 13), (80, 5.9)])
def test_colours_are_told_apart(count: int, distance: float) -> None:
    colors = np.array(class_palette(count), np.float32)[None] / 255
    lab = cv2.cvtColor(colors, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distances[~np.eye(count, dtype=bool)].min() >= distance


def test_a_colour_does_not_depend_on_the_number_of_classes() -> None:
    assert class_palette(80)[:7] == class_palette(7)


def test_given_colours_come_first() -> None:
    base = [(1, 2, 3), (4, 5, 6)]
    assert class_palette(4, base) == ((1, 2, 3), (4, 5, 6), *class_palette(4)[2:])
    assert class_palette(1, base) == ((1, 2, 3),)
    assert class_palette(0) == ()


def test_luminance_of_known_colours() -> None:
    assert relative_luminance((0, 0, 0)) == 0
    assert relative_luminance((255, 255, 255)) == pytest.approx(1)
    assert relative_luminance((255, 0, 0)) == pytest.approx(0.2126)
    assert relative_luminance((188, 188, 188)) == pytest.approx(0.503, abs=2e-3)


def test_text_has_the_better_contrast() -> None:
    def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        dark, light = sorted((relative_luminance(a), relative_luminance(b)))
        return (light + 0.05) / (dark + 0.05)

    black, white = (0, 0, 0), (255, 255, 255)
    for color in class_palette(200):
        chosen = text_color_on(color)
        other = white if chosen == black else black
        assert contrast(color, chosen) >= contrast(color, other)
        assert contrast(color, chosen) >= 4.5  # WCAG AA
