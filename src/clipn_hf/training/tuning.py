# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What of a CLIPN model is trained, and the files that hold just that.

The adapters are plain peft adapters: nothing but peft and the base model is needed to load or merge them.
"""

import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor

from clipn_hf.modeling import CLIPNModel, CLIPNProcessor

from .clipn_config import CLIPNTrainingArguments

NO_PROMPTS_NAME = "no_prompts.safetensors"

# Full matches of module names. A bare "q_proj" would put adapters into all three towers.
LORA_MODULES = r"no_text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
TOKEN_MODULES = r"no_text_model\.embeddings\.token_embedding"


def prepare_tuning(
    model: CLIPNModel, processor: CLIPNProcessor, args: CLIPNTrainingArguments
) -> CLIPNModel | PeftModel:
    """Make exactly those parameters trainable that `args.tuning` names.

    Args:
        model ([`CLIPNModel`]): Changed in place.
        processor ([`CLIPNProcessor`]): Of the model; changed in place by `"trainable_tokens"`.
        args ([`CLIPNTrainingArguments`]): Says what to train.

    Returns:
        [`CLIPNModel`] or [`~peft.PeftModel`]: `model`, with peft around it where `args.tuning` is `"lora"` or
        `"trainable_tokens"`.

    Raises:
        ValueError: The model has no parameters of the wanted kind.
    """
    model.freeze_clip()
    if args.tuning == "lora":
        config = LoraConfig(
            r=args.lora_rank,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=LORA_MODULES,
        )
        return get_peft_model(model, config)
    if args.tuning == "trainable_tokens":
        token_ids = add_no_tokens(model, processor, args.num_trainable_tokens)
        return get_peft_model(model, TrainableTokensConfig(token_indices=token_ids, target_modules=TOKEN_MODULES))
    if args.tuning == "no_prompts":
        prompts = _no_prompts(model)
        model.requires_grad_(False)
        prompts.requires_grad_(True)
    return model


def add_no_tokens(
    model: CLIPNModel, processor: CLIPNProcessor, num_tokens: int, initial_text: str = "a photo without"
) -> list[int]:
    """Put `num_tokens` placeholder tokens `<no_0> <no_1> …` in front of every template, in place of a negation.

    Each "no" template becomes the placeholders followed by its plain template. The tokenizer learns the placeholders,
    both text encoders get rows for them, initialised from the words of `initial_text`: its last word goes to the last
    placeholder, the words before it to those before, over and over. Adding them again reuses what is there, so that
    this also fits a fresh base model to a processor that was saved with an adapter.

    Args:
        model ([`CLIPNModel`]): Changed in place; `no_prompt_type` must be `"handcrafted"`.
        processor ([`CLIPNProcessor`]): Changed in place, tokenizer and `no_templates`.
        num_tokens (`int`): Number of placeholder tokens.
        initial_text (`str`, *optional*, defaults to `"a photo without"`): Words the placeholders start from.

    Returns:
        `list[int]`: The ids of the placeholders.

    Raises:
        ValueError: The "no" prompts of the model are additive, or `initial_text` has no words.

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
    tokenizer = processor.tokenizer
    word_ids = tokenizer(initial_text, add_special_tokens=False)["input_ids"]
    if not word_ids:
        raise ValueError(f"`initial_text` must contain at least one word, got {initial_text!r}.")

    placeholders = [f"<no_{index}>" for index in range(num_tokens)]
    tokenizer.add_tokens([AddedToken(placeholder, normalized=False) for placeholder in placeholders])
    token_ids: list[int] = tokenizer.convert_tokens_to_ids(placeholders)
    sources = [word_ids[(index - num_tokens) % len(word_ids)] for index in range(num_tokens)]

    text_config = model.text_model.config
    vocab_size = max(text_config.vocab_size, len(tokenizer))
    # Pooling at the highest id, which `eos_token_id=2` stands for, would pick a placeholder.
    text_config.eos_token_id = tokenizer.eos_token_id
    for tower in (model.text_model, model.no_text_model):
        tower.eos_token_id = tokenizer.eos_token_id
        if tower.get_input_embeddings().num_embeddings < vocab_size:
            tower.resize_token_embeddings(vocab_size, mean_resizing=False)
        weight = tower.get_input_embeddings().weight
        with torch.no_grad():
            weight[token_ids] = weight[sources]
    # CLIPNModel keeps a frozen tower in evaluation mode, and the new embeddings have to follow
    model.train(model.training)

    context = " ".join(placeholders)
    processor.no_templates = [f"{context} {template}" for template in processor.templates]
    model.config.templates = list(processor.templates)
    model.config.no_templates = list(processor.no_templates)
    return token_ids


def save_no_prompts(model: CLIPNModel, file: str | os.PathLike[str]) -> None:
    """Write the additive "no" prompts alone to a small safetensors file, which appears only when it is complete.

    Args:
        model ([`CLIPNModel`]): `no_prompt_type` must be `"learnable"`.
        file (`str` or `os.PathLike`): The file to write.

    Raises:
        ValueError: The model has no additive prompts.
    """
    file = Path(file)
    prompts = _no_prompts(model).detach().cpu().contiguous()
    metadata = {"format": "pt", "content": "clipn no_prompts", "base_model": model.name_or_path or "unknown"}
    partial = file.with_name(f".{file.name}.partial")
    save_file({"no_prompts": prompts}, partial, metadata=metadata)
    os.replace(partial, file)


def load_no_prompts(model: CLIPNModel, file: str | os.PathLike[str]) -> None:
    """Load additive "no" prompts that [`save_no_prompts`] wrote into `model`, in place.

    Args:
        model ([`CLIPNModel`]):
            Of the same CLIP the prompts were trained on; number of prompts, positions and width have to agree.
        file (`str` or `os.PathLike`): The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else, or prompts of another shape, or the model has no additive prompts.
    """
    prompts = _no_prompts(model)
    try:
        with safe_open(file, framework="pt") as opened:
            names, metadata = list(opened.keys()), opened.metadata() or {}
            loaded: Tensor | None = opened.get_tensor("no_prompts") if names == ["no_prompts"] else None
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); save it again.") from error
    if loaded is None:
        raise ValueError(
            f'{file} holds the tensors {names[:5]}, expected "no_prompts" alone as written by `save_no_prompts`; '
            f"load a whole model with `CLIPNModel.from_pretrained`."
        )
    if loaded.shape != prompts.shape:
        raise ValueError(
            f'{file} holds "no" prompts of shape {tuple(loaded.shape)} (prompts, positions, width), the model takes '
            f"{tuple(prompts.shape)}; load them onto the CLIP they were trained on "
            f"({metadata.get('base_model', 'unknown')}), with `num_no_prompts={loaded.shape[0]}`."
        )
    with torch.no_grad():
        prompts.copy_(loaded)


def _no_prompts(model: CLIPNModel) -> torch.nn.Parameter:
    if model.config.no_prompt_type != "learnable":
        raise ValueError(
            f"Additive \"no\" prompts exist only with `no_prompt_type='learnable'`, this model has "
            f"{model.config.no_prompt_type!r}; build it with `CLIPNModel.from_clip(clip, no_prompt_type='learnable')`."
        )
    return model.no_text_model.embeddings.no_prompts
