# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up evaluations of several models, methods, sets and seeds, for what presents results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipn_hf.evaluation.doctor import Finding
from clipn_hf.evaluation.results import CONVENTION, OOD_METRICS, SHIFT, SHIFT_METRICS, Evaluation, measure
from clipn_hf.evaluation.sets import LoadedSet
from clipn_hf.evaluation.suite import Suite, load_suite

LABELS = ["airplane", "cat", "dog"]
SETS = {"near": ["CIFAR-100 part"], "far": ["MNIST", "Textures & more"], SHIFT: ["CIFAR-10, drawn"]}


@dataclass(frozen=True)
class Result:
    """Stands in for a `SuiteResult`."""

    suite: Suite
    evaluations: list[Evaluation]
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    averages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [evaluation.record for evaluation in self.evaluations]


def build_suite(name: str, sets: Mapping[str, Sequence[str]]) -> Suite:
    def describe(name: str, **fields: str) -> dict[str, Any]:
        return {"name": name, "source": {"imagefolder": name}, **fields}

    return load_suite(
        {
            "name": name,
            "description": "Made-up scores.",
            "reference": "2110.11334",
            "protocol": "Draw numbers.\nLook at them.",
            "labels": LABELS,
            "id": describe("CIFAR-10"),
            "ood": [describe(each, group=group) for group in ("near", "far") for each in sets.get(group, ())],
            **({"covariate_shift": [describe(each) for each in sets[SHIFT]]} if SHIFT in sets else {}),
        }
    )


def build_set(name: str, group: str, count: int, generator: np.random.Generator, pixels: bool) -> LoadedSet:
    labels = generator.integers(0, len(LABELS), count).tolist()
    color = tuple(generator.integers(0, 256, 3).tolist())
    return LoadedSet(
        name=name,
        group=group,
        note="Has known overlaps." if name == "MNIST" else "",
        images=[Image.new("RGB", (32, 24), color) for _ in range(count)] if pixels else None,
        names=[f"{name}/{index:04}.png" for index in range(count)],
        labels=labels if group in ("id", SHIFT) else None,
        class_names=[LABELS[label] for label in labels] if group in ("id", SHIFT) else None,
        embeddings=None,
        num_excluded=0,
    )


def build_result(
    models: Sequence[str] = ("openai/clip-vit-base-patch16", "/data/me/runs/clipn-tiny"),
    methods: Sequence[str] = ("mcm", "energy", "atd"),
    sets: Mapping[str, Sequence[str]] | None = None,
    seeds: Sequence[int] = (0,),
    name: str = "cifar10",
    images: int = 80,
    resamples: int = 20,
    pixels: bool = True,
) -> Result:
    """Draw scores: the further to the right a method and a model stand, the better; far sets are easier."""
    sets = SETS if sets is None else sets
    suite = build_suite(name, sets)
    evaluations = []
    for model_rank, model in enumerate(models):
        for seed in seeds:
            generator = np.random.default_rng([seed, model_rank])
            id_set = build_set("CIFAR-10", "id", images, generator, pixels)
            others = [
                build_set(each, group, images // 2, generator, pixels)
                for group in ("near", "far", SHIFT)
                for each in sets.get(group, ())
            ]
            id_labels = np.array(id_set.labels)
            for rank, method in enumerate(methods):
                id_scores = generator.normal(0, 1, images).astype(np.float32)
                hits = generator.random(images) < 0.95 - 0.15 * (id_scores > 0.5)
                predictions = np.where(hits, id_labels, (id_labels + 1) % len(LABELS))
                for other in others:
                    gain = {"near": 0.5, "far": 1.5, SHIFT: 0.1}[other.group] + 0.4 * rank + 0.3 * model_rank
                    scores = generator.normal(gain, 1, len(other)).astype(np.float32)
                    names = SHIFT_METRICS if other.group == SHIFT else OOD_METRICS
                    labelled = () if other.group == SHIFT else (predictions, id_labels)
                    metrics = measure(names, id_scores, scores, *labelled, resamples=resamples, seed=seed)
                    if other.group == SHIFT:
                        metrics["accuracy"] = {"value": 0.8, "low": None, "high": None}
                    record = {
                        "schema_version": 1,
                        "suite": name,
                        "suite_sha256": suite.sha256,
                        "date": "2026-11-21T16:00:00+00:00",
                        "model": {
                            "id": model,
                            "revision": None,
                            "class": "CLIPNModel",
                            "weights_sha256": f"{model_rank:064x}",
                            "config_sha256": "5" * 64,
                            "image_processor_sha256": "6" * 64,
                            "dtype": "float32",
                            "device": "cpu",
                            "logit_scale": 100.0,
                        },
                        "method": method,
                        "settings": {"temperature": 1.0},
                        "templates": ["a photo of a {}."],
                        "no_templates": None,
                        "labels": {"count": len(LABELS), "sha256": "1" * 64},
                        "seed": seed,
                        "id_set": {"name": "CIFAR-10", "images": images, "unreadable": 0, "sha256": "2" * 64},
                        "fit_set": None,
                        "set": {
                            "name": other.name,
                            "group": other.group,
                            "images": len(other),
                            "unreadable": 3 if other.name == "MNIST" else 0,
                            "sha256": "3" * 64,
                            "excluded": 7 if other.name == "MNIST" else 0,
                            "expected": 10_000 if other.name == "MNIST" else None,
                            "note": other.note,
                        },
                        "convention": dict(CONVENTION),
                        "metrics": metrics,
                        "bootstrap": {"resamples": resamples, "confidence": 0.95, "seed": seed} if resamples else None,
                        "scores": None,
                        "versions": {"clipn_hf": "0.1.0", "torch": "2.13.0"},
                    }
                    evaluations.append(
                        Evaluation(
                            record=record,
                            id_scores=id_scores,
                            ood_scores=scores,
                            id_predictions=predictions,
                            id_labels=id_labels,
                            ood_predictions=np.zeros(len(other), dtype=np.int64),
                            id_rows=np.arange(images),
                            ood_rows=np.arange(len(other)),
                            id_set=id_set,
                            ood_set=other,
                            labels=list(LABELS),
                        )
                    )
    finding = Finding("warning", "near-synonyms", "Two labels mean the same; drop one.", ("cat", "dog"))
    return Result(suite, evaluations, [finding], ["mcm: the model has no text encoder."])


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    return build_result


@pytest.fixture(scope="session")
def result() -> Result:
    """Two models, three methods, four sets, one seed. Read only: all tests of a process share it."""
    return build_result()


@pytest.fixture(scope="session")
def seeds_result() -> Result:
    """The same with three seeds, without pixels."""
    return build_result(seeds=(0, 1, 2), resamples=0, pixels=False)


# Single records, for what reads and compares them


def draw_scores(seed: int = 0, id_images: int = 80, ood_images: int = 50, shift: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, id_images)
    return {
        # Rounded, so that some scores are equal.
        "id_scores": generator.normal(0, 1, id_images).round(1).astype(np.float32),
        "ood_scores": generator.normal(shift, 1, ood_images).round(1).astype(np.float32),
        "id_predictions": np.where(generator.random(id_images) < 0.8, labels, (labels + 1) % 3),
        "id_labels": labels,
    }


def build_record(**changes: Any) -> dict[str, Any]:
    record = {
        "schema_version": 1,
        "suite": "tiny",
        "suite_sha256": "0" * 64,
        "date": "2026-11-21T16:00:00+00:00",
        "model": {
            "id": "org/model",
            "revision": None,
            "class": "CLIPModel",
            "weights_sha256": "1" * 64,
            "config_sha256": "5" * 64,
            "image_processor_sha256": None,
        },
        "method": "mcm",
        "settings": {"temperature": 1.0},
        "templates": ["a photo of a {}."],
        "no_templates": None,
        "labels": {"count": 3, "sha256": "2" * 64},
        "seed": 0,
        "id_set": {"name": "ID", "images": 80, "unreadable": 0, "sha256": "3" * 64},
        "fit_set": None,
        "set": {"name": "Far away", "group": "far", "images": 50, "unreadable": 0, "sha256": "4" * 64, "note": ""},
        "convention": {"fpr_positive": "id", "fpr_rule": "exact", "tpr": 0.95, "aupr_rule": "average_precision"},
        "metrics": {"auroc": {"value": 0.75, "low": 0.7, "high": 0.8}},
        "bootstrap": None,
        "scores": None,
        "versions": {},
    }
    return record | changes


def build_evaluation(
    record: dict[str, Any], scores: dict[str, np.ndarray], ood_labels: list[int] | None = None
) -> Evaluation:
    return Evaluation(
        record=record,
        **scores,
        ood_predictions=np.zeros(len(scores["ood_scores"]), dtype=np.int64),
        id_rows=np.arange(len(scores["id_scores"])),
        ood_rows=np.arange(len(scores["ood_scores"])),
        id_set=None,  # type: ignore[arg-type]
        ood_set=SimpleNamespace(labels=ood_labels),  # type: ignore[arg-type]
        labels=["a", "b", "c"],
    )


@pytest.fixture(scope="session")
def draw() -> Callable[..., dict[str, np.ndarray]]:
    return draw_scores


@pytest.fixture(scope="session", name="build_record")
def _build_record() -> Callable[..., dict[str, Any]]:
    return build_record


@pytest.fixture(scope="session", name="build_evaluation")
def _build_evaluation() -> Callable[..., Evaluation]:
    return build_evaluation
