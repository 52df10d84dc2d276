# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Digests of data and models: equal where they must be, and different for any difference."""

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CLIPModel

from clipn_hf import CLIPNModel, DualEncoder
from clipn_hf.digests import (
    data_digest,
    describe_image_encoder,
    image_encoder_settings,
    model_digest,
    settings_digest,
    text_encoder_settings,
)

images = st.binary(min_size=1, max_size=4).map(lambda content: hashlib.sha256(content).digest())


@given(st.lists(images, max_size=6), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(rows: list[bytes], random: object) -> None:
    shuffled = rows[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert data_digest(shuffled) == data_digest(iter(rows))
    assert len(bytes.fromhex(data_digest(rows))) == 32


@given(st.lists(images, max_size=5), st.lists(images, max_size=5))
def test_other_images_have_another_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (data_digest(one) == data_digest(other)) == (sorted(one) == sorted(other))


@given(
    *[st.lists(st.tuples(images, st.sampled_from(["cat", "dog", "cat\0", "", "a, b"])), max_size=4) for _ in range(2)]
)
def test_labels_count(one: list[tuple[bytes, str]], other: list[tuple[bytes, str]]) -> None:
    digests = [data_digest([row for row, _ in pairs], [label for _, label in pairs]) for pairs in (one, other)]
    assert (digests[0] == digests[1]) == (sorted(one) == sorted(other))
    if one:
        assert digests[0] != data_digest([row for row, _ in one])


def test_every_image_needs_a_label() -> None:
    with pytest.raises(ValueError, match="zip"):
        data_digest([b"a", b"b"], ["cat"])


def test_digests_of_settings() -> None:
    assert settings_digest({"a": 1, "b": [2.5, None]}) == settings_digest({"b": [2.5, None], "a": 1})
    different = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": True}, {"a": [1]}, {"A": 1}, {}]
    assert len({settings_digest(settings) for settings in different}) == len(different)


def test_digests_of_models(clip_folder: Path, clipn_folder: Path, tmp_path: Path) -> None:
    clip, clipn = CLIPModel.from_pretrained(clip_folder), CLIPNModel.from_pretrained(clipn_folder)
    assert model_digest(clip) == model_digest(CLIPModel.from_pretrained(clip_folder)) != model_digest(clipn)
    # How many bits the weights take does not matter, which numbers they are does.
    assert model_digest(clip.double()) == model_digest(clip.float())
    digests = [model_digest(clip)]
    for _ in range(2):
        with torch.no_grad():
            clip.logit_scale.copy_(torch.nextafter(clip.logit_scale, torch.tensor(torch.inf)))
        digests.append(model_digest(clip))
    half = clip.half()
    digests.append(model_digest(half))
    assert model_digest(half.float()) == digests[-1]
    assert all(one != other for one, other in pairwise(digests))


def test_an_adapter_is_the_same_when_it_is_loaded(clip_folder: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=r"vision_model\..*q_proj", init_lora_weights=False)
    adapted = get_peft_model(CLIPModel.from_pretrained(clip_folder), config).eval()
    processor = DualEncoder.from_pretrained(clip_folder, device="cpu").processor.image_processor
    # Of the adapter in memory, before and after it was saved, and in both ways in which it is loaded.
    digests = [describe_image_encoder(adapted, processor)]
    adapted.save_pretrained(tmp_path)
    digests.append(describe_image_encoder(adapted, processor))
    digests.append(
        describe_image_encoder(PeftModel.from_pretrained(CLIPModel.from_pretrained(clip_folder), tmp_path), processor)
    )
    loaded = DualEncoder.from_pretrained(tmp_path, device="cpu")
    digests.append(describe_image_encoder(loaded.model, processor))
    assert all(digest == digests[0] for digest in digests)
    plain = describe_image_encoder(CLIPModel.from_pretrained(clip_folder), processor)
    assert plain["sha256"] != digests[0]["sha256"]


def test_padding_of_texts_counts(clip_folder: Path) -> None:
    encoder = DualEncoder.from_pretrained(clip_folder, device="cpu")
    settings = text_encoder_settings(encoder.model, "text", encoder.processor.tokenizer, encoder.max_text_length)
    assert (settings["padding"], settings["max_length"]) == ("longest", 77)


def test_kernels_count(clip_folder: Path) -> None:
    encoder = DualEncoder.from_pretrained(clip_folder, device="cpu")

    def digest() -> str:
        return settings_digest(image_encoder_settings(encoder.model, encoder.processor.image_processor))

    digests = {digest()}
    encoder.model.set_attn_implementation("eager")
    digests.add(digest())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        digests.add(digest())
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(digests) == 3
