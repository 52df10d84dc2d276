# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Heat maps: pictures of which patches of an image spoke for a label, for "no", or for a negative label.

Colours are those of the map "inferno" by Nathaniel J. Smith and Stéfan van der Walt, which its authors gave into the
public domain (CC0): equal steps look equally large, also in grey and to people who see fewer colours.
"""

import functools
import unicodedata
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from .similarity_maps import Evidence, Explanation, Kind
from .verdicts import UNSURE, VERDICTS

MAX_EXPLANATIONS = 50
MAX_PANELS = 12

# Every sixteenth part of the way from low to high.
_COLOURS = (
    *("#000004", "#0b0724", "#210c4a", "#3d0965", "#57106e", "#71196e", "#8a226a", "#a32c61", "#bc3754"),
    *("#d24644", "#e45a31", "#f1731d", "#f98e09", "#fcac11", "#f9cb35", "#f2ea69", "#fcffa4"),
)
_OPACITY = 0.65
_PALEST = 0.4  # Of greys, what black becomes
_SIDE = 192  # Of the square that a picture is fitted into
_GAP = 16
_MARGIN = 32
_TITLE = 54
_HEADING = 34
_CAPTION = 54
_FOOTER = 20  # A line of the legend
_LEGEND = 16
_BAR = 14
_SCALE = 62  # The bar of colours, with its numbers
_PAPER, _INK, _FADED = "#F3F4F6", "#1A1F26", "#5A6472"
_KINDS: dict[Kind, tuple[str, str]] = {
    "label": ("labels", "p"),
    "unknown": ("labels", "p(unknown)"),
    "no": ('"no" texts', "p(no)"),
    "negative": ("negative labels", "share"),
}
# What is no label by itself.
_NAMES: dict[Kind, str] = {"unknown": '"{}"', "no": 'no "{}"'}


def overlay(
    image: Image.Image, values: Tensor, low: float | None = None, high: float | None = None, opacity: float = _OPACITY
) -> Image.Image:
    """Lay a map over an image, as colours.

    Args:
        image (`PIL.Image.Image`): What the model saw; it becomes grey, so that all colours are those of the map.
        values (`torch.Tensor` of shape `(rows, columns)`):
            The map, one value per patch, which is that of the middle of the patch; in between it is interpolated.
        low (`float`, *optional*): The value of the darkest colour, and of all below; by default the least one.
        high (`float`, *optional*): The value of the brightest colour, and of all above; by default the largest one.
        opacity (`float`, *optional*, defaults to 0.65): How much of a colour is that of the map, 0 to 1.

    Returns:
        `PIL.Image.Image` of mode RGB and the size of `image`.

    Raises:
        ValueError: `values` has another shape, or `opacity` is out of range.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from clipn_hf.heat_maps import overlay
    >>> overlay(Image.new("RGB", (64, 64), "white"), torch.eye(8)).size
    (64, 64)

    ```
    """
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"`values` must be of shape (rows, columns), got {tuple(values.shape)}.")
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be between 0 and 1, got {opacity}.")
    values = values.detach().float().cpu()
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    smooth = interpolate(values[None, None], (image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
    parts = (smooth - low) / (high - low) if high > low else torch.zeros_like(smooth)
    # Paler, because what is black would look like the dark end of the scale.
    grey = image.convert("L").point([round(255 * (_PALEST + (1 - _PALEST) * value / 255)) for value in range(256)])
    return Image.blend(grey.convert("RGB"), _colour(parts), opacity)


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Draw an image and its heat maps, as [`draw_explanations`] does.

    Args:
        explanation ([`~clipn_hf.similarity_maps.Explanation`]): Of one image.

    Returns:
        `PIL.Image.Image` of mode RGB.
    """
    return draw_explanations([explanation])


def draw_explanations(
    explanations: Sequence[Explanation], names: Sequence[str] | None = None, title: str | None = None
) -> Image.Image:
    """Draw images and their heat maps: a row of panels for each, with others below for "no" and negative labels.

    The first panel is the image as the model saw it. Each of the others is that image with the map of a text, below
    which stand the text, its probability and the cosine of the whole image with it. The maps of labels, of "unknown",
    which stands beside them, and of negative labels of an image have the same scale of colours, which stands beside
    them; "no" texts have one of their own. Where maps compare a text with others the scale begins at 0, so that a text
    that little speaks for, more than for others, stays dark. On the path `"discrepancy"` it begins at 0, too, but each
    map goes from its least to its largest value, also that of a text for which nothing speaks. Of each row the first
    12 maps are drawn.

    Small pictures are magnified pixel by pixel, large ones scaled down. Text that does not fit is shortened, but for
    the legend, which is broken into lines. The font is the one that ships with Pillow, which has ASCII letters only:
    accents are left out, other letters become question marks, and a text that has nothing else is called by its
    number.

    Args:
        explanations (`Sequence` of [`~clipn_hf.similarity_maps.Explanation`]): At least one, and at most 50.
        names (`Sequence[str]`, *optional*): What to call the images, such as by their files.
        title (`str`, *optional*): Headline.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: There are none or too many, or not one name for each.
    """
    if not 1 <= len(explanations) <= MAX_EXPLANATIONS:
        raise ValueError(
            f"`explanations` must be at least 1 and at most {MAX_EXPLANATIONS}, got {len(explanations)}; draw others "
            "in a picture of their own."
        )
    if names is not None and len(names) != len(explanations):
        raise ValueError(f"`names` must be one per explanation, got {len(names)} for {len(explanations)}.")
    cells = [_fit(*explanation.image.size) for explanation in explanations]
    width = max(cell[0] for cell in cells)
    rows = [_rows(each) for each in explanations]
    panels = 1 + max(len(row) for own in rows for row in own)
    heights = [
        (_HEADING if names else 0) + len(own) * (cell[1] + _CAPTION) + (len(own) - 1) * _GAP
        for own, cell in zip(rows, cells, strict=True)
    ]
    top = _MARGIN + (_TITLE if title else 0)
    inside = panels * (width + _GAP) + _SCALE
    legend = _lines(_legend(explanations[0]), _LEGEND, inside)
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + inside,
            top + sum(heights) + (len(heights) - 1) * 2 * _GAP + len(legend) * _FOOTER + _GAP + _MARGIN,
        ),
        _PAPER,
    )
    if title:
        _write(sheet, _MARGIN, _MARGIN - 8, title, 30, inside)
    for position, (explanation, own, cell, height) in enumerate(zip(explanations, rows, cells, heights, strict=True)):
        upper = top
        if names:
            _write(sheet, _MARGIN, upper, names[position], 22, inside)
            upper += _HEADING
        _draw_rows(sheet, upper, width, cell, explanation, own)
        top += height + 2 * _GAP
    for number, line in enumerate(legend):
        _write(sheet, _MARGIN, top - _GAP + number * _FOOTER, line, _LEGEND, inside, _FADED)
    return sheet


def _rows(explanation: Explanation) -> list[list[Evidence]]:
    """What is drawn of an image, in rows."""
    unknown = explanation.of_kind("unknown")
    labels = [*explanation.of_kind("label")[: MAX_PANELS - len(unknown)], *unknown]
    others: tuple[Kind, ...] = ("no", "negative")
    return [row for row in (labels, *(explanation.of_kind(kind)[:MAX_PANELS] for kind in others)) if row]


def _draw_rows(
    sheet: Image.Image,
    top: int,
    width: int,
    cell: tuple[int, int],
    explanation: Explanation,
    rows: Sequence[Sequence[Evidence]],
) -> None:
    """Draw the panels of one image."""
    picture = explanation.image.resize(cell, _resampling(explanation.image.size, cell))
    for number, row in enumerate(rows):
        low, high = _scale(explanation, [one for own in rows for one in own if _is_no(one) == _is_no(row[0])])
        if number == 0:
            sheet.paste(picture, (_MARGIN, top))
            _write_verdict(sheet, top + cell[1] + 4, width, explanation)
        else:
            _write(sheet, _MARGIN, top + cell[1] // 2 - 12, _KINDS[row[0].kind][0], 22, width, _FADED)
        for column, one in enumerate(row, start=1):
            left = _MARGIN + column * (width + _GAP)
            sheet.paste(overlay(picture, one.map, low, high), (left, top))
            name = one.text if _is_drawable(one.text) else f"{one.kind} {column}"
            _write(sheet, left, top + cell[1] + 4, _NAMES.get(one.kind, "{}").format(name), 20, width)
            numbers = f"{_KINDS[one.kind][1]} {one.probability:.2f}, cos {one.cosine:.2f}"
            _write(sheet, left, top + cell[1] + 30, numbers, 16, width, _FADED)
        _draw_scale(sheet, _MARGIN + (len(row) + 1) * (width + _GAP), top, cell[1], low, high)
        top += cell[1] + _CAPTION + _GAP


def _is_no(one: Evidence) -> bool:
    return one.kind == "no"


def _scale(explanation: Explanation, evidence: Sequence[Evidence]) -> tuple[float, float]:
    """The values of the darkest and of the brightest colour."""
    maps = torch.stack([one.map for one in evidence])
    has_zero = explanation.relative or explanation.path == "discrepancy"
    low = 0.0 if has_zero else float(maps.min())
    return low, max(float(maps.max()), low)


def _draw_scale(sheet: Image.Image, left: int, top: int, height: int, low: float, high: float) -> None:
    """Draw which colour stands for which value."""
    bar = _colour(torch.linspace(1, 0, height)[:, None].expand(height, _BAR))
    # As pale as the colours of the map are over a white image.
    sheet.paste(Image.blend(Image.new("RGB", bar.size, "white"), bar, _OPACITY), (left, top))
    for value, line in ((high, top - 2), (low, top + height - 16)):
        _write(sheet, left + _BAR + 6, line, f"{value:.2f}", 15, _SCALE - _BAR - 6, _FADED)


def _write_verdict(sheet: Image.Image, top: int, width: int, explanation: Explanation) -> None:
    result = explanation.result
    word = UNSURE if result["verdict"] == UNSURE else VERDICTS[result["is_ood"]].word
    _write(sheet, _MARGIN, top, f"{word} ({result['method']})", 20, width, VERDICTS[result["is_ood"]].color)
    _write(sheet, _MARGIN, top + 26, _compare_score(result["ood_score"], result["threshold"]), 16, width, _FADED)


def _compare_score(score: float, threshold: float | None) -> str:
    """Such as "OOD score 0.7412 > 0.7398", with as many digits as it takes to tell both apart, but not all of them."""
    if threshold is None:
        return f"OOD score {score:.4g}"
    digits = next((one for one in range(4, 8) if f"{score:.{one}g}" != f"{threshold:.{one}g}"), 4)
    return f"OOD score {score:.{digits}g} {'>' if score > threshold else '<='} {threshold:.{digits}g}"


def _legend(explanation: Explanation) -> str:
    """What the colours mean."""
    if explanation.path == "discrepancy":
        return (
            "bright: surgery says more than clip, each from its least to its largest value in each map, so that maps "
            "tell where, not how much; path discrepancy"
        )
    meaning = "bright: speaks for the text"
    if explanation.relative:
        meaning += ", more than for the labels on average" if len(explanation.of_kind("label")) else ""
        if explanation.of_kind("no"):
            meaning += ' ("no": more than for the label itself)'
    return f"{meaning}; path {explanation.path}"


def _colour(parts: Tensor) -> Image.Image:
    """Colours `(height, width)` of parts of the way from low to high."""
    table = torch.tensor([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in _COLOURS]).float()
    places = parts.clamp(0, 1) * (len(table) - 1)
    before = places.floor().long().clamp(max=len(table) - 2)
    rest = (places - before)[..., None]
    colours = (1 - rest) * table[before] + rest * table[before + 1]
    return Image.fromarray(colours.round().to(torch.uint8).contiguous().numpy())


def _fit(width: int, height: int) -> tuple[int, int]:
    """The size at which pictures of a size are drawn."""
    factor = _SIDE / max(width, height)
    if factor >= 1:
        return int(factor) * width, int(factor) * height
    return max(1, round(factor * width)), max(1, round(factor * height))


def _resampling(size: tuple[int, int], drawn: tuple[int, int]) -> Image.Resampling:
    return Image.Resampling.NEAREST if drawn[0] >= size[0] else Image.Resampling.LANCZOS


def _is_drawable(text: str) -> bool:
    """Whether anything is left of a text in letters that the font has."""
    return any(letter.isalnum() for letter in _drawable(text))


def _drawable(text: str) -> str:
    """Write the text in letters that the font has; without their accents letters stay readable."""
    letters = [letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)]
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in letters)


def _write(sheet: Image.Image, left: int, top: int, text: str, size: int, width: int, color: str = _INK) -> None:
    """Write a line of text in somewhat smaller letters if it does not fit, and cut what still does not."""
    text, least = _drawable(text), max(10, round(0.75 * size))
    while size > least and _font(size).getlength(text) > width:
        size -= 1
    font = _font(size)
    if font.getlength(text) > width:
        text = text[:width]  # Every letter is at least one pixel wide.
        while text and font.getlength(f"{text}…") > width:
            text = text[:-1]
        text = f"{text.rstrip()}…"
    ImageDraw.Draw(sheet).text((left, top), text, fill=color, font=font)


def _lines(text: str, size: int, width: int) -> list[str]:
    """Break a text into lines that fit; a word that does not is a line by itself."""
    first, *words = text.split()
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if _font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


__all__ = ["MAX_EXPLANATIONS", "MAX_PANELS", "draw_explanation", "draw_explanations", "overlay"]
