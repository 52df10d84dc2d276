# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pack a folder of emoji drawings and its `captions.csv` into one parquet file."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import datasets

from clipn_hf.files import atomic_path

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "style": datasets.Value("string"),
        "concept": datasets.Value("string"),
        "category": datasets.Value("string"),
        "subcategory": datasets.Value("string"),
        "name": datasets.Value("string"),
        "keywords": datasets.List(datasets.Value("string")),
    }
)


def main(folder: Path, out: Path) -> None:
    with open(folder / "captions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = row["image"]
        row["image"] = {"bytes": (folder / path).read_bytes(), "path": path}
        row["keywords"] = [word for word in row["keywords"].split(";") if word]
    with atomic_path(out) as partial:
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(partial)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with captions.csv and the images it names")
    parser.add_argument("--out", type=Path, default=Path("emoji.parquet"))
    arguments = parser.parse_args()
    main(arguments.folder, arguments.out)
