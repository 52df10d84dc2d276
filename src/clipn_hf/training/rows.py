# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a table of image-text pairs: what is read from them, and which of them cannot be used."""

import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers.utils import logging

from ..images import ImageError, load_image
from .augmentation import Augmentation

logger = logging.get_logger(__name__)

LOGGED_ROWS = 3  # Unusable rows that each process reports at once; all of them are counted.


class UnusableRowError(ValueError):
    """A row with an image that cannot be read, without a caption or with one that is no text; the message says why."""


class SkippedRows:
    """The rows that could not be used, by name, with the reason.

    The loader's worker processes report through one file, so that the process that owns the data set knows of all.
    A row counts once, however often it is met.
    """

    def __init__(self) -> None:
        handle, self._path = tempfile.mkstemp(prefix="clipn-hf-skipped-", suffix=".jsonl")
        os.close(handle)
        self._reported: set[str] = set()
        weakref.finalize(self, _remove_own_file, self._path, os.getpid())

    def add(self, name: str, reason: str) -> None:
        """Count a row; the first ones are also logged."""
        if name in self._reported:
            return
        self._reported.add(name)
        line = json.dumps([name, reason]).encode() + b"\n"
        with open(self._path, "a+b", buffering=0) as file:
            # Workers are started anew in each epoch and would log the same rows again.
            file.seek(0)
            first_lines = file.read(4096).splitlines(keepends=True)[: LOGGED_ROWS + 1]
            # One short write in append mode is never interleaved with that of another process.
            file.write(line)
        if line not in first_lines and len(first_lines) < LOGGED_ROWS:
            logger.warning(f"Skipped {name}: {reason}")
        elif line not in first_lines and len(first_lines) == LOGGED_ROWS:
            logger.warning("Skipped further rows; they are counted and reported at the end.")

    def as_dict(self) -> dict[str, str]:
        """Give name and reason of each row met so far, in the order of their first report."""
        rows: dict[str, str] = {}
        for line in Path(self._path).read_text(encoding="utf-8").splitlines():
            name, reason = json.loads(line)
            rows.setdefault(name, reason)
        return rows


def _remove_own_file(path: str, owner: int) -> None:
    # A forked worker holds a copy of the object, whose end must not take the file away.
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)


def read_image(value: Any) -> Image.Image:
    """Read the picture in a cell of an image column, as [`~clipn_hf.images.load_image`] does: 8-bit RGB.

    Args:
        value: An undecoded cell (`{"bytes": …, "path": …}`), or anything `load_image` reads.

    Raises:
        ImageError: It is missing or cannot be read.
    """
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is None and path is not None and not os.path.exists(path) and ("://" in path or "::" in path):
            # In a stream from the Hub, the path is an address that only `datasets` can open.
            try:
                value = datasets.Image().decode_example(dict(value))
            except (OSError, ValueError) as error:
                raise ImageError(path, f"it cannot be fetched ({error}).") from error
        else:
            value = path if data is None else data
    if value is None:
        raise ImageError("the image", "the cell is empty.")
    try:
        return load_image(value)
    except TypeError as error:
        raise ImageError("the image", f"the cell holds a value of the type {type(value).__name__}.") from error


def group_id(value: Any) -> int:
    """Give the 64-bit id of a group: the same value has the same id in every process and run.

    Integers stand for themselves; everything else is hashed by its text.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass(frozen=True)
class RowReader:
    """Turns a row into one example: reads its image, draws its caption.

    Args:
        image_column (`str`): Column of the image.
        caption_columns (`tuple[str, ...]`): Columns with a caption or a list of captions; one of all is drawn.
        group_column (`str`, *optional*): Column of the group. Rows without a value form a group of their own.
        caption_templates (`tuple[str, ...]`): Texts with one `{}`, of which one is drawn and filled with the caption.
        augmentation ([`Augmentation`], *optional*): Applied to the image.
    """

    image_column: str
    caption_columns: tuple[str, ...]
    group_column: str | None
    caption_templates: tuple[str, ...]
    augmentation: Augmentation | None

    def text_columns(self) -> list[str]:
        """List all columns but the image's, each once."""
        columns = [*self.caption_columns, *([self.group_column] if self.group_column else [])]
        return list(dict.fromkeys(columns))

    def read_text(self, row: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Read everything of an example but its image.

        Raises:
            UnusableRowError: None of the captions has a visible character, or one of them is no text.
        """
        captions = []
        for column in self.caption_columns:
            cell = row[column]
            for caption in cell if isinstance(cell, list | tuple) else [cell]:
                if caption is not None and not isinstance(caption, str):
                    raise UnusableRowError(f"The caption in {column} is no text but {type(caption).__name__}.")
                if caption and caption.strip():
                    captions.append(caption.strip())
        if not captions:
            raise UnusableRowError(f"There is no caption in {', '.join(self.caption_columns)}.")
        caption = captions[generator.integers(len(captions))]
        template = self.caption_templates[generator.integers(len(self.caption_templates))]
        example: dict[str, Any] = {"caption": template.replace("{}", caption), "template_draw": generator.random()}
        own_group = int(generator.integers(2**63))
        if self.group_column:
            value = row[self.group_column]
            example["group_id"] = own_group if value is None else group_id(value)
        return example

    def read_image(self, row: Mapping[str, Any]) -> Image.Image:
        """Read the image of a row, as it is.

        Raises:
            UnusableRowError: The image cannot be read.
        """
        try:
            return read_image(row[self.image_column])
        except ImageError as error:
            origin = row_origin(row, self.image_column)
            raise UnusableRowError(
                f"The image {f'{origin} ' if origin else ''}cannot be read: {error.reason}"
            ) from error

    def read_example(self, row: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Read one example, its image augmented.

        Raises:
            UnusableRowError: As `read_text` and `read_image`.
        """
        text = self.read_text(row, generator)
        image = self.read_image(row)
        return {"image": self.augmentation(image, generator) if self.augmentation else image, **text}


def row_origin(row: Mapping[str, Any], image_column: str) -> str | None:
    """Give the file or key that a row names, if any."""
    image = row.get(image_column)
    path = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, str) else None
    return path or row.get("__key__")
