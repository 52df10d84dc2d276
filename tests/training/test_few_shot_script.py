# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`training/few_shot.py`: recipes and command line, and whole runs on a few images; and the example beside it."""

import importlib.util
import json
import logging
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file

from clipn_hf import DualEncoder, OODDetector, pipeline
from clipn_hf.evaluation.metrics import auroc
from clipn_hf.methods import METHODS
from clipn_hf.training.classification_results import SCORE_TITLES

TRAINING = Path(__file__).parents[2] / "training"
RECIPES = {"coop": "coop", "locoop": "locoop", "clip-os": "clip_os"}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"{name}_script"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("few_shot")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of cats and dogs, in two splits, one of them damaged; and images of neither."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("id/train", 6), ("id/test", 4), ("noise", 5)):
        for channel, label in enumerate(("cat", "dog")):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 128, (36, 40, 3), dtype=np.uint8)
                if split != "noise":
                    pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
    (folder / "id" / "test" / "cat" / "3.png").write_bytes(b"damaged")
    return folder


def arguments(
    photos: Path, clip_folder: Path | str, output: Path, recipe: str = "clip-os", **changes: Any
) -> list[str]:
    given = {
        "model_name_or_path": clip_folder,
        "dataset": photos / "id",
        "ood_datasets": photos / "noise",
        "ood_split": "train",
        "output_dir": output,
        "shots": 2,
        "num_context_tokens": 2,
        "num_surgery_layers": 1,
        "num_cached_views": 1,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        **changes,
    }
    if recipe != "clip-os":
        given.pop("num_surgery_layers")
    words = ["--config", str(TRAINING / "recipes" / f"{recipe}.yaml")]
    for name, value in given.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def read_context(folder: Path) -> torch.Tensor:
    (context,) = load_file(folder / "adapter_model.safetensors").values()
    return context


def draw_rows(script: ModuleType, photos: Path, seed: int) -> Any:
    given = script.ClassificationDataArguments([str(photos / "id")])
    return script.draw_shots(script.load_classification_data(given).train, ["cat", "dog"], 2, seed)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_run(
    recipe: str,
    script: ModuleType,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, image = tmp_path / "run", photos / "id" / "test" / "dog" / "0.png"
    given = arguments(photos, clip_folder, folder, recipe, sample_images=image, sample_seed=3, eval_strategy="epoch")
    script.main(*script.parse_arguments(given))
    record = json.loads((folder / "metrics.json").read_text())
    assert {name: found["images"] for name, found in record["images"].items()} == {"train": 4, "id": 7, "noise": 10}
    assert record["images"]["id"]["unreadable"] == 1
    assert record["labels"] == ["cat", "dog"]
    own = {"clip_os", "clip_os_gl_mcm", "unknown_probability"} if recipe == "clip-os" else set()
    assert record["zero_shot"]["ood"]["noise"].keys() == {"mcm", "gl_mcm", "max_logit"}
    assert record["trained"]["ood"]["noise"].keys() == {"mcm", "gl_mcm", "max_logit", *own}
    assert len(record["trained"]["ood"]["noise"]["mcm"]["fpr95_interval"]) == 2
    assert record["arguments"]["method"] == RECIPES[recipe]
    assert record["templates"] == DualEncoder.from_pretrained(clip_folder, device="cpu").templates
    assert record["training"]["epoch"] == 4
    # The last evaluation of the trainer and the measurement afterwards are of the same prompts.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval_accuracy"] == record["trained"]["accuracy"]
    assert lines[-1]["eval_noise_auroc_mcm"] == pytest.approx(record["trained"]["ood"]["noise"]["mcm"]["auroc"])
    output = capsys.readouterr().out
    assert re.search(r"^\| (CoOp|LoCoOp|CLIP-OS), 2 images per class \| GL-MCM \|", output, re.MULTILINE)
    assert f"Written to {folder}: the adapter with its prompts" in output

    # The folder is a model, and a detector, which judges as the live one did.
    assert (folder / "adapter_model.safetensors").stat().st_size < 4000
    encoder = DualEncoder.from_pretrained(folder, device="cpu")
    assert encoder.learned_prompts.trained_with["sample_seed"] == 3
    assert encoder.learned_prompts.trained_with["shots"] == 2
    detector = OODDetector.from_pretrained(folder, device="cpu")
    method = {"coop": "mcm", "locoop": "gl_mcm", "clip-os": "clip_os"}[recipe]
    assert (detector.method.name, detector.labels) == (method, ["cat", "dog"])
    if recipe == "clip-os":
        assert detector.settings["combination"] == "mcm"
    # Scores have the names of the methods, whose defaults they are, and are what these measure.
    pictures = [sorted((photos / name).rglob("*.png")) for name in ("id/test", "noise")]
    for name in {method, *own}:
        judged, settings = script.SCORES[name]
        known, unknown = (
            OODDetector(encoder, ["cat", "dog"], judged, **settings).score(
                [path for path in paths if path.stat().st_size > 9]
            )
            for paths in pictures
        )
        assert auroc(known, unknown) == pytest.approx(record["trained"]["ood"]["noise"][name]["auroc"], abs=0.03)
    assert pipeline("ood-detection", model=str(folder), device="cpu")(str(image))["label"] in ("cat", "dog")
    # A threshold is not to be found with what was trained on.
    assert detector.threshold is None
    drawn = [row["image"]["path"] for row in draw_rows(script, photos, seed=3)]
    with pytest.raises(ValueError, match="trained on|fitted on"):
        detector.calibrate(drawn)
    text = (folder / "metrics.json").read_text()
    assert str(tmp_path) not in text and str(photos) not in text and str(Path.cwd()) not in text
    assert record["arguments"]["dataset"] == ["id"]
    card = (folder / "README.md").read_text()
    assert f"`{clip_folder.name}`" in card
    assert "4 images, 2 of each class drawn with seed 3" in card
    assert re.search(r"prints\n\n```\n0.png: ", card)
    assert str(tmp_path) not in card and str(photos) not in card


def test_interrupted_run_goes_on(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    def run(folder: str) -> torch.Tensor:
        given = arguments(photos, clip_folder, tmp_path / folder, resume_from_checkpoint="true", save_total_limit=9)
        script.main(*script.parse_arguments(given))
        return read_context(tmp_path / folder)

    expected = run("whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole" / "checkpoint-4").rename(tmp_path / "broken" / "checkpoint-4")
    assert torch.equal(run("broken"), expected)
    # Once more in the same folder, where all is done already.
    assert torch.equal(run("whole"), expected)
    for checkpoint, message in (("true", "is of another run: the prompts differ"), ("missing", "There is no folder")):
        given = arguments(
            photos, clip_folder, tmp_path / "whole", resume_from_checkpoint=checkpoint, class_position="front"
        )
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            script.main(*script.parse_arguments(given))


def test_worse_prompts_than_those_by_hand(
    script: ModuleType,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("few_shot_script"), "propagate", True)
    accuracies = iter((0.75, 0.5, 0.5, 0.5))
    monkeypatch.setattr(script, "measure", lambda *_: {"accuracy": next(accuracies), "ood": {}})
    for told in (True, False):
        caplog.clear()
        given = arguments(photos, clip_folder, tmp_path / str(told), "coop", num_train_epochs=1)
        script.main(*script.parse_arguments(given))
        warned = "worse than those written by hand: accuracy 50.0% instead of 75.0%" in caplog.text
        assert warned == told


def test_folders_without_images(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "id", tmp_path / "id")
    (tmp_path / "id" / "train" / "fox").mkdir()
    given = arguments(photos, clip_folder, tmp_path / "run", dataset=tmp_path / "id")
    with pytest.raises(SystemExit, match="error: `dataset` has no training image of 1 of 3 classes, such as 'fox'"):
        script.main(*script.parse_arguments(given))
    shutil.rmtree(tmp_path / "id" / "train" / "fox")
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "id" / split / "dog")
    with pytest.raises(SystemExit, match="error: `dataset` has training images of one class only, 'cat'"):
        script.main(*script.parse_arguments(given))


def test_all_images_and_augmentation(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = arguments(photos, clip_folder, folder, "coop", shots=0, num_cached_views=0, num_train_epochs=2)
    script.main(*script.parse_arguments(given))
    assert json.loads((folder / "metrics.json").read_text())["images"]["train"]["images"] == 12
    prompts = DualEncoder.from_pretrained(folder, device="cpu").learned_prompts
    assert "sample_seed" not in prompts.trained_with
    assert "| CoOp, all images |" in (folder / "README.md").read_text()


def test_others_take_the_place_of_damaged_images(
    script: ModuleType, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("few_shot_script"), "propagate", True)
    rows = script.load_classification_data(
        script.ClassificationDataArguments([str(photos / "id")], split="test", id_split="train")
    ).train
    for seed in range(3):
        assert sorted(script.draw_shots(rows, ["cat", "dog"], 3, seed)["label"]) == [0, 0, 0, 1, 1, 1]
    assert "1 of 8 training images cannot be read" in caplog.text
    with pytest.raises(
        ValueError, match=r"`shots=4` asks for more images than .* 'cat' \(3\).*1 of 8 training images"
    ):
        script.draw_shots(rows, ["cat", "dog"], 4, 0)


def test_learning_from_test_images_is_said(
    script: ModuleType,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("few_shot_script"), "propagate", True)
    for split, told in (("test", False), ("train[2:]+train[:2]", True)):
        caplog.clear()
        given = arguments(
            photos,
            clip_folder,
            tmp_path / str(told),
            "coop",
            num_train_epochs=1,
            id_dataset=photos / "id",
            id_split=split,
        )
        script.main(*script.parse_arguments(given))
        assert ("4 of the 4 images that the prompts were learned from are among" in caplog.text) == told


def test_too_few_images(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: `shots=7` asks for more images .*'cat' \(6\), 'dog' \(6\)"):
        script.main(*script.parse_arguments(arguments(photos, clip_folder, tmp_path / "run", shots=7)))
    assert not (tmp_path / "run").exists()


def test_adapters_are_refused(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    given = arguments(photos, clip_folder, tmp_path / "first", "coop", num_train_epochs=2)
    script.main(*script.parse_arguments(given))
    given = arguments(photos, tmp_path / "first", tmp_path / "second", "coop")
    with pytest.raises(SystemExit, match="error: `model` has an adapter already"):
        script.main(*script.parse_arguments(given))


def test_publishing(script: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    changes = {"push_to_hub": "true", "hub_model_id": "org/pets", "hub_token": "hf_none", "save_strategy": "no"}
    # The one model that everybody has.
    given = arguments(photos, "null", tmp_path / "pets", num_train_epochs=2, **changes)
    script.main(*script.parse_arguments(given))
    (repo_id, files), *others = uploads
    assert (repo_id, others) == ("org/pets", [])
    assert files >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "detector.json",
        "detector.safetensors",
        "learned_prompts.json",
        "tokenizer.json",
    }
    assert not any("checkpoint" in name or name.endswith(".py") for name in files)
    assert 'pipeline("ood-detection", model="org/pets")' in (tmp_path / "pets" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": "", "labels": ["cat"]}, "Prompts are learned from labels; name their column in"),
        ({"shots": -1}, "`shots` must be at least 1, or 0 for all images, got -1."),
        ({"sample_seed": -1}, "`sample_seed` must be 0 or more, got -1."),
        ({"crop_scale": [0.5]}, "takes two numbers, the smallest and the largest share, got [0.5]."),
        ({"flip_probability": 2}, "`flip_probability` must lie in [0, 1], got 2.0."),
        ({"num_cached_views": 2, "augment": "false"}, "With `augment false` all of `num_cached_views 2` would be the"),
        ({"augment": "true"}, "`num_cached_views 1` is one view of each image as it is"),
        ({"push_to_hub": "true"}, "`push_to_hub` would publish prompts for the model in the local folder"),
        ({"method": "prompts"}, "invalid choice: 'prompts'"),
        ({"context_init": "  "}, "`context_init` must have at least one word, got '  '"),
    ],
)
def test_contradictions(
    changes: dict[str, Any], message: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        script.parse_arguments(arguments(tmp_path, tmp_path, tmp_path, **changes))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("score", ["clip_os", "clip_os_gl_mcm", "unknown_probability"])
def test_scores_of_another_method(
    score: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.parse_arguments(arguments(tmp_path, tmp_path, tmp_path, "coop", score=score))
    assert f"`score {score}` needs a prompt for the unknown" in capsys.readouterr().err


def test_scores_are_called_what_methods_are(script: ModuleType) -> None:
    for name, (method, settings) in script.SCORES.items():
        differs = {**METHODS[method].settings, **settings} != METHODS[method].settings
        assert (name != method) == differs
        assert name in SCORE_TITLES
    assert SCORE_TITLES["clip_os_gl_mcm"] == "CLIP-OS with GL-MCM"


def test_a_detector_that_looks_at_patches(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    given = arguments(photos, clip_folder, tmp_path, score="clip_os_gl_mcm", num_train_epochs=1)
    script.main(*script.parse_arguments(given))
    detector = OODDetector.from_pretrained(tmp_path, device="cpu")
    assert (detector.method.name, detector.settings["combination"]) == ("clip_os", "gl_mcm")


def test_each_method_has_its_own_arguments(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    *_, training_args = script.parse_arguments(
        ["--method", "locoop", "--dataset", "photos", "--output_dir", "run", "--top_k", "3", "--use_cpu", "true"]
    )
    assert isinstance(training_args, script.LoCoOpArguments)
    assert training_args.top_k == 3
    # The command line comes before the recipe also where the method is concerned.
    with pytest.raises(SystemExit):
        script.parse_arguments(
            ["--config", str(TRAINING / "recipes" / "clip-os.yaml"), "--method", "coop", "--dataset", "photos"]
        )
    assert "no arguments: `blend`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.parse_arguments(["--config", "missing.yaml", "--dataset", "photos"])
    assert "missing.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_command_in_the_recipe(recipe: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TRAINING.parent)
    lines = (TRAINING / "recipes" / f"{recipe}.yaml").read_text().partition("output_dir:")[0].splitlines()
    command = " ".join(line.removeprefix("#").strip().removesuffix("\\") for line in lines if line.startswith("#  "))
    words = shlex.split(command)
    assert words[:3] == ["accelerate", "launch", "training/few_shot.py"]
    model_args, data_args, _, training_args = script.parse_arguments([*words[3:], "--use_cpu", "true"])
    assert training_args.output_dir == f"runs/{recipe}"
    assert len(data_args.ood_datasets) == len(data_args.ood_image_column) == 2
    assert isinstance(training_args, script.TRAINERS[model_args.method][0])


def test_readme_names_arguments_that_exist(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    known = set()
    for method in script.TRAINERS:
        with pytest.raises(SystemExit):
            script.parse_arguments(["--method", method, "--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    text = (TRAINING / "README.md").read_text()
    section = text[text.index("# Few-shot prompts") :]
    assert set(re.findall(r"--[a-z]\w+", section)) - known == {"--nproc_per_node"}
    for file in re.findall(r"(?:recipes|accelerate)/[\w-]+\.yaml", section):
        assert (TRAINING / file).exists()


def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_script("few_shot_example")
    example.main(str(tmp_path / "run"), epochs=20, seed=0)
    output = capsys.readouterr().out
    assert sorted(example.GERMAN) == sorted(path.name for path in example.DRAWINGS.iterdir())
    before, after = (
        float(re.search(rf"^{name} +([\d.]+)%", output, re.MULTILINE)[1])
        for name in ("zero-shot, MCM", "CLIP-OS with MCM")
    )
    assert after > before + 10
    assert re.search(r"\d+ of the other 10 are known,\nand \d+ of the 20 unknown ones are unknown\.", output)
    assert Image.open(tmp_path / "run" / "explanations.png").width > 300
    detector = OODDetector.from_pretrained(tmp_path / "run", device="cpu")
    assert detector.threshold is not None
    assert "Nashorn" in (tmp_path / "run" / "README.md").read_text()
