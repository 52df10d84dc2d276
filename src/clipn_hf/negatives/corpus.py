# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Where candidates for negative labels come from: WordNet, files of text, columns of data sets, lists.

NegLabel takes the nouns and adjectives of WordNet. CSP (Chen et al., NeurIPS 2024, arXiv 2410.08611) puts each
adjective before one of a few superclasses, as in "white creature".
"""

import hashlib
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from ..negative_settings import CORPORA, Kind
from ..prompts import validate_labels, validate_texts
from ..wordnet import WordNet

EXCLUDED_CATEGORIES = ("person", "quantity", "group", "pertaining")
"""WordNet's lexicographer files that the code published with NegLabel leaves out."""

SUPERCLASSES = (
    *("area", "creature", "environment", "item", "landscape", "object", "pattern"),
    *("place", "scene", "space", "structure", "thing", "view", "vista"),
)
"""The nouns that CSP puts behind adjectives."""


@dataclass(frozen=True)
class Corpus:
    """Candidates for negative labels, each different.

    Args:
        name (`str`): One of `CORPORA`, the path of a file, or `"own list"`.
        words (`tuple[str, ...]`): The candidates.
        kinds (`tuple[str, ...]`):
            `"noun"`, `"adjective"`, `"compound"` or `"text"` of each. Each kind is mined by itself.
        duplicates (`int`, *optional*, defaults to 0):
            How many more there were that are the same as others, before any were drawn.
        drawn_from (`int`, *optional*): How many there were, each different, if these were drawn from them.
        sha256 (`str`): Digest of words and kinds, in hexadecimal.
    """

    name: str
    words: tuple[str, ...]
    kinds: tuple[Kind, ...]
    duplicates: int = 0
    drawn_from: int | None = None
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.kinds):
            raise ValueError(f"There must be one kind per word, got {len(self.words)} and {len(self.kinds)}.")
        digest = hashlib.sha256()
        for word, kind in zip(self.words, self.kinds, strict=True):
            digest.update(f"{kind}\0{word}\0".encode())
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.words)


def load_corpus(
    corpus: Any = "wordnet",
    seed: int = 0,
    max_candidates: int | None = None,
    *,
    exclude: Collection[str] = EXCLUDED_CATEGORIES,
) -> Corpus:
    """Load candidates for negative labels.

    Underscores become spaces, and those around candidates go. Of candidates that are the same, also where one is a
    noun and one an adjective, the first is kept.

    Args:
        corpus (`str`, `os.PathLike`, [`Corpus`] or `Iterable[str]`, *optional*, defaults to `"wordnet"`):
            `"wordnet"`: nouns and adjectives. `"wordnet-nouns"` and `"wordnet-adjectives"`: one of them. `"csp"`:
            nouns, and each adjective before one of `SUPERCLASSES`. Else a text file in UTF-8 with one candidate per
            line, of which blank lines and those that begin with `#` are skipped; or any list, column of a
            `datasets.Dataset`, or other iterable of texts.
        seed (`int`, *optional*, defaults to 0): For the superclasses of `"csp"`, and what `max_candidates` draws.
        max_candidates (`int`, *optional*):
            Take that many at random, of each kind in proportion, in the order of the corpus. By default all.
        exclude (`Collection[str]`, *optional*, defaults to `EXCLUDED_CATEGORIES`):
            Which of WordNet's lexicographer files to leave out: `"person"`, `"animal"`, …. Does not matter to others.

    Returns:
        [`Corpus`]: At least one candidate.

    Raises:
        OSError: There is no such file, and no such name.
        TypeError: A candidate is no text, `corpus` is a whole data set, or a number is none.
        ValueError:
            There are no candidates, a text in a list is blank, the file is not UTF-8, `max_candidates` is less than 1,
            or `exclude` names no lexicographer file.

    Example:

    ```python
    >>> from clipn_hf.negatives import load_corpus
    >>> corpus = load_corpus("wordnet-nouns")
    >>> len(corpus), corpus.words[:3]
    (97476, ('entity', 'physical entity', 'abstraction'))
    >>> load_corpus(["ice_cream", "jellyfish", "jellyfish"]).words
    ('ice cream', 'jellyfish')

    ```
    """
    numbers: dict[str, Any] = {"seed": seed, "max_candidates": max_candidates}
    for name, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, Integral)):
            raise TypeError(f"`{name}` must be a whole number, got {type(number).__name__}: {number!r}.")
    if max_candidates is not None and max_candidates < 1:
        raise ValueError(f"`max_candidates` must be at least 1, got {max_candidates}; leave it out to take all.")
    loaded = corpus if isinstance(corpus, Corpus) else _load(corpus, seed, exclude)
    if not len(loaded):
        raise ValueError(
            f'The corpus {loaded.name!r} is empty; give candidates for negative labels, or use corpus="wordnet".'
        )
    if max_candidates is None or max_candidates >= len(loaded):
        return loaded
    return _draw(loaded, max_candidates, seed)


def _load(corpus: Any, seed: int, exclude: Collection[str]) -> Corpus:
    if isinstance(corpus, str) and corpus in CORPORA:
        return _load_wordnet(corpus, seed, exclude)
    if isinstance(corpus, str | os.PathLike):
        return _make(os.fspath(corpus), [(line, "text") for line in _read_lines(Path(corpus))])
    if isinstance(corpus, bytes | Mapping) or not isinstance(corpus, Iterable):
        raise TypeError(
            f"`corpus` must be one of {', '.join(CORPORA)}, a text file, or a list or column of texts, got "
            f"{type(corpus).__name__}."
        )
    texts = read_texts(corpus, "corpus")
    return _make("own list", [(_check_text(text, place), "text") for place, text in enumerate(texts)])


def read_texts(texts: Iterable[Any], name: str) -> list[Any]:
    """Make a list of what may be a column of a `datasets.Dataset`, but no whole one.

    Args:
        texts (`Iterable`): Texts, which are not checked.
        name (`str`): What errors call the argument.

    Returns:
        `list`: All of them.

    Raises:
        TypeError: It is a whole data set.
    """
    if hasattr(texts, "column_names") and not isinstance(texts, Sequence):
        raise TypeError(
            f"`{name}` must be one column of the data set, got all of {list(texts.column_names or [])}; choose one, "
            f'as in `{name}=dataset["label"]`.'
        )
    return list(texts)


def check_texts(texts: Any, labels: Sequence[str] | None, name: str) -> list[str]:
    """Check texts that are negative labels as they are; of those that are the same, keep one, as in files.

    Args:
        texts (`Sequence[str]`): The negative labels.
        labels (`Sequence[str]`, *optional*): What images may show.
        name (`str`): What errors call the argument.

    Returns:
        `list[str]`: Each text once.

    Raises:
        TypeError: They are not texts.
        ValueError: There are none, one is blank, or one is a label, but for case.
    """
    distinct = list(dict.fromkeys(validate_texts(texts, name)))
    known = {label.strip().casefold() for label in ([] if labels is None else validate_labels(labels))}
    if shared := [text for text in distinct if text.strip().casefold() in known]:
        raise ValueError(
            f"`{name}` has {len(shared)} of the labels ({first_texts(shared)}); what is a label cannot be a negative "
            "label, remove it from one of them."
        )
    return distinct


def first_texts(texts: Sequence[str]) -> str:
    """List the first three of some texts."""
    return ", ".join(map(repr, texts[:3])) + (", …" if len(texts) > 3 else "")


def _load_wordnet(name: str, seed: int, exclude: Collection[str]) -> Corpus:
    wordnet = WordNet.load()
    excluded = frozenset(exclude)
    synsets = {"noun": list(wordnet.nouns()), "adjective": list(wordnet.adjectives())}
    categories = {synset.category for of_kind in synsets.values() for synset in of_kind}
    if isinstance(exclude, str) or excluded - categories:
        raise ValueError(
            f"`exclude` must be a list of lexicographer files of WordNet ({', '.join(sorted(categories))}), got "
            f"{exclude!r}."
        )
    words = {
        part: [word for synset in of_part if synset.category not in excluded for word in synset.lemmas]
        for part, of_part in synsets.items()
    }
    entries: list[tuple[str, Kind]] = []
    for kind in CORPORA[name]:
        if kind == "compound":
            # A superclass stays with its adjective only if the adjective is drawn for once.
            draw = random.Random(seed)
            adjectives = dict.fromkeys(words["adjective"])
            entries += [(f"{adjective} {draw.choice(SUPERCLASSES)}", kind) for adjective in adjectives]
        else:
            entries += [(word, kind) for word in words[kind]]
    return _make(name, entries)


def _make(name: str, entries: Sequence[tuple[str, Kind]]) -> Corpus:
    kinds: dict[str, Kind] = {}
    for word, kind in entries:
        kinds.setdefault(word.replace("_", " "), kind)
    return Corpus(name, tuple(kinds), tuple(kinds.values()), len(entries) - len(kinds))


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no corpus {os.fspath(path)!r}: it is no file, and no name among {', '.join(CORPORA)}."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); convert it.") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _check_text(text: Any, place: int) -> str:
    if not isinstance(text, str):
        raise TypeError(
            f"`corpus` must hold texts, got {type(text).__name__} at position {place}: {text!r}. Convert it first, or "
            "leave it out."
        )
    if not text.strip():
        raise ValueError(f"`corpus` has a blank text at position {place} ({text!r}); leave it out.")
    return text.strip()


def _draw(corpus: Corpus, count: int, seed: int) -> Corpus:
    places: dict[Kind, list[int]] = {}
    for place, kind in enumerate(corpus.kinds):
        places.setdefault(kind, []).append(place)
    # Whole parts first; those with the largest remainders get one more.
    exact = {kind: count * len(of_kind) / len(corpus) for kind, of_kind in places.items()}
    counts = {kind: int(share) for kind, share in exact.items()}
    for kind in sorted(exact, key=lambda kind: counts[kind] - exact[kind])[: count - sum(counts.values())]:
        counts[kind] += 1
    draw = random.Random(seed)
    drawn = sorted(place for kind, of_kind in places.items() for place in draw.sample(of_kind, counts[kind]))
    return Corpus(
        corpus.name,
        tuple(corpus.words[place] for place in drawn),
        tuple(corpus.kinds[place] for place in drawn),
        corpus.duplicates,
        len(corpus),
    )


__all__ = ["EXCLUDED_CATEGORIES", "SUPERCLASSES", "Corpus", "check_texts", "first_texts", "load_corpus", "read_texts"]
