# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of the CLIPN training."""

import math
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class CLIPNTrainingArguments(TrainingArguments):
    r"""Arguments of [`CLIPNTrainer`]. All of [`~transformers.TrainingArguments`], of which the first group below has
    other defaults: the recipe of the CLIPN authors (arXiv 2308.12213, section 4.1, and their published code), which is
    written for four processes of 512 pairs each.

    Recipe:
        learning_rate (`float`, *optional*, defaults to `3e-4`): Initial learning rate of AdamW.
        adam_beta2 (`float`, *optional*, defaults to `0.98`): Second-moment decay; the first stays 0.9.
        adam_epsilon (`float`, *optional*, defaults to `1e-6`): Epsilon of AdamW.
        weight_decay (`float`, *optional*, defaults to `0.2`):
            Applied to matrices, embeddings and "no" prompts; gains, biases and `logit_scale` are left out.
        lr_scheduler_type (`str`, *optional*, defaults to `"cosine"`): Without warm-up unless `warmup_steps` is given.
        num_train_epochs (`float`, *optional*, defaults to `10`): Passes over the data.
        max_grad_norm (`float`, *optional*, defaults to `0.0`): The authors do not clip gradients.
        per_device_train_batch_size, per_device_eval_batch_size (`int`, *optional*, defaults to `512`):
            Pairs per process. The losses compare all pairs of a batch, so their values depend on it.
        remove_unused_columns (`bool`, *optional*, defaults to `False`): Images would be removed otherwise.
        ddp_find_unused_parameters (`bool`, *optional*, defaults to `False`): Every trainable parameter is used.
        logging_steps (`float`, *optional*, defaults to `10`): Steps between two lines of the log.

    What is trained:
        tuning (`str`, *optional*, defaults to `"full"`):
            `"full"`: the whole "no" text encoder with its projection and prompts, as in the paper. `"lora"`: low-rank
            adapters in its linear layers. `"trainable_tokens"`: placeholder tokens in front of its prompts, in place
            of the words of a hand-crafted negation. `"no_prompts"`: the additive prompts alone.
        lora_rank (`int`, *optional*, defaults to `16`): Rank of the adapters.
        lora_alpha (`int`, *optional*, defaults to `32`): The adapters are multiplied by `lora_alpha / lora_rank`.
        lora_dropout (`float`, *optional*, defaults to `0.0`): Dropout in front of the adapters.
        num_trainable_tokens (`int`, *optional*, defaults to `4`): Number of placeholder tokens.

    Loss:
        yes_weight, no_weight, tso_weight (`float`, *optional*, defaults to `0.5`):
            Weights of the three terms; the paper writes 1, the authors' code has 0.5.
        gather_negatives (`bool`, *optional*, defaults to `True`):
            Whether the images of a process are compared with the texts of all processes, or with its own only.
        loss_chunk_size (`int`, *optional*):
            Image rows of the loss worked on at a time. Memory for the loss then grows with the batch of a process and
            not with its square, at the price of computing the logits twice.

    Image embeddings computed once:
        num_cached_views (`int`, *optional*, defaults to `0`):
            Since the image encoder is frozen, its embeddings of this many views of every training image can be
            computed before the first step; each step then costs the text encoders alone. 1: plain pre-processing;
            more: augmented views, of which every epoch draws one per image. 0: images are encoded in every step.
        image_cache_dir (`str`, *optional*):
            Folder of the cached embeddings, reused when model, images and views are the same. Defaults to
            `_image_cache` in `output_dir`, which is never pushed to the Hub.

    Raises:
        ValueError: A value outside of what is described above.
    """

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float = field(default=3e-4, metadata={"help": "Initial learning rate of AdamW."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Decay of AdamW's second moments."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    weight_decay: float = field(
        default=0.2, metadata={"help": "Weight decay of everything but gains, biases and the logit scale."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Number of passes over the training data."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest gradient norm; 0 does not clip."})
    per_device_train_batch_size: int = field(default=512, metadata={"help": "Training pairs per process and step."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Evaluation pairs per process and step."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove columns that the model does not know; would remove the images."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradient in every step; there are none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})

    # Parameters that say what is trained
    tuning: Literal["full", "lora", "trainable_tokens", "no_prompts"] = field(
        default="full",
        metadata={
            "help": "What is trained: the whole 'no' text encoder, low-rank adapters in it, placeholder tokens in "
            "front of its prompts, or the additive 'no' prompts alone."
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the low-rank adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters are multiplied by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the adapters."})
    num_trainable_tokens: int = field(default=4, metadata={"help": "Number of placeholder tokens."})

    # Parameters that control the loss
    yes_weight: float = field(default=0.5, metadata={"help": "Weight of the loss of matching pairs."})
    no_weight: float = field(default=0.5, metadata={"help": "Weight of the loss of all other pairs."})
    tso_weight: float = field(default=0.5, metadata={"help": "Weight of the text semantic-opposite loss."})
    gather_negatives: bool = field(
        default=True, metadata={"help": "Compare the images of a process with the texts of all processes."}
    )
    loss_chunk_size: int | None = field(
        default=None, metadata={"help": "Image rows of the loss worked on at a time; less memory, more computation."}
    )

    # Parameters that control the cache of image embeddings
    num_cached_views: int = field(
        default=0,
        metadata={"help": "Views of every training image to encode once, before training; 0 encodes in every step."},
    )
    image_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the cached image embeddings; default: _image_cache in output_dir."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning not in ("full", "lora", "trainable_tokens", "no_prompts"):
            raise ValueError(
                f"`tuning` must be 'full', 'lora', 'trainable_tokens' or 'no_prompts', got {self.tuning!r}."
            )
        for name in ("yes_weight", "no_weight", "tso_weight"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"`{name}` must be a finite number >= 0, got {weight}; 0 switches the term off.")
        for name in ("lora_rank", "lora_alpha", "num_trainable_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must lie in [0, 1), got {self.lora_dropout}.")
        if self.loss_chunk_size is not None and self.loss_chunk_size < 1:
            raise ValueError(f"`loss_chunk_size` must be at least 1 or None, got {self.loss_chunk_size}.")
        if self.num_cached_views < 0:
            raise ValueError(f"`num_cached_views` must be at least 0, got {self.num_cached_views}.")
