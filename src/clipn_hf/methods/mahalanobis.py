# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Squared Mahalanobis distance to the nearest class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor


def fit_by_class(inputs: TrainingInputs, tied: bool = False, shrinkage: float | None = None) -> "dict[str, Tensor]":
    from ..scores import fit_gaussians

    assert inputs.labels is not None
    gaussians = fit_gaussians(
        inputs.image_embeddings, inputs.labels, inputs.num_classes, tied, shrinkage, inputs.class_names
    )
    return gaussians._asdict()


def check_fit_by_class(settings: Mapping[str, Any]) -> None:
    from ..scores.gaussians import check_gaussian_settings

    check_gaussian_settings(settings["tied"], settings["shrinkage"])


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import Gaussians, mahalanobis

    assert inputs.image_embeddings is not None
    return mahalanobis(inputs.image_embeddings, Gaussians(**inputs.state))


MAHALANOBIS = Method(
    name="mahalanobis",
    title="Mahalanobis distance",
    reference="1807.03888",
    needs=frozenset({"global", "training", "training_labels"}),
    score=_score,
    fit=fit_by_class,
    check=check_fit_by_class,
    uses_text=False,
)
