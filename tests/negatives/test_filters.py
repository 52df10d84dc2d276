# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest

from clipn_hf.negatives import FILTERS, filter_candidates
from clipn_hf.negatives.filters import are_labels, unknown_labels


def dropped(name: str, words: list[str], labels: list[str]) -> set[str]:
    left, counts = filter_candidates(words, ["text"] * len(words), labels, [name])
    assert counts == {name: len(words) - len(left)}
    return set(words) - {words[place] for place in left}


@pytest.mark.parametrize(
    ("label", "same", "others"),
    [
        ("dog", ["Dog", "dogs", "DOGS"], ["hot dog", "doge", "hound"]),
        ("ice cream", ["ice-cream", "Ice_Cream", "icecream", "ice creams"], ["ice", "cream"]),
        ("butterflies", ["butterfly", "Butterfly"], ["butter"]),
        ("café", ["cafe", "Cafés"], ["cafeteria"]),
        ("tench, Tinca tinca", ["tench", "Tinca tinca"], ["carp"]),
        ("crane (bird)", ["crane", "cranes"], ["bird"]),
        # WordNet has these as they are, so they are no plurals.
        ("glass", [], ["glasses"]),
        ("bus", ["buses", "Bus"], ["bu"]),
        ("mouse", ["mice"], ["moose"]),
        ("house mice", ["house mouse"], ["mice"]),
        ("goose", ["geese"], []),
        ("children", ["child"], []),
        ("leaf", ["leaves"], ["leave"]),
        ("knife", ["knives"], []),
        # WordNet has these plurals, too.
        ("man", ["men", "Men"], ["woman", "women"]),
        ("foot", ["feet"], []),
        ("tooth", ["teeth"], []),
        ("teeth", ["tooth"], []),
        ("ox", ["oxen"], []),
        ("wolf", ["wolves"], []),
        ("Qualle", ["qualle"], ["Quallen"]),
    ],
)
def test_id_names(label: str, same: list[str], others: list[str]) -> None:
    assert dropped("id_names", [*same, *others], [label]) == set(same)


@pytest.mark.parametrize(
    ("label", "same", "others"),
    [
        ("sofa", ["couch", "sofa", "lounge"], ["seat", "bed"]),
        # A machine is a car in a rarer sense.
        ("car", ["automobile", "motorcar", "auto"], ["machine", "truck"]),
        # A show-off first, and something to eat
        ("hot dog", ["hotdog", "frankfurter", "frank", "wiener", "weenie"], ["dog", "hamburger"]),
        # Not what is called so on a board alone
        ("man", ["adult male"], ["woman"]),
        # Its first sense is a plant.
        ("red fox", ["Vulpes vulpes", "Vulpes fulva"], ["fox"]),
        ("Hund", [], ["dog"]),
    ],
)
def test_synonyms(label: str, same: list[str], others: list[str]) -> None:
    assert dropped("synonyms", [*same, *others], [label]) == set(same)


@pytest.mark.parametrize(
    ("label", "kinds", "others"),
    [
        # A toy is a small dog, too, and a barker a man.
        ("dog", ["dachshund", "poodles", "Siberian husky", "boxer"], ["dog", "wolf", "toy", "hot dog", "dog collar"]),
        ("bird", ["turkey", "robin", "ostrich", "owl"], ["bat", "airplane", "feather"]),
        # Lions are cats in a rarer sense.
        ("cat", ["tabby", "Persian cat", "lion", "tiger"], ["kitten", "cat's-paw", "dog"]),
        # The bird and the machine
        ("crane", ["davit", "whooping crane"], ["crane", "heron"]),
        ("crane (bird)", ["whooping crane"], ["davit"]),
        # Several names tell which one is meant.
        ("cat, true cat", ["tabby"], ["lion"]),
        ("sports car", [], ["car", "coupe"]),
        ("Hund", [], ["dachshund"]),
    ],
)
def test_hyponyms(label: str, kinds: list[str], others: list[str]) -> None:
    assert dropped("hyponyms", [*kinds, *others], [label]) == set(kinds)


def test_hypernyms() -> None:
    words = ["canine", "animal", "mammal", "entity", "dog", "poodle", "cat", "friend"]
    assert dropped("hypernyms", words, ["dog"]) == {"canine", "animal", "mammal", "entity"}
    assert dropped("hypernyms", ["food", "organism", "person"], ["hot dog"]) == {"food"}
    assert dropped("hypernyms", words, ["poodle", "Hund"]) == {"canine", "animal", "mammal", "entity", "dog"}


def test_proper_nouns() -> None:
    names = ["Turkey", "Paris", "paris", "Eiffel Tower", "Canis", "genus Canis", "Felidae", "Monday", "Buddhism"]
    others = ["turkey", "Frisbee", "X-ray", "T-shirt", "Christmas tree", "DVD", "Labrador retriever", "Chihuahua"]
    unknown = ["Golden Gate Bridge Park", "selfie", "Qualle"]
    assert dropped("proper_nouns", [*names, *others, *unknown], ["dog"]) == set(names)


def test_filters_see_what_is_left_by_those_before() -> None:
    words = ["dog", "Dog", "poodle", "Paris", "jellyfish", "canine"]
    kinds = ["noun"] * len(words)
    left, counts = filter_candidates(words, kinds, ["dog"], ["id_names", "synonyms", "hyponyms", "proper_nouns"])
    assert [words[place] for place in left] == ["jellyfish", "canine"]
    assert counts == {"id_names": 2, "synonyms": 0, "hyponyms": 1, "proper_nouns": 1}
    assert list(counts) == ["id_names", "synonyms", "hyponyms", "proper_nouns"]
    assert filter_candidates(words, kinds, ["dog"], []) == (list(range(6)), {})
    assert filter_candidates(words, kinds, ["dog"], ["synonyms", "synonyms"])[1] == {"synonyms": 2}


def test_relations_of_nouns_are_not_asked_of_adjectives() -> None:
    words, kinds = ["orange", "orange", "orange"], ["noun", "adjective", "compound"]
    assert filter_candidates(words, kinds, ["orange"], ["synonyms"]) == ([1, 2], {"synonyms": 1})
    assert filter_candidates(words, kinds, ["orange"], ["id_names"]) == ([], {"id_names": 3})


def test_words_that_are_all_labels() -> None:
    looked_at = []

    def words() -> Iterator[str]:
        for word in ("Dogs", "cat", "lamp", "tree"):
            looked_at.append(word)
            yield word

    assert not are_labels(words(), ["dog", "cat"])
    assert looked_at == ["Dogs", "cat", "lamp"]
    assert are_labels(["DOGS", "mice"], ["dog", "mouse"])


def test_unknown_labels_and_filters() -> None:
    assert unknown_labels(["dog", "Hund", "ネコ"], ["hyponyms"]) == ["Hund", "ネコ"]
    assert unknown_labels(["dog", "Hund"], ["id_names", "proper_nouns"]) == []
    with pytest.raises(ValueError, match=f"`filters` must be among {', '.join(FILTERS)}, got 'hyponym'"):
        filter_candidates(["dog"], ["noun"], ["cat"], ["hyponym"])
