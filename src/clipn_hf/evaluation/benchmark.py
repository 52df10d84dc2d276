# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs suites: every method of every model on every set, with one pass of the images through each model."""

import contextlib
import difflib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from ..detector import LabelScore, OODDetector
from ..detector_checks import provided_needs
from ..encoders import DualEncoder, PrecomputedEncoder
from ..features import cached_class_embeddings, describe_skipped, extract_features
from ..methods import METHODS, NEEDS, Method
from ..methods.neglabel import effective_settings
from ..negative_settings import CORPORA, Kind
from ..negatives import Corpus, load_corpus
from .doctor import Finding, examine_images, examine_labels, format_findings
from .output import REPORT_NAME, SuiteResult, write_output
from .provenance import describe_encoder, list_versions
from .results import (
    CONFIDENCE,
    CONVENTION,
    ID_METRICS,
    OOD_METRICS,
    SCHEMA_VERSION,
    SHIFT,
    SHIFT_METRICS,
    Draws,
    Evaluation,
    average_intervals,
    check_resampling,
    json_digest,
    measure,
    save_scores,
)
from .sets import LoadedSet, SuiteData, load_suite_data
from .suite import TEXT_FEATURES, Suite, load_suite
from .tables import metric_title, row_key

logger = logging.get_logger(__name__)

Encoder = DualEncoder | PrecomputedEncoder
_MODEL_TYPES = (str, os.PathLike, DualEncoder, PrecomputedEncoder, OODDetector)

_SEVERITIES = ("error", "warning", "note")
# With more texts to embed, the log says so before.
_MANY_TEXTS = 10_000
# Of how many images of a set, those that a method is most wrong about, it is found out what they look like.
_EXPLAINED = 48
_TOP_NEGATIVES = 3


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
    metrics: Sequence[str] | None = None,
) -> SuiteResult:
    """Evaluate methods and models on the sets of a suite.

    Each image goes through a model once, whatever the number of methods, unless these change images before they judge
    them, as odin does, or look at their patches, as gl_mcm does; a second run finds the embeddings on disk.
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
            cannot serve is skipped, and said in the result. Methods with negative labels mine them, by default of all
            of WordNet, which takes a large model long the first time. Without `methods`, those that have a corpus of
            their own are skipped in suites that name another one, and so is what takes further passes of all images
            through the model in every run, as odin and gl_mcm do.
        data_root (`str` or `os.PathLike`, *optional*, defaults to `"."`): The folder that paths of the suite start at.
        seeds (`Sequence[int]`, *optional*): By default those of the suite.
        output (`str` or `os.PathLike`, *optional*):
            A folder for records, scores, tables, figures, the report and entries of model cards. It is made if it does
            not exist. Those of an earlier run are removed when all is computed.
        resamples (`int`, *optional*, defaults to 1000):
            Draws of the bootstrap for each interval; with 0 there are no intervals.
        examine (`bool`, *optional*, defaults to `True`):
            Whether to look for mistakes in labels, images and counts first: those of the first seed, and for grave
            ones in the labels of the others.
        batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
        num_workers (`int`, *optional*, defaults to 0): Processes that read and prepare images.
        device (`str` or `torch.device`, *optional*): As for [`DualEncoder`]; of models that are loaded here.
        dtype (`str` or `torch.dtype`, *optional*): As for [`DualEncoder`]; of models that are loaded here.
        cache_dir (`str` or `os.PathLike`, *optional*): As for [`~clipn_hf.features.extract_features`].
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether embeddings of images and labels are kept on disk from run to run.
        progress (`bool`, *optional*, defaults to `True`): Whether to show bars, if there is a terminal.
        published (`bool`, *optional*, defaults to `False`): Whether `tables.md` has published results below ours.
        metrics (`Sequence[str]`, *optional*):
            What `tables.md` and `tables.tex` show, by default as
            [`~clipn_hf.evaluation.tables.markdown_table`]. Records, CSV and report have all.

    Returns:
        [`SuiteResult`]: Evaluations in memory, what the doctor found, and what was skipped.

    Raises:
        TypeError: `models`, `methods`, `metrics` or `seeds` is no list of what it should be.
        ValueError: The suite or a set is wrong; a method or metric is unknown, or no model serves any method; images
            cannot be read; a detector was fitted on images that it is to be evaluated on.
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
    asked = _check_methods(suite.methods if methods is None else methods)
    seeds = _check_seeds(suite.seeds if seeds is None else seeds)
    models = _list_models(suite, models)
    if metrics is not None:
        for metric in _check_list("metrics", metrics, "auroc"):
            metric_title(metric)
    check_resampling(resamples, seed=0)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
    data = {seed: load_suite_data(suite, data_root, seed) for seed in seeds}
    findings: dict[Finding, None] = {}
    if examine:
        _add_findings(findings, _examine_counts(data[seeds[0]]))
        _add_findings(findings, examine_images(_sets(data[seeds[0]]), labels=data[seeds[0]].labels, progress=progress))
    evaluations: list[Evaluation] = []
    # What is lacking, and which methods of which models lack it.
    skipped: dict[str, dict[str, list[str]]] = {}
    with contextlib.ExitStack() as stack:
        if not use_cache and (len(seeds) > 1 or any("negatives" in METHODS[name].needs for name in asked or METHODS)):
            # Seeds share images, and methods the candidates for negative labels, which are encoded once in any case.
            # Where files that are mapped into memory cannot be removed, they are left.
            temporary = tempfile.TemporaryDirectory(prefix="clipn-hf-features-", ignore_cleanup_errors=True)
            cache_dir = stack.enter_context(temporary)
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
            examined=examine,
        )
        for model in models:
            encoder, detector = _load(model, data[seeds[0]], device, dtype)
            names = asked or ([detector.method.name] if detector is not None else list(METHODS))
            recalls = {seed: run.embed_labels(encoder, detector, names, data[seed]) for seed in seeds}
            if examine:
                for seed in seeds:
                    recalls[seed]()
                    found = _examine_labels(data[seed], encoder)
                    # Labels that another seed draws are mostly the same kind of names.
                    serious = [finding for finding in found if finding.severity == "error"]
                    _add_findings(findings, found if seed == seeds[0] else serious)
            description = describe_encoder(encoder)
            for seed in seeds:
                served, lacking = _select(names, encoder, detector, data[seed], is_asked=asked is not None)
                if served:
                    if seed == seeds[0]:
                        run.announce_mining(encoder, detector, served, data[seed])
                    recalls[seed]()
                    refused: dict[str, list[str]] | None = {} if asked is None else None
                    evaluations += run.evaluate(encoder, description, detector, served, data[seed], refused)
                    lacking |= refused or {}
                for what, left_out in lacking.items():
                    own = skipped.setdefault(what, {}).setdefault(description["id"], [])
                    own += [name for name in left_out if name not in own]
        listed = _list_skipped(skipped, name_models=len(models) > 1)
        if not evaluations:
            raise ValueError(f"There is nothing to evaluate: {'; '.join(listed)}.")
        averages = []
        if len(seeds) == 1 and resamples:
            shown = {} if metrics is None else {"metrics": metrics}
            averages = average_intervals(evaluations, resamples=resamples, draws=run.draws, **shown)
    result = SuiteResult(suite, evaluations, _by_severity(findings), listed, averages)
    if output is not None:
        write_output(Path(output), result, published, metrics)
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
            "excluded": self.data.num_excluded,
            "expected": self.data.num_expected,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class _Scored:
    """A set, and what a method says about it."""

    embedded: _Embedded
    scores: npt.NDArray[np.float32]  # (readable,)
    predictions: npt.NDArray[np.int64]  # (readable,)
    negatives: dict[int, list[LabelScore]]


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
        examined (`bool`): Whether images of the first seed that cannot be read are known already.
        draws ([`~clipn_hf.evaluation.results.Draws`], *optional*): What the bootstraps have in common.
        unreadable (`set`, *optional*): Names of sets and of those of their images that were reported.
        evaluated (`set`, *optional*): What was evaluated, so that the same model by another path is not, again.
    """

    suite: Suite
    resamples: int
    features: dict[str, Any]
    date: str
    output: Path | None
    first_seed: int
    examined: bool
    draws: Draws = field(default_factory=Draws)
    unreadable: set[tuple[str, str]] = field(default_factory=set)
    evaluated: set[str] = field(default_factory=set)

    def embed_labels(
        self, encoder: Encoder, detector: OODDetector | None, names: Sequence[str], data: SuiteData
    ) -> Callable[[], None]:
        """Embed labels, or find their embeddings on disk.

        Returns:
            `Callable`: Puts the embeddings where detectors look for them, which otherwise would look into the cache of
            this machine, whatever cache is asked for. It has room for some label sets alone.
        """
        if not isinstance(encoder, DualEncoder):
            return lambda: None
        circumstances = {name: self.features[name] for name in ("cache_dir", "use_cache", "progress")}
        # The templates that labels are put into, and whether for a "no" encoder, too.
        wanted: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {}
        for method in (METHODS[name] for name in names):
            if detector is not None:
                templates = detector.templates, detector.no_templates
            else:
                templates = encoder.label_templates(_templates(encoder, method, data.suite))
            key = tuple(templates[0]), tuple(templates[1])
            wanted[key] = wanted.get(key, False) or "no" in method.needs
        remember = []
        for (yes, no), needs_no in wanted.items():
            both = list(yes), list(no)
            embeddings = cached_class_embeddings(encoder, data.labels, *both, use_no_encoder=needs_no, **circumstances)
            remember.append(partial(encoder.remember_class_embeddings, data.labels, *embeddings, *both))

        def recall() -> None:
            for put in remember:
                put()

        return recall

    def announce_mining(
        self, encoder: Encoder, detector: OODDetector | None, methods: Sequence[Method], data: SuiteData
    ) -> None:
        """Say on the log, before it starts, that many texts are going to be embedded."""
        if not isinstance(encoder, DualEncoder):
            return
        mining = [method for method in methods if _mines(detector, method)]
        candidates: set[str] = set()
        for method in mining:
            arguments = {**method.mining, **(data.negatives or {})}
            settings = {name: arguments[name] for name in ("corpus", "seed", "max_candidates") if name in arguments}
            candidates.update(load_corpus(**settings).words)
        if len(candidates) <= _MANY_TEXTS:
            return
        names = [method.name for method in mining]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        model = encoder.name or type(encoder.model).__name__
        logger.warning(
            f"{listed} {'needs' if len(names) == 1 else 'need'} negative labels, mined of {len(candidates):,} texts. "
            f"Those that are not on disk from earlier runs have to be embedded by {model} on the "
            f"{encoder.device.type}: a minute or so with a small model, an hour and more with a large one on a CPU. "
            "Other `methods` go without, and `negatives: {max_candidates: 10000}` in the suite makes them fewer."
        )

    def evaluate(
        self,
        encoder: Encoder,
        model: dict[str, Any],
        detector: OODDetector | None,
        methods: Sequence[Method],
        data: SuiteData,
        refused: dict[str, list[str]] | None = None,
    ) -> list[Evaluation]:
        """Evaluate all methods of one model on the sets as one seed draws them.

        Methods that cannot be fitted are put in `refused`, by what they say; without it that is an error.
        """
        id_set = self.embed(data.id, encoder, data.seed)
        if len(id_set.rows) < 2:
            raise ValueError(
                f"The set {data.id.name} cannot be used: of its {len(data.id)} images only one can be read, but there "
                "must be several ID images."
            )
        unfitted = [method for method in methods if not _is_fitted(detector, method, data.labels)]
        needs_fit = any("training" in method.needs for method in unfitted)
        fit_set = self.embed(data.fit, encoder, data.seed) if data.fit is not None and needs_fit else None
        others = [self.embed(loaded, encoder, data.seed) for loaded in (*data.covariate_shift, *data.ood)]
        versions = list_versions()
        # What the first of the methods with negative labels has also says what others are wrong about.
        with_negatives = next((method for method in methods if "negatives" in method.needs), None)
        explainer = None
        if with_negatives is not None and data.seed == self.first_seed:
            explainer = self._detector(encoder, detector, with_negatives, data)
        evaluations = []
        hidden = None if self.features["progress"] else True
        with tqdm(total=len(methods) * len(others), desc="Scores", unit=" sets", disable=hidden) as bar:
            for method in methods:
                own = self._detector(encoder, detector, method, data)
                fitted_on = None
                if "training" in method.needs and own.fitted_on is None:
                    assert fit_set is not None
                    labels = None if fit_set.labels is None else fit_set.labels.tolist()
                    with warnings.catch_warnings():
                        # What the first seed was warned of holds for the others, in other numbers.
                        if data.seed != self.first_seed:
                            warnings.simplefilter("ignore")
                        try:
                            own.fit(
                                fit_set.embeddings, id_labels=labels if "training_labels" in method.needs else None
                            )
                        except ValueError as error:
                            if refused is None:
                                raise
                            refused.setdefault(f"other images for fitting: {str(error).rstrip('.')}", []).append(
                                method.name
                            )
                            bar.update(len(others))
                            continue
                    fitted_on = fit_set.describe()
                elif own.fitted_on is not None:
                    for embedded in (id_set, *others):
                        _check_new(own, embedded)
                    fitted_on = {
                        "name": "as the detector was saved",
                        "images": own.fitted_on["images"],
                        "unreadable": 0,
                        "excluded": 0,
                        "expected": None,
                        "sha256": own.fitted_on["sha256"],
                    }
                base = {
                    "schema_version": SCHEMA_VERSION,
                    "suite": self.suite.name,
                    "suite_sha256": self.suite.sha256,
                    "date": self.date,
                    "model": model,
                    "method": method.name,
                    "settings": dict(own.known_settings),
                    "templates": own.templates,
                    "no_templates": own.no_templates if "no" in method.needs else None,
                    "negatives": _describe_negatives(own) if "negatives" in method.needs else None,
                    "labels": {"count": len(data.labels), "sha256": json_digest(data.labels)},
                    "seed": data.seed,
                    "id_set": id_set.describe(),
                    "fit_set": fitted_on,
                }
                identity = json_digest([row_key(base), data.seed])
                if identity in self.evaluated:
                    logger.warning(f"{model['id']} is there twice; {method.name} is evaluated once.")
                    bar.update(len(others))
                    continue
                self.evaluated.add(identity)
                by = own if own.negatives is not None else explainer
                # Reports show the mistakes of one seed.
                by = by if data.seed == self.first_seed else None
                id_scored, *scored = (
                    _score(own, embedded, by, self._embed_to_judge(own, embedded)) for embedded in (id_set, *others)
                )
                evaluations += self._measure(base | {"versions": versions}, data, id_scored, scored, bar)
        return evaluations

    def _detector(
        self, encoder: Encoder, detector: OODDetector | None, method: Method, data: SuiteData
    ) -> OODDetector:
        changes: dict[str, Any] = {}
        if _mines(detector, method):
            circumstances = {name: self.features[name] for name in ("cache_dir", "use_cache", "progress")}
            # Methods with the same mining share the negative labels, which detectors of one encoder remember.
            changes["negatives"] = {**(data.negatives or {}), **circumstances}
            corpus = changes["negatives"].get("corpus")
            if isinstance(corpus, list):
                # As they are, because their embeddings go by these names.
                kinds: list[Kind] = ["text"] * len(corpus)
                changes["negatives"]["corpus"] = Corpus(TEXT_FEATURES, tuple(corpus), tuple(kinds))
        with _quiet_mining(data.seed != self.first_seed):
            if detector is None:
                templates = _own_templates(encoder, self.suite)
                return OODDetector(encoder, data.labels, method.name, templates=templates, **changes)
            # What was handed over stays as it is, also if its copy is fitted.
            return detector.with_changes(labels=data.labels, method=method.name, **changes)

    def _measure(
        self, base: dict[str, Any], data: SuiteData, id_set: _Scored, others: Sequence[_Scored], bar: Any
    ) -> list[Evaluation]:
        """Compare one method's scores of the ID images with those of every other set."""
        id_labels = id_set.embedded.labels
        assert id_labels is not None
        compute = partial(measure, resamples=self.resamples, seed=data.seed, draws=self.draws)
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
                id_negatives=id_set.negatives,
                ood_negatives=one.negatives,
            )
            if self.output is not None:
                record["scores"] = save_scores(evaluation, self.output)
            evaluations.append(evaluation)
            bar.update()
        return evaluations

    def embed(self, loaded: LoadedSet, encoder: Encoder, seed: int) -> _Embedded:
        """Embed the images of a set that can be read."""
        unreadable = 0
        if loaded.embeddings is not None:
            embeddings = torch.from_numpy(np.ascontiguousarray(loaded.embeddings, dtype=np.float32))
            rows = np.arange(len(embeddings), dtype=np.int64)
            digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in embeddings.numpy()]
        else:
            assert isinstance(encoder, DualEncoder)
            try:
                features = extract_features(loaded.images, encoder, warn=False, **self.features)
            except ValueError as error:
                raise ValueError(f"The set {loaded.name} cannot be used: {error}") from error
            embeddings, rows, digests = features.embeddings, features.rows.numpy(), features.digests
            unreadable = len(features.skipped)
            self._report_unreadable(loaded, features.skipped, silent=self.examined and seed == self.first_seed)
        labels = None if loaded.labels is None else np.asarray(loaded.labels, dtype=np.int64)[rows]
        sha256 = json_digest([digests, None if labels is None else labels.tolist()])
        return _Embedded(loaded, embeddings, rows, labels, unreadable, digests, sha256)

    def _embed_to_judge(self, detector: OODDetector, embedded: _Embedded) -> Tensor:
        """Embed a set once more, if the method changes images before it judges them, or looks at their patches."""
        if not detector.judges_images:
            return embedded.embeddings
        loaded, encoder = embedded.data, detector.image_encoder
        features = extract_features(loaded.images, encoder, warn=False, embed=detector.embed_prepared, **self.features)
        if features.digests != embedded.digests:
            raise ValueError(
                f"The set {loaded.name} cannot be used: its images changed while they were evaluated; start again."
            )
        return features.embeddings

    def _report_unreadable(self, loaded: LoadedSet, skipped: Mapping[int, str], silent: bool) -> None:
        """Say once which images cannot be read; of those that were examined the doctor has said it."""
        new = [row for row in skipped if (loaded.name, loaded.names[row]) not in self.unreadable]
        self.unreadable.update((loaded.name, loaded.names[row]) for row in new)
        if new and not silent:
            # A reason begins with the path, of which the name is what matters.
            reasons = [f"{loaded.names[row]}: {skipped[row].removeprefix(_path_of(loaded, row))}" for row in new]
            logger.warning(describe_skipped(reasons, f"{len(loaded):,} images of the set {loaded.name}"))


def _path_of(loaded: LoadedSet, row: int) -> str:
    try:
        image = loaded.images[row] if loaded.images is not None else None
    except ValueError:
        return ""
    return f"{os.fspath(image)}: " if isinstance(image, str | os.PathLike) else ""


def _check_new(detector: OODDetector, embedded: _Embedded) -> None:
    seen = detector.count_fitted(bytes.fromhex(digest) for digest in embedded.digests)
    if seen:
        raise ValueError(
            f"The detector was fitted on {seen} of the {len(embedded.digests)} images of {embedded.data.name}, whose "
            "scores are not those of new images; evaluate it on others, or fit it on others."
        )


def _score(detector: OODDetector, embedded: _Embedded, explainer: OODDetector | None, embeddings: Tensor) -> _Scored:
    """Judge a set by `embeddings` of its images, as the method judges them."""
    scores, predictions = detector.score_and_predict(embeddings, from_prepared=True)
    negatives: dict[int, list[LabelScore]] = {}
    if explainer is not None:
        # The worst mistakes are the highest scores of ID images and the lowest ones of others.
        order = scores.argsort(descending=embedded.data.group == "id", stable=True)[:_EXPLAINED]
        shown = (embeddings if explainer is detector else embedded.embeddings)[order]
        results = explainer.results(shown, top_k=1, top_negatives=_TOP_NEGATIVES, from_prepared=True)
        negatives = {row: result["negatives"] for row, result in zip(order.tolist(), results, strict=True)}
    return _Scored(embedded, scores.numpy(), predictions.numpy(), negatives)


def _own_templates(encoder: Encoder, suite: Suite) -> list[str] | None:
    """The templates of the suite; None without any, and for a model that has learned better ones."""
    learned = isinstance(encoder, DualEncoder) and encoder.learned_prompts is not None
    return list(suite.templates) if suite.templates and not learned else None


def _templates(encoder: Encoder, method: Method, suite: Suite) -> list[str] | None:
    """The templates that are given for a method; None for those of the encoder."""
    if not isinstance(encoder, DualEncoder):
        return None
    templates = _own_templates(encoder, suite)
    if templates is not None or not method.templates:
        return templates
    return (encoder.ensemble_templates if method.ensemble else encoder.single_template)(method.templates)


def _mines(detector: OODDetector | None, method: Method) -> bool:
    """Whether negative labels are mined for a method; those of a detector that was handed over go with it."""
    return "negatives" in method.needs and (detector is None or detector.negatives is None)


@contextlib.contextmanager
def _quiet_mining(is_quiet: bool) -> Iterator[None]:
    """Keep warnings about negative labels off the log: what the first seed was warned of holds for the others."""
    of_mining = logging.get_logger("clipn_hf.negatives")
    level = of_mining.level
    if is_quiet:
        of_mining.setLevel(logging.log_levels["error"])
    try:
        yield
    finally:
        of_mining.setLevel(level)


def _describe_negatives(detector: OODDetector) -> dict[str, Any]:
    """Say for records which negative labels a detector has, and how they were found."""
    bank = detector.negatives
    assert bank is not None
    # Templates are in the record; what is not set says nothing.
    settings = {
        name: value for name, value in bank.settings.items() if name != "templates" and value not in (None, [])
    }
    if "adjective" not in bank.kinds:
        settings.pop("adjective_templates", None)
    corpus = settings.get("corpus")
    if corpus == TEXT_FEATURES:
        # All names but the labels, which each seed may draw anew; the digest of the model is that of all names.
        del settings["corpus_sha256"]
    elif isinstance(corpus, str) and corpus not in CORPORA:
        # A path would name folders of this machine; the digest tells files of one name apart.
        settings["corpus"] = Path(corpus).name
    # Which depends on how many there are, unless it is set.
    in_effect = effective_settings(detector.settings, len(bank.labels))
    return {
        "count": len(bank.labels),
        "sha256": json_digest(bank.labels),
        **({"num_groups": in_effect["num_groups"]} if "num_groups" in in_effect else {}),
        "settings": settings,
        "report": dict(bank.report),
    }


def _check_list(name: str, values: Any, example: object) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a list, such as {[example]!r}, got {values!r}.")
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    if not distinct:
        raise ValueError(f"`{name}` is empty; give at least one, such as {[example]!r}.")
    return distinct


def _check_seeds(seeds: Any) -> list[int]:
    seeds = _check_list("seeds", seeds, 0)
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"`seeds` must be a list of whole numbers, but one is {seed!r}.")
        if seed < 0:
            raise ValueError(f"`seeds` must not be negative, but one is {seed}.")
    return [int(seed) for seed in seeds]


def _sets(data: SuiteData) -> list[LoadedSet]:
    return [data.id, *([] if data.fit is None else [data.fit]), *data.covariate_shift, *data.ood]


def _check_methods(names: Any) -> list[str] | None:
    if names is None:
        return None
    names = _check_list("methods", names, "mcm")
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(str(name), METHODS, n=1)
            suggestion = f", did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"There is no method {name!r}{suggestion} There are {', '.join(METHODS)}.")
    return names


def _list_models(suite: Suite, models: Any) -> list[Any]:
    if suite.text_features is not None:
        if models is not None:
            raise ValueError(
                f"The suite {suite.name} is made of features, which {suite.text_features.model} computed; name no "
                "other model."
            )
        return [None]
    if models is None:
        models = suite.models or None
    if models is None or isinstance(models, _MODEL_TYPES):
        return [models]
    models = _check_list("models", models, "openai/clip-vit-base-patch16")
    for model in models:
        if not isinstance(model, _MODEL_TYPES):
            raise TypeError(
                f"`models` must be ids, folders, encoders or detectors, but one is {type(model).__name__} {model!r}."
            )
    return models


def _load(
    model: Any, data: SuiteData, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Encoder, OODDetector | None]:
    """The encoder of a model, and the detector if it is one."""
    try:
        return _load_as_it_is(model, data, device, dtype)
    except OSError as error:
        if model is None or str(model) in str(error):
            raise
        raise OSError(f"The model {model} cannot be loaded: {error}") from error


def _load_as_it_is(
    model: Any, data: SuiteData, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Encoder, OODDetector | None]:
    text = data.suite.text_features
    if text is not None:
        assert data.text_bank is not None
        templates = list(dict.fromkeys(bank.template for bank in text.banks))
        encoder = PrecomputedEncoder(data.text_bank, text.model, templates, text.logit_scale, text.logit_bias)
        return encoder, None
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
    names: Sequence[str], encoder: Encoder, detector: OODDetector | None, data: SuiteData, is_asked: bool
) -> tuple[list[Method], dict[str, list[str]]]:
    """The methods that can be evaluated, and the names of the others by what they need."""
    served: list[Method] = []
    lacking: dict[str, list[str]] = {}
    provided = provided_needs(encoder, has_negatives=data.negatives is not None)
    words = {**NEEDS, "negatives": "`negatives` in the suite"}
    corpus = (data.negatives or {}).get("corpus")
    for method in (METHODS[name] for name in names):
        if needs := [need for need in NEEDS if need in method.needs - provided]:
            needed = " and ".join(words[need] for need in needs)
        elif not is_asked and corpus is not None and method.mining.get("corpus", corpus) != corpus:
            # With other candidates it is another method; who names it wants it all the same.
            needed = f"the corpus {method.mining['corpus']}, in place of which the suite has another one"
        elif not is_asked and _judges_images(method) and (detector is None or detector.method is not method):
            needed = "to be named in `methods`, because all images have to go through the model again"
        elif "training" in method.needs and data.fit is None and not _is_fitted(detector, method, data.labels):
            needed = "a set `fit` in the suite"
        elif len(data.labels) < method.min_labels:
            needed = f"at least {method.min_labels} labels"
        else:
            served.append(method)
            continue
        lacking.setdefault(needed, []).append(method.name)
    return served, lacking


def _judges_images(method: Method) -> bool:
    return method.judges_images(method.settings)


def _list_skipped(skipped: Mapping[str, Mapping[str, Sequence[str]]], name_models: bool) -> list[str]:
    lines = []
    for what, by_model in skipped.items():
        listed = [f"{', '.join(names)}{f' of {model}' if name_models else ''}" for model, names in by_model.items()]
        verb = "needs" if sum(map(len, by_model.values())) == 1 else "need"
        lines.append(f"{'; '.join(listed)} ({verb} {what})")
    return lines


def _is_fitted(detector: OODDetector | None, method: Method, labels: list[str]) -> bool:
    """Whether a detector that was handed over is to be evaluated with what it has learnt."""
    return (
        detector is not None
        and detector.fitted_on is not None
        and detector.method.name == method.name
        and detector.labels == labels
    )


def _examine_labels(data: SuiteData, encoder: Encoder) -> list[Finding]:
    ood_labels = sorted({name for loaded in data.ood for name in loaded.class_names or ()})
    bank = data.text_bank
    embedded = ood_labels if bank is None else [name for name in ood_labels if name in bank]
    found = examine_labels(data.labels, embedded or None, encoder, data.suite.templates)
    if len(embedded) == len(ood_labels):
        return found
    # What takes no embeddings is found out about all of them.
    spelled = examine_labels(data.labels, ood_labels, None, encoder.templates)
    checks = {finding.check for finding in spelled}
    return [*spelled, *(finding for finding in found if finding.check not in checks)]


def _examine_counts(data: SuiteData) -> list[Finding]:
    """Look for sets with more or fewer images than their protocol has."""
    found = []
    for loaded in _sets(data):
        if loaded.num_expected not in (None, loaded.num_available):
            message = (
                f"The set {loaded.name} has {loaded.num_available:,} images, but {loaded.num_expected:,} by the "
                "protocol of the suite; results on it do not compare with those of others."
            )
            found.append(Finding("warning", "image-count", message))
    return found


def _add_findings(findings: dict[Finding, None], found: Iterable[Finding]) -> None:
    """Add what is new, and say on the log what makes results wrong or misleading."""
    new = [finding for finding in _by_severity(found) if finding not in findings]
    findings.update(dict.fromkeys(new))
    if serious := [finding for finding in new if finding.severity != "note"]:
        logger.warning("\n".join(format_findings(serious)))


def _by_severity(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


__all__ = ["REPORT_NAME", "SuiteResult", "evaluate_suite"]
