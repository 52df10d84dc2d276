# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of evaluation results: Markdown and LaTeX to read, CSV to compute with.

Rows are pairs of model and method, columns are the sets, near OOD apart from far OOD. Averages are unweighted means
over the sets of one group; images of several sets are never pooled. Every FPR says which images count as positive.
"""

import csv
import difflib
import io
import itertools
import json
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .published import PublishedResult, published_results

Record = Mapping[str, Any]

AVERAGE = "average"
PUBLISHED_NOTE = (
    "Printed in papers, not computed here: weights, prompts, class names and images may differ from those above."
)

# Of each metric, what it is called and which way is better; {…} are conventions of the record.
_METRICS: Mapping[str, tuple[str, Literal["↑", "↓", ""]]] = {
    "auroc": ("AUROC", "↑"),
    "fpr95": ("FPR{level}, {positive} positive, {rule} rule", "↓"),
    "fpr95_ood_positive": ("FPR{level}, OOD positive, {rule} rule", "↓"),
    "aupr_in": ("AUPR-in, {aupr_rule}", "↑"),
    "aupr_out": ("AUPR-out, {aupr_rule}", "↑"),
    "detection_accuracy": ("Detection accuracy", "↑"),
    "id_accuracy": ("ID accuracy", "↑"),
    "aurc": ("AURC", "↓"),
    "oscr": ("OSCR", "↑"),
    "ccr_at_fpr1": ("CCR at 1 % FPR", "↑"),
    "auroc_full_spectrum": ("AUROC, full spectrum", "↑"),
    "fpr95_full_spectrum": ("FPR{level}, full spectrum, {positive} positive, {rule} rule", "↓"),
    "accuracy": ("Accuracy", "↑"),
    "rejected_at_tpr95": ("Rejected at the threshold that keeps {level} % of ID", "↓"),
}
METRICS = tuple(_METRICS)
# The last two are in the records of suites with covariate shift alone.
DEFAULT_METRICS = (
    "auroc",
    "fpr95",
    "fpr95_ood_positive",
    "id_accuracy",
    "auroc_full_spectrum",
    "fpr95_full_spectrum",
)
# A detector of other content should not notice another style, so that neither direction is better.
_SHIFTED_METRICS = {
    "accuracy": None,
    "rejected_at_tpr95": None,
    "auroc": "AUROC of ID against shifted, 50 = unnoticed",
}
# Of the nearest labels alone, which most methods agree on.
_LABEL_METRICS = ("accuracy", "id_accuracy")
_ID_METRICS = ("id_accuracy", "aurc")
_GROUPS = ("near", "far")
_SHIFT = "covariate-shift"
# What only suites with shifted sets have.
_METRICS_OF_SHIFT = ("accuracy", "rejected_at_tpr95", "auroc_full_spectrum", "fpr95_full_spectrum")


class Cell(NamedTuple):
    """One number of a table, as a share of one.

    Args:
        value (`float`): The metric, its mean over seeds.
        interval (`tuple[float, float]`, *optional*): The bootstrap interval, of one seed.
        deviation (`float`, *optional*): The standard deviation over seeds, of several.
        best (`bool`): Whether no other row shows a better number in this column.
    """

    value: float
    interval: tuple[float, float] | None
    deviation: float | None
    best: bool

    @property
    def number(self) -> str:
        """The value in percent."""
        return f"{100 * self.value:.1f}"

    @property
    def spread(self) -> str:
        """How sure it is, in percent: "[96.1, 97.8]", "± 0.4", or nothing."""
        if self.interval is not None:
            low, high = self.interval
            return f"[{100 * low:.1f}, {100 * high:.1f}]"
        return "" if self.deviation is None else f"± {100 * self.deviation:.1f}"

    def __str__(self) -> str:
        return f"{self.number} {self.spread}".rstrip()


class Row(NamedTuple):
    """One row of a table.

    Args:
        model (`str`): What the model is called.
        method (`str`): The method, with whatever else tells this row from others.
        cells (`tuple` of [`Cell`] or `None`): One for each column, None where nothing was measured.
    """

    model: str
    method: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class ResultTable:
    """One metric of one suite.

    Args:
        metric (`str`): One of `METRICS`.
        title (`str`): Its name with the convention, such as "FPR95, ID positive, exact rule".
        direction (`str`): "↑" where higher is better, "↓" where lower is, else "".
        columns (`tuple` of pairs): Group and name of each column: `("near", "SSB-hard")`, `("near", "average")`.
        rows (`tuple` of [`Row`]): One for each model and method.
    """

    metric: str
    title: str
    direction: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @property
    def heading(self) -> str:
        """The title with the direction."""
        return f"{self.title} {self.direction}".rstrip()


@dataclass(frozen=True)
class SuiteTables:
    """All tables of one suite in one convention.

    Args:
        suite (`str`): Name of the suite.
        heading (`str`): The name, with whatever tells it from another suite of the same name.
        notes (`tuple[str, ...]`): Sentences that say how to read the tables.
        tables (`tuple` of [`ResultTable`]): Detection, one table for each metric.
        shifted_tables (`tuple` of [`ResultTable`]): The same for sets of the same labels in another style.
    """

    suite: str
    heading: str
    notes: tuple[str, ...]
    tables: tuple[ResultTable, ...]
    shifted_tables: tuple[ResultTable, ...]


def result_tables(
    records: Iterable[Record], metrics: Sequence[str] | None = None, averages: Iterable[Record] = ()
) -> list[SuiteTables]:
    """Arrange records in tables.

    Args:
        records (iterable of `Mapping`): Results of any number of suites, models, methods, sets and seeds.
        metrics (`Sequence[str]`, *optional*):
            Out of `METRICS`, a table for each. By default AUROC, FPR95 in both meanings and the ID accuracy; where a
            suite has covariate shift, also AUROC and FPR95 with ID and shifted images together as ID.
        averages (iterable of `Mapping`, *optional*):
            Intervals of averages over the sets of a group, as [`~clipn_hf.evaluation.results.average_intervals`] gives
            them. Without, averages of one seed have none.

    Returns:
        list of [`SuiteTables`]: One for each suite and convention, in the order of the records.

    Raises:
        ValueError: There are no records, a metric is unknown, or two records are of the same thing.
    """
    asked = _check_metrics(metrics)
    suites: dict[str, list[Record]] = {}
    for record in records:
        suites.setdefault(_suite_key(record), []).append(record)
    intervals: dict[str, list[Record]] = {}
    for entry in averages:
        intervals.setdefault(_suite_key(entry), []).append(entry)
    if not suites:
        raise ValueError("`records` is empty; give the results of at least one evaluation.")
    names = [members[0]["suite"] for members in suites.values()]
    tables = []
    for (suite, members), name in zip(suites.items(), names, strict=True):
        digest = str(members[0].get("suite_sha256"))[:8]
        heading = name if names.count(name) == 1 else f"{name} ({digest})"
        tables.append(_suite_tables(heading, members, asked, metrics is not None, intervals.get(suite, [])))
    return tables


def _suite_key(record: Record) -> str:
    return json.dumps([record["suite"], record.get("suite_sha256"), record["convention"]], sort_keys=True)


def _check_metrics(metrics: Sequence[str] | None) -> list[str]:
    if isinstance(metrics, str):
        raise ValueError(f"`metrics` must be a list of names, such as [{metrics!r}], but is the text {metrics!r}.")
    asked = list(dict.fromkeys(DEFAULT_METRICS if metrics is None else metrics))
    if not asked:
        raise ValueError(f"`metrics` is empty; give at least one of {', '.join(METRICS)}.")
    for metric in asked:
        metric_title(metric)
    return asked


def markdown_table(
    records: Iterable[Record],
    metrics: Sequence[str] | None = None,
    published: bool = False,
    averages: Iterable[Record] = (),
) -> str:
    """Write the tables of records in Markdown, in percent, the best number of each column bold.

    Args:
        records (iterable of `Mapping`): Results of any number of suites, models, methods, sets and seeds.
        metrics (`Sequence[str]`, *optional*):
            Out of `METRICS`, a table for each. By default AUROC, FPR95 in both meanings and the ID accuracy; where a
            suite has covariate shift, also AUROC and FPR95 with ID and shifted images together as ID.
        published (`bool`, *optional*, defaults to `False`):
            Whether published results on the same suites follow, in tables of their own.
        averages (iterable of `Mapping`, *optional*): As for [`result_tables`].

    Returns:
        `str`: Headings, notes and tables, ending in a line break.

    Raises:
        ValueError: As [`result_tables`].
    """
    blocks = []
    for suite in result_tables(records, metrics, averages):
        blocks += [f"### {escape_markdown(suite.heading)}", escape_markdown(" ".join(suite.notes))]
        blocks += [_markdown(table) for table in suite.tables]
        if suite.shifted_tables:
            blocks += ["**Covariate shift**: the same labels in another style.", *map(_markdown, suite.shifted_tables)]
        if published:
            blocks += _published(suite.suite, _check_metrics(metrics))
    return "\n\n".join(blocks) + "\n"


def _published(suite: str, metrics: Sequence[str]) -> list[str]:
    results = published_results(suite)
    grids = []
    for metric in metrics:
        header, rows, texts = published_rows(results, metric)
        if rows:
            escaped = [[escape_markdown(cell) for cell in row] for row in [header, *rows]]
            grids.append(grid(escaped[0], escaped[1:], texts))
    if not grids:
        return [escape_markdown(nothing_published(suite))]
    sources = "\n".join(
        f"{number}. {escape_markdown(text)}" for number, text in enumerate(published_sources(results), 1)
    )
    return [f"#### Published on {escape_markdown(suite)}", PUBLISHED_NOTE, *grids, sources]


def nothing_published(suite: str) -> str:
    """Say that there is nothing to print beside our numbers.

    Args:
        suite (`str`): Name of the suite.

    Returns:
        `str`: A sentence.
    """
    return f"No published results on the suite {suite} are known here for these metrics."


def latex_table(
    records: Iterable[Record], metrics: Sequence[str] | None = None, averages: Iterable[Record] = ()
) -> str:
    """Write the tables of records in LaTeX, for the package booktabs, in percent, the best of each column bold.

    Args:
        records (iterable of `Mapping`): Results of any number of suites, models, methods, sets and seeds.
        metrics (`Sequence[str]`, *optional*):
            Out of `METRICS`, a table for each. By default AUROC, FPR95 in both meanings and the ID accuracy; where a
            suite has covariate shift, also AUROC and FPR95 with ID and shifted images together as ID.
        averages (iterable of `Mapping`, *optional*): As for [`result_tables`].

    Returns:
        `str`: One `table` environment for each suite and metric, ending in a line break.

    Raises:
        ValueError: As [`result_tables`].
    """
    blocks = ["% These tables need \\usepackage{booktabs}."]
    for suite in result_tables(records, metrics, averages):
        blocks += [_latex(suite, table) for table in (*suite.tables, *suite.shifted_tables)]
    return "\n\n".join(blocks) + "\n"


_CSV_COLUMNS = (
    *("suite", "suite_sha256", "date", "model", "revision", "weights_sha256", "dtype", "device", "method"),
    *("settings", "templates", "negatives", "labels", "labels_sha256", "seed", "id_set", "id_images", "id_sha256"),
    *("group", "set", "images", "unreadable", "excluded", "expected", "set_sha256", "metric", "value", "low", "high"),
    *("confidence", "resamples", "tpr", "fpr_positive", "fpr_rule", "aupr_rule"),
)


def csv_table(records: Iterable[Record]) -> str:
    """Write records as CSV in long form: one line for each metric of each record, shares of one, not rounded.

    Args:
        records (iterable of `Mapping`): Results of any number of suites, models, methods, sets and seeds.

    Returns:
        `str`: A header and the lines. `fpr_positive`, `fpr_rule` and `aupr_rule` are empty where they do not matter.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        model, measured, id_set, convention = (record[key] for key in ("model", "set", "id_set", "convention"))
        bootstrap = record.get("bootstrap") or {}
        for metric, numbers in record["metrics"].items():
            rated = metric.startswith("fpr")
            positive = "ood" if metric == "fpr95_ood_positive" else convention["fpr_positive"]
            writer.writerow(
                {
                    **{key: record.get(key) for key in ("suite", "suite_sha256", "date", "method", "seed")},
                    "model": public_name(str(model["id"] or model["class"])),
                    **{key: model.get(key) for key in ("revision", "weights_sha256", "dtype", "device")},
                    "settings": json.dumps(record["settings"], sort_keys=True),
                    "templates": json.dumps(record.get("templates"), ensure_ascii=False),
                    "negatives": _json_or_nothing(record.get("negatives")),
                    "labels": record["labels"]["count"],
                    "labels_sha256": record["labels"].get("sha256"),
                    "id_set": id_set["name"],
                    "id_images": id_set["images"],
                    "id_sha256": id_set.get("sha256"),
                    "set": measured["name"],
                    "set_sha256": measured.get("sha256"),
                    **{key: measured.get(key) for key in ("group", "images", "unreadable", "excluded", "expected")},
                    "metric": metric,
                    **{key: numbers.get(key) for key in ("value", "low", "high")},
                    "confidence": bootstrap.get("confidence"),
                    "resamples": bootstrap.get("resamples"),
                    "tpr": convention["tpr"] if rated or metric == "rejected_at_tpr95" else None,
                    "fpr_positive": positive if rated else None,
                    "fpr_rule": convention["fpr_rule"] if rated else None,
                    "aupr_rule": convention["aupr_rule"] if metric.startswith("aupr") else None,
                }
            )
    return stream.getvalue()


def _json_or_nothing(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def metric_title(metric: str, convention: Mapping[str, Any] | None = None) -> str:
    """Name a metric in full.

    Args:
        metric (`str`): One of `METRICS`.
        convention (`Mapping`, *optional*): `record["convention"]`. Defaults to the project's own.

    Returns:
        `str`: Such as "FPR95, ID positive, exact rule".

    Raises:
        ValueError: The metric is unknown.
    """
    if metric not in _METRICS:
        close = difflib.get_close_matches(str(metric), METRICS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"`metrics` must be among {', '.join(METRICS)}, but one is {metric!r}{hint}")
    convention = convention or {}
    return _METRICS[metric][0].format(
        level=f"{100 * convention.get('tpr', 0.95):g}",
        positive=convention.get("fpr_positive", "id").upper(),
        rule=convention.get("fpr_rule", "exact"),
        aupr_rule=convention.get("aupr_rule", "average_precision").replace("_", " "),
    )


def row_names(records: Iterable[Record]) -> dict[str, tuple[str, str]]:
    """Name the pairs of model and method that records are of, so that no two names are alike.

    Args:
        records (iterable of `Mapping`): Results.

    Returns:
        `dict`: For each [`row_key`], the model and the method with whatever settings tell it from others.
    """
    firsts: dict[str, Record] = {}
    for record in records:
        firsts.setdefault(row_key(record), record)
    # Revisions, digests and the like tell models apart.
    models: dict[str, Mapping[str, Any]] = {}
    for record in firsts.values():
        models.setdefault(json.dumps(record["model"], sort_keys=True), record["model"])
    short = {key: public_name(str(model["id"] or model["class"])) for key, model in models.items()}
    for name in set(short.values()):
        alike = [key for key in models if short[key] == name]
        if len(alike) > 1:
            differing = _differences([_flatten(models[key]) for key in alike])
            texts = [text or _folder(models[key]) for key, text in zip(alike, differing, strict=True)]
            short.update(zip(alike, _told_apart(name, texts), strict=True))

    names: dict[str, tuple[str, str]] = {}
    pairs: dict[tuple[str, str], list[str]] = {}
    for key, record in firsts.items():
        pair = short[json.dumps(record["model"], sort_keys=True)], str(record["method"])
        pairs.setdefault(pair, []).append(key)
    for (model, method), keys in pairs.items():
        settings = [
            {
                **firsts[key]["settings"],
                **{name: firsts[key].get(name) for name in ("templates", "no_templates")},
                **{f"negatives {name}": value for name, value in _mining_settings(firsts[key]).items()},
            }
            for key in keys
        ]
        texts = _differences([_flatten(each) for each in settings])
        for key, name in zip(keys, _told_apart(method, texts), strict=True):
            names[key] = (model, name)
    order = list(models)
    ranked = sorted(firsts, key=lambda key: order.index(json.dumps(firsts[key]["model"], sort_keys=True)))
    return {key: names[key] for key in ranked}


def row_key(record: Record) -> str:
    """Identify the model and the method of a record, with all their settings.

    Args:
        record (`Mapping`): A result.

    Returns:
        `str`: The same for records of the same row, that is for all sets and seeds.
    """
    identity = [record["model"], record["method"], record["settings"]]
    identity += [record.get("templates"), record.get("no_templates")]
    # How many were mined, and which, depends on the labels, which each seed may draw anew.
    if mining := _mining_settings(record):
        identity.append(mining)
    return json.dumps(identity, sort_keys=True)


def _mining_settings(record: Record) -> Mapping[str, Any]:
    """How the negative labels of a record were found; empty where there are none."""
    negatives = record.get("negatives")
    return {} if negatives is None else negatives["settings"]


def public_name(name: str) -> str:
    """Keep of a path only the last part, which says enough and gives nothing away.

    Args:
        name (`str`): An id on the Hub or a path.

    Returns:
        `str`: The id, or the last part of the path.
    """
    is_path = os.path.isabs(name) or name.startswith(("~", ".")) or "\\" in name or name.count("/") > 1
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name if is_path else name


def _flatten(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {}
    for name, value in values.items():
        # That something is not known says nothing about a row.
        if value is None:
            continue
        if name == "id":
            name, value = "in", public_name(f"./{os.path.dirname(str(value))}")
        if name.endswith("sha256"):
            name, value = name.removesuffix("_sha256"), str(value)[:8]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        texts[name.replace("_", " ")] = text if len(text) <= 60 else f"{text[:59]}…"
    return texts


def _differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Write of each mapping the entries that are not the same in all."""
    keys = list(dict.fromkeys(key for each in facts for key in each))
    differing = [key for key in keys if len({each.get(key) for each in facts}) > 1]
    return [", ".join(f"{key} {each[key]}" for key in differing if key in each) for each in facts]


def _folder(model: Mapping[str, Any]) -> str:
    """The folder that a local model is in, or nothing for a model of the Hub."""
    name = str(model["id"] or "")
    return f"in {_flatten({'id': name})['in']}" if public_name(name) != name else ""


def _told_apart(name: str, texts: Sequence[str]) -> list[str]:
    """Add to a name what differs, and a number where that leaves two alike, as shortened digests and texts may."""
    found: list[str] = []
    for text in texts:
        full = f"{name} ({text})" if text else name
        numbered = (f"{full} (no. {number})" for number in itertools.count(2))
        found.append(next(each for each in itertools.chain([full], numbered) if each not in found))
    return found


def _suite_tables(
    heading: str, records: Sequence[Record], metrics: Sequence[str], is_asked: bool, averages: Sequence[Record]
) -> SuiteTables:
    names = row_names(records)
    values: dict[tuple[str, str, str, int], Record] = {}
    sets: dict[str, dict[str, None]] = {}
    for record in records:
        group, name = record["set"]["group"], record["set"]["name"]
        sets.setdefault(group, {})[name] = None
        place = row_key(record), group, name, record["seed"]
        if place in values:
            model, method = names[place[0]]
            raise ValueError(
                f"Two records are of {method} with {model} on {name}, seed {record['seed']}, suite {record['suite']}; "
                "keep the newer one."
            )
        values[place] = record
    seeds = sorted({record["seed"] for record in records})
    by_seeds = len(seeds) > 1
    convention = records[0]["convention"]
    intervals = {
        (row_key(entry), entry["group"], metric): (numbers["low"], numbers["high"])
        for entry in averages
        # Of other sets the mean is another one.
        if entry["seed"] in seeds and sorted(entry["sets"]) == sorted(sets.get(entry["group"], ()))
        for metric, numbers in entry["metrics"].items()
    }

    def measured(row: str, group: str, name: str, metric: str) -> dict[int, Mapping[str, Any]]:
        found = {seed: values.get((row, group, name, seed)) for seed in seeds}
        numbers = {seed: record["metrics"].get(metric) for seed, record in found.items() if record is not None}
        return {seed: each for seed, each in numbers.items() if each is not None}

    def cell(row: str, group: str, name: str, metric: str) -> Cell | None:
        numbers = measured(row, group, name, metric)
        if not numbers:
            return None
        if by_seeds:
            return _mean([each["value"] for each in numbers.values()])
        (only,) = numbers.values()
        low, high = only.get("low"), only.get("high")
        return Cell(only["value"], None if low is None or high is None else (low, high), None, best=False)

    def average(row: str, group: str, metric: str) -> Cell | None:
        numbers = [measured(row, group, name, metric) for name in sets[group]]
        complete = [seed for seed in seeds if all(seed in each for each in numbers)]
        if not complete:
            return None
        mean = _mean([statistics.fmean(each[seed]["value"] for each in numbers) for seed in complete])
        return mean if by_seeds else mean._replace(interval=intervals.get((row, group, metric)))

    def build(metric: str, groups: Sequence[str], title: str | None = None) -> ResultTable | None:
        direction = "" if title else _METRICS[metric][1]
        columns: list[tuple[str, str]] = []
        found: list[list[Cell | None]] = []
        for group in groups:
            for name in sets.get(group, ()):
                columns.append((group, name))
                found.append([cell(row, group, name, metric) for row in names])
            if len(sets.get(group, ())) > 1:
                columns.append((group, AVERAGE))
                found.append([average(row, group, metric) for row in names])
        if metric in _ID_METRICS:
            # They are of the ID images alone, whatever these are compared with.
            columns = [("", records[0]["id_set"]["name"])]
            found = [[next((each for each in row if each is not None), None) for row in zip(*found, strict=True)]]
        if all(each is None for column in found for each in column):
            return None
        cells = [_mark_best(column, direction) for column in found]
        rows = [
            Row(*pair, tuple(column[index] for column in cells))
            for index, pair in enumerate(names.values())
            if any(column[index] is not None for column in cells)
        ]
        if metric in _LABEL_METRICS:
            rows = _merge_methods(rows)
        return ResultTable(metric, title or metric_title(metric, convention), direction, tuple(columns), tuple(rows))

    tables = [build(metric, _GROUPS) for metric in metrics]
    shifted = [build(metric, [_SHIFT], title) for metric, title in _SHIFTED_METRICS.items()]
    kept = [table for table in (*tables, *shifted) if table is not None]
    missing = [metric for metric in metrics if metric not in {table.metric for table in kept}] if is_asked else []
    is_unshifted = _SHIFT not in sets
    absent: dict[str, list[str]] = {}
    for metric in missing:
        reason = " (there are no shifted sets)" if is_unshifted and metric in _METRICS_OF_SHIFT else ""
        absent.setdefault(f"Not in these results{reason}", []).append(metric_title(metric, convention))
    # Titles have commas in them.
    absences = [f"{beginning}: {'; '.join(titles)}." for beginning, titles in absent.items()]
    return SuiteTables(
        suite=records[0]["suite"],
        heading=heading,
        notes=(*_notes(records, seeds, kept), *absences),
        tables=tuple(table for table in tables if table is not None),
        shifted_tables=tuple(table for table in shifted if table is not None),
    )


def _merge_methods(rows: Sequence[Row]) -> list[Row]:
    """Make one row of the methods of a model that have the same numbers, as most have."""
    merged: list[Row] = []
    for model in dict.fromkeys(row.model for row in rows):
        own: dict[tuple[Cell | None, ...], list[str]] = {}
        for row in rows:
            if row.model == model:
                own.setdefault(row.cells, []).append(row.method)
        cells, methods = max(own.items(), key=lambda item: len(item[1]))
        if len(methods) == 1:
            merged += [row for row in rows if row.model == model]
            continue
        del own[cells]
        merged += [Row(model, ", ".join(others), other_cells) for other_cells, others in own.items()]
        merged.append(Row(model, "every other method" if own else "every method", cells))
    return merged


def _mean(values: Sequence[float]) -> Cell:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), None, deviation, best=False)


def _mark_best(column: Sequence[Cell | None], direction: str) -> list[Cell | None]:
    shown = [round(100 * cell.value, 1) for cell in column if cell is not None]
    if not direction or len(set(shown)) < 2:
        return list(column)
    best = max(shown) if direction == "↑" else min(shown)
    return [None if cell is None else cell._replace(best=round(100 * cell.value, 1) == best) for cell in column]


def _notes(records: Sequence[Record], seeds: Sequence[int], tables: Sequence[ResultTable]) -> tuple[str, ...]:
    id_sets = sorted({(record["id_set"]["name"], record["id_set"]["images"]) for record in records})
    labels = sorted({record["labels"]["count"] for record in records})
    images = _span([count for _, count in id_sets])
    notes = [f"ID: {', '.join(dict.fromkeys(name for name, _ in id_sets))}, {images} images, {_span(labels)} labels."]
    notes.append("In percent.")
    averages = [
        row.cells[place]
        for table in tables
        for place, (_, name) in enumerate(table.columns)
        if name == AVERAGE
        for row in table.rows
    ]
    bootstraps = [record.get("bootstrap") for record in records]
    if len(seeds) > 1:
        notes.append(f"± is the standard deviation over {len(seeds)} seeds.")
    elif any(bootstraps):
        levels = {f"{100 * each['confidence']:g}" for each in bootstraps if each}
        resamples = _span(sorted({each["resamples"] for each in bootstraps if each}))
        notes.append(
            f"In brackets: the {' or '.join(sorted(levels))} % bootstrap interval over images ({resamples} resamples)."
        )
    if averages:
        is_bare = len(seeds) == 1 and any(bootstraps) and all(cell is None or not cell.interval for cell in averages)
        notes.append(
            f"An average is the plain mean over the sets of its group{', without an interval' if is_bare else ''}."
        )
    notes += _negatives(records)
    notes += _unreadable(records)
    remarks = {record["set"]["name"]: record["set"].get("note") for record in records}
    notes += [f"{name}: {remark.strip().rstrip('.')}." for name, remark in remarks.items() if remark]
    return tuple(notes)


def _negatives(records: Sequence[Record]) -> list[str]:
    """Say in a sentence how many negative labels each method has, and of which corpus."""
    counts: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if (negatives := record.get("negatives")) is not None:
            place = str(record["method"]), str(negatives["settings"].get("corpus"))
            counts.setdefault(place, []).append(negatives["count"])
    listed = [f"{_span(found)} for {method} (corpus {corpus})" for (method, corpus), found in counts.items()]
    return [f"Negative labels: {', '.join(listed)}."] if listed else []


def _unreadable(records: Sequence[Record]) -> list[str]:
    """Say in a sentence how many images could not be read, in each set."""
    counts: dict[str, list[int]] = {}
    for record in records:
        for used in (record["id_set"], record.get("fit_set"), record["set"]):
            if used:
                counts.setdefault(used["name"], []).append(used.get("unreadable") or 0)
    listed = [(f"{_span(found)} of {name}", max(found)) for name, found in counts.items() if any(found)]
    if not listed:
        return []
    texts = [text for text, _ in listed]
    count, rest = texts[0].split(" of ", 1)
    total = sum(most for _, most in listed)
    texts[0] = f"{count} unreadable image{'' if listed[0][1] == 1 else 's'} of {rest}"
    sentence = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return [f"{sentence} {'was' if total == 1 else 'were'} left out."]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def escape_markdown(text: str) -> str:
    """Write a text so that Markdown shows it as it is.

    Args:
        text (`str`): Anything; line breaks become spaces.

    Returns:
        `str`
    """
    text = " ".join(text.split())
    text = re.sub(r"([\\`*|<\[\]])", r"\\\1", text)
    # Between letters an underscore is one; elsewhere it may begin emphasis.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", text)


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Write a Markdown table whose first columns are texts and whose others are numbers.

    Args:
        header (`Sequence[str]`): The names of the columns.
        rows (`Iterable[Sequence[str]]`): Cells, as [`escape_markdown`] gives them.
        texts (`int`): How many columns are texts.

    Returns:
        `str`
    """
    alignment = [*["---"] * texts, *["---:"] * (len(header) - texts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, alignment, *rows])


def _markdown(table: ResultTable) -> str:
    header = [table.heading, "", *(column_name(group, name) for group, name in table.columns)]
    rows, last = [], None
    for row in table.rows:
        cells = ["–" if cell is None else _markdown_number(cell) for cell in row.cells]
        model = "" if row.model == last else row.model
        rows.append([escape_markdown(model), escape_markdown(row.method), *cells])
        last = row.model
    return grid([escape_markdown(cell) for cell in header], rows, texts=2)


def _markdown_number(cell: Cell) -> str:
    return f"**{cell.number}** {cell.spread}".rstrip() if cell.best else str(cell)


def column_name(group: str, name: str) -> str:
    """Name a column in one line.

    Args:
        group (`str`): The group of its set: "near", "far", "covariate-shift", or "" where there is none.
        name (`str`): The set, or `AVERAGE`.

    Returns:
        `str`: Such as "near: NINCO" or "far average".
    """
    if group not in _GROUPS:
        return name
    return f"{group} {name}" if name == AVERAGE else f"{group}: {name}"


def published_sources(results: Sequence[PublishedResult]) -> list[str]:
    """List the sources of published results, with the notes on each.

    Args:
        results (sequence of [`PublishedResult`]): Of one benchmark.

    Returns:
        `list[str]`: One text for each number in the column `source` of [`published_rows`].
    """
    return list(dict.fromkeys(map(_source, results)))


def _source(result: PublishedResult) -> str:
    return f"{result.source.rstrip('.')}. {result.note.strip()}".strip()


def published_rows(results: Sequence[PublishedResult], metric: str) -> tuple[list[str], list[list[str]], int]:
    """Arrange published results in one table, digits as printed, FPR with its convention.

    Args:
        results (sequence of [`PublishedResult`]): Of one benchmark.
        metric (`str`): One of `METRICS`.

    Returns:
        `tuple`: The header; the rows, none where nothing is published; the number of columns that are texts.
    """
    sets = list(dict.fromkeys(name for result in results for name in result.results))
    sources = published_sources(results)
    rated = metric.startswith("fpr")
    rows = []
    for result in results:
        numbers = [result.results.get(name, {}).get(metric) for name in sets] + [result.average.get(metric)]
        if any(number is not None for number in numbers):
            # The convention is that of each source, hence a column.
            texts = [result.method, result.model, *([result.fpr_positive.upper()] if rated else [])]
            texts.append(str(sources.index(_source(result)) + 1))
            rows.append([*texts, *("–" if number is None else f"{number:.2f}" for number in numbers)])
    title, direction = metric_title(metric).split(",")[0] if rated else metric_title(metric), _METRICS[metric][1]
    header = [f"published {title} {direction}", "model", *(["positive"] if rated else []), "source", *sets, AVERAGE]
    return header, rows, len(header) - len(sets) - 1


_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "–": "--",
        "…": r"\ldots{}",
    }
)


def _escape_latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def _latex(suite: SuiteTables, table: ResultTable) -> str:
    groups: list[tuple[str, int]] = []
    for group, _ in table.columns:
        if groups and groups[-1][0] == group:
            groups[-1] = group, groups[-1][1] + 1
        else:
            groups.append((group, 1))
    titles = {"near": "near OOD", "far": "far OOD", "covariate-shift": "covariate shift", "": ""}
    spans, rules, column = ["", ""], [], 3
    for group, count in groups:
        spans.append(f"\\multicolumn{{{count}}}{{c}}{{{titles.get(group, _escape_latex(group))}}}")
        rules.append(f"\\cmidrule(lr){{{column}-{column + count - 1}}}")
        column += count
    body, last = [], None
    for row in table.rows:
        numbers = ["--" if cell is None else _latex_number(cell) for cell in row.cells]
        model = "" if row.model == last else row.model
        body.append(" & ".join([_escape_latex(model), _escape_latex(row.method), *numbers]) + r" \\")
        last = row.model
    caption = _escape_latex(f"{suite.heading}: {table.heading}. {' '.join(suite.notes)}")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(spans) + r" \\",
            "".join(rules),
            " & ".join([_escape_latex(table.heading), "method", *(_escape_latex(name) for _, name in table.columns)])
            + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_number(cell: Cell) -> str:
    number = f"\\textbf{{{cell.number}}}" if cell.best else cell.number
    return f"{number} {{\\scriptsize {_escape_latex(cell.spread)}}}" if cell.spread else number


__all__ = [
    "AVERAGE",
    "DEFAULT_METRICS",
    "METRICS",
    "PUBLISHED_NOTE",
    "Cell",
    "ResultTable",
    "Row",
    "SuiteTables",
    "column_name",
    "csv_table",
    "escape_markdown",
    "grid",
    "latex_table",
    "markdown_table",
    "metric_title",
    "nothing_published",
    "public_name",
    "published_rows",
    "published_sources",
    "result_tables",
    "row_key",
    "row_names",
]
