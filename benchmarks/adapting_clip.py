# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The claims of "Adapting CLIP for OOD detection" (arXiv 2303.05828) on what fits on a small machine.

    OMP_NUM_THREADS=1 python benchmarks/adapting_clip.py --data-root DATA --output benchmarks/results/adapting_clip

Parts, each with a page of tables, the numbers as JSON, and figures, which need the extra `[benchmarks]`:

- `scores`: nearest neighbors, k-means, Mahalanobis distances, ReAct, ViM and ODIN against zero-shot scores.
- `settings`: one setting of these at a time.
- `probing`: linear probes, with labels, few labels and pseudo-labels, against zero-shot classification.
- `finetuning`: the image encoder trained, whole or by LoRA, against a linear probe; from random weights, too.
- `correlation`: ID accuracy against AUROC over the models that `finetuning` has written down.
- `attack`: adversarial OOD images, and defences.
- `imagenet`: what the statistics of ImageNet's embeddings suffice for.

The data root holds `data/` and `features/`, as src/clipn_hf/evaluation/suites/README.md says. Embeddings are kept in
the cache of the library. Defaults are those of the papers. Where another value is better, that is known from the
images that are measured here.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from adapting_clip_attack import attack
from adapting_clip_data import say
from adapting_clip_imagenet import imagenet
from adapting_clip_probing import probing
from adapting_clip_scores import scores, settings
from adapting_clip_tuning import correlation, finetuning
from transformers.utils import logging

PARTS = {
    "scores": scores,
    "settings": settings,
    "probing": probing,
    "finetuning": finetuning,
    "correlation": correlation,
    "attack": attack,
    "imagenet": imagenet,
}


def main(data_root: Path, output: Path, parts: Sequence[str]) -> None:
    """Measure the parts, and write their pages, figures and numbers."""
    output.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    for part in parts:
        start = time.perf_counter()
        say(part)
        PARTS[part](data_root, output)
        say(f"{part}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of pages, figures and numbers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    main(arguments.data_root, arguments.output, arguments.parts)
