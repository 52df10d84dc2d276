# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of adversarial OOD images: beside what they were, and how they approach their targets."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .adversarial import AdversarialImages, to_pictures
from .figures import MISSING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROWS = 8
COLUMNS = ("original", "adversarial", "perturbation", "target")

_SIDE = 192  # Of the square that a picture is fitted into
_GAP = 16
_MARGIN = 40
_HEADING = 44
_TITLE = 60
_CAPTION = 30
_PAPER, _INK, _FADED = "#F3F4F6", "#1A1F26", "#5A6472"
_LEGEND = 18
# Colour and line of an attack are the same in every figure; those of other weights come after the two of the paper.
_STYLES = {"smooth-5000": ("#0072B2", "-"), "patchy": ("#D55E00", "--")}
_OTHER_STYLES = (("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", "-."), ("#56B4E9", ":"), ("#000000", "-."))


def side_by_side(
    attack: AdversarialImages,
    scores: tuple[Sequence[float], Sequence[float]] | None = None,
    *,
    title: str | None = None,
    rows: Sequence[int] | None = None,
    amplification: float | None = None,
) -> Image.Image:
    """Draw original, adversarial image, amplified perturbation and target beside each other, one row per image.

    Perturbations are drawn around a middle grey, which is no change. Below the pictures stand cosines with the target
    and, if they are given, scores; what these are is said at the bottom. Small pictures are magnified pixel by pixel,
    large ones scaled down.

    Args:
        attack ([`~clipn_hf.evaluation.adversarial.AdversarialImages`]): What to draw.
        scores (`tuple` of two `Sequence[float]`, *optional*):
            OOD-ness of the images before and after the attack; higher = more OOD.
        title (`str`, *optional*): Headline, by default the attack and the model; none if it is empty.
        rows (`Sequence[int]`, *optional*): Which images to draw, by default the first 8.
        amplification (`float`, *optional*):
            The factor of the perturbations, which the heading states; by default the largest of 1, 2, 5, 10, … with
            which 99 % of the changes stay in range.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: There is nothing to draw, no image at one of `rows`, not one score per image, or `amplification` is
            not above 0.
    """
    rows = list(range(min(MAX_ROWS, len(attack)))) if rows is None else list(rows)
    if not rows:
        raise ValueError("`rows` is empty; give the position of at least one image.")
    for row in rows:
        if not 0 <= row < len(attack):
            raise ValueError(f"`rows` must be positions of images, from 0 to {len(attack) - 1}, got {row}.")
    if title is None:
        model = attack.encoder["id"]
        title = f"{attack.name} attack" + ("" if model is None else f" on {model}")
    for kind in scores or ():
        if len(kind) != len(attack):
            raise ValueError(f"`scores` must be one per image, got {len(kind)} for {len(attack)} images.")
    perturbations = attack.perturbations[rows]
    if amplification is None:
        amplification = choose_amplification(perturbations)
    elif not (math.isfinite(amplification) and amplification > 0):
        raise ValueError(f"`amplification` must be above 0, got {amplification}.")
    shown = {
        "original": attack.originals[rows],
        "adversarial": attack.images[rows],
        "perturbation": (0.5 + amplification * perturbations).clamp(0, 1),
        "target": attack.targets[rows],
    }
    pictures = {name: to_pictures(colours) for name, colours in shown.items()}
    width, height = _fit(*pictures["original"][0].size)
    line = height + _CAPTION + _GAP
    top = _MARGIN + (_TITLE if title else 0)
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + len(COLUMNS) * (width + _GAP) - _GAP,
            top + _HEADING + len(rows) * line + _LEGEND + 8 + _MARGIN,
        ),
        _PAPER,
    )
    if title:
        _write(sheet, _MARGIN, _MARGIN - 8, title, 30, sheet.width - 2 * _MARGIN)
    lefts = [_MARGIN + index * (width + _GAP) for index in range(len(COLUMNS))]
    # The font of Pillow has no sign of multiplication.
    headings = [f"{name}, {amplification:g}-fold" if name == "perturbation" else name for name in COLUMNS]
    # Of one size, however long the longest is.
    size = min(_fitting_size(heading, 24, width) for heading in headings)
    for left, heading in zip(lefts, headings, strict=True):
        _write(sheet, left, top, heading, size, width)
    for position, row in enumerate(rows):
        upper = top + _HEADING + position * line
        captions = {
            "original": f"cos {attack.original_similarities[row]:.3f}",
            "adversarial": f"cos {attack.saved_similarities[row]:.3f}",
            "perturbation": f"at most {255 * attack.linf[row]:.0f} of 255",
            "target": "",
        }
        if scores is not None:
            captions["original"] += f", score {scores[0][row]:.3g}"
            captions["adversarial"] += f", score {scores[1][row]:.3g}"
        for left, name in zip(lefts, COLUMNS, strict=True):
            picture = pictures[name][position]
            sheet.paste(picture.resize((width, height), _resampling(picture.size, (width, height))), (left, upper))
            _write(sheet, left, upper + height + 3, captions[name], 18, width, _FADED)
    legend = "cos: cosine with the target" + ("" if scores is None else "; score: OOD score, higher = more OOD")
    bottom = top + _HEADING + len(rows) * line
    _write(sheet, _MARGIN, bottom, legend, _LEGEND, sheet.width - 2 * _MARGIN, _FADED)
    return sheet


def choose_amplification(perturbations: Tensor) -> float:
    """Find by which factor to draw perturbations.

    Args:
        perturbations (`torch.Tensor`): Changes of colours in [0, 1].

    Returns:
        `float`: The largest of 1, 2, 5, 10, …, 1000 with which 99 % of them stay within a half.
    """
    ordered = perturbations.abs().flatten().sort().values
    usual = float(ordered[math.ceil(0.99 * (len(ordered) - 1))])
    factors = [digit * 10.0**power for power in range(3) for digit in (1, 2, 5)] + [1000.0]
    return max((factor for factor in factors if factor * usual <= 0.5), default=1.0)


def draw_similarities(attacks: Sequence[AdversarialImages]) -> "Figure":
    """Draw how attacked images approach their targets: the median cosine over the steps, and the middle 80 %.

    The legend says so. The attacks of the paper, smooth-5000 and patchy, have the same colours in every figure.

    Args:
        attacks (`Sequence` of [`~clipn_hf.evaluation.adversarial.AdversarialImages`]): At least one.

    Returns:
        `matplotlib.figure.Figure`: It belongs to nobody else.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `attacks` is empty.
    """
    if not attacks:
        raise ValueError("`attacks` is empty; give at least one to draw.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(MISSING) from error
    figure = Figure(figsize=(5.4, 3.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    others = itertools.cycle(_OTHER_STYLES)
    for attack in attacks:
        color, line = _STYLES.get(attack.name) or next(others)
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        low, middle, high = attack.similarities.double().quantile(levels, dim=1).numpy()
        steps = range(len(middle))
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=color, linestyle=line, linewidth=1.6, label=attack.name)
    axes.set_xlim(0, max(len(attack.similarities) for attack in attacks) - 1)
    axes.set_ylim(top=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", fontsize=9, color=_INK)
    axes.set_ylabel("cosine with the target", fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_FADED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#D5D9DF", linewidth=0.5)
    legend = figure.legend(
        title="median and middle 80 % of the images" if any(len(attack) > 1 for attack in attacks) else None,
        title_fontsize=8,
        fontsize=8,
        frameon=False,
        loc="outside upper right",
        ncols=3,
        labelcolor=_INK,
    )
    legend.get_title().set_color(_FADED)
    return figure


def _fit(width: int, height: int) -> tuple[int, int]:
    """The size at which pictures of a size are drawn."""
    factor = _SIDE / max(width, height)
    if factor >= 1:
        return int(factor) * width, int(factor) * height
    return max(1, round(factor * width)), max(1, round(factor * height))


def _resampling(size: tuple[int, int], drawn: tuple[int, int]) -> Image.Resampling:
    return Image.Resampling.NEAREST if drawn[0] >= size[0] else Image.Resampling.LANCZOS


def _fitting_size(text: str, size: int, width: int) -> int:
    """The size of letters in which a line fits, at most `size`."""
    while size > 8 and _font(size).getlength(text) > width:
        size -= 1
    return size


def _write(sheet: Image.Image, left: int, top: int, text: str, size: int, width: int, color: str = _INK) -> None:
    """Write a line of text, in smaller letters if it does not fit."""
    font = _font(_fitting_size(text, size, width))
    ImageDraw.Draw(sheet).text((left, top), text, fill=color, font=font)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


__all__ = ["COLUMNS", "MAX_ROWS", "choose_amplification", "draw_similarities", "side_by_side"]
