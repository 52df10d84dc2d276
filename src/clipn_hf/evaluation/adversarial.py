# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Adversarial OOD images in feature space: OOD images that the image encoder takes for images of the training set.

After "Adapting Contrastive Language-Image Pretrained (CLIP) Models for Out-of-Distribution Detection"
(arXiv 2303.05828). Whoever knows the encoder can make such images; they are here for testing detectors of one's own.
"""

import contextlib
import hashlib
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers.utils import logging

from ..detector_checks import check_given_count
from ..encoders import DualEncoder
from ..images import ImageError, number_images

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class AdversarialImages:
    """OOD images that were changed until they resemble ID images to an encoder. All tensors are on the CPU.

    Args:
        images (`torch.Tensor` of shape `(images, 3, height, width)`):
            The changed images at the input size of the encoder, colours in [0, 1], float32.
        originals (`torch.Tensor` of shape `(images, 3, height, width)`): The same images before.
        targets (`torch.Tensor` of shape `(images, 3, height, width)`): The ID image that each was pulled to.
        target_rows (`torch.Tensor` of shape `(images,)`): The positions of these ID images in what was given, int64.
        original_similarities (`torch.Tensor` of shape `(images,)`):
            Cosines of the images before, without any noise, with the embedding of the target, float32.
        similarities (`torch.Tensor` of shape `(steps + 1, images)`):
            Cosines with the embedding of the target, float32: of the images with the first noise, and after each step.
        saved_similarities (`torch.Tensor` of shape `(images,)`):
            The same of the images as they are after being written with 8 bits per colour and read again.
        settings (`dict`): `"steps"`, `"lr"`, `"init_std"`, `"smoothness"` and `"seed"`.
        encoder (`dict`): The image encoder that was deceived, as [`DualEncoder.describe_images`] says it.
    """

    images: Tensor
    originals: Tensor
    targets: Tensor
    target_rows: Tensor
    original_similarities: Tensor
    similarities: Tensor
    saved_similarities: Tensor
    settings: dict[str, Any]
    encoder: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.images.shape[-2:]
        before, after = (float(values.mean()) for values in (self.original_similarities, self.saved_similarities))
        return (
            f"AdversarialImages({self.name!r}, {len(self)} of {width}×{height}, steps={self.settings['steps']}, "
            f"encoder={self.encoder['id']!r}, cosine {before:.3f} -> {after:.3f})"
        )

    @property
    def name(self) -> str:
        """What the attack is called: "patchy" without a smoothness penalty, else such as "smooth-5000"."""
        smoothness = self.settings["smoothness"]
        return f"smooth-{write_number(smoothness)}" if smoothness else "patchy"

    @property
    def perturbations(self) -> Tensor:
        """What was added to the images, of shape `(images, 3, height, width)`, after clamping to [0, 1]."""
        return self.images - self.originals

    @property
    def l2(self) -> Tensor:
        """Euclidean norms of the perturbations, of shape `(images,)`."""
        return torch.linalg.vector_norm(self.perturbations.flatten(1), dim=1)

    @property
    def linf(self) -> Tensor:
        """Largest changes of a colour, of shape `(images,)`, in [0, 1]."""
        return self.perturbations.flatten(1).abs().amax(dim=1)

    def to_pil(self) -> list[Image.Image]:
        """Round the images to 8 bits per colour.

        Returns:
            `list` of `PIL.Image.Image` of mode RGB. Written as PNG they stay as they are.
        """
        return to_pictures(self.images)

    def summarize(self) -> dict[str, Any]:
        """Say in numbers what the attack did.

        Returns:
            `dict`: Of what JSON knows: name, settings, encoder, number of images and their size; means over them of
            `"start_similarity"` (without noise), `"similarity"`, `"saved_similarity"`, `"l2"` and `"linf"`.
        """
        means = {
            "start_similarity": self.original_similarities,
            "similarity": self.similarities[-1],
            "saved_similarity": self.saved_similarities,
            "l2": self.l2,
            "linf": self.linf,
        }
        return {
            "name": self.name,
            "settings": dict(self.settings),
            "encoder": dict(self.encoder),
            "images": len(self),
            "size": list(self.images.shape[-2:]),
            **{name: float(values.double().mean()) for name, values in means.items()},
        }


def adversarial_ood(
    images: Any,
    targets: Any,
    encoder: DualEncoder,
    steps: int = 250,
    lr: float = 1e-3,
    init_std: float = 1e-3,
    smoothness: float = 5e3,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> AdversarialImages:
    r"""Change OOD images until the image encoder takes them for ID images, to test detectors of one's own.

    For an OOD image \\(y\\) and an ID image \\(x\\), both with colours in [0, 1] at the input size of the encoder
    \\(F\\), Adam minimises over a perturbation \\(\delta\\), which begins as `init_std` times Gaussian noise,

    \\(-\cos(F(\text{clamp}(y + \delta, 0, 1)), F(x)) + \lambda (\overline{(\partial_y \delta)^2} +
    \overline{(\partial_x \delta)^2})\\)

    where \\(\lambda\\) is `smoothness` and the means go over the differences of neighbouring pixels. The paper (arXiv
    2303.05828) calls the result "smooth" with 5000 and "patchy" with 0.

    Every image is optimised by itself: what becomes of it depends on the image, its target and the seed, and, but for
    rounding, not on the images beside it. The weights of the model are left alone.

    All images are kept in memory in float32, before and after, each with its target: 1.8 MB per image at 224 pixels,
    9 GB for 5,000 images. Give so many in parts.

    Args:
        images: OOD images, at least one: what [`~clipn_hf.images.number_images`] takes for many.
        targets:
            ID images, usually of the training set, in the same way. As many as `images` are pairs with them, in order.
            Otherwise the seed shuffles them and they are dealt out in turn, repeatedly if they are fewer.
        encoder ([`DualEncoder`]):
            What is deceived. Its model must compute in float32, on images that are not cut into patches beforehand.
        steps (`int`, *optional*, defaults to 250): How many steps Adam takes.
        lr (`float`, *optional*, defaults to 0.001): The length of a step: no colour changes by much more in one.
        init_std (`float`, *optional*, defaults to 0.001): Standard deviation of the noise that the perturbation
            begins as.
        smoothness (`float`, *optional*, defaults to 5000.0):
            Weight of the penalty on differences between neighbours. The paper's 5000 is for images of 224 pixels: on
            smaller ones neighbours differ more for the same pattern, so that it allows less.
        batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.
        seed (`int`, *optional*, defaults to 0): Draws the noise, and deals out the targets; below `2**64`.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar, if there is a terminal.

    Returns:
        [`AdversarialImages`]: The changed images, the similarities on the way, and the norms of the perturbations.

    Raises:
        ImageError: An image cannot be read; the message says which.
        TypeError: `images` or `targets` is a single image, a folder, a tensor or None, or holds something else;
            `encoder` is no [`DualEncoder`].
        ValueError:
            There are no images or targets, an image is among the targets that are used, a number is out of range, the
            model computes in half precision, its images come as patches or in several sizes, or its image processor
            makes the same of black and white.

    Example:

    ```python
    >>> from clipn_hf import DualEncoder
    >>> from clipn_hf.evaluation.adversarial import adversarial_ood
    >>> attack = adversarial_ood(["car.jpg"], ["cat.jpg"], DualEncoder.from_pretrained())  # doctest: +SKIP
    >>> attack.similarities[[0, -1], 0]  # doctest: +SKIP
    tensor([0.3012, 0.9874])
    >>> attack.to_pil()[0].save("car-that-is-a-cat.png")  # doctest: +SKIP

    ```
    """
    settings = check_settings(encoder, steps, lr, init_std, smoothness, seed)
    steps, lr, init_std, smoothness, seed = settings.values()
    batch_size = check_whole("batch_size", batch_size)
    ood, known = list_images("images", images), list_images("targets", targets)
    rows = deal_targets(len(ood), len(known), seed)

    originals, others = read_pixels(ood, encoder, "image")
    used = sorted(set(rows.tolist()))
    target_images, target_others = read_pixels([known[row] for row in used], encoder, "target", used)
    places = torch.tensor([used.index(row) for row in rows.tolist()])
    if target_images.shape[1:] != originals.shape[1:]:
        raise ValueError(
            f"The image processor gives `targets` another size, {tuple(target_images.shape[-2:])}, than `images`, "
            f"{tuple(originals.shape[-2:])}; use a model with one input size."
        )
    # What looks alike to the encoder has no way to go, whatever file it is of.
    known_looks = {_look(image) for image in target_images}
    if same := sum(_look(image) in known_looks for image in originals):
        raise ValueError(
            f"`images` has {same} of {len(ood)} images that are among `targets`, too, so that there is nothing to "
            "pull them to; give images of unknown things."
        )
    found, before, traces, embeddings = [], [], [], []
    starts = range(0, len(ood), batch_size)
    with (
        _evaluating(encoder),
        tqdm(total=len(starts) * steps, desc="Attack", unit=" steps", disable=None if progress else True) as bar,
    ):
        compute = _Colours(encoder)
        for start in range(0, len(used), batch_size):
            part = slice(start, start + batch_size)
            embeddings.append(compute(target_images[part], _select(target_others, part)).detach())
        target_embeddings = torch.cat(embeddings)
        for start in starts:
            part = slice(start, start + batch_size)
            noise = torch.stack([_noise(image, seed) for image in originals[part]]).mul_(init_std)
            aims = target_embeddings[places[part].to(target_embeddings.device)]
            own = _select(others, part)
            with torch.no_grad():
                before.append(cosine_similarity(compute(originals[part], own), aims, dim=1).cpu())
            changed, trace = _optimise(compute, originals[part], own, noise, aims, steps, lr, smoothness, bar)
            found.append(changed)
            traces.append(trace)
        adversarial = torch.cat(found)
        saved = _similarities_when_saved(adversarial, compute, target_embeddings[places], batch_size)
    return AdversarialImages(
        adversarial,
        originals,
        target_images[places],
        rows,
        torch.cat(before),
        torch.cat(traces, dim=1),
        saved,
        settings,
        encoder.describe_images(),
    )


def check_settings(encoder: Any, steps: Any, lr: Any, init_std: Any, smoothness: Any, seed: Any) -> dict[str, Any]:
    """Check what an attack would otherwise find out late.

    Args:
        encoder, steps, lr, init_std, smoothness, seed: As for [`adversarial_ood`].

    Returns:
        `dict`: The five numbers by name, in this order, as `int` and `float`.

    Raises:
        TypeError: `encoder` is no [`DualEncoder`], or a length or weight is no number.
        ValueError: A number is out of range, or the model computes in half precision.
    """
    if not isinstance(encoder, DualEncoder):
        raise TypeError(
            f"`encoder` must be a DualEncoder, got {type(encoder).__name__}; make one by "
            "`DualEncoder.from_pretrained`."
        )
    steps, seed = check_whole("steps", steps), check_seed(seed)
    numbers = {}
    for name, value in {"lr": lr, "init_std": init_std, "smoothness": smoothness}.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"`{name}` must be a number, got {value!r}.")
        numbers[name] = float(value)
        if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
            raise ValueError(
                f"`{name}` must be finite and {'above 0' if name == 'lr' else 'at least 0'}, got {value}."
            )
    if encoder.dtype != torch.float32:
        raise ValueError(
            f"The model computes in {str(encoder.dtype).removeprefix('torch.')}, which has too few digits for the "
            "small steps of the attack; load it with `dtype=torch.float32`."
        )
    return {"steps": steps, **numbers, "seed": seed}


def check_whole(name: str, value: Any, minimum: int = 1) -> int:
    """Check that a number is an integer, of Python or NumPy, that is large enough.

    Args:
        name (`str`): How the error calls it.
        value: What was given.
        minimum (`int`, *optional*, defaults to 1): The lowest that is accepted; 0 or 1.

    Returns:
        `int`: The same.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, np.integer):
        value = operator.index(value)
    check_given_count(name, value, minimum)
    return operator.index(value)


def check_seed(seed: Any) -> int:
    """Check that torch can draw by a seed.

    Returns:
        `int`: The same.

    Raises:
        ValueError: It is no integer, or out of range.
    """
    seed = check_whole("seed", seed, minimum=0)
    if seed >= 2**64:
        raise ValueError(f"`seed` must be below 2**64, got {seed}.")
    return seed


def write_number(number: float) -> str:
    """Write a number with as many digits as tell it apart from all others, such as 5000 and 5000.001."""
    return repr(float(number)).removesuffix(".0")


def list_images(name: str, images: Any) -> Sequence[Any]:
    """Bring the ways to hand over many images to a sequence.

    Args:
        name (`str`): How errors call them.
        images: What [`~clipn_hf.images.number_images`] takes for many.

    Returns:
        `Sequence`: Of what [`~clipn_hf.images.load_image`] reads, at least one.

    Raises:
        TypeError: It is a single image, a folder or None, or there are tensors.
        ValueError: There are none, or a dataset in which the image column cannot be told.
    """
    if isinstance(images, Tensor) or (
        isinstance(images, list | tuple) and any(isinstance(one, Tensor) for one in images)
    ):
        raise TypeError(
            f"`{name}` must be images, got tensors, of which nobody knows how they were prepared; give paths, PIL "
            "images or uint8 arrays of shape (height, width, 3)."
        )
    if images is None:
        raise TypeError(f"`{name}` must be many images, got None; give a list of at least one.")
    numbered = number_images(images)
    if numbered is None:
        if isinstance(images, str | os.PathLike) and os.path.isdir(images):
            raise TypeError(
                f"`{name}` must be many images, got the folder {os.fspath(images)}; list its images by "
                "`find_images([folder])` of clipn_hf.images."
            )
        is_batch = isinstance(images, np.ndarray) and images.ndim == 4
        fix = "`list(images)`" if is_batch else "`[image]`"
        raise TypeError(f"`{name}` must be many images, got one {type(images).__name__}; give {fix}.")
    listed: Sequence[Any] = _Unnumbered(numbered) if hasattr(numbered, "__len__") else [each for _, each in numbered]
    if len(listed) == 0:
        raise ValueError(f"`{name}` is empty; give at least one image.")
    return listed


class _Unnumbered(Sequence[Any]):
    """Images without their positions, read when asked for."""

    def __init__(self, numbered: Any) -> None:
        self._numbered = numbered

    def __len__(self) -> int:
        return len(self._numbered)

    def __getitem__(self, index: Any) -> Any:
        return self._numbered[index][1]


def deal_targets(count: int, num_targets: int, seed: int) -> Tensor:
    """Find which target each image is pulled to.

    Args:
        count (`int`): How many images there are.
        num_targets (`int`): How many targets there are.
        seed (`int`): Shuffles them.

    Returns:
        `torch.Tensor` of shape `(count,)`: Positions of targets, int64; in order, if they are as many.
    """
    if count == num_targets:
        return torch.arange(count)
    shuffled = torch.randperm(num_targets, generator=torch.Generator().manual_seed(seed))
    return shuffled.repeat(-(-count // num_targets))[:count]


def to_pictures(colours: Tensor) -> list[Image.Image]:
    """Round images to 8 bits per colour.

    Args:
        colours (`torch.Tensor` of shape `(images, 3, height, width)`): In [0, 1].

    Returns:
        `list` of `PIL.Image.Image` of mode RGB.
    """
    pixels = (colours * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(each.numpy()) for each in pixels]


def read_pixels(
    images: Sequence[Any], encoder: DualEncoder, word: str = "image", positions: Sequence[int] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read images at the input size of an encoder.

    Args:
        images (`Sequence`): What [`~clipn_hf.images.load_image`] reads, at least one.
        encoder ([`DualEncoder`]): Its image processor says what the encoder sees of them.
        word (`str`, *optional*, defaults to `"image"`): What errors call one of them.
        positions (`Sequence[int]`, *optional*): How errors number them, by default from 0.

    Returns:
        `tuple`: Colours `(images, 3, height, width)` in [0, 1], float32, on the CPU; and what the image encoder takes
        besides pixel values, by name, the first dimension of each `images`.

    Raises:
        ImageError: One cannot be read.
        TypeError: One is no image.
        ValueError: Images come as patches, or in several sizes.
    """
    prepared = []
    for index, image in enumerate(images):
        where = f"{word} {index if positions is None else positions[index]}"
        try:
            prepared.append(encoder.prepare_images([image], start=None))
        except ImageError as error:
            raise ImageError(f"{where} ({error.source})", error.reason) from error
        except TypeError as error:
            raise TypeError(f"Cannot read {where}: {error}") from error
    shapes = sorted({tuple(inputs["pixel_values"].shape[1:]) for inputs in prepared})
    name = encoder.name or type(encoder.model).__name__
    if any(len(shape) != 3 or shape[0] != 3 for shape in shapes):
        raise ValueError(
            f"The image processor of {name} cuts images into patches (it gives {shapes[0]} for an image, not 3 "
            "colours by height by width), so that there is no image to write pixel values back to; use another model."
        )
    if len(shapes) > 1:
        raise ValueError(
            f"The image processor of {name} gives images of several sizes ({shapes[0][1:]} and {shapes[1][1:]}); use "
            "a model with one input size, or give images of one size."
        )
    black, white = encoder.pixel_range()
    inputs = {key: torch.cat([each[key] for each in prepared]) for key in prepared[0]}
    # Resampling may overshoot, which no file could hold.
    colours = ((inputs.pop("pixel_values").float() - black) / (white - black)).clamp_(0, 1)
    return colours, inputs


class _Colours:
    """Embeds colours in [0, 1], in a way that gradients flow back to them."""

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        black, white = encoder.pixel_range()
        self._black, self._span = black.to(encoder.device), (white - black).to(encoder.device)

    def __call__(self, colours: Tensor, others: Mapping[str, Tensor]) -> Tensor:
        pixel_values = self._black + colours.to(self._span.device) * self._span
        return self.encoder.differentiable_image_embeddings({**others, "pixel_values": pixel_values})


def _optimise(
    compute: _Colours,
    originals: Tensor,
    others: Mapping[str, Tensor],
    noise: Tensor,
    aims: Tensor,
    steps: int,
    lr: float,
    smoothness: float,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """Optimise the perturbations of one batch; gives the images, and the similarities `(steps + 1, batch)`."""
    originals = originals.to(aims.device)
    delta = noise.to(aims.device).requires_grad_()  # (batch, 3, height, width)
    # Adam treats every number by itself, so that images which share a batch do not share a step.
    adam = torch.optim.Adam([delta], lr=lr)
    trace = []
    for step in range(steps + 1):
        changed = (originals + delta).clamp(0, 1)
        similarity = cosine_similarity(compute(changed, others), aims, dim=1)  # (batch,)
        trace.append(similarity.detach().cpu())
        if step == steps:
            break
        # A sum, because a mean would change each gradient with the size of the batch.
        loss = -similarity.sum()
        if smoothness:
            loss = loss + smoothness * _roughness(delta).sum()
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        adam.step()
        bar.update()
        bar.set_postfix(cosine=f"{float(trace[-1].mean()):.3f}", refresh=False)
    return changed.detach().cpu(), torch.stack(trace)


def _roughness(delta: Tensor) -> Tensor:
    """Mean squared differences of neighbours, down and to the right, of each image: `(batch,)`."""
    down, right = delta.diff(dim=-2), delta.diff(dim=-1)
    return down.square().mean(dim=(1, 2, 3)) + right.square().mean(dim=(1, 2, 3))


def _look(image: Tensor) -> bytes:
    """A digest of an image as the encoder sees it."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()


def _noise(image: Tensor, seed: int) -> Tensor:
    """Gaussian noise of the shape of an image, drawn by the seed and the image alone."""
    digest = hashlib.sha256(f"{seed}\0".encode() + image.contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(image.shape, generator=generator)


def _similarities_when_saved(adversarial: Tensor, compute: _Colours, aims: Tensor, batch_size: int) -> Tensor:
    """Cosines with the targets after rounding to 8 bits and another pass through the image processor."""
    found, change = [], 0.0
    encoder, (black, white) = compute.encoder, compute.encoder.pixel_range()
    with torch.no_grad():
        for start in range(0, len(adversarial), batch_size):
            part = slice(start, start + batch_size)
            pictures = to_pictures(adversarial[part])
            inputs = encoder.prepare_images(pictures)
            if inputs["pixel_values"].shape[1:] != adversarial.shape[1:]:
                change = 1.0
            else:
                colours = (inputs["pixel_values"].float() - black) / (white - black)
                change = max(change, float((colours - adversarial[part]).abs().max()))
            found.append(cosine_similarity(encoder.image_embeddings(inputs), aims[part], dim=1).cpu())
    # Rounding to 8 bits alone changes a colour by half of that at most.
    if change > 1 / 255:
        logger.warning(
            f"The image processor of {encoder.name or type(encoder.model).__name__} resizes or crops images that have "
            "the input size of the model already, so that adversarial images which are saved and read again are not "
            "those that were optimised; `saved_similarities` says what is left."
        )
    return torch.cat(found)


def _select(inputs: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: values[part] for name, values in inputs.items()}


@contextlib.contextmanager
def _evaluating(encoder: DualEncoder) -> Iterator[None]:
    """Switch off what training draws at random, and allow gradients of inputs also where the caller does without."""
    was_training = encoder.model.training
    encoder.model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        encoder.model.train(was_training)


__all__ = [
    "AdversarialImages",
    "adversarial_ood",
    "check_seed",
    "check_settings",
    "check_whole",
    "deal_targets",
    "list_images",
    "read_pixels",
    "to_pictures",
    "write_number",
]
