# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Detection methods, one file and one row each. To add a method, add a file like its neighbours and its row here."""

from collections.abc import Mapping
from types import MappingProxyType

from .atd import ATD
from .base import NEEDS, Method, MethodInputs, Need, TrainingInputs, method_inputs, unknown_argument
from .clip_os import CLIP_OS
from .csp import CSP
from .ctw import CTW
from .energy import ENERGY
from .gl_mcm import GL_MCM
from .joint_energy import JOINT_ENERGY
from .kmeans import KMEANS
from .linear_probe import LINEAR_PROBE
from .mahalanobis import MAHALANOBIS
from .max_logit import MAX_LOGIT
from .mcm import MCM
from .msp import MSP
from .nearest_neighbors import NEAREST_NEIGHBORS
from .neglabel import NEGLABEL
from .negrefine import NEGREFINE
from .odin import ODIN
from .plp import PLP
from .react import REACT
from .relative_mahalanobis import RELATIVE_MAHALANOBIS
from .sigmoid import SIGMOID
from .vim import VIM

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            ATD,
            CTW,
            MCM,
            GL_MCM,
            MSP,
            MAX_LOGIT,
            ENERGY,
            NEGLABEL,
            CSP,
            NEGREFINE,
            SIGMOID,
            JOINT_ENERGY,
            NEAREST_NEIGHBORS,
            KMEANS,
            MAHALANOBIS,
            RELATIVE_MAHALANOBIS,
            REACT,
            VIM,
            ODIN,
            LINEAR_PROBE,
            PLP,
            CLIP_OS,
        )
    }
)


def get_method(name: str) -> Method:
    """Find a method by its name.

    Args:
        name (`str`): A key of `METHODS`.

    Returns:
        [`Method`]: The row of `METHODS`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


__all__ = [
    "METHODS",
    "NEEDS",
    "Method",
    "MethodInputs",
    "Need",
    "TrainingInputs",
    "get_method",
    "method_inputs",
    "unknown_argument",
]
