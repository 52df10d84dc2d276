# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Detectors whose method trains a linear probe, detectors of probes, and embeddings that know their model."""

import copy
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, PrecomputedEncoder, pipeline
from clipn_hf.detector_card import detector_card
from clipn_hf.digests import describe_image_encoder
from clipn_hf.features import Features, extract_features
from clipn_hf.methods import METHODS
from clipn_hf.methods.plp import TEMPLATES, describe_balance
from clipn_hf.probing import LinearProbe, pseudo_label, train_linear_probe
from clipn_hf.scores import energy, fit_gaussians, max_logit, msp, perplexity, relative_mahalanobis

LABELS = ["cat", "dog", "red bird"]
SCORES = ["energy", "msp", "max_logit", "relative_mahalanobis", "perplexity"]
METHOD_NAMES = ["linear_probe", "plp"]
DIM = 24
SHORT = {"epochs": 15}
NO_FILTER = {"min_confidence": None}


def images_of(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Embeddings around the centers of their classes."""
    centers = torch.randn(len(LABELS), DIM, generator=torch.Generator().manual_seed(3))
    return centers[labels] + 0.8 * torch.randn(len(labels), DIM, generator=torch.Generator().manual_seed(seed))


Y = torch.arange(60) % 3
X = images_of(Y, 1)
NEW = images_of(Y, 2)


@pytest.fixture
def encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor)


@pytest.fixture
def near_texts() -> PrecomputedEncoder:
    """Texts that are where the images of their labels are."""
    centers = torch.randn(len(LABELS), DIM, generator=torch.Generator().manual_seed(3))
    return PrecomputedEncoder(dict(zip(LABELS, centers, strict=True)), "org/model", ["{}"], logit_scale=8.0)


def fitted(encoder: Any, method: str, images: Any = X, labels: Any = Y, **settings: Any) -> OODDetector:
    return OODDetector(encoder, LABELS, method, **{**SHORT, **settings}).fit(images, labels)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)) for _ in range(count)]


def features_of(encoder: DualEncoder, labels: list[Any] | None = None, count: int = 12) -> Features:
    return extract_features(pictures(count), encoder, labels=labels, use_cache=False)


@pytest.mark.parametrize("score", SCORES)
def test_scores_and_predictions_are_those_of_the_probe(near_texts: PrecomputedEncoder, score: Any) -> None:
    detector = fitted(near_texts, "linear_probe", score=score)
    probe = train_linear_probe(normalize(X), Y, class_names=LABELS, device="cpu", progress=False, **SHORT)
    logits = probe(NEW)
    functions = {"energy": energy, "msp": msp, "max_logit": max_logit, "perplexity": perplexity}
    if score in functions:
        expected = functions[score](logits)
    else:
        expected = relative_mahalanobis(logits, fit_gaussians(probe(X), Y))
    torch.testing.assert_close(detector.score(NEW), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(detector.predict(NEW), logits.argmax(dim=1))
    assert (detector.predict(NEW) == Y).float().mean() > 0.9
    for result, row in zip(detector.results(NEW[:5], top_k=None), logits.softmax(dim=1), strict=False):
        listed = {one["label"]: one["score"] for one in result["labels"]}
        assert listed == pytest.approx(dict(zip(LABELS, row.tolist(), strict=True)), abs=1e-5)
        assert result["label"] == LABELS[int(row.argmax())]


@pytest.mark.parametrize("score", SCORES)
def test_bad_temperatures_are_refused(near_texts: PrecomputedEncoder, score: Any) -> None:
    detector = fitted(near_texts, "linear_probe", score=score)
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        detector.with_changes(temperature=-1.0).score(NEW)


@pytest.mark.parametrize("score", ["energy", "msp", "perplexity"])
def test_temperature_divides_the_logits(near_texts: PrecomputedEncoder, score: Any) -> None:
    detector = fitted(near_texts, "linear_probe", score=score)
    warm = detector.with_changes(temperature=3.0)
    logits = detector._inputs(NEW).logits
    assert warm.fitted_on == detector.fitted_on
    expected = {"energy": energy(logits, 3.0), "msp": msp(logits, 3.0), "perplexity": perplexity(logits / 3.0)}[score]
    torch.testing.assert_close(warm.score(NEW), expected)


def test_pseudo_labels_teach_what_labels_would(near_texts: PrecomputedEncoder) -> None:
    detector = fitted(near_texts, "plp", labels=None)
    logits = 8 * normalize(X) @ near_texts.class_embeddings(LABELS)[0].T
    found = pseudo_label(logits)
    assert 0 < found.kept.sum() < len(X)
    kept = normalize(X)[found.kept]
    probe = train_linear_probe(kept, found.labels[found.kept], device="cpu", progress=False, **SHORT)
    torch.testing.assert_close(detector.score(NEW), msp(probe(NEW)), rtol=1e-4, atol=1e-5)
    assert detector._state["counts"].tolist() == found.counts
    assert detector._state["kept_counts"].tolist() == found.kept_counts
    # Labels that are given change nothing, and are compared on the log alone.
    assert torch.equal(fitted(near_texts, "plp").score(NEW), detector.score(NEW))
    every = fitted(near_texts, "plp", min_confidence=None)
    assert every._state["kept_counts"].sum() == len(X)
    assert not torch.allclose(every.score(NEW), detector.score(NEW))
    far = fitted(near_texts, "plp", score="relative_mahalanobis")
    gaussians = fit_gaussians(probe(kept), found.labels[found.kept])
    torch.testing.assert_close(far.score(NEW), relative_mahalanobis(probe(NEW), gaussians), rtol=1e-3, atol=1e-4)


def test_pseudo_labels_that_are_too_uncertain(near_texts: PrecomputedEncoder) -> None:
    with pytest.raises(ValueError, match=r"None of the 60 images .* of 1.0 or more, the highest one is 0\.\d+; lower"):
        fitted(near_texts, "plp", min_confidence=1.0)
    with pytest.raises(ValueError, match=r"All \d+ images with a certain pseudo-label are taken for 'dog'"):
        fitted(near_texts, "plp", X[Y == 1], None)


def test_labels_without_pseudo_labels_are_named(
    near_texts: PrecomputedEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "clipn_hf.methods.plp"):
        detector = fitted(near_texts, "plp", X[Y != 2], Y[Y != 2])
    assert "1 of 3 labels have no image with a certain pseudo-label ('red bird')" in caplog.text
    assert re.search(r"\d+ of 40 images \(\d+\.\d%\) have a pseudo-label that is certain enough", caplog.text)
    assert "100.0% of these are the labels that were given" in caplog.text
    # The probe knows all labels, and takes nothing for that one.
    assert detector._inputs(NEW).logits.shape == (60, 3)
    assert not (detector.predict(NEW[Y != 2]) == 2).any()
    # Its relative Mahalanobis distance is to the others.
    score = fitted(near_texts, "plp", X[Y != 2], None, score="relative_mahalanobis").score(NEW)
    assert torch.isfinite(score).all()
    caplog.clear()
    few = torch.cat([(Y == 0).nonzero().flatten(), (Y != 0).nonzero().flatten()[:3]])
    fitted(near_texts, "plp", X[few], None, min_confidence=None)
    assert "The pseudo-labels are not balanced: 20 images of 'cat', 1 of" in caplog.text


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_saved_and_loaded(encoder: DualEncoder, method: str, tmp_path: Path) -> None:
    for score in ("energy", "relative_mahalanobis"):
        extra = {"min_confidence": None} if method == "plp" else {}
        detector = fitted(encoder, method, score=score, **extra)
        detector.calibrate(NEW)
        detector.save_pretrained(tmp_path / score)
        loaded = OODDetector.from_pretrained(tmp_path / score)
        assert torch.equal(loaded.score(NEW), detector.score(NEW))
        assert torch.equal(loaded.predict(NEW), detector.predict(NEW))
        assert loaded.settings == detector.settings
        assert loaded.calibration == detector.calibration
        (result,) = pipeline("ood-detection", model=str(tmp_path / score))(pictures(1))
        assert result["label"] == detector(pictures(1))[0]["label"]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_two_labels_by_the_relative_mahalanobis_distance(
    near_texts: PrecomputedEncoder, method: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Their logits differ by the sign alone, but for rounding, which must not decide."""
    detector = OODDetector(near_texts, LABELS[:2], method, score="relative_mahalanobis", **SHORT)
    detector.fit(X[Y < 2], Y[Y < 2])
    expected = detector.score(NEW)
    torch.testing.assert_close(
        torch.cat([detector.score(image[None]) for image in NEW]), expected, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(detector.score(3 * NEW), expected, rtol=1e-4, atol=1e-4)
    # By the one dimension that there is
    logits = detector._inputs(X[Y < 2]).logits
    labels = Y[Y < 2] if method == "linear_probe" else logits.argmax(dim=1)
    if method == "linear_probe":
        difference = logits @ torch.tensor([[1.0], [-1.0]])
        new = detector._inputs(NEW).logits @ torch.tensor([[1.0], [-1.0]])
        plain = relative_mahalanobis(new, fit_gaussians(difference, labels))
        torch.testing.assert_close(expected, plain, rtol=1e-3, atol=1e-3)
    assert not recwarn.list


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_probes_are_trained_where_the_model_is(encoder: DualEncoder, method: str, monkeypatch: Any) -> None:
    seen = []

    def train(*arguments: Any, device: Any = None, **settings: Any) -> LinearProbe:
        seen.append(device)
        return train_linear_probe(*arguments, device="cpu", **settings)

    monkeypatch.setattr("clipn_hf.probing.train_linear_probe", train)
    detector = OODDetector(encoder, LABELS, method, **SHORT, **({} if method == "linear_probe" else NO_FILTER))
    detector.fit(X, Y)
    assert seen == [encoder.device]
    monkeypatch.setattr(type(encoder), "device", torch.device("cuda", 1))
    detector.fit(X, Y)
    assert seen[1] == torch.device("cuda", 1)
    # Which has no sums in float64
    monkeypatch.setattr(type(encoder), "device", torch.device("mps"))
    detector.fit(X, Y)
    assert seen[2] == "cpu"


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "`temperature` must be positive"),
        ({"score": "zzz"}, ValueError, "`score` must be one of 'energy', "),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0."),
        ({"epochs": 1.5}, TypeError, "`epochs` must be a whole number"),
        ({"seed": -1}, ValueError, "`seed` must be between 0 and"),
        ({"learning_rate": -1}, ValueError, "`learning_rate` must be positive"),
        ({"lr": 0.1}, TypeError, "does not know `lr`, did you mean `learning_rate`?"),
    ],
)
def test_wrong_settings_are_refused_before_there_are_images(
    near_texts: PrecomputedEncoder, method: str, settings: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        OODDetector(near_texts, LABELS, method, **settings)
    with pytest.raises(error, match=re.escape(message)):
        OODDetector(near_texts, LABELS, method).with_changes(**settings)


def test_confidence_is_checked_before_there_are_images(near_texts: PrecomputedEncoder) -> None:
    with pytest.raises(ValueError, match="`min_confidence` must be between 0 and 1, got 90"):
        OODDetector(near_texts, LABELS, "plp", min_confidence=90)


def test_balance_of_pseudo_labels_is_told(
    near_texts: PrecomputedEncoder, encoder: DualEncoder, tmp_path: Path
) -> None:
    detector = fitted(near_texts, "plp", labels=None)
    assert detector.fitted_on is not None
    told = detector.fitted_on["pseudo_labels"]
    counts = detector._state["kept_counts"].tolist()
    assert (told["kept"], told["of"], told["min_confidence"]) == (sum(counts), 60, 0.9)
    assert told["templates"] == ["{}"]
    assert told["fewest"] == {"label": LABELS[counts.index(min(counts))], "images": min(counts)}
    assert told["most"] == {"label": LABELS[counts.index(max(counts))], "images": max(counts)}
    assert describe_balance(told).startswith(f"{sum(counts)} of 60 images kept; fewest {min(counts)} (")
    assert describe_balance({"kept": 1200, "of": 5000}) == "1,200 of 5,000 images kept"
    detector = fitted(encoder, "plp", labels=None, **NO_FILTER)
    detector.save_pretrained(tmp_path)
    assert OODDetector.from_pretrained(tmp_path).fitted_on == detector.fitted_on
    assert "; fewest " in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_another_score_needs_no_other_probe(near_texts: PrecomputedEncoder, method: str) -> None:
    detector = fitted(near_texts, method)
    for score in ("energy", "max_logit", "perplexity"):
        other = detector.with_changes(score=score)
        assert other.fitted_on == detector.fitted_on
        assert torch.equal(other.score(NEW), fitted(near_texts, method, score=score).score(NEW))
    # Unless it needs to know the logits of the training images.
    assert detector.with_changes(score="relative_mahalanobis").fitted_on is None
    distant = fitted(near_texts, method, score="relative_mahalanobis")
    assert torch.equal(distant.with_changes(score="msp").score(NEW), detector.score(NEW))
    assert distant.with_changes(score="energy").with_changes(score="msp").fitted_on is not None
    for change in ({"epochs": 20}, {"seed": 1}, {"learning_rate": 0.1}):
        assert detector.with_changes(**change).fitted_on is None


def test_a_score_that_was_lost_on_the_way_is_asked_for(near_texts: PrecomputedEncoder) -> None:
    back = fitted(near_texts, "linear_probe").with_changes(score="relative_mahalanobis")
    with pytest.raises(ValueError, match="must be fitted"):
        back.score(NEW)
    with pytest.raises(ValueError, match="`score` must be one of 'energy', .*, got 'odin'"):
        fitted(near_texts, "linear_probe", score="odin")


def test_texts_matter_to_pseudo_labels_alone(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    plp, probe = fitted(encoder, "plp", min_confidence=None), fitted(encoder, "linear_probe")
    plp.threshold = probe.threshold = 1.0
    scores = probe.score(NEW)
    probe.templates = plp.templates = ["{}"]
    assert probe.fitted_on is not None and probe.threshold == 1.0
    assert torch.equal(probe.score(NEW), scores)
    assert plp.fitted_on is None and plp.threshold is None
    assert "because `templates` changed; call `fit` and `calibrate` anew" in caplog.text
    with pytest.raises(ValueError, match="must be fitted"):
        plp.score(NEW)
    probe.labels = ["cat", "dog"]
    assert probe.fitted_on is None


def test_thresholds_per_label_are_those_of_the_probe(encoder: DualEncoder) -> None:
    """The most probable label is that of the probe, so that other templates change nothing."""
    detector = fitted(encoder, "linear_probe", epochs=60)
    detector.calibrate(images_of(torch.arange(300) % 3, 5), 0.2, per_label=True)
    before = detector.results(NEW)
    detector.templates = ["{}"]
    assert detector.calibration is not None
    assert detector.results(NEW) == before


def test_predictions_need_the_probe(encoder: DualEncoder) -> None:
    for method in METHOD_NAMES:
        with pytest.raises(ValueError, match=f"Method {method} must be fitted"):
            OODDetector(encoder, LABELS, method).predict(NEW)


def test_templates_of_the_paper_unless_the_model_has_some(
    tiny_clip: CLIPModel, tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    plain, own = DualEncoder(tiny_clip, tiny_processor), DualEncoder(tiny_clipn, tiny_processor)
    assert OODDetector(plain, LABELS, "plp").templates == list(TEMPLATES)
    assert len(TEMPLATES) == 5
    own.templates = ["an icon of a {}.", "a drawing of a {}."]
    assert OODDetector(own, LABELS, "plp").templates == ["an icon of a {}.", "a drawing of a {}."]
    assert OODDetector(plain, LABELS, "plp", templates=["{}"]).templates == ["{}"]
    # Others take the first one alone.
    assert OODDetector(own, LABELS, "energy").templates == own.templates


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (X, None, "Method linear_probe needs the labels of these images; pass them as `id_labels`"),
        (X[Y != 2], Y[Y != 2], "`id_labels` has no image of 'red bird'"),
        (X[:2], [0, 1], "`id_labels` has no image of 'red bird'"),
        (X[:1].expand(60, DIM), Y, "^All 60 images to fit on have the same embedding; give images that differ"),
        (X * float("nan"), Y, "NaN"),
        (X, Y + 1, r"`id_labels\[2\]` must be one of the 3 labels or its position, got 3"),
        (X[:, :10], Y, r"must have shape \(images, 24\) for this model, got \(60, 10\)"),
    ],
)
def test_bad_training_images_are_refused(encoder: DualEncoder, images: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(encoder, "linear_probe", images, labels)


def test_one_label_is_too_few(encoder: DualEncoder) -> None:
    for method in METHOD_NAMES:
        with pytest.raises(ValueError, match=f"Method {method} needs at least 2 labels"):
            OODDetector(encoder, ["cat"], method)


def test_features_know_their_encoder(encoder: DualEncoder, tiny_processor: CLIPProcessor) -> None:
    features = features_of(encoder)
    description = describe_image_encoder(encoder.model, encoder.processor.image_processor, encoder.name)
    assert features.encoder == encoder.describe_images() == description
    assert features.encoder_sha256 == description["sha256"]
    assert Features(features.embeddings, features.rows, features.digests, {}, 0).encoder_sha256 is None
    # A model that was changed is another one.
    with torch.no_grad():
        encoder.model.visual_projection.weight.mul_(1.1)
    changed = encoder.describe_images()
    assert changed["sha256"] != description["sha256"]
    # Its text encoder has no part in it.
    with torch.no_grad():
        encoder.model.text_projection.weight.mul_(1.1)
    assert encoder.describe_images() == changed
    encoder.processor.image_processor.do_center_crop = not encoder.processor.image_processor.do_center_crop
    other = encoder.describe_images()
    assert other["sha256"] == changed["sha256"]
    assert other["image_processor_sha256"] != changed["image_processor_sha256"]


def test_weights_in_half_precision_count_as_in_float32(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    """A checkpoint in half precision is one model, in whichever precision it is loaded."""
    half = copy.deepcopy(tiny_clip).to(torch.bfloat16)
    full = copy.deepcopy(half).to(torch.float32)
    one, other = (describe_image_encoder(model, tiny_processor.image_processor) for model in (half, full))
    assert one["dtype"] == "bfloat16"
    assert other["dtype"] == "float32"
    assert one["sha256"] == other["sha256"]
    rounded = describe_image_encoder(tiny_clip, tiny_processor.image_processor)
    assert rounded["sha256"] != one["sha256"]


@pytest.mark.parametrize("method", ["mcm", "nearest_neighbors", "linear_probe", "plp"])
def test_features_are_as_good_as_embeddings(encoder: DualEncoder, method: str) -> None:
    names = [LABELS[row % 3] for row in range(12)]
    features = replace(features_of(encoder, names), embeddings=normalize(X[:12]))
    settings = {**SHORT, "min_confidence": None} if method == "plp" else SHORT if method == "linear_probe" else {}
    given, plain = (OODDetector(encoder, LABELS, method, **settings) for _ in range(2))
    # Labels come with the features, where they are needed.
    given.fit(features)
    plain.fit(features.embeddings, names)
    if given.fitted_on is not None:
        assert given.fitted_on["labelled"] is (method == "linear_probe")
    assert torch.equal(given.score(features), plain.score(features.embeddings))
    assert torch.equal(given.predict(features), plain.predict(features.embeddings))
    assert given.results(features) == plain.results(features.embeddings)
    assert torch.equal(given.score_and_predict(features)[0], plain.score(features.embeddings))
    others = extract_features(pictures(40, seed=5), encoder, use_cache=False)
    calibration = given.calibrate(others)
    assert calibration.n == 40
    assert given.p_values(features).shape == (12,)
    if given.fitted_on is not None:
        with pytest.raises(ValueError, match="12 of 12 images that the method was fitted on"):
            given.calibrate(features)
    with pytest.raises(TypeError, match="These are embeddings; judge them by `results` or `score`"):
        given(features)


def test_labels_of_features_must_be_known(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "linear_probe", **SHORT)
    with pytest.raises(ValueError, match=r"`id_labels\[0\]` must be one of the 3 labels"):
        detector.fit(features_of(encoder, ["lion"] * 12))
    with pytest.raises(ValueError, match="needs the labels of these images"):
        detector.fit(features_of(encoder))
    # Methods that do not need labels do not mind others.
    OODDetector(encoder, LABELS, "nearest_neighbors").fit(features_of(encoder, ["lion"] * 12))


def test_features_of_another_model_are_refused(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    features = features_of(encoder, [row % 3 for row in range(12)])
    assert features.encoder is not None
    detector = fitted(encoder, "linear_probe", features, None)
    other = replace(features, encoder={**features.encoder, "id": "org/other", "sha256": "f" * 64})
    for act in (detector.fit, detector.score, detector.predict, detector.results, detector.calibrate):
        with pytest.raises(ValueError, match=r"of another image encoder \(org/other, SHA-256 ffff.*Use that model"):
            act(other)
    in_half = replace(features, encoder={**features.encoder, "dtype": "float16", "sha256": "f" * 64})
    with pytest.raises(ValueError, match="one computes in float16, the other in float32"):
        detector.score(in_half)
    # Those who know better, and features whose origin is not known
    assert torch.equal(detector.score(other.embeddings), detector.score(features))
    assert torch.equal(detector.score(replace(features, encoder=None)), detector.score(features))
    narrow = replace(features, embeddings=features.embeddings[:, :5])
    with pytest.raises(ValueError, match=r"must have shape \(images, 24\) for this model, got \(12, 5\)"):
        detector.score(narrow)
    assert [record.name for record in caplog.records] == ["clipn_hf.probing.training"]
    differently = replace(features, encoder={**features.encoder, "image_processor_sha256": "f" * 64})
    detector.score(differently)
    assert "prepared in another way" in caplog.text


def probe_of(encoder: DualEncoder, **settings: Any) -> tuple[LinearProbe, Features]:
    features = features_of(encoder, [LABELS[row % 3] for row in range(12)])
    settings = {"class_names": LABELS, "progress": False, **SHORT, **settings}
    return train_linear_probe(features, **settings), features


@pytest.mark.parametrize("score", ["energy", "msp", "max_logit", "perplexity"])
def test_detector_of_a_probe(encoder: DualEncoder, score: Any, tmp_path: Path) -> None:
    probe, features = probe_of(encoder, learning_rate=0.05, seed=2)
    detector = OODDetector.from_probe(encoder, probe, score=score, temperature=2.0)
    expected = OODDetector(
        encoder, LABELS, "linear_probe", score=score, temperature=2.0, learning_rate=0.05, seed=2, **SHORT
    ).fit(features)
    torch.testing.assert_close(detector.score(NEW), expected.score(NEW), rtol=1e-4, atol=1e-5)
    assert detector.settings == expected.settings
    assert detector.fitted_on == expected.fitted_on
    assert detector.labels == LABELS
    detector.calibrate(images_of(Y, 9))
    detector.save_pretrained(tmp_path / "detector")
    loaded = OODDetector.from_pretrained(tmp_path / "detector")
    assert torch.equal(loaded.score(NEW), detector.score(NEW))
    # A probe that is changed later leaves the detector as it is.
    before = detector.score(NEW)
    probe.weight.data.zero_()
    assert torch.equal(detector.score(NEW), before)


def test_detector_of_a_saved_probe_and_a_model_by_name(clipn_folder: Path, tmp_path: Path) -> None:
    probe, features = probe_of(DualEncoder.from_pretrained(clipn_folder))
    probe.save_pretrained(tmp_path / "probe")
    assert probe.encoder is not None
    assert probe.encoder["id"] == clipn_folder.name
    detector = OODDetector.from_probe(clipn_folder, tmp_path / "probe", templates=["a {}."])
    assert detector.templates == ["a {}."]
    assert torch.equal(detector.predict(features), probe(features.embeddings).argmax(dim=1))
    with pytest.raises(OSError):  # noqa: PT011 – the Hub words it
        OODDetector.from_probe(clipn_folder, "org/absent")


def test_probe_of_another_model_is_refused(
    encoder: DualEncoder, tiny_processor: CLIPProcessor, near_texts: PrecomputedEncoder
) -> None:
    probe, _ = probe_of(encoder)
    other = copy.deepcopy(encoder.model)
    with torch.no_grad():
        other.visual_projection.weight.mul_(1.01)
    another = DualEncoder(other, tiny_processor)
    with pytest.raises(ValueError, match="The weights of the probe are of another image encoder"):
        OODDetector.from_probe(another, probe)
    # Training further is noticed as well.
    detector = OODDetector.from_probe(encoder, probe)
    with torch.no_grad():
        encoder.model.visual_projection.weight.mul_(1.01)
    with pytest.raises(ValueError, match="must be fitted"):
        detector.score(NEW)
    probe.encoder = None
    OODDetector.from_probe(another, probe)
    OODDetector.from_probe(near_texts, probe)
    narrow = LinearProbe(10, 3, LABELS, None, probe.trained_on)
    with pytest.raises(ValueError, match="The probe is for embeddings of width 10, those of the model have width 24"):
        OODDetector.from_probe(encoder, narrow)


def test_unfit_probes_are_refused(encoder: DualEncoder) -> None:
    probe, _ = probe_of(encoder)
    for settings, error, message in (
        ({"score": "relative_mahalanobis"}, ValueError, "needs the logits of the training images"),
        ({"epochs": 5}, TypeError, "`epochs` is for training; the probe is trained already"),
        ({"colour": 5}, TypeError, "does not know `colour`"),
    ):
        with pytest.raises(error, match=message):
            OODDetector.from_probe(encoder, probe, **settings)
    with pytest.raises(TypeError, match="`probe` must be a LinearProbe, or the folder or Hub id of one, got Linear"):
        OODDetector.from_probe(encoder, torch.nn.Linear(24, 3))
    labels, trained_on = probe.labels, probe.trained_on
    probe.labels = None
    with pytest.raises(ValueError, match="no names of its classes; set `probe.labels`"):
        OODDetector.from_probe(encoder, probe)
    probe.labels, probe.trained_on = labels, {"images": 5}
    with pytest.raises(ValueError, match="`probe.trained_on` lacks labelled, date, sha256"):
        OODDetector.from_probe(encoder, probe)
    probe.trained_on = trained_on
    probe.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values in `weight`"):
        OODDetector.from_probe(encoder, probe)


def test_detector_of_a_probe_knows_its_images(encoder: DualEncoder, tmp_path: Path) -> None:
    probe, features = probe_of(encoder)
    detector = OODDetector.from_probe(encoder, probe, features)
    digests = [bytes.fromhex(digest) for digest in features.digests]
    assert detector.count_fitted(digests) == 12
    assert OODDetector.from_probe(encoder, probe).count_fitted(digests) == 0
    with pytest.raises(ValueError, match="has 12 of 12 images that the method was fitted on"):
        detector.calibrate(features)
    detector.save_pretrained(tmp_path / "detector")
    assert OODDetector.from_pretrained(tmp_path / "detector").count_fitted(digests) == 12
    # The images themselves will do, and so will embeddings where it was trained on them.
    labels = [LABELS[row % 3] for row in range(12)]
    assert OODDetector.from_probe(encoder, probe, pictures(12), labels).count_fitted(digests) == 12
    plain = train_linear_probe(X, Y, class_names=LABELS, device="cpu", progress=False, **SHORT)
    with pytest.raises(ValueError, match="that the method was fitted on"):
        OODDetector.from_probe(encoder, plain, X, Y).calibrate(X)

    with pytest.raises(ValueError, match="`id_images` need the labels that the probe was trained with"):
        OODDetector.from_probe(encoder, probe, pictures(12))
    for images, given in ((pictures(12, 5), labels), (pictures(12), labels[::-1]), (pictures(11), labels[:11])):
        with pytest.raises(ValueError, match="`id_images` are not the 12 images that the probe was trained on"):
            OODDetector.from_probe(encoder, probe, images, given)


def test_detector_of_a_probe_by_the_relative_mahalanobis_distance(encoder: DualEncoder) -> None:
    probe, features = probe_of(encoder)
    detector = OODDetector.from_probe(encoder, probe, features, score="relative_mahalanobis")
    expected = OODDetector(encoder, LABELS, "linear_probe", score="relative_mahalanobis", **SHORT).fit(features)
    torch.testing.assert_close(detector.score(NEW), expected.score(NEW), rtol=1e-4, atol=1e-4)
    assert detector.fitted_on == expected.fitted_on


def test_detector_of_a_probe_of_pseudo_labels(encoder: DualEncoder, tmp_path: Path) -> None:
    probe, features = probe_of(encoder)
    templates = ["a drawing of a {}.", "a {}."]
    told = {"min_confidence": 0.4, "templates": templates, "kept": 12, "of": 20}
    probe.trained_on = {**probe.trained_on, "labelled": False, "pseudo_labels": told}
    probe.save_pretrained(tmp_path / "probe")
    detector = OODDetector.from_probe(encoder, tmp_path / "probe", features)
    assert (detector.method.name, detector.templates) == ("plp", templates)
    assert detector.settings["min_confidence"] == 0.4
    assert detector.fitted_on["pseudo_labels"] == told
    assert torch.equal(detector.score(NEW), OODDetector.from_probe(encoder, probe, templates=templates).score(NEW))
    with pytest.raises(ValueError, match="`templates` must be those of the pseudo-labels of the probe"):
        OODDetector.from_probe(encoder, probe, templates=["{}"])

    detector.save_pretrained(tmp_path / "detector")
    card = " ".join((tmp_path / "detector" / "README.md").read_text().split())
    assert "| Method | Pseudo-label probing (`plp`), [2303.05828]" in card
    assert "12 of 20 images, those with a confidence of 0.4 or more; texts in `a drawing of a {}.`, `a {}.`" in card
    loaded = OODDetector.from_pretrained(tmp_path / "detector")
    assert loaded.fitted_on == detector.fitted_on
    assert torch.equal(loaded.score(NEW), detector.score(NEW))


def test_settings_that_a_probe_does_not_tell_are_not_stated(encoder: DualEncoder, tmp_path: Path) -> None:
    probe, _ = probe_of(encoder)
    told = {name: probe.trained_on[name] for name in ("images", "labelled", "date", "sha256")}
    finetuning = {"tuning": "lora", "base": "org/clip", "epochs": 3, "learning_rate": 1e-5}
    probe.trained_on = {**told, "finetuning": finetuning}
    detector = OODDetector.from_probe(encoder, probe, score="energy")
    detector.save_pretrained(tmp_path / "detector")
    for each in (detector, OODDetector.from_pretrained(tmp_path / "detector")):
        assert each.known_settings == {"score": "energy", "temperature": 1.0}
        assert "epochs" not in repr(each)
        assert each.fitted_on == {**told, "finetuning": finetuning}
        # Another score is another score of the same head.
        assert "epochs" not in each.with_changes(score="msp").known_settings
    values = json.loads((tmp_path / "detector" / "detector.json").read_text())
    assert values["settings"] == {"score": "energy", "temperature": 1.0}
    card = " ".join((tmp_path / "detector" / "README.md").read_text().split())
    assert "base_model: org/clip" in card
    assert "together with the image encoder of `org/clip`, by low-rank adapters (LoRA); `epochs` = 3, `lear" in card
    assert "batch_size" not in card
    adapted = " ".join(detector_card(values, "org/known", "org/base").split())
    assert "library_name: peft" in adapted
    assert "base_model: org/base" in adapted
    assert ", an adapter for `org/base`" in adapted
    # What is fitted anew has all of its settings.
    detector.fit(X, Y)
    assert detector.known_settings == detector.settings
    assert "finetuning" not in detector.fitted_on


def test_methods_say_what_they_read() -> None:
    assert not METHODS["linear_probe"].uses_text
    assert METHODS["plp"].uses_text
    assert "training_labels" not in METHODS["plp"].needs
    assert METHODS["plp"].settings["min_confidence"] == 0.9
    assert {METHODS[name].settings["score"] for name in METHOD_NAMES} == {"msp"}
    assert list(METHODS)[-3:] == [*METHOD_NAMES, "clip_os"]


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.fit is not None])
def test_images_that_are_all_the_same_teach_nothing(near_texts: PrecomputedEncoder, method: str) -> None:
    detector = OODDetector(near_texts, LABELS, method)
    same = X[:1] * torch.linspace(1, 2, 60)[:, None]
    with pytest.raises(ValueError, match="^All 60 images to fit on have the same embedding; give images that differ"):
        detector.fit(same, Y)
    assert detector.fitted_on is None


def test_one_image_is_a_bank(near_texts: PrecomputedEncoder) -> None:
    assert OODDetector(near_texts, LABELS, "nearest_neighbors").fit(X[:1]).score(X[:1]) < 1e-6


@pytest.mark.parametrize("method", ["vim", "relative_mahalanobis"])
def test_warnings_name_the_line_that_fits(near_texts: PrecomputedEncoder, method: str) -> None:
    detector = OODDetector(near_texts, LABELS, method)
    with pytest.warns(UserWarning, match=r"fill no more|cannot be inverted") as found:
        detector.fit(X[:9], Y[:9])
    assert {Path(warning.filename).name for warning in found} == {Path(__file__).name}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("react", {"score": "odin"}, "`score` must be one of 'energy', 'msp', 'max_logit', 'mcm', got 'odin'."),
        ("react", {"temperature": 0}, "`temperature` must be positive"),
        ("react", {"percentile": 900}, "`percentile` must be between 0 and 100"),
        ("kmeans", {"distance": "l2"}, "`distance` must be one of 'cosine', "),
        ("kmeans", {"num_clusters": 0}, "`num_clusters` must be at least 1, got 0."),
        ("kmeans", {"num_clusters": 1, "distance": "relative_mahalanobis"}, "`num_clusters` must be at least 2 for"),
        ("kmeans", {"seed": -1}, "`seed` must be between 0 and 2**32 - 1, got -1."),
        ("mahalanobis", {"shrinkage": 7}, "`shrinkage` must be between 0 and 1, got 7."),
        ("relative_mahalanobis", {"shrinkage": -1}, "`shrinkage` must be between 0 and 1, got -1."),
        ("vim", {"principal_dims": -1}, "`principal_dims` must be at least 1, got -1."),
        ("nearest_neighbors", {"k": 0}, "`k` must be at least 1, got 0."),
        ("nearest_neighbors", {"reduction": "max"}, "`reduction` must be 'mean' or 'kth', got 'max'."),
        ("nearest_neighbors", {"backend": "numpy"}, "`backend` must be 'torch' or 'faiss', got 'numpy'."),
    ],
)
def test_wrong_settings_of_other_methods_are_refused_before_there_are_images(
    near_texts: PrecomputedEncoder, method: str, settings: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        OODDetector(near_texts, LABELS, method, **settings)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        OODDetector(near_texts, LABELS, method).fit(X, Y).with_changes(**settings)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("mahalanobis", {"tied": "no"}, "`tied` must be True or False, got str 'no'."),
        ("relative_mahalanobis", {"tied": 1}, "`tied` must be True or False, got int 1."),
        ("kmeans", {"num_clusters": 2.5}, "`num_clusters` must be a whole number, got float 2.5."),
        ("vim", {"principal_dims": "many"}, "`principal_dims` must be a whole number, got str 'many'."),
    ],
)
def test_settings_of_another_type_are_refused_before_there_are_images(
    near_texts: PrecomputedEncoder, method: str, settings: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        OODDetector(near_texts, LABELS, method, **settings)


@pytest.mark.parametrize("settings", [{"magnitude": -1}, {"magnitude": float("inf")}, {"temperature": 0}])
def test_settings_of_odin_are_refused_before_there_are_images(encoder: DualEncoder, settings: Any) -> None:
    with pytest.raises(ValueError, match=f"^`{next(iter(settings))}` must be"):
        OODDetector(encoder, LABELS, "odin", **settings)


def test_fewer_labels_than_images_are_named_as_they_were_given(encoder: DualEncoder) -> None:
    message = "^`id_labels` must be one label per image, got 3 labels and 12 images"
    with pytest.raises(ValueError, match=message):
        OODDetector(encoder, LABELS, "mahalanobis").fit(pictures(12), LABELS)


def test_card_says_what_the_probe_was_trained_on(encoder: DualEncoder, tmp_path: Path) -> None:
    features = features_of(encoder, [LABELS[row % 3] for row in range(12)])
    held_out = {"validation_features": X[:6], "validation_labels": Y[:6], "patience": 3}
    probe = train_linear_probe(features, class_names=LABELS, progress=False, **SHORT, **held_out)
    detector = OODDetector.from_probe(encoder, probe)
    assert probe.trained_on is not None and detector.fitted_on is not None
    told = probe.trained_on
    assert detector.fitted_on["held_out"] == {
        "best_epoch": told["best_epoch"],
        "loss": told["validation_loss"],
        "accuracy": told["validation_accuracy"],
    }
    detector.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"| Fitted on | 12 images with labels, {told['date']}, " in card
    assert f"after epoch {told['best_epoch']}, the best one" in card
    # Neither scores nor predictions depend on texts.
    assert "| Templates |" not in card
    OODDetector(encoder, LABELS, "nearest_neighbors").fit(X).save_pretrained(tmp_path / "other")
    other = (tmp_path / "other" / "README.md").read_text()
    assert "| Templates |" in other
    assert "| Fitted on | 60 images, " in other


def test_numbers_of_numpy_are_numbers(near_texts: PrecomputedEncoder) -> None:
    expected = OODDetector(near_texts, LABELS, "nearest_neighbors", k=3).fit(X).score(NEW)
    found = OODDetector(near_texts, LABELS, "nearest_neighbors", k=np.int64(3)).fit(X).score(NEW)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        ((100 * X).int(), "got Tensor of int32 of shape (60, 24)."),
        ((100 * X).int().numpy(), "got ndarray of int32 of shape (60, 24)."),
        (X[0], "got Tensor of float32 of shape (24,)."),
        (X.tolist(), "got list."),
        (["cat.jpg"], "got list."),
    ],
)
def test_what_is_no_embeddings_is_named(near_texts: PrecomputedEncoder, images: Any, got: str) -> None:
    detector = OODDetector(near_texts, LABELS, "nearest_neighbors")
    message = "(images, 24) of floating-point numbers, " + got
    with pytest.raises(TypeError, match=re.escape(message)):
        detector.fit(images)
    detector.fit(X)
    for act in (detector.score, detector.predict, detector):
        with pytest.raises(TypeError, match=re.escape(message)):
            act(images)


def test_only_a_fitted_detector_remembers_further_images(encoder: DualEncoder) -> None:
    features = extract_features(pictures(3), encoder, use_cache=False, progress=False)
    with pytest.raises(ValueError, match="was not fitted.*call `fit` first"):
        OODDetector(encoder, LABELS, "linear_probe").remember_images(features)
