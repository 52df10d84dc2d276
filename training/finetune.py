# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Fine-tune the image encoder of a dual encoder as a classifier, and make an OOD detector of it.

    accelerate launch training/finetune.py --config training/recipes/finetune.yaml --dataset photos \
        --id_dataset test-photos --output_dir runs/finetune

Every key of the recipe is an argument of the same name, and arguments on the command line come before the recipe.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from torch import Tensor
from transformers.utils import logging

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.features import Features
from clipn_hf.files import atomic_path
from clipn_hf.probing import LinearProbe, few_shot_mask, train_linear_probe
from clipn_hf.probing.training import check_training_settings
from clipn_hf.script_arguments import parse_with_config
from clipn_hf.training import Augmentation, get_image_size
from clipn_hf.training.classification import (
    ClassificationDataArguments,
    check_training_classes,
    embed_rows,
    load_classification_data,
    load_encoder,
)
from clipn_hf.training.classification_results import (
    RESAMPLES,
    classification_metrics,
    describe_run,
    format_metrics,
    summarize_metrics,
)
from clipn_hf.training.finetuning import (
    HEAD_FOLDER,
    FinetuningArguments,
    FinetuningTrainer,
    LabelledImages,
)
from clipn_hf.training.runs import find_last_checkpoint

logger = logging.get_logger(__name__)

USAGE = "%(prog)s --config RECIPE.yaml [--argument value ...]"


@dataclass
class ModelArguments:
    """What training starts from, and how its images are varied."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a dual encoder. Default: the checkpoint inside this package."},
    )
    head_init: Literal["probe", "zero"] = field(
        default="probe",
        metadata={"help": "Whether the head begins as a linear probe on the frozen encoder, or with zeros."},
    )
    shots: int = field(
        default=0, metadata={"help": "Training images of each class, drawn by `seed`; 0 for all of them."}
    )
    probe_epochs: int = field(default=100, metadata={"help": "Passes over the embeddings for that linear probe."})
    score: Literal["energy", "msp", "max_logit", "perplexity", "relative_mahalanobis"] = field(
        default="msp", metadata={"help": "By which score of the logits the detector judges."}
    )
    cache_features: bool = field(
        default=True, metadata={"help": "Whether to read and keep embeddings of the frozen encoder on disk."}
    )

    augment: bool = field(default=True, metadata={"help": "Vary training images at random."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.9, 1.0], metadata={"help": "Smallest and largest share of the area that is kept."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "Brightness, contrast and saturation are multiplied by up to this much more or less than 1."
        },
    )
    grayscale_probability: float = field(default=0.0, metadata={"help": "Probability that colours become grey."})


Arguments = tuple[ModelArguments, ClassificationDataArguments, FinetuningArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line and the recipe; end the program with a message where they are wrong."""
    model_args, data_args, training_args = parse_with_config(
        [ModelArguments, ClassificationDataArguments, FinetuningArguments], argv, description=__doc__, usage=USAGE
    )
    try:
        check_arguments(model_args, data_args)
    except ValueError as error:
        argparse.ArgumentParser(usage=USAGE).error(str(error))
    return model_args, data_args, training_args


def check_arguments(model_args: ModelArguments, data_args: ClassificationDataArguments) -> None:
    """Find contradictions before anything is loaded.

    Raises:
        ValueError: There is a contradiction.
    """
    if not data_args.label_column:
        raise ValueError("Fine-tuning learns labels; name their column in `label_column`.")
    if model_args.shots < 0:
        raise ValueError(f"`shots` must be at least 1, or 0 for all images, got {model_args.shots}.")
    try:
        check_training_settings(model_args.probe_epochs, 256, 1e-3, 1e-3)
    except ValueError as error:
        raise ValueError(str(error).replace("`epochs`", "`probe_epochs`")) from error
    make_augmentation(model_args, (1, 1))


def make_augmentation(args: ModelArguments, size: tuple[int, int]) -> Augmentation | None:
    """Make the augmentation that the arguments describe.

    Raises:
        ValueError: One of them is out of its range.
    """
    if len(args.crop_scale) != 2:
        raise ValueError(f"`crop_scale` takes two numbers, the smallest and the largest share, got {args.crop_scale}.")
    augmentation = Augmentation(
        size,
        crop_scale=(args.crop_scale[0], args.crop_scale[1]),
        flip_probability=args.flip_probability,
        color_jitter=args.color_jitter,
        grayscale_probability=args.grayscale_probability,
    )
    return augmentation if args.augment else None


def embed(
    rows: datasets.Dataset, encoder: DualEncoder, use_cache: bool, args: FinetuningArguments
) -> tuple[datasets.Dataset, Features]:
    """Embed the images of a data set; give the rows with images that can be read, and their embeddings."""
    features = embed_rows(
        rows,
        encoder,
        use_cache=use_cache,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        progress=args.process_index == 0 and not args.disable_tqdm,
        warn=args.process_index == 0,
    )
    return rows.select(features.rows.tolist()) if features.skipped else rows, features


def probe_metrics(
    probe: LinearProbe, train: Features, test: Features, ood: dict[str, Features], score: str
) -> dict[str, Any]:
    """Measure the probe on the frozen encoder."""
    with torch.inference_mode():
        return classification_metrics(
            probe(test.embeddings),
            torch.tensor(test.labels),
            {name: probe(features.embeddings) for name, features in ood.items()},
            probe(train.embeddings),
            torch.tensor(train.labels),
            resamples=RESAMPLES,
            score=score,
        )


def predict(trainer: FinetuningTrainer, rows: datasets.Dataset) -> Tensor:
    """Compute the logits of images, without augmentation."""
    columns = [name for name in rows.column_names if name != "label"]
    return torch.from_numpy(trainer.predict(LabelledImages(rows.select_columns(columns))).predictions)


def main(
    model_args: ModelArguments, data_args: ClassificationDataArguments, training_args: FinetuningArguments
) -> None:
    """Train, evaluate and save."""
    with training_args.main_process_first(desc="loading data and model"):
        try:
            data = load_classification_data(data_args)
            check_training_classes(data)
            encoder = load_encoder(model_args.model_name_or_path, training_args.device)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
    # The others find in the cache what the first process embeds.
    with training_args.main_process_first(desc="embedding the images"):
        train_rows, train = embed(data.train, encoder, model_args.cache_features, training_args)
        test_rows, test = embed(data.id, encoder, model_args.cache_features, training_args)
        ood = {name: embed(rows, encoder, model_args.cache_features, training_args) for name, rows in data.ood.items()}
    if model_args.shots:
        mask = few_shot_mask(torch.tensor(train.labels), model_args.shots, training_args.seed)
        train, train_rows = train.select(mask), train_rows.select(mask.nonzero().flatten().tolist())
    probe = train_linear_probe(
        train,
        class_names=data.labels,
        epochs=model_args.probe_epochs,
        seed=training_args.seed,
        device=training_args.device,
        progress=training_args.process_index == 0 and not training_args.disable_tqdm,
    )
    frozen = probe_metrics(
        probe, train, test, {name: features for name, (_, features) in ood.items()}, model_args.score
    )

    record: dict[str, Any] = {
        **describe_run(
            encoder,
            {**asdict(model_args), **asdict(data_args), **training_args.to_dict()},
            data.labels,
            {"train": train, "id": test, **{name: features for name, (_, features) in ood.items()}},
        ),
        "linear_probe": frozen,
    }

    if model_args.head_init == "zero":
        for parameter in probe.parameters():
            torch.nn.init.zeros_(parameter)
    # Of the probe, what holds for the head as well.
    kept = {name: value for name, value in (probe.trained_on or {}).items() if name in ("images", "date", "sha256")}
    probe.trained_on = {
        **kept,
        "labelled": True,
        "finetuning": {
            "base": record["encoder"]["id"],
            "tuning": training_args.tuning,
            "head_init": model_args.head_init,
            "epochs": training_args.num_train_epochs,
            "learning_rate": training_args.learning_rate,
            "weight_decay": training_args.weight_decay,
            "seed": training_args.seed,
        },
    }
    augmentation = make_augmentation(model_args, get_image_size(encoder.processor.image_processor))
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    trainer = FinetuningTrainer(
        encoder.model,
        training_args,
        head=probe,
        processing_class=encoder.processor,
        train_dataset=LabelledImages(train_rows, augmentation, seed),
        eval_dataset=LabelledImages(test_rows),
        ood_datasets={name: LabelledImages(rows) for name, (rows, _) in ood.items()},
    )
    result = trainer.train(resume_from_checkpoint=find_last_checkpoint(training_args))
    trainer.save_model()
    id_logits = predict(trainer, test_rows)
    ood_logits = {name: predict(trainer, rows) for name, (rows, _) in ood.items()}
    if not trainer.is_world_process_zero():
        return

    folder = Path(str(training_args.output_dir))
    head = LinearProbe.from_pretrained(folder / HEAD_FOLDER)
    tuned = DualEncoder.from_pretrained(folder, device=training_args.device)
    # The detector that is saved knows them, too.
    _, tuned_train = embed(train_rows, tuned, False, training_args)
    with torch.inference_mode():
        train_logits = head(tuned_train.embeddings)
    record["finetuned"] = classification_metrics(
        id_logits,
        torch.tensor(test.labels),
        ood_logits,
        train_logits,
        torch.tensor(tuned_train.labels),
        resamples=RESAMPLES,
        score=model_args.score,
    )
    record["training"] = {name: value for name, value in result.metrics.items() if name != "total_flos"}
    with atomic_path(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    detector = OODDetector.from_probe(tuned, head, tuned_train, score=model_args.score)
    detector.save_pretrained(folder, include_weights=False)
    measured = {"linear probe": frozen, f"fine-tuned, {training_args.tuning}": record["finetuned"]}
    print(format_metrics({name: summarize_metrics([metrics]) for name, metrics in measured.items()}))
    print(f"\nWritten to {folder}: the model and its detector, its head in {HEAD_FOLDER}/, and metrics.json.")


if __name__ == "__main__":
    main(*parse_arguments())
