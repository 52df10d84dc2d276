# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of `clipn-hf` share: options, how they are read and checked, loading, and messages."""

import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .methods import METHODS, Method
from .negative_settings import CORPORA
from .prompts import validate_labels
from .records import printable

if TYPE_CHECKING:
    from .calibration import Calibration
    from .detector import OODDetector

PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg")
DEFAULT_METHOD = "atd"
UNFITTED_METHODS = {name: method for name, method in METHODS.items() if method.fit is None}
# Lists of labels that are longer are cut.
FEW_LABELS = 10
# So many are embedded in seconds.
FEW_CANDIDATES = 2_000

Images = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Images, folders, glob patterns or http(s) addresses.")
]
SavedDetector = Annotated[
    str | None,
    typer.Option(
        metavar="DETECTOR",
        help="Hub id or folder of a detector, such as `calibrate` writes, in place of labels, model, method, its "
        "settings and templates.",
        show_default=False,
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
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help='Text around a label, such as "a photo of a {}."; repeat the option for several, which are averaged.',
        show_default="those of the method or the model",
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
Negatives = Annotated[
    Path | None,
    typer.Option(
        "--negatives",
        metavar="FILE",
        help="Negative labels, things that images may show besides the labels: a file that `clipn-hf mine` wrote, or "
        "any text file with one per line.",
        show_default="mined from WordNet by methods that need them, else none",
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Images per pass through the model.")]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="Such as cpu or cuda:1.", show_default="an accelerator, if there is one"),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search folders at every depth.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        help="The folder of the cache.",
        show_default="$CLIPN_HF_CACHE, or clipn_hf in $HF_HOME or ~/.cache",
    ),
]


def alternatives(names: Iterable[str]) -> str:
    """Word a choice, such as "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def method_option(methods: Mapping[str, Method]) -> Any:
    """Make the option `--method` of a subcommand that knows some methods."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(name, method.title) for name, method in methods.items() if name.startswith(incomplete)]

    return typer.Option(
        metavar="NAME",
        help=f"{alternatives(methods)}; `clipn-hf methods` tells about them.",
        autocompletion=complete,
        show_default=f"{DEFAULT_METHOD}, or that of learned prompts" if DEFAULT_METHOD in methods else True,
    )


def known_labels(labels: str | None, labels_file: Path | None) -> list[str]:
    """Read the labels, of which one of the two options tells."""
    if labels_file:
        return validate_labels(read_labels(labels_file), "--labels-file")
    return validate_labels(split_labels(labels or ""), "--labels")


def split_labels(text: str) -> list[str]:
    """Read what was given as `--labels`."""
    labels = [label.strip() for label in text.split(",")]
    for position, label in enumerate(labels, start=1):
        if not label:
            raise ValueError(f"Label {position} of --labels {text!r} is empty; remove a comma, or name the label.")
    return labels


def read_labels(path: Path, kind: str = "labels") -> list[str]:
    """Read the file that was given as `--labels-file`, or another of the kind."""
    try:
        # Some editors put a byte order mark in front.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The {kind} file {path} is not text in UTF-8 ({error}); save it as such.") from error
    labels = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not labels:
        raise ValueError(f"The {kind} file {path} has no {kind}; write one per line.")
    return labels


def found_images(paths: Sequence[str], recursive: bool) -> list[str]:
    """Find the images that were named, at least one."""
    from .images import find_images

    files = find_images(paths, recursive)
    if not files:
        advice = "." if recursive else "; to search the folders inside, add --recursive."
        raise ValueError(f"There are no images in {', '.join(paths)}{advice}")
    return files


def model_or_embedded(model: str | None) -> str:
    """Take the embedded checkpoint where no model was named, and say so."""
    from .encoders import EMBEDDED_CHECKPOINT

    if model is not None:
        return model
    report(
        "No `--model` given: using the embedded clipn-tiny, a small CLIPN trained on emoji drawings, good for first "
        "steps. For photographs give a real one, such as --model openai/clip-vit-base-patch16 with --method mcm."
    )
    return EMBEDDED_CHECKPOINT


def named_method(name: str | None, methods: Mapping[str, Method] = METHODS, model: str | None = None) -> Method:
    """Find the method that was given as `--method`, if any, among those that a subcommand knows.

    By default it is that of the prompts which the model has learned, if it has.
    """
    if name is None:
        if model is None:
            return METHODS[DEFAULT_METHOD]
        from .detector_checks import default_method
        from .loading import peek_learned_prompts

        with loading(model):
            return METHODS[default_method(peek_learned_prompts(model))]
    if name not in methods:
        raise ValueError(f"`--method` must be one of {', '.join(methods)}, got {name!r}.")
    return methods[name]


def read_settings(method: Method, texts: Sequence[str] | None) -> dict[str, Any]:
    """Read what was given as `--setting`: as in JSON, or None; everything else is a word."""
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
        # As Python words it, and what advice says that is written for both.
        value = None if word in ("none", "None") else read_value(word)
        if isinstance(defaults[name], bool) and not isinstance(value, bool):
            raise ValueError(f"`--setting {name}` must be true or false, got {word!r}.")
        settings[name] = value
    return settings


def read_value(word: str) -> Any:
    """Read a value as in JSON; what is none is a word."""
    # JSON knows no .5 and no 1.
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(word)
    return word


def check_settings(method: Method, settings: Mapping[str, Any]) -> None:
    """Find out before a model is loaded which values the score refuses."""
    if not settings or method.fit is not None:
        return

    from torch import zeros

    from .methods import MethodInputs

    cosines = zeros(1, max(2, method.min_labels))
    inputs = MethodInputs(
        cosines,
        cosines,
        cosines,
        image_embeddings=zeros(1, 1),
        # Nobody knows yet how many negative labels there will be: let them be more than any groups.
        negative_embeddings=zeros(10**6, 1),
        embed_pairs=lambda pairs: zeros(len(pairs), 1),
        patch_summary=zeros(1),
        unknown_similarity=zeros(1),
    )
    with naming_settings(settings):
        if method.summarize is not None:
            chosen = method.settings_of(method.summarize, {**method.settings, **settings})
            method.summarize(cosines[:, None], **chosen)
        if method.perturb is not None:
            chosen = method.settings_of(method.perturb, {**method.settings, **settings})
            pixels = zeros(1, 1)
            method.perturb(pixels, lambda pixels: replace(inputs, logits=cosines + pixels), pixels + 1, **chosen)
        method.score(inputs, **method.settings_of(method.score, {**method.settings, **settings}))


def check_negatives(path: Path | None) -> None:
    """Find out before a model is loaded that there is no file of negative labels, or nothing in it."""
    if path is None:
        return
    if not path.exists() and str(path) in CORPORA:
        raise ValueError(
            f"`--negatives` must be a file, got the name of the corpus {path}; mine negative labels from it by "
            f"`clipn-hf mine --corpus {path} --out FILE.safetensors` with the same labels and model, and name that "
            "file."
        )
    if not path.is_file():
        raise ValueError(
            f"`--negatives` must be a file that `clipn-hf mine` wrote, or a text file with one negative label per "
            f"line; there is none at {path}."
        )
    if path.suffix != ".safetensors":
        read_labels(path, "negative labels")


def announce_mining(
    method: Method, negatives: Path | None, labels: Sequence[str], templates: Sequence[str] | None = None
) -> None:
    """Say before it begins that negative labels are mined, which may take minutes."""
    if negatives is None and "negatives" not in method.needs:
        return

    from .negatives import NegativeLabels, load_corpus

    if negatives is None:
        corpus = str(method.mining.get("corpus", "wordnet"))
        report(
            f"Method {method.name} mines negative labels for your labels. "
            f"{mining_cost(len(load_corpus(corpus)), corpus)} To use others, name a file by `--negatives`."
        )
    elif negatives.suffix == ".safetensors":
        bank = NegativeLabels.load(negatives)
        if bank.mined_for is None:
            return
        others = ["labels"] if set(bank.mined_for) != set(labels) else []
        if templates and "negatives" in method.needs and list(templates) != bank.settings["templates"]:
            others.append("templates")
        corpus = str(bank.settings["corpus"])
        # Where they are gone nothing is mined, which is said by the detector.
        if others and (corpus in CORPORA or Path(corpus).is_file()):
            cost = mining_cost(bank.report["candidates"], corpus)
            report(
                f"The negative labels in {negatives} were mined for other {' and '.join(others)}; they are mined "
                f"again for yours. {cost}"
            )


def mining_cost(count: int, corpus: str, kept: bool = True) -> str:
    """Say what mining does and how long it may take."""
    work = f"The model embeds {counted(count, 'candidate')} of {corpus}"
    if count < FEW_CANDIDATES:
        return f"{work}."
    again = "they are not kept"
    if kept:
        work += ", those that are not on disk yet"
        again = "they are kept, for the next time to take seconds"
    return f"{work}, which may take minutes on a CPU and takes seconds on a GPU; {again}."


@contextlib.contextmanager
def naming_negatives(negatives: Path | None) -> Iterator[None]:
    """Name the file of negative labels where errors and warnings name arguments of Python."""
    words = {
        'add "id_names" to `filters`': "mine without them by `clipn-hf mine --filter id_names`",
        "Give others as `negatives`, in `with_changes` together with what changes.": "Mine others by `clipn-hf mine`.",
        'give `templates`, such as ["a photo of a {}."], which do': 'give `--template "a photo of a {}."`, which does',
        "`templates`": "`--template`",
    }
    if negatives is not None:
        words["`negatives`"] = f"`--negatives` {negatives}"
    with rewording(words):
        yield


@contextlib.contextmanager
def rewording(words: Mapping[str, str]) -> Iterator[None]:
    """Replace words in errors about arguments, and in what mining warns of."""
    loggers = [logging.getLogger(f"{__package__}.{name}") for name in ("detector_negatives", "negatives.bank")]

    def reword(text: str) -> str:
        for old, new in words.items():
            text = text.replace(old, new)
        return text

    def reword_record(record: logging.LogRecord) -> bool:
        record.msg, record.args = reword(record.getMessage()), ()
        return True

    for logger in loggers:
        logger.addFilter(reword_record)
    try:
        yield
    except (TypeError, ValueError) as error:
        if (message := reword(str(error))) == str(error):
            raise
        raise ValueError(message) from error
    finally:
        for logger in loggers:
            logger.removeFilter(reword_record)


@contextlib.contextmanager
def naming_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Say of errors about a setting that was given where it was given."""
    try:
        yield
    except (TypeError, ValueError) as error:
        for name in settings:
            if str(error).startswith(f"`{name}` "):
                raise ValueError(f"`--setting {name}` does not fit: {error}") from error
        raise


@contextlib.contextmanager
def loading(model: str | None, kind: str = "model") -> Iterator[None]:
    """Load a model: errors become those that `main` reports."""
    from .encoders import IncompleteCheckpointError

    prepare_loading(model, kind)
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


def prepare_loading(model: str | None, kind: str = "model") -> None:
    """Make transformers know CLIPN, and hide progress bars, unless of a download that somebody may watch."""
    from transformers.utils.logging import disable_progress_bar

    from .modeling import register_auto_classes

    register_auto_classes()
    # Of what can be no id of the Hub, which has one slash at most, transformers would only say that.
    if model and not os.path.isdir(model) and (os.path.isabs(model) or model[0] in ".~" or model.count("/") > 1):
        raise ValueError(f"There is no folder {model}; name one with a {kind}, or the id of a {kind} on the Hub.")
    if model is None or os.path.isdir(model) or not sys.stderr.isatty():
        disable_progress_bar()


def check_device(device: str | None) -> None:
    """Find out before a model is loaded whether torch knows the device."""
    import torch

    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"`--device` must be a device of torch, such as cpu or cuda:1, got {device!r}.") from error


def make_detector(
    model: str | None,
    labels: Sequence[str],
    method: Method,
    settings: Mapping[str, Any],
    *,
    templates: Sequence[str] | None,
    no_templates: Sequence[str] | None,
    negatives: Path | None,
    device: str | None,
    threshold: float | None = None,
) -> "OODDetector":
    """Make the detector that options describe, and say beforehand if that takes long."""
    from .detector import OODDetector

    check_device(device)
    check_settings(method, settings)
    with loading(model):
        source = model_or_embedded(model)
        announce_mining(method, negatives, labels, templates)
        # The settings that depend on the number of negative labels are refused only when these are there.
        with naming_settings(settings), naming_negatives(negatives):
            return OODDetector(
                source,
                labels,
                method.name,
                templates=templates,
                no_templates=no_templates,
                negatives=negatives,
                threshold=threshold,
                device=device,
                **settings,
            )


def check_needless(given: Mapping[str, object]) -> None:
    """Refuse options, by name, beside `--detector`, which says all that they would."""
    if names := [name for name, value in given.items() if value]:
        raise typer.BadParameter(
            f"The detector has its own; leave out {' and '.join(names)}.", param_hint="'--detector'"
        )


def load_detector(source: str, device: str | None) -> "OODDetector":
    """Load the detector that was given as `--detector`."""
    from .detector import OODDetector
    from .detector_files import read_detector

    with loading(source, "detector"):
        if read_detector(source) is None:
            raise ValueError(
                f"There is no detector at {source}: it has no detector.json. Name the folder or Hub id of one that "
                "`clipn-hf calibrate` made; a model is named by `--model`, with `--labels`."
            )
        return OODDetector.from_pretrained(source, device=device)


def labels_of_folders(files: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Take the name of its folder for the label of each image of `--fit-on`; each label needs some."""
    folders = [Path(file).resolve().parent.name for file in files]
    for file, folder in zip(files, folders, strict=True):
        if folder not in labels:
            raise ValueError(
                f"The image {file} of --fit-on lies in the folder {folder}, which is not among the labels: "
                f"{first_ones(labels)}. Rename the folder, or leave it out."
            )
    if absent := [label for label in labels if label not in folders]:
        raise ValueError(
            f"There are no images of --fit-on for {len(absent)} of {counted(len(labels), 'label')}: "
            f"{first_ones(absent)}. Put some into a folder of that name."
        )
    return folders


def check_output(path: Path, extensions: Sequence[str] = ()) -> None:
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
        raise ValueError(f"The name of the picture {path} must end in {alternatives(extensions)}.")


def counted(number: int, noun: str) -> str:
    """Word a number of things, such as "2 labels"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_ones(names: Sequence[str]) -> str:
    """List names, of many only the first."""
    more = f" and {len(names) - FEW_LABELS:,} more" if len(names) > FEW_LABELS else ""
    return f"{', '.join(names[:FEW_LABELS])}{more}"


def thresholds_of_labels(calibration: "Calibration") -> list[str]:
    """Make a line for each label with a threshold of its own, if there are few."""
    groups = calibration.groups
    if not 0 < len(groups) <= FEW_LABELS:
        return []
    width = max(len(printable(str(group.label))) for group in groups)
    return [
        f"  {printable(str(group.label)):<{width}}  {group.threshold:.6g} ({counted(group.n, 'image')})"
        for group in groups
    ]


def describe_promise(calibration: "Calibration") -> str:
    """Word what a threshold promises and, if it does not come from ID images, where it comes from."""
    return calibration.promise if calibration.origin is None else f"{calibration.promise} ({calibration.origin})"


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line; stands in for `warnings.showwarning`."""
    report(f"Warning: {message}")


def report(message: str) -> None:
    """Print a message on standard error, in one line."""
    print(printable(" ".join(message.split())), file=sys.stderr)


__all__ = [
    "DEFAULT_METHOD",
    "FEW_LABELS",
    "PICTURE_EXTENSIONS",
    "UNFITTED_METHODS",
    "BatchSize",
    "CacheDir",
    "Device",
    "Labels",
    "LabelsFile",
    "Model",
    "Negatives",
    "NoTemplates",
    "Recursive",
    "Settings",
    "Templates",
    "alternatives",
    "announce_mining",
    "check_device",
    "check_needless",
    "check_negatives",
    "check_output",
    "check_settings",
    "counted",
    "describe_promise",
    "first_ones",
    "found_images",
    "known_labels",
    "labels_of_folders",
    "load_detector",
    "loading",
    "make_detector",
    "method_option",
    "mining_cost",
    "model_or_embedded",
    "named_method",
    "naming_negatives",
    "naming_settings",
    "prepare_loading",
    "read_labels",
    "read_settings",
    "read_value",
    "report",
    "rewording",
    "show_warning",
    "split_labels",
    "thresholds_of_labels",
]
