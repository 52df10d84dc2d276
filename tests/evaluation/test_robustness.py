# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.digests import data_digest, image_digest
from clipn_hf.evaluation import robustness, robustness_report
from clipn_hf.evaluation.adversarial import adversarial_ood
from clipn_hf.evaluation.defences import DEFENCES, Defence
from clipn_hf.evaluation.metrics import auroc
from clipn_hf.evaluation.results import CONVENTION
from clipn_hf.evaluation.robustness import (
    AS_FITTED,
    CLEAN,
    UNDEFENDED,
    WITH_TARGETS,
    WITHOUT_TARGETS,
    describe_attacks,
    evaluate_robustness,
)
from clipn_hf.features import extract_features
from clipn_hf.methods import METHODS

FAST: dict[str, Any] = {"steps": 40, "lr": 0.02, "resamples": 20, "use_cache": False, "progress": False}
LABELS = ["cat", "dog"]


def pictures(count: int, seed: int, dark: bool) -> list[Image.Image]:
    """Blurry pictures, all of them rather dark or all of them rather light."""
    generator = np.random.default_rng(seed)
    low, high = (0, 200) if dark else (100, 256)
    return [
        Image.fromarray(generator.integers(low, high, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
        for _ in range(count)
    ]


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def known() -> list[Image.Image]:
    return pictures(12, seed=0, dark=True)


@pytest.fixture
def fit_images() -> list[Image.Image]:
    return pictures(16, seed=1, dark=True)


@pytest.fixture
def unknown() -> list[Image.Image]:
    return pictures(10, seed=2, dark=False)


def test_a_bank_collapses_by_its_targets(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any]
) -> None:
    detector = OODDetector(encoder, LABELS, "nearest_neighbors")
    report = evaluate_robustness(
        detector, known, unknown, fit_images[:6], fit_images=fit_images, smoothness=[0, 1.0], defences=["jpeg"], **FAST
    )
    assert [(row.bank, row.defence, row.attack) for row in report.rows] == [
        (bank, defence, attack)
        for bank in (WITH_TARGETS, WITHOUT_TARGETS)
        for defence in (UNDEFENDED, "jpeg")
        for attack in (CLEAN, "patchy", "smooth-1")
    ]
    for bank in (WITH_TARGETS, WITHOUT_TARGETS):
        assert report.row(CLEAN, bank).auroc.estimate == 1.0
        assert report.row(CLEAN, bank).fpr95.estimate == 0.0
    attacked = report.row("patchy", WITH_TARGETS)
    assert attacked.auroc.estimate < 0.7
    assert attacked.auroc.low <= attacked.auroc.estimate <= attacked.auroc.high
    # The targets themselves are what attacked images are nearest to.
    assert attacked.ood_scores.mean() < report.row("patchy", WITHOUT_TARGETS).ood_scores.mean()
    assert report.images == {
        "ID": 12, "OOD": 10, "targets": 6, "to fit on": 16, "targets among these": 6,
        "fitted on with targets": 16, "fitted on without": 10,
    }  # fmt: skip
    assert "16 fitted on with targets, 10 fitted on without" in report.to_markdown()
    # The detector itself was never fitted.
    assert detector.fitted_on is None and detector.threshold is None


def test_scores_are_those_of_the_detector(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any]
) -> None:
    targets = pictures(3, seed=5, dark=True)
    detector = OODDetector(encoder, LABELS, "nearest_neighbors")
    report = evaluate_robustness(
        detector, known, unknown, targets, fit_images=fit_images, smoothness=[0], defences=["blur"], **FAST
    )
    pngs = report.attacks[0].to_pil()
    for bank, images in ((WITH_TARGETS, [*fit_images, *targets]), (WITHOUT_TARGETS, fit_images)):
        detector.fit(images, use_cache=False)
        for attack, judged in ((CLEAN, unknown), ("patchy", pngs)):
            row = report.row(attack, bank)
            np.testing.assert_allclose(row.id_scores, detector.score(known), atol=1e-5)
            np.testing.assert_allclose(row.ood_scores, detector.score(judged), atol=1e-5)
            assert row.auroc.estimate == auroc(row.id_scores, row.ood_scores)
        # All images are at the input size already, so that defences need nothing else.
        blur = DEFENCES["blur"].apply
        detector.fit([blur(image) for image in images], use_cache=False)
        row = report.row("patchy", bank, "blur")
        np.testing.assert_allclose(row.id_scores, detector.score([blur(image) for image in known]), atol=1e-5)
        np.testing.assert_allclose(row.ood_scores, detector.score([blur(image) for image in pngs]), atol=1e-5)
    assert report.images["targets among these"] == 0


def test_a_fitted_detector_as_it_is(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any]
) -> None:
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit(fit_images, use_cache=False)
    detector.threshold = float(detector.score(known).max())
    before = detector.fitted_on
    report = evaluate_robustness(detector, known, unknown, fit_images[:3], smoothness=[0], defences=[], **FAST)
    assert {row.bank for row in report.rows} == {AS_FITTED}
    assert report.images["targets that the detector was fitted on"] == 3
    assert report.row(CLEAN).called_known == 0.0
    attacked = report.row("patchy")
    assert attacked.called_known == np.mean(attacked.ood_scores <= detector.threshold) > 0
    assert "calls known by its own threshold" in report.to_markdown()
    again = evaluate_robustness(
        detector, known, unknown, fit_images[:3], fit_images=fit_images, smoothness=[0], defences=[], **FAST
    )
    assert [row.bank for row in again.rows][::2] == [AS_FITTED, WITH_TARGETS, WITHOUT_TARGETS]
    # A threshold is one of the scores that it was found for.
    assert again.row("patchy", WITH_TARGETS).called_known is None
    verdicts = again.to_markdown().split("calls known by its own threshold")[1]
    assert AS_FITTED in verdicts and WITH_TARGETS not in verdicts and "–" not in verdicts
    assert detector.fitted_on == before and detector.threshold is not None


def test_methods_that_are_not_fitted(encoder: DualEncoder, known: list[Any], unknown: list[Any]) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    report = evaluate_robustness(
        detector, known, unknown, pictures(2, seed=7, dark=True), fit_images=known, smoothness=[0], defences=[], **FAST
    )
    assert {row.bank for row in report.rows} == {None}
    assert "bank" not in report.to_markdown()
    np.testing.assert_allclose(report.row("patchy").ood_scores, detector.score(report.attacks[0].to_pil()), atol=1e-6)
    assert report.row("patchy").called_known is None


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.judges_images(row.settings)])
def test_methods_that_take_images_alone(encoder: DualEncoder, known: list[Any], unknown: list[Any], name: str) -> None:
    detector = OODDetector(encoder, LABELS, name, threshold=0.0)
    report = evaluate_robustness(
        detector, known, unknown, pictures(2, seed=7, dark=True), smoothness=[0], defences=["jpeg"], **FAST
    )
    attacked = report.row("patchy")
    np.testing.assert_allclose(attacked.ood_scores, detector.score(report.attacks[0].to_pil()), atol=1e-5)
    assert attacked.called_known == np.mean(attacked.ood_scores <= 0.0)


@pytest.mark.filterwarnings("ignore:The covariances")
def test_methods_that_need_labels(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any]
) -> None:
    detector = OODDetector(encoder, LABELS, "relative_mahalanobis")
    labels = [LABELS[row % 2] for row in range(16)]
    targets = [*fit_images[:2], *pictures(2, seed=6, dark=True)]
    options: dict[str, Any] = {"smoothness": [0], "defences": [], **FAST}
    with pytest.raises(ValueError, match="needs the labels of `fit_images`; pass them as `fit_labels`"):
        evaluate_robustness(detector, known, unknown, targets, fit_images=fit_images, **options)
    options |= {"fit_images": fit_images, "fit_labels": labels}
    with pytest.raises(ValueError, match="2 of 4 targets are not among `fit_images`.* pass them as `target_labels`"):
        evaluate_robustness(detector, known, unknown, targets, **options)
    with pytest.raises(ValueError, match="`target_labels` must be one per target, got 1 for 4 targets"):
        evaluate_robustness(detector, known, unknown, targets, target_labels=["cat"], **options)
    report = evaluate_robustness(detector, known, unknown, targets, target_labels=["cat", "dog"] * 2, **options)
    assert report.images["targets among these"] == 2
    detector.fit([*fit_images, *targets[2:]], [*labels, "cat", "dog"], use_cache=False)
    expected = detector.score(report.attacks[0].to_pil())
    np.testing.assert_allclose(report.row("patchy", WITH_TARGETS).ood_scores, expected, rtol=1e-4)
    detector.fit(fit_images[2:], labels[2:], use_cache=False)
    expected = detector.score(report.attacks[0].to_pil())
    np.testing.assert_allclose(report.row("patchy", WITHOUT_TARGETS).ood_scores, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["linear_probe", "nearest_neighbors"])
def test_targets_may_be_all_images_of_a_label(
    encoder: DualEncoder,
    known: list[Any],
    fit_images: list[Any],
    unknown: list[Any],
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = ["cat"] * 4 + ["dog"] * 12
    options: dict[str, Any] = {
        "smoothness": [0],
        "defences": [],
        "fit_images": fit_images,
        "fit_labels": labels,
        **FAST,
    }
    detector = OODDetector(encoder, LABELS, method)
    if method == "nearest_neighbors":
        report = evaluate_robustness(detector, known, unknown, fit_images[:4], **options)
        assert "Without the targets, `fit_images` has no image of 'cat', so that" in caplog.text
        assert (report.images["fitted on with targets"], report.images["fitted on without"]) == (16, 12)
        caplog.clear()
        evaluate_robustness(detector, known, unknown, fit_images[:3], **options)
        assert "no image of" not in caplog.text
        return
    # There is no attack in vain.
    monkeypatch.setattr(robustness, "adversarial_ood", None)
    with pytest.raises(ValueError, match=r"Without the targets, `fit_images` has no image of 'cat'; give targets of"):
        evaluate_robustness(detector, known, unknown, fit_images[:4], **options)
    options["fit_labels"] = ["dog"] * 16
    with pytest.raises(ValueError, match=r"^`fit_images` has no image of 'cat'; give images of each label\.$"):
        evaluate_robustness(detector, known, unknown, fit_images[:4], target_labels=["dog"] * 4, **options)


def test_warnings_of_several_fits_come_once(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any]
) -> None:
    detector = OODDetector(encoder, LABELS, "relative_mahalanobis")
    options: dict[str, Any] = {"fit_images": fit_images, "fit_labels": LABELS * 8, "smoothness": [0], **FAST}
    with pytest.warns(UserWarning, match="The covariances") as found:
        report = evaluate_robustness(detector, known, unknown, fit_images[:2], **options)
    texts = [str(one.message) for one in found]
    assert len(texts) == len(set(texts)) and len(report.rows) == 16
    assert {one.filename for one in found} == {__file__}


def test_messages_of_several_fits_come_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = robustness.logger
    with robustness.saying_once():
        for _ in range(2):
            logger.warning("Few images.")
        logger.warning("Many images.")
    logger.warning("Few images.")
    assert [record.getMessage() for record in caplog.records] == ["Few images.", "Many images.", "Few images."]


def test_numbers_of_numpy_are_numbers(encoder: DualEncoder, known: list[Any], unknown: list[Any]) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    options = {
        **FAST, "steps": np.int64(1), "lr": np.float32(0.5), "smoothness": np.float32(5), "seed": np.int64(3),
        "resamples": np.int32(5), "batch_size": np.int16(4), "defences": [],
    }  # fmt: skip
    report = evaluate_robustness(detector, known, unknown, pictures(2, seed=7, dark=True), **options)
    settings = json.loads(json.dumps(report.to_dict()))["attacks"][0]["settings"]
    assert settings == {"steps": 1, "lr": 0.5, "init_std": 1e-3, "smoothness": 5.0, "seed": 3}


def test_attacks_of_similar_smoothness_differ_in_name(
    encoder: DualEncoder, known: list[Any], unknown: list[Any]
) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    options = {**FAST, "steps": 1, "smoothness": [5000, 5000.001], "defences": []}
    report = evaluate_robustness(detector, known, unknown, pictures(2, seed=7, dark=True), **options)
    assert [row.attack for row in report.rows] == [CLEAN, "smooth-5000", "smooth-5000.001"]
    assert "| smooth-5000.001 | 5000.001 |" in report.to_markdown()


def test_models_are_named_by_class_and_place() -> None:
    model = {"id": "/models/somebody/my-detector", "class": "CLIPNModel"}
    assert robustness.name_model(model) == "CLIPNModel of my-detector"
    assert robustness.name_model({"id": None, "class": "CLIPModel"}) == "CLIPModel"


def test_defences_change_all_images(
    encoder: DualEncoder,
    known: list[Any],
    fit_images: list[Any],
    unknown: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def paint(picture: Image.Image) -> Image.Image:
        seen.append(picture.size)
        # Not of one colour alone, from which nothing could be learnt.
        red, *_ = np.asarray(picture)[0, 0].tolist()
        return Image.new("RGB", picture.size, "red" if red % 2 else "orange")

    for module in (robustness, robustness_report):
        monkeypatch.setattr(module, "DEFENCES", {"red": Defence("red", "paints it red", paint)})
    detector = OODDetector(encoder, LABELS, "nearest_neighbors")
    report = evaluate_robustness(
        detector, known, unknown, fit_images[:2], fit_images=fit_images, smoothness=[0], defences=["red"], **FAST
    )
    for attack in (CLEAN, "patchy"):
        for bank in (WITH_TARGETS, WITHOUT_TARGETS):
            row = report.row(attack, bank, "red")
            assert max(row.id_scores.max(), row.ood_scores.max()) < 1e-5 < report.row(attack, bank).id_scores.min()
    assert set(seen) == {(32, 32)}
    assert "paints it red" in report.to_markdown()


def test_attacks_are_made_once_for_several_detectors(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**FAST, "defences": []}
    attacks = [adversarial_ood(unknown, fit_images, encoder, 40, 0.02, smoothness=0)]
    detector = OODDetector(encoder, LABELS, "mcm")
    expected = evaluate_robustness(detector, known, unknown, fit_images, smoothness=[0], **options)
    monkeypatch.setattr(robustness, "adversarial_ood", None)
    report = evaluate_robustness(detector, known, unknown, fit_images, attacks=attacks, **options)
    assert report.to_dict() == expected.to_dict()
    with pytest.raises(ValueError, match="`attacks` must be of `ood_images` and `targets`, 5 and 16 in number"):
        evaluate_robustness(detector, known, unknown[:5], fit_images, attacks=attacks, **options)
    alone = evaluate_robustness(detector, known, unknown, fit_images, attacks=attacks[0], **options)
    assert alone.to_dict() == expected.to_dict()
    with pytest.raises(TypeError, match="`attacks` must be results of `adversarial_ood`, got str"):
        evaluate_robustness(detector, known, unknown, fit_images, attacks=["patchy"], **options)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`attacks` must differ in `smoothness`, got patchy, patchy"):
        evaluate_robustness(detector, known, unknown, fit_images, attacks=attacks * 2, **options)


def test_attacks_of_something_else_are_refused(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {**FAST, "defences": []}
    attack = adversarial_ood(unknown, fit_images, encoder, 1, smoothness=0)
    detector = OODDetector(encoder, LABELS, "mcm")
    used = int(attack.target_rows[0])
    others = [*fit_images[:used], known[0], *fit_images[used + 1 :]]
    with pytest.raises(ValueError, match="`attacks` must be of `ood_images` in their order, but patchy has another"):
        evaluate_robustness(detector, known, unknown[::-1], fit_images, attacks=[attack], **options)
    with pytest.raises(
        ValueError, match=f"`attacks` must be of `targets` in .* another image in place of number {used}"
    ):
        evaluate_robustness(detector, known[1:], unknown, others, attacks=[attack], **options)
    # The same images may come in another way.
    files = [tmp_path / f"{row}.png" for row in range(len(unknown))]
    for file, picture in zip(files, unknown, strict=True):
        picture.save(file)
    evaluate_robustness(detector, known, files, fit_images, attacks=[attack], **options)
    with torch.no_grad():
        encoder.model.visual_projection.weight.mul_(-1)
    changed = OODDetector(encoder, LABELS, "mcm")
    with pytest.raises(ValueError, match="`attacks` must be on the image encoder of the detector, .* on another one"):
        evaluate_robustness(changed, known, unknown, fit_images, attacks=[attack], **options)


def test_few_images_have_no_interval(
    encoder: DualEncoder, known: list[Any], unknown: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    options: dict[str, Any] = {**FAST, "smoothness": [0], "defences": []}
    for id_images, ood_images in ((known, unknown[:1]), (known[:9], unknown)):
        caplog.clear()
        report = evaluate_robustness(detector, id_images, ood_images, pictures(2, seed=7, dark=True), **options)
        assert "there are no intervals, which would be made of too few; give at least 10 of each" in caplog.text
        row = report.row("patchy")
        assert row.auroc.estimate == auroc(row.id_scores, row.ood_scores)
        assert math.isnan(row.auroc.low) and math.isnan(row.fpr95.high)
        entry = json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]
        assert entry["auroc"]["low"] is entry["fpr95"]["high"] is None
        text = report.to_markdown()
        assert "[" not in text and "nan" not in text and "bootstrap intervals" not in text
    caplog.clear()
    report = evaluate_robustness(detector, known, unknown, pictures(2, seed=7, dark=True), **options)
    assert "intervals" not in caplog.text and "with 95 % bootstrap intervals" in report.to_markdown()


def test_a_detector_that_does_not_know_its_images(
    encoder: DualEncoder,
    known: list[Any],
    fit_images: list[Any],
    unknown: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit(fit_images, use_cache=False)
    detector._fitted_digests = frozenset()
    report = evaluate_robustness(detector, known, unknown, fit_images[:3], smoothness=[0], defences=[], **FAST)
    assert "does not say which images it was fitted on" in caplog.text
    assert report.images["targets that the detector was fitted on"] is None
    assert "targets that the detector was fitted on: unknown" in report.to_markdown()


def test_a_detector_that_was_fitted_on_embeddings(
    encoder: DualEncoder, known: list[Any], fit_images: list[Any], unknown: list[Any]
) -> None:
    features = extract_features(fit_images, encoder, batch_size=32, use_cache=False).embeddings
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit(features)
    with pytest.raises(ValueError, match="`id_images` has 16 of 16 images that the method was fitted on"):
        evaluate_robustness(detector, fit_images, unknown, known[:3], smoothness=[0], defences=[], **FAST)


def test_numbers_for_json_and_tables(encoder: DualEncoder, known: list[Any], unknown: list[Any]) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    report = evaluate_robustness(
        detector, known, unknown, pictures(2, seed=7, dark=True), smoothness=[0], defences=["blur"], **FAST
    )
    numbers = json.loads(json.dumps(report.to_dict()))
    about = numbers["detector"]
    assert (about["method"], about["labels"], about["threshold"]) == ("mcm", LABELS, None)
    assert about["templates"] == detector.templates and about["settings"] == {"temperature": 1.0}
    assert about["model"]["weights_sha256"] == encoder.describe()["weights_sha256"]
    assert {"revision", "dtype", "image_processor_sha256"} <= about["model"].keys()
    assert numbers["convention"] == dict(CONVENTION)
    assert {"clipn_hf", "torch", "python"} <= numbers["versions"].keys()
    assert numbers["data_sha256"]["ID"] == data_digest([image_digest(image)[0] for image in known])
    assert numbers["data_sha256"].keys() == {"ID", "OOD", "targets"}
    assert numbers["attacks"][0]["encoder"] == encoder.describe_images()
    assert "224 pixels" not in report.to_markdown()
    assert repr(report) == "RobustnessReport(method='mcm', model='CLIPModel', attacks=['patchy'], 4 rows)"
    assert numbers["bootstrap"] == {"resamples": 20, "confidence": 0.95, "seed": 0}
    assert numbers["attacks"][0]["settings"]["steps"] == 40
    assert numbers["defences"] == {"blur": DEFENCES["blur"].title}
    row = report.row("patchy", defence="blur")
    (entry,) = [one for one in numbers["rows"] if (one["attack"], one["defence"]) == ("patchy", "blur")]
    assert entry["auroc"]["estimate"] == row.auroc.estimate
    assert f"{100 * row.auroc.estimate:.1f} [{100 * row.auroc.low:.1f}, " in report.to_markdown()
    with pytest.raises(ValueError, match="no row of attack 'rough', bank None and defence 'none'"):
        report.row("rough")


def test_the_smoothness_of_the_paper_is_for_larger_images(
    encoder: DualEncoder, known: list[Any], unknown: list[Any]
) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    report = evaluate_robustness(
        detector, known, unknown, pictures(2, seed=7, dark=True), smoothness=5000, defences="blur", **FAST
    )
    assert [row.attack for row in report.rows] == [CLEAN, "smooth-5000"] * 2
    assert [row.defence for row in report.rows[::2]] == [UNDEFENDED, "blur"]
    assert "The smoothness of 5000 is made for images of 224 pixels. On these of 32" in report.to_markdown()
    gentle = adversarial_ood(unknown, pictures(2, seed=7, dark=True), encoder, 1, smoothness=400)
    assert "224 pixels" not in describe_attacks([gentle])


def test_names_are_escaped_in_tables(
    encoder: DualEncoder, known: list[Any], unknown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (robustness, robustness_report):
        monkeypatch.setattr(module, "DEFENCES", {"a|b": Defence("a|b", "nothing", lambda picture: picture)})
    detector = OODDetector(encoder, LABELS, "mcm")
    report = evaluate_robustness(
        detector, known, unknown, pictures(2, seed=7, dark=True), smoothness=[0], defences="a|b", **FAST
    )
    assert "| a\\|b |" in report.to_markdown()


def test_what_is_refused(
    encoder: DualEncoder,
    known: list[Any],
    fit_images: list[Any],
    unknown: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing is attacked before it is found out.
    monkeypatch.setattr(robustness, "adversarial_ood", None)
    mcm = OODDetector(encoder, LABELS, "mcm")
    neighbors = OODDetector(encoder, LABELS, "nearest_neighbors")
    fitted = OODDetector(encoder, LABELS, "nearest_neighbors").fit(known, use_cache=False)
    cases: list[tuple[OODDetector, tuple[Any, Any, Any], dict[str, Any], str]] = [
        (mcm, (known, unknown, fit_images), {"defences": ["prayer"]}, "`defences` must be some of blur, jpeg, resize"),
        (mcm, (known, unknown, fit_images), {"smoothness": []}, "There is no attack; give at least one `smoothness`"),
        (mcm, (known, unknown, fit_images), {"defences": "jpg"}, "`defences` must be some of .* got 'jpg'"),
        (mcm, (known, unknown, fit_images), {"seed": 2**70}, r"`seed` must be below 2\*\*64"),
        (mcm, (known, unknown, fit_images), {"batch_size": 0}, "`batch_size` must be a positive integer"),
        (mcm, (known, unknown, fit_images), {"resamples": 0}, "`resamples` must be a positive integer"),
        (mcm, (known, [*unknown, known[0]], fit_images), {}, "`ood_images` has 1 of 11 .* among `id_images`, too"),
        (mcm, (known, [*unknown, fit_images[0]], fit_images), {}, "`ood_images` has 1 of 11 .* among `targets`, too"),
        (mcm, (known, unknown, known[:3]), {}, "`id_images` has 3 of 12 .* among `targets`, too"),
        (mcm, ([*known, "x.jpg"], unknown, fit_images), {}, r"Cannot read ID image 12 \(x.jpg\)"),
        (mcm, (known, ["x.jpg"], fit_images), {}, r"Cannot read OOD image 0 \(x.jpg\)"),
        (mcm, (known, unknown, ["x.jpg"]), {}, r"Cannot read target 0 \(x.jpg\)"),
        (mcm, (known, unknown, fit_images), {"attacks": []}, "`attacks` is empty; give at least one, or leave it out"),
        (mcm, (known, unknown, fit_images), {"lr": -1}, "`lr` must be finite and above 0, got -1"),
        (mcm, (known, unknown, fit_images), {"smoothness": [-1]}, "`smoothness` must be finite and at least 0"),
        (neighbors, (known, unknown, fit_images), {"fit_images": unknown}, "`ood_images` has 10 .* `fit_images`"),
        (
            neighbors,
            (known, unknown, fit_images),
            {"fit_images": fit_images, "fit_labels": ["cat"]},
            "`fit_labels` must be one per image, got 1 for 16 `fit_images`",
        ),
        (mcm, ([], unknown, fit_images), {}, "`id_images` is empty"),
        (neighbors, (known, unknown, fit_images), {}, "must be fitted before it judges"),
        (fitted, (known, unknown, fit_images), {}, "`id_images` has 12 of 12 images that the method was fitted on"),
        (neighbors, (known, unknown, fit_images), {"fit_images": known}, "`id_images` has 12 .* among `fit_images`"),
        (neighbors, (known, unknown, known), {"fit_images": fit_images}, "`id_images` has .* among `targets`, too"),
    ]
    for detector, images, changes, message in cases:
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(detector, *images, **{**FAST, "steps": 1, "smoothness": [0], **changes})
    for name, value, message in (
        ("smoothness", None, r"`smoothness` must be a number or several, got None; give such as 5000 or \[5000, 0\]"),
        ("smoothness", [None], "`smoothness` must be a number, got None"),
        ("defences", None, r"`defences` must be names of defences, got None; give \[\] for none"),
        ("defences", 3, "`defences` must be names of defences, got 3"),
        ("steps", True, "`steps` must be a positive integer, got True"),
        ("steps", 1.0, "`steps` must be a positive integer, got 1.0"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            evaluate_robustness(mcm, known, unknown, fit_images, **{**FAST, "smoothness": [0], name: value})
    with pytest.raises(TypeError, match="`detector` must be an OODDetector, got str; load a saved one"):
        evaluate_robustness("my-detector", known, unknown, fit_images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="All of `fit_images` are targets"):
        evaluate_robustness(
            neighbors, known, unknown, fit_images[:6], fit_images=fit_images[:6], smoothness=[0], **FAST
        )


def test_precomputed_embeddings_are_refused(known: list[Any], unknown: list[Any]) -> None:
    from clipn_hf import PrecomputedEncoder

    encoder = PrecomputedEncoder(dict(zip(LABELS, torch.eye(2), strict=True)), "some-clip", ["{}"], 10.0)
    with pytest.raises(TypeError, match="computed before, and no model for images"):
        evaluate_robustness(OODDetector(encoder, LABELS, "mcm"), known, unknown, known)
