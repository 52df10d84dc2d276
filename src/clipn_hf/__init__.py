# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Out-of-distribution detection for CLIP, native to the Hugging Face ecosystem.

Importing this package makes the Auto classes of transformers know CLIPN, and `transformers.pipeline` the task
"ood-detection".
"""

import importlib
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any


def _is_command() -> bool:
    """Tell whether this process is the command `clipn-hf` or `python -m clipn_hf`."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    # Python puts this there while it looks for the module that it was told to run.
    if program == "-m":
        return ("-m", __name__) in itertools.pairwise(sys.orig_argv)
    return os.path.basename(program) in ("clipn-hf", "clipn-hf.exe")


# The command imports what it needs itself: transformers and torch take seconds, for which `--help` need not wait.
if TYPE_CHECKING or not _is_command():
    from .detector import LabelScore, OODDetector, OODResult
    from .encoders import DualEncoder, IncompleteCheckpointError, PrecomputedEncoder
    from .evaluation.benchmark import evaluate_suite
    from .features import extract_features
    from .images import ImageError
    from .modeling import (
        CLIPNConfig,
        CLIPNLoss,
        CLIPNModel,
        CLIPNOutput,
        CLIPNProcessor,
        clipn_loss,
        itbo_loss,
        register_auto_classes,
        save_shim,
        tso_loss,
    )
    from .negatives import NegativeLabels, mine_negative_labels
    from .pipeline import OODPipeline, pipeline, register_pipeline

    register_auto_classes()
    register_pipeline()

__all__ = [
    "CLIPNConfig",
    "CLIPNLoss",
    "CLIPNModel",
    "CLIPNOutput",
    "CLIPNProcessor",
    "DualEncoder",
    "ImageError",
    "IncompleteCheckpointError",
    "LabelScore",
    "NegativeLabels",
    "OODDetector",
    "OODPipeline",
    "OODResult",
    "PrecomputedEncoder",
    "clipn_loss",
    "evaluate_suite",
    "extract_features",
    "itbo_loss",
    "mine_negative_labels",
    "pipeline",
    "save_shim",
    "tso_loss",
]


def __getattr__(name: str) -> Any:
    """Import, in the process of the command, what it has not imported yet."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The function `pipeline` comes last, because it takes the place of the module of that name.
    for module in (
        "detector",
        "encoders",
        "evaluation.benchmark",
        "features",
        "images",
        "modeling",
        "negatives",
        "pipeline",
    ):
        names = vars(importlib.import_module(f".{module}", __name__))
        globals().update({exported: names[exported] for exported in __all__ if exported in names})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
