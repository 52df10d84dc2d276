# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Suites from images to records: one pass through each model, the same results however they are computed."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, detector_state, encoders, features, verdicts
from clipn_hf.evaluation import benchmark
from clipn_hf.evaluation import output as output_module
from clipn_hf.evaluation.benchmark import SuiteResult, evaluate_suite
from clipn_hf.evaluation.comparison import compare
from clipn_hf.evaluation.doctor import Finding
from clipn_hf.evaluation.metrics import auroc, bootstrap_interval, fpr_at_tpr, id_accuracy
from clipn_hf.evaluation.results import OOD_METRICS, json_digest, load_scores, read_averages, read_records
from clipn_hf.evaluation.tables import row_key, row_names

LABELS = ["cat", "dog", "bird"]
ZERO_SHOT = ["mcm", "msp", "max_logit", "energy"]
NAMES = [
    *("jellyfish", "parachute", "lamp", "violin", "glacier", "teapot", "kitten", "husky", "sparrow", "anvil", "kelp"),
    *("saddle", "comet", "ladder", "pretzel", "tractor", "umbrella", "quilt", "yacht", "zipper"),
]


def draw_images(folder: Path, count: int, seed: int, hue: int = 0) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 120, (6, 8, 3), dtype=np.uint8)
        pixels[..., hue % 3] += np.uint8(100)
        Image.fromarray(pixels).resize((40, 36)).save(folder / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of three classes for ID, for fitting and in another style, and two OOD sets."""
    folder = tmp_path / "data"
    for place, label in enumerate(LABELS):
        draw_images(folder / "id" / label, 5, seed=place, hue=place)
        draw_images(folder / "fit" / label, 4, seed=10 + place, hue=place)
        draw_images(folder / "shifted" / label, 3, seed=20 + place, hue=place + 1)
    draw_images(folder / "near" / "wolf", 4, seed=30)
    draw_images(folder / "far" / "noise", 6, seed=31, hue=2)
    (folder / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return folder


NUM_IMAGES = 15 + 12 + 9 + 4 + 6


@pytest.fixture
def suite() -> dict[str, Any]:
    return {
        "name": "tiny",
        "description": "Random pictures of three classes.",
        "labels": LABELS,
        "templates": ["a photo of a {}."],
        "id": {"name": "Id", "source": {"imagefolder": "id"}},
        "fit": {"name": "Fit", "source": {"imagefolder": "fit"}},
        "covariate_shift": [{"name": "Shifted", "source": {"imagefolder": "shifted"}}],
        "ood": [
            {"name": "Near", "group": "near", "source": {"imagefolder": "near"}, "note": "Wolves."},
            {"name": "Far", "group": "far", "source": {"imagefolder": "far"}},
        ],
        # WordNet would take long.
        "negatives": {"corpus": "names.txt", "fraction": 0.5},
    }


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def clipn_encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor)


Evaluate = Callable[..., SuiteResult]


@pytest.fixture
def evaluate(root: Path, tmp_path: Path) -> Evaluate:
    def evaluate(suite: Any, models: Any, methods: Any = None, **arguments: Any) -> SuiteResult:
        defaults: dict[str, Any] = {
            "data_root": root,
            "cache_dir": tmp_path / "cache",
            "resamples": 20,
            "examine": False,
            "progress": False,
        }
        return evaluate_suite(suite, models, methods, **(defaults | arguments))

    return evaluate


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said on the log, one entry at a time."""
    messages: list[str] = []
    for module in (benchmark, features):
        monkeypatch.setattr(module.logger, "warning", messages.append)
    return messages


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many images each pass through a model has."""
    passes: list[int] = []
    embed = DualEncoder.image_embeddings

    def counting(self: DualEncoder, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        passes.append(len(inputs["pixel_values"]))
        return embed(self, inputs)

    monkeypatch.setattr(DualEncoder, "image_embeddings", counting)
    return passes


def without_date(result: SuiteResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "date"} for record in result.records]


def by_place(result: SuiteResult) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (record["model"]["weights_sha256"], record["method"], record["set"]["name"]): record
        for record in without_date(result)
    }


def files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.png"))]


# What is computed


def test_numbers_are_those_of_detector_and_metrics(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path
) -> None:
    result = evaluate(suite, encoder, ["mcm"])
    assert [record["set"]["name"] for record in result.records] == ["Shifted", "Near", "Far"]
    detector = OODDetector(encoder, LABELS, "mcm", templates=["a photo of a {}."])
    # The sets list their classes by name.
    scores = {name: detector.score(files(root / name)) for name in ("id", "shifted", "near", "far")}
    labels = torch.tensor([LABELS.index(Path(file).parent.name) for file in files(root / "id")])
    predictions = detector.predict(files(root / "id"))
    far = result.evaluations[2]
    np.testing.assert_allclose(np.sort(far.ood_scores), np.sort(scores["far"].numpy()), atol=1e-6)
    np.testing.assert_allclose(np.sort(far.id_scores), np.sort(scores["id"].numpy()), atol=1e-6)
    metrics = far.record["metrics"]
    assert tuple(metrics) == (*OOD_METRICS, "auroc_full_spectrum", "fpr95_full_spectrum")
    assert metrics["auroc"]["value"] == pytest.approx(auroc(scores["id"], scores["far"]))
    assert metrics["id_accuracy"]["value"] == pytest.approx(id_accuracy(predictions, labels))
    wide = torch.cat([scores["id"], scores["shifted"]])
    assert metrics["auroc_full_spectrum"]["value"] == pytest.approx(auroc(wide, scores["far"]))
    assert metrics["fpr95_full_spectrum"]["value"] == pytest.approx(fpr_at_tpr(wide, scores["far"]))
    expected = bootstrap_interval(fpr_at_tpr, far.id_scores, far.ood_scores, resamples=20, seed=0)
    assert tuple(metrics["fpr95"].values()) == tuple(expected)

    shifted = result.records[0]["metrics"]
    assert set(shifted) == {"accuracy", "rejected_at_tpr95", "auroc"}
    threshold = np.sort(far.id_scores)[14]  # 15 images: keeping 95 % is keeping all
    own = result.evaluations[0]
    assert shifted["rejected_at_tpr95"]["value"] == pytest.approx((own.ood_scores > threshold).mean())
    right = [LABELS.index(own.ood_set.class_names[row]) for row in own.ood_rows]  # type: ignore[index]
    assert shifted["accuracy"]["value"] == pytest.approx((own.ood_predictions == np.array(right)).mean())


def test_record_says_what_was_done(evaluate: Evaluate, suite: dict[str, Any], clipn_encoder: DualEncoder) -> None:
    result = evaluate(suite, clipn_encoder, ["atd", "mcm"])
    atd, mcm = result.records[1], result.records[4]
    assert (atd["method"], mcm["method"]) == ("atd", "mcm")
    assert atd["set"] | {"sha256": ""} == {
        "name": "Near", "group": "near", "images": 4, "unreadable": 0, "excluded": 0, "expected": None, "sha256": "",
        "note": "Wolves.",
    }  # fmt: skip
    assert atd["id_set"]["images"] == 15
    assert atd["model"] == {**clipn_encoder.describe(), "id": "CLIPNModel"}
    assert atd["templates"] == mcm["templates"] == ["a photo of a {}."]
    assert atd["no_templates"] == ["a photo of a {}."]
    assert mcm["no_templates"] is None
    assert mcm["settings"] == {"temperature": 1.0}
    assert atd["labels"]["count"] == 3
    assert atd["fit_set"] is None
    assert atd["bootstrap"] == {"resamples": 20, "confidence": 0.95, "seed": 0}
    assert atd["scores"] is None
    assert {"clipn_hf", "torch", "transformers", "numpy", "python"} == set(atd["versions"])
    assert atd["suite_sha256"] == mcm["suite_sha256"] and len(atd["suite_sha256"]) == 64
    json.dumps(result.records, allow_nan=False)


def test_every_method_is_served_or_skipped_with_a_reason(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, clipn_encoder: DualEncoder
) -> None:
    result = evaluate(suite, encoder, resamples=0)
    methods = [record["method"] for record in result.records]
    assert set(ZERO_SHOT) < set(methods)
    # A random model is certain of nothing.
    refused = result.skipped.pop()
    assert refused.startswith("plp (needs other images for fitting: None of the 12 images has a pseudo-label ")
    with pytest.raises(ValueError, match="^None of the 12 images"):
        evaluate(suite, encoder, ["mcm", "plp"])
    assert result.skipped == [
        'atd, ctw (need a CLIPN model with a "no" text encoder)',
        "gl_mcm, odin (need to be named in `methods`, because all images have to go through the model again)",
        "csp, negrefine (need the corpus csp, in place of which the suite has another one)",
        "sigmoid, joint_energy (need a model that was trained with a sigmoid loss, such as SigLIP)",
        'clip_os (needs a model with a learned "unknown" prompt, such as CLIP-OS trains)',
    ]
    left_out = {"atd", "ctw", "gl_mcm", "csp", "negrefine", "sigmoid", "joint_energy", "odin", "plp", "clip_os"}
    assert {*methods, *left_out} == set(benchmark.METHODS) and "neglabel" in methods
    assert {record["bootstrap"] for record in result.records} == {None}
    fitted = [record for record in result.records if "training" in benchmark.METHODS[record["method"]].needs]
    assert fitted
    assert {record["fit_set"]["images"] for record in fitted} == {12}

    del suite["fit"]
    unfitted = ", ".join(name for name, row in benchmark.METHODS.items() if "training" in row.needs)
    result = evaluate(suite, encoder, resamples=0, seeds=[0, 1])
    assert f"{unfitted} (need a set `fit` in the suite)" in result.skipped
    result = evaluate(suite, [encoder, clipn_encoder], ["nearest_neighbors", "atd", "mcm"], resamples=0)
    assert result.skipped == [
        "nearest_neighbors of CLIPModel; nearest_neighbors of CLIPNModel (need a set `fit` in the suite)",
        'atd of CLIPModel (needs a CLIPN model with a "no" text encoder)',
    ]


def test_nothing_served_is_an_error(evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match="There is nothing to evaluate: atd, ctw .need a CLIPN"):
        evaluate(suite, encoder, ["atd", "ctw"])


def test_corrupted_images_are_counted_and_left_out(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, warnings: list[str]
) -> None:
    (root / "id" / "cat" / "2.png").write_bytes(b"no picture")
    (root / "far" / "noise" / "0.png").write_bytes(b"")
    evaluate(suite, encoder, ["mcm"], examine=True, seeds=[0, 1])
    assert sum("cannot be read" in line for line in warnings) == 1  # By the doctor
    warnings.clear()
    result = evaluate(suite, encoder, ["mcm"], seeds=[0, 1])
    assert [line for line in warnings if "cannot be read" in line] == [
        "1 of 15 images of the set Id cannot be read and is left out. cat/2.png: it is text, not an image (it begins "
        "with 'no picture'), whatever its name says.",
        "1 of 6 images of the set Far cannot be read and is left out. noise/0.png: it is empty (0 bytes). Copy or "
        "download it again.",
    ]
    far = result.evaluations[2]
    assert (far.record["id_set"]["images"], far.record["id_set"]["unreadable"]) == (14, 1)
    assert (far.record["set"]["images"], far.record["set"]["unreadable"]) == (5, 1)
    names = [far.id_set.class_names[row] for row in far.id_rows]  # type: ignore[index]
    assert [far.labels[label] for label in far.id_labels] == names
    for file in (root / "near" / "wolf").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="The set Near cannot be used: None of the 4 images can be read"):
        evaluate(suite, encoder, ["mcm"])
    for file in files(root / "id")[1:]:
        Path(file).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="The set Id cannot be used: of its 15 images only one can be read"):
        evaluate(suite, encoder, ["mcm"])


# Negative labels


def test_negative_labels_are_mined_as_the_suite_says(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, tmp_path: Path
) -> None:
    result = evaluate(suite, encoder, ["neglabel", "csp", "mcm"], output=tmp_path / "output")
    rows = {record["method"]: record for record in result.records}
    assert rows["mcm"]["negatives"] is None
    found = rows["neglabel"]["negatives"]
    assert (found["count"], found["num_groups"], rows["neglabel"]["settings"]["num_groups"]) == (10, 1, None)
    assert found["report"]["candidates"] == 20 and found["report"]["mined"] == 10
    settings = found["settings"]
    # No folder is named.
    assert (settings["corpus"], settings["fraction"], settings["quantile"]) == ("names.txt", 0.5, 0.95)
    assert str(tmp_path) not in (tmp_path / "output" / "results.jsonl").read_text(encoding="utf-8")
    # What the suite does not say is as the method has it.
    assert rows["csp"]["negatives"]["settings"]["max_similarity"] == 0.95
    arguments = {"corpus": root / "names.txt", "fraction": 0.5}
    templates = ["a photo of a {}."]
    detector = OODDetector(encoder, LABELS, "neglabel", templates=templates, negatives=arguments)
    assert detector.negatives is not None and found["sha256"] == json_digest(detector.negatives.labels)
    far = next(one for one in result.evaluations if one.record is rows["neglabel"])
    np.testing.assert_allclose(np.sort(far.ood_scores), np.sort(detector.score(files(root / "far"))), atol=1e-6)
    text = (tmp_path / "output" / "report.html").read_text(encoding="utf-8")
    assert "10: corpus names.txt, quantile 0.95, fraction 0.5" in text
    assert read_records(tmp_path / "output") == result.records


def test_the_worst_mistakes_say_what_they_look_like(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    result = evaluate(suite, encoder, ["neglabel", "mcm"], seeds=[0, 1], output=tmp_path / "output")
    for evaluation in result.evaluations:
        if evaluation.record["seed"] == 1:
            # The report shows the other one.
            assert (evaluation.id_negatives, evaluation.ood_negatives) == ({}, {})
            continue
        assert set(evaluation.id_negatives) == set(range(15))
        assert set(evaluation.ood_negatives) == set(range(len(evaluation.ood_scores)))
        for looks_like in (*evaluation.id_negatives.values(), *evaluation.ood_negatives.values()):
            masses = [one["score"] for one in looks_like]
            assert len(masses) == 3 and masses == sorted(masses, reverse=True) and 0 < sum(masses) <= 1
            assert {one["label"] for one in looks_like} <= set(NAMES)
    far = next(one for one in result.evaluations if (one.record["method"], one.ood_set.name) == ("neglabel", "Far"))
    text = (tmp_path / "output" / "report.html").read_text(encoding="utf-8")
    worst = far.ood_negatives[int(far.ood_scores.argmin())]
    # Other methods are explained by the same negative labels.
    mcm = next(one for one in result.evaluations if (one.record["method"], one.ood_set.name) == ("mcm", "Far"))
    assert mcm.ood_negatives == far.ood_negatives
    assert verdicts.looks_like(worst) in text
    (alone, *_) = evaluate(suite, encoder, ["mcm"]).evaluations
    assert (alone.id_negatives, alone.ood_negatives) == ({}, {})


def test_only_what_a_method_is_most_wrong_about_is_explained(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_EXPLAINED", 2)
    far = evaluate(suite, encoder, ["neglabel"]).evaluations[2]
    assert set(far.id_negatives) == set(np.argsort(-far.id_scores, kind="stable")[:2])
    assert set(far.ood_negatives) == set(np.argsort(far.ood_scores, kind="stable")[:2])


def test_a_corpus_is_embedded_once_for_all_methods_and_seeds(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    embed = DualEncoder._embed_texts

    def counting(self: DualEncoder, encode: Any, kind: str, prompts: list[str], *options: Any) -> Any:
        texts.extend(prompts)
        return embed(self, encode, kind, prompts, *options)

    monkeypatch.setattr(DualEncoder, "_embed_texts", counting)
    suite["labels"] = {"draw": 2, "from": "id"}
    del suite["fit"], suite["covariate_shift"]
    evaluate(suite, encoder, ["neglabel", "csp"], seeds=[0, 1], use_cache=False, cache_dir=None)
    assert [texts.count(f"a photo of a {name}.") for name in NAMES] == [1] * len(NAMES)


def test_seeds_that_draw_other_labels_are_one_row(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    suite["labels"] = {"draw": 2, "from": "id"}
    del suite["fit"], suite["covariate_shift"]
    result = evaluate(suite, encoder, ["neglabel"], seeds=[0, 1, 2], output=tmp_path / "output")
    assert len({row_key(record) for record in result.records}) == 1
    tables = (tmp_path / "output" / "tables.md").read_text(encoding="utf-8")
    assert "± is the standard deviation over 3 seeds" in tables
    assert "Negative labels: 10 for neglabel (corpus names.txt)." in tables
    # With other settings it is another row, which says what differs.
    suite["negatives"]["fraction"] = 0.25
    other = evaluate(suite, encoder, ["neglabel"], seeds=[0]).records
    assert [name for _, name in row_names([*result.records, *other]).values()] == [
        "neglabel (negatives fraction 0.5)",
        "neglabel (negatives fraction 0.25)",
    ]


def test_averages_know_the_negative_labels(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    suite["ood"][0]["group"] = "far"
    result = evaluate(suite, encoder, ["neglabel"], output=tmp_path / "output")
    (average,) = result.averages
    assert row_key(average) == row_key(result.records[0])
    assert read_averages(tmp_path / "output" / "averages.json") == [average]


def test_methods_have_their_own_templates_unless_the_suite_names_some(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder
) -> None:
    del suite["templates"]
    rows = {record["method"]: record for record in evaluate(suite, encoder, ["mcm", "neglabel"]).records}
    assert rows["neglabel"]["templates"] == ["The nice {}."]
    assert rows["mcm"]["templates"] == encoder.templates


def test_mining_of_many_texts_is_announced(
    evaluate: Evaluate,
    suite: dict[str, Any],
    encoder: DualEncoder,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate(suite, encoder, ["neglabel"])
    assert not [line for line in warnings if "negative labels" in line]
    monkeypatch.setattr(benchmark, "_MANY_TEXTS", 5)
    evaluate(suite, encoder, ["mcm"])
    assert not [line for line in warnings if "negative labels" in line]
    evaluate(suite, encoder, ["mcm", "neglabel", "csp"], seeds=[0, 1])
    (line,) = [line for line in warnings if "negative labels" in line]
    assert line.startswith("neglabel and csp need negative labels, mined of 20 texts. Those that are not on disk from")


def test_what_mining_warns_of_is_said_for_one_seed(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "names.txt").write_text("\n".join([*NAMES, *LABELS]), encoding="utf-8")
    suite["negatives"]["fraction"] = 1
    evaluate(suite, encoder, ["neglabel"], seeds=[0, 1])
    assert sum("3 of 23 negative labels are labels, too" in line for line in caplog.messages) == 1
    # Later warnings are not kept back.
    caplog.clear()
    OODDetector(encoder, LABELS, "neglabel", negatives={"corpus": [*NAMES, "cat"], "fraction": 1.0})
    assert any("is a label, too" in line for line in caplog.messages)


def test_negative_labels_of_a_detector_are_those_it_is_evaluated_with(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder
) -> None:
    detector = OODDetector(encoder, LABELS, "neglabel", negatives=["comet", "kelp"])
    (record, *_) = evaluate(suite, detector).records
    assert (record["negatives"]["count"], record["negatives"]["settings"]) == (2, {"corpus": "texts"})
    # One that has none gets those of the suite.
    plain = OODDetector(encoder, LABELS, "mcm")
    (record, *_) = evaluate(suite, plain, ["neglabel"]).records
    assert record["negatives"]["settings"]["corpus"] == "names.txt"


# One pass


def test_each_image_is_encoded_once_for_all_methods(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_images(monkeypatch)
    evaluate(suite, encoder, batch_size=4)
    assert sum(passes) == NUM_IMAGES
    evaluate(suite, encoder, ["mcm"])
    assert sum(passes) == NUM_IMAGES


@pytest.mark.parametrize("use_cache", [True, False])
def test_images_are_encoded_once_more_where_a_method_changes_them(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, use_cache: bool
) -> None:
    (root / "far" / "noise" / "broken.png").write_bytes(b"no image")
    detector = OODDetector(encoder, LABELS, "odin", templates=suite["templates"], magnitude=0.02)
    # Of a detector, its own method is the one that is evaluated.
    for result in (evaluate(suite, detector, use_cache=use_cache), evaluate(suite, detector, ["odin", "mcm"])):
        own = [evaluation for evaluation in result.evaluations if evaluation.record["method"] == "odin"]
        assert [evaluation.ood_set.name for evaluation in own] == ["Shifted", "Near", "Far"]
        for evaluation in own:
            assert evaluation.record["settings"] == {"temperature": 1000.0, "magnitude": 0.02}
            loaded = evaluation.ood_set
            images = [loaded.images[row] for row in evaluation.ood_rows]
            scores, predictions = detector.score_and_predict(images)
            np.testing.assert_allclose(evaluation.ood_scores, scores, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(evaluation.ood_predictions, predictions)
        assert own[-1].record["set"]["unreadable"] == 1
        assert own[0].record["set"]["images"] == 9
        assert result.skipped == []
    plain = OODDetector(encoder, LABELS, "odin", templates=suite["templates"], magnitude=0.0).score(images)
    assert not np.allclose(own[-1].ood_scores, plain, atol=1e-3)


def test_negative_labels_explain_also_what_a_method_changes(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder
) -> None:
    detector = OODDetector(encoder, LABELS, "odin", negatives=NAMES)
    result = evaluate(suite, detector, ["odin"])
    assert all(negatives for evaluation in result.evaluations for negatives in evaluation.id_negatives.values())
    assert [len(evaluation.ood_negatives) for evaluation in result.evaluations] == [9, 4, 6]


def test_seeds_share_one_pass_also_without_cache(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passes = count_images(monkeypatch)
    suite["id"]["limit"] = 9
    result = evaluate(suite, encoder, ["mcm"], seeds=[0, 1, 0], use_cache=False, cache_dir=None)
    assert [record["seed"] for record in result.records] == [0, 0, 0, 1, 1, 1]
    # Images for fitting are not needed.
    assert 9 + 9 + 4 + 6 <= sum(passes) <= NUM_IMAGES - 12
    assert not (tmp_path / "cache").exists()
    digests = [record["id_set"]["sha256"] for record in result.records]
    assert digests[0] != digests[3]
    alone = evaluate(suite, encoder, ["mcm"], seeds=[1])
    assert without_date(alone) == without_date(result)[3:]


def test_images_for_fitting_are_encoded_only_if_a_method_needs_them(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_images(monkeypatch)
    evaluate(suite, encoder, ["mcm", "energy"])
    assert sum(passes) == NUM_IMAGES - 12


def test_labels_are_embedded_once(
    evaluate: Evaluate, suite: dict[str, Any], clipn_encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[int] = []
    embed = DualEncoder._embed_texts

    def counting(self: DualEncoder, encode: Any, kind: str, texts: list[str], *options: Any) -> Any:
        prompts.append(len(texts))
        return embed(self, encode, kind, texts, *options)

    monkeypatch.setattr(DualEncoder, "_embed_texts", counting)
    first = evaluate(suite, clipn_encoder, ["mcm", "atd"])
    assert prompts == [3, 3]
    # Another process finds them on disk.
    again = DualEncoder(clipn_encoder.model, clipn_encoder.processor)
    assert without_date(evaluate(suite, again, ["mcm", "atd"])) == without_date(first)
    assert prompts == [3, 3]
    # With more label sets than are kept in memory
    monkeypatch.setattr(encoders, "MAX_CACHED_LABEL_SETS", 2)
    suite["labels"] = {"draw": 2, "from": "id"}
    del suite["fit"], suite["covariate_shift"]
    evaluate(suite, again, ["mcm", "atd"], seeds=range(6))
    assert prompts == [3, 3]
    evaluate(suite, DualEncoder(again.model, again.processor), ["mcm"], use_cache=False, cache_dir=None)
    assert prompts == [3, 3, 2]


def test_scores_and_predictions_take_one_pass(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    compare = detector_state.method_inputs

    def counting(image_embeddings: torch.Tensor, *arguments: Any) -> Any:
        compared.append(len(image_embeddings))
        return compare(image_embeddings, *arguments)

    monkeypatch.setattr(detector_state, "method_inputs", counting)
    result = evaluate(suite, encoder, ["mcm"])
    sets = [result.records[0]["id_set"], *(record["set"] for record in result.records)]
    assert compared == [one["images"] for one in sets]


@pytest.mark.parametrize("use_cache", [True, False])
def test_many_labels_are_kept_in_the_cache_that_is_asked_for(
    evaluate: Evaluate,
    suite: dict[str, Any],
    encoder: DualEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_cache: bool,
) -> None:
    monkeypatch.setenv("CLIPN_HF_CACHE", str(tmp_path / "default"))
    monkeypatch.setattr(detector_state, "_MANY_TEXTS", 1)
    evaluate(suite, encoder, ["mcm", "energy"], use_cache=use_cache)
    assert not (tmp_path / "default").exists()
    assert (tmp_path / "cache").exists() == use_cache


# The same results


def test_order_of_models_and_methods_does_not_matter(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, clipn_encoder: DualEncoder
) -> None:
    forward = evaluate(suite, [encoder, clipn_encoder], ["mcm", "energy", "msp"])
    backward = evaluate(suite, [clipn_encoder, encoder], ["msp", "energy", "mcm", "msp"])
    assert len(by_place(forward)) == len(forward.records) == 18
    assert by_place(forward) == by_place(backward)
    assert [record["method"] for record in forward.records[:9:3]] == ["mcm", "energy", "msp"]


def test_cache_and_batches_do_not_matter(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    first = evaluate(suite, encoder, ZERO_SHOT)
    assert without_date(evaluate(suite, encoder, ZERO_SHOT)) == without_date(first)
    assert without_date(evaluate(suite, encoder, ZERO_SHOT, use_cache=False, cache_dir=None)) == without_date(first)
    other = evaluate(suite, encoder, ZERO_SHOT, batch_size=5, cache_dir=tmp_path / "other")
    for one, two in zip(first.evaluations, other.evaluations, strict=True):
        np.testing.assert_allclose(one.ood_scores, two.ood_scores, rtol=0, atol=1e-5)
        assert one.record["set"] == two.record["set"]


def test_seeds_of_the_suite_are_the_default(evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder) -> None:
    result = evaluate({**suite, "seeds": [3, 1], "methods": ["energy"]}, encoder)
    assert [(record["method"], record["seed"]) for record in result.records[::3]] == [("energy", 3), ("energy", 1)]


# Models


def test_models_by_folder(evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, clip_folder: Path) -> None:
    by_folder = evaluate(suite, str(clip_folder), ["mcm"], device="cpu")
    in_suite = evaluate({**suite, "models": [str(clip_folder)]}, None, ["mcm"], device="cpu")
    assert by_folder.records[0]["metrics"] == evaluate(suite, encoder, ["mcm"]).records[0]["metrics"]
    assert by_folder.records[0]["metrics"] == in_suite.records[0]["metrics"]
    assert by_folder.records[0]["model"]["id"] == clip_folder.name


def test_no_file_names_a_folder_and_models_of_one_name_are_told_apart(
    evaluate: Evaluate, suite: dict[str, Any], clip_folder: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "a" / "model", tmp_path / "b" / "model", tmp_path / "c" / "model"]
    for folder, original in zip(folders, (clip_folder, clipn_folder, clip_folder), strict=True):
        shutil.copytree(original, folder)
    output = tmp_path / "output"
    result = evaluate(suite, folders, ["mcm"], device="cpu", output=output, examine=True)
    # The third is the first, under another path.
    assert len(result.records) == 6
    assert {record["model"]["id"] for record in result.records} == {"model"}
    assert len({record["model"]["weights_sha256"] for record in result.records}) == 2
    assert len({record["scores"]["file"] for record in result.records}) == 6
    texts = [path for path in output.rglob("*") if path.suffix in (".jsonl", ".json", ".md", ".csv", ".tex", ".yaml")]
    assert len(texts) >= 7
    for path in [*texts, output / "report.html"]:
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    index = yaml.safe_load((output / "model-index.yaml").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in index["model-index"]] == ["model", "model"]


def test_a_model_that_cannot_be_loaded_is_named(
    evaluate: Evaluate, suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("There is no connection.")

    monkeypatch.setattr(DualEncoder, "from_pretrained", fail)
    with pytest.raises(OSError, match="The model org/clip cannot be loaded: There is no connection."):
        evaluate(suite, "org/clip", ["mcm"])


def test_a_saved_detector_is_evaluated_as_it_is(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, tmp_path: Path
) -> None:
    detector = OODDetector(encoder, LABELS, "mcm", templates=["a drawing of a {}."], temperature=0.5)
    detector.save_pretrained(tmp_path / "detector")
    result = evaluate(suite, tmp_path / "detector", device="cpu")
    assert {record["method"] for record in result.records} == {"mcm"}
    assert result.records[0]["settings"] == {"temperature": 0.5}
    assert result.records[0]["templates"] == ["a drawing of a {}."]
    far = result.evaluations[2]
    expected = detector.score(files(root / "far")).numpy()
    np.testing.assert_allclose(np.sort(far.ood_scores), np.sort(expected), atol=1e-6)

    renamed = evaluate({**suite, "labels": LABELS[::-1]}, detector, ["energy", "mcm"])
    assert renamed.records[0]["templates"] == ["a drawing of a {}."]
    assert [record["settings"] for record in renamed.records[::3]] == [{"temperature": 1.0}, {"temperature": 0.5}]
    assert detector.labels == LABELS


def test_a_fitted_detector_is_not_fitted_again(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path
) -> None:
    name = next(name for name, method in benchmark.METHODS.items() if "training" in method.needs)
    own_files = files(root / "fit")[::2]
    labels = [Path(file).parent.name for file in own_files]
    detector = OODDetector(encoder, LABELS, name).fit(own_files, labels, use_cache=False)
    assert detector.fitted_on is not None
    fitted_on = copy.deepcopy(detector.fitted_on)
    expected = np.sort(detector.score(files(root / "far")).numpy())
    without_fit = {name: value for name, value in suite.items() if name != "fit"}
    for own_suite in (suite, without_fit):
        result = evaluate(own_suite, detector)
        np.testing.assert_allclose(np.sort(result.evaluations[2].ood_scores), expected, atol=1e-5)
        assert result.records[2]["fit_set"]["sha256"] == fitted_on["sha256"]
        assert result.records[2]["fit_set"]["images"] == 6
    assert detector.fitted_on == fitted_on


@pytest.mark.parametrize(("folder", "name"), [("id", "Id"), ("shifted", "Shifted"), ("far", "Far")])
def test_a_detector_is_not_evaluated_on_what_it_was_fitted_on(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, folder: str, name: str
) -> None:
    seen = files(root / folder)
    detector = OODDetector(encoder, LABELS, "nearest_neighbors").fit([*seen, *files(root / "fit")], use_cache=False)
    with pytest.raises(ValueError, match=f"fitted on {len(seen)} of the {len(seen)} images of {name}"):
        evaluate(suite, detector)


def test_a_detector_that_is_not_fitted_stays_so(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder
) -> None:
    name = next(name for name, method in benchmark.METHODS.items() if "training" in method.needs)
    detector = OODDetector(encoder, LABELS, name)
    assert evaluate(suite, detector).records[0]["fit_set"]["images"] == 12
    assert detector.fitted_on is None


def test_features_need_no_model(evaluate: Evaluate, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    text = np.eye(3, 8, dtype=np.float32)
    labels = np.repeat([0, 1, 2], 6)
    images = (text[labels] + 0.1 * generator.normal(size=(18, 8))).astype(np.float32)
    np.savez(
        root / "features.npz",
        text=text,
        names=np.array(LABELS),
        images=images,
        labels=labels,
        ood=generator.normal(size=(9, 8)).astype(np.float32),
    )
    suite = {
        "name": "features",
        "description": "Vectors.",
        "labels": LABELS,
        "text_features": {
            "path": "features.npz",
            "model": "org/clip",
            "logit_scale": 10.0,
            "banks": [{"embeddings": "text", "names": "names", "template": "a {}"}],
        },
        "id": {
            "name": "Id",
            "source": {"features": "features.npz", "images": "images", "labels": "labels", "label_names": "names"},
        },
        "ood": [{"name": "Far", "group": "far", "source": {"features": "features.npz", "images": "ood"}}],
    }
    result = evaluate(suite, None, ["mcm", "odin", "gl_mcm"], examine=True)
    assert result.skipped == [
        "odin (needs images, and a model to differentiate through)",
        "gl_mcm (needs images, and a model that embeds their patches as texts are embedded)",
    ]
    result = evaluate(suite, None, ["mcm", "atd"], examine=True)
    (record,) = result.records
    assert record["model"]["id"] == "org/clip"
    assert record["templates"] == ["a {}"]
    assert record["metrics"]["id_accuracy"]["value"] == 1
    assert record["metrics"]["auroc"]["value"] > 0.9
    assert record["model"]["image_processor_sha256"] is None
    assert len(result.skipped) == 1
    with pytest.raises(ValueError, match="made of features, which org/clip computed; name no other model"):
        evaluate(suite, "org/other", ["mcm"])

    # The labels of the bank are examined, also where OOD classes are not in it.
    np.savez(root / "more.npz", ood=text[:2], names=np.array(["Cat", "zebra"]), labels=np.array([0, 1]))
    source = {"features": "more.npz", "images": "ood", "labels": "labels", "label_names": "names"}
    suite["ood"].append({"name": "Classes", "group": "near", "source": source})  # type: ignore[attr-defined]
    checks = {finding.check for finding in evaluate(suite, None, ["mcm"], examine=True).findings}
    assert "id-ood-overlap" in checks
    examined = []
    monkeypatch.setattr(benchmark, "examine_labels", lambda *arguments: examined.append(arguments) or [])
    evaluate(suite, None, ["mcm"], examine=True)
    assert [(found[1], found[2] is None) for found in examined] == [(None, False), (["Cat", "zebra"], True)]


def test_negative_labels_of_features_are_other_names(evaluate: Evaluate, root: Path) -> None:
    generator = np.random.default_rng(1)
    names = [*LABELS, "wolf_(animal)", *NAMES]
    text = generator.normal(size=(len(names), 8)).astype(np.float32)
    images = (text[np.repeat([0, 1, 2], 6)] + 0.1 * generator.normal(size=(18, 8))).astype(np.float32)
    np.savez(root / "features.npz", text=text, names=np.array(names), images=images, labels=np.repeat([0, 1, 2], 6))
    source = {"features": "features.npz", "images": "images", "labels": "labels", "label_names": "names"}
    suite: dict[str, Any] = {
        "name": "features",
        "description": "Vectors.",
        "labels": {"draw": 2, "from": "id"},
        "text_features": {
            "path": "features.npz",
            "model": "org/clip",
            "banks": [{"embeddings": "text", "names": "names", "template": "a {}"}],
        },
        "id": {"name": "Id", "source": source},
        "ood": [{"name": "Others", "group": "near", "source": source, "complement": True}],
    }
    skipped = evaluate(suite, None).skipped
    assert "neglabel, csp (need `negatives` in the suite)" in skipped
    assert "negrefine (needs `negatives` in the suite and a model that can embed further texts)" in skipped
    suite["negatives"] = {"corpus": "text_features", "fraction": 0.5}
    result = evaluate(suite, None, seeds=[0, 1, 2, 3])
    assert "csp (needs the corpus csp, in place of which the suite has another one)" in result.skipped
    assert "negrefine (needs a model that can embed further texts)" in result.skipped
    rows = [record for record in result.records if record["method"] == "neglabel"]
    assert [record["seed"] for record in rows] == [0, 1, 2, 3]
    # The class that was not drawn is a candidate as any other name.
    assert {record["negatives"]["report"]["candidates"] for record in rows} == {len(names) - 2}
    assert {record["negatives"]["count"] for record in rows} == {(len(names) - 2) // 2}
    assert len({record["labels"]["sha256"] for record in rows}) > 1
    assert len({record["negatives"]["sha256"] for record in rows}) > 1
    assert len({row_key(record) for record in rows}) == 1
    assert (rows[0]["negatives"]["settings"]["corpus"], rows[0]["templates"]) == ("text_features", ["a {}"])
    # Who names a method gets it.
    csp = evaluate(suite, None, ["csp"]).records[0]
    assert csp["negatives"]["settings"]["quantile"] == 1.0


def test_a_sigmoid_loss_is_in_the_record(evaluate: Evaluate, root: Path) -> None:
    text = np.eye(3, 8, dtype=np.float32)
    np.savez(root / "features.npz", text=text, images=text, labels=np.arange(3), ood=text[:2] + 1)
    source = {"features": "features.npz", "images": "images", "labels": "labels"}
    bank = {"embeddings": "text", "names": LABELS, "template": "a {}"}
    suite = {
        "name": "features",
        "description": "Vectors.",
        "labels": LABELS,
        "text_features": {"path": "features.npz", "model": "m", "logit_scale": 9.0, "logit_bias": -4, "banks": [bank]},
        "id": {"name": "Id", "source": source},
        "ood": [{"name": "Far", "group": "far", "source": {"features": "features.npz", "images": "ood"}}],
    }
    result = evaluate(suite, None)
    assert {"sigmoid", "joint_energy"} <= {record["method"] for record in result.records}
    model = result.records[0]["model"]
    assert (model["is_sigmoid"], model["logit_bias"], model["logit_scale"]) == (True, -4.0, 9.0)


# The doctor


def test_findings_come_with_the_result(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path
) -> None:
    copied = (root / "id" / "cat" / "0.png").read_bytes()
    (root / "far" / "noise" / "6.png").write_bytes(copied)
    findings = evaluate(suite, encoder, ["mcm"], examine=True).findings
    assert any(finding.severity == "error" for finding in findings)
    severities = [benchmark._SEVERITIES.index(finding.severity) for finding in findings]
    assert severities == sorted(severities)
    assert len(set(findings)) == len(findings)
    twice = evaluate(suite, [encoder, encoder], ["mcm"], examine=True, seeds=[0, 1]).findings
    assert twice == findings
    assert evaluate(suite, encoder, ["mcm"]).findings == []


def test_counts_are_examined(evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder) -> None:
    suite["labels"] = [*LABELS, "horse", "cow"]
    suite["id"]["images"] = 15
    suite["ood"][1] |= {"images": 5640, "limit": 5}
    result = evaluate(suite, encoder, ["mcm"], examine=True)
    found = {finding.check: finding for finding in result.findings}
    assert "Far has 6 images, but 5,640 by the protocol" in found["image-count"].message
    assert found["image-count"].items == ()
    assert any(set(finding.items) == {"horse", "cow"} for finding in result.findings)
    assert result.records[0]["id_set"]["expected"] == 15
    assert (result.records[2]["set"]["expected"], result.records[2]["set"]["excluded"]) == (5640, 1)


def test_after_an_error_results_are_called_wrong(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, root: Path, warnings: list[str]
) -> None:
    (root / "far" / "noise" / "6.png").write_bytes((root / "id" / "cat" / "0.png").read_bytes())
    evaluate(suite, encoder, ["mcm"], examine=True)
    assert sum("Results are wrong in this respect" in line for line in warnings) == 1


def test_drawn_labels_are_examined_for_each_seed(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = []

    def examine(labels: list[str], *_: Any) -> list[Finding]:
        examined.append(labels)
        return [Finding(severity, "check", f"{labels}.", ()) for severity in ("note", "error")]  # type: ignore[arg-type]

    monkeypatch.setattr(benchmark, "examine_labels", examine)
    suite["labels"] = {"draw": 2, "from": "id"}
    del suite["fit"], suite["covariate_shift"]
    suite["id"]["classes"] = {"only": "labels"}
    findings = evaluate(suite, encoder, ["mcm"], examine=True, seeds=[0, 1, 2, 3]).findings
    own = [finding for finding in findings if finding.check == "check"]
    assert len(examined) == 4
    assert len({str(labels) for labels in examined}) > 1
    assert [finding.message for finding in own if finding.severity == "note"] == [f"{examined[0]}."]
    assert {finding.message for finding in own if finding.severity == "error"} == {f"{one}." for one in examined}


# What is written


TEXTS = {"results.jsonl", "tables.md", "tables.csv", "tables.tex", "report.html", "doctor.json", "model-index.yaml"}
OUTPUT = TEXTS | {"averages.json", "scores", "figures"}


def test_output_folder(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, clipn_encoder: DualEncoder, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "new" / "output"
    result = evaluate(suite, [encoder, clipn_encoder], ["mcm", "energy"], output=output, examine=True)
    assert {path.name for path in output.iterdir()} == OUTPUT
    records = read_records(output / "results.jsonl")
    assert records == result.records
    assert len(list((output / "scores").iterdir())) == len(records) == 12
    for record, evaluation in zip(records, result.evaluations, strict=True):
        scores = load_scores(record, output)
        np.testing.assert_array_equal(scores["ood_scores"], evaluation.ood_scores)
        np.testing.assert_array_equal(scores["id_labels"], evaluation.id_labels)
    assert not [path for path in output.rglob("*") if "partial" in path.name]
    figures = {path.name for path in (output / "figures").iterdir()}
    assert {"heat-map-auroc.png", "risk-coverage.png", "roc-far.png", "histograms-near.png"} <= figures
    index = yaml.safe_load((output / "model-index.yaml").read_text(encoding="utf-8"))
    assert index["model-index"]
    assert "Near" in (output / "tables.md").read_text(encoding="utf-8")
    assert json.loads((output / "doctor.json").read_text(encoding="utf-8"))

    first = {path: path.read_bytes() for path in (output / "scores").iterdir()}
    evaluate(suite, [encoder, clipn_encoder], ["mcm", "energy"], output=output)
    assert {path: path.read_bytes() for path in (output / "scores").iterdir()} == first


def test_a_new_run_leaves_nothing_of_an_earlier_one(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    evaluate(suite, encoder, ["mcm", "energy"], output=output)
    entry = output / ".eval_results" / "clip" / "ood_detection_tiny_mcm.yaml"
    entry.parent.mkdir(parents=True)
    own = [output / name for name in ("notes.md", "figures/own.png", "scores/own.txt")]
    for path in (*own, entry):
        path.touch()
    suite["ood"] = suite["ood"][:1]
    result = evaluate(suite, encoder, ["msp"], output=output)
    assert {f"scores/{path.name}" for path in (output / "scores").glob("*.safetensors")} == {
        record["scores"]["file"] for record in result.records
    }
    assert not list(output.glob("figures/*-far.png"))
    assert not (output / ".eval_results").exists()
    assert all(path.exists() for path in own)


def test_results_on_sets_of_the_hub_are_entries_for_it(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(output_module, "write_eval_results", lambda *_, dataset_id: written.append(dataset_id))
    evaluate(suite, encoder, ["mcm"], output=tmp_path / "local")
    assert not written
    table = load_dataset("imagefolder", data_dir=str(tmp_path / "data" / "id"), split="train")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: table)
    suite["id"]["source"] = {"hub": "org/pets", "label_column": "label"}
    evaluate(suite, encoder, ["mcm"], output=tmp_path / "hub")
    assert written == ["org/pets"]


def test_tables_show_the_metrics_that_are_asked_for(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    suite["ood"].append({"name": "Farther", "group": "far", "source": {"imagefolder": "shifted"}})
    del suite["covariate_shift"]
    result = evaluate(suite, encoder, ["mcm"], output=tmp_path / "output", metrics=["oscr", "aupr_out"])
    for name in ("tables.md", "tables.tex"):
        table = (tmp_path / "output" / name).read_text(encoding="utf-8")
        assert "OSCR" in table and "AUPR" in table and "FPR95" not in table
    (average,) = read_averages(tmp_path / "output" / "averages.json")
    assert (average["group"], set(average["metrics"])) == ("far", {"oscr", "aupr_out"})
    assert result.averages == [average]
    assert evaluate(suite, encoder, ["mcm"], seeds=[0, 1]).averages == []


def test_outputs_can_be_compared(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, tmp_path: Path
) -> None:
    outputs = [tmp_path / name for name in ("mcm", "energy")]
    for output in outputs:
        evaluate(suite, encoder, [output.name], output=output)
    paths = [output / "results.jsonl" for output in outputs]
    comparisons = compare(*paths, resamples=20, progress=False).comparisons
    assert [comparison.set for comparison in comparisons] == ["Shifted", "Near", "Far"]
    (_, _, shuffled) = (tmp_path / name for name in ("a", "b", "shuffled"))
    evaluate({**suite, "labels": LABELS[::-1]}, encoder, ["mcm"], output=shuffled)
    with pytest.raises(ValueError, match="the class lists"):
        compare(paths[0], shuffled / "results.jsonl", progress=False)


def test_without_matplotlib_there_are_no_figures(
    evaluate: Evaluate,
    suite: dict[str, Any],
    encoder: DualEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    evaluate(suite, encoder, ["mcm"], output=tmp_path / "output")
    assert not list((tmp_path / "output").rglob("*.png"))
    assert {path.name for path in (tmp_path / "output").iterdir()} >= OUTPUT - {"figures"}


def test_an_interrupted_run_goes_on_where_it_was(
    evaluate: Evaluate,
    suite: dict[str, Any],
    encoder: DualEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = count_images(monkeypatch)
    output = tmp_path / "output"
    saved = benchmark.save_scores
    calls: list[Any] = []

    def interrupted(*arguments: Any) -> dict[str, str]:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return saved(*arguments)

    monkeypatch.setattr(benchmark, "save_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(suite, encoder, ["mcm", "energy"], output=output)
    assert not (output / "results.jsonl").exists()
    assert not [path for path in output.rglob("*") if "partial" in path.name]
    encoded = sum(passes)
    monkeypatch.setattr(benchmark, "save_scores", saved)
    result = evaluate(suite, encoder, ["mcm", "energy"], output=output)
    assert sum(passes) == encoded
    assert read_records(output / "results.jsonl") == result.records


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["mmc"]}, "There is no method 'mmc', did you mean 'mcm'\\? There are atd, .*"),
        ({"methods": []}, "`methods` is empty; give at least one, such as .'mcm'.\\."),
        ({"models": []}, "`models` is empty"),
        ({"seeds": []}, "`seeds` is empty"),
        ({"seeds": [-1]}, "`seeds` must not be negative, but one is -1"),
        ({"metrics": ["aurok"]}, "aurok.* did you mean 'auroc'"),
        ({"metrics": []}, "`metrics` is empty"),
        ({"resamples": -1}, "`resamples` must be a whole number"),
    ],
)
def test_bad_arguments_are_refused_before_any_image_is_read(
    evaluate: Evaluate,
    suite: dict[str, Any],
    encoder: DualEncoder,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    passes = count_images(monkeypatch)
    with pytest.raises(ValueError, match=message):
        evaluate(suite, **({"models": encoder} | arguments))
    assert not passes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": "mcm"}, r"`methods` must be a list, such as \['mcm'\], got 'mcm'\."),
        ({"metrics": "auroc"}, r"`metrics` must be a list, such as \['auroc'\], got 'auroc'\."),
        ({"seeds": 3}, r"`seeds` must be a list, such as \[0\], got 3\."),
        ({"seeds": ["a"]}, "`seeds` must be a list of whole numbers, but one is 'a'"),
        ({"models": 3}, r"`models` must be a list, such as \['openai/clip-vit-base-patch16'\], got 3\."),
        ({"models": [3]}, "`models` must be ids, folders, encoders or detectors, but one is int 3"),
    ],
)
def test_arguments_of_other_types_are_refused(
    evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        evaluate(suite, **({"models": encoder} | arguments))


def test_a_suite_with_a_typo_names_the_key(evaluate: Evaluate, suite: dict[str, Any], encoder: DualEncoder) -> None:
    suite["ood"][0]["sourse"] = suite["ood"][0].pop("source")
    with pytest.raises(ValueError, match="sourse.*source"):
        evaluate(suite, encoder)


# Real embeddings


def test_features_of_a_real_clip(shared: Path) -> None:
    result = evaluate_suite("cifar10-features-fitted", data_root=shared, resamples=0, examine=False, progress=False)
    values = {record["method"]: record["metrics"]["auroc"]["value"] for record in result.records}
    assert {"mcm", "energy"} < set(values)
    assert min(values.values()) > 0.5
    assert {record["model"]["id"] for record in result.records} == {"openai/clip-vit-base-patch32"}
    assert torch.isfinite(torch.tensor(list(values.values()))).all()
