# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a CLIPN checkpoint is: configuration, model, processor, losses, and their registration in transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from .completeness import IncompleteCheckpointError
from .configuration_clipn import CLIPNConfig
from .context_tokens import add_context_tokens, prompt_tuning_config
from .learned_prompts import LearnedPrompts, attach_learned_prompts, load_learned_prompts, save_learned_prompts
from .loss_clipn import CLIPNLoss, clipn_loss, itbo_loss, tso_loss
from .modeling_clipn import CLIPNModel, CLIPNOutput
from .no_tokens import add_no_tokens
from .processing_clipn import CLIPNProcessor
from .prompt_settings import save_prompt_settings
from .publishing import save_shim


def register_auto_classes() -> None:
    """Make `AutoConfig`, `AutoModel`, `AutoModelForZeroShotImageClassification` and `AutoProcessor` know CLIPN."""
    AutoConfig.register(CLIPNConfig.model_type, CLIPNConfig, exist_ok=True)
    AutoModel.register(CLIPNConfig, CLIPNModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(CLIPNConfig, CLIPNModel, exist_ok=True)
    AutoProcessor.register(CLIPNConfig, CLIPNProcessor, exist_ok=True)
    # The pipeline looks its model up by name in this table, and logs an error for those it does not find.
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES[CLIPNConfig.model_type] = CLIPNModel.__name__


__all__ = [
    "CLIPNConfig",
    "CLIPNLoss",
    "CLIPNModel",
    "CLIPNOutput",
    "CLIPNProcessor",
    "IncompleteCheckpointError",
    "LearnedPrompts",
    "add_context_tokens",
    "add_no_tokens",
    "attach_learned_prompts",
    "clipn_loss",
    "itbo_loss",
    "load_learned_prompts",
    "prompt_tuning_config",
    "register_auto_classes",
    "save_learned_prompts",
    "save_prompt_settings",
    "save_shim",
    "tso_loss",
]
