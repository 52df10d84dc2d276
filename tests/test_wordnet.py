# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import gzip
import importlib.util
import itertools
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from clipn_hf.wordnet import Synset, WordNet

SCRIPT = Path(__file__).parents[1] / "modeling" / "wordnet.py"
PACKAGED = Path(importlib.util.find_spec("clipn_hf").origin).parent / "data" / "wordnet.tsv.gz"
SMALL = """# Notice

n00000001\t03\tentity\t
n00000002\t05\tAb ab:2 two_words\tn00000001
n00000003\t06\tab tea-pot\tn00000001
n00000004\t18\tJane_Ab ab:3\tn00000002=
n00000005\t05\thybrid\tn00000003 n00000002
n00000006\t05\tkitten\tn00000005
a00000001\t00\tab fine\t
"""


def lemmas(synsets: list[Synset]) -> list[str]:
    return [synset.lemmas[0] for synset in synsets]


@pytest.fixture
def small() -> WordNet:
    return WordNet(SMALL)


def test_synsets_have_their_fields(small: WordNet) -> None:
    assert len(small) == 7
    assert small.synset("n00000002") == Synset(
        "n00000002", ("Ab", "ab", "two words"), "noun", "animal", ("n00000001",), False
    )
    assert small.synset("n00000004") == Synset("n00000004", ("Jane Ab", "ab"), "noun", "person", ("n00000002",), True)
    assert small.synset("a00000001") == Synset("a00000001", ("ab", "fine"), "adjective", "all", (), False)
    with pytest.raises(KeyError, match="No synset has the id"):
        small.synset("n1")


def test_completions(small: WordNet) -> None:
    assert small.completions("kit") == ["kitten"]
    assert small.completions("kit", most=2) == small.completions("kitten") == small.completions("fin") == []
    assert small.completions("Two wo") == ["two words"]
    assert small.completions("jane") == ["Jane Ab"]
    assert small.completions("x") == []
    assert WordNet.load().completions("African elephan") == ["African elephant"]
    found = WordNet.load().completions("garter sn", most=20)
    assert "garter snake" in found and found == sorted(found, key=len)


def test_words_are_looked_up_as_they_are(small: WordNet) -> None:
    for word in ("kitten", "Two words", "two-words", "TEA POT", "fine"):
        assert word in small
    for word in ("kittens", "words", "", "ä"):
        assert word not in small


def test_parts_of_speech_are_apart_and_in_order(small: WordNet) -> None:
    assert [synset.id[-1] for synset in small.nouns()] == list("123456")
    assert [synset.id for synset in small.adjectives()] == ["a00000001"]
    assert [synset.id for synset in small.synsets("ab", "adjective")] == ["a00000001"]
    with pytest.raises(ValueError, match='`part_of_speech` must be "noun" or "adjective", got \'verb\'.'):
        small.synsets("ab", "verb")


def test_senses_are_in_order() -> None:
    lines = ["n1\t03\tab:3\t", "n2\t03\tab:10\t", "n3\t03\tab\t", "n4\t03\tab:2\t"]
    for order in itertools.permutations(lines):
        assert [synset.id for synset in WordNet("\n".join(order)).synsets("ab")] == ["n3", "n4", "n1", "n2"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("two words", ["n00000002"]),
        ("Two_Words", ["n00000002"]),
        ("two-words", ["n00000002"]),
        (" two  wórds ", ["n00000002"]),
        ("tea pot", ["n00000003"]),
        ("tea-pots", ["n00000003"]),
        ("kit ten", ["n00000006"]),
        ("AB", ["n00000003", "n00000002", "n00000004"]),
        ("absent", []),
        ("", []),
    ],
)
def test_words_are_found_however_they_are_written(word: str, expected: list[str]) -> None:
    # The first lemma of the second synset counts as the same word, and as that of a first sense.
    text = SMALL.replace("Ab ab:2", "Ab:2 ab:2")
    assert [synset.id for synset in WordNet(text).synsets(word)] == expected


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"),
        ("buses", "bus"),
        ("boxes", "box"),
        ("churches", "church"),
        ("dishes", "dish"),
        ("tomatoes", "tomato"),
        ("berries", "berry"),
        ("wolves", "wolf"),
        ("knives", "knife"),
        ("firemen", "fireman"),
        ("mice", "mouse"),
        ("snow geese", "snow goose"),
        ("feet", "foot"),
        ("leaves", "leaf"),
        ("octopi", "octopus"),
        ("horses", "horse"),
        ("pickup trucks", "pickup truck"),
    ],
)
def test_plurals_are_found(plural: str, singular: str) -> None:
    assert WordNet.load().synsets(plural) == WordNet.load().synsets(singular) != []


def test_words_that_are_no_plurals() -> None:
    assert WordNet.load().synsets("glass")[0].lemmas == ("glass",)
    assert "spectacles" in WordNet.load().synsets("glasses")[0].lemmas
    assert WordNet("n1\t03\tas\t").synsets("ass") == []


def test_ancestors_are_listed_once_the_nearest_first(small: WordNet) -> None:
    assert small.ancestors(small.synset("n00000006")) == ["n00000005", "n00000003", "n00000002", "n00000001"]
    assert small.ancestors(small.synset("n00000001")) == []
    assert lemmas(small.hypernyms(small.synset("n00000005"))) == ["ab", "Ab"]


def test_the_packaged_wordnet() -> None:
    wordnet = WordNet.load()
    assert wordnet is WordNet.load(PACKAGED)
    nouns, adjectives = list(wordnet.nouns()), list(wordnet.adjectives())
    assert (len(nouns), len(adjectives), len(wordnet)) == (82115, 18156, 100271)
    assert {len(synset.id) for synset in nouns} == {9}
    assert wordnet.synset("n02084071").lemmas == ("dog", "domestic dog", "Canis familiaris")
    assert lemmas(wordnet.synsets("crane"))[-2:] == ["crane", "crane"]
    assert wordnet.synsets("galore", "adjective")[0].lemmas == ("galore",)
    assert [synset.is_instance for synset in (*wordnet.synsets("Eiffel Tower"), *wordnet.synsets("tower"))] == [
        True,
        False,
        False,
        False,
    ]
    assert {synset.category for synset in adjectives} == {"all", "pertaining", "participle"}
    assert not {synset.category for synset in nouns} & {"verb", "adverb", "all"}
    known = {synset.id for synset in nouns}
    assert all(hypernym in known for synset in nouns for hypernym in synset.hypernyms)
    # All are kinds of the one at the top.
    assert all("n00001740" in wordnet.ancestors(synset) for synset in nouns[1::100])


def test_the_licence_is_in_the_file() -> None:
    text = gzip.decompress(PACKAGED.read_bytes()).decode("utf-8")
    assert "# WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in text
    assert PACKAGED.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"n1\t03\tdog\t",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"dog\tcat", mtime=0),
        gzip.compress(b"n" * 9999, mtime=0)[:-9],
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wordnet.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file that `modeling/wordnet.py` has written, or is incomplete"):
        WordNet.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file of WordNet at"):
        WordNet.load(tmp_path / "wordnet.tsv.gz")


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("wordnet_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_database(folder: Path) -> None:
    notice = "  1 Notice  \n  2   \n"
    files = {
        "data.noun": "00000011 03 n 01 entity 0 001 ~ 00000022 n 0000 | what is  \n"
        "00000022 05 n 02 Ab 0 tea-pot 0 003 @ 00000011 n 0000 ~i 00000033 n 0000 + 00000001 v 0101 | an @ 1 n  \n"
        "00000033 18 n 01 ab 1 001 @i 00000022 n 0000 | a person  \n",
        "index.noun": "ab n 2 2 @ ~ 2 0 00000033 00000022  \nentity n 1 1 ~ 1 0 00000011  \n"
        "tea-pot n 1 1 @ 1 0 00000022  \n",
        "data.adj": "00000044 00 a 02 galore(ip) 0 ab 0 001 & 00000055 a 0000 | many  \n",
        "index.adj": "ab a 1 1 & 1 0 00000044  \ngalore a 1 1 & 1 0 00000044  \n",
    }
    for name, text in files.items():
        (folder / name).write_text(notice + text, encoding="utf-8")


@pytest.mark.parametrize("packed", [False, True])
def test_the_script_packs_a_database(tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    write_database(tmp_path)
    if packed:
        for path in list(tmp_path.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    output = tmp_path / "wordnet.tsv.gz"
    load_script().main(tmp_path, output)
    assert gzip.decompress(output.read_bytes()).decode("utf-8").splitlines() == [
        "# Notice",
        "#",
        "n00000011\t03\tentity\t",
        "n00000022\t05\tAb:2 tea-pot\tn00000011",
        "n00000033\t18\tab\tn00000022=",
        "a00000044\t00\tgalore ab\t",
    ]
    assert "4 synsets" in capsys.readouterr().out
    assert [synset.category for synset in WordNet.load(output).synsets("ab")] == ["person", "animal"]


def test_the_script_writes_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_database(tmp_path)
    script = load_script()
    for name in ("one.gz", "two.gz"):
        script.main(tmp_path, tmp_path / name)
    one = (tmp_path / "one.gz").read_bytes()
    assert one == (tmp_path / "two.gz").read_bytes()
    # No time and no name in the header
    assert one[3] == 0 and one[4:8] == bytes(4)


def test_the_script_made_the_packaged_file(shared: Path, tmp_path: Path) -> None:
    output = tmp_path / "wordnet.tsv.gz"
    load_script().main(shared / "data" / "wordnet", output)
    # Another zlib may pack the same text in other bytes.
    assert gzip.decompress(output.read_bytes()) == gzip.decompress(PACKAGED.read_bytes())


def test_errors_of_the_script_come_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), str(tmp_path / "out.gz")])
    with pytest.raises(SystemExit, match="^Error: There is neither data.noun nor data.noun.gz in"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not (tmp_path / "out.gz").exists()
