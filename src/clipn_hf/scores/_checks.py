# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What every score requires of its input."""

import math
import operator
from numbers import Real

import torch
from torch import Tensor


def check_matrix(values: Tensor, name: str, min_classes: int = 1) -> Tensor:
    """Check `values` and return them as a finite float32 tensor of shape `(batch, classes)`.

    Raises:
        TypeError: `values` is not a tensor.
        ValueError: It has another number of dimensions, fewer than `min_classes` classes, or values that are not
            finite in float32.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor of shape (batch, classes), got {type(values).__name__}.")
    if values.ndim != 2:
        raise ValueError(f"`{name}` must have shape (batch, classes), got {tuple(values.shape)}.")
    if values.is_complex():
        raise ValueError(f"`{name}` must be real, got dtype {values.dtype}.")
    classes = values.shape[1]
    if classes == 0:
        raise ValueError(f"`{name}` has no classes, its shape is {tuple(values.shape)}; give at least one label.")
    if classes < min_classes:
        raise ValueError(
            f"`{name}` has {classes} class, but a softmax over one class is always 1; give at least {min_classes} "
            "labels, or use a score that works with one, such as the energy."
        )
    values = values.float()
    # The extremes are NaN where any value is, and take a tenth of the time of looking at each value.
    if values.numel() and not torch.isfinite(torch.stack(values.detach().aminmax())).all():
        bad = int((~torch.isfinite(values)).any(dim=1).sum())
        raise ValueError(
            f"`{name}` has NaN or infinite values in {bad} of {len(values)} rows; look for damaged weights, or an "
            "encoder that overflows in half precision."
        )
    return values


def check_pair(logits: Tensor, no_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Check both as `check_matrix` does, and that they belong together.

    Raises:
        TypeError, ValueError: As `check_matrix`; also when the shapes differ.
    """
    logits = check_matrix(logits, "logits")
    no_logits = check_matrix(no_logits, "no_logits")
    if logits.shape != no_logits.shape:
        raise ValueError(
            "`logits` and `no_logits` must have the same shape (batch, classes), got "
            f"{tuple(logits.shape)} and {tuple(no_logits.shape)}."
        )
    return logits, no_logits


def check_temperature(temperature: object) -> None:
    """Check that `temperature` is a number that is positive and finite in float32.

    Raises:
        TypeError: It is not a number.
        ValueError: In float32 it is zero, negative or not finite.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"`temperature` must be a number, got {type(temperature).__name__} {temperature!r}.")
    try:
        rounded = torch.tensor(float(temperature), dtype=torch.float32, device="cpu").item()
    except OverflowError:
        rounded = math.inf
    if not 0 < rounded < math.inf:
        raise ValueError(
            f"`temperature` must be positive and finite in float32, got {temperature}; give a number between 1e-44 "
            f"and 3e38, such as 1.0."
        )


def check_shape(values: Tensor, name: str, min_images: int = 0) -> None:
    """Check that `values` are embeddings of shape `(images, dim)`, without looking at each of them.

    Raises:
        TypeError: `values` is not a tensor.
        ValueError: It has another shape, or fewer than `min_images` images.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor of shape (images, dim), got {type(values).__name__}.")
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"`{name}` must have shape (images, dim), got {tuple(values.shape)}.")
    if values.is_complex():
        raise ValueError(f"`{name}` must be real, got dtype {values.dtype}.")
    if len(values) < min_images:
        raise ValueError(f"`{name}` has {len(values)} images, but at least {min_images} are needed; give more.")


def check_features(values: Tensor, name: str, min_images: int = 0) -> Tensor:
    """Check embeddings of shape `(images, dim)`; return them as they are, integers as float32.

    Raises:
        TypeError: `values` is not a tensor.
        ValueError: It has another shape, fewer than `min_images` images, or values that are not finite.
    """
    check_shape(values, name, min_images)
    if not values.is_floating_point():
        return values.float()
    # Not value by value, which would take as much memory again as a large bank.
    bad = ~(torch.isfinite(values.amin(dim=1)) & torch.isfinite(values.amax(dim=1)))
    if bad.any():
        raise ValueError(
            f"`{name}` has NaN or infinite values in {int(bad.sum())} of {len(values)} rows; look for damaged "
            "weights, or an encoder that overflows in half precision."
        )
    return values


def check_number(value: object, name: str) -> None:
    """Check that `value` is a number.

    Raises:
        TypeError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__} {value!r}.")


def check_whole(value: object, name: str) -> int:
    """Check that `value` is a whole number, of Python or of an array, and return it as that of Python.

    Raises:
        TypeError: It is not.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise TypeError(f"`{name}` must be a whole number, got {type(value).__name__} {value!r}.")


def check_seed(value: object, name: str = "seed") -> int:
    """Check that `value` can start every random generator there is, and return it as a whole number of Python.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is negative, or 2**32 or more.
    """
    seed = check_whole(value, name)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`{name}` must be between 0 and 2**32 - 1, got {seed}.")
    return seed


def check_share(value: object, name: str) -> None:
    """Check that `value` is a number from 0 to 1.

    Raises:
        TypeError: It is not a number.
        ValueError: It is outside of that range.
    """
    check_number(value, name)
    if not 0 <= float(value) <= 1:  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")


def check_vector(values: Tensor, name: str) -> Tensor:
    """Check `values` and return them as a finite float32 tensor of shape `(batch,)`.

    Raises:
        TypeError: `values` is not a tensor.
        ValueError: It has another number of dimensions, or values that are not finite in float32.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor of shape (batch,), got {type(values).__name__}.")
    if values.ndim != 1:
        raise ValueError(f"`{name}` must have shape (batch,), got {tuple(values.shape)}.")
    return check_matrix(values[:, None], name)[:, 0]


def check_weight(value: object, name: str) -> None:
    """Check that `value` is a number that is finite and not negative.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or not finite.
    """
    check_number(value, name)
    if not 0 <= float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must be finite and not negative, got {value}; give a number such as 1.0.")
