# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table through the same battery: a new one needs no change here."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf import scores
from clipn_hf.methods import METHODS, NEEDS, Method, MethodInputs, TrainingInputs, get_method, method_inputs

DIM = 8
PAPER = re.compile(r"\d{4}\.\d{4,5}")


def learn(inputs: TrainingInputs, share: float = 0.5) -> dict[str, Tensor]:
    return {
        "center": share * inputs.image_embeddings.mean(dim=0),
        "count": torch.tensor([len(inputs.image_embeddings)]),
    }


def judge(inputs: MethodInputs, share: float = 0.5, offset: float = 1.0) -> Tensor:
    assert inputs.image_embeddings is not None
    if inputs.image_embeddings.isnan().any():
        raise ValueError("`image_embeddings` has NaN values.")
    if inputs.similarity.shape[1] == 0:
        raise ValueError("There are no classes.")
    return offset + share - inputs.image_embeddings.float() @ inputs.state["center"]


# A method as somebody may add it, which uses all that the contract has.
ADDED = Method(
    name="added",
    title="Distance to the center",
    reference="0000.00000",
    needs=frozenset({"global", "training"}),
    score=judge,
    fit=learn,
)
every_method = pytest.mark.parametrize("method", [*METHODS.values(), ADDED], ids=lambda method: method.name)


def training(classes: int = 4, images: int = 40) -> TrainingInputs:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(images) % max(classes, 1)
    centers = torch.randn(max(classes, 1), DIM, generator=generator)
    embeddings = centers[labels] + torch.randn(images, DIM, generator=generator)
    return TrainingInputs(normalize(embeddings, dim=1), labels, classes)


def fit(method: Method, given: TrainingInputs | None = None, **settings: Any) -> dict[str, Tensor]:
    """What the method learns, which is nothing for most."""
    if method.fit is None:
        return {}
    given = training() if given is None else given
    if "training_labels" not in method.needs:
        given = TrainingInputs(given.image_embeddings, None, given.num_classes)
    return method.fit(given, **method.settings_of(method.fit, {**method.settings, **settings}))


def score(method: Method, given: MethodInputs, **settings: Any) -> Tensor:
    return method.score(given, **method.settings_of(method.score, {**method.settings, **settings}))


def inputs(
    method: Method, batch: int = 6, classes: int = 4, dtype: torch.dtype = torch.float32, **settings: Any
) -> MethodInputs:
    """Random images against random classes, with what the method has learnt."""
    generator = torch.Generator().manual_seed(0)
    similarity, no_similarity = (2 * torch.rand(2, batch, classes, generator=generator) - 1).to(dtype)
    images = normalize(torch.randn(batch, DIM, generator=generator), dim=1).to(dtype)
    state = fit(method, training(classes), **settings)
    return MethodInputs(similarity, 10 * similarity, 10 * no_similarity, images, state)


def part(whole: MethodInputs, rows: slice) -> MethodInputs:
    assert whole.no_logits is not None
    assert whole.image_embeddings is not None
    return MethodInputs(
        whole.similarity[rows], whole.logits[rows], whole.no_logits[rows], whole.image_embeddings[rows], whole.state
    )


def other_value(method: Method, name: str) -> Any:
    """A value of a setting that is not its default."""
    functions = [function for function in (method.score, method.fit) if function is not None]
    parameters = [inspect.signature(function).parameters.get(name) for function in functions]
    parameter = next(parameter for parameter in parameters if parameter is not None)
    if get_origin(parameter.annotation) is Literal:
        return next(value for value in get_args(parameter.annotation) if value != parameter.default)
    if isinstance(parameter.default, bool):
        return not parameter.default
    return 0.75 if parameter.default is None else 2 * parameter.default


@pytest.mark.parametrize("name", METHODS)
def test_row_is_complete(name: str) -> None:
    method = METHODS[name]
    assert METHODS[method.name] is get_method(name) is method
    assert method.title
    assert method.title[0].isupper()
    assert PAPER.fullmatch(method.reference)


@every_method
def test_contract(method: Method) -> None:
    assert method.needs
    assert method.needs <= NEEDS.keys()
    assert (method.fit is not None) == ("training" in method.needs)
    assert "training" in method.needs or "training_labels" not in method.needs
    assert method.min_labels >= 1
    if method.text_contrast is not None:
        assert 0 < method.text_contrast < 1
        assert method.is_ood is None
        # Texts tell nothing of a score that changes with all cosines together.
        given = inputs(method)
        shifted = MethodInputs(given.similarity + 0.1, given.logits + 1, None, given.image_embeddings, given.state)
        torch.testing.assert_close(score(method, shifted), score(method, given))
    # A setting that both functions take is one setting.
    for name, default in method.settings.items():
        for function in (method.score, method.fit):
            if function is not None and name in inspect.signature(function).parameters:
                assert inspect.signature(function).parameters[name].default == default
    assert method.settings_of(None, method.settings) == {}
    together = method.settings_of(method.score, method.settings) | method.settings_of(method.fit, method.settings)
    assert together == method.settings


@every_method
def test_score_is_one_float32_per_image(method: Method) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found = score(method, inputs(method, dtype=dtype))
        assert found.dtype == torch.float32
        assert found.shape == (6,)
        assert torch.isfinite(found).all()


@every_method
def test_score_does_not_depend_on_the_batch(method: Method) -> None:
    whole = inputs(method)
    together = score(method, whole)
    alone = [score(method, part(whole, slice(i, i + 1))) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    none = score(method, part(whole, slice(0, 0)))
    assert none.shape == (0,)
    assert none.dtype == torch.float32


@every_method
def test_decision_is_one_bool_per_image(method: Method) -> None:
    if method.is_ood is None:
        pytest.skip("decides by threshold alone")
    decision = method.is_ood(inputs(method))
    assert decision.dtype == torch.bool
    assert decision.shape == (6,)


@every_method
def test_score_reads_only_what_the_method_needs(method: Method) -> None:
    given = inputs(method)
    if "no" not in method.needs:
        given = MethodInputs(given.similarity, given.logits, None, given.image_embeddings, given.state)
    expected = score(method, given)
    if not method.uses_text:
        shuffled = MethodInputs(-given.similarity, -given.logits, None, given.image_embeddings, given.state)
        assert torch.equal(score(method, shuffled), expected)


@every_method
def test_fewest_labels(method: Method) -> None:
    assert score(method, inputs(method, classes=method.min_labels)).shape == (6,)
    if not method.uses_text and "training_labels" not in method.needs:
        pytest.skip("labels do not matter")
    with pytest.raises(ValueError, match="class|at least"):
        score(method, inputs(method, classes=method.min_labels - 1))


@every_method
def test_values_that_are_not_finite_are_refused(method: Method) -> None:
    damaged, images = torch.full((6, 4), float("nan")), torch.full((6, DIM), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        score(method, MethodInputs(damaged, damaged, damaged, images, fit(method)))


@every_method
def test_settings_are_overridable_and_unknown_ones_errors(method: Method) -> None:
    assert method.resolve_settings({}) == method.settings
    changed = {name: other_value(method, name) for name in method.settings}
    for name, value in changed.items():
        assert method.resolve_settings({name: value}) == {**method.settings, name: value}
        score(method, inputs(method, **{name: value}), **{name: value})
    if changed:
        found = score(method, inputs(method, **changed), **changed)
        assert not torch.allclose(found, score(method, inputs(method)))
    known = ", ".join(f"`{name}`" for name in method.settings) or "none"
    message = rf"^Method {method.name} does not know `colour`[.,].* Known are: {re.escape(known)}\.$"
    with pytest.raises(TypeError, match=message):
        method.resolve_settings({"colour": 1.0})
    for name in method.settings:
        with pytest.raises(TypeError, match=rf"`{name}s`, did you mean `{name}`\? Known are"):
            method.resolve_settings({f"{name}s": 1.0})
    with pytest.raises(
        TypeError, match=r"`treshold`, did you mean `threshold`\? Known are: .*`threshold`, `top_k`\.$"
    ):
        method.resolve_settings({"treshold": 1.0}, ("threshold", "top_k"))


@every_method
def test_what_is_learnt_can_be_saved(method: Method, tmp_path: Path) -> None:
    given = inputs(method)
    for name, tensor in given.state.items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert tensor.dtype in (torch.float32, torch.float64, torch.int64)
        assert tensor.device.type == "cpu"
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
    save_file(dict(given.state), tmp_path / "state.safetensors")
    loaded = {name: tensor.clone() for name, tensor in load_file(tmp_path / "state.safetensors").items()}
    again = MethodInputs(given.similarity, given.logits, given.no_logits, given.image_embeddings, loaded)
    assert torch.equal(score(method, again), score(method, given))


@every_method
def test_what_is_learnt_depends_on_the_images_alone(method: Method) -> None:
    given = training()
    before = given.image_embeddings.clone()
    state = fit(method, given)
    expected = score(method, inputs(method))
    assert torch.equal(given.image_embeddings, before)
    again = fit(method, given)
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    # Neither their order matters, nor what becomes of them later.
    assert given.labels is not None
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(0))
    shuffled = TrainingInputs(given.image_embeddings[order], given.labels[order], given.num_classes)
    for other in (fit(method, shuffled), again):
        given.image_embeddings.zero_()
        whole = inputs(method)
        found = MethodInputs(whole.similarity, whole.logits, whole.no_logits, whole.image_embeddings, other)
        torch.testing.assert_close(score(method, found), expected, rtol=1e-4, atol=1e-5)


@every_method
def test_bad_training_data_is_refused(method: Method) -> None:
    if method.fit is None or method is ADDED:
        pytest.skip("learns nothing, or has no checks of its own")
    given = training()
    damaged = given.image_embeddings.clone()
    damaged[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 40"):
        fit(method, TrainingInputs(damaged, given.labels, 4))
    assert given.labels is not None
    with pytest.raises(ValueError, match="at least"):
        fit(method, TrainingInputs(damaged[:0], given.labels[:0], 4))
    if "training_labels" in method.needs:
        with pytest.raises(ValueError, match="no image for 1 of 5 classes"):
            fit(method, TrainingInputs(given.image_embeddings, given.labels, 5))


@pytest.mark.parametrize("name", METHODS)
def test_score_and_decision_are_the_functions_of_that_name(name: str) -> None:
    """Of `clipn_hf.scores`, whose parameters say which of the inputs they take."""
    method, function = METHODS[name], getattr(scores, name)
    parameters = inspect.signature(function).parameters
    changed = {name: other_value(method, name) for name in method.settings}
    given = inputs(method, **changed)
    known = {
        "similarity": given.similarity,
        "logits": given.logits,
        "no_logits": given.no_logits,
        "features": given.image_embeddings,
        **given.state,
    }
    if given.state.keys() == set(scores.Gaussians._fields):
        known["gaussians"] = scores.Gaussians(**given.state)
    settings = method.settings_of(method.score, changed)
    assert settings.keys() <= parameters.keys() <= known.keys() | settings.keys()
    arguments = {name: value for name, value in known.items() if name in parameters}
    assert arguments
    assert torch.equal(score(method, given, **changed), function(**arguments, **settings))
    rule = getattr(scores, f"{name}_is_ood", None)
    assert (rule is None) == (method.is_ood is None)
    if method.is_ood is not None and rule is not None:
        assert torch.equal(method.is_ood(given), rule(**arguments))


def test_every_score_is_a_method() -> None:
    functions = {name for name in scores.__all__ if inspect.isfunction(getattr(scores, name))}
    helpers = {name for name in functions if name.endswith(("_is_ood", "_probabilities")) or name.startswith("fit_")}
    assert set(METHODS) == functions - helpers


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
