# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Similarity maps: what they are made of, where they say the evidence is, and that they find the thing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, normalize
from torch.utils.data import Dataset
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, ImageError
from clipn_hf.demo import SAMPLES
from clipn_hf.local_features import local_image_features
from clipn_hf.scores._rows import min_max
from clipn_hf.similarity_maps import (
    MAP_PATHS,
    Evidence,
    Region,
    compare_patches,
    embed_patches,
    find_region,
    seen_pictures,
    similarity_maps,
)

LABELS = ["cat", "dog", "car"]


def noise(seed: int, size: tuple[int, int] = (36, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = [noise(seed) for seed in range(3)]


@pytest.fixture
def encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor, "cpu")


# Maps


@pytest.mark.parametrize("path", ["surgery", "value", "clip"])
def test_maps_are_cosines_of_patches_with_texts(encoder: DualEncoder, path: str) -> None:
    maps = similarity_maps(IMAGES, LABELS, path, model=encoder)
    pixels = encoder.prepare_images(IMAGES)["pixel_values"]
    features = local_image_features(encoder.model, pixels, path, num_surgery_layers=2).detach()
    expected = normalize(features, dim=-1) @ encoder.class_embeddings(LABELS)[0].T  # (images, patches, labels)
    assert maps.shape == (3, 3, 4, 4)
    assert (maps.dtype, maps.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(maps.flatten(2), expected.transpose(1, 2), rtol=0, atol=1e-6)
    assert maps.abs().max() <= 1


def test_discrepancy_is_surgery_minus_clip_each_from_0_to_1(encoder: DualEncoder) -> None:
    surgery, clip, maps = (
        similarity_maps(IMAGES, LABELS, path, model=encoder) for path in ("surgery", "clip", "discrepancy")
    )

    def normalized(map_: torch.Tensor) -> torch.Tensor:
        return (map_ - map_.min()) / (map_.max() - map_.min())

    for image in range(3):
        for label in range(3):
            expected = normalized(surgery[image, label]) - normalized(clip[image, label])
            torch.testing.assert_close(maps[image, label], expected, rtol=0, atol=1e-5)
    assert maps.abs().max() <= 1


@pytest.mark.parametrize("path", ["surgery", "clip"])
def test_relative_maps_take_off_what_labels_share(encoder: DualEncoder, path: str) -> None:
    plain = similarity_maps(IMAGES, LABELS, path, model=encoder)
    relative = similarity_maps(IMAGES, LABELS, path, model=encoder, relative=True)
    torch.testing.assert_close(relative, plain - plain.mean(dim=1, keepdim=True), rtol=0, atol=1e-6)


def test_no_texts(encoder: DualEncoder) -> None:
    plain, no = (similarity_maps(IMAGES, LABELS, model=encoder, use_no_encoder=use) for use in (False, True))
    patches = embed_patches(encoder, encoder.prepare_images(IMAGES))
    no_text = encoder.class_embeddings(LABELS)[1]
    assert no_text is not None
    torch.testing.assert_close(no, compare_patches(patches, no_text))
    relative = similarity_maps(IMAGES, LABELS, model=encoder, use_no_encoder=True, relative=True)
    torch.testing.assert_close(relative, no - plain, rtol=0, atol=1e-6)
    # With its own text a label is compared even if it is the only one.
    one = similarity_maps(IMAGES, LABELS[:1], model=encoder, use_no_encoder=True, relative=True)
    torch.testing.assert_close(one, relative[:, :1], rtol=0, atol=1e-6)


def test_templates_reach_the_encoder(encoder: DualEncoder) -> None:
    maps = similarity_maps(IMAGES, LABELS, model=encoder, templates=["a drawing of a {}"])
    text = encoder.class_embeddings(LABELS, ["a drawing of a {}"])[0]
    torch.testing.assert_close(maps, compare_patches(embed_patches(encoder, encoder.prepare_images(IMAGES)), text))


def test_images_come_in_all_ways_and_batches(encoder: DualEncoder, tmp_path: Path) -> None:
    expected = similarity_maps(IMAGES, LABELS, model=encoder)
    assert similarity_maps(IMAGES[0], LABELS, model=encoder).shape == (1, 3, 4, 4)
    IMAGES[0].save(tmp_path / "0.png")

    class Rows(Dataset[dict[str, Image.Image]]):
        def __len__(self) -> int:
            return len(IMAGES)

        def __getitem__(self, index: int) -> dict[str, Image.Image]:
            return {"image": IMAGES[index]}

    for images in (iter(IMAGES), tuple(IMAGES), Rows(), [tmp_path / "0.png", *IMAGES[1:]]):
        found = similarity_maps(images, LABELS, model=encoder, batch_size=2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_all_blocks_where_there_are_fewer_than_six(encoder: DualEncoder) -> None:
    default, two, one = (
        similarity_maps(IMAGES, LABELS, model=encoder, num_surgery_layers=number) for number in (None, 2, 1)
    )
    torch.testing.assert_close(default, two)
    assert not torch.allclose(default, one, atol=1e-3)
    with pytest.raises(ValueError, match="`num_surgery_layers` must be between 1 and 2"):
        similarity_maps(IMAGES, LABELS, model=encoder, num_surgery_layers=3)


def test_model_by_folder(clip_folder: Path) -> None:
    assert similarity_maps(IMAGES[0], LABELS[:1], model=clip_folder).shape == (1, 1, 4, 4)


def test_errors(encoder: DualEncoder, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    for path in ("last", "Surgery", None):
        with pytest.raises(ValueError, match="`path` must be one of 'surgery', 'value', 'discrepancy', 'clip', got"):
            similarity_maps(IMAGES, LABELS, path, model=encoder)
    with pytest.raises(ValueError, match="`images` is empty"):
        similarity_maps([], LABELS, model=encoder)
    with pytest.raises(ValueError, match="`batch_size`"):
        similarity_maps(IMAGES, LABELS, model=encoder, batch_size=0)
    with pytest.raises(ValueError, match="there is only one; give others"):
        similarity_maps(IMAGES, LABELS[:1], model=encoder, relative=True)
    with pytest.raises(ValueError, match='`relative` has no meaning for the path "discrepancy", .*; give `relative=F'):
        similarity_maps(IMAGES, LABELS, "discrepancy", model=encoder, relative=True)
    with pytest.raises(TypeError, match=r"got CLIPModel; give `DualEncoder\(model, processor\)`"):
        similarity_maps(IMAGES, LABELS, model=tiny_clip)
    with pytest.raises(ImageError, match="image 1"):
        similarity_maps([IMAGES[0], b"nothing"], LABELS, model=encoder)
    clip = DualEncoder(tiny_clip, tiny_processor)
    with pytest.raises(TypeError, match='CLIPModel has no "no" text encoder; leave out `use_no_encoder`'):
        similarity_maps(IMAGES, LABELS, model=clip, use_no_encoder=True)
    # As that of SigLIP does.
    tiny_clip.vision_model.head = torch.nn.Identity()
    with pytest.raises(TypeError, match="CLIPModel gives no local features"):
        similarity_maps(IMAGES, LABELS, model=clip)


def test_a_map_without_differences_is_0() -> None:
    """Also where rounding leaves some, which would become all there is between 0 and 1."""
    flat = torch.full((9,), 0.3)
    flat[4] += 3e-8
    assert flat.unique().numel() == 2
    rising = torch.linspace(0.1, 0.5, 9)
    patches = torch.stack([flat, rising]).view(1, 2, 3, 3, 1)
    assert torch.equal(compare_patches(patches, torch.ones(1, 1))[0, 0], -min_max(rising).view(3, 3))


# What the model saw


@pytest.mark.parametrize("size", [(96, 40), (40, 96), (32, 32), (7, 5)])
def test_pictures_are_what_the_image_processor_cut_out(encoder: DualEncoder, size: tuple[int, int]) -> None:
    image = noise(9, size)
    (seen,) = seen_pictures(encoder, encoder.prepare_images([image])["pixel_values"])
    pixels = encoder.processor.image_processor(image, do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert (seen.mode, seen.size) == ("RGB", (32, 32))
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(pixels).transpose(1, 2, 0)).max() <= 1


# Where the evidence is


def test_region_is_that_around_the_strongest_patch() -> None:
    values = torch.zeros(6, 9)
    values[0:2, 1:4] = 0.6
    values[1, 2] = 1.0
    # As strong as its neighbours, but elsewhere.
    values[4, 7] = 0.9
    region = find_region(values)
    assert region == Region(row=1, column=2, top=0, left=1, bottom=2, right=4, grid=(6, 9))
    assert region.words == "upper left"
    assert region.pixels((90, 60)) == (10, 0, 40, 20)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ((0, 1), (0, 1), "upper left"),
        ((0, 1), (4, 5), "upper middle"),
        ((4, 5), (8, 9), "right"),
        ((8, 9), (4, 5), "lower middle"),
        ((4, 5), (3, 6), "middle"),
        ((8, 9), (7, 9), "lower right"),
        ((3, 6), (0, 2), "left"),
        ((0, 9), (4, 5), "middle"),
        ((0, 9), (1, 9), "all over"),
    ],
)
def test_words_for_places(rows: tuple[int, int], columns: tuple[int, int], words: str) -> None:
    values = torch.zeros(9, 9)
    values[slice(*rows), slice(*columns)] = 1.0
    assert find_region(values).words == words


def test_region_of_a_map_on_both_sides_of_0_begins_at_half_of_the_largest() -> None:
    # By the middle between -1 and 0.4 the second patch would belong to it.
    assert find_region(torch.tensor([[0.4, 0.1, -1.0]])).right == 1
    assert find_region(torch.tensor([[0.4, 0.35, 0.2]])).right == 2
    # Where nothing speaks for the text there is a place that speaks least against it.
    assert find_region(torch.tensor([[-0.4, -0.5, -1.0]])).right == 2


@pytest.mark.parametrize("values", [[[-0.4, -0.008]], [[0.0, 0.0]]])
def test_what_no_patch_speaks_for_is_nowhere(values: list[list[float]]) -> None:
    one = Evidence("label", "cat", 0.1, 0.2, torch.tensor(values), has_zero=True)
    assert one.region is None
    # Cosines by themselves have no 0 at which evidence begins.
    assert replace(one, has_zero=False).region is not None
    assert replace(one, map=one.map + 0.01).region == find_region(one.map + 0.01)


def test_region_of_a_map_without_differences_is_all_of_it() -> None:
    for value in (-0.5, 0.0, 0.5):
        region = find_region(torch.full((3, 4), value))
        assert (region.top, region.left, region.bottom, region.right) == (0, 0, 3, 4)
        assert region.words == "all over"
    assert find_region(torch.ones(1, 1)).pixels((8, 8)) == (0, 0, 8, 8)
    for wrong in (torch.ones(3), torch.ones(0, 2)):
        with pytest.raises(ValueError, match=r"`values` must be of shape \(rows, columns\)"):
            find_region(wrong)


# A model that has learnt something


def test_surgery_finds_the_thing_and_clip_does_not() -> None:
    samples = json.loads(Path(SAMPLES, "samples.json").read_text(encoding="utf-8"))
    known = [sample for sample in samples["images"] if sample["known"]]
    files = [Path(SAMPLES, sample["file"]) for sample in known]
    encoder = DualEncoder.from_pretrained(device="cpu")
    # The drawings lie on backgrounds of one colour.
    pixels = encoder.prepare_images(files)["pixel_values"]
    drawn = (pixels - pixels[:, :, :1, :1]).abs().amax(dim=1, keepdim=True) > 0.3
    covered = avg_pool2d(drawn.float(), 8)[:, 0]  # (images, rows, columns)
    inside = {}
    for path in MAP_PATHS:
        maps = similarity_maps(files, samples["labels"], path, model=encoder, relative=path != "discrepancy")
        own = [maps[row, samples["labels"].index(sample["name"])] for row, sample in enumerate(known)]
        # How much more of the thing is in the stronger half of the patches than in the weaker one.
        inside[path] = np.mean(
            [
                float(cover[map_ > map_.median()].mean() - cover[map_ <= map_.median()].mean())
                for map_, cover in zip(own, covered, strict=True)
            ]
        )
    assert inside["surgery"] > 0.2
    assert inside["surgery"] > 3 * abs(inside["clip"])
