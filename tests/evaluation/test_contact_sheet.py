# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image, ImageColor

from clipn_hf.evaluation import contact_sheet as module
from clipn_hf.evaluation.contact_sheet import Tile, contact_sheet
from clipn_hf.verdicts import VERDICTS

GREEN, VERMILION, GREY = (ImageColor.getrgb(verdict.color) for verdict in VERDICTS.values())
BLUE = (10, 20, 200)


def tile(is_ood: bool | None = False, size: tuple[int, int] = (64, 64), label: str = "cat", **fields: object) -> Tile:
    return Tile(Image.new("RGB", size, BLUE), is_ood, 0.25, label, **fields)  # type: ignore[arg-type]


def count(sheet: Image.Image, color: tuple[int, ...]) -> int:
    return int((np.asarray(sheet) == color).all(axis=-1).sum())


@pytest.mark.parametrize(("is_ood", "color"), [(False, GREEN), (True, VERMILION), (None, GREY)])
def test_the_verdict_has_its_colour_and_its_word(is_ood: bool | None, color: tuple[int, ...]) -> None:
    sheet = contact_sheet([tile(is_ood)])
    assert sheet.mode == "RGB"
    assert count(sheet, color) > 8000
    for other in {GREEN, VERMILION, GREY} - {color}:
        assert count(sheet, other) == 0
    # Without colours, the words alone still make different pictures.
    words = {verdict: np.asarray(contact_sheet([tile(verdict)])).max(axis=-1) > 250 for verdict in (False, True, None)}
    for other in words.keys() - {is_ood}:
        assert (words[is_ood] != words[other]).any()


def test_size_follows_from_the_number_of_tiles_columns_and_headings() -> None:
    def size(count: int, **options: object) -> tuple[int, int]:
        return contact_sheet([tile()] * count, **options).size  # type: ignore[arg-type]

    assert size(3, columns=3)[0] - size(2, columns=3)[0] == size(2)[0] - size(1)[0] > 192
    assert size(4, columns=2) == (size(2)[0], 2 * size(1)[1] - (size(1)[1] - module._CARD_HEIGHT) + module._GAP)
    assert size(3, columns=2) == size(4, columns=2)
    assert size(1, title="Title")[1] > size(1)[1]
    assert size(1, subtitle="Subtitle")[1] > size(1)[1]
    groups = contact_sheet([tile(group="known"), tile(group="known"), tile(group="unknown")])
    assert groups.height > 2 * size(1)[1] - 2 * module._MARGIN
    assert groups.width == size(2)[0]


def test_small_pictures_are_magnified_by_whole_pixels() -> None:
    board = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    picture = np.asarray(module.fit_picture(board))
    assert picture.shape == (192, 192, 3)
    np.testing.assert_array_equal(picture, np.asarray(board).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((1, 1), (192, 192)),
        ((150, 100), (150, 100)),
        ((192, 192), (192, 192)),
        ((400, 200), (192, 96)),
        ((20_000, 20), (192, 1)),
        ((1, 20_000), (1, 192)),
    ],
)
def test_every_picture_fits_its_card(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert module.fit_picture(Image.new("RGB", size)).size == fitted
    assert count(contact_sheet([tile(size=size)]), BLUE) > 0.9 * fitted[0] * fitted[1]


def test_a_sheet_is_wide_enough_for_its_text_but_no_wider_than_a_full_row() -> None:
    title = "41 images: 26 known, 14 unknown, 1 unreadable"
    widths = [contact_sheet([tile()], columns=columns, title=title).width for columns in (1, 10, 20)]
    assert contact_sheet([tile()]).width == widths[0] < widths[1] == widths[2]
    assert contact_sheet([tile()] * 10).width > widths[1]


def test_long_text_is_shortened_to_its_place() -> None:
    label = "extraordinarily " * 20
    short, long = contact_sheet([tile()]), contact_sheet([tile(label=label)], columns=1, title="word " * 99)
    assert long.width == short.width
    # Beside the card and beside the title the paper stays blank.
    pixels = np.asarray(long)
    paper = np.array(ImageColor.getrgb(module._PAPER))
    for margin in (pixels[:, : module._MARGIN - 1], pixels[:, 1 - module._MARGIN :]):
        assert (margin == paper).all()


@pytest.mark.parametrize("label", ["café crème", "猫", "", "two\nlines", "🍕" * 50, "\udcff"])
def test_labels_of_any_kind(label: str) -> None:
    contact_sheet([tile(True, label=label, group=label, looks_like=label)], title=label, subtitle=label)


def test_accents_are_left_out() -> None:
    assert contact_sheet([tile(label="café")]).tobytes() == contact_sheet([tile(label="cafe")]).tobytes()


@pytest.mark.parametrize("is_ood", [True, None])
def test_what_a_picture_looks_like_stands_below_it_unless_it_is_known(is_ood: bool | None) -> None:
    told, silent = (contact_sheet([tile(is_ood, looks_like=text)]) for text in ("jellyfish", ""))
    assert told.height == silent.height + module._LOOKS_LIKE
    # All else stays where it is; the two lines are ink on the white of the card.
    above = module._MARGIN + module._CARD_HEIGHT - 20
    assert told.crop((0, 0, told.width, above)).tobytes() == silent.crop((0, 0, silent.width, above)).tobytes()
    added = np.asarray(told)[above : above + module._LOOKS_LIKE, module._MARGIN : module._MARGIN + module._CARD]
    assert (added.max(axis=-1) < 100).any()
    other = contact_sheet([tile(is_ood, looks_like="parachute")])
    assert other.size == told.size and other.tobytes() != told.tobytes()
    known = contact_sheet([tile(False, looks_like="jellyfish", mass=0.31)])
    assert known.tobytes() == contact_sheet([tile(False)]).tobytes()


@pytest.mark.parametrize("label", ["jellyfish", "extraordinarily " * 20, ""])
def test_the_mass_is_never_cut(label: str) -> None:
    one, other, none = (contact_sheet([tile(True, looks_like=label or "a", mass=mass)]) for mass in (0.31, 0.87, None))
    assert one.size == other.size == none.size
    assert len({one.tobytes(), other.tobytes(), none.tobytes()}) == 3
    if len(label) > 20:
        # What is cut ends at the same place, so that only the number differs.
        changed = np.flatnonzero((np.asarray(one) != np.asarray(other)).any(axis=(0, 2)))
        assert changed.min() > module._MARGIN + module._CARD // 2
        assert changed.max() < module._MARGIN + module._CARD


def test_all_cards_of_a_section_are_equally_high() -> None:
    tiles = [tile(group="a"), tile(True, group="b"), tile(True, group="b")]
    one_tells = [*tiles[:2], tile(True, group="b", looks_like="jellyfish")]
    heights = [contact_sheet(each, columns=1).height for each in (tiles, one_tells)]
    assert heights[1] - heights[0] == 2 * module._LOOKS_LIKE


def test_a_wrong_verdict_wears_a_cross() -> None:
    right, wrong, open_ = (contact_sheet([tile(correct=correct)]) for correct in (True, False, None))
    assert right.tobytes() == open_.tobytes() != wrong.tobytes()


def test_the_same_tiles_give_the_same_picture() -> None:
    tiles = [tile(False, group="a"), tile(True, correct=False, group="b")]
    assert contact_sheet(tiles, title="t").tobytes() == contact_sheet(tiles, title="t").tobytes()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`tiles` is empty; a contact sheet needs at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="`columns` must be at least 1, got 0"):
        contact_sheet([tile()], columns=0)
