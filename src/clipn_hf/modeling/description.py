# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A configuration in words, for people who ask what a checkpoint is."""

from typing import Any

from transformers import CLIPConfig

from .configuration_clipn import CLIPNConfig


def describe_config(config: CLIPConfig) -> dict[str, str]:
    """Describe the sizes of a CLIP or CLIPN.

    Args:
        config ([`~transformers.CLIPConfig`] or [`CLIPNConfig`]): Of the model.

    Returns:
        `dict[str, str]`: A line of text for each part: image encoder, text encoder, "no" prompts, embeddings.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    parts = {
        "image encoder": f"{vision.num_hidden_layers} layers of width {vision.hidden_size} "
        f"(MLP {vision.intermediate_size}), {vision.image_size} × {vision.image_size} pixels "
        f"in patches of {vision.patch_size}",
        "text encoder": f"{text.num_hidden_layers} layers of width {text.hidden_size} (MLP {text.intermediate_size}), "
        f"{text.vocab_size:,} tokens, at most {text.max_position_embeddings} per text",
    }
    if isinstance(config, CLIPNConfig):
        learnable = config.no_prompt_type == "learnable"
        parts['"no" prompts'] = f"learnable, {config.num_no_prompts}" if learnable else "hand-crafted"
    parts["embeddings"] = f"{config.projection_dim} dimensions"
    return parts


__all__ = ["describe_config"]
