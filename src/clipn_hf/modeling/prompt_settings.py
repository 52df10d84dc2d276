# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The form of the "no" prompts and the templates in a small file of their own.

A peft adapter names its base model and nothing else. When that is a plain CLIP, this file beside the adapter says
which CLIPN to make of it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from ..files import atomic_path
from .configuration_clipn import CLIPNConfig

PROMPT_SETTINGS_NAME = "clipn_prompts.json"
PROMPT_SETTINGS = ("no_prompt_type", "num_no_prompts", "templates", "no_templates")
# Arguments of `from_pretrained` that say where files are found
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def save_prompt_settings(config: CLIPNConfig, folder: str | os.PathLike[str]) -> None:
    """Write `no_prompt_type`, `num_no_prompts`, `templates` and `no_templates` to `clipn_prompts.json`.

    Call it where an adapter of a model made by [`CLIPNModel.from_clip`] is saved with peft alone.
    [`CLIPNTrainer`] and [`CLIPNModel.save_pretrained`] do so themselves.

    Args:
        config ([`CLIPNConfig`]): Of the model that the adapter belongs to.
        folder (`str` or `os.PathLike`): The folder of the adapter; made if it does not exist.

    Example:

    ```python
    >>> from peft import LoraConfig, get_peft_model
    >>> from clipn_hf import CLIPNModel
    >>> from clipn_hf.modeling import save_prompt_settings

    >>> model = CLIPNModel.from_clip("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> adapted = get_peft_model(model, LoraConfig(target_modules=r"no_text_model\\..*q_proj"))  # doctest: +SKIP
    >>> adapted.save_pretrained("my-adapter")  # doctest: +SKIP
    >>> save_prompt_settings(model.config, "my-adapter")  # doctest: +SKIP

    ```
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(config, name) for name in PROMPT_SETTINGS}
    with atomic_path(folder / PROMPT_SETTINGS_NAME) as partial:
        partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_prompt_settings(source: str | os.PathLike[str], **hub_arguments: Any) -> dict[str, Any] | None:
    """Read what [`save_prompt_settings`] wrote, or the same entries of a CLIPN's `config.json`.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`, … for a Hub id.

    Returns:
        `dict[str, Any]`: Arguments of [`CLIPNConfig`], or `None` where there is neither file.

    Raises:
        ValueError: The file does not hold these entries.
    """
    for name in (PROMPT_SETTINGS_NAME, CONFIG_NAME):
        file = find_file(source, name, **hub_arguments)
        if file is None:
            continue
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON ({error}); save the adapter again.") from error
        if name == CONFIG_NAME and content.get("model_type") != CLIPNConfig.model_type:
            continue
        if not isinstance(content, dict) or "no_prompt_type" not in content:
            raise ValueError(
                f"{file} must hold an object with {', '.join(f'`{setting}`' for setting in PROMPT_SETTINGS)}, "
                f"got {content!r}; save the adapter again."
            )
        return {setting: content[setting] for setting in PROMPT_SETTINGS if setting in content}
    return None


def select_hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `HUB_ARGUMENTS` that are given, out of all arguments of a `from_pretrained`."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}


def find_file(source: str | os.PathLike[str], name: str, **hub_arguments: Any) -> str | None:
    """Find a file of a folder or Hub repository, which may lack it.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        name (`str`): Name of the file.
        hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`, … for a Hub id.

    Returns:
        `str`: The path on this machine, or `None` where there is no such file or it cannot be reached.
    """
    return cached_file(
        source,
        name,
        **hub_arguments,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


__all__ = [
    "HUB_ARGUMENTS",
    "PROMPT_SETTINGS",
    "PROMPT_SETTINGS_NAME",
    "find_file",
    "load_prompt_settings",
    "save_prompt_settings",
    "select_hub_arguments",
]
