# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_loss

from clipn_hf import CLIPNModel, CLIPNOutput, IncompleteCheckpointError, clipn_loss

NUM_PROMPTS = 16


@pytest.fixture
def handcrafted(tiny_clip: CLIPModel) -> CLIPNModel:
    model = CLIPNModel.from_clip(tiny_clip, no_prompt_type="handcrafted")
    with torch.no_grad():
        for parameter in model.no_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return model


def random_texts(model: CLIPNModel, batch_size: int = 3, length: int = 9, seed: int = 0) -> dict[str, Tensor]:
    config = model.config.text_config
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(config.vocab_size - 2, (batch_size, length), generator=generator)
    input_ids[:, 0] = config.bos_token_id
    input_ids[:, -1] = config.eos_token_id
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def random_images(batch_size: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_inputs(model: CLIPNModel, batch_size: int = 3) -> dict[str, Tensor]:
    return {**random_texts(model, batch_size), "pixel_values": random_images(batch_size)}


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# What the model computes


@torch.no_grad()
def test_features_are_projected_and_not_normalised(tiny_clipn: CLIPNModel) -> None:
    texts = random_texts(tiny_clipn)
    for features, projection in (
        (tiny_clipn.get_text_features(**texts), tiny_clipn.text_projection),
        (tiny_clipn.get_no_text_features(**texts), tiny_clipn.no_text_projection),
        (tiny_clipn.get_image_features(random_images()), tiny_clipn.visual_projection),
    ):
        assert isinstance(features, BaseModelOutputWithPooling)
        assert features.pooler_output.shape == (3, projection.out_features)
        assert not torch.allclose(features.pooler_output.norm(dim=-1), torch.ones(3), atol=0.05)
    assert isinstance(tiny_clipn.get_no_text_features(**texts, return_dict=False), tuple)


@torch.no_grad()
def test_forward_is_made_of_the_features(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    outputs = tiny_clipn(**inputs)
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for embeds, features in (
        (outputs.image_embeds, tiny_clipn.get_image_features(inputs["pixel_values"])),
        (outputs.text_embeds, tiny_clipn.get_text_features(**texts)),
        (outputs.no_text_embeds, tiny_clipn.get_no_text_features(**texts)),
    ):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(embeds * features.pooler_output.norm(dim=-1, keepdim=True), features.pooler_output)
    scale = tiny_clipn.logit_scale.exp()
    torch.testing.assert_close(outputs.logits_per_image, scale * outputs.image_embeds @ outputs.text_embeds.T)
    torch.testing.assert_close(outputs.no_logits_per_image, scale * outputs.image_embeds @ outputs.no_text_embeds.T)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.T)
    expected = clipn_loss(outputs.image_embeds, outputs.text_embeds, outputs.no_text_embeds, scale)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(outputs[name], value)


@torch.no_grad()
def test_the_yes_half_is_clip(tiny_clip: CLIPModel, tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    expected, outputs = tiny_clip(**inputs), tiny_clipn(**inputs)
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        torch.testing.assert_close(outputs[name], expected[name])
    assert not torch.allclose(outputs.no_logits_per_image, outputs.logits_per_image, atol=1e-2)


def test_losses_are_none_when_images_and_texts_differ_in_number(tiny_clipn: CLIPNModel) -> None:
    outputs = tiny_clipn(**random_texts(tiny_clipn, 5), pixel_values=random_images(2))
    assert outputs.logits_per_image.shape == outputs.no_logits_per_image.shape == (2, 5)
    assert outputs.loss is outputs.itbo_yes_loss is outputs.itbo_no_loss is outputs.tso_loss is None


def test_losses_on_request_only(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    assert tiny_clipn(**inputs).loss is not None
    assert tiny_clipn(**inputs, return_loss=False).loss is None


def test_logits_on_request_only(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    expected, outputs = tiny_clipn(**inputs), tiny_clipn(**inputs, return_logits=False)
    assert outputs.logits_per_image is outputs.logits_per_text is outputs.no_logits_per_image is None
    for name in ("loss", "text_embeds", "no_text_embeds", "image_embeds"):
        assert torch.equal(outputs[name], expected[name])


def test_outputs_as_a_tuple(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    outputs = tiny_clipn(**inputs)
    assert isinstance(outputs, CLIPNOutput)
    values = tiny_clipn(**inputs, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], outputs.loss)
    tiny_clipn.config.return_dict = False
    assert torch.equal(tiny_clipn(**inputs)[0], outputs.loss)


@torch.no_grad()
def test_handcrafted_prompts_need_their_own_ids(handcrafted: CLIPNModel) -> None:
    inputs = random_inputs(handcrafted)
    outputs = handcrafted(**inputs)
    assert (
        outputs.no_logits_per_image is outputs.no_text_embeds is outputs.no_text_model_output is outputs.loss is None
    )

    no_texts = random_texts(handcrafted, seed=1, length=11)
    outputs = handcrafted(**inputs, no_input_ids=no_texts["input_ids"], no_attention_mask=no_texts["attention_mask"])
    expected = handcrafted.get_no_text_features(**no_texts).pooler_output
    torch.testing.assert_close(outputs.no_text_model_output.pooler_output, expected)
    assert outputs.loss is not None
    assert not any("no_prompts" in name for name, _ in handcrafted.named_parameters())


@torch.no_grad()
def test_learnable_prompts_accept_ids_of_their_own(tiny_clipn: CLIPNModel) -> None:
    no_texts = random_texts(tiny_clipn, seed=1)
    outputs = tiny_clipn(**random_inputs(tiny_clipn), no_input_ids=no_texts["input_ids"])
    expected = tiny_clipn.get_no_text_features(no_texts["input_ids"]).pooler_output
    torch.testing.assert_close(outputs.no_text_model_output.pooler_output, expected)


@torch.no_grad()
def test_image_embeddings_computed_before(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    expected = tiny_clipn(**inputs)
    features = tiny_clipn.get_image_features(inputs.pop("pixel_values")).pooler_output
    for factor in (1.0, 7.5, 1e-3):
        outputs = tiny_clipn(**inputs, image_embeds=factor * features)
        assert outputs.vision_model_output is None
        for name in ("loss", "image_embeds", "logits_per_image", "no_logits_per_image"):
            torch.testing.assert_close(outputs[name], expected[name])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pixel_values"], "`input_ids` is missing"),
        (["input_ids"], "`pixel_values` or `image_embeds`, got neither"),
        (["input_ids", "pixel_values", "image_embeds"], "got both"),
    ],
)
def test_missing_inputs(tiny_clipn: CLIPNModel, names: list[str], message: str) -> None:
    inputs = {**random_inputs(tiny_clipn), "image_embeds": torch.ones(3, 24)}
    with pytest.raises(ValueError, match=message):
        tiny_clipn(**{name: inputs[name] for name in names})


# The learnable prompts


@torch.no_grad()
def test_evaluation_uses_the_mean_prompt(tiny_clipn: CLIPNModel) -> None:
    texts = random_texts(tiny_clipn)
    expected = tiny_clipn.get_no_text_features(**texts).pooler_output
    assert torch.equal(tiny_clipn.get_no_text_features(**texts).pooler_output, expected)
    mean = tiny_clipn.get_no_text_features(**texts, no_prompt_index=torch.full((3,), NUM_PROMPTS)).pooler_output
    torch.testing.assert_close(mean, expected)

    tiny_clipn.no_text_model.embeddings.no_prompts.copy_(
        tiny_clipn.no_text_model.embeddings.no_prompts.mean(dim=0).expand(NUM_PROMPTS, -1, -1)
    )
    for index in (0, 5, NUM_PROMPTS):
        same = tiny_clipn.get_no_text_features(**texts, no_prompt_index=torch.full((3,), index)).pooler_output
        torch.testing.assert_close(same, expected)


@torch.no_grad()
def test_training_draws_one_prompt_per_text(tiny_clipn: CLIPNModel) -> None:
    text = {name: value[:1] for name, value in random_texts(tiny_clipn).items()}
    every_index = torch.arange(NUM_PROMPTS + 1)
    many = {name: value.expand(len(every_index), -1) for name, value in text.items()}
    candidates = tiny_clipn.get_no_text_features(**many, no_prompt_index=every_index).pooler_output
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    assert torch.cdist(candidates, candidates, **exact).add(torch.eye(len(every_index))).min() > 1e-3

    tiny_clipn.train()
    torch.manual_seed(0)
    draws = tiny_clipn.get_no_text_features(**{name: value.expand(1000, -1) for name, value in text.items()})
    distances, drawn = torch.cdist(draws.pooler_output, candidates, **exact).min(dim=1)
    assert distances.max() < 1e-4
    counts = torch.bincount(drawn, minlength=NUM_PROMPTS + 1)
    # 1000 draws of 17: 58.8 each, standard deviation 7.4
    assert counts.min() > 25
    assert counts.max() < 100

    torch.manual_seed(0)
    first = tiny_clipn(**random_inputs(tiny_clipn)).no_text_embeds
    torch.manual_seed(0)
    assert torch.equal(tiny_clipn(**random_inputs(tiny_clipn)).no_text_embeds, first)


@torch.no_grad()
def test_given_indices_overrule_the_mode(tiny_clipn: CLIPNModel) -> None:
    index = torch.tensor([0, 3, NUM_PROMPTS])
    inputs = random_inputs(tiny_clipn)
    expected = tiny_clipn(**inputs, no_prompt_index=index).no_text_embeds
    tiny_clipn.train()
    assert torch.equal(tiny_clipn(**inputs, no_prompt_index=index).no_text_embeds, expected)
    assert tiny_clipn.no_text_model.embeddings.prompt_index is None


@torch.no_grad()
def test_prompts_belong_to_positions(tiny_clipn: CLIPNModel) -> None:
    texts = random_texts(tiny_clipn)
    length = texts["input_ids"].shape[1]
    expected = tiny_clipn.get_no_text_features(**texts).pooler_output
    given_positions = tiny_clipn.get_no_text_features(**texts, position_ids=torch.arange(length)[None]).pooler_output
    torch.testing.assert_close(given_positions, expected)
    # only the first `length` positions play a part
    tiny_clipn.no_text_model.embeddings.no_prompts[:, length:] += 10
    assert torch.equal(tiny_clipn.get_no_text_features(**texts).pooler_output, expected)
    tiny_clipn.no_text_model.embeddings.no_prompts[:, length - 1] += torch.linspace(-1, 1, 32)
    assert not torch.allclose(tiny_clipn.get_no_text_features(**texts).pooler_output, expected, atol=1e-3)


def test_only_the_drawn_prompt_gets_a_gradient(tiny_clipn: CLIPNModel) -> None:
    texts = random_texts(tiny_clipn, batch_size=1, length=9)
    tiny_clipn.get_no_text_features(**texts, no_prompt_index=torch.tensor([3])).pooler_output.sum().backward()
    gradient = tiny_clipn.no_text_model.embeddings.no_prompts.grad
    touched = gradient.abs().sum(dim=-1) > 0
    assert touched[3, :9].all()
    assert touched.sum() == 9


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 1]), r"shape \(3,\), got \(2,\)"),
        (torch.tensor([0, 1, NUM_PROMPTS + 1]), r"between 0 and 16.*got \[0, 1, 17\]"),
        (torch.tensor([-1, 0, 0]), r"got \[-1, 0, 0\]"),
    ],
)
def test_bad_prompt_index(tiny_clipn: CLIPNModel, index: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_clipn(**random_inputs(tiny_clipn), no_prompt_index=index)


def test_prompt_index_of_handcrafted_prompts(handcrafted: CLIPNModel) -> None:
    with pytest.raises(ValueError, match='no_prompt_type="handcrafted"'):
        handcrafted.get_no_text_features(**random_texts(handcrafted), no_prompt_index=torch.zeros(3, dtype=torch.long))


# From CLIP


@torch.no_grad()
def test_from_clip_copies_the_text_encoder(tiny_clip: CLIPModel) -> None:
    model = CLIPNModel.from_clip(tiny_clip)
    assert not model.training
    assert not model.no_text_model.embeddings.no_prompts.any()
    texts = random_texts(model)
    expected = tiny_clip.get_text_features(**texts).pooler_output
    assert torch.equal(model.get_text_features(**texts).pooler_output, expected)
    assert torch.equal(model.get_no_text_features(**texts).pooler_output, expected)
    assert torch.equal(
        model.get_image_features(random_images()).pooler_output,
        tiny_clip.get_image_features(random_images()).pooler_output,
    )
    assert torch.equal(model.logit_scale, tiny_clip.logit_scale)


def test_from_clip_leaves_the_clip_alone(tiny_clip: CLIPModel) -> None:
    tiny_clip.config.text_config.eos_token_id = 2
    weights, config = copy.deepcopy(tiny_clip.state_dict()), copy.deepcopy(tiny_clip.config.to_dict())
    model = CLIPNModel.from_clip(tiny_clip, num_no_prompts=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert all(torch.equal(value, weights[name]) for name, value in tiny_clip.state_dict().items())
    assert tiny_clip.config.to_dict() == config


@pytest.mark.parametrize("values", [{"num_no_prompts": 3, "templates": ["a {}."]}, {"no_prompt_type": "handcrafted"}])
def test_from_clip_configuration(tiny_clip: CLIPModel, values: dict[str, Any]) -> None:
    config = CLIPNModel.from_clip(tiny_clip, **values).config
    for name, value in values.items():
        assert getattr(config, name) == value
    assert config.text_config.to_dict() == tiny_clip.config.text_config.to_dict()
    assert config.vision_config.to_dict() == tiny_clip.config.vision_config.to_dict()
    assert config.projection_dim == tiny_clip.config.projection_dim


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_from_clip_dtype(tiny_clip: CLIPModel, tmp_path: Path, stored: torch.dtype) -> None:
    tiny_clip.to(stored)
    tiny_clip.save_pretrained(tmp_path)
    for clip in (tiny_clip, tmp_path, str(tmp_path)):
        assert {parameter.dtype for parameter in CLIPNModel.from_clip(clip).parameters()} == {torch.float32}
        half = CLIPNModel.from_clip(clip, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert CLIPNModel.from_clip(clip, dtype="torch.float16").dtype == torch.float16
        assert CLIPNModel.from_clip(clip, dtype="float32").dtype == torch.float32
        assert CLIPNModel.from_clip(clip, dtype="auto").dtype == stored
    assert tiny_clip.dtype == stored


def test_from_clip_passes_loading_arguments_on(
    tiny_clip: CLIPModel, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_clip.config.text_config.eos_token_id = 2
    tiny_clip.save_pretrained(tmp_path / "inner")
    CLIPTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path / "inner")
    asked: dict[str, dict[str, Any]] = {}
    for loader in (AutoConfig, AutoTokenizer, CLIPModel):
        original = loader.from_pretrained

        def spy(*args: Any, name: str = loader.__name__, original: Any = original, **kwargs: Any) -> Any:
            asked.setdefault(name, kwargs)  # The tokenizer asks for the configuration, too.
            return original(*args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", spy)
    hub_arguments = {
        "cache_dir": tmp_path,
        "force_download": True,
        "local_files_only": True,
        "revision": "v1",
        "subfolder": "inner",
        "token": "hf_test",
    }
    model = CLIPNModel.from_clip(tmp_path, attn_implementation="eager", device_map="cpu", **hub_arguments)
    assert asked["AutoConfig"] == asked["AutoTokenizer"] == hub_arguments
    assert asked["CLIPModel"].items() >= {**hub_arguments, "attn_implementation": "eager", "device_map": "cpu"}.items()
    for part in (model, model.text_model, model.no_text_model, model.vision_model):
        assert part.config._attn_implementation == "eager"
    assert model.clip_revision == "v1"
    assert model.name_or_path == str(tmp_path / "inner")


def test_from_clip_remembers_the_clip_as_peft_reads_it(
    tiny_clip: CLIPModel, clip_folder: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    for clip in (clip_folder, CLIPModel.from_pretrained(clip_folder)):
        model = CLIPNModel.from_clip(clip)
        assert model.name_or_path == model.config.name_or_path == str(clip_folder)
    model.save_pretrained(tmp_path / "whole")
    assert str(clip_folder) not in (tmp_path / "whole" / "config.json").read_text()
    adapted = get_peft_model(model, LoraConfig(target_modules=r"no_text_model\..*q_proj"))
    assert adapted.peft_config["default"].base_model_name_or_path == str(clip_folder)
    # Loaded by name, a CLIPN would bring its own "no" text encoder.
    for clip in (tiny_clip, clipn_folder, CLIPNModel.from_pretrained(clipn_folder)):
        assert CLIPNModel.from_clip(clip).name_or_path == ""


def test_from_clip_refuses_a_checkpoint_that_lacks_weights(tiny_clip: CLIPModel, tmp_path: Path) -> None:
    weights = tiny_clip.state_dict()
    del weights["visual_projection.weight"]
    tiny_clip.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(IncompleteCheckpointError, match=r"lacks weights of CLIPModel: visual_projection\.weight\. "):
        CLIPNModel.from_clip(tmp_path)


def test_from_clip_replaces_the_end_token_of_old_configurations(
    tiny_clip: CLIPModel, clip_folder: Path, tmp_path: Path
) -> None:
    end_token_id = tiny_clip.config.text_config.eos_token_id
    vocab_size = tiny_clip.config.text_config.vocab_size
    assert end_token_id == vocab_size - 1
    tiny_clip.config.text_config.eos_token_id = 2
    assert CLIPNModel.from_clip(tiny_clip).config.text_config.eos_token_id == vocab_size - 1
    tiny_clip.save_pretrained(tmp_path)
    assert CLIPNModel.from_clip(tmp_path).config.text_config.eos_token_id == vocab_size - 1

    # A tokenizer in the folder knows better: here it has an end token that is not the last one.
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    tokenizer.eos_token = "cat</w>"
    tokenizer.save_pretrained(tmp_path)
    model = CLIPNModel.from_clip(tmp_path)
    assert model.config.text_config.eos_token_id == tokenizer.convert_tokens_to_ids("cat</w>") != vocab_size - 1
    assert model.text_model.eos_token_id == model.no_text_model.eos_token_id == model.config.text_config.eos_token_id


def test_a_model_object_remembers_where_its_tokenizer_is(
    tiny_clip: CLIPModel, clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_clip.config.text_config.eos_token_id = 2
    # As of a vocabulary that was filled up
    vocab_size = tiny_clip.config.text_config.vocab_size
    tiny_clip.text_model.resize_token_embeddings(vocab_size + 8)
    tiny_clip.config.text_config.vocab_size = vocab_size + 8
    tiny_clip.save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        assert CLIPNModel.from_clip(loaded).config.text_config.eos_token_id == vocab_size - 1
        assert "eos_token_id" not in caplog.text
        loaded.name_or_path = "neither/a/folder"
        assert CLIPNModel.from_clip(loaded).config.text_config.eos_token_id == vocab_size + 7
    assert "`eos_token_id=2`, and no tokenizer says" in caplog.text
    assert "pass `eos_token_id` to `CLIPNModel.from_clip`" in caplog.text
    caplog.clear()
    model = CLIPNModel.from_clip(loaded, eos_token_id=vocab_size - 1)
    assert model.no_text_model.eos_token_id == model.config.text_config.eos_token_id == vocab_size - 1
    assert not caplog.text


def test_from_clip_takes_tuples(tiny_clip: CLIPModel) -> None:
    model = CLIPNModel.from_clip(
        tiny_clip, no_prompt_type="handcrafted", num_no_prompts=0, templates=("a {}.",), no_templates=("no {}.",)
    )
    assert (model.config.templates, model.config.no_templates) == (["a {}."], ["no {}."])


@torch.no_grad()
def test_the_new_end_token_pools_as_the_old_rule_did(tiny_clip: CLIPModel) -> None:
    tiny_clip.config.text_config.eos_token_id = 2
    legacy = CLIPModel(tiny_clip.config).eval()
    legacy.load_state_dict(tiny_clip.state_dict())
    model = CLIPNModel.from_clip(legacy)
    texts = random_texts(model)
    texts["input_ids"][0, 4:] = model.config.text_config.eos_token_id
    assert torch.equal(model.get_text_features(**texts).pooler_output, legacy.get_text_features(**texts).pooler_output)


@pytest.mark.parametrize("no_prompt_type", ["learnable", "handcrafted"])
def test_from_clip_takes_the_clip_of_a_clipn(
    tiny_clip: CLIPModel, tiny_clipn: CLIPNModel, clipn_folder: Path, no_prompt_type: str
) -> None:
    expected = CLIPNModel.from_clip(tiny_clip, no_prompt_type=no_prompt_type)
    for clip in (tiny_clipn, clipn_folder):
        model = CLIPNModel.from_clip(clip, no_prompt_type=no_prompt_type)
        assert same_weights(model, expected)
        assert model.config.no_templates == expected.config.no_templates


def test_from_clip_errors(tiny_clip: CLIPModel, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no argument `vocab_size`\. Known ones are attn_implementation, .*token"):
        CLIPNModel.from_clip(tiny_clip, vocab_size=3)
    with pytest.raises(TypeError, match="no argument `num_no_prompt`. Did you mean `num_no_prompts`?"):
        CLIPNModel.from_clip(tiny_clip, num_no_prompt=3)
    with pytest.raises(TypeError, match="`revision`, `token` say how a checkpoint is loaded, but `clip` is a CLIP"):
        CLIPNModel.from_clip(tiny_clip, revision="main", token="hf_", cache_dir=None)
    with pytest.raises(ValueError, match=r"`dtype` must be a floating-point type .* got 'int8'"):
        CLIPNModel.from_clip(tiny_clip, dtype="int8")
    for values, message in (
        ({"templates": ["a photo"]}, r"`templates\[0\]` must contain"),
        ({"no_prompt_type": "none"}, "no_prompt_type"),
        ({"num_no_prompts": 0}, "`num_no_prompts` must be at least 1"),
        ({"no_prompt_type": "handcrafted", "templates": ["a {}."]}, "needs `no_templates`"),
        ({"eos_token_id": 10**6}, "`eos_token_id` must lie between 0 and"),
    ):
        with pytest.raises(ValueError, match=message):
            CLIPNModel.from_clip(tiny_clip, **values)
    with pytest.raises(TypeError, match="`templates` must be a list of strings"):
        CLIPNModel.from_clip(tiny_clip, templates="a {}.")
    with pytest.raises(TypeError, match="must be a CLIPModel, a Hub id or a folder, got int: 3"):
        CLIPNModel.from_clip(3)
    SiglipConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'siglip', expected 'clip'"):
        CLIPNModel.from_clip(tmp_path)


# Initialisation, saving and loading


def test_a_new_model_starts_with_a_copy(tiny_clipn: CLIPNModel) -> None:
    torch.manual_seed(0)
    model = CLIPNModel(tiny_clipn.config)
    embeddings = model.no_text_model.embeddings
    assert embeddings.no_prompts.shape == (NUM_PROMPTS, 77, 32)
    assert not embeddings.no_prompts.any()
    for name, parameter in model.text_model.named_parameters():
        assert torch.equal(model.no_text_model.get_parameter(name), parameter)
        assert model.no_text_model.get_parameter(name) is not parameter
    assert torch.equal(model.no_text_projection.weight, model.text_projection.weight)
    # CLIP's own initialisation, which code outside of transformers does not get by itself
    reference = CLIPModel(CLIPConfig(**{k: v for k, v in model.config.to_dict().items() if k != "model_type"}))
    for name, parameter in reference.named_parameters():
        if parameter.numel() >= 256 or parameter.std(correction=0) == 0:
            torch.testing.assert_close(
                model.get_parameter(name).std(correction=0), parameter.std(correction=0), rtol=0.2, atol=1e-3
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("no_prompt_type", ["learnable", "handcrafted"])
@torch.no_grad()
def test_saving_and_loading_is_exact(
    request: pytest.FixtureRequest, tmp_path: Path, no_prompt_type: str, dtype: torch.dtype
) -> None:
    model = request.getfixturevalue("tiny_clipn" if no_prompt_type == "learnable" else "handcrafted").to(dtype)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = CLIPNModel.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert same_weights(loaded, model)
    for name in ("no_prompt_type", "num_no_prompts", "templates", "no_templates"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    inputs = random_inputs(model)
    assert torch.equal(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image)


def test_loading_a_clip_checkpoint_copies_and_warns(
    clip_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr("clipn_hf.modeling.modeling_clipn.logger.warning", messages.append)
    model, loading_info = CLIPNModel.from_pretrained(clip_folder, output_loading_info=True)
    assert len(messages) == 1
    assert "CLIPNModel.from_clip" in messages[0]
    assert "no_text_projection.weight" in loading_info["missing_keys"]
    assert not model.no_text_model.embeddings.no_prompts.any()
    clip = CLIPModel.from_pretrained(clip_folder)
    assert same_weights(model.text_model, clip.text_model)
    for name, parameter in clip.text_model.named_parameters():
        assert torch.equal(model.no_text_model.get_parameter(name), parameter)
    assert torch.equal(model.no_text_projection.weight, clip.text_projection.weight)


def test_missing_parameters_are_initialised_and_reported(tiny_clipn: CLIPNModel, tmp_path: Path) -> None:
    tiny_clipn.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = {
        "no_text_model.embeddings.no_prompts",
        "no_text_model.encoder.layers.0.mlp.fc1.weight",
        "logit_scale",
    }
    save_file(
        {name: value for name, value in weights.items() if name not in missing},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    model, loading_info = CLIPNModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(loading_info["missing_keys"]) == missing
    loaded = model.state_dict()
    assert not loaded["no_text_model.embeddings.no_prompts"].any()
    assert torch.equal(
        loaded["no_text_model.encoder.layers.0.mlp.fc1.weight"], loaded["text_model.encoder.layers.0.mlp.fc1.weight"]
    )
    assert loaded["logit_scale"] == pytest.approx(model.config.logit_scale_init_value)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights.keys() - missing)


def test_resizing_the_vocabulary_resizes_both_text_encoders(tiny_clipn: CLIPNModel, tmp_path: Path) -> None:
    texts = random_texts(tiny_clipn)
    with torch.no_grad():
        expected = tiny_clipn(**texts, pixel_values=random_images())
    size = tiny_clipn.config.text_config.vocab_size + 4
    assert tiny_clipn.resize_token_embeddings(size) is tiny_clipn.get_input_embeddings()
    assert tiny_clipn.config.text_config.vocab_size == size
    for tower in (tiny_clipn.text_model, tiny_clipn.no_text_model):
        assert tower.get_input_embeddings().weight.shape[0] == size
    with torch.no_grad():
        # a higher id than the end token no longer changes where a text is pooled
        outputs = tiny_clipn(**texts, pixel_values=random_images())
        torch.testing.assert_close(outputs.loss, expected.loss)
    tiny_clipn.save_pretrained(tmp_path)
    assert same_weights(CLIPNModel.from_pretrained(tmp_path), tiny_clipn)


# Training


def test_freeze_clip_leaves_the_no_parameters(tiny_clipn: CLIPNModel) -> None:
    tiny_clipn.freeze_clip()
    trainable = {name for name, parameter in tiny_clipn.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in tiny_clipn.named_parameters() if "no_" in name}
    assert "no_text_model.embeddings.no_prompts" in trainable
    assert {id(parameter) for parameter in tiny_clipn.no_parameters()} == {
        id(parameter) for parameter in tiny_clipn.parameters() if parameter.requires_grad
    }
    tiny_clipn(**random_inputs(tiny_clipn)).loss.backward()
    for name, parameter in tiny_clipn.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name


@pytest.mark.parametrize("train_first", [True, False])
def test_frozen_towers_stay_in_evaluation_mode(tiny_clipn: CLIPNModel, train_first: bool) -> None:
    if train_first:
        tiny_clipn.train()
        assert tiny_clipn.text_model.training
    tiny_clipn.freeze_clip()
    tiny_clipn.train()
    for tower, training in (
        (tiny_clipn, True),
        (tiny_clipn.no_text_model, True),
        (tiny_clipn.text_model, False),
        (tiny_clipn.vision_model, False),
    ):
        assert {module.training for module in tower.modules() if module is not tiny_clipn} >= {training}
        assert tower.training == training
    assert not any(module.training for module in tiny_clipn.vision_model.modules())
    assert tiny_clipn.eval() is tiny_clipn
    assert not any(module.training for module in tiny_clipn.modules())


def test_training_lowers_the_loss(tiny_clipn: CLIPNModel) -> None:
    tiny_clipn.freeze_clip()
    tiny_clipn.train()
    inputs = random_inputs(tiny_clipn)
    optimizer = torch.optim.AdamW(tiny_clipn.no_parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = tiny_clipn(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(tiny_clipn: CLIPNModel, use_reentrant: bool) -> None:
    tiny_clipn.freeze_clip()
    tiny_clipn.train()
    inputs = {**random_inputs(tiny_clipn), "no_prompt_index": torch.tensor([0, 5, NUM_PROMPTS])}

    def gradients() -> list[Tensor]:
        tiny_clipn.zero_grad()
        tiny_clipn(**inputs).loss.backward()
        return [parameter.grad.clone() for parameter in tiny_clipn.no_parameters()]

    expected = gradients()
    tiny_clipn.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    first_norm = tiny_clipn.no_text_model.encoder.layers[0].layer_norm1
    first_norm.register_forward_hook(lambda *_: calls.append(None))
    torch.testing.assert_close(gradients(), expected)
    assert len(calls) == 2, "a checkpointed layer of the no encoder runs again in the backward pass"


def test_what_the_trainer_looks_at() -> None:
    assert can_return_loss(CLIPNModel)
    assert CLIPNModel.accepts_loss_kwargs is False
    assert not [name for name in inspect.signature(CLIPNModel.forward).parameters if "label" in name]


def test_deep_copies_are_independent(tiny_clipn: CLIPNModel) -> None:
    other = copy.deepcopy(tiny_clipn)
    assert same_weights(other, tiny_clipn)
    with torch.no_grad():
        other.no_text_projection.weight += 1
    assert not same_weights(other, tiny_clipn)


# Precision, batches, compilation


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), padding=st.integers(0, 6), length=st.integers(2, 12))
@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(tiny_clipn: CLIPNModel, seed: int, padding: int, length: int) -> None:
    texts = random_texts(tiny_clipn, batch_size=4, length=length, seed=seed)
    images = random_images(4, seed=seed)
    outputs = tiny_clipn(**texts, pixel_values=images)
    pad = torch.full((1, padding), tiny_clipn.config.text_config.pad_token_id)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = tiny_clipn(texts["input_ids"][order], images[order], texts["attention_mask"][order])
    for name in ("text_embeds", "no_text_embeds", "image_embeds"):
        torch.testing.assert_close(shuffled[name], outputs[name][order], rtol=1e-5, atol=1e-6)
    for row in range(4):
        one = slice(row, row + 1)
        alone = tiny_clipn(
            input_ids=torch.cat([texts["input_ids"][one], pad], dim=1),
            attention_mask=torch.cat([texts["attention_mask"][one], torch.zeros_like(pad)], dim=1),
            pixel_values=images[one],
        )
        for name in ("text_embeds", "no_text_embeds", "image_embeds"):
            torch.testing.assert_close(alone[name], outputs[name][one], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_attention_implementations_agree(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    inputs["attention_mask"][0, -2:] = 0
    results = {}
    for implementation in ("sdpa", "eager"):
        tiny_clipn.set_attn_implementation(implementation)
        for tower in (tiny_clipn.text_model, tiny_clipn.no_text_model, tiny_clipn.vision_model):
            assert tower.config._attn_implementation == implementation
        results[implementation] = tiny_clipn(**inputs)
    for name in ("loss", "logits_per_image", "no_logits_per_image"):
        torch.testing.assert_close(results["sdpa"][name], results["eager"][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loading_with_an_attention_implementation(clipn_folder: Path, implementation: str) -> None:
    model = CLIPNModel.from_pretrained(clipn_folder, attn_implementation=implementation)
    assert model.no_text_model.config._attn_implementation == implementation


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1.5e-1)])
def test_half_precision(tiny_clipn: CLIPNModel, dtype: torch.dtype, tolerance: float) -> None:
    inputs = {**random_inputs(tiny_clipn), "no_prompt_index": torch.tensor([0, 5, NUM_PROMPTS])}
    expected = tiny_clipn(**inputs)
    tiny_clipn.to(dtype)
    outputs = tiny_clipn(**inputs)
    for name in ("loss", "logits_per_image", "no_logits_per_image", "text_embeds", "no_text_embeds", "image_embeds"):
        assert outputs[name].dtype == torch.float32, f"{name} is float32 whatever the dtype of the model"
        torch.testing.assert_close(outputs[name], expected[name], rtol=tolerance, atol=tolerance)
    assert outputs.text_model_output.pooler_output.dtype == dtype
    torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(3), rtol=1e-6, atol=1e-6)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in tiny_clipn.no_parameters())
    # cached embeddings are float32
    from_cache = tiny_clipn(inputs["input_ids"], image_embeds=expected.image_embeds.detach())
    assert from_cache.logits_per_image.dtype == torch.float32


def test_autocast_keeps_logits_and_losses_in_float32(tiny_clipn: CLIPNModel) -> None:
    inputs = random_inputs(tiny_clipn)
    expected = tiny_clipn(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = tiny_clipn(**inputs)
    scale = tiny_clipn.logit_scale.exp()
    for name in ("loss", "logits_per_image", "no_logits_per_image"):
        assert outputs[name].dtype == torch.float32
        torch.testing.assert_close(outputs[name], expected[name], rtol=0.15, atol=0.15)
    torch.testing.assert_close(
        outputs.logits_per_image, scale * outputs.image_embeds @ outputs.text_embeds.T, rtol=1e-6, atol=1e-5
    )


@torch.no_grad()
def test_larger_images_need_interpolated_positions(tiny_clipn: CLIPNModel) -> None:
    texts = random_texts(tiny_clipn)
    with pytest.raises(ValueError, match=r"48\*48"):
        tiny_clipn(**texts, pixel_values=random_images(size=48))
    outputs = tiny_clipn(**texts, pixel_values=random_images(size=48), interpolate_pos_encoding=True)
    assert outputs.vision_model_output.last_hidden_state.shape[1] == 36 + 1
    assert outputs.loss.isfinite()
    same_size = tiny_clipn(**texts, pixel_values=random_images(), interpolate_pos_encoding=True)
    torch.testing.assert_close(same_size.loss, tiny_clipn(**texts, pixel_values=random_images()).loss)


@pytest.mark.parametrize(
    ("mode", "extra"),
    [("eval", {}), ("train", {"no_prompt_index": torch.tensor([0, 5, NUM_PROMPTS])})],
    ids=["eval", "train"],
)
def test_compiles_into_one_graph(tiny_clipn: CLIPNModel, mode: str, extra: dict[str, Tensor]) -> None:
    tiny_clipn.freeze_clip()
    tiny_clipn.train(mode == "train")
    inputs = {**random_inputs(tiny_clipn), **extra}
    expected = tiny_clipn(**inputs)
    torch.compiler.reset()
    compiled: Callable[..., CLIPNOutput] = torch.compile(tiny_clipn, backend="aot_eager", fullgraph=True)
    outputs = compiled(**inputs)
    for name in ("loss", "logits_per_image", "no_logits_per_image"):
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-5, atol=1e-5)
    if mode == "train":
        outputs.loss.backward()
        gradients = [parameter.grad.clone() for parameter in tiny_clipn.no_parameters()]
        tiny_clipn.zero_grad()
        expected.loss.backward()
        torch.testing.assert_close(
            gradients, [parameter.grad for parameter in tiny_clipn.no_parameters()], rtol=1e-4, atol=1e-6
        )


def test_compiled_training_draws_prompts(tiny_clipn: CLIPNModel) -> None:
    tiny_clipn.freeze_clip()
    tiny_clipn.train()
    inputs = random_inputs(tiny_clipn)
    torch.compiler.reset()
    compiled: Callable[..., CLIPNOutput] = torch.compile(tiny_clipn, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert len({compiled(**inputs).loss.item() for _ in range(6)}) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_agrees_with_cpu(tiny_clipn: CLIPNModel, dtype: torch.dtype) -> None:
    inputs = {**random_inputs(tiny_clipn), "no_prompt_index": torch.tensor([0, 5, NUM_PROMPTS])}
    expected = tiny_clipn(**inputs)
    tiny_clipn.to("cuda", dtype)
    outputs = tiny_clipn(**{name: value.to("cuda") for name, value in inputs.items()})
    tolerance = 1e-3 if dtype == torch.float32 else 1.5e-1
    for name in ("loss", "logits_per_image", "no_logits_per_image"):
        torch.testing.assert_close(outputs[name].cpu(), expected[name], rtol=tolerance, atol=tolerance)
