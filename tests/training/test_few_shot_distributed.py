# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes learn the context that one process with the joint batch learns.

`torchrun` runs this file as a script, whose two processes do what the tests then do again in one.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor, TrainerCallback

from clipn_hf.training import (
    CLIPOSArguments,
    CLIPOSTrainer,
    CoOpArguments,
    CoOpTrainer,
    LabelledImages,
    LoCoOpArguments,
    LoCoOpTrainer,
)

BATCH = 6  # of all processes together
LABELS = ["cat", "dog", "car"]
TRAINERS: dict[str, tuple[Any, Any]] = {
    "coop": (CoOpTrainer, CoOpArguments),
    "locoop": (LoCoOpTrainer, LoCoOpArguments),
    "clip_os": (CLIPOSTrainer, CLIPOSArguments),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "coop": {},
    "locoop": {"entropy_weight": 2.0},
    "clip_os": {"unknown_weight": 1.0},
    "coop encoding in each step": {"num_cached_views": 0},
    "clip_os encoding in each step": {"unknown_weight": 1.0, "num_cached_views": 0},
}


class Gradients(TrainerCallback):
    """Keeps the gradient of the first step, averaged over the processes."""

    first: Tensor | None = None

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        if self.first is None:
            (self.first,) = [p.grad.clone() for p in model.parameters() if p.grad is not None]


def make_images(count: int, seed: int) -> LabelledImages:
    generator = np.random.default_rng(seed)
    pixels = [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
    columns = {"image": pixels, "label": [index % 3 for index in range(count)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    rows = datasets.Dataset.from_dict(columns, features=features)
    return LabelledImages(rows.cast_column("image", datasets.Image(decode=False)))


def run(folder: str, output: Path, method: str, **changes: Any) -> dict[str, Any]:
    """One training; everything of it that must not depend on the number of processes."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer_class, arguments_class = TRAINERS[method]
    arguments = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH // num_processes,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "num_train_epochs": 2,
        "warmup_epochs": 0,
        "learning_rate": 1.0,
        "num_context_tokens": 3,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    gradients = Gradients()
    trainer = trainer_class(
        CLIPModel.from_pretrained(folder, dtype=torch.float32),
        arguments_class(**{**arguments, **changes}),
        processing_class=CLIPProcessor.from_pretrained(folder),
        labels=LABELS,
        train_dataset=make_images(2 * BATCH, 0),
        # Numbers of images that processes cannot share evenly
        eval_dataset=make_images(7, 1),
        ood_datasets={"noise": make_images(1, 2)},
        callbacks=[gradients],
    )
    trainer.train()
    metrics = trainer.evaluate()
    return {
        "num_processes": trainer.accelerator.num_processes,
        "gradient": gradients.first,
        "context": [p.detach() for p in trainer.model.parameters() if p.requires_grad],
        "features": trainer._training_features().features["embeddings"],
        "log": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "metrics": {name: value for name, value in metrics.items() if "_mcm" in name or name == "eval_accuracy"},
    }


def main(folder: str, output: str) -> None:
    results = {name: run(folder, Path(output), name.split()[0], **setting) for name, setting in SETTINGS.items()}
    torch.save(results, Path(output) / f"results-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])


def test_two_processes_are_one(clip_folder: Path, tmp_path: Path) -> None:
    # One test for all settings, because most of the time goes into starting the processes.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run([*command, str(clip_folder), str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    two_processes = [torch.load(tmp_path / f"results-{rank}.pt") for rank in range(2)]
    for name, setting in SETTINGS.items():
        one_process = run(str(clip_folder), tmp_path, name.split()[0], **setting)
        assert one_process["num_processes"] == 1
        assert one_process["gradient"].abs().max() > 1e-3
        for results in two_processes:
            assert results[name]["num_processes"] == 2
            for part in ("gradient", "context", "features", "log", "metrics"):
                torch.testing.assert_close(
                    results[name][part],
                    one_process[part],
                    rtol=1e-3,
                    atol=1e-5,
                    msg=lambda why, at=(name, part): f"{at}: {why}",
                )
