# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What may be added to a saved checkpoint before it is published."""

import json
import os
from pathlib import Path
from typing import Any

from ..files import atomic_path

SHIM_MODULE = "clipn_shim"
SHIM_SOURCE = '''\
"""Lets `trust_remote_code=True` load this repository without an import: it needs `pip install clipn-hf`."""

from clipn_hf import CLIPNConfig, CLIPNModel, CLIPNProcessor

__all__ = ["CLIPNConfig", "CLIPNModel", "CLIPNProcessor"]
'''


def save_shim(folder: str | os.PathLike[str]) -> None:
    """Make a saved CLIPN checkpoint loadable with `trust_remote_code=True` by programs that do not import `clipn_hf`.

    Checkpoints are saved without code, and `import clipn_hf` is all they need. This adds the file `clipn_shim.py`,
    which imports the classes from the installed package (it holds no model code itself), and the `auto_map` entries of
    `config.json` and, where there is one, `processor_config.json` that point to it. Call it after `save_pretrained`
    and before uploading the folder; saving again into the folder removes the entries.

    Args:
        folder (`str` or `os.PathLike`): A folder written by [`CLIPNModel.save_pretrained`].

    Raises:
        FileNotFoundError: There is no `config.json` in `folder`.
        ValueError: The configuration there is not that of a CLIPN model.

    Example:

    ```python
    >>> from clipn_hf import CLIPNConfig, CLIPNModel, save_shim

    >>> CLIPNModel(CLIPNConfig()).save_pretrained("my-clipn")  # doctest: +SKIP
    >>> save_shim("my-clipn")  # doctest: +SKIP

    ```
    """
    folder = Path(folder)
    config_file, processor_file = folder / "config.json", folder / "processor_config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"No config.json in {str(folder)!r}; save a CLIPN model there first.")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("model_type") != "clipn":
        raise ValueError(
            f"{str(config_file)!r} is of model type {config.get('model_type')!r}, expected 'clipn'; "
            f"only CLIPN checkpoints need a shim."
        )

    _write(folder / f"{SHIM_MODULE}.py", SHIM_SOURCE)
    model_class = f"{SHIM_MODULE}.CLIPNModel"
    config["auto_map"] = {
        "AutoConfig": f"{SHIM_MODULE}.CLIPNConfig",
        "AutoModel": model_class,
        "AutoModelForZeroShotImageClassification": model_class,
        "AutoProcessor": f"{SHIM_MODULE}.CLIPNProcessor",
    }
    _write(config_file, _as_json(config))
    if processor_file.is_file():
        processor_config = json.loads(processor_file.read_text(encoding="utf-8"))
        processor_config["auto_map"] = {"AutoProcessor": f"{SHIM_MODULE}.CLIPNProcessor"}
        _write(processor_file, _as_json(processor_config))


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


__all__ = ["save_shim"]
