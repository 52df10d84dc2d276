# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import io
import itertools

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from clipn_hf.evaluation import image_hashes as module
from clipn_hf.evaluation.image_hashes import near_pairs, perceptual_hashes, thumbnail, tints


def scene(seed: int, size: int = 96) -> Image.Image:
    """A picture with coarse shapes and fine detail."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = coarse.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = generator.integers(0, size, 2).tolist()
        color = tuple(generator.integers(0, 256, 3).tolist())
        draw.ellipse((x, y, x + size // 6, y + size // 6), fill=color)
    return image


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def find_pairs(images: list[Image.Image], groups: list[int] | None = None) -> set[tuple[int, int]]:
    small, colours = (np.stack([function(image) for image in images]) for function in (thumbnail, tints))
    found = [
        pair
        for first, second in near_pairs(small, colours, np.array(groups or [0] * len(images)))
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    return set(found)


COPIES = {
    "jpeg": lambda image: recompressed(image, 60),
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "larger": lambda image: recompressed(image.resize((224, 224), Image.Resampling.BICUBIC), 85),
    "wider": lambda image: image.resize((120, 96), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(copy: str) -> None:
    originals = [scene(seed) for seed in range(20)]
    copies = [COPIES[copy](image) for image in originals]
    assert find_pairs(originals + copies) == {(place, place + 20) for place in range(20)}


def test_symmetric_drawings_are_found() -> None:
    """Half of the frequencies of such a drawing are zero, whose sign compression would change at will."""
    drawings = []
    for radius in (8, 14, 20, 26):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), outline="black", width=4)
        drawings.append(image)
    copies = [recompressed(image, 75) for image in drawings]
    assert find_pairs(drawings + copies) == {(place, place + 4) for place in range(4)}


def test_blank_images_are_in_no_pair() -> None:
    noise = np.random.default_rng(0).integers(250, 255, (10, 40, 40, 3), dtype=np.uint8)
    blank = [Image.fromarray(pixels) for pixels in noise]
    assert find_pairs([*blank, Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)), scene(0), scene(0)]) == {(12, 13)}


def test_same_silhouette_with_other_detail_is_no_copy() -> None:
    places = np.arange(32)
    coarse = np.asarray(scene(3).convert("L").resize((4, 4)).resize((32, 32), Image.Resampling.BICUBIC), dtype=float)
    details = (-1.0) ** places[:, None] * np.ones(32), (-1.0) ** (places[:, None] + places)
    thumbnails = np.stack([np.clip(coarse + 5 * detail, 0, 255) for detail in details]).astype(np.uint8)
    hashes = perceptual_hashes(thumbnails)
    # The hashes alone would take them for copies.
    assert int(hashes[0] ^ hashes[1]).bit_count() <= module.MAX_DISTANCE
    grey = np.zeros((2, 4, 4, 3), dtype=np.int16)
    assert not list(near_pairs(thumbnails, grey, np.zeros(2, dtype=np.intp)))
    assert len(list(near_pairs(thumbnails[[0, 0]], grey, np.zeros(2, dtype=np.intp)))) == 1


def test_no_images_and_one() -> None:
    none = np.zeros((0, 32, 32), dtype=np.uint8)
    assert perceptual_hashes(none).shape == (0,)
    assert not list(near_pairs(none, np.zeros((0, 4, 4, 3), dtype=np.int16), np.zeros(0, dtype=np.intp)))
    assert find_pairs([scene(0)]) == set()


@pytest.mark.parametrize("seed", range(3))
def test_near_hashes_are_those_of_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hashes: npt.NDArray[np.uint64] = generator.integers(0, 2**64, 60, dtype=np.uint64)
    copies = hashes.copy()
    for place in range(len(copies)):
        for bit in generator.choice(64, size=place % 12, replace=False).tolist():
            copies[place] ^= np.uint64(1 << bit)
    # The same hash many times, as well
    hashes = np.concatenate((hashes, copies, hashes[:5], hashes[:5]))
    expected = {
        pair
        for pair in itertools.combinations(range(len(hashes)), 2)
        if int(hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= module.MAX_DISTANCE
    }
    found = [
        (min(pair), max(pair))
        for first, second in module._near_hashes(hashes)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(expected) > 50


def test_other_colours_are_no_copy() -> None:
    red, green, _ = scene(0).split()
    assert find_pairs([scene(0), Image.merge("RGB", (red, green, green))]) == set()


def test_grey_squares_are_no_copy_of_darker_coloured_ones() -> None:
    places = np.arange(64) // 8
    squares = ((places[:, None] + places) % 2).astype(bool)
    noise = np.random.default_rng(0).integers(0, 8, (64, 64, 1), dtype=np.uint8)
    orange, grey = (
        Image.fromarray(np.where(squares[..., None], light, dark).astype(np.uint8) - noise)
        for light, dark in (([250, 140, 20], [10, 10, 10]), ([250, 250, 250], [180, 180, 180]))
    )
    assert find_pairs([orange, grey]) == set()
    assert find_pairs([orange, orange.convert("L").convert("RGB")]) == {(0, 1)}


def test_one_pair_per_image_and_set() -> None:
    originals = [scene(seed) for seed in range(3)]
    images = [*originals, *originals, scene(9), originals[0], originals[1]]
    pairs = find_pairs(images, groups=[0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert {pair for pair in pairs if pair[1] < 7} == {(0, 3), (1, 4), (2, 5)}
    assert {pair for pair in pairs if pair[1] >= 7} == {(0, 7), (3, 7), (1, 8), (4, 8)}


@pytest.mark.parametrize("followers", [5, module._MAX_FOLLOWERS])
def test_a_crowd_of_look_alikes_has_no_more_pairs_than_images(monkeypatch: pytest.MonkeyPatch, followers: int) -> None:
    monkeypatch.setattr(module, "_MAX_FOLLOWERS", followers)
    crowd = [scene(0)] * 200
    assert {second for _, second in find_pairs(crowd)} == set(range(1, 200))
    assert len(find_pairs(crowd)) == 199
