# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Maximum softmax probability over the logits."""

from torch import Tensor

from clipn_hf import scores

from .base import Method, MethodInputs


def _score(inputs: MethodInputs, temperature: float = 1.0) -> Tensor:
    return scores.msp(inputs.logits, temperature)


MSP = Method(
    name="msp",
    title="Maximum softmax probability",
    reference="1610.02136",
    needs=frozenset({"global"}),
    score=_score,
    min_labels=2,
)
