# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: one record per model, method, set and seed, the scores behind it, and comparisons.

results.jsonl           one record per line, with everything needed to make it again
scores/*.safetensors    the scores and predictions of each record, for paired comparisons and figures
"""

import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tqdm import tqdm

from ..files import atomic_path
from .metrics import (
    KERNELS,
    aupr,
    aurc,
    auroc,
    ccr_at_fpr,
    detection_accuracy,
    fpr_at_tpr,
    id_accuracy,
    oscr,
    resample_counts,
)

if TYPE_CHECKING:
    from .sets import LoadedSet

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
CONVENTION: Mapping[str, Any] = MappingProxyType(
    {"fpr_positive": "id", "fpr_rule": "exact", "tpr": 0.95, "aupr_rule": "average_precision"}
)

_SCORES_FORMAT = "clipn_hf scores 1"
_REQUIRED = ("suite", "model", "method", "labels", "seed", "id_set", "set", "convention", "metrics")
# What tells apart the records of one file, from the strictest on: the two files need not have the same models or the
# same methods in them.
_MATCHES = (("model", "method"), ("method",), ("model",), ())


@dataclass(frozen=True)
class Metric:
    """A metric of a record, by the function of [`clipn_hf.evaluation.metrics`] that computes it.

    Args:
        function (`Callable`): The metric.
        arguments (`Mapping`): Its arguments besides the data.
        needs_ood (`bool`): Whether it compares two sets; otherwise it is one of the ID images alone.
        needs_labels (`bool`): Whether it looks at predictions.
        complement (`bool`): Whether the record has 1 minus the function.
    """

    function: Callable[..., float]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs_ood: bool = True
    needs_labels: bool = False
    complement: bool = False


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auroc": Metric(auroc),
        "fpr95": Metric(fpr_at_tpr, {"tpr": 0.95, "positive": "id", "rule": "exact"}),
        "fpr95_ood_positive": Metric(fpr_at_tpr, {"tpr": 0.95, "positive": "ood", "rule": "exact"}),
        "aupr_in": Metric(aupr, {"positive": "id", "rule": "average_precision"}),
        "aupr_out": Metric(aupr, {"positive": "ood", "rule": "average_precision"}),
        "detection_accuracy": Metric(detection_accuracy),
        "id_accuracy": Metric(id_accuracy, needs_ood=False, needs_labels=True),
        "aurc": Metric(aurc, needs_ood=False, needs_labels=True),
        "oscr": Metric(oscr, needs_labels=True),
        "ccr_at_fpr1": Metric(ccr_at_fpr, {"fpr": 0.01}, needs_labels=True),
        "rejected_at_tpr95": Metric(fpr_at_tpr, {"tpr": 0.95, "positive": "id", "rule": "exact"}, complement=True),
    }
)
OOD_METRICS = tuple(name for name in METRICS if name != "rejected_at_tpr95")
ID_METRICS = tuple(name for name, metric in METRICS.items() if not metric.needs_ood)
SHIFT = "covariate-shift"
SHIFT_METRICS = ("rejected_at_tpr95", "auroc")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model, method, set and seed: the record and what it was computed from.

    Args:
        record (`dict`): What goes into `results.jsonl`.
        id_scores (`numpy.ndarray` of shape `(id images,)`): OOD-ness, float32; higher = more OOD.
        ood_scores (`numpy.ndarray` of shape `(images,)`): The same of the compared set, OOD or covariate-shifted.
        id_predictions (`numpy.ndarray` of shape `(id images,)`): Indices of the most probable labels, int64.
        id_labels (`numpy.ndarray` of shape `(id images,)`): The right ones.
        ood_predictions (`numpy.ndarray` of shape `(images,)`): The most probable labels of the compared set.
        id_rows (`numpy.ndarray` of shape `(id images,)`): Positions in `id_set.images`; unreadable ones are left out.
        ood_rows (`numpy.ndarray` of shape `(images,)`): Positions in `ood_set.images`.
        id_set ([`LoadedSet`]): The ID images.
        ood_set ([`LoadedSet`]): The compared images.
        labels (`list[str]`): What the indices stand for.
    """

    record: dict[str, Any]
    id_scores: npt.NDArray[np.float32]
    ood_scores: npt.NDArray[np.float32]
    id_predictions: npt.NDArray[np.int64]
    id_labels: npt.NDArray[np.int64]
    ood_predictions: npt.NDArray[np.int64]
    id_rows: npt.NDArray[np.int64]
    ood_rows: npt.NDArray[np.int64]
    id_set: "LoadedSet"
    ood_set: "LoadedSet"
    labels: list[str]


@dataclass(frozen=True)
class Comparison:
    """The difference that two records show on the same images.

    Args:
        suite (`str`): Name of the suite.
        set (`str`): Name of the set that is compared with ID.
        group (`str`): `"near"`, `"far"` or `"covariate-shift"`.
        seed (`int`): Seed of the records.
        metric (`str`): A key of `METRICS`.
        a (`str`): Model and method of the first record.
        b (`str`): Model and method of the second one.
        value_a (`float`): The metric of the first record.
        value_b (`float`): The metric of the second one.
        difference (`float`): `value_b - value_a`.
        low (`float`): Lower end of the bootstrap percentile interval of the difference.
        high (`float`): Upper end.
        p_value (`float`):
            Two-sided, of the hypothesis that there is no difference: twice the share of resamples in which it has the
            other sign or none.
        resamples (`int`): How many resamples were drawn.
        confidence (`float`): Share of the resampled differences between `low` and `high`.
    """

    suite: str
    set: str
    group: str
    seed: int
    metric: str
    a: str
    b: str
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p_value: float
    resamples: int
    confidence: float = CONFIDENCE


def measure(
    names: Iterable[str],
    id_scores: npt.NDArray[Any],
    ood_scores: npt.NDArray[Any] | None = None,
    id_predictions: npt.NDArray[Any] | None = None,
    id_labels: npt.NDArray[Any] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Compute several metrics and their bootstrap intervals, which share the draws.

    Each interval is the one of [`~clipn_hf.evaluation.metrics.bootstrap_interval`]; drawing and counting, which take
    most of the time, happen once for all metrics.

    Args:
        names (`Iterable[str]`): Keys of `METRICS`.
        id_scores (`numpy.ndarray` of shape `(id images,)`): OOD-ness of the ID images; higher = more OOD.
        ood_scores (`numpy.ndarray` of shape `(images,)`, *optional*): OOD-ness of the set that they are compared with.
        id_predictions (`numpy.ndarray` of shape `(id images,)`, *optional*): Predicted labels of the ID images.
        id_labels (`numpy.ndarray` of shape `(id images,)`, *optional*): The right ones.
        resamples (`int`, *optional*, defaults to 1000): How many resamples; with 0 there are no intervals.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `dict`: `{"value": …, "low": …, "high": …}` for each name; `low` and `high` are None without resamples.

    Raises:
        ValueError: As the metrics; `resamples` or `seed` is negative.

    Example:

    ```python
    >>> import numpy as np
    >>> from clipn_hf.evaluation.results import measure
    >>> measure(["auroc"], np.array([0.1, 0.2, 0.6]), np.array([0.4, 0.6]), resamples=0)
    {'auroc': {'value': 0.75, 'low': None, 'high': None}}

    ```
    """
    names = list(names)
    values = {
        name: _compute(METRICS[name], id_scores, ood_scores, id_predictions, id_labels)
        for name in names  # Checks the data, too.
    }
    if not check_resampling(resamples, seed):
        return {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
    drawn = _resample_metrics(names, id_scores, ood_scores, id_predictions, id_labels, resamples, seed)
    measured: dict[str, dict[str, float | None]] = {}
    for name, value in values.items():
        low, high = _interval(drawn[name])
        measured[name] = {"value": value, "low": low, "high": high}
    return measured


def write_records(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON lines. The file appears when it is complete.

    Args:
        path (`str` or `os.PathLike`): The file to write; one that is there is replaced.
        records (`Sequence[Mapping]`): The records.

    Raises:
        ValueError: A record is not complete, or has NaN or an infinite number in it.
        OSError: The file cannot be written.
    """
    lines = []
    for position, record in enumerate(records):
        place = f"Record {position}"
        _check_record(record, place)
        try:
            lines.append(json.dumps(record, allow_nan=False, ensure_ascii=False))
        except ValueError as error:
            raise ValueError(
                f"{place} ({record['method']} on {record['set']['name']}) has a number that is not finite; find out "
                "which images or weights cause it."
            ) from error
    with atomic_path(path) as partial:
        # The end of line is the same on every system, so that equal records are equal files.
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read records.

    Args:
        path (`str` or `os.PathLike`): A file that `write_records` wrote.

    Returns:
        `list[dict]`: The records.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is cut off, is no record, is of another version or has NaN in it; the message has its
            number. There are no records.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); name the results.jsonl of an evaluation.") from error
    records = []
    # `splitlines` would also split at characters that JSON may have in its texts.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"Line {number} of {path}"
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place} is no complete record ({error}); the file was cut off or edited, so make it again."
            ) from error
        except ValueError as error:
            raise ValueError(f"{place} has {error} in it, which no result is; evaluate again.") from error
        _check_record(record, place)
        records.append(record)
    if not records:
        raise ValueError(f"{path} has no records; name the results.jsonl of an evaluation.")
    return records


def save_scores(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """Save scores and predictions of an evaluation.

    Args:
        evaluation ([`Evaluation`]): Its record names the file, whatever the order of an evaluation is.
        folder (`Path`): The folder of `results.jsonl`.

    Returns:
        `dict`: `"file"`, relative to the folder, and its `"sha256"`.

    Raises:
        OSError: The file cannot be written.
    """
    record = evaluation.record
    names = ("model", "method", "set")
    words = [_name_of(record, name) for name in names]
    identity = {name: record[name] for name in (*_REQUIRED[:-2], "settings", "templates", "no_templates", "fit_set")}
    stem = "-".join([*(slug(word) for word in words), str(record["seed"]), json_digest(identity)[:12]])
    tensors: dict[str, npt.NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(evaluation, name)) for name in _SCORE_TENSORS
    }
    # One entry alone, because safetensors writes several in an order that changes.
    content = save_tensors(tensors, metadata={"format": _SCORES_FORMAT})
    file = f"scores/{stem}.safetensors"
    (folder / "scores").mkdir(exist_ok=True)
    with atomic_path(folder / file) as partial:
        partial.write_bytes(content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}


def load_scores(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Load the scores and predictions behind a record.

    Args:
        record (`Mapping`): One of `read_records`.
        folder (`str` or `os.PathLike`): The folder of its file.

    Returns:
        `dict[str, numpy.ndarray]`: `id_scores`, `ood_scores`, `id_predictions`, `id_labels`, `ood_predictions`,
        `id_rows` and `ood_rows`, as in [`Evaluation`].

    Raises:
        ValueError: The record has no scores, or their file was changed.
        FileNotFoundError: The file is missing.
    """
    what = f"{record['method']} on {record['set']['name']}"
    scores = record.get("scores")
    if scores is None:
        raise ValueError(f"The scores of {what} were not kept; evaluate again with a folder for the output.")
    file = Path(folder, scores["file"])
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The scores of {what} are missing from {file}; keep the folder scores beside the records, or evaluate "
            "again."
        ) from error
    if hashlib.sha256(content).hexdigest() != scores["sha256"]:
        raise ValueError(f"The scores of {what} in {file} are not those of the record: evaluate again.")
    try:
        tensors: dict[str, npt.NDArray[Any]] = load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"The scores of {what} in {file} cannot be read ({error}); evaluate again.") from error
    if missing := [name for name in _SCORE_TENSORS if name not in tensors]:
        raise ValueError(f"The scores of {what} in {file} lack {', '.join(missing)}; evaluate again.")
    return tensors


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    metric: str = "auroc",
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> list[Comparison]:
    """Compare two evaluations on the same images by the paired bootstrap.

    Each resample draws the same images for both, so that what makes an image easy or hard for both cancels out.
    Records are paired by suite, set and seed, and by model and method as far as both files have them in common: two
    files with the same methods of two models are compared method by method, for example.

    Args:
        a (`str` or `os.PathLike`): `results.jsonl` of the first evaluation, with the folder `scores` beside it.
        b (`str` or `os.PathLike`): That of the second one.
        metric (`str`, *optional*, defaults to `"auroc"`): A key of `METRICS`.
        resamples (`int`, *optional*, defaults to 1000): How many resamples to draw.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar, if there is a terminal.

    Returns:
        `list` of [`Comparison`]: In the order of the first file.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The files have no records in common, or several that could be paired with each other; images, their
            order or the labels differ; scores are missing or were changed; `metric` is unknown.
    """
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}, got {metric!r}.")
    if not check_resampling(resamples, seed):
        raise ValueError("`resamples` must be at least 1 for a comparison, got 0.")
    pairs = _pair(
        a,
        b,
        [record for record in read_records(a) if metric in record["metrics"]],
        [record for record in read_records(b) if metric in record["metrics"]],
        metric,
    )
    for pair in pairs:
        _check_same_data(*pair)
    return [
        _compare_pair(record_a, record_b, Path(a).parent, Path(b).parent, metric, resamples, seed)
        for record_a, record_b in tqdm(pairs, desc="Comparisons", disable=None if progress else True)
    ]


def json_digest(value: Any) -> str:
    """Compute SHA-256, in hexadecimal, of what JSON knows; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_resampling(resamples: int, seed: int) -> bool:
    """Check the numbers of a bootstrap, and return whether there is anything to draw.

    Raises:
        ValueError: One of them is negative.
        TypeError: One of them is no whole number.
    """
    for name, value in (("resamples", resamples), ("seed", seed)):
        if isinstance(value, bool) or operator.index(value) < 0:
            raise ValueError(f"`{name}` must be a whole number of at least 0, got {value!r}.")
    return resamples > 0


def slug(name: str) -> str:
    """Make a part of a file name of the name of a model or set.

    Args:
        name (`str`): Of a folder or Hub id, the last part counts.

    Returns:
        `str`: At most 40 of the characters a to z, 0 to 9 and _.

    Example:

    ```python
    >>> from clipn_hf.evaluation.results import slug
    >>> slug("org/CLIP ViT-B")
    'clip_vit_b'

    ```
    """
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")[:40] or "unnamed"


_SCORE_TENSORS = (
    "id_scores",
    "ood_scores",
    "id_predictions",
    "id_labels",
    "ood_predictions",
    "id_rows",
    "ood_rows",
)


def _compute(
    metric: Metric,
    id_scores: npt.NDArray[Any],
    ood_scores: npt.NDArray[Any] | None,
    id_predictions: npt.NDArray[Any] | None,
    id_labels: npt.NDArray[Any] | None,
) -> float:
    data: dict[str, Any] = {} if metric.function is id_accuracy else {"id_scores": id_scores}
    if metric.needs_ood:
        data["ood_scores"] = ood_scores
    if metric.needs_labels:
        data |= {"predictions": id_predictions, "labels": id_labels}
    value = float(metric.function(**data, **metric.arguments))
    return 1 - value if metric.complement else value


def _resample_metrics(
    names: Sequence[str],
    id_scores: npt.NDArray[Any],
    ood_scores: npt.NDArray[Any] | None,
    id_predictions: npt.NDArray[Any] | None,
    id_labels: npt.NDArray[Any] | None,
    resamples: int,
    seed: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Values `(resamples,)` of each metric; the draws depend on the seed and the numbers of images alone."""
    id_values = np.asarray(id_scores, dtype=np.float64)
    correct = None if id_predictions is None or id_labels is None else np.asarray(id_predictions == id_labels)
    drawn: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in names}
    for needs_ood in (True, False):
        own = [name for name in names if METRICS[name].needs_ood == needs_ood]
        if not own:
            continue
        ood_values = np.asarray(ood_scores, dtype=np.float64) if needs_ood else np.empty(0)
        needs_labels = any(METRICS[name].needs_labels for name in own)
        for counts in resample_counts(id_values, ood_values, correct if needs_labels else None, resamples, seed):
            for name in own:
                kernel = KERNELS[METRICS[name].function]
                drawn[name].append(kernel(counts, **METRICS[name].arguments))
    values = {name: np.concatenate(chunks) for name, chunks in drawn.items()}
    return {name: 1 - value if METRICS[name].complement else value for name, value in values.items()}


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _check_record(record: Any, place: str) -> None:
    if not isinstance(record, Mapping):
        raise ValueError(f"{place} must be a record, got {type(record).__name__}; evaluate again.")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{place} has schema_version {version!r}, but this version of clipn-hf reads {SCHEMA_VERSION}; evaluate "
            "again with it."
        )
    if missing := [name for name in _REQUIRED if name not in record]:
        raise ValueError(f"{place} lacks {', '.join(f'`{name}`' for name in missing)}; evaluate again.")


def _name_of(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if isinstance(value, Mapping):
        value = value["id" if key == "model" else "name"]
    return str(value)


def _pair(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    records_a: Sequence[dict[str, Any]],
    records_b: Sequence[dict[str, Any]],
    metric: str,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    for path, records in ((a, records_a), (b, records_b)):
        if not records:
            raise ValueError(f"{path} has no records with the metric {metric}.")
    ambiguous = False
    for names in _MATCHES:
        found_a, found_b = _by_key(records_a, names), _by_key(records_b, names)
        common = [key for key in found_a if key in found_b]
        if not common:
            continue
        if all(len(found_a[key]) == len(found_b[key]) == 1 for key in common):
            return [(found_a[key][0], found_b[key][0]) for key in common]
        ambiguous = True
    if ambiguous:
        raise ValueError(
            f"Several records of {a} and {b} could be compared with each other, because neither all their methods nor "
            "all their models agree; evaluate one model or one method into a file of its own."
        )
    listed = " and ".join(
        f"{path} has {', '.join(sorted({_place(record) for record in records}))}"
        for path, records in ((a, records_a), (b, records_b))
    )
    raise ValueError(f"The files have no suite, set and seed in common: {listed}.")


def _by_key(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        place = (record["suite"], record["set"]["name"], record["set"]["group"], record["seed"])
        found.setdefault((*place, *(_name_of(record, name) for name in names)), []).append(record)
    return found


def _place(record: Mapping[str, Any]) -> str:
    return f"{record['suite']}/{record['set']['name']} (seed {record['seed']})"


def _check_same_data(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    differences = []
    if a["labels"]["sha256"] != b["labels"]["sha256"]:
        counts = " and ".join(str(record["labels"]["count"]) for record in (a, b))
        differences.append(f"the class lists ({counts} labels; their names or their order)")
    for key, what in (("id_set", "the ID images"), ("set", f"the images of {a['set']['name']}")):
        if a[key]["sha256"] != b[key]["sha256"]:
            counts = " and ".join(f"{record[key]['images']:,}" for record in (a, b))
            differences.append(f"{what} ({counts}; their content, their order or their labels)")
    if differences:
        raise ValueError(
            f"{_label(a)} and {_label(b)} cannot be compared on {_place(a)}, because these differ: "
            f"{'; '.join(differences)}. Evaluate both on the same data."
        )


def _compare_pair(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    folder_a: Path,
    folder_b: Path,
    metric: str,
    resamples: int,
    seed: int,
) -> Comparison:
    values, drawn = [], []
    for record, folder in ((a, folder_a), (b, folder_b)):
        scores = load_scores(record, folder)
        data = (scores["id_scores"], scores["ood_scores"], scores["id_predictions"], scores["id_labels"])
        values.append(_compute(METRICS[metric], *data))
        # The same seed draws the same images.
        drawn.append(_resample_metrics([metric], *data, resamples, seed)[metric])
    differences = drawn[1] - drawn[0]
    low, high = _interval(differences)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return Comparison(
        suite=a["suite"],
        set=a["set"]["name"],
        group=a["set"]["group"],
        seed=a["seed"],
        metric=metric,
        a=_label(a),
        b=_label(b),
        value_a=values[0],
        value_b=values[1],
        difference=values[1] - values[0],
        low=low,
        high=high,
        # Counting the estimate itself keeps the value above zero, which no finite number of draws could show.
        p_value=float(min(1, 2 * (tail + 1) / (resamples + 1))),
        resamples=resamples,
    )


def _label(record: Mapping[str, Any]) -> str:
    return f"{record['model']['id']} {record['method']}"


__all__ = [
    "CONFIDENCE",
    "CONVENTION",
    "ID_METRICS",
    "METRICS",
    "OOD_METRICS",
    "SCHEMA_VERSION",
    "SHIFT",
    "SHIFT_METRICS",
    "Comparison",
    "Evaluation",
    "Metric",
    "check_resampling",
    "compare",
    "json_digest",
    "load_scores",
    "measure",
    "read_records",
    "save_scores",
    "slug",
    "write_records",
]
