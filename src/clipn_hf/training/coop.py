# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, https://arxiv.org/abs/2109.01134,
code https://github.com/KaiyangZhou/CoOp.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .few_shot_config import FewShotArguments
from .few_shot_trainer import FewShotTrainer
from .prompt_losses import coop_loss


@dataclass
class CoOpArguments(FewShotArguments):
    r"""Arguments of [`CoOpTrainer`]: those of [`FewShotArguments`]."""


class CoOpTrainer(FewShotTrainer):
    r"""Learn a context with which class prompts tell images of the classes from each other.

    The loss is [`coop_loss`]. Arguments, errors and checkpoints are those of [`FewShotTrainer`].

    Example:

    ```python
    >>> from clipn_hf import DualEncoder, OODDetector
    >>> from clipn_hf.training import CoOpArguments, CoOpTrainer, LabelledImages, load_labelled_images, sample_shots

    >>> encoder = DualEncoder.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> rows = load_labelled_images("photos")  # doctest: +SKIP
    >>> shots = rows.select(sample_shots(rows["label"], shots=4))  # doctest: +SKIP
    >>> trainer = CoOpTrainer(  # doctest: +SKIP
    ...     encoder.model,
    ...     CoOpArguments(output_dir="coop", num_train_epochs=100),
    ...     processing_class=encoder.processor,
    ...     labels=rows.features["label"].names,
    ...     train_dataset=LabelledImages(shots),
    ... )
    >>> trainer.train()  # doctest: +SKIP
    >>> trainer.save_model()  # doctest: +SKIP
    >>> detector = OODDetector("coop", trainer.labels, "mcm")  # doctest: +SKIP

    ```"""

    args: CoOpArguments
    method: ClassVar[str] = "coop"
    arguments_type: ClassVar[type[FewShotArguments]] = CoOpArguments

    def training_loss(self, model: nn.Module, features: dict[str, Tensor], labels: Tensor) -> Tensor:
        return coop_loss(model(embeddings=features["embeddings"])["logits"], labels)


__all__ = ["CoOpArguments", "CoOpTrainer"]
