# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the command `detect` makes of files: a record each, written as a table, jsonl or csv, drawn as a contact sheet.

A record is an `OODResult` with the `file` in front, or, of a file that cannot be read, `file` and `error`.
"""

import csv
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from .files import atomic_path
from .verdicts import VERDICTS, looks_like, telling_negatives

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .calibration import Calibration
    from .detector import OODDetector, OODResult

READERS = min(16, os.cpu_count() or 1)
MAX_TILES = 200
CSV_COLUMNS = (
    "file",
    "verdict",
    "is_ood",
    "ood_score",
    "threshold",
    "p_value",
    "method",
    "label",
    "score",
    "negatives",
    "error",
)
UNREADABLE = "unreadable"

Record = Mapping[str, Any]

# Of verdicts on contact sheets
_ORDER = {False: 0, None: 1, True: 2}


class Format(StrEnum):
    """What `detect` writes."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


def judge_files(
    detector: "OODDetector",
    files: Sequence[str],
    top_k: int | None,
    batch_size: int,
    max_thumbnails: int = 0,
    top_negatives: int = 3,
) -> Iterator[tuple[Record, "Image.Image | None"]]:
    """Judge files one after the other.

    Threads read and prepare images while the model is busy with those before; a few batches are in memory at most.

    Args:
        detector ([`OODDetector`]): Judges.
        files (`Sequence[str]`): What [`~clipn_hf.images.load_image`] reads.
        top_k (`int` or `None`): How many labels to list.
        batch_size (`int`): Images per pass through the model.
        max_thumbnails (`int`, *optional*, defaults to 0): Of how many images to keep a small copy.
        top_negatives (`int`, *optional*, defaults to 3): How many negative labels to list, if there are any.

    Yields:
        The record of each file, in order, and the small copy of the first images, else None.
    """
    from .evaluation.contact_sheet import fit_picture
    from .image_inputs import concatenate_inputs
    from .images import ImageError, load_image

    def read(file: str, with_thumbnail: bool) -> "tuple[dict[str, Tensor], Image.Image | None] | ImageError":
        try:
            image = load_image(file)
        except ImageError as error:
            return error
        thumbnail = fit_picture(image) if with_thumbnail else None
        return detector.image_encoder.prepare_images([image], start=None), thumbnail

    def read_ahead() -> "Iterator[tuple[str, tuple[dict[str, Tensor], Image.Image | None] | ImageError]]":
        pending: deque[tuple[str, Future[tuple[dict[str, Tensor], Image.Image | None] | ImageError]]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            for position, file in enumerate(files):
                pending.append((file, pool.submit(read, file, position < max_thumbnails)))
                if len(pending) > batch_size + READERS:
                    file, future = pending.popleft()
                    yield file, future.result()
            for file, future in pending:
                yield file, future.result()

    items = read_ahead()
    while batch := list(itertools.islice(items, batch_size)):
        prepared = [item[0] for _, item in batch if isinstance(item, tuple)]
        results: Iterator[OODResult] = iter(())
        if prepared:
            embeddings = detector.embed_prepared(concatenate_inputs(prepared))
            results = iter(detector.results(embeddings, top_k, top_negatives, from_prepared=True))
        for file, item in batch:
            if isinstance(item, tuple):
                yield {"file": file, **next(results)}, item[1]
            else:
                yield {"file": file, "error": item.reason}, None


def verdict_word(record: Record) -> str:
    """Name the verdict of a record."""
    return UNREADABLE if "error" in record else str(record["verdict"])


def explain(record: Record) -> str:
    """Say what an image shows that is not known, as far as negative labels tell.

    Args:
        record (`Record`): Of one file.

    Returns:
        `str`: Such as "not one of your labels; looks like jellyfish (0.31), parachute (0.12)"; where nothing decides
        about the image, what it looks like apart from the labels; empty for known images, and where no negative label
        comes near.
    """
    named = looks_like(record["negatives"])
    if not named or record["is_ood"] is False:
        return ""
    if record["is_ood"]:
        return f"not one of your labels; looks like {named}"
    return f"if it is not one of your labels, it looks like {named}"


def record_writer(
    format: Format, stream: TextIO, labels: Sequence[str], with_p_values: bool = False
) -> Callable[[Record], None]:
    """Begin to write records.

    Args:
        format (`Format`): Written as.
        stream (`TextIO`): Written to.
        labels (`Sequence[str]`): All labels there are.
        with_p_values (`bool`, *optional*, defaults to `False`): Whether a table has a column for them.

    Returns:
        `Callable`: Writes one record.
    """
    if format is Format.TABLE:
        return _table_writer(stream, labels, with_p_values)
    return _jsonl_writer(stream) if format is Format.JSONL else _csv_writer(stream)


def _table_writer(stream: TextIO, labels: Sequence[str], with_p_values: bool) -> Callable[[Record], None]:
    console = Console(file=stream, highlight=False, soft_wrap=True)
    width = min(30, max(len("nearest label"), *map(cell_len, labels)))
    p_heading = f"{'p-value':>9}" if with_p_values else ""
    heading = f"{'verdict':<11}{'OOD score':>10}{p_heading}  {set_cell_size('nearest label', width)}  prob.  file"
    console.print(heading, style="bold")
    file_column = heading.index("file")

    def write(record: Record) -> None:
        if "error" in record:
            console.print(Text.assemble((f"{UNREADABLE:<{file_column}}", "red"), printable(record["file"])))
            return
        verdict, color = record["verdict"], VERDICTS[record["is_ood"]].color
        label = set_cell_size(printable(record["label"]), width)
        p_value = f"{_readable_p(record['p_value']):>9}" if with_p_values else ""
        numbers = f"{record['ood_score']:>10.4f}{p_value}  {label}  {record['score']:>5.0%}"
        console.print(Text.assemble((f"{verdict:<11}", color), f"{numbers}  {printable(record['file'])}"))
        if why := explain(record):
            console.print(Text(f"{'':<11}{printable(why)}", style="dim"))

    return write


def _readable_p(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value >= 0.0001 else f"{p_value:.0e}"


def _jsonl_writer(stream: TextIO) -> Callable[[Record], None]:
    def write(record: Record) -> None:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")

    return write


def _csv_writer(stream: TextIO) -> Callable[[Record], None]:
    rows = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()

    def write(record: Record) -> None:
        # The words of JSON, which most readers of CSV understand better than Python's.
        is_ood = record.get("is_ood")
        verdict = None if is_ood is None else json.dumps(is_ood)
        rows.writerow({**record, "is_ood": verdict, "negatives": looks_like(record.get("negatives", ()))})

    return write


def describe_threshold(threshold: float | None, calibration: "Calibration | None") -> str:
    """Word by which score a detector decides.

    Args:
        threshold (`float` or `None`): Of all images together.
        calibration ([`~clipn_hf.calibration.Calibration`] or `None`): Where it comes from.

    Returns:
        `str`: Such as "threshold 0.5"; where each label has its own, their range; where there are three answers, also
        the score below which an image is known. Empty without a threshold.
    """
    if threshold is None:
        return ""
    text = f"threshold {threshold:.6g}"
    if calibration is not None and calibration.groups:
        thresholds = [group.threshold for group in calibration.groups]
        text = f"threshold {min(thresholds):.6g} to {max(thresholds):.6g} by label"
    if calibration is not None and calibration.known_below is not None:
        text += f", known below {calibration.known_below:.6g}"
    return text


def save_contact_sheet(
    path: Path, judged: Sequence[tuple["Image.Image", Record]], title: str, detector: "OODDetector"
) -> None:
    """Draw judged images, the known ones first, each group by rising score.

    Args:
        path (`Path`): The picture to write.
        judged (sequence of `(PIL.Image.Image, Record)`): At least one image and its record.
        title (`str`): Headline.
        detector ([`OODDetector`]): Who judged.
    """
    from .evaluation.contact_sheet import Tile, contact_sheet

    tiles = []
    for thumbnail, record in judged:
        first = next(iter(telling_negatives(record["negatives"])), None)
        tile = Tile(
            thumbnail,
            record["is_ood"],
            record["ood_score"],
            record["label"],
            group=record["verdict"].capitalize(),
            word=record["verdict"],
            looks_like="" if first is None else first["label"],
            mass=None if first is None else first["score"],
        )
        tiles.append(tile)
    tiles.sort(key=lambda tile: (_ORDER[tile.is_ood], tile.ood_score))
    threshold = describe_threshold(detector.threshold, detector.calibration)
    rule = f", {threshold}" if threshold else ""
    images = f"the first {MAX_TILES} images" if len(tiles) == MAX_TILES else "images"
    subtitle = f"{detector.method.title}{rule}: {images} by rising OOD score, each with its nearest label."
    with atomic_path(path) as partial:
        contact_sheet(tiles, title=title, subtitle=subtitle).save(partial)


def printable(text: str) -> str:
    """Escape what may hide in the name of a file: line breaks, commands for the terminal, halves of characters."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


__all__ = [
    "MAX_TILES",
    "READERS",
    "UNREADABLE",
    "Format",
    "Record",
    "describe_threshold",
    "explain",
    "judge_files",
    "printable",
    "record_writer",
    "save_contact_sheet",
    "verdict_word",
]
