# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How well a detector withstands adversarial OOD images, with and without defences."""

import contextlib
import logging as python_logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from ..detector import OODDetector
from ..detector_checks import check_every_label, label_positions
from ..detector_images import row_digests
from ..digests import data_digest, image_digest
from ..encoders import DualEncoder
from ..features import Features, extract_features
from ..images import ImageError
from .adversarial import (
    AdversarialImages,
    adversarial_ood,
    check_seed,
    check_settings,
    check_whole,
    deal_targets,
    list_images,
    read_pixels,
    to_pictures,
)
from .defences import DEFENCES, Defence
from .metrics import Interval, auroc, bootstrap_interval, fpr_at_tpr
from .provenance import describe_encoder, list_versions
from .robustness_report import (
    AS_FITTED,
    CLEAN,
    MIN_FOR_INTERVALS,
    UNDEFENDED,
    WITH_TARGETS,
    WITHOUT_TARGETS,
    RobustnessReport,
    RobustnessRow,
    describe_attacks,
    describe_in_words,
    name_model,
)

logger = logging.get_logger(__name__)


def evaluate_robustness(
    detector: OODDetector,
    id_images: Any,
    ood_images: Any,
    targets: Any,
    *,
    fit_images: Any = None,
    fit_labels: Iterable[Any] | None = None,
    target_labels: Iterable[Any] | None = None,
    steps: int = 250,
    lr: float = 1e-3,
    init_std: float = 1e-3,
    smoothness: float | Sequence[float] = (5e3, 0.0),
    defences: str | Sequence[str] = tuple(DEFENCES),
    attacks: AdversarialImages | Sequence[AdversarialImages] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    resamples: int = 1000,
    use_cache: bool = True,
    progress: bool = True,
) -> RobustnessReport:
    """Attack a detector by adversarial OOD images, and measure what it still tells apart.

    The attack is [`~clipn_hf.evaluation.adversarial.adversarial_ood`] on the encoder of the detector. Attacked images
    are judged as they are after being saved with 8 bits per colour. A detector whose method is fitted on images is
    measured as it is and, with `fit_images`, fitted anew: with and without the target images among those. Defences
    work on images at the input size of the encoder; they change all images alike, also those of the new fits.

    Args:
        detector ([`OODDetector`]): With a model for images. It is left as it is.
        id_images:
            Images of the labels, none of which the method is fitted on, or a target. A detector of a probe may not
            know on which images it was trained; then a warning says that this was not checked.
        ood_images: OOD images, which are attacked.
        targets: ID images that they are pulled to, usually those that the method is fitted on, or some of them.
        fit_images (*optional*): ID images to fit the method on anew. Other methods leave them aside.
        fit_labels (`Iterable`, *optional*):
            What each of them shows, as in [`OODDetector.fit`]. With them, a warning says which labels have no image
            without the targets; methods that need labels refuse that.
        target_labels (`Iterable`, *optional*):
            What each target shows. Needed by methods that need labels, for targets that are not among `fit_images`.
        steps, lr, init_std, batch_size, seed, progress: As for the attack.
        smoothness (`float` or `Sequence[float]`, *optional*, defaults to `(5000.0, 0.0)`): One attack for each.
        defences (`str` or `Sequence[str]`, *optional*, defaults to all): Keys of `DEFENCES`.
        attacks ([`~clipn_hf.evaluation.adversarial.AdversarialImages`] or `Sequence` of them, *optional*):
            Attacks on the same image encoder, with the same images and targets in the same order, as made for another
            detector; then `steps`, `lr`, `init_std` and `smoothness` are left aside.
        resamples (`int`, *optional*, defaults to 1000): Draws of the bootstrap for each interval.
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether to read and keep embeddings on disk, of images that are neither attacked nor defended.

    Returns:
        [`RobustnessReport`]: AUROC and shares of images that are taken for known, before and after; without intervals
        where there are fewer than 10 ID or OOD images.

    Raises:
        ImageError: An image cannot be read; the message says which.
        TypeError, ValueError:
            As the attack; the detector has no model for images or was not fitted; an unknown defence; images that are
            both OOD and ID, or both judged and fitted on; labels that are missing or unknown, or without an image;
            attacks on other images or on another image encoder. All of this is found out before the attack.
    """
    if not isinstance(detector, OODDetector):
        raise TypeError(
            f"`detector` must be an OODDetector, got {type(detector).__name__}; load a saved one by "
            "`OODDetector.from_pretrained`."
        )
    encoder, method = detector.image_encoder, detector.method
    resamples, batch_size = check_whole("resamples", resamples), check_whole("batch_size", batch_size)
    names = _list_names(defences)
    attacks = [attacks] if isinstance(attacks, AdversarialImages) else attacks
    weights = _list_numbers(smoothness) if attacks is None else []
    settings = [check_settings(encoder, steps, lr, init_std, weight, seed) for weight in dict.fromkeys(weights)]
    if attacks is None and not settings:
        raise ValueError("There is no attack; give at least one `smoothness`, such as 5000 or 0.")
    seed = check_seed(seed)
    refits = method.fit is not None and fit_images is not None
    if not refits:
        detector.check_fitted()
    known, ood = list_images("id_images", id_images), list_images("ood_images", ood_images)
    aims = list_images("targets", targets)
    known_digests, ood_digests, aim_digests = (
        _digests(word, images) for word, images in (("ID image", known), ("OOD image", ood), ("target", aims))
    )
    _check_apart("ood_images", ood_digests, "id_images", known_digests)
    _check_apart("ood_images", ood_digests, "targets", aim_digests)
    positions = None if target_labels is None else label_positions(target_labels, detector.labels)
    if positions is not None and len(positions) != len(aims):
        raise ValueError(f"`target_labels` must be one per target, got {len(positions)} for {len(aims)} targets.")
    if attacks is None:
        used = sorted({*deal_targets(len(ood), len(aims), seed).tolist()})
    else:
        _check_names(attacks)
        _check_attacks(attacks, ood, aims, encoder)
        used = sorted({int(row) for attack in attacks for row in attack.target_rows})
    used_digests = [aim_digests[row] for row in used]
    _check_apart("id_images", known_digests, "targets", used_digests)
    embed = _Embedder(encoder, batch_size, use_cache, progress)
    undefended = embed.view(known, UNDEFENDED, is_kept=True)
    is_fitted = method.fit is not None and detector.fitted_on is not None
    if is_fitted:
        seen = _count_fitted(detector, undefended.features)
        if seen:
            raise ValueError(
                f"`id_images` has {seen} of {len(known)} images that the method was fitted on, whose scores are not "
                "those of new images; give others."
            )
        if seen is None:
            logger.warning(
                "The detector does not say which images it was fitted on, so that nobody can tell whether some of "
                "them are among the ID images or the targets; make sure that none is among the ID images."
            )
    if min(len(known), len(ood)) < MIN_FOR_INTERVALS:
        logger.warning(
            f"With {len(known)} ID and {len(ood)} OOD images there are no intervals, which would be made of too few; "
            f"give at least {MIN_FOR_INTERVALS} of each."
        )

    views = [UNDEFENDED, *dict.fromkeys(names)]
    fits: dict[str | None, dict[str, OODDetector]] = {}
    counts: dict[str, int | None] = {"ID": len(known), "OOD": len(ood), "targets": len(used)}
    kinds = {"ID": known_digests, "OOD": ood_digests, "targets": used_digests}
    if method.fit is None:
        fits[None] = dict.fromkeys(views, detector)
    elif is_fitted:
        fits[AS_FITTED] = dict.fromkeys(views, detector)
        counts["targets that the detector was fitted on"] = _count_fitted(
            detector, embed.embed([aims[row] for row in used], is_kept=True)
        )
    if refits:
        positions = None if positions is None else [positions[row] for row in used]
        material = _Material(embed, detector, fit_images, fit_labels)
        _check_apart("id_images", known_digests, "fit_images", material.digests)
        _check_apart("ood_images", ood_digests, "fit_images", material.digests)
        kinds["to fit on"] = list(material.digests)
        material.add([aims[row] for row in used], kinds["targets"], positions)
        material.check()
        counts |= {"to fit on": len(material.digests), "targets among these": material.num_shared}
        counts |= {"fitted on with targets": material.count(True), "fitted on without": material.count(False)}
        # Before the attack, so that what cannot be fitted costs no time.
        with saying_once():
            fits[WITH_TARGETS] = {view: material.fit(view, with_targets=True) for view in views}
            fits[WITHOUT_TARGETS] = {view: material.fit(view, with_targets=False) for view in views}
    if attacks is None:
        with saying_once():
            attacks = [
                adversarial_ood(ood, aims, encoder, batch_size=batch_size, progress=progress, **each)
                for each in settings
            ]

    sets = {CLEAN: ood, **{attack.name: attack.to_pil() for attack in attacks}}
    judged: dict[tuple[str | None, str], list[RobustnessRow]] = {}
    for view in views:
        id_view = undefended if view == UNDEFENDED else embed.view(known, view, is_kept=False)
        ood_views = {
            name: embed.view(each, view, is_kept=(view, name) == (UNDEFENDED, CLEAN)) for name, each in sets.items()
        }
        for bank, detectors in fits.items():
            id_scores = id_view.score(detectors[view])
            judged[bank, view] = [
                _measure(name, bank, view, id_scores, ood_view, detectors[view], resamples, seed)
                for name, ood_view in ood_views.items()
            ]
    return RobustnessReport(
        describe_detector(detector),
        counts,
        {kind: data_digest(digests) for kind, digests in kinds.items()},
        list(attacks),
        [row for bank in fits for view in views for row in judged[bank, view]],
        {"resamples": resamples, "confidence": 0.95, "seed": seed},
        list_versions(),
    )


@contextlib.contextmanager
def saying_once() -> Iterator[None]:
    """Let warnings of this package through once, where several fits or attacks would repeat each."""
    said: set[str] = set()

    def is_new(record: python_logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno < python_logging.WARNING or message not in said:
            said.add(message)
            return True
        return False

    package = __name__.split(".")[0]
    loggers = [
        each
        for name, each in list(python_logging.root.manager.loggerDict.items())
        if isinstance(each, python_logging.Logger) and f"{name}.".startswith(f"{package}.")
    ]
    for each in loggers:
        each.addFilter(is_new)
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield
    finally:
        for each in loggers:
            each.removeFilter(is_new)
    for warning in {(one.category, str(one.message)): one for one in found}.values():
        # At the line that called what entered this.
        warnings.warn(warning.message, warning.category, stacklevel=4)


def describe_detector(detector: OODDetector) -> dict[str, Any]:
    """Say for records which detector was measured.

    Args:
        detector ([`OODDetector`]): With a model for images.

    Returns:
        `dict`: Of what JSON knows: `"method"`, `"settings"`, `"labels"`, `"templates"`, `"no_templates"`,
        `"negatives"`, `"threshold"`, `"fitted_on"`, and the `"model"` with its revision, dtype and digests.
    """
    negatives = detector.negatives
    return {
        "method": detector.method.name,
        # Settings may be numbers of numpy.
        "settings": {
            name: value.item() if hasattr(value, "item") else value for name, value in detector.known_settings.items()
        },
        "labels": list(detector.labels),
        "templates": detector.templates,
        "no_templates": detector.no_templates if "no" in detector.method.needs else None,
        "negatives": None if negatives is None else negatives.describe(),
        "threshold": detector.threshold,
        "fitted_on": detector.fitted_on,
        "model": describe_encoder(detector.image_encoder),
    }


class _Pictures(Sequence[Any]):
    """Images at the input size of an encoder, after a defence; each is made when it is asked for."""

    def __init__(
        self, images: Sequence[Any], encoder: DualEncoder, apply: Callable[[Image.Image], Image.Image]
    ) -> None:
        self._images, self._encoder, self._apply = images, encoder, apply

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        colours, _ = read_pixels([self._images[index]], self._encoder, positions=[index])
        return self._apply(to_pictures(colours)[0])


class _View:
    """Images as one defence leaves them, embedded once for all detectors that compare embeddings."""

    def __init__(self, images: Sequence[Any], embed: "_Embedder", is_kept: bool) -> None:
        self._images, self._embed, self._is_kept = images, embed, is_kept
        self._features: Features | None = None

    @property
    def features(self) -> Features:
        if self._features is None:
            self._features = self._embed.embed(self._images, self._is_kept)
        return self._features

    def score(self, detector: OODDetector) -> npt.NDArray[np.float32]:
        # Methods that change pixels or read patches judge images alone.
        judged = self._images if detector.judges_images else self.features.embeddings
        return detector.score(judged, self._embed.batch_size).numpy()

    def share_known(self, detector: OODDetector) -> float | None:
        if detector.threshold is None and detector.method.is_ood is None:
            return None
        if not detector.judges_images:
            results = detector.results(self.features.embeddings, top_k=1, top_negatives=0)
        else:
            results = detector(self._images, top_k=1, batch_size=self._embed.batch_size, top_negatives=0)
        return float(np.mean([result["verdict"] == "known" for result in results]))


class _Embedder:
    """Embeds images as they are, or after a defence."""

    def __init__(self, encoder: DualEncoder, batch_size: int, use_cache: bool, progress: bool) -> None:
        self._encoder, self.batch_size, self._use_cache, self._progress = encoder, batch_size, use_cache, progress

    def view(self, images: Sequence[Any], defence: str, is_kept: bool) -> _View:
        if defence != UNDEFENDED:
            images = _Pictures(images, self._encoder, DEFENCES[defence].apply)
        return _View(images, self, is_kept)

    def embed(self, images: Sequence[Any], is_kept: bool, labels: Sequence[int] | None = None) -> Features:
        return extract_features(
            images,
            self._encoder,
            labels=labels,
            batch_size=self.batch_size,
            use_cache=self._use_cache and is_kept,
            progress=self._progress,
        )


class _Material:
    """What detectors are fitted on anew: images, and the targets that are not among them."""

    def __init__(
        self, embed: _Embedder, detector: OODDetector, fit_images: Any, fit_labels: Iterable[Any] | None
    ) -> None:
        self._embed, self._detector = embed, detector
        listed = list_images("fit_images", fit_images)
        self._labels = None if fit_labels is None else label_positions(fit_labels, detector.labels)
        if self._labels is None and "training_labels" in detector.method.needs:
            raise ValueError(
                f"Method {detector.method.name} needs the labels of `fit_images`; pass them as `fit_labels`."
            )
        if self._labels is not None and len(self._labels) != len(listed):
            raise ValueError(
                f"`fit_labels` must be one per image, got {len(self._labels)} for {len(listed)} `fit_images`."
            )
        features = embed.embed(listed, is_kept=True, labels=self._labels)
        self._images: list[Any] = [listed[row] for row in features.rows.tolist()]
        self._labels = features.labels
        self._own_labels = features.labels
        self.digests = [bytes.fromhex(digest) for digest in features.digests]
        self._is_target = [False] * len(self._images)
        self._embeddings: dict[str, Tensor] = {UNDEFENDED: features.embeddings}
        self.num_shared = 0

    def add(self, targets: Sequence[Any], digests: Sequence[bytes], labels: Sequence[int] | None) -> None:
        """Add the targets that are not there yet."""
        self._is_target = [digest in {*digests} for digest in self.digests]
        present = {*self.digests}
        self.num_shared = len(present & {*digests})
        absent = {digest: row for row, digest in enumerate(digests) if digest not in present}
        if not absent:
            return
        added = [targets[row] for row in absent.values()]
        if self._labels is not None:
            if labels is None and "training_labels" in self._detector.method.needs:
                raise ValueError(
                    f"{len(absent)} of {len(targets)} targets are not among `fit_images`, and method "
                    f"{self._detector.method.name} needs their labels; pass them as `target_labels`."
                )
            self._labels = None if labels is None else [*self._labels, *(labels[row] for row in absent.values())]
        self._images += added
        self._is_target += [True] * len(added)
        own = self._embed.embed(added, is_kept=True).embeddings
        self._embeddings[UNDEFENDED] = torch.cat((self._embeddings[UNDEFENDED], own))

    def count(self, with_targets: bool) -> int:
        """Count what is fitted on."""
        return sum(with_targets or not is_target for is_target in self._is_target)

    def check(self) -> None:
        """Check that enough is left without the targets."""
        if not self.count(False):
            raise ValueError(
                "All of `fit_images` are targets, so that there is nothing to fit without them; give more images, or "
                "fewer targets."
            )
        if self._own_labels is None:
            return
        labels = self._detector.labels
        # What was added comes after the own images, and consists of targets.
        own = zip(self._own_labels, self._is_target, strict=False)
        left = {labels[label] for label, is_target in own if not is_target}
        before = [label for label in labels if label in {labels[row] for row in self._own_labels}]
        if "training_labels" in self._detector.method.needs:
            present = before if self._labels is None else [labels[row] for row in self._labels]
            check_every_label("`fit_images` has no image of", present, labels, "give images of each label")
            check_every_label(
                "Without the targets, `fit_images` has no image of",
                left,
                labels,
                "give targets of several labels, or fewer of them",
            )
        elif lost := [label for label in before if label not in left]:
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            logger.warning(
                f"Without the targets, `fit_images` has no image of {', '.join(map(repr, lost[:3]))}{more}, so that "
                "what is fitted without them misses more than the targets; give targets of several labels, or fewer "
                "of them."
            )

    def fit(self, defence: str, with_targets: bool) -> OODDetector:
        """Fit a copy of the detector on images as a defence leaves them."""
        if defence not in self._embeddings:
            self._embeddings[defence] = self._embed.view(self._images, defence, is_kept=False).features.embeddings
        kept = [row for row, is_target in enumerate(self._is_target) if with_targets or not is_target]
        labels = None if self._labels is None else [self._labels[row] for row in kept]
        # A threshold of other scores would be dropped with a warning.
        copy = self._detector.with_changes(threshold=None)
        return copy.fit(self._embeddings[defence][kept], labels)


def _measure(
    attack: str,
    bank: str | None,
    defence: str,
    id_scores: npt.NDArray[np.float32],
    view: _View,
    detector: OODDetector,
    resamples: int,
    seed: int,
) -> RobustnessRow:
    scores = view.score(detector)

    def estimate(metric: Callable[..., float]) -> Interval:
        if min(len(id_scores), len(scores)) < MIN_FOR_INTERVALS:
            return Interval(metric(id_scores, scores), math.nan, math.nan)
        return bootstrap_interval(metric, id_scores, scores, resamples=resamples, seed=seed)

    called_known = view.share_known(detector)
    return RobustnessRow(attack, bank, defence, estimate(auroc), estimate(fpr_at_tpr), called_known, id_scores, scores)


def _list_names(defences: Any) -> list[str]:
    if isinstance(defences, str):
        defences = [defences]
    if defences is None or not isinstance(defences, Iterable):
        raise TypeError(f"`defences` must be names of defences, got {defences!r}; give [] for none.")
    names = list(defences)
    for name in names:
        if name not in DEFENCES:
            raise ValueError(f"`defences` must be some of {', '.join(DEFENCES)}, got {name!r}.")
    return names


def _list_numbers(smoothness: Any) -> list[Any]:
    if isinstance(smoothness, Real | str):
        return [smoothness]
    if not isinstance(smoothness, Iterable):
        raise TypeError(
            f"`smoothness` must be a number or several, got {smoothness!r}; give such as 5000 or [5000, 0]."
        )
    return list(smoothness)


def _digests(word: str, images: Sequence[Any]) -> list[bytes]:
    """Compute the digests of images, whose errors say which image it is."""
    digests = []
    for index, image in enumerate(images):
        try:
            digests.append(image_digest(image)[0])
        except ImageError as error:
            raise ImageError(f"{word} {index} ({error.source})", error.reason) from error
        except TypeError as error:
            raise TypeError(f"Cannot read {word} {index}: {error}") from error
    return digests


def _check_apart(name: str, digests: Sequence[bytes], other: str, other_digests: Sequence[bytes]) -> None:
    if shared := len({*digests} & {*other_digests}):
        raise ValueError(
            f"`{name}` has {shared} of {len(digests)} images that are among `{other}`, too; give each image once."
        )


def _count_fitted(detector: OODDetector, features: Features) -> int | None:
    """Count the images that a detector was fitted on, by their files or their embeddings; None if it cannot say."""
    if not detector.knows_fitted_images:
        return None
    both = zip(map(bytes.fromhex, features.digests), row_digests(features.embeddings), strict=True)
    return sum(detector.count_fitted(pair) > 0 for pair in both)


def _check_names(attacks: Sequence[AdversarialImages]) -> None:
    if not attacks:
        raise ValueError("`attacks` is empty; give at least one, or leave it out.")
    for attack in attacks:
        if not isinstance(attack, AdversarialImages):
            raise TypeError(f"`attacks` must be results of `adversarial_ood`, got {type(attack).__name__}.")
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"`attacks` must differ in `smoothness`, got {', '.join(names)}.")


def _check_attacks(
    attacks: Sequence[AdversarialImages], images: Sequence[Any], targets: Sequence[Any], encoder: DualEncoder
) -> None:
    """Check that attacks were made with an encoder, on images and targets, by what the encoder sees of these."""
    own = encoder.describe_images()
    for attack in attacks:
        if any(attack.encoder[name] != own[name] for name in ("sha256", "image_processor_sha256")):
            raise ValueError(
                f"`attacks` must be on the image encoder of the detector, {own['id']}, but {attack.name} is on "
                f"another one, {attack.encoder['id']}; attack again with `detector.image_encoder`."
            )
        if len(attack) != len(images) or int(attack.target_rows.max()) >= len(targets):
            raise ValueError(
                f"`attacks` must be of `ood_images` and `targets`, {len(images)} and {len(targets)} in number, but "
                f"{attack.name} has {len(attack)} images and a target at position {int(attack.target_rows.max())}."
            )
        origins = [
            *(("ood_images", "image", images, row) for row in range(len(images))),
            *(("targets", "target", targets, row) for row in attack.target_rows.tolist()),
        ]
        for (name, word, given, row), before in zip(origins, [*attack.originals, *attack.targets], strict=True):
            colours = read_pixels([given[row]], encoder, word, [row])[0][0]
            # Another version of what decodes images may round otherwise.
            if before.shape != colours.shape or float((before - colours).abs().max()) > 2.5 / 255:
                raise ValueError(
                    f"`attacks` must be of `{name}` in their order, but {attack.name} has another image in place of "
                    f"number {row}; attack again, or give the images that were attacked."
                )


__all__ = [
    "AS_FITTED",
    "CLEAN",
    "DEFENCES",
    "UNDEFENDED",
    "WITHOUT_TARGETS",
    "WITH_TARGETS",
    "Defence",
    "RobustnessReport",
    "RobustnessRow",
    "describe_attacks",
    "describe_detector",
    "describe_in_words",
    "evaluate_robustness",
    "name_model",
    "saying_once",
]
