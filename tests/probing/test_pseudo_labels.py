# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Labels, confidences, the filter and the report of pseudo-labels."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipn_hf.probing import pseudo_label
from clipn_hf.probing.pseudo_labels import record_pseudo_labels

LOGITS = torch.tensor([[9.0, 1.0, 0.0], [8.0, 0.0, 1.0], [0.0, 5.0, 4.0], [0.0, 1.0, 6.0]])


def test_labels_confidences_and_filter() -> None:
    found = pseudo_label(LOGITS)
    expected = LOGITS.double().softmax(dim=1)
    assert found.labels.tolist() == [0, 0, 1, 2]
    torch.testing.assert_close(found.confidence.double(), expected.amax(dim=1), rtol=1e-6, atol=1e-6)
    assert found.confidence.dtype == torch.float32
    assert found.kept.tolist() == [True, True, False, True]
    assert len(found) == 4
    assert found.counts == [2, 1, 1]
    assert found.kept_counts == [2, 0, 1]
    assert found.empty_classes == [1]
    assert found.share_kept == 0.75
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found.balance == pytest.approx(entropy / math.log(3))
    report = found.describe()
    assert json.loads(json.dumps(report)) == report
    assert report["kept"] == 3
    assert report["min_confidence"] == 0.9


@pytest.mark.parametrize("min_confidence", [None, 0, 0.0])
def test_without_a_filter_all_are_kept(min_confidence: float | None) -> None:
    found = pseudo_label(LOGITS, min_confidence)
    assert found.kept.all()
    assert found.empty_classes == []
    assert found.share_kept == 1


@given(st.integers(1, 12), st.integers(2, 6), st.integers(1, 5), st.integers(0, 1000))
def test_parts_are_as_the_whole(images: int, classes: int, step: int, seed: int) -> None:
    logits = 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))
    whole, parts = pseudo_label(logits, None), pseudo_label(iter(logits.split(step)), None)
    assert torch.equal(whole.labels, parts.labels)
    torch.testing.assert_close(whole.confidence, parts.confidence)
    assert 0 <= whole.balance <= 1 + 1e-12
    assert sum(whole.counts) == images


def test_record_names_the_extremes() -> None:
    assert record_pseudo_labels([3, 9, 8], [2, 0, 7], 0.9, ["cat", "dog", "car"], ("a {}.",)) == {
        "min_confidence": 0.9,
        "templates": ["a {}."],
        "kept": 9,
        "of": 20,
        "fewest": {"label": "dog", "images": 0},
        "most": {"label": "car", "images": 7},
    }


def test_balance_is_highest_when_all_are_alike() -> None:
    assert pseudo_label(10 * torch.eye(4), None).balance == pytest.approx(1)
    assert pseudo_label(10 * torch.eye(4)[:1], None).balance == 0


def test_nothing_certain_enough_names_the_highest_confidence() -> None:
    with pytest.raises(
        ValueError, match=r"None of the 4 images .* of 0.9999 or more, the highest one is 0.9995\d*; lower"
    ):
        pseudo_label(LOGITS, 0.9999)


@pytest.mark.parametrize(
    ("logits", "min_confidence", "error", "message"),
    [
        (LOGITS, 1.5, ValueError, "`min_confidence` must be between 0 and 1, got 1.5."),
        (LOGITS, float("nan"), ValueError, "`min_confidence` must be between 0 and 1, got nan."),
        (LOGITS, "0.9", TypeError, "`min_confidence` must be a number, got str"),
        (LOGITS, True, TypeError, "`min_confidence` must be a number, got bool"),
        (LOGITS[:0], 0.9, ValueError, "at least 1 is needed"),
        ([], 0.9, ValueError, "at least 1 is needed"),
        (LOGITS[:, :1], None, ValueError, "at least 2"),
        (LOGITS * float("nan"), None, ValueError, "NaN"),
        ([LOGITS, LOGITS[:, :2]], None, ValueError, r"same classes, got \[2, 3\]"),
        ([[1.0, 2.0]], None, TypeError, "must be a torch.Tensor"),
    ],
)
def test_bad_input_is_refused(logits: Any, min_confidence: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pseudo_label(logits, min_confidence)
