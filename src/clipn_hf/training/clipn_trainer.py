# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Training of CLIPN (Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", arXiv 2308.12213)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from ..detector import OODDetector
from ..encoders import DualEncoder
from ..evaluation.metrics import auroc, fpr_at_tpr
from ..images import ImageError
from ..modeling import CLIPNModel, CLIPNOutput, CLIPNProcessor, itbo_loss, tso_loss
from ..prompts import resolve_templates
from .clipn_config import CLIPNTrainingArguments
from .collator import ImageTextCollator
from .data import ImageTextDataset
from .distributed import gather_counts, gather_rows
from .image_cache import build_image_cache
from .model_card import write_model_card
from .rows import read_image
from .runs import LogLastStepCallback, SetEpochCallback, describe_card
from .tuning import prepare_tuning, save_tuning_files

logger = logging.get_logger(__name__)

LOSS_NAMES = ("itbo_yes_loss", "itbo_no_loss", "tso_loss")
OOD_METHODS = ("mcm", "ctw", "atd")
MAX_LOGIT_SCALE = math.log(100)


class CLIPNTrainer(Trainer):
    r"""Teach a CLIP to say no.

    CLIP itself stays frozen, its temperature included, which is clamped to at most 100 as the authors do; what of the
    "no" text encoder is trained, and how, is up to `args`. The images of a process are compared with the texts of all
    processes, so that N processes with batches of B pairs learn exactly what one process with a batch of N * B would.

    Args:
        model ([`CLIPNModel`]):
            Float32 weights, see [`CLIPNModel.from_clip`]; changed in place. `trainer.clipn` keeps it, whatever is
            wrapped around it.
        args ([`CLIPNTrainingArguments`]): Everything else there is to choose.
        processing_class ([`CLIPNProcessor`]):
            Of the model; saved beside it. Templates that it leaves to the model are filled in, in place.
        data_collator (`Callable`, *optional*):
            Makes a batch of examples: `input_ids` and `attention_mask`, and `pixel_values` or `image_embeds`; for
            hand-crafted "no" prompts also `no_input_ids` and `no_attention_mask`; optionally `group_ids`, equal for
            pairs that match each other. Defaults to [`ImageTextCollator`].
        train_dataset ([`ImageTextDataset`] or any other, *optional*): Has to be the former for cached views.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): The losses are computed on it.
        id_dataset (`datasets.Dataset`, *optional*):
            Images of known classes, columns `image` and `label` (the number of the class). With it and `ood_dataset`,
            each evaluation reports AUROC and FPR95 (ID positive) of MCM, CTW and ATD and the accuracy on `id_dataset`,
            once for all of `eval_dataset`, and also without one.
        id_labels (`Sequence[str]`, *optional*): The classes. Defaults to the names of the `ClassLabel` of `label`.
        ood_dataset (`datasets.Dataset`, *optional*): Images of none of the classes, column `image`.
        callbacks (`list[TrainerCallback]`, *optional*): As in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*): As in [`~transformers.Trainer`].

    Raises:
        TypeError: `model` is not a [`CLIPNModel`], or `processing_class` not a [`CLIPNProcessor`].
        ValueError: Half-precision weights, templates of the processor that are not those of the model, or arguments
            that do not fit each other.

    Logged beside `loss` are its terms without their weights, `itbo_yes_loss`, `itbo_no_loss` and `tso_loss`; beside
    `eval_loss` the same with `eval_` in front, `eval_ood_auroc_atd`, `eval_ood_fpr95_atd` and so on, and
    `eval_id_accuracy`.

    Example:

    ```python
    >>> from clipn_hf import CLIPNModel, CLIPNProcessor
    >>> from clipn_hf.training import CLIPNTrainer, CLIPNTrainingArguments, load_image_text_dataset

    >>> model = CLIPNModel.from_clip("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> processor = CLIPNProcessor.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> trainer = CLIPNTrainer(  # doctest: +SKIP
    ...     model,
    ...     CLIPNTrainingArguments(output_dir="clipn-vitb16", bf16=True),
    ...     train_dataset=load_image_text_dataset("pairs/*.parquet"),
    ...     processing_class=processor,
    ... )
    >>> trainer.train()  # doctest: +SKIP

    ```"""

    args: CLIPNTrainingArguments
    processing_class: CLIPNProcessor
    train_dataset: Any
    hub_model_id: Any

    def __init__(
        self,
        model: CLIPNModel,
        args: CLIPNTrainingArguments,
        *,
        processing_class: CLIPNProcessor,
        data_collator: Callable[[list[Any]], dict[str, Tensor]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        id_dataset: Any = None,
        id_labels: Sequence[str] | None = None,
        ood_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if not isinstance(model, CLIPNModel):
            raise TypeError(
                f"`model` must be a CLIPNModel, got {type(model).__name__}; make one of a CLIP with "
                f"`CLIPNModel.from_clip(clip)`, and leave peft to the argument `tuning`."
            )
        if not isinstance(processing_class, CLIPNProcessor):
            raise TypeError(f"`processing_class` must be a CLIPNProcessor, got {type(processing_class).__name__}.")
        if model.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"The weights of `model` are {model.dtype}, too coarse for the steps of the optimizer; load it with "
                f"`dtype=torch.float32`. The arguments `bf16` and `fp16` compute in half precision all the same."
            )
        if args.num_cached_views and not isinstance(train_dataset, ImageTextDataset):
            raise ValueError(
                f"`num_cached_views={args.num_cached_views}` needs an ImageTextDataset as `train_dataset`, got "
                f"{type(train_dataset).__name__}; load it with `load_image_text_dataset`, without streaming."
            )
        self.id_dataset, self.ood_dataset = id_dataset, ood_dataset
        self.id_labels = self._check_ood_data(id_labels)
        self._ood_data: tuple[Tensor, Tensor, Tensor] | None = None
        self._measures_ood = False

        processing_class.templates, processing_class.no_templates = resolve_templates(model, processing_class)
        self.clipn = model
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        if args.n_gpu > 1:
            logger.warning(
                f"Training on one of {args.n_gpu} GPUs; start with `accelerate launch` to have a process on each."
            )
            args._n_gpu = 1
        # Adapters begin at random, and Trainer would set the seed too late for them.
        set_seed(args.seed)
        super().__init__(
            model=prepare_tuning(model, processing_class, args),
            args=args,
            data_collator=data_collator or ImageTextCollator(processing_class),
            train_dataset=train_dataset,
            # Without pairs there is still something to evaluate, which Trainer has to be told.
            eval_dataset={} if eval_dataset is None and id_dataset is not None else eval_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), SetEpochCallback(), LogLastStepCallback()],
            optimizers=optimizers,
        )
        # The loss is a mean over the batch, so Trainer has to divide it by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        # Sums of the three terms of the loss, and of their weights, since the last report
        self._loss_sums = {mode: torch.zeros(4, device=args.device) for mode in ("train", "eval")}

    def get_train_dataloader(self) -> DataLoader[Any]:
        self._check_batch_size()
        if self.args.num_cached_views and self.train_dataset.image_embeds is None:
            folder = self.args.image_cache_dir or Path(str(self.args.output_dir)) / "_image_cache"
            # Whether the embeddings are computed or found must make no difference to what is drawn in training.
            with torch.random.fork_rng(devices=[]):
                self.train_dataset.image_embeds = build_image_cache(
                    self.clipn,
                    self.train_dataset,
                    self.processing_class,
                    self.args.num_cached_views,
                    folder,
                    batch_size=self.args.per_device_eval_batch_size,
                    num_workers=self.args.dataloader_num_workers,
                )
        return super().get_train_dataloader()

    def _check_batch_size(self) -> None:
        """Find batches that can never be filled, or in which there is nothing to compare."""
        per_device = self._train_batch_size
        processes = 1 if self.accelerator.split_batches else self.args.world_size
        if has_length(self.train_dataset):
            rows = len(self.train_dataset)
            if self.args.dataloader_drop_last and rows < per_device * processes:
                raise ValueError(
                    f"`train_dataset` has {rows} rows, fewer than the {per_device * processes} of one batch "
                    f"({per_device} for each of {processes} processes), and `dataloader_drop_last=True` leaves out "
                    f"incomplete batches, so no step would be made; lower `per_device_train_batch_size` to at most "
                    f"{max(1, rows // processes)} or set `dataloader_drop_last=False`."
                )
        if per_device * (processes if self.args.gather_negatives else 1) == 1:
            logger.warning(
                "`per_device_train_batch_size=1` leaves a pair nothing to be compared with: `itbo_no_loss` has no "
                "pairs and stays 0. Use larger batches; gradient accumulation does not make up for them."
            )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Gains, biases and logit_scale are all that has fewer than two dimensions.
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, CLIPNOutput]:
        group_ids = inputs.get("group_ids")
        inputs = {name: value for name, value in inputs.items() if name != "group_ids"}
        device = inputs["input_ids"].device
        num_rows = len(inputs["input_ids"])
        counts = gather_counts(num_rows, device)  # rows of each process
        first_row = sum(counts[: self.args.process_index])

        if model.training and self.clipn.config.no_prompt_type == "learnable":
            # Drawn for the rows of all processes from the random state they share: as one process would draw them.
            drawn = torch.randint(self.clipn.config.num_no_prompts + 1, (sum(counts),))
            inputs["no_prompt_index"] = drawn[first_row : first_row + num_rows].to(device)
        outputs = model(**inputs, return_loss=False, return_logits=False)
        if outputs.no_text_embeds is None:
            raise ValueError(
                f'The batch has {", ".join(inputs)}, but the hand-crafted "no" prompts of this model need '
                f"`no_input_ids` and `no_attention_mask` too; `ImageTextCollator` makes them."
            )

        # From here on this process has its own images against the texts of all processes.
        if not self.args.gather_negatives:
            counts, first_row = [num_rows], 0
        row_ids = group_ids if group_ids is not None else first_row + torch.arange(num_rows, device=device)
        column_ids = gather_rows(row_ids, counts)  # (all rows,)
        yes_sum, no_sum = itbo_loss(
            outputs.image_embeds,
            gather_rows(outputs.text_embeds, counts),
            gather_rows(outputs.no_text_embeds, counts),
            self.clipn.logit_scale.exp(),
            group_ids=row_ids,
            text_group_ids=column_ids,
            chunk_size=self.args.loss_chunk_size,
            reduction="sum",
        )
        tso_sum = tso_loss(outputs.text_embeds, outputs.no_text_embeds, reduction="sum")

        # The shares of this process in the three means over all processes
        num_columns = len(column_ids)
        num_matches = column_ids.unique(return_counts=True)[1].square().sum()
        num_others = (num_columns**2 - num_matches).clamp(min=1)
        terms = torch.stack([yes_sum / num_matches, no_sum / num_others, tso_sum / num_columns])
        # The means are the sums of these shares, whereas gradients and logs are averaged over the processes.
        terms = len(counts) * terms  # (3,)
        loss = terms @ terms.new_tensor([self.args.yes_weight, self.args.no_weight, self.args.tso_weight])

        weight = 1 if model.training else num_columns
        self._loss_sums["train" if model.training else "eval"] += torch.cat(
            [weight * terms.detach(), terms.new_tensor([weight])]
        )
        return (loss, outputs) if return_outputs else loss

    def _mean_losses(self, mode: str) -> dict[str, float]:
        """Average the terms of the loss since the last call over batches and processes."""
        sums = self.accelerator.reduce(self._loss_sums[mode], reduction="mean")
        self._loss_sums[mode] = torch.zeros_like(sums)
        return dict(zip(LOSS_NAMES, (sums[:3] / sums[3]).tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._mean_losses("train")}
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(given, dict):
            self._measures_ood = self.id_dataset is not None
            try:
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            finally:
                self._measures_ood = False
        metrics: dict[str, float] = {}
        for name in given:
            # By its name, Trainer finds the loader of a set of its own again.
            part: Any = name if eval_dataset is None else given[name]
            metrics |= super().evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
        if self.id_dataset is not None:
            ood = {f"{metric_key_prefix}_{name}": value for name, value in self._ood_metrics().items()}
            self.log(ood)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, ood)
            metrics |= ood
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._loss_sums["eval"].zero_()
        # The next training step draws its prompts from the random state, with or without an evaluation before it.
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        losses = self._mean_losses("eval")
        weights = (self.args.yes_weight, self.args.no_weight, self.args.tso_weight)
        # Trainer's own average leaves out what other processes computed on an incomplete last batch.
        losses["loss"] = sum(weight * loss for weight, loss in zip(weights, losses.values(), strict=True))
        metrics = {**losses, **self._ood_metrics()} if self._measures_ood else losses
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _ood_metrics(self) -> dict[str, float]:
        """Measure AUROC and FPR95 (ID positive) on `id_dataset` against `ood_dataset`, and the ID accuracy."""
        encoder = DualEncoder(self.clipn, self.processing_class)
        if self._ood_data is None:
            # The image encoder is frozen, so once is enough.
            id_embeds, id_rows = self._embed_images(encoder, self.id_dataset)
            ood_embeds, _ = self._embed_images(encoder, self.ood_dataset)
            self._ood_data = id_embeds, torch.tensor(list(self.id_dataset["label"]))[id_rows], ood_embeds
        id_embeds, id_targets, ood_embeds = self._ood_data

        text_embeds, _ = encoder.class_embeddings(self.id_labels)  # (classes, dim)
        nearest = (id_embeds @ text_embeds.T).argmax(dim=1).cpu()
        metrics = {"id_accuracy": (nearest == id_targets).float().mean().item()}
        for name in OOD_METHODS:
            detector = OODDetector(encoder, self.id_labels, name)
            id_scores, ood_scores = detector.score(id_embeds), detector.score(ood_embeds)
            metrics[f"ood_auroc_{name}"] = auroc(id_scores, ood_scores)
            metrics[f"ood_fpr95_{name}"] = fpr_at_tpr(id_scores, ood_scores)
        return metrics

    def _embed_images(self, encoder: DualEncoder, dataset: Any) -> tuple[Tensor, Tensor]:
        """Embed all readable images, `(images, dim)`; also give their row numbers, `(images,)` on the CPU."""
        own_rows = np.array_split(np.arange(len(dataset)), self.args.world_size)[self.args.process_index]
        device = self.args.device
        embeds, rows = [torch.empty(0, self.clipn.visual_projection.out_features, device=device)], []
        for start in range(0, len(own_rows), self.args.per_device_eval_batch_size):
            images = []
            for row in own_rows[start : start + self.args.per_device_eval_batch_size].tolist():
                try:
                    images.append(read_image(dataset[row]["image"]))
                    rows.append(row)
                except ImageError as error:
                    logger.warning(f"Row {row} is left out of the OOD evaluation: {error}")
            if images:
                embeds.append(encoder.image_embeddings(encoder.prepare_images(images)))
        counts = gather_counts(len(rows), device)
        row_numbers = torch.tensor(rows, dtype=torch.int64, device=device)
        return gather_rows(torch.cat(embeds), counts), gather_rows(row_numbers, counts).cpu()

    def _check_ood_data(self, id_labels: Sequence[str] | None) -> list[str]:
        if self.id_dataset is None and self.ood_dataset is None:
            return []
        if self.id_dataset is None or self.ood_dataset is None:
            missing = "id_dataset" if self.id_dataset is None else "ood_dataset"
            raise ValueError(f"Evaluation of OOD detection needs `id_dataset` and `ood_dataset`; `{missing}` is None.")
        if id_labels is None:
            names = getattr(self.id_dataset.features["label"], "names", None)
            if names is None:
                raise ValueError(
                    "The column `label` of `id_dataset` must be a ClassLabel with the names of the classes, got "
                    f"{self.id_dataset.features['label']}; otherwise pass the names as `id_labels`."
                )
            id_labels = names
        return list(id_labels)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_tuning_files(self.clipn, self.args.tuning, output_dir or str(self.args.output_dir))

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        **details: Any,
    ) -> None:
        """Write `README.md` into `output_dir`.

        Args:
            language, license, tags, model_name, finetuned_from, dataset: As in [`~transformers.Trainer`]. The snippet
                uses the address on the Hub where there is one, and paths within the folder otherwise.
            tasks, dataset_tags, dataset_args: Not used; the card knows its task.
            details: Further arguments of [`~clipn_hf.training.model_card.write_model_card`].
        """
        if self.is_world_process_zero():
            hub_id = self.hub_model_id or self.args.hub_model_id
            write_model_card(
                str(self.args.output_dir),
                model=self.clipn,
                processor=self.processing_class,
                args=self.args,
                log_history=self.state.log_history,
                **describe_card(hub_id, model_name, finetuned_from, dataset, tags),
                license=license,
                language=language,
                **details,
            )
