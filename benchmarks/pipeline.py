# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images a second of `pipeline("ood-detection")` and of transformers' `pipeline("zero-shot-image-classification")`.

Both get the same model, the same images and the 1,000 labels of ImageNet in the same template. That of transformers
embeds all labels again with every batch; this package does it once, which is timed by itself. Without `--model` it is
a CLIP ViT-B/16 with random weights, see `text_encoding.py`. Both take turns, so that what else the machine does is
shared; the ratio counts.

    python benchmarks/pipeline.py --output benchmarks/results/pipeline.json
"""

import argparse
import importlib.resources
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from text_encoding import random_vit_b16

from clipn_hf import DualEncoder, pipeline
from clipn_hf.files import atomic_path

TEMPLATE = "This is a photo of {}."


def imagenet_labels(count: int) -> list[str]:
    """The first names of the classes of ImageNet, made distinct where two are the same."""
    listing = importlib.resources.files("clipn_hf") / "evaluation" / "class_names" / "imagenet1k.txt"
    rows = [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines() if line]
    labels: dict[str, None] = {}
    for wnid, name in rows[:count]:
        labels[name if name not in labels else f"{name} {wnid}"] = None
    return list(labels)


def main(
    model: str | None = None,
    count: int = 1000,
    batch_sizes: tuple[int, ...] = (1, 8),
    rounds: int = 2,
    output: Path | None = None,
) -> dict[int, float]:
    """Print all numbers; return how many times as fast this package is, by batch size."""
    encoder = random_vit_b16() if model is None else DualEncoder.from_pretrained(model)
    labels = imagenet_labels(count)
    device, processor = encoder.device, encoder.processor
    theirs = transformers.pipeline(
        "zero-shot-image-classification",
        model=encoder.model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device=device,
    )
    ours = pipeline(
        "ood-detection",
        model=encoder.model,
        processor=processor,
        device=device,
        candidate_labels=labels,
        method="mcm",
        templates=[TEMPLATE],
    )
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (256, 256, 3), np.uint8)) for _ in range(max(batch_sizes))]
    start = time.perf_counter()
    ours(images[:1])
    labels_once = time.perf_counter() - start
    rows = []
    for batch_size in batch_sizes:
        seconds, same = {"theirs": 0.0, "ours": 0.0}, 0
        for round_ in range(rounds):
            batch = [images[(round_ + place) % len(images)] for place in range(batch_size)]
            start = time.perf_counter()
            expected = theirs(batch, candidate_labels=labels, hypothesis_template=TEMPLATE, batch_size=batch_size)
            middle = time.perf_counter()
            found = ours(batch, batch_size=batch_size)
            seconds["ours"] += time.perf_counter() - middle
            seconds["theirs"] += middle - start
            same += sum(one[0]["label"] == two["label"] for one, two in zip(expected, found, strict=True))
        judged = rounds * batch_size
        rows.append(
            {
                "batch_size": batch_size,
                "images": judged,
                "images_per_second_transformers": round(judged / seconds["theirs"], 3),
                "images_per_second": round(judged / seconds["ours"], 3),
                "ratio": round(seconds["theirs"] / seconds["ours"], 2),
                "same_label": same,
            }
        )
    results: dict[str, Any] = {
        "model": model or "CLIP ViT-B/16, random weights",
        "device": device.type,
        "threads": torch.get_num_threads(),
        "labels": len(labels),
        "seconds_for_the_labels_and_the_first_image": round(labels_once, 2),
        "rows": rows,
    }
    print(f"{results['model']}, {len(labels):,} labels, embedded with the first image in {labels_once:.1f} s\n")
    print("| images per batch | transformers, images/s | clipn-hf, images/s | ratio | same label |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['batch_size']} | {row['images_per_second_transformers']} | {row['images_per_second']} | "
            f"{row['ratio']} | {row['same_label']} of {row['images']} |"
        )
    if output is not None:
        with atomic_path(output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return {int(row["batch_size"]): float(row["ratio"]) for row in rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of a CLIP; default: random weights")
    parser.add_argument("--labels", type=int, default=1000, help="how many; default: 1000")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--rounds", type=int, default=2, help="in which both take turns; default: 2")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: 2")
    parser.add_argument("--output", type=Path, help="where to write the numbers as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    main(arguments.model, arguments.labels, tuple(arguments.batch_sizes), arguments.rounds, arguments.output)
