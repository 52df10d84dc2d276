# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector is made of, and what of it no longer holds after a change.

[`OODDetector`] adds what is done with it: judging, fitting, calibrating, saving.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .calibration import Calibration
from .detector_checks import (
    check_image_embeddings,
    check_judged_by_embeddings,
    check_labels,
    check_served,
    check_threshold,
    default_method,
    make_encoder,
)
from .detector_negatives import Asked, PairEmbedder, make_bank, read_negatives, same_bank
from .digests import image_processor_settings, model_digest, same_images, settings_digest
from .encoders import DualEncoder, PrecomputedEncoder
from .features import cached_class_embeddings, evaluation_mode
from .local_features import LocalPath
from .methods import Method, MethodInputs, method_inputs
from .methods.neglabel import check_groups, effective_settings
from .negatives import NegativeLabels

logger = logging.get_logger(__name__)

# With as many texts or more, embedding labels takes seconds on a CPU.
_MANY_TEXTS = 500
# For a gradient, what all layers give is held at once: with few images 1 GB or so for a large model.
_IMAGES_PER_GRADIENT = 8
# Cosines of patches with labels that are held at once: 64 MB in float32.
_PATCH_COSINES = 2**24


@dataclass(frozen=True, eq=False)
class Wording:
    """The texts of a detector, as they were asked for.

    Args:
        labels (`list[str]`): The known classes.
        templates (`Sequence[str]`, *optional*):
            None for those of the negative labels, if the method needs them and they were given with their embeddings,
            or else of the method, or else of the encoder.
        no_templates (`Sequence[str]`, *optional*): The same for the "no" text encoder.
        negatives (*optional*): What [`~clipn_hf.detector_negatives.read_negatives`] gives.
    """

    labels: list[str]
    templates: Sequence[str] | None = None
    no_templates: Sequence[str] | None = None
    negatives: Asked = None

    def resolve_templates(
        self, encoder: DualEncoder | PrecomputedEncoder, method: Method
    ) -> tuple[list[str], list[str]]:
        """Find the templates for the text encoder and for the "no" text encoder.

        Raises:
            TypeError, ValueError: As [`DualEncoder.label_templates`].
        """
        templates = self.templates
        # Embeddings that were computed before have the templates that they have.
        if templates is None and isinstance(encoder, DualEncoder):
            if isinstance(self.negatives, NegativeLabels) and "negatives" in method.needs:
                # Masses of labels and of negative labels are comparable only if both are worded alike.
                templates = self.negatives.settings.get("templates")
            if templates is None and method.templates:
                find = encoder.ensemble_templates if method.ensemble else encoder.single_template
                templates = find(method.templates)
        return encoder.label_templates(templates, self.no_templates)


@dataclass(frozen=True, eq=False)
class EmbeddedTexts:
    """The texts of a detector, embedded. On the CPU, where float32 means float32.

    Args:
        templates (`list[str]`): What labels are put into.
        no_templates (`list[str]`): The same for the "no" text encoder.
        text (`torch.Tensor` of shape `(classes, dim)`): Embeddings of the labels.
        no_text (`torch.Tensor` of shape `(classes, dim)` or `None`): Those of the "no" text encoder.
        negatives ([`~clipn_hf.negatives.NegativeLabels`] or `None`): The negative labels.
        embed_pairs ([`~clipn_hf.detector_negatives.PairEmbedder`] or `None`): For methods that need a text encoder.
        unknown (`torch.Tensor` of shape `(dim,)` or `None`): That of the "unknown" prompt, for methods that need it.
    """

    templates: list[str]
    no_templates: list[str]
    text: Tensor
    no_text: Tensor | None = None
    negatives: NegativeLabels | None = None
    embed_pairs: PairEmbedder | None = None
    unknown: Tensor | None = None


def embed_texts(
    encoder: DualEncoder | PrecomputedEncoder,
    method: Method,
    settings: Mapping[str, Any],
    wording: Wording,
    templates: tuple[list[str], list[str]] | None = None,
    before: EmbeddedTexts | None = None,
) -> EmbeddedTexts:
    """Embed labels, and make the negative labels that were asked for.

    Args:
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): Embeds them.
        method ([`~clipn_hf.methods.Method`]): Says what it needs of them.
        settings (`Mapping`): All settings of the method.
        wording ([`Wording`]): The texts.
        templates (`tuple[list[str], list[str]]`, *optional*): Those to use; by default those of `wording`.
        before ([`EmbeddedTexts`], *optional*): What the detector had, which may be right still.

    Returns:
        [`EmbeddedTexts`]

    Raises:
        TypeError, ValueError: As [`DualEncoder.class_embeddings`] and
            [`~clipn_hf.detector_negatives.make_bank`]; the encoder cannot serve the method.
    """
    check_served(method, settings, encoder, wording.negatives is not None)
    used, no_used = wording.resolve_templates(encoder, method) if templates is None else templates
    text, no_text = _embed_labels(encoder, wording.labels, used, no_used or None, "no" in method.needs)
    old_bank = None if before is None else before.negatives
    bank = make_bank(encoder, method, wording.labels, used, wording.negatives, old_bank)
    if bank is not None and bank.embeddings.shape[1] != text.shape[1]:
        raise ValueError(
            f"The negative labels have embeddings of width {bank.embeddings.shape[1]}, the labels of width "
            f"{text.shape[1]}; give negative labels that were embedded by {encoder.source}."
        )
    no_text = None if no_text is None else no_text.cpu()
    unknown = None
    if "unknown" in method.needs and isinstance(encoder, DualEncoder):
        assert encoder.learned_prompts is not None
        if used != encoder.learned_prompts.templates:
            raise ValueError(
                f'Method {method.name} compares labels in learned prompts with a learned "unknown" prompt, but '
                f"`templates` put labels into other texts, {used}; leave `templates` out."
            )
        unknown = encoder.unknown_embedding().cpu()
    pairs = embedder_of_pairs(encoder, method, wording, used, bank)
    return EmbeddedTexts(used, no_used, text.cpu(), no_text, bank, pairs, unknown)


def _embed_labels(
    encoder: DualEncoder | PrecomputedEncoder,
    labels: list[str],
    templates: list[str],
    no_templates: list[str] | None,
    use_no_encoder: bool,
) -> tuple[Tensor, Tensor | None]:
    """Embed labels; where that takes long, with a bar, and from what is on disk of earlier times."""
    if isinstance(encoder, DualEncoder) and len(labels) * len(templates) >= _MANY_TEXTS:
        arguments = (labels, templates, no_templates, use_no_encoder)
        if not encoder.remembers_class_embeddings(*arguments):
            found = cached_class_embeddings(encoder, *arguments, progress=True)
            # Copies, because matrix products round differently at the odd addresses of what was read from a file.
            text, no_text = (None if one is None else one.clone() for one in found)
            assert text is not None
            encoder.remember_class_embeddings(labels, text, no_text, templates, no_templates)
    return encoder.class_embeddings(labels, templates, no_templates, use_no_encoder=use_no_encoder)


def embedder_of_pairs(
    encoder: DualEncoder | PrecomputedEncoder,
    method: Method,
    wording: Wording,
    templates: list[str],
    bank: NegativeLabels | None,
) -> PairEmbedder | None:
    """Make what embeds a label and a negative label together, if the method needs that.

    Args:
        encoder, method, wording, templates: As for [`embed_texts`].
        bank ([`~clipn_hf.negatives.NegativeLabels`], *optional*): The negative labels.

    Returns:
        [`~clipn_hf.detector_negatives.PairEmbedder`] or None.
    """
    if "text_encoder" not in method.needs or bank is None or not isinstance(encoder, DualEncoder):
        return None
    return PairEmbedder(encoder, wording.labels, bank.labels, templates)


class DetectorState:
    """Encoder, labels, method and threshold, which may be changed. The class is [`OODDetector`]'s alone.

    Args:
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): Embeds images and texts.
        method ([`~clipn_hf.methods.Method`]): The row of `METHODS`.
        settings (`Mapping`): All settings of the method.
        wording ([`Wording`]): Labels, templates and negative labels.
        threshold (`float`, *optional*): The score above which an image is OOD.
        texts ([`EmbeddedTexts`], *optional*): What the encoder makes of `wording`, if that is known.

    Raises:
        TypeError, ValueError: As [`OODDetector`].
    """

    def __init__(
        self,
        encoder: DualEncoder | PrecomputedEncoder,
        method: Method,
        settings: Mapping[str, Any],
        wording: Wording,
        threshold: float | None = None,
        texts: EmbeddedTexts | None = None,
    ) -> None:
        self._encoder = encoder
        self._method = method
        self._settings = dict(settings)
        self._wording = wording
        self._state: dict[str, Tensor] = {}
        self.fitted_on: dict[str, Any] | None = None
        self._fitted_digests: frozenset[bytes] = frozenset()
        # With what values the method was fitted is not known of these.
        self._unstated_settings: frozenset[str] = frozenset()
        self._weights_sha256: str | None = None
        self._says_once = False
        self._std: tuple[str, Tensor] | None = None
        self.threshold = threshold
        self._texts = embed_texts(encoder, method, self._settings, wording) if texts is None else texts
        if texts is None:
            self._check_groups(self._texts)
        self._warn_of_learned_prompts()
        self._drop_lost_negatives()
        self._embedded_with = self._model_state()

    def _warn_of_learned_prompts(self) -> None:
        """Say on the log, once in a process, that the verdict will come from a rule for other prompts."""
        learned = getattr(self._encoder, "learned_prompts", None)
        decides_by_rule = self.threshold is None and self._method.is_ood is not None and "no" in self._method.needs
        if learned is None or not decides_by_rule or self._texts.templates != learned.templates:
            return
        logger.warning_once(
            f'The threshold-free rule of method {self._method.name} compares labels in learned prompts with "no" '
            "texts that were not learned with them, so that its verdicts may not hold; calibrate the detector with "
            f"images of your labels, or use method {default_method(learned)}, which these prompts were trained for."
        )

    def __repr__(self) -> str:
        name = self.encoder.source or type(getattr(self.encoder, "model", self.encoder)).__name__
        number = "1 label" if len(self.labels) == 1 else f"{len(self.labels)} labels"
        if self.negatives is not None:
            number += f", {len(self.negatives.labels)} negative label{'' if len(self.negatives.labels) == 1 else 's'}"
        in_effect = effective_settings(self.known_settings, None if self.negatives is None else len(self.negatives))
        settings = "".join(f", {name}={value!r}" for name, value in in_effect.items())
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
    def known_settings(self) -> Mapping[str, Any]:
        """Those of `settings` that hold for what the method has learnt.

        All of them, unless the detector was made of a probe that does not tell how it was trained.
        """
        return {name: value for name, value in self.settings.items() if name not in self._unstated_settings}

    @property
    def labels(self) -> list[str]:
        """The known classes. Changing them drops threshold and fitted state, and mines negative labels again."""
        return list(self._wording.labels)

    @labels.setter
    def labels(self, labels: Sequence[str]) -> None:
        self._change_texts(labels=labels)

    @property
    def templates(self) -> list[str]:
        """The texts around labels, and around negative labels that the detector mined itself.

        Changing them drops the threshold, if the method reads texts or each label has a threshold of its own.
        """
        return list(self._texts.templates)

    @templates.setter
    def templates(self, templates: Sequence[str] | None) -> None:
        self._change_texts(templates=templates)

    @property
    def no_templates(self) -> list[str]:
        """The same for the "no" text encoder. Changing them drops the threshold, if the method reads "no" texts."""
        return list(self._texts.no_templates)

    @no_templates.setter
    def no_templates(self, no_templates: Sequence[str] | None) -> None:
        self._change_texts(no_templates=no_templates)

    @property
    def negatives(self) -> NegativeLabels | None:
        """The negative labels; None without any. Assign whatever the class takes for them.

        Changing them drops the threshold of methods that need them. To others they only explain.
        """
        return self._texts.negatives

    @negatives.setter
    def negatives(self, negatives: Any) -> None:
        self._change_texts(negatives=negatives)

    @property
    def encoder(self) -> DualEncoder | PrecomputedEncoder:
        """What embeds images and labels. Assign an encoder, or the id or folder of a model, to change it.

        That drops threshold and fitted state, unless the new one has the same weights, configuration and tokenizer and
        prepares images alike; for methods that do not read texts it is enough that images are embedded alike.
        """
        return self._encoder

    @encoder.setter
    def encoder(self, model: Any) -> None:
        encoder = make_encoder(model)
        if encoder is self._encoder:
            return
        self._follow_model()
        before, texts_before = self._encoder, self._texts
        texts = embed_texts(encoder, self._method, self._settings, self._wording, before=texts_before)
        self._check_groups(texts)
        self._encoder, self._texts = encoder, texts
        self._drop_lost_negatives()
        self._embedded_with = self._model_state()
        if _compute_the_same(before, encoder):
            self._forget_for_texts(texts_before, "encoder")
        elif self._reads_texts or not _embed_images_alike(before, encoder):
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
    def dim(self) -> int:
        """The width of the embeddings."""
        return self._texts.text.shape[1]

    @property
    def threshold(self) -> float | None:
        """The score above which an image is OOD. Setting it ends the promise of a calibration."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float | None) -> None:
        self._threshold = check_threshold(threshold)
        self._calibration: Calibration | None = None
        self._calibration_scores: Tensor | None = None
        self._calibration_labels: Tensor | None = None

    @property
    def judges_images(self) -> bool:
        """Whether the method needs images to judge them, and embeddings will not do."""
        return self.method.judges_images(self.settings)

    def check_judged_by_embeddings(self) -> None:
        """Check that the method can judge images of which there are embeddings alone.

        Raises:
            ValueError: It changes images before it judges them, or looks at their patches.
        """
        has_negatives = self._wording.negatives is not None
        check_judged_by_embeddings(self.method, self.settings, self._encoder, has_negatives)

    @property
    def prepared_width(self) -> int:
        """How many numbers `embed_prepared` gives for an image."""
        return self.dim + self.method.summarizes_patches(self.settings)

    @property
    def calibration(self) -> Calibration | None:
        """Where the threshold comes from and what it promises; None without `calibrate`, or after it was changed."""
        return self._calibration

    @property
    def _reads_texts(self) -> bool:
        """Whether other texts mean another threshold. Which one holds for an image may depend on its nearest label."""
        has_groups = self._calibration is not None and bool(self._calibration.groups)
        return self.method.uses_text or (has_groups and self.method.classify is None)

    def embed_prepared(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed prepared images as the method judges them: changed before, or with what it keeps of their patches.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): As [`DualEncoder.prepare_images`] gives them.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`, float32, unit norm, on the device of the model; for a method that
            reads patches, of shape `(batch, dim + 1)`, with its summary of them in the last column.

        Raises:
            TypeError: The encoder is a [`PrecomputedEncoder`].
            ValueError: The embeddings are not finite, or the method refuses its settings.
        """
        encoder = self.image_encoder
        if self.method.summarizes_patches(self.settings):
            return self.embed_with_patches(inputs, ())[0]
        if self.method.perturb is None:
            return encoder.image_embeddings(inputs)
        settings = self.method.settings_of(self.method.perturb, self.settings)
        parts = []
        # Who judges images may have switched gradients off, in either way.
        with evaluation_mode(encoder), torch.inference_mode(False), torch.enable_grad():
            std = self._pixel_std().to(inputs["pixel_values"].device)
            for start in range(0, len(inputs["pixel_values"]), _IMAGES_PER_GRADIENT):
                # Copies, because what was made in inference mode can have no gradient.
                part = {name: values[start : start + _IMAGES_PER_GRADIENT].clone() for name, values in inputs.items()}
                parts.append(self.method.perturb(part["pixel_values"], self._compare_pixels(part), std, **settings))
            return encoder.image_embeddings({**inputs, "pixel_values": torch.cat(parts).detach()})

    def embed_with_patches(
        self, inputs: Mapping[str, Tensor], paths: Sequence[LocalPath], num_surgery_layers: int | None = None
    ) -> tuple[Tensor, dict[LocalPath, Tensor]]:
        """Embed prepared images as `embed_prepared`, and their patches, in one pass through the image encoder.

        Of methods that change images before they judge them, the patches are those of the images as they are.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): As [`DualEncoder.prepare_images`] gives them.
            paths (`Sequence[str]`): As for [`DualEncoder.embeddings_on_paths`].
            num_surgery_layers (`int`, *optional*): As for [`DualEncoder.embeddings_on_paths`].

        Returns:
            What `embed_prepared` gives, and a `dict` with the embeddings of patches on each path, and maybe on others.

        Raises:
            TypeError, ValueError: As `embed_prepared` and [`DualEncoder.embeddings_on_paths`].
        """
        reads_patches = self.method.summarizes_patches(self.settings)
        needed: dict[LocalPath, None] = dict.fromkeys([*paths, "value"] if reads_patches else paths)
        embeddings, patches = self.image_encoder.embeddings_on_paths(inputs, [*needed], num_surgery_layers)
        if reads_patches:
            summary = self._summarize(patches["value"]).to(embeddings.device)
            embeddings = torch.cat([embeddings, summary[:, None]], dim=1)
        elif self.method.perturb is not None:
            embeddings = self.embed_prepared(inputs)
        return embeddings, patches

    def _summarize(self, patches: Tensor) -> Tensor:
        """What the method keeps `(batch,)` of the embeddings `(batch, patches, dim)` of patches."""
        assert self.method.summarize is not None
        settings = self.method.settings_of(self.method.summarize, self.settings)
        # On the device of the model, because comparing the patches of an image is hundreds of times the work of
        # comparing the image. Float32 means float32 there, too.
        text = self._texts.text.to(patches.device)
        step = max(1, _PATCH_COSINES // (patches.shape[1] * len(text)))
        with torch.autocast(patches.device.type, enabled=False):
            return torch.cat([self.method.summarize(part @ text.T, **settings) for part in patches.split(step)])

    def _compare_pixels(self, inputs: Mapping[str, Tensor]) -> Callable[[Tensor], MethodInputs]:
        """What the method sees of images whose other inputs are these, of their pixel values."""
        encoder = self.image_encoder

        def compare(pixel_values: Tensor) -> MethodInputs:
            embeddings = encoder.differentiable_image_embeddings({**inputs, "pixel_values": pixel_values})
            return self._inputs_of(embeddings.cpu())

        return compare

    def _pixel_std(self) -> Tensor:
        """The standard deviation by which the image processor divides."""
        encoder = self.image_encoder
        settings = settings_digest(image_processor_settings(encoder.processor.image_processor))
        if self._std is None or self._std[0] != settings:
            black, white = encoder.pixel_range()
            self._std = settings, 1 / (white - black)
        return self._std[1]

    def _inputs(self, image_embeddings: Any) -> MethodInputs:
        """What the method sees of images, of which these are embeddings or what `embed_prepared` gave."""
        given = torch.as_tensor(image_embeddings)
        summary = None
        if given.ndim == 2 and given.shape[1] == self.prepared_width > self.dim:
            summary = given[:, self.dim].detach().float().cpu()
            # A copy, because matrix products round differently where rows lie at odd addresses.
            given = given[:, : self.dim].clone()
        return self._inputs_of(check_image_embeddings(given, self.dim), summary)

    def _inputs_of(self, image_embeddings: Tensor, patch_summary: Tensor | None = None) -> MethodInputs:
        """What the method sees of images, whose embeddings were checked; it can be differentiated."""
        texts = self._texts
        needs_negatives = "negatives" in self.method.needs and texts.negatives is not None
        # No gradient goes through what was embedded in inference mode.
        is_outdated = texts.text.is_inference() and not torch.is_inference_mode_enabled()
        inputs = method_inputs(
            image_embeddings,
            texts.text.clone() if is_outdated else texts.text,
            texts.no_text,
            self._encoder.logit_scale,
            self._state,
            texts.negatives.embeddings if needs_negatives and texts.negatives is not None else None,
            texts.embed_pairs,
            self._encoder.logit_bias,
        )
        if patch_summary is not None:
            inputs = replace(inputs, patch_summary=patch_summary)
        if texts.unknown is not None:
            assert inputs.image_embeddings is not None
            inputs = replace(inputs, unknown_similarity=inputs.image_embeddings @ texts.unknown)
        if self.method.classify is None or not self._state:
            return inputs
        return replace(inputs, logits=self.method.classify(inputs))

    def _score(self, inputs: MethodInputs) -> Tensor:
        # In float32, also where the user computes in another dtype.
        with torch.autocast(inputs.similarity.device.type, enabled=False):
            return self.method.score(inputs, **self.method.settings_of(self.method.score, self.settings))

    def _change_texts(self, **changes: Any) -> None:
        """Change `labels`, `templates`, `no_templates` and `negatives`, all together or, on an error, none of them."""
        self._follow_model()
        if "labels" in changes:
            has_negatives = self._wording.negatives is not None
            changes["labels"] = check_labels(
                changes["labels"], self.method, self._settings, self._encoder, has_negatives
            )
            if changes["labels"] == self._wording.labels:
                del changes["labels"]
        if "negatives" in changes:
            changes["negatives"] = read_negatives(changes["negatives"])
        if not changes:
            return
        wording, before = replace(self._wording, **changes), self._texts
        templates = wording.resolve_templates(self._encoder, self.method)
        if {*changes} & {"labels", "negatives"} or templates != (before.templates, before.no_templates):
            texts = embed_texts(self._encoder, self.method, self._settings, wording, templates, before)
            self._check_groups(texts)
            self._texts = texts
        self._wording = wording
        self._drop_lost_negatives()
        if "labels" in changes:
            self._forget("labels", fitted=True, threshold=True)
        self._forget_for_texts(before)

    def _check_groups(self, texts: EmbeddedTexts) -> None:
        """Check before images are judged what depends on the settings and the number of negative labels."""
        check_groups(self._settings, None if texts.negatives is None else len(texts.negatives))

    def _drop_lost_negatives(self) -> None:
        """Ask no more for negative labels that only explained and could not be mined again."""
        if self._texts.negatives is None and self._wording.negatives is not None:
            self._wording = replace(self._wording, negatives=None)

    def _forget_for_texts(self, before: EmbeddedTexts, reason: str | None = None) -> None:
        """Drop the threshold where it depends on templates or negative labels that are others now."""
        after, needs = self._texts, self.method.needs
        matters = {
            "templates": self._reads_texts and after.templates != before.templates,
            "no_templates": "no" in needs and after.no_templates != before.no_templates,
            "negatives": "negatives" in needs and not same_bank(after.negatives, before.negatives),
        }
        changed = next((name for name, is_other in matters.items() if is_other), None)
        if changed is not None:
            # What reads texts may have learnt from them, too.
            fitted = self.method.uses_text and matters["templates"]
            self._forget(reason or changed, fitted=fitted, threshold=True)

    def _forget(self, reason: str, fitted: bool = False, threshold: bool = False) -> None:
        """Drop what no longer holds, and say so."""
        dropped, again = [], []
        if fitted and self.fitted_on is not None:
            dropped.append(f"what it had learnt of {self.fitted_on['images']} images")
            again.append("`fit`")
            self._state, self.fitted_on, self._fitted_digests = {}, None, frozenset()
            self._unstated_settings = frozenset()
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
        texts = self._texts
        if state[0] != before[0]:
            templates = (texts.templates, texts.no_templates)
            self._texts = embed_texts(self._encoder, self.method, self._settings, self._wording, templates, texts)
            self._drop_lost_negatives()
        self._embedded_with = state
        if self._weights_sha256 is not None:
            is_same = model_digest(self._encoder.model) == self._weights_sha256
        else:
            is_same = torch.allclose(texts.text, self._texts.text, atol=1e-5)
        if not is_same or state[1] != before[1]:
            self._forget("model", fitted=True, threshold=True)
            self._weights_sha256 = None


def _compute_the_same(one: DualEncoder | PrecomputedEncoder, other: DualEncoder | PrecomputedEncoder) -> bool:
    """Whether two encoders give the same embeddings of images and texts, but for rounding."""
    names = ("class", "weights_sha256", "config_sha256", "image_processor_sha256", "logit_scale", "logit_bias")
    descriptions = [encoder.describe() for encoder in (one, other)]
    return all(descriptions[0][name] == descriptions[1][name] for name in names)


def _embed_images_alike(one: DualEncoder | PrecomputedEncoder, other: DualEncoder | PrecomputedEncoder) -> bool:
    if not (isinstance(one, DualEncoder) and isinstance(other, DualEncoder)):
        return False
    return same_images(one.model, one.processor.image_processor, other.model, other.processor.image_processor)


__all__ = ["DetectorState", "EmbeddedTexts", "Wording", "embed_texts", "embedder_of_pairs"]
