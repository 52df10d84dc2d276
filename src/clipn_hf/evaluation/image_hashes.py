# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images that show the same picture, though their files differ: another compression, size or brightness.

In two steps, of which the first finds candidates fast and the second decides. A hash of 64 bits is made of the signs
of the lowest frequencies of a small grey copy; copies of one picture differ in few bits. Because as few bits may
differ by accident, where pictures are as simple as handwritten digits, the small copies of candidates are then
compared themselves: as they are, with their coarse shapes removed, and in their colours. A copy may have lost these
altogether, if it is as light as before.

Copies that were cropped by more than a little, rotated or mirrored are not found.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32  # Of the small copy.
# Grey levels. Below this standard deviation a copy is blank, but for noise, and resembles every other blank one.
MIN_CONTRAST = 4.0
# Unrelated photographs of 32 to 224 pixels, 1,500 at a time, differ in more than 9 bits.
MAX_DISTANCE = 7
MIN_CORRELATION = 0.95
MIN_DETAIL_CORRELATION = 0.7
MAX_TINT_DIFFERENCE = 32  # Levels of 255
MAX_GREY_TINT = 4  # What compression makes of grey
# Photographs turned grey by their luma, the mean of their channels or their lightness differ by up to 22 levels.
MAX_GREY_DIFFERENCE = 24

_BITS = 64
_BANDS = MAX_DISTANCE + 1  # Of hashes that differ in 7 bits, at least one of 8 bands is equal.
_BAND_BITS = _BITS // _BANDS
# How many followers in the order of the hashes each one is compared with, per band. Only within large crowds of
# look-alikes, such as the frames of a film, are there more, and then some pairs are passed over.
_MAX_FOLLOWERS = 4096
# Frequencies that a symmetric drawing does not have are zero but for noise, whose sign would be arbitrary.
_NOISE = 2.0
_BLOCK = 2048

_places = np.arange(SIDE)
_COSINES = np.sqrt(2 / SIDE) * np.cos(np.pi * (2 * _places + 1) * _places[:, None] / (2 * SIDE))
_COSINES[0] /= np.sqrt(2)
_COSINES = _COSINES.astype(np.float32)
_lowest = sorted(
    ((row, column) for row in range(SIDE) for column in range(SIDE) if row + column), key=lambda at: (sum(at), at)
)[:_BITS]
# Each band gets low and high frequencies, so that none is the same for most images.
_ROWS, _COLUMNS = np.array([at for band in range(_BANDS) for at in _lowest[band::_BANDS]]).T
_ONES = np.array([value.bit_count() for value in range(2**16)], dtype=np.uint8)


def thumbnail(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Make the small grey copy that hashes are made of.

    Args:
        image (`PIL.Image.Image`): Of mode RGB or L and any size.

    Returns:
        `numpy.ndarray` of shape `(32, 32)`, uint8. The whole image, whatever its aspect ratio.
    """
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def perceptual_hashes(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash small grey copies: a bit for each of the 64 lowest frequencies of the discrete cosine transform.

    Args:
        thumbnails (`numpy.ndarray` of shape `(images, 32, 32)`): As [`thumbnail`] makes them.

    Returns:
        `numpy.ndarray` of shape `(images,)`, uint64. Copies of a picture differ in few bits.
    """
    hashes = np.zeros(len(thumbnails), dtype=np.uint64)
    shifts = np.arange(_BITS, dtype=np.uint64)
    for start in range(0, len(thumbnails), _BLOCK):
        block = thumbnails[start : start + _BLOCK].astype(np.float32)
        frequencies = (_COSINES @ block @ _COSINES.T)[:, _ROWS, _COLUMNS]  # (images, bits)
        bits = (frequencies > _NOISE).astype(np.uint64)
        hashes[start : start + _BLOCK] = (bits << shifts).sum(axis=1, dtype=np.uint64)
    return hashes


def tints(image: Image.Image) -> npt.NDArray[np.int16]:
    """Compute how much redder, greener and bluer than grey the parts of an image are.

    Args:
        image (`PIL.Image.Image`): Of mode RGB and any size.

    Returns:
        `numpy.ndarray` of shape `(4, 4, 3)`, int16, in levels of 255.
    """
    parts = np.asarray(image.resize((4, 4), Image.Resampling.BOX)).astype(np.int16)
    return parts - parts.mean(axis=2, keepdims=True).round().astype(np.int16)


def near_pairs(
    thumbnails: npt.NDArray[np.uint8], tints: npt.NDArray[np.int16], groups: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Find images that show the same picture as one before them.

    Blank images show no picture. Memory grows with the number of images, however many of them look alike.

    Args:
        thumbnails (`numpy.ndarray` of shape `(images, 32, 32)`): As [`thumbnail`] makes them.
        tints (`numpy.ndarray` of shape `(images, 4, 4, 3)`): As [`tints`] makes them.
        groups (`numpy.ndarray` of shape `(images,)`): The number of the set that each image is in, from 0.

    Yields:
        Two `numpy.ndarray` of shape `(pairs,)`: Positions of images, the first of a pair below the second. Of the
        pairs with the same second image whose first ones are in the same set, there is one.
    """
    informative = np.concatenate(
        [np.zeros(0, dtype=np.intp)]
        + [
            start + np.flatnonzero(thumbnails[start : start + _BLOCK].std(axis=(1, 2)) >= MIN_CONTRAST)
            for start in range(0, len(thumbnails), _BLOCK)
        ]
    )
    # Without it, a crowd of look-alikes would have as many pairs as its square.
    known = np.zeros((len(thumbnails), int(groups.max(initial=0)) + 1), dtype=np.bool_)
    for left, right in _near_hashes(perceptual_hashes(thumbnails[informative])):
        first, second = informative[np.minimum(left, right)], informative[np.maximum(left, right)]
        new = ~known[second, groups[first]]
        first, second = first[new], second[new]
        for start in range(0, len(first), _BLOCK):
            low, high = first[start : start + _BLOCK], second[start : start + _BLOCK]
            # Hardly ever, the same image is in the block before.
            new = ~known[high, groups[low]]
            low, high = low[new], high[new]
            same = _look_alike(thumbnails[low], thumbnails[high])
            same &= _same_colours(tints[low], tints[high]) | _lost_colours(thumbnails, tints, low, high)
            low, high = low[same], high[same]
            _, once = np.unique(high * known.shape[1] + groups[low], return_index=True)
            low, high = low[once], high[once]
            known[high, groups[low]] = True
            if len(low):
                yield low, high


def _near_hashes(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Pairs of hashes that differ in few bits, each pair once."""
    mask = np.uint64(2**_BAND_BITS - 1)
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(band * _BAND_BITS)) & mask
        # Within a band in the order of the hashes, so that equal ones are neighbours.
        order = np.lexsort((hashes, keys))
        keys, ordered = keys[order], hashes[order]
        active = np.arange(len(order))
        for distance in range(1, _MAX_FOLLOWERS + 1):
            active = active[active + distance < len(order)]
            # Who has no follower of its key this far away has none farther away.
            active = active[keys[active] == keys[active + distance]]
            if not len(active):
                break
            difference = ordered[active] ^ ordered[active + distance]
            near = _count_ones(difference) <= MAX_DISTANCE
            for earlier in range(band):
                near &= (difference >> np.uint64(earlier * _BAND_BITS)) & mask != 0
            if near.any():
                found = active[near]
                yield order[found], order[found + distance]


def _count_ones(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    ones: npt.NDArray[np.uint8] = _ONES[values.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)
    return ones


def _look_alike(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    left, right = first.astype(np.float32), second.astype(np.float32)
    same: npt.NDArray[np.bool_] = _correlation(left, right) >= MIN_CORRELATION
    return same & (_correlation(_detail(left), _detail(right)) >= MIN_DETAIL_CORRELATION)


def _same_colours(first: npt.NDArray[np.int16], second: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = np.abs(first - second).max(axis=(1, 2, 3)) <= MAX_TINT_DIFFERENCE
    return same


def _lost_colours(
    thumbnails: npt.NDArray[np.uint8],
    tints: npt.NDArray[np.int16],
    first: npt.NDArray[np.intp],
    second: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    """Whether one of two images is grey and as light as the other."""
    strongest = np.minimum(*(np.abs(tints[places]).max(axis=(1, 2, 3)) for places in (first, second)))
    left, right = (thumbnails[places].astype(np.int16) for places in (first, second))
    # Grey and white squares are no copy of black and orange ones.
    lost: npt.NDArray[np.bool_] = strongest <= MAX_GREY_TINT
    return lost & (np.abs(left - right).mean(axis=(1, 2)) <= MAX_GREY_DIFFERENCE)


def _detail(thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What is left of copies when the mean of each pixel's neighbourhood of 3 by 3 is taken away."""
    padded = np.pad(thumbnails, ((0, 0), (1, 1), (1, 1)), mode="edge")
    total = np.zeros_like(thumbnails)
    for row in range(3):
        for column in range(3):
            total += padded[:, row : row + SIDE, column : column + SIDE]
    return thumbnails - total / np.float32(9)


def _correlation(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    left, right = (
        values.reshape(len(values), SIDE * SIDE) - values.mean(axis=(1, 2), dtype=np.float32)[:, None]
        for values in (left, right)
    )
    norms = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
    return np.divide((left * right).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)


__all__ = ["MIN_CONTRAST", "near_pairs", "perceptual_hashes", "thumbnail", "tints"]
