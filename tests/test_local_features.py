# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Patches in the space of the texts: the numbers of the papers' code, from any model that is built as CLIP is."""

import copy
import doctest
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    BertConfig,
    BlipConfig,
    BlipModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPSegConfig,
    CLIPSegModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    GroupViTConfig,
    GroupViTModel,
    MetaClip2Config,
    MetaClip2Model,
    OwlViTConfig,
    OwlViTModel,
    ResNetConfig,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    XCLIPConfig,
    XCLIPModel,
)

from clipn_hf import CLIPNModel, DualEncoder, local_features
from clipn_hf.encoders import local_image_features as exported
from clipn_hf.local_features import (
    LOCAL_PATHS,
    has_local_features,
    image_and_local_features,
    local_image_features,
    patch_grid,
)

DATA = Path(__file__).parent / "data"
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION: dict[str, Any] = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT: dict[str, Any] = {**TOWER, "vocab_size": 100, "max_position_embeddings": 16}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(model_class: Any, config: Any) -> Any:
    """A model of large random weights, so that every part of it matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
    return model


def of_family(config_class: Any, model_class: Any, **options: Any) -> Any:
    return build(model_class, config_class(text_config=TEXT, vision_config=VISION, projection_dim=24, **options))


def dual(vision: Any) -> Any:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, BertConfig(**TEXT), projection_dim=24)
    return build(VisionTextDualEncoderModel, config)


FAMILIES = {
    "clip": lambda: of_family(CLIPConfig, CLIPModel),
    "altclip": lambda: of_family(AltCLIPConfig, AltCLIPModel),
    "chinese_clip": lambda: of_family(ChineseCLIPConfig, ChineseCLIPModel),
    "clipseg": lambda: of_family(CLIPSegConfig, CLIPSegModel),
    "metaclip_2": lambda: of_family(MetaClip2Config, MetaClip2Model),
    "owlvit": lambda: of_family(OwlViTConfig, OwlViTModel),
    "any text encoder": lambda: dual(CLIPVisionConfig(**VISION)),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def original_tower() -> tuple[CLIPVisionModelWithProjection, dict[str, Tensor]]:
    """The image encoder in the original format that the vectors were computed with, and these."""
    sizes = json.loads((DATA / "vision_local.json").read_text())
    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        **{name: sizes[name] for name in ("image_size", "patch_size", "projection_dim", "hidden_act")},
    )
    names = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1": "embeddings.patch_embedding",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "transformer.resblocks": "encoder.layers",
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    state = {}
    for name, tensor in load_file(DATA / "vision_local.state_dict.safetensors").items():
        if name == "proj":
            state["visual_projection.weight"] = tensor.T
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        parts = {f"vision_model.{name}": tensor}
        if "in_proj_" in name:
            block, kind = name.split("attn.in_proj_")
            parts = {
                f"vision_model.{block}self_attn.{part}_proj.{kind}": chunk
                for part, chunk in zip("qkv", tensor.chunk(3), strict=True)
            }
        state |= parts
    tower = CLIPVisionModelWithProjection(config).eval()
    tower.load_state_dict(state)
    return tower, load_file(DATA / "vision_local.io.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_published_code(attention: str) -> None:
    tower, expected = original_tower()
    tower.set_attn_implementation(attention)
    close = {"rtol": 1e-5, "atol": 1e-5}
    features, local = image_and_local_features(tower, expected["pixel_values"], LOCAL_PATHS)
    torch.testing.assert_close(features, expected["global_features"], **close)
    torch.testing.assert_close(local["value"], expected["locoop_local_features"], **close)
    # There, the class token comes first.
    torch.testing.assert_close(local["surgery"], expected["surgery_features"][:, 1:], **close)
    cosines = normalize(local["surgery"], dim=-1) @ normalize(expected["text"], dim=-1).T
    torch.testing.assert_close(cosines, expected["surgery_similarity"][:, 1:], **close)


@torch.no_grad()
def test_every_family_built_as_clip(model: Any) -> None:
    """Against what transformers itself has, and blocks in which each patch attends to itself alone."""
    features, local = image_and_local_features(model, PIXELS, LOCAL_PATHS, num_surgery_layers=2)
    assert torch.equal(features, model.get_image_features(PIXELS).pooler_output)
    assert all(found.shape == (3, 16, 24) for found in local.values())
    assert patch_grid(model, PIXELS) == (4, 4)
    assert has_local_features(model)

    tower, blocks = model.vision_model, model.vision_model.encoder.layers
    states = tower(PIXELS, output_hidden_states=True).hidden_states

    def project(states: Tensor) -> Tensor:
        return model.visual_projection(tower.post_layernorm(states))

    # The way of the class token is that of the features.
    torch.testing.assert_close(project(states[-1])[:, 0], features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(local["clip"], project(states[-1])[:, 1:], rtol=1e-5, atol=1e-5)

    model.set_attn_implementation("eager")
    alone = torch.full((17, 17), -torch.inf).fill_diagonal_(0)[None, None]
    attended = blocks[-1](states[-2], attention_mask=alone)
    attended = attended if isinstance(attended, Tensor) else attended[0]
    torch.testing.assert_close(local["value"], project(attended)[:, 1:], rtol=1e-5, atol=1e-5)

    total = states[-3]
    for block, before in zip(blocks[-2:], states[-3:-1], strict=True):
        attention = block.self_attn
        values = attention.v_proj(block.layer_norm1(before))
        heads = []
        for value in values.split(16, dim=-1):
            weights = (value @ value.transpose(1, 2) / 4).softmax(dim=-1)
            heads.append(weights @ value)
        total = total + attention.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(local["surgery"], project(total)[:, 1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_pass_gives_what_each_path_gives_alone() -> None:
    model = FAMILIES["clip"]()
    runs = []
    model.vision_model.register_forward_hook(lambda *_: runs.append(None))
    features, local = image_and_local_features(model, PIXELS, ("surgery", "value"), num_surgery_layers=3)
    assert len(runs) == 1
    assert list(local) == ["surgery", "value"]
    for path, found in local.items():
        assert torch.equal(found, local_image_features(model, PIXELS, path, num_surgery_layers=3))
    assert torch.equal(local_image_features(model, PIXELS), local["value"])
    assert image_and_local_features(model, PIXELS, ())[1] == {}
    assert torch.equal(features, model.get_image_features(PIXELS).pooler_output)
    # Fewer blocks are another path.
    assert not torch.allclose(local_image_features(model, PIXELS, "surgery", 2), local["surgery"], atol=1e-3)
    assert exported is local_image_features


def test_the_model_is_left_as_it_was() -> None:
    model = FAMILIES["clip"]()
    local_image_features(model, PIXELS, "surgery", 3)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    handle = model.vision_model.post_layernorm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        local_image_features(model, PIXELS)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_other_threads_may_run_the_model_meanwhile() -> None:
    model = FAMILIES["clip"]()
    expected = local_image_features(model, PIXELS, "surgery", 3)
    blocks = model.vision_model.encoder.layers

    def interfere(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=model.get_image_features, args=(PIXELS + 1,))
            other.start()
            other.join()

    handle = blocks[1].register_forward_pre_hook(interfere)
    found = local_image_features(model, PIXELS, "surgery", 3)
    handle.remove()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradients_flow_to_weights_and_pixels(checkpointing: dict[str, bool] | None) -> None:
    model = FAMILIES["clip"]().double()
    if checkpointing is not None:
        model.train().gradient_checkpointing_enable(checkpointing)
    pixels = PIXELS[:1].double().requires_grad_()
    weight = model.vision_model.encoder.layers[0].self_attn.v_proj.weight

    def loss() -> Tensor:
        features, local = image_and_local_features(model, pixels, LOCAL_PATHS, num_surgery_layers=2)
        return sum((values**2).sum() for values in local.values()) + features.sum()

    loss().backward()
    assert pixels.grad is not None
    for tensor in (weight, pixels):
        analytic = tensor.grad.flatten()[5].item()
        with torch.no_grad():
            flat, difference = tensor.view(-1), 0.0
            for step in (1e-5, -1e-5):
                flat[5] += step
                difference += loss().item() / (2 * step)
                flat[5] -= step
        assert analytic == pytest.approx(difference, rel=1e-5)


@torch.no_grad()
def test_adapters_in_the_image_encoder_take_part() -> None:
    model = FAMILIES["clip"]()
    plain = {path: local_image_features(model, PIXELS, path, 2) for path in LOCAL_PATHS}
    targets = r"vision_model\..*\.(v_proj|out_proj|fc1)"
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=targets, init_lora_weights=False)).eval()
    found = {path: local_image_features(adapted, PIXELS, path, 2) for path in LOCAL_PATHS}
    with adapted.disable_adapter():
        switched_off = {path: local_image_features(adapted, PIXELS, path, 2) for path in LOCAL_PATHS}
    merged = adapted.merge_and_unload()
    for path in LOCAL_PATHS:
        assert not torch.allclose(found[path], plain[path], atol=1e-2)
        assert torch.equal(switched_off[path], plain[path])
        torch.testing.assert_close(found[path], local_image_features(merged, PIXELS, path, 2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype: torch.dtype) -> None:
    model = FAMILIES["clip"]()
    expected = {path: local_image_features(model, PIXELS, path, 2) for path in LOCAL_PATHS}
    for path in LOCAL_PATHS:
        found = local_image_features(model.to(dtype), PIXELS.to(dtype), path, 2)
        assert found.dtype == dtype
        assert torch.cosine_similarity(found.float(), expected[path], dim=-1).min() > 0.99


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_accelerator_gives_the_same(attention: str) -> None:
    tower, expected = original_tower()
    tower.to("cuda").set_attn_implementation(attention)
    pixels = expected["pixel_values"].to("cuda")
    for path, name in (("value", "locoop_local_features"), ("surgery", "surgery_features")):
        wanted = expected[name][:, -16:]
        torch.testing.assert_close(local_image_features(tower, pixels, path).cpu(), wanted, rtol=1e-4, atol=1e-4)
        half = local_image_features(copy.deepcopy(tower).bfloat16(), pixels.bfloat16(), path)
        assert half.dtype == torch.bfloat16
        assert torch.cosine_similarity(half.float().cpu(), wanted, dim=-1).min() > 0.99


@torch.no_grad()
def test_images_of_another_size() -> None:
    model = FAMILIES["clip"]()
    pixels = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    assert patch_grid(model, pixels) == (6, 5)
    with pytest.raises(ValueError, match=r"are 48 x 40 pixels, but CLIPModel was trained on 32 x 32 .*interpolate"):
        local_image_features(model, pixels)
    features, local = image_and_local_features(model, pixels, interpolate_pos_encoding=True)
    assert local["value"].shape == (2, 30, 24)
    assert torch.equal(features, model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output)
    # Others interpolate without being asked.
    assert local_image_features(FAMILIES["clipseg"](), pixels).shape == (2, 30, 24)


def test_bad_arguments_are_refused() -> None:
    model = FAMILIES["clip"]()
    for size in ((36, 32), (32, 30), (4, 4)):
        pixels = torch.zeros(1, 3, *size)
        message = f"are {size[0]} x {size[1]} pixels, which is not a multiple of a patch of 8 x 8"
        for use in (local_image_features, patch_grid):
            with pytest.raises(ValueError, match=message):
                use(model, pixels)
        with pytest.raises(ValueError, match=message):
            local_image_features(model, pixels, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"must be a torch.Tensor of shape .*, got \(3, 32, 32\)"):
        local_image_features(model, PIXELS[0])
    with pytest.raises(TypeError, match=r"must be a torch.Tensor of shape .*, got ndarray"):
        local_image_features(model, PIXELS.numpy())
    with pytest.raises(ValueError, match="`pixel_values` has no images; give at least one"):
        local_image_features(model, PIXELS[:0])
    with pytest.raises(ValueError, match="`pixel_values` have 1 channels, but the model takes 3; convert"):
        local_image_features(model, PIXELS[:, :1])
    for layers in (0, -1, 4):
        with pytest.raises(ValueError, match=f"must be between 1 and 3, the number of blocks .* got {layers}"):
            local_image_features(model, PIXELS, "surgery", layers)
    torch.testing.assert_close(
        local_image_features(model, PIXELS, "surgery"), local_image_features(model, PIXELS, "surgery", 3)
    )
    for layers in (1.0, "2", True):
        with pytest.raises(TypeError, match=f"`num_surgery_layers` must be a whole number, got .*{layers}"):
            local_image_features(model, PIXELS, "surgery", layers)
    # It concerns no other path.
    local_image_features(model, PIXELS, "value", 7)
    with pytest.raises(ValueError, match="`path` must be one of 'clip', 'value', 'surgery', got 'attention'"):
        local_image_features(model, PIXELS, "attention")
    with pytest.raises(TypeError, match="`paths` must be a sequence of paths, got the text 'value'"):
        image_and_local_features(model, PIXELS, "value")


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    """Such a model drops the edges of its images without a word."""
    vision = {**VISION, "image_size": 36}
    model = build(CLIPModel, CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=24))
    message = "36 x 36 pixels, which is not a multiple .* such as 32 x 32, .* give `interpolate_pos_encoding=True`"
    with pytest.raises(ValueError, match=message):
        local_image_features(model, torch.zeros(1, 3, 36, 36))
    assert local_image_features(model, PIXELS, interpolate_pos_encoding=True).shape == (len(PIXELS), 16, 24)


def resnet() -> Any:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return dual(ResNetConfig(**sizes, hidden_size=16))


OTHERS = {
    "resnet": (resnet, "VisionTextDualEncoderModel gives no local features: .* ResNetModel does not cut images into"),
    "siglip": (
        lambda: build(SiglipModel, SiglipConfig(text_config=TEXT, vision_config=VISION)),
        "SiglipModel gives no local features: .* pools all patches by a head",
    ),
    "vit": (lambda: dual(ViTConfig(**VISION)), "ViTModel does not cut images into patches as that of CLIP does"),
    "groupvit": (
        lambda: of_family(GroupViTConfig, GroupViTModel),
        "GroupViTVisionTransformer does not cut images into patches as that of CLIP does",
    ),
    "blip": (
        lambda: build(BlipModel, BlipConfig(text_config={**TEXT, "encoder_hidden_size": 32}, vision_config=VISION)),
        "the blocks of its image encoder BlipVisionModel have no self_attn.q_proj, ",
    ),
    "xclip": (
        lambda: build(XCLIPModel, XCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)),
        "XCLIPModel gives no local features: it has no `get_image_features`, so that its `vision_model` is for somet",
    ),
    "no projection": (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), "it has no image encoder `vision_model`"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_built_otherwise_is_refused(name: str) -> None:
    build_other, message = OTHERS[name]
    other = build_other()
    assert not has_local_features(other)
    for use in (local_image_features, patch_grid):
        with pytest.raises(TypeError, match=f"{message}.*Give a CLIPNModel, a CLIPModel or another model"):
            use(other, PIXELS)


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(local_features)
    assert results.attempted > 0
    assert results.failed == 0


# DualEncoder


def test_encoder_gives_the_very_embeddings_of_images(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clipn, tiny_processor)
    assert encoder.has_local_features
    for path in LOCAL_PATHS:
        embeddings, patches = encoder.image_and_local_embeddings({"pixel_values": PIXELS}, path, 2)
        assert torch.equal(embeddings, encoder.image_embeddings(PIXELS))
        assert torch.equal(patches, encoder.local_image_embeddings(PIXELS, path, 2))
        expected = normalize(local_image_features(tiny_clipn, PIXELS, path, 2).detach(), dim=-1)
        torch.testing.assert_close(patches, expected, rtol=1e-6, atol=1e-6)
        assert patches.dtype == torch.float32
        assert not patches.requires_grad
        assert not embeddings.requires_grad
    # Whatever its user computes in
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.local_image_embeddings(PIXELS, path, 2), patches)


def test_patches_do_not_depend_on_the_batch(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    for path in LOCAL_PATHS:
        together = encoder.local_image_embeddings(PIXELS, path, 2)
        alone = torch.cat([encoder.local_image_embeddings(image[None], path, 2) for image in PIXELS])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_encoder_says_which_embeddings_are_not_finite(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    with torch.no_grad():
        tiny_clip.vision_model.encoder.layers[0].self_attn.v_proj.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="patch embeddings are not finite, because .*0.self_attn.v_proj.bias"):
        encoder.local_image_embeddings(PIXELS)
