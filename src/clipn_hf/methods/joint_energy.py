# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The free energies of each label against none, summed over the labels."""

from typing import TYPE_CHECKING

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import joint_energy

    return joint_energy(inputs.logits)


JOINT_ENERGY = Method(
    name="joint_energy",
    title="Joint energy",
    reference="2109.14162",
    needs=frozenset({"global", "sigmoid"}),
    score=_score,
)
