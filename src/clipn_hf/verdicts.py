# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How verdicts are called and coloured, and what they are explained by, in tables and pictures alike."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """A verdict as people see it.

    Args:
        word (`str`): What it is called.
        color (`str`): Its colour, as `#RRGGBB`.
    """

    word: str
    color: str


# A negative label of less mass says nothing: it would be shown as 0.00.
LEAST_MASS = 0.005
# Between two thresholds: for a person to look at.
UNSURE = "unsure"

# Bluish green and vermilion are the pair of Okabe and Ito's palette that stays apart in every common form of colour
# blindness.
VERDICTS: Mapping[bool | None, Verdict] = MappingProxyType(
    {
        False: Verdict("known", "#009E73"),
        True: Verdict("unknown", "#D55E00"),
        None: Verdict("undecided", "#79828E"),
    }
)


def telling_negatives(negatives: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select the negative labels that say what an image looks like.

    Args:
        negatives (sequence of [`~clipn_hf.detector_results.LabelScore`]): Those of one image.

    Returns:
        `list`: Those whose mass is not next to nothing, in the same order.
    """
    return [one for one in negatives if one["score"] >= LEAST_MASS]


def looks_like(negatives: Sequence[Mapping[str, Any]]) -> str:
    """List the negative labels that an image looks like, such as "jellyfish (0.31), parachute (0.12)".

    Args:
        negatives (sequence of [`~clipn_hf.detector_results.LabelScore`]): Those of one image.

    Returns:
        `str`: Those whose mass is not next to nothing; empty if there are none.
    """
    return ", ".join(f"{one['label']} ({one['score']:.2f})" for one in telling_negatives(negatives))


__all__ = ["LEAST_MASS", "UNSURE", "VERDICTS", "Verdict", "looks_like", "telling_negatives"]
