# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of learned prompts, of the logits of images under class prompts.

CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, https://arxiv.org/abs/2109.01134.
LoCoOp: Miyai et al., "LoCoOp: Few-Shot Out-of-Distribution Detection via Prompt Learning", NeurIPS 2023,
https://arxiv.org/abs/2306.01293, code https://github.com/AtsuMiyai/LoCoOp.
CLIP-OS: Sun et al., "CLIP-driven Outliers Synthesis for few-shot OOD detection", 2024,
https://arxiv.org/abs/2404.00323.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# What LoCoOp's code adds to probabilities before it takes their logarithms.
EPSILON = 1e-5


def coop_loss(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Compute the loss of CoOp, the mean cross entropy \\( -\log \operatorname{softmax}_y(a) \\) of images.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Cosines between images and class prompts, times `logit_scale.exp()`. Half precision counts as float32.
        labels (`torch.Tensor` of shape `(batch,)`): The class \\( y \\) of each image, int64.

    Returns:
        `torch.Tensor`: A scalar, at least 0; it can be differentiated.

    Raises:
        TypeError: `logits` are no floating-point numbers, or `labels` no whole ones.
        ValueError: The shapes do not fit each other, there are no images, or a label is none of the classes.

    Source: CoOp, section 3.2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training import coop_loss
    >>> coop_loss(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    tensor(0.4100)

    ```
    """
    logits = _check_logits(logits, "logits")
    _check_labels(labels, logits)
    return cross_entropy(logits, labels)


def ood_entropy(local_logits: Tensor, labels: Tensor, top_k: int) -> Tensor:
    r"""Compute the mean entropy of the patches that do not show the class of their image, which LoCoOp maximises.

    A patch is taken to show something else if at least `top_k` classes have a higher logit than the label. With
    \\( p = \operatorname{softmax}(b) \\) of its logits \\( b \\), its entropy is
    \\( -\sum_j p_j \log(p_j + 10^{-5}) \\), the small number as in the authors' code.

    Args:
        local_logits (`torch.Tensor` of shape `(batch, patches, classes)`):
            Cosines between patches and class prompts, times the same `logit_scale.exp()` as those of images.
        labels (`torch.Tensor` of shape `(batch,)`): The class of each image, int64.
        top_k (`int`): From 1 to the number of classes less 1.

    Returns:
        `torch.Tensor`: A scalar in [0, log(classes)], 0 where no patch is chosen; it can be differentiated.

    Raises:
        TypeError: As for [`coop_loss`].
        ValueError: As for [`coop_loss`]; `top_k` is out of range.

    Source: LoCoOp, section 3.2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training import ood_entropy
    >>> patches = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
    >>> ood_entropy(patches, torch.tensor([0]), top_k=1)
    tensor(1.0173)

    ```
    """
    local_logits = _check_logits(local_logits, "local_logits", dimensions=3)
    _check_labels(labels, local_logits)
    classes = local_logits.shape[2]
    if not 1 <= top_k < classes:
        raise ValueError(
            f"`top_k` must be from 1 to {classes - 1}, the number of classes less 1, got {top_k}; with more, every "
            "patch would show the class of its image."
        )
    chosen = _choose_patches(local_logits, labels, top_k)  # (batch, patches)
    probabilities = local_logits[chosen].softmax(dim=1)  # (chosen, classes)
    entropies = -(probabilities * (probabilities + EPSILON).log()).sum(dim=1)
    # The sum over nothing is 0, and so is its gradient.
    return entropies.sum() / max(len(entropies), 1)


def count_ood_patches(local_logits: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Count the patches over which [`ood_entropy`] takes the mean.

    Args:
        local_logits (`torch.Tensor` of shape `(batch, patches, classes)`): As for [`ood_entropy`].
        labels (`torch.Tensor` of shape `(batch,)`): The class of each image, int64.
        top_k (`int`): As for [`ood_entropy`].

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    return _choose_patches(local_logits, labels, top_k).sum().float()


def locoop_loss(
    logits: Tensor, local_logits: Tensor, labels: Tensor, top_k: int = 200, weight: float = 0.25
) -> Tensor:
    """Compute the loss of LoCoOp, [`coop_loss`] minus `weight` times [`ood_entropy`].

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`): Of images, as for [`coop_loss`].
        local_logits (`torch.Tensor` of shape `(batch, patches, classes)`): Of patches, as for [`ood_entropy`].
        labels (`torch.Tensor` of shape `(batch,)`): The class of each image, int64.
        top_k (`int`, *optional*, defaults to 200): As for [`ood_entropy`]. The default is for 1000 classes.
        weight (`float`, *optional*, defaults to 0.25): Of the entropy, at least 0.

    Returns:
        `torch.Tensor`: A scalar, at least `-weight * log(classes)`; it can be differentiated.

    Raises:
        TypeError: As for [`coop_loss`].
        ValueError: As for [`coop_loss`] and [`ood_entropy`]; `weight` is negative or not finite.

    Source: LoCoOp, section 3.2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training import locoop_loss
    >>> images = torch.tensor([[2.0, 0.0, 0.0]])
    >>> patches = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
    >>> locoop_loss(images, patches, torch.tensor([0]), top_k=1)
    tensor(-0.0148)

    ```
    """
    _check_weight(weight)
    return coop_loss(logits, labels) - weight * ood_entropy(local_logits, labels, top_k)


def clip_os_loss(logits: Tensor, labels: Tensor, outlier_logits: Tensor, weight: float = 0.1) -> Tensor:
    """Compute the loss of CLIP-OS: images are to be their classes, outliers to be the unknown class.

    It is the mean cross entropy of images over all classes and the unknown one, plus `weight` times that of outliers,
    whose class is the unknown one.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes + 1)`): Of images, those of the unknown class last.
        labels (`torch.Tensor` of shape `(batch,)`): The class of each image, int64.
        outlier_logits (`torch.Tensor` of shape `(outliers, classes + 1)`): The same of outliers.
        weight (`float`, *optional*, defaults to 0.1):
            Of the outliers, at least 0. The paper does not say what it was; the default is that of
            [`CLIPOSArguments`].

    Returns:
        `torch.Tensor`: A scalar, at least 0; it can be differentiated.

    Raises:
        TypeError: As for [`coop_loss`].
        ValueError: As for [`coop_loss`]; outliers have another number of logits, a label is that of the unknown class,
            or `weight` is negative or not finite.

    Source: CLIP-OS, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training import clip_os_loss
    >>> known = torch.tensor([[2.0, 0.0, 0.0]])
    >>> outliers = torch.tensor([[1.0, 1.0, 1.0]])
    >>> clip_os_loss(known, torch.tensor([0]), outliers, weight=0.5)
    tensor(0.7889)

    ```
    """
    _check_weight(weight)
    logits, outlier_logits = _check_logits(logits, "logits"), _check_logits(outlier_logits, "outlier_logits")
    if logits.shape[1] != outlier_logits.shape[1]:
        raise ValueError(
            f"`logits` and `outlier_logits` must have the same number of columns, one for each class and one for the "
            f"unknown class, got {logits.shape[1]} and {outlier_logits.shape[1]}."
        )
    _check_labels(labels, logits, unknown=True)
    unknown = labels.new_full((len(outlier_logits),), logits.shape[1] - 1)
    return cross_entropy(logits, labels) + weight * cross_entropy(outlier_logits, unknown)


def _choose_patches(local_logits: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Which patches `(batch, patches)` show something else than the class of their image."""
    of_labels = local_logits.gather(2, labels[:, None, None].expand(-1, local_logits.shape[1], 1))
    return (local_logits > of_labels).sum(dim=2) >= top_k


def _check_logits(logits: Tensor, name: str, dimensions: int = 2) -> Tensor:
    """The logits, half precision as float32."""
    if not logits.is_floating_point():
        raise TypeError(f"`{name}` must be floating-point numbers, got {logits.dtype}.")
    if logits.ndim != dimensions or logits.numel() == 0:
        expected = "(batch, classes)" if dimensions == 2 else "(batch, patches, classes)"
        raise ValueError(f"`{name}` must have the shape {expected}, none of them 0, got {tuple(logits.shape)}.")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_labels(labels: Tensor, logits: Tensor, unknown: bool = False) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` must be whole numbers, int64, got {labels.dtype}.")
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`labels` must be one class for each of the {len(logits)} images, got the shape {tuple(labels.shape)}."
        )
    # On an accelerator the check would wait for all that was queued before, in every step.
    if labels.device.type == "cpu":
        classes = logits.shape[-1] - unknown
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"`labels` must be from 0 to {classes - 1}, as there are {classes} classes, got {min(low, 0) or high}."
            )


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"`weight` must be a finite number >= 0, got {weight}; 0 switches the term off.")


__all__ = ["clip_os_loss", "coop_loss", "count_ood_patches", "locoop_loss", "ood_entropy"]
