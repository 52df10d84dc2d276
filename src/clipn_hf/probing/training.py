# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Training of linear probes on image embeddings.

Recipe: Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models for Out-of-Distribution
Detection", TMLR 2024, https://arxiv.org/abs/2303.05828, code https://github.com/HHU-MMBS/plp-official-tmlr2024.
"""

import datetime
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize
from tqdm import tqdm
from transformers.utils import logging

from ..digests import data_digest
from ..scores._checks import check_features, check_number, check_seed, check_whole
from .linear_probe import LinearProbe, check_class_names

logger = logging.get_logger(__name__)

# Images that are looked at together where nothing is learnt from them: 64 MB of logits of 1,000 classes in float32.
_ROWS = 2**14
# Of the root mean square of a dimension; float32 numbers differ by 1e-7 of their size.
_CONSTANT = 1e-6
# How far all steps together must be able to move a weight, so that the images limit a probe and not the steps. One of
# Adam moves it by the rate at most.
_REACH = 1.0


class EmbeddedImages(Protocol):
    """What [`~clipn_hf.features.extract_features`] returns, as far as it matters here."""

    @property
    def embeddings(self) -> Tensor: ...
    @property
    def digests(self) -> list[str]: ...
    @property
    def labels(self) -> list[Any] | None: ...
    @property
    def encoder(self) -> dict[str, Any] | None: ...


def train_linear_probe(
    features: Tensor | npt.NDArray[Any] | EmbeddedImages,
    labels: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    warmup_fraction: float = 0.1,
    validation_features: Tensor | npt.NDArray[Any] | EmbeddedImages | None = None,
    validation_labels: Any = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    allow_empty_classes: bool = False,
    progress: bool = True,
) -> LinearProbe:
    r"""Train a linear classifier on image embeddings.

    Embeddings of unit norm are standardized per dimension with the mean and the standard deviation of the training
    images; the cross entropy is minimized by Adam with weight decay as an L2 penalty, at a learning rate that rises
    linearly from 0 and falls as a cosine to 0, step by step. That is the recipe of the authors, but for the weights to
    begin with, which are 0 here: of the few steps that a few images make, most would go into unlearning random ones.
    Dimensions that do not vary are only centered, and a warning says how many they are. The same arguments give the
    same probe on the same kind of device; the random state of the process is neither used nor changed.

    Args:
        features (`torch.Tensor` or `numpy.ndarray` of shape `(images, dim)`, or [`~clipn_hf.features.Features`]):
            Image embeddings, of any norm; those of `extract_features` say which encoder they come from.
        labels (`torch.Tensor` or `Sequence`, *optional*):
            What each image shows: the number of a class from 0, or one of `class_names`; by default those of
            `features`.
        class_names (`Sequence[str]`, *optional*): The names of all classes, which the probe keeps.
        num_classes (`int`, *optional*): How many classes there are; by default what names or labels say.
        epochs (`int`, *optional*, defaults to 100):
            Passes over the images. Of a few hundred images more of them may raise the accuracy, which `trained_on`
            tells; a warning says so where the loss is hardly lower than that of guessing.
        batch_size (`int`, *optional*, defaults to 256):
            Images per step. The authors use 256 for CIFAR and 8,192 for ImageNet.
        learning_rate (`float`, *optional*, defaults to 1e-3):
            The highest one for batches of 256 images; it is multiplied by `batch_size / 256`.
        weight_decay (`float`, *optional*, defaults to 1e-3): The factor of the L2 penalty.
        warmup_fraction (`float`, *optional*, defaults to 0.1): The share of the steps in which the rate rises.
        validation_features (as `features`, *optional*):
            Further images, by which the epoch is chosen that the probe is taken from: that of the lowest loss.
        validation_labels (as `labels`, *optional*): What they show.
        patience (`int`, *optional*):
            Training ends after so many epochs without a lower validation loss; by default after all `epochs`.
        seed (`int`, *optional*, defaults to 0):
            Of the order of the images, which matters where there are more than `batch_size`; below 2**32.
        device (`str` or `torch.device`, *optional*): What to train on; by default the GPU, if there is one.
        allow_empty_classes (`bool`, *optional*, defaults to `False`):
            Whether classes may be without images, as with pseudo-labels.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar, if there is a terminal.

    Returns:
        [`LinearProbe`]: On the CPU, in evaluation mode. Its `trained_on` has the settings, the number and the digest
        of the images, and the accuracy and the loss on them.

    Raises:
        TypeError: Embeddings, labels or settings of another type.
        ValueError:
            Fewer than two images, embeddings that are not finite or do not vary, labels of another number or out of
            range, fewer images than classes, a class without images, one class only; validation images of another
            model; settings out of range; a device that is not there; the loss is no longer finite.

    Source: Adaloglou et al. 2024, section 3 and published code.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.probing import train_linear_probe
    >>> generator = torch.Generator().manual_seed(0)
    >>> labels = torch.arange(300) % 3
    >>> features = torch.eye(3, 16)[labels] + 0.1 * torch.randn(300, 16, generator=generator)
    >>> probe = train_linear_probe(features, labels, device="cpu", progress=False)
    >>> (probe(features).argmax(dim=1) == labels).float().mean() > 0.9
    tensor(True)

    ```
    """
    check_training_settings(epochs, batch_size, learning_rate, weight_decay, warmup_fraction, patience, seed)
    # Numbers of numpy have no place in a file of JSON.
    epochs, batch_size, seed = int(epochs), int(batch_size), int(seed)
    target = _find_device(device)
    embeddings, digests, encoder = _read_features(features, "features")
    if labels is None:
        labels = getattr(features, "labels", None)
    embeddings = check_features(embeddings, "features", min_images=2).detach()
    names = None if class_names is None else check_class_names(class_names, len(class_names), "class_names")
    classes = read_labels(labels, len(embeddings), names, num_classes)
    num_classes = _check_classes(classes, names, num_classes, allow_empty_classes)
    has_labels = validation_labels is not None or hasattr(validation_features, "labels")
    if has_labels != (validation_features is not None):
        raise ValueError("`validation_features` and `validation_labels` belong together; give both or none.")
    if patience is not None and validation_features is None:
        raise ValueError("`patience` needs images to watch; give `validation_features` and `validation_labels`.")

    with _training_mode(target):
        images = _normalize(embeddings, "features")
        if digests is None:
            digests = [hashlib.sha256(row.tobytes()).digest() for row in images.cpu().numpy()]
        images, classes = images.to(target), classes.to(target)
        mean, std = _standardize(images)
        validation = None
        if validation_features is not None:
            validation = _read_validation(validation_features, validation_labels, images, encoder, names, num_classes)
            validation = ((validation[0].to(target) - mean) / std, validation[1].to(target))
        weight, bias, found = _minimize(
            images,
            classes,
            num_classes,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate * batch_size / 256,
            weight_decay=weight_decay,
            warmup_fraction=warmup_fraction,
            validation=validation,
            patience=patience,
            seed=seed,
            progress=progress,
        )
    trained_on = {
        "images": len(images),
        "labelled": True,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        # By name, as detectors do, so that the digest is the same however the labels were given.
        "sha256": data_digest(digests, classes.tolist() if names is None else [names[label] for label in classes]),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": float(learning_rate),
        "weight_decay": float(weight_decay),
        "warmup_fraction": float(warmup_fraction),
        "seed": seed,
        **found,
    }
    _warn_of_few_steps(classes, found["loss"], epochs, batch_size, learning_rate)
    # What is made in inference mode cannot be trained further.
    with torch.inference_mode(False):
        probe = LinearProbe(images.shape[1], num_classes, names, encoder, trained_on)
        probe.load_state_dict({"weight": weight.cpu(), "bias": bias.cpu(), "mean": mean.cpu(), "std": std.cpu()})
    return probe.eval()


def few_shot_mask(labels: Any, shots: int, seed: int = 0) -> Tensor:
    """Choose some images of each class at random.

    With the same seed, fewer images are among more.

    Args:
        labels (`torch.Tensor` of shape `(images,)` or `Sequence`):
            The class of each image: numbers or names, such as `labels` of [`~clipn_hf.features.Features`].
        shots (`int`): How many images of each class. Classes that have fewer give all, and a warning names them.
        seed (`int`, *optional*, defaults to 0): Of the choice; below 2**32.

    Returns:
        `torch.Tensor` of shape `(images,)`: Whether an image is chosen, bool, on the CPU.

    Raises:
        TypeError: `labels` are neither whole numbers nor names, `shots` or `seed` no whole number.
        ValueError: `shots` is not positive, or `seed` is out of range.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.probing import few_shot_mask
    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> labels[few_shot_mask(labels, shots=2)].tolist()
    [0, 0, 1, 1]

    ```
    """
    shots, seed = check_whole(shots, "shots"), check_seed(seed)
    if shots < 1:
        raise ValueError(f"`shots` must be at least 1, got {shots}.")
    classes, names = _number_classes(labels)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(len(classes), dtype=torch.bool)
    few = []
    for label in classes.unique().tolist():
        members = order[classes[order] == label]
        mask[members[:shots]] = True
        if len(members) < shots:
            few.append(f"{label if names is None else names[label]} ({len(members)})")
    if few:
        more = ", …" if len(few) > 5 else ""
        have = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
        logger.warning(f"{have} fewer than {shots} images, of which all are chosen: {', '.join(few[:5])}{more}.")
    return mask


def _number_classes(labels: Any) -> tuple[Tensor, list[str] | None]:
    """The number of the class of each image, and the names of the classes where labels are names."""
    if isinstance(labels, Tensor):
        found, names = labels.detach().cpu(), None
    else:
        values = None if isinstance(labels, str) else _as_list(labels)
        if values is None or len({isinstance(value, str) for value in values}) > 1:
            raise TypeError(f"`labels` must be one whole number, or one name, per image, got {labels!r}.")
        names = sorted({*values}) if values and isinstance(values[0], str) else None
        if names is not None:
            positions = {name: position for position, name in enumerate(names)}
            values = [positions[value] for value in values]
        found = torch.tensor(values, dtype=torch.int64) if not values else torch.as_tensor(values)
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(
            f"`labels` must be whole numbers of shape (images,), or names, got {found.dtype} of shape "
            f"{tuple(found.shape)}."
        )
    return found, names


def _as_list(labels: Any) -> list[Any] | None:
    try:
        return list(labels.tolist() if isinstance(labels, np.ndarray) else labels)
    except TypeError:
        return None


def read_labels(labels: Any, count: int, names: Sequence[str] | None, num_classes: int | None) -> Tensor:
    """Read the labels of images as numbers of classes.

    Args:
        labels (`torch.Tensor` or `Sequence`): Numbers, or names among `names`.
        count (`int`): The number of images.
        names (`Sequence[str]`, *optional*): The names of the classes.
        num_classes (`int`, *optional*): How many classes there are.

    Returns:
        `torch.Tensor` of shape `(images,)`, int64, on the CPU.

    Raises:
        TypeError: Something else.
        ValueError: Another number of labels, a name that is none of a class, a number out of range.
    """
    if labels is None:
        raise ValueError("`labels` are missing; give the class of each image, or use pseudo-labels.")
    if isinstance(labels, str):
        raise TypeError(f"`labels` must be one label per image, got the text {labels!r}.")
    if not isinstance(labels, Tensor) and any(isinstance(label, str) for label in labels):
        if names is None:
            raise ValueError("`labels` are names; give `class_names`, the names of all classes.")
        positions = {name: position for position, name in enumerate(names)}
        unknown = [label for label in labels if isinstance(label, str) and label not in positions]
        if unknown:
            raise ValueError(f"`labels` has {unknown[0]!r}, which is none of `class_names`; add it there.")
        labels = [positions[label] if isinstance(label, str) else label for label in labels]
    found = torch.as_tensor(labels).detach().cpu()
    if found.ndim != 1 or (len(found) and (found.is_floating_point() or found.dtype == torch.bool)):
        raise TypeError(
            "`labels` must be one whole number or name per image, got "
            f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}."
        )
    if len(found) != count:
        raise ValueError(f"`labels` must be one per image, got {len(found)} labels and {count} images.")
    limit = len(names) if names is not None else num_classes
    lowest, highest = int(found.min()), int(found.max())
    if lowest < 0 or (limit is not None and highest >= limit):
        expected = "0 or more" if limit is None else f"between 0 and {limit - 1} for {limit} classes"
        raise ValueError(f"`labels` must be {expected}, got {lowest} to {highest}.")
    return found.long()


def check_training_settings(
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warmup_fraction: float = 0.1,
    patience: int | None = None,
    seed: int = 0,
) -> None:
    """Check the settings of [`train_linear_probe`] before there are images.

    Raises:
        TypeError: One is of the wrong type.
        ValueError: One is out of range.
    """
    check_seed(seed)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is None and name == "patience":
            continue
        if check_whole(value, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    limits: dict[str, tuple[float, Callable[[float], bool], str]] = {
        "learning_rate": (learning_rate, lambda value: 0 < value < math.inf, "positive and finite"),
        "weight_decay": (weight_decay, lambda value: 0 <= value < math.inf, "finite and 0 or more"),
        "warmup_fraction": (warmup_fraction, lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    }
    for name, (number, is_right, expected) in limits.items():
        check_number(number, name)
        if not is_right(number):
            raise ValueError(f"`{name}` must be {expected}, got {number}.")


def _find_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        # Not every device of that type need be there.
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"`device` must be a device that torch has here, such as cpu, got {str(device)!r}; leave it out for the "
            "GPU, if there is one."
        ) from error
    return target


def _warn_of_few_steps(classes: Tensor, loss: float, epochs: int, batch_size: int, learning_rate: float) -> None:
    """Say that more steps would help, where steps are few and have not got far."""
    steps = epochs * math.ceil(len(classes) / batch_size)
    counts = classes.bincount().double()
    # The loss of who knows nothing but how frequent the classes are
    guess = -(counts / counts.sum()).xlogy(counts / counts.sum()).sum().item()
    if steps * learning_rate * batch_size / 256 < _REACH and loss > guess / 2:
        logger.warning(
            f"The probe has hardly learnt from {len(classes)} images in {steps} steps: its loss on them is "
            f"{loss:.3g}, that of guessing {guess:.3g}. Raise `epochs` ({epochs}) or `learning_rate` "
            f"({learning_rate:g}); smaller batches make more steps, but smaller ones by as much."
        )


def _check_classes(classes: Tensor, names: list[str] | None, num_classes: int | None, allow_empty: bool) -> int:
    """The number of classes, which have images if they must."""
    if num_classes is None:
        num_classes = int(classes.max()) + 1 if names is None else len(names)
    num_classes = check_whole(num_classes, "num_classes")
    if names is not None and len(names) != num_classes:
        raise ValueError(f"`class_names` must be one name for each of {num_classes} classes, got {len(names)}.")
    if num_classes < 2:
        raise ValueError(f"A probe needs at least 2 classes to tell apart, got {num_classes} class.")
    counts = classes.bincount(minlength=num_classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if len(empty) == num_classes - 1:
        only = int(classes[0])
        raise ValueError(
            f"All images are of one class ({only if names is None else repr(names[only])}), which leaves nothing to "
            "tell apart; give images of at least 2 classes."
        )
    if empty and not allow_empty:
        listed = ", ".join(str(label) if names is None else repr(names[label]) for label in empty[:5])
        few = f" There are fewer images ({len(classes)}) than classes." if len(classes) < num_classes else ""
        raise ValueError(
            f"`labels` has no image for {len(empty)} of {num_classes} classes: "
            f"{listed}{', …' if len(empty) > 5 else ''}.{few} Give images of each class, or leave out these classes."
        )
    return num_classes


def _read_features(
    features: Tensor | npt.NDArray[Any] | EmbeddedImages, argument: str
) -> tuple[Tensor, list[bytes] | None, dict[str, Any] | None]:
    """The embeddings, the digests of the images and the description of the encoder, where they are known."""
    if isinstance(features, Tensor | np.ndarray):
        return torch.as_tensor(features), None, None
    if not isinstance(getattr(features, "embeddings", None), Tensor):
        raise TypeError(
            f"`{argument}` must be a torch.Tensor or numpy.ndarray of shape (images, dim), or what `extract_features` "
            f"returns, got {type(features).__name__}."
        )
    return features.embeddings, [bytes.fromhex(digest) for digest in features.digests], features.encoder


def _read_validation(
    features: Tensor | npt.NDArray[Any] | EmbeddedImages,
    labels: Any,
    images: Tensor,
    encoder: dict[str, Any] | None,
    names: list[str] | None,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    embeddings, _, own_encoder = _read_features(features, "validation_features")
    if labels is None:
        labels = getattr(features, "labels", None)
    embeddings = check_features(embeddings, "validation_features", min_images=1).detach()
    if embeddings.shape[1] != images.shape[1]:
        raise ValueError(
            f"`validation_features` have {embeddings.shape[1]} dimensions, `features` {images.shape[1]}; both must be "
            "of the same model."
        )
    if encoder is not None and own_encoder is not None and encoder["sha256"] != own_encoder["sha256"]:
        raise ValueError("`validation_features` are of another model than `features`; embed both with the same.")
    try:
        classes = read_labels(labels, len(embeddings), names, num_classes)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`labels`", "`validation_labels`")) from error
    return _normalize(embeddings, "validation_features"), classes


def _normalize(embeddings: Tensor, argument: str) -> Tensor:
    """A copy in float32 of unit norm."""
    images = normalize(embeddings.float(), dim=1)
    zeros = int((~images.any(dim=1)).sum())
    if zeros:
        raise ValueError(
            f"`{argument}` has {zeros} of {len(images)} rows of zeros, which have no direction; compute them again."
        )
    return images


def _standardize(images: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize images in place, with the mean and the standard deviation that are returned in float32."""
    mean = images.sum(dim=0, dtype=torch.float64) / len(images)
    # Part by part, because all images in float64 would need twice the memory of the images.
    squares = sum((part.double() - mean).square().sum(dim=0) for part in images.split(_ROWS))
    std = (torch.as_tensor(squares) / (len(images) - 1)).sqrt()
    is_constant = std <= _CONSTANT * (mean.square() + std.square()).sqrt()
    if is_constant.all():
        raise ValueError(
            f"`features` do not vary: all {len(images)} embeddings are the same. Give images that differ, and look "
            "for damaged weights."
        )
    if is_constant.any():
        logger.warning(
            f"{int(is_constant.sum())} of {len(std)} dimensions of the embeddings do not vary, and tell nothing; look "
            "for damaged weights if you did not expect that."
        )
    mean, std = mean.float(), std.masked_fill(is_constant, 1.0).float()
    images.sub_(mean).div_(std)
    return mean, std


@contextmanager
def _training_mode(device: torch.device) -> Iterator[None]:
    """Compute gradients in float32, whatever surrounds the call."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def _minimize(
    images: Tensor,
    classes: Tensor,
    num_classes: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warmup_fraction: float,
    validation: tuple[Tensor, Tensor] | None,
    patience: int | None,
    seed: int,
    progress: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Weights and biases, and how well they do, on images that are standardized."""
    count, dim = images.shape
    # Drawn on the CPU, so that the order is the same on every device.
    generator = torch.Generator().manual_seed(seed)
    # There is one minimum, wherever one starts. From random weights it takes more steps than a few images make.
    weight = torch.zeros(num_classes, dim, device=images.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=images.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=learning_rate, weight_decay=weight_decay, fused=True)
    steps = epochs * math.ceil(count / batch_size)
    warmup = int(warmup_fraction * steps)
    step, best, best_epoch = 0, math.inf, 0
    kept = weight, bias
    with tqdm(total=epochs, desc="Probe", unit=" epochs", disable=None if progress else True) as bar:
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=images.device)
            for rows in torch.randperm(count, generator=generator).to(images.device).split(batch_size):
                rate = (step + 1) / (warmup + 1)
                if step >= warmup:
                    rate = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
                optimizer.param_groups[0]["lr"] = learning_rate * rate
                loss = cross_entropy(linear(images[rows], weight, bias), classes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
                step += 1
            mean_loss = total.item() / count
            if not math.isfinite(mean_loss):
                raise ValueError(
                    f"The loss is no longer finite in epoch {epoch}; lower `learning_rate`, which is "
                    f"{learning_rate:g} for batches of {batch_size} images."
                )
            shown = {"loss": f"{mean_loss:.4f}"}
            if validation is not None:
                watched, accuracy = _judge(*validation, weight, bias)
                shown["validation"] = f"{watched:.4f}, {accuracy:.1%}"
                if watched < best:
                    best, best_epoch = watched, epoch
                    kept = weight.detach().clone(), bias.detach().clone()
            bar.set_postfix(shown)
            bar.update()
            if patience is not None and epoch - best_epoch >= patience:
                break
    weight, bias = (parameter.detach() for parameter in kept)
    loss_value, accuracy = _judge(images, classes, weight, bias)
    found: dict[str, Any] = {"loss": loss_value, "accuracy": accuracy}
    if validation is not None:
        watched, accuracy = _judge(*validation, weight, bias)
        found |= {"best_epoch": best_epoch, "validation_loss": watched, "validation_accuracy": accuracy}
    return weight, bias, found


@torch.no_grad()
def _judge(images: Tensor, classes: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """The mean loss and the accuracy."""
    loss, right = 0.0, 0
    for part, own in zip(images.split(_ROWS), classes.split(_ROWS), strict=True):
        logits = linear(part, weight, bias)
        loss += cross_entropy(logits, own, reduction="sum").item()
        right += int((logits.argmax(dim=1) == own).sum())
    return loss / len(images), right / len(images)


__all__ = ["EmbeddedImages", "check_training_settings", "few_shot_mask", "read_labels", "train_linear_probe"]
