# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `mine`, and negative labels in the others."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from clipn_hf import DualEncoder, OODDetector, cli_negatives, cli_options, records
from clipn_hf.evaluation import contact_sheet
from clipn_hf.feature_cache import cache_info
from clipn_hf.methods import METHODS
from clipn_hf.negatives import CORPORA, FILTERS, NegativeLabels
from clipn_hf.verdicts import looks_like

if TYPE_CHECKING:
    from conftest import Command

LABELS = ["cat", "dog"]
WORDS = ["jellyfish", "parachute", "rocket", "anchor", "umbrella", "guitar", "pizza", "ladder", "lamp", "boat"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPN_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Candidates, of which one comes twice, and two are called as a label and as a kind of it."""
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(["# things", *WORDS, "", "rocket", "Cats", "dachshund"]), encoding="utf-8")
    return file


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS), encoding="utf-8")
    return file


# The subcommand


def test_mine_writes_a_bank_and_tells_what_it_did(
    run: Command, corpus: Path, clip_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "negatives.safetensors"
    options = ("--fraction", 0.5, "--quantile", 1, "--filter", "id_names", "--filter", "hyponyms")
    code, out, err = run(
        "mine", "--labels", "cat,dog", "--model", clip_folder, "--corpus", corpus, "--out", output, *options
    )
    assert code == 0, err
    bank = NegativeLabels.load(output)
    expected = NegativeLabels.mine(
        str(clip_folder), LABELS, str(corpus), fraction=0.5, quantile=1.0, filters=("id_names", "hyponyms")
    )
    assert bank.labels == expected.labels
    assert len(bank) == 5
    assert bank.settings == expected.settings
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:5] == [
        f"12 candidates of {corpus}",
        "1 exact duplicates besides",
        "1 dropped by id_names",
        "1 dropped by hyponyms",
        "5 mined: of each kind of words the 50 % that are farthest from the labels",
    ]
    assert lines[5] == f"5 texts, the farthest first: {', '.join(bank.labels)}"
    given = f"--labels cat,dog --model {clip_folder} --method neglabel --negatives {output}"
    assert lines[6:] == [
        f"Written to {output}; use it by:",
        f"clipn-hf calibrate PATH... {given} --output DETECTOR",
        f"clipn-hf detect PATH... {given}",
        "The first makes a detector that gives verdicts, from images of the labels; the second gives scores alone.",
    ]
    assert f"The model embeds 12 candidates of {corpus}.\n" in err


def test_mine_writes_text(run: Command, corpus: Path, clip_folder: Path, tmp_path: Path) -> None:
    output, labels_file = tmp_path / "my negatives.txt", tmp_path / "labels.txt"
    labels_file.write_text("cat\ndog\n")
    code, out, err = run(
        "mine", "--labels-file", labels_file, "--model", clip_folder, "--corpus", corpus, "--output", output,
        "--fraction", 0.3, "--max-candidates", 10, "--seed", 3, "--template", "a {}.", "--max-similarity", 1,
    )  # fmt: skip
    assert code == 0, err
    expected = NegativeLabels.mine(
        str(clip_folder),
        LABELS,
        str(corpus),
        fraction=0.3,
        max_candidates=10,
        seed=3,
        templates=["a {}."],
        max_similarity=1.0,
    )
    assert output.read_text(encoding="utf-8").splitlines() == expected.labels
    shown = " ".join(out.split())
    assert "0 dropped by max_similarity" in shown
    assert f"10 drawn of 12 candidates of {corpus} 1 exact duplicates besides, before the draw" in shown
    assert "drawn_from" not in shown
    # Texts alone have lost their templates, so that no command is proposed for them.
    assert "taken as they are where they are read" in shown
    assert "clipn-hf detect" not in out


def test_mine_keeps_embeddings_unless_told_otherwise(
    run: Command, words_file: Path, clip_folder: Path, tmp_path: Path, cache: Path
) -> None:
    options = ("mine", "--labels", "cat,dog", "--model", clip_folder, "--corpus", words_file, "--fraction", 0.2)
    assert run(*options, "--out", tmp_path / "a.safetensors", "--no-cache").code == 0
    assert not cache_info(cache).entries
    other = tmp_path / "other"
    assert run(*options, "--out", tmp_path / "b.safetensors", "--cache-dir", other).code == 0
    assert {entry.kind for entry in cache_info(other).entries} == {"text", "negatives"}
    assert not cache_info(cache).entries
    one, other_one = (NegativeLabels.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.labels == other_one.labels and len(one) == 2
    out = run("cache", "info", "--cache-dir", other).out
    assert re.search(r"^negative labels +\S+ +float32 +2 ", out, flags=re.MULTILINE)
    assert run("cache", "clear", "--yes", "--cache-dir", other).code == 0
    assert not cache_info(other).entries


def test_help_names_all_corpora_and_filters(run: Command) -> None:
    code, out, _ = run("mine", "--help")
    assert code == 0
    assert all(name in out for name in (*CORPORA, *FILTERS))
    assert cli_negatives._complete_corpus("wordnet-") == ["wordnet-nouns", "wordnet-adjectives"]
    assert cli_negatives._complete_filter("hyp") == ["hyponyms", "hypernyms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantile", "1.5"], "`--quantile` must be between 0 and 1, got 1.5."),
        (["--quantile", "nan"], "`--quantile` must be between 0 and 1, got nan."),
        (["--fraction", "-0.1"], "`--fraction` must be between 0 and 1, got -0.1."),
        (["--fraction", "0"], "`--fraction` 0 takes no candidate; give a share such as 0.15."),
        (["--fraction", "0.01"], "`--fraction` 0.01 of 12 candidates is less than one; raise it"),
        (["--max-similarity", "2"], "`--max-similarity` must be a cosine between -1 and 1, such as 0.95, got 2."),
        (["--filter", "hyponym"], "proper_nouns, got 'hyponym'; did you mean hyponyms?"),
        (["--corpus", "wordnt"], "there is no file wordnt; did you mean wordnet?"),
        (["--corpus", "."], "`--corpus` must be wordnet, wordnet-nouns, wordnet-adjectives or csp, or a text file"),
        (["--out", "negatives.csv"], "must end in .safetensors or .txt."),
        (["--out", "negatives.TXT"], "must end in .safetensors or .txt."),
        (["--out", "gone/negatives.txt"], "does not exist; make it first."),
        (["--device", "foo"], "`--device` must be"),
        (["--labels", "cat,,dog"], "Label 2 of --labels 'cat,,dog' is empty"),
        (["--labels", "cat,cat"], "`--labels` contains 'cat' twice"),
        (["--method", "mcm"], "`--method` must be one of neglabel, csp, negrefine, got 'mcm'."),
        (["--template", "nice"], "must contain `{}` exactly once"),
        (["--max-similarity", "-1", "--fraction", "1"], "leave out `--filter`, raise `--max-similarity`, or give"),
    ],
)
def test_what_cannot_be_mined(
    run: Command, corpus: Path, clip_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    output = tmp_path / "negatives.txt"
    code, out, err = run(
        *("mine", "--labels", "cat,dog", "--model", clip_folder, "--corpus", corpus, "--out", output, *arguments)
    )
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert re.match(r"Error: [A-Z`]", line)
    assert line.endswith((".", "?"))
    assert message in line
    assert not output.exists()


def test_each_method_has_its_own_way_to_mine(
    run: Command, corpus: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "negatives.safetensors"
    options = ("mine", "--labels", "cat,dog", "--model", clip_folder, "--out", output)
    mine, given = NegativeLabels.mine, {}

    def remember(*arguments: Any, corpus: Any, **settings: Any) -> NegativeLabels:
        given.update(corpus=corpus, **settings)
        return mine(*arguments, WORDS, **settings)

    monkeypatch.setattr(NegativeLabels, "mine", staticmethod(remember))
    for method in ("neglabel", "csp", "negrefine"):
        given.clear()
        code, out, err = run(*options, "--method", method)
        assert code == 0, err
        default = {"corpus": "wordnet", "quantile": 0.95, "fraction": 0.15, "filters": (), "max_similarity": None}
        expected = {**default, **METHODS[method].mining}
        assert {name: given[name] for name in expected} == expected
        assert f"--method {method} --negatives {output} --output DETECTOR" in " ".join(out.split())
    # What is given wins.
    own = ("--corpus", corpus, "--quantile", 0.5, "--fraction", 0.4, "--max-similarity", 1, "--filter", "id_names")
    assert run(*options, "--method", "negrefine", *own).code == 0
    expected = {"corpus": str(corpus), "quantile": 0.5, "fraction": 0.4, "max_similarity": 1, "filters": ("id_names",)}
    assert {name: given[name] for name in expected} == expected


def test_wrong_labels_are_said_before_anything_is_loaded(
    run: Command, images: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DualEncoder, "from_pretrained", None)
    (tmp_path / "labels.txt").write_text("cat\ncat\n")
    for subcommand in (
        ("mine", "--corpus", corpus, "--out", tmp_path / "out.txt"),
        ("detect", images),
        ("calibrate", images, "--output", tmp_path / "out"),
    ):
        for option, value in (("--labels", "cat,cat"), ("--labels-file", tmp_path / "labels.txt")):
            assert run(*subcommand, option, value) == (
                1,
                "",
                f"Error: `{option}` contains 'cat' twice (positions 0 and 1); each must be another one, remove the "
                "duplicate.\n",
            )


def test_a_corpus_of_labels_alone(run: Command, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "names.txt").write_text("Cats\nDOG\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    options = ("mine", "--model", clip_folder, "--labels-file", tmp_path / "labels.txt")
    messages = {"labels.txt": "has nothing but labels", "names.txt": "has nothing but labels", "empty.txt": "is empty"}
    for corpus, message in messages.items():
        # Whether the share of them would be less than one does not matter.
        for fraction in (1, 0.15):
            code, _, err = run(
                *options, "--fraction", fraction, "--corpus", tmp_path / corpus, "--out", tmp_path / "out.txt"
            )
            assert (code, message in err.splitlines()[-1]) == (1, True)
            assert str(tmp_path / corpus) in err and "`--corpus wordnet`" in err
    assert not (tmp_path / "out.txt").exists()


def test_warnings_of_mining_name_options(
    run: Command, corpus: Path, images: Path, clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--labels", "cat,dog", "--model", clip_folder)
    output = tmp_path / "out.safetensors"
    assert run("mine", *options, "--corpus", corpus, "--fraction", 1, "--out", output).code == 0
    (said,) = caplog.messages
    assert "1 of 12 negative labels is a label, too ('Cats')" in said
    assert "`--filter id_names`" in said and "`filters`" not in said
    caplog.clear()
    # Mined again for other labels.
    options = ("--labels", "cat,bird", *options[2:])
    code, _, err = run("detect", images, *options, "--method", "neglabel", "--negatives", output)
    assert code == 0, err
    (said,) = caplog.messages
    assert "`clipn-hf mine --filter id_names`" in said
    # The words are those of the command alone.
    caplog.clear()
    NegativeLabels.mine(str(clip_folder), LABELS, str(corpus), fraction=1.0)
    (said,) = caplog.messages
    assert "clipn-hf" not in said and "--filter" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "x.txt"],
        ["--labels", "a,b"],
        ["--labels", "a,b", "--labels-file", "labels.txt", "--out", "x.txt"],
        ["--labels", "a,b", "--out", "x.txt", "--cache-dir", "x", "--no-cache"],
        ["--labels", "a,b", "--out", "x.txt", "--max-candidates", "0"],
    ],
)
def test_wrong_usage(run: Command, arguments: list[str]) -> None:
    code, out, err = run("mine", *arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


# What negative labels say


def record(is_ood: bool | None, *negatives: tuple[str, float]) -> records.Record:
    return {"is_ood": is_ood, "negatives": [{"label": label, "score": score} for label, score in negatives]}


def test_explain() -> None:
    negatives = [("jellyfish", 0.3149), ("parachute", 0.12), ("asterisk", 0.005), ("lamp", 0.0049)]
    assert records.explain(record(True, *negatives)) == (
        "not one of your labels; looks like jellyfish (0.31), parachute (0.12), asterisk (0.01)"
    )
    assert records.explain(record(None, *negatives)) == (
        "if it is not one of your labels, it looks like jellyfish (0.31), parachute (0.12), asterisk (0.01)"
    )
    assert records.explain(record(False, *negatives)) == ""
    assert records.explain(record(True)) == records.explain(record(True, ("lamp", 0.004))) == ""


def test_detect_says_what_unknown_images_look_like(
    run: Command, images: Path, clip_folder: Path, words_file: Path, tmp_path: Path
) -> None:
    (images / "empty.png").touch()
    options = ("detect", images, "--labels", "cat,dog", "--model", clip_folder, "--method", "mcm")
    options = (*options, "--negatives", words_file)
    detector = OODDetector(clip_folder, LABELS, "mcm", negatives=WORDS)
    files = sorted(str(file) for file in images.iterdir() if file.is_file() and file.name != "empty.png")
    expected = {result["file"]: result for result in read(run(*options, "--format", "jsonl").out)}
    assert len(expected) == 5
    for file, result in zip(files, detector(files), strict=True):
        assert [one["label"] for one in expected[file]["negatives"]] == [one["label"] for one in result["negatives"]]
        assert len(result["negatives"]) == 3
    said = [one for one in expected.values() if "error" not in one]

    def table(*arguments: object) -> list[str]:
        code, out, _ = run(*options, *arguments)
        assert code == 3
        return out.splitlines()

    for threshold, beginning in ((-9, "not one of your labels; looks like "), (9, None)):
        lines = table("--threshold", threshold)
        why = [line.strip() for line in lines if line.startswith("     ")]
        named = [looks_like(one["negatives"]) for one in said]
        wanted = [f"{beginning}{one}" for one in named if one]
        assert why == (wanted if beginning else [])
    assert any(line.strip().startswith("if it is not one of your labels, it looks like ") for line in table())
    assert not any("looks like" in line for line in table("--threshold", -9, "--top-negatives", 0))
    (row,) = csv.DictReader(run(*options[:1], files[0], *options[2:], "--format", "csv").out.splitlines())
    assert row["negatives"] == looks_like(expected[files[0]]["negatives"])
    (one,) = read(run(*options[:1], files[0], *options[2:], "--format", "jsonl", "--top-negatives", 7).out)
    assert len(one["negatives"]) == 7


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_without_negative_labels_nothing_is_said(run: Command, images: Path, clip_folder: Path) -> None:
    options = ("detect", images, "--labels", "cat,dog", "--model", clip_folder, "--method", "mcm", "--threshold", -9)
    assert "looks like" not in run(*options).out
    assert all(one["negatives"] == [] for one in read(run(*options, "--format", "jsonl").out))
    assert all(row["negatives"] == "" for row in csv.DictReader(run(*options, "--format", "csv").out.splitlines()))


def test_the_contact_sheet_says_it_too(
    run: Command, images: Path, clip_folder: Path, words_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[contact_sheet.Tile] = []
    original = contact_sheet.contact_sheet

    def remember(tiles: list[contact_sheet.Tile], **options: str) -> Image.Image:
        drawn.extend(tiles)
        return original(tiles, **options)

    monkeypatch.setattr(contact_sheet, "contact_sheet", remember)
    code, out, _ = run(
        "detect", images, "--labels", "cat,dog", "--model", clip_folder, "--method", "mcm", "--threshold", -9,
        "--negatives", words_file, "--contact-sheet", tmp_path / "sheet.png", "--format", "jsonl",
    )  # fmt: skip
    assert code == 0
    assert [(tile.looks_like, tile.mass) for tile in drawn] == [
        (one["negatives"][0]["label"], one["negatives"][0]["score"])
        for one in sorted(read(out), key=lambda one: one["ood_score"])
    ]
    assert any(tile.looks_like for tile in drawn)


def test_a_method_judges_by_what_was_mined(
    run: Command, images: Path, clip_folder: Path, words_file: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "negatives.safetensors"
    options = ("--labels", "cat,dog", "--model", clip_folder)
    assert run("mine", *options, "--corpus", words_file, "--fraction", 0.5, "--out", bank).code == 0
    options = (*options, "--method", "neglabel", "--negatives", bank, "--setting", "num_groups=2")
    code, out, err = run("detect", images, *options, "--format", "jsonl")
    assert code == 0, err
    assert "mine" not in err
    found = read(out)
    detector = OODDetector(clip_folder, LABELS, "neglabel", negatives=NegativeLabels.load(bank), num_groups=2)
    expected = detector.score([one["file"] for one in found]).tolist()
    assert [one["ood_score"] for one in found] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    code, _, err = run("detect", images, *options[:-1], "num_groups=9")
    assert (code, "Error: `--setting num_groups` does not fit: " in err) == (1, True)
    # Of the same candidates others are far from other labels.
    code, _, err = run("detect", images, "--labels", "cat,bird", *options[2:])
    assert code == 0
    assert (
        f"The negative labels in {bank} were mined for other labels; they are mined again for yours. The model embeds "
        f"10 candidates of {words_file}.\n" in err
    )
    code, _, err = run("detect", images, *options, "--template", "a {}.")
    assert code == 0
    assert f"The negative labels in {bank} were mined for other templates; they are mined again for yours. " in err
    words_file.unlink()
    code, _, err = run("detect", images, "--labels", "cat,bird", *options[2:])
    assert (code, "mined again for yours" in err) == (1, False)
    line = err.splitlines()[-1]
    assert line.startswith("Error: ")
    assert line.endswith(f"({words_file}) are gone. Mine others by `clipn-hf mine`.")
    assert "with_changes" not in line


def test_calibrate_saves_negative_labels(
    run: Command, images: Path, many_images: Path, clip_folder: Path, words_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "detector"
    code, _, err = run(
        "calibrate", many_images / "cat", "--labels", "cat,dog", "--model", clip_folder, "--method", "neglabel",
        "--negatives", words_file, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    words_file.unlink()
    detector = OODDetector.from_pretrained(output)
    assert detector.negatives is not None and detector.negatives.labels == WORDS
    found = read(run("detect", images, "--detector", output, "--format", "jsonl").out)
    assert [one["ood_score"] for one in found] == pytest.approx(
        detector.score([one["file"] for one in found]).tolist(), rel=1e-5, abs=1e-6
    )
    assert all(len(one["negatives"]) == 3 for one in found)
    shown = " ".join(run("info", output).out.split())
    assert f"negative labels 10 as given: {', '.join(WORDS)}" in shown
    # It was calibrated with its own.
    (tmp_path / "others.txt").write_text("jellyfish\n")
    code, _, err = run("detect", images, "--detector", output, "--negatives", tmp_path / "others.txt")
    assert (code, "judges by negative labels of its own; leave out --negatives" in err) == (1, True)


def test_a_detector_of_another_method_can_be_given_some(
    run: Command, images: Path, many_images: Path, clip_folder: Path, words_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "detector"
    options = ("calibrate", many_images / "cat", "--labels", "cat,dog", "--model", clip_folder, "--output", output)
    assert run(*options, "--method", "mcm").code == 0
    code, out, err = run("detect", images, "--detector", output, "--negatives", words_file, "--format", "jsonl")
    assert code == 0, err
    threshold = OODDetector.from_pretrained(output).threshold
    for one in read(out):
        assert one["threshold"] == threshold
        assert one["promise"] is not None
        assert len(one["negatives"]) == 3
    (tmp_path / "labels.txt").write_text("lamp\nDog\n")
    code, _, err = run("detect", images, "--detector", output, "--negatives", tmp_path / "labels.txt")
    assert (code, f"Error: `--negatives` {tmp_path / 'labels.txt'} has 1 of the labels ('Dog')" in err) == (1, True)
    # What was mined for other labels is mined again, which is said.
    bank = tmp_path / "negatives.safetensors"
    mined = ("mine", "--labels", "cat,bird", "--model", clip_folder, "--corpus", words_file, "--out", bank)
    assert run(*mined).code == 0
    code, _, err = run("detect", images, "--detector", output, "--negatives", bank)
    assert (code, "they are mined again for yours. The model embeds 10 candidates" in err) == (0, True)


@pytest.mark.parametrize("subcommand", ["detect", "calibrate"])
def test_a_file_that_is_not_there_is_said_before_anything_is_loaded(
    run: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subcommand: str
) -> None:
    monkeypatch.setattr(DualEncoder, "from_pretrained", None)
    options = (subcommand, images, "--labels", "cat,dog", "--negatives", tmp_path / "gone.txt")
    options = (*options, "--output", tmp_path / "out") if subcommand == "calibrate" else options
    code, out, err = run(*options)
    assert (code, out) == (1, "")
    assert err == (
        "Error: `--negatives` must be a file that `clipn-hf mine` wrote, or a text file with one negative label per "
        f"line; there is none at {tmp_path / 'gone.txt'}.\n"
    )


def test_the_name_of_a_corpus_is_no_file(
    run: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DualEncoder, "from_pretrained", None)
    monkeypatch.chdir(tmp_path)
    for corpus in CORPORA:
        code, _, err = run("detect", images, "--labels", "cat,dog", "--negatives", corpus)
        assert (code, f"mine negative labels from it by `clipn-hf mine --corpus {corpus} --out FILE" in err) == (
            1,
            True,
        )
    # A file that is called so is a file.
    (tmp_path / "csp").write_text("lamp\n")
    cli_options.check_negatives(Path("csp"))


def test_negative_labels_that_are_labels(run: Command, images: Path, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("jellyfish\ncat\n")
    options = ("detect", images, "--labels", "cat,dog", "--model", clip_folder, "--method", "mcm")
    code, _, err = run(*options, "--negatives", tmp_path / "words.txt")
    assert (code, f"Error: `--negatives` {tmp_path / 'words.txt'} has 1 of the labels ('cat')" in err) == (1, True)


@pytest.mark.parametrize("subcommand", ["detect", "calibrate"])
def test_an_empty_file_is_said_before_anything_is_loaded(
    run: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subcommand: str
) -> None:
    monkeypatch.setattr(DualEncoder, "from_pretrained", None)
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    options = (subcommand, images, "--labels", "cat,dog", "--negatives", tmp_path / "empty.txt")
    options = (*options, "--output", tmp_path / "out") if subcommand == "calibrate" else options
    assert run(*options) == (
        1,
        "",
        f"Error: The negative labels file {tmp_path / 'empty.txt'} has no negative labels; write one per line.\n",
    )


def test_asking_for_negative_labels_where_there_are_none(
    run: Command, images: Path, clip_folder: Path, words_file: Path
) -> None:
    options = ("detect", images, "--labels", "cat,dog", "--model", clip_folder, "--method", "mcm")
    said = "There are no negative labels, which --top-negatives would list; give some by `--negatives`.\n"
    assert said in run(*options, "--top-negatives", 2).err
    for others in ((), ("--top-negatives", 0), ("--top-negatives", 2, "--negatives", words_file)):
        assert said not in run(*options, *others).err


@pytest.mark.parametrize("subcommand", ["detect", "calibrate"])
def test_mining_is_announced_before_it_begins(
    run: Command, images: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subcommand: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("stopped.")

    monkeypatch.setattr(NegativeLabels, "mine", stop)
    options = (subcommand, images, "--labels", "cat,dog", "--model", clip_folder, "--method", "csp")
    options = (*options, "--output", tmp_path / "out") if subcommand == "calibrate" else options
    code, _, err = run(*options)
    first, last = err.splitlines()
    assert (code, last) == (1, "Error: stopped.")
    assert re.fullmatch(
        r"Method csp mines negative labels for your labels. The model embeds \d\d\d,\d\d\d candidates of csp, those "
        r"that are not on disk yet, which may take minutes on a CPU and takes seconds on a GPU; they are kept, for "
        r"the next time to take seconds. To use others, name a file by `--negatives`.",
        first,
    )


def test_methods_that_need_none_announce_nothing(capsys: pytest.CaptureFixture[str], words_file: Path) -> None:
    for method, file in (("mcm", None), ("mcm", words_file), ("neglabel", words_file)):
        cli_options.announce_mining(METHODS[method], file, LABELS)
    assert capsys.readouterr().err == ""
    assert cli_options.mining_cost(2000, "x", kept=False).endswith("; they are not kept.")


def test_methods_tells_of_negative_labels_and_sigmoid_models(run: Command) -> None:
    lines = {line.split()[0]: line for line in run("methods").out.splitlines() if line}
    for name, method in METHODS.items():
        assert ("negative labels" in lines[name].replace(method.title, "")) == ("negatives" in method.needs)
        assert ("SigLIP" in lines[name]) == ("sigmoid" in method.needs)
        assert ("text encoder" in lines[name]) == ("text_encoder" in method.needs)
        assert ("ID images with labels" in lines[name]) == ("training_labels" in method.needs)
