# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `clipn-hf`.

What a subcommand needs beyond the package itself is imported when it runs.
"""

import contextlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from .cli_evaluation import compare, evaluate
from .files import atomic_path
from .methods import METHODS
from .prompts import DEFAULT_TEMPLATES
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

    from .calibration import Calibration

PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg")
DEFAULT_METHOD = "atd"
NEED_WORDS = {"no": "CLIPN", "training": "ID images", "training_labels": "with labels"}


def _alternatives(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _complete_method(incomplete: str) -> list[tuple[str, str]]:
    return [(method.name, method.title) for method in METHODS.values() if method.name.startswith(incomplete)]


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
MethodName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"{_alternatives(METHODS)}; `clipn-hf methods` tells about them.",
        autocompletion=_complete_method,
        show_default="atd",
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
    method: MethodName = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="DETECTOR",
            help="Hub id or folder of a detector, such as `calibrate` writes, in place of labels, model, method and "
            "templates.",
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
    known = None if detector is not None else _known(labels, labels_file)

    from .detector import OODDetector

    files = _find_images(paths, recursive)
    _check_device(device)
    with _loading(detector or model):
        if known is None:
            judge = OODDetector.from_pretrained(detector or "", device=device)
            if threshold is not None:
                judge.threshold = threshold
        else:
            judge = OODDetector(
                model,
                known,
                method or DEFAULT_METHOD,
                templates=templates,
                no_templates=no_templates,
                threshold=threshold,
                device=device,
            )
    judge.explain_missing_verdict()
    counts: Counter[str] = Counter()
    pictures: list[tuple[Image.Image, Record]] = []
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout
        if output is not None:
            partial = stack.enter_context(atomic_path(output))
            # What is not text in the name of a file is written as an escape that JSON knows.
            stream = stack.enter_context(partial.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        write = record_writer(format, stream, judge.labels)
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
    if judge.calibration is not None:
        _report(_promise(judge.calibration))
    if counts[UNREADABLE]:
        raise typer.Exit(3)


@app.command(no_args_is_help=True)
def calibrate(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Images of known things: files, folders, glob patterns or addresses."),
    ],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the detector to write.")],
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Model = None,
    method: MethodName = None,
    templates: Templates = None,
    no_templates: NoTemplates = None,
    max_id_rejection: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of new images of known things that may be called unknown.")
    ] = 0.05,
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
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output {output} is a file; name a folder.")
    known = _known(labels, labels_file)

    from .detector import OODDetector

    files = _find_images(paths, recursive)
    fitted_files = _find_images(fit_on, recursive=True) if fit_on else None
    unknown_files = _find_images(ood_images, recursive) if ood_images else None
    _check_device(device)
    with _loading(model):
        detector = OODDetector(
            model,
            known,
            method or DEFAULT_METHOD,
            templates=templates,
            no_templates=no_templates,
            device=device,
        )
    if detector.method.fit is None and fitted_files:
        raise ValueError(f"Method {detector.method.name} learns nothing from images; leave out --fit-on.")
    folders = None
    if fitted_files and "training_labels" in detector.method.needs:
        folders = [Path(file).resolve().parent.name for file in fitted_files]
    detector.fit(fitted_files, folders, batch_size=batch_size)
    calibration = detector.calibrate(
        files,
        max_id_rejection,
        delta,
        per_label=per_label,
        ood_images=unknown_files,
        max_ood_acceptance=max_ood_acceptance,
        batch_size=batch_size,
    )
    detector.save_pretrained(output, include_weights)
    print(f"Threshold {calibration.threshold:.6g} from {calibration.n:,} images")
    _report(_promise(calibration))
    print(printable(f"Written to {output}; use it by: clipn-hf detect PATH... --detector {output}"))


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
        str | None, typer.Argument(help="Hub id or folder of the model.", show_default="the embedded checkpoint")
    ] = None,
) -> None:
    """Show what a checkpoint is and which methods it serves."""
    from transformers import AutoConfig

    from .detector import unserved
    from .encoders import EMBEDDED_CHECKPOINT, DualEncoder
    from .modeling.description import describe_config

    source = EMBEDDED_CHECKPOINT if model is None else model
    with _loading(source):
        encoder = DualEncoder.from_pretrained(source, device="cpu")
    config = encoder.model.config
    rows = {
        "checkpoint": source if model is not None else f"{Path(source).name}, embedded in clipn-hf",
        "model": f"{type(encoder.model).__name__}, type {config.model_type}",
        **describe_config(config),
    }
    rows["parameters"] = f"{sum(weight.numel() for weight in encoder.model.parameters()):,}"
    # The model in memory is float32 whatever its file holds.
    stored_dtype = AutoConfig.from_pretrained(encoder.model.name_or_path).dtype
    if stored_dtype is not None:
        rows["stored as"] = str(stored_dtype).removeprefix("torch.")
    rows["logit scale"] = f"{encoder.logit_scale:.4g}"
    rows["templates"] = "\n".join(encoder.templates)
    if encoder.has_no_encoder and encoder.no_templates != encoder.templates:
        rows['"no" templates'] = "\n".join(encoder.no_templates)
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


def _promise(calibration: "Calibration") -> str:
    if calibration.data_sha256 is None:
        return calibration.promise
    return f"{calibration.promise} (calibrated {calibration.date}, images {calibration.data_sha256[:12]}…)"


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
def _loading(model: str | None) -> Iterator[None]:
    """Load a model: errors become those that `main` reports."""
    from .encoders import IncompleteCheckpointError

    _prepare_loading(model)
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


def _prepare_loading(model: str | None) -> None:
    """Make transformers know CLIPN, and hide progress bars, unless of a download that somebody may watch."""
    from transformers.utils.logging import disable_progress_bar

    from .modeling import register_auto_classes

    register_auto_classes()
    # Of what can be no id of the Hub, which has one slash at most, transformers would only say that.
    if model and not os.path.isdir(model) and (os.path.isabs(model) or model[0] in ".~" or model.count("/") > 1):
        raise ValueError(f"There is no folder {model}; name one with a model, or the id of a model on the Hub.")
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
