# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images of classes, and images of none of them: what probes and fine-tuning are trained and evaluated on."""

import contextlib
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch

from ..encoders import DualEncoder
from ..features import Features, extract_features
from .data import load_labelled_images, parse_filter

# Extensions of files that are data sets, which no name of a set needs.
_EXTENSIONS = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tar")


@dataclass
class ClassificationDataArguments:
    """What is trained on and evaluated on. A data set is a Hub id, a folder, or files (patterns allowed)."""

    dataset: list[str] = field(
        metadata={"help": "Training images: Hub id, folder with a folder for each class, parquet files, .tar shards."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    split: str | None = field(
        default=None,
        metadata={"help": "Split of the training images, such as train[:1000]. Default: train, or the only one."},
    )
    image_column: str = field(default="image", metadata={"help": "Column of the image."})
    label_column: str | None = field(
        default="label", metadata={"help": "Column of the class; an empty text where the training images have none."}
    )
    labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes; where the data set has no such names, in the order of the numbers it has."
        },
    )
    filter: list[str] | None = field(
        default=None, metadata={"help": "Rows to keep: column=value or column=value,value; all have to hold."}
    )

    id_dataset: list[str] | None = field(
        default=None, metadata={"help": "Test images of the same classes. Default: another split of `dataset`."}
    )
    id_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of id_dataset. Default: as for training, if it is that set."}
    )
    id_split: str | None = field(
        default=None, metadata={"help": "Split of the test images. Default: test, or the only one of `id_dataset`."}
    )
    id_image_column: str | None = field(
        default=None, metadata={"help": "Column of the test image. Default: as `image_column`."}
    )
    id_label_column: str = field(default="label", metadata={"help": "Column of the class of the test images."})
    id_filter: list[str] | None = field(default=None, metadata={"help": "Rows of the test images to keep."})

    ood_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets of images of none of the classes: Hub ids, folders or files, or name=one of these."},
    )
    ood_split: list[str] | None = field(
        default=None,
        metadata={"help": "Split of all OOD sets, or one for each of them. Default: test, or the only one of a set."},
    )
    ood_image_column: list[str] | None = field(
        default=None,
        metadata={"help": "Column of the image of all OOD sets, or one for each of them. Default: as `image_column`."},
    )
    ood_filter: list[str] | None = field(default=None, metadata={"help": "Rows of all OOD sets to keep."})

    def __post_init__(self) -> None:
        sets = parse_ood_datasets(self.ood_datasets)
        for name in ("ood_split", "ood_image_column"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, len(sets)):
                what = "split" if name == "ood_split" else "column"
                raise ValueError(
                    f"`{name}` takes one {what} for all OOD sets or one for each of the {len(sets)}, got "
                    f"{len(values)}."
                )
        if not self.label_column and not self.labels:
            raise ValueError(
                "Without `label_column` nothing tells what the classes are called; name them in `labels`."
            )
        for name in ("filter", "id_filter", "ood_filter"):
            try:
                parse_filter(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from error


class ClassificationData(NamedTuple):
    """Data sets with the columns `image` (undecoded) and, where it is known, `label` (the position of the class).

    Args:
        labels (`list[str]`): The names of the classes.
        train ([`datasets.Dataset`]): Training images, without `label` where it is not known.
        id ([`datasets.Dataset`]): Test images of the classes.
        ood (`dict[str, datasets.Dataset]`): Images of none of the classes, by the name of the set.
    """

    labels: list[str]
    train: datasets.Dataset
    id: datasets.Dataset
    ood: dict[str, datasets.Dataset]


def parse_ood_datasets(sets: Sequence[str]) -> dict[str, str]:
    """Name sets of OOD images: `["../dtd10", "far=data/mnist"]` is `{"dtd10": "../dtd10", "far": "data/mnist"}`.

    Args:
        sets (`Sequence[str]`): Sources, or `name=source`.

    Returns:
        `dict[str, str]`: The source of each set by its name. Unless it is given, that is the last part of the source:
        of a file without its extension, of a pattern the folder.

    Raises:
        ValueError: Two sets have the same name, a name or source is empty, or a pattern has no folder.
    """
    named: dict[str, str] = {}
    for item in sets:
        name, equals, source = item.partition("=")
        # The sign may also be part of a path.
        if not equals or os.path.exists(item):
            name, source = _last_part(item), item
        if not name.strip() or not source.strip():
            raise ValueError(f"`ood_datasets` takes sources, or name=source, got {item!r}.")
        if name in named:
            raise ValueError(
                f"`ood_datasets` has two sets called {name!r}, {named[name]} and {source}; name them, as in "
                f"first={named[name]}."
            )
        named[name] = source
    return named


def load_classification_data(args: ClassificationDataArguments) -> ClassificationData:
    """Load what the arguments describe.

    Args:
        args ([`ClassificationDataArguments`]): The arguments.

    Returns:
        [`ClassificationData`]: The labels of both sets count in the same order.

    Raises:
        ValueError: A set cannot be loaded, has several splits of which none is given, or test images are of classes
            that training does not have, or would be the training images. The message begins with the argument that
            names the set.
    """
    with _naming("dataset", args.dataset, "split", args.split):
        split = args.split or _default_split(args.dataset, args.dataset_config, "train", "split")
        of_train: dict[str, Any] = {
            "split": split,
            "config_name": args.dataset_config,
            "image_column": args.image_column,
            "filters": parse_filter(args.filter),
        }
        if args.label_column:
            train = _load_classes(args.dataset, args.labels, label_column=args.label_column, **of_train)
        else:
            train = load_labelled_images(args.dataset, label_column=None, **of_train)
    labels = args.labels or _names_of_classes(train)
    id_source = args.id_dataset or args.dataset
    same = id_source == args.dataset
    id_config = args.dataset_config if same and args.id_dataset_config is None else args.id_dataset_config
    with _naming("id_dataset" if args.id_dataset else "dataset", id_source, "id_split", args.id_split):
        id_split = args.id_split or _default_split(id_source, id_config, "test", "id_split")
        described = (id_config, id_split, args.id_filter)
        if same and args.id_split is None and described == (args.dataset_config, split.partition("[")[0], args.filter):
            raise ValueError(
                f"Its only split is {id_split!r}, so that the test images would be the training images; give other "
                "images of the classes as `id_dataset`, or another split as `id_split`."
            )
        test = _load_classes(
            id_source,
            args.labels,
            split=id_split,
            config_name=id_config,
            image_column=args.id_image_column or args.image_column,
            label_column=args.id_label_column,
            filters=parse_filter(args.id_filter),
        )
        if args.labels is None:
            test = _follow_labels(test, labels)
    sets = parse_ood_datasets(args.ood_datasets)
    splits: Sequence[str | None] = args.ood_split or [None]
    splits = [*splits] * len(sets) if len(splits) == 1 else splits
    columns = args.ood_image_column or [args.image_column]
    columns = columns * len(sets) if len(columns) == 1 else columns
    ood = {}
    for (name, source), ood_split, column in zip(sets.items(), splits, columns, strict=False):
        with _naming("ood_datasets", [source], "ood_split", ood_split):
            ood[name] = load_labelled_images(
                source,
                split=ood_split or _default_split([source], None, "test", "ood_split"),
                image_column=column,
                label_column=None,
                filters=parse_filter(args.ood_filter),
            )
    return ClassificationData(list(labels), train, test, ood)


def check_training_classes(data: ClassificationData) -> None:
    """Check that there are training images of each class, before any is embedded.

    Args:
        data ([`ClassificationData`]): With the labels of the training images.

    Raises:
        ValueError: There are none of some class, or of one class alone.
    """
    present = set(data.train.unique("label"))
    if len(present) < 2:
        raise ValueError(
            f"`dataset` has training images of one class only, {data.labels[present.pop()]!r}, which leaves nothing "
            "to tell apart; give images of at least 2 classes."
        )
    empty = [label for position, label in enumerate(data.labels) if position not in present]
    if empty:
        raise ValueError(
            f"`dataset` has no training image of {len(empty)} of {len(data.labels)} classes, such as {empty[0]!r}; "
            "give images of each, or leave these classes out."
        )


def load_encoder(model: str | None, device: str | torch.device | None = None) -> DualEncoder:
    """Load the dual encoder that `model_name_or_path` names.

    Args:
        model (`str`, *optional*): Hub id or folder. Defaults to the checkpoint inside this package.
        device (`str` or `torch.device`, *optional*): As in [`DualEncoder`].

    Returns:
        [`DualEncoder`]

    Raises:
        ValueError: It cannot be loaded. The message is one line.
    """
    try:
        return DualEncoder.from_pretrained(model, device=device)
    # A model may be missing, not reachable, of another kind, or without weights.
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        named = "the checkpoint inside this package" if model is None else model
        raise ValueError(f"`model_name_or_path` {named}: {reason}") from error


def embed_rows(rows: datasets.Dataset, encoder: DualEncoder, **arguments: Any) -> Features:
    """Embed the images of a data set, with their labels where it has them.

    Args:
        rows ([`datasets.Dataset`]): With the columns `image` and perhaps `label`.
        encoder ([`DualEncoder`]): Embeds them.
        arguments: Of [`~clipn_hf.features.extract_features`].

    Returns:
        [`~clipn_hf.features.Features`]
    """
    labels = rows["label"][:] if "label" in rows.column_names else None
    return extract_features(rows, encoder, labels=labels, **arguments)


@contextlib.contextmanager
def _naming(argument: str, source: Sequence[str], split_argument: str, split: str | None) -> Iterator[None]:
    """Begin errors with the arguments that name what cannot be loaded."""
    try:
        yield
    # A set may be missing, not reachable, or not what its kind of file should be.
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip() or type(error).__name__
        named = f"`{argument}` {' '.join(source)}" + ("" if split is None else f", `{split_argument}` {split}")
        raise ValueError(f"{named}: {reason}") from error


def _default_split(source: Sequence[str], config: str | None, preferred: str, argument: str) -> str:
    """The split of a set of which none is given: the preferred one where it exists, or else the only one."""
    # Files have no splits, whatever theirs is called; of a folder that is not there, loading tells.
    if len(source) > 1 or source[0].lower().endswith(_EXTENSIONS):
        return "train"
    if not os.path.exists(source[0]) and source[0].startswith((".", "/", "~")):
        return preferred
    names = datasets.get_dataset_split_names(source[0], config)
    if preferred in names:
        return preferred
    if len(names) == 1:
        return str(names[0])
    raise ValueError(f"There is no split {preferred!r} among {', '.join(names)}; name one of these as `{argument}`.")


def _last_part(source: str) -> str:
    """What a source is called."""
    path = Path(source)
    if glob.has_magic(source):
        parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        name = parts[-1].strip("/") if parts else ""
        if name in ("", ".", ".."):
            raise ValueError(f"`ood_datasets` cannot name the pattern {source!r} by its folder; write name={source}.")
        return name
    return path.stem if path.suffix.lower() in _EXTENSIONS else path.name


def _load_classes(source: Sequence[str], labels: Sequence[str] | None, **arguments: Any) -> datasets.Dataset:
    """Load images whose classes go by their names, if these are among `labels`, and else by their numbers."""
    if labels is not None:
        # Numbers without names are refused here, and all that is wrong with the set is once more below.
        with contextlib.suppress(ValueError):
            rows = load_labelled_images(source, **arguments)
            if {*_names_of_classes(rows)} <= {*labels}:
                return _follow_labels(rows, labels)
    return load_labelled_images(source, label_names=labels, **arguments)


def _names_of_classes(rows: datasets.Dataset) -> list[str]:
    names: list[str] = rows.features["label"].names
    return names


def _follow_labels(rows: datasets.Dataset, labels: Sequence[str]) -> datasets.Dataset:
    """The rows with the numbers that their classes have in another set."""
    own = _names_of_classes(rows)
    if own == list(labels):
        return rows
    if strangers := sorted(set(own) - set(labels)):
        raise ValueError(
            f"The test images are of {strangers[0]!r}, among others, which is none of the {len(labels)} classes of "
            "the training images; leave them out by `id_filter`, or name the classes alike."
        )
    positions = [list(labels).index(name) for name in own]
    numbers = [positions[number] for number in rows["label"]]
    return rows.remove_columns("label").add_column("label", numbers, feature=datasets.ClassLabel(names=list(labels)))


__all__ = [
    "ClassificationData",
    "ClassificationDataArguments",
    "check_training_classes",
    "embed_rows",
    "load_classification_data",
    "load_encoder",
    "parse_ood_datasets",
]
