# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Negative labels: texts that say what an image may show when it shows none of the labels.

NegLabel (Jiang et al., ICLR 2024, arXiv 2403.20078) mines them from the nouns and adjectives of WordNet: those whose
text embeddings are the most distant from the labels. Scores then compare an image with both.
"""

from ..negative_settings import CORPORA, FILTERS
from .bank import NegativeLabels
from .corpus import EXCLUDED_CATEGORIES, SUPERCLASSES, Corpus, load_corpus
from .filters import filter_candidates
from .mining import mine_negative_labels

__all__ = [
    "CORPORA",
    "EXCLUDED_CATEGORIES",
    "FILTERS",
    "SUPERCLASSES",
    "Corpus",
    "NegativeLabels",
    "filter_candidates",
    "load_corpus",
    "mine_negative_labels",
]
