# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The labels against thousands of negative labels, mined far from them."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def score_by_negatives(
    inputs: MethodInputs, temperature: float = 0.01, num_groups: int | None = None, seed: int = 0
) -> "Tensor":
    from ..scores import neglabel_from_embeddings

    assert inputs.image_embeddings is not None
    assert inputs.negative_embeddings is not None
    if num_groups is None:
        # Groups of fewer negatives would say little each, so that small banks are not divided.
        num_groups = max(1, min(100, len(inputs.negative_embeddings) // 100))
    return neglabel_from_embeddings(
        inputs.similarity,
        inputs.image_embeddings,
        inputs.negative_embeddings,
        temperature=temperature,
        num_groups=num_groups,
        seed=seed,
    )


NEGLABEL = Method(
    name="neglabel",
    title="Negative labels",
    reference="2403.20078",
    needs=frozenset({"global", "negatives"}),
    score=score_by_negatives,
    templates=("The nice {}.",),
)
