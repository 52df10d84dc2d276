# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The unknown class against its formula in float64, and against what must always hold."""

import doctest
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clipn_hf.scores import mcm, mcm_with_unknown, msp, unknown, unknown_probability

ALL: list[Callable[..., Tensor]] = [unknown_probability, mcm_with_unknown]


def random_logits(batch: int = 50, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, classes, generator=generator), 3 * torch.randn(batch, generator=generator)


@st.composite
def logits_and_unknown(draw: st.DrawFn, largest: float = 100.0) -> tuple[Tensor, Tensor]:
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.floats(-largest, largest, width=32)
    rows = draw(st.lists(st.lists(numbers, min_size=classes, max_size=classes), min_size=batch, max_size=batch))
    return torch.tensor(rows), torch.tensor(draw(st.lists(numbers, min_size=batch, max_size=batch)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 5])
def test_equals_the_formula_whatever_the_dtype(dtype: torch.dtype, classes: int) -> None:
    logits, unknown_logits = (values.to(dtype) for values in random_logits(classes=classes))
    found = unknown_probability(logits, unknown_logits)
    assert found.dtype == torch.float32
    assert found.shape == (50,)
    a, u = logits.double(), unknown_logits.double()
    torch.testing.assert_close(found.double(), u.exp() / (u.exp() + a.exp().sum(dim=1)), rtol=1e-5, atol=1e-7)


def test_gradient_equals_the_one_of_the_formula() -> None:
    leaves = [values.double().requires_grad_() for values in random_logits()]
    a, u = leaves
    truth = torch.autograd.grad((u - torch.cat([a, u[:, None]], dim=1).logsumexp(dim=1)).exp().sum(), leaves)
    for found, expected in zip(torch.autograd.grad(unknown_probability(a, u).sum(), leaves), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@given(logits_and_unknown())
def test_range_and_order(pair: tuple[Tensor, Tensor]) -> None:
    logits, unknown_logits = pair
    found = unknown_probability(logits, unknown_logits)
    assert ((found >= 0) & (found <= 1)).all()
    # A more likely unknown class is more OOD, and what all logits have in common changes nothing.
    assert (unknown_probability(logits, unknown_logits + 1) >= found).all()
    common = unknown_probability(logits + 7, unknown_logits + 7)
    torch.testing.assert_close(common, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unknown_probability(logits.flip(1), unknown_logits), found, rtol=1e-5, atol=1e-6)
    alone = [unknown_probability(logits[i : i + 1], unknown_logits[i : i + 1]) for i in range(len(logits))]
    torch.testing.assert_close(torch.cat(alone), found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_huge_logits_stay_finite(size: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, unknown_logits = (2 * torch.rand(30, 6, generator=generator) - 1).mul(size).split([5, 1], dim=1)
    leaves = [logits.requires_grad_(), unknown_logits[:, 0].requires_grad_()]
    found = unknown_probability(leaves[0], leaves[1])
    assert torch.isfinite(found).all()
    for gradient in torch.autograd.grad(found.sum(), leaves):
        assert torch.isfinite(gradient).all()


def test_images_that_are_surely_known_stay_apart() -> None:
    unknown_logits = torch.tensor([0.0, 10.0, 20.0])
    found = unknown_probability(torch.full((3, 2), 60.0), unknown_logits)
    assert 0 < found[0] < found[1] < found[2] < 1e-15
    torch.testing.assert_close(found.log(), unknown_logits - 60 - math.log(2))


def test_the_rest_is_the_probability_of_the_classes() -> None:
    """The largest of which is `1 - msp` without the unknown class, times that nothing is unknown."""
    logits, unknown_logits = random_logits()
    known = 1 - unknown_probability(logits, unknown_logits)
    largest = torch.cat([logits, unknown_logits[:, None]], dim=1).softmax(dim=1)[:, :-1].amax(dim=1)
    torch.testing.assert_close(known * (1 - msp(logits)), largest, rtol=1e-5, atol=1e-6)


COSINES = st.tuples(logits_and_unknown(1.0), st.floats(0, 100), st.sampled_from([0.01, 0.2, 1.0, 30.0]))


@given(COSINES)
def test_mcm_with_unknown_equals_its_formula(drawn: tuple[tuple[Tensor, Tensor], float, float]) -> None:
    (similarity, unknown_similarity), weight, temperature = drawn
    found = mcm_with_unknown(similarity, unknown_similarity, temperature, weight)
    assert found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all()
    s = (similarity.double() / temperature).exp()
    u = weight * similarity.shape[1] * (unknown_similarity.double() / temperature).exp()
    torch.testing.assert_close(found.double(), 1 - s.amax(dim=1) / (s.sum(dim=1) + u), rtol=1e-4, atol=1e-6)
    # What is more like the unknown, or gives it more weight, is no less OOD.
    assert (mcm_with_unknown(similarity, unknown_similarity + 0.1, temperature, weight) >= found - 1e-6).all()
    assert (mcm_with_unknown(similarity, unknown_similarity, temperature, 2 * weight) >= found - 1e-6).all()
    alone = [
        mcm_with_unknown(similarity[i : i + 1], unknown_similarity[i : i + 1], temperature, weight)
        for i in range(len(similarity))
    ]
    torch.testing.assert_close(torch.cat(alone), found, rtol=1e-6, atol=1e-7)


def test_mcm_with_unknown_of_special_weights() -> None:
    logits, unknown_logits = random_logits()
    similarity, unknown_similarity = logits / 30, unknown_logits / 30
    torch.testing.assert_close(mcm_with_unknown(similarity, unknown_similarity, weight=0.0), mcm(similarity))
    # Counted once at the scale of the logits it is the largest probability among all classes and the unknown one.
    known = (1 - unknown_probability(logits, unknown_logits)) * (1 - msp(logits))
    found = mcm_with_unknown(similarity, unknown_similarity, 1 / 30, weight=1 / 5)
    torch.testing.assert_close(found, 1 - known, rtol=1e-4, atol=1e-6)
    # The larger the weight, the more it is the margin between the unknown and the best class.
    margin = unknown_similarity - similarity.amax(dim=1)
    exact = mcm_with_unknown(similarity, unknown_similarity, 1.0, weight=1e3)
    assert torch.equal(exact.argsort()[[0, -1]], margin.argsort()[[0, -1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mcm_with_unknown_computes_in_float32(dtype: torch.dtype) -> None:
    similarity, unknown_similarity = (values.div(30).to(dtype) for values in random_logits())
    found = mcm_with_unknown(similarity, unknown_similarity)
    assert torch.equal(found, mcm_with_unknown(similarity.float(), unknown_similarity.float()))


def test_gradient_of_mcm_with_unknown() -> None:
    leaves = [values.div(30).double().requires_grad_() for values in random_logits()]
    s, u = leaves
    known = s.exp().amax(dim=1) / (s.exp().sum(dim=1) + 0.25 * 5 * u.exp())
    truth = torch.autograd.grad((1 - known).sum(), leaves)
    for found, expected in zip(torch.autograd.grad(mcm_with_unknown(s, u).sum(), leaves), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-44, 1e-3, 1.0, 1e38])
@pytest.mark.parametrize("weight", [0.0, 5e-324, 0.25, 1e308])
@pytest.mark.parametrize("size", [1.0, 3e38])
def test_mcm_with_unknown_stays_finite(temperature: float, weight: float, size: float) -> None:
    similarity = torch.tensor([[0.3, 0.2], [-1.0, -0.9], [0.2, 0.2]]).mul(size).requires_grad_()
    unknown_similarity = torch.tensor([0.1, 1.0, 0.2]).mul(size).requires_grad_()
    found = mcm_with_unknown(similarity, unknown_similarity, temperature, weight)
    assert ((found >= 0) & (found <= 1)).all()
    for gradient in torch.autograd.grad(found.sum(), [similarity, unknown_similarity]):
        assert not gradient.isnan().any()


def test_images_near_certain_stay_apart() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.8, 0.1]])
    surer, sure = mcm_with_unknown(similarity, torch.tensor([0.2, 0.2]), 0.02)
    assert 0 < surer < sure < 1e-12


def test_no_images_give_no_scores() -> None:
    for function in ALL:
        assert function(torch.zeros(0, 3), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("function", ALL)
def test_bad_input_is_refused(function: Callable[..., Tensor]) -> None:
    values, unknown_values = torch.zeros(3, 2), torch.zeros(3)
    name = "similarity" if function is mcm_with_unknown else "logits"
    for shape in [(3,), (1, 3, 2), ()]:
        with pytest.raises(ValueError, match=rf"`{name}` must have shape \(batch, classes\), got \("):
            function(torch.zeros(shape), unknown_values)
    for shape in [(3, 1), ()]:
        with pytest.raises(ValueError, match=rf"`unknown_{name}` must have shape \(batch,\), got \("):
            function(values, torch.zeros(shape))
    with pytest.raises(ValueError, match=f"`{name}` and `unknown_{name}` must be of the same images, got 3 and 2"):
        function(values, torch.zeros(2))
    with pytest.raises(ValueError, match="no classes"):
        function(values[:, :0], unknown_values)
    with pytest.raises(TypeError, match=rf"`unknown_{name}` must be a torch\.Tensor .* got float"):
        function(values, 1.0)
    for bad in (math.nan, math.inf, -math.inf):
        damaged = torch.tensor([0.0, bad, 0.0])
        with pytest.raises(ValueError, match=f"`unknown_{name}` has NaN or infinite values in 1 of 3 rows"):
            function(values, damaged)
        with pytest.raises(ValueError, match=f"`{name}` has NaN or infinite values in 1 of 3 rows"):
            function(values + damaged[:, None], unknown_values)


def test_bad_settings_are_refused() -> None:
    values, unknown_values = torch.zeros(3, 2), torch.zeros(3)
    for weight in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="`weight` must be finite and not negative"):
            mcm_with_unknown(values, unknown_values, weight=weight)
    with pytest.raises(TypeError, match="`weight` must be a number"):
        mcm_with_unknown(values, unknown_values, weight=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        mcm_with_unknown(values, unknown_values, 0.0)


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(unknown)
    assert results.attempted > 0
    assert results.failed == 0
