# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image and text processor of CLIPN, which also knows the templates of the checkpoint."""

from collections.abc import Sequence
from typing import Any

from transformers.processing_utils import ProcessorMixin

from ..prompts import DEFAULT_TEMPLATES, fill_templates, validate_templates


class CLIPNProcessor(ProcessorMixin):
    r"""A CLIP image processor and a CLIP tokenizer in one object, together with the templates that make prompts.

    Args:
        image_processor ([`CLIPImageProcessor`]): Turns images into `pixel_values`.
        tokenizer ([`CLIPTokenizer`]): Turns texts into `input_ids` and `attention_mask`.
        templates (`list[str]`, *optional*):
            Templates with one `{}` for the label, read by the text encoder. Saved in `processor_config.json`. `None`
            stands for those of the model, whose configuration always has some; where both have templates, they must
            agree (see [`~clipn_hf.prompts.resolve_templates`]).
        no_templates (`list[str]`, *optional*):
            Templates read by the "no" text encoder; for hand-crafted "no" prompts the negations of `templates`, pair
            by pair. Saved likewise, and `None` stands for those of the model likewise.

    Raises:
        TypeError, ValueError: Templates that are not texts with exactly one `{}`, or none.

    Example:

    ```python
    >>> from clipn_hf import CLIPNProcessor

    >>> processor = CLIPNProcessor.from_pretrained("org/clipn-vitb16")  # doctest: +SKIP
    >>> processor.build_prompts(["cat", "dog"], templates=["a photo of a {}."])  # doctest: +SKIP
    ['a photo of a cat.', 'a photo of a dog.']
    >>> inputs = processor(images=image, text="a photo of a cat.", return_tensors="pt")  # doctest: +SKIP

    ```"""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        templates: Sequence[str] | None = None,
        no_templates: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.templates = None if templates is None else validate_templates(templates)
        self.no_templates = None if no_templates is None else validate_templates(no_templates, name="no_templates")
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoProcessor") -> None:
        """Do nothing: transformers calls it after loading through a shim, and would then copy this package's source
        into every folder it saves."""

    def build_prompts(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> list[str]:
        """Make prompts for the text encoder, label by label.

        Args:
            labels (`Sequence[str]`): One text per class.
            templates (`Sequence[str]`, *optional*):
                Defaults to the templates of this processor, and without them to `clipn_hf.prompts.DEFAULT_TEMPLATES`:
                the processor does not know its model.

        Returns:
            `list[str]`: `len(labels) * len(templates)` prompts; see [`~clipn_hf.prompts.fill_templates`].

        Raises:
            TypeError, ValueError: As [`~clipn_hf.prompts.fill_templates`].
        """
        if templates is None:
            templates = self.templates or DEFAULT_TEMPLATES
        return fill_templates(labels, templates)

    def build_no_prompts(self, labels: Sequence[str], no_templates: Sequence[str] | None = None) -> list[str]:
        """Make prompts for the "no" text encoder, label by label.

        Args:
            labels (`Sequence[str]`): One text per class.
            no_templates (`Sequence[str]`, *optional*):
                Defaults to the "no" templates of this processor, and without them to its templates. It must be given
                where the processor has neither, because those of the model depend on its "no" prompts.

        Returns:
            `list[str]`: `len(labels) * len(no_templates)` prompts; see [`~clipn_hf.prompts.fill_templates`].

        Raises:
            TypeError, ValueError:
                As [`~clipn_hf.prompts.fill_templates`]; also when neither `no_templates` nor templates of this
                processor are there.
        """
        if no_templates is None:
            no_templates = self.no_templates or self.templates
        if no_templates is None:
            raise ValueError(
                f"`no_templates` is missing, and this {type(self).__name__} has no templates; pass `no_templates`, "
                f"such as those of the model, `model.config.no_templates`."
            )
        return fill_templates(labels, no_templates)


__all__ = ["CLIPNProcessor"]
