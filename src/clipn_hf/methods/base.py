# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detection method is made of."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

Need = Literal["global", "no"]

NEEDS: Mapping[Need, str] = MappingProxyType(
    {
        "global": "a model with `get_image_features` and `get_text_features`",
        "no": 'a CLIPN model with a "no" text encoder',
    }
)


@dataclass(frozen=True)
class MethodInputs:
    """Everything a method may look at: one batch of images against one set of labels, float32.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`): Cosines between images and class texts, in [-1, 1].
        logits (`torch.Tensor` of shape `(batch, classes)`): The cosines times `logit_scale.exp()`.
        no_logits (`torch.Tensor` of shape `(batch, classes)`, *optional*):
            The same for the "no" texts; None unless the method needs them.
    """

    similarity: Tensor
    logits: Tensor
    no_logits: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """One way to tell known from unknown: a row of `METHODS`.

    Args:
        name (`str`): What users call it by.
        title (`str`): Its name in full.
        reference (`str`): The arXiv id of its paper.
        needs (`frozenset` of `"global"`, `"no"`): What the model must provide, see `NEEDS`.
        score (`Callable`):
            `(inputs, **settings)` to OOD-ness of shape `(batch,)`, float32, higher = more OOD. Its parameters after
            the first, with their defaults, are the settings of the method.
        is_ood (`Callable`, *optional*):
            The threshold-free decision, `(inputs)` to bool of shape `(batch,)`; None where only a threshold decides.
        min_labels (`int`, *optional*, defaults to 1): With fewer labels the score has no meaning.
    """

    name: str
    title: str
    reference: str
    needs: frozenset[Need]
    score: Callable[..., Tensor]
    is_ood: Callable[[MethodInputs], Tensor] | None = None
    min_labels: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `score` with their defaults."""
        parameters = list(inspect.signature(self.score).parameters.values())
        return {parameter.name: parameter.default for parameter in parameters[1:]}

    def resolve_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults, overridden by `settings`.

        Raises:
            TypeError: A setting that the method does not have.
        """
        defaults = self.settings
        unknown = sorted(set(settings) - set(defaults))
        if unknown:
            has = f"has {', '.join(defaults)}" if defaults else "has none"
            raise TypeError(f"method {self.name} got the unknown setting {', '.join(unknown)}; it {has}")
        return {**defaults, **settings}
