# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Maximum concept matching: softmax over cosines."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs, temperature: float = 1.0) -> "Tensor":
    from ..scores import mcm

    return mcm(inputs.similarity, temperature)


MCM = Method(
    name="mcm",
    title="Maximum concept matching",
    reference="2211.13445",
    needs=frozenset({"global"}),
    score=_score,
    min_labels=2,
    text_contrast=0.2,
)
