# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from clipn_hf.evaluation.defences import DEFENCES


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_blurs_noise(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 160, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    defended = DEFENCES[name].apply(picture)
    assert (defended.mode, defended.size) == ("RGB", (160, 224))
    assert np.asarray(defended).std() < 0.95 * pixels.std()
    # What has no detail stays as it is.
    flat = Image.new("RGB", (160, 224), (90, 120, 150))
    assert np.abs(np.asarray(DEFENCES[name].apply(flat)).astype(int) - np.asarray(flat)).max() <= 2
    np.testing.assert_array_equal(np.asarray(picture), pixels)
