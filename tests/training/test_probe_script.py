# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`training/probe.py`: recipes and command line, and whole runs on a few images."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipn_hf import OODDetector, pipeline
from clipn_hf.features import extract_features
from clipn_hf.probing import LinearProbe, few_shot_mask, pseudo_label, train_linear_probe
from clipn_hf.training import load_labelled_images

# Of these, the random model takes images for more than one.
LABELS = ["cat", "dog", "car", "photo", "picture", "drawing", "a", "of", "the", "with"]
TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe_script", TRAINING / "probe.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["probe_script"] = module
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


def arguments(photos: Path, clip_folder: Path, output: Path, **changes: Any) -> list[str]:
    given = {
        "model_name_or_path": clip_folder,
        "dataset": photos / "id",
        "ood_datasets": photos / "noise",
        "ood_split": "train",
        "output_dir": output,
        "device": "cpu",
        "epochs": 5,
        "cache_features": "false",
        **changes,
    }
    words = ["--config", str(TRAINING / "recipes" / f"{changes.pop('recipe', 'linear-probe')}.yaml")]
    for name, value in given.items():
        if name != "recipe":
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_probes_with_labels(
    script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"shots": [0, 2], "seeds": [0, 1], "batch_size": 8}
    script.main(*script.parse_arguments(arguments(photos, clip_folder, tmp_path / "run", **changes)))
    folder = tmp_path / "run"
    record = json.loads((folder / "metrics.json").read_text())
    assert {name: found["images"] for name, found in record["images"].items()} == {"train": 11, "id": 8, "noise": 10}
    assert record["images"]["train"]["unreadable"] == 1
    assert record["encoder"]["id"] == clip_folder.name
    assert record["convention"]["fpr_positive"] == "id"
    assert record["arguments"]["seeds"] == [0, 1]
    assert len(record["zero_shot"]["ood"]["noise"]["msp"]["auroc_interval"]) == 2
    assert [(run["shots"], run["seed"], run["images"]) for run in record["probes"]] == [
        (2, 0, 4),
        (2, 1, 4),
        (None, 0, 11),
        (None, 1, 11),
    ]
    mean = np.mean([run["metrics"]["ood"]["noise"]["energy"]["auroc"] for run in record["probes"][2:]])
    summary = record["summary"]["linear_probe, all images"]["ood"]["noise"]["energy"]["auroc"]
    assert summary["mean"] == pytest.approx(mean)
    assert record["templates"]
    assert {"zero-shot", "linear_probe, 2 images per class"} < record["summary"].keys()
    table = capsys.readouterr().out
    assert "| classifier | score | accuracy ↑ | noise AUROC ↑ | noise FPR95 ↓ |" in table
    assert f"Written to {folder}: metrics.json, probes/, and the detector in detector/." in table

    # What a user makes by hand is the same.
    rows = load_labelled_images(str(photos / "id"))
    features = extract_features(rows, clip_folder, labels=rows["label"], use_cache=False)
    mask = few_shot_mask(torch.tensor(features.labels), 2, 1)
    expected = train_linear_probe(
        features.embeddings[mask],
        torch.tensor(features.labels)[mask],
        class_names=["cat", "dog"],
        epochs=5,
        batch_size=8,
        seed=1,
        device="cpu",
    )
    probe = LinearProbe.from_pretrained(folder / "probes" / "shots-2-seed-1")
    assert torch.equal(probe.weight, expected.weight)
    assert probe.labels == ["cat", "dog"]

    detector = OODDetector.from_pretrained(folder / "detector")
    image = photos / "id" / "test" / "dog" / "0.png"
    best = LinearProbe.from_pretrained(folder / "probes" / "all-seed-0")
    encoded = extract_features([image], clip_folder, use_cache=False)
    with torch.no_grad():
        torch.testing.assert_close(detector.score(image), 1 - best(encoded.embeddings).softmax(dim=1).amax(dim=1))
    # It knows the images that its probe was trained on.
    assert detector.count_fitted(bytes.fromhex(digest) for digest in features.digests) == 11
    assert pipeline("ood-detection", model=str(folder / "detector"), device="cpu")(str(image))["label"] in (
        "cat",
        "dog",
    )


def test_probes_without_labels(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    given = arguments(
        photos,
        clip_folder,
        tmp_path / "run",
        recipe="plp",
        label_column="",
        labels=LABELS,
        id_dataset=photos / "id",
        min_confidence=0,
        seeds=[0],
    )
    script.main(*script.parse_arguments(given))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["pseudo_labels"]["share_kept"] == 1
    assert record["pseudo_labels"]["min_confidence"] is None
    assert "accuracy" not in record["pseudo_labels"]
    assert record["images"]["id"]["images"] == 8
    probe = LinearProbe.from_pretrained(tmp_path / "run" / "probes" / "all-seed-0")
    assert probe.trained_on["labelled"] is False
    detector = OODDetector.from_pretrained(tmp_path / "run" / "detector")
    assert not detector.fitted_on["labelled"]
    # It is one of the method plp, and says by which texts it was made.
    assert detector.method.name == "plp"
    assert detector.templates == record["templates"]
    told = detector.fitted_on["pseudo_labels"]
    assert (told["min_confidence"], told["templates"], told["kept"], told["of"]) == (None, record["templates"], 11, 11)
    assert probe.trained_on["pseudo_labels"] == told


def test_detectors_of_pseudo_labels_are_those_of_fit(
    script: ModuleType,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = load_labelled_images(str(photos / "id"), label_column=None)
    features = extract_features(rows, clip_folder, use_cache=False)
    every = OODDetector(clip_folder, LABELS, "plp", min_confidence=None, device="cpu", epochs=5)
    text = every.image_encoder.class_embeddings(LABELS, every.templates, use_no_encoder=False)[0]
    logits = every.image_encoder.logit_scale * features.embeddings @ text.T.cpu()
    # So that the filter leaves some images out.
    floor = logits.softmax(dim=1).amax(dim=1).sort().values[2:4].mean().item()
    changes = {"recipe": "plp", "labels": LABELS, "min_confidence": floor, "seeds": [0], "score": "perplexity"}
    with caplog.at_level("WARNING"):
        script.main(*script.parse_arguments(arguments(photos, clip_folder, tmp_path / "run", **changes)))
    detector = OODDetector.from_pretrained(tmp_path / "run" / "detector")
    expected = OODDetector(clip_folder, LABELS, "plp", min_confidence=floor, device="cpu", epochs=5).fit(features)
    assert detector.fitted_on == expected.fitted_on
    assert detector.fitted_on["images"] == 11 > detector.fitted_on["pseudo_labels"]["kept"]
    assert detector.count_fitted(bytes.fromhex(digest) for digest in features.digests) == 11
    assert "of 11 images have a confident pseudo-label; " in caplog.text
    assert "The balance over all classes is 0." in caplog.text
    # What the detector judges by is in the table.
    assert capsys.readouterr().out.count("| perplexity |") == 2


def test_log_without_a_filter_speaks_of_no_confidence(script: ModuleType) -> None:
    assert script.word_pseudo_labels(pseudo_label(torch.eye(3)[:2], None)) == (
        "2 of 2 images are kept with their pseudo-label; 1 of 3 classes have none. The balance over all classes is "
        "0.631 (1 = even)."
    )


def test_a_plain_folder_and_the_model_of_the_package(script: ModuleType, photos: Path, tmp_path: Path) -> None:
    words = ["--config", str(TRAINING / "recipes" / "linear-probe.yaml"), "--dataset", str(photos / "id" / "train")]
    words += ["--id_dataset", str(photos / "id" / "test"), "--ood_datasets", str(photos / "noise")]
    words += ["--model_name_or_path", "null", "--device", "cpu", "--epochs", "2", "--cache_features", "false"]
    words += ["--output_dir", str(tmp_path / "run")]
    script.main(*script.parse_arguments(words))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {name: found["images"] for name, found in record["images"].items()} == {"train": 11, "id": 8, "noise": 10}
    assert record["arguments"]["model_name_or_path"] is None


def test_an_absent_model_is_one_line(script: ModuleType, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: `model_name_or_path` .*absent: .*$"):
        script.main(*script.parse_arguments(arguments(photos, tmp_path / "absent", tmp_path / "run")))


def test_seeds_that_change_nothing_are_left_out(
    script: ModuleType,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = arguments(photos, clip_folder, tmp_path / "run", shots=[0, 2, 50], seeds=[3, 1, 2])
    with caplog.at_level("WARNING"):
        script.main(*script.parse_arguments(given))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = [(run["shots"], run["seed"]) for run in record["probes"]]
    assert found == [(2, 3), (2, 1), (2, 2), (50, 3), (None, 3)]
    assert "Seed 2 makes the same probe of all images as a seed before it" in caplog.text
    # There are 5 and 6 images of the classes.
    assert [*record["summary"]][1:] == [
        "linear_probe, 2 images per class",
        "linear_probe, up to 50 images per class",
        "linear_probe, all images",
    ]
    assert " ± " not in capsys.readouterr().out.splitlines()[-3]


def test_images_held_out_choose_the_epoch(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    changes = {"validation_fraction": 0.4, "patience": 2, "epochs": 60, "learning_rate": 0.5, "seeds": [0]}
    changes |= {"score": "relative_mahalanobis"}
    script.main(*script.parse_arguments(arguments(photos, clip_folder, tmp_path / "run", **changes)))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # Two of the 5 cats, and of the 6 dogs.
    assert record["images"]["validation"] == {"images": 4}
    assert record["probes"][0]["images"] == 7
    probe = LinearProbe.from_pretrained(tmp_path / "run" / "probes" / "all-seed-0")
    assert probe.trained_on["best_epoch"] < 60
    # The distance on logits needs the training images, which the detector is given.
    detector = OODDetector.from_pretrained(tmp_path / "run" / "detector")
    assert detector.settings["score"] == "relative_mahalanobis"
    # It knows the images held out, too, since they chose its epoch.
    rows = load_labelled_images(str(photos / "id"))
    features = extract_features(rows, clip_folder, labels=rows["label"], use_cache=False)
    assert detector.fitted_on["images"] == 11
    assert detector.count_fitted(bytes.fromhex(digest) for digest in features.digests) == 11
    with pytest.raises(ValueError, match="has 11 of 11 images that the method was fitted on"):
        detector.calibrate(features)
    assert torch.isfinite(detector.score(photos / "id" / "test" / "dog" / "0.png")).all()


def test_errors_of_loading_are_one_line(script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path) -> None:
    given = arguments(photos, clip_folder, tmp_path / "run", id_split="validation")
    with pytest.raises(SystemExit, match="^error: `dataset` .*, `id_split` validation: Unknown split"):
        script.main(*script.parse_arguments(given))
    assert not (tmp_path / "run").exists()


def test_results_of_several_runs_do_not_mix(
    script: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "probes").mkdir(parents=True)
    with pytest.raises(SystemExit):
        script.parse_arguments(arguments(photos, tmp_path, tmp_path / "run"))
    assert "has files already; name a new or empty folder." in capsys.readouterr().err


def test_pseudo_labels_are_compared_with_labels(
    script: ModuleType, photos: Path, clip_folder: Path, tmp_path: Path
) -> None:
    given = arguments(photos, clip_folder, tmp_path / "run", recipe="plp", min_confidence=0, seeds=[0], labels=LABELS)
    script.main(*script.parse_arguments(given))
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["pseudo_labels"]
    assert 0 <= found["accuracy"] <= 1
    assert found["kept_accuracy"] == found["accuracy"]
    assert sum(found["counts"]) == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": "", "labels": ["cat"]}, "`method linear_probe` learns labels; name their `label_column`"),
        ({"label_column": ""}, "Without `label_column` nothing tells what the classes are called"),
        ({"shots": [-1]}, "`shots` must be whole numbers of at least 0, each once, got [-1]."),
        ({"seeds": [1, 1]}, "`seeds` must be whole numbers of at least 0, each once, got [1, 1]."),
        ({"min_confidence": 2}, "`min_confidence` must be between 0 and 1, got 2.0."),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0."),
        ({"learning_rate": -1}, "`learning_rate` must be positive and finite, got -1.0."),
        ({"patience": 3}, "`patience` needs held-out images to watch; set `validation_fraction`"),
        ({"validation_fraction": 1}, "`validation_fraction` must be at least 0 and less than 1, got 1.0."),
        ({"image_batch_size": 0}, "`image_batch_size` must be at least 1, got 0."),
        ({"method": "probe"}, "invalid choice: 'probe'"),
        ({"epoch": 3}, "Unknown arguments: --epoch 3 (did you mean `--epochs`?)"),
    ],
)
def test_contradictions(
    changes: dict[str, Any], message: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        script.parse_arguments(arguments(tmp_path, tmp_path, tmp_path, **changes))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["linear-probe", "plp"])
def test_command_in_the_recipe(recipe: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TRAINING.parent)
    lines = (TRAINING / "recipes" / f"{recipe}.yaml").read_text().partition("output_dir:")[0].splitlines()
    command = " ".join(line.removeprefix("#").strip().removesuffix("\\") for line in lines if line.startswith("#  "))
    words = shlex.split(command)
    assert words[:2] == ["python", "training/probe.py"]
    args, data_args = script.parse_arguments(words[2:])
    assert args.output_dir == f"runs/{recipe}"
    assert data_args.ood_datasets


@pytest.mark.parametrize("recipe", ["linear-probe", "plp"])
def test_recipes(recipe: str, script: ModuleType) -> None:
    args, data_args = script.parse_arguments(
        ["--config", str(TRAINING / "recipes" / f"{recipe}.yaml"), "--dataset", "photos"]
    )
    assert args.output_dir == f"runs/{recipe}"
    # The recipe of the paper is what the library does by itself.
    defaults = script.ProbeArguments(output_dir="")
    for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup_fraction", "min_confidence"):
        assert getattr(args, name) == getattr(defaults, name), name
    assert args.method == recipe.replace("-", "_")
    assert data_args.dataset == ["photos"]
