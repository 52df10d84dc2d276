# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Out-of-distribution detection for CLIP, native to the Hugging Face ecosystem."""

from .detector import LabelScore, OODDetector, OODResult
from .encoders import DualEncoder, IncompleteCheckpointError
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
    "IncompleteCheckpointError",
    "LabelScore",
    "OODDetector",
    "OODPipeline",
    "OODResult",
    "clipn_loss",
    "itbo_loss",
    "pipeline",
    "save_shim",
    "tso_loss",
]
