# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of similarity maps: colours mean values, and any text can be drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from clipn_hf import heat_maps
from clipn_hf.heat_maps import MAX_EXPLANATIONS, MAX_PANELS, draw_explanation, draw_explanations, overlay
from clipn_hf.similarity_maps import Evidence, Explanation, Kind

WHITE = Image.new("RGB", (64, 64), "white")


def brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")).astype(int)


def evidence(text: str, kind: Kind = "label", peak: float = 0.3) -> Evidence:
    map_ = torch.zeros(8, 8)
    map_[2, 5] = peak
    return Evidence(kind, text, 0.5, 0.25, map_)


def explanation(*found: Evidence, size: tuple[int, int] = (64, 64), relative: bool = True) -> Explanation:
    result = {"verdict": "known", "is_ood": False, "ood_score": 0.25, "method": "atd", "threshold": None}
    return Explanation(Image.new("RGB", size, "white"), result, found, "surgery", relative)


# One map


def test_colours_get_brighter_with_the_value() -> None:
    values = torch.linspace(-1, 1, 64)[None].expand(2, 64)
    row = brightness(overlay(WHITE, values))[0]
    assert (np.diff(row) >= 0).all()
    assert row[-1] - row[0] > 100
    # Equal steps look equally large: no part of the way stands out.
    steps = np.diff(row[::9])
    assert steps.min() > 0.4 * steps.max()


def test_scale_is_that_which_is_given() -> None:
    values = torch.tensor([[0.2, 0.2], [0.2, 0.2]])
    low, middle, high = (
        brightness(overlay(WHITE, values, *scale)).mean() for scale in ((0.2, 1.0), (0.0, 0.4), (0.0, 0.2))
    )
    assert low < middle < high
    # Values beyond it have the colours of its ends.
    assert brightness(overlay(WHITE, values, 0.5, 1.0)).mean() == low
    assert brightness(overlay(WHITE, values, 0.0, 0.1)).mean() == high
    assert brightness(overlay(WHITE, values)).mean() == low


def test_maps_lie_where_their_patches_are() -> None:
    for row, column in ((0, 0), (2, 5), (7, 3)):
        values = torch.zeros(8, 8)
        values[row, column] = 1.0
        for size in ((64, 64), (192, 128)):
            found = brightness(overlay(Image.new("RGB", size, "white"), values))
            top, left = np.argwhere(found == found.max()).mean(axis=0)
            assert top * 8 / size[1] == pytest.approx(row + 0.5, abs=0.51)
            assert left * 8 / size[0] == pytest.approx(column + 0.5, abs=0.51)


def test_opacity() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    values = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    bare, covered = np.asarray(overlay(image, values, opacity=0)), np.asarray(overlay(image, values, opacity=1))
    assert (bare[..., 0] == bare[..., 1]).all()
    assert np.corrcoef(bare[..., 0].ravel(), brightness(image).ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(covered, np.asarray(overlay(WHITE, values, opacity=1)))
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`opacity` must be between 0 and 1"):
            overlay(image, values, opacity=wrong)
    with pytest.raises(ValueError, match=r"`values` must be of shape \(rows, columns\), got \(3,\)"):
        overlay(image, torch.ones(3))


# Panels


def test_kinds_have_a_row_each() -> None:
    labels = [evidence(text) for text in ("cat", "dog")]
    no, negative = evidence("cat", "no"), evidence("x", "negative")
    heights = []
    for found in (labels, [*labels, negative], [*labels, no], [*labels, no, negative]):
        picture = draw_explanation(explanation(*found))
        assert picture.mode == "RGB"
        heights.append(picture.height)
    assert heights[1] - heights[0] == heights[3] - heights[2] > 192
    # With "no" the legend is longer, too.
    assert heights[2] - heights[0] > 192
    wide, narrow = draw_explanation(explanation(*labels)), draw_explanation(explanation(labels[0]))
    assert wide.width - narrow.width > 192


def test_the_unknown_prompt_stands_beside_the_labels() -> None:
    labels = [evidence(text) for text in ("cat", "dog")]
    prompt = evidence("unknown", "unknown")
    found, usual = draw_explanation(explanation(*labels, prompt)), draw_explanation(explanation(*labels))
    assert (found.height, found.width - usual.width) == (usual.height, 208)
    # Unlike a label of that name.
    other = draw_explanation(explanation(*labels, evidence("unknown")))
    assert other.size == found.size
    assert ImageChops.difference(found, other).getbbox() is not None
    # It is not lost among many labels.
    many = [evidence(f"label {number}") for number in range(MAX_PANELS + 5)]
    lost, kept = draw_explanation(explanation(*many)), draw_explanation(explanation(*many, prompt))
    assert lost.size == kept.size
    assert ImageChops.difference(lost, kept).getbbox() is not None


@pytest.mark.parametrize(
    ("score", "threshold", "text"),
    [
        (0.741234, None, "OOD score 0.7412"),
        (0.741234, 0.5, "OOD score 0.7412 > 0.5"),
        (0.1, 0.5, "OOD score 0.1 <= 0.5"),
        (0.741234, 0.741201, "OOD score 0.74123 > 0.7412"),
        (0.25, 0.25, "OOD score 0.25 <= 0.25"),
    ],
)
def test_scores_can_be_told_from_their_threshold(score: float, threshold: float | None, text: str) -> None:
    assert heat_maps._compare_score(score, threshold) == text


def test_legend_says_how_maps_are_scaled() -> None:
    one = explanation(evidence("cat"))
    assert "from its least to its largest value" not in heat_maps._legend(one)
    found = heat_maps._legend(replace(one, path="discrepancy", relative=False))
    assert "each from its least to its largest value in each map" in found


@pytest.mark.parametrize("path", ["surgery", "discrepancy"])
@pytest.mark.parametrize("size", [(64, 64), (16, 64)])
def test_legend_of_a_narrow_picture_is_broken_into_lines(
    path: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = heat_maps._write

    def record(sheet: Image.Image, left: int, top: int, text: str, size: int, width: int, *color: str) -> None:
        written.append((top, text, heat_maps._font(size).getlength(text) <= width))
        write(sheet, left, top, text, size, width, *color)

    monkeypatch.setattr(heat_maps, "_write", record)
    one = replace(explanation(evidence("cat"), evidence("cat", "no"), size=size), path=path)
    picture = draw_explanation(one)
    legend = heat_maps._legend(one)
    lines = [line for line in written if line[0] > picture.height - 200 and line[1] in legend]
    assert " ".join(text for _, text, _ in lines) == legend
    assert len(lines) > 1
    assert all(fits for *_, fits in lines)
    # The last of them, too, is on the picture, above its margin.
    assert np.diff([top for top, *_ in lines]).min() >= heat_maps._LEGEND
    assert lines[-1][0] + heat_maps._LEGEND <= picture.height - 32


def test_images_lie_below_each_other_under_their_names() -> None:
    one = explanation(evidence("cat"))
    single, double = draw_explanations([one]), draw_explanations([one, one])
    assert double.height - single.height > 192
    named = draw_explanations([one, one], ["a.jpg", "b.jpg"], "What it looked at")
    assert named.height > double.height
    assert named.width == double.width
    # Of another shape each.
    mixed = draw_explanations(
        [one, explanation(evidence("cat"), size=(96, 32)), explanation(evidence("cat"), size=(500, 300))]
    )
    assert mixed.width == single.width


def test_maps_of_labels_and_negative_labels_share_their_scale() -> None:
    alone = draw_explanation(explanation(evidence("cat", peak=0.3)))
    beside = draw_explanation(explanation(evidence("cat", peak=0.3), evidence("dog", peak=3.0)))
    panel = (32 + 192 + 16, 32, 32 + 192 + 16 + 192, 32 + 192)
    assert brightness(beside.crop(panel)).max() < brightness(alone.crop(panel)).max() - 40
    for kind, is_shared in (("negative", True), ("no", False)):
        below = draw_explanation(explanation(evidence("cat", peak=0.3), evidence("dog", kind, peak=3.0)))
        same = ImageChops.difference(below.crop(panel), (beside if is_shared else alone).crop(panel))
        assert same.getbbox() is None
    # Where nothing is compared there is no 0 to begin at.
    raised = replace(evidence("cat"), map=evidence("cat").map + 0.2)
    plain, relative = (draw_explanation(explanation(raised, relative=kind)).crop(panel) for kind in (False, True))
    assert np.median(brightness(plain)) < np.median(brightness(relative)) - 20


def test_any_text_can_be_drawn() -> None:
    usual = draw_explanation(explanation(evidence("cat"), evidence("dog")))
    for text in ("crème brûlée", "a" * 500, "w i d e " * 40, "猫", "🐱", "", "x\ny", "\x1b[2J", "\ud800"):
        picture = draw_explanations([explanation(evidence(text), evidence("dog"))], [text], text)
        assert picture.width == usual.width
        # Long texts end before the next panel.
        below = (432, picture.height - 130, 448, picture.height - 80)
        assert len(set(brightness(picture.crop(below)).ravel())) == 1
    accented, bare = (draw_explanation(explanation(evidence(text))) for text in ("crème", "creme"))
    assert ImageChops.difference(accented, bare).getbbox() is None
    # What the font has no letters for is called by its number.
    chinese, numbered, other = (draw_explanation(explanation(evidence(text))) for text in ("猫", "label 1", "dog"))
    assert ImageChops.difference(chinese, numbered).getbbox() is None
    assert ImageChops.difference(chinese, other).getbbox() is not None


def test_a_verdict_that_is_none() -> None:
    for verdict, is_ood in (("unsure", None), ("undecided", None), ("unknown", True)):
        one = explanation(evidence("cat"))
        result = {**one.result, "verdict": verdict, "is_ood": is_ood}
        assert draw_explanation(replace(one, result=result)).size == draw_explanation(one).size


def test_limits() -> None:
    one = explanation(evidence("cat"))
    many = explanation(*(evidence(f"label {number}") for number in range(MAX_PANELS + 5)))
    assert draw_explanation(many).width < (MAX_PANELS + 2) * 208 + 64
    for wrong in ([], [one] * (MAX_EXPLANATIONS + 1)):
        with pytest.raises(ValueError, match="`explanations` must be at least 1 and at most 50, got"):
            draw_explanations(wrong)
    with pytest.raises(ValueError, match="`names` must be one per explanation, got 1 for 2"):
        draw_explanations([one, one], ["a"])
