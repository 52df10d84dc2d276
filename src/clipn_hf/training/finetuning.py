# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of the image encoder as a classifier, to which "Adapting Contrastive Language-Image Pretrained (CLIP)
Models for Out-of-Distribution Detection" (arXiv 2303.05828) compares linear probing.

The head is a linear probe. Where it was trained on the frozen encoder before, this is LP-FT of Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (arXiv 2202.10054).
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput

from ..digests import describe_image_encoder
from ..families import accepted_inputs, check_dual_encoder, pooled_features
from ..image_inputs import concatenate_inputs, prepare_image
from ..probing import LinearProbe
from .augmentation import Augmentation
from .classification_results import classification_metrics, flatten_metrics
from .rows import read_image
from .runs import LogLastStepCallback, SetEpochCallback, WriteMetricsCallback

HEAD_FOLDER = "head"


@dataclass
class FinetuningArguments(TrainingArguments):
    r"""Arguments of [`FinetuningTrainer`]. All of [`~transformers.TrainingArguments`], of which the first group below
    has other defaults.

    Recipe:
        learning_rate (`float`, *optional*, defaults to `1e-5`): Highest learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to `0.1`): Of everything but biases and norms.
        lr_scheduler_type (`str`, *optional*, defaults to `"cosine"`): After the warm-up.
        warmup_steps (`float`, *optional*, defaults to `0.1`): Number of steps, or below 1 their share.
        num_train_epochs (`float`, *optional*, defaults to `10`): Passes over the data.
        per_device_train_batch_size, per_device_eval_batch_size (`int`, *optional*, defaults to `256`):
            Images per process.
        remove_unused_columns (`bool`, *optional*, defaults to `False`): Images would be removed otherwise.
        ddp_find_unused_parameters (`bool`, *optional*, defaults to `False`): Every trainable parameter is used.
        logging_steps (`float`, *optional*, defaults to `10`): Steps between two lines of the log.

    What is trained:
        tuning (`str`, *optional*, defaults to `"full"`):
            `"full"`: the whole image encoder. `"lora"`: low-rank adapters in the linear layers of its attention. The
            head is trained in both cases, and the text encoder in none.
        lora_rank (`int`, *optional*, defaults to `16`): Rank of the adapters.
        lora_alpha (`int`, *optional*, defaults to `32`): The adapters are multiplied by `lora_alpha / lora_rank`.
        lora_dropout (`float`, *optional*, defaults to `0.0`): Dropout in front of the adapters.

    Raises:
        ValueError: A value outside of what is described above, or an argument for what this trainer does not do.
    """

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float = field(default=1e-5, metadata={"help": "Highest learning rate of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of everything but biases and norms."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule after the warm-up."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warm-up, or below 1 their share."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Number of passes over the training data."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Training images per process and step."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Evaluation images per process and step."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove columns that the model does not know; would remove the images."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradient in every step; there are none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})

    # Parameters that say what is trained
    tuning: Literal["full", "lora"] = field(
        default="full",
        metadata={"help": "What is trained: the whole image encoder, or low-rank adapters in its attention."},
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the low-rank adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters are multiplied by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the adapters."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning not in ("full", "lora"):
            raise ValueError(f"`tuning` must be 'full' or 'lora', got {self.tuning!r}.")
        for name in ("lora_rank", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must lie in [0, 1), got {self.lora_dropout}.")
        if self.push_to_hub:
            raise ValueError(
                "`push_to_hub` would publish what is not finished; leave it out, and publish the detector when it is "
                "saved, by `OODDetector.from_pretrained(folder).save_pretrained(folder, include_weights=False, "
                "push_to_hub=True, repo_id=id)`."
            )


class LabelledImages(Dataset[dict[str, Any]]):
    """Images with the positions of their classes, augmented anew for each epoch.

    An example is `{"image": PIL.Image.Image, "labels": int}`, without `"labels"` where the rows have no `label`.
    Everything random is drawn from (seed, epoch, row number) and from nothing else, so that batches are the same for
    any number of worker processes, and a resumed run sees those of an uninterrupted one.

    Args:
        rows ([`datasets.Dataset`]): With the column `image`, as [`load_labelled_images`] gives them.
        augmentation ([`Augmentation`], *optional*): Applied to each image.
        seed (`int`, *optional*, defaults to 0): Of all draws.

    Raises:
        ValueError: There are no rows, or `seed` is negative.
    """

    def __init__(self, rows: datasets.Dataset, augmentation: Augmentation | None = None, seed: int = 0) -> None:
        if len(rows) == 0:
            raise ValueError("`rows` has no rows; is the split or the filter right?")
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}.")
        self.rows = rows
        self.augmentation = augmentation
        self.seed = seed
        # In shared memory: workers that outlive an epoch must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Make the draws those of an epoch; to be called before its first batch is asked for."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(index)]
        image = read_image(row["image"])
        if self.augmentation is not None:
            image = self.augmentation(image, np.random.default_rng([self.seed, int(self._epoch), int(index)]))
        return {"image": image, **({"labels": row["label"]} if "label" in row else {})}


class ImageCollator:
    """Make the batch of a step out of examples of [`LabelledImages`].

    Args:
        image_processor: Of the model.

    Returns (of a call):
        `dict[str, torch.Tensor]`: What the image processor makes of the images, `pixel_values` for most models, and
        with labels `labels` `(batch,)` int64.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = concatenate_inputs([prepare_image(example["image"], self.image_processor) for example in examples])
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=torch.int64)
        return batch


class ImageClassifier(nn.Module):
    """The image encoder of a dual encoder under a linear head.

    Args:
        encoder ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): With `get_image_features`.
        head ([`LinearProbe`]): On its embeddings.
    """

    # The loss is a mean over the batch, so Trainer has to divide it by the number of accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, encoder: PreTrainedModel | PeftModel, head: LinearProbe) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Classify images.

        Args:
            labels (`torch.Tensor` of shape `(batch,)`, *optional*): Their classes, int64.
            inputs: What the image processor gives.

        Returns:
            `dict`: `"logits"` `(batch, classes)`, float32, and with `labels` before it `"loss"`, the mean cross
            entropy.
        """
        encode: Any = self.encoder.get_image_features
        features = pooled_features(self.encoder, encode(**accepted_inputs(encode, inputs)))
        logits = self.head(features.float())
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Compute activations again in the backward pass, see [`~transformers.PreTrainedModel`]."""
        self.encoder.activation_checkpointing_enable(**arguments)


def find_image_parameters(model: Any, image_processor: Any) -> list[str]:
    """Find the parameters that the embeddings of images depend on, whatever the family of the model calls them.

    Args:
        model ([`~transformers.PreTrainedModel`]): A dual encoder; left as it was.
        image_processor: Of the model.

    Returns:
        `list[str]`: Their names.
    """
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    required = [parameter.requires_grad for parameter in parameters.values()]
    modes = {module: module.training for module in model.modules()}
    # Statistics of batches must not move.
    model.eval().requires_grad_(True)
    try:
        prepared = prepare_image(Image.new("RGB", (64, 64), "gray"), image_processor)
        inputs = {name: values.to(model.device) for name, values in prepared.items()}
        encode = model.get_image_features
        with torch.enable_grad():
            features = pooled_features(model, encode(**accepted_inputs(encode, inputs)))
            gradients = torch.autograd.grad(features.float().sum(), list(parameters.values()), allow_unused=True)
    finally:
        for parameter, flag in zip(parameters.values(), required, strict=True):
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
    found: Sequence[Tensor | None] = gradients
    return [name for name, gradient in zip(parameters, found, strict=True) if gradient is not None]


def find_attention_layers(model: nn.Module, parameter_names: Sequence[str]) -> str:
    """Find the linear layers of attention among some parameters.

    Args:
        model (`torch.nn.Module`): The model.
        parameter_names (`Sequence[str]`): As of [`find_image_parameters`].

    Returns:
        `str`: A regular expression that their full names match, as `target_modules` of peft takes it.

    Raises:
        ValueError: There are none.
    """
    known, modules = set(parameter_names), dict(model.named_modules())
    found: dict[str, set[str]] = {}
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        parts = parent.split(".")
        is_attention = any("attn" in part or "attention" in part for part in parts) and "mlp" not in parts
        # What reads the weight of a layer without calling it would pass its adapter by.
        called = not isinstance(modules.get(parent), nn.MultiheadAttention)
        if isinstance(module, nn.Linear) and f"{name}.weight" in known and is_attention and called:
            # One expression for the same layer of all blocks.
            blocks = re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(f"{parent}."))
            found.setdefault(blocks, set()).add(re.escape(own))
    if not found:
        raise ValueError(
            f"The image encoder of {type(model).__name__} has no linear layers of attention for `tuning lora`; use "
            "`tuning full`."
        )
    return "|".join(f"{parent}({'|'.join(sorted(layers))})" for parent, layers in sorted(found.items()))


def prepare_finetuning(model: Any, image_processor: Any, args: FinetuningArguments) -> PreTrainedModel | PeftModel:
    """Make exactly those parameters of the encoder trainable that `args.tuning` names.

    Args:
        model ([`~transformers.PreTrainedModel`]): A dual encoder; changed in place.
        image_processor: Of the model.
        args ([`FinetuningArguments`]): Says what to train.

    Returns:
        `model`, with peft around it where `args.tuning` is `"lora"`.

    Raises:
        ValueError: The model has no layers of the wanted kind.
    """
    names = find_image_parameters(model, image_processor)
    if args.tuning == "lora":
        config = LoraConfig(
            r=args.lora_rank,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=find_attention_layers(model, names),
        )
        revision = getattr(model.config, "_commit_hash", None)
        with warnings.catch_warnings():
            # Of a name in transformers that peft reads, and nobody here can change.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return get_peft_model(model, config, revision=revision)
    wanted = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    return model


class FinetuningTrainer(Trainer):
    """Train the image encoder of a dual encoder as a classifier.

    Checkpoints are folders of a model in its own class, or of a peft adapter, with the processor, and with the head in
    the folder `head` inside: [`DualEncoder`] loads the one, [`LinearProbe`] the other. After each evaluation
    `metrics.jsonl` in `output_dir` has a line for each evaluation so far.

    Args:
        model ([`~transformers.PreTrainedModel`]): A dual encoder with float32 weights; changed in place.
        args ([`FinetuningArguments`]): Everything else there is to choose.
        head ([`LinearProbe`]):
            On the embeddings of the model. What it is initialised with is up to the caller; its standardisation stays.
            Changed in place.
        processing_class: The processor of the model; saved beside it.
        train_dataset ([`LabelledImages`], *optional*): Training images.
        eval_dataset ([`LabelledImages`], *optional*): Test images of the same classes.
        ood_datasets (`Mapping[str, LabelledImages]`, *optional*):
            Images of none of the classes. With them, each evaluation reports AUROC and FPR95 (ID positive) on each of
            them, such as `eval_noise_auroc_energy`, beside `eval_loss` and `eval_accuracy`; see
            [`classification_metrics`].
        callbacks (`list[TrainerCallback]`, *optional*): As in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*): As in [`~transformers.Trainer`].

    Raises:
        TypeError: `model` is no dual encoder, or has an adapter already.
        ValueError: Half-precision weights, a head of another dimension, OOD sets without `eval_dataset`, or a model
            without layers for `args.tuning`.

    Example:

    ```python
    >>> from clipn_hf import DualEncoder, OODDetector
    >>> from clipn_hf.training import FinetuningArguments, FinetuningTrainer, LabelledImages, load_labelled_images

    >>> encoder = DualEncoder.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> rows = load_labelled_images("photos")  # doctest: +SKIP
    >>> trainer = FinetuningTrainer(  # doctest: +SKIP
    ...     encoder.model,
    ...     FinetuningArguments(output_dir="finetuned", bf16=True),
    ...     head=probe,
    ...     processing_class=encoder.processor,
    ...     train_dataset=LabelledImages(rows),
    ... )
    >>> trainer.train()  # doctest: +SKIP
    >>> trainer.save_model()  # doctest: +SKIP
    >>> detector = OODDetector.from_probe("finetuned", "finetuned/head")  # doctest: +SKIP

    ```"""

    args: FinetuningArguments
    processing_class: Any
    model: Any

    def __init__(
        self,
        model: Any,
        args: FinetuningArguments,
        *,
        head: LinearProbe,
        processing_class: Any,
        train_dataset: LabelledImages | None = None,
        eval_dataset: LabelledImages | None = None,
        ood_datasets: Mapping[str, LabelledImages] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        check_dual_encoder(model)
        if isinstance(model, PeftModel) or getattr(model, "peft_config", None):
            raise TypeError(
                "`model` has an adapter already, beside which this trainer puts no other; give the model without it, "
                "or merge it by `merge_and_unload`."
            )
        if model.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"The weights of `model` are {model.dtype}, too coarse for the steps of the optimizer; load it with "
                "`dtype=torch.float32`. The arguments `bf16` and `fp16` compute in half precision all the same."
            )
        if ood_datasets and eval_dataset is None:
            raise ValueError("`ood_datasets` are compared with images of the classes; give `eval_dataset`, too.")
        # Adapters begin at random, and Trainer would set the seed too late for them.
        set_seed(args.seed)
        self.head = head
        self.ood_datasets = dict(ood_datasets or {})
        super().__init__(
            model=ImageClassifier(prepare_finetuning(model, processing_class.image_processor, args), head),
            args=args,
            data_collator=ImageCollator(processing_class.image_processor),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=_accuracy,
            callbacks=[*(callbacks or []), SetEpochCallback(), LogLastStepCallback(), WriteMetricsCallback()],
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Checkpoints of this trainer hold the whole model, which FSDP and DeepSpeed take apart; start with "
                "`accelerate launch --multi_gpu`, which keeps a copy in each process."
            )

    @property
    def encoder(self) -> PreTrainedModel | PeftModel:
        """The dual encoder, with peft around it where `args.tuning` is `"lora"`."""
        encoder: PreTrainedModel | PeftModel = self.model.encoder
        return encoder

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if output.label_ids is None or not self.ood_datasets:
            return output
        ood_logits = {}
        for name, dataset in self.ood_datasets.items():
            ood = super().evaluation_loop(self.get_test_dataloader(dataset), name, ignore_keys=ignore_keys)
            ood_logits[name] = torch.from_numpy(ood.predictions)
        measured = classification_metrics(
            torch.from_numpy(output.predictions), torch.from_numpy(output.label_ids), ood_logits
        )
        named = {f"{metric_key_prefix}_{name}": value for name, value in flatten_metrics(measured).items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "README.md"
        own_card = card.read_bytes() if card.exists() else None
        self.encoder.save_pretrained(str(folder))
        # What peft makes of it is a form to be filled in, and would stand in the way of the card of a detector.
        card.unlink(missing_ok=True)
        if own_card is not None:
            card.write_bytes(own_card)
        self.processing_class.save_pretrained(folder)
        self.head.encoder = describe_image_encoder(self.encoder, self.processing_class.image_processor, folder.name)
        self.head.save_pretrained(folder / HEAD_FOLDER)
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        encoder, folder = self.encoder, Path(resume_from_checkpoint)
        if isinstance(encoder, PeftModel):
            set_peft_model_state_dict(encoder, load_peft_weights(str(folder), device="cpu"))
        else:
            saved = type(encoder).from_pretrained(folder, dtype=torch.float32)
            encoder.load_state_dict(saved.state_dict())
        self.head.load_state_dict(LinearProbe.from_pretrained(folder / HEAD_FOLDER).state_dict())

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


__all__ = [
    "HEAD_FOLDER",
    "FinetuningArguments",
    "FinetuningTrainer",
    "ImageClassifier",
    "ImageCollator",
    "LabelledImages",
    "find_attention_layers",
    "find_image_parameters",
    "prepare_finetuning",
]
