# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Learned prompts from training to use: adapters of a few KB that give everywhere what the live model gives."""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoProcessor, CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, IncompleteCheckpointError, OODDetector, pipeline
from clipn_hf.encoders import EMBEDDED_CHECKPOINT, AutoDualEncoder
from clipn_hf.features import cached_class_embeddings, extract_features
from clipn_hf.loading import peek_learned_prompts
from clipn_hf.modeling import (
    LearnedPrompts,
    add_context_tokens,
    attach_learned_prompts,
    load_learned_prompts,
    prompt_tuning_config,
    save_learned_prompts,
)

if TYPE_CHECKING:
    from conftest import Command

LABELS = ["cat", "red bird", "tree"]
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)) for seed in range(4)]
KINDS: dict[str, dict[str, Any]] = {
    "shared": {"unknown": True},
    "class-specific": {"class_specific": True, "unknown": True, "class_position": "front"},
    "own unknown": {"unknown": True, "num_unknown_tokens": 2, "class_position": "middle", "init_text": "a photo of a"},
}


@pytest.fixture(scope="session")
def openai_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny CLIP whose configuration tells of its end token what those of OpenAI tell. Read only."""
    folder = tmp_path_factory.mktemp("clip") / "clip-tiny-openai"
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def learn(
    source: str | Path,
    kind: str = "shared",
    load: Callable[..., Any] = CLIPModel.from_pretrained,
    revision: str | None = None,
    **options: Any,
) -> tuple[PeftModel, Any, LearnedPrompts]:
    """A model with an adapter whose prompts matter, its processor, and what is known of the prompts."""
    at = {} if revision is None else {"revision": revision}
    model, processor = load(source, **at), AutoProcessor.from_pretrained(source, **at)
    options = {"num_tokens": 4, "revision": revision, **KINDS[kind], **options}
    prompts = add_context_tokens(model, processor, LABELS, **options)
    config = prompt_tuning_config(prompts, processor.tokenizer)
    adapted = get_peft_model(model, config, revision=prompts.base["revision"])
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return adapted.eval(), processor, prompts


def save(folder: Path, adapted: PeftModel, processor: Any, prompts: LearnedPrompts) -> Path:
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_learned_prompts(prompts, folder)
    return folder


def embed(encoder: DualEncoder) -> torch.Tensor:
    """What there is of texts: labels, and the "unknown" prompt."""
    text, _ = encoder.class_embeddings(LABELS)
    return torch.cat([text, encoder.unknown_embedding()[None]])


def check_same(found: DualEncoder, expected: torch.Tensor) -> None:
    torch.testing.assert_close(embed(found), expected, rtol=0, atol=0)


@pytest.fixture(params=KINDS)
def learned(request: pytest.FixtureRequest, openai_folder: Path) -> tuple[PeftModel, Any, LearnedPrompts]:
    return learn(openai_folder, request.param)


def test_the_folder_gives_what_the_live_model_gives(
    learned: tuple[PeftModel, Any, LearnedPrompts], tmp_path: Path
) -> None:
    adapted, processor, prompts = learned
    live = DualEncoder(adapted, processor)
    expected = embed(live)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(4))
    folder = save(tmp_path, adapted, processor, prompts)
    assert (folder / "adapter_model.safetensors").stat().st_size < 4096
    encoder = DualEncoder.from_pretrained(folder)
    check_same(encoder, expected)
    assert encoder.learned_prompts == prompts
    assert encoder.has_unknown_prompt
    assert encoder.templates == prompts.templates
    # Of the folder alone, without its processor, too.
    for file in (*folder.glob("tokenizer*"), *folder.glob("processor*")):
        file.unlink()
    check_same(DualEncoder.from_pretrained(folder), expected)


def test_peft_alone_gives_the_same(
    learned: tuple[PeftModel, Any, LearnedPrompts], openai_folder: Path, tmp_path: Path
) -> None:
    adapted, processor, prompts = learned
    live = DualEncoder(adapted, processor)
    texts = [*prompts.build_prompts(), prompts.unknown_prompt]
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = live.model.get_text_features(**tokens).pooler_output
    folder = save(tmp_path, adapted, processor, prompts)

    said = json.loads((folder / "learned_prompts.json").read_text())
    model: Any = CLIPModel.from_pretrained(openai_folder)
    model.text_model.resize_token_embeddings(said["vocab_size"], mean_resizing=False)
    model.text_model.eos_token_id = model.config.text_config.eos_token_id = said["eos_token_id"]
    reloaded = PeftModel.from_pretrained(model, folder).eval()
    own_tokens = AutoProcessor.from_pretrained(folder).tokenizer(texts, padding=True, return_tensors="pt")
    # What is read from a file lies at odd addresses, where matrix products round differently.
    for weight in reloaded.parameters():
        weight.data = weight.data.clone()
    with torch.no_grad():
        found = reloaded.get_text_features(**own_tokens).pooler_output
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("by", ["configuration", "file"])
def test_merged_models_give_the_same(learned: tuple[PeftModel, Any, LearnedPrompts], tmp_path: Path, by: str) -> None:
    adapted, processor, prompts = learned
    expected = embed(DualEncoder(adapted, processor))
    merged = adapted.merge_and_unload()
    if by == "file":
        del merged.config.learned_prompts
        save_learned_prompts(prompts, tmp_path)
    merged.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = DualEncoder.from_pretrained(tmp_path)
    assert type(encoder.model) is CLIPModel
    assert encoder.learned_prompts == prompts
    check_same(encoder, expected)
    # As a model that has been loaded some other way.
    check_same(DualEncoder(copy.deepcopy(encoder.model), encoder.processor), expected)
    if by == "configuration":
        check_same(DualEncoder(CLIPModel.from_pretrained(tmp_path), processor), expected)


def test_prompts_that_are_said_to_be_others_are_kept(openai_folder: Path, tmp_path: Path) -> None:
    adapted, processor, prompts = learn(openai_folder)
    told = LearnedPrompts(**{**vars(prompts), "trained_with": {"method": "coop", "shots": 4}})
    attach_learned_prompts(adapted, told)
    assert DualEncoder(adapted, processor).learned_prompts == told
    save(tmp_path / "adapter", adapted, processor, told)
    assert load_learned_prompts(tmp_path / "adapter") == told
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert load_learned_prompts(tmp_path / "merged") == told


@pytest.mark.parametrize("kind", KINDS)
def test_detectors_and_pipelines_of_an_adapter(openai_folder: Path, tmp_path: Path, kind: str) -> None:
    adapted, processor, prompts = learn(openai_folder, kind)
    expected = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm").score(IMAGES)
    folder = save(tmp_path / "adapter", adapted, processor, prompts)

    def check(detect: Any) -> None:
        results = detect(IMAGES, candidate_labels=LABELS)
        found = torch.tensor([result["ood_score"] for result in results])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    check(pipeline("ood-detection", model=str(folder), device="cpu", method="mcm"))
    detector = OODDetector(folder, LABELS, "mcm")
    detector.save_pretrained(tmp_path / "elsewhere", include_weights=False)
    detector.save_pretrained(folder, include_weights=False)
    for place in (tmp_path / "elsewhere", folder):
        loaded = OODDetector.from_pretrained(place)
        assert loaded.templates == prompts.templates
        torch.testing.assert_close(loaded.score(IMAGES), expected, rtol=0, atol=1e-6)
        check(pipeline("ood-detection", model=str(place), device="cpu"))
    with pytest.raises(ValueError, match=r"has an adapter, whose .* Leave `include_weights` out, .* names .*adapter;"):
        detector.save_pretrained(tmp_path / "inside", include_weights=True)
    detector.save_pretrained(tmp_path / "by default")
    torch.testing.assert_close(
        OODDetector.from_pretrained(tmp_path / "by default").score(IMAGES), expected, rtol=0, atol=1e-6
    )
    live = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm")
    for include_weights in (None, True):
        with pytest.raises(ValueError, match="Save the adapter, and make the detector of its folder or Hub id"):
            live.save_pretrained(tmp_path / "live", include_weights)


@pytest.mark.parametrize(
    ("trained_with", "unknown", "expected"),
    [
        ({"method": "coop"}, False, "mcm"),
        ({"method": "locoop"}, False, "gl_mcm"),
        ({"method": "clip_os"}, True, "clip_os"),
        (None, True, "clip_os"),
        (None, False, "mcm"),
    ],
)
@pytest.mark.parametrize("load", [CLIPModel.from_pretrained, CLIPNModel.from_pretrained])
def test_the_method_by_default_is_that_of_the_training(
    openai_folder: Path,
    clipn_folder: Path,
    tmp_path: Path,
    trained_with: dict[str, Any] | None,
    unknown: bool,
    expected: str,
    load: Callable[..., Any],
) -> None:
    base = openai_folder if load == CLIPModel.from_pretrained else clipn_folder
    adapted, processor, prompts = learn(base, load=load, unknown=unknown)
    prompts = LearnedPrompts(**{**vars(prompts), "trained_with": trained_with})
    folder = save(tmp_path, adapted, processor, prompts)
    detector = OODDetector(folder, LABELS)
    assert detector.method.name == expected
    detect = pipeline("ood-detection", model=str(folder), device="cpu")
    (result,) = detect(IMAGES[:1], candidate_labels=LABELS)
    assert result["method"] == expected
    assert result["ood_score"] == pytest.approx(detector.score(IMAGES[:1]).item(), abs=1e-6)
    # The labels are known, too.
    assert detect(IMAGES[:1]) == [result]
    # What is named holds.
    (result,) = detect(IMAGES[:1], candidate_labels=["dog", "cat"], method="max_logit")
    assert result["method"] == "max_logit"
    assert {one["label"] for one in result["labels"]} == {"dog", "cat"}
    assert peek_learned_prompts(folder) == prompts


def test_the_command_has_the_same_method_by_default(
    openai_folder: Path, clipn_folder: Path, tmp_path: Path, images: Path, run: "Command"
) -> None:
    adapted, processor, prompts = learn(openai_folder)
    folder = save(tmp_path / "adapter", adapted, processor, prompts)
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    processor.save_pretrained(merged)
    lora = get_peft_model(CLIPModel.from_pretrained(merged), LoraConfig(target_modules=r"vision_model\..*q_proj"))
    lora.save_pretrained(tmp_path / "lora")
    for model, expected in (
        (folder, "clip_os"),
        (merged, "clip_os"),
        (tmp_path / "lora", "clip_os"),
        (clipn_folder, "atd"),
    ):
        code, out, err = run(
            "detect", images / "0.png", "--labels", ",".join(LABELS), "--model", model, "--format", "jsonl"
        )
        assert code == 0, err
        assert json.loads(out)["method"] == expected
        assert OODDetector(model, LABELS).method.name == expected
    code, _, err = run(
        *("calibrate", images, "--labels", ",".join(LABELS), "--model", folder, "--max-id-rejection", "0.5"),
        *("--output", tmp_path / "detector"),
    )
    assert code == 0, err
    detector = OODDetector.from_pretrained(tmp_path / "detector")
    assert detector.method.name == "clip_os"
    # The adapter is named, not copied.
    assert not list((tmp_path / "detector").glob("*model.safetensors"))
    code, _, err = run(
        *("calibrate", images, "--detector", tmp_path / "detector", "--max-id-rejection", "0.5"),
        *("--weights", "--output", tmp_path / "x"),
    )
    assert code == 1
    assert "so that `--weights` cannot save them. Leave `--weights` out, by which the detector names" in err


def test_where_nothing_is_known_there_are_no_learned_prompts(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peek_learned_prompts(clip_folder) is None
    asked = []

    def find(source: Any, name: str, **arguments: Any) -> None:
        asked.append((name, arguments.get("local_files_only")))

    for module in ("loading", "modeling.learned_prompts"):
        monkeypatch.setattr(f"clipn_hf.{module}.find_file", find)
    assert peek_learned_prompts("nobody/nothing") is None
    # A Hub that does not answer is not asked again.
    assert [local for _, local in asked] == [None, True, True, True]


def test_a_detector_in_the_folder_of_an_adapter_knows_its_prompts(openai_folder: Path, tmp_path: Path) -> None:
    folder = save(tmp_path, *learn(openai_folder))
    detector = OODDetector(folder, LABELS, "mcm")
    detector.save_pretrained(folder, include_weights=False)
    # What is published of a detector need not have this file.
    (folder / "learned_prompts.json").unlink()
    found = OODDetector.from_pretrained(folder).score(IMAGES)
    torch.testing.assert_close(found, detector.score(IMAGES), rtol=0, atol=1e-6)


def test_images_that_prompts_were_learned_from_are_no_calibration_images(openai_folder: Path, tmp_path: Path) -> None:
    folder = save(tmp_path, *learn(openai_folder))
    detector = OODDetector(folder, LABELS, "mcm")
    detector.remember_images(extract_features(IMAGES[:2], detector.image_encoder, progress=False))
    detector.save_pretrained(folder, include_weights=False)
    for knowing in (detector, OODDetector.from_pretrained(folder)):
        with pytest.raises(ValueError, match="has 2 of 4 images that the method was fitted on, or its prompts"):
            knowing.calibrate(IMAGES, 0.5)
        assert knowing.calibrate(IMAGES[2:], 0.5).n == 2
    plain = OODDetector(openai_folder, LABELS, "mcm")
    with pytest.raises(ValueError, match="depends on no images"):
        plain.remember_images(extract_features(IMAGES[:2], plain.image_encoder, progress=False))


def test_detectors_of_a_merged_model_keep_its_prompts(openai_folder: Path, tmp_path: Path) -> None:
    adapted, processor, prompts = learn(openai_folder, "class-specific")
    expected = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm").score(IMAGES)
    merged = adapted.merge_and_unload()
    detector = OODDetector(DualEncoder(merged, processor), LABELS, "mcm")
    detector.save_pretrained(tmp_path, include_weights=True)
    loaded = OODDetector.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.score(IMAGES), expected, rtol=0, atol=1e-6)
    assert loaded.with_changes(labels=["tree", "cat"]).labels == ["tree", "cat"]
    assert loaded.encoder.learned_prompts == prompts


def test_adapters_on_top_of_merged_prompts_leave_them_alone(openai_folder: Path, tmp_path: Path) -> None:
    adapted, processor, prompts = learn(openai_folder)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    model = get_peft_model(
        CLIPModel.from_pretrained(tmp_path / "merged"), LoraConfig(target_modules=r"vision_model\..*q_proj")
    )
    model.save_pretrained(tmp_path / "adapter")
    detector = OODDetector(tmp_path / "adapter", LABELS, "mcm")
    # This puts a configuration there, which tells of the prompts.
    detector.save_pretrained(tmp_path / "adapter", include_weights=False)
    assert OODDetector.from_pretrained(tmp_path / "adapter").encoder.learned_prompts == prompts


def test_labels_in_another_order_and_fewer_of_them(openai_folder: Path) -> None:
    adapted, processor, _ = learn(openai_folder, "class-specific")
    encoder = DualEncoder(adapted, processor)
    whole, _ = encoder.class_embeddings(LABELS)
    detector = OODDetector(encoder, ["tree", "cat"], "mcm")
    some, _ = encoder.class_embeddings(detector.labels)
    torch.testing.assert_close(some, whole[[2, 0]], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"not for 'dog'\. Choose among 'cat', 'red bird', 'tree', or give"):
        OODDetector(encoder, ["dog", "cat"], "mcm")
    # Templates of the user do without the context.
    assert OODDetector(encoder, ["dog", "cat"], "mcm", templates=["a photo of a {}."]).labels == ["dog", "cat"]


@pytest.mark.parametrize("kind", ["shared", "class-specific"])
def test_embeddings_on_disk_agree(openai_folder: Path, tmp_path: Path, kind: str) -> None:
    adapted, processor, prompts = learn(openai_folder, kind)
    encoder = DualEncoder(adapted, processor)
    expected, _ = encoder.class_embeddings(LABELS)
    for _ in range(2):
        found, _ = cached_class_embeddings(encoder, LABELS, cache_dir=tmp_path)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    given = cached_class_embeddings(encoder, LABELS, ["a photo of a {}."], cache_dir=tmp_path)[0]
    assert not torch.allclose(given, expected, atol=1e-3)
    torch.testing.assert_close(given, encoder.class_embeddings(LABELS, ["a photo of a {}."])[0], rtol=0, atol=1e-6)
    assert encoder.class_prompts(LABELS) == prompts.build_prompts()
    assert encoder.class_prompts(["cat"], ["a {}.", "no {}."]) == ["a cat.", "no cat."]


def test_templates_of_the_user_win(openai_folder: Path) -> None:
    adapted, processor, _ = learn(openai_folder)
    learned = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm")
    given = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm", templates=["a photo of a {}."])
    plain = OODDetector(openai_folder, LABELS, "mcm", templates=["a photo of a {}."])
    torch.testing.assert_close(given.score(IMAGES), plain.score(IMAGES), rtol=0, atol=1e-6)
    assert not torch.allclose(learned.score(IMAGES), plain.score(IMAGES), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "template"), [("shared", "<ctx_0> <ctx_1> <ctx_2> <ctx_3> {}."), ("class-specific", "The nice {}.")]
)
def test_negative_labels_are_worded_as_the_labels_are(openai_folder: Path, kind: str, template: str) -> None:
    adapted, processor, _ = learn(openai_folder, kind)
    detector = OODDetector(
        DualEncoder(adapted, processor), LABELS, "neglabel", negatives=["stone", "river", "cloud", "car"]
    )
    assert detector.templates == [template]
    assert detector.score(IMAGES).shape == (4,)
    # To other methods they explain alone, and labels are in the prompts that were learned.
    explaining = detector.with_changes(method="mcm")
    assert explaining.negatives is not None
    assert explaining.negatives.settings["templates"] == [template]
    plain = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm")
    torch.testing.assert_close(explaining.score(IMAGES), plain.score(IMAGES), rtol=0, atol=1e-6)
    given = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm", negatives=explaining.negatives)
    assert [one["label"] for one in given(IMAGES[0])[0]["negatives"]] == [
        one["label"] for one in explaining(IMAGES[0])[0]["negatives"]
    ]


def test_models_without_an_unknown_prompt_say_so(clip_folder: Path) -> None:
    plain = DualEncoder.from_pretrained(clip_folder)
    assert plain.learned_prompts is None
    adapted, processor, _ = learn(clip_folder, unknown=False)
    for encoder in (plain, DualEncoder(adapted, processor)):
        assert not encoder.has_unknown_prompt
        with pytest.raises(ValueError, match='has no learned "unknown" prompt; give a model that was trained'):
            encoder.unknown_embedding()


def test_a_processor_with_tokens_that_the_model_lacks_is_refused(openai_folder: Path) -> None:
    _, processor, _ = learn(openai_folder)
    with pytest.raises(
        ValueError,
        match=r"does not fit the CLIPModel: .* none of them for what was added to the tokenizer, such as <ctx_0>,",
    ):
        DualEncoder(CLIPModel.from_pretrained(openai_folder), processor)


def test_a_processor_without_the_tokens_is_refused(openai_folder: Path) -> None:
    adapted, _, _ = learn(openai_folder)
    with pytest.raises(
        ValueError, match=r"The tokenizer lacks 4 of the 4 tokens .* Give the processor that was saved"
    ):
        DualEncoder(adapted, CLIPProcessor.from_pretrained(openai_folder))


# CLIPN


@pytest.mark.parametrize("kind", ["shared", "class-specific"])
def test_prompts_on_the_text_encoder_of_a_clipn(clipn_folder: Path, tmp_path: Path, kind: str) -> None:
    plain = DualEncoder.from_pretrained(clipn_folder)
    adapted, processor, prompts = learn(clipn_folder, kind, CLIPNModel.from_pretrained)
    live = DualEncoder(adapted, processor)
    expected = OODDetector(live, LABELS, "atd").score(IMAGES)
    before = OODDetector(plain, LABELS, "atd").score(IMAGES)
    assert not torch.allclose(expected, before, atol=1e-5)
    # The "no" text encoder reads what it was trained on.
    assert live.no_templates == plain.no_templates
    for given in (None, live.templates):
        _, no_text = live.class_embeddings(LABELS, given)
        torch.testing.assert_close(no_text, plain.class_embeddings(LABELS)[1], rtol=0, atol=1e-6)
    folder = save(tmp_path / "adapter", adapted, processor, prompts)
    detector = OODDetector(folder, LABELS, "atd")
    torch.testing.assert_close(detector.score(IMAGES), expected, rtol=0, atol=1e-6)
    detector.save_pretrained(folder, include_weights=False)
    torch.testing.assert_close(OODDetector.from_pretrained(folder).score(IMAGES), expected, rtol=0, atol=1e-6)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        OODDetector(tmp_path / "merged", LABELS, "atd").score(IMAGES), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("method", ["atd", "ctw"])
def test_rules_for_no_texts_are_doubted_with_learned_prompts(
    clipn_folder: Path, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("clipn_hf"), "propagate", True)
    adapted, processor, _ = learn(clipn_folder, load=CLIPNModel.from_pretrained)
    encoder = DualEncoder(adapted, processor)
    # With prompts written by hand, with a threshold, or by a method without such a rule, nothing is in doubt.
    OODDetector(encoder, LABELS, method, templates=["a photo of a {}."])
    OODDetector(encoder, LABELS, method, threshold=0.5)
    OODDetector(encoder, LABELS)
    OODDetector(DualEncoder.from_pretrained(clipn_folder), LABELS, method)
    assert not caplog.records
    for _ in range(2):
        OODDetector(encoder, LABELS, method)
    (record,) = caplog.records
    assert f"The threshold-free rule of method {method} compares labels in learned prompts" in record.getMessage()
    assert "calibrate the detector with images of your labels, or use method clip_os" in record.getMessage()


def test_a_missing_verdict_is_no_reason_to_use_rules_for_other_prompts(
    openai_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("clipn_hf"), "propagate", True)
    adapted, processor, _ = learn(openai_folder)
    OODDetector(DualEncoder(adapted, processor), LABELS)(IMAGES)
    (record,) = caplog.records
    assert record.getMessage().endswith("which `OODDetector.calibrate` finds with images of your labels.")


@pytest.mark.parametrize("no_prompt_type", ["learnable", "handcrafted"])
def test_prompts_on_a_clipn_that_is_made_of_a_clip(openai_folder: Path, tmp_path: Path, no_prompt_type: str) -> None:
    def load(source: Any) -> CLIPNModel:
        return CLIPNModel.from_clip(source, no_prompt_type=no_prompt_type, num_no_prompts=3)

    adapted, processor, prompts = learn(openai_folder, "shared", load)
    expected = OODDetector(DualEncoder(adapted, processor), LABELS, "atd").score(IMAGES)
    detector = OODDetector(save(tmp_path, adapted, processor, prompts), LABELS, "atd")
    assert detector.encoder.model.config.no_prompt_type == no_prompt_type
    torch.testing.assert_close(detector.score(IMAGES), expected, rtol=0, atol=1e-6)


def test_a_clipn_of_a_clip_with_learned_prompts_has_them(openai_folder: Path) -> None:
    adapted, processor, _ = learn(openai_folder)
    expected = embed(DualEncoder(adapted, processor))
    check_same(DualEncoder(CLIPNModel.from_clip(adapted.merge_and_unload()), processor), expected)


# Where models come from


def test_adapters_on_the_model_in_the_package_move_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapted, processor, prompts = learn(EMBEDDED_CHECKPOINT, "shared", CLIPNModel.from_pretrained)
    expected = embed(DualEncoder(adapted, processor))
    score = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm").score(IMAGES)
    folder = save(tmp_path / "adapter", adapted, processor, prompts)
    assert prompts.base["id"] == "clipn-tiny"
    for file in folder.glob("*.json"):
        assert str(Path(EMBEDDED_CHECKPOINT).parent) not in file.read_text()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "clipn-tiny"
    detect = pipeline("ood-detection", model=str(folder), device="cpu", method="mcm")
    found = torch.tensor([result["ood_score"] for result in detect(IMAGES, candidate_labels=LABELS)])
    torch.testing.assert_close(found, score, rtol=0, atol=1e-6)
    elsewhere = "C:\\venv\\site-packages\\clipn_hf\\checkpoints\\clipn-tiny"
    for name in ("clipn-tiny", "/opt/venv/site-packages/clipn_hf/checkpoints/clipn-tiny/", elsewhere):
        config["base_model_name_or_path"] = name
        (folder / "adapter_config.json").write_text(json.dumps(config))
        check_same(DualEncoder.from_pretrained(folder), expected)


def test_adapters_load_from_any_working_directory(
    openai_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(openai_folder, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    adapted, processor, prompts = learn("base")
    expected = embed(DualEncoder(adapted, processor))
    save(Path("adapter"), adapted, processor, prompts)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    # As peft and transformers, which know of no other folder than that which they are started in, can read it.
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    check_same(DualEncoder.from_pretrained(tmp_path / "adapter"), expected)
    check_same(DualEncoder.from_pretrained("../adapter"), expected)
    detect = pipeline("ood-detection", model="../adapter", device="cpu")
    assert detect(IMAGES[0], candidate_labels=LABELS)["method"] == "clip_os"
    # What is written by hand may begin at the adapter.
    config["base_model_name_or_path"] = "../base"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    check_same(DualEncoder.from_pretrained(tmp_path / "adapter"), expected)


@pytest.mark.parametrize("named", ["gone", "../gone", "/gone/far/away"])
def test_a_base_model_that_is_gone_is_named(
    openai_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    folder = save(tmp_path / "adapter", *learn(openai_folder))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": named}))
    # The Hub is not asked.
    monkeypatch.setattr("clipn_hf.loading.AutoConfig", None)
    with pytest.raises(
        IncompleteCheckpointError, match=f"base model {named} of the adapter .*adapter cannot be loaded .*Put it there"
    ):
        DualEncoder.from_pretrained(folder)


@pytest.fixture
def put_on_hub() -> Iterator[Callable[[Path, str, str], str]]:
    """Puts a folder where repositories of the Hub are kept once they were downloaded, and takes them away again."""
    made = []

    def put(folder: Path, name: str, revision: str) -> str:
        place = Path(constants.HF_HUB_CACHE, f"models--learned-prompts--{name}")
        made.append(place)
        commit = (revision.encode().hex() + "0" * 40)[:40]
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True, parents=True)
        (place / "refs" / revision).write_text(commit)
        # What the Hub has said it does not have.
        absent = place / ".no_exist" / commit
        absent.mkdir(parents=True)
        for file in ("adapter_config.json", "clipn_prompts.json", "config.json", "learned_prompts.json"):
            if not (folder / file).exists():
                (absent / file).touch()
        return f"learned-prompts/{name}"

    yield put
    for place in made:
        shutil.rmtree(place, ignore_errors=True)


def test_adapters_and_their_bases_come_from_the_hub(
    openai_folder: Path, tmp_path: Path, put_on_hub: Callable[[Path, str, str], str]
) -> None:
    base = put_on_hub(openai_folder, "base", "v1")
    shutil.copytree(openai_folder, tmp_path / "changed")
    others_weights(tmp_path, tmp_path / "changed")
    put_on_hub(tmp_path / "changed", "base", "main")
    adapted, processor, prompts = learn(base, revision="v1")
    expected = embed(DualEncoder(adapted, processor))
    score = OODDetector(DualEncoder(adapted, processor), LABELS, "mcm").score(IMAGES)
    assert prompts.base["id"] == base
    assert prompts.base["revision"] == "v1"
    repository = put_on_hub(save(tmp_path / "adapter", adapted, processor, prompts), "adapter", "main")
    check_same(DualEncoder.from_pretrained(repository), expected)
    detect = pipeline("ood-detection", model=repository, device="cpu", method="mcm")
    found = torch.tensor([result["ood_score"] for result in detect(IMAGES, candidate_labels=LABELS)])
    torch.testing.assert_close(found, score, rtol=0, atol=1e-6)
    detector = OODDetector(repository, LABELS, "mcm")
    detector.save_pretrained(tmp_path / "detector", include_weights=False)
    torch.testing.assert_close(
        OODDetector.from_pretrained(tmp_path / "detector").score(IMAGES), score, rtol=0, atol=1e-6
    )

    edited = save(tmp_path / "edited", adapted, processor, prompts)
    file = edited / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "revision": None}))
    with pytest.raises(IncompleteCheckpointError, match=f"with the text encoder of {base} at revision v1, whose"):
        DualEncoder.from_pretrained(edited)

    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    check_same(DualEncoder.from_pretrained(put_on_hub(tmp_path / "merged", "merged", "main")), expected)


def test_the_commit_of_a_base_from_the_hub_is_remembered(
    openai_folder: Path, tmp_path: Path, put_on_hub: Callable[[Path, str, str], str]
) -> None:
    base = put_on_hub(openai_folder, "base", "v1")
    commit = (b"v1".hex() + "0" * 40)[:40]
    encoder = DualEncoder.from_pretrained(base, revision="v1")
    assert (encoder.source, encoder.revision) == (base, commit)
    assert DualEncoder.from_pretrained(openai_folder).revision is None
    prompts = add_context_tokens(encoder.model, encoder.processor, LABELS, num_tokens=2)
    assert prompts.base["revision"] == commit
    adapted = get_peft_model(
        encoder.model, prompt_tuning_config(prompts, encoder.processor.tokenizer), revision=prompts.base["revision"]
    )
    expected, _ = DualEncoder(adapted, encoder.processor).class_embeddings(LABELS)
    folder = save(tmp_path, adapted, encoder.processor, prompts)
    # There is no "main" here, to which it would fall back.
    again = DualEncoder.from_pretrained(folder)
    torch.testing.assert_close(again.class_embeddings(LABELS)[0], expected, rtol=0, atol=0)
    # Its own revision is another matter than that of its base.
    assert (again.source, again.revision, again.model.hub_revision) == (str(folder), None, commit)


# What is refused


def others_weights(folder: Path, base: Path) -> None:
    model: Any = CLIPModel.from_pretrained(base)
    with torch.no_grad():
        model.text_model.final_layer_norm.weight[0] += 0.01
    model.save_pretrained(base)


def others_images(folder: Path, base: Path) -> None:
    model: Any = CLIPModel.from_pretrained(base)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 0.01
    model.save_pretrained(base)


def edit_prompts(folder: Path, base: Path, **values: Any) -> None:
    file = folder / "learned_prompts.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def base_tokenizer(folder: Path, base: Path) -> None:
    CLIPProcessor.from_pretrained(base).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            others_weights,
            r"was trained on another backbone: its prompts were learned with the text encoder of base, whose weights "
            r"are others than those of its base model .*base\. Name the right model and revision",
        ),
        (
            others_images,
            r"was trained on another backbone: its prompts were learned with the image encoder of base, whose weights "
            r"are others than those of its base model .*base\. Name the right model and revision",
        ),
        (base_tokenizer, r"is incomplete: The tokenizer lacks 4 of the 4 tokens"),
        (lambda folder, base: edit_prompts(folder, base, tokens=3), r"`tokens` is missing or of another kind"),
        (
            lambda folder, base: edit_prompts(folder, base, vocab_size=3),
            r"is damaged: its learned_prompts\.json says `vocab_size` 3, but with its tokenizer the model has \d+\.",
        ),
        (
            lambda folder, base: edit_prompts(folder, base, eos_token_id=2),
            r"is damaged: its learned_prompts\.json says `eos_token_id` 2, but with its tokenizer the model has \d+\.",
        ),
        (
            lambda folder, base: (base_tokenizer(folder, base), (folder / "learned_prompts.json").unlink()),
            r"trains token \d+, but its base model has \d+ tokens, .* Save the processor of the model there",
        ),
        (
            lambda folder, base: (folder / "learned_prompts.json").write_text("[]"),
            r"does not describe learned prompts: `templates`, .* are missing",
        ),
        (
            lambda folder, base: (folder / "learned_prompts.json").write_text("{"),
            r"learned_prompts\.json is not valid JSON .*Download or save it again\.",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    openai_folder: Path, tmp_path: Path, damage: Callable[[Path, Path], Any], message: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(openai_folder, base)
    folder = save(tmp_path / "adapter", *learn(base))
    damage(folder, base)
    with pytest.raises(IncompleteCheckpointError, match=message):
        AutoDualEncoder.from_pretrained(folder)


def test_an_adapter_that_does_not_tell_of_its_image_encoder_loads(openai_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(openai_folder, base)
    adapted, processor, prompts = learn(base)
    expected = embed(DualEncoder(adapted, processor))
    del prompts.base["image_weights_sha256"]
    folder = save(tmp_path / "adapter", adapted, processor, prompts)
    others_images(folder, base)
    check_same(DualEncoder.from_pretrained(folder), expected)


def test_an_adapter_without_what_is_known_of_its_prompts_says_so(
    openai_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("clipn_hf"), "propagate", True)
    adapted, processor, prompts = learn(openai_folder)
    texts = prompts.build_prompts()
    expected = DualEncoder(adapted, processor).text_embeddings(texts)
    folder = save(tmp_path, adapted, processor, prompts)
    DualEncoder.from_pretrained(folder)
    assert "that no prompt has" not in caplog.text
    (folder / "learned_prompts.json").unlink()
    encoder = DualEncoder.from_pretrained(folder)
    assert (
        "has embeddings of 4 tokens, such as <ctx_0>, that no prompt has: it has no learned_prompts.json"
        in caplog.text
    )
    assert encoder.learned_prompts is None
    # Who knows the prompts can use them.
    torch.testing.assert_close(encoder.text_embeddings(texts), expected, rtol=0, atol=0)


def test_an_adapter_on_a_model_of_another_kind_is_refused(
    openai_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, *learn(openai_folder))
    monkeypatch.setattr("clipn_hf.loading.CLIPModel", CLIPNModel)
    with pytest.raises(
        IncompleteCheckpointError, match="learned on a CLIPModel, but its base model .* is a CLIPModel"
    ):
        AutoDualEncoder.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backbone_in_half_precision_is_recognised(openai_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    def load(source: Any) -> Any:
        return CLIPModel.from_pretrained(source, dtype=dtype)

    adapted, processor, prompts = learn(openai_folder, "shared", load)
    encoder = DualEncoder.from_pretrained(save(tmp_path, adapted, processor, prompts))
    assert encoder.has_unknown_prompt
