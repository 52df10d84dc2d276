# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The card of prompts that were learned from a few images: what they are for, how to use them and how good they are.

Everything in it is read off the run. What is not known becomes an HTML comment, never a filler.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainingArguments

from ..detector import OODDetector
from ..detector_card import describe_threshold, mark_threshold
from ..detector_checks import default_method
from ..files import atomic_path
from ..hub_names import is_hub_id
from ..modeling.learned_prompts import LearnedPrompts
from .classification_results import SCORE_TITLES, format_metrics, summarize_metrics
from .markdown import link, public_name
from .model_card import (
    CLIP_CITATION,
    bullets,
    describe_environment,
    describe_runtime,
    make_snippet,
    print_results,
    publish_samples,
    read_template,
)
from .model_card_results import last_evaluation, training_log

TAGS = ("clipn_hf", "clip", "prompt-learning", "few-shot", "ood-detection", "out-of-distribution-detection")

# In this order in the card, after the arguments of the method itself.
HYPERPARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
)

# What each method is called, and where it is from.
TITLES: Mapping[str, tuple[str, str]] = {
    "coop": ("CoOp", "2109.01134"),
    "locoop": ("LoCoOp", "2306.01293"),
    "clip_os": ("CLIP-OS", "2404.00323"),
}

_MAX_LABELS = 200
_SHOWN_LABELS = 3

_COOP_CITATION = """\
@article{zhou2022learning,
  title     = {Learning to Prompt for Vision-Language Models},
  author    = {Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei},
  journal   = {International Journal of Computer Vision},
  volume    = {130},
  pages     = {2337--2348},
  year      = {2022}
}"""

_LOCOOP_CITATION = """\
@inproceedings{miyai2023locoop,
  title     = {{LoCoOp}: Few-Shot Out-of-Distribution Detection via Prompt Learning},
  author    = {Miyai, Atsuyuki and Yu, Qing and Irie, Go and Aizawa, Kiyoharu},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023}
}"""

_GL_MCM_CITATION = """\
@article{miyai2025glmcm,
  title     = {{GL-MCM}: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution Detection},
  author    = {Miyai, Atsuyuki and Yu, Qing and Irie, Go and Aizawa, Kiyoharu},
  journal   = {International Journal of Computer Vision},
  year      = {2025},
  note      = {arXiv:2304.04521}
}"""

_CLIP_OS_CITATION = """\
@article{sun2024clip,
  title     = {{CLIP}-driven Outliers Synthesis for few-shot {OOD} detection},
  author    = {Sun, Hao and He, Rundong and Han, Zhongyi and Lin, Zhicong and Gong, Yongshun and Yin, Yilong},
  journal   = {arXiv preprint arXiv:2404.00323},
  year      = {2024}
}"""

_MCM_CITATION = """\
@inproceedings{ming2022delving,
  title     = {Delving into Out-of-Distribution Detection with Vision-Language Representations},
  author    = {Ming, Yifei and Cai, Ziyang and Gu, Jiuxiang and Sun, Yiyou and Li, Wei and Li, Yixuan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""

_CITATIONS: Mapping[str, tuple[str, ...]] = {
    "coop": (_COOP_CITATION,),
    "locoop": (_LOCOOP_CITATION, _COOP_CITATION),
    "clip_os": (_CLIP_OS_CITATION, _COOP_CITATION),
}
# Of what all are measured by, and made of.
_COMMON_CITATIONS = (_MCM_CITATION, _GL_MCM_CITATION, CLIP_CITATION)


def write_few_shot_card(
    folder: str | os.PathLike[str],
    *,
    model: Any,
    args: TrainingArguments | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    model_id: str | None = None,
    model_name: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    num_images: int | None = None,
    id_dataset: str | None = None,
    ood_datasets: Sequence[str] = (),
    results: Mapping[str, Mapping[str, Any]] | None = None,
    detector: OODDetector | None = None,
    sample_images: Sequence[str] = (),
    license: str | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
) -> Path:
    """Write `README.md`.

    Args:
        folder (`str` or `os.PathLike`): The folder of the adapter.
        model ([`~peft.PeftModel`] or [`~transformers.PreTrainedModel`]): The model with its `learned_prompts`.
        args ([`~transformers.TrainingArguments`], *optional*): How it was trained, of the trainer's own kind.
        log_history (`Sequence[Mapping]`, *optional*): The log of the training, `trainer.state.log_history`.
        model_id (`str`, *optional*):
            The id on the Hub, `"owner/name"`. Without one, the snippet is for use in the folder of the adapter.
        model_name (`str`, *optional*): The title. Defaults to the last part of `model_id`, or of `folder`.
        base_model (`str`, *optional*):
            Hub id or folder of the model that the prompts are for. Defaults to what they remember of it.
        dataset (`str`, *optional*): Hub id or path of the training images.
        num_images (`int`, *optional*): How many of them were trained on.
        id_dataset (`str`, *optional*): Hub id or path of the test images of the same classes.
        ood_datasets (`Sequence[str]`, *optional*): Hub ids or paths of images of none of the classes.
        results (`Mapping`, *optional*):
            What [`~clipn_hf.training.classification_results.summarize_metrics`] gave of each classifier, by what it is
            called; the last one is that of these prompts. Defaults to what the log has.
        detector ([`OODDetector`], *optional*):
            The detector that is saved in the same folder. With it the snippet needs no labels, and shows what it
            prints of `sample_images`.
        sample_images (`Sequence[str]`, *optional*):
            Addresses or paths of images for the snippet. Files are copied into `samples/` in `folder` and are
            published with it. Those that cannot be read are left out, with a warning.
        license, language (*optional*): Metadata of the card.
        tags (`Sequence[str]`, *optional*): Tags beside those that all such cards carry.

    Returns:
        `pathlib.Path` of the card. It is written only when it is complete.

    Raises:
        ValueError: The model has no learned prompts.
    """
    prompts: LearnedPrompts | None = getattr(model, "learned_prompts", None)
    if prompts is None:
        raise ValueError(
            "`model` has no learned prompts to be described; give a model that `add_context_tokens` has prepared."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = (model_name or model_id or folder.resolve().name).rpartition("/")[2]
    method = str((prompts.trained_with or {}).get("method", "coop"))
    base_model = base_model or prompts.base.get("id")
    measured = dict(results or {}) or _read_log(log_history, TITLES[method][0])
    samples = publish_samples(folder, sample_images, model_id)
    shown_images = [published for published, _ in samples] or ["picture.jpg"]
    hyperparameters = None if args is None else _hyperparameters(args, prompts)

    card_data = ModelCardData(
        license=license,
        language=language,
        library_name="peft",
        pipeline_tag="zero-shot-image-classification",
        tags=list(dict.fromkeys([*TAGS, method, *(["generated_from_trainer"] if args else []), *tags])),
        base_model=base_model if base_model and is_hub_id(base_model) else None,
        datasets=[dataset] if dataset and is_hub_id(dataset) else None,
        model_name=name if measured else None,
        eval_results=_model_index(measured, id_dataset) if measured else None,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=read_template("few_shot_template.md", "few_shot_card_template.md"),
        name=name,
        summary=_summary(prompts, method, base_model, dataset),
        snippet=make_snippet(model_id, shown_images, None if detector else prompts.labels, default_method(prompts)),
        output=print_results(detector, samples) if detector and samples else None,
        labels=_labels(prompts.labels),
        threshold=mark_threshold(_threshold_note(detector)),
        results=format_metrics(measured) if measured else None,
        results_note=_results_note(id_dataset, ood_datasets),
        prompt_table=_prompt_table(prompts, model, base_model),
        prompt_note=_prompt_note(prompts),
        training_data=_training_data(prompts, dataset, num_images, log_history),
        changed=None if args is None else _changed(args, prompts),
        hyperparameters=None if hyperparameters is None else bullets(hyperparameters),
        training_log=training_log(log_history, _log_columns(log_history)),
        environment=describe_environment(),
        citation="\n\n".join([*_CITATIONS[method], *_COMMON_CITATIONS]),
    )
    path = folder / "README.md"
    with atomic_path(path) as partial:
        partial.write_text(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n", encoding="utf-8")
    return path


def _summary(prompts: LearnedPrompts, method: str, base_model: str | None, dataset: str | None) -> str:
    title, paper = TITLES[method]
    base = link(base_model) if base_model else "a CLIP"
    told = {
        "coop": "tells these classes apart",
        "locoop": "tells these classes apart, and images of none of them by their patches",
        "clip_os": "tells these classes apart, and from everything else by a prompt for the unknown",
    }
    images = "a few images"
    if shots := (prompts.trained_with or {}).get("shots"):
        images = f"{shots} image{'' if shots == 1 else 's'}"
    origin = f" of {link(dataset, 'datasets/')}" if dataset else ""
    return (
        f"Prompts that [{title}](https://arxiv.org/abs/{paper}) has learned from {images} of each of "
        f"{len(prompts.labels):,} classes{origin}: with them {base} {told[method]}."
    )


def _labels(labels: Sequence[str]) -> str:
    listed = ", ".join(_quote(label) for label in labels[:_MAX_LABELS])
    more = f" and {len(labels) - _MAX_LABELS:,} more" if len(labels) > _MAX_LABELS else ""
    return f"Its classes: {listed}{more}."


def _threshold_note(detector: OODDetector | None) -> str:
    if detector is None or (detector.threshold is None and detector.method.is_ood is None):
        return (
            "The score alone does not say what is unknown: `OODDetector.calibrate` finds a threshold, with images of "
            "the classes that were not trained on. Until then each image is given its nearest class."
        )
    calibration = None if detector.calibration is None else detector.calibration.to_dict()
    return describe_threshold(
        {"method": detector.method.name, "threshold": detector.threshold, "calibration": calibration}
    )


def _quote(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _read_log(log_history: Sequence[Mapping[str, Any]], title: str) -> dict[str, Mapping[str, Any]]:
    """Nest what the last evaluation of the log has, as `classification_metrics` gives it."""
    flat = last_evaluation(log_history)
    if "accuracy" not in flat:
        return {}
    ood: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in flat.items():
        if (match := re.fullmatch(r"(.+)_auroc_(.+)", key)) and f"{match[1]}_fpr95_{match[2]}" in flat:
            measured = {"auroc": value, "fpr95": flat[f"{match[1]}_fpr95_{match[2]}"]}
            ood.setdefault(match[1], {})[match[2]] = measured
    return {title: summarize_metrics([{"accuracy": flat["accuracy"], "ood": ood}])}


def _model_index(results: Mapping[str, Mapping[str, Any]], id_dataset: str | None) -> list[EvalResult]:
    """List the results of the last classifier as the metadata of the card take them."""
    last = [*results.values()][-1]
    measured = [("accuracy", "Accuracy", last["accuracy"]["mean"])]
    for name, of_set in last["ood"].items():
        for score, values in of_set.items():
            for metric, title in (("auroc", "AUROC"), ("fpr95", "FPR95")):
                named = f"{title} of {SCORE_TITLES.get(score, score)} against {public_name(name)}, ID positive"
                measured.append((metric, named, values[metric]["mean"]))
    known = public_name(id_dataset) if id_dataset else "known images"
    return [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Few-shot classification and out-of-distribution detection",
            dataset_type=known,
            dataset_name=known,
            metric_type=metric,
            metric_name=named,
            metric_value=round(value, 6),
        )
        for metric, named, value in measured
    ]


def _results_note(id_dataset: str | None, ood_datasets: Sequence[str]) -> str:
    known = f"Known: {link(id_dataset, 'datasets/')}. " if id_dataset else ""
    unknown = f"Unknown: {', '.join(link(name, 'datasets/') for name in ood_datasets)}. " if ood_datasets else ""
    return (
        f"{known}{unknown}In percent, measured at the end of training; FPR95 is the share of unknown images that pass "
        "when 95 % of the known ones do."
    )


def _prompt_table(prompts: LearnedPrompts, model: Any, base_model: str | None) -> str:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = sum(parameter.numel() for parameter in trained)
    rows = {
        "base model": link(base_model) if base_model else None,
        "learned tokens": f"{len(prompts.tokens):,}",
        "learned numbers": f"{numbers:,}" if numbers else None,
        "context": "of each class its own" if prompts.label_prompts else "shared by all classes",
    }
    cells = [[name, value] for name, value in rows.items() if value]
    return "\n".join(f"| {' | '.join(row)} |" for row in [["", ""], ["---", "---"], *cells])


def _prompt_note(prompts: LearnedPrompts) -> str:
    shown = [*(prompts.label_prompts or {}).values()][:_SHOWN_LABELS]
    if not shown:
        label = prompts.labels[0]
        shown = [template.replace("{}", label) for template in prompts.templates]
    named = ", ".join(map(_quote, shown))
    unknown = (
        "" if prompts.unknown_prompt is None else f" The prompt for the unknown is {_quote(prompts.unknown_prompt)}."
    )
    return (
        f"Prompts read like {named}. What stands in angle brackets are the learned tokens; the adapter holds their "
        f"embeddings and nothing else.{unknown}"
    )


def _training_data(
    prompts: LearnedPrompts, dataset: str | None, num_images: int | None, log_history: Sequence[Mapping[str, Any]]
) -> str | None:
    if not dataset:
        return None
    images = f", {num_images:,} images" if num_images else ""
    trained_with = prompts.trained_with or {}
    drawn = ""
    if shots := trained_with.get("shots"):
        drawn = f", {shots} of each class"
        if (seed := trained_with.get("sample_seed")) is not None:
            drawn += f" drawn with seed {seed}"
    return f"Trained on {link(dataset, 'datasets/')}{images}{drawn}.{describe_runtime(log_history)}"


def _log_columns(log_history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    columns = {"epoch": "epoch", "loss": "loss", "eval_loss": "held-out loss", "eval_accuracy": "accuracy"}
    names = dict.fromkeys(key for entry in log_history for key in entry)
    found = {name: match for name in names if (match := re.fullmatch(r"eval_(.+)_auroc_(.+)", name))}
    titles = {name: f"{match[1]} AUROC of {SCORE_TITLES.get(match[2], match[2])}" for name, match in found.items()}
    return columns | titles


def _hyperparameters(args: TrainingArguments, prompts: LearnedPrompts) -> dict[str, Any]:
    inherited = {item.name for item in fields(TrainingArguments)}
    own = [item.name for item in fields(args) if item.name not in inherited]
    values = {name: value for name in (*own, *HYPERPARAMETERS) if (value := getattr(args, name)) is not None}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    if values.get("context_init"):
        # As many as the words have, whatever was asked for.
        first = prompts.build_prompts()[0]
        values["num_context_tokens"] = sum(token in first for token in prompts.tokens)
    return values | {"processes": args.world_size}


def _changed(args: TrainingArguments, prompts: LearnedPrompts) -> str:
    defaults = {item.name: getattr(item.default, "value", item.default) for item in fields(args)} | {"processes": 1}
    changed = {
        name: f"{value} (there: {defaults[name]})"
        for name, value in _hyperparameters(args, prompts).items()
        if value != defaults[name]
    }
    return bullets(changed) if changed else "Nothing."


__all__ = ["HYPERPARAMETERS", "TAGS", "TITLES", "write_few_shot_card"]
