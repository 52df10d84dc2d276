# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from clipn_hf.label_senses import Kinship, is_no_kind, kinds, label_senses, synonyms


@pytest.mark.parametrize(
    ("label", "category", "lemma"),
    [
        ("dog", "animal", "dog"),
        # Not the writer, nor the machine where a bird is meant
        ("crane", "artifact", "crane"),
        ("crane (bird)", "animal", "crane"),
        ("crane, lifting device", "artifact", "crane"),
        # Not the fur, the fierce man, the broadcast or the part of the body
        ("otter", "animal", "otter"),
        ("mink", "animal", "mink"),
        ("tiger", "animal", "tiger"),
        ("cock", "animal", "cock"),
        ("hand", "body", "hand"),
        ("man", "person", "man"),
        ("television", "artifact", "television"),
        ("cardigan, Cardigan Welsh corgi", "animal", "Cardigan"),
        ("doctor", "person", "doctor"),
        ("person", "top", "person"),
        ("Eiffel Tower", "artifact", "Eiffel Tower"),
        ("fish_(food)", "food", "fish"),
        ("raven (bird)", "animal", "raven"),
    ],
)
def test_main_senses(label: str, category: str, lemma: str) -> None:
    main = label_senses(label)[0]
    assert main.category == category
    assert lemma in main.lemmas


@pytest.mark.parametrize("label", ["", " ", "(bird)", "grinning squinting face", "crane (spoon)", ",", "貓"])
def test_labels_that_wordnet_does_not_have(label: str) -> None:
    assert label_senses(label) == ()
    assert list(synonyms([label, "dog"])) == []
    assert list(kinds([label, "dog"])) == []
    assert not is_no_kind(label, "dog") and not is_no_kind("dog", label)


def test_synonyms_are_as_certain_as_their_senses() -> None:
    found = list(synonyms(["airplane", "couch", "dog", "bicycle", "sofa", "aeroplane", "bike"]))
    assert [(entry.first, entry.second, entry.certainty) for entry in found] == [
        ("couch", "sofa", "probable"),
        ("airplane", "aeroplane", "certain"),
        ("bicycle", "bike", "possible"),
    ]
    assert found[0] == Kinship("couch", "sofa", "probable", "sofa, couch, lounge")


def test_synonyms_of_other_labels() -> None:
    found = list(synonyms(["couch", "sofa"], ["settee", "sofa", "dog"]))
    assert {(entry.first, entry.second) for entry in found} == {("couch", "sofa"), ("sofa", "sofa")}


def test_people_like_animals_are_no_synonyms() -> None:
    # In other senses, both are bad men.
    assert list(synonyms(["rat", "skunk"])) == []


def test_kinds_lead_to_the_nearest_label() -> None:
    labels = ["animal", "dog", "husky", "table"]
    assert [(entry.first, entry.second, entry.explanation) for entry in kinds(labels)] == [
        ("dog", "animal", "dog → domestic animal → animal"),
        ("husky", "dog", "Eskimo dog → working dog → dog"),
    ]
    assert [(entry.first, entry.second) for entry in kinds(["husky"], ["animal", "cat"])] == [("husky", "animal")]
    assert list(kinds(["dog"], ["husky"])) == []


def test_kinds_in_rarer_senses_are_possible() -> None:
    labels = ["lorry", "kitty", "leopard", "beagle"]
    found = {(entry.first, entry.second): entry for entry in kinds(labels, ["truck", "cat", "dog"])}
    assert {pair: entry.certainty for pair, entry in found.items()} == {
        ("lorry", "truck"): "possible",
        ("kitty", "cat"): "possible",
        # The cat's rarer sense
        ("leopard", "cat"): "possible",
        ("beagle", "dog"): "probable",
    }
    assert found["leopard", "cat"].explanation == "leopard → big cat"


def test_kinds_in_main_senses_come_before_nearer_ones_in_rarer_senses() -> None:
    assert [(entry.second, entry.certainty) for entry in kinds(["leopard"], ["cat", "animal"])] == [
        ("animal", "certain")
    ]


def test_people_like_animals_are_no_kinds() -> None:
    # In another sense, a skunk is a person.
    assert list(kinds(["skunk"], ["person"])) == []


@pytest.mark.parametrize(
    ("label", "other", "expected"),
    [
        ("hot dog", "dog", True),
        ("prairie dog", "dog", True),
        ("husky", "dog", False),
        ("dog", "dog", False),
        ("fire truck", "truck", False),
        ("unheard-of dog", "dog", False),
    ],
)
def test_what_is_no_kind(label: str, other: str, expected: bool) -> None:
    assert is_no_kind(label, other) is expected
