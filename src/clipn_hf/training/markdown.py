# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Names, links, numbers and tables as model cards show them."""

from collections.abc import Sequence

from .. import hub_names
from ..hub_names import is_hub_id


def public_name(name: str) -> str:
    """Keep of a path only the last part, which says enough and gives nothing away."""
    return name if name.startswith(("http://", "https://")) else hub_names.public_name(name)


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
