# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes learn what one process with the joint batch learns.

`torchrun` runs this file as a script, whose two processes do what the tests then do again in one. Gradients are
compared, not only losses, because a gather without gradients has the right loss.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import TrainerCallback

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.training import CLIPNTrainer, CLIPNTrainingArguments
from clipn_hf.training.distributed import gather_rows

BATCH = 8  # of all processes together
MEASURED = ("_loss", "_mcm", "_ctw", "_atd", "_accuracy")


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step, averaged over the processes."""

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.last = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of the rows that are not marked as broken, so that processes can have different numbers."""
    kept = [{name: value for name, value in row.items() if name != "broken"} for row in rows if not row.get("broken")]
    return default_collate(kept)


def build_pairs(model: CLIPNModel, processor: CLIPNProcessor) -> list[dict[str, Tensor]]:
    captions = [f"a {kind} of a {subject}" for kind in ("photo", "drawing") for subject in ("cat", "dog", "car", "no")]
    tokens = processor.tokenizer([*captions, *(f"not {caption}" for caption in captions)], padding=True)
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.randn(len(tokens["input_ids"]), model.projection_dim, generator=generator)
    return [
        {
            "image_embeds": embeds,
            "input_ids": torch.tensor(tokens["input_ids"][row]),
            "attention_mask": torch.tensor(tokens["attention_mask"][row]),
        }
        for row, embeds in enumerate(image_embeds)
    ]


def run(folder: str, output: Path, *, steps: int = 1, **changes: Any) -> dict[str, Any]:
    """One training; everything of it that must not depend on the number of processes."""
    model, processor = CLIPNModel.from_pretrained(folder), CLIPNProcessor.from_pretrained(folder)
    pairs = build_pairs(model, processor)
    for name in ("group_ids", "broken"):
        for row, value in zip(pairs, changes.pop(name, []), strict=False):
            row[name] = torch.tensor(value)
    images = [{"image": Image.new("RGB", (32, 32), (30 * index, 99, 200 - 20 * index))} for index in range(7)]
    data: dict[str, Any] = {}
    if steps > 1:
        data["eval_dataset"] = pairs
        data["id_dataset"] = datasets.Dataset.from_list([{**image, "label": 0} for image in images[:3]])
        data["ood_dataset"] = datasets.Dataset.from_list(images[3:])
        data["id_labels"] = ["cat", "dog"]
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    # batches that are not compared with each other are what one process accumulates
    parts = 1 if changes.get("gather_negatives", True) else 2
    gradients = Gradients()
    arguments = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH // max(parts, num_processes),
        "per_device_eval_batch_size": BATCH // num_processes,
        "gradient_accumulation_steps": parts // num_processes or 1,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = CLIPNTrainer(
        model,
        CLIPNTrainingArguments(**{**arguments, **changes}),
        data_collator=collate,
        processing_class=processor,
        train_dataset=pairs,
        callbacks=[gradients],
        **data,
    )
    trainer.train()
    metrics = trainer.evaluate() if steps > 1 else {}
    names = ("loss", "itbo_yes_loss", "itbo_no_loss", "tso_loss")
    return {
        "num_processes": trainer.accelerator.num_processes,
        "gradients": gradients.last,
        "weights": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "log": [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry],
        "metrics": {name: value for name, value in metrics.items() if name.endswith(MEASURED)},
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"yes_weight": 1.0, "no_weight": 0.2, "tso_weight": 0.0},
    "chunked": {"loss_chunk_size": 3},
    "groups": {"group_ids": [1, 2, 3, 4, 1, 1, 5, 3]},
    "uneven": {"broken": [False, False, False, False, True, False, False, True]},
    "own negatives": {"gather_negatives": False},
    "several steps": {"steps": 3},
}


def detached_gather(rows: Tensor, counts: list[int]) -> Tensor:
    """What is tempting: all rows without gradients, one's own put back in their place."""
    parts = list(gather_rows(rows.detach(), counts).split(counts))
    parts[torch.distributed.get_rank()] = rows
    return torch.cat(parts)


def main(folder: str, output: str) -> None:
    results = {name: run(folder, Path(output), **setting) for name, setting in SETTINGS.items()}
    with patch("clipn_hf.training.clipn_trainer.gather_rows", detached_gather):
        results["detached"] = run(folder, Path(output))
    torch.save(results, Path(output) / f"results-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])


def test_two_processes_are_one(clipn_folder: Path, tmp_path: Path) -> None:
    # one test for all settings, because most of the time goes into starting the processes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run([*command, str(clipn_folder), str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    two_processes = [torch.load(tmp_path / f"results-{rank}.pt") for rank in range(2)]

    for name, setting in SETTINGS.items():
        one_process = run(str(clipn_folder), tmp_path, **setting)
        assert one_process["num_processes"] == 1
        assert max(gradient.abs().max() for gradient in one_process["gradients"].values()) > 0.1
        for results in two_processes:
            assert results[name]["num_processes"] == 2
            for part in ("gradients", "weights", "log", "metrics"):
                actual, expected = results[name][part], one_process[part]
                torch.testing.assert_close(
                    actual, expected, rtol=1e-4, atol=1e-6, msg=lambda why, at=(name, part): f"{at}: {why}"
                )

    # the same comparison notices a gather that loses the gradients and has the right loss
    one_process, detached = run(str(clipn_folder), tmp_path), two_processes[0]["detached"]
    torch.testing.assert_close(detached["log"], one_process["log"], rtol=1e-5, atol=0)
    expected = one_process["gradients"]["no_text_projection.weight"]
    error = detached["gradients"]["no_text_projection.weight"] - expected
    assert error.norm() > 0.05 * expected.norm()
