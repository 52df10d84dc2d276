# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The model card as a whole, its parts that may be missing, and what an upload would contain."""

import contextlib
import importlib.metadata
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import CLIPProcessor

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.training import model_card
from clipn_hf.training.clipn_config import CLIPNTrainingArguments
from clipn_hf.training.model_card import write_model_card

EXPECTED = Path(__file__).parents[1] / "data" / "model_card.md"
LOG = [
    {"loss": 1.25, "itbo_yes_loss": 0.5, "itbo_no_loss": 0.25, "tso_loss": 1.75, "epoch": 0.5, "step": 10},
    {"loss": 0.75, "itbo_yes_loss": 0.25, "itbo_no_loss": 0.125, "tso_loss": 1.125, "epoch": 1.0, "step": 20},
    {
        "eval_loss": 0.8125,
        "eval_itbo_yes_loss": 0.25,
        "eval_itbo_no_loss": 0.125,
        "eval_tso_loss": 1.25,
        "eval_id_accuracy": 0.96875,
        "eval_ood_auroc_mcm": 0.8125,
        "eval_ood_fpr95_mcm": 0.4375,
        "eval_ood_auroc_ctw": 0.90625,
        "eval_ood_fpr95_ctw": 0.3125,
        "eval_ood_auroc_atd": 0.9375,
        "eval_ood_fpr95_atd": 0.25,
        "eval_runtime": 1.0,
        "epoch": 1.0,
        "step": 20,
    },
    {"train_runtime": 90.0, "train_loss": 1.0, "epoch": 1.0, "step": 20},
]


@pytest.fixture
def processor(tiny_processor: CLIPProcessor) -> CLIPNProcessor:
    return CLIPNProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, colour in zip(paths, ["red", "blue"], strict=True):
        Image.new("RGB", (40, 40), colour).save(path)
    return [str(path) for path in paths]


def arguments(folder: Path, **changes: Any) -> CLIPNTrainingArguments:
    return CLIPNTrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **changes)


def test_whole_card(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2.3")
    monkeypatch.setattr(model_card.platform, "python_version", lambda: "3.11.0")
    monkeypatch.setattr(model_card.torch.cuda, "is_available", lambda: False)
    tiny_clipn.train()
    path = write_model_card(
        tmp_path / "clipn-test",
        model=tiny_clipn,
        processor=processor,
        args=arguments(tmp_path / "clipn-test", learning_rate=1e-4, num_cached_views=2, tuning="full"),
        log_history=LOG,
        model_id="org/clipn-test",
        base_model="laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        dataset="pixparse/cc3m-wds",
        num_pairs=2905954,
        id_dataset="org/known",
        ood_dataset="/somewhere/private/unknown",
        sample_images=pictures,
        sample_labels=["cat", "dog"],
        license="mit",
    )

    card = path.read_text(encoding="utf-8")
    # what random weights say may differ from machine to machine
    verdicts = re.compile(r"^((?:red|blue).png: ).*$", re.MULTILINE)
    assert verdicts.sub(r"\1…", card) == EXPECTED.read_text(encoding="utf-8")
    assert "private" not in card
    assert "More information needed" not in card
    assert tiny_clipn.training
    assert sorted(item.name for item in path.parent.iterdir()) == [".eval_results", "README.md", "samples"]
    assert sorted(item.name for item in (path.parent / "samples").iterdir()) == ["blue.png", "red.png"]


def test_snippet_prints_what_the_card_says(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "clipn-test"
    tiny_clipn.save_pretrained(folder)
    processor.save_pretrained(folder)
    card = write_model_card(
        folder,
        model=tiny_clipn,
        processor=processor,
        sample_images=pictures,
        sample_labels=["cat", "dog"],
    ).read_text(encoding="utf-8")
    assert "huggingface.co/clipn-test" not in card

    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    output = re.search(r"prints\n\n```\n(.*?)\n```", card, re.DOTALL)[1]
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet, {})
    assert printed.getvalue().strip() == output
    assert re.fullmatch(r"red.png: (unknown|cat|dog), OOD score \d\.\d{3}", output.splitlines()[0])


def test_metadata_and_results(tiny_clipn: CLIPNModel, processor: CLIPNProcessor, tmp_path: Path) -> None:
    write_model_card(
        tmp_path,
        model=tiny_clipn,
        processor=processor,
        args=arguments(tmp_path),
        log_history=LOG,
        model_id="org/clipn-test",
        base_model="org/base",
        dataset="org/pairs",
        id_dataset="org/known",
        ood_dataset="org/unknown",
        tags=["birds"],
    )
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.base_model == "org/base"
    assert data.datasets == ["org/pairs"]
    assert {"clipn_hf", "ood-detection", "generated_from_trainer", "birds"} <= set(data.tags)
    assert data.license is None
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["AUROC of ATD, ID positive"] == 0.9375
    assert values["FPR95 of MCM, ID positive"] == 0.4375
    assert len(values) == 6

    files = sorted((tmp_path / ".eval_results").iterdir())
    assert [file.name for file in files] == [f"ood_detection_{name}.yaml" for name in ("atd", "ctw", "mcm")]
    assert yaml.safe_load(files[0].read_text()) == [
        {
            "dataset": {"id": "org/known", "task_id": f"ood_detection_{metric}"},
            "value": value,
            "notes": "ATD, known against org/unknown, ID positive",
        }
        for metric, value in (("auroc", 0.9375), ("fpr95", 0.25))
    ]


def test_missing_parts_are_comments(tiny_clipn: CLIPNModel, processor: CLIPNProcessor, tmp_path: Path) -> None:
    card = write_model_card(tmp_path, model=tiny_clipn, processor=processor).read_text(encoding="utf-8")
    comments = re.findall(r"<!-- .* -->", card)
    assert len(comments) == 6, card
    assert "None" not in card
    assert "prints" not in card
    assert "model-index" not in card
    assert not (tmp_path / ".eval_results").exists()
    # a data set of one's own is no benchmark of the Hub
    write_model_card(
        tmp_path,
        model=tiny_clipn,
        processor=processor,
        args=arguments(tmp_path),
        log_history=LOG,
        id_dataset=str(tmp_path),
        dataset="pairs.parquet",
        base_model="runs/clip-tiny/",
    )
    assert not (tmp_path / ".eval_results").exists()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "trained on `pairs.parquet`" in card.lower()
    assert str(tmp_path) not in card


def test_own_results_take_the_place_of_the_log(
    tiny_clipn: CLIPNModel, processor: CLIPNProcessor, tmp_path: Path
) -> None:
    card = write_model_card(
        tmp_path, model=tiny_clipn, processor=processor, log_history=LOG, results="### By style\n\n| a | b |"
    ).read_text(encoding="utf-8")
    assert "### By style\n\n| a | b |\n" in card
    assert "AUROC of ATD, ID positive" not in card


def test_long_logs_are_thinned(tiny_clipn: CLIPNModel, processor: CLIPNProcessor, tmp_path: Path) -> None:
    log = [{"loss": 1 / step, "epoch": step / 100, "step": step} for step in range(1, 501)]
    card = write_model_card(tmp_path, model=tiny_clipn, processor=processor, log_history=log).read_text("utf-8")
    steps = [int(step) for step in re.findall(r"^\| (\d+) \|", card, re.MULTILINE)]
    assert len(steps) == 20
    assert steps[0] == 1
    assert steps[-1] == 500


@pytest.mark.parametrize("tuning", ["lora", "trainable_tokens"])
def test_adapters_are_used_like_models(
    tuning: str, tiny_clipn: CLIPNModel, processor: CLIPNProcessor, tmp_path: Path
) -> None:
    card = write_model_card(
        tmp_path,
        model=tiny_clipn,
        processor=processor,
        args=arguments(tmp_path, tuning=tuning),
        model_id="org/adapter",
        base_model="org/base",
    ).read_text(encoding="utf-8")
    data = ModelCard(card).data
    assert (data.library_name, data.base_model) == ("peft", "org/base")
    assert 'detect = pipeline("ood-detection", model="org/adapter")' in card
    assert ("`lora_rank`" in card) == (tuning == "lora")
    assert ("`num_trainable_tokens`" in card) == (tuning == "trainable_tokens")


def test_several_held_out_sets(tiny_clipn: CLIPNModel, processor: CLIPNProcessor, tmp_path: Path) -> None:
    losses = {"loss": 1.5, "itbo_yes_loss": 0.5, "itbo_no_loss": 0.25, "tso_loss": 2.25}
    log = [
        {"eval_near_loss": 9.0, "eval_near_itbo_yes_loss": 9.0, "epoch": 1.0, "step": 10},
        {**{f"eval_near_{name}": value for name, value in losses.items()}, "epoch": 2.0, "step": 20},
        {**{f"eval_far_{name}": 2 * value for name, value in losses.items()}, "epoch": 2.0, "step": 20},
        {"eval_ood_auroc_atd": 0.9375, "eval_ood_fpr95_atd": 0.25, "epoch": 2.0, "step": 20},
    ]
    card = write_model_card(tmp_path, model=tiny_clipn, processor=processor, log_history=log).read_text("utf-8")
    assert "| near | 1.5000 | 0.5000 | 0.2500 | 2.2500 |\n| far | 3.0000 | 1.0000 | 0.5000 | 4.5000 |" in card
    assert "| ATD | 93.8 | 25.0 |" in card
    assert "| step | epoch | AUROC of ATD |" in card


def test_upload_is_complete_and_free_of_code(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from clipn_hf.training.clipn_trainer import CLIPNTrainer

    uploads: list[tuple[str, set[str]]] = []

    def create_repo(self: HfApi, repo_id: str, **kwargs: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})()

    def create_commit(self: HfApi, repo_id: str, operations: Any, **kwargs: Any) -> Any:
        uploads.append((repo_id, {operation.path_in_repo for operation in operations}))
        return type("Commit", (), {"oid": "0", "pr_url": None, "commit_url": ""})()

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda self, content, **kwargs: yaml.safe_load_all(content))
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    folder = tmp_path / "clipn-test"
    args = arguments(folder, hub_model_id="org/clipn-test", push_to_hub=True, hub_token="hf_none")
    trainer = CLIPNTrainer(tiny_clipn, args, data_collator=list, processing_class=processor)
    trainer.state.log_history = list(LOG)
    (folder / "checkpoint-5").mkdir(parents=True)
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"state")
    (folder / "_image_cache").mkdir()
    (folder / "_image_cache" / "views.npy").write_bytes(b"embeddings")

    trainer.push_to_hub(
        finetuned_from="org/base",
        dataset="org/pairs",
        id_dataset="org/known",
        ood_dataset="org/unknown",
        sample_images=pictures,
        sample_labels=["cat", "dog"],
        license="mit",
    )

    assert uploads == [
        (
            "org/clipn-test",
            {
                "README.md",
                ".eval_results/ood_detection_atd.yaml",
                ".eval_results/ood_detection_ctw.yaml",
                ".eval_results/ood_detection_mcm.yaml",
                "config.json",
                "model.safetensors",
                "processor_config.json",
                "samples/blue.png",
                "samples/red.png",
                "tokenizer.json",
                "tokenizer_config.json",
                "training_args.bin",
            },
        )
    ]
    config = (folder / "config.json").read_text()
    assert "auto_map" not in config
    assert "custom_pipelines" not in config
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'pipeline("ood-detection", model="org/clipn-test")' in card
    assert os.path.basename(pictures[0]) in card


def test_samples_that_cannot_be_read_are_left_out(
    tiny_clipn: CLIPNModel,
    processor: CLIPNProcessor,
    pictures: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("clipn_hf"), "propagate", True)
    (tmp_path / "broken.png").write_bytes(b"damaged")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 40), "green").save(tmp_path / "other" / "red.png")
    samples = [pictures[0], str(tmp_path / "broken.png"), str(tmp_path / "gone.png"), str(tmp_path / "other/red.png")]
    folder = tmp_path / "card"
    card = write_model_card(
        folder, model=tiny_clipn, processor=processor, sample_images=samples, sample_labels=["cat", 'a "dog"']
    ).read_text(encoding="utf-8")
    for name in ("broken.png", "gone.png"):
        assert name not in card
        assert f"leaves out the sample image {tmp_path / name}: " in caplog.text
    assert re.search(r"prints\n\n```\nred.png: .*\nred-2.png: .*\n```", card)
    assert """candidate_labels=["cat", "a \\"dog\\""]""" in card
    # Samples of one name stay two pictures.
    colours = {name: Image.open(folder / "samples" / name).getpixel((0, 0)) for name in ("red.png", "red-2.png")}
    assert colours == {"red.png": (255, 0, 0), "red-2.png": (0, 128, 0)}
