# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Verdicts, scores and records of the detector, for every method and every bad input."""

import io
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, scores
from clipn_hf.images import ImageError
from clipn_hf.methods import METHODS

LABELS = ["cat", "dog", "red bird", "tree"]
every_method = pytest.mark.parametrize("method", METHODS)
rule_free = [name for name, method in METHODS.items() if method.is_ood is None]


def noise(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [noise(seed) for seed in range(7)]


@pytest.fixture
def encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor)


def embeddings(encoder: DualEncoder, images: list[Image.Image]) -> torch.Tensor:
    return encoder.image_embeddings(encoder.pixel_values(images))


@every_method
def test_record_says_what_the_scores_say(encoder: DualEncoder, method: str) -> None:
    detector = OODDetector(encoder, LABELS, method)
    embeddings = encoder.image_embeddings(encoder.pixel_values(IMAGES))
    text, no_text = encoder.class_embeddings(LABELS)
    assert no_text is not None
    similarity = embeddings @ text.T
    logits, no_logits = encoder.logit_scale * similarity, encoder.logit_scale * embeddings @ no_text.T
    arguments = {"mcm": [similarity], "atd": [logits, no_logits], "ctw": [logits, no_logits]}.get(method, [logits])
    expected = getattr(scores, method)(*arguments)
    rule = getattr(scores, f"{method}_is_ood", None)
    verdicts = [None] * len(IMAGES) if rule is None else rule(logits, no_logits).tolist()

    torch.testing.assert_close(detector.score(IMAGES), expected, rtol=1e-5, atol=1e-6)
    results = detector(IMAGES)
    assert len(results) == len(IMAGES)
    for result, score, verdict, row in zip(results, expected.tolist(), verdicts, logits, strict=True):
        assert list(result) == ["is_ood", "ood_score", "threshold", "method", "label", "score", "labels"]
        assert result["is_ood"] is verdict
        assert type(result["ood_score"]) is float
        assert result["ood_score"] == pytest.approx(score, rel=1e-5, abs=1e-6)
        assert result["threshold"] is None
        assert result["method"] == method
        probabilities = row.softmax(dim=0)
        assert result["label"] == LABELS[int(row.argmax())]
        assert result["score"] == pytest.approx(probabilities.max().item(), rel=1e-5)
        assert [entry["label"] for entry in result["labels"]] == [LABELS[i] for i in row.argsort(descending=True)]
        assert sum(entry["score"] for entry in result["labels"]) == pytest.approx(1, abs=1e-6)
        assert result["labels"][0] == {"label": result["label"], "score": result["score"]}


@every_method
def test_threshold_is_strict(encoder: DualEncoder, method: str) -> None:
    detector = OODDetector(encoder, LABELS, method)
    score = detector.score(IMAGES[:1]).item()
    for threshold, verdict in [(score, False), (math.nextafter(score, -math.inf), True), (score + 1, False)]:
        detector.threshold = threshold
        (result,) = detector(IMAGES[:1])
        assert result["is_ood"] is verdict
        assert result["threshold"] == threshold
    detector.threshold = np.float32(0.5)  # type: ignore[assignment]
    assert type(detector(IMAGES[0])[0]["threshold"]) is float


@every_method
def test_batch_size_and_order_do_not_matter(encoder: DualEncoder, method: str) -> None:
    detector = OODDetector(encoder, LABELS, method)
    expected = detector.score(IMAGES, batch_size=1)
    assert expected.dtype == torch.float32
    for batch_size in (2, 7, 32):
        torch.testing.assert_close(detector.score(IMAGES, batch_size=batch_size), expected, rtol=1e-4, atol=1e-6)
    backwards = detector.score(IMAGES[::-1], batch_size=3).flip(0)
    torch.testing.assert_close(backwards, expected, rtol=1e-4, atol=1e-6)


@every_method
def test_embeddings_give_what_their_images_give(encoder: DualEncoder, method: str) -> None:
    detector = OODDetector(encoder, LABELS, method)
    embeddings = encoder.image_embeddings(encoder.pixel_values(IMAGES))
    expected = detector.score(IMAGES)
    for given in (embeddings, 3 * embeddings, embeddings.numpy(), embeddings.double().numpy()):
        torch.testing.assert_close(detector.score(given), expected, rtol=1e-5, atol=1e-6)
        found = [result["ood_score"] for result in detector.results(given)]
        assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", rule_free)
def test_missing_verdict_is_explained_once(
    encoder: DualEncoder, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = OODDetector(encoder, LABELS, method)
    detector.score(IMAGES)
    assert not caplog.records
    assert [result["is_ood"] for result in detector(IMAGES, batch_size=2)] == [None] * 7
    (record,) = caplog.records
    assert f"`is_ood` is None, because method {method} decides by threshold alone" in record.getMessage()
    assert "use one of atd, ctw with a CLIPN model" in record.getMessage()
    caplog.clear()
    OODDetector(encoder, LABELS, method)(IMAGES)
    OODDetector(encoder, LABELS, method, threshold=0.5)(IMAGES)
    OODDetector(encoder, LABELS, "atd")(IMAGES)
    assert not caplog.records


@every_method
@pytest.mark.parametrize("delta", [None, 0.1])
def test_calibrated_threshold_refuses_the_promised_share(
    encoder: DualEncoder, method: str, delta: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(100, 24, generator=generator)
    detector = OODDetector(encoder, LABELS, method)
    calibration = detector.calibrate(embeddings, max_id_rejection=0.1, delta=delta)
    assert detector.threshold == calibration.threshold
    assert (calibration.n, calibration.max_id_rejection, calibration.delta) == (100, 0.1, delta)
    # floor(0.1 * 101) - 1 = 9 of 100 lie above; with confidence the binomial tail leaves fewer
    above = sum(bool(result["is_ood"]) for result in detector.results(embeddings))
    assert above == sum(detector.score(embeddings) > calibration.threshold)
    assert above == 9 if delta is None else above < 9


def test_too_few_images_for_the_promise(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    with pytest.raises(ValueError, match="19"):
        detector.calibrate(IMAGES[:3])
    assert detector.threshold is None


def test_top_k_labels(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS)
    everything = detector(IMAGES, top_k=None)
    assert all(len(result["labels"]) == len(LABELS) for result in everything)
    for top_k in (1, 2, 4, 100):
        for result, full in zip(detector(IMAGES, top_k=top_k), everything, strict=True):
            assert result["labels"] == full["labels"][:top_k]
            assert result["label"] == full["label"]
    many = OODDetector(encoder, [f"{label} {number}" for label in LABELS for number in range(2)])
    for judge in (many, lambda images, **options: many.results(embeddings(encoder, images), **options)):
        assert [len(result["labels"]) for result in judge(IMAGES[:2])] == [5, 5]
        assert [len(result["labels"]) for result in judge(IMAGES[:2], top_k=None)] == [8, 8]
    for top_k in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="`top_k` must be a positive integer, got"):
            detector(IMAGES, top_k=top_k)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [0, -3, 2.0, False])
def test_batch_size_must_be_positive(encoder: DualEncoder, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got"):
        OODDetector(encoder, LABELS)(IMAGES, batch_size=batch_size)


def test_settings_reach_the_score(encoder: DualEncoder) -> None:
    hot, cold = (OODDetector(encoder, LABELS, "mcm", temperature=t).score(IMAGES) for t in (1.0, 0.01))
    torch.testing.assert_close(hot, OODDetector(encoder, LABELS, "mcm").score(IMAGES))
    assert (cold < hot).all()
    with pytest.raises(TypeError, match="Method atd does not know `temperature`"):
        OODDetector(encoder, LABELS, "atd", temperature=1.0)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        OODDetector(encoder, LABELS, "mcm", temperature=0.0).score(IMAGES)


def test_plain_clip_says_which_methods_it_serves(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    for method in METHODS.values():
        if "no" in method.needs:
            message = (
                f'Method {method.name} needs a CLIPN model with a "no" text encoder, got CLIPModel; '
                "use a trained CLIPN, or one of mcm, msp, max_logit, energy."
            )
            with pytest.raises(ValueError, match=f"^{message}$"):
                OODDetector(tiny_clip, LABELS, method.name, processor=tiny_processor)
        else:
            detector = OODDetector(tiny_clip, LABELS, method.name, processor=tiny_processor)
            assert torch.isfinite(detector.score(IMAGES)).all()


def test_one_label(encoder: DualEncoder) -> None:
    for method in METHODS.values():
        if method.min_labels == 1:
            (result,) = OODDetector(encoder, ["cat"], method.name)(IMAGES[0])
            assert (result["label"], result["score"]) == ("cat", 1.0)
            assert math.isfinite(result["ood_score"])
        else:
            with pytest.raises(ValueError, match=r"needs at least 2 labels, got \['cat'\]; use one of atd, ctw, max"):
                OODDetector(encoder, ["cat"], method.name)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], ValueError, "`labels` is empty"),
        (["cat", "cat"], ValueError, "'cat' twice"),
        (["cat", ""], ValueError, r"`labels\[1\]` is empty"),
        (["cat", " \n"], ValueError, r"`labels\[1\]` is empty"),
        (["cat", 3], TypeError, r"`labels\[1\]` must be a string, got int"),
        ("cat", TypeError, "must be a list of strings"),
        (None, TypeError, "must be a list of strings"),
    ],
)
def test_bad_labels(encoder: DualEncoder, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OODDetector(encoder, labels)


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        (["a photo"], ValueError, "must contain `{}` exactly once"),
        (["{} or {}"], ValueError, "must contain `{}` exactly once"),
        ([], ValueError, "is empty"),
        ("a {}", TypeError, "must be a list of strings"),
    ],
)
def test_bad_templates(encoder: DualEncoder, templates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"`templates.*{message}"):
        OODDetector(encoder, LABELS, templates=templates)
    with pytest.raises(error, match=f"`no_templates.*{message}"):
        OODDetector(encoder, LABELS, templates=["a {}"], no_templates=templates)


@pytest.mark.parametrize(
    ("threshold", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("0.5", TypeError),
        (True, TypeError),
        ([0.5], TypeError),
    ],
)
def test_bad_thresholds(encoder: DualEncoder, threshold: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`threshold` must be"):
        OODDetector(encoder, LABELS, threshold=threshold)
    detector = OODDetector(encoder, LABELS)
    with pytest.raises(error, match="`threshold` must be"):
        detector.threshold = threshold


@pytest.mark.parametrize(
    ("name", "suggested"), [("treshold", "threshold"), ("hypothesis_template", "templates"), ("procesor", "processor")]
)
def test_misspelt_arguments(encoder: DualEncoder, name: str, suggested: str) -> None:
    known = "`temperature`, `processor`, `templates`, `no_templates`, `threshold`, `device`, `dtype`"
    with pytest.raises(
        TypeError, match=rf"^Method mcm does not know `{name}`, did you mean `{suggested}`\? Known are: {known}\.$"
    ):
        OODDetector(encoder, LABELS, "mcm", **{name: 0.5})
    with pytest.raises(TypeError, match=r"does not know `color`\. Known are"):
        OODDetector(encoder, LABELS, "atd", color=1)


def test_representation_is_short(encoder: DualEncoder, clipn_folder: Path) -> None:
    assert repr(OODDetector(encoder, LABELS)) == "OODDetector('CLIPNModel', 4 labels, method='atd', threshold=None)"
    detector = OODDetector(str(clipn_folder), LABELS, "mcm", threshold=0.5, device="cpu", temperature=2.0)
    assert repr(detector) == (f"OODDetector('{clipn_folder}', 4 labels, method='mcm', threshold=0.5, temperature=2.0)")
    detector = OODDetector(encoder, ["cat"], "ctw")
    assert "1 label," in repr(detector)


def test_unknown_method(encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match="`method` must be one of atd, ctw, .* got 'clipn'"):
        OODDetector(encoder, LABELS, "clipn")


def test_bad_arguments_are_found_before_a_model_is_loaded() -> None:
    for wrong in ({"labels": []}, {"method": "odin"}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="labels|odin|threshold"):
            OODDetector("no/such-model", **{"labels": LABELS, **wrong})


def test_bad_embeddings(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS)
    with pytest.raises(ValueError, match=r"shape \(images, 24\) for this model, got \(2, 23\)"):
        detector.score(torch.zeros(2, 23))
    with pytest.raises(ValueError, match=r"shape \(images, 24\) for this model, got \(24,\)"):
        detector.results(torch.zeros(24))
    with pytest.raises(ValueError, match="NaN or infinite"):
        detector.score(np.full((2, 24), np.nan))


def test_model_by_folder_and_by_object(
    clipn_folder: Path, clip_folder: Path, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor
) -> None:
    expected = OODDetector(tiny_clip, LABELS, "energy", processor=tiny_processor, device="cpu").score(IMAGES)
    for source in (clip_folder, str(clip_folder)):
        torch.testing.assert_close(OODDetector(source, LABELS, "energy", device="cpu").score(IMAGES), expected)
    assert OODDetector(clipn_folder, LABELS, device="cpu")(IMAGES[0])[0]["is_ood"] in (True, False)
    with pytest.raises(TypeError, match="pass processor="):
        OODDetector(tiny_clip, LABELS, "energy")
    with pytest.raises(TypeError, match="belong to the encoder"):
        OODDetector(DualEncoder(tiny_clip, tiny_processor), LABELS, "energy", device="cpu")


class Images(Dataset[Any]):
    """A dataset as users write them."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


def as_dataset(images: list[bytes], **columns: list[Any]) -> datasets.Dataset:
    encoded = [{"bytes": data, "path": None} for data in images]
    features = datasets.Features({"picture": datasets.Image(), **{name: datasets.Value("int64") for name in columns}})
    return datasets.Dataset.from_dict({"picture": encoded, **columns}, features=features)


def many_inputs(tmp_path: Path) -> dict[str, Any]:
    files = [png(image) for image in IMAGES]
    paths = [tmp_path / f"{number}.png" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    dataset = as_dataset(files, label=list(range(len(files))))
    return {
        "PIL": IMAGES,
        "paths": paths,
        "strings": [str(path) for path in paths],
        "bytes": files,
        "views": [memoryview(data) for data in files],
        "files": [io.BytesIO(data) for data in files],
        "arrays": [np.asarray(image) for image in IMAGES],
        "tuple": tuple(IMAGES),
        "generator": (image for image in IMAGES),
        "iterator": iter(files),
        "map": map(str, paths),
        "torch dataset": Images(IMAGES),
        "torch dataset of dictionaries": Images([{"image": image, "label": 0} for image in IMAGES]),
        "torch stream": Stream(files),
        "datasets": dataset,
        "datasets without decoding": dataset.cast_column("picture", datasets.Image(decode=False)),
        "datasets stream": dataset.to_iterable_dataset(),
        "list of rows": list(dataset.rename_column("picture", "image")),
        "column of paths": datasets.Dataset.from_dict({"image": [str(path) for path in paths], "label": [0] * 7}),
    }


def test_every_kind_of_input(encoder: DualEncoder, tmp_path: Path) -> None:
    detector = OODDetector(encoder, LABELS)
    expected = detector.score(IMAGES)
    for kind, images in many_inputs(tmp_path).items():
        torch.testing.assert_close(detector.score(images, batch_size=3), expected, msg=lambda m, k=kind: f"{k}: {m}")
    singles = [IMAGES[0], png(IMAGES[0]), tmp_path / "0.png", str(tmp_path / "0.png"), np.asarray(IMAGES[0])]
    singles += [{"image": single} for single in singles]
    singles += [{"image": {"bytes": png(IMAGES[0]), "path": None}}, {"bytes": None, "path": str(tmp_path / "0.png")}]
    for single in singles:
        torch.testing.assert_close(detector.score(single), expected[:1])
        assert len(detector(single)) == 1


def test_no_images_give_no_results(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS)
    for nothing in ([], (), iter([]), Images([])):
        assert detector(nothing) == []
        assert detector.score(nothing).shape == (0,)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_broken_image_is_named(encoder: DualEncoder, tmp_path: Path, batch_size: int) -> None:
    detector = OODDetector(encoder, LABELS)
    missing, files = tmp_path / "missing.png", [png(image) for image in IMAGES]
    files[5] = files[5][:60]
    with pytest.raises(ImageError, match=r"image 2 \(.*missing\.png\): there is no such file"):
        detector([*IMAGES[:2], missing], batch_size=batch_size)
    for many in (files, iter(files), as_dataset(files), as_dataset(files).to_iterable_dataset()):
        with pytest.raises(ImageError, match=r"image 5 \(the 60 bytes given\)"):
            detector(many, batch_size=batch_size)
    with pytest.raises(ImageError, match=r"Cannot read .*missing\.png: there is no such file"):
        detector(missing)
    with pytest.raises(TypeError, match=r"image 1: .* got NoneType"):
        detector([IMAGES[0], None])
    with pytest.raises(TypeError, match=r"got NoneType"):
        detector(None)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 3), (4000, 4)])
def test_odd_sizes(encoder: DualEncoder, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 30, 90))
    square = OODDetector(encoder, LABELS).score(Image.new("RGB", (32, 32), (200, 30, 90)))
    torch.testing.assert_close(OODDetector(encoder, LABELS).score(image), square, rtol=1e-4, atol=1e-5)
