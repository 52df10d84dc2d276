# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: what it computes, what it moves, what it reports, and that it can be stopped at any time."""

import copy
import io
import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate
from transformers import CLIPModel, TrainerCallback

from clipn_hf import CLIPNModel, CLIPNProcessor, OODDetector, clipn_loss
from clipn_hf.evaluation.metrics import auroc, fpr_at_tpr
from clipn_hf.training import Augmentation, CLIPNTrainer, CLIPNTrainingArguments, ImageTextCollator, ImageTextDataset

MakeTrainer = Callable[..., CLIPNTrainer]
Pairs = list[dict[str, Tensor]]


def weights(model: CLIPNModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first: CLIPNModel, second: CLIPNModel, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=tolerance, atol=tolerance)


def logged(trainer: CLIPNTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Gradients(TrainerCallback):
    """Keeps the gradients of each step of the optimizer."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        named = model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def picture(seed: int) -> dict[str, Any]:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 36), Image.Resampling.NEAREST).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def picture_pairs(augmentation: Augmentation | None = None) -> ImageTextDataset:
    rows = datasets.Dataset.from_dict(
        {
            "image": [picture(seed) for seed in range(10)],
            "caption": [["a cat", f"a photo of a cat {index}"] for index in range(10)],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))},
        ),
    )
    return ImageTextDataset(rows, augmentation=augmentation)


def test_defaults_are_the_recipe_of_the_authors(tmp_path: Path) -> None:
    args = CLIPNTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (3e-4, 0.9, 0.98, 1e-6)
    assert (args.weight_decay, args.lr_scheduler_type, args.num_train_epochs) == (0.2, "cosine", 10)
    assert (args.warmup_steps, args.max_grad_norm, args.per_device_train_batch_size) == (0, 0, 512)
    assert (args.yes_weight, args.no_weight, args.tso_weight, args.tuning) == (0.5, 0.5, 0.5, "full")
    assert not args.remove_unused_columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tuning": "prefix"}, "'trainable_tokens'.*got 'prefix'"),
        ({"yes_weight": -1.0}, "`yes_weight`.*got -1.0"),
        ({"tso_weight": math.nan}, "`tso_weight`.*got nan"),
        ({"lora_rank": 0}, "`lora_rank`.*got 0"),
        ({"lora_dropout": 1.0}, "`lora_dropout`.*got 1.0"),
        ({"num_trainable_tokens": 0}, "`num_trainable_tokens`.*got 0"),
        ({"loss_chunk_size": 0}, "`loss_chunk_size`.*got 0"),
        ({"num_cached_views": -1}, "`num_cached_views`.*got -1"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPNTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


def test_loss_falls(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs) -> None:
    trainer = make_trainer(tiny_clipn, max_steps=25, learning_rate=1e-3, eval_dataset=pairs)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    for name in ("itbo_yes_loss", "itbo_no_loss", "tso_loss"):
        assert len(logged(trainer, name)) == 25
        assert math.isfinite(after[f"eval_{name}"])


def test_loss_is_the_weighted_sum_of_the_logged_terms(
    tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    trainer = make_trainer(
        tiny_clipn,
        max_steps=4,
        logging_steps=2,
        yes_weight=0.2,
        no_weight=0.3,
        tso_weight=1.5,
        eval_dataset=pairs[:20],
    )
    trainer.train()
    metrics = trainer.evaluate()
    names = ("itbo_yes_loss", "itbo_no_loss", "tso_loss")
    for loss, *terms in zip(logged(trainer, "loss"), *(logged(trainer, name) for name in names), strict=True):
        assert loss == pytest.approx(np.dot([0.2, 0.3, 1.5], terms), rel=1e-5)
    terms = [metrics[f"eval_{name}"] for name in names]
    assert metrics["eval_loss"] == pytest.approx(np.dot([0.2, 0.3, 1.5], terms), rel=1e-5)


def test_evaluation_reports_the_losses_of_the_batches(
    tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    metrics = make_trainer(tiny_clipn, eval_dataset=pairs[:20]).evaluate()
    batches = [default_collate(pairs[start : min(start + 8, 20)]) for start in range(0, 20, 8)]
    with torch.no_grad():
        outputs = [tiny_clipn(**batch) for batch in batches]
    for name in ("loss", "itbo_yes_loss", "itbo_no_loss", "tso_loss"):
        expected = np.average([output[name].item() for output in outputs], weights=[8, 8, 4])
        assert metrics[f"eval_{name}"] == pytest.approx(expected, rel=1e-5)


def test_groups_are_matches(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs) -> None:
    group_ids = torch.tensor([5, 7, 5, -1, 7, 3, 5, 9])
    batch = default_collate(pairs[:8])
    trainer = make_trainer(tiny_clipn)
    tiny_clipn.eval()
    loss, outputs = trainer.compute_loss(tiny_clipn, {**batch, "group_ids": group_ids}, return_outputs=True)
    expected = clipn_loss(
        outputs.image_embeds,
        outputs.text_embeds,
        outputs.no_text_embeds,
        tiny_clipn.logit_scale.exp(),
        group_ids=group_ids,
    )
    torch.testing.assert_close(loss, expected.loss)
    assert not torch.isclose(loss, trainer.compute_loss(tiny_clipn, batch), rtol=1e-3)


def test_chunked_loss_is_the_same_without_a_square_tensor(
    tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    class Shapes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[tuple[int, ...]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            leaves = result if isinstance(result, tuple | list) else [result]
            self.seen |= {tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)}
            return result

    batch = default_collate(pairs[:20])
    results = []
    for chunk_size in (None, 3):
        trainer = make_trainer(tiny_clipn, loss_chunk_size=chunk_size)
        tiny_clipn.zero_grad()
        tiny_clipn.train()
        torch.manual_seed(0)
        with Shapes() as shapes:
            loss = trainer.compute_loss(tiny_clipn, batch)
            loss.backward()
        assert ((20, 20) in shapes.seen) == (chunk_size is None)
        results.append([loss.detach(), *(parameter.grad for parameter in tiny_clipn.no_parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_clip_stays_frozen_in_evaluation_mode_and_without_autograd(
    tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    with torch.no_grad():
        tiny_clipn.logit_scale.fill_(6.0)
    before = weights(tiny_clipn)
    trainer = make_trainer(tiny_clipn)
    trainer.train()
    assert tiny_clipn.no_text_model.training
    assert not tiny_clipn.text_model.training
    assert not tiny_clipn.vision_model.training
    assert tiny_clipn.logit_scale.item() == pytest.approx(math.log(100))
    for name, tensor in weights(tiny_clipn).items():
        if name != "logit_scale":
            assert torch.equal(tensor, before[name]) != ("no_" in name), name

    batch = {**default_collate(pairs[:4]), "pixel_values": torch.zeros(4, 3, 32, 32)}
    del batch["image_embeds"]
    _, outputs = trainer.compute_loss(tiny_clipn, batch, return_outputs=True)
    assert outputs.no_text_embeds.requires_grad
    assert not outputs.text_embeds.requires_grad
    assert not outputs.image_embeds.requires_grad


def test_weight_decay_spares_gains_and_biases(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tiny_clipn)
    decayed, spared = trainer.create_optimizer().param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.2, 0.0)
    names = {parameter: name for name, parameter in tiny_clipn.named_parameters()}
    assert {names[parameter].rpartition(".")[2] for parameter in spared["params"]} == {"weight", "bias"}
    assert all(parameter.ndim == 1 for parameter in spared["params"])
    assert {"no_text_projection.weight", "no_text_model.embeddings.no_prompts"} <= {
        names[parameter] for parameter in decayed["params"]
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(tiny_clipn.no_parameters())


def test_gradient_accumulation_averages_its_batches(
    handcrafted: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    # hand-crafted prompts, because nothing is drawn for them
    reference = make_trainer(handcrafted)
    handcrafted.train()
    losses = [reference.compute_loss(handcrafted, default_collate(pairs[row : row + 4])) for row in range(0, 16, 4)]
    (sum(losses) / 4).backward()
    expected = {name: parameter.grad for name, parameter in handcrafted.named_parameters()}
    handcrafted.zero_grad()

    gradients = Gradients()
    trainer = make_trainer(
        handcrafted,
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        train_sampling_strategy="sequential",
        callbacks=[gradients],
    )
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([sum(losses).item() / 4], rel=1e-5)
    (step,) = gradients.steps
    assert step.keys() == {name for name, parameter in handcrafted.named_parameters() if parameter.requires_grad}
    torch.testing.assert_close(step, {name: expected[name] for name in step}, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tuning", ["full", "lora", "no_prompts"])
@pytest.mark.parametrize("stop", [2, 3], ids=["within an epoch", "between epochs"])
def test_resumed_run_is_the_uninterrupted_one(
    tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs, tmp_path: Path, tuning: str, stop: int
) -> None:
    def trainer(model: CLIPNModel, name: str) -> CLIPNTrainer:
        return make_trainer(
            model,
            output_dir=str(tmp_path / name),
            tuning=tuning,
            lora_dropout=0.2,
            max_steps=5,  # 3 steps are an epoch
            save_strategy="steps",
            save_steps=stop,
            eval_strategy="epoch",
            eval_dataset=pairs[:4],
        )

    whole, resumed = copy.deepcopy(tiny_clipn), copy.deepcopy(tiny_clipn)
    first = trainer(whole, "whole")
    first.train()
    torch.manual_seed(99)
    second = trainer(resumed, "resumed")
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert_same_weights(whole, resumed)
    assert logged(second, "loss") == logged(first, "loss")
    with pytest.raises((AssertionError, ValueError)):  # peft changes the names of the weights, too
        assert_same_weights(whole, tiny_clipn)


def test_resumed_run_draws_the_same_views_and_captions(
    tiny_clipn: CLIPNModel, processor: CLIPNProcessor, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def run(name: str, resume: str | None = None) -> CLIPNModel:
        model = copy.deepcopy(tiny_clipn)
        trainer = make_trainer(
            model,
            output_dir=str(tmp_path / name),
            image_cache_dir=str(tmp_path / "cache"),
            num_cached_views=3,
            train_dataset=picture_pairs(Augmentation((32, 32), crop_scale=(0.2, 0.6))),
            data_collator=ImageTextCollator(processor),
            per_device_train_batch_size=4,
            max_steps=7,  # 3 steps are an epoch
            save_strategy="steps",
            save_steps=4,
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    assert_same_weights(run("whole"), run("resumed", resume=str(tmp_path / "whole" / "checkpoint-4")))


def test_same_seed_same_result(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer) -> None:
    models = [copy.deepcopy(tiny_clipn) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        make_trainer(model, seed=seed).train()
    assert_same_weights(models[0], models[1])
    with pytest.raises(AssertionError):
        assert_same_weights(models[0], models[2])


def test_adapters_begin_alike(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer) -> None:
    """Whatever the process drew before."""

    def adapters(seed: int) -> torch.Tensor:
        trainer = make_trainer(copy.deepcopy(tiny_clipn), tuning="lora", seed=seed)
        parameters = trainer.model.named_parameters()
        return torch.cat([weights.detach().flatten() for name, weights in parameters if "lora_A" in name])

    torch.manual_seed(1)
    first = adapters(seed=0)
    torch.manual_seed(2)
    assert torch.equal(first, adapters(seed=0))
    assert not torch.equal(first, adapters(seed=1))


def test_evaluation_does_not_change_the_training(
    tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    watched = copy.deepcopy(tiny_clipn)
    make_trainer(tiny_clipn).train()
    make_trainer(watched, eval_strategy="steps", eval_steps=1, eval_dataset=pairs).train()
    assert_same_weights(tiny_clipn, watched)


def test_epochs_draw_anew(tiny_clipn: CLIPNModel, processor: CLIPNProcessor, make_trainer: MakeTrainer) -> None:
    dataset = picture_pairs()
    epochs: list[int] = []
    dataset.set_epoch = epochs.append  # type: ignore[method-assign]
    make_trainer(
        tiny_clipn,
        train_dataset=dataset,
        data_collator=ImageTextCollator(processor),
        per_device_train_batch_size=5,
        max_steps=6,
    ).train()
    assert [epoch for epoch, _ in itertools.groupby(epochs)] == [0, 1, 2]


def test_cached_embeddings_train_like_images(
    tiny_clipn: CLIPNModel, processor: CLIPNProcessor, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    models = [copy.deepcopy(tiny_clipn) for _ in range(3)]
    losses, encoded = [], []
    for model, views in zip(models, (0, 1, 1), strict=True):
        trainer = make_trainer(
            model,
            output_dir=str(tmp_path / str(views)),
            num_cached_views=views,
            train_dataset=picture_pairs(),
            data_collator=ImageTextCollator(processor),
            per_device_train_batch_size=5,
            max_steps=4,
            optim="sgd",  # Adam would blow up differences in the last bit where gradients are nearly zero
        )
        batches: list[int] = []
        model.vision_model.register_forward_hook(lambda *_, batches=batches: batches.append(1))
        trainer.train()
        losses.append(logged(trainer, "loss"))
        encoded.append(len(batches))
    # four steps; ten images in batches of eight; nothing, because the file is there
    assert encoded == [4, 2, 0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert_same_weights(models[0], models[1], tolerance=1e-6)
    assert_same_weights(models[1], models[2])
    assert len(list((tmp_path / "1" / "_image_cache").glob("*.npy"))) == 1


def test_gradient_checkpointing_changes_nothing(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer) -> None:
    for tuning in ("full", "lora"):
        models = [copy.deepcopy(tiny_clipn) for _ in range(2)]
        for model, checkpointing in zip(models, (False, True), strict=True):
            make_trainer(model, max_steps=2, tuning=tuning, gradient_checkpointing=checkpointing).train()
        assert_same_weights(*models, tolerance=1e-6)


def test_bfloat16(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs) -> None:
    exact = copy.deepcopy(tiny_clipn)
    half = make_trainer(tiny_clipn, bf16=True)
    half.train()
    full = make_trainer(exact)
    full.train()
    assert {parameter.dtype for parameter in tiny_clipn.parameters()} == {torch.float32}
    assert logged(half, "loss") == pytest.approx(logged(full, "loss"), rel=0.05)
    assert logged(half, "loss") != logged(full, "loss")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=["float32", "bf16", "fp16"])
def test_gpu(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs, precision: dict[str, bool]) -> None:
    trainer = make_trainer(
        tiny_clipn, use_cpu=False, max_steps=25, learning_rate=1e-3, eval_dataset=pairs, **precision
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert tiny_clipn.device.type == "cuda"
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


def test_ood_detection_is_evaluated(
    tiny_clipn: CLIPNModel, processor: CLIPNProcessor, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    images = [picture(seed) for seed in range(9)]
    features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["cat", "dog", "car"])}
    id_dataset = datasets.Dataset.from_dict(
        {"image": [*images[:4], {"bytes": b"damaged", "path": None}], "label": [0, 1, 2, 0, 1]},
        features=datasets.Features(features),
    )
    ood_dataset = datasets.Dataset.from_dict(
        {"image": images[4:]}, features=datasets.Features({"image": features["image"]})
    )
    trainer = make_trainer(tiny_clipn, eval_dataset=pairs, id_dataset=id_dataset, ood_dataset=ood_dataset)
    seen: list[int] = []
    handle = tiny_clipn.vision_model.register_forward_hook(lambda *_: seen.append(1))
    metrics = [trainer.evaluate()]
    trainer.train()
    metrics.append(trainer.evaluate())
    handle.remove()
    assert len(seen) == 2  # the embeddings of the images are kept
    assert metrics[0]["eval_ood_auroc_mcm"] == metrics[1]["eval_ood_auroc_mcm"]

    for method in ("mcm", "ctw", "atd"):
        detector = OODDetector(tiny_clipn, ["cat", "dog", "car"], method=method, processor=processor)
        id_scores = detector.score([image["bytes"] for image in images[:4]])
        ood_scores = detector.score([image["bytes"] for image in images[4:]])
        assert metrics[1][f"eval_ood_auroc_{method}"] == pytest.approx(auroc(id_scores, ood_scores))
        assert metrics[1][f"eval_ood_fpr95_{method}"] == pytest.approx(fpr_at_tpr(id_scores, ood_scores))
    results = detector([image["bytes"] for image in images[:4]])
    right = [result["label"] == label for result, label in zip(results, ["cat", "dog", "car", "cat"], strict=True)]
    assert metrics[1]["eval_id_accuracy"] == pytest.approx(np.mean(right))


@pytest.fixture
def ood_data() -> dict[str, datasets.Dataset]:
    features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["cat", "dog"])}
    return {
        "id_dataset": datasets.Dataset.from_dict(
            {"image": [picture(seed) for seed in range(4)], "label": [0, 1, 0, 1]},
            features=datasets.Features(features),
        ),
        "ood_dataset": datasets.Dataset.from_dict(
            {"image": [picture(seed) for seed in range(4, 7)]},
            features=datasets.Features({"image": features["image"]}),
        ),
    }


OOD_METRICS = {f"eval_ood_{metric}_{method}" for metric in ("auroc", "fpr95") for method in ("mcm", "ctw", "atd")}


def test_ood_detection_is_evaluated_without_pairs(
    tiny_clipn: CLIPNModel,
    make_trainer: MakeTrainer,
    pairs: Pairs,
    ood_data: dict[str, datasets.Dataset],
    tmp_path: Path,
) -> None:
    expected = make_trainer(copy.deepcopy(tiny_clipn), eval_dataset=pairs, **ood_data).evaluate()
    trainer = make_trainer(
        tiny_clipn,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="ood_auroc_atd",
        **ood_data,
    )
    metrics = trainer.evaluate()
    assert metrics.keys() - {"epoch"} == {*OOD_METRICS, "eval_id_accuracy"}
    assert metrics.items() - {("epoch", 0)} <= expected.items()
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_ood_auroc_atd" in entry] == [2, 4]
    assert trainer.state.best_metric == max(logged(trainer, "eval_ood_auroc_atd"))
    with pytest.raises(ValueError, match="eval_dataset"):
        make_trainer(tiny_clipn).evaluate()


def test_ood_detection_is_evaluated_once_for_several_sets(
    tiny_clipn: CLIPNModel,
    make_trainer: MakeTrainer,
    pairs: Pairs,
    ood_data: dict[str, datasets.Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    measure = CLIPNTrainer._ood_metrics
    monkeypatch.setattr(CLIPNTrainer, "_ood_metrics", lambda self: calls.append(1) or measure(self))
    trainer = make_trainer(tiny_clipn, eval_dataset={"near": pairs[:8], "far": pairs[8:20]}, **ood_data)
    metrics = trainer.evaluate()
    assert len(calls) == 1
    assert OOD_METRICS | {"eval_near_loss", "eval_far_loss", "eval_far_tso_loss"} <= metrics.keys()
    assert not [name for name in metrics if "near_ood" in name or "far_ood" in name]
    assert metrics["eval_far_loss"] == pytest.approx(
        make_trainer(tiny_clipn, eval_dataset=pairs[8:20]).evaluate()["eval_loss"]
    )
    assert logged(trainer, "eval_ood_auroc_atd") == [metrics["eval_ood_auroc_atd"]]
    other = trainer.evaluate({"all": pairs}, metric_key_prefix="test")
    assert {"test_all_loss", "test_ood_auroc_atd"} <= other.keys()
    assert len(calls) == 2
    trainer.predict(pairs)
    assert len(calls) == 2


def test_templates_come_from_the_model(
    handcrafted: CLIPNModel, processor: CLIPNProcessor, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    assert processor.templates is None
    trainer = make_trainer(handcrafted)
    assert processor.templates == handcrafted.config.templates
    assert processor.no_templates == handcrafted.config.no_templates != processor.templates
    trainer.save_model(str(tmp_path / "saved"))
    assert CLIPNProcessor.from_pretrained(tmp_path / "saved").no_templates == handcrafted.config.no_templates
    processor.no_templates = processor.templates
    with pytest.raises(ValueError, match="disagree on `no_templates`"):
        make_trainer(handcrafted)


def test_ood_data_that_does_not_fit(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer) -> None:
    numbers = datasets.Dataset.from_dict({"image": [picture(0)], "label": [0]})
    with pytest.raises(ValueError, match="`ood_dataset` is None"):
        make_trainer(tiny_clipn, id_dataset=numbers)
    with pytest.raises(ValueError, match="ClassLabel"):
        make_trainer(tiny_clipn, id_dataset=numbers, ood_dataset=numbers)
    trainer = make_trainer(tiny_clipn, id_dataset=numbers, ood_dataset=numbers, id_labels=("cat",))
    assert trainer.id_labels == ["cat"]


def test_saved_model_is_the_trained_one(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_clipn)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(CLIPNModel.from_pretrained(tmp_path / "saved"), tiny_clipn)
    processor = CLIPNProcessor.from_pretrained(tmp_path / "saved")
    assert processor.templates == trainer.processing_class.templates


def test_model_card(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_clipn)
    trainer.train()
    trainer.create_model_card(model_name="clipn-toy", dataset="org/pairs", tags="toy", num_pairs=24)
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "# clipn-toy\n" in card
    assert "org/pairs" in card
    assert 'model="."' in card
    trainer.hub_model_id = "org/clipn-hub"
    trainer.create_model_card(model_name="clipn-toy")
    assert 'model="org/clipn-hub"' in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_unsuitable_models(
    tiny_clip: CLIPModel, tiny_clipn: CLIPNModel, handcrafted: CLIPNModel, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    with pytest.raises(TypeError, match="got CLIPModel.*from_clip"):
        make_trainer(tiny_clip)
    with pytest.raises(ValueError, match="torch.float16.*dtype=torch.float32"):
        make_trainer(copy.deepcopy(tiny_clipn).half())
    with pytest.raises(ValueError, match="needs an ImageTextDataset.*got list"):
        make_trainer(tiny_clipn, num_cached_views=1)
    plain = [{name: value for name, value in row.items() if not name.startswith("no_")} for row in pairs]
    with pytest.raises(ValueError, match="`no_input_ids`"):
        make_trainer(handcrafted, train_dataset=plain).train()


def test_less_data_than_a_batch(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer(
        tiny_clipn,
        train_dataset=picture_pairs(),
        data_collator=ImageTextCollator(processor),
        num_cached_views=1,
        image_cache_dir=str(tmp_path / "cache"),
        per_device_train_batch_size=16,
        dataloader_drop_last=True,
    )
    with pytest.raises(ValueError, match=r"has 10 rows, fewer than the 16 of one batch .* to at most 10 or set"):
        trainer.train()
    assert not (tmp_path / "cache").exists(), "images were embedded for nothing"
    assert make_trainer(tiny_clipn, per_device_train_batch_size=24, dataloader_drop_last=True, max_steps=1).train()

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("clipn_hf"), "propagate", True)
    make_trainer(tiny_clipn, per_device_train_batch_size=2).get_train_dataloader()
    assert "itbo_no_loss" not in caplog.text
    make_trainer(tiny_clipn, per_device_train_batch_size=1).get_train_dataloader()
    assert "`itbo_no_loss` has no pairs" in caplog.text


class Stop(TrainerCallback):
    """Ends the training with the first epoch."""

    def on_epoch_end(self, *arguments: Any, **_: Any) -> None:
        arguments[2].should_training_stop = True


def test_short_runs_are_logged(tiny_clipn: CLIPNModel, make_trainer: MakeTrainer) -> None:
    def run(**arguments: Any) -> tuple[CLIPNTrainer, CLIPNModel]:
        model = copy.deepcopy(tiny_clipn)
        trainer = make_trainer(model, **arguments)
        trainer.train()
        return trainer, model

    every, first = run(logging_steps=1)
    short, second = run(logging_steps=100)
    assert logged(short, "loss") == pytest.approx([np.mean(logged(every, "loss"))])
    assert logged(short, "tso_loss") == pytest.approx([np.mean(logged(every, "tso_loss"))])
    assert_same_weights(first, second)
    assert len(logged(every, "loss")) == 3
    assert len(logged(run(logging_steps=100, max_steps=20, callbacks=[Stop()])[0], "loss")) == 1
    assert not logged(run(logging_strategy="no")[0], "loss")
