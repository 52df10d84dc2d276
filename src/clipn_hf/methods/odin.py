# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""MSP at a high temperature, of images that were changed a little towards what the model takes them for."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .base import Method, MethodInputs

if TYPE_CHECKING:
    from torch import Tensor


def _perturb(
    pixel_values: "Tensor",
    compare: "Callable[[Tensor], MethodInputs]",
    std: "Tensor",
    temperature: float = 1000.0,
    magnitude: float = 0.0014,
) -> "Tensor":
    r"""Take the step \\( x + \epsilon \operatorname{sign}(\nabla_x \log \max_j \operatorname{softmax}_j(a / T)) \\).

    `magnitude` is \\( \epsilon \\), in colours from 0 to 1.
    """
    import torch

    _check({"temperature": temperature, "magnitude": magnitude})
    if magnitude == 0:
        return pixel_values
    pixels = pixel_values.detach().clone().requires_grad_()
    logits = compare(pixels).logits
    largest, best = logits.max(dim=1, keepdim=True)  # (batch, 1)
    others = logits.scatter(1, best, -math.inf)
    others = (others - others.detach().amax(dim=1, keepdim=True)) / temperature
    # The log-odds of the largest probability, times the temperature and but for a constant: their gradient has the
    # same sign, and vanishes neither at high temperatures, as in half precision it would, nor for images of which the
    # model is certain. No image is in the loss of another one.
    confidence = (largest[:, 0] - temperature * others.logsumexp(dim=1)).sum()
    (gradient,) = torch.autograd.grad(confidence, pixels)
    if not torch.isfinite(gradient).all():
        raise ValueError(
            "The gradient of the logits with respect to the pixels is not finite: the model overflows in half "
            "precision; compute in `dtype=torch.float32` or `torch.bfloat16`."
        )
    return pixel_values + magnitude / std * gradient.sign()


def _score(inputs: MethodInputs, temperature: float = 1000.0) -> "Tensor":
    from ..scores import odin

    return odin(inputs.logits, temperature)


def _check(settings: Mapping[str, Any]) -> None:
    from ..scores._checks import check_number, check_temperature

    magnitude = settings["magnitude"]
    check_temperature(settings["temperature"])
    check_number(magnitude, "magnitude")
    if not 0 <= float(magnitude) < math.inf:
        raise ValueError(f"`magnitude` must be finite and not negative, such as 0.0014, got {magnitude}.")


ODIN = Method(
    name="odin",
    title="Out-of-distribution detector for neural networks",
    reference="1706.02690",
    needs=frozenset({"global", "pixels"}),
    score=_score,
    min_labels=2,
    perturb=_perturb,
    check=_check,
)
