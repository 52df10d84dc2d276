# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Verdicts, scores and records of the detector, for every method and every bad input."""

import copy
import io
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.data import Dataset, IterableDataset
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, detector_images, detector_state
from clipn_hf.encoders import PrecomputedEncoder
from clipn_hf.feature_cache import cache_info
from clipn_hf.features import extract_features
from clipn_hf.images import ImageError
from clipn_hf.methods import METHODS, MethodInputs, TrainingInputs

LABELS = ["cat", "dog", "red bird", "tree"]
# Those that need a sigmoid model, or an "unknown" prompt, have tests of their own.
SERVED = [name for name, method in METHODS.items() if not method.needs & {"sigmoid", "unknown"}]
every_method = pytest.mark.parametrize("method", SERVED)
# All others change images before they judge them, or look at their patches.
JUDGES_EMBEDDINGS = [name for name in SERVED if not METHODS[name].judges_images(METHODS[name].settings)]
judges_embeddings = pytest.mark.parametrize("method", JUDGES_EMBEDDINGS)
CANDIDATES = ["car", "house", "moon", "piano", "river", "shoe", "spoon", "table", "violin", "wheel"]
FEW = {"corpus": CANDIDATES, "fraction": 0.6, "filters": (), "max_similarity": None, "use_cache": False}
TRAINING = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
TRAINING_LABELS = [row % len(LABELS) for row in range(40)]
HELD_OUT = torch.randn(100, 24, generator=torch.Generator().manual_seed(2))
rule_free = [name for name in SERVED if METHODS[name].is_ood is None]


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


def trained(encoder: Any, method: str, labels: list[str] = LABELS, **options: Any) -> OODDetector:
    """A detector that is ready, whatever its method needs."""
    if "negatives" in METHODS[method].needs:
        # So warm that scores of random embeddings differ
        options = {"negatives": FEW, "temperature": 1.0, **options}
    if "min_confidence" in METHODS[method].settings:
        # Of random embeddings a model is not certain.
        options = {"min_confidence": None, **options}
    return OODDetector(encoder, labels, method, **options).fit(TRAINING, [row % len(labels) for row in range(40)])


def embeddings(encoder: DualEncoder, images: list[Image.Image]) -> torch.Tensor:
    return encoder.image_embeddings(encoder.prepare_images(images))


@every_method
def test_record_says_what_the_scores_say(encoder: DualEncoder, method: str) -> None:
    row = METHODS[method]
    detector = trained(encoder, method)
    prepared = encoder.prepare_images(IMAGES)
    embeddings = detector.embed_prepared(prepared)[:, : detector.dim]
    text, no_text = encoder.class_embeddings(LABELS, detector.templates)
    assert no_text is not None
    similarity = embeddings @ text.T
    logits, no_logits = encoder.logit_scale * similarity, encoder.logit_scale * embeddings @ no_text.T
    state = {}
    if row.fit is not None:
        learnt_from = TrainingInputs(
            normalize(TRAINING), torch.tensor(TRAINING_LABELS), len(LABELS), text, encoder.logit_scale
        )
        state = row.fit(learnt_from, **row.settings_of(row.fit, detector.settings))
    negatives = None if detector.negatives is None else detector.negatives.embeddings

    def embed_pairs(pairs: torch.Tensor) -> torch.Tensor:
        assert detector.negatives is not None
        texts = [f"{LABELS[label]} and {detector.negatives.labels[other]}" for label, other in pairs.tolist()]
        return encoder.class_embeddings(texts, detector.templates)[0]

    given = MethodInputs(
        similarity, logits, no_logits, embeddings, state, negatives, embed_pairs, text, encoder.logit_scale
    )
    if row.summarize is not None and "patches" in row.needs:
        kept = row.summarize(
            encoder.local_image_embeddings(prepared) @ text.T, **row.settings_of(row.summarize, detector.settings)
        )
        given = replace(given, patch_summary=kept)
    if row.classify is not None:
        # Labels are those of the classifier that was learnt, too.
        logits = row.classify(given)
        given = replace(given, logits=logits)
    expected = row.score(given, **row.settings_of(row.score, detector.settings))
    verdicts = [None] * len(IMAGES) if row.is_ood is None else row.is_ood(given).tolist()

    torch.testing.assert_close(detector.score(IMAGES), expected, rtol=1e-5, atol=1e-6)
    results = detector(IMAGES)
    assert len(results) == len(IMAGES)
    keys = ["verdict", "is_ood", "ood_score", "threshold", "promise", "calibrated_on", "p_value", "method", "label"]
    keys += ["score", "labels", "negatives"]
    for result, score, verdict, values in zip(results, expected.tolist(), verdicts, logits, strict=True):
        assert list(result) == keys
        assert result["is_ood"] is verdict
        assert result["verdict"] == {None: "undecided", True: "unknown", False: "known"}[verdict]
        assert result["promise"] is result["p_value"] is None
        assert type(result["ood_score"]) is float
        assert result["ood_score"] == pytest.approx(score, rel=1e-5, abs=1e-6)
        assert result["threshold"] is None
        assert result["method"] == method
        probabilities = values.softmax(dim=0)
        assert result["label"] == LABELS[int(values.argmax())]
        assert result["score"] == pytest.approx(probabilities.max().item(), rel=1e-5)
        assert [entry["label"] for entry in result["labels"]] == [LABELS[i] for i in values.argsort(descending=True)]
        assert sum(entry["score"] for entry in result["labels"]) == pytest.approx(1, abs=1e-6)
        assert result["labels"][0] == {"label": result["label"], "score": result["score"]}


@every_method
def test_threshold_is_strict(encoder: DualEncoder, method: str) -> None:
    detector = trained(encoder, method)
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
    detector = trained(encoder, method)
    expected = detector.score(IMAGES, batch_size=1)
    assert expected.dtype == torch.float32
    for batch_size in (2, 7, 32):
        torch.testing.assert_close(detector.score(IMAGES, batch_size=batch_size), expected, rtol=1e-4, atol=1e-6)
    backwards = detector.score(IMAGES[::-1], batch_size=3).flip(0)
    torch.testing.assert_close(backwards, expected, rtol=1e-4, atol=1e-6)


@judges_embeddings
def test_embeddings_give_what_their_images_give(encoder: DualEncoder, method: str) -> None:
    detector = trained(encoder, method)
    embeddings = encoder.image_embeddings(encoder.prepare_images(IMAGES))
    expected = detector.score(IMAGES)
    for given in (embeddings, 3 * embeddings, embeddings.numpy(), embeddings.double().numpy()):
        torch.testing.assert_close(detector.score(given), expected, rtol=1e-5, atol=1e-6)
        found = [result["ood_score"] for result in detector.results(given)]
        assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", rule_free)
def test_missing_verdict_is_explained_once(
    encoder: DualEncoder, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = trained(encoder, method)
    caplog.clear()
    detector.score(IMAGES)
    assert not caplog.records
    assert [result["is_ood"] for result in detector(IMAGES, batch_size=2)] == [None] * 7
    (record,) = caplog.records
    assert f"`is_ood` is None, because method {method} decides by threshold alone" in record.getMessage()
    assert "use one of atd, ctw with a CLIPN model" in record.getMessage()
    again = trained(encoder, method)
    caplog.clear()
    again(IMAGES)
    again.with_changes(threshold=0.5)(IMAGES)
    OODDetector(encoder, LABELS, "atd")(IMAGES)
    assert not caplog.records


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
    usable = [name for name in SERVED if "no" not in METHODS[name].needs]
    assert usable[:3] == ["mcm", "gl_mcm", "msp"]
    for method in map(METHODS.__getitem__, SERVED):
        if "no" in method.needs:
            message = (
                f'Method {method.name} needs a CLIPN model with a "no" text encoder, got CLIPModel; '
                f"use a trained CLIPN, or one of {', '.join(usable)}."
            )
            with pytest.raises(ValueError, match=f"^{message}$"):
                OODDetector(tiny_clip, LABELS, method.name, processor=tiny_processor)
        else:
            detector = trained(tiny_clip, method.name, processor=tiny_processor)
            assert torch.isfinite(detector.score(IMAGES)).all()


def test_one_label(encoder: DualEncoder) -> None:
    for method in map(METHODS.__getitem__, SERVED):
        if method.min_labels == 1:
            (result,) = trained(encoder, method.name, ["cat"])(IMAGES[0])
            assert (result["label"], result["score"]) == ("cat", 1.0)
            assert math.isfinite(result["ood_score"])
        else:
            with pytest.raises(ValueError, match=r"needs at least 2 labels, got \['cat'\]; use one of atd, ctw, max"):
                OODDetector(encoder, ["cat"], method.name)


def test_of_methods_for_one_label_those_that_the_model_serves_are_named(
    encoder: DualEncoder, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor
) -> None:
    def named(use: Callable[[], object]) -> set[str]:
        with pytest.raises(ValueError, match=r"needs at least 2 labels, got \['cat'\]; use one of .*\.$") as error:
            use()
        return {*str(error.value).rpartition("use one of ")[2].rstrip(".").split(", ")}

    # What the model serves is not known before it is loaded.
    assert named(lambda: OODDetector(None, ["cat"], "gl_mcm")) == {"max_logit", "energy"}
    plain = DualEncoder(tiny_clip, tiny_processor)
    found = named(lambda: OODDetector(plain, ["cat"], "gl_mcm"))
    assert found == {name for name in SERVED if METHODS[name].min_labels == 1 and "no" not in METHODS[name].needs}
    for model, others in ((plain, found), (encoder, found | {"atd", "ctw"})):
        detector = OODDetector(model, LABELS, "mcm")
        with pytest.raises(ValueError, match="needs at least 2 labels"):
            detector.labels = ["cat"]
        assert named(lambda detector=detector: detector.with_changes(labels=["cat"])) == others
        assert named(lambda detector=detector: detector.with_changes(labels=["cat"], temperature=0.5)) == others


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
        (np.bool_(True), TypeError),
        (np.array([0.1, 0.2]), TypeError),
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
    known = "`temperature`, `processor`, `templates`, `no_templates`, `negatives`, `threshold`, `device`, `dtype`"
    with pytest.raises(
        TypeError, match=rf"^Method mcm does not know `{name}`, did you mean `{suggested}`\? Known are: {known}\.$"
    ):
        OODDetector(encoder, LABELS, "mcm", **{name: 0.5})
    with pytest.raises(TypeError, match=r"does not know `color`\. Known are"):
        OODDetector(encoder, LABELS, "atd", color=1)


@pytest.mark.parametrize("name", ["trust_remote_code", "revision", "attn_implementation"])
def test_arguments_for_loading_a_model_belong_to_the_encoder(clip_folder: Path, name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^`{name}` is for .*`DualEncoder.from_pretrained\(…, {name}=…\)` as `model`"
    ):
        OODDetector(clip_folder, LABELS, "mcm", **{name: True})


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
    for wrong in ({"labels": []}, {"method": "oden"}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="labels|oden|threshold"):
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


def test_labels_come_in_the_order_of_logits_where_probabilities_vanish() -> None:
    encoder = PrecomputedEncoder({"a": [1.0, 0.0], "b": [-1.0, 0.0], "c": [0.0, 1.0]}, "bank", ["{}"], 1000.0)
    detector = OODDetector(encoder, ["a", "b", "c"], "energy")
    (result,) = detector.results(torch.tensor([[1.0, 0.0]]))
    assert [(entry["label"], entry["score"]) for entry in result["labels"]] == [("a", 1.0), ("c", 0.0), ("b", 0.0)]


def test_predictions_are_the_first_labels(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    expected = [LABELS.index(result["label"]) for result in detector(IMAGES)]
    for given in (IMAGES, iter(IMAGES), embeddings(encoder, IMAGES), 5 * embeddings(encoder, IMAGES).numpy()):
        found = detector.predict(given, batch_size=3)
        assert found.dtype == torch.int64
        assert found.tolist() == expected
    for nothing in ([], torch.empty(0, 24)):
        assert detector.predict(nothing).shape == (0,)
        assert detector.predict(nothing).dtype == torch.int64


# Fitting


@every_method
def test_methods_that_need_no_images_are_left_alone(encoder: DualEncoder, method: str) -> None:
    detector = OODDetector(encoder, LABELS, method, threshold=0.5)
    if METHODS[method].fit is None:
        assert detector.fit() is detector
        assert detector.fit(TRAINING, TRAINING_LABELS) is detector
        assert (detector.fitted_on, detector.threshold) == (None, 0.5)
        return
    for judge in (detector, detector.score, detector.results, detector.calibrate):
        with pytest.raises(
            ValueError, match=rf"^Method {method} must be fitted before it judges; call `OODDetector.fit\("
        ):
            judge(HELD_OUT)
    with pytest.raises(ValueError, match="needs ID images to be fitted on; pass them as `id_images`"):
        detector.fit()
    if "training_labels" in METHODS[method].needs:
        with pytest.raises(ValueError, match="needs the labels of these images; pass them as `id_labels`"):
            detector.fit(TRAINING)
    assert detector.fitted_on is None
    assert detector.threshold == 0.5


@pytest.mark.parametrize(
    "id_labels",
    [
        [LABELS[row] for row in TRAINING_LABELS],
        np.array([LABELS[row] for row in TRAINING_LABELS]),
        np.array(TRAINING_LABELS),
        np.array(TRAINING_LABELS, dtype=np.uint8),
        torch.tensor(TRAINING_LABELS),
        [torch.tensor(row) for row in TRAINING_LABELS],
        [np.int64(row) for row in TRAINING_LABELS],
        tuple(TRAINING_LABELS),
        (row for row in TRAINING_LABELS),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_training_labels_may_be_names_or_positions(encoder: DualEncoder, id_labels: Any) -> None:
    expected = trained(encoder, "mahalanobis")
    detector = OODDetector(encoder, LABELS, "mahalanobis").fit(TRAINING, id_labels)
    assert torch.equal(detector.score(HELD_OUT), expected.score(HELD_OUT))
    assert detector.fitted_on == expected.fitted_on
    assert detector.fitted_on is not None
    assert (detector.fitted_on["images"], detector.fitted_on["labelled"]) == (40, True)


@pytest.mark.parametrize(
    ("id_labels", "error", "message"),
    [
        (["cat", "bird"] * 20, ValueError, r"`id_labels\[1\]` must be one of the 4 labels .* got 'bird'; the labels"),
        ([0, 4] * 20, ValueError, r"`id_labels\[1\]` must be .* got 4"),
        ([0, -1] * 20, ValueError, r"`id_labels\[1\]` must be .* got -1"),
        ([0, 1.0] * 20, ValueError, r"`id_labels\[1\]` must be .* got 1\.0"),
        ([True] * 40, ValueError, r"`id_labels\[0\]` must be .* got True"),
        (np.zeros((40, 1), dtype=int), ValueError, r"`id_labels\[0\]` must be .* got \[0\]"),
        ([None] * 40, ValueError, r"`id_labels\[0\]` must be .* got None"),
        ("cat", TypeError, "`id_labels` must be one label per image, got 'cat'"),
        ([0, 1, 2, 3], ValueError, "`id_labels` must be one per image, got 4 for 40 images"),
        ([0, 1] * 20, ValueError, "`id_labels` has no image of"),
    ],
)
def test_bad_training_labels(encoder: DualEncoder, id_labels: Any, error: type[Exception], message: str) -> None:
    detector = trained(encoder, "mahalanobis", threshold=None)
    detector.threshold = 1.0
    expected = detector.score(HELD_OUT)
    with pytest.raises(error, match=message):
        detector.fit(TRAINING, id_labels)
    # What was learnt before is still there.
    assert torch.equal(detector.score(HELD_OUT), expected)
    assert detector.threshold == 1.0


def test_nothing_to_learn_from(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "nearest_neighbors")
    with pytest.raises(ValueError, match="no image embeddings; give those of at least one"):
        detector.fit(torch.empty(0, 24))
    for nothing in ([], iter([])):
        with pytest.raises(ValueError, match="empty; give at least one image"):
            detector.fit(nothing)
    with pytest.raises(ValueError, match="`k`.* 40 images"):
        OODDetector(encoder, LABELS, "nearest_neighbors", k=41).fit(TRAINING)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got 0"):
        detector.fit(IMAGES, batch_size=0)


@every_method
@pytest.mark.parametrize("unit_norm", [True, False])
def test_what_was_learnt_outlives_changes_of_the_embeddings(
    encoder: DualEncoder, method: str, unit_norm: bool
) -> None:
    embeddings = normalize(TRAINING) if unit_norm else TRAINING.clone()
    detector = trained(encoder, method).fit(embeddings, TRAINING_LABELS)
    expected = detector.score(IMAGES)
    embeddings.zero_()
    assert torch.equal(detector.score(IMAGES), expected)


@pytest.mark.filterwarnings("ignore:The covariances of 24 images")
@pytest.mark.parametrize("use_cache", [True, False])
def test_images_that_cannot_be_read_are_left_out(
    encoder: DualEncoder, caplog: pytest.LogCaptureFixture, use_cache: bool
) -> None:
    images = [png(noise(seed)) for seed in range(24)]
    labels = [row % 4 for row in range(24)]
    expected = OODDetector(encoder, LABELS, "mahalanobis").fit(images, labels, use_cache=use_cache)
    damaged, damaged_labels = images[:], labels[:]
    damaged.insert(2, images[0][:70])
    damaged_labels.insert(2, 3)
    caplog.clear()
    detector = OODDetector(encoder, LABELS, "mahalanobis").fit(damaged, damaged_labels, use_cache=use_cache)
    assert "1 of 25 images cannot be read and is left out. Image 2:" in caplog.text
    assert detector.fitted_on == expected.fitted_on
    torch.testing.assert_close(detector.score(HELD_OUT), expected.score(HELD_OUT), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"`id_labels\[3\]` must be one of"):
        detector.fit(damaged, [*damaged_labels[:3], 7, *damaged_labels[4:]], use_cache=use_cache)

    held_out = [png(noise(seed)) for seed in range(100, 120)]
    caplog.clear()
    calibration = detector.calibrate(iter([b"magic", *held_out]), use_cache=use_cache)
    assert "1 of 21 images cannot be read and is left out. Image 0:" in caplog.text
    assert calibration.n == 20


def test_fitting_again_drops_the_threshold(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    detector = trained(encoder, "nearest_neighbors")
    threshold = detector.calibrate(HELD_OUT).threshold
    detector.fit(TRAINING[:30])
    assert detector.threshold is None
    assert detector.calibration is None
    assert caplog.messages == [
        f"The detector has dropped its threshold ({threshold:g}, calibrated on 100 images), because `fit` was called; "
        "call `calibrate` anew."
    ]
    with pytest.raises(ValueError, match="p-values need a calibrated detector"):
        detector.p_values(HELD_OUT)
    # Images of the first time are held out now.
    assert detector.calibrate(TRAINING[30:], 0.2).n == 10


# Calibration


@judges_embeddings
@pytest.mark.parametrize("delta", [None, 0.1])
def test_calibrated_threshold_refuses_the_promised_share(
    encoder: DualEncoder, method: str, delta: float | None
) -> None:
    detector = trained(encoder, method)
    calibration = detector.calibrate(HELD_OUT, max_id_rejection=0.1, delta=delta)
    assert detector.calibration is calibration
    assert detector.threshold == calibration.threshold
    assert (calibration.n, calibration.max_id_rejection, calibration.delta) == (100, 0.1, delta)
    # floor(0.1 * 101) - 1 = 9 of 100 lie above; with confidence the binomial tail leaves fewer
    results = detector.results(HELD_OUT)
    above = sum(result["verdict"] == "unknown" for result in results)
    assert above == sum(detector.score(HELD_OUT) > calibration.threshold)
    assert above == 9 if delta is None else above < 9
    for result, p_value in zip(results, detector.p_values(HELD_OUT), strict=True):
        assert result["is_ood"] is (result["verdict"] == "unknown")
        assert result["p_value"] == p_value
        assert result["promise"] == calibration.promise
        if delta is None:
            # The two ways to decide are one.
            assert (p_value <= 0.1) == result["is_ood"]


@judges_embeddings
def test_same_embeddings_have_the_scores_they_were_calibrated_with(encoder: DualEncoder, method: str) -> None:
    detector = trained(encoder, method)
    detector.calibrate(3 * HELD_OUT)
    p_values = detector.p_values(3 * HELD_OUT)
    # Of 100 images that all differ, each has as many above as its rank says.
    assert sorted(p_values) == pytest.approx([(rank + 1) / 101 for rank in range(1, 101)])


def test_too_few_images_for_the_promise(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm", threshold=0.3)
    with pytest.raises(
        ValueError, match=r"^`id_images` has 3 images, but a promise of at most 5 % needs at least 19\."
    ):
        detector.calibrate(IMAGES[:3])
    with pytest.raises(ValueError, match=r"^`ood_images` has 3 images, but a promise .* needs at least 19\."):
        detector.calibrate(HELD_OUT, ood_images=IMAGES[:3])
    with pytest.raises(ValueError, match="`per_label` leaves too few images .* or leave `per_label` out"):
        detector.calibrate(HELD_OUT[:30], per_label=True)
    for nothing in ([], torch.empty(0, 24)):
        with pytest.raises(ValueError, match="at least one image"):
            detector.calibrate(nothing)
    for wrong in ({"max_id_rejection": 0.0}, {"max_id_rejection": 1.5}, {"delta": 1.0}, {"method": "magic"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            detector.calibrate(HELD_OUT, **wrong)  # type: ignore[arg-type]
    # What was there stays there.
    assert (detector.threshold, detector.calibration) == (0.3, None)
    calibration = detector.calibrate(IMAGES[:3], method="quantile")
    assert calibration.promise.startswith("No promise")
    assert detector(IMAGES[0])[0]["promise"] == calibration.promise


def test_images_that_were_fitted_on_are_not_held_out(encoder: DualEncoder, tmp_path: Path) -> None:
    images = [noise(seed) for seed in range(30)]
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit(images[:8])
    with pytest.raises(ValueError, match="`id_images` has 2 of 24 images that the method was fitted on"):
        detector.calibrate(images[6:])
    paths = [tmp_path / f"{number}.png" for number in range(30)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    by_file = OODDetector(encoder, LABELS, "nearest_neighbors").fit([str(path) for path in paths[:8]])
    with pytest.raises(ValueError, match="`id_images` has 1 of 23 images that the method was fitted on"):
        by_file.calibrate(path.read_bytes() for path in paths[7:])
    assert by_file.calibrate(paths[8:], use_cache=False).n == 22
    detector = trained(encoder, "nearest_neighbors")
    with pytest.raises(ValueError, match="40 of 140 images"):
        detector.calibrate(torch.cat([HELD_OUT, TRAINING]))
    # Methods that learn nothing may be calibrated on anything.
    assert trained(encoder, "mcm").calibrate(TRAINING).n == 40


def test_each_label_has_a_threshold_of_its_own(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    many = torch.randn(600, 24, generator=torch.Generator().manual_seed(3))
    calibration = detector.calibrate(many, 0.1, per_label=True)
    predicted = detector.predict(many)
    groups = {group.label: group for group in calibration.groups}
    assert set(groups) == set(LABELS)
    results = detector.results(many)
    for position, label in enumerate(LABELS):
        mine = [result for result in results if result["label"] == label]
        assert len(mine) == groups[label].n == int((predicted == position).sum())
        assert {result["threshold"] for result in mine} == {groups[label].threshold}
        assert sum(result["verdict"] == "unknown" for result in mine) == int(0.1 * (len(mine) + 1)) - 1
    assert "for each label" in calibration.promise.lower()


def test_a_label_that_no_image_has_gets_no_threshold(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    many = torch.randn(600, 24, generator=torch.Generator().manual_seed(3))
    predicted = detector.predict(many)
    with pytest.raises(
        ValueError, match=r"no image whose most probable label is 'dog'; give images of each label, or"
    ):
        detector.calibrate(many[predicted != 1], per_label=True)
    with pytest.raises(ValueError, match=r"most probable label is 'cat', 'dog', 'tree'; give"):
        detector.calibrate(many[predicted == 2], per_label=True)
    assert detector.threshold is None


def test_three_answers(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    scores = detector.score(HELD_OUT)
    # OOD images that overlap with the ID images
    ood = torch.cat([HELD_OUT[scores > scores.median()] + 1e-3, -HELD_OUT[:50]])
    calibration = detector.calibrate(HELD_OUT, 0.05, ood_images=ood, max_ood_acceptance=0.05)
    assert calibration.known_below is not None
    assert calibration.known_below < calibration.threshold
    results = detector.results(HELD_OUT)
    for result in results:
        score = result["ood_score"]
        verdict = "unknown" if score > calibration.threshold else "unsure"
        assert result["verdict"] == ("known" if score < calibration.known_below else verdict)
        assert result["is_ood"] is {"known": False, "unknown": True, "unsure": None}[result["verdict"]]
        assert result["threshold"] == calibration.threshold
    assert {result["verdict"] for result in results} == {"known", "unknown", "unsure"}


def test_what_was_calibrated_on_is_told(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    first = detector.calibrate(HELD_OUT)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", first.date or "")
    assert detector.calibrate(HELD_OUT.flip(0)).data_sha256 == first.data_sha256
    for other in (HELD_OUT[1:], -HELD_OUT):
        assert detector.calibrate(other).data_sha256 != first.data_sha256
    assert first.ood_data_sha256 is None
    assert first.data_sha256 is not None
    assert first.origin == f"100 images, {first.date}, SHA-256 {first.data_sha256[:16]}…"
    assert {result["calibrated_on"] for result in detector.results(HELD_OUT)} == {detector.calibration.origin}  # type: ignore[union-attr]
    detector.threshold = 0.5
    assert detector.results(HELD_OUT)[0]["calibrated_on"] is None
    both = detector.calibrate(HELD_OUT, ood_images=TRAINING)
    assert both.data_sha256 == first.data_sha256
    assert both.ood_data_sha256 not in (None, first.data_sha256)


def test_copies_are_no_further_draws(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    calibration = detector.calibrate(torch.cat([HELD_OUT, HELD_OUT[:30]]))
    assert (calibration.n, calibration) == (100, detector.calibrate(HELD_OUT))
    assert "30 of the 130 images of `id_images` are copies of others and left out" in caplog.text
    with pytest.raises(ValueError, match="has 1 images, but a promise"):
        detector.calibrate([png(noise(0))] * 30)


def test_an_image_is_either_id_or_ood(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    with pytest.raises(ValueError, match="`ood_images` has 7 of 57 images that are among `id_images`"):
        detector.calibrate(HELD_OUT, ood_images=torch.cat([HELD_OUT[:7], -HELD_OUT[:50]]))
    assert detector.threshold is None


def test_embeddings_of_fitted_images_are_not_held_out(encoder: DualEncoder) -> None:
    images = [png(noise(seed)) for seed in range(30)]
    features = extract_features(images, encoder, progress=False)
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit(images)
    with pytest.raises(ValueError, match="30 of 30 images that the method was fitted on"):
        detector.calibrate(features.embeddings)


def test_per_label_promises_hold_among_images_of_the_same_nearest_label() -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = PrecomputedEncoder({"cat": [1.0, 0.0], "dog": [0.0, 1.0]}, "plane", ["{}"], logit_scale=10.0)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cats and dogs, a quarter of the cats between both and nearer to dogs."""
        angles = torch.cat([0.2 * torch.randn(3 * count // 8, generator=generator).abs(),
                            0.9 + 0.1 * torch.rand(count // 8, generator=generator),
                            1.5 - 0.2 * torch.rand(count // 2, generator=generator)])  # fmt: skip
        return torch.stack([angles.cos(), angles.sin()], dim=1), torch.arange(len(angles)) < count // 2

    detector = OODDetector(encoder, ["cat", "dog"], "mcm")
    calibration = detector.calibrate(draw(4000)[0], 0.1, per_label=True)
    assert "For each label, at most 10 % of new ID images that are nearest to it" in calibration.promise
    images, is_cat = draw(40_000)
    results = detector.results(images)
    unknown = torch.tensor([result["is_ood"] for result in results])
    nearest = torch.tensor([result["label"] == "cat" for result in results])
    for label in (nearest, ~nearest):
        assert unknown[label].float().mean() < 0.12
    # Of the class itself more are refused, which the promise does not deny.
    assert unknown[is_cat].float().mean() > 0.12
    p_values = torch.tensor([result["p_value"] for result in results], dtype=torch.float64)
    assert torch.equal(unknown, p_values <= 0.1)
    np.testing.assert_array_equal(detector.p_values(images), p_values.numpy())


def test_method_and_settings_are_read_only(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    for name, value in (("method", METHODS["energy"]), ("settings", {"temperature": 2.0})):
        with pytest.raises(AttributeError):
            setattr(detector, name, value)
    with pytest.raises(TypeError):
        detector.settings["temperature"] = 2.0  # type: ignore[index]


def test_embeddings_are_judged_by_results(encoder: DualEncoder) -> None:
    with pytest.raises(TypeError, match="judge them by `results` or `score`"):
        OODDetector(encoder, LABELS, "mcm")(HELD_OUT)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got None"):
        OODDetector(encoder, LABELS, "mcm").score(IMAGES, batch_size=None)  # type: ignore[arg-type]


def test_a_threshold_set_by_hand_promises_nothing(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    with pytest.raises(ValueError, match="p-values need a calibrated detector; call `calibrate`"):
        detector.p_values(HELD_OUT)
    threshold = detector.calibrate(HELD_OUT, ood_images=TRAINING).threshold
    detector.threshold = threshold
    assert detector.calibration is None
    (result,) = detector(IMAGES[0])
    assert result["promise"] is result["p_value"] is None
    with pytest.raises(ValueError, match="p-values need"):
        detector.p_values(HELD_OUT)


@judges_embeddings
def test_autocast_of_others_changes_no_score(encoder: DualEncoder, method: str) -> None:
    detector = trained(encoder, method)
    expected = detector.score_and_predict(HELD_OUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detector.score_and_predict(HELD_OUT)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_precision(encoder: DualEncoder, dtype: torch.dtype) -> None:
    given, held_out = TRAINING.to(dtype), HELD_OUT.to(dtype)
    for method in JUDGES_EMBEDDINGS:
        detector = trained(encoder, method).fit(given, TRAINING_LABELS)
        assert detector.score(held_out).dtype == torch.float32
        detector.calibrate(held_out, 0.1)
        assert sum(bool(result["is_ood"]) for result in detector.results(held_out)) == 9
        assert torch.equal(detector.score(held_out), detector.score(held_out.float()))


@judges_embeddings
def test_no_embeddings_give_no_results(encoder: DualEncoder, method: str) -> None:
    detector = trained(encoder, method)
    detector.calibrate(HELD_OUT)
    for nothing in (torch.empty(0, 24), np.empty((0, 24), dtype=np.float16)):
        assert detector.score(nothing).shape == (0,)
        assert detector.results(nothing) == []
        assert detector.p_values(nothing).shape == (0,)


def count_compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many images are compared with the labels at once."""
    parts: list[int] = []
    compare = detector_state.method_inputs

    def counting(image_embeddings: torch.Tensor, *arguments: Any) -> MethodInputs:
        parts.append(len(image_embeddings))
        return compare(image_embeddings, *arguments)

    monkeypatch.setattr(detector_state, "method_inputs", counting)
    return parts


@judges_embeddings
def test_embeddings_are_judged_in_parts(encoder: DualEncoder, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = trained(encoder, method)
    detector.calibrate(TRAINING + 1.0, 0.1, per_label=False)
    parts = count_compared(monkeypatch)
    whole = detector._score(detector._inputs(HELD_OUT))
    labels, p = detector.predict(HELD_OUT), detector.p_values(HELD_OUT)
    results = detector.results(HELD_OUT)
    # Few images are one part, whose scores are the same to the last bit.
    assert parts == [100] * 4
    assert torch.equal(detector.score(HELD_OUT), whole)

    monkeypatch.setattr(detector_images, "_COSINES", 7 * detector.dim)
    for judge in (detector.score, detector.predict, detector.p_values, detector.results, detector.score_and_predict):
        parts.clear()
        judge(HELD_OUT)
        assert parts == [7] * 14 + [2]
    torch.testing.assert_close(detector.score(HELD_OUT), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(detector.predict(HELD_OUT.numpy()), labels)
    np.testing.assert_allclose(detector.p_values(HELD_OUT), p, atol=0.05)
    for found, expected in zip(detector.results(HELD_OUT), results, strict=True):
        assert found["ood_score"] == pytest.approx(expected["ood_score"], rel=1e-5, abs=1e-6)
        assert found["label"] == expected["label"]
    # One error for all, whichever part is wrong
    with pytest.raises(ValueError, match=r"must have shape \(images, 24\) for this model, got \(100, 23\)"):
        detector.score(HELD_OUT[:, :23])
    broken = HELD_OUT.clone()
    broken[-1, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values"):
        detector.score(broken)


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"thing {number}" for number in range(1000)]
    bank = dict(zip(names, torch.randn(1000, 8, generator=torch.Generator().manual_seed(3)), strict=True))
    detector = OODDetector(PrecomputedEncoder(bank, "mine", ["{}"]), names, "mcm")
    many = torch.randn(5000, 8, generator=torch.Generator().manual_seed(4))
    parts = count_compared(monkeypatch)
    detector.calibrate(many)
    for judge in (detector.score, detector.predict, detector.p_values):
        judge(many)
    assert sum(parts) == 4 * 5000
    # 8 MB of cosines at a time
    assert max(parts) * len(names) <= 2**21


def test_scores_and_labels_in_one_pass(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = trained(encoder, "mahalanobis")
    expected = detector.score(IMAGES, batch_size=3), detector.predict(IMAGES, batch_size=3)
    passes: list[int] = []
    embed = encoder.image_embeddings
    monkeypatch.setattr(encoder, "image_embeddings", lambda inputs: passes.append(1) or embed(inputs))
    scores, labels = detector.score_and_predict(IMAGES, batch_size=3)
    assert len(passes) == 3
    assert torch.equal(scores, expected[0])
    assert torch.equal(labels, expected[1])
    nothing = detector.score_and_predict([])
    assert [(one.shape, one.dtype) for one in nothing] == [((0,), torch.float32), ((0,), torch.int64)]
    with pytest.raises(ValueError, match="must be fitted"):
        OODDetector(encoder, LABELS, "mahalanobis").score_and_predict(IMAGES)


@pytest.mark.parametrize("method", ["mcm", "atd"])
def test_many_labels_are_kept_on_disk(
    encoder: DualEncoder, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPN_HF_CACHE", str(tmp_path))
    calls: list[dict[str, Any]] = []
    embed = detector_state.cached_class_embeddings

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return embed(*arguments, **options)

    monkeypatch.setattr(detector_state, "cached_class_embeddings", counting)
    labels = [f"cat {number}" for number in range(50)]
    templates = [f"{word} {{}}" for word in ("a", "the", "no", "photo", "car", "dog", "of", "an", "with", "not")]
    few = OODDetector(encoder, labels, method, templates=templates[:9])
    assert not calls
    assert cache_info().entries == []
    detector = OODDetector(encoder, labels, method, templates=templates)
    # With a bar
    assert calls == [{"progress": True}]
    kinds = ["no_text", "text"] if method == "atd" else ["text"]
    assert sorted((entry.kind, entry.embeddings) for entry in cache_info().entries) == [(kind, 50) for kind in kinds]
    expected = DualEncoder(encoder.model, encoder.processor).class_embeddings(labels, templates)[0]
    torch.testing.assert_close(detector._texts.text, expected, rtol=1e-5, atol=1e-6)
    assert detector._texts.text.data_ptr() % 64 == 0

    # What is in memory is not looked for on disk.
    for again in (OODDetector(encoder, labels, method, templates=templates), few.with_changes(templates=templates)):
        assert torch.equal(again.score(HELD_OUT), detector.score(HELD_OUT))
    assert len(calls) == 1
    # As in another process
    other = DualEncoder(encoder.model, encoder.processor)
    monkeypatch.setattr(other, "_embed_texts", lambda *arguments: pytest.fail("Texts are embedded again."))
    assert torch.equal(OODDetector(other, labels, method, templates=templates).score(HELD_OUT), again.score(HELD_OUT))
    assert len(calls) == 2


@every_method
def test_a_threshold_without_images_is_flagged(
    encoder: DualEncoder, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = trained(encoder, method)
    caplog.clear()
    if METHODS[method].text_contrast is None:
        with pytest.raises(ValueError, match=f"ethod {method} "):
            detector.guess_threshold()
        assert (detector.threshold, detector.calibration) == (None, None)
        return
    calibration = detector.guess_threshold()
    assert detector.calibration is calibration
    assert (detector.threshold, calibration.method, calibration.n) == (calibration.threshold, "text", 4)
    assert "No promise at all" in caplog.text
    for result in detector(IMAGES):
        assert result["verdict"] == ("unknown" if result["ood_score"] > calibration.threshold else "known")
        assert result["promise"] == calibration.promise
        assert result["promise"] is not None
        assert result["promise"].startswith("No promise at all")
        assert result["p_value"] is None
    with pytest.raises(ValueError, match="p-values need a calibrated detector"):
        detector.p_values(HELD_OUT)
    # Images replace the guess, a guess the images.
    detector.calibrate(HELD_OUT)
    assert detector(IMAGES[0])[0]["p_value"] is not None
    assert detector.guess_threshold() == calibration
    assert detector(IMAGES[0])[0]["p_value"] is None
    caplog.clear()
    detector.templates = ["the {}"]
    assert detector.threshold is None
    (message,) = caplog.messages
    assert message.startswith(
        f"The detector has dropped its threshold ({calibration.threshold:g}), because `templates`"
    )


# Changes of what belongs to a detector


def ready(encoder: Any, method: str, **options: Any) -> OODDetector:
    """A detector that is fitted and calibrated."""
    detector = trained(encoder, method)
    detector.calibrate(torch.cat([HELD_OUT, 2 - HELD_OUT, HELD_OUT.flip(1)]), 0.2, **options)
    return detector


def state_of(detector: OODDetector) -> tuple[bool, bool]:
    """Whether it is fitted, and whether it is calibrated."""
    assert (detector.threshold is None) == (detector.calibration is None)
    return detector.fitted_on is not None, detector.calibration is not None


@judges_embeddings
def test_other_labels_drop_everything(encoder: DualEncoder, method: str, caplog: pytest.LogCaptureFixture) -> None:
    detector = ready(encoder, method)
    caplog.clear()
    detector.labels = LABELS
    assert state_of(detector) == (METHODS[method].fit is not None, True)
    assert not caplog.records
    labels = ["apple", "pear"]
    detector.labels = labels
    labels.append("plum")
    detector.labels.append("plum")
    assert detector.labels == ["apple", "pear"]
    assert state_of(detector) == (False, False)
    (message,) = caplog.messages
    learnt = "what it had learnt of 40 images and " if METHODS[method].fit is not None else ""
    again = "`fit` and `calibrate`" if learnt else "`calibrate`"
    assert message.startswith(f"The detector has dropped {learnt}its threshold (")
    assert message.endswith(f", calibrated on 300 images), because `labels` changed; call {again} anew.")
    if METHODS[method].fit is None:
        expected = trained(encoder, method, ["apple", "pear"]).score(IMAGES)
        assert torch.equal(detector.score(IMAGES), expected)
    else:
        with pytest.raises(ValueError, match="must be fitted"):
            detector.score(IMAGES)


@judges_embeddings
def test_other_templates_drop_the_threshold_where_they_matter(
    encoder: DualEncoder, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = METHODS[method].fit is not None
    detector = ready(encoder, method)
    caplog.clear()
    detector.templates = detector.templates
    assert state_of(detector) == (fitted, True)
    detector.templates = ["the {}"]
    assert detector.templates == ["the {}"]
    assert state_of(detector) == (fitted and not METHODS[method].uses_text, not METHODS[method].uses_text)
    assert len(caplog.messages) == METHODS[method].uses_text
    if not fitted:
        expected = trained(encoder, method, templates=["the {}"])
        assert torch.equal(detector.score(IMAGES), expected.score(IMAGES))

    detector = ready(encoder, method)
    detector.no_templates = ["no {}"]
    assert state_of(detector) == (fitted, "no" not in METHODS[method].needs)


def test_thresholds_of_labels_depend_on_templates(encoder: DualEncoder) -> None:
    """Which label is the nearest one, and so which threshold holds, is a matter of texts."""
    detector = ready(encoder, "nearest_neighbors", per_label=True)
    detector.templates = ["the {}"]
    assert state_of(detector) == (True, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", ["cat", "cat"]), ("labels", ["cat"]), ("templates", ["photo"]), ("no_templates", "no {}")],
)
def test_changes_that_are_refused_change_nothing(encoder: DualEncoder, name: str, value: Any) -> None:
    detector = ready(encoder, "mcm")
    before, expected = getattr(detector, name), detector.results(HELD_OUT)
    with pytest.raises((TypeError, ValueError), match="labels|templates"):
        setattr(detector, name, value)
    assert getattr(detector, name) == before
    assert detector.results(HELD_OUT) == expected


@judges_embeddings
def test_an_equal_encoder_drops_nothing(encoder: DualEncoder, method: str, clipn_folder: Path) -> None:
    one, other = (DualEncoder.from_pretrained(clipn_folder, device="cpu") for _ in range(2))
    detector = ready(one, method)
    before, expected = state_of(detector), detector.results(HELD_OUT)
    detector.encoder = other
    assert detector.encoder is other
    assert state_of(detector) == before
    assert detector.results(HELD_OUT) == expected


@judges_embeddings
def test_another_encoder_drops_everything(encoder: DualEncoder, method: str, clipn_folder: Path) -> None:
    changed = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    with torch.no_grad():
        changed.model.visual_projection.weight.mul_(1.5)
    otherwise_prepared = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    otherwise_prepared.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    for other in (changed, otherwise_prepared):
        detector = ready(DualEncoder.from_pretrained(clipn_folder, device="cpu"), method)
        detector.encoder = other
        assert state_of(detector) == (False, False)
        assert torch.equal(detector._texts.text, other.class_embeddings(LABELS, detector.templates)[0])


@judges_embeddings
def test_an_encoder_with_other_templates_keeps_what_was_learnt(
    encoder: DualEncoder, method: str, clipn_folder: Path
) -> None:
    one, other = (DualEncoder.from_pretrained(clipn_folder, device="cpu") for _ in range(2))
    other.templates = ["the {}"]
    detector = ready(one, method)
    detector.encoder = other
    keeps = not METHODS[method].uses_text
    assert state_of(detector) == (METHODS[method].fit is not None and keeps, keeps)
    # Where the templates were chosen, those of the encoder do not matter.
    detector = trained(one, method, templates=["a {}"], no_templates=["no {}"])
    detector.calibrate(HELD_OUT)
    detector.encoder = other
    assert state_of(detector)[1]


def test_an_encoder_that_cannot_serve_is_refused(encoder: DualEncoder, clip_folder: Path) -> None:
    detector = ready(encoder, "atd")
    expected = detector.results(HELD_OUT)
    with pytest.raises(ValueError, match="Method atd needs a CLIPN"):
        detector.encoder = str(clip_folder)
    assert detector.encoder is encoder
    assert detector.results(HELD_OUT) == expected


@judges_embeddings
def test_a_changed_copy_shares_no_state(encoder: DualEncoder, method: str, caplog: pytest.LogCaptureFixture) -> None:
    detector = ready(encoder, method)
    before, expected = state_of(detector), detector.results(HELD_OUT)
    caplog.clear()
    assert detector.with_changes().results(HELD_OUT) == expected
    assert detector.with_changes(method=method, labels=LABELS, templates=None).results(HELD_OUT) == expected
    assert not caplog.records
    by_hand = detector.with_changes(threshold=0.25)
    assert (by_hand.threshold, by_hand.calibration) == (0.25, None)
    assert torch.equal(by_hand.score(HELD_OUT), detector.score(HELD_OUT))
    fewer = detector.with_changes(labels=LABELS[:3], threshold=0.5)
    assert (fewer.labels, fewer.threshold) == (LABELS[:3], 0.5)
    fewer.fit(HELD_OUT, [row % 3 for row in range(100)]).calibrate(TRAINING)
    fewer.templates = ["the {}"]
    other = detector.with_changes(method="msp" if method == "mcm" else "mcm")
    assert state_of(other) == (False, False)
    assert (state_of(detector), detector.labels) == (before, LABELS)
    assert detector.results(HELD_OUT) == expected


def test_other_settings_drop_what_depends_on_them(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    detector = ready(encoder, "mcm")
    assert state_of(detector.with_changes(temperature=1.0)) == (False, True)
    caplog.clear()
    hot = detector.with_changes(temperature=2.0)
    assert state_of(hot) == (False, False)
    assert hot.settings["temperature"] == 2.0
    assert "because `settings` changed" in caplog.text
    assert detector.settings["temperature"] == 1.0
    detector = ready(encoder, "nearest_neighbors")
    assert state_of(detector.with_changes(k=3)) == (False, False)
    assert state_of(detector.with_changes(k=1)) == (True, True)
    with pytest.raises(TypeError, match="Method nearest_neighbors does not know `temperature`"):
        detector.with_changes(temperature=1.0)
    with pytest.raises(TypeError, match="does not know `k`"):
        detector.with_changes(method="mcm", k=1)


def test_a_refused_change_says_nothing(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    detector = ready(encoder, "mcm")
    caplog.clear()
    with pytest.raises(ValueError, match="must contain"):
        detector.with_changes(method="energy", templates=["photo"])
    assert not caplog.records


# Embeddings without a model


def test_a_detector_on_embeddings(encoder: DualEncoder) -> None:
    text, _ = encoder.class_embeddings(LABELS)
    bank = dict(zip(LABELS, 3 * text, strict=True))
    precomputed = PrecomputedEncoder(bank, "some-clip", encoder.templates, encoder.logit_scale)
    for method in map(METHODS.__getitem__, SERVED):
        if "negatives" in method.needs:
            continue
        if "no" in method.needs:
            with pytest.raises(ValueError, match=f"Method {method.name} needs a CLIPN .* got PrecomputedEncoder"):
                OODDetector(precomputed, LABELS, method.name)
            continue
        if method.judges_images(method.settings):
            with pytest.raises(ValueError, match=f"Method {method.name} needs images.* got PrecomputedEncoder"):
                OODDetector(precomputed, LABELS, method.name)
            continue
        detector, expected = (ready(one, method.name) for one in (precomputed, encoder))
        torch.testing.assert_close(detector.score(HELD_OUT), expected.score(HELD_OUT), rtol=1e-5, atol=1e-6)
        assert detector.predict(HELD_OUT).tolist() == expected.predict(HELD_OUT).tolist()
        assert state_of(detector)[1]
        for use in (detector, detector.score, detector.calibrate, detector.predict):
            with pytest.raises(TypeError, match="no model for images; give image embeddings of some-clip"):
                use(IMAGES)
        with pytest.raises(ValueError, match="no embedding of 'bird' and 1 more label"):
            detector.labels = ["cat", "bird", "plum"]
        with pytest.raises(ValueError, match="were computed with the templates"):
            detector.templates = ["the {}"]
        assert state_of(detector)[1]
        detector.encoder = PrecomputedEncoder(bank, "some-clip", encoder.templates, encoder.logit_scale)
        assert state_of(detector)[1]
    assert repr(OODDetector(precomputed, LABELS, "mcm")).startswith("OODDetector('some-clip', 4 labels,")


def test_log_is_silent_without_losses(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    detector = OODDetector(encoder, LABELS, "mcm")
    detector.labels = LABELS[:2]
    detector.templates = ["the {}"]
    detector.calibrate(HELD_OUT)
    detector.calibrate(HELD_OUT)
    assert not caplog.records


def test_a_deep_copy_is_a_detector_of_its_own(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit(IMAGES)
    other = copy.deepcopy(detector)
    assert torch.equal(other.score(IMAGES), detector.score(IMAGES))
    other.labels = LABELS[:2]
    assert detector.fitted_on is not None
    assert other.fitted_on is None


def test_embeddings_without_direction_are_refused(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "mcm")
    with pytest.raises(ValueError, match="rows of zeros, which have no direction"):
        detector.score(torch.cat([HELD_OUT[:2], torch.zeros(1, HELD_OUT.shape[1])]))
