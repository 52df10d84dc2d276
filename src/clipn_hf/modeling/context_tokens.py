# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Context tokens: placeholders in front of, around or behind a label, whose embeddings are trained.

Zhou et al., "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022, arXiv 2109.01134. Rows of the token
embedding take the place of the vectors there, so that peft trains them as `TRAINABLE_TOKENS`, and what peft saves is
all that was learned.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import CLIPModel

from ..families import find_max_text_length
from ..hub_names import EMBEDDED_NAME, public_name
from ..prompts import validate_labels
from .learned_prompts import (
    LearnedPrompts,
    attach_learned_prompts,
    find_learned_prompts,
    image_weights_digest,
    is_embedded_checkpoint,
    text_weights_digest,
)
from .modeling_clipn import CLIPNModel
from .no_tokens import fit_vocabulary
from .prompt_settings import PROMPT_SETTINGS

if TYPE_CHECKING:
    from peft import TrainableTokensConfig

ClassPosition = Literal["end", "middle", "front"]

# Matched as a whole, so that it leaves `no_text_model` out.
TOKEN_EMBEDDING = r"text_model\.embeddings\.token_embedding"
# Of the vectors that the authors draw.
STANDARD_DEVIATION = 0.02


def add_context_tokens(
    model: CLIPModel,
    processor: Any,
    labels: Sequence[str],
    *,
    num_tokens: int = 16,
    init_text: str | None = None,
    class_specific: bool = False,
    class_position: ClassPosition = "end",
    unknown: bool = False,
    unknown_label: str = "unknown",
    num_unknown_tokens: int = 0,
    template_end: str = ".",
    seed: int = 0,
    placeholder: str = "ctx",
    revision: str | None = None,
) -> LearnedPrompts:
    """Give a model prompts with placeholders for context, ready for training.

    The tokenizer learns the placeholders, `<ctx_0> <ctx_1> …`, or for each label and the "unknown" prompt its own,
    `<ctx_0_0> <ctx_0_1> …`. The text encoder gets rows for them, which [`prompt_tuning_config`] lets peft train; for a
    CLIPN both text encoders get rows, of which those of the "no" text encoder are zero and unused. Where the
    configuration has `eos_token_id=2`, as those of OpenAI do, the real one takes its place, because pooling at the
    highest id would pick a placeholder.

    Args:
        model ([`~transformers.CLIPModel`] or [`CLIPNModel`]): Without peft around it. Changed in place.
        processor ([`~transformers.CLIPProcessor`] or [`CLIPNProcessor`]): Its tokenizer is changed in place.
        labels (`Sequence[str]`): One text per class.
        num_tokens (`int`, *optional*, defaults to 16):
            How many context tokens there are. Unused with `init_text`, which has as many as it has.
        init_text (`str`, *optional*):
            Words from whose embeddings the context starts, such as `"a photo of a"`; by default it is drawn at random,
            from a normal distribution of standard deviation 0.02.
        class_specific (`bool`, *optional*, defaults to `False`): Whether each label has a context of its own.
        class_position (`"end"`, `"middle"` or `"front"`, *optional*, defaults to `"end"`):
            Where the label is: behind the context, behind its first half (the smaller one), or in front of it.
        unknown (`bool`, *optional*, defaults to `False`):
            Whether there is a prompt for what belongs to none of the labels. It has the same context, and
            `unknown_label` in place of a label.
        unknown_label (`str`, *optional*, defaults to `"unknown"`): That.
        num_unknown_tokens (`int`, *optional*, defaults to 0):
            How many placeholders of its own, `<ctx_unknown_0> …`, the "unknown" prompt has in place of
            `unknown_label`, from whose embeddings they start.
        template_end (`str`, *optional*, defaults to `"."`): What each prompt ends with.
        seed (`int`, *optional*, defaults to 0): Of what is drawn at random, whatever was drawn before.
        placeholder (`str`, *optional*, defaults to `"ctx"`): What placeholders are called.
        revision (`str`, *optional*):
            That at which `model` was loaded from the Hub. Models that transformers loads do not know it; those of
            [`DualEncoder.from_pretrained`] do.

    Returns:
        [`LearnedPrompts`]: The prompts, which the model has as its `learned_prompts`, too.

    Raises:
        TypeError: `model` is no CLIP, or has peft around it; or as [`~clipn_hf.prompts.validate_labels`].
        ValueError:
            The tokenizer has such placeholders already, the model learned prompts or an adapter; a prompt is too long
            for the text encoder; or another argument is out of range. Nothing is changed then.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import CLIPModel, CLIPProcessor
    >>> from clipn_hf.modeling import add_context_tokens, prompt_tuning_config, save_learned_prompts

    >>> model = CLIPModel.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> processor = CLIPProcessor.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> prompts = add_context_tokens(model, processor, ["cat", "dog"], num_tokens=2)  # doctest: +SKIP
    >>> prompts.build_prompts()  # doctest: +SKIP
    ['<ctx_0> <ctx_1> cat.', '<ctx_0> <ctx_1> dog.']
    >>> config = prompt_tuning_config(prompts, processor.tokenizer)  # doctest: +SKIP
    >>> adapted = get_peft_model(model, config, revision=prompts.base["revision"])  # doctest: +SKIP
    >>> # Train `adapted` here.
    >>> adapted.save_pretrained("my-prompts", save_embedding_layers=False)  # doctest: +SKIP
    >>> processor.save_pretrained("my-prompts")  # doctest: +SKIP
    >>> save_learned_prompts(prompts, "my-prompts")  # doctest: +SKIP

    ```"""
    _check_model(model)
    labels = validate_labels(labels)
    tokenizer = processor.tokenizer
    if class_position not in get_args(ClassPosition):
        raise ValueError(f'`class_position` must be "end", "middle" or "front", got {class_position!r}.')
    if re.fullmatch(r"[a-z][a-z0-9_]*", placeholder) is None:
        raise ValueError(
            f"`placeholder` must be of lower-case letters, digits and underscores, and begin with a letter, got "
            f'{placeholder!r}; give one such as "ctx".'
        )
    if "{" in template_end or "}" in template_end:
        raise ValueError(f'`template_end` must be without braces, got {template_end!r}; give one such as ".".')
    init_ids = [] if init_text is None else _word_ids(tokenizer, init_text)
    if init_text is not None and not init_ids:
        raise ValueError(f"`init_text` must have at least one word, got {init_text!r}; leave it out for random ones.")
    _check_integer("num_tokens", num_tokens, 1)
    _check_integer("num_unknown_tokens", num_unknown_tokens, 0)
    _check_integer("seed", seed, 0)
    num_tokens = len(init_ids) or num_tokens
    unknown_ids = _check_unknown(tokenizer, labels, unknown, unknown_label, num_unknown_tokens)

    num_contexts = len(labels) + unknown if class_specific else 1
    contexts = [
        [f"<{placeholder}_{f'{row}_' if class_specific else ''}{index}>" for index in range(num_tokens)]
        for row in range(num_contexts)
    ]
    own = [f"<{placeholder}_unknown_{index}>" for index in range(num_unknown_tokens)]
    tokens = [*(token for context in contexts for token in context), *own]
    _check_tokens(tokenizer, tokens, [*labels, unknown_label, template_end])
    texts = [*labels, *([unknown_label] if unknown and not own else [])]
    lengths = {unknown_label: num_unknown_tokens} if own else {}
    fix = "a shorter `init_text`" if init_ids else "fewer `num_tokens`"
    _check_lengths(model, tokenizer, texts, lengths, num_tokens, template_end, fix)
    base = _describe_base(model, revision)

    add_placeholders(tokenizer, tokens)
    fit_vocabulary(model, tokenizer)
    embedding: Any = model.text_model.get_input_embeddings()
    with torch.no_grad():
        weight = embedding.weight
        if init_ids:
            rows = weight[init_ids].repeat(num_contexts, 1)
        else:
            rows = _draw(num_contexts * num_tokens, embedding.embedding_dim, seed).to(weight)
        # As with "no" tokens, the last word goes to the last placeholder.
        sources = [unknown_ids[(index - len(own)) % len(unknown_ids)] for index in range(len(own))]
        weight[tokenizer.convert_tokens_to_ids(tokens)] = torch.cat([rows, weight[sources]])

    # One for each label and then one for the "unknown" prompt, or one for all.
    templates = [_template(context, class_position, template_end) for context in contexts]
    of_unknown = " ".join(own) if own else unknown_label
    prompts = LearnedPrompts(
        templates=[_template([], class_position, template_end)] if class_specific else templates,
        unknown_prompt=templates[-1].replace("{}", of_unknown) if unknown else None,
        label_prompts=_fill(labels, templates) if class_specific else None,
        labels=labels,
        tokens=tokens,
        vocab_size=embedding.num_embeddings,
        eos_token_id=tokenizer.eos_token_id,
        base=base,
    )
    attach_learned_prompts(model, prompts)
    return prompts


def prompt_tuning_config(prompts: LearnedPrompts, tokenizer: Any) -> "TrainableTokensConfig":
    """Make the configuration by which peft trains the placeholders, and nothing else.

    Give `revision=prompts.base["revision"]` to `get_peft_model`, so that the adapter remembers it. The `FutureWarning`
    there, of `is_gradient_checkpointing`, is about how peft reads transformers, and no reason to worry.

    Args:
        prompts ([`LearnedPrompts`]): What [`add_context_tokens`] returned.
        tokenizer ([`~transformers.CLIPTokenizer`]): The one that it changed.

    Returns:
        [`~peft.TrainableTokensConfig`]

    Raises:
        ValueError: The tokenizer lacks a placeholder.
    """
    # Imported late, because peft takes long, and only training needs it.
    from peft import TrainableTokensConfig

    return TrainableTokensConfig(token_indices=token_ids(prompts, tokenizer), target_modules=TOKEN_EMBEDDING)


def token_ids(prompts: LearnedPrompts, tokenizer: Any) -> list[int]:
    """Find the ids of the placeholders.

    Args:
        prompts ([`LearnedPrompts`]): Has them.
        tokenizer ([`~transformers.CLIPTokenizer`]): Knows them.

    Returns:
        `list[int]`: In the order of `prompts.tokens`.

    Raises:
        ValueError: The tokenizer lacks one.
    """
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in prompts.tokens if token not in vocabulary]
    if lacking:
        raise ValueError(
            f"The tokenizer lacks {len(lacking)} of the {len(prompts.tokens)} tokens of the learned prompts, such as "
            f"{lacking[0]}, and would read them as something else. Give the processor that was saved with the "
            "prompts."
        )
    return [vocabulary[token] for token in prompts.tokens]


def add_placeholders(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Let a tokenizer know placeholders, each of which it then reads as one token.

    Args:
        tokenizer ([`~transformers.CLIPTokenizer`]): Changed in place.
        tokens (`Sequence[str]`): The placeholders; those that it knows stay as they are.
    """
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def _check_model(model: Any) -> None:
    if not isinstance(model, CLIPModel):
        hint = "; put peft around it afterwards" if hasattr(model, "peft_config") else ""
        raise TypeError(f"`model` must be a CLIPModel or a CLIPNModel, got {type(model).__name__}{hint}.")
    learned = find_learned_prompts(model)
    if learned is not None:
        raise ValueError(
            f"The {type(model).__name__} has learned prompts already, of {len(learned.tokens)} tokens; load the model "
            "that they were learned on to learn others."
        )
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"The {type(model).__name__} has an adapter, which prompts learned on top of it would depend on; merge it "
            "into the model before, and save that."
        )


def _check_integer(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be an integer from {minimum}, got {value!r}.")


def _check_unknown(
    tokenizer: Any, labels: list[str], unknown: bool, unknown_label: str, num_unknown_tokens: int
) -> list[int]:
    """The tokens of `unknown_label`, where there is an "unknown" prompt."""
    if not unknown:
        if num_unknown_tokens:
            raise ValueError(
                f'`num_unknown_tokens` is {num_unknown_tokens}, but there is no "unknown" prompt; set `unknown=True`.'
            )
        return []
    word_ids = _word_ids(tokenizer, unknown_label)
    if not word_ids:
        raise ValueError(f'`unknown_label` must have at least one word, got {unknown_label!r}; give "unknown".')
    if not num_unknown_tokens and word_ids in (_word_ids(tokenizer, label) for label in labels):
        raise ValueError(
            f"`unknown_label` {unknown_label!r} is one of the labels, from which its prompt could not be told; give "
            "another word."
        )
    return word_ids


def _check_tokens(tokenizer: Any, tokens: list[str], texts: list[str]) -> None:
    taken = [token for token in tokens if token in tokenizer.get_vocab()]
    if taken:
        raise ValueError(
            f"The vocabulary of the tokenizer has {taken[0]} already{' and others' if len(taken) > 1 else ''}, as one "
            "that was saved with learned prompts does. Load the tokenizer of the base model, or give another "
            "`placeholder`."
        )
    for text in texts:
        hidden = next((token for token in tokens if token in text), None)
        if hidden is not None:
            raise ValueError(f"The text {text!r} contains the placeholder {hidden}; give another `placeholder`.")


def _check_lengths(
    model: Any, tokenizer: Any, texts: list[str], lengths: dict[str, int], num_tokens: int, template_end: str, fix: str
) -> None:
    """Check that the prompts of texts, and of others whose own lengths are given, can be read to their end."""
    max_length = find_max_text_length(model, tokenizer)
    ended = [*(f"{text}{template_end}" for text in texts), template_end]
    *of_texts, of_end = map(len, tokenizer(ended, verbose=False)["input_ids"])
    found = dict(zip(texts, of_texts, strict=True)) | {text: length + of_end for text, length in lengths.items()}
    longest = max(found, key=found.__getitem__)
    if found[longest] + num_tokens > max_length:
        raise ValueError(
            f"The prompt of {longest!r} has {found[longest] + num_tokens} tokens, {num_tokens} of them its context, "
            f"but the text encoder reads {max_length} at most. Give {fix}, or shorten the label."
        )


def _describe_base(model: Any, revision: str | None) -> dict[str, Any]:
    name = model.name_or_path or None
    is_clipn = isinstance(model, CLIPNModel)
    if name is not None:
        name = EMBEDDED_NAME if is_embedded_checkpoint(name) else public_name(name)
    description = {
        "id": name,
        "revision": revision or getattr(model, "hub_revision", None) or getattr(model, "clip_revision", None),
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "text_weights_sha256": text_weights_digest(model, model.dtype),
        "image_weights_sha256": image_weights_digest(model, model.dtype),
    }
    if is_clipn:
        description["no_prompts"] = {setting: getattr(model.config, setting) for setting in PROMPT_SETTINGS}
    return description


def _draw(count: int, width: int, seed: int) -> Tensor:
    """Vectors `(count, width)`, on the CPU, so that they are the same on every device."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * STANDARD_DEVIATION


def _template(context: list[str], class_position: ClassPosition, end: str) -> str:
    half = {"end": len(context), "middle": len(context) // 2, "front": 0}[class_position]
    return " ".join([*context[:half], "{}", *context[half:]]) + end


def _fill(labels: list[str], templates: list[str]) -> dict[str, str]:
    """Each label in its own template, of which there may be one more."""
    return {label: template.replace("{}", label) for label, template in zip(labels, templates, strict=False)}


def _word_ids(tokenizer: Any, text: str) -> list[int]:
    word_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return word_ids


__all__ = ["ClassPosition", "add_context_tokens", "add_placeholders", "prompt_tuning_config", "token_ids"]
