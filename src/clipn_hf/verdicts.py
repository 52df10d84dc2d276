# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How verdicts are called and coloured, in tables and pictures alike."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Verdict(NamedTuple):
    """A verdict as people see it.

    Args:
        word (`str`): What it is called.
        color (`str`): Its colour, as `#RRGGBB`.
    """

    word: str
    color: str


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

__all__ = ["UNSURE", "VERDICTS", "Verdict"]
