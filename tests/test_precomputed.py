# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Text embeddings that were computed before, in place of a model."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clipn_hf import PrecomputedEncoder

BANK = {"cat": [3.0, 4.0], "dog": [0.0, 2.0], "tree": [-1.0, 0.0]}


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.array,
        lambda row: np.array(row, dtype=np.float16),
        torch.tensor,
        lambda row: torch.tensor(row, dtype=torch.bfloat16),
        lambda row: torch.tensor(row, requires_grad=True),
    ],
)
def test_precomputed_texts_of_every_kind(convert: Callable[[list[float]], Any]) -> None:
    encoder = PrecomputedEncoder({text: convert(row) for text, row in BANK.items()}, "some-clip", ["a {}"], 50)
    text, no_text = encoder.class_embeddings(["tree", "cat"])
    torch.testing.assert_close(text, torch.tensor([[-1.0, 0.0], [0.6, 0.8]]))
    assert not text.requires_grad
    assert no_text is None
    assert (encoder.logit_scale, encoder.source, encoder.has_no_encoder) == (50.0, "some-clip", False)


def test_precomputed_texts_are_told_apart() -> None:
    encoder = PrecomputedEncoder(BANK, "some-clip", ["a {}"])
    described = encoder.describe()
    assert json.loads(json.dumps(described)) == described
    assert (described["id"], described["class"]) == ("some-clip", "PrecomputedEncoder")
    assert described["image_processor_sha256"] is None
    scaled = {text: [2 * value for value in row] for text, row in BANK.items()}
    assert PrecomputedEncoder(dict(reversed(scaled.items())), "some-clip", ["a {}"]).describe() == described
    changes = {"cat": [3.0, 4.1]}, {"car": [1.0, 1.0]}, {"cat": BANK["dog"], "dog": BANK["cat"]}
    for other in ({**BANK, **change} for change in changes):
        assert PrecomputedEncoder(other, "some-clip", ["a {}"]).describe() != described


@pytest.mark.parametrize(
    ("bank", "error", "message"),
    [
        ({}, ValueError, "`text_bank` is empty"),
        ({"cat": [[1.0, 2.0]]}, TypeError, r"`text_bank` must hold vectors, got shape \(1, 2\) for 'cat'"),
        ({"cat": 1.0}, TypeError, r"must hold vectors, got shape \(\) for 'cat'"),
        ({"cat": [1.0, 2.0], "dog": [1.0]}, ValueError, "vectors of one width, got 1 for 'dog' and 2 before"),
        ({"cat": [0.0, 0.0]}, ValueError, "embedding of 'cat' is zero or not finite"),
        ({"cat": [1.0, float("nan")]}, ValueError, "embedding of 'cat' is zero or not finite"),
    ],
)
def test_bad_precomputed_texts(bank: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PrecomputedEncoder(bank, "some-clip", ["a {}"])


def test_precomputed_texts_cannot_change() -> None:
    encoder = PrecomputedEncoder(BANK, "some-clip", ["a {}"])
    assert encoder.texts == [*BANK]
    encoder.texts.clear()
    assert encoder.texts == [*BANK]
    assert encoder.label_templates() == encoder.label_templates(("a {}",)) == (["a {}"], [])
    for wrong in ({"templates": ["the {}"]}, {"no_templates": ["no {}"]}):
        with pytest.raises(ValueError, match=r"computed with the templates \['a \{\}'\], got"):
            encoder.class_embeddings(["cat"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`text_bank` of some-clip has no embedding of 'car' and 1 more label"):
        encoder.class_embeddings(["cat", "car", "bus"])
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`logit_scale` must be a positive number"):
            PrecomputedEncoder(BANK, "some-clip", ["a {}"], scale)
    for bias in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="`logit_bias` must be a finite number or None"):
            PrecomputedEncoder(BANK, "some-clip", ["a {}"], logit_bias=bias)
    with pytest.raises(ValueError, match="`templates"):
        PrecomputedEncoder(BANK, "some-clip", ["photo"])


@pytest.mark.parametrize(("bias", "is_sigmoid"), [(None, False), (0.0, True), (-12.5, True)])
def test_a_bias_tells_of_a_sigmoid_loss(bias: float | None, is_sigmoid: bool) -> None:
    encoder = PrecomputedEncoder(BANK, "some-siglip", ["a {}"], logit_bias=bias)
    assert (encoder.logit_bias, encoder.is_sigmoid, encoder.family) == (bias or 0.0, is_sigmoid, "precomputed")
    described = encoder.describe()
    assert [described[key] for key in ("logit_bias", "is_sigmoid", "family")] == [
        bias or 0.0,
        is_sigmoid,
        "precomputed",
    ]
