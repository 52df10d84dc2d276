# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of OOD detection on two arrays of OOD-ness, exact also where scores are equal.

Published tables disagree on what "FPR95" means. With `positive="id"`, the default and the convention of MCM, CLIPN and
NegLabel, it is the share of OOD images accepted when 95 % of the ID images are kept; with `positive="ood"`, the one of
OpenOOD, the share of ID images rejected when 95 % of the OOD images are caught. Say which beside every number.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

Scores = npt.ArrayLike | Tensor


def auroc(id_scores: Scores, ood_scores: Scores) -> float:
    r"""Compute the area under the ROC curve: the probability that an OOD image scores higher than an ID image.

    \\( P(s_{ood} > s_{id}) + \tfrac{1}{2} P(s_{ood} = s_{id}) \\) over all pairs, the Mann-Whitney statistic, which is
    `sklearn.metrics.roc_auc_score`. It is the same whichever of the two counts as positive.

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.

    Returns:
        `float` in [0, 1]; higher = better, 0.5 = chance.

    Raises:
        ValueError: An argument is empty, not one-dimensional, not numeric, or holds NaN.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import auroc
    >>> auroc(id_scores=[0.1, 0.2, 0.6], ood_scores=[0.4, 0.6])
    0.75

    ```
    """
    id_values, ood_values = _check(id_scores, "id_scores"), _check(ood_scores, "ood_scores")
    id_values.sort()
    below = int(np.searchsorted(id_values, ood_values, side="left").sum())
    not_above = int(np.searchsorted(id_values, ood_values, side="right").sum())
    return (below + not_above) / (2 * len(id_values) * len(ood_values))


def fpr_at_tpr(
    id_scores: Scores, ood_scores: Scores, tpr: float = 0.95, positive: Literal["id", "ood"] = "id"
) -> float:
    r"""Compute the false-positive rate at the operating point where the true-positive rate reaches `tpr`.

    The smallest false-positive rate among all thresholds whose true-positive rate is at least `tpr`; images with equal
    scores fall on the same side. With `positive="id"`, an image is accepted when its score is at most the threshold:
    the smallest \\( t \\) with \\( P(s_{id} \le t) \ge \mathrm{tpr} \\), then \\( P(s_{ood} \le t) \\).

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.
        tpr (`float`, *optional*, defaults to 0.95): Share of the positives to keep, in (0, 1].
        positive (`"id"` or `"ood"`, *optional*, defaults to `"id"`): Which images count as positive.

    Returns:
        `float` in [0, 1]; lower = better.

    Raises:
        ValueError: An argument is empty, not one-dimensional, not numeric, or holds NaN; `tpr` is outside (0, 1];
            `positive` is neither of the two.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import fpr_at_tpr
    >>> fpr_at_tpr(id_scores=[0.1, 0.2, 0.6], ood_scores=[0.4, 0.6, 0.9, 0.9])
    0.5

    ```
    """
    id_values, ood_values = _check(id_scores, "id_scores"), _check(ood_scores, "ood_scores")
    if not 0 < tpr <= 1:
        raise ValueError(f"`tpr` must be a number in (0, 1], got {tpr!r}.")
    # Positives are to be kept, negatives to be avoided, both by lying at or below a threshold.
    if positive == "id":
        kept, avoided = id_values, ood_values
    elif positive == "ood":
        kept, avoided = -ood_values, -id_values
    else:
        raise ValueError(f"`positive` must be 'id' or 'ood', got {positive!r}.")
    count = math.ceil(tpr * len(kept))
    # The product may be off by a rounding error, so that 95 of 100 would not count as 0.95.
    if (count - 1) / len(kept) >= tpr:
        count -= 1
    threshold = np.partition(kept, count - 1)[count - 1]
    return float(np.mean(avoided <= threshold))


def _check(scores: Any, name: str) -> npt.NDArray[np.float64]:
    """Check scores and copy them to float64."""
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().double().numpy()
    try:
        values = np.array(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a one-dimensional array of numbers ({error}).") from error
    if values.ndim != 1:
        raise ValueError(f"`{name}` must have one dimension, one score per image, got shape {values.shape}.")
    if len(values) == 0:
        raise ValueError(f"`{name}` is empty; a metric needs at least one ID and one OOD image.")
    nans = int(np.isnan(values).sum())
    if nans:
        raise ValueError(
            f"`{name}` has NaN in {nans} of {len(values)} scores; find out which images or weights cause it."
        )
    return values
