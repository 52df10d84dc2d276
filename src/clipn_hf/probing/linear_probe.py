# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`LinearProbe`: a linear classifier on image embeddings, saved and published as models are."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from ..files import atomic_path
from ..hub_names import EMBEDDED_NAME, is_hub_id, public_name
from ..scores._checks import check_features, check_whole

_MAX_LABELS = 200
# Of some old repositories, ids have no owner.
_HUB_ID = r"[\w.-]+(/[\w.-]+)?"


class LinearProbe(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="clipn_hf",
    tags=["clipn_hf", "linear-probe", "ood-detection", "out-of-distribution"],
):
    r"""Classify images by their embeddings: \\( W (f / \|f\| - \mu) / \sigma + b \\).

    [`~clipn_hf.probing.train_linear_probe`] makes one; a new one has zeros for weights. It is saved as
    `model.safetensors` and `config.json` by `save_pretrained`, published by `push_to_hub`, and loaded by
    `from_pretrained`, which refuses damaged files. [`OODDetector.from_probe`] makes a detector of it.

    Args:
        dim (`int`): The width of the embeddings.
        num_classes (`int`): How many classes there are, at least 2.
        labels (`list[str]`, *optional*): Their names.
        encoder (`dict`, *optional*):
            What the embeddings come from, as [`~clipn_hf.digests.describe_image_encoder`] describes it.
        trained_on (`dict`, *optional*): On what the probe was trained, and how; of what JSON knows.

    Attributes:
        weight (`torch.nn.Parameter` of shape `(num_classes, dim)`): \\( W \\).
        bias (`torch.nn.Parameter` of shape `(num_classes,)`): \\( b \\).
        mean (`torch.Tensor` of shape `(dim,)`): \\( \mu \\), of the training images.
        std (`torch.Tensor` of shape `(dim,)`): \\( \sigma \\), positive.

    Raises:
        TypeError: Labels that are not texts, numbers that are not whole.
        ValueError: `dim` or `num_classes` is too small, or there is not one label per class.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.probing import train_linear_probe
    >>> features, labels = torch.eye(8).repeat(4, 1), torch.arange(8).repeat(4) // 4
    >>> probe = train_linear_probe(features, labels, class_names=["cat", "dog"], device="cpu", progress=False)
    >>> probe(features[:1]).shape
    torch.Size([1, 2])
    >>> [probe.labels[label] for label in probe(features[:2]).argmax(dim=1)]
    ['cat', 'cat']

    ```
    """

    weight: nn.Parameter
    bias: nn.Parameter
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        labels: list[str] | None = None,
        encoder: dict[str, Any] | None = None,
        trained_on: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        dim, num_classes = check_whole(dim, "dim"), check_whole(num_classes, "num_classes")
        for name, value, minimum in (("dim", dim, 1), ("num_classes", num_classes, 2)):
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
        self.dim = dim
        self.num_classes = num_classes
        self.labels = check_class_names(labels, num_classes)
        self.encoder = encoder
        self.trained_on = trained_on
        self.weight = nn.Parameter(torch.zeros(num_classes, dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_classes={self.num_classes}"

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits of images.

        Args:
            features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, of any norm and floating dtype.

        Returns:
            `torch.Tensor` of shape `(batch, num_classes)`, float32.

        Raises:
            TypeError: `features` is not a tensor.
            ValueError: Embeddings of another width, or not finite.
        """
        shape = tuple(getattr(features, "shape", ()))
        if shape and (len(shape) != 2 or shape[1] != self.dim):
            raise ValueError(f"`features` must have shape (images, {self.dim}) for this probe, got {shape}.")
        features = check_features(features, "features")
        return probe_logits(features, self.weight, self.bias, self.mean, self.std)

    def to_config(self) -> dict[str, Any]:
        """Collect what `config.json` has: the arguments of the class as they are now."""
        return {
            "dim": self.dim,
            "num_classes": self.num_classes,
            "labels": check_class_names(self.labels, self.num_classes),
            "encoder": self.encoder,
            "trained_on": self.trained_on,
        }

    def check(self) -> None:
        """Check that the probe can classify.

        Raises:
            ValueError: Tensors of another shape or dtype, or values that are not finite.
        """
        _check_tensors(dict(self.state_dict()), self.dim, self.num_classes, "The probe")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Compose the card that is saved with the probe: its labels, its encoder, its training."""
        encoder, trained_on = self.encoder or {}, self.trained_on or {}
        source, finetuning = encoder.get("id"), trained_on.get("finetuning")
        is_on_hub = source is not None and is_hub_id(source)
        model, where, base = '"path/to/the/model"', None, source
        if is_on_hub:
            model = f'"{source}"'
        elif isinstance(finetuning, Mapping):
            # It was trained together with the encoder, which is saved around it.
            model, where, base = '"path/to/the/folder/above"', "in the folder above", finetuning.get("base")
        elif source == EMBEDDED_NAME and not os.path.exists(source):
            model, where = "None", "embedded in clipn-hf"
        name = f"`{_inline(public_name(source))}`" if source else None
        metadata = ModelCardData(
            library_name="clipn_hf",
            tags=self._hub_mixin_info.model_card_data.tags,
            base_model=base if base and is_hub_id(base) else None,
        )
        names = ", ".join(f"`{_inline(label)}`" for label in (self.labels or [])[:_MAX_LABELS])
        further = len(self.labels or []) - _MAX_LABELS
        more = f" and {further:,} more" if further > 0 else ""
        digest = f"SHA-256 of what embeds images `{encoder['sha256'][:16]}…`" if "sha256" in encoder else None
        rows = {
            "Encoder": ", ".join(part for part in (name, where, digest) if part),
            "Embeddings": f"{self.dim} dimensions, of unit norm",
            **_describe_training(trained_on),
        }
        table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value)
        return ModelCard(
            f"""---
{metadata.to_yaml().strip()}
---

# Linear probe

Classifies images of {self.num_classes:,} things by their embeddings, and tells them from images of anything else.

```python
from clipn_hf import OODDetector
from clipn_hf.probing import LinearProbe

probe = LinearProbe.from_pretrained("path/to/this")
detector = OODDetector.from_probe({model}, probe)
```

{names}{more}

|  |  |
| --- | --- |
{table}
"""
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        config = json.dumps(self.to_config(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        self.check()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_path(save_directory / SAFETENSORS_SINGLE_FILE) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        with atomic_path(save_directory / CONFIG_NAME) as partial:
            partial.write_text(config, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a probe that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            kwargs: `revision`, `token`, `cache_dir`, … of [`~huggingface_hub.PyTorchModelHubMixin.from_pretrained`].

        Returns:
            [`LinearProbe`]: In evaluation mode, on the CPU.

        Raises:
            OSError: There is none, or the Hub cannot be reached.
            ValueError: A file is missing or damaged.
        """
        source = os.fspath(pretrained_model_name_or_path)
        parent = os.path.dirname(source)
        is_local = re.fullmatch(_HUB_ID, source) is None or (parent and os.path.isdir(parent))
        if is_local and not os.path.isdir(source):
            # The Hub would be asked again and again before it turns out that it has no such name.
            raise FileNotFoundError(
                f"There is no folder {source}; name one that `LinearProbe.save_pretrained` wrote, or the id of one on "
                "the Hub."
            )
        try:
            return super().from_pretrained(source, **kwargs)
        except LocalEntryNotFoundError as error:
            raise OSError(
                f"There is no folder {source}, and no probe of that name on the Hub can be reached ({error})."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(
                f"The {CONFIG_NAME} of the probe {source} is not what clipn-hf writes there ({error}); save or "
                "download it again."
            ) from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        where = f"The probe {model_id}"
        again = "save or download it again."
        if os.path.isdir(model_id):
            file = os.path.join(model_id, SAFETENSORS_SINGLE_FILE)
            if not os.path.isfile(file):
                raise ValueError(f"{where} lacks {SAFETENSORS_SINGLE_FILE}; {again}")
        else:
            try:
                file = hf_hub_download(
                    model_id,
                    SAFETENSORS_SINGLE_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            except LocalEntryNotFoundError:
                # The Hub cannot be reached, which says nothing of the probe.
                raise
            except EntryNotFoundError as error:
                raise ValueError(f"{where} lacks {SAFETENSORS_SINGLE_FILE}; {again}") from error
        lacking = [name for name in ("dim", "num_classes") if name not in model_kwargs]
        if lacking:
            raise ValueError(f"{where} has no {CONFIG_NAME} with {' and '.join(lacking)}; {again}")
        try:
            probe = cls(**model_kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} has a damaged {CONFIG_NAME} ({error}); {again}") from error
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{where} has a damaged {SAFETENSORS_SINGLE_FILE} ({error}); {again}") from error
        _check_tensors(tensors, probe.dim, probe.num_classes, where)
        # Copies, because matrix products round differently at the odd addresses of what is in a file.
        probe.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
        return probe.to(map_location).eval()


def probe_logits(features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute what a [`LinearProbe`] with these tensors does.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, of any norm and floating dtype.
        weight (`torch.Tensor` of shape `(classes, dim)`): Float32, as all that follow.
        bias (`torch.Tensor` of shape `(classes,)`): One per class.
        mean (`torch.Tensor` of shape `(dim,)`): What is subtracted from embeddings of unit norm.
        std (`torch.Tensor` of shape `(dim,)`): By what the difference is divided.

    Returns:
        `torch.Tensor` of shape `(batch, classes)`, float32.
    """
    # Float32 also where a surrounding `autocast` would round the product.
    with torch.autocast(features.device.type, enabled=False):
        return linear((normalize(features.float(), dim=1) - mean) / std, weight, bias)


def check_class_names(names: Any, num_classes: int, argument: str = "labels") -> list[str] | None:
    """Check that there is one name per class, and none twice.

    Args:
        names (`Sequence[str]`, *optional*): What was given.
        num_classes (`int`): How many there must be.
        argument (`str`, *optional*, defaults to `"labels"`): How errors call them.

    Returns:
        `list[str]`, or None if there are none.

    Raises:
        TypeError: They are not texts.
        ValueError: There are more or fewer, or one comes twice.
    """
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{argument}` must be a list of strings, one per class, got {names!r}.")
    if len(names) != num_classes:
        raise ValueError(f"`{argument}` must be one name for each of {num_classes} classes, got {len(names)}.")
    if len({*names}) < len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise ValueError(f"`{argument}` has {twice!r} twice; each class must have a name of its own.")
    return list(names)


def _check_tensors(tensors: Mapping[str, Tensor], dim: int, num_classes: int, where: str) -> None:
    shapes = {"weight": (num_classes, dim), "bias": (num_classes,), "mean": (dim,), "std": (dim,)}
    wrong = sorted(shapes.keys() ^ tensors.keys())
    if wrong:
        raise ValueError(f"{where} has tensors in which {', '.join(wrong)} is missing or not known; train it again.")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"{where} has `{name}` of shape {tuple(tensor.shape)} and {tensor.dtype}, but its configuration asks "
                f"for {shape} and torch.float32; save or download it again."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where} has NaN or infinite values in `{name}`; train it again.")
    if not (tensors["std"] > 0).all():
        raise ValueError(f"{where} has values in `std` that are not positive; train it again.")


def _describe_training(trained_on: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the card on what [`~clipn_hf.probing.train_linear_probe`] and others tell of the training."""
    rest = dict(trained_on)
    images, labelled, date, digest = (rest.pop(name, None) for name in ("images", "labelled", "date", "sha256"))
    of_images = [f"{images:,}" if isinstance(images, int) else None]
    if labelled is not None:
        of_images.append("with labels" if labelled else "without labels")
    of_images += [date, f"SHA-256 `{digest[:16]}…`" if digest else None]
    rows = {"Training images": ", ".join(str(part) for part in of_images if part)}
    for prefix, where in (("", "training"), ("validation_", "validation")):
        accuracy, loss = rest.pop(f"{prefix}accuracy", None), rest.pop(f"{prefix}loss", None)
        known = [
            f"accuracy {accuracy:.1%}" if accuracy is not None else "",
            f"loss {loss:.4g}" if loss is not None else "",
        ]
        rows[f"On the {where} images"] = ", ".join(part for part in known if part)
    for name in [name for name, value in rest.items() if isinstance(value, Mapping)]:
        told = dict(rest.pop(name))
        if told.get("base"):
            told["base"] = public_name(str(told["base"]))
        rows[name.replace("_", " ").capitalize()] = _list_settings(told)
    return {**rows, "Settings": _list_settings(rest)}


def _list_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` = {_inline(str(value))}" for name, value in settings.items())


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = ["LinearProbe", "check_class_names", "probe_logits"]
