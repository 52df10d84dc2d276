# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The module for the evaluate library, loaded as a user loads it."""

from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from clipn_hf.evaluation import metrics, ood_detection

SCORES, IS_OOD = [0.1, 0.2, 0.6, 0.4, 0.6, 0.9], [0, 0, 0, 1, 1, 1]


@pytest.fixture
def metric(tmp_path: Path) -> Any:
    return evaluate.load(ood_detection.__file__, cache_dir=str(tmp_path))


def test_equals_the_functions(metric: Any) -> None:
    results = metric.compute(predictions=SCORES, references=IS_OOD)
    id_scores, ood_scores = SCORES[:3], SCORES[3:]
    assert results == {
        "auroc": metrics.auroc(id_scores, ood_scores),
        "aupr_in": metrics.aupr(id_scores, ood_scores),
        "aupr_out": metrics.aupr(id_scores, ood_scores, positive="ood"),
        "fpr_at_tpr": metrics.fpr_at_tpr(id_scores, ood_scores),
        "detection_accuracy": metrics.detection_accuracy(id_scores, ood_scores),
        "tpr": 0.95,
        "positive": "id",
        "rule": "exact",
        "aupr_rule": "average_precision",
    }


def test_conventions_are_followed_and_stated(metric: Any) -> None:
    conventions = {"tpr": 0.5, "positive": "ood", "rule": "linear", "aupr_rule": "trapezoid"}
    results = metric.compute(predictions=SCORES, references=IS_OOD, **conventions)
    assert conventions.items() <= results.items()
    assert results["fpr_at_tpr"] == metrics.fpr_at_tpr(SCORES[:3], SCORES[3:], 0.5, "ood", "linear")
    assert results["aupr_in"] == metrics.aupr(SCORES[:3], SCORES[3:], rule="trapezoid")


def test_labels_add_the_open_set_metrics(metric: Any) -> None:
    labels = {
        "predicted_labels": ["cat", "dog", "cat", "dog", "dog", "cat"],
        "class_labels": ["cat", "dog", "dog", *"???"],
    }
    results = metric.compute(predictions=SCORES, references=IS_OOD, fpr=0.5, **labels)
    predicted, right = labels["predicted_labels"][:3], labels["class_labels"][:3]
    assert results["id_accuracy"] == metrics.id_accuracy(predicted, right)
    assert results["aurc"] == metrics.aurc(SCORES[:3], predicted, right)
    assert results["oscr"] == metrics.oscr(SCORES[:3], SCORES[3:], predicted, right)
    assert results["ccr_at_fpr"] == metrics.ccr_at_fpr(SCORES[:3], SCORES[3:], predicted, right, 0.5)
    assert results["fpr"] == 0.5


def test_batches_keep_double_precision(metric: Any) -> None:
    """In float32, the two scores would be equal."""
    metric.add_batch(predictions=[1 - 1e-12], references=[0])
    metric.add(prediction=1 - 1e-13, reference=1)
    assert metric.compute()["auroc"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": [0, 0, 0, 0, 0, 0]}, "`references` has no 1; give at least one OOD image"),
        ({"references": [1, 1, 1, 1, 1, 1]}, "`references` has no 0; give at least one ID image"),
        ({"references": [0, 0, 0, 1, 1, 2]}, "`references` must be 1 for OOD and 0 for ID images, but holds 2"),
        ({"predictions": [0.1, 0.2, float("nan"), 0.4, 0.6, 0.9]}, "`id_scores` has NaN in 1 of 3"),
        ({"positive": "in"}, "`positive` must be 'id' or 'ood'"),
        ({"predicted_labels": [0] * 6}, "belong together"),
        ({"predicted_labels": [0] * 6, "class_labels": [0] * 3}, "`class_labels` must have one label for each of 6"),
    ],
)
def test_bad_input_is_refused(metric: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric.compute(**{"predictions": np.array(SCORES), "references": IS_OOD} | arguments)


def test_describes_itself(metric: Any) -> None:
    assert "higher = more OOD" in metric.inputs_description
    assert set(metric.features) == {"predictions", "references"}
