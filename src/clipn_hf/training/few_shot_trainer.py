# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What all trainers of prompts have in common: a context of a few tokens is learned, and everything else is frozen.

CoOp, LoCoOp and CLIP-OS differ in the image features they need and in their loss, which is all that [`CoOpTrainer`],
[`LoCoOpTrainer`] and [`CLIPOSTrainer`] say.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, default_collate
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..encoders import DualEncoder
from ..families import accepted_inputs, check_dual_encoder, pooled_features, tokenizer_options
from ..modeling import (
    LearnedPrompts,
    add_context_tokens,
    attach_learned_prompts,
    load_learned_prompts,
    prompt_tuning_config,
    save_learned_prompts,
)
from ..modeling.learned_prompts import LEARNED_PROMPTS_NAME, is_embedded_checkpoint
from ..prompts import validate_labels
from ..scores import mcm
from .classification_results import flatten_metrics, score_metrics
from .few_shot_card import write_few_shot_card
from .few_shot_config import FewShotArguments
from .few_shot_data import Encode, FewShotFeatures, check_classes, check_dataset, compute_features, find_labels
from .finetuning import ImageCollator, LabelledImages
from .prompt_losses import coop_loss
from .runs import LogLastStepCallback, SetEpochCallback, WriteMetricsCallback, describe_card

logger = logging.get_logger(__name__)

MAX_SHOWN = 40  # Characters of a value in a message.
ROWS = 16384  # Images that are compared with the prompts at a time.


class PromptClassifier(nn.Module):
    """A classifier of image features, the weights of which are embeddings of prompts, computed in every step.

    Args:
        encoder ([`~peft.PeftModel`]): A dual encoder with context tokens to learn; its text encoder alone is run.
        tokens (`Mapping[str, torch.Tensor]`): The prompts, one for each class, as its text encoder takes them.
        logit_scale (`float`): The factor between cosines and logits.
    """

    # The loss is a mean over the batch, so Trainer has to divide it by the number of accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, encoder: PeftModel, tokens: Mapping[str, Tensor], logit_scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.logit_scale = logit_scale
        self._token_names = list(tokens)
        for name, values in tokens.items():
            self.register_buffer(name, values, persistent=False)
        self._recomputes_activations = False

    def class_embeddings(self) -> Tensor:
        """Embed the prompts.

        Returns:
            `torch.Tensor` of shape `(classes, dim)`, float32, unit norm; gradients flow to the context.
        """
        encode: Any = self.encoder.get_text_features
        tokens = {name: self.get_buffer(name) for name in self._token_names}
        return normalize(pooled_features(self.encoder, encode(**tokens)).float(), dim=-1)

    def forward(
        self, embeddings: Tensor, patches: Tensor | None = None, outliers: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compare image features with the prompts.

        Args:
            embeddings (`torch.Tensor` of shape `(batch, dim)`): Of images, of unit norm.
            patches (`torch.Tensor` of shape `(batch, patches, dim)`, *optional*): Of their patches, of unit norm.
            outliers (`torch.Tensor` of shape `(outliers, dim)`, *optional*): Of what is none of the classes.

        Returns:
            `dict[str, torch.Tensor]`: `"logits"` `(batch, classes)`, and `"local_logits"`
            `(batch, patches, classes)` and `"outlier_logits"` `(outliers, classes)` of those that are given: cosines
            times `logit_scale`, float32.
        """
        text = self.class_embeddings()
        given = {"logits": embeddings, "local_logits": patches, "outlier_logits": outliers}
        # Float32 means float32 here, whatever the text encoder computes in.
        with torch.autocast(text.device.type, enabled=False):
            return {
                name: self.logit_scale * (features.float() @ text.T)
                for name, features in given.items()
                if features is not None
            }

    def train(self, mode: bool = True) -> "PromptClassifier":
        self.training = mode
        # Frozen encoders have no dropout; but transformers computes activations again in training mode only. To go
        # through all modules in every step would take as long as a small text encoder does.
        if self.encoder.training != (mode and self._recomputes_activations):
            self.encoder.train(not self.encoder.training)
        return self

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Compute activations again in the backward pass, see [`~transformers.PreTrainedModel`]."""
        self._recomputes_activations = True
        self.encoder.activation_checkpointing_enable(**arguments)


class FewShotTrainer(Trainer):
    """Learn the context of class prompts from a few images of each class; the base of all trainers of prompts.

    The encoders stay frozen, and the image encoder is run once for each image, unless `num_cached_views` is 0: a step
    then costs the text encoder for as many prompts as there are classes. Checkpoints are folders of a peft adapter of
    a few KB with the processor and the prompts: [`DualEncoder`], [`OODDetector`] and `pipeline` load them as they do
    models.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`]):
            With float32 weights; changed in place, so that each training needs a model that was loaded anew.
        args ([`FewShotArguments`]): Everything else there is to choose.
        processing_class: The processor of the model; changed in place, and saved beside it.
        train_dataset ([`LabelledImages`] or [`FewShotFeatures`], *optional*):
            Training images, see [`sample_shots`]; or features of them that are at hand, of which an epoch draws a view
            each, whatever `num_cached_views` is.
        labels (`Sequence[str]`): The names of the classes, in the order of their numbers.
        eval_dataset ([`LabelledImages`] or [`FewShotFeatures`], *optional*): Test images of the same classes.
        ood_datasets (`Mapping[str, LabelledImages | FewShotFeatures]`, *optional*):
            Images of none of the classes. With them, each evaluation reports AUROC and FPR95 (ID positive) of MCM on
            each of them, such as `eval_noise_auroc_mcm`, beside `eval_loss`, the cross entropy, and `eval_accuracy`.
        trained_with (`Mapping[str, Any]`, *optional*):
            What is to be remembered of the run beside the method, its seed and the number of images, of what JSON
            knows, such as `{"sample_seed": 0}`.
        callbacks (`list[TrainerCallback]`, *optional*): As in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*): As in [`~transformers.Trainer`].

    Raises:
        TypeError: `model` is of another kind or has an adapter already, its image encoder has no patches where the
            loss needs them, or `args` or a data set are of another kind.
        ValueError:
            Half-precision weights; no images of some class, or of one class only; more or fewer classes than `labels`;
            features that lack what this trainer needs, or are of another dimension; OOD sets without `eval_dataset`;
            views without augmentation; `labels` in another order than the data sets have them; images of a size that
            the image encoder does not take; prompts that [`~clipn_hf.modeling.add_context_tokens`] refuses.
    """

    # What the loss needs of an image, of what `FewShotFeatures` has
    required_features: ClassVar[tuple[str, ...]] = ("embeddings",)
    # Whether `encode_images` looks at patches
    reads_patches: ClassVar[bool] = False
    method: ClassVar[str]
    arguments_type: ClassVar[type[FewShotArguments]] = FewShotArguments

    args: FewShotArguments
    processing_class: Any
    model: Any
    train_dataset: Any
    hub_model_id: Any

    def __init__(
        self,
        model: Any,
        args: FewShotArguments,
        *,
        processing_class: Any,
        labels: Sequence[str],
        train_dataset: LabelledImages | FewShotFeatures | None = None,
        eval_dataset: LabelledImages | FewShotFeatures | None = None,
        ood_datasets: Mapping[str, LabelledImages | FewShotFeatures] | None = None,
        trained_with: Mapping[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if not isinstance(args, self.arguments_type):
            raise TypeError(
                f"`args` of {type(self).__name__} must be {self.arguments_type.__name__}, got {type(args).__name__}."
            )
        check_dual_encoder(model)
        if isinstance(model, PeftModel) or getattr(model, "peft_config", None):
            raise TypeError(
                "`model` has an adapter already, beside which this trainer puts no other; load the model anew, "
                "without it, for each training."
            )
        if model.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"The weights of `model` are {model.dtype}, too coarse for the steps of the optimizer; load it with "
                "`dtype=torch.float32`. The arguments `bf16` and `fp16` compute in half precision all the same."
            )
        self.labels = validate_labels(labels)
        self.ood_datasets = dict(ood_datasets or {})
        self._check_datasets(train_dataset, eval_dataset, args, getattr(model, "projection_dim", None))
        if args.n_gpu > 1:
            logger.warning(
                f"Training on one of {args.n_gpu} GPUs; start with `accelerate launch` to have a process on each."
            )
            args._n_gpu = 1
        if args.device.type == "cpu":
            # Every loader would warn that there is no accelerator to pin memory for.
            args.dataloader_pin_memory = False
        # Adapters begin at random, and Trainer would set the seed too late for them.
        set_seed(args.seed)
        self.dual_encoder = DualEncoder(model, processing_class)
        given = (train_dataset, eval_dataset, *self.ood_datasets.values())
        if any(isinstance(dataset, LabelledImages) for dataset in given):
            self._check_images(isinstance(train_dataset, LabelledImages))
        # The templates of the model are still those written by hand.
        self._prepare_encoder(args)
        prompts = self._add_prompts(model, processing_class, args)
        described = {"method": self.method, "seed": args.seed, **_count_shots(train_dataset), **(trained_with or {})}
        attach_learned_prompts(model, replace(prompts, trained_with=described))
        self._features: dict[tuple[int, bool], tuple[Any, FewShotFeatures]] = {}
        super().__init__(
            model=PromptClassifier(
                _wrap(model, prompts, processing_class.tokenizer),
                _tokenize(model, processing_class.tokenizer, prompts),
                self.dual_encoder.logit_scale,
            ),
            args=args,
            data_collator=default_collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), SetEpochCallback(), LogLastStepCallback(), WriteMetricsCallback()],
            optimizers=optimizers,
        )
        # The loss is a mean over the batch, so Trainer has to divide it by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.label_names = ["labels"]
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Checkpoints of this trainer hold what is learned alone, which FSDP and DeepSpeed take apart; start "
                "with `accelerate launch --multi_gpu`, which keeps a copy in each process."
            )

    @property
    def encoder(self) -> PeftModel:
        """The dual encoder, with peft around it."""
        encoder: PeftModel = self.model.encoder
        return encoder

    @property
    def learned_prompts(self) -> LearnedPrompts:
        """What the prompts are, and what they are learned from."""
        prompts: LearnedPrompts = self.dual_encoder.model.learned_prompts
        return prompts

    def _check_images(self, trains: bool) -> None:
        """Encode one image, so that images of a wrong size, or no patches, are an error before the training begins."""
        inputs = self.dual_encoder.prepare_images([Image.new("RGB", (256, 256), "gray")])
        if trains and self.reads_patches:
            self.dual_encoder.image_and_local_embeddings(inputs)
        else:
            self.dual_encoder.image_embeddings(inputs)

    # What a method may differ in

    def _prepare_encoder(self, args: Any) -> None:
        """Check arguments, and compute what the loss needs of the model as it came, before it gets tokens to learn."""

    def _add_prompts(self, model: Any, processor: Any, args: FewShotArguments, **unknown: Any) -> LearnedPrompts:
        """Give model and processor the tokens that are learned."""
        try:
            return add_context_tokens(
                model,
                processor,
                self.labels,
                num_tokens=args.num_context_tokens,
                init_text=args.context_init,
                class_specific=args.class_specific,
                class_position=args.class_position,
                seed=args.seed,
                **unknown,
            )
        except ValueError as error:
            message = str(error)
            for theirs, own in (("num_tokens", "num_context_tokens"), ("init_text", "context_init")):
                message = message.replace(f"`{theirs}`", f"`{own}`")
            raise ValueError(message) from error

    def encode_images(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Compute the features of prepared images that the loss needs.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): What the image processor gives.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*): Their classes.

        Returns:
            `dict[str, torch.Tensor]`: As for [`FewShotFeatures`], the first dimension `batch`.
        """
        return self._embed_images(inputs, labels)

    def _embed_images(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        return {"embeddings": self.dual_encoder.image_embeddings(inputs)}

    def training_loss(self, model: nn.Module, features: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            model (`torch.nn.Module`): A [`PromptClassifier`], or what is around it.
            features (`dict[str, torch.Tensor]`): Of images, those of `required_features`.
            labels (`torch.Tensor` of shape `(batch,)`): Their classes.

        Returns:
            `torch.Tensor`: A scalar.
        """
        raise NotImplementedError

    def ood_scores(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute the scores that an evaluation reports.

        Args:
            logits (`torch.Tensor` of shape `(images, classes)`): With a last column for the unknown class, if there is
                one.

        Returns:
            `dict[str, torch.Tensor]`: By name, of shape `(images,)`; higher = more OOD.
        """
        return {"mcm": mcm(logits[:, : len(self.labels)] / self.model.logit_scale)}

    # The rest is the same for all.

    def get_train_dataloader(self) -> DataLoader[Any]:
        given = self.train_dataset
        if isinstance(given, LabelledImages) and self.args.num_cached_views == 0:
            collator, self.data_collator = self.data_collator, ImageCollator(self.processing_class.image_processor)
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = collator
        if given is not None:
            self.train_dataset = self._training_features()
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = given

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(self._evaluated_features(dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        return super().get_test_dataloader(self._evaluated_features(test_dataset))

    def _training_features(self) -> FewShotFeatures:
        """What `encode_images` makes of the training images, computed once."""
        return self._features_of(self.train_dataset, max(1, self.args.num_cached_views), self.encode_images)

    def _evaluated_features(self, dataset: Any) -> Any:
        """The embeddings of images, computed once; whatever else is no data set of this trainer is left alone."""
        if isinstance(dataset, LabelledImages):
            return self._features_of(dataset, 1, self._embed_images)
        if isinstance(dataset, FewShotFeatures):
            return FewShotFeatures(dataset.features["embeddings"][:, 0], dataset.labels)
        return dataset

    def _features_of(
        self, dataset: LabelledImages | FewShotFeatures, num_views: int, encode: Encode
    ) -> FewShotFeatures:
        if isinstance(dataset, FewShotFeatures):
            return dataset
        key = id(dataset), encode == self.encode_images
        if key not in self._features:
            # Whether features are computed or given must make no difference to what is drawn in training.
            with torch.random.fork_rng(devices=[]):
                features = compute_features(
                    dataset,
                    self.processing_class.image_processor,
                    encode,
                    num_views=num_views,
                    batch_size=self.args.per_device_eval_batch_size,
                    num_workers=self.args.dataloader_num_workers,
                    device=self.args.device,
                    process_index=self.args.process_index,
                    num_processes=self.args.world_size,
                )
            # The data set is kept, too, or another one might get its number.
            self._features[key] = dataset, features
        return self._features[key][1]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        schedule = super().create_scheduler(num_training_steps, optimizer)
        warmup = round(num_training_steps * self.args.warmup_epochs / self.args.num_train_epochs)
        warmup = min(warmup, num_training_steps // 2)
        if warmup == 0:
            return schedule
        if not isinstance(schedule, LambdaLR):
            raise ValueError(
                f"`lr_scheduler_type={self.args.lr_scheduler_type}` knows no other learning rate for its beginning; "
                "set `warmup_epochs` to 0."
            )
        factor = self.args.warmup_learning_rate / self.args.learning_rate
        later = schedule.lr_lambdas[0]
        self.lr_scheduler = LambdaLR(schedule.optimizer, lambda step: factor if step < warmup else later(step))
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        features = dict(inputs)
        labels = features.pop("labels")
        if return_outputs or not model.training:
            outputs = model(embeddings=features["embeddings"])
            loss = coop_loss(outputs["logits"], labels)
            return (loss, outputs) if return_outputs else loss
        if "embeddings" not in features:
            with torch.no_grad():
                features = self.encode_images(features, labels)
        return self.training_loss(model, features, labels)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # The next training step draws from the random state, with or without an evaluation before it.
        with torch.random.fork_rng(devices=[]):
            # Without `compute_metrics`, Trainer takes it that nobody wants logits.
            loss_only = self.args.prediction_loss_only
            output = super().evaluation_loop(dataloader, description, loss_only, ignore_keys, metric_key_prefix)
            if output.label_ids is None or output.predictions is None:
                return output
            ood_scores = {}
            for name, dataset in self.ood_datasets.items():
                embeddings = self._evaluated_features(dataset).features["embeddings"][:, 0]
                ood_scores[name] = self.ood_scores(self._compare(embeddings))
        logits = torch.as_tensor(output.predictions)
        predictions, truth = logits[:, : len(self.labels)].argmax(dim=1), torch.as_tensor(output.label_ids)
        measured = flatten_metrics(score_metrics(predictions, truth, self.ood_scores(logits), ood_scores))
        named = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    @torch.no_grad()
    def _compare(self, embeddings: Tensor) -> Tensor:
        """Logits `(images, classes)` of the embeddings `(images, dim)` of images, on the CPU."""
        with self.compute_loss_context_manager():
            text = self.model.class_embeddings()
        scale = self.model.logit_scale
        return torch.cat([scale * (part.to(text.device) @ text.T).cpu() for part in embeddings.split(ROWS)])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "README.md"
        own_card = card.read_bytes() if card.exists() else None
        # The new rows of the tokenizer's tokens are all that is learned, so the embeddings need not be saved.
        self.encoder.save_pretrained(str(folder), save_embedding_layers=False)
        # What peft makes of it is a form to be filled in, and would stand in the way of the card of a detector.
        card.unlink(missing_ok=True)
        if own_card is not None:
            card.write_bytes(own_card)
        self.processing_class.save_pretrained(folder)
        self._save_prompts(folder)
        torch.save(self.args, folder / "training_args.bin")

    def _save_prompts(self, folder: Path) -> None:
        base = self.dual_encoder.model
        if is_embedded_checkpoint(base.name_or_path):
            # `transformers.pipeline` would look for the configuration of a base model that the Hub does not have.
            base.config.save_pretrained(folder)
        save_learned_prompts(self.learned_prompts, folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer itself copies the files alone that it knows.
        if self.is_world_process_zero():
            self._save_prompts(Path(str(self.args.output_dir)))
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.check_checkpoint(resume_from_checkpoint)
        set_peft_model_state_dict(self.encoder, load_peft_weights(resume_from_checkpoint, device="cpu"))

    def check_checkpoint(self, folder: str | os.PathLike[str]) -> None:
        """Check that a checkpoint is one of this run, as `train` does before it goes on from it.

        Args:
            folder (`str` or `os.PathLike`): That of the checkpoint.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: It has no learned prompts; or those of another model or method, of other labels, or with other
                tokens or texts.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder} to resume from; give that of a checkpoint, such as "
                f"{Path(str(self.args.output_dir), 'checkpoint-100')}."
            )
        theirs, own = load_learned_prompts(folder), self.learned_prompts
        if theirs is None:
            raise ValueError(f"{folder} has no {LEARNED_PROMPTS_NAME}, so that it is no checkpoint of this trainer.")
        own_image = own.base.get("image_weights_sha256")
        compared = {
            "the model": (theirs.base.get("text_weights_sha256"), own.base.get("text_weights_sha256")),
            # Checkpoints of earlier versions do not tell.
            "the image encoder": (theirs.base.get("image_weights_sha256", own_image), own_image),
            "the method": ((theirs.trained_with or {}).get("method"), self.method),
            "the labels": (theirs.labels, own.labels),
            "the context tokens": (theirs.tokens, own.tokens),
            "the prompts": (theirs.build_prompts(), own.build_prompts()),
            "the prompt for the unknown": (theirs.unknown_prompt, own.unknown_prompt),
        }
        differing = [name for name, (of_folder, of_run) in compared.items() if of_folder != of_run]
        if differing:
            name = differing[0]
            of_folder, of_run = _describe_difference(*compared[name])
            raise ValueError(
                f"The checkpoint {folder} is of another run: {name} differ{'' if name.endswith('s') else 's'}, "
                f"{of_folder} there and {of_run} here. Give the arguments of that run, or begin anew."
            )

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

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
            language, license, tags, model_name, finetuned_from, dataset: As in [`~transformers.Trainer`].
            tasks, dataset_tags, dataset_args: Not used; the card knows its task.
            details: Further arguments of [`~clipn_hf.training.few_shot_card.write_few_shot_card`].
        """
        if self.is_world_process_zero():
            hub_id = self.hub_model_id or self.args.hub_model_id
            write_few_shot_card(
                str(self.args.output_dir),
                model=self.encoder,
                args=self.args,
                log_history=self.state.log_history,
                **describe_card(hub_id, model_name, finetuned_from, dataset, tags),
                license=license,
                language=language,
                **details,
            )

    def _check_datasets(self, train: Any, test: Any, args: FewShotArguments, dim: int | None) -> None:
        """Refuse what would fail after the first images were encoded, or would not learn what it should."""
        for name, dataset in self.ood_datasets.items():
            check_dataset(dataset, f"ood_datasets[{name!r}]", None, dim)
        if test is not None:
            check_dataset(test, "eval_dataset", self.labels, dim)
        elif self.ood_datasets:
            raise ValueError("`ood_datasets` are compared with images of the classes; give `eval_dataset`, too.")
        if train is None:
            return
        check_dataset(train, "train_dataset", self.labels, dim)
        labels = find_labels(train)
        assert labels is not None
        try:
            check_classes(labels, self.labels)
        except ValueError as error:
            raise ValueError(f"`train_dataset`: {error}") from error
        if isinstance(train, FewShotFeatures):
            lacking = [name for name in self._needs(args) if name not in train.features]
            if lacking:
                raise ValueError(
                    f"{type(self).__name__} needs `{'` and `'.join(lacking)}` of the images, which `train_dataset` "
                    "lacks; give them to `FewShotFeatures`, or give `LabelledImages`."
                )
        elif args.num_cached_views > 1 and train.augmentation is None:
            raise ValueError(
                f"`num_cached_views={args.num_cached_views}` views of each image would all be the same without "
                "augmentation; give `LabelledImages` an `augmentation`, or use one view."
            )

    def _needs(self, args: FewShotArguments) -> tuple[str, ...]:
        """What the loss needs of an image with these arguments."""
        return self.required_features


def _wrap(model: Any, prompts: LearnedPrompts, tokenizer: Any) -> PeftModel:
    """The model with peft around it, in which the tokens of the prompts alone are trainable."""
    with warnings.catch_warnings():
        # Of a name in transformers that peft reads, and nobody here can change.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, prompt_tuning_config(prompts, tokenizer), revision=prompts.base["revision"])


def _tokenize(model: Any, tokenizer: Any, prompts: LearnedPrompts) -> dict[str, Tensor]:
    """The prompt of each class, and that of the unknown one, if there is one, as the text encoder takes them."""
    texts = prompts.build_prompts()
    if prompts.unknown_prompt is not None:
        texts.append(prompts.unknown_prompt)
    tokens = tokenizer(texts, padding="longest", return_tensors="pt", **tokenizer_options(model, tokenizer))
    return accepted_inputs(model.get_text_features, tokens)


def _describe_difference(first: Any, second: Any) -> list[str]:
    """Two values as a message shows them: of lists the first entry that differs."""
    if isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return [f"{len(first):,}", f"{len(second):,}"]
        first, second = next((one, other) for one, other in zip(first, second, strict=True) if one != other)
    return [text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…" for text in map(repr, (first, second))]


def _count_shots(dataset: Any) -> dict[str, int | None]:
    """How many images the prompts are learned from, and how many of each class, if that is the same number."""
    labels = None if dataset is None else find_labels(dataset)
    if labels is None:
        return {}
    counts = {*labels.unique(return_counts=True)[1].tolist()}
    return {"images": len(labels), "shots": counts.pop() if len(counts) == 1 else None}


__all__ = ["FewShotTrainer", "PromptClassifier"]
