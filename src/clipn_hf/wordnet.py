# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The nouns and adjectives of WordNet 3.0: which words mean the same, and what is a kind of what.

WordNet groups words that mean the same into synsets, and says of each noun of which more general ones it is a kind
(Fellbaum, *WordNet: An Electronic Lexical Database*, 1998). The package has the lemmas of all nouns and adjectives, in
the order of WordNet's files, with the order of their senses and the hypernyms of nouns; no definitions, verbs or other
relations. `modeling/wordnet.py` made its file.
"""

import gzip
import os
import re
import unicodedata
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

PartOfSpeech = Literal["noun", "adjective"]

_FILE = Path(__file__).parent / "data" / "wordnet.tsv.gz"
_PARTS_OF_SPEECH: dict[str, PartOfSpeech] = {"n": "noun", "a": "adjective"}
_LETTERS = {part: letter for letter, part in _PARTS_OF_SPEECH.items()}
# Names of the lexicographer files, at their numbers. Verbs and adverbs have numbers, too.
_CATEGORIES = (
    *("all", "pertaining", "adverb", "top", "act", "animal", "artifact", "attribute", "body", "cognition"),
    *("communication", "event", "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon"),
    *("plant", "possession", "process", "quantity", "relation", "shape", "state", "substance", "time"),
    *("verb" for _ in range(29, 44)),
    "participle",
)
_INSTANCE = "="
# How plurals of nouns end, and their singulars, the likeliest first
_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("oes", "o"),
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
)
# Those of English that follow no rule, by the end of the word, as in "dormice" and "house mice"; and Latin ones.
_IRREGULAR_ENDINGS = (
    ("men", "man"),
    ("leaves", "leaf"),
    ("mice", "mouse"),
    ("lice", "louse"),
    ("geese", "goose"),
    ("feet", "foot"),
    ("teeth", "tooth"),
    ("children", "child"),
    ("oxen", "ox"),
    ("people", "person"),
    ("dice", "die"),
    ("zzes", "z"),
    ("eaux", "eau"),
    ("cacti", "cactus"),
    ("fungi", "fungus"),
    ("octopi", "octopus"),
    ("hippopotami", "hippopotamus"),
    ("radii", "radius"),
    ("larvae", "larva"),
    ("algae", "alga"),
    ("antennae", "antenna"),
    ("vertebrae", "vertebra"),
    ("nebulae", "nebula"),
    ("vertices", "vertex"),
    ("indices", "index"),
    ("matrices", "matrix"),
    ("aquaria", "aquarium"),
    ("bacteria", "bacterium"),
    ("crises", "crisis"),
    ("oases", "oasis"),
)
_IRREGULAR_PLURALS = tuple(plural for plural, _ in _IRREGULAR_ENDINGS)


@dataclass(frozen=True, slots=True)
class Synset:
    """Words that mean the same.

    Args:
        id (`str`): `"n"` or `"a"` and eight digits, for nouns as in ImageNet, such as `"n02084071"`.
        lemmas (`tuple[str, ...]`): The words, as they are written, such as `("dog", "Canis familiaris")`.
        part_of_speech (`str`): `"noun"` or `"adjective"`.
        category (`str`):
            WordNet's lexicographer file: for nouns `"animal"`, `"artifact"`, `"person"`, …, `"top"` for the most
            general ones; for adjectives `"all"`, `"pertaining"` or `"participle"`.
        hypernyms (`tuple[str, ...]`): Ids of what it is a kind or an instance of; empty for adjectives.
        is_instance (`bool`):
            Whether it is a single thing, such as the Eiffel Tower, and its lemmas therefore are proper nouns.
    """

    id: str
    lemmas: tuple[str, ...]
    part_of_speech: PartOfSpeech
    category: str
    hypernyms: tuple[str, ...]
    is_instance: bool


class WordNet:
    """Synsets by id and by word. [`WordNet.load`] gives the one of the package.

    Synsets are made when they are asked for, and the index of words at the first question for a word.

    Args:
        text (`str`): What `modeling/wordnet.py` has written, unpacked.

    Example:

    ```python
    >>> from clipn_hf.wordnet import WordNet
    >>> wordnet = WordNet.load()
    >>> couch, *others = wordnet.synsets("couch")
    >>> couch.lemmas
    ('sofa', 'couch', 'lounge')
    >>> [synset.lemmas for synset in wordnet.hypernyms(couch)]
    [('seat',)]
    >>> husky = wordnet.synsets("husky")[0]
    >>> wordnet.synsets("dogs")[0].id in wordnet.ancestors(husky)
    True

    ```
    """

    def __init__(self, text: str) -> None:
        self._lines = [line for line in text.splitlines() if line and not line.startswith("#")]

    @staticmethod
    def load(path: str | os.PathLike[str] | None = None) -> "WordNet":
        """Load WordNet; a file is read once per process.

        Args:
            path (`str` or `os.PathLike`, *optional*): A file of `modeling/wordnet.py`; by default that of the package.

        Returns:
            [`WordNet`]: For reading only, since others get the same.

        Raises:
            OSError: The file is not there.
            ValueError: It is no such file.
        """
        return _load(Path(_FILE if path is None else path).resolve())

    def __len__(self) -> int:
        """Count the synsets."""
        return len(self._lines)

    def __contains__(self, word: str) -> bool:
        """Tell whether there is such a noun or adjective, as `synsets` spells words, without singulars of plurals."""
        return any(letter + spelling in self._senses for spelling in spellings(word) for letter in _LETTERS.values())

    def nouns(self) -> Iterator[Synset]:
        """Go through the synsets of nouns, in the order of WordNet."""
        return (_parse(line) for line in self._lines if line.startswith("n"))

    def adjectives(self) -> Iterator[Synset]:
        """Go through the synsets of adjectives, in the order of WordNet."""
        return (_parse(line) for line in self._lines if line.startswith("a"))

    def synset(self, synset_id: str) -> Synset:
        """Give the synset of an id.

        Args:
            synset_id (`str`): Such as `"n02084071"`.

        Returns:
            [`Synset`]: The one that has the id.

        Raises:
            KeyError: There is none.
        """
        try:
            return _parse(self._lines[self._places[synset_id]])
        except KeyError:
            raise KeyError(f'No synset has the id {synset_id!r}; ids are written like "n02084071".') from None

    def synsets(self, word: str, part_of_speech: PartOfSpeech = "noun") -> list[Synset]:
        """Find what a word means.

        Case, accents and the difference between spaces, underscores and hyphens do not matter. Where there is no such
        word, words written in two are tried as one, and plurals of nouns as singulars.

        Args:
            word (`str`): A word or several, such as `"ice cream"`.
            part_of_speech (`str`, *optional*, defaults to `"noun"`): `"noun"` or `"adjective"`.

        Returns:
            `list[Synset]`: Its senses, the most frequent one first; empty if WordNet does not have the word.

        Raises:
            ValueError: `part_of_speech` is neither.
        """
        if part_of_speech not in _LETTERS:
            raise ValueError(f'`part_of_speech` must be "noun" or "adjective", got {part_of_speech!r}.')
        letter = _LETTERS[part_of_speech]
        for spelling in spellings(word, with_singulars=letter == "n"):
            if places := self._senses.get(letter + spelling):
                return [_parse(self._lines[place]) for place in places]
        return []

    def completions(self, start: str, most: int = 4) -> list[str]:
        """Find the nouns that begin with what may be a word cut short.

        Case, accents and the difference between spaces and underscores do not matter.

        Args:
            start (`str`): The beginning, such as `"great white shar"`.
            most (`int`, *optional*, defaults to 4): How many letters may be missing.

        Returns:
            `list[str]`: The nouns as WordNet writes them, the shortest first, those of equal length in the order of
            the alphabet; without `start` itself.
        """
        spelling = next(spellings(start))
        words = []
        for place in range(bisect_left(self._nouns, spelling), len(self._nouns)):
            word = self._nouns[place]
            if not word.startswith(spelling):
                break
            if 0 < len(word) - len(spelling) <= most:
                words.append(word)
        return [self._as_written(word) for word in sorted(words, key=len)]

    def hypernyms(self, synset: Synset) -> list[Synset]:
        """Give what a synset is a kind or an instance of, one step up."""
        return [self.synset(hypernym) for hypernym in synset.hypernyms]

    def ancestors(self, synset: Synset) -> list[str]:
        """List the ids of all that a synset is a kind or an instance of, the nearest first, without itself."""
        found: dict[str, None] = {}
        level: list[str] = list(synset.hypernyms)
        while level:
            found.update(dict.fromkeys(level))
            following = (higher for hypernym in level for higher in self.synset(hypernym).hypernyms)
            level = [hypernym for hypernym in dict.fromkeys(following) if hypernym not in found]
        return list(found)

    def _as_written(self, noun: str) -> str:
        """The lemma of a noun of the index, which is in lower case."""
        lemmas = _parse(self._lines[self._senses["n" + noun][0]]).lemmas
        return next(lemma for lemma in lemmas if lemma.lower().replace(" ", "_") == noun)

    @cached_property
    def _nouns(self) -> list[str]:
        """Nouns in the order of the alphabet, in lower case with underscores."""
        return sorted(word[1:] for word in self._senses if word.startswith("n"))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {line[: line.index("\t")]: place for place, line in enumerate(self._lines)}

    @cached_property
    def _senses(self) -> dict[str, list[int]]:
        """Positions of synsets in the order of senses, by part of speech and word in lower case with underscores."""
        senses: dict[str, list[int]] = {}
        others: list[tuple[int, str, int]] = []
        for place, line in enumerate(self._lines):
            letter = line[0]
            for lemma in line.split("\t", 3)[2].lower().split(" "):
                if ":" in lemma:
                    word, number = lemma.split(":")
                    others.append((int(number), letter + word, place))
                else:
                    senses[letter + lemma] = [place]
        # Where lemmas of a synset differ in case alone, they are one word here.
        for _, word, place in dict.fromkeys(sorted(others)):
            senses.setdefault(word, []).append(place)
        return senses


@cache
def _load(path: Path) -> WordNet:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file of WordNet at {path}; make one with `modeling/wordnet.py`, or install the package "
            "again."
        )
    content = path.read_bytes()
    try:
        text = gzip.decompress(content).decode("utf-8")
        wordnet = WordNet(text)
        _parse(wordnet._lines[0]), _parse(wordnet._lines[-1])
    except (OSError, EOFError, zlib.error, ValueError, LookupError) as error:
        raise ValueError(
            f"{path} is not a file that `modeling/wordnet.py` has written, or is incomplete "
            f"({type(error).__name__}: {error}). Make it again, or install the package again."
        ) from error
    return wordnet


def _parse(line: str) -> Synset:
    synset_id, category, lemmas, hypernyms = line.split("\t")
    return Synset(
        synset_id,
        tuple(lemma.partition(":")[0].replace("_", " ") for lemma in lemmas.split(" ")),
        _PARTS_OF_SPEECH[synset_id[0]],
        _CATEGORIES[int(category)],
        tuple(hypernym.rstrip(_INSTANCE) for hypernym in hypernyms.split()),
        hypernyms.endswith(_INSTANCE),
    )


def spellings(word: str, with_singulars: bool = False) -> Iterator[str]:
    """Write a word in the ways that WordNet could, the likeliest first.

    Args:
        word (`str`): A word or several.
        with_singulars (`bool`, *optional*, defaults to `False`): Whether to add what it would be the plural of.

    Yields:
        `str`: In lower case without accents, with underscores in place of spaces.
    """
    distinct = _distinct_spellings(word)
    yield from distinct
    if with_singulars:
        for spelling in distinct:
            yield from _irregular_singulars(spelling)
            # "ss" ends no plural.
            if spelling.endswith("s") and not spelling.endswith("ss"):
                yield from _singulars(spelling, _ENDINGS)


def irregular_singulars(word: str) -> Iterator[str]:
    """Write what a word is the plural of, if that follows no rule; WordNet has some of these plurals as words.

    Args:
        word (`str`): A word or several, such as `"house mice"`.

    Yields:
        `str`: As `spellings`.
    """
    for spelling in _distinct_spellings(word):
        yield from _irregular_singulars(spelling)


def _distinct_spellings(word: str) -> list[str]:
    plain = word.lower()
    if not plain.isascii():
        decomposed = unicodedata.normalize("NFKD", word).lower()
        plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter)).replace("’", "'")
    joined = "_".join(plain.replace("_", " ").split())
    if "_" not in joined and "-" not in joined:
        return [joined]
    variants = (joined, joined.replace("-", "_"), joined.replace("_", "-"), re.sub(r"[_-]", "", joined))
    return list(dict.fromkeys(variants))


def _irregular_singulars(spelling: str) -> Iterator[str]:
    if spelling.endswith(_IRREGULAR_PLURALS):
        yield from _singulars(spelling, _IRREGULAR_ENDINGS)


def _singulars(spelling: str, endings: Sequence[tuple[str, str]]) -> Iterator[str]:
    for plural, singular in endings:
        if spelling.endswith(plural):
            yield spelling.removesuffix(plural) + singular


__all__ = ["PartOfSpeech", "Synset", "WordNet", "irregular_singulars", "spellings"]
