# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""OOD detection on drawing styles that training never saw.

Protocol: 50 in-distribution concepts are drawn among "animals & nature", "food & drink" and "objects". Near OOD are
the other concepts of these three categories, far OOD the concepts of the remaining five. Ten draws with a fixed seed;
mean and standard deviation over the draws. FPR95 takes ID as positive (share of OOD accepted when 95 % of ID is kept).

    python benchmarks/emoji.py --dataset emoji.parquet --styles twemoji openmoji \
        --model "CLIP=runs/clip-tiny" --model "CLIPN=runs/clipn-tiny" --output benchmarks/results/emoji.json
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from clipn_hf.encoders import DualEncoder
from clipn_hf.evaluation.metrics import auroc, fpr_at_tpr
from clipn_hf.files import atomic_path
from clipn_hf.methods import METHODS, method_inputs

ID_CATEGORIES = ("animals & nature", "food & drink", "objects")
TEST_STYLES = ("twemoji", "openmoji", "emojione-v1", "openmoji-black")
# For a model that knows none of its own, such as a plain CLIP
TEMPLATES = ("{}", "a drawing of a {}.", "an emoji of a {}.", "a picture of a {}.", "an icon of a {}.")
METHOD_ORDER = ("msp", "max_logit", "energy", "mcm", "ctw", "atd")


def load_rows(dataset: Path) -> dict[str, datasets.Dataset]:
    """The test styles of the parquet file, images as bytes, sorted by concept."""
    rows = datasets.load_dataset("parquet", data_files=str(dataset), split="train")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    order = np.argsort(np.array(rows["concept"]), kind="stable")
    styles = np.array(rows["style"])
    return {style: rows.select(order[styles[order] == style]) for style in np.unique(styles).tolist()}


def draw_splits(
    concepts: list[str], categories: list[str], num_id: int = 50, draws: int = 10, seed: int = 0
) -> list[dict[str, list[int]]]:
    """Indices of ID, near-OOD and far-OOD concepts for each draw; `concepts` sorted, `categories` alongside."""
    generator = np.random.default_rng(seed)
    inside = [i for i, category in enumerate(categories) if category in ID_CATEGORIES]
    far = [i for i, category in enumerate(categories) if category not in ID_CATEGORIES]
    splits = []
    for _ in range(draws):
        chosen = set(generator.choice(inside, size=num_id, replace=False).tolist())
        splits.append({"id": sorted(chosen), "near": [i for i in inside if i not in chosen], "far": far})
    return splits


@torch.inference_mode()
def embed_style(encoder: DualEncoder, rows: datasets.Dataset, batch_size: int = 256) -> torch.Tensor:
    """Image embeddings `(N, dim)` of all drawings of one style, plain pre-processing."""
    parts = []
    for batch in rows.iter(batch_size):
        images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in batch["image"]]
        pixels = encoder.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        parts.append(encoder.image_embeddings(pixels))
    return torch.cat(parts)


def evaluate_style(encoder: DualEncoder, rows: datasets.Dataset, images: torch.Tensor) -> dict[str, Any]:
    """All methods on one style: `{"id_top1": [mean, sd], "far": {method: {"auroc": …, "fpr95": …}}, "near": …}`.

    `auroc_right_label` is the AUROC with those ID images alone whose nearest label is their own.
    """
    concepts, names, categories = list(rows["concept"]), list(rows["name"]), list(rows["category"])
    own = getattr(encoder.model.config, "templates", None)
    text, no_text = encoder.class_embeddings(names, None if own else TEMPLATES)
    values: dict[tuple[str, ...], list[float]] = {}
    for split in draw_splits(concepts, categories):
        labels = split["id"]

        no_labels = None if no_text is None else no_text[labels]
        inputs = {
            kind: method_inputs(images[index], text[labels], no_labels, encoder.logit_scale)
            for kind, index in split.items()
        }
        known = inputs["id"]
        hits = known.logits.argmax(dim=1) == torch.arange(len(labels), device=known.logits.device)
        values.setdefault(("id_top1",), []).append(100 * hits.float().mean().item())
        for name in METHOD_ORDER:
            method = METHODS[name]
            if "no" in method.needs and no_text is None:
                continue
            id_scores = method.score(known, **method.settings)
            for kind in ("far", "near"):
                ood_scores = method.score(inputs[kind], **method.settings)
                values.setdefault((kind, name, "auroc"), []).append(100 * auroc(id_scores, ood_scores))
                values.setdefault((kind, name, "fpr95"), []).append(100 * fpr_at_tpr(id_scores, ood_scores))
                of_right_labels = auroc(id_scores[hits], ood_scores)
                values.setdefault((kind, name, "auroc_right_label"), []).append(100 * of_right_labels)
    result: dict[str, Any] = {"images": len(rows)}
    for keys, numbers in values.items():
        place = result
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = [round(float(np.mean(numbers)), 2), round(float(np.std(numbers, ddof=1)), 2)]
    return result


def list_rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of model and method to show: one that does not look at the "no" text encoder under the first model alone.

    All models stand on the same base CLIP, of which such a method tells.
    """
    rows: list[tuple[str, str]] = []
    for model, styles in results.items():
        for method in next(iter(styles.values()))["far"]:
            if "no" in METHODS[method].needs or method not in {shown for _, shown in rows}:
                rows.append((model, method))
    return rows


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Tables of `{model: {style: result}}`, one per style."""
    lines = []
    for style in dict.fromkeys(style for styles in results.values() for style in styles):
        lines += [f"### {style}", "", "| model | ID top-1 | score | far AUROC | far FPR95 | near AUROC | near FPR95 |"]
        lines.append("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
        last = None
        for model, method in list_rows(results):
            result = results[model][style]
            cells = ["", ""] if model == last else [model, "{:.1f} ± {:.1f}".format(*result["id_top1"])]
            cells.append(method)
            for kind in ("far", "near"):
                cells += ["{:.1f} ± {:.1f}".format(*result[kind][method][metric]) for metric in ("auroc", "fpr95")]
            lines.append(f"| {' | '.join(cells)} |")
            last = model
        lines.append("")
    return "\n".join(lines)


def draw_figure(results: dict[str, dict[str, Any]], output: Path) -> None:
    """AUROC of every model and method on every style, far and near, with one standard deviation to both sides."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = list(dict.fromkeys(style for by_style in results.values() for style in by_style))
    rows = list_rows(results)
    names = [f"{method}, {model}" if len(results) > 1 else method for model, method in rows]
    figure, axes = plt.subplots(
        1, len(styles), figsize=(1.5 + 2.9 * len(styles), 0.8 + 0.32 * len(rows)), sharey=True, squeeze=False
    )
    for axis, style in zip(axes[0], styles, strict=True):
        for kind, color, shift in (("far", "#0072B2", -0.12), ("near", "#D55E00", 0.12)):
            means, deviations = zip(
                *(results[model][style][kind][method]["auroc"] for model, method in rows), strict=True
            )
            heights = [height + shift for height in range(len(rows))]
            axis.errorbar(means, heights, xerr=deviations, fmt="o", color=color, label=f"{kind} OOD", markersize=5)
        axis.set_title(style)
        axis.set_xlabel("AUROC, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(rows)), names)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    with atomic_path(output) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def write_results(results: dict[str, dict[str, Any]], output: Path) -> None:
    """Write the results as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(dataset: Path, styles: list[str], models: dict[str, str], output: Path | None, figure: Path | None) -> None:
    rows = load_rows(dataset)
    results: dict[str, dict[str, Any]] = {}
    for name, folder in models.items():
        encoder = DualEncoder.from_pretrained(folder)
        results[name] = {
            style: evaluate_style(encoder, rows[style], embed_style(encoder, rows[style])) for style in styles
        }
    print(as_markdown(results))
    if output:
        write_results(results, output)
    if figure:
        draw_figure(results, figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("emoji.parquet"))
    parser.add_argument("--styles", nargs="+", default=TEST_STYLES)
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER, repeatable")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--figure", type=Path, help="picture of the results; needs the extra [benchmarks]")
    arguments = parser.parse_args()
    pairs = dict(item.split("=", 1) for item in arguments.model)
    main(arguments.dataset, arguments.styles, pairs, arguments.output, arguments.figure)
