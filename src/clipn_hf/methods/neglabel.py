# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The labels against thousands of negative labels, mined far from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..negative_settings import TEMPLATES
from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def score_by_negatives(
    inputs: MethodInputs, temperature: float = 0.01, num_groups: int | None = None, seed: int = 0
) -> "Tensor":
    from ..scores import neglabel_from_embeddings

    assert inputs.image_embeddings is not None
    assert inputs.negative_embeddings is not None
    return neglabel_from_embeddings(
        inputs.similarity,
        inputs.image_embeddings,
        inputs.negative_embeddings,
        temperature=temperature,
        num_groups=_default_groups(len(inputs.negative_embeddings)) if num_groups is None else num_groups,
        seed=seed,
    )


def effective_settings(settings: Mapping[str, Any], num_negatives: int | None) -> dict[str, Any]:
    """Name the number of groups in settings that leave it to the number of negative labels.

    Args:
        settings (`Mapping`): Those of any method.
        num_negatives (`int`, *optional*): How many negative labels there are; None where there are none.

    Returns:
        `dict`: The same settings, with `num_groups` as it is in effect, if it is among them.
    """
    if num_negatives is None or settings.get("num_groups", 0) is not None:
        return dict(settings)
    return {**settings, "num_groups": _default_groups(num_negatives)}


def check_groups(settings: Mapping[str, Any], num_negatives: int | None) -> None:
    """Check the number of groups in settings before there are images.

    Args:
        settings (`Mapping`): Those of any method.
        num_negatives (`int`, *optional*): How many negative labels there are; None where there are none.

    Raises:
        TypeError, ValueError: As [`~clipn_hf.scores.neglabel`].
    """
    from ..scores.neglabel import check_num_groups

    if num_negatives is not None and settings.get("num_groups") is not None:
        check_num_groups(settings["num_groups"], num_negatives)


def _default_groups(num_negatives: int) -> int:
    # Groups of fewer negatives would say little each, so that small banks are not divided.
    return max(1, min(100, num_negatives // 100))


NEGLABEL = Method(
    name="neglabel",
    title="Negative labels",
    reference="2403.20078",
    needs=frozenset({"global", "negatives"}),
    score=score_by_negatives,
    templates=TEMPLATES,
    max_score=1.0,
)
