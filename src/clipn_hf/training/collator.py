# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Batches of image-text pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling import CLIPNProcessor
from ..prompts import DEFAULT_TEMPLATES


class ImageTextCollator:
    """Make the batch of a training step out of examples of [`load_image_text_dataset`].

    With learnable "no" prompts the plain caption feeds both text encoders, and there is one set of token ids. With
    hand-crafted ones, that is when the processor's `no_templates` differ from its `templates`, a pair of templates is
    drawn for each caption and the "no" text encoder gets token ids of its own. Texts are padded to the longest of the
    batch and cut at the tokenizer's `model_max_length`.

    Args:
        processor ([`CLIPNProcessor`]): Read anew for each batch, so that tokens added later take effect.

    Returns (of a call):
        `dict[str, torch.Tensor]`: `pixel_values` `(batch, 3, height, width)` or, for examples with embeddings,
        `image_embeds` `(batch, dim)` float32; `input_ids` and `attention_mask` `(batch, length)`; for hand-crafted
        prompts `no_input_ids` and `no_attention_mask`; for examples with groups `group_ids` `(batch,)` int64.
    """

    def __init__(self, processor: CLIPNProcessor) -> None:
        self.processor = processor

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if "image_embeds" in examples[0]:
            batch = {"image_embeds": torch.from_numpy(np.stack([example["image_embeds"] for example in examples]))}
        else:
            images = [example["image"] for example in examples]
            batch = {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
        captions = [example["caption"] for example in examples]
        templates = self.processor.templates or list(DEFAULT_TEMPLATES)
        no_templates = self.processor.no_templates or templates
        if templates == no_templates:
            batch.update(self._tokenize(captions))
        else:
            if len(templates) != len(no_templates):
                raise ValueError(
                    f"`templates` and `no_templates` of the processor are pairs, got {len(templates)} and "
                    f"{len(no_templates)}; give each template its negation."
                )
            pairs = [int(example["template_draw"] * len(templates)) for example in examples]
            texts = [templates[pair].replace("{}", caption) for pair, caption in zip(pairs, captions, strict=True)]
            no_texts = [
                no_templates[pair].replace("{}", caption) for pair, caption in zip(pairs, captions, strict=True)
            ]
            batch.update(self._tokenize(texts))
            batch.update({f"no_{name}": ids for name, ids in self._tokenize(no_texts).items()})
        if "group_id" in examples[0]:
            batch["group_ids"] = torch.tensor([example["group_id"] for example in examples], dtype=torch.int64)
        return batch

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
