# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbors against the authors' values, against a complete search, and against what must always hold."""

import builtins
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf.scores import _rows, nearest_neighbors
from clipn_hf.scores.neighbors import Backend

DATA = Path(__file__).parents[1] / "data"


def images(count: int = 60, dim: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings around one mean per class, and labels such that each class has images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = 2 * torch.randn(classes, dim, generator=generator)
    return means[labels] + torch.randn(count, dim, generator=generator), labels


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(DATA / "plp_official.safetensors")


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("part", ["in", "out"])
@pytest.mark.parametrize("k", [1, 5])
def test_nearest_neighbors_equal_the_published_code(
    golden: dict[str, Tensor], part: str, k: int, backend: Backend
) -> None:
    found = nearest_neighbors(golden[f"test_{part}"], golden["train"], k, backend=backend)
    torch.testing.assert_close(found, 1 - golden[f"knn{k}_cosine_{part}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_every_dtype_gives_float32(dtype: torch.dtype, backend: Backend) -> None:
    embeddings = (10 * images()[0]).to(dtype)
    queries = embeddings[:7] + 1
    found = nearest_neighbors(queries, embeddings, k=3, backend=backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nearest_neighbors(queries.double(), embeddings.double(), k=3))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 40),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(1, 60),
    st.integers(0, 20),
    st.integers(0, 999),
)
def test_backends_give_the_same(batch: int, size: int, dim: int, k: int, copies: int, seed: int) -> None:
    """Also with copies in the bank, whose order is undecided."""
    generator = torch.Generator().manual_seed(seed)
    queries, bank = (torch.randn(count, dim, generator=generator) for count in (batch, size))
    bank = torch.cat([bank, bank[:1].expand(copies, dim)])
    k = min(k, len(bank))
    for reduction in ("mean", "kth"):
        found = [nearest_neighbors(queries, bank, k, reduction, backend) for backend in ("torch", "faiss")]
        assert torch.equal(*found)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_copies_in_the_bank_count_one_by_one(monkeypatch: pytest.MonkeyPatch, backend: Backend, chunk: int) -> None:
    """Wherever they are: in one part of the bank, or in several."""
    monkeypatch.setattr(_rows, "CHUNK", chunk)
    bank = torch.tensor([[1.0, 0.0]] * 20 + [[0.0, 1.0]] + [[1.0, 0.0]] * 20)
    queries = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    for k, expected in ((1, [0.0, 0.0, 1.0]), (40, [0.0, 1.0, 2.0]), (41, [1.0, 1.0, 2.0])):
        found = nearest_neighbors(queries, bank, k, "kth", backend)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_neighbors_are_those_of_float64() -> None:
    """Where float32 cannot order the images, and would take one 1e-7 away for one 1e-10 away."""
    generator = torch.Generator().manual_seed(0)
    query = normalize(torch.randn(1, 512, generator=generator).double())
    steps = normalize(torch.randn(6, 512, generator=generator).double())
    for nearest in range(6):
        lengths = torch.full((6, 1), 3e-4, dtype=torch.float64)
        lengths[nearest] = 1e-5
        bank = query + lengths * steps
        for backend in ("torch", "faiss"):
            assert nearest_neighbors(query, bank, backend=backend) < 1e-9


def test_faiss_has_as_many_threads_as_torch() -> None:
    """And both get along in one process, with the OpenMP of scikit-learn as the third."""
    code = """
import faiss, torch
from sklearn.cluster import KMeans
from clipn_hf.scores import fit_centroids, nearest_neighbors

class Watched:
    def __init__(self, function):
        self.function = function
    def __call__(self, *args, **kwargs):
        seen.append(faiss.omp_get_max_threads())
        return self.function(*args, **kwargs)

seen = []
faiss.knn = Watched(faiss.knn)
faiss.omp_set_num_threads(3)
torch.set_num_threads(2)
bank = torch.randn(600, 16)
expected = nearest_neighbors(bank[:50] + 0.1, bank, 5)
for _ in range(3):
    fit_centroids(bank, 5)
    assert torch.equal(nearest_neighbors(bank[:50] + 0.1, bank, 5, backend="faiss"), expected)
assert set(seen) == {2}
assert faiss.omp_get_max_threads() == 3
"""
    # Threads that wait for each other in vain take seconds where there are more of them than cores.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr


def test_missing_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_faiss(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    nearest_neighbors(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(ImportError, match=r"^`backend='faiss'` needs faiss, .* `pip install 'clipn-hf\[faiss\]'`, or"):
        nearest_neighbors(torch.ones(1, 2), torch.ones(3, 2), backend="faiss")


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


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("chunk", [1, 7, 50, 700])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int, backend: Backend) -> None:
    bank, _ = images()
    queries, _ = images(count=11, seed=1)

    def everything() -> list[Tensor]:
        return [
            nearest_neighbors(queries, bank, k, reduction, backend)
            for k in (1, 5, 60)
            for reduction in ("mean", "kth")
        ]

    whole = everything()
    monkeypatch.setattr(_rows, "CHUNK", chunk)
    for found, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_images_do_not_influence_each_other() -> None:
    bank, _ = images(count=200, dim=64)
    queries, _ = images(count=11, dim=64, seed=1)
    alone = torch.cat([nearest_neighbors(queries[row : row + 1], bank, k=3) for row in range(11)])
    torch.testing.assert_close(nearest_neighbors(queries, bank, k=3), alone, rtol=1e-6, atol=1e-9)
    assert nearest_neighbors(queries[:0], bank, k=3).shape == (0,)


def test_gradients_are_those_of_the_formula() -> None:
    bank = images()[0].double()
    leaf = images(count=5, seed=1)[0].double().requires_grad_()
    cosines = (normalize(leaf) @ normalize(bank).T).topk(2, dim=1).values
    (expected,) = torch.autograd.grad((1 - cosines.mean(dim=1)).sum(), leaf)
    for backend in ("torch", "faiss"):
        (found,) = torch.autograd.grad(nearest_neighbors(leaf, bank, 2, backend=backend).sum(), leaf)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


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
        ({"k": 0}, ValueError, "`k` must be at least 1, got 0."),
        ({"k": 5}, ValueError, "`k` must be between 1 and the 4 images in `bank`, got 5."),
        ({"k": 1.0}, TypeError, "`k` must be a whole number, got float 1.0."),
        ({"k": True}, TypeError, "`k` must be a whole number, got bool True."),
        ({"reduction": "max"}, ValueError, "`reduction` must be 'mean' or 'kth', got 'max'."),
        ({"backend": "annoy"}, ValueError, "`backend` must be 'torch' or 'faiss', got 'annoy'."),
    ],
)
def test_bad_neighbors_are_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"features": torch.ones(3, 2), "bank": torch.ones(4, 2)}
    with pytest.raises(error, match=re.escape(message)):
        nearest_neighbors(**(arguments | changes))  # type: ignore[arg-type]


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(importlib.import_module("clipn_hf.scores.neighbors"))
    assert results.attempted > 0
    assert results.failed == 0
