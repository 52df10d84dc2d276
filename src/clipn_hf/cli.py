# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `clipn-hf`.

What a subcommand needs beyond the package itself is imported when it runs.
"""

import contextlib
import csv
import importlib.metadata
import itertools
import json
import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from clipn_hf.detector import OODDetector, OODResult

READERS = min(16, os.cpu_count() or 1)
MAX_TILES = 200
PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg")
CSV_COLUMNS = ("file", "is_ood", "ood_score", "threshold", "method", "label", "score", "error")
VERDICTS = {False: ("known", "green"), True: ("unknown", "dark_orange3"), None: ("scored", "dim")}

Record = Mapping[str, Any]

app = typer.Typer(
    help="Tells images of known things from images of anything else, with CLIP and CLIPN.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """What `detect` writes."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process.

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
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="The known things, separated by commas.", show_default=False)
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The known things, one per line. Blank lines and lines that begin with # are skipped.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of the model.", show_default="the embedded checkpoint")
    ] = None,
    method: Annotated[str, typer.Option(help="atd, ctw, mcm, msp, max_logit or energy.")] = "atd",
    threshold: Annotated[
        float | None,
        typer.Option(help="The score above which an image is unknown.", show_default="the rule of atd and ctw"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels a jsonl record lists.")] = 5,
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
    batch_size: Annotated[int, typer.Option(min=1, help="Images per pass through the model.")] = 32,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1.", show_default="an accelerator, if there is one")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders at every depth.")] = False,
) -> None:
    """Judge images: does each show one of the labels (known) or something else (unknown)?"""
    if (labels is None) == (labels_file is None):
        raise typer.BadParameter("exactly one of the two is needed", param_hint="'--labels' / '--labels-file'")
    if output is not None:
        _check_output(output)
    if contact_sheet is not None:
        _check_output(contact_sheet, PICTURE_EXTENSIONS)
    if format is None:
        extension = "" if output is None else output.suffix[1:].lower()
        format = Format(extension) if extension in list(Format) else Format.TABLE
    known = _read_labels(labels_file) if labels_file else [label.strip() for label in (labels or "").split(",")]

    from clipn_hf.detector import OODDetector
    from clipn_hf.images import find_images

    files = find_images(paths, recursive)
    if not files:
        advice = "" if recursive else "; to search the folders inside, add --recursive"
        raise ValueError(f"there are no images in {', '.join(paths)}{advice}")

    with _loading(model):
        detector = OODDetector(model, known, method, threshold=threshold, device=device)
    detector.explain_missing_verdict()
    counts: Counter[str] = Counter()
    pictures: list[tuple[Image.Image, Record]] = []
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout
        if output is not None:
            temporary = stack.enter_context(_appearing_complete(output))
            # What is not text in the name of a file is written as an escape that JSON knows.
            stream = stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        write = WRITERS[format](stream, known)
        # Results that scroll by in the terminal are progress enough.
        hidden = not sys.stderr.isatty() or (output is None and sys.stdout.isatty())
        judged = _judge(detector, files, top_k, batch_size, MAX_TILES if contact_sheet is not None else 0)
        for record, thumbnail in tqdm(judged, total=len(files), unit=" images", disable=hidden):
            write(record)
            verdict = "unreadable" if "error" in record else VERDICTS[record["is_ood"]][0]
            counts[verdict] += 1
            if "error" in record:
                tqdm.write(_printable(f"{record['file']}: {record['error']}"), file=sys.stderr)
            if thumbnail is not None:
                pictures.append((thumbnail, record))
    number = "1 image" if len(files) == 1 else f"{len(files):,} images"
    summary = f"{number}: " + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))
    if contact_sheet is not None and pictures:
        _save_contact_sheet(contact_sheet, pictures, summary, detector)
    _report(summary)
    if counts["unreadable"]:
        raise typer.Exit(3)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Hub id or folder of the model.", show_default="the embedded checkpoint")
    ] = None,
) -> None:
    """Show what a checkpoint is and which methods it serves."""
    from transformers import AutoConfig

    from clipn_hf.detector import OODDetector
    from clipn_hf.encoders import EMBEDDED_CHECKPOINT, DualEncoder
    from clipn_hf.methods import METHODS
    from clipn_hf.prompts import DEFAULT_TEMPLATES

    source = EMBEDDED_CHECKPOINT if model is None else model
    with _loading(source):
        encoder = DualEncoder.from_pretrained(source, device="cpu")
    config = encoder.model.config
    vision, text = config.vision_config, config.text_config
    rows = {
        "checkpoint": source if model is not None else f"{Path(source).name}, embedded in clipn-hf",
        "model": f"{type(encoder.model).__name__}, type {config.model_type}",
        "image encoder": f"{vision.num_hidden_layers} layers of width {vision.hidden_size}, "
        f"{vision.image_size} × {vision.image_size} pixels in patches of {vision.patch_size}",
        "text encoder": f"{text.num_hidden_layers} layers of width {text.hidden_size}, {text.vocab_size:,} tokens, "
        f"at most {text.max_position_embeddings} per text",
    }
    if encoder.has_no_encoder:
        learnable = config.no_prompt_type == "learnable"
        rows['"no" prompts'] = f"learnable, {config.num_no_prompts}" if learnable else "hand-crafted"
    rows["embeddings"] = f"{config.projection_dim} dimensions"
    rows["parameters"] = f"{sum(weight.numel() for weight in encoder.model.parameters()):,}"
    # The model in memory is float32 whatever its file holds.
    stored_dtype = AutoConfig.from_pretrained(encoder.model.name_or_path).dtype
    if stored_dtype is not None:
        rows["stored as"] = str(stored_dtype).removeprefix("torch.")
    rows["logit scale"] = f"{encoder.logit_scale:.4g}"
    pools = [
        getattr(encoder.processor, name, None) or getattr(config, name, None) or DEFAULT_TEMPLATES
        for name in ("templates", "no_templates")
    ]
    rows["templates"] = "\n".join(pools[0])
    if encoder.has_no_encoder and list(pools[0]) != list(pools[1]):
        rows['"no" templates'] = "\n".join(pools[1])
    served, reasons = [], []
    for method in METHODS:
        try:
            OODDetector(encoder, ["known", "other"], method)
            served.append(method)
        except ValueError as error:
            reasons.append(str(error))
    rows["methods"] = ", ".join(served)
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
    activation: Annotated[str, typer.Option(help="gelu, or quick_gelu for weights of OpenAI.")] = "gelu",
    vision_heads: Annotated[
        int | None, typer.Option(help="Attention heads of the image encoder.", show_default="its width / 64")
    ] = None,
    text_heads: Annotated[
        int | None, typer.Option(help="Attention heads of the text encoder.", show_default="its width / 64")
    ] = None,
    eos_token_id: Annotated[
        int | None,
        typer.Option(help="The token that ends texts.", show_default="the processor's, or the last of the vocabulary"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Turn an original checkpoint into a folder that from_pretrained loads."""
    from clipn_hf.modeling.conversion import convert_checkpoint, format_summary

    _hide_progress_bars(processor)
    summary = convert_checkpoint(
        source,
        output,
        processor=processor,
        activation=activation,
        vision_heads=vision_heads,
        text_heads=text_heads,
        eos_token_id=eos_token_id,
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

    from clipn_hf.demo import demo_sheet, demo_table, judge_samples
    from clipn_hf.encoders import EMBEDDED_CHECKPOINT

    with _loading(EMBEDDED_CHECKPOINT):
        samples = judge_samples()
    Console(highlight=False).print(demo_table(samples))
    with _appearing_complete(output) as temporary:
        demo_sheet(samples).save(temporary)
    print(f"The same as a picture: {output.resolve()}")


def _judge(
    detector: "OODDetector", files: Sequence[str], top_k: int, batch_size: int, max_thumbnails: int
) -> Iterator[tuple[Record, "Image.Image | None"]]:
    """Yields the record of each file, in order, and a small copy of each of the first images.

    Threads read and prepare images while the model is busy with those before; a few batches are in memory at most.
    """
    import torch

    from clipn_hf.evaluation.contact_sheet import fit_picture
    from clipn_hf.images import ImageError, load_image

    def read(file: str, with_thumbnail: bool) -> "tuple[Tensor, Image.Image | None] | ImageError":
        try:
            image = load_image(file)
        except ImageError as error:
            return error
        thumbnail = fit_picture(image) if with_thumbnail else None
        return detector.encoder.pixel_values([image], start=None), thumbnail

    def read_ahead() -> "Iterator[tuple[str, tuple[Tensor, Image.Image | None] | ImageError]]":
        pending: deque[tuple[str, Future[tuple[Tensor, Image.Image | None] | ImageError]]] = deque()
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
        pixel_values = [item[0] for _, item in batch if isinstance(item, tuple)]
        results: Iterator[OODResult] = iter(())
        if pixel_values:
            embeddings = detector.encoder.image_embeddings(torch.cat(pixel_values))
            results = iter(detector.results(embeddings, top_k))
        for file, item in batch:
            if isinstance(item, tuple):
                yield {"file": file, **next(results)}, item[1]
            else:
                yield {"file": file, "error": item.reason}, None


def _table_writer(stream: TextIO, labels: Sequence[str]) -> Callable[[Record], None]:
    console = Console(file=stream, highlight=False, soft_wrap=True)
    width = min(30, max(len("nearest label"), *map(cell_len, labels)))
    console.print(f"{'verdict':<11}{'score':>9}  {set_cell_size('nearest label', width)}        file", style="bold")

    def write(record: Record) -> None:
        if "error" in record:
            console.print(Text.assemble((f"{'unreadable':<{width + 30}}", "red"), _printable(record["file"])))
            return
        verdict, style = VERDICTS[record["is_ood"]]
        label = set_cell_size(_printable(record["label"]), width)
        console.print(
            Text.assemble(
                (f"{verdict:<11}", style),
                f"{record['ood_score']:>9.4f}  {label}  {record['score']:>4.0%}  {_printable(record['file'])}",
            )
        )

    return write


def _jsonl_writer(stream: TextIO, labels: Sequence[str]) -> Callable[[Record], None]:
    def write(record: Record) -> None:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")

    return write


def _csv_writer(stream: TextIO, labels: Sequence[str]) -> Callable[[Record], None]:
    rows = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()

    def write(record: Record) -> None:
        # The words of JSON, which most readers of CSV understand better than Python's.
        is_ood = record.get("is_ood")
        rows.writerow({**record, "is_ood": None if is_ood is None else json.dumps(is_ood)})

    return write


WRITERS = {Format.TABLE: _table_writer, Format.JSONL: _jsonl_writer, Format.CSV: _csv_writer}


def _save_contact_sheet(
    path: Path, judged: Sequence[tuple["Image.Image", Record]], title: str, detector: "OODDetector"
) -> None:
    from clipn_hf.evaluation.contact_sheet import Tile, contact_sheet

    tiles = [
        Tile(
            thumbnail,
            record["is_ood"],
            record["ood_score"],
            record["label"],
            group=VERDICTS[record["is_ood"]][0].capitalize(),
        )
        for thumbnail, record in judged
    ]
    tiles.sort(key=lambda tile: (tile.is_ood is True, tile.ood_score))
    rule = "" if detector.threshold is None else f", threshold {detector.threshold:g}"
    number = f"the first {MAX_TILES} images" if len(tiles) == MAX_TILES else "all images"
    subtitle = f"{detector.method.title}{rule}: {number} by rising OOD score, each with its nearest label."
    with _appearing_complete(path) as temporary:
        contact_sheet(tiles, title=title, subtitle=subtitle).save(temporary)


def _read_labels(path: Path) -> list[str]:
    try:
        # Some editors put a byte order mark in front.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"the labels file {path} is not text in UTF-8 ({error}); save it in that encoding") from error
    labels = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not labels:
        raise ValueError(f"the labels file {path} has no labels; write one per line")
    return labels


@contextlib.contextmanager
def _loading(model: str | None) -> Iterator[None]:
    """Around the loading of a model: errors become those that `main` reports, progress bars only show downloads."""
    from clipn_hf.encoders import IncompleteCheckpointError

    _hide_progress_bars(model)
    try:
        yield
    # torch asserts that it was built for the device.
    except (IncompleteCheckpointError, AssertionError) as error:
        raise ValueError(str(error)) from error


def _hide_progress_bars(model: str | None) -> None:
    """Hides the progress bars of loading `model`, unless it may be a download that somebody watches."""
    from transformers.utils import logging

    if model is None or os.path.isdir(model) or not sys.stderr.isatty():
        logging.disable_progress_bar()


def _check_output(path: Path, extensions: Sequence[str] = ()) -> None:
    """Finds out what would only fail at the end."""
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"the output {path} is not a regular file; to write to a device, redirect standard output")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the folder of the output {path} does not exist; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"the folder of the output {path} may not be written to; choose another one")
    if extensions and path.suffix.lower() not in extensions:
        raise ValueError(f"the picture {path} must end in {' or '.join(extensions)}")


@contextlib.contextmanager
def _appearing_complete(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to, which becomes `path` at the end, and vanishes after an error."""
    path = path.resolve()
    # The extension stays at the end, because Pillow goes by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _report(f"Warning: {message}")


def _report(message: str) -> None:
    """Prints a message on standard error, in one line."""
    print(_printable(" ".join(message.split())), file=sys.stderr)


def _printable(text: str) -> str:
    """Escapes what may hide in the name of a file: line breaks, commands for the terminal, halves of characters."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
