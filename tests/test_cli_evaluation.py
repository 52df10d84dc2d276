# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands `evaluate` and `compare`, from the command line to what is printed and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clipn_hf.evaluation.comparison import COMPARABLE
from clipn_hf.evaluation.results import read_records

if TYPE_CHECKING:
    from conftest import Command, Run

    Evaluate = Callable[..., Run]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    generator = np.random.default_rng(0)
    for name, count in (("id/cat", 6), ("id/dog", 6), ("far/noise", 5)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "description": "Random pictures.",
        "labels": ["cat", "dog"],
        "id": {"name": "Id", "source": {"imagefolder": "id"}},
        "ood": [{"name": "Far", "group": "far", "source": {"imagefolder": "far"}}],
    }


@pytest.fixture
def evaluate(run: Command, suite: dict[str, Any], root: Path, clip_folder: Path, tmp_path: Path) -> Evaluate:
    def evaluate(*arguments: object, model: object = clip_folder) -> Run:
        config = tmp_path / "suite.yaml"
        config.write_text(yaml.safe_dump(suite), encoding="utf-8")
        common = ["--config", config, "--data-root", root, "--device", "cpu", "--cache-dir", tmp_path / "cache"]
        return run("evaluate", *common, "--model", model, "--resamples", 9, *arguments)

    return evaluate


def test_evaluate_prints_a_table_and_writes_a_report(evaluate: Evaluate, tmp_path: Path) -> None:
    output = tmp_path / "output"
    code, out, err = evaluate("--output", output, "--method", "mcm", "--method", "energy")
    assert code == 0
    assert "| mcm" in out and "| energy" in out
    assert "FPR95" in out
    assert f"{output.resolve()}/report.html" in err
    records = read_records(output / "results.jsonl")
    assert [record["method"] for record in records] == ["mcm", "energy"]
    assert records[0]["bootstrap"]["resamples"] == 9
    assert (output / "report.html").is_file()


def test_evaluate_says_what_the_doctor_found(evaluate: Evaluate, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "far" / "noise" / "copy.png").write_bytes((root / "id" / "cat" / "0.png").read_bytes())
    assert evaluate("--method", "mcm", "--no-examine").code == 0
    assert "Error (" not in caplog.text
    assert evaluate("--method", "mcm").code == 0
    assert "Error (identical-images): 1 image" in caplog.text


def test_evaluate_says_what_is_skipped(evaluate: Evaluate) -> None:
    code, _, err = evaluate("--method", "mcm", "--method", "atd", "--no-examine")
    assert code == 0
    assert 'Skipped: atd (needs a CLIPN model with a "no" text encoder).\n' in err
    assert "Skipped" not in evaluate("--method", "mcm", "--no-examine").err


def test_evaluate_shows_the_metrics_that_are_asked_for(evaluate: Evaluate, tmp_path: Path) -> None:
    code, out, _ = evaluate("--method", "mcm", "--no-examine")
    assert code == 0
    assert "AUROC" in out and "ID accuracy" in out and out.count("FPR95") > 1
    output = tmp_path / "output"
    code, out, _ = evaluate(
        "--method", "mcm", "--no-examine", "--metric", "oscr", "--metric", "aupr_in", "--output", output
    )
    assert code == 0
    assert "OSCR" in out and "AUPR" in out and "FPR95" not in out
    assert out.strip() == (output / "tables.md").read_text(encoding="utf-8").strip()


def test_features_take_no_model(run: Command, clip_folder: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", "--config", "cifar10-features", "--model", clip_folder, "--data-root", tmp_path)
    assert code == 1
    assert "openai/clip-vit-base-patch32 computed; leave --model out." in err


def test_evaluate_takes_seeds(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("--method", "mcm", "--seed", 2, "--seed", 1, "--output", tmp_path / "output", "--no-examine")
    assert [record["seed"] for record in read_records(tmp_path / "output" / "results.jsonl")] == [2, 1]


def test_no_cache_keeps_nothing(run: Command, evaluate: Evaluate, tmp_path: Path) -> None:
    assert evaluate("--method", "mcm", "--no-examine").code == 0
    assert (tmp_path / "cache").is_dir()
    code, _, err = evaluate("--method", "mcm", "--no-cache")
    assert code == 2 and "Only one of the two makes sense" in " ".join(err.split())


def test_list_names_the_ready_suites(run: Command) -> None:
    code, out, _ = run("evaluate", "--list")
    assert code == 0
    assert "cifar10" in out and "imagenet1k" in out


def test_compare_lists_its_metrics(run: Command) -> None:
    code, out, _ = run("compare", "--help")
    assert code == 0
    assert [name for name in COMPARABLE if not re.search(rf"\b{name}\b", out)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mmc"], "Error: There is no method 'mmc', did you mean 'mcm'?"),
        (["--metric", "aurok"], "did you mean 'auroc'"),
        (["--device", "toaster"], "Error: `--device` must be a device of torch"),
        (["--data-root", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(evaluate: Evaluate, arguments: list[str], message: str) -> None:
    code, out, err = evaluate(*arguments)
    assert code == 1
    assert message in err
    assert "Error: " in err and "Traceback" not in err
    assert out == ""


def test_bad_models_and_outputs(evaluate: Evaluate, tmp_path: Path) -> None:
    code, _, err = evaluate(model=tmp_path / "nothing")
    assert code == 1 and f"Error: There is no folder {tmp_path / 'nothing'}" in err
    (tmp_path / "file").touch()
    code, _, err = evaluate("--output", tmp_path / "file")
    assert code == 1 and "is a file; name a folder." in err


def test_a_typo_in_the_suite_is_named(evaluate: Evaluate, suite: dict[str, Any]) -> None:
    suite["ood"][0]["gruop"] = suite["ood"][0].pop("group")
    code, _, err = evaluate()
    assert code == 1
    assert "gruop" in err and "group" in err


def test_evaluate_needs_a_suite(run: Command) -> None:
    code, _, err = run("evaluate", "--seed", 1)
    assert code == 2 and "Name a suite" in err
    code, _, err = run("evaluate", "--config", "cifar11")
    assert code == 1 and "cifar10" in err


def test_compare(run: Command, evaluate: Evaluate, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("mcm", "energy")]
    for output in outputs:
        assert evaluate("--method", output.name, "--output", output, "--no-examine").code == 0
    paths = [output / "results.jsonl" for output in outputs]
    code, out, _ = run("compare", *paths, "--resamples", 99)
    assert code == 0
    assert "B - A" in out and "Far" in out and "95% interval" in out
    assert out.startswith("auroc on tiny, seed 0\nA = ") and " mcm\nB = " in out and " energy\n" in out
    code, out, _ = run("compare", *paths, "--metric", "fpr95", "--resamples", 99, "--json")
    assert code == 0
    (comparison,) = json.loads(out)["comparisons"]
    assert comparison["metric"] == "fpr95"
    assert comparison["set"] == "Far"
    assert comparison["low"] <= comparison["high"]
    assert 0 < comparison["p_value"] <= 1

    (scores,) = (outputs[1] / "scores").iterdir()
    scores.write_bytes(scores.read_bytes()[:-8])
    code, out, err = run("compare", *paths)
    assert (code, out) == (1, "")
    assert "Error: The scores of energy on Far" in err


def test_compare_refuses_other_images(run: Command, evaluate: Evaluate, root: Path, tmp_path: Path) -> None:
    evaluate("--method", "mcm", "--output", tmp_path / "a", "--no-examine")
    (root / "far" / "noise" / "4.png").unlink()
    evaluate("--method", "mcm", "--output", tmp_path / "b", "--no-examine")
    code, _, err = run("compare", tmp_path / "a" / "results.jsonl", tmp_path / "b" / "results.jsonl")
    assert code == 1
    assert "because these differ: the images of Far (5 and 4;" in err
    code, _, err = run("compare", tmp_path / "a" / "results.jsonl", tmp_path / "none.jsonl")
    assert code == 1 and f"Error: There is no file {tmp_path / 'none.jsonl'}; name the results.jsonl" in err


def test_compare_methods_of_one_evaluation(run: Command, evaluate: Evaluate, tmp_path: Path) -> None:
    methods = [argument for name in ("mcm", "energy", "msp") for argument in ("--method", name)]
    seeds = [argument for seed in range(2) for argument in ("--seed", seed)]
    assert evaluate(*methods, *seeds, "--output", tmp_path / "a", "--no-examine").code == 0
    chosen = ["--method-a", "mcm", "--method-b", "energy", "--resamples", 9]
    code, out, err = run("compare", tmp_path / "a", *chosen)
    assert (code, err) == (0, "")
    assert "auroc on tiny, 2 seeds" in out and "of 2" in out and "±" in out and "interval  " not in out
    assert len([line for line in out.splitlines() if line.startswith("far")]) == 1
    code, out, _ = run("compare", tmp_path / "a", *chosen, "--by-seed")
    assert code == 0
    assert "seed" in out and "95% interval" in out
    assert len([line for line in out.splitlines() if line.startswith("far")]) == 2
    code, out, _ = run("compare", tmp_path / "a", *chosen, "--json")
    found = json.loads(out)
    assert sorted(found) == ["averages", "comparisons", "left_out", "over_seeds"]
    assert [one["seed"] for one in found["comparisons"]] == [0, 1]
    assert found["over_seeds"][0]["seeds"] == 2

    code, _, err = run("compare", tmp_path / "a", "--method-b", "enrgy")
    assert code == 1 and "Did you mean 'energy'?" in err
    code, _, err = run("compare", tmp_path / "a")
    assert code == 2 and "Name a second file, or two methods" in " ".join(err.split())


def test_compare_says_what_it_leaves_out(run: Command, evaluate: Evaluate, tmp_path: Path) -> None:
    for name, methods in (("a", ("mcm", "msp")), ("b", ("msp", "energy"))):
        arguments = [argument for method in methods for argument in ("--method", method)]
        assert evaluate(*arguments, "--output", tmp_path / name, "--no-examine").code == 0
    code, out, err = run("compare", tmp_path / "a", tmp_path / "b", "--resamples", 9)
    assert code == 0
    assert f"Left out of A ({tmp_path / 'a'}), for want of a partner: " in err and " mcm.\n" in err
    assert f"Left out of B ({tmp_path / 'b'}), for want of a partner: " in err and " energy.\n" in err
    assert "Left out" not in out
