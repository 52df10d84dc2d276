# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The model card: a README.md that says what a checkpoint is, how to use it, how good it is and how it was made.

Everything in it is read off the run. What is not known becomes an HTML comment, never a filler.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers.utils import logging

from ..detector import OODDetector
from ..encoders import DualEncoder
from ..files import atomic_path
from ..hub_names import is_hub_id
from ..images import ImageError, load_image
from ..modeling import CLIPNModel, CLIPNProcessor
from ..modeling.description import describe_config
from ..prompts import resolve_templates
from .clipn_config import CLIPNTrainingArguments
from .markdown import link
from .model_card_results import (
    detection_metrics,
    last_evaluation,
    loss_table,
    model_index,
    ood_note,
    ood_table,
    training_log,
    write_eval_results,
)

logger = logging.get_logger(__name__)

TAGS = ("clipn_hf", "clipn", "clip", "ood-detection", "out-of-distribution-detection")

# In this order in the card. Each belongs to the recipe, unlike paths, logging and the like.
HYPERPARAMETERS = (
    "tuning",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "num_trainable_tokens",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "yes_weight",
    "no_weight",
    "tso_weight",
    "gather_negatives",
    "num_cached_views",
    "bf16",
    "fp16",
    "seed",
)
_ONLY_WITH = {"lora": ("lora_rank", "lora_alpha", "lora_dropout"), "trainable_tokens": ("num_trainable_tokens",)}

# What the card shows and what is run to get the output it shows: the same text.
LOOP = """\
for image, result in zip(images, results):
    verdict = "unknown" if result["is_ood"] else result["label"]
    print(f"{os.path.basename(image)}: {verdict}, OOD score {result['ood_score']:.3f}")"""

CLIPN_CITATION = """\
@inproceedings{wang2023clipn,
  title     = {{CLIPN} for Zero-Shot {OOD} Detection: Teaching {CLIP} to Say No},
  author    = {Wang, Hualiang and Li, Yi and Yao, Huifeng and Li, Xiaomeng},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  pages     = {1802--1812},
  year      = {2023}
}"""

CLIP_CITATION = """\
@inproceedings{radford2021learning,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and Agarwal,
               Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and others},
  booktitle = {International Conference on Machine Learning},
  pages     = {8748--8763},
  year      = {2021}
}"""


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    model: CLIPNModel,
    processor: CLIPNProcessor,
    args: CLIPNTrainingArguments | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    model_id: str | None = None,
    model_name: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    num_pairs: int | None = None,
    id_dataset: str | None = None,
    ood_dataset: str | None = None,
    results: str | None = None,
    sample_images: Sequence[str] = (),
    sample_labels: Sequence[str] = (),
    license: str | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
) -> Path:
    """Write `README.md`, and `.eval_results/*.yaml` where detection was measured on a data set of the Hub.

    Args:
        folder (`str` or `os.PathLike`): The folder of the checkpoint.
        model ([`CLIPNModel`]): The model, as [`CLIPNTrainer`] holds it in `clipn`.
        processor ([`CLIPNProcessor`]): Its processor.
        args ([`CLIPNTrainingArguments`], *optional*): How it was trained.
        log_history (`Sequence[Mapping]`, *optional*): The log of the training, `trainer.state.log_history`.
        model_id (`str`, *optional*):
            The id on the Hub, `"owner/name"`. Without one, the snippet is for use in the folder of the checkpoint.
        model_name (`str`, *optional*): The title. Defaults to the last part of `model_id`, or of `folder`.
        base_model (`str`, *optional*): Hub id or folder of the CLIP or CLIPN that training started from.
        dataset (`str`, *optional*): Hub id or path of the training pairs.
        num_pairs (`int`, *optional*): How many there are.
        id_dataset, ood_dataset (`str`, *optional*): Hub ids or paths of the images that detection was measured on.
        results (`str`, *optional*): Markdown for the section on results, in place of what the log has on detection.
        sample_images (`Sequence[str]`, *optional*):
            Addresses or paths of images for the snippet, whose real output the card shows. Files are copied into
            `samples/` in `folder` and are published with it. Those that cannot be read are left out, with a warning.
        sample_labels (`Sequence[str]`, *optional*): The labels of the snippet.
        license, language (*optional*): Metadata of the card.
        tags (`Sequence[str]`, *optional*): Tags beside those that every CLIPN carries.

    Returns:
        `pathlib.Path` of the card. It is written only when it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = (model_name or model_id or folder.resolve().name).rpartition("/")[2]
    tuning = args.tuning if args else "full"
    metrics = last_evaluation(log_history)
    measured = {} if results else detection_metrics(metrics)
    samples = publish_samples(folder, sample_images, model_id)
    shown_images = [published for published, _ in samples] or ["picture.jpg"]
    labels = list(sample_labels) or ["cat", "dog"]

    card_data = ModelCardData(
        license=license,
        language=language,
        library_name="peft" if tuning in _ONLY_WITH else "transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=list(dict.fromkeys([*TAGS, *(["generated_from_trainer"] if args else []), *tags])),
        base_model=base_model if base_model and is_hub_id(base_model) else None,
        datasets=[dataset] if dataset and is_hub_id(dataset) else None,
        model_name=name if measured else None,
        eval_results=model_index(measured, id_dataset, ood_dataset) if measured else None,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=read_template("template.md", "model_card_template.md"),
        name=name,
        summary=_summary(base_model, dataset),
        snippet=make_snippet(model_id, shown_images, labels),
        output=_run_samples(model, processor, samples, labels) if samples and sample_labels else None,
        results=results,
        ood_table=ood_table(measured),
        ood_note=ood_note(metrics, id_dataset, ood_dataset),
        loss_table=loss_table(metrics),
        model_table=_model_table(model, processor, base_model),
        training_data=_training_data(dataset, num_pairs, log_history),
        changed=_changed_hyperparameters(args) if args else None,
        hyperparameters=bullets(_hyperparameters(args)) if args else None,
        training_log=training_log(log_history),
        environment=describe_environment(),
        citation=f"{CLIPN_CITATION}\n\n{CLIP_CITATION}",
    )
    path = folder / "README.md"
    with atomic_path(path) as partial:
        partial.write_text(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n", encoding="utf-8")
    if measured and id_dataset and is_hub_id(id_dataset):
        write_eval_results(folder, measured, id_dataset, ood_dataset)
    return path


def read_template(name: str, packaged_name: str) -> str:
    """Read the template of a card.

    Args:
        name (`str`): Its file in `model_cards/` of the repository.
        packaged_name (`str`): Its file in the installed package.

    Returns:
        `str`
    """
    # Installed, the template lies beside this file; in the repository it is at the top, where cards are looked for.
    packaged = Path(__file__).with_name(packaged_name)
    path = packaged if packaged.exists() else Path(__file__).parents[3] / "model_cards" / name
    return path.read_text(encoding="utf-8")


def _summary(base_model: str | None, dataset: str | None) -> str:
    text = (
        "A [CLIPN](https://arxiv.org/abs/2308.12213) model, which says whether an image shows one of the labels you "
        "give or none of them"
    )
    if base_model:
        text += f": {link(base_model)} with a second text encoder that has learned to say no"
        if dataset:
            text += f" from {link(dataset, 'datasets/')}"
    elif dataset:
        text += f", trained on {link(dataset, 'datasets/')}"
    return f"{text}."


def make_snippet(
    model_id: str | None, images: Sequence[str], labels: Sequence[str] | None, method: str | None = None
) -> str:
    """Write the snippet of a card, for `LOOP` to end it.

    Args:
        model_id (`str`, *optional*): The id on the Hub. Without one, the snippet is for use in the folder of the card.
        images (`Sequence[str]`): Addresses or paths of images, at least one.
        labels (`Sequence[str]`, *optional*): The labels to give; None for a detector, which has its own.
        method (`str`, *optional*): The method to give beside labels. By default that of the pipeline.

    Returns:
        `str`: Python code.
    """
    quoted = [json.dumps(image, ensure_ascii=False) for image in images]
    lines = ",\n".join(f"    {image}" for image in quoted)
    listing = f"images = [{quoted[0]}]" if len(images) == 1 else f"images = [\n{lines},\n]"
    given = ""
    if labels is not None:
        names = ", ".join(json.dumps(label, ensure_ascii=False) for label in labels)
        given = f", candidate_labels=[{names}]" + (f', method="{method}"' if method else "")
    place = "" if model_id else "# Run it in the folder of this model.\n"
    return (
        f"import os\n\nfrom clipn_hf import pipeline\n\n"
        f'{place}detect = pipeline("ood-detection", model="{model_id or "."}")\n'
        f"{listing}\n"
        f"results = detect(images{given})\n{LOOP}"
    )


def publish_samples(folder: Path, sample_images: Sequence[str], model_id: str | None) -> list[tuple[str, Image.Image]]:
    """Copy sample images that are files into `samples/` in the folder of a card.

    Args:
        folder (`Path`): The folder of the card.
        sample_images (`Sequence[str]`): Addresses or paths. Those that cannot be read are left out, with a warning.
        model_id (`str`, *optional*): The id of the folder on the Hub.

    Returns:
        `list` of `(str, PIL.Image.Image)`: Where each can be read from, and the picture itself.
    """
    samples: list[tuple[str, Image.Image]] = []
    taken: set[str] = set()
    for source in map(os.fspath, sample_images):
        try:
            picture = load_image(source)
        except ImageError as error:
            logger.warning(f"The model card leaves out the sample image {source}: {error.reason}")
            continue
        if source.startswith(("http://", "https://")):
            samples.append((source, picture))
            continue
        stem, extension = os.path.splitext(os.path.basename(source))
        name, number = f"{stem}{extension}", 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}{extension}"
        taken.add(name)
        copy = folder / "samples" / name
        copy.parent.mkdir(exist_ok=True)
        if not (copy.exists() and os.path.samefile(source, copy)):
            shutil.copyfile(source, copy)
        address = f"https://huggingface.co/{model_id}/resolve/main/samples/{urllib.parse.quote(name)}"
        samples.append((address if model_id else f"samples/{name}", picture))
    return samples


def _run_samples(
    model: CLIPNModel, processor: CLIPNProcessor, samples: Sequence[tuple[str, Image.Image]], labels: Sequence[str]
) -> str:
    was_training = model.training
    try:
        return print_results(OODDetector(DualEncoder(model, processor), labels), samples)
    finally:
        model.train(was_training)


def print_results(detector: OODDetector, samples: Sequence[tuple[str, Image.Image]]) -> str:
    """Run `LOOP` on sample images.

    Args:
        detector ([`OODDetector`]): Judges them.
        samples (`Sequence` of `(str, PIL.Image.Image)`): As `publish_samples` gives them.

    Returns:
        `str`: What the loop prints.
    """
    results = detector([picture for _, picture in samples])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(LOOP, {"os": os, "images": [published for published, _ in samples], "results": results})
    return printed.getvalue().rstrip("\n")


def bullets(values: Mapping[str, Any]) -> str:
    """List values by their names, in Markdown."""
    return "\n".join(f"- `{name}`: {value}" for name, value in values.items())


def _model_table(model: CLIPNModel, processor: CLIPNProcessor, base_model: str | None) -> str:
    templates, no_templates = resolve_templates(model, processor)
    rows = [
        *([part, words] for part, words in describe_config(model.config).items()),
        ["parameters", f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"],
        ["templates", _templates(templates)],
    ]
    if no_templates != templates:
        rows.append(['"no" templates', _templates(no_templates)])
    if base_model:
        rows.insert(0, ["base model", link(base_model)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [["", ""], ["---", "---"], *rows])


def _templates(templates: Sequence[str]) -> str:
    return ", ".join(f"`{template}`" for template in templates)


def _training_data(dataset: str | None, num_pairs: int | None, log_history: Sequence[Mapping[str, Any]]) -> str | None:
    if not dataset:
        return None
    pairs = f", {num_pairs:,} image-text pairs" if num_pairs else ""
    return f"Trained on {link(dataset, 'datasets/')}{pairs}.{describe_runtime(log_history)}"


def describe_runtime(log_history: Sequence[Mapping[str, Any]]) -> str:
    """Say how long a training took, in a sentence with a space in front; nothing where the log does not tell."""
    runtime = next((entry["train_runtime"] for entry in reversed(log_history) if "train_runtime" in entry), None)
    if runtime is None:
        return ""
    if runtime >= 5400:
        duration = f"{runtime / 3600:.1f} hours"
    elif runtime >= 60:
        duration = f"{runtime / 60:.1f} minutes"
    else:
        duration = f"{runtime:.1f} seconds"
    return f" Training took {duration}."


def _hyperparameters(args: CLIPNTrainingArguments) -> dict[str, Any]:
    unused = {name for tuning, names in _ONLY_WITH.items() if tuning != args.tuning for name in names}
    values = {name: getattr(args, name) for name in HYPERPARAMETERS if name not in unused}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    values["processes"] = args.world_size
    return values


def _changed_hyperparameters(args: CLIPNTrainingArguments) -> str:
    # The authors' four processes are part of their recipe, but no default of ours
    defaults = {field.name: field.default for field in fields(args)} | {"processes": 4}
    changed = {
        name: f"{value} (there: {getattr(defaults[name], 'value', defaults[name])})"
        for name, value in _hyperparameters(args).items()
        if value != getattr(defaults[name], "value", defaults[name])
    }
    return bullets(changed) if changed else "Nothing."


def describe_environment() -> str:
    """Say what the run was made with: versions and hardware."""
    packages = ("clipn-hf", "transformers", "torch", "accelerate", "datasets", "peft")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    return f"Made with Python {platform.python_version()}, {', '.join(versions)}, on {hardware}."
