# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images and texts to embeddings, behind one interface for all dual encoders."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers.utils import logging

from .digests import (
    configuration_settings,
    describe_image_settings,
    image_encoder_settings,
    image_processor_settings,
    model_digest,
    settings_digest,
)
from .dtypes import floating_dtype
from .families import (
    accepted_inputs,
    check_dual_encoder,
    check_tokenizer,
    find_family,
    find_max_text_length,
    lowers_texts,
    pooled_features,
    read_logit_bias,
    read_logit_scale,
    tokenizer_options,
)
from .image_inputs import concatenate_inputs, prepare_image
from .images import ImageError, ImageSource, load_image
from .loading import EMBEDDED_CHECKPOINT, POOLS, AutoDualEncoder, load_processor
from .local_features import (
    LocalPath,
    has_local_features,
    image_and_local_features,
    local_image_features,
    patch_grid,
)
from .modeling import IncompleteCheckpointError
from .modeling.context_tokens import token_ids
from .modeling.learned_prompts import find_learned_prompts
from .precomputed import PrecomputedEncoder
from .prompts import DEFAULT_TEMPLATES, fill_templates, resolve_templates, validate_labels, validate_templates

logger = logging.get_logger(__name__)

EMBEDDED_NOTICE = (
    "No model given: using the embedded clipn-tiny, a small CLIPN trained on emoji drawings, good for first steps. "
    'For photographs give a real one, such as model="openai/clip-vit-base-patch16" with method="mcm".'
)

TEXT_BATCH_SIZE = 256
TOKENIZED_AT_ONCE = 4096
# Tells whether padding changes the embedding of a text.
PROBE = ["a cat"]
MAX_CACHED_LABEL_SETS = 16
# How many texts a message lists.
MAX_NAMED = 3
# What torch gives the memory it allocates on a CPU, in bytes.
ALIGNMENT = 64


class DualEncoder:
    """A model with an image and a text encoder, and what belongs to using it: processor, device, dtype, templates.

    Embeddings are float32 and of unit norm whatever the model computes in. On a CPU the model is converted to float32
    in place, because half precision there is slow and its results depend on the batch.

    Args:
        model ([`CLIPNModel`], [`~transformers.CLIPModel`] or another one, with or without a peft adapter):
            Any model of transformers with `get_image_features` and `get_text_features`, such as
            [`~transformers.SiglipModel`]; what is known of each family says [`~clipn_hf.families.FAMILIES`]. It is
            used as it is, not copied, and put in evaluation mode.
        processor ([`CLIPNProcessor`], [`~transformers.CLIPProcessor`] or another one):
            Its `image_processor` and `tokenizer`; its `templates`, which must be those of the model where both have
            any. May be left out for an adapter that was saved with its processor.
        device (`str` or `torch.device`, *optional*): Where to move the model; by default it stays where it is.
        dtype (`str` or `torch.dtype`, *optional*):
            What the model computes in on an accelerator; by default what its weights are. Ignored on a CPU.

    Attributes:
        family (`str`): `model_type` of the model's configuration.
        logit_scale (`float`):
            The factor between cosines and logits when the encoder was made, see
            [`~clipn_hf.families.read_logit_scale`].
        logit_bias (`float`): What is added to scaled cosines, 0.0 for most models.
        is_sigmoid (`bool`):
            Whether the model was trained with a sigmoid loss, which is told by its bias: its logits are compared with
            zero, not with each other.
        source (`str` or `None`): The Hub id or folder that the model, or the adapter on it, comes from, where known.
        revision (`str` or `None`): The commit of the Hub repository `source`, where known.
        templates, no_templates (`list[str]`):
            What `class_embeddings` uses by default: the template that was learned, else those of processor and model,
            without any those of the family.
        learned_prompts ([`~clipn_hf.modeling.LearnedPrompts`] or `None`):
            What is known of prompts that were learned, by CoOp and its kin.

    Raises:
        TypeError:
            `model` does not embed both images and texts or is no `PreTrainedModel`, or `processor` does not process
            both.
        ValueError:
            `dtype` is not a floating-point type, logit scale or bias not finite, the tokenizer not that of the model
            or without padding token or lacking tokens of learned prompts, or model and processor disagree on the
            templates.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        check_dual_encoder(model)
        if _is_of_the_base(model, processor):
            processor = model.adapter_processor
        if processor is None:
            raise TypeError(
                f"There is no processor for the {type(model).__name__}, or transformers could not load the one beside "
                "it, and `AutoProcessor.from_pretrained(...)` says why; pass processor=."
            )
        lacking = [name for name in ("image_processor", "tokenizer") if getattr(processor, name, None) is None]
        if lacking:
            raise TypeError(
                f"The processor of {type(model).__name__} is {type(processor).__name__}, which has no "
                f"{', '.join(lacking)}; pass processor=, for example `AutoProcessor.from_pretrained(...)`."
            )
        check_tokenizer(model, processor.tokenizer)
        scale, bias = read_logit_scale(model), read_logit_bias(model)
        asked = floating_dtype(dtype)
        self.family, family = find_family(model)
        self.templates, self.no_templates = resolve_templates(model, processor, family.templates)
        self.learned_prompts = find_learned_prompts(model)
        if self.learned_prompts is not None:
            token_ids(self.learned_prompts, processor.tokenizer)
            # The "no" text encoder has learned nothing of these.
            self.templates = list(self.learned_prompts.templates)
        if device is not None:
            model.to(device)
        if model.device.type == "cpu":
            if asked not in (None, torch.float32):
                logger.warning(f"On a CPU everything is computed in float32, not in the {asked} that was asked for.")
            asked = torch.float32
        if asked is not None:
            model.to(asked)
        if model.device.type == "cpu":
            _align_weights(model)
        self.model = model.eval()
        self.processor = processor
        self.logit_scale = scale
        self.logit_bias = 0.0 if bias is None else bias
        self.is_sigmoid = bias is not None
        self.source: str | None = model.name_or_path or None
        self.revision: str | None = getattr(model, "hub_revision", None)
        if getattr(model, "weights_source", None) is not None:
            self.source, self.revision = model.weights_source
        self._label_embeddings: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._first_weights: tuple[tuple[int, ...], list[Tensor]] = ((), [])
        self._described_images: tuple[Any, dict[str, Any]] | None = None
        self._pads_to_longest: bool | None = {"longest": True, "max_length": False, None: None}[family.padding]

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        processor: Any = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **hub_arguments: Any,
    ) -> Self:
        """Load model and processor.

        Args:
            source (`str` or `os.PathLike`, *optional*):
                Hub id or folder of a CLIPN, a CLIP, another dual encoder, or a peft adapter on one. By default the
                checkpoint inside this package, which is said on the log.
            processor (*optional*): In place of the one that belongs to `source`.
            device (`str` or `torch.device`, *optional*): By default the first accelerator, else the CPU.
            dtype (`str` or `torch.dtype`, *optional*, defaults to float32): As for the class.
            hub_arguments: `revision`, `token`, … of `from_pretrained`.

        Raises:
            IncompleteCheckpointError:
                The checkpoint is damaged or lacks weights of its model, an adapter its base model.
            OSError: There is no such model, or its processor cannot be loaded.
            TypeError, ValueError: As for the class.
        """
        if source is None:
            source = EMBEDDED_CHECKPOINT
            if not os.path.isdir(source):
                raise FileNotFoundError(
                    f"The embedded checkpoint is missing from {source}: this installation of clipn-hf is incomplete. "
                    f"Install it again, or name a model."
                )
            logger.warning(EMBEDDED_NOTICE)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model = AutoDualEncoder.from_pretrained(source, **hub_arguments)
        # Models of other kinds have processors that are no less different.
        check_dual_encoder(model)
        if processor is None:
            if os.fspath(source) in (model.name_or_path, getattr(model, "detector_source", None)):
                processor = load_processor(source, **hub_arguments)
            elif getattr(model, "adapter_processor", None) is None:
                # An adapter that changes no tokens comes without a processor. Its revision is not that of its base.
                base_arguments = {name: value for name, value in hub_arguments.items() if name != "revision"}
                processor = load_processor(model.name_or_path, **base_arguments)
        return cls(model, processor, device, dtype)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

    @property
    def name(self) -> str | None:
        """What the model is called: `source`, or the name of the checkpoint inside this package."""
        return os.path.basename(EMBEDDED_CHECKPOINT) if self.source == EMBEDDED_CHECKPOINT else self.source

    @property
    def has_no_encoder(self) -> bool:
        """Whether the model has a "no" text encoder."""
        return hasattr(self.model, "get_no_text_features")

    @property
    def has_local_features(self) -> bool:
        """Whether the image encoder is one whose patches can be embedded, see [`local_image_features`]."""
        return has_local_features(self.model)

    @property
    def has_unknown_prompt(self) -> bool:
        """Whether the model has learned a prompt of what belongs to none of the labels."""
        return self.learned_prompts is not None and self.learned_prompts.unknown_prompt is not None

    def describe(self) -> dict[str, Any]:
        """Say which model this is, for records of results and for detectors that are saved.

        Returns:
            `dict`: Of what JSON knows: `"id"`, `"revision"`, `"family"`, `"class"`, `"weights_sha256"`,
            `"config_sha256"`, `"image_processor_sha256"`, `"dtype"`, `"device"`, `"logit_scale"`, `"logit_bias"` and
            `"is_sigmoid"`. The digests are those of the weights in float32, of configuration and tokenizer, and of
            class and settings of the image processor.
        """
        return {
            "id": self.name,
            "revision": self.revision,
            "family": self.family,
            "class": type(self.model).__name__,
            "weights_sha256": model_digest(self.model),
            "config_sha256": settings_digest(
                configuration_settings(self.model, self.processor.tokenizer, self.max_text_length)
            ),
            "image_processor_sha256": settings_digest(image_processor_settings(self.processor.image_processor)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "is_sigmoid": self.is_sigmoid,
        }

    def describe_images(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Say what image embeddings come from, for what is trained on them.

        Args:
            settings (`Mapping`, *optional*):
                What [`~clipn_hf.digests.image_encoder_settings`] has listed of this model, if it has.

        Returns:
            `dict`: As [`~clipn_hf.digests.describe_image_encoder`]. A local folder is called by its name alone.
        """
        adapted = bool(getattr(self.model, "peft_config", None))
        state = (self.weights_state(), settings_digest(image_processor_settings(self.processor.image_processor)))
        # Adapters can be switched off without any change of the weights.
        if settings is not None or adapted or self._described_images is None or self._described_images[0] != state:
            if settings is None:
                settings = image_encoder_settings(self.model, self.processor.image_processor)
            name = self.name
            if name is not None and os.path.isdir(name):
                name = os.path.basename(os.path.abspath(name))
            self._described_images = state, describe_image_settings(settings, self.model, name)
        return dict(self._described_images[1])

    @property
    def max_text_length(self) -> int:
        """How many tokens of a text are used, with those that begin and end it."""
        return find_max_text_length(self.model, self.processor.tokenizer)

    def prepare_images(self, images: Sequence[ImageSource], start: int | None = 0) -> dict[str, Tensor]:
        """Read images and prepare them for the image encoder.

        Args:
            images (sequence): What [`~clipn_hf.images.load_image`] reads: paths, addresses, bytes, PIL images, arrays.
                Of an image that is more than 32 times as long as wide, or wide as long, the middle is used, if the
                processor crops the centre of images anyway; resized as a whole it could fill the memory.
            start (`int`, *optional*, defaults to 0):
                The position of the first image, by which errors call it; None leaves positions out.

        Returns:
            `dict[str, torch.Tensor]`: What the image processor makes of them, on the CPU, the first dimension of each
            entry `images`: `"pixel_values"` `(images, channels, height, width)`, float32, for most models.

        Raises:
            ImageError: An image cannot be read.
            TypeError: An image is of none of these types, or `images` is a single one.
            ValueError: There are no images.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise TypeError(f"`images` must be a sequence of images, got one {type(images).__name__}; give `[image]`.")
        # One by one, so that no more than one image is in memory at its full size.
        prepared = []
        for offset, image in enumerate(images):
            where = "" if start is None else f"image {start + offset}"
            try:
                loaded = load_image(image)
            except ImageError as error:
                raise ImageError(f"{where} ({error.source})" if where else error.source, error.reason) from error
            except TypeError as error:
                raise TypeError(f"Cannot read {where}: {error}" if where else str(error)) from error
            prepared.append(prepare_image(loaded, self.processor.image_processor))
        if not prepared:
            raise ValueError("`images` is empty; give at least one image.")
        return concatenate_inputs(prepared)

    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """Find what the image processor makes of black and of white.

        `(pixel_values - black) / (white - black)` are colours in [0, 1], and `white - black` is one over the standard
        deviation by which it divides.

        Returns:
            Two `torch.Tensor`, float32, on the CPU, to be broadcast against `pixel_values`: of shape
            `(channels, 1, 1)`, or of the length of a patch where images come as patches.

        Raises:
            ValueError: It makes the same of both.
        """
        found = []
        for colour in ("black", "white"):
            pixels = self.prepare_images([Image.new("RGB", (64, 64), colour)])["pixel_values"][0].float()
            # The middle and the beginning, because margins may be padding.
            middle = pixels[:, pixels.shape[-2] // 2, pixels.shape[-1] // 2, None, None] if pixels.ndim == 3 else None
            found.append(pixels[0] if middle is None else middle)
        black, white = found
        if not bool((white > black).all()):
            raise ValueError(
                f"The image processor of {self.name or type(self.model).__name__} makes the same of black and white "
                "pixels, so that there is no going back from pixel values to colours; use another model."
            )
        return black, white

    @torch.no_grad()
    def image_embeddings(self, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Embed prepared images.

        Args:
            inputs (`Mapping[str, torch.Tensor]` or `torch.Tensor`):
                As `prepare_images` gives them, or `pixel_values` alone.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The embeddings are not finite.
        """
        return self.differentiable_image_embeddings(inputs)

    def differentiable_image_embeddings(self, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Embed prepared images as `image_embeddings`, in a way that gradients flow back to them and to the weights.

        Args:
            inputs (`Mapping[str, torch.Tensor]` or `torch.Tensor`): As for `image_embeddings`.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The embeddings are not finite.
        """
        moved = self._move(inputs)
        # The dtype is that of the encoder, also where its user trains in another one.
        with torch.autocast(self.device.type, enabled=False):
            features = self.model.get_image_features(**accepted_inputs(self.model.get_image_features, moved))
        return self._unit_norm(features, "image")

    def local_image_embeddings(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        path: LocalPath = "value",
        num_surgery_layers: int | None = None,
    ) -> Tensor:
        """Embed each patch of prepared images.

        Args:
            inputs (`Mapping[str, torch.Tensor]` or `torch.Tensor`): As for `image_embeddings`.
            path (`"value"`, `"surgery"` or `"clip"`, *optional*, defaults to `"value"`):
                Which way through the image encoder, see [`local_image_features`].
            num_surgery_layers (`int`, *optional*): As for [`local_image_features`].

        Returns:
            `torch.Tensor` of shape `(batch, patches, dim)`, float32, unit norm, on the device of the model.

        Raises:
            TypeError: The image encoder is not one of those that [`local_image_features`] knows.
            ValueError: As [`local_image_features`]; the embeddings are not finite.
        """
        return self.image_and_local_embeddings(inputs, path, num_surgery_layers)[1]

    def image_and_local_embeddings(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        path: LocalPath = "value",
        num_surgery_layers: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed prepared images, and each patch of them, while the model is run once.

        Args:
            inputs (`Mapping[str, torch.Tensor]` or `torch.Tensor`): As for `image_embeddings`.
            path (`"value"`, `"surgery"` or `"clip"`, *optional*, defaults to `"value"`):
                As for `local_image_embeddings`.
            num_surgery_layers (`int`, *optional*): As for `local_image_embeddings`.

        Returns:
            Two `torch.Tensor`, float32, unit norm, on the device of the model: What `image_embeddings` gives, of shape
            `(batch, dim)`, and what `local_image_embeddings` gives, of shape `(batch, patches, dim)`.

        Raises:
            TypeError, ValueError: As `local_image_embeddings`.
        """
        embeddings, patches = self.embeddings_on_paths(inputs, (path,), num_surgery_layers)
        return embeddings, patches[path]

    @torch.no_grad()
    def embeddings_on_paths(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        paths: Sequence[LocalPath],
        num_surgery_layers: int | None = None,
    ) -> tuple[Tensor, dict[LocalPath, Tensor]]:
        """Embed prepared images, and each patch of them on several paths, while the model is run once.

        Args:
            inputs (`Mapping[str, torch.Tensor]` or `torch.Tensor`): As for `image_embeddings`.
            paths (`Sequence[str]`): Some of `"value"`, `"surgery"` and `"clip"`.
            num_surgery_layers (`int`, *optional*): As for `local_image_embeddings`.

        Returns:
            What `image_embeddings` gives, and a `dict` with what `local_image_embeddings` gives for each path.

        Raises:
            TypeError, ValueError: As `local_image_embeddings`.
        """
        pixel_values = self._move(inputs)["pixel_values"]
        with torch.autocast(self.device.type, enabled=False):
            features, local = image_and_local_features(self.model, pixel_values, paths, num_surgery_layers)
        patches: dict[LocalPath, Tensor] = {}
        for path, found in local.items():
            flat = self._unit_norm(found.flatten(0, 1), "patch")  # (batch * patches, dim)
            patches[path] = flat.unflatten(0, found.shape[:2])
        return self._unit_norm(features, "image"), patches

    def _move(self, inputs: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """Prepared images on the device of the model and in its dtype."""
        inputs = {"pixel_values": inputs} if isinstance(inputs, Tensor) else inputs
        return {
            name: values.to(self.device, self.dtype) if values.is_floating_point() else values.to(self.device)
            for name, values in inputs.items()
        }

    def text_embeddings(self, prompts: Sequence[str], progress: bool = False) -> Tensor:
        """Embed texts as they are; a text that is too long is cut, which is said on the log.

        Args:
            prompts (`Sequence[str]`): Texts.
            progress (`bool`, *optional*, defaults to `False`): Whether to show a bar, if there is a terminal.

        Returns:
            `torch.Tensor` of shape `(prompts, dim)`, float32, unit norm, on the device of the model.

        Raises:
            TypeError: `prompts` is a single text, or holds something else than texts.
            ValueError: There are no texts, or the embeddings are not finite.
        """
        prompts = _check_prompts(prompts)
        embeddings, cut = self._embed_texts(self.model.get_text_features, "text", prompts, progress)
        self.warn_of_cut([prompts[row] for row in cut])
        return embeddings

    def no_text_embeddings(self, prompts: Sequence[str], progress: bool = False) -> Tensor:
        """Embed texts with the "no" text encoder; otherwise as `text_embeddings`.

        Raises:
            ValueError: As `text_embeddings`.
            TypeError: As `text_embeddings`; the model has no "no" text encoder.
        """
        if not self.has_no_encoder:
            raise TypeError(
                f'{type(self.model).__name__} has no "no" text encoder; use a trained CLIPN, such as the one inside '
                "this package (`DualEncoder.from_pretrained()`)."
            )
        prompts = _check_prompts(prompts)
        embeddings, cut = self._embed_texts(self.model.get_no_text_features, '"no" text', prompts, progress)
        self.warn_of_cut([prompts[row] for row in cut])
        return embeddings

    def unknown_embedding(self) -> Tensor:
        """Embed the "unknown" prompt, the learned one of what belongs to none of the labels.

        Returns:
            `torch.Tensor` of shape `(dim,)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The model has learned none, or the embedding is not finite.
        """
        if self.learned_prompts is None or self.learned_prompts.unknown_prompt is None:
            raise ValueError(
                f'{self.name or type(self.model).__name__} has no learned "unknown" prompt; give a model that was '
                "trained with one, such as by CLIP-OS."
            )
        return self.text_embeddings([self.learned_prompts.unknown_prompt])[0]

    def class_prompts(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> list[str]:
        """Find the texts that the text encoder reads for labels.

        Args:
            labels (`Sequence[str]`): One text per class.
            templates (`Sequence[str]`, *optional*): As for `class_embeddings`.

        Returns:
            `list[str]`: Label by label, its texts in all templates, as [`~clipn_hf.prompts.fill_templates`]. Where a
            context was learned for each label by itself and the templates are those of the model, the learned prompts.

        Raises:
            TypeError, ValueError: As [`~clipn_hf.prompts.fill_templates`], and
                [`~clipn_hf.modeling.LearnedPrompts.build_prompts`].
        """
        templates = self.templates if templates is None else templates
        if self.learned_prompts is not None and list(templates) == self.learned_prompts.templates:
            return self.learned_prompts.build_prompts(labels)
        return fill_templates(labels, templates)

    def class_embeddings(
        self,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        use_no_encoder: bool = True,
        use_memory: bool = True,
        progress: bool = False,
        warn: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Embed labels, with the text encoder and with the "no" text encoder.

        The embeddings of a label in all templates are normalised, averaged and normalised again. The results are kept
        for the most recent label sets, as long as the weights of the model stay the same: do not change them in place.

        Args:
            labels (`Sequence[str]`): One text per class.
            templates (`Sequence[str]`, *optional*):
                Texts with one `{}` for the label. By default the attribute `templates`.
            no_templates (`Sequence[str]`, *optional*):
                The same for the "no" text encoder. By default `templates`, where those are given and the "no" prompts
                of the model are learnable; else the attribute `no_templates`.
            use_no_encoder (`bool`, *optional*, defaults to `True`):
                Whether to run the "no" text encoder, if there is one.
            use_memory (`bool`, *optional*, defaults to `True`):
                Whether results may be taken from those kept, and are kept.
            progress (`bool`, *optional*, defaults to `False`): Whether to show a bar, if there is a terminal.
            warn (`bool`, *optional*, defaults to `True`): Whether to say on the log which labels are too long.

        Returns:
            Two `torch.Tensor` of shape `(classes, dim)`, float32, unit norm, on the device of the model. The second is
            None without a "no" text encoder.

        Raises:
            TypeError, ValueError:
                Labels or templates that [`~clipn_hf.prompts.validate_labels`] or
                [`~clipn_hf.prompts.validate_templates`] refuse; embeddings that are not finite.
        """
        labels = validate_labels(labels)
        templates, no_templates = self.label_templates(templates, no_templates)
        state = self.weights_state() if use_memory else None
        cut: dict[str, None] = {}
        text = self._embed_labels(self.model.get_text_features, "text", labels, templates, state, cut, progress)
        no_text = None
        if self.has_no_encoder and use_no_encoder:
            encode = self.model.get_no_text_features
            no_text = self._embed_labels(encode, '"no" text', labels, no_templates, state, cut, progress)
        if warn:
            self.warn_of_cut(list(cut))
        return text, no_text

    def remembers_class_embeddings(
        self,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        use_no_encoder: bool = True,
    ) -> bool:
        """Tell whether `class_embeddings` would find labels among those that it keeps.

        Args:
            labels (`Sequence[str]`): One text per class.
            templates (`Sequence[str]`, *optional*): As for `class_embeddings`.
            no_templates (`Sequence[str]`, *optional*): As for `class_embeddings`.
            use_no_encoder (`bool`, *optional*, defaults to `True`): As for `class_embeddings`.

        Returns:
            `bool`
        """
        templates, no_templates = self.label_templates(templates, no_templates)
        banks = {"text": templates}
        if use_no_encoder and self.has_no_encoder:
            banks['"no" text'] = no_templates
        state = self.weights_state()
        return all((kind, tuple(labels), tuple(own), state) in self._label_embeddings for kind, own in banks.items())

    def remember_class_embeddings(
        self,
        labels: Sequence[str],
        text: Tensor,
        no_text: Tensor | None = None,
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
    ) -> None:
        """Keep embeddings of labels that this model gave before, so that `class_embeddings` finds them.

        Args:
            labels (`Sequence[str]`): One text per class.
            text (`torch.Tensor` of shape `(classes, dim)`): What `class_embeddings` returned first.
            no_text (`torch.Tensor` of shape `(classes, dim)`, *optional*): What it returned second.
            templates (`Sequence[str]`, *optional*): As for `class_embeddings`.
            no_templates (`Sequence[str]`, *optional*): As for `class_embeddings`.

        Raises:
            TypeError, ValueError: As `class_embeddings`; there is not one embedding per label.
        """
        labels = validate_labels(labels)
        templates, no_templates = self.label_templates(templates, no_templates)
        state = self.weights_state()
        for kind, embeddings, own_templates in (("text", text, templates), ('"no" text', no_text, no_templates)):
            if embeddings is None:
                continue
            if len(embeddings) != len(labels):
                raise ValueError(
                    f"There must be one {kind} embedding for each label, {len(labels)} in all, got {len(embeddings)}."
                )
            self._remember((kind, tuple(labels), tuple(own_templates), state), embeddings.to(self.device))

    def tokenize(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Find the tokens of texts, whole and without padding.

        Args:
            texts (`Sequence[str]`): Texts.

        Returns:
            `Iterator[list[int]]`: The tokens of each, with those that begin and end it.
        """
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            yield from self._run_tokenizer(texts[start : start + TOKENIZED_AT_ONCE], verbose=False)["input_ids"]

    def warn_of_cut(self, texts: Sequence[str]) -> None:
        """Say on the log which texts are too long for the text encoder.

        Args:
            texts (`Sequence[str]`): Those; none are nothing to say.
        """
        part = "beginning" if self.processor.tokenizer.truncation_side == "left" else "end"
        shown = [repr(text if len(text) <= 60 else f"{text[:60]}…") for text in texts[:MAX_NAMED]]
        if len(texts) == 1:
            logger.warning(f"{shown[0]} is too long for the text encoder, and its {part} is ignored: shorten it.")
        elif texts:
            more = ", …" if len(texts) > MAX_NAMED else ""
            logger.warning(
                f"{len(texts)} texts are too long for the text encoder, and their {part}s are ignored: "
                f"{', '.join(shown)}{more}."
            )

    def single_template(self, default: Sequence[str]) -> list[str]:
        """Find the one template for where thousands of texts are embedded.

        Args:
            default (`Sequence[str]`): For models that bring no templates along, and whose family has none of its own.

        Returns:
            `list[str]`: The first of the templates that the model or its processor brings along, as those of a CLIPN,
            which it was trained with, or that the family has, as Chinese-CLIP does; else `default`.
        """
        return self.templates[:1] if self._has_own_templates() else list(default)

    def ensemble_templates(self, default: Sequence[str]) -> list[str]:
        """Find the templates for where labels are embedded as the mean over many.

        Args:
            default (`Sequence[str]`): As for `single_template`.

        Returns:
            `list[str]`: All templates that the model, its processor or its family has; else `default`.
        """
        return list(self.templates if self._has_own_templates() else default)

    def _has_own_templates(self) -> bool:
        """Whether the model or its processor brings templates along, or its family has some of its own."""
        if self.learned_prompts is not None:
            # Contexts of labels by themselves word no other texts.
            return self.learned_prompts.label_prompts is None
        owners = (self.model.config, self.processor)
        return any(getattr(owner, "templates", None) for owner in owners) or self.templates != [*DEFAULT_TEMPLATES]

    def label_templates(
        self, templates: Sequence[str] | None = None, no_templates: Sequence[str] | None = None
    ) -> tuple[list[str], list[str]]:
        """Find the templates that `class_embeddings` uses.

        Args:
            templates (`Sequence[str]`, *optional*): As for `class_embeddings`.
            no_templates (`Sequence[str]`, *optional*): As for `class_embeddings`.

        Returns:
            Two `list[str]`: For the text encoder and for the "no" text encoder.

        Raises:
            TypeError, ValueError: Templates that [`~clipn_hf.prompts.validate_templates`] refuses.
        """
        checked = validate_templates(self.templates if templates is None else templates)
        if no_templates is None:
            learnable = getattr(self.model.config, "no_prompt_type", None) == "learnable"
            learned = self.learned_prompts is not None and checked == self.learned_prompts.templates
            no_templates = checked if templates is not None and learnable and not learned else self.no_templates
        return checked, validate_templates(no_templates, name="no_templates")

    def _embed_labels(
        self,
        encode: Callable[..., Any],
        kind: str,
        labels: list[str],
        templates: list[str],
        weights_state: tuple[Any, ...] | None,
        cut: dict[str, None],
        progress: bool,
    ) -> Tensor:
        """Embeddings `(classes, dim)` of labels, anew without state of the weights. Adds cut labels to `cut`."""
        key = (kind, tuple(labels), tuple(templates), weights_state)
        if weights_state is not None and key in self._label_embeddings:
            self._label_embeddings.move_to_end(key)
            return self._label_embeddings[key]
        prompts = self.class_prompts(labels, templates) if kind == "text" else fill_templates(labels, templates)
        embeddings, cut_rows = self._embed_texts(encode, kind, prompts, progress)
        cut.update(dict.fromkeys(labels[row // len(templates)] for row in cut_rows))
        embeddings = normalize(embeddings.unflatten(0, (len(labels), len(templates))).mean(dim=1), dim=-1)
        if weights_state is None:
            return embeddings
        self._remember(key, embeddings)
        return embeddings

    def _remember(self, key: tuple[Any, ...], embeddings: Tensor) -> None:
        self._label_embeddings[key] = embeddings
        self._label_embeddings.move_to_end(key)
        if len(self._label_embeddings) > MAX_CACHED_LABEL_SETS:
            self._label_embeddings.popitem(last=False)

    @torch.no_grad()
    def weights_state(self) -> tuple[Any, ...]:
        """Differs after any change of the weights, so that a model that is trained further is asked again."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.numel()]
        # Changes in place raise the version of a tensor, except those of fused optimizers, which change every value.
        versions = tuple(0 if parameter.is_inference() else parameter._version for parameter in parameters)
        addresses = tuple(parameter.data_ptr() for parameter in parameters)
        if addresses != self._first_weights[0]:
            # Views, because making hundreds of them takes far longer than reading them.
            self._first_weights = addresses, [parameter.detach().as_strided((), ()) for parameter in parameters]
        # Adapters may be of another type than the model, hence the conversion of those that need it.
        first_weights = [
            weight if weight.dtype == torch.float32 else weight.float() for weight in self._first_weights[1]
        ]
        return versions, addresses, torch.stack(first_weights).cpu().numpy().tobytes()

    @torch.no_grad()
    def _embed_texts(
        self, encode: Callable[..., Any], kind: str, prompts: Sequence[str], progress: bool
    ) -> tuple[Tensor, list[int]]:
        """Embeddings `(prompts, dim)`, and the rows of the prompts that had to be cut.

        Each text is encoded once, among others of its length, so that little is spent on padding.
        """
        max_length = self.max_text_length
        rows = {text: row for row, text in enumerate(dict.fromkeys(prompts))}
        texts = list(rows)
        lengths = [len(tokens) for tokens in self.tokenize(texts)]
        # The longest come first, so that memory runs out at once or not at all.
        order = sorted(range(len(texts)), key=lengths.__getitem__, reverse=True)
        embeddings: Tensor | None = None
        with tqdm(total=len(texts), desc="Texts", unit=" texts", disable=None if progress else True) as bar:
            for start in range(0, len(order), TEXT_BATCH_SIZE):
                batch = order[start : start + TEXT_BATCH_SIZE]
                encoded = self._encode_texts(encode, [texts[row] for row in batch], kind, max_length)
                if embeddings is None:
                    embeddings = encoded.new_empty(len(texts), encoded.shape[1])
                embeddings[batch] = encoded
                bar.update(len(batch))
        assert embeddings is not None
        if len(texts) < len(prompts):
            embeddings = embeddings[[rows[text] for text in prompts]]
        return embeddings, [row for row, text in enumerate(prompts) if lengths[rows[text]] > max_length]

    def _encode_texts(self, encode: Callable[..., Any], texts: list[str], kind: str, max_length: int) -> Tensor:
        """Embeddings `(texts, dim)` of one batch."""
        if self._pads_to_longest is None:
            self._pads_to_longest = self._is_padding_inert(max_length)
        padding = "longest" if self._pads_to_longest else "max_length"
        return self._run_text_encoder(encode, texts, kind, padding=padding, truncation=True, max_length=max_length)

    def _run_text_encoder(self, encode: Callable[..., Any], texts: list[str], kind: str, **options: Any) -> Tensor:
        tokens = self._run_tokenizer(texts, return_tensors="pt", **options)
        inputs = {name: values.to(self.device) for name, values in accepted_inputs(encode, tokens).items()}
        with torch.autocast(self.device.type, enabled=False):
            return self._unit_norm(encode(**inputs), kind)

    def _is_padding_inert(self, max_length: int) -> bool:
        """Whether a text has the same embedding with and without padding, by trying it out."""
        length = len(next(self.tokenize(PROBE)))
        if length >= max_length:
            return False
        encode, padded_length = self.model.get_text_features, min(length + 8, max_length)
        bare, padded = (
            self._run_text_encoder(encode, PROBE, "text", padding=padding, max_length=padded_length)
            for padding in (False, "max_length")
        )
        # What is left of a difference is rounding.
        return bool((bare - padded).abs().max() < (1e-4 if self.dtype == torch.float32 else 2e-2))

    def _run_tokenizer(self, texts: Sequence[str], **options: Any) -> Any:
        tokenizer = self.processor.tokenizer
        texts = [text.lower() for text in texts] if lowers_texts(self.model, tokenizer) else list(texts)
        return tokenizer(texts, **tokenizer_options(self.model, tokenizer), **options)

    def _unit_norm(self, outputs: Any, kind: str) -> Tensor:
        embeddings = normalize(pooled_features(self.model, outputs).float(), dim=-1)
        if torch.isfinite(embeddings).all():
            return embeddings
        damaged = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        if damaged:
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            raise ValueError(
                f"The {kind} embeddings are not finite, because these weights of the checkpoint are NaN or infinite: "
                f"{', '.join(damaged[:3])}{more}. Train or download it again."
            )
        raise ValueError(
            f"The {kind} embeddings are not finite though all weights are: the model overflows in {self.dtype}; "
            "compute in `dtype=torch.float32` or `torch.bfloat16`."
        )


@torch.no_grad()
def _align_weights(model: Any) -> None:
    """Move weights that lie at odd addresses, as those read from a file do.

    Matrix products round differently there, so that the model would not give the same numbers as before it was saved.
    """
    for weight in itertools.chain(model.parameters(), model.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def _check_prompts(prompts: Sequence[str]) -> list[str]:
    """The texts as a list."""
    if isinstance(prompts, str):
        raise TypeError(f"`prompts` must be a sequence of texts, got the text {prompts!r}; give [{prompts!r}].")
    texts = list(prompts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`prompts` must hold texts, got {text!r} at position {position}; leave it out.")
    if not texts:
        raise ValueError('`prompts` is empty; give at least one text, such as ["a photo of a cat."].')
    return texts


def _is_of_the_base(model: Any, processor: Any) -> bool:
    """Whether the processor saved with an adapter has to replace one that lacks the adapter's tokens or templates.

    transformers' pipelines hand over the processor of the base model.
    """
    own = getattr(model, "adapter_processor", None)
    if own is None or processor is None:
        return own is not None
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or tokenizer.name_or_path != model.name_or_path:
        return False
    pools = [(getattr(processor, name, None), getattr(model.config, name, None)) for name in POOLS]
    return len(tokenizer) < len(own.tokenizer) or any(of_base not in (None, of_model) for of_base, of_model in pools)


__all__ = [
    "EMBEDDED_CHECKPOINT",
    "EMBEDDED_NOTICE",
    "AutoDualEncoder",
    "DualEncoder",
    "IncompleteCheckpointError",
    "PrecomputedEncoder",
    "has_local_features",
    "image_and_local_features",
    "local_image_features",
    "patch_grid",
]
