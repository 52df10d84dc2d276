# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Clipped activations, and the scores of their logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf.methods import TrainingInputs, method_inputs
from clipn_hf.methods.react import REACT
from clipn_hf.scores import activation_threshold, clip_activations, energy, max_logit, mcm, msp

PLAIN = {"energy": energy, "msp": msp, "max_logit": max_logit, "mcm": mcm}


def random_images(count: int, dim: int = 8, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    st.floats(0, 100),
)
def test_threshold_is_the_percentile_of_all_values(values: list[float], percentile: float) -> None:
    found = activation_threshold(torch.tensor(values).reshape(1, -1), percentile)
    ordered = sorted(values)
    position = percentile / 100 * (len(values) - 1)
    below, share = int(position), position % 1
    above = ordered[min(below + 1, len(values) - 1)]
    assert found == pytest.approx(ordered[below] + share * (above - ordered[below]), abs=1e-5)


def test_threshold_of_more_values_than_quantiles_of_torch_take() -> None:
    features = torch.arange(2**24 + 2, dtype=torch.float32).reshape(2, -1)
    assert activation_threshold(features, 100.0) == 2**24
    assert activation_threshold(features, 50.0) == pytest.approx(2**23)


def test_large_activations_alone_are_clipped() -> None:
    features = random_images(50)
    clipped = clip_activations(features, 0.3)
    assert clipped.max() == torch.tensor(0.3)
    assert torch.equal(clipped[features <= 0.3], features[features <= 0.3])
    assert clip_activations(features.half(), 0.3).dtype == torch.float32


def judged(percentile: float, **settings: Any) -> tuple[Tensor, Tensor]:
    """The score of images by what was learnt from them, and that without clipping."""
    images, texts = random_images(40), random_images(3, seed=1)
    training = TrainingInputs(images, None, 3, texts, 20.0, -5.0)
    assert REACT.fit is not None
    state = REACT.fit(training, percentile)
    inputs = method_inputs(images, texts, logit_scale=20.0, logit_bias=-5.0, state=state)
    plain = PLAIN[settings["score"]]
    arguments = {name: value for name, value in settings.items() if name == "temperature"}
    expected = plain(inputs.similarity if settings["score"] == "mcm" else inputs.logits, **arguments)
    # Predictions do not depend on what is learnt.
    assert replace(inputs, state={}).logits is inputs.logits
    return REACT.score(inputs, **settings), expected


@pytest.mark.parametrize("score", PLAIN)
def test_the_hundredth_percentile_is_the_plain_score(score: str) -> None:
    settings: dict[str, Any] = {"score": score} | ({} if score == "max_logit" else {"temperature": 0.7})
    torch.testing.assert_close(*judged(100.0, **settings))
    found, expected = judged(80.0, **settings)
    assert not torch.allclose(found, expected)


def test_score_is_that_of_logits_of_embeddings_that_are_not_normalized_again() -> None:
    images, texts = random_images(5), random_images(3, seed=1)
    state = {"threshold": torch.tensor(0.2, dtype=torch.float64)}
    inputs = method_inputs(images, texts, logit_scale=20.0, logit_bias=-5.0, state=state)
    clipped = torch.minimum(images, torch.tensor(0.2))
    logits = 20 * clipped @ texts.T - 5
    torch.testing.assert_close(REACT.score(inputs), -logits.logsumexp(dim=1))
    torch.testing.assert_close(REACT.score(inputs, score="max_logit"), -logits.amax(dim=1))
    torch.testing.assert_close(REACT.score(inputs, score="msp"), 1 - logits.softmax(dim=1).amax(dim=1))
    cosines = clipped @ texts.T
    torch.testing.assert_close(REACT.score(inputs, score="mcm"), 1 - cosines.softmax(dim=1).amax(dim=1))


def test_bad_arguments_are_refused() -> None:
    features = random_images(4)
    for percentile, error in ((-1.0, ValueError), (100.5, ValueError), (float("nan"), ValueError), ("90", TypeError)):
        with pytest.raises(error, match=f"^`percentile` must .*, got .*{percentile}"):
            activation_threshold(features, percentile)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`features` has 0 images, but at least 1"):
        activation_threshold(features[:0])
    for threshold, error in ((float("inf"), ValueError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error, match="^`threshold` must be"):
            clip_activations(features, threshold)  # type: ignore[arg-type]
    state = {"threshold": torch.tensor(0.2, dtype=torch.float64)}
    with pytest.raises(ValueError, match="^`score` must be one of 'energy', .*, got 'odin'"):
        REACT.score(method_inputs(features, features, state=state), score="odin")
