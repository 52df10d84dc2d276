# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one HTML file with everything in it, to be opened, sent and kept.

It has no scripts and loads nothing, and it follows the reader's choice of a light or a dark scheme. Whatever the
number of sets, it stays of a size that a browser opens: figures and images are shown for the hardest sets, numbers for
all.
"""

import base64
import html
import io
import itertools
import os
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial as bind
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..files import atomic_path
from ..images import ImageError, image_of, load_image
from ..methods.neglabel import effective_settings
from ..verdicts import looks_like, telling_negatives
from .contact_sheet import Tile, contact_sheet, fit_picture
from .figures import MISSING, draw_heat_map, draw_histograms, draw_risk_coverage, draw_roc, threshold_at
from .published import published_results
from .tables import (
    AVERAGE,
    DEFAULT_METRICS,
    METRICS,
    PUBLISHED_NOTE,
    ResultTable,
    metric_title,
    nothing_published,
    public_name,
    published_rows,
    published_sources,
    result_tables,
    row_key,
    row_names,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Evaluation

MAX_SETS = 12
MAX_SHEETS = 24
MAX_FINDINGS = 100
MAX_ITEMS = 20
MAX_LABELS = 200

_SHIFTED = "covariate-shift"
_COLUMNS = 6
_DPI = 150


class ReportedFinding(Protocol):
    """What the report reads of a finding of the doctor."""

    @property
    def severity(self) -> str: ...
    @property
    def check(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def items(self) -> tuple[str, ...]: ...


class ReportedSuite(Protocol):
    """What the report reads of a suite."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def reference(self) -> str | None: ...
    @property
    def protocol(self) -> str | None: ...


class ReportedResult(Protocol):
    """What the report reads of the result of an evaluation."""

    @property
    def suite(self) -> ReportedSuite: ...
    @property
    def evaluations(self) -> "Sequence[Evaluation]": ...
    @property
    def findings(self) -> Sequence[ReportedFinding]: ...
    @property
    def skipped(self) -> Sequence[str]: ...
    @property
    def averages(self) -> Sequence[Mapping[str, Any]]: ...


def write_report(
    path: str | os.PathLike[str], result: ReportedResult, max_tiles: int = 12, published: bool = False
) -> None:
    """Write the report of an evaluation as one HTML file.

    Figures and images are those of the first seed. Images that can no longer be read are left out.

    Args:
        path (`str` or `os.PathLike`): The file to write; one that is there is replaced.
        result ([`SuiteResult`]): What `evaluate_suite` returns.
        max_tiles (`int`, *optional*, defaults to 12): Images in each contact sheet of the worst mistakes; 0 for none.
        published (`bool`, *optional*, defaults to `False`): Whether to list published results on the same suite.

    Raises:
        ValueError: There are no evaluations, or `max_tiles` is negative.
        OSError: The file cannot be written.
    """
    if max_tiles < 0:
        raise ValueError(f"`max_tiles` must be at least 0, but is {max_tiles}.")
    if not result.evaluations:
        raise ValueError("`result.evaluations` is empty; a report needs at least one.")
    records = [evaluation.record for evaluation in result.evaluations]
    names = row_names(records)
    first_seed = records[0]["seed"]
    shown = [evaluation for evaluation in result.evaluations if evaluation.record["seed"] == first_seed]
    seeds = len({record["seed"] for record in records})
    of_seed = f" Of {seeds} seeds, seed {first_seed} is shown." if seeds > 1 else ""

    sections = [
        _summary(result, records, names),
        _section("Results", *_tables(result, records), _published(result.suite.name) if published else ""),
        _findings(result.findings),
        _figures(records, shown, names, of_seed),
        _set_details(shown, names, max_tiles, of_seed),
        _set_up(result, records),
    ]
    title = f"OOD detection: {result.suite.name}"
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )
    with atomic_path(path) as partial:
        # Names of files may hold bytes that are no text.
        partial.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _section(title: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{_escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _details(summary: str, *parts: str) -> str:
    return f"<details><summary>{_escape(summary)}</summary>\n{''.join(parts)}</details>\n"


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{_escape(text)}</p>\n"


def _grid(header: Sequence[str], rows: Iterable[Sequence[Any]], texts: int, kind: str = "") -> str:
    """Write a table whose first columns are texts and whose others are numbers."""

    def line(cells: Sequence[Any], tag: str) -> str:
        marks = ["" if index < texts else ' class="n"' for index in range(len(cells))]
        return "".join(f"<{tag}{mark}>{_escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{line(header, "th")}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _summary(
    result: ReportedResult, records: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str, str]]
) -> str:
    """Say what was evaluated, and what came out, in a few lines."""
    suite = result.suite
    best = _best_rows(records, names)
    means = {key: _group_means(records, key, "auroc") for key in names}
    items = []
    for key in best:
        model, method = names[key]
        values = []
        for group, value in means[key].items():
            rivals = [other for other, (owner, _) in names.items() if owner == model and group in means[other]]
            first = max(rivals, key=lambda other: means[other][group])
            is_beaten = round(100 * means[first][group], 1) > round(100 * value, 1)
            rival = f" ({_escape(names[first][1])}: {100 * means[first][group]:.1f})" if is_beaten else ""
            values.append(f"{group} OOD <b>{100 * value:.1f}</b>{rival}")
        items.append(f"<li><b>{_escape(method)}</b> with {_escape(model)}: AUROC {', '.join(values)}</li>")
    found = [finding.severity for finding in result.findings]
    counts = [f"{found.count(name)} {name}{'s' * (found.count(name) > 1)}" for name in _SEVERITIES if name in found]
    models = len({names[key][0] for key in names})
    methods = len({record["method"] for record in records})
    sets = len({(record["set"]["group"], record["set"]["name"]) for record in records})
    facts = [
        f"{models} model{'s' * (models > 1)}",
        f"{methods} method{'s' * (methods > 1)}",
        f"{sets} set{'s' * (sets > 1)} against {records[0]['id_set']['name']}",
        f"doctor: {', '.join(counts)}" if counts else "",
        str(max(record["date"] for record in records))[:10],
    ]
    chips = "".join(f'<span class="chip">{_escape(fact)}</span>' for fact in facts if fact)
    note = "AUROC in percent, the mean over the sets of a group; 50 is chance."
    heading = "In short"
    if len(names) > len(best):
        heading = "Best method of each model"
        note += (
            " Best is the highest mean of near and far OOD, both counted alike; where another method is better in one "
            "group, it stands in brackets. The choice was made on these very sets: expect less on others."
        )
    return (
        f"<header>\n<h1>OOD detection: {_escape(suite.name)}</h1>\n{_paragraph(suite.description, 'lead')}"
        f"<p>{chips}</p>\n<h3>{heading}</h3>\n<ul>\n{''.join(items)}</ul>\n"
        f"{_paragraph(note, 'note')}</header>\n"
    )


def _group_means(records: Sequence[Mapping[str, Any]], key: str, metric: str) -> dict[str, float]:
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        numbers = record["metrics"].get(metric)
        if row_key(record) == key and record["set"]["group"] != _SHIFTED and numbers is not None:
            sets = values.setdefault(record["set"]["group"], {})
            sets.setdefault(record["set"]["name"], []).append(numbers["value"])
    means = {group: statistics.fmean(map(statistics.fmean, sets.values())) for group, sets in values.items()}
    return {group: means[group] for group in ("near", "far") if group in means}


def _best_rows(records: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str, str]]) -> list[str]:
    """The row of each model with the best AUROC over near and far sets, both groups counted alike."""
    best: dict[str, tuple[float, str]] = {}
    for key, (model, _) in names.items():
        means = _group_means(records, key, "auroc")
        if not means:
            continue
        mean = statistics.fmean(means.values())
        if model not in best or mean > best[model][0]:
            best[model] = mean, key
    return [key for _, key in best.values()]


def _tables(result: ReportedResult, records: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = []
    compared = [record["metrics"] for record in records if record["set"]["group"] != _SHIFTED]
    metrics = [metric for metric in METRICS if any(metric in measured for measured in compared)]
    # Sets of another style alone have tables of their own, which come with any metric.
    for suite in result_tables(records, metrics or None, result.averages):
        parts.append(_paragraph(" ".join(suite.notes), "note"))
        by_metric = {table.metric: table for table in suite.tables}
        parts += [_result_table(by_metric[metric]) for metric in DEFAULT_METRICS if metric in by_metric]
        others = [_result_table(table) for metric, table in by_metric.items() if metric not in DEFAULT_METRICS]
        if suite.shifted_tables:
            parts.append("<h3>Covariate shift: the same labels in another style</h3>\n")
            parts += [_result_table(table) for table in suite.shifted_tables]
        if others:
            parts.append(_details("Other metrics", *others))
    return parts


def _result_table(table: ResultTable) -> str:
    groups = [(group, len(list(members))) for group, members in itertools.groupby(group for group, _ in table.columns)]
    titles = {"near": "near OOD", "far": "far OOD", _SHIFTED: "covariate shift", "": ""}
    spans = "".join(
        f'<th colspan="{count}" class="group">{_escape(titles.get(group, group))}</th>' for group, count in groups
    )
    names = "".join(
        f'<th class="n{" average" if name == AVERAGE else ""}">{_escape(name)}</th>' for _, name in table.columns
    )
    rows, last = [], None
    for row in table.rows:
        cells = []
        for (_, name), cell in zip(table.columns, row.cells, strict=True):
            kind = f"n{' average' if name == AVERAGE else ''}{' best' if cell is not None and cell.best else ''}"
            if cell is None:
                cells.append(f'<td class="{kind}">–</td>')
                continue
            spread = f' <span class="spread">{cell.spread}</span>' if cell.spread else ""
            cells.append(f'<td class="{kind}">{cell.number}{spread}</td>')
        model = "" if row.model == last else _escape(row.model)
        kind = ' class="first"' if model and last is not None else ""
        rows.append(f"<tr{kind}><td>{model}</td><th scope=row>{_escape(row.method)}</th>{''.join(cells)}</tr>")
        last = row.model
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="results">\n<caption>{_escape(table.heading)}, %</caption>\n'
        f"<thead><tr><td colspan=2></td>{spans}</tr>\n<tr><th>model</th><th>method</th>{names}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _published(suite: str) -> str:
    results = published_results(suite)
    parts = []
    for metric in DEFAULT_METRICS:
        header, rows, texts = published_rows(results, metric)
        if rows:
            parts.append(_grid(header, rows, texts, kind="published"))
    if not parts:
        return _paragraph(nothing_published(suite), "note")
    sources = "".join(f"<li>{_escape(source)}</li>" for source in published_sources(results))
    note = _paragraph(PUBLISHED_NOTE, "note")
    return f'<h3>Published</h3>\n{note}{"".join(parts)}<ol class="note">{sources}</ol>\n'


def _findings(findings: Sequence[ReportedFinding]) -> str:
    parts = []
    for finding in findings[:MAX_FINDINGS]:
        kind = finding.severity if finding.severity in _SEVERITIES else "note"
        items = [*finding.items[:MAX_ITEMS]]
        more = f" and {len(finding.items) - MAX_ITEMS} more" if len(finding.items) > MAX_ITEMS else ""
        listed = f"<br><small>{_escape(', '.join(items) + more)}</small>" if items else ""
        parts.append(
            f'<li class="{kind}"><span class="badge">{_escape(finding.severity)}</span> '
            f"<code>{_escape(finding.check)}</code> {_escape(finding.message)}{listed}</li>\n"
        )
    more = f"{len(findings) - MAX_FINDINGS} more are not listed." if len(findings) > MAX_FINDINGS else ""
    listing = f'<ul class="findings">\n{"".join(parts)}</ul>' if parts else ""
    return _section("What the doctor found", listing, _paragraph(more) if more else "")


def _figures(
    records: Sequence[Mapping[str, Any]],
    shown: "Sequence[Evaluation]",
    names: Mapping[str, tuple[str, str]],
    of_seed: str,
) -> str:
    # The scores of the ID images are the same whatever set they are compared with.
    once = {row_key(evaluation.record): evaluation for evaluation in reversed(shown)}
    curves = [once[key] for key in names if key in once]
    detection = [record for record in records if record["set"]["group"] != _SHIFTED]
    drawn = _draw([lambda: draw_heat_map(detection), lambda: draw_risk_coverage(curves)])
    if drawn is None:
        return _section("Figures", _paragraph(MISSING, "note"))
    heat_map, risk_coverage = drawn
    return _section(
        "Figures",
        _figure(heat_map, "AUROC of each method on each set; the same numbers as in the table."),
        _figure(
            risk_coverage,
            f"Error rate of the nearest label among the accepted ID images, from the surest to all.{of_seed}",
        ),
    )


class _Picture(NamedTuple):
    """A figure to show: its address, and the width in CSS pixels at which its letters are as large as those around."""

    address: str
    width: int | None = None


def _draw(drawings: "Sequence[Callable[[], Figure]]") -> list[_Picture] | None:
    """Draw figures as data URIs, or return None without matplotlib."""
    pictures = []
    try:
        for draw in drawings:
            stream = io.BytesIO()
            with warnings.catch_warnings():
                # The font lacks letters of some scripts; a box stands in their place.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure = draw()
                figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
            pictures.append(_Picture(_data_uri(stream.getvalue(), "png"), round(96 * figure.get_size_inches()[0])))
    except ImportError:
        return None
    return pictures


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(picture: _Picture, caption: str, kind: str = "") -> str:
    width = "" if picture.width is None else f' width="{picture.width}"'
    return (
        f'<figure class="{kind}"><img src="{picture.address}"{width} alt="{_escape(caption)}" loading="lazy">'
        f"<figcaption>{_escape(caption)}</figcaption></figure>\n"
    )


def _set_details(
    shown: "Sequence[Evaluation]", names: Mapping[str, tuple[str, str]], max_tiles: int, of_seed: str
) -> str:
    """Show the hardest sets: curves of all methods, and what the best method of each model got wrong."""
    records = [evaluation.record for evaluation in shown]
    best = _best_rows(records, names)
    if not best:
        return ""
    sets: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for evaluation in shown:
        place = evaluation.record["set"]["group"], evaluation.record["set"]["name"]
        sets.setdefault(place, {})[row_key(evaluation.record)] = evaluation
    places = [place for group in ("near", "far") for place in sets if place[0] == group]
    hardest = sorted(places, key=lambda place: max(_auroc(evaluation) for evaluation in sets[place].values()))
    kept = [place for place in places if place in hardest[:MAX_SETS]]
    with_sheets = hardest[: max(1, MAX_SHEETS // len(best) - 1)]

    first_place = next(iter(sets))
    id_parts = [
        _mistakes(sets[first_place][key], names[key], max_tiles, of_id=True)
        for key in best[:MAX_SHEETS]
        if key in sets[first_place]
    ]
    parts = [f"<h3>ID: {_escape(records[0]['id_set']['name'])}</h3>\n", *id_parts] if any(id_parts) else []
    for place in kept:
        evaluations = sets[place]
        group, name = place
        parts.append(f"<h3>{_escape(name)} <small>{group} OOD</small></h3>\n")
        if remark := next(iter(evaluations.values())).record["set"].get("note"):
            parts.append(_paragraph(remark, "note"))
        winner = max(evaluations, key=lambda key: _auroc(evaluations[key]))
        model, method = names[winner]
        drawn = _draw([bind(draw_roc, list(evaluations.values())), bind(draw_histograms, evaluations[winner])])
        if drawn is not None:
            roc, histograms = drawn
            parts.append(
                '<div class="pair">'
                + _figure(roc, f"ROC curves on {name}; dots mark where 95 % of the ID images are kept.")
                + _figure(histograms, f"Scores on {name} by its best method, {method} with {model}.")
                + "</div>\n"
            )
        if place in with_sheets:
            parts += [
                _mistakes(evaluations[key], names[key], max_tiles, of_id=False) for key in best if key in evaluations
            ]
    if not any(parts):
        return ""
    left = f" The {len(kept)} hardest of {len(places)} sets are shown." if len(kept) < len(places) else ""
    introduction = (
        "The worst mistakes of the best method of each model. A picture that scores above the threshold which keeps "
        "95 % of the ID images counts as unknown; a cross marks wrong verdicts, the label is the nearest one. Where a "
        "method of the evaluation has negative labels, it says which of them a picture looks like, with their shares "
        "among all labels and negative labels at once; where a score compares the labels with one group of negative "
        "labels after the other, it may be lower than such a share."
    )
    return _section("Sets and their worst mistakes", _paragraph(f"{introduction}{left}{of_seed}", "note"), *parts)


def _auroc(evaluation: "Evaluation") -> float:
    return float(evaluation.record["metrics"]["auroc"]["value"])


def _mistakes(evaluation: "Evaluation", name: tuple[str, str], max_tiles: int, of_id: bool) -> str:
    """Show the ID images with the highest scores, or the OOD images with the lowest, as far as they can be read."""
    if of_id:
        data, scores, rows = evaluation.id_set, evaluation.id_scores, evaluation.id_rows
        negatives = evaluation.id_negatives
        predictions, order = evaluation.id_predictions, np.argsort(-evaluation.id_scores, kind="stable")
    else:
        data, scores, rows = evaluation.ood_set, evaluation.ood_scores, evaluation.ood_rows
        negatives = evaluation.ood_negatives
        predictions, order = evaluation.ood_predictions, np.argsort(evaluation.ood_scores, kind="stable")
    threshold = threshold_at(evaluation.id_scores, evaluation.record["convention"]["tpr"])
    tiles: list[Tile] = []
    lines: list[list[str]] = []
    # Unreadable images make place for the next ones, though not without end.
    for index in order[: 4 * max_tiles]:
        if len(lines) == max_tiles:
            break
        row, score, label = int(rows[index]), float(scores[index]), evaluation.labels[int(predictions[index])]
        own_negatives = negatives.get(int(index), ())
        first = next(iter(telling_negatives(own_negatives)), None)
        if data.images is not None:
            try:
                picture = fit_picture(load_image(image_of(data.images[row])))
            except (ImageError, OSError, ValueError, TypeError, LookupError):
                continue
            is_ood = score > threshold
            tile = Tile(
                picture,
                is_ood,
                score,
                label,
                correct=is_ood != of_id,
                looks_like="" if first is None else first["label"],
                mass=None if first is None else first["score"],
            )
            tiles.append(tile)
        own = data.class_names[row] if data.class_names is not None else ""
        if of_id and not own:
            own = evaluation.labels[int(evaluation.id_labels[index])]
        lines.append(
            [
                data.names[row],
                f"{score:.4f}",
                label,
                own or "",
                looks_like(own_negatives) or ("none of them" if own_negatives else ""),
            ]
        )
    if not lines:
        return ""
    header = ["image", "score", "nearest label", "class", "looks like"]
    if not any(line[-1] for line in lines):
        header, lines = header[:-1], [line[:-1] for line in lines]
    method = f"{name[1]} with {name[0]}"
    what = f"ID images with the highest scores, {method}" if of_id else f"Images with the lowest scores, {method}"
    listing = _details(
        "Names of these images" if tiles else what,
        _grid(header, lines, texts=len(header), kind="names"),
    )
    if not tiles:
        return listing
    stream = io.BytesIO()
    contact_sheet(tiles, columns=_COLUMNS).save(stream, "JPEG", quality=82)
    return _figure(_Picture(_data_uri(stream.getvalue(), "jpeg")), what, "sheet") + listing


def _set_up(result: ReportedResult, records: Sequence[Mapping[str, Any]]) -> str:
    suite, convention = result.suite, records[0]["convention"]
    parts = []
    facts: dict[str, str] = {
        "suite": f"{suite.name}, file {str(records[0].get('suite_sha256'))[:12]}",
        "reference": suite.reference or "",
        "seeds": ", ".join(str(seed) for seed in dict.fromkeys(record["seed"] for record in records)),
        "FPR": f"{metric_title('fpr95', convention)}; {metric_title('fpr95_ood_positive', convention)}",
        "AUPR": str(convention["aupr_rule"]).replace("_", " "),
        "intervals": _describe_bootstrap(records),
        "versions": ", ".join(f"{name} {version}" for name, version in (records[0].get("versions") or {}).items()),
        "dates": " to ".join(sorted({min(dates := [str(record["date"]) for record in records]), max(dates)})),
    }
    listed = "".join(f"<dt>{_escape(key)}</dt><dd>{_escape(value)}</dd>\n" for key, value in facts.items() if value)
    parts.append(f"<dl>\n{listed}</dl>\n")
    if suite.protocol:
        parts.append(_details("Protocol", f"<pre>{_escape(suite.protocol)}</pre>"))

    parts.append("<h3>Sets</h3>\n")
    header = ["set", "group", "note", "images", "unreadable", "left out", "by the protocol", "digest"]
    parts.append(_grid(header, _set_rows(records), texts=3, kind="sets"))
    if any("excluded" in record["set"] for record in records):
        parts.append(
            _paragraph(
                "Left out are images that the suite does not ask for: other classes or rows, and what a limit did not "
                "draw. The protocol's number is that of all images of its classes, before any limit.",
                "note",
            )
        )

    parts.append("<h3>Models</h3>\n")
    models = {str(record["model"]): record["model"] for record in records}
    header = ["model", "class", "family", "revision", "weights", "dtype", "device", "logit scale", "logit bias"]
    parts.append(
        _grid(
            header,
            [
                [
                    public_name(str(model["id"] or model["class"])),
                    model["class"],
                    model.get("family") or "",
                    model.get("revision") or "",
                    str(model.get("weights_sha256") or "")[:12],
                    model.get("dtype") or "",
                    model.get("device") or "",
                    f"{model['logit_scale']:.4g}" if model.get("logit_scale") is not None else "",
                    f"{model['logit_bias']:.4g}, sigmoid loss" if model.get("is_sigmoid") else "",
                ]
                for model in models.values()
            ],
            texts=7,
        )
    )
    parts.append("<h3>Methods</h3>\n")
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        methods.setdefault(row_key({**record, "model": None}), []).append(record)
    header = ["method", "settings", "templates", "“no” templates", "fitted on", "negative labels"]
    parts.append(
        _grid(
            header,
            [
                [
                    record["method"],
                    _describe_settings(own),
                    *(_listed(record.get(key) or [], 10) for key in ("templates", "no_templates")),
                    f"{record['fit_set']['name']}, {record['fit_set']['images']:,} images"
                    if record.get("fit_set")
                    else "",
                    _describe_negatives(own),
                ]
                for own in methods.values()
                for record in own[:1]
            ],
            texts=6,
        )
    )
    labels = result.evaluations[0].labels
    parts.append(_details(f"{len(labels):,} labels", _paragraph(_listed(labels, MAX_LABELS))))
    if result.skipped:
        skipped = "".join(f"<li>{_escape(reason)}</li>" for reason in result.skipped)
        parts.append(f"<h3>Skipped</h3>\n<ul>{skipped}</ul>\n")
    return _section("Set-up", *parts)


def _describe_settings(records: Sequence[Mapping[str, Any]]) -> str:
    """Say by which settings a method judged, with the number of groups that its negative labels gave."""
    settings = dict(records[0]["settings"])
    counts = [record["negatives"]["count"] for record in records if record.get("negatives")]
    if counts and settings.get("num_groups", 0) is None:
        settings["num_groups"] = _span([effective_settings(settings, count)["num_groups"] for count in counts])
    return ", ".join(f"{name} {'automatic' if value is None else value}" for name, value in settings.items())


def _describe_negatives(records: Sequence[Mapping[str, Any]]) -> str:
    """Say how many negative labels there are, which other labels and models may change, and how they were mined."""
    found = [record["negatives"] for record in records if record.get("negatives")]
    if not found:
        return ""
    settings = {name: value for name, value in found[0]["settings"].items() if value not in (None, [], "")}
    listed = ", ".join(
        f"{name.replace('_', ' ')} {_listed(value, 10) if isinstance(value, list) else value}"
        for name, value in settings.items()
        if not name.endswith("sha256")
    )
    return f"{_span([one['count'] for one in found])}: {listed}" if listed else _span([one["count"] for one in found])


def _describe_bootstrap(records: Sequence[Mapping[str, Any]]) -> str:
    bootstrap = records[0].get("bootstrap")
    if not bootstrap:
        return "none"
    level = f"{100 * bootstrap['confidence']:g}"
    return f"{level} % bootstrap over images, {bootstrap['resamples']:,} resamples, seed {bootstrap['seed']}"


def _set_rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    sets: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        sets.setdefault((record["id_set"]["name"], "ID"), []).append(record["id_set"])
        if record.get("fit_set"):
            sets.setdefault((record["fit_set"]["name"], "fit"), []).append(record["fit_set"])
    for record in records:
        sets.setdefault((record["set"]["name"], record["set"]["group"]), []).append(record["set"])
    rows = []
    for (name, group), members in sets.items():
        digests = list(dict.fromkeys(str(member.get("sha256") or "")[:12] for member in members))
        rows.append(
            [
                name,
                group,
                members[0].get("note") or "",
                # What a saved detector was fitted on has no counts besides its images.
                *(
                    _span(counts)
                    if (counts := [member[key] for member in members if member.get(key) is not None])
                    else ""
                    for key in ("images", "unreadable", "excluded", "expected")
                ),
                digests[0] if len(digests) == 1 else f"{len(digests)} draws",
            ]
        )
    return rows


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(texts: Sequence[str], most: int) -> str:
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


_SEVERITIES = ("error", "warning", "note")
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f4f5f7; --ink: #1a1f26; --faded: #5a6472; --rule: #d5d9df;
  --best: #dcefe8; --error: #b3261e; --warning: #a35200; --note: #0060a0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1f242b; --ink: #e7eaee; --faded: #9aa4b1;
  --rule: #363d47; --best: #14443a; --error: #ff8a80; --warning: #ffb066; --note: #7cc4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.2em 0 .6em; padding-top: .7em; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.8em 0 .5em; overflow-wrap: anywhere; }
h3 small { color: var(--faded); font-weight: normal; }
p { margin: .5em 0; max-width: 75ch; }
.lead { font-size: 1.1rem; }
.note, figcaption, small { color: var(--faded); font-size: .9rem; }
.chip { display: inline-block; background: var(--card); border-radius: 999px; padding: .15em .8em;
  margin: 0 .4em .4em 0; font-size: .9rem; }
.scroll { overflow-x: auto; margin: .8em 0 1.4em; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3em 0; white-space: nowrap; }
th, td { text-align: left; padding: .3em .7em; vertical-align: top; font-weight: normal; }
thead th { color: var(--faded); border-bottom: 1px solid var(--rule); vertical-align: bottom; }
th.group { text-align: center; border-bottom: 1px solid var(--rule); }
.n { text-align: right; white-space: nowrap; }
thead th.n { white-space: normal; }
tbody tr:hover { background: var(--card); }
tr.first > * { border-top: 1px solid var(--rule); }
.average { border-left: 1px solid var(--rule); }
.best { background: var(--best); font-weight: 700; }
.spread { display: block; color: var(--faded); font-weight: normal; font-size: .8em; }
table.names td { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1em 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 8px; }
@media (prefers-color-scheme: dark) { figure img { padding: 8px; } figure.sheet img { padding: 0; } }
figcaption { margin-top: .4em; }
.pair { display: flex; flex-wrap: wrap; gap: 0 20px; align-items: end; }
.findings { list-style: none; padding: 0; }
.findings li { padding: .5em .8em; margin: .4em 0; background: var(--card); border-left: 4px solid var(--note);
  border-radius: 4px; overflow-wrap: anywhere; }
.findings .error { border-color: var(--error); } .findings .warning { border-color: var(--warning); }
.badge { font-weight: 700; color: var(--note); }
.error .badge { color: var(--error); } .warning .badge { color: var(--warning); }
details { margin: .6em 0; } summary { cursor: pointer; color: var(--faded); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25em 1.2em; font-size: .95rem; }
dt { color: var(--faded); } dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: var(--card); padding: 1em; border-radius: 6px; font-size: .9rem; }
@media print { details { display: block; } .scroll { overflow: visible; } }
"""

__all__ = [
    "MAX_FINDINGS",
    "MAX_SETS",
    "MAX_SHEETS",
    "ReportedFinding",
    "ReportedResult",
    "ReportedSuite",
    "write_report",
]
