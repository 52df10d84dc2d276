# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What families of dual encoders differ in.

All that this package asks of a model are the methods `get_image_features` and `get_text_features`. `FAMILIES` has one
row for each family that is known; what a row does not say, and what a model of no known family does, is read off the
model itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal, Unpack, get_args, get_origin

from torch import Tensor, nn
from transformers.utils import logging

from .prompts import DEFAULT_TEMPLATES

logger = logging.get_logger(__name__)

FEATURES = ("get_image_features", "get_text_features")
# By `config.model_type`: models that have these methods, but give the states of a language model for texts.
GENERATIVE = frozenset({"blip-2"})
# What an encoder gets even where its signature only says that it hands more on to its parts.
ESSENTIAL_INPUTS = frozenset({"attention_mask", "input_ids", "pixel_values"})
# Of texts for models of which neither tokenizer nor configuration tells one, such as those with rotary positions.
DEFAULT_MAX_LENGTH = 512
# What models that keep no scale are taken to use: that of CLIP, and the limit in the training of most others.
DEFAULT_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Family:
    """What is particular to a family of models.

    Args:
        padding (`"longest"`, `"max_length"` or `None`, *optional*):
            `"longest"` where a text gets the same embedding whatever it is padded to, by a causal or a masked
            attention and a pooling that leaves padding out. `"max_length"` where the model saw texts of one length
            only. None is for trying it out, with all else as the tokenizer does it; of the others padding follows the
            text, whatever the tokenizer says.
        masks_padding (`bool`, *optional*, defaults to `True`):
            Whether the text encoder is told which tokens are padding, where `padding` is not None.
        lowercase (`bool`, *optional*, defaults to `False`):
            Whether the model saw texts in lower case only, which not each of its tokenizers sees to.
        templates (`tuple[str, ...]`, *optional*, defaults to `DEFAULT_TEMPLATES`):
            What labels are put into where neither user nor checkpoint says it.
        max_length (`int`, *optional*):
            How many tokens of a text the processor keeps, where that is fewer than its tokenizer would.
        takes_first_token (`bool`, *optional*, defaults to `False`):
            Whether features are those of all tokens, the first of which stands for the whole.
    """

    padding: Literal["longest", "max_length"] | None = None
    masks_padding: bool = True
    lowercase: bool = False
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    max_length: int | None = None
    takes_first_token: bool = False


_INERT = Family(padding="longest")
_SIGLIP = Family(padding="max_length", masks_padding=False, lowercase=True, templates=("This is a photo of {}.",))

# By `config.model_type`
FAMILIES: Mapping[str, Family] = {
    # In transformers its attention is causal only if a text of the batch is padded.
    "aimv2": Family(padding="max_length"),
    "align": Family(padding="longest", max_length=64),
    "altclip": _INERT,
    "blip": _INERT,
    "chinese_clip": Family(padding="longest", templates=("一张{}的图片。",)),
    "clip": _INERT,
    "clipn": _INERT,
    "clipseg": _INERT,
    "flava": Family(padding="longest", takes_first_token=True),
    "groupvit": _INERT,
    "metaclip_2": _INERT,
    "owlv2": _INERT,
    "owlvit": _INERT,
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "tipsv2": _INERT,
}


def is_dual_encoder(model: Any) -> bool:
    """Tell whether a model embeds both images and texts."""
    return find_family(model)[0] not in GENERATIVE and all(hasattr(model, name) for name in FEATURES)


def check_dual_encoder(model: Any) -> None:
    """Refuse a model that does not embed both images and texts.

    Raises:
        TypeError: It is one.
    """
    lacking = [name for name in FEATURES if not hasattr(model, name)]
    reason = f"it has no {' and no '.join(lacking)}" if lacking else None
    if find_family(model)[0] in GENERATIVE:
        reason = "it is made for writing texts about images"
    if reason is not None:
        raise TypeError(
            f"{type(model).__name__} does not embed both images and texts: {reason}. "
            "Give a CLIPNModel, a CLIPModel, a SiglipModel or another dual encoder, with or without an adapter."
        )
    missing = [name for name in ("config", "device", "dtype", "name_or_path") if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{type(model).__name__} is no PreTrainedModel: it has no {', '.join(missing)}. Derive it from "
            "`transformers.PreTrainedModel` and give it a configuration."
        )


def find_family(model: Any) -> tuple[str, Family]:
    """Find the family of a model, with or without a peft adapter: its name, and its row or that of an unknown one."""
    name = str(getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__)
    return name, FAMILIES.get(name, Family())


def read_logit_scale(model: Any) -> float:
    """Read the factor between cosines and logits off a model.

    It is `exp` of the parameter `logit_scale`, up to the limit that some models put on it, or the inverse of the
    parameter `temperature`; 100 for a model with neither, which is said on the log.

    Raises:
        ValueError: It is not a positive number.
    """
    scale, temperature = (getattr(model, name, None) for name in ("logit_scale", "temperature"))
    if isinstance(scale, Tensor):
        logarithm = scale.detach().float()
        if hasattr(model, "max_log_logit_scale"):
            # Such models keep the scale from falling below one, too.
            logarithm = logarithm.clamp(0.0, model.max_log_logit_scale)
        source, value = "`exp(logit_scale)`", logarithm.exp().item()
    elif isinstance(temperature, Tensor):
        source, value = "`1 / temperature`", temperature.detach().float().reciprocal().item()
    else:
        logger.warning(
            f"{type(model).__name__} has neither `logit_scale` nor `temperature`; its cosines are multiplied by "
            f"{DEFAULT_LOGIT_SCALE:g}, as those of CLIP are."
        )
        return DEFAULT_LOGIT_SCALE
    if not 0 < value < math.inf:
        raise ValueError(f"{source} of the checkpoint is {value}; download the checkpoint or train it again.")
    return value


def read_logit_bias(model: Any) -> float | None:
    """Read what a model adds to scaled cosines; None if it adds nothing, as it was not trained with a sigmoid loss.

    Raises:
        ValueError: It is not finite.
    """
    bias = getattr(model, "logit_bias", None)
    if not isinstance(bias, Tensor):
        return None
    value = bias.detach().float().item()
    if not math.isfinite(value):
        raise ValueError(f"`logit_bias` of the checkpoint is {value}; download the checkpoint or train it again.")
    return value


def find_max_text_length(model: Any, tokenizer: Any) -> int:
    """Find how many tokens of a text a model uses, with those that begin and end it."""
    text_config = getattr(model.config, "text_config", None)
    limits = [
        tokenizer.model_max_length,
        getattr(text_config, "max_position_embeddings", None),
        find_family(model)[1].max_length,
    ]
    for name, module in getattr(model, "text_model", nn.Module()).named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            # Positions of RoBERTa and its kin begin behind that of padding.
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [int(limit) for limit in limits if limit is not None and limit < 10**6]
    return min(known, default=DEFAULT_MAX_LENGTH)


def accepted_inputs(encode: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a tokenizer or image processor gives but an encoder refuses, such as types of tokens.

    Args:
        encode: `get_image_features` or `get_text_features` of a model.
        inputs (`Mapping[str, Any]`): What its processor gives.

    Returns:
        `dict[str, Any]`: What the signature names. If it has keyword arguments without names, also everything else;
        where their type is a `TypedDict`, only what that names, `attention_mask`, `input_ids` and `pixel_values`.
    """
    parameters = signature(encode).parameters
    accepted = set(parameters)
    for parameter in parameters.values():
        if parameter.kind is Parameter.VAR_KEYWORD:
            typed = get_origin(parameter.annotation) is Unpack
            accepted |= {*get_args(parameter.annotation)[0].__annotations__, *ESSENTIAL_INPUTS} if typed else {*inputs}
    return {name: value for name, value in inputs.items() if name in accepted}


def tokenizer_options(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Find on which side a tokenizer is to pad for a model, and whether to give a mask: its own way if unknown."""
    family = find_family(model)[1]
    if family.padding is None:
        has_mask = "attention_mask" in tokenizer.model_input_names
        return {"padding_side": tokenizer.padding_side, "return_attention_mask": has_mask}
    return {"padding_side": "right", "return_attention_mask": family.masks_padding}


def lowers_texts(model: Any, tokenizer: Any) -> bool:
    """Tell whether texts have to be put in lower case before a tokenizer gets them.

    Not where the tokenizer has a setting of its own for it, such as that of SigLIP.
    """
    return find_family(model)[1].lowercase and getattr(tokenizer, "do_lower_case", None) is None


def pooled_features(model: Any, outputs: Any) -> Tensor:
    """Take one vector per image or text from what `get_image_features` or `get_text_features` returned.

    Raises:
        TypeError: There is none.
    """
    features = outputs if isinstance(outputs, Tensor) else getattr(outputs, "pooler_output", None)
    if isinstance(features, Tensor) and features.ndim == 3 and find_family(model)[1].takes_first_token:
        features = features[:, 0]
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(
            f"{type(model).__name__} does not give one vector per image and per text, but {shape}; it is no dual "
            "encoder. Give a CLIPNModel, a CLIPModel, a SiglipModel or another one."
        )
    return features


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer of another model, the empty one that transformers makes where its files are missing, and one
    that cannot pad.

    Raises:
        ValueError: It does not fit.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokenizer of the {type(model).__name__} has no padding token, so that it cannot put texts together; "
            "name the one that the model was trained with, such as `tokenizer.pad_token = tokenizer.eos_token`."
        )
    text_model: Any = getattr(model, "text_model", None)
    if not hasattr(text_model, "get_input_embeddings"):
        return
    try:
        rows = text_model.get_input_embeddings().weight.shape[0]
    except NotImplementedError:
        # Some models do not say which of their embeddings is that of tokens, the largest.
        rows = max(module.num_embeddings for module in text_model.modules() if isinstance(module, nn.Embedding))
    # Text encoders that look for the end of a text in its tokens keep what to look for.
    end_token_id = model.config.text_config.eos_token_id if hasattr(text_model, "eos_token_id") else None
    # The vocabulary of a model may be filled up to a round number. 2 stands for the highest token of a text.
    fits = len(tokenizer) <= rows <= 2 * len(tokenizer) and end_token_id in (None, 2, tokenizer.eos_token_id)
    added = sorted(token for token, token_id in tokenizer.get_added_vocab().items() if token_id >= rows)
    if len(tokenizer) > rows >= len(tokenizer) - len(added) and added:
        raise ValueError(
            f"The tokenizer does not fit the {type(model).__name__}: it has {len(tokenizer)} tokens but the model has "
            f"{rows} rows, none of them for what was added to the tokenizer, such as {added[0]}, as for prompts that "
            "another model has learned. Pass the processor of this model, or load both from the same place."
        )
    if not fits:
        expected = {None: "none", 2: "the last"}.get(end_token_id, end_token_id)
        raise ValueError(
            f"The tokenizer does not fit the {type(model).__name__}: it has {len(tokenizer)} tokens and ends texts "
            f"with token {tokenizer.eos_token_id}, but the model has {rows} and expects {expected}. Put "
            "tokenizer.json and tokenizer_config.json of the model beside it, or pass `processor`."
        )


__all__ = [
    "DEFAULT_LOGIT_SCALE",
    "DEFAULT_MAX_LENGTH",
    "FAMILIES",
    "Family",
    "accepted_inputs",
    "check_dual_encoder",
    "check_tokenizer",
    "find_family",
    "find_max_text_length",
    "is_dual_encoder",
    "lowers_texts",
    "pooled_features",
    "read_logit_bias",
    "read_logit_scale",
    "tokenizer_options",
]
