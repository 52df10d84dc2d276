# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Log-odds of a virtual class, which has what of an image lies outside of the space that ID images fill."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor


def _fit(inputs: TrainingInputs, principal_dims: int | None = None) -> "dict[str, Tensor]":
    from ..scores import fit_virtual_logit

    assert inputs.text_embeddings is not None
    weight = inputs.logit_scale * inputs.text_embeddings
    return fit_virtual_logit(inputs.image_embeddings, weight, inputs.logit_bias, principal_dims)._asdict()


def _score(inputs: MethodInputs) -> "Tensor":
    from ..scores import VirtualLogit, virtual_logit

    assert inputs.image_embeddings is not None
    return virtual_logit(inputs.image_embeddings, inputs.logits, VirtualLogit(**inputs.state))


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_whole

    dims = settings["principal_dims"]
    # How many there are at most is known when there are embeddings.
    if dims is not None and check_whole(dims, "principal_dims") < 1:
        raise ValueError(f"`principal_dims` must be at least 1, got {dims}.")


VIM = Method(
    name="vim",
    title="Virtual-logit matching",
    reference="2203.10807",
    needs=frozenset({"global", "training"}),
    score=_score,
    fit=_fit,
    check=_check,
)
