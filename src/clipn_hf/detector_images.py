# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The images that a detector is given, embedded: batch by batch to be judged, all together to learn from."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging

from .detector_checks import (
    check_given_count,
    check_image_embeddings,
    is_embeddings,
    own_embeddings,
)
from .detector_state import DetectorState
from .encoders import DualEncoder
from .features import Features, extract_features
from .images import image_of, number_images

logger = logging.get_logger(__name__)

# Cosines of images with labels that are held at once: 8 MB in float32.
_COSINES = 2**21
# Embeddings that are normalized at once to be digested: 16 MB with 512 dimensions.
_DIGESTED = 2**13


def embed_batches(detector: DetectorState, images: Any, batch_size: int) -> Iterator[Tensor]:
    """Embed images as the method judges them, no more of which are in memory than one batch.

    Args:
        detector ([`OODDetector`]): Its encoder embeds them.
        images: As for calling the detector.
        batch_size (`int`): Images per pass through the model.

    Yields:
        `torch.Tensor`: What `embed_prepared` gives of each batch.

    Raises:
        ImageError, TypeError, ValueError: As for calling the detector.
    """
    return map(detector.embed_prepared, prepare_batches(detector, images, batch_size))


def prepare_batches(detector: DetectorState, images: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Prepare images for the encoder of a detector, no more of which are in memory than one batch.

    Args:
        detector ([`OODDetector`]): Its encoder prepares them.
        images: As for calling the detector.
        batch_size (`int`): Images per pass through the model.

    Yields:
        `dict[str, torch.Tensor]`: As [`DualEncoder.prepare_images`] gives them.

    Raises:
        ImageError, TypeError, ValueError: As for calling the detector.
    """
    check_given_count("batch_size", batch_size)
    if is_embeddings(images):
        raise TypeError("These are embeddings; judge them by `results` or `score`.")
    encoder = _image_encoder(detector, images)
    numbered = number_images(images)
    # A single image needs no number in errors.
    items = iter([(None, image_of(images))] if numbered is None else numbered)
    while batch := list(itertools.islice(items, batch_size)):
        yield encoder.prepare_images([image for _, image in batch], start=batch[0][0])


def split_embeddings(detector: DetectorState, image_embeddings: Any, from_prepared: bool = False) -> Iterator[Tensor]:
    """Split embeddings into parts, so that comparing one with the labels needs no more memory the more images come.

    Args:
        detector ([`OODDetector`]): Its labels are what images are compared with.
        image_embeddings: As for [`OODDetector.results`].
        from_prepared (`bool`, *optional*, defaults to `False`): As for [`OODDetector.results`].

    Yields:
        `torch.Tensor` of shape `(part, dim)`: The embeddings as they are, and what comes with them in a column more; a
        few thousand images are one part.

    Raises:
        ValueError: Embeddings of another shape.
    """
    width = detector.prepared_width if from_prepared else detector.dim
    embeddings = own_embeddings(image_embeddings, detector.encoder, width)
    yield from embeddings.split(max(1, _COSINES // max(detector.dim, len(detector.labels))))


def embed_images(
    detector: DetectorState,
    images: Any,
    positions: list[int] | None,
    batch_size: int,
    use_cache: bool,
    to_judge: bool = False,
) -> tuple[Tensor, list[bytes], list[int] | None]:
    """Embed images to learn from.

    Args:
        detector ([`OODDetector`]): Its encoder embeds them.
        images: Images, or their embeddings, as for [`OODDetector.score`].
        positions (`list[int]`, *optional*): The position of the label of each.
        batch_size (`int`): Images per pass through the model.
        use_cache (`bool`): Whether to read and keep embeddings on disk.
        to_judge (`bool`, *optional*, defaults to `False`):
            Whether to embed images as the method judges them, which may change them before. Nothing is kept on disk
            then.

    Returns:
        `tuple[torch.Tensor, list[bytes], list[int]]`: Embeddings `(images, dim)`, or those given as they are; a digest
        of each image; the positions of those that could be read.

    Raises:
        TypeError, ValueError: As [`OODDetector.fit`].
    """
    check_given_count("batch_size", batch_size)
    if is_embeddings(images):
        if to_judge:
            detector.check_judged_by_embeddings()
        # As they are: scores are bit-equal to those of the same embeddings later, when they are normalised once.
        given = own_embeddings(images, detector.encoder, detector.dim)
        embeddings = check_image_embeddings(given, detector.dim)
        if len(embeddings) == 0:
            raise ValueError("There are no image embeddings; give those of at least one image.")
        if positions is not None and len(positions) != len(embeddings):
            raise ValueError(f"`id_labels` must be one per image, got {len(positions)} for {len(embeddings)} images.")
        if isinstance(images, Features):
            return embeddings, [bytes.fromhex(digest) for digest in images.digests], positions
        return embeddings, row_digests(embeddings), positions
    features = extract_features(
        images,
        _image_encoder(detector, images),
        labels=positions,
        batch_size=batch_size,
        use_cache=use_cache,
        embed=detector.embed_prepared if to_judge and detector.judges_images else None,
    )
    return features.embeddings, [bytes.fromhex(digest) for digest in features.digests], features.labels


def embed_to_learn(
    detector: DetectorState, id_images: Any, positions: list[int] | None, batch_size: int, use_cache: bool
) -> tuple[Tensor, list[bytes], list[int] | None]:
    """Embed images to fit a method on, as `embed_images`; errors call the labels `id_labels`."""
    try:
        return embed_images(detector, id_images, positions, batch_size, use_cache)
    except ValueError as error:
        message = str(error)
        if not message.startswith("`labels` "):
            raise
        raise ValueError(message.replace("`labels`", "`id_labels`", 1)) from error


def embed_distinct_images(
    detector: DetectorState, name: str, images: Any, batch_size: int, use_cache: bool
) -> tuple[Tensor, list[bytes]]:
    """Embed images as `embed_images`, each once, as the method judges them: copies are no further draws.

    Args:
        detector, images, batch_size, use_cache: As for `embed_images`.
        name (`str`): How the log calls the images.

    Returns:
        `tuple[torch.Tensor, list[bytes]]`: Embeddings `(images, dim)` and a digest of each image.

    Raises:
        TypeError, ValueError: As [`OODDetector.calibrate`].
    """
    embeddings, digests, _ = embed_images(detector, images, None, batch_size, use_cache, to_judge=True)
    first = {digest: row for row, digest in reversed([*enumerate(digests)])}
    if len(first) == len(digests):
        return embeddings, digests
    logger.warning(
        f"{len(digests) - len(first)} of the {len(digests)} images of `{name}` are copies of others and left out."
    )
    rows = sorted(first.values())
    return embeddings[rows], [digests[row] for row in rows]


def _image_encoder(detector: DetectorState, images: Any) -> DualEncoder:
    """The encoder, where it embeds images; otherwise an error says what these are in place of embeddings."""
    if isinstance(detector.encoder, DualEncoder):
        return detector.encoder
    got = type(images).__name__
    if isinstance(images, Tensor | np.ndarray):
        got += f" of {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
    raise TypeError(
        "The detector has text embeddings that were computed before, and no model for images; give image embeddings "
        f"of {detector.encoder.source}, a torch.Tensor or numpy.ndarray of shape (images, {detector.dim}) of "
        f"floating-point numbers, got {got}."
    )


def row_digests(embeddings: Tensor) -> list[bytes]:
    """Compute SHA-256 of each embedding, whatever its norm."""
    # Part by part, because a normalized copy of a million embeddings takes gigabytes.
    parts = (normalize(part, dim=1).numpy() for part in embeddings.split(_DIGESTED))
    return [hashlib.sha256(row.tobytes()).digest() for part in parts for row in part]


__all__ = [
    "embed_batches",
    "embed_distinct_images",
    "embed_images",
    "embed_to_learn",
    "prepare_batches",
    "row_digests",
    "split_embeddings",
]
