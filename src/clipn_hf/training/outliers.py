# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How CLIP-OS makes outliers of ID images: from all patches to those of the class, and from two classes to neither.

Sun et al., "CLIP-driven Outliers Synthesis for few-shot OOD detection", 2024, https://arxiv.org/abs/2404.00323. No
code is published; `docs/clip_os.md` says what was chosen where the paper leaves a choice.

Every mechanism is a pure function that can be left out: blending with `beta=0`, the mask with `mask=None`, and
outliers by mix-up in favour of any others.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..scores._checks import check_number, check_share, check_whole
from ..scores._rows import ROUNDING, min_max, unit

ThresholdRule = Literal["mean", "otsu"]


def blend_patch_context(patches: Tensor, beta: float, grid: tuple[int, int] | None = None) -> Tensor:
    r"""Blend each patch with the mean of its neighbourhood.

    \\( z_p \leftarrow (1 - \beta) z_p + \frac{\beta}{|N_p|} \sum_{q \in N_p} z_q \\) where \\( N_p \\) is the 3×3
    square around the patch, itself included. At the border of the image \\( N_p \\) has the 6 or 4 patches that exist,
    so that a constant image stays as it is.

    Args:
        patches (`torch.Tensor` of shape `(batch, patches, dim)`): Features of patches \\( z \\), row by row.
        beta (`float`): How much the neighbourhood counts, \\( \beta \\) in [0, 1]; with 0 nothing is blended.
        grid (`tuple` of two `int`, *optional*): Rows and columns of the patches; by default as many of both.

    Returns:
        `torch.Tensor` of shape `(batch, patches, dim)`: Computed in float32 or more, in the dtype of `patches`; with
        `beta=0` `patches` itself.

    Raises:
        TypeError: `patches` is not a tensor, `beta` not a number, or `grid` not two whole numbers.
        ValueError: Another shape, values that are not finite, `beta` outside of its range, or a number of patches that
            does not fit `grid`, or without `grid` is no square.

    Source: Sun et al. 2024, patch uniform convolution.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training.outliers import blend_patch_context
    >>> patches = torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0, 0])[None, :, None]
    >>> blend_patch_context(patches, beta=1.0).view(3, 3)
    tensor([[2.2500, 1.5000, 0.0000],
            [1.5000, 1.0000, 0.0000],
            [0.0000, 0.0000, 0.0000]])

    ```
    """
    _check_patches(patches)
    check_share(beta, "beta")
    rows, columns = _grid(patches.shape[1], grid)
    if beta == 0:
        return patches
    values = _at_least_float32(patches)
    image = values.transpose(1, 2).unflatten(2, (rows, columns))  # (batch, dim, rows, columns)
    means = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return torch.lerp(values, means.flatten(2).transpose(1, 2), float(beta)).to(patches.dtype)


def surgery_discrepancy_mask(
    surgery_map: Tensor, clip_map: Tensor, threshold: ThresholdRule | float = "mean"
) -> Tensor:
    r"""Select the patches that show the class of their image.

    \\( d_p = n(s)_p - n(c)_p \\), selected where \\( d_p > t \\), with
    \\( n(x)_p = (x_p - \min x) / (\max x - \min x) \\) over the patches of an image. CLIP's own map \\( c \\) is known
    to be inverted, high on the background, whereas the map \\( s \\) of CLIP Surgery is high on what the text names.

    No row is empty: where no patch exceeds the threshold, those with the largest difference are selected, which for
    maps that are constant, or equal, are all. A map whose values differ by no more than rounding makes counts as
    constant, with \\( n = 0 \\).

    Args:
        surgery_map (`torch.Tensor` of shape `(batch, patches)`):
            Cosines \\( s \\) between patches, on the surgery path, and the text of the class of their image.
        clip_map (`torch.Tensor` of shape `(batch, patches)`): Those of the patches on CLIP's own path, \\( c \\).
        threshold (`str` or `float`, *optional*, defaults to `"mean"`):
            \\( t \\) of each image: `"mean"` of its differences; `"otsu"`, which splits them into the two groups whose
            means are farthest apart (largest variance between the groups); or the same number in [-1, 1] for all
            images, such as 0 for "more than CLIP says".

    Returns:
        `torch.Tensor` of shape `(batch, patches)`, bool; True = shows the class. It has no gradient.

    Raises:
        TypeError: A map is not a tensor, or `threshold` neither a text nor a number.
        ValueError: Maps of other or different shapes, without patches, or with values that are not finite, or a
            `threshold` that does not exist or is outside its range.

    Source: Sun et al. 2024, CLIP-surgery-discrepancy masking; Li et al., "A closer look at the explainability of
    Contrastive Language-Image Pre-training", Pattern Recognition 2025, https://arxiv.org/abs/2304.05653; Otsu, "A
    Threshold Selection Method from Gray-Level Histograms", 1979.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training.outliers import surgery_discrepancy_mask
    >>> surgery_map = torch.tensor([[0.1, 0.3, 0.2, 0.1]])
    >>> clip_map = torch.tensor([[0.3, 0.1, 0.2, 0.2]])
    >>> surgery_discrepancy_mask(surgery_map, clip_map)
    tensor([[False,  True,  True, False]])
    >>> surgery_discrepancy_mask(surgery_map, clip_map, threshold="otsu")
    tensor([[False,  True, False, False]])

    ```
    """
    surgery_map, clip_map = _check_map(surgery_map, "surgery_map"), _check_map(clip_map, "clip_map")
    if surgery_map.shape != clip_map.shape:
        raise ValueError(
            "`surgery_map` and `clip_map` must have the same shape (batch, patches), got "
            f"{tuple(surgery_map.shape)} and {tuple(clip_map.shape)}."
        )
    difference = min_max(surgery_map) - min_max(clip_map)  # (batch, patches), in [-1, 1]
    if isinstance(threshold, str):
        if threshold not in get_args(ThresholdRule):
            known = ", ".join(map(repr, get_args(ThresholdRule)))
            raise ValueError(f"`threshold` must be one of {known}, or a number in [-1, 1], got {threshold!r}.")
        levels = _otsu(difference) if threshold == "otsu" else difference.mean(dim=1, keepdim=True)
    else:
        check_number(threshold, "threshold")
        if not -1 <= threshold <= 1:
            raise ValueError(f"`threshold` must be between -1 and 1, where differences lie, got {threshold}.")
        levels = torch.full_like(difference[:, :1], float(threshold))
    largest = difference.amax(dim=1, keepdim=True)
    # Sums of equal numbers may round to less than these.
    lost = largest - levels <= ROUNDING
    return torch.where(lost, difference >= largest - ROUNDING, difference > levels)


def id_relevant_features(patches: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Average the selected patches of each image.

    \\( \bar z / \lVert \bar z \rVert \\) with \\( \bar z \\) the mean of the selected patches. These are averaged as
    they are: give them with unit norm if each is to count alike.

    Args:
        patches (`torch.Tensor` of shape `(batch, patches, dim)`): Features of patches.
        mask (`torch.Tensor` of shape `(batch, patches)`, *optional*):
            Which to take, bool, as [`surgery_discrepancy_mask`] gives it; by default all.

    Returns:
        `torch.Tensor` of shape `(batch, dim)`: Of unit norm, float32 or more.

    Raises:
        TypeError: An argument is not a tensor, or `mask` not of bool.
        ValueError: Shapes that do not fit, values that are not finite, an image of which no patch is selected, or
            patches whose mean has no direction, because it is 0 or overflows.

    Source: Sun et al. 2024, CLIP-surgery-discrepancy masking.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training.outliers import id_relevant_features
    >>> patches = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [5.0, -9.0]]])
    >>> id_relevant_features(patches, torch.tensor([[True, True, False]]))
    tensor([[0.6000, 0.8000]])

    ```
    """
    _check_patches(patches)
    values = _at_least_float32(patches)
    if mask is None:
        return unit(values.mean(dim=1), "patches")
    if not isinstance(mask, Tensor):
        raise TypeError(f"`mask` must be a torch.Tensor of shape (batch, patches), got {type(mask).__name__}.")
    if mask.dtype != torch.bool:
        raise TypeError(f"`mask` must be of bool, got {mask.dtype}; compare it with a threshold.")
    if mask.shape != patches.shape[:2]:
        raise ValueError(
            f"`mask` must have the shape {tuple(patches.shape[:2])} of the patches, got {tuple(mask.shape)}."
        )
    counts = mask.sum(dim=1, keepdim=True)  # (batch, 1)
    if not counts.all():
        raise ValueError(
            f"`mask` selects no patch of {int((counts == 0).sum())} of {len(mask)} images; leave these images out, or "
            "select at least one patch of each."
        )
    # Not as a matrix product, which autocast would compute in half precision.
    return unit((values * mask[:, :, None]).sum(dim=1) / counts, "patches")


def synthesize_outliers(
    features: Tensor,
    labels: Tensor,
    alpha: float,
    num_outliers: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mix features of two different classes, so that they show neither.

    \\( v / \lVert v \rVert \\) with \\( v = \lambda f_i + (1 - \lambda) f_j \\), \\( y_i \neq y_j \\) and
    \\( \lambda \sim \operatorname{Beta}(\alpha, \alpha) \\).

    Every feature is \\( f_i \\) equally often, one time more or less; \\( f_j \\) is each of the features of the other
    classes with the same probability. All is drawn at once, from one generator, on its device, so that the same seed
    gives the same outliers wherever the features are. Of opposite features that cancel out, a direction at right
    angles to both takes the place.

    Args:
        features (`torch.Tensor` of shape `(features, dim)`): ID-relevant features \\( f \\); their norms do not count.
        labels (`torch.Tensor` of shape `(features,)`): The class \\( y \\) of each, whole numbers.
        alpha (`float`): \\( \alpha > 0 \\). Below 1 most outliers are near one of the two features; 1 makes all
            mixtures alike; the larger, the nearer to the middle.
        num_outliers (`int`, *optional*): How many to make; by default as many as features.
        generator (`torch.Generator`, *optional*): What to draw from; by default what `torch.manual_seed` seeds.

    Returns:
        `torch.Tensor` of shape `(num_outliers, dim)`: Of unit norm, float32 or more.

    Raises:
        TypeError: `features` or `labels` is not a tensor, `alpha` not a number, `num_outliers` not a whole one or
            `generator` not one.
        ValueError: Shapes that do not fit, no two classes, features without direction, an `alpha` that is not positive
            and finite, or a `num_outliers` below 1.

    Source: Sun et al. 2024, outlier synthesis; Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training.outliers import synthesize_outliers
    >>> features, labels = torch.eye(3), torch.tensor([0, 0, 1])
    >>> outliers = synthesize_outliers(features, labels, alpha=1e9, generator=torch.Generator().manual_seed(0))
    >>> (outliers.square() * 10).round()
    tensor([[5., 0., 5.],
            [0., 5., 5.],
            [0., 5., 5.]])

    ```
    """
    features, labels = _check_labelled(features, labels)
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(
            f"`generator` must be a torch.Generator, got {type(generator).__name__} {generator!r}; give "
            "`torch.Generator().manual_seed(seed)`."
        )
    check_number(alpha, "alpha")
    if not 0 < float(alpha) < math.inf:
        raise ValueError(f"`alpha` must be positive and finite, such as 1.0, got {alpha}.")
    count = len(features) if num_outliers is None else check_whole(num_outliers, "num_outliers")
    if count < 1:
        raise ValueError(f"`num_outliers` must be at least 1, got {count}.")
    anchors, partners = _draw_pairs(labels, count, generator)
    shares = _draw_symmetric_beta(alpha, count, generator).to(features)[:, None]  # (outliers, 1)
    first, second = features[anchors], features[partners]
    mixed = torch.lerp(second, first, shares)
    cancelled = torch.linalg.vector_norm(mixed.detach(), dim=1, keepdim=True) < ROUNDING
    return unit(torch.where(cancelled, _at_right_angles(first.detach()), mixed), "features")


def _draw_pairs(labels: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw `count` pairs of positions with different labels: each position first equally often, any partner alike."""
    device = torch.device("cpu") if generator is None else generator.device
    _, of_class = labels.to(device).unique(return_inverse=True)
    total, sizes = len(of_class), of_class.bincount()
    order = of_class.argsort(stable=True)  # Positions, class after class
    rest = torch.randperm(total, generator=generator, device=device)[: count % total]
    anchors = torch.cat([torch.arange(total, device=device).repeat(count // total), rest])
    own = of_class[anchors]
    # Going round, all that is not of the own class comes after it and before it again.
    others = total - sizes[own]
    steps = (torch.rand(count, generator=generator, dtype=torch.float64, device=device) * others).long()
    ends = sizes.cumsum(0)[own]
    partners = order[(ends + steps.minimum(others - 1)) % total]
    return anchors.to(labels.device), partners.to(labels.device)


def _draw_symmetric_beta(alpha: float, count: int, generator: torch.Generator | None) -> Tensor:
    r"""Draw `(count,)` numbers from Beta(α, α), float64, of two uniform ones each.

    For \\( T \\) of Student's distribution with \\( 2 \alpha \\) degrees of freedom, which Bailey (1994) draws by
    \\( T^2 / 2 \alpha = (U^{-1/\alpha} - 1) \cos^2 2 \pi V \\), the sine \\( T / \sqrt{2 \alpha + T^2} \\) lies
    symmetrically in [-1, 1], and in [0, 1] is Beta distributed. The distributions of torch take no generator.
    """
    device = torch.device("cpu") if generator is None else generator.device
    uniform, turn = torch.rand(2, count, generator=generator, dtype=torch.float64, device=device)
    cosine = torch.cos(2 * math.pi * turn)
    # From (0, 1], whose logarithm is finite. The difference keeps its digits where alpha is large.
    ratio = torch.expm1(-torch.log1p(-uniform) / alpha) * cosine.square()
    return (1 + cosine.sign() * (1 + 1 / ratio).rsqrt()) / 2


def _at_right_angles(vectors: Tensor) -> Tensor:
    """A direction `(rows, dim)` at right angles to each: of the axis that is least like it, what is left of it."""
    axes = F.one_hot(vectors.abs().argmin(dim=1), vectors.shape[1]).to(vectors)
    return axes - (axes * vectors).sum(dim=1, keepdim=True) * vectors


def _otsu(values: Tensor) -> Tensor:
    """The largest number `(batch, 1)` of the lower one of two groups, such that their means are farthest apart."""
    ascending = values.sort(dim=1).values
    patches = values.shape[1]
    if patches == 1:
        return ascending
    sizes = torch.arange(1, patches, device=values.device)
    sums = ascending.cumsum(dim=1)
    lower, total = sums[:, :-1], sums[:, -1:]
    gap = (total - lower) / (patches - sizes) - lower / sizes
    best = (sizes * (patches - sizes) * gap.square()).argmax(dim=1, keepdim=True)
    return ascending.gather(1, best)


def _grid(patches: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is None:
        side = math.isqrt(patches)
        if side * side != patches:
            raise ValueError(
                f"`patches` has {patches} patches, which make no square; give `grid`, their rows and columns."
            )
        return side, side
    lengths: object = grid
    if not isinstance(lengths, Sequence) or len(lengths) != 2:
        raise TypeError(f"`grid` must be two numbers, rows and columns, such as (7, 7), got {grid!r}.")
    rows, columns = (check_whole(length, "grid") for length in lengths)
    if rows < 1 or columns < 1 or rows * columns != patches:
        raise ValueError(f"`grid` must be rows and columns of {patches} patches, got {rows} × {columns}.")
    return rows, columns


def _check_patches(patches: Tensor) -> None:
    if not isinstance(patches, Tensor):
        raise TypeError(
            f"`patches` must be a torch.Tensor of shape (batch, patches, dim), got {type(patches).__name__}."
        )
    if patches.ndim != 3 or 0 in patches.shape[1:] or not patches.is_floating_point():
        raise ValueError(
            "`patches` must have shape (batch, patches, dim) and a floating dtype, got "
            f"{tuple(patches.shape)} of {patches.dtype}."
        )
    _check_finite(patches, "patches")


def _check_finite(values: Tensor, name: str) -> None:
    # The extremes are NaN where any value is, and take a tenth of the time of looking at each value.
    least, largest = values.detach().aminmax() if values.numel() else (values.new_zeros(()), values.new_zeros(()))
    if not (torch.isfinite(least) & torch.isfinite(largest)):
        raise ValueError(
            f"`{name}` has NaN or infinite values; look for damaged weights, or an encoder that overflows in half "
            "precision."
        )


def _check_map(values: Tensor, name: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor of shape (batch, patches), got {type(values).__name__}.")
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"`{name}` must have shape (batch, patches), got {tuple(values.shape)}.")
    values = _at_least_float32(values.detach())
    _check_finite(values, name)
    return values


def _check_labelled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    for name, given, shape in (("features", features, "(features, dim)"), ("labels", labels, "(features,)")):
        if not isinstance(given, Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor of shape {shape}, got {type(given).__name__}.")
    if features.ndim != 2 or features.shape[1] < 2:
        raise ValueError(
            f"`features` must have shape (features, dim), of at least 2 dimensions, got {tuple(features.shape)}."
        )
    if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"`labels` must be one whole number for each of the {len(features)} features, got shape "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    different = len(labels.unique())
    if different < 2:
        raise ValueError(
            f"`labels` has {different} class{'es' if different == 0 else ''}, but outliers are mixed of two different "
            "ones; give features of at least two classes."
        )
    return unit(_at_least_float32(features), "features"), labels


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


__all__ = ["blend_patch_context", "id_relevant_features", "surgery_discrepancy_mask", "synthesize_outliers"]
