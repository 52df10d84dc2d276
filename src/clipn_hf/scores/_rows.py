# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What scores on embeddings share: they go through them part by part, in bounded memory."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._checks import check_features, check_shape

# Values that a part of the computation holds: 16 MB in float32, 32 MB in float64.
CHUNK = 2**22
# What is less than this part of the largest value is what rounding makes of equal values.
ROUNDING = 1e-6


def chunks(rows: int, values_per_row: int) -> Iterator[slice]:
    """Split rows into slices, each of as many as there is room for."""
    step = max(1, CHUNK // values_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def blocks(rows: int) -> Iterator[slice]:
    """Split rows into slices, each of as many as can be compared with equally many at once."""
    return chunks(rows, math.isqrt(CHUNK) or 1)


def unit(vectors: Tensor, name: str) -> Tensor:
    """Divide vectors by their norms.

    Raises:
        ValueError: A norm is 0 or infinite.
    """
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    _check_norms(norms, name)
    return vectors / norms


def min_max(values: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Bring the least value to 0 and the largest to 1, or all to 0 where they differ by no more than rounding makes.

    Args:
        values (`torch.Tensor`): Of any shape and range, of a floating dtype.
        dim (`int` or `tuple` of `int`, *optional*, defaults to -1): Among which values the extremes are looked for.

    Returns:
        `torch.Tensor` of the same shape, in [0, 1].
    """
    low, high = values.amin(dim=dim, keepdim=True), values.amax(dim=dim, keepdim=True)
    extent = high - low
    is_constant = extent <= ROUNDING * torch.maximum(low.abs(), high.abs())
    return torch.where(is_constant, 0.0, (values - low) / extent.where(~is_constant, 1.0))


def row_norms(values: Tensor, name: str) -> Tensor:
    """Check embeddings as `check_features` does, in one pass; return their norms `(images,)`, float32.

    Raises:
        TypeError, ValueError: As `check_features`; also for norms that are 0 or infinite in float32.
    """
    check_shape(values, name)
    norms = [torch.linalg.vector_norm(values[rows].float(), dim=1) for rows in chunks(*values.shape)]
    found = torch.cat(norms) if norms else values.new_empty(0, dtype=torch.float32)
    if not _have_direction(found):
        check_features(values, name)
        _check_norms(found, name)
    return found


def check_dimensions(features: Tensor, dim: int, other: str) -> None:
    """Check that embeddings have as many dimensions as what they are compared with.

    Raises:
        ValueError: They have not.
    """
    if features.shape[1] != dim:
        raise ValueError(
            f"`features` have {features.shape[1]} dimensions, but `{other}` has {dim}; give embeddings of one model."
        )


def enumerate_some(numbers: Sequence[int] | Sequence[str], shown: int = 5) -> str:
    """Write the first numbers or names of a list, and how many more there are."""
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + more


def _have_direction(norms: Tensor) -> bool:
    return bool(((norms > 0) & torch.isfinite(norms)).all())


def _check_norms(norms: Tensor, name: str) -> None:
    if not _have_direction(norms):
        raise ValueError(
            f"`{name}` has embeddings that have no direction, because their norm is 0 or infinite in float32; look "
            "for damaged weights."
        )
