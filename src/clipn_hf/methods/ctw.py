# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Competing to win, the simpler rule of CLIPN: the best label against its own "no"."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import ctw

    assert inputs.no_logits is not None
    return ctw(inputs.logits, inputs.no_logits)


def _is_ood(inputs: MethodInputs) -> "Tensor":
    from ..scores import ctw_is_ood

    assert inputs.no_logits is not None
    return ctw_is_ood(inputs.logits, inputs.no_logits)


CTW = Method(
    name="ctw",
    title="Competing to win",
    reference="2308.12213",
    needs=frozenset({"global", "no"}),
    score=_score,
    is_ood=_is_ood,
    max_score=1.0,
)
