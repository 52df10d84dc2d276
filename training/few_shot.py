# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Learn prompts from a few images of each class by CoOp, LoCoOp or CLIP-OS, and make an OOD detector of them.

    accelerate launch training/few_shot.py --config training/recipes/clip-os.yaml --dataset photos \
        --id_dataset test-photos --ood_datasets other-photos --shots 2 --output_dir runs/clip-os

Every key of the recipe is an argument of the same name, and arguments on the command line come before the recipe.
`--method` decides which arguments there are, because those of its trainer are among them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
import yaml
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.features import Features, describe_skipped
from clipn_hf.files import atomic_path
from clipn_hf.images import ImageError
from clipn_hf.methods import get_method, method_inputs
from clipn_hf.script_arguments import parse_with_config, read_config
from clipn_hf.training import (
    Augmentation,
    CLIPOSArguments,
    CLIPOSTrainer,
    CoOpArguments,
    CoOpTrainer,
    FewShotArguments,
    FewShotTrainer,
    LabelledImages,
    LoCoOpArguments,
    LoCoOpTrainer,
    get_image_size,
    sample_shots,
)
from clipn_hf.training.classification import (
    ClassificationDataArguments,
    check_training_classes,
    embed_rows,
    load_classification_data,
    load_encoder,
)
from clipn_hf.training.classification_results import (
    RESAMPLES,
    describe_run,
    describe_sets,
    format_metrics,
    score_metrics,
    summarize_metrics,
)
from clipn_hf.training.few_shot_card import TITLES
from clipn_hf.training.markdown import public_name
from clipn_hf.training.rows import read_image
from clipn_hf.training.runs import find_last_checkpoint

logger = logging.get_logger(__name__)

USAGE = "%(prog)s --config RECIPE.yaml [--argument value ...]"
ROWS = 16384  # Images that are compared with the labels at a time.

MethodName = Literal["coop", "locoop", "clip_os"]
TRAINERS: Mapping[str, tuple[type[FewShotArguments], type[FewShotTrainer]]] = {
    "coop": (CoOpArguments, CoOpTrainer),
    "locoop": (LoCoOpArguments, LoCoOpTrainer),
    "clip_os": (CLIPOSArguments, CLIPOSTrainer),
}
# Methods by which detectors judge, and their settings.
SCORES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mcm": ("mcm", {}),
    "gl_mcm": ("gl_mcm", {}),
    "max_logit": ("max_logit", {}),
    "clip_os": ("clip_os", {"combination": "mcm"}),
    "clip_os_gl_mcm": ("clip_os", {"combination": "gl_mcm"}),
    "unknown_probability": ("clip_os", {"combination": "none"}),
}
DEFAULT_SCORES: Mapping[str, str] = {"coop": "mcm", "locoop": "gl_mcm", "clip_os": "clip_os"}


@dataclass
class ModelArguments:
    """What learns prompts, of how many images, and how these are varied."""

    method: MethodName = field(default="clip_os", metadata={"help": "How prompts are learned."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a CLIP or CLIPN. Default: the checkpoint inside this package."},
    )
    shots: int = field(default=0, metadata={"help": "Training images of each class; 0 for all of them."})
    sample_seed: int = field(
        default=0, metadata={"help": "Seed of the draw of these images; `seed` is that of everything else."}
    )
    score: Literal["mcm", "gl_mcm", "max_logit", "clip_os", "clip_os_gl_mcm", "unknown_probability"] | None = field(
        default=None,
        metadata={
            "help": "By which score the detector judges. Default: mcm with CoOp, gl_mcm with LoCoOp, and clip_os, "
            "the unknown class and MCM together, with CLIP-OS."
        },
    )

    augment: bool | None = field(
        default=None, metadata={"help": "Vary training images at random. Default: yes, except with one cached view."}
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata={"help": "Smallest and largest share of the area that is kept."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "Brightness, contrast and saturation are multiplied by up to this much more or less than 1."
        },
    )
    grayscale_probability: float = field(default=0.0, metadata={"help": "Probability that colours become grey."})


@dataclass
class CardArguments:
    """What the card says beside what is known from the run."""

    license: str | None = field(default=None, metadata={"help": "License of the adapter, such as apache-2.0."})
    sample_images: list[str] = field(
        default_factory=list,
        metadata={"help": "Images for the snippet of the card, addresses or files; files are published with it."},
    )


Arguments = tuple[ModelArguments, ClassificationDataArguments, CardArguments, FewShotArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line and the recipe; end the program with a message where they are wrong."""
    training_type, _ = TRAINERS[find_method(argv)]
    model_args, data_args, card_args, training_args = parse_with_config(
        [ModelArguments, ClassificationDataArguments, CardArguments, training_type],
        argv,
        description=__doc__,
        usage=USAGE,
    )
    try:
        check_arguments(model_args, data_args, training_args)
    except ValueError as error:
        argparse.ArgumentParser(usage=USAGE).error(str(error))
    return model_args, data_args, card_args, training_args


def find_method(argv: Sequence[str] | None = None) -> str:
    """Find out which method is asked for, before the arguments are known that it has.

    Args:
        argv (`Sequence[str]`, *optional*): The command line. Defaults to that of the process.

    Returns:
        `str`: A key of `TRAINERS`; the default one where something else is asked for, which parsing then refuses.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--method")
    given, _ = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    method = given.method
    if method is None and given.config is not None:
        try:
            method = read_config(given.config).get("method")
        except (OSError, ValueError, yaml.YAMLError):
            # Parsing says it with the name of the file.
            method = None
    return method if method in TRAINERS else ModelArguments.method


def check_arguments(
    model_args: ModelArguments, data_args: ClassificationDataArguments, training_args: FewShotArguments
) -> None:
    """Find contradictions before anything is loaded.

    Raises:
        ValueError: There is a contradiction.
    """
    if not data_args.label_column:
        raise ValueError("Prompts are learned from labels; name their column in `label_column`.")
    if model_args.shots < 0:
        raise ValueError(f"`shots` must be at least 1, or 0 for all images, got {model_args.shots}.")
    if model_args.sample_seed < 0:
        raise ValueError(f"`sample_seed` must be 0 or more, got {model_args.sample_seed}.")
    if model_args.method != "clip_os" and model_args.score and SCORES[model_args.score][0] == "clip_os":
        raise ValueError(
            f"`score {model_args.score}` needs a prompt for the unknown, which `method {model_args.method}` does not "
            "learn; leave it out, or use `method clip_os`."
        )
    if training_args.num_cached_views > 1 and model_args.augment is False:
        raise ValueError(
            f"With `augment false` all of `num_cached_views {training_args.num_cached_views}` would be the same; use "
            "`num_cached_views 1` or leave `augment` out."
        )
    if training_args.num_cached_views == 1 and model_args.augment:
        raise ValueError(
            "`num_cached_views 1` is one view of each image as it is, which leaves `augment` nothing to do; use 0, or "
            "more than 1."
        )
    make_augmentation(model_args, (1, 1))
    source = model_args.model_name_or_path
    if training_args.push_to_hub and source is not None and os.path.isdir(source):
        raise ValueError(
            f"`push_to_hub` would publish prompts for the model in the local folder {source}, which nobody else has; "
            "publish that model, and give its id as `model_name_or_path`."
        )


def make_augmentation(args: ModelArguments, size: tuple[int, int]) -> Augmentation:
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


def find_damaged(rows: datasets.Dataset, numbers: Sequence[int]) -> dict[int, str]:
    """Find the images among some rows that cannot be read, and why."""
    damaged = {}
    for number in numbers:
        try:
            read_image(rows[number]["image"])
        except ImageError as error:
            damaged[number] = f"Image {number}: {error}"
    return damaged


def draw_shots(rows: datasets.Dataset, labels: Sequence[str], shots: int, seed: int) -> datasets.Dataset:
    """Draw training images of each class; others take the place of those that cannot be read.

    Raises:
        ValueError: A class has too few images.
    """
    targets = torch.tensor(rows["label"])
    left = torch.ones_like(targets, dtype=torch.bool)
    damaged: dict[int, str] = {}
    while True:
        numbers = left.nonzero().flatten()
        chosen = numbers
        if shots:
            try:
                chosen = numbers[sample_shots(targets[numbers], shots, seed, labels)]
            except ValueError as error:
                if not damaged:
                    raise
                skipped = describe_skipped(list(damaged.values()), f"{len(rows)} training images")
                raise ValueError(f"{error} {skipped}") from error
        found = find_damaged(rows, chosen.tolist())
        if not found:
            break
        damaged |= found
        left[list(found)] = False
    if damaged:
        logger.warning(describe_skipped(list(damaged.values()), f"{len(rows)} training images"))
    return rows.select(chosen.tolist())


def keep_readable(rows: datasets.Dataset) -> LabelledImages:
    """Make test images of those that can be read."""
    damaged = find_damaged(rows, range(len(rows)))
    return LabelledImages(rows.select([number for number in range(len(rows)) if number not in damaged]))


def embed_test_images(
    rows: datasets.Dataset, encoder: DualEncoder, texts: Sequence[Tensor], args: FewShotArguments
) -> Features:
    """Embed test images, and keep of their patches what GL-MCM looks at, in one column more for each set of texts."""
    summarize: Callable[..., Tensor] | None = get_method("gl_mcm").summarize
    assert summarize is not None

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        embeddings, patches = encoder.image_and_local_embeddings(inputs)
        columns = [summarize(patches @ text.to(patches.device).T)[:, None] for text in texts]
        return torch.cat([embeddings, *columns], dim=1)

    return embed_rows(
        rows,
        encoder,
        embed=embed,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        progress=not args.disable_tqdm,
    )


def compute_scores(
    features: Features, column: int, text: Tensor, unknown: Tensor | None, encoder: DualEncoder
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare test images with texts.

    Args:
        features ([`~clipn_hf.features.Features`]): As `embed_test_images` gives them.
        column (`int`): Which of the sets of texts.
        text (`torch.Tensor` of shape `(classes, dim)`): The embeddings of these texts.
        unknown (`torch.Tensor` of shape `(dim,)`, *optional*): That of the prompt for the unknown.
        encoder ([`DualEncoder`]): Whose logit scale it is.

    Returns:
        `tuple`: The nearest classes `(images,)`, and the scores `(images,)` by method; higher = more OOD.
    """
    names = [name for name, (method, _) in SCORES.items() if method != "clip_os" or unknown is not None]
    nearest, scores = [], dict[str, list[Tensor]]()
    for part in features.embeddings.split(ROWS):
        inputs = method_inputs(
            part[:, : text.shape[1]].clone(), text, logit_scale=encoder.logit_scale, logit_bias=encoder.logit_bias
        )
        inputs = replace(inputs, patch_summary=part[:, text.shape[1] + column])
        if unknown is not None:
            assert inputs.image_embeddings is not None
            inputs = replace(inputs, unknown_similarity=inputs.image_embeddings @ unknown)
        nearest.append(inputs.similarity.argmax(dim=1))
        for name in names:
            method, settings = SCORES[name]
            scores.setdefault(name, []).append(get_method(method).score(inputs, **settings))
    return torch.cat(nearest), {name: torch.cat(parts) for name, parts in scores.items()}


def measure(
    test: Features,
    ood: Mapping[str, Features],
    column: int,
    text: Tensor,
    unknown: Tensor | None,
    encoder: DualEncoder,
) -> dict[str, Any]:
    """Measure accuracy, and AUROC and FPR95 of each score on each OOD set."""
    predictions, id_scores = compute_scores(test, column, text, unknown, encoder)
    ood_scores = {name: compute_scores(part, column, text, unknown, encoder)[1] for name, part in ood.items()}
    return score_metrics(predictions, torch.tensor(test.labels), id_scores, ood_scores, RESAMPLES)


def hide_folders(value: Any) -> Any:
    """Keep of paths the last part alone, in the record of a run, which may be published."""
    if isinstance(value, dict):
        return {name: hide_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [hide_folders(part) for part in value]
    if not isinstance(value, str):
        return value
    name, equals, path = value.rpartition("=")
    return f"{name}{equals}{public_name(path)}" if os.path.isabs(path) else value


def describe_shots(shots: int) -> str:
    """Say of which images the prompts were learned."""
    return f"{shots} image{'' if shots == 1 else 's'} per class" if shots else "all images"


def main(
    model_args: ModelArguments,
    data_args: ClassificationDataArguments,
    card_args: CardArguments,
    training_args: FewShotArguments,
) -> None:
    """Train, evaluate, save and publish."""
    with training_args.main_process_first(desc="loading data and model"):
        try:
            data = load_classification_data(data_args)
            check_training_classes(data)
            rows = draw_shots(data.train, data.labels, model_args.shots, model_args.sample_seed)
            encoder = load_encoder(model_args.model_name_or_path, training_args.device)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
    # Training changes the model, so that what is said and measured of it as it was comes first.
    templates, hand_written = encoder.templates, encoder.class_embeddings(data.labels, use_no_encoder=False)[0].cpu()
    train = embed_rows(
        rows,
        encoder,
        batch_size=training_args.per_device_eval_batch_size,
        use_cache=False,
        progress=False,
    )
    described = describe_run(
        encoder,
        hide_folders({**asdict(model_args), **asdict(data_args), **asdict(card_args), **training_args.to_dict()}),
        data.labels,
        {"train": train},
    )

    augments = model_args.augment if model_args.augment is not None else training_args.num_cached_views != 1
    size = get_image_size(encoder.processor.image_processor)
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    evaluates = training_args.eval_strategy != "no"
    _, trainer_type = TRAINERS[model_args.method]
    try:
        trainer = trainer_type(
            encoder.model,
            training_args,
            processing_class=encoder.processor,
            labels=data.labels,
            train_dataset=LabelledImages(rows, make_augmentation(model_args, size) if augments else None, seed),
            eval_dataset=keep_readable(data.id) if evaluates else None,
            ood_datasets={name: keep_readable(part) for name, part in data.ood.items()} if evaluates else None,
            trained_with={"sample_seed": model_args.sample_seed} if model_args.shots else {},
        )
        checkpoint = find_last_checkpoint(training_args)
        folder = get_last_checkpoint(str(training_args.output_dir)) if checkpoint is True else checkpoint
        if folder:
            trainer.check_checkpoint(folder)
    # A model of another kind, prompts that are too long for it, or a checkpoint of another run.
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    result = trainer.train(resume_from_checkpoint=checkpoint)
    # Not to be published before the rest is there.
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return

    output = Path(str(training_args.output_dir))
    # What is measured is what was saved.
    tuned = DualEncoder.from_pretrained(output, device=training_args.device)
    learned = tuned.class_embeddings(data.labels, use_no_encoder=False)[0].cpu()
    unknown = tuned.unknown_embedding().cpu() if tuned.has_unknown_prompt else None
    texts = [hand_written, learned]
    test = embed_test_images(data.id, tuned, texts, training_args)
    ood = {name: embed_test_images(part, tuned, texts, training_args) for name, part in data.ood.items()}
    if shared := len({*train.digests} & {*test.digests}):
        logger.warning(
            f"{shared} of the {len(train)} images that the prompts were learned from are among the test images, of "
            "which the results say too much then; name others as `id_dataset`."
        )
    measured = {
        "zero-shot": measure(test, ood, 0, hand_written, None, tuned),
        f"{TITLES[model_args.method][0]}, {describe_shots(model_args.shots)}": measure(
            test, ood, 1, learned, unknown, tuned
        ),
    }
    summaries = {name: summarize_metrics([metrics]) for name, metrics in measured.items()}
    zero_shot, trained = measured.values()
    described["images"] |= describe_sets({"id": test, **ood})
    record = {
        **described,
        "templates": templates,
        "prompt": trainer.learned_prompts.build_prompts()[0],
        "zero_shot": zero_shot,
        "trained": trained,
        "training": {name: value for name, value in result.metrics.items() if name != "total_flos"},
    }
    with atomic_path(output / "metrics.json") as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    method, settings = SCORES[model_args.score or DEFAULT_SCORES[model_args.method]]
    detector = OODDetector(tuned, data.labels, method, **settings)
    detector.remember_images(train)
    # The card of an earlier run, which tells of the detector as well, is about to be written anew.
    (output / "README.md").unlink(missing_ok=True)
    detector.save_pretrained(output)
    card = {
        "finetuned_from": described["encoder"]["id"],
        "dataset": data_args.dataset[0],
        "num_images": len(rows),
        "id_dataset": (data_args.id_dataset or data_args.dataset)[0],
        "ood_datasets": list(data.ood),
        "results": summaries,
        "detector": detector,
        "license": card_args.license,
        "sample_images": card_args.sample_images,
    }
    if training_args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    print(format_metrics(summaries))
    if trained["accuracy"] < zero_shot["accuracy"]:
        logger.warning(
            f"The learned prompts are worse than those written by hand: accuracy {trained['accuracy']:.1%} instead of "
            f"{zero_shot['accuracy']:.1%}. Give more images of each class, or other settings: the authors' recipe is "
            'for CLIP of OpenAI, and a small model needs `context_init`, such as "a photo of a", with a higher '
            "`learning_rate`, such as 0.05."
        )
    print(f"\nWritten to {output}: the adapter with its prompts, its detector, the card, and metrics.json.")


if __name__ == "__main__":
    main(*parse_arguments())
