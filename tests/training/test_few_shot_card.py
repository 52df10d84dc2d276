# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The card of learned prompts as a whole, and its parts that may be missing."""

import contextlib
import importlib.metadata
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.modeling.context_tokens import add_context_tokens, prompt_tuning_config
from clipn_hf.modeling.learned_prompts import attach_learned_prompts, save_learned_prompts
from clipn_hf.training import CLIPOSArguments, model_card
from clipn_hf.training.classification_results import summarize_metrics
from clipn_hf.training.few_shot_card import TITLES, write_few_shot_card

EXPECTED = Path(__file__).parents[1] / "data" / "few_shot_card.md"
LOG = [
    {"loss": 1.25, "epoch": 0.5, "step": 10},
    {
        "eval_loss": 0.8125,
        "eval_accuracy": 0.96875,
        "eval_noise_auroc_gl_mcm": 0.8125,
        "eval_noise_fpr95_gl_mcm": 0.4375,
        "epoch": 1.0,
        "step": 20,
    },
    {"train_runtime": 90.0, "train_loss": 1.0, "epoch": 1.0, "step": 20},
]


def measured(auroc: float) -> dict[str, Any]:
    scores = {name: {"auroc": auroc, "fpr95": 1 - auroc} for name in ("mcm", "gl_mcm")}
    return summarize_metrics([{"accuracy": 0.75, "ood": {"textures": scores, "noise": scores}}])


def adapt(clip: CLIPModel, processor: CLIPProcessor, trained_with: dict[str, Any], **arguments: Any) -> PeftModel:
    prompts = add_context_tokens(clip, processor, ["cat", "dog"], num_tokens=2, **arguments)
    model = get_peft_model(clip, prompt_tuning_config(prompts, processor.tokenizer))
    attach_learned_prompts(model, replace(prompts, trained_with=trained_with))
    return model


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, colour in zip(paths, ["red", "blue"], strict=True):
        Image.new("RGB", (40, 40), colour).save(path)
    return [str(path) for path in paths]


def test_whole_card(
    tiny_clip: CLIPModel,
    tiny_processor: CLIPProcessor,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2.3")
    monkeypatch.setattr(model_card.platform, "python_version", lambda: "3.11.0")
    monkeypatch.setattr(model_card.torch.cuda, "is_available", lambda: False)
    model = adapt(tiny_clip, tiny_processor, {"method": "clip_os", "shots": 2, "sample_seed": 3}, unknown=True)
    folder = tmp_path / "pets"
    path = write_few_shot_card(
        folder,
        model=model,
        args=CLIPOSArguments(output_dir=str(folder), report_to="none", use_cpu=True, num_context_tokens=2, beta=0.25),
        log_history=LOG,
        model_id="org/pets",
        base_model="openai/clip-vit-base-patch16",
        dataset="org/known",
        num_images=4,
        id_dataset="org/known",
        ood_datasets=["org/textures", "/somewhere/private/noise"],
        results={"zero-shot": measured(0.5), "CLIP-OS, 2 images per class": measured(0.75)},
        detector=OODDetector(DualEncoder(model, tiny_processor), ["cat", "dog"], "clip_os"),
        sample_images=pictures,
        license="mit",
    )
    card = path.read_text(encoding="utf-8")
    # What random weights say may differ from machine to machine.
    verdicts = re.compile(r"^((?:red|blue).png: ).*$", re.MULTILINE)
    assert verdicts.sub(r"\1…", card) == EXPECTED.read_text(encoding="utf-8")
    assert "private" not in card
    assert sorted(item.name for item in folder.iterdir()) == ["README.md", "samples"]


def test_snippet_prints_what_the_card_says(
    tiny_processor: CLIPProcessor,
    pictures: list[str],
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = CLIPModel.from_pretrained(clip_folder)
    model = adapt(clip, tiny_processor, {"method": "clip_os"}, unknown=True)
    folder = tmp_path / "pets"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    save_learned_prompts(model.get_base_model().learned_prompts, folder)
    (folder / "README.md").unlink()
    detector = OODDetector(DualEncoder.from_pretrained(folder, device="cpu"), ["cat", "dog"], "clip_os")
    detector.save_pretrained(folder, include_weights=False)
    card = write_few_shot_card(folder, model=model, detector=detector, sample_images=pictures).read_text("utf-8")
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    output = re.search(r"prints\n\n```\n(.*?)\n```", card, re.DOTALL)[1]
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet, {})
    assert printed.getvalue().strip() == output
    assert re.fullmatch(r"red.png: (unknown|cat|dog), OOD score \d\.\d{3}", output.splitlines()[0])


def test_metadata(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    model = adapt(tiny_clip, tiny_processor, {"method": "locoop", "shots": 1})
    write_few_shot_card(
        tmp_path,
        model=model,
        model_id="org/pets",
        base_model="org/base",
        dataset="org/known",
        results={"zero-shot": measured(0.5), "LoCoOp": measured(0.75)},
        tags=["birds"],
    )
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.base_model, data.datasets) == ("peft", "org/base", ["org/known"])
    assert {"clipn_hf", "prompt-learning", "locoop", "birds"} <= set(data.tags)
    assert "generated_from_trainer" not in data.tags
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["AUROC of GL-MCM against noise, ID positive"] == values["Accuracy"] == 0.75
    assert len(values) == 9


def test_missing_parts_are_comments(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    model = adapt(tiny_clip, tiny_processor, {"method": "coop"})
    card = write_few_shot_card(tmp_path, model=model, base_model="runs/clip-tiny/").read_text(encoding="utf-8")
    comments = re.findall(r"<!-- (?!Threshold, |End of the threshold).* -->", card)
    assert len(comments) == 5, card
    assert "None" not in card
    assert "model-index" not in card
    assert 'candidate_labels=["cat", "dog"]' in card
    assert "from a few images of each of 2 classes" in card
    assert str(tmp_path) not in card


def test_results_of_the_log(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    model = adapt(tiny_clip, tiny_processor, {"method": "locoop"})
    card = write_few_shot_card(tmp_path, model=model, log_history=LOG, dataset="photos").read_text(encoding="utf-8")
    assert "| LoCoOp | GL-MCM | 96.9 | 81.2 | 43.8 |" in card
    assert "| step | epoch | loss | held-out loss | accuracy | noise AUROC of GL-MCM |" in card
    assert "Trained on `photos`. Training took 1.5 minutes." in card


@pytest.mark.parametrize(("seconds", "words"), [(2.31, "2.3 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours")])
def test_duration(seconds: float, words: str) -> None:
    assert model_card.describe_runtime([{"train_runtime": seconds}, {"loss": 1}]) == f" Training took {words}."


@pytest.mark.parametrize(
    ("method", "changes", "note"),
    [
        ("mcm", {}, "Until then each image is given its nearest class."),
        ("clip_os", {}, "Until then each image is given its nearest class."),
        ("mcm", {"threshold": 0.25}, "An image is unknown when its score exceeds 0.25. It was set by hand"),
    ],
)
def test_how_verdicts_come_about(
    method: str,
    changes: dict[str, Any],
    note: str,
    tiny_clip: CLIPModel,
    tiny_processor: CLIPProcessor,
    tmp_path: Path,
) -> None:
    model = adapt(tiny_clip, tiny_processor, {"method": "clip_os"}, unknown=True)
    detector = OODDetector(DualEncoder(model, tiny_processor), ["cat", "dog"], method, **changes)
    card = write_few_shot_card(tmp_path, model=model, detector=detector).read_text(encoding="utf-8")
    assert note in card
    assert "results = detect(images)\n" in card


@pytest.mark.parametrize("method", list(TITLES))
def test_each_method_has_title_and_source(
    method: str, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    model = adapt(tiny_clip, tiny_processor, {"method": method})
    card = write_few_shot_card(tmp_path, model=model).read_text(encoding="utf-8")
    title, paper = TITLES[method]
    assert f"[{title}](https://arxiv.org/abs/{paper})" in card
    assert len(re.findall(r"^@\w+\{", card, re.MULTILINE)) >= 2


@pytest.mark.parametrize("method", list(TITLES))
def test_snippet_of_a_plain_adapter(
    method: str,
    tiny_processor: CLIPProcessor,
    pictures: list[str],
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = CLIPModel.from_pretrained(clip_folder)
    model = adapt(clip, tiny_processor, {"method": method}, unknown=method == "clip_os")
    folder = tmp_path / "pets"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    save_learned_prompts(model.get_base_model().learned_prompts, folder)
    (folder / "README.md").unlink()
    card = write_few_shot_card(folder, model=model, sample_images=pictures).read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    judged_by = {"coop": "mcm", "locoop": "gl_mcm", "clip_os": "clip_os"}[method]
    assert f'results = detect(images, candidate_labels=["cat", "dog"], method="{judged_by}")\n' in snippet
    assert "Until then each image is given its nearest class." in card
    monkeypatch.chdir(folder)
    exec(snippet, {})
    assert re.fullmatch(r"red.png: (cat|dog), OOD score \d\.\d{3}", capsys.readouterr().out.splitlines()[0])


def test_calibration_tells_the_card(
    tiny_processor: CLIPProcessor,
    pictures: list[str],
    clip_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip = CLIPModel.from_pretrained(clip_folder)
    model = adapt(clip, tiny_processor, {"method": "clip_os"}, unknown=True)
    folder = tmp_path / "pets"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    save_learned_prompts(model.get_base_model().learned_prompts, folder)
    (folder / "README.md").unlink()
    detector = OODDetector(DualEncoder.from_pretrained(folder, device="cpu"), ["cat", "dog"])
    detector.save_pretrained(folder, include_weights=False)
    path = write_few_shot_card(folder, model=model, detector=detector, sample_images=pictures)
    # What somebody adds to the card stays, in whatever encoding.
    path.write_bytes(path.read_bytes().replace(b"## Limits", b"Ours, from a caf\xe9.\r\n\n## Limits"))
    marked = re.compile(rb"<!-- Threshold, .*<!-- End of the threshold. -->", re.DOTALL)
    before = marked.sub(b"", path.read_bytes())
    assert b"Until then" not in before
    held_out = torch.randn(60, detector.dim, generator=torch.Generator().manual_seed(0))
    for share in (0.1, 0.3):
        calibration = detector.calibrate(held_out, share)
        detector.save_pretrained(folder, include_weights=False)
        card = path.read_bytes()
        assert marked.sub(b"", card) == before
        text = card.decode("utf-8", errors="replace")
        assert text.count(f"An image is unknown when its score exceeds {calibration.threshold:.6g}.") == 1
        assert text.count("An image is unknown when") == text.count(calibration.promise) == 1
        assert f"SHA-256 of these images: `{calibration.data_sha256}`" in text
        assert "Until then" not in text
        assert "The output above may be from before this threshold." in text
    # The card of a detector that has its threshold already says the same.
    path.unlink()
    again = write_few_shot_card(folder, model=model, detector=detector).read_text(encoding="utf-8")
    assert calibration.promise in again
    assert "Until then" not in again
    detector.threshold = None
    detector.save_pretrained(folder, include_weights=False)
    assert "None: the detector gives scores and no verdicts." in path.read_text(encoding="utf-8")
    assert "stays as it is" not in caplog.text


def test_base_model_is_that_of_the_prompts(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    tiny_clip.name_or_path = "openai/clip-vit-base-patch16"
    model = adapt(tiny_clip, tiny_processor, {"method": "coop"})
    path = write_few_shot_card(tmp_path, model=model)
    linked = "[openai/clip-vit-base-patch16](https://huggingface.co/openai/clip-vit-base-patch16)"
    assert f"with them {linked} tells these classes apart" in path.read_text(encoding="utf-8")
    assert ModelCard.load(path).data.base_model == "openai/clip-vit-base-patch16"
    write_few_shot_card(tmp_path, model=model, base_model="org/base")
    assert ModelCard.load(path).data.base_model == "org/base"


def test_as_many_tokens_as_the_words_have(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    model = adapt(
        tiny_clip, tiny_processor, {"method": "clip_os"}, init_text="a photo of a", unknown=True, class_specific=True
    )
    count = len(tiny_processor.tokenizer("a photo of a", add_special_tokens=False)["input_ids"])
    args = CLIPOSArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, context_init="a photo of a")
    card = write_few_shot_card(tmp_path, model=model, args=args).read_text(encoding="utf-8")
    assert f"- `num_context_tokens`: {count}" in card
    assert "`num_context_tokens`: 16" not in card


def test_class_specific_context(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    model = adapt(tiny_clip, tiny_processor, {"method": "coop"}, class_specific=True)
    card = write_few_shot_card(tmp_path, model=model).read_text(encoding="utf-8")
    assert "| context | of each class its own |" in card
    assert "`<ctx_0_0> <ctx_0_1> cat.`, `<ctx_1_0> <ctx_1_1> dog.`" in card


def test_other_models_are_refused(tiny_clip: CLIPModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`model` has no learned prompts to be described"):
        write_few_shot_card(tmp_path, model=tiny_clip)
