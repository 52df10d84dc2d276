# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image-text data: every kind of source, damaged rows, and draws that depend on nothing but seed, epoch and row."""

import io
import itertools
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPProcessor

from clipn_hf import CLIPNProcessor
from clipn_hf.prompts import DEFAULT_TEMPLATES
from clipn_hf.training import (
    Augmentation,
    ImageTextCollator,
    ImageTextDataset,
    get_image_size,
    load_image_text_dataset,
    load_labelled_images,
    sample_shots,
)
from clipn_hf.training.data import parse_filter
from clipn_hf.training.rows import RowReader, UnusableRowError, group_id, read_image

CAPTIONS = ["a cat", "a dog", "a red bird", "a blue car on the house", "a tree", "an apple"]
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds for its threads whenever a parquet stream is left before its end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (40, 50)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def image_rows(images: list[bytes], **columns: list[object]) -> datasets.Dataset:
    features = datasets.Dataset.from_dict(columns).features
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": image, "path": None} for image in images], **columns},
        features=datasets.Features({"image": datasets.Image(), **features}),
    )


@pytest.fixture
def rows() -> datasets.Dataset:
    return image_rows([picture(colour) for colour in COLOURS], caption=CAPTIONS)


@pytest.fixture
def processor(tiny_processor: CLIPProcessor) -> CLIPNProcessor:
    return CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


def write_parquet(folder: Path, rows: datasets.Dataset) -> dict[str, object]:
    rows.select(range(3)).to_parquet(folder / "part-0.parquet")
    rows.select(range(3, 6)).to_parquet(folder / "part-1.parquet")
    return {"source": str(folder / "part-*.parquet")}


def write_image_folder(folder: Path, rows: datasets.Dataset) -> dict[str, object]:
    lines = []
    for index, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
        (folder / f"{index}.png").write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": f"{index}.png", "caption": row["caption"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return {"source": folder}


def write_webdataset(folder: Path, rows: datasets.Dataset) -> dict[str, object]:
    rows = rows.cast_column("image", datasets.Image(decode=False))
    for shard in range(2):
        with tarfile.open(folder / f"pairs-{shard}.tar", "w") as file:
            for index in range(3 * shard, 3 * shard + 3):
                parts = {"png": rows[index]["image"]["bytes"], "txt": rows[index]["caption"].encode()}
                for extension, content in parts.items():
                    member = tarfile.TarInfo(f"{index:06d}.{extension}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return {"source": str(folder / "*.tar"), "image_column": "png", "caption_columns": ["txt"]}


SOURCES = {"parquet": write_parquet, "imagefolder": write_image_folder, "webdataset": write_webdataset}


def colour_of(pixel_values: torch.Tensor, processor: CLIPNProcessor) -> tuple[int, ...]:
    """The colour of a prepared picture that has only one."""
    mean, std = torch.tensor(processor.image_processor.image_mean), torch.tensor(processor.image_processor.image_std)
    return tuple(((pixel_values.mean(dim=(1, 2)) * std + mean) * 255).round().int().tolist())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_pairs(
    kind: str, streaming: bool, rows: datasets.Dataset, processor: CLIPNProcessor, tmp_path: Path
) -> None:
    arguments = SOURCES[kind](tmp_path, rows)
    dataset = load_image_text_dataset(**arguments, streaming=streaming, shuffle_buffer=4)

    examples = list(itertools.islice(dataset, 6)) if streaming else [dataset[index] for index in range(len(dataset))]
    batch = ImageTextCollator(processor)(examples)

    assert batch["pixel_values"].shape == (6, 3, 32, 32)
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    colours = [colour_of(image, processor) for image in batch["pixel_values"]]
    pairs = {text.replace(" ", ""): colour for text, colour in zip(texts, colours, strict=True)}
    expected = {caption.replace(" ", ""): colour for caption, colour in zip(CAPTIONS, COLOURS, strict=True)}
    if streaming:
        # a stream starts over before its buffer is empty
        assert pairs.items() <= expected.items()
        longer = {example["caption"] for example in itertools.islice(dataset, 40)}
        assert longer == set(CAPTIONS)
    else:
        assert pairs == expected


def test_captions_are_drawn_from_all_columns(rows: datasets.Dataset) -> None:
    rows = rows.add_column("keywords", [["red", " ", None, "round"], [], ["x"], ["x"], ["x"], ["x"]])
    dataset = ImageTextDataset(
        rows, caption_columns=["caption", "keywords"], caption_templates=["{}", "this is {}", "{} {{}}"[:2]]
    )
    seen = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        seen.add(dataset[0]["caption"])
    assert seen == {text for word in ("a cat", "red", "round") for text in (word, f"this is {word}")}


def test_draws_depend_on_seed_epoch_and_row_alone(rows: datasets.Dataset) -> None:
    rows = rows.map(lambda caption: {"caption": [f"{caption} {i}" for i in range(50)]}, input_columns="caption")

    def draw(seed: int, epoch: int, order: list[int]) -> dict[int, str]:
        dataset = ImageTextDataset(rows, seed=seed, augmentation=Augmentation((8, 8), flip_probability=0.5))
        dataset.set_epoch(epoch)
        np.random.default_rng().random()
        examples = dataset.__getitems__(order)
        return {index: example["caption"] for index, example in zip(order, examples, strict=True)}

    reference = draw(3, 2, [0, 1, 2, 3, 4, 5])
    assert draw(3, 2, [4, 0, 5, 3, 2, 1]) == reference
    assert draw(3, 2, [4]) == {4: reference[4]}
    assert draw(3, 1, [0, 1, 2, 3, 4, 5]) != reference
    assert draw(4, 2, [0, 1, 2, 3, 4, 5]) != reference


@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_change_nothing(
    persistent: bool, rows: datasets.Dataset, processor: CLIPNProcessor, tmp_path: Path
) -> None:
    rows = image_rows(
        [*(picture(colour) for colour in COLOURS), b"not an image", picture(COLOURS[0])],
        caption=[*([f"{caption} {i}" for i in range(9)] for caption in CAPTIONS), ["a car"], [" "]],
    )
    results = []
    for num_workers in (0, 2):
        dataset = ImageTextDataset(rows, augmentation=Augmentation((32, 32)), seed=1)
        loader = DataLoader(
            dataset,
            batch_size=3,
            num_workers=num_workers,
            collate_fn=ImageTextCollator(processor),
            persistent_workers=persistent and num_workers > 0,
        )
        batches = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            batches += list(loader)
        assert set(dataset.skipped) == {"row 6", "row 7"}
        results.append(batches)
    for alone, with_workers in zip(*results, strict=True):
        assert alone.keys() == with_workers.keys()
        for name in alone:
            assert torch.equal(alone[name], with_workers[name])
    first, second = results[0][: len(results[0]) // 2], results[0][len(results[0]) // 2 :]
    assert not all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, second, strict=True))


def test_unusable_rows_are_replaced_and_reported(
    processor: CLIPNProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "gone.png"
    images = [picture(colour) for colour in COLOURS] * 3
    captions: list[str | None] = [f"caption {index}" for index in range(18)]
    images[0], images[1], images[2] = b"", images[2][:40], b"GIF89a"
    captions[3], captions[4] = None, "   "
    rows = image_rows(images, caption=captions)
    paths = datasets.Dataset.from_dict(
        {"image": [str(missing)], "caption": ["lost"]},
        features=datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}),
    )
    dataset = ImageTextDataset(datasets.concatenate_datasets([rows, paths]))

    examples = dataset.__getitems__([0, 1, 2, 3, 4, 18, 5, 6])

    assert len(examples) == 8
    used = [example["caption"] for example in examples]
    assert len(set(used)) == 8, "a pair was used twice in a batch"
    assert set(used) <= {f"caption {index}" for index in range(5, 18)}
    assert used[6:] == ["caption 5", "caption 6"]
    assert list(dataset.skipped) == [f"row {index}" for index in (0, 1, 2, 3, 4, 18)]
    assert "0 bytes" in dataset.skipped["row 0"]
    assert "There is no caption in caption." in dataset.skipped["row 3"]
    assert "gone.png" in dataset.skipped["row 18"]
    assert ImageTextCollator(processor)(examples)["pixel_values"].shape == (8, 3, 32, 32)
    assert dataset.__getitems__([0, 1, 2, 3, 4, 18, 5, 6])[0]["caption"] == used[0], "the replacement is not fixed"


def test_replacements_repeat_rows_only_when_there_are_no_others() -> None:
    rows = image_rows([picture(COLOURS[0]), b"broken", picture(COLOURS[1])], caption=["a", "b", "c"])
    captions = [example["caption"] for example in ImageTextDataset(rows).__getitems__([0, 1, 2])]
    assert captions[0] == "a"
    assert captions[1] in ("a", "c")
    assert captions[2] == "c"


def test_a_set_without_usable_rows_is_an_error() -> None:
    rows = image_rows([b"broken"] * 4, caption=["a", "b", "c", "d"])
    with pytest.raises(RuntimeError, match=r"100 rows one after the other .*row \d: The image cannot be read"):
        ImageTextDataset(rows)[0]


def test_streams_leave_unusable_rows_out(processor: CLIPNProcessor, tmp_path: Path) -> None:
    images = [picture(COLOURS[0]), b"broken", picture(COLOURS[1]), picture(COLOURS[2])]
    captions, groups = ["a cat", "a dog", "", "a bird"], ["x", "y", None, "x"]
    image_rows(8 * images, caption=8 * captions, group=8 * groups).to_parquet(tmp_path / "rows.parquet")
    stream = load_image_text_dataset(tmp_path / "rows.parquet", streaming=True, group_column="group", shuffle_buffer=2)
    examples = list(itertools.islice(stream, 9))
    assert {example["caption"] for example in examples} == {"a cat", "a bird"}
    assert {example["group_id"] for example in examples} == {group_id("x")}
    assert len(stream.skipped_rows.as_dict()) == 2
    again = list(itertools.islice(stream, 9))
    assert [example["caption"] for example in again] == [example["caption"] for example in examples]
    batches = DataLoader(stream, batch_size=4, collate_fn=ImageTextCollator(processor))
    assert all(len(batch["input_ids"]) == 4 for batch in itertools.islice(batches, 5))


def test_a_stream_without_usable_rows_ends_with_an_error(tmp_path: Path) -> None:
    image_rows([b"broken"] * 60, caption=["a"] * 60).to_parquet(tmp_path / "rows.parquet")
    stream = load_image_text_dataset(tmp_path / "rows.parquet", streaming=True, shuffle_buffer=2)
    with pytest.raises(RuntimeError, match="Check the names of the image and caption columns"):
        next(iter(stream))


def test_group_ids_are_the_same_in_every_process() -> None:
    # literal values: `hash` would differ from process to process
    assert group_id("red apple") == 4764450824584026067
    assert group_id(17) == 17
    assert group_id(np.int64(-1)) == -1
    assert group_id("17") != 17


def test_groups_reach_the_batch_as_int64(rows: datasets.Dataset, processor: CLIPNProcessor) -> None:
    rows = rows.add_column("concept", ["fruit", "animal", "fruit", None, None, "animal"])
    dataset = ImageTextDataset(rows, group_column="concept")
    batch = ImageTextCollator(processor)([dataset[index] for index in range(6)])
    ids = batch["group_ids"]
    assert ids.dtype == torch.int64
    assert ids[0] == ids[2]
    assert ids[1] == ids[5]
    assert len(set(ids.tolist())) == 4, "rows without a group are groups of their own"
    assert "group_ids" not in ImageTextCollator(processor)([ImageTextDataset(rows)[0]])


def test_batches_are_padded_to_the_longest_text(rows: datasets.Dataset, processor: CLIPNProcessor) -> None:
    dataset, collator = ImageTextDataset(rows), ImageTextCollator(processor)
    short = collator([dataset[0], dataset[1]])
    assert short.keys() == {"pixel_values", "input_ids", "attention_mask"}
    assert short["input_ids"].shape == (2, 4)
    mixed = collator([dataset[0], dataset[3]])
    assert mixed["attention_mask"].sum(dim=1).tolist() == [4, mixed["input_ids"].shape[1]]
    long = collator([{**dataset[0], "caption": "cat " * 200}])
    assert long["input_ids"].shape == (1, processor.tokenizer.model_max_length)


def test_handcrafted_prompts_are_drawn_in_pairs(rows: datasets.Dataset, tiny_processor: CLIPProcessor) -> None:
    processor = CLIPNProcessor(
        tiny_processor.image_processor,
        tiny_processor.tokenizer,
        templates=["a photo of a {}", "a picture with a {}"],
        no_templates=["a photo of no {}", "a picture without a {}"],
    )
    dataset, seen = ImageTextDataset(rows), set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        batch = ImageTextCollator(processor)([dataset[0], dataset[1]])
        assert {"no_input_ids", "no_attention_mask"} <= batch.keys()
        for ids, no_ids in zip(batch["input_ids"], batch["no_input_ids"], strict=True):
            seen.add(tuple(processor.tokenizer.decode(each, skip_special_tokens=True) for each in (ids, no_ids)))
    pairs = [("a photo of a", "a photo of no"), ("a picture with a", "a picture without a")]
    assert seen == {
        (f"{template} {caption}", f"{no_template} {caption}")
        for template, no_template in pairs
        for caption in CAPTIONS[:2]
    }
    processor.no_templates = ["no {}"]
    with pytest.raises(ValueError, match="are pairs, got 2 and 1"):
        ImageTextCollator(processor)([dataset[0]])


def test_templates_that_are_left_to_the_model(rows: datasets.Dataset, processor: CLIPNProcessor) -> None:
    example = {**ImageTextDataset(rows)[0], "template_draw": 0.0}
    processor.templates = processor.no_templates = None
    assert "no_input_ids" not in ImageTextCollator(processor)([example])
    processor.no_templates = [f"not {template}" for template in DEFAULT_TEMPLATES]
    batch = ImageTextCollator(processor)([example])
    texts = [
        processor.tokenizer.decode(batch[name][0], skip_special_tokens=True) for name in ("input_ids", "no_input_ids")
    ]
    assert texts == ["a photo of a a cat .", "not a photo of a a cat ."]


def test_image_embeddings_take_the_place_of_images(
    rows: datasets.Dataset, processor: CLIPNProcessor, tmp_path: Path
) -> None:
    embeds = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32)
    embeds[2] = np.nan
    np.save(tmp_path / "embeds.npy", embeds)
    dataset = ImageTextDataset(rows)
    with pytest.raises(ValueError, match=r"must have the shape \(6, views, dim\).* got \(5, 5, 7\)"):
        dataset.image_embeds = embeds[:5]
    dataset.image_embeds = np.load(tmp_path / "embeds.npy", mmap_mode="r")

    batch = ImageTextCollator(processor)(dataset.__getitems__([0, 2]))
    assert batch.keys() == {"image_embeds", "input_ids", "attention_mask"}
    assert batch["image_embeds"].dtype == torch.float32
    assert torch.isfinite(batch["image_embeds"]).all()
    assert list(dataset.skipped) == ["row 2"]

    views = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        views.update(np.flatnonzero((embeds[0] == dataset[0]["image_embeds"]).all(axis=1)).tolist())
    assert views == set(range(5))

    copied = pickle.dumps(dataset.rows), pickle.loads(pickle.dumps(dataset.__getstate__()["_image_embeds"]))
    assert copied[1] == tmp_path / "embeds.npy", "the memory map travels by name, not by content"


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    scale=st.floats(0.01, 1.0),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_augmentation_crops_inside_the_image(width: int, height: int, seed: int, scale: float, flip: float) -> None:
    augmentation = Augmentation((9, 7), crop_scale=(scale, 1.0), flip_probability=flip)
    gradient = np.linspace(0, 255, width * height * 3).astype(np.uint8).reshape(height, width, 3)
    image = Image.fromarray(gradient)
    first = augmentation(image, np.random.default_rng(seed))
    second = augmentation(image, np.random.default_rng(seed))
    assert first.size == (7, 9)
    assert np.array_equal(first, second)


def test_augmentation_flips() -> None:
    image = Image.new("RGB", (10, 10))
    image.paste((255, 255, 255), (0, 0, 5, 10))
    augmentation = Augmentation((10, 10), crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=1.0)
    assert np.array_equal(augmentation(image, np.random.default_rng(0)), np.asarray(image)[:, ::-1])


def coloured(size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(40, 200, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_augmentation_makes_grey() -> None:
    image = coloured()
    always = Augmentation((20, 20), grayscale_probability=1.0)
    grey = np.asarray(always(image, np.random.default_rng(0)), dtype=int)
    assert np.ptp(grey, axis=2).max() == 0
    plain = np.asarray(Augmentation((20, 20))(image, np.random.default_rng(0)), dtype=float)
    assert np.abs(grey[..., 0] - plain @ [0.299, 0.587, 0.114]).max() <= 1
    sometimes = Augmentation((20, 20), grayscale_probability=0.3)
    drawn = [np.ptp(np.asarray(sometimes(image, np.random.default_rng(seed))), axis=2).max() for seed in range(200)]
    assert 30 < drawn.count(0) < 90


def test_augmentation_changes_colours_within_its_strength() -> None:
    image = Image.new("RGB", (10, 10), (200, 100, 50))
    augmentation = Augmentation((10, 10), color_jitter=0.2)
    results = [augmentation(image, np.random.default_rng(seed)).getpixel((0, 0)) for seed in range(100)]
    assert len(set(results)) > 50
    # Of one colour, contrast pulls towards its grey, and brightness multiplies everything.
    brightness = [sum(pixel) / 350 for pixel in results]
    assert 0.75 < min(brightness) < 0.9 < 1.1 < max(brightness) < 1.25
    saturation = [(pixel[0] - pixel[2]) / (150 * level) for pixel, level in zip(results, brightness, strict=True)]
    assert 0.6 < min(saturation) < 0.9 < 1.1 < max(saturation) < 1.5


def test_changes_of_colour_leave_the_crops_as_they_are() -> None:
    image = coloured((60, 50))
    common = {"size": (16, 16), "crop_scale": (0.3, 0.9), "flip_probability": 0.5}
    for seed in range(10):
        plain = Augmentation(**common)(image, np.random.default_rng(seed))
        grey = Augmentation(**common, grayscale_probability=1.0)(image, np.random.default_rng(seed))
        assert np.array_equal(np.asarray(plain.convert("L")), np.asarray(grey)[..., 0])
        jittered = Augmentation(**common, color_jitter=1e-9)(image, np.random.default_rng(seed))
        assert np.abs(np.asarray(plain, dtype=int) - np.asarray(jittered)).max() <= 1
    # The crop of seed 0 is fixed: caches of embeddings and resumed runs rely on it.
    left_to_right = Image.fromarray(np.repeat(np.arange(250, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(200, 0))
    first = np.asarray(Augmentation((4, 4), crop_scale=(0.3, 0.9))(left_to_right, np.random.default_rng(0)))
    assert first[0, :, 0].tolist() == [24, 67, 111, 154]


def test_colours_are_drawn_anew_for_each_row_and_epoch(rows: datasets.Dataset) -> None:
    dataset = ImageTextDataset(rows, augmentation=Augmentation((8, 8), color_jitter=0.5))
    seen = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        seen.append(np.asarray(dataset[3]["image"]))
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])
    first, second = dataset.read_views(3, 2)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, dataset.read_views(3, 2)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 5)}, "each at least 1"),
        ({"crop_scale": (0.0, 1.0)}, "`crop_scale` must be two numbers with 0 < lower"),
        ({"crop_scale": (0.5, 1.5)}, "`crop_scale`"),
        ({"crop_ratio": (2.0, 1.0)}, "`crop_ratio`"),
        ({"flip_probability": 1.5}, r"`flip_probability` must lie in \[0, 1\], got 1.5"),
        ({"color_jitter": 1.5}, r"`color_jitter` must lie in \[0, 1\], got 1.5"),
        ({"grayscale_probability": -0.1}, r"`grayscale_probability` must lie in \[0, 1\], got -0.1"),
    ],
)
def test_augmentation_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"size": (8, 8), **arguments})


def test_image_size_of_processors(processor: CLIPNProcessor) -> None:
    assert get_image_size(processor.image_processor) == (32, 32)
    processor.image_processor.size = {"height": 20, "width": 30}
    assert get_image_size(processor.image_processor) == (20, 30)
    processor.image_processor.size = {"longest_edge": 20}
    with pytest.raises(
        ValueError, match="must have 'shortest_edge', or 'height' and 'width', got {'longest_edge': 20}"
    ):
        get_image_size(processor.image_processor)


@pytest.mark.parametrize("streaming", [False, True])
def test_filters(streaming: bool, rows: datasets.Dataset, tmp_path: Path) -> None:
    rows = rows.add_column("style", list("abcabc")).add_column("number", [1, 2, 3, 4, 5, 6])
    rows.to_parquet(tmp_path / "rows.parquet")
    dataset = load_image_text_dataset(
        tmp_path / "rows.parquet",
        filters={"style": ["a", "c"], "number": ["1", "6"]},
        streaming=streaming,
        shuffle_buffer=2,
    )
    examples = list(itertools.islice(dataset, 8)) if streaming else [dataset[0], dataset[1]]
    assert {example["caption"] for example in examples} == {CAPTIONS[0], CAPTIONS[5]}
    with pytest.raises(ValueError, match="no column 'colour'; it has image, caption, style, number"):
        load_image_text_dataset(tmp_path / "rows.parquet", filters={"colour": ["a"]}, streaming=streaming)


def test_fingerprints_follow_the_content(rows: datasets.Dataset, tmp_path: Path) -> None:
    arguments = write_image_folder(tmp_path, rows)
    before = load_image_text_dataset(**arguments).fingerprint()
    dataset = load_image_text_dataset(**arguments)
    assert dataset.fingerprint() == before
    (tmp_path / "3.png").write_bytes(picture((1, 2, 3)))
    assert dataset.fingerprint() != before
    assert ImageTextDataset(rows).fingerprint() == ImageTextDataset(rows).fingerprint()
    assert ImageTextDataset(rows).fingerprint() != ImageTextDataset(rows.select(range(5))).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": "jpg"}, "no column 'jpg'; it has image, caption"),
        ({"caption_columns": ["text"]}, "no column 'text'"),
        ({"caption_columns": "caption"}, "must be a list of column names, got 'caption'"),
        ({"caption_columns": []}, "must be a list of column names"),
        ({"group_column": "concept"}, "no column 'concept'"),
        ({"caption_templates": ["a photo"]}, "`caption_templates.0.` must contain `{}` exactly once"),
        ({"seed": -1}, "`seed` must not be negative"),
        ({"filters": {"caption": ["nothing"]}}, "no rows"),
        ({"source": "missing/*.parquet"}, "No file matches missing"),
        ({"source": "./missing"}, "There is no folder ./missing"),
        ({"source": ["a.tar", "b.parquet"]}, "must be of one kind"),
        ({"source": __file__}, "a file of an unknown kind; expected one of .parquet"),
        ({"source": []}, "No data set is given"),
        ({"streaming": True, "shuffle_buffer": 0}, "`shuffle_buffer` must be at least 1"),
    ],
)
def test_loading_refuses(arguments: dict[str, object], message: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_image_text_dataset(**{"source": tmp_path / "rows.parquet", **arguments})


def test_dataset_refuses_other_tables(rows: datasets.Dataset) -> None:
    with pytest.raises(TypeError, match=r"must be a datasets.Dataset, got IterableDataset"):
        ImageTextDataset(rows.to_iterable_dataset())


def test_labelled_images(rows: datasets.Dataset, tmp_path: Path) -> None:
    rows = rows.add_column("kind", ["cat", "dog", "cat", "dog", "cat", "bird"]).add_column(
        "number", [0, 1, 0, 1, 0, 2]
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    labelled = load_labelled_images(tmp_path / "rows.parquet", label_column="kind")
    assert labelled.column_names == ["image", "label"]
    assert labelled.features["label"].names == ["bird", "cat", "dog"]
    assert labelled["label"][:3] == [1, 2, 1]
    assert read_image(labelled[1]["image"]).getpixel((0, 0)) == COLOURS[1]
    assert load_labelled_images(tmp_path / "rows.parquet", label_column=None).column_names == ["image"]
    with pytest.raises(ValueError, match="must hold class names"):
        load_labelled_images(tmp_path / "rows.parquet", label_column="number")
    with pytest.raises(ValueError, match="no rows in the split"):
        load_labelled_images(tmp_path / "rows.parquet", label_column="kind", filters={"kind": ["fish"]})

    for name in ("cat", "dog"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "1.png").write_bytes(picture(COLOURS[0]))
    assert load_labelled_images(tmp_path / "folder").features["label"].names == ["cat", "dog"]
    numbered = load_labelled_images(
        tmp_path / "rows.parquet", label_column="number", label_names=["cat", "dog", "owl"]
    )
    assert numbered["label"][:] == [0, 1, 0, 1, 0, 2]
    renamed = load_labelled_images(tmp_path / "folder", label_names=["tabby", "poodle"])
    assert renamed["label"][:] == [0, 1]
    texts = load_labelled_images(
        tmp_path / "rows.parquet", label_column="kind", label_names=["dog", "cat", "fish", "bird"]
    )
    assert texts["label"][:] == [1, 0, 1, 0, 1, 3]


def test_folders_without_images_are_classes(tmp_path: Path) -> None:
    def save(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(picture(COLOURS[0]))

    save("photos/train/cat/1.png", "photos/train/dog/1.PNG", "photos/test/cat/1.png", "photos/test/dog/2.png")
    (tmp_path / "photos" / "train" / "bird").mkdir()
    (tmp_path / "photos" / "train" / "bird" / "notes.txt").write_text("none yet")
    train = load_labelled_images(tmp_path / "photos", split="train[:100%]")
    assert train.features["label"].names == ["bird", "cat", "dog"]
    assert train["label"][:] == [1, 2]
    assert load_labelled_images(tmp_path / "photos", split="test").features["label"].names == ["cat", "dog"]
    assert load_labelled_images(tmp_path / "photos", label_names=["tabby", "poodle"])["label"][:] == [0, 1]
    with pytest.raises(ValueError, match="There is no image of 1 of the 3 classes: 'bird'. Give images of each"):
        sample_shots(train["label"], 1, class_names=train.features["label"].names)

    save("single/cat/1.png", "single/cat/2.png")
    single = load_labelled_images([str(tmp_path / "single")])
    assert (single.features["label"].names, single["label"][:]) == (["cat"], [0, 0])
    with pytest.raises(ValueError, match="There are images of one class only, 'cat', which leaves nothing to tell"):
        sample_shots(single["label"], 1, class_names=["cat"])
    assert load_labelled_images(tmp_path / "single", label_column=None).column_names == ["image"]

    # Folders that are no classes
    save("mixed/cat/1.png", "mixed/1.png", "nested/a/cat/1.png")
    for name in ("mixed", "nested"):
        with pytest.raises(ValueError, match="The data set has no column 'label'"):
            load_labelled_images(tmp_path / name)


@pytest.mark.parametrize(
    ("column", "names", "message"),
    [
        ("number", ["cat", "dog"], "'number' holds 2, but the 2 given names are for the numbers from 0 to 1"),
        ("kind", ["cat", "dog"], "'kind' holds 'bird', which is none of the 2 given names"),
        ("share", ["cat", "dog"], "'share' must hold class numbers or class names, got .*float64"),
        ("known", ["cat", "dog"], "'known' has 3 classes, but 2 names are given"),
    ],
)
def test_label_names_that_do_not_fit(
    column: str, names: list[str], message: str, rows: datasets.Dataset, tmp_path: Path
) -> None:
    rows = rows.add_column("kind", ["cat", "dog", "cat", "dog", "cat", "bird"]).add_column("share", [0.5] * 6)
    rows = rows.add_column("number", [0, 1, 0, 1, 0, 2]).add_column("known", [0, 1, 0, 1, 0, 1])
    rows.cast_column("known", datasets.ClassLabel(names=["a", "b", "c"])).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=message):
        load_labelled_images(tmp_path / "rows.parquet", label_column=column, label_names=names)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("cell", "kind"),
    [(3, "int64"), ([3], "int64"), ({"text": "a cat"}, "text"), ([{"text": "a cat"}], "text"), ([["a cat"]], "List")],
)
def test_caption_columns_hold_text(
    cell: object, kind: str, streaming: bool, rows: datasets.Dataset, tmp_path: Path
) -> None:
    rows.add_column("words", [cell] * 6).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=rf"'words' must hold texts or lists of texts, got .*{kind}.*; name another"):
        load_image_text_dataset(tmp_path / "rows.parquet", caption_columns=["words"], streaming=streaming)


@pytest.mark.parametrize(("cell", "kind"), [(3, "int"), (["a cat", 3], "int"), ({"text": "a cat"}, "dict")])
def test_captions_that_are_no_text_make_a_row_unusable(cell: object, kind: str) -> None:
    reader = RowReader("image", ("caption",), None, ("{}",), None)
    with pytest.raises(UnusableRowError, match=f"The caption in caption is no text but {kind}"):
        reader.read_text({"caption": cell}, np.random.default_rng(0))
    assert reader.read_text({"caption": [None, "a cat"]}, np.random.default_rng(0))["caption"] == "a cat"
    with pytest.raises(UnusableRowError, match="The cell holds a value of the type int|the cell holds a value"):
        reader.read_image({"image": 3})


def test_conditions_of_filters() -> None:
    assert parse_filter(None) == {}
    assert parse_filter(["style=a, b", "kind=c", "style=d"]) == {"style": ["a", "b", "d"], "kind": ["c"]}
    for wrong in ("style", "=a"):
        with pytest.raises(ValueError, match="A filter has the form column=value"):
            parse_filter([wrong])
