# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What another method costs when the features are in the cache, compared with encoding the images.

The images are encoded once into an empty cache, read from it again, and scored by every method the model serves; those
that are fitted are fitted on the same images first. Then all metrics of a record are computed with their intervals, as
if the first half of the images were ID and the rest OOD. All times are wall times of one process; the ratios are what
is compared.

    python benchmarks/feature_cache.py photos/ --labels cat,dog,bird --model openai/clip-vit-base-patch16
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import Tensor

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.detector_checks import unserved
from clipn_hf.evaluation.results import OOD_METRICS, Draws, measure
from clipn_hf.features import cached_class_embeddings, extract_features
from clipn_hf.images import find_images
from clipn_hf.methods import METHODS

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What a function returns, and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main(
    paths: list[str],
    labels: list[str],
    model: str | None = None,
    limit: int | None = None,
    workers: int = 0,
    resamples: int = 1000,
) -> float:
    """Print all times; return the largest share of the encoding time that another method takes, in percent."""
    files = list(itertools.islice(find_images(paths, recursive=True), limit))
    encoder = DualEncoder.from_pretrained(model)
    # The first pass through a model sets things up that later ones find.
    encoder.image_embeddings(encoder.prepare_images(files[:1]))
    with tempfile.TemporaryDirectory() as cache:

        def extract() -> Tensor:
            return extract_features(files, encoder, cache_dir=cache, num_workers=workers, progress=False).embeddings

        _, encoding = timed(extract)
        embeddings, reading = timed(extract)
        _, texts = timed(lambda: cached_class_embeddings(encoder, labels, cache_dir=cache))
        _, texts_again = timed(lambda: cached_class_embeddings(encoder, labels, cache_dir=cache))
    print(f"{len(files):,} images, {len(labels):,} labels\n")
    print("| step | seconds | % of encoding |\n| --- | ---: | ---: |")

    def show(step: str, seconds: float) -> float:
        share = 100 * seconds / encoding
        print(f"| {step} | {seconds:.4f} | {share:.2f} |")
        return share

    show("encode the images", encoding)
    show("read their features from the cache", reading)
    show("encode the labels", texts)
    show("read the labels from the cache", texts_again)
    shares = []
    half = len(embeddings) // 2
    # Methods share what the bootstrap draws, so that the first one takes longer than any other.
    draws = Draws()
    for name, method in METHODS.items():
        if unserved(method, encoder) is not None:
            continue
        detector = OODDetector(encoder, labels, name)

        def run(detector: OODDetector = detector) -> tuple[np.ndarray, np.ndarray]:
            predictions = detector.predict(embeddings)
            # Of the labels that fitting needs, the nearest ones will do here.
            return detector.fit(embeddings, predictions).score(embeddings).numpy(), predictions.numpy()

        (scores, predictions), scoring = timed(run)

        def measure_all(scores: np.ndarray = scores, predictions: np.ndarray = predictions) -> object:
            id_data = predictions[:half], np.zeros(half, dtype=np.int64)
            return measure(OOD_METRICS, scores[:half], scores[half:], *id_data, resamples=resamples, draws=draws)

        measuring = timed(measure_all)[1]
        share = show(f"score by {name}" if method.fit is None else f"fit {name} and score by it", scoring)
        shares.append(share + show(f"metrics of {name}, {resamples:,} resamples", measuring))
    largest = max(shares[1:])
    print(f"\nAnother method, with its metrics, costs {largest:.2f} % of the encoding time at most.")
    return largest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="images, folders (searched at every depth) or glob patterns")
    parser.add_argument("--labels", required=True, help="separated by commas")
    parser.add_argument("--model", help="Hub id or folder; default: the embedded checkpoint")
    parser.add_argument("--limit", type=int, help="use the first images only")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; default: 1000")
    arguments = parser.parse_args()
    main(
        arguments.paths,
        arguments.labels.split(","),
        arguments.model,
        arguments.limit,
        arguments.workers,
        arguments.resamples,
    )
