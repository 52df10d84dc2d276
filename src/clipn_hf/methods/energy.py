# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The free energy of the logits."""

from torch import Tensor

from clipn_hf import scores

from .base import Method, MethodInputs


def _score(inputs: MethodInputs, temperature: float = 1.0) -> Tensor:
    return scores.energy(inputs.logits, temperature)


ENERGY = Method(
    name="energy",
    title="Free energy",
    reference="2010.03759",
    needs=frozenset({"global"}),
    score=_score,
)
