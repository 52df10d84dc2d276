# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Conjugated semantic pool: negative labels that are adjectives with superclasses, such as "white creature".

The score is that of NegLabel. The difference is in the candidates and how they are mined: with texts of one's own as
negative labels, `csp` and `neglabel` give the same scores.
"""

from ..negative_settings import TEMPLATES
from .base import Method
from .neglabel import score_by_negatives

CSP = Method(
    name="csp",
    title="Conjugated semantic pool",
    reference="2410.08611",
    needs=frozenset({"global", "negatives"}),
    score=score_by_negatives,
    templates=TEMPLATES,
    mining={"corpus": "csp", "quantile": 1.0, "max_similarity": 0.95},
    max_score=1.0,
)
