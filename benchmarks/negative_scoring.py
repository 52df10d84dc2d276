# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What scoring by thousands of negative labels costs, compared with encoding the images.

A batch is encoded by a ViT-B/16 with random weights, and scored with random embeddings: time depends on neither. In
each round everything is timed once; shares are medians over the rounds of the ratio within a round. Times are those of
the processor, which other processes do not prolong as they do those of the clock. How far the peak of the memory
rises is measured in a process of its own per size, on Linux alone.

    OMP_NUM_THREADS=1 python benchmarks/negative_scoring.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from clipn_hf.scores import neglabel_from_embeddings, top_negatives

DIM = 512
GROUPS = 100
# Images and negative labels of the measurements of memory.
SIZES = ((32, 10_000), (32, 100_000), (2_048, 10_000), (2_048, 100_000))
# The published form is not measured where it would take gigabytes.
MAX_PUBLISHED = 2_048 * 10_000


def random_embeddings(count: int, seed: int) -> Tensor:
    """Unit vectors that are as near to each other as those of CLIP, made in place."""
    embeddings = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    embeddings += 2 * torch.randn(DIM, generator=torch.Generator().manual_seed(0))
    return normalize(embeddings, dim=1, out=embeddings)


def score_published(images: Tensor, labels: Tensor, negatives: Tensor, permutation: Tensor) -> Tensor:
    """The score in the form of the formula in the paper: a softmax over the labels and each group."""
    known = images @ labels.T / 0.01
    groups = (images @ negatives.T / 0.01)[:, permutation].reshape(len(images), GROUPS, -1)
    shares = [
        torch.cat([known, groups[:, group]], dim=1).softmax(dim=1)[:, : known.shape[1]].sum(dim=1)
        for group in range(GROUPS)
    ]
    return 1 - torch.stack(shares).mean(dim=0)


def measure_memory(images: int, negatives: int, labels: int, published: bool) -> int:
    """How many bytes the peak rises by when images are scored and explained, beyond what is given."""
    inputs = random_embeddings(images, 1), random_embeddings(labels, 2), random_embeddings(negatives, 3)

    def run(count: int, of_negatives: int) -> None:
        given = inputs[0][:count], inputs[1], inputs[2][:of_negatives]
        if published:
            score_published(*given, torch.randperm(of_negatives))
            return
        similarity = given[0] @ given[1].T
        neglabel_from_embeddings(similarity, given[0], given[2], num_groups=GROUPS)
        top_negatives(similarity, given[0], given[2], k=3)

    # The first call loads libraries.
    run(1, GROUPS)
    # Begins a new peak. That of the imports is higher than what is measured.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_memory()
    run(images, negatives)
    return peak_memory() - before


def peak_memory() -> int:
    """The peak of the resident memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main(num_labels: int, num_negatives: int, batch_size: int, rounds: int) -> None:
    """Print times, shares and memory."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=16,
        projection_dim=DIM,
    )
    encoder = CLIPVisionModelWithProjection(config).eval()
    pixels = torch.randn(batch_size, 3, 224, 224)
    images, labels = random_embeddings(batch_size, 1), random_embeddings(num_labels, 2)
    negatives = random_embeddings(num_negatives, 3)
    permutation = torch.randperm(num_negatives, generator=torch.Generator().manual_seed(0))

    def score() -> Tensor:
        return neglabel_from_embeddings(
            images @ labels.T, images, negatives, num_groups=GROUPS, permutation=permutation
        )

    def explain() -> Tensor:
        top_negatives(images @ labels.T, images, negatives, k=3)
        return score()

    steps: dict[str, Callable[[], object]] = {
        "encode the images": lambda: encoder(pixel_values=pixels).image_embeds,
        "the cosines alone": lambda: (
            images @ labels.T,
            images @ negatives.T,
        ),
        "score": score,
        "score, and find the top 3 negative labels": explain,
        "score in the published form": lambda: score_published(images, labels, negatives, permutation),
    }
    with torch.inference_mode():
        largest = (score() - score_published(images, labels, negatives, permutation)).abs().max().item()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(rounds + 1):
            for name, step in steps.items():
                start = time.process_time()
                step()
                # The first round sets things up.
                if turn:
                    seconds[name].append(time.process_time() - start)
            print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
    encoding, published = seconds["encode the images"], seconds["score in the published form"]
    print(
        f"{num_labels:,} labels, {num_negatives:,} negative labels in {GROUPS} groups, batches of {batch_size}, "
        f"{torch.get_num_threads()} thread(s), {rounds} rounds; both forms differ by {largest:.1g} at most.\n"
    )
    print("| step | milliseconds | % of encoding | % of the published form |\n| --- | ---: | ---: | ---: |")
    for name, times in seconds.items():
        shares = [
            100 * statistics.median(one / other for one, other in zip(times, others, strict=True))
            for others in (encoding, published)
        ]
        print(f"| {name} | {1000 * statistics.median(times):.1f} | {shares[0]:.2f} | {shares[1]:.1f} |")
    print("\n| images | negative labels | their cosines, MB | peak rises by, MB | in the published form, MB |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for number, of_negatives in SIZES:
        rises = []
        for is_published in (False, True):
            if is_published and number * of_negatives > MAX_PUBLISHED:
                rises.append("")
                continue
            command = [sys.executable, __file__, "--memory", str(number), str(of_negatives), str(int(is_published))]
            command += ["--labels", str(num_labels)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rises.append(f"{json.loads(output) / 1e6:.0f}")
        print(f"| {number:,} | {of_negatives:,} | {number * of_negatives * 4 / 1e6:.0f} | {' | '.join(rises)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000)
    parser.add_argument("--negatives", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        images, negatives, published = arguments.memory
        print(measure_memory(images, negatives, arguments.labels, bool(published)))
    else:
        main(arguments.labels, arguments.negatives, arguments.batch_size, arguments.rounds)
