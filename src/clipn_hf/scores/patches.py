# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores that look at the patches of an image beside the whole.

GL-MCM: Miyai et al., "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution Detection",
IJCV 2025, https://arxiv.org/abs/2304.04521, code https://github.com/AtsuMiyai/GL-MCM.
"""

from torch import Tensor

from ._checks import check_matrix, check_vector, check_weight
from .baselines import mcm


def local_mcm(local_similarity: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Compute MCM of the patch that matches a label best.

    \\( 1 - \max_{p,j} \operatorname{softmax}_j(s_p / T) \\) for cosines \\( s_p \\) between patch \\( p \\) of an
    image and the class texts.

    Args:
        local_similarity (`torch.Tensor` of shape `(batch, patches, classes)`):
            Cosines \\( s \\) in [-1, 1], **not** multiplied by the logit scale, at least one patch and two classes.
        temperature (`float`, *optional*, defaults to 1.0): \\( T > 0 \\), as in `mcm`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1 - 1/classes]; higher = more OOD.

    Raises:
        TypeError: `local_similarity` is not a tensor or `temperature` not a number.
        ValueError: No patches, fewer than two classes, another shape, a value that is not finite, or a `temperature`
            that is not positive and finite in float32.

    Source: Miyai et al. 2025, the local part of GL-MCM.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import local_mcm
    >>> local_mcm(torch.tensor([[[0.31, 0.22, 0.18], [0.20, 0.20, 0.20]]]))
    tensor([0.6418])

    ```
    """
    if not isinstance(local_similarity, Tensor):
        raise TypeError(
            "`local_similarity` must be a torch.Tensor of shape (batch, patches, classes), got "
            f"{type(local_similarity).__name__}."
        )
    if local_similarity.ndim != 3 or local_similarity.shape[1] == 0:
        raise ValueError(
            "`local_similarity` must have shape (batch, patches, classes), with at least one patch, got "
            f"{tuple(local_similarity.shape)}."
        )
    batch, patches, _ = local_similarity.shape
    # Here, so that an error calls it by its own name.
    checked = check_matrix(local_similarity.flatten(0, 1), "local_similarity", min_classes=2)
    of_patches = mcm(checked, temperature)  # (batch * patches,)
    return of_patches.view(batch, patches).amin(dim=1)


def gl_mcm(
    similarity: Tensor, local_similarity: Tensor, temperature: float = 1.0, local_weight: float = 1.0
) -> Tensor:
    r"""Compute global and local maximum concept matching.

    \\( 1 - \frac{g + w l}{1 + w} \\) with \\( g = \max_j \operatorname{softmax}_j(s / T) \\) of the cosines
    \\( s \\) between an image and the class texts, and \\( l = \max_{p,j} \operatorname{softmax}_j(s_p / T) \\) of
    those of its patches \\( p \\). It is the `combine_local` of `mcm` and `local_mcm`. With \\( w = 1 \\) it orders
    images as the sum \\( g + l \\) of the authors does.

    At \\( T = 1 \\) over 1,000 classes all scores lie so close to 1 that float32 has only about 1,000 to 10,000
    distinct values for them, and different images may get the same; a smaller \\( T \\) spreads them.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`):
            Cosines \\( s \\) in [-1, 1], **not** multiplied by the logit scale, at least two classes.
        local_similarity (`torch.Tensor` of shape `(batch, patches, classes)`):
            Cosines \\( s_p \\) of the patches, at least one.
        temperature (`float`, *optional*, defaults to 1.0): \\( T > 0 \\), as in `mcm`.
        local_weight (`float`, *optional*, defaults to 1.0):
            \\( w \\), not negative; with 0 it is MCM, the larger it is the more it is `local_mcm`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1 - 1/classes]; higher = more OOD.

    Raises:
        TypeError: An argument is not a tensor, or not a number.
        ValueError: As `mcm` and `local_mcm`; images or classes differ between both, or `local_weight` is negative or
            not finite.

    Source: Miyai et al. 2025.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import gl_mcm
    >>> gl_mcm(torch.tensor([[0.20, 0.20, 0.20]]), torch.tensor([[[0.31, 0.22, 0.18], [0.20, 0.20, 0.20]]]))
    tensor([0.6543])

    ```
    """
    local, whole = local_mcm(local_similarity, temperature), mcm(similarity, temperature)
    if similarity.shape != (local_similarity.shape[0], local_similarity.shape[2]):
        raise ValueError(
            "`similarity` and `local_similarity` must be of the same images and classes, got "
            f"{tuple(similarity.shape)} and {tuple(local_similarity.shape)}."
        )
    return combine_local(whole, local, local_weight)


def combine_local(score: Tensor, local_score: Tensor, local_weight: float = 1.0) -> Tensor:
    r"""Compute the weighted mean of a score of images and one of their patches, \\( \frac{s + w l}{1 + w} \\).

    Args:
        score (`torch.Tensor` of shape `(batch,)`): What `mcm` gives, \\( s \\).
        local_score (`torch.Tensor` of shape `(batch,)`): What `local_mcm` gives of the same images, \\( l \\).
        local_weight (`float`, *optional*, defaults to 1.0): \\( w \\), finite and not negative.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, between both; higher = more OOD.

    Raises:
        TypeError: A score is not a tensor, or `local_weight` not a number.
        ValueError: Other or different shapes, a value that is not finite, or a `local_weight` that is negative or not
            finite.

    Source: Miyai et al. 2025.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import combine_local
    >>> combine_local(torch.tensor([0.6667]), torch.tensor([0.6418]), local_weight=3.0)
    tensor([0.6480])

    ```
    """
    check_weight(local_weight, "local_weight")
    score, local_score = check_vector(score, "score"), check_vector(local_score, "local_score")
    if len(score) != len(local_score):
        raise ValueError(
            f"`score` and `local_score` must be of the same images, got {len(score)} and {len(local_score)}."
        )
    # Not the quotient of the sums, which overflows with huge weights.
    weight = float(local_weight)
    return score.lerp(local_score, weight / (1 + weight))
