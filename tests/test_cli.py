# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.main import get_command

from clipn_hf import OODDetector, cli, records
from clipn_hf.evaluation import contact_sheet
from clipn_hf.feature_cache import FeatureStore, cache_info
from clipn_hf.methods import METHODS

LABELS = "cat,dog,bird"
NAMES = ["0.png", "1 two.jpg", "deep/5.webp", "z-猫.png", "Ärger.png"]


class Run(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> Run:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(exit_.value.code or 0, captured.out, captured.err)  # type: ignore[arg-type]

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images that differ, one of them in a folder inside."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64)).save(folder / name)
    return folder


@pytest.fixture
def bad_images(images: Path) -> Path:
    """The same folder with four files that cannot be read."""
    (images / "empty.png").touch()
    (images / "letter.jpg").write_text("Hello")
    whole = (images / "1 two.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "trap\n\x1b[2J.png").write_bytes(b"\x00\x01\xff")
    return images


def read_jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".partial" in path.name]


# Help


def test_version_and_help(run: Command) -> None:
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "clipn-hf")
    assert out.split()[1][0].isdigit()
    code, out, _ = run("--help")
    assert code == 0
    assert {"detect", "calibrate", "evaluate", "compare", "methods", "info", "convert", "demo"} <= set(out.split())


UNFITTED = [name for name, method in METHODS.items() if method.fit is None]


@pytest.mark.parametrize(("subcommand", "methods"), [("detect", UNFITTED), ("calibrate", list(METHODS))])
def test_help_names_exit_codes_and_methods(
    run: Command, monkeypatch: pytest.MonkeyPatch, subcommand: str, methods: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(subcommand, "--help")
    assert code == 0
    text = " ".join(out.replace("│", " ").split())
    assert "Exit codes: 0 all images were read; 1 bad input" in text
    assert "3 some images could not be read" in text
    *names, last = methods
    assert f"{', '.join(names)} or {last};" in text


def test_help_follows_the_table_of_methods() -> None:
    """The option is made from the table, not from a list of its own."""
    assert cli._alternatives(["a", "b", "c"]) == "a, b or c"
    assert cli._alternatives(["a"]) == "a"
    for subcommand, methods, complete in (
        ("detect", UNFITTED, cli._complete_unfitted_method),
        ("calibrate", list(METHODS), cli._complete_method),
    ):
        parameter = next(p for p in get_command(cli.app).commands[subcommand].params if p.name == "method")
        assert parameter.help.startswith(f"{cli._alternatives(methods)};")
        assert [name for name, _ in complete("")] == methods
        assert complete("m") == [(name, METHODS[name].title) for name in methods if name.startswith("m")]


@pytest.fixture(params=["script", "module"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The two ways to start a process of the command."""
    if request.param == "module":
        return [sys.executable, "-m", "clipn_hf"]
    script = tmp_path / "clipn-hf"
    script.write_text("from clipn_hf.cli import main\nmain()\n")
    return [sys.executable, str(script)]


def test_help_version_and_completion_do_not_wait_for_torch(command: list[str]) -> None:
    completion = {"_CLIPN_HF_COMPLETE": "complete_bash", "COMP_WORDS": "clipn-hf detect --method m", "COMP_CWORD": "3"}
    for arguments, environment, shown in (
        (["--version"], {}, "clipn-hf "),
        (["--help"], {}, "detect"),
        (["detect", "--help"], {}, "--labels-file"),
        ([], completion, "mcm"),
    ):
        process = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment, "PYTHONPROFILEIMPORTTIME": "1"},
        )
        assert shown in process.stdout, process.stderr
        imported = {line.rsplit("|", 1)[-1].strip() for line in process.stderr.splitlines()}
        assert "clipn_hf.cli" in imported
        assert not {"torch", "transformers", "numpy", "PIL", "datasets"} & imported


def test_in_the_process_of_the_command_exports_are_there_when_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "clipn-hf"
    script.write_text(
        "import sys\n"
        "import clipn_hf\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(clipn_hf.__all__) <= set(dir(clipn_hf))\n"
        "assert 'torch' not in sys.modules\n"
        "from clipn_hf import OODPipeline, pipeline\n"
        "import transformers\n"
        "assert clipn_hf.pipeline is pipeline is transformers.pipeline\n"
        "assert all(hasattr(clipn_hf, name) for name in clipn_hf.__all__)\n"
        "assert not hasattr(clipn_hf, 'nonsense')\n"
    )
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_shell_completion(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CLIPN_HF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "clipn-hf de")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out.split() == ["detect", "demo"]


# What detect writes


def test_jsonl_holds_what_the_detector_says(run: Command, images: Path, clipn_folder: Path) -> None:
    code, out, err = run(
        "detect", images, "-r", "--labels", "cat, dog,bird", "--model", clipn_folder, "--format", "jsonl"
    )
    assert code == 0
    assert err.splitlines()[-1].startswith("5 images: ")
    files = [str(images / name) for name in NAMES]
    expected = OODDetector(clipn_folder, LABELS.split(","))(files)
    records = read_jsonl(out)
    assert [record.pop("file") for record in records] == files
    for record, result in zip(records, expected, strict=True):
        assert record.keys() == result.keys()
        assert record["ood_score"] == pytest.approx(result["ood_score"], rel=1e-4)
        assert (record["is_ood"], record["label"]) == (result["is_ood"], result["label"])
        assert [entry["label"] for entry in record["labels"]] == [entry["label"] for entry in result["labels"]]


def test_order_and_results_do_not_depend_on_batches_and_threads(
    run: Command, images: Path, clipn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "0 missing.png").touch()
    outputs = []
    for batch_size, readers in ((1, 1), (2, 3), (32, 16)):
        monkeypatch.setattr(records, "READERS", readers)
        code, out, _ = run(
            *("detect", images, "-r", "--labels", LABELS, "--model", clipn_folder),
            *("--format", "jsonl", "--batch-size", batch_size, "--top-k", 1),
        )
        assert code == 3
        outputs.append(read_jsonl(out))
    for found in outputs:
        assert [record["file"] for record in found] == [record["file"] for record in outputs[0]]
        scores = [record.get("ood_score", 0.0) for record in found]
        assert scores == pytest.approx([record.get("ood_score", 0.0) for record in outputs[0]], rel=1e-4)
        assert all(len(record["labels"]) == 1 for record in found if "error" not in record)


def test_table(run: Command, bad_images: Path, clipn_folder: Path) -> None:
    code, out, _ = run("detect", bad_images, "--labels", "cat,犬", "--model", clipn_folder, "--threshold", -1)
    assert code == 3
    header, *rows = out.splitlines()
    assert header.split() == ["verdict", "OOD", "score", "nearest", "label", "prob.", "file"]
    assert len(rows) == 8
    assert sum(row.startswith("unknown") for row in rows) == 4
    assert sum(row.startswith("unreadable") for row in rows) == 4
    assert all(row.index(str(bad_images)) == row.index(str(bad_images), len("unreadable")) for row in rows)
    assert {row.index(str(bad_images)) for row in rows if "犬" not in row} == {header.index("file")}
    assert "trap\\n\\x1b[2J.png" in out


def test_csv(run: Command, bad_images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.csv"
    code, out, err = run("detect", bad_images, "-r", "--labels", LABELS, "--model", clipn_folder, "--output", output)
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].endswith("4 unreadable")
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    for row in rows:
        if row["error"]:
            assert row["is_ood"] == row["ood_score"] == row["label"] == ""
        else:
            assert (row["verdict"], row["is_ood"]) in (("unknown", "true"), ("known", "false"))
            assert 0 <= float(row["ood_score"]) <= 1
            assert row["method"] == "atd"
            assert row["label"] in LABELS.split(",")


def test_format_follows_the_extension_unless_given(
    run: Command, images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    options = ("detect", images / "0.png", "--labels", LABELS, "--model", clipn_folder, "--output")
    for name, arguments, start in (
        ("a.JSONL", (), '{"file"'),
        ("a.csv", (), "file,verdict,is_ood"),
        ("a.txt", (), "verdict "),
        ("b.csv", ("--format", "table"), "verdict "),
    ):
        assert run(*options, tmp_path / name, *arguments).code == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_templates_and_method_reach_the_detector(run: Command, images: Path, clipn_folder: Path) -> None:
    options = ("detect", images / "0.png", "--labels", LABELS, "--model", clipn_folder, "--format", "jsonl")
    pools = ("--template", "a {}.", "--template", "the {}.", "--no-template", "no {}.")
    labels = LABELS.split(",")
    for arguments, detector in (
        (pools, OODDetector(clipn_folder, labels, templates=["a {}.", "the {}."], no_templates=["no {}."])),
        (pools[:4], OODDetector(clipn_folder, labels, templates=["a {}.", "the {}."])),
        (("--method", "energy"), OODDetector(clipn_folder, labels, "energy")),
    ):
        code, out, _ = run(*options, *arguments)
        assert code == 0
        assert read_jsonl(out)[0]["ood_score"] == pytest.approx(detector.score(images / "0.png").item(), rel=1e-4)


@pytest.mark.parametrize(
    ("word", "value"), [("0.5", 0.5), (".5", 0.5), ("2", 2), ("true", True), ("null", None), ("kth", "kth"), ("", "")]
)
def test_values_of_settings_are_those_of_json_or_words(word: str, value: Any) -> None:
    found = cli._read_value(word)
    assert (found, type(found)) == (value, type(value))


def test_settings_reach_the_detector(run: Command, images: Path, clipn_folder: Path) -> None:
    code, out, _ = run(
        *("detect", images / "0.png", "--labels", LABELS, "--model", clipn_folder, "--format", "jsonl"),
        *("--method", "mcm", "--setting", "temperature = .25"),
    )
    assert code == 0
    scores = [
        OODDetector(clipn_folder, LABELS.split(","), "mcm", **settings).score(images / "0.png").item()
        for settings in ({"temperature": 0.25}, {})
    ]
    assert read_jsonl(out)[0]["ood_score"] == pytest.approx(scores[0], rel=1e-4) != pytest.approx(scores[1], rel=1e-4)


def test_the_embedded_checkpoint_is_named_in_terms_of_options(run: Command, images: Path) -> None:
    code, _, err = run("detect", images / "0.png", "--labels", LABELS)
    assert code == 0
    assert "No `--model` given" in err and "--model openai/" in err


def test_five_labels_are_listed_unless_told_otherwise(run: Command, images: Path, clipn_folder: Path) -> None:
    options = ("detect", images / "0.png", "--labels", "a,b,c,d,e,f,g", "--model", clipn_folder, "--format", "jsonl")
    for arguments, count in (((), 5), (("--top-k", 6), 6), (("--top-k", 99), 7)):
        assert len(read_jsonl(run(*options, *arguments).out)[0]["labels"]) == count


def test_a_method_without_rule_gives_scores_and_says_how_to_get_a_verdict(
    run: Command, images: Path, clip_folder: Path
) -> None:
    options = ("detect", images, "--labels", LABELS, "--model", clip_folder, "--format", "jsonl", "--method", "mcm")
    code, out, err = run(*options)
    assert code == 0
    assert all(record["is_ood"] is None for record in read_jsonl(out))
    assert "give `--threshold`, make a detector by `clipn-hf calibrate`, or use --method atd or ctw" in err
    assert err.splitlines()[-1] == "4 images: 4 undecided"
    scores = [record["ood_score"] for record in read_jsonl(out)]
    code, out, err = run(*options, "--threshold", scores[0])
    assert [record["is_ood"] for record in read_jsonl(out)] == [score > scores[0] for score in scores]
    assert "verdict" not in err


def test_contact_sheet(
    run: Command, images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cli, records):
        monkeypatch.setattr(module, "MAX_TILES", 3)
    drawn = []
    original = contact_sheet.contact_sheet

    def record(tiles: list[contact_sheet.Tile], **options: str) -> Image.Image:
        drawn.append((tiles, options))
        return original(tiles, **options)

    monkeypatch.setattr(contact_sheet, "contact_sheet", record)
    options = ("detect", images, "-r", "--labels", LABELS, "--model", clipn_folder, "--contact-sheet")
    for name, format in (("a.png", "PNG"), ("a.jpg", "JPEG")):
        assert run(*options, tmp_path / name).code == 0
        with Image.open(tmp_path / name) as image:
            assert image.format == format
    tiles, texts = drawn[0]
    assert len(tiles) == 3
    assert tiles == sorted(tiles, key=lambda tile: (tile.is_ood is True, tile.ood_score))
    assert texts["title"].startswith("5 images: ")
    assert "the first 3 images" in texts["subtitle"]
    code, _, err = run(*options, tmp_path / "a.svg")
    assert (code, "must end in .png, .jpg or .jpeg." in err) == (1, True)


# Labels and files


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_labels_file(run: Command, images: Path, clipn_folder: Path, tmp_path: Path, newline: str) -> None:
    lines = ["\ufeff# known animals", "", "  cat ", "dog, wild", "   ", "  # birds", "bird"]
    path = tmp_path / "labels.txt"
    path.write_bytes(newline.join(lines).encode())
    code, out, _ = run("detect", images, "--labels-file", path, "--model", clipn_folder, "--format", "jsonl")
    assert code == 0
    for record in read_jsonl(out):
        assert sorted(entry["label"] for entry in record["labels"]) == ["bird", "cat", "dog, wild"]


def test_bad_labels_files(run: Command, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    for content, message in ((b"# nothing\n\n", "has no labels"), (b"caf\xe9\n", "is not text in UTF-8")):
        path.write_bytes(content)
        code, _, err = run("detect", images, "--labels-file", path)
        assert (code, message in err) == (1, True)
    code, _, err = run("detect", images, "--labels-file", tmp_path / "gone.txt")
    assert (code, "gone.txt" in err) == (1, True)


def test_globs_folders_and_duplicates(run: Command, images: Path, clipn_folder: Path) -> None:
    options = ("--labels", LABELS, "--model", clipn_folder, "--format", "jsonl")
    for paths, names in (
        ([images / "*.png"], ["0.png", "z-猫.png", "Ärger.png"]),
        ([images, images / "0.png"], ["0.png", "1 two.jpg", "z-猫.png", "Ärger.png"]),
        ([images / "**" / "*.webp"], ["deep/5.webp"]),
    ):
        code, out, _ = run("detect", *paths, *options)
        assert code == 0
        assert [record["file"] for record in read_jsonl(out)] == [str(images / name) for name in names]


def test_unreadable_files_are_reported_and_the_others_judged(
    run: Command, bad_images: Path, clipn_folder: Path
) -> None:
    missing = bad_images / "missing.png"
    code, out, err = run(
        "detect", bad_images, missing, "--labels", LABELS, "--model", clipn_folder, "--format", "jsonl"
    )
    assert code == 3
    errors = {record["file"]: record["error"] for record in read_jsonl(out) if "error" in record}
    reasons = {
        "empty.png": "it is empty",
        "letter.jpg": "it is text",
        "truncated.jpg": "it is damaged or truncated",
        "trap\n\x1b[2J.png": "not an image in a known format",
        "missing.png": "there is no such file",
    }
    assert errors.keys() == {str(bad_images / name) for name in reasons}
    for name, reason in reasons.items():
        assert reason in errors[str(bad_images / name)]
        assert reason in err
    assert len(read_jsonl(out)) == 9
    assert "\x1b" not in err
    assert len(err.splitlines()) == len(reasons) + 1


def test_nothing_readable_at_all(run: Command, tmp_path: Path, clipn_folder: Path) -> None:
    sheet, output = tmp_path / "sheet.png", tmp_path / "out.jsonl"
    code, _, err = run(
        *("detect", tmp_path / "gone.png", "--labels", LABELS, "--model", clipn_folder),
        *("--contact-sheet", sheet, "--output", output),
    )
    assert code == 3
    assert err.splitlines()[-1] == "1 image: 1 unreadable"
    assert not sheet.exists()
    assert list(read_jsonl(output.read_text(encoding="utf-8"))[0]) == ["file", "error"]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", LABELS, "--method", "foo"], "`--method` must be one of atd, ctw"),
        (
            ["--labels", LABELS, "--method", "mahalanobis"],
            "make a detector by `clipn-hf calibrate --method mahalanobis",
        ),
        (["--labels", LABELS, "--setting", "temperature=1"], "method atd has no setting temperature. It has none"),
        (["--labels", LABELS, "--method", "mcm", "--setting", "temprature=1"], "did you mean temperature?"),
        (["--labels", LABELS, "--method", "mcm", "--setting", "temperature"], "`--setting` must be NAME=VALUE"),
        (["--labels", LABELS, "--method", "mcm", "--setting", "=1"], "`--setting` must be NAME=VALUE"),
        (["--labels", LABELS, "--method", "mcm", *2 * ["--setting", "temperature=1"]], "is given twice"),
        (
            ["--labels", LABELS, "--method", "mcm", "--setting", "temperature=-1"],
            "`--setting temperature` does not fit",
        ),
        (["--labels", LABELS, "--method", "msp", "--setting", "temperature=hot"], "must be a number, got str 'hot'"),
        (["--labels", LABELS, "--threshold", "nan"], "`--threshold` must be finite"),
        (["--labels", "cat,,dog"], "Label 2 of --labels 'cat,,dog' is empty"),
        (["--labels", LABELS, "--template", "a photo"], "must contain `{}` exactly once"),
        (["--labels", LABELS, "--no-template", "{} {}"], "`no_templates[0]` must contain"),
        (["--labels", "cat,cat"], "'cat' twice"),
        (["--labels", "cat", "--method", "mcm"], "at least 2 labels"),
        (["--labels", LABELS, "--device", "foo"], "`--device` must be"),
        (["--labels", LABELS, "--output", "."], "is a folder"),
        (["--labels", LABELS, "--output", "/dev/null"], "not a regular file"),
        (["--labels", LABELS, "--output", "gone/out.csv"], "does not exist"),
    ],
)
def test_user_errors_are_one_line(
    run: Command, images: Path, clipn_folder: Path, arguments: list[str], message: str
) -> None:
    code, out, err = run("detect", images, "--model", clipn_folder, *arguments)
    assert (code, out) == (1, "")
    assert re.match(r"Error: [A-Z`]", err)
    assert err.endswith(".\n")
    assert len(err.splitlines()) == 1
    assert message in err


def test_models_that_cannot_be_used(
    run: Command, images: Path, clip_folder: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    def error(model: object) -> str:
        code, out, err = run("detect", images, "--labels", LABELS, "--model", model)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        return err

    assert 'needs a CLIPN model with a "no" text encoder, got CLIPModel' in error(clip_folder)
    assert "There is no folder" in error(tmp_path / "gone")
    weights = load_file(clipn_folder / "model.safetensors")
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clipn_folder / name).read_bytes())
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights of CLIPNModel: visual_projection.weight" in error(tmp_path)


@pytest.mark.parametrize("subcommand", ["detect", "info"])
def test_damaged_models_are_one_line(clipn_folder: Path, images: Path, tmp_path: Path, subcommand: str) -> None:
    """In processes of their own, because transformers reports of its own accord on what does not fit."""
    arguments = [images, "--labels", LABELS, "--model", tmp_path] if subcommand == "detect" else [tmp_path]
    weights = (clipn_folder / "model.safetensors").read_bytes()
    config = json.loads((clipn_folder / "config.json").read_text())
    for content, projection_dim, message in (
        (weights[:-10], config["projection_dim"], "cannot be read: "),
        (weights, config["projection_dim"] + 8, "has weights of other shapes than its configuration: "),
    ):
        shutil.copytree(clipn_folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.safetensors").write_bytes(content)
        (tmp_path / "config.json").write_text(json.dumps({**config, "projection_dim": projection_dim}))
        command = [sys.executable, "-m", "clipn_hf", subcommand, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: The checkpoint {tmp_path} {message}")
        assert line.endswith("Download or save it again.")


def test_a_model_without_tokenizer_is_refused(run: Command, images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    code, out, err = run("detect", images, "--labels", LABELS, "--model", tmp_path)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "The tokenizer does not fit the CLIPNModel: it has " in err
    assert "Put tokenizer.json and tokenizer_config.json" in err


def test_no_images(run: Command, images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    images.rename(tmp_path / "outer" / "inner")
    code, _, err = run("detect", tmp_path / "outer", "--labels", LABELS, "--model", clipn_folder)
    assert code == 1
    assert "add --recursive" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["detect", "--labels", "a,b"],
        ["detect", "a.png"],
        ["detect", "a.png", "--labels", "a,b", "--labels-file", "labels.txt"],
        ["detect", "a.png", "--labels", "a,b", "--format", "xml"],
        ["detect", "a.png", "--labels", "a,b", "--batch-size", "0"],
        ["detect", "a.png", "--labels", "a,b", "--top-k", "0"],
        ["detect", "a.png", "--labels", "a,b", "--threshold", "high"],
        ["detect", "a.png", "--labels", "a,b", "--color"],
        ["calibrate", "--labels", "a,b", "--output", "x"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--guess"],
        ["calibrate", "--labels", "a,b", "--output", "x", "--guess", "--max-id-rejection", "0.05"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--rule", "quantile", "--delta", "0.1"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--rule", "text"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--max-ood-acceptance", "0.1"],
        ["fly"],
        ["convert", "a.pt"],
    ],
)
def test_wrong_usage(run: Command, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


def test_an_error_on_the_way_leaves_no_file_and_keeps_the_old_one(
    run: Command, images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results.jsonl"
    output.write_text("old")
    seen: list[list[str]] = []
    original = OODDetector.results

    def fail_later(self: OODDetector, *arguments: Any) -> Any:
        if seen:
            raise RuntimeError("out of\nmemory")
        seen.append(leftovers(tmp_path))
        return original(self, *arguments)

    monkeypatch.setattr(OODDetector, "results", fail_later)
    code, _, err = run(
        *("detect", images, "-r", "--labels", LABELS, "--model", clipn_folder),
        *("--output", output, "--batch-size", 2, "--contact-sheet", tmp_path / "sheet.png"),
    )
    assert (code, err) == (1, "Error: out of memory\n")
    assert len(seen[0]) == 1
    assert output.read_text() == "old"
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "sheet.png").exists()


# Real processes


def test_as_a_process(bad_images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    """The names of files need be no text, and neither need the terminal know its letters."""
    name = os.fsencode(bad_images) + b"/caf\xe9.png"
    with open(name, "wb") as file:
        file.write((bad_images / "0.png").read_bytes())
    output = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "clipn_hf", "detect", bad_images, "--recursive", "--labels", LABELS]
    process = subprocess.run(
        [*command, "--model", clipn_folder, "--output", output],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    errors = process.stderr.decode("ascii")
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("10 images: ")
    records = read_jsonl(output.read_text(encoding="utf-8"))
    assert os.fsdecode(name) in [record["file"] for record in records]
    assert sum("error" in record for record in records) == 4
    assert process.stdout == b""


@pytest.fixture
def slow_server() -> Iterator[tuple[str, threading.Event]]:
    """An address that never answers, and the event that it was asked."""
    asked, finished = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            finished.wait()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/a.png", asked
        finished.set()
        server.shutdown()
        thread.join()


def test_a_killed_process_leaves_no_output(
    images: Path, clipn_folder: Path, tmp_path: Path, slow_server: tuple[str, threading.Event]
) -> None:
    address, asked = slow_server
    output = tmp_path / "results.csv"
    command = [sys.executable, "-m", "clipn_hf", "detect", images, address, "--labels", LABELS, "--batch-size", "1"]
    with subprocess.Popen(
        [*command, "--model", clipn_folder, "--output", output],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "no_proxy": "127.0.0.1"},
    ) as process:
        assert asked.wait(timeout=300)
        assert len(leftovers(tmp_path)) == 1
        assert not output.exists()
        process.kill()
    assert not output.exists()


# The other commands


def test_methods_lists_the_table(run: Command) -> None:
    code, out, _ = run("methods")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for name, method in METHODS.items():
        assert method.title in lines[name]
        assert method.reference in lines[name]
        assert ("CLIPN" in lines[name]) == ("no" in method.needs)
        assert all(f"{setting}={value}" in lines[name] for setting, value in method.settings.items())


@pytest.fixture
def many_images(tmp_path: Path) -> Path:
    """Forty-eight images that differ, a half of them in each of two folders called by labels."""
    for seed in range(48):
        folder = tmp_path / "many" / ("cat", "dog")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(100 + seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / f"{seed:02}.png")
    return tmp_path / "many"


@pytest.mark.parametrize("method", ["mcm", "nearest_neighbors", "relative_mahalanobis"])
def test_calibrate_and_detect_with_the_detector(
    run: Command, images: Path, many_images: Path, clipn_folder: Path, tmp_path: Path, method: str
) -> None:
    output = tmp_path / "detector"
    fitted = METHODS[method].fit is not None
    fit_on = ("--fit-on", many_images / "cat", "--fit-on", many_images / "dog") if fitted else ()
    calibration_images = [tmp_path / "other" / f"{seed}.png" for seed in range(20)]
    calibration_images[0].parent.mkdir()
    for seed, file in enumerate(calibration_images):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file)
    code, out, err = run(
        "calibrate", tmp_path / "other", "--labels", "cat,dog", "--model", clipn_folder, "--method", method,
        "--max-id-rejection", 0.1, "--output", output, *fit_on,
    )  # fmt: skip
    assert code == 0, err
    assert "from 20 images" in out
    assert "At most 10 % of new ID images" in err

    detector = OODDetector.from_pretrained(output)
    assert (detector.labels, detector.method.name) == (["cat", "dog"], method)
    assert detector.calibration is not None and detector.calibration.n == 20
    assert (detector.fitted_on is not None) == fitted
    code, out, err = run("detect", images, "-r", "--detector", output, "--format", "jsonl")
    assert code == 0, err
    records = read_jsonl(out)
    assert [record["threshold"] for record in records] == [detector.threshold] * 5
    assert [record["promise"] for record in records] == [detector.calibration.promise] * 5
    expected = detector.score([record["file"] for record in records]).tolist()
    assert [record["ood_score"] for record in records] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert detector.calibration.promise in " ".join(err.split())
    # Another threshold is nobody's promise.
    code, out, err = run("detect", images, "--detector", output, "--format", "jsonl", "--threshold", -1e9)
    assert {record["verdict"] for record in read_jsonl(out)} == {"unknown"}
    assert {record["promise"] for record in read_jsonl(out)} == {None}


def test_three_answers(run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    output, sheet = tmp_path / "detector", tmp_path / "sheet.png"
    code, _, err = run(
        "calibrate", many_images / "cat", "--labels", LABELS, "--model", clipn_folder, "--output", output,
        "--max-id-rejection", 0.1, "--unknown", many_images / "dog", "--max-ood-acceptance", 0.1,
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run(
        "detect", many_images, "-r", "--detector", output, "--contact-sheet", sheet, "--format", "csv"
    )
    assert code == 0, err
    verdicts = [row["verdict"] for row in csv.DictReader(out.splitlines())]
    assert {"known", "unsure", "unknown"} == set(verdicts)
    assert sheet.exists()
    code, out, _ = run("info", output)
    assert code == 0
    assert f"known below {OODDetector.from_pretrained(output).calibration.known_below:.6g}" in out


def test_the_table_of_a_calibrated_detector_has_p_values(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "detector"
    options = ("--labels", LABELS, "--model", clipn_folder, "--method", "mcm", "--output", output)
    assert run("calibrate", many_images / "cat", *options).code == 0
    code, out, _ = run("detect", many_images / "dog", "--detector", output)
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split() == ["verdict", "OOD", "score", "p-value", "nearest", "label", "prob.", "file"]
    detector = OODDetector.from_pretrained(output)
    files = sorted(map(str, (many_images / "dog").iterdir()))
    assert [float(row.split()[2]) for row in rows] == pytest.approx(detector.p_values(files).tolist(), abs=1e-4)
    assert [row.index(str(many_images)) for row in rows] == len(rows) * [header.index("file")]
    # A guess has no calibration images to compare with.
    assert run("calibrate", *options, "--guess").code == 0
    assert "p-value" not in run("detect", many_images / "dog", "--detector", output).out


def test_a_threshold_per_label(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the embedded checkpoint, because a random one may find one label nearest to all images."""
    monkeypatch.setenv("COLUMNS", "200")
    output, samples = tmp_path / "detector", Path(cli.__file__).parent / "samples"
    labels = ["fish", "cat face"]
    files = sorted(map(str, samples.glob("*.jpg")))
    nearest = OODDetector(None, labels, "mcm").predict(files).tolist()
    assert set(nearest) == {0, 1}
    code, out, err = run(
        "calibrate", samples, "--labels", ",".join(labels), "--output", output, "--method", "mcm", "--per-label",
        "--rule", "quantile",
    )  # fmt: skip
    assert code == 0, err
    calibration = OODDetector.from_pretrained(output).calibration
    assert calibration is not None and len(calibration.groups) == 2
    thresholds = sorted(group.threshold for group in calibration.groups)
    range_ = f"{thresholds[0]:.6g} to {thresholds[1]:.6g} by label"
    assert out.startswith(f"Threshold {range_}, from 40 images\n")
    for group in calibration.groups:
        assert group.n == nearest.count(labels.index(group.label))
        assert f"  {group.label:<8}  {group.threshold:.6g} ({group.n} images)\n" in out
    shown = run("info", output).out
    assert range_ in shown and f"{group.label:<8}  {group.threshold:.6g}" in shown
    assert records.describe_threshold(calibration.threshold, calibration) == f"threshold {range_}"


def test_info_of_a_detector(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    output = tmp_path / "detector"
    labels = [f"thing {number}" for number in range(12)]

    def rows() -> dict[str, str]:
        code, out, _ = run("info", output)
        assert code == 0
        lines = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in out.splitlines() if line[0] != " "]
        return dict(lines)

    code, _, err = run(
        "calibrate", many_images / "cat", "--fit-on", many_images / "dog", "--labels", ",".join(labels), "--model",
        clipn_folder, "--method", "nearest_neighbors", "--setting", "k=2", "--output", output, "--template", "a {}.",
    )  # fmt: skip
    assert code == 0, err
    detector = OODDetector.from_pretrained(output)
    assert detector.calibration is not None and detector.fitted_on is not None
    shown = rows()
    assert shown["detector"] == str(output)
    assert shown["labels"] == f"12: {', '.join(labels[:10])} and 2 more"
    assert shown["method"] == "nearest_neighbors, Nearest neighbors"
    assert shown["settings"] == "k=2, reduction=mean"
    assert shown["fitted on"] == f"24 images, {detector.fitted_on['date']}"
    assert shown["threshold"] == f"{detector.threshold:.6g}"
    assert shown["promise"] == detector.calibration.promise
    assert shown["calibrated on"] == f"24 images, {detector.calibration.date}"
    assert shown["templates"] == "a {}."
    assert shown["model"] == "CLIPNModel, type clipn"
    for threshold, expected in ((0.5, ("0.5", "none, the threshold was set by hand")), (None, ("none, no verdicts",))):
        detector.threshold = threshold
        detector.save_pretrained(output)
        shown = rows()
        assert tuple(shown[name] for name in ("threshold", "promise") if name in shown) == expected
    OODDetector(clipn_folder, labels).save_pretrained(output)
    shown = rows()
    assert shown["threshold"] == "none, the rule of the method decides"
    assert not {"settings", "fitted on", "promise"} & shown.keys()


def test_a_guess(
    run: Command, images: Path, clipn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "detector"
    options = ("calibrate", "--labels", LABELS, "--model", clipn_folder, "--output", output, "--guess")
    code, _, err = run(*options)
    assert (code, err) == (
        1,
        "Error: The scores of method atd cannot be guessed from texts; use --method mcm or msp.\n",
    )
    code, out, _ = run(*options, "--method", "mcm")
    assert code == 0
    detector = OODDetector(clipn_folder, LABELS.split(","), "mcm")
    threshold = detector.guess_threshold().threshold
    assert out.startswith(f"Threshold {threshold:.6g}, from the texts of 3 labels\n")
    assert "No promise at all" in caplog.text
    code, _, err = run("detect", images, "--detector", output)
    assert code == 0
    assert "No promise at all" in err


def test_calibration_counts_what_cannot_be_read(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    bad, copies = tmp_path / "bad", tmp_path / "copies"
    for folder in (bad, copies):
        folder.mkdir()
    (bad / "empty.png").touch()
    (bad / "letter.jpg").write_text("Hello")
    shutil.copy(many_images / "cat" / "00.png", copies)
    output = tmp_path / "detector"
    code, _, err = run(
        "calibrate", many_images / "cat", bad, copies, "--labels", LABELS, "--model", clipn_folder, "--method",
        "nearest_neighbors", "--fit-on", many_images / "dog", "--fit-on", bad, "--output", output,
    )  # fmt: skip
    assert code == 3, err
    assert "1 of 25 images are copies of others" in err
    assert err.splitlines()[-1] == "Left out: 4 images that could not be read"
    calibration = OODDetector.from_pretrained(output).calibration
    assert calibration is not None and calibration.n == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--max-id-rejection", "0.01"),
            "of at most 1 % needs at least 99 images of known things, got 48; give more, "
            "a larger `--max-id-rejection`, or `--rule quantile`",
        ),
        (("--max-id-rejection", "1"), "`--max-id-rejection` must be between 0 and 1"),
        (("--delta", "nan"), "`--delta` must be between 0 and 1"),
        (("--unknown", "{}/cat", "--max-ood-acceptance", "0"), "`--max-ood-acceptance` must be between 0 and 1"),
        (("--unknown", "{}/cat"), "--unknown has 24 of the 48 images of PATH, too"),
        (
            ("--unknown", "{}/../other"),
            "needs at least 19 images of unknown things, got 1; give more, a larger `--max-ood-acceptance`",
        ),
        (
            ("--per-label", "--labels", "cat,dog,bird"),
            "`--per-label` needs at least 19 images nearest to each label, but ",
        ),
        (("--method", "nearest_neighbors"), "Method nearest_neighbors is fitted on images; name some by --fit-on"),
        (("--method", "mahalanobis", "--fit-on", "{}", "--setting", "tied=yes"), "`--setting tied` must be true or"),
        (("--method", "mahalanobis", "--fit-on", "{}", "--setting", "shrinkage=2"), "`--setting shrinkage` does not"),
        (("--method", "nearest_neighbors", "--fit-on", "{}", "--setting", "k=99"), "`--setting k` does not fit: `k` "),
        (("--method", "mcm", "--fit-on", "{}"), "Method mcm learns nothing from images; leave out --fit-on."),
        (("--method", "nearest_neighbors", "--fit-on", "{}"), "--fit-on has 48 of the 48 images of PATH"),
        (
            ("--method", "mahalanobis", "--labels", "cat,bird", "--fit-on", "{}"),
            "lies in the folder dog, which is not",
        ),
        (("--method", "mahalanobis", "--labels", "cat,dog,hen", "--fit-on", "{}"), "for 1 of 3 labels: hen."),
        (("--output", "{}/cat/01.png"), "is a file; name a folder"),
    ],
)
def test_a_detector_that_cannot_be_made(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (many_images / "cat" / "01.png").write_bytes((many_images / "cat" / "00.png").read_bytes())
    (many_images / "cat" / "00.png").unlink()
    (tmp_path / "other").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "0.png")
    options = [argument.format(many_images) for argument in arguments]
    output = tmp_path / "detector"
    code, _, err = run(
        "calibrate", many_images, "-r", "--labels", "cat,dog", "--model", clipn_folder, "--output", output, *options
    )
    assert code == 1
    assert message in err
    assert not output.exists()


def test_a_detector_leaves_nothing_else_to_say(run: Command, images: Path, tmp_path: Path) -> None:
    code, _, err = run("detect", images, "--detector", tmp_path, "--labels", LABELS, "--method", "mcm")
    assert code == 2
    assert "leave out --labels and --method" in " ".join(err.replace("│", " ").split())
    code, _, err = run("detect", images, "--detector", tmp_path, "--labels", LABELS, "--setting", "temperature=1")
    assert code == 2
    assert "leave out --labels and --setting" in " ".join(err.replace("│", " ").split())
    code, _, err = run("detect", images, "--detector", tmp_path)
    assert code == 1
    assert "There is no detector at" in err
    assert "`clipn-hf calibrate` made" in err and "OODDetector" not in err
    code, _, err = run("detect", images, "--detector", tmp_path / "gone")
    assert code == 1
    assert "name one with a detector, or the id of a detector on the Hub" in err


def test_a_detector_that_was_never_fitted(run: Command, images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    OODDetector(clipn_folder, ["cat", "dog"], "mahalanobis").save_pretrained(tmp_path / "detector")
    code, out, err = run("detect", images, "--detector", tmp_path / "detector")
    assert (code, out) == (1, "")
    assert "`clipn-hf calibrate --method mahalanobis --fit-on PATH`" in err


def test_info(run: Command, clip_folder: Path, clipn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("info", clipn_folder)
    assert code == 0
    rows = dict(line.split("  ", 1) for line in out.splitlines() if not line.startswith(" "))
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["checkpoint"] == str(clipn_folder)
    assert rows["model"] == "CLIPNModel, type clipn"
    assert rows["image encoder"] == "2 layers of width 32 (MLP 64), 32 × 32 pixels in patches of 8"
    assert rows['"no" prompts'] == "learnable, 16"
    assert rows["stored as"] == "float32"
    assert float(rows["logit scale"]) > 1
    assert rows["methods"] == ", ".join(METHODS)
    assert "not served" not in rows
    code, out, _ = run("info", clip_folder)
    assert code == 0
    assert "CLIPModel, type clip" in out
    assert "mcm, msp, max_logit, energy" in out
    assert 'Method atd needs a CLIPN model with a "no" text encoder' in out
    for gone in (clip_folder / "gone", "./gone", "~/gone", "a/b/gone"):
        code, _, err = run("info", gone)
        assert (code, err) == (
            1,
            f"Error: There is no folder {gone}; name one with a model, or the id of a model on the Hub.\n",
        )


def test_convert(run: Command, tmp_path: Path) -> None:
    source = Path(__file__).parent / "data" / "clipn_official.state_dict.safetensors"
    code, out, _ = run("convert", source, tmp_path / "converted", "--vision-heads", 4, "--text-heads", 4)
    assert code == 0
    assert "learnable" in out
    assert "no processor was named" in out
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    options = ("convert", source, tmp_path / "converted", "--vision-heads", 4, "--text-heads", 4)
    code, _, err = run(*options)
    assert code == 1
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert run(*options, "--overwrite").code == 0
    options = (*options[:2], tmp_path / "quick", *options[3:], "--activation", "quick_gelu")
    templates = (
        "--template",
        "a {}.",
        "--template",
        "the {}.",
        "--no-template",
        "no {}.",
        "--no-template",
        "not the {}.",
    )
    assert run(*options, *templates).code == 0
    config = json.loads((tmp_path / "quick" / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["hidden_act"] == "quick_gelu"
    assert config["templates"] == ["a {}.", "the {}."]
    assert config["no_templates"] == ["no {}.", "not the {}."]
    for bad, message in (
        (("--template", "an icon"), "`templates[0]` must contain"),
        (("--no-template", "{} {}"), "`no_templates[0]` must contain"),
    ):
        code, _, err = run("convert", source, tmp_path / "bad", "--vision-heads", 4, "--text-heads", 4, *bad)
        assert (code, len(err.splitlines())) == (1, 1)
        assert err.startswith("Error: ")
        assert message in err
        assert not (tmp_path / "bad").exists()
    assert run(*options[:2], tmp_path / "other", "--activation", "relu").code == 2
    code, _, err = run("convert", tmp_path / "gone.pt", tmp_path / "other")
    assert (code, "gone.pt" in err) == (1, True)


# Cache


def test_cache_info_and_clear(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CLIPN_HF_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "200")
    assert run("cache", "info") == (0, f"0 bytes in {cache}\n", "")
    assert run("cache", "clear") == (0, f"There is nothing to delete in {cache}\n", "")

    store = FeatureStore("no_text", "0" * 64, cache, {"model": "a/model[red]", "settings": {"dtype": "torch.float32"}})
    store.add([bytes(32), b"1" * 32], np.zeros((2, 300), dtype=np.float32))
    store.flush()
    code, out, _ = run("cache", "info")
    assert code == 0
    heading, row, total = out.splitlines()
    assert heading.split() == ["of", "model", "dtype", "embeddings", "size"]
    assert row.split()[:5] == ['"no"', "texts", "a/model[red]", "float32", "2"]
    assert re.fullmatch(rf"[2-9]\.\d kB in {cache}", total)
    assert run("cache", "info", "--cache-dir", tmp_path / "other").out.startswith("0 bytes")

    def answer(text: str) -> Run:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return run("cache", "clear")

    for refusal in ("n\n", ""):
        assert answer(refusal).code == 1
        assert len(cache_info(cache).entries) == 1
    code, out, _ = answer("y\n")
    assert code == 0
    assert "Delete 2 embeddings (" in out and "Deleted 2 embeddings (" in out
    assert not list(cache.iterdir())
    store.flush()
    store = FeatureStore("image", "0" * 64, cache)
    store.add([bytes(32)], np.zeros((1, 3), dtype=np.float32))
    store.flush()
    code, out, _ = run("cache", "clear", "--yes", "--cache-dir", cache)
    assert code == 0
    assert out.startswith("Deleted 1 embeddings (")
    assert not cache_info(cache).entries


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (5 * 10**15, "5,000.0 TB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert cli._readable_size(size) == text
