# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: one record per model, method, set and seed, and the scores behind it.

results.jsonl           one record per line, with everything needed to make it again
averages.json           averages over the sets of one group, with intervals
scores/*.safetensors    the scores and predictions of each record, for paired comparisons and figures
"""

import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..files import atomic_path
from .metrics import (
    KERNELS,
    Counts,
    aupr,
    aurc,
    auroc,
    ccr_at_fpr,
    detection_accuracy,
    draw_images,
    fpr_at_tpr,
    id_accuracy,
    oscr,
)

if TYPE_CHECKING:
    from ..detector_results import LabelScore
    from .sets import LoadedSet

# What a metric is computed from: scores of ID and of the compared set, predictions and labels of ID.
MetricData = tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any] | None, npt.NDArray[Any] | None]

SCHEMA_VERSION = 1
RECORDS_NAME = "results.jsonl"
AVERAGES_NAME = "averages.json"
CONFIDENCE = 0.95
CONVENTION: Mapping[str, Any] = MappingProxyType(
    {"fpr_positive": "id", "fpr_rule": "exact", "tpr": 0.95, "aupr_rule": "average_precision"}
)

# Images that one chunk of resamples holds. Arrays that stay in the cache of a processor are several times as fast.
_CHUNK = 2**15
_SCORES_FORMAT = "clipn_hf scores 1"
# What an average has in common with the records of its sets.
_AVERAGED = (
    *("schema_version", "suite", "suite_sha256", "convention", "model", "method", "settings"),
    *("templates", "no_templates", "seed"),
)
_REQUIRED = ("suite", "model", "method", "labels", "seed", "id_set", "set", "convention", "metrics")
# What tells models apart. Some of it may be null, but a record without it would be taken for one of another model.
_REQUIRED_OF_MODEL = ("id", "class", "weights_sha256", "config_sha256", "image_processor_sha256")


@dataclass(frozen=True)
class Metric:
    """A metric of a record, by the function of [`clipn_hf.evaluation.metrics`] that computes it.

    Args:
        function (`Callable`): The metric.
        arguments (`Mapping`): Its arguments besides the data.
        needs_ood (`bool`): Whether it compares two sets; otherwise it is one of the ID images alone.
        needs_labels (`bool`): Whether it looks at predictions.
        complement (`bool`): Whether the record has 1 minus the function.
        steps (`"id"` or `"ood"`, *optional*):
            The images each of which moves the metric. Without, only their order among those of the other set does.
    """

    function: Callable[..., float]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs_ood: bool = True
    needs_labels: bool = False
    complement: bool = False
    steps: Literal["id", "ood"] | None = None


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auroc": Metric(auroc),
        "fpr95": Metric(fpr_at_tpr, {"tpr": 0.95, "positive": "id", "rule": "exact"}),
        "fpr95_ood_positive": Metric(fpr_at_tpr, {"tpr": 0.95, "positive": "ood", "rule": "exact"}),
        "aupr_in": Metric(aupr, {"positive": "id", "rule": "average_precision"}, steps="id"),
        "aupr_out": Metric(aupr, {"positive": "ood", "rule": "average_precision"}, steps="ood"),
        "detection_accuracy": Metric(detection_accuracy),
        "id_accuracy": Metric(id_accuracy, needs_ood=False, needs_labels=True),
        "aurc": Metric(aurc, needs_ood=False, needs_labels=True, steps="id"),
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
        id_negatives (`Mapping[int, list[LabelScore]]`, *optional*):
            What the ID images with the highest scores look like, by their positions in `id_scores`: negative labels,
            the one with the most mass first. Empty where no method of the evaluation has any.
        ood_negatives (`Mapping[int, list[LabelScore]]`, *optional*):
            The same of the images of the compared set with the lowest scores.
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
    id_negatives: "Mapping[int, list[LabelScore]]" = field(default_factory=dict)
    ood_negatives: "Mapping[int, list[LabelScore]]" = field(default_factory=dict)


class Draws:
    """How many times each resample of the bootstrap has each image, remembered as long as there is room.

    The draws depend on the seed and the number of images alone, so that all methods and metrics can share them.

    Args:
        max_bytes (`int`, *optional*, defaults to 2**29): How much to remember: one byte per image and resample.
    """

    def __init__(self, max_bytes: int = 2**29) -> None:
        self._room = max_bytes
        self._known: dict[tuple[int, int, int, int], npt.NDArray[np.uint8]] = {}

    def counts(
        self, images: int, resamples: int, seed: int, stream: int, rows: int
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield arrays of shape `(rows or fewer, images)`, the same for every number of rows.

        Args:
            images (`int`): How many images there are; as many are drawn.
            resamples (`int`): How many resamples there are.
            seed (`int`): Seed of the draws.
            stream (`int`): 0 for ID images, another number for each set that is drawn by itself.
            rows (`int`): How many resamples to yield at once.
        """
        key = images, resamples, seed, stream
        known = self._known.get(key)
        if known is None and images * resamples <= self._room:
            self._room -= images * resamples
            known = np.empty((resamples, images), dtype=np.uint8)
            step = max(1, _CHUNK // max(1, images))
            for start, drawn in enumerate(_count_draws(*key, rows=step)):
                known[start * step : (start + 1) * step] = drawn
            self._known[key] = known
        if known is None:
            yield from _count_draws(*key, rows=rows)
        else:
            for start in range(0, resamples, rows):
                yield known[start : start + rows]


def measure(
    names: Iterable[str],
    id_scores: npt.NDArray[Any],
    ood_scores: npt.NDArray[Any] | None = None,
    id_predictions: npt.NDArray[Any] | None = None,
    id_labels: npt.NDArray[Any] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    draws: "Draws | None" = None,
) -> dict[str, dict[str, float | None]]:
    """Compute several metrics and their bootstrap intervals, which share the draws.

    Each interval is the one of [`~clipn_hf.evaluation.metrics.bootstrap_interval`], at a fraction of its cost.

    Args:
        names (`Iterable[str]`): Keys of `METRICS`.
        id_scores (`numpy.ndarray` of shape `(id images,)`): OOD-ness of the ID images; higher = more OOD.
        ood_scores (`numpy.ndarray` of shape `(images,)`, *optional*): OOD-ness of the set that they are compared with.
        id_predictions (`numpy.ndarray` of shape `(id images,)`, *optional*): Predicted labels of the ID images.
        id_labels (`numpy.ndarray` of shape `(id images,)`, *optional*): The right ones.
        resamples (`int`, *optional*, defaults to 1000): How many resamples; with 0 there are no intervals.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        draws ([`Draws`], *optional*): Shared by several calls, it spares all but the first the drawing.

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
        name: compute_metric(METRICS[name], id_scores, ood_scores, id_predictions, id_labels)
        for name in names  # Checks the data, too.
    }
    if not check_resampling(resamples, seed):
        return {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
    data = (id_scores, ood_scores, id_predictions, id_labels)
    drawn = resample_metrics(names, *data, resamples=resamples, seed=seed, draws=draws)
    measured: dict[str, dict[str, float | None]] = {}
    for name, value in values.items():
        low, high = percentile_interval(drawn[name])
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
        path (`str` or `os.PathLike`): A file that `write_records` wrote, or the folder of its `results.jsonl`.

    Returns:
        `list[dict]`: The records.

    Raises:
        OSError: The file cannot be read.
        FileNotFoundError: There is no such file.
        ValueError: A line is cut off, is no record, is of another version or has NaN in it; the message has its
            number. There are no records.
    """
    path = records_path(path)
    try:
        text = path.read_text(encoding="utf-8")
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


def average_intervals(
    evaluations: Sequence[Evaluation],
    metrics: Sequence[str] = ("auroc", "fpr95", "fpr95_ood_positive"),
    *,
    resamples: int = 1000,
    draws: Draws | None = None,
) -> list[dict[str, Any]]:
    """Average metrics over the sets of each group, with bootstrap intervals.

    A resample draws the ID images once, for all sets, and the images of every set by themselves. Averages are plain
    means over sets.

    Args:
        evaluations (`Sequence` of [`Evaluation`]): Those of any number of models, methods, sets and seeds.
        metrics (`Sequence[str]`, *optional*, defaults to `("auroc", "fpr95", "fpr95_ood_positive")`):
            Names of metrics. What is no key of `METRICS`, or of the ID images alone, has no such average and is passed
            over. Covariate-shifted sets have the metrics of `SHIFT_METRICS` in any case.
        resamples (`int`, *optional*, defaults to 1000): How many resamples; with 0 there are no averages.
        draws ([`Draws`], *optional*): Shared with other calls, it spares drawing again.

    Returns:
        `list[dict]`: One entry for each model, method, seed and group of at least two sets, with the keys of a record
        that say what was measured, and `"group"`, `"sets"`, `"metrics"` and `"bootstrap"`.

    Raises:
        ValueError: `resamples` is negative.
    """
    if not check_resampling(resamples, seed=0):
        return []
    draws = draws or Draws()
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        record = evaluation.record
        identity = [{name: record.get(name) for name in (*_AVERAGED, "negatives")}, record["set"]["group"]]
        groups.setdefault(json.dumps(identity, sort_keys=True), []).append(evaluation)
    entries = []
    for members in groups.values():
        record = members[0].record
        group, seed = record["set"]["group"], record["seed"]
        wanted = SHIFT_METRICS if group == SHIFT else metrics
        names = [name for name in dict.fromkeys(wanted) if name in METRICS and METRICS[name].needs_ood]
        if len(members) < 2 or not names:
            continue
        # By name, so that the order of the sets in a suite does not change the draws.
        members = sorted(members, key=lambda evaluation: str(evaluation.record["set"]["name"]))
        data: list[MetricData] = [
            (one.id_scores, one.ood_scores, one.id_predictions, one.id_labels) for one in members
        ]
        drawn = average_resamples(names, data, resamples=resamples, seed=seed, draws=draws)
        measured: dict[str, dict[str, float]] = {}
        for name in names:
            value = float(np.mean([compute_metric(METRICS[name], *own) for own in data]))
            low, high = percentile_interval(drawn[name])
            measured[name] = {"value": value, "low": low, "high": high}
        entries.append(
            {
                **{name: record.get(name) for name in (*_AVERAGED, "negatives")},
                "group": group,
                "sets": [one.record["set"]["name"] for one in members],
                "metrics": measured,
                "bootstrap": {"resamples": resamples, "confidence": CONFIDENCE, "seed": seed},
            }
        )
    return entries


def average_resamples(
    names: Sequence[str],
    sets: Sequence[MetricData],
    *,
    resamples: int,
    seed: int,
    draws: Draws | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Average metrics over several sets in each resample, which has the same ID images for all.

    Args:
        names (`Sequence[str]`): Keys of `METRICS`.
        sets (`Sequence` of tuples):
            For each set what `resample_metrics` takes: scores of ID and of the set, predictions and labels of ID.
        resamples (`int`): How many resamples.
        seed (`int`): Seed of the draws.
        draws ([`Draws`], *optional*): What to share the draws by.

    Returns:
        `dict[str, numpy.ndarray]`: The averages, `(resamples,)`, float64.
    """
    # Sets of one size would otherwise be drawn in the same rows, as if their images belonged together.
    drawn = [
        resample_metrics(names, *data, resamples=resamples, seed=seed, draws=draws, stream=stream)
        for stream, data in enumerate(sets, start=1)
    ]
    return {name: np.mean([one[name] for one in drawn], axis=0) for name in names}


def write_averages(path: str | os.PathLike[str], averages: Sequence[Mapping[str, Any]]) -> None:
    """Write averages as JSON. The file appears when it is complete.

    Args:
        path (`str` or `os.PathLike`): The file to write; one that is there is replaced.
        averages (`Sequence[Mapping]`): What `average_intervals` returned.

    Raises:
        ValueError: An average has NaN or an infinite number in it.
        OSError: The file cannot be written.
    """
    text = json.dumps(list(averages), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def read_averages(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read averages.

    Args:
        path (`str` or `os.PathLike`): A file that `write_averages` wrote.

    Returns:
        `list[dict]`: The averages.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is cut off, is of another version, or holds something else.
    """
    try:
        averages = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"{path} is no complete file of averages ({error}); evaluate again.") from error
    if not isinstance(averages, list):
        raise ValueError(f"{path} must hold a list of averages, got {type(averages).__name__}; evaluate again.")
    for position, entry in enumerate(averages):
        _check_entry(entry, f"Average {position} of {path}", (*_AVERAGED, "group", "sets", "metrics"))
    return averages


def records_path(path: str | os.PathLike[str]) -> Path:
    """Find the file of records that a path means: itself, or `results.jsonl` in a folder.

    Args:
        path (`str` or `os.PathLike`): A file or a folder.

    Returns:
        `Path`: The file.

    Raises:
        FileNotFoundError: There is none.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / RECORDS_NAME).is_file():
            raise FileNotFoundError(f"The folder {path} has no {RECORDS_NAME}; name the output of an evaluation.")
        return file / RECORDS_NAME
    if not file.exists():
        raise FileNotFoundError(f"There is no file {path}; name the {RECORDS_NAME} of an evaluation, or its folder.")
    return file


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
    if record.get("negatives") is not None:
        identity["negatives"] = record["negatives"]
    stem = "-".join([*(slug(word) for word in words), str(record["seed"]), json_digest(identity)[:12]])
    tensors: dict[str, npt.NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(evaluation, name)) for name in _SCORE_TENSORS
    }
    if evaluation.ood_set.labels is not None:
        tensors["ood_labels"] = np.asarray(evaluation.ood_set.labels, dtype=np.int64)[evaluation.ood_rows]
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
        `id_rows` and `ood_rows`, as in [`Evaluation`], and `ood_labels` if the compared set has the labels of ID.

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


def compute_metric(
    metric: Metric,
    id_scores: npt.NDArray[Any],
    ood_scores: npt.NDArray[Any] | None,
    id_predictions: npt.NDArray[Any] | None,
    id_labels: npt.NDArray[Any] | None,
) -> float:
    """Compute a metric on the images themselves, and check them."""
    data: dict[str, Any] = {} if metric.function is id_accuracy else {"id_scores": id_scores}
    if metric.needs_ood:
        data["ood_scores"] = ood_scores
    if metric.needs_labels:
        data |= {"predictions": id_predictions, "labels": id_labels}
    value = float(metric.function(**data, **metric.arguments))
    return 1 - value if metric.complement else value


def _count_draws(images: int, resamples: int, seed: int, stream: int, rows: int) -> Iterator[npt.NDArray[np.uint8]]:
    for drawn in draw_images(images, resamples, seed, stream, rows):
        offsets = np.arange(len(drawn))[:, None] * images
        counts = np.bincount((drawn + offsets).ravel(), minlength=len(drawn) * images)
        # That an image is drawn more than 255 times has a probability of less than 1e-500.
        yield counts.reshape(len(drawn), images).astype(np.uint8)


class _Sorted:
    """Scores in order, for counting those up to some thresholds in any resample."""

    def __init__(self, values: npt.NDArray[np.float64]) -> None:
        self.order = np.argsort(values, kind="stable")
        self.values = values[self.order]

    def accumulate(
        self, counts: npt.NDArray[np.uint8], kept: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Count drawn images from the lowest score on: `(rows, images + 1)`, of those to be kept alone."""
        counts = counts.take(self.order, axis=1)
        if kept is not None:
            counts = counts * kept[self.order]
        cumulative = np.zeros((len(counts), len(self.order) + 1), dtype=np.int64)
        np.cumsum(counts, axis=1, out=cumulative[:, 1:])
        return cumulative

    def columns(self, thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Find the columns of `accumulate` that count the scores up to each threshold."""
        return np.searchsorted(self.values, thresholds, side="right")


def _thresholds(id_sorted: _Sorted, ood_sorted: _Sorted, steps: str | None) -> npt.NDArray[np.float64]:
    """List the scores at which a metric must be looked at, the last of each run of scores that it takes as one.

    Where thresholds pass images of one set alone, most metrics change monotonically or not at all, so that only the
    end of such a run counts.
    """
    distinct = np.unique(np.concatenate((id_sorted.values, ood_sorted.values)))
    has_id, has_ood = (np.diff(one.columns(distinct), prepend=0) > 0 for one in (id_sorted, ood_sorted))
    runs = np.zeros(len(distinct), dtype=np.bool_)
    if steps != "id":
        runs[:-1] |= ~has_ood[:-1] & ~has_ood[1:]
    if steps != "ood":
        runs[:-1] |= ~has_id[:-1] & ~has_id[1:]
    kept: npt.NDArray[np.float64] = distinct[~runs]
    return kept


def resample_metrics(
    names: Sequence[str],
    id_scores: npt.NDArray[Any],
    ood_scores: npt.NDArray[Any] | None,
    id_predictions: npt.NDArray[Any] | None,
    id_labels: npt.NDArray[Any] | None,
    *,
    resamples: int,
    seed: int,
    draws: Draws | None = None,
    stream: int = 1,
) -> dict[str, npt.NDArray[np.float64]]:
    """Compute metrics in resamples, the same for equal seeds and numbers of images.

    Args:
        names (`Sequence[str]`): Keys of `METRICS`.
        id_scores (`numpy.ndarray` of shape `(id images,)`): OOD-ness of the ID images, without NaN.
        ood_scores (`numpy.ndarray` of shape `(images,)`, *optional*): OOD-ness of the set that they are compared with.
        id_predictions (`numpy.ndarray` of shape `(id images,)`, *optional*): Predicted labels of the ID images.
        id_labels (`numpy.ndarray` of shape `(id images,)`, *optional*): The right ones.
        resamples (`int`): How many resamples.
        seed (`int`): Seed of the draws.
        draws ([`Draws`], *optional*): What to share the draws by.
        stream (`int`, *optional*, defaults to 1): As for [`Draws`], of the compared set.

    Returns:
        `dict[str, numpy.ndarray]`: The values of each metric, `(resamples,)`, float64.
    """
    draws = draws or Draws(max_bytes=0)
    correct = None if id_predictions is None or id_labels is None else np.asarray(id_predictions == id_labels)
    id_sorted = _Sorted(np.asarray(id_scores, dtype=np.float64))
    drawn: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in names}
    for needs_ood in (True, False):
        own = [name for name in names if METRICS[name].needs_ood == needs_ood]
        if not own:
            continue
        ood_sorted = _Sorted(np.asarray(ood_scores, dtype=np.float64) if needs_ood else np.empty(0))
        sizes = len(id_sorted.order), len(ood_sorted.order)
        right = correct if any(METRICS[name].needs_labels for name in own) else None
        # Metrics with the same steps have the same columns.
        columns = {}
        for steps in {METRICS[name].steps for name in own}:
            thresholds = _thresholds(id_sorted, ood_sorted, steps)
            columns[steps] = id_sorted.columns(thresholds), ood_sorted.columns(thresholds)
        rows = max(1, _CHUNK // sum(sizes))
        for id_draw, ood_draw in zip(
            draws.counts(sizes[0], resamples, seed, 0, rows),
            draws.counts(sizes[1], resamples, seed, stream, rows),
            strict=True,
        ):
            of_id, of_ood = id_sorted.accumulate(id_draw), ood_sorted.accumulate(ood_draw)
            of_right = None if right is None else id_sorted.accumulate(id_draw, right)
            for steps, (id_columns, ood_columns) in columns.items():
                id_counts = of_id.take(id_columns, axis=1)
                counts = Counts(
                    id_counts,
                    of_ood.take(ood_columns, axis=1),
                    np.zeros_like(id_counts) if of_right is None else of_right.take(id_columns, axis=1),
                )
                for name in own:
                    if METRICS[name].steps == steps:
                        kernel = KERNELS[METRICS[name].function]
                        drawn[name].append(kernel(counts, **METRICS[name].arguments))
    values = {name: np.concatenate(chunks) for name, chunks in drawn.items()}
    return {name: 1 - value if METRICS[name].complement else value for name, value in values.items()}


def percentile_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of the interval that holds the share `CONFIDENCE` of resampled values."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _check_record(record: Any, place: str) -> None:
    _check_entry(record, place, _REQUIRED)
    model = record["model"]
    if not isinstance(model, Mapping):
        raise ValueError(f"{place} must have a description in `model`, got {model!r}; evaluate again.")
    if missing := [name for name in _REQUIRED_OF_MODEL if name not in model]:
        raise ValueError(f"{place} lacks {', '.join(f'`model.{name}`' for name in missing)}; evaluate again.")


def _check_entry(entry: Any, place: str, required: Sequence[str]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place} must be a record, got {type(entry).__name__}; evaluate again.")
    version = entry.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{place} has schema_version {version!r}, but this version of clipn-hf reads {SCHEMA_VERSION}; evaluate "
            "again with it."
        )
    if missing := [name for name in required if name not in entry]:
        raise ValueError(f"{place} lacks {', '.join(f'`{name}`' for name in missing)}; evaluate again.")


def _name_of(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if isinstance(value, Mapping):
        value = value["id" if key == "model" else "name"]
    return str(value)


__all__ = [
    "AVERAGES_NAME",
    "CONFIDENCE",
    "CONVENTION",
    "ID_METRICS",
    "METRICS",
    "OOD_METRICS",
    "RECORDS_NAME",
    "SCHEMA_VERSION",
    "SHIFT",
    "SHIFT_METRICS",
    "Draws",
    "Evaluation",
    "Metric",
    "MetricData",
    "average_intervals",
    "average_resamples",
    "check_resampling",
    "compute_metric",
    "json_digest",
    "load_scores",
    "measure",
    "percentile_interval",
    "read_averages",
    "read_records",
    "records_path",
    "resample_metrics",
    "save_scores",
    "slug",
    "write_averages",
    "write_records",
]
