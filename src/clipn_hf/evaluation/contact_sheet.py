# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Contact sheet: what a detector said about each picture, to be taken in at a glance.

Every picture sits in a card. Its frame and the band under it carry the verdict twice, in colour and in words: bluish
green for known, vermilion for unknown, grey where a method gave no verdict. Under pictures that are not known it says
what they look like, where there are negative labels. Verdicts that are known to be wrong wear a cross.
"""

import functools
import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..verdicts import VERDICTS

_PICTURE = 192  # Side of the square that a picture is fitted into.
_FRAME = 9
_CARD = _PICTURE + 2 * _FRAME
_BAND = 36
_TEXT = 82
_CARD_HEIGHT = _CARD + _BAND + _TEXT
_LOOKS_LIKE = 58  # Two more lines of text.
_BADGE = 48
_GAP = 22
_MARGIN = 64
_TITLE, _SUBTITLE, _HEADING = 80, 60, 88

_PAPER = "#F3F4F6"
_RULE = "#D5D9DF"
_INK = "#1A1F26"
_FADED = "#5A6472"


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet and what was found out about it.

    Args:
        image (`PIL.Image.Image`): The picture, mode RGB, of any size.
        is_ood (`bool` or `None`): The verdict, `None` where the method gave none.
        ood_score (`float`): Higher = more OOD.
        label (`str`): The nearest label.
        correct (`bool`, *optional*): Whether the verdict is right, `None` where the truth is not known.
        group (`str`, *optional*, defaults to `""`): Heading of the section that the picture belongs to.
        word (`str`, *optional*): What the verdict is called, by default as `VERDICTS` says.
        looks_like (`str`, *optional*, defaults to `""`):
            The negative label that the picture looks most like, such as "jellyfish"; shown unless it is known.
        mass (`float`, *optional*): The probability of that label, written after it.
    """

    image: Image.Image
    is_ood: bool | None
    ood_score: float
    label: str
    correct: bool | None = None
    group: str = ""
    word: str | None = None
    looks_like: str = ""
    mass: float | None = None


def contact_sheet(
    tiles: Sequence[Tile], columns: int = 10, title: str | None = None, subtitle: str | None = None
) -> Image.Image:
    """Draw pictures with their verdict, score and nearest label.

    The label of a picture judged unknown is only the nearest of those there are: it gets a question mark, and below it
    stands what the picture looks like, if any tile of the section tells that.
    Tiles appear in the order given. Neighbours of the same `group` form a section under its heading. Pictures are
    scaled to fit 192×192 pixels: large ones down with antialiasing, small ones up by a whole factor, pixel by pixel.
    Text that does not fit is shortened. The font is the one that ships with Pillow. It has ASCII letters only:
    accents are left out, letters of other scripts become question marks.

    Args:
        tiles (sequence of `Tile`): At least one.
        columns (`int`, *optional*, defaults to `10`): Pictures in a full row, at least 1.
        title (`str`, *optional*): Headline.
        subtitle (`str`, *optional*): Smaller line under it.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: There are no tiles, or `columns` is less than 1.
    """
    if not tiles:
        raise ValueError("`tiles` is empty; a contact sheet needs at least one.")
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    sections = [(group, list(members)) for group, members in itertools.groupby(tiles, key=lambda tile: tile.group)]
    # With few pictures the sheet is only as wide as they are, or as the text above them is.
    lengths = [_font(size).getlength(_drawable(text or "")) for text, size in ((title, 56), (subtitle, 30))]
    lengths += [_font(34).getlength(_drawable(group)) for group, _ in sections]
    used = min(columns, max(len(members) for _, members in sections))
    width = min(columns * (_CARD + _GAP), max(used * (_CARD + _GAP), math.ceil(max(lengths)) + _GAP + 2)) - _GAP
    header = (_TITLE if title else 0) + (_SUBTITLE if subtitle else 0)
    card_heights = [_CARD_HEIGHT + (_LOOKS_LIKE if any(map(_says_what, members)) else 0) for _, members in sections]
    heights = [
        (_HEADING if group else 0) + math.ceil(len(members) / columns) * (card_height + _GAP) + _GAP
        for (group, members), card_height in zip(sections, card_heights, strict=True)
    ]

    sheet = Image.new("RGB", (width + 2 * _MARGIN, header + sum(heights) - 2 * _GAP + 2 * _MARGIN), _PAPER)
    if title:
        _write(sheet, _MARGIN, _MARGIN - 14, title, size=56, width=width, bold=True)
    if subtitle:
        _write(sheet, _MARGIN, _MARGIN + header - _SUBTITLE - 6, subtitle, size=30, width=width, color=_FADED)
    top = _MARGIN + header
    for (group, members), height, card_height in zip(sections, heights, card_heights, strict=True):
        cards_top = top
        if group:
            ImageDraw.Draw(sheet).rectangle((_MARGIN, top, _MARGIN + width - 1, top + 2), fill=_RULE)
            _write(sheet, _MARGIN, top + 18, group, size=34, width=width, bold=True)
            cards_top += _HEADING
        for index, tile in enumerate(members):
            row, column = divmod(index, columns)
            left = _MARGIN + column * (_CARD + _GAP)
            _draw_card(sheet, left, cards_top + row * (card_height + _GAP), card_height, tile)
        top += height
    return sheet


def fit_picture(image: Image.Image) -> Image.Image:
    """Scale a picture to its size on a contact sheet, where it is not scaled again.

    Args:
        image (`PIL.Image.Image`): Of any size; mode RGB.

    Returns:
        `PIL.Image.Image` of at most 192×192 pixels and the same proportions; `image` itself where its longer side is
        more than half of that already, and not more.
    """
    factor = _PICTURE / max(image.size)
    if factor >= 2:
        return image.resize((int(factor) * image.width, int(factor) * image.height), Image.Resampling.NEAREST)
    if factor >= 1:
        return image
    width, height = (max(1, round(factor * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _says_what(tile: Tile) -> bool:
    return bool(tile.looks_like) and tile.is_ood is not False


def _draw_card(sheet: Image.Image, left: int, top: int, height: int, tile: Tile) -> None:
    verdict, color = VERDICTS[tile.is_ood]
    verdict = tile.word or verdict
    band_bottom = top + _CARD + _BAND
    sheet.paste("white", (left, top), _rounded(_CARD, height))
    # The frame's lower corners are square, where it meets the white below.
    sheet.paste(color, (left, top), _rounded(_CARD, height).crop((0, 0, _CARD, _CARD + _BAND)))
    sheet.paste("white", (left + _FRAME, top + _FRAME, left + _FRAME + _PICTURE, top + _FRAME + _PICTURE))
    picture = fit_picture(tile.image)
    sheet.paste(picture, (left + (_CARD - picture.width) // 2, top + (_CARD - picture.height) // 2))
    _write(sheet, left, top + _CARD - 5, verdict.upper(), size=27, width=_CARD, color="white", bold=True, center=True)
    label, label_color = (f"{tile.label}?", _FADED) if tile.is_ood else (tile.label, _INK)
    _write(sheet, left + 10, band_bottom + 9, label, size=26, width=_CARD - 20, color=label_color, center=True)
    score = f"score {tile.ood_score:.3f}"
    _write(sheet, left + 10, band_bottom + 44, score, size=22, width=_CARD - 20, color=_FADED, center=True)
    if _says_what(tile):
        width = _CARD - 20
        _write(sheet, left + 10, band_bottom + 78, "looks like", size=20, width=width, color=_FADED, center=True)
        mass = "" if tile.mass is None else f" ({tile.mass:.2f})"
        _write(sheet, left + 10, band_bottom + 103, tile.looks_like, size=22, width=width, center=True, end=mass)
    if tile.correct is False:
        sheet.paste("white", (left + _CARD - 36, top - 12), _cross()[0])
        sheet.paste(_INK, (left + _CARD - 36, top - 12), _cross()[1])


def _write(
    sheet: Image.Image,
    left: int,
    top: int,
    text: str,
    *,
    size: int,
    width: int,
    color: str = _INK,
    bold: bool = False,
    center: bool = False,
    end: str = "",
) -> None:
    """Write a line of text, of which what does not fit is cut; `end` comes after it and stays whole."""
    font = _font(size)
    text = _drawable(text)
    # One weight is all there is: an outline of the same colour makes the bold one.
    stroke = size / 40 if bold else 0
    if font.getlength(text + end) > width:
        text = text[:width]  # Every letter is at least one pixel wide.
        while text and font.getlength(f"{text}…{end}") > width:
            text = text[:-1]
        text = f"{text.rstrip()}…"
    text += end
    if center:
        left += round((width - font.getlength(text)) / 2)
    ImageDraw.Draw(sheet).text((left, top), text, fill=color, font=font, stroke_width=stroke)


def _drawable(text: str) -> str:
    """Write the text in letters that the font has; without their accents letters stay readable."""
    letters = [letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)]
    return "".join(letter if letter.isascii() or letter in "…·‘’“”" else "?" for letter in letters)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@functools.cache
def _rounded(width: int, height: int) -> Image.Image:
    """Draw the mask of a rectangle with round corners."""
    # Pillow draws curves with steps: drawn larger and scaled down they are smooth.
    mask = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=4 * 18, fill=255)
    return mask.reduce(4)


@functools.cache
def _cross() -> tuple[Image.Image, Image.Image]:
    """Draw the masks of a disc and of a cross in a slightly smaller disc."""
    side = 4 * _BADGE
    disc, cross = Image.new("L", (side, side)), Image.new("L", (side, side))
    ImageDraw.Draw(disc).ellipse((0, 0, side - 1, side - 1), fill=255)
    draw = ImageDraw.Draw(cross)
    draw.ellipse((16, 16, side - 17, side - 17), fill=255)
    near, far = 0.34 * side, 0.66 * side
    for start, end in (((near, near), (far, far)), ((near, far), (far, near))):
        draw.line((*start, *end), fill=0, width=20)
    return disc.reduce(4), cross.reduce(4)
