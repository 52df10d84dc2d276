# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub._eval_results import parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from clipn_hf.evaluation.cards import model_index, write_eval_results

CLIP = "openai/clip-vit-base-patch16"


def of_clip(result: Any) -> list[dict[str, Any]]:
    return [record for record in result.records if record["model"]["id"] == CLIP]


def test_entries_survive_the_card(result: Any) -> None:
    records = of_clip(result)
    entries = model_index(records)
    card = ModelCardData(model_name="clipn", eval_results=entries).to_dict()
    _, parsed = model_index_to_eval_results(card["model-index"])
    values = {(entry.dataset_name, entry.metric_name): entry.metric_value for entry in parsed}
    assert len(values) == len(entries) == 3 * 3 * 2 + 1
    for record in records:
        name = f"CIFAR-10 against {record['set']['name']}"
        if record["set"]["group"] == "covariate-shift":
            assert not any(dataset == name for dataset, _ in values)
            continue
        method, metrics = record["method"], record["metrics"]
        assert values[name, f"AUROC of {method}"] == pytest.approx(metrics["auroc"]["value"], abs=1e-6)
        fpr = values[name, f"FPR95 of {method}, ID positive, exact rule"]
        assert fpr == pytest.approx(metrics["fpr95"]["value"], abs=1e-6)
    assert ("CIFAR-10", "ID accuracy") in values


def test_seeds_are_averaged(seeds_result: Any) -> None:
    records = of_clip(seeds_result)
    entry = model_index(records)[0]
    own = [record["metrics"]["auroc"]["value"] for record in records if record["method"] == "mcm"][::4]
    assert len(own) == 3
    assert entry.metric_value == pytest.approx(sum(own) / 3, abs=1e-6)
    assert entry.metric_args == {"seeds": 3}


def test_paths_are_not_given_away(result: Any, tmp_path: Path) -> None:
    records = [record for record in result.records if record["model"]["id"] != CLIP]
    half = [{**record, "model": {**record["model"], "dtype": "float16"}} for record in records]
    index = eval_results_to_model_index("clipn-tiny", model_index([*records, *half]))
    assert "clipn-tiny (dtype float16)" in str(index) and "/data" not in str(index)
    write_eval_results(tmp_path, [*records, *half], "org/benchmark")
    for path in tmp_path.rglob("*.yaml"):
        assert "/data" not in path.read_text("utf-8")


def test_a_card_is_of_one_model(result: Any) -> None:
    with pytest.raises(ValueError, match="`records` are of several models .*; give those of one"):
        model_index(result.records)
    half = [{**record, "model": {**record["model"], "dtype": "float16"}} for record in of_clip(result)]
    names = [entry.metric_name for entry in model_index([*of_clip(result), *half])]
    assert "AUROC of mcm with openai/clip-vit-base-patch16 (dtype float16)" in names
    assert len(eval_results_to_model_index("clipn", model_index(half))) == 1


def test_eval_results(result: Any, tmp_path: Path) -> None:
    write_eval_results(tmp_path, of_clip(result), "org/benchmark")
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [f".eval_results/ood_detection_cifar10_{method}.yaml" for method in ("atd", "energy", "mcm")]
    entries = [
        entry
        for file in files
        for entry in parse_eval_result_entries(yaml.safe_load((tmp_path / file).read_text(encoding="utf-8")))
    ]
    assert len({(entry.dataset_id, entry.task_id) for entry in entries}) == len(entries) == 18
    fpr = next(entry for entry in entries if entry.task_id == "ood_detection_fpr95_mcm_cifar10_mnist")
    assert fpr.notes == "FPR95 of mcm, ID positive, exact rule, CIFAR-10 against MNIST"
    assert {entry.dataset_id for entry in entries} == {"org/benchmark"}


@pytest.mark.parametrize("name", ["data/imagenet/val", "", "my suite", "/data", "./data", "../data", "C:\\data"])
def test_eval_results_belong_to_a_dataset_on_the_hub(result: Any, tmp_path: Path, name: str) -> None:
    write_eval_results(tmp_path, of_clip(result), name)
    assert list(tmp_path.iterdir()) == []


def test_eval_results_of_several_models_do_not_mix(result: Any, tmp_path: Path) -> None:
    write_eval_results(tmp_path, result.records, "org/benchmark")
    folder = tmp_path / ".eval_results"
    assert sorted(path.name for path in folder.iterdir()) == ["clipn-tiny", "openai_clip-vit-base-patch16"]
    assert all(len(list(path.iterdir())) == 3 for path in folder.iterdir())


def test_methods_of_like_names_get_files_of_their_own(result: Any, tmp_path: Path) -> None:
    records = [record for record in of_clip(result) if record["method"] == "mcm"]
    others = [{**record, "method": "MCM"} for record in records]
    write_eval_results(tmp_path, [*records, *others], "org/benchmark")
    files = sorted((tmp_path / ".eval_results").iterdir())
    assert [path.name for path in files] == ["ood_detection_cifar10_mcm.yaml", "ood_detection_cifar10_mcm_2.yaml"]
    tasks = [entry["dataset"]["task_id"] for path in files for entry in yaml.safe_load(path.read_text("utf-8"))]
    assert len(set(tasks)) == len(tasks) == 12
    assert {"ood_detection_auroc_mcm_cifar10_mnist", "ood_detection_auroc_mcm_cifar10_mnist_2"} <= set(tasks)
