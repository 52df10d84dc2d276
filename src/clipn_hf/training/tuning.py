# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What of a CLIPN model is trained, and the files that hold just that.

The adapters are plain peft adapters: nothing but peft and the base model is needed to load or merge them. Their
folders also load by themselves, as a model for `pipeline` and the other ways in.
"""

import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path
from ..modeling import CLIPNModel, CLIPNProcessor, add_no_tokens, save_prompt_settings
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
        return get_peft_model(model, config, revision=model.clip_revision)
    if args.tuning == "trainable_tokens":
        token_ids = add_no_tokens(model, processor, args.num_trainable_tokens)
        token_config = TrainableTokensConfig(token_indices=token_ids, target_modules=TOKEN_MODULES)
        return get_peft_model(model, token_config, revision=model.clip_revision)
    if args.tuning == "no_prompts":
        prompts = _no_prompts(model)
        model.requires_grad_(False)
        prompts.requires_grad_(True)
    return model


def save_tuning_files(model: CLIPNModel, tuning: str, folder: str | os.PathLike[str]) -> None:
    """Write what a way of tuning needs beside the files that transformers and peft save.

    For `"no_prompts"` that is the file of [`save_no_prompts`], for the adapters `"lora"` and `"trainable_tokens"` that
    of [`~clipn_hf.modeling.save_prompt_settings`], with which the folder of an adapter on a plain CLIP loads by
    itself.

    Args:
        model ([`CLIPNModel`]): Without peft around it.
        tuning (`str`): As in [`CLIPNTrainingArguments`].
        folder (`str` or `os.PathLike`): Where the model is saved.
    """
    if tuning == "no_prompts":
        save_no_prompts(model, Path(folder) / NO_PROMPTS_NAME)
    elif tuning in ("lora", "trainable_tokens"):
        save_prompt_settings(model.config, folder)


def save_no_prompts(model: CLIPNModel, file: str | os.PathLike[str]) -> None:
    """Write the additive "no" prompts alone to a small safetensors file, which appears only when it is complete.

    Args:
        model ([`CLIPNModel`]): `no_prompt_type` must be `"learnable"`.
        file (`str` or `os.PathLike`): The file to write.

    Raises:
        ValueError: The model has no additive prompts.
    """
    prompts = _no_prompts(model).detach().cpu().contiguous()
    metadata = {"format": "pt", "content": "clipn no_prompts", "base_model": model.name_or_path or "unknown"}
    with atomic_path(file) as partial:
        save_file({"no_prompts": prompts}, partial, metadata=metadata)


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


__all__ = [
    "NO_PROMPTS_NAME",
    "add_no_tokens",
    "load_no_prompts",
    "prepare_tuning",
    "save_no_prompts",
    "save_tuning_files",
]
