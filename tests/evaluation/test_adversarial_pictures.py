# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from clipn_hf.evaluation import adversarial_pictures as module
from clipn_hf.evaluation.adversarial import AdversarialImages
from clipn_hf.evaluation.adversarial_pictures import choose_amplification, draw_similarities, side_by_side
from clipn_hf.evaluation.figures import MISSING


def make_attack(count: int = 2, side: int = 32, change: float = 0.1, smoothness: float = 0.0) -> AdversarialImages:
    """Grey images that become lighter by `change`, and white targets."""
    originals = torch.full((count, 3, side, side), 0.5)
    settings = {"steps": 4, "lr": 1e-3, "init_std": 1e-3, "smoothness": smoothness, "seed": 0}
    return AdversarialImages(
        images=originals + change,
        originals=originals,
        targets=torch.ones(count, 3, side, side),
        target_rows=torch.arange(count),
        original_similarities=torch.full((count,), 0.15),
        similarities=torch.linspace(0.2, 0.9, 5)[:, None].expand(5, count).contiguous(),
        saved_similarities=torch.full((count,), 0.89),
        settings=settings,
        encoder={"id": "org/some-clip"},
    )


def texts_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A list that what is written on sheets comes to, with the size of its letters."""
    found: list[tuple[str, int]] = []
    write = module._write

    def note(sheet: Image.Image, left: int, top: int, text: str, size: int, width: int, *color: str) -> None:
        found.append((text, module._fitting_size(text, size, width)))
        write(sheet, left, top, text, size, width, *color)

    monkeypatch.setattr(module, "_write", note)
    return found


def columns(sheet: Image.Image, colour: int) -> list[int]:
    """Where pixels are of a grey, from left to right."""
    found = (np.asarray(sheet) == colour).all(axis=-1).any(axis=0)
    return np.flatnonzero(found).tolist()


def test_original_image_perturbation_and_target() -> None:
    sheet = side_by_side(make_attack(), amplification=2)
    assert sheet.mode == "RGB"
    # 0.5, 0.6, 0.5 + 2 * 0.1 and 1, of 255; 32 pixels are magnified to 192.
    lefts = []
    for colour in (128, 153, 179, 255):
        found = columns(sheet, colour)
        assert len(found) == 192
        lefts.append(found[0])
    assert lefts == sorted(lefts)


def test_a_row_for_each_image_and_room_for_a_title() -> None:
    one, two = (side_by_side(make_attack(count)) for count in (1, 2))
    many = side_by_side(make_attack(30))
    step = two.height - one.height
    assert step > 192
    assert many.height == one.height + 7 * step
    assert side_by_side(make_attack(30), rows=[29]).size == one.size
    assert side_by_side(make_attack(1), title="").height < one.height
    assert one.width == two.width


def test_words_say_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = texts_of(monkeypatch)
    side_by_side(make_attack(1), ([0.5], [0.25]), amplification=1000)
    texts = [text for text, _ in found]
    assert texts == [
        "patchy attack on org/some-clip",
        "original",
        "adversarial",
        "perturbation, 1000-fold",
        "target",
        # Of the image itself, not with the first noise.
        "cos 0.150, score 0.5",
        "cos 0.890, score 0.25",
        "at most 26 of 255",
        "",
        "cos: cosine with the target; score: OOD score, higher = more OOD",
    ]
    assert len({size for _, size in found[1:5]}) == 1
    found.clear()
    side_by_side(make_attack(1), title="Emoji")
    assert (found[0][0], found[-1][0]) == ("Emoji", "cos: cosine with the target")


def test_large_pictures_are_scaled_down() -> None:
    sheet = side_by_side(make_attack(1, side=448), amplification=2)
    assert len(columns(sheet, 179)) == 192


def test_scores_are_written() -> None:
    attack = make_attack(1)
    plain, low, high = (
        np.asarray(side_by_side(attack, scores)) for scores in (None, ([0.5], [0.25]), ([0.5], [0.75]))
    )
    assert (plain != low).any() and (low != high).any()
    assert low.shape == plain.shape


@pytest.mark.parametrize(("change", "factor"), [(0.5, 1.0), (0.2, 2.0), (0.04, 10.0), (0.004, 100.0), (0.0, 1000.0)])
def test_the_amplification_fits_the_perturbation(change: float, factor: float) -> None:
    assert choose_amplification(torch.full((1, 3, 8, 8), -change)) == factor


def test_the_amplification_is_stated() -> None:
    """So that two pictures which differ in nothing else are different."""
    ten, same, five = (np.asarray(side_by_side(make_attack(change=0), amplification=each)) for each in (10, 10, 5))
    np.testing.assert_array_equal(ten, same)
    assert (ten != five).any()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="`scores` must be one per image, got 1 for 2 images"):
        side_by_side(make_attack(2), ([0.5], [0.5]))
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="`amplification` must be above 0"):
            side_by_side(make_attack(2), amplification=bad)
    with pytest.raises(ValueError, match="`rows` is empty"):
        side_by_side(make_attack(2), rows=[])
    for row in (2, -1):
        with pytest.raises(ValueError, match=f"`rows` must be positions of images, from 0 to 1, got {row}."):
            side_by_side(make_attack(2), rows=[row])


def test_a_curve_for_each_attack() -> None:
    figure = draw_similarities([make_attack(), make_attack(smoothness=5e3)])
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["patchy", "smooth-5000"]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), dtype=float), np.linspace(0.2, 0.9, 5), rtol=1e-6)
    assert axes.get_xlim() == (0, 4)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "median and middle 80 % of the images"
    with pytest.raises(ValueError, match="`attacks` is empty"):
        draw_similarities([])


def test_an_attack_has_its_colour() -> None:
    """Whatever is drawn beside it."""

    def colours(*weights: float) -> dict[str, object]:
        (axes,) = draw_similarities([make_attack(smoothness=weight) for weight in weights]).axes
        return {str(line.get_label()): line.get_color() for line in axes.lines}

    every = colours(5e3, 4e2, 0)
    assert len(set(every.values())) == 3
    assert colours(0) | colours(5e3) == {name: every[name] for name in ("patchy", "smooth-5000")}
    assert colours(0, 5e3) == {name: every[name] for name in ("patchy", "smooth-5000")}


def test_curves_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="Figures need matplotlib") as caught:
        draw_similarities([make_attack()])
    assert str(caught.value) == MISSING
