# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Results as the Hub reads them: entries of `model-index` in a model card, and `.eval_results/*.yaml` beside it."""

import os
import re
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..files import atomic_path
from .tables import Record, metric_title, row_key, row_names

_METRICS = ("auroc", "fpr95")
_SHIFTED = "covariate-shift"


class _Result(NamedTuple):
    """A metric of a method on a set, its mean over seeds."""

    row: str
    record: Record
    metric: str
    value: float
    seeds: int

    def describe(self, method: str) -> str:
        """Name the metric, whose it is, and its convention."""
        title, *convention = metric_title(self.metric, self.record["convention"]).split(", ")
        return ", ".join([f"{title} of {method}", *convention])


def model_index(records: Iterable[Record]) -> list[EvalResult]:
    """List the results of one model for the metadata of its card, as shares of one.

    Args:
        records (iterable of `Mapping`): Results of one model; covariate shift is left out.

    Returns:
        list of [`huggingface_hub.EvalResult`]:
            AUROC, FPR95 and ID accuracy for each suite, set and method, the mean over seeds.

    Raises:
        ValueError: The records are of several models.

    Example:

    ```python
    >>> from huggingface_hub import ModelCardData
    >>> from clipn_hf.evaluation.cards import model_index
    >>> ModelCardData(model_name="clipn-tiny", eval_results=model_index(records))  # doctest: +SKIP

    ```
    """
    records = list(records)
    names = row_names(records)
    models = {str(record["model"]["id"]) for record in records}
    if len(models) > 1:
        raise ValueError(f"`records` are of several models ({', '.join(sorted(models))}); give those of one.")
    # One id may stand for several revisions or dtypes.
    several = len({model for model, _ in names.values()}) > 1
    results = []
    for result in _collect(records):
        record, (model, method) = result.record, names[result.row]
        method = f"{method} with {model}" if several else method
        known, compared = record["id_set"]["name"], record["set"]["name"]
        is_accuracy = result.metric == "id_accuracy"
        results.append(
            EvalResult(
                task_type="zero-shot-image-classification",
                task_name="Zero-shot classification" if is_accuracy else "Out-of-distribution detection",
                dataset_type=record["suite"],
                dataset_name=known if is_accuracy else f"{known} against {compared}",
                # The Hub tells entries apart by the type and the configuration, not by the name.
                dataset_config=known if is_accuracy else compared,
                metric_type="accuracy" if is_accuracy else result.metric,
                metric_name="ID accuracy" if is_accuracy else result.describe(method),
                metric_value=round(result.value, 6),
                metric_args={"seeds": result.seeds} if result.seeds > 1 else None,
            )
        )
    return results


def write_eval_results(folder: str | os.PathLike[str], records: Iterable[Record], dataset_id: str) -> None:
    """Write the results of detection to `.eval_results/ood_detection_SUITE_METHOD.yaml`, as shares of one.

    The Hub shows such results beside a dataset of its own: where the ID images are not from there, there is nothing
    to write. Each entry has a task of its own, named after metric, method, suite and OOD set.

    Results of several models go to a folder for each model in `.eval_results`: copy the files of one into the
    repository of that model.

    Args:
        folder (`str` or `os.PathLike`): The folder in which `.eval_results` is; it must exist.
        records (iterable of `Mapping`): Results; covariate shift is left out.
        dataset_id (`str`):
            Id of the dataset on the Hub that the ID images are from, such as `"uoft-cs/cifar10"`. Nothing is written
            for what is no such id, as the path of a folder.

    Raises:
        OSError: A file cannot be written.
    """
    # `datasets` also reads folders by such a name, which nobody else could look up.
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset_id) or dataset_id.startswith("."):
        return
    records = list(records)
    names = row_names(records)
    several = len({model for model, _ in names.values()}) > 1
    tasks: dict[Path, set[str]] = {}
    files: dict[Path, list[EvalResultEntry]] = {}
    owners: dict[tuple[str, str], Path] = {}
    for result in _collect(records):
        if result.metric == "id_accuracy":
            continue
        record, (model, method) = result.record, names[result.row]
        suite = str(record["suite"])
        if (suite, result.row) not in owners:
            parent = Path(folder, ".eval_results", _slug(model)) if several else Path(folder, ".eval_results")
            stem = f"ood_detection_{_slug(suite)}_{_slug(method)}"
            used = {path.stem for path in owners.values() if path.parent == parent}
            owners[suite, result.row] = parent / f"{_numbered(stem, used)}.yaml"
        known, compared = record["id_set"]["name"], record["set"]["name"]
        # Of one model, whatever file an entry is in.
        taken = tasks.setdefault(owners[suite, result.row].parent, set())
        task = _numbered(f"ood_detection_{result.metric}_{_slug(method)}_{_slug(suite)}_{_slug(compared)}", taken)
        taken.add(task)
        over = f", mean over {result.seeds} seeds" if result.seeds > 1 else ""
        entry = EvalResultEntry(
            dataset_id=dataset_id,
            task_id=task,
            value=round(result.value, 6),
            date=str(record["date"]),
            notes=f"{result.describe(method)}, {known} against {compared}{over}",
        )
        files.setdefault(owners[suite, result.row], []).append(entry)
    for path, entries in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")


def _collect(records: Sequence[Record]) -> list[_Result]:
    """Average over seeds, in the order of the records; the accuracy comes once for each suite."""
    values: dict[tuple[str, str, str, str], list[tuple[Record, float]]] = {}
    accuracies: dict[str, dict[int, tuple[Record, float]]] = {}
    for record in records:
        if record["set"]["group"] == _SHIFTED:
            continue
        metrics: Mapping[str, Any] = record["metrics"]
        for metric in _METRICS:
            if metrics.get(metric) is not None:
                place = record["suite"], row_key(record), record["set"]["name"], metric
                values.setdefault(place, []).append((record, metrics[metric]["value"]))
        if metrics.get("id_accuracy") is not None:
            # Of the ID images alone, the same for every method that shares the templates.
            seeds = accuracies.setdefault(record["suite"], {})
            seeds.setdefault(record["seed"], (record, metrics["id_accuracy"]["value"]))
    collected = [
        _Result(row, members[0][0], metric, statistics.fmean(value for _, value in members), len(members))
        for (_, row, _, metric), members in values.items()
    ]
    for members in (list(seeds.values()) for seeds in accuracies.values()):
        mean = statistics.fmean(value for _, value in members)
        collected.append(_Result(row_key(members[0][0]), members[0][0], "id_accuracy", mean, len(members)))
    return collected


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "_", name.lower()).strip("_.")[:60] or "unnamed"


def _numbered(name: str, taken: Container[str]) -> str:
    """Number a name that is taken by something else of the same letters."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


__all__ = ["model_index", "write_eval_results"]
