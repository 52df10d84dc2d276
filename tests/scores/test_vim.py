# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The virtual class, against its definition and against what must always hold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf.scores import VirtualLogit, _rows, fit_virtual_logit, vim, virtual_logit

DIM = 6


def random_matrix(rows: int, columns: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def images(count: int = 50, seed: int = 0) -> Tensor:
    """Embeddings that vary most in the first dimensions, away from 0."""
    return 2 + random_matrix(count, seed=seed) * torch.arange(DIM, 0, -1)


@pytest.mark.parametrize("principal_dims", [1, 3, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_its_definition(principal_dims: int, biased: bool) -> None:
    """Line by line, by the covariance and projections onto the principal space that numpy makes."""
    train, test, weight = images(), images(20, seed=1), random_matrix(4, seed=2)
    bias = torch.tensor([1.0, -2.0, 0.5, 0.5]) if biased else torch.zeros(4)
    w, b = weight.double().numpy(), bias.double().numpy()
    origin = -np.linalg.pinv(w) @ b
    centered = train.double().numpy() - origin
    values, vectors = np.linalg.eigh(centered.T @ centered / len(centered))
    principal = vectors[:, np.argsort(-values)[:principal_dims]]

    def residual_norms(embeddings: Tensor) -> np.ndarray:
        x = embeddings.double().numpy() - origin
        return np.linalg.norm(x - x @ principal @ principal.T, axis=1)

    alpha = (train.double().numpy() @ w.T + b).max(axis=1).mean() / residual_norms(train).mean()
    logits = test.double().numpy() @ w.T + b
    virtual = alpha * residual_norms(test)
    exponentials = np.exp(np.column_stack([logits, virtual]))
    probability = exponentials[:, -1] / exponentials.sum(axis=1)

    # With biases of mean 0, as the paper has it.
    fitted = fit_virtual_logit(train, weight, bias, principal_dims)
    np.testing.assert_allclose(fitted.origin, origin, atol=1e-12)
    assert fitted.scale.item() == pytest.approx(alpha, rel=1e-9)
    assert fitted.residual_space.shape == (DIM, DIM - principal_dims)
    found = virtual_logit(test, torch.from_numpy(logits), fitted)
    np.testing.assert_allclose(found.sigmoid(), probability, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found, virtual - np.log(np.exp(logits).sum(axis=1)), rtol=1e-4)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.integers(0, 1000))
def test_no_residual_in_the_principal_space(coordinates: list[float], seed: int) -> None:
    fitted = fit_virtual_logit(images(seed=seed), random_matrix(4), principal_dims=3)
    complement = torch.linalg.svd(fitted.residual_space, full_matrices=True).U[:, 3:]
    inside = (complement @ torch.tensor(coordinates, dtype=torch.float64))[None]
    logits = torch.zeros(1, 4)
    # Log-odds of a logit of 0 against four others of 0
    expected = torch.tensor([-np.log(4)], dtype=torch.float32)
    torch.testing.assert_close(virtual_logit(inside, logits, fitted), expected, rtol=0, atol=1e-5)
    outside = inside + fitted.residual_space[:, 0]
    found = virtual_logit(outside, logits, fitted)
    torch.testing.assert_close(found, expected + fitted.scale.float(), rtol=1e-4, atol=1e-4)


@given(st.floats(-100, 100))
def test_what_biases_have_in_common_changes_no_odds(common: float) -> None:
    """Apart from the origin, which the models that are trained with a sigmoid loss have because of it."""
    train, weight = normalize(images(), dim=1), random_matrix(4)
    bias = torch.full((4,), common)
    fitted = fit_virtual_logit(train, weight, common, 3)
    for one, other in zip(fitted, fit_virtual_logit(train, weight, bias, 3), strict=True):
        torch.testing.assert_close(one, other)
    assert fitted.scale > 0
    logits = train @ weight.T + common
    centered = fitted._replace(offset=torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(
        virtual_logit(train, logits, fitted),
        virtual_logit(train, logits - common, centered),
        rtol=1e-4,
        atol=1e-3,
    )


def test_parts_are_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    train, weight = images(), random_matrix(4)
    whole = fit_virtual_logit(train, weight, 1.0, 3)
    monkeypatch.setattr(_rows, "CHUNK", 7 * DIM)
    in_parts = fit_virtual_logit(train, weight, 1.0, 3)
    logits = train @ weight.T
    torch.testing.assert_close(virtual_logit(train, logits, in_parts), virtual_logit(train, logits, whole))


@pytest.mark.parametrize(("dim", "principal_dims"), [(5, 2), (512, 256), (768, 512), (1024, 512), (2048, 1000)])
def test_default_of_the_authors(dim: int, principal_dims: int) -> None:
    assert vim._usual_dims(dim) == principal_dims


@pytest.mark.parametrize(("count", "principal_dims"), [(3, 1), (2, 1)])
def test_few_images_have_a_smaller_principal_space(count: int, principal_dims: int) -> None:
    with pytest.warns(
        UserWarning, match=f"^{count} images fill no more .* has {principal_dims} in place of 3. Give mo"
    ):
        fitted = fit_virtual_logit(images(count), random_matrix(4))
    assert fitted.residual_space.shape == (DIM, DIM - principal_dims)


def test_the_default_needs_more_images_than_it_has_dimensions() -> None:
    fitted = fit_virtual_logit(images(4), random_matrix(4))
    assert fitted.residual_space.shape == (DIM, 3)
    with pytest.warns(UserWarning, match="^3 images fill no more"):
        fit_virtual_logit(images(3), random_matrix(4))


def test_says_nothing_of_few_images_before_it_refuses_them(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ValueError, match="^`features` has 1 images, but at least 2 are needed; give more.$"):
        fit_virtual_logit(images(1), random_matrix(4))
    with pytest.raises(
        ValueError, match="^`features` has 2 images that lie within one dimension, .* give more images that differ.$"
    ):
        fit_virtual_logit(images(1).expand(2, -1), random_matrix(4))
    assert not recwarn.list


def test_unsaturated_where_the_probability_is() -> None:
    """Of images for which the probability of the virtual class is 0 or 1 in float32, the order is kept."""
    fitted = fit_virtual_logit(images(), random_matrix(4), principal_dims=3)
    logits = torch.tensor([[120.0, 0.0, 0.0, 0.0], [119.0, 0.0, 0.0, 0.0]])
    found = virtual_logit(torch.zeros(2, DIM), logits, fitted)
    assert found[0] < found[1]
    assert (found.sigmoid() < 1e-40).all()


def test_negative_logits_are_no_reason_for_negative_virtual_logits() -> None:
    weight = -images(4, seed=3).abs()
    train = images().abs()
    with pytest.warns(UserWarning, match="^The largest logit of `features` is -.* takes its place"):
        fitted = fit_virtual_logit(train, weight, 0.0, 3)
    logits = train.double() @ weight.double().T
    expected = (logits.amax(dim=1) - logits.mean(dim=1)).mean()
    residual = torch.linalg.vector_norm(train.double() @ fitted.residual_space, dim=1).mean()
    torch.testing.assert_close(fitted.scale * residual, expected)


def test_bad_input_is_refused() -> None:
    train, weight = images(), random_matrix(4)
    for features, weights, bias, dims, message in (
        (train, random_matrix(4, 5), 0.0, 3, r"`weight` must have shape \(classes, 6\)"),
        (train, weight[:0], 0.0, 3, "with at least one class"),
        (train, weight, torch.zeros(3), 3, "one for each of the 4 classes, got shape"),
        (train, weight, float("nan"), 3, "`bias` must be one finite number"),
        (train, weight, 0.0, 0, "`principal_dims` must be between 1 and 5 for features of 6 dimensions, got 0"),
        (train, weight, 0.0, 6, "`principal_dims` must be between 1 and 5 for features of 6 dimensions, got 6"),
        (train[:, :1], weight[:, :1], 0.0, None, "at least 2 dimensions"),
        (train[:0], weight, 0.0, 3, "`features` has 0 images"),
        (train[:3], weight, 0.0, 3, "3 images that lie within 3 dimensions"),
        (normalize(train[:1], dim=1).expand(40, -1), weight, 0.0, 3, "no residual is left"),
        (torch.eye(DIM), -torch.ones(2, DIM), 0.0, 3, "The logits of `features` are all -1 on average"),
        (train, torch.full((4, DIM), torch.nan), 0.0, 3, "`weight` has NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_virtual_logit(features, weights, bias, dims)
    with pytest.raises(TypeError, match="`principal_dims` must be a whole number"):
        fit_virtual_logit(train, weight, 0.0, 2.5)  # type: ignore[arg-type]
    fitted = fit_virtual_logit(train, weight)
    assert isinstance(fitted, VirtualLogit)
    with pytest.raises(ValueError, match="`features` have 5 dimensions, but `fitted` has 6"):
        virtual_logit(train[:, :5], train @ weight.T, fitted)
    with pytest.raises(ValueError, match="got 50 embeddings and 2 rows"):
        virtual_logit(train, weight[:2], fitted)
