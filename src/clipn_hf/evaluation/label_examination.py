# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor's look at class names."""

import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..label_senses import Kinship, is_no_kind, kinds, synonyms
from ..prompts import DEFAULT_TEMPLATES, fill_templates
from ..wordnet import WordNet

if TYPE_CHECKING:
    from ..encoders import DualEncoder, PrecomputedEncoder

from .findings import (
    Finding,
    Severity,
    against,
    are,
    by_severity,
    check_strings,
    counted,
    explained,
    have,
    make_finding,
    shorten,
    them,
)


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
    names = check_strings(labels, "labels")
    if not names:
        raise ValueError('`labels` is empty; give at least one, such as ["cat", "dog"].')
    ood_names = list(dict.fromkeys(check_strings(ood_labels, "ood_labels"))) if ood_labels is not None else []
    findings = [*_examine_spelling(names, templates, encoder), *_examine_likeness(names)]
    ood_names = [name for name in ood_names if name.strip()]
    findings += _examine_overlap(names, ood_names)
    if encoder is not None:
        findings += _examine_meaning(names, ood_names, encoder, templates)
    return by_severity(findings)


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
            f"{counted(len(blank), 'label')} {are(blank)} blank; remove {them(blank)} or give {them(blank)} a name."
        )
        yield make_finding("error", "blank-label", message, [f"position {position}" for position in blank])
    labels = list(dict.fromkeys(label for label in labels if label.strip()))
    ids = [label for label in labels if _WORDNET_ID.search(label)]
    if ids:
        message = (
            f"{counted(len(ids), 'label')} {have(ids)} a WordNet id, which no caption has; write the names that "
            f"these stand for{_name_of_id(ids[0])}."
        )
        yield make_finding("error", "wordnet-id", message, ids)
    numbers = [label for label in labels if _NUMBER.fullmatch(label.strip())]
    if numbers:
        message = (
            f"{counted(len(numbers), 'label')} {are(numbers)} only numbers; write the names of the classes "
            '(for digits, such as "the digit seven").'
        )
        yield make_finding("warning", "numeric-label", message, numbers)
    # A single name may be spelled so, a list is written so.
    together = [label for label in labels if _RUN_TOGETHER.fullmatch(label)]
    raw = [label for label in labels if _RAW.search(label) or (label in together and len(together) > 1)]
    if raw:
        message = (
            f"{counted(len(raw), 'label')} {are(raw)} written as in programs, not as in captions; put spaces, such as "
            f"{_spaced(raw[0])!r} instead of {shorten(raw[0])!r}."
        )
        yield make_finding("warning", "raw-label", message, raw)
    synonyms = [label for label in labels if len(_parts(label)) > 1]
    if synonyms:
        first = Counter(canonical_label(_parts(label)[0]) for label in labels)
        ambiguous = sum(count for count in first.values() if count > 1)
        clash = f" ({ambiguous} labels begin with the same name as another: choose for these yourself)"
        message = (
            f"{counted(len(synonyms), 'label')} {are(synonyms)} lists of synonyms, which no caption has; use the "
            f"first name, such as {_parts(synonyms[0])[0]!r}{clash if ambiguous else ''}."
        )
        yield make_finding("warning", "synonym-list", message, synonyms)
    cut = []
    for label in labels:
        if _unfinished(label):
            cut.append(label)
        elif whole := _completion(label):
            cut += explained([label], whole)
    if cut:
        message = (
            f"{counted(len(cut), 'label')} {'seems' if len(cut) == 1 else 'seem'} cut short: there is an ellipsis, a "
            "dangling word or comma, a bracket or quotation mark without its other half, or the beginning of a name "
            "in WordNet; take the names from where they are whole."
        )
        yield make_finding("warning", "truncated-label", message, cut)
    piled = _piled_up(labels)
    if piled:
        message = (
            f"{len(piled)} labels have exactly {len(piled[0])} characters and none has more, too many for chance: "
            "the list was probably cut at that length; take the names from where they are whole."
        )
        yield make_finding("warning", "truncated-list", message, piled)
    spaces = [label for label in labels if label != " ".join(label.split())]
    if spaces:
        message = f"{counted(len(spaces), 'label')} {have(spaces)} superfluous spaces or line breaks; remove these."
        yield make_finding("note", "superfluous-space", message, [repr(label) for label in spaces])
    used = list(templates if templates is not None else getattr(encoder, "templates", None) or DEFAULT_TEMPLATES)
    articles = [label for label in labels if _ARTICLE.match(label)]
    if articles and any(_ARTICLE_BEFORE.search(template) for template in used):
        doubled = next(template for template in used if _ARTICLE_BEFORE.search(template))
        message = (
            f"{counted(len(articles), 'label')} {'begins' if len(articles) == 1 else 'begin'} with an article, as "
            f"does the template: {doubled.replace('{}', articles[0])!r}; remove the article from the label."
        )
        yield make_finding("warning", "double-article", message, articles)
    too_long = _too_long(labels, used, encoder)
    if too_long:
        message = (
            f"{counted(len(too_long), 'label')} {are(too_long)} longer than what the text encoder takes, and "
            "lose their ends; shorten them."
        )
        yield make_finding("warning", "too-long-label", message, too_long)


def _examine_likeness(labels: list[str]) -> Iterator[Finding]:
    """Which labels are alike in spelling. What one check reports, the next ones leave out."""
    distinct = [label for label in labels if label.strip()]
    groups = defaultdict(list)
    for label in distinct:
        groups[canonical_label(label)].append(label)
    twice = [" = ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if twice:
        message = (
            f"{counted(len(twice), 'name')} {are(twice)} in the list repeatedly, apart from case, accents, spaces, "
            "hyphens and underscores; a model cannot tell these classes apart. Name what they differ in, such as "
            '"crane (bird)", or merge them.'
        )
        yield make_finding("error", "duplicate-label", message, twice)
    names = {canonical: group[0] for canonical, group in groups.items()}
    reported: set[frozenset[str]] = set()

    def pairs(found: Iterable[tuple[str, str]]) -> list[str]:
        new = [pair for pair in dict.fromkeys(found) if pair[0] != pair[1] and frozenset(pair) not in reported]
        reported.update(map(frozenset, new))
        return [f"{names[left]!r} and {names[right]!r}" for left, right in new]

    def related(found: Iterable[Kinship]) -> list[str]:
        explanations = {
            (canonical_label(entry.first), canonical_label(entry.second)): entry.explanation for entry in found
        }
        return [item for pair, why in explanations.items() for item in explained(pairs([pair]), why)]

    by_part: dict[str, str] = {}
    shared = []
    for canonical, label in names.items():
        for part in {canonical, *map(canonical_label, _parts(label))}:
            if part in by_part:
                shared.append((by_part[part], canonical))
            by_part.setdefault(part, canonical)
    meanings = list(synonyms(list(names.values())))
    kinships = list(kinds(list(names.values())))
    # Each looks for its pairs when it is its turn, because `pairs` leaves out what was reported before.
    checks: list[tuple[Severity, str, Callable[[], list[str]], str, str, str]] = [
        (
            *("warning", "shared-synonym", lambda: pairs(shared), "pair of labels has", "pairs of labels have"),
            "a name in common; choose other synonyms, or merge them.",
        ),
        (
            *("warning", "plural-label"),
            lambda: pairs((name, plural) for name in names for plural in _plurals(name) if plural in names),
            *("pair of labels differs", "pairs of labels differ"),
            "only in number, which models hardly notice; merge them, or name what they differ in.",
        ),
        (
            *("warning", "synonym-label"),
            lambda: related(entry for entry in meanings if entry.certainty != "possible"),
            *("pair of labels means", "pairs of labels mean"),
            "the same in WordNet; merge them, or, where they do not, name what they differ in, such as "
            '"crane (bird)".',
        ),
        (
            *("note", "similar-spelling", lambda: pairs(_one_letter_apart(list(names)))),
            *("pair of labels differs", "pairs of labels differ"),
            "by one letter; make sure that these are two classes, and none is a spelling mistake.",
        ),
        (
            *("note", "contained-label"),
            # "bottle" and "beer bottle" before "bee" and "bee eater", which only look related
            lambda: pairs(sorted(_contained(names, names), key=lambda pair: not pair[1].endswith(pair[0]))),
            *("label is", "labels are"),
            "part of another one, so that an image may fit both; name the general class more precisely, or merge "
            "them.",
        ),
        (
            *("note", "synonym-label"),
            lambda: related(entry for entry in meanings if entry.certainty == "possible"),
            *("pair of labels may mean", "pairs of labels may mean"),
            "the same: in WordNet, a rarer sense of one is what the other means; merge those that do.",
        ),
        (
            *("note", "kind-of-label"),
            lambda: related(entry for entry in kinships if entry.certainty != "possible"),
            *("label is a kind", "labels are kinds"),
            "of another one in WordNet, so that an image may fit both; name the general class more precisely, or "
            "merge them.",
        ),
        (
            *("note", "kind-of-label"),
            lambda: related(entry for entry in kinships if entry.certainty == "possible"),
            *("label may be a kind", "labels may be kinds"),
            "of another one: in WordNet, a rarer sense of one of the two makes it so; name more precisely those that "
            "an image may fit together, or merge them.",
        ),
    ]
    for severity, check, find, singular, plural, advice in checks:
        if found := find():
            yield make_finding(severity, check, f"{counted(len(found), singular, plural)} {advice}", found)


def _examine_overlap(labels: list[str], ood_labels: list[str]) -> Iterator[Finding]:
    """Which OOD classes are ID classes, as far as spelling and WordNet tell."""
    labels = [label for label in labels if label.strip()]
    id_names = {canonical_label(label): label for label in reversed(labels)}
    by_first = {name: label for label in reversed(labels) for name in _with_plurals(_first_names(label))}
    by_any = {name: label for label in reversed(labels) for name in _with_plurals(_all_names(label))}
    meanings = _Meanings(list(dict.fromkeys(labels)), ood_labels)
    ood_names = {canonical_label(label): label for label in ood_labels}
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
        inside = insides[canonical_label(ood_label)]
        # A beer bottle is a bottle, but a bee eater is no bee, and WordNet knows that a hot dog is no dog.
        heads = [pair for pair in inside if pair[1].endswith(pair[0]) and not is_no_kind(pair[1], pair[0])]
        other = [by_any[name] for name in _all_names(ood_label) if name in by_any]
        if equal:
            same.append(against(ood_label, equal[0]))
            told.add(ood_label)
        elif heads:
            related.append(against(ood_label, _id_name(heads[0], id_names)))
            told.add(ood_label)
        elif (other or inside) and ood_label not in meanings.explained:
            contained.append(against(ood_label, other[0] if other else _id_name(inside[0], id_names)))
    beyond = "What neither the spelling nor WordNet knows is beyond this check: read the lists."
    if same:
        message = (
            f"{counted(len(same), 'OOD class', 'OOD classes')} {are(same)} also in the list of ID labels; exclude "
            f"{them(same)} from the OOD set with `classes.exclude`. {beyond}"
        )
        yield make_finding("error", "id-ood-overlap", message, same)
    if related:
        message = (
            f"{counted(len(related), 'OOD class', 'OOD classes')} {'seems' if len(related) == 1 else 'seem'} to be a "
            f"kind of an ID class, or the other way round; exclude those that are with `classes.exclude`. {beyond}"
        )
        yield make_finding("warning", "id-ood-containment", message, related)
    yield from meanings.report(told)
    if contained:
        message = (
            f"{counted(len(contained), 'OOD class', 'OOD classes')} {have(contained)} a name or words in common with "
            "an ID label, which may mean nothing; exclude those that show ID classes with `classes.exclude`."
        )
        yield make_finding("note", "id-ood-shared-words", message, contained)


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
                    f"{counted(len(chosen), 'OOD class', 'OOD classes')} {'means' if len(chosen) == 1 else 'mean'} "
                    f"the same as an ID label in WordNet{only}; {exclude}"
                )
                yield make_finding(severity, "id-ood-synonym", message, self._items(chosen, self.same[certainty]))
        if chosen := new(self.kinds):
            message = (
                f"{counted(len(chosen), 'OOD class', 'OOD classes')} {are(chosen)} "
                f"{'a kind' if len(chosen) == 1 else 'kinds'} of an ID label in WordNet, as a husky is a dog; "
                f"{exclude}"
            )
            yield make_finding("warning", "id-ood-kind-of", message, self._items(chosen, self.kinds))
        if chosen := new(self.same["possible"]):
            message = (
                f"{counted(len(chosen), 'OOD class', 'OOD classes')} may mean the same as an ID label: in WordNet, a "
                f"rarer sense of one is what the other means; {exclude}"
            )
            yield make_finding("note", "id-ood-synonym", message, self._items(chosen, self.same["possible"]))
        if chosen := new(self.general):
            message = (
                f"{counted(len(chosen), 'OOD class', 'OOD classes')} {have(chosen)} ID labels as kinds in WordNet, as "
                "dogs include huskies; look whether ID classes are among the images, and remove these."
            )
            items = []
            for ood_label in chosen:
                first, *others = self.general[ood_label]
                items.append(against(ood_label, first) + (f" and {len(others)} more" if others else ""))
            yield make_finding("note", "id-ood-kind-of", message, items)
        if chosen := new(self.possible_kinds):
            message = (
                f"{counted(len(chosen), 'OOD class', 'OOD classes')} may be "
                f"{'a kind' if len(chosen) == 1 else 'kinds'} of an ID label, or the other way round: in WordNet, a "
                f"rarer sense of one of the two makes it so; {exclude}"
            )
            yield make_finding("note", "id-ood-kind-of", message, self._items(chosen, self.possible_kinds))

    @staticmethod
    def _items(ood_labels: Iterable[str], found: Mapping[str, Kinship]) -> list[str]:
        items = []
        for ood_label in ood_labels:
            entry = found[ood_label]
            label = entry.first if entry.second == ood_label else entry.second
            items += explained([against(ood_label, label)], entry.explanation)
        return items


def _name_of_id(label: str) -> str:
    """What a WordNet id stands for, as the example in a sentence; nothing for ids of other editions."""
    found = _WORDNET_ID.search(label)
    try:
        synset = WordNet.load().synset(found[0] if found else "")
    except KeyError:
        return ""
    return f", such as {synset.lemmas[0]!r} instead of {shorten(label)!r}"


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
            by_canonical.setdefault(canonical_label(label), label)
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
        left, right = canonical_label(names[row]), canonical_label(names[column])
        if left in _plurals(right) or right in _plurals(left):
            continue
        cosine = cosines[row, column]
        kind = "indistinct" if cosine > indistinct else "similar"
        alike[kind].append(f"{names[row]!r} and {names[column]!r} (cosine {cosine:.3f})")
    if indistinct_pairs := alike["indistinct"]:
        message = (
            f"{counted(len(indistinct_pairs), 'pair')} of labels {are(indistinct_pairs)} so close for the text "
            "encoder that the model cannot tell them apart; describe what they differ in, or merge them."
        )
        yield make_finding("warning", "indistinct-labels", message, indistinct_pairs)
    if similar_pairs := alike["similar"]:
        message = (
            f"{counted(len(similar_pairs), 'pair')} of labels {are(similar_pairs)} unusually close for the text "
            "encoder, compared with the others; if they mean the same, merge them."
        )
        yield make_finding("note", "similar-labels", message, similar_pairs)
    others = [label for label in ood_labels if canonical_label(label) not in by_canonical]
    if not others:
        return
    try:
        ood_embeddings = _embed(others, encoder, templates)
    # Embeddings that were computed elsewhere may lack these labels.
    except ValueError as error:
        message = f"OOD classes were compared with labels by their spelling only, not by their embeddings: {error}"
        yield make_finding("note", "no-ood-embeddings", message, ())
        return
    cosines = ood_embeddings @ embeddings.T
    nearest, places = cosines.max(axis=1), cosines.argmax(axis=1)
    ranking = [place for place in np.argsort(-nearest, kind="stable") if nearest[place] > min(indistinct, unusual)]
    items = [f"{against(others[place], names[places[place]])} (cosine {nearest[place]:.3f})" for place in ranking]
    known = sum(1 for place in ranking if nearest[place] > indistinct)
    if items[:known]:
        message = (
            f"{counted(known, 'OOD class', 'OOD classes')} {are(items[:known])} so close to an ID label, for the text "
            "encoder, that the model cannot tell them apart; exclude those that mean the same with `classes.exclude`."
        )
        yield make_finding("warning", "id-ood-indistinct", message, items[:known])
    if items[known:]:
        message = (
            f"{counted(len(ranking) - known, 'OOD class', 'OOD classes')} {are(items[known:])} as close to an ID "
            "label, for the text encoder, as few ID labels are to each other; exclude those that mean the same with "
            "`classes.exclude`."
        )
        yield make_finding("note", "id-ood-similarity", message, items[known:])


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


def canonical_label(label: str) -> str:
    """What is the same for labels that only differ in how they are written."""
    decomposed = unicodedata.normalize("NFKD", label).casefold()
    # Only the accents of Latin, Greek and Cyrillic; in other scripts, marks are letters.
    letters = "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
    return " ".join(re.sub(r"[_\-‐-―/'’.()\[\]]", " ", letters).split()) or decomposed.strip()


def _parts(label: str) -> list[str]:
    """The names in a list of synonyms."""
    return [part.strip() for part in re.split(r"[,;]", label) if part.strip()] or [label]


def _first_names(label: str) -> list[str]:
    return list(dict.fromkeys([canonical_label(label), canonical_label(_parts(label)[0])]))


def _all_names(label: str) -> list[str]:
    return list(dict.fromkeys([canonical_label(label), *map(canonical_label, _parts(label))]))


def _with_plurals(names: list[str]) -> list[str]:
    return [*names, *(plural for name in names for plural in _plurals(name))]


def _spaced(label: str) -> str:
    """A label from a program as a caption would have it."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", re.sub(r"[_/]+", " ", label)).strip()
    return shorten(spaced)


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
        words = canonical_label(re.sub(r"\([^)]*\)", " ", label)).split()
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


__all__ = ["canonical_label", "examine_labels"]
