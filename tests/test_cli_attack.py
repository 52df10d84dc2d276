# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `attack`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.evaluation.robustness import DEFENCES

if TYPE_CHECKING:
    from conftest import Command

FAST = ("--steps", 3)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Eight more images that differ, a half of them in each of two folders called by labels."""
    for seed in range(8):
        folder = tmp_path / "known" / ("cat", "dog")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(200 + seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / f"{seed:02}.png")
    return tmp_path / "known"


def read_report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def test_images_without_a_detector(
    run: "Command", images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "attack"
    code, out, err = run(
        "attack", images, "--target", known, "--model", clip_folder, *FAST, "--output", output
    )  # fmt: skip
    assert code == 0, err
    assert "smooth-5000: 5 images, cosine with the target" in out and "patchy: 5 images" in out
    assert "AUROC" not in out
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    report = read_report(output)
    records = report["adversarial_images"]
    assert len(records) == 10
    assert names == {
        "report.md", "report.json", "similarities.png", "smooth-5000.png", "patchy.png",
        *(record["adversarial"] for record in records),
    }  # fmt: skip
    assert not list(tmp_path.glob(".*"))
    # The pictures are what the report says of them.
    encoder = DualEncoder.from_pretrained(clip_folder, device="cpu")
    for record in records:
        saved = output / record["adversarial"]
        with Image.open(saved) as picture:
            assert (picture.size, picture.mode) == ((32, 32), "RGB")
        embeddings = encoder.image_embeddings(encoder.prepare_images([saved, record["target"]]))
        assert float(embeddings[0] @ embeddings[1]) == pytest.approx(record["saved_similarity"], abs=1e-4)
        assert "score" not in record
        assert Path(record["file"]).exists()
    text = (output / "report.md").read_text(encoding="utf-8")
    assert "| patchy | 0 | 3 |" in text and "![similarities](similarities.png)" in text
    assert [attack["settings"]["seed"] for attack in report["attacks"]] == [0, 0]
    # What was attacked, and by what.
    assert report["model"]["weights_sha256"] == encoder.describe()["weights_sha256"]
    assert report["model"]["dtype"] == "float32" and report["model"]["id"] == clip_folder.name
    assert {"clipn_hf", "torch"} <= report["versions"].keys()
    assert f"Model CLIPModel of {clip_folder.name}, float32." in text and str(clip_folder) not in text
    assert "The smoothness of 5000 is made for images of 224 pixels. On these of 32" in text


def paired(output: Path) -> list[tuple[str, str]]:
    """Images and targets, by the names of their files."""
    records = read_report(output)["adversarial_images"]
    return [(Path(record["file"]).name, Path(record["target"]).name) for record in records]


def test_images_are_paired_with_targets_as_they_are_named(
    run: "Command", images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    options = ("--model", clip_folder, "--smoothness", 0, *FAST, "--output")
    code, _, err = run(
        "attack", images / "z-猫.png", images / "0.png", images / "1 two.jpg", "--target", known / "dog" / "05.png",
        "--target", known / "cat" / "06.png", "--target", known / "dog" / "05.png", *options, tmp_path / "one",
    )  # fmt: skip
    assert code == 0, err
    assert paired(tmp_path / "one") == [("z-猫.png", "05.png"), ("0.png", "06.png"), ("1 two.jpg", "05.png")]
    # What is in a folder is sorted, in the place of the folder.
    code, _, err = run(
        "attack", images / "0.png", images / "1 two.jpg", images / "z-猫.png", images / "0.png", images / "1 two.jpg",
        "--target", known / "dog", "--target", known / "cat" / "02.png", *options, tmp_path / "two",
    )  # fmt: skip
    assert code == 0, err
    assert [target for _, target in paired(tmp_path / "two")] == ["01.png", "03.png", "05.png", "07.png", "02.png"]
    assert [file for file, _ in paired(tmp_path / "two")] == ["0.png", "1 two.jpg", "z-猫.png", "0.png", "1 two.jpg"]


def test_a_pair_is_left_out_as_a_whole(
    run: "Command", images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """So that an image is not pulled to the target of another one."""
    (images / "broken.png").write_text("no picture")
    (known / "cat" / "empty.png").touch()
    files = [images / "broken.png", images / "0.png", images / "1 two.jpg", images / "z-猫.png"]
    targets = [known / "dog" / "01.png", known / "cat" / "empty.png", *sorted((known / "cat").glob("0*.png"))[:2]]
    given = [part for target in targets for part in ("--target", target)]
    options = ("--model", clip_folder, "--smoothness", 0, *FAST, "--output")
    code, _, err = run("attack", *files, *given, *options, tmp_path / "attack")
    assert code == 3
    assert "Left out: 2 images that could not be read, and 2 images paired with such" in err
    assert paired(tmp_path / "attack") == [("1 two.jpg", "00.png"), ("z-猫.png", "02.png")]
    code, _, err = run("attack", *files[:2], *given[:4], *options, tmp_path / "none")
    assert code == 1
    assert "Of none of 2 pairs of image and target both can be read." in err


def test_settings_of_the_attack_and_defences(
    run: "Command", images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run(
        "attack", images, "--target", known / "cat", "--labels", "cat,dog", "--method", "mcm", "--id", known / "dog",
        "--model", clip_folder, "--smoothness", 0, "--lr", 0.01, "--init-std", 0, "--defence", "jpeg", *FAST,
        "--output", tmp_path / "attack",
    )  # fmt: skip
    assert code == 0, err
    report = read_report(tmp_path / "attack")
    settings = report["attacks"][0]["settings"]
    assert settings == {"steps": 3, "lr": 0.01, "init_std": 0.0, "smoothness": 0.0, "seed": 0}
    assert [row["defence"] for row in report["rows"]] == ["none", "none", "jpeg", "jpeg"]
    assert report["detector"]["method"] == "mcm" and report["detector"]["model"]["id"] == clip_folder.name
    assert "higher = more OOD" in (tmp_path / "attack" / "report.md").read_text(encoding="utf-8")


def test_defences_are_those_of_the_report() -> None:
    from clipn_hf.cli_attack import DEFENCES as named

    assert named == tuple(DEFENCES)


def test_pictures_say_what_they_show(
    run: "Command",
    images: Path,
    known: Path,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from clipn_hf.evaluation import adversarial_pictures

    titles, draw = [], adversarial_pictures.side_by_side

    def note(*arguments: Any, title: str, **others: Any) -> Image.Image:
        titles.append(title)
        return draw(*arguments, title=title, **others)

    monkeypatch.setattr(adversarial_pictures, "side_by_side", note)
    common = ("attack", images, "--target", known, "--model", clip_folder, *FAST, "--output")
    code, _, err = run(*common, tmp_path / "one", "--labels", "cat,dog", "--method", "mcm", "--smoothness", 0)
    assert code == 0, err
    code, _, err = run(*common, tmp_path / "two")
    assert code == 0, err
    name = f"CLIPModel of {clip_folder.name}"
    assert titles == [
        f"patchy attack on {name}; scores of mcm", f"smooth-5000 attack on {name}", f"patchy attack on {name}"
    ]  # fmt: skip


def test_the_report_on_a_fitted_method(
    run: "Command", images: Path, many_images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "attack"
    code, out, err = run(
        "attack", images, "--target", known, "--labels", "cat,dog", "--method", "relative_mahalanobis",
        "--fit-on", many_images, "--id", known.parent / "id", "--smoothness", 0, "--model", clip_folder, *FAST,
        "--output", output,
    )  # fmt: skip
    assert code == 1
    assert not output.exists()
    own = tmp_path / "id"
    own.mkdir()
    for seed in range(6):
        pixels = np.random.default_rng(300 + seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(own / f"{seed:02}.png")
    code, out, err = run(
        "attack", images, "--target", known, "--labels", "cat,dog", "--method", "relative_mahalanobis",
        "--fit-on", many_images, "--id", own, "--smoothness", 0, "--model", clip_folder, *FAST, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    assert "(with targets)" in out
    report = read_report(output)
    assert report["images"] == {
        "ID": 6, "OOD": 5, "targets": 5, "to fit on": 48, "targets among these": 0,
        "fitted on with targets": 53, "fitted on without": 48,
    }  # fmt: skip
    assert {row["bank"] for row in report["rows"]} == {"with targets", "without targets"}
    assert {row["defence"] for row in report["rows"]} == {"none", *DEFENCES}
    assert {row["attack"] for row in report["rows"]} == {"none", "patchy"}
    # Scores stand beside the images, too.
    detector = OODDetector(str(clip_folder), ["cat", "dog"], "relative_mahalanobis", device="cpu")
    used = sorted({record["target"] for record in report["adversarial_images"]})
    files = [*sorted(map(str, many_images.rglob("*.png"))), *used]
    detector.fit(files, [Path(file).parent.name for file in files])
    for record in report["adversarial_images"]:
        scores = detector.score([record["file"], output / record["adversarial"]]).tolist()
        assert [record["score"], record["adversarial_score"]] == pytest.approx(scores, rel=1e-3, abs=1e-3)
    assert "| with targets | jpeg |" in (output / "report.md").read_text(encoding="utf-8")


def test_a_saved_detector(
    run: "Command",
    images: Path,
    many_images: Path,
    known: Path,
    clip_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, output = known.parent / "detector", known.parent / "attack"
    code, _, err = run(
        "calibrate", known, "-r", "--labels", "cat,dog", "--model", clip_folder, "--method", "nearest_neighbors",
        "--fit-on", many_images, "--rule", "quantile", "--output", folder,
    )  # fmt: skip
    assert code == 0, err
    common = ("attack", images, "--target", many_images, "--detector", folder, "--smoothness", 0, *FAST)
    # Images are found at every depth wherever they are named.
    code, out, err = run(*common, "--id", known, "--output", output)
    assert code == 0, err
    report = read_report(output)
    assert {row["bank"] for row in report["rows"]} == {"as fitted"}
    assert all(row["called_known"] is not None for row in report["rows"])
    assert report["images"]["ID"] == 8
    assert report["images"]["targets that the detector was fitted on"] == 5
    assert "With 8 ID and 5 OOD images there are no intervals" in caplog.text
    assert all(row["auroc"]["low"] is None for row in report["rows"])
    # Without ID images there are scores alone.
    code, out, err = run(*common, "--output", known.parent / "other")
    assert code == 0, err
    report = read_report(known.parent / "other")
    assert "rows" not in report and "AUROC" not in out
    assert report["detector"]["fitted_on"]["images"] == 48
    assert report["detector"]["templates"] and report["detector"]["labels"] == ["cat", "dog"]
    text = (known.parent / "other" / "report.md").read_text(encoding="utf-8")
    assert "Method nearest_neighbors" in text
    detector = OODDetector.from_pretrained(folder, device="cpu")
    files = [record["file"] for record in report["adversarial_images"]]
    expected = detector.score(files).tolist()
    assert [record["score"] for record in report["adversarial_images"]] == pytest.approx(expected, abs=1e-4)


def test_what_is_refused_before_the_attack(
    run: "Command",
    images: Path,
    many_images: Path,
    known: Path,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from clipn_hf.evaluation import adversarial, robustness

    monkeypatch.setattr(adversarial, "adversarial_ood", None)
    monkeypatch.setattr(robustness, "adversarial_ood", None)
    common = (
        "attack", images, "--labels", "cat,dog", "--model", clip_folder, "--smoothness", 0, *FAST,
        "--output", tmp_path / "attack",
    )  # fmt: skip
    probe = ("--method", "relative_mahalanobis", "--fit-on", known, "--id", many_images)
    code, _, err = run(*common, *probe, "--target", known / "cat")
    assert code == 1
    assert "Without the targets, --fit-on has no image of 'cat'; give targets of several labels" in err
    code, _, err = run(*common, "--method", "mcm", "--id", known, "--target", known / "cat")
    assert code == 1
    assert "--id has 4 of 8 images that are among --target, too" in err
    code, _, err = run(
        *common, "--method", "nearest_neighbors", "--fit-on", images, "--id", known, "--target", many_images
    )
    assert code == 1
    assert "PATH has 5 of 5 images that are among --fit-on, too" in err
    assert not (tmp_path / "attack").exists()


def test_images_are_not_pulled_to_themselves(run: "Command", images: Path, clip_folder: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "attack", images, "--target", images, "--model", clip_folder, *FAST, "--output", tmp_path / "attack"
    )
    assert code == 1
    assert "PATH has 5 of 5 images that are among --target, too" in err


def test_folders_tell_which_labels_are_lost(
    run: "Command",
    images: Path,
    many_images: Path,
    known: Path,
    clip_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, _, err = run(
        "attack", images, "--labels", "cat,dog", "--model", clip_folder, "--method", "nearest_neighbors",
        "--fit-on", known, "--id", many_images, "--target", known / "cat", "--smoothness", 5000, "--smoothness",
        5000.001, *FAST, "--defence", "jpeg", "--output", tmp_path / "attack",
    )  # fmt: skip
    assert code == 0, err
    assert "has no image of 'cat', so that what is fitted without them misses more" in caplog.text
    text = (tmp_path / "attack" / "report.md").read_text(encoding="utf-8")
    assert "8 fitted on with targets, 4 fitted on without." in text
    assert (tmp_path / "attack" / "smooth-5000.001").is_dir() and (tmp_path / "attack" / "smooth-5000").is_dir()
    assert f"model CLIPModel of {clip_folder.name}" in text


def test_a_method_that_is_fitted_for_scores_alone(
    run: "Command", images: Path, many_images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "attack"
    code, _, err = run(
        "attack", images, "--target", known, "--labels", "cat,dog", "--method", "nearest_neighbors", "--fit-on",
        many_images, "--model", clip_folder, "--smoothness", 0, *FAST, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    detector = OODDetector(str(clip_folder), ["cat", "dog"], "nearest_neighbors", device="cpu")
    detector.fit(sorted(map(str, many_images.rglob("*.png"))))
    records = read_report(output)["adversarial_images"]
    saved = [output / record["adversarial"] for record in records]
    expected = detector.score(saved).tolist()
    assert [record["adversarial_score"] for record in records] == pytest.approx(expected, abs=1e-4)


def test_unreadable_images_are_left_out(
    run: "Command", images: Path, known: Path, clip_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "attack"
    (images / "broken.png").write_text("no picture")
    (known / "cat" / "empty.png").touch()
    options = ("--target", known, "--model", clip_folder, "--smoothness", 0, *FAST, "--output", output)
    code, _, err = run("attack", images, *options)
    assert code == 3
    assert "broken.png: " in err and "empty.png: it is empty" in err
    assert "Left out: 2 images that could not be read" in err
    records = read_report(output)["adversarial_images"]
    assert len(records) == 5
    code, _, err = run("attack", images / "broken.png", *options[:-1], tmp_path / "other")
    assert code == 1
    assert "The only image cannot be read: " in err
    assert not (tmp_path / "other").exists()


def test_nothing_is_half_written(
    run: "Command",
    images: Path,
    known: Path,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from clipn_hf.evaluation import adversarial_pictures

    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device.")

    monkeypatch.setattr(adversarial_pictures, "side_by_side", fail)
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "attack"
    code, _, err = run("attack", images, "--target", known, "--model", clip_folder, *FAST, "--output", output)
    assert code == 1 and "No space left" in err
    assert sorted(tmp_path.iterdir()) == before


def test_without_matplotlib_there_is_no_plot(
    run: "Command",
    images: Path,
    known: Path,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = tmp_path / "attack"
    code, _, err = run(
        "attack", images, "--target", known, "--model", clip_folder, "--smoothness", 0, *FAST, "--output", output
    )
    assert code == 0
    assert "matplotlib" in err
    assert not (output / "similarities.png").exists()
    assert "similarities.png" not in (output / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 1, "has files already; name a new or empty folder"),
        (("--output", "{images}/0.png"), 1, "is a file; name a folder"),
        (("--output", "{images}/none/attack"), 1, "does not exist; make it first"),
        (("--output", "{new}", "--smoothness", -1), 1, "`--smoothness` must be finite and at least 0, got -1"),
        (("--output", "{new}", "--steps", 0), 2, "--steps"),
        (("--output", "{new}", "--lr", 0), 1, "`--lr` must be finite and above 0, got 0"),
        (("--output", "{new}", "--init-std", "nan"), 1, "`--init-std` must be finite and at least 0, got nan"),
        (("--output", "{new}", "--seed", 2**64, "--model", "{clip}"), 1, "--seed must be below 2**64"),
        (("--output", "{new}", "--defence", "jpeg"), 2, "leave out --defence"),
        (("--output", "{new}", "--detector", "here", "--defence", "jpeg"), 2, "name some by --id"),
        (
            ("--output", "{new}", "--labels", "cat", "--id", "{images}", "--defence", "prayer"),
            1,
            "`--defence` must be one of blur, jpeg, resize, got 'prayer'",
        ),
        (("--output", "{new}", "--method", "mcm"), 2, "leave out --method"),
        (("--output", "{new}", "--id", "{images}"), 2, "leave out --id"),
        (("--output", "{new}", "--detector", "here", "--labels", "cat"), 2, "leave out --labels"),
        (("--output", "{new}", "--labels", "cat", "--labels-file", "cat.txt"), 2, "Only one of the two"),
        (("--output", "{new}", "--labels", "cat,dog", "--method", "mcm", "--fit-on", "{images}"), 1, "learns nothing"),
        (("--output", "{new}", "--labels", "cat,dog", "--method", "nearest_neighbors"), 1, "name some by --fit-on"),
        (("--output", "{new}", "--detector", "{images}"), 1, "There is no detector at"),
        (("--output", "{new}", "--device", "toaster"), 1, "`--device` must be a device of torch"),
        (
            (
                *("--output", "{new}", "--labels", "cat,dog", "--method", "mahalanobis"),
                *("--fit-on", "{images}", "--model", "{clip}"),
            ),
            1,
            "lies in the folder images, which is not among the labels: cat, dog",
        ),
        (
            ("--output", "{new}", "--labels", "cat,dog", "--method", "mcm", "--id", "{images}", "--model", "{clip}"),
            1,
            "PATH has 4 of 4 images that are among --id, too",
        ),
    ],
)
def test_what_is_refused(
    run: "Command",
    images: Path,
    known: Path,
    clip_folder: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    (images / "deep" / "5.webp").rename(tmp_path / "5.webp")
    places = {"images": images, "new": tmp_path / "new", "clip": clip_folder}
    given = [str(option).format(**places) for option in options]
    if "--output" not in given:
        given += ["--output", str(images)]
    found, _, err = run("attack", images, "--target", known, *FAST, *given)
    assert found == code, err
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "new").exists()
