# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs suites: every method of every model on every set, with one pass of the images through each model."""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from ..detector import OODDetector, unserved
from ..encoders import DualEncoder, PrecomputedEncoder
from ..features import extract_features
from ..files import atomic_path
from ..methods import METHODS, Method
from .cards import model_index, write_eval_results
from .doctor import Finding, examine_images, examine_labels, format_findings
from .figures import draw_heat_map, draw_histograms, draw_risk_coverage, draw_roc
from .report import write_report
from .results import (
    CONFIDENCE,
    CONVENTION,
    ID_METRICS,
    OOD_METRICS,
    SCHEMA_VERSION,
    SHIFT,
    SHIFT_METRICS,
    Evaluation,
    check_resampling,
    json_digest,
    measure,
    save_scores,
    slug,
    write_records,
)
from .sets import LoadedSet, SuiteData, load_suite_data
from .suite import Suite, load_suite
from .tables import csv_table, latex_table, markdown_table

logger = logging.get_logger(__name__)

Encoder = DualEncoder | PrecomputedEncoder

RECORDS_NAME = "results.jsonl"
REPORT_NAME = "report.html"
_VERSIONED = ("clipn_hf", "torch", "transformers", "numpy")
_SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """What running a suite gave.

    Args:
        suite ([`Suite`]): The suite.
        evaluations (`list` of [`Evaluation`]):
            One per model, seed, method and set, in the order of models, seeds, methods and sets that was asked for.
        findings (`list` of [`Finding`]): What the doctor found, the gravest first.
        skipped (`list[str]`): A sentence for each model and method that do not go together, and why.
    """

    suite: Suite
    evaluations: list[Evaluation]
    findings: list[Finding]
    skipped: list[str]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of the evaluations."""
        return [evaluation.record for evaluation in self.evaluations]


def evaluate_suite(
    suite: str | os.PathLike[str] | Mapping[str, Any] | Suite,
    models: Any = None,
    methods: Sequence[str] | None = None,
    *,
    data_root: str | os.PathLike[str] = ".",
    seeds: Sequence[int] | None = None,
    output: str | os.PathLike[str] | None = None,
    resamples: int = 1000,
    examine: bool = True,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    progress: bool = True,
    published: bool = False,
) -> SuiteResult:
    """Evaluate methods and models on the sets of a suite.

    Each image goes through a model once, whatever the number of methods; a second run finds the embeddings on disk.
    What comes out does not depend on the order of models and methods, and the same seed gives the same results.

    Args:
        suite (`str`, `os.PathLike`, `Mapping` or [`Suite`]): What [`~clipn_hf.evaluation.suite.load_suite`] reads.
        models (`str`, `os.PathLike`, [`DualEncoder`], [`OODDetector`] or a list of these, *optional*):
            Hub ids or folders of models, folders of saved detectors, or such objects; by default those of the suite,
            or else the embedded checkpoint. A detector is evaluated as it is, what it was fitted on included, if its
            labels are those of the suite; its model, templates and settings count in any case. Its own method is the
            default of `methods`. A suite of features has its own.
        methods (`Sequence[str]`, *optional*):
            Keys of `clipn_hf.methods.METHODS`; by default those of the suite, or else all. What a model or a suite
            cannot serve is skipped, and said in the result.
        data_root (`str` or `os.PathLike`, *optional*, defaults to `"."`): The folder that paths of the suite start at.
        seeds (`Sequence[int]`, *optional*): By default those of the suite.
        output (`str` or `os.PathLike`, *optional*):
            A folder for records, scores, tables, figures, the report and entries of model cards. It is made if it does
            not exist; files of an earlier run are replaced.
        resamples (`int`, *optional*, defaults to 1000):
            Draws of the bootstrap for each interval; with 0 there are no intervals.
        examine (`bool`, *optional*, defaults to `True`):
            Whether to look for mistakes in labels and images first: those of the first seed, and for grave ones in the
            labels of the others.
        batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
        num_workers (`int`, *optional*, defaults to 0): Processes that read and prepare images.
        device (`str` or `torch.device`, *optional*): As for [`DualEncoder`]; of models that are loaded here.
        dtype (`str` or `torch.dtype`, *optional*): As for [`DualEncoder`]; of models that are loaded here.
        cache_dir (`str` or `os.PathLike`, *optional*): As for [`~clipn_hf.features.extract_features`].
        use_cache (`bool`, *optional*, defaults to `True`): Whether embeddings are kept on disk from run to run.
        progress (`bool`, *optional*, defaults to `True`): Whether to show bars, if there is a terminal.
        published (`bool`, *optional*, defaults to `False`): Whether `tables.md` has published results below ours.

    Returns:
        [`SuiteResult`]: Evaluations in memory, what the doctor found, and what was skipped.

    Raises:
        ValueError: The suite or a set is wrong; a method is unknown, or no model serves any; images cannot be read.
        OSError: A model, a file of the suite or the output folder cannot be read or written.

    Example:

    ```python
    >>> from clipn_hf.evaluation.benchmark import evaluate_suite
    >>> result = evaluate_suite("cifar10", "openai/clip-vit-base-patch16", ["mcm"], data_root="..")  # doctest: +SKIP
    >>> [record["set"]["name"] for record in result.records]  # doctest: +SKIP
    ['CIFAR-100', 'MNIST', 'Textures', 'Scenes']

    ```
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    asked = list(methods) if methods is not None else (list(suite.methods) if suite.methods else None)
    if asked is not None:
        _check_methods(asked)
    seeds = _distinct(suite.seeds if seeds is None else seeds)
    if not seeds:
        raise ValueError("`seeds` is empty; give at least one, such as [0].")
    models = _list_models(suite, models)
    check_resampling(resamples, seed=0)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
    data = {seed: load_suite_data(suite, data_root, seed) for seed in seeds}
    findings: dict[Finding, None] = {}
    if examine:
        _add_findings(findings, examine_images(_sets(data[seeds[0]]), progress=progress))
    evaluations: list[Evaluation] = []
    skipped: list[str] = []
    with contextlib.ExitStack() as stack:
        if not use_cache and len(seeds) > 1:
            # Seeds share images, which are encoded once in any case.
            cache_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="clipn-hf-features-"))
            use_cache = True
        run = _Run(
            suite=suite,
            resamples=resamples,
            features={
                "cache_dir": cache_dir,
                "use_cache": use_cache,
                "batch_size": batch_size,
                "num_workers": num_workers,
                "progress": progress,
            },
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            output=None if output is None else Path(output),
            first_seed=seeds[0],
        )
        for model in models:
            encoder, detector = _load(model, data[seeds[0]], device, dtype)
            if examine:
                for seed in seeds:
                    found = _examine_labels(data[seed], encoder)
                    # Labels that another seed draws are mostly the same kind of names.
                    serious = [finding for finding in found if finding.severity == "error"]
                    _add_findings(findings, found if seed == seeds[0] else serious)
            names = asked or ([detector.method.name] if detector is not None else list(METHODS))
            description = encoder.describe()
            description["id"] = description["id"] or description["class"]
            for seed in seeds:
                served, reasons = _select(names, encoder, detector, data[seed])
                skipped += [f"{description['id']}: {reason}" for reason in reasons]
                if served:
                    evaluations += run.evaluate(encoder, description, detector, served, data[seed])
    if not evaluations:
        raise ValueError(f"There is nothing to evaluate. {' '.join(skipped)}")
    result = SuiteResult(suite, evaluations, _by_severity(findings), list(dict.fromkeys(skipped)))
    if output is not None:
        _write_output(Path(output), result, published)
    return result


@dataclass(frozen=True)
class _Embedded:
    """A set and the embeddings of those of its images that can be read."""

    data: LoadedSet
    embeddings: Tensor  # (readable, dim)
    rows: npt.NDArray[np.int64]  # (readable,)
    labels: npt.NDArray[np.int64] | None  # (readable,)
    unreadable: int
    digests: list[str]
    sha256: str

    def describe(self) -> dict[str, Any]:
        """Say what was evaluated, for the record."""
        return {
            "name": self.data.name,
            "images": len(self.rows),
            "unreadable": self.unreadable,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class _Scored:
    """A set, and what a method says about it."""

    embedded: _Embedded
    scores: npt.NDArray[np.float32]  # (readable,)
    predictions: npt.NDArray[np.int64]  # (readable,)


@dataclass(frozen=True)
class _Run:
    """What stays the same from model to model.

    Args:
        suite ([`Suite`]): The suite.
        resamples (`int`): Draws of the bootstrap.
        features (`dict`): Arguments of `extract_features`.
        date (`str`): When the run began.
        output (`Path`, *optional*): Where to write scores.
        first_seed (`int`): The seed that is evaluated first.
    """

    suite: Suite
    resamples: int
    features: dict[str, Any]
    date: str
    output: Path | None
    first_seed: int

    def evaluate(
        self,
        encoder: Encoder,
        model: dict[str, Any],
        detector: OODDetector | None,
        methods: Sequence[Method],
        data: SuiteData,
    ) -> list[Evaluation]:
        """Evaluate all methods of one model on the sets as one seed draws them."""
        id_set = self.embed(data.id, encoder)
        unfitted = [method for method in methods if not _is_fitted(detector, method, data.labels)]
        needs_fit = any("training" in method.needs for method in unfitted)
        fit_set = self.embed(data.fit, encoder) if data.fit is not None and needs_fit else None
        others = [self.embed(loaded, encoder) for loaded in (*data.covariate_shift, *data.ood)]
        versions = _versions()
        evaluations = []
        hidden = None if self.features["progress"] else True
        with tqdm(total=len(methods) * len(others), desc="Scores", unit=" sets", disable=hidden) as bar:
            for method in methods:
                own = _detector(encoder, detector, method, data.labels, self.suite)
                fitted_on = None
                if "training" in method.needs and own.fitted_on is None:
                    assert fit_set is not None
                    labels = None if fit_set.labels is None else fit_set.labels.tolist()
                    with warnings.catch_warnings():
                        # What the first seed was warned of holds for the others, in other numbers.
                        if data.seed != self.first_seed:
                            warnings.simplefilter("ignore")
                        own.fit(fit_set.embeddings, id_labels=labels if "training_labels" in method.needs else None)
                    fitted_on = fit_set.describe()
                elif own.fitted_on is not None:
                    for embedded in (id_set, *others):
                        _check_new(own, embedded)
                    fitted_on = {
                        "name": "as the detector was saved",
                        "images": own.fitted_on["images"],
                        "unreadable": 0,
                        "sha256": own.fitted_on["sha256"],
                    }
                base = {
                    "schema_version": SCHEMA_VERSION,
                    "suite": self.suite.name,
                    "suite_sha256": self.suite.sha256,
                    "date": self.date,
                    "model": model,
                    "method": method.name,
                    "settings": dict(own.settings),
                    "templates": own.templates,
                    "no_templates": own.no_templates if "no" in method.needs else None,
                    "labels": {"count": len(data.labels), "sha256": json_digest(data.labels)},
                    "seed": data.seed,
                    "id_set": id_set.describe(),
                    "fit_set": fitted_on,
                }
                id_scored, *scored = (_score(own, embedded) for embedded in (id_set, *others))
                evaluations += self._measure(base | {"versions": versions}, data, id_scored, scored, bar)
        return evaluations

    def _measure(
        self, base: dict[str, Any], data: SuiteData, id_set: _Scored, others: Sequence[_Scored], bar: Any
    ) -> list[Evaluation]:
        """Compare one method's scores of the ID images with those of every other set."""
        id_labels = id_set.embedded.labels
        assert id_labels is not None
        compute = partial(measure, resamples=self.resamples, seed=data.seed)
        shifted = [one.scores for one in others if one.embedded.data.group == SHIFT]
        wide_id_scores = np.concatenate([id_set.scores, *shifted])
        of_id = compute(ID_METRICS, id_set.scores, None, id_set.predictions, id_labels)
        bootstrap = {"resamples": self.resamples, "confidence": CONFIDENCE, "seed": data.seed}
        evaluations = []
        for one in others:
            embedded = one.embedded
            if embedded.data.group == SHIFT:
                accuracy = compute(["id_accuracy"], one.scores, None, one.predictions, embedded.labels)
                metrics = {"accuracy": accuracy["id_accuracy"]}
                metrics |= compute(SHIFT_METRICS, id_set.scores, one.scores)
            else:
                compared = [name for name in OOD_METRICS if name not in ID_METRICS]
                found = compute(compared, id_set.scores, one.scores, id_set.predictions, id_labels) | of_id
                metrics = {name: found[name] for name in OOD_METRICS}
                if shifted:
                    wide = compute(["auroc", "fpr95"], wide_id_scores, one.scores)
                    metrics |= {f"{name}_full_spectrum": value for name, value in wide.items()}
            record = {
                **{name: value for name, value in base.items() if name != "versions"},
                "set": {**embedded.describe(), "group": embedded.data.group, "note": embedded.data.note},
                "convention": dict(CONVENTION),
                "metrics": metrics,
                "bootstrap": bootstrap if self.resamples else None,
                "scores": None,
                "versions": base["versions"],
            }
            evaluation = Evaluation(
                record=record,
                id_scores=id_set.scores,
                ood_scores=one.scores,
                id_predictions=id_set.predictions,
                id_labels=id_labels,
                ood_predictions=one.predictions,
                id_rows=id_set.embedded.rows,
                ood_rows=embedded.rows,
                id_set=id_set.embedded.data,
                ood_set=embedded.data,
                labels=data.labels,
            )
            if self.output is not None:
                record["scores"] = save_scores(evaluation, self.output)
            evaluations.append(evaluation)
            bar.update()
        return evaluations

    def embed(self, loaded: LoadedSet, encoder: Encoder) -> _Embedded:
        """Embed the images of a set that can be read."""
        unreadable = 0
        if loaded.embeddings is not None:
            embeddings = torch.from_numpy(np.ascontiguousarray(loaded.embeddings, dtype=np.float32))
            rows = np.arange(len(embeddings), dtype=np.int64)
            digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in embeddings.numpy()]
        else:
            assert isinstance(encoder, DualEncoder)
            try:
                features = extract_features(loaded.images, encoder, **self.features)
            except ValueError as error:
                raise ValueError(f"The set {loaded.name} cannot be used: {error}") from error
            embeddings, rows, digests = features.embeddings, features.rows.numpy(), features.digests
            unreadable = len(features.skipped)
        labels = None if loaded.labels is None else np.asarray(loaded.labels, dtype=np.int64)[rows]
        sha256 = json_digest([digests, None if labels is None else labels.tolist()])
        return _Embedded(loaded, embeddings, rows, labels, unreadable, digests, sha256)


def _check_new(detector: OODDetector, embedded: _Embedded) -> None:
    seen = detector.count_fitted(bytes.fromhex(digest) for digest in embedded.digests)
    if seen:
        raise ValueError(
            f"The detector was fitted on {seen} of the {len(embedded.digests)} images of {embedded.data.name}, whose "
            "scores are not those of new images; evaluate it on others, or fit it on others."
        )


def _score(detector: OODDetector, embedded: _Embedded) -> _Scored:
    scores, predictions = detector.score(embedded.embeddings), detector.predict(embedded.embeddings)
    return _Scored(embedded, scores.numpy(), predictions.numpy())


def _distinct(seeds: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(seeds))


def _sets(data: SuiteData) -> list[LoadedSet]:
    return [data.id, *([] if data.fit is None else [data.fit]), *data.covariate_shift, *data.ood]


def _check_methods(names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"`methods` is empty; give at least one of {', '.join(METHODS)}.")
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            suggestion = f", did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"There is no method {name!r}{suggestion} There are {', '.join(METHODS)}.")


def _list_models(suite: Suite, models: Any) -> list[Any]:
    if suite.text_features is not None:
        if models is not None:
            raise ValueError(
                f"The suite {suite.name} is made of features, which one model computed; leave `models` out."
            )
        return [None]
    if models is None:
        models = suite.models or None
    if models is None or isinstance(models, str | os.PathLike | DualEncoder | PrecomputedEncoder | OODDetector):
        return [models]
    models = list(models)
    if not models:
        raise ValueError("`models` is empty; give at least one, or leave it out for the default.")
    return models


def _load(
    model: Any, data: SuiteData, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Encoder, OODDetector | None]:
    """The encoder of a model, and the detector if it is one."""
    text = data.suite.text_features
    if text is not None:
        assert data.text_bank is not None
        templates = list(dict.fromkeys(bank.template for bank in text.banks))
        return PrecomputedEncoder(data.text_bank, text.model, templates, text.logit_scale), None
    if isinstance(model, OODDetector):
        return _check_model(model.encoder), model
    if isinstance(model, DualEncoder | PrecomputedEncoder):
        return _check_model(model), None
    if model is not None and Path(model, "detector.json").is_file():
        detector = OODDetector.from_pretrained(model, device=device, dtype=dtype)
        return detector.encoder, detector
    return DualEncoder.from_pretrained(model, device=device, dtype=dtype), None


def _check_model(encoder: Encoder) -> DualEncoder:
    if not isinstance(encoder, DualEncoder):
        raise TypeError(f"{encoder.source} has text embeddings only, but the suite has images; give a model.")
    return encoder


def _select(
    names: Sequence[str], encoder: Encoder, detector: OODDetector | None, data: SuiteData
) -> tuple[list[Method], list[str]]:
    """The methods that can be evaluated, and a sentence for each of the others."""
    served, reasons = [], []
    for method in (METHODS[name] for name in dict.fromkeys(names)):
        reason = unserved(method, encoder)
        if reason is None and "training" in method.needs and not _is_fitted(detector, method, data.labels):
            if data.fit is None:
                reason = f"Method {method.name} is fitted on ID images, but the suite {data.suite.name} has no `fit`."
            elif "training_labels" in method.needs and data.fit.labels is None:
                reason = f"Method {method.name} is fitted on labels, but those of {data.fit.name} are not known."
        if reason is None and len(data.labels) < method.min_labels:
            reason = f"Method {method.name} needs at least {method.min_labels} labels, got {len(data.labels)}."
        if reason is None:
            served.append(method)
        else:
            reasons.append(reason)
    return served, reasons


def _is_fitted(detector: OODDetector | None, method: Method, labels: list[str]) -> bool:
    """Whether a detector that was handed over is to be evaluated with what it has learnt."""
    return (
        detector is not None
        and detector.fitted_on is not None
        and detector.method.name == method.name
        and detector.labels == labels
    )


def _detector(
    encoder: Encoder, detector: OODDetector | None, method: Method, labels: list[str], suite: Suite
) -> OODDetector:
    if detector is None:
        return OODDetector(encoder, labels, method.name, templates=suite.templates)
    # What was handed over stays as it is, also if its copy is fitted.
    return detector.with_changes(labels=labels, method=method.name)


def _examine_labels(data: SuiteData, encoder: Encoder) -> list[Finding]:
    ood_labels = sorted({name for loaded in data.ood for name in loaded.class_names or ()})
    # Without a model there is no telling what it makes of OOD labels.
    model = encoder if isinstance(encoder, DualEncoder) else None
    return examine_labels(data.labels, ood_labels or None, model, data.suite.templates)


def _add_findings(findings: dict[Finding, None], found: Iterable[Finding]) -> None:
    """Add what is new, and say on the log what makes results wrong or misleading."""
    new = [finding for finding in _by_severity(found) if finding not in findings]
    findings.update(dict.fromkeys(new))
    if serious := [finding for finding in new if finding.severity != "note"]:
        logger.warning("\n".join(format_findings(serious)))


def _by_severity(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name.replace("_", "-")) for name in _VERSIONED}
    return {**versions, "python": platform.python_version()}


def _write_output(folder: Path, result: SuiteResult, published: bool) -> None:
    """Write what is made of a result. The records come last: where they are, the rest is, too."""
    records = result.records
    texts = {
        "doctor.json": json.dumps([dataclasses.asdict(finding) for finding in result.findings], indent=1),
        "tables.md": markdown_table(records, published=published),
        "tables.csv": csv_table(records),
        "tables.tex": latex_table(records),
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as partial_path:
            partial_path.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8", newline="\n")
    _write_figures(folder / "figures", result.evaluations)
    write_report(folder / REPORT_NAME, result, published=published)
    _write_model_index(folder / "model-index.yaml", records)
    write_eval_results(folder, records)
    write_records(folder / RECORDS_NAME, records)


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
    models = list(dict.fromkeys(str(record["model"]["id"]) for record in records))
    entries: list[Any] = []
    for model in models:
        found = model_index([record for record in records if str(record["model"]["id"]) == model])
        entries += eval_results_to_model_index(model, found)
    with atomic_path(path) as partial_path:
        text = yaml.safe_dump({"model-index": entries}, sort_keys=False, allow_unicode=True)
        partial_path.write_text(text, encoding="utf-8", newline="\n")


__all__ = ["RECORDS_NAME", "REPORT_NAME", "SuiteResult", "evaluate_suite"]
