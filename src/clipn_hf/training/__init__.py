# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Training of CLIPN: data, what is trained, the trainer and its arguments, the model card. Of linear probes and image
encoders. And of prompts, from a few images of each class.
"""

from ..probing import LinearProbe, PseudoLabels, few_shot_mask, pseudo_label, train_linear_probe
from .augmentation import Augmentation, get_image_size
from .clip_os import CLIPOSArguments, CLIPOSTrainer
from .clipn_config import CLIPNTrainingArguments
from .clipn_trainer import CLIPNTrainer
from .collator import ImageTextCollator
from .coop import CoOpArguments, CoOpTrainer
from .data import ImageTextDataset, load_image_text_dataset, load_labelled_images
from .few_shot_card import write_few_shot_card
from .few_shot_config import FewShotArguments
from .few_shot_data import FewShotFeatures, sample_shots
from .few_shot_trainer import FewShotTrainer
from .finetuning import FinetuningArguments, FinetuningTrainer, LabelledImages
from .image_cache import build_image_cache
from .locoop import LoCoOpArguments, LoCoOpTrainer
from .model_card import write_model_card
from .outliers import blend_patch_context, id_relevant_features, surgery_discrepancy_mask, synthesize_outliers
from .prompt_losses import clip_os_loss, coop_loss, locoop_loss, ood_entropy
from .tuning import add_no_tokens, load_no_prompts, prepare_tuning, save_no_prompts

__all__ = [
    "Augmentation",
    "CLIPNTrainer",
    "CLIPNTrainingArguments",
    "CLIPOSArguments",
    "CLIPOSTrainer",
    "CoOpArguments",
    "CoOpTrainer",
    "FewShotArguments",
    "FewShotFeatures",
    "FewShotTrainer",
    "FinetuningArguments",
    "FinetuningTrainer",
    "ImageTextCollator",
    "ImageTextDataset",
    "LabelledImages",
    "LinearProbe",
    "LoCoOpArguments",
    "LoCoOpTrainer",
    "PseudoLabels",
    "add_no_tokens",
    "blend_patch_context",
    "build_image_cache",
    "clip_os_loss",
    "coop_loss",
    "few_shot_mask",
    "get_image_size",
    "id_relevant_features",
    "load_image_text_dataset",
    "load_labelled_images",
    "load_no_prompts",
    "locoop_loss",
    "ood_entropy",
    "prepare_tuning",
    "pseudo_label",
    "sample_shots",
    "save_no_prompts",
    "surgery_discrepancy_mask",
    "synthesize_outliers",
    "train_linear_probe",
    "write_few_shot_card",
    "write_model_card",
]
