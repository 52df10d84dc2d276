# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Negative labels freed of names and kinds of the labels, and images matched with a label and a negative together."""

from typing import TYPE_CHECKING

from ..negative_settings import TEMPLATES
from .base import Method, MethodInputs
from .neglabel import score_by_negatives

if TYPE_CHECKING:
    from torch import Tensor


def _score(
    inputs: MethodInputs,
    temperature: float = 0.01,
    num_groups: int | None = None,
    seed: int = 0,
    weight: float = 2.0,
    num_pairs: int = 5,
) -> "Tensor":
    import torch

    from ..scores import multi_matching, top_negatives

    images, negatives, embed_pairs = inputs.image_embeddings, inputs.negative_embeddings, inputs.embed_pairs
    assert images is not None
    assert negatives is not None
    assert embed_pairs is not None
    _check_settings(weight, num_pairs)
    single = score_by_negatives(inputs, temperature, num_groups, seed)
    if len(single) == 0:
        return single
    labels = inputs.similarity.argsort(dim=1, descending=True, stable=True)[:, :num_pairs]  # (batch, labels)
    _, others = top_negatives(inputs.similarity, images, negatives, num_pairs, temperature)  # (batch, negatives)
    # Each of the labels with each of the negatives, as one number; images of a batch share most of them.
    pairs = (labels[:, :, None] * len(negatives) + others[:, None, :]).flatten(1)  # (batch, pairs)
    unique, positions = pairs.unique(return_inverse=True)
    embeddings = embed_pairs(torch.stack([unique // len(negatives), unique % len(negatives)], dim=1))  # (unique, dim)
    images = images.float()
    # Image by image, or the memory would be that of every image's pairs at once.
    pair_similarity = [embeddings[one] @ image for image, one in zip(images, positions, strict=True)]
    negative_similarity = [negatives[one].float() @ image for image, one in zip(images, others, strict=True)]
    matching = multi_matching(
        torch.stack(pair_similarity), torch.stack(negative_similarity).repeat(1, labels.shape[1]), temperature
    )
    return single + weight * matching


def _check_settings(weight: object, num_pairs: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"`weight` must be a number, got {type(weight).__name__} {weight!r}.")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"`weight` must be finite and not negative, got {weight}; give a number such as 2.0.")
    if isinstance(num_pairs, bool) or not isinstance(num_pairs, int):
        raise TypeError(f"`num_pairs` must be a whole number, got {type(num_pairs).__name__} {num_pairs!r}.")
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1, got {num_pairs}.")


NEGREFINE = Method(
    name="negrefine",
    title="Refined negative labels",
    reference="2507.09795",
    needs=frozenset({"global", "negatives", "text_encoder"}),
    score=_score,
    templates=TEMPLATES,
    mining={
        "corpus": "csp",
        "quantile": 1.0,
        "max_similarity": 0.95,
        "filters": ("id_names", "synonyms", "hyponyms", "proper_nouns"),
    },
)
