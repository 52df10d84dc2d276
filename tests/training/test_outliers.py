# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How outliers are made of patches: against plain loops over patches, images and pairs, and what must always hold."""

import doctest
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf.training import outliers
from clipn_hf.training.outliers import (
    blend_patch_context,
    id_relevant_features,
    surgery_discrepancy_mask,
    synthesize_outliers,
)

DIM = 6
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
seeds = st.integers(0, 10_000)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blend_by_loops(patches: Tensor, beta: float, rows: int, columns: int) -> Tensor:
    """Neighbour by neighbour, of those that exist."""
    image = patches.double().unflatten(1, (rows, columns))
    blended = image.clone()
    for row in range(rows):
        for column in range(columns):
            around = [
                image[:, r, c]
                for r in range(max(0, row - 1), min(rows, row + 2))
                for c in range(max(0, column - 1), min(columns, column + 2))
            ]
            blended[:, row, column] = (1 - beta) * image[:, row, column] + beta * torch.stack(around).mean(dim=0)
    return blended.flatten(1, 2)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (4, 4), (3, 5), (1, 6), (7, 2)])
def test_blending_equals_loops(beta: float, rows: int, columns: int) -> None:
    patches = random_tensor(2, rows * columns, DIM)
    found = blend_patch_context(patches, beta, (rows, columns))
    torch.testing.assert_close(found.double(), blend_by_loops(patches, beta, rows, columns), rtol=1e-5, atol=1e-6)
    if rows == columns:
        assert torch.equal(blend_patch_context(patches, beta), found)


def test_blending_can_be_switched_off() -> None:
    patches = random_tensor(2, 9, DIM)
    assert blend_patch_context(patches, 0) is patches


@given(seeds, st.floats(0, 1))
def test_blending_keeps_constant_images_and_images_apart(seed: int, beta: float) -> None:
    """The border is no darker than the rest, and nothing runs from one image, or one dimension, to the next."""
    constant = random_tensor(2, 1, DIM, seed=seed).expand(2, 12, DIM)
    torch.testing.assert_close(blend_patch_context(constant, beta, (3, 4)), constant)
    patches = random_tensor(2, 12, DIM, seed=seed)
    alone = blend_patch_context(patches[1:], beta, (3, 4))
    torch.testing.assert_close(blend_patch_context(patches, beta, (3, 4))[1:], alone)
    one = blend_patch_context(patches[:, :, 2:3], beta, (3, 4))
    torch.testing.assert_close(blend_patch_context(patches, beta, (3, 4))[:, :, 2:3], one)


@pytest.mark.parametrize("dtype", FLOATS)
def test_blending_and_averaging_compute_in_float32_or_more(dtype: torch.dtype) -> None:
    patches = random_tensor(2, 16, DIM).to(dtype)
    blended = blend_patch_context(patches, 0.5)
    assert blended.dtype == dtype
    torch.testing.assert_close(blended, blend_by_loops(patches, 0.5, 4, 4).to(dtype))
    mask = random_tensor(2, 16) > 0
    averaged = id_relevant_features(patches, mask)
    assert averaged.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blend_patch_context(patches, 0.5), blended)
        assert torch.equal(id_relevant_features(patches, mask), averaged)


def test_blending_refuses_bad_input() -> None:
    patches = random_tensor(2, 12, DIM)
    with pytest.raises(ValueError, match="12 patches, which make no square; give `grid`"):
        blend_patch_context(patches, 0.5)
    with pytest.raises(ValueError, match="`grid` must be rows and columns of 12 patches, got 3 × 5"):
        blend_patch_context(patches, 0.5, (3, 5))
    # Also where nothing is blended.
    with pytest.raises(ValueError, match="got -3 × -4"):
        blend_patch_context(patches, 0, (-3, -4))
    for grid in ((3, 2, 2), 12):
        with pytest.raises(TypeError, match=r"`grid` must be two numbers, rows and columns, such as \(7, 7\), got"):
            blend_patch_context(patches, 0.5, grid)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`grid` must be a whole number"):
        blend_patch_context(patches, 0.5, (3.0, 4))  # type: ignore[arg-type]
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="`beta` must be between 0 and 1"):
            blend_patch_context(patches, beta, (3, 4))
    with pytest.raises(TypeError, match="`beta` must be a number"):
        blend_patch_context(patches, "1", (3, 4))  # type: ignore[arg-type]
    functions: list[Callable[[Any], Tensor]] = [lambda given: blend_patch_context(given, 0.5), id_relevant_features]
    for function in functions:
        with pytest.raises(TypeError, match=r"`patches` must be a torch\.Tensor"):
            function([[1.0]])
        for bad in (patches[0], patches[:, :0], patches.long()):
            with pytest.raises(ValueError, match=r"shape \(batch, patches, dim\) and a floating dtype"):
                function(bad)
        for value in (math.nan, math.inf):
            damaged = random_tensor(2, 9, DIM).index_fill_(1, torch.tensor([3]), value)
            with pytest.raises(ValueError, match="`patches` has NaN or infinite values"):
                function(damaged)


def otsu_by_loops(values: list[float]) -> list[bool]:
    """Of all ways to split the values, that of the largest variance between the groups."""
    best, chosen = -1.0, [True] * len(values)
    for level in sorted(set(values))[:-1]:
        upper = [value for value in values if value > level]
        lower = [value for value in values if value <= level]
        gap = sum(upper) / len(upper) - sum(lower) / len(lower)
        variance = len(upper) * len(lower) * gap**2
        if variance > best * (1 + 1e-9):
            best, chosen = variance, [value > level for value in values]
    return chosen


def mask_by_loops(surgery: list[float], clip: list[float], threshold: str | float) -> list[bool]:
    def stretched(values: list[float]) -> list[float]:
        low, high = min(values), max(values)
        return [(value - low) / (high - low) for value in values]

    difference = [one - other for one, other in zip(stretched(surgery), stretched(clip), strict=True)]
    if threshold == "otsu":
        return otsu_by_loops(difference)
    level = sum(difference) / len(difference) if threshold == "mean" else float(threshold)
    if max(difference) <= level:
        level = sorted(set(difference))[-2]
    return [value > level for value in difference]


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.0, 0.5, -0.5, 1.0])
def test_mask_equals_loops(threshold: Any) -> None:
    surgery, clip = random_tensor(2, 50, 9).unbind()
    found = surgery_discrepancy_mask(surgery, clip, threshold)
    expected = [
        mask_by_loops(one, other, threshold)
        for one, other in zip(surgery.double().tolist(), clip.double().tolist(), strict=True)
    ]
    assert found.tolist() == expected


@given(seeds, st.sampled_from(["mean", "otsu", -0.3, 0.0, 0.9]), st.integers(1, 12), st.floats(1e-4, 1e4))
def test_mask_is_never_empty_and_knows_no_units(seed: int, threshold: Any, patches: int, scale: float) -> None:
    surgery, clip = random_tensor(2, 5, patches, seed=seed).unbind()
    found = surgery_discrepancy_mask(surgery, clip, threshold)
    assert found.dtype == torch.bool
    assert found.shape == (5, patches)
    assert found.any(dim=1).all()
    # Which patches are selected depends neither on other images nor on the order of the patches.
    assert torch.equal(surgery_discrepancy_mask(surgery[2:3], clip[2:3], threshold), found[2:3])
    assert torch.equal(surgery_discrepancy_mask(surgery.flip(1), clip.flip(1), threshold), found.flip(1))
    # Logits, or cosines of another model, select as cosines do. Float64, so that nothing lies at the threshold.
    surgery, clip = surgery.double(), clip.double()
    found = surgery_discrepancy_mask(surgery, clip, threshold)
    assert torch.equal(surgery_discrepancy_mask(scale * surgery + 3 * scale, clip / scale, threshold), found)


@pytest.mark.parametrize("threshold", ["mean", "otsu", -1.0, 0.0, 1.0])
def test_mask_of_constant_maps(threshold: Any) -> None:
    """Nothing tells the patches apart: all are selected. Where one map does, it alone decides."""
    rising, flat = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.full((1, 4), 0.25)
    for surgery, clip in ((flat, flat), (rising, rising), (flat, flat + 1e-8)):
        assert surgery_discrepancy_mask(surgery, clip, threshold).all()
    assert surgery_discrepancy_mask(flat[:, :1], flat[:, :1], threshold).all()
    noise = flat + torch.tensor([[0.0, 3e-8, 0.0, -3e-8]])
    assert torch.equal(
        surgery_discrepancy_mask(noise, rising, threshold), surgery_discrepancy_mask(flat, rising, threshold)
    )
    if threshold == "mean":
        assert surgery_discrepancy_mask(rising, flat, threshold).tolist() == [[False, False, True, True]]
        assert surgery_discrepancy_mask(flat, rising, threshold).tolist() == [[True, True, False, False]]


def test_a_level_that_no_patch_exceeds_selects_the_largest_difference() -> None:
    surgery, clip = torch.tensor([[0.1, 0.5, 0.9, 0.9]]), torch.tensor([[0.2, 0.2, 0.3, 0.3]])
    # The differences are 0, 0.5, 0 and 0.
    assert surgery_discrepancy_mask(surgery, clip, 0.5).tolist() == [[False, True, False, False]]
    assert surgery_discrepancy_mask(surgery, clip, 1).tolist() == [[False, True, False, False]]


def test_mask_has_no_gradient_and_refuses_bad_input() -> None:
    surgery, clip = random_tensor(2, 3, 4).unbind()
    assert not surgery_discrepancy_mask(surgery.requires_grad_(), clip).requires_grad
    with pytest.raises(ValueError, match=r"the same shape \(batch, patches\), got \(3, 4\) and \(2, 4\)"):
        surgery_discrepancy_mask(surgery, clip[:2])
    with pytest.raises(ValueError, match=r"`clip_map` must have shape \(batch, patches\), got \(4,\)"):
        surgery_discrepancy_mask(surgery, clip[0])
    with pytest.raises(ValueError, match=r"`surgery_map` must have shape"):
        surgery_discrepancy_mask(surgery[:, :0], clip[:, :0])
    with pytest.raises(TypeError, match=r"`surgery_map` must be a torch\.Tensor"):
        surgery_discrepancy_mask([[1.0]], clip)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`clip_map` has NaN or infinite values"):
        surgery_discrepancy_mask(surgery, torch.full_like(clip, math.nan))
    with pytest.raises(ValueError, match="`threshold` must be one of 'mean', 'otsu', or a number"):
        surgery_discrepancy_mask(surgery, clip, "median")  # type: ignore[arg-type]
    for level in (-1.1, 2, math.nan):
        with pytest.raises(ValueError, match="`threshold` must be between -1 and 1"):
            surgery_discrepancy_mask(surgery, clip, level)
    for wrong in (None, True):
        with pytest.raises(TypeError, match="`threshold` must be a number"):
            surgery_discrepancy_mask(surgery, clip, wrong)  # type: ignore[arg-type]


def test_average_of_the_selected_patches() -> None:
    patches, mask = random_tensor(5, 9, DIM), random_tensor(5, 9, seed=2) > 0
    expected = torch.stack(
        [normalize(one[chosen].mean(dim=0), dim=0) for one, chosen in zip(patches, mask, strict=True)]
    )
    torch.testing.assert_close(id_relevant_features(patches, mask), expected)
    every = torch.ones(5, 9, dtype=torch.bool)
    torch.testing.assert_close(id_relevant_features(patches), id_relevant_features(patches, every))
    torch.testing.assert_close(id_relevant_features(patches), normalize(patches.mean(dim=1), dim=1))


def test_average_refuses_bad_input() -> None:
    patches, mask = random_tensor(3, 4, DIM), torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="selects no patch of 2 of 3 images"):
        id_relevant_features(patches, mask & torch.tensor([[False], [True], [False]]))
    with pytest.raises(ValueError, match=r"`mask` must have the shape \(3, 4\) of the patches, got \(3, 3\)"):
        id_relevant_features(patches, mask[:, :3])
    with pytest.raises(TypeError, match=r"`mask` must be of bool, got torch\.float32"):
        id_relevant_features(patches, mask.float())
    with pytest.raises(TypeError, match=r"`mask` must be a torch\.Tensor of shape \(batch, patches\), got list"):
        id_relevant_features(patches, [[True]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no direction"):
        id_relevant_features(torch.cat([patches[:, :1], -patches[:, :1]], dim=1))


def classes_of(outliers: Tensor, of_class: Tensor) -> list[list[int]]:
    """Which classes are in each outlier, of features that are unit vectors along one axis each."""
    return [sorted({int(of_class[axis]) for axis in row.nonzero()[:, 0]}) for row in outliers > 1e-6]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=12).filter(lambda labels: len(set(labels)) > 1), seeds)
def test_outliers_are_of_two_different_classes(labels: list[int], seed: int) -> None:
    """Each of a feature in turn and one of another class, whatever the numbers and sizes of the classes are."""
    features, of_class = torch.eye(len(labels)), torch.tensor(labels)
    # So large an alpha that both have a half of the outlier.
    found = synthesize_outliers(features, of_class, 1e6, generator=generator(seed))
    assert found.shape == features.shape
    assert all(len(classes) == 2 for classes in classes_of(found, of_class))
    assert (found.diagonal() > 0.5).all()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(labels)))


@pytest.mark.parametrize("num_outliers", [1, 4, 5, 6, 11])
def test_every_feature_is_used_equally_often(num_outliers: int) -> None:
    """As the first of a pair, one time more or less."""
    labels = torch.tensor([0, 1, 0, 2, 2])
    anchors, partners = outliers._draw_pairs(labels, num_outliers, generator())
    uses = anchors.bincount(minlength=5)
    assert uses.max() - uses.min() <= 1
    assert (labels[anchors] != labels[partners]).all()
    assert synthesize_outliers(random_tensor(5, DIM), labels, 1.0, num_outliers).shape == (num_outliers, DIM)


def test_every_partner_of_another_class_is_as_likely() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 0])
    anchors, partners = outliers._draw_pairs(labels, 60_000, generator())
    counts = Counter(zip(anchors.tolist(), partners.tolist(), strict=True))
    for anchor in range(6):
        allowed = [other for other in range(6) if labels[other] != labels[anchor]]
        observed = [counts[anchor, other] for other in allowed]
        assert sum(observed) == 10_000
        assert stats.chisquare(observed).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 0.3, 0.5, 1.0, 2.0, 17.0, 1e4])
def test_shares_are_beta_distributed(alpha: float) -> None:
    shares = outliers._draw_symmetric_beta(alpha, 20_000, generator())
    assert shares.dtype == torch.float64
    assert ((shares >= 0) & (shares <= 1)).all()
    assert stats.kstest(shares.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 1e300])
def test_extreme_alphas(alpha: float) -> None:
    """One of both features, or what lies halfway between them."""
    found = synthesize_outliers(torch.eye(2).repeat(50, 1), torch.arange(100) % 2, alpha, generator=generator())
    assert torch.isfinite(found).all()
    expected = 0.5 if alpha > 1 else 1.0
    torch.testing.assert_close(found.amax(dim=1).square(), torch.full((100,), expected), rtol=1e-3, atol=0)


def test_outliers_equal_their_formula() -> None:
    features, labels = normalize(random_tensor(7, DIM), dim=1), torch.arange(7) % 3
    found = synthesize_outliers(features, labels, 0.7, 20, generator())
    same = generator()
    anchors, partners = outliers._draw_pairs(labels, 20, same)
    shares = outliers._draw_symmetric_beta(0.7, 20, same).float()[:, None]
    expected = shares * features[anchors] + (1 - shares) * features[partners]
    torch.testing.assert_close(found, normalize(expected, dim=1))
    # Lengths, which tell nothing of the class, do not make one of the two count more.
    longer = features * torch.arange(1, 8)[:, None]
    torch.testing.assert_close(synthesize_outliers(longer, labels, 0.7, 20, generator()), found)


def test_outliers_follow_the_generator() -> None:
    features, labels = random_tensor(7, DIM), torch.arange(7) % 3
    found = synthesize_outliers(features, labels, 1.0, generator=generator(5))
    assert torch.equal(synthesize_outliers(features, labels, 1.0, generator=generator(5)), found)
    assert not torch.equal(synthesize_outliers(features, labels, 1.0, generator=generator(6)), found)
    going_on = generator(5)
    first, second = (synthesize_outliers(features, labels, 1.0, generator=going_on) for _ in range(2))
    assert torch.equal(first, found)
    assert not torch.equal(second, found)
    torch.manual_seed(5)
    assert torch.equal(synthesize_outliers(features, labels, 1.0), found)


@pytest.mark.parametrize("dtype", FLOATS)
def test_outliers_are_at_least_float32(dtype: torch.dtype) -> None:
    features, labels = random_tensor(7, DIM).to(dtype), torch.arange(7) % 3
    found = synthesize_outliers(features, labels, 1.0, generator=generator())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = synthesize_outliers(features.double(), labels, 1.0, generator=generator())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_opposite_features_have_outliers_at_right_angles() -> None:
    """Halfway between both there is nothing, but every outlier has a direction, and neither class has it."""
    vector = normalize(random_tensor(1, DIM), dim=1)
    features = torch.cat([vector, -vector]).requires_grad_()
    found = synthesize_outliers(features, torch.tensor([0, 1]), 1e300, generator=generator())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found @ vector.T, torch.zeros(2, 1), rtol=0, atol=1e-6)
    found.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda patches: blend_patch_context(patches, 0.3),
        lambda patches: id_relevant_features(patches, torch.arange(9).expand(2, 9) % 2 == 0),
        lambda patches: synthesize_outliers(patches[0], torch.arange(9) % 2, 1.0, generator=generator()),
    ],
)
def test_gradients(function: Callable[[Tensor], Tensor]) -> None:
    patches = random_tensor(2, 9, DIM).double().requires_grad_()
    assert torch.autograd.gradcheck(function, (patches,))


def test_a_seed_is_no_generator() -> None:
    message = r"`generator` must be a torch.Generator, got int 3; give `torch.Generator\(\).manual_seed\(seed\)`"
    with pytest.raises(TypeError, match=message):
        synthesize_outliers(torch.eye(3), torch.arange(3), 1.0, generator=3)  # type: ignore[arg-type]


def test_outliers_refuse_bad_input() -> None:
    features, labels = random_tensor(4, DIM), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match="`labels` has 1 class, but outliers are mixed of two different ones"):
        synthesize_outliers(features, torch.ones(4, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="`labels` has 0 classes"):
        synthesize_outliers(features[:0], labels[:0], 1.0)
    with pytest.raises(ValueError, match="one whole number for each of the 4 features, got shape"):
        synthesize_outliers(features, labels[:3], 1.0)
    with pytest.raises(ValueError, match=r"got shape \(4,\) of torch\.float32"):
        synthesize_outliers(features, labels.float(), 1.0)
    for bad in (features[0], features[:, :1]):
        with pytest.raises(ValueError, match="at least 2 dimensions"):
            synthesize_outliers(bad, labels, 1.0)
    for value in (math.nan, 0.0):
        damaged = features.clone()
        damaged[2] = value
        with pytest.raises(ValueError, match="`features` has embeddings that have no direction"):
            synthesize_outliers(damaged, labels, 1.0)
    for alpha in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`alpha` must be positive and finite"):
            synthesize_outliers(features, labels, alpha)
    with pytest.raises(TypeError, match="`alpha` must be a number"):
        synthesize_outliers(features, labels, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`num_outliers` must be at least 1, got 0"):
        synthesize_outliers(features, labels, 1.0, 0)
    with pytest.raises(TypeError, match="`num_outliers` must be a whole number"):
        synthesize_outliers(features, labels, 1.0, 2.0)  # type: ignore[arg-type]
    for given_features, given_labels, name in (([[1.0]], labels, "features"), (features, [0, 1], "labels")):
        with pytest.raises(TypeError, match=rf"`{name}` must be a torch\.Tensor"):
            synthesize_outliers(given_features, given_labels, 1.0)  # type: ignore[arg-type]


def test_all_together() -> None:
    """From two paths through the tower to outliers; without the mechanisms, from all patches as they are."""
    patches, text = random_tensor(6, 16, DIM), normalize(random_tensor(6, DIM, seed=1), dim=1)
    surgery, clip = (torch.einsum("bpd,bd->bp", normalize(one, dim=2), text) for one in (patches, patches.flip(2)))
    features = id_relevant_features(blend_patch_context(patches, 0.5), surgery_discrepancy_mask(surgery, clip))
    found = synthesize_outliers(features, torch.arange(6) // 2, 1.0, generator=generator())
    plain = id_relevant_features(blend_patch_context(patches, 0), None)
    torch.testing.assert_close(plain, normalize(patches.mean(dim=1), dim=1))
    assert not torch.allclose(plain, features)
    # Between two features, and never one of them.
    assert ((found @ features.T).topk(2, dim=1).values < 1 - 1e-4).all()


@pytest.mark.gpu
def test_outliers_are_the_same_on_a_gpu() -> None:
    features, labels = random_tensor(9, DIM), torch.arange(9) % 4
    found = synthesize_outliers(features.cuda(), labels.cuda(), 0.5, 30, generator())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), synthesize_outliers(features, labels, 0.5, 30, generator()))
    own = torch.Generator("cuda").manual_seed(0)
    assert synthesize_outliers(features.cuda(), labels.cuda(), 0.5, generator=own).device.type == "cuda"
    patches, (surgery, clip) = random_tensor(3, 16, DIM), random_tensor(2, 3, 16)
    thresholds: tuple[Any, ...] = ("mean", "otsu", 0.1)
    for threshold in thresholds:
        mask = surgery_discrepancy_mask(surgery, clip, threshold)
        assert torch.equal(surgery_discrepancy_mask(surgery.cuda(), clip.cuda(), threshold).cpu(), mask)
    blended = id_relevant_features(blend_patch_context(patches.cuda(), 0.5), mask.cuda())
    torch.testing.assert_close(blended.cpu(), id_relevant_features(blend_patch_context(patches, 0.5), mask))


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(outliers)
    assert results.attempted > 0
    assert results.failed == 0
