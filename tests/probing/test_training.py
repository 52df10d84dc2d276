# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Training of linear probes: the recipe, its repeatability, and what it refuses."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clipn_hf.features import Features
from clipn_hf.probing import few_shot_mask, train_linear_probe
from clipn_hf.probing.linear_probe import LinearProbe

DIM = 12
ENCODER = {"id": "org/model", "dtype": "float32", "sha256": "0" * 64, "image_processor_sha256": "1" * 64}


def data(images: int = 90, classes: int = 3, seed: int = 0, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Images around the centers of their classes, of any norm."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, DIM, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(images) % classes
    return 3 * (centers[labels] + noise * torch.randn(images, DIM, generator=generator)), labels


def train(features: Any = None, labels: Any = None, **settings: Any) -> LinearProbe:
    if features is None:
        features, labels = data()
    return train_linear_probe(features, labels, **{"epochs": 10, "device": "cpu", "progress": False, **settings})


def as_features(embeddings: torch.Tensor, labels: list[Any] | None = None, **changes: Any) -> Features:
    digests = [f"{row:064x}" for row in range(len(embeddings))]
    arguments = {"labels": labels, "encoder": ENCODER, **changes}
    return Features(embeddings, torch.arange(len(embeddings)), digests, {}, 0, **arguments)


def same(one: LinearProbe, other: LinearProbe) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_learns_what_can_be_learnt() -> None:
    probe = train(epochs=100)
    features, labels = data(300, seed=1)
    assert (probe(features).argmax(dim=1) == labels).float().mean() > 0.9
    assert probe.trained_on is not None
    assert probe.trained_on["accuracy"] > 0.9
    assert not probe.training
    assert probe.weight.device.type == "cpu"


def test_recipe_step_by_step() -> None:
    """Plain steps of Adam with the penalty in the gradient, at the rates of the schedule."""
    features, labels = data(60)
    settings = {"epochs": 5, "batch_size": 25, "learning_rate": 0.02, "weight_decay": 0.01, "warmup_fraction": 0.3}
    probe = train(features, labels, seed=3, **settings)
    images = normalize(features, dim=1).double()
    mean, std = images.mean(dim=0), images.std(dim=0)
    torch.testing.assert_close(probe.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probe.std.double(), std, rtol=1e-5, atol=1e-6)
    images = (images - mean) / std
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.zeros(shape, dtype=torch.float64) for shape in ((3, DIM), (3,))]
    moments = [[torch.zeros_like(parameter), torch.zeros_like(parameter)] for parameter in parameters]
    rates = []
    for epoch in range(5):
        for rows in torch.randperm(60, generator=generator).split(25):
            step = len(rates)
            # 15 steps, of which 4 rise
            rate = (step + 1) / 5 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 11))
            rates.append(rate)
            weight, bias = parameters
            errors = (images[rows] @ weight.T + bias).softmax(dim=1)
            errors[torch.arange(len(rows)), labels[rows]] -= 1
            gradients = (errors.T @ images[rows] / len(rows), errors.mean(dim=0))
            for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
                gradient = gradient + 0.01 * parameter
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                direction = first / (1 - 0.9 ** (step + 1))
                size = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                parameter -= 0.02 * 25 / 256 * rate * direction / size
        assert epoch < 5
    assert max(rates) == 1
    torch.testing.assert_close(probe.weight.detach().double(), parameters[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe.bias.detach().double(), parameters[1], rtol=1e-4, atol=1e-5)


def test_defaults_are_those_of_the_authors() -> None:
    features, labels = data(30)
    probe = train_linear_probe(features, labels, device="cpu", progress=False)
    assert probe.trained_on is not None
    settings = {
        "epochs": 100,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "weight_decay": 1e-3,
        "warmup_fraction": 0.1,
        "seed": 0,
    }
    assert {name: probe.trained_on[name] for name in settings} == settings


def test_seed_decides_and_nothing_else() -> None:
    state = torch.random.get_rng_state()
    first = train(seed=5, batch_size=32)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert same(first, train(seed=5, batch_size=32))
    assert not same(first, train(seed=6, batch_size=32))
    # Scale and place of the embeddings do not matter, nor what surrounds the call.
    features, labels = data()
    scaled = train(7 * features, labels, seed=5, batch_size=32)
    torch.testing.assert_close(scaled.weight, first.weight, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        inside = train(*data(), seed=5, batch_size=32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = train(*data(), seed=5, batch_size=32)
    assert same(first, inside)
    assert same(first, autocast)
    assert inside.weight.requires_grad and not inside.weight.is_inference()


def test_few_images_are_enough() -> None:
    """Although they make few steps."""
    features, labels = data(9)
    probe = train(features, labels, epochs=100)
    held_out, held_out_labels = data(300, seed=1)
    assert (probe(held_out).argmax(dim=1) == held_out_labels).float().mean() > 0.85


def test_what_is_given_stays_as_it_is() -> None:
    features, labels = normalize(data()[0]), data()[1]
    before = features.clone(), labels.clone()
    train(features, labels, validation_features=features, validation_labels=labels)
    assert torch.equal(features, before[0]) and torch.equal(labels, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    features, labels = data()
    found = train(features.to(dtype), labels)
    assert found.weight.dtype == found.mean.dtype == torch.float32
    torch.testing.assert_close(found(features), train(features, labels)(features), rtol=0.1, atol=0.1)


def test_labels_as_names_numbers_or_features() -> None:
    features, labels = data()
    names = ["cat", "dog", "bird"]
    expected = train(features, labels, class_names=names)
    called = [names[label] for label in labels]
    for one in (labels.tolist(), labels.numpy(), labels.to(torch.int16), called, np.array(called).tolist()):
        assert same(expected, train(features, one, class_names=names))
    found = train(as_features(features, called), class_names=names)
    assert same(expected, found)
    assert found.labels == names
    assert found.encoder == ENCODER
    assert expected.encoder is None
    assert train(features, labels, num_classes=3).labels is None


def test_the_digest_is_of_images_and_labels() -> None:
    features, labels = data()
    digest = train(features, labels).trained_on["sha256"]  # type: ignore[index]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert train(features[order], labels[order]).trained_on["sha256"] == digest  # type: ignore[index]
    assert train(features, (labels + 1) % 3).trained_on["sha256"] != digest  # type: ignore[index]
    assert train(features + 1, labels).trained_on["sha256"] != digest  # type: ignore[index]


def test_the_best_epoch_is_kept() -> None:
    features, labels = data(12, noise=3.0)
    held_out, held_out_labels = data(200, seed=4, noise=3.0)
    settings = {"epochs": 60, "learning_rate": 5.0, "weight_decay": 0.0}
    held = {"validation_features": held_out, "validation_labels": held_out_labels}
    last = train(features, labels, **settings)
    best = train(features, labels, **settings, **held)
    loss = torch.nn.functional.cross_entropy(best(held_out), held_out_labels).item()
    assert best.trained_on is not None
    assert best.trained_on["validation_loss"] == pytest.approx(loss, rel=1e-4)
    accuracy = (best(held_out).argmax(dim=1) == held_out_labels).float().mean().item()
    assert best.trained_on["validation_accuracy"] == pytest.approx(accuracy)
    assert loss < torch.nn.functional.cross_entropy(last(held_out), held_out_labels).item()
    assert 1 <= best.trained_on["best_epoch"] < 60
    # Ended early, the result is the same when nothing better would have come.
    stopped = train(features, labels, **settings, **held, patience=59)
    assert same(stopped, best)
    early = train(features, labels, **settings, **held, patience=1)
    assert early.trained_on is not None
    assert early.trained_on["best_epoch"] <= best.trained_on["best_epoch"]


def test_validation_of_another_model_is_refused() -> None:
    features, labels = data()
    images = as_features(features, labels.tolist())
    other = as_features(features, labels.tolist(), encoder={**ENCODER, "sha256": "f" * 64})
    assert "best_epoch" in (train(images, validation_features=images).trained_on or {})
    with pytest.raises(ValueError, match="`validation_features` are of another model"):
        train(images, validation_features=other)
    with pytest.raises(ValueError, match="`validation_features` have 5 dimensions, `features` 12"):
        train(images, validation_features=features[:, :5], validation_labels=labels)
    with pytest.raises(ValueError, match="`validation_labels` must be between 0 and 2 for 3 classes, got 3 to 5"):
        train(features, labels, num_classes=3, validation_features=features, validation_labels=labels + 3)


def test_dimensions_that_do_not_vary(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = data()
    features[:, 4] = 0.0
    probe = train(features, labels)
    assert "1 of 12 dimensions of the embeddings do not vary" in caplog.text
    assert probe.std[4] == 1
    assert torch.isfinite(probe(features)).all()
    # Another value of it is not blown up.
    features[:, 4] = 0.01
    assert (probe(features).argmax(dim=1) == labels).float().mean() > 0.8


NAN = torch.full((1, DIM), float("nan"))
FEATURES, LABELS = data()


@pytest.mark.parametrize(
    ("features", "labels", "settings", "error", "message"),
    [
        (FEATURES[:2], [0, 1], {"num_classes": 3}, ValueError, r"no image for 1 of 3 classes: 2\. There are fewer"),
        (FEATURES, LABELS, {"num_classes": 5}, ValueError, r"no image for 2 of 5 classes: 3, 4\. Give"),
        (FEATURES, LABELS, {"class_names": [*"abcd"]}, ValueError, "no image for 1 of 4 classes: 'd'"),
        (FEATURES[:1].expand(90, DIM), LABELS, {}, ValueError, "`features` do not vary: all 90 embeddings"),
        (torch.cat([FEATURES[1:], NAN]), LABELS, {}, ValueError, "NaN or infinite values in 1 of 90"),
        (torch.cat([FEATURES[1:], 0 * FEATURES[:1]]), LABELS, {}, ValueError, "1 of 90 rows of zeros"),
        (FEATURES, LABELS - 1, {}, ValueError, "`labels` must be 0 or more, got -1 to 1."),
        (FEATURES, LABELS, {"num_classes": 2}, ValueError, "between 0 and 1 for 2 classes, got 0 to 2."),
        (FEATURES, LABELS, {"class_names": ["a", "b"]}, ValueError, "between 0 and 1 for 2 classes, got 0 to 2."),
        (FEATURES, 0 * LABELS, {}, ValueError, "at least 2 classes to tell apart, got 1 class"),
        (FEATURES, 0 * LABELS, {"class_names": ["a", "b"]}, ValueError, r"All images are of one class \('a'\)"),
        (FEATURES, LABELS, {"num_classes": 1}, ValueError, "between 0 and 0 for 1 classes"),
        (FEATURES, LABELS[:5], {}, ValueError, "one per image, got 5 labels and 90 images"),
        (FEATURES, None, {}, ValueError, "`labels` are missing"),
        (FEATURES, ["cat"] * 90, {}, ValueError, "`labels` are names; give `class_names`"),
        (FEATURES, ["cat"] * 90, {"class_names": ["a", "b"]}, ValueError, "`labels` has 'cat', which is none of"),
        (FEATURES, "cat", {}, TypeError, "one label per image, got the text 'cat'"),
        (FEATURES, LABELS.float(), {}, TypeError, "one whole number or name per image, got float32"),
        (FEATURES, LABELS[:, None], {}, TypeError, r"of shape \(90, 1\)"),
        (FEATURES[:1], [0], {}, ValueError, "at least 2 are needed"),
        (FEATURES[:, :0], LABELS, {}, ValueError, "must have shape"),
        (FEATURES.tolist(), LABELS, {}, TypeError, "must be a torch.Tensor .* or what `extract_features` returns"),
        (FEATURES, LABELS, {"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0."),
        (FEATURES, LABELS, {"epochs": 1.5}, TypeError, "`epochs` must be a whole number"),
        (FEATURES, LABELS, {"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0."),
        (
            FEATURES,
            LABELS,
            {"learning_rate": 0.0},
            ValueError,
            "`learning_rate` must be positive and finite, got 0.0.",
        ),
        (FEATURES, LABELS, {"learning_rate": "1"}, TypeError, "`learning_rate` must be a number, got str"),
        (FEATURES, LABELS, {"weight_decay": -1.0}, ValueError, "`weight_decay` must be finite and 0 or more"),
        (FEATURES, LABELS, {"warmup_fraction": 1.0}, ValueError, "`warmup_fraction` must be at least 0 and less"),
        (FEATURES, LABELS, {"seed": 0.5}, TypeError, "`seed` must be a whole number"),
        (FEATURES, LABELS, {"patience": 3}, ValueError, "`patience` needs images to watch"),
        (FEATURES, LABELS, {"validation_features": FEATURES}, ValueError, "belong together"),
        (FEATURES, LABELS, {"validation_labels": LABELS}, ValueError, "belong together"),
        (FEATURES, LABELS, {"learning_rate": 1e38, "batch_size": 10}, ValueError, "no longer finite in epoch"),
        (FEATURES, LABELS, {"class_names": ["a", "b", "a"]}, ValueError, "`class_names` has 'a' twice"),
    ],
)
def test_bad_input_is_refused(
    features: Any, labels: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(features, labels, **settings)


def test_classes_may_be_without_images_if_that_is_known() -> None:
    probe = train(FEATURES, LABELS, num_classes=5, allow_empty_classes=True)
    assert probe(FEATURES).shape == (90, 5)
    assert (probe(FEATURES).argmax(dim=1) < 3).all()
    with pytest.raises(ValueError, match="All images are of one class"):
        train(FEATURES, 0 * LABELS, num_classes=5, allow_empty_classes=True)


@given(st.integers(1, 6), st.integers(0, 5))
def test_few_shots_of_each_class(shots: int, seed: int) -> None:
    labels = torch.tensor([3, 0, 3, 1, 1, 0, 3, 3, 1, 0] * 2)
    mask = few_shot_mask(labels, shots, seed)
    assert labels[mask].bincount().tolist() == [shots, shots, 0, min(shots, 8)]
    assert torch.equal(mask, few_shot_mask(labels, shots, seed))
    # Fewer are among more.
    assert bool((few_shot_mask(labels, max(1, shots - 1), seed) <= mask).all())


def test_few_shots_differ_by_seed_and_name_small_classes(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.arange(100) % 5
    assert not torch.equal(few_shot_mask(labels, 4, 0), few_shot_mask(labels, 4, 1))
    assert not caplog.records
    mask = few_shot_mask(torch.tensor([0, 0, 0, 1]), 2)
    assert mask.sum() == 3
    assert "1 class has fewer than 2 images, of which all are chosen: 1 (1)." in caplog.text
    for labels, shots, error, message in (
        (torch.tensor([0, 1]), 0, ValueError, "`shots` must be at least 1, got 0."),
        (torch.tensor([0, 1]), 1.0, TypeError, "`shots` must be a whole number"),
        (torch.tensor([0.0, 1.0]), 1, TypeError, "must be whole numbers"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            few_shot_mask(labels, shots)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_few_shots_of_names(kind: Any) -> None:
    names = ["ship", "cat", "cat", "ship", "ship", "cat", "bird", "bird"]
    numbers = torch.tensor([sorted({*names}).index(name) for name in names])
    assert torch.equal(few_shot_mask(kind(names), 2, 3), few_shot_mask(numbers, 2, 3))
    assert torch.equal(few_shot_mask(kind(numbers.tolist()), 2, 3), few_shot_mask(numbers, 2, 3))


def test_few_shots_of_features(caplog: pytest.LogCaptureFixture) -> None:
    names = ["cat", "cat", "cat", "dog"]
    features = as_features(torch.eye(4, DIM), names)
    chosen = features.select(few_shot_mask(features.labels, 2))
    assert sorted(chosen.labels or []) == ["cat", "cat", "dog"]
    assert chosen.encoder_sha256 == features.encoder_sha256
    assert "1 class has fewer than 2 images, of which all are chosen: dog (1)." in caplog.text
    assert few_shot_mask([], 2).tolist() == []
    for labels in ("cat", ["cat", 1], 3, None):
        with pytest.raises(TypeError, match="`labels` must be one whole number, or one name, per image"):
            few_shot_mask(labels, 2)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (2**70, ValueError), (1.0, TypeError)])
def test_bad_seeds_are_refused(seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="^`seed` must be "):
        train(seed=seed)
    with pytest.raises(error, match="^`seed` must be "):
        few_shot_mask(torch.tensor([0, 1]), 1, seed)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^`device` must be a device that torch has here, such as cpu, got '{device}'"
    ):
        train(device=device)


def test_numbers_and_arrays_of_numpy() -> None:
    features, labels = data()
    numbers = {"epochs": np.int64(10), "batch_size": np.int32(256), "seed": np.int64(0)}
    found = train(features.numpy(), labels.numpy(), **numbers)
    assert same(found, train())
    assert found.trained_on == train().trained_on
    assert type(found.trained_on["epochs"]) is int


def test_few_steps_that_lead_nowhere_are_named(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = data(20)
    train(features, labels, epochs=30, batch_size=4)
    assert "The probe has hardly learnt from 20 images in 150 steps: its loss on them is " in caplog.text
    assert "that of guessing 1.1. Raise `epochs` (30) or `learning_rate` (0.001);" in caplog.text
    caplog.clear()
    # Either will do, and images that cannot be told from each other are not for want of steps.
    train(features, labels, epochs=1000)
    train(features, labels, epochs=30, learning_rate=0.1)
    train(torch.randn(400, DIM, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 3, epochs=1000)
    assert not caplog.records


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    features, labels = data(600, noise=1.5)
    settings = {"epochs": 20, "batch_size": 64}
    expected = train(features, labels, **settings)
    found = train(features.cuda(), labels.cuda(), device="cuda", **settings)
    assert found.weight.device.type == "cpu"
    torch.testing.assert_close(found(features), expected(features), rtol=1e-2, atol=1e-2)
    assert same(found, train(features, labels, device="cuda", **settings))
