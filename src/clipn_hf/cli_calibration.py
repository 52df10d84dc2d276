# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `calibrate` of the command `clipn-hf`."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from .cli_options import (
    BatchSize,
    Device,
    Labels,
    LabelsFile,
    Model,
    Negatives,
    NoTemplates,
    Recursive,
    Settings,
    Templates,
    alternatives,
    check_needless,
    check_negatives,
    counted,
    describe_promise,
    first_ones,
    found_images,
    known_labels,
    labels_of_folders,
    load_detector,
    make_detector,
    method_option,
    named_method,
    naming_settings,
    read_settings,
    report,
    rewording,
    thresholds_of_labels,
)
from .methods import METHODS
from .methods.plp import describe_balance
from .records import describe_threshold, printable

if TYPE_CHECKING:
    from torch import Tensor

    from .detector import OODDetector
    from .encoders import DualEncoder

# Below the help of the subcommand.
EXIT_CODES = (
    "Exit codes: 0 all images were read; 1 bad input, then --output is not written; 2 wrong usage; 3 some "
    "images could not be read, the detector was made of all others."
)


class Rule(StrEnum):
    """How a threshold is found from scores."""

    CONFORMAL = "conformal"
    QUANTILE = "quantile"


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
    source: Annotated[
        str | None,
        typer.Option(
            "--detector",
            metavar="DETECTOR",
            help="Folder or Hub id of a detector to calibrate anew, such as that of a linear probe, in place of "
            "labels, model, method, settings, texts and images to fit on.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    method: Annotated[str | None, method_option(METHODS)] = None,
    settings: Settings = None,
    templates: Templates = None,
    no_templates: NoTemplates = None,
    negatives: Negatives = None,
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
            f"--method {alternatives(name for name, row in METHODS.items() if row.text_contrast is not None)}.",
        ),
    ] = False,
    include_weights: Annotated[
        bool | None,
        typer.Option(
            "--weights/--no-weights",
            help="Save the weights of the model, or where they are.",
            show_default="weights, or no-weights for an adapter",
        ),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    recursive: Recursive = False,
) -> None:
    """Make a detector: find the threshold from images of known things, and save it with all it needs."""
    if source is not None:
        check_needless(
            {
                "--labels": labels,
                "--labels-file": labels_file,
                "--model": model,
                "--method": method,
                "--setting": settings,
                "--template": templates,
                "--no-template": no_templates,
                "--negatives": negatives,
                "--fit-on": fit_on,
            }
        )
    elif (labels is None) == (labels_file is None):
        raise typer.BadParameter(
            "Exactly one of them is needed.", param_hint="'--labels' / '--labels-file' / '--detector'"
        )
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
    loaded = None if source is None else load_detector(source, device)
    known = known_labels(labels, labels_file) if loaded is None else loaded.labels
    row = named_method(method, model=model) if loaded is None else loaded.method
    if loaded is not None:
        loaded.check_fitted()
    if guess and row.text_contrast is None:
        able = alternatives(name for name, other in METHODS.items() if other.text_contrast is not None)
        raise ValueError(f"The scores of method {row.name} cannot be guessed from texts; use --method {able}.")
    if loaded is None and row.fit is None and fit_on:
        raise ValueError(f"Method {row.name} learns nothing from images; leave out --fit-on.")
    if loaded is None and row.fit is not None and not fit_on:
        raise ValueError(
            f"Method {row.name} is fitted on images; name some by --fit-on, other ones than those of PATH."
        )
    chosen = read_settings(row, settings)
    check_negatives(negatives)

    files = found_images(paths or (), recursive) if not guess else []
    fitted_files = found_images(fit_on, recursive=True) if fit_on else []
    unknown_files = found_images(ood_images, recursive) if ood_images else []
    folders = labels_of_folders(fitted_files, known) if fit_on and "training_labels" in row.needs else None
    detector = loaded or make_detector(
        model,
        known,
        row,
        chosen,
        templates=templates,
        no_templates=no_templates,
        negatives=negatives,
        device=device,
    )
    unreadable = 0
    if guess:
        calibration = detector.guess_threshold()
    else:
        if fitted_files:
            with naming_settings(chosen):
                detector.fit(fitted_files, folders, batch_size=batch_size)
            assert detector.fitted_on is not None
            unreadable += len(fitted_files) - detector.fitted_on["images"]
            if pseudo_labels := detector.fitted_on.get("pseudo_labels"):
                report(printable(f"Pseudo-labels: {describe_balance(pseudo_labels)}"))
        images = _read_images(files, detector.image_encoder, batch_size)
        unreadable += images.unreadable
        if seen := detector.count_fitted(images.files):
            fitted = "--fit-on has" if source is None else f"The detector {source} was fitted on"
            raise ValueError(
                f"{fitted} {seen:,} of the {counted(len(images.files), 'image')} of PATH, whose scores then are "
                "not those of new images; calibrate with others."
            )
        if not detector.knows_fitted_images:
            report(
                "The detector does not know which images its probe was trained on, and so cannot refuse them: see to "
                "it that there are none among those of PATH."
            )
        needed = _images_needed(max_id_rejection, rule, delta)
        _check_enough(len(images.files), needed, "known", "--max-id-rejection", max_id_rejection)
        if per_label:
            # Of images that are changed before they are judged, the label may be another one.
            to_judge = images.embeddings if row.perturb is None else list(images.files.values())
            _check_each_label(detector, to_judge, needed, batch_size)
        unknown_images = None
        if unknown_files:
            unknown_images = _read_images(unknown_files, detector.image_encoder, batch_size)
            unreadable += unknown_images.unreadable
            if shared := len(images.files.keys() & unknown_images.files.keys()):
                raise ValueError(
                    f"--unknown has {shared:,} of the {counted(len(images.files), 'image')} of PATH, too; name "
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
    with rewording({"`include_weights=True`": "`--weights`", "`include_weights`": "`--weights`"}):
        detector.save_pretrained(output, include_weights)
    origin = f"the texts of {counted(calibration.n, 'label')}" if guess else counted(calibration.n, "image")
    text = describe_threshold(calibration.threshold, calibration)
    print(f"{text[0].upper()}{text[1:]}, from {origin}")
    for line in thresholds_of_labels(calibration):
        print(line)
    # A guess has said already that it promises nothing.
    if not guess:
        report(describe_promise(calibration))
    print(printable(f"Written to {output}; use it by: clipn-hf detect PATH... --detector {output}"))
    if unreadable:
        report(f"Left out: {counted(unreadable, 'image')} that could not be read")
        raise typer.Exit(3)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
        report(f"{copies:,} of {counted(len(features.digests), 'image')} are copies of others; they count once.")
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


def _check_each_label(detector: "OODDetector", images: "Tensor | list[str]", needed: int, batch_size: int) -> None:
    counts = Counter(detector.predict(images, batch_size).tolist())
    small = [f"{label} ({counts[index]})" for index, label in enumerate(detector.labels) if counts[index] < needed]
    if small:
        raise ValueError(
            f"`--per-label` needs at least {counted(needed, 'image')} nearest to each label, but {len(small)} of "
            f"{counted(len(detector.labels), 'label')} have fewer: {first_ones(small)}. Give more images, put similar "
            "labels together, or leave out --per-label."
        )


__all__ = ["EXIT_CODES", "Rule", "calibrate"]
