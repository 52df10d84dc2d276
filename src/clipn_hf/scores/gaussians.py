# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""The distance of an image embedding to Gaussians that are fitted to those of ID images.

Mahalanobis distance: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
Adversarial Attacks", NeurIPS 2018, https://arxiv.org/abs/1807.03888.
Relative Mahalanobis distance: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
2021, https://arxiv.org/abs/2106.09022.
Both on the embeddings of CLIP: Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models for
Out-of-Distribution Detection", TMLR 2024, https://arxiv.org/abs/2303.05828.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._checks import check_features, check_share, check_whole
from ._rows import check_dimensions, chunks, enumerate_some

# How many times the rounding of the embeddings a variance must be. Sums that were rounded on the way to them, as those
# of logits are, differ by a few times what their last digit says.
_NOISE = 4.0


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
    features: Tensor | Iterable[Tensor],
    labels: Tensor,
    num_classes: int | None = None,
    tied: bool = False,
    shrinkage: float | None = None,
    class_names: Sequence[str] | None = None,
) -> Gaussians:
    r"""Fit Gaussians to the embeddings of labelled ID images.

    With \\( \hat\Sigma_c \\) the covariance of the \\( n_c \\) images of class c, with the denominator
    \\( n_c - 1 \\), the common covariance is the unweighted mean of \\( \hat\Sigma_c \\) over the classes. With `tied`
    it is the pooled one, \\( \sum_c (n_c - 1) \hat\Sigma_c / \sum_c (n_c - 1) \\). Classes with one image have a mean,
    but no part in it.

    The embeddings are read once, part by part, in any order of the classes: memory for \\( O(dim^2 + classes \cdot
    dim) \\) numbers is enough, however many images there are. Deviations are summed from the first image of a class,
    not from 0, so that an offset that all images share costs no precision.

    A covariance of too few images cannot be inverted; nor can one that in some direction has no more variance than the
    rounding of embeddings in float32 makes. Both covariances are then shrunk, to
    \\( (1 - \rho) \Sigma + \rho \frac{\operatorname{tr} \Sigma}{dim} I \\), with a warning that says by how much: with
    the same \\( \rho \\), because the relative distance would otherwise compare two amounts of shrinkage.

    Args:
        features (`torch.Tensor` of shape `(images, dim)` or `Iterable[torch.Tensor]`):
            Image embeddings; computed with in float64. An iterable, such as a generator, gives parts of them, of any
            number of images each, and is gone through once.
        labels (`torch.Tensor` of shape `(images,)`): The class of each image, whole numbers from 0.
        num_classes (`int`, *optional*): How many classes there are; by default, one more than the largest label.
        tied (`bool`, *optional*, defaults to `False`): Whether to pool the images of all classes.
        shrinkage (`float`, *optional*):
            \\( \rho \\) in [0, 1]. By default 0 where both covariances can be inverted, else the oracle approximating
            value of the common covariance. With 0, a covariance that cannot be inverted has its pseudo-inverse, which
            ignores every direction in which the images do not vary.
        class_names (`Sequence[str]`, *optional*): What errors and warnings call the classes; by default their numbers.

    Returns:
        [`Gaussians`]: Means and precision matrices, float64, on the device of `features`.

    Raises:
        TypeError: `features` or a part of it, or `labels` is not a tensor, `labels` does not hold whole numbers, or
            another argument has the wrong type.
        ValueError: Shapes that do not fit, fewer than two images, a value that is not finite, a label out of range,
            names of more or fewer classes, a class without images, no class with two images, or features that do not
            vary within the classes.

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
    if isinstance(features, Tensor):
        features = check_features(features, "features", min_images=2)
    check_gaussian_settings(tied, shrinkage)
    images = len(features) if isinstance(features, Tensor) else None
    counts = _count_labels(labels, images, num_classes, class_names)
    images = len(labels)
    single = (counts == 1).nonzero().flatten().tolist()
    if len(single) == len(counts):
        raise ValueError(
            f"Each of the {len(counts)} classes in `labels` has one image only, which leaves no covariance; give at "
            "least two images of a class, or use the nearest neighbors."
        )
    if single:
        warnings.warn(
            f"{len(single)} of {len(counts)} classes have one image only ({_enumerate_classes(single, class_names)}); "
            "these images have no part in the covariance. Give at least two images of each class.",
            stacklevel=2,
        )

    freedom = counts[counts > 1].double() - 1
    with torch.no_grad():
        class_means, within, covariance, noise = _scatter(features, labels, counts, tied)
    dim, device = class_means.shape[1], class_means.device
    counts, freedom = counts.to(device), freedom.to(device)
    # The scatter of all images is that within the classes plus that of the class means.
    weights = counts.double()[:, None]
    global_mean = (weights * class_means).sum(dim=0) / images
    between = class_means - global_mean
    global_covariance = (within + between.T @ (weights * between)) / (images - 1)
    covariance = within / freedom.sum() if tied else covariance / len(freedom)
    # Far below what differs between float32 numbers: the traces are sums of rounding errors.
    least = 1e-20 * (class_means.square().sum(dim=1).mean() + global_covariance.trace())
    if covariance.trace() <= torch.maximum(least, noise):
        raise ValueError(
            f"`features` do not vary within the classes: all {images} embeddings equal the mean of their class. Give "
            "images that differ, and look for damaged weights."
        )

    rate = shrinkage
    if not rate and any(_is_singular(matrix, noise) for matrix in (covariance, global_covariance)):
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
    class_precision, global_precision = (
        _invert(matrix, rate or 0.0, noise) for matrix in (covariance, global_covariance)
    )
    return Gaussians(class_means, class_precision, global_mean, global_precision)


def check_gaussian_settings(tied: object, shrinkage: object) -> None:
    """Check the settings of [`fit_gaussians`] that do not depend on the images.

    Raises:
        TypeError: One is of the wrong type.
        ValueError: `shrinkage` is outside of [0, 1].
    """
    if not isinstance(tied, bool | np.bool_):
        raise TypeError(f"`tied` must be True or False, got {type(tied).__name__} {tied!r}.")
    if shrinkage is not None:
        check_share(shrinkage, "shrinkage")


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
    check_dimensions(features, gaussians.class_means.shape[1], "gaussians")
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
    check_dimensions(features, gaussians.class_means.shape[1], "gaussians")
    if len(gaussians.class_means) < 2:
        raise ValueError(
            "`gaussians` has 1 class, whose Gaussian is also the one of all images, so that every score is 0; fit at "
            "least 2 classes, or use the Mahalanobis distance."
        )
    nearest = _smallest_distances(features, gaussians.class_means, gaussians.class_precision)
    everything = _smallest_distances(features, gaussians.global_mean[None], gaussians.global_precision)
    return (nearest - everything).float()


def _scatter(
    features: Tensor | Iterable[Tensor], labels: Tensor, counts: Tensor, tied: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Go through embeddings once, for the class means `(classes, dim)` and two sums `(dim, dim)` over the classes.

    One is the scatter of the images within their classes, the other the same with the weight 1 / (n - 1)
    for a class of n images, which is left at 0 where classes are `tied`. Last comes the variance, in any direction,
    that the rounding of the embeddings may account for.
    """
    images, classes = len(labels), len(counts)
    labels = labels.long()
    numbers = torch.arange(images, device=labels.device)
    first = numbers.new_full((classes,), images).scatter_reduce_(0, labels, numbers, "amin")
    start, precision = 0, 0.0
    origins = sums = within = weighted = weights = squares = torch.empty(0)
    for part in _parts(features, images):
        rows = slice(start, start + len(part))
        if start == 0:
            origins, sums = part.new_zeros(2, classes, part.shape[1], dtype=torch.float64)
            within, weighted = part.new_zeros(2, part.shape[1], part.shape[1], dtype=torch.float64)
            weights = 1 / (counts.to(part.device).double() - 1).clamp(min=1)
            squares = part.new_zeros((), dtype=torch.float64)
        start = rows.stop
        classes_of_part = labels[rows].to(part.device)
        is_first = (first[labels[rows]] == numbers[rows]).to(part.device)
        exact = part.double()
        squares += torch.linalg.vector_norm(exact).square()
        # What half precision loses is a part of the embeddings, and varies alike in all directions.
        precision = max(precision, min(torch.finfo(part.dtype).eps, torch.finfo(torch.float32).eps))
        origins[classes_of_part[is_first]] = exact[is_first]
        deviations = exact - origins[classes_of_part]
        sums.index_add_(0, classes_of_part, deviations)
        within.addmm_(deviations.T, deviations)
        if not tied:
            weighted.addmm_(deviations.T, weights[classes_of_part, None] * deviations)
    # What the deviations from the first images are more than those from the means.
    counts = counts.to(sums.device).double()[:, None]
    excess = sums / counts
    within -= excess.T @ (counts * excess)
    if not tied:
        weighted -= excess.T @ (weights[:, None] * counts * excess)
    # The mean square of a value, times the dimensions
    noise = _NOISE * precision**2 * squares / images
    return origins + excess, within, weighted, noise


def _parts(features: Tensor | Iterable[Tensor], images: int) -> Iterator[Tensor]:
    """Give embeddings in parts of bounded size, checked, as many in all as there are labels."""
    if isinstance(features, Tensor):
        for rows in chunks(*features.shape):
            yield features[rows]
        return
    if not isinstance(features, Iterable):
        raise TypeError(
            "`features` must be a torch.Tensor of shape (images, dim), or an iterable of these, got "
            f"{type(features).__name__}."
        )
    seen, dim = 0, None
    for number, given in enumerate(features):
        name = f"features[{number}]"
        part = check_features(given, name)
        if dim is not None and part.shape[1] != dim:
            raise ValueError(
                f"`{name}` has {part.shape[1]} dimensions, but the parts before have {dim}; give embeddings of one "
                "model."
            )
        dim, seen = part.shape[1], seen + len(part)
        if seen > images:
            raise ValueError(
                f"`features` have at least {seen} images, but `labels` has {images}; give one label for each image."
            )
        for rows in chunks(*part.shape):
            yield part[rows]
    if seen != images:
        raise ValueError(
            f"`features` have {seen} images, but `labels` has {images}; give one label for each image. A generator "
            "gives its parts only once."
        )


def _smallest_distances(features: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Compute the smallest squared Mahalanobis distances `(batch,)` to any of the means, float64."""
    # Distances do not depend on the origin, but between large numbers they lose their last digits.
    origin = means.mean(dim=0)
    means = means - origin
    weighted_means = means @ precision  # (classes, dim)
    lengths = (weighted_means * means).sum(dim=1)  # (classes,)
    smallest = [features.new_empty(0, dtype=torch.float64)]
    for rows in chunks(len(features), max(features.shape[1], len(means))):
        centered = features[rows].double() - origin  # (rows, dim)
        own = ((centered @ precision) * centered).sum(dim=1)
        nearest = (lengths - 2 * centered @ weighted_means.T).amin(dim=1)
        smallest.append((own + nearest).clamp(min=0))
    return torch.cat(smallest)


def _is_singular(covariance: Tensor, noise: Tensor) -> bool:
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return bool(eigenvalues[0] <= torch.maximum(_rounding(eigenvalues), noise))


def _invert(covariance: Tensor, shrinkage: float, noise: Tensor) -> Tensor:
    """Invert a covariance that has been shrunk; directions without variance have precision 0."""
    dim = len(covariance)
    target = covariance.trace() / dim * torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    eigenvalues, directions = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * target)
    # Of a covariance that was shrunk, every direction has variance that is none of the images.
    least = _rounding(eigenvalues) if shrinkage else torch.maximum(_rounding(eigenvalues), noise)
    inverse = torch.where(eigenvalues > least, 1 / eigenvalues, 0.0)
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


def _count_labels(
    labels: Tensor, images: int | None, num_classes: int | None, class_names: Sequence[str] | None
) -> Tensor:
    """Check labels; return how many images each class has."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"`labels` must be a torch.Tensor of shape (images,), got {type(labels).__name__}.")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"`labels` must hold whole numbers, got dtype {labels.dtype}; convert them with `.long()`.")
    if labels.ndim != 1 or (images is not None and len(labels) != images):
        expected = "(images,)" if images is None else f"({images},)"
        raise ValueError(f"`labels` must have shape {expected}, one for each image, got {tuple(labels.shape)}.")
    if len(labels) < 2:
        raise ValueError(f"`labels` has {len(labels)} images, but at least 2 are needed; give more.")
    lowest, highest = labels.min().item(), labels.max().item()
    if num_classes is None:
        num_classes = int(highest) + 1
    check_whole(num_classes, "num_classes")
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"`labels` must be between 0 and {num_classes - 1} for {num_classes} classes, got {lowest} to {highest}."
        )
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"`class_names` must be one name for each of the {num_classes} classes, got {len(class_names)}."
        )
    counts = labels.long().bincount(minlength=num_classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"`labels` has no image for {len(empty)} of {num_classes} classes: "
            f"{_enumerate_classes(empty, class_names)}. Give images of each class, or leave out these classes."
        )
    return counts


def _enumerate_classes(classes: list[int], names: Sequence[str] | None) -> str:
    return enumerate_some(classes) if names is None else enumerate_some([repr(names[number]) for number in classes])


__all__ = ["Gaussians", "check_gaussian_settings", "fit_gaussians", "mahalanobis", "relative_mahalanobis"]
