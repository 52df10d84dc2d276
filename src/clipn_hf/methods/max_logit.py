# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The largest logit."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import max_logit

    return max_logit(inputs.logits)


MAX_LOGIT = Method(
    name="max_logit",
    title="Maximum logit",
    reference="1911.11132",
    needs=frozenset({"global"}),
    score=_score,
)
