# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Cached image embeddings: the numbers of the model, and never those of other images, weights or settings."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPProcessor

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.training import Augmentation, ImageTextCollator, ImageTextDataset, build_image_cache, image_cache

AUGMENTATION = Augmentation((32, 32), crop_scale=(0.3, 0.9), flip_probability=0.5)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 45, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def image_rows(images: list[bytes]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": image, "path": None} for image in images],
            "caption": [f"a cat {index}" for index in range(len(images))],
        },
        features=datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}),
    )


@pytest.fixture
def rows() -> datasets.Dataset:
    return image_rows([picture(0), picture(1), b"damaged", picture(3), picture(4)])


@pytest.fixture
def processor(tiny_processor: CLIPProcessor) -> CLIPNProcessor:
    return CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


def test_one_view_is_what_the_model_says(
    tiny_clipn: CLIPNModel, processor: CLIPNProcessor, rows: datasets.Dataset, tmp_path: Path
) -> None:
    tiny_clipn.train()
    dataset = ImageTextDataset(rows, augmentation=AUGMENTATION)
    cache = build_image_cache(tiny_clipn, dataset, processor, 1, tmp_path / "cache", batch_size=2)

    assert tiny_clipn.training
    assert isinstance(cache, np.memmap)
    assert cache.shape == (5, 1, 24)
    assert cache.dtype == np.float32
    assert np.isnan(cache[2]).all()
    assert list(dataset.skipped) == ["row 2"]

    plain = ImageTextDataset(rows)
    batch = ImageTextCollator(processor)(plain.__getitems__([0, 1, 3, 4]))
    tiny_clipn.eval()
    with torch.no_grad():
        features = tiny_clipn.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.tensor(cache[[0, 1, 3, 4], 0]), normalize(features, dim=-1))

    dataset.image_embeds = cache
    cached = ImageTextCollator(processor)(dataset.__getitems__([0, 1, 3, 4]))
    with torch.no_grad():
        expected, result = tiny_clipn(**batch), tiny_clipn(**cached)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.no_logits_per_image, expected.no_logits_per_image)


def test_views_are_the_same_for_any_batch_size_and_workers(
    tiny_clipn: CLIPNModel, processor: CLIPNProcessor, rows: datasets.Dataset, tmp_path: Path
) -> None:
    dataset = ImageTextDataset(rows, augmentation=AUGMENTATION, seed=3)
    first = build_image_cache(tiny_clipn, dataset, processor, 3, tmp_path / "a", batch_size=2)
    second = build_image_cache(tiny_clipn, dataset, processor, 3, tmp_path / "b", batch_size=64, num_workers=2)
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(first[[0, 1, 3, 4]], axis=-1), 1, atol=1e-6)
    assert not np.allclose(first[0, 0], first[0, 1], atol=1e-4)
    assert [path.name for path in (tmp_path / "a").iterdir()] != []
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in (tmp_path / "b").iterdir()
    )


def test_the_cache_is_used_again(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    rows: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = build_image_cache(tiny_clipn, ImageTextDataset(rows), processor, 1, tmp_path)
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["settings"]["views"] == 1
    assert "cannot be read" in record["skipped"]["2"]

    def refuse(*args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(image_cache, "_compute", refuse)
    dataset = ImageTextDataset(rows)
    second = build_image_cache(tiny_clipn, dataset, processor, 1, tmp_path)
    np.testing.assert_array_equal(first, second)
    assert "cannot be read" in dataset.skipped["row 2"], "reported although nothing was read"


def change_rows(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    settings["rows"] = image_rows([picture(0), picture(1), picture(9), picture(3), picture(4)])


def change_weights(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    with torch.no_grad():
        model.vision_model.post_layernorm.bias[0] += 1e-3


def change_projection(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3


def change_processor(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]


def change_augmentation(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    settings["augmentation"] = Augmentation((32, 32), crop_scale=(0.3, 0.91), flip_probability=0.5)


def change_colours(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    settings["augmentation"] = dataclasses.replace(AUGMENTATION, color_jitter=0.3)


def change_greys(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    settings["augmentation"] = dataclasses.replace(AUGMENTATION, grayscale_probability=0.9)


def change_seed(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    settings["seed"] = 1


def change_views(model: CLIPNModel, processor: CLIPNProcessor, settings: dict[str, object]) -> None:
    settings["views"] = 3


@pytest.mark.parametrize(
    "change",
    [
        change_rows,
        change_weights,
        change_projection,
        change_processor,
        change_augmentation,
        change_colours,
        change_greys,
        change_seed,
        change_views,
    ],
)
def test_other_numbers_are_never_used(
    change: Callable[[CLIPNModel, CLIPNProcessor, dict[str, object]], None],
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    rows: datasets.Dataset,
    tmp_path: Path,
) -> None:
    settings = {"rows": rows, "augmentation": AUGMENTATION, "seed": 0, "views": 2}

    def build() -> np.ndarray:
        dataset = ImageTextDataset(settings["rows"], augmentation=settings["augmentation"], seed=settings["seed"])
        return np.array(build_image_cache(tiny_clipn, dataset, processor, settings["views"], tmp_path))

    before = build()
    with torch.no_grad():
        tiny_clipn.no_text_projection.weight += 1  # no part of the image encoder
    processor.tokenizer.model_max_length = 20
    np.testing.assert_array_equal(before, build())
    change(tiny_clipn, processor, settings)
    after = build()
    assert before.shape != after.shape or not np.array_equal(before, after, equal_nan=True)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_an_interrupted_run_leaves_nothing(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    rows: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_clipn, "get_image_features", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_image_cache(tiny_clipn, ImageTextDataset(rows), processor, 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_views", "message"), [(0, "must be at least 1, got 0"), (2, "without augmentation")])
def test_refuses(
    num_views: int,
    message: str,
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    rows: datasets.Dataset,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message):
        build_image_cache(tiny_clipn, ImageTextDataset(rows), processor, num_views, tmp_path)
