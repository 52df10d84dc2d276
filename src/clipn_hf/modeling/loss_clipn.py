# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of CLIPN (Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", arXiv 2308.12213).

For unit-norm embeddings of images `f`, texts `g` and "no" texts `h` and the logit scale `s`, the probability that text
`j` does *not* describe image `i` is `p_ij = exp(s f_i h_j) / (exp(s f_i g_j) + exp(s f_i h_j))`, the sigmoid of the
single difference `d_ij = s f_i (h_j - g_j)`. Its logarithm is taken from `d` directly: that is exact where the
quotient of exponentials overflows (beyond about 88 in float32), and needs one matrix product instead of two.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint


class CLIPNLoss(NamedTuple):
    """The weighted sum and its three unweighted terms, scalar tensors."""

    loss: Tensor
    itbo_yes_loss: Tensor
    itbo_no_loss: Tensor
    tso_loss: Tensor


def _upcast(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_embeddings(image_embeds: Tensor | None, text_embeds: Tensor, no_text_embeds: Tensor) -> None:
    embeddings = {"text_embeds": text_embeds, "no_text_embeds": no_text_embeds}
    if image_embeds is not None:
        embeddings = {"image_embeds": image_embeds, **embeddings}
    shapes = {name: tuple(tensor.shape) for name, tensor in embeddings.items()}
    if (
        any(len(shape) != 2 or shape[0] == 0 for shape in shapes.values())
        or len({shape[1] for shape in shapes.values()}) != 1
        or shapes["text_embeds"] != shapes["no_text_embeds"]
    ):
        raise ValueError(
            'Expected embeddings (N, dim), N >= 1, of one dim and as many "no" texts as texts, '
            f"got the shapes {shapes}."
        )
    for name, tensor in embeddings.items():
        if not tensor.is_floating_point():
            raise TypeError(f"`{name}` must be a floating point tensor, got {tensor.dtype}.")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum', got {reduction!r}.")


def _itbo_sums(
    image_embeds: Tensor, text_difference: Tensor, logit_scale: Tensor | float, matches: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of the terms of the matching and of the other pairs, over some rows of the (image, text) matrix."""
    difference = logit_scale * (image_embeds @ text_difference.T)  # (rows, N)
    # One pass serves both: -log(1 - p) = -logsigmoid(-d) for a match, -log(p) = -logsigmoid(d) otherwise
    terms = -logsigmoid(torch.where(matches, -difference, difference))
    zero = terms.new_zeros(())
    return torch.where(matches, terms, zero).sum(), torch.where(matches, zero, terms).sum()


def itbo_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    no_text_embeds: Tensor,
    logit_scale: Tensor | float,
    matches: Tensor | None = None,
    group_ids: Tensor | None = None,
    text_group_ids: Tensor | None = None,
    chunk_size: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, Tensor]:
    r"""Image-text binary-opposite loss, in its two halves.

    With `d_ij = logit_scale * f_i (h_j - g_j)` and `softplus(x) = log(1 + exp(x))`:

        L_yes = mean over matching pairs of softplus(d_ij)     = mean of -log(1 - p_ij)
        L_no  = mean over all other pairs of softplus(-d_ij)   = mean of -log(p_ij)

    A pair's own "no" text is a wrong description of its image, the "no" text of every other pair is a right one.

    The images may be some of those the texts belong to, as where several processes share one batch: then say with ids
    which belong together, and add up the sums of all processes.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, dim)`): Unit-norm image embeddings `f`.
        text_embeds (`torch.Tensor` of shape `(M, dim)`): Unit-norm text embeddings `g`, usually `M = N`.
        no_text_embeds (`torch.Tensor` of shape `(M, dim)`): Unit-norm "no" text embeddings `h`.
        logit_scale (`torch.Tensor` or `float`):
            The factor that turns cosines into logits itself, that is `model.logit_scale.exp()`.
        matches (`torch.BoolTensor` of shape `(N, M)`, *optional*):
            `matches[i, j]`: text `j` describes image `i`. Defaults to the diagonal.
        group_ids (`torch.LongTensor` of shape `(N,)`, *optional*):
            Pairs with the same id match each other, for example the captions of one image. Excludes `matches`.
        text_group_ids (`torch.LongTensor` of shape `(M,)`, *optional*):
            The ids of the texts, where these are not the texts of the N images. Defaults to `group_ids`.
        chunk_size (`int`, *optional*):
            Number of image rows worked on at a time, in the forward and in the backward pass: memory for
            `chunk_size * M` instead of `N * M` terms, at the price of computing each block twice.
        reduction (`str`, *optional*, defaults to `"mean"`): `"mean"`, or `"sum"` over the pairs of each half.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `L_yes` and `L_no`, scalars >= 0, float32 (float64 for float64 input). A
        half without any pair is 0: `L_no` for N = M = 1.

    Raises:
        ValueError: Shapes that do not agree, both `matches` and `group_ids`, `chunk_size` < 1, another `reduction`.
        TypeError: Embeddings that are not floating point, or `matches` that is not boolean.

    Source: arXiv 2308.12213, section 3.3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf import itbo_loss
    >>> f, g, h = torch.eye(2), torch.eye(2), -torch.eye(2)
    >>> [round(half.item(), 4) for half in itbo_loss(f, g, h, logit_scale=1.0)]
    [0.1269, 0.6931]

    ```
    """
    _check_embeddings(image_embeds, text_embeds, no_text_embeds)
    _check_reduction(reduction)
    num_images, num_texts = image_embeds.shape[0], text_embeds.shape[0]
    if matches is not None and (group_ids is not None or text_group_ids is not None):
        raise ValueError("Give either `matches` or `group_ids`, got both.")
    if matches is not None:
        if matches.dtype != torch.bool:
            raise TypeError(f"`matches` must be boolean, got {matches.dtype}.")
        if tuple(matches.shape) != (num_images, num_texts):
            raise ValueError(f"`matches` must have the shape {(num_images, num_texts)}, got {tuple(matches.shape)}.")
    if group_ids is None:
        group_ids = torch.arange(num_images, device=image_embeds.device)
    if text_group_ids is None:
        text_group_ids = group_ids
    if matches is None and (tuple(group_ids.shape), tuple(text_group_ids.shape)) != ((num_images,), (num_texts,)):
        raise ValueError(
            f"There are {num_images} images and {num_texts} texts, which belong together row by row when there is one "
            f"id for each and as many of both; got `group_ids` for {tuple(group_ids.shape)} images and "
            f"{tuple(text_group_ids.shape)} texts. Where the numbers differ, give `group_ids` and `text_group_ids`."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1 or None, got {chunk_size}.")

    # Autocast would run the matrix product in half precision, an error of up to 0.5 in a logit of 100.
    with torch.autocast(device_type=image_embeds.device.type, enabled=False):
        image_embeds = _upcast(image_embeds)
        text_difference = _upcast(no_text_embeds) - _upcast(text_embeds)
        if isinstance(logit_scale, Tensor):
            logit_scale = _upcast(logit_scale)

        rows = num_images if chunk_size is None else chunk_size
        yes_sum, no_sum = image_embeds.new_zeros(()), image_embeds.new_zeros(())
        num_matches = image_embeds.new_zeros((), dtype=torch.long)
        for start in range(0, num_images, rows):
            block = slice(start, start + rows)
            # Built block by block: an (N, M) mask would be the largest tensor of a chunked run
            block_matches = matches[block] if matches is not None else group_ids[block, None] == text_group_ids
            arguments = (image_embeds[block], text_difference, logit_scale, block_matches)
            if rows < num_images:
                block_sums = checkpoint(_itbo_sums, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                block_sums = _itbo_sums(*arguments)
            yes_sum, no_sum = yes_sum + block_sums[0], no_sum + block_sums[1]
            num_matches = num_matches + block_matches.sum()
        if reduction == "sum":
            return yes_sum, no_sum
        num_others = num_images * num_texts - num_matches
        return yes_sum / num_matches.clamp(min=1), no_sum / num_others.clamp(min=1)


def tso_loss(text_embeds: Tensor, no_text_embeds: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    r"""Text semantic-opposite loss: pushes each "no" text away from its own text.

        L_tso = mean over i of 2 - sqrt(2 - 2 g_i h_i + 0.0001)

    that is 2 minus the Euclidean distance of the two unit vectors, smoothed at zero.

    Args:
        text_embeds (`torch.Tensor` of shape `(N, dim)`): Unit-norm text embeddings `g`.
        no_text_embeds (`torch.Tensor` of shape `(N, dim)`): Unit-norm "no" text embeddings `h`.
        reduction (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"sum"` over i.

    Returns:
        `torch.Tensor`: A scalar from about 0 (opposite) to 1.99 (identical), float32 (float64 for float64 input).

    Raises:
        ValueError: Shapes that do not agree, or another `reduction`.
        TypeError: Embeddings that are not floating point.

    Source: arXiv 2308.12213, section 3.3; the smoothing constant is that of the authors' published code.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf import tso_loss
    >>> round(tso_loss(torch.eye(3), torch.eye(3)).item(), 4), round(tso_loss(torch.eye(3), -torch.eye(3)).item(), 4)
    (1.99, -0.0)

    ```
    """
    _check_embeddings(None, text_embeds, no_text_embeds)
    _check_reduction(reduction)
    cosines = (_upcast(text_embeds) * _upcast(no_text_embeds)).sum(dim=-1)  # (N,)
    # Vectors that were rounded to half precision after normalisation can have a cosine above 1
    squared_distances = (2 - 2 * cosines + 1e-4).clamp(min=1e-6)
    terms = 2 - squared_distances.sqrt()  # (N,)
    return terms.mean() if reduction == "mean" else terms.sum()


def clipn_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    no_text_embeds: Tensor,
    logit_scale: Tensor | float,
    yes_weight: float = 0.5,
    no_weight: float = 0.5,
    tso_weight: float = 0.5,
    matches: Tensor | None = None,
    group_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> CLIPNLoss:
    r"""The loss CLIPN is trained with: `yes_weight * L_yes + no_weight * L_no + tso_weight * L_tso`.

    Args:
        image_embeds, text_embeds, no_text_embeds, logit_scale, matches, group_ids, chunk_size:
            As in [`itbo_loss`].
        yes_weight (`float`, *optional*, defaults to 0.5): Weight of `L_yes`.
        no_weight (`float`, *optional*, defaults to 0.5): Weight of `L_no`.
        tso_weight (`float`, *optional*, defaults to 0.5): Weight of `L_tso`.

    Returns:
        [`CLIPNLoss`]: `(loss, itbo_yes_loss, itbo_no_loss, tso_loss)`; the three terms are not weighted.

    Raises:
        ValueError, TypeError: As [`itbo_loss`] and [`tso_loss`].

    Source: arXiv 2308.12213, section 3.3, which writes the plain sum; the authors' published code halves it, and so do
    the defaults.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf import clipn_loss
    >>> f, g, h = torch.eye(2), torch.eye(2), -torch.eye(2)
    >>> round(clipn_loss(f, g, h, logit_scale=1.0).loss.item(), 3)
    0.41

    ```
    """
    yes_loss, no_loss = itbo_loss(
        image_embeds, text_embeds, no_text_embeds, logit_scale, matches, group_ids, chunk_size=chunk_size
    )
    opposite_loss = tso_loss(text_embeds, no_text_embeds)
    loss = yes_weight * yes_loss + no_weight * no_loss + tso_weight * opposite_loss
    return CLIPNLoss(loss, yes_loss, no_loss, opposite_loss)


__all__ = ["CLIPNLoss", "clipn_loss", "itbo_loss", "tso_loss"]
