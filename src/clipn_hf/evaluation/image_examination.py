# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor's look at images."""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..images import ImageError, NumberedImages, load_image, number_images, read_content
from .image_hashes import MIN_CONTRAST, near_pairs, thumbnail, tints
from .label_examination import canonical_label
from .metrics import auroc

if TYPE_CHECKING:
    pass

from .findings import MAX_ITEMS, Finding, Severity, are, by_severity, check_strings, counted, have, make_finding, them

_OOD = ("near", "far")


class NamedImages(Protocol):
    """A set of images, as [`examine_images`] takes it; a [`~clipn_hf.evaluation.sets.LoadedSet`] is one.

    If it has an attribute `class_names`, the class of each image or None, ID and OOD classes are compared, too.
    """

    @property
    def name(self) -> str:
        """What to call the set."""

    @property
    def group(self) -> str:
        """`"id"`, `"fit"`, `"covariate-shift"`, `"near"` or `"far"`."""

    @property
    def images(self) -> Any:
        """What [`~clipn_hf.images.number_images`] gives a length to, or None."""

    @property
    def names(self) -> Sequence[str]:
        """What to call each image."""


def examine_images(
    sets: Sequence[NamedImages], *, labels: Sequence[str] | None = None, progress: bool = True
) -> list[Finding]:
    """Examine the images of a benchmark, reading each once.

    Images are the same if their files are, or where there are no files, their pixels; nearly the same as
    [`~clipn_hf.evaluation.image_hashes.near_pairs`] finds. How well a property such as the short side tells an OOD
    set from the ID set is the AUROC of that property as score, in the better of both directions, or of the question
    whether it has the value that most ID images have: 0.5 = not at all, 1 = every single image.

    Args:
        sets (sequence of [`NamedImages`]):
            At least one, such as the ID set and the OOD sets. What `images` gives is examined, so that a size to which
            a set resizes its images counts, not that of the files. Of sets without images, only the size is examined.
        labels (`Sequence[str]`, *optional*):
            The ID labels. Those of which there is no ID image are told, if the ID set has an attribute `labels`, the
            position of each image's label.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar, if there is a terminal.

    Returns:
        `list[Finding]`: The gravest first; empty if there is nothing to say.

    Raises:
        TypeError: `images` of a set is nothing with a length, or holds something that is no image; or `labels` is not
            a list of strings.
        ValueError: There are no sets.
    """
    if not sets:
        raise ValueError("`sets` is empty; give at least one set of images.")
    findings = _examine_classes(sets)
    blind = [entry.name for entry in sets if entry.images is None]
    if blind:
        message = f"{counted(len(blind), 'set')} came without images, which could therefore not be examined."
        findings.append(make_finding("note", "no-images", message, blind))
    portraits = _read_sets([entry for entry in sets if entry.images is not None], progress)
    findings += _report_unreadable(portraits)
    findings += _report_sizes(sets, portraits)
    if labels is not None:
        findings += _report_empty_classes(sets, labels)
    findings += _find_copies(portraits)
    findings += _report_blank(portraits)
    findings += _compare_appearance(portraits)
    return by_severity(findings)


@dataclass(frozen=True, eq=False)
class _Look:
    """What is kept of an image."""

    digest: bytes
    size: tuple[int, int]
    format: str | None
    is_grey: bool
    thumbnail: npt.NDArray[np.uint8]
    tints: npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class _Portrait:
    """What is kept of a set: its readable images with their positions, and the reasons for the others."""

    name: str
    group: str
    names: Sequence[str]
    total: int
    rows: list[int] = field(default_factory=list)
    looks: list[_Look] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)

    def name_of(self, row: int) -> str:
        name = self.names[row] if row < len(self.names) else f"image {row}"
        return f"{self.name}: {name}"


# So many images are in memory at once, at their full size.
_WINDOW = 32
_READERS = min(8, os.cpu_count() or 1)
# Compression shifts the colours of a grey image by this much at most.
_MAX_COLOUR = 8
_MIN_IMAGES_TO_COMPARE = 10
# Of fewer, a rate has steps of more than the 5 % of the FPR95.
_MIN_IMAGES = 20
_NOTEWORTHY, _TELLING = 0.6, 0.9


def _read_sets(sets: Sequence[NamedImages], progress: bool) -> list[_Portrait]:
    numbered = []
    for entry in sets:
        images = number_images(entry.images)
        if not isinstance(images, NumberedImages):
            raise TypeError(
                f"`images` of the set {entry.name!r} must have a length and positions, such as a list of paths, got "
                f"{type(entry.images).__name__}."
            )
        numbered.append(images)
    portraits = [
        _Portrait(entry.name, entry.group, entry.names, len(images))
        for entry, images in zip(sets, numbered, strict=True)
    ]
    total = sum(map(len, numbered))
    with (
        tqdm(total=total, desc="Doctor", unit=" images", disable=None if progress else True) as bar,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        for portrait, images in zip(portraits, numbered, strict=True):
            for start in range(0, len(images), _WINDOW):
                rows = range(start, min(start + _WINDOW, len(images)))
                # A set may read a file of its own, so that it is asked by one thread only.
                contents = [_read(images, row, portrait) for row in rows]
                for row, look in zip(rows, pool.map(_look_at, contents), strict=True):
                    if isinstance(look, str):
                        portrait.unreadable[row] = look
                    else:
                        portrait.rows.append(row)
                        portrait.looks.append(look)
                bar.update(len(rows))
    return portraits


def _read(images: NumberedImages, row: int, portrait: _Portrait) -> tuple[bytes | Image.Image, str | None] | str:
    """The content of an image and its format, where it is known before decoding; or why it cannot be read."""
    try:
        # Sets with gaps give None.
        image: Any = images[row][1]
        if image is None:
            return "there is no image."
        return read_content(image), image.format if isinstance(image, Image.Image) else None
    except ImageError as error:
        return error.reason
    except TypeError as error:
        raise TypeError(f"Cannot read {portrait.name_of(row)}: {error}") from error


def _look_at(content: tuple[bytes | Image.Image, str | None] | str) -> _Look | str:
    if isinstance(content, str):
        return content
    source, image_format = content
    try:
        image = load_image(source)
    except ImageError as error:
        return error.reason
    if isinstance(source, bytes):
        digest = hashlib.blake2b(source, digest_size=16)
        with Image.open(io.BytesIO(source)) as header:
            image_format = header.format
    else:
        digest = hashlib.blake2b(f"{image.width}x{image.height}\0".encode() + image.tobytes(), digest_size=16)
    small = np.asarray(image.resize((16, 16), Image.Resampling.BOX)).astype(np.int16)
    return _Look(
        digest=digest.digest(),
        size=image.size,
        format=image_format,
        is_grey=bool((small.max(axis=2) - small.min(axis=2)).max() <= _MAX_COLOUR),
        thumbnail=thumbnail(image),
        tints=tints(image),
    )


def _report_unreadable(portraits: list[_Portrait]) -> Iterator[Finding]:
    for portrait in portraits:
        count = len(portrait.unreadable)
        if count:
            message = (
                f"{counted(count, 'image')} of {portrait.total} in {portrait.name!r} cannot be read and will be left "
                "out; copy or download them again."
            )
            items = [f"{portrait.name_of(row)}: {reason}" for row, reason in portrait.unreadable.items()]
            yield make_finding("warning" if portrait.rows else "error", "unreadable-image", message, items)


def _report_sizes(sets: Sequence[NamedImages], portraits: list[_Portrait]) -> Iterator[Finding]:
    """Which sets are too small for rates."""
    readable = iter(portraits)
    sizes = [(entry, len(entry.names) if entry.images is None else len(next(readable).rows)) for entry in sets]
    small = [(entry.name, size) for entry, size in sizes if entry.group != "fit" and size < _MIN_IMAGES]
    if small:
        message = (
            f"{counted(len(small), 'set')} {have(small)} fewer than {_MIN_IMAGES} images that can be read, so that "
            f"one image moves a rate such as the FPR95 by more than {1 / _MIN_IMAGES:.0%}; take more images, or read "
            "the results as an example."
        )
        yield make_finding(
            "warning", "small-set", message, [f"{name} ({counted(size, 'image')})" for name, size in small]
        )


def _report_empty_classes(sets: Sequence[NamedImages], labels: Sequence[str]) -> Iterator[Finding]:
    """Which labels have no ID image."""
    names = check_strings(labels, "labels")
    known = [positions for entry in sets if entry.group == "id" if (positions := getattr(entry, "labels", None))]
    if not known:
        return
    used = {int(position) for positions in known for position in positions}
    empty = [name for position, name in enumerate(names) if position not in used]
    if empty:
        message = (
            f"{counted(len(empty), 'label')} of {len(names)} {have(empty)} no ID image, so that nothing is measured "
            f"of {them(empty)}; add images, or remove {them(empty)} from `labels`."
        )
        yield make_finding("warning", "empty-class", message, empty)


def _report_blank(portraits: list[_Portrait]) -> Iterator[Finding]:
    blank = [
        portrait.name_of(row)
        for portrait in portraits
        for row, look in zip(portrait.rows, portrait.looks, strict=True)
        if look.thumbnail.std() < MIN_CONTRAST
    ]
    if blank:
        message = (
            f"{counted(len(blank), 'image')} {are(blank)} almost of one colour, so that copies of {them(blank)} are "
            "found only where they are identical; look whether there is something to see."
        )
        yield make_finding("note", "blank-image", message, blank)


class _Copies:
    """Images of one set that are also in another, or in the same one again."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.items: list[str] = []

    def add(self, row: int, item: Callable[[], str]) -> None:
        if row not in self.rows:
            self.rows.add(row)
            if len(self.items) <= MAX_ITEMS:
                self.items.append(item())


def _find_copies(portraits: list[_Portrait]) -> Iterator[Finding]:
    looks = [look for portrait in portraits for look in portrait.looks]
    if not looks:
        return
    places = [(place, row) for place, portrait in enumerate(portraits) for row in portrait.rows]
    identical: dict[tuple[int, int], _Copies] = defaultdict(_Copies)
    near: dict[tuple[int, int], _Copies] = defaultdict(_Copies)

    def note(copies: dict[tuple[int, int], _Copies], first: int, second: int, sign: str) -> None:
        (set_a, row_a), (set_b, row_b) = places[first], places[second]
        name_a, name_b = portraits[set_a].name_of, portraits[set_b].name_of
        copies[set_a, set_b].add(row_b, lambda: f"{name_b(row_b)} {sign} {name_a(row_a)}")

    by_digest: dict[bytes, dict[int, int]] = defaultdict(dict)
    for position, look in enumerate(looks):
        place = places[position][0]
        # The first copy in each set stands for those that follow there.
        for first in by_digest[look.digest].values():
            note(identical, first, position, "=")
        by_digest[look.digest].setdefault(place, position)
    pairs = near_pairs(
        np.stack([look.thumbnail for look in looks]),
        np.stack([look.tints for look in looks]),
        np.array([place for place, _ in places]),
    )
    for firsts, seconds in pairs:
        for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
            if looks[first].digest != looks[second].digest:
                note(near, first, second, "≈")
    for kind, copies in (("identical", identical), ("near-identical", near)):
        for (set_a, set_b), found in sorted(copies.items(), key=lambda entry: entry[0]):
            yield _report_copies(kind, portraits[set_a], portraits[set_b], found, within=set_a == set_b)


def _report_copies(kind: str, first: _Portrait, second: _Portrait, found: _Copies, within: bool) -> Finding:
    groups = {first.group, second.group}
    count = counted(len(found.rows), "image")
    are = "is" if len(found.rows) == 1 else "are"
    alike = "byte for byte" if kind == "identical" else "but for size, compression, brightness or lost colours"
    harm: Severity = "error" if kind == "identical" else "warning"
    severity: Severity
    if within:
        where = f"{count} of {second.total} in {second.name!r} {are} there before, {alike}"
        narrow = "" if second.group == "fit" else ", and intervals come out too narrow"
        advice = f"these count repeatedly{narrow}. Keep one of each"
        severity = "warning" if kind == "identical" else "note"
    else:
        where = (
            f"{count} of {second.total} in {second.name!r} ({second.group}) {are} also in {first.name!r} "
            f"({first.group}), {alike}"
        )
        if groups.issubset(_OOD) or (len(groups) == 1 and first.group != "fit"):
            advice, severity = "the results of these two sets are not independent", "note"
        elif not groups.isdisjoint(_OOD):
            advice, severity = "an image cannot be ID and OOD. Remove them from one of the two sets", harm
        elif "fit" in groups:
            advice = "a method would be tested on what it was fitted to. Remove them from the set it is fitted to"
            severity = harm
        else:
            advice = "no shift can be seen from images that were not changed. Remove them from the shifted set"
            severity = "warning" if kind == "identical" else "note"
    return make_finding(severity, f"{kind}-images", f"{where}: {advice}.", found.items, len(found.rows))


def _examine_classes(sets: Sequence[NamedImages]) -> list[Finding]:
    """Which OOD images have an ID class by the names that the sets themselves give."""
    classes = [
        (entry, Counter(name for name in getattr(entry, "class_names", None) or () if name is not None))
        for entry in sets
    ]
    id_names = {canonical_label(name): name for entry, counts in classes if entry.group == "id" for name in counts}
    findings = []
    for entry, counts in classes:
        if entry.group in _OOD:
            shared = {name: count for name, count in counts.items() if canonical_label(name) in id_names}
            if shared:
                message = (
                    f"{counted(sum(shared.values()), 'image')} of {len(entry.names)} in the OOD set {entry.name!r} "
                    f"{'belongs' if sum(shared.values()) == 1 else 'belong'} to classes of the ID set; exclude these "
                    "classes with `classes.exclude`."
                )
                items = [f"{name!r} ({counted(count, 'image')})" for name, count in shared.items()]
                findings.append(make_finding("error", "shared-class", message, items))
    return findings


def _compare_appearance(portraits: list[_Portrait]) -> Iterator[Finding]:
    """How well OOD sets are told from the ID set by what is not on the images."""
    id_looks = [look for portrait in portraits if portrait.group == "id" for look in portrait.looks]
    others = [
        portrait
        for portrait in portraits
        if portrait.group in (*_OOD, "covariate-shift") and len(portrait.looks) >= _MIN_IMAGES_TO_COMPARE
    ]
    if len(id_looks) < _MIN_IMAGES_TO_COMPARE:
        return
    for quality in _QUALITIES:
        id_values = quality.measure(id_looks)
        if id_values is None:
            continue
        compared = []
        for portrait in others:
            values = quality.measure(portrait.looks)
            if values is not None:
                separation, direction = _separation(id_values, values, quality.is_ordered)
                if separation >= _NOTEWORTHY:
                    detail = f"{quality.describe(values)}, ID {quality.describe(id_values)}"
                    text = f"{portrait.name}: AUROC {separation:.3f}{direction} ({detail})"
                    compared.append((separation, text, values))
        compared.sort(key=lambda entry: -entry[0])
        telling = [entry for entry in compared if quality.can_mislead and entry[0] >= _TELLING]
        helping = [entry for entry in compared if not (quality.can_mislead and entry[0] >= _TELLING)]
        severity: Severity
        for severity, verb, ending, chosen in (
            ("warning", "tells", " almost perfectly", telling),
            ("note", "helps to tell", "", helping),
        ):
            if chosen:
                message = (
                    f"{quality.subject} alone {verb} {counted(len(chosen), 'set')} from the ID set{ending}, whatever "
                    f"the images show; {quality.advice([id_values, *(entry[2] for entry in chosen)])}"
                )
                yield make_finding(severity, quality.check, message, [entry[1] for entry in chosen])


@dataclass(frozen=True)
class _Quality:
    """A property of images that should not tell the sets apart.

    Args:
        check (`str`): Name of the check.
        subject (`str`): What to call it at the beginning of a sentence.
        measure: Values of images, None where they are not known.
        describe: Values in words.
        advice: What to do, given the values in several sets.
        is_ordered (`bool`): Whether greater and smaller mean something.
        can_mislead (`bool`): Whether the model sees it as something else than what is on the image.
    """

    check: str
    subject: str
    measure: Callable[[list[_Look]], npt.NDArray[Any] | None]
    describe: Callable[[npt.NDArray[Any]], str]
    advice: Callable[[list[npt.NDArray[Any]]], str]
    is_ordered: bool
    can_mislead: bool


def _formats(looks: list[_Look]) -> npt.NDArray[Any] | None:
    known = [look.format for look in looks if look.format is not None]
    return np.array(known) if len(known) == len(looks) else None


def _median_and_range(unit: str, digits: int) -> Callable[[npt.NDArray[Any]], str]:
    def describe(values: npt.NDArray[Any]) -> str:
        low, middle, high = (f"{value:.{digits}f}" for value in (values.min(), np.median(values), values.max()))
        return f"{middle}{unit}" if low == high else f"median {middle}{unit}, {low} to {high}"

    return describe


def _shares(values: npt.NDArray[Any]) -> str:
    counts = Counter(values.tolist()).most_common(3)
    return ", ".join(f"{count / len(values):.0%} {value}" for value, count in counts)


_QUALITIES = (
    _Quality(
        check="resolution",
        subject="The short side",
        measure=lambda looks: np.array([min(look.size) for look in looks], dtype=np.float64),
        describe=_median_and_range(" px", 0),
        advice=lambda values: (
            f"set `image_size: {min(int(np.median(entry)) for entry in values)}` in the suite, so that all sets are "
            "equally sharp."
        ),
        is_ordered=True,
        can_mislead=True,
    ),
    _Quality(
        check="file-format",
        subject="The file format",
        measure=_formats,
        describe=_shares,
        advice=lambda values: (
            "store all sets in the same way, JPEG with the same quality, or set `image_size` below the size of the "
            "files, which blurs traces of compression."
        ),
        is_ordered=False,
        can_mislead=True,
    ),
    _Quality(
        check="aspect-ratio",
        subject="The ratio of width to height",
        measure=lambda looks: np.array([look.size[0] / look.size[1] for look in looks]),
        describe=_median_and_range("", 2),
        advice=lambda values: (
            "nothing needs to be done for models that crop the centre; others should be given images cut to squares."
        ),
        is_ordered=True,
        can_mislead=False,
    ),
    _Quality(
        check="greyscale",
        subject="Whether images are grey or coloured",
        measure=lambda looks: np.array(["grey" if look.is_grey else "coloured" for look in looks]),
        describe=_shares,
        advice=lambda values: (
            "if that is not what makes these images OOD, give a result with all sets in grey beside this one."
        ),
        is_ordered=False,
        can_mislead=False,
    ),
)


def _separation(id_values: npt.NDArray[Any], values: npt.NDArray[Any], is_ordered: bool) -> tuple[float, str]:
    """AUROC of the best simple rule, and the rule in words."""
    common = Counter(id_values.tolist()).most_common(1)[0][0]
    rules = [(auroc(id_values != common, values != common), "")]
    if is_ordered:
        area = auroc(id_values, values)
        rules.append((max(area, 1 - area), ", greater = OOD" if area >= 0.5 else ", smaller = OOD"))
    # Where both say the same, the one that gives a direction
    return max(rules)


__all__ = ["NamedImages", "examine_images"]
