# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`training/train.py`: recipe and command line, and whole runs on ten images."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from transformers import CLIPModel

from clipn_hf import CLIPNModel, CLIPNProcessor, pipeline
from clipn_hf.training.runs import find_last_checkpoint

TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_script", TRAINING / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_script"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of ten images with captions, one of them damaged."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = []
    for index in range(10):
        Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        captions = [f"a photo of a cat {index}", f"a red apple {index}"]
        lines.append({"file_name": f"{index}.png", "text": captions, "kind": "ab"[index % 2], "thing": index // 2})
    (folder / "4.png").write_bytes(b"damaged")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def known(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    for label in ("cat", "dog"):
        (tmp_path / "known" / label).mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "known" / label / f"{index}.png")
    return tmp_path / "known"


def write_recipe(folder: Path, **keys: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return str(path)


def small_recipe(tmp_path: Path, clip_folder: Path, pairs: Path, **keys: object) -> str:
    return write_recipe(
        tmp_path,
        **{
            "output_dir": str(tmp_path / "run"),
            "model_name_or_path": str(clip_folder),
            "dataset": str(pairs),
            "caption_columns": ["text"],
            "group_column": "thing",
            "learning_rate": "1e-3",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 4,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            **keys,
        },
    )


def test_run_from_a_recipe(tmp_path: Path, clip_folder: Path, pairs: Path, known: Path) -> None:
    recipe = small_recipe(
        tmp_path,
        clip_folder,
        pairs,
        max_steps=50,
        eval_dataset=str(pairs),
        eval_split="train",
        eval_filter=["kind=a"],
        id_dataset=str(known),
        id_split="train",
        ood_dataset=str(pairs),
        ood_split="train",
        ood_filter="kind=b",
        sample_images=[str(known / "cat" / "0.png")],
        sample_labels=["cat", "dog"],
        license="apache-2.0",
    )
    command = [sys.executable, str(TRAINING / "train.py"), "--config", recipe, "--max_steps", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr

    folder = tmp_path / "run"
    model, report = CLIPNModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = CLIPNProcessor.from_pretrained(folder)
    assert processor.templates == model.config.templates
    before = CLIPNModel.from_clip(str(clip_folder)).state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("no_text_") for name in moved)

    train_results = json.loads((folder / "train_results.json").read_text())
    assert train_results["skipped_pairs"] == 1
    assert "row 4: The image" in run.stderr
    eval_results = json.loads((folder / "eval_results.json").read_text())
    assert 0 <= eval_results["eval_ood_auroc_atd"] <= 1
    assert 0 <= eval_results["eval_id_accuracy"] <= 1
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert state["log_history"][0]["learning_rate"] == pytest.approx(1e-3)
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "`learning_rate`: 0.001" in card
    assert "0.png: " in card
    assert str(tmp_path) not in card


def run_in_process(train: ModuleType, arguments: list[str]) -> None:
    train.main(*train.parse_arguments(arguments))


def test_resumed_run_ends_with_the_same_weights(
    train: ModuleType, tmp_path: Path, clip_folder: Path, pairs: Path
) -> None:
    recipe = small_recipe(tmp_path, clip_folder, pairs, save_strategy="steps", save_steps=3, max_steps=5)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_in_process(train, ["--config", recipe, "--output_dir", str(whole)])
    # what an interruption after the third step leaves
    (whole / "checkpoint-3").rename(tmp_path / "kept")
    broken.mkdir()
    (tmp_path / "kept").rename(broken / "checkpoint-3")
    run_in_process(train, ["--config", recipe, "--output_dir", str(broken), "--resume_from_checkpoint", "true"])

    expected = CLIPNModel.from_pretrained(whole).state_dict()
    for name, value in CLIPNModel.from_pretrained(broken).state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("True", True), ("false", None), ("runs/a/checkpoint-3", "runs/a/checkpoint-3")],
)
def test_resume_from_checkpoint(
    value: str, expected: str | bool | None, train: ModuleType, tmp_path: Path, pairs: Path
) -> None:
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    needed = {"model_name_or_path": "base", "dataset": "x", "output_dir": str(tmp_path / "run"), "use_cpu": True}
    recipe = write_recipe(tmp_path, **needed)
    *_, training_args = train.parse_arguments(["--config", recipe, "--resume_from_checkpoint", value])
    assert find_last_checkpoint(training_args) == expected
    recipe = write_recipe(tmp_path, **needed, resume_from_checkpoint=yaml.safe_load(value))
    *_, training_args = train.parse_arguments(["--config", recipe])
    assert find_last_checkpoint(training_args) == expected
    *_, training_args = train.parse_arguments(["--config", write_recipe(tmp_path, **needed)])
    assert find_last_checkpoint(training_args) is None


@pytest.mark.parametrize(
    "keys",
    [{"tuning": "lora"}, {"tuning": "trainable_tokens", "no_prompt_type": "handcrafted"}],
    ids=["lora", "tokens"],
)
def test_adapter_loads_by_its_folder(
    train: ModuleType, keys: dict[str, object], tmp_path: Path, clip_folder: Path, pairs: Path
) -> None:
    recipe = small_recipe(tmp_path, clip_folder, pairs, save_strategy="steps", save_steps=2, **keys)
    run_in_process(train, ["--config", recipe])
    image = str(pairs / "0.png")
    results = [
        pipeline("ood-detection", model=str(folder))(image, candidate_labels=["cat", "dog"], method="atd")["ood_score"]
        for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-2")
    ]
    assert results[0] == results[1] != results[2]


def test_detection_is_evaluated_without_pairs(
    train: ModuleType, tmp_path: Path, clip_folder: Path, pairs: Path, known: Path
) -> None:
    recipe = small_recipe(
        tmp_path,
        clip_folder,
        pairs,
        id_dataset=str(known),
        id_split="train",
        ood_dataset=str(pairs),
        ood_split="train",
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        num_cached_views=2,
        color_jitter=0.4,
        grayscale_probability=0.2,
    )
    run_in_process(train, ["--config", recipe])
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert "eval_ood_auroc_atd" in results
    assert "eval_loss" not in results
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_ood_auroc_atd" in entry] == [2, 4]
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| ATD | {100 * results['eval_ood_auroc_atd']:.1f} |" in card


@pytest.mark.parametrize(
    "keys",
    [
        {"streaming": True, "shuffle_buffer": 2, "group_column": None},
        {"num_cached_views": 2, "crop_scale": [0.5, 1.0], "flip_probability": 0.5},
        {"no_prompt_type": "handcrafted", "dataloader_num_workers": 1, "augment": False},
    ],
    ids=["streaming", "cached views", "hand-crafted prompts"],
)
def test_variants(train: ModuleType, keys: dict[str, object], tmp_path: Path, clip_folder: Path, pairs: Path) -> None:
    run_in_process(train, ["--config", small_recipe(tmp_path, clip_folder, pairs, save_strategy="no", **keys)])
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert results["skipped_pairs"] == 1
    assert np.isfinite(results["train_loss"])
    config = CLIPNModel.from_pretrained(tmp_path / "run").config
    assert config.no_prompt_type == keys.get("no_prompt_type", "learnable")


def test_command_line_comes_before_the_recipe(train: ModuleType, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        model_name_or_path="base",
        dataset="pairs.parquet",
        output_dir=str(tmp_path),
        learning_rate="1e-5",
        weight_decay=0.1,
        filter=["style=a,b", "kind=c"],
        streaming=True,
        max_steps=7,
        crop_scale=[0.25, 0.5],
        group_column=None,
        accelerator_config={"split_batches": True},
        use_cpu=True,
    )
    model_args, data_args, _, training_args = train.parse_arguments(
        ["--weight_decay", "0", "--config", recipe, "--filter", "style=x", "--streaming", "false"]
    )
    assert model_args.model_name_or_path == "base"
    assert training_args.learning_rate == 1e-5
    assert training_args.weight_decay == 0
    assert training_args.max_steps == 7
    assert training_args.accelerator_config.split_batches
    assert data_args.dataset == ["pairs.parquet"]
    assert data_args.filter == ["style=x"]
    assert data_args.streaming is False
    assert data_args.crop_scale == [0.25, 0.5]
    assert data_args.group_column is None


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("learningrate: 1e-4", [], "`learningrate` (did you mean `learning_rate`?)"),
        ("no_bf16: true", [], "`no_bf16`"),
        ("learning_rate: fast", [], "`learning_rate` must be a number, got 'fast'."),
        ("tuning: all", [], "`tuning` must be one of full, lora, trainable_tokens, no_prompts, got 'all'."),
        ("lora_rank: 0", [], "`lora_rank` must be at least 1, got 0."),
        ("- a\n- b", [], "must hold lines of the form `argument: value`, got list."),
        (None, [], "No such file"),
        ("seed: 1", ["--learningrate", "1"], "Unknown arguments: --learningrate 1 (did you mean `--learning_rate`?)"),
        ("seed: 1", ["--learning", "1"], "Unknown arguments: --learning 1"),
    ],
)
def test_wrong_recipes_end_with_a_message(
    recipe: str | None,
    arguments: list[str],
    message: str,
    train: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "recipe.yaml"
    if recipe is not None:
        path.write_text(recipe)
    needed = ["--model_name_or_path", "base", "--dataset", "x", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    with pytest.raises(SystemExit) as error:
        train.parse_arguments([*needed, "--config", str(path), *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_help(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        train.parse_arguments(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for argument in ("--config", "--caption_columns", "--tuning", "--learning_rate", "--push_to_hub"):
        assert argument in text


@pytest.mark.parametrize("path", sorted((TRAINING / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_files(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.use_cpu == (path.stem == "cpu")
    assert config.num_machines == (2 if path.stem == "multi_node" else 1)
    assert (config.num_processes > 1) == path.stem.startswith("multi")


def test_readme_names_arguments_that_exist(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_arguments(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    of_launchers = {"--config_file", "--num_processes", "--machine_rank", "--main_process_ip", "--nproc_per_node"}
    text = (TRAINING / "README.md").read_text().partition("# Probes and fine-tuning")[0]
    named = set(re.findall(r"--[a-z]\w+", text))
    assert named - known == of_launchers
    for file in re.findall(r"(?:recipes|accelerate)/[\w-]+\.yaml", text):
        assert (TRAINING / file).exists()


OOD_SETS = ["--id_dataset", "a", "--ood_dataset", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streaming", "true"], "`streaming` needs `max_steps`"),
        (["--streaming", "true", "--max_steps", "5", "--num_cached_views", "1"], "which `streaming` cannot give"),
        (["--num_cached_views", "2", "--augment", "false"], "With `augment false` all of `num_cached_views 2`"),
        (["--id_dataset", "a"], "belong together; give `ood_dataset`"),
        (["--ood_dataset", "a"], "belong together; give `id_dataset`"),
        (["--id_labels", "cat"], "`id_labels` names the classes of `id_dataset`; give"),
        (["--eval_strategy", "epoch"], "`eval_strategy epoch` has nothing to evaluate; give `eval_dataset`"),
        (["--crop_scale", "0.5"], "takes two numbers, the smallest and the largest share, got [0.5]."),
        (["--crop_scale", "0.5", "1.5"], "`crop_scale` must be two numbers with 0 < lower <= upper <= 1.0"),
        (["--flip_probability", "2"], "`flip_probability` must lie in [0, 1], got 2.0."),
        (["--filter", "style"], "`filter`: A filter has the form column=value or column=value,value, got 'style'."),
        (["--ood_filter", "=a"], "`ood_filter`: A filter has the form"),
        (["--tuning", "no_prompts", "--no_prompt_type", "handcrafted"], "use `no_prompt_type learnable` or another"),
        (["--tuning", "trainable_tokens", "--no_prompt_type", "learnable"], "add `no_prompt_type handcrafted`"),
        (["--tuning", "trainable_tokens"], "add `no_prompt_type handcrafted`"),
        (["--tuning", "trainable_tokens", "--model_name_or_path", "./missing"], "missing"),
    ],
)
def test_contradictions(
    arguments: list[str],
    message: str,
    train: ModuleType,
    tmp_path: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = ["--model_name_or_path", str(clip_folder), "--dataset", "x", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as error:
        train.parse_arguments([*needed, "--use_cpu", "true", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num_cached_views", "1", "--augment", "false"],
        ["--eval_strategy", "epoch", *OOD_SETS, "--id_labels", "cat", "dog"],
        ["--eval_strategy", "epoch", "--eval_dataset", "x"],
        ["--tuning", "trainable_tokens", "--no_prompt_type", "handcrafted"],
        ["--tuning", "no_prompts"],
    ],
)
def test_arguments_that_fit_each_other(
    arguments: list[str], train: ModuleType, tmp_path: Path, clip_folder: Path
) -> None:
    needed = ["--model_name_or_path", str(clip_folder), "--dataset", "x", "--output_dir", str(tmp_path)]
    assert len(train.parse_arguments([*needed, "--use_cpu", "true", *arguments])) == 4


def test_tokens_in_the_prompts_of_a_clipn(train: ModuleType, tmp_path: Path, tiny_clip: CLIPModel) -> None:
    CLIPNModel.from_clip(tiny_clip, no_prompt_type="handcrafted").save_pretrained(tmp_path / "clipn")
    needed = ["--model_name_or_path", str(tmp_path / "clipn"), "--dataset", "x", "--output_dir", str(tmp_path)]
    assert train.parse_arguments([*needed, "--use_cpu", "true", "--tuning", "trainable_tokens"])


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"train": "a", "eval": "a", "id": None, "ood": "a"}),
        (
            {"eval_dataset_config": "b", "id_dataset_config": "c", "ood_dataset_config": "d"},
            {"train": "a", "eval": "b", "id": "c", "ood": "d"},
        ),
    ],
)
def test_configurations(
    own: dict[str, str],
    expected: dict[str, str | None],
    train: ModuleType,
    tmp_path: Path,
    clipn_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = train.DataArguments(
        ["x"], dataset_config="a", eval_dataset=["x"], id_dataset=["y"], ood_dataset=["x"], id_labels=["cat"], **own
    )
    calls: list[dict[str, Any]] = []
    for name in ("load_image_text_dataset", "load_labelled_images"):
        monkeypatch.setattr(train, name, lambda source, **arguments: calls.append(arguments))
    training_args = train.CLIPNTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    train.load_data(args, training_args, CLIPNProcessor.from_pretrained(clipn_folder))
    assert dict(zip(expected, [call["config_name"] for call in calls], strict=True)) == expected
    assert calls[2]["label_names"] == ["cat"]


def test_names_of_numbered_classes(
    train: ModuleType, tmp_path: Path, clip_folder: Path, pairs: Path, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(
        tmp_path,
        clip_folder,
        pairs,
        id_dataset=str(pairs),
        id_split="train",
        id_label_column="thing",
        id_labels=["cat", "dog", "bird", "car", "tree"],
        ood_dataset=str(known),
        ood_split="train",
        save_strategy="no",
        max_steps=1,
        logging_steps=10,
    )
    labels: list[list[str]] = []
    measure = train.CLIPNTrainer._ood_metrics
    monkeypatch.setattr(
        train.CLIPNTrainer, "_ood_metrics", lambda self: labels.append(self.id_labels) or measure(self)
    )
    run_in_process(train, ["--config", recipe])
    assert labels == [["cat", "dog", "bird", "car", "tree"]]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "<summary>Training log</summary>" in card


def test_starting_from_a_clipn(train: ModuleType, clipn_folder: Path) -> None:
    model, processor = train.load_model(train.ModelArguments(str(clipn_folder)))
    assert model.dtype == torch.float32
    expected = CLIPNModel.from_pretrained(clipn_folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert processor.tokenizer.model_max_length == 77
    with pytest.raises(ValueError, match="is a CLIPN with `num_no_prompts=16`, but 4 was asked for"):
        train.load_model(train.ModelArguments(str(clipn_folder), num_no_prompts=4))
