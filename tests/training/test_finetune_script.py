# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`training/finetune.py`: recipes and command line, and whole runs on a few images."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipn_hf import DualEncoder, OODDetector, pipeline
from clipn_hf.digests import image_digest
from clipn_hf.probing import LinearProbe

TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_script", TRAINING / "finetune.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["finetune_script"] = module
    spec.loader.exec_module(module)
    return module


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
    (folder / "id" / "train" / "cat" / "3.png").write_bytes(b"damaged")
    return folder


def arguments(photos: Path, clip_folder: Path, output: Path, recipe: str = "finetune", **changes: Any) -> list[str]:
    given = {
        "model_name_or_path": clip_folder,
        "dataset": photos / "id",
        "ood_datasets": photos / "noise",
        "ood_split": "train",
        "output_dir": output,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "probe_epochs": 5,
        "cache_features": "false",
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        **changes,
    }
    words = ["--config", str(TRAINING / "recipes" / f"{recipe}.yaml")]
    for name, value in given.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.mark.parametrize("recipe", ["finetune", "finetune-lora"])
def test_run(
    recipe: str,
    script: ModuleType,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    script.main(*script.parse_arguments(arguments(photos, clip_folder, folder, recipe)))
    record = json.loads((folder / "metrics.json").read_text())
    assert {name: found["images"] for name, found in record["images"].items()} == {"train": 11, "id": 8, "noise": 10}
    assert record["labels"] == ["cat", "dog"]
    scores = {"msp", "energy", "relative_mahalanobis"}
    for name in ("linear_probe", "finetuned"):
        assert scores == record[name]["ood"]["noise"].keys()
        assert len(record[name]["ood"]["noise"]["msp"]["fpr95_interval"]) == 2
    assert record["arguments"]["per_device_train_batch_size"] == 4
    assert record["convention"]["fpr_positive"] == "id"
    assert record["training"]["epoch"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["eval_accuracy"] == record["finetuned"]["accuracy"]
    assert lines[-1]["eval_noise_auroc_energy"] == pytest.approx(
        record["finetuned"]["ood"]["noise"]["energy"]["auroc"]
    )
    output = capsys.readouterr()
    assert "| fine-tuned, " in output.out
    assert f"Written to {folder}: the model and its detector" in output.out
    assert "total_flos" not in output.out
    assert sorted(
        path.name for path in folder.glob("*.json*") if "metrics" in path.name or "results" in path.name
    ) == [
        "metrics.json",
        "metrics.jsonl",
    ]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]

    # The folder is a model, and a detector.
    encoder, head = DualEncoder.from_pretrained(folder, device="cpu"), LinearProbe.from_pretrained(folder / "head")
    assert record["encoder"]["images_sha256"] != head.encoder["sha256"] == encoder.describe_images()["sha256"]
    assert head.trained_on["finetuning"]["tuning"] == ("lora" if "lora" in recipe else "full")
    assert head.trained_on["images"] == 11
    detector = OODDetector.from_pretrained(folder)
    image = photos / "id" / "test" / "dog" / "0.png"
    with torch.no_grad():
        logits = head(encoder.image_embeddings(encoder.prepare_images([image])))
    torch.testing.assert_close(detector.score(image), 1 - logits.softmax(dim=1).amax(dim=1))
    # What it states is how it was trained, and it knows on what.
    assert detector.known_settings == {"score": "msp", "temperature": 1.0}
    assert detector.fitted_on["finetuning"]["base"] == clip_folder.name
    assert detector.count_fitted([image_digest(photos / "id" / "train" / "dog" / "1.png")[0]]) == 1
    card = (folder / "README.md").read_text()
    assert f"image encoder of `{clip_folder.name}`" in " ".join(card.split())
    assert ("library_name: peft" in card) == ("an adapter for" in card) == ("lora" in recipe)
    assert pipeline("ood-detection", model=str(folder), device="cpu")(str(image))["label"] in ("cat", "dog")
    assert "ood-detection" in (folder / "README.md").read_text()


def test_few_images_and_a_head_of_zeros(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    changes = {
        "shots": 2,
        "head_init": "zero",
        "max_steps": 1,
        "learning_rate": 1e-6,
        "warmup_steps": 0,
        "eval_strategy": "no",
    }
    script.main(*script.parse_arguments(arguments(photos, clip_folder, tmp_path / "run", **changes)))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["images"]["train"]["images"] == 4
    head = LinearProbe.from_pretrained(tmp_path / "run" / "head")
    assert 0 < head.weight.abs().max() < 1e-5
    # The standardization is that of the embeddings all the same.
    assert head.mean.any()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_interrupted_run_goes_on(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    def run(folder: str) -> torch.Tensor:
        given = arguments(photos, clip_folder, tmp_path / folder, resume_from_checkpoint="true")
        script.main(*script.parse_arguments(given))
        return LinearProbe.from_pretrained(tmp_path / folder / "head").weight

    expected = run("whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "broken" / "checkpoint-3")
    assert torch.equal(run("broken"), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": "", "labels": ["cat"]}, "Fine-tuning learns labels; name their column in `label_column`."),
        ({"crop_scale": [0.5]}, "takes two numbers, the smallest and the largest share, got [0.5]."),
        ({"flip_probability": 2}, "`flip_probability` must lie in [0, 1], got 2.0."),
        ({"shots": -1}, "`shots` must be at least 1, or 0 for all images, got -1."),
        ({"probe_epochs": 0}, "`probe_epochs` must be at least 1, got 0."),
        ({"tuning": "all"}, "invalid choice: 'all'"),
        ({"push_to_hub": "true"}, "`push_to_hub` would publish what is not finished"),
    ],
)
def test_contradictions(
    changes: dict[str, Any], message: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        script.parse_arguments(arguments(tmp_path, tmp_path, tmp_path, **changes))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["finetune", "finetune-lora"])
def test_command_in_the_recipe(recipe: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TRAINING.parent)
    lines = (TRAINING / "recipes" / f"{recipe}.yaml").read_text().partition("output_dir:")[0].splitlines()
    command = " ".join(line.removeprefix("#").strip().removesuffix("\\") for line in lines if line.startswith("#  "))
    words = shlex.split(command)
    assert words[:3] == ["accelerate", "launch", "training/finetune.py"]
    _, data_args, training_args = script.parse_arguments([*words[3:], "--use_cpu", "true"])
    assert training_args.output_dir == f"runs/{recipe}"
    assert len(data_args.ood_datasets) == len(data_args.ood_image_column) == 2


@pytest.mark.parametrize("recipe", ["finetune", "finetune-lora"])
def test_recipes(recipe: str, script: ModuleType) -> None:
    model_args, _, training_args = script.parse_arguments(
        ["--config", str(TRAINING / "recipes" / f"{recipe}.yaml"), "--dataset", "photos", "--use_cpu", "true"]
    )
    assert training_args.output_dir == f"runs/{recipe}"
    assert training_args.tuning == ("lora" if "lora" in recipe else "full")
    assert model_args.head_init == "probe"


def test_readme_names_arguments_that_exist(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    known = set()
    spec = importlib.util.spec_from_file_location("probe_script", TRAINING / "probe.py")
    probe = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("probe_script", probe)
    spec.loader.exec_module(probe)
    for module in (script, probe):
        with pytest.raises(SystemExit):
            module.parse_arguments(["--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    text = (TRAINING / "README.md").read_text()
    section = text[text.index("# Probes and fine-tuning") : text.index("# Few-shot prompts")]
    assert set(re.findall(r"--[a-z]\w+", section)) - known == {"--nproc_per_node"}
    for file in re.findall(r"(?:recipes|accelerate)/[\w-]+\.yaml", section):
        assert (TRAINING / file).exists()
