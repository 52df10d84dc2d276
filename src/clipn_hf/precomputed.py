# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Text embeddings that were computed before, in place of a model."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .prompts import validate_labels, validate_templates


class PrecomputedEncoder:
    """Text embeddings that were computed before, in place of a model, for image embeddings from the same one.

    A detector made with it judges embeddings, not images.

    Args:
        text_bank (`Mapping[str, numpy.ndarray or torch.Tensor]`):
            The embedding, `(dim,)` and of any norm, of each text that may become a label.
        name (`str`): The model that computed them, for records.
        templates (`Sequence[str]`): The templates that the texts were put into before.
        logit_scale (`float`, *optional*, defaults to 100.0): The factor between cosines and logits of that model.
        logit_bias (`float`, *optional*):
            What that model adds to scaled cosines, if it was trained with a sigmoid loss, as SigLIP was.

    Attributes:
        family (`str`): `"precomputed"`.
        logit_bias (`float`): 0.0 where there is none.
        is_sigmoid (`bool`): Whether there is one.

    Raises:
        TypeError: An embedding is no vector.
        ValueError: There are none, they are of several widths, zero or not finite; the scale is not positive, or the
            bias not finite.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf import OODDetector
    >>> from clipn_hf.encoders import PrecomputedEncoder
    >>> encoder = PrecomputedEncoder({"cat": [1.0, 0.0], "dog": [0.0, 1.0]}, "my-clip", ["a photo of a {}."])
    >>> OODDetector(encoder, ["cat", "dog"], "mcm").score(torch.tensor([[1.0, 0.1], [0.5, 0.5]]))
    tensor([0.2901, 0.5000])

    ```
    """

    family = "precomputed"
    has_no_encoder = False
    has_unknown_prompt = False
    revision = None

    def __init__(
        self,
        text_bank: Mapping[str, Any],
        name: str,
        templates: Sequence[str],
        logit_scale: float = 100.0,
        logit_bias: float | None = None,
    ) -> None:
        if not text_bank:
            raise ValueError("`text_bank` is empty; give the embedding of each label.")
        rows = {
            text: torch.as_tensor(row if isinstance(row, Tensor) else np.asarray(row))
            .detach()
            .to("cpu", torch.float32)
            for text, row in text_bank.items()
        }
        width = next(iter(rows.values())).shape
        for text, row in rows.items():
            if row.ndim != 1:
                raise TypeError(f"`text_bank` must hold vectors, got shape {tuple(row.shape)} for {text!r}.")
            if row.shape != width:
                raise ValueError(
                    f"`text_bank` must hold vectors of one width, got {len(row)} for {text!r} and {width[0]} before."
                )
            if not torch.isfinite(row).all() or not row.any():
                raise ValueError(f"The embedding of {text!r} is zero or not finite; compute it again.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"`logit_scale` must be a positive number, got {logit_scale!r}.")
        if logit_bias is not None and not math.isfinite(logit_bias):
            raise ValueError(f"`logit_bias` must be a finite number or None, got {logit_bias!r}.")
        self.source = name
        self.templates = validate_templates(templates)
        self.no_templates: list[str] = []
        self.logit_scale = float(logit_scale)
        self.logit_bias = float(logit_bias or 0.0)
        self.is_sigmoid = logit_bias is not None
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._positions = {text: position for position, text in enumerate(rows)}
        self._bank = normalize(torch.stack(list(rows.values())), dim=-1)

    @property
    def texts(self) -> list[str]:
        """The texts that have an embedding, in the order in which they were given."""
        return list(self._positions)

    def describe(self) -> dict[str, Any]:
        """Say which embeddings these are, as [`DualEncoder.describe`] does; the digest is that of the embeddings."""
        return {
            "id": self.source,
            "revision": None,
            "family": self.family,
            "class": type(self).__name__,
            "weights_sha256": self._digest(),
            "config_sha256": None,
            "image_processor_sha256": None,
            "dtype": "float32",
            "device": "cpu",
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "is_sigmoid": self.is_sigmoid,
        }

    def _digest(self) -> str:
        """SHA-256 of the embeddings, each with its text, whatever their order."""
        digest = hashlib.sha256()
        for text, position in sorted(self._positions.items()):
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
            digest.update(self._bank[position].numpy().tobytes())
        return digest.hexdigest()

    def label_templates(
        self, templates: Sequence[str] | None = None, no_templates: Sequence[str] | None = None
    ) -> tuple[list[str], list[str]]:
        """Find the templates, which are those that the embeddings were computed with.

        Raises:
            ValueError: Others are asked for.
        """
        if no_templates is not None or (templates is not None and list(templates) != self.templates):
            raise ValueError(
                f"The embeddings of {self.source} were computed with the templates {self.templates}, got "
                f"{list(templates or no_templates or [])}; leave them out, or give a model."
            )
        return self.templates, []

    def class_embeddings(
        self,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        use_no_encoder: bool = True,
        progress: bool = False,
    ) -> tuple[Tensor, None]:
        """Look up labels, as [`DualEncoder.class_embeddings`] embeds them.

        Raises:
            ValueError: Labels that are not in the bank, or other templates.
        """
        labels = validate_labels(labels)
        self.label_templates(templates, no_templates)
        unknown = [label for label in labels if label not in self._positions]
        if unknown:
            more = f" and {len(unknown) - 1} more labels" if len(unknown) > 1 else ""
            raise ValueError(
                f"`text_bank` of {self.source} has no embedding of {unknown[0]!r}{more}; add it, or choose others."
            )
        return self._bank[[self._positions[label] for label in labels]], None


__all__ = ["PrecomputedEncoder"]
