# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `calibrate`, and `detect` with what it makes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from clipn_hf import DualEncoder, OODDetector, cli, records
from clipn_hf.features import extract_features
from clipn_hf.methods import METHODS
from clipn_hf.probing import train_linear_probe

if TYPE_CHECKING:
    from conftest import Command

LABELS = "cat,dog,bird"


def read_jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("method", ["mcm", "nearest_neighbors", "relative_mahalanobis", "odin"])
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


def test_a_detector_of_a_probe_is_calibrated(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    cats, dogs = (sorted(map(str, (many_images / label).iterdir())) for label in ("cat", "dog"))
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    labels = ["cat"] * len(cats[:4]) + ["dog"] * len(dogs[:4])
    features = extract_features([*cats[:4], *dogs[:4]], encoder, labels=labels)
    probe = train_linear_probe(features, class_names=["cat", "dog"], epochs=2, device="cpu", progress=False)
    source, output = tmp_path / "probed", tmp_path / "calibrated"
    made = OODDetector.from_probe(encoder, probe, features)
    made.save_pretrained(source)
    code, _, err = run("calibrate", "--detector", source, *cats, "--output", output)
    assert code == 1
    assert f"The detector {source} was fitted on 4 of the 24 images of PATH" in err
    assert not output.exists()

    code, out, err = run("calibrate", "--detector", source, *cats[4:], "--output", output)
    assert code == 0, err
    assert "from 20 images" in out
    assert "does not know" not in err
    detector = OODDetector.from_pretrained(output)
    assert detector.calibration is not None and detector.calibration.n == 20
    assert detector.threshold == made.calibrate(cats[4:]).threshold
    assert (detector.labels, detector.fitted_on) == (made.labels, made.fitted_on)
    assert OODDetector.from_pretrained(source).threshold is None
    # Once more, to the same place and to another promise
    code, _, err = run("calibrate", "--detector", output, *dogs[4:], "--output", output, "--max-id-rejection", 0.2)
    assert code == 0, err
    again = OODDetector.from_pretrained(output).calibration
    assert again is not None and again.max_id_rejection == 0.2

    OODDetector.from_probe(encoder, probe).save_pretrained(source)
    code, _, err = run("calibrate", "--detector", source, *cats[4:], "--output", output)
    assert code == 0
    assert "The detector does not know which images its probe was trained on" in err


@pytest.mark.parametrize(
    "option",
    [
        ("--labels", "cat"), ("--labels-file", "cat.txt"), ("--model", "org/model"), ("--method", "mcm"),
        ("--setting", "k=1"), ("--template", "{}"), ("--no-template", "{}"), ("--negatives", "n.txt"),
        ("--fit-on", "photos"),
    ],
)  # fmt: skip
def test_a_detector_has_what_else_is_given(run: Command, tmp_path: Path, option: tuple[str, str]) -> None:
    code, _, err = run("calibrate", "--detector", tmp_path, "photos", "--output", tmp_path / "detector", *option)
    assert code == 2
    assert f"leave out {option[0]}" in " ".join(err.replace("│", " ").split())


def test_a_model_is_no_detector_to_calibrate(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run("calibrate", "--detector", clipn_folder, many_images, "--output", tmp_path / "detector")
    assert code == 1
    assert "There is no detector at" in err


def test_a_threshold_per_label_of_images_that_are_changed(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "detector"
    options = ("--labels", "cat,dog,bird,fish", "--model", clipn_folder, "--method", "odin", "--output", output)
    settings = ("--setting", "magnitude=0.3", "--setting", "temperature=1", "--max-id-rejection", 0.1)
    code, _, err = run("calibrate", many_images, "-r", *options, *settings, "--per-label")
    detector = OODDetector(str(clipn_folder), ["cat", "dog", "bird", "fish"], "odin", magnitude=0.3, temperature=1)
    nearest = detector.predict(sorted(map(str, many_images.rglob("*.png")))).bincount(minlength=4).tolist()
    assert code == 1
    lacking = [f"{label} ({count})" for label, count in zip(detector.labels, nearest, strict=True) if count < 9]
    assert lacking
    assert f"have fewer: {', '.join(lacking)}. Give more images" in " ".join(err.split())
    code, _, err = run("calibrate", many_images, "-r", *options, "--setting", "magnitude=-1")
    assert code == 1
    assert "`--setting magnitude` does not fit: `magnitude` must be finite and not negative" in " ".join(err.split())


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
