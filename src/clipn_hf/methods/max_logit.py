# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The largest logit."""

from torch import Tensor

from clipn_hf import scores

from .base import Method, MethodInputs


def _score(inputs: MethodInputs) -> Tensor:
    return scores.max_logit(inputs.logits)


MAX_LOGIT = Method(
    name="max_logit",
    title="Maximum logit",
    reference="1911.11132",
    needs=frozenset({"global"}),
    score=_score,
)
