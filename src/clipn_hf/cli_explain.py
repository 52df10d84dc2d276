# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `explain` of the command `clipn-hf`."""

import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    check_settings,
    counted,
    found_images,
    known_labels,
    load_detector,
    loading,
    method_option,
    named_method,
    naming_negatives,
    naming_settings,
    read_settings,
    report,
)
from .files import atomic_path
from .methods import METHODS
from .records import printable

if TYPE_CHECKING:
    from PIL import Image

    from .detector import OODDetector
    from .similarity_maps import Evidence, Explanation

# That of the module of pictures, which takes seconds to import.
MAX_EXPLANATIONS = 50
# Below the help of the subcommand.
EXIT_CODES = (
    "Exit codes: 0 all images were read; 1 bad input, then --output is not written; 2 wrong usage; 3 some images "
    "could not be read, all others were explained."
)


def explain(
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
            show_default="that of the detector, or the rule of the method, if it has one",
        ),
    ] = None,
    path: Annotated[
        Literal["surgery", "value", "discrepancy", "clip"],
        typer.Option(
            "--via",
            help="The way from patches to texts: by attention from values to values (surgery), without attention in "
            "the last block (value), by which gl_mcm judges, as CLIP itself leaves them (clip), which is known to be "
            "inverted, or the difference of surgery and clip (discrepancy), each map normalised by itself.",
        ),
    ] = "surgery",
    no: Annotated[
        bool, typer.Option("--no", help='Also what spoke for "no", with a CLIPN: that the label is not there.')
    ] = False,
    negatives: Negatives = None,
    top_k: Annotated[int, typer.Option(metavar="N", min=1, help="How many labels are explained at most.")] = 3,
    top_negatives: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many negative labels are explained at most.")
    ] = 3,
    absolute: Annotated[
        bool,
        typer.Option(
            "--absolute",
            help="Show cosines as they are, which are much alike for all labels, in place of what speaks for a label "
            'more than for all on average, and for "no" more than for the label.',
        ),
    ] = False,
    templates: Templates = None,
    no_templates: NoTemplates = None,
    output: Annotated[
        Path,
        typer.Option(
            "--out",
            "--output",
            metavar="FILE|FOLDER",
            help=f"The picture to write, {alternatives(PICTURE_EXTENSIONS)}, with all images below each other, "
            f"{MAX_EXPLANATIONS} at most; or a new or empty folder, for a picture of each. It appears when complete.",
        ),
    ] = Path("clipn-hf-explain.png"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all of it, maps included, as a line of JSON for each image.")
    ] = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    recursive: Recursive = False,
) -> None:
    """Draw which patches of images spoke for the labels, for "no", or for negative labels.

    Images are shown as the model sees them, which for most models is the middle of those that are not square.
    """
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
    to_folder = _is_folder(output)
    if not to_folder:
        check_output(output, PICTURE_EXTENSIONS)
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"`--threshold` must be finite, got {threshold}.")
    check_negatives(negatives)
    known = None if detector is not None else known_labels(labels, labels_file)
    files = found_images(paths, recursive)
    if not to_folder and len(files) > MAX_EXPLANATIONS:
        raise ValueError(
            f"One picture has room for {MAX_EXPLANATIONS} images, and there are {len(files):,}; name a folder by "
            "`--output`, for a picture of each."
        )
    check_device(device)
    if detector is not None:
        judge = load_detector(detector, device)
        if negatives is not None and "negatives" in judge.method.needs:
            raise ValueError(
                f"The detector {detector} judges by negative labels of its own; leave out --negatives, or make "
                "another detector by `clipn-hf calibrate --negatives FILE`."
            )
        if negatives is not None:
            announce_mining(judge.method, negatives, judge.labels)
            with naming_negatives(negatives):
                judge.negatives = negatives
        if threshold is not None:
            judge.threshold = threshold
    else:
        assert known is not None
        judge = _make_detector(
            model,
            known,
            method=method,
            settings=settings,
            templates=templates,
            no_templates=no_templates,
            negatives=negatives,
            device=device,
            threshold=threshold,
        )
    if no and not judge.image_encoder.has_no_encoder:
        raise ValueError(
            f'`--no` needs a CLIPN, and {type(judge.image_encoder.model).__name__} has no "no" text encoder; leave it '
            "out, or name another model."
        )

    from .heat_maps import draw_explanations

    drawn: list[tuple[str, Explanation]] = []
    names: set[str] = set()
    unreadable = 0
    with ExitStack() as stack:
        partial = stack.enter_context(atomic_path(output))
        if to_folder:
            partial.mkdir()
        options: dict[str, Any] = {"path": path, "top_k": top_k, "relative": not absolute, "no": no}
        for file, explanation in _explain_files(judge, files, batch_size, top_negatives=top_negatives, **options):
            if isinstance(explanation, str):
                unreadable += 1
                report(f"{file}: {explanation}")
                if as_json:
                    print(json.dumps({"file": file, "error": explanation}, ensure_ascii=False))
                continue
            if as_json:
                print(json.dumps(_record(file, explanation), ensure_ascii=False))
            else:
                _print_table(file, explanation)
            if to_folder:
                name = _free_name(file, names)
                draw_explanations([explanation], [os.path.basename(file)]).save(partial / name)
            else:
                drawn.append((file, explanation))
        if unreadable == len(files):
            raise typer.Exit(3)
        if drawn:
            draw_explanations(
                [explanation for _, explanation in drawn], [os.path.basename(file) for file, _ in drawn]
            ).save(partial)
    report(f"{'Pictures' if to_folder else 'The same as a picture'}: {output.resolve()}")
    if unreadable:
        report(f"Left out: {counted(unreadable, 'image')} that could not be read.")
        raise typer.Exit(3)


def _is_folder(output: Path) -> bool:
    """Whether the output is a folder, which must be new or empty."""
    if not output.is_dir() and (output.suffix or output.exists()):
        return False
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"The output {output} has files already; name a new or empty folder.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"The folder of the output {output} does not exist; make it first.")
    return True


def _make_detector(
    model: str | None,
    labels: Sequence[str],
    *,
    method: str | None,
    settings: Sequence[str] | None,
    templates: Sequence[str] | None,
    no_templates: Sequence[str] | None,
    negatives: Path | None,
    device: str | None,
    threshold: float | None,
) -> "OODDetector":
    """Make the detector that options describe; without a method, by one that the model serves."""
    row = named_method(method, model=model)
    if row.fit is not None:
        raise ValueError(
            f"Method {row.name} is fitted on images; make a detector by `clipn-hf calibrate --method {row.name} "
            "--fit-on PATH`, and name it by `--detector`."
        )
    chosen = read_settings(row, settings)
    check_settings(row, chosen)

    from .detector import OODDetector
    from .encoders import EMBEDDED_CHECKPOINT, DualEncoder

    if model is None:
        report(
            "No `--model` given: using the embedded clipn-tiny, a small CLIPN trained on emoji drawings, good for "
            "first steps. For photographs give a real one, such as --model openai/clip-vit-base-patch16."
        )
    with loading(model):
        encoder = DualEncoder.from_pretrained(EMBEDDED_CHECKPOINT if model is None else model, device=device)
        if method is None and not chosen:
            # What spoke for a label is worth knowing also where the default method cannot judge.
            if "no" in row.needs and not encoder.has_no_encoder:
                row = METHODS["mcm"]
            if len(labels) < row.labels_needed(row.settings):
                row = METHODS["max_logit"]
        announce_mining(row, negatives, labels, templates)
        with naming_settings(chosen), naming_negatives(negatives):
            return OODDetector(
                encoder,
                labels,
                row.name,
                templates=templates,
                no_templates=no_templates,
                negatives=negatives,
                threshold=threshold,
                **chosen,
            )


def _explain_files(
    judge: "OODDetector", files: Sequence[str], batch_size: int, **options: Any
) -> "Iterator[tuple[str, Explanation | str]]":
    """Explain files, each of which comes with its explanation, or with the reason why it cannot be read."""
    from .images import ImageError, load_image

    def read(file: str) -> "Image.Image | str":
        try:
            return load_image(file)
        except ImageError as error:
            return error.reason

    remaining = iter(files)
    while batch := list(itertools.islice(remaining, batch_size)):
        images = [read(file) for file in batch]
        readable = [image for image in images if not isinstance(image, str)]
        explanations = iter(judge.explain(readable, batch_size=batch_size, **options))
        for file, image in zip(batch, images, strict=True):
            yield file, image if isinstance(image, str) else next(explanations)


def _free_name(file: str, taken: set[str]) -> str:
    """Name the picture of an image, unlike those of others."""
    stem = Path(file).stem or "image"
    name = next(
        name
        for number in itertools.count(1)
        if (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png").casefold() not in taken
    )
    taken.add(name.casefold())
    return name


def _print_table(file: str, explanation: "Explanation") -> None:
    """Print what was found about one image."""
    result = explanation.result
    # What is not shown on a terminal need not fit one.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    heading = f"{printable(file)}: {result['verdict']} ({result['method']}, OOD score {result['ood_score']:.4g})"
    console.print(Text(heading, style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("text", overflow="fold")
    table.add_column("prob.", justify="right", no_wrap=True)
    table.add_column("cosine", justify="right", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("where")
    for one in explanation.evidence:
        table.add_row(
            Text(printable(_name(one))),
            f"{one.probability:.0%}",
            f"{one.cosine:.3f}",
            f"{one.map.max():.3f}",
            Text(_describe_region(one)),
        )
    console.print(table)
    console.print()


def _name(one: "Evidence") -> str:
    names = {"label": "{}", "unknown": '"{}"', "no": 'no "{}"', "negative": "negative label {}"}
    return names[one.kind].format(one.text)


def _describe_region(one: "Evidence") -> str:
    """Such as "upper left: rows 1-3, columns 1-2 of 8 x 8 patches", counted from 1, or "nowhere"."""
    region = one.region
    if region is None:
        return "nowhere"
    rows, columns = region.grid

    def span(first: int, end: int, noun: str) -> str:
        return f"{noun} {first + 1}" if end - first == 1 else f"{noun}s {first + 1}-{end}"

    places = f"{span(region.top, region.bottom, 'row')}, {span(region.left, region.right, 'column')}"
    return f"{region.words}: {places} of {rows} x {columns} patches"


def _record(file: str, explanation: "Explanation") -> dict[str, Any]:
    """All about one image, as JSON knows it."""
    evidence = []
    for one in explanation.evidence:
        region = one.region
        evidence.append(
            {
                "kind": one.kind,
                "text": one.text,
                "probability": one.probability,
                "cosine": one.cosine,
                "where": region and region.words,
                "peak": float(one.map.max()),
                "strongest": region and [region.row, region.column],
                "box": region and list(region.pixels(explanation.image.size)),
                "map": one.map.tolist(),
            }
        )
    return {
        "file": file,
        **explanation.result,
        "path": explanation.path,
        "relative": explanation.relative,
        "seen_size": list(explanation.image.size),
        "evidence": evidence,
    }


__all__ = ["EXIT_CODES", "explain"]
