# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest cluster of ID images; labels do not matter, but for how many there are."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from .base import Method, MethodInputs, TrainingInputs

if TYPE_CHECKING:
    from torch import Tensor

Distance = Literal["cosine", "mahalanobis", "relative_mahalanobis"]


def _fit(
    inputs: TrainingInputs, num_clusters: int | None = None, distance: Distance = "cosine", seed: int = 0
) -> "dict[str, Tensor]":
    from ..scores import fit_centroids, fit_gaussians, nearest_centroids

    _check_distance(distance)
    features = inputs.image_embeddings
    clusters = inputs.num_classes if num_clusters is None else num_clusters
    if num_clusters is None and 0 < len(features) < clusters:
        raise ValueError(
            f"`num_clusters` is by default the number of labels, {clusters}, but there are {len(features)} images "
            "only; give more images, or a smaller `num_clusters`."
        )
    _check_several(clusters, distance)
    centroids = fit_centroids(features, clusters, seed)
    if distance == "cosine":
        return {"centroids": centroids}
    # Without the clusters whose images all went to others, as can happen where the centroids come from a sample.
    labels = nearest_centroids(features, centroids).unique(return_inverse=True)[1]
    counts = labels.bincount()
    single = int((counts == 1).sum())
    if single == len(counts):
        raise ValueError(
            f"`num_clusters` leaves one image in each of {single} clusters, which have no covariance; ask for fewer "
            "clusters, or use `distance='cosine'`."
        )
    if single:
        warnings.warn(
            f"{single} of {len(counts)} clusters have one image only, which has no part in the covariance. Ask for "
            "fewer by `num_clusters`.",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        # Of labels that nobody gave.
        warnings.filterwarnings("ignore", message=r".* classes have one image only")
        return fit_gaussians(features, labels)._asdict()


def _score(inputs: MethodInputs, distance: Distance = "cosine") -> "Tensor":
    from ..scores import Gaussians, mahalanobis, nearest_neighbors, relative_mahalanobis

    _check_distance(distance)
    assert inputs.image_embeddings is not None
    if distance == "cosine":
        return nearest_neighbors(inputs.image_embeddings, inputs.state["centroids"])
    score = mahalanobis if distance == "mahalanobis" else relative_mahalanobis
    return score(inputs.image_embeddings, Gaussians(**inputs.state))


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_seed, check_whole

    clusters = settings["num_clusters"]
    _check_distance(settings["distance"])
    check_seed(settings["seed"])
    if clusters is None:
        return
    if check_whole(clusters, "num_clusters") < 1:
        raise ValueError(f"`num_clusters` must be at least 1, got {clusters}.")
    _check_several(clusters, settings["distance"])


def _check_several(clusters: int, distance: Distance) -> None:
    if distance == "relative_mahalanobis" and clusters == 1:
        raise ValueError(
            "`num_clusters` must be at least 2 for `distance='relative_mahalanobis'`, got 1: the Gaussian of a single "
            "cluster is also the one of all images."
        )


def _check_distance(distance: str) -> None:
    if distance not in get_args(Distance):
        raise ValueError(f"`distance` must be one of {', '.join(map(repr, get_args(Distance)))}, got {distance!r}.")


KMEANS = Method(
    name="kmeans",
    title="K-means clusters",
    reference="2303.05828",
    needs=frozenset({"global", "training"}),
    score=_score,
    fit=_fit,
    check=_check,
    uses_text=False,
)
