# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images, texts and labels, and the refusal of models that cannot give any."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizer,
)

from clipn_hf import CLIPNModel, CLIPNProcessor, DualEncoder, IncompleteCheckpointError, pipeline
from clipn_hf.encoders import (
    ALIGNMENT,
    EMBEDDED_CHECKPOINT,
    MAX_CACHED_LABEL_SETS,
    TEXT_BATCH_SIZE,
    AutoDualEncoder,
)
from clipn_hf.images import ImageError
from clipn_hf.modeling.completeness import refuse_damaged
from clipn_hf.prompts import DEFAULT_TEMPLATES, NO_TEMPLATES

LABELS = ["cat", "red bird", "tree"]


def noise(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def edit_weights(source: Path, target: Path, edit: Any) -> Path:
    """A copy of a saved model with other weights."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    save_file(edit(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target


class Calls:
    """Counts the calls of a method of a model."""

    def __init__(self, model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.original = getattr(model, name)
        monkeypatch.setattr(model, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.original(*args, **kwargs)


def test_image_embeddings_are_those_of_the_model(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    inputs = encoder.prepare_images([noise(0), noise(1)])
    assert inputs.keys() == {"pixel_values"}
    pixel_values = inputs["pixel_values"]
    assert torch.equal(
        pixel_values, tiny_processor.image_processor([noise(0), noise(1)], return_tensors="pt")["pixel_values"]
    )
    found = encoder.image_embeddings(inputs)
    assert torch.equal(encoder.image_embeddings(pixel_values), found)
    with torch.no_grad():
        expected = normalize(tiny_clip.get_image_features(pixel_values).pooler_output, dim=-1)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_broken_image_is_named_by_its_position(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    with pytest.raises(ImageError, match=r"image 8 \(the 5 bytes given\)"):
        encoder.prepare_images([noise(0), b"magic"], start=7)
    with pytest.raises(ImageError, match=r"Cannot read the 5 bytes given"):
        encoder.prepare_images([b"magic"], start=None)
    with pytest.raises(TypeError, match=r"Cannot read image 1: .* got NoneType"):
        encoder.prepare_images([noise(0), None])  # type: ignore[list-item]


def test_text_embeddings_do_not_depend_on_their_neighbours(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    encoder = DualEncoder(tiny_clipn, tiny_processor)
    prompts = ["a cat", "a photo of a red bird with no tree", "dog"] * (TEXT_BATCH_SIZE // 3 + 1)
    for embed in (encoder.text_embeddings, encoder.no_text_embeddings):
        together = embed(prompts)
        assert together.shape == (len(prompts), 24)
        assert together.dtype == torch.float32
        torch.testing.assert_close(together[:3], together[-3:], rtol=0, atol=1e-6)
        for row in range(3):
            torch.testing.assert_close(embed(prompts[row : row + 1])[0], together[row], rtol=0, atol=1e-6)


def test_each_text_is_encoded_once_among_those_of_its_length(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipn_hf.encoders.TEXT_BATCH_SIZE", 3)
    encoder, shapes = DualEncoder(tiny_clipn, tiny_processor), []
    encode = tiny_clipn.get_text_features

    def spy(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        shapes.append(tuple(input_ids.shape))
        return encode(input_ids=input_ids, attention_mask=attention_mask)

    texts = ["cat", "a cat", "a cat a cat a cat", "dog", "car", "a dog", "cat", "dog"]
    expected = torch.cat([encoder.text_embeddings([text]) for text in texts])
    monkeypatch.setattr(tiny_clipn, "get_text_features", spy)
    found = encoder.text_embeddings(texts)
    # With start and end: one text of 8 tokens, two of 4, three of 3
    assert shapes == [(3, 8), (3, 3)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    whole = tiny_processor.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        features = encode(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"]).pooler_output
    torch.testing.assert_close(found, normalize(features, dim=-1), rtol=0, atol=1e-6)
    for embed in (encoder.text_embeddings, encoder.no_text_embeddings):
        with pytest.raises(ValueError, match="`prompts` is empty; give at least one text"):
            embed([])
        with pytest.raises(TypeError, match=r"`prompts` must be a sequence of texts, got the text 'a cat'; give \["):
            embed("a cat")
        with pytest.raises(TypeError, match="`prompts` must hold texts, got None at position 1"):
            embed(["a cat", None])  # type: ignore[list-item]


@pytest.mark.parametrize(("side", "part"), [("right", "end"), ("left", "beginning")])
def test_says_which_part_of_a_text_is_cut(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, caplog: pytest.LogCaptureFixture, side: str, part: str
) -> None:
    tiny_processor.tokenizer.truncation_side = side
    encoder = DualEncoder(tiny_clip, tiny_processor)
    encoder.text_embeddings(["cat " * 90, "dog"])
    encoder.text_embeddings(["cat " * 90, "dog " * 90])
    one, two = caplog.messages
    assert one.endswith(f"is too long for the text encoder, and its {part} is ignored: shorten it.")
    assert f"2 texts are too long for the text encoder, and their {part}s are ignored: 'cat " in two


@pytest.mark.parametrize("image", ["cat.png", Path("cat.png"), b"", Image.new("RGB", (4, 4))])
def test_images_are_several(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, image: Any) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    with pytest.raises(TypeError, match=r"`images` must be a sequence of images, got one \w+; give `\[image\]`\."):
        encoder.prepare_images(image)
    with pytest.raises(ValueError, match="`images` is empty; give at least one image"):
        encoder.prepare_images([])


def test_a_bar_shows_on_request(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    def spy(**options: Any) -> Any:
        bars.append((options["total"], options["disable"]))
        return tqdm(**{**options, "disable": True})

    monkeypatch.setattr("clipn_hf.encoders.tqdm", spy)
    encoder = DualEncoder(tiny_clip, tiny_processor)
    encoder.text_embeddings(["cat", "dog", "cat"], progress=True)
    encoder.text_embeddings(["cat"])
    encoder.class_embeddings(LABELS, ["a {}", "the {}"], progress=True)
    # None shows the bar if there is a terminal.
    assert bars == [(2, None), (1, True), (6, None)]


@pytest.mark.parametrize("no_prompt_type", ["learnable", "handcrafted"])
def test_class_embeddings_average_normalised_prompts(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, no_prompt_type: str
) -> None:
    model = CLIPNModel.from_clip(tiny_clip, no_prompt_type=no_prompt_type)
    encoder = DualEncoder(model, tiny_processor)
    text, no_text = encoder.class_embeddings(LABELS)
    assert no_text is not None
    no_templates = DEFAULT_TEMPLATES if no_prompt_type == "learnable" else NO_TEMPLATES
    for label, embedding, no_embedding in zip(LABELS, text, no_text, strict=True):
        prompts = encoder.text_embeddings([template.replace("{}", label) for template in DEFAULT_TEMPLATES])
        torch.testing.assert_close(embedding, normalize(prompts.mean(dim=0), dim=0))
        no_prompts = encoder.no_text_embeddings([template.replace("{}", label) for template in no_templates])
        torch.testing.assert_close(no_embedding, normalize(no_prompts.mean(dim=0), dim=0))


def test_templates_come_from_the_call_the_processor_or_the_model(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor
) -> None:
    own, other, no_other = ["a drawing of {}"], ["the {}"], ["not the {}"]

    def embeddings(model: Any, processor: Any, **templates: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        return DualEncoder(model, processor).class_embeddings(LABELS, **templates)

    clipn = CLIPNModel.from_clip(tiny_clip, templates=own)
    processor = CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer, templates=other)
    called = embeddings(tiny_clip, tiny_processor, templates=other)[0]
    torch.testing.assert_close(embeddings(tiny_clip, processor)[0], called)
    torch.testing.assert_close(embeddings(clipn, tiny_processor, templates=other)[0], called)
    torch.testing.assert_close(
        embeddings(clipn, tiny_processor)[0], embeddings(tiny_clip, tiny_processor, templates=own)[0]
    )
    # Learnable "no" prompts read what the text encoder reads, hand-crafted ones their own pool.
    learnable = embeddings(clipn, tiny_processor, templates=other)[1]
    torch.testing.assert_close(learnable, embeddings(CLIPNModel.from_clip(tiny_clip, templates=other), processor)[1])
    handcrafted = CLIPNModel.from_clip(tiny_clip, no_prompt_type="handcrafted")
    pool = embeddings(handcrafted, tiny_processor)[1]
    torch.testing.assert_close(embeddings(handcrafted, tiny_processor, templates=other)[1], pool)
    given = embeddings(handcrafted, tiny_processor, no_templates=no_other)[1]
    assert given is not None
    assert not torch.allclose(given, pool)  # type: ignore[arg-type]


def test_a_processor_without_templates_leaves_them_to_the_model(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor
) -> None:
    """As where a model with hand-crafted prompts is combined with the processor of the CLIP it was made of."""
    model = CLIPNModel.from_clip(tiny_clip, no_prompt_type="handcrafted")
    with torch.no_grad():
        model.no_text_projection.weight *= torch.linspace(-1, 1, 32)
    processor = CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)
    assert processor.templates is processor.no_templates is None
    encoder = DualEncoder(model, processor)
    assert encoder.templates == list(DEFAULT_TEMPLATES)
    assert encoder.no_templates == list(NO_TEMPLATES)
    expected = encoder.class_embeddings(LABELS, DEFAULT_TEMPLATES, NO_TEMPLATES)[1]
    assert torch.equal(encoder.class_embeddings(LABELS)[1], expected)  # type: ignore[arg-type]
    assert not torch.allclose(encoder.class_embeddings(LABELS, no_templates=DEFAULT_TEMPLATES)[1], expected)  # type: ignore[arg-type]
    assert DualEncoder(tiny_clip, tiny_processor).templates == list(DEFAULT_TEMPLATES)


def test_one_template_is_that_of_the_model_if_it_brings_any(
    tiny_clip: CLIPModel, tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    plain = DualEncoder(tiny_clip, tiny_processor)
    assert plain.single_template(["a {}"]) == ["a {}"]
    plain.templates = ["一张{}的图片。"]  # As for the family of Chinese-CLIP
    assert plain.single_template(["a {}"]) == ["一张{}的图片。"]
    tiny_clipn.config.templates = ["the {}", "no {}"]
    assert DualEncoder(tiny_clipn, tiny_processor).single_template(["a {}"]) == ["the {}"]
    processor = CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer, templates=["one {}"])
    tiny_clipn.config.templates = None
    assert DualEncoder(tiny_clipn, processor).single_template(["a {}"]) == ["one {}"]


def test_model_and_processor_must_agree_on_templates(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    model = CLIPNModel.from_clip(tiny_clip, no_prompt_type="handcrafted")
    parts = tiny_processor.image_processor, tiny_processor.tokenizer
    with pytest.raises(
        ValueError,
        match=r"disagree on `templates`.* model has \['a photo of a .*, the processor \['the \{\}'\]\. Set "
        r"`processor\.templates = None`",
    ):
        DualEncoder(model, CLIPNProcessor(*parts, templates=["the {}"]))
    processor = CLIPNProcessor(*parts, templates=DEFAULT_TEMPLATES, no_templates=DEFAULT_TEMPLATES)
    with pytest.raises(ValueError, match=r"disagree on `no_templates`"):
        DualEncoder(model, processor)
    processor.no_templates = None
    assert DualEncoder(model, processor).no_templates == list(NO_TEMPLATES)


def test_clip_has_no_no_encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    assert not encoder.has_no_encoder
    assert encoder.class_embeddings(LABELS)[1] is None
    with pytest.raises(TypeError, match=r'CLIPModel has no "no" text encoder; use a trained CLIPN'):
        encoder.no_text_embeddings(["a cat"])


def test_labels_are_embedded_once(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = DualEncoder(tiny_clipn, tiny_processor)
    calls, no_calls = (Calls(tiny_clipn, name, monkeypatch) for name in ("get_text_features", "get_no_text_features"))
    text, _ = encoder.class_embeddings(LABELS, use_no_encoder=False)
    assert (calls.count, no_calls.count) == (1, 0)
    again, no_text = encoder.class_embeddings(LABELS)
    assert (calls.count, no_calls.count) == (1, 1)
    assert again is text
    assert encoder.class_embeddings(tuple(LABELS))[1] is no_text
    encoder.class_embeddings(LABELS[::-1])
    encoder.class_embeddings(LABELS, templates=["a {}"])
    assert (calls.count, no_calls.count) == (3, 3)

    for number in range(MAX_CACHED_LABEL_SETS):
        encoder.class_embeddings([f"cat {number}"])
    calls.count = 0
    encoder.class_embeddings([f"cat {MAX_CACHED_LABEL_SETS - 1}"])
    assert calls.count == 0
    encoder.class_embeddings(LABELS)
    assert calls.count == 1


def test_changed_weights_are_noticed(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    before, _ = encoder.class_embeddings(LABELS)
    with torch.no_grad():
        tiny_clip.text_projection.weight[1].zero_()
    after, _ = encoder.class_embeddings(LABELS)
    assert not torch.allclose(before, after)
    # The optimizer of the Trainer leaves no trace but the values.
    weight = tiny_clip.text_projection.weight
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()
    trained, _ = encoder.class_embeddings(LABELS)
    assert not torch.allclose(after, trained)


def test_long_labels_are_cut_with_a_warning(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = DualEncoder(tiny_clipn, tiny_processor)
    longest = " ".join(["cat"] * 75)  # 77 tokens with start and end
    encoder.class_embeddings([longest, "dog"], templates=["{}"])
    assert not caplog.records
    words = "bird " + " ".join(["cat"] * 299)
    text, no_text = encoder.class_embeddings(["dog", words], templates=["{}", "a {}"])
    assert no_text is not None
    assert torch.isfinite(text).all()
    assert torch.isfinite(no_text).all()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("'bird cat cat")
    assert "too long for the text encoder" in record.getMessage()
    caplog.clear()
    encoder.text_embeddings([words])
    assert len(caplog.records) == 1


def test_computes_in_float32_on_a_cpu(clipn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(clipn_folder, tmp_path / "half", lambda w: {name: weight.half() for name, weight in w.items()})
    half = DualEncoder.from_pretrained(tmp_path / "half", device="cpu")
    assert half.dtype == torch.float32
    assert not caplog.records
    asked = DualEncoder.from_pretrained(tmp_path / "half", device="cpu", dtype=torch.bfloat16)
    assert asked.dtype == torch.float32
    assert "not in the torch.bfloat16 that was asked for" in caplog.text
    loaded = DualEncoder(AutoModel.from_pretrained(tmp_path / "half", dtype=torch.float16), half.processor)
    assert loaded.dtype == torch.float32
    single = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    for encoder in (half, asked, loaded):
        text, no_text = encoder.class_embeddings(LABELS)
        expected, no_expected = single.class_embeddings(LABELS)
        torch.testing.assert_close(text, expected, rtol=0, atol=2e-3)
        torch.testing.assert_close(no_text, no_expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", ["int64", "float23", torch.int8, 16])
def test_dtype_must_be_floating_point(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"floating-point type such as torch\.float16 .*, got"):
        DualEncoder(tiny_clip, tiny_processor, dtype=dtype)


def test_model_in_training_mode_is_put_in_evaluation_mode(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    """In training mode the "no" prompt is drawn at random."""
    encoder = DualEncoder(tiny_clipn.train(), tiny_processor)
    assert torch.equal(encoder.no_text_embeddings(["a cat"]), encoder.no_text_embeddings(["a cat"]))


def test_logit_scale_is_that_of_the_checkpoint(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    assert DualEncoder(tiny_clip, tiny_processor).logit_scale == pytest.approx(tiny_clip.logit_scale.exp().item())
    with torch.no_grad():
        tiny_clip.logit_scale.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"`exp\(logit_scale\)` of the checkpoint is nan"):
        DualEncoder(tiny_clip, tiny_processor)


def test_damaged_weights_are_named(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clipn, tiny_processor)
    with torch.no_grad():
        tiny_clipn.no_text_projection.weight[0, 0] = float("nan")
    encoder.class_embeddings(LABELS, use_no_encoder=False)
    with pytest.raises(ValueError, match=r'The "no" text embeddings are not finite.*no_text_projection\.weight'):
        encoder.class_embeddings(LABELS)
    with torch.no_grad():
        tiny_clipn.visual_projection.weight.fill_(float("inf"))
    with pytest.raises(
        ValueError, match=r"The image embeddings .*(no_text_projection\.weight|visual_projection\.weight)"
    ):
        encoder.image_embeddings(encoder.prepare_images([noise(0)]))


def test_overflow_is_told_from_damage(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    with torch.no_grad():
        tiny_clip.visual_projection.weight.fill_(3e38)
    with pytest.raises(ValueError, match=r"all weights are: the model overflows in torch\.float32"):
        encoder.image_embeddings(encoder.prepare_images([noise(0)]))


@pytest.mark.parametrize("load", [AutoDualEncoder.from_pretrained, DualEncoder.from_pretrained])
def test_missing_weights_are_an_error(clip_folder: Path, clipn_folder: Path, tmp_path: Path, load: Any) -> None:
    drop = "text_model.final_layer_norm.weight"
    folder = edit_weights(
        clip_folder, tmp_path / "clip", lambda w: {name: weight for name, weight in w.items() if name != drop}
    )
    with pytest.raises(IncompleteCheckpointError, match=rf"lacks weights of CLIPModel: {drop}\. Download"):
        load(folder)
    folder = edit_weights(
        clipn_folder, tmp_path / "clipn", lambda w: {name: weight for name, weight in w.items() if "no_" not in name}
    )
    with pytest.raises(
        IncompleteCheckpointError,
        match=r"CLIPNModel: no_text_model\..* and \d+ more\. Use a trained CLIPN, such as .*from_clip",
    ):
        load(folder)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def pickle_bomb(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Bomb(folder / "exploded")}, folder / "pytorch_model.bin")


def empty_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def cut_pickle(folder: Path) -> None:
    pickle_bomb(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-50])


def cut_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight')


def edit_config(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "cannot be read: .*incomplete metadata"),
        (empty, "cannot be read: .*header too small"),
        (pickle_bomb, "cannot be read: .*Python objects other than tensors, which are not executed"),
        (empty_pickle, "cannot be read: .*empty"),
        (cut_pickle, "cannot be read: PytorchStreamReader failed"),
        (cut_index, "cannot be read: Unterminated string"),
        (lambda folder: edit_config(folder, num_no_prompts="x"), "cannot be read: .*num_no_prompts.* expected int"),
        (
            lambda folder: edit_config(folder, projection_dim=16),
            r"other shapes than its configuration: .*text_projection\.weight \(24, 32\) instead of \(16, 32\)",
        ),
    ],
)
def test_damaged_files_are_one_error(
    clipn_folder: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = shutil.copytree(clipn_folder, tmp_path / "damaged")
    damage(folder)
    loads = [AutoDualEncoder.from_pretrained, CLIPNModel.from_clip]
    if damage in (cut, empty, pickle_bomb, cut_pickle):
        # Of a damaged configuration transformers knows nothing that could be loaded.
        loads.append(lambda source: pipeline("ood-detection", model=str(source)))
    for load in loads:
        with pytest.raises(IncompleteCheckpointError, match=f"{folder} .*{reason}.*Download or save it again"):
            load(folder)
    assert not (folder / "exploded").exists()


def test_what_is_no_damage_keeps_its_error(tmp_path: Path, clipn_folder: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        AutoDualEncoder.from_pretrained(tmp_path / "gone")
    with pytest.raises(RuntimeError, match="out of memory"), refuse_damaged(clipn_folder):
        raise torch.OutOfMemoryError("out of memory")


def test_missing_tokenizer_files_are_an_error(clip_folder: Path, clipn_folder: Path, tmp_path: Path) -> None:
    for source in (clip_folder, clipn_folder):
        folder = shutil.copytree(source, tmp_path / source.name)
        (folder / "tokenizer.json").unlink()
        for load in (DualEncoder.from_pretrained, lambda path: pipeline("ood-detection", model=str(path))):
            with pytest.raises(ValueError, match=r"does not fit the CLIPN?Model: .*Put tokenizer\.json .*`processor`"):
                load(folder)
        DualEncoder.from_pretrained(folder, processor=AutoProcessor.from_pretrained(source))


def test_which_tokenizers_fit(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    text_config, tokenizer = tiny_clip.config.text_config, tiny_processor.tokenizer
    end_token_id = text_config.eos_token_id
    text_config.eos_token_id = 2
    DualEncoder(tiny_clip, tiny_processor)
    with pytest.raises(ValueError, match=r"it has 2 tokens .* expects the last\. "):
        DualEncoder(tiny_clip, CLIPProcessor(tiny_processor.image_processor, CLIPTokenizer()))
    text_config.eos_token_id = end_token_id - 1
    with pytest.raises(
        ValueError, match=rf"ends texts with token {end_token_id}, but .* expects {end_token_id - 1}\."
    ):
        DualEncoder(tiny_clip, tiny_processor)
    text_config.eos_token_id = end_token_id
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=f"has {end_token_id + 2} tokens .*the model has {end_token_id + 1} "):
        DualEncoder(tiny_clip, tiny_processor)
    tiny_clip.text_model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    DualEncoder(tiny_clip, tiny_processor)


def test_models_without_two_encoders_are_refused(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    with pytest.raises(TypeError, match=r"CLIPTextModel does not embed both .*: it has no get_image_features and no "):
        DualEncoder(CLIPTextModel(tiny_clip.config.text_config), tiny_processor)
    with pytest.raises(TypeError, match=r"There is no processor for the CLIPModel, or .*; pass processor="):
        DualEncoder(tiny_clip, None)
    with pytest.raises(TypeError, match=r"CLIPTokenizer, which has no image_processor, tokenizer"):
        DualEncoder(tiny_clip, tiny_processor.tokenizer)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="empty"):
        DualEncoder.from_pretrained(tmp_path / "empty")


def test_without_a_model_the_embedded_one_is_loaded(
    clipn_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules["clipn_hf.encoders"], "EMBEDDED_CHECKPOINT", str(clipn_folder))
    encoder = DualEncoder.from_pretrained(device="cpu")
    assert encoder.has_no_encoder
    (record,) = caplog.records
    assert "embedded clipn-tiny" in record.getMessage()
    assert "openai/clip-vit-base-patch16" in record.getMessage()


def test_a_missing_embedded_checkpoint_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules["clipn_hf.encoders"], "EMBEDDED_CHECKPOINT", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"this installation of clipn-hf is incomplete\. Install it again"):
        DualEncoder.from_pretrained()
    assert not caplog.records


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu(clipn_folder: Path, dtype: torch.dtype) -> None:
    single = DualEncoder.from_pretrained(clipn_folder, device="cuda")
    half = DualEncoder.from_pretrained(clipn_folder, device="cuda", dtype=dtype)
    assert single.dtype == torch.float32
    assert half.dtype == dtype
    assert half.logit_scale == single.logit_scale
    for name in ("text_embeddings", "no_text_embeddings"):
        found, expected = getattr(half, name)(LABELS), getattr(single, name)(LABELS)
        assert found.dtype == torch.float32
        assert found.device.type == "cuda"
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-2)
    pixel_values = single.prepare_images([noise(0), noise(1)])
    found = half.image_embeddings(pixel_values)
    torch.testing.assert_close(found, single.image_embeddings(pixel_values), rtol=0, atol=3e-2)
    torch.testing.assert_close(found.norm(dim=1).cpu(), torch.ones(2))


def test_says_which_model_it_is(clipn_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    described = encoder.describe()
    assert json.loads(json.dumps(described)) == described
    digest, processor_digest = described.pop("weights_sha256"), described.pop("image_processor_sha256")
    config_digest = described.pop("config_sha256")
    assert {len(bytes.fromhex(each)) for each in (digest, processor_digest, config_digest)} == {32}
    assert described == {
        "id": str(clipn_folder),
        "revision": None,
        "family": "clipn",
        "class": "CLIPNModel",
        "dtype": "float32",
        "device": "cpu",
        "logit_scale": encoder.logit_scale,
        "logit_bias": 0.0,
        "is_sigmoid": False,
    }
    assert DualEncoder.from_pretrained(clipn_folder, device="cpu").describe()["weights_sha256"] == digest
    assert DualEncoder.from_pretrained(clip_folder, device="cpu").describe()["weights_sha256"] != digest
    for name in ("logit_scale", "visual_projection.weight", "no_text_projection.weight"):
        changed = DualEncoder.from_pretrained(clipn_folder, device="cpu")
        with torch.no_grad():
            changed.model.state_dict()[name].add_(0.001)
        assert changed.describe()["weights_sha256"] != digest
    # In half precision other numbers, and the same ones in float32 afterwards
    model = CLIPNModel.from_pretrained(clipn_folder, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    encoder.processor.save_pretrained(tmp_path)
    half = DualEncoder.from_pretrained(tmp_path, device="cpu").describe()["weights_sha256"]
    assert half != digest
    again = CLIPNModel.from_pretrained(tmp_path, dtype=torch.float16)
    again.name_or_path = ""
    assert DualEncoder(again, encoder.processor).describe() == {
        **described,
        "id": None,
        "weights_sha256": half,
        "config_sha256": config_digest,
        "image_processor_sha256": processor_digest,
        "logit_scale": again.logit_scale.exp().item(),
    }


def test_says_how_images_are_prepared(clip_folder: Path) -> None:
    encoder, same, other = (DualEncoder.from_pretrained(clip_folder, device="cpu") for _ in range(3))
    other.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    digests = [each.describe()["image_processor_sha256"] for each in (encoder, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_remembers_embeddings_of_labels(clipn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, other = (DualEncoder.from_pretrained(clipn_folder, device="cpu") for _ in range(2))
    labels, templates = ["cat", "dog"], ["a {}"]
    computed = encoder.class_embeddings(labels, templates)
    other.remember_class_embeddings(labels, *computed, templates)
    monkeypatch.setattr(DualEncoder, "_embed_texts", None)
    found = other.class_embeddings(labels, templates)
    assert all(torch.equal(one, two) for one, two in zip(found, computed, strict=True))
    with pytest.raises(TypeError):
        other.class_embeddings(labels[::-1], templates)
    with pytest.raises(ValueError, match="There must be one text embedding for each label, 1 in all, got 2"):
        other.remember_class_embeddings(["cat"], computed[0])
    # Weights that change give other embeddings.
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    with pytest.raises(TypeError):
        other.class_embeddings(labels, templates)


def test_the_embedded_checkpoint_is_called_by_its_name() -> None:
    if not Path(EMBEDDED_CHECKPOINT).is_dir():
        pytest.skip("the embedded checkpoint is not there")
    encoder = DualEncoder.from_pretrained(device="cpu")
    assert encoder.source == EMBEDDED_CHECKPOINT
    assert encoder.describe()["id"] == "clipn-tiny"


def test_loaded_weights_give_the_same_bits(clipn_folder: Path, tmp_path: Path) -> None:
    """Wherever a file has them: matrix products round differently at odd addresses."""
    loaded = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    weights = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert all(weight.data_ptr() % ALIGNMENT == 0 for weight in weights if weight.numel())
    copied = DualEncoder(CLIPNModel.from_pretrained(clipn_folder).to(torch.float64).float(), loaded.processor)
    for count in (1, 2, 5, 9):
        pixel_values = loaded.prepare_images([noise(seed) for seed in range(count)])
        assert torch.equal(loaded.image_embeddings(pixel_values), copied.image_embeddings(pixel_values))
    for one, other in zip(loaded.class_embeddings(LABELS), copied.class_embeddings(LABELS), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_autocast_of_others_changes_nothing(clipn_folder: Path) -> None:
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    pixel_values = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = encoder.image_embeddings(pixel_values), encoder.text_embeddings(["a cat", "a dog"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder.image_embeddings(pixel_values), encoder.text_embeddings(["a cat", "a dog"])
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
