# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands `evaluate` and `compare` of the command `clipn-hf`."""

import contextlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .records import printable

if TYPE_CHECKING:
    from .evaluation.results import Comparison


def evaluate(
    config: Annotated[
        str | None,
        typer.Option(
            metavar="SUITE", help="Name of a ready suite, see --list, or a YAML file of one.", show_default=False
        ),
    ] = None,
    data_root: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the paths of the suite start.", show_default="this folder")
    ] = Path("."),
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write records, scores, tables, figures and a report there; it is made if it does not exist.",
            show_default="nothing is written",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Hub id or folder of a model, or folder of a saved detector; repeat the option for several.",
            show_default="those of the suite, or the embedded checkpoint",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Repeat the option for several.",
            show_default="those of the suite, or all that a model serves",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Draws labels and images anew; repeat the option for several.",
            show_default="those of the suite",
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(metavar="N", min=0, help="Draws of the bootstrap for each interval; 0 for no intervals.")
    ] = 1000,
    published: Annotated[
        bool, typer.Option("--published", help="Show published results of the same benchmark below ours.")
    ] = False,
    no_examine: Annotated[
        bool, typer.Option("--no-examine", help="Do not look for mistakes in labels and images first.")
    ] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images per pass through the model.")] = 32,
    num_workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read images.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Such as cpu or cuda:1.", show_default="an accelerator, if there is one"),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where embeddings are kept.",
            show_default="$CLIPN_HF_CACHE, or clipn_hf in $HF_HOME or ~/.cache",
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings on disk.")] = False,
    list_suites: Annotated[bool, typer.Option("--list", help="List the ready suites and exit.")] = False,
) -> None:
    """Evaluate methods and models on the ID and OOD sets of a suite."""
    if list_suites:
        _print_suites()
        return
    if config is None:
        raise typer.BadParameter("Name a suite, or --list them.", param_hint="'--config'")
    if no_cache and cache_dir is not None:
        raise typer.BadParameter("Only one of the two makes sense.", param_hint="'--cache-dir' / '--no-cache'")
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"The output {output} is a file; name a folder.")

    from .cli import _check_device, _loading
    from .evaluation.benchmark import REPORT_NAME, evaluate_suite
    from .evaluation.doctor import format_findings
    from .evaluation.suite import load_suite
    from .evaluation.tables import markdown_table

    _check_device(device)
    # Before anything is loaded, because most mistakes are in this file.
    suite = load_suite(config)
    with contextlib.ExitStack() as stack:
        for model in dict.fromkeys(models or suite.models or (None,)):
            stack.enter_context(_loading(model))
        result = evaluate_suite(
            suite,
            models or None,
            methods or None,
            data_root=data_root,
            seeds=seeds or None,
            output=output,
            resamples=resamples,
            examine=not no_examine,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            cache_dir=cache_dir,
            use_cache=not no_cache,
            published=published,
        )
    # What is graver was on the log before the evaluation began.
    if notes := [finding for finding in result.findings if finding.severity == "note"]:
        for line in format_findings(notes):
            print(printable(line), file=sys.stderr)
    for reason in result.skipped:
        _report(f"Skipped: {reason}")
    table = markdown_table(result.records, published=published)
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        Console(highlight=False).print(Markdown(table))
    else:
        print(table)
    if output is not None:
        _report(f"The report, with all tables and figures: {(output / REPORT_NAME).resolve()}")


def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A.jsonl", help="The results.jsonl of an evaluation, with its folder scores.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B.jsonl", help="The results.jsonl of another one.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="The metric to compare.")] = "auroc",
    resamples: Annotated[int, typer.Option(metavar="N", min=1, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of these draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Compare two evaluations on the same images by the paired bootstrap."""
    from .evaluation import results

    comparisons = results.compare(a, b, metric, resamples, seed)
    if as_json:
        print(json.dumps([asdict(comparison) for comparison in comparisons], indent=1))
        return
    _print_comparisons(comparisons)


def _print_suites() -> None:
    from .evaluation.suite import ready_suites

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, description in ready_suites().items():
        table.add_row(Text(name), Text(description))
    Console(highlight=False).print(table)


def _print_comparisons(comparisons: "list[Comparison]") -> None:
    """Print a table; what all comparisons have in common stands above it."""
    first = comparisons[0]
    common, headings = [], []
    for heading, name in (("suite", "suite"), ("seed", "seed"), ("A", "a"), ("B", "b")):
        if len({getattr(comparison, name) for comparison in comparisons}) == 1:
            common.append(f"{heading} = {getattr(first, name)}")
        else:
            headings.append((heading, name))
    headings.append(("set", "set"))
    table = Table(box=None, pad_edge=False)
    for heading, _ in headings:
        table.add_column(heading, overflow="fold")
    for heading in ("A %", "B %", "B - A", f"{first.confidence:.0%} interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        cells = [str(getattr(comparison, name)) for _, name in headings] + [
            f"{100 * comparison.value_a:.2f}",
            f"{100 * comparison.value_b:.2f}",
            f"{100 * comparison.difference:+.2f}",
            f"{100 * comparison.low:+.2f} to {100 * comparison.high:+.2f}",
            _readable_p(comparison),
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console(highlight=False)
    console.print(Text(printable("; ".join([first.metric, *common]))))
    console.print(table)
    console.print(
        Text(f"Paired bootstrap over images, {first.resamples:,} resamples; p is two-sided, for each line by itself.")
    )


def _readable_p(comparison: "Comparison") -> str:
    # No more digits than the number of resamples can show.
    digits = min(4, max(2, math.ceil(math.log10(comparison.resamples + 1))))
    return f"{comparison.p_value:.{digits}f}"


def _report(message: str) -> None:
    print(printable(" ".join(message.split())), file=sys.stderr)


__all__ = ["compare", "evaluate"]
