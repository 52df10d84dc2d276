# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics, and detectors measured on suites of image sets. What is exported here is imported when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adversarial import AdversarialImages, adversarial_ood
    from .benchmark import SuiteResult, evaluate_suite
    from .comparison import compare
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
    from .results import read_records
    from .robustness import RobustnessReport, evaluate_robustness
    from .suite import load_suite, ready_suites

_MODULES = {
    "adversarial": ("AdversarialImages", "adversarial_ood"),
    "benchmark": ("SuiteResult", "evaluate_suite"),
    "comparison": ("compare",),
    "metrics": (
        "Interval",
        "aupr",
        "aurc",
        "auroc",
        "bootstrap_interval",
        "ccr_at_fpr",
        "detection_accuracy",
        "fpr_at_tpr",
        "id_accuracy",
        "oscr",
    ),
    "results": ("read_records",),
    "robustness": ("RobustnessReport", "evaluate_robustness"),
    "suite": ("load_suite", "ready_suites"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AdversarialImages",
    "Interval",
    "RobustnessReport",
    "SuiteResult",
    "adversarial_ood",
    "aupr",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "ccr_at_fpr",
    "compare",
    "detection_accuracy",
    "evaluate_robustness",
    "evaluate_suite",
    "fpr_at_tpr",
    "id_accuracy",
    "load_suite",
    "oscr",
    "read_records",
    "ready_suites",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
