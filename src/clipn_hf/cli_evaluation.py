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

from .cli_options import BatchSize, CacheDir, Device, check_device, loading, report
from .records import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .evaluation.comparison import Comparison, ComparisonOverSeeds, ComparisonResult


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
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="What the tables show, such as auroc, aupr_in or oscr; repeat the option for several.",
            show_default="auroc, both kinds of fpr95, id_accuracy",
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show published results of the same benchmark below ours.")
    ] = False,
    no_examine: Annotated[
        bool, typer.Option("--no-examine", help="Do not look for mistakes in labels and images first.")
    ] = False,
    batch_size: BatchSize = 32,
    num_workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read images.")] = 0,
    device: Device = None,
    cache_dir: CacheDir = None,
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

    from .evaluation.benchmark import REPORT_NAME, evaluate_suite
    from .evaluation.doctor import format_findings
    from .evaluation.suite import load_suite
    from .evaluation.tables import markdown_table

    check_device(device)
    # Before anything is loaded, because most mistakes are in this file.
    suite = load_suite(config)
    if models and suite.text_features is not None:
        raise ValueError(
            f"The suite {suite.name} is made of features, which {suite.text_features.model} computed; leave --model "
            "out."
        )
    with contextlib.ExitStack() as stack:
        for model in dict.fromkeys(models or suite.models or (None,)):
            stack.enter_context(loading(model))
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
            metrics=metrics or None,
        )
    # What is graver was on the log before the evaluation began.
    if notes := [finding for finding in result.findings if finding.severity == "note"]:
        for line in format_findings(notes):
            print(printable(line), file=sys.stderr)
    if result.skipped:
        report(f"Skipped: {'; '.join(result.skipped)}.")
    table = markdown_table(result.records, metrics or None, published=published, averages=result.averages)
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        Console(highlight=False).print(Markdown(table))
    else:
        print(table)
    if output is not None:
        report(f"The report, with all tables and figures: {(output / REPORT_NAME).resolve()}")


def compare(
    a: Annotated[
        Path,
        typer.Argument(metavar="A.jsonl", help="The results.jsonl of an evaluation, with its folder scores."),
    ],
    b: Annotated[
        Path | None,
        typer.Argument(metavar="B.jsonl", help="That of another one.", show_default="the first one again"),
    ] = None,
    method_a: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take only this method of A.", show_default="all")
    ] = None,
    method_b: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take only this method of B.", show_default="all")
    ] = None,
    model_a: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Take only this model of A.", show_default="all")
    ] = None,
    model_b: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Take only this model of B.", show_default="all")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            # Those of `comparison.COMPARABLE`, which takes seconds to import.
            help="The metric to compare: auroc, fpr95, fpr95_ood_positive, aupr_in, aupr_out, detection_accuracy, "
            "id_accuracy, aurc, oscr or ccr_at_fpr1; of shifted sets accuracy or rejected_at_tpr95; with these as ID "
            "auroc_full_spectrum or fpr95_full_spectrum.",
        ),
    ] = "auroc",
    resamples: Annotated[int, typer.Option(metavar="N", min=1, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of these draws.")] = 0,
    by_seed: Annotated[
        bool, typer.Option("--by-seed", help="Show each seed of the suite, with intervals, in place of their means.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON in place of tables.")] = False,
) -> None:
    """Compare two evaluations, or two methods or models of one, on the same images by the paired bootstrap."""
    if b is None and method_a == method_b and model_a == model_b:
        raise typer.BadParameter(
            "Name a second file, or two methods (--method-a, --method-b) or models (--model-a, --model-b) of A.",
            param_hint="'B.jsonl'",
        )
    from .evaluation import comparison

    result = comparison.compare(
        a,
        b,
        metric,
        resamples,
        seed,
        method_a=method_a,
        method_b=method_b,
        model_a=model_a,
        model_b=model_b,
    )
    if as_json:
        found = {**asdict(result), "over_seeds": [asdict(one) for one in result.over_seeds()]}
        print(json.dumps(found, indent=1))
        return
    _print_comparisons(result, by_seed)
    for sentence in result.left_out:
        report(sentence)


def _print_suites() -> None:
    from .evaluation.suite import ready_suites

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, description in ready_suites().items():
        table.add_row(Text(name), Text(description))
    Console(highlight=False).print(table)


def _print_comparisons(result: "ComparisonResult", by_seed: bool) -> None:
    """Print a table for each suite and pair of rows, of means over seeds if there are several."""
    over_seeds = result.over_seeds()
    by_seed = by_seed or all(one.seeds == 1 for one in over_seeds)
    tables: dict[tuple[str, str, str], list[Comparison | ComparisonOverSeeds]] = {}
    for one in over_seeds:
        own = tables.setdefault((one.suite, one.a, one.b), [])
        if by_seed:
            same = (one.suite, one.a, one.b, one.group, one.set)
            every = (*result.comparisons, *result.averages)
            own += [each for each in every if (each.suite, each.a, each.b, each.group, each.set) == same]
        else:
            own.append(one)
    console = Console(highlight=False)
    first = result.comparisons[0]
    for (suite, a, b), own in tables.items():
        seeds = {one.seed for one in result.comparisons if (one.suite, one.a, one.b) == (suite, a, b)}
        which = f"seed {min(seeds)}" if len(seeds) == 1 else f"{len(seeds)} seeds"
        for text in (f"{first.metric} on {suite}, {which}", f"A = {a}", f"B = {b}"):
            console.print(Text(printable(text)))
        console.print(_comparison_table(own))
        console.print()
    note = "± is the standard deviation of B - A over seeds; --by-seed shows intervals and p of each."
    if by_seed:
        note = f"Paired bootstrap over images, {first.resamples:,} resamples; p is two-sided, for each line by itself."
    console.print(Text(note))


def _comparison_table(lines: "Sequence[Comparison | ComparisonOverSeeds]") -> Table:
    from .evaluation.comparison import Comparison

    table = Table(box=None, pad_edge=False)
    rows = []
    for line in lines:
        row = {"group": line.group, "set": line.set}
        if isinstance(line, Comparison) and len({one.seed for one in lines if isinstance(one, Comparison)}) > 1:
            row["seed"] = str(line.seed)
        row["A %"] = f"{100 * line.value_a:.2f}"
        row["B %"] = f"{100 * line.value_b:.2f}"
        row["B - A"] = f"{100 * line.difference:+.2f}"
        if isinstance(line, Comparison):
            row[f"{line.confidence:.0%} interval"] = f"{100 * line.low:+.2f} to {100 * line.high:+.2f}"
            row["p"] = _readable_p(line)
        else:
            row["±"] = "" if line.deviation is None else f"{100 * line.deviation:.2f}"
            row["B > A"] = f"{line.higher} of {line.seeds}"
        rows.append(row)
    for heading in rows[0]:
        is_text = heading in ("group", "set")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row.values()))
    return table


def _readable_p(comparison: "Comparison") -> str:
    # No more digits than the number of resamples can show.
    digits = min(4, max(2, math.ceil(math.log10(comparison.resamples + 1))))
    return f"{comparison.p_value:.{digits}f}"


__all__ = ["compare", "evaluate"]
