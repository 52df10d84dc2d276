# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table through the same battery: a new one needs no change here."""

import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
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
NEGATIVES = 250
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
    texts = normalize(centers[:classes], dim=1)
    return TrainingInputs(normalize(embeddings, dim=1), labels, classes, texts, logit_scale=10.0)


def fit(method: Method, given: TrainingInputs | None = None, **settings: Any) -> dict[str, Tensor]:
    """What the method learns, which is nothing for most."""
    if method.fit is None:
        return {}
    given = training() if given is None else given
    if "training_labels" not in method.needs:
        given = replace(given, labels=None)
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
    learnt_from = training(classes)
    state = fit(method, learnt_from, **settings)
    negatives = normalize(torch.randn(NEGATIVES, DIM, generator=generator), dim=1)
    given = MethodInputs(
        similarity,
        10 * similarity,
        10 * no_similarity if "no" in method.needs else None,
        images,
        state,
        negatives if "negatives" in method.needs else None,
        Pairs(negatives) if "text_encoder" in method.needs else None,
        learnt_from.text_embeddings,
        learnt_from.logit_scale,
        patch_summary=summarize(method, patch_cosines(batch, classes, dtype), **settings),
        unknown_similarity=no_similarity[:, :1].mean(dim=1) if "unknown" in method.needs else None,
    )
    return classified(method, given)


def patch_cosines(batch: int = 6, classes: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of random patches, of which each image has three."""
    generator = torch.Generator().manual_seed(3)
    return (2 * torch.rand(batch, 3, classes, generator=generator) - 1).to(dtype)


def summarize(method: Method, cosines: Tensor, **settings: Any) -> Tensor | None:
    """What the method keeps of patches, if it reads them."""
    together = {**method.settings, **settings}
    if not method.summarizes_patches(together):
        return None
    assert method.summarize is not None
    return method.summarize(cosines, **method.settings_of(method.summarize, together))


def classified(method: Method, given: MethodInputs) -> MethodInputs:
    """As detectors do it: with the logits of the classifier that the method has learnt, if it has one."""
    return given if method.classify is None else replace(given, logits=method.classify(given))


class Pairs:
    """Stands in for a text encoder: the text of a pair lies between a random label and the negative label."""

    def __init__(self, negatives: Tensor, labels: int = 10) -> None:
        self.negatives = negatives
        self.labels = normalize(torch.randn(labels, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
        self.calls: list[Tensor] = []

    def __call__(self, pairs: Tensor) -> Tensor:
        assert pairs.dtype == torch.int64
        assert pairs.ndim == 2
        assert pairs.shape[1] == 2
        self.calls.append(pairs)
        return normalize(self.labels[pairs[:, 0]] + self.negatives[pairs[:, 1]], dim=1)


def part(whole: MethodInputs, rows: slice) -> MethodInputs:
    assert whole.image_embeddings is not None
    return replace(
        whole,
        similarity=whole.similarity[rows],
        logits=whole.logits[rows],
        no_logits=None if whole.no_logits is None else whole.no_logits[rows],
        image_embeddings=whole.image_embeddings[rows],
        patch_summary=None if whole.patch_summary is None else whole.patch_summary[rows],
        unknown_similarity=None if whole.unknown_similarity is None else whole.unknown_similarity[rows],
    )


def functions_of(method: Method) -> list[Callable[..., Any]]:
    """Those whose parameters are settings."""
    functions = (method.score, method.fit, method.perturb, method.summarize)
    return [function for function in functions if function is not None]


def other_value(method: Method, name: str) -> Any:
    """A value of a setting that is not its default."""
    functions = functions_of(method)
    parameters = [inspect.signature(function).parameters.get(name) for function in functions]
    parameter = next(parameter for parameter in parameters if parameter is not None)
    if get_origin(parameter.annotation) is Literal:
        return next(value for value in get_args(parameter.annotation) if value != parameter.default)
    if isinstance(parameter.default, bool):
        return not parameter.default
    if parameter.default is None:
        return 3 if int in get_args(parameter.annotation) else 0.75
    if isinstance(parameter.default, float):
        # Shares and percentages have an upper end.
        return parameter.default / 2 or 1.0
    return 2 * parameter.default or 1


# What else has to be given for a setting to have an effect, where it is refused without.
NEEDED_SETTINGS = {("clip_os", "local_weight"): {"combination": "gl_mcm"}}


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
    assert (method.perturb is not None) == ("pixels" in method.needs)
    # Others may read patches with some settings.
    assert ("patches" in method.needs) == (method.summarize is not None and method.reads_patches is None)
    assert method.reads_patches is None or not method.summarizes_patches(method.settings)
    assert "training" in method.needs or "training_labels" not in method.needs
    assert "negatives" in method.needs or not method.mining
    assert all(template.count("{}") == 1 for template in method.templates)
    assert method.min_labels >= 1
    if method.text_contrast is not None:
        assert 0 < method.text_contrast < 1
        assert method.is_ood is None
        # Texts tell nothing of a score that changes with all cosines together.
        given = inputs(method)
        shifted = replace(given, similarity=given.similarity + 0.1, logits=given.logits + 1)
        torch.testing.assert_close(score(method, shifted), score(method, given))
    # A setting that several functions take is one setting.
    for name, default in method.settings.items():
        for function in functions_of(method):
            if name in inspect.signature(function).parameters:
                assert inspect.signature(function).parameters[name].default == default
    assert method.settings_of(None, method.settings) == {}
    together = [method.settings_of(function, method.settings) for function in functions_of(method)]
    assert dict(itertools.chain.from_iterable(settings.items() for settings in together)) == method.settings


@every_method
def test_score_is_one_float32_per_image(method: Method) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found = score(method, inputs(method, dtype=dtype))
        assert found.dtype == torch.float32
        assert found.shape == (6,)
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("method", [row for row in METHODS.values() if row.max_score], ids=lambda row: row.name)
def test_the_highest_score_is_reached_and_not_exceeded(method: Method) -> None:
    given = inputs(method)
    assert given.image_embeddings is not None
    assert bool((score(method, given) <= method.max_score).all())
    # As little like the labels, and as much like everything else, as an image can be
    unlike = replace(
        given,
        similarity=-torch.ones_like(given.similarity),
        logits=torch.full_like(given.logits, -100),
        no_logits=None if given.no_logits is None else torch.full_like(given.no_logits, 100),
        negative_embeddings=None if given.negative_embeddings is None else given.image_embeddings[:1],
        image_embeddings=given.image_embeddings[:1].expand(6, DIM),
        unknown_similarity=None if given.unknown_similarity is None else torch.full((6,), 100.0),
    )
    assert torch.equal(score(method, unlike), torch.full((6,), method.max_score))


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
    expected = score(method, given)
    if not method.uses_text:
        shuffled = classified(method, replace(given, similarity=-given.similarity, logits=-given.logits))
        assert torch.equal(score(method, shuffled), expected)


@every_method
def test_what_is_given_stays_as_it_is(method: Method) -> None:
    given = inputs(method)
    tensors = [value for value in vars(given).values() if isinstance(value, Tensor)]
    before = [tensor.clone() for tensor in tensors]
    score(method, given)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@every_method
def test_further_texts_are_asked_for_once(method: Method) -> None:
    """All that a batch needs, each of them one time only."""
    given = inputs(method)
    if not isinstance(given.embed_pairs, Pairs):
        pytest.skip("needs no further texts")
    score(method, part(given, slice(0, 0)))
    assert given.embed_pairs.calls == []
    # Images that look the same have all their texts in common.
    assert given.image_embeddings is not None
    score(method, replace(given, image_embeddings=given.image_embeddings[:1].repeat(6, 1)))
    (pairs,) = given.embed_pairs.calls
    assert 0 < len(pairs.unique(dim=0)) == len(pairs)
    assert ((pairs >= 0) & (pairs < torch.tensor([4, NEGATIVES]))).all()


@every_method
def test_fewest_labels(method: Method) -> None:
    assert score(method, inputs(method, classes=method.min_labels)).shape == (6,)
    if not method.uses_text and "training_labels" not in method.needs:
        pytest.skip("labels do not matter")
    with pytest.raises(ValueError, match="class|at least"):
        score(method, inputs(method, classes=method.min_labels - 1))


@every_method
def test_values_that_are_not_finite_are_refused(method: Method) -> None:
    given = inputs(method)
    fields = ("similarity", "logits", "no_logits", "image_embeddings", "negative_embeddings", "patch_summary")
    damaged = {
        name: torch.full_like(getattr(given, name), float("nan"))
        for name in (*fields, "unknown_similarity")
        if getattr(given, name) is not None
    }
    with pytest.raises(ValueError, match="NaN"):
        score(method, replace(given, **damaged))
    if "negatives" in method.needs:
        with pytest.raises(ValueError, match="`negative_embeddings` has NaN"):
            score(method, replace(given, negative_embeddings=damaged["negative_embeddings"]))


@every_method
def test_settings_are_overridable_and_unknown_ones_errors(method: Method) -> None:
    assert method.resolve_settings({}) == method.settings
    changed = {name: other_value(method, name) for name in method.settings}
    for name, value in changed.items():
        others = NEEDED_SETTINGS.get((method.name, name), {})
        assert method.resolve_settings({name: value, **others}) == {**method.settings, **others, name: value}
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
    assert torch.equal(score(method, replace(given, state=loaded)), score(method, given))


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
    # Their order does not matter.
    assert given.labels is not None
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(0))
    shuffled = replace(given, image_embeddings=given.image_embeddings[order], labels=given.labels[order])
    found = score(method, replace(inputs(method), state=fit(method, shuffled)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_method
def test_bad_training_data_is_refused(method: Method) -> None:
    if method.fit is None or method is ADDED:
        pytest.skip("learns nothing, or has no checks of its own")
    given = training()
    damaged = given.image_embeddings.clone()
    damaged[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 40"):
        fit(method, replace(given, image_embeddings=damaged))
    assert given.labels is not None
    with pytest.raises(ValueError, match="at least"):
        fit(method, replace(given, image_embeddings=damaged[:0], labels=given.labels[:0]))
    if "training_labels" in method.needs:
        with pytest.raises(ValueError, match="no image for 1 of 5 classes"):
            fit(method, replace(given, num_classes=5))


def public_scores() -> dict[str, Callable[..., Any]]:
    """The functions of `clipn_hf.scores`."""
    return {name: getattr(scores, name) for name in scores.__all__ if inspect.isfunction(getattr(scores, name))}


Call = tuple[str, dict[str, Any], Any]


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Note every call of a function of `clipn_hf.scores`: its name, its arguments, what it returned."""
    calls: list[Call] = []
    for name, function in public_scores().items():

        def watched(*args: Any, _name: str = name, _function: Callable[..., Any] = function, **kwargs: Any) -> Any:
            arguments = inspect.signature(_function).bind(*args, **kwargs).arguments
            calls.append((_name, arguments, _function(*args, **kwargs)))
            return calls[-1][2]

        monkeypatch.setattr(scores, name, watched)
    return calls


@pytest.mark.parametrize("name", METHODS)
def test_score_and_decision_come_from_the_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `clipn_hf.scores`, whose functions get inputs and settings as they are."""
    method = METHODS[name]
    changed = {name: other_value(method, name) for name in method.settings}
    given = inputs(method, **changed)
    settings = method.settings_of(method.score, changed)
    known = [*vars(given).values(), *given.state.values()]
    calls = watch(monkeypatch)
    found = score(method, given, **changed)
    assert calls
    for _, arguments, _ in calls:
        for setting in settings.keys() & arguments.keys():
            assert arguments[setting] == settings[setting]
    names = [function for function, _, _ in calls]
    # No score is computed twice, and where one is called as the method is, it takes part.
    assert len(names) == len(set(names))
    # What is kept of patches was computed before.
    called = {one.removesuffix("_from_embeddings") for one in names}
    assert name not in public_scores() or name in called or method.summarize is not None
    if len(calls) == 1:
        ((_, arguments, returned),) = calls
        assert found is returned
        # A setting may be the name of the score.
        assert {name for name, value in settings.items() if value not in public_scores()} <= arguments.keys()
        for value in arguments.values():
            tensors = value if isinstance(value, tuple) else (value,)
            assert all(not isinstance(one, Tensor) or any(one is other for other in known) for one in tensors)
        # A setting may choose another score, but the decision is that of the one which the method is about.
        calls.clear()
        score(method, inputs(method))
        rule = f"{calls[0][0]}_is_ood"
        assert (rule in public_scores()) == (method.is_ood is not None)
        calls.clear()
        if method.is_ood is not None:
            decision = method.is_ood(given)
            assert [(name, returned is decision) for name, _, returned in calls] == [(rule, True)]


@pytest.mark.parametrize(
    "method",
    [row for row in METHODS.values() if row.summarize is not None and row.name in public_scores()],
    ids=lambda row: row.name,
)
def test_patches_and_whole_together_are_the_score_of_that_name(method: Method) -> None:
    """It is computed in two steps, so that no more than one number has to be kept of all patches of an image."""
    for changed in ({}, {name: other_value(method, name) for name in method.settings}):
        given = inputs(method, **changed)
        expected = public_scores()[method.name](given.similarity, patch_cosines(), **changed)
        assert torch.equal(score(method, given, **changed), expected)


def test_every_score_belongs_to_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch)
    for method in METHODS.values():
        # Some call one score or another, as a setting says.
        parameters = inspect.signature(method.score).parameters.items()
        named = [{name: value} for name, parameter in parameters for value in get_args(parameter.annotation)]
        for settings in [{}, *(one for one in named if {*one.values()} & {*public_scores(), "none"})]:
            score(method, inputs(method, **settings), **settings)
        if method.is_ood is not None:
            method.is_ood(inputs(method))
    used = {name for name, _, _ in calls}
    # A score from embeddings is the one from cosines in less memory.
    used |= {name.removesuffix("_from_embeddings") for name in used}
    # Nor is one that is computed in two steps.
    used |= {method.name for method in METHODS.values() if method.summarize is not None} & public_scores().keys()
    assert {name for name in public_scores() if not name.endswith("_probabilities")} == used


def test_groups_grow_with_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user says how many: 100 negative labels make a group, and 100 groups are enough."""
    method = METHODS["neglabel"]
    calls = watch(monkeypatch)
    for negatives, num_groups in ((1, 1), (99, 1), (199, 1), (200, 2), (9_999, 99), (10_000, 100), (30_000, 100)):
        bank = torch.ones(negatives, DIM)
        score(method, replace(inputs(method), negative_embeddings=bank))
        assert calls.pop()[1]["num_groups"] == num_groups
    with pytest.raises(ValueError, match="got 2 groups for 1 negative labels"):
        score(method, replace(inputs(method), negative_embeddings=bank[:1]), num_groups=2)


@pytest.mark.parametrize(("num_pairs", "classes"), [(1, 4), (2, 4), (5, 4), (3, 1), (400, 4)])
def test_multi_matching_of_the_best_labels_with_the_best_negatives(num_pairs: int, classes: int) -> None:
    """Image by image, as the paper writes it."""
    method, alone = METHODS["negrefine"], METHODS["neglabel"]
    given = inputs(method, classes=classes)
    assert given.image_embeddings is not None
    assert given.negative_embeddings is not None
    pairs = Pairs(given.negative_embeddings)
    expected = []
    for image, cosines in zip(given.image_embeddings.double(), given.similarity, strict=True):
        negative_cosines = given.negative_embeddings.double() @ image
        labels = cosines.argsort(descending=True)[:num_pairs].tolist()
        negatives = negative_cosines.argsort(descending=True)[:num_pairs].tolist()
        shares = []
        for label, negative in itertools.product(labels, negatives):
            together = pairs(torch.tensor([[label, negative]]))[0].double() @ image
            shares.append(torch.stack([together, negative_cosines[negative]]).div(0.1).softmax(dim=0)[0])
        expected.append(1 - torch.stack(shares).max())
    settings = {"temperature": 0.1, "seed": 3, "num_groups": 4}
    single = score(alone, given, **settings)
    for weight in (0.0, 0.5, 2.0):
        found = score(method, given, **settings, num_pairs=num_pairs, weight=weight)
        torch.testing.assert_close(found.double(), single + weight * torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_bad_settings_of_multi_matching_are_refused() -> None:
    method = METHODS["negrefine"]
    for setting, value, error in (
        ("weight", "2", TypeError),
        ("weight", True, TypeError),
        ("weight", -1.0, ValueError),
        ("weight", float("nan"), ValueError),
        ("weight", float("inf"), ValueError),
        ("num_pairs", 2.0, TypeError),
        ("num_pairs", True, TypeError),
        ("num_pairs", 0, ValueError),
    ):
        with pytest.raises(error, match=f"^`{setting}` must .*, got .*{value}"):
            score(method, inputs(method), **{setting: value})


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
    biased = method_inputs(images, text, no_text, 20.0, logit_bias=-12.5)
    torch.testing.assert_close(biased.similarity, cosines)
    torch.testing.assert_close(biased.logits, 20 * cosines - 12.5)
    torch.testing.assert_close(biased.no_logits, 20 * no_cosines - 12.5)
    assert found.negative_embeddings is None
    assert found.embed_pairs is None
    given = method_inputs(images, text, negative_embeddings=no_text, embed_pairs=torch.neg)
    assert given.negative_embeddings is no_text
    assert given.embed_pairs is torch.neg
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
    with pytest.raises(ValueError, match="`method` must be one of atd, ctw, mcm, gl_mcm, msp, .*, got 'oden'"):
        get_method("oden")
    with pytest.raises(ValueError, match="got None"):
        get_method(None)  # type: ignore[arg-type]
