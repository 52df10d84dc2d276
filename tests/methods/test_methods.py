# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table through the same battery."""

import pytest
import torch

from clipn_hf import scores
from clipn_hf.methods import METHODS, NEEDS, Method, MethodInputs, get_method

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
    with pytest.raises(TypeError, match=f"method {method.name} got the unknown setting tempratur; it has"):
        method.resolve_settings({"tempratur": 1.0})


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("atd", lambda x: scores.atd(x.logits, x.no_logits)),
        ("ctw", lambda x: scores.ctw(x.logits, x.no_logits)),
        ("mcm", lambda x: scores.mcm(x.similarity)),
        ("msp", lambda x: scores.msp(x.logits)),
        ("max_logit", lambda x: scores.max_logit(x.logits)),
        ("energy", lambda x: scores.energy(x.logits)),
    ],
)
def test_method_calls_its_score(name: str, direct: object) -> None:
    assert torch.equal(METHODS[name].score(inputs(), **METHODS[name].settings), direct(inputs()))  # type: ignore[operator]


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown method 'odin'; the methods are atd, ctw, mcm, msp"):
        get_method("odin")
    with pytest.raises(ValueError, match="unknown method None"):
        get_method(None)  # type: ignore[arg-type]
