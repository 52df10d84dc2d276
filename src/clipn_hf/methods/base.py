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
    import torch
    from torch import Tensor

Need = Literal[
    "global",
    "no",
    "training",
    "training_labels",
    "negatives",
    "text_encoder",
    "sigmoid",
    "pixels",
    "patches",
    "unknown",
]

NEEDS: Mapping[Need, str] = MappingProxyType(
    {
        "global": "a model with `get_image_features` and `get_text_features`",
        "no": 'a CLIPN model with a "no" text encoder',
        "training": "ID images to be fitted on",
        "training_labels": "the labels of these images",
        "negatives": "negative labels",
        "text_encoder": "a model that can embed further texts",
        "sigmoid": "a model that was trained with a sigmoid loss, such as SigLIP",
        "pixels": "images, and a model to differentiate through",
        "patches": "images, and a model that embeds their patches as texts are embedded",
        "unknown": 'a model with a learned "unknown" prompt, such as CLIP-OS trains',
    }
)

# From what was learned, the settings, the labels and the templates, to what a detector remembers of it.
Report = Callable[
    [Mapping[str, "Tensor"], Mapping[str, Any], Sequence[str], Sequence[str]],
    dict[str, Any],
]

# What the zero-shot pipelines of transformers, and optimizers, call the same.
OTHER_NAMES: Mapping[str, str] = MappingProxyType({"hypothesis_template": "templates", "lr": "learning_rate"})


@dataclass(frozen=True)
class MethodInputs:
    """Everything a method may look at: one batch of images against one set of labels, float32.

    Args:
        similarity (`torch.Tensor` of shape `(batch, classes)`): Cosines between images and class texts, in [-1, 1].
        logits (`torch.Tensor` of shape `(batch, classes)`):
            The cosines times the logit scale, plus the logit bias of models that have one; or those of the classifier
            that the method has learned.
        no_logits (`torch.Tensor` of shape `(batch, classes)`, *optional*):
            The same for the "no" texts; None unless the method needs them.
        image_embeddings (`torch.Tensor` of shape `(batch, dim)`, *optional*): Those of the images, of unit norm.
        state (`Mapping[str, torch.Tensor]`, *optional*): What fitting the method gave.
        negative_embeddings (`torch.Tensor` of shape `(negatives, dim)`, *optional*):
            Those of the negative labels, of unit norm; None unless the method needs them.
        embed_pairs (`Callable`, *optional*):
            Positions `(pairs, 2)`, int64, of a class and a negative label, to the embeddings `(pairs, dim)` of the
            texts "<label> and <negative label>", float32, of unit norm; None unless the method needs a text encoder.
        text_embeddings (`torch.Tensor` of shape `(classes, dim)`, *optional*): Those of the class texts, of unit norm.
        logit_scale (`float`, *optional*, defaults to 1.0): The factor between cosines and logits.
        logit_bias (`float`, *optional*, defaults to 0.0): What is added to the logits.
        patch_summary (`torch.Tensor` of shape `(batch,)`, *optional*):
            What `Method.summarize` keeps of the patches of each image; None unless the method reads patches.
        unknown_similarity (`torch.Tensor` of shape `(batch,)`, *optional*):
            Cosines between images and the "unknown" prompt, in [-1, 1]; None unless the method needs that.
    """

    similarity: "Tensor"
    logits: "Tensor"
    no_logits: "Tensor | None" = None
    image_embeddings: "Tensor | None" = None
    state: "Mapping[str, Tensor]" = field(default_factory=dict)
    negative_embeddings: "Tensor | None" = None
    embed_pairs: "Callable[[Tensor], Tensor] | None" = None
    text_embeddings: "Tensor | None" = None
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    patch_summary: "Tensor | None" = None
    unknown_similarity: "Tensor | None" = None


@dataclass(frozen=True)
class TrainingInputs:
    """Everything a method may be fitted on.

    Args:
        image_embeddings (`torch.Tensor` of shape `(images, dim)`):
            Of ID images, float32, of unit norm, on the CPU. Methods may keep this tensor itself, because a copy of a
            million images takes gigabytes: nobody may change it afterwards.
        labels (`torch.Tensor` of shape `(images,)`, *optional*): Which of the classes each image shows, int64.
        num_classes (`int`): How many classes there are.
        text_embeddings (`torch.Tensor` of shape `(classes, dim)`, *optional*):
            Those of the class texts, float32, of unit norm.
        logit_scale (`float`, *optional*, defaults to 1.0): The factor between cosines and logits.
        logit_bias (`float`, *optional*, defaults to 0.0): What is added to the logits.
        class_names (`tuple` of `str`, *optional*): What errors and warnings call the classes.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to compute what takes long; what `fit` returns is on the CPU.
    """

    image_embeddings: "Tensor"
    labels: "Tensor | None"
    num_classes: int
    text_embeddings: "Tensor | None" = None
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    class_names: tuple[str, ...] | None = None
    device: "str | torch.device" = "cpu"


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
    import torch
    from torch.nn.functional import normalize

    # Scores are in float32, also where their user computes in another dtype.
    with torch.autocast(image_embeddings.device.type, enabled=False):
        image_embeddings = normalize(image_embeddings.float(), dim=1)
        similarity = image_embeddings @ text_embeddings.T  # (batch, classes)
        logits = logit_scale * similarity + logit_bias
        no_logits = None
        if no_text_embeddings is not None:
            no_logits = logit_scale * (image_embeddings @ no_text_embeddings.T) + logit_bias
    return MethodInputs(
        similarity,
        logits,
        no_logits,
        image_embeddings,
        state or {},
        negative_embeddings,
        embed_pairs,
        text_embeddings,
        logit_scale,
        logit_bias,
    )


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
            Whether class texts enter the score, or what it was fitted on; if not, templates do not matter.
        same_fit (`Callable`, *optional*):
            `(settings, other_settings)` to whether what `fit` learns with the former serves `score` with the latter;
            by default where the settings of `fit` are equal.
        text_contrast (`float`, *optional*):
            With what `contrast` [`~clipn_hf.calibration.starting_threshold`] guesses a threshold from texts alone;
            None where it cannot.
        templates (`tuple` of `str`, *optional*):
            What labels are put into unless the user names other templates or the model brings some along, of which
            then the first is used; empty for all those of the model.
        ensemble (`bool`, *optional*, defaults to `False`):
            Whether `templates` are meant together, so that of a model that brings some along all are used.
        mining (`Mapping[str, Any]`, *optional*):
            The arguments that mining negative labels gets unless the user names others.
        classify (`Callable`, *optional*):
            `(inputs)` to the logits `(batch, classes)`, float32, of a classifier that `fit` has trained. They take the
            place of those of the class texts: `score` finds them as `inputs.logits`, and predictions are theirs.
        max_score (`float`, *optional*):
            The score that is reached in float32 and cannot be exceeded, so that as a threshold it calls nothing OOD.
        perturb (`Callable`, *optional*):
            `(pixel_values, compare, std, **settings)` to the pixel values that are judged in place of those. `compare`
            embeds pixel values, differentiably, and gives [`MethodInputs`]; `std` is the standard deviation by which
            the image processor divides, to be broadcast against pixel values. Needed by exactly those methods that
            need "pixels".
        summarize (`Callable`, *optional*):
            `(patch_similarity, **settings)` to the one number per image, `(batch,)`, float32, that is kept of its
            patches, because all of them would take hundreds of times the memory of the embedding. `patch_similarity`
            `(batch, patches, classes)`, float32, are cosines between patches and class texts. Needed by those methods
            that need "patches"; others may read patches with some settings, see `reads_patches`.
        reads_patches (`Callable`, *optional*):
            `(settings)` to whether `summarize` is needed with these settings; by default with all.
        min_patch_labels (`int`, *optional*, defaults to 1): With fewer labels `summarize` has no meaning.
        check (`Callable`, *optional*):
            `(settings)`, all of them, to an error where one is wrong whatever the images are, so that this is said
            before the images are looked at.
        report (`Callable`, *optional*):
            `(state, settings, labels, templates)` to what else a detector remembers of the images that it was fitted
            on, by name, of what JSON knows.

    The parameters of `score`, `fit`, `perturb` and `summarize` that have defaults are the settings of the method.
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
    same_fit: "Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None" = None
    text_contrast: float | None = None
    templates: tuple[str, ...] = ()
    ensemble: bool = False
    mining: Mapping[str, Any] = field(default_factory=dict, hash=False)
    classify: "Callable[[MethodInputs], Tensor] | None" = None
    max_score: float | None = None
    perturb: "Callable[..., Tensor] | None" = None
    summarize: "Callable[..., Tensor] | None" = None
    reads_patches: Callable[[Mapping[str, Any]], bool] | None = None
    min_patch_labels: int = 1
    check: Callable[[Mapping[str, Any]], None] | None = None
    report: Report | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `score`, `fit`, `perturb` and `summarize` with their defaults."""
        return _defaults(self.score) | _defaults(self.fit) | _defaults(self.perturb) | _defaults(self.summarize)

    def summarizes_patches(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether patches of images matter to the method.

        Args:
            settings (`Mapping`): All settings.

        Returns:
            `bool`
        """
        return self.summarize is not None and (self.reads_patches is None or self.reads_patches(settings))

    def labels_needed(self, settings: Mapping[str, Any]) -> int:
        """Count the labels without which the score has no meaning.

        Args:
            settings (`Mapping`): All settings.

        Returns:
            `int`
        """
        return max(self.min_labels, self.min_patch_labels) if self.summarizes_patches(settings) else self.min_labels

    def judges_images(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether the method needs images to judge them: embeddings do not tell all that it looks at.

        Args:
            settings (`Mapping`): All settings.

        Returns:
            `bool`
        """
        return self.perturb is not None or self.summarizes_patches(settings)

    def settings_of(self, function: "Callable[..., Any] | None", settings: Mapping[str, Any]) -> dict[str, Any]:
        """Select the settings that one of the functions takes.

        Args:
            function (`Callable`, *optional*): `score`, `fit`, `perturb` or `summarize`.
            settings (`Mapping`): All settings.

        Returns:
            `dict`: Those that are parameters of `function`.
        """
        return {name: settings[name] for name in _defaults(function) if name in settings}

    def learns_the_same(self, settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Tell whether what is learned with some settings serves with others.

        Args:
            settings (`Mapping`): All settings that the method was fitted with.
            other (`Mapping`): All settings that it is to judge with.

        Returns:
            `bool`
        """
        if self.same_fit is not None:
            return self.same_fit(settings, other)
        return self.settings_of(self.fit, settings) == self.settings_of(self.fit, other)

    def resolve_settings(self, settings: Mapping[str, Any], options: Sequence[str] = ()) -> dict[str, Any]:
        """Complete `settings` with the defaults.

        Args:
            settings (`Mapping`): Settings by name.
            options (`Sequence[str]`, *optional*):
                Names that the caller takes besides settings; the error lists and suggests them, too.

        Returns:
            `dict`: All settings of the method.

        Raises:
            TypeError: A setting that the method does not have, or of the wrong type.
            ValueError: A setting that is wrong whatever the images are.
        """
        defaults = self.settings
        for name in settings:
            if name not in defaults:
                raise unknown_argument(f"Method {self.name}", name, [*defaults, *options])
        resolved = {**defaults, **settings}
        if self.check is not None:
            self.check(resolved)
        return resolved


def _defaults(function: Callable[..., Any] | None) -> dict[str, Any]:
    if function is None:
        return {}
    parameters = inspect.signature(function).parameters.values()
    # What has no default is what the function works on.
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


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
