# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How cards name models: ids of the Hub as they are, and of folders no more than the last part."""

import os
import re

# What the checkpoint inside the package is called.
EMBEDDED_NAME = "clipn-tiny"


def is_hub_id(name: str) -> bool:
    """Tell whether a name is the id of something on the Hub, and not a path.

    Args:
        name (`str`): Such as `"org/name"`. Without a slash it is taken for a folder.

    Returns:
        `bool`
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not os.path.exists(name)


def public_name(name: str) -> str:
    """Keep of a path only the last part: the rest tells of somebody's machine.

    Args:
        name (`str`): An id of the Hub, or a path.

    Returns:
        `str`: The id as it is, or the last part of the path.
    """
    return name if is_hub_id(name) else os.path.basename(os.path.normpath(name))


__all__ = ["EMBEDDED_NAME", "is_hub_id", "public_name"]
