# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Few images of each class, and their features."""

import doctest
import math
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder
from clipn_hf.training import Augmentation, FewShotFeatures, LabelledImages, few_shot_data, sample_shots
from clipn_hf.training.few_shot_data import check_classes, compute_features

NAMES = ["red", "green", "blue"]


def make_rows(count: int, labelled: bool = True) -> datasets.Dataset:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)) for _ in range(count)]
    columns: dict[str, list[Any]] = {"image": pictures, "label": [index % 3 for index in range(count)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = datasets.Dataset.from_dict(columns, features=features).cast_column("image", datasets.Image(decode=False))
    return rows if labelled else rows.remove_columns("label")


def draw(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_shots() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 2]
    chosen = {shots: sample_shots(labels, shots, seed=1, class_names=NAMES) for shots in (1, 2, 3)}
    for shots, positions in chosen.items():
        assert positions == sorted(positions)
        assert sorted(labels[position] for position in positions) == sorted([0, 1, 2] * shots)
    assert set(chosen[1]) < set(chosen[2]) < set(chosen[3])
    assert chosen[2] == sample_shots(torch.tensor(labels), 2, seed=1)
    assert len({tuple(sample_shots(labels, 1, seed=seed)) for seed in range(8)}) > 3


def test_no_shots() -> None:
    with pytest.raises(ValueError, match="`shots` must be at least 1, got 0."):
        sample_shots([0, 1], 0)
    with pytest.raises(ValueError, match=r"`shots=2` .* than 2 of the classes have: 'red' \(1\), 'green' \(1\). Give"):
        sample_shots([0, 1, 2, 2], 2, class_names=NAMES)
    with pytest.raises(ValueError, match=r"3 of the classes have: 0 \(1\), 2 \(1\), 3 \(1\). Give more images, or"):
        sample_shots([0, 2, 3, 5, 5], 2)
    with pytest.raises(ValueError, match="There is no image of 1 of the 3 classes: 'green'. Give images of each"):
        sample_shots([0, 2], 1, class_names=NAMES)
    with pytest.raises(ValueError, match="There are images of one class only, 'blue', which leaves nothing"):
        sample_shots([2, 2], 1, class_names=NAMES)
    with pytest.raises(ValueError, match="label 3, but the 3 classes that are named have the numbers from 0 to 2"):
        sample_shots([0, 1, 2, 3], 1, class_names=NAMES)
    with pytest.raises(ValueError, match="Labels must be the numbers of classes, from 0, got -1"):
        sample_shots([0, -1], 1)
    with pytest.raises(TypeError, match="`labels` must be one whole number per image"):
        sample_shots([0.5, 1.0], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="per image, the position of its class, got str 'cat'; give numbers, as `load"):
        sample_shots(["cat", "dog"], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="the position of its class, got NoneType None;"):
        sample_shots([0, None], 1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="There are no images"):
        check_classes(torch.empty(0, dtype=torch.int64))


def test_features() -> None:
    features = FewShotFeatures(draw(4, 8), [0, 0, 1, 1], patches=draw(4, 5, 8), relevant=draw(4, 8))
    assert len(features) == 4
    assert (features.num_views, features.dim) == (1, 8)
    example = features[2]
    assert {name: (tuple(value.shape), value.dtype) for name, value in example.items()} == {
        "embeddings": ((8,), torch.float32),
        "patches": ((5, 8), torch.float16),
        "relevant": ((8,), torch.float32),
        "labels": ((), torch.int64),
    }
    assert torch.equal(example["embeddings"], draw(4, 8)[2])
    # What float16 costs
    assert ((example["patches"].float() - draw(4, 5, 8)[2]) @ draw(20, 8).T).abs().max() < 5e-4
    assert set(FewShotFeatures(draw(2, 8))[0]) == {"embeddings"}


def test_views_depend_on_seed_epoch_and_row_alone() -> None:
    views = draw(6, 4, 8)
    features, again = (FewShotFeatures(views, list(range(6)), relevant=views, seed=3) for _ in range(2))

    def chosen(features: FewShotFeatures, rows: list[int]) -> list[int]:
        found = []
        for row in rows:
            example = features[row]
            assert torch.equal(example["embeddings"], example["relevant"])
            found.append(next(view for view in range(4) if torch.equal(views[row, view], example["embeddings"])))
        return found

    first = chosen(features, [0, 1, 2, 3, 4, 5])
    assert chosen(again, [5, 4, 3, 2, 1, 0]) == first[::-1]
    again.set_epoch(1)
    assert chosen(again, [0, 1, 2, 3, 4, 5]) != first
    assert chosen(FewShotFeatures(views, seed=4, relevant=views), [0, 1, 2, 3, 4, 5]) != first


def test_features_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="`embeddings` must be a tensor of floating-point numbers, got torch.int64"):
        FewShotFeatures(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="`patches` must be a tensor of floating-point numbers, got list"):
        FewShotFeatures(draw(2, 3), patches=[1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`embeddings` must have the shape \(images, dim\), .* got \(3,\)."):
        FewShotFeatures(draw(3))
    with pytest.raises(ValueError, match=r"`patches` must have the shape \(images, patches, dim\), .* got \(2, 3\)."):
        FewShotFeatures(draw(2, 3), patches=draw(2, 3))
    with pytest.raises(ValueError, match=r"got \(2, 1, 3\) of `embeddings`, \(2, 1, 4\) of `relevant`."):
        FewShotFeatures(draw(2, 3), relevant=draw(2, 4))
    with pytest.raises(ValueError, match="There must be one label for each of the 2 images, got 3 labels."):
        FewShotFeatures(draw(2, 3), [0, 1, 0])
    with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1."):
        FewShotFeatures(draw(2, 3), seed=-1)


def test_features_that_are_no_directions() -> None:
    broken = draw(300, 3)
    broken[270, 1] = math.nan
    for name, values, found in (
        ("embeddings", draw(300, 3) * torch.linspace(1, 1.1, 300)[:, None], r"the norm 1\.0\d+ for image 3\d"),
        ("embeddings", broken, "NaN or infinite values for image 270"),
        ("patches", torch.stack([draw(300, 3), broken], dim=1), "NaN or infinite values for image 270"),
        ("relevant", torch.zeros(300, 3), "the norm 0 for image 0"),
        ("background", broken, "NaN or infinite values for image 270"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be finite and of unit norm, got {found}; normalize"):
            FewShotFeatures(**{"embeddings": draw(300, 3), name: values})  # type: ignore[arg-type]
    broken[270] = math.nan
    FewShotFeatures(draw(300, 3), background=broken)
    # What half precision rounds is no mistake.
    FewShotFeatures(draw(300, 3).bfloat16(), patches=draw(300, 5, 3).half())


def test_computed_features(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    seen: list[Tensor | None] = []

    def encode(inputs: dict[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        seen.append(labels)
        embeddings, patches = encoder.image_and_local_embeddings(inputs)
        return {"embeddings": embeddings, "patches": patches}

    rows = make_rows(5)
    augmentation = Augmentation((32, 32), crop_scale=(0.2, 0.9))
    images = LabelledImages(rows, augmentation, seed=7)
    one = compute_features(images, tiny_processor.image_processor, encode, batch_size=2)
    pictures = list(rows.cast_column("image", datasets.Image())["image"])
    expected = encoder.image_embeddings(encoder.prepare_images(pictures))
    torch.testing.assert_close(one.features["embeddings"][:, 0], expected)
    assert one.features["patches"].shape == (5, 1, 16, 24)
    assert one.labels is not None
    assert torch.cat([labels for labels in seen if labels is not None]).tolist() == [0, 1, 2, 0, 1]
    assert one.labels.tolist() == [0, 1, 2, 0, 1]

    views = compute_features(images, tiny_processor.image_processor, encode, num_views=3)
    assert views.num_views == 3
    assert views.seed == 7
    images.set_epoch(2)
    last = encoder.image_embeddings(encoder.prepare_images([images[row]["image"] for row in range(5)]))
    torch.testing.assert_close(views.features["embeddings"][:, 2], last)
    assert not torch.allclose(views.features["embeddings"][:, 0], last, atol=1e-4)

    unlabelled = LabelledImages(make_rows(2, labelled=False))
    assert compute_features(unlabelled, tiny_processor.image_processor, encode).labels is None
    with pytest.raises(ValueError, match="2 views of each image would all be the same without augmentation"):
        compute_features(unlabelled, tiny_processor.image_processor, encode, num_views=2)
    with pytest.raises(ValueError, match="`num_views` must be at least 1, got 0."):
        compute_features(unlabelled, tiny_processor.image_processor, encode, num_views=0)


def test_examples() -> None:
    results = doctest.testmod(few_shot_data)
    assert (results.failed, results.attempted > 4) == (0, True)
