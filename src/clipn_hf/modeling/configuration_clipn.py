# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""CLIPN model configuration."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig
from transformers.utils.auto_docstring import auto_docstring

from ..prompts import DEFAULT_TEMPLATES, NO_TEMPLATES, validate_templates


@auto_docstring(
    checkpoint="clipn-tiny",
    custom_intro="""
    This is the configuration class to store the configuration of a [`CLIPNModel`]: a CLIP configuration, in which one
    `text_config` describes both text encoders, and the form of the "no" prompts.
    """,
)
@strict
class CLIPNConfig(CLIPConfig):
    r"""
    text_config (`dict`, *optional*):
        Options of [`CLIPTextConfig`], shared by the text encoder and the "no" text encoder.
    vision_config (`dict`, *optional*):
        Options of [`CLIPVisionConfig`].
    logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
        Initial value of the *logit_scale* parameter, the logarithm of the factor that turns cosines into logits.
    no_prompt_type (`str`, *optional*, defaults to `"learnable"`):
        `"learnable"`: parameters of shape `(num_no_prompts, max_position_embeddings, hidden_size)` are added to the
        token and position embeddings of the "no" text encoder, which reads the same prompts as the text encoder.
        `"handcrafted"`: no such parameters; the "no" text encoder reads prompts that contain the negation.
    num_no_prompts (`int`, *optional*, defaults to 16):
        Number of learnable "no" prompts. Unused when `no_prompt_type="handcrafted"`.
    templates (`list[str]` or `tuple[str, ...]`, *optional*):
        Templates with one `{}` for the label, read by the text encoder. Defaults to
        `clipn_hf.prompts.DEFAULT_TEMPLATES`.
    no_templates (`list[str]` or `tuple[str, ...]`, *optional*):
        Templates read by the "no" text encoder. Defaults to `templates` when `no_prompt_type="learnable"`. When it is
        `"handcrafted"`, `no_templates[i]` is the negation of `templates[i]`; defaults to
        `clipn_hf.prompts.NO_TEMPLATES` if `templates` are the default ones, and must be given otherwise.

    Example:

    ```python
    >>> from clipn_hf import CLIPNConfig, CLIPNModel

    >>> configuration = CLIPNConfig(num_no_prompts=8)
    >>> model = CLIPNModel(configuration)
    >>> tuple(model.no_text_model.embeddings.no_prompts.shape)
    (8, 77, 512)

    ```"""

    model_type = "clipn"
    # The outputs of whole towers, which Trainer would gather over a data set
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "text_model_output",
        "no_text_model_output",
        "vision_model_output",
    ]

    no_prompt_type: Literal["learnable", "handcrafted"] = "learnable"
    num_no_prompts: int = 16
    templates: list[str] | tuple[str, ...] | None = None
    no_templates: list[str] | tuple[str, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Lists throughout, as config.json gives them back
        if self.templates is not None:
            self.templates = list(self.templates)
        if self.no_templates is not None:
            self.no_templates = list(self.no_templates)
        if self.templates is None:
            self.templates = list(DEFAULT_TEMPLATES)
        if self.no_templates is None:
            if self.no_prompt_type == "learnable":
                self.no_templates = list(self.templates)
            elif tuple(self.templates) == DEFAULT_TEMPLATES:
                self.no_templates = list(NO_TEMPLATES)
        # A shim belongs to the repository that holds it (see `publishing.save_shim`): carried along, the reference
        # would be saved with the next model, in a folder without the file.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoConfig") -> None:
        """Do nothing: transformers calls it after loading through a shim, and would then copy this package's source
        into every folder it saves."""

    def validate_no_prompts(self) -> None:
        """Part of `@strict`-powered validation. Validates the "no" prompts and the two pools of templates."""
        fewest = 1 if self.no_prompt_type == "learnable" else 0
        if self.num_no_prompts < fewest:
            raise ValueError(
                f"`num_no_prompts` must be at least {fewest}, got {self.num_no_prompts}; for a model without "
                f'learnable prompts use `no_prompt_type="handcrafted"`.'
            )
        templates = validate_templates(self.templates or ())
        if self.no_templates is None:
            raise ValueError(
                '`no_prompt_type="handcrafted"` with own `templates` needs `no_templates`, their negations in the '
                f"same order, got None for the templates {templates}."
            )
        no_templates = validate_templates(self.no_templates, name="no_templates")
        if self.no_prompt_type == "handcrafted" and len(no_templates) != len(templates):
            raise ValueError(
                "`templates` and `no_templates` are pairs and must have the same length, got "
                f"{len(templates)} templates and {len(no_templates)} no_templates."
            )


def build_config(**values: Any) -> CLIPNConfig:
    """Make a configuration of values that a caller gave.

    Args:
        values: Arguments of [`CLIPNConfig`].

    Raises:
        TypeError: The templates are not lists of texts.
        ValueError: Any other value is wrong. [`CLIPNConfig`] itself raises errors of strict dataclasses, which are
            neither.
    """
    for name in ("templates", "no_templates"):
        if values.get(name) is not None:
            values[name] = validate_templates(values[name], name=name)
    try:
        return CLIPNConfig(**values)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


__all__ = ["CLIPNConfig", "build_config"]
