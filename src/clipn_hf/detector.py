# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`OODDetector`: encoder, labels, method and threshold in the one object that answers "known or unknown?"."""

import copy
import datetime
import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging

from .calibration import Calibration, calibrate, p_values, starting_threshold
from .detector_saving import load_detector, save_detector, upload_detector
from .digests import data_digest, image_processor_settings, model_digest, same_images, settings_digest
from .encoders import DualEncoder, PrecomputedEncoder
from .features import extract_features
from .images import image_of, number_images
from .methods import (
    METHODS,
    NEEDS,
    Method,
    MethodInputs,
    Need,
    TrainingInputs,
    get_method,
    method_inputs,
    unknown_argument,
)
from .modeling.modeling_clipn import LOADING_ARGUMENTS
from .prompts import validate_labels

logger = logging.get_logger(__name__)

PUBLISHING_OPTIONS = (
    "repo_id",
    "private",
    "token",
    "revision",
    "commit_message",
    "commit_description",
    "create_pr",
)
OPTIONS = ("processor", "templates", "no_templates", "threshold", "device", "dtype")
TOP_K = 5
# Prefix of the names under which tensors of a method are saved.
_STATE = "state."

VerdictWord = Literal["known", "unknown", "unsure", "undecided"]


class LabelScore(TypedDict):
    """One label and its softmax probability among all labels."""

    label: str
    score: float


class OODResult(TypedDict):
    """What a detector says about one image.

    Keys:
        verdict (`str`):
            `"known"` or `"unknown"`; `"unsure"`, for a person to look at, where the detector was calibrated for three
            answers; `"undecided"` where neither a threshold nor a rule decides.
        is_ood (`bool` or `None`): The same as True = unknown, False = known and None for the other two.
        ood_score (`float`): OOD-ness, higher = more OOD; its range is that of the method.
        threshold (`float` or `None`): What `ood_score` had to exceed; None for a threshold-free verdict or none.
        promise (`str` or `None`): What calibration promises of that threshold; None for any other threshold.
        calibrated_on (`str` or `None`): On how many images, when, and the first digits of the digest of these images.
        p_value (`float` or `None`):
            Share of ID images like those of calibration whose score is at least as high, in (0, 1]; lower = more OOD.
            None without calibration.
        method (`str`): Name of the method.
        label (`str`): The most probable label, also where the image is unknown.
        score (`float`): Softmax probability of that label among all labels, in (0, 1].
        labels (`list` of `LabelScore`): The `top_k` most probable labels, most probable first.
    """

    verdict: VerdictWord
    is_ood: bool | None
    ood_score: float
    threshold: float | None
    promise: str | None
    calibrated_on: str | None
    p_value: float | None
    method: str
    label: str
    score: float
    labels: list[LabelScore]


class OODDetector:
    """Tell images that show one of the labels (ID) from those that do not (OOD).

    With a threshold an image is OOD when its score exceeds it, strictly. Without one the threshold-free rule of the
    method decides where it has one (ctw, atd); otherwise the verdict is "undecided".

    Labels, templates and encoder may be changed later. What that invalidates is dropped, and the log says what: the
    threshold where scores change, and with other labels or another model also what the method was fitted on.

    Args:
        model ([`DualEncoder`], [`~transformers.CLIPModel`], [`CLIPNModel`], `str`, `os.PathLike` or `None`):
            A model with its `processor`, an encoder made before (which shares its cached label embeddings), a Hub id
            or folder, or None for the checkpoint inside this package. A [`PrecomputedEncoder`] will do for embeddings.
        labels (`Sequence[str]`): The known classes.
        method (`str`, *optional*, defaults to `"atd"`): A key of `clipn_hf.methods.METHODS`.
        processor (*optional*): Needed with a model object; otherwise in place of the one that belongs to the model.
        templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        no_templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        threshold (`float`, *optional*): The score above which an image is OOD.
        device (`str` or `torch.device`, *optional*): As in [`DualEncoder`].
        dtype (`str` or `torch.dtype`, *optional*): As in [`DualEncoder`].
        settings: Settings of the method, such as `temperature`.

    Attributes:
        fitted_on (`dict` or `None`): On what the method was fitted: `"images"`, `"labelled"`, `"date"`, `"sha256"`.

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
    >>> calibration = detector.calibrate(photos_of_cats_and_dogs)  # doctest: +SKIP
    >>> results = detector(["cat.jpg", "car.jpg"])  # doctest: +SKIP
    >>> detector.save_pretrained("cats-and-dogs")  # doctest: +SKIP

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
        self._method = get_method(method)
        self._settings = self.method.resolve_settings(settings, OPTIONS)
        self._labels = _check_labels(labels, self.method)
        self._state: dict[str, Tensor] = {}
        self.fitted_on: dict[str, Any] | None = None
        self._fitted_digests: frozenset[bytes] = frozenset()
        self._weights_sha256: str | None = None
        self._says_once = False
        self._embedded_with: tuple[Any, ...] | None = None
        self.threshold = threshold
        self._encoder = _make_encoder(model, processor, device, dtype)
        _check_served(self.method, self._encoder)
        self._given_templates = (templates, no_templates)
        self._embed_labels()

    def __repr__(self) -> str:
        name = self.encoder.source or type(getattr(self.encoder, "model", self.encoder)).__name__
        number = "1 label" if len(self.labels) == 1 else f"{len(self.labels)} labels"
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"OODDetector({name!r}, {number}, method={self.method.name!r}, threshold={self.threshold}{settings})"

    @property
    def method(self) -> Method:
        """The row of `METHODS`. `with_changes` makes a detector with another one."""
        return self._method

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings of the method. `with_changes` makes a detector with others."""
        return MappingProxyType(self._settings)

    @property
    def labels(self) -> list[str]:
        """The known classes. Changing them drops threshold and fitted state."""
        return list(self._labels)

    @labels.setter
    def labels(self, labels: Sequence[str]) -> None:
        checked = _check_labels(labels, self.method)
        if checked == self._labels:
            return
        before, self._labels = self._labels, checked
        try:
            self._embed_labels()
        except Exception:
            self._labels = before
            raise
        self._forget("labels", fitted=True, threshold=True)

    @property
    def templates(self) -> list[str]:
        """The texts around labels.

        Changing them drops the threshold, if the method reads texts or each label has a threshold of its own.
        """
        return list(self._used_templates[0])

    @templates.setter
    def templates(self, templates: Sequence[str] | None) -> None:
        self._change_templates("templates", (templates, self._given_templates[1]))

    @property
    def no_templates(self) -> list[str]:
        """The same for the "no" text encoder. Changing them drops the threshold, if the method reads "no" texts."""
        return list(self._used_templates[1])

    @no_templates.setter
    def no_templates(self, no_templates: Sequence[str] | None) -> None:
        self._change_templates("no_templates", (self._given_templates[0], no_templates))

    @property
    def encoder(self) -> DualEncoder | PrecomputedEncoder:
        """What embeds images and labels. Assign an encoder, or the id or folder of a model, to change it.

        That drops threshold and fitted state, unless the new one has the same weights, configuration and tokenizer and
        prepares images alike; for methods that do not read texts it is enough that images are embedded alike.
        """
        return self._encoder

    @encoder.setter
    def encoder(self, model: Any) -> None:
        encoder = _make_encoder(model, None, None, None)
        if encoder is self._encoder:
            return
        self._follow_model()
        _check_served(self.method, encoder)
        templates = self._encoder.label_templates(*self._given_templates)
        before, self._encoder = self._encoder, encoder
        try:
            self._embed_labels()
        except Exception:
            self._encoder = before
            raise
        # Without thresholds per label, texts do not matter to methods that do not read them.
        reads_texts = self.method.uses_text or (self._calibration is not None and bool(self._calibration.groups))
        if _compute_the_same(before, encoder):
            self._forget_for_templates("encoder", templates)
        elif reads_texts or not _embed_images_alike(before, encoder):
            self._forget("encoder", fitted=True, threshold=True)
        if self.fitted_on is not None or self._calibration_scores is not None:
            self._remember_weights()

    @property
    def image_encoder(self) -> DualEncoder:
        """The encoder, where it embeds images.

        Raises:
            TypeError: It is a [`PrecomputedEncoder`].
        """
        if isinstance(self._encoder, DualEncoder):
            return self._encoder
        raise TypeError(
            f"The detector has text embeddings that were computed before, and no model for images; give image "
            f"embeddings of {self._encoder.source}."
        )

    @property
    def threshold(self) -> float | None:
        """The score above which an image is OOD. Setting it ends the promise of a calibration."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float | None) -> None:
        if threshold is not None:
            is_number = hasattr(threshold, "__float__") and not isinstance(threshold, bool | np.bool_)
            if not is_number or getattr(threshold, "ndim", 0) > 0:
                raise TypeError(f"`threshold` must be a number, got {type(threshold).__name__} {threshold!r}.")
            threshold = float(threshold)
            if not math.isfinite(threshold):
                raise ValueError(f"`threshold` must be finite, got {threshold}.")
        self._threshold = threshold
        self._calibration: Calibration | None = None
        self._calibration_scores: Tensor | None = None
        self._calibration_labels: Tensor | None = None

    @property
    def calibration(self) -> Calibration | None:
        """Where the threshold comes from and what it promises; None without `calibrate`, or after it was changed."""
        return self._calibration

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
                As [`~clipn_hf.images.number_images`]; a `top_k` or `batch_size` that is not a positive integer; the
                method was not fitted.
        """
        check_count("top_k", top_k)
        self._follow_model()
        self.check_fitted()
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
        self._follow_model()
        self.check_fitted()
        if is_embeddings(images):
            return self._score(self._inputs(images))
        return torch.cat([torch.empty(0), *(self._score(self._inputs(x)) for x in self._embed(images, batch_size))])

    def predict(self, images: Any, batch_size: int = 32) -> Tensor:
        """Find the most probable label of images, or of image embeddings, OOD or not.

        Args:
            images: As for `score`.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `torch.Tensor` of shape `(images,)`, int64, on the CPU: positions in `labels`.

        Raises:
            ImageError, TypeError, ValueError: As for `score`.
        """
        self._follow_model()
        if is_embeddings(images):
            return self._inputs(images).logits.argmax(dim=1)
        predictions = [self._inputs(x).logits.argmax(dim=1) for x in self._embed(images, batch_size)]
        return torch.cat([torch.empty(0, dtype=torch.int64), *predictions])

    def p_values(self, images: Any, batch_size: int = 32) -> npt.NDArray[np.float64]:
        """Compute the conformal p-value of images, from the scores of the images of `calibrate`.

        See [`~clipn_hf.calibration.p_values`]. With thresholds per label, an image is compared with the calibration
        images of the same most probable label. [`~clipn_hf.calibration.benjamini_hochberg`] selects by them, and
        [`~clipn_hf.calibration.combine_p_values`] combines those of several detectors.

        Args:
            images: As for `score`.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `numpy.ndarray` of shape `(images,)`, float64, in (0, 1]; lower = more OOD.

        Raises:
            ValueError: The detector is not calibrated.
            ImageError, TypeError, ValueError: As for `score`.
        """
        self._follow_model()
        if self._calibration_scores is None:
            raise ValueError("p-values need a calibrated detector; call `calibrate` with held-out ID images first.")
        self.check_fitted()
        batches = [images] if is_embeddings(images) else self._embed(images, batch_size)
        found = [np.empty(0)]
        for batch in batches:
            inputs = self._inputs(batch)
            found.append(self._p_values(self._score(inputs), inputs.logits.argmax(dim=1)))
        return np.concatenate(found)

    def fit(
        self,
        id_images: Any = None,
        id_labels: Iterable[Any] | None = None,
        batch_size: int = 32,
        use_cache: bool = True,
    ) -> Self:
        """Fit the method on ID images. Methods that learn nothing, such as atd and mcm, are left as they are.

        The threshold is dropped, because it was that of other scores. Images that cannot be read are left out, counted
        and named on the log.

        Args:
            id_images: Images of the labels, or their embeddings, as for `score`.
            id_labels (`Sequence`, *optional*):
                What each of them shows: one of `labels`, or its position there. Needed by the methods that say so.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
            use_cache (`bool`, *optional*, defaults to `True`): Whether to read and keep embeddings on disk.

        Returns:
            [`OODDetector`]: This one.

        Raises:
            TypeError, ValueError:
                Images, or labels, that the method needs are missing; labels that are not among those of the detector;
                what the method refuses; as [`~clipn_hf.features.extract_features`].
        """
        if self.method.fit is None:
            return self
        self._follow_model()
        for need, value, name in (("training", id_images, "id_images"), ("training_labels", id_labels, "id_labels")):
            if need in self.method.needs and value is None:
                raise ValueError(f"Method {self.method.name} needs {NEEDS[need]}; pass them as `{name}`.")
        positions = None if id_labels is None else self._positions(id_labels)
        embeddings, digests, positions = self._embed_once(id_images, positions, batch_size, use_cache)
        classes = None if positions is None else torch.tensor(positions, dtype=torch.int64)
        inputs = TrainingInputs(normalize(embeddings, dim=1), classes, len(self._labels))
        if positions is not None and "training_labels" in self.method.needs:
            absent = [label for position, label in enumerate(self._labels) if position not in {*positions}]
            if absent:
                more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
                raise ValueError(
                    f"`id_labels` has no image of {', '.join(map(repr, absent[:3]))}{more}; give images of each label."
                )
        self._state = self.method.fit(inputs, **self.method.settings_of(self.method.fit, self.settings))
        # By name, so that the digest is the same however the labels were given.
        names = None if positions is None else [self._labels[position] for position in positions]
        self.fitted_on = {
            "images": len(embeddings),
            "labelled": names is not None,
            "date": _today(),
            "sha256": data_digest(digests, names),
        }
        # Embeddings of the images may come in their place later.
        self._fitted_digests = frozenset([*digests, *_row_digests(embeddings)])
        self._remember_weights()
        self._forget("fit", threshold=True)
        return self

    def calibrate(
        self,
        id_images: Any,
        max_id_rejection: float = 0.05,
        method: Literal["conformal", "quantile"] = "conformal",
        delta: float | None = None,
        *,
        per_label: bool = False,
        ood_images: Any = None,
        max_ood_acceptance: float = 0.05,
        batch_size: int = 32,
        use_cache: bool = True,
    ) -> Calibration:
        """Set the threshold so that at most a given share of ID images is called OOD, from held-out ID images.

        See [`~clipn_hf.calibration.calibrate`] for what is promised, and under which conditions. Images that cannot be
        read are left out, counted and named on the log; copies of an image count once.

        Args:
            id_images: Images of the labels, or their embeddings, as for `score`; none that the method was fitted on.
            max_id_rejection (`float`, *optional*, defaults to 0.05): Share of new ID images that may be called OOD.
            method (`"conformal"` or `"quantile"`, *optional*, defaults to `"conformal"`):
                How the threshold is chosen; a quantile promises nothing about new images.
            delta (`float`, *optional*):
                The promise holds with confidence `1 - delta`; by default on average over draws of `id_images`.
            per_label (`bool`, *optional*, defaults to `False`):
                Whether each label gets a threshold of its own, from the images for which it is the most probable one.
                The promise then holds among images with the same *most probable* label, not among those of a class: of
                a class that the model mostly mistakes for another one, more may be called OOD.
            ood_images (*optional*):
                Examples of OOD images. With them there are three answers: known, unknown and unsure.
            max_ood_acceptance (`float`, *optional*, defaults to 0.05):
                Share of OOD images like these that may be called known.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
            use_cache (`bool`, *optional*, defaults to `True`): Whether to read and keep embeddings on disk.

        Returns:
            [`~clipn_hf.calibration.Calibration`]: The threshold, which the detector has from then on, and its promise.

        Raises:
            TypeError, ValueError:
                Too few images for the promise (says how many are needed); images that the method was fitted on, or
                that are among `ood_images`, too; a share outside (0, 1); as for `score` and
                [`~clipn_hf.features.extract_features`].

        Example:

        ```python
        >>> calibration = detector.calibrate(photos)  # doctest: +SKIP
        >>> calibration.promise  # doctest: +SKIP
        'At most 5 % of new ID images like the calibration images are called unknown, on average over draws of the ...'

        ```
        """
        self._follow_model()
        self.check_fitted()
        embeddings, digests = self._embed_distinct("id_images", id_images, batch_size, use_cache)
        seen = sum(
            digest in self._fitted_digests or own in self._fitted_digests
            for digest, own in zip(digests, _row_digests(embeddings), strict=True)
        )
        if seen:
            raise ValueError(
                f"`id_images` has {seen} of {len(digests)} images that the method was fitted on, whose scores are not "
                "those of new images; calibrate with others."
            )
        inputs = self._inputs(embeddings)
        scores = self._score(inputs)
        nearest = inputs.logits.argmax(dim=1)
        predicted = None
        if per_label:
            predicted = [self._labels[position] for position in nearest]
            absent = sorted({*self._labels} - {*predicted})
            if absent:
                more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
                raise ValueError(
                    f"`id_images` has no image whose most probable label is {', '.join(map(repr, absent[:3]))}{more}; "
                    "give images of each label, or leave `per_label` out."
                )
        ood_scores = None
        if ood_images is not None:
            ood_embeddings, ood_digests = self._embed_distinct("ood_images", ood_images, batch_size, use_cache)
            shared = len({*digests} & {*ood_digests})
            if shared:
                raise ValueError(
                    f"`ood_images` has {shared} of {len(ood_digests)} images that are among `id_images`, too; an "
                    "image is one or the other."
                )
            ood_scores = self._score(self._inputs(ood_embeddings))
        try:
            calibration = calibrate(
                scores,
                max_id_rejection,
                method,
                delta,
                labels=predicted,
                ood_scores=ood_scores,
                max_ood_acceptance=max_ood_acceptance,
            )
        except ValueError as error:
            message = str(error)
            for inner, own in (("id_scores", "id_images"), ("ood_scores", "ood_images"), ("labels", "per_label")):
                message = message.replace(f"`{inner}`", f"`{own}`")
            raise ValueError(message) from error
        self.threshold = calibration.threshold
        self._calibration = replace(
            calibration,
            date=_today(),
            data_sha256=data_digest(digests),
            ood_data_sha256=None if ood_scores is None else data_digest(ood_digests),
        )
        self._calibration_scores, self._calibration_labels = scores, nearest
        self._remember_weights()
        return self._calibration

    def guess_threshold(self) -> Calibration:
        """Set a threshold to start with where there are no images, from the texts of the labels. It promises nothing.

        See [`~clipn_hf.calibration.starting_threshold`]. In trials with 2 to 500 labels it rejected between 0 and 30 %
        of ID images, more than the 5 % that a calibration with images keeps to, and caught from hardly any to nearly
        all of the OOD images.

        Returns:
            [`~clipn_hf.calibration.Calibration`]: With a `promise` that says that there is none.

        Raises:
            ValueError: Texts tell nothing of the scores of the method, or it decides without a threshold.
        """
        if self.method.is_ood is not None:
            raise ValueError(f"Method {self.method.name} decides by its own rule; leave the threshold out.")
        if self.method.text_contrast is None:
            able = _names(row for row in METHODS.values() if row.text_contrast is not None)
            raise ValueError(
                f"The scores of method {self.method.name} cannot be told from texts; call `calibrate` with images, or "
                f"use one of {able}."
            )

        self._follow_model()

        def score(similarity: Tensor) -> Tensor:
            return self._score(MethodInputs(similarity, self._encoder.logit_scale * similarity))

        threshold = starting_threshold(score, self._text_embeddings, self.method.text_contrast)
        self.threshold = threshold
        self._calibration = Calibration(threshold, None, "text", len(self._labels), date=_today())
        logger.warning(f"The threshold is {threshold:g}. {self._calibration.promise}")
        return self._calibration

    def count_fitted(self, digests: Iterable[bytes]) -> int:
        """Count the images that the method was fitted on, whose scores are not those of new images.

        Args:
            digests (`Iterable[bytes]`): SHA-256 of each image, as [`~clipn_hf.features.extract_features`] finds them.

        Returns:
            `int`
        """
        return sum(digest in self._fitted_digests for digest in digests)

    def results(self, image_embeddings: Tensor | npt.NDArray[Any], top_k: int | None = TOP_K) -> list[OODResult]:
        """Judge images by their embeddings.

        Args:
            image_embeddings (`torch.Tensor` or `numpy.ndarray` of shape `(images, dim)`): Of any norm.
            top_k (`int`, *optional*, defaults to 5): How many labels to list at most; None lists all.

        Returns:
            `list` of [`OODResult`], one per image.

        Raises:
            ValueError: Embeddings of another shape, or not finite; the method was not fitted.
        """
        check_count("top_k", top_k)
        self.check_fitted()
        inputs = self._inputs(image_embeddings)
        scores = self._score(inputs)
        # By logits, because probabilities may be equal where these are not.
        order = inputs.logits.argsort(dim=1, descending=True, stable=True)
        probabilities = inputs.logits.softmax(dim=1).gather(1, order)
        nearest = [self._labels[position] for position in order[:, 0].tolist()]
        verdicts, thresholds = self._decide(inputs, scores, nearest)
        p: list[float | None] = [None] * len(nearest)
        if self._calibration_scores is not None:
            p = self._p_values(scores, order[:, 0]).tolist()
        promise, origin = None, None
        if self._calibration is not None:
            promise, origin = self._calibration.promise, self._calibration.origin
        return [
            OODResult(
                verdict=verdict,
                is_ood={"known": False, "unknown": True}.get(verdict),
                ood_score=score,
                threshold=threshold,
                promise=promise,
                calibrated_on=origin,
                p_value=p_value,
                method=self.method.name,
                label=label,
                score=values[0],
                labels=[
                    LabelScore(label=self._labels[index], score=value)
                    for index, value in zip(indices, values, strict=True)
                ],
            )
            for verdict, score, threshold, p_value, label, indices, values in zip(
                verdicts,
                scores.tolist(),
                thresholds,
                p,
                nearest,
                order[:, :top_k].tolist(),
                probabilities[:, :top_k].tolist(),
                strict=True,
            )
        ]

    def check_fitted(self) -> None:
        """Check that the method has been fitted, if it has to be.

        Raises:
            ValueError: It has not.
        """
        if self.method.fit is not None and self.fitted_on is None:
            labels = ", id_labels" if "training_labels" in self.method.needs else ""
            raise ValueError(
                f"Method {self.method.name} must be fitted before it judges; call "
                f"`OODDetector.fit(id_images{labels})`."
            )

    def explain_missing_verdict(self) -> None:
        """Say on the log, once in a process, how to get a verdict, if there will be none."""
        if self.threshold is None and self.method.is_ood is None:
            rules = _names(row for row in METHODS.values() if row.is_ood is not None)
            logger.warning_once(
                f"`is_ood` is None, because method {self.method.name} decides by threshold alone; pass `threshold`, "
                "which `OODDetector.calibrate` finds with images of your labels, or use one of "
                f"{rules} with a CLIPN model."
            )

    def with_changes(self, **changes: Any) -> "OODDetector":
        """Make a detector that differs in some respects. What they invalidate is dropped, and the log says what.

        Args:
            changes:
                Arguments of the class: `labels`, `method`, `templates`, `no_templates`, `threshold`, settings. What is
                left out stays as it is.

        Returns:
            [`OODDetector`]: Another one with the same encoder.

        Raises:
            TypeError, ValueError: As for the class.
        """
        self._follow_model()
        names = ("labels", "templates", "no_templates", "threshold")
        settings = {name: value for name, value in changes.items() if name not in (*names, "method")}
        method = get_method(changes.get("method", self.method.name))
        same_method = method is self.method
        resolved = method.resolve_settings({**(self.settings if same_method else {}), **settings}, OPTIONS)
        other = copy.copy(self)
        # The calls of a pipeline may all differ from its detector in the same way.
        other._says_once = True
        if not same_method:
            templates, no_templates = self._given_templates
            other = OODDetector(
                self._encoder,
                changes.get("labels", self._labels),
                method.name,
                templates=changes.get("templates", templates),
                no_templates=changes.get("no_templates", no_templates),
                **resolved,
            )
            quiet = copy.copy(self)
            quiet._says_once = True
            quiet._forget("method", fitted=True, threshold=True)
        elif resolved != dict(self.settings):
            of_fit = [method.settings_of(method.fit, settings) for settings in (self.settings, resolved)]
            other._settings = resolved
            other._forget("settings", fitted=of_fit[0] != of_fit[1], threshold=True)
        for name in names:
            if name in changes:
                setattr(other, name, changes[name])
        other._says_once = False
        return other

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        include_weights: bool = True,
        push_to_hub: bool = False,
        **hub_arguments: Any,
    ) -> str | None:
        """Save the detector with all that it has learnt, from which `from_pretrained` makes one with equal scores.

        The folder has `detector.json` and `detector.safetensors`, the model's configuration, the processor, a card,
        and the weights of the model or the name of the place they are at. `pipeline("ood-detection", model=folder)`
        loads it, too.

        Args:
            save_directory (`str` or `os.PathLike`): The folder; made if it does not exist. A `README.md` that is
                there and was not written by this method is left as it is.
            include_weights (`bool`, *optional*, defaults to `True`):
                Whether to save the weights. Otherwise the detector names the Hub id and revision, or the folder
                (relative to its own), that they were loaded from. Needed for a model with an adapter.
            push_to_hub (`bool`, *optional*, defaults to `False`): Whether to publish these files, too.
            hub_arguments: Arguments of `push_to_hub()`; `repo_id` is by default the name of the folder.

        Returns:
            `str`: The address of the commit; None if it is not published.

        Raises:
            TypeError: The encoder has no model, or there are arguments for publishing without `push_to_hub`.
            ValueError: The weights are to be named but were not loaded from anywhere, or are to be saved and have an
                adapter.
        """
        for name in hub_arguments:
            if name not in PUBLISHING_OPTIONS:
                raise unknown_argument("OODDetector.save_pretrained", name, ["include_weights", *PUBLISHING_OPTIONS])
            if not push_to_hub:
                raise TypeError(f"`{name}` is for publishing; set `push_to_hub=True` or leave it out.")
        self._follow_model()
        tensors = {
            "text_embeddings": self._text_embeddings,
            "no_text_embeddings": self._no_text_embeddings,
            "calibration_scores": self._calibration_scores,
            "calibration_labels": self._calibration_labels,
            "fitted_digests": _stack_digests(self._fitted_digests),
            **{f"{_STATE}{name}": tensor for name, tensor in self._state.items()},
        }
        templates, no_templates = self._given_templates
        values = {
            "labels": self._labels,
            "templates": None if templates is None else list(templates),
            "no_templates": None if no_templates is None else list(no_templates),
            "used_templates": self.templates,
            "used_no_templates": self.no_templates if "no" in self.method.needs else None,
            "method": self.method.name,
            # Settings may be numbers of numpy.
            "settings": {
                name: value.item() if hasattr(value, "item") else value for name, value in self.settings.items()
            },
            "fitted_on": self.fitted_on,
            "threshold": self.threshold,
            "calibration": None if self._calibration is None else self._calibration.to_dict(),
        }
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; name a folder to save the detector to.")
        repo_id = hub_arguments.pop("repo_id", folder.resolve().name)
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        files = save_detector(folder, self._encoder, values, present, include_weights, repo_id)
        return upload_detector(folder, files, repo_id, **hub_arguments) if push_to_hub else None

    def push_to_hub(self, repo_id: str, include_weights: bool = True, **hub_arguments: Any) -> str:
        """Publish the detector, in one commit.

        Args:
            repo_id (`str`): The repository; made if it does not exist.
            include_weights (`bool`, *optional*, defaults to `True`): As for `save_pretrained`.
            hub_arguments:
                `private`, `token`, `revision`, `commit_message`, `commit_description`, `create_pr`, as for models.

        Returns:
            `str`: The address of the commit.

        Raises:
            TypeError, ValueError: As `save_pretrained`; the weights are named and are in a local folder.
        """
        with tempfile.TemporaryDirectory() as folder:
            address = self.save_pretrained(folder, include_weights, push_to_hub=True, repo_id=repo_id, **hub_arguments)
        assert address is not None
        return address

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        encoder: DualEncoder | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **hub_arguments: Any,
    ) -> Self:
        """Load a detector that `save_pretrained` wrote. Its scores are bit-equal to those before saving.

        Args:
            source (`str` or `os.PathLike`): Folder or Hub id.
            encoder ([`DualEncoder`], *optional*): The model, if it is loaded already.
            device (`str` or `torch.device`, *optional*): As in [`DualEncoder.from_pretrained`].
            dtype (`str` or `torch.dtype`, *optional*): As in [`DualEncoder.from_pretrained`].
            hub_arguments: `revision`, `token`, … of `from_pretrained`.

        Raises:
            OSError: There is no detector.
            ValueError: It is damaged, of another version, or its weights are not those it was made with.
            IncompleteCheckpointError: The checkpoint, or that which the detector names, is damaged or missing.
        """
        settings = {name for row in METHODS.values() for name in row.settings}
        for name in hub_arguments:
            if name in {"labels", "method", "templates", "no_templates", "threshold", *settings}:
                raise TypeError(f"`{name}` comes with the detector; load it, and use `with_changes` to differ.")
            if name not in LOADING_ARGUMENTS:
                known = ["encoder", "device", "dtype", *LOADING_ARGUMENTS]
                raise unknown_argument("OODDetector.from_pretrained", name, known)
        values, tensors, encoder, digest = load_detector(source, encoder, device, dtype, **hub_arguments)
        detector = cls.__new__(cls)
        detector._method = get_method(values["method"])
        detector._settings = detector.method.resolve_settings(values["settings"])
        detector._labels = _check_labels(values["labels"], detector.method)
        detector._state = {
            name.removeprefix(_STATE): tensor for name, tensor in tensors.items() if name.startswith(_STATE)
        }
        detector.fitted_on = values["fitted_on"]
        digests = tensors.get("fitted_digests", torch.empty(0, 32, dtype=torch.uint8))
        detector._fitted_digests = frozenset(bytes(row) for row in digests.numpy())
        detector.threshold = values["threshold"]
        if values["calibration"] is not None:
            detector._calibration = Calibration.from_dict(values["calibration"])
            detector._calibration_scores = tensors.get("calibration_scores")
            detector._calibration_labels = tensors.get("calibration_labels")
        detector._encoder = encoder
        detector._weights_sha256 = digest
        detector._says_once = False
        given = (values["templates"], values["no_templates"])
        used = (values["used_templates"], values["used_no_templates"])
        # Defaults may have become others; the embeddings of the labels have not.
        changed = any(
            one is not None and one != other for one, other in zip(used, encoder.label_templates(*given), strict=True)
        )
        detector._given_templates = (used[0], given[1] if used[1] is None else used[1]) if changed else given
        detector._used_templates = encoder.label_templates(*detector._given_templates)
        detector._embedded_with = detector._model_state()
        detector._text_embeddings = tensors["text_embeddings"]
        detector._no_text_embeddings = tensors.get("no_text_embeddings")
        return detector

    def _decide(
        self, inputs: MethodInputs, scores: Tensor, nearest: list[str]
    ) -> tuple[list[VerdictWord], list[float | None]]:
        """The verdict on each image, and the threshold that led to it."""
        if self._calibration is not None:
            verdicts: list[VerdictWord] = [*self._calibration.answers(scores, nearest)]
            of_label = {group.label: group.threshold for group in self._calibration.groups}
            return verdicts, [of_label.get(label, self.threshold) for label in nearest]
        if self.threshold is not None:
            # In float64, to which thresholds need not be rounded.
            is_ood = (scores.double() > self.threshold).tolist()
        elif self.method.is_ood is not None:
            is_ood = self.method.is_ood(inputs).tolist()
        else:
            return ["undecided"] * len(nearest), [None] * len(nearest)
        return ["unknown" if unknown else "known" for unknown in is_ood], [self.threshold] * len(nearest)

    def _p_values(self, scores: Tensor, nearest: Tensor) -> npt.NDArray[np.float64]:
        """The p-value of each score, within the calibration images of its label if labels have thresholds."""
        assert self._calibration is not None
        assert self._calibration_scores is not None
        assert self._calibration_labels is not None
        if not self._calibration.groups:
            return p_values(self._calibration_scores, scores)
        found = np.empty(len(scores))
        for label in nearest.unique():
            rows = nearest == label
            found[rows.numpy()] = p_values(self._calibration_scores[self._calibration_labels == label], scores[rows])
        return found

    def _remember_weights(self) -> None:
        """Note which weights the fitted state and the threshold belong to."""
        if isinstance(self._encoder, DualEncoder):
            self._weights_sha256 = model_digest(self._encoder.model)

    def _model_state(self) -> tuple[Any, ...] | None:
        """Differs after any change of the model or its image processor, and after a move to another device."""
        if not isinstance(self._encoder, DualEncoder):
            return None
        processor = settings_digest(image_processor_settings(self._encoder.processor.image_processor))
        return self._encoder.weights_state(), processor

    def _follow_model(self) -> None:
        """Drop what no longer holds if the model was changed in place, such as by training it further."""
        state, before = self._model_state(), self._embedded_with
        if state == before or state is None or before is None or not isinstance(self._encoder, DualEncoder):
            return
        text = self._text_embeddings
        if state[0] != before[0]:
            self._embed_labels(*self._used_templates)
        self._embedded_with = state
        if self._weights_sha256 is not None:
            is_same = model_digest(self._encoder.model) == self._weights_sha256
        else:
            is_same = torch.allclose(text, self._text_embeddings, atol=1e-5)
        if not is_same or state[1] != before[1]:
            self._forget("model", fitted=True, threshold=True)
            self._weights_sha256 = None

    def _embed(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Yield embeddings `(batch, dim)`, batch by batch."""
        _check_batch_size(batch_size)
        if is_embeddings(images):
            raise TypeError("These are embeddings; judge them by `results` or `score`.")
        encoder = self.image_encoder
        numbered = number_images(images)
        # A single image needs no number in errors.
        items = iter([(None, image_of(images))] if numbered is None else numbered)
        while batch := list(itertools.islice(items, batch_size)):
            pixel_values = encoder.pixel_values([image for _, image in batch], start=batch[0][0])
            yield encoder.image_embeddings(pixel_values)

    def _embed_once(
        self, images: Any, positions: list[int] | None, batch_size: int, use_cache: bool
    ) -> tuple[Tensor, list[bytes], list[int] | None]:
        """Embeddings `(images, dim)` of images, or as given, a digest of each, and the positions of those left."""
        _check_batch_size(batch_size)
        if is_embeddings(images):
            # As they are: scores are bit-equal to those of the same embeddings later, when they are normalised once.
            embeddings = self._check_embeddings(images)
            if len(embeddings) == 0:
                raise ValueError("There are no image embeddings; give those of at least one image.")
            digests = _row_digests(embeddings)
            if positions is not None and len(positions) != len(embeddings):
                raise ValueError(
                    f"`id_labels` must be one per image, got {len(positions)} for {len(embeddings)} images."
                )
            return embeddings, digests, positions
        features = extract_features(
            images, self.image_encoder, labels=positions, batch_size=batch_size, use_cache=use_cache
        )
        return features.embeddings, [bytes.fromhex(digest) for digest in features.digests], features.labels

    def _embed_distinct(self, name: str, images: Any, batch_size: int, use_cache: bool) -> tuple[Tensor, list[bytes]]:
        """As `_embed_once`, each image once: copies are no further draws."""
        embeddings, digests, _ = self._embed_once(images, None, batch_size, use_cache)
        first = {digest: row for row, digest in reversed([*enumerate(digests)])}
        if len(first) == len(digests):
            return embeddings, digests
        logger.warning(
            f"{len(digests) - len(first)} of the {len(digests)} images of `{name}` are copies of others and left out."
        )
        rows = sorted(first.values())
        return embeddings[rows], [digests[row] for row in rows]

    def _embed_labels(self, templates: Sequence[str] | None = None, no_templates: Sequence[str] | None = None) -> None:
        """Embed the labels, by default with the templates that were given."""
        given = self._given_templates if templates is None else (templates, no_templates or None)
        text, no_text = self._encoder.class_embeddings(self._labels, *given, use_no_encoder="no" in self.method.needs)
        # Scores are computed on the CPU, where float32 means float32.
        self._text_embeddings = text.cpu()  # (classes, dim)
        self._no_text_embeddings = None if no_text is None else no_text.cpu()
        self._used_templates = self._encoder.label_templates(*given)
        self._embedded_with = self._model_state()

    def _change_templates(self, name: str, given: tuple[Sequence[str] | None, Sequence[str] | None]) -> None:
        self._follow_model()
        before, given_before = self._used_templates, self._given_templates
        self._given_templates = given
        try:
            after = self._encoder.label_templates(*given)
            if after != before:
                self._embed_labels()
        except Exception:
            self._given_templates = given_before
            raise
        self._forget_for_templates(name, before)

    def _forget_for_templates(self, reason: str, before: tuple[list[str], list[str]]) -> None:
        """Drop the threshold where it depends on templates that are others now."""
        after = self._used_templates
        # Which threshold holds for an image may depend on its nearest label.
        uses_text = self.method.uses_text or (self._calibration is not None and bool(self._calibration.groups))
        if (uses_text and after[0] != before[0]) or ("no" in self.method.needs and after[1] != before[1]):
            self._forget(reason, threshold=True)

    def _forget(self, reason: str, fitted: bool = False, threshold: bool = False) -> None:
        """Drop what no longer holds, and say so."""
        dropped, again = [], []
        if fitted and self.fitted_on is not None:
            dropped.append(f"what it had learnt of {self.fitted_on['images']} images")
            again.append("`fit`")
            self._state, self.fitted_on, self._fitted_digests = {}, None, frozenset()
        if threshold and self.threshold is not None:
            scores = self._calibration_scores
            origin = "" if scores is None else f", calibrated on {len(scores)} images"
            dropped.append(f"its threshold ({self.threshold:g}{origin})")
            again.append("`calibrate`")
            self.threshold = None
        if dropped:
            change = "`fit` was called" if reason == "fit" else f"`{reason}` changed"
            (logger.warning_once if self._says_once else logger.warning)(
                f"The detector has dropped {' and '.join(dropped)}, because {change}; call {' and '.join(again)} anew."
            )

    def _positions(self, id_labels: Any) -> list[int]:
        """The position in `labels` of each label, given by name or position."""
        if isinstance(id_labels, str) or not isinstance(id_labels, Iterable):
            raise TypeError(f"`id_labels` must be one label per image, got {id_labels!r}.")
        positions = {label: position for position, label in enumerate(self._labels)}
        found = []
        for row, label in enumerate(id_labels.tolist() if isinstance(id_labels, Tensor | np.ndarray) else id_labels):
            label = label.item() if isinstance(label, Tensor | np.generic) and label.ndim == 0 else label
            position = positions.get(label) if isinstance(label, str) else label
            if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(self._labels):
                raise ValueError(
                    f"`id_labels[{row}]` must be one of the {len(self._labels)} labels or its position, got "
                    f"{label!r}; "
                    f"the labels are {', '.join(self._labels[:5])}{', …' if len(self._labels) > 5 else ''}."
                )
            found.append(position)
        return found

    def _check_embeddings(self, image_embeddings: Any) -> Tensor:
        embeddings = torch.as_tensor(image_embeddings).detach().float().cpu()
        dim = self._text_embeddings.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(
                f"Image embeddings must have shape (images, {dim}) for this model, got {tuple(embeddings.shape)}."
            )
        if not torch.isfinite(embeddings).all():
            raise ValueError("Image embeddings have NaN or infinite values; compute them again in float32.")
        if len(embeddings) and not embeddings.any(dim=1).all():
            raise ValueError("Image embeddings have rows of zeros, which have no direction; compute them again.")
        return embeddings

    def _inputs(self, image_embeddings: Any) -> MethodInputs:
        embeddings = self._check_embeddings(image_embeddings)
        return method_inputs(
            embeddings, self._text_embeddings, self._no_text_embeddings, self._encoder.logit_scale, self._state
        )

    def _score(self, inputs: MethodInputs) -> Tensor:
        return self.method.score(inputs, **self.method.settings_of(self.method.score, self.settings))


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


def _check_batch_size(batch_size: object) -> None:
    if batch_size is None:
        raise ValueError("`batch_size` must be a positive integer, got None.")
    check_count("batch_size", batch_size)


def _row_digests(embeddings: Tensor) -> list[bytes]:
    """SHA-256 of each embedding, whatever its norm."""
    return [hashlib.sha256(row.tobytes()).digest() for row in normalize(embeddings, dim=1).numpy()]


def unserved(method: Method, encoder: DualEncoder | PrecomputedEncoder) -> str | None:
    """Tell why an encoder cannot serve a method.

    Args:
        method ([`~clipn_hf.methods.Method`]): A row of `METHODS`.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): What embeds images and labels.

    Returns:
        `str`: The reason; None if the encoder has all that the method needs of a model.
    """
    provided: set[Need] = {"global", "training", "training_labels"}
    if encoder.has_no_encoder:
        provided.add("no")
    lacking = sorted(method.needs - provided)
    if not lacking:
        return None
    usable = _names(row for row in METHODS.values() if row.needs <= provided)
    got = type(encoder.model).__name__ if isinstance(encoder, DualEncoder) else type(encoder).__name__
    return f"Method {method.name} needs {NEEDS[lacking[0]]}, got {got}; use a trained CLIPN, or one of {usable}."


def _make_encoder(
    model: Any, processor: Any, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> DualEncoder | PrecomputedEncoder:
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


def _check_served(method: Method, encoder: DualEncoder | PrecomputedEncoder) -> None:
    reason = unserved(method, encoder)
    if reason is not None:
        raise ValueError(reason)


def _check_labels(labels: Sequence[str], method: Method) -> list[str]:
    checked = validate_labels(labels)
    if len(checked) < method.min_labels:
        raise ValueError(
            f"Method {method.name} needs at least {method.min_labels} labels, got {checked}; use one of "
            f"{_names(row for row in METHODS.values() if row.min_labels <= len(checked))}."
        )
    return checked


def _compute_the_same(one: DualEncoder | PrecomputedEncoder, other: DualEncoder | PrecomputedEncoder) -> bool:
    """Whether two encoders give the same embeddings of images and texts, but for rounding."""
    names = ("class", "weights_sha256", "config_sha256", "image_processor_sha256", "logit_scale")
    descriptions = [encoder.describe() for encoder in (one, other)]
    return all(descriptions[0][name] == descriptions[1][name] for name in names)


def _embed_images_alike(one: DualEncoder | PrecomputedEncoder, other: DualEncoder | PrecomputedEncoder) -> bool:
    if not (isinstance(one, DualEncoder) and isinstance(other, DualEncoder)):
        return False
    return same_images(one.model, one.processor.image_processor, other.model, other.processor.image_processor)


def _stack_digests(digests: frozenset[bytes]) -> Tensor | None:
    if not digests:
        return None
    return torch.from_numpy(np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8).reshape(-1, 32).copy())


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _names(methods: Iterable[Method]) -> str:
    return ", ".join(method.name for method in methods)


__all__ = ["TOP_K", "LabelScore", "OODDetector", "OODResult", "check_count", "is_embeddings", "unserved"]
