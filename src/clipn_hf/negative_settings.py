# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What may be said of negative labels by name: corpora, filters and templates.

Apart from [`clipn_hf.negatives`], so that commands and suites can check names without torch, which takes seconds to
import.
"""

from collections.abc import Mapping
from typing import Literal

Kind = Literal["noun", "adjective", "compound", "text"]

CORPORA: Mapping[str, tuple[Kind, ...]] = {
    "wordnet": ("noun", "adjective"),
    "wordnet-nouns": ("noun",),
    "wordnet-adjectives": ("adjective",),
    "csp": ("noun", "compound"),
}
"""The corpora that are known by name, and the kinds of their words."""

FILTERS = ("id_names", "synonyms", "hyponyms", "hypernyms", "proper_nouns")
"""The filters of candidates, as [`~clipn_hf.negatives.filter_candidates`] describes them."""

TEMPLATES = ("The nice {}.",)
"""What NegLabel puts labels and nouns into."""

ADJECTIVE_TEMPLATES = ("This is a {} photo",)
"""What NegLabel puts adjectives into."""

__all__ = ["ADJECTIVE_TEMPLATES", "CORPORA", "FILTERS", "TEMPLATES", "Kind"]
