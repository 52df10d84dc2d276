# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `detect` of the command `clipn-hf`."""

import contextlib
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from tqdm import tqdm

from .cli_options import (
    PICTURE_EXTENSIONS,
    UNFITTED_METHODS,
    BatchSize,
    Device,
    Images,
    Labels,
    LabelsFile,
    Model,
    Negatives,
    NoTemplates,
    Recursive,
    SavedDetector,
    Settings,
    Templates,
    alternatives,
    announce_mining,
    check_device,
    check_needless,
    check_negatives,
    check_output,
    describe_promise,
    found_images,
    known_labels,
    load_detector,
    make_detector,
    method_option,
    named_method,
    naming_negatives,
    read_settings,
    report,
)
from .files import atomic_path
from .methods import METHODS
from .records import (
    MAX_TILES,
    UNREADABLE,
    Format,
    Record,
    judge_files,
    printable,
    record_writer,
    save_contact_sheet,
    verdict_word,
)

if TYPE_CHECKING:
    from PIL import Image

# That of detectors, which take seconds to import.
TOP_NEGATIVES = 3
# Below the help of the subcommand.
EXIT_CODES = (
    "Exit codes: 0 all images were read; 1 bad input, then --output and --contact-sheet are not written; "
    "2 wrong usage; 3 some images could not be read, all others were judged."
)


def detect(
    paths: Images,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Model = None,
    method: Annotated[str | None, method_option(UNFITTED_METHODS)] = None,
    settings: Settings = None,
    detector: SavedDetector = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="The score above which an image is unknown.",
            show_default=f"that of the detector, or the rule of "
            f"{alternatives(name for name, row in METHODS.items() if row.is_ood)}",
        ),
    ] = None,
    templates: Templates = None,
    no_templates: NoTemplates = None,
    negatives: Negatives = None,
    top_negatives: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="How many negative labels at most say what an image looks like, each with its share among all labels "
            "and negative labels at once; a score that is a mean over groups of negative labels may be lower.",
            show_default=str(TOP_NEGATIVES),
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(metavar="N", min=1, help="How many labels a jsonl record lists at most.")] = 5,
    format: Annotated[
        Format | None,
        typer.Option(
            help="A table for people, jsonl with all results, or csv with the nearest label only. A jsonl or csv "
            "record of an image that cannot be read has an error, and no results.",
            show_default="the extension of --output, or table",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write. It appears when complete.", show_default="the terminal"),
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Also draw the first {MAX_TILES} images and their verdicts, as .png or .jpg.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    recursive: Recursive = False,
) -> None:
    """Judge images: does each show one of the labels (known) or something else (unknown)?"""
    if detector is not None:
        check_needless(
            {
                "--labels": labels,
                "--labels-file": labels_file,
                "--model": model,
                "--method": method,
                "--setting": settings,
                "--template": templates,
                "--no-template": no_templates,
            }
        )
    elif (labels is None) == (labels_file is None):
        raise typer.BadParameter(
            "Exactly one of them is needed.", param_hint="'--labels' / '--labels-file' / '--detector'"
        )
    if output is not None:
        check_output(output)
    if contact_sheet is not None:
        check_output(contact_sheet, PICTURE_EXTENSIONS)
    if format is None:
        extension = "" if output is None else output.suffix[1:].lower()
        format = Format(extension) if extension in list(Format) else Format.TABLE
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"`--threshold` must be finite, got {threshold}.")
    check_negatives(negatives)
    files: list[str]
    if detector is not None:
        files = found_images(paths, recursive)
        check_device(device)
        judge = load_detector(detector, device)
        if judge.method.fit is not None and judge.fitted_on is None:
            raise ValueError(
                f"The detector {detector} has not been fitted on images, which method {judge.method.name} needs; make "
                f"it by `clipn-hf calibrate --method {judge.method.name} --fit-on PATH`."
            )
        if negatives is not None:
            if "negatives" in judge.method.needs:
                raise ValueError(
                    f"The detector {detector} judges by negative labels of its own; leave out --negatives, or make "
                    "another detector by `clipn-hf calibrate --negatives FILE`."
                )
            announce_mining(judge.method, negatives, judge.labels)
            with naming_negatives(negatives):
                judge.negatives = negatives
        if threshold is not None:
            judge.threshold = threshold
    else:
        known = known_labels(labels, labels_file)
        row = named_method(method, model=model)
        if row.fit is not None:
            raise ValueError(
                f"Method {row.name} is fitted on images; make a detector by `clipn-hf calibrate --method {row.name} "
                "--fit-on PATH`, and name it by `--detector`."
            )
        chosen = read_settings(row, settings)

        files = found_images(paths, recursive)
        judge = make_detector(
            model,
            known,
            row,
            chosen,
            templates=templates,
            no_templates=no_templates,
            negatives=negatives,
            device=device,
            threshold=threshold,
        )
    if judge.threshold is None and judge.method.is_ood is None:
        rules = alternatives(name for name, row in METHODS.items() if row.is_ood and "no" in row.needs)
        other = "" if detector else f", or use --method {rules} with a CLIPN model"
        report(
            f"There are no verdicts, because method {judge.method.name} decides by threshold alone; give "
            f"`--threshold`, make a detector by `clipn-hf calibrate`{other}."
        )
    if top_negatives and judge.negatives is None:
        report("There are no negative labels, which --top-negatives would list; give some by `--negatives`.")
    calibration = judge.calibration
    # A guess from texts gives none.
    with_p_values = calibration is not None and calibration.max_id_rejection is not None
    counts: Counter[str] = Counter()
    pictures: list[tuple[Image.Image, Record]] = []
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout
        if output is not None:
            partial = stack.enter_context(atomic_path(output))
            # What is not text in the name of a file is written as an escape that JSON knows.
            stream = stack.enter_context(partial.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        write = record_writer(format, stream, judge.labels, with_p_values)
        # Results that scroll by in the terminal are progress enough.
        hidden = not sys.stderr.isatty() or (output is None and sys.stdout.isatty())
        judged = judge_files(
            judge,
            files,
            top_k,
            batch_size,
            MAX_TILES if contact_sheet is not None else 0,
            TOP_NEGATIVES if top_negatives is None else top_negatives,
        )
        for record, thumbnail in tqdm(judged, total=len(files), unit=" images", disable=hidden):
            write(record)
            counts[verdict_word(record)] += 1
            if "error" in record:
                tqdm.write(printable(f"{record['file']}: {record['error']}"), file=sys.stderr)
            if thumbnail is not None:
                pictures.append((thumbnail, record))
    number = "1 image" if len(files) == 1 else f"{len(files):,} images"
    summary = f"{number}: " + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))
    if contact_sheet is not None and pictures:
        save_contact_sheet(contact_sheet, pictures, summary, judge)
    report(summary)
    if calibration is not None:
        report(describe_promise(calibration))
    if counts[UNREADABLE]:
        raise typer.Exit(3)


__all__ = ["EXIT_CODES", "detect"]
