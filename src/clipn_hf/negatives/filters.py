# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates that are no good negative labels, because what they mean is or may be one of the labels.

NegRefine (Ansari et al., 2025, arXiv 2507.09795) asks a large language model which candidates are proper nouns or
subcategories of labels. Here the relations of WordNet stand in for it: of each label and each candidate the main
sense counts, that is the first one that can be on an image (see [`~clipn_hf.label_senses.label_senses`]),
and of living things all species that are called so, because WordNet has "red fox" three times.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from ..label_senses import label_senses
from ..wordnet import WordNet, spellings
from .corpus import Kind

_BRACKETED = re.compile(r"\([^)]*\)")
# What can be on a photograph and is called by a name of its own, such as a Labrador or a Frisbee.
_THINGS = ("animal", "artifact", "food", "object", "plant")
_LIVING = {"animal", "plant"}
_TAXON = "n07992450"


def filter_candidates(
    words: Sequence[str], kinds: Sequence[Kind], labels: Sequence[str], filters: Sequence[str]
) -> tuple[list[int], dict[str, int]]:
    """Drop candidates, filter by filter.

    - `"id_names"`: what is a label but for case, accents, hyphens, spaces and plural. Of a label such as
      `"tench, Tinca tinca"` or `"crane (bird)"`, all names count.
    - `"synonyms"`: nouns that mean the same as a label, such as `"couch"` for `"sofa"`.
    - `"hyponyms"`: nouns that are a kind of a label, such as `"dachshund"` for `"dog"`. In WordNet, young animals
      such as `"kitten"` are no kinds of the grown ones.
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

    Returns:
        `tuple[list[int], dict[str, int]]`: The positions of the candidates that are left, and how many each filter
        dropped of those that the filters before had left.

    Raises:
        ValueError: There is no such filter.
    """
    check_filters(filters)
    left = list(range(len(words)))
    dropped = {}
    for name in dict.fromkeys(filters):
        asked = [place for place in left if name == "id_names" or kinds[place] in ("noun", "text")]
        hits = FILTERS[name]([words[place] for place in asked], labels)
        gone = {asked[hit] for hit in hits}
        left = [place for place in left if place not in gone]
        dropped[name] = len(gone)
    return left, dropped


def check_filters(filters: Sequence[str]) -> tuple[str, ...]:
    """Refuse names that are no filters.

    Raises:
        ValueError: One is not in `FILTERS`.
    """
    names = (filters,) if isinstance(filters, str) else tuple(filters)
    for name in names:
        if name not in FILTERS:
            raise ValueError(f"`filters` must be among {', '.join(FILTERS)}, got {name!r}.")
    return names


def unknown_labels(labels: Sequence[str], filters: Sequence[str]) -> list[str]:
    """List the labels of which WordNet has no sense, if one of the filters needs it."""
    if not {"synonyms", "hyponyms", "hypernyms"}.intersection(filters):
        return []
    return [label for label in labels if not label_senses(label)]


def same_names(words: Sequence[str], labels: Sequence[str]) -> Iterator[int]:
    """Find words that are labels but for case, accents, hyphens, spaces and plural; their positions."""
    wordnet = WordNet.load()
    names = {name for label in labels for name in _names(label)}
    singulars = {spelling for name in names for spelling in spellings(name, with_singulars=name not in wordnet)}
    plurals = {spelling for name in names for spelling in spellings(name)}
    for place, word in enumerate(words):
        # What WordNet has is no plural, such as "glasses".
        if not singulars.isdisjoint(spellings(word)) or (
            not plurals.isdisjoint(spellings(word, with_singulars=True)) and word not in wordnet
        ):
            yield place


def _synonyms(words: Sequence[str], labels: Sequence[str]) -> Iterator[int]:
    return _related(words, {meaning for label in labels for meaning in _meanings(label)})


def _hyponyms(words: Sequence[str], labels: Sequence[str]) -> Iterator[int]:
    return _related(words, _below({meaning for label in labels for meaning in _meanings(label)}))


def _hypernyms(words: Sequence[str], labels: Sequence[str]) -> Iterator[int]:
    wordnet = WordNet.load()
    meanings = {meaning for label in labels for meaning in _meanings(label)}
    return _related(words, {above for meaning in meanings for above in wordnet.ancestors(wordnet.synset(meaning))})


def _proper_nouns(words: Sequence[str], labels: Sequence[str]) -> Iterator[int]:
    return (place for place, word in enumerate(words) if _is_proper_noun(word))


FILTERS: Mapping[str, Callable[[Sequence[str], Sequence[str]], Iterator[int]]] = {
    "id_names": same_names,
    "synonyms": _synonyms,
    "hyponyms": _hyponyms,
    "hypernyms": _hypernyms,
    "proper_nouns": _proper_nouns,
}
"""The filters by name: words and labels in, positions of the words to drop out."""


def _meanings(word: str) -> list[str]:
    """The main sense of a word, and of living things all species that are called so."""
    senses = label_senses(word)
    kinds = _kinds()
    # What has kinds of kinds, such as "cat" for lions and tigers, is no species.
    species = [
        sense.id
        for sense in senses[1:]
        if {sense.category, senses[0].category} <= _LIVING
        and not any(kind in kinds for kind in kinds.get(sense.id, ()))
    ]
    return [sense.id for sense in senses[:1]] + species


def _related(words: Sequence[str], synset_ids: set[str]) -> Iterator[int]:
    """The positions of words that mean one of some synsets."""
    wordnet = WordNet.load()
    # Asking all words for their senses would take ten times as long.
    lemmas = {
        spelling
        for synset_id in synset_ids
        for lemma in wordnet.synset(synset_id).lemmas
        for spelling in spellings(lemma)
    }
    for place, word in enumerate(words):
        may_be = any(not lemmas.isdisjoint(spellings(name, with_singulars=True)) for name in _names(word))
        if may_be and not synset_ids.isdisjoint(_meanings(word)):
            yield place


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


__all__ = ["FILTERS", "check_filters", "filter_candidates", "same_names", "unknown_labels"]
