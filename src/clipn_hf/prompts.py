# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Templates that turn labels into prompts, and the "no" templates of CLIPN (arXiv 2308.12213, section 3.2).

`DEFAULT_TEMPLATES[i]` and `NO_TEMPLATES[i]` are a pair: the second says of an image that it does *not* show what the
first says it shows. A checkpoint with learnable "no" prompts feeds the plain templates to both text encoders, one with
hand-crafted prompts feeds the pairs.
"""

from collections.abc import Sequence
from typing import Any

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo with a {}.",
    "a photo showing a {}.",
    "this is a {}.",
)
NO_TEMPLATES: tuple[str, ...] = (
    "a photo of no {}.",
    "a photo without a {}.",
    "a photo not showing a {}.",
    "this is not a {}.",
)


def validate_texts(values: object, name: str, example: str = '["cat", "dog"]') -> list[str]:
    """Check what labels, templates and other texts have in common, and return them as a list.

    Args:
        values (`Sequence[str]`): Some texts, of which none is blank. The same may come again.
        name (`str`): How error messages call the argument.
        example (`str`, *optional*, defaults to `'["cat", "dog"]'`): What they show as one that is right.

    Returns:
        `list[str]`: The same texts. Strings of numpy and other subclasses become `str`.

    Raises:
        TypeError: `values` is a string or not a sequence, or one of them is not a string.
        ValueError: There are none, or one is empty or blank.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(
            f"`{name}` must be a list of strings such as {example}, got {type(values).__name__}: {values!r}."
        )
    if len(values) == 0:
        raise ValueError(f"`{name}` is empty; give at least one, such as {example}.")
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(
                f"`{name}[{position}]` must be a string, got {type(value).__name__}: {value!r}. "
                f"Convert it first, for example with `str(...)`."
            )
        if not value.strip():
            raise ValueError(f"`{name}[{position}]` is empty or blank ({value!r}); remove it or give it a text.")
    # `str()` would ask subclasses, of which those of enumerations give the name of a member instead.
    return [str.__str__(value) for value in values]


def validate_labels(labels: Sequence[str], name: str = "labels") -> list[str]:
    """Check a list of class labels and return it as a list, unchanged in content and order.

    Args:
        labels (`Sequence[str]`): One text per class. One label is allowed here; some scores need two.
        name (`str`, *optional*, defaults to `"labels"`): How error messages call the argument.

    Returns:
        `list[str]`: The labels.

    Raises:
        TypeError: `labels` is a string or not a sequence, or one of the labels is not a string.
        ValueError: No labels, an empty or blank label, or the same label twice.

    Example:

    ```python
    >>> from clipn_hf.prompts import validate_labels
    >>> validate_labels(("cat", "dog"))
    ['cat', 'dog']

    ```
    """
    checked = validate_texts(labels, name)
    first_seen: dict[str, int] = {}
    for position, label in enumerate(checked):
        if label in first_seen:
            raise ValueError(
                f"`{name}` contains {label!r} twice (positions {first_seen[label]} and {position}); "
                f"each must be another one, remove the duplicate."
            )
        first_seen[label] = position
    return checked


def validate_templates(templates: Sequence[str], name: str = "templates") -> list[str]:
    """Check a list of templates and return it as a list.

    Args:
        templates (`Sequence[str]`): Texts with exactly one `{}`, the place of the label.
        name (`str`, *optional*, defaults to `"templates"`): How error messages call the argument.

    Returns:
        `list[str]`: The templates.

    Raises:
        TypeError: `templates` is a string or not a sequence, or one of the templates is not a string.
        ValueError: No templates, or one that does not contain `{}` exactly once.

    Example:

    ```python
    >>> from clipn_hf.prompts import validate_templates
    >>> validate_templates(["a photo of a {}."])
    ['a photo of a {}.']

    ```
    """
    checked = validate_texts(templates, name, '["a photo of a {}."]')
    for position, template in enumerate(checked):
        if template.count("{}") != 1:
            raise ValueError(
                f"`{name}[{position}]` must contain `{{}}` exactly once, where the label goes, got {template!r}; "
                f'write it like "a photo of a {{}}.".'
            )
    return checked


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Put every label into every template, label by label.

    Args:
        labels (`Sequence[str]`): `classes` labels.
        templates (`Sequence[str]`): `templates` texts with one `{}` each.

    Returns:
        `list[str]`: `classes * templates` prompts; prompt `c * len(templates) + t` is label `c` in template `t`, so
        that embeddings of the prompts reshape to `(classes, templates, dim)`.

    Raises:
        TypeError, ValueError: As `validate_labels` and `validate_templates`.

    Example:

    ```python
    >>> from clipn_hf.prompts import fill_templates
    >>> fill_templates(["cat", "dog"], ["a {}.", "no {}."])
    ['a cat.', 'no cat.', 'a dog.', 'no dog.']

    ```
    """
    checked_labels, checked_templates = validate_labels(labels), validate_templates(templates)
    # `str.format` would read braces inside a label or elsewhere in the template as fields.
    return [template.replace("{}", label) for label in checked_labels for template in checked_templates]


def resolve_templates(
    model: Any, processor: Any, default: Sequence[str] = DEFAULT_TEMPLATES
) -> tuple[list[str], list[str]]:
    """Find the templates that belong to a model and its processor, which must agree.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`]): Its configuration has templates if it is a CLIPN.
        processor ([`~transformers.CLIPProcessor`] or [`CLIPNProcessor`]):
            The latter may have templates; `None` there stands for those of the model.
        default (`Sequence[str]`, *optional*, defaults to `DEFAULT_TEMPLATES`): Templates where neither has any.

    Returns:
        `tuple[list[str], list[str]]`: The templates of the text encoder and of the "no" text encoder, which are
        `default` for a plain CLIP.

    Raises:
        ValueError: Model and processor have different templates.

    Example:

    ```python
    >>> from clipn_hf import CLIPNModel, CLIPNProcessor
    >>> from clipn_hf.prompts import resolve_templates
    >>> model = CLIPNModel.from_pretrained("org/clipn")  # doctest: +SKIP
    >>> processor = CLIPNProcessor.from_pretrained("org/clipn")  # doctest: +SKIP
    >>> processor.templates, processor.no_templates = resolve_templates(model, processor)  # doctest: +SKIP

    ```
    """
    resolved = []
    for name in ("templates", "no_templates"):
        of_model, of_processor = (getattr(owner, name, None) for owner in (model.config, processor))
        if of_model is not None and of_processor is not None and list(of_model) != list(of_processor):
            raise ValueError(
                f"The model and its processor disagree on `{name}`: the configuration of the model has "
                f"{list(of_model)}, the processor {list(of_processor)}. Set `processor.{name} = None` to use the "
                f"model's, or `model.config.{name} = processor.{name}` to use the processor's."
            )
        resolved.append(of_processor if of_processor is not None else of_model)
    templates = list(default if resolved[0] is None else resolved[0])
    return templates, list(templates if resolved[1] is None else resolved[1])
