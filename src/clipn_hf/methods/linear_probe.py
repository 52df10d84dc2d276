# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A score of the logits of a linear classifier that was trained on the embeddings of labelled ID images."""

import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor

    from ..probing import LinearProbe
    from ..scores import Gaussians

ProbeScore = Literal["energy", "msp", "max_logit", "relative_mahalanobis", "perplexity"]

# What may differ for a probe that was trained before.
SCORE_SETTINGS = ("score", "temperature")
# What both methods with a probe hand on to its training.
TRAINING_SETTINGS = ("epochs", "batch_size", "learning_rate", "weight_decay", "seed")
PROBE_TENSORS = ("weight", "bias", "mean", "std")


def check_probe_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a method with a probe.

    Raises:
        TypeError: One is of the wrong type.
        ValueError: There is no such score, or a number is out of range.
    """
    from ..probing.training import check_training_settings
    from ..scores._checks import check_temperature

    check_probe_score(settings["score"])
    check_temperature(settings["temperature"])
    check_training_settings(**{name: settings[name] for name in settings if name in TRAINING_SETTINGS})


def check_probe_score(score: object) -> None:
    """Check that there is a score of that name on the logits of probes.

    Raises:
        ValueError: There is none.
    """
    if score not in get_args(ProbeScore):
        raise ValueError(f"`score` must be one of {', '.join(map(repr, get_args(ProbeScore)))}, got {score!r}.")


def probe_state(probe: "LinearProbe") -> "dict[str, Tensor]":
    """Collect what [`classify_by_probe`] finds as the state of a method."""
    return {name: getattr(probe, name).detach().cpu().contiguous().clone() for name in PROBE_TENSORS}


def add_gaussians(state: "dict[str, Tensor]", features: "Tensor", labels: "Tensor") -> "dict[str, Tensor]":
    """Add to the state of a probe what the relative Mahalanobis distance needs of the training images.

    Args:
        state (`dict[str, torch.Tensor]`): What [`probe_state`] gave.
        features (`torch.Tensor` of shape `(images, dim)`): The embeddings of the training images.
        labels (`torch.Tensor` of shape `(images,)`): What the probe took them for. Classes may be without images.

    Returns:
        `dict[str, torch.Tensor]`
    """
    from ..probing.linear_probe import probe_logits

    probe = {name: state[name] for name in PROBE_TENSORS}
    # Part by part, because logits of many classes take more memory than the embeddings.
    parts = (probe_logits(part, **probe) for part in features.split(2**14))
    return state | fit_logit_gaussians(parts, labels)._asdict()


def fit_logit_gaussians(parts: "Iterable[Tensor]", labels: "Tensor") -> "Gaussians":
    """Fit Gaussians to the logits of training images, by which the relative Mahalanobis distance compares new ones.

    Args:
        parts (`Iterable[torch.Tensor]` of shape `(images, classes)`): The logits, part by part.
        labels (`torch.Tensor` of shape `(images,)`):
            What the classifier was trained to take the images for. Classes may be without images.

    Returns:
        [`~clipn_hf.scores.Gaussians`]: Of the classes that have images.
    """
    from ..scores import fit_gaussians

    present, numbers = labels.unique(return_inverse=True)
    parts = iter(parts)
    first = next(parts)
    parts = chain([first], parts)
    if first.shape[1] > 2:
        return fit_gaussians(parts, numbers, len(present))
    # Of two logits trained from 0, one is the other with its sign changed. The pseudo-inverse ignores their sum, which
    # is rounding and nothing else; that is as it should be, and no fault of the images.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The covariances of .* cannot be inverted")
        return fit_gaussians(parts, numbers, len(present), shrinkage=0.0)


def classify_by_probe(inputs: MethodInputs) -> "Tensor":
    """Compute the logits of the probe in the state of a method."""
    from ..probing.linear_probe import probe_logits

    assert inputs.image_embeddings is not None
    return probe_logits(inputs.image_embeddings, **{name: inputs.state[name] for name in PROBE_TENSORS})


def score_by_probe(inputs: MethodInputs, score: ProbeScore = "msp", temperature: float = 1.0) -> "Tensor":
    """Score images by the logits of a probe.

    The authors report the energy and the MSP, and on few classes the relative Mahalanobis distance on logits, too.
    The temperature divides the logits for the energy, the MSP and the perplexity; to the others it does not matter.
    """
    from ..scores import Gaussians, energy, max_logit, msp, perplexity, relative_mahalanobis
    from ..scores._checks import check_temperature

    check_probe_score(score)
    check_temperature(temperature)
    if score == "max_logit":
        return max_logit(inputs.logits)
    if score == "relative_mahalanobis":
        return relative_mahalanobis(
            inputs.logits, Gaussians(**{name: inputs.state[name] for name in Gaussians._fields})
        )
    if score == "perplexity":
        return perplexity(inputs.logits / temperature)
    return (energy if score == "energy" else msp)(inputs.logits, temperature)


def same_probe(settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether a probe trained with some settings serves with others, which may name another score."""
    # What the relative Mahalanobis distance needs was collected only for it.
    if other["score"] == "relative_mahalanobis" != settings["score"]:
        return False
    return all(settings[name] == other[name] for name in settings if name not in SCORE_SETTINGS)


def _fit(
    inputs: TrainingInputs,
    score: ProbeScore = "msp",
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> "dict[str, Tensor]":
    from ..probing import train_linear_probe

    assert inputs.labels is not None
    probe = train_linear_probe(
        inputs.image_embeddings,
        inputs.labels,
        class_names=inputs.class_names,
        num_classes=inputs.num_classes,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=inputs.device,
    )
    state = probe_state(probe)
    if score == "relative_mahalanobis":
        return add_gaussians(state, inputs.image_embeddings, inputs.labels)
    return state


LINEAR_PROBE = Method(
    name="linear_probe",
    title="Linear probe",
    reference="2303.05828",
    needs=frozenset({"global", "training", "training_labels"}),
    score=score_by_probe,
    min_labels=2,
    fit=_fit,
    uses_text=False,
    same_fit=same_probe,
    classify=classify_by_probe,
    check=check_probe_settings,
)
