# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""From a folder with a CLIP to a folder that works by itself: trained, interrupted, saved, loaded as users load it."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPProcessor

from clipn_hf import CLIPNModel, CLIPNProcessor, OODDetector, pipeline
from clipn_hf.encoders import DualEncoder
from clipn_hf.training import CLIPNTrainer, CLIPNTrainingArguments, ImageTextDataset

LABELS = ["cat", "dog", "car"]
ADAPTERS = ("lora", "trainable_tokens")


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)) for _ in range(10)]


def image_pairs() -> ImageTextDataset:
    rows = datasets.Dataset.from_dict(
        {"image": images(), "caption": [f"a {word} {index}" for index, word in enumerate(5 * ["cat", "dog"])]},
        features=datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}),
    )
    return ImageTextDataset(rows)


def make_trainer(clip_folder: Path, output: Path, tuning: str, **arguments: Any) -> CLIPNTrainer:
    """Everything anew, as in a new process."""
    kind = "handcrafted" if tuning == "trainable_tokens" else "learnable"
    clip = CLIPProcessor.from_pretrained(clip_folder)
    return CLIPNTrainer(
        CLIPNModel.from_clip(str(clip_folder), no_prompt_type=kind, num_no_prompts=3),
        CLIPNTrainingArguments(
            output_dir=str(output),
            tuning=tuning,
            num_trainable_tokens=2,
            lora_rank=4,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **{"max_steps": 2, "save_strategy": "no", **arguments},
        ),
        train_dataset=image_pairs(),
        processing_class=CLIPNProcessor(clip.image_processor, clip.tokenizer),
    )


def scores(detector: OODDetector) -> list[float]:
    return detector.score(images()).tolist()


@pytest.mark.parametrize("tuning", ["full", *ADAPTERS, "no_prompts"])
def test_saved_folder_loads_by_itself(tuning: str, clip_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(clip_folder, tmp_path / "run", tuning, save_strategy="steps", save_steps=2)
    untrained = OODDetector(trainer.clipn, LABELS, "ctw", processor=trainer.processing_class)
    before = scores(untrained)
    trainer.train()
    trainer.save_model()
    expected = scores(OODDetector(trainer.clipn, LABELS, "ctw", processor=trainer.processing_class))
    assert expected != pytest.approx(before, abs=1e-4)
    assert (tmp_path / "run" / "model.safetensors").exists() == (tuning not in ADAPTERS)

    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        detect = pipeline("ood-detection", model=str(folder))
        results = detect(images(), candidate_labels=LABELS, method="ctw")
        assert [result["ood_score"] for result in results] == pytest.approx(expected, abs=1e-6)
    encoder = DualEncoder.from_pretrained(tmp_path / "run")
    assert scores(OODDetector(encoder, LABELS, "ctw")) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tuning", ["full", *ADAPTERS, "no_prompts"])
def test_resumed_run_is_the_uninterrupted_one(tuning: str, clip_folder: Path, tmp_path: Path) -> None:
    arguments = {"lora_dropout": 0.1, "max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(clip_folder, tmp_path / "whole", tuning, **arguments)
    whole.train()
    torch.manual_seed(99)
    resumed = make_trainer(clip_folder, tmp_path / "resumed", tuning, **arguments)
    untouched = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    state = resumed.model.state_dict()
    torch.testing.assert_close(state, whole.model.state_dict(), rtol=0, atol=0)
    assert any(not torch.equal(value, untouched[name]) for name, value in state.items())
    assert resumed.processing_class.no_templates == whole.processing_class.no_templates


@pytest.mark.parametrize("tuning", ADAPTERS)
def test_snippet_of_an_adapter_runs(tuning: str, clip_folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "noise.png"
    images()[0].save(image)
    folder = tmp_path / "run"
    trainer = make_trainer(clip_folder, folder, tuning)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(sample_images=[str(image)], sample_labels=LABELS)
    card = (folder / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    output = re.search(r"prints\n\n```\n(.*?)\n```", card, re.DOTALL)[1]
    printed = io.StringIO()
    # A card without a Hub id names the files beside it.
    with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
        exec(snippet, {})
    assert printed.getvalue().strip() == output
