# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""ViM: what of an image embedding lies outside of the space that ID images fill, as one more class.

Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, https://arxiv.org/abs/2203.10807.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_features, check_matrix, check_whole
from ._rows import check_dimensions, chunks


class VirtualLogit(NamedTuple):
    """The virtual class, as [`fit_virtual_logit`] returns it.

    Args:
        origin (`torch.Tensor` of shape `(dim,)`): Where the space of ID images has its origin, float64.
        residual_space (`torch.Tensor` of shape `(dim, dim - principal_dims)`):
            Orthonormal directions in which ID images vary least, float64.
        scale (`torch.Tensor` of shape `()`): The factor between residual norms and logits, float64.
        offset (`torch.Tensor` of shape `()`): What is added, as the bias is to other logits, float64.
    """

    origin: Tensor
    residual_space: Tensor
    scale: Tensor
    offset: Tensor


def fit_virtual_logit(
    features: Tensor, weight: Tensor, bias: Tensor | float = 0.0, principal_dims: int | None = None
) -> VirtualLogit:
    r"""Fit the virtual class to embeddings of ID images and to the classifier that has the other classes.

    The classifier gives the logits \\( a = W f + b \\). With the origin \\( o = -W^+ b \\), the point next to 0 where
    they vanish, the principal space is spanned by the leading eigenvectors of \\( \sum_i (f_i - o)(f_i - o)^\top \\),
    and the residual \\( f^\perp \\) is the part of \\( f - o \\) that is orthogonal to it. The logit of the virtual
    class is \\( \alpha \lVert f^\perp \rVert + \bar b \\), with \\( \alpha \\) such that on the ID images it equals
    the largest logit on average.

    \\( \bar b \\), the mean of the biases, is left out in the paper. It changes no probability, being in all logits
    alike; but without it \\( \alpha \\) would be negative for models that were trained with a sigmoid loss, whose bias
    is. Should the largest logit be negative on average all the same, it is taken less the mean logit, with a warning.

    Args:
        features (`torch.Tensor` of shape `(images, dim)`):
            Embeddings of ID images; computed with in float64, in chunks.
        weight (`torch.Tensor` of shape `(classes, dim)`):
            \\( W \\). For CLIP: embeddings of the class texts times `logit_scale.exp()`.
        bias (`torch.Tensor` of shape `(classes,)` or `float`, *optional*, defaults to 0.0): \\( b \\).
        principal_dims (`int`, *optional*):
            How many dimensions the principal space has, fewer than `dim`. By default, as the authors do it, 1000 of
            2048 or more, 512 of 768 or more, and half of fewer; where images fill no more than these, as many as half
            of the images, with a warning.

    Returns:
        [`VirtualLogit`]: On the device of `features`.

    Raises:
        TypeError: `features`, `weight` or `bias` is not a tensor, or `principal_dims` not a whole number.
        ValueError: Shapes that do not fit, fewer than two images, a value that is not finite, a `principal_dims`
            outside its range, embeddings without residual, as no more images than principal dimensions have, or logits
            that are all equal and not positive.

    Source: Wang et al. 2022, sections 4.1 and 4.2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import fit_virtual_logit
    >>> features = torch.tensor([[2.0, 1.0], [4.0, -1.0]])
    >>> fit_virtual_logit(features, torch.eye(2), principal_dims=1).scale
    tensor(3.3902, dtype=torch.float64)

    ```
    """
    features = check_features(features, "features", min_images=2).detach()
    dim = features.shape[1]
    weight = check_features(weight, "weight").to(features.device, torch.float64)
    if len(weight) == 0 or weight.shape[1] != dim:
        raise ValueError(
            f"`weight` must have shape (classes, {dim}), with at least one class, for `features` of {dim} dimensions, "
            f"got {tuple(weight.shape)}."
        )
    bias = torch.as_tensor(bias, dtype=torch.float64, device=features.device).detach()
    if bias.shape not in ((), (len(weight),)) or not torch.isfinite(bias).all():
        raise ValueError(
            f"`bias` must be one finite number, or one for each of the {len(weight)} classes, got shape "
            f"{tuple(bias.shape)}."
        )
    bias = bias.expand(len(weight))
    usual = _usual_dims(dim)
    asked = principal_dims if principal_dims is None else _check_dims(principal_dims, dim)
    # Images fill no more dimensions than there are images, and some must be left.
    principal_dims = asked or (usual if len(features) > usual else len(features) // 2)
    weight = weight.detach()
    offset = bias.mean()
    origin = -torch.linalg.pinv(weight) @ bias
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    largest, mean = torch.zeros_like(offset), torch.zeros_like(offset)
    for rows in chunks(len(features), max(dim, len(weight))):
        part = features[rows].double()
        centered = part - origin
        scatter += centered.T @ centered
        logits = part @ weight.T + bias - offset  # (images of the part, classes)
        largest += logits.amax(dim=1).sum()
        mean += logits.mean(dim=1).sum()
    # Eigenvalues ascend.
    residual_space = torch.linalg.eigh(scatter).eigenvectors[:, : dim - principal_dims].contiguous()
    norms, lengths = torch.zeros_like(offset), torch.zeros_like(offset)
    for rows in chunks(*features.shape):
        centered = features[rows].double() - origin
        norms += torch.linalg.vector_norm(centered @ residual_space, dim=1).sum()
        lengths += torch.linalg.vector_norm(centered, dim=1).sum()
    # Below what float32 numbers are rounded by, the residual is nothing but that.
    if norms <= 1e-6 * lengths:
        space = "one dimension" if principal_dims == 1 else f"{principal_dims} dimensions"
        fewer = "" if principal_dims == 1 else ", or fewer `principal_dims`"
        raise ValueError(
            f"`features` has {len(features)} images that lie within {space}, the principal space, so that no residual "
            f"is left to learn from; give more images that differ{fewer}."
        )
    if asked is None and principal_dims < usual:
        warnings.warn(
            f"{len(features)} images fill no more than {len(features)} of {dim} dimensions, so that the principal "
            f"space has {principal_dims} in place of {usual}. Give more than {usual} images, many times as many if "
            "you can.",
            stacklevel=2,
        )
    if largest <= 0:
        average = (largest / len(features)).item()
        if largest <= mean:
            raise ValueError(
                f"The logits of `features` are all {average:.4g} on average, but the largest one must be positive for "
                "larger residuals to mean larger virtual logits; look for a `weight` that is not of their model."
            )
        warnings.warn(
            f"The largest logit of `features` is {average:.4g} on average, but larger residuals would have to mean "
            "larger virtual logits; by how much it exceeds the mean logit takes its place. Look for a `weight` that "
            "is not of their model.",
            stacklevel=2,
        )
        largest = largest - mean
    return VirtualLogit(origin, residual_space, largest / norms, offset.clone())


def virtual_logit(features: Tensor, logits: Tensor, fitted: VirtualLogit) -> Tensor:
    r"""Compute by how much the virtual class wins over all others.

    \\( v - \log \sum_j \exp(a_j) \\) with the virtual logit \\( v = \alpha \lVert f^\perp \rVert + \bar b \\): the
    log-odds of the virtual class in a softmax over all classes and it. The probability of the paper is the sigmoid of
    that, in the same order; but it rounds to 0 for many images at once, as the log-odds do not.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, normalised as those of the fit were.
        logits (`torch.Tensor` of shape `(batch, classes)`): What the classifier makes of them, \\( a \\).
        fitted ([`VirtualLogit`]): What [`fit_virtual_logit`] returned.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, unbounded; higher = more OOD.

    Raises:
        TypeError: `features` or `logits` is not a tensor.
        ValueError: Shapes that do not fit, no classes, or a value that is not finite.

    Source: Wang et al. 2022, section 4.2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import fit_virtual_logit, virtual_logit
    >>> features = torch.tensor([[2.0, 1.0], [4.0, -1.0]])
    >>> fitted = fit_virtual_logit(features, torch.eye(2), principal_dims=1)
    >>> virtual_logit(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]]), fitted)
    tensor([-1.9388,  7.0612])

    ```
    """
    features = check_features(features, "features")
    logits = check_matrix(logits, "logits")
    check_dimensions(features, len(fitted.origin), "fitted")
    if len(features) != len(logits):
        raise ValueError(
            f"`features` and `logits` must be of the same images, got {len(features)} embeddings and {len(logits)} "
            "rows of logits."
        )
    residual = (features.double() - fitted.origin) @ fitted.residual_space  # (batch, dim - principal_dims)
    virtual = fitted.scale * torch.linalg.vector_norm(residual, dim=1) + fitted.offset
    return (virtual - logits.double().logsumexp(dim=1)).float()


def _usual_dims(dim: int) -> int:
    if dim < 2:
        raise ValueError(
            f"`features` must have at least 2 dimensions for a principal space and a residual, got {dim}."
        )
    return 1000 if dim >= 2048 else 512 if dim >= 768 else dim // 2


def _check_dims(principal_dims: int, dim: int) -> int:
    principal_dims = check_whole(principal_dims, "principal_dims")
    if not 1 <= principal_dims < dim:
        raise ValueError(
            f"`principal_dims` must be between 1 and {dim - 1} for features of {dim} dimensions, got {principal_dims}."
        )
    return principal_dims


__all__ = ["VirtualLogit", "fit_virtual_logit", "virtual_logit"]
