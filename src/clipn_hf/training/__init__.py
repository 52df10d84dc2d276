# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Training of CLIPN: data, what is trained, the trainer and its arguments, the model card. And of linear probes."""

from ..probing import LinearProbe, PseudoLabels, few_shot_mask, pseudo_label, train_linear_probe
from .augmentation import Augmentation, get_image_size
from .clipn_config import CLIPNTrainingArguments
from .clipn_trainer import CLIPNTrainer
from .collator import ImageTextCollator
from .data import ImageTextDataset, load_image_text_dataset, load_labelled_images
from .finetuning import FinetuningArguments, FinetuningTrainer, LabelledImages
from .image_cache import build_image_cache
from .model_card import write_model_card
from .tuning import add_no_tokens, load_no_prompts, prepare_tuning, save_no_prompts

__all__ = [
    "Augmentation",
    "CLIPNTrainer",
    "CLIPNTrainingArguments",
    "FinetuningArguments",
    "FinetuningTrainer",
    "ImageTextCollator",
    "ImageTextDataset",
    "LabelledImages",
    "LinearProbe",
    "PseudoLabels",
    "add_no_tokens",
    "build_image_cache",
    "few_shot_mask",
    "get_image_size",
    "load_image_text_dataset",
    "load_labelled_images",
    "load_no_prompts",
    "prepare_tuning",
    "pseudo_label",
    "save_no_prompts",
    "train_linear_probe",
    "write_model_card",
]
