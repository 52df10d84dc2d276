# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images as the image encoder of a model takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

# Images that are longer lose their ends before they are resized, if the processor would cut these off anyway.
MAX_ASPECT_RATIO = 32


def prepare_image(image: Image.Image, image_processor: Any) -> dict[str, Tensor]:
    """Prepare one image for an image encoder, as `DualEncoder.prepare_images` describes.

    Args:
        image (`PIL.Image.Image`): As [`~clipn_hf.images.load_image`] gives it.
        image_processor: That of the model.

    Returns:
        `dict[str, torch.Tensor]`: What the image processor makes of it, the first dimension of each entry 1.
    """
    return dict(image_processor(_shorten(image, image_processor), return_tensors="pt"))


def concatenate_inputs(prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put prepared images together.

    Args:
        prepared (`Sequence[Mapping[str, torch.Tensor]]`): At least one; as `prepare_image` gives them.

    Returns:
        `dict[str, torch.Tensor]`: The same, in order along the first dimension of each entry.
    """
    return {name: torch.cat([inputs[name] for inputs in prepared]) for name in prepared[0]}


def _shorten(image: Image.Image, image_processor: Any) -> Image.Image:
    """The middle of an image that is extremely long, of which the image processor uses nothing else."""
    size, crop_size = (dict(getattr(image_processor, name, None) or {}) for name in ("size", "crop_size"))
    edge, crop = size.get("shortest_edge"), max(crop_size.get("height") or 0, crop_size.get("width") or 0)
    resizes, crops = (getattr(image_processor, name, False) for name in ("do_resize", "do_center_crop"))
    if not (edge and crop and resizes and crops):
        return image
    short, long = sorted(image.size)
    kept = short * max(MAX_ASPECT_RATIO, 2 * -(-crop // edge))
    if long <= kept:
        return image
    # As even or odd as the whole, for the same centre
    kept += (long - kept) % 2
    start = (long - kept) // 2
    wide = image.width == long
    return image.crop((start, 0, start + kept, short) if wide else (0, start, short, start + kept))


__all__ = ["MAX_ASPECT_RATIO", "concatenate_inputs", "prepare_image"]
