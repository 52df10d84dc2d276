# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trainers of prompts: what moves, what a step costs, what is measured, and what checkpoints are."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel, CLIPProcessor, Trainer, TrainerCallback

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, pipeline
from clipn_hf.encoders import EMBEDDED_CHECKPOINT, local_image_features
from clipn_hf.modeling import load_learned_prompts
from clipn_hf.training import (
    Augmentation,
    CLIPOSArguments,
    CLIPOSTrainer,
    CoOpArguments,
    CoOpTrainer,
    FewShotFeatures,
    FewShotTrainer,
    LabelledImages,
    LoCoOpArguments,
    LoCoOpTrainer,
    locoop_loss,
)
from clipn_hf.training.few_shot_config import FewShotArguments
from clipn_hf.training.outliers import id_relevant_features, surgery_discrepancy_mask

TRAINERS: dict[str, tuple[type[FewShotTrainer], type[FewShotArguments]]] = {
    "coop": (CoOpTrainer, CoOpArguments),
    "locoop": (LoCoOpTrainer, LoCoOpArguments),
    "clip_os": (CLIPOSTrainer, CLIPOSArguments),
}
METHODS = list(TRAINERS)
LABELS = ["cat", "dog", "car"]
FRESH = "train_dataset", "eval_dataset", "ood_datasets", "labels", "callbacks", "trained_with", "processing_class"


def make_rows(count: int, seed: int, labelled: bool = True) -> datasets.Dataset:
    """Images of three classes, which differ in the channel that is bright."""
    generator = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    for index in range(count):
        pixels = generator.integers(0, 128, (36, 40, 3), dtype=np.uint8)
        if labelled:
            pixels[10:, 10:, index % 3] += 100
        columns["image"].append(Image.fromarray(pixels))
        columns["label"].append(index % 3)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    rows = datasets.Dataset.from_dict(columns, features=features).cast_column("image", datasets.Image(decode=False))
    return rows if labelled else rows.remove_columns("label")


def make_features(count: int = 12, seed: int = 0, views: int = 1, dim: int = 24) -> FewShotFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, dim, generator=torch.Generator().manual_seed(100))
    embeddings = normalize(
        centres[labels][:, None] + 0.5 * torch.randn(count, views, dim, generator=generator), dim=-1
    )
    patches = normalize(torch.randn(count, views, 16, dim, generator=generator), dim=-1)
    relevant = normalize(embeddings + 0.1 * torch.randn(count, views, dim, generator=generator), dim=-1)
    background = normalize(torch.randn(count, views, dim, generator=generator), dim=-1)
    background[0] = math.nan
    return FewShotFeatures(embeddings, labels, patches=patches, relevant=relevant, background=background)


@pytest.fixture
def make_trainer(tmp_path: Path, clip_folder: Path) -> Callable[..., FewShotTrainer]:
    """`make_trainer(method, **arguments)`: arguments of the trainer, and of its own arguments; a fresh model each."""

    def make(method: str = "coop", model: Any = None, **arguments: Any) -> FewShotTrainer:
        trainer, trainer_arguments = TRAINERS[method]
        given = {name: arguments.pop(name) for name in FRESH if name in arguments}
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "num_context_tokens": 3,
            "learning_rate": 0.1,
            "num_train_epochs": 3,
            "warmup_epochs": 0,
            "per_device_train_batch_size": 5,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return trainer(
            CLIPModel.from_pretrained(clip_folder, dtype=torch.float32) if model is None else model,
            trainer_arguments(**{**defaults, **arguments}),
            **{
                "processing_class": CLIPProcessor.from_pretrained(clip_folder),
                "labels": LABELS,
                "train_dataset": LabelledImages(make_rows(12, 0)),
                **given,
            },
        )

    return make


Make = Callable[..., FewShotTrainer]


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def context(trainer: FewShotTrainer) -> Tensor:
    """The embeddings of the tokens, the only ones that are trained."""
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert len(trained) == 1
    return trained[0].detach().clone()


def losses(trainer: FewShotTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Calls:
    """Counts how often parts of a model are run, and how many rows they get."""

    def __init__(self, model: Any, **parts: str) -> None:
        self.rows: dict[str, list[int]] = {name: [] for name in parts}
        for name, path in parts.items():
            model.get_submodule(path).register_forward_pre_hook(self._count(name), with_kwargs=True)

    def _count(self, name: str) -> Callable[..., None]:
        def count(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.rows[name].append(len(next(iter([*args, *kwargs.values()]))))

        return count


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_the_context_alone_is_learned(make_trainer: Make, method: str) -> None:
    trainer = make_trainer(method, num_train_epochs=20, learning_rate=0.5, per_device_train_batch_size=12)
    before = parameters(trainer.model)
    trainer.train()
    moved = {name for name, value in parameters(trainer.model).items() if not torch.equal(value, before[name])}
    assert len(moved) == 1
    assert "trainable_tokens_delta" in moved.pop()
    assert context(trainer).shape == (7 if method == "clip_os" else 3, 32)
    found = losses(trainer)
    assert sum(found[-5:]) < sum(found[:5]) - 0.01


@pytest.mark.parametrize("method", METHODS)
def test_folder_of_a_run(make_trainer: Make, method: str, tmp_path: Path) -> None:
    trainer = make_trainer(method, learning_rate=1.0, trained_with={"sample_seed": 3})
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    assert (folder / "adapter_model.safetensors").stat().st_size < 4096
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".bin"}
    assert not (folder / "model.safetensors").exists()
    prompts = load_learned_prompts(folder)
    assert prompts is not None
    assert prompts.trained_with == {"method": method, "seed": 42, "images": 12, "shots": 4, "sample_seed": 3}

    encoder = DualEncoder.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        expected = trainer.model.eval().class_embeddings()
    texts, _ = encoder.class_embeddings(LABELS)
    torch.testing.assert_close(texts, expected[:3], rtol=0, atol=1e-6)
    assert encoder.has_unknown_prompt == (method == "clip_os")
    if method == "clip_os":
        torch.testing.assert_close(encoder.unknown_embedding(), expected[3], rtol=0, atol=1e-6)
    judged = {"coop": "mcm", "locoop": "gl_mcm", "clip_os": "clip_os"}[method]
    detector = OODDetector(encoder, LABELS, judged)
    assert detector.score([Image.new("RGB", (40, 36), "red")]).shape == (1,)


@pytest.mark.parametrize("method", METHODS)
def test_evaluation(make_trainer: Make, method: str, tmp_path: Path) -> None:
    test, ood = make_rows(9, 1), make_rows(7, 2)
    trainer = make_trainer(
        method,
        eval_dataset=LabelledImages(test),
        # Classes of their own, which are not looked at
        ood_datasets={"noise": LabelledImages(ood), "other": LabelledImages(make_rows(4, 3, labelled=False))},
        learning_rate=1.0,
    )
    trainer.train()
    measured = trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    encoder = DualEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    pictures = [list(rows.cast_column("image", datasets.Image())["image"]) for rows in (test, ood)]
    of_id, of_ood = (encoder.image_embeddings(encoder.prepare_images(images)) for images in pictures)
    judged: dict[str, tuple[str, dict[str, Any]]] = {"mcm": ("mcm", {})}
    if method == "clip_os":
        judged |= {"clip_os": ("clip_os", {}), "unknown_probability": ("clip_os", {"combination": "none"})}
    for score, (row, settings) in judged.items():
        detector = OODDetector(encoder, LABELS, row, **settings)
        known, unknown = detector.score(of_id), detector.score(of_ood)
        wins = (unknown[:, None] > known).double() + 0.5 * (unknown[:, None] == known).double()
        assert measured[f"eval_noise_auroc_{score}"] == pytest.approx(wins.mean().item(), abs=0.02)
        assert 0 <= measured[f"eval_other_fpr95_{score}"] <= 1
    texts, _ = encoder.class_embeddings(LABELS)
    assert measured["eval_accuracy"] == ((of_id @ texts.T).argmax(dim=1) == torch.arange(9) % 3).float().mean()
    if method != "clip_os":
        expected = cross_entropy(encoder.logit_scale * of_id @ texts.T, torch.arange(9) % 3)
        assert measured["eval_loss"] == pytest.approx(expected.item(), abs=1e-4)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["eval_accuracy"] == measured["eval_accuracy"]


@pytest.mark.parametrize("method", METHODS)
def test_images_are_encoded_once(make_trainer: Make, method: str) -> None:
    """A step costs one run of the text encoder for all prompts, and nothing of the image encoder."""
    trainer = make_trainer(method, eval_dataset=LabelledImages(make_rows(4, 1)), eval_strategy="epoch")
    base = trainer.encoder.get_base_model()
    calls = Calls(base, images="vision_model.embeddings", texts="text_model.encoder")
    trainer.train()
    assert trainer.state.global_step == 9
    assert calls.rows["images"] == [12, 4]
    prompts = 4 if method == "clip_os" else 3
    assert calls.rows["texts"] == [prompts] * (9 + 3)


@pytest.mark.parametrize("method", METHODS)
def test_features_at_hand_learn_the_same(make_trainer: Make, method: str) -> None:
    first = make_trainer(method)
    first.train()
    again = make_trainer(method, train_dataset=first._training_features())
    again.train()
    assert torch.equal(context(first), context(again))
    # Images that are encoded in every step, as they are
    anew = make_trainer(method, num_cached_views=0, dataloader_num_workers=2)
    calls = Calls(anew.encoder.get_base_model(), images="vision_model.embeddings")
    anew.train()
    bank = [12] if method == "clip_os" else []
    assert sorted(calls.rows["images"]) == sorted([5, 5, 2] * 3 + bank)
    # Patches that were kept have half precision.
    torch.testing.assert_close(context(anew), context(first), rtol=0, atol=1e-4 if method == "locoop" else 1e-6)


def test_images_may_be_training_and_test_images(make_trainer: Make) -> None:
    images = LabelledImages(make_rows(6, 0))
    trainer = make_trainer("locoop", train_dataset=images, eval_dataset=images)
    trainer.train()
    separate = make_trainer("locoop", train_dataset=images, eval_dataset=LabelledImages(images.rows))
    separate.train()
    assert trainer.evaluate()["eval_loss"] == separate.evaluate()["eval_loss"]
    assert torch.equal(context(trainer), context(separate))


def test_augmented_views(make_trainer: Make) -> None:
    images = LabelledImages(make_rows(12, 0), Augmentation((32, 32), crop_scale=(0.2, 0.9)))
    found = {}
    for views in (0, 1, 3):
        trainer = make_trainer(train_dataset=images, num_cached_views=views)
        calls = Calls(trainer.encoder.get_base_model(), images="vision_model.embeddings")
        trainer.train()
        assert sum(calls.rows["images"]) == 12 * (views or 3)
        found[views] = context(trainer)
    assert not torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[1], found[3], atol=1e-5)
    plain = make_trainer()
    plain.train()
    assert torch.equal(context(plain), found[1])


@pytest.mark.parametrize("method", METHODS)
def test_seeds(make_trainer: Make, method: str) -> None:
    found = []
    for state, seed, workers in ((1, 0, 0), (2, 0, 2), (2, 1, 0)):
        torch.manual_seed(state)
        trainer = make_trainer(method, train_dataset=make_features(views=3), seed=seed, dataloader_num_workers=workers)
        trainer.train()
        found.append(context(trainer))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[1], found[2], atol=1e-3)


class _Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 4


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_are_uninterrupted_ones(make_trainer: Make, method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "train_dataset": make_features(views=3),
        "save_strategy": "steps",
        "save_steps": 4,
        "warmup_epochs": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "eval_dataset": make_features(6, seed=5),
    }
    whole = make_trainer(method, **options, output_dir=str(tmp_path / "whole"))
    whole.train()
    make_trainer(method, **options, output_dir=str(tmp_path / "parts"), callbacks=[_Stop()]).train()
    resumed = make_trainer(method, **options, eval_strategy="steps", eval_steps=1, output_dir=str(tmp_path / "parts"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert resumed.state.global_step == whole.state.global_step == 9
    assert torch.equal(context(resumed), context(whole))
    assert losses(resumed)[-2:] == losses(whole)[-2:]
    checkpoint = tmp_path / "parts" / "checkpoint-4"
    assert load_learned_prompts(checkpoint) is not None
    DualEncoder.from_pretrained(checkpoint, device="cpu").class_embeddings(LABELS)


def test_checkpoints_of_other_runs(make_trainer: Make, tmp_path: Path, clip_folder: Path) -> None:
    saved = tmp_path / "saved"
    options: dict[str, Any] = {"train_dataset": make_features(), "save_strategy": "steps", "save_steps": 3}
    make_trainer(**options, max_steps=3, output_dir=str(saved)).train()
    checkpoint = str(saved / "checkpoint-3")
    other = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32)
    with torch.no_grad():
        other.text_projection.weight.mul_(1.01)
    other_images = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32)
    with torch.no_grad():
        other_images.visual_projection.weight.mul_(1.01)
    for given, message in (
        (
            {"labels": LABELS[::-1]},
            r"the labels differ, 'cat' there and 'car' here\.",
        ),
        ({"class_position": "front"}, "the prompts differ, '<ctx_0> <ctx_1> <ctx_2> cat.' there and 'cat <"),
        ({"num_context_tokens": 4}, "the context tokens differ, 3 there and 4 here"),
        ({"class_specific": True}, "the context tokens differ"),
        ({"model": other}, "the model differs, '"),
        ({"model": other_images}, "the image encoder differs, '"),
        ({"method": "locoop"}, "the method differs, 'coop' there and 'locoop' here"),
    ):
        trainer = make_trainer(**{**options, **given})
        with pytest.raises(ValueError, match=rf"checkpoint-3 is of another run: {message}"):
            trainer.train(resume_from_checkpoint=checkpoint)
    trainer = make_trainer(**options)
    trainer.check_checkpoint(checkpoint)
    # What does not tell of its image encoder is not refused for that.
    file = Path(checkpoint, "learned_prompts.json")
    content = json.loads(file.read_text())
    del content["base"]["image_weights_sha256"]
    file.write_text(json.dumps(content))
    trainer.check_checkpoint(checkpoint)
    with pytest.raises(FileNotFoundError, match="There is no folder org/missing to resume from; give that of a"):
        trainer.train(resume_from_checkpoint="org/missing")
    with pytest.raises(ValueError, match="has no learned_prompts.json, so that it is no checkpoint of this trainer"):
        trainer.train(resume_from_checkpoint=str(tmp_path))


def test_warmup_and_cosine(make_trainer: Make) -> None:
    trainer = make_trainer(
        train_dataset=make_features(), num_train_epochs=5, warmup_epochs=1, warmup_learning_rate=1e-5
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    cosine = [0.1 * (1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert rates == pytest.approx([1e-5] * 3 + cosine[3:], rel=1e-6)
    optimizer: Any = trainer.optimizer
    group = optimizer.param_groups[0]
    assert (type(optimizer.optimizer).__name__, group["momentum"], group["weight_decay"]) == ("SGD", 0.9, 5e-4)
    # A shorter training leaves half of itself to the cosine.
    short = make_trainer(train_dataset=make_features(), num_train_epochs=1, warmup_epochs=1)
    short.train()
    rates = [entry["learning_rate"] for entry in short.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-5, 0.075, 0.025])
    # Where steps are given, their share
    steps = make_trainer(
        train_dataset=make_features(), num_train_epochs=5, warmup_epochs=1, max_steps=10, lr_scheduler_type="constant"
    )
    steps.train()
    rates = [entry["learning_rate"] for entry in steps.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-5] * 2 + [0.1] * 8)


def test_defaults_are_those_of_the_authors(tmp_path: Path) -> None:
    coop = CoOpArguments(output_dir=str(tmp_path))
    assert (coop.learning_rate, coop.optim, coop.optim_args, coop.weight_decay) == (0.002, "sgd", "momentum=0.9", 5e-4)
    assert (coop.num_train_epochs, coop.warmup_epochs, coop.warmup_learning_rate) == (50, 1, 1e-5)
    assert (coop.per_device_train_batch_size, coop.num_context_tokens, coop.lr_scheduler_type) == (32, 16, "cosine")
    assert (coop.max_grad_norm, coop.class_position, coop.context_init) == (0, "end", None)
    locoop = LoCoOpArguments(output_dir=str(tmp_path))
    assert (locoop.entropy_weight, locoop.top_k) == (0.25, None)


@pytest.mark.parametrize("method", ["coop", "clip_os"])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer: Make, method: str) -> None:
    options = (
        {"train_dataset": make_features(), "max_steps": 1, "num_outliers": 600}
        if method == "clip_os"
        else {
            "train_dataset": make_features(),
            "max_steps": 1,
        }
    )
    whole = make_trainer(method, **options, per_device_train_batch_size=12)
    parts = make_trainer(method, **options, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    before = context(whole)
    whole.train()
    parts.train()
    moved = context(whole) - before
    # Every part of the batch draws outliers of its own.
    tolerance = 0.1 if method == "clip_os" else 1e-4
    assert (context(parts) - before - moved).norm() < tolerance * moved.norm()
    assert losses(parts)[0] == pytest.approx(losses(whole)[0], rel=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_recomputed_activations(make_trainer: Make, method: str) -> None:
    plain, half, recomputed = (
        make_trainer(method, train_dataset=make_features(), **options)
        for options in ({}, {"bf16": True}, {"activation_checkpointing": True})
    )
    before = context(plain)
    for trainer in (plain, half, recomputed):
        trainer.train()
    assert torch.equal(context(recomputed), context(plain))
    moved = context(plain) - before
    error = (context(half) - context(plain)).norm()
    assert 0 < error < 0.2 * moved.norm()


def test_prompts_of_all_kinds(make_trainer: Make) -> None:
    for options, rows in (
        ({"context_init": "a photo of a"}, 4),
        ({"class_specific": True}, 9),
        ({"class_specific": True, "class_position": "middle"}, 9),
        ({"class_position": "front"}, 3),
    ):
        trainer = make_trainer(train_dataset=make_features(), learning_rate=1.0, **options)
        before = context(trainer)
        assert len(before) == rows
        trainer.train()
        assert (context(trainer) - before).norm(dim=1).min() > 1e-6
        with torch.no_grad():
            expected = trainer.model.eval().class_embeddings()
        texts, _ = DualEncoder(trainer.encoder, trainer.processing_class).class_embeddings(LABELS)
        torch.testing.assert_close(texts, expected, rtol=0, atol=1e-6)
    words = make_trainer(context_init="a photo of a")
    base: Any = words.encoder.get_base_model()
    embedding = base.text_model.get_input_embeddings()
    ids = words.processing_class.tokenizer("a photo of a", add_special_tokens=False)["input_ids"]
    assert torch.equal(context(words), embedding.weight[ids].detach())


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"num_context_tokens": 80}, "fewer `num_context_tokens`"),
        ({"context_init": "photo " * 80}, "a shorter `context_init`"),
    ],
)
def test_a_context_that_is_too_long_is_named_as_it_was_given(make_trainer: Make, given: Any, fix: str) -> None:
    with pytest.raises(ValueError, match=f"the text encoder reads 77 at most. Give {fix}, or shorten the label."):
        make_trainer(**given)


@pytest.mark.parametrize("method", METHODS)
def test_on_top_of_clipn(make_trainer: Make, method: str, clipn_folder: Path, tmp_path: Path) -> None:
    model = CLIPNModel.from_pretrained(clipn_folder, dtype=torch.float32)
    before = parameters(model.no_text_model)
    trainer = make_trainer(method, model, learning_rate=1.0)
    start = context(trainer)
    trainer.train()
    assert not torch.allclose(context(trainer), start, atol=1e-3)
    base: Any = trainer.encoder.get_base_model()
    after = parameters(base.no_text_model)
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if "token_embedding" in name else after[name], value)
    trainer.save_model(str(tmp_path / "saved"))
    encoder = DualEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    texts, no_texts = encoder.class_embeddings(LABELS)
    with torch.no_grad():
        torch.testing.assert_close(texts, trainer.model.eval().class_embeddings()[:3], rtol=0, atol=1e-6)
    assert no_texts is not None


# The losses


def test_loss_of_locoop(make_trainer: Make) -> None:
    features = make_features()
    cases: list[tuple[dict[str, Any], int, float]] = [
        ({}, 1, 0.25),
        ({"top_k": 2, "entropy_weight": 0.7}, 2, 0.7),
    ]
    for options, top_k, weight in cases:
        trainer = make_trainer(
            "locoop", train_dataset=features, max_steps=1, per_device_train_batch_size=12, **options
        )
        with torch.no_grad():
            texts = trainer.model.class_embeddings()
        scale, patches = trainer.model.logit_scale, features.features["patches"][:, 0].float()
        assert features.labels is not None
        expected = locoop_loss(
            scale * features.features["embeddings"][:, 0] @ texts.T,
            scale * patches @ texts.T,
            features.labels,
            top_k,
            weight,
        )
        trainer.train()
        assert losses(trainer)[0] == pytest.approx(expected.item(), rel=1e-4)


def test_a_fifth_of_the_classes(make_trainer: Make) -> None:
    trainer = make_trainer("locoop")
    assert isinstance(trainer, LoCoOpTrainer)
    for classes, top_k in ((2, 1), (9, 1), (10, 2), (1000, 200)):
        trainer.labels = [str(label) for label in range(classes)]
        assert trainer.top_k == top_k


def test_outliers_are_of_all_images(make_trainer: Make) -> None:
    """Batches of one image have outliers of two classes, and each batch has others."""
    features = make_features()
    trainer = make_trainer("clip_os", train_dataset=features, per_device_train_batch_size=1, max_steps=4)
    drawn: list[Tensor] = []
    forward = trainer.model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        drawn.append(kwargs["outliers"])
        return forward(*args, **kwargs)

    with patch.object(trainer.model, "forward", watch):
        trainer.train()
    assert [outliers.shape for outliers in drawn] == [(1, 24)] * 4
    relevant = features.features["relevant"][:, 0]
    assert features.labels is not None
    used = set()
    for outlier in drawn:
        # As a mixture of two images, it lies in the plane of exactly these.
        pairs = [(i, j) for i in range(12) for j in range(i)]
        planes = torch.stack([torch.linalg.qr(relevant[list(pair)].T)[0] for pair in pairs])  # (pairs, dim, 2)
        inside = (outlier[0] @ planes).norm(dim=1)
        first, second = pairs[int(inside.argmax())]
        assert inside.max() > 1 - 1e-5
        assert features.labels[first] != features.labels[second]
        used.add((first, second))
    assert len(used) > 1


def test_loss_of_clip_os(make_trainer: Make) -> None:
    features = make_features()
    embeddings, relevant = (features.features[name][:, 0] for name in ("embeddings", "relevant"))
    background = features.features["background"][1:, 0]
    assert features.labels is not None
    labels = features.labels
    for options, classified, outliers in (
        ({"unknown_weight": 0}, embeddings, None),
        ({"unknown_weight": 0, "classified_features": "relevant"}, relevant, None),
        ({"unknown_weight": 0, "classified_features": "both"}, torch.cat([embeddings, relevant]), None),
        ({"synthesize": False, "unknown_weight": 0.3}, embeddings, background),
    ):
        trainer = make_trainer(
            "clip_os", train_dataset=features, max_steps=1, per_device_train_batch_size=12, **options
        )
        with torch.no_grad():
            texts = trainer.model.class_embeddings()
        scale = trainer.model.logit_scale
        expected = cross_entropy(scale * classified @ texts.T, labels.repeat(len(classified) // 12))
        if outliers is not None:
            expected += 0.3 * cross_entropy(scale * outliers @ texts.T, torch.full((11,), 3))
        trainer.train()
        assert losses(trainer)[0] == pytest.approx(expected.item(), rel=1e-4), options


def test_mechanisms_of_clip_os(make_trainer: Make) -> None:
    """What images become with each mechanism switched off."""
    found = {}
    settings: dict[str, dict[str, Any]] = {
        "all": {},
        "no blend": {"blend": False},
        "beta 0": {"beta": 0.0},
        "no mask": {"mask": False},
        "otsu": {"mask_threshold": "otsu"},
        "number": {"mask_threshold": "-1"},
        "surgery": {"patch_path": "surgery"},
        "background": {"synthesize": False},
    }
    for name, options in settings.items():
        trainer = make_trainer("clip_os", **options)
        found[name] = trainer._training_features().features
    assert torch.equal(found["no blend"]["relevant"], found["beta 0"]["relevant"])
    for name in ("no blend", "no mask", "otsu", "surgery"):
        assert not torch.allclose(found[name]["relevant"], found["all"]["relevant"], atol=1e-5), name
    # No patch is below.
    torch.testing.assert_close(found["number"]["relevant"], found["no mask"]["relevant"])
    assert torch.equal(found["background"]["relevant"], found["all"]["relevant"])
    assert set(found["background"]) == {"embeddings", "relevant", "background"}
    for features in found.values():
        torch.testing.assert_close(features["relevant"].norm(dim=-1), torch.ones(12, 1))

    # By hand, without blending
    trainer = make_trainer("clip_os")
    encoder = trainer.dual_encoder
    hand_written = DualEncoder.from_pretrained(encoder.model.name_or_path, device="cpu")
    pictures = list(make_rows(12, 0).cast_column("image", datasets.Image())["image"])
    inputs = encoder.prepare_images(pictures)
    texts = hand_written.class_embeddings(LABELS)[0][torch.arange(12) % 3]
    maps = {
        path: torch.einsum("bpd,bd->bp", hand_written.local_image_embeddings(inputs, path, 2), texts)
        for path in ("surgery", "clip")
    }
    mask = surgery_discrepancy_mask(maps["surgery"], maps["clip"])
    assert mask.any()
    assert not mask.all()
    with torch.no_grad():
        patches = local_image_features(hand_written.model, inputs["pixel_values"], "value")
    expected = id_relevant_features(patches, mask)
    torch.testing.assert_close(found["no blend"]["relevant"][:, 0], expected, rtol=0, atol=1e-5)


def test_unknown_tokens_of_their_own(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(
        "clip_os", train_dataset=make_features(), num_unknown_tokens=2, unknown_label="no photo", learning_rate=1.0
    )
    before = context(trainer)
    trainer.train()
    assert before.shape == (5, 32)
    assert (context(trainer) - before).norm(dim=1).min() > 1e-6
    trainer.save_model(str(tmp_path / "saved"))
    encoder = DualEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    with torch.no_grad():
        expected = trainer.model.eval().class_embeddings()[3]
    torch.testing.assert_close(encoder.unknown_embedding(), expected, rtol=0, atol=1e-6)


# Files beside the adapter


def test_best_checkpoint_is_loaded(make_trainer: Make) -> None:
    trainer = make_trainer(
        train_dataset=make_features(),
        eval_dataset=make_features(6, seed=3),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        # The first checkpoint is the best one.
        greater_is_better=True,
        max_steps=4,
        learning_rate=1.0,
    )
    trainer.train()
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best.name == f"checkpoint-{1 + int(np.argmax(found))}"
    assert best.name != "checkpoint-4"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(found), abs=1e-6)


def test_folder_is_a_model_of_the_pipeline(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer("clip_os", train_dataset=make_features())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    judge: Any = pipeline("ood-detection", model=str(tmp_path / "saved"), method="clip_os", device="cpu")
    image = Image.new("RGB", (40, 36), "red")
    found = judge(image, candidate_labels=LABELS)
    encoder = DualEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    expected = OODDetector(encoder, LABELS, "clip_os").score([image]).item()
    assert found["ood_score"] == pytest.approx(expected, abs=1e-6)


def test_prompts_on_the_checkpoint_inside_the_package(tmp_path: Path) -> None:
    encoder = DualEncoder.from_pretrained(device="cpu")
    dim = encoder.model.projection_dim
    trainer = CoOpTrainer(
        encoder.model,
        CoOpArguments(output_dir=str(tmp_path), max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True),
        processing_class=encoder.processor,
        labels=LABELS,
        train_dataset=make_features(dim=dim),
    )
    trainer.train()
    trainer.save_model()
    saved = "".join(file.read_text(encoding="utf-8") for file in tmp_path.glob("*config.json"))
    # Nothing of this machine
    assert str(EMBEDDED_CHECKPOINT) not in saved
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "clipn"
    again = DualEncoder.from_pretrained(tmp_path, device="cpu")
    with torch.no_grad():
        expected = trainer.model.eval().class_embeddings()
    torch.testing.assert_close(again.class_embeddings(LABELS)[0], expected, rtol=0, atol=1e-6)


def test_card(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer("clip_os", train_dataset=make_features(), eval_dataset=make_features(6, seed=3))
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert not (tmp_path / "run" / "README.md").exists()
    trainer.create_model_card(dataset="photos", license="mit", tags="few", num_images=12)
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "CLIP-OS" in card
    assert "license: mit" in card
    # A card is not taken away by saving again.
    trainer.save_model()
    assert (tmp_path / "run" / "README.md").read_text(encoding="utf-8") == card


def test_what_is_pushed_while_training(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(train_dataset=make_features())
    seen = []
    with patch.object(Trainer, "_push_from_checkpoint", lambda self, folder: seen.append(folder)):
        trainer._push_from_checkpoint("checkpoint-1")
    assert seen == ["checkpoint-1"]
    assert load_learned_prompts(tmp_path / "run") == trainer.learned_prompts


# What is refused


def test_models_that_are_refused(make_trainer: Make, clip_folder: Path) -> None:
    trainer = make_trainer(train_dataset=make_features())
    for model in (trainer.encoder, trainer.encoder.get_base_model()):
        assert isinstance(model, PeftModel) or model.peft_config
        with pytest.raises(TypeError, match="has an adapter already, .*; load the model anew, without it, for each"):
            make_trainer(model=model, train_dataset=make_features())
    with pytest.raises(ValueError, match="weights of `model` are torch.bfloat16, too coarse"):
        make_trainer(model=CLIPModel.from_pretrained(clip_folder, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="Linear does not embed both images and texts"):
        make_trainer(model=nn.Linear(2, 2))
    # The tokenizer has the tokens of the first trainer.
    model, processor = CLIPModel.from_pretrained(clip_folder), trainer.processing_class
    with pytest.raises(ValueError, match="The tokenizer does not fit the CLIPModel: it has 552 tokens"):
        make_trainer(model=model, processing_class=processor)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"labels": LABELS[:2]}, ValueError, "`train_dataset` has 3 classes, but 2 `labels` are given"),
        ({"labels": [*LABELS, "photo"]}, ValueError, "`train_dataset` has 3 classes, but 4 `labels` are given"),
        ({"labels": []}, ValueError, "`labels` is empty"),
        (
            {"train_dataset": make_features(), "labels": LABELS[:2]},
            ValueError,
            "`train_dataset` has an image of class 2, but the 2 `labels` are those of the classes from 0 to 1",
        ),
        (
            {"train_dataset": make_features(), "labels": [*LABELS, "photo"]},
            ValueError,
            "`train_dataset`: There is no image of 1 of the 4 classes: 'photo'",
        ),
        (
            {"train_dataset": LabelledImages(make_rows(12, 0).select([0, 3]))},
            ValueError,
            "`train_dataset`: There are images of one class only, 'cat'",
        ),
        (
            {"train_dataset": LabelledImages(make_rows(12, 0, labelled=False))},
            ValueError,
            "`train_dataset` has no labels",
        ),
        ({"train_dataset": [1]}, TypeError, "`train_dataset` must be LabelledImages or FewShotFeatures, got list"),
        ({"train_dataset": make_features(dim=25)}, ValueError, "has features of dimension 25, but .* have 24"),
        ({"ood_datasets": {"noise": make_features()}}, ValueError, "`ood_datasets` are compared with images"),
        (
            {"ood_datasets": {"noise": make_rows(3, 0)}, "eval_dataset": make_features()},
            TypeError,
            r"`ood_datasets\['noise'\]` must be LabelledImages or FewShotFeatures, got Dataset",
        ),
        (
            {"eval_dataset": FewShotFeatures(torch.eye(2, 24))},
            ValueError,
            "`eval_dataset` has no labels; give the number",
        ),
        (
            {"labels": ["dog", "cat", "car"]},
            ValueError,
            "`labels` are the classes of `train_dataset` in another order: class 0 is 'cat' there, and 'dog' here;",
        ),
        (
            {
                "train_dataset": make_features(),
                "labels": ["cat", "car", "dog"],
                "eval_dataset": LabelledImages(make_rows(3, 0)),
            },
            ValueError,
            "`labels` are the classes of `eval_dataset` in another order: class 1 is 'dog' there, and 'car' here;",
        ),
        ({"num_cached_views": 2}, ValueError, "`num_cached_views=2` views of each image would all be the same"),
    ],
)
def test_data_that_is_refused(make_trainer: Make, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_trainer(**given)


def test_features_that_lack_something(make_trainer: Make) -> None:
    plain = FewShotFeatures(make_features().features["embeddings"], make_features().labels)
    with pytest.raises(ValueError, match="LoCoOpTrainer needs `patches` of the images, which `train_dataset` lacks"):
        make_trainer("locoop", train_dataset=plain)
    with pytest.raises(ValueError, match="CLIPOSTrainer needs `relevant` of the images"):
        make_trainer("clip_os", train_dataset=plain)
    with pytest.raises(ValueError, match="CLIPOSTrainer needs `background` of the images"):
        make_trainer("clip_os", train_dataset=plain, synthesize=False)
    make_trainer("clip_os", train_dataset=plain, unknown_weight=0)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("coop", {"num_context_tokens": 0}, "`num_context_tokens` must be at least 1, got 0."),
        ("coop", {"class_position": "left"}, "`class_position` must be 'end', 'middle' or 'front', got 'left'."),
        ("coop", {"num_cached_views": -1}, "`num_cached_views` must be at least 0, got -1."),
        ("coop", {"context_init": " "}, "`context_init` must have at least one word, got ' '; leave it out"),
        ("coop", {"warmup_epochs": math.nan}, "`warmup_epochs` must be a finite number >= 0, got nan."),
        ("coop", {"warmup_learning_rate": -1}, "`warmup_learning_rate` must be a finite number >= 0, got -1."),
        ("coop", {"warmup_steps": 3}, "set one of them to 0."),
        ("coop", {"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is not used by the losses of prompts"),
        ("coop", {"learning_rate": 0.0}, "`learning_rate` must be a finite number > 0, got 0.0."),
        ("locoop", {"top_k": 0}, "`top_k` must be at least 1 or None, got 0."),
        ("locoop", {"entropy_weight": -0.1}, "`entropy_weight` must be a finite number >= 0, got -0.1."),
        ("clip_os", {"beta": 1.5}, r"`beta` must lie in \[0, 1\], got 1.5."),
        ("clip_os", {"alpha": 0.0}, "`alpha` must be positive and finite, such as 1.0, got 0.0."),
        ("clip_os", {"unknown_weight": math.inf}, "`unknown_weight` must be a finite number >= 0, got inf."),
        ("clip_os", {"num_outliers": 0}, "`num_outliers` must be at least 1, got 0."),
        ("clip_os", {"num_surgery_layers": 0}, "`num_surgery_layers` must be at least 1, got 0."),
        ("clip_os", {"num_unknown_tokens": -1}, "`num_unknown_tokens` must be at least 0, got -1."),
        ("clip_os", {"patch_path": "last"}, "`patch_path` must be 'value', 'surgery' or 'clip', got 'last'."),
        ("clip_os", {"classified_features": "all"}, "`classified_features` must be 'global', 'relevant' or 'both'"),
        ("clip_os", {"mask_threshold": "high"}, "`mask_threshold` must be 'mean', 'otsu' or a number"),
        ("clip_os", {"mask_threshold": "2"}, "`mask_threshold` must be 'mean', 'otsu' or a number"),
        ("clip_os", {"mask": False, "synthesize": False}, "leave nothing to be an outlier"),
    ],
)
def test_arguments_that_are_refused(method: str, given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        TRAINERS[method][1](output_dir=str(tmp_path), **given)


def test_texts_are_no_numbers(tmp_path: Path) -> None:
    for given, message in (
        ({"learning_rate": "0.1"}, "`learning_rate` must be a number, got the text '0.1'"),
        ({"num_context_tokens": "4"}, "`num_context_tokens` must be a number, got the text '4'"),
        ({"top_k": "2"}, "`top_k` must be a number, got the text '2'"),
    ):
        with pytest.raises(TypeError, match=message):
            LoCoOpArguments(output_dir=str(tmp_path), **given)  # type: ignore[arg-type]


def test_arguments_of_another_trainer(tmp_path: Path, clip_folder: Path) -> None:
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with pytest.raises(TypeError, match="`args` of CLIPOSTrainer must be CLIPOSArguments, got CoOpArguments."):
        CLIPOSTrainer(
            model,
            CoOpArguments(output_dir=str(tmp_path), use_cpu=True),  # type: ignore[arg-type]
            processing_class=processor,
            labels=LABELS,
            train_dataset=make_features(),
        )


def test_evaluation_is_one_bar_of_progress(make_trainer: Make, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(
        train_dataset=make_features(),
        eval_dataset=make_features(6, seed=3),
        ood_datasets={name: make_features(40, seed=4) for name in ("noise", "more")},
        per_device_eval_batch_size=2,
        disable_tqdm=False,
    )
    measured = trainer.evaluate()
    assert {"eval_noise_auroc_mcm", "eval_more_auroc_mcm"} <= set(measured)
    told = capfd.readouterr().err
    assert "3/3" in told
    # Bars that run past their end lose it.
    assert re.search(r"\d+it \[", told) is None
    # On a CPU every loader would warn of pinned memory.
    assert not trainer.args.dataloader_pin_memory


def test_names_of_classes_may_be_others(make_trainer: Make) -> None:
    trainer = make_trainer(labels=["a kitten", "a puppy", "dog"])
    assert trainer.learned_prompts.labels == ["a kitten", "a puppy", "dog"]


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_wrong_size(make_trainer: Make, method: str, clip_folder: Path) -> None:
    processor = CLIPProcessor.from_pretrained(clip_folder)
    processor.image_processor.size = {"height": 30, "width": 30}
    processor.image_processor.crop_size = {"height": 30, "width": 30}
    with pytest.raises(ValueError, match="30"):
        make_trainer(method, processing_class=processor)
    # Features at hand are of images of the right size.
    make_trainer(method, processing_class=processor, train_dataset=make_features())


def test_too_many_classes_to_be_among(make_trainer: Make) -> None:
    with pytest.raises(ValueError, match="`top_k` must be less than the 3 classes, got 3"):
        make_trainer("locoop", top_k=3)
