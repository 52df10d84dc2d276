# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `detect`."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from clipn_hf import OODDetector, cli_detection, cli_options, records
from clipn_hf.evaluation import contact_sheet

if TYPE_CHECKING:
    from conftest import Command

LABELS = "cat,dog,bird"
NAMES = ["0.png", "1 two.jpg", "deep/5.webp", "z-猫.png", "Ärger.png"]


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
    found = cli_options.read_value(word)
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


def test_images_that_a_method_changes_reach_the_detector(run: Command, images: Path, clipn_folder: Path) -> None:
    options = ("--labels", LABELS, "--model", clipn_folder, "--method", "odin", "--setting", "magnitude=0.02")
    code, out, _ = run("detect", images, "-r", *options, "--format", "jsonl", "--batch-size", 2)
    assert code == 0
    expected = OODDetector(str(clipn_folder), LABELS.split(","), "odin", magnitude=0.02)
    found = [record["ood_score"] for record in read_jsonl(out)]
    assert found == pytest.approx(expected.score([str(images / name) for name in NAMES]).tolist(), rel=1e-4, abs=1e-4)
    code, _, err = run("detect", images, *options[:-1], "magnitude=big")
    assert code == 1
    assert "`--setting magnitude` does not fit: `magnitude` must be a number, got str 'big'" in err


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
    for module in (cli_detection, records):
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


def test_an_error_on_the_way_leaves_no_file_and_keeps_the_old_one(
    run: Command, images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results.jsonl"
    output.write_text("old")
    seen: list[list[str]] = []
    original = OODDetector.results

    def fail_later(self: OODDetector, *arguments: Any, **options: Any) -> Any:
        if seen:
            raise RuntimeError("out of\nmemory")
        seen.append(leftovers(tmp_path))
        return original(self, *arguments, **options)

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
