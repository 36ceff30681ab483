"""Colours in words: the names that goals use, and otherwise a hue with `light` or `dark`."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import rgb_to_hls

NAMED = {
    (255, 0, 0): "red",
    (0, 128, 0): "green",
    (0, 0, 255): "blue",
    (0, 255, 0): "lime",
    (128, 128, 0): "olive",
    (0, 255, 255): "cyan",
    (255, 0, 255): "magenta",
    (255, 255, 0): "yellow",
    (255, 165, 0): "orange",
    (255, 192, 203): "pink",
    (128, 0, 128): "purple",
    (165, 42, 42): "brown",
    (128, 128, 128): "grey",
    (0, 0, 0): "black",
    (255, 255, 255): "white",
}
"""CSS colours by their red, green and blue. (`aqua` is CSS's other name of cyan, `fuchsia` that of
magenta.)"""

EQUAL = 8
"""A colour is a named one if none of its three numbers differs by more."""

HUES = (
    *((15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (200, "cyan"), (255, "blue")),
    *((290, "purple"), (345, "magenta"), (360, "red")),
)
"""Names of hues, each with the angle in degrees below which it is used."""

GREY = 12
"""A colour whose three numbers differ by less is called black, white or a grey."""


def colour_name(rgb: Sequence[float]) -> str:
    """Return the name of a colour, such as `red`, `light green` or `dark grey`.

    Args:
        rgb: red, green and blue, each from 0 to 255.
    """
    for named, name in NAMED.items():
        if max(abs(a - b) for a, b in zip(rgb, named, strict=True)) <= EQUAL:
            return name
    hue, lightness, _ = rgb_to_hls(*(number / 255 for number in rgb))
    if max(rgb) - min(rgb) < GREY:
        base = "grey"
        if lightness > 0.95 or lightness < 0.05:
            return "white" if lightness > 0.5 else "black"
    else:
        base = next(name for end, name in HUES if 360 * hue <= end)
    if lightness > 0.65:
        return f"light {base}"
    return f"dark {base}" if lightness < 0.35 else base
