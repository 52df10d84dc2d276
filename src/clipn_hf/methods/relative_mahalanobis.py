# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Squared Mahalanobis distance to the nearest class, less the one to all ID images together."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs
from .mahalanobis import check_fit_by_class, fit_by_class

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import Gaussians, relative_mahalanobis

    assert inputs.image_embeddings is not None
    return relative_mahalanobis(inputs.image_embeddings, Gaussians(**inputs.state))


RELATIVE_MAHALANOBIS = Method(
    name="relative_mahalanobis",
    title="Relative Mahalanobis distance",
    reference="2106.09022",
    needs=frozenset({"global", "training", "training_labels"}),
    score=_score,
    min_labels=2,
    fit=fit_by_class,
    check=check_fit_by_class,
    uses_text=False,
)
