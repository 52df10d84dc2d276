# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Few images of each class, and what a frozen image encoder makes of them, computed once."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..image_inputs import concatenate_inputs, prepare_image
from ..probing import few_shot_mask
from ..scores._checks import check_whole
from .distributed import gather_counts, gather_rows
from .finetuning import LabelledImages

# How many classes a message lists.
MAX_NAMED = 3
# By how much the length of features may differ from 1, which half precision rounds.
NORM_TOLERANCE = 1e-2

# Features of the images of a batch, by name, of what the image processor gives and of the classes where known
Encode = Callable[[dict[str, Tensor], Tensor | None], Mapping[str, Tensor]]


def sample_shots(
    labels: Sequence[int] | Tensor, shots: int, seed: int = 0, class_names: Sequence[str] | None = None
) -> list[int]:
    """Choose some images of each class at random, the same number of all.

    With the same seed, fewer images are among more.

    Args:
        labels (`Sequence[int]` or `torch.Tensor` of shape `(images,)`): The class of each image.
        shots (`int`): How many images of each class.
        seed (`int`, *optional*, defaults to 0): Of the choice.
        class_names (`Sequence[str]`, *optional*):
            The names of all classes, of which then none may be without images. By default the classes are those that
            have images.

    Returns:
        `list[int]`: The positions of the images that are chosen, ascending.

    Raises:
        TypeError: `labels`, `shots` or `seed` are no whole numbers.
        ValueError:
            A class has no images or fewer than `shots`, there is one class only, a label is none of the classes, or
            `shots` or `seed` is out of range.

    Example:

    ```python
    >>> from clipn_hf.training import sample_shots
    >>> sample_shots([0, 0, 0, 1, 1, 1], shots=1)
    [2, 5]

    ```
    """
    shots = check_whole(shots, "shots")
    if shots < 1:
        raise ValueError(f"`shots` must be at least 1, got {shots}.")
    classes = _read_classes(labels)
    check_classes(classes, class_names)
    few = [
        f"{_name(label, class_names)} ({count})"
        for label, count in enumerate(classes.bincount().tolist())
        if 0 < count < shots
    ]
    if few:
        more = ", …" if len(few) > MAX_NAMED else ""
        raise ValueError(
            f"`shots={shots}` asks for more images than {len(few)} of the classes have: {', '.join(few[:MAX_NAMED])}"
            f"{more}. Give more images, or fewer shots."
        )
    chosen: list[int] = few_shot_mask(classes, shots, seed).nonzero()[:, 0].tolist()
    return chosen


def check_classes(labels: Tensor, class_names: Sequence[str] | None = None) -> None:
    """Check that there are images of each class, and several classes.

    Args:
        labels (`torch.Tensor` of shape `(images,)`): The class of each image, int64.
        class_names (`Sequence[str]`, *optional*): The names of all classes.

    Raises:
        ValueError: There are no images of some class, or of one class alone, or a label is none of the classes.
    """
    if len(labels) == 0:
        raise ValueError("There are no images; is the split or the filter right?")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"Labels must be the numbers of classes, from 0, got {low}; leave out images without class.")
    if class_names is not None and high >= len(class_names):
        raise ValueError(
            f"An image has the label {high}, but the {len(class_names)} classes that are named have the numbers from "
            f"0 to {len(class_names) - 1}; name all classes, in the order of their numbers."
        )
    present = set(labels.tolist())
    if len(present) < 2:
        raise ValueError(
            f"There are images of one class only, {_name(high, class_names)}, which leaves nothing to tell apart; "
            "give images of at least 2 classes."
        )
    empty = [_name(label, class_names) for label in range(len(class_names or ())) if label not in present]
    if empty:
        more = ", …" if len(empty) > MAX_NAMED else ""
        raise ValueError(
            f"There is no image of {len(empty)} of the {len(class_names or ())} classes: "
            f"{', '.join(empty[:MAX_NAMED])}{more}. Give images of each, or leave these classes out."
        )


def find_labels(dataset: "LabelledImages | FewShotFeatures") -> Tensor | None:
    """Find the classes of images.

    Args:
        dataset ([`LabelledImages`] or [`FewShotFeatures`]): Those.

    Returns:
        `torch.Tensor` of shape `(images,)`, int64, or None where they are not known.
    """
    if isinstance(dataset, FewShotFeatures):
        return dataset.labels
    return _read_classes(dataset.rows["label"][:]) if "label" in dataset.rows.column_names else None


def check_dataset(dataset: Any, name: str, class_names: Sequence[str] | None, dim: int | None) -> None:
    """Check that a data set is one of images of some classes, as far as that can be seen without looking at them.

    Args:
        dataset: Should be [`LabelledImages`] or [`FewShotFeatures`].
        name (`str`): What errors call it.
        class_names (`Sequence[str]`, *optional*): The names of all classes; None where classes do not matter.
        dim (`int`, *optional*): The dimension of embeddings, where it is known.

    Raises:
        TypeError: The data set is of another kind.
        ValueError: It has no labels, or not those of these classes, or these in another order; its features are of
            another dimension.
    """
    if not isinstance(dataset, LabelledImages | FewShotFeatures):
        raise TypeError(
            f"`{name}` must be LabelledImages or FewShotFeatures, got {type(dataset).__name__}; make it by "
            "`LabelledImages(rows)`."
        )
    if isinstance(dataset, FewShotFeatures) and dim not in (None, dataset.dim):
        raise ValueError(
            f"`{name}` has features of dimension {dataset.dim}, but the embeddings of the model have {dim}; compute "
            "them with this model."
        )
    if class_names is None:
        return
    labels = find_labels(dataset)
    if labels is None:
        raise ValueError(f"`{name}` has no labels; give the number of the class of each image.")
    features = dataset.rows.features if isinstance(dataset, LabelledImages) else {}
    own = getattr(features.get("label"), "names", None)
    if own is not None and len(own) != len(class_names):
        raise ValueError(
            f"`{name}` has {len(own)} classes, but {len(class_names)} `labels` are given; name each class, in the "
            "order of their numbers."
        )
    if own is not None and list(own) != list(class_names) and sorted(own) == sorted(class_names):
        number = next(number for number, label in enumerate(own) if label != class_names[number])
        raise ValueError(
            f"`labels` are the classes of `{name}` in another order: class {number} is {own[number]!r} there, and "
            f"{class_names[number]!r} here; give them in the order of their numbers, "
            '`rows.features["label"].names`.'
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(class_names):
        raise ValueError(
            f"`{name}` has an image of class {low if low < 0 else high}, but the {len(class_names)} `labels` are "
            f"those of the classes from 0 to {len(class_names) - 1}; name each class, in the order of their numbers."
        )


class FewShotFeatures(Dataset[dict[str, Tensor]]):
    """Features of images, computed before training, in memory; with several views, each epoch draws one per image.

    An example is a `dict` of the features given here, of one view, and of `"labels"` where these are known. The draw
    depends on (seed, epoch, row number) and on nothing else, so that batches are the same for any number of worker
    processes, and a resumed run sees those of an uninterrupted one.

    Memory: embeddings take 4 bytes per number. Those of patches take 2, as they are kept in float16, whose rounding
    moves a cosine by less than 0.0005: 16 images of each of 1000 classes in the 196 patches of a ViT-B/16 are
    16000 * 196 * 512 * 2 bytes = 3.2 GB for each view.

    Args:
        embeddings (`torch.Tensor` of shape `(images, dim)` or `(images, views, dim)`):
            Of the images, of unit norm.
        labels (`Sequence[int]` or `torch.Tensor` of shape `(images,)`, *optional*): Their classes.
        patches (`torch.Tensor` of shape `(images, patches, dim)` or `(images, views, patches, dim)`, *optional*):
            Of their patches, of unit norm; needed by [`LoCoOpTrainer`].
        relevant (`torch.Tensor` of the shape of `embeddings`, *optional*):
            Of that part of each image that shows its class, of unit norm; needed by [`CLIPOSTrainer`].
        background (`torch.Tensor` of the shape of `embeddings`, *optional*):
            Of the other part, NaN where there is none; needed by [`CLIPOSTrainer`] for `synthesize=False`.
        seed (`int`, *optional*, defaults to 0): Of the draws of views.

    Raises:
        TypeError: Something is no tensor of floating-point numbers, or `labels` are no whole numbers.
        ValueError: The shapes do not fit each other, there are no images, features are not of unit norm or not finite,
            or `seed` is negative.

    Example:

    ```python
    >>> import torch
    >>> from torch.nn.functional import normalize
    >>> from clipn_hf.training import FewShotFeatures
    >>> features = FewShotFeatures(normalize(torch.randn(4, 512), dim=-1), labels=[0, 0, 1, 1])
    >>> len(features), features[3]["embeddings"].shape, features[3]["labels"]
    (4, torch.Size([512]), tensor(1))

    ```
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        *,
        patches: Tensor | None = None,
        relevant: Tensor | None = None,
        background: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        given = {"embeddings": embeddings, "patches": patches, "relevant": relevant, "background": background}
        self.features: dict[str, Tensor] = {}
        for name, values in given.items():
            if values is not None:
                self.features[name] = _read_feature(name, values)
        found = {name: (values.shape[0], values.shape[1], values.shape[-1]) for name, values in self.features.items()}
        if len({*found.values()}) > 1:
            raise ValueError(
                "All features must be of the same images, views and dimension, got "
                f"{', '.join(f'{values} of `{name}`' for name, values in found.items())}."
            )
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}.")
        self.labels = None if labels is None else _read_classes(labels)
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(
                f"There must be one label for each of the {len(self)} images, got {len(self.labels)} labels."
            )
        self.seed = seed
        # In shared memory: workers that outlive an epoch must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def dim(self) -> int:
        """The dimension of embeddings."""
        return self.features["embeddings"].shape[-1]

    @property
    def num_views(self) -> int:
        """How many views of each image there are."""
        return self.features["embeddings"].shape[1]

    def set_epoch(self, epoch: int) -> None:
        """Make the draws those of an epoch; to be called before its first batch is asked for."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.features["embeddings"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, view = int(index), 0
        if self.num_views > 1:
            view = int(np.random.default_rng([self.seed, int(self._epoch), row]).integers(self.num_views))
        example = {name: values[row, view] for name, values in self.features.items()}
        if self.labels is not None:
            example["labels"] = self.labels[row]
        return example


@torch.no_grad()
def compute_features(
    images: LabelledImages,
    image_processor: Any,
    encode: Encode,
    *,
    num_views: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    process_index: int = 0,
    num_processes: int = 1,
) -> FewShotFeatures:
    """Compute the features of images; in a distributed run, each process does so for some and gets those of all.

    Args:
        images ([`LabelledImages`]): One view is the images as they are; several are augmented, those of its first
            epochs.
        image_processor: Of the model.
        encode (`Callable`):
            Of what the image processor gives of some images, on `device`, and of their classes, `(batch,)`, or None
            where these are not known, to a `dict` of features as [`FewShotFeatures`] takes them, the first dimension
            `batch`.
        num_views (`int`, *optional*, defaults to 1): Views of each image.
        batch_size (`int`, *optional*, defaults to 64): Images that are encoded at a time.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where `encode` takes images.
        process_index (`int`, *optional*, defaults to 0): The number of this process.
        num_processes (`int`, *optional*, defaults to 1): How many processes there are, which all call this.

    Returns:
        [`FewShotFeatures`]: On the CPU, float32, patches float16.

    Raises:
        ImageError: An image cannot be read.
        ValueError: `num_views` is less than 1, or more than 1 without augmentation.
    """
    if num_views < 1:
        raise ValueError(f"`num_views` must be at least 1, got {num_views}.")
    if num_views > 1 and images.augmentation is None:
        raise ValueError(
            f"{num_views} views of each image would all be the same without augmentation; give the data set an "
            "`augmentation`, or use one view."
        )
    views = LabelledImages(images.rows, images.augmentation if num_views > 1 else None, images.seed)
    own = np.array_split(np.arange(len(images)), num_processes)[process_index].tolist()
    collected: dict[str, list[Tensor]] = {}
    with tqdm(total=num_views * len(own), desc="Image features", unit=" images", disable=None) as progress:
        for view in range(num_views):
            views.set_epoch(view)
            parts: dict[str, list[Tensor]] = {}
            loader = DataLoader(
                # A process without images of its own has to know the shapes all the same.
                torch.utils.data.Subset(views, own or [0]),
                batch_size=batch_size,
                num_workers=num_workers,
                collate_fn=_Collator(image_processor),
            )
            for inputs, labels in loader:
                moved = {name: values.to(device) for name, values in inputs.items()}
                found = encode(moved, None if labels is None else labels.to(device))
                for name, values in found.items():
                    # Rounded at once, so that no more memory is needed than in the end.
                    kept = values.half() if name == "patches" else values.float()
                    parts.setdefault(name, []).append(kept if num_processes > 1 else kept.cpu())
                progress.update(len(next(iter(found.values()))))
            for name in list(parts):
                collected.setdefault(name, []).append(torch.cat(parts.pop(name))[: len(own)].unsqueeze(1))
    counts = gather_counts(len(own), torch.device(device)) if num_processes > 1 else [len(own)]
    features = {}
    for name, views_of_feature in collected.items():
        # One view is not copied, because of patches there may be gigabytes.
        of_views = views_of_feature[0] if num_views == 1 else torch.cat(views_of_feature, dim=1)
        features[name] = gather_rows(of_views, counts).cpu()
    return FewShotFeatures(**features, labels=find_labels(images), seed=images.seed)


class _Collator:
    """Makes the inputs of an image encoder, and the classes where they are known, of some images."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], Tensor | None]:
        inputs = concatenate_inputs([prepare_image(example["image"], self.image_processor) for example in examples])
        has_labels = "labels" in examples[0]
        return inputs, torch.tensor([example["labels"] for example in examples]) if has_labels else None


def _read_classes(labels: Any) -> Tensor:
    """The classes `(images,)`, int64."""
    try:
        found = labels.detach().cpu() if isinstance(labels, Tensor) else torch.as_tensor(list(labels))
    # Of texts, of None, or of lists of several lengths there is no tensor.
    except (TypeError, ValueError, RuntimeError):
        values = list(labels) if isinstance(labels, Iterable) else [labels]
        wrong = next((value for value in values if not isinstance(value, int)), labels)
        raise TypeError(
            f"`labels` must be one whole number per image, the position of its class, got {type(wrong).__name__} "
            f"{wrong!r}; give numbers, as `load_labelled_images` makes them."
        ) from None
    if found.numel() == 0:
        found = found.to(torch.int64)
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise TypeError(
            f"`labels` must be one whole number per image, the position of its class, got the shape "
            f"{tuple(found.shape)} of {found.dtype}."
        )
    return found.to(torch.int64)


def _read_feature(name: str, values: Any) -> Tensor:
    """One of the features with a dimension for views, patches in half precision."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"`{name}` must be a tensor of floating-point numbers, got {found}.")
    single = 3 if name == "patches" else 2
    if values.ndim not in (single, single + 1) or values.numel() == 0:
        shape = "(images, patches, dim)" if name == "patches" else "(images, dim)"
        raise ValueError(
            f"`{name}` must have the shape {shape}, with a dimension for views after the first if there are several, "
            f"got {tuple(values.shape)}."
        )
    values = values.unsqueeze(1) if values.ndim == single else values
    values = values.detach().cpu().to(torch.float16 if name == "patches" else torch.float32)
    # In parts, because of patches there may be gigabytes.
    for start in range(0, len(values), 256):
        norms = torch.linalg.vector_norm(values[start : start + 256].float(), dim=-1)
        # A row that is not finite has no finite norm.
        wrong = ~((norms - 1).abs() <= NORM_TOLERANCE)
        if name == "background":
            wrong &= ~values[start : start + 256].isnan().all(dim=-1)
        if wrong.any():
            row = start + int(wrong.flatten(1).any(dim=1).nonzero()[0, 0])
            norm = norms[wrong][0].item()
            found = f"the norm {norm:.4g}" if math.isfinite(norm) else "NaN or infinite values"
            raise ValueError(
                f"`{name}` must be finite and of unit norm, got {found} for image {row}; normalize them by "
                "`torch.nn.functional.normalize(…, dim=-1)`, and leave damaged images out."
            )
    return values


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else repr(class_names[label])


__all__ = [
    "Encode",
    "FewShotFeatures",
    "check_classes",
    "check_dataset",
    "compute_features",
    "find_labels",
    "sample_shots",
]
