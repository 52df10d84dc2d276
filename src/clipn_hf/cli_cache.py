# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands `cache info` and `cache clear` of the command `clipn-hf`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cli_options import CacheDir
from .records import printable

# What embeddings are kept of, by `CacheEntry.kind`.
KINDS = {"image": "images", "text": "texts", "no_text": '"no" texts', "negatives": "negative labels"}

cache_app = typer.Typer(help="See and delete the embeddings that are kept on disk.", no_args_is_help=True)


@cache_app.command("info")
def show_cache(cache_dir: CacheDir = None) -> None:
    """Show which embeddings are kept and how large they are."""
    from .feature_cache import cache_info

    info = cache_info(cache_dir)
    table = Table(box=None, pad_edge=False)
    for heading in ("of", "model", "dtype", "embeddings", "size"):
        number = heading in ("embeddings", "size")
        table.add_column(heading, justify="right" if number else "left", no_wrap=heading != "model", overflow="fold")
    for entry in info.entries:
        kind = KINDS.get(entry.kind, entry.kind)
        model = printable(entry.model)
        table.add_row(kind, Text(model), entry.dtype, f"{entry.embeddings:,}", readable_size(entry.size_on_disk))
    if info.entries:
        Console(highlight=False).print(table)
    print(printable(f"{readable_size(info.size_on_disk)} in {info.folder}"))


@cache_app.command("clear")
def empty_cache(
    cache_dir: CacheDir = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete all embeddings that are kept. They are computed again when they are needed."""
    from .feature_cache import cache_info, clear_cache

    info = cache_info(cache_dir)
    if not info.entries:
        print(printable(f"There is nothing to delete in {info.folder}"))
        return
    count = sum(entry.embeddings for entry in info.entries)
    what = printable(f"{count:,} embeddings ({readable_size(info.size_on_disk)}) in {info.folder}")
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True)
    clear_cache(cache_dir)
    print(f"Deleted {what}")


def readable_size(size: int) -> str:
    """Word a number of bytes, such as "2.3 MB"."""
    if size < 1000:
        return f"{size} bytes"
    power = min((len(str(size)) - 1) // 3, 4)
    return f"{size / 1000**power:,.1f} {' kMGT'[power]}B"


__all__ = ["cache_app", "empty_cache", "readable_size", "show_cache"]
