# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A toy problem that fits into memory, and a trainer for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.training import CLIPNTrainer, CLIPNTrainingArguments

SUBJECTS = ("cat", "dog", "car", "cat and a dog", "car and a cat", "dog in a car")
PLACES = ("photo", "picture", "drawing", "photo of a drawing")


@pytest.fixture
def processor(tiny_processor: CLIPProcessor) -> CLIPNProcessor:
    return CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


@pytest.fixture
def handcrafted(tiny_clip: CLIPModel) -> CLIPNModel:
    return CLIPNModel.from_clip(tiny_clip, no_prompt_type="handcrafted")


@pytest.fixture
def pairs(tiny_clip: CLIPModel, processor: CLIPNProcessor) -> list[dict[str, torch.Tensor]]:
    """24 pairs, as rows of a batch, whose images lie near the embeddings of their own captions."""
    captions = [f"a {place} of a {subject}" for place in PLACES for subject in SUBJECTS]
    tokens = processor.tokenizer(captions, padding=True, return_tensors="pt")
    no_tokens = processor.tokenizer([f"not {caption}" for caption in captions], padding=True, return_tensors="pt")
    with torch.no_grad():
        features = tiny_clip.get_text_features(**tokens).pooler_output
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    columns = {
        "image_embeds": features + 0.1 * features.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True),
        **{name: tokens[name] for name in ("input_ids", "attention_mask")},
        **{f"no_{name}": no_tokens[name] for name in ("input_ids", "attention_mask")},
    }
    return [{name: column[row] for name, column in columns.items()} for row in range(len(captions))]


@pytest.fixture
def make_trainer(
    tmp_path: Path, processor: CLIPNProcessor, pairs: list[dict[str, torch.Tensor]]
) -> Callable[..., CLIPNTrainer]:
    """`make_trainer(model, **arguments)`: arguments of the trainer, and of [`CLIPNTrainingArguments`]."""

    def make(model: CLIPNModel, **arguments: Any) -> CLIPNTrainer:
        own = ("data_collator", "train_dataset", "eval_dataset", "id_dataset", "id_labels", "ood_dataset", "callbacks")
        given = {name: arguments.pop(name) for name in own if name in arguments}
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "max_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return CLIPNTrainer(
            model,
            CLIPNTrainingArguments(**{**defaults, **arguments}),
            processing_class=processor,
            **{"data_collator": default_collate, "train_dataset": pairs, **given},
        )

    return make
