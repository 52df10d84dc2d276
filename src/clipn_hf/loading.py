# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Dual encoders from folders and repositories: whole checkpoints, and peft adapters with their base models."""

import importlib.resources
import itertools
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
from transformers.utils.hub import extract_commit_hash
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from .detector_files import DETECTOR_NAME, TENSORS_NAME, read_detector
from .families import is_dual_encoder
from .hub_names import is_hub_id
from .modeling import CLIPNModel, IncompleteCheckpointError
from .modeling.completeness import FIX, check_complete, refuse_damaged
from .modeling.context_tokens import add_placeholders, token_ids
from .modeling.learned_prompts import (
    LEARNED_PROMPTS_NAME,
    LearnedPrompts,
    attach_learned_prompts,
    find_learned_prompts,
    image_weights_digest,
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
        revision, as for adapters. The `hub_revision` of a model is the commit of the repository that its own weights
        come from, not those of an adapter on it; None for folders. The `detector_folder` of a model is that in which
        the files of a detector were found beside it, else None.

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
            model.weights_source = source, _find_commit(source, kwargs) or kwargs.get("revision")
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
        model.hub_revision = _find_commit(source, kwargs)
        if is_dual_encoder(model):
            # Models of other kinds are refused for what they are; what they lack would be misleading.
            check_complete(source, type(model).__name__, report["missing_keys"], report["mismatched_keys"])
            learned = load_learned_prompts(source, **select_hub_arguments(kwargs))
            if learned is not None:
                attach_learned_prompts(model, learned)
        return model


def peek_learned_prompts(source: str | os.PathLike[str], **hub_arguments: Any) -> LearnedPrompts | None:
    """Read what is known of the learned prompts of a model, without loading it.

    Args:
        source (`str` or `os.PathLike`): Hub id or folder of a model or adapter.
        hub_arguments: `revision`, `token`, … of `from_pretrained`.

    Returns:
        [`LearnedPrompts`] of the adapter, else of the model, or of the base model of the adapter; None without any.

    Raises:
        IncompleteCheckpointError: What there is of them is damaged.
    """
    source = os.fspath(source)
    is_here = os.path.isdir(source) or find_file(source, LEARNED_PROMPTS_NAME, **hub_arguments) is not None
    if not is_here and not _is_known_to_lack(source, LEARNED_PROMPTS_NAME, hub_arguments):
        # The Hub cannot be reached, which takes long to find out for each file.
        hub_arguments["local_files_only"] = True
    learned = load_learned_prompts(source, **hub_arguments)
    adapter = _read_adapter(source, hub_arguments)
    base = None if adapter is None else adapter.get("base_model_name_or_path")
    if learned is not None or adapter is None or base is None:
        return learned
    return peek_learned_prompts(_find_base(source, base), **{**hub_arguments, "revision": adapter.get("revision")})


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


def _find_commit(source: str, kwargs: dict[str, Any]) -> str | None:
    """The commit of a repository that was just downloaded; None for folders."""
    if os.path.isdir(source):
        return None
    # Not asked for at the Hub, where there may be a new one by now.
    for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        if kwargs.get("subfolder"):
            name = f"{kwargs['subfolder']}/{name}"
        file = try_to_load_from_cache(source, name, cache_dir=kwargs.get("cache_dir"), revision=kwargs.get("revision"))
        if isinstance(file, str):
            return extract_commit_hash(file, None)
    return None


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
    base = _find_base(source, base)
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
    elif processor is not None and _needs_tokens(model, processor.tokenizer):
        fit_vocabulary(model, processor.tokenizer)
    if isinstance(model, CLIPModel):
        _check_tokens(source, adapter, model)
        if find_learned_prompts(model) is None and learned is None and processor is not None:
            pools = [(prompts or {}).get(name) or getattr(processor, name, None) or () for name in POOLS]
            _warn_of_unused_tokens(source, adapter, processor.tokenizer, [*itertools.chain(*pools)])
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


def _find_base(source: str, named: str) -> str:
    """The folder or Hub id of the base model that an adapter names.

    Raises:
        IncompleteCheckpointError: It is a folder, and there is none.
    """
    if os.path.isdir(named):
        return named
    if is_embedded_checkpoint(named):
        # On another machine the package is in another place.
        return EMBEDDED_CHECKPOINT
    beside = os.path.join(os.path.realpath(source), named)
    if os.path.isdir(source) and os.path.isdir(beside):
        return os.path.normpath(beside)
    # The Hub would be asked in vain for what can only be a folder.
    if not is_hub_id(named):
        raise IncompleteCheckpointError(
            f"The base model {named} of the adapter {source} cannot be loaded (there is no such folder). Put it "
            f"there, or correct `base_model_name_or_path` in the {ADAPTER_CONFIG_NAME} of the adapter."
        )
    return named


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
    for part, compute_digest in (("text", text_weights_digest), ("image", image_weights_digest)):
        recorded = learned.base.get(f"{part}_weights_sha256")
        if recorded is None or recorded == compute_digest(model, dtype):
            continue
        revision = learned.base.get("revision")
        trained_on = f"{learned.base.get('id') or 'a model'}{'' if revision is None else f' at revision {revision}'}"
        raise IncompleteCheckpointError(
            f"The adapter {source} was trained on another backbone: its prompts were learned with the {part} encoder "
            f"of {trained_on}, whose weights are others than those of its base model {base}. Name the right model and "
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
    text_model: Any = model.text_model
    found = {
        "vocab_size": text_model.get_input_embeddings().num_embeddings,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    for name, value in found.items():
        if value != getattr(learned, name):
            raise IncompleteCheckpointError(
                f"The adapter {source} is damaged: its {LEARNED_PROMPTS_NAME} says `{name}` {getattr(learned, name)}, "
                f"but with its tokenizer the model has {value}. {FIX}"
            )
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


def _needs_tokens(model: Any, tokenizer: Any) -> bool:
    """Whether a model is to be fitted to the tokenizer of an adapter without learned prompts."""
    if isinstance(model, CLIPNModel):
        return True
    if not isinstance(model, CLIPModel):
        return False
    # Without new tokens a CLIP keeps its `eos_token_id`, which is part of what a detector knows it by.
    text_model: Any = model.text_model
    return len(tokenizer) > int(text_model.get_input_embeddings().num_embeddings)


def _trained_tokens(adapter: dict[str, Any]) -> list[int]:
    """The ids of the tokens whose embeddings an adapter holds."""
    indices = adapter.get("token_indices") or adapter.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        indices = [index for values in indices.values() for index in values]
    return list(indices)


def _warn_of_unused_tokens(source: str, adapter: dict[str, Any], tokenizer: Any, templates: list[str]) -> None:
    """Say that tokens which were trained are in no text: what tells of the prompts may be missing."""
    tokens = tokenizer.convert_ids_to_tokens(_trained_tokens(adapter))
    unused = [token for token in tokens if not any(token in template for template in templates)]
    if unused:
        logger.warning(
            f"The adapter {source} has embeddings of {len(unused)} tokens, such as {unused[0]}, that no prompt has: "
            f"it has no {LEARNED_PROMPTS_NAME}, and its templates are without them. Put that file of the adapter "
            "there, or give `templates` that have these tokens."
        )


def _check_tokens(source: str, adapter: dict[str, Any], model: CLIPModel) -> None:
    indices = _trained_tokens(adapter)
    text_config: Any = model.config.text_config
    if indices and max(indices) >= text_config.vocab_size:
        raise IncompleteCheckpointError(
            f"The adapter {source} trains token {max(indices)}, but its base model has {text_config.vocab_size} "
            f"tokens, and no tokenizer that has more was saved with the adapter. Save the processor of the model "
            f"there, too: `processor.save_pretrained(folder)`."
        )


__all__ = ["EMBEDDED_CHECKPOINT", "AutoDualEncoder", "load_processor", "peek_learned_prompts"]
