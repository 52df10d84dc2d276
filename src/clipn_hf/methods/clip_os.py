# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The probability of an "unknown" class, whose prompt was trained on synthetic outliers; alone or with (GL-)MCM."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor

Combination = Literal["none", "mcm", "gl_mcm"]


def _score(
    inputs: MethodInputs, combination: Combination = "none", weight: float = 0.25, temperature: float = 1.0
) -> "Tensor":
    from ..scores import combine_local, mcm_with_unknown, unknown_probability

    _check_combination(combination)
    if combination == "none":
        return unknown_probability(inputs.logits, _unknown_logits(inputs))
    assert inputs.unknown_similarity is not None
    score = mcm_with_unknown(inputs.similarity, inputs.unknown_similarity, temperature, weight)
    if combination == "mcm":
        return score
    assert inputs.patch_summary is not None
    return combine_local(score, inputs.patch_summary)


def _summarize(patch_similarity: "Tensor", temperature: float = 1.0) -> "Tensor":
    from ..scores import local_mcm

    return local_mcm(patch_similarity, temperature)


def _reads_patches(settings: Mapping[str, Any]) -> bool:
    return settings["combination"] == "gl_mcm"


def _is_ood(inputs: MethodInputs) -> "Tensor":
    from ..scores import unknown_probability_is_ood

    return unknown_probability_is_ood(inputs.logits, _unknown_logits(inputs))


def _unknown_logits(inputs: MethodInputs) -> "Tensor":
    assert inputs.unknown_similarity is not None
    return inputs.logit_scale * inputs.unknown_similarity + inputs.logit_bias


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_temperature, check_weight

    _check_combination(settings["combination"])
    check_weight(settings["weight"], "weight")
    check_temperature(settings["temperature"])


def _check_combination(combination: str) -> None:
    if combination not in get_args(Combination):
        known = ", ".join(map(repr, get_args(Combination)))
        raise ValueError(f"`combination` must be one of {known}, got {combination!r}.")


CLIP_OS = Method(
    name="clip_os",
    title="CLIP-driven outliers synthesis",
    reference="2404.00323",
    needs=frozenset({"global", "unknown"}),
    score=_score,
    is_ood=_is_ood,
    max_score=1.0,
    summarize=_summarize,
    reads_patches=_reads_patches,
    check=_check,
)
