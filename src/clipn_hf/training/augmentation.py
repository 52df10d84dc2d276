# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Random changes of training images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, horizontal flip and change of colours, with Pillow.

    The crop covers a uniformly drawn share of the area at a log-uniformly drawn aspect ratio, cut to the image, and is
    resized to `size` with bicubic interpolation. Then brightness, contrast and saturation are multiplied, in this
    order, each by a uniformly drawn factor. The defaults are those CLIP models are trained with in OpenCLIP, on which
    CLIPN's authors build: a light crop and nothing else, because captions say "left", "right" and "red".

    Args:
        size (`tuple[int, int]`): Height and width of the result in pixels.
        crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.9, 1.0)`): Range of the share of the area.
        crop_ratio (`tuple[float, float]`, *optional*, defaults to `(3 / 4, 4 / 3)`): Range of width / height.
        flip_probability (`float`, *optional*, defaults to 0.0): Probability of a horizontal flip.
        color_jitter (`float`, *optional*, defaults to 0.0):
            Strength `s` of the change of colours: the factors are drawn from [1 - s, 1 + s].
        grayscale_probability (`float`, *optional*, defaults to 0.0): Probability that colours become shades of grey.

    Raises:
        ValueError: A size below 1, ranges that are empty or not positive, a scale above 1, a probability or strength
            outside of [0, 1].

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from clipn_hf.training import Augmentation
    >>> augmentation = Augmentation((224, 224), crop_scale=(0.5, 1.0), color_jitter=0.4)
    >>> augmentation(Image.new("RGB", (640, 480), "red"), np.random.default_rng(0)).size
    (224, 224)

    ```
    """

    size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    color_jitter: float = 0.0
    grayscale_probability: float = 0.0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"`size` must be (height, width) in pixels, each at least 1, got {self.size}.")
        for name, limit in (("crop_scale", 1.0), ("crop_ratio", float("inf"))):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= limit:
                raise ValueError(
                    f"`{name}` must be two numbers with 0 < lower <= upper <= {limit}, got {tuple(value)}."
                )
        for name in ("flip_probability", "color_jitter", "grayscale_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Make one augmented copy of `image`, `size` large.

        Whatever is switched on, as many numbers are drawn from `generator`, so that the crops stay the same.
        """
        scale = generator.uniform(*self.crop_scale)
        ratio = np.exp(generator.uniform(*np.log(self.crop_ratio)))
        area = image.width * image.height * scale
        width = min(float(image.width), np.sqrt(area * ratio))
        height = min(float(image.height), np.sqrt(area / ratio))
        shift_x, shift_y, flip, grey = generator.random(4)
        factors = generator.uniform(1 - self.color_jitter, 1 + self.color_jitter, size=3)
        left, top = shift_x * (image.width - width), shift_y * (image.height - height)
        box = (left, top, left + width, top + height)
        result = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box)
        if flip < self.flip_probability:
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.color_jitter:
            for enhance, factor in zip(_ENHANCERS, factors.tolist(), strict=True):
                result = enhance(result).enhance(factor)
        if grey < self.grayscale_probability:
            result = result.convert("L").convert("RGB")
        return result


def get_image_size(image_processor: Any) -> tuple[int, int]:
    """Give height and width in pixels to which an image processor resizes, the `size` of an `Augmentation` before it.

    Raises:
        ValueError: The processor's `size` has neither `shortest_edge` nor `height` and `width`.
    """
    size = dict(image_processor.size)
    if size.get("shortest_edge"):
        return size["shortest_edge"], size["shortest_edge"]
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    raise ValueError(
        f"The `size` of the image processor must have 'shortest_edge', or 'height' and 'width', got {size}."
    )
