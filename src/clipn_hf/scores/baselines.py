# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores that need nothing but the class logits, or the cosines, of a zero-shot classifier.

MSP: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
Networks", ICLR 2017, https://arxiv.org/abs/1610.02136.
MaxLogit: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022,
https://arxiv.org/abs/1911.11132.
Energy: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, https://arxiv.org/abs/2010.03759.
ODIN: Liang et al., "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks", ICLR 2018,
https://arxiv.org/abs/1706.02690.
Perplexity: as in the code of Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models for
Out-of-Distribution Detection", TMLR 2024, https://arxiv.org/abs/2303.05828, for the logits of a linear probe.
MCM: Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS 2022,
https://arxiv.org/abs/2211.13445, code https://github.com/deeplearning-wisc/MCM.
"""

from torch import Tensor

from ._checks import check_matrix, check_temperature


def msp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Compute the maximum softmax probability, turned into OOD-ness.

    \\( 1 - \max_j \operatorname{softmax}_j(a / T) \\), computed as the sum of the other probabilities, so that images
    of which the classifier is nearly certain stay apart where \\( 1 - p \\) would round to 0.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), at least two classes. For CLIP: cosines times `logit_scale.exp()`.
        temperature (`float`, *optional*, defaults to 1.0):
            \\( T > 0 \\), divides the logits.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1 - 1/classes]; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor or `temperature` not a number.
        ValueError: Fewer than two classes, another shape, a value that is not finite, or a `temperature` that is
            not positive and finite in float32.

    Source: Hendrycks and Gimpel 2017, section 2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import msp
    >>> msp(torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    tensor([0.0638, 0.6667])

    ```
    """
    return _one_minus_max_softmax(check_matrix(logits, "logits", min_classes=2), temperature)


def max_logit(logits: Tensor) -> Tensor:
    r"""Compute the negative largest logit, \\( -\max_j a_j \\).

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), at least one class.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, unbounded; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor.
        ValueError: No classes, another shape, or a value that is not finite.

    Source: Hendrycks et al. 2022, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import max_logit
    >>> max_logit(torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    tensor([-4., -1.])

    ```
    """
    return -check_matrix(logits, "logits").amax(dim=1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Compute the free energy, \\( -T \log \sum_j \exp(a_j / T) \\).

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), at least one class.
        temperature (`float`, *optional*, defaults to 1.0):
            \\( T > 0 \\); towards 0 the energy becomes `max_logit`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, unbounded; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor or `temperature` not a number.
        ValueError: No classes, another shape, a value that is not finite, or a `temperature` that is
            not positive and finite in float32.

    Source: Liu et al. 2020, equation 4.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import energy
    >>> energy(torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    tensor([-4.0659, -2.0986])

    ```
    """
    logits = check_matrix(logits, "logits")
    check_temperature(temperature)
    largest = logits.amax(dim=1).detach()  # (batch,)
    # Only differences are divided: none is positive, so that a small temperature makes -inf at most, which counts 0.
    return -largest - temperature * ((logits - largest[:, None]) / temperature).logsumexp(dim=1)


def odin(logits: Tensor, temperature: float = 1000.0) -> Tensor:
    r"""Compute the maximum softmax probability at a high temperature, in a form that keeps what it says.

    \\( T \log \frac{1}{C} \sum_j \exp((a_j - \max_k a_k) / T) = -T \log(C \max_j \operatorname{softmax}_j(a / T)) \\),
    which falls where the probability of the paper rises. That probability itself is next to \\( 1/C \\) for all
    images, so that in float32 most of the differences between them would be lost. For high temperatures this is the
    mean logit less the largest one.

    It is the score of an image whose pixels were changed before; see [`~clipn_hf.methods.odin`].

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits \\( a \\), at least two classes \\( C \\).
        temperature (`float`, *optional*, defaults to 1000.0):
            \\( T > 0 \\), divides the logits.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [-T log C, 0]; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor or `temperature` not a number.
        ValueError: Fewer than two classes, another shape, a value that is not finite, or a `temperature` that is
            not positive and finite in float32.

    Source: Liang et al. 2018, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import odin
    >>> odin(torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    tensor([-2.3319,  0.0000])

    ```
    """
    logits = check_matrix(logits, "logits", min_classes=2).double()
    check_temperature(temperature)
    differences = (logits - logits.amax(dim=1, keepdim=True)) / temperature  # (batch, classes)
    # The mean of exp(d) is 1 + the mean of exp(d) - 1, which keeps its digits where all d are small.
    return (temperature * differences.expm1().mean(dim=1).log1p()).float()


def perplexity(logits: Tensor) -> Tensor:
    r"""Compute the perplexity of the softmax, \\( \exp(-\sum_j p_j \log p_j) \\): how many classes are in question.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`):
            Class logits, at least two classes, such as those of a linear probe.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, from 1, one class being certain, to the number of classes, all
        being equally probable; higher = more OOD.

    Raises:
        TypeError: `logits` is not a tensor.
        ValueError: Fewer than two classes, another shape, or a value that is not finite.

    Source: the code of Adaloglou et al. 2024, which takes the negative perplexity for ID-ness.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import perplexity
    >>> perplexity(torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    tensor([1.3156, 3.0000])

    ```
    """
    # In float64, because next to the perplexity of 1 many images of which a probe is nearly certain have theirs.
    log_probabilities = check_matrix(logits, "logits", min_classes=2).double().log_softmax(dim=1)
    return (-(log_probabilities.exp() * log_probabilities).sum(dim=1)).exp().float()


def mcm(similarity: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Compute maximum concept matching: MSP over cosines instead of logits.

    \\( 1 - \max_j \operatorname{softmax}_j(s / T) \\) for cosines \\( s \\) between an image and the class texts.

    At \\( T = 1 \\) over 1,000 classes all scores lie so close to 1 that float32 has only about 1,000 to 10,000
    distinct values for them, and different images may get the same; a smaller \\( T \\) spreads them.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`):
            Cosines \\( s \\) in [-1, 1], **not** multiplied by the logit scale, at least two classes.
        temperature (`float`, *optional*, defaults to 1.0):
            \\( T > 0 \\). The paper uses 1; `1 / logit_scale.exp()` makes it MSP.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1 - 1/classes]; higher = more OOD.

    Raises:
        TypeError: `similarity` is not a tensor or `temperature` not a number.
        ValueError: Fewer than two classes, another shape, a value that is not finite, or a `temperature` that is
            not positive and finite in float32.

    Source: Ming et al. 2022, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import mcm
    >>> mcm(torch.tensor([[0.31, 0.22, 0.18], [0.20, 0.20, 0.20]]))
    tensor([0.6418, 0.6667])

    ```
    """
    return _one_minus_max_softmax(check_matrix(similarity, "similarity", min_classes=2), temperature)


def _one_minus_max_softmax(logits: Tensor, temperature: float) -> Tensor:
    check_temperature(temperature)
    largest, best = logits.max(dim=1, keepdim=True)  # (batch, 1)
    # Only differences are divided: none is positive, so that a small temperature makes -inf at most, which counts 0.
    probabilities = ((logits - largest.detach()) / temperature).softmax(dim=1)  # (batch, classes)
    return probabilities.scatter(1, best, 0.0).sum(dim=1)
