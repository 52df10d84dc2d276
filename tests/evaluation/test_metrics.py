# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics against the papers' published code, sklearn and brute force, ties included."""

import ast
import doctest
import inspect
import itertools
import json
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from clipn_hf.evaluation import metrics
from clipn_hf.evaluation.metrics import (
    Interval,
    aupr,
    aurc,
    auroc,
    bootstrap_interval,
    ccr_at_fpr,
    detection_accuracy,
    fpr_at_tpr,
    id_accuracy,
    oscr,
)

# ID-ness scores, as the published code has them.
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "metrics_official.json").read_text())

scores = st.lists(st.integers(0, 8).map(lambda value: value / 4), min_size=1, max_size=30)
levels = st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0])
# OOD-ness, prediction and label of an ID image.
id_images = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=20)

WITHOUT_LABELS: list[tuple[Callable[..., float], dict[str, Any]]] = [
    (auroc, {}),
    *(
        (aupr, {"positive": side, "rule": rule})
        for side in ("id", "ood")
        for rule in ("average_precision", "trapezoid")
    ),
    *(
        (fpr_at_tpr, {"positive": side, "rule": rule})
        for side in ("id", "ood")
        for rule in ("exact", "nearest", "linear")
    ),
    (detection_accuracy, {}),
]
WITH_LABELS: list[tuple[Callable[..., float], dict[str, Any]]] = [(oscr, {}), (ccr_at_fpr, {"fpr": 0.2}), (aurc, {})]


def in_order(id_scores: list[float], ood_scores: list[float], positive: str) -> tuple[list[float], list[float]]:
    """Scores of positives and negatives, lower = more positive."""
    if positive == "id":
        return id_scores, ood_scores
    return [-score for score in ood_scores], [-score for score in id_scores]


def share_at_most(values: list[float], threshold: float) -> float:
    return sum(value <= threshold for value in values) / len(values)


def brute_force_fpr(positives: list[float], negatives: list[float], tpr: float) -> float:
    """Tries every score as the largest one accepted."""
    thresholds = [score for score in positives + negatives if share_at_most(positives, score) >= tpr]
    return min(share_at_most(negatives, threshold) for threshold in thresholds)


def brute_force_nearest(positives: list[float], negatives: list[float], tpr: float) -> float:
    """Walks down from the first threshold that keeps all positives and takes the nearest, the first of equals."""
    points = [
        (share_at_most(positives, score), share_at_most(negatives, score))
        for score in sorted({score for score in positives + negatives if score <= max(positives)}, reverse=True)
    ]
    return min(points, key=lambda point: abs(point[0] - tpr))[1]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_equals_the_published_code(case: dict[str, Any]) -> None:
    id_scores, ood_scores = -np.array(case["id"]), -np.array(case["ood"])
    assert auroc(id_scores, ood_scores) == pytest.approx(case["auroc"], abs=1e-12)
    assert aupr(id_scores, ood_scores) == pytest.approx(case["aupr_in"], abs=1e-12)
    assert aupr(id_scores, ood_scores, positive="ood") == pytest.approx(case["aupr_out"], abs=1e-12)
    assert fpr_at_tpr(id_scores, ood_scores, rule="nearest") == pytest.approx(case["fpr95_mcm"], abs=1e-12)
    assert fpr_at_tpr(id_scores, ood_scores, rule="linear") == pytest.approx(case["fpr95_clipn"], abs=1e-12)
    assert fpr_at_tpr(id_scores, ood_scores, rule="linear") == pytest.approx(case["fpr95_plp"], abs=1e-12)
    assert fpr_at_tpr(id_scores, ood_scores) == brute_force_fpr(id_scores.tolist(), ood_scores.tolist(), 0.95)


@given(scores, scores)
def test_auroc_equals_sklearn(id_scores: list[float], ood_scores: list[float]) -> None:
    truth = [0] * len(id_scores) + [1] * len(ood_scores)
    assert auroc(id_scores, ood_scores) == pytest.approx(roc_auc_score(truth, id_scores + ood_scores), abs=1e-12)


@given(scores, scores, st.sampled_from(["id", "ood"]))
def test_aupr_equals_sklearn(id_scores: list[float], ood_scores: list[float], positive: Any) -> None:
    positives, negatives = in_order(id_scores, ood_scores, positive)
    truth, confidence = [1] * len(positives) + [0] * len(negatives), -np.array(positives + negatives)
    expected = average_precision_score(truth, confidence)
    assert aupr(id_scores, ood_scores, positive) == pytest.approx(expected, abs=1e-12)
    precision, recall, _ = precision_recall_curve(truth, confidence)
    assert aupr(id_scores, ood_scores, positive, "trapezoid") == pytest.approx(auc(recall, precision), abs=1e-12)


@given(scores, scores, levels, st.sampled_from(["id", "ood"]))
def test_fpr_equals_brute_force(id_scores: list[float], ood_scores: list[float], tpr: float, positive: Any) -> None:
    positives, negatives = in_order(id_scores, ood_scores, positive)
    assert fpr_at_tpr(id_scores, ood_scores, tpr, positive) == brute_force_fpr(positives, negatives, tpr)
    nearest = brute_force_nearest(positives, negatives, tpr)
    assert fpr_at_tpr(id_scores, ood_scores, tpr, positive, "nearest") == nearest
    fpr, tpr_curve, _ = roc_curve([1] * len(positives) + [0] * len(negatives), -np.array(positives + negatives))
    linear = np.interp(tpr, tpr_curve, fpr)
    assert fpr_at_tpr(id_scores, ood_scores, tpr, positive, "linear") == pytest.approx(linear, abs=1e-12)


def test_rules_differ_without_ties() -> None:
    """19 of 20 ID images are exactly 95 %; the OOD image between them and the last one is let in by two rules."""
    id_scores = [*range(19), 30]
    assert fpr_at_tpr(id_scores, [25, 40]) == 0.0
    assert fpr_at_tpr(id_scores, [25, 40], rule="nearest") == 0.5
    assert fpr_at_tpr(id_scores, [25, 40], rule="linear") == 0.5


@pytest.mark.parametrize("count", [20, 40, 60, 100, 1000, 12340])
def test_exactly_the_requested_share_is_enough(count: int) -> None:
    """0.95 of a multiple of 20 is a whole number, whatever the product of the floats says."""
    id_scores = np.arange(count)
    allowed = count * 95 // 100
    assert fpr_at_tpr(id_scores, [allowed - 1, allowed]) == 0.5


@given(st.integers(1, 3000), st.integers(0, 100))
def test_most_within_is_exact(total: int, percent: int) -> None:
    assert metrics.most_within(percent / 100, total) == math.floor(Fraction(percent, 100) * total)


@given(scores, scores)
def test_detection_accuracy_equals_brute_force(id_scores: list[float], ood_scores: list[float]) -> None:
    best = max(
        (share_at_most(id_scores, threshold) + 1 - share_at_most(ood_scores, threshold)) / 2
        for threshold in [-1.0, *id_scores, *ood_scores]
    )
    assert detection_accuracy(id_scores, ood_scores) == pytest.approx(best, abs=1e-12)


@given(id_images, st.lists(st.integers(0, 5), min_size=1, max_size=20), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_open_set_metrics_equal_brute_force(
    images: list[tuple[int, int, int]], ood_scores: list[int], fpr: float
) -> None:
    id_scores, predictions, labels = (list(column) for column in zip(*images, strict=True))
    correct = [score for score, prediction, label in images if prediction == label]
    points = [(0.0, 0.0)] + [
        (share_at_most(ood_scores, threshold), sum(score <= threshold for score in correct) / len(images))
        for threshold in sorted({*id_scores, *ood_scores})
    ]
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    assert oscr(id_scores, ood_scores, predictions, labels) == pytest.approx(area, abs=1e-12)
    best = max(y for x, y in points if x <= fpr)
    assert ccr_at_fpr(id_scores, ood_scores, predictions, labels, fpr) == pytest.approx(best, abs=1e-12)
    assert id_accuracy(predictions, labels) == pytest.approx(len(correct) / len(images), abs=1e-12)


def test_oscr_of_a_perfect_classifier_is_the_auroc() -> None:
    id_scores, ood_scores = [0.1, 0.4, 0.4, 0.8], [0.4, 0.5, 0.9]
    assert oscr(id_scores, ood_scores, ["cat"] * 4, ["cat"] * 4) == auroc(id_scores, ood_scores)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
    st.lists(st.integers(0, 2), max_size=2),
)
def test_aurc_is_the_mean_over_all_orders(images: list[tuple[int, bool]], ood_scores: list[int]) -> None:
    everything = [(score, not correct) for score, correct in images] + [(score, True) for score in ood_scores]
    areas = []
    for order in itertools.permutations(everything):
        if [score for score, _ in order] == sorted(score for score, _ in everything):
            wrong = np.cumsum([is_wrong for _, is_wrong in order])
            areas.append(np.mean(wrong / np.arange(1, len(order) + 1)))
    id_scores, correct = zip(*images, strict=True)
    area = aurc(id_scores, np.array(correct, dtype=int), [1] * len(images), ood_scores or None)
    assert area == pytest.approx(np.mean(areas), abs=1e-12)


def test_aurc_stays_accurate_with_many_images() -> None:
    random = np.random.default_rng(0)
    values, wrong = random.permutation(200_000), random.random(200_000) < 0.1
    expected = np.mean(np.cumsum(wrong[np.argsort(values)]) / np.arange(1, 200_001))
    assert aurc(values, wrong.astype(int), np.zeros(200_000)) == pytest.approx(expected, abs=1e-12)
    # All in one group: the risk is the error rate at every coverage.
    assert aurc(np.zeros(200_000), wrong.astype(int), np.zeros(200_000)) == pytest.approx(np.mean(wrong), abs=1e-12)


def test_equal_scores_are_chance() -> None:
    assert auroc([1.0] * 3, [1.0] * 5) == 0.5
    assert detection_accuracy([1.0] * 3, [1.0] * 5) == 0.5
    assert aupr([1.0] * 3, [1.0] * 5) == aupr([1.0] * 5, [1.0] * 3, positive="ood") == 3 / 8
    for rule in ("exact", "nearest"):
        assert fpr_at_tpr([1.0] * 3, [1.0] * 5, rule=rule) == 1.0  # type: ignore[arg-type]
        assert fpr_at_tpr([1.0] * 3, [1.0] * 5, positive="ood", rule=rule) == 1.0  # type: ignore[arg-type]
    # Interpolated, the curve is the diagonal.
    assert fpr_at_tpr([1.0] * 3, [1.0] * 5, rule="linear") == pytest.approx(0.95)


def test_infinite_scores_have_a_rank() -> None:
    assert auroc([-np.inf, 0.0], [np.inf, 0.0]) == 0.875
    assert fpr_at_tpr([-np.inf, 0.0], [np.inf, 0.0], positive="ood") == 0.5


def test_arrays_tensors_and_lists_give_the_same_and_stay_as_they_are() -> None:
    id_scores, ood_scores = [0.3, 0.1, 0.2], [0.5, 0.1]
    for convert in (list, tuple, np.array, torch.tensor, lambda x: torch.tensor(x).bfloat16().requires_grad_()):
        first, second = convert(id_scores), convert(ood_scores)
        assert auroc(first, second) == pytest.approx(3.5 / 6)
        for metric, arguments in WITHOUT_LABELS:
            assert type(metric(first, second, **arguments)) is float
    for label_type in (list, np.array, torch.tensor):
        predictions, labels = label_type([0, 1, 2]), label_type([0, 1, 1])
        assert id_accuracy(predictions, labels) == pytest.approx(2 / 3)
        assert type(oscr(id_scores, ood_scores, predictions, labels)) is float
    assert id_accuracy(np.array(["cat", "dog"], dtype=object), ["cat", "cat"]) == 0.5
    array = np.array(id_scores)
    auroc(array, ood_scores)
    assert array.tolist() == id_scores


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "`(id|ood)_scores` is empty"),
        ([0.1, float("nan")], "NaN in 1 of 2"),
        ([[0.1, 0.2]], r"one dimension.*\(1, 2\)"),
        (0.5, "one dimension"),
        (["a"], "array of numbers"),
        (["0.5"], "array of numbers"),
        ([1j], "array of numbers"),
        ([[0.1], [0.1, 0.2]], "array of numbers"),
        (None, "one dimension"),
    ],
)
def test_bad_scores_are_refused(bad: Any, message: str) -> None:
    label = {"predictions": [0], "labels": [0]}
    for metric, arguments in [*WITHOUT_LABELS, *((metric, label | more) for metric, more in WITH_LABELS)]:
        if not (metric is aurc and bad is None):
            with pytest.raises(ValueError, match=message):
                metric(id_scores=[0.5], ood_scores=bad, **arguments)
        with pytest.raises(ValueError, match=message):
            metric(id_scores=bad, ood_scores=[0.5], **arguments)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [0, 1], "`predictions` is empty"),
        ([0, 1], [[0, 1]], r"`labels` must have one dimension.*\(1, 2\)"),
        ([0, 1], [0, float("nan")], "`labels` must hold numbers without NaN"),
        ([0, None], [0, 1], "`predictions` must hold"),
        ([0, 1], ["cat", "dog"], "both be numbers or both be strings"),
        ([0, 1, 1], [0, 1, 1], "`predictions` has 3 labels for 2 ID images"),
        ([0, 1], [0], "`labels` has 1 labels for 2 ID images"),
    ],
)
def test_bad_labels_are_refused(predictions: Any, labels: Any, message: str) -> None:
    for metric in (oscr, ccr_at_fpr, aurc):
        with pytest.raises(ValueError, match=message):
            metric(id_scores=[0.1, 0.2], ood_scores=[0.3], predictions=predictions, labels=labels)
    with pytest.raises(ValueError, match="`predictions` has 1 labels, but `labels` has 2"):
        id_accuracy([0], [0, 1])


def test_bad_arguments_are_refused() -> None:
    for tpr in (0, -0.1, 1.5, float("nan"), 95):
        with pytest.raises(ValueError, match=r"`tpr` must be a number in \(0, 1\]"):
            fpr_at_tpr([0.1], [0.2], tpr)
    for wrong in ("0.95", None, True):
        with pytest.raises(TypeError, match="`tpr` must be a number"):
            fpr_at_tpr([0.1], [0.2], wrong)  # type: ignore[arg-type]
    for fpr in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"`fpr` must be a number in \[0, 1\]"):
            ccr_at_fpr([0.1], [0.2], [0], [0], fpr)
    for metric in (fpr_at_tpr, aupr):
        with pytest.raises(ValueError, match="`positive` must be 'id' or 'ood', but is 'in'"):
            metric([0.1], [0.2], positive="in")
        with pytest.raises(ValueError, match="`rule` must be .* but is 'best'"):
            metric([0.1], [0.2], rule="best")


LABELLED = {"predictions": [0, 1, 1, 0, 2, 2, 0, 1], "labels": [0, 1, 0, 0, 2, 1, 0, 1]}
ID_SCORES, OOD_SCORES = [1, 1, 2, 3, 3, 3, 4, 6], [2, 3, 5, 5, 6, 7]


@pytest.mark.parametrize(
    ("metric", "arguments"), [*WITHOUT_LABELS, *((metric, LABELLED | more) for metric, more in WITH_LABELS)]
)
def test_bootstrap_equals_the_metric_on_each_resample(metric: Callable[..., float], arguments: dict[str, Any]) -> None:
    """Through a function that bootstrap_interval does not know, each resample is drawn and measured by itself."""

    def unknown(**data: Any) -> float:
        return metric(**data)

    fast = bootstrap_interval(metric, ID_SCORES, OOD_SCORES, resamples=150, confidence=0.8, seed=3, **arguments)
    slow = bootstrap_interval(unknown, ID_SCORES, OOD_SCORES, resamples=150, confidence=0.8, seed=3, **arguments)
    assert fast == pytest.approx(slow, abs=1e-12)
    assert fast.estimate == metric(id_scores=ID_SCORES, ood_scores=OOD_SCORES, **arguments)
    assert fast.low <= fast.high


def test_bootstrap_uses_the_defaults_of_the_metric() -> None:
    fast = bootstrap_interval(fpr_at_tpr, ID_SCORES, OOD_SCORES)
    assert fast == bootstrap_interval(fpr_at_tpr, ID_SCORES, OOD_SCORES, tpr=0.95, positive="id", rule="exact")
    assert fast != bootstrap_interval(fpr_at_tpr, ID_SCORES, OOD_SCORES, tpr=0.5)


def test_bootstrap_depends_on_the_seed_and_not_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    id_scores, ood_scores = random.normal(size=37), random.normal(1, size=53)
    first = bootstrap_interval(auroc, id_scores, ood_scores, seed=1)
    assert first == bootstrap_interval(auroc, id_scores, ood_scores, seed=1)
    assert first != bootstrap_interval(auroc, id_scores, ood_scores, seed=2)
    for size in (1, 1000, 10**9):
        monkeypatch.setattr(metrics, "_CHUNK", size)
        assert bootstrap_interval(auroc, id_scores, ood_scores, seed=1) == first


def test_bootstrap_resamples_id_and_ood_images_apart() -> None:
    sizes = set()

    def share(id_scores: Any, ood_scores: Any) -> float:
        sizes.add((len(id_scores), len(ood_scores)))
        assert set(id_scores) <= {1, 2, 3} and set(ood_scores) <= {4, 5}
        return float(np.mean(id_scores))

    interval = bootstrap_interval(share, [1, 2, 3], [4, 5], resamples=50)
    assert sizes == {(3, 2)}
    assert interval.estimate == 2 and 1 <= interval.low < interval.high <= 3


def test_bootstrap_interval_has_the_width_of_theory() -> None:
    """The standard error of a share is known."""
    predictions = np.arange(400) < 320
    interval = bootstrap_interval(id_accuracy, predictions=predictions, labels=np.ones(400), resamples=4000)
    assert isinstance(interval, Interval) and interval.estimate == 0.8
    width = 2 * 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert interval.high - interval.low == pytest.approx(width, rel=0.1)
    alone = bootstrap_interval(aurc, ID_SCORES, **LABELLED)
    assert alone.estimate == aurc(ID_SCORES, **LABELLED)


def test_bootstrap_covers_the_truth() -> None:
    """P(x < y) of N(0, 1) and N(1, 1) is 0.7602; 95 % intervals hold it in about 95 % of the draws."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap_interval(auroc, random.normal(size=80), random.normal(1, size=80), resamples=300)
        covered += interval.low <= 0.76025 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resamples": 0}, ValueError, "`resamples` must be a whole number of at least 1, but is 0"),
        ({"seed": -1}, ValueError, "`seed` must be a whole number of at least 0, but is -1"),
        ({"confidence": 1.0}, ValueError, "`confidence` must be"),
        ({"confidence": 95}, ValueError, "`confidence` must be"),
        ({"resamples": 1.5}, TypeError, "integer"),
        ({"positive": "id"}, TypeError, "positive"),
        ({"predictions": [0]}, TypeError, "predictions"),
        ({"id_scores": [float("nan")]}, ValueError, "NaN in 1 of 1"),
        ({"ood_scores": []}, ValueError, "`ood_scores` is empty"),
        ({"ood_scores": None}, TypeError, "ood_scores"),
    ],
)
def test_bootstrap_refuses_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bootstrap_interval(**{"metric": auroc, "id_scores": [0.1], "ood_scores": [0.2]} | arguments)


def test_bootstrap_refuses_a_metric_that_returns_nan() -> None:
    with pytest.raises(ValueError, match="`metric` returned NaN for 10 of 10 resamples"):
        bootstrap_interval(lambda id_scores: float("nan"), [0.1, 0.2], resamples=10)


def test_every_metric_has_a_fast_bootstrap() -> None:
    public = {getattr(metrics, name) for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    assert public - {bootstrap_interval} == set(metrics.KERNELS)


def test_imports_nothing_but_numbers() -> None:
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(metrics))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." if node.level else str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names <= {"numpy", "torch", "sklearn"}


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(metrics)
    assert results.attempted > 0
    assert results.failed == 0


def test_whole_numbers_that_float64_cannot_tell_apart_are_refused() -> None:
    assert auroc([2**53 - 1], [2**53]) == 1.0
    for scores in ([2**60, 2**60 + 1], np.array([2**63 + 5], dtype=np.uint64), [-(2**60)]):
        with pytest.raises(ValueError, match="float64 cannot tell neighbours apart"):
            auroc(scores, [0])
