# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Placeholder tokens, which stand in "no" prompts where a negation stood, and whose embeddings are trained."""

import itertools
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import CLIPModel

from .modeling_clipn import CLIPNModel
from .processing_clipn import CLIPNProcessor

INITIAL_TEXT = "a photo without"


def add_no_tokens(
    model: CLIPNModel, processor: CLIPNProcessor, num_tokens: int, initial_text: str = INITIAL_TEXT
) -> list[int]:
    """Put `num_tokens` placeholder tokens `<no_0> <no_1> …` in front of every template, in place of a negation.

    Each "no" template becomes the placeholders followed by its plain template. The tokenizer learns the placeholders,
    both text encoders get rows for them, initialised from the words of `initial_text`: its last word goes to the last
    placeholder, the words before it to those before, over and over. Adding them again reuses what is there, so that
    this also fits a fresh base model to a processor that was saved with an adapter.

    Args:
        model ([`CLIPNModel`]): Changed in place; `no_prompt_type` must be `"handcrafted"`.
        processor ([`CLIPNProcessor`]):
            Changed in place: tokenizer, `no_templates`, and `templates` where they were those of the model.
        num_tokens (`int`): Number of placeholder tokens.
        initial_text (`str`, *optional*, defaults to `"a photo without"`): Words the placeholders start from.

    Returns:
        `list[int]`: The ids of the placeholders.

    Raises:
        ValueError: The "no" prompts of the model are additive, `num_tokens` is less than 1, or `initial_text` has no
            words.

    Example:

    ```python
    >>> base = CLIPNModel.from_clip("openai/clip-vit-base-patch16", no_prompt_type="handcrafted")  # doctest: +SKIP
    >>> processor = CLIPNProcessor.from_pretrained("org/adapter")  # doctest: +SKIP
    >>> add_no_tokens(base, processor, num_tokens=4)  # doctest: +SKIP
    [49408, 49409, 49410, 49411]
    >>> model = PeftModel.from_pretrained(base, "org/adapter")  # doctest: +SKIP

    ```"""
    if model.config.no_prompt_type != "handcrafted":
        raise ValueError(
            f"Placeholder tokens take the place of hand-crafted negations, but this model has `no_prompt_type="
            f"{model.config.no_prompt_type!r}`; build it with "
            f"`CLIPNModel.from_clip(clip, no_prompt_type='handcrafted')`, or use `tuning='no_prompts'`."
        )
    if num_tokens < 1:
        raise ValueError(f"`num_tokens` must be at least 1, got {num_tokens}.")
    tokenizer = processor.tokenizer
    if not _word_ids(tokenizer, initial_text):
        raise ValueError(f"`initial_text` must contain at least one word, got {initial_text!r}.")
    placeholders = [f"<no_{index}>" for index in range(num_tokens)]
    tokenizer.add_tokens([AddedToken(placeholder, normalized=False) for placeholder in placeholders])
    token_ids: list[int] = tokenizer.convert_tokens_to_ids(placeholders)
    fit_vocabulary(model, tokenizer)
    _initialise(model, tokenizer, token_ids, initial_text)

    templates = processor.templates or model.config.templates or ()
    context = " ".join(placeholders)
    processor.templates = list(templates)
    processor.no_templates = [f"{context} {template}" for template in templates]
    model.config.templates = list(processor.templates)
    model.config.no_templates = list(processor.no_templates)
    return token_ids


def fit_vocabulary(model: CLIPModel, tokenizer: Any) -> None:
    """Give the text encoder, and that of "no", rows for the tokens that a tokenizer has and they have not.

    The rows of placeholders `<no_0> <no_1> …` are initialised as [`add_no_tokens`] does by default, those of other new
    tokens are zero. Rows that are there stay as they are.

    Args:
        model ([`CLIPNModel`] or [`~transformers.CLIPModel`]): Changed in place.
        tokenizer ([`CLIPTokenizer`]): A tokenizer of the model that may have got new tokens.
    """
    text_config: Any = model.config.text_config
    old_size, new_size = text_config.vocab_size, len(tokenizer)
    # Pooling at the highest id, which `eos_token_id=2` stands for, would pick an added token.
    text_config.eos_token_id = tokenizer.eos_token_id
    for tower in _text_models(model):
        tower.eos_token_id = tokenizer.eos_token_id
        if tower.get_input_embeddings().num_embeddings < new_size:
            tower.resize_token_embeddings(new_size, mean_resizing=False)
            with torch.no_grad():
                tower.get_input_embeddings().weight[old_size:] = 0
    vocabulary = tokenizer.get_vocab()
    placeholders = itertools.takewhile(vocabulary.__contains__, (f"<no_{index}>" for index in itertools.count()))
    token_ids = [vocabulary[placeholder] for placeholder in placeholders]
    if token_ids and min(token_ids) >= old_size:
        _initialise(model, tokenizer, token_ids, INITIAL_TEXT)
    # CLIPNModel keeps a frozen tower in evaluation mode, and the new embeddings have to follow.
    model.train(model.training)


@torch.no_grad()
def _initialise(model: CLIPModel, tokenizer: Any, token_ids: list[int], text: str) -> None:
    word_ids = _word_ids(tokenizer, text)
    sources = [word_ids[(index - len(token_ids)) % len(word_ids)] for index in range(len(token_ids))]
    for tower in _text_models(model):
        weight = tower.get_input_embeddings().weight
        weight[token_ids] = weight[sources]


def _text_models(model: Any) -> list[Any]:
    return [getattr(model, name) for name in ("text_model", "no_text_model") if hasattr(model, name)]


def _word_ids(tokenizer: Any, text: str) -> list[int]:
    word_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return word_ids


__all__ = ["add_no_tokens", "fit_vocabulary"]
