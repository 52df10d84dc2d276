# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of images and their patches, against the published code and against what must always hold."""

import doctest
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from clipn_hf.scores import combine_local, gl_mcm, local_mcm, mcm, patches

DATA = Path(__file__).parents[1] / "data"


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_equals_the_published_code(temperature: float) -> None:
    """Whose score is the sum of both maxima."""
    values = load_file(DATA / "mcm_glmcm_locoop_official.safetensors")
    whole, local = values["image"] @ values["id_text"].T, values["local"] @ values["id_text"].T
    found = gl_mcm(whole, local, temperature)
    torch.testing.assert_close(found, 1 - values[f"score.gl_mcm_T{temperature}"] / 2, rtol=1e-5, atol=1e-5)
    # Both parts of it apart.
    part = values[f"score.gl_mcm_T{temperature}"] - values[f"score.mcm_T{temperature}"]
    torch.testing.assert_close(local_mcm(local, temperature), 1 - part, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.01, 10), st.floats(0, 100), st.integers(0, 1000))
def test_equals_its_definition(count: int, classes: int, temperature: float, weight: float, seed: int) -> None:
    whole, local = cosines(4, classes, seed=seed), cosines(4, count, classes, seed=seed + 1)
    largest = (whole.double() / temperature).softmax(dim=1).amax(dim=1)
    largest_of_patches = (local.double() / temperature).softmax(dim=2).amax(dim=(1, 2))
    expected = 1 - (largest + weight * largest_of_patches) / (1 + weight)
    found = gl_mcm(whole, local, temperature, weight)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert ((found >= 0) & (found <= 1 - 1 / classes + 1e-6)).all()
    torch.testing.assert_close(local_mcm(local, temperature).double(), 1 - largest_of_patches, rtol=1e-4, atol=1e-6)
    # Neither the order of patches nor that of classes matters.
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    shuffled = gl_mcm(whole[:, order], local[:, :, order].flip(1), temperature, weight)
    torch.testing.assert_close(shuffled, found, rtol=1e-5, atol=1e-7)


def test_weights_lead_from_mcm_to_that_of_patches() -> None:
    whole, local = cosines(6, 3), cosines(6, 4, 3, seed=1)
    assert torch.equal(gl_mcm(whole, local, local_weight=0), mcm(whole))
    assert torch.equal(gl_mcm(whole, local, local_weight=1e300), local_mcm(local))
    torch.testing.assert_close(gl_mcm(whole, local), (mcm(whole) + local_mcm(local)) / 2)
    # A patch that matches a label better makes an image more ID, one that matches none changes nothing.
    better = torch.cat([local, torch.tensor([1.0, -1.0, -1.0]).expand(6, 1, 3)], dim=1)
    assert (gl_mcm(whole, better) < gl_mcm(whole, local)).all()
    assert torch.equal(gl_mcm(whole, torch.cat([local, torch.zeros(6, 1, 3)], dim=1)), gl_mcm(whole, local))


def test_images_of_which_the_model_is_certain_stay_apart() -> None:
    certain = torch.tensor([[[0.9, 0.1, 0.0]], [[0.9, 0.2, 0.0]]])
    found = local_mcm(certain, temperature=0.01)
    assert 0 < found[0] < found[1] < 1e-20


def test_gradients_are_those_of_the_formula() -> None:
    whole = cosines(3, 4).double().requires_grad_()
    local = cosines(3, 2, 4, seed=1).double().requires_grad_()
    gl_mcm(whole, local, 0.5, 2.0).sum().backward()
    found = [whole.grad, local.grad]
    largest = (whole / 0.5).softmax(dim=1).amax(dim=1) + 2 * (local / 0.5).softmax(dim=2).amax(dim=(1, 2))
    expected = torch.autograd.grad((1 - largest / 3).sum(), [whole, local])
    torch.testing.assert_close(found, [*expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computes_in_float32(dtype: torch.dtype) -> None:
    whole, local = cosines(5, 3).to(dtype), cosines(5, 2, 3, seed=1).to(dtype)
    found = gl_mcm(whole, local)
    assert found.dtype == torch.float32
    assert torch.equal(found, gl_mcm(whole.float(), local.float()))


def test_no_images_give_no_scores() -> None:
    found = gl_mcm(torch.zeros(0, 3), torch.zeros(0, 4, 3))
    assert found.shape == (0,)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("whole", "local", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), ValueError, r"`local_similarity` must have shape .*, got \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 0, 3), ValueError, r"at least one patch, got \(2, 0, 3\)"),
        (torch.zeros(2, 1), torch.zeros(2, 4, 1), ValueError, "has 1 class, but a softmax over one"),
        (torch.zeros(2, 3), torch.zeros(2, 4, 2), ValueError, r"same images and classes, got \(2, 3\) and \(2, 4, 2"),
        (torch.zeros(3, 3), torch.zeros(2, 4, 3), ValueError, r"same images and classes, got \(3, 3\) and \(2, 4, 3"),
        (torch.zeros(2, 3), [[[0.0]]], TypeError, "`local_similarity` must be a torch.Tensor of shape .*, got list"),
        (torch.zeros(2, 3), torch.full((2, 4, 3), math.nan), ValueError, "`local_similarity` has NaN or infinite"),
        (torch.full((2, 3), math.inf), torch.zeros(2, 4, 3), ValueError, "`similarity` has NaN or infinite"),
    ],
)
def test_bad_cosines_are_refused(whole: Any, local: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gl_mcm(whole, local)


def test_bad_settings_are_refused() -> None:
    whole, local = torch.zeros(2, 3), torch.zeros(2, 4, 3)
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`local_weight` must be finite and not negative, got {weight}"):
            gl_mcm(whole, local, local_weight=weight)
    for weight in ("1", None, True):
        with pytest.raises(TypeError, match="`local_weight` must be a number, got"):
            gl_mcm(whole, local, local_weight=weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        gl_mcm(whole, local, temperature=0.0)
    with pytest.raises(ValueError, match="must be of the same images, got 2 and 3"):
        combine_local(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"`local_score` must have shape \(batch,\), got \(2, 1\)"):
        combine_local(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(TypeError, match="`score` must be a torch.Tensor"):
        combine_local([0.0], torch.zeros(1))  # type: ignore[arg-type]


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(patches)
    assert results.attempted > 0
    assert results.failed == 0
