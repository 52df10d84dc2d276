# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in the naming of OpenCLIP (https://github.com/mlfoundations/open_clip) as models of transformers.

The layout of both naming schemes, the files that hold such weights, and the models they become. Checkpoints of the
CLIPN authors (https://github.com/xmed-lab/CLIPN) follow the same naming, with the suffix `_no` for the "no" text
encoder.
"""

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from .configuration_clipn import CLIPNConfig, build_config
from .modeling_clipn import CLIPNModel

ACTIVATIONS = ("gelu", "quick_gelu")

# Written by some versions of OpenAI's and OpenCLIP's code; they repeat sizes or follow from them.
HARMLESS_KEYS = frozenset({"attn_mask", "context_length", "input_resolution", "vocab_size"})

# First part of a key -> what it gives away, for models whose missing and unexpected keys would explain nothing.
OTHER_ARCHITECTURES = {
    "text_model.": "it is in transformers' naming already: load its folder with `CLIPModel.from_pretrained` or "
    "`CLIPNModel.from_pretrained`",
    "text.": "it is an OpenCLIP model with a separate text tower (CoCa, SigLIP, a Hugging Face text encoder, …)",
    "visual.attnpool.": "its image encoder is a ResNet",
    "visual.layer1.": "its image encoder is a ResNet",
    "visual.trunk.": "its image encoder is a timm model",
}

# From this width on OpenCLIP's image encoders (ViT-H, g, G) have heads of 80, 88 or 104 dimensions, not 64.
WIDE_VISION_WIDTH = 1280

TENSOR_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "prompt_no": "no_text_model.embeddings.no_prompts",
    "logit_scale": "logit_scale",
}
# Stored for a product from the right, `x @ projection`; `nn.Linear` keeps the transpose.
TRANSPOSED = frozenset({"visual.proj", "text_projection", "text_projection_no"})
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TOWERS = {"visual.transformer": "vision_model", "transformer": "text_model", "transformer_no": "no_text_model"}
BLOCK_KEY = re.compile(r"(visual\.transformer|transformer|transformer_no)\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
FUSED_KEY = re.compile(
    r"(visual\.transformer|transformer|transformer_no)\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)"
)


def read_state_dict(source: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a `.safetensors` or `torch.save` file without running anything that it contains.

    Args:
        source (`str` or `Path`): The file. It is memory-mapped where its format allows.

    Returns:
        `dict[str, Tensor]`: The tensors under their original names; those of `"state_dict"` where the file has it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, a TorchScript archive, or holds something else than tensors by name.
    """
    source = Path(source)
    if source.is_dir():
        raise ValueError(f"{source} is a folder; give the weights file inside it (.pt, .pth, .bin or .safetensors).")
    if not source.is_file():
        raise FileNotFoundError(f"No such checkpoint file: {source}")
    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except SafetensorError as error:
            raise ValueError(f"{source} is damaged or not a safetensors file: {error}") from error
    try:
        is_archive = zipfile.is_zipfile(source)
        is_program = is_archive and _is_torchscript(source)
        checkpoint = None if is_program else torch.load(source, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} was refused and nothing in it was run: it holds Python objects other than tensors, which can "
            f"execute code when read, or it is damaged. If it is a training checkpoint that you trust, save its "
            f"state dict alone and convert that."
        ) from error
    except Exception as error:
        # What torch raises on damaged bytes depends on where they break: RuntimeError, EOFError, KeyError, …
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{source} is truncated, damaged or not a PyTorch checkpoint: {reason}") from error
    if is_program:
        raise ValueError(
            f"{source} is a TorchScript archive, a program rather than a state dict, as OpenAI's original CLIP files "
            f"are. Use the same model in transformers' format, for example openai/clip-vit-base-patch16."
        )
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(state_dict, dict) or not all(isinstance(key, str) for key in state_dict):
        raise ValueError(
            f"{source} must hold tensors by name or such a dictionary as 'state_dict', got {type(state_dict)}."
        )
    strangers = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(
            f"{source} must hold tensors by name, but these are none: {_listing(strangers)}. "
            f"Save the state dict alone, or under the key 'state_dict'."
        )
    return dict(state_dict)


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    activation: str = "gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
    eos_token_id: int | None = None,
    templates: Sequence[str] | None = None,
    no_templates: Sequence[str] | None = None,
) -> CLIPModel | CLIPNModel:
    """Build the transformers model of an original state dict, in evaluation mode on the CPU.

    Args:
        state_dict (`Mapping[str, Tensor]`): Original weights, the keys with or without the prefix `module.`.
        activation, vision_heads, text_heads, eos_token_id, templates, no_templates: As in [`convert_checkpoint`].

    Returns:
        [`CLIPNModel`] if the state dict has a "no" text encoder, [`~transformers.CLIPModel`] otherwise.

    Raises:
        ValueError: As [`convert_checkpoint`].
    """
    weights, _ = select_weights(state_dict)
    config = infer_config(weights, activation, vision_heads, text_heads, templates, no_templates)
    return build_model(weights, config, eos_token_id)


def select_weights(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Names without the prefix of data-parallel training; the weights, and the names of the harmless rest."""
    named = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    if len(named) != len(state_dict):
        raise ValueError("The state dict holds the same keys with and without the prefix 'module.'; keep one of each.")
    for prefix, explanation in OTHER_ARCHITECTURES.items():
        if any(key.startswith(prefix) for key in named):
            raise ValueError(
                f"Not a CLIP with OpenCLIP's vision transformer and its own text encoder: {explanation} (keys begin "
                f"with {prefix!r})."
            )
    weights = {key: tensor for key, tensor in named.items() if key not in HARMLESS_KEYS}
    numberless = sorted(key for key, tensor in weights.items() if not tensor.is_floating_point())
    if numberless:
        raise ValueError(f"Weights must be floating point numbers, but these are not: {_listing(numberless)}.")
    broken = sorted(key for key, tensor in weights.items() if not torch.isfinite(tensor).all())
    if broken:
        raise ValueError(
            f"The weights contain NaN or infinite values, so the model cannot work: {_listing(broken)}. "
            f"Its training diverged or the file is damaged; use another checkpoint."
        )
    return weights, tuple(sorted(HARMLESS_KEYS & named.keys()))


def infer_config(
    weights: Mapping[str, Tensor],
    activation: str,
    vision_heads: int | None,
    text_heads: int | None,
    templates: Sequence[str] | None,
    no_templates: Sequence[str] | None,
) -> CLIPConfig:
    """Read all sizes from the shapes, then hold every key and shape against what these sizes imply."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        if key not in weights:
            raise ValueError(
                f"Missing key {key!r}, without which the sizes of the model cannot be read: this is not the state "
                f"dict of a CLIP in OpenCLIP's naming, or not all of it. Its keys: {_listing(sorted(weights))}."
            )
        if weights[key].ndim != dimensions or 0 in weights[key].shape:
            raise ValueError(
                f"{key!r} must have {dimensions} dimensions of at least 1, got {tuple(weights[key].shape)}."
            )
        return tuple(weights[key].shape)

    vision_width, channels, patch_size, patch_height = shape("visual.conv1.weight", 4)
    positions = shape("visual.positional_embedding", 2)[0]
    grid = math.isqrt(positions - 1)
    if patch_size != patch_height or grid == 0 or grid * grid != positions - 1:
        raise ValueError(
            f"Only square pictures in square patches are supported, got patches of {patch_height} x {patch_size} "
            f"pixels and {positions} positions, which must be a square number plus one."
        )
    vocab_size, text_width = shape("token_embedding.weight", 2)
    projection_dim = shape("text_projection", 2)[1]
    tower = {"hidden_act": activation, "projection_dim": projection_dim}
    sizes: dict[str, Any] = {
        "projection_dim": projection_dim,
        "vision_config": {
            **tower,
            "hidden_size": vision_width,
            "num_hidden_layers": _count_layers(weights, "visual.transformer"),
            "intermediate_size": shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            "num_attention_heads": _heads("vision_heads", vision_heads, vision_width),
            "num_channels": channels,
            "image_size": grid * patch_size,
            "patch_size": patch_size,
        },
        "text_config": {
            **tower,
            "hidden_size": text_width,
            "num_hidden_layers": _count_layers(weights, "transformer"),
            "intermediate_size": shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            "num_attention_heads": _heads("text_heads", text_heads, text_width),
            "max_position_embeddings": shape("positional_embedding", 2)[0],
            "vocab_size": vocab_size,
            # The order of CLIP's vocabularies: …, start of text, end of text; CLIP pads with the latter
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": vocab_size - 1,
        },
    }
    if vision_heads is None and vision_width >= WIDE_VISION_WIDTH:
        warnings.warn(
            f"The image encoder is {vision_width} wide and was given {vision_width // 64} heads of 64, but OpenCLIP's "
            f"ViT-H, ViT-g and ViT-bigG have 16 heads; set `vision_heads` to what the model's configuration says.",
            stacklevel=3,
        )

    if not any(_is_no(key) for key in weights):
        if templates is not None or no_templates is not None:
            raise ValueError(
                "Templates belong to a CLIPN, but the weights are a plain CLIP; leave them out here and give them to "
                "`CLIPNModel.from_clip`."
            )
        config = CLIPConfig(**sizes)
    else:
        prompts: dict[str, Any] = {"no_prompt_type": "handcrafted"}
        if "prompt_no" in weights:
            prompts = {"no_prompt_type": "learnable", "num_no_prompts": shape("prompt_no", 3)[0]}
        config = build_config(**sizes, **prompts, templates=templates, no_templates=no_templates)
    _check_shapes(weights, config)
    return config


def _is_no(key: str) -> bool:
    return key == "prompt_no" or key.partition(".")[0].endswith("_no")


def _count_layers(weights: Mapping[str, Tensor], tower: str) -> int:
    prefix = f"{tower}.resblocks."
    return len({key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)})


def _heads(name: str, given: int | None, width: int) -> int:
    if given is None:
        if width % 64:
            raise ValueError(
                f"The width {width} is not a multiple of 64, so the number of heads is open; set `{name}`."
            )
        return width // 64
    if given < 1 or width % given:
        raise ValueError(f"`{name}` must be a divisor of the width {width}, got {given}.")
    return given


def _expected_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Original keys and shapes of a model of this configuration."""
    vision, text = sub_configs(config)

    def layer_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def tower(name: str, layers: int, width: int, intermediate: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(layers):
            block = f"{name}.resblocks.{layer}"
            shapes |= layer_norm(f"{block}.ln_1", width) | layer_norm(f"{block}.ln_2", width)
            for part, outputs, inputs in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", intermediate, width),
                ("mlp.c_proj.", width, intermediate),
            ):
                shapes |= {f"{block}.{part}weight": (outputs, inputs), f"{block}.{part}bias": (outputs,)}
        return shapes

    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (vision.hidden_size,),
        "visual.conv1.weight": (vision.hidden_size, vision.num_channels, vision.patch_size, vision.patch_size),
        "visual.positional_embedding": ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size),
        "visual.proj": (vision.hidden_size, vision.projection_dim),
        "logit_scale": (),
    }
    shapes |= layer_norm("visual.ln_pre", vision.hidden_size) | layer_norm("visual.ln_post", vision.hidden_size)
    shapes |= tower("visual.transformer", vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size)
    for no in ("", "_no") if isinstance(config, CLIPNConfig) else ("",):
        shapes |= {
            f"token_embedding{no}.weight": (text.vocab_size, text.hidden_size),
            f"positional_embedding{no}": (text.max_position_embeddings, text.hidden_size),
            f"text_projection{no}": (text.hidden_size, text.projection_dim),
        }
        shapes |= layer_norm(f"ln_final{no}", text.hidden_size)
        shapes |= tower(f"transformer{no}", text.num_hidden_layers, text.hidden_size, text.intermediate_size)
    if isinstance(config, CLIPNConfig) and config.no_prompt_type == "learnable":
        shapes["prompt_no"] = (config.num_no_prompts, text.max_position_embeddings, text.hidden_size)
    return shapes


def _check_shapes(weights: Mapping[str, Tensor], config: CLIPConfig) -> None:
    expected = _expected_shapes(config)
    problems = []
    if missing := sorted(expected.keys() - weights.keys()):
        problems.append(f"missing keys: {_listing(missing)}")
    if unexpected := sorted(weights.keys() - expected.keys()):
        problems.append(f"unexpected keys: {_listing(unexpected)}")
    wrong = [
        f"{key} {tuple(weights[key].shape)} instead of {shape}"
        for key, shape in sorted(expected.items())
        if key in weights and tuple(weights[key].shape) != shape
    ]
    if wrong:
        problems.append(f"wrong shapes: {_listing(wrong)}")
    if problems:
        raise ValueError(
            f"The weights do not form a CLIP with OpenCLIP's vision transformer: {'; '.join(problems)}. "
            f"The file is incomplete or of another architecture."
        )


def _rename(key: str) -> list[str]:
    """Names in transformers of an original tensor: one, or three where query, key and value are fused."""
    if match := FUSED_KEY.fullmatch(key):
        tower, layer, kind = match.groups()
        return [f"{TOWERS[tower]}.encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
    if match := BLOCK_KEY.fullmatch(key):
        tower, layer, part, kind = match.groups()
        return [f"{TOWERS[tower]}.encoder.layers.{layer}.{BLOCK_NAMES[part]}.{kind}"]
    if key not in TENSOR_NAMES:
        head, dot, rest = key.partition(".")
        return [f"no_{TENSOR_NAMES[head.removesuffix('_no') + dot + rest]}"]
    return [TENSOR_NAMES[key]]


def build_model(weights: Mapping[str, Tensor], config: CLIPConfig, eos_token_id: int | None) -> CLIPModel | CLIPNModel:
    _, text = sub_configs(config)
    if eos_token_id is not None:
        if not 0 <= eos_token_id < text.vocab_size:
            raise ValueError(f"`eos_token_id` must lie between 0 and {text.vocab_size - 1}, got {eos_token_id}.")
        text.eos_token_id = eos_token_id
    dtypes = {tensor.dtype for tensor in weights.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        dtype = torch.float32
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        tensor = tensor.to(dtype)
        if key in TRANSPOSED:
            tensor = tensor.T
        names = _rename(key)
        parts = (tensor,) if len(names) == 1 else tensor.chunk(len(names))
        # Each with memory of its own: parts of one tensor, or one tensor under two keys, could not be saved
        copies = [part.clone(memory_format=torch.contiguous_format) for part in parts]
        renamed.update(zip(names, copies, strict=True))
    model_class = CLIPNModel if isinstance(config, CLIPNConfig) else CLIPModel
    return model_class.from_pretrained(None, config=config, state_dict=renamed, dtype=dtype)


def sub_configs(config: CLIPConfig) -> tuple[Any, Any]:
    # Their declared types allow what a finished configuration never holds: dictionaries, None, lists of sizes
    return config.vision_config, config.text_config


def _is_torchscript(source: Path) -> bool:
    with zipfile.ZipFile(source) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _listing(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


__all__ = [
    "ACTIVATIONS",
    "build_model",
    "convert_state_dict",
    "infer_config",
    "read_state_dict",
    "select_weights",
    "sub_configs",
]
