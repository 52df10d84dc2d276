# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pack the nouns and adjectives of WordNet 3.0 into the file that `clipn_hf.wordnet` reads.

python modeling/wordnet.py WordNet-3.0/dict src/clipn_hf/data/wordnet.tsv.gz
"""

import argparse
import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipn_hf.files import atomic_path

# Syntactic markers of adjectives, such as "galore(ip)"
_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_HYPERNYM, _INSTANCE_HYPERNYM = "@", "@i"


def read_lines(folder: Path, name: str) -> list[str]:
    """Read a file of WordNet, packed or not.

    Args:
        folder (`Path`): Where the files are.
        name (`str`): Such as `"data.noun"`; `data.noun.gz` is taken where that is not there.

    Returns:
        `list[str]`: Its lines.

    Raises:
        FileNotFoundError: Neither file is there.
    """
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        return plain.read_text(encoding="utf-8").splitlines()
    if packed.exists():
        return gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    raise FileNotFoundError(
        f"There is neither {name} nor {name}.gz in {folder}; give the folder with the database files of WordNet 3.0."
    )


def read_senses(lines: Sequence[str]) -> dict[str, list[str]]:
    """Read an index file.

    Args:
        lines (`Sequence[str]`): Of `index.noun` or `index.adj`.

    Returns:
        `dict[str, list[str]]`: For each word in lower case, the offsets of its synsets, the most frequent sense first.
    """
    senses = {}
    for line in lines:
        # The licence is indented.
        if not line.startswith(" "):
            fields = line.split()
            senses[fields[0]] = fields[-int(fields[2]) :]
    return senses


def pack_synsets(lines: Sequence[str], senses: dict[str, list[str]], letter: str) -> Iterator[str]:
    """Write each synset as a line of tab-separated fields.

    Args:
        lines (`Sequence[str]`): Of `data.noun` or `data.adj`.
        senses (`dict[str, list[str]]`): What `read_senses` makes of the index file.
        letter (`str`): `"n"` or `"a"`, with which ids begin.

    Yields:
        `str`: Id, number of the lexicographer file, lemmas with underscores, separated by spaces, and the ids of the
        hypernyms. A lemma is followed by `:` and its sense number, if that is not 1, an id of which the synset is an
        instance by `=`.
    """
    for line in lines:
        if line.startswith(" "):
            continue
        fields = line.split(" | ")[0].split()
        offset, category, count = fields[0], fields[1], int(fields[3], 16)
        lemmas = []
        for word in fields[4 : 4 + 2 * count : 2]:
            lemma = _MARKER.sub("", word)
            number = senses[lemma.lower()].index(offset) + 1
            lemmas.append(lemma if number == 1 else f"{lemma}:{number}")
        pointers = fields[5 + 2 * count :]
        hypernyms = [
            f"{letter}{target}{'=' if symbol == _INSTANCE_HYPERNYM else ''}"
            for symbol, target in zip(pointers[::4], pointers[1::4], strict=False)
            if symbol in (_HYPERNYM, _INSTANCE_HYPERNYM)
        ]
        yield "\t".join((f"{letter}{offset}", category, " ".join(lemmas), " ".join(hypernyms)))


def main(source: Path, output: Path) -> None:
    """Pack the WordNet files of the folder `source` into the file `output`, the same bytes each time."""
    nouns, adjectives = read_lines(source, "data.noun"), read_lines(source, "data.adj")
    # The licence wants to be on each copy.
    notice = [f"# {re.sub(r'^ +[0-9]+ ?', '', line).rstrip()}".rstrip() for line in nouns if line.startswith(" ")]
    synsets = [
        *pack_synsets(nouns, read_senses(read_lines(source, "index.noun")), "n"),
        *pack_synsets(adjectives, read_senses(read_lines(source, "index.adj")), "a"),
    ]
    text = "\n".join([*notice, *synsets]) + "\n"
    with (
        atomic_path(output) as partial_path,
        partial_path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed,
    ):
        packed.write(text.encode("utf-8"))
    print(f"{output}: {len(synsets):,} synsets, {output.stat().st_size:,} bytes.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Folder with data.noun, data.adj, index.noun and index.adj.")
    parser.add_argument("output", type=Path, help="File to write, such as src/clipn_hf/data/wordnet.tsv.gz.")
    arguments = parser.parse_args()
    try:
        main(arguments.source, arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
