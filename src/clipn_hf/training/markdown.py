# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Names, links, numbers and tables as model cards show them."""

import os
import re
from collections.abc import Sequence


def is_hub_id(name: str) -> bool:
    """Tell whether a name is the id of something on the Hub, and not a path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def public_name(name: str) -> str:
    """Keep of a path only the last part, which says enough and gives nothing away."""
    if is_hub_id(name) or name.startswith(("http://", "https://")):
        return name
    return os.path.basename(os.path.normpath(name))


def link(name: str, kind: str = "") -> str:
    """Link to what is on the Hub, in the section `kind`, or elsewhere on the web; name anything else plainly."""
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/{kind}{name})"
    return f"<{name}>" if name.startswith(("http://", "https://")) else f"`{public_name(name)}`"


def percent(value: float) -> str:
    """Write a share of one in percent, without the sign."""
    return f"{100 * value:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose first column is a text and whose others are numbers."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, alignment, *rows])
