# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a benchmark before anything is measured: its class names and its images.

Labels are examined as CLIP reads them, in lower case: names twice in the list, names cut short, names that no caption
has, names that mean the same, names that a model cannot tell apart, OOD classes that are ID classes or kinds of them.
Of images it is found out which ones are in several sets, and what tells the sets apart though it has nothing to do
with what is on the images, such as their size.

That two names mean the same, or that one is a kind of the other (a husky is a dog), is seen where WordNet, the
spelling or the text encoder says so. WordNet does not know every name, nor which of its senses is meant; read the
class lists yourself.
"""

import hashlib
import io
import itertools
import math
import os
import re
import textwrap
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..images import ImageError, NumberedImages, load_image, number_images, read_content
from ..prompts import DEFAULT_TEMPLATES, fill_templates
from ..wordnet import WordNet
from .image_hashes import MIN_CONTRAST, near_pairs, thumbnail, tints
from .label_senses import Kinship, is_no_kind, kinds, synonyms
from .metrics import auroc

if TYPE_CHECKING:
    from ..encoders import DualEncoder, PrecomputedEncoder

Severity = Literal["error", "warning", "note"]

MAX_ITEMS = 10
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_OOD = ("near", "far")


@dataclass(frozen=True)
class Finding:
    """Something about a benchmark that its user should know.

    Args:
        severity (`str`):
            `"error"`, where results would be wrong; `"warning"`, where they would be misleading or worse than they
            need be; `"note"`, where somebody should have a look.
        check (`str`): What was looked for, such as `"duplicate-label"`.
        message (`str`): What was found, how often, and what to do about it.
        items (`tuple[str, ...]`): The labels, images or sets concerned, at most 10 of them.
    """

    severity: Severity
    check: str
    message: str
    items: tuple[str, ...] = ()


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


def examine_labels(
    labels: Sequence[str],
    ood_labels: Sequence[str] | None = None,
    encoder: "DualEncoder | PrecomputedEncoder | None" = None,
    templates: Sequence[str] | None = None,
) -> list[Finding]:
    r"""Examine class names.

    With an encoder, two names count as impossible to tell apart if the difference between their logits,
    \(s\,x^\top(a - b)\) with the logit scale \(s\), has a standard deviation of less than 1 over images \(x\) of
    random direction, that is \(s\,\lVert a - b\rVert / \sqrt{d} < 1\): for most images, the softmax then gives both
    about the same. They count as similar if their cosine is unusually high for the label set: above the median of the
    cosines between each label and its nearest one by two standard deviations, these estimated from the median
    absolute deviation.

    Args:
        labels (`Sequence[str]`): The ID labels, which may be faulty.
        ood_labels (`Sequence[str]`, *optional*): Classes of OOD sets, as far as they are known.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`], *optional*): Embeds the labels.
        templates (`Sequence[str]`, *optional*): Texts with one `{}` for the label; by default those of the encoder.

    Returns:
        `list[Finding]`: The gravest first; empty if there is nothing to say.

    Raises:
        TypeError: `labels` or `ood_labels` is not a list of strings.
        ValueError: `labels` is empty.

    Example:

    ```python
    >>> from clipn_hf.evaluation.doctor import examine_labels
    >>> [finding.check for finding in examine_labels(["tabby cat", "Tabby_cat", "dog"])]
    ['duplicate-label', 'raw-label']

    ```
    """
    names = _check_strings(labels, "labels")
    if not names:
        raise ValueError('`labels` is empty; give at least one, such as ["cat", "dog"].')
    ood_names = list(dict.fromkeys(_check_strings(ood_labels, "ood_labels"))) if ood_labels is not None else []
    findings = [*_examine_spelling(names, templates, encoder), *_examine_likeness(names)]
    ood_names = [name for name in ood_names if name.strip()]
    findings += _examine_overlap(names, ood_names)
    if encoder is not None:
        findings += _examine_meaning(names, ood_names, encoder, templates)
    return _by_severity(findings)


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
        message = f"{_count(len(blind), 'set')} came without images, which could therefore not be examined."
        findings.append(_finding("note", "no-images", message, blind))
    portraits = _read_sets([entry for entry in sets if entry.images is not None], progress)
    findings += _report_unreadable(portraits)
    findings += _report_sizes(sets, portraits)
    if labels is not None:
        findings += _report_empty_classes(sets, labels)
    findings += _find_copies(portraits)
    findings += _report_blank(portraits)
    findings += _compare_appearance(portraits)
    return _by_severity(findings)


def format_findings(findings: Iterable[Finding], width: int = 100) -> list[str]:
    """Write findings as lines of text.

    Args:
        findings (iterable of [`Finding`]): What to write.
        width (`int`, *optional*, defaults to 100): Where to break sentences.

    Returns:
        `list[str]`: A sentence and an indented line per item for each finding, and what errors mean for results; one
        line if there are none.
    """
    findings = list(findings)
    lines: list[str] = []
    for finding in findings:
        lead = f"{finding.severity.capitalize()} ({finding.check}): "
        lines += textwrap.wrap(
            lead + finding.message, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        lines += [f"    {_printable(item)}" for item in finding.items]
    errors = [finding.check for finding in findings if finding.severity == "error"]
    if errors:
        respects = list(dict.fromkeys(errors))
        verdict = (
            f"Results are wrong in {'this respect' if len(respects) == 1 else 'these respects'} until "
            f"{'it is' if len(respects) == 1 else 'they are'} put right: {', '.join(respects)}."
        )
        lines += textwrap.wrap(verdict, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines or ["Nothing to report."]


# Labels.

_WORDNET_ID = re.compile(r"\bn\d{8}\b")
_NUMBER = re.compile(r"(?:(?:class|label|category|cls|id)[\s_-]*)?\d+", flags=re.IGNORECASE)
_RAW = re.compile(r"_|[a-z]/[a-z]|^/")
_RUN_TOGETHER = re.compile(r"[A-Z]?[a-z]{2,}(?:[A-Z][a-z]{2,})+")
_UNFINISHED = re.compile(
    r"(?:…|\.\.\.|[,;:/&+(\[{-]|(?:^|\s)(?:a|an|and|by|for|in|of|on|or|the|to|with))$", re.IGNORECASE
)
_ARTICLE = re.compile(r"(?:an?|the)\s+\S", flags=re.IGNORECASE)
_ARTICLE_BEFORE = re.compile(r"\b(?:an?|the)\s+\{\}", flags=re.IGNORECASE)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
# What makes a noun or an adjective of a verb
_VERB_ENDINGS = ("er", "or", "ed", "ing", "ance", "ment", "ion")
_MIN_LETTERS_TO_COMPLETE = 5
# Names that were cut have one length, the greatest. Among short names many have the same length anyway.
_MIN_CUT_LENGTH = 12
_MIN_CUT_NAMES = 5
_MIN_TYPO_LENGTH = 6
_MIN_LENGTH_OF_ANOTHER_LETTER = 9
_MIN_LABELS_FOR_SIMILARITY = 8
_UNUSUAL = 2.0  # Standard deviations


def _examine_spelling(
    labels: list[str], templates: Sequence[str] | None, encoder: "DualEncoder | PrecomputedEncoder | None"
) -> Iterator[Finding]:
    """What single labels, or the list as a whole, have that captions have not."""
    blank = [position for position, label in enumerate(labels) if not label.strip()]
    if blank:
        message = (
            f"{_count(len(blank), 'label')} {_are(blank)} blank; remove {_them(blank)} or give {_them(blank)} a name."
        )
        yield _finding("error", "blank-label", message, [f"position {position}" for position in blank])
    labels = list(dict.fromkeys(label for label in labels if label.strip()))
    ids = [label for label in labels if _WORDNET_ID.search(label)]
    if ids:
        message = (
            f"{_count(len(ids), 'label')} {_have(ids)} a WordNet id, which no caption has; write the names that "
            f"these stand for{_name_of_id(ids[0])}."
        )
        yield _finding("error", "wordnet-id", message, ids)
    numbers = [label for label in labels if _NUMBER.fullmatch(label.strip())]
    if numbers:
        message = (
            f"{_count(len(numbers), 'label')} {_are(numbers)} only numbers; write the names of the classes "
            '(for digits, such as "the digit seven").'
        )
        yield _finding("warning", "numeric-label", message, numbers)
    # A single name may be spelled so, a list is written so.
    together = [label for label in labels if _RUN_TOGETHER.fullmatch(label)]
    raw = [label for label in labels if _RAW.search(label) or (label in together and len(together) > 1)]
    if raw:
        message = (
            f"{_count(len(raw), 'label')} {_are(raw)} written as in programs, not as in captions; put spaces, such as "
            f"{_spaced(raw[0])!r} instead of {_short(raw[0])!r}."
        )
        yield _finding("warning", "raw-label", message, raw)
    synonyms = [label for label in labels if len(_parts(label)) > 1]
    if synonyms:
        first = Counter(_canonical(_parts(label)[0]) for label in labels)
        ambiguous = sum(count for count in first.values() if count > 1)
        clash = f" ({ambiguous} labels begin with the same name as another: choose for these yourself)"
        message = (
            f"{_count(len(synonyms), 'label')} {_are(synonyms)} lists of synonyms, which no caption has; use the "
            f"first name, such as {_parts(synonyms[0])[0]!r}{clash if ambiguous else ''}."
        )
        yield _finding("warning", "synonym-list", message, synonyms)
    cut = []
    for label in labels:
        if _unfinished(label):
            cut.append(label)
        elif whole := _completion(label):
            cut += _explained([label], whole)
    if cut:
        message = (
            f"{_count(len(cut), 'label')} {'seems' if len(cut) == 1 else 'seem'} cut short: there is an ellipsis, a "
            "dangling word or comma, a bracket or quotation mark without its other half, or the beginning of a name "
            "in WordNet; take the names from where they are whole."
        )
        yield _finding("warning", "truncated-label", message, cut)
    piled = _piled_up(labels)
    if piled:
        message = (
            f"{len(piled)} labels have exactly {len(piled[0])} characters and none has more, too many for chance: "
            "the list was probably cut at that length; take the names from where they are whole."
        )
        yield _finding("warning", "truncated-list", message, piled)
    spaces = [label for label in labels if label != " ".join(label.split())]
    if spaces:
        message = f"{_count(len(spaces), 'label')} {_have(spaces)} superfluous spaces or line breaks; remove these."
        yield _finding("note", "superfluous-space", message, [repr(label) for label in spaces])
    used = list(templates if templates is not None else getattr(encoder, "templates", None) or DEFAULT_TEMPLATES)
    articles = [label for label in labels if _ARTICLE.match(label)]
    if articles and any(_ARTICLE_BEFORE.search(template) for template in used):
        doubled = next(template for template in used if _ARTICLE_BEFORE.search(template))
        message = (
            f"{_count(len(articles), 'label')} {'begins' if len(articles) == 1 else 'begin'} with an article, as does "
            f"the template: {doubled.replace('{}', articles[0])!r}; remove the article from the label."
        )
        yield _finding("warning", "double-article", message, articles)
    too_long = _too_long(labels, used, encoder)
    if too_long:
        message = (
            f"{_count(len(too_long), 'label')} {_are(too_long)} longer than what the text encoder takes, and "
            "lose their ends; shorten them."
        )
        yield _finding("warning", "too-long-label", message, too_long)


def _examine_likeness(labels: list[str]) -> Iterator[Finding]:
    """Which labels are alike in spelling. What one check reports, the next ones leave out."""
    distinct = [label for label in labels if label.strip()]
    groups = defaultdict(list)
    for label in distinct:
        groups[_canonical(label)].append(label)
    twice = [" = ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if twice:
        message = (
            f"{_count(len(twice), 'name')} {_are(twice)} in the list repeatedly, apart from case, accents, spaces, "
            "hyphens and underscores; a model cannot tell these classes apart. Name what they differ in, such as "
            '"crane (bird)", or merge them.'
        )
        yield _finding("error", "duplicate-label", message, twice)
    names = {canonical: group[0] for canonical, group in groups.items()}
    reported: set[frozenset[str]] = set()

    def pairs(found: Iterable[tuple[str, str]]) -> list[str]:
        new = [pair for pair in dict.fromkeys(found) if pair[0] != pair[1] and frozenset(pair) not in reported]
        reported.update(map(frozenset, new))
        return [f"{names[left]!r} and {names[right]!r}" for left, right in new]

    def related(found: Iterable[Kinship]) -> list[str]:
        explanations = {(_canonical(entry.first), _canonical(entry.second)): entry.explanation for entry in found}
        return [item for pair, why in explanations.items() for item in _explained(pairs([pair]), why)]

    by_part: dict[str, str] = {}
    shared = []
    for canonical, label in names.items():
        for part in {canonical, *map(_canonical, _parts(label))}:
            if part in by_part:
                shared.append((by_part[part], canonical))
            by_part.setdefault(part, canonical)
    common = pairs(shared)
    if common:
        message = (
            f"{_count(len(common), 'pair')} of labels {_have(common)} a name in common; choose other synonyms, or "
            "merge them."
        )
        yield _finding("warning", "shared-synonym", message, common)
    plurals = pairs((name, plural) for name in names for plural in _plurals(name) if plural in names)
    if plurals:
        message = (
            f"{_count(len(plurals), 'pair')} of labels {'differs' if len(plurals) == 1 else 'differ'} only in number, "
            "which models hardly notice; merge them, or name what they differ in."
        )
        yield _finding("warning", "plural-label", message, plurals)
    meanings = list(synonyms(list(names.values())))
    equal = related(entry for entry in meanings if entry.certainty != "possible")
    if equal:
        message = (
            f"{_count(len(equal), 'pair')} of labels {'means' if len(equal) == 1 else 'mean'} the same in WordNet; "
            'merge them, or, where they do not, name what they differ in, such as "crane (bird)".'
        )
        yield _finding("warning", "synonym-label", message, equal)
    typos = pairs(_one_letter_apart(list(names)))
    if typos:
        message = (
            f"{_count(len(typos), 'pair')} of labels {'differs' if len(typos) == 1 else 'differ'} by one letter; make "
            "sure that these are two classes, and none is a spelling mistake."
        )
        yield _finding("note", "similar-spelling", message, typos)
    # "bottle" and "beer bottle" before "bee" and "bee eater", which only look related
    contained = pairs(sorted(_contained(names, names), key=lambda pair: not pair[1].endswith(pair[0])))
    if contained:
        message = (
            f"{_count(len(contained), 'label')} {_are(contained)} part of another one, so that an image may fit both; "
            "name the general class more precisely, or merge them."
        )
        yield _finding("note", "contained-label", message, contained)
    possible = related(entry for entry in meanings if entry.certainty == "possible")
    if possible:
        message = (
            f"{_count(len(possible), 'pair')} of labels may mean the same: in WordNet, a rarer sense of one is what "
            "the other means; merge those that do."
        )
        yield _finding("note", "synonym-label", message, possible)
    kinships = list(kinds(list(names.values())))
    kin = related(entry for entry in kinships if entry.certainty != "possible")
    if kin:
        message = (
            f"{_count(len(kin), 'label')} {_are(kin)} {'a kind' if len(kin) == 1 else 'kinds'} of another one in "
            "WordNet, so that an image may fit both; name the general class more precisely, or merge them."
        )
        yield _finding("note", "kind-of-label", message, kin)
    maybe = related(entry for entry in kinships if entry.certainty == "possible")
    if maybe:
        message = (
            f"{_count(len(maybe), 'label')} may be {'a kind' if len(maybe) == 1 else 'kinds'} of another one: in "
            "WordNet, a rarer sense of one of the two makes it so; name more precisely those that an image may fit "
            "together, or merge them."
        )
        yield _finding("note", "kind-of-label", message, maybe)


def _examine_overlap(labels: list[str], ood_labels: list[str]) -> Iterator[Finding]:
    """Which OOD classes are ID classes, as far as spelling and WordNet tell."""
    labels = [label for label in labels if label.strip()]
    id_names = {_canonical(label): label for label in reversed(labels)}
    by_first = {name: label for label in reversed(labels) for name in _with_plurals(_first_names(label))}
    by_any = {name: label for label in reversed(labels) for name in _with_plurals(_all_names(label))}
    meanings = _Meanings(list(dict.fromkeys(labels)), ood_labels)
    ood_names = {_canonical(label): label for label in ood_labels}
    insides: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in _contained(id_names, ood_names):
        insides[pair[1]].append(pair)
    for pair in _contained(ood_names, id_names):
        insides[pair[0]].append(pair)
    same, related, contained, told = [], [], [], set()
    for ood_label in ood_labels:
        # What is a rare synonym on both sides may be two things.
        equal = [by_any[name] for name in _with_plurals(_first_names(ood_label)) if name in by_any]
        equal += [by_first[name] for name in _with_plurals(_all_names(ood_label)) if name in by_first]
        inside = insides[_canonical(ood_label)]
        # A beer bottle is a bottle, but a bee eater is no bee, and WordNet knows that a hot dog is no dog.
        heads = [pair for pair in inside if pair[1].endswith(pair[0]) and not is_no_kind(pair[1], pair[0])]
        other = [by_any[name] for name in _all_names(ood_label) if name in by_any]
        if equal:
            same.append(_against(ood_label, equal[0]))
            told.add(ood_label)
        elif heads:
            related.append(_against(ood_label, _id_name(heads[0], id_names)))
            told.add(ood_label)
        elif (other or inside) and ood_label not in meanings.explained:
            contained.append(_against(ood_label, other[0] if other else _id_name(inside[0], id_names)))
    beyond = "What neither the spelling nor WordNet knows is beyond this check: read the lists."
    if same:
        message = (
            f"{_count(len(same), 'OOD class', 'OOD classes')} {_are(same)} also in the list of ID labels; exclude "
            f"{_them(same)} from the OOD set with `classes.exclude`. {beyond}"
        )
        yield _finding("error", "id-ood-overlap", message, same)
    if related:
        message = (
            f"{_count(len(related), 'OOD class', 'OOD classes')} {'seems' if len(related) == 1 else 'seem'} to be a "
            f"kind of an ID class, or the other way round; exclude those that are with `classes.exclude`. {beyond}"
        )
        yield _finding("warning", "id-ood-containment", message, related)
    yield from meanings.report(told)
    if contained:
        message = (
            f"{_count(len(contained), 'OOD class', 'OOD classes')} {_have(contained)} a name or words in common with "
            "an ID label, which may mean nothing; exclude those that show ID classes with `classes.exclude`."
        )
        yield _finding("note", "id-ood-shared-words", message, contained)


class _Meanings:
    """What WordNet says of ID labels and OOD classes.

    Args:
        labels (`list[str]`): The ID labels.
        ood_labels (`list[str]`): The OOD classes.
    """

    def __init__(self, labels: list[str], ood_labels: list[str]) -> None:
        found = [(entry.second, entry) for entry in synonyms(labels, ood_labels)]
        self.same = {
            certainty: {ood_label: entry for ood_label, entry in reversed(found) if entry.certainty == certainty}
            for certainty in ("certain", "probable", "possible")
        }
        self.kinds: dict[str, Kinship] = {}
        self.possible_kinds: dict[str, Kinship] = {}
        for entry in kinds(ood_labels, labels):
            (self.possible_kinds if entry.certainty == "possible" else self.kinds)[entry.first] = entry
        self.general: dict[str, list[str]] = defaultdict(list)
        for entry in kinds(labels, ood_labels):
            if entry.certainty == "possible":
                self.possible_kinds.setdefault(entry.second, entry)
            else:
                self.general[entry.second].append(entry.first)
        self.explained = {*self.same["certain"], *self.same["probable"], *self.kinds, *self.possible_kinds}

    def report(self, told: Iterable[str]) -> Iterator[Finding]:
        """Report each OOD class once, unless it was told before, and under the gravest of what is said of it."""
        told = set(told)

        def new(found: Mapping[str, Any]) -> list[str]:
            chosen = [ood_label for ood_label in found if ood_label not in told]
            told.update(chosen)
            return chosen

        exclude = "exclude those that show ID classes with `classes.exclude`."
        severities: dict[str, Severity] = {"certain": "error", "probable": "warning"}
        for certainty, severity in severities.items():
            if chosen := new(self.same[certainty]):
                only = ", which have no other sense that can be seen" if certainty == "certain" else ""
                message = (
                    f"{_count(len(chosen), 'OOD class', 'OOD classes')} {'means' if len(chosen) == 1 else 'mean'} the "
                    f"same as an ID label in WordNet{only}; {exclude}"
                )
                yield _finding(severity, "id-ood-synonym", message, self._items(chosen, self.same[certainty]))
        if chosen := new(self.kinds):
            message = (
                f"{_count(len(chosen), 'OOD class', 'OOD classes')} {_are(chosen)} "
                f"{'a kind' if len(chosen) == 1 else 'kinds'} of an ID label in WordNet, as a husky is a dog; "
                f"{exclude}"
            )
            yield _finding("warning", "id-ood-kind-of", message, self._items(chosen, self.kinds))
        if chosen := new(self.same["possible"]):
            message = (
                f"{_count(len(chosen), 'OOD class', 'OOD classes')} may mean the same as an ID label: in WordNet, a "
                f"rarer sense of one is what the other means; {exclude}"
            )
            yield _finding("note", "id-ood-synonym", message, self._items(chosen, self.same["possible"]))
        if chosen := new(self.general):
            message = (
                f"{_count(len(chosen), 'OOD class', 'OOD classes')} {_have(chosen)} ID labels as kinds in WordNet, as "
                "dogs include huskies; look whether ID classes are among the images, and remove these."
            )
            items = []
            for ood_label in chosen:
                first, *others = self.general[ood_label]
                items.append(_against(ood_label, first) + (f" and {len(others)} more" if others else ""))
            yield _finding("note", "id-ood-kind-of", message, items)
        if chosen := new(self.possible_kinds):
            message = (
                f"{_count(len(chosen), 'OOD class', 'OOD classes')} may be "
                f"{'a kind' if len(chosen) == 1 else 'kinds'} of an ID label, or the other way round: in WordNet, a "
                f"rarer sense of one of the two makes it so; {exclude}"
            )
            yield _finding("note", "id-ood-kind-of", message, self._items(chosen, self.possible_kinds))

    @staticmethod
    def _items(ood_labels: Iterable[str], found: Mapping[str, Kinship]) -> list[str]:
        items = []
        for ood_label in ood_labels:
            entry = found[ood_label]
            label = entry.first if entry.second == ood_label else entry.second
            items += _explained([_against(ood_label, label)], entry.explanation)
        return items


def _name_of_id(label: str) -> str:
    """What a WordNet id stands for, as the example in a sentence; nothing for ids of other editions."""
    found = _WORDNET_ID.search(label)
    try:
        synset = WordNet.load().synset(found[0] if found else "")
    except KeyError:
        return ""
    return f", such as {synset.lemmas[0]!r} instead of {_short(label)!r}"


def _id_name(pair: tuple[str, str], id_names: Mapping[str, str]) -> str:
    return next(id_names[name] for name in pair if name in id_names)


def _examine_meaning(
    labels: list[str],
    ood_labels: list[str],
    encoder: "DualEncoder | PrecomputedEncoder",
    templates: Sequence[str] | None,
) -> Iterator[Finding]:
    """Which labels are alike for the text encoder."""
    # Of labels that are read alike there is nothing new to say.
    by_canonical: dict[str, str] = {}
    for label in labels:
        if label.strip():
            by_canonical.setdefault(_canonical(label), label)
    names = list(by_canonical.values())
    if not names:
        return
    embeddings = _embed(names, encoder, templates)
    # Cosine at which the difference between two logits has a standard deviation of 1.
    indistinct = 1 - embeddings.shape[1] / encoder.logit_scale**2 / 2
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    unusual = _unusual_cosine(cosines.max(axis=1))
    close = np.argwhere(np.triu(cosines, k=1) > min(indistinct, unusual)).tolist()
    alike: dict[str, list[str]] = {"indistinct": [], "similar": []}
    for row, column in sorted(close, key=lambda pair: -cosines[pair[0], pair[1]]):
        left, right = _canonical(names[row]), _canonical(names[column])
        if left in _plurals(right) or right in _plurals(left):
            continue
        cosine = cosines[row, column]
        kind = "indistinct" if cosine > indistinct else "similar"
        alike[kind].append(f"{names[row]!r} and {names[column]!r} (cosine {cosine:.3f})")
    if indistinct_pairs := alike["indistinct"]:
        message = (
            f"{_count(len(indistinct_pairs), 'pair')} of labels {_are(indistinct_pairs)} so close for the text "
            "encoder that the model cannot tell them apart; describe what they differ in, or merge them."
        )
        yield _finding("warning", "indistinct-labels", message, indistinct_pairs)
    if similar_pairs := alike["similar"]:
        message = (
            f"{_count(len(similar_pairs), 'pair')} of labels {_are(similar_pairs)} unusually close for the text "
            "encoder, compared with the others; if they mean the same, merge them."
        )
        yield _finding("note", "similar-labels", message, similar_pairs)
    others = [label for label in ood_labels if _canonical(label) not in by_canonical]
    if not others:
        return
    try:
        ood_embeddings = _embed(others, encoder, templates)
    # Embeddings that were computed elsewhere may lack these labels.
    except ValueError as error:
        message = f"OOD classes were compared with labels by their spelling only, not by their embeddings: {error}"
        yield _finding("note", "no-ood-embeddings", message, ())
        return
    cosines = ood_embeddings @ embeddings.T
    nearest, places = cosines.max(axis=1), cosines.argmax(axis=1)
    ranking = [place for place in np.argsort(-nearest, kind="stable") if nearest[place] > min(indistinct, unusual)]
    items = [f"{_against(others[place], names[places[place]])} (cosine {nearest[place]:.3f})" for place in ranking]
    known = sum(1 for place in ranking if nearest[place] > indistinct)
    if items[:known]:
        message = (
            f"{_count(known, 'OOD class', 'OOD classes')} {_are(items[:known])} so close to an ID label, for the text "
            "encoder, that the model cannot tell them apart; exclude those that mean the same with `classes.exclude`."
        )
        yield _finding("warning", "id-ood-indistinct", message, items[:known])
    if items[known:]:
        message = (
            f"{_count(len(ranking) - known, 'OOD class', 'OOD classes')} {_are(items[known:])} as close to an ID "
            "label, for the text encoder, as few ID labels are to each other; exclude those that mean the same with "
            "`classes.exclude`."
        )
        yield _finding("note", "id-ood-similarity", message, items[known:])


def _embed(
    labels: list[str], encoder: "DualEncoder | PrecomputedEncoder", templates: Sequence[str] | None
) -> npt.NDArray[np.float32]:
    embeddings: npt.NDArray[np.float32] = (
        encoder.class_embeddings(labels, templates, use_no_encoder=False)[0].float().cpu().numpy()
    )
    return embeddings


def _unusual_cosine(nearest: npt.NDArray[np.float32]) -> float:
    """From which cosine on two labels are unusually close, given how close each label is to its nearest one."""
    if len(nearest) < _MIN_LABELS_FOR_SIMILARITY:
        return math.inf
    median = float(np.median(nearest))
    # The factor makes it the standard deviation of a normal distribution.
    deviation = 1.4826 * float(np.median(np.abs(nearest - median)))
    return median + _UNUSUAL * deviation if deviation > 0 else math.inf


def _canonical(label: str) -> str:
    """What is the same for labels that only differ in how they are written."""
    decomposed = unicodedata.normalize("NFKD", label).casefold()
    # Only the accents of Latin, Greek and Cyrillic; in other scripts, marks are letters.
    letters = "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
    return " ".join(re.sub(r"[_\-‐-―/'’.()\[\]]", " ", letters).split()) or decomposed.strip()


def _parts(label: str) -> list[str]:
    """The names in a list of synonyms."""
    return [part.strip() for part in re.split(r"[,;]", label) if part.strip()] or [label]


def _first_names(label: str) -> list[str]:
    return list(dict.fromkeys([_canonical(label), _canonical(_parts(label)[0])]))


def _all_names(label: str) -> list[str]:
    return list(dict.fromkeys([_canonical(label), *map(_canonical, _parts(label))]))


def _with_plurals(names: list[str]) -> list[str]:
    return [*names, *(plural for name in names for plural in _plurals(name))]


def _spaced(label: str) -> str:
    """A label from a program as a caption would have it."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", re.sub(r"[_/]+", " ", label)).strip()
    return _short(spaced)


def _plurals(name: str) -> Iterator[str]:
    """How the plural of a name could be written; nothing for names that may be plurals themselves."""
    if len(name) < 3:
        return
    if name.endswith(("s", "x", "z", "ch", "sh")):
        yield f"{name}es"
    elif name.endswith("y") and name[-2] not in "aeiou":
        yield f"{name[:-1]}ies"
    else:
        yield f"{name}s"
        if name.endswith("o"):
            yield f"{name}es"


def _contained(inner: Mapping[str, str], outer: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of canonical names, of which the first is some, but not all words of the second."""
    for canonical, label in outer.items():
        # What stands in brackets tells classes apart.
        words = _canonical(re.sub(r"\([^)]*\)", " ", label)).split()
        for length in range(1, len(words) + 1):
            for start in range(len(words) - length + 1):
                part = " ".join(words[start : start + length])
                if part in inner and part != canonical:
                    yield part, canonical


def _one_letter_apart(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ by a letter too many, another letter or two letters in exchanged places."""
    # Such names have a string in common that lacks at most one letter of each.
    by_rest: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if len(name) >= _MIN_TYPO_LENGTH:
            for rest in dict.fromkeys([name, *(name[:place] + name[place + 1 :] for place in range(len(name)))]):
                by_rest[rest].append(name)
    for group in by_rest.values():
        # In the order of the list, in which each name was entered
        for left, right in itertools.combinations(group, 2):
            if _is_typo(left, right):
                yield left, right


def _is_typo(left: str, right: str) -> bool:
    start = _common_start(left, right)
    end = _common_start(left[start:][::-1], right[start:][::-1])
    ours, theirs = left[start : len(left) - end], right[start : len(right) - end]
    # "Boeing 707" is no misspelled "Boeing 717".
    if any(letter.isdigit() for letter in ours + theirs):
        return False
    if len(ours) == len(theirs) == 1:
        # Many short words have such neighbours, as castle and cattle have.
        return len(left) >= _MIN_LENGTH_OF_ANOTHER_LETTER
    return max(len(ours), len(theirs)) <= 1 or (len(ours) == 2 and ours == theirs[::-1])


def _common_start(left: str, right: str) -> int:
    equal = itertools.takewhile(lambda letters: letters[0] == letters[1], zip(left, right, strict=False))
    return sum(1 for _ in equal)


def _unfinished(label: str) -> bool:
    label = label.strip()
    unbalanced = any(label.count(left) != label.count(right) for left, right in _BRACKETS.items())
    return unbalanced or label.count('"') % 2 == 1 or (len(label) > 1 and bool(_UNFINISHED.search(label)))


def _completion(label: str) -> str | None:
    """The name in WordNet of which a label is the beginning, if it is no name itself."""
    name = _parts(label)[-1]
    words = re.split(r"[\s_]+", name.strip(" _"))
    if sum(letter.isalpha() for letter in name) < _MIN_LETTERS_TO_COMPLETE:
        return None
    wordnet = WordNet.load()
    if any(wordnet.synsets(known, part) for known in (name, words[-1]) for part in ("noun", "adjective")):
        return None
    for whole in wordnet.completions(name):
        # WordNet's verbs are not in the package: who is told to "applaud" is not an applauder cut short.
        if len(words) > 1 or not whole.lower().endswith(_VERB_ENDINGS):
            return whole
    return None


def _piled_up(labels: list[str]) -> list[str]:
    """The labels of the greatest length, if these are too many for it to be natural."""
    lengths = Counter(map(len, labels))
    longest = max(lengths, default=0)
    piled = [label for label in labels if len(label) == longest]
    # Natural lists thin out towards the longest names. A list of codes has one length from end to end.
    before = sum(lengths[longest - shorter] for shorter in (1, 2, 3)) / 3
    natural = len(piled) < _MIN_CUT_NAMES or len(piled) <= 1.5 * before or len(piled) == len(labels)
    return [] if longest < _MIN_CUT_LENGTH or natural else piled


def _too_long(
    labels: list[str], templates: Sequence[str], encoder: "DualEncoder | PrecomputedEncoder | None"
) -> list[str]:
    # Embeddings that were computed before come without a tokenizer.
    tokenizer = getattr(getattr(encoder, "processor", None), "tokenizer", None)
    limit = getattr(encoder, "max_text_length", None)
    if tokenizer is None or limit is None or not labels:
        return []
    tokens = tokenizer(fill_templates(labels, templates), verbose=False)["input_ids"]
    longest = [max(map(len, tokens[row : row + len(templates)])) for row in range(0, len(tokens), len(templates))]
    return [label for label, length in zip(labels, longest, strict=True) if length > limit]


def _check_strings(values: Sequence[str], name: str) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(
            f'`{name}` must be a list of strings such as ["cat", "dog"], got {type(values).__name__}: {values!r}.'
        )
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(
                f"`{name}[{position}]` must be a string, got {type(value).__name__}: {value!r}. "
                "Convert it first, for example with `str(...)`."
            )
    return list(values)


# Images.


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
                f"{_count(count, 'image')} of {portrait.total} in {portrait.name!r} cannot be read and will be left "
                "out; copy or download them again."
            )
            items = [f"{portrait.name_of(row)}: {reason}" for row, reason in portrait.unreadable.items()]
            yield _finding("warning" if portrait.rows else "error", "unreadable-image", message, items)


def _report_sizes(sets: Sequence[NamedImages], portraits: list[_Portrait]) -> Iterator[Finding]:
    """Which sets are too small for rates."""
    readable = iter(portraits)
    sizes = [(entry, len(entry.names) if entry.images is None else len(next(readable).rows)) for entry in sets]
    small = [(entry.name, size) for entry, size in sizes if entry.group != "fit" and size < _MIN_IMAGES]
    if small:
        message = (
            f"{_count(len(small), 'set')} {_have(small)} fewer than {_MIN_IMAGES} images that can be read, so that "
            f"one image moves a rate such as the FPR95 by more than {1 / _MIN_IMAGES:.0%}; take more images, or read "
            "the results as an example."
        )
        yield _finding("warning", "small-set", message, [f"{name} ({_count(size, 'image')})" for name, size in small])


def _report_empty_classes(sets: Sequence[NamedImages], labels: Sequence[str]) -> Iterator[Finding]:
    """Which labels have no ID image."""
    names = _check_strings(labels, "labels")
    known = [positions for entry in sets if entry.group == "id" if (positions := getattr(entry, "labels", None))]
    if not known:
        return
    used = {int(position) for positions in known for position in positions}
    empty = [name for position, name in enumerate(names) if position not in used]
    if empty:
        message = (
            f"{_count(len(empty), 'label')} of {len(names)} {_have(empty)} no ID image, so that nothing is measured "
            f"of {_them(empty)}; add images, or remove {_them(empty)} from `labels`."
        )
        yield _finding("warning", "empty-class", message, empty)


def _report_blank(portraits: list[_Portrait]) -> Iterator[Finding]:
    blank = [
        portrait.name_of(row)
        for portrait in portraits
        for row, look in zip(portrait.rows, portrait.looks, strict=True)
        if look.thumbnail.std() < MIN_CONTRAST
    ]
    if blank:
        message = (
            f"{_count(len(blank), 'image')} {_are(blank)} almost of one colour, so that copies of {_them(blank)} are "
            "found only where they are identical; look whether there is something to see."
        )
        yield _finding("note", "blank-image", message, blank)


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
    count = _count(len(found.rows), "image")
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
    return _finding(severity, f"{kind}-images", f"{where}: {advice}.", found.items, len(found.rows))


def _examine_classes(sets: Sequence[NamedImages]) -> list[Finding]:
    """Which OOD images have an ID class by the names that the sets themselves give."""
    classes = [
        (entry, Counter(name for name in getattr(entry, "class_names", None) or () if name is not None))
        for entry in sets
    ]
    id_names = {_canonical(name): name for entry, counts in classes if entry.group == "id" for name in counts}
    findings = []
    for entry, counts in classes:
        if entry.group in _OOD:
            shared = {name: count for name, count in counts.items() if _canonical(name) in id_names}
            if shared:
                message = (
                    f"{_count(sum(shared.values()), 'image')} of {len(entry.names)} in the OOD set {entry.name!r} "
                    f"{'belongs' if sum(shared.values()) == 1 else 'belong'} to classes of the ID set; exclude these "
                    "classes with `classes.exclude`."
                )
                items = [f"{name!r} ({_count(count, 'image')})" for name, count in shared.items()]
                findings.append(_finding("error", "shared-class", message, items))
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
                    f"{quality.subject} alone {verb} {_count(len(chosen), 'set')} from the ID set{ending}, whatever "
                    f"the images show; {quality.advice([id_values, *(entry[2] for entry in chosen)])}"
                )
                yield _finding(severity, quality.check, message, [entry[1] for entry in chosen])


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


# Sentences.


def _finding(severity: Severity, check: str, message: str, items: Iterable[str], total: int | None = None) -> Finding:
    items = list(items)
    shown = tuple(_short(item, 200) for item in items[:MAX_ITEMS])
    rest = (len(items) if total is None else total) - len(shown)
    return Finding(severity, check, f"{message} And {rest} more than are listed." if rest else message, shown)


def _by_severity(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _are(things: Iterable[Any]) -> str:
    return "is" if len(list(things)) == 1 else "are"


def _have(things: Sequence[Any]) -> str:
    return "has" if len(things) == 1 else "have"


def _them(things: Sequence[Any]) -> str:
    return "it" if len(things) == 1 else "them"


def _against(ood_label: str, label: str) -> str:
    return f"{ood_label!r} (OOD) and {label!r} (ID)"


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _explained(items: Iterable[str], explanation: str) -> list[str]:
    return [f"{item}: {explanation}" for item in items]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


__all__ = ["MAX_ITEMS", "Finding", "NamedImages", "examine_images", "examine_labels", "format_findings"]
