# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear when they are complete."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes `path` when the block ends, and vanishes after an error.

    Args:
        path (`str` or `os.PathLike`):
            The file or folder to write; one that is there is replaced. Its parent folder must exist. Of a symbolic
            link, the target is written.

    Yields:
        `Path`: A name in the same folder, with the same extension, of nothing that exists. The block makes it a file
        or a folder.

    Raises:
        OSError: The name cannot be moved to its place, or nothing was written to it.

    Example:

    ```python
    >>> from clipn_hf.files import atomic_path
    >>> with atomic_path("scores.csv") as partial:  # doctest: +SKIP
    ...     partial.write_text("file,score")

    ```
    """
    path = Path(path).resolve()
    # The extension stays at the end, because Pillow goes by it.
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield partial
        if partial.is_dir() and path.exists():
            # A folder cannot replace another in one step; the old one is deleted last, so that one of them is there.
            replaced = partial.with_name(f"{partial.name}.replaced")
            path.rename(replaced)
            try:
                partial.rename(path)
            except BaseException:
                replaced.rename(path)
                raise
            _remove(replaced)
        else:
            partial.replace(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


__all__ = ["atomic_path"]
