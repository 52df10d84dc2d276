# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The one method that needs an "unknown" prompt, and with some settings patches: everybody who has to find them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, PrecomputedEncoder, pipeline
from clipn_hf.features import extract_features
from clipn_hf.methods import METHODS
from clipn_hf.modeling import add_context_tokens
from clipn_hf.records import judge_files

LABELS = ["cat", "dog", "car"]
SETTINGS: list[dict[str, Any]] = [
    {"combination": "none"},
    {"combination": "mcm", "weight": 3.0, "temperature": 0.1},
    {"combination": "gl_mcm", "weight": 0.5, "temperature": 0.2, "local_weight": 3.0},
]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=["none", "mcm", "gl_mcm"])


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=2, unknown=True, num_unknown_tokens=2)
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def files(images: Path) -> list[str]:
    return sorted(str(path) for path in images.rglob("*") if path.is_file())


def by_hand(encoder: DualEncoder, files: list[str], settings: dict[str, Any]) -> Tensor:
    """As the texts say it, with embeddings of the one tower and the other, in float64."""
    prepared = encoder.prepare_images(files)
    images, patches = (one.double() for one in encoder.image_and_local_embeddings(prepared))
    text, _ = encoder.class_embeddings(LABELS)
    assert encoder.learned_prompts is not None
    assert encoder.learned_prompts.unknown_prompt is not None
    unknown = encoder.text_embeddings([encoder.learned_prompts.unknown_prompt])[0]
    cosines, local = images @ text.double().T, patches @ text.double().T
    logits = encoder.logit_scale * torch.cat([cosines, images @ unknown.double()[:, None]], dim=1)
    probability = logits.softmax(dim=1)[:, -1]
    if settings["combination"] == "none":
        return probability.float()
    temperature, count = settings["temperature"], len(LABELS) * settings["weight"]
    exponentials = (cosines / temperature).exp()
    together = exponentials.sum(dim=1) + count * (images @ unknown.double() / temperature).exp()
    known = exponentials.amax(dim=1) / together
    if settings["combination"] == "gl_mcm":
        best = (local / temperature).softmax(dim=2).amax(dim=(1, 2))
        known = (known + settings["local_weight"] * best) / (1 + settings["local_weight"])
    return (1 - known).float()


@each_setting
def test_equals_its_formula(encoder: DualEncoder, files: list[str], settings: dict[str, Any]) -> None:
    detector = OODDetector(encoder, LABELS, "clip_os", **settings)
    found = detector.score(files)
    torch.testing.assert_close(found, by_hand(encoder, files, settings), rtol=1e-4, atol=1e-6)
    assert len(found.unique()) == len(files)
    torch.testing.assert_close(detector.score(files, batch_size=2), found, rtol=1e-5, atol=1e-6)
    # What is predicted is one of the labels, whatever the unknown prompt says.
    assert torch.equal(detector.predict(files), OODDetector(encoder, LABELS, "mcm").predict(files))


@each_setting
def test_everybody_finds_the_unknown_prompt(
    encoder: DualEncoder, files: list[str], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Calls, scores, features, files and pipelines, one by one and in batches; saved and loaded, too."""
    detector = OODDetector(encoder, LABELS, "clip_os", **settings)
    expected, nearest = detector.score_and_predict(files)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
    detector.threshold = float(expected.median())

    def check(results: list[dict[str, Any]]) -> None:
        torch.testing.assert_close(torch.tensor([result["ood_score"] for result in results]), expected, **close)
        assert [result["label"] for result in results] == [LABELS[position] for position in nearest]

    check([*detector(files)])
    check([record for record, _ in judge_files(detector, files, 5, 2)])
    features = extract_features(files, encoder, embed=detector.embed_prepared)
    assert features.embeddings.shape[1] == detector.prepared_width
    scores, _ = detector.score_and_predict(features.embeddings, from_prepared=True)
    torch.testing.assert_close(scores, expected, **close)
    check([*detector.results(features.embeddings, from_prepared=True)])

    detector.save_pretrained(tmp_path / "detector")
    loaded = OODDetector.from_pretrained(tmp_path / "detector")
    assert loaded.settings == detector.settings
    assert torch.equal(loaded.score(files), expected)
    for batch_size in (1, 3):
        pipe = pipeline("ood-detection", model=str(tmp_path / "detector"), batch_size=batch_size)
        check(pipe(files))
        check([pipe(file) for file in files])
    plain = pipeline("ood-detection", model=encoder.model, processor=encoder.processor)
    check(plain(files, candidate_labels=LABELS, method="clip_os", threshold=0.0, **settings))
    # The same pipeline, of another method.
    others = OODDetector(encoder, LABELS, "mcm").score(files)
    found = [result["ood_score"] for result in plain(files, candidate_labels=LABELS, method="mcm")]
    torch.testing.assert_close(torch.tensor(found), others, **close)


@each_setting
def test_calibration(encoder: DualEncoder, many_images: Path, settings: dict[str, Any]) -> None:
    files = sorted(str(path) for path in many_images.rglob("*.png"))
    detector = OODDetector(encoder, LABELS, "clip_os", **settings)
    known, unknown = files[:40], files[40:]
    assert detector.calibrate(known, 0.1, "quantile", ood_images=unknown).n == 40
    assert detector.threshold is not None
    assert (detector.score(known) > detector.threshold + 1e-6).float().mean() <= 0.1
    assert detector.p_values(known).min() > 0
    for other in SETTINGS:
        changed = detector.with_changes(**{**METHODS["clip_os"].settings, **other})
        assert (changed.threshold is None) == (other != settings)
        torch.testing.assert_close(
            changed.score(files[:3]), OODDetector(encoder, LABELS, "clip_os", **other).score(files[:3])
        )


@each_setting
def test_only_a_threshold_decides(encoder: DualEncoder, files: list[str], settings: dict[str, Any]) -> None:
    detector = OODDetector(encoder, LABELS, "clip_os", **settings)
    assert {result["verdict"] for result in detector(files)} == {"undecided"}
    scores = detector.score(files)
    detector.threshold = float(scores.median())
    expected = ["unknown" if score > detector.threshold else "known" for score in scores]
    assert [result["verdict"] for result in detector(files)] == expected


def test_combines_with_mcm_by_default(encoder: DualEncoder, files: list[str]) -> None:
    defaults = {"combination": "mcm", "weight": 0.25, "temperature": 1.0, "local_weight": 1.0}
    assert METHODS["clip_os"].settings == defaults
    found = OODDetector(encoder, LABELS, "clip_os").score(files)
    torch.testing.assert_close(found, by_hand(encoder, files, defaults), rtol=1e-4, atol=1e-6)


def test_on_top_of_clipn(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, files: list[str]) -> None:
    """Beside methods that need its "no" texts."""
    add_context_tokens(tiny_clipn, tiny_processor, LABELS, num_tokens=2, unknown=True)
    encoder = DualEncoder(tiny_clipn, tiny_processor)
    found = OODDetector(encoder, LABELS, "clip_os").score(files)
    torch.testing.assert_close(found, by_hand(encoder, files, METHODS["clip_os"].settings), rtol=1e-4, atol=1e-6)
    assert OODDetector(encoder, LABELS, "clip_os").with_changes(method="atd").score(files).shape == found.shape


def test_embeddings_will_do_unless_patches_are_read(encoder: DualEncoder, files: list[str]) -> None:
    embeddings = encoder.image_embeddings(encoder.prepare_images(files))
    for settings in SETTINGS[:2]:
        detector = OODDetector(encoder, LABELS, "clip_os", **settings)
        torch.testing.assert_close(detector.score(embeddings), detector.score(files), rtol=1e-5, atol=1e-6)
    detector = OODDetector(encoder, LABELS, "clip_os", combination="gl_mcm")
    with pytest.raises(ValueError, match="clip_os looks at the patches of images") as error:
        detector.score(embeddings)
    # A plain CLIP serves these, and no others of embeddings.
    advice = 'give the images, or give `combination="mcm"`, or use one of '
    named = str(error.value).partition(advice)[2].removesuffix(".").split(", ")
    assert "mcm" in named
    assert not {"clip_os", "gl_mcm", "atd", "ctw", "sigmoid", "odin"} & {*named}
    with pytest.raises(ValueError, match=r"looks at the patches of images, .*; give the images, or use one of"):
        OODDetector(encoder, LABELS, "gl_mcm").score(embeddings)


def test_encoders_without_an_unknown_prompt_are_refused(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    message = r'Method clip_os needs a model with a learned "unknown" prompt, .*few_shot\.py`, or use one of'
    with pytest.raises(ValueError, match=message):
        OODDetector(DualEncoder(tiny_clip, tiny_processor), LABELS, "clip_os")
    bank = {label: torch.eye(3)[row].numpy() for row, label in enumerate(LABELS)}
    with pytest.raises(ValueError, match=message):
        OODDetector(PrecomputedEncoder(bank, "some model", ["a photo of a {}."]), LABELS, "clip_os")
    add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=2)
    with pytest.raises(ValueError, match=message):
        OODDetector(DualEncoder(tiny_clip, tiny_processor), LABELS, "clip_os")


def test_encoders_without_patches_are_refused_with_gl_mcm(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=2, unknown=True)
    # As that of SigLIP has one.
    tiny_clip.vision_model.head = torch.nn.Identity()
    encoder = DualEncoder(tiny_clip, tiny_processor)
    message = r'got CLIPModel; give `combination="mcm"`, or give a CLIP whose .*, or use one of (?!.*clip_os).*mcm'
    with pytest.raises(ValueError, match=message):
        OODDetector(encoder, LABELS, "clip_os", combination="gl_mcm")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"combination": "msp"}, ValueError, "`combination` must be one of 'mcm', 'gl_mcm', 'none', got 'msp'"),
        ({"weight": -1}, ValueError, "`weight` must be finite and not negative"),
        ({"weight": "1"}, TypeError, "`weight` must be a number"),
        ({"temperature": 0.0}, ValueError, "`temperature` must be positive"),
        ({"local_weight": -1}, ValueError, "`local_weight` must be finite and not negative"),
        (
            {"combination": "none", "weight": 3.0},
            ValueError,
            "`weight` has no effect with `combination` 'none', got 3.0; leave it at 0.25, or use 'mcm' or 'gl_mcm'.",
        ),
        ({"combination": "none", "temperature": 0.5}, ValueError, "`temperature` has no effect with .* use 'mcm' or"),
        (
            {"combination": "mcm", "local_weight": 2.0},
            ValueError,
            "`local_weight` has no effect with .* use 'gl_mcm'.",
        ),
    ],
)
def test_bad_settings_are_refused(
    encoder: DualEncoder, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        OODDetector(encoder, LABELS, "clip_os", **settings)


def test_one_label_competes_with_the_unknown_alone(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, files: list[str]
) -> None:
    add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=2, unknown=True)
    encoder = DualEncoder(tiny_clip, tiny_processor)
    for combination in ("none", "mcm"):
        detector = OODDetector(encoder, ["cat"], "clip_os", combination=combination)
        found = detector.score(files)
        assert ((found > 0) & (found < 1)).all()
    message = (
        r"Method clip_os needs at least 2 labels, got \['cat'\]; give `combination=\"mcm\"`, "
        r"or use one of (?!.*(clip_os|sigmoid)).*max_logit"
    )
    with pytest.raises(ValueError, match=message):
        OODDetector(encoder, ["cat"], "clip_os", combination="gl_mcm")
    with pytest.raises(ValueError, match=message):
        detector.with_changes(combination="gl_mcm")
    changed = detector.with_changes(combination="gl_mcm", labels=["cat", "dog"])
    assert changed.score(files).shape == (len(files),)
    with pytest.raises(ValueError, match=message):
        changed.labels = ["cat"]
