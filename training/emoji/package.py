# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Put a trained checkpoint and sample pictures into the package: float16 weights, processor, 40 Twemoji drawings.

The samples are drawn, not picked: 20 labels among the in-distribution categories with a fixed seed and one picture of
each, then 10 near and 10 far unknown concepts (see `benchmarks/emoji.py` for what near and far mean).

    python training/emoji/package.py runs/clipn-tiny --dataset emoji.parquet
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import torch

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "clipn_hf"
CARD = ROOT / "model_cards" / "clipn-tiny.md"
ID_CATEGORIES = ("animals & nature", "food & drink", "objects")
STYLE = "twemoji"
MAX_BYTES = 12_000_000


def write_checkpoint(source: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        CLIPNModel.from_pretrained(source, dtype=torch.float16).save_pretrained(partial)
        processor = CLIPNProcessor.from_pretrained(source)
        # Traces of how the tokenizer was called last, which it would follow from then on
        processor.tokenizer.backend_tokenizer.no_truncation()
        processor.tokenizer.backend_tokenizer.no_padding()
        for name in (
            "max_length",
            "stride",
            "pad_to_multiple_of",
            "truncation_strategy",
            "is_local",
            "local_files_only",
        ):
            processor.tokenizer.init_kwargs.pop(name, None)
        processor.save_pretrained(partial)
        shutil.copy(CARD, partial / "README.md")
        size = sum(file.stat().st_size for file in partial.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"The checkpoint has {size:,} bytes, at most {MAX_BYTES:,} fit; train a smaller model.")
    print(f"{target}: {size / 1e6:.1f} MB")


def write_samples(dataset: Path, target: Path, seed: int) -> None:
    rows = datasets.load_dataset("parquet", data_files=str(dataset), split="train")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    rows = rows.filter(lambda style: style == STYLE, input_columns="style").sort("concept")
    inside = [i for i, category in enumerate(rows["category"]) if category in ID_CATEGORIES]
    outside = [i for i, category in enumerate(rows["category"]) if category not in ID_CATEGORIES]
    generator = np.random.default_rng(seed)
    drawn = generator.choice(inside, size=30, replace=False).tolist()
    known, near = drawn[:20], drawn[20:]
    far = generator.choice(outside, size=10, replace=False).tolist()
    with atomic_path(target) as partial:
        partial.mkdir()
        images = []
        for kind, index in [("known", i) for i in known] + [("near", i) for i in near] + [("far", i) for i in far]:
            row = rows[index]
            file = f"{row['concept'].lower()}.jpg"
            (partial / file).write_bytes(row["image"]["bytes"])
            images.append({"file": file, "name": row["name"], "kind": kind, "known": kind == "known"})
        record = {"labels": sorted(rows[i]["name"] for i in known), "images": images}
        (partial / "samples.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(f"{target}: {len(images)} pictures")


def main(source: Path, dataset: Path, seed: int) -> None:
    (PACKAGE / "checkpoints").mkdir(exist_ok=True)
    write_checkpoint(source, PACKAGE / "checkpoints" / "clipn-tiny")
    write_samples(dataset, PACKAGE / "samples", seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the trained CLIPN model and its processor")
    parser.add_argument("--dataset", type=Path, default=Path("emoji.parquet"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawing of the samples")
    arguments = parser.parse_args()
    main(arguments.source, arguments.dataset, arguments.seed)
