# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Clusters of k-means against their definition, and against what must always hold."""

import doctest
import importlib
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf.scores import _rows, clusters, fit_centroids, nearest_centroids


def images(count: int = 120, dim: int = 6, centers: int = 4, spread: float = 0.05, seed: int = 0) -> Tensor:
    """Unit vectors around one direction per cluster."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(centers, dim, generator=generator))
    return normalize(directions[torch.arange(count) % centers] + spread * torch.randn(count, dim, generator=generator))


def ordered(centroids: Tensor) -> Tensor:
    return centroids[centroids[:, 0].argsort()]


def test_centroids_are_the_means_of_their_clusters() -> None:
    embeddings = images()
    centroids = fit_centroids(embeddings, 4)
    assert centroids.dtype == torch.float32
    found = nearest_centroids(embeddings, centroids)
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.cdist(embeddings, centroids).argmin(dim=1))
    means = torch.stack([embeddings[found == cluster].double().mean(dim=0) for cluster in range(4)])
    torch.testing.assert_close(centroids.double(), means, rtol=0, atol=1e-7)
    # Each is one of those that the images were drawn around.
    assert torch.equal(found[:4].sort().values, torch.arange(4))
    assert torch.equal(found, found[:4].repeat(30))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_every_dtype_and_norm_gives_float32(dtype: torch.dtype) -> None:
    embeddings = (500 * images()).round().to(dtype)
    exact = fit_centroids(embeddings.float() * (1 + torch.arange(120)[:, None] % 7), 4)
    found = fit_centroids(embeddings, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(ordered(found), ordered(exact), rtol=0, atol=1e-5)
    assert torch.equal(nearest_centroids(embeddings, exact), nearest_centroids(embeddings.float(), exact))


def test_order_does_not_matter_and_the_seed_does() -> None:
    # Without any structure, so that there are many local optima.
    embeddings = normalize(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    found = fit_centroids(embeddings, 12, seed=3)
    assert torch.equal(fit_centroids(embeddings, 12, seed=3), found)
    assert torch.equal(fit_centroids(embeddings[order], 12, seed=3), found)
    assert not torch.allclose(ordered(fit_centroids(embeddings, 12, seed=4)), ordered(found))


def test_threads_do_not_matter() -> None:
    """Of which each sums its own images, and the sums are added as they come."""
    code = """
import torch
from threadpoolctl import threadpool_limits
from clipn_hf.scores import fit_centroids
bank = torch.nn.functional.normalize(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)))
found = []
for threads in (1, 2, 5, 5, 5):
    with threadpool_limits(threads):
        found.append(fit_centroids(bank, 20))
assert all(torch.equal(one, found[0]) for one in found)
"""
    # Threads that wait for each other in vain take seconds where there are more of them than cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = images(count=2_000)
    whole = fit_centroids(embeddings, 4)
    monkeypatch.setattr(clusters, "SAMPLE", 10)
    given: list[int] = []
    fit = importlib.import_module("sklearn.cluster").KMeans.fit

    def watched(self: object, rows: object, *arguments: object) -> object:
        given.append(len(rows))  # type: ignore[arg-type]
        return fit(self, rows, *arguments)

    monkeypatch.setattr("sklearn.cluster.KMeans.fit", watched)
    found = fit_centroids(embeddings, 4)
    assert given == [40]
    torch.testing.assert_close(ordered(found), ordered(whole), rtol=0, atol=0.05)
    assert not torch.equal(ordered(found), ordered(whole))
    order = torch.randperm(2_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fit_centroids(embeddings[order], 4), found)


@pytest.mark.parametrize("chunk", [1, 7, 50, 700])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    embeddings = images()
    centroids = fit_centroids(embeddings, 4)
    expected = nearest_centroids(embeddings, centroids)
    monkeypatch.setattr(_rows, "CHUNK", chunk)
    assert torch.equal(fit_centroids(embeddings, 4), centroids)
    assert torch.equal(nearest_centroids(embeddings, centroids), expected)
    assert nearest_centroids(embeddings[:0], centroids).shape == (0,)


def test_each_image_may_be_a_cluster() -> None:
    embeddings = images(count=5, spread=1.0)
    torch.testing.assert_close(ordered(fit_centroids(embeddings, 5)), ordered(embeddings))
    torch.testing.assert_close(fit_centroids(embeddings, 1)[0], embeddings.mean(dim=0))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, "`features` must be a torch.Tensor of shape (images, dim), got list."),
        ({"features": torch.ones(3)}, ValueError, "`features` must have shape (images, dim), got (3,)."),
        ({"features": torch.ones(0, 3)}, ValueError, "`features` has 0 images, but at least 1 are needed"),
        ({"features": torch.full((3, 2), torch.nan)}, ValueError, "`features` has NaN or infinite values in 3 of 3"),
        ({"features": torch.zeros(3, 2)}, ValueError, "`features` has embeddings that have no direction"),
        ({"num_clusters": 0}, ValueError, "`num_clusters` must be at least 1, got 0."),
        ({"num_clusters": 2.0}, TypeError, "`num_clusters` must be a whole number, got float 2.0."),
        (
            {"num_clusters": 5},
            ValueError,
            "`num_clusters` must be at most the number of images in `features`, 4, got 5.",
        ),
        (
            {"features": torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 2.0]]), "num_clusters": 3},
            ValueError,
            "`features` has 2 distinct images, fewer than the 3 clusters of `num_clusters`; ask for fewer",
        ),
        # Constant features
        ({"features": torch.ones(9, 2)}, ValueError, "`features` has 1 distinct image, fewer than the 2 clusters"),
        ({"seed": -1}, ValueError, "`seed` must be between 0 and 2**32 - 1, got -1."),
        ({"seed": 2**32}, ValueError, "`seed` must be between 0 and 2**32 - 1, got 4294967296."),
        ({"seed": "0"}, TypeError, "`seed` must be a whole number, got str '0'."),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"features": images(count=4, dim=2), "num_clusters": 2}
    with pytest.raises(error, match="^" + re.escape(message)):
        fit_centroids(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": torch.ones(3, 5)}, ValueError, "`features` have 5 dimensions, but `centroids` has 6"),
        ({"features": torch.zeros(3, 6)}, ValueError, "`features` has embeddings that have no direction"),
        ({"features": torch.full((3, 6), torch.nan)}, ValueError, "`features` has NaN or infinite values in 3 of 3"),
        ({"centroids": torch.ones(0, 6)}, ValueError, "`centroids` has 0 images, but at least 1 are needed"),
        ({"centroids": [[1.0]]}, TypeError, "`centroids` must be a torch.Tensor of shape (images, dim), got list."),
    ],
)
def test_bad_centroids_are_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"features": torch.ones(3, 6), "centroids": torch.ones(4, 6)}
    with pytest.raises(error, match="^" + re.escape(message)):
        nearest_centroids(**(arguments | changes))  # type: ignore[arg-type]


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(importlib.import_module("clipn_hf.scores.clusters"))
    assert results.attempted > 0
    assert results.failed == 0


def test_rounding_of_the_embeddings_changes_no_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(20, 64, generator=generator))
    noise = 0.15 * torch.randn(800, 64, generator=generator)
    features = normalize(centers[torch.randint(20, (800,), generator=generator)] + noise)
    expected = fit_centroids(features, 50)
    rounded = features + 1e-8 * torch.randn(800, 64, generator=generator)
    torch.testing.assert_close(fit_centroids(rounded, 50), expected, rtol=0, atol=1e-6)
