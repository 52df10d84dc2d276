# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""LoCoOp: Miyai et al., "LoCoOp: Few-Shot Out-of-Distribution Detection via Prompt Learning", NeurIPS 2023,
https://arxiv.org/abs/2306.01293, code https://github.com/AtsuMiyai/LoCoOp.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from .few_shot_config import FewShotArguments
from .few_shot_trainer import FewShotTrainer
from .prompt_losses import count_ood_patches, locoop_loss


@dataclass
class LoCoOpArguments(FewShotArguments):
    r"""Arguments of [`LoCoOpTrainer`]: those of [`FewShotArguments`] and the following.

    Loss:
        entropy_weight (`float`, *optional*, defaults to `0.25`): Of the entropy of patches that show something else.
        top_k (`int`, *optional*):
            A patch shows something else if this many classes are nearer to it than the label. By default a fifth of
            the classes, as the 200 of 1000 of the authors, and at least 1.

    Raises:
        ValueError: A value outside of what is described above, or of [`FewShotArguments`].
    """

    # Parameters that control the loss
    entropy_weight: float = field(
        default=0.25, metadata={"help": "Weight of the entropy of patches that show something else."}
    )
    top_k: int | None = field(
        default=None,
        metadata={"help": "Classes among which the label is not, where a patch shows something else. Default: 1/5."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.entropy_weight) and self.entropy_weight >= 0):
            raise ValueError(f"`entropy_weight` must be a finite number >= 0, got {self.entropy_weight}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1 or None, got {self.top_k}.")


class LoCoOpTrainer(FewShotTrainer):
    r"""Learn a context with which class prompts also leave open what patches show that do not show the class.

    The loss is [`locoop_loss`], with local features of the path `"value"`, see
    [`~clipn_hf.encoders.local_image_features`]. Arguments, errors and checkpoints are those of [`FewShotTrainer`];
    a `top_k` that is not less than the number of classes is an error, too.

    Example:

    ```python
    >>> from clipn_hf import DualEncoder, OODDetector
    >>> from clipn_hf.training import LabelledImages, LoCoOpArguments, LoCoOpTrainer, load_labelled_images

    >>> encoder = DualEncoder.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> rows = load_labelled_images("photos")  # doctest: +SKIP
    >>> trainer = LoCoOpTrainer(  # doctest: +SKIP
    ...     encoder.model,
    ...     LoCoOpArguments(output_dir="locoop"),
    ...     processing_class=encoder.processor,
    ...     labels=rows.features["label"].names,
    ...     train_dataset=LabelledImages(rows),
    ... )
    >>> trainer.train()  # doctest: +SKIP
    >>> trainer.save_model()  # doctest: +SKIP
    >>> detector = OODDetector("locoop", trainer.labels, "gl_mcm")  # doctest: +SKIP

    ```"""

    required_features: ClassVar[tuple[str, ...]] = ("embeddings", "patches")
    args: LoCoOpArguments
    method: ClassVar[str] = "locoop"
    arguments_type: ClassVar[type[FewShotArguments]] = LoCoOpArguments
    reads_patches: ClassVar[bool] = True

    @property
    def top_k(self) -> int:
        """`args.top_k`, or a fifth of the classes."""
        return self.args.top_k or max(1, len(self.labels) // 5)

    def _prepare_encoder(self, args: Any) -> None:
        if args.top_k is not None and args.top_k >= len(self.labels):
            raise ValueError(
                f"`top_k` must be less than the {len(self.labels)} classes, got {args.top_k}; with more, every patch "
                "would show the class of its image."
            )

    def encode_images(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        embeddings, patches = self.dual_encoder.image_and_local_embeddings(inputs, "value")
        return {"embeddings": embeddings, "patches": patches}

    def training_loss(self, model: nn.Module, features: dict[str, Tensor], labels: Tensor) -> Tensor:
        outputs = model(embeddings=features["embeddings"], patches=features["patches"])
        logits, local_logits, weight = outputs["logits"], outputs["local_logits"], self.args.entropy_weight
        if self.args.world_size > 1:
            # The mean is one over the patches of all processes, each of which may have another number of them.
            count = count_ood_patches(local_logits, labels, self.top_k)
            mean_count = self.accelerator.reduce(count, reduction="mean")
            weight *= (count / mean_count.clamp(min=1 / self.args.world_size)).item()
        return locoop_loss(logits, local_logits, labels, self.top_k, weight)


__all__ = ["LoCoOpArguments", "LoCoOpTrainer"]
