# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every family of dual encoders: the numbers of the model itself, from objects and from folders."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus
from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
    SiglipTokenizer,
    Tipsv2Tokenizer,
    XLMRobertaTokenizer,
)
from transformers.utils import TransformersKwargs

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, pipeline
from clipn_hf.digests import text_encoder_settings
from clipn_hf.encoders import AutoDualEncoder
from clipn_hf.families import (
    DEFAULT_LOGIT_SCALE,
    DEFAULT_MAX_LENGTH,
    FAMILIES,
    Family,
    find_family,
    find_max_text_length,
    read_logit_bias,
    read_logit_scale,
)
from clipn_hf.features import cached_class_embeddings, extract_features
from clipn_hf.prompts import DEFAULT_TEMPLATES
from clipn_hf.records import judge_files

WORDS = ["a", "photo", "of", "cat", "dog", "red", "bird", "tree", "this", "is"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,一张的图片。"
LABELS = ["cat", "red bird", "tree", "dog of a tree"]
TEXTS = ["a photo of a cat.", "tree", "this is a red bird, a dog of a tree", "dog", "A photo of a Cat.", "bird a"]
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36 + 10 * seed, 3), np.uint8))
    for seed in range(3)
]
SIZE = {"height": 32, "width": 32}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def clip_tokenizer(model_max_length: int = 77) -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet)]
    merges = {}
    for word in WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            merges["".join(symbols[:2])] = (symbols[0], symbols[1])
            symbols = ["".join(symbols[:2]), *symbols[2:]]
    vocab = {token: index for index, token in enumerate([*tokens, *merges, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=list(merges.values()), model_max_length=model_max_length)


def bert_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocab, model_max_length=64)


def xlm_tokenizer() -> XLMRobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *LETTERS, "<mask>"]
    return XLMRobertaTokenizer(vocab=[(token, -2.0) for token in dict.fromkeys(tokens)], model_max_length=10**30)


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    """As that of SigLIP, without the library it needs: lower case, an end, no mask."""
    vocab = {token: index for index, token in enumerate(["<unk>", "</s>", *WORDS, ".", ","])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=16,
        model_input_names=["input_ids"],
    )


def letter_tokenizer(tokenizer_class: Any, *special: str, **options: Any) -> Any:
    vocab = {token: index for index, token in enumerate([*special, "▁", *LETTERS])}
    return tokenizer_class(vocab=vocab, merges=[], **options)


def gemma_tokenizer(tokenizer_class: Any) -> Any:
    """As that of the checkpoints of SigLIP 2, which say what the class does not: padding follows, and no mask."""
    options = {"padding_side": "right", "model_input_names": ["input_ids"]}
    return letter_tokenizer(tokenizer_class, "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", **options)


def make(name: str, **options: Any) -> Any:
    return getattr(transformers, name)(**options)


def text_config(tokenizer: Any, **options: Any) -> dict[str, Any]:
    ids = {kind: getattr(tokenizer, kind) for kind in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, **ids, **options}


@dataclass(frozen=True)
class Case:
    """How to build a tiny model of a family.

    Args:
        prefix: What the names of its classes begin with.
        tokenizer: Makes its tokenizer.
        image_processor: The name of the class, and its settings.
        processor: The name of the class.
        text, vision, whole: Settings.
        by_hand: How its processor is to be called.
        config: Makes the configuration of another kind.
    """

    prefix: str
    tokenizer: Callable[[], Any]
    image_processor: tuple[str, dict[str, Any]] = ("ViTImageProcessorPil", {"size": SIZE})
    processor: str = "CLIPProcessor"
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=lambda: VISION)
    whole: dict[str, Any] = field(default_factory=lambda: {"projection_dim": 24})
    by_hand: dict[str, Any] = field(default_factory=lambda: {"padding": True})
    config: Callable[[Any], Any] | None = None

    def build(self) -> tuple[Any, Any]:
        """Model and processor; the same weights every time, large enough that every token matters."""
        tokenizer = self.tokenizer()
        if self.config is not None:
            config = self.config(tokenizer)
        else:
            towers = {"text_config": text_config(tokenizer, **self.text), "vision_config": self.vision}
            config = make(f"{self.prefix}Config", **towers, **self.whole)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make(f"{self.prefix}Model", config=config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
                for module in model.modules():
                    # transformers does so when it loads a model.
                    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                        module.weight[module.padding_idx] = 0
                if hasattr(model, "logit_bias"):
                    model.logit_scale.fill_(2.0)
                    model.logit_bias.fill_(-3.0)
        image_processor, settings = self.image_processor
        return model, make(self.processor, image_processor=make(image_processor, **settings), tokenizer=tokenizer)


def flava_config(tokenizer: Any) -> Any:
    tower = {**TOWER, "num_hidden_layers": 1}
    return make(
        "FlavaConfig",
        image_config=VISION,
        text_config=text_config(tokenizer),
        multimodal_config=tower,
        image_codebook_config={"hidden_size": 8, "num_groups": 1, "num_blocks_per_group": 1, "vocab_size": 16},
        hidden_size=32,
        projection_dim=24,
    )


def dual_config(tokenizer: Any) -> Any:
    vision, text = make("ViTConfig", **VISION), make("BertConfig", **text_config(tokenizer))
    return transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)


CLIP_IMAGES = ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": SIZE})
OWL = Case(
    "OwlViT",
    lambda: clip_tokenizer(16),
    ("OwlViTImageProcessorPil", {"size": SIZE}),
    "OwlViTProcessor",
    text={"max_position_embeddings": 16},
    by_hand={},
)
CASES = {
    "aimv2": Case(
        "Aimv2",
        clip_tokenizer,
        CLIP_IMAGES,
        text={"max_position_embeddings": 77},
        vision={**VISION, "use_head": True},
    ),
    "align": Case(
        "Align",
        bert_tokenizer,
        ("EfficientNetImageProcessorPil", {"size": SIZE}),
        "AlignProcessor",
        vision={
            "image_size": 32,
            "kernel_sizes": [3, 3, 5],
            "in_channels": [32, 16, 24],
            "out_channels": [16, 24, 30],
            "hidden_dim": 32,
            "width_coefficient": 1.0,
            "strides": [1, 1, 2],
            "num_block_repeats": [1, 1, 2],
            "expand_ratios": [1, 6, 6],
        },
        whole={"projection_dim": 32, "temperature_init_value": 0.05},
        by_hand={},
    ),
    "altclip": Case(
        "AltCLIP",
        xlm_tokenizer,
        CLIP_IMAGES,
        "AltCLIPProcessor",
        text={"project_dim": 16},
        whole={"projection_dim": 24},
    ),
    "blip": Case(
        "Blip",
        bert_tokenizer,
        ("BlipImageProcessorPil", {"size": SIZE}),
        "BlipProcessor",
        text={"encoder_hidden_size": 32, "projection_dim": 24},
    ),
    "chinese_clip": Case(
        "ChineseCLIP",
        bert_tokenizer,
        ("ChineseCLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": SIZE}),
        "ChineseCLIPProcessor",
    ),
    "clip": Case("CLIP", clip_tokenizer, CLIP_IMAGES, text={"max_position_embeddings": 77}),
    "clipseg": Case("CLIPSeg", clip_tokenizer, processor="CLIPSegProcessor", text={"max_position_embeddings": 77}),
    "flava": Case(
        "Flava",
        bert_tokenizer,
        ("FlavaImageProcessorPil", {"size": SIZE, "crop_size": SIZE}),
        "FlavaProcessor",
        config=flava_config,
    ),
    "groupvit": Case(
        "GroupViT",
        clip_tokenizer,
        CLIP_IMAGES,
        text={"max_position_embeddings": 77},
        vision={
            **VISION,
            "num_hidden_layers": 3,
            "depths": [1, 1, 1],
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4],
        },
        whole={"projection_dim": 24, "projection_intermediate_dim": 48},
    ),
    "metaclip_2": Case("MetaClip2", xlm_tokenizer, CLIP_IMAGES, text={"max_position_embeddings": 77}),
    "owlv2": Case(
        "Owlv2", OWL.tokenizer, ("Owlv2ImageProcessorPil", {"size": SIZE}), "Owlv2Processor", OWL.text, by_hand={}
    ),
    "owlvit": OWL,
    "siglip": Case(
        "Siglip",
        siglip_tokenizer,
        ("SiglipImageProcessorPil", {"size": SIZE}),
        "SiglipProcessor",
        text={"max_position_embeddings": 16},
        whole={},
        by_hand={"padding": "max_length"},
    ),
    "siglip2": Case(
        "Siglip2",
        lambda: gemma_tokenizer(Siglip2Tokenizer),
        ("Siglip2ImageProcessorPil", {"patch_size": 8, "max_num_patches": 20}),
        "Siglip2Processor",
        vision={**TOWER, "patch_size": 8, "num_patches": 16},
        whole={},
        # Its processor would replace those of the image processor.
        by_hand={"patch_size": 8, "max_num_patches": 20},
    ),
    "tipsv2": Case(
        "Tipsv2",
        lambda: letter_tokenizer(Tipsv2Tokenizer, "<pad>", "<unk>"),
        CLIP_IMAGES,
        "Tipsv2Processor",
        vision={**VISION, "mlp_ratio": 2},
        whole={"temperature_init_value": 0.05},
        by_hand={},
    ),
    "vision-text-dual-encoder": Case(
        "VisionTextDualEncoder", bert_tokenizer, processor="VisionTextDualEncoderProcessor", config=dual_config
    ),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of saved models, each made once. Read only."""
    root = tmp_path_factory.mktemp("families")

    def build(name: str) -> Path:
        if not (root / name).exists():
            model, processor = CASES[name].build()
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
        return root / name

    return build


@torch.no_grad()
def by_hand(name: str, model: Any, processor: Any, texts: list[str], images: list[Image.Image]) -> tuple[Tensor, ...]:
    """Image embeddings, text embeddings and logits as transformers has them."""
    inputs = processor(text=texts, images=images, return_tensors="pt", **CASES[name].by_hand)
    if name == "flava":
        image = model.get_image_features(inputs["pixel_values"]).pooler_output[:, 0]
        tokens = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        text = model.get_text_features(**tokens).pooler_output[:, 0]
        image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        return image, text, model.logit_scale.exp() * image @ text.T
    outputs = model(**inputs)
    return normalize(outputs.image_embeds, dim=-1), normalize(outputs.text_embeds, dim=-1), outputs.logits_per_image


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_every_family_is_tried() -> None:
    assert CASES.keys() - {"vision-text-dual-encoder"} == FAMILIES.keys() - {"clipn"}


def test_numbers_are_those_of_the_model(name: str, built: Callable[[str], Path]) -> None:
    model, processor = CASES[name].build()
    image, text, logits = by_hand(name, model, processor, TEXTS, IMAGES)
    # Texts and images must differ for the rest to say anything.
    assert (text[[0, 1, 2, 3]] @ text[[0, 1, 2, 3]].T).fill_diagonal_(0).max() < 0.9999
    assert (image @ image.T).fill_diagonal_(0).max() < 0.9999
    for encoder in (DualEncoder(model, processor), DualEncoder.from_pretrained(built(name), device="cpu")):
        assert encoder.family == name
        found_image = encoder.image_embeddings(encoder.prepare_images(IMAGES))
        found_text = encoder.text_embeddings(TEXTS)
        assert found_image.dtype == found_text.dtype == torch.float32
        assert_close(found_image, image)
        assert_close(found_text, text)
        found = encoder.logit_scale * found_image @ found_text.T + encoder.logit_bias
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-4)
        assert encoder.is_sigmoid is (name in ("siglip", "siglip2"))
        assert (encoder.logit_bias != 0) is encoder.is_sigmoid
        described = encoder.describe()
        assert [described[key] for key in ("family", "logit_bias", "is_sigmoid")] == [
            name,
            encoder.logit_bias,
            encoder.is_sigmoid,
        ]


def test_neighbours_and_order_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DualEncoder(*CASES[name].build())
    texts = [*TEXTS, *TEXTS[::-1], "bird " * 9]
    expected = encoder.text_embeddings(texts)
    assert_close(expected[: len(TEXTS)].flip(0), expected[len(TEXTS) : 2 * len(TEXTS)], 0.0)
    for row, text in enumerate(texts):
        assert_close(encoder.text_embeddings([text])[0], expected[row])
    monkeypatch.setattr("clipn_hf.encoders.TEXT_BATCH_SIZE", 3)
    assert_close(encoder.text_embeddings(texts[::-1]).flip(0), expected)
    prepared = encoder.prepare_images(IMAGES)
    image = encoder.image_embeddings(prepared)
    for row, each in enumerate(IMAGES):
        assert_close(encoder.image_embeddings(encoder.prepare_images([each]))[0], image[row])


def test_padding_that_is_inert(name: str) -> None:
    """Of families that are padded to the longest text of a batch, any padding gives the same embeddings."""
    model, processor = CASES[name].build()
    row, encoder = find_family(model)[1], DualEncoder(model, processor)
    found = encoder.text_embeddings(TEXTS)
    assert encoder._pads_to_longest is (row.padding != "max_length")
    options = {"padding": "max_length", "max_length": encoder.max_text_length, "truncation": True}
    tokens = processor.tokenizer(TEXTS, return_tensors="pt", **options)
    with torch.no_grad():
        features = model.get_text_features(**tokens).pooler_output
    padded = normalize(features[:, 0] if features.ndim == 3 else features, dim=-1)
    assert_close(found, padded)
    encoder._pads_to_longest = not encoder._pads_to_longest
    otherwise = torch.cat([encoder.text_embeddings([text]) for text in TEXTS])
    assert ((otherwise - padded).abs().max() < 1e-5).item() is (row.padding != "max_length")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_detectors_and_pipelines(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(built(name))
    detector = OODDetector(folder, LABELS, "mcm", device="cpu")
    expected = detector.score(IMAGES)
    encoder = DualEncoder(*CASES[name].build())
    assert detector.encoder.templates == list(FAMILIES.get(name, Family()).templates)
    text, no_text = encoder.class_embeddings(LABELS)
    assert no_text is None
    prompts = torch.stack([encoder.text_embeddings([t.format(each) for t in encoder.templates]) for each in LABELS])
    assert_close(text, normalize(prompts.mean(dim=1), dim=-1))
    results = pipeline("ood-detection", model=folder, device="cpu")(
        IMAGES, candidate_labels=LABELS, method="mcm", batch_size=2
    )
    torch.testing.assert_close(torch.tensor([each["ood_score"] for each in results]), expected, rtol=0, atol=1e-5)
    ensemble = OODDetector(encoder, LABELS, "mcm", templates=["a {}", "this is a {}."])
    assert torch.isfinite(ensemble.score(IMAGES)).all()
    ensemble.save_pretrained(tmp_path / "detector")
    loaded = OODDetector.from_pretrained(tmp_path / "detector", device="cpu")
    assert torch.equal(loaded.score(IMAGES), ensemble.score(IMAGES))
    (result,) = pipeline("ood-detection", model=str(tmp_path / "detector"), device="cpu")(IMAGES[:1])
    assert result["ood_score"] == pytest.approx(ensemble.score(IMAGES[:1]).item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["siglip", "chinese_clip", "align"])
def test_adapters(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    base = built(name)
    model, processor = AutoModel.from_pretrained(base), CASES[name].build()[1]
    before = DualEncoder(model, processor).text_embeddings(TEXTS)
    target = r"text_model\..*\.(q_proj|query)"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=target, init_lora_weights=False))
    encoder = DualEncoder(adapted, processor)
    text, image = encoder.text_embeddings(TEXTS), encoder.image_embeddings(encoder.prepare_images(IMAGES))
    assert encoder.family == name
    assert (text - before).abs().max() > 1e-3
    assert_close(text, by_hand(name, adapted.get_base_model(), processor, TEXTS, IMAGES)[1])
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = DualEncoder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert loaded.is_sigmoid is (name == "siglip")
    assert_close(loaded.text_embeddings(TEXTS), text)
    assert_close(loaded.image_embeddings(loaded.prepare_images(IMAGES)), image)
    expected = OODDetector(encoder, LABELS, "mcm").score(IMAGES)
    results = pipeline("ood-detection", model=str(tmp_path / "adapter"), device="cpu")(
        IMAGES, candidate_labels=LABELS, method="mcm"
    )
    torch.testing.assert_close(torch.tensor([each["ood_score"] for each in results]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "whole"),
    [("clipseg", "CLIPSegForImageSegmentation"), ("owlvit", "OwlViTForObjectDetection"), ("siglip", None)],
)
def test_checkpoints_of_larger_models(name: str, whole: str | None, tmp_path: Path) -> None:
    model, processor = CASES[name].build()
    if whole is not None:
        larger = make(whole, config=model.config)
        getattr(larger, larger.base_model_prefix).load_state_dict(model.state_dict())
        larger.save_pretrained(tmp_path)
    else:
        model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = DualEncoder.from_pretrained(tmp_path, device="cpu").text_embeddings(TEXTS)
    assert_close(found, DualEncoder(model, processor).text_embeddings(TEXTS))


def test_missing_weights_of_any_family_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from clipn_hf import IncompleteCheckpointError

    model, _ = CASES["siglip"].build()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["logit_bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteCheckpointError, match="lacks weights of SiglipModel: logit_bias"):
        AutoDualEncoder.from_pretrained(tmp_path)


def test_siglip_reads_every_text_at_one_length(caplog: pytest.LogCaptureFixture) -> None:
    model, processor = CASES["siglip"].build()
    encoder, shapes = DualEncoder(model, processor), []
    assert encoder.templates == ["This is a photo of {}."]
    original = model.get_text_features
    model.get_text_features = lambda input_ids, **rest: shapes.append(input_ids.shape) or original(input_ids, **rest)
    encoder.class_embeddings(["cat", "CAT", "cat tree dog bird"], ["{}"])
    assert [shape[1] for shape in shapes] == [16]
    found = encoder.text_embeddings(["cat", "CAT", "cat", "bird " * 17])
    assert torch.equal(found[0], found[2])
    assert_close(found[0], found[1])
    assert [record.getMessage() for record in caplog.records if "too long" in record.getMessage()]


def test_naflex_takes_all_that_its_processor_gives() -> None:
    encoder = DualEncoder(*CASES["siglip2"].build())
    inputs = encoder.prepare_images(IMAGES)
    assert inputs.keys() == {"pixel_values", "pixel_attention_mask", "spatial_shapes"}
    assert {len(values) for values in inputs.values()} == {len(IMAGES)}
    assert len({tuple(shape) for shape in inputs["spatial_shapes"].tolist()}) > 1
    hand = encoder.processor.image_processor(IMAGES, return_tensors="pt")
    assert all(torch.equal(inputs[key], hand[key]) for key in inputs)


def test_naflex_wherever_images_are_read(tmp_path: Path) -> None:
    encoder = DualEncoder(*CASES["siglip2"].build())
    expected = encoder.image_embeddings(encoder.prepare_images(IMAGES))
    files = [tmp_path / f"{place}.png" for place in range(len(IMAGES))]
    for image, file in zip(IMAGES, files, strict=True):
        image.save(file)
    for _ in range(2):
        features = extract_features(files, encoder, cache_dir=tmp_path / "cache", batch_size=2, progress=False)
        assert_close(features.embeddings, expected)
    detector = OODDetector(encoder, LABELS, "mcm")
    scores = detector.score(expected)
    records = [record for record, _ in judge_files(detector, [str(file) for file in files], 1, 2)]
    assert_close(torch.tensor([record["ood_score"] for record in records]), scores, 1e-5)


def test_scores_of_sigmoid_models() -> None:
    model, processor = CASES["siglip"].build()
    encoder = DualEncoder(model, processor)
    prompts = [f"This is a photo of {label}." for label in LABELS]
    logits = by_hand("siglip", model, processor, prompts, IMAGES)[2]
    found = OODDetector(encoder, LABELS, "sigmoid").score(IMAGES)
    assert_close(found, 1 - logits.sigmoid().amax(dim=1), 1e-5)
    found = OODDetector(encoder, LABELS, "joint_energy").score(IMAGES)
    assert_close(found, -softplus(logits).sum(dim=1), 1e-4)
    with pytest.raises(ValueError, match="needs a model that was trained with a sigmoid loss"):
        OODDetector(DualEncoder(*CASES["clip"].build()), LABELS, "sigmoid")


@pytest.mark.parametrize("name", sorted(CASES.keys() & FAMILIES.keys()))
@pytest.mark.parametrize("change", [{"padding_side": "left"}, {"model_input_names": ["input_ids"]}])
def test_the_tokenizer_of_a_known_family_may_pad_otherwise(name: str, change: dict[str, Any]) -> None:
    """Wherever it would put padding, and whether it would tell of it."""
    model, processor = CASES[name].build()
    expected = DualEncoder(model, processor).text_embeddings(TEXTS)
    tokenizer = processor.tokenizer
    if change.get("model_input_names") == tokenizer.model_input_names:
        change = {"model_input_names": ["input_ids", "attention_mask"]}
    for attribute, value in change.items():
        setattr(tokenizer, attribute, value)
    encoder = DualEncoder(model, processor)
    assert_close(encoder.text_embeddings(TEXTS), expected)
    assert_close(encoder.text_embeddings(TEXTS[1:2])[0], expected[1])
    assert all(getattr(tokenizer, attribute) == value for attribute, value in change.items())


def test_texts_are_cached_by_how_they_are_padded(tmp_path: Path) -> None:
    encoders = []
    for side in ("right", "left"):
        model, processor = CASES["siglip"].build()
        processor.tokenizer.padding_side = side
        encoders.append(DualEncoder(model, processor))
    settings = [
        text_encoder_settings(each.model, "text", each.processor.tokenizer, each.max_text_length) for each in encoders
    ]
    assert settings[0] == settings[1]
    assert settings[0]["tokenizer"]["padding_side"] == "right"
    assert settings[0]["tokenizer"]["return_attention_mask"] is False
    assert settings[0]["lowercase"] is True


def test_siglip_reads_lower_case_whatever_its_tokenizer(tmp_path: Path) -> None:
    """Checkpoints of SigLIP 2 at one resolution are of the class of SigLIP with the tokenizer of Gemma."""
    gemma = Case("Siglip", lambda: gemma_tokenizer(GemmaTokenizer), processor="SiglipProcessor", whole={})
    model, processor = gemma.build()
    shouted = [text.upper() for text in TEXTS[:4]]
    assert processor.tokenizer(shouted)["input_ids"] != processor.tokenizer(TEXTS[:4])["input_ids"]
    encoder = DualEncoder(model, processor)
    expected = encoder.text_embeddings([text.lower() for text in TEXTS[:4]])
    assert_close(encoder.text_embeddings(shouted), expected)
    assert_close(encoder.class_embeddings(shouted, ["{}"])[0], expected)
    for _ in range(2):
        assert_close(cached_class_embeddings(encoder, shouted, ["{}"], cache_dir=tmp_path)[0], expected)
    # Its tokenizer may have been told otherwise.
    processor.tokenizer.do_lower_case = False
    assert (DualEncoder(model, processor).text_embeddings(shouted) - expected).abs().max() > 0.01


def sentencepiece_tokenizer(folder: Path) -> SiglipTokenizer:
    """The real class, of a vocabulary of its own."""
    written = io.BytesIO()
    sentences = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))] * 10
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=written, vocab_size=60, bos_id=-1, hard_vocab_limit=False
    )
    (folder / "spiece.model").write_bytes(written.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16, model_input_names=["input_ids"])


def test_original_tokenizer_of_siglip(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer(tmp_path)
    assert tokenizer.tokenize("A cat.") == tokenizer.tokenize("a cat")
    siglip = CASES["siglip"]
    case = Case("Siglip", lambda: tokenizer, processor="SiglipProcessor", text=siglip.text, whole={})
    model, processor = case.build()
    model.save_pretrained(tmp_path / "siglip")
    processor.save_pretrained(tmp_path / "siglip")
    loaded = DualEncoder.from_pretrained(tmp_path / "siglip", device="cpu")
    assert type(loaded.processor.tokenizer) is SiglipTokenizer
    tokens = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = normalize(model.get_text_features(tokens["input_ids"]).pooler_output, dim=-1)
    assert_close(loaded.text_embeddings(TEXTS), expected)
    found = pipeline("ood-detection", model=str(tmp_path / "siglip"), device="cpu")(
        IMAGES, candidate_labels=LABELS, method="sigmoid"
    )
    scores = OODDetector(loaded, LABELS, "sigmoid").score(IMAGES)
    torch.testing.assert_close(torch.tensor([each["ood_score"] for each in found]), scores, rtol=0, atol=1e-5)


def test_processors_that_cannot_be_loaded(
    built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = CASES["siglip"].build()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)

    def lacks_library(*_: Any, **__: Any) -> Any:
        raise ImportError("\nMyTokenizer requires the my library\nbut it was not found.\n")

    def knows_none(*_: Any, **__: Any) -> Any:
        raise ValueError(f"Unrecognized class {type(config)}.\nModel type should be one of AConfig, BConfig.")

    for raises, reason in [
        (lacks_library, r"MyTokenizer requires the my library but it was not found\. Install what it needs, put "),
        (knows_none, r"Unrecognized class <class '[\w.]+'>\. Install what it needs, put processor_config\.json, "),
    ]:
        monkeypatch.setattr("clipn_hf.loading.AutoProcessor.from_pretrained", raises)
        with pytest.raises(OSError, match=rf"The processor of {tmp_path} cannot be loaded: {reason}.*`processor`\.$"):
            DualEncoder.from_pretrained(tmp_path)


# Models of no known family


class PlainConfig(PreTrainedConfig):
    model_type = "plain-dual-encoder"

    def __init__(self, pooling: str = "mask", has_scale: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.pooling, self.has_scale = pooling, has_scale


class PlainDualEncoder(PreTrainedModel):
    """Another design: no configuration of towers, bare tensors, and padding that may matter."""

    config_class = PlainConfig
    config: PlainConfig

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(1000, 12)
        self.patches = nn.Linear(3 * 32 * 32, 12)
        if config.has_scale:
            self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.patches(pixel_values.flatten(1))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = self.tokens(input_ids)
        if self.config.pooling == "mask":
            return (embedded * attention_mask[..., None]).sum(dim=1)
        if self.config.pooling == "last":
            return embedded[:, -2]
        return embedded.sum(dim=1)


@pytest.mark.parametrize("pooling", ["mask", "all"])
def test_an_unknown_model_works(pooling: str, tmp_path: Path) -> None:
    processor = CASES["clip"].build()[1]
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = PlainDualEncoder(PlainConfig(pooling)).eval()
    encoder = DualEncoder(model, processor)
    assert encoder.family == "plain-dual-encoder"
    assert encoder.templates == list(DEFAULT_TEMPLATES)
    assert encoder.logit_scale == pytest.approx(np.exp(1.5))
    assert encoder.max_text_length == 77
    found = encoder.text_embeddings(TEXTS)
    # Tried out: where padding counts, every text gets the same.
    assert encoder._pads_to_longest is (pooling == "mask")
    tokens = tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        assert_close(found, normalize(model.get_text_features(**tokens), dim=-1))
    detector = OODDetector(encoder, LABELS, "mcm")
    expected = detector.score(IMAGES)
    (digest,) = {encoder.describe()["weights_sha256"]}
    with torch.no_grad():
        model.patches.weight += 1
    assert encoder.describe()["weights_sha256"] != digest
    with torch.no_grad():
        model.patches.weight -= 1

    AutoConfig.register("plain-dual-encoder", PlainConfig, exist_ok=True)
    AutoModel.register(PlainConfig, PlainDualEncoder, exist_ok=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.testing.assert_close(
        OODDetector(tmp_path, LABELS, "mcm", device="cpu").score(IMAGES), expected, rtol=0, atol=1e-5
    )


class OpenDualEncoder(PlainDualEncoder):
    """Hands on whatever it gets."""

    def get_text_features(self, input_ids: Tensor, **inputs: Any) -> Tensor:  # type: ignore[override]
        assert inputs.keys() == {"token_type_ids", "attention_mask"}
        return super().get_text_features(input_ids, inputs["attention_mask"])


class TypedDualEncoder(PlainDualEncoder):
    """The same, with the type that transformers gives to what is handed on."""

    def get_text_features(  # type: ignore[override]
        self, input_ids: Tensor, **inputs: Unpack[TransformersKwargs]
    ) -> Tensor:
        assert inputs.keys() == {"attention_mask"}
        return super().get_text_features(input_ids, **inputs)


@pytest.mark.parametrize("model_class", [OpenDualEncoder, TypedDualEncoder])
def test_a_mask_reaches_models_that_do_not_name_it(model_class: type[PlainDualEncoder]) -> None:
    processor = CASES["chinese_clip"].build()[1]
    assert "token_type_ids" in processor.tokenizer.model_input_names
    torch.manual_seed(0)
    model = model_class(PlainConfig()).eval()
    tokens = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = PlainDualEncoder.get_text_features(model, tokens["input_ids"], tokens["attention_mask"])
    assert_close(DualEncoder(model, processor).text_embeddings(TEXTS), normalize(features, dim=-1))


def test_an_unknown_model_is_padded_as_its_tokenizer_does_it() -> None:
    processor = CASES["clip"].build()[1]
    processor.tokenizer.padding_side = "left"
    torch.manual_seed(0)
    model = PlainDualEncoder(PlainConfig("last")).eval()
    with torch.no_grad():
        features = model.tokens(torch.tensor([processor.tokenizer(text)["input_ids"][-2] for text in TEXTS]))
    assert_close(DualEncoder(model, processor).text_embeddings(TEXTS), normalize(features, dim=-1))


@pytest.mark.parametrize("name", ["plain", "groupvit"])
def test_images_lose_what_the_model_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = CASES["groupvit"].build()
    if name == "plain":
        model = PlainDualEncoder(PlainConfig()).eval()
    encoder = DualEncoder(model, processor)
    inputs = encoder.prepare_images(IMAGES)
    mask = torch.ones(len(IMAGES), 32, 32, dtype=torch.int64)
    found = encoder.image_embeddings({**inputs, "pixel_mask": mask})
    assert_close(found, encoder.image_embeddings(inputs))


def test_a_model_without_scale_gets_that_of_clip(caplog: pytest.LogCaptureFixture) -> None:
    encoder = DualEncoder(PlainDualEncoder(PlainConfig(has_scale=False)), CASES["clip"].build()[1])
    assert encoder.logit_scale == DEFAULT_LOGIT_SCALE
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "PlainDualEncoder has neither `logit_scale` nor `temperature`" in record.getMessage()


def test_scales_and_biases() -> None:
    clip, aim = CASES["clip"].build()[0], CASES["aimv2"].build()[0]
    for model, value, expected in [(clip, 5.0, np.exp(5.0)), (aim, 5.0, 100.0), (aim, -1.0, 1.0)]:
        with torch.no_grad():
            model.logit_scale.fill_(value)
        assert read_logit_scale(model) == pytest.approx(expected)
        assert read_logit_bias(model) is None
    align, siglip = CASES["align"].build()[0], CASES["siglip"].build()[0]
    assert read_logit_scale(align) == pytest.approx(20)
    assert read_logit_bias(siglip) == -3.0
    with torch.no_grad():
        align.temperature.fill_(0)
        siglip.logit_bias.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"`1 / temperature` of the checkpoint is inf; download"):
        read_logit_scale(align)
    with pytest.raises(ValueError, match=r"`logit_bias` of the checkpoint is inf; download"):
        read_logit_bias(siglip)


def test_how_much_of_a_text_is_read() -> None:
    model, _ = CASES["altclip"].build()
    # Positions of RoBERTa begin behind that of padding.
    assert find_max_text_length(model, xlm_tokenizer()) == 62
    assert DualEncoder(*CASES["altclip"].build()).text_embeddings(["cat " * 100]).isfinite().all()
    model, processor = CASES["align"].build()
    assert find_max_text_length(model, processor.tokenizer) == 64
    plain, tokenizer = PlainDualEncoder(PlainConfig()), xlm_tokenizer()
    assert find_max_text_length(plain, tokenizer) == DEFAULT_MAX_LENGTH


# Models of other kinds


def other_kinds() -> dict[str, tuple[Any, str]]:
    tower = {**TOWER, "num_hidden_layers": 1}
    text, vision = {**tower, "vocab_size": 100}, {**tower, "image_size": 32, "patch_size": 8}
    x_clip = {
        "text_config": text,
        "vision_config": {**vision, "num_frames": 2, "mit_hidden_size": 32, "mit_num_attention_heads": 2},
        "projection_dim": 32,
        "prompt_num_attention_heads": 2,
    }
    audio = {
        "num_mel_bins": 16,
        "window_size": 4,
        "spec_size": 64,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "hidden_size": 16,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
    }
    return {
        "ViT": (
            make("ViTModel", config=make("ViTConfig", **vision)),
            "no get_image_features and no get_text_features",
        ),
        "CLIPVision": (make("CLIPVisionModel", config=make("CLIPVisionConfig", **vision)), "no get_image_features"),
        "CLIPText": (make("CLIPTextModel", config=make("CLIPTextConfig", **text)), "no get_image_features"),
        "Bert": (make("BertModel", config=make("BertConfig", **text)), "no get_image_features"),
        "XCLIP": (make("XCLIPModel", config=make("XCLIPConfig", **x_clip)), r"no get_image_features\."),
        "Clap": (
            make("ClapModel", config=make("ClapConfig", text_config=text, audio_config=audio, projection_dim=16)),
            r"no get_image_features\.",
        ),
    }


@pytest.mark.parametrize("kind", ["ViT", "CLIPVision", "CLIPText", "Bert", "XCLIP", "Clap"])
def test_other_kinds_are_refused(kind: str, clip_folder: Path, tmp_path: Path) -> None:
    model, lacking = other_kinds()[kind]
    processor = CLIPProcessor.from_pretrained(clip_folder)
    message = rf"{type(model).__name__} does not embed both images and texts: it has {lacking}.* Give a CLIPNModel"
    with pytest.raises(TypeError, match=message):
        DualEncoder(model, processor)
    # The message is the same without a processor, and where the checkpoint lacks weights of what it is.
    state = {name: weight for name, weight in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(TypeError, match=message):
        OODDetector(tmp_path, LABELS, "mcm")
    processor.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=message):
        pipeline("ood-detection", model=str(tmp_path), device="cpu")


def test_models_that_write_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    tower = {**TOWER, "num_hidden_layers": 1}
    config = transformers.Blip2Config(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        qformer_config={**tower, "encoder_hidden_size": 32, "vocab_size": 100},
        text_config={
            "model_type": "opt",
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 100,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 32,
        },
        num_query_tokens=4,
    )
    model = make("Blip2Model", config=config)
    message = "Blip2Model does not embed both images and texts: it is made for writing texts about images. Give a "
    with pytest.raises(TypeError, match=message):
        DualEncoder(model, CLIPProcessor.from_pretrained(clip_folder))
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=message):
        DualEncoder.from_pretrained(tmp_path)


class Bare(nn.Module):
    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.flatten(1)

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        return input_ids.float()


def test_models_must_be_those_of_transformers(clip_folder: Path) -> None:
    with pytest.raises(TypeError, match="Bare is no PreTrainedModel: it has no config, device, dtype, name_or_path"):
        DualEncoder(Bare(), CLIPProcessor.from_pretrained(clip_folder))


@pytest.mark.parametrize("is_known", [True, False])
def test_tokenizers_must_be_able_to_pad(is_known: bool) -> None:
    model, processor = CASES["clip"].build()
    model = model if is_known else PlainDualEncoder(PlainConfig())
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match=rf"The tokenizer of the {type(model).__name__} has no padding token"):
        DualEncoder(model, processor)


def test_parts_of_models_are_refused(built: Callable[[str], Path], tmp_path: Path) -> None:
    AutoModel.from_pretrained(built("siglip")).text_model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"is not one that embeds both images and texts, but one part .*Give a CLIPN"):
        DualEncoder.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="SiglipTextModel does not embed both images and texts"):
        pipeline("ood-detection", model=str(tmp_path))


def test_a_pipeline_takes_the_parts_of_a_processor() -> None:
    model, processor = CASES["siglip"].build()
    expected = OODDetector(DualEncoder(model, processor), LABELS, "mcm").score(IMAGES)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    results = pipeline("ood-detection", model=model, **parts)(IMAGES, candidate_labels=LABELS, method="mcm")
    found = torch.tensor([each["ood_score"] for each in results])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class NoVectors(CLIPModel):
    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().get_text_features(*args, **kwargs)
        outputs.pooler_output = None
        return outputs


def test_features_that_are_no_vectors_are_an_error() -> None:
    clip, processor = CASES["clip"].build()
    encoder = DualEncoder(NoVectors(CLIPConfig.from_dict(clip.config.to_dict())), processor)
    with pytest.raises(TypeError, match="NoVectors does not give one vector per image and per text, but NoneType"):
        encoder.text_embeddings(["a cat"])


def test_a_clipn_is_known(tiny_clipn: CLIPNModel) -> None:
    assert find_family(tiny_clipn) == ("clipn", FAMILIES["clipn"])
    assert find_family(object()) == ("object", Family())
