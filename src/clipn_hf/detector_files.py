# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The two files that make a folder with a model a detector, and how older versions of them are read.

`detector.json` says what the detector is, `detector.safetensors` holds its tensors: embedded labels and negative
labels, what its method was fitted on, the scores it was calibrated on.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .digests import settings_digest
from .files import atomic_path
from .modeling.prompt_settings import find_file

DETECTOR_NAME = "detector.json"
TENSORS_NAME = "detector.safetensors"
# The entry of the metadata in `detector.safetensors` that belongs to one `detector.json`.
_SEAL = "detector_sha256"
SCHEMA_VERSION = 2


def _add_negatives(values: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew CLIP and CLIPN alone, and no negative labels."""
    model = values.get("model")
    if isinstance(model, dict):
        family = {"CLIPModel": "clip", "CLIPNModel": "clipn"}.get(model.get("class", ""))
        model = {**model, "family": family, "logit_bias": 0.0, "is_sigmoid": False}
    return {**values, "model": model, "negatives": None}


# From each older version to the next one.
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MappingProxyType({1: _add_negatives})
_KEYS = {
    "calibration",
    "fitted_on",
    "labels",
    "method",
    "model",
    "negatives",
    "no_templates",
    "schema_version",
    "settings",
    "templates",
    "tensors_sha256",
    "threshold",
    "used_no_templates",
    "used_templates",
    "version",
}
_MODEL_KEYS = {
    "config_sha256",
    "image_processor_sha256",
    "class",
    "device",
    "dtype",
    "family",
    "id",
    "is_sigmoid",
    "logit_bias",
    "logit_scale",
    "revision",
    "weights",
    "weights_sha256",
}
# Where the weights of a detector may be.
_PLACES = ("inside", "embedded", "folder", "hub")


def write_detector(folder: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files, each of which appears when it is complete.

    Args:
        folder (`Path`): A folder that exists.
        values (`Mapping`): What the detector is, of what JSON knows.
        tensors (`Mapping[str, torch.Tensor]`): Its tensors by name.
    """
    content = {"schema_version": SCHEMA_VERSION, **values}
    _to_json(content)  # What cannot be written is found before anything is.
    with atomic_path(folder / TENSORS_NAME) as partial:
        # Cloned, because tensors that share memory are refused.
        independent = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_file(independent, partial, metadata={"format": "pt", _SEAL: _seal(content)})
        digest = _digest(partial)
    with atomic_path(folder / DETECTOR_NAME) as partial:
        partial.write_text(_to_json({**content, "tensors_sha256": digest}), encoding="utf-8")


def read_detector(source: str | os.PathLike[str], **hub_arguments: Any) -> dict[str, Any] | None:
    """Read `detector.json`, and bring it up to date.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        hub_arguments: `revision`, `token`, … for a Hub id.

    Returns:
        `dict`: Its content, as this version of the package would write it; None where there is no such file.

    Raises:
        ValueError: The file is damaged, or from a version of this package that is newer or no longer known.
    """
    where = f"The detector {os.fspath(source)}"
    values = _read_json(source, **hub_arguments)
    if values is None:
        return None
    version = values["schema_version"]
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{where} has schema version {version}, written by clipn-hf {values.get('version', 'of a later date')}; "
            f"this one reads versions up to {SCHEMA_VERSION}. Install a newer clipn-hf."
        )
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise ValueError(
                f"{where} has schema version {version}, which this clipn-hf cannot read; it reads "
                f"{', '.join(map(str, sorted({*MIGRATIONS, SCHEMA_VERSION})))}. Save the detector again."
            )
        version += 1
        values = {**MIGRATIONS[version - 1](values), "schema_version": version}
    wrong = sorted(_KEYS ^ values.keys())
    if wrong:
        raise ValueError(
            f"{where} has a {DETECTOR_NAME} in which {', '.join(wrong)} is missing or not known; save it again."
        )
    model = values["model"]
    if not isinstance(model, dict) or model.keys() != _MODEL_KEYS or model["weights"] not in _PLACES:
        raise ValueError(
            f"{where} has a {DETECTOR_NAME} in which `model` is not what clipn-hf writes there, got {model!r}; save "
            "it again."
        )
    return values


def read_tensors(source: str | os.PathLike[str], values: Mapping[str, Any], **hub_arguments: Any) -> dict[str, Tensor]:
    """Read `detector.safetensors`.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        values (`Mapping`): What [`read_detector`] found there.
        hub_arguments: `revision`, `token`, … for a Hub id.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        ValueError: The file is missing, damaged, or not the one that belongs to `detector.json`; or that one was
            changed.
    """
    file = find_file(source, TENSORS_NAME, **hub_arguments)
    if file is None:
        raise ValueError(f"The detector {os.fspath(source)} lacks {TENSORS_NAME}; save or download it again.")
    if _digest(Path(file)) != values["tensors_sha256"]:
        raise ValueError(
            f"The file {TENSORS_NAME} of the detector {os.fspath(source)} is not the one that {DETECTOR_NAME} was "
            f"written with: one of them was changed or is of another detector. Save or download both again."
        )
    try:
        with safe_open(file, "pt") as content:
            # Copies, because matrix products round differently at the odd addresses of what is in a file. Which is no
            # mapping: it can be gone through by `keys` alone.
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
            sealed = (content.metadata() or {}).get(_SEAL)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file ({error}); save or download it again.") from error
    if sealed != _seal(_read_json(source, **hub_arguments) or {}):
        raise ValueError(
            f"The {DETECTOR_NAME} of the detector {os.fspath(source)} was changed after it was written, so that it "
            "may not be true any more. Save or download it again; to change a detector, load it, set what is to be "
            "different and save it."
        )
    return tensors


def _read_json(source: str | os.PathLike[str], **hub_arguments: Any) -> dict[str, Any] | None:
    """What is in `detector.json`; None where there is no such file."""
    file = find_file(source, DETECTOR_NAME, **hub_arguments)
    if file is None:
        return None
    where = f"The detector {os.fspath(source)}"
    try:
        values: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{where} has a {DETECTOR_NAME} that is not JSON ({error}); save or download it again."
        ) from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise ValueError(f"{where} has a {DETECTOR_NAME} without a `schema_version`; save or download it again.")
    return dict(values)


def _to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of what must not change. Where the model is may change, but not its weights."""
    sealed = {name: value for name, value in content.items() if name not in ("model", "tensors_sha256")}
    model = content.get("model", {})
    return settings_digest({**sealed, "weights": [model.get(name) for name in ("weights_sha256", "config_sha256")]})


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


__all__ = ["DETECTOR_NAME", "SCHEMA_VERSION", "TENSORS_NAME", "read_detector", "read_tensors", "write_detector"]
