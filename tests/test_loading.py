# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters by folder alone: the same scores as the model in memory, whatever their base model is."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, CLIPNProcessor, DualEncoder, IncompleteCheckpointError, OODDetector, pipeline
from clipn_hf.encoders import EMBEDDED_CHECKPOINT, AutoDualEncoder
from clipn_hf.modeling import add_no_tokens, save_prompt_settings
from clipn_hf.prompts import NO_TEMPLATES

LABELS = ["cat", "red bird", "tree"]
LORA = r"no_text_model\.encoder\.layers\.\d+\.self_attn\.(q|v)_proj"
TOKENS = r"no_text_model\.embeddings\.token_embedding"
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)) for seed in range(4)]


@pytest.fixture
def base_folder(clip_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What `request.param` names: a plain CLIP, or a CLIPN with hand-crafted or learnable "no" prompts."""
    if request.param == "clip":
        return clip_folder
    model = CLIPNModel.from_clip(clip_folder, no_prompt_type=request.param)
    with torch.no_grad():
        for parameter in model.no_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "base")
    processor = CLIPProcessor.from_pretrained(clip_folder)
    CLIPNProcessor(processor.image_processor, processor.tokenizer).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapt(base: Path, kind: str, **prompts: Any) -> tuple[PeftModel, CLIPNProcessor]:
    """A model with an adapter whose weights matter, and its processor."""
    is_clip = json.loads((base / "config.json").read_text())["model_type"] == "clip"
    model = CLIPNModel.from_clip(base, **prompts) if is_clip else CLIPNModel.from_pretrained(base)
    parts = CLIPProcessor.from_pretrained(base)
    processor = CLIPNProcessor(parts.image_processor, parts.tokenizer)
    model.freeze_clip()
    if kind == "lora":
        config: Any = LoraConfig(r=4, target_modules=LORA)
    else:
        config = TrainableTokensConfig(token_indices=add_no_tokens(model, processor, 3), target_modules=TOKENS)
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapted.eval(), processor


def scores(model: Any, processor: Any = None) -> torch.Tensor:
    encoder = DualEncoder(model, processor) if processor is not None else DualEncoder.from_pretrained(model)
    return OODDetector(encoder, LABELS, "ctw").score(IMAGES)


def check_all_ways_in(folder: Path, adapted: PeftModel, processor: CLIPNProcessor) -> None:
    expected = scores(adapted, processor)
    with adapted.disable_adapter():
        assert not torch.allclose(scores(adapted, processor), expected, atol=1e-4)
    torch.testing.assert_close(scores(folder), expected, rtol=0, atol=1e-6)
    results = pipeline("ood-detection", model=str(folder), device="cpu")(IMAGES, candidate_labels=LABELS, method="ctw")
    found = torch.tensor([result["ood_score"] for result in results])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


CLIP_BASES = [
    ("clip", "lora", {"no_prompt_type": "learnable", "num_no_prompts": 3}),
    ("clip", "lora", {"no_prompt_type": "handcrafted", "templates": ["the {}."], "no_templates": ["no {}."]}),
    ("clip", "tokens", {"no_prompt_type": "handcrafted"}),
    ("clip", "tokens", {"no_prompt_type": "handcrafted", "templates": ["the {}."], "no_templates": ["no {}."]}),
]
CLIPN_BASES: list[tuple[str, str, dict[str, Any]]] = [
    ("learnable", "lora", {}),
    ("handcrafted", "lora", {}),
    ("handcrafted", "tokens", {}),
]


@pytest.mark.parametrize(("base_folder", "kind", "prompts"), CLIP_BASES + CLIPN_BASES, indirect=["base_folder"])
@pytest.mark.parametrize("with_processor", [True, False])
def test_adapters_load_by_folder(
    base_folder: Path, kind: str, prompts: dict[str, Any], with_processor: bool, tmp_path: Path
) -> None:
    adapted, processor = adapt(base_folder, kind, **prompts)
    adapted.save_pretrained(tmp_path / "adapter")
    save_prompt_settings(adapted.config, tmp_path / "adapter")
    if with_processor:
        processor.save_pretrained(tmp_path / "adapter")
    elif kind == "tokens":
        # The tokens themselves are in the tokenizer.
        processor.tokenizer.save_pretrained(tmp_path / "adapter")
    check_all_ways_in(tmp_path / "adapter", adapted, processor)


@pytest.mark.parametrize("kind", ["lora", "tokens"])
def test_plain_peft_pools_at_the_end_token_of_older_configurations(
    clip_folder: Path, kind: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(clip_folder, base)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2  # As in the checkpoints of OpenAI.
    (base / "config.json").write_text(json.dumps(config))
    adapted, processor = adapt(base, kind, no_prompt_type="handcrafted")
    adapted.save_pretrained(tmp_path / "adapter")
    processor.tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["clipn_hf"]).eval()
    prompts = processor.build_no_prompts(LABELS, adapted.config.no_templates)
    texts = processor.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = (model.get_no_text_features(**texts).pooler_output for model in (adapted, loaded))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("base_folder", "kind", "prompts"), [CLIP_BASES[0], *CLIP_BASES[2:], *CLIPN_BASES], indirect=["base_folder"]
)
def test_what_peft_alone_saved_loads_by_folder(
    base_folder: Path, kind: str, prompts: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapted, processor = adapt(base_folder, kind, **prompts)
    adapted.save_pretrained(tmp_path / "adapter")
    if kind == "tokens":
        processor.save_pretrained(tmp_path / "adapter")
    check_all_ways_in(tmp_path / "adapter", adapted, processor)
    warned = "`no_prompt_type='learnable'` is assumed" in caplog.text
    assert warned == (kind == "lora" and bool(prompts))
    # Nothing but peft is needed either.
    fresh = adapt(base_folder, kind, **prompts)[0].unload()
    with torch.no_grad():
        fresh.text_model.embeddings.token_embedding.weight.copy_(adapted.text_model.embeddings.token_embedding.weight)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(scores(loaded, processor), scores(adapted, processor), rtol=0, atol=1e-6)


def test_the_processor_tells_handcrafted_prompts(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapted, processor = adapt(clip_folder, "lora", no_prompt_type="handcrafted")
    processor.templates, processor.no_templates = adapted.config.templates, adapted.config.no_templates
    adapted.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    check_all_ways_in(tmp_path, adapted, processor)
    assert "is assumed" not in caplog.text


@pytest.mark.parametrize("base_folder", ["clip", "handcrafted"], indirect=True)
def test_an_adapter_saved_again_loads_again(base_folder: Path, tmp_path: Path) -> None:
    adapted, processor = adapt(base_folder, "lora", no_prompt_type="handcrafted")
    adapted.save_pretrained(tmp_path / "adapter")
    save_prompt_settings(adapted.config, tmp_path / "adapter")
    loaded = AutoDualEncoder.from_pretrained(tmp_path / "adapter")
    loaded.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()
    check_all_ways_in(tmp_path / "again", adapted, processor)


@pytest.mark.parametrize("base_folder", ["clip", "handcrafted"], indirect=True)
def test_the_configuration_may_lie_beside_the_adapter(base_folder: Path, tmp_path: Path) -> None:
    adapted, processor = adapt(base_folder, "tokens", no_prompt_type="handcrafted")
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    check_all_ways_in(tmp_path / "adapter", adapted, processor)


def test_a_model_with_an_adapter_needs_no_other_processor(clip_folder: Path, tmp_path: Path) -> None:
    adapted, processor = adapt(clip_folder, "tokens", no_prompt_type="handcrafted")
    adapted.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = scores(adapted, processor)
    model = AutoDualEncoder.from_pretrained(tmp_path)
    for other in (None, CLIPProcessor.from_pretrained(clip_folder)):
        encoder = DualEncoder(model, other)
        assert "<no_2>" in encoder.processor.tokenizer.get_vocab()
        torch.testing.assert_close(OODDetector(encoder, LABELS, "ctw").score(IMAGES), expected, rtol=0, atol=1e-6)
    assert DualEncoder(model, processor).processor is processor


def test_adapter_on_a_plain_clip_stays_one(clip_folder: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(
        CLIPModel.from_pretrained(clip_folder), LoraConfig(target_modules=r"text_model\..*\.q_proj")
    )
    adapted.save_pretrained(tmp_path)
    encoder = DualEncoder.from_pretrained(tmp_path)
    assert type(encoder.model) is CLIPModel
    assert not encoder.has_no_encoder


def test_trained_rows_of_the_base_stay_when_an_adapter_brings_the_same_tokens(
    clip_folder: Path, tmp_path: Path
) -> None:
    merged = adapt(clip_folder, "tokens", no_prompt_type="handcrafted")[0].merge_and_unload()
    merged.save_pretrained(tmp_path / "base")
    merged = CLIPNModel.from_pretrained(tmp_path / "base")
    processor = CLIPProcessor.from_pretrained(clip_folder)
    processor.tokenizer.add_tokens(["<no_0>", "<no_1>", "<no_2>"])
    processor.save_pretrained(tmp_path / "adapter")
    get_peft_model(merged, LoraConfig(target_modules=LORA)).save_pretrained(tmp_path / "adapter")
    loaded = AutoDualEncoder.from_pretrained(tmp_path / "adapter")
    rows = CLIPNModel.from_pretrained(tmp_path / "base").no_text_model.embeddings.token_embedding.weight
    assert torch.equal(loaded.no_text_model.embeddings.token_embedding.weight, rows)


def edit_adapter(folder: Path, **entries: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def remove_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def damage_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit_adapter(folder, base_model_name_or_path=None), "does not name its base model"),
        (
            lambda folder: edit_adapter(folder, base_model_name_or_path=str(folder / "gone")),
            "The base model .*gone of the adapter .* cannot be loaded .*Put it there, or correct",
        ),
        (lambda folder: edit_adapter(folder, r=3), "cannot be put on its base model"),
        (lambda folder: edit_adapter(folder, target_modules="no_text_tower"), "cannot be put on its base model"),
        (lambda folder: edit_adapter(folder, target_modules=LORA.replace("(q|v)", "(q|v|k)")), "lacks weights of"),
        (remove_weights, "cannot be put on its base model"),
        (damage_weights, "cannot be put on its base model"),
    ],
)
def test_damaged_adapters_are_refused(
    clip_folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    adapted, _ = adapt(clip_folder, "lora")
    adapted.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(IncompleteCheckpointError, match=message):
        AutoDualEncoder.from_pretrained(tmp_path)


def test_adapters_with_tokens_need_their_tokenizer(clip_folder: Path, tmp_path: Path) -> None:
    adapted, _ = adapt(clip_folder, "tokens", no_prompt_type="handcrafted")
    adapted.save_pretrained(tmp_path)
    with pytest.raises(IncompleteCheckpointError, match=r"trains token \d+, but .*processor\.save_pretrained"):
        DualEncoder.from_pretrained(tmp_path)


def test_damaged_prompt_settings(clip_folder: Path, tmp_path: Path) -> None:
    adapted, _ = adapt(clip_folder, "lora")
    adapted.save_pretrained(tmp_path)
    for text, message in (("{", "not valid JSON"), ("[]", "must hold an object"), ("{}", "must hold an object")):
        (tmp_path / "clipn_prompts.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            AutoDualEncoder.from_pretrained(tmp_path)


def test_the_base_of_an_adapter_is_loaded_at_its_revision(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, _ = adapt(clip_folder, "lora")
    adapted.save_pretrained(tmp_path)
    edit_adapter(tmp_path, revision="v1")
    asked: list[Any] = []
    from_clip = CLIPNModel.from_clip

    def spy(*args: Any, **kwargs: Any) -> CLIPNModel:
        asked.append(kwargs.get("revision"))
        return from_clip(*args, **kwargs)

    monkeypatch.setattr(CLIPNModel, "from_clip", spy)
    AutoDualEncoder.from_pretrained(tmp_path, revision="of-the-adapter")
    assert asked == ["v1"]


def test_adapters_on_the_model_in_the_package_find_it_on_another_machine(tmp_path: Path) -> None:
    adapted, processor = adapt(Path(EMBEDDED_CHECKPOINT), "lora")
    adapted.save_pretrained(tmp_path)
    edit_adapter(tmp_path, base_model_name_or_path="/elsewhere/clipn_hf/checkpoints/clipn-tiny")
    torch.testing.assert_close(scores(tmp_path), scores(adapted, processor), rtol=0, atol=1e-6)


def test_other_ways_to_load_an_adapter_on_a_clipn_still_work(clipn_folder: Path, tmp_path: Path) -> None:
    adapted, _ = adapt(clipn_folder, "lora")
    adapted.save_pretrained(tmp_path)
    save_prompt_settings(adapted.config, tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), CLIPNModel)


def test_no_word_of_adapters_where_there_is_none(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = DualEncoder.from_pretrained(clip_folder)
    assert not caplog.records
    assert list(NO_TEMPLATES) != encoder.no_templates


def test_adapters_know_where_they_come_from(clip_folder: Path, tmp_path: Path) -> None:
    adapted, _ = adapt(clip_folder, "lora", no_prompt_type="learnable")
    adapted.save_pretrained(tmp_path / "adapter")
    save_prompt_settings(adapted.config, tmp_path / "adapter")
    encoder = DualEncoder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert (encoder.source, encoder.revision) == (str(tmp_path / "adapter"), None)
    assert encoder.describe()["id"] == str(tmp_path / "adapter")
    assert DualEncoder.from_pretrained(clip_folder, device="cpu").source == str(clip_folder)


def test_detectors_without_weights_load_the_model_they_name(clipn_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "model")
    OODDetector(tmp_path / "model", LABELS, device="cpu").save_pretrained(tmp_path / "detector", include_weights=False)
    model = AutoDualEncoder.from_pretrained(tmp_path / "detector")
    assert type(model) is CLIPNModel
    assert model.detector_source == str(tmp_path / "detector")
    assert model.weights_source == (str(tmp_path / "model"), None)
    encoder = DualEncoder.from_pretrained(tmp_path / "detector", device="cpu")
    assert encoder.source == str(tmp_path / "model")
    expected = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    pixel_values = expected.prepare_images(IMAGES)
    assert torch.equal(encoder.image_embeddings(pixel_values), expected.image_embeddings(pixel_values))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(IncompleteCheckpointError, match="model"):
        AutoDualEncoder.from_pretrained(tmp_path / "detector")


def test_folders_that_are_no_detectors_keep_their_error(clipn_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoDualEncoder.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "detector.json").write_text("{}")
    with pytest.raises(ValueError, match="without a `schema_version`"):
        AutoDualEncoder.from_pretrained(tmp_path / "model")


def test_detectors_are_looked_for_where_the_model_is(
    clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private repository, or an older revision of one, has its detector there, too."""
    assert AutoDualEncoder.from_pretrained(clipn_folder).detector_folder is None
    OODDetector(clipn_folder, LABELS, device="cpu").save_pretrained(tmp_path)
    asked = []

    def find(source: str, name: str, **hub_arguments: Any) -> str | None:
        asked.append((name, hub_arguments))
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    monkeypatch.setattr("clipn_hf.loading.find_file", find)
    model = AutoDualEncoder.from_pretrained(tmp_path, token="secret", revision="v1")
    assert model.detector_folder == str(tmp_path)
    for name in ("detector.json", "detector.safetensors"):
        assert (name, {"token": "secret", "revision": "v1"}) in asked
    # It is not kept with the model.
    assert "secret" not in repr(vars(model))
