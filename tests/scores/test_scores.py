# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every score against the authors' values, against its formula in float64, and against what must always hold."""

import doctest
import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from clipn_hf.scores import (
    atd,
    atd_is_ood,
    atd_probabilities,
    ctw,
    ctw_is_ood,
    energy,
    joint_energy,
    max_logit,
    max_sigmoid,
    mcm,
    msp,
    odin,
    perplexity,
)

DATA = Path(__file__).parents[1] / "data"

Score = Callable[..., Tensor]
ONE_MATRIX: list[Score] = [msp, max_logit, energy, mcm, max_sigmoid, joint_energy, odin, perplexity]
TWO_MATRICES: list[Score] = [ctw, atd]
DECISIONS: list[Score] = [ctw_is_ood, atd_is_ood]
SOFTMAX: list[Score] = [msp, mcm]


def expected(score: Score, logits: Tensor, no_logits: Tensor) -> Tensor:
    """The definitions, written down as plainly as they are in the papers."""
    probabilities = logits.softmax(dim=1)
    no_probabilities = no_logits.exp() / (no_logits.exp() + logits.exp())
    rows = torch.arange(len(logits))
    return {
        msp: 1 - probabilities.amax(dim=1),
        mcm: 1 - probabilities.amax(dim=1),
        max_logit: -logits.amax(dim=1),
        energy: -logits.exp().sum(dim=1).log(),
        odin: -1000 * (logits.shape[1] * (logits / 1000).softmax(dim=1).amax(dim=1)).log(),
        perplexity: (-(probabilities * probabilities.log()).sum(dim=1)).exp(),
        max_sigmoid: 1 - (1 / (1 + (-logits).exp())).amax(dim=1),
        joint_energy: -(1 + logits.exp()).log().sum(dim=1),
        ctw: no_probabilities[rows, logits.argmax(dim=1)],
        atd: 1 - ((1 - no_probabilities) * probabilities).sum(dim=1),
    }[score]


def arguments(score: Score, logits: Tensor, no_logits: Tensor) -> tuple[Tensor, ...]:
    return (logits,) if score in ONE_MATRIX else (logits, no_logits)


@st.composite
def logit_pairs(draw: st.DrawFn, largest: float = 100.0, min_classes: int = 2) -> tuple[Tensor, Tensor]:
    """Logits and "no" logits `(batch, classes)`; no two logits of a row are equal, so that its argmax is one."""
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(min_classes, 6))
    numbers = st.floats(-largest, largest, width=32)
    row = st.lists(numbers, min_size=classes, max_size=classes, unique=True)
    no_row = st.lists(numbers, min_size=classes, max_size=classes)
    rows, no_rows = [draw(st.lists(strategy, min_size=batch, max_size=batch)) for strategy in (row, no_row)]
    return torch.tensor(rows), torch.tensor(no_rows)


@pytest.mark.parametrize(
    ("score", "golden"),
    [
        (msp, lambda values: 1 - values["score.msp"]),
        (max_logit, lambda values: -values["score.max_logit"]),
        (energy, lambda values: -values["score.energy"]),
        (ctw, lambda values: 1 - values["score.ctw"]),
        (atd, lambda values: 1 - values["score.atd"]),
    ],
)
def test_equals_the_published_clipn_code(score: Score, golden: Callable[[dict[str, Tensor]], Tensor]) -> None:
    values = load_file(DATA / "clipn_scores_official.safetensors")
    found = score(*arguments(score, values["logits"], values["no_logits"]))
    torch.testing.assert_close(found.double(), golden(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_equals_the_published_mcm_code(temperature: float) -> None:
    values = load_file(DATA / "mcm_glmcm_locoop_official.safetensors")
    similarity = values["image"] @ values["id_text"].T
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mcm(similarity, temperature), 1 - values[f"score.mcm_T{temperature}"], **close)
    torch.testing.assert_close(energy(similarity, temperature), -values[f"score.energy_T{temperature}"], **close)
    torch.testing.assert_close(max_logit(similarity), -values["score.max_logit"], **close)


@pytest.mark.parametrize("score", ONE_MATRIX + TWO_MATRICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_whatever_the_dtype(score: Score, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, no_logits = (3 * torch.randn(2, 50, 7, generator=generator)).to(dtype)
    found = score(*arguments(score, logits, no_logits))
    assert found.dtype == torch.float32
    assert found.shape == (50,)
    reference = expected(score, logits.double(), no_logits.double())
    torch.testing.assert_close(found.double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", ONE_MATRIX + TWO_MATRICES)
def test_gradient_equals_the_one_of_the_formula(score: Score) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, no_logits = 2 * torch.randn(2, 20, 5, generator=generator)
    leaves = [matrix.clone().requires_grad_() for matrix in arguments(score, logits, no_logits)]
    found = torch.autograd.grad(score(*leaves).sum(), leaves)
    doubles = [logits.double().requires_grad_(), no_logits.double().requires_grad_()]
    reference = torch.autograd.grad(expected(score, *doubles).sum(), doubles[: len(leaves)])
    for gradient, truth in zip(found, reference, strict=True):
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", ONE_MATRIX + TWO_MATRICES)
@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_huge_logits_stay_finite(score: Score, size: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, no_logits = size * (2 * torch.rand(2, 30, 6, generator=generator) - 1)
    leaves = [matrix.requires_grad_() for matrix in arguments(score, logits, no_logits)]
    found = score(*leaves)
    assert torch.isfinite(found).all()
    for gradient in torch.autograd.grad(found.sum(), leaves):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("score", [msp, mcm, energy, odin])
@pytest.mark.parametrize("temperature", [1e-44, 1e-3, 1e6, 1e38])
def test_any_temperature_stays_finite(score: Score, temperature: float) -> None:
    logits = torch.tensor([[100.0, 99.0, -100.0], [0.0, 0.0, 0.0]])
    assert torch.isfinite(score(logits, temperature)).all()


@pytest.mark.parametrize("score", [*SOFTMAX, max_sigmoid])
def test_near_certain_images_stay_apart(score: Score) -> None:
    """`1 - p` is 0 for both in float32, and equal scores cannot be ranked."""
    surer, sure = score(torch.tensor([[40.0, 0.0], [30.0, 0.0]]))
    assert 0 < surer < sure < 1e-12


@settings(deadline=None)
@given(logit_pairs())
def test_range(pair: tuple[Tensor, Tensor]) -> None:
    logits, no_logits = pair
    classes = logits.shape[1]
    for score in SOFTMAX:
        assert ((score(logits) >= 0) & (score(logits) <= 1 - 1 / classes + 1e-6)).all()
    for score in TWO_MATRICES:
        assert ((score(logits, no_logits) >= 0) & (score(logits, no_logits) <= 1)).all()
    probabilities = atd_probabilities(logits, no_logits)
    assert probabilities.shape == (len(logits), classes + 1)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(logits)), rtol=0, atol=1e-5)
    assert ((odin(logits) >= -1000 * math.log(classes)) & (odin(logits) <= 0)).all()
    assert ((perplexity(logits) >= 1) & (perplexity(logits) <= classes * (1 + 1e-6))).all()
    # Between the largest logit and the largest logit plus the logarithm of the number of classes.
    assert (energy(logits) <= max_logit(logits)).all()
    assert (energy(logits) >= max_logit(logits) - torch.tensor(float(classes)).log() - 1e-4).all()


@settings(deadline=None)
@given(logit_pairs(), st.randoms(use_true_random=False))
def test_order_of_classes_does_not_matter(pair: tuple[Tensor, Tensor], random: object) -> None:
    logits, no_logits = pair
    order = list(range(logits.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    for score in ONE_MATRIX + TWO_MATRICES:
        straight = score(*arguments(score, logits, no_logits))
        shuffled = score(*arguments(score, logits[:, order], no_logits[:, order]))
        torch.testing.assert_close(straight, shuffled, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(logit_pairs())
def test_images_do_not_influence_each_other(pair: tuple[Tensor, Tensor]) -> None:
    logits, no_logits = pair
    for score in ONE_MATRIX + TWO_MATRICES:
        together = score(*arguments(score, logits, no_logits))
        alone = [score(*arguments(score, logits[i : i + 1], no_logits[i : i + 1])) for i in range(len(logits))]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-7)


@settings(deadline=None)
@given(logit_pairs(largest=1e4, min_classes=1))
def test_decisions_agree_with_the_probabilities(pair: tuple[Tensor, Tensor]) -> None:
    logits, no_logits = pair
    probabilities = atd_probabilities(logits, no_logits)
    unknown_is_largest = (probabilities[:, -1:] > probabilities[:, :-1]).all(dim=1)
    assert torch.equal(atd_is_ood(logits, no_logits), unknown_is_largest)
    assert torch.equal(atd(logits, no_logits), probabilities[:, -1])
    no_probability = ctw(logits, no_logits)
    assert torch.equal(ctw_is_ood(logits, no_logits), no_probability > 1 - no_probability)
    assert torch.equal(ctw_is_ood(logits, no_logits), no_probability > 0.5)


def test_images_that_no_label_fits_stay_apart() -> None:
    """The sigmoid models have logits far below 0; scores that are equal cannot be ranked."""
    logits = torch.tensor([[-14.0, -15.0], [-14.5, -15.0], [-60.0, -61.0], [-60.5, -61.0]])
    assert (joint_energy(logits).diff() > 0).all()
    assert max_sigmoid(logits)[0] < max_sigmoid(logits)[1] < 1
    best = torch.tensor([[3.0, -50.0, -50.0]])
    torch.testing.assert_close(joint_energy(best), energy(torch.cat([best[:, :1], torch.zeros(1, 1)], dim=1)))


def test_perplexity_equals_the_published_code() -> None:
    values = load_file(DATA / "plp_official.safetensors")
    torch.testing.assert_close(perplexity(values["logits"]), -values["perplexity"], rtol=0, atol=1e-6)
    # By hand: two classes in question, all three, and one half and two quarters, 2 ** 1.5.
    found = perplexity(torch.tensor([[7.0, 7.0, -90.0], [1.0, 1.0, 1.0], [math.log(2), 0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 2**1.5]))


@settings(deadline=None)
@given(logit_pairs(), st.sampled_from([1.0, 30.0, 1000.0]))
def test_odin_without_a_step_is_msp(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    logits, _ = pair
    probability = (-odin(logits, temperature).double() / temperature).exp() / logits.shape[1]
    torch.testing.assert_close(msp(logits, temperature).double(), 1 - probability, rtol=1e-5, atol=1e-6)


def test_images_stay_apart_at_a_high_temperature() -> None:
    """Where `1 - p` is next to `1 - 1 / C` for all of them, float32 has but a few numbers."""
    logits = 3 * torch.randn(2000, 1000, generator=torch.Generator().manual_seed(5))
    exact = 1 - (logits.double() / 1000).softmax(dim=1).amax(dim=1)
    assert len(exact.unique()) == 2000
    assert len(exact.float().unique()) < 300
    assert len(odin(logits).unique()) > 1990
    # In the same order.
    assert (odin(logits)[exact.argsort()].diff() >= 0).all()


def test_ties_are_not_ood() -> None:
    zeros = torch.zeros(1, 1)
    assert ctw(zeros, zeros).item() == atd(zeros, zeros).item() == 0.5
    assert not ctw_is_ood(zeros, zeros).item()
    assert not atd_is_ood(zeros, zeros).item()


@settings(deadline=None)
@given(logit_pairs(largest=10.0), st.floats(0.5, 5.0))
def test_a_stronger_no_is_more_ood(pair: tuple[Tensor, Tensor], gain: float) -> None:
    logits, no_logits = pair
    for score in TWO_MATRICES:
        assert (score(logits, no_logits + gain) >= score(logits, no_logits) - 1e-6).all()


def test_mcm_is_msp_at_the_scale_of_the_logits() -> None:
    similarity = torch.rand(10, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mcm(similarity, temperature=0.01), msp(100 * similarity))
    torch.testing.assert_close(mcm(similarity), msp(100 * similarity, temperature=100))


@pytest.mark.parametrize("score", [max_logit, energy, max_sigmoid, joint_energy, *TWO_MATRICES, *DECISIONS])
def test_one_class_works(score: Score) -> None:
    assert score(*arguments(score, torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [3.0]]))).shape == (2,)


@pytest.mark.parametrize("score", [*SOFTMAX, odin, perplexity])
def test_a_softmax_over_one_class_is_refused(score: Score) -> None:
    with pytest.raises(ValueError, match="at least 2 labels"):
        score(torch.zeros(3, 1))


@pytest.mark.parametrize("score", ONE_MATRIX + TWO_MATRICES + DECISIONS)
def test_no_images_give_no_scores(score: Score) -> None:
    assert score(*arguments(score, torch.zeros(0, 3), torch.zeros(0, 3))).shape == (0,)


@pytest.mark.parametrize("score", [*ONE_MATRIX, *TWO_MATRICES, *DECISIONS, atd_probabilities])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(score: Score, bad: float) -> None:
    damaged = torch.zeros(3, 2)
    damaged[1, 0] = bad
    with pytest.raises(ValueError, match="in 1 of 3 rows"):
        score(*arguments(score, damaged, torch.zeros(3, 2)))
    if score not in ONE_MATRIX:
        with pytest.raises(ValueError, match="`no_logits` has NaN or infinite"):
            score(torch.zeros(3, 2), damaged)


@pytest.mark.parametrize("score", [*ONE_MATRIX, *TWO_MATRICES, *DECISIONS, atd_probabilities])
def test_wrong_shapes_are_refused(score: Score) -> None:
    for shape in [(3,), (1, 3, 2), ()]:
        with pytest.raises(ValueError, match=r"must have shape \(batch, classes\), got \("):
            score(*arguments(score, torch.zeros(shape), torch.zeros(shape)))
    with pytest.raises(ValueError, match="no classes"):
        score(*arguments(score, torch.zeros(3, 0), torch.zeros(3, 0)))
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor .* got list"):
        score(*arguments(score, [[1.0, 2.0]], [[1.0, 2.0]]))  # type: ignore[arg-type]
    if score not in ONE_MATRIX:
        with pytest.raises(ValueError, match=r"the same shape .* got \(3, 2\) and \(1, 2\)"):
            score(torch.zeros(3, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("score", [msp, mcm, energy, odin])
def test_bad_temperatures_are_refused(score: Score) -> None:
    for temperature in [0, -1.0, float("nan"), float("inf"), 1e-46, 1e39, 10**400]:
        with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
            score(torch.zeros(3, 2), temperature)
    for temperature in ["1", None, True]:
        with pytest.raises(TypeError, match="`temperature` must be a number"):
            score(torch.zeros(3, 2), temperature)


@pytest.mark.parametrize("module", ["activations", "baselines", "clipn", "neglabel", "sigmoid", "vim"])
def test_examples_print_what_they_show(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"clipn_hf.scores.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
