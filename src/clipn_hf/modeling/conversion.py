# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion of original checkpoints to transformers' format.

Two kinds of files are understood, both in the naming of OpenCLIP (https://github.com/mlfoundations/open_clip):

- checkpoints of the CLIPN authors (https://github.com/xmed-lab/CLIPN), with learnable "no" prompts or, where the state
  dict has none, made for hand-crafted ones; they become a [`CLIPNModel`];
- plain CLIPs with a vision transformer; they become a stock [`~transformers.CLIPModel`], from which
  [`CLIPNModel.from_clip`] makes a CLIPN that is ready for training.

All sizes are read from the weights. Three things are not in them: the activation, the number of attention heads and
the token at which texts are pooled; [`format_summary`] prints what was taken for each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, CLIPConfig, CLIPProcessor, PreTrainedModel, ProcessorMixin

from ..files import atomic_path
from .configuration_clipn import CLIPNConfig
from .description import describe_config
from .openclip import (
    ACTIVATIONS,
    build_model,
    convert_state_dict,
    infer_config,
    read_state_dict,
    select_weights,
    sub_configs,
)
from .processing_clipn import CLIPNProcessor


@dataclass(frozen=True)
class ConversionSummary:
    """What [`convert_checkpoint`] found in a file, assumed and wrote; [`format_summary`] renders it as text.

    Attributes:
        source (`Path`): The original file.
        output (`Path`): The folder that was written.
        config (`CLIPConfig`): Configuration of the converted model, a [`CLIPNConfig`] for a CLIPN.
        dtype (`torch.dtype`): The dtype of the written weights.
        num_parameters (`int`): Number of weights.
        logit_scale (`float`): Factor that turns cosines into logits, the exponential of the parameter.
        ignored_keys (`tuple[str, ...]`): Keys of the file that carry no weights.
        processor (`str`, *optional*): Where tokenizer and image processor come from; None when only the model was
            written.
    """

    source: Path
    output: Path
    config: CLIPConfig
    dtype: torch.dtype
    num_parameters: int
    logit_scale: float
    ignored_keys: tuple[str, ...]
    processor: str | None


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    processor: str | Path | None = None,
    activation: str = "gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
    eos_token_id: int | None = None,
    templates: Sequence[str] | None = None,
    no_templates: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ConversionSummary:
    """Convert an original CLIPN or OpenCLIP file into a folder that `from_pretrained` loads.

    A CLIPN file becomes a [`CLIPNModel`], a plain CLIP a [`~transformers.CLIPModel`]. The dtype of the weights is kept
    when all of them share one of float32, float16 and bfloat16; anything else becomes float32. The folder appears only
    when it is complete.

    Args:
        source (`str` or `Path`):
            The file, `.safetensors` or one written by `torch.save`: a state dict, or a dictionary that holds one as
            `"state_dict"`. Only tensors are read; a file that holds other Python objects is refused unexecuted.
        output (`str` or `Path`): The folder to write.
        processor (`str` or `Path`, *optional*):
            Hub id or folder of the tokenizer and image processor, which must fit the weights; they are written beside
            the model. Without it only the model is written.
        activation (`str`, *optional*, defaults to `"gelu"`):
            `"gelu"`, or `"quick_gelu"` for weights that descend from OpenAI's. The weights do not tell.
        vision_heads (`int`, *optional*): Attention heads of the image encoder. Defaults to its width / 64.
        text_heads (`int`, *optional*): Attention heads of the text encoders. Defaults to their width / 64.
        eos_token_id (`int`, *optional*):
            Token at which texts are pooled. Defaults to the tokenizer's end token, and without a processor to the last
            token of the vocabulary.
        templates (`Sequence[str]`, *optional*): Templates of a CLIPN, see [`CLIPNConfig`].
        no_templates (`Sequence[str]`, *optional*): "no" templates of a CLIPN, see [`CLIPNConfig`].
        overwrite (`bool`, *optional*, defaults to `False`): Replace `output` if it holds a checkpoint already.

    Returns:
        [`ConversionSummary`]: Everything that was inferred, assumed and written.

    Raises:
        FileNotFoundError: `source` does not exist.
        FileExistsError: `output` is not empty and may not be replaced.
        ValueError: The file is damaged, unsafe or of another architecture, has missing or unexpected keys, tensors of
            the wrong shape or with NaN or infinite values, or an argument does not fit the weights.
    """
    source, output = Path(source), Path(output)
    _check_output(output, overwrite)
    if overwrite and source.resolve().is_relative_to(output.resolve()):
        raise ValueError(
            f"{source} lies inside the output folder {output}, which would be replaced; move it out first."
        )
    state_dict = read_state_dict(source)
    weights, ignored_keys = select_weights(state_dict)
    config = infer_config(weights, activation, vision_heads, text_heads, templates, no_templates)
    loaded = None if processor is None else load_processor(processor, config)
    if loaded is not None:
        _, text = sub_configs(config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(text, name, getattr(loaded.tokenizer, name))
    model = build_model(weights, config, eos_token_id)
    save_checkpoint(output, model, loaded, overwrite=overwrite)
    return ConversionSummary(
        source=source,
        output=output,
        config=model.config,
        dtype=model.dtype,
        num_parameters=model.num_parameters(),
        logit_scale=math.exp(model.logit_scale.item()),
        ignored_keys=ignored_keys,
        processor=None if processor is None else str(processor),
    )


def load_processor(processor: str | Path, config: CLIPConfig) -> CLIPProcessor | CLIPNProcessor:
    """Load tokenizer and image processor and check that they fit a model.

    The tokenizer's length limit is set to the model's number of positions.

    Args:
        processor (`str` or `Path`): Hub id or folder.
        config (`CLIPConfig`): Configuration of the model; a [`CLIPNConfig`] also gives its templates.

    Returns:
        [`CLIPNProcessor`] for a [`CLIPNConfig`], [`~transformers.CLIPProcessor`] otherwise.

    Raises:
        ValueError: One of the two parts is missing, the pictures have another size than the model's, the tokenizer
            another number of tokens, or it does not end texts with its end token.
    """
    loaded = AutoProcessor.from_pretrained(processor)
    tokenizer, image_processor = getattr(loaded, "tokenizer", None), getattr(loaded, "image_processor", None)
    if tokenizer is None or image_processor is None:
        raise ValueError(f"{processor} must hold a tokenizer and an image processor, got {type(loaded).__name__}.")
    vision, text = sub_configs(config)
    size = vision.image_size
    # A picture that is not square shows what the processor really does, whichever of its options say so
    pixels = image_processor(Image.new("RGB", (3 * size, 2 * size)), return_tensors="pt")["pixel_values"]
    if tuple(pixels.shape[-2:]) != (size, size):
        raise ValueError(
            f"The image processor of {processor} makes pictures of {pixels.shape[-2]} x {pixels.shape[-1]} pixels, "
            f"but the weights are for {size} x {size}; give the processor that belongs to the weights."
        )
    if len(tokenizer) != text.vocab_size:
        raise ValueError(
            f"The tokenizer of {processor} has {len(tokenizer)} tokens, but the weights are for {text.vocab_size}; "
            f"give the processor that belongs to the weights."
        )
    if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        raise ValueError(
            f"The tokenizer of {processor} does not end texts with its end token {tokenizer.eos_token!r}, where CLIP "
            f"pools them; give a CLIP tokenizer."
        )
    tokenizer.model_max_length = text.max_position_embeddings
    if isinstance(config, CLIPNConfig):
        return CLIPNProcessor(image_processor, tokenizer, templates=config.templates, no_templates=config.no_templates)
    return CLIPProcessor(image_processor, tokenizer)


def save_checkpoint(
    output: str | Path, model: PreTrainedModel, processor: ProcessorMixin | None = None, *, overwrite: bool = False
) -> None:
    """Write a model and its processor to a folder that appears only when it is complete.

    Args:
        output (`str` or `Path`): The folder.
        model (`PreTrainedModel`): The model.
        processor (`ProcessorMixin`, *optional*): Its processor.
        overwrite (`bool`, *optional*, defaults to `False`): Replace `output` if it holds a checkpoint already.

    Raises:
        FileExistsError: `output` is not empty and may not be replaced.
    """
    output = Path(output)
    _check_output(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as unfinished:
        model.save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)


def format_summary(summary: ConversionSummary) -> str:
    """Render a summary as the text that the command line prints, without a newline at its end.

    Args:
        summary (`ConversionSummary`): The result of [`convert_checkpoint`].

    Returns:
        `str`: What was read from the weights, what was assumed, what was written.
    """
    config = summary.config
    vision, text = sub_configs(config)
    kind = "CLIPN" if isinstance(config, CLIPNConfig) else 'CLIP without a "no" text encoder'
    dtype = str(summary.dtype).removeprefix("torch.")
    lines = [
        f"Converted {summary.source}",
        "Read from the weights",
        f"  model            {kind}, {summary.num_parameters:,} parameters, {dtype}",
        *(f"  {part:<15}  {words}" for part, words in describe_config(config).items()),
        f"  logit scale      {summary.logit_scale:.4g}",
    ]
    if summary.ignored_keys:
        lines.append(f"  ignored          {', '.join(summary.ignored_keys)} (no weights)")
    lines += [
        "Not stored in the weights; check that it is right",
        f"  activation       {vision.hidden_act} (gelu for LAION's models, quick_gelu for OpenAI's)",
        f"  attention heads  image {vision.num_attention_heads} x {vision.hidden_size // vision.num_attention_heads}, "
        f"text {text.num_attention_heads} x {text.hidden_size // text.num_attention_heads} (heads x dimensions)",
        f"  end of text      token {text.eos_token_id}",
        f"Written to {summary.output}",
    ]
    if summary.processor is not None:
        lines.append(f"  model, and the tokenizer and image processor of {summary.processor}")
    else:
        lines.append("  model only: no processor was named, so there is no tokenizer and no image processor beside it")
    return "\n".join(lines)


def _check_output(output: Path, overwrite: bool) -> None:
    """Refuse targets that hold something: all but checkpoints in any case, checkpoints unless `overwrite`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise FileExistsError(f"The output {output} is a file; name a folder.")
    if not (output / "config.json").is_file():
        raise FileExistsError(f"The output folder {output} is not empty and holds no checkpoint; name another folder.")
    if not overwrite:
        raise FileExistsError(
            f"The output folder {output} holds a checkpoint already; name another folder or overwrite it."
        )


__all__ = [
    "ACTIVATIONS",
    "ConversionSummary",
    "convert_checkpoint",
    "convert_state_dict",
    "format_summary",
    "load_processor",
    "read_state_dict",
    "save_checkpoint",
]
