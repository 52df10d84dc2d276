# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Detectors to folders and repositories, and back."""

import contextlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers.utils import logging
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from .detector_card import CARD_NAME, differ_in_threshold_only, is_own_card, write_detector_card
from .detector_files import DETECTOR_NAME, read_detector, read_tensors, write_detector
from .encoders import EMBEDDED_CHECKPOINT, DualEncoder, PrecomputedEncoder
from .modeling.learned_prompts import LEARNED_PROMPTS_NAME
from .modeling.prompt_settings import PROMPT_SETTINGS_NAME, select_hub_arguments

logger = logging.get_logger(__name__)

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
# What a model with an adapter is loaded from, besides its base model.
_ADAPTER = re.compile(
    rf"adapter_model\.(safetensors|bin)|{ADAPTER_CONFIG_NAME}|{PROMPT_SETTINGS_NAME}|{LEARNED_PROMPTS_NAME}"
)


def save_detector(
    folder: Path,
    encoder: DualEncoder | PrecomputedEncoder,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    include_weights: bool | None,
    repo_id: str,
) -> list[str]:
    """Write the folder of a detector, as [`OODDetector.save_pretrained`] describes it.

    Args:
        folder (`Path`): Made if it does not exist.
        encoder ([`DualEncoder`]): Its model.
        values (`Mapping`): What else the detector is, of what JSON knows.
        tensors (`Mapping[str, torch.Tensor]`): Its tensors by name.
        include_weights (`bool`, *optional*):
            Whether to save the weights, or to name where they are; by default they are saved, unless those of an
            adapter.
        repo_id (`str`): The name by which the card loads it.

    Returns:
        `list[str]`: The names of the files that belong to the detector.

    Raises:
        TypeError, ValueError: As [`OODDetector.save_pretrained`].
    """
    if not isinstance(encoder, DualEncoder):
        raise TypeError(f"A detector on {type(encoder).__name__} has no model to be saved with; make it of a model.")
    if include_weights is None:
        include_weights = not getattr(encoder.model, "peft_config", None)
    description = encoder.describe() | _place_of_weights(encoder, folder, include_weights)
    content = {"version": importlib.metadata.version("clipn-hf"), "model": description, **values}
    outdated = _outdated_weights(folder, encoder, include_weights)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Files take their place when all are written. The model may be reading those that are there.
        with tempfile.TemporaryDirectory(prefix=".detector-", dir=folder) as partial:
            if include_weights:
                encoder.model.save_pretrained(partial)
            else:
                encoder.model.config.save_pretrained(partial)
            encoder.processor.save_pretrained(partial)
            write_detector(Path(partial), content, tensors)
            written = sorted(os.listdir(partial), key=lambda name: name == DETECTOR_NAME)
            for name in written:
                os.replace(os.path.join(partial, name), folder / name)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    for path in outdated:
        if path.name not in written:
            path.unlink()
    write_detector_card(folder, content, repo_id)
    if description["weights"] == "inside" and not include_weights:
        # They were there before.
        inside = _ADAPTER if (folder / ADAPTER_CONFIG_NAME).exists() else _WEIGHTS
        written += [path.name for path in folder.iterdir() if inside.fullmatch(path.name)]
    return [*written, CARD_NAME]


def load_detector(
    source: str | os.PathLike[str],
    encoder: DualEncoder | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    **hub_arguments: Any,
) -> tuple[dict[str, Any], dict[str, Tensor], DualEncoder, str]:
    """Read what [`save_detector`] wrote.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub id.
        encoder ([`DualEncoder`], *optional*): The model, if it is loaded already.
        device (`str` or `torch.device`, *optional*): As in [`DualEncoder.from_pretrained`].
        dtype (`str` or `torch.dtype`, *optional*): As in [`DualEncoder.from_pretrained`].
        hub_arguments: `revision`, `token`, `trust_remote_code`, … of `from_pretrained`.

    Returns:
        `tuple`: The values, the tensors, the encoder and the digest of its weights.

    Raises:
        OSError, ValueError, IncompleteCheckpointError: As [`OODDetector.from_pretrained`].
    """
    # The others are for the model.
    of_files = select_hub_arguments(hub_arguments)
    values = read_detector(source, **of_files)
    if values is None:
        raise OSError(
            f"There is no detector at {os.fspath(source)}: it has no detector.json"
            f"{'' if os.path.isdir(source) else ', or the Hub cannot be reached'}. Name a folder or repository that "
            "`OODDetector.save_pretrained` wrote; a model is loaded by `OODDetector(model, labels)`."
        )
    tensors = read_tensors(source, values, **of_files)
    if encoder is None:
        encoder = DualEncoder.from_pretrained(source, None, device, dtype or values["model"]["dtype"], **hub_arguments)
    return values, tensors, encoder, _check_model(source, values, tensors, encoder)


def upload_detector(folder: Path, files: list[str], repo_id: str, **hub_arguments: Any) -> str:
    """Publish the folder of a detector, in one commit.

    Args:
        folder (`Path`): Where [`save_detector`] wrote it.
        files (`list[str]`): What it wrote; what else is in the folder is nobody's business.
        repo_id (`str`): The repository; made if it does not exist.
        hub_arguments: `private`, `token` and arguments of `HfApi.upload_folder`, such as `revision`.

    Returns:
        `str`: The address of the commit.

    Raises:
        ValueError: The weights are not there but in a local folder, or are those of an adapter on a local model.
    """
    values = read_detector(folder)
    assert values is not None
    model = values["model"]
    if model["weights"] == "folder":
        if (folder / model["id"] / ADAPTER_CONFIG_NAME).exists():
            raise ValueError(
                f"The detector names the local folder {model['id']} for its adapter, which is not on the Hub; save "
                "the detector into that folder with `include_weights=False` and `push_to_hub=True`, which publishes "
                "both, or publish the adapter and make the detector of its id."
            )
        raise ValueError(
            f"The detector names the local folder {model['id']} for its weights, which is not on the Hub; publish "
            "with `include_weights=True`, or publish the model and make the detector of its id."
        )
    if ADAPTER_CONFIG_NAME in files:
        base = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if os.path.isdir(base) or (folder / base).is_dir():
            raise ValueError(
                f"The adapter in {folder} is for the model in the local folder {base}, which is not on the Hub; "
                f"publish that model and write its id into {ADAPTER_CONFIG_NAME}, or merge the adapter into its model "
                "and publish the detector of that with `include_weights=True`."
            )
    api = HfApi(token=hub_arguments.pop("token", None))
    repo_id = api.create_repo(repo_id, private=hub_arguments.pop("private", None), exist_ok=True).repo_id
    revision = hub_arguments.get("revision")
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # Only now its name is known in full.
    write_detector_card(folder, values, repo_id)
    if not _may_replace_card(folder, api, repo_id, revision):
        logger.warning(f"The {CARD_NAME} of {repo_id} is not the card of a detector and stays as it is.")
        files = [name for name in files if name != CARD_NAME]
    hub_arguments.setdefault("commit_message", "Upload detector")
    return str(api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=files, **hub_arguments))


def tensors_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with `prefix`, and leave it out of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def stack_digests(digests: frozenset[bytes]) -> Tensor | None:
    """Put digests of SHA-256 into a tensor of shape `(digests, 32)`, uint8; None if there are none."""
    if not digests:
        return None
    return torch.from_numpy(np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8).reshape(-1, 32).copy())


def unstack_digests(stacked: Tensor | None) -> frozenset[bytes]:
    """Read what `stack_digests` gave."""
    return frozenset() if stacked is None else frozenset(bytes(row) for row in stacked.numpy())


def _may_replace_card(folder: Path, api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Whether the card of a repository, if it has one, may be replaced by that of the folder."""
    try:
        path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision)
    except EntryNotFoundError:
        return True
    return is_own_card(Path(path)) or differ_in_threshold_only(Path(path), folder / CARD_NAME)


def _place_of_weights(encoder: DualEncoder, folder: Path, include_weights: bool) -> dict[str, Any]:
    """Where a detector saved to `folder` has its weights: the entries of `detector.json` that say so."""
    source = encoder.source
    local = source is not None and os.path.isdir(source)
    in_place = local and source is not None and os.path.realpath(source) == os.path.realpath(folder)
    adapted = bool(getattr(encoder.model, "peft_config", None))
    if include_weights:
        if adapted:
            is_named = getattr(encoder.model, "weights_source", None) is not None
            advice = (
                f"Leave `include_weights` out, by which the detector names {source}"
                if is_named
                else "Save the adapter, and make the detector of its folder or Hub id"
            )
            raise ValueError(
                "The model has an adapter, whose weights are kept apart from those of its base, so that "
                f"`include_weights=True` cannot save them. {advice}; or merge the adapter into its model by "
                "`merge_and_unload()` of peft."
            )
        embedded = source == EMBEDDED_CHECKPOINT
        name = os.path.basename(os.path.abspath(source)) if local and source and not embedded else source
        return {"id": "clipn-tiny" if embedded else name, "weights": "inside"}
    if source == EMBEDDED_CHECKPOINT:
        return {"id": "clipn-tiny", "weights": "embedded"}
    if adapted and getattr(encoder.model, "weights_source", None) is None:
        raise ValueError(
            "The adapter of the model was not loaded from a folder or the Hub, so the detector cannot name it. Save "
            "the adapter, and make the detector of its folder or Hub id."
        )
    if source is None:
        raise ValueError(
            "The model was not loaded from a folder or the Hub, so the detector cannot name it; save with "
            "`include_weights=True`."
        )
    if in_place:
        return {"id": os.path.basename(os.path.realpath(source)), "weights": "inside"}
    if local:
        return {"id": os.path.relpath(os.path.realpath(source), folder.resolve()), "weights": "folder"}
    return {"id": source, "weights": "hub"}


def _outdated_weights(folder: Path, encoder: DualEncoder, include_weights: bool) -> list[Path]:
    """Weights in the folder that the detector would take for its own: those of an earlier one, to be removed."""
    in_place = encoder.source is not None and os.path.realpath(encoder.source) == os.path.realpath(folder)
    if (folder / ADAPTER_CONFIG_NAME).exists() and not in_place:
        raise ValueError(
            f"{folder} has an adapter, which would be put on the model of the detector; save to another folder."
        )
    weights = [path for path in folder.glob("*") if _WEIGHTS.fullmatch(path.name)]
    if not weights:
        return []
    if include_weights:
        # As transformers does when it saves over a model. Files of PyTorch are not read where there are these.
        return [path for path in weights if ".safetensors" in path.name]
    if in_place:
        return []
    before = read_detector(folder)
    if before is None or before["model"]["weights"] != "inside":
        raise ValueError(
            f"{folder} has the weights of a model in {weights[0].name}, which the detector would take for its own; "
            "save to another folder, or with `include_weights=True`."
        )
    return weights


def _check_model(
    source: str | os.PathLike[str], values: Mapping[str, Any], tensors: Mapping[str, Tensor], encoder: DualEncoder
) -> str:
    """Check that a model is the one that a detector was made with; return the digest of its weights."""
    saved, found = values["model"], encoder.describe()
    if any(found[name] != saved[name] for name in ("class", "config_sha256")):
        raise ValueError(
            f"The detector {os.fspath(source)} was made with a {saved['class']} of another configuration or tokenizer "
            f"than the {found['class']} {encoder.source} has: either was changed since. Download or save it again."
        )
    if found["image_processor_sha256"] != saved["image_processor_sha256"]:
        logger.warning(
            f"The detector {os.fspath(source)} prepares images in another way than when it was made: other settings "
            "or another class of image processor. Its scores may differ from those its threshold was chosen by."
        )
    if found["dtype"] != saved["dtype"]:
        # Rounding may change the digest, so that the values cannot be compared.
        logger.warning(
            f"The detector {os.fspath(source)} was made in {saved['dtype']} and computes in {found['dtype']}: its "
            "scores differ a little from those its threshold was chosen by."
        )
        # Rounding aside, the labels must be embedded as they were.
        labels, expected = values["labels"][:8], tensors["text_embeddings"][:8]
        text, _ = encoder.class_embeddings(labels, values["used_templates"], use_no_encoder=False)
        if (text.cpu() - expected).abs().max() < 0.02:
            return str(found["weights_sha256"])
    if found["weights_sha256"] == saved["weights_sha256"]:
        return str(found["weights_sha256"])
    raise ValueError(
        f"The detector {os.fspath(source)} was made with other weights than those of {encoder.source}: the model has "
        "changed since. Give the revision it was made with, or make the detector again."
    )


__all__ = [
    "load_detector",
    "save_detector",
    "stack_digests",
    "tensors_under",
    "unstack_digests",
    "upload_detector",
]
