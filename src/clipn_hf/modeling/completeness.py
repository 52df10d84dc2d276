# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Refusal of checkpoints that are damaged or lack weights, where transformers fills in random numbers."""

import json
import os
import pickle
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# What reading damaged files raises. Other ValueErrors and OSErrors tell of arguments, or that there is no such file.
DAMAGE = (
    SafetensorError,
    StrictDataclassError,
    pickle.UnpicklingError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    EOFError,
    KeyError,
    RuntimeError,
)
FIX = "Download or save it again."


class IncompleteCheckpointError(Exception):
    """A checkpoint, or an adapter with its base model, is damaged or lacks something without which its scores would be
    random.

    Not a `ValueError`, because `transformers.pipeline` catches those and tries to load the checkpoint as another
    class, with random numbers in place of the missing weights.
    """


def check_complete(
    source: str | os.PathLike[str],
    model_class: str,
    missing: Collection[str],
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]] = (),
) -> None:
    """Refuse a checkpoint with missing weights, or with weights of other shapes than its configuration says.

    Args:
        source (`str` or `os.PathLike`): Hub id or folder of the checkpoint.
        model_class (`str`): Name of the class that was loaded.
        missing (`Collection[str]`): Names of the weights that the checkpoint lacks.
        mismatched (`Collection[tuple]`, *optional*): Names, shapes in the checkpoint and shapes in the model.

    Raises:
        IncompleteCheckpointError: There are any.
    """
    if mismatched:
        shown = _listing(f"{name} {tuple(found)} instead of {tuple(expected)}" for name, found, expected in mismatched)
        raise IncompleteCheckpointError(
            f"The checkpoint {os.fspath(source)} has weights of other shapes than its configuration: {shown}. {FIX}"
        )
    if not missing:
        return
    fix = FIX
    if all("no_text" in name for name in missing):
        fix = (
            "Use a trained CLIPN, such as the one inside this package (without `model`), or train one, which starts "
            "with `CLIPNModel.from_clip`."
        )
    raise IncompleteCheckpointError(
        f"The checkpoint {os.fspath(source)} lacks weights of {model_class}: {_listing(missing)}. {fix}"
    )


@contextmanager
def refuse_damaged(source: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what reading damaged files raises into one error.

    Args:
        source (`str` or `os.PathLike`): Hub id or folder of the checkpoint that the block reads.

    Raises:
        IncompleteCheckpointError: A file of the checkpoint is damaged, or holds more than tensors.
    """
    try:
        yield
    except DAMAGE as error:
        # Its subclasses tell of devices and their memory.
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        raise IncompleteCheckpointError(
            f"The checkpoint {os.fspath(source)} cannot be read: {_reason(error)}. {FIX}"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "a file of weights is empty or ends too early"
    if isinstance(error, pickle.UnpicklingError):
        # The message of torch recommends to execute the file.
        return "a file of weights is damaged or holds Python objects other than tensors, which are not executed"
    if isinstance(error, KeyError):
        return f"an entry {error} is missing"
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    return " ".join(str(cause).split()).partition(". ")[0].removesuffix(".")


def _listing(parts: Collection[str] | Iterator[str]) -> str:
    listed = sorted(parts)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


__all__ = ["IncompleteCheckpointError", "check_complete", "refuse_damaged"]
