# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train a CLIPN model from a recipe.

    accelerate launch training/train.py --config training/recipes/clipn-vitb16.yaml --output_dir runs/clipn-vitb16

Every key of the recipe is an argument of the same name, and arguments on the command line come before the recipe.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from transformers import AutoConfig, CLIPProcessor
from transformers.utils import logging

from clipn_hf import CLIPNConfig, CLIPNModel, CLIPNProcessor
from clipn_hf.script_arguments import parse_with_config
from clipn_hf.training import (
    Augmentation,
    CLIPNTrainer,
    CLIPNTrainingArguments,
    ImageTextCollator,
    ImageTextDataset,
    get_image_size,
    load_image_text_dataset,
    load_labelled_images,
)
from clipn_hf.training.data import parse_filter
from clipn_hf.training.runs import find_last_checkpoint

logger = logging.get_logger(__name__)

REPORTED_ROWS = 5
USAGE = "%(prog)s --config RECIPE.yaml [--argument value ...]"


@dataclass
class ModelArguments:
    """What training starts from."""

    model_name_or_path: str = field(
        metadata={"help": "Hub id or folder of a CLIP, which gets a 'no' text encoder, or of a CLIPN."}
    )
    no_prompt_type: Literal["learnable", "handcrafted"] | None = field(
        default=None, metadata={"help": "Form of the 'no' prompts. Default for a CLIP: learnable."}
    )
    num_no_prompts: int | None = field(
        default=None, metadata={"help": "Number of learnable 'no' prompts. Default for a CLIP: 16."}
    )
    templates: list[str] | None = field(
        default=None, metadata={"help": "Templates with one {} for the label, kept with the model."}
    )
    no_templates: list[str] | None = field(
        default=None, metadata={"help": "Their negations, in the same order, for hand-crafted 'no' prompts."}
    )


@dataclass
class DataArguments:
    """What it is trained and evaluated on. A data set is a Hub id, a folder, or files (patterns allowed)."""

    dataset: list[str] = field(
        metadata={"help": "Training pairs: Hub id, folder with images and metadata.jsonl, parquet files, .tar shards."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    split: str = field(default="train", metadata={"help": "Split of the training pairs, such as train[:1000]."})
    image_column: str = field(default="image", metadata={"help": "Column of the image."})
    caption_columns: list[str] = field(
        default_factory=lambda: ["caption"],
        metadata={"help": "Columns with a caption or a list of captions; one of all is drawn in each epoch."},
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Pairs with the same value in this column match each other."}
    )
    filter: list[str] | None = field(
        default=None, metadata={"help": "Rows to keep: column=value or column=value,value; all have to hold."}
    )
    caption_templates: list[str] = field(
        default_factory=lambda: ["{}"], metadata={"help": "One of these is drawn and filled with the caption."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the pairs while training, without downloading first; needs max_steps."}
    )
    shuffle_buffer: int = field(default=2000, metadata={"help": "Rows among which a stream is shuffled."})

    augment: bool | None = field(
        default=None, metadata={"help": "Vary training images at random. Default: yes, except with one cached view."}
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.9, 1.0], metadata={"help": "Smallest and largest share of the area that is kept."}
    )
    flip_probability: float = field(default=0.0, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "Brightness, contrast and saturation are multiplied by up to this much more or less than 1."
        },
    )
    grayscale_probability: float = field(default=0.0, metadata={"help": "Probability that colours become grey."})

    eval_dataset: list[str] | None = field(
        default=None, metadata={"help": "Pairs, in the same columns, on which the losses are evaluated."}
    )
    eval_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of eval_dataset. Default: as for training, if it is that set."}
    )
    eval_split: str = field(default="validation", metadata={"help": "Split of the evaluation pairs."})
    eval_filter: list[str] | None = field(default=None, metadata={"help": "Rows of eval_dataset to keep."})
    id_dataset: list[str] | None = field(
        default=None, metadata={"help": "Images of known classes, for OOD detection during evaluation."}
    )
    id_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of id_dataset. Default: as for training, if it is that set."}
    )
    id_split: str = field(default="test", metadata={"help": "Split of id_dataset."})
    id_filter: list[str] | None = field(default=None, metadata={"help": "Rows of id_dataset to keep."})
    id_image_column: str = field(default="image", metadata={"help": "Column of the image in id_dataset."})
    id_label_column: str = field(default="label", metadata={"help": "Column of the class in id_dataset."})
    id_labels: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the classes in the order of their numbers. Default: those of id_label_column."},
    )
    ood_dataset: list[str] | None = field(default=None, metadata={"help": "Images of none of these classes."})
    ood_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of ood_dataset. Default: as for training, if it is that set."}
    )
    ood_split: str = field(default="test", metadata={"help": "Split of ood_dataset."})
    ood_filter: list[str] | None = field(default=None, metadata={"help": "Rows of ood_dataset to keep."})
    ood_image_column: str = field(default="image", metadata={"help": "Column of the image in ood_dataset."})


@dataclass
class CardArguments:
    """What the model card says beside what is known from the run."""

    license: str | None = field(default=None, metadata={"help": "License of the model, such as apache-2.0."})
    sample_images: list[str] = field(
        default_factory=list,
        metadata={"help": "Images for the snippet of the card, addresses or files; files are published with it."},
    )
    sample_labels: list[str] = field(default_factory=list, metadata={"help": "Labels for the snippet of the card."})


Arguments = tuple[ModelArguments, DataArguments, CardArguments, CLIPNTrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line and the recipe; end the program with a message where they are wrong."""
    model_args, data_args, card_args, training_args = parse_with_config(
        [ModelArguments, DataArguments, CardArguments, CLIPNTrainingArguments],
        argv,
        description=__doc__,
        usage=USAGE,
    )
    try:
        check_arguments(model_args, data_args, training_args)
    except (OSError, ValueError) as error:
        argparse.ArgumentParser(usage=USAGE).error(str(error))
    return model_args, data_args, card_args, training_args


def load_model(args: ModelArguments) -> tuple[CLIPNModel, CLIPNProcessor]:
    """Load or make the model, in float32, and its processor.

    Raises:
        ValueError: The checkpoint is neither a CLIP nor a CLIPN, or a CLIPN other than the arguments say.
    """
    names = ("no_prompt_type", "num_no_prompts", "templates", "no_templates")
    wanted = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    source = args.model_name_or_path
    if isinstance(AutoConfig.from_pretrained(source), CLIPNConfig):
        model = CLIPNModel.from_pretrained(source, dtype=torch.float32)
        processor = CLIPNProcessor.from_pretrained(source)
        for name, value in wanted.items():
            if getattr(model.config, name) != value:
                raise ValueError(
                    f"{source} is a CLIPN with `{name}={getattr(model.config, name)!r}`, but {value!r} was asked for; "
                    f"leave `{name}` out or start from a CLIP."
                )
    else:
        model = CLIPNModel.from_clip(source, **wanted)
        clip = CLIPProcessor.from_pretrained(source)
        processor = CLIPNProcessor(clip.image_processor, clip.tokenizer)
    # Tokenizers that do not say how long a text may be would let captions run past the last position
    positions = model.config.text_config.max_position_embeddings
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, positions)
    return model, processor


def make_augmentation(args: DataArguments, size: tuple[int, int]) -> Augmentation:
    """Make the augmentation that the arguments describe.

    Raises:
        ValueError: One of them is out of its range.
    """
    if len(args.crop_scale) != 2:
        raise ValueError(f"`crop_scale` takes two numbers, the smallest and the largest share, got {args.crop_scale}.")
    return Augmentation(
        size,
        crop_scale=(args.crop_scale[0], args.crop_scale[1]),
        flip_probability=args.flip_probability,
        color_jitter=args.color_jitter,
        grayscale_probability=args.grayscale_probability,
    )


def get_config_name(args: DataArguments, source: list[str], config_name: str | None) -> str | None:
    """Give the configuration of an evaluation set: its own, or that of the training set where both are the same."""
    return args.dataset_config if config_name is None and source == args.dataset else config_name


def load_data(args: DataArguments, training_args: CLIPNTrainingArguments, processor: CLIPNProcessor) -> dict[str, Any]:
    """Load the data sets of [`CLIPNTrainer`], by the names of its arguments; None for those that are not asked for."""
    columns = {
        "image_column": args.image_column,
        "caption_columns": args.caption_columns,
        "group_column": args.group_column,
        "caption_templates": args.caption_templates,
    }
    augmentation = None
    if args.augment if args.augment is not None else training_args.num_cached_views != 1:
        augmentation = make_augmentation(args, get_image_size(processor.image_processor))
    data: dict[str, Any] = dict.fromkeys(("train_dataset", "eval_dataset", "id_dataset", "ood_dataset"))
    data["train_dataset"] = load_image_text_dataset(
        args.dataset,
        split=args.split,
        config_name=args.dataset_config,
        filters=parse_filter(args.filter),
        augmentation=augmentation,
        streaming=args.streaming,
        shuffle_buffer=args.shuffle_buffer,
        seed=training_args.seed if training_args.data_seed is None else training_args.data_seed,
        **columns,
    )
    if args.eval_dataset:
        data["eval_dataset"] = load_image_text_dataset(
            args.eval_dataset,
            split=args.eval_split,
            config_name=get_config_name(args, args.eval_dataset, args.eval_dataset_config),
            filters=parse_filter(args.eval_filter),
            seed=training_args.seed,
            **columns,
        )
    if args.id_dataset and args.ood_dataset:
        data["id_dataset"] = load_labelled_images(
            args.id_dataset,
            split=args.id_split,
            config_name=get_config_name(args, args.id_dataset, args.id_dataset_config),
            image_column=args.id_image_column,
            label_column=args.id_label_column,
            label_names=args.id_labels,
            filters=parse_filter(args.id_filter),
        )
        data["ood_dataset"] = load_labelled_images(
            args.ood_dataset,
            split=args.ood_split,
            config_name=get_config_name(args, args.ood_dataset, args.ood_dataset_config),
            image_column=args.ood_image_column,
            label_column=None,
            filters=parse_filter(args.ood_filter),
        )
    return data


def check_arguments(
    model_args: ModelArguments, data_args: DataArguments, training_args: CLIPNTrainingArguments
) -> None:
    """Find contradictions before anything but the configuration of the model is loaded.

    Raises:
        OSError: The model has no configuration.
        ValueError: There is a contradiction.
    """
    tuning, no_prompt_type = training_args.tuning, model_args.no_prompt_type
    if tuning == "no_prompts" and no_prompt_type == "handcrafted":
        raise ValueError(
            "`tuning no_prompts` trains additive prompts, which `no_prompt_type handcrafted` does not have; use "
            "`no_prompt_type learnable` or another `tuning`."
        )
    if tuning == "trainable_tokens" and no_prompt_type != "handcrafted":
        source = model_args.model_name_or_path
        if no_prompt_type == "learnable" or not isinstance(AutoConfig.from_pretrained(source), CLIPNConfig):
            raise ValueError(
                "`tuning trainable_tokens` puts tokens into hand-crafted prompts, but `no_prompt_type` is learnable, "
                "the default for a CLIP; add `no_prompt_type handcrafted` or use another `tuning`."
            )
    num_views = training_args.num_cached_views
    if data_args.streaming and training_args.max_steps <= 0:
        raise ValueError("A stream has no length, so `streaming` needs `max_steps`, the number of steps to train.")
    if data_args.streaming and num_views:
        raise ValueError(
            f"`num_cached_views {num_views}` embeds all images before the first step, which `streaming` cannot give; "
            "leave one of them out."
        )
    if num_views > 1 and data_args.augment is False:
        raise ValueError(
            f"With `augment false` all of `num_cached_views {num_views}` would be the same; use `num_cached_views 1` "
            "or leave `augment` out."
        )
    if bool(data_args.id_dataset) != bool(data_args.ood_dataset):
        missing = "ood_dataset" if data_args.id_dataset else "id_dataset"
        raise ValueError(f"`id_dataset` and `ood_dataset` belong together; give `{missing}`, too.")
    if data_args.id_labels and not data_args.id_dataset:
        raise ValueError("`id_labels` names the classes of `id_dataset`; give `id_dataset` and `ood_dataset`, too.")
    if training_args.eval_strategy != "no" and not (data_args.eval_dataset or data_args.id_dataset):
        raise ValueError(
            f"`eval_strategy {training_args.eval_strategy.value}` has nothing to evaluate; give `eval_dataset`, or "
            "`id_dataset` and `ood_dataset`."
        )
    for name in ("filter", "eval_filter", "id_filter", "ood_filter"):
        try:
            parse_filter(getattr(data_args, name))
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from error
    make_augmentation(data_args, (1, 1))


def report_skipped(trainer: CLIPNTrainer) -> int:
    """Log the training pairs that no process could use, and return how many there are."""
    dataset = trainer.train_dataset
    skipped = dataset.skipped if isinstance(dataset, ImageTextDataset) else dataset.skipped_rows.as_dict()
    rows = {name: reason for part in gather_object([skipped]) for name, reason in part.items()}
    if rows and trainer.is_world_process_zero():
        listed = "".join(f"\n  {name}: {reason}" for name, reason in list(rows.items())[:REPORTED_ROWS])
        logger.warning(f"{len(rows)} training pairs could not be used, among them{listed}")
    return len(rows)


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    card_args: CardArguments,
    training_args: CLIPNTrainingArguments,
) -> None:
    """Train, evaluate, save and publish."""
    model, processor = load_model(model_args)
    with training_args.main_process_first(desc="loading the data"):
        data = load_data(data_args, training_args, processor)
    if data_args.streaming:
        # One process would otherwise read for all and could not join texts of different lengths
        training_args.accelerator_config.dispatch_batches = False

    trainer = CLIPNTrainer(
        model,
        training_args,
        data_collator=ImageTextCollator(processor),
        processing_class=processor,
        id_labels=data_args.id_labels,
        **data,
    )
    result = trainer.train(resume_from_checkpoint=find_last_checkpoint(training_args))
    metrics = {**result.metrics, "skipped_pairs": report_skipped(trainer)}
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if data["eval_dataset"] is not None or data["id_dataset"] is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    card = {
        "finetuned_from": model_args.model_name_or_path,
        "dataset": data_args.dataset[0],
        "num_pairs": None if data_args.streaming else len(data["train_dataset"]),
        "id_dataset": data_args.id_dataset[0] if data_args.id_dataset else None,
        "ood_dataset": data_args.ood_dataset[0] if data_args.ood_dataset else None,
        "license": card_args.license,
        "sample_images": card_args.sample_images,
        "sample_labels": card_args.sample_labels,
    }
    if training_args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.save_model()
        trainer.create_model_card(**card)


if __name__ == "__main__":
    main(*parse_arguments())
