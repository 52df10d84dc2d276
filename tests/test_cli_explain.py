# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `explain`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import OODDetector, cli_explain, detector_explanations, heat_maps, similarity_maps
from clipn_hf.modeling import add_context_tokens

if TYPE_CHECKING:
    from conftest import Command

LABELS = "cat,dog,bird"


@pytest.fixture
def negatives(tmp_path: Path) -> Path:
    path = tmp_path / "negatives.txt"
    path.write_text("car\nmoon\n", encoding="utf-8")
    return path


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".partial" in path.name]


def read_jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_known_without_torch_is_right() -> None:
    assert get_args(get_type_hints(cli_explain.explain)["path"]) == similarity_maps.MAP_PATHS
    assert cli_explain.MAX_EXPLANATIONS == heat_maps.MAX_EXPLANATIONS


def test_picture_and_table(run: "Command", images: Path, clipn_folder: Path, negatives: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.png"
    code, out, err = run(
        *("explain", images / "0.png", "--labels", LABELS, "--model", clipn_folder, "--no", "--top-k", 2),
        *("--negatives", negatives, "--top-negatives", 1, "--out", output),
    )
    assert code == 0
    assert str(output) in err
    heading, columns, *rows = [line for line in out.splitlines() if line.strip()]
    assert heading.startswith(f"{images / '0.png'}: ")
    assert columns.split() == ["text", "prob.", "cosine", "peak", "where"]
    detector = OODDetector(clipn_folder, LABELS.split(","), negatives=negatives)
    (expected,) = detector.explain(images / "0.png", top_k=2, top_negatives=1, no=True)
    names = {"label": "{}", "no": 'no "{}"', "negative": "negative label {}"}
    assert len(rows) == len(expected.evidence) == 5
    for row, one in zip(rows, expected.evidence, strict=True):
        assert row.startswith(f"{names[one.kind].format(one.text)} ")
        assert f"{one.probability:.0%}" in row.split()
        if one.region is None:
            assert row.endswith(" nowhere")
        else:
            assert f" {one.region.words}: row" in row
            assert "of 4 x 4 patches" in row
    with Image.open(output) as picture:
        assert picture.height > 3 * 192


def test_no_and_negative_labels_are_only_drawn_if_asked_for(
    run: "Command", images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    code, out, _ = run(
        *("explain", images / "0.png", "--labels", LABELS, "--model", clipn_folder, "--json"),
        *("--out", tmp_path / "a.jpg"),
    )
    assert code == 0
    assert {one["kind"] for one in read_jsonl(out)[0]["evidence"]} == {"label"}


@pytest.mark.parametrize(
    "options", [(), ("--via", "clip", "--absolute"), ("--via", "discrepancy"), ("--via", "value")]
)
def test_json_holds_all_of_it(
    run: "Command", images: Path, clipn_folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    code, out, _ = run(
        *("explain", images, "-r", "--labels", LABELS, "--model", clipn_folder, "--no", "--json", "--batch-size", 2),
        *("--output", tmp_path / "a.png", *options),
    )
    assert code == 0
    records = read_jsonl(out)
    path = options[1] if options else "surgery"
    relative = "--absolute" not in options and path != "discrepancy"
    files = [record["file"] for record in records]
    assert len(files) == 5
    expected = OODDetector(clipn_folder, LABELS.split(",")).explain(files, path, relative=relative, no=True)
    for record, one in zip(records, expected, strict=True):
        assert (record["path"], record["relative"], record["seen_size"]) == (path, relative, [32, 32])
        assert record["verdict"] == one.result["verdict"]
        for entry, each in zip(record["evidence"], one.evidence, strict=True):
            assert (entry["kind"], entry["text"]) == (each.kind, each.text)
            torch.testing.assert_close(torch.tensor(entry["map"]), each.map, rtol=0, atol=1e-5)
            assert entry["peak"] == max(map(max, entry["map"]))
            if each.region is None:
                assert entry["where"] is entry["strongest"] is entry["box"] is None
                continue
            row, column = entry["strongest"]
            assert (entry["where"], entry["peak"]) == (each.region.words, entry["map"][row][column])
            left, top, right, bottom = entry["box"]
            assert left <= 8 * column < right <= 32
            assert top <= 8 * row < bottom <= 32


@pytest.mark.parametrize(
    ("options", "is_nowhere"), [((), True), (("--via", "discrepancy"), True), (("--absolute",), False)]
)
def test_what_no_patch_speaks_for_is_nowhere(
    run: "Command",
    images: Path,
    clipn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    is_nowhere: bool,
) -> None:
    compare = detector_explanations.compare_patches
    monkeypatch.setattr(detector_explanations, "compare_patches", lambda *given: compare(*given) - 3)
    arguments = ("explain", images / "0.png", "--labels", LABELS, "--model", clipn_folder, "--out", tmp_path / "a.png")
    code, out, _ = run(*arguments, *options)
    assert code == 0
    rows = [line for line in out.splitlines() if line.strip()][2:]
    assert len(rows) == 3
    assert all(row.endswith(" nowhere") == is_nowhere for row in rows)
    _, out, _ = run(*arguments, *options, "--json")
    for entry in read_jsonl(out)[0]["evidence"]:
        assert entry["peak"] < 0
        assert [entry[name] is None for name in ("where", "strongest", "box")] == 3 * [is_nowhere]


def test_a_folder_gets_a_picture_of_each_image(
    run: "Command", images: Path, clipn_folder: Path, tmp_path: Path
) -> None:
    for name in ("5.jpg", "broken.png", "0.jpg"):
        (images / "deep" / name).write_bytes((images / "1 two.jpg").read_bytes() if name != "broken.png" else b"no")
    options = ("explain", images, "-r", "--labels", LABELS, "--model", clipn_folder, "--out", tmp_path / "pictures")
    code, _, err = run(*options)
    assert code == 3
    assert "broken.png: " in err
    assert "Left out: 1 image that could not be read" in err
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"0.png", "0-2.png", "1 two.png", "5.png", "5-2.png", "z-猫.png", "Ärger.png"}
    code, _, err = run(*options)
    assert (code, "has files already; name a new or empty folder" in err) == (1, True)
    assert not leftovers(tmp_path)


def test_images_that_cannot_be_read(run: "Command", clipn_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("Hello")
    for output in ("out.png", "out"):
        code, out, err = run(
            *("explain", tmp_path / "a.png", "--labels", LABELS, "--model", clipn_folder, "--json"),
            *("--out", tmp_path / output),
        )
        assert code == 3
        assert read_jsonl(out)[0].keys() == {"file", "error"}
        assert "it is text, not an image" in err
        assert not (tmp_path / output).exists()
    assert not leftovers(tmp_path)


def test_clip_and_single_label(run: "Command", images: Path, clip_folder: Path, tmp_path: Path) -> None:
    for labels, method in (("cat,dog", "mcm"), ("cat", "max_logit")):
        code, out, _ = run(
            *("explain", images / "0.png", "--labels", labels, "--model", clip_folder, "--json"),
            *("--out", tmp_path / "a.png"),
        )
        assert (code, read_jsonl(out)[0]["method"]) == (0, method)
    code, _, err = run(
        *("explain", images / "0.png", "--labels", LABELS, "--model", clip_folder, "--no", "--out", tmp_path / "b.png")
    )
    assert (code, "`--no` needs a CLIPN, and CLIPModel has no" in err) == (1, True)
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("method", ["ctw", "gl_mcm", "neglabel"])
def test_verdicts_are_those_of_detect(
    run: "Command", images: Path, clipn_folder: Path, negatives: Path, tmp_path: Path, method: str
) -> None:
    setting = "temperature=0.5" if method != "ctw" else None
    options = ("--labels", LABELS, "--model", clipn_folder, "--method", method, "--threshold", 0.6)
    options += ("--setting", setting) if setting else ()
    options += ("--negatives", negatives) if method == "neglabel" else ()
    code, out, err = run("explain", images, *options, "--json", "--out", tmp_path / "a.png")
    assert code == 0, err
    found = read_jsonl(out)
    code, out, err = run("detect", images, *options, "--format", "jsonl")
    assert code == 0, err
    expected = read_jsonl(out)
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert (one["file"], one["method"], one["threshold"]) == (other["file"], method, 0.6)
        assert one["verdict"] == other["verdict"]
        assert one["ood_score"] == pytest.approx(other["ood_score"], rel=1e-5)


def test_images_stay_in_their_order(run: "Command", images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    files = [images / "1 two.jpg", images / "0.png"]
    code, out, _ = run(
        *("explain", *files, "--labels", LABELS, "--model", clipn_folder, "--json", "--out", tmp_path / "a.png")
    )
    assert (code, [record["file"] for record in read_jsonl(out)]) == (0, [str(file) for file in files])


def test_unknown_prompt(
    run: "Command", images: Path, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    labels = LABELS.split(",")
    add_context_tokens(tiny_clip, tiny_processor, labels, num_tokens=2, unknown=True)
    OODDetector(tiny_clip, labels, "clip_os", processor=tiny_processor, threshold=0.5).save_pretrained(tmp_path / "d")
    options = ("explain", images / "0.png", "--detector", tmp_path / "d", "--out", tmp_path / "a.png")
    code, out, err = run(*options)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines() if " of 4 x 4 patches" in line][-1] == '"unknown"'
    _, out, _ = run(*options, "--json", "--threshold", "0.1")
    (record,) = read_jsonl(out)
    assert (record["method"], record["threshold"]) == ("clip_os", 0.1)
    assert [one["kind"] for one in record["evidence"]] == ["label"] * 3 + ["unknown"]


def test_learned_prompts_bring_their_method_and_labels(
    run: "Command", images: Path, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, tmp_path: Path
) -> None:
    add_context_tokens(tiny_clip, tiny_processor, LABELS.split(","), num_tokens=2, class_specific=True, unknown=True)
    for one in (tiny_clip, tiny_processor):
        one.save_pretrained(tmp_path / "model")
    options = ("explain", images / "0.png", "--model", tmp_path / "model", "--out", tmp_path / "a.png", "--json")
    code, out, err = run(*options, "--labels", LABELS)
    assert code == 0, err
    assert (read_jsonl(out)[0]["method"], read_jsonl(out)[0]["verdict"]) == ("clip_os", "undecided")
    code, _, err = run(*options, "--labels", "cat,tree", "--method", "mcm")
    advice = 'or give `--template "a photo of a {}."`, which does without it.'
    assert (code, advice in err) == (1, True), err
    assert run(*options, "--labels", "cat,tree", "--method", "mcm", "--template", "a photo of a {}.").code == 0


def test_detector(run: "Command", images: Path, clipn_folder: Path, negatives: Path, tmp_path: Path) -> None:
    detector = OODDetector(clipn_folder, LABELS.split(","), "ctw", threshold=0.25, templates=["the {}"])
    detector.save_pretrained(tmp_path / "detector")
    options = ("explain", images / "0.png", "--detector", tmp_path / "detector", "--out", tmp_path / "a.png")
    code, out, _ = run(*options, "--json", "--negatives", negatives)
    assert code == 0
    (record,) = read_jsonl(out)
    assert (record["method"], record["threshold"]) == ("ctw", 0.25)
    assert {one["kind"] for one in record["evidence"]} == {"label", "negative"}
    (expected,) = detector.explain(images / "0.png")
    np.testing.assert_allclose(record["evidence"][0]["map"], expected.evidence[0].map, atol=1e-5)
    code, _, err = run(*options, "--labels", LABELS)
    assert (code, "The detector has its own; leave out --labels" in " ".join(err.split())) == (2, True)


def test_wrong_usage(run: "Command", images: Path, clipn_folder: Path, tmp_path: Path) -> None:
    start = ("explain", images, "--model", clipn_folder, "--out", tmp_path / "a.png")
    assert run(*start).code == 2
    assert run(*start, "--labels", LABELS, "--via", "last").code == 2
    for arguments, message in (
        (("--labels", "cat,,dog"), "Label 2 of --labels"),
        (("--labels", LABELS, "--out", tmp_path / "a.gif"), "must end in .png, .jpg or .jpeg"),
        (("--labels", LABELS, "--out", tmp_path / "none" / "a"), "does not exist; make it first"),
        (("--labels", LABELS, "--out", tmp_path / "none" / "a.png"), "does not exist; make it first"),
        (("--labels", LABELS, "--negatives", tmp_path / "none.txt"), "`--negatives` must be a file"),
        (("--labels", LABELS, "--device", "toaster"), "`--device` must be a device"),
        (("--labels", LABELS, "--threshold", "nan"), "`--threshold` must be finite, got nan."),
        (
            ("--labels", LABELS, "--method", "mahalanobis"),
            "is fitted on images; make a detector by `clipn-hf calibrate",
        ),
        (("--labels", LABELS, "--method", "mcm", "--setting", "colour=1"), "method mcm has no setting colour"),
        (
            ("--labels", LABELS, "--method", "mcm", "--setting", "temperature=0"),
            "`--setting temperature` does not fit",
        ),
    ):
        code, _, err = run(*start, *arguments)
        assert (code, message in err) == (1, True), err
    assert not (tmp_path / "a.png").exists()


def test_one_picture_has_room_for_so_many_images(
    run: "Command", images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_explain, "MAX_EXPLANATIONS", 4)
    options = ("explain", images, "-r", "--labels", LABELS, "--model", clipn_folder, "--out")
    code, _, err = run(*options, tmp_path / "a.png")
    assert (code, "One picture has room for 4 images, and there are 5; name a folder" in err) == (1, True)
    assert run(*options, tmp_path / "a").code == 0
