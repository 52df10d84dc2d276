# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Train linear probes on the frozen image embeddings of a dual encoder, with labels or with pseudo-labels.

    python training/probe.py --config training/recipes/linear-probe.yaml --dataset photos --id_dataset test-photos \
        --output_dir runs/probe

Every key of the recipe is an argument of the same name, and arguments on the command line come before the recipe.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import logging

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.detector_state import Wording
from clipn_hf.features import Features
from clipn_hf.files import atomic_path
from clipn_hf.methods import get_method
from clipn_hf.probing import LinearProbe, PseudoLabels, few_shot_mask, pseudo_label, train_linear_probe
from clipn_hf.probing.pseudo_labels import record_pseudo_labels
from clipn_hf.probing.training import check_training_settings
from clipn_hf.script_arguments import parse_with_config
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

logger = logging.get_logger(__name__)

USAGE = "%(prog)s --config RECIPE.yaml [--argument value ...]"
ROWS = 65536  # Rows of logits that are computed at a time.


@dataclass
class ProbeArguments:
    """What is trained, on which embeddings, and where it goes."""

    output_dir: str = field(metadata={"help": "Folder to write, new or empty."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a dual encoder. Default: the checkpoint inside this package."},
    )
    method: Literal["linear_probe", "plp"] = field(
        default="linear_probe",
        metadata={"help": "Whether probes learn labels, or pseudo-labels that the texts of the labels give."},
    )
    templates: list[str] | None = field(
        default=None,
        metadata={"help": "Templates with one {} for the label. Default: those of the model, or the paper's five."},
    )
    min_confidence: float = field(
        default=0.9, metadata={"help": "Images with a less confident pseudo-label are left out; 0 keeps all."}
    )
    shots: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Training images of each class; 0 for all of them. One set of probes for each number."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "One probe for each; the first is that of the detector."}
    )
    score: Literal["energy", "msp", "max_logit", "perplexity", "relative_mahalanobis"] = field(
        default="msp", metadata={"help": "By which score of the logits the detector judges."}
    )

    epochs: int = field(default=100, metadata={"help": "Passes over the training images."})
    batch_size: int = field(default=256, metadata={"help": "Embeddings per step."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Highest learning rate of Adam per 256 embeddings of a batch."}
    )
    weight_decay: float = field(default=1e-3, metadata={"help": "Weight of the L2 penalty."})
    warmup_fraction: float = field(default=0.1, metadata={"help": "Share of the steps with linear warm-up."})
    validation_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training images of each class that is held out, to take the probe from the epoch of "
            "the lowest loss on them."
        },
    )
    patience: int | None = field(
        default=None,
        metadata={
            "help": "Epochs without a lower loss on held-out images before training ends. Default: all `epochs`."
        },
    )

    device: str | None = field(default=None, metadata={"help": "Such as cpu. Default: a GPU if there is one."})
    image_batch_size: int = field(default=64, metadata={"help": "Images per pass through the model."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read and prepare images."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of the cache of embeddings."})
    cache_features: bool = field(default=True, metadata={"help": "Whether to read and keep embeddings on disk."})


Arguments = tuple[ProbeArguments, ClassificationDataArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line and the recipe; end the program with a message where they are wrong."""
    args, data_args = parse_with_config(
        [ProbeArguments, ClassificationDataArguments], argv, description=__doc__, usage=USAGE
    )
    try:
        check_arguments(args, data_args)
    except ValueError as error:
        argparse.ArgumentParser(usage=USAGE).error(str(error))
    return args, data_args


def check_arguments(args: ProbeArguments, data_args: ClassificationDataArguments) -> None:
    """Find contradictions before anything is loaded.

    Raises:
        ValueError: There is a contradiction.
    """
    if args.method == "linear_probe" and not data_args.label_column:
        raise ValueError("`method linear_probe` learns labels; name their `label_column`, or use `method plp`.")
    for name in ("shots", "seeds"):
        values = getattr(args, name)
        if not values or min(values) < 0 or len({*values}) < len(values):
            raise ValueError(f"`{name}` must be whole numbers of at least 0, each once, got {values}.")
    if not 0 <= args.min_confidence <= 1:
        raise ValueError(f"`min_confidence` must be between 0 and 1, got {args.min_confidence}.")
    for seed in args.seeds:
        check_training_settings(
            args.epochs,
            args.batch_size,
            args.learning_rate,
            args.weight_decay,
            args.warmup_fraction,
            args.patience,
            seed,
        )
    if not 0 <= args.validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must be at least 0 and less than 1, got {args.validation_fraction}.")
    if args.patience is not None and not args.validation_fraction:
        raise ValueError("`patience` needs held-out images to watch; set `validation_fraction`, such as 0.1.")
    if args.image_batch_size < 1:
        raise ValueError(f"`image_batch_size` must be at least 1, got {args.image_batch_size}.")
    if args.num_workers < 0:
        raise ValueError(f"`num_workers` must be 0 or more, got {args.num_workers}.")
    folder = Path(args.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`output_dir` {folder} has files already; name a new or empty folder.")


def embed_texts(encoder: DualEncoder, labels: list[str], templates: list[str] | None) -> tuple[Tensor, list[str]]:
    """Embed the texts of the labels, and say in which templates."""
    used, _ = Wording(labels, templates).resolve_templates(encoder, get_method("plp"))
    text, _ = encoder.class_embeddings(labels, used, use_no_encoder=False)
    return text.cpu(), list(used)


def zero_shot_logits(features: Tensor, text: Tensor, encoder: DualEncoder) -> Iterator[Tensor]:
    """Compare embeddings with those of the texts of the labels, part by part."""
    for part in features.split(ROWS):
        yield encoder.logit_scale * part @ text.T + encoder.logit_bias


def compute_logits(probe: LinearProbe, features: Tensor) -> Tensor:
    """Compute the logits of a probe, part by part."""
    with torch.inference_mode():
        return torch.cat([probe(part) for part in features.split(ROWS)])


def hold_out(targets: Tensor, fraction: float) -> Tensor:
    """Draw a share of the images of each class, the same for all probes of a run; give the mask of these."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        members = order[targets[order] == label]
        mask[members[: int(fraction * len(members))]] = True
    return mask


def train_probe(
    features: Features,
    targets: Tensor,
    labels: list[str],
    seed: int,
    args: ProbeArguments,
    validation: tuple[Features, Tensor] | None = None,
) -> LinearProbe:
    """Train one probe by the recipe."""
    return train_linear_probe(
        features,
        targets,
        class_names=labels,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup_fraction=args.warmup_fraction,
        validation_features=None if validation is None else validation[0],
        validation_labels=None if validation is None else validation[1],
        patience=args.patience,
        seed=seed,
        device=args.device,
        allow_empty_classes=args.method == "plp",
    )


def describe_shots(shots: int, targets: Tensor) -> str:
    """Say of which of the images a probe was trained."""
    if shots == 0:
        return "all images"
    _, counts = targets.unique(return_counts=True)
    limit = "up to " if counts.min() < shots else ""
    return f"{limit}{shots} image{'s' if shots > 1 else ''} per class"


def describe_pseudo_labels(found: PseudoLabels, true_labels: Sequence[Any] | None) -> dict[str, Any]:
    """Describe pseudo-labels, and say how many are right where the labels are known after all."""
    described = found.describe()
    if true_labels is not None:
        right = found.labels == torch.tensor(true_labels)
        described["accuracy"] = right.double().mean().item()
        described["kept_accuracy"] = right[found.kept].double().mean().item()
    return described


def word_pseudo_labels(found: PseudoLabels) -> str:
    """Say how many images are kept, and how evenly they are spread over the classes."""
    what = "are kept with their pseudo-label" if found.min_confidence is None else "have a confident pseudo-label"
    return (
        f"{int(found.kept.sum())} of {len(found)} images {what}; {len(found.empty_classes)} of {found.num_classes} "
        f"classes have none. The balance over all classes is {found.balance:.3f} (1 = even)."
    )


def main(args: ProbeArguments, data_args: ClassificationDataArguments) -> None:
    """Embed, train, evaluate and save."""
    try:
        data = load_classification_data(data_args)
        if args.method == "linear_probe":
            check_training_classes(data)
        encoder = load_encoder(args.model_name_or_path, args.device)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    train, test, *others = (
        embed_rows(
            rows,
            encoder,
            cache_dir=args.cache_dir,
            use_cache=args.cache_features,
            batch_size=args.image_batch_size,
            num_workers=args.num_workers,
        )
        for rows in (data.train, data.id, *data.ood.values())
    )
    ood = dict(zip(data.ood, others, strict=True))
    test_labels = torch.tensor(test.labels)
    text, templates = embed_texts(encoder, data.labels, args.templates)

    record: dict[str, Any] = {
        "method": args.method,
        **describe_run(
            encoder, {**asdict(args), **asdict(data_args)}, data.labels, {"train": train, "id": test, **ood}
        ),
        "templates": templates,
    }
    zero_shot = classification_metrics(
        torch.cat([*zero_shot_logits(test.embeddings, text, encoder)]),
        test_labels,
        {name: torch.cat([*zero_shot_logits(part.embeddings, text, encoder)]) for name, part in ood.items()},
        resamples=RESAMPLES,
        score=args.score,
    )
    record["zero_shot"] = zero_shot
    features, pseudo_labels = train, None
    if args.method == "plp":
        found = pseudo_label(zero_shot_logits(train.embeddings, text, encoder), args.min_confidence or None)
        record["pseudo_labels"] = describe_pseudo_labels(found, train.labels)
        features, targets = train.select(found.kept), found.labels[found.kept]
        pseudo_labels = record_pseudo_labels(
            found.counts, found.kept_counts, found.min_confidence, data.labels, templates
        )
        logger.warning(word_pseudo_labels(found))
    else:
        targets = torch.tensor(train.labels)
    validation, held_out = None, torch.zeros_like(targets, dtype=torch.bool)
    every, every_targets = features, targets
    if args.validation_fraction:
        held_out = hold_out(targets, args.validation_fraction)
        if not held_out.any():
            raise SystemExit(
                f"error: `validation_fraction` {args.validation_fraction} of the images of each class is less than "
                "one image; raise it, or leave it out."
            )
        validation = (features.select(held_out), targets[held_out])
        features, targets = features.select(~held_out), targets[~held_out]
        record["images"]["validation"] = {"images": len(validation[1])}

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    summaries = {"zero-shot": summarize_metrics([zero_shot])}
    record["probes"] = []
    chosen: tuple[LinearProbe, Features, Tensor, Tensor] | None = None
    # All images come last, however many they are.
    for shots in sorted(args.shots, key=lambda number: number or float("inf")):
        runs = []
        made = set()
        for seed in args.seeds:
            mask = few_shot_mask(targets, shots, seed) if shots else torch.ones_like(targets, dtype=torch.bool)
            seen_rows = held_out.clone()
            seen_rows[~held_out] = mask
            own, own_targets = features.select(mask), targets[mask]
            # Seeds draw images, and their order where there are several batches.
            drawn = (mask.numpy().tobytes(), seed if len(own) > args.batch_size else None)
            if drawn in made:
                logger.warning(
                    f"Seed {seed} makes the same probe of {describe_shots(shots, targets)} as a seed before it: the "
                    "images are the same and fit into one batch. It is left out."
                )
                continue
            made.add(drawn)
            probe = train_probe(own, own_targets, data.labels, seed, args, validation)
            if pseudo_labels is not None:
                probe.trained_on = {**(probe.trained_on or {}), "labelled": False, "pseudo_labels": pseudo_labels}
            metrics = classification_metrics(
                compute_logits(probe, test.embeddings),
                test_labels,
                {name: compute_logits(probe, part.embeddings) for name, part in ood.items()},
                compute_logits(probe, own.embeddings),
                own_targets,
                resamples=RESAMPLES,
                score=args.score,
            )
            name = f"probes/{f'shots-{shots}' if shots else 'all'}-seed-{seed}"
            probe.save_pretrained(folder / name)
            record["probes"].append(
                {"shots": shots or None, "seed": seed, "folder": name, "images": len(own), "metrics": metrics}
            )
            runs.append(metrics)
            if seed == args.seeds[0]:
                chosen = (probe, own, own_targets, seen_rows)
        summaries[f"{args.method}, {describe_shots(shots, targets)}"] = summarize_metrics(runs)
    record["summary"] = summaries
    with atomic_path(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    assert chosen is not None
    probe, own, own_targets, seen_rows = chosen
    detector = OODDetector.from_probe(
        encoder, probe, own, own_targets.tolist(), templates=args.templates, score=args.score
    )
    if args.method == "plp":
        detector.remember_images(train, None)
    elif validation is not None:
        names = [data.labels[target] for target in every_targets[seen_rows]]
        detector.remember_images(every.select(seen_rows), names)
    detector.save_pretrained(folder / "detector", include_weights=False)
    print(format_metrics(summaries))
    print(f"\nWritten to {folder}: metrics.json, probes/, and the detector in detector/.")


if __name__ == "__main__":
    main(*parse_arguments())
