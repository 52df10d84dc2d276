# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings of all training images, computed once: CLIPN never changes the image encoder."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.utils import logging

from ..digests import image_encoder_settings, settings_digest
from ..files import atomic_path
from ..modeling import CLIPNModel, CLIPNProcessor
from .data import ImageTextDataset
from .rows import UnusableRowError

logger = logging.get_logger(__name__)

_FORMAT = 1  # To be raised whenever the same settings would give other numbers.


def build_image_cache(
    model: CLIPNModel,
    dataset: ImageTextDataset,
    processor: CLIPNProcessor,
    num_views: int,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> np.memmap[Any, Any]:
    """Embed `num_views` views of each image, or find the file in which they already are.

    One view is the image as the processor prepares it; several are drawn with `dataset.augmentation`. The file is
    named by a digest of everything the numbers depend on: the rows (files named by a path count with their size and
    time of change), the image encoder and the image processor, the augmentation, the number of views and the seed. It
    takes `rows * num_views * dim * 4` bytes and appears only when it is complete. In a distributed run, the first
    process of each machine computes and the others wait for it.

    Args:
        model ([`CLIPNModel`]): Runs on the device and in the dtype it is in; left as it was.
        dataset ([`ImageTextDataset`]): The images. Those that cannot be read are added to its `skipped`.
        processor ([`CLIPNProcessor`]): Prepares the images.
        num_views (`int`): Views of each image.
        folder (`str` or `os.PathLike`): Where the files are; made if it is not there.
        batch_size (`int`, *optional*, defaults to 64): Images that are embedded at a time.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images.

    Returns:
        `numpy.memmap` of shape `(rows, num_views, dim)`: Unit-norm embeddings in float32, read only; NaN for images
        that cannot be read. To be assigned to `dataset.image_embeds`.

    Raises:
        ValueError: `num_views` is less than 1, or more than 1 while the data set has no augmentation.
    """
    if num_views < 1:
        raise ValueError(f"`num_views` must be at least 1, got {num_views}.")
    if num_views > 1 and dataset.reader.augmentation is None:
        raise ValueError(
            f"{num_views} views of each image would all be the same without augmentation; load the data set with "
            "`augmentation=Augmentation(...)` or use one view."
        )
    folder = Path(folder)
    with PartialState().local_main_process_first():
        settings = _settings(model, dataset, processor, num_views)
        name = settings_digest(settings)[:32]
        path, record = folder / f"{name}.npy", folder / f"{name}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # The record comes first: where there are embeddings, there is their record.
            with atomic_path(path) as partial, atomic_path(record) as partial_record:
                skipped = _compute(partial, model, dataset, processor, num_views, batch_size, num_workers)
                partial_record.write_text(json.dumps({"settings": settings, "skipped": skipped}, indent=1), "utf-8")
    for row, reason in json.loads(record.read_text(encoding="utf-8"))["skipped"].items():
        dataset.skip(int(row), reason)
    return np.load(path, mmap_mode="r")


class _Views(Dataset[tuple[int, Tensor | str]]):
    """Row number and pixel values `(views, 3, height, width)` of each row, or why there are none."""

    def __init__(self, dataset: ImageTextDataset, processor: CLIPNProcessor, num_views: int) -> None:
        self.dataset = dataset
        self.image_processor = processor.image_processor
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            images = self.dataset.read_views(index, self.num_views)
        except UnusableRowError as error:
            return index, str(error)
        return index, self.image_processor(images, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def _compute(
    path: Path,
    model: CLIPNModel,
    dataset: ImageTextDataset,
    processor: CLIPNProcessor,
    num_views: int,
    batch_size: int,
    num_workers: int,
) -> dict[int, str]:
    """Write the embeddings `(rows, views, dim)` to `path`; return the rows that have none, with the reason."""
    loader = DataLoader(
        _Views(dataset, processor, num_views),
        batch_size=max(1, batch_size // num_views),
        num_workers=num_workers,
        collate_fn=list,
    )
    skipped: dict[int, str] = {}
    was_training = model.training
    model.eval()
    try:
        embeds = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(len(dataset), num_views, model.visual_projection.out_features)
        )
        with tqdm(total=len(dataset), desc="Image embeddings", unit=" images", disable=None) as progress:
            for batch in loader:
                for index, reason in batch:
                    if isinstance(reason, str):
                        skipped[index] = reason
                        embeds[index] = np.nan
                read = {index: views for index, views in batch if isinstance(views, Tensor)}
                if read:
                    pixel_values = torch.cat(list(read.values())).to(model.device, model.dtype)
                    features = model.get_image_features(pixel_values=pixel_values).pooler_output.float()
                    embeds[list(read)] = normalize(features, dim=-1).cpu().view(len(read), num_views, -1).numpy()
                progress.update(len(batch))
        embeds.flush()
    finally:
        model.train(was_training)
    return skipped


def _settings(
    model: CLIPNModel, dataset: ImageTextDataset, processor: CLIPNProcessor, num_views: int
) -> dict[str, Any]:
    """List everything the embeddings depend on."""
    augmentation = dataset.reader.augmentation
    return {
        "format": _FORMAT,
        "dataset": dataset.fingerprint(),
        "encoder": image_encoder_settings(model, processor.image_processor),
        "views": num_views,
        "augmentation": None if num_views == 1 else repr(augmentation),
        "seed": None if num_views == 1 else dataset.seed,
    }
