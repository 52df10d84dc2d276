# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A method that looks at the patches of images: everybody who has to let it, and what is kept of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, SiglipConfig, SiglipModel

from clipn_hf import DualEncoder, OODDetector, PrecomputedEncoder, detector_state, evaluate_suite, pipeline
from clipn_hf.encoders import local_image_features
from clipn_hf.features import extract_features
from clipn_hf.methods import METHODS, MethodInputs
from clipn_hf.records import judge_files
from clipn_hf.scores import combine_local, gl_mcm, mcm

LABELS = ["cat", "dog", "car"]


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def detector(encoder: DualEncoder) -> OODDetector:
    return OODDetector(encoder, LABELS, "gl_mcm")


@pytest.fixture
def files(images: Path) -> list[str]:
    return sorted(str(path) for path in images.rglob("*") if path.is_file())


@torch.no_grad()
def by_hand(encoder: DualEncoder, files: list[str], *settings: float) -> Tensor:
    """Image by image, in float64."""
    model = encoder.model.double()
    text, _ = encoder.class_embeddings(LABELS)
    scores = []
    for file in files:
        pixels = encoder.prepare_images([file])["pixel_values"].double()
        vectors = [model.get_image_features(pixels).pooler_output, local_image_features(model, pixels)]
        cosines = [vector / vector.norm(dim=-1, keepdim=True) @ text.double().T for vector in vectors]
        scores.append(gl_mcm(*cosines, *settings))
    encoder.model.float()
    return torch.cat(scores)


@pytest.mark.parametrize(("temperature", "local_weight"), [(1.0, 1.0), (0.05, 3.0), (1.0, 0.0)])
def test_score_of_a_detector(encoder: DualEncoder, files: list[str], temperature: float, local_weight: float) -> None:
    detector = OODDetector(encoder, LABELS, "gl_mcm", temperature=temperature, local_weight=local_weight)
    expected = by_hand(encoder, files, temperature, local_weight)
    torch.testing.assert_close(detector.score(files), expected, rtol=1e-4, atol=1e-6)
    assert detector.score(files).std() > 1e-4
    assert torch.equal(detector.predict(files), OODDetector(encoder, LABELS, "mcm").predict(files))
    whole = OODDetector(encoder, LABELS, "mcm", temperature=temperature).score(files)
    assert torch.allclose(detector.score(files), whole, atol=1e-6) == (local_weight == 0)


def test_everybody_lets_it_look(encoder: DualEncoder, detector: OODDetector, files: list[str]) -> None:
    """Detector, pipeline and command judge files alike, whatever the batches."""
    expected = detector.score(files, batch_size=1)
    pipe = pipeline("ood-detection", model=encoder.model, processor=encoder.processor, device="cpu")
    for batch_size in (1, 2, len(files)):
        called = detector(files, batch_size=batch_size)
        piped = pipe(files, candidate_labels=LABELS, method="gl_mcm", batch_size=batch_size)
        recorded = [record for record, _ in judge_files(detector, files, 5, batch_size)]
        for found in (called, piped, recorded):
            scores = torch.tensor([result["ood_score"] for result in found])
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
            assert [result["label"] for result in found] == [result["label"] for result in called]
        torch.testing.assert_close(detector.score(files, batch_size=batch_size), expected, rtol=0, atol=1e-6)
        scores, nearest = detector.score_and_predict(files, batch_size)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
        assert torch.equal(nearest, detector.predict(files))


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_whatever_is_switched_off_around_it(encoder: DualEncoder, files: list[str], switch: Any) -> None:
    with switch():
        found = OODDetector(encoder, LABELS, "gl_mcm").score(files)
    assert torch.equal(found, OODDetector(encoder, LABELS, "gl_mcm").score(files))


def test_no_more_than_a_number_is_kept_of_patches(
    encoder: DualEncoder, detector: OODDetector, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = encoder.prepare_images(files)
    kept = detector.embed_prepared(prepared)
    assert kept.shape == (len(files), detector.prepared_width) == (len(files), detector.dim + 1)
    assert torch.equal(kept[:, :-1], encoder.image_embeddings(prepared))
    # Of many labels and patches, a few images at a time are compared.
    counts = []
    summarize = METHODS["gl_mcm"].summarize
    assert summarize is not None

    def spy(patch_similarity: Tensor, temperature: float = 1.0) -> Tensor:
        counts.append(len(patch_similarity))
        return summarize(patch_similarity, temperature)

    monkeypatch.setattr(detector_state, "_PATCH_COSINES", 2 * 16 * len(LABELS) + 1)
    row = detector.method
    object.__setattr__(row, "summarize", spy)
    try:
        torch.testing.assert_close(detector.embed_prepared(prepared), kept, rtol=0, atol=1e-6)
    finally:
        object.__setattr__(row, "summarize", summarize)
    assert counts == [2, 2, 1]
    # Others keep what they kept.
    assert OODDetector(encoder, LABELS, "mcm").embed_prepared(prepared).shape == (len(files), detector.dim)


def test_embeddings_alone_do_not_tell(encoder: DualEncoder, detector: OODDetector, files: list[str]) -> None:
    features = extract_features(files, encoder)
    prepared = detector.embed_prepared(encoder.prepare_images(files))
    for given in (features, features.embeddings, features.embeddings.numpy(), prepared):
        for use in (detector.score, detector.results, detector.calibrate, detector.score_and_predict):
            with pytest.raises(ValueError, match="gl_mcm looks at the patches of images, but .*; give the images, or"):
                use(given)
    with pytest.raises(TypeError, match="These are embeddings"):
        detector(features)
    # Labels are those that embeddings say, too.
    assert torch.equal(detector.predict(features), detector.predict(files))
    # What was prepared for this method is of no use to others, and the other way round.
    other = OODDetector(encoder, LABELS, "mcm")
    for one, given in ((other, prepared), (detector, features.embeddings)):
        with pytest.raises(ValueError, match=r"must have shape \(images, 2\d\) for this model, got \(5, 2\d\)"):
            one.results(given, from_prepared=True)
    precomputed = PrecomputedEncoder({label: torch.rand(24) for label in LABELS}, "some-clip", ["{}"])
    with pytest.raises(ValueError, match=r"^Method gl_mcm needs images.* got PrecomputedEncoder; give a CLIP whose"):
        OODDetector(precomputed, LABELS, "gl_mcm")


@pytest.fixture
def without_patches(tiny_processor: CLIPProcessor) -> DualEncoder:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tiny_processor.tokenizer), "max_position_embeddings": 77, "projection_size": 32}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    return DualEncoder(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), tiny_processor)


def test_models_without_such_patches_are_refused(without_patches: DualEncoder, detector: OODDetector) -> None:
    message = "^Method gl_mcm needs images, .* got SiglipModel; give a CLIP whose image encoder is a vision trans.*mcm"
    with pytest.raises(ValueError, match=message):
        OODDetector(without_patches, LABELS, "gl_mcm")
    other = OODDetector(without_patches, LABELS, "mcm")
    assert other.score(Image.new("RGB", (8, 8))).shape == (1,)
    with pytest.raises(ValueError, match=message):
        other.with_changes(method="gl_mcm")
    encoder = detector.encoder
    with pytest.raises(ValueError, match=message):
        detector.encoder = without_patches
    assert detector.encoder is encoder


def test_settings_may_decide_whether_patches_are_read(
    encoder: DualEncoder, without_patches: DualEncoder, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(inputs: MethodInputs, local_weight: float = 0.0) -> Tensor:
        assert (inputs.patch_summary is not None) == (local_weight > 0)
        whole = mcm(inputs.similarity)
        return whole if inputs.patch_summary is None else combine_local(whole, inputs.patch_summary, local_weight)

    sometimes = replace(
        METHODS["gl_mcm"],
        name="sometimes",
        needs=frozenset({"global"}),
        score=score,
        check=None,
        reads_patches=lambda settings: settings["local_weight"] > 0,
    )
    monkeypatch.setattr(
        "clipn_hf.detector.get_method", lambda name: sometimes if name == "sometimes" else METHODS[name]
    )
    detector = OODDetector(encoder, LABELS, "sometimes")
    features = extract_features(files, encoder)
    torch.testing.assert_close(detector.score(features), detector.score(files), rtol=0, atol=1e-6)
    assert not detector.judges_images
    reads = detector.with_changes(local_weight=2.0)
    assert reads.prepared_width == detector.prepared_width + 1
    expected = OODDetector(encoder, LABELS, "gl_mcm", local_weight=2.0).score(files)
    torch.testing.assert_close(reads.score(files), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="sometimes looks at the patches of images"):
        reads.score(features)

    without = OODDetector(without_patches, LABELS, "sometimes")
    assert without.score(files).shape == (len(files),)
    for use in (without.with_changes, partial(OODDetector, without_patches, LABELS, "sometimes")):
        message = "^Method sometimes needs images, .* got SiglipModel; give `local_weight=0.0`, or give a CLIP whose"
        with pytest.raises(ValueError, match=message):
            use(local_weight=2.0)


def test_calibrated_on_images(
    encoder: DualEncoder, detector: OODDetector, files: list[str], many_images: Path, tmp_path: Path
) -> None:
    photos = sorted(str(path) for path in many_images.rglob("*.png"))
    calibration = detector.calibrate(photos, 0.2, batch_size=7)
    scores = detector.score(photos)
    assert calibration.n == len(photos)
    assert detector.threshold is not None
    assert scores.min() <= detector.threshold <= scores.max()
    assert (scores > detector.threshold + 1e-6).float().mean() <= 0.2
    p = torch.from_numpy(detector.p_values(files))
    assert [result["p_value"] for result in detector(files)] == pytest.approx(p.tolist())
    ranks = torch.stack([(scores >= score - 1e-7).sum() for score in detector.score(files)])
    torch.testing.assert_close(p, (1 + ranks.double()) / (1 + len(photos)))

    detector.save_pretrained(tmp_path / "detector")
    loaded = OODDetector.from_pretrained(tmp_path / "detector", device="cpu")
    pipe = pipeline("ood-detection", model=str(tmp_path / "detector"), device="cpu")
    assert loaded.threshold == detector.threshold
    assert torch.equal(loaded.score(files), detector.score(files))
    assert loaded(files) == detector(files)
    assert loaded(files, batch_size=1) == detector(files, batch_size=1) == pipe(files)
    assert json.loads((tmp_path / "detector" / "detector.json").read_text())["settings"] == {
        "temperature": 1.0,
        "local_weight": 1.0,
    }


def test_per_label_and_with_examples_of_unknown_ones(
    encoder: DualEncoder, files: list[str], many_images: Path
) -> None:
    photos = sorted(str(path) for path in many_images.rglob("*.png"))
    # To the tiny model each of these looks more like some of the photos.
    detector = OODDetector(encoder, ["of", "without"], "gl_mcm")
    calibration = detector.calibrate(photos, 0.5, per_label=True)
    nearest = detector.predict(photos)
    assert {group.label: group.n for group in calibration.groups} == {
        label: int((nearest == position).sum()) for position, label in enumerate(detector.labels)
    }
    calibration = detector.calibrate(photos, 0.5, ood_images=files, max_ood_acceptance=0.5)
    assert calibration.ood_data_sha256 is not None
    assert {result["verdict"] for result in detector(photos)} <= {"known", "unknown", "unsure"}


def test_changes_make_it_another_one(encoder: DualEncoder, detector: OODDetector, files: list[str]) -> None:
    expected = detector.score(files)
    plain = OODDetector(encoder, LABELS, "mcm").with_changes(method="gl_mcm")
    assert torch.equal(plain.score(files), expected)
    back = detector.with_changes(method="mcm")
    assert not back.judges_images
    torch.testing.assert_close(back.score(files), OODDetector(encoder, LABELS, "mcm").score(files))
    detector.threshold = 0.5
    weighted = detector.with_changes(local_weight=0.0)
    assert weighted.threshold is None
    torch.testing.assert_close(weighted.score(files), back.score(files), rtol=0, atol=1e-6)
    # Patches are compared with the labels that there are now.
    other = detector.with_changes(labels=["tree", "bird"])
    assert torch.equal(other.score(files), OODDetector(encoder, ["tree", "bird"], "gl_mcm").score(files))
    templates = detector.with_changes(templates=["the {}"])
    found = OODDetector(encoder, LABELS, "gl_mcm", templates=["the {}"]).score(files)
    assert torch.equal(templates.score(files), found)
    assert not torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("local_weight", -1.0, ValueError),
        ("local_weight", "1", TypeError),
        ("temperature", 0.0, ValueError),
        ("temperature", None, TypeError),
    ],
)
def test_bad_settings_are_refused_at_once(encoder: DualEncoder, setting: str, value: Any, error: type) -> None:
    with pytest.raises(error, match=f"^`{setting}` must be .*, got "):
        OODDetector(encoder, LABELS, "gl_mcm", **{setting: value})


def test_its_threshold_cannot_be_guessed_from_texts(detector: OODDetector) -> None:
    with pytest.raises(ValueError, match="gl_mcm cannot be told from texts; call `calibrate` with images, or .*mcm"):
        detector.guess_threshold()


def test_commands_know_it(run: Any, images: Path, many_images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "detector"
    code, out, err = run(
        "calibrate", many_images, "--recursive", "--labels", "cat,dog", "--model", clipn_folder, "--method", "gl_mcm",
        "--setting", "local_weight=0.5", "--max-id-rejection", 0.5, "--output", folder,
    )  # fmt: skip
    assert code == 0, err
    loaded = OODDetector.from_pretrained(folder, device="cpu")
    assert (loaded.method.name, loaded.settings["local_weight"]) == ("gl_mcm", 0.5)
    code, out, err = run("detect", images, "-r", "--detector", folder, "--format", "jsonl")
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    scores = loaded.score([record["file"] for record in records])
    assert [record["ood_score"] for record in records] == pytest.approx(scores.tolist(), abs=1e-6)
    code, _, err = run(
        "detect", images, "--labels", "cat,dog", "--model", clipn_folder, "--method", "gl_mcm", "--setting",
        "local_weight=-1",
    )  # fmt: skip
    assert code == 1
    assert "local_weight" in err


def test_evaluated_where_it_is_asked_for(encoder: DualEncoder, many_images: Path, images: Path) -> None:
    noise = {"name": "Noise", "group": "far", "source": {"imagefolder": str(images)}}
    known = {"name": "Known", "source": {"imagefolder": str(many_images)}}
    suite = {"name": "tiny", "description": "Noise.", "labels": ["cat", "dog"], "id": known, "ood": [noise]}
    result = evaluate_suite(suite, encoder, ["mcm", "gl_mcm"], use_cache=False, progress=False, resamples=0)
    found = {evaluation.record["method"]: evaluation for evaluation in result.evaluations}
    detector = OODDetector(encoder, found["gl_mcm"].labels, "gl_mcm")
    for kind in ("id", "ood"):
        one = getattr(found["gl_mcm"], f"{kind}_set")
        rows = getattr(found["gl_mcm"], f"{kind}_rows")
        expected = detector.score([one.images[int(row)] for row in rows])
        scores = torch.from_numpy(getattr(found["gl_mcm"], f"{kind}_scores"))
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    # All images go through the model once more, which is done for those who name it.
    unasked = evaluate_suite(suite, encoder, use_cache=False, progress=False, resamples=0)
    assert "gl_mcm" not in {evaluation.record["method"] for evaluation in unasked.evaluations}
