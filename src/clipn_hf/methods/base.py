# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detection method is made of.

The table of methods can be read without torch, which takes seconds to import: the functions import what they need.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Need = Literal["global", "no", "training", "training_labels", "negatives", "text_encoder", "sigmoid"]

NEEDS: Mapping[Need, str] = MappingProxyType(
    {
        "global": "a model with `get_image_features` and `get_text_features`",
        "no": 'a CLIPN model with a "no" text encoder',
        "training": "ID images to be fitted on",
        "training_labels": "the labels of these images",
        "negatives": "negative labels",
        "text_encoder": "a model that can embed further texts",
        "sigmoid": "a model that was trained with a sigmoid loss, such as SigLIP",
    }
)

# What the zero-shot pipelines of transformers call the same.
OTHER_NAMES: Mapping[str, str] = MappingProxyType({"hypothesis_template": "templates"})


@dataclass(frozen=True)
class MethodInputs:
    """Everything a method may look at: one batch of images against one set of labels, float32.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`): Cosines between images and class texts, in [-1, 1].
        logits (`torch.Tensor` of shape `(batch, classes)`):
            The cosines times the logit scale, plus the logit bias of models that have one.
        no_logits (`torch.Tensor` of shape `(batch, classes)`, *optional*):
            The same for the "no" texts; None unless the method needs them.
        image_embeddings (`torch.Tensor` of shape `(batch, dim)`, *optional*): Those of the images, of unit norm.
        state (`Mapping[str, torch.Tensor]`, *optional*): What fitting the method gave.
        negative_embeddings (`torch.Tensor` of shape `(negatives, dim)`, *optional*):
            Those of the negative labels, of unit norm; None unless the method needs them.
        embed_pairs (`Callable`, *optional*):
            Positions `(pairs, 2)`, int64, of a class and a negative label, to the embeddings `(pairs, dim)` of the
            texts "<label> and <negative label>", float32, of unit norm; None unless the method needs a text encoder.
    """

    similarity: "Tensor"
    logits: "Tensor"
    no_logits: "Tensor | None" = None
    image_embeddings: "Tensor | None" = None
    state: "Mapping[str, Tensor]" = field(default_factory=dict)
    negative_embeddings: "Tensor | None" = None
    embed_pairs: "Callable[[Tensor], Tensor] | None" = None


@dataclass(frozen=True)
class TrainingInputs:
    """Everything a method may be fitted on.

    Args:
        image_embeddings (`torch.Tensor` of shape `(images, dim)`): Of ID images, float32, of unit norm, on the CPU.
        labels (`torch.Tensor` of shape `(images,)`, *optional*): Which of the classes each image shows, int64.
        num_classes (`int`): How many classes there are.
    """

    image_embeddings: "Tensor"
    labels: "Tensor | None"
    num_classes: int


def method_inputs(
    image_embeddings: "Tensor",
    text_embeddings: "Tensor",
    no_text_embeddings: "Tensor | None" = None,
    logit_scale: float = 1.0,
    state: "Mapping[str, Tensor] | None" = None,
    negative_embeddings: "Tensor | None" = None,
    embed_pairs: "Callable[[Tensor], Tensor] | None" = None,
    logit_bias: float = 0.0,
) -> MethodInputs:
    """Compare images with class texts.

    Args:
        image_embeddings (`torch.Tensor` of shape `(batch, dim)`): Of any norm and floating dtype.
        text_embeddings (`torch.Tensor` of shape `(classes, dim)`): As `DualEncoder.class_embeddings` gives them:
            float32, unit norm, on the same device.
        no_text_embeddings (`torch.Tensor` of shape `(classes, dim)`, *optional*): The same of the "no" text encoder.
        logit_scale (`float`, *optional*, defaults to 1.0):
            The factor between cosines and logits, `exp` of the parameter of that name.
        state (`Mapping[str, torch.Tensor]`, *optional*): What fitting the method gave.
        negative_embeddings (`torch.Tensor` of shape `(negatives, dim)`, *optional*):
            Those of the negative labels: float32, unit norm, on the same device.
        embed_pairs (`Callable`, *optional*):
            Positions `(pairs, 2)`, int64, of a class and a negative label, to the embeddings `(pairs, dim)` of the
            texts "<label> and <negative label>": float32, unit norm, on the same device.
        logit_bias (`float`, *optional*, defaults to 0.0):
            What is added to the logits, `logit_bias` of models that were trained with a sigmoid loss.

    Returns:
        [`MethodInputs`]: Cosines and logits of shape `(batch, classes)`, float32.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.methods import method_inputs
    >>> method_inputs(torch.tensor([[3.0, 4.0]]), torch.eye(2), logit_scale=10.0).logits
    tensor([[6., 8.]])

    ```
    """
    from torch.nn.functional import normalize

    image_embeddings = normalize(image_embeddings.float(), dim=1)
    similarity = image_embeddings @ text_embeddings.T  # (batch, classes)
    logits = logit_scale * similarity + logit_bias
    no_logits = None
    if no_text_embeddings is not None:
        no_logits = logit_scale * (image_embeddings @ no_text_embeddings.T) + logit_bias
    return MethodInputs(similarity, logits, no_logits, image_embeddings, state or {}, negative_embeddings, embed_pairs)


@dataclass(frozen=True)
class Method:
    """One way to tell known from unknown: a row of `METHODS`.

    Args:
        name (`str`): What users call it by.
        title (`str`): Its name in full.
        reference (`str`): The arXiv id of its paper.
        needs (`frozenset` of keys of `NEEDS`): What must be there: of the model, and to be fitted on.
        score (`Callable`):
            `(inputs, **settings)` to OOD-ness of shape `(batch,)`, float32, higher = more OOD.
        is_ood (`Callable`, *optional*):
            The threshold-free decision, `(inputs)` to bool of shape `(batch,)`; None where only a threshold decides.
        min_labels (`int`, *optional*, defaults to 1): With fewer labels the score has no meaning.
        fit (`Callable`, *optional*):
            `(training_inputs, **settings)` to what `score` finds as `inputs.state`: tensors by name. Needed by exactly
            those methods that need "training".
        uses_text (`bool`, *optional*, defaults to `True`):
            Whether class texts enter the score; if not, templates do not matter.
        text_contrast (`float`, *optional*):
            With what `contrast` [`~clipn_hf.calibration.starting_threshold`] guesses a threshold from texts alone;
            None where it cannot.
        templates (`tuple` of `str`, *optional*):
            What labels are put into unless the user names other templates or the model brings some along, of which
            then the first is used; empty for all those of the model.
        mining (`Mapping[str, Any]`, *optional*):
            The arguments that mining negative labels gets unless the user names others.

    The parameters of `score` and `fit` after the first, with their defaults, are the settings of the method.
    """

    name: str
    title: str
    reference: str
    needs: frozenset[Need]
    score: "Callable[..., Tensor]"
    is_ood: "Callable[[MethodInputs], Tensor] | None" = None
    min_labels: int = 1
    fit: "Callable[..., dict[str, Tensor]] | None" = None
    uses_text: bool = True
    text_contrast: float | None = None
    templates: tuple[str, ...] = ()
    mining: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `score` and `fit` with their defaults."""
        return _defaults(self.score) | _defaults(self.fit)

    def settings_of(self, function: "Callable[..., Any] | None", settings: Mapping[str, Any]) -> dict[str, Any]:
        """Select the settings that one of the two functions takes.

        Args:
            function (`Callable`, *optional*): `score` or `fit`.
            settings (`Mapping`): All settings.

        Returns:
            `dict`: Those that are parameters of `function`.
        """
        return {name: settings[name] for name in _defaults(function) if name in settings}

    def resolve_settings(self, settings: Mapping[str, Any], options: Sequence[str] = ()) -> dict[str, Any]:
        """Complete `settings` with the defaults.

        Args:
            settings (`Mapping`): Settings by name.
            options (`Sequence[str]`, *optional*):
                Names that the caller takes besides settings; the error lists and suggests them, too.

        Returns:
            `dict`: All settings of the method.

        Raises:
            TypeError: A setting that the method does not have.
        """
        defaults = self.settings
        for name in settings:
            if name not in defaults:
                raise unknown_argument(f"Method {self.name}", name, [*defaults, *options])
        return {**defaults, **settings}


def _defaults(function: Callable[..., Any] | None) -> dict[str, Any]:
    if function is None:
        return {}
    parameters = list(inspect.signature(function).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters[1:]}


def unknown_argument(owner: str, name: str, known: Sequence[str]) -> TypeError:
    """Word the error of an argument that does not exist.

    Args:
        owner (`str`): What the argument was given to.
        name (`str`): The argument.
        known (`Sequence[str]`): The arguments that exist; the closest one is suggested.

    Returns:
        `TypeError`: To be raised.
    """
    close = [other for other in (OTHER_NAMES.get(name),) if other in known]
    close += difflib.get_close_matches(name, known, n=1)
    suggestion = f", did you mean `{close[0]}`?" if close else "."
    listed = ", ".join(f"`{one}`" for one in known)
    return TypeError(f"{owner} does not know `{name}`{suggestion} Known are: {listed or 'none'}.")
