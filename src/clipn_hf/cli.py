# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `clipn-hf`.

What a subcommand needs beyond the package itself is imported when it runs.
"""

import contextlib
import difflib
import importlib.metadata
import json
import logging
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from .cli_evaluation import compare, evaluate
from .files import atomic_path
from .methods import METHODS, Method
from .prompts import DEFAULT_TEMPLATES
from .records import (
    MAX_TILES,
    UNREADABLE,
    Format,
    Record,
    describe_threshold,
    judge_files,
    printable,
    record_writer,
    save_contact_sheet,
    verdict_word,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .calibration import Calibration
    from .detector import OODDetector
    from .encoders import DualEncoder

PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg")
DEFAULT_METHOD = "atd"
NEED_WORDS = {"no": "CLIPN", "training": "ID images", "training_labels": "with labels"}
# Lists of labels that are longer are cut.
FEW_LABELS = 10


def _alternatives(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


UNFITTED_METHODS = {name: method for name, method in METHODS.items() if method.fit is None}


def _complete_method(incomplete: str) -> list[tuple[str, str]]:
    return [(method.name, method.title) for method in METHODS.values() if method.name.startswith(incomplete)]


def _complete_unfitted_method(incomplete: str) -> list[tuple[str, str]]:
    return [(name, title) for name, title in _complete_method(incomplete) if name in UNFITTED_METHODS]


Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help='Text around a label, such as "a photo of a {}."; repeat the option for several, which are averaged.',
        show_default="those of the model",
    ),
]
NoTemplates = Annotated[
    list[str] | None,
    typer.Option(
        "--no-template",
        metavar="TEXT",
        help='The same for the "no" text encoder of a CLIPN, such as "a photo of no {}.".',
        show_default="those of the model; with learnable prompts --template",
    ),
]

Labels = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="The known things, separated by commas.", show_default=False)
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The known things, one per line. Blank lines and lines that begin with # are skipped.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Hub id or folder of the model.", show_default="the embedded checkpoint"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="NAME=VALUE",
        help="A setting of the method, such as temperature=0.5; repeat the option for several. `clipn-hf methods` "
        "lists them.",
        show_default="those of the method",
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Images per pass through the model.")]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="Such as cpu or cuda:1.", show_default="an accelerator, if there is one"),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search folders at every depth.")]

app = typer.Typer(
    help="Tell images of known things from images of anything else, with CLIP and CLIPN.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache_app = typer.Typer(help="See and delete the embeddings that are kept on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.command(no_args_is_help=True)(evaluate)
app.command(no_args_is_help=True)(compare)

CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        help="The folder of the cache.",
        show_default="$CLIPN_HF_CACHE, or clipn_hf in $HF_HOME or ~/.cache",
    ),
]


class Rule(StrEnum):
    """How a threshold is found from scores."""

    CONFORMAL = "conformal"
    QUANTILE = "quantile"


class Activation(StrEnum):
    """The activation functions of original checkpoints."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process.

    Args:
        arguments (`Sequence[str]`, *optional*): What follows the name of the command; by default that of the process.

    Raises:
        SystemExit: Always. Its code is 0 for success, 1 for bad input, 2 for wrong usage, 3 if some images could not
            be read.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not fit the encoding of the terminal.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        # Pillow warns of large pictures and odd metadata, about which there is nothing to do here.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.showwarning = _show_warning
        try:
            app(args=arguments, prog_name="clipn-hf")
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            _report(f"Error: {error}")
            sys.exit(1)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"clipn-hf {importlib.metadata.version('clipn-hf')}")
        raise typer.Exit


@app.callback()
def _common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    no_args_is_help=True,
    epilog="Exit codes: 0 all images were read; 1 bad input, then --output and --contact-sheet are not written; "
    "2 wrong usage; 3 some images could not be read, all others were judged.",
)
def detect(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Images, folders, glob patterns or http(s) addresses.")
    ],
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Model = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{_alternatives(UNFITTED_METHODS)}; `clipn-hf methods` tells about them.",
            autocompletion=_complete_unfitted_method,
            show_default=DEFAULT_METHOD,
        ),
    ] = None,
    settings: Settings = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="DETECTOR",
            help="Hub id or folder of a detector, such as `calibrate` writes, in place of labels, model, method, its "
            "settings and templates.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="The score above which an image is unknown.",
            show_default=f"that of the detector, or the rule of "
            f"{_alternatives(name for name, row in METHODS.items() if row.is_ood)}",
        ),
    ] = None,
    templates: Templates = None,
    no_templates: NoTemplates = None,
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
        superfluous = {
            "--labels": labels,
            "--labels-file": labels_file,
            "--model": model,
            "--method": method,
            "--setting": settings,
            "--template": templates,
            "--no-template": no_templates,
        }
        if given := [name for name, value in superfluous.items() if value]:
            raise typer.BadParameter(
                f"The detector has its own; leave out {' and '.join(given)}.", param_hint="'--detector'"
            )
    elif (labels is None) == (labels_file is None):
        raise typer.BadParameter(
            "Exactly one of them is needed.", param_hint="'--labels' / '--labels-file' / '--detector'"
        )
    if output is not None:
        _check_output(output)
    if contact_sheet is not None:
        _check_output(contact_sheet, PICTURE_EXTENSIONS)
    if format is None:
        extension = "" if output is None else output.suffix[1:].lower()
        format = Format(extension) if extension in list(Format) else Format.TABLE
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"`--threshold` must be finite, got {threshold}.")
    files: list[str]
    if detector is not None:
        files = _find_images(paths, recursive)
        _check_device(device)
        judge = _load_detector(detector, device)
        if threshold is not None:
            judge.threshold = threshold
    else:
        known = _known(labels, labels_file)
        row = _method(method)
        if row.fit is not None:
            raise ValueError(
                f"Method {row.name} is fitted on images; make a detector by `clipn-hf calibrate --method {row.name} "
                "--fit-on PATH`, and name it by `--detector`."
            )
        chosen = _read_settings(row, settings)

        from .detector import OODDetector

        files = _find_images(paths, recursive)
        _check_device(device)
        _check_settings(row, chosen)
        with _loading(model):
            judge = OODDetector(
                _model(model),
                known,
                row.name,
                templates=templates,
                no_templates=no_templates,
                threshold=threshold,
                device=device,
                **chosen,
            )
    if judge.threshold is None and judge.method.is_ood is None:
        rules = _alternatives(name for name, row in METHODS.items() if row.is_ood)
        other = "" if detector else f", or use --method {rules} with a CLIPN model"
        _report(
            f"There are no verdicts, because method {judge.method.name} decides by threshold alone; give "
            f"`--threshold`, make a detector by `clipn-hf calibrate`{other}."
        )
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
        judged = judge_files(judge, files, top_k, batch_size, MAX_TILES if contact_sheet is not None else 0)
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
    _report(summary)
    if calibration is not None:
        _report(_promise(calibration))
    if counts[UNREADABLE]:
        raise typer.Exit(3)


@app.command(
    no_args_is_help=True,
    epilog="Exit codes: 0 all images were read; 1 bad input, then --output is not written; 2 wrong usage; 3 some "
    "images could not be read, the detector was made of all others.",
)
def calibrate(
    context: typer.Context,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the detector to write.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Images of known things: files, folders, glob patterns or http(s) addresses.",
            show_default=False,
        ),
    ] = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Model = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{_alternatives(METHODS)}; `clipn-hf methods` tells about them.",
            autocompletion=_complete_method,
            show_default=DEFAULT_METHOD,
        ),
    ] = None,
    settings: Settings = None,
    templates: Templates = None,
    no_templates: NoTemplates = None,
    max_id_rejection: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of new images of known things that may be called unknown.")
    ] = 0.05,
    rule: Annotated[
        Rule,
        typer.Option(help="A conformal threshold keeps that share for new images; a quantile promises nothing."),
    ] = Rule.CONFORMAL,
    delta: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The promise holds with confidence 1 - SHARE over the images drawn.",
            show_default="it holds on average",
        ),
    ] = None,
    per_label: Annotated[bool, typer.Option("--per-label", help="Give each label a threshold of its own.")] = False,
    fit_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Other images of known things, for methods that are fitted; repeat the option for several. Where the "
            "method needs labels, each image lies in a folder that is called by its label.",
            show_default=False,
        ),
    ] = None,
    ood_images: Annotated[
        list[str] | None,
        typer.Option(
            "--unknown",
            metavar="PATH",
            help="Images of unknown things, for a third answer, unsure; repeat the option for several.",
            show_default=False,
        ),
    ] = None,
    max_ood_acceptance: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of unknown images like these that may be called known.")
    ] = 0.05,
    guess: Annotated[
        bool,
        typer.Option(
            "--guess",
            help="Guess a threshold to start with from the labels alone, without images and without a promise; for "
            f"--method {_alternatives(name for name, row in METHODS.items() if row.text_contrast is not None)}.",
        ),
    ] = False,
    include_weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Save the weights of the model, or where they are.")
    ] = True,
    batch_size: BatchSize = 32,
    device: Device = None,
    recursive: Recursive = False,
) -> None:
    """Make a detector: find the threshold from images of known things, and save it with all it needs."""
    if (labels is None) == (labels_file is None):
        raise typer.BadParameter("Exactly one of the two is needed.", param_hint="'--labels' / '--labels-file'")
    given = {name for name in context.params if _is_given(context, name)}
    if guess:
        needless = {
            "paths": "PATH",
            "max_id_rejection": "--max-id-rejection",
            "rule": "--rule",
            "delta": "--delta",
            "per_label": "--per-label",
            "fit_on": "--fit-on",
            "ood_images": "--unknown",
            "max_ood_acceptance": "--max-ood-acceptance",
        }
        if superfluous := [option for name, option in needless.items() if name in given]:
            raise typer.BadParameter(
                f"A guess is made without images; leave out {' and '.join(superfluous)}.", param_hint="'--guess'"
            )
    elif not paths:
        raise typer.BadParameter("Name images of known things, or --guess a threshold.", param_hint="'PATH...'")
    if rule is Rule.QUANTILE and delta is not None:
        raise typer.BadParameter(
            "A quantile promises nothing; leave out one of the two.", param_hint="'--delta' / '--rule'"
        )
    if "max_ood_acceptance" in given and not ood_images:
        raise typer.BadParameter("It is for --unknown.", param_hint="'--max-ood-acceptance'")
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output {output} is a file; name a folder.")
    for option, share in (
        ("--max-id-rejection", max_id_rejection),
        ("--delta", delta),
        ("--max-ood-acceptance", max_ood_acceptance),
    ):
        if share is not None and not 0 < share < 1:
            raise ValueError(f"`{option}` must be between 0 and 1, such as 0.05, got {share:g}.")
    known = _known(labels, labels_file)
    row = _method(method)
    if guess and row.text_contrast is None:
        able = _alternatives(name for name, other in METHODS.items() if other.text_contrast is not None)
        raise ValueError(f"The scores of method {row.name} cannot be guessed from texts; use --method {able}.")
    if row.fit is None and fit_on:
        raise ValueError(f"Method {row.name} learns nothing from images; leave out --fit-on.")
    if row.fit is not None and not fit_on:
        raise ValueError(
            f"Method {row.name} is fitted on images; name some by --fit-on, other ones than those of PATH."
        )
    chosen = _read_settings(row, settings)

    from .detector import OODDetector

    files = _find_images(paths or (), recursive) if not guess else []
    fitted_files = _find_images(fit_on, recursive=True) if fit_on else []
    unknown_files = _find_images(ood_images, recursive) if ood_images else []
    folders = _folders(fitted_files, known) if "training_labels" in row.needs else None
    _check_device(device)
    _check_settings(row, chosen)
    with _loading(model):
        detector = OODDetector(
            _model(model),
            known,
            row.name,
            templates=templates,
            no_templates=no_templates,
            device=device,
            **chosen,
        )
    unreadable = 0
    if guess:
        calibration = detector.guess_threshold()
    else:
        if fitted_files:
            with _naming_settings(chosen):
                detector.fit(fitted_files, folders, batch_size=batch_size)
            assert detector.fitted_on is not None
            unreadable += len(fitted_files) - detector.fitted_on["images"]
        images = _read_images(files, detector.image_encoder, batch_size)
        unreadable += images.unreadable
        if seen := detector.count_fitted(images.files):
            raise ValueError(
                f"--fit-on has {seen:,} of the {_count(len(images.files), 'image')} of PATH, whose scores then are "
                "not those of new images; calibrate with others."
            )
        needed = _images_needed(max_id_rejection, rule, delta)
        _check_enough(len(images.files), needed, "known", "--max-id-rejection", max_id_rejection)
        if per_label:
            _check_each_label(detector, images.embeddings, needed)
        unknown_images = None
        if unknown_files:
            unknown_images = _read_images(unknown_files, detector.image_encoder, batch_size)
            unreadable += unknown_images.unreadable
            if shared := len(images.files.keys() & unknown_images.files.keys()):
                raise ValueError(
                    f"--unknown has {shared:,} of the {_count(len(images.files), 'image')} of PATH, too; name "
                    "those of known things in one place, all others in the other."
                )
            unknown_needed = _images_needed(max_ood_acceptance, rule, delta)
            _check_enough(
                len(unknown_images.files), unknown_needed, "unknown", "--max-ood-acceptance", max_ood_acceptance
            )
        calibration = detector.calibrate(
            list(images.files.values()),
            max_id_rejection,
            method=rule.value,
            delta=delta,
            per_label=per_label,
            ood_images=None if unknown_images is None else list(unknown_images.files.values()),
            max_ood_acceptance=max_ood_acceptance,
            batch_size=batch_size,
        )
    detector.save_pretrained(output, include_weights)
    source = f"the texts of {_count(calibration.n, 'label')}" if guess else _count(calibration.n, "image")
    text = describe_threshold(calibration.threshold, calibration)
    print(f"{text[0].upper()}{text[1:]}, from {source}")
    for line in _thresholds_of_labels(calibration):
        print(line)
    # A guess has said already that it promises nothing.
    if not guess:
        _report(_promise(calibration))
    print(printable(f"Written to {output}; use it by: clipn-hf detect PATH... --detector {output}"))
    if unreadable:
        _report(f"Left out: {_count(unreadable, 'image')} that could not be read")
        raise typer.Exit(3)


@app.command("methods")
def show_methods() -> None:
    """Show the methods: what they need, which paper they are of, and their settings."""
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "name in full", "needs", "rule", "arXiv", "settings"):
        table.add_column(heading, no_wrap=heading in ("method", "arXiv"))
    for row in METHODS.values():
        table.add_row(
            row.name,
            row.title,
            " ".join(NEED_WORDS[need] for need in NEED_WORDS if need in row.needs - {"global"}) or "any model",
            "yes" if row.is_ood else "",
            row.reference,
            ", ".join(f"{name}={value}" for name, value in row.settings.items()),
        )
    # What is not shown on a terminal need not fit one.
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    print(
        "\nrule: decides without a threshold. All others give a verdict once they are calibrated (clipn-hf calibrate)."
    )


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Hub id or folder of a model or detector.", show_default="the embedded checkpoint"),
    ] = None,
) -> None:
    """Show what a checkpoint is and which methods it serves, and of a detector how it decides."""
    from transformers import AutoConfig

    from .detector import OODDetector, unserved
    from .detector_files import read_detector
    from .encoders import EMBEDDED_CHECKPOINT, DualEncoder
    from .modeling.description import describe_config

    source = EMBEDDED_CHECKPOINT if model is None else model
    detector = None
    with _loading(source):
        if read_detector(source) is None:
            encoder = DualEncoder.from_pretrained(source, device="cpu")
        else:
            detector = OODDetector.from_pretrained(source, device="cpu")
            encoder = detector.image_encoder
    config = encoder.model.config
    rows = {} if detector is None else {"detector": source, **_describe_detector(detector)}
    checkpoint = (detector and encoder.source) or source
    if checkpoint == EMBEDDED_CHECKPOINT:
        checkpoint = f"{Path(checkpoint).name}, embedded in clipn-hf"
    rows |= {
        "checkpoint": checkpoint,
        "model": f"{type(encoder.model).__name__}, type {config.model_type}",
        **describe_config(config),
    }
    rows["parameters"] = f"{sum(weight.numel() for weight in encoder.model.parameters()):,}"
    # The model in memory is float32 whatever its file holds.
    stored_dtype = AutoConfig.from_pretrained(encoder.model.name_or_path).dtype
    if stored_dtype is not None:
        rows["stored as"] = str(stored_dtype).removeprefix("torch.")
    rows["logit scale"] = f"{encoder.logit_scale:.4g}"
    texts = encoder if detector is None else detector
    rows["templates"] = "\n".join(texts.templates)
    if encoder.has_no_encoder and texts.no_templates != texts.templates:
        rows['"no" templates'] = "\n".join(texts.no_templates)
    why_not = {name: unserved(method, encoder) for name, method in METHODS.items()}
    reasons = [reason for reason in why_not.values() if reason is not None]
    rows["methods"] = ", ".join(name for name, reason in why_not.items() if reason is None)
    if reasons:
        rows["not served"] = "\n".join(reasons)

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    Console(highlight=False).print(table)


@app.command(no_args_is_help=True)
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A .pt or .safetensors file of the CLIPN authors or of OpenCLIP.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    processor: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Hub id or folder of the tokenizer and image processor.",
            show_default="none, the model only is written",
        ),
    ] = None,
    activation: Annotated[
        Activation, typer.Option(help="Exact GELU, or the quick one for weights of OpenAI.")
    ] = Activation.GELU,
    vision_heads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention heads of the image encoder.", show_default="its width / 64"),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention heads of the text encoder.", show_default="its width / 64"),
    ] = None,
    eos_token_id: Annotated[
        int | None,
        typer.Option(
            metavar="ID",
            help="The token that ends texts.",
            show_default="the processor's, or the last of the vocabulary",
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEXT",
            help="Text around a label, written to a CLIPN as its default; repeat the option for several.",
            show_default=f'"{DEFAULT_TEMPLATES[0]}" and {len(DEFAULT_TEMPLATES) - 1} more',
        ),
    ] = None,
    no_templates: Annotated[
        list[str] | None,
        typer.Option(
            "--no-template",
            metavar="TEXT",
            help='The same for its "no" text encoder.',
            show_default="with learnable prompts --template, else their negations",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Turn an original checkpoint into a folder that from_pretrained loads."""
    from .modeling.conversion import convert_checkpoint, format_summary

    _prepare_loading(processor)
    summary = convert_checkpoint(
        source,
        output,
        processor=processor,
        activation=activation,
        vision_heads=vision_heads,
        text_heads=text_heads,
        eos_token_id=eos_token_id,
        templates=templates,
        no_templates=no_templates,
        overwrite=overwrite,
    )
    print(format_summary(summary))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write, .png or .jpg.")] = Path(
        "clipn-hf-demo.png"
    ),
) -> None:
    """Judge the sample pictures with the embedded checkpoint, in a table and a contact sheet. Needs no network."""
    _check_output(output, PICTURE_EXTENSIONS)

    from .demo import demo_sheet, demo_table, judge_samples
    from .encoders import EMBEDDED_CHECKPOINT

    with _loading(EMBEDDED_CHECKPOINT):
        samples = judge_samples()
    Console(highlight=False).print(demo_table(samples))
    with atomic_path(output) as partial:
        demo_sheet(samples).save(partial)
    print(f"The same as a picture: {output.resolve()}")


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
        kind = {"image": "images", "text": "texts", "no_text": '"no" texts'}[entry.kind]
        model = printable(entry.model)
        table.add_row(kind, Text(model), entry.dtype, f"{entry.embeddings:,}", _readable_size(entry.size_on_disk))
    if info.entries:
        Console(highlight=False).print(table)
    print(printable(f"{_readable_size(info.size_on_disk)} in {info.folder}"))


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
    what = printable(f"{count:,} embeddings ({_readable_size(info.size_on_disk)}) in {info.folder}")
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True)
    clear_cache(cache_dir)
    print(f"Deleted {what}")


def _readable_size(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    power = min((len(str(size)) - 1) // 3, 4)
    return f"{size / 1000**power:,.1f} {' kMGT'[power]}B"


def _known(labels: str | None, labels_file: Path | None) -> list[str]:
    return _read_labels(labels_file) if labels_file else _split_labels(labels or "")


def _find_images(paths: Sequence[str], recursive: bool) -> list[str]:
    from .images import find_images

    files = find_images(paths, recursive)
    if not files:
        advice = "." if recursive else "; to search the folders inside, add --recursive."
        raise ValueError(f"There are no images in {', '.join(paths)}{advice}")
    return files


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _model(model: str | None) -> str:
    from .encoders import EMBEDDED_CHECKPOINT

    if model is not None:
        return model
    _report(
        "No `--model` given: using the embedded clipn-tiny, a small CLIPN trained on emoji drawings, good for first "
        "steps. For photographs give a real one, such as --model openai/clip-vit-base-patch16 with --method mcm."
    )
    return EMBEDDED_CHECKPOINT


def _method(name: str | None) -> Method:
    if name is None:
        return METHODS[DEFAULT_METHOD]
    if name not in METHODS:
        raise ValueError(f"`--method` must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def _read_settings(method: Method, texts: Sequence[str] | None) -> dict[str, Any]:
    """Read what was given as `--setting`: numbers, true, false and null as in JSON, everything else as a word."""
    settings: dict[str, Any] = {}
    defaults = method.settings
    for text in texts or ():
        name, _, word = (part.strip() for part in text.partition("="))
        if not name or not word:
            raise ValueError(f"`--setting` must be NAME=VALUE, such as temperature=0.5, got {text!r}.")
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            suggestion = f", did you mean {close[0]}?" if close else "."
            listed = f"Known are: {', '.join(defaults)}." if defaults else "It has none; leave out --setting."
            raise ValueError(f"`--setting {text}`: method {method.name} has no setting {name}{suggestion} {listed}")
        if name in settings:
            raise ValueError(f"`--setting {name}` is given twice; give one value.")
        value = _read_value(word)
        if isinstance(defaults[name], bool) and not isinstance(value, bool):
            raise ValueError(f"`--setting {name}` must be true or false, got {word!r}.")
        settings[name] = value
    return settings


def _read_value(word: str) -> Any:
    # JSON knows no .5 and no 1.
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(word)
    return word


def _check_settings(method: Method, settings: Mapping[str, Any]) -> None:
    """Find out before a model is loaded which values the score refuses."""
    if not settings or method.fit is not None:
        return

    from torch import zeros

    from .methods import MethodInputs

    cosines = zeros(1, max(2, method.min_labels))
    with _naming_settings(settings):
        method.score(MethodInputs(cosines, cosines, cosines), **{**method.settings, **settings})


@contextlib.contextmanager
def _naming_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Say of errors about a setting that was given where it was given."""
    try:
        yield
    except (TypeError, ValueError) as error:
        for name in settings:
            if str(error).startswith(f"`{name}` "):
                raise ValueError(f"`--setting {name}` does not fit: {error}") from error
        raise


class _ReadImages(NamedTuple):
    """Images that could be read, each once.

    Args:
        files (`dict[bytes, str]`): Their names by digest.
        embeddings (`torch.Tensor` of shape `(len(files), dim)`): In the same order.
        unreadable (`int`): How many others there are.
    """

    files: dict[bytes, str]
    embeddings: "Tensor"
    unreadable: int


def _read_images(files: Sequence[str], encoder: "DualEncoder", batch_size: int) -> _ReadImages:
    """Embed images before they are needed, to know what is wrong with them; the cache on disk keeps the embeddings."""
    from .features import extract_features

    features = extract_features(files, encoder, batch_size=batch_size)
    first: dict[bytes, int] = {}
    for index, digest in enumerate(features.digests):
        first.setdefault(bytes.fromhex(digest), index)
    if copies := len(features.digests) - len(first):
        _report(f"{copies:,} of {_count(len(features.digests), 'image')} are copies of others; they count once.")
    rows = features.rows.tolist()
    names = {digest: files[rows[index]] for digest, index in first.items()}
    return _ReadImages(names, features.embeddings[list(first.values())], len(features.skipped))


def _images_needed(share: float, rule: Rule, delta: float | None) -> int:
    from .calibration import images_needed

    return images_needed(share, delta) if rule is Rule.CONFORMAL else 1


def _check_enough(count: int, needed: int, kind: str, option: str, share: float) -> None:
    if count < needed:
        raise ValueError(
            f"A promise of at most {100 * share:g} % needs at least {needed:,} images of {kind} things, got "
            f"{count:,}; give more, a larger `{option}`, or `--rule quantile`, which promises nothing about "
            "new images."
        )


def _check_each_label(detector: "OODDetector", embeddings: "Tensor", needed: int) -> None:
    counts = Counter(detector.predict(embeddings).tolist())
    small = [f"{label} ({counts[index]})" for index, label in enumerate(detector.labels) if counts[index] < needed]
    if small:
        raise ValueError(
            f"`--per-label` needs at least {_count(needed, 'image')} nearest to each label, but {len(small)} of "
            f"{_count(len(detector.labels), 'label')} have fewer: {_first(small)}. Give more images, put similar "
            "labels together, or leave out --per-label."
        )


def _folders(files: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The label of each image: the name of its folder."""
    folders = [Path(file).resolve().parent.name for file in files]
    for file, folder in zip(files, folders, strict=True):
        if folder not in labels:
            raise ValueError(
                f"The image {file} of --fit-on lies in the folder {folder}, which is not among the "
                f"labels: {_first(labels)}. Rename the folder, or leave it out."
            )
    if absent := [label for label in labels if label not in folders]:
        raise ValueError(
            f"There are no images of --fit-on for {len(absent)} of {_count(len(labels), 'label')}: {_first(absent)}. "
            "Put some into a folder of that name."
        )
    return folders


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW_LABELS:,} more" if len(names) > FEW_LABELS else ""
    return f"{', '.join(names[:FEW_LABELS])}{more}"


def _load_detector(source: str, device: str | None) -> "OODDetector":
    from .detector import OODDetector
    from .detector_files import read_detector

    with _loading(source, "detector"):
        if read_detector(source) is None:
            raise ValueError(
                f"There is no detector at {source}: it has no detector.json. Name the folder or Hub id of one that "
                "`clipn-hf calibrate` made; a model is named by `--model`, with `--labels`."
            )
        detector = OODDetector.from_pretrained(source, device=device)
    if detector.method.fit is not None and detector.fitted_on is None:
        raise ValueError(
            f"The detector {source} has not been fitted on images, which method {detector.method.name} needs; make it "
            f"by `clipn-hf calibrate --method {detector.method.name} --fit-on PATH`."
        )
    return detector


def _describe_detector(detector: "OODDetector") -> dict[str, str]:
    rows = {
        "labels": f"{len(detector.labels):,}: {_first(detector.labels)}",
        "method": f"{detector.method.name}, {detector.method.title}",
    }
    if detector.settings:
        rows["settings"] = ", ".join(f"{name}={value}" for name, value in detector.settings.items())
    if fitted := detector.fitted_on:
        labelled = " with labels" if fitted["labelled"] else ""
        rows["fitted on"] = f"{_count(fitted['images'], 'image')}{labelled}, {fitted['date']}"
    calibration = detector.calibration
    if detector.threshold is None:
        rows["threshold"] = "none, the rule of the method decides" if detector.method.is_ood else "none, no verdicts"
        return rows
    rows["threshold"] = describe_threshold(detector.threshold, calibration).removeprefix("threshold ")
    if calibration is None:
        rows["promise"] = "none, the threshold was set by hand"
        return rows
    if own := _thresholds_of_labels(calibration):
        rows["threshold"] = "\n".join((rows["threshold"], *own))
    rows["promise"] = calibration.promise
    if calibration.max_id_rejection is not None:
        unknown = f" of known and {calibration.n_ood:,} of unknown things" if calibration.n_ood else ""
        rows["calibrated on"] = f"{_count(calibration.n, 'image')}{unknown}, {calibration.date}"
    else:
        rows["guessed on"] = str(calibration.date)
    return rows


def _thresholds_of_labels(calibration: "Calibration") -> list[str]:
    """A line for each label with a threshold of its own, if there are few."""
    groups = calibration.groups
    if not 0 < len(groups) <= FEW_LABELS:
        return []
    width = max(len(printable(str(group.label))) for group in groups)
    return [
        f"  {printable(str(group.label)):<{width}}  {group.threshold:.6g} ({_count(group.n, 'image')})"
        for group in groups
    ]


def _promise(calibration: "Calibration") -> str:
    return calibration.promise if calibration.origin is None else f"{calibration.promise} ({calibration.origin})"


def _split_labels(text: str) -> list[str]:
    labels = [label.strip() for label in text.split(",")]
    for position, label in enumerate(labels, start=1):
        if not label:
            raise ValueError(f"Label {position} of --labels {text!r} is empty; remove a comma, or name the label.")
    return labels


def _read_labels(path: Path) -> list[str]:
    try:
        # Some editors put a byte order mark in front.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The labels file {path} is not text in UTF-8 ({error}); save it as such.") from error
    labels = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not labels:
        raise ValueError(f"The labels file {path} has no labels; write one per line.")
    return labels


@contextlib.contextmanager
def _loading(model: str | None, kind: str = "model") -> Iterator[None]:
    """Load a model: errors become those that `main` reports."""
    from .encoders import IncompleteCheckpointError

    _prepare_loading(model, kind)
    loggers = [logging.getLogger(name) for name in ("transformers.modeling_utils", "transformers.integrations.peft")]
    for logger in loggers:
        logger.addFilter(_is_worth_saying)
    try:
        yield
    # torch asserts that it was built for the device.
    except (IncompleteCheckpointError, AssertionError) as error:
        raise ValueError(str(error)) from error
    finally:
        for logger in loggers:
            logger.removeFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Withhold the tables of transformers about weights that are missing or do not fit: the error names them."""
    message = record.getMessage()
    return "LOAD REPORT" not in message or ("MISSING" not in message and "MISMATCH" not in message)


def _prepare_loading(model: str | None, kind: str = "model") -> None:
    """Make transformers know CLIPN, and hide progress bars, unless of a download that somebody may watch."""
    from transformers.utils.logging import disable_progress_bar

    from .modeling import register_auto_classes

    register_auto_classes()
    # Of what can be no id of the Hub, which has one slash at most, transformers would only say that.
    if model and not os.path.isdir(model) and (os.path.isabs(model) or model[0] in ".~" or model.count("/") > 1):
        raise ValueError(f"There is no folder {model}; name one with a {kind}, or the id of a {kind} on the Hub.")
    if model is None or os.path.isdir(model) or not sys.stderr.isatty():
        disable_progress_bar()


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"`--device` must be a device of torch, such as cpu or cuda:1, got {device!r}.") from error


def _check_output(path: Path, extensions: Sequence[str] = ()) -> None:
    """Find out what would only fail at the end."""
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise ValueError(f"The output {path} is not a regular file; to write to a device, redirect standard output.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"The folder of the output {path} does not exist; make it first.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"The folder of the output {path} may not be written to; choose another one.")
    if extensions and path.suffix.lower() not in extensions:
        raise ValueError(f"The name of the picture {path} must end in {_alternatives(extensions)}.")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _report(f"Warning: {message}")


def _report(message: str) -> None:
    """Print a message on standard error, in one line."""
    print(printable(" ".join(message.split())), file=sys.stderr)
