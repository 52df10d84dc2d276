# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""One pass over the images: the embeddings of the model, from the cache where they are in it, and never others."""

import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, feature_cache
from clipn_hf.feature_cache import cache_info
from clipn_hf.features import Features, cached_class_embeddings, extract_features

LABELS = ["cat", "red bird", "tree"]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (36, 45, 3), dtype=np.uint8)


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def clipn_encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(picture(seed))
    return sorted(map(str, folder.iterdir()))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def direct(encoder: DualEncoder, images: Any) -> torch.Tensor:
    return encoder.image_embeddings(encoder.prepare_images(images))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


# What comes out


def test_embeddings_are_those_of_the_encoder(encoder: DualEncoder, files: list[str], cache: Path) -> None:
    first = extract_features(files, encoder, labels=list("abcabc"), cache_dir=cache, batch_size=4)
    assert first.embeddings.dtype == torch.float32
    assert first.embeddings.shape == (6, 24)
    assert_close(first.embeddings, direct(encoder, files))
    torch.testing.assert_close(first.embeddings.norm(dim=1), torch.ones(6))
    assert first.rows.tolist() == list(range(6))
    assert first.labels == list("abcabc")
    assert (len(first), first.num_encoded, first.skipped) == (6, 6, {})

    second = extract_features(files, encoder, cache_dir=cache)
    assert second.num_encoded == 0
    assert torch.equal(second.embeddings, first.embeddings)
    assert second.digests == first.digests
    assert second.labels is None


def rows(images: list[Any]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": images}, features=features)


@pytest.mark.parametrize(
    "hand_over",
    [
        lambda files: [Path(file).read_bytes() for file in files],
        lambda files: rows(files),
        lambda files: rows([{"bytes": Path(file).read_bytes(), "path": None} for file in files]),
        lambda files: rows(files).to_iterable_dataset(),
        lambda files: iter(files),
        lambda files: [{"image": file} for file in files],
        lambda files: [open(file, "rb") for file in files],  # noqa: SIM115
    ],
)
def test_the_content_counts_however_it_is_handed_over(
    encoder: DualEncoder, files: list[str], cache: Path, hand_over: Callable[[list[str]], Any]
) -> None:
    expected = extract_features(files, encoder, cache_dir=cache)
    found = extract_features(hand_over(files), encoder, cache_dir=cache, labels=list(range(6)))
    assert found.num_encoded == 0
    assert torch.equal(found.embeddings, expected.embeddings)
    assert found.labels == list(range(6))


def test_pixels_have_a_digest_of_their_own(encoder: DualEncoder, cache: Path) -> None:
    arrays = [pixels(seed) for seed in range(3)]
    first = extract_features(arrays, encoder, cache_dir=cache)
    again = extract_features([Image.fromarray(array) for array in arrays], encoder, cache_dir=cache)
    assert again.num_encoded == 0
    assert torch.equal(again.embeddings, first.embeddings)
    turned = extract_features([array.reshape(45, 36, 3) for array in arrays], encoder, cache_dir=cache)
    assert turned.num_encoded == 3
    assert extract_features(arrays[0], encoder, cache_dir=cache).digests == first.digests[:1]


def test_order_batches_processes_and_repetitions_do_not_matter(
    encoder: DualEncoder, files: list[str], cache: Path
) -> None:
    expected = direct(encoder, files)
    order = [3, 0, 3, 5, 1, 0, 2]
    for batch_size, num_workers in ((1, 0), (2, 0), (3, 2), (64, 0)):
        shuffled = [files[row] for row in order]
        found = extract_features(
            shuffled, encoder, use_cache=False, batch_size=batch_size, num_workers=num_workers, progress=False
        )
        assert found.num_encoded == 5
        assert_close(found.embeddings, expected[order])
    extract_features(files[:3], encoder, cache_dir=cache)
    found = extract_features([files[row] for row in order], encoder, cache_dir=cache, batch_size=2, num_workers=2)
    assert found.num_encoded == 2
    assert_close(found.embeddings, expected[order])


def test_unreadable_images_are_left_out_and_reported(
    encoder: DualEncoder, files: list[str], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [files[0], b"magic", files[1], "missing.png", None, picture(2)[:200], b"", files[2]]
    for num_workers in (0, 1):
        caplog.clear()
        found = extract_features(
            images, encoder, labels=np.arange(8), cache_dir=cache, num_workers=num_workers, batch_size=2
        )
        assert found.rows.tolist() == [0, 2, 7]
        assert found.labels == [0, 2, 7] and type(found.labels[0]) is int
        assert_close(found.embeddings, direct(encoder, files[:3]))
        assert list(found.skipped) == [1, 3, 4, 5, 6]
        assert found.skipped[3].startswith("missing.png: there is no such file")
        assert found.skipped[4] == "there is no image."
        (warning,) = caplog.messages
        assert warning.startswith("5 of 8 images cannot be read and are left out. Image 1: ")
        assert warning.endswith("And 2 more.")
    caplog.clear()
    assert list(extract_features(images, encoder, cache_dir=cache, warn=False).skipped) == [1, 3, 4, 5, 6]
    assert not caplog.messages
    extract_features([*files[:2], b""], encoder, cache_dir=cache)
    assert caplog.messages[0].startswith("1 of 3 images cannot be read and is left out. Image 2: ")


def test_bad_input_is_named(encoder: DualEncoder, files: list[str], cache: Path) -> None:
    for images in ([], iter([])):
        with pytest.raises(ValueError, match="`images` is empty"):
            extract_features(images, encoder, cache_dir=cache)
    with pytest.raises(ValueError, match="None of the 2 images can be read. Image 0: "):
        extract_features([b"magic", b""], encoder, cache_dir=cache)
    with pytest.raises(TypeError, match="Cannot read image 1: An image must be .* got int"):
        extract_features([files[0], 3], encoder, cache_dir=cache)
    for images in (files, iter(files)):
        with pytest.raises(ValueError, match="got 2 labels and 6 images"):
            extract_features(images, encoder, labels=["a", "b"], cache_dir=cache)
    with pytest.raises(TypeError, match="got the text 'abcdef'"):
        extract_features(files, encoder, labels="abcdef", cache_dir=cache)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        extract_features(files, encoder, cache_dir=cache, batch_size=0)
    with pytest.raises(ValueError, match="`num_workers` must be 0 or more, got -1"):
        extract_features(files, encoder, cache_dir=cache, num_workers=-1)


def test_the_cache_is_in_its_default_folder_unless_it_is_off(
    encoder: DualEncoder, files: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPN_HF_CACHE", str(cache))
    extract_features(files, encoder, use_cache=False)
    assert not cache.exists()
    extract_features(files, encoder)
    assert [entry.embeddings for entry in cache_info(cache).entries] == [6]


def test_a_model_in_training_is_evaluated_and_left_as_it_was(encoder: DualEncoder, files: list[str]) -> None:
    expected = direct(encoder, files)
    for layer in encoder.model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.9
    encoder.model.train()
    found = extract_features(files, encoder, use_cache=False)
    assert encoder.model.training
    assert_close(found.embeddings, expected)


# What is not to be confused


def change_weight(encoder: DualEncoder) -> None:
    with torch.no_grad():
        encoder.model.vision_model.post_layernorm.bias[0] += 1e-6


def change_projection(encoder: DualEncoder) -> None:
    with torch.no_grad():
        encoder.model.visual_projection.weight[0, 0] += 1e-6


def change_activation(encoder: DualEncoder) -> None:
    encoder.model.config.vision_config.hidden_act = "gelu"


def change_layer(encoder: DualEncoder) -> None:
    encoder.model.vision_model.encoder.layers[0].mlp.activation_fn = torch.nn.ReLU()


def change_dtype(encoder: DualEncoder) -> None:
    encoder.model.to(torch.bfloat16)


def change_mean(encoder: DualEncoder) -> None:
    encoder.processor.image_processor.image_mean = [0.5, 0.5, 0.5]


def change_crop(encoder: DualEncoder) -> None:
    encoder.processor.image_processor.do_center_crop = False
    encoder.processor.image_processor.size = {"height": 32, "width": 32}


class OtherImageProcessor(CLIPImageProcessorPil):
    """Of another class, which its settings need not say."""


def change_processor_class(encoder: DualEncoder) -> None:
    encoder.processor.image_processor.__class__ = OtherImageProcessor


def add_adapter(encoder: DualEncoder) -> None:
    encoder.model = get_peft_model(
        encoder.model, LoraConfig(target_modules=r"vision_model\..*\.q_proj", init_lora_weights=False)
    ).eval()


@pytest.mark.parametrize(
    "change",
    [
        change_weight,
        change_projection,
        change_activation,
        change_layer,
        change_dtype,
        change_mean,
        change_crop,
        change_processor_class,
        add_adapter,
    ],
)
def test_another_encoder_never_uses_them(
    encoder: DualEncoder, files: list[str], cache: Path, change: Callable[[DualEncoder], None]
) -> None:
    extract_features(files, encoder, cache_dir=cache)
    change(encoder)
    found = extract_features(files, encoder, cache_dir=cache)
    assert found.num_encoded == 6
    assert_close(found.embeddings, direct(encoder, files))
    assert len(cache_info(cache).entries) == 2
    assert extract_features(files, encoder, cache_dir=cache).num_encoded == 0


def test_factors_and_switches_of_adapters_count(encoder: DualEncoder, files: list[str], cache: Path) -> None:
    add_adapter(encoder)
    with_adapter = extract_features(files, encoder, cache_dir=cache)
    layer = encoder.model.get_base_model().vision_model.encoder.layers[0].self_attn.q_proj
    layer.scaling["default"] *= 2
    assert extract_features(files, encoder, cache_dir=cache).num_encoded == 6
    layer.scaling["default"] /= 2
    assert extract_features(files, encoder, cache_dir=cache).num_encoded == 0
    with encoder.model.disable_adapter():
        without = extract_features(files, encoder, cache_dir=cache)
    assert without.num_encoded == 6
    assert not torch.allclose(without.embeddings, with_adapter.embeddings, atol=1e-4)


def test_text_encoders_do_not_count(
    encoder: DualEncoder, clipn_encoder: DualEncoder, files: list[str], cache: Path
) -> None:
    extract_features(files, encoder, cache_dir=cache)
    assert extract_features(files, clipn_encoder, cache_dir=cache).num_encoded == 0
    with torch.no_grad():
        clipn_encoder.model.no_text_projection.weight += 1
        clipn_encoder.model.logit_scale += 1
    adapted = get_peft_model(
        clipn_encoder.model, LoraConfig(target_modules=r"no_text_model\..*\.q_proj", init_lora_weights=False)
    )
    clipn_encoder.model = adapted.eval()
    assert extract_features(files, clipn_encoder, cache_dir=cache).num_encoded == 0


def test_a_class_that_is_not_known_counts_as_a_whole(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, files: list[str], cache: Path
) -> None:
    class OtherModel(CLIPModel):
        """What its image encoder reads cannot be known."""

    tiny_clip.__class__ = OtherModel
    encoder = DualEncoder(tiny_clip, tiny_processor)
    extract_features(files, encoder, cache_dir=cache)
    with torch.no_grad():
        tiny_clip.text_projection.weight += 1
    assert extract_features(files, encoder, cache_dir=cache).num_encoded == 6


def test_another_image_under_the_same_name_is_embedded(encoder: DualEncoder, files: list[str], cache: Path) -> None:
    before = extract_features(files, encoder, cache_dir=cache)
    Path(files[2]).write_bytes(picture(77))
    after = extract_features(files, encoder, cache_dir=cache)
    assert after.num_encoded == 1
    assert after.digests[2] != before.digests[2]
    assert_close(after.embeddings, direct(encoder, files))


# What may go wrong


def test_an_interrupted_pass_continues(
    encoder: DualEncoder, files: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, calls = encoder.image_embeddings, 0

    def interrupt(pixel_values: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return embed(pixel_values)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "image_embeddings", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract_features(files, encoder, cache_dir=cache, batch_size=2)
    found = extract_features(files, encoder, cache_dir=cache, batch_size=2)
    assert found.num_encoded == 2
    assert_close(found.embeddings, direct(encoder, files))


def test_a_killed_pass_continues(clip_folder: Path, files: list[str], cache: Path) -> None:
    """The process ends without a chance to write what it has."""
    script = f"""
import os, sys
from clipn_hf import DualEncoder, feature_cache
from clipn_hf.features import extract_features
feature_cache.SHARD_ROWS = 2
encoder = DualEncoder.from_pretrained({str(clip_folder)!r}, device="cpu")
embed, calls = encoder.image_embeddings, []
def die(pixel_values):
    calls.append(1)
    if len(calls) == 4:
        os._exit(9)
    return embed(pixel_values)
encoder.image_embeddings = die
extract_features({files!r}, encoder, cache_dir={str(cache)!r}, batch_size=1)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    encoder = DualEncoder.from_pretrained(clip_folder, device="cpu")
    found = extract_features(files, encoder, cache_dir=cache)
    assert found.num_encoded == 4
    assert_close(found.embeddings, direct(encoder, files))


def test_two_processes_write_at_once(clip_folder: Path, files: list[str], cache: Path) -> None:
    script = f"""
import sys
from clipn_hf import DualEncoder, feature_cache
from clipn_hf.features import extract_features
feature_cache.SHARD_ROWS = 2
encoder = DualEncoder.from_pretrained({str(clip_folder)!r}, device="cpu")
print("ready", flush=True)
sys.stdin.readline()
for repetition in range(5):
    feature_cache.FeatureStore.digests = lambda store: frozenset()
    feature_cache.FeatureStore.__contains__ = lambda store, digest: False
    extract_features({files!r}, encoder, cache_dir={str(cache)!r}, batch_size=2)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(list(cache.glob("features/*/*.safetensors"))) == 2 * 5 * 3
    assert not [path for path in cache.rglob("*") if ".partial" in path.name]
    encoder = DualEncoder.from_pretrained(clip_folder, device="cpu")
    found = extract_features(files, encoder, cache_dir=cache)
    assert found.num_encoded == 0
    assert_close(found.embeddings, direct(encoder, files))


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_file_that_was_tampered_with_is_computed_again(
    encoder: DualEncoder,
    files: list[str],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    extract_features(files, encoder, cache_dir=cache)
    (shard,) = cache.glob("features/*/*.safetensors")
    shard.write_bytes(damage(shard.read_bytes()))
    found = extract_features(files, encoder, cache_dir=cache)
    assert "are deleted and computed again" in caplog.text
    assert found.num_encoded == 6
    assert_close(found.embeddings, direct(encoder, files))
    caplog.clear()
    assert extract_features(files, encoder, cache_dir=cache).num_encoded == 0
    assert not caplog.messages


def test_what_cannot_be_written_is_returned_all_the_same(
    encoder: DualEncoder, files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    found = extract_features(files, encoder, cache_dir=tmp_path / "file")
    assert "cannot be written" in caplog.text
    assert_close(found.embeddings, direct(encoder, files))


def test_shards_are_written_as_the_pass_goes(
    encoder: DualEncoder, files: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "SHARD_ROWS", 2)
    seen = []

    def watched() -> Iterator[str]:
        for file in files:
            seen.append(len(list(cache.glob("features/*/*.safetensors"))))
            yield file

    extract_features(watched(), encoder, cache_dir=cache, batch_size=1)
    assert seen == [0, 0, 1, 1, 2, 2]


# Labels


class Counted:
    """How many labels an encoder has embedded."""

    def __init__(self, encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.labels: list[str] = []
        self.original = encoder.class_embeddings
        monkeypatch.setattr(encoder, "class_embeddings", self)

    def __call__(self, labels: list[str], *args: Any, **kwargs: Any) -> Any:
        self.labels += labels
        return self.original(labels, *args, **kwargs)


def test_class_embeddings_are_those_of_the_encoder(
    clipn_encoder: DualEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = clipn_encoder.class_embeddings(LABELS)
    counted = Counted(clipn_encoder, monkeypatch)
    for _ in range(2):
        found = cached_class_embeddings(clipn_encoder, LABELS, cache_dir=cache)
        for one, other in zip(found, expected, strict=True):
            assert one is not None and other is not None
            assert_close(one, other)
    assert sorted(counted.labels) == sorted(LABELS)

    wider = ["car", *LABELS[::-1], "Cat"]
    text, no_text = cached_class_embeddings(clipn_encoder, wider, cache_dir=cache)
    assert sorted(counted.labels) in (sorted([*LABELS, "car"]), sorted([*LABELS, "car", "Cat"]))
    expected_text, expected_no_text = counted.original(wider)
    assert_close(text, expected_text)
    assert no_text is not None and expected_no_text is not None
    assert_close(no_text, expected_no_text)
    assert {entry.kind for entry in cache_info(cache).entries} == {"text", "no_text"}


def test_templates_and_encoders_do_not_mix(clipn_encoder: DualEncoder, cache: Path) -> None:
    for arguments in (
        {},
        {"templates": ["a {}"]},
        {"templates": ["the {}"], "no_templates": ["not the {}"]},
        {"no_templates": ["not the {}"]},
        {"use_no_encoder": False},
        {"templates": ["{}", "a {}"]},
    ):
        text, no_text = cached_class_embeddings(clipn_encoder, LABELS, cache_dir=cache, **arguments)
        expected, no_expected = clipn_encoder.class_embeddings(LABELS, **arguments)
        assert_close(text, expected)
        assert (no_text is None) == (no_expected is None)
        if no_text is not None and no_expected is not None:
            assert_close(no_text, no_expected)


def test_a_plain_clip_has_no_second_bank(encoder: DualEncoder, cache: Path) -> None:
    text, no_text = cached_class_embeddings(encoder, LABELS, cache_dir=cache)
    assert no_text is None
    assert_close(text, encoder.class_embeddings(LABELS)[0])
    assert [entry.kind for entry in cache_info(cache).entries] == ["text"]


def change_text_weight(encoder: DualEncoder) -> None:
    with torch.no_grad():
        encoder.model.text_model.final_layer_norm.bias[0] += 0.1


def change_no_prompts(encoder: DualEncoder) -> None:
    with torch.no_grad():
        encoder.model.no_text_model.embeddings.no_prompts[..., ::2] += 1


def change_unnoticed(encoder: DualEncoder) -> None:
    """Through `data`, of which torch keeps no account."""
    encoder.model.text_projection.weight.data[3:, ::2] += 1


def change_max_length(encoder: DualEncoder) -> None:
    encoder.processor.tokenizer.model_max_length = 4


@pytest.mark.parametrize("change", [change_text_weight, change_no_prompts, change_unnoticed, change_max_length])
def test_other_text_encoders_never_use_them(
    clipn_encoder: DualEncoder, cache: Path, change: Callable[[DualEncoder], None]
) -> None:
    labels = ["a photo of the red cat", "dog"]
    clipn_encoder.class_embeddings(labels)
    before = cached_class_embeddings(clipn_encoder, labels, cache_dir=cache)
    change(clipn_encoder)
    after = cached_class_embeddings(clipn_encoder, labels, cache_dir=cache)
    # What the encoder remembers is not what is tested here.
    clipn_encoder._label_embeddings.clear()
    expected = clipn_encoder.class_embeddings(labels)
    assert any(not torch.allclose(one, other, atol=1e-4) for one, other in zip(before, after, strict=True))
    for one, other in zip(after, expected, strict=True):
        assert one is not None and other is not None
        assert_close(one, other)


def test_the_longest_labels_are_encoded_first(
    encoder: DualEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipn_hf.features.TEXT_BATCH_SIZE", 2)
    embed, seen = encoder.class_embeddings, []
    monkeypatch.setattr(
        encoder,
        "class_embeddings",
        lambda labels, *rest, **options: seen.append(labels) or embed(labels, *rest, **options),
    )
    labels = ["cat", "cat tree bird", "cat tree", "cat tree bird dog"]
    found, _ = cached_class_embeddings(encoder, labels, ["{}"], cache_dir=cache)
    assert seen == [["cat tree bird dog", "cat tree bird"], ["cat tree", "cat"]]
    assert_close(found, encoder.text_embeddings(labels))


def test_a_label_that_is_too_long_is_named_each_time(
    encoder: DualEncoder, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["cat", "dog " * 80]
    for _ in range(3):
        caplog.clear()
        cached_class_embeddings(encoder, labels, cache_dir=cache)
        (message,) = caplog.messages
        assert message.startswith("'dog dog") and "is too long" in message


def test_labels_are_checked(encoder: DualEncoder, cache: Path) -> None:
    with pytest.raises(ValueError, match="is empty"):
        cached_class_embeddings(encoder, [], cache_dir=cache)
    with pytest.raises(ValueError, match="no place"):
        cached_class_embeddings(encoder, LABELS, ["no place"], cache_dir=cache)


def test_features_are_what_a_detector_scores(clipn_encoder: DualEncoder, files: list[str], cache: Path) -> None:
    from clipn_hf import OODDetector

    features = extract_features(files, clipn_encoder, cache_dir=cache)
    assert isinstance(features, Features)
    detector = OODDetector(clipn_encoder, LABELS)
    assert_close(detector.score(features.embeddings), detector.score(files))


def test_a_model_by_its_folder(clip_folder: Path, tmp_path: Path) -> None:
    by_folder = extract_features([picture(0)], clip_folder, cache_dir=tmp_path, progress=False)
    encoder = DualEncoder.from_pretrained(clip_folder)
    assert torch.equal(by_folder.embeddings, extract_features([picture(0)], encoder, use_cache=False).embeddings)
    assert cache_info(tmp_path).entries[0].model == str(clip_folder)
    with pytest.raises(TypeError, match="`encoder` must be a DualEncoder, .* got CLIPModel; make it"):
        extract_features([picture(0)], encoder.model)


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([True, False, True]),
        np.array([True, False, True]),
        [True, False, True],
        torch.tensor([0, 2]),
        np.array([0, 2], dtype=np.int32),
        (0, 2),
    ],
)
def test_some_of_the_images(rows: Any) -> None:
    encoder = {"id": "org/model", "sha256": "0" * 64}
    features = Features(torch.eye(3), torch.tensor([0, 2, 3]), ["a", "b", "c"], {1: "damaged"}, 3, [5, 6, 7], encoder)
    selected = features.select(rows)
    assert selected.rows.tolist() == [0, 3]
    assert (selected.digests, selected.labels) == (["a", "c"], [5, 7])
    assert torch.equal(selected.embeddings, torch.eye(3)[[0, 2]])
    assert (selected.encoder_sha256, selected.skipped, len(selected)) == ("0" * 64, {1: "damaged"}, 2)


def test_images_are_selected_in_the_order_that_is_asked_for() -> None:
    features = Features(torch.eye(3), torch.arange(3), ["a", "b", "c"], {}, 3)
    assert features.select([2, 0, 2]).digests == ["c", "a", "c"]
    assert features.select([2]).labels is None
    assert features.select([]).embeddings.shape == (0, 3)
    assert len(features.select(torch.zeros(3, dtype=torch.bool))) == 0
    for rows, error, message in (
        ([True, False], ValueError, "A mask in `rows` must be of the 3 images, got 2 values."),
        ([0, 3], ValueError, "`rows` must be between 0 and 2 for 3 images, got 3."),
        ([-1], ValueError, "`rows` must be between 0 and 2 for 3 images, got -1."),
        ([0.0, 1.0], TypeError, "`rows` must be a mask or positions of shape (images,), got torch.float32"),
        (
            [[0, 1]],
            TypeError,
            "`rows` must be a mask or positions of shape (images,), got torch.int64 of shape (1, 2)",
        ),
        (torch.zeros(0, dtype=torch.bool), ValueError, "A mask in `rows` must be of the 3 images, got 0 values."),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            features.select(rows)
