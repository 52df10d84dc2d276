# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""The two decision rules of CLIPN, and the scores behind them.

Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", ICCV 2023, https://arxiv.org/abs/2308.12213,
code https://github.com/xmed-lab/CLIPN. There competing-to-win is "CLIPN-C" and agreeing-to-differ "CLIPN-A".

For class logits \\( a_j \\) and "no" logits \\( b_j \\) (image times class text, image times "no" class text):
\\( p_j = \operatorname{softmax}_j(a) \\), the class probabilities, and \\( p^{no}_j = \sigma(b_j - a_j) \\), the
probability that the image does not show class j.
"""

import torch
from torch import Tensor

from ._checks import check_pair


def ctw(logits: Tensor, no_logits: Tensor) -> Tensor:
    r"""Compute competing to win: what the "no" text says about the most probable class.

    \\( p^{no}_{j^\ast} \\) with \\( j^\ast = \arg\max_j p_j \\).

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), cosines times `logit_scale.exp()`, at least one class.
        no_logits (`torch.Tensor` of shape `(batch, classes)`):
            Logits \\( b \\) of the "no" texts, same scale.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD. `ctw_is_ood` is the point 0.5.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: No classes, other or different shapes, or a value that is not finite.

    Source: Wang et al. 2023, section 3.4, "competing-to-win".

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import ctw
    >>> ctw(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    tensor([0.0474, 0.7311])

    ```
    """
    logits, no_logits = check_pair(logits, no_logits)
    best = logits.argmax(dim=1, keepdim=True)  # (batch, 1)
    return torch.sigmoid(no_logits.gather(1, best) - logits.gather(1, best)).squeeze(1)


def ctw_is_ood(logits: Tensor, no_logits: Tensor) -> Tensor:
    r"""Decide by `ctw` without a threshold: the "no" text of the most probable class wins.

    \\( p^{no}_{j^\ast} > 1 - p^{no}_{j^\ast} \\) with \\( j^\ast = \arg\max_j p_j \\), which is `ctw(…) > 0.5`.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`): As in `ctw`.
        no_logits (`torch.Tensor` of shape `(batch, classes)`): As in `ctw`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, bool; True = OOD.

    Raises:
        TypeError, ValueError: As `ctw`.

    Source: Wang et al. 2023, section 3.4, "competing-to-win".

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import ctw_is_ood
    >>> ctw_is_ood(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    tensor([False,  True])

    ```
    """
    no_probability = ctw(logits, no_logits)
    return no_probability > 1 - no_probability


def atd(logits: Tensor, no_logits: Tensor) -> Tensor:
    r"""Compute agreeing to differ: the probability of an additional, unknown class.

    \\( 1 - \sum_j (1 - p^{no}_j) p_j = \sum_j p_j p^{no}_j \\), computed in the second form, which keeps its precision
    near 0.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), cosines times `logit_scale.exp()`, at least one class.
        no_logits (`torch.Tensor` of shape `(batch, classes)`):
            Logits \\( b \\) of the "no" texts, same scale.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD. The decision `atd_is_ood` is *not* a
        threshold on this score.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: No classes, other or different shapes, or a value that is not finite.

    Source: Wang et al. 2023, section 3.4, "agreeing-to-differ".

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import atd
    >>> atd(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    tensor([0.0798, 0.7713])

    ```
    """
    return atd_probabilities(logits, no_logits)[:, -1]


def atd_probabilities(logits: Tensor, no_logits: Tensor) -> Tensor:
    r"""Compute the distribution over the classes and, last, the unknown class.

    \\( (1 - p^{no}_j) p_j \\) for the classes and \\( \sum_j p_j p^{no}_j \\) for the unknown one.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`): As in `atd`.
        no_logits (`torch.Tensor` of shape `(batch, classes)`): As in `atd`.

    Returns:
        `torch.Tensor` of shape `(batch, classes + 1)`, float32, in [0, 1]; each row sums to 1.

    Raises:
        TypeError, ValueError: As `atd`.

    Source: Wang et al. 2023, section 3.4, "agreeing-to-differ".

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import atd_probabilities
    >>> atd_probabilities(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    tensor([[0.9074, 0.0128, 0.0798],
            [0.1966, 0.0321, 0.7713]])

    ```
    """
    logits, no_logits = check_pair(logits, no_logits)
    probabilities = logits.softmax(dim=1)
    known = probabilities * torch.sigmoid(logits - no_logits)
    unknown = (probabilities * torch.sigmoid(no_logits - logits)).sum(dim=1, keepdim=True)
    # A softmax may sum to a little more than 1.
    return torch.cat([known, unknown.clamp(max=1.0)], dim=1)


def atd_is_ood(logits: Tensor, no_logits: Tensor) -> Tensor:
    r"""Decide by `atd` without a threshold: the unknown class is more probable than every class.

    \\( \sum_j p_j p^{no}_j > \max_j (1 - p^{no}_j) p_j \\)

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`): As in `atd`.
        no_logits (`torch.Tensor` of shape `(batch, classes)`): As in `atd`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, bool; True = OOD.

    Raises:
        TypeError, ValueError: As `atd`.

    Source: Wang et al. 2023, section 3.4, "agreeing-to-differ".

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import atd_is_ood
    >>> atd_is_ood(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    tensor([False,  True])

    ```
    """
    probabilities = atd_probabilities(logits, no_logits)
    return probabilities[:, -1] > probabilities[:, :-1].amax(dim=1)
