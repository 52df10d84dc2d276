# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPProcessor

from clipn_hf import CLIPNProcessor
from clipn_hf.prompts import DEFAULT_TEMPLATES, fill_templates


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture
def processor(tiny_processor: CLIPProcessor) -> CLIPNProcessor:
    return CLIPNProcessor(
        tiny_processor.image_processor,
        tiny_processor.tokenizer,
        templates=["a photo of a {}.", "the {}"],
        no_templates=["a photo of no {}.", "not the {}"],
    )


def test_prompts_of_its_own_templates(processor: CLIPNProcessor) -> None:
    assert processor.build_prompts(["cat", "dog"]) == ["a photo of a cat.", "the cat", "a photo of a dog.", "the dog"]
    assert processor.build_no_prompts(["cat"]) == ["a photo of no cat.", "not the cat"]


def test_prompts_of_given_templates(processor: CLIPNProcessor) -> None:
    assert processor.build_prompts(["cat"], templates=["{}!"]) == ["cat!"]
    assert processor.build_no_prompts(["cat"], no_templates=["no {}!"]) == ["no cat!"]


def test_default_templates(tiny_processor: CLIPProcessor) -> None:
    parts = tiny_processor.image_processor, tiny_processor.tokenizer
    processor = CLIPNProcessor(*parts)
    assert processor.templates is processor.no_templates is None
    assert processor.build_prompts(["cat"]) == fill_templates(["cat"], DEFAULT_TEMPLATES)
    assert processor.build_no_prompts(["cat"], ["no {}."]) == ["no cat."]
    with pytest.raises(ValueError, match="`no_templates` is missing, .*pass `no_templates`"):
        processor.build_no_prompts(["cat"])
    processor = CLIPNProcessor(*parts, templates=["a {}."])
    assert processor.no_templates is None
    assert processor.build_no_prompts(["cat"]) == ["a cat."]


def test_absent_templates_stay_absent(tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer).save_pretrained(tmp_path)
    loaded = CLIPNProcessor.from_pretrained(tmp_path)
    assert loaded.templates is loaded.no_templates is None


def test_round_trip(processor: CLIPNProcessor, image: Image.Image, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["templates"] == processor.templates
    assert saved["no_templates"] == processor.no_templates
    loaded = CLIPNProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    arguments = {"images": image, "text": ["a cat", "the dog"], "padding": True, "return_tensors": "pt"}
    before, after = processor(**arguments), loaded(**arguments)
    assert before.keys() == after.keys() == {"input_ids", "attention_mask", "pixel_values"}
    for name in before:
        assert torch.equal(before[name], after[name])


def test_templates_given_when_loading_win(processor: CLIPNProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = CLIPNProcessor.from_pretrained(tmp_path, templates=["only {}"])
    assert loaded.templates == ["only {}"]
    assert loaded.no_templates == processor.no_templates


def test_a_clip_processor_folder_loads_without_templates(clip_folder: Path, image: Image.Image) -> None:
    loaded = CLIPNProcessor.from_pretrained(clip_folder)
    assert loaded.templates is loaded.no_templates is None
    expected = CLIPProcessor.from_pretrained(clip_folder)(images=image, text="a cat", return_tensors="pt")
    result = loaded(images=image, text="a cat", return_tensors="pt")
    for name in expected:
        assert torch.equal(result[name], expected[name])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"templates": ["a photo"]}, ValueError, r"`templates\[0\]` must contain `{}` exactly once"),
        ({"no_templates": ["{} {}"]}, ValueError, r"`no_templates\[0\]`"),
        ({"templates": "a {}."}, TypeError, "`templates` must be a list"),
        ({"templates": []}, ValueError, "`templates` is empty"),
    ],
)
def test_bad_templates(
    tiny_processor: CLIPProcessor, values: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer, **values)


@pytest.mark.parametrize("method", ["build_prompts", "build_no_prompts"])
@pytest.mark.parametrize("labels", [[], [""], ["cat", "cat"]])
def test_bad_labels(processor: CLIPNProcessor, method: str, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="`labels"):
        getattr(processor, method)(labels)
