# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of image encoders: what moves, what is measured, and what checkpoints are."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from clipn_hf import CLIPNModel, DualEncoder, OODDetector
from clipn_hf.probing import LinearProbe
from clipn_hf.training import Augmentation, FinetuningArguments, FinetuningTrainer, LabelledImages
from clipn_hf.training.classification_results import classification_metrics, flatten_metrics
from clipn_hf.training.finetuning import (
    ImageClassifier,
    ImageCollator,
    find_attention_layers,
    find_image_parameters,
)

IMAGE_PARTS = ("vision_model.", "visual_projection.")


def make_rows(count: int, seed: int, labelled: bool = True) -> datasets.Dataset:
    """Images of three classes, which differ in the channel that is bright."""
    generator = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    for index in range(count):
        pixels = generator.integers(0, 128, (36, 40, 3), dtype=np.uint8)
        if labelled:
            pixels[..., index % 3] += 100
        columns["image"].append(Image.fromarray(pixels))
        columns["label"].append(index % 3)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue"])}
    )
    rows = datasets.Dataset.from_dict(columns, features=features).cast_column("image", datasets.Image(decode=False))
    return rows if labelled else rows.remove_columns("label")


@pytest.fixture
def make_trainer(
    tmp_path: Path, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, clip_folder: Path
) -> Callable[..., FinetuningTrainer]:
    """`make_trainer(**arguments)`: arguments of the trainer, and of [`FinetuningArguments`]."""
    # Adapters name the folder of their base.
    own_model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32)

    def make(model: Any = None, **arguments: Any) -> FinetuningTrainer:
        own = ("head", "train_dataset", "eval_dataset", "ood_datasets")
        given = {name: arguments.pop(name) for name in own if name in arguments}
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 4,
            "max_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return FinetuningTrainer(
            own_model if model is None else model,
            FinetuningArguments(**{**defaults, **arguments}),
            processing_class=tiny_processor,
            **{
                "head": LinearProbe(24, 3, ["red", "green", "blue"]),
                "train_dataset": LabelledImages(make_rows(18, 0), Augmentation((32, 32), flip_probability=0.5)),
                **given,
            },
        )

    return make


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def image_parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(IMAGE_PARTS)]


def test_parameters_of_the_image_encoder(
    tiny_clip: CLIPModel, tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    for model in (tiny_clip, tiny_clipn):
        model.train()
        model.vision_model.eval()
        model.text_model.requires_grad_(False)
        assert find_image_parameters(model, tiny_processor.image_processor) == image_parameters(model)
        assert model.training
        assert not model.vision_model.training
        assert not any(parameter.requires_grad for parameter in model.text_model.parameters())
        assert all(parameter.requires_grad for parameter in model.vision_model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_of_attention(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    names = find_image_parameters(tiny_clip, tiny_processor.image_processor)
    pattern = find_attention_layers(tiny_clip, names)
    matched = {name for name, _ in tiny_clip.named_modules() if re.fullmatch(pattern, name)}
    layers = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert matched == {
        f"vision_model.encoder.layers.{block}.self_attn.{layer}" for block in range(2) for layer in layers
    }


def test_layers_of_attention_that_are_not_called() -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config={**tower, "vocab_size": 64}, vision_config=vision)).eval()
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    names = find_image_parameters(model, processor)
    assert not any(name.startswith(("text_model", "logit")) for name in names)
    assert any(name.startswith("vision_model.head.") for name in names)
    pattern = find_attention_layers(model, names)
    matched = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    # The pooling at the end reads the weights of its layers without calling them.
    assert len(matched) == 8
    assert all(".self_attn." in name for name in matched)


def test_no_layers_of_attention() -> None:
    with pytest.raises(ValueError, match="no linear layers of attention for `tuning lora`; use `tuning full`."):
        find_attention_layers(nn.Linear(2, 2), ["weight"])


def test_images_depend_on_seed_epoch_and_row_alone() -> None:
    rows = make_rows(4, 0)
    images = LabelledImages(rows, Augmentation((32, 32), crop_scale=(0.2, 1.0)), seed=1)
    again = LabelledImages(rows, Augmentation((32, 32), crop_scale=(0.2, 1.0)), seed=1)
    first = [np.asarray(images[row]["image"]) for row in range(4)]
    assert [images[row]["labels"] for row in range(4)] == [0, 1, 2, 0]
    assert all(np.array_equal(first[row], np.asarray(again[row]["image"])) for row in (3, 1, 0, 2))
    again.set_epoch(1)
    assert not any(np.array_equal(first[row], np.asarray(again[row]["image"])) for row in range(4))
    assert set(LabelledImages(make_rows(1, 0, labelled=False))[0]) == {"image"}
    with pytest.raises(ValueError, match="`rows` has no rows"):
        LabelledImages(rows.select([]))
    with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1."):
        LabelledImages(rows, seed=-1)


def test_full_tuning_moves_the_image_encoder_and_the_head(make_trainer: Callable[..., FinetuningTrainer]) -> None:
    trainer = make_trainer(max_steps=12)
    before, head = parameters(trainer.encoder), parameters(trainer.head)
    mean = trainer.head.mean.clone()
    trainer.train()
    moved = {name for name, value in parameters(trainer.encoder).items() if not torch.equal(value, before[name])}
    assert moved == set(image_parameters(trainer.encoder))
    assert not any(torch.equal(value, head[name]) for name, value in parameters(trainer.head).items())
    assert torch.equal(trainer.head.mean, mean)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(3), abs=1e-4)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.filterwarnings("error::FutureWarning")
def test_lora_moves_adapters_and_the_head(make_trainer: Callable[..., FinetuningTrainer]) -> None:
    trainer = make_trainer(tuning="lora", lora_rank=2, max_steps=12)
    before = parameters(trainer.encoder)
    trainer.train()
    moved = {name for name, value in parameters(trainer.encoder).items() if not torch.equal(value, before[name])}
    assert len(moved) == 2 * 8
    assert all("vision_model" in name and "lora_" in name for name in moved)
    assert trainer.head.weight.any()


def test_adapters_begin_alike(make_trainer: Callable[..., FinetuningTrainer], clip_folder: Path) -> None:
    found = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32)
        found.append(parameters(make_trainer(model, tuning="lora", seed=seed).encoder))
    names = [name for name in found[0] if "lora_A" in name]
    assert all(torch.equal(found[0][name], found[1][name]) for name in names)
    assert not any(torch.equal(found[1][name], found[2][name]) for name in names)


def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer: Callable[..., FinetuningTrainer]) -> None:
    plain = LabelledImages(make_rows(12, 0))
    moved = []
    for batch, steps in ((12, 1), (4, 3)):
        trainer = make_trainer(
            train_dataset=plain,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            warmup_steps=0,
            weight_decay=0.0,
        )
        trainer.encoder.load_state_dict(
            CLIPModel.from_pretrained(trainer.encoder.name_or_path, dtype=torch.float32).state_dict()
        )
        trainer.train()
        moved.append(trainer.head.bias.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])


def test_evaluation_is_that_of_the_logits(
    make_trainer: Callable[..., FinetuningTrainer], tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    known, noise = make_rows(10, 1), make_rows(7, 2, labelled=False)
    trainer = make_trainer(
        eval_dataset=LabelledImages(known),
        ood_datasets={"noise": LabelledImages(noise)},
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
    )
    trainer.train()
    metrics = trainer.evaluate()

    encoder = DualEncoder(trainer.encoder, tiny_processor)
    logits = []
    for rows in (known, noise):
        images = [LabelledImages(rows)[row]["image"] for row in range(len(rows))]
        with torch.no_grad():
            logits.append(trainer.head(encoder.image_embeddings(encoder.prepare_images(images))))
    expected = classification_metrics(logits[0], torch.tensor(known["label"]), {"noise": logits[1]})
    for name, value in flatten_metrics(expected).items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert lines[-1]["eval_noise_auroc_energy"] == metrics["eval_noise_auroc_energy"]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpoints_are_models_with_a_head(
    tuning: str, make_trainer: Callable[..., FinetuningTrainer], tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    trainer = make_trainer(tuning=tuning, save_strategy="steps", save_steps=3)
    trainer.head.trained_on = {"images": 18, "labelled": True, "date": "2026-01-01", "sha256": "0" * 64}
    trainer.train()
    images = [LabelledImages(make_rows(4, 3))[row]["image"] for row in range(4)]
    own = DualEncoder(trainer.encoder, tiny_processor)
    with torch.no_grad():
        expected = trainer.head(own.image_embeddings(own.prepare_images(images)))

    folder = tmp_path / "run" / "checkpoint-3"
    assert (folder / "adapter_model.safetensors").exists() == (tuning == "lora")
    assert not (folder / "README.md").exists()
    encoder, head = DualEncoder.from_pretrained(folder, device="cpu"), LinearProbe.from_pretrained(folder / "head")
    assert head.encoder["sha256"] == encoder.describe_images()["sha256"]
    with torch.no_grad():
        found = head(encoder.image_embeddings(encoder.prepare_images(images)))
    torch.testing.assert_close(found, expected)
    # A probe is refused with another encoder than its own.
    detector = OODDetector.from_probe(encoder, head, score="max_logit")
    torch.testing.assert_close(detector.score(images), -expected.amax(dim=1))
    with pytest.raises(ValueError, match="another image encoder"):
        OODDetector.from_probe(DualEncoder.from_pretrained(trainer.encoder.name_or_path, device="cpu"), head)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_resumed_run_ends_with_the_same_weights(
    tuning: str, make_trainer: Callable[..., FinetuningTrainer], clip_folder: Path, tmp_path: Path
) -> None:
    def run(folder: str, resume: str | bool | None = None) -> dict[str, Tensor]:
        trainer = make_trainer(
            CLIPModel.from_pretrained(clip_folder, dtype=torch.float32),
            tuning=tuning,
            lora_dropout=0.3,
            output_dir=str(tmp_path / folder),
            save_strategy="steps",
            save_steps=2,
            max_steps=5,
            eval_strategy="steps",
            eval_steps=2,
            eval_dataset=LabelledImages(make_rows(5, 1)),
            seed=3,
        )
        trainer.train(resume_from_checkpoint=resume)
        return parameters(trainer.model)

    expected = run("whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "broken" / "checkpoint-2")
    found = run("broken", resume=True)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    # Evaluations before the interruption are not lost.
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 5]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_best_checkpoint_is_loaded(
    tuning: str, make_trainer: Callable[..., FinetuningTrainer], tmp_path: Path
) -> None:
    trainer = make_trainer(
        tuning=tuning,
        eval_dataset=LabelledImages(make_rows(9, 1)),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        # The first checkpoint is the best one.
        greater_is_better=True,
        warmup_steps=0,
        max_steps=4,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert best.name == f"checkpoint-{1 + int(np.argmax(losses))}"
    assert best.name != "checkpoint-4"
    saved = LinearProbe.from_pretrained(best / "head")
    assert torch.equal(trainer.head.weight, saved.weight)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), abs=1e-6)


def test_activations_computed_again(make_trainer: Callable[..., FinetuningTrainer]) -> None:
    trainer = make_trainer(activation_checkpointing=True, max_steps=2)
    trainer.train()
    assert trainer.encoder.vision_model.is_activation_checkpointing
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_classifier(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    head = LinearProbe(24, 3)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    rows = make_rows(3, 0)
    batch = ImageCollator(tiny_processor.image_processor)([LabelledImages(rows)[row] for row in range(3)])
    assert batch["labels"].tolist() == [0, 1, 2]
    classifier = ImageClassifier(tiny_clip, head)
    outputs = classifier(**batch)
    expected = head(tiny_clip.get_image_features(batch["pixel_values"]).pooler_output)
    torch.testing.assert_close(outputs["logits"], expected)
    torch.testing.assert_close(outputs["loss"], nn.functional.cross_entropy(expected, batch["labels"]))
    assert list(classifier(pixel_values=batch["pixel_values"])) == ["logits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tuning": "all"}, "`tuning` must be 'full' or 'lora', got 'all'."),
        ({"lora_rank": 0}, "`lora_rank` must be at least 1, got 0."),
        ({"lora_alpha": 0}, "`lora_alpha` must be at least 1, got 0."),
        ({"lora_dropout": 1.0}, "`lora_dropout` must lie in [0, 1), got 1.0."),
        ({"push_to_hub": True}, "`push_to_hub` would publish what is not finished"),
        ({"ood_datasets": {"a": None}}, "give `eval_dataset`, too."),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any], message: str, make_trainer: Callable[..., FinetuningTrainer]
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(**arguments)


def test_models_that_cannot_be_tuned(make_trainer: Callable[..., FinetuningTrainer], tiny_clip: CLIPModel) -> None:
    with pytest.raises(TypeError, match="does not embed both images and texts"):
        make_trainer(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="The weights of `model` are torch.bfloat16, too coarse"):
        make_trainer(tiny_clip.to(torch.bfloat16))
    adapted = make_trainer(tuning="lora").encoder
    assert isinstance(adapted, PeftModel)
    with pytest.raises(TypeError, match="`model` has an adapter already"):
        make_trainer(adapted)
