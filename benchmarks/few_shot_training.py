# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What few_shot.py trains and measures: prompts by CoOp, LoCoOp and CLIP-OS, mechanisms left out, and why."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from few_shot_sets import Draw, Features, Shots
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PrinterCallback

from clipn_hf import DualEncoder
from clipn_hf.evaluation.metrics import auroc, fpr_at_tpr
from clipn_hf.images import load_image
from clipn_hf.scores import combine_local, local_mcm, max_logit, mcm, mcm_with_unknown, unknown_probability
from clipn_hf.training import (
    CLIPOSArguments,
    CLIPOSTrainer,
    CoOpArguments,
    CoOpTrainer,
    FewShotArguments,
    FewShotFeatures,
    FewShotTrainer,
    LoCoOpArguments,
    LoCoOpTrainer,
)
from clipn_hf.training.outliers import (
    blend_patch_context,
    id_relevant_features,
    surgery_discrepancy_mask,
    synthesize_outliers,
)

TRAINERS: Mapping[str, tuple[type[FewShotArguments], type[FewShotTrainer]]] = {
    "CoOp": (CoOpArguments, CoOpTrainer),
    "LoCoOp": (LoCoOpArguments, LoCoOpTrainer),
    "CLIP-OS": (CLIPOSArguments, CLIPOSTrainer),
}
# Of all runs, apart from those that are about one of these.
LEARNING_RATE, EPOCHS = 0.05, 50
BETA, ALPHA = 0.5, 1.0
UNKNOWN: Mapping[str, Any] = {"num_unknown_tokens": 4, "unknown_weight": 0.1}
UNKNOWN_WORD = "unknown"
# The weight of the unknown class beside MCM
COMBINATION = 0.25
BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHAS = (0.1, 0.5, 1.0, 5.0, 100.0)
# What a patch of a drawing has: a pixel that is at least so much darker than white.
DARKER, PATCH = 16, 8


@dataclass(frozen=True)
class Variant:
    """CLIP-OS with something else.

    Args:
        mask (`str`): Which patches are averaged: those of `"discrepancy"`, of the `"surgery"` map alone, of that map
            `"relative"` to its mean over all labels, those of the `"drawing"`, or `"all"`.
        outliers (`str`): `"mixed"` of two classes, of the `"rest"` of an image, of `"one class"`, or mixed of
            `"global"` embeddings.
        beta (`float`): Of blending.
        settings (`dict`): Arguments of the trainer.
    """

    mask: str = "discrepancy"
    outliers: str = "mixed"
    beta: float = BETA
    settings: Mapping[str, Any] | None = None


VARIANTS: Mapping[str, Variant] = {
    "no blending": Variant(beta=0.0),
    "no mask": Variant(mask="all"),
    "no mix-up, the rest of the image": Variant(outliers="rest"),
    "no mix-up, one class": Variant(outliers="one class"),
    "no unknown-aware loss": Variant(settings={"unknown_weight": 0.0}),
    "mask by the surgery map alone": Variant(mask="surgery"),
    "mask by its relative map": Variant(mask="relative"),
    "global embeddings mixed": Variant(outliers="global"),
}
# Only where there is white around a drawing
DRAWN_VARIANTS: Mapping[str, Variant] = {"mask by the drawing itself": Variant(mask="drawing")}


# --- Features of shots -----------------------------------------------------------------------------------------------


class Labels:
    """The texts of labels as the model comes with them, and the scale of its logits."""

    def __init__(self, encoder: DualEncoder, labels: list[str]) -> None:
        self.texts = encoder.class_embeddings(labels)[0].cpu()  # (classes, dim)
        self.names = labels


def maps(shots: Shots, labels: Labels, beta: float) -> dict[str, Tensor]:
    """Maps `(images, patches)` of what speaks for the class of each image."""
    cosines = {
        path: torch.einsum(
            "npd,cd->npc", normalize(blend_patch_context(shots.local[path], beta), dim=-1), labels.texts
        )
        for path in ("surgery", "clip")
    }
    rows = torch.arange(len(shots.labels))
    own = {path: found[rows, :, shots.labels] for path, found in cosines.items()}
    return {**own, "relative": own["surgery"] - cosines["surgery"].mean(dim=2)}


def drawn(shots: Shots) -> Tensor:
    """Which patches `(images, patches)` of a drawing on white have some of it."""
    found = []
    for image in shots.images:
        pixels = np.asarray(load_image(image).convert("RGB"))
        darkest = pixels.min(axis=2).reshape(pixels.shape[0] // PATCH, PATCH, -1, PATCH).min(axis=(1, 3))
        found.append(torch.from_numpy(darkest.flatten() < 255 - DARKER))
    return torch.stack(found)


def choose_patches(shots: Shots, labels: Labels, mask: str, beta: float) -> Tensor | None:
    """The patches `(images, patches)` that are to be averaged; None for all."""
    if mask == "all":
        return None
    if mask == "drawing":
        chosen = drawn(shots)
        return chosen | ~chosen.any(dim=1, keepdim=True)
    found = maps(shots, labels, beta)
    surgery = found["relative" if mask == "relative" else "surgery"]
    return surgery_discrepancy_mask(surgery, found["clip"] if mask == "discrepancy" else torch.zeros_like(surgery))


def training_features(shots: Shots, labels: Labels, method: str, variant: Variant) -> FewShotFeatures:
    """What a trainer needs of the shots."""
    if method == "CoOp":
        return FewShotFeatures(shots.embeddings, shots.labels)
    if method == "LoCoOp":
        return FewShotFeatures(shots.embeddings, shots.labels, patches=normalize(shots.local["value"], dim=-1))
    mask = choose_patches(shots, labels, variant.mask, variant.beta)
    patches = blend_patch_context(shots.local["value"], variant.beta)
    relevant = id_relevant_features(patches, mask)
    background = None
    if variant.outliers == "one class":
        background = relevant
    elif variant.outliers == "rest":
        assert mask is not None
        has_rest = (~mask).any(dim=1)
        background = torch.full_like(relevant, torch.nan)
        background[has_rest] = id_relevant_features(patches[has_rest], ~mask[has_rest])
    elif variant.outliers == "global":
        relevant = shots.embeddings
    return FewShotFeatures(shots.embeddings, shots.labels, relevant=relevant, background=background)


# --- Training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prompts:
    """Embeddings of prompts `(classes, dim)`, and of the unknown prompt `(dim,)`, those before training, too."""

    classes: Tensor
    unknown: Tensor | None
    unknown_before: Tensor | None
    scale: float
    loss: float | None = None


def train(
    encoder: DualEncoder,
    labels: Labels,
    shots: Shots,
    method: str,
    seed: int,
    init: str | None,
    variant: Variant | None = None,
    **settings: Any,
) -> Prompts:
    """Learn prompts from shots; `settings` are further arguments of the trainer."""
    variant = variant or Variant()
    arguments_class, trainer_class = TRAINERS[method]
    given: dict[str, Any] = {"learning_rate": LEARNING_RATE, "num_train_epochs": EPOCHS}
    if method == "CLIP-OS":
        given |= {**UNKNOWN, "alpha": ALPHA, "synthesize": variant.outliers in ("mixed", "global")}
    given |= {**(variant.settings or {}), **settings}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            copy.deepcopy(encoder.model),
            arguments_class(
                output_dir=folder,
                context_init=init,
                seed=seed,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                **given,
            ),
            processing_class=copy.deepcopy(encoder.processor),
            labels=labels.names,
            train_dataset=training_features(shots, labels, method, variant),
        )
        trainer.remove_callback(PrinterCallback)
        before = _embed(trainer)
        loss = trainer.train().training_loss
        after = _embed(trainer)
    classes = len(labels.names)
    has_unknown = len(after) > classes
    return Prompts(
        after[:classes],
        after[classes] if has_unknown else None,
        before[classes] if has_unknown else None,
        trainer.model.logit_scale,
        loss,
    )


def zero_shot(encoder: DualEncoder, labels: Labels, init: str) -> Iterator[tuple[str, Prompts]]:
    """Prompts that nobody learned: those of the model, and what contexts begin with."""
    yield "zero-shot", Prompts(labels.texts, None, None, encoder.logit_scale)
    begin = encoder.class_embeddings([*labels.names, UNKNOWN_WORD], [f"{init} {{}}."])[0].cpu()
    yield "zero-shot, first words", Prompts(begin[:-1], begin[-1], None, encoder.logit_scale)


@torch.no_grad()
def _embed(trainer: FewShotTrainer) -> Tensor:
    found: Tensor = trainer.model.class_embeddings().cpu()
    return found


# --- Measuring -------------------------------------------------------------------------------------------------------


def scores(features: Features, prompts: Prompts) -> dict[str, Tensor]:
    """All scores of images; higher = more OOD."""
    similarity = features.embeddings @ prompts.classes.T
    local = torch.cat(
        [local_mcm(patches.float() @ prompts.classes.T) for patches in features.patches.split(256)]
    )  # (images,)
    found = {
        "mcm": mcm(similarity),
        "gl_mcm": combine_local(mcm(similarity), local),
        "max_logit": max_logit(prompts.scale * similarity),
        # The form of the score alone, without anything that was learned of the unknown
        "mcm_constant": mcm_with_unknown(similarity, torch.zeros(len(similarity)), weight=COMBINATION),
    }
    if prompts.unknown is not None:
        unknown = features.embeddings @ prompts.unknown
        found["unknown"] = unknown_probability(prompts.scale * similarity, prompts.scale * unknown)
        found["mcm_unknown"] = mcm_with_unknown(similarity, unknown, weight=COMBINATION)
        found["gl_mcm_unknown"] = combine_local(found["mcm_unknown"], local)
    return found


def measure(draw: Draw, prompts: Prompts) -> dict[str, Any]:
    """ID accuracy, and AUROC and FPR95 of all scores against each OOD set, in percent."""
    similarity = draw.id.embeddings @ prompts.classes.T
    hits = similarity.argmax(dim=1) == draw.id_labels
    result: dict[str, Any] = {"accuracy": _percent(hits.float().mean().item())}
    if prompts.unknown is not None:
        known = similarity.amax(dim=1) >= draw.id.embeddings @ prompts.unknown
        result["accuracy_with_unknown"] = _percent((hits & known).float().mean().item())
    known_scores = scores(draw.id, prompts)
    for name, features in draw.ood.items():
        for score, values in scores(features, prompts).items():
            for metric, compute in (("auroc", auroc), ("fpr95", fpr_at_tpr)):
                value = _percent(compute(known_scores[score], values))
                result.setdefault(metric, {}).setdefault(score, {})[name] = value
    return result


def diagnose(draw: Draw, shots: Shots, labels: Labels, prompts: Prompts, on_white: bool) -> dict[str, Any]:
    """What outliers and the unknown prompt are like, beside images of the classes and real OOD images.

    Args:
        draw ([`Draw`]): The images.
        shots ([`Shots`]): Those that the prompts were learned from.
        labels ([`Labels`]): The labels.
        prompts ([`Prompts`]): Learned by CLIP-OS.
        on_white (`bool`): Whether images are drawings on white, so that masks can be judged.

    Returns:
        `dict[str, Any]`: Cosines, and shares and AUROC in percent.
    """
    assert prompts.unknown is not None and prompts.unknown_before is not None
    known = training_features(shots, labels, "CLIP-OS", Variant())
    relevant = known.features["relevant"][:, 0]
    outliers = synthesize_outliers(
        relevant, shots.labels, ALPHA, num_outliers=200, generator=torch.Generator().manual_seed(draw.seed)
    )
    groups = {
        "ID": draw.id.embeddings,
        **{name: found.embeddings for name, found in draw.ood.items()},
        "shots, whole": shots.embeddings,
        "shots, relevant": relevant,
        "outliers": outliers,
    }
    result: dict[str, Any] = {
        "unknown": {name: _mean(found @ prompts.unknown) for name, found in groups.items()},
        "unknown before": {name: _mean(found @ prompts.unknown_before) for name, found in groups.items()},
        "best label": {name: _mean((found @ labels.texts.T).amax(dim=1)) for name, found in groups.items()},
        "nearest outlier": {name: _mean((found @ outliers.T).amax(dim=1)) for name, found in groups.items()},
    }
    for question, direction in (("like outliers", outliers.T), ("like unknown", prompts.unknown[:, None])):
        similar = {name: (found @ direction).amax(dim=1) for name, found in groups.items()}
        result[question] = {name: _percent(auroc(similar["ID"], similar[name])) for name in draw.ood}
    different = shots.labels[:, None] != shots.labels
    result["different classes"] = {
        "global": _mean((shots.embeddings @ shots.embeddings.T)[different]),
        "relevant": _mean((relevant @ relevant.T)[different]),
    }
    hits = {
        name: (found @ labels.texts.T).argmax(dim=1) == shots.labels
        for name, found in (("global", shots.embeddings), ("relevant", relevant))
    }
    result["recognised"] = {name: _percent(found.float().mean().item()) for name, found in hits.items()}
    mask = choose_patches(shots, labels, "discrepancy", BETA)
    assert mask is not None
    result["selected"] = _percent(mask.float().mean().item())
    if on_white:
        result["drawing"] = _judge_masks(shots, labels)
    return result


def _judge_masks(shots: Shots, labels: Labels) -> dict[str, Any]:
    """Of masks, how much of what they select is drawn; of maps, the AUROC of patches that are drawn, by image."""
    is_drawn = drawn(shots)
    result: dict[str, Any] = {"of all patches": _percent(is_drawn.float().mean().item())}
    for name in ("discrepancy", "surgery", "relative"):
        mask = choose_patches(shots, labels, name, BETA)
        assert mask is not None
        result[f"selected, {name}"] = _percent(is_drawn[mask].float().mean().item())
    found = maps(shots, labels, BETA)
    stretched = {name: _stretch(found[name]) for name in ("surgery", "clip")}
    found["discrepancy"] = stretched["surgery"] - stretched["clip"]
    both = is_drawn.any(dim=1) & ~is_drawn.all(dim=1)
    for name, values in found.items():
        areas = [auroc(one[~here], one[here]) for one, here in zip(values[both], is_drawn[both], strict=True)]
        result[f"AUROC, {name}"] = _percent(float(np.mean(areas)))
    return result


def _stretch(values: Tensor) -> Tensor:
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return (values - low) / (high - low)


def _percent(value: float) -> float:
    return round(100 * value, 3)


def _mean(values: Tensor) -> float:
    return round(values.mean().item(), 4)
