# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probes on image embeddings: trained with labels, or with pseudo-labels from the texts of the labels."""

from .linear_probe import LinearProbe
from .pseudo_labels import PseudoLabels, pseudo_label
from .training import few_shot_mask, train_linear_probe

__all__ = ["LinearProbe", "PseudoLabels", "few_shot_mask", "pseudo_label", "train_linear_probe"]
