# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The card of a detector: which images it knows, how it decides, and what its threshold promises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers.utils import logging

from .files import atomic_path
from .methods import get_method
from .methods.neglabel import effective_settings

logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
_MARK = "<!-- Written by clipn-hf from detector.json; remove this line to keep your own text. -->"
_MAX_LABELS = 200


def write_detector_card(folder: Path, values: Mapping[str, Any], repo_id: str) -> None:
    """Write the card of a detector, unless there is one of somebody else's.

    Args:
        folder (`Path`): The folder of the detector.
        values (`Mapping`): What is in its `detector.json`.
        repo_id (`str`): The name it is loaded by.
    """
    path = folder / CARD_NAME
    if path.exists() and not is_own_card(path):
        logger.warning(f"{path} is not from clipn-hf and stays as it is; it does not tell of the detector.")
        return
    with atomic_path(path) as partial:
        partial.write_text(detector_card(values, repo_id), encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Tell whether a card was written by `write_detector_card`, and not edited since as it asks for."""
    return _MARK in path.read_text(encoding="utf-8", errors="replace")


def detector_card(values: Mapping[str, Any], repo_id: str) -> str:
    """Compose the card of a detector.

    Args:
        values (`Mapping`): What is in its `detector.json`.
        repo_id (`str`): The name it is loaded by.

    Returns:
        `str`: Markdown with metadata in front.
    """
    method, model = get_method(values["method"]), values["model"]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clipn_hf", "ood-detection", "out-of-distribution"],
        base_model=model["id"] if model["weights"] == "hub" or _is_hub_id(model) else None,
    )
    labels = values["labels"]
    listed = ", ".join(f"`{_inline(label)}`" for label in labels[:_MAX_LABELS])
    more = f" and {len(labels) - _MAX_LABELS:,} more" if len(labels) > _MAX_LABELS else ""
    negatives, fitted = values["negatives"], values["fitted_on"]
    in_effect = effective_settings(values["settings"], None if negatives is None else negatives["count"])
    settings = ", ".join(f"`{name}` = {value}" for name, value in in_effect.items())
    rows = {
        "Method": f"{method.title} (`{method.name}`), [{method.reference}](https://arxiv.org/abs/{method.reference})",
        "Settings": settings or None,
        "Model": f"{model['class']} `{_inline(model['id'] or 'without a name')}`"
        + (f", revision `{model['revision']}`" if model["revision"] else ""),
        "Templates": _texts(values["used_templates"]),
        '"No" templates': _texts(values["used_no_templates"]),
        "Negative labels": _negatives(negatives),
        "Fitted on": fitted and f"{fitted['images']:,} images, {fitted['date']}, SHA-256 `{fitted['sha256'][:16]}…`",
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

Each image gets a score; higher = more out of distribution (OOD). {_threshold(values)}
"""


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


def _is_hub_id(model: Mapping[str, Any]) -> bool:
    return bool(model["revision"]) and str(model["id"]).count("/") == 1


def _texts(texts: list[str] | None) -> str | None:
    return None if texts is None else ", ".join(f"`{_inline(text)}`" for text in texts)


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = ["CARD_NAME", "detector_card", "is_own_card", "write_detector_card"]
