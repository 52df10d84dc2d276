# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Results that papers print, each with its source and its convention. None of them was computed here."""

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml

_FILE = Path(__file__).with_name("published.yaml")
_REQUIRED = ("benchmark", "method", "model", "source", "fpr_positive", "results")
_OPTIONAL = ("average", "note")


@dataclass(frozen=True)
class PublishedResult:
    """One row of a table in a paper.

    Args:
        benchmark (`str`): Name of the ready suite with the same sets.
        method (`str`): As the paper calls it.
        model (`str`): The model that it was measured on.
        source (`str`): The paper, and where in it.
        fpr_positive (`"id"` or `"ood"`): What counts as positive in its FPR95.
        results (`Mapping[str, Mapping[str, float]]`): Metrics in percent by set: `{"SUN": {"auroc": 94.18, …}, …}`.
        average (`Mapping[str, float]`, *optional*): Averages as printed, in percent.
        note (`str`, *optional*, defaults to `""`): What else to know.
    """

    benchmark: str
    method: str
    model: str
    source: str
    fpr_positive: Literal["id", "ood"]
    results: Mapping[str, Mapping[str, float]]
    average: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    note: str = ""


def published_results(benchmark: str | None = None, method: str | None = None) -> list[PublishedResult]:
    """List published results.

    Args:
        benchmark (`str`, *optional*): Name of a suite: only results on its sets.
        method (`str`, *optional*):
            Only results of this method. In either case, the whole name or one word of it: `"mcm"` is "MCM" but not
            "GL-MCM", `"atd"` is "CLIPN-A (ATD)".

    Returns:
        `list[PublishedResult]`: In the order of the file; empty where nothing is published.

    Example:

    ```python
    >>> from clipn_hf.evaluation.published import published_results
    >>> published_results("imagenet1k", "atd")[0].results["iNaturalist"]["fpr95"]  # doctest: +SKIP
    19.11

    ```
    """
    return [
        result
        for result in _read(_FILE)
        if benchmark in (None, result.benchmark) and (method is None or _is_called(result.method, method))
    ]


def _is_called(name: str, method: str) -> bool:
    words = re.findall(r"[^\s()\[\],;]+", name.casefold())
    return method.casefold() in (name.casefold(), *words)


@functools.cache
def _read(path: Path) -> tuple[PublishedResult, ...]:
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{path.name} must be a list of results, but is {type(entries).__name__}.")
    return tuple(_parse(entry, f"{path.name}[{position}]") for position, entry in enumerate(entries))


def _parse(entry: Any, place: str) -> PublishedResult:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} must be a mapping, but is {entry!r}.")
    for key in entry:
        if key not in (*_REQUIRED, *_OPTIONAL):
            close = difflib.get_close_matches(str(key), (*_REQUIRED, *_OPTIONAL), n=1)
            raise ValueError(f"{place} has an unknown key {key!r}{f', did you mean {close[0]!r}?' if close else '.'}")
    missing = [key for key in _REQUIRED if key not in entry]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(map(repr, missing))}.")
    if entry["fpr_positive"] not in ("id", "ood"):
        raise ValueError(f"{place}: `fpr_positive` must be 'id' or 'ood', but is {entry['fpr_positive']!r}.")
    results, average = entry["results"], entry.get("average") or {}
    if not isinstance(results, dict) or not all(isinstance(metrics, dict) for metrics in results.values()):
        raise ValueError(f"{place}: `results` must map names of sets to metrics, but is {results!r}.")
    if not isinstance(average, dict):
        raise ValueError(f"{place}: `average` must map metrics to percent, but is {average!r}.")
    for metrics in (*results.values(), average):
        for metric, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                raise ValueError(f"{place}: {metric!r} must be a number of percent in [0, 100], but is {value!r}.")
    return PublishedResult(
        benchmark=str(entry["benchmark"]),
        method=str(entry["method"]),
        model=str(entry["model"]),
        source=str(entry["source"]),
        fpr_positive=entry["fpr_positive"],
        results=MappingProxyType({str(name): MappingProxyType(dict(metrics)) for name, metrics in results.items()}),
        average=MappingProxyType(dict(average)),
        note=str(entry.get("note") or ""),
    )


__all__ = ["PublishedResult", "published_results"]
