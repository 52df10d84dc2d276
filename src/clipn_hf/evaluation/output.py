# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation gives, and the folder it is written to: records, tables, figures, report, entries of cards."""

import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from transformers.utils import logging

from ..files import atomic_path
from .cards import model_index, write_eval_results
from .figures import draw_heat_map, draw_histograms, draw_risk_coverage, draw_roc
from .findings import Finding
from .report import write_report
from .results import AVERAGES_NAME, RECORDS_NAME, SHIFT, Evaluation, json_digest, slug, write_averages, write_records
from .suite import Suite
from .tables import csv_table, latex_table, markdown_table

logger = logging.get_logger(__name__)

REPORT_NAME = "report.html"
# What an earlier run into the same folder may have left, for which a new run has nothing in its place.
_OUTPUTS = (
    *(RECORDS_NAME, AVERAGES_NAME, REPORT_NAME, "doctor.json", "tables.*", "model-index.yaml", "scores/*.safetensors"),
    *(f"figures/{name}*.png" for name in ("heat-map-", "histograms-", "risk-coverage", "roc-")),
    *(".eval_results/ood_detection_*.yaml", ".eval_results/*/ood_detection_*.yaml"),
)


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """What running a suite gave.

    Args:
        suite ([`Suite`]): The suite.
        evaluations (`list` of [`Evaluation`]):
            One per model, seed, method and set, in the order of models, seeds, methods and sets that was asked for.
        findings (`list` of [`Finding`]): What the doctor found, the gravest first.
        skipped (`list[str]`): The methods that were left out, by what they lack: "atd, ctw (need …)".
        averages (`list[dict]`, *optional*): Intervals of averages over sets, of a single seed, as
            [`~clipn_hf.evaluation.results.average_intervals`] gives them.
    """

    suite: Suite
    evaluations: list[Evaluation]
    findings: list[Finding]
    skipped: list[str]
    averages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of the evaluations."""
        return [evaluation.record for evaluation in self.evaluations]


def write_output(folder: Path, result: SuiteResult, published: bool, metrics: Sequence[str] | None) -> None:
    """Write all that is made of a result, and remove what an earlier run left.

    The records come last: where they are, the rest is, too.

    Args:
        folder (`Path`): The folder; it has the scores already.
        result ([`SuiteResult`]): What `evaluate_suite` computed.
        published (`bool`): Whether tables and report have published results.
        metrics (`Sequence[str]`, *optional*): What tables show.

    Raises:
        OSError: A file cannot be written.
    """
    records = result.records
    texts = {
        "doctor.json": json.dumps([dataclasses.asdict(finding) for finding in result.findings], indent=1),
        "tables.md": markdown_table(records, metrics, published, averages=result.averages),
        "tables.csv": csv_table(records),
        "tables.tex": latex_table(records, metrics, averages=result.averages),
    }
    _remove_outdated(folder, keep={record["scores"]["file"] for record in records})
    for name, text in texts.items():
        with atomic_path(folder / name) as partial_path:
            partial_path.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8", newline="\n")
    _write_figures(folder / "figures", result.evaluations)
    write_report(folder / REPORT_NAME, result, published=published)
    _write_model_index(folder / "model-index.yaml", records)
    source = result.suite.id.source
    # The Hub takes results on its own data sets.
    if source.kind == "hub":
        write_eval_results(folder, records, dataset_id=source.path)
    write_averages(folder / AVERAGES_NAME, result.averages)
    write_records(folder / RECORDS_NAME, records)


def _remove_outdated(folder: Path, keep: Collection[str]) -> None:
    """Remove what an earlier run wrote, the records first: without them, nobody takes the rest for complete."""
    for pattern in _OUTPUTS:
        for path in folder.glob(pattern):
            if path.is_file() and path.relative_to(folder).as_posix() not in keep:
                path.unlink()
    for path in (*folder.glob(".eval_results/*/"), folder / ".eval_results", folder / "figures"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _write_figures(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    """Draw what one seed gave, and maps of all."""
    records = [evaluation.record for evaluation in evaluations]
    own = [evaluation for evaluation in evaluations if evaluation.record["seed"] == records[0]["seed"]]
    compared: dict[str, list[Evaluation]] = {}
    for evaluation in own:
        if evaluation.record["set"]["group"] != SHIFT:
            compared.setdefault(evaluation.record["set"]["name"], []).append(evaluation)
    drawings: dict[str, Callable[[], Any]] = {
        f"heat-map-{metric}": partial(draw_heat_map, records, metric) for metric in ("auroc", "fpr95")
    }
    # Of the ID images alone, whatever they are compared with.
    drawings["risk-coverage"] = partial(draw_risk_coverage, next(iter(compared.values())))
    slugs = [slug(name) for name in compared]
    for position, (name, group) in enumerate(zip(slugs, compared.values(), strict=True)):
        # Names that differ in punctuation alone
        place = f"{name}-{position}" if slugs.count(name) > 1 else name
        drawings[f"roc-{place}"] = partial(draw_roc, group)
        best = max(group, key=lambda evaluation: evaluation.record["metrics"]["auroc"]["value"])
        drawings[f"histograms-{place}"] = partial(draw_histograms, best)
    folder.mkdir(exist_ok=True)
    for name, draw in drawings.items():
        try:
            figure = draw()
        except ImportError as error:
            logger.warning(f"There are no figures: {error}")
            return
        with atomic_path(folder / f"{name}.png") as partial_path:
            # Without the version of matplotlib in it, the same figure is the same file.
            figure.savefig(partial_path, metadata={"Software": None})


def _write_model_index(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write what goes into the card of each model, under its name."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_model.setdefault(json_digest(record["model"]), []).append(record)
    entries: list[Any] = []
    for own in by_model.values():
        entries += eval_results_to_model_index(own[0]["model"]["id"], model_index(own))
    with atomic_path(path) as partial_path:
        text = yaml.safe_dump({"model-index": entries}, sort_keys=False, allow_unicode=True)
        partial_path.write_text(text, encoding="utf-8", newline="\n")


__all__ = ["REPORT_NAME", "SuiteResult", "write_output"]
