# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Maximum softmax probability over the logits."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs, temperature: float = 1.0) -> "Tensor":
    from ..scores import msp

    return msp(inputs.logits, temperature)


MSP = Method(
    name="msp",
    title="Maximum softmax probability",
    reference="1610.02136",
    needs=frozenset({"global"}),
    score=_score,
    min_labels=2,
    text_contrast=0.15,
)
