# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Detection scores as pure functions: tensors in, OOD-ness out, shape `(batch,)`, higher = more OOD.

Every function computes in float32 or more, and returns float32, whatever floating dtype it receives (in half precision
MCM over 1,000 classes has a few dozen distinct values, and its FPR95 moves by points) and can be differentiated where
its formula can.
"""

from .baselines import energy, max_logit, mcm, msp
from .clipn import atd, atd_is_ood, atd_probabilities, ctw, ctw_is_ood
from .features import Gaussians, fit_gaussians, mahalanobis, nearest_neighbors, relative_mahalanobis
from .neglabel import multi_matching, neglabel, neglabel_from_embeddings, top_negatives
from .sigmoid import joint_energy, max_sigmoid

__all__ = [
    "Gaussians",
    "atd",
    "atd_is_ood",
    "atd_probabilities",
    "ctw",
    "ctw_is_ood",
    "energy",
    "fit_gaussians",
    "joint_energy",
    "mahalanobis",
    "max_logit",
    "max_sigmoid",
    "mcm",
    "msp",
    "multi_matching",
    "nearest_neighbors",
    "neglabel",
    "neglabel_from_embeddings",
    "relative_mahalanobis",
    "top_negatives",
]
