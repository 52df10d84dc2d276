# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What was measured in a training, from its log: the tables of the model card, and its metadata for the Hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..files import atomic_path
from .markdown import link, percent, public_name, table

MAX_LOG_ROWS = 20

# Keys of the log, and what the card calls them.
LOG_COLUMNS: Mapping[str, str] = {
    "epoch": "epoch",
    "loss": "loss",
    "itbo_yes_loss": "matching pairs",
    "itbo_no_loss": "other pairs",
    "tso_loss": "text opposite",
    "eval_loss": "held-out loss",
    "eval_ood_auroc_atd": "AUROC of ATD",
}


def last_evaluation(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Collect the results of the newest evaluation, which may take several entries of the log, without the prefix."""
    entries = [entry for entry in log_history if any(key.startswith("eval_") for key in entry)]
    newest = [entry for entry in entries if entry.get("step") == entries[-1].get("step")]
    return {key.removeprefix("eval_"): value for entry in newest for key, value in entry.items()}


def detection_metrics(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Collect AUROC and FPR95 by method, as far as they were measured."""
    found = [match for key in metrics if (match := re.fullmatch(r"ood_auroc_(\w+)", key))]
    return {
        match[1]: (metrics[match[0]], metrics[f"ood_fpr95_{match[1]}"])
        for match in found
        if f"ood_fpr95_{match[1]}" in metrics
    }


def ood_table(measured: Mapping[str, tuple[float, float]]) -> str | None:
    """Write the table of detection."""
    if not measured:
        return None
    rows = [
        [method.upper() if method != "energy" else "Energy", percent(auroc), percent(fpr95)]
        for method, (auroc, fpr95) in measured.items()
    ]
    return table(["score", "AUROC ↑", "FPR95 ↓"], rows)


def ood_note(metrics: Mapping[str, float], id_dataset: str | None, ood_dataset: str | None) -> str:
    """Say what the table of detection was measured on, and how to read it."""
    known = f"Known: {link(id_dataset, 'datasets/')}. " if id_dataset else ""
    unknown = f"Unknown: {link(ood_dataset, 'datasets/')}. " if ood_dataset else ""
    accuracy = ""
    if "id_accuracy" in metrics:
        accuracy = f" Zero-shot accuracy on the known images: {percent(metrics['id_accuracy'])} %."
    return (
        f"{known}{unknown}In percent, measured at the end of training; FPR95 is the share of unknown images that pass "
        f"when 95 % of the known ones do.{accuracy}"
    )


def loss_table(metrics: Mapping[str, float]) -> str | None:
    """Write the table of the losses on held-out pairs, with a row for each set of them."""
    names = {
        "loss": "loss",
        "itbo_yes_loss": "matching pairs",
        "itbo_no_loss": "other pairs",
        "tso_loss": "text opposite",
    }
    # The results of several sets have the name of the set in front.
    prefixes = [key.removesuffix("itbo_yes_loss") for key in metrics if key.endswith("itbo_yes_loss")]
    present = [name for name in names if any(f"{prefix}{name}" in metrics for prefix in prefixes)]
    if not present:
        return None
    rows = [
        [prefix.removesuffix("_"), *(f"{metrics[f'{prefix}{name}']:.4f}" for name in present)] for prefix in prefixes
    ]
    return table(["on held-out pairs", *(names[name] for name in present)], rows)


def training_log(log_history: Sequence[Mapping[str, Any]], columns: Mapping[str, str] = LOG_COLUMNS) -> str | None:
    """Write the log as a table, thinned to `MAX_LOG_ROWS` rows, with those of the columns that it has."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "step" in entry and not columns.keys().isdisjoint(entry.keys() - {"epoch"}):
            steps.setdefault(entry["step"], {}).update(entry)
    if not steps:
        return None
    rows = [entry for entry in steps.values() if any(key.startswith("eval_") for key in entry)]
    if len(steps) <= MAX_LOG_ROWS or not rows:
        rows = list(steps.values())
    if len(rows) > MAX_LOG_ROWS:
        spread = {round(i * (len(rows) - 1) / (MAX_LOG_ROWS - 1)) for i in range(MAX_LOG_ROWS)}
        rows = [rows[index] for index in sorted(spread)]
    present = {key: title for key, title in columns.items() if any(key in row for row in rows)}

    def cell(row: Mapping[str, Any], key: str) -> str:
        if key not in row:
            return ""
        if key == "epoch":
            return f"{row[key]:.2f}"
        return percent(row[key]) if "auroc" in key or "accuracy" in key else f"{row[key]:.4f}"

    cells = [[str(row["step"]), *(cell(row, key) for key in present)] for row in rows]
    return table(["step", *present.values()], cells)


def model_index(
    measured: Mapping[str, tuple[float, float]], id_dataset: str | None, ood_dataset: str | None
) -> list[EvalResult]:
    """List the results of detection as the metadata of the card take them."""
    known = public_name(id_dataset) if id_dataset else "known images"
    unknown = public_name(ood_dataset) if ood_dataset else "unknown images"
    results = []
    for method, values in measured.items():
        for metric_type, metric_name, value in zip(("auroc", "fpr95"), ("AUROC", "FPR95"), values, strict=True):
            results.append(
                EvalResult(
                    task_type="zero-shot-image-classification",
                    task_name="Out-of-distribution detection",
                    dataset_type=known,
                    dataset_name=f"{known} against {unknown}",
                    metric_type=metric_type,
                    metric_name=f"{metric_name} of {method.upper()}, ID positive",
                    metric_value=round(value, 6),
                )
            )
    return results


def write_eval_results(
    folder: Path, measured: Mapping[str, tuple[float, float]], id_dataset: str, ood_dataset: str | None
) -> None:
    """Write the results of detection to `.eval_results/ood_detection_METHOD.yaml`."""
    unknown = public_name(ood_dataset) if ood_dataset else "unknown images"
    (folder / ".eval_results").mkdir(exist_ok=True)
    for method, values in measured.items():
        entries = [
            EvalResultEntry(
                dataset_id=id_dataset,
                task_id=f"ood_detection_{metric}",
                value=round(value, 6),
                notes=f"{method.upper()}, known against {unknown}, ID positive",
            )
            for metric, value in zip(("auroc", "fpr95"), values, strict=True)
        ]
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        with atomic_path(folder / ".eval_results" / f"ood_detection_{method}.yaml") as partial:
            partial.write_text(text, encoding="utf-8")
