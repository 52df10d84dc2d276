# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images as image encoders take them."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder
from clipn_hf.image_inputs import concatenate_inputs, prepare_image


def noise(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(20000, 1), (1, 20001), (33 * 5, 5), (5, 40 * 5 + 1)])
def test_long_images_are_cut_before_they_are_resized(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    image = noise(0, size[::-1])
    expected = tiny_processor.image_processor([image], return_tensors="pt")["pixel_values"]
    seen: list[tuple[int, int]] = []
    preprocess = tiny_processor.image_processor.preprocess

    def spy(image: Image.Image, **kwargs: Any) -> Any:
        seen.append(image.size)
        return preprocess(image, **kwargs)

    monkeypatch.setattr(tiny_processor.image_processor, "preprocess", spy)
    found = encoder.prepare_images([image])["pixel_values"]
    (shape,) = seen
    assert max(shape) <= 33 * min(shape) < max(size) + 1
    # In units of a standard deviation of all pixels. Where whole pixels are enlarged, not a single value differs.
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if 1 in size else 0.2)


@pytest.mark.parametrize("size", [(160, 5), (40, 36), (1, 32), (3, 3)])
def test_other_images_are_resized_as_a_whole(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, size: tuple[int, int]
) -> None:
    image_processor = tiny_processor.image_processor
    images = [noise(0, size[::-1]), noise(1)]
    expected = image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(DualEncoder(tiny_clip, tiny_processor).prepare_images(images)["pixel_values"], expected)


def test_long_images_stay_whole_for_processors_that_use_them_whole(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor
) -> None:
    image_processor = tiny_processor.image_processor
    image_processor.size, image_processor.do_center_crop = {"height": 32, "width": 32}, False
    expected = image_processor([noise(0, (2, 200))], return_tensors="pt")["pixel_values"]
    assert torch.equal(
        DualEncoder(tiny_clip, tiny_processor).prepare_images([noise(0, (2, 200))])["pixel_values"], expected
    )


def test_inputs_stay_in_order(tiny_processor: CLIPProcessor) -> None:
    images = [noise(0), noise(1), noise(2)]
    found = concatenate_inputs([prepare_image(image, tiny_processor.image_processor) for image in images])
    expected = tiny_processor.image_processor(images, return_tensors="pt")
    assert found.keys() == expected.keys() == {"pixel_values"}
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
