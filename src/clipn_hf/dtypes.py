# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Names of floating-point types."""

import torch


def floating_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Find the floating-point type that `dtype` names.

    Args:
        dtype (`str` or `torch.dtype`, *optional*): A type or its name, with or without `torch.` in front.

    Returns:
        `torch.dtype`, or `None` for `None` and `"auto"`, which leave the choice to the caller.

    Raises:
        ValueError: `dtype` is something else.

    Example:

    ```python
    >>> from clipn_hf.dtypes import floating_dtype
    >>> floating_dtype("torch.bfloat16")
    torch.bfloat16

    ```
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'`dtype` must be a floating-point type such as torch.float16 or "float16", got {dtype!r}.')
    return found


__all__ = ["floating_dtype"]
