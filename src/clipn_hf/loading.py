# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Dual encoders from folders and repositories: whole checkpoints, and peft adapters with their base models."""

import importlib.resources
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, CLIPConfig, CLIPModel
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from .detector_files import DETECTOR_NAME, TENSORS_NAME, read_detector
from .families import is_dual_encoder
from .modeling import CLIPNModel, IncompleteCheckpointError
from .modeling.completeness import check_complete, refuse_damaged
from .modeling.context_tokens import add_placeholders, token_ids
from .modeling.learned_prompts import (
    LearnedPrompts,
    attach_learned_prompts,
    find_learned_prompts,
    is_embedded_checkpoint,
    load_learned_prompts,
    text_weights_digest,
)
from .modeling.modeling_clipn import LOADING_ARGUMENTS
from .modeling.no_tokens import fit_vocabulary
from .modeling.prompt_settings import find_file, load_prompt_settings, select_hub_arguments

logger = logging.get_logger(__name__)

EMBEDDED_CHECKPOINT = str(importlib.resources.files("clipn_hf") / "checkpoints" / "clipn-tiny")
WEIGHTS_NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
POOLS = ("templates", "no_templates")


class AutoDualEncoder(AutoModel):
    """`AutoModel` that refuses checkpoints with missing weights, where transformers fills in random numbers."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a model as `AutoModel.from_pretrained` does, but always in float32: `DualEncoder` converts it.

        In bfloat16 the logit scale alone, a single weight, would be off by up to 1.6 %.

        The folder or repository of a peft adapter loads its base model and puts the adapter on it. Where the adapter
        is for a CLIPN and its base model a plain CLIP, [`CLIPNModel.from_clip`] makes the former of the latter, with
        the prompts that `clipn_prompts.json` beside the adapter names (see
        [`~clipn_hf.modeling.save_prompt_settings`]). Tokens that the tokenizer beside the adapter adds are added to
        the model, and the processor is kept as its `adapter_processor`. What is known of learned prompts, which
        `learned_prompts.json` beside an adapter or a model tells, is kept as `learned_prompts`.

        The folder or repository of a detector that was saved without weights loads the model that it names; its
        `detector_source` is that of the detector, its `weights_source` that of the model, a Hub id or folder with its
        revision, as for adapters. The `detector_folder` of a model is that in which the files of a detector were
        found beside it, else None.

        Raises:
            IncompleteCheckpointError:
                The checkpoint is damaged or lacks weights of its model, or the adapter lacks its base model, does not
                fit it, or has prompts that were learned on another one.
            OSError: There is no such checkpoint.
            TypeError: It is one part of a model, which transformers loads as part of the whole only.
        """
        source = os.fspath(pretrained_model_name_or_path)
        model = cls._load(source, *args, **kwargs)
        model.detector_folder = _find_detector(source, kwargs)
        return model

    @classmethod
    def _load(cls, source: str, *args: Any, **kwargs: Any) -> Any:
        kwargs["dtype"] = torch.float32
        adapter = _read_adapter(source, kwargs)
        if adapter is not None:
            model = _load_adapted(source, adapter, kwargs)
            model.weights_source = source, kwargs.get("revision")
            return model
        try:
            # Names and shapes that do not fit are reported, and refused then.
            with refuse_damaged(source):
                model, report = AutoModel.from_pretrained(
                    source, *args, output_loading_info=True, **{**kwargs, "ignore_mismatched_sizes": True}
                )
        except OSError:
            referenced = _read_reference(source, kwargs)
            if referenced is None:
                raise
            named, revision = referenced
            loading = {
                name: value for name, value in kwargs.items() if name not in ("config", "revision", "subfolder")
            }
            try:
                model = cls.from_pretrained(named, revision=revision, **loading)
            except OSError as error:
                at = "" if revision is None else f" at revision {revision}"
                raise IncompleteCheckpointError(
                    f"The detector {source} names the model {named}{at}, which cannot be loaded: {error}"
                ) from error
            model.detector_source, model.weights_source = source, (named, revision)
            return model
        except ValueError as error:
            if not str(error).startswith("Unrecognized configuration class"):
                raise
            # transformers lists the hundreds of models that it has.
            raise TypeError(
                f"The checkpoint {source} is not one that embeds both images and texts, but one part of such a model "
                "at most. Give a CLIPNModel, a CLIPModel, a SiglipModel or another dual encoder."
            ) from error
        if is_dual_encoder(model):
            # Models of other kinds are refused for what they are; what they lack would be misleading.
            check_complete(source, type(model).__name__, report["missing_keys"], report["mismatched_keys"])
            learned = load_learned_prompts(source, **select_hub_arguments(kwargs))
            if learned is not None:
                attach_learned_prompts(model, learned)
        return model


def load_processor(source: str | os.PathLike[str], **hub_arguments: Any) -> Any:
    """Load a processor as `AutoProcessor.from_pretrained` does.

    Args:
        source (`str` or `os.PathLike`): Hub id or folder.
        hub_arguments: `revision`, `token`, … of `from_pretrained`.

    Raises:
        OSError: There is none, its files are of no known kind, or a library that it needs is not installed.
    """
    try:
        return AutoProcessor.from_pretrained(source, **hub_arguments)
    except (ImportError, ValueError) as error:
        # transformers lists the hundreds of models that it has, and breaks its lines.
        reason = " ".join(str(error).partition("Model type should be one of")[0].split())
        raise OSError(
            f"The processor of {os.fspath(source)} cannot be loaded: {reason.rstrip('.')}. Install what it needs, put "
            "processor_config.json, tokenizer.json and tokenizer_config.json of the model there, or pass `processor`."
        ) from error


def _find_detector(source: str, kwargs: dict[str, Any]) -> str | None:
    """The folder that holds the files of a detector, in the cache if `source` is a repository; None if there are none.

    They are fetched here, because a pipeline is not told the token or revision that its model is loaded with.
    """
    hub_arguments = select_hub_arguments(kwargs)
    file = find_file(source, DETECTOR_NAME, **hub_arguments)
    if file is None:
        if not os.path.isdir(source) and not _is_known_to_lack(source, DETECTOR_NAME, hub_arguments):
            logger.warning(
                f"The Hub cannot be reached to see whether {source} is a detector; it is used as a model, without any "
                "threshold."
            )
        return None
    find_file(source, TENSORS_NAME, **hub_arguments)
    return os.path.dirname(file)


def _is_known_to_lack(source: str, name: str, hub_arguments: dict[str, Any]) -> bool:
    """Whether the Hub has said before, or just now, that a repository has no file of that name."""
    found = try_to_load_from_cache(
        source, name, cache_dir=hub_arguments.get("cache_dir"), revision=hub_arguments.get("revision")
    )
    return found is _CACHED_NO_EXIST


def _read_reference(source: str, kwargs: dict[str, Any]) -> tuple[str, str | None] | None:
    """The model that a detector without weights names, and its revision; None where `source` is no such detector."""
    values = read_detector(source, **select_hub_arguments(kwargs))
    if values is None or values["model"]["weights"] == "inside":
        return None
    model = values["model"]
    if model["weights"] == "embedded":
        return EMBEDDED_CHECKPOINT, None
    if model["weights"] == "folder":
        named = os.path.normpath(os.path.join(os.path.realpath(source), model["id"]))
        if not os.path.isdir(named):
            raise IncompleteCheckpointError(
                f"The detector {source} has no weights of its own and names the folder {model['id']} beside it, which "
                "does not exist. Move detector and model together, or save the detector with `include_weights=True`."
            )
        return named, None
    return model["id"], model["revision"]


def _read_adapter(source: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of the adapter `source`; None where that is a checkpoint, with or without an adapter in it."""
    file = find_file(source, ADAPTER_CONFIG_NAME, **select_hub_arguments(kwargs))
    if file is None:
        return None
    folder = Path(source, kwargs.get("subfolder") or "")
    if (folder / CONFIG_NAME).exists() and any((folder / name).exists() for name in WEIGHTS_NAMES):
        return None
    adapter: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return adapter


def _load_adapted(source: str, adapter: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """The base model of an adapter with the adapter on it.

    Loaded in two steps, because transformers reports on the weights of the adapter alone.
    """
    base = adapter.get("base_model_name_or_path")
    if base is None:
        raise IncompleteCheckpointError(
            f"The adapter {source} does not name its base model. Load it with "
            f'`PeftModel.from_pretrained(base, "{source}")` and pass that model and its processor, or write the name '
            f"to `base_model_name_or_path` in its {ADAPTER_CONFIG_NAME}."
        )
    if is_embedded_checkpoint(base) and not os.path.isdir(base):
        # On another machine the package is in another place.
        base = EMBEDDED_CHECKPOINT
    hub_arguments = select_hub_arguments(kwargs)
    base_arguments = {name: value for name, value in kwargs.items() if name not in ("config", "subfolder", "revision")}
    base_arguments["revision"] = adapter.get("revision")
    try:
        with refuse_damaged(base):
            config = AutoConfig.from_pretrained(base, **select_hub_arguments(base_arguments))
    except (OSError, ValueError) as error:
        raise IncompleteCheckpointError(
            f"The base model {base} of the adapter {source} cannot be loaded ({error}). Put it there, or correct "
            f"`base_model_name_or_path` in the {ADAPTER_CONFIG_NAME} of the adapter."
        ) from error
    processor = _adapter_processor(source, base, hub_arguments, select_hub_arguments(base_arguments))
    learned = load_learned_prompts(source, **hub_arguments)
    prompts = load_prompt_settings(source, **hub_arguments)
    if prompts is None and learned is not None:
        prompts = learned.base.get("no_prompts")
    if type(config) is CLIPConfig and (prompts is not None or _is_for_clipn(adapter)):
        prompts = _infer_prompts(source, adapter, processor) if prompts is None else prompts
        loading = {name: value for name, value in base_arguments.items() if name in LOADING_ARGUMENTS}
        model: Any = CLIPNModel.from_clip(base, **prompts, **loading)
    else:
        model = AutoDualEncoder.from_pretrained(base, **base_arguments)

    if learned == find_learned_prompts(model):
        # The prompts are those of the base, which the adapter is on top of.
        learned = None
    if learned is not None:
        processor = _fit_learned_prompts(source, base, model, processor, learned, select_hub_arguments(base_arguments))
    elif isinstance(model, CLIPNModel) and processor is not None:
        fit_vocabulary(model, processor.tokenizer)
    if learned is not None or isinstance(model, CLIPNModel):
        _check_tokens(source, adapter, model)
    if isinstance(model, CLIPNModel):
        for name in POOLS:
            # Tokens that were added to the templates are known to the adapter, not to its base.
            own = (prompts or {}).get(name) or getattr(processor, name, None)
            if own is not None:
                setattr(model.config, name, list(own))
    try:
        report = model.load_adapter(source, adapter_kwargs=hub_arguments)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise IncompleteCheckpointError(
            f"The adapter {source} cannot be put on its base model {base} ({type(model).__name__}): {error}"
        ) from error
    check_complete(source, f"the adapter on {type(model).__name__}", report.missing_keys)
    model.adapter_processor = processor
    if learned is not None:
        attach_learned_prompts(model, learned)
    return model


def _fit_learned_prompts(
    source: str, base: str, model: Any, processor: Any | None, learned: LearnedPrompts, base_arguments: dict[str, Any]
) -> Any:
    """Make room in a model for an adapter with learned prompts; return the processor that knows their tokens."""
    if not isinstance(model, CLIPModel):
        raise IncompleteCheckpointError(
            f"The adapter {source} has prompts that were learned on a {learned.base.get('class')}, but its base model "
            f"{base} is a {type(model).__name__}. Correct `base_model_name_or_path` in its {ADAPTER_CONFIG_NAME}."
        )
    dtype = getattr(torch, str(learned.base.get("dtype")), torch.float32)
    if learned.base.get("text_weights_sha256") not in (None, text_weights_digest(model, dtype)):
        revision = learned.base.get("revision")
        trained_on = f"{learned.base.get('id') or 'a model'}{'' if revision is None else f' at revision {revision}'}"
        raise IncompleteCheckpointError(
            f"The adapter {source} was trained on another backbone: its prompts were learned with the text encoder of "
            f"{trained_on}, whose weights are others than those of its base model {base}. Name the right model and "
            f"revision in its {ADAPTER_CONFIG_NAME}, or train the prompts anew."
        )
    if processor is None:
        processor = load_processor(base, **base_arguments)
        # Their ids follow from their order.
        add_placeholders(processor.tokenizer, learned.tokens)
    try:
        token_ids(learned, processor.tokenizer)
    except ValueError as error:
        raise IncompleteCheckpointError(f"The adapter {source} is incomplete: {error}") from error
    fit_vocabulary(model, processor.tokenizer)
    return processor


def _adapter_processor(
    source: str, base: str, hub_arguments: dict[str, Any], base_arguments: dict[str, Any]
) -> Any | None:
    """The processor that was saved with an adapter; with the tokenizer alone that of the base with this tokenizer."""
    if any(find_file(source, name, **hub_arguments) for name in ("processor_config.json", "preprocessor_config.json")):
        return load_processor(source, **hub_arguments)
    if find_file(source, "tokenizer_config.json", **hub_arguments):
        processor = load_processor(base, **base_arguments)
        processor.tokenizer = AutoTokenizer.from_pretrained(source, **hub_arguments)
        return processor
    return None


def _is_for_clipn(adapter: dict[str, Any]) -> bool:
    # peft names the class of the model; transformers, when it saves an adapter, does not.
    model_class = (adapter.get("auto_mapping") or {}).get("base_model_class")
    return model_class == CLIPNModel.__name__ or "no_text_" in str(adapter.get("target_modules"))


def _infer_prompts(source: str, adapter: dict[str, Any], processor: Any | None) -> dict[str, Any]:
    """The most probable form of the "no" prompts of an adapter that does not tell."""
    pools = {name: getattr(processor, name, None) for name in POOLS}
    if adapter.get("peft_type") == "TRAINABLE_TOKENS":
        return {"no_prompt_type": "handcrafted", **pools}
    if pools["no_templates"] is not None:
        same = pools["no_templates"] == pools["templates"]
        return {"no_prompt_type": "learnable" if same else "handcrafted", **pools}
    logger.warning(
        f"The adapter {source} does not say which form the \"no\" prompts have; `no_prompt_type='learnable'` is "
        f"assumed. Write it down with `clipn_hf.modeling.save_prompt_settings(model.config, folder)` when saving."
    )
    return {"no_prompt_type": "learnable", **pools}


def _check_tokens(source: str, adapter: dict[str, Any], model: CLIPModel) -> None:
    indices = adapter.get("token_indices") or adapter.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        indices = [index for values in indices.values() for index in values]
    text_config: Any = model.config.text_config
    if indices and max(indices) >= text_config.vocab_size:
        raise IncompleteCheckpointError(
            f"The adapter {source} trains token {max(indices)}, but its base model has {text_config.vocab_size} "
            f"tokens, and no tokenizer that has more was saved with the adapter. Save the processor of the model "
            f"there, too: `processor.save_pretrained(folder)`."
        )


__all__ = ["EMBEDDED_CHECKPOINT", "AutoDualEncoder", "load_processor"]
