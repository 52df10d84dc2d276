# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of evaluation results, drawn by matplotlib: histograms, ROC and risk-coverage curves, a heat map.

Every function returns a `matplotlib.figure.Figure` that belongs to nobody else: `pyplot` is not imported and no
setting of it is touched. Colours are those of Okabe and Ito, with a grey and a wine red, which stay apart in every
common form of colour blindness; line styles and edges tell the same in greyscale.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .metrics import aurc, auroc, fpr_at_tpr
from .tables import AVERAGE, Record, metric_title, result_tables, row_key, row_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .results import Evaluation

MISSING = 'Figures need matplotlib; install it with `pip install "clipn-hf[benchmarks]"`.'
MAX_CURVES = 12
MAX_HEAT_MAP_SETS = 24
MAX_HEAT_MAP_ROWS = 40

_ID_COLOR, _OOD_COLOR = "#0072B2", "#D55E00"
_INK, _FADED, _RULE = "#1A1F26", "#5A6472", "#D5D9DF"
# The yellow of the palette is too light for lines on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#79828E", "#882255")
_LINES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1)), (0, (1, 1)))
# Their numbers have no common factor, so that no two curves look alike.
_CURVES = tuple(itertools.islice(zip(itertools.cycle(_COLORS), itertools.cycle(_LINES)), MAX_CURVES))
_BINS = 50
_MAX_POINTS = 2000
_FONT = 9


def draw_histograms(evaluation: "Evaluation") -> "Figure":
    """Draw how the scores of ID and OOD images are spread, with the threshold that keeps 95 % of the ID images.

    The share is the one of the record's convention, `tpr`. Scores beyond the middle 99.8 % are counted in the
    outermost bins.

    Args:
        evaluation ([`Evaluation`]): Scores of an ID and of another set.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    id_scores, ood_scores = _finite(evaluation.id_scores), _finite(evaluation.ood_scores)
    record = evaluation.record
    threshold = threshold_at(id_scores, record["convention"]["tpr"])
    both = np.concatenate((id_scores, ood_scores))
    low, high = np.quantile(both, [0.001, 0.999])
    # Equal scores have no spread to draw.
    if not high > low:
        low, high = low - 0.5, high + 0.5
    low, high = min(low, threshold), max(high, threshold)
    bins = int(np.clip(2 * np.sqrt(min(len(id_scores), len(ood_scores))), 10, _BINS))
    edges = np.linspace(low, high, bins + 1)
    shares = [100 * np.histogram(scores.clip(low, high), edges)[0] / len(scores) for scores in (id_scores, ood_scores)]

    figure, axes = _figure(5.4, 3.0)
    axes.stairs(shares[0], edges, fill=True, color=_ID_COLOR, alpha=0.35)
    axes.stairs(shares[0], edges, color=_ID_COLOR, linewidth=1.0)
    axes.stairs(shares[1], edges, color=_OOD_COLOR, linewidth=1.8)
    top = max(share.max() for share in shares)
    axes.set_ylim(0, 1.36 * top)
    axes.set_xlim(low, high)
    axes.axvline(threshold, ymax=1.34 / 1.36, color=_INK, linewidth=1, linestyle="--")
    rejected = 100 * float((ood_scores > threshold).mean())
    is_right = threshold > (low + high) / 2
    axes.annotate(
        f"{100 * record['convention']['tpr']:g} % of ID below,\n{100 - rejected:.1f} % of OOD",
        (threshold, 1.06 * top),
        xytext=(-4 if is_right else 4, 0),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="bottom",
        fontsize=_FONT - 1,
        color=_INK,
        linespacing=1.1,
    )
    method = f"{_plain(record['method'])}, seed {record['seed']}"
    axes.set_xlabel(f"OOD score of {method}, higher = more OOD", fontsize=_FONT, color=_INK)
    axes.set_ylabel("% of the images", fontsize=_FONT, color=_INK)
    other = "shifted" if record["set"]["group"] == "covariate-shift" else "OOD"
    for x, align, color, text in (
        (0.0, "left", _ID_COLOR, f"■ ID: {_plain(record['id_set']['name'])}"),
        (1.0, "right", _OOD_COLOR, f"□ {other}: {_plain(record['set']['name'])}"),
    ):
        axes.text(x, 1.02, text, transform=axes.transAxes, ha=align, color=color, fontsize=_FONT, fontweight="bold")
    return figure


def draw_roc(evaluations: Sequence["Evaluation"]) -> "Figure":
    """Draw ROC curves, ID positive, and mark the point of each where 95 % of the ID images are kept.

    Args:
        evaluations (sequence of [`Evaluation`]):
            At least one, of one seed. Of more than 12, those with the highest AUROC are drawn.

    Returns:
        `matplotlib.figure.Figure`. In the legend, curves stand in the order of their AUROC.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `evaluations` is empty.
    """
    curves = _best_curves(
        evaluations,
        [auroc(evaluation.id_scores, evaluation.ood_scores) for evaluation in evaluations],
        descending=True,
    )
    names = _legend_names(curves)
    figure, axes = _figure(4.4 + _legend_width(names), 4.2)
    level = evaluations[0].record["convention"]["tpr"]
    axes.plot([0, 100], [0, 100], color=_RULE, linewidth=1)
    axes.axhline(100 * level, color=_FADED, linewidth=0.8, linestyle=":")
    handles = []
    for (evaluation, _, _), (color, line) in zip(curves, _CURVES, strict=False):
        ood_kept, id_kept = _roc(evaluation.id_scores, evaluation.ood_scores)
        handles += axes.plot(100 * ood_kept, 100 * id_kept, color=color, linestyle=line, linewidth=1.6)
        fpr = 100 * fpr_at_tpr(evaluation.id_scores, evaluation.ood_scores, tpr=level)
        kept = 100 * float((evaluation.id_scores <= threshold_at(evaluation.id_scores, level)).mean())
        axes.plot([fpr], [kept], "o", color=color, markersize=5, markeredgecolor="white", clip_on=False, zorder=5)
    axes.set_yticks([*(tick for tick in range(0, 100, 20) if abs(tick - 100 * level) > 4), 100 * level])
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
    axes.set_xlabel("OOD images accepted, % (FPR, ID positive)", fontsize=_FONT, color=_INK)
    axes.set_ylabel("ID images kept, % (TPR)", fontsize=_FONT, color=_INK)
    _legend(figure, handles, names, "AUROC, %", evaluations)
    return figure


def draw_risk_coverage(evaluations: Sequence["Evaluation"]) -> "Figure":
    """Draw the error rate among the accepted ID images over their share, from the surest to all.

    Args:
        evaluations (sequence of [`Evaluation`]):
            At least one, of one seed. Of more than 12, those with the lowest AURC are drawn.

    Returns:
        `matplotlib.figure.Figure`. In the legend, curves stand in the order of their AURC.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `evaluations` is empty.
    """
    values = [
        aurc(evaluation.id_scores, evaluation.id_predictions, evaluation.id_labels) for evaluation in evaluations
    ]
    curves = _best_curves(evaluations, values, descending=False)
    names = _legend_names(curves)
    figure, axes = _figure(4.4 + _legend_width(names), 3.2)
    handles, top = [], 0.0
    for (evaluation, _, _), (color, line) in zip(curves, _CURVES, strict=False):
        is_wrong = np.asarray(evaluation.id_predictions) != np.asarray(evaluation.id_labels)
        coverage, risk = _risk_coverage(evaluation.id_scores, is_wrong)
        # One mistake among the first few images is a large share of them, and means little.
        shown = coverage >= min(0.02, coverage[-1])
        coverage, risk = coverage[shown], risk[shown]
        handles += axes.plot(100 * coverage, 100 * risk, color=color, linestyle=line, linewidth=1.6)
        top = max(top, 100 * float(risk[coverage >= min(0.1, coverage[-1])].max()))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, min(100, 1.1 * top) if top > 0 else 1)
    axes.set_xlabel("accepted ID images, %", fontsize=_FONT, color=_INK)
    axes.set_ylabel("wrong labels among them, %", fontsize=_FONT, color=_INK)
    _legend(figure, handles, names, "AURC, %", evaluations)
    return figure


def draw_heat_map(records: Iterable[Record], metric: str = "auroc") -> "Figure":
    """Draw a metric, its mean over seeds, for every model and method on every set, with the numbers.

    Of more than 24 sets, the hardest are drawn, those with the worst mean; of more than 40 rows, the best.

    Args:
        records (iterable of `Mapping`): Results of one suite in one convention; covariate shift is left out.
        metric (`str`, *optional*, defaults to `"auroc"`): A key of `tables.METRICS`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are no records of near or far OOD with this metric, or they are of several suites.
    """
    suites = result_tables(records, [metric])
    if len(suites) > 1:
        names = ", ".join(suite.heading for suite in suites)
        raise ValueError(f"`records` are of several suites or conventions ({names}); draw one after the other.")
    if not suites[0].tables:
        raise ValueError(f"`records` have no {metric_title(metric)} on near or far OOD sets; give some that do.")
    table = suites[0].tables[0]
    columns = [
        index
        for index, (_, name) in enumerate(table.columns)
        if name != AVERAGE and any(row.cells[index] is not None for row in table.rows)
    ]
    values = 100 * np.array(
        [[np.nan if (cell := row.cells[index]) is None else cell.value for index in columns] for row in table.rows]
    )
    sign = -1 if table.direction == "↓" else 1
    num_sets, num_rows = values.shape[1], values.shape[0]
    kept_sets = np.sort(np.argsort(sign * np.nanmean(values, axis=0), kind="stable")[:MAX_HEAT_MAP_SETS])
    kept_rows = np.sort(np.argsort(-sign * np.nanmean(values, axis=1), kind="stable")[:MAX_HEAT_MAP_ROWS])
    values = values[np.ix_(kept_rows, kept_sets)]

    several_models = len({row.model for row in table.rows}) > 1
    labels = [f"{row.method}, {row.model}" if several_models else row.method for row in table.rows]
    labels = [_plain(labels[index]) for index in kept_rows]
    sets = [table.columns[columns[index]] for index in kept_sets]
    set_labels = [_plain(name) for _, name in sets]
    # Inches for the cells and for the longest names beside and, aslant, above them.
    width = 0.62 * len(sets) + 0.4 + 0.08 * max(map(len, labels)) + 0.04 * max(map(len, set_labels))
    height = 0.3 * len(labels) + 0.9 + 0.055 * max(map(len, set_labels))
    figure, axes = _figure(width, height, grid=False)
    # AUROC below 50 is worse than chance, however far below.
    low, high = (50, 100) if metric.startswith("auroc") else (0, 100)
    image = axes.imshow(values, cmap="cividis" if sign > 0 else "cividis_r", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", fontsize=_FONT - 1, color=_FADED)
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        color = "white" if is_dark else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=_FONT - 1, color=color)
    axes.set_yticks(range(len(kept_rows)), labels, fontsize=_FONT)
    axes.set_xticks(range(len(sets)), set_labels, fontsize=_FONT, rotation=35, ha="left", va="bottom")
    axes.tick_params(length=0, bottom=False, labelbottom=False, top=True, labeltop=True, pad=3)
    axes.tick_params(axis="x", rotation=35)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _draw_groups(axes, [group for group, _ in sets], values.shape[0])
    caption = f"{table.heading}, %"
    if len(kept_sets) < num_sets:
        caption += f"; the {len(kept_sets)} hardest of {num_sets} sets"
    if len(kept_rows) < num_rows:
        caption += f"; the {len(kept_rows)} best of {num_rows} rows"
    axes.set_xlabel(caption, fontsize=_FONT, color=_INK, labelpad=20)
    return figure


def threshold_at(id_scores: npt.ArrayLike, tpr: float) -> float:
    """Find the threshold behind [`~clipn_hf.evaluation.metrics.fpr_at_tpr`], ID positive, exact rule.

    Args:
        id_scores (array of shape `(images,)`): OOD-ness of ID images; higher = more OOD.
        tpr (`float`): The share of the ID images to keep, those with `score <= threshold`.

    Returns:
        `float`: The smallest such threshold.
    """
    # What the metric lets in of the ID images themselves, and hence up to which of them.
    kept = fpr_at_tpr(id_scores, id_scores, tpr=tpr)
    ordered = np.sort(np.asarray(id_scores, dtype=np.float64))
    return float(ordered[round(kept * len(ordered)) - 1])


def _figure(width: float, height: float, grid: bool = True) -> tuple["Figure", "Axes"]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(MISSING) from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    axes.tick_params(labelsize=_FONT - 1, colors=_FADED)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_RULE)
    if grid:
        axes.grid(axis="y", color=_RULE, linewidth=0.5)
        axes.set_axisbelow(True)
    return figure, axes


def _draw_groups(axes: "Axes", groups: Sequence[str], rows: int) -> None:
    """Write below the columns which of them are near and which far, with a gap between."""
    start = 0
    for group, members in itertools.groupby(groups):
        count = len(list(members))
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=4)
        axes.text(start + (count - 1) / 2, rows - 0.4, group, ha="center", va="top", fontsize=_FONT, color=_FADED)
        start += count


def _legend_names(curves: "Sequence[tuple[Evaluation, str, float]]") -> list[str]:
    return [f"{100 * value:.1f}  {_plain(name, 52)}" for _, name, value in curves]


def _legend_width(names: Sequence[str]) -> float:
    """Inches for the lines and the longest name beside the axes, or for the title above."""
    return 0.6 + 0.07 * max(24, *map(len, names))


def _legend(
    figure: "Figure", handles: list[Any], names: list[str], title: str, evaluations: "Sequence[Evaluation]"
) -> None:
    """Name the curves, beside the axes so that none is covered."""
    lines = [title, f"the {len(names)} best of {len(evaluations)}"] if len(evaluations) > len(names) else [title]
    seeds = {evaluation.record["seed"] for evaluation in evaluations}
    if len(seeds) == 1:
        lines.append(f"seed {seeds.pop()}")
    figure.legend(
        handles,
        names,
        title=", ".join(lines),
        loc="outside right upper",
        fontsize=_FONT - 1,
        title_fontsize=_FONT - 1,
        frameon=False,
        labelcolor=_INK,
        handlelength=3.2,
        alignment="left",
    )


def _best_curves(
    evaluations: Sequence["Evaluation"], values: Sequence[float], descending: bool
) -> list[tuple["Evaluation", str, float]]:
    if not evaluations:
        raise ValueError("`evaluations` is empty; give at least one to draw.")
    named = row_names([evaluation.record for evaluation in evaluations])
    facts = []
    for evaluation in evaluations:
        model, method = named[row_key(evaluation.record)]
        facts.append((method, model, evaluation.record["set"]["name"], f"seed {evaluation.record['seed']}"))
    # Only what differs is worth its ink.
    differs = [len(set(column)) > 1 for column in zip(*facts, strict=True)]
    differs[0] = differs[0] or not any(differs)
    names = [", ".join(itertools.compress(each, differs)) for each in facts]
    curves = list(zip(evaluations, names, values, strict=True))
    return sorted(curves, key=lambda curve: curve[2], reverse=descending)[:MAX_CURVES]


def _roc(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    id_values, ood_values = np.sort(np.asarray(id_scores)), np.sort(np.asarray(ood_scores))
    thresholds = _thinned(np.unique(np.concatenate((id_values, ood_values))))
    shares = [np.searchsorted(values, thresholds, side="right") / len(values) for values in (ood_values, id_values)]
    return np.concatenate(([0.0], shares[0])), np.concatenate(([0.0], shares[1]))


def _risk_coverage(
    id_scores: npt.ArrayLike, is_wrong: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    values = np.asarray(id_scores)
    ordered, wrong = np.sort(values), np.sort(values[is_wrong])
    thresholds = _thinned(np.unique(values))
    accepted = np.searchsorted(ordered, thresholds, side="right")
    return accepted / len(values), np.searchsorted(wrong, thresholds, side="right") / accepted


def _thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Keep as many of the sorted values as a picture can show, the first and the last among them."""
    if len(values) <= _MAX_POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, _MAX_POINTS).round().astype(np.int64)]


def _finite(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    finite = values[np.isfinite(values)]
    return values.clip(finite.min(), finite.max()) if len(finite) else np.zeros_like(values)


def _plain(text: str, length: int = 40) -> str:
    """Shorten a name, and keep matplotlib from reading dollars as mathematics."""
    text = " ".join(str(text).split())
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return text.replace("$", r"\$")


__all__ = [
    "MAX_CURVES",
    "MAX_HEAT_MAP_ROWS",
    "MAX_HEAT_MAP_SETS",
    "MISSING",
    "draw_heat_map",
    "draw_histograms",
    "draw_risk_coverage",
    "draw_roc",
    "threshold_at",
]
