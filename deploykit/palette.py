"""Colours of classes: those of the data set, else a deterministic, well-separated series."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

Rgb = tuple[int, int, int]

# The fractional part of the golden ratio spreads any number of hues evenly around the circle.
_GOLDEN = 0.618033988749895
_FIRST_HUE = 0.34
# (saturation, value) in turn: hues almost repeat after a Fibonacci number of steps, and of those
# only every twelfth is a multiple of six. These six were searched for the largest smallest distance
# in CIELAB: 41 among 10 colours, 26 among 20, 14 among 40, 6 among 80.
_STRENGTHS = ((0.80, 0.95), (0.95, 0.65), (0.35, 1.00), (1.00, 1.00), (0.65, 0.80), (0.80, 0.50))


def class_palette(count: int, base: Sequence[Rgb] = ()) -> tuple[Rgb, ...]:
    """Return one RGB colour per class.

    Args:
        count: Number of classes.
        base: Colours of the first classes (e.g. the data set's own palette); the classes beyond
            them get generated colours. The colours of a class never depend on ``count``.

    Returns:
        ``count`` colours with components 0..255.
    """
    colors = [(int(r), int(g), int(b)) for r, g, b in base[:count]]
    return tuple(colors + [_generated(index) for index in range(len(colors), count)])


def _generated(index: int) -> Rgb:
    hue = (_FIRST_HUE + index * _GOLDEN) % 1.0
    saturation, value = _STRENGTHS[index % len(_STRENGTHS)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def relative_luminance(color: Rgb) -> float:
    """Return the relative luminance 0..1 of an sRGB colour, as WCAG 2 defines it."""

    def linear(component: int) -> float:
        value = component / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(component) for component in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def text_color_on(background: Rgb) -> Rgb:
    """Return black or white, whichever has the higher WCAG contrast on ``background``."""
    # (L + 0.05) / 0.05 > 1.05 / (L + 0.05)  <=>  L > 0.1791
    return (0, 0, 0) if relative_luminance(background) > 0.1791 else (255, 255, 255)
