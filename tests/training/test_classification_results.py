# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of classifiers as OOD detectors, their table, and what records of runs say."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder
from clipn_hf.features import Features
from clipn_hf.methods.linear_probe import add_gaussians
from clipn_hf.probing.linear_probe import probe_logits
from clipn_hf.scores import Gaussians, energy, fit_gaussians, max_logit, perplexity, relative_mahalanobis
from clipn_hf.training.classification_results import (
    classification_metrics,
    describe_run,
    flatten_metrics,
    format_metrics,
    summarize_metrics,
)


def test_metrics_are_those_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    train_labels = torch.arange(40) % 4
    train, known = (4 * torch.eye(6)[labels] for labels in (train_labels, train_labels[:20]))
    train, known = (part + torch.randn(part.shape, generator=generator) for part in (train, known))
    unknown = torch.randn(15, 6, generator=generator)
    metrics = classification_metrics(known, train_labels[:20], {"noise": unknown}, train, train_labels)

    assert metrics["accuracy"] == pytest.approx((known.argmax(dim=1) == train_labels[:20]).float().mean().item())
    truth = [0] * 20 + [1] * 15
    # Of the classes 4 and 5 there are no training images.
    gaussians = fit_gaussians(train, train_labels)
    for name, score in (("energy", energy), ("relative_mahalanobis", lambda x: relative_mahalanobis(x, gaussians))):
        scores = score(torch.cat([known, unknown]))
        assert metrics["ood"]["noise"][name]["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert [*metrics["ood"]["noise"]] == ["msp", "energy", "relative_mahalanobis"]
    without = classification_metrics(known, train_labels[:20], {"noise": unknown})
    assert [*without["ood"]["noise"]] == ["msp", "energy"]
    assert without["ood"]["noise"]["msp"] == metrics["ood"]["noise"]["msp"]

    flat = flatten_metrics(metrics)
    assert len(flat) == 1 + 3 * 2
    assert flat["noise_fpr95_relative_mahalanobis"] == metrics["ood"]["noise"]["relative_mahalanobis"]["fpr95"]


def test_intervals_hold_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    known, unknown = 2 * torch.randn(60, 3, generator=generator), torch.randn(50, 3, generator=generator)
    metrics = classification_metrics(known, torch.arange(60) % 3, {"a": unknown}, resamples=50)["ood"]["a"]["msp"]
    for name in ("auroc", "fpr95"):
        low, high = metrics[f"{name}_interval"]
        assert low < metrics[name] < high


def test_classes_that_pseudo_labels_leave_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(30, 5, generator=generator), 3 * (torch.arange(30) % 2)
    metrics = classification_metrics(logits, labels, {"a": -logits}, logits, labels)
    assert 0 <= metrics["ood"]["a"]["relative_mahalanobis"]["auroc"] <= 1
    # One image of each class has no covariance.
    one = classification_metrics(logits, labels, {"a": -logits}, logits[:5], torch.arange(5))
    assert "relative_mahalanobis" not in one["ood"]["a"]
    # Of runs of which some lack a score, there is no mean.
    assert [*summarize_metrics([metrics, one])["ood"]["a"]] == ["msp", "energy"]


def run(accuracy: float, **scores: tuple[float, float]) -> dict[str, Any]:
    measured = {score: {"auroc": auroc, "fpr95": fpr95} for score, (auroc, fpr95) in scores.items()}
    return {"accuracy": accuracy, "ood": {"a|b_energy": measured}}


def test_two_logits_are_compared_as_the_detector_does(recwarn: pytest.WarningsRecorder) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 8, generator=generator)
    features, labels = torch.randn(60, 8, generator=generator), torch.arange(60) % 2
    features[labels == 1] += weight
    # What is trained from 0 has rows that differ in their signs alone.
    tensors = {"weight": torch.cat([-weight, weight]), "bias": torch.zeros(2)}
    tensors |= {"mean": torch.zeros(8), "std": torch.ones(8)}
    state, logits = add_gaussians(tensors, features, labels), probe_logits(features, **tensors)
    unknown = 3 * torch.randn(40, 2, generator=generator)
    unknown[:, 1] = -unknown[:, 0]
    metrics = classification_metrics(logits, labels, {"a": unknown}, logits, labels)
    gaussians = Gaussians(**{name: state[name] for name in Gaussians._fields})
    scores = relative_mahalanobis(torch.cat([logits, unknown]), gaussians)
    found = metrics["ood"]["a"]["relative_mahalanobis"]["auroc"]
    assert found == pytest.approx(roc_auc_score([0] * 60 + [1] * 40, scores))
    assert not recwarn.list


@pytest.mark.parametrize(("score", "function"), [("max_logit", max_logit), ("perplexity", perplexity)])
def test_the_score_of_the_detector_is_measured(score: str, function: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    known, unknown = 2 * torch.randn(30, 4, generator=generator), torch.randn(20, 4, generator=generator)
    metrics = classification_metrics(known, torch.arange(30) % 4, {"a": unknown}, score=score)["ood"]["a"]
    assert [*metrics] == ["msp", "energy", score]
    truth = [0] * 30 + [1] * 20
    assert metrics[score]["auroc"] == pytest.approx(roc_auc_score(truth, function(torch.cat([known, unknown]))))
    with pytest.raises(ValueError, match="`score` must be one of 'msp', 'energy', 'max_logit', .*, got 'entropy'"):
        classification_metrics(known, torch.arange(30) % 4, {"a": unknown}, score="entropy")


def test_table() -> None:
    runs = [run(0.5, msp=(0.9, 0.3), energy=(1.0, 0.0)), run(0.7, msp=(0.8, 0.5), energy=(0.9, 0.1))]
    summary = summarize_metrics(runs)
    assert summary["accuracy"] == {"mean": pytest.approx(0.6), "std": pytest.approx(np.std([0.5, 0.7], ddof=1))}
    assert summarize_metrics(runs[:1])["accuracy"] == {"mean": 0.5, "std": None}
    table = format_metrics({"two seeds": summary, "one|first": summarize_metrics([run(0.5, msp=(0.9, 0.3))])})
    assert table.splitlines() == [
        r"| classifier | score | accuracy ↑ | a\|b_energy AUROC ↑ | a\|b_energy FPR95 ↓ |",
        "| --- | --- | ---: | ---: | ---: |",
        "| two seeds | MSP | 60.0 ± 14.1 | 85.0 ± 7.1 | 40.0 ± 14.1 |",
        "| two seeds | Energy | 60.0 ± 14.1 | 95.0 ± 7.1 | 5.0 ± 7.1 |",
        r"| one\|first | MSP | 50.0 | 90.0 | 30.0 |",
    ]
    assert format_metrics({"one": {"accuracy": {"mean": 0.25, "std": None}, "ood": {}}}).splitlines() == [
        "| classifier | accuracy ↑ |",
        "| --- | ---: |",
        "| one | 25.0 |",
    ]


def test_record_says_what_was_measured_and_how(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    features = Features(torch.eye(2), torch.tensor([0, 2]), ["aa" * 32, "bb" * 32], {1: "damaged"}, 2)
    record = describe_run(encoder, {"seeds": [0]}, ["cat", "dog"], {"train": features})
    assert record["encoder"]["images_sha256"] == encoder.describe_images()["sha256"]
    assert {"id", "revision", "dtype", "weights_sha256"} < record["encoder"].keys()
    images = record["images"]["train"]
    assert (images["images"], images["unreadable"], len(images["sha256"])) == (2, 1, 64)
    assert record["convention"]["fpr_positive"] == "id"
    assert {"clipn_hf", "torch", "transformers", "python"} <= record["versions"].keys()
    json.dumps(record, allow_nan=False)
