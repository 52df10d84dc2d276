# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""NegMining: the candidates that are the most distant from the labels (arXiv 2403.20078, section 3.1)."""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

# Cosines that are in memory at once: 16 MiB of them.
_CHUNK_COSINES = 2**22


def mine_negative_labels(
    id_text: Tensor,
    candidate_text: Tensor,
    quantile: float = 0.95,
    fraction: float = 0.15,
    *,
    progress: bool = False,
) -> Tensor:
    """Choose the candidates whose embeddings are the most distant from those of the labels.

    The nearness of a candidate is the quantile over the labels of its cosines with them, as `torch.quantile`
    interpolates it: with 0.95, one label in twenty may be nearer. The least near candidates are chosen. Memory is
    that of the nearnesses and of a chunk of cosines, whatever the number of candidates.

    Args:
        id_text (`torch.Tensor` of shape `(classes, dim)`): Text embeddings of the labels, of any norm.
        candidate_text (`torch.Tensor` of shape `(candidates, dim)`):
            Text embeddings of the candidates, of any norm, on the same device.
        quantile (`float`, *optional*, defaults to 0.95): In [0, 1]; 1 is the nearest label.
        fraction (`float`, *optional*, defaults to 0.15): How much of the candidates to choose, in [0, 1].
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar, if there is a terminal.

    Returns:
        `torch.Tensor` of shape `(floor(fraction * candidates),)`: Positions of candidates, int64, the most distant
        first, of equal ones the first.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError:
            The embeddings are not two matrices of one width, there are no labels or candidates, embeddings are not
            finite, or `quantile` or `fraction` is outside [0, 1].

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.negatives import mine_negative_labels
    >>> labels = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    >>> candidates = torch.tensor([[1.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    >>> mine_negative_labels(labels, candidates, fraction=0.5)
    tensor([2, 1])

    ```
    """
    check_share("quantile", quantile)
    check_share("fraction", fraction)
    nearness = quantile_similarity(id_text, candidate_text, quantile, progress=progress)
    return most_distant(nearness, fraction)


def quantile_similarity(
    id_text: Tensor, candidate_text: Tensor, quantile: float, rows: Tensor | None = None, *, progress: bool = False
) -> Tensor:
    """Compute the quantile over the labels of the cosines of each candidate with them.

    Args:
        id_text (`torch.Tensor` of shape `(classes, dim)`): As for [`mine_negative_labels`].
        candidate_text (`torch.Tensor` of shape `(candidates, dim)`): As for [`mine_negative_labels`].
        quantile (`float`): As for [`mine_negative_labels`].
        rows (`torch.Tensor` of shape `(chosen,)`, *optional*):
            Which candidates to compare, int64, of which no more than a chunk is copied; by default all.
        progress (`bool`, *optional*, defaults to `False`): As for [`mine_negative_labels`].

    Returns:
        `torch.Tensor` of shape `(candidates,)` or `(chosen,)`: Float32, what `torch.quantile` gives.

    Raises:
        TypeError, ValueError: As [`mine_negative_labels`].
    """
    _check_embeddings("id_text", id_text)
    _check_embeddings("candidate_text", candidate_text)
    if id_text.shape[1] != candidate_text.shape[1]:
        raise ValueError(
            f"`id_text` and `candidate_text` must have embeddings of one width, got {id_text.shape[1]} and "
            f"{candidate_text.shape[1]}; embed both with the same model."
        )
    labels = normalize(id_text.float(), dim=-1).T  # (dim, classes)
    chunk = max(1, _CHUNK_COSINES // max(labels.shape))
    count = len(candidate_text if rows is None else rows)
    nearness = torch.empty(count, device=candidate_text.device)
    with tqdm(total=count, desc="Mining", unit=" candidates", disable=None if progress else True) as bar:
        for start in range(0, count, chunk):
            among = slice(start, start + chunk)
            part = normalize(candidate_text[among if rows is None else rows[among]].float(), dim=-1)
            cosines = part @ labels  # (chunk, classes)
            if not torch.isfinite(cosines).all():
                raise ValueError(
                    "`id_text` or `candidate_text` holds NaN or infinite values; compute the embeddings again, in "
                    "float32."
                )
            nearness[start : start + chunk] = _quantile(cosines, quantile)
            bar.update(len(part))
    return nearness


def most_distant(nearness: Tensor, fraction: float) -> Tensor:
    """Choose the positions of the lowest values, lowest first, of equal ones the first.

    Args:
        nearness (`torch.Tensor` of shape `(candidates,)`): Values.
        fraction (`float`): How much of them to choose.

    Returns:
        `torch.Tensor` of shape `(floor(fraction * candidates),)`: Int64.
    """
    # Rounding must not take one away: 0.29 * 100 is a little less than 29.
    count = math.floor(fraction * len(nearness) + 1e-9)
    return nearness.sort(stable=True).indices[:count]


def check_share(name: str, value: object) -> None:
    """Refuse what is not in [0, 1].

    Raises:
        TypeError: It is no number.
        ValueError: It is outside, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number between 0 and 1, got {type(value).__name__}: {value!r}.")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")


def _check_embeddings(name: str, embeddings: object) -> None:
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        found = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor, got {found}.")
    if embeddings.ndim != 2 or not embeddings.numel():
        raise ValueError(
            f"`{name}` must have the shape (texts, dim) with one text at least, got {tuple(embeddings.shape)}."
        )


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """What `torch.quantile(values, quantile, dim=1)` gives, without sorting all: a fifth of the time or less."""
    last = values.shape[1] - 1
    rank = torch.tensor(quantile, dtype=values.dtype) * last
    lower = int(rank.floor())
    upper = int(rank.ceil())
    if last - lower <= upper:
        top = values.topk(last - lower + 1, dim=1).values
        below, above = top[:, -1], top[:, last - upper]
    else:
        bottom = values.topk(upper + 1, dim=1, largest=False).values
        below, above = bottom[:, lower], bottom[:, -1]
    return below.lerp(above, (rank - lower).to(values.device))


__all__ = ["check_share", "mine_negative_labels", "most_distant", "quantile_similarity"]
