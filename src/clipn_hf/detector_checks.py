# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector accepts: arguments, encoders that can serve its method, image embeddings."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from .encoders import DualEncoder, PrecomputedEncoder
from .features import Features
from .methods import METHODS, NEEDS, Method, Need
from .modeling import LearnedPrompts
from .prompts import validate_labels

logger = logging.get_logger(__name__)

# What to do about each need that an encoder may not meet; the most serious one first.
_REMEDIES: dict[Need, str] = {
    "no": "use a trained CLIPN, or one of",
    "sigmoid": "use a SigLIP, or one of",
    "text_encoder": "give a model in place of embeddings that were computed before, or use one of",
    "pixels": "give a model in place of embeddings that were computed before, or use one of",
    "patches": "give a CLIP whose image encoder is a vision transformer, or use one of",
    "unknown": "train one by `training/few_shot.py`, or use one of",
    "negatives": "give them as `negatives`, or use one of",
}


def is_embeddings(images: Any) -> bool:
    """Tell whether `images` are embeddings: a floating-point matrix, or [`~clipn_hf.features.Features`]."""
    if isinstance(images, Features):
        return True
    if isinstance(images, Tensor):
        return images.ndim == 2 and images.is_floating_point()
    return isinstance(images, np.ndarray) and images.ndim == 2 and np.issubdtype(images.dtype, np.floating)


def check_count(name: str, count: object, minimum: int = 1) -> None:
    """Check that `count` is None or an integer that is large enough.

    Args:
        name (`str`): How the error calls it.
        count: What was given.
        minimum (`int`, *optional*, defaults to 1): The lowest that is accepted; 0 or 1.

    Raises:
        ValueError: It is not.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < minimum):
        raise ValueError(
            f"`{name}` must be {'a positive integer' if minimum else 'an integer from 0'}, got {count!r}."
        )


def check_given_count(name: str, count: object, minimum: int = 1) -> None:
    """Check as `check_count`, for what must not be None.

    Raises:
        ValueError: It is no integer, or too low.
    """
    if count is None:
        raise ValueError(f"`{name}` must be {'a positive integer' if minimum else 'an integer from 0'}, got None.")
    check_count(name, count, minimum)


def check_threshold(threshold: Any) -> float | None:
    """Check that a threshold is None or a finite number, and return it as that.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite.
    """
    if threshold is None:
        return None
    is_number = hasattr(threshold, "__float__") and not isinstance(threshold, bool | np.bool_)
    if not is_number or getattr(threshold, "ndim", 0) > 0:
        raise TypeError(f"`threshold` must be a number, got {type(threshold).__name__} {threshold!r}.")
    threshold = float(threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}.")
    return float(threshold)


def check_labels(
    labels: Sequence[str],
    method: Method,
    settings: Mapping[str, Any] | None = None,
    encoder: DualEncoder | PrecomputedEncoder | None = None,
    has_negatives: bool = False,
) -> list[str]:
    """Check that labels are some, and enough for a method.

    Args:
        labels (`Sequence[str]`): What was given.
        method ([`~clipn_hf.methods.Method`]): A row of `METHODS`.
        settings (`Mapping`, *optional*): All settings of the method; by default its own.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`], *optional*):
            What embeds images and labels. The error lists what it serves; without it, what any encoder does.
        has_negatives (`bool`, *optional*, defaults to `False`): As for [`unserved`].

    Returns:
        `list[str]`

    Raises:
        TypeError, ValueError: As [`~clipn_hf.prompts.validate_labels`]; there are fewer than the method needs.
    """
    checked = validate_labels(labels)
    settings = method.settings if settings is None else settings
    if len(checked) < (needed := method.labels_needed(settings)):
        remedy = _settings_at_default(method, settings, lambda one: method.labels_needed(one) <= len(checked))
        provided = {"global"} if encoder is None else provided_needs(encoder, has_negatives)
        others = (row for row in METHODS.values() if row is not method and row.needs <= provided)
        able = method_names(row for row in others if row.labels_needed(row.settings) <= len(checked))
        raise ValueError(
            f"Method {method.name} needs at least {needed} labels, got {checked}; {remedy}use one of {able}."
        )
    return checked


def _settings_at_default(
    method: Method, settings: Mapping[str, Any], suffices: Callable[[Mapping[str, Any]], bool]
) -> str:
    """Advise to leave a setting at its default where that would do, such as "give `combination="mcm"`, or "."""
    for name, value in method.settings.items():
        if settings.get(name, value) != value and suffices({**settings, name: value}):
            return f"give `{name}={json.dumps(value)}`, or "
    return ""


def check_image_embeddings(image_embeddings: Any, dim: int) -> Tensor:
    """Check image embeddings, and return them as float32 on the CPU.

    Args:
        image_embeddings: A matrix.
        dim (`int`): The width that the embeddings of the labels have.

    Returns:
        `torch.Tensor` of shape `(images, dim)`, of any norm but zero.

    Raises:
        ValueError: Another shape, values that are not finite, rows of zeros.
    """
    embeddings = torch.as_tensor(image_embeddings).detach().float().cpu()
    check_width(embeddings, dim)
    # Not value by value, which would take more memory again than a large bank.
    if not torch.isfinite(torch.stack([embeddings.amin(dim=1), embeddings.amax(dim=1)])).all():
        raise ValueError("Image embeddings have NaN or infinite values; compute them again in float32.")
    if len(embeddings) and not embeddings.any(dim=1).all():
        raise ValueError("Image embeddings have rows of zeros, which have no direction; compute them again.")
    return embeddings


def own_embeddings(image_embeddings: Any, encoder: DualEncoder | PrecomputedEncoder, dim: int) -> Tensor:
    """Check that embeddings are of the right width, and of the model if that is known.

    Args:
        image_embeddings: A matrix, or [`~clipn_hf.features.Features`].
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): The model.
        dim (`int`): The width that the embeddings of the labels have.

    Returns:
        `torch.Tensor` of shape `(images, dim)`: As it was given.

    Raises:
        ValueError: Another shape or another model.
    """
    features = image_embeddings if isinstance(image_embeddings, Features) else None
    embeddings = torch.as_tensor(image_embeddings if features is None else features.embeddings)
    check_width(embeddings, dim)
    if features is not None:
        check_image_encoder(features.encoder, encoder, "The features", "give `features.embeddings`")
    return embeddings


def check_image_encoder(
    made_with: Mapping[str, Any] | None, encoder: DualEncoder | PrecomputedEncoder, what: str, escape: str
) -> None:
    """Check that what was made from image embeddings is used with the model that they came from.

    Args:
        made_with (`Mapping`, *optional*): As [`~clipn_hf.digests.describe_image_encoder`]; None where it is not known.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): The model.
        what (`str`): How the error begins.
        escape (`str`): What to do by those who know better.

    Raises:
        ValueError: It is another model, or in another precision.
    """
    if made_with is None or not isinstance(encoder, DualEncoder):
        return
    own = encoder.describe_images()
    if made_with["sha256"] != own["sha256"]:
        is_alike = made_with["dtype"] == own["dtype"]
        precision = "" if is_alike else f"; one computes in {made_with['dtype']}, the other in {own['dtype']}"
        raise ValueError(
            f"{what} are of another image encoder ({made_with['id']}, SHA-256 {made_with['sha256'][:16]}…) than this "
            f"one ({own['id']}, SHA-256 {own['sha256'][:16]}…){precision}. Use that model, or embed the images anew; "
            f"if you know that both embed alike, {escape}."
        )
    if made_with["image_processor_sha256"] != own["image_processor_sha256"]:
        logger.warning_once(
            f"{what} are of images that were prepared in another way than by this model: other settings or another "
            "class of image processor. Scores may differ."
        )


def check_width(embeddings: Tensor, dim: int) -> None:
    """Check that embeddings are a matrix of the right width.

    Args:
        embeddings (`torch.Tensor`): What was given.
        dim (`int`): The width that the embeddings of the labels have.

    Raises:
        ValueError: Another shape.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ValueError(
            f"Image embeddings must have shape (images, {dim}) for this model, got {tuple(embeddings.shape)}."
        )


def label_positions(id_labels: Any, labels: Sequence[str]) -> list[int]:
    """Find the position in `labels` of each label, given by name or position.

    Args:
        id_labels: One name or position per image.
        labels (`Sequence[str]`): All labels.

    Returns:
        `list[int]`

    Raises:
        TypeError: Not one label per image.
        ValueError: A label that is not among `labels`.
    """
    if isinstance(id_labels, str) or not isinstance(id_labels, Iterable):
        raise TypeError(f"`id_labels` must be one label per image, got {id_labels!r}.")
    positions = {label: position for position, label in enumerate(labels)}
    found = []
    for row, label in enumerate(id_labels.tolist() if isinstance(id_labels, Tensor | np.ndarray) else id_labels):
        label = label.item() if isinstance(label, Tensor | np.generic) and label.ndim == 0 else label
        position = positions.get(label) if isinstance(label, str) else label
        if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(labels):
            raise ValueError(
                f"`id_labels[{row}]` must be one of the {len(labels)} labels or its position, got {label!r}; "
                f"the labels are {', '.join(labels[:5])}{', …' if len(labels) > 5 else ''}."
            )
        found.append(position)
    return found


def check_every_label(what: str, found: Iterable[str], labels: Sequence[str], fix: str) -> None:
    """Check that no label is without images.

    Args:
        what (`str`): How the error begins, up to the labels that are absent.
        found (`Iterable[str]`): The labels of the images.
        labels (`Sequence[str]`): All labels.
        fix (`str`): How the error ends.

    Raises:
        ValueError: There are labels without images.
    """
    present = {*found}
    absent = [label for label in labels if label not in present]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ValueError(f"{what} {', '.join(map(repr, absent[:3]))}{more}; {fix}.")


def provided_needs(encoder: DualEncoder | PrecomputedEncoder, has_negatives: bool = False) -> set[Need]:
    """Tell which needs of methods can be met with an encoder; those of fitting are met by images.

    Args:
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): What embeds images and labels.
        has_negatives (`bool`, *optional*, defaults to `False`): As for [`unserved`].

    Returns:
        `set` of keys of `NEEDS`.
    """
    provided: set[Need] = {"global", "training", "training_labels"}
    if encoder.has_no_encoder:
        provided.add("no")
    if encoder.is_sigmoid:
        provided.add("sigmoid")
    if isinstance(encoder, DualEncoder):
        provided |= {"negatives", "text_encoder", "pixels"}
        if encoder.has_local_features:
            provided.add("patches")
        if encoder.has_unknown_prompt:
            provided.add("unknown")
    elif has_negatives:
        provided.add("negatives")
    return provided


def unserved(
    method: Method,
    settings: Mapping[str, Any],
    encoder: DualEncoder | PrecomputedEncoder,
    has_negatives: bool = False,
) -> str | None:
    """Tell why an encoder cannot serve a method.

    Args:
        method ([`~clipn_hf.methods.Method`]): A row of `METHODS`.
        settings (`Mapping`): All settings of the method.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): What embeds images and labels.
        has_negatives (`bool`, *optional*, defaults to `False`):
            Whether negative labels are given. A model can embed those that are mined otherwise.

    Returns:
        `str`: The reason; None if the encoder has all that the method needs of a model.
    """
    provided = provided_needs(encoder, has_negatives)
    needs = set(method.needs)
    if method.summarizes_patches(settings):
        needs.add("patches")
    lacking = [need for need in _REMEDIES if need in needs - provided]
    if not lacking:
        return None
    usable = method_names(row for row in METHODS.values() if row is not method and row.needs <= provided)
    got = type(encoder.model).__name__ if isinstance(encoder, DualEncoder) else type(encoder).__name__
    needed, remedy = NEEDS[lacking[0]], ""
    if method.needs <= provided:
        remedy = _settings_at_default(method, settings, lambda one: not method.summarizes_patches(one))
    return f"Method {method.name} needs {needed}, got {got}; {remedy}{_REMEDIES[lacking[0]]} {usable}."


def check_served(
    method: Method,
    settings: Mapping[str, Any],
    encoder: DualEncoder | PrecomputedEncoder,
    has_negatives: bool = False,
) -> None:
    """Check that an encoder can serve a method, as `unserved` tells it.

    Raises:
        ValueError: It cannot.
    """
    reason = unserved(method, settings, encoder, has_negatives)
    if reason is not None:
        raise ValueError(reason)


def check_judged_by_embeddings(
    method: Method,
    settings: Mapping[str, Any],
    encoder: DualEncoder | PrecomputedEncoder,
    has_negatives: bool = False,
) -> None:
    """Check that a method can judge images of which there are embeddings alone.

    Args:
        method ([`~clipn_hf.methods.Method`]): A row of `METHODS`.
        settings (`Mapping`): All settings of the method.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): What embeds labels; the error lists what it serves.
        has_negatives (`bool`, *optional*, defaults to `False`): As for [`unserved`].

    Raises:
        ValueError: It changes images before it judges them, or looks at their patches.
    """
    if not method.judges_images(settings):
        return
    provided = provided_needs(encoder, has_negatives)
    others = (row for row in METHODS.values() if row is not method and row.needs <= provided)
    able = method_names(row for row in others if not row.judges_images(row.settings))
    remedy = _settings_at_default(method, settings, lambda one: not method.judges_images(one))
    if method.perturb is not None:
        reason = "changes the pixels of images before it judges them, but these are embeddings of images as they are"
    else:
        reason = "looks at the patches of images, but these are embeddings of whole images"
    raise ValueError(f"Method {method.name} {reason}; give the images, or {remedy}use one of {able}.")


def make_encoder(
    model: Any,
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> DualEncoder | PrecomputedEncoder:
    """Make an encoder of whatever [`OODDetector`] takes for a model.

    Raises:
        TypeError: Arguments that belong to an encoder which is there already; as [`DualEncoder`].
        OSError, ValueError, IncompleteCheckpointError: As [`DualEncoder.from_pretrained`].
    """
    if isinstance(model, DualEncoder | PrecomputedEncoder):
        if any(argument is not None for argument in (processor, device, dtype)):
            raise TypeError("`processor`, `device` and `dtype` belong to the encoder; pass them when making it.")
        return model
    if model is None or isinstance(model, str | os.PathLike):
        encoder = DualEncoder.from_pretrained(model, processor, device, dtype)
        if getattr(encoder.model, "detector_folder", None) is not None:
            logger.warning_once(
                f"{model} is a detector, of which the model alone is used; `OODDetector.from_pretrained` loads it "
                "with its labels, method and threshold."
            )
        return encoder
    return DualEncoder(model, processor, device, dtype)


def default_method(learned: LearnedPrompts | None) -> str:
    """Find the method of a detector that names none.

    Args:
        learned ([`~clipn_hf.modeling.LearnedPrompts`], *optional*): The learned prompts of its model, if it has any.

    Returns:
        `str`: Without learned prompts `"atd"`. With them the method that they were trained for: `"clip_os"` where
        there is an "unknown" prompt, `"gl_mcm"` for those of LoCoOp, else `"mcm"`.
    """
    if learned is None:
        return "atd"
    if learned.unknown_prompt is not None:
        return "clip_os"
    return "gl_mcm" if (learned.trained_with or {}).get("method") == "locoop" else "mcm"


def method_names(methods: Iterable[Method]) -> str:
    """List methods in a sentence."""
    return ", ".join(method.name for method in methods)


__all__ = [
    "check_count",
    "check_every_label",
    "check_given_count",
    "check_image_embeddings",
    "check_image_encoder",
    "check_judged_by_embeddings",
    "check_labels",
    "check_served",
    "check_threshold",
    "check_width",
    "default_method",
    "is_embeddings",
    "label_positions",
    "make_encoder",
    "method_names",
    "own_embeddings",
    "provided_needs",
    "unserved",
]
