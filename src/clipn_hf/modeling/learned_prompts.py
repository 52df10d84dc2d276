# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Learned prompts: what has to be known of them besides the rows of the token embedding that an adapter holds.

The context of a prompt is a row of placeholder tokens, whose embeddings are trained (see
[`~clipn_hf.modeling.add_context_tokens`]). A peft adapter keeps these rows; the file `learned_prompts.json` beside it
says which prompts they make, and what has to be done to a plain model before the adapter is put on it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from ..files import atomic_path
from ..hub_names import EMBEDDED_NAME
from ..prompts import fill_templates, validate_labels
from .completeness import FIX, IncompleteCheckpointError
from .prompt_settings import find_file

LEARNED_PROMPTS_NAME = "learned_prompts.json"
# What the text embedding of a CLIP, or that of a CLIPN, depends on.
TEXT_PARTS = ("text_model.", "text_projection.")
# What the image embedding depends on.
IMAGE_PARTS = ("vision_model.", "visual_projection.")
# How many labels a message lists.
MAX_NAMED = 5


@dataclass(frozen=True)
class LearnedPrompts:
    """Prompts whose context was learned.

    Without this package an adapter is put on a plain [`~transformers.CLIPModel`] in three steps: give the text model
    `vocab_size` rows, by `model.text_model.resize_token_embeddings(vocab_size)`; set both
    `model.text_model.eos_token_id` and `model.config.text_config.eos_token_id` to `eos_token_id`; load the adapter by
    `PeftModel.from_pretrained(model, folder)`. The tokenizer beside the adapter reads the prompts.

    Attributes:
        templates (`list[str]`):
            One text with one `{}` for the label, such as `"<ctx_0> <ctx_1> {}."`. Where each label has a context of
            its own, the text without context.
        unknown_prompt (`str` or `None`): The prompt of what belongs to none of the labels.
        label_prompts (`dict[str, str]` or `None`):
            The prompt of each label, where each has a context of its own; None where they share one.
        labels (`list[str]`): Those that it was learned on.
        tokens (`list[str]`): The placeholders, in the order of their ids.
        vocab_size (`int`): How many rows the token embedding has with them.
        eos_token_id (`int`): The token that ends texts, at which they are pooled.
        base (`dict`):
            The model that it was learned on: `"id"`, `"revision"`, `"class"`; `"dtype"`, `"text_weights_sha256"` and
            `"image_weights_sha256"` as [`text_weights_digest`] and [`image_weights_digest`] give them, by which
            another model is refused; and, for a CLIPN, `"no_prompts"`, the form of its "no" prompts.
        trained_with (`dict` or `None`): What it was learned by, for cards.
    """

    templates: list[str]
    unknown_prompt: str | None
    label_prompts: dict[str, str] | None
    labels: list[str]
    tokens: list[str]
    vocab_size: int
    eos_token_id: int
    base: dict[str, Any]
    trained_with: dict[str, Any] | None = None

    def build_prompts(self, labels: Sequence[str] | None = None) -> list[str]:
        """Make the prompt of each label.

        Args:
            labels (`Sequence[str]`, *optional*): By default those that it was learned on.

        Returns:
            `list[str]`: One prompt per label.

        Raises:
            TypeError, ValueError:
                As [`~clipn_hf.prompts.validate_labels`]; each label has a context of its own, and one was never
                learned.

        Example:

        ```python
        >>> from clipn_hf.modeling import LearnedPrompts
        >>> prompts = LearnedPrompts(["<ctx_0> {}."], None, None, ["cat"], ["<ctx_0>"], 49409, 49407, {})
        >>> prompts.build_prompts(["dog"])
        ['<ctx_0> dog.']

        ```
        """
        labels = validate_labels(self.labels if labels is None else labels)
        if self.label_prompts is None:
            return fill_templates(labels, self.templates)
        lacking = [label for label in labels if label not in self.label_prompts]
        if lacking:
            raise ValueError(
                f"The context of the prompts was learned for each label by itself, but not for {_listing(lacking)}. "
                f"Choose among {_listing(list(self.label_prompts))}, or give `templates`, such as "
                '["a photo of a {}."], which do without it.'
            )
        return [self.label_prompts[label] for label in labels]


def attach_learned_prompts(model: Any, prompts: LearnedPrompts) -> None:
    """Let a model know its learned prompts, so that [`DualEncoder`] finds them and `save_pretrained` keeps them.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`], with or without a peft adapter): Changed in place.
        prompts ([`LearnedPrompts`]): Those.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.learned_prompts = prompts
    # As it comes back from config.json, in the folder of a model into which the adapter was merged.
    base.config.learned_prompts = json.loads(json.dumps(asdict(prompts)))


def save_learned_prompts(prompts: LearnedPrompts, folder: str | os.PathLike[str]) -> None:
    """Write `learned_prompts.json` beside an adapter, or beside a model into which one was merged.

    An adapter there that is for a model in a folder gets the whole path of that, so that it can be loaded from any
    working directory. One that is for the checkpoint inside this package calls its base model by the name of that, not
    by its place on this machine, and gets a copy of its `config.json`, which `transformers.pipeline` asks for.

    Args:
        prompts ([`LearnedPrompts`]): Those of the model.
        folder (`str` or `os.PathLike`):
            Made if it does not exist. Save the adapter there before, and tokenizer or processor, too.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / LEARNED_PROMPTS_NAME) as partial:
        partial.write_text(json.dumps(asdict(prompts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    file = folder / ADAPTER_CONFIG_NAME
    if not file.exists():
        return
    adapter = json.loads(file.read_text(encoding="utf-8"))
    base = adapter.get("base_model_name_or_path")
    if is_embedded_checkpoint(base) and base != EMBEDDED_NAME:
        if not (folder / CONFIG_NAME).exists() and Path(base, CONFIG_NAME).exists():
            with atomic_path(folder / CONFIG_NAME) as partial:
                shutil.copyfile(Path(base, CONFIG_NAME), partial)
        named = EMBEDDED_NAME
    elif base is not None and os.path.isdir(base):
        # As peft and transformers read it. Those who move the model can correct it.
        named = os.path.abspath(base)
    else:
        named = base
    if named != base:
        adapter["base_model_name_or_path"] = named
        with atomic_path(file) as partial:
            partial.write_text(json.dumps(adapter, indent=2, sort_keys=True), encoding="utf-8")


def load_learned_prompts(source: str | os.PathLike[str], **hub_arguments: Any) -> LearnedPrompts | None:
    """Read what [`save_learned_prompts`] wrote, or the same entry of the `config.json` of a model.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`, … for a Hub id.

    Returns:
        [`LearnedPrompts`], or `None` where there are none.

    Raises:
        IncompleteCheckpointError: The file is damaged.
    """
    for name in (LEARNED_PROMPTS_NAME, CONFIG_NAME):
        file = find_file(source, name, **hub_arguments)
        if file is None:
            continue
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise IncompleteCheckpointError(f"{file} is not valid JSON ({error}). {FIX}") from error
        if name == CONFIG_NAME:
            content = content.get("learned_prompts")
            if content is None:
                continue
        return parse_learned_prompts(content, file)
    return None


def parse_learned_prompts(content: Any, file: str) -> LearnedPrompts:
    """Make [`LearnedPrompts`] of what JSON has of them.

    Args:
        content: What was read.
        file (`str`): Where, for the error.

    Raises:
        IncompleteCheckpointError: An entry is missing, or of another kind.
    """
    entries: dict[str, tuple[type, ...]] = {
        "templates": (list,),
        "unknown_prompt": (str, type(None)),
        "label_prompts": (dict, type(None)),
        "labels": (list,),
        "tokens": (list,),
        "vocab_size": (int,),
        "eos_token_id": (int,),
        "base": (dict,),
    }
    content = content if isinstance(content, dict) else {}
    wrong = [name for name, kinds in entries.items() if not isinstance(content.get(name, ...), kinds)]
    if wrong:
        raise IncompleteCheckpointError(
            f"{file} does not describe learned prompts: {', '.join(f'`{name}`' for name in wrong)} "
            f"{'is' if len(wrong) == 1 else 'are'} missing or of another kind. {FIX}"
        )
    known = {field.name for field in fields(LearnedPrompts)}
    # Of a later version there may be entries more.
    return LearnedPrompts(**{name: value for name, value in content.items() if name in known})


def find_learned_prompts(model: Any) -> LearnedPrompts | None:
    """Find the learned prompts of a model, with or without a peft adapter; None if it has none."""
    known = getattr(model, "learned_prompts", None)
    if isinstance(known, LearnedPrompts):
        return known
    content = getattr(getattr(model, "config", None), "learned_prompts", None)
    return None if content is None else parse_learned_prompts(content, "The configuration of the model")


def text_weights_digest(model: Any, dtype: torch.dtype) -> str:
    """Compute SHA-256 of the weights of the text encoder of a CLIP or CLIPN: names, shapes and values.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`]): Without adapter or added tokens.
        dtype (`torch.dtype`):
            The type in which they are compared. A model that computes in bfloat16 is recognised by its checkpoint in
            float32 if both are taken in bfloat16.

    Returns:
        `str`: In hexadecimal.
    """
    return _weights_digest(model, TEXT_PARTS, dtype)


def image_weights_digest(model: Any, dtype: torch.dtype) -> str:
    """Compute SHA-256 of the weights of the image encoder of a CLIP or CLIPN: names, shapes and values.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`]): Without adapter.
        dtype (`torch.dtype`): As for [`text_weights_digest`].

    Returns:
        `str`: In hexadecimal.
    """
    return _weights_digest(model, IMAGE_PARTS, dtype)


def _weights_digest(model: Any, parts: tuple[str, ...], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(parts):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().to("cpu", dtype).reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def is_embedded_checkpoint(name: str | None) -> bool:
    """Tell whether a name, of whatever machine, means the checkpoint inside this package."""
    parts = (name or "").replace("\\", "/").rstrip("/").split("/")
    return name == EMBEDDED_NAME or parts[-3:] == ["clipn_hf", "checkpoints", EMBEDDED_NAME]


def _listing(texts: Sequence[str]) -> str:
    shown = ", ".join(repr(text) for text in texts[:MAX_NAMED])
    return f"{shown} and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else shown


__all__ = [
    "LEARNED_PROMPTS_NAME",
    "LearnedPrompts",
    "attach_learned_prompts",
    "find_learned_prompts",
    "image_weights_digest",
    "is_embedded_checkpoint",
    "load_learned_prompts",
    "parse_learned_prompts",
    "save_learned_prompts",
    "text_weights_digest",
]
