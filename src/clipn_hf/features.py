# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""One pass over the images for all methods: embeddings of data sets and of label sets, kept on disk.

An embedding is found again by the content of its image (or the tokens of its texts) together with everything else it
depends on, so it never stands in for another one: a file that changes under the same name, other weights, another
image processor or another dtype lead to an embedding of their own.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.utils import logging

from .digests import Kind, image_digest, image_encoder_settings, settings_digest, text_encoder_settings
from .encoders import TEXT_BATCH_SIZE, DualEncoder
from .feature_cache import SHARD_ROWS, FeatureStore, default_cache_dir
from .image_inputs import concatenate_inputs, prepare_image
from .images import ImageError, NumberedImages, load_image, number_images
from .prompts import fill_templates, validate_labels

logger = logging.get_logger(__name__)

MAX_REASONS = 3


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of a data set.

    Args:
        embeddings (`torch.Tensor` of shape `(readable, dim)`):
            Float32, unit norm, on the CPU, in the order of the data.
        rows (`torch.Tensor` of shape `(readable,)`): The position of each image in the data set, int64.
        digests (`list[str]`):
            SHA-256 of each image in hexadecimal: of the bytes of its file, or of its pixels where there is no file.
        skipped (`dict[int, str]`): The positions of the images that cannot be read, and why.
        num_encoded (`int`): How many images went through the model; the others were in the cache, or came repeatedly.
        labels (`list`, *optional*): The label of each readable image.
        encoder (`dict`, *optional*):
            What has embedded them, as [`~clipn_hf.digests.describe_image_encoder`] describes it.
    """

    embeddings: Tensor
    rows: Tensor
    digests: list[str]
    skipped: dict[int, str]
    num_encoded: int
    labels: list[Any] | None = None
    encoder: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def encoder_sha256(self) -> str | None:
        """SHA-256 of everything that makes an embedding of prepared images; None where it is not known."""
        return None if self.encoder is None else self.encoder["sha256"]

    def select(self, rows: Any) -> Self:
        """Select some of the images, such as those of [`~clipn_hf.probing.few_shot_mask`].

        Args:
            rows (`torch.Tensor`, `numpy.ndarray` or `Sequence`):
                Whether to take each of the images, bool, `(readable,)`; or the positions of images in `embeddings`,
                whole numbers, in the order in which they are to come.

        Returns:
            [`Features`]: Of these images, by the same encoder.

        Raises:
            TypeError: `rows` holds something else.
            ValueError: A mask of another length, or a position out of range.

        Example:

        ```python
        >>> import torch
        >>> from clipn_hf.features import Features
        >>> features = Features(torch.eye(3), torch.arange(3), ["a", "b", "c"], {}, 3, labels=["cat", "dog", "dog"])
        >>> features.select([True, False, True]).labels
        ['cat', 'dog']

        ```
        """
        given = torch.as_tensor(rows).cpu()
        chosen = given.long() if given.numel() == 0 and given.dtype != torch.bool else given
        if chosen.ndim != 1 or chosen.is_floating_point() or chosen.is_complex():
            raise TypeError(
                f"`rows` must be a mask or positions of shape (images,), got {chosen.dtype} of shape "
                f"{tuple(chosen.shape)}."
            )
        if chosen.dtype == torch.bool:
            if len(chosen) != len(self):
                raise ValueError(f"A mask in `rows` must be of the {len(self)} images, got {len(chosen)} values.")
            chosen = chosen.nonzero().flatten()
        positions = chosen.tolist()
        outside = [position for position in positions if not 0 <= position < len(self)]
        if outside:
            raise ValueError(f"`rows` must be between 0 and {len(self) - 1} for {len(self)} images, got {outside[0]}.")
        return replace(
            self,
            embeddings=self.embeddings[chosen],
            rows=self.rows[chosen],
            digests=[self.digests[position] for position in positions],
            labels=None if self.labels is None else [self.labels[position] for position in positions],
        )


def extract_features(
    images: Any,
    encoder: DualEncoder | str | os.PathLike[str],
    *,
    labels: Sequence[Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
    warn: bool = True,
    embed: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
) -> Features:
    """Embed a data set, and keep the embeddings on disk.

    What is in the cache is not computed again: a second pass reads and hashes the files of the images, but does not
    decode them. Embeddings are written as the pass goes, so that an interrupted one continues where it was. Images
    that cannot be read are left out, counted and named on the log.

    Args:
        images: Whatever [`~clipn_hf.images.number_images`] takes: a list of paths, a `datasets.Dataset`, ….
        encoder ([`DualEncoder`], `str` or `os.PathLike`): Embeds them, on its device and in its dtype; or the Hub id
            or folder of a model.
        labels (`Sequence`, *optional*): One label per image, in the order of the images.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder of the cache, by default that of [`~clipn_hf.feature_cache.default_cache_dir`].
        use_cache (`bool`, *optional*, defaults to `True`): Whether to read and write the cache.
        batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read and prepare images. What has no length is read in this process in any case.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar, if there is a terminal.
        warn (`bool`, *optional*, defaults to `True`):
            Whether to name the images that cannot be read on the log; `Features.skipped` has them in any case.
        embed (`Callable`, *optional*):
            In place of `encoder.image_embeddings`, such as [`OODDetector.embed_prepared`] for methods that change
            images before they judge them. Nothing is kept on disk then.

    Returns:
        [`Features`]: Of the readable images.

    Raises:
        TypeError: `images` holds something that is no image, or `encoder` is none.
        ValueError:
            There are no images or none that can be read, `labels` has another length, `batch_size` or `num_workers` is
            out of range, or the embeddings are not finite.

    Example:

    ```python
    >>> from clipn_hf import DualEncoder
    >>> from clipn_hf.features import extract_features
    >>> features = extract_features(["cat.jpg", "car.jpg"], DualEncoder.from_pretrained())  # doctest: +SKIP
    >>> features.embeddings.shape  # doctest: +SKIP
    torch.Size([2, 129])

    ```
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if num_workers < 0:
        raise ValueError(f"`num_workers` must be 0 or more, got {num_workers}.")
    if isinstance(encoder, str | os.PathLike):
        encoder = DualEncoder.from_pretrained(encoder)
    elif not isinstance(encoder, DualEncoder):
        raise TypeError(
            f"`encoder` must be a DualEncoder, or the id or folder of a model, got {type(encoder).__name__}; make it "
            "by `DualEncoder(model, processor)`."
        )
    numbered = number_images(images)
    if numbered is None:
        numbered = NumberedImages([images])
    total = len(numbered) if isinstance(numbered, NumberedImages) else None
    if total is not None:
        _check_count(labels, total)
    digests: dict[int, bytes] = {}
    skipped: dict[int, str] = {}
    num_encoded = 0
    with evaluation_mode(encoder):
        image_processor = encoder.processor.image_processor
        settings = image_encoder_settings(encoder.model, image_processor)
        store = _open_store("image", settings, encoder, cache_dir, use_cache and embed is None)
        preparation = _Preparation(image_processor, store.digests())
        batches = _read_batches(numbered, preparation, batch_size, num_workers)
        try:
            with tqdm(total=total, desc="Features", unit=" images", disable=None if progress else True) as bar:
                for batch in batches:
                    for row, outcome in batch.outcomes:
                        if isinstance(outcome, bytes):
                            digests[row] = outcome
                        else:
                            skipped[row] = outcome
                    # An image may come repeatedly.
                    new = {digest: index for index, digest in enumerate(batch.prepared) if digest not in store}
                    if new and batch.inputs is not None:
                        own = {name: values[list(new.values())] for name, values in batch.inputs.items()}
                        embeddings = encoder.image_embeddings(own) if embed is None else embed(own)
                        store.add(list(new), embeddings.cpu().numpy())
                        num_encoded += len(new)
                    bar.update(len(batch.outcomes))
        finally:
            store.flush()
    count = len(digests) + len(skipped)
    _check_count(labels, count)
    _report_skipped(skipped, count, warn)
    return Features(
        embeddings=torch.from_numpy(store.get(list(digests.values()))),
        rows=torch.tensor(list(digests)),
        digests=[digest.hex() for digest in digests.values()],
        skipped=skipped,
        num_encoded=num_encoded,
        labels=None if labels is None else [_plain_label(labels[row]) for row in digests],
        encoder=encoder.describe_images(settings),
    )


def cached_class_embeddings(
    encoder: DualEncoder,
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
    no_templates: Sequence[str] | None = None,
    use_no_encoder: bool = True,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    progress: bool = False,
    warn: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Embed labels as [`DualEncoder.class_embeddings`] does, and keep the embeddings on disk.

    Each label is found by itself, so label sets that overlap share what they have in common. Embeddings are written
    as they are computed, so that an interrupted call continues where it was.

    Args:
        encoder ([`DualEncoder`]): Embeds them.
        labels (`Sequence[str]`): One text per class.
        templates (`Sequence[str]`, *optional*): As for [`DualEncoder.class_embeddings`].
        no_templates (`Sequence[str]`, *optional*): As for [`DualEncoder.class_embeddings`].
        use_no_encoder (`bool`, *optional*, defaults to `True`): As for [`DualEncoder.class_embeddings`].
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder of the cache, by default that of [`~clipn_hf.feature_cache.default_cache_dir`].
        use_cache (`bool`, *optional*, defaults to `True`): Whether to read and write the cache.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar, if there is a terminal.
        warn (`bool`, *optional*, defaults to `True`): Whether to say on the log which labels are too long.

    Returns:
        Two `torch.Tensor` of shape `(classes, dim)`, float32, unit norm, on the device of the model. The second is
        None without a "no" text encoder.

    Raises:
        TypeError, ValueError: As [`DualEncoder.class_embeddings`].
    """
    labels = validate_labels(labels)
    templates, no_templates = encoder.label_templates(templates, no_templates)
    banks: dict[Kind, list[str]] = {"text": templates}
    if use_no_encoder and encoder.has_no_encoder:
        banks["no_text"] = no_templates
    tokenizer, max_length = encoder.processor.tokenizer, encoder.max_text_length
    with evaluation_mode(encoder):
        stores: dict[Kind, FeatureStore] = {}
        digests: dict[Kind, list[bytes]] = {}
        lengths = [0] * len(labels)
        for kind, own_templates in banks.items():
            settings = text_encoder_settings(encoder.model, kind, tokenizer, max_length)
            stores[kind] = _open_store(kind, settings, encoder, cache_dir, use_cache)
            digests[kind] = []
            for start in range(0, len(labels), SHARD_ROWS):
                some = labels[start : start + SHARD_ROWS]
                prompts = (encoder.class_prompts if kind == "text" else fill_templates)(some, own_templates)
                tokens = list(encoder.tokenize(prompts))
                for first in range(0, len(tokens), len(own_templates)):
                    of_label = tokens[first : first + len(own_templates)]
                    row = len(digests[kind])
                    lengths[row] = max(lengths[row], *map(len, of_label))
                    digests[kind].append(hashlib.sha256(repr(of_label).encode()).digest())
        missing = [
            row for row in range(len(labels)) if any(digests[kind][row] not in store for kind, store in stores.items())
        ]
        known_too_long = {row for row, length in enumerate(lengths) if length > max_length}.difference(missing)
        # Of the labels that are encoded, the encoder says it.
        if warn:
            encoder.warn_of_cut([labels[row] for row in sorted(known_too_long)])
        # Texts of one length need no padding, and the longest tell first whether memory is enough.
        missing.sort(key=lengths.__getitem__, reverse=True)
        # Each step is one batch of the encoder, as far as templates allow, so that the bar moves.
        step = max(1, TEXT_BATCH_SIZE // len(templates))
        try:
            with tqdm(
                total=len(labels),
                initial=len(labels) - len(missing),
                desc="Texts",
                unit=" texts",
                disable=None if progress and missing else True,
            ) as bar:
                for start in range(0, len(missing), step):
                    rows = missing[start : start + step]
                    # What the encoder remembers was found by less than what the digests are of.
                    computed = encoder.class_embeddings(
                        [labels[row] for row in rows],
                        templates,
                        no_templates,
                        use_no_encoder="no_text" in banks,
                        use_memory=False,
                        warn=warn,
                    )
                    for (kind, store), embeddings in zip(stores.items(), computed, strict=False):
                        assert embeddings is not None
                        # Labels that differ may have the same tokens, such as those that differ in case.
                        new = {
                            digests[kind][row]: index
                            for index, row in enumerate(rows)
                            if digests[kind][row] not in store
                        }
                        if new:
                            store.add(list(new), embeddings[list(new.values())].cpu().numpy())
                    bar.update(len(rows))
        finally:
            for store in stores.values():
                store.flush()
    text, no_text = (
        torch.from_numpy(stores[kind].get(digests[kind])).to(encoder.device) if kind in stores else None
        for kind in ("text", "no_text")
    )
    assert text is not None
    return text, no_text


@dataclass(frozen=True)
class _Batch:
    """What reading some images gave.

    Args:
        outcomes (`list` of `(int, bytes)` or `(int, str)`): Position and digest, or why the image cannot be read.
        prepared (`list[bytes]`): Digests of the images that are to be encoded.
        inputs (`dict[str, torch.Tensor]`, *optional*): The same images, as [`DualEncoder.prepare_images`] gives them.
    """

    outcomes: list[tuple[int, bytes | str]]
    prepared: list[bytes]
    inputs: dict[str, Tensor] | None


class _Preparation:
    """Reads images, and prepares those that are not known. It has no model, which other processes could not use."""

    def __init__(self, image_processor: Any, known: frozenset[bytes]) -> None:
        self.image_processor = image_processor
        self.known = known

    def __call__(self, row: int, image: Any) -> tuple[int, bytes | str, dict[str, Tensor] | None]:
        if image is None:
            return row, "there is no image.", None
        try:
            digest, content = image_digest(image)
            if digest in self.known:
                return row, digest, None
            return row, digest, prepare_image(load_image(content), self.image_processor)
        except ImageError as error:
            path = f"{os.fspath(image)}: " if isinstance(image, str | os.PathLike) else ""
            return row, f"{path}{error.reason}", None
        except TypeError as error:
            raise TypeError(f"Cannot read image {row}: {error}") from error


class _PreparedImages(Dataset[tuple[int, bytes | str, dict[str, Tensor] | None]]):
    def __init__(self, images: NumberedImages, preparation: _Preparation) -> None:
        self.images = images
        self.preparation = preparation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, bytes | str, dict[str, Tensor] | None]:
        try:
            row, image = self.images[index]
        except ImageError as error:
            return index, error.reason, None
        return self.preparation(row, image)


def _collate(items: Sequence[tuple[int, bytes | str, dict[str, Tensor] | None]]) -> _Batch:
    prepared = [(digest, inputs) for _, digest, inputs in items if inputs is not None and isinstance(digest, bytes)]
    return _Batch(
        outcomes=[(row, outcome) for row, outcome, _ in items],
        prepared=[digest for digest, _ in prepared],
        inputs=concatenate_inputs([inputs for _, inputs in prepared]) if prepared else None,
    )


def _read_batches(
    numbered: NumberedImages | Iterator[tuple[int, Any]], preparation: _Preparation, batch_size: int, num_workers: int
) -> Iterable[_Batch]:
    if isinstance(numbered, NumberedImages):
        return DataLoader(
            _PreparedImages(numbered, preparation),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=_collate,
        )
    chunks = iter(lambda: list(itertools.islice(numbered, batch_size)), [])
    return (_collate([preparation(row, image) for row, image in chunk]) for chunk in chunks)


def _open_store(
    kind: Kind,
    settings: dict[str, Any],
    encoder: DualEncoder,
    cache_dir: str | os.PathLike[str] | None,
    use_cache: bool,
) -> FeatureStore:
    folder = (default_cache_dir() if cache_dir is None else cache_dir) if use_cache else None
    name = encoder.name or type(encoder.model).__name__
    return FeatureStore(kind, settings_digest(settings), folder, {"model": name, "settings": settings})


@contextlib.contextmanager
def evaluation_mode(encoder: DualEncoder) -> Iterator[None]:
    """Switch off what training draws at random, also if the model is being trained.

    Args:
        encoder ([`DualEncoder`]): Its model is put in evaluation mode, and afterwards as it was.
    """
    was_training = encoder.model.training
    encoder.model.eval()
    try:
        yield
    finally:
        encoder.model.train(was_training)


def _check_count(labels: Sequence[Any] | None, count: int) -> None:
    if count == 0:
        raise ValueError("`images` is empty; give at least one image.")
    if isinstance(labels, str):
        raise TypeError(f"`labels` must be one label per image, got the text {labels!r}.")
    if labels is not None and len(labels) != count:
        raise ValueError(f"`labels` must be one label per image, got {len(labels)} labels and {count} images.")


def _plain_label(label: Any) -> Any:
    """A label as Python has it: an element of an array or tensor is one of its own kind."""
    return label.item() if hasattr(label, "item") else label


def _report_skipped(skipped: dict[int, str], count: int, warn: bool) -> None:
    reasons = [f"Image {row}: {reason}" for row, reason in skipped.items()]
    if len(skipped) == count:
        raise ValueError(f"None of the {count} images can be read. {' '.join(reasons[:MAX_REASONS])}")
    if warn and reasons:
        logger.warning(describe_skipped(reasons, f"{count} images"))


def describe_skipped(reasons: Sequence[str], whole: str) -> str:
    """Word which images cannot be read, for the log.

    Args:
        reasons (`Sequence[str]`): A sentence for each of them, of which the first ones are listed.
        whole (`str`): What they are part of, such as "8 images".

    Returns:
        `str`: A few sentences.
    """
    more = f" And {len(reasons) - MAX_REASONS} more." if len(reasons) > MAX_REASONS else ""
    verb = "is" if len(reasons) == 1 else "are"
    listed = " ".join(reasons[:MAX_REASONS])
    return f"{len(reasons)} of {whole} cannot be read and {verb} left out. {listed}{more}"


__all__ = ["Features", "cached_class_embeddings", "describe_skipped", "evaluation_mode", "extract_features"]
