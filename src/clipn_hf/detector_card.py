# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The card of a detector: which images it knows, how it decides, and what its threshold promises."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers.utils import logging
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from .files import atomic_path
from .hub_names import is_hub_id, public_name
from .methods import get_method
from .methods.neglabel import effective_settings

logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
_MARK = "<!-- Written by clipn-hf from detector.json; remove this line to keep your own text. -->"
# Around the part that other cards leave to the detector beside them.
_THRESHOLD_BEGIN = (
    "<!-- Threshold, written by clipn-hf from detector.json; remove this line to keep your own text. -->"
)
_THRESHOLD_END = "<!-- End of the threshold. -->"
_THRESHOLD = re.compile(f"{re.escape(_THRESHOLD_BEGIN)}.*?{re.escape(_THRESHOLD_END)}", re.DOTALL)
_MAX_LABELS = 200


def write_detector_card(folder: Path, values: Mapping[str, Any], repo_id: str) -> None:
    """Write the card of a detector, unless there is one of somebody else's.

    Of a card that [`mark_threshold`] has prepared, such as that of learned prompts, this part alone is written anew.

    Args:
        folder (`Path`): The folder of the detector.
        values (`Mapping`): What is in its `detector.json`.
        repo_id (`str`): The name it is loaded by.
    """
    path = folder / CARD_NAME
    if path.exists() and not is_own_card(path):
        # Bytes come back as they were, whatever their encoding.
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
        if _THRESHOLD.search(text) is None:
            logger.warning(
                f"{path} is not the card of a detector and stays as it is; it does not tell of the detector."
            )
            return
        note = describe_threshold(values)
        if "\nprints\n" in text and values["threshold"] is not None:
            note += "\n\nThe output above may be from before this threshold."
        part = mark_threshold(note)
        with atomic_path(path) as partial:
            partial.write_bytes(_THRESHOLD.sub(lambda _: part, text).encode("utf-8", errors="surrogateescape"))
        return
    with atomic_path(path) as partial:
        partial.write_text(detector_card(values, repo_id, _base_of_adapter(folder, values)), encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Tell whether a card was written by `write_detector_card`, and not edited since as it asks for."""
    return _MARK in path.read_text(encoding="utf-8", errors="replace")


def detector_card(values: Mapping[str, Any], repo_id: str, adapter_base: str | None = None) -> str:
    """Compose the card of a detector.

    Args:
        values (`Mapping`): What is in its `detector.json`.
        repo_id (`str`): The name it is loaded by.
        adapter_base (`str`, *optional*): The model that the adapter beside it is for, if there is one.

    Returns:
        `str`: Markdown with metadata in front.
    """
    method, model = get_method(values["method"]), values["model"]
    negatives, fitted = values["negatives"], values["fitted_on"] or {}
    finetuning, pseudo_labels = fitted.get("finetuning"), fitted.get("pseudo_labels")
    # What weights inside the folder were made from.
    base = adapter_base or (finetuning or {}).get("base")
    if model["weights"] == "hub" or _is_hub_id(model):
        base = model["id"]
    metadata = ModelCardData(
        library_name="transformers" if adapter_base is None else "peft",
        pipeline_tag="zero-shot-image-classification",
        tags=["clipn_hf", "ood-detection", "out-of-distribution"],
        base_model=base if base and is_hub_id(base) else None,
    )
    labels = values["labels"]
    listed = ", ".join(f"`{_inline(label)}`" for label in labels[:_MAX_LABELS])
    more = f" and {len(labels) - _MAX_LABELS:,} more" if len(labels) > _MAX_LABELS else ""
    in_effect = effective_settings(values["settings"], None if negatives is None else negatives["count"])
    settings = ", ".join(f"`{name}` = {value}" for name, value in in_effect.items())
    # A classifier of its own names the labels, too.
    reads_texts = method.uses_text or method.classify is None
    rows = {
        "Method": f"{method.title} (`{method.name}`), [{method.reference}](https://arxiv.org/abs/{method.reference})",
        "Settings": settings or None,
        "Model": f"{model['class']} `{_inline(model['id'] or 'without a name')}`"
        + (f", revision `{model['revision']}`" if model["revision"] else "")
        + ("" if adapter_base is None else f", an adapter for `{_inline(public_name(adapter_base))}`"),
        "Held-out images": describe_held_out(fitted["held_out"]) if "held_out" in fitted else None,
        "Fine-tuning": None if finetuning is None else describe_finetuning(finetuning, "`"),
        "Pseudo-labels": None if pseudo_labels is None else _pseudo_labels(pseudo_labels),
        "Templates": _texts(values["used_templates"]) if reads_texts else None,
        '"No" templates': _texts(values["used_no_templates"]) if reads_texts else None,
        "Negative labels": _negatives(negatives),
        "Fitted on": _fitted_on(fitted) if fitted else None,
    }
    explanation = "" if negatives is None else ', "negatives": […]'
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value)
    return f"""---
{metadata.to_yaml().strip()}
---

{_MARK}

# {repo_id.split("/")[-1]}

Tells images of {len(labels):,} known thing{"" if len(labels) == 1 else "s"} from images of anything else.

```python
from clipn_hf import pipeline

detect = pipeline("ood-detection", model="{repo_id if "/" in repo_id else f"path/to/{repo_id}"}")
detect("photo.jpg")  # {{"verdict": "known" or "unknown", "ood_score": …, "label": …{explanation}}}
```

{listed}{more}.

|  |  |
| --- | --- |
{table}

## Threshold

{describe_threshold(values)}
"""


def mark_threshold(note: str) -> str:
    """Mark the part of a card that says what is unknown, for `write_detector_card` to replace.

    Args:
        note (`str`): What it says so far.

    Returns:
        `str`
    """
    return f"{_THRESHOLD_BEGIN}\n\n{note}\n\n{_THRESHOLD_END}"


def differ_in_threshold_only(path: Path, other: Path) -> bool:
    """Tell whether two cards that `mark_threshold` has prepared are the same, that part aside."""
    texts = [card.read_bytes().decode("utf-8", errors="surrogateescape") for card in (path, other)]
    (first, count), (second, _) = (_THRESHOLD.subn("", text) for text in texts)
    return count > 0 and first == second


def describe_threshold(values: Mapping[str, Any]) -> str:
    """Word what a score says, above which one an image is unknown, and what that promises.

    Args:
        values (`Mapping`): What is in `detector.json`.

    Returns:
        `str`
    """
    return f"Each image gets a score; higher = more out of distribution (OOD). {_threshold(values)}"


def _threshold(values: Mapping[str, Any]) -> str:
    threshold, calibration = values["threshold"], values["calibration"]
    if threshold is None:
        if get_method(values["method"]).is_ood is not None:
            return "None: the rule of the method decides. It promises nothing."
        return "None: the detector gives scores and no verdicts. Calibrate it with images of the labels."
    if calibration is None:
        return f"An image is unknown when its score exceeds {threshold:.6g}. It was set by hand and promises nothing."
    if calibration["max_id_rejection"] is None:
        return f"An image is unknown when its score exceeds {threshold:.6g}.\n\n{calibration['promise']}"
    groups = calibration["groups"]
    middle = calibration["known_below"]
    unsure = "" if middle is None else f" Otherwise it is known below {middle:.6g}, and else unsure."
    rule = f"An image is unknown when its score exceeds {threshold:.6g}.{unsure}"
    if groups:
        rows = "\n".join(
            f"| {_cell(_inline(str(group['label'])))} | {group['threshold']:.6g} | {group['n']:,} |"
            for group in groups
        )
        rule = (
            f"An image is unknown when its score exceeds the threshold of its nearest label.{unsure}\n\n"
            f"| nearest label | threshold | images |\n| --- | ---: | ---: |\n{rows}"
        )
    origin = f"Calibrated on {calibration['n']:,} images on {calibration['date']}; SHA-256 of these images: "
    origin += f"`{calibration['data_sha256']}`."
    if calibration["ood_data_sha256"] is not None:
        origin += f" And on {calibration['n_ood']:,} OOD images, SHA-256 `{calibration['ood_data_sha256']}`."
    return f"{rule}\n\n{calibration['promise']}\n\n{origin} The promise holds for new images that come as those did."


def _negatives(negatives: Mapping[str, Any] | None) -> str | None:
    if negatives is None:
        return None
    count = f"{negatives['count']:,}"
    if not negatives["mined"]:
        return f"{count} that were given"
    settings = negatives["settings"]
    return (
        f"{count} of {negatives['report']['candidates']:,} candidates in `{_inline(str(negatives['corpus']))}`, mined "
        f"with quantile {settings['quantile']} and fraction {settings['fraction']}"
        + (f", without {', '.join(f'`{name}`' for name in settings['filters'])}" if settings["filters"] else "")
        + (f"; adjectives in {_texts(settings['adjective_templates'])}" if "adjective" in negatives["kinds"] else "")
    )


def _fitted_on(fitted: Mapping[str, Any]) -> str:
    labelled = " with labels" if fitted["labelled"] else ""
    return f"{fitted['images']:,} images{labelled}, {fitted['date']}, SHA-256 `{fitted['sha256'][:16]}…`"


def describe_finetuning(finetuning: Mapping[str, Any], quote: str = "") -> str:
    """Word how the head of a detector was trained together with its image encoder.

    Args:
        finetuning (`Mapping`): As `OODDetector.fitted_on` has it.
        quote (`str`, *optional*, defaults to `""`): What to put around names.

    Returns:
        `str`
    """
    how = {"full": "all of it", "lora": "by low-rank adapters (LoRA)"}
    base = finetuning.get("base")
    settings = {name: value for name, value in finetuning.items() if name not in ("tuning", "base", "base_sha256")}
    listed = ", ".join(f"{quote}{name}{quote} = {value}" for name, value in settings.items())
    tuning = how.get(finetuning["tuning"], str(finetuning["tuning"]))
    origin = f" of {quote}{_inline(public_name(base))}{quote}" if base else ""
    return f"the head was trained together with the image encoder{origin}, {tuning}" + (
        f"; {listed}" if listed else ""
    )


def describe_held_out(held_out: Mapping[str, Any]) -> str:
    """Word what the images say that were held out from the training of a probe.

    Args:
        held_out (`Mapping`): As `OODDetector.fitted_on` has it.

    Returns:
        `str`: Such as `"loss 0.31, accuracy 91.0% after epoch 12, the best one, of which the probe is"`.
    """
    return (
        f"loss {held_out['loss']:.4g}, accuracy {held_out['accuracy']:.1%} after epoch {held_out['best_epoch']}, the "
        "best one, of which the probe is"
    )


def _pseudo_labels(pseudo_labels: Mapping[str, Any]) -> str:
    confidence = pseudo_labels["min_confidence"]
    kept = f"{pseudo_labels['kept']:,} of {pseudo_labels['of']:,} images"
    certain = "" if confidence is None else f", those with a confidence of {confidence:g} or more"
    extremes = [
        f"{word} {pseudo_labels[word]['images']:,} (`{_inline(pseudo_labels[word]['label'])}`)"
        for word in ("fewest", "most")
        if word in pseudo_labels
    ]
    balance = f"; {', '.join(extremes)}" if extremes else ""
    return f"{kept}{certain}{balance}; texts in {_texts(pseudo_labels['templates'])}"


def _base_of_adapter(folder: Path, values: Mapping[str, Any]) -> str | None:
    """The model that the adapter in the folder of a detector is for."""
    file = folder / ADAPTER_CONFIG_NAME
    if values["model"]["weights"] != "inside" or not file.is_file():
        return None
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return str(base) if base else None


def _is_hub_id(model: Mapping[str, Any]) -> bool:
    return bool(model["revision"]) and str(model["id"]).count("/") == 1


def _texts(texts: list[str] | None) -> str | None:
    return None if texts is None else ", ".join(f"`{_inline(text)}`" for text in texts)


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = [
    "CARD_NAME",
    "describe_finetuning",
    "describe_held_out",
    "describe_threshold",
    "detector_card",
    "differ_in_threshold_only",
    "is_own_card",
    "mark_threshold",
    "write_detector_card",
]
