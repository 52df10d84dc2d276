# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what a zero-shot classifier takes images for, in place of labels that nobody gave.

PLP: Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models for Out-of-Distribution
Detection", TMLR 2024, https://arxiv.org/abs/2303.05828, code https://github.com/HHU-MMBS/plp-official-tmlr2024.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..scores import msp
from ..scores._checks import check_share


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """What a zero-shot classifier takes images for, and how sure it is.

    Args:
        labels (`torch.Tensor` of shape `(images,)`): The most probable class of each image, int64.
        confidence (`torch.Tensor` of shape `(images,)`):
            Its probability, float32, in [1/classes, 1]; higher = more certain.
        kept (`torch.Tensor` of shape `(images,)`): Whether the confidence is high enough, bool.
        num_classes (`int`): How many classes there are.
        min_confidence (`float`, *optional*): What was asked for; None if all images are kept.
    """

    labels: Tensor
    confidence: Tensor
    kept: Tensor
    num_classes: int
    min_confidence: float | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> list[int]:
        """The number of images of each class."""
        return self.labels.bincount(minlength=self.num_classes).tolist()

    @property
    def kept_counts(self) -> list[int]:
        """The number of kept images of each class."""
        return self.labels[self.kept].bincount(minlength=self.num_classes).tolist()

    @property
    def empty_classes(self) -> list[int]:
        """The classes of which no image is kept."""
        return [label for label, count in enumerate(self.kept_counts) if count == 0]

    @property
    def share_kept(self) -> float:
        """The share of the images that are kept, in (0, 1]."""
        return self.kept.double().mean().item()

    @property
    def balance(self) -> float:
        """The entropy of the shares of the classes among the kept images over its maximum; 1 = all are alike."""
        shares = torch.tensor(self.kept_counts).double()
        shares = shares[shares > 0] / shares.sum()
        return max(0.0, -(shares * shares.log()).sum().item() / math.log(self.num_classes))

    def describe(self) -> dict[str, Any]:
        """Report the balance of the classes before and after the filter.

        Returns:
            `dict`: Of what JSON knows: `"images"`, `"kept"`, `"share_kept"`, `"min_confidence"`, `"counts"`,
            `"kept_counts"`, `"empty_classes"`, `"balance"` and `"mean_confidence"`.
        """
        return {
            "images": len(self),
            "kept": int(self.kept.sum()),
            "share_kept": self.share_kept,
            "min_confidence": self.min_confidence,
            "counts": self.counts,
            "kept_counts": self.kept_counts,
            "empty_classes": self.empty_classes,
            "balance": self.balance,
            "mean_confidence": self.confidence.double().mean().item(),
        }


def pseudo_label(logits: Tensor | Iterable[Tensor], min_confidence: float | None = 0.9) -> PseudoLabels:
    r"""Label images by their most probable text, and keep those of which the classifier is sure.

    The label of an image is \\( \arg\max_j a_j \\), its confidence \\( \max_j \operatorname{softmax}_j(a) \\). The
    paper keeps images with a confidence of 0.9 or more, which is the default; the published code keeps all, which
    `None` does. Of a class that the filter leaves empty, a probe learns no more than that nothing shows it.

    Args:
        logits (`torch.Tensor` of shape `(images, classes)`, or `Iterable` of these):
            Cosines with the class texts times the logit scale, plus the logit bias of models that have one; whole, or
            part by part, which needs less memory.
        min_confidence (`float`, *optional*, defaults to 0.9): The lowest confidence that is kept; None keeps all.

    Returns:
        [`PseudoLabels`]: On the CPU.

    Raises:
        TypeError: `logits` are not tensors, or `min_confidence` is not a number.
        ValueError:
            `min_confidence` is not in [0, 1], no image is that certain, there are no images, fewer than two classes,
            parts with different numbers of classes, or values that are not finite.

    Source: Adaloglou et al. 2024, section 3.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.probing import pseudo_label
    >>> found = pseudo_label(torch.tensor([[9.0, 1.0, 0.0], [0.0, 5.0, 4.0], [0.0, 1.0, 6.0]]))
    >>> found.labels.tolist(), found.kept.tolist(), found.empty_classes
    ([0, 1, 2], [True, False, True], [1])

    ```
    """
    if min_confidence is not None:
        check_share(min_confidence, "min_confidence")
    parts = [logits] if isinstance(logits, Tensor) else logits
    labels: list[Tensor] = []
    confidences: list[Tensor] = []
    classes: set[int] = set()
    for part in parts:
        uncertainty = msp(part).detach()
        labels.append(part.argmax(dim=1).cpu())
        confidences.append(1 - uncertainty.cpu())
        classes.add(part.shape[1])
    if len(classes) > 1:
        raise ValueError(f"The parts of `logits` must have the same classes, got {sorted(classes)} of them.")
    if not classes or sum(map(len, labels)) == 0:
        raise ValueError("`logits` has 0 images, but at least 1 is needed; give more.")
    confidence = torch.cat(confidences)
    kept = torch.ones_like(confidence, dtype=torch.bool) if min_confidence is None else confidence >= min_confidence
    if not kept.any():
        images = "The only image has no" if len(kept) == 1 else f"None of the {len(kept)} images has a"
        raise ValueError(
            f"{images} pseudo-label with a confidence of {min_confidence} or more, the highest one is "
            f"{confidence.max():.8g}; lower `min_confidence`, or set it to None to keep all images."
        )
    return PseudoLabels(torch.cat(labels), confidence, kept, classes.pop(), min_confidence)


def record_pseudo_labels(
    counts: Sequence[int],
    kept_counts: Sequence[int],
    min_confidence: float | None,
    labels: Sequence[str],
    templates: Sequence[str],
) -> dict[str, Any]:
    """Record how a probe came by its pseudo-labels, for `fitted_on` of detectors and `trained_on` of probes.

    Args:
        counts (`Sequence[int]`): The number of images of each class, before the filter.
        kept_counts (`Sequence[int]`): The number of those that are kept.
        min_confidence (`float`, *optional*): The lowest confidence that was kept; None if all were.
        labels (`Sequence[str]`): The names of the classes.
        templates (`Sequence[str]`): Those of the texts that the images were compared with.

    Returns:
        `dict`: Of what JSON knows: `"min_confidence"`, `"templates"`, `"kept"`, `"of"`, and under `"fewest"` and
        `"most"` the `"label"` and the number of `"images"` of the class with the fewest and the most kept images.
    """
    extremes = {"fewest": min(kept_counts), "most": max(kept_counts)}
    return {
        "min_confidence": min_confidence,
        "templates": [*templates],
        "kept": sum(kept_counts),
        "of": sum(counts),
        **{word: {"label": labels[[*kept_counts].index(count)], "images": count} for word, count in extremes.items()},
    }


__all__ = ["PseudoLabels", "pseudo_label", "record_pseudo_labels"]
