# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipn_hf import clipn_loss, itbo_loss, tso_loss

DATA = Path(__file__).parents[1] / "data"


def random_embeddings(num_pairs: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        normalize(torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64), dim=-1)
        .to(dtype)
        .requires_grad_()
        for _ in range(3)
    ]


def reference_losses(f: Tensor, g: Tensor, h: Tensor, scale: float, matches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas as the paper writes them: a softmax over the two logits of each pair, then logarithms."""
    yes_logits, no_logits = scale * f @ g.T, scale * f @ h.T
    p_no = no_logits.exp() / (yes_logits.exp() + no_logits.exp())
    cosines = (g * h).sum(dim=-1)
    return (
        -(1 - p_no)[matches].log().mean(),
        -p_no[~matches].log().mean(),
        (2 - (2 - 2 * cosines + 1e-4).sqrt()).mean(),
    )


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(inputs, torch.autograd.grad(loss, inputs, allow_unused=True), strict=True)
    ]


def test_values_of_the_published_code() -> None:
    golden = load_file(DATA / "clipn_scores_official.safetensors")
    embeddings = [golden[name] for name in ("image_embeds", "text_embeds", "no_text_embeds")]
    yes_loss, no_loss = itbo_loss(*embeddings, logit_scale=10.0)
    torch.testing.assert_close(yes_loss.double(), golden["itbo_yes_scale10"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(no_loss.double(), golden["itbo_no_scale10"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(tso_loss(*embeddings[1:]).double(), golden["tso"][0], rtol=1e-5, atol=0)


def test_values_of_the_published_code_on_model_features() -> None:
    golden = load_file(DATA / "clipn_official.io.safetensors")
    names = ("image_features", "text_features", "no_text_features")
    embeddings = [normalize(golden[name][:5].double(), dim=-1) for name in names]
    for scale, tolerance in ((10, 1e-5), (100, 2e-2)):
        # at scale 100 the float32 softmax of the published code rounds 1 - p, which is near 6e-7
        yes_loss, no_loss = itbo_loss(*embeddings, logit_scale=scale)
        torch.testing.assert_close(
            yes_loss, golden[f"score.itbo_yes_scale{scale}"][0].double(), rtol=tolerance, atol=0
        )
        torch.testing.assert_close(no_loss, golden[f"score.itbo_no_scale{scale}"][0].double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(tso_loss(*embeddings[1:]), golden["score.tso"][0].double(), rtol=1e-5, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    num_pairs=st.integers(2, 9),
    dim=st.integers(2, 8),
    seed=st.integers(0, 2**20),
    scale=st.floats(0.1, 5.0),
    num_groups=st.integers(2, 9),
    chunk_size=st.none() | st.integers(1, 10),
)
def test_values_and_gradients_equal_the_naive_form(
    num_pairs: int, dim: int, seed: int, scale: float, num_groups: int, chunk_size: int | None
) -> None:
    embeddings = random_embeddings(num_pairs, dim, seed)
    group_ids = torch.arange(num_pairs) % num_groups
    matches = group_ids[:, None] == group_ids
    expected = reference_losses(*embeddings, scale, matches)
    expected_loss = 0.5 * sum(expected)
    expected_gradients = gradients(expected_loss, embeddings)
    for pairs in ({"group_ids": group_ids}, {"matches": matches}):
        result = clipn_loss(*embeddings, scale, chunk_size=chunk_size, **pairs)
        for value, reference in zip(result, (expected_loss, *expected), strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradients(result.loss, embeddings), expected_gradients, rtol=1e-7, atol=1e-10)


def test_diagonal_is_the_default() -> None:
    embeddings = random_embeddings(5, 4, seed=0)
    for pairs in ({"group_ids": torch.tensor([7, -3, 0, 2, 1])}, {"matches": torch.eye(5, dtype=torch.bool)}):
        assert clipn_loss(*embeddings, 10.0) == clipn_loss(*embeddings, 10.0, **pairs)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_sums_over_parts_of_the_images_make_up_the_means(chunk_size: int | None) -> None:
    embeddings = random_embeddings(7, 4, seed=8)
    ids = torch.tensor([0, 1, 2, 0, 3, 1, 4])
    num_matches = int((ids[:, None] == ids).sum())
    expected = torch.stack(itbo_loss(*embeddings, 10.0, group_ids=ids))
    sums = torch.zeros(2, dtype=torch.float64)
    for part in (slice(0, 3), slice(3, 7)):
        image_embeds, *texts = embeddings
        halves = itbo_loss(
            *(image_embeds[part], *texts, 10.0),
            group_ids=ids[part],
            text_group_ids=ids,
            chunk_size=chunk_size,
            reduction="sum",
        )
        sums = sums + torch.stack(halves)
    means = sums / torch.tensor([num_matches, 49 - num_matches])
    torch.testing.assert_close(means, expected)
    torch.testing.assert_close(gradients(means.sum(), embeddings), gradients(expected.sum(), embeddings))
    torch.testing.assert_close(tso_loss(*embeddings[1:], reduction="sum") / 7, tso_loss(*embeddings[1:]))


def test_weights_apply_to_the_sum_only() -> None:
    embeddings = random_embeddings(5, 4, seed=1)
    yes_loss, no_loss = itbo_loss(*embeddings, 10.0)
    opposite_loss = tso_loss(*embeddings[1:])
    result = clipn_loss(*embeddings, 10.0, yes_weight=2.0, no_weight=0.0, tso_weight=-1.0)
    assert result[1:] == (yes_loss, no_loss, opposite_loss)
    torch.testing.assert_close(result.loss, 2 * yes_loss - opposite_loss)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_finite_where_the_naive_form_overflows(chunk_size: int | None) -> None:
    embeddings = random_embeddings(6, 8, seed=2, dtype=torch.float32)
    scale = 3000.0
    naive = reference_losses(*embeddings, scale, torch.eye(6, dtype=torch.bool))
    assert not torch.stack(naive[:2]).isfinite().all()
    result = clipn_loss(*embeddings, scale, chunk_size=chunk_size)
    exact = clipn_loss(*[tensor.double() for tensor in embeddings], scale)
    torch.testing.assert_close([value.double() for value in result], list(exact), rtol=1e-5, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(result.loss, embeddings))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
def test_chunks_change_neither_values_nor_gradients(chunk_size: int) -> None:
    embeddings = random_embeddings(7, 5, seed=3)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    whole = clipn_loss(*embeddings, scale)
    parts = clipn_loss(*embeddings, scale, chunk_size=chunk_size)
    torch.testing.assert_close(list(parts), list(whole), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        gradients(parts.loss, [*embeddings, scale]),
        gradients(whole.loss, [*embeddings, scale]),
        rtol=1e-10,
        atol=1e-14,
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_chunks_bound_the_memory_of_both_passes() -> None:
    num_pairs, dim, chunk_size = 256, 16, 8
    embeddings = random_embeddings(num_pairs, dim, seed=4, dtype=torch.float32)
    largest, saved = {}, {}
    for size in (None, chunk_size):
        kept = [0]

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with LargestTensor() as mode:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = clipn_loss(*embeddings, 10.0, chunk_size=size).loss
            torch.autograd.grad(loss, embeddings)
        largest[size], saved[size] = mode.elements, max(kept)
    assert largest[None] == num_pairs**2
    assert largest[chunk_size] <= num_pairs * max(dim, chunk_size)
    assert saved[chunk_size] <= num_pairs * max(dim, chunk_size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_computed_in_float32(dtype: torch.dtype) -> None:
    embeddings = random_embeddings(6, 8, seed=5, dtype=dtype)
    result = clipn_loss(*embeddings, torch.tensor(100.0, dtype=dtype))
    expected = clipn_loss(*[tensor.float() for tensor in embeddings], 100.0)
    assert {value.dtype for value in result} == {torch.float32}
    assert result == expected


def test_autocast_does_not_lower_the_precision() -> None:
    embeddings = random_embeddings(6, 8, seed=6, dtype=torch.float32)
    expected = clipn_loss(*embeddings, 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert clipn_loss(*embeddings, 100.0) == expected
        assert clipn_loss(*embeddings, 100.0, chunk_size=6) == expected


def test_identical_half_precision_embeddings_stay_finite() -> None:
    # rounded to bfloat16, a vector of norm 1 can get a norm of more than 1
    embeddings = torch.full((1, 3), 0.5781, dtype=torch.bfloat16, requires_grad=True)
    assert (embeddings.float() ** 2).sum() > 1 + 1e-4
    loss = tso_loss(embeddings, embeddings)
    assert 1.9 < loss < 2
    assert torch.autograd.grad(loss, embeddings)[0].isfinite().all()


def test_a_half_without_pairs_is_zero() -> None:
    embeddings = random_embeddings(1, 4, seed=7)
    yes_loss, no_loss = itbo_loss(*embeddings, 10.0)
    assert yes_loss > 0
    assert no_loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients(no_loss, embeddings))

    embeddings = random_embeddings(3, 4, seed=7)
    assert itbo_loss(*embeddings, 10.0, group_ids=torch.zeros(3))[1] == 0
    assert itbo_loss(*embeddings, 10.0, matches=torch.zeros(3, 3, dtype=torch.bool))[0] == 0


def test_range() -> None:
    vectors = torch.eye(4, dtype=torch.float64)
    assert tso_loss(vectors, vectors).item() == pytest.approx(1.99)
    assert tso_loss(vectors, -vectors).item() == pytest.approx(0, abs=1e-4)
    for half in itbo_loss(vectors, vectors, -vectors, 1e5):
        assert half >= 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_embeds": torch.ones(3, 5)}, ValueError, r"of one dim.*'text_embeds': \(3, 5\)"),
        ({"no_text_embeds": torch.ones(2, 4)}, ValueError, r"'no_text_embeds': \(2, 4\)"),
        ({name: torch.ones(0, 4) for name in ("image_embeds", "text_embeds", "no_text_embeds")}, ValueError, "N >= 1"),
        ({name: torch.ones(4) for name in ("image_embeds", "text_embeds", "no_text_embeds")}, ValueError, "N, dim"),
        ({"image_embeds": torch.ones(3, 4, dtype=torch.long)}, TypeError, "`image_embeds`.*torch.int64"),
        ({"matches": torch.eye(3)}, TypeError, "`matches` must be boolean, got torch.float32"),
        ({"matches": torch.eye(2, dtype=torch.bool)}, ValueError, r"\(3, 3\), got \(2, 2\)"),
        ({"group_ids": torch.zeros(2)}, ValueError, r"3 images and 3 texts.*got `group_ids` for \(2,\)"),
        ({"text_embeds": torch.ones(5, 4), "no_text_embeds": torch.ones(5, 4)}, ValueError, "3 images and 5 texts"),
        ({"reduction": "none"}, ValueError, "`reduction` must be 'mean' or 'sum', got 'none'"),
        (
            {"group_ids": torch.zeros(3), "matches": torch.eye(3, dtype=torch.bool)},
            ValueError,
            "either `matches` or `group_ids`",
        ),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1 or None, got 0"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {name: torch.ones(3, 4) for name in ("image_embeds", "text_embeds", "no_text_embeds")}
    with pytest.raises(error, match=message):
        itbo_loss(**{**arguments, "logit_scale": 10.0, **changes})
