# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How well classifiers tell classes from each other, and images of the classes from all others: numbers, tables and
records of runs.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..digests import data_digest
from ..encoders import DualEncoder
from ..evaluation.metrics import auroc, bootstrap_interval, fpr_at_tpr
from ..evaluation.provenance import describe_encoder, list_versions
from ..evaluation.results import CONVENTION
from ..evaluation.tables import escape_markdown, grid
from ..features import Features
from ..methods.linear_probe import fit_logit_gaussians
from ..scores import energy, max_logit, msp, perplexity, relative_mahalanobis

SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {"msp": msp, "energy": energy}
# Measured where a detector judges by them.
_FURTHER_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {"max_logit": max_logit, "perplexity": perplexity}
# Of the logits of training images, too.
RELATIVE_MAHALANOBIS = "relative_mahalanobis"
# What tables call scores.
SCORE_TITLES: Mapping[str, str] = {
    "msp": "MSP",
    "energy": "Energy",
    "max_logit": "MaxLogit",
    "perplexity": "perplexity",
    "relative_mahalanobis": "relative Mahalanobis",
    "mcm": "MCM",
    "gl_mcm": "GL-MCM",
    "clip_os": "CLIP-OS with MCM",
    "clip_os_gl_mcm": "CLIP-OS with GL-MCM",
    "unknown_probability": "unknown probability",
}
RESAMPLES = 1000
_METRICS: Mapping[str, Callable[..., float]] = {"auroc": auroc, "fpr95": fpr_at_tpr}


def classification_metrics(
    id_logits: Tensor,
    id_labels: Tensor,
    ood_logits: Mapping[str, Tensor],
    train_logits: Tensor | None = None,
    train_labels: Tensor | None = None,
    resamples: int = 0,
    score: str | None = None,
) -> dict[str, Any]:
    """Measure how well logits tell classes from each other, and images of the classes from all others.

    Args:
        id_logits (`torch.Tensor` of shape `(images, classes)`): Of test images of the classes.
        id_labels (`torch.Tensor` of shape `(images,)`): Their classes, int64.
        ood_logits (`Mapping[str, torch.Tensor]`): Of each OOD set, `(images, classes)`, by its name.
        train_logits (`torch.Tensor` of shape `(images, classes)`, *optional*):
            Of the training images. With them the relative Mahalanobis distance on logits is measured, too.
        train_labels (`torch.Tensor` of shape `(images,)`, *optional*): What these were trained to be, int64.
        resamples (`int`, *optional*, defaults to 0):
            Draws of the bootstrap for 95 % intervals over images; none without any.
        score (`str`, *optional*): A score that is measured in any case, as a detector judges by it.

    Returns:
        `dict`: `"accuracy"`, and under `"ood"` of each set and score `"auroc"` and `"fpr95"` (ID positive), in [0, 1],
        with `resamples` also `"auroc_interval"` and `"fpr95_interval"`, `[low, high]`. Scores are msp, energy, `score`
        and, with training images, relative_mahalanobis. Of FPR95 lower is better, of all else higher.

    Raises:
        ValueError: Logits that are not finite, or what the scores refuse; there is no such `score`.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.training.classification_results import classification_metrics
    >>> known = torch.tensor([[4.0, 0.0], [0.0, 3.0]])
    >>> measured = classification_metrics(known, torch.tensor([0, 1]), {"noise": torch.tensor([[0.1, 0.0]])})
    >>> measured["ood"]["noise"]["msp"]
    {'auroc': 1.0, 'fpr95': 0.0}

    ```
    """
    scores = dict(SCORES)
    if score is not None and score in _FURTHER_SCORES:
        scores[score] = _FURTHER_SCORES[score]
    elif score not in (None, *SCORES, RELATIVE_MAHALANOBIS):
        known = ", ".join(map(repr, (*SCORES, *_FURTHER_SCORES, RELATIVE_MAHALANOBIS)))
        raise ValueError(f"`score` must be one of {known}, got {score!r}.")
    if train_logits is not None and train_labels is not None and ood_logits:
        # Pseudo-labels may leave classes out, and of single images there is no covariance.
        classes, counts = train_labels.unique(return_counts=True)
        if len(classes) > 1 and counts.max() > 1:
            gaussians = fit_logit_gaussians([train_logits], train_labels)
            scores[RELATIVE_MAHALANOBIS] = lambda logits: relative_mahalanobis(logits, gaussians)
    return score_metrics(
        id_logits.argmax(dim=1),
        id_labels,
        {name: compute(id_logits) for name, compute in scores.items()},
        {name: {called: compute(logits) for called, compute in scores.items()} for name, logits in ood_logits.items()},
        resamples,
    )


def score_metrics(
    predictions: Tensor,
    id_labels: Tensor,
    id_scores: Mapping[str, Tensor],
    ood_scores: Mapping[str, Mapping[str, Tensor]],
    resamples: int = 0,
) -> dict[str, Any]:
    """Measure how well predictions hit classes, and scores tell images of the classes from all others.

    Args:
        predictions (`torch.Tensor` of shape `(images,)`): Classes of test images, int64.
        id_labels (`torch.Tensor` of shape `(images,)`): Their true classes, int64.
        id_scores (`Mapping[str, torch.Tensor]`): OOD-ness `(images,)` of the test images by score, higher = more OOD.
        ood_scores (`Mapping[str, Mapping[str, torch.Tensor]]`): The same of each OOD set, by its name and score.
        resamples (`int`, *optional*, defaults to 0): As for [`classification_metrics`].

    Returns:
        `dict`: As [`classification_metrics`].

    Raises:
        ValueError: Scores that are not finite.
    """
    ood: dict[str, dict[str, dict[str, Any]]] = {}
    for name, of_set in ood_scores.items():
        ood[name] = {}
        for called, of_ood in of_set.items():
            measured = ood[name].setdefault(called, {})
            for metric, measure in _METRICS.items():
                measured[metric] = measure(id_scores[called], of_ood)
                if resamples:
                    interval = bootstrap_interval(measure, id_scores[called], of_ood, resamples=resamples)
                    measured[f"{metric}_interval"] = [interval.low, interval.high]
    return {"accuracy": (predictions == id_labels).double().mean().item(), "ood": ood}


def flatten_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Name what [`classification_metrics`] gave as [`~transformers.Trainer`] logs it.

    Args:
        metrics (`Mapping`): Nested.

    Returns:
        `dict[str, float]`: `"accuracy"`, `"<set>_auroc_<score>"` and `"<set>_fpr95_<score>"`.
    """
    flat = {"accuracy": metrics["accuracy"]}
    for name, of_set in metrics["ood"].items():
        for score, measured in of_set.items():
            flat |= {f"{name}_{metric}_{score}": measured[metric] for metric in _METRICS}
    return flat


def summarize_metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average runs that differ in their seeds alone.

    Args:
        runs (`Sequence[Mapping]`): What [`classification_metrics`] gave of each, at least one.

    Returns:
        `dict`: The same, with `"mean"` and `"std"` in place of each number; `"std"` has the denominator n - 1 and is
        None of one run.

    Example:

    ```python
    >>> from clipn_hf.training.classification_results import summarize_metrics
    >>> summarize_metrics([{"accuracy": 0.5, "ood": {}}, {"accuracy": 0.7, "ood": {}}])
    {'accuracy': {'mean': 0.6, 'std': 0.1414...}, 'ood': {}}

    ```
    """
    return {
        "accuracy": _summarize([run["accuracy"] for run in runs]),
        "ood": {
            name: {
                # Few images may leave a run without one of the scores.
                score: {metric: _summarize([run["ood"][name][score][metric] for run in runs]) for metric in _METRICS}
                for score in of_set
                if all(score in run["ood"][name] for run in runs)
            }
            for name, of_set in runs[0]["ood"].items()
        },
    }


def format_metrics(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Write what [`summarize_metrics`] gave as a table in Markdown, in percent.

    Args:
        summaries (`Mapping`): The summary of each classifier, by what it is called.

    Returns:
        `str`: A line for each classifier and score, with accuracy and AUROC and FPR95 (ID positive) of each OOD set.
    """
    sets = list(dict.fromkeys(name for summary in summaries.values() for name in summary["ood"]))
    header = ["classifier", *(["score"] if sets else []), "accuracy ↑"]
    header += [f"{name} {metric}" for name in sets for metric in ("AUROC ↑", "FPR95 ↓")]
    rows = []
    for called, summary in summaries.items():
        accuracy = _percent(summary["accuracy"])
        if not sets:
            rows.append([called, accuracy])
            continue
        for score in summary["ood"][sets[0]]:
            measured = [summary["ood"][name][score][metric] for name in sets for metric in _METRICS]
            rows.append([called, SCORE_TITLES.get(score, score), accuracy, *map(_percent, measured)])
    texts = 2 if sets else 1
    return grid(
        [escape_markdown(cell) for cell in header],
        [[*map(escape_markdown, row[:texts]), *row[texts:]] for row in rows],
        texts=texts,
    )


def describe_run(
    encoder: DualEncoder, arguments: Mapping[str, Any], labels: Sequence[str], sets: Mapping[str, Features]
) -> dict[str, Any]:
    """Say of a run what does not depend on how it went, for the record of its results.

    Args:
        encoder ([`DualEncoder`]): What the run begins with.
        arguments (`Mapping`): All arguments of the run.
        labels (`Sequence[str]`): The classes.
        sets (`Mapping[str, Features]`): The images, by what they are for.

    Returns:
        `dict`: Of what JSON knows: `"arguments"`, `"encoder"`, `"labels"`, `"images"` with the number and the digest
        of the images of each set, `"convention"` of the metrics, `"bootstrap"`, `"versions"`.
    """
    return {
        "arguments": dict(arguments),
        # With the digest by which a probe is refused where it does not belong.
        "encoder": {**describe_encoder(encoder), "images_sha256": encoder.describe_images()["sha256"]},
        "labels": list(labels),
        "images": describe_sets(sets),
        "convention": dict(CONVENTION),
        "bootstrap": {"resamples": RESAMPLES, "confidence": 0.95, "seed": 0},
        "versions": list_versions(),
    }


def describe_sets(sets: Mapping[str, Features]) -> dict[str, dict[str, Any]]:
    """Say which images there are, for the record of a run.

    Args:
        sets (`Mapping[str, Features]`): The images, by what they are for.

    Returns:
        `dict`: Of what JSON knows: number and digest of the images of each set, and how many cannot be read.
    """
    return {
        name: {
            "images": len(features),
            "unreadable": len(features.skipped),
            "sha256": data_digest([bytes.fromhex(digest) for digest in features.digests]),
        }
        for name, features in sets.items()
    }


def _summarize(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _percent(summary: Mapping[str, float | None]) -> str:
    mean, deviation = summary["mean"], summary["std"]
    assert mean is not None
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


__all__ = [
    "RESAMPLES",
    "SCORE_TITLES",
    "classification_metrics",
    "describe_run",
    "describe_sets",
    "flatten_metrics",
    "format_metrics",
    "score_metrics",
    "summarize_metrics",
]
