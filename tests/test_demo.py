# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import functools
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from clipn_hf import demo
from clipn_hf.cli import main
from clipn_hf.demo import JudgedSample, demo_sheet, demo_table, describe_results, judge_samples
from clipn_hf.detector import OODResult


def sample(name: str, known: bool, is_ood: bool, score: float, label: str = "cat") -> JudgedSample:
    result = OODResult(is_ood=is_ood, ood_score=score, threshold=None, method="atd", label=label, score=0.5, labels=[])
    return JudgedSample(f"{name}.png", name, known, Image.new("RGB", (64, 64)), result)


SAMPLES = [
    sample("cat", known=True, is_ood=False, score=0.1),
    sample("dog", known=True, is_ood=False, score=0.2, label="cat"),
    sample("bird", known=True, is_ood=True, score=0.9),
    sample("car", known=False, is_ood=True, score=0.7),
]


def test_describe_results() -> None:
    assert describe_results(SAMPLES) == (
        "3 of 4 pictures told apart correctly",
        "In the list of labels: 2 of 3 recognised as known, 1 by the right label",
        "Not in the list of labels: 1 of 1 recognised as unknown",
    )


def test_table() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(demo_table(SAMPLES))
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["dog", "known", "known", "0.200", "cat", "50%", "✓"] in lines
    assert ["bird", "known", "unknown", "0.900", "cat", "50%", "✗"] in lines
    assert ["car", "unknown", "unknown", "0.700", "cat", "50%", "✓"] in lines
    assert ["Picture", "Truth", "Verdict", "OOD", "score", "Nearest", "label", "p"] in lines
    assert "3 of 4 pictures told apart correctly" in capture.get()


def test_table_fits_a_terminal_of_80_columns(clipn_folder: Path) -> None:
    samples = judge_samples(clipn_folder)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(demo_table(samples))
    assert "…" not in capture.get()
    for sample in samples:
        assert sum(line.lstrip().startswith(f"{sample.name}  ") for line in capture.get().splitlines()) == 1


def test_sheet_has_two_sections() -> None:
    sheet = demo_sheet(SAMPLES)
    assert sheet.mode == "RGB"
    # Two rows of three, the second with one picture only.
    assert sheet.height > demo_sheet(SAMPLES[:3]).height
    assert sheet.width == demo_sheet(SAMPLES[:3]).width


def test_samples_are_judged_and_sorted(clipn_folder: Path) -> None:
    samples = judge_samples(clipn_folder)
    truth = json.loads(Path(demo.SAMPLES, "samples.json").read_text(encoding="utf-8"))
    assert {(s.file, s.name, s.known) for s in samples} == {
        (image["file"], image["name"], image["known"]) for image in truth["images"]
    }
    assert all(s.known == (s.name in truth["labels"]) for s in samples)
    assert {s.result["label"] for s in samples} <= set(truth["labels"])
    assert samples == sorted(samples, key=lambda s: (not s.known, s.result["ood_score"]))
    assert {s.known for s in samples} == {True, False}


def test_command(
    clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "judge_samples", functools.partial(judge_samples, clipn_folder))
    picture = tmp_path / "demo.png"
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--output", str(picture)])
    assert not exit_.value.code
    output = capsys.readouterr().out
    assert "told apart correctly" in output
    assert output.rstrip().endswith(str(picture))
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 1000


def test_the_embedded_checkpoint_tells_the_samples_apart() -> None:
    samples = judge_samples()
    assert len(samples) == 40
    assert sum(s.correct for s in samples) >= 35
    for known in (True, False):
        group = [s.correct for s in samples if s.known is known]
        assert sum(group) / len(group) > 0.5
