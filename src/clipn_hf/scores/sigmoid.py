# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Scores of models that were trained with a sigmoid loss, which give each label a probability of its own.

Such a model, SigLIP for one, answers "does this text fit this image?" for each text alone: with \\( \sigma(a_j) \\),
where the logit \\( a_j \\) is the cosine times `logit_scale.exp()`, plus `logit_bias`. Nothing makes these
probabilities sum to 1, so that all of them can be small: an image that no label fits.

Sigmoid loss: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023,
https://arxiv.org/abs/2303.15343.
Joint energy: Wang et al., "Can multi-label classification networks know what they don't know?", NeurIPS 2021,
https://arxiv.org/abs/2109.14162.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ._checks import check_matrix


def max_sigmoid(logits: Tensor) -> Tensor:
    r"""Compute the probability that the best label does not fit.

    \\( 1 - \max_j \sigma(a_j) \\), computed as \\( \sigma(-\max_j a_j) \\), so that images of which the model is
    nearly certain stay apart where \\( 1 - \sigma \\) would round to 0.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), at least one class: cosines times `logit_scale.exp()`, plus `logit_bias`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor.
        ValueError: No classes, another shape, or a value that is not finite.

    Source: Zhai et al. 2023, section 3, whose loss makes \\( \sigma(a_j) \\) the probability that text and image
    belong together.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import max_sigmoid
    >>> max_sigmoid(torch.tensor([[4.0, 1.0, -9.0], [-2.0, -3.0, -9.0]]))
    tensor([0.0180, 0.8808])

    ```
    """
    return (-check_matrix(logits, "logits").amax(dim=1)).sigmoid()


def joint_energy(logits: Tensor) -> Tensor:
    r"""Compute the sum of the free energies of each label against none.

    \\( -\sum_j \log(1 + \exp a_j) \\). Unlike `energy`, which one good label suffices to lower, it counts every label
    that fits.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), at least one class: cosines times `logit_scale.exp()`, plus `logit_bias`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, not positive; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor.
        ValueError: No classes, another shape, or a value that is not finite.

    Source: Wang et al. 2021, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import joint_energy
    >>> joint_energy(torch.tensor([[4.0, 1.0, -9.0], [-2.0, -3.0, -9.0]]))
    tensor([-5.3315, -0.1756])

    ```
    """
    total = softplus(check_matrix(logits, "logits")).sum(dim=1)
    # Finite logits give a finite score, also where their sum is none of float32.
    return -total.clamp(max=torch.finfo(total.dtype).max)
