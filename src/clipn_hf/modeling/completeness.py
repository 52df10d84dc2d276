# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Refusal of checkpoints that lack weights, where transformers fills in random numbers."""

import os
from collections.abc import Collection


class IncompleteCheckpointError(Exception):
    """A checkpoint, or an adapter with its base model, lacks something without which its scores would be random.

    Not a `ValueError`, because `transformers.pipeline` catches those and tries to load the checkpoint as another
    class, with random numbers in place of the missing weights.
    """


def check_complete(source: str | os.PathLike[str], model_class: str, missing: Collection[str]) -> None:
    """Refuse a checkpoint with missing weights.

    Args:
        source (`str` or `os.PathLike`): Hub id or folder of the checkpoint.
        model_class (`str`): Name of the class that was loaded.
        missing (`Collection[str]`): Names of the weights that the checkpoint lacks.

    Raises:
        IncompleteCheckpointError: There are any.
    """
    if not missing:
        return
    names = sorted(missing)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    fix = "Download or save it again."
    if all("no_text" in name for name in names):
        fix = (
            "Use a trained CLIPN, such as the one inside this package (without `model`), or train one, which starts "
            "with `CLIPNModel.from_clip`."
        )
    raise IncompleteCheckpointError(
        f"The checkpoint {os.fspath(source)} lacks weights of {model_class}: {shown}. {fix}"
    )


__all__ = ["IncompleteCheckpointError", "check_complete"]
