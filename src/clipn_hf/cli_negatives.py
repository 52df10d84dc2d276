# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `mine` of the command `clipn-hf`."""

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cli_options import (
    CacheDir,
    Device,
    Labels,
    LabelsFile,
    Model,
    alternatives,
    check_device,
    check_output,
    counted,
    known_labels,
    loading,
    method_option,
    mining_cost,
    model_or_embedded,
    named_method,
    report,
    rewording,
)
from .methods import METHODS, Method
from .negative_settings import CORPORA, FILTERS
from .records import printable

if TYPE_CHECKING:
    from .negatives import NegativeLabels

# What errors and warnings of mining call arguments, and what they are called here.
_OPTIONS = {
    'add "id_names" to `filters`': "add `--filter id_names`",
    "leave out filters": "leave out `--filter`",
    'corpus="wordnet"': "`--corpus wordnet`",
    "`NegativeLabels.from_texts`": "`--negatives` of detect",
    "`filters`": "`--filter`",
    "`corpus`": "`--corpus`",
    "`fraction`": "`--fraction`",
    "`max_similarity`": "`--max-similarity`",
}
EXTENSIONS = (".safetensors", ".txt")
MINING_METHODS = {name: method for name, method in METHODS.items() if "negatives" in method.needs}
# How many of each kind are printed.
FIRST = 8
# Below the help of the subcommand.
EXAMPLE = "Example: clipn-hf mine --labels cat,dog --filter id_names --filter hyponyms --out negatives.safetensors"


def _complete_corpus(incomplete: str) -> list[str]:
    return [name for name in CORPORA if name.startswith(incomplete)]


def _complete_filter(incomplete: str) -> list[str]:
    return [name for name in FILTERS if name.startswith(incomplete)]


def _mining(method: Method) -> dict[str, Any]:
    """How a method mines negative labels, as `NegativeLabels.mine` takes it."""
    default = {"corpus": "wordnet", "quantile": 0.95, "fraction": 0.15, "filters": (), "max_similarity": None}
    return {**default, **method.mining}


def _default(name: str) -> str:
    """Word what an option is if it is not given, which may depend on the method."""
    methods: dict[str, list[str]] = {}
    for method in MINING_METHODS.values():
        value = _mining(method)[name]
        word = "none" if value in ((), None) else ", ".join(value) if isinstance(value, tuple) else f"{value}"
        methods.setdefault(word, []).append(method.name)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{' and '.join(names)}: {word}" for word, names in methods.items())


def mine(
    output: Annotated[
        Path,
        typer.Option(
            "--out",
            "--output",
            metavar="FILE",
            help="The file to write: .safetensors with all that detect and calibrate need, or .txt with the texts "
            "alone, one per line. It appears when complete.",
        ),
    ],
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Model = None,
    method: Annotated[str, method_option(MINING_METHODS)] = "neglabel",
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Where candidates come from: wordnet (nouns and adjectives), wordnet-nouns, wordnet-adjectives, csp "
            '(nouns, and adjectives with a superclass, such as "white creature"), or a text file with one per line, '
            "of which blank lines and lines that begin with # are skipped.",
            autocompletion=_complete_corpus,
            show_default=_default("corpus"),
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of candidates to take: of each kind those farthest from the labels.",
            show_default=_default("fraction"),
        ),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Which of its cosines with the labels says how near a candidate is to them: 1 the highest, 0.5 the "
            "median.",
            show_default=_default("quantile"),
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME",
            help="Candidates to drop first: id_names (a label but for case, accents, hyphens and plural), synonyms, "
            "hyponyms or hypernyms of labels in WordNet, or proper_nouns; repeat the option for several.",
            autocompletion=_complete_filter,
            show_default=_default("filters"),
        ),
    ] = None,
    max_similarity: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="Drop candidates whose cosine with any label is higher, such as 0.95.",
            show_default=_default("max_similarity"),
        ),
    ] = None,
    max_candidates: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Draw so many candidates at random.", show_default="all"),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Draws candidates for --max-candidates, and superclasses of csp.")
    ] = 0,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEXT",
            help="Text around labels and candidates; repeat the option for several, which are averaged.",
            show_default="the first one of the model, or The nice {}.",
        ),
    ] = None,
    adjective_templates: Annotated[
        list[str] | None,
        typer.Option(
            "--adjective-template",
            metavar="TEXT",
            help="The same for adjectives.",
            show_default="This is a {} photo",
        ),
    ] = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings on disk.")] = False,
) -> None:
    """Mine negative labels: words that are far from all labels, to tell what an unknown image looks like.

    Some methods judge by them, such as neglabel; beside all others they explain. Option --negatives takes the file.
    Each method has its own way to mine them, which --method chooses, and from which the other options may differ.
    """
    if (labels is None) == (labels_file is None):
        raise typer.BadParameter("Exactly one of the two is needed.", param_hint="'--labels' / '--labels-file'")
    if no_cache and cache_dir is not None:
        raise typer.BadParameter("Only one of the two makes sense.", param_hint="'--cache-dir' / '--no-cache'")
    for option, share in (("--quantile", quantile), ("--fraction", fraction)):
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"`{option}` must be between 0 and 1, got {share:g}.")
    if fraction == 0:
        raise ValueError("`--fraction` 0 takes no candidate; give a share such as 0.15.")
    if max_similarity is not None and not -1 <= max_similarity <= 1:
        raise ValueError(
            f"`--max-similarity` must be a cosine between -1 and 1, such as 0.95, got {max_similarity:g}."
        )
    for name in filters or ():
        if name not in FILTERS:
            raise ValueError(f"`--filter` must be {alternatives(FILTERS)}, got {name!r}{_did_you_mean(name, FILTERS)}")
    if output.suffix not in EXTENSIONS:
        raise ValueError(f"The name of the file {output} must end in {alternatives(EXTENSIONS)}.")
    check_output(output)
    known = known_labels(labels, labels_file)
    row = named_method(method, MINING_METHODS)
    given = {
        "corpus": corpus,
        "quantile": quantile,
        "fraction": fraction,
        "filters": tuple(filters) if filters else None,
        "max_similarity": max_similarity,
    }
    mining = _mining(row) | {name: value for name, value in given.items() if value is not None}
    corpus, fraction = mining["corpus"], mining["fraction"]
    if corpus not in CORPORA and not Path(corpus).is_file():
        raise ValueError(
            f"`--corpus` must be {alternatives(CORPORA)}, or a text file with one candidate per line; there is no "
            f"file {corpus}{_did_you_mean(corpus, CORPORA)}"
        )

    from .encoders import DualEncoder
    from .negatives import NegativeLabels, load_corpus
    from .negatives.filters import are_labels

    check_device(device)
    with rewording(_OPTIONS):
        candidates = load_corpus(corpus, seed, max_candidates)
    if are_labels(candidates.words, known):
        raise ValueError(
            f"`--corpus` {corpus} has nothing but labels, or what is one but for case, accents, hyphens and plural; "
            "give candidates that are none, or `--corpus wordnet`."
        )
    if fraction * len(candidates) < 1:
        raise ValueError(
            f"`--fraction` {fraction:g} of {counted(len(candidates), 'candidate')} is less than one; raise it, or "
            "give more candidates. Texts that need not be mined are given as they are by `--negatives` of detect."
        )
    with loading(model), rewording(_OPTIONS):
        encoder = DualEncoder.from_pretrained(model_or_embedded(model), device=device)
        report(mining_cost(len(candidates), candidates.name, kept=not no_cache))
        bank = NegativeLabels.mine(
            encoder,
            known,
            **mining,
            templates=templates,
            adjective_templates=adjective_templates,
            max_candidates=max_candidates,
            seed=seed,
            cache_dir=cache_dir,
            use_cache=not no_cache,
        )
    bank.save(output)
    _print_counts(bank, fraction)
    _print_first(bank)
    options = ["--labels", labels] if labels is not None else ["--labels-file", str(labels_file)]
    options += ["--model", model] if model is not None else []
    for template in templates or ():
        options += ["--template", template]
    options += ["--method", row.name, "--negatives", str(output)]
    if output.suffix == ".txt":
        print(
            printable(
                f"Written to {output}: the texts alone, which are taken as they are where they are read, all in the "
                "template of the labels. A .safetensors file keeps embeddings and templates."
            )
        )
        return
    print(printable(f"Written to {output}; use it by:"))
    print(printable(f"  clipn-hf calibrate PATH... {shlex.join(options)} --output DETECTOR"))
    print(printable(f"  clipn-hf detect PATH... {shlex.join(options)}"))
    print("The first makes a detector that gives verdicts, from images of the labels; the second gives scores alone.")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _print_counts(bank: "NegativeLabels", fraction: float) -> None:
    """Print how many candidates there were, how many each filter dropped, and how many were taken."""
    drawn_from = bank.report.get("drawn_from")
    origin = "" if drawn_from is None else f"drawn of {drawn_from:,} "
    words = {
        "candidates": f"{origin}candidates of {printable(str(bank.settings['corpus']))}",
        "duplicates": f"exact duplicates besides{'' if drawn_from is None else ', before the draw'}",
        "mined": f"mined: of each kind of words the {100 * fraction:g} % that are farthest from the labels",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, count in bank.report.items():
        if name != "drawn_from":
            table.add_row(f"{count:,}", Text(words.get(name, f"dropped by {name}")))
    Console(highlight=False).print(table)


def _print_first(bank: "NegativeLabels") -> None:
    """Print the first negative labels of each kind, which are the farthest from the labels."""
    for kind in dict.fromkeys(bank.kinds):
        own = [label for label, of in zip(bank.labels, bank.kinds, strict=True) if of == kind]
        more = ", …" if len(own) > FIRST else ""
        print(printable(f"{counted(len(own), kind)}, the farthest first: {', '.join(own[:FIRST])}{more}"))


__all__ = ["EXAMPLE", "mine"]
