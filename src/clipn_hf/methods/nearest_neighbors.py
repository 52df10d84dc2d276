# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest ID images; labels do not matter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor


def _fit(
    inputs: TrainingInputs,
    k: int = 1,
    reduction: Literal["mean", "kth"] = "mean",
    backend: Literal["torch", "faiss"] = "torch",
) -> "dict[str, Tensor]":
    from ..scores import nearest_neighbors

    bank = inputs.image_embeddings.detach().contiguous()
    # Refuses settings that the images do not allow, such as more neighbors than images, before any image is judged.
    nearest_neighbors(bank[:1], bank, k, reduction, backend)
    return {"bank": bank}


def _score(
    inputs: MethodInputs,
    k: int = 1,
    reduction: Literal["mean", "kth"] = "mean",
    backend: Literal["torch", "faiss"] = "torch",
) -> "Tensor":
    from ..scores import nearest_neighbors

    assert inputs.image_embeddings is not None
    return nearest_neighbors(inputs.image_embeddings, inputs.state["bank"], k, reduction, backend)


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores.neighbors import check_neighbors

    check_neighbors(**settings)


NEAREST_NEIGHBORS = Method(
    name="nearest_neighbors",
    title="Nearest neighbors",
    reference="2204.06507",
    needs=frozenset({"global", "training"}),
    score=_score,
    fit=_fit,
    uses_text=False,
    check=_check,
)
