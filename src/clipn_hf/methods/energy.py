# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The free energy of the logits."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs, temperature: float = 1.0) -> "Tensor":
    from ..scores import energy

    return energy(inputs.logits, temperature)


ENERGY = Method(
    name="energy",
    title="Free energy",
    reference="2010.03759",
    needs=frozenset({"global"}),
    score=_score,
)
