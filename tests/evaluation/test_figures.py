# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Figures: what is drawn is what was measured, bounded in size, without a trace in pyplot."""

import copy
import dataclasses
import io
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from clipn_hf.evaluation import figures
from clipn_hf.evaluation.figures import (
    draw_heat_map,
    draw_histograms,
    draw_risk_coverage,
    draw_roc,
    threshold_at,
)
from clipn_hf.evaluation.metrics import auroc, fpr_at_tpr


def on(result: Any, name: str) -> list[Any]:
    return [evaluation for evaluation in result.evaluations if evaluation.record["set"]["name"] == name]


def legend_of(figure: Any) -> Any:
    (legend,) = figure.legends
    return legend


def texts(figure: Any) -> list[str]:
    (axes,) = figure.axes
    found = [text.get_text() for text in axes.texts]
    found += [axes.get_xlabel(), axes.get_ylabel(), *(label.get_text() for label in axes.get_xticklabels())]
    found += [label.get_text() for label in axes.get_yticklabels()]
    for legend in figure.legends:
        found += [legend.get_title().get_text()]
        found += [text.get_text() for text in legend.get_texts()]
    return found


def save(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def test_the_threshold_keeps_its_share() -> None:
    assert threshold_at(np.arange(1, 101), 0.95) == 95
    assert threshold_at([3.0, 3.0, 3.0], 0.95) == 3
    assert threshold_at(np.arange(1, 21), 0.95) == 19
    assert threshold_at([1.0, 2.0], 1.0) == 2
    generator = np.random.default_rng(0)
    for images in (1, 7, 20, 40, 60, 101):
        id_scores, ood_scores = generator.integers(0, 30, (2, images)) / 7
        accepted = (ood_scores <= threshold_at(id_scores, 0.95)).mean()
        assert accepted == fpr_at_tpr(id_scores, ood_scores, tpr=0.95)


def test_histograms_show_shares_and_the_threshold(result: Any) -> None:
    evaluation = on(result, "MNIST")[0]
    figure = draw_histograms(evaluation)
    (axes,) = figure.axes
    # The curves are the filled one, its edge, and the one of OOD.
    for patch in axes.patches:
        assert patch.get_data().values.sum() == pytest.approx(100)
    threshold = threshold_at(evaluation.id_scores, 0.95)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(threshold)
    accepted = 100 * fpr_at_tpr(evaluation.id_scores, evaluation.ood_scores)
    assert any(f"{accepted:.1f} % of OOD" in text for text in texts(figure))
    assert "■ ID: CIFAR-10" in texts(figure) and "□ OOD: MNIST" in texts(figure)
    assert "□ shifted: CIFAR-10, drawn" in texts(draw_histograms(on(result, "CIFAR-10, drawn")[0]))


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [np.inf, 0.0, 1.0], [-np.inf, np.inf, np.inf], [0.5]])
def test_odd_scores_can_be_drawn(result: Any, scores: list[float]) -> None:
    values = np.array(scores, dtype=np.float32)
    labels = np.zeros(len(scores), dtype=np.int64)
    evaluation = dataclasses.replace(
        result.evaluations[0], id_scores=values, ood_scores=values, id_predictions=labels, id_labels=labels
    )
    for figure in (draw_histograms(evaluation), draw_roc([evaluation]), draw_risk_coverage([evaluation])):
        save(figure)


def test_roc_curves_have_the_area_and_the_point_of_the_metrics(result: Any) -> None:
    evaluations = on(result, "MNIST")
    figure = draw_roc(evaluations)
    (axes,) = figure.axes
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    ordered = sorted(
        evaluations, key=lambda evaluation: auroc(evaluation.id_scores, evaluation.ood_scores), reverse=True
    )
    assert len(curves) == len(points) == len(evaluations) == 6
    for evaluation, curve, point in zip(ordered, curves, points, strict=True):
        area = np.trapezoid(curve.get_ydata(), curve.get_xdata()) / 100**2
        assert area == pytest.approx(auroc(evaluation.id_scores, evaluation.ood_scores), abs=1e-6)
        fpr = fpr_at_tpr(evaluation.id_scores, evaluation.ood_scores)
        assert point.get_xdata()[0] == pytest.approx(100 * fpr)
        assert point.get_ydata()[0] >= 95
    legend = [text.get_text() for text in legend_of(figure).get_texts()]
    assert legend[0].endswith("atd, clipn-tiny")
    assert "OOD images accepted, % (FPR, ID positive)" in texts(figure)


def test_curves_are_named_by_what_differs(result: Any) -> None:
    alone = [
        evaluation
        for evaluation in result.evaluations
        if evaluation.record["method"] == "mcm" and "clip-vit" in evaluation.record["model"]["id"]
    ]
    names = [text.get_text() for text in legend_of(draw_roc(alone[:3])).get_texts()]
    assert sorted(name.split("  ")[1] for name in names) == ["CIFAR-100 part", "MNIST", "Textures & more"]
    assert legend_of(draw_roc(alone[:1])).get_texts()[0].get_text().endswith("mcm")


def test_risk_coverage_ends_at_the_error_rate(result: Any) -> None:
    evaluation = on(result, "MNIST")[0]
    (line,) = draw_risk_coverage([evaluation]).axes[0].lines
    wrong = 100 * (evaluation.id_predictions != evaluation.id_labels).mean()
    assert line.get_xdata()[-1] == 100
    assert line.get_ydata()[-1] == pytest.approx(wrong)


def test_rates_of_errors_end_at_all(result: Any) -> None:
    evaluation = on(result, "MNIST")[0]
    hopeless = dataclasses.replace(evaluation, id_predictions=evaluation.id_labels + 1)
    assert draw_risk_coverage([hopeless]).axes[0].get_ylim() == (0, 100)
    perfect = dataclasses.replace(evaluation, id_predictions=evaluation.id_labels)
    assert draw_risk_coverage([perfect]).axes[0].get_ylim() == (0, 1)


@pytest.mark.parametrize("draw", [draw_roc, draw_risk_coverage])
def test_the_legend_covers_no_curve(result: Any, draw: Any) -> None:
    figure = draw(on(result, "MNIST"))
    save(figure)
    assert legend_of(figure).get_window_extent().x0 > figure.axes[0].get_window_extent().x1
    # Nor is it cut off.
    assert legend_of(figure).get_window_extent().x1 <= figure.bbox.x1


def test_the_seed_is_in_the_figure(seeds_result: Any) -> None:
    for seed in (0, 2):
        own = [evaluation for evaluation in on(seeds_result, "MNIST") if evaluation.record["seed"] == seed]
        for figure in (draw_roc(own), draw_risk_coverage(own), draw_histograms(own[0])):
            assert any(f", seed {seed}" in text for text in texts(figure))
    # Where there are several, each curve says which is its own.
    legend = legend_of(draw_roc(on(seeds_result, "MNIST")[:6]))
    assert "seed" not in legend.get_title().get_text()
    assert all("seed" in text.get_text() for text in legend.get_texts())


def test_heat_map_shows_the_numbers_of_the_table(result: Any) -> None:
    figure = draw_heat_map(result.records)
    shown = texts(figure)
    for evaluation in on(result, "MNIST"):
        assert f"{100 * evaluation.record['metrics']['auroc']['value']:.1f}" in shown
    assert {"near", "far", "MNIST", "atd, clipn-tiny", "AUROC ↑, %"} <= set(shown)
    assert "CIFAR-10, drawn" not in shown
    assert "average" not in shown
    assert "FPR95, ID positive, exact rule ↓, %" in texts(draw_heat_map(result.records, "fpr95"))


def test_figures_are_bounded(make_result: Any) -> None:
    result = make_result(
        models=[f"m{index}" for index in range(45)],
        methods=["mcm"],
        sets={"far": [f"set {index}" for index in range(30)]},
        images=8,
        resamples=0,
        pixels=False,
    )
    figure = draw_heat_map(result.records)
    assert figure.axes[0].images[0].get_array().shape == (figures.MAX_HEAT_MAP_ROWS, figures.MAX_HEAT_MAP_SETS)
    assert "the 24 hardest of 30 sets" in figure.axes[0].get_xlabel()
    assert "the 40 best of 45 rows" in figure.axes[0].get_xlabel()
    legend = legend_of(draw_roc(on(result, "set 0")))
    assert len(legend.get_texts()) == figures.MAX_CURVES
    assert legend.get_title().get_text() == "AUROC, %, the 12 best of 45, seed 0"
    lines = [(line.get_color(), line.get_linestyle(), line._dash_pattern) for line in legend.get_lines()]
    assert len(set(map(str, lines))) == figures.MAX_CURVES
    assert len({color for color, _, _ in lines[:9]}) == 9


def test_many_points_are_thinned(result: Any) -> None:
    generator = np.random.default_rng(0)
    evaluation = dataclasses.replace(
        result.evaluations[0],
        id_scores=generator.normal(size=20_000).astype(np.float32),
        ood_scores=generator.normal(1, 1, 20_000).astype(np.float32),
    )
    curve = draw_roc([evaluation]).axes[0].lines[2]
    assert len(curve.get_xdata()) <= figures._MAX_POINTS + 1
    assert (curve.get_xdata()[-1], curve.get_ydata()[-1]) == (100, 100)
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata()) / 100**2
    assert area == pytest.approx(auroc(evaluation.id_scores, evaluation.ood_scores), abs=1e-4)


@pytest.mark.parametrize("name", ["$x^{$", "$a$ and $b$", "_hidden", "<b> & co", "x" * 200, "猫", "two\nlines"])
def test_names_of_any_kind(result: Any, name: str) -> None:
    evaluation = copy.deepcopy(on(result, "MNIST")[0])
    evaluation.record["set"]["name"] = evaluation.record["method"] = evaluation.record["model"]["id"] = name
    other = on(result, "MNIST")[1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("error", message=".*legend.*")
        for figure in (
            draw_histograms(evaluation),
            draw_roc([evaluation, other]),
            draw_risk_coverage([evaluation, other]),
            draw_heat_map([evaluation.record, other.record]),
        ):
            save(figure)
    assert len(legend_of(draw_roc([evaluation, other])).get_texts()) == 2


def test_the_same_results_give_the_same_picture(result: Any) -> None:
    assert save(draw_roc(on(result, "MNIST"))) == save(draw_roc(on(result, "MNIST")))


def test_pyplot_is_left_alone() -> None:
    code = (
        "import sys; from clipn_hf.evaluation import figures; figure, axes = figures._figure(2, 2); "
        "figure.canvas.draw(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_fix_is_named(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: draw_histograms(result.evaluations[0]), lambda: draw_heat_map(result.records)):
        with pytest.raises(ImportError, match=r'install it with `pip install "clipn-hf\[benchmarks\]"`\.'):
            draw()


def test_bad_arguments(result: Any) -> None:
    for draw in (draw_roc, draw_risk_coverage):
        with pytest.raises(ValueError, match="`evaluations` is empty; give at least one to draw"):
            draw([])
    with pytest.raises(ValueError, match="`records` are of several suites or conventions"):
        draw_heat_map([result.records[0], {**result.records[0], "suite": "other"}])
    shifted = [record for record in result.records if record["set"]["group"] == "covariate-shift"]
    with pytest.raises(ValueError, match="`records` have no AUROC on near or far OOD sets"):
        draw_heat_map(shifted)
