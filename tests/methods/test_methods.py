# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table through the same battery."""

import inspect
import re
import subprocess
import sys

import pytest
import torch

from clipn_hf import scores
from clipn_hf.methods import METHODS, NEEDS, Method, MethodInputs, get_method, method_inputs

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def inputs(batch: int = 6, classes: int = 4, dtype: torch.dtype = torch.float32) -> MethodInputs:
    generator = torch.Generator().manual_seed(0)
    similarity, no_similarity = (2 * torch.rand(2, batch, classes, generator=generator) - 1).to(dtype)
    return MethodInputs(similarity, 10 * similarity, 10 * no_similarity)


def part(whole: MethodInputs, rows: slice) -> MethodInputs:
    assert whole.no_logits is not None
    return MethodInputs(whole.similarity[rows], whole.logits[rows], whole.no_logits[rows])


@every_method
def test_row_is_complete(method: Method) -> None:
    assert METHODS[method.name] is get_method(method.name) is method
    assert method.title
    assert method.needs
    assert method.needs <= NEEDS.keys()
    year_month, number = method.reference.split(".")
    assert len(year_month) == 4
    assert year_month.isdigit()
    assert number.isdigit()


@every_method
def test_score_is_one_float32_per_image(method: Method) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        score = method.score(inputs(dtype=dtype), **method.settings)
        assert score.dtype == torch.float32
        assert score.shape == (6,)
        assert torch.isfinite(score).all()


@every_method
def test_score_does_not_depend_on_the_batch(method: Method) -> None:
    whole = inputs()
    together = method.score(whole, **method.settings)
    alone = [method.score(part(whole, slice(i, i + 1)), **method.settings) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-7)


@every_method
def test_decision_is_one_bool_per_image(method: Method) -> None:
    if method.is_ood is None:
        pytest.skip("decides by threshold alone")
    decision = method.is_ood(inputs())
    assert decision.dtype == torch.bool
    assert decision.shape == (6,)


@every_method
def test_score_reads_only_what_the_method_needs(method: Method) -> None:
    given = inputs()
    if "no" not in method.needs:
        given = MethodInputs(given.similarity, given.logits)
    method.score(given, **method.settings)


@every_method
def test_fewest_labels(method: Method) -> None:
    assert method.score(inputs(classes=method.min_labels), **method.settings).shape == (6,)
    with pytest.raises(ValueError, match="no classes|at least 2 labels"):
        method.score(inputs(classes=method.min_labels - 1), **method.settings)


@every_method
def test_values_that_are_not_finite_are_refused(method: Method) -> None:
    damaged = torch.full((6, 4), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        method.score(MethodInputs(damaged, damaged, damaged), **method.settings)


@every_method
def test_settings_are_overridable_and_unknown_ones_errors(method: Method) -> None:
    for name, value in method.settings.items():
        changed = method.resolve_settings({name: 2 * value})
        assert changed == {**method.settings, name: 2 * value}
        assert not torch.equal(method.score(inputs(), **changed), method.score(inputs(), **method.settings))
    assert method.resolve_settings({}) == method.settings
    known = ", ".join(f"`{name}`" for name in method.settings) or "none"
    suggestion = ", did you mean `temperature`?" if method.settings else "."
    message = f"Method {method.name} does not know `tempratur`{suggestion} Known are: {known}."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        method.resolve_settings({"tempratur": 1.0})
    with pytest.raises(
        TypeError, match=r"`treshold`, did you mean `threshold`\? Known are: .*`threshold`, `top_k`\.$"
    ):
        method.resolve_settings({"treshold": 1.0}, ("threshold", "top_k"))


@every_method
def test_score_and_decision_are_the_functions_of_that_name(method: Method) -> None:
    """Of `clipn_hf.scores`, whose parameters say which of the inputs they take."""
    given, function = inputs(), getattr(scores, method.name)
    matrices = [name for name in inspect.signature(function).parameters if hasattr(given, name)]
    assert matrices
    arguments = [getattr(given, name) for name in matrices]
    settings = {name: 1.5 * value for name, value in method.settings.items()}
    assert settings.keys() == inspect.signature(function).parameters.keys() - set(matrices)
    assert torch.equal(method.score(given, **settings), function(*arguments, **settings))
    rule = getattr(scores, f"{method.name}_is_ood", None)
    assert (rule is None) == (method.is_ood is None)
    if method.is_ood is not None and rule is not None:
        assert torch.equal(method.is_ood(given), rule(*arguments))


def test_every_score_is_a_method() -> None:
    helpers = {"atd_probabilities", *(name for name in scores.__all__ if name.endswith("_is_ood"))}
    assert set(METHODS) == set(scores.__all__) - helpers


def test_inputs_are_cosines_and_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    images, text, no_text = (torch.randn(count, 8, generator=generator) for count in (5, 3, 3))
    text, no_text = torch.nn.functional.normalize(text), torch.nn.functional.normalize(no_text)
    found = method_inputs(7 * images, text, no_text, 20.0)
    cosines = torch.cosine_similarity(images[:, None], text[None], dim=2)
    no_cosines = torch.cosine_similarity(images[:, None], no_text[None], dim=2)
    torch.testing.assert_close(found.similarity, cosines)
    torch.testing.assert_close(found.logits, 20 * cosines)
    torch.testing.assert_close(found.no_logits, 20 * no_cosines)
    assert method_inputs(images, text).no_logits is None
    half = method_inputs(images.half(), text, logit_scale=20.0)
    assert half.logits.dtype == torch.float32
    torch.testing.assert_close(half.logits, 20 * cosines, rtol=0, atol=0.05)


def test_table_is_read_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['clipn-hf']\n"
        "from clipn_hf.methods import METHODS\n"
        "print([row.settings for row in METHODS.values()] and 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="`method` must be one of atd, ctw, mcm, msp, .*, got 'odin'"):
        get_method("odin")
    with pytest.raises(ValueError, match="got None"):
        get_method(None)  # type: ignore[arg-type]
