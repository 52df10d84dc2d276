# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`OODDetector`: encoder, labels, method and threshold in the one object that answers "known or unknown?"."""

import copy
import datetime
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging

from .calibration import Calibration, calibrate, p_values, starting_threshold
from .detector_checks import (
    check_count,
    check_every_label,
    check_given_count,
    check_image_encoder,
    check_labels,
    check_served,
    check_threshold,
    default_method,
    is_embeddings,
    label_positions,
    make_encoder,
    method_names,
)
from .detector_explanations import explain_results
from .detector_images import (
    embed_batches,
    embed_distinct_images,
    embed_to_learn,
    prepare_batches,
    row_digests,
    split_embeddings,
)
from .detector_negatives import asked_from_json, asked_to_json, nearest_negatives, read_negatives, remember_bank
from .detector_probe import arguments_of_probe, learn_training_images, read_probe, state_of_probe
from .detector_results import TOP_K, TOP_NEGATIVES, LabelScore, OODResult, VerdictWord, named_scores
from .detector_saving import (
    load_detector,
    save_detector,
    stack_digests,
    tensors_under,
    unstack_digests,
    upload_detector,
)
from .detector_state import DetectorState, EmbeddedTexts, Wording, embedder_of_pairs
from .digests import data_digest
from .encoders import DualEncoder, PrecomputedEncoder
from .features import Features
from .methods import METHODS, NEEDS, Method, MethodInputs, TrainingInputs, get_method, unknown_argument
from .methods.linear_probe import add_gaussians
from .modeling.modeling_clipn import LOADING_ARGUMENTS
from .negatives import NegativeLabels
from .prompts import validate_labels
from .similarity_maps import DEFAULT_PATH, PATHS_OF_MAPS, Explanation, MapPath, arrange_patches, check_path

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
OPTIONS = ("processor", "templates", "no_templates", "negatives", "threshold", "device", "dtype")
# Arguments of `from_pretrained` for the model.
_LOADING = (*LOADING_ARGUMENTS, "trust_remote_code")
# So near to the highest score of a method, float32 has hardly any others.
_NEAR = 1e-6
# By how much embeddings of the same image may differ in any dimension.
_SAME = 1e-6
# Arguments of calling a detector.
_CALLING = ("top_k", "batch_size", "top_negatives")
# What a change of is one change: one of them may be right only with another.
_TEXTS = ("labels", "templates", "no_templates", "negatives")
# Prefixes of the names under which tensors of a method, and of its negative labels, are saved.
_STATE, _NEGATIVES = "state.", "negatives."


class OODDetector(DetectorState):
    """Tell images that show one of the labels (ID) from those that do not (OOD).

    With a threshold an image is OOD when its score exceeds it, strictly. Without one the threshold-free rule of the
    method decides where it has one (ctw, atd); otherwise the verdict is "undecided".

    Labels, templates and encoder may be changed later. What that invalidates is dropped, and the log says what: the
    threshold where scores change, and with other labels or another model also what the method was fitted on. Negative
    labels follow: they are mined or embedded again.

    Args:
        model ([`DualEncoder`], [`~transformers.PreTrainedModel`], `str`, `os.PathLike` or `None`):
            A [`CLIPNModel`], [`~transformers.CLIPModel`], [`~transformers.SiglipModel`] or any other model that
            [`DualEncoder`] takes, with its `processor`; an encoder made before, which shares its cached label
            embeddings and may be loaded with further arguments, such as `revision`; a Hub id or folder; or None for
            the checkpoint inside this package. A [`PrecomputedEncoder`] will do for embeddings.
        labels (`Sequence[str]`): The known classes.
        method (`str`, *optional*):
            A key of `clipn_hf.methods.METHODS`. By default `"atd"`; with learned prompts the method that they were
            trained for: `"clip_os"` where there is an "unknown" prompt, `"gl_mcm"` for those of LoCoOp, else `"mcm"`.
        processor (*optional*): Needed with a model object; otherwise in place of the one that belongs to the model.
        templates (`Sequence[str]`, *optional*):
            As in [`DualEncoder.class_embeddings`]; by default those of a [`~clipn_hf.negatives.NegativeLabels`] that
            is given to a method that needs one, or else of the method, or else of the encoder.
        no_templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        negatives (*optional*):
            What images may show that show none of the labels, for methods that need to know it; with other methods it
            explains verdicts alone. A [`~clipn_hf.negatives.NegativeLabels`], or the `.safetensors` file of one; a
            list of texts, or a text file with one per line, to be taken as they are; the name of a corpus, or a
            dictionary of arguments of [`~clipn_hf.negatives.NegativeLabels.mine`], to be mined. By default methods
            that need negative labels mine them as in their papers, and others go without. What was mined for other
            labels or with another model is mined again, as long as its candidates are there.
        threshold (`float`, *optional*): The score above which an image is OOD.
        device (`str` or `torch.device`, *optional*): As in [`DualEncoder`].
        dtype (`str` or `torch.dtype`, *optional*): As in [`DualEncoder`].
        settings: Settings of the method, such as `temperature`.

    Attributes:
        fitted_on (`dict` or `None`):
            On what the method was fitted: `"images"`, `"labelled"`, `"date"`, `"sha256"`. Of a probe also its
            `"pseudo_labels"` or its `"finetuning"`, and `"held_out"`, how well it did in its best epoch on images that
            were held out, where it has such.

    Raises:
        TypeError: Labels, templates or negative labels that are not texts, a threshold that is not a number, a setting
            that the method does not have, or a model object without processor.
        ValueError: No labels, duplicate or too few ones, a template without `{}`, an unknown method or one that the
            model cannot serve, a threshold or weights that are not finite, negative labels that are labels, or that
            are to be mined again from candidates that are gone.
        OSError: There is no such file of negative labels.
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
        method: str | None = None,
        *,
        processor: Any = None,
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        negatives: Any = None,
        threshold: float | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        # Loading a model takes longest and comes last, unless only the model can say which method it is for.
        labels = validate_labels(labels)
        threshold = check_threshold(threshold)
        asked = read_negatives(negatives)
        encoder = None
        if method is None or isinstance(model, DualEncoder | PrecomputedEncoder):
            encoder = make_encoder(model, processor, device, dtype)
        if method is None:
            method = default_method(getattr(encoder, "learned_prompts", None))
        row = get_method(method)
        _check_arguments(settings, row)
        resolved = row.resolve_settings(settings, OPTIONS)
        checked = check_labels(labels, row, resolved, encoder, asked is not None)
        wording = Wording(checked, templates, no_templates, asked)
        if encoder is None:
            encoder = make_encoder(model, processor, device, dtype)
        super().__init__(encoder, row, resolved, wording, threshold)

    def __call__(
        self,
        images: Any,
        top_k: int | None = TOP_K,
        batch_size: int = 32,
        top_negatives: int = TOP_NEGATIVES,
    ) -> list[OODResult]:
        """Judge images.

        Args:
            images:
                One image or many: whatever [`~clipn_hf.images.load_image`] reads, a dictionary with one of these under
                `"image"`, or a list, iterator or dataset of these, as [`~clipn_hf.images.number_images`] describes.
            top_k (`int`, *optional*, defaults to 5): How many labels to list at most; None lists all.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
            top_negatives (`int`, *optional*, defaults to 3):
                How many negative labels to list at most, if the detector has any; 0 for none.

        Returns:
            `list` of [`OODResult`], one per image, also for a single one.

        Raises:
            ImageError: An image cannot be read; the message says which.
            TypeError, ValueError:
                As [`~clipn_hf.images.number_images`]; a `top_k` or `batch_size` that is not a positive integer, a
                `top_negatives` that is negative; the method was not fitted.
        """
        check_count("top_k", top_k)
        check_given_count("top_negatives", top_negatives, minimum=0)
        self._follow_model()
        self.check_fitted()
        self.explain_missing_verdict()
        batches = embed_batches(self, images, batch_size)
        return [
            result
            for embeddings in batches
            for result in self.results(embeddings, top_k, top_negatives, from_prepared=True)
        ]

    def score(self, images: Any, batch_size: int = 32) -> Tensor:
        """Compute the OOD-ness of images, or of image embeddings computed before.

        Args:
            images:
                As for calling the detector; or embeddings, a floating-point `torch.Tensor` or `numpy.ndarray` of shape
                `(images, dim)` and any norm, or the [`~clipn_hf.features.Features`] of this model, which are judged
                part by part, in bounded memory. Methods that change images before they judge them, such as odin, or
                look at their patches, such as gl_mcm, take images alone.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `torch.Tensor` of shape `(images,)`, float32, on the CPU; higher = more OOD.

        Raises:
            ImageError, TypeError, ValueError: As for calling the detector; embeddings of another width, or not finite,
                or for a method that takes images alone.
        """
        self._follow_model()
        self.check_fitted()
        self._check_judged(images)
        return torch.cat([torch.empty(0), *map(self._score, self._compare(images, batch_size))])

    def predict(self, images: Any, batch_size: int = 32) -> Tensor:
        """Find the most probable label of images, or of image embeddings, OOD or not.

        Args:
            images: As for `score`; of embeddings, any method finds the labels.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `torch.Tensor` of shape `(images,)`, int64, on the CPU: positions in `labels`.

        Raises:
            ImageError, TypeError, ValueError: As for `score`.
        """
        self._follow_model()
        if self.method.classify is not None:
            self.check_fitted()
        return torch.cat([torch.empty(0, dtype=torch.int64), *map(_nearest, self._compare(images, batch_size))])

    def score_and_predict(
        self, images: Any, batch_size: int = 32, *, from_prepared: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute what `score` and `predict` do, in one pass.

        Args:
            images: As for `score`.
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
            from_prepared (`bool`, *optional*, defaults to `False`):
                Whether embeddings are those that `embed_prepared` gave. Matters to methods that change images before
                they judge them or look at their patches, which take no others.

        Returns:
            Two `torch.Tensor` of shape `(images,)`, on the CPU: the OOD-ness, float32, higher = more OOD; and the
            positions of the most probable labels in `labels`, int64.

        Raises:
            ImageError, TypeError, ValueError: As for `score`.
        """
        self._follow_model()
        self.check_fitted()
        if not from_prepared:
            self._check_judged(images)
        scores, nearest = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        for inputs in self._compare(images, batch_size, from_prepared):
            scores.append(self._score(inputs))
            nearest.append(_nearest(inputs))
        return torch.cat(scores), torch.cat(nearest)

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
        return self._p_values(*self.score_and_predict(images, batch_size))

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
                What each of them shows: one of `labels`, or its position there. Needed by the methods that say so; by
                default those of [`~clipn_hf.features.Features`].
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
            use_cache (`bool`, *optional*, defaults to `True`): Whether to read and keep embeddings on disk.

        Returns:
            [`OODDetector`]: This one.

        Raises:
            TypeError, ValueError:
                Images, or labels, that the method needs are missing; labels that are not among those of the detector;
                several images, all with the same embedding;
                what the method refuses; as [`~clipn_hf.features.extract_features`].
        """
        if self.method.fit is None:
            return self
        self._follow_model()
        for need, value, name in (("training", id_images, "id_images"), ("training_labels", id_labels, "id_labels")):
            is_known = isinstance(id_images, Features) and name == "id_labels" and id_images.labels is not None
            if need in self.method.needs and value is None and not is_known:
                raise ValueError(f"Method {self.method.name} needs {NEEDS[need]}; pass them as `{name}`.")
        if id_labels is None and isinstance(id_images, Features) and "training_labels" in self.method.needs:
            id_labels = id_images.labels
        positions = None if id_labels is None else label_positions(id_labels, self.labels)
        embeddings, digests, positions = embed_to_learn(self, id_images, positions, batch_size, use_cache)
        classes = None if positions is None else torch.tensor(positions, dtype=torch.int64)
        labels = self.labels
        inputs = TrainingInputs(
            normalize(embeddings, dim=1),
            classes,
            len(labels),
            self._texts.text,
            self._encoder.logit_scale,
            self._encoder.logit_bias,
            tuple(labels),
            # Which sums in float64 that MPS has not.
            "cpu" if self._encoder.device.type == "mps" else self._encoder.device,
        )
        _check_differ(inputs.image_embeddings)
        # By name, so that the digest is the same however the labels were given.
        names = None if positions is None else [labels[position] for position in positions]
        if names is not None and "training_labels" in self.method.needs:
            check_every_label("`id_labels` has no image of", names, labels, "give images of each label")
        with warnings.catch_warnings(record=True) as found:
            state = self.method.fit(inputs, **self.method.settings_of(self.method.fit, self.settings))
        for warning in found:
            # At the line that called this, where something can be done about it.
            warnings.warn(warning.message, warning.category, stacklevel=2)
        self._state = state
        self._unstated_settings = frozenset()
        self.fitted_on = {
            "images": len(embeddings),
            "labelled": names is not None,
            "date": _today(),
            "sha256": data_digest(digests, names),
        }
        if self.method.report is not None:
            self.fitted_on |= self.method.report(state, self.settings, labels, self.templates)
        # Embeddings of the images may come in their place later.
        self._fitted_digests = frozenset([*digests, *row_digests(embeddings)])
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
        embeddings, digests = embed_distinct_images(self, "id_images", id_images, batch_size, use_cache)
        seen = sum(
            digest in self._fitted_digests or own in self._fitted_digests
            for digest, own in zip(digests, row_digests(embeddings[:, : self.dim]), strict=True)
        )
        if seen:
            raise ValueError(
                f"`id_images` has {seen} of {len(digests)} images that the method was fitted on, or its prompts "
                "learned from, whose scores are not those of new images; calibrate with others."
            )
        scores, nearest = self.score_and_predict(embeddings, from_prepared=True)
        predicted = None
        if per_label:
            labels = self.labels
            predicted = [labels[position] for position in nearest]
            check_every_label(
                "`id_images` has no image whose most probable label is",
                predicted,
                sorted(labels),
                "give images of each label, or leave `per_label` out",
            )
        ood_scores = None
        if ood_images is not None:
            ood_embeddings, ood_digests = embed_distinct_images(self, "ood_images", ood_images, batch_size, use_cache)
            shared = len({*digests} & {*ood_digests})
            if shared:
                raise ValueError(
                    f"`ood_images` has {shared} of {len(ood_digests)} images that are among `id_images`, too; an "
                    "image is one or the other."
                )
            ood_scores, _ = self.score_and_predict(ood_embeddings, from_prepared=True)
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
        self._warn_of_highest_threshold()
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
            able = method_names(row for row in METHODS.values() if row.text_contrast is not None)
            raise ValueError(
                f"The scores of method {self.method.name} cannot be told from texts; call `calibrate` with images, or "
                f"use one of {able}."
            )

        self._follow_model()

        def score(similarity: Tensor) -> Tensor:
            logits = self._encoder.logit_scale * similarity + self._encoder.logit_bias
            return self._score(MethodInputs(similarity, logits))

        threshold = starting_threshold(score, self._texts.text, self.method.text_contrast)
        self.threshold = threshold
        self._calibration = Calibration(threshold, None, "text", len(self.labels), date=_today())
        logger.warning(f"The threshold is {threshold:g}. {self._calibration.promise}")
        return self._calibration

    def remember_images(self, features: Features, names: Sequence[str] | None = None) -> None:
        """Take images for those that the method was fitted on, beside those that it was.

        For images that the method depends on otherwise: that chose the epoch of a probe, were filtered out, or that
        prompts were learned from. `calibrate` refuses them from then on; `fitted_on`, if there is one, counts them.

        Args:
            features ([`~clipn_hf.features.Features`]): All images that the method depends on.
            names (`Sequence[str]`, *optional*): The label of each, if it was known.

        Raises:
            ValueError: The method was not fitted, and the model has no learned prompts.
        """
        digests = [bytes.fromhex(digest) for digest in features.digests]
        if self.fitted_on is not None:
            self.fitted_on = {**self.fitted_on, "images": len(digests), "sha256": data_digest(digests, names)}
        elif self.method.fit is not None or getattr(self._encoder, "learned_prompts", None) is None:
            raise ValueError("The method was not fitted, so that it depends on no images; call `fit` first.")
        self._fitted_digests |= {*digests, *row_digests(features.embeddings)}

    @property
    def knows_fitted_images(self) -> bool:
        """Whether `count_fitted` can say: not where a probe was trained elsewhere, of images that it does not name."""
        return self.fitted_on is None or bool(self._fitted_digests)

    def count_fitted(self, digests: Iterable[bytes]) -> int:
        """Count the images that the method was fitted on, whose scores are not those of new images.

        Args:
            digests (`Iterable[bytes]`): SHA-256 of each image, as [`~clipn_hf.features.extract_features`] finds them.

        Returns:
            `int`
        """
        return sum(digest in self._fitted_digests for digest in digests)

    def results(
        self,
        image_embeddings: Tensor | npt.NDArray[Any],
        top_k: int | None = TOP_K,
        top_negatives: int = TOP_NEGATIVES,
        *,
        from_prepared: bool = False,
    ) -> list[OODResult]:
        """Judge images by their embeddings.

        Args:
            image_embeddings (`torch.Tensor` or `numpy.ndarray` of shape `(images, dim)`): Of any norm.
            top_k (`int`, *optional*, defaults to 5): How many labels to list at most; None lists all.
            top_negatives (`int`, *optional*, defaults to 3):
                How many negative labels to list at most, if the detector has any; 0 for none.
            from_prepared (`bool`, *optional*, defaults to `False`): As for `score_and_predict`.

        Returns:
            `list` of [`OODResult`], one per image.

        Raises:
            ValueError: Embeddings of another shape, or not finite; the method was not fitted, or takes images alone.
        """
        check_count("top_k", top_k)
        check_given_count("top_negatives", top_negatives, minimum=0)
        self.check_fitted()
        if not from_prepared:
            self.check_judged_by_embeddings()
        parts = split_embeddings(self, image_embeddings, from_prepared)
        return [result for part in parts for result in self._results(self._inputs(part), top_k, top_negatives)]

    def explain(
        self,
        images: Any,
        path: MapPath = DEFAULT_PATH,
        *,
        top_k: int | None = 3,
        top_negatives: int = TOP_NEGATIVES,
        relative: bool = True,
        no: bool | None = None,
        num_surgery_layers: int | None = None,
        batch_size: int = 32,
    ) -> list[Explanation]:
        """Judge images, and find which of their patches spoke for the labels, for "unknown" or "no", and for negative
        labels.

        Patches are compared with the texts of the detector, whatever its method judges by.
        [`~clipn_hf.heat_maps.draw_explanations`] makes a picture of it.

        Args:
            images: As for calling the detector.
            path (`"surgery"`, `"value"`, `"discrepancy"` or `"clip"`, *optional*, defaults to `"surgery"`):
                How patches are compared, see [`~clipn_hf.similarity_maps`]. Maps of `"clip"` are inverted.
            top_k (`int`, *optional*, defaults to 3): How many labels to explain at most; None explains all.
            top_negatives (`int`, *optional*, defaults to 3):
                How many negative labels to explain at most, if the detector has any; 0 for none.
            relative (`bool`, *optional*, defaults to `True`):
                Whether maps say what speaks for a label, or negative label, more than for all labels on average, and
                for "no" more than for the label itself. Otherwise they are cosines, and much alike for all labels.
                With a single label they always are; for `"discrepancy"` each map is normalised by itself.
            no (`bool`, *optional*):
                Whether to explain what spoke for "no", that an image does not show a label; by default where the
                method judges by that.
            num_surgery_layers (`int`, *optional*): As for [`~clipn_hf.similarity_maps.similarity_maps`].
            batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

        Returns:
            `list` of [`~clipn_hf.similarity_maps.Explanation`], one per image, also for a single one.

        Raises:
            ImageError, TypeError, ValueError: As for calling the detector, and as
                [`~clipn_hf.similarity_maps.similarity_maps`]; `no` for a model without a "no" text encoder.
        """
        check_path(path)
        check_count("top_k", top_k)
        check_given_count("top_negatives", top_negatives, minimum=0)
        self._follow_model()
        self.check_fitted()
        explanations = []
        for inputs in prepare_batches(self, images, batch_size):
            embeddings, patches = self.embed_to_explain(inputs, path, num_surgery_layers)
            results = self.results(embeddings, top_k, top_negatives, from_prepared=True)
            explanations += self.explain_results(
                results, embeddings, inputs["pixel_values"], patches, path, relative=relative, no=no
            )
        return explanations

    def embed_to_explain(
        self, inputs: Mapping[str, Tensor], path: MapPath = DEFAULT_PATH, num_surgery_layers: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed prepared images and their patches as `explain_results` takes them.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): As [`DualEncoder.prepare_images`] gives them.
            path (`str`, *optional*, defaults to `"surgery"`): As for `explain`.
            num_surgery_layers (`int`, *optional*): As for `explain`.

        Returns:
            Two `torch.Tensor`: What `embed_prepared` gives, and what
            [`~clipn_hf.similarity_maps.embed_patches`] gives.

        Raises:
            TypeError, ValueError: As `explain`.
        """
        check_path(path)
        embeddings, patches = self.embed_with_patches(inputs, PATHS_OF_MAPS[path], num_surgery_layers)
        return embeddings, arrange_patches(self.image_encoder, inputs, patches, path)

    def explain_results(
        self,
        results: Sequence[OODResult],
        image_embeddings: Tensor,
        pixel_values: Tensor,
        patches: Tensor,
        path: MapPath = DEFAULT_PATH,
        *,
        relative: bool = True,
        no: bool | None = None,
    ) -> list[Explanation]:
        """Find which patches spoke for what results list, as `explain` does, of images that are embedded already.

        Args:
            results (`Sequence[OODResult]`): One per image.
            image_embeddings (`torch.Tensor`): What `embed_to_explain` gave.
            pixel_values (`torch.Tensor`): What [`DualEncoder.prepare_images`] gave.
            patches (`torch.Tensor`): What `embed_to_explain` gave for `path`.
            path (`str`, *optional*, defaults to `"surgery"`): As for `explain`.
            relative (`bool`, *optional*, defaults to `True`): As for `explain`.
            no (`bool`, *optional*): As for `explain`.

        Returns:
            `list` of [`~clipn_hf.similarity_maps.Explanation`], one per image.
        """
        return explain_results(
            self.image_encoder,
            self.labels,
            self._texts,
            results,
            image_embeddings,
            pixel_values,
            patches,
            path,
            relative,
            no,
        )

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
            other = ""
            # The rules compare with "no" texts, which no context was learned for.
            if getattr(self._encoder, "learned_prompts", None) is None:
                rules = method_names(row for row in METHODS.values() if row.is_ood is not None and "no" in row.needs)
                other = f", or use one of {rules} with a CLIPN model"
            logger.warning_once(
                f"`is_ood` is None, because method {self.method.name} decides by threshold alone; pass `threshold`, "
                f"which `OODDetector.calibrate` finds with images of your labels{other}."
            )

    def with_changes(self, **changes: Any) -> "OODDetector":
        """Make a detector that differs in some respects. What they invalidate is dropped, and the log says what.

        Args:
            changes:
                Arguments of the class: `labels`, `method`, `templates`, `no_templates`, `negatives`, `threshold`,
                settings. What is left out stays as it is.

        Returns:
            [`OODDetector`]: Another one with the same encoder.

        Raises:
            TypeError, ValueError: As for the class.
        """
        self._follow_model()
        texts = {name: changes[name] for name in _TEXTS if name in changes}
        settings = {name: value for name, value in changes.items() if name not in (*_TEXTS, "threshold", "method")}
        method = get_method(changes.get("method", self.method.name))
        _check_arguments(settings, method)
        same_method = method is self.method
        resolved = method.resolve_settings({**(self.settings if same_method else {}), **settings}, OPTIONS)
        other = copy.copy(self)
        # The calls of a pipeline may all differ from its detector in the same way.
        other._says_once = True
        if not same_method:
            wording = {name: getattr(self._wording, name) for name in _TEXTS}
            other = OODDetector(self._encoder, method=method.name, **{**wording, **texts}, **resolved)
            quiet = copy.copy(self)
            quiet._says_once = True
            quiet._forget("method", fitted=True, threshold=True)
        elif resolved != dict(self.settings):
            has_negatives = self._wording.negatives is not None
            check_served(method, resolved, self._encoder, has_negatives)
            check_labels(texts.get("labels", self._wording.labels), method, resolved, self._encoder, has_negatives)
            other._settings = resolved
            other._forget("settings", fitted=not method.learns_the_same(self.settings, resolved), threshold=True)
        if same_method:
            other._change_texts(**texts)
            other._check_groups(other._texts)
        if "threshold" in changes:
            other.threshold = changes["threshold"]
        other._says_once = False
        return other

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        include_weights: bool | None = None,
        push_to_hub: bool = False,
        **hub_arguments: Any,
    ) -> str | None:
        """Save the detector with all that it has learnt, from which `from_pretrained` makes one with equal scores.

        The folder has `detector.json` and `detector.safetensors`, the model's configuration, the processor, a card,
        and the weights of the model or the name of the place they are at. `pipeline("ood-detection", model=folder)`
        loads it, too.

        Args:
            save_directory (`str` or `os.PathLike`): The folder; made if it does not exist. A `README.md` that is
                there and was not written by this method is left as it is, but for the marked part about the threshold
                in the card of learned prompts.
            include_weights (`bool`, *optional*):
                Whether to save the weights. Otherwise the detector names the Hub id and revision, or the folder
                (relative to its own), that they were loaded from; in that folder itself it is published with them.
                By default they are saved, unless the model has an adapter, which can only be named.
            push_to_hub (`bool`, *optional*, defaults to `False`): Whether to publish these files, too.
            hub_arguments: Arguments of `push_to_hub()`; `repo_id` is by default the name of the folder.

        Returns:
            `str`: The address of the commit; None if it is not published.

        Raises:
            TypeError: The encoder has no model, or there are arguments for publishing without `push_to_hub`.
            ValueError: The weights are to be named but were not loaded from anywhere, or are to be saved and have an
                adapter; the folder has the weights or the adapter of another model; the files are to be published and
                name a local folder.
        """
        for name in hub_arguments:
            if name not in PUBLISHING_OPTIONS:
                raise unknown_argument("OODDetector.save_pretrained", name, ["include_weights", *PUBLISHING_OPTIONS])
            if not push_to_hub:
                raise TypeError(f"`{name}` is for publishing; set `push_to_hub=True` or leave it out.")
        self._follow_model()
        tensors = {
            "text_embeddings": self._texts.text,
            "no_text_embeddings": self._texts.no_text,
            "unknown_embedding": self._texts.unknown,
            "calibration_scores": self._calibration_scores,
            "calibration_labels": self._calibration_labels,
            "fitted_digests": stack_digests(self._fitted_digests),
            **{f"{_STATE}{name}": tensor for name, tensor in self._state.items()},
        }
        wording, bank = self._wording, self.negatives
        if bank is not None:
            tensors |= {f"{_NEGATIVES}{name}": tensor for name, tensor in bank.to_tensors().items()}
        values = {
            "labels": wording.labels,
            "templates": None if wording.templates is None else list(wording.templates),
            "no_templates": None if wording.no_templates is None else list(wording.no_templates),
            "used_templates": self.templates,
            "used_no_templates": self.no_templates if "no" in self.method.needs else None,
            "method": self.method.name,
            # Settings may be numbers of numpy.
            "settings": {
                name: value.item() if hasattr(value, "item") else value for name, value in self.known_settings.items()
            },
            "negatives": None if bank is None else {**bank.describe(), "asked": asked_to_json(wording.negatives)},
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

    def push_to_hub(self, repo_id: str, include_weights: bool | None = None, **hub_arguments: Any) -> str:
        """Publish the detector, in one commit.

        Args:
            repo_id (`str`): The repository; made if it does not exist.
            include_weights (`bool`, *optional*): As for `save_pretrained`.
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
            hub_arguments: `revision`, `token`, `trust_remote_code`, … of `from_pretrained`.

        Raises:
            OSError: There is no detector.
            ValueError: It is damaged, of another version, or its weights are not those it was made with.
            IncompleteCheckpointError: The checkpoint, or that which the detector names, is damaged or missing.
        """
        of_methods = {name for row in METHODS.values() for name in row.settings}
        for name in hub_arguments:
            if name in {*_TEXTS, "method", "threshold", *of_methods}:
                raise TypeError(f"`{name}` comes with the detector; load it, and use `with_changes` to differ.")
            if name not in _LOADING:
                raise unknown_argument("OODDetector.from_pretrained", name, ["encoder", "device", "dtype", *_LOADING])
        values, tensors, encoder, digest = load_detector(source, encoder, device, dtype, **hub_arguments)
        method = get_method(values["method"])
        bank, asked = None, None
        if values["negatives"] is not None:
            bank = NegativeLabels.from_tensors(tensors_under(_NEGATIVES, tensors))
            asked = asked_from_json(values["negatives"]["asked"], bank)
        labels = check_labels(values["labels"], method)
        wording = Wording(labels, values["templates"], values["no_templates"], asked)
        used = (values["used_templates"], values["used_no_templates"])
        found = wording.resolve_templates(encoder, method)
        # Defaults may have become others; the embeddings of the labels have not.
        if any(one is not None and one != other for one, other in zip(used, found, strict=True)):
            wording = replace(
                wording, templates=used[0], no_templates=wording.no_templates if used[1] is None else used[1]
            )
            found = wording.resolve_templates(encoder, method)
        pairs = embedder_of_pairs(encoder, method, wording, found[0], bank)
        texts = EmbeddedTexts(
            *found,
            tensors["text_embeddings"],
            tensors.get("no_text_embeddings"),
            bank,
            pairs,
            tensors.get("unknown_embedding"),
        )
        if bank is not None:
            remember_bank(encoder, method, labels, found[0], asked, bank)
        detector = cls.__new__(cls)
        settings = method.resolve_settings(values["settings"])
        DetectorState.__init__(detector, encoder, method, settings, wording, values["threshold"], texts)
        detector._state = tensors_under(_STATE, tensors)
        detector.fitted_on = values["fitted_on"]
        detector._unstated_settings = frozenset(method.settings) - {*values["settings"]}
        detector._fitted_digests = unstack_digests(tensors.get("fitted_digests"))
        if values["calibration"] is not None:
            detector._calibration = Calibration.from_dict(values["calibration"])
            detector._calibration_scores = tensors.get("calibration_scores")
            detector._calibration_labels = tensors.get("calibration_labels")
        detector._weights_sha256 = digest
        return detector

    @classmethod
    def from_probe(
        cls,
        model: Any,
        probe: Any,
        id_images: Any = None,
        id_labels: Iterable[Any] | None = None,
        *,
        templates: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **settings: Any,
    ) -> Self:
        """Make a detector of a linear probe that was trained before.

        Its method is linear_probe, or plp where `probe.trained_on` tells of `"pseudo_labels"`. Which images the probe
        was trained on is not in it: without `id_images`, `calibrate` cannot refuse them; give it others.

        Args:
            model: As for the class; the model that the embeddings came from on which the probe was trained.
            probe ([`~clipn_hf.probing.LinearProbe`], `str` or `os.PathLike`):
                The probe with the names of its classes as `labels`, or its folder or Hub id.
            id_images (*optional*):
                The images that it was trained on, as for `fit`. The detector knows them then, and may have the score
                "relative_mahalanobis".
            id_labels (`Iterable`, *optional*):
                What it was trained to take each of them for, as for `fit`: labels, or pseudo-labels.
            templates (`Sequence[str]`, *optional*):
                As for the class; they do not matter to verdicts. Those of pseudo-labels are in the probe.
            device (`str` or `torch.device`, *optional*): As in [`DualEncoder`].
            dtype (`str` or `torch.dtype`, *optional*): As in [`DualEncoder`].
            settings:
                Those that scoring has: `score`, `temperature`. The others are those of the training, as far as the
                probe tells them; what it does not tell is left out of what is saved.

        Returns:
            [`OODDetector`]: Fitted.

        Raises:
            TypeError: `probe` is something else, or there is no such setting.
            ValueError:
                The probe has no `labels`, is damaged or belongs to another model; the score needs `id_images`; these
                are not those that the probe was trained on, or there are other templates than those of its
                pseudo-labels.
            OSError: There is no such model or probe.

        Example:

        ```python
        >>> detector = OODDetector.from_probe("openai/clip-vit-base-patch16", "org/probe")  # doctest: +SKIP
        >>> calibration = detector.calibrate(photos)  # doctest: +SKIP

        ```
        """
        probe = read_probe(probe)
        method, resolved, templates = arguments_of_probe(probe, settings, templates, id_images is not None)
        encoder = make_encoder(model, None, device, dtype)
        check_image_encoder(probe.encoder, encoder, "The weights of the probe", "set `probe.encoder` to None")
        detector = cls(encoder, probe.labels, method, templates=templates, **resolved)
        detector._state, detector.fitted_on, detector._unstated_settings = state_of_probe(detector, probe)
        if id_images is not None:
            learnt = learn_training_images(detector, id_images, id_labels)
            detector._fitted_digests, embeddings, known = learnt
            if detector.settings["score"] == "relative_mahalanobis":
                detector._state = add_gaussians(detector._state, normalize(embeddings, dim=1), torch.tensor(known))
        detector._remember_weights()
        return detector

    def _check_judged(self, images: Any) -> None:
        """Check that images, of which there may be embeddings alone, can be judged."""
        if is_embeddings(images):
            self.check_judged_by_embeddings()

    def _compare(self, images: Any, batch_size: int, from_prepared: bool = False) -> Iterator[MethodInputs]:
        """What the method sees of images, or of their embeddings, of so many at once that memory stays bounded."""
        if is_embeddings(images):
            return map(self._inputs, split_embeddings(self, images, from_prepared))
        return map(self._inputs, embed_batches(self, images, batch_size))

    def _results(self, inputs: MethodInputs, top_k: int | None, top_negatives: int) -> list[OODResult]:
        scores = self._score(inputs)
        # By logits, because probabilities may be equal where these are not.
        order = inputs.logits.argsort(dim=1, descending=True, stable=True)
        probabilities = inputs.logits.softmax(dim=1).gather(1, order)
        labels = self.labels
        nearest = [labels[position] for position in order[:, 0].tolist()]
        verdicts, thresholds = self._decide(inputs, scores, nearest)
        p: list[float | None] = [None] * len(nearest)
        if self._calibration_scores is not None:
            p = self._p_values(scores, order[:, 0]).tolist()
        # Methods that look at negative labels have the temperature by which they do.
        temperature = self.settings.get("temperature") if "negatives" in self.method.needs else None
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
                label=listed[0]["label"],
                score=listed[0]["score"],
                labels=listed,
                negatives=negatives,
            )
            for verdict, score, threshold, p_value, listed, negatives in zip(
                verdicts,
                scores.tolist(),
                thresholds,
                p,
                named_scores(labels, order[:, :top_k], probabilities[:, :top_k]),
                nearest_negatives(self.negatives, inputs, top_negatives, temperature),
                strict=True,
            )
        ]

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

    def _warn_of_highest_threshold(self) -> None:
        """Say that too many calibration images have the highest score that there is for any to be called OOD."""
        assert self._calibration is not None
        highest, groups = self.method.max_score, self._calibration.groups
        thresholds = [group.threshold for group in groups] or [self._calibration.threshold]
        reached = sum(highest is not None and threshold >= highest - _NEAR for threshold in thresholds)
        if not reached:
            return
        whose = f"The threshold of {reached} of {len(groups)} labels" if groups else "The threshold"
        where = " that looks most like these" if groups else ""
        # Rules that need no threshold, too, go with probabilities at the temperature of the model.
        can_rise = "temperature" in self.settings and self.method.is_ood is None
        temperature = "raise the setting `temperature`, " if can_rise else ""
        logger.warning(
            f"{whose} lies within 1e-6 of {highest:g}, the highest score of method {self.method.name}, so that "
            f"practically no image{where} can be called unknown: too many calibration images look as unknown as can "
            f"be. Give labels that describe them better, {temperature}allow a larger `max_id_rejection`, or use "
            "another method."
        )

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


def _check_arguments(settings: Iterable[str], method: Method) -> None:
    """Refuse as settings what belongs elsewhere, and say where."""
    for name in settings:
        if name in method.settings:
            continue
        if name in _LOADING:
            raise TypeError(
                f"`{name}` is for loading a model; give `DualEncoder.from_pretrained(…, {name}=…)` as `model`."
            )
        if name in _CALLING:
            raise TypeError(f"`{name}` belongs to the call; judge images by `detector(images, {name}=…)`.")


def _check_differ(embeddings: Tensor) -> None:
    """Check that a method has more to learn from than one image over and over."""
    # Float32 numbers of unit norm, from batches that were rounded in other ways
    if len(embeddings) > 1 and (embeddings.amax(dim=0) - embeddings.amin(dim=0)).max() <= _SAME:
        raise ValueError(
            f"All {len(embeddings)} images to fit on have the same embedding; give images that differ, and look for "
            "damaged weights."
        )


def _nearest(inputs: MethodInputs) -> Tensor:
    """The position of the most probable label of each image."""
    return inputs.logits.argmax(dim=1)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


__all__ = [
    "PUBLISHING_OPTIONS",
    "TOP_K",
    "TOP_NEGATIVES",
    "LabelScore",
    "OODDetector",
    "OODResult",
    "VerdictWord",
]
