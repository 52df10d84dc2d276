# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Agreeing to differ, the stronger rule of CLIPN: an unknown class competes with the labels."""

from torch import Tensor

from clipn_hf import scores

from .base import Method, MethodInputs


def _score(inputs: MethodInputs) -> Tensor:
    assert inputs.no_logits is not None
    return scores.atd(inputs.logits, inputs.no_logits)


def _is_ood(inputs: MethodInputs) -> Tensor:
    assert inputs.no_logits is not None
    return scores.atd_is_ood(inputs.logits, inputs.no_logits)


ATD = Method(
    name="atd",
    title="Agreeing to differ",
    reference="2308.12213",
    needs=frozenset({"global", "no"}),
    score=_score,
    is_ood=_is_ood,
)
