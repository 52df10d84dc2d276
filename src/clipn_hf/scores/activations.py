# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""ReAct: image embeddings without what is larger than in most ID images.

Sun et al., "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021,
https://arxiv.org/abs/2111.12797. What is scored, by the energy or otherwise, are the logits of the clipped embeddings.
"""

import math

import numpy as np
from torch import Tensor

from ._checks import check_features, check_number


def activation_threshold(features: Tensor, percentile: float = 90.0) -> float:
    """Find the value that a given percentage of all activations of ID images does not exceed.

    Args:
        features (`torch.Tensor` of shape `(images, dim)`):
            Embeddings of ID images. All their values count alike, whatever the dimension; between two of them the
            percentile is interpolated. Takes as much memory again.
        percentile (`float`, *optional*, defaults to 90.0): Percentage in [0, 100]; with 100 the largest value.

    Returns:
        `float`: In the unit of the embeddings.

    Raises:
        TypeError: `features` is not a tensor or `percentile` not a number.
        ValueError: No images, another shape, a value that is not finite, or a `percentile` outside [0, 100].

    Source: Sun et al. 2021, section 2; the paper takes the 90th percentile.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import activation_threshold
    >>> activation_threshold(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 10.0]]), percentile=80.0)
    4.0

    ```
    """
    check_percentile(percentile)
    features = check_features(features, "features", min_images=1)
    # By numpy, because the quantiles of torch are limited to 16 million values.
    return float(np.percentile(features.detach().float().cpu().numpy(), float(percentile)))


def check_percentile(percentile: float) -> None:
    """Check that `percentile` is a number from 0 to 100.

    Raises:
        TypeError: It is not a number.
        ValueError: It is outside of that range.
    """
    check_number(percentile, "percentile")
    if not 0 <= float(percentile) <= 100:
        raise ValueError(f"`percentile` must be between 0 and 100, such as 90.0, got {percentile}.")


def clip_activations(features: Tensor, threshold: float) -> Tensor:
    r"""Clip what is larger than a threshold, \\( \min(f, c) \\).

    Nothing is normalised again: that embeddings with large activations become shorter is the point.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, normalised as those of the threshold were.
        threshold (`float`): What [`activation_threshold`] returned, \\( c \\).

    Returns:
        `torch.Tensor` of shape `(batch, dim)`, float32.

    Raises:
        TypeError: `features` is not a tensor or `threshold` not a number.
        ValueError: Another shape, a value that is not finite, or a `threshold` that is not finite.

    Source: Sun et al. 2021, section 2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import clip_activations
    >>> clip_activations(torch.tensor([[0.6, -0.8], [0.8, 0.6]]), 0.7)
    tensor([[ 0.6000, -0.8000],
            [ 0.7000,  0.6000]])

    ```
    """
    features = check_features(features, "features")
    check_number(threshold, "threshold")
    if not math.isfinite(float(threshold)):
        raise ValueError(f"`threshold` must be finite, got {threshold}; use that of `activation_threshold`.")
    return features.float().clamp(max=float(threshold))


__all__ = ["activation_threshold", "check_percentile", "clip_activations"]
