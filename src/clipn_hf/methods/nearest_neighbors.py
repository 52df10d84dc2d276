# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest ID images; labels do not matter."""

from typing import TYPE_CHECKING, Literal

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor


def _fit(inputs: TrainingInputs, k: int = 1, reduction: Literal["mean", "kth"] = "mean") -> "dict[str, Tensor]":
    from ..scores import nearest_neighbors

    bank = inputs.image_embeddings.detach().float().clone().contiguous()
    # Refuses settings that the images do not allow, such as more neighbors than images, before any image is judged.
    nearest_neighbors(bank[:1], bank, k, reduction)
    return {"bank": bank}


def _score(inputs: MethodInputs, k: int = 1, reduction: Literal["mean", "kth"] = "mean") -> "Tensor":
    from ..scores import nearest_neighbors

    assert inputs.image_embeddings is not None
    return nearest_neighbors(inputs.image_embeddings, inputs.state["bank"], k, reduction)


NEAREST_NEIGHBORS = Method(
    name="nearest_neighbors",
    title="Nearest neighbors",
    reference="2204.06507",
    needs=frozenset({"global", "training"}),
    score=_score,
    fit=_fit,
    uses_text=False,
)
