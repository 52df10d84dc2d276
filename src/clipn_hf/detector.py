# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`OODDetector`: encoder, labels, method and threshold in the one object that answers "known or unknown?"."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.utils import logging

from .calibration import Calibration, calibrate
from .encoders import DualEncoder
from .images import image_of, number_images
from .methods import METHODS, NEEDS, Method, MethodInputs, Need, get_method, method_inputs
from .prompts import validate_labels

logger = logging.get_logger(__name__)

OPTIONS = ("processor", "templates", "no_templates", "threshold", "device", "dtype")
TOP_K = 5


class LabelScore(TypedDict):
    """One label and its softmax probability among all labels."""

    label: str
    score: float


class OODResult(TypedDict):
    """What a detector says about one image.

    Keys:
        is_ood (`bool` or `None`): The verdict: True = unknown. None where neither a threshold nor a rule decides.
        ood_score (`float`): OOD-ness, higher = more OOD; its range is that of the method.
        threshold (`float` or `None`): What `ood_score` had to exceed; None for a threshold-free verdict or none.
        method (`str`): Name of the method.
        label (`str`): The most probable label, also where the image is unknown.
        score (`float`): Softmax probability of that label among all labels, in (0, 1].
        labels (`list` of `LabelScore`): The `top_k` most probable labels, most probable first.
    """

    is_ood: bool | None
    ood_score: float
    threshold: float | None
    method: str
    label: str
    score: float
    labels: list[LabelScore]


class OODDetector:
    """Tell images that show one of the labels (ID) from those that do not (OOD).

    With a threshold an image is OOD when its score exceeds it, strictly. Without one the threshold-free rule of the
    method decides where it has one (ctw, atd); otherwise the verdict is None.

    Args:
        model ([`DualEncoder`], [`~transformers.CLIPModel`], [`CLIPNModel`], `str`, `os.PathLike` or `None`):
            A model with its `processor`, an encoder made before (which shares its cached label embeddings), a Hub id
            or folder, or None for the checkpoint inside this package.
        labels (`Sequence[str]`): The known classes.
        method (`str`, *optional*, defaults to `"atd"`): A key of `clipn_hf.methods.METHODS`.
        processor (*optional*): Needed with a model object; otherwise in place of the one that belongs to the model.
        templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        no_templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        threshold (`float`, *optional*): The score above which an image is OOD.
        device (`str` or `torch.device`, *optional*): As in [`DualEncoder`].
        dtype (`str` or `torch.dtype`, *optional*): As in [`DualEncoder`].
        settings: Settings of the method, such as `temperature`.

    Raises:
        TypeError: Labels or templates that are not texts, a threshold that is not a number, a setting that the method
            does not have, or a model object without processor.
        ValueError: No labels, duplicate or too few ones, a template without `{}`, an unknown method or one that the
            model cannot serve, a threshold or weights that are not finite.
        IncompleteCheckpointError: The checkpoint lacks weights of its model.

    Example:

    ```python
    >>> from clipn_hf import OODDetector
    >>> detector = OODDetector("openai/clip-vit-base-patch16", ["cat", "dog"], method="mcm")  # doctest: +SKIP
    >>> scores = detector.score(["cat.jpg", "car.jpg"])  # doctest: +SKIP

    ```
    """

    def __init__(
        self,
        model: Any,
        labels: Sequence[str],
        method: str = "atd",
        *,
        processor: Any = None,
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        threshold: float | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        self.labels = validate_labels(labels)
        self.method = get_method(method)
        self.settings = self.method.resolve_settings(settings, OPTIONS)
        self.threshold = threshold
        if len(self.labels) < self.method.min_labels:
            raise ValueError(
                f"Method {method} needs at least {self.method.min_labels} labels, got {self.labels}; use one of "
                f"{_names(row for row in METHODS.values() if row.min_labels <= len(self.labels))}."
            )
        if isinstance(model, DualEncoder):
            if any(argument is not None for argument in (processor, device, dtype)):
                raise TypeError("`processor`, `device` and `dtype` belong to the encoder; pass them when making it.")
            self.encoder = model
        elif model is None or isinstance(model, str | os.PathLike):
            self.encoder = DualEncoder.from_pretrained(model, processor, device, dtype)
        else:
            self.encoder = DualEncoder(model, processor, device, dtype)
        _check_needs(self.method, self.encoder)
        text, no_text = self.encoder.class_embeddings(
            self.labels, templates, no_templates, use_no_encoder="no" in self.method.needs
        )
        # Scores are computed on the CPU, where float32 means float32.
        self._text_embeddings = text.cpu()  # (classes, dim)
        self._no_text_embeddings = None if no_text is None else no_text.cpu()

    def __repr__(self) -> str:
        name = self.encoder.model.name_or_path or type(self.encoder.model).__name__
        number = "1 label" if len(self.labels) == 1 else f"{len(self.labels)} labels"
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"OODDetector({name!r}, {number}, method={self.method.name!r}, threshold={self.threshold}{settings})"

    @property
    def threshold(self) -> float | None:
        """The score above which an image is OOD."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float | None) -> None:
        if threshold is not None:
            if isinstance(threshold, bool) or not hasattr(threshold, "__float__"):
                raise TypeError(f"`threshold` must be a number, got {type(threshold).__name__} {threshold!r}.")
            threshold = float(threshold)
            if not math.isfinite(threshold):
                raise ValueError(f"`threshold` must be finite, got {threshold}.")
        self._threshold = threshold

    def __call__(self, images: Any, top_k: int | None = TOP_K, batch_size: int = 32) -> list[OODResult]:
        """Judge images.

        Args:
            images:
                One image or many: whatever [`~clipn_hf.images.load_image`] reads, a dictionary with one of these under
                `"image"`, or a list, iterator or dataset of these, as [`~clipn_hf.images.number_images`] describes.
            top_k (`int`, *optional*, defaults to 5): How many labels to list at most; None lists all.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `list` of [`OODResult`], one per image, also for a single one.

        Raises:
            ImageError: An image cannot be read; the message says which.
            TypeError, ValueError:
                As [`~clipn_hf.images.number_images`]; a `top_k` or `batch_size` that is not a positive integer.
        """
        check_count("top_k", top_k)
        self.explain_missing_verdict()
        return [result for embeddings in self._embed(images, batch_size) for result in self.results(embeddings, top_k)]

    def score(self, images: Any, batch_size: int = 32) -> Tensor:
        """Compute the OOD-ness of images, or of image embeddings computed before.

        Args:
            images:
                As for calling the detector; or embeddings, a floating-point `torch.Tensor` or `numpy.ndarray` of shape
                `(images, dim)` and any norm.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `torch.Tensor` of shape `(images,)`, float32, on the CPU; higher = more OOD.

        Raises:
            ImageError, TypeError, ValueError: As for calling the detector; embeddings of another width, or not finite.
        """
        if is_embeddings(images):
            return self._score(self._inputs(images))
        return torch.cat([torch.empty(0), *(self._score(self._inputs(x)) for x in self._embed(images, batch_size))])

    def calibrate(
        self,
        id_images: Any,
        max_id_rejection: float = 0.05,
        delta: float | None = None,
        batch_size: int = 32,
    ) -> Calibration:
        """Set the threshold so that at most a given share of ID images is called OOD, from held-out ID images.

        See [`~clipn_hf.calibration.calibrate`] for what is promised, and under which conditions.

        Args:
            id_images: Images of the labels, or their embeddings, as for `score`; none that a method was fitted on.
            max_id_rejection (`float`, *optional*, defaults to 0.05): Share of new ID images that may be called OOD.
            delta (`float`, *optional*):
                The promise holds with confidence `1 - delta`; by default on average over draws of `id_images`.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            [`~clipn_hf.calibration.Calibration`]: The threshold, which the detector has from then on, and its promise.

        Raises:
            ImageError, TypeError, ValueError:
                As for `score`; too few images for the promise (says how many are needed); a share outside (0, 1).

        Example:

        ```python
        >>> calibration = detector.calibrate(photos)  # doctest: +SKIP
        >>> calibration.promise  # doctest: +SKIP
        'At most 5 % of new ID images like the calibration images are called unknown, on average over draws of the ...'

        ```
        """
        calibration = calibrate(self.score(id_images, batch_size), max_id_rejection, delta=delta)
        self.threshold = calibration.threshold
        return calibration

    def results(self, image_embeddings: Tensor | npt.NDArray[Any], top_k: int | None = TOP_K) -> list[OODResult]:
        """Judge images by their embeddings.

        Args:
            image_embeddings (`torch.Tensor` or `numpy.ndarray` of shape `(images, dim)`): Of any norm.
            top_k (`int`, *optional*, defaults to 5): How many labels to list at most; None lists all.

        Returns:
            `list` of [`OODResult`], one per image.

        Raises:
            ValueError: Embeddings of another shape, or not finite.
        """
        check_count("top_k", top_k)
        inputs = self._inputs(image_embeddings)
        scores: list[float] = self._score(inputs).tolist()
        verdicts: list[bool | None]
        if self.threshold is not None:
            verdicts = [score > self.threshold for score in scores]
        elif self.method.is_ood is not None:
            verdicts = self.method.is_ood(inputs).tolist()
        else:
            verdicts = [None] * len(scores)
        probabilities, order = inputs.logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [
            OODResult(
                is_ood=verdict,
                ood_score=score,
                threshold=self.threshold,
                method=self.method.name,
                label=self.labels[indices[0]],
                score=values[0],
                labels=[
                    LabelScore(label=self.labels[index], score=value)
                    for index, value in zip(indices, values, strict=True)
                ],
            )
            for verdict, score, indices, values in zip(
                verdicts, scores, order[:, :top_k].tolist(), probabilities[:, :top_k].tolist(), strict=True
            )
        ]

    def explain_missing_verdict(self) -> None:
        """Say on the log, once in a process, how to get a verdict, if there will be none."""
        if self.threshold is None and self.method.is_ood is None:
            rules = _names(row for row in METHODS.values() if row.is_ood is not None)
            logger.warning_once(
                f"`is_ood` is None, because method {self.method.name} decides by threshold alone; pass `threshold`, "
                "which `OODDetector.calibrate` finds with images of your labels, or use one of "
                f"{rules} with a CLIPN model."
            )

    def _embed(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Yield embeddings `(batch, dim)`, batch by batch."""
        check_count("batch_size", batch_size)
        numbered = number_images(images)
        # A single image needs no number in errors.
        items = iter([(None, image_of(images))] if numbered is None else numbered)
        while batch := list(itertools.islice(items, batch_size)):
            pixel_values = self.encoder.pixel_values([image for _, image in batch], start=batch[0][0])
            yield self.encoder.image_embeddings(pixel_values)

    def _inputs(self, image_embeddings: Any) -> MethodInputs:
        embeddings = torch.as_tensor(image_embeddings).detach().float().cpu()
        dim = self._text_embeddings.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(
                f"Image embeddings must have shape (images, {dim}) for this model, got {tuple(embeddings.shape)}."
            )
        if not torch.isfinite(embeddings).all():
            raise ValueError("Image embeddings have NaN or infinite values; compute them again in float32.")
        return method_inputs(embeddings, self._text_embeddings, self._no_text_embeddings, self.encoder.logit_scale)

    def _score(self, inputs: MethodInputs) -> Tensor:
        return self.method.score(inputs, **self.settings)


def is_embeddings(images: Any) -> bool:
    """Tell whether `images` are embeddings: a floating-point matrix."""
    if isinstance(images, Tensor):
        return images.ndim == 2 and images.is_floating_point()
    return isinstance(images, np.ndarray) and images.ndim == 2 and np.issubdtype(images.dtype, np.floating)


def check_count(name: str, count: object) -> None:
    """Check that `count` is None or a positive integer.

    Raises:
        ValueError: It is not.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"`{name}` must be a positive integer, got {count!r}.")


def _check_needs(method: Method, encoder: DualEncoder) -> None:
    provided: set[Need] = {"global", "no"} if encoder.has_no_encoder else {"global"}
    for need in sorted(method.needs - provided):
        usable = _names(row for row in METHODS.values() if row.needs <= provided)
        raise ValueError(
            f"Method {method.name} needs {NEEDS[need]}, got {type(encoder.model).__name__}; use a trained CLIPN, or "
            f"one of {usable}."
        )


def _names(methods: Iterable[Method]) -> str:
    return ", ".join(method.name for method in methods)
