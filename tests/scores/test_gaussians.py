# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gaussian distances against the authors' values, against their formulas, and against what must always hold."""

import doctest
import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from clipn_hf.scores import Gaussians, _rows, fit_gaussians, mahalanobis, relative_mahalanobis

DATA = Path(__file__).parents[1] / "data"

GAUSSIAN_SCORES = [mahalanobis, relative_mahalanobis]
gaussian_scores = pytest.mark.parametrize("score", GAUSSIAN_SCORES)
Score = Callable[[Tensor, Gaussians], Tensor]


def images(count: int = 60, dim: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings around one mean per class, and labels such that each class has images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = 2 * torch.randn(classes, dim, generator=generator)
    return means[labels] + torch.randn(count, dim, generator=generator), labels


def distances(embeddings: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """Squared distances `(images, means)`, one by one as the formula has them."""
    inverse = torch.linalg.inv(covariance.reshape(means.shape[1], -1))  # `torch.cov` of one dimension is a number.
    return torch.stack(
        [torch.stack([(one - mean) @ inverse @ (one - mean) for mean in means]) for one in embeddings.double()]
    )


def mean_covariance(embeddings: Tensor, labels: Tensor) -> Tensor:
    classes = [embeddings[labels == label].double() for label in labels.unique()]
    return torch.stack([torch.cov(members.T) for members in classes if len(members) > 1]).mean(dim=0)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(DATA / "plp_official.safetensors")


@pytest.mark.parametrize("part", ["in", "out"])
@gaussian_scores
def test_distances_equal_the_published_code(golden: dict[str, Tensor], score: Score, part: str) -> None:
    gaussians = fit_gaussians(golden["train"], golden["train_label"])
    found = score(golden[f"test_{part}"], gaussians)
    # float32 rounds to 6e-8.
    torch.testing.assert_close(found.double(), -golden[f"{score.__name__}_{part}"], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_dtype_gives_float32(dtype: torch.dtype) -> None:
    embeddings, labels = images()
    embeddings = (10 * embeddings).to(dtype)
    queries = embeddings[:7] + 1
    gaussians = fit_gaussians(embeddings, labels)
    exact = fit_gaussians(embeddings.double(), labels)
    for part, truth in zip(gaussians, exact, strict=True):
        assert part.dtype == torch.float64
        torch.testing.assert_close(part, truth, rtol=1e-12, atol=1e-12)
    for score in GAUSSIAN_SCORES:
        found = score(queries, gaussians)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, score(queries.double(), exact), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_gaussians_are_those_of_the_formula(tied: bool) -> None:
    # Classes of 12, 18 and 30 images, so that the weights of the classes matter.
    embeddings, _ = images()
    labels = torch.tensor([0] * 12 + [1] * 18 + [2] * 30)
    gaussians = fit_gaussians(embeddings, labels, tied=tied)
    exact = embeddings.double()
    means = torch.stack([exact[labels == label].mean(dim=0) for label in range(3)])
    pooled = (exact - means[labels]).T @ (exact - means[labels]) / 57
    covariance = pooled if tied else mean_covariance(embeddings, labels)
    torch.testing.assert_close(gaussians.class_means, means)
    torch.testing.assert_close(gaussians.class_precision, torch.linalg.inv(covariance))
    torch.testing.assert_close(gaussians.global_mean, exact.mean(dim=0))
    torch.testing.assert_close(gaussians.global_precision, torch.linalg.inv(torch.cov(exact.T)))
    assert not torch.allclose(pooled, mean_covariance(embeddings, labels))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 6), st.integers(1, 5), st.integers(2, 4), st.integers(0, 999))
def test_distances_are_those_of_the_formula(batch: int, dim: int, classes: int, seed: int) -> None:
    embeddings, labels = images(10 * classes, dim, classes, seed)
    queries = 3 * torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed + 1))
    gaussians = fit_gaussians(embeddings, labels)
    close = {"rtol": 1e-6, "atol": 1e-6}
    found, relative = mahalanobis(queries, gaussians), relative_mahalanobis(queries, gaussians)
    assert found.shape == relative.shape == (batch,)
    if not batch:
        return
    means = torch.stack([embeddings[labels == label].double().mean(dim=0) for label in range(classes)])
    nearest = distances(queries, means, mean_covariance(embeddings, labels)).amin(dim=1)
    exact = embeddings.double()
    everything = distances(queries, exact.mean(dim=0)[None], torch.cov(exact.T))[:, 0]
    torch.testing.assert_close(found.double(), nearest, **close)
    torch.testing.assert_close(relative.double(), nearest - everything, **close)
    assert (found >= 0).all()


@gaussian_scores
def test_distances_do_not_depend_on_the_coordinates(score: Score) -> None:
    """Nor on a large offset, between whose squares the distances are small differences."""
    embeddings, labels = images()
    queries, _ = images(count=9, seed=1)
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()
    moved, moved_queries = (matrix_of.double() @ matrix + 1e4 for matrix_of in (embeddings, queries))
    torch.testing.assert_close(
        score(moved_queries, fit_gaussians(moved, labels)),
        score(queries, fit_gaussians(embeddings, labels)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_distance_of_a_mean_is_zero() -> None:
    gaussians = fit_gaussians(*images())
    torch.testing.assert_close(mahalanobis(gaussians.class_means, gaussians), torch.zeros(3), rtol=0, atol=1e-12)


def test_order_of_images_and_classes_does_not_matter() -> None:
    embeddings, labels = images()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    renamed = torch.tensor([2, 0, 1])[labels]
    queries, _ = images(count=9, seed=1)
    for score in GAUSSIAN_SCORES:
        straight = score(queries, fit_gaussians(embeddings, labels))
        torch.testing.assert_close(score(queries, fit_gaussians(embeddings[order], labels[order])), straight)
        torch.testing.assert_close(score(queries, fit_gaussians(embeddings, renamed)), straight)


@pytest.mark.parametrize("chunk", [1, 7, 50, 700])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    embeddings, labels = images()
    queries, _ = images(count=11, seed=1)
    whole = fit_gaussians(embeddings, labels)
    expected = [score(queries, whole) for score in GAUSSIAN_SCORES]
    monkeypatch.setattr(_rows, "CHUNK", chunk)
    for part, truth in zip(fit_gaussians(embeddings, labels), whole, strict=True):
        torch.testing.assert_close(part, truth, rtol=1e-12, atol=1e-12)
    for score, truth in zip(GAUSSIAN_SCORES, expected, strict=True):
        torch.testing.assert_close(score(queries, whole), truth, rtol=1e-6, atol=1e-9)


def parts(embeddings: Tensor, sizes: tuple[int, ...] = (1, 0, 17, 40)) -> Iterator[Tensor]:
    """Embeddings in unequal parts, which can be gone through once."""
    yield from embeddings.split([*sizes, len(embeddings) - sum(sizes)])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([None, 0.3]),
    st.sampled_from([0.0, 1e4]),
    st.integers(0, 999),
)
def test_a_stream_gives_what_the_whole_does(
    sizes: list[int], tied: bool, shrinkage: float | None, offset: float, seed: int
) -> None:
    """However it is cut, and against the formulas, whatever all images have in common."""
    embeddings = images(count=200, dim=5, classes=4, seed=seed)[0].double() + offset
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(seed))
    labels[:8] = torch.arange(8) % 4
    found = fit_gaussians(parts(embeddings, tuple(sizes)), labels, tied=tied, shrinkage=shrinkage)
    whole = fit_gaussians(embeddings, labels, tied=tied, shrinkage=shrinkage)
    for part, truth in zip(found, whole, strict=True):
        torch.testing.assert_close(part, truth, rtol=1e-9, atol=1e-9)
    if not tied and shrinkage is None:
        covariance = mean_covariance(embeddings, labels)
        torch.testing.assert_close(found.class_precision, torch.linalg.inv(covariance), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("part", ["in", "out"])
@gaussian_scores
def test_a_stream_equals_the_published_code(golden: dict[str, Tensor], score: Score, part: str) -> None:
    gaussians = fit_gaussians(parts(golden["train"]), golden["train_label"])
    found = score(golden[f"test_{part}"], gaussians)
    torch.testing.assert_close(found.double(), -golden[f"{score.__name__}_{part}"], rtol=1e-7, atol=1e-6)


def test_a_stream_is_gone_through_once() -> None:
    embeddings, labels = images()
    given = parts(embeddings)
    fit_gaussians(given, labels)
    with pytest.raises(ValueError, match="^`features` have 0 images, but `labels` has 60; .* A generator gives"):
        fit_gaussians(given, labels)

    def never_ending() -> Iterator[Tensor]:
        while True:
            yield embeddings

    with pytest.raises(ValueError, match="^`features` have at least 120 images, but `labels` has 60; give one label"):
        fit_gaussians(never_ending(), labels)


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        ([torch.ones(30, 6)], ValueError, "`features` have 30 images, but `labels` has 60; give one label for each"),
        ([], ValueError, "`features` have 0 images, but `labels` has 60"),
        ([torch.ones(30, 6), torch.ones(31, 6)], ValueError, "`features` have at least 61 images, but `labels` has"),
        (
            [torch.ones(30, 6), torch.ones(30, 5)],
            ValueError,
            "`features[1]` has 5 dimensions, but the parts before have 6; give embeddings of one model.",
        ),
        (
            [torch.ones(30, 6), torch.full((30, 6), torch.nan)],
            ValueError,
            "`features[1]` has NaN or infinite values in 30 of 30 rows",
        ),
        ([torch.ones(6)], ValueError, "`features[0]` must have shape (images, dim), got (6,)."),
        ("embeddings", TypeError, "`features[0]` must be a torch.Tensor of shape (images, dim), got str."),
        (
            7,
            TypeError,
            "`features` must be a torch.Tensor of shape (images, dim), or an iterable of these, got int.",
        ),
    ],
)
def test_bad_streams_are_refused(stream: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        fit_gaussians(stream, images()[1])  # type: ignore[arg-type]


def test_the_covariance_stays_small_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of the work is larger than what is asked for, whatever the number of images."""
    largest = 0
    double = Tensor.double

    def watched(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return double(tensor)

    monkeypatch.setattr(_rows, "CHUNK", 120)
    monkeypatch.setattr(Tensor, "double", watched)
    fit_gaussians(*images(count=6_000))
    assert 0 < largest <= 120


def test_images_do_not_influence_each_other() -> None:
    queries, _ = images(count=11, dim=64, seed=1)
    gaussians = fit_gaussians(*images(count=200, dim=64))
    for score in GAUSSIAN_SCORES:
        alone = torch.cat([score(queries[row : row + 1], gaussians) for row in range(11)])
        torch.testing.assert_close(score(queries, gaussians), alone, rtol=1e-6, atol=1e-9)
        assert score(queries[:0], gaussians).shape == (0,)


def test_gradients_are_those_of_the_formula() -> None:
    queries = images(count=5, seed=1)[0].double().requires_grad_()
    gaussians = fit_gaussians(*images())
    covariance = torch.linalg.inv(gaussians.class_precision)
    (found,) = torch.autograd.grad(mahalanobis(queries, gaussians).sum(), queries)
    nearest = distances(queries, gaussians.class_means, covariance).amin(dim=1)
    torch.testing.assert_close(found, torch.autograd.grad(nearest.sum(), queries)[0])


def test_classes_of_one_image_are_left_out_of_the_covariance() -> None:
    embeddings, labels = images()
    labels[labels == 1] = 0
    labels[7] = 1
    message = "1 of 3 classes have one image only (1)"
    with pytest.warns(UserWarning, match=re.escape(message)):
        gaussians = fit_gaussians(embeddings, labels)
    torch.testing.assert_close(gaussians.class_means[1], embeddings[7].double())
    torch.testing.assert_close(
        gaussians.class_precision, torch.linalg.inv(mean_covariance(embeddings, labels)), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(gaussians.global_precision, torch.linalg.inv(torch.cov(embeddings.double().T)))


@pytest.mark.parametrize("tied", [False, True])
def test_few_images_are_shrunk_and_still_tell_ood(tied: bool) -> None:
    means, labels = images(count=40, dim=32, classes=20)
    embeddings = 0.2 * means + torch.randn(40, 32, generator=torch.Generator().manual_seed(5))
    # Directions in which the images do not vary
    embeddings[:, 16:] = 0
    with pytest.warns(UserWarning, match=r"cannot be inverted; they are shrunk .* at least 52 images"):
        gaussians = fit_gaussians(embeddings, labels, tied=tied)
    for precision in (gaussians.class_precision, gaussians.global_precision):
        assert torch.linalg.eigvalsh(precision)[0] > 0
    step = torch.zeros(32)
    step[20] = 1
    further = torch.stack([embeddings[0] + length * step for length in (0.0, 1.0, 2.0, 4.0)])
    for score in GAUSSIAN_SCORES:
        # With a rate for each covariance, the relative distance falls.
        assert (score(further, gaussians).diff() > 0).all()


def test_shrinkage_is_the_oracle_approximating_one() -> None:
    """Whose formula for a single covariance of zero mean is Chen et al. 2010, equation 23."""
    embeddings, labels = images(count=12, dim=20, classes=2)
    covariance = mean_covariance(embeddings, labels)
    # Two covariances of 5 degrees of freedom each
    p, n, squares, trace = 20, 10, (covariance @ covariance).trace(), covariance.trace()
    rate = ((1 - 2 / p) * squares + trace**2) / ((n + 1 - 2 / p) * (squares - trace**2 / p))
    rate = rate.clamp(max=1)
    shrunk = (1 - rate) * covariance + rate * trace / p * torch.eye(p).double()
    with pytest.warns(UserWarning, match=f"by {rate:.2g}"):
        found = fit_gaussians(embeddings, labels)
    torch.testing.assert_close(found.class_precision, torch.linalg.inv(shrunk))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = fit_gaussians(embeddings, labels, shrinkage=rate.item())
    for part, truth in zip(same, found, strict=True):
        torch.testing.assert_close(part, truth)


def test_without_shrinkage_a_singular_covariance_has_its_pseudo_inverse() -> None:
    embeddings, labels = images()
    embeddings[:, 2] = 1.5
    message = "pseudo-inverses are used, which ignore .* Look for dimensions that are constant"
    with pytest.warns(UserWarning, match=message):
        gaussians = fit_gaussians(embeddings, labels, shrinkage=0)
    kept = [0, 1, 3, 4, 5]
    smaller = fit_gaussians(embeddings[:, kept], labels)
    for score in GAUSSIAN_SCORES:
        torch.testing.assert_close(score(embeddings, gaussians), score(embeddings[:, kept], smaller))
    with pytest.warns(UserWarning, match="shrunk"):
        shrunk = fit_gaussians(embeddings, labels)
    query = embeddings[:1] + torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0, 0.0])
    assert mahalanobis(query, shrunk) > mahalanobis(embeddings[:1], shrunk) + 1


def test_enough_images_are_not_shrunk_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_gaussians(*images(count=9, dim=6, classes=3))
    with pytest.warns(UserWarning, match="Give at least 9 images"):
        fit_gaussians(*images(count=8, dim=6, classes=3))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, "`features[0]` must be a torch.Tensor of shape (images, dim), got list."),
        ({"features": torch.zeros(4)}, ValueError, "`features` must have shape (images, dim), got (4,)."),
        ({"features": torch.zeros(4, 0)}, ValueError, "`features` must have shape (images, dim), got (4, 0)."),
        ({"features": torch.zeros(4, 2).cfloat()}, ValueError, "`features` must be real"),
        ({"features": torch.zeros(1, 2), "labels": torch.tensor([0])}, ValueError, "`features` has 1 images, but at"),
        ({"features": torch.full((4, 2), torch.nan)}, ValueError, "NaN or infinite values in 4 of 4 rows"),
        ({"features": torch.tensor([[0, 1], [torch.inf, 1], [1, 1], [2, 2]])}, ValueError, "in 1 of 4 rows"),
        (
            {"features": torch.tensor([[0.3, 1], [0.7, 1]] * 2)},
            ValueError,
            "`features` do not vary within the classes",
        ),
        ({"features": torch.zeros(4, 2)}, ValueError, "`features` do not vary within the classes"),
        ({"labels": [0, 1, 0, 1]}, TypeError, "`labels` must be a torch.Tensor of shape (images,), got list."),
        ({"labels": torch.zeros(4)}, TypeError, "`labels` must hold whole numbers, got dtype torch.float32"),
        ({"labels": torch.zeros(4).bool()}, TypeError, "`labels` must hold whole numbers, got dtype torch.bool"),
        (
            {"labels": torch.zeros(3).long()},
            ValueError,
            "`labels` must have shape (4,), one for each image, got (3,).",
        ),
        ({"labels": torch.tensor([0, -1, 0, 1])}, ValueError, "must be between 0 and 1 for 2 classes, got -1 to 1."),
        ({"num_classes": 1}, ValueError, "must be between 0 and 0 for 1 classes, got 0 to 1."),
        ({"num_classes": 4}, ValueError, "`labels` has no image for 2 of 4 classes: 2, 3. Give images"),
        (
            {"labels": torch.tensor([0, 9, 0, 9])},
            ValueError,
            "no image for 8 of 10 classes: 1, 2, 3, 4, 5 and 3 more.",
        ),
        ({"num_classes": 2.0}, TypeError, "`num_classes` must be a whole number, got float 2.0."),
        # Fewer images than classes
        ({"labels": torch.arange(4), "num_classes": 6}, ValueError, "no image for 2 of 6 classes: 4, 5."),
        ({"labels": torch.zeros(4, 1).long()}, ValueError, "must have shape (4,), one for each image, got (4, 1)."),
        (
            {"features": [torch.zeros(4, 2)], "labels": torch.zeros(4, 1).long()},
            ValueError,
            "`labels` must have shape (images,), one for each image, got (4, 1).",
        ),
        (
            {"features": [], "labels": torch.tensor([0])},
            ValueError,
            "`labels` has 1 images, but at least 2 are needed",
        ),
        ({"labels": torch.arange(4)}, ValueError, "Each of the 4 classes in `labels` has one image only"),
        ({"shrinkage": 1.5}, ValueError, "`shrinkage` must be between 0 and 1, got 1.5."),
        ({"shrinkage": float("nan")}, ValueError, "`shrinkage` must be between 0 and 1, got nan."),
        ({"shrinkage": "auto"}, TypeError, "`shrinkage` must be a number, got str 'auto'."),
        ({"shrinkage": True}, TypeError, "`shrinkage` must be a number, got bool True."),
    ],
)
def test_bad_training_data_is_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"features": images(count=4, dim=2, classes=2)[0], "labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(error, match=re.escape(message)):
        fit_gaussians(**(arguments | changes))  # type: ignore[arg-type]


@gaussian_scores
def test_bad_embeddings_are_refused(score: Score) -> None:
    gaussians = fit_gaussians(*images())
    with pytest.raises(ValueError, match="`features` have 5 dimensions, but `gaussians` has 6"):
        score(torch.ones(3, 5), gaussians)
    with pytest.raises(ValueError, match=r"must have shape \(images, dim\), got \(6,\)"):
        score(torch.ones(6), gaussians)
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 2 rows"):
        score(torch.tensor([[0.0] * 6, [torch.nan] * 6]), gaussians)
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor .* got list"):
        score([[0.0] * 6], gaussians)  # type: ignore[arg-type]


def test_one_class_has_no_relative_distance() -> None:
    embeddings, labels = images(classes=1)
    gaussians = fit_gaussians(embeddings, labels)
    assert (mahalanobis(embeddings, gaussians) > 0).all()
    with pytest.raises(ValueError, match="`gaussians` has 1 class, whose Gaussian is also the one of all images"):
        relative_mahalanobis(embeddings, gaussians)


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(importlib.import_module("clipn_hf.scores.gaussians"))
    assert results.attempted > 0
    assert results.failed == 0


def rank_deficient(kind: str) -> tuple[Tensor, Tensor]:
    """Float32 embeddings whose variance in one direction is rounding and nothing else."""
    embeddings, labels = images(200, dim=5)
    if kind == "opposite logits":
        logits = embeddings[:, :1] @ torch.ones(1, 1)
        return torch.cat([logits, -logits * (1 + 1e-7 * torch.randn_like(logits))], dim=1), labels
    if kind == "probabilities":
        return embeddings.softmax(dim=1), labels
    if kind == "sum of others":
        return torch.cat([embeddings, embeddings @ torch.full((5, 1), 0.3)], dim=1), labels
    return torch.cat([embeddings, 0.1 + 1e-8 * torch.randn(200, 1)], dim=1), labels


@pytest.mark.parametrize("kind", ["opposite logits", "probabilities", "sum of others", "nearly constant"])
@pytest.mark.parametrize("shrinkage", [None, 0.0])
@gaussian_scores
def test_rounding_of_the_embeddings_is_no_variance(score: Score, shrinkage: float | None, kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embeddings, labels = rank_deficient(kind)
        with pytest.warns(UserWarning, match="cannot be inverted"):
            gaussians = fit_gaussians(embeddings, labels, shrinkage=shrinkage)
        # Another last digit is not another score.
        again = embeddings * (1 + 1e-7 * torch.randn_like(embeddings))
    torch.testing.assert_close(score(again, gaussians), score(embeddings, gaussians), rtol=1e-4, atol=1e-4)


def test_small_variance_is_variance_where_numbers_are_precise() -> None:
    """Of float64 embeddings, and of float32 ones in every direction that stands out from their rounding."""
    embeddings, labels = images(200, dim=5)
    scale = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = fit_gaussians(embeddings.double() * scale.double(), labels)
        fit_gaussians(embeddings * torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-4]), labels)
        fit_gaussians((embeddings * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])).bfloat16(), labels)
    whole = fit_gaussians(embeddings.double(), labels)
    found = relative_mahalanobis(embeddings.double() * scale.double(), small)
    torch.testing.assert_close(found, relative_mahalanobis(embeddings.double(), whole), rtol=1e-4, atol=1e-4)


def test_warnings_name_the_line_that_fits() -> None:
    embeddings, labels = images(6, dim=20)
    with pytest.warns(UserWarning, match="cannot be inverted") as found:
        fit_gaussians(embeddings, labels)
    assert {Path(warning.filename).name for warning in found} == {Path(__file__).name}


def test_nothing_is_learnt_for_gradients() -> None:
    embeddings, labels = images(dim=4)
    gaussians = fit_gaussians((part.clone().requires_grad_() for part in embeddings.split(20)), labels)
    assert not any(tensor.requires_grad for tensor in gaussians)
    assert not any(tensor.requires_grad for tensor in fit_gaussians(embeddings.requires_grad_(), labels))
