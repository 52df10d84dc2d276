# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics, and detectors measured on suites of image sets.

The metrics need numpy and torch alone; the rest is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .metrics import (
    Interval,
    aupr,
    aurc,
    auroc,
    bootstrap_interval,
    ccr_at_fpr,
    detection_accuracy,
    fpr_at_tpr,
    id_accuracy,
    oscr,
)

if TYPE_CHECKING:
    from .benchmark import SuiteResult, evaluate_suite
    from .results import compare, read_records
    from .suite import load_suite, ready_suites

_LAZY = {
    "SuiteResult": "benchmark",
    "compare": "results",
    "evaluate_suite": "benchmark",
    "load_suite": "suite",
    "read_records": "results",
    "ready_suites": "suite",
}

__all__ = [
    "Interval",
    "SuiteResult",
    "aupr",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "ccr_at_fpr",
    "compare",
    "detection_accuracy",
    "evaluate_suite",
    "fpr_at_tpr",
    "id_accuracy",
    "load_suite",
    "oscr",
    "read_records",
    "ready_suites",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
