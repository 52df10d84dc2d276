# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Digests of images, and lists of everything else that an embedding depends on."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from transformers import CLIPModel

from .families import find_family, lowers_texts, tokenizer_options
from .images import ImageSource, read_content
from .modeling import CLIPNModel

Kind = Literal["image", "text", "no_text"]

_FORMAT = 1  # To be raised whenever this package would make other numbers of the same image, text and settings.

# What runs in these classes for one kind of embedding. Of any other class everything counts, for want of knowledge.
_PARTS: Mapping[Kind, tuple[str, str]] = {
    "image": ("vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
    "no_text": ("no_text_model.", "no_text_projection."),
}
# Entries of configurations that say where something was found or who wrote it, or that take part in another way.
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_mapping",
        "base_model_name_or_path",
        "dtype",
        "id2label",
        "inference_mode",
        "label2id",
        "learned_prompts",
        "no_templates",
        "revision",
        "templates",
        "transformers_version",
    }
)
# What changes the last digits alone.
_ROUNDING = frozenset({"attention", "device", "dtype", "matmul_precision", "versions"})
_ADAPTER_STATE = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")


def image_digest(image: ImageSource) -> tuple[bytes, bytes | Image.Image]:
    """Compute SHA-256 of an image: of the bytes of its file, or of its pixels if there is no file.

    Args:
        image: What [`~clipn_hf.images.load_image`] reads.

    Returns:
        `tuple`: The 32 bytes of the digest, and what it is of. Let [`~clipn_hf.images.load_image`] read that in place
        of `image`, because a file may change between two readings.

    Raises:
        ImageError, TypeError: As [`~clipn_hf.images.load_image`], for what can be told without decoding a file.
    """
    content = read_content(image)
    if isinstance(content, bytes):
        return hashlib.sha256(b"file\0" + content).digest(), content
    pixels = f"pixels\0{content.width}x{content.height}\0".encode() + content.tobytes()
    return hashlib.sha256(pixels).digest(), content


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Compute SHA-256 of settings, in hexadecimal; the order of their names does not matter."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def image_encoder_settings(model: Any, image_processor: Any) -> dict[str, Any]:
    """List everything that the embedding of an image depends on, besides the image.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one, with or without a peft adapter): The model.
        image_processor: Prepares the images.

    Returns:
        `dict`: Of what JSON knows. The text encoders do not count, so a CLIP and the CLIPN made from it share it.
    """
    return {**_encoder_settings(model, "image"), "image_processor": image_processor_settings(image_processor)}


def same_images(one: Any, one_processor: Any, other: Any, other_processor: Any) -> bool:
    """Tell whether two models with their image processors embed images alike, but for rounding."""
    settings = [
        {name: value for name, value in image_encoder_settings(*pair).items() if name not in _ROUNDING}
        for pair in ((one, one_processor), (other, other_processor))
    ]
    return settings[0] == settings[1]


def describe_image_encoder(model: Any, image_processor: Any, name: str | None = None) -> dict[str, Any]:
    """Say which model an image embedding comes from, for what is trained on embeddings.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one, with or without a peft adapter): The model.
        image_processor: Prepares the images.
        name (`str`, *optional*): What the model is called.

    Returns:
        `dict`: Of what JSON knows: `"id"`, which is `name`; `"dtype"`; `"sha256"` of everything that makes an
        embedding of a prepared image, but for what changes the last digits alone, with the weights in float32; and
        `"image_processor_sha256"`.
    """
    return describe_image_settings(image_encoder_settings(model, image_processor), model, name)


def describe_image_settings(settings: Mapping[str, Any], model: Any, name: str | None = None) -> dict[str, Any]:
    """Say the same as [`describe_image_encoder`], of what [`image_encoder_settings`] has listed already."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = {key: value for key, value in settings.items() if key not in (*_ROUNDING, "image_processor")}
    if settings["dtype"] != str(torch.float32):
        own["weights"] = _weights_digest(base, _parts(base, "image"), torch.float32)
    return {
        "id": name,
        "dtype": settings["dtype"].removeprefix("torch."),
        "sha256": settings_digest(own),
        "image_processor_sha256": settings_digest(settings["image_processor"]),
    }


def configuration_settings(model: Any, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """List what embeddings depend on besides weights and image processor: configuration and tokenizer.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one, with or without a peft adapter): The model.
        tokenizer: Cuts and pads the texts.
        max_length (`int`): Longer texts are cut.

    Returns:
        `dict`: Of what JSON knows.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {
        "config": _plain(base.config.to_dict()),
        "tokenizer": {"size": len(tokenizer), **_tokenizer_settings(tokenizer)},
        "max_length": max_length,
    }


def image_processor_settings(image_processor: Any) -> dict[str, Any]:
    """List everything that the preparation of an image depends on, besides the image, as JSON knows it."""
    # Its own settings call the implementations in Pillow and in torch, whose numbers differ, by one name.
    settings: dict[str, Any] = _plain({"class": _class_name(image_processor), **image_processor.to_dict()})
    return settings


def text_encoder_settings(model: Any, kind: Kind, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """List everything that the embedding of a text depends on, besides its tokens.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one, with or without a peft adapter): The model.
        kind (`"text"` or `"no_text"`): Which of its encoders.
        tokenizer: Cuts and pads the texts.
        max_length (`int`): Longer texts are cut.

    Returns:
        `dict`: Of what JSON knows.
    """
    return {
        **_encoder_settings(model, kind),
        "tokenizer": {**_tokenizer_settings(tokenizer), **tokenizer_options(model, tokenizer)},
        "max_length": max_length,
        "padding": find_family(model)[1].padding,
        "lowercase": lowers_texts(model, tokenizer),
    }


def data_digest(digests: Iterable[bytes], labels: Sequence[Any] | None = None) -> str:
    """Compute SHA-256 of a set of images, whatever their order.

    Args:
        digests (`Iterable[bytes]`): The digest of each image.
        labels (`Sequence`, *optional*): The label of each image, which then counts, too.

    Returns:
        `str`: In hexadecimal.
    """
    rows = list(digests)
    if labels is not None:
        rows = [digest + repr(label).encode() for digest, label in zip(rows, labels, strict=True)]
    return hashlib.sha256(b"\0".join(sorted(rows))).hexdigest()


def model_digest(model: Any) -> str:
    """Compute SHA-256 of all weights of a model, in hexadecimal, as they are in float32: names, shapes and values.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one, with or without a peft adapter): The model.

    Returns:
        `str`: The same for a model that computes in half precision and for its conversion to float32.
    """
    return _weights_digest(model, ("",), torch.float32)


def _tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "padding_side", "truncation_side")
    return {name: getattr(tokenizer, name, None) for name in names}


def _encoder_settings(model: Any, kind: Kind) -> dict[str, Any]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = type(base) in (CLIPModel, CLIPNModel)
    parts = _parts(base, kind)
    config = base.config.to_dict()
    if known:
        own = "vision_config" if kind == "image" else "text_config"
        config = {own: config[own], "no_prompts": config.get("no_prompt_type") if kind == "no_text" else None}
    # Factors and switches of adapters are neither weights nor configuration.
    modules = {
        name: [_class_name(module), *(str(getattr(module, state, None)) for state in _ADAPTER_STATE)]
        for name, module in base.named_modules()
        if f"{name}.".startswith(parts)
    }
    # Adapters of one encoder leave the others as they were.
    adapted = any(class_name.startswith("peft.") for class_name, *_ in modules.values())
    adapters = getattr(model, "peft_config", None) if adapted else None
    return {
        "format": _FORMAT,
        "weights": _weights_digest(base, parts),
        "modules": settings_digest(modules),
        "config": _plain(config),
        "adapters": _plain({name: adapter.to_dict() for name, adapter in (adapters or {}).items()}),
        # Kernels differ in their last digits.
        "attention": str(getattr(base.config, "_attn_implementation", None)),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "dtype": str(base.dtype),
        "device": base.device.type,
        "versions": {name: _version(name) for name in ("pillow", "torch", "torchvision", "transformers")},
    }


def _parts(base: Any, kind: Kind) -> tuple[str, ...]:
    return _PARTS[kind] if type(base) in (CLIPModel, CLIPNModel) else ("",)


def _weights_digest(model: Any, parts: tuple[str, ...], dtype: torch.dtype | None = None) -> str:
    """Compute SHA-256 of the weights in some parts of a model: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name.startswith(parts):
            tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _class_name(instance: Any) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _plain(value: Any) -> Any:
    """What JSON knows, the same in every process, without the irrelevant entries of configurations."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if name not in _IRRELEVANT}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = [
    "Kind",
    "configuration_settings",
    "data_digest",
    "describe_image_encoder",
    "describe_image_settings",
    "image_digest",
    "image_encoder_settings",
    "image_processor_settings",
    "model_digest",
    "same_images",
    "settings_digest",
    "text_encoder_settings",
]
