# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector says about an image."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from torch import Tensor

TOP_K = 5
TOP_NEGATIVES = 3

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
        negatives (`list` of `LabelScore`):
            The `top_negatives` negative labels that the image looks most like, with their softmax probability among
            all labels and negative labels, most probable first; empty for a detector without negative labels.
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
    negatives: list[LabelScore]


def named_scores(names: Sequence[str], positions: Tensor, scores: Tensor) -> list[list[LabelScore]]:
    """Put names to the scores of each image.

    Args:
        names (`Sequence[str]`): All labels.
        positions (`torch.Tensor` of shape `(images, listed)`): Which of them are listed for each image, int64.
        scores (`torch.Tensor` of shape `(images, listed)`): Their scores.

    Returns:
        `list` of `list` of [`LabelScore`], one per image.
    """
    return [
        [LabelScore(label=names[position], score=score) for position, score in zip(*row, strict=True)]
        for row in zip(positions.tolist(), scores.tolist(), strict=True)
    ]


__all__ = ["TOP_K", "TOP_NEGATIVES", "LabelScore", "OODResult", "VerdictWord", "named_scores"]
