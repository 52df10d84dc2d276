# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Scores that compare an image embedding with those of ID images; class texts do not enter.

Nearest neighbors: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022,
https://arxiv.org/abs/2204.06507.
Mahalanobis distance: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
Adversarial Attacks", NeurIPS 2018, https://arxiv.org/abs/1807.03888.
Relative Mahalanobis distance: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
2021, https://arxiv.org/abs/2106.09022.
All three on the embeddings of CLIP: Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models
for Out-of-Distribution Detection", TMLR 2024, https://arxiv.org/abs/2303.05828.
"""

import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._checks import check_features, check_whole

# Values that one chunk of the computation holds: 64 MB in float32, 128 MB in float64.
_CHUNK = 2**24


def nearest_neighbors(
    features: Tensor, bank: Tensor, k: int = 1, reduction: Literal["mean", "kth"] = "mean"
) -> Tensor:
    r"""Compute the cosine distance to the nearest ID images.

    With \\( d_1 \le d_2 \le … \\) the distances \\( 1 - \cos(f, f_i) \\) to the embeddings in the bank:
    \\( \frac{1}{k} \sum_{i \le k} d_i \\) for `reduction="mean"`, \\( d_k \\) for `"kth"`.

    Every embedding in the bank is compared, in chunks, so that the memory needed does not grow with the bank. The
    neighbors are found in float32; their distances are then computed in float64, so that those of near copies keep
    their precision where \\( 1 - \cos \\) would round to 0.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, of any norm but 0.
        bank (`torch.Tensor` of shape `(images, dim)`): Those of ID images, of any norm but 0.
        k (`int`, *optional*, defaults to 1): How many neighbors count, at most the size of the bank.
        reduction (`"mean"` or `"kth"`, *optional*, defaults to `"mean"`):
            The mean of the `k` distances, or the largest of them.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, in [0, 2]; higher = more OOD.

    Raises:
        TypeError: `features` or `bank` is not a tensor, or `k` not a whole number.
        ValueError: Shapes that do not fit, an empty bank, a row of zeros, a value that is not finite, `k` outside its
            range, or an unknown `reduction`.

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
    bank = check_features(bank, "bank", min_images=1)
    _check_dimensions(features, bank.shape[1], "bank")
    check_whole(k, "k")
    if not 1 <= k <= len(bank):
        raise ValueError(f"`k` must be between 1 and the {len(bank)} images in `bank`, got {k}.")
    if reduction not in ("mean", "kth"):
        raise ValueError(f"`reduction` must be 'mean' or 'kth', got {reduction!r}.")
    chunks = [features.new_empty(0, k, dtype=torch.float64)]
    for rows in _chunks(len(features), k * features.shape[1]):
        queries = features[rows]
        neighbors = bank[_find_neighbors(queries, bank, k)]  # (rows, k, dim)
        # Half the squared distance of unit vectors is their cosine distance.
        difference = _unit(queries.double(), "features")[:, None] - _unit(neighbors.double(), "bank")
        chunks.append(difference.square().sum(dim=2) / 2)
    distances = torch.cat(chunks)  # (batch, k)
    return (distances.mean(dim=1) if reduction == "mean" else distances.amax(dim=1)).float()


class Gaussians(NamedTuple):
    """One Gaussian per class with a common covariance, and one of all classes, as [`fit_gaussians`] returns them.

    Args:
        class_means (`torch.Tensor` of shape `(classes, dim)`): The means of the classes, float64.
        class_precision (`torch.Tensor` of shape `(dim, dim)`): The inverse of their common covariance, float64.
        global_mean (`torch.Tensor` of shape `(dim,)`): The mean of all images, float64.
        global_precision (`torch.Tensor` of shape `(dim, dim)`): The inverse of the covariance of all images, float64.
    """

    class_means: Tensor
    class_precision: Tensor
    global_mean: Tensor
    global_precision: Tensor


def fit_gaussians(
    features: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
    tied: bool = False,
    shrinkage: float | None = None,
) -> Gaussians:
    r"""Fit Gaussians to the embeddings of labelled ID images.

    With \\( \hat\Sigma_c \\) the covariance of the \\( n_c \\) images of class c, with the denominator
    \\( n_c - 1 \\), the common covariance is the unweighted mean of \\( \hat\Sigma_c \\) over the classes. With `tied`
    it is the pooled one, \\( \sum_c (n_c - 1) \hat\Sigma_c / \sum_c (n_c - 1) \\). Classes with one image have a mean,
    but no part in it.

    A covariance of too few images cannot be inverted. Both covariances are then shrunk, to
    \\( (1 - \rho) \Sigma + \rho \frac{\operatorname{tr} \Sigma}{dim} I \\), with a warning that says by how much: with
    the same \\( \rho \\), because the relative distance would otherwise compare two amounts of shrinkage.

    Args:
        features (`torch.Tensor` of shape `(images, dim)`): Image embeddings; computed with in float64.
        labels (`torch.Tensor` of shape `(images,)`): The class of each image, whole numbers from 0.
        num_classes (`int`, *optional*): How many classes there are; by default, one more than the largest label.
        tied (`bool`, *optional*, defaults to `False`): Whether to pool the images of all classes.
        shrinkage (`float`, *optional*):
            \\( \rho \\) in [0, 1]. By default 0 where both covariances can be inverted, else the oracle approximating
            value of the common covariance. With 0, a covariance that cannot be inverted has its pseudo-inverse, which
            ignores every direction in which the images do not vary.

    Returns:
        [`Gaussians`]: Means and precision matrices, float64, on the device of `features`.

    Raises:
        TypeError: `features` or `labels` is not a tensor, `labels` does not hold whole numbers, or another argument
            has the wrong type.
        ValueError: Shapes that do not fit, fewer than two images, a value that is not finite, a label out of range, a
            class without images, no class with two images, or features that do not vary within the classes.

    Source: Lee et al. 2018, section 2.1; Ren et al. 2021; Adaloglou et al. 2024, whose code takes the unweighted
    mean. Shrinkage: Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE
    Transactions on Signal Processing 2010, https://arxiv.org/abs/0907.4698, equation 23.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import fit_gaussians
    >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [5.0, 0.0], [5.0, 2.0], [7.0, 2.0]])
    >>> fit_gaussians(features, torch.tensor([0, 0, 0, 1, 1, 1])).class_precision
    tensor([[ 1.0000, -0.5000],
            [-0.5000,  1.0000]], dtype=torch.float64)

    ```
    """
    features = check_features(features, "features", min_images=2)
    counts, order = _sort_by_label(labels, len(features), num_classes, features.device)
    if shrinkage is not None:
        _check_share(shrinkage, "shrinkage")
    images, dim = features.shape
    single = (counts == 1).nonzero().flatten().tolist()
    if len(single) == len(counts):
        raise ValueError(
            f"Each of the {len(counts)} classes in `labels` has one image only, which leaves no covariance; give at "
            "least two images of a class, or use the nearest neighbors."
        )
    if single:
        warnings.warn(
            f"{len(single)} of {len(counts)} classes in `labels` have one image only ({_enumerate(single)}); these "
            "images have no part in the covariance. Give at least two images of each class.",
            stacklevel=2,
        )

    class_means = features.new_empty(len(counts), dim, dtype=torch.float64)
    within, covariance = torch.zeros(2, dim, dim, dtype=torch.float64, device=features.device)
    for label, members in enumerate(order.split(counts.tolist())):
        embeddings = features[members].double()  # (images of the class, dim)
        class_means[label] = embeddings.mean(dim=0)
        centered = embeddings - class_means[label]
        scatter = centered.T @ centered
        within += scatter
        covariance += scatter / max(len(members) - 1, 1)
    # The scatter of all images is that within the classes plus that of the class means.
    weights = counts.double()[:, None]
    global_mean = (weights * class_means).sum(dim=0) / images
    between = class_means - global_mean
    global_covariance = (within + between.T @ (weights * between)) / (images - 1)
    freedom = counts[counts > 1].double() - 1
    covariance = within / freedom.sum() if tied else covariance / len(freedom)
    # Far below what differs between float32 numbers: the traces are sums of rounding errors.
    if covariance.trace() <= 1e-20 * (class_means.square().sum(dim=1).mean() + global_covariance.trace()):
        raise ValueError(
            f"`features` do not vary within the classes: all {images} embeddings equal the mean of their class. Give "
            "images that differ, and look for damaged weights."
        )

    rate = shrinkage
    if not rate and any(_is_singular(matrix) for matrix in (covariance, global_covariance)):
        if rate is None:
            # How many independent images an unweighted mean of covariances is worth
            worth = freedom.sum() if tied else len(freedom) ** 2 / (1 / freedom).sum()
            rate = _oracle_shrinkage(covariance, worth.item())
            remedy = f"they are shrunk towards a multiple of the identity, by {rate:.2g}"
        else:
            remedy = "their pseudo-inverses are used, which ignore the directions in which the images do not vary"
        advice = (
            f"Give at least {dim + len(counts)} images for the covariances as they are"
            if images < dim + len(counts)
            else "Look for dimensions that are constant, or that follow from others"
        )
        warnings.warn(
            f"The covariances of {images} images of {len(counts)} classes in {dim} dimensions cannot be inverted; "
            f"{remedy}. {advice}.",
            stacklevel=2,
        )
    class_precision, global_precision = (_invert(matrix, rate or 0.0) for matrix in (covariance, global_covariance))
    return Gaussians(class_means, class_precision, global_mean, global_precision)


def mahalanobis(features: Tensor, gaussians: Gaussians) -> Tensor:
    r"""Compute the squared Mahalanobis distance to the nearest class.

    \\( \min_c (f - \mu_c)^\top \Sigma^{-1} (f - \mu_c) \\), computed in float64.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, normalized as those of the fit were.
        gaussians ([`Gaussians`]): What [`fit_gaussians`] returned.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, not negative; higher = more OOD.

    Raises:
        TypeError: `features` is not a tensor.
        ValueError: Another shape or a value that is not finite.

    Source: Lee et al. 2018, equation 2.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import Gaussians, mahalanobis
    >>> means, identity = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double(), torch.eye(2).double()
    >>> mahalanobis(torch.tensor([[3.0, 2.0]]), Gaussians(means, identity, means.mean(dim=0), identity / 4))
    tensor([10.])

    ```
    """
    features = check_features(features, "features")
    _check_dimensions(features, gaussians.class_means.shape[1], "gaussians")
    return _smallest_distances(features, gaussians.class_means, gaussians.class_precision).float()


def relative_mahalanobis(features: Tensor, gaussians: Gaussians) -> Tensor:
    r"""Compute the squared Mahalanobis distance to the nearest class, less the one to all images together.

    \\( \min_c (f - \mu_c)^\top \Sigma^{-1} (f - \mu_c) - (f - \mu_0)^\top \Sigma_0^{-1} (f - \mu_0) \\), computed in
    float64. What is unusual for any image, whatever its class, cancels out.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, normalized as those of the fit were.
        gaussians ([`Gaussians`]): What [`fit_gaussians`] returned, of at least two classes.

    Returns:
        `torch.Tensor` of shape `(batch,)`, float32, unbounded, also negative; higher = more OOD.

    Raises:
        TypeError: `features` is not a tensor.
        ValueError: One class only, another shape, or a value that is not finite.

    Source: Ren et al. 2021.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import Gaussians, relative_mahalanobis
    >>> means, identity = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double(), torch.eye(2).double()
    >>> relative_mahalanobis(torch.tensor([[3.0, 2.0]]), Gaussians(means, identity, means.mean(dim=0), identity / 4))
    tensor([6.7500])

    ```
    """
    features = check_features(features, "features")
    _check_dimensions(features, gaussians.class_means.shape[1], "gaussians")
    if len(gaussians.class_means) < 2:
        raise ValueError(
            "`gaussians` has 1 class, whose Gaussian is also the one of all images, so that every score is 0; fit at "
            "least 2 classes, or use the Mahalanobis distance."
        )
    nearest = _smallest_distances(features, gaussians.class_means, gaussians.class_precision)
    everything = _smallest_distances(features, gaussians.global_mean[None], gaussians.global_precision)
    return (nearest - everything).float()


def _find_neighbors(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Find the rows `(queries, k)` of the bank with the largest cosines."""
    with torch.no_grad():
        queries = _unit(queries.float(), "features")
        best = queries.new_empty(len(queries), 0)
        found = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for rows in _chunks(len(bank), max(bank.shape[1], len(queries))):
            similarity = queries @ _unit(bank[rows].float(), "bank").T  # (queries, rows)
            similarity, positions = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best, order = torch.cat([best, similarity], dim=1).topk(min(k, rows.stop), dim=1)
            found = torch.cat([found, positions + rows.start], dim=1).gather(1, order)
        return found


def _smallest_distances(features: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Compute the smallest squared Mahalanobis distances `(batch,)` to any of the means, float64."""
    # Distances do not depend on the origin, but between large numbers they lose their last digits.
    origin = means.mean(dim=0)
    means = means - origin
    weighted_means = means @ precision  # (classes, dim)
    lengths = (weighted_means * means).sum(dim=1)  # (classes,)
    smallest = [features.new_empty(0, dtype=torch.float64)]
    for rows in _chunks(len(features), max(features.shape[1], len(means))):
        centered = features[rows].double() - origin  # (rows, dim)
        own = ((centered @ precision) * centered).sum(dim=1)
        nearest = (lengths - 2 * centered @ weighted_means.T).amin(dim=1)
        smallest.append((own + nearest).clamp(min=0))
    return torch.cat(smallest)


def _is_singular(covariance: Tensor) -> bool:
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return bool(eigenvalues[0] <= _rounding(eigenvalues))


def _invert(covariance: Tensor, shrinkage: float) -> Tensor:
    """Invert a covariance that has been shrunk; directions without variance have precision 0."""
    dim = len(covariance)
    target = covariance.trace() / dim * torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    eigenvalues, directions = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * target)
    inverse = torch.where(eigenvalues > _rounding(eigenvalues), 1 / eigenvalues, 0.0)
    precision = (directions * inverse) @ directions.T
    return (precision + precision.T) / 2


def _rounding(eigenvalues: Tensor) -> Tensor:
    """What an eigenvalue of 0 may come out as, given all in ascending order."""
    return eigenvalues[-1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps


def _oracle_shrinkage(covariance: Tensor, images: float) -> float:
    """Compute the oracle approximating shrinkage of a covariance that as many independent images estimate."""
    dim = len(covariance)
    squares, square_of_trace = covariance.square().sum().item(), covariance.trace().item() ** 2
    spread = (images + 1 - 2 / dim) * (squares - square_of_trace / dim)
    error = (1 - 2 / dim) * squares + square_of_trace
    return 1.0 if error >= spread else error / spread


def _sort_by_label(
    labels: Tensor, images: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Check labels; return how many images each class has, and the positions of the images by class."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"`labels` must be a torch.Tensor of shape (images,), got {type(labels).__name__}.")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"`labels` must hold whole numbers, got dtype {labels.dtype}; convert them with `.long()`.")
    if labels.shape != (images,):
        raise ValueError(f"`labels` must have shape ({images},), one for each image, got {tuple(labels.shape)}.")
    labels = labels.to(device, torch.int64)
    lowest, highest = labels.min().item(), labels.max().item()
    if num_classes is None:
        num_classes = int(highest) + 1
    check_whole(num_classes, "num_classes")
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"`labels` must be between 0 and {num_classes - 1} for {num_classes} classes, got {lowest} to {highest}."
        )
    counts = labels.bincount(minlength=num_classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"`labels` has no image for {len(empty)} of {num_classes} classes: {_enumerate(empty)}. Give images of "
            "each class, or leave out these classes."
        )
    return counts, labels.argsort(stable=True)


def _check_share(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__} {value!r}.")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}.")


def _check_dimensions(features: Tensor, dim: int, other: str) -> None:
    if features.shape[1] != dim:
        raise ValueError(
            f"`features` have {features.shape[1]} dimensions, but `{other}` has {dim}; give embeddings of one model."
        )


def _unit(vectors: Tensor, name: str) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    if not bool(((norms > 0) & torch.isfinite(norms)).all()):
        raise ValueError(
            f"`{name}` has embeddings that have no direction, because their norm is 0 or infinite in float32; look "
            "for damaged weights."
        )
    return vectors / norms


def _chunks(rows: int, values_per_row: int) -> Iterator[slice]:
    step = max(1, _CHUNK // values_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _enumerate(numbers: list[int], shown: int = 5) -> str:
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + more
