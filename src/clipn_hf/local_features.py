# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the image encoder of a CLIP makes of each patch of an image, in the space of the texts.

CLIP is trained on one vector per image, that of its class token. Three ways lead from the patches into the same space:

- `"clip"`: the last states of the patches, as they are. Known to be inverted: the background is nearest to the label.
- `"value"`: the last block without its attention, by which each patch keeps its own value. GL-MCM: Miyai et al.,
  "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution Detection", IJCV 2025,
  https://arxiv.org/abs/2304.04521; LoCoOp: Miyai et al., "LoCoOp: Few-Shot Out-of-Distribution Detection via Prompt
  Learning", NeurIPS 2023, https://arxiv.org/abs/2306.01293.
- `"surgery"`: the last blocks with the values of the patches in place of queries and keys, and without MLP. CLIP
  Surgery: Li et al., "A closer look at the explainability of Contrastive Language-Image Pre-training", Pattern
  Recognition 2025, https://arxiv.org/abs/2304.05653.

The model is run as it is: hooks read the states that its blocks get, and what the paths add is computed from those.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .families import pooled_features

LocalPath = Literal["clip", "value", "surgery"]

LOCAL_PATHS: tuple[LocalPath, ...] = get_args(LocalPath)
NUM_SURGERY_LAYERS = 6
# What each block is made of, where it is one of CLIP.
_BLOCK_PARTS = ("layer_norm1", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm2", "mlp")


@dataclass(frozen=True)
class _Tower:
    """The parts of an image encoder that local features go through."""

    blocks: Sequence[Any]
    norm: Any
    projection: Any
    patch_size: tuple[int, int]
    channels: int | None


def has_local_features(model: Any) -> bool:
    """Tell whether the image encoder of a model is one that `local_image_features` knows how to read.

    Args:
        model: Any model.

    Returns:
        `bool`
    """
    return isinstance(_find_tower(model), _Tower)


def local_image_features(
    model: Any,
    pixel_values: Tensor,
    path: LocalPath = "value",
    num_surgery_layers: int | None = None,
    interpolate_pos_encoding: bool = False,
) -> Tensor:
    r"""Embed each patch of images in the space of the texts.

    With \\( x \\) the states that the last block gets, \\( v = W_v \operatorname{LN}_1(x) \\) their values and
    \\( W_o \\) the output projection of its attention, the path `"value"` is
    \\( z = x + W_o v \\), \\( z + \operatorname{MLP}(\operatorname{LN}_2(z)) \\). The path `"surgery"` begins with the
    states before the last `num_surgery_layers` blocks and adds \\( W_o \operatorname{softmax}(v v^\top / \sqrt{d})
    v \\) of each of them, whose values come from the states of the model itself. The path `"clip"` is what the last
    block gives. All of them end in the final norm and the projection of the model.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one):
            A model whose image encoder is built as that of CLIP, with or without a peft adapter, such as
            [`~transformers.CLIPVisionModelWithProjection`], Chinese-CLIP, AltCLIP, MetaCLIP 2, CLIPSeg and OWL-ViT.
            Gradients flow to its weights and to the pixels.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): As its image processor gives them.
        path (`"value"`, `"surgery"` or `"clip"`, *optional*, defaults to `"value"`): Which way to go.
        num_surgery_layers (`int`, *optional*):
            How many of the last blocks the path `"surgery"` goes around, 1 to all; by default 6, or all of fewer.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether images may have another size than those that the model was trained on.

    Returns:
        `torch.Tensor` of shape `(batch, patches, projection_dim)`: Row by row from the upper left, un-normalised, of
        the dtype that the model gives. The class token is left out.

    Raises:
        TypeError: The image encoder has no patches, no class token, or is otherwise not built as that of CLIP; or an
            argument is of another type.
        ValueError: `path` is none of these, `num_surgery_layers` out of range, there are no images, or they have
            another number of channels, or a size that is not a multiple of that of a patch, or not that of the model.

    Example:

    ```python
    >>> import torch
    >>> from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    >>> from clipn_hf.encoders import local_image_features
    >>> config = CLIPVisionConfig(hidden_size=32, num_attention_heads=2, image_size=32, patch_size=8)
    >>> local_image_features(CLIPVisionModelWithProjection(config), torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16, 512])

    ```
    """
    _, local = image_and_local_features(model, pixel_values, (path,), num_surgery_layers, interpolate_pos_encoding)
    return local[path]


def image_and_local_features(
    model: Any,
    pixel_values: Tensor,
    paths: Sequence[LocalPath] = ("value",),
    num_surgery_layers: int | None = None,
    interpolate_pos_encoding: bool = False,
) -> tuple[Tensor, dict[LocalPath, Tensor]]:
    """Embed images, and each patch of them on several paths, while the model is run once.

    Args:
        model: As for `local_image_features`.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): As for `local_image_features`.
        paths (`Sequence[str]`, *optional*, defaults to `("value",)`): Some of `"clip"`, `"value"` and `"surgery"`.
        num_surgery_layers (`int`, *optional*): As for `local_image_features`.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): As for `local_image_features`.

    Returns:
        `torch.Tensor` of shape `(batch, projection_dim)`, the very image features of the model, un-normalised; and a
        `dict` with `local_image_features` for each path.

    Raises:
        TypeError, ValueError: As `local_image_features`.
    """
    tower = _tower(model)
    if isinstance(paths, str):
        raise TypeError(f"`paths` must be a sequence of paths, got the text {paths!r}; give ({paths!r},).")
    for path in paths:
        if path not in LOCAL_PATHS:
            raise ValueError(f"`path` must be one of {', '.join(map(repr, LOCAL_PATHS))}, got {path!r}.")
    first = len(tower.blocks) - 1
    if "surgery" in paths:
        first = len(tower.blocks) - _check_layers(num_surgery_layers, len(tower.blocks))
    patches = _count_patches(model, tower, pixel_values, interpolate_pos_encoding)
    with _Recorder(tower.blocks, first) as recorder:
        features = _run(model, pixel_values, interpolate_pos_encoding)
    local: dict[LocalPath, Tensor] = {}
    for path in paths:
        if path == "clip":
            states = recorder.last
        elif path == "value":
            states = _keep_values(tower.blocks[-1], recorder.inputs[-1])
        else:
            states = _compare_values(tower.blocks[first:], recorder.inputs)
        local[path] = tower.projection(tower.norm(states[:, -patches:]))
    return features, local


def patch_grid(model: Any, pixel_values: Tensor) -> tuple[int, int]:
    """Count the patches of images.

    Args:
        model: As for `local_image_features`.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): As for `local_image_features`.

    Returns:
        Two `int`: How many patches lie below each other, and how many beside each other.

    Raises:
        TypeError: As `local_image_features`.
        ValueError: There are no images, they have another number of channels, or a size that is not a multiple of that
            of a patch.
    """
    return _grid(_tower(model), pixel_values)


class _Recorder:
    """Keeps what the blocks from the `first` on get, and what the last of them gives, while it is entered."""

    def __init__(self, blocks: Sequence[Any], first: int) -> None:
        self.inputs: list[Tensor] = []
        self.last = torch.empty(0)
        self._recorded = blocks[first:]
        self._handles: list[Any] = []
        self._thread = 0

    def __enter__(self) -> "_Recorder":
        self._thread = threading.get_ident()
        for block in self._recorded:
            self._handles.append(block.register_forward_pre_hook(self._keep_input, with_kwargs=True))
        self._handles.append(self._recorded[-1].register_forward_hook(self._keep_output))
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_input(self, _block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Another thread may be running the same model.
        if threading.get_ident() == self._thread:
            self.inputs.append(args[0] if args else kwargs["hidden_states"])

    def _keep_output(self, _block: Any, _args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == self._thread:
            self.last = output if isinstance(output, Tensor) else output[0]


def _run(model: Any, pixel_values: Tensor, interpolate_pos_encoding: bool) -> Tensor:
    """The image features `(batch, projection_dim)` of the model itself."""
    options = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
    encode = getattr(model, "get_image_features", None)
    if encode is not None:
        return pooled_features(model, encode(pixel_values=pixel_values, **options))
    embeddings: Tensor = model(pixel_values=pixel_values, **options).image_embeds
    return embeddings


def _keep_values(block: Any, states: Tensor) -> Tensor:
    """The states `(batch, tokens, width)` that a block would give if each token saw itself alone."""
    attention = block.self_attn
    states = states + attention.out_proj(attention.v_proj(block.layer_norm1(states)))
    attended: Tensor = states + block.mlp(block.layer_norm2(states))
    return attended


def _compare_values(blocks: Sequence[Any], inputs: Sequence[Tensor]) -> Tensor:
    """The first states `(batch, tokens, width)`, and what an attention from values to values in each block adds."""
    total = inputs[0]
    for block, states in zip(blocks, inputs, strict=True):
        attention = block.self_attn
        values = attention.v_proj(block.layer_norm1(states))
        values = values.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        attended = scaled_dot_product_attention(values, values, values)
        total = total + attention.out_proj(attended.transpose(1, 2).flatten(2))
    return total


def _count_patches(model: Any, tower: _Tower, pixel_values: Tensor, interpolate_pos_encoding: bool) -> int:
    rows, columns = _grid(tower, pixel_values)
    encode = getattr(model, "get_image_features", model.forward)
    option = signature(encode).parameters.get("interpolate_pos_encoding")
    if interpolate_pos_encoding and option is None:
        raise ValueError(
            f"{type(model).__name__} cannot interpolate its position embeddings; leave out `interpolate_pos_encoding` "
            "and give images of the size that it was trained on."
        )
    size = getattr(model.vision_model.config, "image_size", None)
    height, width = pixel_values.shape[-2:]
    fixed = option is not None and option.default is False and not interpolate_pos_encoding
    if fixed and isinstance(size, int) and (height, width) != (size, size):
        raise ValueError(
            f"`pixel_values` are {height} x {width} pixels, but {type(model).__name__} was trained on {size} x {size} "
            "pixels; prepare the images with its own processor, or give `interpolate_pos_encoding=True`."
        )
    return rows * columns


def _grid(tower: _Tower, pixel_values: Tensor) -> tuple[int, int]:
    expected = "`pixel_values` must be a torch.Tensor of shape (batch, channels, height, width)"
    if not isinstance(pixel_values, Tensor):
        raise TypeError(f"{expected}, got {type(pixel_values).__name__}; let the image processor make one.")
    if pixel_values.ndim != 4:
        raise ValueError(f"{expected}, got {tuple(pixel_values.shape)}; let the image processor make one.")
    images, channels, height, width = pixel_values.shape
    if not images:
        raise ValueError("`pixel_values` has no images; give at least one.")
    if tower.channels is not None and channels != tower.channels:
        raise ValueError(
            f"`pixel_values` have {channels} channels, but the model takes {tower.channels}; convert the images, such "
            "as to RGB, and let the image processor prepare them."
        )
    high, wide = tower.patch_size
    if height % high or width % wide or not height or not width:
        raise ValueError(
            f"`pixel_values` are {height} x {width} pixels, which is not a multiple of a patch of {high} x {wide}, so "
            "that the model would not see their lower or right edge; resize the images to a multiple of it, such as "
            f"{max(1, height // high) * high} x {max(1, width // wide) * wide}, and if that is not the size which the "
            "model was trained on, give `interpolate_pos_encoding=True`."
        )
    return height // high, width // wide


def _check_layers(num_surgery_layers: object, layers: int) -> int:
    if num_surgery_layers is None:
        return min(NUM_SURGERY_LAYERS, layers)
    if isinstance(num_surgery_layers, bool) or not isinstance(num_surgery_layers, int):
        raise TypeError(
            f"`num_surgery_layers` must be a whole number, got {type(num_surgery_layers).__name__} "
            f"{num_surgery_layers!r}."
        )
    if not 1 <= num_surgery_layers <= layers:
        raise ValueError(
            f"`num_surgery_layers` must be between 1 and {layers}, the number of blocks of the image encoder, got "
            f"{num_surgery_layers}."
        )
    return num_surgery_layers


def _tower(model: Any) -> _Tower:
    found = _find_tower(model)
    if isinstance(found, _Tower):
        return found
    raise TypeError(
        f"{type(model).__name__} gives no local features: {found}. Give a CLIPNModel, a CLIPModel or another model "
        "whose image encoder is a vision transformer built as that of CLIP."
    )


def _find_tower(model: Any) -> _Tower | str:
    """The parts of the image encoder, or why there are none."""
    encoder = getattr(model, "vision_model", None)
    if encoder is None:
        return "it has no image encoder `vision_model`"
    # An image encoder alone has neither of these methods.
    if hasattr(model, "get_text_features") and not hasattr(model, "get_image_features"):
        return "it has no `get_image_features`, so that its `vision_model` is for something else, such as videos"
    name, convolution = type(encoder).__name__, _part(encoder, "embeddings.patch_embedding")
    if getattr(encoder, "head", None) is not None:
        return f"its image encoder {name} pools all patches by a head, which has no meaning for a single one"
    if convolution is None or not hasattr(convolution, "kernel_size"):
        return f"its image encoder {name} does not cut images into patches as that of CLIP does"
    if _part(encoder, "embeddings.class_embedding") is None:
        return f"its image encoder {name} has no class token, whose way to the texts the patches could take"
    blocks, norm = _part(encoder, "encoder.layers"), getattr(encoder, "post_layernorm", None)
    projection = getattr(model, "visual_projection", None)
    if projection is None:
        return "it has no `visual_projection`, by which patches become comparable with texts"
    if not blocks or norm is None:
        return f"its image encoder {name} has no `encoder.layers` or no `post_layernorm`"
    lacking = [part for part in _BLOCK_PARTS if _part(blocks[0], part) is None]
    if lacking:
        return f"the blocks of its image encoder {name} have no {', '.join(lacking)}"
    high, wide = convolution.kernel_size
    return _Tower(blocks, norm, projection, (high, wide), getattr(convolution, "in_channels", None))


def _part(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


__all__ = [
    "LOCAL_PATHS",
    "NUM_SURGERY_LAYERS",
    "LocalPath",
    "has_local_features",
    "image_and_local_features",
    "local_image_features",
    "patch_grid",
]
