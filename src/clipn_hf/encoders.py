# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images and texts to embeddings, behind one interface for CLIP and CLIPN."""

import importlib.resources
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.peft_utils import find_adapter_config_file

from .images import ImageError, ImageSource, load_image
from .prompts import DEFAULT_TEMPLATES, fill_templates, validate_labels, validate_templates

logger = logging.get_logger(__name__)

EMBEDDED_CHECKPOINT = str(importlib.resources.files("clipn_hf") / "checkpoints" / "clipn-tiny")
EMBEDDED_NOTICE = (
    "No model given: using the embedded clipn-tiny, a small CLIPN trained on emoji drawings, good for first steps. "
    'For photographs give a real one, such as model="openai/clip-vit-base-patch16" with method="mcm".'
)

TEXT_BATCH_SIZE = 256
MAX_CACHED_LABEL_SETS = 16


class IncompleteCheckpointError(Exception):
    """A checkpoint lacks weights of its model.

    Not a `ValueError`, because `transformers.pipeline` catches those and tries to load the checkpoint as another
    class, with random numbers in place of the missing weights.
    """


class AutoDualEncoder(AutoModel):
    """`AutoModel` that refuses checkpoints with missing weights, where transformers fills in random numbers."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Loads a model as `AutoModel.from_pretrained` does, but always in float32: `DualEncoder` converts it.

        In bfloat16 the logit scale alone, a single weight, would be off by up to 1.6 %.

        The folder or repository of a peft adapter loads its base model and puts the adapter on it.

        Raises:
            IncompleteCheckpointError: The checkpoint lacks weights of its model.
        """
        source = os.fspath(pretrained_model_name_or_path)
        kwargs["dtype"] = torch.float32
        adapter = _adapter_base(source, kwargs)
        if adapter is not None and adapter != source:
            # Loaded in two steps, because transformers reports on the weights of the adapter alone.
            adapter_arguments: dict[str, Any] = {"revision": kwargs.pop("revision", None)}
            adapter_arguments |= {name: kwargs[name] for name in ("token", "local_files_only") if name in kwargs}
            kwargs.pop("config", None)
            model = cls.from_pretrained(adapter, *args, **kwargs)
            model.load_adapter(source, adapter_kwargs=adapter_arguments)
            return model
        model, report = AutoModel.from_pretrained(source, *args, output_loading_info=True, **kwargs)
        _check_complete(source, type(model).__name__, sorted(report["missing_keys"]))
        return model


def _adapter_base(source: str, kwargs: dict[str, Any]) -> str | None:
    """The base model that the adapter `source` is made for; None where `source` is not an adapter."""
    hub_arguments = {n: kwargs[n] for n in ("revision", "token", "local_files_only", "cache_dir") if n in kwargs}
    path = find_adapter_config_file(source, **hub_arguments)
    if path is None:
        return None
    if (Path(source) / CONFIG_NAME).exists():
        return source
    base = json.loads(Path(path).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if base is None:
        raise IncompleteCheckpointError(
            f"the adapter {source} does not name its base model: load it with PeftModel.from_pretrained(base, "
            f'"{source}") and pass that model and its processor'
        )
    return base


def _check_complete(source: str, model_class: str, missing: list[str]) -> None:
    if not missing:
        return
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    advice = "download or save it again"
    if all("no_text" in name for name in missing):
        advice = "make a CLIPN from a CLIP with CLIPNModel.from_clip() and train it"
    raise IncompleteCheckpointError(f"{source} lacks weights of {model_class}: {shown}; {advice}")


class DualEncoder:
    """A model with an image and a text encoder, and what belongs to using it: processor, device, dtype, templates.

    Embeddings are float32 and of unit norm whatever the model computes in. On a CPU the model is converted to float32
    in place, because half precision there is slow and its results depend on the batch.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`], with or without a peft adapter):
            It is used as it is, not copied, and put in evaluation mode.
        processor ([`~transformers.CLIPProcessor`] or [`CLIPNProcessor`]):
            Its `image_processor` and `tokenizer`; its `templates` where it has any.
        device (`str` or `torch.device`, *optional*): Where to move the model; by default it stays where it is.
        dtype (`str` or `torch.dtype`, *optional*):
            What the model computes in on an accelerator; by default what its weights are. Ignored on a CPU.

    Attributes:
        logit_scale (`float`):
            The factor between cosines and logits, `exp` of the parameter of that name when the encoder was made.

    Raises:
        TypeError: `model` is not a dual encoder, or `processor` not a processor of images and texts.
        ValueError: `dtype` is not a floating-point type, or the logit scale not finite.
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
        if lacking:
            raise TypeError(
                f"{type(model).__name__} has no {', '.join(lacking)}; give a model with an image and a text encoder, "
                "such as CLIPModel or CLIPNModel"
            )
        lacking = [name for name in ("image_processor", "tokenizer") if getattr(processor, name, None) is None]
        if lacking:
            raise TypeError(
                f"the processor of {type(model).__name__} is {type(processor).__name__}, which has no "
                f"{', '.join(lacking)}; pass processor=, for example AutoProcessor.from_pretrained(...)"
            )
        scale = model.logit_scale.detach().float().exp().item()
        if not 0 < scale < float("inf"):
            raise ValueError(
                f"exp(logit_scale) of the checkpoint is {scale}: download the checkpoint or train it again"
            )
        asked = _floating_dtype(dtype)
        if device is not None:
            model.to(device)
        if model.device.type == "cpu":
            if asked not in (None, torch.float32):
                logger.warning(f"On a CPU everything is computed in float32, not in the {asked} that was asked for.")
            asked = torch.float32
        if asked is not None:
            model.to(asked)
        self.model = model.eval()
        self.processor = processor
        self.logit_scale = scale
        self._label_embeddings: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        processor: Any = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **hub_arguments: Any,
    ) -> Self:
        """Loads model and processor.

        Args:
            source (`str` or `os.PathLike`, *optional*):
                Hub id or folder of a CLIP, a CLIPN, or a peft adapter on one. By default the checkpoint inside this
                package, which is said on the log.
            processor (*optional*): In place of the one that belongs to `source`.
            device (`str` or `torch.device`, *optional*): By default the first accelerator, else the CPU.
            dtype (`str` or `torch.dtype`, *optional*, defaults to float32): As for the class.
            hub_arguments: `revision`, `token`, … of `from_pretrained`.

        Raises:
            IncompleteCheckpointError: The checkpoint lacks weights of its model.
            OSError: There is no such model.
        """
        if source is None:
            logger.warning(EMBEDDED_NOTICE)
            source = EMBEDDED_CHECKPOINT
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model = AutoDualEncoder.from_pretrained(source, **hub_arguments)
        if processor is None:
            try:
                processor = AutoProcessor.from_pretrained(source, **hub_arguments)
            except (OSError, ValueError):
                # An adapter that changes no tokens comes without a processor.
                if model.name_or_path == os.fspath(source):
                    raise
                processor = AutoProcessor.from_pretrained(model.name_or_path)
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
    def has_no_encoder(self) -> bool:
        """Whether the model has a "no" text encoder."""
        return hasattr(self.model, "get_no_text_features")

    def pixel_values(self, images: Sequence[ImageSource], start: int | None = 0) -> Tensor:
        """Reads images and prepares them for the image encoder.

        Args:
            images (sequence): What [`~clipn_hf.images.load_image`] reads: paths, addresses, bytes, PIL images, arrays.
            start (`int`, *optional*, defaults to 0):
                The position of the first image, by which errors call it; None leaves positions out.

        Returns:
            `torch.Tensor` of shape `(images, channels, height, width)`, float32, on the CPU.

        Raises:
            ImageError: An image cannot be read.
            TypeError: An image is of none of these types.
        """
        loaded = []
        for offset, image in enumerate(images):
            where = "" if start is None else f"image {start + offset}"
            try:
                loaded.append(load_image(image))
            except ImageError as error:
                raise ImageError(f"{where} ({error.source})" if where else error.source, error.reason) from error
            except TypeError as error:
                raise TypeError(f"{where}: {error}" if where else str(error)) from error
        return self.processor.image_processor(loaded, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """Embeds prepared images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): As `pixel_values()` gives them.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The embeddings are not finite.
        """
        features = self.model.get_image_features(pixel_values=pixel_values.to(self.device, self.dtype))
        return self._unit_norm(features.pooler_output, "image")

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Embeds texts as they are; a text that is too long is cut, which is said on the log.

        Args:
            prompts (`Sequence[str]`): Texts.

        Returns:
            `torch.Tensor` of shape `(prompts, dim)`, float32, unit norm, on the device of the model.

        Raises:
            ValueError: The embeddings are not finite.
        """
        embeddings, cut = self._embed_texts(self.model.get_text_features, "text", prompts)
        self._warn_of_cut([prompts[row] for row in cut])
        return embeddings

    def no_text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Embeds texts with the "no" text encoder; otherwise as `text_embeddings`.

        Raises:
            ValueError: The embeddings are not finite.
            TypeError: The model has no "no" text encoder.
        """
        if not self.has_no_encoder:
            raise TypeError(
                f'{type(self.model).__name__} has no "no" text encoder; make one with CLIPNModel.from_clip'
            )
        embeddings, cut = self._embed_texts(self.model.get_no_text_features, '"no" text', prompts)
        self._warn_of_cut([prompts[row] for row in cut])
        return embeddings

    def class_embeddings(
        self,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        use_no_encoder: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """One embedding per label, and one per label from the "no" text encoder.

        The embeddings of a label in all templates are normalised, averaged and normalised again. The results are kept
        for the most recent label sets, as long as the weights of the model stay the same: do not change them in place.

        Args:
            labels (`Sequence[str]`): One text per class.
            templates (`Sequence[str]`, *optional*):
                Texts with one `{}` for the label. By default those of the processor, else of the model, else
                `clipn_hf.prompts.DEFAULT_TEMPLATES`.
            no_templates (`Sequence[str]`, *optional*):
                The same for the "no" text encoder. By default `templates`, where those are given and the "no" prompts
                of the model are learnable; else those of the processor or model.
            use_no_encoder (`bool`, *optional*, defaults to `True`):
                Whether to run the "no" text encoder, if there is one.

        Returns:
            Two `torch.Tensor` of shape `(classes, dim)`, float32, unit norm, on the device of the model. The second is
            None without a "no" text encoder.

        Raises:
            TypeError, ValueError:
                Labels or templates that [`~clipn_hf.prompts.validate_labels`] or
                [`~clipn_hf.prompts.validate_templates`] refuse; embeddings that are not finite.
        """
        labels = validate_labels(labels)
        if no_templates is None and getattr(self.model.config, "no_prompt_type", None) == "learnable":
            no_templates = templates
        templates = self._templates("templates", templates)
        cut: dict[str, None] = {}
        text = self._embed_labels(self.model.get_text_features, "text", labels, templates, cut)
        no_text = None
        if self.has_no_encoder and use_no_encoder:
            no_templates = self._templates("no_templates", no_templates)
            no_text = self._embed_labels(self.model.get_no_text_features, '"no" text', labels, no_templates, cut)
        self._warn_of_cut(list(cut))
        return text, no_text

    def _templates(self, name: str, given: Sequence[str] | None) -> list[str]:
        if given is None:
            given = getattr(self.processor, name, None) or getattr(self.model.config, name, None) or DEFAULT_TEMPLATES
        return validate_templates(given, name)

    def _embed_labels(
        self, encode: Callable[..., Any], kind: str, labels: list[str], templates: list[str], cut: dict[str, None]
    ) -> Tensor:
        """Embeddings `(classes, dim)` of labels, from the cache where they are there. Adds cut labels to `cut`."""
        key = (kind, tuple(labels), tuple(templates), self._weights_state())
        if key in self._label_embeddings:
            self._label_embeddings.move_to_end(key)
            return self._label_embeddings[key]
        prompts = fill_templates(labels, templates)
        embeddings, cut_rows = self._embed_texts(encode, kind, prompts)
        cut.update(dict.fromkeys(labels[row // len(templates)] for row in cut_rows))
        embeddings = normalize(embeddings.unflatten(0, (len(labels), len(templates))).mean(dim=1), dim=-1)
        self._label_embeddings[key] = embeddings
        if len(self._label_embeddings) > MAX_CACHED_LABEL_SETS:
            self._label_embeddings.popitem(last=False)
        return embeddings

    @torch.no_grad()
    def _weights_state(self) -> tuple[Any, ...]:
        """Differs after any change of the weights, so that a model that is trained further is asked again."""
        parameters = list(self.model.parameters())
        # Changes in place raise the version of a tensor, except those of fused optimizers, which change every value.
        versions = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)
        values = torch.stack([p.flatten()[0].float() for p in parameters if p.numel()])
        return versions, tuple(values.tolist())

    @torch.no_grad()
    def _embed_texts(self, encode: Callable[..., Any], kind: str, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Embeddings `(prompts, dim)`, and the rows of the prompts that had to be cut."""
        tokenizer = self.processor.tokenizer
        max_length = min(tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        embeddings, cut = [], []
        for start in range(0, len(prompts), TEXT_BATCH_SIZE):
            batch = list(prompts[start : start + TEXT_BATCH_SIZE])
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            full = (tokens["attention_mask"].sum(dim=1) == max_length).nonzero().flatten().tolist()
            if full:
                longer = tokenizer([batch[row] for row in full], truncation=True, max_length=max_length + 1)
                lengths = map(len, longer["input_ids"])
                cut += [start + row for row, length in zip(full, lengths, strict=True) if length > max_length]
            features = encode(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            )
            embeddings.append(self._unit_norm(features.pooler_output, kind))
        return torch.cat(embeddings), cut

    def _warn_of_cut(self, texts: list[str]) -> None:
        for text in texts:
            shown = text if len(text) <= 60 else f"{text[:60]}…"
            logger.warning(f"{shown!r} is too long for the text encoder, and its end is ignored: shorten it.")

    def _unit_norm(self, features: Tensor, kind: str) -> Tensor:
        embeddings = normalize(features.float(), dim=-1)
        if torch.isfinite(embeddings).all():
            return embeddings
        damaged = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        if damaged:
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            raise ValueError(
                f"the {kind} embeddings are not finite, because these weights of the checkpoint are NaN or infinite: "
                f"{', '.join(damaged[:3])}{more}; train or download it again"
            )
        raise ValueError(
            f"the {kind} embeddings are not finite though all weights are: the model overflows in {self.dtype}; "
            "compute in dtype=torch.float32 or torch.bfloat16"
        )


def _floating_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as torch.float16, but got {dtype!r}")
    return found
