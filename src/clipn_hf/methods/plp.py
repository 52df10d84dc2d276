# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A score of the logits of a linear classifier that was trained on what the texts of the labels take ID images for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .base import Method, TrainingInputs
from .linear_probe import (
    ProbeScore,
    add_gaussians,
    check_probe_settings,
    classify_by_probe,
    probe_state,
    same_probe,
    score_by_probe,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..probing import PseudoLabels

# Those of the paper, together.
TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a photo of many {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
)
# With less of the highest entropy, a warning says that some classes have most of the images.
_BALANCED = 0.8


def _fit(
    inputs: TrainingInputs,
    score: ProbeScore = "msp",
    min_confidence: float | None = 0.9,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> "dict[str, Tensor]":
    import torch

    from ..probing import pseudo_label, train_linear_probe

    images, texts = inputs.image_embeddings, inputs.text_embeddings
    assert texts is not None
    logits = (inputs.logit_scale * (part @ texts.T) + inputs.logit_bias for part in images.split(2**14))
    found = pseudo_label(logits, min_confidence)
    names = inputs.class_names or tuple(map(str, range(inputs.num_classes)))
    if len(found.empty_classes) == len(names) - 1:
        only = names[int(found.labels[found.kept][0])]
        raise ValueError(
            f"All {int(found.kept.sum())} images with a certain pseudo-label are taken for {only!r}, which leaves a "
            "probe nothing to tell apart; give images of more labels, lower `min_confidence`, or word the labels more "
            "clearly."
        )
    _report(found, names, inputs.labels)
    kept, labels = images[found.kept], found.labels[found.kept]
    probe = train_linear_probe(
        kept,
        labels,
        class_names=names,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=inputs.device,
        allow_empty_classes=True,
    )
    state = probe_state(probe)
    # What became of the images, for whoever looks at a saved detector.
    state["counts"], state["kept_counts"] = torch.tensor(found.counts), torch.tensor(found.kept_counts)
    if score == "relative_mahalanobis":
        return add_gaussians(state, kept, labels)
    return state


def _report(found: "PseudoLabels", names: tuple[str, ...], labels: "Tensor | None") -> None:
    """Say on the log how many images there are for each class, and warn of what a probe cannot learn."""
    from transformers.utils import logging

    logger = logging.get_logger(__name__)
    kept = int(found.kept.sum())
    right = ""
    if labels is not None:
        agreement = (found.labels == labels)[found.kept].double().mean().item()
        right = f" {agreement:.1%} of these are the labels that were given."
    logger.info(
        f"{kept:,} of {len(found):,} images ({found.share_kept:.1%}) have a pseudo-label that is certain enough; "
        f"their balance over the labels is {found.balance:.2f} of 1.{right} Images of each label: "
        f"{', '.join(f'{name}: {count}' for name, count in zip(names, found.kept_counts, strict=True))}."
    )
    advice = "give more images, lower `min_confidence`, or word the labels more clearly."
    if found.empty_classes:
        shown = ", ".join(repr(names[label]) for label in found.empty_classes[:5])
        logger.warning(
            f"{len(found.empty_classes)} of {len(names)} labels have no image with a certain pseudo-label ({shown}"
            f"{', …' if len(found.empty_classes) > 5 else ''}), so that images of these look unknown; {advice}"
        )
    elif found.balance < _BALANCED:
        counts = found.kept_counts
        most, fewest = counts.index(max(counts)), counts.index(min(counts))
        logger.warning(
            f"The pseudo-labels are not balanced: {counts[most]} images of {names[most]!r}, {counts[fewest]} of "
            f"{names[fewest]!r}; images of labels with few look unknown. If your images are balanced, {advice}"
        )


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_share

    check_probe_settings(settings)
    if settings["min_confidence"] is not None:
        check_share(settings["min_confidence"], "min_confidence")


def _report_on_state(
    state: "Mapping[str, Tensor]", settings: Mapping[str, Any], labels: Sequence[str], templates: Sequence[str]
) -> dict[str, Any]:
    from ..probing.pseudo_labels import record_pseudo_labels

    return {
        "pseudo_labels": record_pseudo_labels(
            state["counts"].tolist(), state["kept_counts"].tolist(), settings["min_confidence"], labels, templates
        )
    }


def describe_balance(pseudo_labels: Mapping[str, Any]) -> str:
    """Word how many images have a pseudo-label, and how evenly they are spread.

    Args:
        pseudo_labels (`Mapping`): As `OODDetector.fitted_on` has them.

    Returns:
        `str`: Such as `"192 of 500 images kept; fewest 4 (deer), most 47 (ship)"`.
    """
    kept = f"{pseudo_labels['kept']:,} of {pseudo_labels['of']:,} images kept"
    # A probe that was trained before may not tell.
    if "fewest" not in pseudo_labels or "most" not in pseudo_labels:
        return kept
    fewest, most = pseudo_labels["fewest"], pseudo_labels["most"]
    return f"{kept}; fewest {fewest['images']:,} ({fewest['label']}), most {most['images']:,} ({most['label']})"


PLP = Method(
    name="plp",
    title="Pseudo-label probing",
    reference="2303.05828",
    needs=frozenset({"global", "training"}),
    score=score_by_probe,
    min_labels=2,
    fit=_fit,
    same_fit=same_probe,
    templates=TEMPLATES,
    ensemble=True,
    classify=classify_by_probe,
    check=_check,
    report=_report_on_state,
)
