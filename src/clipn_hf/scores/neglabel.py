# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Scores that compare the labels with many negative labels: texts that describe none of the ID images.

Negative labels: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR 2024,
https://arxiv.org/abs/2403.20078, code https://github.com/tmlr-group/NegLabel.
Multi-matching: Ansari et al., "NegRefine: Refining Negative Label-Based Zero-Shot OOD Detection", ICCV 2025,
https://arxiv.org/abs/2507.09795, code https://github.com/ah-ansari/NegRefine.

All of them compare cosines \\( s_j \\) between an image and the labels with cosines \\( n_i \\) between the image and
the negative labels, as a softmax at a temperature \\( T \\) does. 0.01 is the temperature that CLIP was trained at.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._checks import check_features, check_matrix, check_temperature, check_whole

# Values that one chunk of the computation holds: 4 MB in float32, which stay in the cache of a processor.
_CHUNK = 2**20
# Images that are compared with a chunk of negatives at once: many enough for a fast matrix product.
_IMAGES = 1024


def neglabel(
    similarity: Tensor,
    negative_similarity: Tensor,
    temperature: float = 0.01,
    num_groups: int = 100,
    permutation: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Compute the share of a softmax over labels and negative labels that the negative labels have.

    The negative labels are divided at random into groups \\( G_1, …, G_n \\) of one size, the shares averaged:
    \\( \frac{1}{n} \sum_g \frac{\sum_{i \in G_g} \exp(n_i / T)}{\sum_j \exp(s_j / T) + \sum_{i \in G_g} \exp(n_i / T)}
    \\). This is \\( 1 - S \\) for the score \\( S \\) of the paper. It is computed as
    \\( \frac{1}{n} \sum_g \sigma(\log \sum_{i \in G_g} \exp(n_i / T) - \log \sum_j \exp(s_j / T)) \\), which takes
    each exponential once instead of once for each group, stays finite at any temperature, and keeps its precision
    near 0.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`):
            Cosines \\( s \\) between images and labels, **not** multiplied by the logit scale, at least one class.
        negative_similarity (`torch.Tensor` of shape `(batch, negatives)`):
            Cosines \\( n \\) between images and negative labels.
        temperature (`float`, *optional*, defaults to 0.01): \\( T > 0 \\).
        num_groups (`int`, *optional*, defaults to 100):
            How many groups there are, at most one for each negative label. The last `negatives % num_groups` negative
            labels are left out. With 1, nothing is grouped.
        permutation (`torch.Tensor` of shape `(negatives - negatives % num_groups,)`, *optional*):
            The order in which the negative labels fill the groups, one after the other; by default a random one.
        seed (`int`, *optional*, defaults to 0): Of the random order.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD.

    Raises:
        TypeError: `similarity`, `negative_similarity` or `permutation` is not a tensor, or another argument has the
            wrong type.
        ValueError: No classes, no negative labels, fewer of them than groups, shapes that do not fit, a value that is
            not finite, a `temperature` that is not positive and finite in float32, or a `permutation` that is none.

    Source: Jiang et al. 2024, section 3; that negative labels are left out, and the random order, follow their code.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import neglabel
    >>> similarity = torch.tensor([[0.31, 0.22], [0.20, 0.19]])
    >>> neglabel(similarity, torch.tensor([[0.24, 0.21, 0.25], [0.28, 0.21, 0.16]]), num_groups=1)
    tensor([0.0034, 0.9995])

    ```
    """
    similarity = check_matrix(similarity, "similarity")
    _check_any(negative_similarity, "negative_similarity", dim=1)
    negative_similarity = check_matrix(negative_similarity, "negative_similarity")
    _check_same_images(similarity, negative_similarity, "negative_similarity")
    groups = _assign_groups(negative_similarity.shape[1], num_groups, permutation, seed, similarity.device)
    return _negative_share(
        similarity, temperature, groups, num_groups, lambda images, negatives: negative_similarity[images, negatives]
    )


def neglabel_from_embeddings(
    similarity: Tensor,
    image_embeddings: Tensor,
    negative_embeddings: Tensor,
    temperature: float = 0.01,
    num_groups: int = 100,
    permutation: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Compute `neglabel` in chunks of negative labels, so that the memory needed does not grow with their number.

    Neither the cosines with all negative labels nor a copy of their embeddings are ever held at once, unless a
    gradient is to be computed.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`): As in `neglabel`.
        image_embeddings (`torch.Tensor` of shape `(batch, dim)`): Of unit norm.
        negative_embeddings (`torch.Tensor` of shape `(negatives, dim)`): Of unit norm, on the same device.
        temperature (`float`, *optional*, defaults to 0.01): As in `neglabel`.
        num_groups (`int`, *optional*, defaults to 100): As in `neglabel`.
        permutation (`torch.Tensor` of shape `(negatives - negatives % num_groups,)`, *optional*): As in `neglabel`.
        seed (`int`, *optional*, defaults to 0): As in `neglabel`.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD.

    Raises:
        TypeError, ValueError: As `neglabel`; also for embeddings of different dimensions.

    Source: Jiang et al. 2024, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import neglabel_from_embeddings
    >>> images = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    >>> neglabel_from_embeddings(torch.tensor([[0.83], [0.73]]), images, torch.eye(2), num_groups=1)
    tensor([0.0474, 0.9991])

    ```
    """
    similarity, image_embeddings = _check_embeddings(similarity, image_embeddings, negative_embeddings)
    groups = _assign_groups(len(negative_embeddings), num_groups, permutation, seed, similarity.device)
    return _negative_share(
        similarity,
        temperature,
        groups,
        num_groups,
        lambda images, negatives: _compare(image_embeddings[images], negative_embeddings[negatives]),
        dim=image_embeddings.shape[1],
    )


def top_negatives(
    similarity: Tensor,
    image_embeddings: Tensor,
    negative_embeddings: Tensor,
    k: int,
    temperature: float = 0.01,
) -> tuple[Tensor, Tensor]:
    r"""Find the negative labels that an image looks most like.

    By their masses in a softmax over all labels and all negative labels, without groups:
    \\( \frac{\exp(n_i / T)}{\sum_j \exp(s_j / T) + \sum_l \exp(n_l / T)} \\), computed in chunks of negative labels,
    so that the memory needed does not grow with their number. Gradients do not flow.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`): As in `neglabel`.
        image_embeddings (`torch.Tensor` of shape `(batch, dim)`): Of unit norm.
        negative_embeddings (`torch.Tensor` of shape `(negatives, dim)`): Of unit norm, on the same device.
        k (`int`): How many negative labels to find; all of them, where there are fewer.
        temperature (`float`, *optional*, defaults to 0.01): \\( T > 0 \\).

    Returns:
        `tuple` of two `torch.Tensor` of shape `(batch, min(k, negatives))`: the masses, float32, in [0, 1], the
        largest first, and the positions of these negative labels, int64. Of equal masses, the first comes first.

    Raises:
        TypeError: `similarity` or one of the embeddings is not a tensor, or another argument has the wrong type.
        ValueError: No classes, no negative labels, a negative `k`, shapes that do not fit, a value that is not finite,
            or a `temperature` that is not positive and finite in float32.

    Source: Jiang et al. 2024, section 3, of whose ungrouped softmax these are parts.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import top_negatives
    >>> images = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    >>> top_negatives(torch.tensor([[0.79], [0.79]]), images, torch.eye(2), k=1)
    (tensor([[0.7311],
            [0.7311]]), tensor([[1],
            [0]]))

    ```
    """
    similarity, image_embeddings = _check_embeddings(similarity, image_embeddings, negative_embeddings)
    check_temperature(temperature)
    check_whole(k, "k")
    if k < 0:
        raise ValueError(f"`k` must not be negative, got {k}; give the number of negative labels to find, such as 3.")
    negatives, dim = negative_embeddings.shape
    masses = [similarity.new_empty(0, min(k, negatives))]
    positions = [torch.empty(0, min(k, negatives), dtype=torch.int64, device=similarity.device)]
    with torch.no_grad():
        for images in _chunks(len(similarity), 1, at_most=_IMAGES):
            known = similarity[images]
            # The softmax is summed in units of its largest term so far, which stays finite at any temperature.
            largest = known.amax(dim=1, keepdim=True)  # (images, 1)
            total = _sum_of_exponentials(known, largest, temperature)
            best = torch.empty(len(known), 0, dtype=torch.int64, device=similarity.device)
            for rows in _chunks(negatives, max(len(known), dim)):
                cosines = _compare(image_embeddings[images], negative_embeddings[rows])  # (images, rows)
                before, largest = largest, torch.maximum(largest, cosines.amax(dim=1, keepdim=True))
                total = total * ((before - largest) / temperature).exp()
                total = total + _sum_of_exponentials(cosines, largest, temperature)
                best = torch.cat([best, _to_keys(cosines, rows.start)], dim=1)
                best = best.topk(min(k, best.shape[1]), dim=1).values
            cosines, found = _from_keys(best)
            masses.append((((cosines - largest) / temperature).exp() / total).float())
            positions.append(found)
    return torch.cat(masses), torch.cat(positions)


def multi_matching(pair_similarity: Tensor, negative_similarity: Tensor, temperature: float = 0.01) -> Tensor:
    r"""Compute how much better an image fits negative labels alone than together with a label.

    An image that shows a label and something else fits "cat and sofa" better than "sofa". With \\( m_i \\) the cosine
    between the image and the text "<label> and <negative label>" of a pair, and \\( n_i \\) the one with its negative
    label alone: \\( 1 - \max_i \frac{\exp(m_i / T)}{\exp(m_i / T) + \exp(n_i / T)} \\), computed as
    \\( \sigma(\min_i (n_i - m_i) / T) \\), which keeps its precision near 0.

    Args:
        pair_similarity (`torch.Tensor` of shape `(batch, pairs)`):
            Cosines \\( m \\) between images and pairs, at least one pair.
        negative_similarity (`torch.Tensor` of shape `(batch, pairs)`):
            Cosines \\( n \\) between images and the negative labels of the pairs.
        temperature (`float`, *optional*, defaults to 0.01): \\( T > 0 \\).

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 1]; higher = more OOD.

    Raises:
        TypeError: An argument is not a tensor, or `temperature` not a number.
        ValueError: No pairs, other or different shapes, a value that is not finite, or a `temperature` that is not
            positive and finite in float32.

    Source: Ansari et al. 2025, the multi-matching score; their code pairs the 5 best labels with the 5 best negative
    labels.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import multi_matching
    >>> multi_matching(torch.tensor([[0.31, 0.22], [0.20, 0.19]]), torch.tensor([[0.28, 0.21], [0.25, 0.22]]))
    tensor([0.0474, 0.9526])

    ```
    """
    pair_similarity = check_matrix(pair_similarity, "pair_similarity")
    negative_similarity = check_matrix(negative_similarity, "negative_similarity")
    if pair_similarity.shape != negative_similarity.shape:
        raise ValueError(
            "`pair_similarity` and `negative_similarity` must have the same shape (batch, pairs), got "
            f"{tuple(pair_similarity.shape)} and {tuple(negative_similarity.shape)}."
        )
    check_temperature(temperature)
    return ((negative_similarity - pair_similarity).amin(dim=1) / temperature).sigmoid()


def _negative_share(
    similarity: Tensor,
    temperature: float,
    groups: Tensor,
    num_groups: int,
    compare: Callable[[slice, slice], Tensor],
    dim: int = 1,
) -> Tensor:
    """Average the shares of the groups; `compare` gives the cosines of some images with some negatives."""
    check_temperature(temperature)
    shares = [similarity.new_empty(0)]
    for images in _chunks(len(similarity), num_groups, at_most=_IMAGES):
        known = similarity[images]
        largest = known.amax(dim=1, keepdim=True).detach()  # (images, 1)
        log_mass = ((known - largest) / temperature).logsumexp(dim=1, keepdim=True)  # (images, 1)
        # In units of the mass of the labels. Thousands of terms are added one by one, hence in float64.
        masses = similarity.new_zeros(len(known), num_groups, dtype=torch.float64)
        for negatives in _chunks(len(groups), max(len(known), dim)):
            exponents = (compare(images, negatives) - largest) / temperature - log_mass  # (images, negatives)
            # Beyond 60 the share is 1 in float32 anyway, whereas the exponential would soon be infinite.
            masses = masses.index_add(1, groups[negatives], exponents.clamp(max=60).exp().double())
        shares.append((masses / (1 + masses)).mean(dim=1).float())
    return torch.cat(shares)


def check_num_groups(num_groups: int, negatives: int) -> None:
    """Check that so many negative labels can be divided into so many groups.

    Raises:
        TypeError: `num_groups` is no whole number.
        ValueError: There are none, or more than negative labels.
    """
    check_whole(num_groups, "num_groups")
    if not 1 <= num_groups <= negatives:
        raise ValueError(
            f"`num_groups` must be between 1 and the number of negative labels, got {num_groups} groups for "
            f"{negatives} negative labels; give more negative labels, or fewer groups, such as `num_groups=1`."
        )


def _assign_groups(
    negatives: int, num_groups: int, permutation: Tensor | None, seed: int, device: torch.device
) -> Tensor:
    """Find the group of each negative label but those that are left out."""
    check_num_groups(num_groups, negatives)
    check_whole(seed, "seed")
    kept = negatives - negatives % num_groups
    if permutation is None:
        permutation = torch.randperm(kept, generator=torch.Generator().manual_seed(seed))
    else:
        _check_permutation(permutation, kept, negatives, num_groups)
    groups = torch.empty(kept, dtype=torch.int64)
    groups[permutation.cpu()] = torch.arange(kept) // (kept // num_groups)
    return groups.to(device)


def _check_permutation(permutation: object, kept: int, negatives: int, num_groups: int) -> None:
    if not isinstance(permutation, Tensor):
        raise TypeError(f"`permutation` must be a torch.Tensor, got {type(permutation).__name__}.")
    if permutation.dtype != torch.int64:
        raise TypeError(f"`permutation` must hold int64 numbers, got dtype {permutation.dtype}.")
    if permutation.shape != (kept,):
        raise ValueError(
            f"`permutation` must have shape ({kept},), as {negatives - kept} of {negatives} negative labels are left "
            f"out to make {num_groups} groups of one size, got {tuple(permutation.shape)}."
        )
    if not torch.equal(permutation.cpu().sort().values, torch.arange(kept)):
        raise ValueError(f"`permutation` must hold each number from 0 to {kept - 1} once, as `torch.randperm` does.")


def _check_embeddings(
    similarity: Tensor, image_embeddings: Tensor, negative_embeddings: Tensor
) -> tuple[Tensor, Tensor]:
    """Check what is compared; return cosines and embeddings of the images as float32."""
    similarity = check_matrix(similarity, "similarity")
    image_embeddings = check_features(image_embeddings, "image_embeddings").float()
    _check_same_images(similarity, image_embeddings, "image_embeddings")
    if not isinstance(negative_embeddings, Tensor):
        raise TypeError(
            f"`negative_embeddings` must be a torch.Tensor of shape (negatives, dim), got "
            f"{type(negative_embeddings).__name__}."
        )
    if negative_embeddings.ndim != 2:
        raise ValueError(
            f"`negative_embeddings` must have shape (negatives, dim), got {tuple(negative_embeddings.shape)}."
        )
    if negative_embeddings.is_complex():
        raise ValueError(f"`negative_embeddings` must be real, got dtype {negative_embeddings.dtype}.")
    _check_any(negative_embeddings, "negative_embeddings", dim=0)
    if image_embeddings.shape[1] != negative_embeddings.shape[1]:
        raise ValueError(
            f"`image_embeddings` have {image_embeddings.shape[1]} dimensions, but `negative_embeddings` have "
            f"{negative_embeddings.shape[1]}; give embeddings of one model."
        )
    return similarity, image_embeddings


def _check_any(negatives: object, name: str, dim: int) -> None:
    if isinstance(negatives, Tensor) and negatives.ndim == 2 and negatives.shape[dim] == 0:
        raise ValueError(f"`{name}` has no negative labels, its shape is {tuple(negatives.shape)}; give at least one.")


def _check_same_images(similarity: Tensor, other: Tensor, name: str) -> None:
    if len(similarity) != len(other):
        raise ValueError(
            f"`similarity` and `{name}` must be of the same images, got {len(similarity)} and {len(other)} rows."
        )


def _compare(images: Tensor, negatives: Tensor) -> Tensor:
    """Compute the cosines `(images, negatives)`."""
    cosines = images @ negatives.float().T
    # The images are finite. Looking at the cosines is less work than looking at the embeddings.
    lowest, highest = cosines.aminmax()
    if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
        raise ValueError(
            "`negative_embeddings` has NaN or infinite values; look for damaged weights, or an encoder that overflows "
            "in half precision."
        )
    return cosines


def _sum_of_exponentials(values: Tensor, largest: Tensor, temperature: float) -> Tensor:
    """Sum `(images, 1)`, float64, in units of the exponential of `largest`."""
    return ((values - largest) / temperature).exp().sum(dim=1, keepdim=True, dtype=torch.float64)


def _to_keys(cosines: Tensor, start: int) -> Tensor:
    """Make whole numbers that are ordered as the cosines are and, where these are equal, the lower position first."""
    bits = cosines.view(torch.int32)
    # As whole numbers, the bits of negative floats are in reverse order.
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    positions = torch.arange(start, start + cosines.shape[1], device=cosines.device)
    return (bits.long() << 32) | (0xFFFFFFFF - positions)


def _from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Find the cosines and positions that keys were made of."""
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def _chunks(rows: int, values_per_row: int, at_most: int = _CHUNK) -> Iterator[slice]:
    step = max(1, min(at_most, _CHUNK // values_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
