# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The largest of the probabilities that a model trained with a sigmoid loss gives each label on its own."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import max_sigmoid

    return max_sigmoid(inputs.logits)


SIGMOID = Method(
    name="sigmoid",
    title="Maximum sigmoid probability",
    reference="2303.15343",
    needs=frozenset({"global", "sigmoid"}),
    score=_score,
    max_score=1.0,
)
