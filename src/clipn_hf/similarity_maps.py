# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Similarity maps: which patches of an image speak for a text.

CLIP compares an image with a text as a whole. Each of its patches can be compared, too, on the paths of
[`~clipn_hf.local_features`]:

- `"surgery"`: attention from values to values in the last blocks. High where the thing is; what everything else here
  goes by.
- `"clip"`: CLIP's own last states of the patches. Known to be inverted: the background scores high and the thing low,
  so that it shows what is wrong with them rather than what the model looked at.
- `"value"`: the last block without its attention. What GL-MCM judges by, and CLIP-OS with that.
- `"discrepancy"`: the map of `"surgery"` minus that of `"clip"`, each min–max normalised to [0, 1] over the patches,
  whatever it was before: it says where on an image, not how much.

CLIP Surgery: Li et al., "A closer look at the explainability of Contrastive Language-Image Pre-training", Pattern
Recognition 2025, https://arxiv.org/abs/2304.05653. The discrepancy is that of CLIP-OS,
https://arxiv.org/abs/2404.00323.

Maps of different labels are much alike, because patches are near to any text or to none. What speaks for one label
more than for the others is what is left when the mean over all labels is taken off, which CLIP Surgery calls the
redundant features; `relative=True` does it.

A map is no proof: patches have seen all others by attention, and CLIP was not trained to tell where things are.
"""

import itertools
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from .detector_checks import check_given_count
from .encoders import DualEncoder
from .images import image_of, number_images
from .local_features import LocalPath, patch_grid
from .scores._rows import min_max

MapPath = Literal["surgery", "value", "discrepancy", "clip"]
Kind = Literal["label", "unknown", "no", "negative"]

MAP_PATHS: tuple[MapPath, ...] = get_args(MapPath)
DEFAULT_PATH: MapPath = "surgery"

# The ways through the image encoder that maps are made of.
PATHS_OF_MAPS: Mapping[MapPath, tuple[LocalPath, ...]] = {
    "surgery": ("surgery",),
    "value": ("value",),
    "discrepancy": ("surgery", "clip"),
    "clip": ("clip",),
}
# A box that spans so much of both sides is no place.
_ALL_OVER = 0.75


@dataclass(frozen=True)
class Region:
    """Where on a map the evidence is: the strongest patch, and the patches around it that hang together with it.

    Positions count patches, from 0 at the upper left.

    Args:
        row (`int`): That of the strongest patch.
        column (`int`): That of the strongest patch.
        top (`int`): First row of the box.
        left (`int`): First column of the box.
        bottom (`int`): Row after the last of the box.
        right (`int`): Column after the last of the box.
        grid (`tuple[int, int]`): How many rows and columns the map has.
    """

    row: int
    column: int
    top: int
    left: int
    bottom: int
    right: int
    grid: tuple[int, int]

    @property
    def words(self) -> str:
        """Such as "upper left", "middle" or "all over"."""
        rows, columns = self.grid
        if self.bottom - self.top >= _ALL_OVER * rows and self.right - self.left >= _ALL_OVER * columns:
            return "all over"
        # By thirds of the image.
        vertical = ("upper", "", "lower")[min(2, int(3 * (self.top + self.bottom) / 2 / rows))]
        horizontal = ("left", "", "right")[min(2, int(3 * (self.left + self.right) / 2 / columns))]
        if vertical and not horizontal:
            return f"{vertical} middle"
        return " ".join(word for word in (vertical, horizontal) if word) or "middle"

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Find the box in pixels.

        Args:
            size (`tuple[int, int]`): Width and height of the picture.

        Returns:
            Four `int`: left, top, right and bottom, as `PIL.Image.Image.crop` takes them.
        """
        (rows, columns), (width, height) = self.grid, size
        return (
            self.left * width // columns,
            self.top * height // rows,
            self.right * width // columns,
            self.bottom * height // rows,
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one text has to do with an image, as a whole and patch by patch.

    Args:
        kind (`"label"`, `"unknown"`, `"no"` or `"negative"`):
            Whether it is a label, the learned "unknown" prompt, the "no" text of a label, or a negative label.
        text (`str`): The label, or negative label; "unknown" for the prompt.
        probability (`float`):
            Of a label, its softmax probability among all labels; of the "unknown" prompt, that among all labels and
            it; of "no", the probability that the image does not show the label, by CLIPN; of a negative label, its
            share among all labels and negative labels.
        cosine (`float`): That of the whole image with the text.
        map (`torch.Tensor` of shape `(rows, columns)`): Float32, on the CPU, higher = speaks more for the text.
        has_zero (`bool`, *optional*, defaults to `False`):
            Whether only what is above 0 on the map speaks for the text, because it was compared with others, or is on
            the path `"discrepancy"`.
    """

    kind: Kind
    text: str
    probability: float
    cosine: float
    map: Tensor
    has_zero: bool = False

    @property
    def region(self) -> Region | None:
        """Where the evidence is, as [`find_region`] finds it; None if no patch speaks for the text."""
        if self.has_zero and not (self.map > 0).any():
            return None
        return find_region(self.map)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a detector looked at when it judged an image.

    Args:
        image (`PIL.Image.Image`): The image as the model saw it, after resizing and cropping.
        result (`OODResult`): What the detector says about it.
        evidence (`tuple[Evidence, ...]`): First the labels, then the "unknown" prompt, the "no" texts of the labels
            and the negative labels, each in the order of the result.
        path (`str`): One of `MAP_PATHS`.
        relative (`bool`):
            Whether maps say what speaks for a text more than for what it competes with: the label itself for its "no"
            text, the mean of all labels for all others.
    """

    image: Image.Image
    result: Mapping[str, Any]
    evidence: tuple[Evidence, ...]
    path: MapPath
    relative: bool

    def of_kind(self, kind: Kind) -> list[Evidence]:
        """Select the evidence of one kind, in order."""
        return [one for one in self.evidence if one.kind == kind]

    def maps(self) -> dict[str, dict[str, Tensor]]:
        """Arrange the maps by kind and text, as `pipeline(…, explain=True)` returns them.

        Returns:
            `dict`: `{"labels": {label: map, …}, "unknown": {"unknown": map}, "no": {label: map, …}, "negatives":
            {negative label: map, …}}`, of which all but the first may be empty.
        """
        names: dict[str, Kind] = {"labels": "label", "unknown": "unknown", "no": "no", "negatives": "negative"}
        return {name: {one.text: one.map for one in self.of_kind(kind)} for name, kind in names.items()}


def similarity_maps(
    images: Any,
    labels: Sequence[str],
    path: MapPath = DEFAULT_PATH,
    *,
    model: DualEncoder | str | os.PathLike[str] | None = None,
    templates: Sequence[str] | None = None,
    no_templates: Sequence[str] | None = None,
    use_no_encoder: bool = False,
    relative: bool = False,
    num_surgery_layers: int | None = None,
    batch_size: int = 32,
) -> Tensor:
    r"""Compare each patch of images with labels, or with any other texts.

    \\( M_j = \cos(z, g_j) \\) for the patches \\( z \\) of an image and the text embedding \\( g_j \\), on the paths
    `"surgery"`, `"value"` and `"clip"`. On `"discrepancy"` it is \\( \operatorname{minmax}(M_j^{surgery}) -
    \operatorname{minmax}(M_j^{clip}) \\) with the least and the largest value of each map at 0 and 1; a map whose
    values differ by no more than rounding makes is 0 then.

    Args:
        images:
            One image or many: whatever [`~clipn_hf.images.load_image`] reads, or a list, iterator or dataset of these,
            as [`~clipn_hf.images.number_images`] describes.
        labels (`Sequence[str]`): Labels, negative labels or anything else that fits the templates.
        path (`"surgery"`, `"value"`, `"discrepancy"` or `"clip"`, *optional*, defaults to `"surgery"`):
            As the module describes it. Maps of `"clip"` are inverted.
        model ([`DualEncoder`], `str` or `os.PathLike`, *optional*):
            An encoder, or the Hub id or folder of a model; by default the checkpoint inside this package.
        templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        no_templates (`Sequence[str]`, *optional*): As in [`DualEncoder.class_embeddings`].
        use_no_encoder (`bool`, *optional*, defaults to `False`):
            Whether to compare with the "no" texts of a CLIPN in place of the texts.
        relative (`bool`, *optional*, defaults to `False`):
            Whether to take off the mean over all `labels`, of which there must be two at least; from "no" texts the
            text itself of the same label. Not for `"discrepancy"`.
        num_surgery_layers (`int`, *optional*):
            How many of the last blocks the path `"surgery"` goes around; by default 6, or all of fewer.
        batch_size (`int`, *optional*, defaults to 32): Images per pass through the model.

    Returns:
        `torch.Tensor` of shape `(images, labels, rows, columns)`, float32, on the CPU; higher = speaks more for the
        label. In [-1, 1], with `relative=True` in [-2, 2]. Rows and columns are those of the
        patches of what the model sees, which for most models is the middle of an image that is not square.

    Raises:
        ImageError: An image cannot be read.
        TypeError: The image encoder of the model does not cut images into patches as that of CLIP does; the model has
            no "no" text encoder; `model` is none of these.
        ValueError: `path` is none of these, there are no images or labels, too few to compare, or
            `num_surgery_layers` is out of range.

    Example:

    ```python
    >>> from clipn_hf.similarity_maps import similarity_maps
    >>> maps = similarity_maps("cat.jpg", ["cat", "dog"], model="openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> maps.shape  # doctest: +SKIP
    torch.Size([1, 2, 14, 14])

    ```
    """
    check_path(path)
    check_given_count("batch_size", batch_size)
    if relative and path == "discrepancy":
        raise ValueError(
            '`relative` has no meaning for the path "discrepancy", which normalises each map by itself; give '
            "`relative=False`, or another `path`."
        )
    if not (model is None or isinstance(model, DualEncoder | str | os.PathLike)):
        raise TypeError(
            f"`model` must be a DualEncoder, or the Hub id or folder of a model, got {type(model).__name__}; give "
            "`DualEncoder(model, processor)`."
        )
    encoder = model if isinstance(model, DualEncoder) else DualEncoder.from_pretrained(model)
    if use_no_encoder and not encoder.has_no_encoder:
        raise TypeError(
            f'{type(encoder.model).__name__} has no "no" text encoder; leave out `use_no_encoder`, or use a trained '
            "CLIPN."
        )
    text, no_text = encoder.class_embeddings(labels, templates, no_templates, use_no_encoder=use_no_encoder)
    if relative and no_text is None and len(text) < 2:
        raise ValueError(
            "`relative` compares labels with each other, and there is only one; give others, or `relative=False`."
        )
    compared = text if no_text is None else no_text
    if relative:
        compared = compared - (text.mean(dim=0) if no_text is None else text)
    numbered = number_images(images)
    items = iter([(None, image_of(images))] if numbered is None else numbered)
    maps = []
    while batch := list(itertools.islice(items, batch_size)):
        inputs = encoder.prepare_images([image for _, image in batch], start=batch[0][0])
        maps.append(compare_patches(embed_patches(encoder, inputs, path, num_surgery_layers), compared))
    if not maps:
        raise ValueError("`images` is empty; give at least one image.")
    return torch.cat(maps)


def check_path(path: object) -> None:
    """Refuse what is no path of maps.

    Raises:
        ValueError: It is none of `MAP_PATHS`.
    """
    if path not in MAP_PATHS:
        raise ValueError(f"`path` must be one of {', '.join(map(repr, MAP_PATHS))}, got {path!r}.")


def embed_patches(
    encoder: DualEncoder,
    inputs: Mapping[str, Tensor],
    path: MapPath = DEFAULT_PATH,
    num_surgery_layers: int | None = None,
) -> Tensor:
    """Embed the patches of prepared images for maps of a path.

    Args:
        encoder ([`DualEncoder`]): Embeds them.
        inputs (`Mapping[str, torch.Tensor]`): As [`DualEncoder.prepare_images`] gives them.
        path (`str`, *optional*, defaults to `"surgery"`): One of `MAP_PATHS`, as for `similarity_maps`.
        num_surgery_layers (`int`, *optional*): As for `similarity_maps`.

    Returns:
        `torch.Tensor` of shape `(batch, paths, rows, columns, dim)`, float32, unit norm, on the device of the model,
        as [`compare_patches`] takes it. There are two paths for `"discrepancy"`, surgery and clip, else one.

    Raises:
        TypeError, ValueError: As `similarity_maps`.
    """
    check_path(path)
    _, patches = encoder.embeddings_on_paths(inputs, PATHS_OF_MAPS[path], num_surgery_layers)
    return arrange_patches(encoder, inputs, patches, path)


def arrange_patches(
    encoder: DualEncoder, inputs: Mapping[str, Tensor], patches: Mapping[LocalPath, Tensor], path: MapPath
) -> Tensor:
    """Put patches that are embedded into rows and columns, for maps of a path.

    Args:
        encoder ([`DualEncoder`]): Embedded them.
        inputs (`Mapping[str, torch.Tensor]`): The images, as [`DualEncoder.prepare_images`] gives them.
        patches (`Mapping[str, torch.Tensor]`):
            What [`DualEncoder.embeddings_on_paths`] gave, of `PATHS_OF_MAPS[path]` at least.
        path (`str`): One of `MAP_PATHS`.

    Returns:
        `torch.Tensor` of shape `(batch, paths, rows, columns, dim)`: As `embed_patches` gives it.
    """
    grid = patch_grid(encoder.model, inputs["pixel_values"])
    return torch.stack([patches[local] for local in PATHS_OF_MAPS[path]], dim=1).unflatten(2, grid)


def compare_patches(patches: Tensor, texts: Tensor) -> Tensor:
    """Compare patches with texts.

    Args:
        patches (`torch.Tensor` of shape `(batch, paths, rows, columns, dim)`): As [`embed_patches`] gives them.
        texts (`torch.Tensor` of shape `(texts, dim)`):
            Text embeddings, or differences of them, where a text is compared with others.

    Returns:
        `torch.Tensor` of shape `(batch, texts, rows, columns)`, float32, on the CPU: the products of both; of two
        paths the difference of both, each brought to [0, 1] before.
    """
    # Float32 means float32, also where the user computes in another dtype.
    with torch.autocast(patches.device.type, enabled=False):
        products = patches.float() @ texts.to(patches.device).float().T  # (batch, paths, rows, columns, texts)
    maps = products.movedim(-1, 1).cpu()  # (batch, texts, paths, rows, columns)
    if maps.shape[2] == 1:
        return maps[:, :, 0].contiguous()
    return min_max(maps[:, :, 0], (-2, -1)) - min_max(maps[:, :, 1], (-2, -1))


def find_region(values: Tensor) -> Region:
    """Find where on a map the evidence is.

    That are the strongest patch and those that hang together with it, side by side, and are not below the middle
    between the least and the largest value of the map; of a map with values on both sides of 0, not below half of the
    largest. The region of a map without any differences is all of it. A map without a positive value has a region,
    too, where least speaks against the text; [`Evidence.region`] leaves it out.

    Args:
        values (`torch.Tensor` of shape `(rows, columns)`): A map.

    Returns:
        [`Region`]

    Raises:
        ValueError: It has another shape, or no patches.
    """
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"`values` must be of shape (rows, columns), got {tuple(values.shape)}.")
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    low, high = float(values.min()), float(values.max())
    middle = (max(low, 0.0) + high) / 2 if high > 0 else (low + high) / 2
    strong = (values >= middle).tolist()
    found, pending = {(row, column)}, deque([(row, column)])
    while pending:
        upper, left = pending.popleft()
        for place in ((upper - 1, left), (upper + 1, left), (upper, left - 1), (upper, left + 1)):
            inside = 0 <= place[0] < rows and 0 <= place[1] < columns
            if inside and place not in found and strong[place[0]][place[1]]:
                found.add(place)
                pending.append(place)
    tops, lefts = zip(*found, strict=True)
    return Region(row, column, min(tops), min(lefts), max(tops) + 1, max(lefts) + 1, (rows, columns))


def seen_pictures(encoder: DualEncoder, pixel_values: Tensor) -> list[Image.Image]:
    """Turn what an image processor made of images back into pictures: what the model saw, after resizing and cropping.

    Args:
        encoder ([`DualEncoder`]): Its image processor made them.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): As `prepare_images` gives them.

    Returns:
        `list` of `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: As [`DualEncoder.pixel_range`].
    """
    black, white = encoder.pixel_range()
    colours = (pixel_values.detach().float().cpu() - black) / (white - black)
    pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(each.numpy()) for each in pixels]


__all__ = [
    "DEFAULT_PATH",
    "MAP_PATHS",
    "PATHS_OF_MAPS",
    "Evidence",
    "Explanation",
    "Kind",
    "MapPath",
    "Region",
    "arrange_patches",
    "check_path",
    "compare_patches",
    "embed_patches",
    "find_region",
    "seen_pictures",
    "similarity_maps",
]
