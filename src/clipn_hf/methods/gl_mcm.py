# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Global and local maximum concept matching: softmax over cosines, of images and of their patches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _summarize(patch_similarity: "Tensor", temperature: float = 1.0) -> "Tensor":
    from ..scores import local_mcm

    return local_mcm(patch_similarity, temperature)


def _score(inputs: MethodInputs, temperature: float = 1.0, local_weight: float = 1.0) -> "Tensor":
    from ..scores import combine_local, mcm

    assert inputs.patch_summary is not None
    return combine_local(mcm(inputs.similarity, temperature), inputs.patch_summary, local_weight)


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_temperature, check_weight

    check_temperature(settings["temperature"])
    check_weight(settings["local_weight"], "local_weight")


GL_MCM = Method(
    name="gl_mcm",
    title="Global and local maximum concept matching",
    reference="2304.04521",
    needs=frozenset({"global", "patches"}),
    score=_score,
    min_labels=2,
    summarize=_summarize,
    check=_check,
)
