# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What methods that learn from image embeddings cost with as many images as ImageNet has.

The embeddings are random unit vectors around one direction per class. Time and memory depend on their number alone,
but for k-means, which takes more steps the less clear the clusters are. Each part is measured in a process of its own,
whose peak of resident memory includes the embeddings and the libraries. Times are those of the processor, summed over
all threads, which other processes prolong less than those of the clock: on two idle cores, half as many seconds pass.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/feature_bank.py --output benchmarks/results/feature_bank.json
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

Result = TypeVar("Result")

# Images that are made, or given to a stream, at once.
STEP = 10_000


def make_part(start: int, count: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Embeddings of unit norm, and their classes, in random order."""
    directions = normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(1 + start)
    labels = torch.randint(classes, (count,), generator=generator)
    # Each class has images, whatever is drawn.
    labels[: min(count, classes)] = torch.arange(min(count, classes))
    # The noise of all dimensions together is about twice as long as the direction.
    embeddings = directions[labels] + 2 / dim**0.5 * torch.randn(count, dim, generator=generator)
    return normalize(embeddings), labels


def stream(images: int, dim: int, classes: int) -> Iterator[Tensor]:
    """The embeddings of `make_bank`, some at a time."""
    for start in range(0, images, STEP):
        yield make_part(start, min(STEP, images - start), dim, classes)[0]


def make_bank(images: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """All embeddings and their classes."""
    bank, labels = torch.empty(images, dim), torch.empty(images, dtype=torch.int64)
    for start in range(0, images, STEP):
        part = slice(start, min(start + STEP, images))
        bank[part], labels[part] = make_part(start, part.stop - start, dim, classes)
    return bank, labels


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What a function returns, and the seconds of the processor that it took."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def measure_neighbors(bank: Tensor, queries: Tensor, backend: Any) -> dict[str, float]:
    """Search all neighbors of many images at once, and of 32 as a batch of images would be."""
    from clipn_hf.scores import nearest_neighbors

    found: dict[str, float] = {}
    for k in (1, 10):
        scores, seconds = timed(lambda k=k: nearest_neighbors(queries, bank, k, backend=backend))
        found |= {f"k={k}: seconds": seconds, f"k={k}: queries per second": len(queries) / seconds}
        if backend != "torch":
            expected = nearest_neighbors(queries[:32], bank, k)
            found[f"k={k}: largest difference from torch"] = (scores[:32] - expected).abs().max().item()
    found["32 queries: seconds"] = timed(lambda: nearest_neighbors(queries[:32], bank, backend=backend))[1]
    return found


def measure_distances(gaussians: Any, queries: Tensor) -> dict[str, float]:
    """Compute both distances."""
    from clipn_hf.scores import mahalanobis, relative_mahalanobis

    found = {}
    for score in (mahalanobis, relative_mahalanobis):
        seconds = timed(lambda score=score: score(queries, gaussians))[1]
        found[f"{score.__name__}: queries per second"] = len(queries) / seconds
    return found


def measure_clusters(bank: Tensor, queries: Tensor, num_clusters: int) -> dict[str, float]:
    """Find clusters, and the one of each image."""
    from clipn_hf.scores import fit_centroids, nearest_centroids, nearest_neighbors
    from clipn_hf.scores.clusters import SAMPLE

    centroids, seconds = timed(lambda: fit_centroids(bank, num_clusters))
    clusters, assigning = timed(lambda: nearest_centroids(bank, centroids))
    scoring = timed(lambda: nearest_neighbors(queries, centroids))[1]
    return {
        "images drawn": min(len(bank), SAMPLE * num_clusters),
        "fit: seconds": seconds,
        "assign all images: seconds": assigning,
        "clusters with images": len(clusters.unique()),
        "queries per second": len(queries) / scoring,
    }


def make_detector(method: str, dim: int, classes: int) -> Any:
    """A detector on a model with random weights and embeddings of the width that is asked for."""
    import copy

    from clipn_hf import CLIPNModel, DualEncoder, OODDetector

    embedded = DualEncoder.from_pretrained()
    config = copy.deepcopy(embedded.model.config)
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = dim
    encoder = DualEncoder(CLIPNModel(config), embedded.processor)
    return OODDetector(encoder, [f"class {number}" for number in range(classes)], method, templates=["{}"])


def measure_detector(method: str, bank: Tensor, labels: Tensor, queries: Tensor, classes: int) -> dict[str, float]:
    """Fit, score, save and load through the public class."""
    from clipn_hf import OODDetector

    detector = make_detector(method, bank.shape[1], classes)
    fitting = timed(lambda: detector.fit(bank, labels))[1]
    found = {"fit: seconds": fitting, "fit: peak memory in GB": peak_memory()}
    scores, scoring = timed(lambda: detector.score(queries))
    found |= {"queries per second": len(queries) / scoring, "score: peak memory in GB": peak_memory()}
    with tempfile.TemporaryDirectory() as folder:
        found["save: seconds"] = timed(lambda: detector.save_pretrained(folder))[1]
        found["save: peak memory in GB"] = peak_memory()
        found["saved, in GB"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e9
        loaded, found["load: seconds"] = timed(lambda: OODDetector.from_pretrained(folder))
        assert torch.equal(loaded.score(queries), scores)
    return found


def peak_memory() -> float:
    """The peak of the resident memory so far in GB."""
    # Linux counts in units of 1,024 bytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def measure(part: str, images: int, dim: int, classes: int, queries: int) -> dict[str, float]:
    """Measure one part in this process."""
    # In other places than those of the bank
    asked = make_part(images, queries, dim, classes)[0]
    if part == "gaussians of a stream":
        from clipn_hf.scores import fit_gaussians

        labels = torch.cat(
            [make_part(start, min(STEP, images - start), dim, classes)[1] for start in range(0, images, STEP)]
        )
        seconds = timed(lambda: fit_gaussians(stream(images, dim, classes), labels))[1]
        found = {"make the embeddings and fit: seconds": seconds}
    else:
        bank, labels = make_bank(images, dim, classes)
        if part in ("torch", "faiss"):
            found = measure_neighbors(bank, asked, part)
        elif part == "gaussians":
            from clipn_hf.scores import fit_gaussians

            gaussians, seconds = timed(lambda: fit_gaussians(bank, labels))
            found = {"fit: seconds": seconds, **measure_distances(gaussians, asked)}
        elif part == "k-means":
            found = measure_clusters(bank, asked, classes)
        else:
            found = measure_detector(part.removeprefix("detector: "), bank, labels, asked, classes)
    return {**found, "peak memory in GB": peak_memory()}


PARTS = (
    "torch",
    "faiss",
    "gaussians",
    "gaussians of a stream",
    "k-means",
    "detector: nearest_neighbors",
    "detector: relative_mahalanobis",
)


def main(
    images: int, dim: int, classes: int, queries: int, parts: list[str] | None = None, output: str | None = None
) -> dict[str, Any]:
    """Measure the parts, one process after the other; print a table, and write a file."""
    setup = {
        "images": images,
        "dim": dim,
        "classes": classes,
        "queries": queries,
        "embeddings in GB": images * dim * 4 / 1e9,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    record: dict[str, Any] = {**setup, "parts": {}}
    if output is not None and Path(output).exists():
        # Parts may be measured one by one.
        before = json.loads(Path(output).read_text(encoding="utf-8"))
        if before == {**setup, "parts": before["parts"]}:
            record = before
    print("| part | what | value |\n| --- | --- | ---: |", flush=True)
    for part in parts or PARTS:
        command = [sys.executable, __file__, "--part", part, "--images", str(images), "--dim", str(dim)]
        command += ["--classes", str(classes), "--queries", str(queries)]
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        record["parts"][part] = json.loads(process.stdout.splitlines()[-1])
        for name, value in record["parts"][part].items():
            print(
                f"| {part} | {name} | {value:,.3g} |" if value < 1000 else f"| {part} | {name} | {value:,.0f} |",
                flush=True,
            )
        if output is not None:
            from clipn_hf.files import atomic_path

            with atomic_path(output) as partial:
                partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1_000, help="and clusters")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="measure these alone")
    parser.add_argument("--output", help="the JSON file to write")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.images, arguments.dim, arguments.classes, arguments.queries)
    if arguments.part:
        print(json.dumps(measure(arguments.part, *sizes)))
    else:
        main(*sizes, arguments.parts, arguments.output)
