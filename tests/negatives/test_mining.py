# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from clipn_hf import mine_negative_labels
from clipn_hf.negatives import mining
from clipn_hf.negatives.mining import quantile_similarity

GOLDEN = Path(__file__).parents[1] / "data" / "neglabel_official.safetensors"


@pytest.mark.parametrize("kind", ["noun", "adjective"])
def test_the_published_code_chooses_the_same(kind: str) -> None:
    golden = load_file(GOLDEN)
    id_text, candidates = golden["id_text"], golden[f"{kind}_text"]
    assert mine_negative_labels(id_text, candidates).tolist() == golden[f"selected_{kind}"].tolist()
    nearness = quantile_similarity(id_text, candidates, 0.95)
    torch.testing.assert_close(nearness, golden[f"{kind}_distance_quantile"], rtol=0, atol=1e-6)
    # Neither norms nor dtypes matter.
    chosen = mine_negative_labels(3 * id_text.double(), 0.1 * candidates.double())
    assert chosen.tolist() == golden[f"selected_{kind}"].tolist()


@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.95, 1.0])),
    st.integers(0, 2**32),
)
def test_quantiles_are_those_of_torch(classes: int, candidates: int, quantile: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(candidates, classes, generator=generator).round(decimals=1)
    expected = torch.quantile(values, quantile, dim=1)
    assert torch.equal(mining._quantile(values, quantile), expected)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    id_text, candidates = torch.randn(7, 5, generator=generator), torch.randn(101, 5, generator=generator)
    expected = mine_negative_labels(id_text, candidates, 0.8, 1.0)
    assert sorted(expected.tolist()) == list(range(101))
    monkeypatch.setattr(mining, "_CHUNK_COSINES", 30)
    assert torch.equal(mine_negative_labels(id_text, candidates, 0.8, 1.0), expected)


def test_memory_is_that_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is made that has one value for each label and candidate."""
    monkeypatch.setattr(mining, "_CHUNK_COSINES", 2**12)
    sizes = []
    original = mining._quantile

    def record(cosines: torch.Tensor, quantile: float) -> torch.Tensor:
        sizes.append(cosines.numel())
        return original(cosines, quantile)

    monkeypatch.setattr(mining, "_quantile", record)
    mine_negative_labels(torch.randn(50, 4), torch.randn(10_000, 4))
    assert max(sizes) <= 2**12 and sum(sizes) == 50 * 10_000


def test_equal_candidates_come_in_their_order() -> None:
    id_text = torch.eye(3)[:2]
    candidates = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 2]])
    assert mine_negative_labels(id_text, candidates, 1.0, 1.0).tolist() == [1, 3, 4, 0, 2]


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (0.142, 0), (0.15, 1), (0.29, 2), (0.999, 6), (1, 7)])
def test_fractions_are_rounded_down(fraction: float, count: int) -> None:
    assert len(mine_negative_labels(torch.eye(2), torch.randn(7, 2), fraction=fraction)) == count


def test_fractions_do_not_suffer_from_rounding() -> None:
    assert 0.29 * 100 < 29
    assert len(mine_negative_labels(torch.eye(2), torch.randn(100, 2), fraction=0.29)) == 29


def test_bad_input_is_named() -> None:
    good = torch.eye(3)
    for name, value in (("quantile", 1.01), ("quantile", -0.1), ("fraction", 2), ("fraction", float("nan"))):
        with pytest.raises(ValueError, match=f"`{name}` must be between 0 and 1, got {value}"):
            mine_negative_labels(good, good, **{name: value})
    with pytest.raises(TypeError, match="`fraction` must be a number between 0 and 1, got str"):
        mine_negative_labels(good, good, fraction="0.1")
    with pytest.raises(TypeError, match="`id_text` must be a floating-point tensor, got list"):
        mine_negative_labels([[1.0]], good)
    with pytest.raises(TypeError, match="`candidate_text` must be a floating-point tensor, got torch.int64"):
        mine_negative_labels(good, good.long())
    with pytest.raises(ValueError, match=r"`candidate_text` must have the shape \(texts, dim\).*got \(0, 3\)"):
        mine_negative_labels(good, good[:0])
    with pytest.raises(ValueError, match="of one width, got 3 and 2"):
        mine_negative_labels(good, good[:, :2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        mine_negative_labels(good, good / torch.tensor([1.0, 0.0, 1.0]) * 0)


def test_numbers_of_numpy_and_chosen_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    id_text, candidates = torch.randn(5, 8, generator=generator), torch.randn(40, 8, generator=generator)
    chosen = mine_negative_labels(id_text, candidates, np.float32(0.5), np.float32(0.25))
    assert torch.equal(chosen, mine_negative_labels(id_text, candidates, 0.5, 0.25))
    rows = torch.tensor([7, 3, 39])
    nearness = quantile_similarity(id_text, candidates, 0.5, rows)
    torch.testing.assert_close(nearness, quantile_similarity(id_text, candidates[rows], 0.5))
