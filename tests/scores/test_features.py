# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores on embeddings against the authors' values, against their formulas, and against what must always hold."""

import doctest
import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf.methods import Method, MethodInputs, TrainingInputs
from clipn_hf.methods.mahalanobis import MAHALANOBIS
from clipn_hf.methods.nearest_neighbors import NEAREST_NEIGHBORS
from clipn_hf.methods.relative_mahalanobis import RELATIVE_MAHALANOBIS
from clipn_hf.scores import Gaussians, features, fit_gaussians, mahalanobis, nearest_neighbors, relative_mahalanobis

DATA = Path(__file__).parents[1] / "data"

METHODS = [NEAREST_NEIGHBORS, MAHALANOBIS, RELATIVE_MAHALANOBIS]
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
@pytest.mark.parametrize("k", [1, 5])
def test_nearest_neighbors_equal_the_published_code(golden: dict[str, Tensor], part: str, k: int) -> None:
    found = nearest_neighbors(golden[f"test_{part}"], golden["train"], k)
    torch.testing.assert_close(found, 1 - golden[f"knn{k}_cosine_{part}"], rtol=0, atol=1e-6)


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
    found = nearest_neighbors(queries, embeddings, k=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nearest_neighbors(queries.double(), embeddings.double(), k=3))


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 5), st.integers(1, 12), st.integers(0, 999))
def test_nearest_neighbors_are_those_of_a_complete_search(
    batch: int, bank_size: int, dim: int, k: int, seed: int
) -> None:
    k = min(k, bank_size)
    generator = torch.Generator().manual_seed(seed)
    queries, bank = (torch.randn(count, dim, generator=generator) for count in (batch, bank_size))
    sorted_distances = (1 - normalize(queries.double()) @ normalize(bank.double()).T).sort(dim=1).values[:, :k]
    close = {"rtol": 1e-6, "atol": 1e-6}
    mean, kth = (nearest_neighbors(queries, bank, k, reduction) for reduction in ("mean", "kth"))
    torch.testing.assert_close(mean.double(), sorted_distances.mean(dim=1), **close)
    torch.testing.assert_close(kth.double(), sorted_distances[:, -1], **close)
    assert ((mean >= 0) & (mean <= kth) & (kth <= 2)).all()


def test_nearest_neighbors_do_not_depend_on_lengths_or_order() -> None:
    bank, _ = images()
    queries, _ = images(count=9, seed=1)
    straight = nearest_neighbors(queries, bank, k=4)
    generator = torch.Generator().manual_seed(2)
    lengths = [0.1 + 9 * torch.rand(count, 1, generator=generator) for count in (9, 60)]
    order = torch.randperm(60, generator=generator)
    torch.testing.assert_close(
        nearest_neighbors(lengths[0] * queries, (lengths[1] * bank)[order], k=4), straight, rtol=1e-5, atol=1e-6
    )


def test_near_copies_stay_apart() -> None:
    """`1 - cos` is 0 for each of them in float32, and equal scores cannot be ranked."""
    bank = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double())
    step = normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).double())
    copy, near, further = nearest_neighbors(bank[:1] + torch.tensor([[0.0], [1e-6], [2e-6]]).double() * step, bank)
    assert 0 <= copy < 1e-20 < near < further < 1e-11


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
    bank, labels = images()
    queries, _ = images(count=11, seed=1)
    gaussians = fit_gaussians(bank, labels)

    def everything() -> list[Tensor]:
        found = [nearest_neighbors(queries, bank, k, reduction) for k in (1, 5, 60) for reduction in ("mean", "kth")]
        return [*found, *(score(queries, gaussians) for score in GAUSSIAN_SCORES)]

    whole = everything()
    monkeypatch.setattr(features, "_CHUNK", chunk)
    for found, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_images_do_not_influence_each_other() -> None:
    bank, labels = images(count=200, dim=64)
    queries, _ = images(count=11, dim=64, seed=1)
    gaussians = fit_gaussians(bank, labels)
    for score in (
        lambda batch: nearest_neighbors(batch, bank, k=3),
        lambda batch: mahalanobis(batch, gaussians),
        lambda batch: relative_mahalanobis(batch, gaussians),
    ):
        alone = torch.cat([score(queries[row : row + 1]) for row in range(11)])
        torch.testing.assert_close(score(queries), alone, rtol=1e-6, atol=1e-9)
        assert score(queries[:0]).shape == (0,)


def test_gradients_are_those_of_the_formula() -> None:
    bank, labels = images()
    queries, _ = images(count=5, seed=1)
    gaussians = fit_gaussians(bank, labels)

    def gradient(score: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = queries.double().requires_grad_()
        return torch.autograd.grad(score(leaf).sum(), leaf)[0]

    def reference(embeddings: Tensor) -> Tensor:
        return distances(embeddings, gaussians.class_means, torch.linalg.inv(gaussians.class_precision)).amin(dim=1)

    torch.testing.assert_close(
        gradient(lambda batch: nearest_neighbors(batch, bank, k=2)),
        gradient(lambda batch: 1 - (normalize(batch) @ normalize(bank.double()).T).topk(2, dim=1).values.mean(dim=1)),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(gradient(lambda batch: mahalanobis(batch, gaussians)), gradient(reference))


def test_classes_of_one_image_are_left_out_of_the_covariance() -> None:
    embeddings, labels = images()
    labels[labels == 1] = 0
    labels[7] = 1
    message = "1 of 3 classes in `labels` have one image only (1)"
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
        ({"features": [[1.0]]}, TypeError, "`features` must be a torch.Tensor of shape (images, dim), got list."),
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
        ({"labels": torch.arange(4)}, ValueError, "Each of the 4 classes in `labels` has one image only"),
        ({"shrinkage": 1.5}, ValueError, "`shrinkage` must be in [0, 1], got 1.5."),
        ({"shrinkage": float("nan")}, ValueError, "`shrinkage` must be in [0, 1], got nan."),
        ({"shrinkage": "auto"}, TypeError, "`shrinkage` must be a number, got str 'auto'."),
        ({"shrinkage": True}, TypeError, "`shrinkage` must be a number, got bool True."),
    ],
)
def test_bad_training_data_is_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"features": images(count=4, dim=2, classes=2)[0], "labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(error, match=re.escape(message)):
        fit_gaussians(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": torch.ones(3)}, ValueError, "`features` must have shape (images, dim), got (3,)."),
        ({"features": torch.full((3, 2), torch.nan)}, ValueError, "`features` has NaN or infinite values in 3 of 3"),
        (
            {"features": torch.tensor([[0.0, -torch.inf]])},
            ValueError,
            "`features` has NaN or infinite values in 1 of 1",
        ),
        ({"features": torch.zeros(3, 2)}, ValueError, "`features` has embeddings that have no direction"),
        ({"features": torch.full((3, 2), 1e30)}, ValueError, "`features` has embeddings that have no direction"),
        ({"bank": torch.zeros(3, 2)}, ValueError, "`bank` has embeddings that have no direction"),
        ({"features": torch.ones(3, 5)}, ValueError, "`features` have 5 dimensions, but `bank` has 2"),
        ({"bank": torch.ones(0, 2)}, ValueError, "`bank` has 0 images, but at least 1 are needed"),
        ({"bank": [[1.0, 2.0]]}, TypeError, "`bank` must be a torch.Tensor of shape (images, dim), got list."),
        ({"bank": torch.tensor([[1.0, torch.nan]])}, ValueError, "`bank` has NaN or infinite values in 1 of 1 rows"),
        ({"k": 0}, ValueError, "`k` must be between 1 and the 4 images in `bank`, got 0."),
        ({"k": 5}, ValueError, "`k` must be between 1 and the 4 images in `bank`, got 5."),
        ({"k": 1.0}, TypeError, "`k` must be a whole number, got float 1.0."),
        ({"k": True}, TypeError, "`k` must be a whole number, got bool True."),
        ({"reduction": "max"}, ValueError, "`reduction` must be 'mean' or 'kth', got 'max'."),
    ],
)
def test_bad_neighbors_are_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"features": torch.ones(3, 2), "bank": torch.ones(4, 2)}
    with pytest.raises(error, match=re.escape(message)):
        nearest_neighbors(**(arguments | changes))  # type: ignore[arg-type]


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


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_score_with_what_they_were_fitted_on(method: Method, tmp_path: Path) -> None:
    assert method.fit is not None
    embeddings, labels = images(count=90, dim=12)
    embeddings = normalize(embeddings)
    training = TrainingInputs(embeddings, labels if "training_labels" in method.needs else None, 3)
    state = method.fit(training)
    queries = normalize(images(count=9, dim=12, seed=1)[0])
    nothing = torch.zeros(9, 3)
    found = method.score(MethodInputs(nothing, nothing, image_embeddings=queries, state=state))
    save_file(state, tmp_path / "state.safetensors")
    loaded = load_file(tmp_path / "state.safetensors")
    again = method.score(MethodInputs(nothing, nothing, image_embeddings=queries, state=loaded))
    assert torch.equal(found, again)
    expected = {
        "nearest_neighbors": lambda: nearest_neighbors(queries, embeddings),
        "mahalanobis": lambda: mahalanobis(queries, fit_gaussians(embeddings, labels)),
        "relative_mahalanobis": lambda: relative_mahalanobis(queries, fit_gaussians(embeddings, labels)),
    }[method.name]()
    assert torch.equal(found, expected)
    # A state must outlive changes of the embeddings that it was fitted on.
    embeddings.zero_()
    assert torch.equal(found, method.score(MethodInputs(nothing, nothing, image_embeddings=queries, state=state)))


def test_settings_of_the_methods_are_those_of_the_functions() -> None:
    embeddings, labels = images(dim=12)
    training = TrainingInputs(normalize(embeddings), labels, 3)
    queries = normalize(images(count=9, dim=12, seed=1)[0])
    nothing = torch.zeros(9, 3)
    assert NEAREST_NEIGHBORS.settings == {"k": 1, "reduction": "mean"}
    assert MAHALANOBIS.settings == RELATIVE_MAHALANOBIS.settings == {"tied": False, "shrinkage": None}
    assert NEAREST_NEIGHBORS.fit is not None
    with pytest.raises(ValueError, match="`k` must be between 1 and the 60 images"):
        NEAREST_NEIGHBORS.fit(training, k=61)
    state = NEAREST_NEIGHBORS.fit(training, k=5, reduction="kth")
    inputs = MethodInputs(nothing, nothing, image_embeddings=queries, state=state)
    expected = nearest_neighbors(queries, training.image_embeddings, 5, "kth")
    assert torch.equal(NEAREST_NEIGHBORS.score(inputs, k=5, reduction="kth"), expected)
    for method, score in ((MAHALANOBIS, mahalanobis), (RELATIVE_MAHALANOBIS, relative_mahalanobis)):
        assert method.fit is not None
        state = method.fit(training, tied=True, shrinkage=0.25)
        inputs = MethodInputs(nothing, nothing, image_embeddings=queries, state=state)
        gaussians = fit_gaussians(training.image_embeddings, labels, 3, tied=True, shrinkage=0.25)
        assert torch.equal(method.score(inputs), score(queries, gaussians))


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(importlib.import_module("clipn_hf.scores.features"))
    assert results.attempted > 0
    assert results.failed == 0
