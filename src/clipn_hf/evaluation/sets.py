# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The sets of a suite, found on disk or on the Hub: which images there are, and what their labels are.

Listing a set opens no image. Whatever is drawn depends on the seed, the name of the set and the names of its images
alone, so that it is the same on every machine and whatever order the file system has.
"""

import csv
import glob
import hashlib
import operator
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from PIL import Image

from ..images import ImageError, find_images, image_of, load_image, undecoded
from ..negative_settings import CORPORA
from .suite import (
    TEXT_FEATURES,
    ImageSet,
    Source,
    Suite,
    TextFeatures,
    data_hint,
    load_suite,
    read_names,
    suggestion,
)

_LABELLED_GROUPS = ("id", "fit", "covariate-shift")


class SetImages(Sequence[Any]):
    """The images of a set, each read when it is asked for.

    An item is what [`~clipn_hf.images.load_image`] reads; with `image_size` it is a `PIL.Image.Image`, resized.

    Args:
        items: Paths, pixels of shape `(images, height, width, 3)`, or a `datasets.Dataset`.
        rows (`Sequence[int]`): Positions in `items`, in the order of the set.
        column (`str`, *optional*): Of a dataset, the column of the image.
        image_size (`int`, *optional*):
            Pixels of the short side that images are brought to, by bicubic interpolation with antialiasing.
    """

    def __init__(
        self, items: Any, rows: Sequence[int], *, column: str | None = None, image_size: int | None = None
    ) -> None:
        self.items = items
        self.rows = list(rows)
        self.column = column
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SetImages(self.items, self.rows[index], column=self.column, image_size=self.image_size)
        row = self.rows[operator.index(index)]
        item = image_of(self.items[row], self.column)
        if self.image_size is None:
            return item
        if item is None:
            raise ImageError(f"row {row}", "there is no image.")
        return _resize(load_image(item), self.image_size)


@dataclass(frozen=True, eq=False)
class LoadedSet:
    """A set as one seed draws it.

    Args:
        name (`str`): As in the suite.
        group (`str`): `"id"`, `"fit"`, `"covariate-shift"`, `"near"` or `"far"`.
        note (`str`): What readers of the results should know about the set.
        images (`Sequence`, *optional*):
            What [`~clipn_hf.images.load_image`] reads; `None` for embeddings without pixels.
        names (`list[str]`): What to call each image: a relative path, or `"row 17"`.
        labels (`list[int]`, *optional*): Positions in the labels of the suite; `None` for OOD sets.
        class_names (`list[str]`, *optional*): The class of each image where all are known, also in OOD sets.
        embeddings (`numpy.ndarray` of shape `(images, dim)`, *optional*): Float32, unit norm.
        num_excluded (`int`): How many rows of the source are not in the set.
        num_available (`int`, *optional*): How many images there are to draw from by `limit` or `per_class`.
        num_expected (`int`, *optional*): How many there should be, where the suite says so.
    """

    name: str
    group: str
    note: str
    images: Sequence[Any] | None
    names: list[str]
    labels: list[int] | None
    class_names: list[str] | None
    embeddings: np.ndarray | None
    num_excluded: int
    num_available: int | None = None
    num_expected: int | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class SuiteData:
    """All sets of a suite as one seed draws them.

    Args:
        suite ([`Suite`]): The suite.
        seed (`int`): The seed.
        labels (`list[str]`): The labels of ID images.
        id ([`LoadedSet`]): The ID set.
        fit ([`LoadedSet`], *optional*): Other ID images, for methods that are fitted.
        covariate_shift (`list[LoadedSet]`): Sets with the same labels in another style.
        ood (`list[LoadedSet]`): The OOD sets.
        text_bank (`dict[str, numpy.ndarray]`, *optional*):
            Of a suite of embeddings, the float32 embedding `(dim,)` of each label and of all other names there are.
        negatives (`dict[str, Any]`, *optional*):
            Arguments of `NegativeLabels.mine`, as the suite has them, with its corpus as a name, an absolute path, or
            the list of those names of `text_bank` that are no labels.
    """

    suite: Suite
    seed: int
    labels: list[str]
    id: LoadedSet
    fit: LoadedSet | None
    covariate_shift: list[LoadedSet]
    ood: list[LoadedSet]
    text_bank: dict[str, np.ndarray] | None
    negatives: dict[str, Any] | None = None


def load_suite_data(
    suite: Suite | str | os.PathLike[str] | Mapping[str, Any],
    data_root: str | os.PathLike[str] = ".",
    seed: int = 0,
) -> SuiteData:
    """Find the images of a suite and their labels, without opening an image.

    Args:
        suite ([`Suite`], `str`, `os.PathLike` or `Mapping`): A suite, or what [`load_suite`] reads.
        data_root (`str` or `os.PathLike`, *optional*, defaults to `"."`): The folder that paths of the suite start at.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn: labels, `limit`, `per_class`.

    Returns:
        [`SuiteData`]

    Raises:
        FileNotFoundError: The data root, a file, a folder or a Hub dataset is missing.
        ValueError:
            The suite is not valid; a set has no images, or none that its filters leave; ID images have no label, or
            one that is not in the list; a column, class or key is not there; a set shares images with the ID set or
            with the one for fitting; embeddings are not finite or differ in width; a label has no embedding.

    Example:

    ```python
    >>> from clipn_hf.evaluation.sets import load_suite_data
    >>> data = load_suite_data("cifar10", data_root="data")  # doctest: +SKIP
    >>> len(data.id), data.id.names[0], data.labels[data.id.labels[0]]  # doctest: +SKIP
    (2000, 'airplane/0003.jpg', 'airplane')

    ```
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"`data_root` is no folder: {root}. Name the folder that holds the data of the suite.")
    id_listing = _list_set(suite.id, suite, root)
    labels = _choose_labels(suite, id_listing, seed)
    listings: list[tuple[ImageSet, _Listing]] = []
    loaded: list[LoadedSet] = []
    for image_set in suite.sets:
        listing = id_listing if image_set is suite.id else _list_set(image_set, suite, root)
        try:
            available = _choose_images(listing, image_set, suite, labels)
            drawn = _draw(available, image_set, labels, seed)
        except _SetError as error:
            raise _set_error(image_set, suite, root, error) from error
        listings.append((image_set, drawn))
        loaded.append(_as_loaded_set(image_set, suite, labels, drawn, num_available=len(available.names)))
    _refuse_shared_images(listings)
    by_group = {group: [one for one in loaded if one.group == group] for group in (*_LABELLED_GROUPS, "near", "far")}
    text_bank = None
    if suite.text_features is not None:
        text_bank = _load_text_bank(suite.text_features, suite, root, labels, loaded)
    return SuiteData(
        suite=suite,
        seed=seed,
        labels=labels,
        id=by_group["id"][0],
        fit=by_group["fit"][0] if by_group["fit"] else None,
        covariate_shift=by_group["covariate-shift"],
        ood=[one for one in loaded if one.group in ("near", "far")],
        text_bank=text_bank,
        negatives=_find_corpus(suite, root, labels, text_bank),
    )


class _SetError(ValueError):
    """What is wrong with a set, without its name."""


class _MissingError(_SetError):
    """Something that a set needs is not there."""


@dataclass(frozen=True, eq=False)
class _Listing:
    """The images of a source, or those that are left of them.

    Args:
        names (`list[str]`): What to call each image.
        origin (`str`): With the name, it tells an image from all others.
        items: The images of the whole source, as [`SetImages`] takes them; `None` for embeddings without pixels.
        rows (`list[int]`): The position of each image in `items`.
        num_rows (`int`): How many the source has.
        classes (`list`, *optional*): The class of each image: a name, a number, or `None`.
        label_names (`Sequence[str]`, *optional*): Names of the numbers among the classes.
        column (`str`, *optional*): As in [`SetImages`].
        column_names (`Sequence[str]`, *optional*): Of a table, all columns.
        read_column (`Callable`, *optional*): Of a table, gives the values of a column, for the whole source.
        embeddings (`numpy.ndarray`, *optional*): Of the whole source.
    """

    names: list[str]
    origin: str
    items: Any
    rows: list[int]
    num_rows: int
    classes: list[Any] | None = None
    label_names: Sequence[str] | None = None
    column: str | None = None
    column_names: Sequence[str] = ()
    read_column: Callable[[str], Sequence[Any]] | None = None
    embeddings: np.ndarray | None = None

    def keep(self, positions: Sequence[int]) -> "_Listing":
        return replace(
            self,
            names=[self.names[position] for position in positions],
            rows=[self.rows[position] for position in positions],
            classes=None if self.classes is None else [self.classes[position] for position in positions],
        )


def _set_error(image_set: ImageSet, suite: Suite, root: Path, error: Exception) -> Exception:
    message = f"The set {image_set.name!r} of the suite {suite.name} cannot be used: {error}"
    if isinstance(error, _MissingError):
        return FileNotFoundError(f"{message}{_hint(suite, root)}")
    return ValueError(message)


def _hint(suite: Suite, root: Path) -> str:
    return f" The data root is {root}. {data_hint(suite)}".rstrip()


def _list_set(image_set: ImageSet, suite: Suite, root: Path) -> _Listing:
    """All images of a set that its own filters leave, under the names that the suite gives to classes."""
    try:
        listing = _READERS[image_set.source.kind](image_set.source, root)
        if not listing.names:
            raise _SetError(f"There are no images in {image_set.source.path}.")
        listing = _name_classes(listing, image_set, suite, root)
        # Before rows are filtered: a name that is right must not become wrong by another filter.
        _check_class_names(listing, image_set)
        for column, values in image_set.where.items():
            listing = _filter_rows(listing, column, values)
        classes = listing.classes
        if classes is not None:
            only = None if image_set.only is None else set(image_set.only)
            listing = listing.keep(
                [
                    position
                    for position, name in enumerate(classes)
                    if name not in image_set.exclude and (only is None or name in only)
                ]
            )
            rename = {**suite.labels.rename, **image_set.rename}
            listing = replace(listing, classes=[rename.get(name, name) for name in listing.classes or ()])
        if not listing.names:
            raise _SetError("Its filters `classes` and `where` leave no images.")
        return listing
    except _SetError as error:
        raise _set_error(image_set, suite, root, error) from error


def _name_classes(listing: _Listing, image_set: ImageSet, suite: Suite, root: Path) -> _Listing:
    """Replace numbers by names, as far as there are names."""
    classes = listing.classes
    if classes is None:
        return listing
    names = listing.label_names
    given = image_set.source.options.get("label_names")
    if names is None and given is not None:
        names = _read_label_names(given, root)
        if image_set.source.kind == "csv":
            classes = [_as_number(value) for value in classes]
    if names is None and image_set.group in _LABELLED_GROUPS:
        names = suite.labels.names
    numbers = {value for value in classes if isinstance(value, int)}
    if not numbers:
        return replace(listing, classes=classes)
    if names is None:
        if image_set.group in _LABELLED_GROUPS:
            raise _SetError("Its classes are numbers; give their names as `label_names` of its `source`.")
        # What a number means is not known, but images that share it belong together.
        return replace(listing, classes=[None if value == -1 else value for value in classes])
    if wrong := sorted(number for number in numbers if not -1 <= number < len(names)):
        raise _SetError(
            f"It has images of class number {wrong[0]}, but there are {len(names)} names for the numbers from 0 to "
            f"{len(names) - 1}. Give all names as `label_names` of its `source`."
        )
    named = [(None if value == -1 else names[value]) if isinstance(value, int) else value for value in classes]
    return replace(listing, classes=named)


def _read_label_names(given: Any, root: Path) -> list[str]:
    if not isinstance(given, str):
        return list(given)
    path = root / given
    if not path.is_file():
        raise _MissingError(f"There is no file {path} with the names of its classes.")
    try:
        return [name for _, name in read_names(path)]
    except (OSError, ValueError) as error:
        raise _SetError(str(error)) from error


def _as_number(value: Any) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError):
        return value


def _check_class_names(listing: _Listing, image_set: ImageSet) -> None:
    for key, wanted in (
        ("rename", image_set.rename),
        ("exclude", image_set.exclude),
        ("only", image_set.only or ()),
    ):
        if wanted and listing.classes is None:
            raise _SetError(f"It has `classes.{key}`, but its classes are not known. {_label_help(listing)}")
        known = {name for name in listing.classes or () if isinstance(name, str)}
        for name in wanted:
            if name not in known:
                raise _SetError(
                    f"`classes.{key}` names {name!r}, which is none of its {len(known)} classes."
                    f"{suggestion(name, known)}"
                )


def _filter_rows(listing: _Listing, column: str, values: Sequence[str]) -> _Listing:
    if listing.read_column is None or column not in listing.column_names:
        raise _SetError(
            f"`where` names the column {column!r}, which is not there.{suggestion(column, listing.column_names)} The "
            f"columns are {', '.join(listing.column_names)}."
        )
    content = listing.read_column(column)
    found = {str(value) for value in content}
    for value in values:
        if value not in found:
            raise _SetError(f"No row has {value!r} in the column {column!r}.{suggestion(value, found)}")
    return listing.keep([position for position, row in enumerate(listing.rows) if str(content[row]) in values])


def _choose_labels(suite: Suite, listing: _Listing, seed: int) -> list[str]:
    """The labels of the suite, or those of the ID set, or some of these, drawn by the seed; these two sorted."""
    if suite.labels.names is not None:
        return list(suite.labels.names)
    if listing.classes is None:
        raise ValueError(
            f"The labels of the suite {suite.name} are the classes of {suite.id.name!r}, but they are not known. "
            f"{_label_help(listing)}"
        )
    labels = sorted({name for name in listing.classes if name is not None})
    draw = suite.labels.draw
    if draw is None:
        return labels
    if draw > len(labels):
        raise ValueError(
            f"`labels.draw` of the suite {suite.name} is {draw}, but {suite.id.name!r} has {len(labels)} classes; "
            "lower it."
        )
    # Not by the name of the suite or set: suites that differ in style alone then have the same labels.
    return sorted(_rank(labels, f"{seed}\0labels")[:draw])


def _label_help(listing: _Listing) -> str:
    columns = listing.column_names
    if columns:
        return (
            f"Name the column of the classes as `label_column` of its `source`.{suggestion('label', columns)} The "
            f"columns are {', '.join(columns)}."
        )
    return (
        "Classes are the sub-folders of an `imagefolder`, the `label_column` of a table, the numbers in an "
        "`image_list`, or the `labels` of `features`."
    )


def _choose_images(listing: _Listing, image_set: ImageSet, suite: Suite, labels: list[str]) -> _Listing:
    """The images whose class belongs into the set."""
    known = set(labels)
    has_labels = image_set.group in _LABELLED_GROUPS
    keep_known = image_set.only_labels or (has_labels and suite.labels.draw is not None)
    if listing.classes is None and (has_labels or keep_known or image_set.complement):
        raise _SetError(f"The classes of its images are not known. {_label_help(listing)}")
    classes = listing.classes or []
    if keep_known or image_set.complement:
        listing = listing.keep(
            [position for position, name in enumerate(classes) if (name in known) != image_set.complement]
        )
        if not listing.names:
            which = "Labels of the suite are all" if image_set.complement else "No labels of the suite are"
            raise _SetError(f"{which} of its classes, so that no images are left.")
    if has_labels:
        _check_labels(listing, labels)
    return listing


def _draw(listing: _Listing, image_set: ImageSet, labels: list[str], seed: int) -> _Listing:
    """As many of the images as the set takes."""
    if image_set.per_class is not None:
        return listing.keep(_draw_per_class(listing, labels, image_set, seed))
    if image_set.limit is not None and image_set.limit < len(listing.names):
        return listing.keep(_draw_some(listing, image_set.limit, image_set, seed))
    return listing


def _check_labels(listing: _Listing, labels: list[str]) -> None:
    classes = listing.classes or []
    if None in classes:
        raise _SetError(
            f"{listing.names[classes.index(None)]} has no class, but ID images need a label; remove it, or list it in "
            "an OOD set."
        )
    if strangers := sorted(set(classes).difference(labels)):
        listed = ", ".join(repr(name) for name in strangers[:3])
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        what, them = ("class", "it") if len(strangers) == 1 else ("classes", "them")
        number = "only label" if len(labels) == 1 else f"{len(labels)} labels"
        raise _SetError(
            f"The {number} of the suite lack{'s' if len(labels) == 1 else ''} its {what} {listed}{more}."
            f"{suggestion(strangers[0], labels)} Rename {them} with `classes.rename`, or leave {them} out with "
            "`classes.exclude` or `classes: {only: labels}`."
        )


def _rank(names: Sequence[str], salt: str) -> list[str]:
    return [names[position] for position in _rank_positions(names, range(len(names)), salt)]


def _rank_positions(names: Sequence[str], positions: Iterable[int], salt: str) -> list[int]:
    """Positions in random order, by a digest of their names: the same in every version of every library."""
    return sorted(
        positions,
        key=lambda position: (hashlib.sha256(f"{salt}\0{names[position]}".encode()).digest(), position),
    )


def _by_class(listing: _Listing) -> dict[Any, list[int]]:
    positions: dict[Any, list[int]] = {}
    for position in range(len(listing.names)):
        positions.setdefault(None if listing.classes is None else listing.classes[position], []).append(position)
    return positions


def _draw_per_class(listing: _Listing, labels: list[str], image_set: ImageSet, seed: int) -> list[int]:
    assert image_set.per_class is not None
    members = _by_class(listing)
    drawn: list[int] = []
    for label in labels:
        positions = members.get(label, [])
        if len(positions) < image_set.per_class:
            raise _SetError(
                f"It has {len(positions)} images of {label!r}, but `per_class` is {image_set.per_class}; lower it."
            )
        drawn += _rank_positions(listing.names, positions, f"{seed}\0{image_set.name}")[: image_set.per_class]
    return sorted(drawn)


def _draw_some(listing: _Listing, limit: int, image_set: ImageSet, seed: int) -> list[int]:
    """Draw from each class in proportion to its size, up to one image."""
    salt = f"{seed}\0{image_set.name}"
    members = _by_class(listing)
    total = len(listing.names)
    quotas = {name: limit * len(positions) // total for name, positions in members.items()}
    # The largest remainders get what is left; of equal ones chance decides, not the alphabet.
    order = _rank([str(name) for name in members], salt)
    place = {name: position for position, name in enumerate(order)}
    remainders = sorted(members, key=lambda name: (-(limit * len(members[name]) % total), place[str(name)]))
    for name in remainders[: limit - sum(quotas.values())]:
        quotas[name] += 1
    drawn: list[int] = []
    for name, positions in members.items():
        drawn += _rank_positions(listing.names, positions, salt)[: quotas[name]]
    return sorted(drawn)


def _as_loaded_set(
    image_set: ImageSet, suite: Suite, labels: list[str], listing: _Listing, num_available: int
) -> LoadedSet:
    position = {label: index for index, label in enumerate(labels)}
    classes = listing.classes
    class_names = None
    if classes is not None and all(isinstance(name, str) for name in classes):
        class_names = list(classes)
    images = None
    if listing.items is not None:
        items, rows = listing.items, listing.rows
        if isinstance(items, list):
            # The others would travel to each process that reads images.
            items, rows = [items[row] for row in rows], list(range(len(rows)))
        images = SetImages(items, rows, column=listing.column, image_size=suite.image_size)
    return LoadedSet(
        name=image_set.name,
        group=image_set.group,
        note=image_set.note,
        images=images,
        names=listing.names,
        labels=[position[name] for name in classes or ()] if image_set.group in _LABELLED_GROUPS else None,
        class_names=class_names,
        embeddings=None if listing.embeddings is None else listing.embeddings[listing.rows],
        num_excluded=listing.num_rows - len(listing.names),
        num_available=num_available,
        num_expected=image_set.images,
    )


def _refuse_shared_images(listings: Sequence[tuple[ImageSet, _Listing]]) -> None:
    """Refuse sets that share images with the ID set or the one for fitting."""
    images = [{f"{listing.origin}/{name}": name for name in listing.names} for _, listing in listings]
    for position, (one, _) in enumerate(listings):
        if one.group not in ("id", "fit"):
            continue
        for (other, _), others in zip(listings[position + 1 :], images[position + 1 :], strict=True):
            if shared := sorted(images[position].keys() & others.keys()):
                raise ValueError(
                    f"The sets {one.name!r} and {other.name!r} share {len(shared)} images, such as "
                    f"{others[shared[0]]!r}; no image may be in both. Read them from different places, or tell them "
                    "apart by `classes`, `where` or `rows`."
                )


def _find(path: str, root: Path, is_kind: Callable[[str], bool], what: str) -> str:
    found = os.path.abspath(root / path)
    if not is_kind(found):
        raise _MissingError(f"There is no {what} {path}.")
    return found


def _read_imagefolder(source: Source, root: Path) -> _Listing:
    folder = _find(source.path, root, os.path.isdir, "folder")
    try:
        files = find_images([folder], recursive=True)
    except ImageError as error:
        raise _SetError(str(error)) from error
    names = sorted(os.path.relpath(file, folder).replace(os.sep, "/") for file in files)
    folders = [name.split("/", 1)[0] if "/" in name else None for name in names]
    return _Listing(
        names=names,
        origin=folder,
        items=[os.path.join(folder, name) for name in names],
        rows=list(range(len(names))),
        num_rows=len(names),
        classes=folders if any(folders) else None,
    )


def _read_csv(source: Source, root: Path) -> _Listing:
    path = _find(source.path, root, os.path.isfile, "file")
    folder = os.path.dirname(path)
    if "root" in source.options:
        folder = _find(source.options["root"], root, os.path.isdir, "folder")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            table = list(reader)
            columns = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _SetError(f"{source.path} cannot be read ({error}).") from error
    if not columns:
        raise _SetError(f"{source.path} is empty; its first line must name the columns.")
    image_column, label_column = _table_columns(source, columns)
    names = [row[image_column] or "" for row in table]
    if "" in names:
        raise _SetError(f"Row {names.index('')} of {source.path} names no image in the column {image_column!r}.")
    return _Listing(
        names=names,
        origin=folder,
        items=_check_files([os.path.join(folder, name) for name in names], folder),
        rows=list(range(len(names))),
        num_rows=len(names),
        classes=[row[label_column] or None for row in table] if label_column else None,
        column_names=columns,
        read_column=lambda column: [row[column] for row in table],
    )


def _read_image_list(source: Source, root: Path) -> _Listing:
    path = _find(source.path, root, os.path.isfile, "file")
    folder = _find(source.options["root"], root, os.path.isdir, "folder")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _SetError(f"{source.path} cannot be read ({error}).") from error
    names: list[str] = []
    numbers: list[int | None] = []
    for line in filter(None, map(str.strip, lines)):
        # A path may hold spaces, so that only what stands last can be the number.
        match = re.fullmatch(r"(.+?)\s+(-?\d+)", line)
        names.append(match[1] if match else line)
        numbers.append(int(match[2]) if match else None)
    known = [number for number in numbers if number is not None and number != -1]
    return _Listing(
        names=names,
        origin=folder,
        items=_check_files([os.path.join(folder, name) for name in names], folder),
        rows=list(range(len(names))),
        num_rows=len(names),
        classes=[None if number == -1 else number for number in numbers] if known else None,
    )


def _check_files(paths: list[str], folder: str) -> list[str]:
    """Refuse a list of which no file is there; single ones that are missing are counted when they are read."""
    if paths and not any(map(os.path.exists, paths)):
        which = f"None of its {len(paths)} images is" if len(paths) > 1 else "Its only image is not"
        raise _MissingError(f"{which} in {folder}: there is no {paths[0]}.")
    return paths


def _read_parquet(source: Source, root: Path) -> _Listing:
    import datasets

    files = sorted(glob.glob(str(root / source.path), recursive=True))
    if not files:
        raise _MissingError(f"No file matches {source.path}.")
    verbosity = datasets.logging.get_verbosity()
    try:
        # It would say what is wrong with a file on the log, too.
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        rows = datasets.load_dataset("parquet", data_files={"train": files}, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise _SetError(f"{source.path} cannot be read ({error.__cause__ or error}).") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    return _read_dataset(rows, source, os.path.abspath(root / source.path))


def _read_hub(source: Source, root: Path) -> _Listing:
    import datasets

    config, revision, split = (source.options.get(key) for key in ("config", "revision", "split"))
    split = split or "test"
    try:
        rows = datasets.load_dataset(source.path, config, split=split, revision=revision)
    except OSError as error:
        raise _MissingError(f"The dataset {source.path} cannot be loaded ({error}).") from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise _SetError(f"The dataset {source.path} cannot be loaded ({error}).") from error
    return _read_dataset(rows, source, f"{source.path}/{config}/{split}/{revision}")


def _read_dataset(rows: Any, source: Source, origin: str) -> _Listing:
    import datasets

    image_column, label_column = _table_columns(source, rows.column_names)
    rows = undecoded(rows.with_format(None), image_column)
    feature = rows.features[image_column]
    is_struct = isinstance(feature, Mapping) and feature.keys() >= {"bytes", "path"}
    is_bytes = getattr(feature, "dtype", None) in ("binary", "large_binary")
    if not (isinstance(feature, datasets.Image) or is_struct or is_bytes):
        raise _SetError(f"The column {image_column!r} must hold images or the bytes of image files, got {feature}.")

    def read_column(column: str) -> list[Any]:
        values = list(rows.select_columns([column])[:][column])
        kind = rows.features[column]
        if isinstance(kind, datasets.ClassLabel):
            return [None if value in (None, -1) else kind.names[value] for value in values]
        return values

    classes = None
    if label_column:
        classes = read_column(label_column)
        if strangers := [value for value in classes if value is not None and not _is_class(value)]:
            raise _SetError(
                f"The column {label_column!r} must hold names or numbers of classes, got {strangers[0]!r}."
            )
    return _Listing(
        names=[f"row {row}" for row in range(len(rows))],
        origin=origin,
        # Other columns would be read with each image, and travel to each process that reads them.
        items=rows.select_columns([image_column]),
        rows=list(range(len(rows))),
        num_rows=len(rows),
        classes=classes,
        column=image_column,
        column_names=rows.column_names,
        read_column=read_column,
    )


def _is_class(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def _table_columns(source: Source, columns: Sequence[str]) -> tuple[str, str | None]:
    image_column, label_column = source.options.get("image_column", "image"), source.options.get("label_column")
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in columns:
            raise _SetError(
                f"`{key}` is {column!r}, which is not there.{suggestion(column, columns)} The columns are "
                f"{', '.join(columns)}."
            )
    return image_column, label_column


def _read_features(source: Source, root: Path) -> _Listing:
    options = source.options
    given_names = options.get("label_names")
    keys = {name: options[name] for name in ("images", "labels", "pixels") if name in options}
    if isinstance(given_names, str):
        keys["label_names"] = given_names
    arrays = dict(zip(keys, _read_arrays(source.path, root, list(keys.values())), strict=True))
    count = len(arrays["images"])
    for name, array in arrays.items():
        if name != "label_names" and len(array) != count:
            raise _SetError(f"`{name}` must have one row per image, got {len(array)} rows and {count} images.")
    pixels = arrays.get("pixels")
    if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3):
        raise _SetError(
            f"`pixels` must be of shape (images, height, width, 3) and dtype uint8, got {pixels.shape} and "
            f"{pixels.dtype}."
        )
    classes = None
    if "labels" in arrays:
        if arrays["labels"].ndim != 1 or arrays["labels"].dtype.kind not in "iuU":
            raise _SetError(
                f"`labels` must be one number or name per image, got shape {arrays['labels'].shape} and dtype "
                f"{arrays['labels'].dtype}."
            )
        classes = arrays["labels"].tolist()
    rows = list(range(count))[slice(*_slice_bounds(options.get("rows", ":")))]
    return _Listing(
        names=[f"row {row}" for row in rows],
        origin=f"{os.path.abspath(root / source.path)}/{options['images']}",
        items=pixels,
        rows=rows,
        num_rows=len(rows),
        classes=None if classes is None else [classes[row] for row in rows],
        label_names=arrays["label_names"].tolist() if "label_names" in arrays else given_names,
        embeddings=_unit_rows(arrays["images"], options["images"]),
    )


def _slice_bounds(text: str) -> list[int | None]:
    return [int(bound) if bound else None for bound in text.split(":")]


def _read_arrays(file: str, root: Path, keys: Sequence[str]) -> list[np.ndarray]:
    path = _find(file, root, os.path.isfile, "file")
    try:
        # What is no zip archive is not opened as a pickle, which could run anything.
        with (
            np.load(path, allow_pickle=False)
            if path.endswith(".npz")
            else safetensors.safe_open(path, framework="numpy") as content
        ):
            known = list(content.keys())
            for key in keys:
                if key not in known:
                    raise _SetError(f"{file} has no {key!r}.{suggestion(key, known)} It has {', '.join(known)}.")
            if path.endswith(".npz"):
                return [content[key] for key in keys]
            return [content.get_tensor(key) for key in keys]
    except _SetError:
        raise
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise _SetError(f"{file} cannot be read as .npz or .safetensors ({error}).") from error


def _unit_rows(embeddings: np.ndarray, key: str) -> np.ndarray:
    if embeddings.ndim != 2 or 0 in embeddings.shape or embeddings.dtype.kind != "f":
        raise _SetError(
            f"`{key}` must hold embeddings of shape (rows, dim) as floats, got shape {embeddings.shape} and dtype "
            f"{embeddings.dtype}."
        )
    # Also those that had unit norm before they were rounded to half precision.
    embeddings = embeddings.astype(np.float32)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(wrong):
        raise _SetError(
            f"Of {len(norms)} rows of `{key}` {len(wrong)} are zero or not finite, such as row {wrong[0]}."
        )
    return embeddings / norms


def _load_text_bank(
    features: TextFeatures, suite: Suite, root: Path, labels: list[str], sets: Sequence[LoadedSet]
) -> dict[str, np.ndarray]:
    """The embedding of each name in the banks. Names that the suite gives come before those that are there."""
    bank: dict[str, np.ndarray] = {}
    try:
        for one in features.banks:
            own_names = isinstance(one.names, str)
            keys = [one.embeddings, *([str(one.names)] if own_names else [])]
            arrays = _read_arrays(features.path, root, keys)
            embeddings = _unit_rows(arrays[0], one.embeddings)
            names = [str(name) for name in (arrays[1].tolist() if own_names else one.names)]
            if len(names) != len(embeddings):
                raise _SetError(f"There are {len(names)} names for {len(embeddings)} rows of `{one.embeddings}`.")
            for old in one.rename:
                if old not in names:
                    raise _SetError(f"`rename` names {old!r}, which is none of the names.{suggestion(old, names)}")
            row_of = {name: row for row, name in reversed(list(enumerate(names)))}
            for old, new in one.rename.items():
                bank.setdefault(new, embeddings[row_of[old]])
            for name, row in row_of.items():
                if name not in one.rename:
                    bank.setdefault(name, embeddings[row])
        if missing := [label for label in labels if label not in bank]:
            raise _SetError(
                f"Of {len(labels)} labels {len(missing)} have no embedding, such as {missing[0]!r}."
                f"{suggestion(missing[0], bank)} Name the bank's word for it in `rename`."
            )
    except _MissingError as error:
        message = f"The text features of the suite {suite.name} cannot be used: {error}"
        raise FileNotFoundError(f"{message}{_hint(suite, root)}") from error
    except _SetError as error:
        raise ValueError(f"The text features of the suite {suite.name} cannot be used: {error}") from error
    widths = {one.name: one.embeddings.shape[1] for one in sets if one.embeddings is not None}
    text_widths = {len(embedding) for embedding in bank.values()}
    if len({*widths.values(), *text_widths}) > 1:
        listed = ", ".join(f"{name!r} has {width}" for name, width in widths.items())
        raise ValueError(
            f"The embeddings of the suite {suite.name} differ in width: {listed}, and the texts have "
            f"{' and '.join(map(str, sorted(text_widths)))}. All must be of one model."
        )
    return bank


def _find_corpus(
    suite: Suite, root: Path, labels: list[str], text_bank: Mapping[str, np.ndarray] | None
) -> dict[str, Any] | None:
    """Find the corpus of negative labels that a suite names."""
    if suite.negatives is None:
        return None
    found = dict(suite.negatives)
    corpus = found.get("corpus")
    if corpus == TEXT_FEATURES:
        assert text_bank is not None
        found["corpus"] = [name for name in text_bank if name not in labels]
        if not found["corpus"]:
            raise ValueError(
                f"The negative labels of the suite {suite.name} cannot be mined: all names of its `text_features` are "
                "labels; add a bank of other names."
            )
    elif corpus is not None and corpus not in CORPORA:
        try:
            found["corpus"] = _find(corpus, root, os.path.isfile, "file")
        except _MissingError as error:
            raise FileNotFoundError(
                f"The negative labels of the suite {suite.name} cannot be mined: {error}{_hint(suite, root)}"
            ) from error
    return found


def _resize(image: Image.Image, image_size: int) -> Image.Image:
    short, long = sorted(image.size)
    if short == image_size:
        return image
    width, height = (max(1, round(side * image_size / short)) for side in image.size)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(
            f"the image of {image.width}×{image.height} pixels",
            f"with a short side of {image_size} pixels it would have a long one of {long * image_size // short}.",
        )
    return image.resize((width, height), Image.Resampling.BICUBIC)


_READERS: Mapping[str, Callable[[Source, Path], _Listing]] = {
    "imagefolder": _read_imagefolder,
    "parquet": _read_parquet,
    "csv": _read_csv,
    "hub": _read_hub,
    "image_list": _read_image_list,
    "features": _read_features,
}

__all__ = ["LoadedSet", "SetImages", "SuiteData", "load_suite_data"]
