# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP-OS: an "unknown" class, whose prompt was trained on synthetic outliers, in the softmax of MCM, with the best
patch of GL-MCM, or alone.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor

Combination = Literal["mcm", "gl_mcm", "none"]

# What a combination does not look at.
_WITHOUT_EFFECT: Mapping[Combination, tuple[str, ...]] = {
    "mcm": ("local_weight",),
    "gl_mcm": (),
    "none": ("weight", "temperature", "local_weight"),
}


def _score(
    inputs: MethodInputs,
    combination: Combination = "mcm",
    weight: float = 0.25,
    temperature: float = 1.0,
    local_weight: float = 1.0,
) -> "Tensor":
    from ..scores import combine_local, mcm_with_unknown, unknown_probability

    _check_combination(combination)
    assert inputs.unknown_similarity is not None
    if combination == "none":
        unknown_logits = inputs.logit_scale * inputs.unknown_similarity + inputs.logit_bias
        return unknown_probability(inputs.logits, unknown_logits)
    score = mcm_with_unknown(inputs.similarity, inputs.unknown_similarity, temperature, weight)
    if combination == "mcm":
        return score
    assert inputs.patch_summary is not None
    return combine_local(score, inputs.patch_summary, local_weight)


def _summarize(patch_similarity: "Tensor", temperature: float = 1.0) -> "Tensor":
    from ..scores import local_mcm

    return local_mcm(patch_similarity, temperature)


def _reads_patches(settings: Mapping[str, Any]) -> bool:
    return settings["combination"] == "gl_mcm"


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_temperature, check_weight

    _check_combination(settings["combination"])
    check_weight(settings["weight"], "weight")
    check_temperature(settings["temperature"])
    check_weight(settings["local_weight"], "local_weight")
    combination, defaults = settings["combination"], CLIP_OS.settings
    for name in _WITHOUT_EFFECT[combination]:
        if settings[name] != defaults[name]:
            useful = [other for other, without in _WITHOUT_EFFECT.items() if name not in without]
            raise ValueError(
                f"`{name}` has no effect with `combination` {combination!r}, got {settings[name]}; leave it at "
                f"{defaults[name]}, or use {' or '.join(map(repr, useful))}."
            )


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
    max_score=1.0,
    summarize=_summarize,
    min_patch_labels=2,
    reads_patches=_reads_patches,
    check=_check,
)
