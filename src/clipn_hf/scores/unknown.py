# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The probability of an "unknown" class, which has a text of its own beside those of the classes.

CLIP-OS: Sun et al., "CLIP-driven Outliers Synthesis for few-shot OOD detection", 2024,
https://arxiv.org/abs/2404.00323. No code is published.
"""

import math

import torch
from torch import Tensor

from ._checks import check_matrix, check_temperature, check_vector, check_weight


def unknown_probability(logits: Tensor, unknown_logits: Tensor) -> Tensor:
    r"""Compute the probability of the unknown class in a softmax over all classes and it.

    \\( \frac{\exp u}{\exp u + \sum_j \exp a_j} \\)

    Near 0 it is exact; where \\( u \\) exceeds all class logits by more than 17, it rounds to 1.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), cosines times `logit_scale.exp()`, at least one class.
        unknown_logits (`torch.Tensor` of shape `(batch,)`):
            Logits \\( u \\) of the "unknown" text, same scale.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD. Take the threshold from a
        calibration: images of unknown things may all stay below 0.5, though most of them score above those of the
        classes.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: No classes, other shapes, or a value that is not finite.

    Source: Sun et al. 2024, unknown-aware prompt learning.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import unknown_probability
    >>> unknown_probability(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.tensor([1.0, 3.0]))
    tensor([0.0453, 0.6652])

    ```
    """
    logits, unknown_logits = _check_unknown(logits, unknown_logits)
    return torch.cat([logits, unknown_logits], dim=1).softmax(dim=1)[:, -1]


def mcm_with_unknown(
    similarity: Tensor, unknown_similarity: Tensor, temperature: float = 1.0, weight: float = 0.25
) -> Tensor:
    r"""Compute MCM whose softmax has the unknown class, too.

    \\( 1 - \frac{\max_j \exp(s_j / T)}{\sum_j \exp(s_j / T) + w C \exp(u / T)} \\) for cosines \\( s \\) between an
    image and the texts of \\( C \\) classes, and \\( u \\) between it and the "unknown" text: MCM where the unknown
    class counts as often as \\( w \\) times all classes together. Counted once, one class among many would hardly tell
    at \\( T = 1 \\), where all cosines have nearly the same probability.

    At \\( T = 1 \\) over 1,000 classes all scores lie so close to 1 that float32 has only about 1,000 to 10,000
    distinct values for them, and different images may get the same; a smaller \\( T \\) spreads them.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`):
            Cosines \\( s \\) in [-1, 1], **not** multiplied by the logit scale, at least one class.
        unknown_similarity (`torch.Tensor` of shape `(batch,)`): Cosines \\( u \\) with the "unknown" text.
        temperature (`float`, *optional*, defaults to 1.0): \\( T > 0 \\), as in `mcm`.
        weight (`float`, *optional*, defaults to 0.25):
            \\( w \\), not negative; with 0 it is `mcm`, and the larger it is, the more it orders images by
            \\( u - \max_j s_j \\).

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD.

    Raises:
        TypeError: A cosine is not a tensor, or `temperature` or `weight` not a number.
        ValueError: No classes, other shapes, a value that is not finite, a `temperature` that is not positive and
            finite in float32, or a `weight` that is negative or not finite.

    Source: none; the paper does not say how the probability of the unknown class joins other scores.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import mcm_with_unknown
    >>> mcm_with_unknown(torch.tensor([[0.31, 0.22], [0.31, 0.22]]), torch.tensor([0.1, 0.3]))
    tensor([0.5688, 0.5849])

    ```
    """
    similarity, unknown_similarity = _check_unknown(similarity, unknown_similarity, "similarity", "unknown_similarity")
    check_temperature(temperature)
    check_weight(weight, "weight")
    best = similarity.argmax(dim=1, keepdim=True)  # (batch, 1)
    count = math.log(weight) + math.log(similarity.shape[1]) if weight else -math.inf
    both = torch.cat([similarity, unknown_similarity], dim=1)
    # Only differences are divided. Those of the unknown class may be positive, and must not become infinite.
    exponents = ((both - similarity.gather(1, best).detach()) / temperature).clamp(max=1e30)
    exponents = torch.cat([exponents[:, :-1], exponents[:, -1:] + count], dim=1)
    return exponents.softmax(dim=1).scatter(1, best, 0.0).sum(dim=1).clamp(max=1.0)


def _check_unknown(
    values: Tensor, unknown_values: Tensor, name: str = "logits", unknown_name: str = "unknown_logits"
) -> tuple[Tensor, Tensor]:
    """Check both, and that they belong together; return them as float32, the latter of shape `(batch, 1)`."""
    values, unknown_values = check_matrix(values, name), check_vector(unknown_values, unknown_name)
    if len(values) != len(unknown_values):
        raise ValueError(
            f"`{name}` and `{unknown_name}` must be of the same images, got {len(values)} and {len(unknown_values)}."
        )
    return values, unknown_values[:, None]


__all__ = ["mcm_with_unknown", "unknown_probability"]
