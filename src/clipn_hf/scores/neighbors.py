# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""The distance of an image embedding to the nearest ones of ID images.

Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, https://arxiv.org/abs/2204.06507.
On the embeddings of CLIP: Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models for
Out-of-Distribution Detection", TMLR 2024, https://arxiv.org/abs/2303.05828.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ._checks import check_features, check_shape, check_whole
from ._rows import blocks, check_dimensions, chunks, row_norms, unit

Backend = Literal["torch", "faiss"]
Reduction = Literal["mean", "kth"]

# Finds, of a part of the bank, given with its norms, the `k` rows with the largest cosines: both `(queries, k)`.
_Search = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]

# How many more candidates than neighbors are compared in float64: float32 may order near copies in another way.
_SPARE = 8


def nearest_neighbors(
    features: Tensor,
    bank: Tensor,
    k: int = 1,
    reduction: Reduction = "mean",
    backend: Backend = "torch",
) -> Tensor:
    r"""Compute the cosine distance to the nearest ID images.

    With \\( d_1 \le d_2 \le … \\) the distances \\( 1 - \cos(f, f_i) \\) to the embeddings in the bank:
    \\( \frac{1}{k} \sum_{i \le k} d_i \\) for `reduction="mean"`, \\( d_k \\) for `"kth"`.

    Every embedding in the bank is compared, part by part, so that the memory needed does not grow with the bank. A few
    more candidates than `k` are found in float32; their distances are then computed in float64, so that those of near
    copies keep their precision where \\( 1 - \cos \\) would round to 0. Copies in the bank count one by one, and their
    order does not matter.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, of any norm but 0.
        bank (`torch.Tensor` of shape `(images, dim)`): Those of ID images, of any norm but 0.
        k (`int`, *optional*, defaults to 1): How many neighbors count, at most the size of the bank.
        reduction (`"mean"` or `"kth"`, *optional*, defaults to `"mean"`):
            The mean of the `k` distances, or the largest of them.
        backend (`"torch"` or `"faiss"`, *optional*, defaults to `"torch"`):
            What finds the candidates. faiss compares with every embedding, too, on the CPU; the distances are the
            same, because they are computed in one way for both.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 2]; higher = more OOD.

    Raises:
        TypeError: `features` or `bank` is not a tensor, or `k` not a whole number.
        ValueError: Shapes that do not fit, an empty bank, a row of zeros, a value that is not finite, `k` outside its
            range, or an unknown `reduction` or `backend`.
        ImportError: faiss is not installed.

    Source: Sun et al. 2022, section 3 (the k-th); Adaloglou et al. 2024 (the mean).

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import nearest_neighbors
    >>> nearest_neighbors(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor([0.2000])
    >>> nearest_neighbors(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), k=2)
    tensor([0.3000])

    ```
    """
    features = check_features(features, "features")
    check_shape(bank, "bank", min_images=1)
    check_dimensions(features, bank.shape[1], "bank")
    k = check_neighbors(k, reduction, backend)
    if k > len(bank):
        raise ValueError(f"`k` must be between 1 and the {len(bank)} images in `bank`, got {k}.")
    search = _search if backend == "torch" else _load_faiss()
    norms = row_norms(bank.detach(), "bank")
    candidates = min(k + _SPARE, len(bank))
    nearest = [features.new_empty(0, k, dtype=torch.float64)]
    for queries in (features[rows] for rows in blocks(len(features))):
        positions = _find_candidates(queries, bank, norms, candidates, search)  # (rows, candidates)
        for rows in chunks(len(queries), candidates * features.shape[1]):
            neighbors = bank[positions[rows]]  # (rows, candidates, dim)
            # Half the squared distance of unit vectors is their cosine distance.
            difference = unit(queries[rows].double(), "features")[:, None] - unit(neighbors.double(), "bank")
            distances = difference.square().sum(dim=2) / 2
            nearest.append(distances.topk(k, dim=1, largest=False).values)
    distances = torch.cat(nearest)  # (batch, k)
    return (distances.mean(dim=1) if reduction == "mean" else distances.amax(dim=1)).float()


def check_neighbors(k: int, reduction: str, backend: str) -> int:
    """Check what [`nearest_neighbors`] is told before there are images, and return `k` as a number of Python.

    Raises:
        TypeError: `k` is not a whole number.
        ValueError: `k` is not positive, or there is no such `reduction` or `backend`.
    """
    k = check_whole(k, "k")
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    for name, value, known in (("reduction", reduction, get_args(Reduction)), ("backend", backend, get_args(Backend))):
        if value not in known:
            raise ValueError(f"`{name}` must be {' or '.join(map(repr, known))}, got {value!r}.")
    return k


@torch.no_grad()
def _find_candidates(queries: Tensor, bank: Tensor, norms: Tensor, count: int, search: _Search) -> Tensor:
    """Find the rows `(queries, count)` of the bank with the largest cosines."""
    queries = unit(queries.float(), "features")
    best = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for rows in chunks(len(bank), max(bank.shape[1], len(queries))):
        part = rows.stop - rows.start
        similarity, positions = search(queries, bank[rows].float(), norms[rows], min(count, part))
        best, order = torch.cat([best, similarity], dim=1).topk(min(count, rows.stop), dim=1)
        found = torch.cat([found, positions + rows.start], dim=1).gather(1, order)
    return found


def _search(queries: Tensor, part: Tensor, norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    similarity = (queries @ part.T).div_(norms)  # (queries, rows)
    best = similarity.topk(k, dim=1)
    return best.values, best.indices


def _load_faiss() -> _Search:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "`backend='faiss'` needs faiss, which is not installed; install it with `pip install 'clipn-hf[faiss]'`, "
            "or leave `backend` out."
        ) from error

    def search(queries: Tensor, part: Tensor, norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
        rows = queries.cpu().contiguous().numpy()
        others = (part / norms[:, None]).cpu().numpy()
        threads = faiss.omp_get_max_threads()
        # faiss has threads of its own; more of them than those of torch would slow both down.
        faiss.omp_set_num_threads(torch.get_num_threads())
        try:
            similarity, positions = faiss.knn(rows, others, k, metric=faiss.METRIC_INNER_PRODUCT)
        finally:
            faiss.omp_set_num_threads(threads)
        return torch.from_numpy(similarity).to(queries.device), torch.from_numpy(positions).to(queries.device)

    return search


__all__ = ["Backend", "Reduction", "check_neighbors", "nearest_neighbors"]
