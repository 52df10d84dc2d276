# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates that are no good negative labels, because what they mean is or may be one of the labels.

NegRefine (Ansari et al., 2025, arXiv 2507.09795) asks a large language model which candidates are proper nouns or
subcategories of labels. Here the relations of WordNet stand in for it. Of a label all senses count that are
things to be seen, since nothing tells whether "crane" is the bird or the machine, and a few candidates less do not
matter; of a candidate the main one, that is the first one that can be on an image (see
[`~clipn_hf.label_senses.label_senses`]), and of living things all species that are called so, because WordNet has
"red fox" three times.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tqdm import tqdm

from ..label_senses import label_senses
from ..negative_settings import FILTERS, Kind
from ..wordnet import Synset, WordNet, irregular_singulars, spellings

_SEPARATED = re.compile(r"[,;(]")
_BRACKETED = re.compile(r"\([^)]*\)")
# What can be on a photograph and is called by a name of its own, such as a Labrador or a Frisbee.
_THINGS = ("animal", "artifact", "food", "object", "plant")
_LIVING = {"animal", "plant"}
# What persons are called after, as they are after animals
_NAMESAKES = {"food", "plant"}
_TAXON = "n07992450"

Predicate = Callable[[str], bool]


def filter_candidates(
    words: Sequence[str],
    kinds: Sequence[Kind],
    labels: Sequence[str],
    filters: Sequence[str],
    *,
    progress: bool = False,
) -> tuple[list[int], dict[str, int]]:
    """Drop candidates, filter by filter.

    - `"id_names"`: what is a label but for case, accents, hyphens, spaces and plural. Of a label such as
      `"tench, Tinca tinca"` or `"crane (bird)"`, all names count.
    - `"synonyms"`: nouns that mean the same as a label, such as `"couch"` for `"sofa"`.
    - `"hyponyms"`: nouns that are a kind of a label, such as `"dachshund"` for `"dog"`, and, as there are big cats,
      `"lion"` for `"cat"`. In WordNet, young animals such as `"kitten"` are no kinds of the grown ones.
    - `"hypernyms"`: nouns of which a label is a kind, such as `"animal"` for `"dog"`.
    - `"proper_nouns"`: names of single persons, places and so on, Latin names of animals and plants, and other nouns
      that are written with capitals and are no thing, such as `"Monday"`; `"Frisbee"` and `"X-ray"` stay. Of words
      that WordNet lacks nothing is known.

    All but `"id_names"` see only what WordNet knows; `unknown_labels` lists the labels that it does not know.

    Args:
        words (`Sequence[str]`): Candidates.
        kinds (`Sequence[str]`): The kind of each. Relations of nouns are not asked of adjectives and compounds.
        labels (`Sequence[str]`): What the candidates are to be no names of.
        filters (`Sequence[str]`): Names in `FILTERS`, in the order in which they are applied.
        progress (`bool`, *optional*, defaults to `False`): Whether to show bars, if there is a terminal.

    Returns:
        `tuple[list[int], dict[str, int]]`: The positions of the candidates that are left, and how many each filter
        dropped of those that the filters before had left.

    Raises:
        TypeError: `filters` is no list of texts.
        ValueError: There is no such filter.
    """
    check_filters(filters)
    left = list(range(len(words)))
    dropped = {}
    for name in dict.fromkeys(filters):
        asked = [place for place in left if name == "id_names" or kinds[place] in ("noun", "text")]
        is_dropped = _FILTERS[name](labels)
        bar = tqdm(asked, desc=f"Filter {name}", unit=" candidates", disable=None if progress else True)
        gone = {place for place in bar if is_dropped(words[place])}
        left = [place for place in left if place not in gone]
        dropped[name] = len(gone)
    return left, dropped


def check_filters(filters: Sequence[str]) -> tuple[str, ...]:
    """Refuse names that are no filters.

    Raises:
        TypeError: `filters` is no list of texts.
        ValueError: One is not in `FILTERS`.
    """
    given: Any = (filters,) if isinstance(filters, str) else filters
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
        raise TypeError(
            f"`filters` must be a list of names among {', '.join(FILTERS)}, got {type(filters).__name__}: "
            f"{filters!r}; give [] for none."
        )
    names = tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`filters` must hold names among {', '.join(FILTERS)}, got {type(name).__name__}.")
        if name not in FILTERS:
            raise ValueError(f"`filters` must be among {', '.join(FILTERS)}, got {name!r}.")
    return names


def unknown_labels(labels: Sequence[str], filters: Sequence[str]) -> list[str]:
    """List the labels of which WordNet has no sense, if one of the filters needs it."""
    if not {"synonyms", "hyponyms", "hypernyms"}.intersection(filters):
        return []
    return [label for label in labels if not label_senses(label)]


def same_names(words: Iterable[str], labels: Sequence[str]) -> Iterator[int]:
    """Find words that are labels but for case, accents, hyphens, spaces and plural; their positions."""
    is_label = _is_label(labels)
    return (place for place, word in enumerate(words) if is_label(word))


def are_labels(words: Iterable[str], labels: Sequence[str]) -> bool:
    """Tell whether all words are labels but for case, accents, hyphens, spaces and plural."""
    return all(map(_is_label(labels), words))


def _is_label(labels: Sequence[str]) -> Predicate:
    wordnet = WordNet.load()
    names = {name for label in labels for name in _names(label)}
    singulars = {spelling for name in names for spelling in spellings(name, with_singulars=name not in wordnet)}
    singulars.update(spelling for name in names for spelling in irregular_singulars(name))
    plurals = {spelling for name in names for spelling in spellings(name)}

    def is_label(word: str) -> bool:
        # Hardly any word is, so that one look suffices for most.
        if singulars.isdisjoint(forms := [*spellings(word, with_singulars=True)]) and plurals.isdisjoint(forms):
            return False
        if not singulars.isdisjoint(spellings(word)) or not plurals.isdisjoint(irregular_singulars(word)):
            return True
        # What WordNet has is no plural, such as "glasses".
        return not plurals.isdisjoint(spellings(word, with_singulars=True)) and word not in wordnet

    return is_label


def _is_synonym(labels: Sequence[str]) -> Predicate:
    return _means_one_of({meaning.id for label in labels for meaning in _label_meanings(label)})


def _is_hyponym(labels: Sequence[str]) -> Predicate:
    return _means_one_of(_below({meaning.id for label in labels for meaning in _label_meanings(label)}))


def _is_hypernym(labels: Sequence[str]) -> Predicate:
    wordnet = WordNet.load()
    meanings = (meaning for label in labels for meaning in _label_meanings(label))
    return _means_one_of({above for meaning in meanings for above in wordnet.ancestors(meaning)})


def _is_name(labels: Sequence[str]) -> Predicate:
    return _is_proper_noun


_FILTERS: Mapping[str, Callable[[Sequence[str]], Predicate]] = {
    "id_names": _is_label,
    "synonyms": _is_synonym,
    "hyponyms": _is_hyponym,
    "hypernyms": _is_hypernym,
    "proper_nouns": _is_name,
}


def _label_meanings(label: str) -> list[Synset]:
    """All senses of a label that are things, and its main one."""
    senses = _senses(label)
    _, *synonyms = _names(label)
    if synonyms:
        wordnet = WordNet.load()
        of_synonyms = {sense.id for synonym in synonyms for sense in wordnet.synsets(synonym)}
        # Several names of a label tell which sense is meant.
        senses = [sense for sense in senses if sense.id in of_synonyms] or senses[:1]
    return senses[:1] + [sense for sense in senses[1:] if sense.category in _THINGS]


def _meanings(word: str) -> list[str]:
    """The main sense of a word, and of living things all species that are called so."""
    senses = _senses(word)
    kinds = _kinds()
    # What has kinds of kinds, such as "cat" for lions and tigers, is no species.
    species = [
        sense.id
        for sense in senses[1:]
        if {sense.category, senses[0].category} <= _LIVING
        and not any(kind in kinds for kind in kinds.get(sense.id, ()))
    ]
    return [sense.id for sense in senses[:1]] + species


def _senses(word: str) -> list[Synset]:
    """What a word means, the main sense first."""
    senses = label_senses(word)
    # A hot dog is a show-off first, who is called after what can be eaten.
    if senses and senses[0].category == "person" and any(sense.category in _NAMESAKES for sense in senses):
        return [sense for sense in senses if sense.category != "person"]
    return [*senses]


def _means_one_of(synset_ids: set[str]) -> Predicate:
    """Tell of words whether they mean one of some synsets."""
    wordnet = WordNet.load()
    # Asking all words for their senses would take ten times as long.
    lemmas = {
        spelling
        for synset_id in synset_ids
        for lemma in wordnet.synset(synset_id).lemmas
        for spelling in spellings(lemma)
    }

    def means_one(word: str) -> bool:
        may_be = any(not lemmas.isdisjoint(spellings(name, with_singulars=True)) for name in _names(word))
        return may_be and not synset_ids.isdisjoint(_meanings(word))

    return means_one


def _below(synset_ids: set[str]) -> set[str]:
    """All kinds and instances of some synsets."""
    kinds_of = _kinds()
    found: set[str] = set()
    level = synset_ids
    while level:
        level = {kind for synset_id in level for kind in kinds_of.get(synset_id, ())} - found
        found |= level
    return found


@cache
def _kinds() -> dict[str, list[str]]:
    """What is one step below each synset."""
    kinds: dict[str, list[str]] = {}
    for synset in WordNet.load().nouns():
        for hypernym in synset.hypernyms:
            kinds.setdefault(hypernym, []).append(synset.id)
    return kinds


@cache
def _common_nouns() -> tuple[set[str], set[str], set[str]]:
    """All nouns, as they are written and in lower case; those of them that are no names; those that are things."""
    taxa = _below({_TAXON})
    nouns: set[str] = set()
    common: set[str] = set()
    things: set[str] = set()
    for synset in WordNet.load().nouns():
        for lemma in synset.lemmas:
            written = {lemma, lemma.lower()}
            nouns |= written
            # A "buckbean family" is written like a common noun.
            if not synset.is_instance and (synset.id not in taxa or lemma.islower()):
                common |= written
                if synset.category in _THINGS:
                    things |= written
    return nouns, common, things


def _names(label: str) -> list[str]:
    """What a label is called, without what is in brackets."""
    if _SEPARATED.search(label) is None:
        return [label.strip() or label]
    parts = re.split(r"[,;]", _BRACKETED.sub(" ", label))
    return [part.strip() for part in parts if part.strip()] or [label]


def _is_proper_noun(word: str) -> bool:
    nouns, common, things = _common_nouns()
    # Turkey is a country, a turkey a bird.
    noun = word if word in nouns else word.lower()
    if noun not in nouns or noun in things:
        return False
    parts = [part for part in re.split(r"[ \-'’.]+", word) if part]
    return noun not in common or all(part[0].isupper() and part[1:].islower() for part in parts)


__all__ = ["are_labels", "check_filters", "filter_candidates", "same_names", "unknown_labels"]
