# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics against the papers' published code, sklearn and brute force, ties included."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clipn_hf.evaluation import metrics
from clipn_hf.evaluation.metrics import auroc, fpr_at_tpr

# ID-ness scores, as the published code has them.
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "metrics_official.json").read_text())

scores = st.lists(st.integers(0, 8).map(lambda value: value / 4), min_size=1, max_size=30)


def brute_force_fpr(id_scores: list[float], ood_scores: list[float], tpr: float) -> float:
    """ID positive: tries every score as the largest one accepted."""

    def accepted(scores: list[float], threshold: float) -> float:
        return sum(score <= threshold for score in scores) / len(scores)

    thresholds = [score for score in id_scores + ood_scores if accepted(id_scores, score) >= tpr]
    return min(accepted(ood_scores, threshold) for threshold in thresholds)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_equals_the_published_code(case: dict[str, Any]) -> None:
    id_scores, ood_scores = -np.array(case["id"]), -np.array(case["ood"])
    assert auroc(id_scores, ood_scores) == pytest.approx(case["auroc"], abs=1e-12)
    # The rules of the published code differ from the exact one where scores are equal.
    if case["name"] != "ties":
        assert fpr_at_tpr(id_scores, ood_scores) == pytest.approx(case["fpr95_mcm"], abs=1e-12)
        assert fpr_at_tpr(id_scores, ood_scores) == pytest.approx(case["fpr95_clipn"], abs=1e-12)
    assert fpr_at_tpr(id_scores, ood_scores) == brute_force_fpr(id_scores.tolist(), ood_scores.tolist(), 0.95)


@settings(deadline=None)
@given(scores, scores)
def test_auroc_equals_sklearn(id_scores: list[float], ood_scores: list[float]) -> None:
    truth = [0] * len(id_scores) + [1] * len(ood_scores)
    assert auroc(id_scores, ood_scores) == pytest.approx(roc_auc_score(truth, id_scores + ood_scores), abs=1e-12)


@settings(deadline=None)
@given(scores, scores, st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0]))
def test_fpr_equals_brute_force(id_scores: list[float], ood_scores: list[float], tpr: float) -> None:
    assert fpr_at_tpr(id_scores, ood_scores, tpr) == brute_force_fpr(id_scores, ood_scores, tpr)
    mirrored = brute_force_fpr([-score for score in ood_scores], [-score for score in id_scores], tpr)
    assert fpr_at_tpr(id_scores, ood_scores, tpr, positive="ood") == mirrored


@pytest.mark.parametrize("count", [20, 40, 60, 100, 1000, 12340])
def test_exactly_the_requested_share_is_enough(count: int) -> None:
    """0.95 of a multiple of 20 is a whole number, whatever the product of the floats says."""
    id_scores = np.arange(count)
    allowed = count * 95 // 100
    assert fpr_at_tpr(id_scores, [allowed - 1, allowed]) == 0.5


def test_equal_scores_are_chance() -> None:
    assert auroc([1.0] * 3, [1.0] * 5) == 0.5
    assert fpr_at_tpr([1.0] * 3, [1.0] * 5) == 1.0
    assert fpr_at_tpr([1.0] * 3, [1.0] * 5, positive="ood") == 1.0


def test_infinite_scores_have_a_rank() -> None:
    assert auroc([-np.inf, 0.0], [np.inf, 0.0]) == 0.875


def test_arrays_tensors_and_lists_give_the_same_and_stay_as_they_are() -> None:
    id_scores, ood_scores = [0.3, 0.1, 0.2], [0.5, 0.1]
    for convert in (list, tuple, np.array, torch.tensor, lambda x: torch.tensor(x).half().requires_grad_()):
        first, second = convert(id_scores), convert(ood_scores)
        assert auroc(first, second) == pytest.approx(3.5 / 6)
        assert type(auroc(first, second)) is type(fpr_at_tpr(first, second)) is float
    array = np.array(id_scores)
    auroc(array, ood_scores)
    assert array.tolist() == id_scores


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "is empty"),
        ([0.1, float("nan")], "NaN in 1 of 2"),
        ([[0.1, 0.2]], r"one dimension.*\(1, 2\)"),
        (0.5, "one dimension"),
        (["a"], "array of numbers"),
        (None, "one dimension|array of numbers|NaN"),
    ],
)
def test_bad_scores_are_refused(bad: Any, message: str) -> None:
    for metric in (auroc, fpr_at_tpr):
        with pytest.raises(ValueError, match=message):
            metric(bad, [0.5])
        with pytest.raises(ValueError, match=message):
            metric([0.5], bad)


def test_bad_operating_points_are_refused() -> None:
    for tpr in (0, -0.1, 1.5, float("nan"), 95):
        with pytest.raises(ValueError, match="`tpr` must be a number in"):
            fpr_at_tpr([0.1], [0.2], tpr)
    with pytest.raises(ValueError, match="`positive` must be 'id' or 'ood', got 'in'"):
        fpr_at_tpr([0.1], [0.2], positive="in")  # type: ignore[arg-type]


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(metrics)
    assert results.attempted > 0
    assert results.failed == 0
