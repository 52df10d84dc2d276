# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Ways of tuning: exactly the named parameters move, and what is saved gives the same outputs where it is loaded."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import CLIPModel

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.training import CLIPNTrainer, add_no_tokens, load_no_prompts, save_no_prompts

MakeTrainer = Callable[..., CLIPNTrainer]
Pairs = list[dict[str, Tensor]]

# How the parameters of each way of tuning are named, a part of the full name
MOVED = {
    "full": "no_text_",
    "lora": "lora_",
    "trainable_tokens": "no_text_model.embeddings.token_embedding.trainable_tokens_delta",
    "no_prompts": "no_text_model.embeddings.no_prompts",
}


def base_model(clip: CLIPModel, tuning: str) -> CLIPNModel:
    kind = "handcrafted" if tuning == "trainable_tokens" else "learnable"
    return CLIPNModel.from_clip(clip, no_prompt_type=kind, num_no_prompts=3)


def with_placeholders(pairs: Pairs, token_ids: list[int]) -> Pairs:
    """The pairs, their "no" texts being the captions behind placeholder tokens."""
    placeholders = torch.tensor(token_ids)
    rows = []
    for row in pairs:
        ids, mask = row["input_ids"], row["attention_mask"]
        no_ids = torch.cat([ids[:1], placeholders, ids[1:]])
        rows.append({**row, "no_input_ids": no_ids, "no_attention_mask": torch.cat([mask[: len(token_ids)], mask])})
    return rows


def outputs(model: nn.Module, pairs: Pairs) -> tuple[Tensor, Tensor]:
    model.eval()
    with torch.no_grad():
        result = model(**default_collate(pairs[:6]))
    return result.logits_per_image, result.no_logits_per_image


class Run(NamedTuple):
    trainer: CLIPNTrainer
    pairs: Pairs  # what it was trained on
    initial: dict[str, Tensor]  # the parameters before


@pytest.fixture
def train(tiny_clip: CLIPModel, make_trainer: MakeTrainer, pairs: Pairs) -> Callable[[str], Run]:
    """`train(tuning)`: three steps."""

    def run(tuning: str) -> Run:
        trainer = make_trainer(
            base_model(tiny_clip, tuning), tuning=tuning, num_trainable_tokens=4, lora_rank=4, learning_rate=1e-2
        )
        if tuning == "trainable_tokens":
            tokenizer = trainer.processing_class.tokenizer
            placeholders = tokenizer.convert_tokens_to_ids([f"<no_{index}>" for index in range(4)])
            trainer.train_dataset = with_placeholders(pairs, placeholders)
        initial = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        return Run(trainer, trainer.train_dataset, initial)

    return run


@pytest.mark.parametrize("tuning", MOVED)
def test_exactly_the_intended_parameters_move(train: Callable[[str], Run], tuning: str) -> None:
    trainer, _, initial = train(tuning)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, initial[name])}
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved == trainable == {name for name in initial if MOVED[tuning] in name}
    assert all(".no_text_" in f".{name}" for name in moved)


def test_lora_is_in_every_linear_layer_of_the_no_text_encoder(
    tiny_clip: CLIPModel, train: Callable[[str], Run]
) -> None:
    adapted = {name.partition(".lora_")[0] for name in train("lora").initial if ".lora_" in name}
    tower = base_model(tiny_clip, "lora").no_text_model
    linear = {name for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
    assert adapted == {f"base_model.model.no_text_model.{name}" for name in linear}


@pytest.mark.parametrize("tuning", ["lora", "trainable_tokens"])
def test_adapters_are_plain_peft(
    tiny_clip: CLIPModel, train: Callable[[str], Run], tmp_path: Path, tuning: str
) -> None:
    trainer, pairs, _ = train(tuning)
    trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert all("no_text_model" in name for name in shapes)
    if tuning == "trainable_tokens":
        assert list(shapes.values()) == [(4, 32)]

    fresh = base_model(tiny_clip, tuning)
    if tuning == "trainable_tokens":
        processor = CLIPNProcessor.from_pretrained(tmp_path / "adapter")
        size = fresh.config.text_config.vocab_size
        assert add_no_tokens(fresh, processor, num_tokens=4) == list(range(size, size + 4))
    untrained = outputs(fresh, pairs)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    trained = outputs(trainer.model, pairs)
    assert torch.equal(outputs(loaded, pairs)[0], trained[0])
    assert torch.equal(outputs(loaded, pairs)[1], trained[1])
    assert torch.equal(untrained[0], trained[0])
    assert not torch.allclose(untrained[1], trained[1], atol=1e-3)

    merged = loaded.merge_and_unload()
    assert isinstance(merged, CLIPNModel)
    torch.testing.assert_close(outputs(merged, pairs), trained, rtol=1e-5, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = CLIPNModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(outputs(again, pairs)[1], outputs(merged, pairs)[1])


def test_no_tokens(handcrafted: CLIPNModel, processor: CLIPNProcessor) -> None:
    handcrafted.config.text_config.eos_token_id = 2
    handcrafted.text_model.eos_token_id = handcrafted.no_text_model.eos_token_id = 2
    handcrafted.freeze_clip()
    handcrafted.train()
    tokenizer = processor.tokenizer
    size = len(tokenizer)
    prompt = tokenizer(["a photo of a cat."], return_tensors="pt")
    with torch.no_grad():
        before = handcrafted.get_text_features(**prompt).pooler_output

    token_ids = add_no_tokens(handcrafted, processor, num_tokens=4)
    assert token_ids == list(range(size, size + 4))
    assert processor.no_templates[0] == "<no_0> <no_1> <no_2> <no_3> a photo of a {}."
    assert handcrafted.config.no_templates == processor.no_templates
    assert handcrafted.config.templates == processor.templates
    assert handcrafted.config.text_config.vocab_size == size + 4
    assert not handcrafted.text_model.embeddings.training
    with torch.no_grad():
        assert torch.equal(handcrafted.get_text_features(**prompt).pooler_output, before)

    (ids,) = tokenizer(processor.build_no_prompts(["cat"])[:1])["input_ids"]
    assert ids[:5] == [tokenizer.bos_token_id, *token_ids]
    assert ids[5:] == prompt["input_ids"][0, 1:].tolist()
    words = tokenizer("a photo without", add_special_tokens=False)["input_ids"]
    for tower in (handcrafted.text_model, handcrafted.no_text_model):
        rows = tower.get_input_embeddings().weight
        assert torch.equal(rows[token_ids], rows[(3 * words)[-4:]])
        assert tower.eos_token_id == tokenizer.eos_token_id

    parameters = copy.deepcopy(handcrafted.state_dict())
    assert add_no_tokens(handcrafted, processor, num_tokens=4) == token_ids
    assert len(tokenizer) == size + 4
    torch.testing.assert_close(handcrafted.state_dict(), parameters, rtol=0, atol=0)


def test_tokens_that_cannot_be_added(
    handcrafted: CLIPNModel, tiny_clipn: CLIPNModel, processor: CLIPNProcessor, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match="'learnable'.*no_prompt_type='handcrafted'"):
        add_no_tokens(tiny_clipn, processor, num_tokens=2)
    with pytest.raises(ValueError, match="no_prompt_type='handcrafted'"):
        make_trainer(tiny_clipn, tuning="trainable_tokens")
    with pytest.raises(ValueError, match="`num_tokens` must be at least 1, got 0"):
        add_no_tokens(handcrafted, processor, num_tokens=0)
    with pytest.raises(ValueError, match="at least one word, got ' '"):
        add_no_tokens(handcrafted, processor, num_tokens=2, initial_text=" ")


def test_no_prompts_alone(tiny_clip: CLIPModel, train: Callable[[str], Run], tmp_path: Path) -> None:
    trainer, pairs, _ = train("no_prompts")
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "no_prompts.safetensors").stat().st_size < 4 * 3 * 77 * 32 + 1000
    fresh = base_model(tiny_clip, "no_prompts")
    assert not torch.equal(outputs(fresh, pairs)[1], outputs(trainer.clipn, pairs)[1])
    load_no_prompts(fresh, tmp_path / "saved" / "no_prompts.safetensors")
    assert torch.equal(outputs(fresh, pairs)[1], outputs(trainer.clipn, pairs)[1])
    whole = CLIPNModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(whole, pairs)[1], outputs(trainer.clipn, pairs)[1])


def test_no_prompts_that_do_not_fit(
    tiny_clip: CLIPModel, tiny_clipn: CLIPNModel, handcrafted: CLIPNModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    file = tmp_path / "no_prompts.safetensors"
    save_no_prompts(tiny_clipn, file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    before = tiny_clipn.no_text_model.embeddings.no_prompts.clone()
    load_no_prompts(tiny_clipn, str(file))
    assert torch.equal(tiny_clipn.no_text_model.embeddings.no_prompts, before)

    with pytest.raises(ValueError, match=r"\(16, 77, 32\).*takes \(3, 77, 32\).*num_no_prompts=16"):
        load_no_prompts(base_model(tiny_clip, "no_prompts"), file)
    with pytest.raises(ValueError, match="'handcrafted'.*no_prompt_type='learnable'"):
        load_no_prompts(handcrafted, file)
    with pytest.raises(ValueError, match="'handcrafted'.*no_prompt_type='learnable'"):
        save_no_prompts(handcrafted, file)
    with pytest.raises(ValueError, match="'handcrafted'.*no_prompt_type='learnable'"):
        make_trainer(handcrafted, tuning="no_prompts")
    with pytest.raises(FileNotFoundError):
        load_no_prompts(tiny_clipn, tmp_path / "absent.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_no_prompts(tiny_clipn, file)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"\['weight'\].*from_pretrained"):
        load_no_prompts(tiny_clipn, file)
