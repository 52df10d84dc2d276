# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What class names mean, by WordNet: which of them are synonyms, and which a kind of another.

WordNet lists the senses of a word by their frequency in texts, where a crane is a writer first, and an otter a fur.
The main sense of a label is therefore the first one that can be on an image. Labels that share their main senses are
synonyms almost always, those that share other senses sometimes.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from .wordnet import Synset, WordNet

Certainty = Literal["certain", "probable", "possible"]

_THINGS = ("animal", "artifact", "food", "object", "phenomenon", "plant")
_CLEAR = (*_THINGS, "shape", "top")
_VISIBLE = (*_CLEAR, "body", "person")
_ANIMAL, _HOMINID = "n00015388", "n02471762"
_BRACKETED = re.compile(r"\(([^)]*)\)")
_MAX_LEMMAS = 3


@dataclass(frozen=True)
class Kinship:
    """Two labels that WordNet relates.

    Args:
        first (`str`): A label.
        second (`str`): Another one; of a kind and what it is a kind of, the latter.
        certainty (`str`):
            `"certain"` if it is the only sense of both labels that relates them, of those that can be on an image,
            `"probable"` if it is the main sense of both, `"possible"` if it is another one.
        explanation (`str`): For two synonyms the words that mean the same, for a kind the steps that lead up to
            the other label.
    """

    first: str
    second: str
    certainty: Certainty
    explanation: str


@lru_cache(maxsize=2**15)
def label_senses(label: str) -> tuple[Synset, ...]:
    """Find what a label means.

    Args:
        label (`str`):
            A word or several; synonyms may follow behind commas, and what tells its senses apart in brackets, such as
            `"crane (bird)"`.

    Returns:
        `tuple[Synset, ...]`: The main sense first; empty if WordNet does not have the label.
    """
    wordnet = WordNet.load()
    hints = [part for hint in _BRACKETED.findall(label) for part in _split(hint)]
    name, *synonyms = _split(_BRACKETED.sub(" ", label)) or [label]
    senses = wordnet.synsets(name)
    # Names of persons and places are what a label means only if it means nothing else.
    senses = [sense for sense in senses if not sense.is_instance] or senses
    if hints:
        wanted = {sense.id for hint in hints for sense in wordnet.synsets(hint)}
        senses = [sense for sense in senses if not wanted.isdisjoint([sense.id, *wordnet.ancestors(sense)])]
    shared = [{sense.id for sense in wordnet.synsets(synonym)} for synonym in synonyms]
    main = _main_sense(senses)
    # All names of a list of synonyms mean the same, so that they tell which sense is meant.
    return tuple(
        sorted(senses, key=lambda sense: (-sum(sense.id in ids for ids in shared), sense is not main)),
    )


def synonyms(labels: Sequence[str], others: Sequence[str] | None = None) -> Iterator[Kinship]:
    """Find labels that mean the same.

    Args:
        labels (`Sequence[str]`): Labels, each different.
        others (`Sequence[str]`, *optional*): What to compare them with; by default each other.

    Yields:
        [`Kinship`]: `first` is one of `labels`. Each pair of labels once, if they share the main sense of one of them.
    """
    by_sense: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        for sense in label_senses(label):
            by_sense[sense.id].append(label)
    found: dict[tuple[str, str], Kinship] = {}
    places = {label: place for place, label in enumerate(labels)}
    for second in labels if others is None else others:
        for sense in label_senses(second):
            for first in by_sense.get(sense.id, ()):
                if others is not None or places[first] < places[second]:
                    certainty = _certainty(sense, first, second)
                    if certainty is not None and (certainty != "possible" or (first, second) not in found):
                        found[first, second] = Kinship(first, second, certainty, _words(sense))
    yield from found.values()


def kinds(labels: Sequence[str], others: Sequence[str] | None = None) -> Iterator[Kinship]:
    """Find labels of which others are kinds.

    Args:
        labels (`Sequence[str]`): Labels, each different, that may be a kind of something.
        others (`Sequence[str]`, *optional*): What they may be a kind of; by default each other.

    Yields:
        [`Kinship`]: `first`, one of `labels`, is a kind of `second`, the nearest one that is. Each of `labels` at most
        once; in a rarer sense of one of the two only if it is none in the main senses of both.
    """
    wordnet = WordNet.load()
    by_main: dict[str, str] = {}
    by_rarer: dict[str, str] = {}
    for label in labels if others is None else others:
        for place, sense in enumerate(label_senses(label)):
            (by_rarer if place else by_main).setdefault(sense.id, label)

    def nearest(sense: Synset, labels_by_sense: dict[str, str], first: str) -> str | None:
        ancestors = wordnet.ancestors(sense)
        return next((entry for entry in ancestors if labels_by_sense.get(entry, first) != first), None)

    for first in labels:
        senses = label_senses(first)
        if not senses:
            continue
        main, *rarer = senses
        if (ancestor := nearest(main, by_main, first)) is not None:
            second = by_main[ancestor]
            certain = _has_one_sense(first) and _has_one_sense(second)
            yield Kinship(first, second, "certain" if certain else "probable", _way_up(main, ancestor))
            continue
        # As of synonyms, one of both senses is the main one.
        for sense, labels_by_sense in [*((sense, by_main) for sense in rarer), (main, by_rarer)]:
            if sense.category not in _THINGS:
                continue
            ancestor = nearest(sense, labels_by_sense, first)
            if ancestor is not None and wordnet.synset(ancestor).category in _THINGS:
                yield Kinship(first, labels_by_sense[ancestor], "possible", _way_up(sense, ancestor))
                break


def is_no_kind(label: str, other: str) -> bool:
    """Tell whether WordNet has both labels, and no sense of the first is a kind of the main sense of the second.

    Args:
        label (`str`): A label that may seem to be a kind, such as `"hot dog"`.
        other (`str`): What it may seem to be a kind of, such as `"dog"`.

    Returns:
        `bool`: False also where WordNet lacks one of them.
    """
    wordnet = WordNet.load()
    senses, others = label_senses(label), label_senses(other)
    return bool(senses and others) and not any(
        others[0].id in (sense.id, *wordnet.ancestors(sense)) for sense in senses
    )


def _certainty(sense: Synset, first: str, second: str) -> Certainty | None:
    """How certain it is that two labels are synonyms because of a sense that they share; None where it is unlikely."""
    mains = [label_senses(label)[0].id == sense.id for label in (first, second)]
    if all(mains):
        return "certain" if _has_one_sense(first) and _has_one_sense(second) else "probable"
    # A rat and a skunk are the same only if they are people.
    return "possible" if any(mains) and sense.category in _THINGS else None


def _has_one_sense(label: str) -> bool:
    """Whether one sense of a label, its main one, can be on an image."""
    senses = label_senses(label)
    return senses[0].category in _VISIBLE and not any(sense.category in _VISIBLE for sense in senses[1:])


def _main_sense(senses: Sequence[Synset]) -> Synset | None:
    """The sense that can be seen and comes first."""
    first = next(iter(senses), None)
    if first is None or first.category in _CLEAR:
        return first
    if first.category in ("body", "person", "substance"):
        # Of an animal, its fur, a man like it and what is called after it, the animal. A paw is none.
        wordnet = WordNet.load()
        for sense in senses:
            ancestors = wordnet.ancestors(sense) if sense.category == "animal" else []
            if _ANIMAL in ancestors and _HOMINID not in ancestors:
                return sense
    for categories in [_VISIBLE] if first.category in _VISIBLE else [_THINGS, _VISIBLE]:
        for sense in senses:
            if sense.category in categories:
                return sense
    return first


def _way_up(sense: Synset, ancestor: str) -> str:
    """The steps from a synset to one of its ancestors, in words."""
    wordnet = WordNet.load()
    ways = [[sense]]
    for way in ways:
        if way[-1].id == ancestor:
            return " → ".join(step.lemmas[0] for step in way)
        ways += [[*way, hypernym] for hypernym in wordnet.hypernyms(way[-1])]
    raise ValueError(f"{ancestor!r} is no ancestor of {sense.id!r}.")


def _words(sense: Synset) -> str:
    rest = "…" if len(sense.lemmas) > _MAX_LEMMAS else ""
    return ", ".join([*sense.lemmas[:_MAX_LEMMAS], *filter(None, [rest])])


def _split(names: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,;]", names) if part.strip()]


__all__ = ["Certainty", "Kinship", "is_no_kind", "kinds", "label_senses", "synonyms"]
