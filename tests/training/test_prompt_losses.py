# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of learned prompts: against the authors' values, against plain formulas, and their gradients."""

import doctest
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipn_hf.training import clip_os_loss, coop_loss, locoop_loss, ood_entropy, prompt_losses
from clipn_hf.training.prompt_losses import count_ood_patches

DATA = Path(__file__).parents[1] / "data"


def draw(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def plain_cross_entropy(logits: Tensor, labels: list[int]) -> float:
    rows = logits.double().tolist()
    terms = [
        math.log(sum(math.exp(value - row[label]) for value in row)) for row, label in zip(rows, labels, strict=True)
    ]
    return sum(terms) / len(terms)


def plain_entropies(local_logits: Tensor, labels: list[int], top_k: int) -> list[float]:
    """As the authors write it: the classes of the `top_k` largest probabilities, and whether the label is there."""
    return [
        -sum(p * math.log(p + 1e-5) for p in probabilities.tolist())
        for patches, label in zip(local_logits.double(), labels, strict=True)
        for probabilities in patches.softmax(dim=1)
        if label not in probabilities.topk(top_k).indices.tolist()
    ]


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_entropy_of_the_authors(top_k: int) -> None:
    values = load_file(DATA / "mcm_glmcm_locoop_official.safetensors")
    local_logits = 100 * values["local"] @ values["id_text"].T
    expected = values[f"score.locoop_entropy_top{top_k}"].squeeze()
    torch.testing.assert_close(ood_entropy(local_logits, values["label"], top_k), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_plain_formulas(dtype: torch.dtype) -> None:
    logits, local_logits, outliers = (
        draw(5, 6, dtype=dtype),
        draw(5, 4, 6, seed=1, dtype=dtype),
        draw(3, 6, dtype=dtype),
    )
    chosen, labels = [0, 4, 2, 2, 1], torch.tensor([0, 4, 2, 2, 1])
    entropies = plain_entropies(local_logits, chosen, 2)
    assert 0 < len(entropies) < 20
    entropy = sum(entropies) / len(entropies)
    found = {
        "coop": (coop_loss(logits, labels), plain_cross_entropy(logits, chosen)),
        "entropy": (ood_entropy(local_logits, labels, 2), entropy),
        "locoop": (
            locoop_loss(logits, local_logits, labels, top_k=2, weight=0.7),
            plain_cross_entropy(logits, chosen) - 0.7 * entropy,
        ),
        "clip_os": (
            clip_os_loss(logits, labels, outliers, weight=0.3),
            plain_cross_entropy(logits, chosen) + 0.3 * plain_cross_entropy(outliers, [5, 5, 5]),
        ),
    }
    for name, (actual, expected) in found.items():
        assert actual.dtype == dtype, name
        assert actual.item() == pytest.approx(expected, rel=1e-5), name
    assert count_ood_patches(local_logits, labels, 2) == len(entropies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_as_float32(dtype: torch.dtype) -> None:
    logits, local_logits, labels = draw(5, 6, dtype=dtype), draw(5, 4, 6, dtype=dtype), torch.tensor([0, 4, 2, 2, 1])
    pairs = {
        "locoop": (
            locoop_loss(logits, local_logits, labels, 2),
            locoop_loss(logits.float(), local_logits.float(), labels, 2),
        ),
        "clip_os": (
            clip_os_loss(logits, labels % 4, logits),
            clip_os_loss(logits.float(), labels % 4, logits.float()),
        ),
    }
    for name, (actual, expected) in pairs.items():
        assert actual.dtype == torch.float32, name
        assert actual == expected, name


def test_entropy_of_no_patch() -> None:
    local_logits = torch.zeros(2, 3, 4)
    local_logits[..., 1] = 5
    local_logits.requires_grad_()
    entropy = ood_entropy(local_logits, torch.tensor([1, 1]), top_k=1)
    assert entropy == 0
    entropy.backward()
    assert local_logits.grad is not None
    assert not local_logits.grad.any()
    assert count_ood_patches(local_logits, torch.tensor([1, 1]), top_k=1) == 0


def test_steps_against_the_gradient() -> None:
    """LoCoOp's loss makes patches of something else undecided, that of CLIP-OS sends outliers to the last class."""
    labels = torch.tensor([0, 1])
    logits, local_logits = draw(2, 3), draw(2, 8, 3, seed=1).requires_grad_()
    before = ood_entropy(local_logits, labels, 1)
    locoop_loss(logits, local_logits, labels, top_k=1).backward()
    assert local_logits.grad is not None
    after = ood_entropy(local_logits - 0.1 * local_logits.grad, labels, 1)
    assert after > before
    outliers = draw(4, 3, seed=2).requires_grad_()
    clip_os_loss(logits, labels, outliers).backward()
    assert outliers.grad is not None
    assert (outliers.grad[:, 2] < 0).all()
    assert (outliers.grad[:, :2] > 0).all()


def test_gradients() -> None:
    labels = torch.tensor([0, 3])
    logits, local_logits = draw(2, 4, dtype=torch.float64), draw(2, 3, 4, seed=1, dtype=torch.float64)
    outliers = draw(3, 4, seed=2, dtype=torch.float64)
    for tensor in (logits, local_logits, outliers):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: locoop_loss(a, b, labels, 1), (logits, local_logits))
    assert torch.autograd.gradcheck(lambda a, b: clip_os_loss(a, labels.clamp(max=2), b, 0.5), (logits, outliers))


def test_errors() -> None:
    logits, local_logits, labels = draw(2, 3), draw(2, 4, 3), torch.tensor([0, 2])
    with pytest.raises(TypeError, match=r"`logits` must be floating-point numbers, got torch.int64."):
        coop_loss(logits.long(), labels)
    with pytest.raises(ValueError, match=r"`logits` must have the shape \(batch, classes\), .* got \(2, 4, 3\)."):
        coop_loss(local_logits, labels)
    with pytest.raises(ValueError, match=r"`local_logits` must have the shape \(batch, patches, classes\)"):
        ood_entropy(logits, labels, 1)
    with pytest.raises(ValueError, match=r"none of them 0, got \(0, 3\)."):
        coop_loss(logits[:0], labels[:0])
    with pytest.raises(TypeError, match=r"`labels` must be whole numbers, int64, got torch.float32."):
        coop_loss(logits, labels.float())
    with pytest.raises(ValueError, match=r"one class for each of the 2 images, got the shape \(1,\)."):
        coop_loss(logits, labels[:1])
    with pytest.raises(ValueError, match=r"`labels` must be from 0 to 2, as there are 3 classes, got 3."):
        coop_loss(logits, labels + 1)
    with pytest.raises(ValueError, match=r"as there are 3 classes, got -1."):
        ood_entropy(local_logits, labels - 1, 1)
    with pytest.raises(ValueError, match=r"`labels` must be from 0 to 1, as there are 2 classes, got 2."):
        clip_os_loss(logits, labels, logits)
    for top_k in (0, 3):
        with pytest.raises(ValueError, match=rf"`top_k` must be from 1 to 2, .* got {top_k};"):
            ood_entropy(local_logits, labels, top_k)
    with pytest.raises(ValueError, match=r"same number of columns, .* got 3 and 4."):
        clip_os_loss(logits, labels, draw(2, 4))
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"`weight` must be a finite number >= 0"):
            clip_os_loss(logits, labels.clamp(max=1), logits, weight)
        with pytest.raises(ValueError, match=r"`weight` must be a finite number >= 0"):
            locoop_loss(logits, local_logits, labels, 1, weight)


def test_examples() -> None:
    assert doctest.testmod(prompt_losses).failed == 0
    assert doctest.testmod(prompt_losses).attempted > 8
