# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A score of the logits that are left when activations which are unusually large for ID images are clipped."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor

Score = Literal["energy", "msp", "max_logit", "mcm"]


def _fit(inputs: TrainingInputs, percentile: float = 90.0) -> "dict[str, Tensor]":
    import torch

    from ..scores import activation_threshold

    threshold = activation_threshold(inputs.image_embeddings, percentile)
    return {"threshold": torch.tensor(threshold, dtype=torch.float64)}


def _score(inputs: MethodInputs, score: Score = "energy", temperature: float = 1.0) -> "Tensor":
    import torch

    from ..scores import clip_activations, energy, max_logit, mcm, msp

    _check_score(score)
    assert inputs.image_embeddings is not None
    assert inputs.text_embeddings is not None
    clipped = clip_activations(inputs.image_embeddings, inputs.state["threshold"].item())
    with torch.autocast(clipped.device.type, enabled=False):
        similarity = clipped @ inputs.text_embeddings.T  # (batch, classes)
    if score == "mcm":
        return mcm(similarity, temperature)
    logits = inputs.logit_scale * similarity + inputs.logit_bias
    if score == "max_logit":
        return max_logit(logits)
    return (energy if score == "energy" else msp)(logits, temperature)


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_temperature
    from ..scores.activations import check_percentile

    _check_score(settings["score"])
    check_temperature(settings["temperature"])
    check_percentile(settings["percentile"])


def _check_score(score: str) -> None:
    if score not in get_args(Score):
        raise ValueError(f"`score` must be one of {', '.join(map(repr, get_args(Score)))}, got {score!r}.")


REACT = Method(
    name="react",
    title="Rectified activations",
    reference="2111.12797",
    needs=frozenset({"global", "training"}),
    score=_score,
    fit=_fit,
    check=_check,
)
