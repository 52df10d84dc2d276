# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModel, LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    CLIPModel,
    CLIPProcessor,
    pipeline,
)

from clipn_hf import CLIPNConfig, CLIPNModel, CLIPNProcessor


def test_auto_classes_find_clipn(clipn_folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(clipn_folder)) is CLIPNConfig
    assert type(AutoModel.from_pretrained(clipn_folder)) is CLIPNModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(clipn_folder)) is CLIPNModel
    assert type(AutoProcessor.from_pretrained(clipn_folder)) is CLIPNProcessor


def test_clip_still_is_clip(clip_folder: Path) -> None:
    assert type(AutoModel.from_pretrained(clip_folder)) is CLIPModel
    assert type(AutoProcessor.from_pretrained(clip_folder)) is CLIPProcessor


def test_auto_model_from_config(clipn_folder: Path) -> None:
    assert type(AutoModel.from_config(AutoConfig.from_pretrained(clipn_folder))) is CLIPNModel


@pytest.mark.parametrize("num_labels", [1, 3])
def test_zero_shot_pipeline_of_transformers(
    clip_folder: Path, clipn_folder: Path, num_labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str] = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", errors.append)
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)) for seed in range(2)
    ]
    labels = ["cat", "dog", "car"][:num_labels]
    results = [
        pipeline("zero-shot-image-classification", model=str(folder))(images, candidate_labels=labels)
        for folder in (clip_folder, clipn_folder)
    ]
    assert not errors
    for clip_result, clipn_result in zip(*results, strict=True):
        assert [row["label"] for row in clipn_result] == [row["label"] for row in clip_result]
        assert [row["score"] for row in clipn_result] == pytest.approx([row["score"] for row in clip_result], abs=1e-5)


def test_adapters_load_through_peft_alone(clipn_folder: Path, tmp_path: Path) -> None:
    model = CLIPNModel.from_pretrained(clipn_folder)
    target = r"no_text_model\.encoder\.layers\.\d+\.self_attn\.(q|v)_proj"
    adapted = get_peft_model(model, LoraConfig(target_modules=target, r=2, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path)
    loaded = AutoPeftModel.from_pretrained(tmp_path, import_allowlist=["clipn_hf"]).eval()
    texts = torch.tensor([[model.config.text_config.bos_token_id, 5, model.config.text_config.eos_token_id]])
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        expected, result = adapted(input_ids=texts, pixel_values=images), loaded(input_ids=texts, pixel_values=images)
        assert torch.equal(result.no_logits_per_image, expected.no_logits_per_image)
        plain = CLIPNModel.from_pretrained(clipn_folder)(texts, images)
        assert torch.equal(result.logits_per_image, plain.logits_per_image)
        assert not torch.equal(result.no_logits_per_image, plain.no_logits_per_image)
