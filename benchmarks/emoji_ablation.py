# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What each part of CLIPN contributes: training runs that differ from the recipe of `clipn-tiny` in one thing.

Every row trains from the same base CLIP, then runs the protocol of `benchmarks/emoji.py`. Rows that do not change the
views share the cached image embeddings, so a row costs the training of the "no" text encoder alone.

    python benchmarks/emoji_ablation.py --dataset emoji.parquet --output benchmarks/results/emoji_ablation.json

The settings of the recipe were chosen by the same comparison on training styles that neither base nor CLIPN had seen:

    python benchmarks/emoji_ablation.py --dataset emoji.parquet --base runs/clip-tiny-7 --styles emojione streamline \
        --training-styles noto noto-v1 fluent-3d fluent-color fluent-flat fluent-high-contrast fxemoji
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from emoji import TEST_STYLES, as_markdown, embed_style, evaluate_style, load_rows, write_results

from clipn_hf.encoders import DualEncoder

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "training" / "recipes" / "clipn-tiny.yaml"
# None takes a key out of the recipe.
ROWS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "hand-crafted prompts": {"no_prompt_type": "handcrafted"},
    "with TSO, as in the paper": {"tso_weight": 0.5},
    "without L_yes": {"yes_weight": 0.0},
    "without L_no": {"no_weight": 0.0},
    "TSO alone": {"yes_weight": 0.0, "no_weight": 0.0, "tso_weight": 0.5},
    "own caption alone matches": {"group_column": None},
    "additive prompts alone": {"tuning": "no_prompts"},
    "light crops": {"crop_scale": [0.9, 1.0]},
    "images encoded in every step": {"num_cached_views": 0},
}
HANDCRAFTED = {
    "templates": ["an emoji of a {}.", "a drawing of a {}."],
    "no_templates": ["an emoji of no {}.", "a drawing without a {}."],
    "caption_templates": ["{}"],
}


def train_row(changes: dict[str, Any], dataset: Path, cache: Path, output: Path) -> None:
    """Run `training/train.py` on the recipe with some of its keys changed."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    if changes.get("no_prompt_type") == "handcrafted":
        recipe.pop("num_no_prompts")
        changes = {**HANDCRAFTED, **changes}
    recipe.update(changes, dataset=str(dataset), output_dir=str(output), image_cache_dir=str(cache))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}, file)
        file.flush()
        subprocess.run([sys.executable, ROOT / "training" / "train.py", "--config", file.name], check=True)


def main(
    dataset: Path, styles: list[str], names: list[str], runs: Path, output: Path | None, common: dict[str, Any]
) -> None:
    rows = load_rows(dataset)
    results: dict[str, dict[str, Any]] = {}
    images: dict[str, torch.Tensor] = {}
    for name in names:
        folder = runs / name.replace(",", "").replace(" ", "-").lower()
        if not (folder / "config.json").exists():
            train_row({**common, **ROWS[name]}, dataset, runs / "image_cache", folder)
        encoder = DualEncoder.from_pretrained(folder)
        # The image encoder is that of the base in every row.
        images = images or {style: embed_style(encoder, rows[style]) for style in styles}
        results[name] = {style: evaluate_style(encoder, rows[style], images[style]) for style in styles}
    print(as_markdown(results))
    if output:
        write_results(results, output)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("emoji.parquet"))
    parser.add_argument("--styles", nargs="+", default=TEST_STYLES)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder of the trained models")
    parser.add_argument("--base", help="folder of the base CLIP, in place of that of the recipe")
    parser.add_argument("--training-styles", nargs="+", help="in place of those of the recipe")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    common: dict[str, Any] = {}
    if arguments.base:
        common["model_name_or_path"] = arguments.base
    if arguments.training_styles:
        common["filter"] = f"style={','.join(arguments.training_styles)}"
    main(arguments.dataset, arguments.styles, arguments.rows, arguments.runs, arguments.output, common)
