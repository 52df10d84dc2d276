# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Defences against adversarial images: what is done to every image before it is embedded."""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from PIL import Image, ImageFilter

JPEG_QUALITY = 75
# Of the shorter side of the picture: 2 pixels of 224
BLUR = 0.01


class Defence(NamedTuple):
    """Something done to every image before it is embedded.

    Args:
        name (`str`): What it is called.
        title (`str`): What it does.
        apply (`Callable`): A `PIL.Image.Image` of mode RGB at the input size of the encoder, to another one.
    """

    name: str
    title: str
    apply: Callable[[Image.Image], Image.Image]


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(BLUR * min(picture.size)))


def _compress(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=JPEG_QUALITY)
    return Image.open(stream).convert("RGB")


def _resize(picture: Image.Image) -> Image.Image:
    small = (max(1, picture.width // 2), max(1, picture.height // 2))
    return picture.resize(small, Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)


DEFENCES: Mapping[str, Defence] = MappingProxyType(
    {
        defence.name: defence
        for defence in (
            Defence("blur", f"Gaussian smoothing, standard deviation {100 * BLUR:g} % of the shorter side", _blur),
            Defence("jpeg", f"JPEG compression, quality {JPEG_QUALITY}", _compress),
            Defence("resize", "half the size and back, bicubic", _resize),
        )
    }
)


__all__ = ["BLUR", "DEFENCES", "JPEG_QUALITY", "Defence"]
