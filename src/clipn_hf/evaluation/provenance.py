# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What records say of how they came about: the model, and the versions of what computed."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from ..encoders import DualEncoder, PrecomputedEncoder

_VERSIONED = ("clipn_hf", "torch", "transformers", "numpy")


def describe_encoder(encoder: DualEncoder | PrecomputedEncoder) -> dict[str, Any]:
    """Describe a model for records, which name no folder of this machine.

    Args:
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): The model.

    Returns:
        `dict`: What its `describe` gives, with the last part of a path as `"id"`.
    """
    description = encoder.describe()
    name = description["id"] or description["class"]
    is_local = os.path.exists(name) or os.path.isabs(name)
    # The digests tell apart folders of the same name.
    return {**description, "id": Path(name).resolve().name if is_local else name}


def list_versions() -> dict[str, str]:
    """List the versions of Python and of the packages that results depend on.

    Returns:
        `dict[str, str]`: Versions by name.
    """
    versions = {name: importlib.metadata.version(name.replace("_", "-")) for name in _VERSIONED}
    return {**versions, "python": platform.python_version()}


__all__ = ["describe_encoder", "list_versions"]
