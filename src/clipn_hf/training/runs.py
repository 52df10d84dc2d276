# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What runs of all trainers have in common: their epochs and their log, and where they are resumed."""

import json
import os
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..files import atomic_path

logger = logging.get_logger(__name__)

METRICS_NAME = "metrics.jsonl"


class SetEpochCallback(TrainerCallback):
    """Tells the training set which epoch begins; accelerate does so only for data without a sampler of its own."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset = kwargs["train_dataloader"].dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


class LogLastStepCallback(TrainerCallback):
    """Logs what was not logged yet when training ends, so that the shortest run has its losses in log and card."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.logging_strategy != "no" and (state.global_step >= state.max_steps or control.should_training_stop):
            control.should_log = True

    # A callback may also stop the training between two epochs.
    on_epoch_end = on_step_end


class WriteMetricsCallback(TrainerCallback):
    """Writes the evaluations so far to `metrics.jsonl`, also those before an interruption."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            lines = [json.dumps(entry) for entry in state.log_history if any(key.startswith("eval_") for key in entry)]
            os.makedirs(str(args.output_dir), exist_ok=True)
            with atomic_path(Path(str(args.output_dir)) / METRICS_NAME) as partial:
                partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def describe_card(
    hub_id: str | None,
    model_name: str | None,
    finetuned_from: str | None,
    dataset: str | list[str] | None,
    tags: str | list[str] | None,
) -> dict[str, Any]:
    """Word what `Trainer.create_model_card` is given as the writers of cards take it.

    Args:
        hub_id (`str`, *optional*): Where the model is published, or is going to be.
        model_name, finetuned_from, dataset, tags: As in [`~transformers.Trainer`].

    Returns:
        `dict[str, Any]`: Their arguments `model_id`, `model_name`, `base_model`, `dataset` and `tags`.
    """
    return {
        # A name without its owner is no address.
        "model_id": hub_id if hub_id and "/" in hub_id else None,
        "model_name": model_name or hub_id,
        "base_model": finetuned_from,
        "dataset": ", ".join(dataset) if isinstance(dataset, list) else dataset,
        "tags": [tags] if isinstance(tags, str) else tags or [],
    }


def find_last_checkpoint(args: TrainingArguments) -> str | bool | None:
    """Read `resume_from_checkpoint` as [`~transformers.Trainer.train`] takes it: a folder, True, or None.

    "true" is None as long as no process finds a checkpoint, so that a job that is started again and again needs no
    other arguments the first time.

    Args:
        args ([`~transformers.TrainingArguments`]): With `resume_from_checkpoint` as it was given.

    Returns:
        `str`, `True` for the last checkpoint in `output_dir`, or None.
    """
    wanted = args.resume_from_checkpoint
    checkpoint = {"true": True, "false": None, "": None}.get(str(wanted).lower(), wanted)
    if checkpoint is True:
        folder = str(args.output_dir)
        # All processes have to decide alike, also where one of them does not see the files of another.
        if not any(gather_object([Path(folder).is_dir() and get_last_checkpoint(folder) is not None])):
            if args.process_index == 0:
                logger.warning(f"There is no checkpoint in {folder} to resume from; training starts from scratch.")
            return None
    return checkpoint


__all__ = [
    "METRICS_NAME",
    "LogLastStepCallback",
    "SetEpochCallback",
    "WriteMetricsCallback",
    "describe_card",
    "find_last_checkpoint",
]
