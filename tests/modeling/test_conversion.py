# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Original checkpoints against the authors' own features, and damaged, foreign and hostile files."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.modeling.conversion import (
    convert_checkpoint,
    convert_state_dict,
    format_summary,
    load_processor,
    read_state_dict,
    save_checkpoint,
)

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "clipn_official.state_dict.safetensors"
HEADS = {"vision_heads": 2, "text_heads": 2}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """Inputs and outputs of the authors' code for the weights in `GOLDEN`."""
    return load_file(GOLDEN.with_name("clipn_official.io.safetensors"))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """The authors' state dict, a fresh one for each test."""
    return load_file(GOLDEN)


@pytest.fixture
def openclip(tiny_clip: CLIPModel) -> dict[str, Tensor]:
    return to_openclip(tiny_clip)


def to_openclip(clip: CLIPModel) -> dict[str, Tensor]:
    """State dict of a transformers CLIP in OpenCLIP's naming, written independently of the converter."""
    source = clip.state_dict()
    target = {
        "logit_scale": source["logit_scale"],
        "text_projection": source["text_projection.weight"].T.contiguous(),
        "visual.proj": source["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": source["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": source["text_model.embeddings.position_embedding.weight"],
        "visual.class_embedding": source["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": source["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": source["vision_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        target[f"ln_final.{kind}"] = source[f"text_model.final_layer_norm.{kind}"]
        target[f"visual.ln_pre.{kind}"] = source[f"vision_model.pre_layrnorm.{kind}"]
        target[f"visual.ln_post.{kind}"] = source[f"vision_model.post_layernorm.{kind}"]
        for old, new in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
            for layer in range(2):
                a, b = f"{old}.encoder.layers.{layer}", f"{new}.resblocks.{layer}"
                target[f"{b}.ln_1.{kind}"] = source[f"{a}.layer_norm1.{kind}"]
                target[f"{b}.ln_2.{kind}"] = source[f"{a}.layer_norm2.{kind}"]
                target[f"{b}.mlp.c_fc.{kind}"] = source[f"{a}.mlp.fc1.{kind}"]
                target[f"{b}.mlp.c_proj.{kind}"] = source[f"{a}.mlp.fc2.{kind}"]
                target[f"{b}.attn.out_proj.{kind}"] = source[f"{a}.self_attn.out_proj.{kind}"]
                target[f"{b}.attn.in_proj_{kind}"] = torch.cat(
                    [source[f"{a}.self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")]
                )
    return target


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Agreement to 1e-5 of the largest value."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def assert_golden(model: CLIPNModel, golden: dict[str, Tensor]) -> None:
    model.eval()
    with torch.no_grad():
        image = model.get_image_features(golden["pixel_values"]).pooler_output
        text = model.get_text_features(golden["input_ids"]).pooler_output
        no_text = model.get_no_text_features(golden["input_ids"]).pooler_output
        outputs = model(input_ids=golden["input_ids"], pixel_values=golden["pixel_values"])
    assert_close(image, golden["image_features"])
    assert_close(text, golden["text_features"])
    assert_close(no_text, golden["no_text_features"])
    # the authors multiply by 100 whatever the checkpoint says
    factor = 100 / model.logit_scale.exp()
    assert_close(outputs.logits_per_image * factor, golden["logits_yes"])
    assert_close(outputs.no_logits_per_image * factor, golden["logits_no"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_golden_features(
    tmp_path: Path, weights: dict[str, Tensor], golden: dict[str, Tensor], prefix: str, wrapped: bool
) -> None:
    state_dict = {prefix + key: tensor for key, tensor in weights.items()}
    source = tmp_path / "epoch_10.pt"
    torch.save({"epoch": 10, "name": "ViT-B-16", "state_dict": state_dict} if wrapped else state_dict, source)
    convert_checkpoint(source, tmp_path / "clipn")
    model = CLIPNModel.from_pretrained(tmp_path / "clipn")
    assert_golden(model, golden)


def test_golden_features_in_training_mode(weights: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    model = convert_state_dict(weights).train()
    with torch.no_grad():
        features = model.get_no_text_features(golden["input_ids"], no_prompt_index=golden["train_prompt_index"])
    assert_close(features.pooler_output, golden["no_text_features_train"])


def test_summary_states_what_was_inferred_and_assumed(tmp_path: Path) -> None:
    summary = convert_checkpoint(GOLDEN, tmp_path / "clipn")
    for config in (summary.config, AutoConfig.from_pretrained(tmp_path / "clipn")):
        assert (config.no_prompt_type, config.num_no_prompts, config.projection_dim) == ("learnable", 16, 32)
        vision, text = config.vision_config, config.text_config
        assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (64, 256, 2)
        assert (vision.image_size, vision.patch_size, vision.num_attention_heads) == (32, 8, 1)
        assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (64, 256, 2)
        assert (text.vocab_size, text.max_position_embeddings, text.num_attention_heads) == (600, 77, 1)
        assert (text.eos_token_id, text.hidden_act, vision.hidden_act) == (599, "gelu", "gelu")
    assert summary.processor is None
    rendered = format_summary(summary)
    for statement in (
        "learnable, 16",
        "2 layers of width 64 (MLP 256), 32 × 32 pixels in patches of 8",
        "485,505 parameters, float32",
        "activation       gelu",
        "token 599",
        "model only",
    ):
        assert statement in rendered
    assert not list(tmp_path.glob("clipn/tokenizer*"))


def test_handcrafted(tmp_path: Path, weights: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    prompts = weights.pop("prompt_no")
    save_file(weights, tmp_path / "handcrafted.safetensors")
    summary = convert_checkpoint(
        tmp_path / "handcrafted.safetensors",
        tmp_path / "clipn",
        templates=["a photo of a {}."],
        no_templates=["a photo of no {}."],
    )
    assert "hand-crafted" in format_summary(summary)
    model = CLIPNModel.from_pretrained(tmp_path / "clipn")
    assert model.config.no_prompt_type == "handcrafted"
    assert model.config.no_templates == ["a photo of no {}."]
    # without prompts the "no" encoder is the plain transformer: the mean prompt moves into the positions
    with torch.no_grad():
        model.no_text_model.embeddings.position_embedding.weight += prompts.mean(dim=0)
        features = model.get_no_text_features(golden["input_ids"]).pooler_output
    assert_close(features, golden["no_text_features"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_plain_openclip_becomes_a_clip(
    tmp_path: Path, tiny_clip: CLIPModel, openclip: dict[str, Tensor], clip_folder: Path, suffix: str
) -> None:
    source = tmp_path / f"open_clip{suffix}"
    if suffix == ".pt":
        torch.save(openclip, source)
    else:
        save_file({key: tensor.clone() for key, tensor in openclip.items()}, source)
    summary = convert_checkpoint(source, tmp_path / "clip", processor=clip_folder, activation="quick_gelu", **HEADS)
    assert str(clip_folder) in format_summary(summary)
    assert "quick_gelu" in format_summary(summary)
    model = CLIPModel.from_pretrained(tmp_path / "clip")
    expected = tiny_clip.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "clip")
    assert isinstance(processor, CLIPProcessor)
    image = Image.new("RGB", (50, 40), "red")
    inputs = processor(text=["a cat", "a photo of a dog"], images=image, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits_per_image, tiny_clip(**inputs).logits_per_image)
    assert CLIPNModel.from_clip(tmp_path / "clip").config.text_config.eos_token_id == processor.tokenizer.eos_token_id


def test_clipn_with_processor(tmp_path: Path, openclip: dict[str, Tensor], clip_folder: Path) -> None:
    no_names = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    for key in [key for key in openclip if key.startswith(no_names)]:
        head, dot, rest = key.partition(".")
        openclip[f"{head}_no{dot}{rest}"] = openclip[key]
    openclip["prompt_no"] = torch.zeros(4, 77, 32)
    torch.save(openclip, tmp_path / "clipn.pt")
    convert_checkpoint(
        tmp_path / "clipn.pt", tmp_path / "clipn", processor=clip_folder, templates=["a drawing of a {}."], **HEADS
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "clipn")
    assert isinstance(processor, CLIPNProcessor)
    assert processor.build_no_prompts(["cat"]) == ["a drawing of a cat."]
    config = CLIPNModel.from_pretrained(tmp_path / "clipn").config
    assert config.num_no_prompts == 4
    assert config.templates == config.no_templates == ["a drawing of a {}."]
    assert config.text_config.eos_token_id == processor.tokenizer.eos_token_id


def test_processor_must_fit_the_weights(
    tmp_path: Path, openclip: dict[str, Tensor], tiny_processor: CLIPProcessor
) -> None:
    tiny_processor.tokenizer.model_max_length = 10**30
    tiny_processor.save_pretrained(tmp_path / "fits")
    tiny_processor.image_processor.crop_size = {"height": 64, "width": 64}
    tiny_processor.save_pretrained(tmp_path / "large")
    torch.save(openclip, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="makes pictures of 64 x 64 pixels, but the weights are for 32 x 32"):
        convert_checkpoint(tmp_path / "clip.pt", tmp_path / "clip", processor=tmp_path / "large", **HEADS)
    with pytest.raises(ValueError, match=r"has \d+ tokens, but the weights are for 600"):
        convert_checkpoint(GOLDEN, tmp_path / "clip", processor=tmp_path / "fits")
    assert not (tmp_path / "clip").exists()
    convert_checkpoint(tmp_path / "clip.pt", tmp_path / "clip", processor=tmp_path / "fits", **HEADS)
    assert AutoProcessor.from_pretrained(tmp_path / "clip").tokenizer.model_max_length == 77


def test_processor_must_be_a_clip_processor(tmp_path: Path, tiny_clip: CLIPModel, clip_folder: Path) -> None:
    processor = CLIPProcessor.from_pretrained(clip_folder)
    # without its template the tokenizer adds neither start nor end token
    processor.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    endless = PreTrainedTokenizerFast(
        tokenizer_object=processor.tokenizer.backend_tokenizer, eos_token=processor.tokenizer.eos_token
    )
    endless.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="must hold a tokenizer and an image processor"):
        load_processor(tmp_path / "tokenizer", tiny_clip.config)
    CLIPProcessor(processor.image_processor, endless).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="does not end texts with its end token"):
        load_processor(tmp_path / "endless", tiny_clip.config)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float16], torch.float16),
        ([torch.bfloat16], torch.bfloat16),
        ([torch.float16, torch.float32], torch.float32),
        ([torch.float64], torch.float32),
    ],
)
def test_dtype(weights: dict[str, Tensor], dtypes: list[torch.dtype], expected: torch.dtype) -> None:
    state_dict = {key: tensor.to(dtypes[i % len(dtypes)]) for i, (key, tensor) in enumerate(weights.items())}
    model = convert_state_dict(state_dict)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {expected}


def test_arguments(weights: dict[str, Tensor], openclip: dict[str, Tensor]) -> None:
    model = convert_state_dict(weights, activation="quick_gelu", vision_heads=4, text_heads=2, eos_token_id=7)
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.num_attention_heads, text.num_attention_heads) == (4, 2)
    assert (text.eos_token_id, model.text_model.eos_token_id, model.no_text_model.eos_token_id) == (7, 7, 7)
    assert {vision.hidden_act, text.hidden_act} == {"quick_gelu"}
    with pytest.raises(ValueError, match="`activation` must be one of gelu, quick_gelu, got 'relu'"):
        convert_state_dict(weights, activation="relu")
    with pytest.raises(ValueError, match="`vision_heads` must be a divisor of the width 64, got 3"):
        convert_state_dict(weights, vision_heads=3)
    with pytest.raises(ValueError, match="`eos_token_id` must lie between 0 and 599, got 600"):
        convert_state_dict(weights, eos_token_id=600)
    with pytest.raises(ValueError, match="width 32 is not a multiple of 64.*set `vision_heads`"):
        convert_state_dict(openclip)
    with pytest.raises(ValueError, match="Templates belong to a CLIPN"):
        convert_state_dict(openclip, templates=["a {}."], **HEADS)


def test_wide_image_encoder_warns_about_its_heads(openclip: dict[str, Tensor]) -> None:
    """OpenCLIP's ViT-H is 1280 wide with 16 heads, which width / 64 gets wrong."""
    for key, tensor in openclip.items():
        if key.startswith("visual."):
            sizes = [{32: 1280, 96: 3840}.get(size, size) for size in tensor.shape]
            openclip[key] = torch.zeros(sizes)
    with pytest.warns(UserWarning, match="given 20 heads of 64.*set `vision_heads`"):
        convert_state_dict(openclip, text_heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_state_dict(openclip, vision_heads=16, text_heads=2)


def test_harmless_keys_are_ignored_and_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    weights["attn_mask"] = torch.full((77, 77), float("-inf")).triu(1)
    weights["context_length"] = torch.tensor(77)
    torch.save(weights, tmp_path / "clipn.pt")
    summary = convert_checkpoint(tmp_path / "clipn.pt", tmp_path / "clipn")
    assert summary.ignored_keys == ("attn_mask", "context_length")
    assert "attn_mask, context_length (no weights)" in format_summary(summary)


def test_wrong_keys_and_shapes_are_listed(weights: dict[str, Tensor]) -> None:
    del weights["ln_final_no.bias"], weights["transformer.resblocks.1.attn.in_proj_weight"]
    weights["visual.head.weight"] = torch.zeros(3, 3)
    weights["visual.proj"] = torch.zeros(64, 31)
    with pytest.raises(ValueError, match="do not form a CLIP") as error:
        convert_state_dict(weights)
    message = str(error.value)
    assert "missing keys: ln_final_no.bias, transformer.resblocks.1.attn.in_proj_weight" in message
    assert "unexpected keys: visual.head.weight" in message
    assert "wrong shapes: visual.proj (64, 31) instead of (64, 32)" in message


def test_missing_layer_is_listed(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if key.startswith("transformer_no.resblocks.1.")]:
        del weights[key]
    with pytest.raises(ValueError, match="missing keys: transformer_no.resblocks.1.attn.in_proj_bias"):
        convert_state_dict(weights)


@pytest.mark.parametrize("key", ["visual.conv1.weight", "text_projection", "transformer.resblocks.0.mlp.c_fc.weight"])
def test_sizes_need_their_keys(weights: dict[str, Tensor], key: str) -> None:
    tensor = weights.pop(key)
    with pytest.raises(ValueError, match=f"Missing key '{key}'"):
        convert_state_dict(weights)
    weights[key] = tensor[0]
    with pytest.raises(ValueError, match=f"'{key}' must have"):
        convert_state_dict(weights)


def test_pictures_must_be_square(weights: dict[str, Tensor]) -> None:
    weights["visual.positional_embedding"] = torch.zeros(13, 64)
    with pytest.raises(ValueError, match="square pictures in square patches"):
        convert_state_dict(weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(weights: dict[str, Tensor], value: float) -> None:
    weights["ln_final.weight"][3] = value
    with pytest.raises(ValueError, match="NaN or infinite values.*ln_final.weight"):
        convert_state_dict(weights)


def test_weights_must_be_floating_point(weights: dict[str, Tensor]) -> None:
    weights["ln_final.weight"] = torch.ones(64, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be floating point numbers.*ln_final.weight"):
        convert_state_dict(weights)


def test_key_with_and_without_prefix(weights: dict[str, Tensor]) -> None:
    weights["module.logit_scale"] = weights["logit_scale"]
    with pytest.raises(ValueError, match="with and without the prefix"):
        convert_state_dict(weights)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("visual.layer1.0.conv1.weight", "ResNet"),
        ("visual.attnpool.positional_embedding", "ResNet"),
        ("visual.trunk.patch_embed.proj.weight", "timm"),
        ("text.transformer.embeddings.word_embeddings.weight", "separate text tower"),
        ("text_model.embeddings.token_embedding.weight", "transformers' naming already"),
    ],
)
def test_other_architectures_are_named(key: str, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        convert_state_dict({key: torch.zeros(2, 2)})


class Bomb:
    """Pickles to a call that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_bomb_is_refused_and_does_not_run(tmp_path: Path, weights: dict[str, Tensor], legacy: bool) -> None:
    payload = tmp_path / "payload-ran"
    source = tmp_path / "bomb.pt"
    torch.save({"state_dict": weights, "epoch": Bomb(payload)}, source, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="refused and nothing in it was run"):
        convert_checkpoint(source, tmp_path / "clipn")
    assert not payload.exists()
    assert not (tmp_path / "clipn").exists()
    # the bomb is a live one
    torch.load(source, weights_only=False)
    assert payload.exists()


def test_bare_pickle_bomb(tmp_path: Path) -> None:
    source = tmp_path / "bomb.bin"
    source.write_bytes(pickle.dumps(Bomb(tmp_path / "payload-ran"), protocol=2))
    with pytest.raises(ValueError, match="refused and nothing in it was run"):
        read_state_dict(source)
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, weights: dict[str, Tensor], suffix: str, kept: float) -> None:
    source = tmp_path / f"clipn{suffix}"
    if suffix == ".pt":
        torch.save(weights, source)
    else:
        save_file(weights, source)
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="damaged"):
        read_state_dict(source)


def test_legacy_format(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "clipn.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "clipn.pth").keys() == weights.keys()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match="TorchScript archive.*openai/clip-vit-base-patch16"):
        read_state_dict(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}, {"state_dict": {3: torch.zeros(1)}}])
def test_file_without_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="must hold tensors by name"):
        read_state_dict(tmp_path / "other.pt")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such checkpoint file"):
        convert_checkpoint(tmp_path / "absent.pt", tmp_path / "clipn")
    with pytest.raises(ValueError, match="is a folder; give the weights file"):
        convert_checkpoint(tmp_path, tmp_path / "clipn")


def test_output_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    output = tmp_path / "clipn"
    output.mkdir()
    convert_checkpoint(GOLDEN, output)  # an empty folder is fine
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        convert_checkpoint(GOLDEN, output)
    (output / "stale.txt").touch()
    convert_checkpoint(GOLDEN, output, overwrite=True)
    assert not (output / "stale.txt").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").touch()
    with pytest.raises(FileExistsError, match="holds no checkpoint"):
        convert_checkpoint(GOLDEN, tmp_path / "notes", overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        convert_checkpoint(GOLDEN, tmp_path / "notes" / "precious.txt", overwrite=True)
    source = output / "original.safetensors"
    source.write_bytes(GOLDEN.read_bytes())
    with pytest.raises(ValueError, match="lies inside the output folder"):
        convert_checkpoint(source, output, overwrite=True)
    assert source.exists()


def test_failed_write_leaves_nothing(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    class BrokenProcessor:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "clipn", convert_state_dict(weights), BrokenProcessor())
    assert not list(tmp_path.iterdir())
