# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images and texts to embeddings, behind one interface for CLIP and CLIPN."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPConfig
from transformers.utils import logging

from .digests import configuration_settings, image_processor_settings, model_digest, settings_digest
from .dtypes import floating_dtype
from .images import ImageError, ImageSource, load_image
from .loading import EMBEDDED_CHECKPOINT, POOLS, AutoDualEncoder
from .modeling import IncompleteCheckpointError
from .prompts import fill_templates, resolve_templates, validate_labels, validate_templates

logger = logging.get_logger(__name__)

EMBEDDED_NOTICE = (
    "No model given: using the embedded clipn-tiny, a small CLIPN trained on emoji drawings, good for first steps. "
    'For photographs give a real one, such as model="openai/clip-vit-base-patch16" with method="mcm".'
)

TEXT_BATCH_SIZE = 256
MAX_CACHED_LABEL_SETS = 16
# What torch gives the memory it allocates on a CPU, in bytes.
ALIGNMENT = 64
# Images that are longer lose their ends before they are resized, if the processor would cut these off anyway.
MAX_ASPECT_RATIO = 32


def is_clip_like(model: Any) -> bool:
    """Tell whether scores have been defined for this kind of model: CLIP and what is derived from it.

    SigLIP, for one, has the same two encoders, but logits of its own: it adds a bias to scaled cosines and compares
    each with zero, not with those of the other labels.
    """
    return isinstance(getattr(model, "config", None), CLIPConfig)


class DualEncoder:
    """A model with an image and a text encoder, and what belongs to using it: processor, device, dtype, templates.

    Embeddings are float32 and of unit norm whatever the model computes in. On a CPU the model is converted to float32
    in place, because half precision there is slow and its results depend on the batch.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`], with or without a peft adapter):
            It is used as it is, not copied, and put in evaluation mode.
        processor ([`~transformers.CLIPProcessor`] or [`CLIPNProcessor`]):
            Its `image_processor` and `tokenizer`; its `templates`, which must be those of the model where both have
            any. May be left out for an adapter that was saved with its processor.
        device (`str` or `torch.device`, *optional*): Where to move the model; by default it stays where it is.
        dtype (`str` or `torch.dtype`, *optional*):
            What the model computes in on an accelerator; by default what its weights are. Ignored on a CPU.

    Attributes:
        logit_scale (`float`):
            The factor between cosines and logits, `exp` of the parameter of that name when the encoder was made.
        source (`str` or `None`): The Hub id or folder that the model, or the adapter on it, comes from, where known.
        revision (`str` or `None`): The commit of the Hub repository `source`, where known.
        templates, no_templates (`list[str]`):
            What `class_embeddings` uses by default: those of processor and model, without any
            `clipn_hf.prompts.DEFAULT_TEMPLATES`.

    Raises:
        TypeError: `model` is not a CLIP or CLIPN, or `processor` not a processor of images and texts.
        ValueError:
            `dtype` is not a floating-point type, the logit scale not finite, the tokenizer not that of the model, or
            model and processor disagree on the templates.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        lacking = [
            name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)
        ]
        if lacking or not is_clip_like(model):
            reason = f"has no {', '.join(lacking)}" if lacking else "is no CLIP, and its logits have another meaning"
            raise TypeError(f"{type(model).__name__} {reason}; give a CLIPModel, a CLIPNModel or one with an adapter.")
        if _is_of_the_base(model, processor):
            processor = model.adapter_processor
        lacking = [name for name in ("image_processor", "tokenizer") if getattr(processor, name, None) is None]
        if lacking:
            raise TypeError(
                f"The processor of {type(model).__name__} is {type(processor).__name__}, which has no "
                f"{', '.join(lacking)}; pass processor=, for example `AutoProcessor.from_pretrained(...)`."
            )
        _check_tokenizer(model, processor.tokenizer)
        scale = model.logit_scale.detach().float().exp().item()
        if not 0 < scale < float("inf"):
            raise ValueError(
                f"`exp(logit_scale)` of the checkpoint is {scale}; download the checkpoint or train it again."
            )
        asked = floating_dtype(dtype)
        self.templates, self.no_templates = resolve_templates(model, processor)
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
        self.source: str | None = model.name_or_path or None
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        if getattr(model, "weights_source", None) is not None:
            self.source, self.revision = model.weights_source
        self._label_embeddings: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._first_weights: tuple[tuple[int, ...], list[Tensor]] = ((), [])

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
                Hub id or folder of a CLIP, a CLIPN, or a peft adapter on one. By default the checkpoint inside this
                package, which is said on the log.
            processor (*optional*): In place of the one that belongs to `source`.
            device (`str` or `torch.device`, *optional*): By default the first accelerator, else the CPU.
            dtype (`str` or `torch.dtype`, *optional*, defaults to float32): As for the class.
            hub_arguments: `revision`, `token`, … of `from_pretrained`.

        Raises:
            IncompleteCheckpointError:
                The checkpoint is damaged or lacks weights of its model, an adapter its base model.
            OSError: There is no such model.
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
        if processor is None:
            if os.fspath(source) in (model.name_or_path, getattr(model, "detector_source", None)):
                processor = AutoProcessor.from_pretrained(source, **hub_arguments)
            elif getattr(model, "adapter_processor", None) is None:
                # An adapter that changes no tokens comes without a processor. Its revision is not that of its base.
                base_arguments = {name: value for name, value in hub_arguments.items() if name != "revision"}
                processor = AutoProcessor.from_pretrained(model.name_or_path, **base_arguments)
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

    def describe(self) -> dict[str, Any]:
        """Say which model this is, for records of results and for detectors that are saved.

        Returns:
            `dict`: Of what JSON knows: `"id"`, `"revision"`, `"class"`, `"weights_sha256"`, `"config_sha256"`,
            `"image_processor_sha256"`, `"dtype"`, `"device"` and `"logit_scale"`. The digests are those of the weights
            in float32, of configuration and tokenizer, and of class and settings of the image processor.
        """
        return {
            "id": self.name,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "weights_sha256": model_digest(self.model),
            "config_sha256": settings_digest(
                configuration_settings(self.model, self.processor.tokenizer, self.max_text_length)
            ),
            "image_processor_sha256": settings_digest(image_processor_settings(self.processor.image_processor)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "logit_scale": self.logit_scale,
        }

    @property
    def max_text_length(self) -> int:
        """How many tokens of a text are used, with those that begin and end it."""
        return int(
            min(self.processor.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        )

    def pixel_values(self, images: Sequence[ImageSource], start: int | None = 0) -> Tensor:
        """Read images and prepare them for the image encoder.

        Args:
            images (sequence): What [`~clipn_hf.images.load_image`] reads: paths, addresses, bytes, PIL images, arrays.
                Of an image that is more than 32 times as long as wide, or wide as long, the middle is used, if the
                processor crops the centre of images anyway; resized as a whole it could fill the memory.
            start (`int`, *optional*, defaults to 0):
                The position of the first image, by which errors call it; None leaves positions out.

        Returns:
            `torch.Tensor` of shape `(images, channels, height, width)`, float32, on the CPU.

        Raises:
            ImageError: An image cannot be read.
            TypeError: An image is of none of these types.
        """
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
        return torch.cat(prepared)

    @torch.no_grad()
    def image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """Embed prepared images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): As `pixel_values()` gives them.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The embeddings are not finite.
        """
        # The dtype is that of the encoder, also where its user trains in another one.
        with torch.autocast(self.device.type, enabled=False):
            features = self.model.get_image_features(pixel_values=pixel_values.to(self.device, self.dtype))
        return self._unit_norm(features.pooler_output, "image")

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Embed texts as they are; a text that is too long is cut, which is said on the log.

        Args:
            prompts (`Sequence[str]`): Texts.

        Returns:
            `torch.Tensor` of shape `(prompts, dim)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The embeddings are not finite.
        """
        embeddings, cut = self._embed_texts(self.model.get_text_features, "text", prompts)
        warn_of_cut([prompts[row] for row in cut])
        return embeddings

    def no_text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Embed texts with the "no" text encoder; otherwise as `text_embeddings`.

        Raises:
            ValueError: The embeddings are not finite.
            TypeError: The model has no "no" text encoder.
        """
        if not self.has_no_encoder:
            raise TypeError(
                f'{type(self.model).__name__} has no "no" text encoder; use a trained CLIPN, such as the one inside '
                "this package (`DualEncoder.from_pretrained()`)."
            )
        embeddings, cut = self._embed_texts(self.model.get_no_text_features, '"no" text', prompts)
        warn_of_cut([prompts[row] for row in cut])
        return embeddings

    def class_embeddings(
        self,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        use_no_encoder: bool = True,
        use_memory: bool = True,
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
        text = self._embed_labels(self.model.get_text_features, "text", labels, templates, state, cut)
        no_text = None
        if self.has_no_encoder and use_no_encoder:
            encode = self.model.get_no_text_features
            no_text = self._embed_labels(encode, '"no" text', labels, no_templates, state, cut)
        warn_of_cut(list(cut))
        return text, no_text

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
        if no_templates is None:
            learnable = getattr(self.model.config, "no_prompt_type", None) == "learnable"
            no_templates = templates if templates is not None and learnable else self.no_templates
        templates = validate_templates(self.templates if templates is None else templates)
        return templates, validate_templates(no_templates, name="no_templates")

    def _embed_labels(
        self,
        encode: Callable[..., Any],
        kind: str,
        labels: list[str],
        templates: list[str],
        weights_state: tuple[Any, ...] | None,
        cut: dict[str, None],
    ) -> Tensor:
        """Embeddings `(classes, dim)` of labels, anew without state of the weights. Adds cut labels to `cut`."""
        key = (kind, tuple(labels), tuple(templates), weights_state)
        if weights_state is not None and key in self._label_embeddings:
            self._label_embeddings.move_to_end(key)
            return self._label_embeddings[key]
        prompts = fill_templates(labels, templates)
        embeddings, cut_rows = self._embed_texts(encode, kind, prompts)
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
    def _embed_texts(self, encode: Callable[..., Any], kind: str, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Embeddings `(prompts, dim)`, and the rows of the prompts that had to be cut."""
        tokenizer = self.processor.tokenizer
        max_length = self.max_text_length
        embeddings, cut = [], []
        for start in range(0, len(prompts), TEXT_BATCH_SIZE):
            batch = list(prompts[start : start + TEXT_BATCH_SIZE])
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            full = (tokens["attention_mask"].sum(dim=1) == max_length).nonzero().flatten().tolist()
            if full:
                longer = tokenizer([batch[row] for row in full], truncation=True, max_length=max_length + 1)
                lengths = map(len, longer["input_ids"])
                cut += [start + row for row, length in zip(full, lengths, strict=True) if length > max_length]
            inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
            with torch.autocast(self.device.type, enabled=False):
                features = encode(**inputs)
            embeddings.append(self._unit_norm(features.pooler_output, kind))
        return torch.cat(embeddings), cut

    def _unit_norm(self, features: Tensor, kind: str) -> Tensor:
        embeddings = normalize(features.float(), dim=-1)
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


class PrecomputedEncoder:
    """Text embeddings that were computed before, in place of a model, for image embeddings from the same one.

    A detector made with it judges embeddings, not images.

    Args:
        text_bank (`Mapping[str, numpy.ndarray or torch.Tensor]`):
            The embedding, `(dim,)` and of any norm, of each text that may become a label.
        name (`str`): The model that computed them, for records.
        templates (`Sequence[str]`): The templates that the texts were put into before.
        logit_scale (`float`, *optional*, defaults to 100.0): The factor between cosines and logits of that model.

    Raises:
        TypeError: An embedding is no vector.
        ValueError: There are none, they are of several widths, zero or not finite; the scale is not positive.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf import OODDetector
    >>> from clipn_hf.encoders import PrecomputedEncoder
    >>> encoder = PrecomputedEncoder({"cat": [1.0, 0.0], "dog": [0.0, 1.0]}, "my-clip", ["a photo of a {}."])
    >>> OODDetector(encoder, ["cat", "dog"], "mcm").score(torch.tensor([[1.0, 0.1], [0.5, 0.5]]))
    tensor([0.2901, 0.5000])

    ```
    """

    has_no_encoder = False
    revision = None

    def __init__(
        self, text_bank: Mapping[str, Any], name: str, templates: Sequence[str], logit_scale: float = 100.0
    ) -> None:
        if not text_bank:
            raise ValueError("`text_bank` is empty; give the embedding of each label.")
        rows = {
            text: torch.as_tensor(row if isinstance(row, Tensor) else np.asarray(row))
            .detach()
            .to("cpu", torch.float32)
            for text, row in text_bank.items()
        }
        width = next(iter(rows.values())).shape
        for text, row in rows.items():
            if row.ndim != 1:
                raise TypeError(f"`text_bank` must hold vectors, got shape {tuple(row.shape)} for {text!r}.")
            if row.shape != width:
                raise ValueError(
                    f"`text_bank` must hold vectors of one width, got {len(row)} for {text!r} and {width[0]} before."
                )
            if not torch.isfinite(row).all() or not row.any():
                raise ValueError(f"The embedding of {text!r} is zero or not finite; compute it again.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"`logit_scale` must be a positive number, got {logit_scale!r}.")
        self.source = name
        self.templates = validate_templates(templates)
        self.no_templates: list[str] = []
        self.logit_scale = float(logit_scale)
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._positions = {text: position for position, text in enumerate(rows)}
        self._bank = normalize(torch.stack(list(rows.values())), dim=-1)

    def describe(self) -> dict[str, Any]:
        """Say which embeddings these are, as [`DualEncoder.describe`] does; the digest is that of the embeddings."""
        texts = {text: self._bank[position].tolist() for text, position in self._positions.items()}
        return {
            "id": self.source,
            "revision": None,
            "class": type(self).__name__,
            "weights_sha256": settings_digest(texts),
            "config_sha256": None,
            "image_processor_sha256": None,
            "dtype": "float32",
            "device": "cpu",
            "logit_scale": self.logit_scale,
        }

    def label_templates(
        self, templates: Sequence[str] | None = None, no_templates: Sequence[str] | None = None
    ) -> tuple[list[str], list[str]]:
        """Find the templates, which are those that the embeddings were computed with.

        Raises:
            ValueError: Others are asked for.
        """
        if no_templates is not None or (templates is not None and list(templates) != self.templates):
            raise ValueError(
                f"The embeddings of {self.source} were computed with the templates {self.templates}, got "
                f"{list(templates or no_templates or [])}; leave them out, or give a model."
            )
        return self.templates, []

    def class_embeddings(
        self,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        use_no_encoder: bool = True,
    ) -> tuple[Tensor, None]:
        """Look up labels, as [`DualEncoder.class_embeddings`] embeds them.

        Raises:
            ValueError: Labels that are not in the bank, or other templates.
        """
        labels = validate_labels(labels)
        self.label_templates(templates, no_templates)
        unknown = [label for label in labels if label not in self._positions]
        if unknown:
            more = f" and {len(unknown) - 1} more labels" if len(unknown) > 1 else ""
            raise ValueError(
                f"`text_bank` of {self.source} has no embedding of {unknown[0]!r}{more}; add it, or choose others."
            )
        return self._bank[[self._positions[label] for label in labels]], None


@torch.no_grad()
def _align_weights(model: Any) -> None:
    """Move weights that lie at odd addresses, as those read from a file do.

    Matrix products round differently there, so that the model would not give the same numbers as before it was saved.
    """
    for weight in itertools.chain(model.parameters(), model.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def _check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer of another model, or the empty one that transformers makes where its files are missing."""
    rows = model.text_model.get_input_embeddings().weight.shape[0]
    end_token_id = model.config.text_config.eos_token_id
    # The vocabulary of a model may be filled up to a round number. 2 stands for the highest token of a text.
    fits = len(tokenizer) <= rows <= 2 * len(tokenizer) and end_token_id in (2, tokenizer.eos_token_id)
    if not fits:
        raise ValueError(
            f"The tokenizer does not fit the {type(model).__name__}: it has {len(tokenizer)} tokens and ends texts "
            f"with token {tokenizer.eos_token_id}, but the model has {rows} and expects "
            f"{'the last' if end_token_id == 2 else end_token_id}. Put tokenizer.json and tokenizer_config.json of "
            f"the model beside it, or pass `processor`."
        )


def prepare_image(image: Image.Image, image_processor: Any) -> Tensor:
    """Prepare one image for an image encoder, as `DualEncoder.pixel_values` describes.

    Args:
        image (`PIL.Image.Image`): As [`~clipn_hf.images.load_image`] gives it.
        image_processor: That of the model.

    Returns:
        `torch.Tensor` of shape `(1, channels, height, width)`, float32.
    """
    pixel_values: Tensor = image_processor(_shorten(image, image_processor), return_tensors="pt")["pixel_values"]
    return pixel_values


def warn_of_cut(texts: Sequence[str]) -> None:
    """Say on the log which texts were too long for the text encoder."""
    for text in texts:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        logger.warning(f"{shown!r} is too long for the text encoder, and its end is ignored: shorten it.")


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


def _shorten(image: Image.Image, image_processor: Any) -> Image.Image:
    """The middle of an image that is extremely long, of which the image processor uses nothing else."""
    size, crop_size = (dict(getattr(image_processor, name, None) or {}) for name in ("size", "crop_size"))
    edge, crop = size.get("shortest_edge"), max(crop_size.get("height") or 0, crop_size.get("width") or 0)
    if not (edge and crop and image_processor.do_resize and image_processor.do_center_crop):
        return image
    short, long = sorted(image.size)
    kept = short * max(MAX_ASPECT_RATIO, 2 * -(-crop // edge))
    if long <= kept:
        return image
    # As even or odd as the whole, for the same centre
    kept += (long - kept) % 2
    start = (long - kept) // 2
    wide = image.width == long
    return image.crop((start, 0, start + kept, short) if wide else (0, start, short, start + kept))


__all__ = [
    "EMBEDDED_CHECKPOINT",
    "EMBEDDED_NOTICE",
    "AutoDualEncoder",
    "DualEncoder",
    "IncompleteCheckpointError",
    "PrecomputedEncoder",
]
