# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Compares results on the same images by the paired bootstrap."""

import difflib
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from .results import (
    CONFIDENCE,
    METRICS,
    SHIFT,
    Draws,
    MetricData,
    average_resamples,
    check_resampling,
    compute_metric,
    load_scores,
    percentile_interval,
    read_records,
    records_path,
    resample_metrics,
)
from .tables import AVERAGE, public_name, row_key, row_names

Record = dict[str, Any]

# Metrics of records that are others on other data: the accuracy on a shifted set, ID and shifted sets taken as one.
_FULL_SPECTRUM = {"auroc_full_spectrum": "auroc", "fpr95_full_spectrum": "fpr95"}
COMPARABLE = (*METRICS, "accuracy", *_FULL_SPECTRUM)
# How many names an error lists.
_LISTED = 6


@dataclass(frozen=True)
class Comparison:
    """The difference that two methods or models show on the same images.

    Args:
        suite (`str`): Name of the suite.
        set (`str`): Name of the set that is compared with ID, or `"average"` of all sets of the group.
        group (`str`): `"near"`, `"far"` or `"covariate-shift"`; `"id"` for a metric of the ID images alone.
        seed (`int`): Seed of the records.
        metric (`str`): One of `COMPARABLE`.
        a (`str`): Model and method of the first record, with whatever settings tell it from others.
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


@dataclass(frozen=True)
class ComparisonOverSeeds:
    """What the comparisons of several seeds have in common.

    Args:
        suite (`str`): Name of the suite.
        set (`str`): Name of the set, or `"average"`.
        group (`str`): As in [`Comparison`].
        metric (`str`): As in [`Comparison`].
        a (`str`): As in [`Comparison`].
        b (`str`): As in [`Comparison`].
        value_a (`float`): Mean over seeds of the metric of the first records.
        value_b (`float`): That of the second ones.
        difference (`float`): Mean of `value_b - value_a`.
        deviation (`float`, *optional*): Standard deviation of the differences; None of one seed.
        seeds (`int`): How many seeds there are.
        higher (`int`): With how many of them the second value is the higher one.
    """

    suite: str
    set: str
    group: str
    metric: str
    a: str
    b: str
    value_a: float
    value_b: float
    difference: float
    deviation: float | None
    seeds: int
    higher: int


@dataclass(frozen=True)
class ComparisonResult:
    """All comparisons of two evaluations.

    Args:
        comparisons (`list` of [`Comparison`]): One for each pair, seed and set, in the order of the first file.
        averages (`list` of [`Comparison`]): The plain means over the sets of each group that has at least two.
        left_out (`list[str]`): Sentences that say which records have no partner.
    """

    comparisons: list[Comparison]
    averages: list[Comparison]
    left_out: list[str]

    def over_seeds(self) -> list[ComparisonOverSeeds]:
        """Summarize the seeds: one entry for each pair of rows and set, the averages of a group after its sets."""
        found: dict[tuple[str, ...], list[Comparison]] = {}
        for one in (*self.comparisons, *self.averages):
            found.setdefault((one.suite, one.a, one.b, one.group, one.set), []).append(one)
        order = {key[:4]: position for position, key in reversed(list(enumerate(found)))}
        return [_over_seeds(found[key]) for key in sorted(found, key=lambda key: order[key[:4]])]


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    metric: str = "auroc",
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
    *,
    method_a: str | None = None,
    method_b: str | None = None,
    model_a: str | None = None,
    model_b: str | None = None,
) -> ComparisonResult:
    """Compare two evaluations, or two methods or models of one, on the same images by the paired bootstrap.

    Each resample draws the same images for both, so that what makes an image easy or hard for both cancels out.
    Records are paired by suite, set and seed, and by model and method as far as both sides have them in common: two
    files with the same methods of two models are compared method by method, for example.

    Args:
        a (`str` or `os.PathLike`):
            `results.jsonl` of the first evaluation, with the folder `scores` beside it, or the folder of both.
        b (`str` or `os.PathLike`, *optional*): That of the second one; by default the first one again.
        metric (`str`, *optional*, defaults to `"auroc"`): One of `COMPARABLE`.
        resamples (`int`, *optional*, defaults to 1000): How many resamples to draw.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar, if there is a terminal.
        method_a (`str`, *optional*): Take only this method of the first evaluation.
        method_b (`str`, *optional*): Take only this method of the second one.
        model_a (`str`, *optional*): Take only this model of the first evaluation, by its id or the last part of it.
        model_b (`str`, *optional*): Take only this model of the second one.

    Returns:
        [`ComparisonResult`]: The comparisons, averages over sets, and what had no partner.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The files have no records in common, or several that could be paired with each other; images, their
            order or the labels differ; scores are missing or were changed; a metric, method or model is unknown.
    """
    if metric not in COMPARABLE:
        close = difflib.get_close_matches(str(metric), COMPARABLE, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"`metric` must be one of {', '.join(COMPARABLE)}, got {metric!r}.{hint}")
    if not check_resampling(resamples, seed):
        raise ValueError("`resamples` must be at least 1 for a comparison, got 0.")
    if b is None and method_a == method_b and model_a == model_b:
        raise ValueError(
            "There is nothing to compare: give a second file `b`, or two methods (`method_a`, `method_b`) or two "
            "models (`model_a`, `model_b`) of the first one."
        )
    sides = (
        _Side.load("a", a, metric, method_a, model_a),
        _Side.load("b", a if b is None else b, metric, method_b, model_b),
    )
    pairs = _pair(*sides, metric)
    names = _labels(pairs, sides)
    for pair in pairs:
        _check_same_data(*pair, names)
        if metric in _FULL_SPECTRUM:
            _check_same_shift(pair, sides, names)
    left_out = _left_out(sides, pairs, metric)
    found: dict[int, Comparison] = {}
    averages = []
    groups: dict[tuple[Any, ...], list[tuple[Record, Record]]] = {}
    for pair in pairs:
        record = pair[0]
        key = record["suite"], record["seed"], record["set"]["group"], row_key(record), row_key(pair[1])
        # What is of the ID images alone is the same for all sets.
        key = key if _needs_set(metric) else (*key[:2], "id", *key[3:])
        groups.setdefault(key, []).append(pair)
    compute: dict[str, Any] = {"resamples": resamples, "seed": seed, "draws": Draws()}
    with tqdm(total=len(pairs), desc="Comparisons", disable=None if progress else True) as bar:
        for (*_, group, _, _), members in groups.items():
            if not _needs_set(metric):
                bar.update(len(members) - 1)
                members = members[:1]
            # By name, so that the order of the sets in a suite does not change the draws of their average.
            ranked = sorted(members, key=lambda pair: str(pair[0]["set"]["name"]))
            own: list[tuple[MetricData, MetricData]] = []
            for a_record, b_record in ranked:
                name, data_a = sides[0].data(a_record, metric)
                data_b = sides[1].data(b_record, metric)[1]
                labels = names[_key((a_record, b_record))]
                if _sizes(data_a) != _sizes(data_b):
                    raise ValueError(
                        f"The scores of {labels[0]} and {labels[1]} on {_place(a_record)} are of different numbers of "
                        "images; evaluate both again."
                    )
                own.append((data_a, data_b))
                values = [compute_metric(METRICS[name], *data) for data in own[-1]]
                drawn = [resample_metrics([name], *data, **compute)[name] for data in own[-1]]
                where = a_record["id_set" if group == "id" else "set"]["name"]
                found[id(a_record)] = _comparison(a_record, where, group, metric, labels, values, drawn)
                bar.update()
            if len(own) > 1:
                by_side = list(zip(*own, strict=True))
                values = [statistics.fmean(compute_metric(METRICS[name], *data) for data in sets) for sets in by_side]
                drawn = [average_resamples([name], sets, **compute)[name] for sets in by_side]
                averages.append(_comparison(a_record, AVERAGE, group, metric, labels, values, drawn))
    # In the order of the first file
    comparisons = [found[id(pair[0])] for pair in pairs if id(pair[0]) in found]
    return ComparisonResult(comparisons, averages, left_out)


@dataclass(frozen=True)
class _Side:
    """One of the two evaluations.

    Args:
        path (`str` or `os.PathLike`): The file as it was named.
        folder (`Path`): Where its scores are.
        records (`list[dict]`): Those that are asked for.
        shifted (`dict`): Of these, the records of covariate-shifted sets, in the order of the suite.
    """

    path: str | os.PathLike[str]
    folder: Path
    records: list[Record]
    shifted: dict[tuple[Any, ...], list[Record]]

    @classmethod
    def load(
        cls, side: str, path: str | os.PathLike[str], metric: str, method: str | None, model: str | None
    ) -> "_Side":
        """Read the records of one side."""
        file = records_path(path)
        records = read_records(file)
        chosen = (
            ("method", method, lambda record: {record["method"]}),
            (
                "model",
                model,
                lambda record: {_model(record), public_name(_model(record)), _model(record).split("/")[-1]},
            ),
        )
        for what, name, names_of in chosen:
            records = _select(records, path, f"{what}_{side}", name, names_of)
        if not any(metric in record["metrics"] for record in records):
            there = list(dict.fromkeys(name for record in records for name in record["metrics"]))
            raise ValueError(f"{path} has no records with the metric {metric}; there are {', '.join(there)}.")
        shifted: dict[tuple[Any, ...], list[Record]] = {}
        for record in records:
            if record["set"]["group"] == SHIFT:
                shifted.setdefault(_run(record), []).append(record)
        return cls(path, file.parent, records, shifted)

    def data(self, record: Record, metric: str) -> tuple[str, MetricData]:
        """Load what a metric is computed from, and name the key of `METRICS` that computes it."""
        scores = load_scores(record, self.folder)
        of_id = scores["id_predictions"], scores["id_labels"]
        if metric == "accuracy":
            if "ood_labels" not in scores:
                raise ValueError(f"The scores of {_place(record)} in {self.path} have no labels; evaluate again.")
            return "id_accuracy", (scores["ood_scores"], None, scores["ood_predictions"], scores["ood_labels"])
        if metric in _FULL_SPECTRUM:
            shifted = [load_scores(one, self.folder)["ood_scores"] for one in self.shifted[_run(record)]]
            wide = np.concatenate([scores["id_scores"], *shifted])
            return _FULL_SPECTRUM[metric], (wide, scores["ood_scores"], None, None)
        return metric, (scores["id_scores"], scores["ood_scores"], *of_id)


def _run(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["suite"], record["seed"], row_key(record)


def _sizes(data: MetricData) -> list[int]:
    return [0 if values is None else len(values) for values in data]


def _needs_set(metric: str) -> bool:
    return metric not in METRICS or METRICS[metric].needs_ood


def _select(
    records: list[Record],
    path: str | os.PathLike[str],
    argument: str,
    name: str | None,
    names_of: Callable[[Record], Iterable[str]],
) -> list[Record]:
    if name is None:
        return records
    found = [record for record in records if name in names_of(record)]
    if not found:
        there = sorted({public_name(max(names_of(record), key=len)) for record in records})
        close = difflib.get_close_matches(name, there, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"`{argument}` must be one that {path} has, {_listed(there)}, got {name!r}.{hint}")
    return found


def _model(record: Mapping[str, Any]) -> str:
    return str(record["model"]["id"])


# What tells apart the records of one file, in the order in which it is tried: the two files need not have the same
# models or the same methods in them.
_MATCHES: tuple[Callable[[Record], tuple[str, ...]], ...] = (
    lambda record: (_model(record), record["method"]),
    lambda record: (row_key(record),),
    lambda record: (record["method"],),
    lambda record: (_model(record),),
    lambda record: (),
)


def _pair(a: _Side, b: _Side, metric: str) -> list[tuple[Record, Record]]:
    records = [[record for record in side.records if metric in record["metrics"]] for side in (a, b)]
    ambiguous = False
    for names in _MATCHES:
        found_a, found_b = (_by_key(own, names) for own in records)
        common = [key for key in found_a if key in found_b]
        if not common:
            continue
        if all(len(found_a[key]) == len(found_b[key]) == 1 for key in common):
            return [(found_a[key][0], found_b[key][0]) for key in common]
        ambiguous = True
    if ambiguous:
        raise ValueError(
            f"Several records of {a.path} and {b.path} could be compared with each other, because neither all their "
            "methods nor all their models agree; choose one of each with `method_a`, `method_b`, `model_a` and "
            "`model_b`, or evaluate it into a file of its own."
        )
    listed = " and ".join(f"{side.path} has {_summary(own)}" for side, own in zip((a, b), records, strict=True))
    raise ValueError(f"The files have no suite, set and seed in common: {listed}.")


def _by_key(
    records: Sequence[Record], names: Callable[[Record], tuple[str, ...]]
) -> dict[tuple[Any, ...], list[Record]]:
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        place = (record["suite"], record["set"]["name"], record["set"]["group"], record["seed"])
        found.setdefault((*place, *names(record)), []).append(record)
    return found


def _key(pair: tuple[Record, Record]) -> tuple[str, str]:
    return row_key(pair[0]), row_key(pair[1])


def _labels(pairs: Sequence[tuple[Record, Record]], sides: Sequence[_Side]) -> dict[tuple[str, str], tuple[str, str]]:
    """Name both sides of each pair, so that no two names are alike where anything differs."""
    names = {key: " ".join(name) for key, name in row_names(record for pair in pairs for record in pair).items()}
    labels = {}
    for pair in pairs:
        a, b = (names[row_key(record)] for record in pair)
        if a == b and sides[0].path != sides[1].path:
            a, b = (f"{name} in {side.path}" for name, side in zip((a, b), sides, strict=True))
        labels[_key(pair)] = a, b
    return labels


def _left_out(sides: Sequence[_Side], pairs: Sequence[tuple[Record, Record]], metric: str) -> list[str]:
    """Say which records have no partner, by what they have in common."""
    sentences = []
    for position, side in enumerate(sides):
        names = {key: " ".join(name) for key, name in row_names(side.records).items()}
        facts = [
            (id(record), record["suite"], names[row_key(record)], record["set"]["name"], record["seed"])
            for record in side.records
            if metric in record["metrics"]
        ]
        used = {id(pair[position]) for pair in pairs}
        paired = [fact for fact in facts if fact[0] in used]
        rest = [fact for fact in facts if fact[0] not in used]
        parts = []
        for column, kind in enumerate(("suite", "", "set", "seed"), start=1):
            kept = {fact[column] for fact in paired}
            missing = [fact[column] for fact in rest if fact[column] not in kept]
            if missing:
                listed = _span(missing) if kind == "seed" else _listed(missing)
                plural = "s" if kind and len(set(missing)) > 1 else ""
                parts.append(f"{kind}{plural} {listed}".strip())
            rest = [fact for fact in rest if fact[column] in kept]
        if rest:
            parts.append(f"{len(rest)} other record{'s' if len(rest) > 1 else ''}")
        if parts:
            sentences.append(f"Left out of {'AB'[position]} ({side.path}), for want of a partner: {'; '.join(parts)}.")
    return sentences


def _listed(names: Iterable[Any]) -> str:
    texts = list(dict.fromkeys(map(str, names)))
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return f"{', '.join(texts[:_LISTED])}{more}"


def _span(seeds: Iterable[Any]) -> str:
    numbers = sorted(set(seeds))
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return _listed(numbers)


def _summary(records: Sequence[Record]) -> str:
    """Say what records are of, in a few words."""
    suites = dict.fromkeys(record["suite"] for record in records)
    texts = []
    for suite in suites:
        own = [record for record in records if record["suite"] == suite]
        sets = _listed(record["set"]["name"] for record in own)
        seeds = sorted({record["seed"] for record in own})
        texts.append(f"{suite} ({sets}; seed{'s' if len(seeds) > 1 else ''} {_span(seeds)})")
    return _listed(texts)


def _place(record: Mapping[str, Any]) -> str:
    return f"{record['suite']}/{record['set']['name']} (seed {record['seed']})"


def _check_same_data(a: Record, b: Record, names: Mapping[tuple[str, str], tuple[str, str]]) -> None:
    differences = []
    if a["labels"]["sha256"] != b["labels"]["sha256"]:
        counts = " and ".join(str(record["labels"]["count"]) for record in (a, b))
        differences.append(f"the class lists ({counts} labels; their names or their order)")
    for key, what in (("id_set", "the ID images"), ("set", f"the images of {a['set']['name']}")):
        if a[key]["sha256"] != b[key]["sha256"]:
            counts = " and ".join(f"{record[key]['images']:,}" for record in (a, b))
            differences.append(f"{what} ({counts}; their content, their order or their labels)")
    if differences:
        label_a, label_b = names[_key((a, b))]
        raise ValueError(
            f"{label_a} and {label_b} cannot be compared on {_place(a)}, because these differ: "
            f"{'; '.join(differences)}. Evaluate both on the same data."
        )


def _check_same_shift(
    pair: tuple[Record, Record], sides: Sequence[_Side], names: Mapping[tuple[str, str], tuple[str, str]]
) -> None:
    shifted = [side.shifted.get(_run(record), []) for side, record in zip(sides, pair, strict=True)]
    listed = [[str(record["set"]["name"]) for record in own] for own in shifted]
    if listed[0] != listed[1] or not listed[0]:
        found = " and ".join(", ".join(own) or "none" for own in listed)
        raise ValueError(
            f"{_place(pair[0])} cannot be compared in the full spectrum, because the records of shifted sets are not "
            f"the same ({found}); evaluate both on the same suite."
        )
    for a, b in zip(*shifted, strict=True):
        _check_same_data(a, b, names)


def _comparison(
    record: Record,
    where: str,
    group: str,
    metric: str,
    names: tuple[str, str],
    values: Sequence[float],
    drawn: Sequence[npt.NDArray[np.float64]],
) -> Comparison:
    differences = drawn[1] - drawn[0]
    low, high = percentile_interval(differences)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return Comparison(
        suite=record["suite"],
        set=where,
        group=group,
        seed=record["seed"],
        metric=metric,
        a=names[0],
        b=names[1],
        value_a=values[0],
        value_b=values[1],
        difference=values[1] - values[0],
        low=low,
        high=high,
        # Counting the estimate itself keeps the value above zero, which no finite number of draws could show.
        p_value=float(min(1, 2 * (tail + 1) / (len(differences) + 1))),
        resamples=len(differences),
    )


def _over_seeds(comparisons: Sequence[Comparison]) -> ComparisonOverSeeds:
    first = comparisons[0]
    differences = [one.difference for one in comparisons]
    return ComparisonOverSeeds(
        suite=first.suite,
        set=first.set,
        group=first.group,
        metric=first.metric,
        a=first.a,
        b=first.b,
        value_a=statistics.fmean(one.value_a for one in comparisons),
        value_b=statistics.fmean(one.value_b for one in comparisons),
        difference=statistics.fmean(differences),
        deviation=statistics.stdev(differences) if len(differences) > 1 else None,
        seeds=len(differences),
        higher=sum(difference > 0 for difference in differences),
    )


__all__ = ["COMPARABLE", "Comparison", "ComparisonOverSeeds", "ComparisonResult", "compare"]
