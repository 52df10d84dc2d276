# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Context tokens: the sequences of CoOp, rows that start where they should, and nothing changed on an error."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, CLIPTokenizer, SiglipConfig, SiglipModel

from clipn_hf import CLIPNModel
from clipn_hf.modeling import LearnedPrompts, add_context_tokens, prompt_tuning_config
from clipn_hf.modeling.context_tokens import token_ids

LABELS = ["cat", "red bird", "tree"]


def rows_of(model: Any, prompts: LearnedPrompts, tokenizer: Any) -> torch.Tensor:
    return model.text_model.get_input_embeddings().weight[token_ids(prompts, tokenizer)].detach()


def words(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("position", "before"), [("end", 5), ("middle", 2), ("front", 0)])
@pytest.mark.parametrize("class_specific", [False, True])
def test_prompts_are_the_token_sequences_of_coop(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, position: Any, before: int, class_specific: bool
) -> None:
    tokenizer = tiny_processor.tokenizer
    texts = [words(tokenizer, label) for label in (*LABELS, "unknown")]
    end = words(tokenizer, ".")
    prompts = add_context_tokens(
        tiny_clip,
        tiny_processor,
        LABELS,
        num_tokens=5,
        class_position=position,
        class_specific=class_specific,
        unknown=True,
    )
    ids = token_ids(prompts, tokenizer)
    assert len(ids) == (20 if class_specific else 5)
    assert prompts.unknown_prompt is not None
    found = tokenizer([*prompts.build_prompts(), prompts.unknown_prompt])["input_ids"]
    for row, (tokens, text) in enumerate(zip(found, texts, strict=True)):
        context = ids[5 * row : 5 * row + 5] if class_specific else ids
        begin, stop = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert tokens == [begin, *context[:before], *text, *context[before:], *end, stop]


def test_one_context_for_all_words_other_labels_too(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    prompts = add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=2, template_end="")
    assert prompts.templates == ["<ctx_0> <ctx_1> {}"]
    assert prompts.build_prompts(["{} dog"]) == ["<ctx_0> <ctx_1> {} dog"]
    assert (prompts.label_prompts, prompts.unknown_prompt) == (None, None)


def test_a_context_of_each_label_knows_no_others(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    prompts = add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=1, class_specific=True)
    assert prompts.templates == ["{}."]
    assert prompts.build_prompts(["tree", "cat"]) == ["<ctx_2_0> tree.", "<ctx_0_0> cat."]
    with pytest.raises(
        ValueError, match=r"not for 'dog'\. Choose among 'cat', 'red bird', 'tree', or give `templates"
    ):
        prompts.build_prompts(["cat", "dog"])


@pytest.mark.parametrize("class_specific", [False, True])
def test_random_rows_are_those_of_the_seed_whatever_ran_before(class_specific: bool, clip_folder: Path) -> None:
    drawn = []
    for seed, before in ((3, 0), (3, 100), (4, 0)):
        torch.rand(before)
        model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
        prompts = add_context_tokens(model, processor, LABELS, num_tokens=50, class_specific=class_specific, seed=seed)
        drawn.append(rows_of(model, prompts, processor.tokenizer))
    assert drawn[0].shape == (150 if class_specific else 50, 32)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.equal(drawn[0], drawn[2])
    assert float(drawn[0].std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(drawn[0].mean())) < 0.002


@pytest.mark.parametrize("class_specific", [False, True])
def test_rows_start_from_words(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, class_specific: bool) -> None:
    tokenizer = tiny_processor.tokenizer
    before = tiny_clip.text_model.get_input_embeddings().weight.detach().clone()
    expected = before[words(tokenizer, "a photo of a")].repeat(len(LABELS) if class_specific else 1, 1)
    prompts = add_context_tokens(
        tiny_clip, tiny_processor, LABELS, init_text="a photo of a", class_specific=class_specific
    )
    torch.testing.assert_close(rows_of(tiny_clip, prompts, tokenizer), expected, rtol=0, atol=0)
    after = tiny_clip.text_model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=0)


def test_the_unknown_prompt_may_have_tokens_of_its_own(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    tokenizer = tiny_processor.tokenizer
    before = tiny_clip.text_model.get_input_embeddings().weight.detach().clone()
    prompts = add_context_tokens(
        tiny_clip,
        tiny_processor,
        LABELS,
        num_tokens=2,
        class_position="middle",
        unknown=True,
        unknown_label="no car",
        num_unknown_tokens=3,
    )
    assert prompts.unknown_prompt == "<ctx_0> <ctx_unknown_0> <ctx_unknown_1> <ctx_unknown_2> <ctx_1>."
    no, car = words(tokenizer, "no car")
    own = rows_of(tiny_clip, prompts, tokenizer)[2:]
    torch.testing.assert_close(own, before[[car, no, car]], rtol=0, atol=0)


def test_pooling_is_at_the_end_where_configurations_say_2(clip_folder: Path) -> None:
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    end = processor.tokenizer.eos_token_id
    model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
    prompts = add_context_tokens(model, processor, LABELS, num_tokens=2)
    assert prompts.eos_token_id == model.config.text_config.eos_token_id == model.text_model.eos_token_id == end
    assert prompts.vocab_size == model.config.text_config.vocab_size == len(processor.tokenizer)


def test_models_with_room_for_more_tokens_stay_of_their_size(clip_folder: Path) -> None:
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    model.text_model.resize_token_embeddings(len(processor.tokenizer) + 9, mean_resizing=False)
    prompts = add_context_tokens(model, processor, LABELS, num_tokens=4, seed=1)
    assert prompts.vocab_size == model.text_model.get_input_embeddings().num_embeddings == len(processor.tokenizer) + 5
    assert float(rows_of(model, prompts, processor.tokenizer).std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("no_prompt_type", ["learnable", "handcrafted"])
def test_both_text_encoders_of_a_clipn_get_rows(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, no_prompt_type: str
) -> None:
    model = CLIPNModel.from_clip(tiny_clip, no_prompt_type=no_prompt_type)
    before = copy.deepcopy(model.config)
    prompts = add_context_tokens(model, tiny_processor, LABELS, num_tokens=2)
    for tower in (model.text_model, model.no_text_model):
        assert tower.get_input_embeddings().num_embeddings == prompts.vocab_size
    assert (model.config.templates, model.config.no_templates) == (before.templates, before.no_templates)
    assert prompts.base["class"] == "CLIPNModel"
    assert prompts.base["no_prompts"]["no_prompt_type"] == no_prompt_type


@pytest.mark.parametrize("clipn", [False, True])
def test_peft_trains_the_placeholders_and_nothing_else(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, clipn: bool
) -> None:
    model: Any = CLIPNModel.from_clip(tiny_clip) if clipn else tiny_clip
    prompts = add_context_tokens(model, tiny_processor, LABELS, num_tokens=3)
    start = rows_of(model, prompts, tiny_processor.tokenizer)
    adapted = get_peft_model(model, prompt_tuning_config(prompts, tiny_processor.tokenizer))
    trained = [(name, weight) for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert [tuple(weight.shape) for _, weight in trained] == [(3, 32)]
    assert "no_text_model" not in trained[0][0]
    torch.testing.assert_close(trained[0][1].detach(), start, rtol=0, atol=0)
    texts = tiny_processor.tokenizer(prompts.build_prompts(), padding=True, return_tensors="pt")
    adapted.get_text_features(**texts).pooler_output.square().sum().backward()
    assert float(trained[0][1].grad.abs().min(dim=1).values.max()) > 0


def test_a_saved_tokenizer_reads_each_placeholder_as_one_token(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    prompts = add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=12, unknown=True, num_unknown_tokens=1)
    tiny_processor.save_pretrained(tmp_path)
    for loaded in (CLIPTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        texts = [*prompts.build_prompts(), prompts.unknown_prompt, "".join(prompts.tokens)]
        assert loaded(texts)["input_ids"] == tiny_processor.tokenizer(texts)["input_ids"]
        assert words(loaded, "".join(prompts.tokens)) == token_ids(prompts, loaded)
        assert len(loaded) == prompts.vocab_size


Change = Callable[[Any, Any], dict[str, Any]]


def keep_token(model: Any, processor: Any) -> dict[str, Any]:
    processor.tokenizer.add_tokens(["<ctx_1>"])
    return {}


def learn_before(model: Any, processor: Any) -> dict[str, Any]:
    add_context_tokens(model, CLIPProcessor(processor.image_processor, copy.deepcopy(processor.tokenizer)), LABELS)
    return {}


def add_adapter(model: Any, processor: Any) -> dict[str, Any]:
    model.add_adapter(LoraConfig(target_modules=r"text_model\..*q_proj"))
    return {}


def arguments(**values: Any) -> Change:
    return lambda model, processor: values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keep_token, r"has <ctx_1> already, as one .* Load the tokenizer of the base model, or give another"),
        (learn_before, r"has learned prompts already, of 16 tokens; load the model that they were learned on"),
        (add_adapter, r"has an adapter, .* merge it into the model before"),
        (arguments(num_tokens=0), r"`num_tokens` must be an integer from 1, got 0\."),
        (arguments(num_tokens=2.5), r"`num_tokens` must be an integer from 1, got 2\.5\."),
        (arguments(num_tokens=True), r"`num_tokens` must be an integer from 1, got True\."),
        (arguments(seed=-1), r"`seed` must be an integer from 0, got -1\."),
        (arguments(init_text=" "), r"`init_text` must have at least one word, got ' '; leave it out"),
        (arguments(class_position="behind"), r"`class_position` must be \"end\", .*, got 'behind'\."),
        (arguments(placeholder="CTX"), r"`placeholder` must be of lower-case letters"),
        (arguments(template_end="{}"), r"`template_end` must be without braces, got '\{\}'"),
        (arguments(unknown=True, unknown_label="Tree"), r"`unknown_label` 'Tree' is one of the labels"),
        (arguments(unknown=True, unknown_label=" "), r"`unknown_label` must have at least one word, got ' '"),
        (arguments(num_unknown_tokens=2), r'is 2, but there is no "unknown" prompt; set `unknown=True`\.'),
        (arguments(unknown=True, num_unknown_tokens=-1), r"`num_unknown_tokens` must be an integer from 0, got -1\."),
        (arguments(num_tokens=70), r"prompt of 'red bird' has 80 tokens, 70 of them its context, .* reads 77 at most"),
        (
            arguments(unknown=True, num_unknown_tokens=60),
            r"prompt of 'unknown' has 79 tokens, 16 of them its context, .* reads 77",
        ),
        (arguments(labels=["cat", "<ctx_3> dog"]), r"'<ctx_3> dog' contains the placeholder <ctx_3>; give another"),
        (arguments(labels=[]), r"`labels` is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, change: Change, message: str
) -> None:
    given = {"labels": LABELS, **change(tiny_clip, tiny_processor)}
    size, rows = len(tiny_processor.tokenizer), tiny_clip.text_model.get_input_embeddings().num_embeddings
    with pytest.raises(ValueError, match=message):
        add_context_tokens(tiny_clip, tiny_processor, **given)
    assert len(tiny_processor.tokenizer) == size
    assert tiny_clip.text_model.get_input_embeddings().num_embeddings == rows


def test_another_placeholder_goes_with_a_vocabulary_that_has_some(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor
) -> None:
    keep_token(tiny_clip, tiny_processor)
    tiny_processor.tokenizer.add_tokens(["<ctx_unknown_0>"])
    prompts = add_context_tokens(
        tiny_clip, tiny_processor, LABELS, num_tokens=2, unknown=True, num_unknown_tokens=1, placeholder="own"
    )
    assert prompts.tokens == ["<own_0>", "<own_1>", "<own_unknown_0>"]


def test_models_of_other_kinds_are_refused(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    siglip = SiglipModel(SiglipConfig(text_config={**tower, "vocab_size": 99}, vision_config=tower))
    with pytest.raises(TypeError, match=r"`model` must be a CLIPModel or a CLIPNModel, got SiglipModel\."):
        add_context_tokens(siglip, tiny_processor, LABELS)
    adapted = get_peft_model(tiny_clip, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"got PeftModel; put peft around it afterwards\."):
        add_context_tokens(adapted, tiny_processor, LABELS)


def test_a_tokenizer_without_the_placeholders_is_refused(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, clip_folder: Path
) -> None:
    prompts = add_context_tokens(tiny_clip, tiny_processor, LABELS)
    with pytest.raises(ValueError, match=r"lacks 16 of the 16 tokens of the learned prompts, such as <ctx_0>"):
        prompt_tuning_config(prompts, CLIPTokenizer.from_pretrained(clip_folder))
