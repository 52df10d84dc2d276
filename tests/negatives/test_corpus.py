# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from clipn_hf.negatives import CORPORA, EXCLUDED_CATEGORIES, SUPERCLASSES, Corpus, load_corpus
from clipn_hf.wordnet import WordNet


def test_wordnet_has_its_nouns_and_adjectives() -> None:
    nouns, adjectives, both = (load_corpus(name) for name in ("wordnet-nouns", "wordnet-adjectives", "wordnet"))
    assert set(nouns.kinds) == {"noun"} and set(adjectives.kinds) == {"adjective"}
    assert {"ice cream", "jellyfish"} <= set(nouns.words) and "yellow" in adjectives.words
    assert not any("_" in word for word in both.words)
    # Words of persons alone are left out, as in the code published with NegLabel; pertaining ones, too.
    assert "accountant" not in nouns.words and "canine tooth" in nouns.words
    assert "abdominal" not in adjectives.words
    assert Counter(both.kinds) == {
        "noun": len(nouns),
        "adjective": len(set(adjectives.words) - set(nouns.words)),
    }
    assert len(set(both.words)) == len(both) > 100_000
    lemmas = [
        lemma
        for synset in [*WordNet.load().nouns(), *WordNet.load().adjectives()]
        if synset.category not in EXCLUDED_CATEGORIES
        for lemma in synset.lemmas
    ]
    assert both.words == tuple(dict.fromkeys(lemmas))
    assert both.duplicates == len(lemmas) - len(both)
    assert load_corpus() == both


def test_other_categories_may_be_left_out() -> None:
    without = load_corpus("wordnet-nouns", exclude=["animal"])
    assert "accountant" in without.words and "jellyfish" not in without.words
    assert "accountant" in load_corpus("wordnet-nouns", exclude=()).words
    for wrong in (["animals"], "animal"):
        with pytest.raises(ValueError, match="`exclude` must be a list of lexicographer files.*animal, "):
            load_corpus("wordnet", exclude=wrong)


def test_csp_puts_one_superclass_behind_each_adjective() -> None:
    corpus = load_corpus("csp")
    nouns = len(load_corpus("wordnet-nouns"))
    assert set(corpus.kinds[:nouns]) == {"noun"} and set(corpus.kinds[nouns:]) == {"compound"}
    adjectives = Counter(word.rpartition(" ")[0] for word in corpus.words[nouns:])
    superclasses = Counter(word.rpartition(" ")[2] for word in corpus.words[nouns:])
    assert set(superclasses) == set(SUPERCLASSES) and len(SUPERCLASSES) == 14
    assert max(superclasses.values()) < 1.2 * min(superclasses.values())
    assert set(adjectives.values()) == {1}
    assert load_corpus("csp", seed=0) == corpus
    other = load_corpus("csp", seed=1)
    assert other.sha256 != corpus.sha256 and other.words[:nouns] == corpus.words[:nouns]


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffjellyfish\r\n\n # a remark\n  ice_cream \nQualle\njellyfish\nqualle\n".encode())
    corpus = load_corpus(path)
    assert corpus.words == ("jellyfish", "ice cream", "Qualle", "qualle")
    assert corpus.kinds == ("text",) * 4 and corpus.duplicates == 1 and corpus.name == str(path)
    assert load_corpus(str(path)).sha256 == corpus.sha256
    path.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="names.txt' is empty"):
        load_corpus(path)
    path.write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        load_corpus(path)
    with pytest.raises(FileNotFoundError, match="There is no corpus 'wordnets'.*no name among wordnet, "):
        load_corpus("wordnets")


@pytest.mark.parametrize("wrap", [list, tuple, iter, lambda texts: Dataset.from_dict({"name": texts})["name"]])
def test_texts_in_whatever_they_come(wrap: Any) -> None:
    corpus = load_corpus(wrap(["ice_cream", "dog", "ice cream", " dog", "dog "]))
    assert corpus.words == ("ice cream", "dog")
    assert corpus.duplicates == 3 and corpus.name == "own list"
    assert corpus.sha256 == load_corpus(["ice cream", "dog"]).sha256 != load_corpus(["dog", "ice cream"]).sha256


def test_bad_corpora_are_named() -> None:
    for empty in ([], (), iter([])):
        with pytest.raises(ValueError, match="is empty; give candidates"):
            load_corpus(empty)
    with pytest.raises(TypeError, match="must hold texts, got int at position 1: 3"):
        load_corpus(["dog", 3])
    with pytest.raises(TypeError, match="must hold texts, got NoneType"):
        load_corpus([None])
    with pytest.raises(ValueError, match="blank text at position 1"):
        load_corpus(["dog", " "])
    for wrong in (3, None, b"dog", {"a": "dog"}):
        with pytest.raises(TypeError, match="`corpus` must be one of wordnet, .*, got"):
            load_corpus(wrong)
    with pytest.raises(TypeError, match=r"one column of the data set, got all of \['name', 'size'\]"):
        load_corpus(Dataset.from_dict({"name": ["a"], "size": [1]}))
    for count in (0, -1):
        with pytest.raises(ValueError, match="`max_candidates` must be at least 1"):
            load_corpus("wordnet", max_candidates=count)


def test_fewer_candidates_are_drawn_in_proportion() -> None:
    words, kinds = [f"n{i}" for i in range(60)] + [f"a{i}" for i in range(30)], ["noun"] * 60 + ["adjective"] * 30
    whole = Corpus("wordnet", tuple(words), tuple(kinds), 5)
    for count in (1, 2, 7, 30, 89):
        drawn = load_corpus(whole, max_candidates=count)
        counts = Counter(drawn.kinds)
        assert len(drawn) == count and abs(counts["noun"] - 2 / 3 * count) < 1
        assert [word for word in words if word in drawn.words] == list(drawn.words)
        assert drawn == load_corpus(whole, max_candidates=count)
        assert (drawn.drawn_from, drawn.duplicates) == (90, 5)
    assert load_corpus(whole, max_candidates=90) == whole
    assert load_corpus(whole, 1, 30).words != load_corpus(whole, 0, 30).words


def test_every_named_corpus_loads() -> None:
    for name, kinds in CORPORA.items():
        assert set(load_corpus(name, max_candidates=500).kinds) == set(kinds)


def test_each_word_has_a_kind() -> None:
    with pytest.raises(ValueError, match="one kind per word, got 2 and 1"):
        Corpus("mine", ("a", "b"), ("text",))
