# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The scores by negative labels against the published values, against their formulas in float64, at their limits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from clipn_hf.scores import multi_matching, neglabel, neglabel_from_embeddings, top_negatives

DATA = Path(__file__).parents[1] / "data"
CHUNK, IMAGES = "clipn_hf.scores.neglabel._CHUNK", "clipn_hf.scores.neglabel._IMAGES"


def published(
    similarity: Tensor, negative_similarity: Tensor, temperature: float, num_groups: int, permutation: Tensor
) -> Tensor:
    """One softmax for each group, as in the published code, turned into OOD-ness."""
    groups = negative_similarity[:, : len(permutation)][:, permutation].chunk(num_groups, dim=1)
    shares = [torch.cat([similarity, group], dim=1).div(temperature).softmax(dim=1) for group in groups]
    return torch.stack([share[:, similarity.shape[1] :].sum(dim=1) for share in shares]).mean(dim=0)


def embeddings(
    batch: int, classes: int, negatives: int, dim: int = 16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines with the labels, embeddings of images, embeddings of negative labels."""
    generator = torch.Generator().manual_seed(seed)
    images, labels, bank = (
        normalize(torch.randn(count, dim, generator=generator), dim=1) for count in (batch, classes, negatives)
    )
    return images @ labels.T, images, bank


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return load_file(DATA / "neglabel_official.safetensors")


@pytest.mark.parametrize(
    ("name", "num_groups", "permutation"),
    [
        ("ungrouped_softmax", 1, None),
        ("grouped5", 5, "permutation5"),
        ("grouped10", 10, "permutation10"),
        ("grouped5_ordered", 5, range(105)),
        ("grouped10_ordered", 10, range(100)),
    ],
)
def test_equals_the_published_code(official: dict[str, Tensor], name: str, num_groups: int, permutation: Any) -> None:
    nouns, adjectives = (official[f"{kind}_text"][official[f"selected_{kind}"]] for kind in ("noun", "adjective"))
    images, bank = official["image"], torch.cat([nouns, adjectives])
    similarity = images @ official["id_text"].T
    if permutation is not None:
        permutation = official[permutation] if isinstance(permutation, str) else torch.tensor(permutation)
    expected = 1 - official[f"score.{name}"]
    options: dict[str, Any] = {"num_groups": num_groups, "permutation": permutation}
    torch.testing.assert_close(neglabel(similarity, images @ bank.T, **options), expected, rtol=1e-5, atol=1e-5)
    streamed = neglabel_from_embeddings(similarity, images, bank, **options)
    torch.testing.assert_close(streamed, expected, rtol=1e-5, atol=1e-5)


def test_default_order_is_the_one_of_the_published_code() -> None:
    """Which draws `torch.randperm` of the global generator, seeded with 0."""
    similarity, images, bank = embeddings(8, 5, 43)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        permutation = torch.randperm(40)
    expected = neglabel(similarity, images @ bank.T, num_groups=10, permutation=permutation)
    before = torch.get_rng_state()
    assert torch.equal(neglabel(similarity, images @ bank.T, num_groups=10), expected)
    assert not torch.equal(neglabel(similarity, images @ bank.T, num_groups=10, seed=1), expected)
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None)
@given(
    batch=st.integers(1, 6),
    classes=st.integers(1, 5),
    negatives=st.integers(1, 40),
    share=st.floats(0, 1),
    temperature=st.sampled_from([0.003, 0.01, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
    chunk=st.integers(1, 200),
    images_at_once=st.integers(1, 8),
)
def test_streaming_equals_the_formula_however_it_is_divided(
    batch: int,
    classes: int,
    negatives: int,
    share: float,
    temperature: float,
    seed: int,
    chunk: int,
    images_at_once: int,
) -> None:
    similarity, images, bank = embeddings(batch, classes, negatives, dim=4, seed=seed)
    num_groups = 1 + int(share * (negatives - 1))
    kept = negatives - negatives % num_groups
    permutation = torch.randperm(kept, generator=torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {"temperature": temperature, "num_groups": num_groups, "seed": seed}
    whole = neglabel(similarity, images @ bank.T, **options)
    expected = published(similarity.double(), (images @ bank.T).double(), temperature, num_groups, permutation)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-3, atol=1e-5)
    assert ((whole >= 0) & (whole <= 1)).all()
    with patch(CHUNK, chunk), patch(IMAGES, images_at_once):
        for found in (
            neglabel(similarity, images @ bank.T, **options),
            neglabel_from_embeddings(similarity, images, bank, **options),
        ):
            torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-6)
    alone = [neglabel_from_embeddings(similarity[i : i + 1], images[i : i + 1], bank, **options) for i in range(batch)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-3, atol=1e-6)


@settings(deadline=None)
@given(
    batch=st.integers(1, 6),
    classes=st.integers(1, 5),
    negatives=st.integers(1, 40),
    k=st.integers(0, 45),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
    chunk=st.integers(1, 200),
    images_at_once=st.integers(1, 8),
)
def test_top_negatives_are_those_of_the_softmax(
    batch: int, classes: int, negatives: int, k: int, temperature: float, seed: int, chunk: int, images_at_once: int
) -> None:
    similarity, images, bank = embeddings(batch, classes, negatives, dim=4, seed=seed)
    softmax = torch.cat([similarity, images @ bank.T], dim=1).div(temperature).double().softmax(dim=1)[:, classes:]
    with patch(CHUNK, chunk), patch(IMAGES, images_at_once):
        masses, positions = top_negatives(similarity, images, bank, k, temperature)
    assert masses.dtype == torch.float32
    assert positions.dtype == torch.int64
    assert masses.shape == positions.shape == (batch, min(k, negatives))
    torch.testing.assert_close(masses.double(), softmax.gather(1, positions), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(masses.double(), softmax.sort(dim=1, descending=True)[0][:, :k], rtol=1e-3, atol=1e-6)
    assert (masses.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == len(row) for row in positions.tolist())


def test_masses_are_parts_of_the_ungrouped_score() -> None:
    similarity, images, bank = embeddings(8, 5, 43)
    masses, _ = top_negatives(similarity, images, bank, k=100)
    torch.testing.assert_close(masses.sum(dim=1), neglabel(similarity, images @ bank.T, num_groups=1))


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_of_equal_negatives_the_first_comes_first(chunk: int) -> None:
    """Also among those at the end of the list, and where the cosines are 0 or negative."""
    images = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    bank = torch.tensor([[0.0, 0.5], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 0.5]])
    with patch(CHUNK, chunk):
        for k in range(8):
            _, positions = top_negatives(torch.zeros(2, 1), images, bank, k)
            assert positions.tolist() == [[2, 0, 5, 6, 1, 3, 4][:k], [1, 3, 4, 0, 5, 6, 2][:k]]


@settings(deadline=None)
@given(
    cosines=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6),
    temperature=st.floats(1e-44, 3e38),
    size=st.sampled_from([1.0, 1e30]),
)
def test_any_temperature_and_cosine_stay_finite(cosines: list[float], temperature: float, size: float) -> None:
    similarity, negative_similarity = (size * torch.tensor(cosines)).view(2, 3).split([1, 2], dim=1)
    image = torch.eye(2)
    for found in (
        neglabel(similarity, negative_similarity, temperature, 1),
        neglabel(similarity, negative_similarity, temperature, 2),
        neglabel_from_embeddings(similarity, image, negative_similarity.T, temperature, 2),
        multi_matching(negative_similarity, negative_similarity.flip(1), temperature),
        top_negatives(similarity, image, negative_similarity.T, 2, temperature)[0],
    ):
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("gap", [0.2, 1.0, 2.0])
def test_both_ends_are_reached_without_overflow(gap: float) -> None:
    """Differences of cosines over the temperature are beyond what `exp` can take in float32."""
    low, high = torch.full((1, 3), -gap / 2), torch.full((1, 3), gap / 2)
    for temperature in (1e-44, 1e-5, 1e-3):
        for num_groups in (1, 3):
            assert neglabel(low, high, temperature, num_groups).item() == 1
            assert neglabel(high, low, temperature, num_groups).item() < 1e-30
            assert neglabel(low, low, temperature, num_groups).item() == pytest.approx(1 / (1 + num_groups))
        assert multi_matching(low, high, temperature).item() == 1
        assert multi_matching(high, low, temperature).item() < 1e-30
    # In the hottest softmax all count the same.
    assert neglabel(low, high, 3e38, 1).item() == pytest.approx(0.5)


def test_near_certain_images_stay_apart() -> None:
    """`1 - S` is 0 for both in float32, and equal scores cannot be ranked."""
    negative_similarity = torch.full((2, 10), -0.1)
    surer, sure = neglabel(torch.tensor([[0.3], [0.2]]), negative_similarity, num_groups=2)
    assert 0 < surer < sure < 1e-12
    surer, sure = multi_matching(torch.tensor([[0.3], [0.2]]), negative_similarity[:, :1])
    assert 0 < surer < sure < 1e-12


def test_thousands_of_equal_terms_keep_their_precision() -> None:
    similarity, negative_similarity = torch.zeros(2, 7), torch.zeros(2, 300_000)
    assert neglabel(similarity, negative_similarity, num_groups=1).tolist() == pytest.approx([300_000 / 300_007] * 2)
    similarity = torch.full((1, 1), 0.1)
    found = neglabel(similarity, negative_similarity[:1], num_groups=1).item()
    odds = 300_000 * torch.tensor(-10.0, dtype=torch.float64).exp().item()
    assert found == pytest.approx(odds / (1 + odds), rel=1e-6)


@pytest.mark.parametrize("num_groups", [1, 4, 30])
def test_gradient_equals_the_one_of_the_formula(num_groups: int) -> None:
    leaves = embeddings(5, 3, 30)
    order = torch.randperm(30 - 30 % num_groups, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(5, generator=torch.Generator().manual_seed(1))

    def gradients(score: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        return torch.autograd.grad((weights * score(*own)).sum(), own)

    expected = gradients(lambda s, i, b: published(s, i @ b.T, 0.1, num_groups, order), torch.float64)
    for chunk in (8, 2**20):
        with patch(CHUNK, chunk):
            streamed = gradients(
                lambda s, i, b: neglabel_from_embeddings(s, i, b, 0.1, num_groups, order), torch.float32
            )
            whole = gradients(lambda s, i, b: neglabel(s, i @ b.T, 0.1, num_groups, order), torch.float32)
        for found in (streamed, whole):
            for gradient, truth in zip(found, expected, strict=True):
                torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
def test_gradient_stays_finite(temperature: float) -> None:
    low, high = torch.full((2, 3), -0.5), torch.full((2, 3), 0.5)
    for similarity, negative_similarity in ((low, high), (high, low)):
        leaves = [similarity.clone().requires_grad_(), negative_similarity.clone().requires_grad_()]
        for score in (neglabel(*leaves, temperature, 3), multi_matching(*leaves, temperature)):
            for gradient in torch.autograd.grad(score.sum(), leaves):
                assert torch.isfinite(gradient).all()


class LargestTensor(TorchDispatchMode):
    """Remembers how many bytes the largest tensor has that is made, not counting views of those there were."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("batch", "negatives", "dim"), [(64, 100_000, 32), (3000, 5_000, 8), (1, 1_000_000, 4)])
def test_memory_does_not_grow(batch: int, negatives: int, dim: int, dtype: torch.dtype) -> None:
    """Neither all cosines nor a copy of all embeddings are made, however many images or negative labels there are."""
    images = torch.ones(batch, dim) / dim**0.5
    bank = torch.ones(negatives, dim, dtype=dtype) / dim**0.5
    similarity = torch.zeros(batch, 2)
    limit = 10 * 2**20  # A chunk in 64 bits, and the group of each negative label
    assert max(4 * batch * negatives, 4 * negatives * dim) > 1.5 * limit
    for score in (
        lambda: neglabel_from_embeddings(similarity, images, bank),
        lambda: neglabel_from_embeddings(similarity, images, bank, num_groups=min(negatives, 5000)),
        lambda: top_negatives(similarity, images, bank, 3),
    ):
        with LargestTensor(images, bank, similarity) as largest:
            score()
        assert 0 < largest.bytes <= limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computes_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    similarity, images, bank = (tensor.to(dtype) for tensor in embeddings(6, 4, 30))
    cosines = images.float() @ bank.float().T
    expected = neglabel(similarity.float(), cosines, num_groups=5)
    for found in (
        neglabel(similarity, cosines.double(), num_groups=5),
        neglabel_from_embeddings(similarity, images, bank, num_groups=5),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    masses, _ = top_negatives(similarity, images, bank, 3)
    assert masses.dtype == torch.float32
    assert multi_matching(similarity, similarity).tolist() == [0.5] * 6
    assert multi_matching(similarity, similarity).dtype == torch.float32


def test_multi_matching_is_the_best_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs, negatives = 0.05 * torch.rand(2, 20, 25, generator=generator).double()
    both = (pairs / 0.01).exp() / ((pairs / 0.01).exp() + (negatives / 0.01).exp())
    torch.testing.assert_close(multi_matching(pairs, negatives).double(), 1 - both.amax(dim=1), rtol=1e-4, atol=1e-6)


def test_no_images_give_no_scores() -> None:
    similarity, images, bank = embeddings(0, 4, 300)
    assert neglabel(similarity, images @ bank.T).shape == (0,)
    assert neglabel_from_embeddings(similarity, images, bank).shape == (0,)
    assert multi_matching(similarity, similarity).shape == (0,)
    masses, positions = top_negatives(similarity, images, bank, 3)
    assert masses.shape == positions.shape == (0, 3)


def test_bad_groups_are_refused() -> None:
    similarity, images, bank = embeddings(2, 3, 12)
    for score in (
        lambda **options: neglabel(similarity, images @ bank.T, **options),
        lambda **options: neglabel_from_embeddings(similarity, images, bank, **options),
    ):
        with pytest.raises(ValueError, match=r"got 100 groups for 12 negative labels; give more .* `num_groups=1`\.$"):
            score()
        with pytest.raises(ValueError, match="got 0 groups"):
            score(num_groups=0)
        with pytest.raises(TypeError, match=r"`num_groups` must be a whole number, got float 2\.0"):
            score(num_groups=2.0)
        with pytest.raises(TypeError, match="`seed` must be a whole number, got str 'a'"):
            score(num_groups=2, seed="a")
        with pytest.raises(ValueError, match=r"`permutation` must have shape \(10,\), as 2 of 12 .* got \(12,\)"):
            score(num_groups=5, permutation=torch.arange(12))
        for wrong in ([0, 1, 2, 3, 4, 5, 6, 7, 8, 8], range(1, 11), range(-1, 9)):
            with pytest.raises(ValueError, match="`permutation` must hold each number from 0 to 9 once"):
                score(num_groups=5, permutation=torch.tensor(wrong))
        with pytest.raises(TypeError, match="`permutation` must hold int64 numbers, got dtype torch.float32"):
            score(num_groups=5, permutation=torch.zeros(10))
        with pytest.raises(TypeError, match=r"`permutation` must be a torch\.Tensor, got list"):
            score(num_groups=5, permutation=list(range(10)))


def test_bad_input_is_refused() -> None:
    similarity, images, bank = embeddings(2, 3, 12)
    damaged = bank.clone()
    damaged[7, 1] = float("nan")
    infinite = bank.half()
    infinite[7, 1] = float("inf")

    def top(similarity: Any, images: Any, bank: Any, **options: Any) -> Any:
        return top_negatives(similarity, images, bank, 2, **options)

    def grouped(similarity: Any, images: Any, bank: Any, **options: Any) -> Any:
        return neglabel_from_embeddings(similarity, images, bank, num_groups=2, **options)

    for score in (top, grouped):
        for wrong in (damaged, infinite):
            with pytest.raises(ValueError, match="`negative_embeddings` has NaN or infinite values"):
                score(similarity, images, wrong)
        with pytest.raises(ValueError, match="`image_embeddings` has NaN or infinite values in 1 of 2 rows"):
            score(similarity, damaged[6:8], bank)
        with pytest.raises(ValueError, match="`similarity` has NaN or infinite values in 2 of 2 rows"):
            score(similarity / 0, images, bank)
        with pytest.raises(
            ValueError, match="`image_embeddings` have 16 dimensions, but `negative_embeddings` have 8"
        ):
            score(similarity, images, bank[:, :8])
        with pytest.raises(ValueError, match="must be of the same images, got 2 and 1 rows"):
            score(similarity, images[:1], bank)
        with pytest.raises(ValueError, match=r"`negative_embeddings` has no negative labels.* \(0, 16\)"):
            score(similarity, images, bank[:0])
        with pytest.raises(ValueError, match=r"`negative_embeddings` must have shape \(negatives, dim\), got \(16,\)"):
            score(similarity, images, bank[0])
        with pytest.raises(ValueError, match="`negative_embeddings` must be real"):
            score(similarity, images, bank.to(torch.complex64))
        with pytest.raises(TypeError, match=r"`negative_embeddings` must be a torch\.Tensor .*, got list"):
            score(similarity, images, bank.tolist())
        with pytest.raises(ValueError, match="`similarity` has no classes"):
            score(similarity[:, :0], images, bank)
        with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
            score(similarity, images, bank, temperature=0.0)
    for k, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="`k` must"):
            top_negatives(similarity, images, bank, k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`negative_similarity` has no negative labels, its shape is \(2, 0\)"):
        neglabel(similarity, similarity[:, :0])
    with pytest.raises(ValueError, match="`negative_similarity` must be of the same images, got 2 and 1 rows"):
        neglabel(similarity, similarity[:1])
    with pytest.raises(ValueError, match="`negative_similarity` has NaN or infinite values in 1 of 12 rows"):
        neglabel(torch.zeros(12, 1), damaged)
    with pytest.raises(ValueError, match=r"the same shape \(batch, pairs\), got \(2, 3\) and \(2, 2\)"):
        multi_matching(similarity, similarity[:, :2])
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        multi_matching(similarity, similarity, temperature=-1.0)
