# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What [`OODDetector.from_probe`] makes of a linear probe: the method, its settings, and what it has learnt."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .detector_checks import label_positions
from .detector_images import embed_to_learn, row_digests
from .detector_state import DetectorState
from .digests import data_digest
from .features import Features
from .methods import get_method
from .methods.linear_probe import SCORE_SETTINGS, probe_state
from .probing import LinearProbe

# Entries of `fitted_on`.
_FITTED_ON = ("images", "labelled", "date", "sha256")
# Further ones, of a probe that was trained otherwise than `fit` trains it.
_HOW_FITTED = ("pseudo_labels", "finetuning")
# Of a probe that was trained until it no longer got better on images that were held out, as `fitted_on` calls it.
_HELD_OUT = {"best_epoch": "best_epoch", "loss": "validation_loss", "accuracy": "validation_accuracy"}


def read_probe(probe: Any) -> LinearProbe:
    """Load a probe, if it is not at hand.

    Raises:
        TypeError: It is something else.
        OSError: There is none.
    """
    if isinstance(probe, str | os.PathLike):
        probe = LinearProbe.from_pretrained(probe)
    if not isinstance(probe, LinearProbe):
        got = type(probe).__name__
        raise TypeError(f"`probe` must be a LinearProbe, or the folder or Hub id of one, got {got}.")
    return probe


def arguments_of_probe(
    probe: LinearProbe, settings: Mapping[str, Any], templates: Sequence[str] | None, has_images: bool
) -> tuple[str, dict[str, Any], Sequence[str] | None]:
    """Find the method of a probe, and its settings and templates.

    Args:
        probe ([`~clipn_hf.probing.LinearProbe`]): The probe.
        settings (`Mapping`): Those that scoring has, as they were given.
        templates (`Sequence[str]`, *optional*): As they were given.
        has_images (`bool`): Whether the images that it was trained on are given, too.

    Returns:
        The name of the method, all its settings, and the templates: those of pseudo-labels, else as they were given.

    Raises:
        TypeError: There is no such setting, or it is one of the training.
        ValueError: As [`OODDetector.from_probe`].
    """
    trained_on = probe.trained_on or {}
    pseudo = trained_on.get("pseudo_labels")
    method = get_method("linear_probe" if pseudo is None else "plp")
    for name in settings:
        if name in method.settings and name not in SCORE_SETTINGS:
            raise TypeError(f"`{name}` is for training; the probe is trained already. Leave it out, or use `fit`.")
    resolved = method.resolve_settings(settings, ("id_images", "id_labels", "templates", "device", "dtype"))
    if resolved["score"] == "relative_mahalanobis" and not has_images:
        raise ValueError(
            'The score "relative_mahalanobis" needs the logits of the training images, which a probe does not have; '
            "give these images as `id_images`."
        )
    probe.check()
    if probe.labels is None:
        raise ValueError("The probe has no names of its classes; set `probe.labels`, a list of texts.")
    lacking = [name for name in _FITTED_ON if name not in trained_on]
    if lacking:
        raise ValueError(
            f"The probe does not say on what it was trained: `probe.trained_on` lacks {', '.join(lacking)}. Train it "
            "by `train_linear_probe`, or set them."
        )
    if pseudo is not None:
        if templates is not None and [*templates] != pseudo["templates"]:
            raise ValueError(
                f"`templates` must be those of the pseudo-labels of the probe, {pseudo['templates']}, got "
                f"{[*templates]}; leave them out."
            )
        templates = pseudo["templates"]
    return method.name, {**resolved, **_told_settings(probe)}, templates


def _told_settings(probe: LinearProbe) -> dict[str, Any]:
    """Those settings of its method that a probe tells it was trained with."""
    told = dict(probe.trained_on or {})
    pseudo = told.get("pseudo_labels")
    if pseudo is not None:
        told["min_confidence"] = pseudo["min_confidence"]
    method = get_method("linear_probe" if pseudo is None else "plp")
    return {name: told[name] for name in method.settings if name in told}


def state_of_probe(
    detector: DetectorState, probe: LinearProbe
) -> tuple[dict[str, Tensor], dict[str, Any], frozenset[str]]:
    """Find what a detector has learnt whose classifier is a probe.

    Args:
        detector ([`OODDetector`]): Made with what `arguments_of_probe` found.
        probe ([`~clipn_hf.probing.LinearProbe`]): The probe.

    Returns:
        What fitting the method would have given, what the detector is to have as `fitted_on`, and the names of the
        settings of which nobody knows with what values the probe was trained.

    Raises:
        ValueError: The probe is for embeddings of another width.
    """
    if detector.dim != probe.dim:
        raise ValueError(
            f"The probe is for embeddings of width {probe.dim}, those of the model have width {detector.dim}; give "
            "the model that it was trained with."
        )
    trained_on = probe.trained_on or {}
    fitted_on = {name: trained_on[name] for name in (*_FITTED_ON, *_HOW_FITTED) if name in trained_on}
    if all(name in trained_on for name in _HELD_OUT.values()):
        fitted_on["held_out"] = {name: trained_on[own] for name, own in _HELD_OUT.items()}
    unstated = frozenset(detector.method.settings) - {*_told_settings(probe), *SCORE_SETTINGS}
    return probe_state(probe), fitted_on, unstated


def learn_training_images(
    detector: DetectorState, id_images: Any, id_labels: Iterable[Any] | None
) -> tuple[frozenset[bytes], Tensor, list[int]]:
    """Take from the images that a probe was trained on what is not in the probe.

    Args:
        detector ([`OODDetector`]): With `fitted_on` of the probe.
        id_images: As for [`OODDetector.fit`].
        id_labels (`Iterable`, *optional*): As for [`OODDetector.fit`].

    Returns:
        The digests of the images and of their embeddings, the embeddings `(images, dim)`, and the position of the
        label of each.

    Raises:
        TypeError, ValueError: As [`OODDetector.fit`]; they are not the images that the probe was trained on.
    """
    assert detector.fitted_on is not None
    if id_labels is None and isinstance(id_images, Features):
        id_labels = id_images.labels
    if id_labels is None:
        raise ValueError("`id_images` need the labels that the probe was trained with; give them as `id_labels`.")
    labels = detector.labels
    positions = label_positions(id_labels, labels)
    embeddings, digests, known = embed_to_learn(detector, id_images, positions, 32, True)
    assert known is not None
    # It may have been trained on mere embeddings of the same images.
    of_rows = row_digests(embeddings)
    found = {data_digest(each, [labels[row] for row in known]) for each in (digests, of_rows)}
    if detector.fitted_on["sha256"] not in found:
        raise ValueError(
            f"`id_images` are not the {detector.fitted_on['images']} images that the probe was trained on, or "
            "`id_labels` are not what it was trained to take them for, by their digest; give the same as for the "
            "training, or leave them out."
        )
    return frozenset([*digests, *of_rows]), embeddings, known


__all__ = ["arguments_of_probe", "learn_training_images", "read_probe", "state_of_probe"]
