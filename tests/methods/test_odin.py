# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The one method that judges other pixels than it is given: the step, and everybody who has to take it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder, OODDetector, PrecomputedEncoder, pipeline
from clipn_hf.features import extract_features
from clipn_hf.methods import MethodInputs, method_inputs
from clipn_hf.methods.odin import ODIN
from clipn_hf.records import judge_files
from clipn_hf.scores import msp, odin

LABELS = ["cat", "dog", "car"]
# Of Gaussian pixels, far from what one step is rounded by.
MAGNITUDE = 0.02


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def detector(encoder: DualEncoder) -> OODDetector:
    return OODDetector(encoder, LABELS, "odin", magnitude=MAGNITUDE)


@pytest.fixture
def files(images: Path) -> list[str]:
    return sorted(str(path) for path in images.rglob("*") if path.is_file())


def by_hand(
    encoder: DualEncoder, files: list[str], magnitude: float = MAGNITUDE, temperature: float = 1000.0
) -> tuple[Tensor, Tensor]:
    """Scores and embeddings, image by image as the paper writes it, in float64."""
    model = encoder.model.double()
    text, _ = encoder.class_embeddings(LABELS)
    std = torch.tensor(encoder.processor.image_processor.image_std, dtype=torch.float64)[:, None, None]
    scores, embeddings = [], []
    for file in files:

        def logits(pixels: Tensor) -> tuple[Tensor, Tensor]:
            image = model.get_image_features(pixel_values=pixels)
            image = getattr(image, "pooler_output", image)
            image = image / image.norm()
            return encoder.logit_scale * image @ text.double().T, image

        pixels = encoder.prepare_images([file])["pixel_values"].double().requires_grad_()
        loss = -(logits(pixels)[0] / temperature).log_softmax(dim=1).amax()
        (gradient,) = torch.autograd.grad(loss, pixels)
        changed = pixels - magnitude * (gradient / std).sign() / std
        found, embedding = logits(changed.detach())
        scores.append((-temperature * (found / temperature).softmax(dim=1).amax().mul(len(LABELS)).log()).item())
        embeddings.append(embedding.detach())
    encoder.model.float()
    return torch.tensor(scores), torch.cat(embeddings).float()


@pytest.mark.parametrize("temperature", [1000.0, 1.0])
def test_equals_the_paper(encoder: DualEncoder, files: list[str], temperature: float) -> None:
    detector = OODDetector(encoder, LABELS, "odin", magnitude=MAGNITUDE, temperature=temperature)
    found = detector.score(files)
    expected, embeddings = by_hand(encoder, files, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    prepared = detector.embed_prepared(encoder.prepare_images(files))
    torch.testing.assert_close(prepared, embeddings, rtol=1e-3, atol=1e-4)
    # The step is towards more confidence, and is no small one.
    plain = odin(method_inputs(encoder.image_embeddings(encoder.prepare_images(files)), *texts(encoder)).logits)
    if temperature == 1000.0:
        assert (found < plain - 0.01).all()


def texts(encoder: DualEncoder) -> tuple[Tensor, None, float]:
    return encoder.class_embeddings(LABELS)[0], None, encoder.logit_scale


@pytest.mark.parametrize("temperature", [1000.0, 2.0])
def test_without_a_step_it_is_msp_at_that_temperature(
    encoder: DualEncoder, files: list[str], temperature: float
) -> None:
    without = OODDetector(encoder, LABELS, "odin", magnitude=0.0, temperature=temperature)
    other = OODDetector(encoder, LABELS, "msp", temperature=temperature)
    found, expected = without.score(files), other.score(files)
    probability = (-found.double() / temperature).exp() / len(LABELS)
    torch.testing.assert_close(1 - probability, expected.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(without.predict(files), other.predict(files))


def test_a_step_is_in_units_of_the_processor(encoder: DualEncoder, files: list[str]) -> None:
    """The pixels of all channels move by as many shades, whatever they are divided by."""
    prepared = encoder.prepare_images(files)
    std = torch.tensor([0.5, 0.1, 2.0])[:, None, None]

    def compare(pixels: Tensor) -> MethodInputs:
        return method_inputs(encoder.differentiable_image_embeddings(pixels), *texts(encoder))

    assert ODIN.perturb is not None
    changed = ODIN.perturb(prepared["pixel_values"], compare, std, magnitude=0.01)
    moved = ((changed - prepared["pixel_values"]) * std).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=1e-5)
    assert ODIN.perturb(prepared["pixel_values"], compare, std, magnitude=0.0) is prepared["pixel_values"]


def test_step_of_a_detector_is_as_wide_for_any_processor(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    for image_std in ([0.5, 0.5, 0.5], [0.25, 0.5, 1.0]):
        processor = CLIPProcessor(
            CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_std=image_std
            ),
            tiny_processor.tokenizer,
        )
        encoder = DualEncoder(tiny_clip, processor)
        embed = encoder.image_embeddings
        monkeypatch.setattr(
            encoder, "image_embeddings", lambda inputs, embed=embed: given.append(inputs) or embed(inputs)
        )
        detector = OODDetector(encoder, LABELS, "odin", magnitude=MAGNITUDE)
        prepared = encoder.prepare_images(files)
        detector.embed_prepared(prepared)
        moved = (given.pop()["pixel_values"] - prepared["pixel_values"]) * torch.tensor(image_std)[:, None, None]
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, MAGNITUDE), rtol=1e-2, atol=1e-5)
        assert set(moved.sign().unique().tolist()) == {-1.0, 1.0}


def test_images_do_not_influence_each_other(detector: OODDetector, files: list[str]) -> None:
    files = 4 * files
    together = detector.score(files)
    torch.testing.assert_close(detector.score(files, batch_size=1), together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(detector.score(files[::-1], batch_size=3).flip(0), together, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_on_the_model(detector: OODDetector, files: list[str]) -> None:
    encoder = detector.image_encoder
    encoder.model.train()
    before = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    prepared = encoder.prepare_images(files)
    pixels = prepared["pixel_values"].clone()
    embeddings = detector.embed_prepared(prepared)
    assert not embeddings.requires_grad
    assert encoder.model.training
    assert all(weight.grad is None and weight.requires_grad for weight in encoder.model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.model.state_dict().items())
    assert torch.equal(prepared["pixel_values"], pixels)
    assert not prepared["pixel_values"].requires_grad


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_whatever_is_switched_off_around_it(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, files: list[str], switch: Any
) -> None:
    expected = OODDetector(DualEncoder(tiny_clip, tiny_processor), LABELS, "odin").score(files)
    for weight in tiny_clip.parameters():
        weight.requires_grad_(False)
    with switch():
        found = OODDetector(DualEncoder(tiny_clip, tiny_processor), LABELS, "odin").score(files)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_do_not_vanish_in_half_precision(encoder: DualEncoder, files: list[str], dtype: torch.dtype) -> None:
    detector = OODDetector(encoder, LABELS, "odin", magnitude=MAGNITUDE)
    prepared = encoder.prepare_images(files)
    std = torch.tensor(encoder.processor.image_processor.image_std)[:, None, None]

    def step() -> Tensor:
        assert ODIN.perturb is not None
        changed = ODIN.perturb(prepared["pixel_values"], detector._compare_pixels(prepared), std, magnitude=MAGNITUDE)
        return (changed - prepared["pixel_values"]).sign()

    expected = step()
    # As on an accelerator; on a CPU the encoder would compute in float32.
    encoder.model.to(dtype)
    found = step()
    assert (found == 0).float().mean() < 0.01
    assert (found == expected).float().mean() > (0.97 if dtype == torch.float16 else 0.85)


def test_gradients_do_not_vanish_for_images_of_which_the_model_is_certain() -> None:
    """`log p` is 0 for them in float32, and so is its gradient."""
    direction = torch.tensor([[3.0, -2.0, 0.0]])

    def compare(pixels: Tensor) -> MethodInputs:
        logits = torch.cat([200 + pixels @ direction.T, -pixels @ direction.T], dim=1)
        return MethodInputs(logits, logits)

    assert ODIN.perturb is not None
    changed = ODIN.perturb(torch.zeros(1, 3), compare, torch.ones(3), temperature=1.0, magnitude=0.5)
    assert changed.tolist() == [[0.5, -0.5, 0.0]]


def test_gradient_that_overflows_is_refused() -> None:
    def compare(pixels: Tensor) -> MethodInputs:
        logits = torch.cat([pixels.sqrt(), -pixels], dim=1)
        return MethodInputs(logits, logits)

    assert ODIN.perturb is not None
    with pytest.raises(ValueError, match="The gradient .* is not finite"):
        ODIN.perturb(torch.zeros(1, 1), compare, torch.ones(1))


def test_everybody_takes_the_step(detector: OODDetector, files: list[str], tmp_path: Path) -> None:
    """Calls, scores, features, files and pipelines, one by one and in batches; saved and loaded, too."""
    expected, nearest = detector.score_and_predict(files)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    detector.threshold = float(expected.median())

    def check(results: list[dict[str, Any]]) -> None:
        torch.testing.assert_close(torch.tensor([result["ood_score"] for result in results]), expected, **close)
        assert [result["label"] for result in results] == [LABELS[position] for position in nearest]

    torch.testing.assert_close(detector.score(files), expected, **close)
    assert torch.equal(detector.predict(files), nearest)
    check([*detector(files)])
    check([record for record, _ in judge_files(detector, files, 5, 2)])
    features = extract_features(files, detector.image_encoder, embed=detector.embed_prepared)
    scores, _ = detector.score_and_predict(features.embeddings, from_prepared=True)
    torch.testing.assert_close(scores, expected, **close)
    check([*detector.results(features.embeddings, from_prepared=True)])

    detector.save_pretrained(tmp_path / "detector")
    loaded = OODDetector.from_pretrained(tmp_path / "detector")
    assert loaded.settings == {"temperature": 1000.0, "magnitude": MAGNITUDE}
    torch.testing.assert_close(loaded.score(files), expected, **close)
    for batch_size in (1, 3):
        pipe = pipeline("ood-detection", model=str(tmp_path / "detector"), batch_size=batch_size)
        check(pipe(files))
        check([pipe(file) for file in files])
        check([*pipe(iter(files))])
    plain = pipeline("ood-detection", model=detector.image_encoder.model, processor=detector.image_encoder.processor)
    check(plain(files, candidate_labels=LABELS, method="odin", magnitude=MAGNITUDE, threshold=0.0))
    # The same pipeline, of another method.
    others = OODDetector(detector.image_encoder, LABELS, "mcm").score(files)
    found = [result["ood_score"] for result in plain(files, candidate_labels=LABELS, method="mcm")]
    torch.testing.assert_close(torch.tensor(found), others, **close)


def test_thresholds_are_those_of_images_that_took_the_step(detector: OODDetector, many_images: Path) -> None:
    files = sorted(str(path) for path in many_images.rglob("*.png"))
    known, unknown = files[:40], files[40:]
    calibration = detector.calibrate([*known, known[0]], 0.1, "quantile", ood_images=unknown)
    expected = detector.score(known)
    threshold = detector.threshold
    assert threshold is not None
    assert (expected > threshold + 1e-4).float().mean() <= 0.1
    assert calibration.n == 40
    assert detector.p_values(known).min() > 0
    detector.calibrate(known, 0.1, "quantile", per_label=False)
    other = detector.with_changes(magnitude=0.0)
    assert other.threshold is None
    assert detector.threshold is not None


def test_nothing_of_other_pixels_is_kept_on_disk(detector: OODDetector, files: list[str], tmp_path: Path) -> None:
    encoder, cache = detector.image_encoder, tmp_path / "cache"
    plain = extract_features(files, encoder, cache_dir=cache)
    changed = extract_features(files, encoder, cache_dir=cache, embed=detector.embed_prepared)
    assert changed.num_encoded == len(files)
    assert changed.digests == plain.digests
    assert not torch.allclose(changed.embeddings, plain.embeddings, atol=1e-4)
    again = extract_features(files, encoder, cache_dir=cache)
    assert again.num_encoded == 0
    assert torch.equal(again.embeddings, plain.embeddings)


def test_embeddings_are_refused(detector: OODDetector, files: list[str]) -> None:
    """All but for predictions: there is no telling how the pixels would have moved."""
    embeddings = detector.image_encoder.image_embeddings(detector.image_encoder.prepare_images(files))
    message = "Method odin changes the pixels .* these are embeddings .* give the images, or use one of mcm, .*, vim"
    detector.threshold = 0.0
    for judge in (
        detector.score,
        detector.score_and_predict,
        detector.results,
        detector.calibrate,
        lambda given: detector.calibrate(files, 0.4, "quantile", ood_images=given),
    ):
        for given in (embeddings, embeddings.numpy()):
            with pytest.raises(ValueError, match=message):
                judge(given)
    plain = OODDetector(detector.encoder, LABELS, "msp")
    assert torch.equal(detector.predict(embeddings), plain.predict(embeddings))


def test_encoders_without_pixels_are_refused() -> None:
    bank = {label: np.eye(3, dtype=np.float32)[row] for row, label in enumerate(LABELS)}
    encoder = PrecomputedEncoder(bank, "some model", ["a photo of a {}."])
    with pytest.raises(ValueError, match="Method odin needs images, and a model to differentiate through, got Prec"):
        OODDetector(encoder, LABELS, "odin")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"magnitude": -0.1}, ValueError, "`magnitude` must be finite and not negative, such as 0.0014, got -0.1"),
        ({"magnitude": float("nan")}, ValueError, "`magnitude` must be finite"),
        ({"magnitude": "big"}, TypeError, "`magnitude` must be a number, got str 'big'"),
        ({"temperature": 0.0}, ValueError, "`temperature` must be positive"),
    ],
)
def test_bad_settings_are_refused(
    encoder: DualEncoder, files: list[str], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        OODDetector(encoder, LABELS, "odin", **settings).score(files)


def test_one_image_of_another_kind(detector: OODDetector) -> None:
    picture = Image.new("RGB", (40, 90), "red")
    (result,) = detector(picture)
    assert result["ood_score"] == pytest.approx(detector.score([picture]).item(), abs=1e-4)
    assert msp(torch.zeros(1, 3)).item() == pytest.approx(2 / 3)
