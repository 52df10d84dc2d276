# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments that all trainers of prompts have in common."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from transformers import TrainingArguments


@dataclass
class FewShotArguments(TrainingArguments):
    r"""Arguments of [`FewShotTrainer`], and so of all trainers of prompts. All of [`~transformers.TrainingArguments`],
    of which the first group below has other defaults: the recipe of CoOp (arXiv 2109.01134), which LoCoOp follows.

    The authors' values are for CLIP of OpenAI, which was trained on 400 million pairs. A small model, such as the
    checkpoint inside this package, may end below the prompts that it came with by them; it needs words to begin with,
    such as `context_init="a photo of a"` or those of its own templates, and a higher rate, `learning_rate=0.05`.

    Recipe:
        learning_rate (`float`, *optional*, defaults to `0.002`):
            Highest learning rate of SGD. For small models 0.05, see above.
        optim (`str`, *optional*, defaults to `"sgd"`): With the momentum of `optim_args`, `"momentum=0.9"`.
        weight_decay (`float`, *optional*, defaults to `5e-4`): Of the context.
        lr_scheduler_type (`str`, *optional*, defaults to `"cosine"`): Down to 0.
        warmup_epochs (`float`, *optional*, defaults to `1.0`):
            For as long, at most half of the training, the learning rate is `warmup_learning_rate`; the schedule goes
            on below it. Where `max_steps` is given, this share of them: `warmup_epochs / num_train_epochs`.
        warmup_learning_rate (`float`, *optional*, defaults to `1e-5`): Constant.
        num_train_epochs (`float`, *optional*, defaults to `50`):
            Passes over the images. CoOp makes 50 with 1 image per class, 100 with 2 or 4 and 200 with 8 or 16, on
            ImageNet always 50; LoCoOp makes 50.
        max_grad_norm (`float`, *optional*, defaults to `0.0`): The authors do not clip gradients.
        per_device_train_batch_size (`int`, *optional*, defaults to `32`): Images per process.
        per_device_eval_batch_size (`int`, *optional*, defaults to `256`): The same for evaluation, and for computing
            features.
        remove_unused_columns (`bool`, *optional*, defaults to `False`): Images would be removed otherwise.
        ddp_find_unused_parameters (`bool`, *optional*, defaults to `False`): Every trainable parameter is used.
        logging_steps (`float`, *optional*, defaults to `10`): Steps between two lines of the log.

    Prompts, see [`~clipn_hf.modeling.add_context_tokens`]:
        num_context_tokens (`int`, *optional*, defaults to `16`): Tokens of the context that is learned.
        context_init (`str`, *optional*):
            Words that the context begins with, such as `"a photo of a"`, as many tokens as these have, whatever
            `num_context_tokens` is. By default it begins at random, which takes more than small models have.
        class_specific (`bool`, *optional*, defaults to `False`): Whether each class has a context of its own.
        class_position (`str`, *optional*, defaults to `"end"`):
            Where the label stands: at the `"end"`, in the `"middle"` or at the `"front"`.

    Image features:
        num_cached_views (`int`, *optional*, defaults to `1`):
            The image encoder is frozen, so its features of this many views of every image can be computed before the
            first step; each step then costs the text encoder alone. 1: the images as they are; more: augmented views,
            of which every epoch draws one per image. 0: images are augmented anew in every epoch, as the authors do,
            and encoded in every step.

    Raises:
        TypeError: A value that should be a number is none.
        ValueError: A value outside of what is described above.
    """

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float = field(default=0.002, metadata={"help": "Highest learning rate of SGD."})
    optim: str = field(default="sgd", metadata={"help": "Optimizer."})
    optim_args: str | None = field(default="momentum=0.9", metadata={"help": "Further arguments of the optimizer."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of the context."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule after the warm-up."})
    num_train_epochs: float = field(default=50.0, metadata={"help": "Number of passes over the training images."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest gradient norm; 0 does not clip."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Training images per process and step."})
    per_device_eval_batch_size: int = field(
        default=256, metadata={"help": "Images per process and step of evaluation and of computing features."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove columns that the model does not know; would remove the images."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradient in every step; there are none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})

    # Parameters that control the warm-up
    warmup_epochs: float = field(
        default=1.0, metadata={"help": "Epochs at the constant learning rate of the warm-up; 0 leaves it out."}
    )
    warmup_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the warm-up."})

    # Parameters that say what the prompts are
    num_context_tokens: int = field(default=16, metadata={"help": "Tokens of the context that is learned."})
    context_init: str | None = field(
        default=None,
        metadata={"help": "Words that the context begins with, such as 'a photo of a'. Default: at random."},
    )
    class_specific: bool = field(default=False, metadata={"help": "Learn a context of its own for each class."})
    class_position: Literal["end", "middle", "front"] = field(
        default="end", metadata={"help": "Where the label stands in the context: end, middle or front."}
    )

    # Parameters that control the image features
    num_cached_views: int = field(
        default=1,
        metadata={
            "help": "Views of every training image to encode once, before training: 1 for the image as it is, more "
            "for augmented ones, 0 to augment and encode in every step."
        },
    )

    def __post_init__(self) -> None:
        self._check_numbers()
        super().__post_init__()
        for name in ("warmup_epochs", "warmup_learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be a finite number >= 0, got {value}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"`learning_rate` must be a finite number > 0, got {self.learning_rate}.")
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                "`warmup_steps` is a linear warm-up, `warmup_epochs` a constant one; set one of them to 0."
            )
        if self.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` is not used by the losses of prompts; set it to 0.")
        if self.num_context_tokens < 1:
            raise ValueError(f"`num_context_tokens` must be at least 1, got {self.num_context_tokens}.")
        if self.context_init is not None and not self.context_init.strip():
            raise ValueError(
                f"`context_init` must have at least one word, got {self.context_init!r}; leave it out for a context "
                "that begins at random."
            )
        if self.class_position not in ("end", "middle", "front"):
            raise ValueError(f"`class_position` must be 'end', 'middle' or 'front', got {self.class_position!r}.")
        if self.num_cached_views < 0:
            raise ValueError(f"`num_cached_views` must be at least 0, got {self.num_cached_views}.")

    def _check_numbers(self) -> None:
        """Refuse texts in place of numbers, of which the first comparison would say something else."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and item.type in (int, float, int | None, float | None):
                raise TypeError(f"`{item.name}` must be a number, got the text {value!r}; give it without quotes.")


__all__ = ["FewShotArguments"]
