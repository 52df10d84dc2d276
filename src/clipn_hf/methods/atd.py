# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Agreeing to differ, the stronger rule of CLIPN: an unknown class competes with the labels."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import atd

    assert inputs.no_logits is not None
    return atd(inputs.logits, inputs.no_logits)


def _is_ood(inputs: MethodInputs) -> "Tensor":
    from ..scores import atd_is_ood

    assert inputs.no_logits is not None
    return atd_is_ood(inputs.logits, inputs.no_logits)


ATD = Method(
    name="atd",
    title="Agreeing to differ",
    reference="2308.12213",
    needs=frozenset({"global", "no"}),
    score=_score,
    is_ood=_is_ood,
    max_score=1.0,
)
