# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Detection scores as pure functions: tensors in, OOD-ness out, shape `(batch,)`, higher = more OOD.

Every function computes in float32 or more, and returns float32, whatever floating dtype it receives (in half precision
MCM over 1,000 classes has a few dozen distinct values, and its FPR95 moves by points) and can be differentiated where
its formula can.
"""

from .activations import activation_threshold, clip_activations
from .baselines import energy, max_logit, mcm, msp, odin, perplexity
from .clipn import atd, atd_is_ood, atd_probabilities, ctw, ctw_is_ood
from .clusters import fit_centroids, nearest_centroids
from .gaussians import Gaussians, fit_gaussians, mahalanobis, relative_mahalanobis
from .neglabel import multi_matching, neglabel, neglabel_from_embeddings, top_negatives
from .neighbors import nearest_neighbors
from .patches import combine_local, gl_mcm, local_mcm
from .sigmoid import joint_energy, max_sigmoid
from .unknown import mcm_with_unknown, unknown_probability
from .vim import VirtualLogit, fit_virtual_logit, virtual_logit

__all__ = [
    "Gaussians",
    "VirtualLogit",
    "activation_threshold",
    "atd",
    "atd_is_ood",
    "atd_probabilities",
    "clip_activations",
    "combine_local",
    "ctw",
    "ctw_is_ood",
    "energy",
    "fit_centroids",
    "fit_gaussians",
    "fit_virtual_logit",
    "gl_mcm",
    "joint_energy",
    "local_mcm",
    "mahalanobis",
    "max_logit",
    "max_sigmoid",
    "mcm",
    "mcm_with_unknown",
    "msp",
    "multi_matching",
    "nearest_centroids",
    "nearest_neighbors",
    "neglabel",
    "neglabel_from_embeddings",
    "odin",
    "perplexity",
    "relative_mahalanobis",
    "top_negatives",
    "unknown_probability",
    "virtual_logit",
]
