# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The model card: a README.md that says what a checkpoint is, how to use it, how good it is and how it was made.

Everything in it is read off the run. What is not known becomes an HTML comment, never a filler.
"""

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers.utils import logging

from clipn_hf.detector import OODDetector
from clipn_hf.encoders import DualEncoder
from clipn_hf.images import ImageError
from clipn_hf.modeling import CLIPNModel, CLIPNProcessor

from .clipn_config import CLIPNTrainingArguments

logger = logging.get_logger(__name__)

TAGS = ("clipn_hf", "clipn", "clip", "ood-detection", "out-of-distribution-detection")
MAX_LOG_ROWS = 20

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
_LOOP = """\
for image, result in zip(images, results):
    verdict = "unknown" if result["is_ood"] else result["label"]
    print(f"{os.path.basename(image)}: {verdict}, OOD score {result['ood_score']:.3f}")"""

_CITATION = """\
@inproceedings{wang2023clipn,
  title     = {{CLIPN} for Zero-Shot {OOD} Detection: Teaching {CLIP} to Say No},
  author    = {Wang, Hualiang and Li, Yi and Yao, Huifeng and Li, Xiaomeng},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  pages     = {1802--1812},
  year      = {2023}
}

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
    """Writes `README.md`, and `.eval_results/*.yaml` where detection was measured on a data set of the Hub.

    Args:
        folder (`str` or `os.PathLike`): The folder of the checkpoint.
        model ([`CLIPNModel`]): The model, as [`CLIPNTrainer`] holds it in `clipn`.
        processor ([`CLIPNProcessor`]): Its processor.
        args ([`CLIPNTrainingArguments`], *optional*): How it was trained.
        log_history (`Sequence[Mapping]`, *optional*): The log of the training, `trainer.state.log_history`.
        model_id (`str`, *optional*): The id under which it is used; by default the name of `folder`.
        base_model (`str`, *optional*): Hub id or folder of the CLIP or CLIPN that training started from.
        dataset (`str`, *optional*): Hub id or path of the training pairs.
        num_pairs (`int`, *optional*): How many there are.
        id_dataset, ood_dataset (`str`, *optional*): Hub ids or paths of the images that detection was measured on.
        results (`str`, *optional*): Markdown for the section on results, in place of what the log has on detection.
        sample_images (`Sequence[str]`, *optional*):
            Addresses or paths of images for the snippet, whose real output the card shows. Files are copied into
            `samples/` in `folder` and are published with it.
        sample_labels (`Sequence[str]`, *optional*): The labels of the snippet.
        license, language (*optional*): Metadata of the card.
        tags (`Sequence[str]`, *optional*): Tags beside those that every CLIPN carries.

    Returns:
        `pathlib.Path` of the card. It is written only when it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model_id = model_id or folder.resolve().name
    name = model_id.rpartition("/")[2]
    tuning = args.tuning if args else "full"
    metrics = _last_evaluation(log_history)
    measured = {} if results else _detection_metrics(metrics)
    images = _publish_samples(folder, sample_images, model_id)
    shown_images = [published for published, _ in images] or ["picture.jpg"]
    labels = list(sample_labels) or ["cat", "dog"]

    card_data = ModelCardData(
        license=license,
        language=language,
        library_name="peft" if tuning in _ONLY_WITH else "transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=list(dict.fromkeys([*TAGS, *(["generated_from_trainer"] if args else []), *tags])),
        base_model=base_model if base_model and _is_hub_id(base_model) else None,
        datasets=[dataset] if dataset and _is_hub_id(dataset) else None,
        model_name=name if measured else None,
        eval_results=_model_index(measured, id_dataset, ood_dataset) if measured else None,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=_template(),
        name=name,
        summary=_summary(base_model, dataset),
        snippet=_snippet(model_id, base_model, model, args, shown_images, labels),
        output=_run_samples(model, processor, images, labels) if images and sample_labels else None,
        results=results,
        ood_table=_ood_table(measured),
        ood_note=_ood_note(metrics, id_dataset, ood_dataset),
        loss_table=_loss_table(metrics),
        model_table=_model_table(model, processor, base_model),
        training_data=_training_data(dataset, num_pairs, log_history),
        changed=_changed_hyperparameters(args) if args else None,
        hyperparameters=_bullets(_hyperparameters(args)) if args else None,
        training_log=_training_log(log_history),
        environment=_environment(),
        citation=_CITATION,
    )
    path = folder / "README.md"
    _write(path, re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n")
    if measured and id_dataset and _is_hub_id(id_dataset):
        _write_eval_results(folder, measured, id_dataset, ood_dataset)
    return path


def _write(path: Path, text: str) -> None:
    # Trainer's uploads leave out what begins with "_"
    partial = path.with_name(f"_{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _template() -> str:
    # installed, the template lies beside this file; in the repository it is at the top, where cards are looked for
    packaged = Path(__file__).with_name("model_card_template.md")
    path = packaged if packaged.exists() else Path(__file__).parents[3] / "model_cards" / "template.md"
    return path.read_text(encoding="utf-8")


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def _public_name(name: str) -> str:
    """Of a path only the last part, which says enough and gives nothing away."""
    if _is_hub_id(name) or name.startswith(("http://", "https://")):
        return name
    return os.path.basename(os.path.normpath(name))


def _link(name: str, kind: str = "") -> str:
    """A link for what is on the Hub or elsewhere on the web, the plain name of anything else."""
    if _is_hub_id(name):
        return f"[{name}](https://huggingface.co/{kind}{name})"
    return f"<{name}>" if name.startswith(("http://", "https://")) else f"`{_public_name(name)}`"


def _summary(base_model: str | None, dataset: str | None) -> str:
    text = (
        "A [CLIPN](https://arxiv.org/abs/2308.12213) model, which says whether an image shows one of the labels you "
        "give or none of them"
    )
    if base_model:
        text += f": {_link(base_model)} with a second text encoder that has learned to say no"
        if dataset:
            text += f" from {_link(dataset, 'datasets/')}"
    elif dataset:
        text += f", trained on {_link(dataset, 'datasets/')}"
    return f"{text}."


def _snippet(
    model_id: str,
    base_model: str | None,
    model: CLIPNModel,
    args: CLIPNTrainingArguments | None,
    images: Sequence[str],
    labels: Sequence[str],
) -> str:
    quoted = ",\n".join(f'    "{image}"' for image in images)
    listing = f'images = ["{images[0]}"]' if len(images) == 1 else f"images = [\n{quoted},\n]"
    names = ", ".join(f'"{label}"' for label in labels)
    if args is None or args.tuning not in _ONLY_WITH:
        return (
            f"import os\n\nfrom clipn_hf import pipeline\n\n"
            f'detect = pipeline("ood-detection", model="{model_id}")\n'
            f"{listing}\n"
            f"results = detect(images, candidate_labels=[{names}])\n{_LOOP}"
        )
    # an adapter goes onto the base it was trained on, which a folder of its own does not hold
    base_name = _public_name(base_model or model.name_or_path or "CLIP")
    if model.name_or_path:
        base = f'CLIPNModel.from_pretrained("{base_name}")'
    else:
        base = f'CLIPNModel.from_clip("{base_name}", no_prompt_type="{model.config.no_prompt_type}")'
    tokens, imports = "", ""
    if args.tuning == "trainable_tokens":
        imports = "from clipn_hf.training import add_no_tokens\n"
        tokens = f"add_no_tokens(base, processor, num_tokens={args.num_trainable_tokens})\n"
    return (
        f"import os\n\nfrom clipn_hf import CLIPNModel, CLIPNProcessor, OODDetector\n{imports}"
        f"from peft import PeftModel\n\n"
        f"base = {base}\n"
        f'processor = CLIPNProcessor.from_pretrained("{model_id}")\n'
        f"{tokens}"
        f'model = PeftModel.from_pretrained(base, "{model_id}").merge_and_unload()\n'
        f"detect = OODDetector(model, [{names}], processor=processor)\n"
        f"{listing}\n"
        f"results = detect(images)\n{_LOOP}"
    )


def _publish_samples(folder: Path, sample_images: Sequence[str], model_id: str) -> list[tuple[str, str]]:
    """Where each sample image can be fetched, and where it is read now."""
    images = []
    for image in map(os.fspath, sample_images):
        if image.startswith(("http://", "https://")):
            images.append((image, image))
            continue
        copy = folder / "samples" / os.path.basename(image)
        copy.parent.mkdir(exist_ok=True)
        if not (copy.exists() and os.path.samefile(image, copy)):
            shutil.copyfile(image, copy)
        images.append((f"https://huggingface.co/{model_id}/resolve/main/samples/{copy.name}", str(copy)))
    return images


def _run_samples(
    model: CLIPNModel, processor: CLIPNProcessor, images: Sequence[tuple[str, str]], labels: Sequence[str]
) -> str | None:
    """What the snippet prints."""
    was_training = model.training
    try:
        results = OODDetector(DualEncoder(model, processor), labels)([source for _, source in images])
    except ImageError as error:
        logger.warning(f"The model card shows no output: {error}")
        return None
    finally:
        model.train(was_training)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(_LOOP, {"os": os, "images": [published for published, _ in images], "results": results})
    return printed.getvalue().rstrip("\n")


def _last_evaluation(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest entry of the log with evaluation results, without the prefix."""
    for entry in reversed(log_history):
        if any(key.startswith("eval_") for key in entry):
            return {key.removeprefix("eval_"): value for key, value in entry.items()}
    return {}


def _detection_metrics(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """AUROC and FPR95 by method, as far as they were measured."""
    found = [match for key in metrics if (match := re.fullmatch(r"ood_auroc_(\w+)", key))]
    return {
        match[1]: (metrics[match[0]], metrics[f"ood_fpr95_{match[1]}"])
        for match in found
        if f"ood_fpr95_{match[1]}" in metrics
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, alignment, *rows])


def _bullets(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{name}`: {value}" for name, value in values.items())


def _ood_table(measured: Mapping[str, tuple[float, float]]) -> str | None:
    if not measured:
        return None
    rows = [
        [method.upper() if method != "energy" else "Energy", _percent(auroc), _percent(fpr95)]
        for method, (auroc, fpr95) in measured.items()
    ]
    return _table(["score", "AUROC ↑", "FPR95 ↓"], rows)


def _ood_note(metrics: Mapping[str, float], id_dataset: str | None, ood_dataset: str | None) -> str:
    known = f"Known: {_link(id_dataset, 'datasets/')}. " if id_dataset else ""
    unknown = f"Unknown: {_link(ood_dataset, 'datasets/')}. " if ood_dataset else ""
    accuracy = ""
    if "id_accuracy" in metrics:
        accuracy = f" Zero-shot accuracy on the known images: {_percent(metrics['id_accuracy'])} %."
    return (
        f"{known}{unknown}In percent, measured at the end of training; FPR95 is the share of unknown images that pass "
        f"when 95 % of the known ones do.{accuracy}"
    )


def _loss_table(metrics: Mapping[str, float]) -> str | None:
    names = {
        "loss": "loss",
        "itbo_yes_loss": "matching pairs",
        "itbo_no_loss": "other pairs",
        "tso_loss": "text opposite",
    }
    present = {title: f"{metrics[key]:.4f}" for key, title in names.items() if key in metrics}
    if not present:
        return None
    header = ["on held-out pairs", *present]
    return _table(header, [["", *present.values()]])


def _model_table(model: CLIPNModel, processor: CLIPNProcessor, base_model: str | None) -> str:
    config = model.config
    vision: Any = config.vision_config
    prompts = "hand-crafted"
    if config.no_prompt_type == "learnable":
        prompts = f"learnable, {config.num_no_prompts}"
    rows = [
        ["image encoder", f"{vision.num_hidden_layers} layers of width {vision.hidden_size}"],
        ["input", f"{vision.image_size}×{vision.image_size} pixels, patches of {vision.patch_size}"],
        ["embeddings", str(config.projection_dim)],
        ["parameters", f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"],
        ['"no" prompts', prompts],
        ["templates", _templates(processor.templates)],
    ]
    if processor.no_templates != processor.templates:
        rows.append(['"no" templates', _templates(processor.no_templates)])
    if base_model:
        rows.insert(0, ["base model", _link(base_model)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [["", ""], ["---", "---"], *rows])


def _templates(templates: Sequence[str]) -> str:
    return ", ".join(f"`{template}`" for template in templates)


def _training_data(dataset: str | None, num_pairs: int | None, log_history: Sequence[Mapping[str, Any]]) -> str | None:
    if not dataset:
        return None
    pairs = f", {num_pairs:,} image-text pairs" if num_pairs else ""
    runtime = next((entry["train_runtime"] for entry in reversed(log_history) if "train_runtime" in entry), None)
    time = ""
    if runtime is not None:
        time = (
            f" Training took {runtime / 3600:.1f} hours."
            if runtime >= 5400
            else f" Training took {runtime / 60:.1f} minutes."
        )
    return f"Trained on {_link(dataset, 'datasets/')}{pairs}.{time}"


def _hyperparameters(args: CLIPNTrainingArguments) -> dict[str, Any]:
    unused = {name for tuning, names in _ONLY_WITH.items() if tuning != args.tuning for name in names}
    values = {name: getattr(args, name) for name in HYPERPARAMETERS if name not in unused}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    values["processes"] = args.world_size
    return values


def _changed_hyperparameters(args: CLIPNTrainingArguments) -> str:
    # the authors' four processes are part of their recipe, but no default of ours
    defaults = {field.name: field.default for field in fields(args)} | {"processes": 4}
    changed = {
        name: f"{value} (there: {getattr(defaults[name], 'value', defaults[name])})"
        for name, value in _hyperparameters(args).items()
        if value != getattr(defaults[name], "value", defaults[name])
    }
    return _bullets(changed) if changed else "Nothing."


def _training_log(log_history: Sequence[Mapping[str, Any]]) -> str | None:
    columns = {
        "epoch": "epoch",
        "loss": "loss",
        "itbo_yes_loss": "matching pairs",
        "itbo_no_loss": "other pairs",
        "tso_loss": "text opposite",
        "eval_loss": "held-out loss",
        "eval_ood_auroc_atd": "AUROC of ATD",
    }
    steps: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "step" in entry and ("loss" in entry or "eval_loss" in entry):
            steps.setdefault(entry["step"], {}).update(entry)
    if not steps:
        return None
    rows = [entry for entry in steps.values() if "eval_loss" in entry]
    if len(steps) <= MAX_LOG_ROWS or not rows:
        rows = list(steps.values())
    if len(rows) > MAX_LOG_ROWS:
        spread = {round(i * (len(rows) - 1) / (MAX_LOG_ROWS - 1)) for i in range(MAX_LOG_ROWS)}
        rows = [rows[index] for index in sorted(spread)]
    present = {key: title for key, title in columns.items() if any(key in row for row in rows)}

    def cell(row: Mapping[str, Any], key: str) -> str:
        if key not in row:
            return ""
        if key == "epoch":
            return f"{row[key]:.2f}"
        return _percent(row[key]) if "auroc" in key else f"{row[key]:.4f}"

    cells = [[str(row["step"]), *(cell(row, key) for key in present)] for row in rows]
    return _table(["step", *present.values()], cells)


def _environment() -> str:
    packages = ("clipn-hf", "transformers", "torch", "accelerate", "datasets", "peft")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    return f"Made with Python {platform.python_version()}, {', '.join(versions)}, on {hardware}."


def _model_index(
    measured: Mapping[str, tuple[float, float]], id_dataset: str | None, ood_dataset: str | None
) -> list[EvalResult]:
    known = _public_name(id_dataset) if id_dataset else "known images"
    unknown = _public_name(ood_dataset) if ood_dataset else "unknown images"
    results = []
    for method, values in measured.items():
        for metric_type, metric_name, value in zip(("auroc", "fpr95"), ("AUROC", "FPR95"), values, strict=True):
            results.append(
                EvalResult(
                    task_type="zero-shot-image-classification",
                    task_name="Out-of-distribution detection",
                    dataset_type=known,
                    dataset_name=f"{known} against {unknown}",
                    metric_type=metric_type,
                    metric_name=f"{metric_name} of {method.upper()}, ID positive",
                    metric_value=round(value, 6),
                )
            )
    return results


def _write_eval_results(
    folder: Path, measured: Mapping[str, tuple[float, float]], id_dataset: str, ood_dataset: str | None
) -> None:
    unknown = _public_name(ood_dataset) if ood_dataset else "unknown images"
    (folder / ".eval_results").mkdir(exist_ok=True)
    for method, values in measured.items():
        entries = [
            EvalResultEntry(
                dataset_id=id_dataset,
                task_id=f"ood_detection_{metric}",
                value=round(value, 6),
                notes=f"{method.upper()}, known against {unknown}, ID positive",
            )
            for metric, value in zip(("auroc", "fpr95"), values, strict=True)
        ]
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        _write(folder / ".eval_results" / f"ood_detection_{method}.yaml", text)
