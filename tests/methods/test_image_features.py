# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that are fitted on image embeddings alone, against the functions that they are made of."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf import scores
from clipn_hf.methods import Method, MethodInputs, TrainingInputs
from clipn_hf.methods.kmeans import KMEANS
from clipn_hf.methods.mahalanobis import MAHALANOBIS
from clipn_hf.methods.nearest_neighbors import NEAREST_NEIGHBORS
from clipn_hf.methods.relative_mahalanobis import RELATIVE_MAHALANOBIS
from clipn_hf.scores import (
    Gaussians,
    fit_centroids,
    fit_gaussians,
    mahalanobis,
    nearest_centroids,
    nearest_neighbors,
    relative_mahalanobis,
)

METHODS = [NEAREST_NEIGHBORS, KMEANS, MAHALANOBIS, RELATIVE_MAHALANOBIS]


def images(count: int = 60, dim: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings around one mean per class, and labels such that each class has images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = 2 * torch.randn(classes, dim, generator=generator)
    return means[labels] + torch.randn(count, dim, generator=generator), labels


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
        "kmeans": lambda: nearest_neighbors(queries, fit_centroids(embeddings, 3)),
        "mahalanobis": lambda: mahalanobis(queries, fit_gaussians(embeddings, labels)),
        "relative_mahalanobis": lambda: relative_mahalanobis(queries, fit_gaussians(embeddings, labels)),
    }[method.name]()
    assert torch.equal(found, expected)
    if method is NEAREST_NEIGHBORS:
        # A copy of a million images would take gigabytes.
        assert state["bank"].data_ptr() == embeddings.data_ptr()


def test_settings_of_the_methods_are_those_of_the_functions() -> None:
    embeddings, labels = images(dim=12)
    training = TrainingInputs(normalize(embeddings), labels, 3)
    queries = normalize(images(count=9, dim=12, seed=1)[0])
    nothing = torch.zeros(9, 3)
    assert NEAREST_NEIGHBORS.settings == {"k": 1, "reduction": "mean", "backend": "torch"}
    assert KMEANS.settings == {"num_clusters": None, "distance": "cosine", "seed": 0}
    assert MAHALANOBIS.settings == RELATIVE_MAHALANOBIS.settings == {"tied": False, "shrinkage": None}
    assert NEAREST_NEIGHBORS.fit is not None
    with pytest.raises(ValueError, match="`k` must be between 1 and the 60 images"):
        NEAREST_NEIGHBORS.fit(training, k=61)
    state = NEAREST_NEIGHBORS.fit(training, k=5, reduction="kth")
    inputs = MethodInputs(nothing, nothing, image_embeddings=queries, state=state)
    expected = nearest_neighbors(queries, training.image_embeddings, 5, "kth")
    for backend in ("torch", "faiss"):
        assert torch.equal(NEAREST_NEIGHBORS.score(inputs, k=5, reduction="kth", backend=backend), expected)
    for method, score in ((MAHALANOBIS, mahalanobis), (RELATIVE_MAHALANOBIS, relative_mahalanobis)):
        assert method.fit is not None
        state = method.fit(training, tied=True, shrinkage=0.25)
        inputs = MethodInputs(nothing, nothing, image_embeddings=queries, state=state)
        gaussians = fit_gaussians(training.image_embeddings, labels, 3, tied=True, shrinkage=0.25)
        assert torch.equal(method.score(inputs), score(queries, gaussians))


def cluster_state(embeddings: Tensor, num_classes: int = 3, **settings: object) -> dict[str, Tensor]:
    assert KMEANS.fit is not None
    return KMEANS.fit(TrainingInputs(embeddings, None, num_classes), **settings)


def test_there_are_as_many_clusters_as_labels_unless_asked_for() -> None:
    embeddings = normalize(images(dim=12)[0])
    assert len(cluster_state(embeddings)["centroids"]) == 3
    assert len(cluster_state(embeddings, num_clusters=7)["centroids"]) == 7
    assert torch.equal(cluster_state(embeddings, seed=4)["centroids"], fit_centroids(embeddings, 3, seed=4))


@pytest.mark.parametrize("score", [mahalanobis, relative_mahalanobis])
def test_clusters_take_the_place_of_classes(score: Callable[[Tensor, Gaussians], Tensor]) -> None:
    embeddings = normalize(images(count=90, dim=12)[0])
    queries = normalize(images(count=9, dim=12, seed=1)[0])
    state = cluster_state(embeddings, num_clusters=4, distance=score.__name__)
    clusters = nearest_centroids(embeddings, fit_centroids(embeddings, 4))
    inputs = MethodInputs(torch.zeros(9, 3), torch.zeros(9, 3), image_embeddings=queries, state=state)
    expected = score(queries, fit_gaussians(embeddings, clusters))
    assert torch.equal(KMEANS.score(inputs, distance=score.__name__), expected)


def test_clusters_without_images_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = normalize(images(count=90, dim=12)[0])
    centroids = torch.cat([fit_centroids(embeddings, 3), torch.full((1, 12), 50.0)])
    monkeypatch.setattr(scores, "fit_centroids", lambda *arguments: centroids)
    state = cluster_state(embeddings, distance="mahalanobis")
    assert len(state["class_means"]) == 3


def test_clusters_of_one_image_have_no_part_in_the_covariance() -> None:
    embeddings, labels = images(count=90, dim=4, classes=2)
    around = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    # One image far from all others becomes a cluster of its own.
    embeddings = torch.cat([around[labels] + 0.05 * normalize(embeddings), torch.tensor([[-1.0, -1, 0, 0]])])
    embeddings = normalize(embeddings)
    sizes = nearest_centroids(embeddings, fit_centroids(embeddings, 3)).bincount()
    assert sizes.sort().values.tolist() == [1, 45, 45]
    with pytest.warns(UserWarning, match="^1 of 3 clusters have one image only, which has no part") as caught:
        state = cluster_state(embeddings, num_clusters=3, distance="mahalanobis")
    assert len(caught) == 1
    assert torch.isfinite(state["class_precision"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 60, "distance": "mahalanobis"}, "`num_clusters` leaves one image in each of 60 clusters"),
        ({"num_clusters": 61}, "`num_clusters` must be at most the number of images in `features`, 60, got 61."),
        ({"num_clusters": 1, "distance": "relative_mahalanobis"}, "`num_clusters` must be at least 2 for"),
        ({"distance": "euclidean"}, "`distance` must be one of 'cosine', 'mahalanobis', 'relative_mahalanobis', got"),
    ],
)
def test_bad_settings_of_clusters_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        cluster_state(normalize(images(dim=12)[0]), **settings)


def test_classes_are_called_by_their_names() -> None:
    embeddings, labels = images(count=41, dim=6, classes=2)
    labels[40] = 2
    names = ("cat", "dog", "red bird")
    for method in (MAHALANOBIS, RELATIVE_MAHALANOBIS):
        assert method.fit is not None
        with pytest.warns(UserWarning, match=r"^1 of 3 classes have one image only \('red bird'\)"):
            method.fit(TrainingInputs(normalize(embeddings), labels, 3, class_names=names))


def test_fewer_images_than_labels_need_a_number_of_clusters() -> None:
    embeddings = normalize(images(count=9, dim=12)[0])
    message = "^`num_clusters` is by default the number of labels, 10, but there are 9 images only; give more"
    with pytest.raises(ValueError, match=message):
        cluster_state(embeddings, num_classes=10)
    assert len(cluster_state(embeddings, num_classes=10, num_clusters=9)["centroids"]) == 9
