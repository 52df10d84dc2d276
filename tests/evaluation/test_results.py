# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Records on disk, metrics with intervals that share their draws, and paired comparisons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipn_hf.evaluation.metrics import auroc, bootstrap_interval, fpr_at_tpr
from clipn_hf.evaluation.results import (
    ID_METRICS,
    METRICS,
    OOD_METRICS,
    Evaluation,
    compare,
    load_scores,
    measure,
    read_records,
    save_scores,
    write_records,
)


def draw(seed: int = 0, id_images: int = 80, ood_images: int = 50, shift: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, id_images)
    return {
        # Rounded, so that some scores are equal.
        "id_scores": generator.normal(0, 1, id_images).round(1).astype(np.float32),
        "ood_scores": generator.normal(shift, 1, ood_images).round(1).astype(np.float32),
        "id_predictions": np.where(generator.random(id_images) < 0.8, labels, (labels + 1) % 3),
        "id_labels": labels,
    }


def build_record(**changes: Any) -> dict[str, Any]:
    record = {
        "schema_version": 1,
        "suite": "tiny",
        "suite_sha256": "0" * 64,
        "date": "2026-11-21T16:00:00+00:00",
        "model": {"id": "org/model", "revision": None, "class": "CLIPModel", "weights_sha256": "1" * 64},
        "method": "mcm",
        "settings": {"temperature": 1.0},
        "templates": ["a photo of a {}."],
        "no_templates": None,
        "labels": {"count": 3, "sha256": "2" * 64},
        "seed": 0,
        "id_set": {"name": "ID", "images": 80, "unreadable": 0, "sha256": "3" * 64},
        "fit_set": None,
        "set": {"name": "Far away", "group": "far", "images": 50, "unreadable": 0, "sha256": "4" * 64, "note": ""},
        "convention": {"fpr_positive": "id", "fpr_rule": "exact", "tpr": 0.95, "aupr_rule": "average_precision"},
        "metrics": {"auroc": {"value": 0.75, "low": 0.7, "high": 0.8}},
        "bootstrap": None,
        "scores": None,
        "versions": {},
    }
    return record | changes


def build_evaluation(record: dict[str, Any], scores: dict[str, np.ndarray]) -> Evaluation:
    return Evaluation(
        record=record,
        **scores,
        ood_predictions=np.zeros(len(scores["ood_scores"]), dtype=np.int64),
        id_rows=np.arange(len(scores["id_scores"])),
        ood_rows=np.arange(len(scores["ood_scores"])),
        id_set=None,  # type: ignore[arg-type]
        ood_set=None,  # type: ignore[arg-type]
        labels=["a", "b", "c"],
    )


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write an output folder of some records with their scores, and return its results.jsonl."""

    def save(name: str, *pairs: tuple[dict[str, Any], dict[str, np.ndarray]]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        records = []
        for record, scores in pairs:
            found = measure(OOD_METRICS, **scores, resamples=0)
            record = {**record, "metrics": found}
            records.append({**record, "scores": save_scores(build_evaluation(record, scores), folder)})
        write_records(folder / "results.jsonl", records)
        return folder / "results.jsonl"

    return save


# Metrics


@pytest.mark.parametrize("name", METRICS)
def test_intervals_are_those_of_the_bootstrap_of_each_metric(name: str) -> None:
    """Sharing the draws changes no digit."""
    scores = draw()
    metric = METRICS[name]
    data: dict[str, Any] = {} if name == "id_accuracy" else {"id_scores": scores["id_scores"]}
    if metric.needs_ood:
        data["ood_scores"] = scores["ood_scores"]
    if metric.needs_labels:
        data |= {"predictions": scores["id_predictions"], "labels": scores["id_labels"]}
    expected = bootstrap_interval(metric.function, **data, resamples=50, seed=3, **metric.arguments)
    found = measure([name], **scores, resamples=50, seed=3)[name]
    assert found == measure(METRICS, **scores, resamples=50, seed=3)[name]
    if metric.complement:
        assert found["value"] == 1 - expected.estimate
        assert (found["low"], found["high"]) == pytest.approx((1 - expected.high, 1 - expected.low))
    else:
        assert found == {"value": expected.estimate, "low": expected.low, "high": expected.high}


def test_id_metrics_need_no_other_set() -> None:
    scores = draw()
    found = measure(ID_METRICS, scores["id_scores"], None, scores["id_predictions"], scores["id_labels"], resamples=20)
    assert set(found) == {"id_accuracy", "aurc"}
    assert found == measure(ID_METRICS, **scores, resamples=20)


def test_without_resamples_there_are_no_intervals() -> None:
    found = measure(["auroc"], **draw(), resamples=0)
    assert found["auroc"]["low"] is None and found["auroc"]["high"] is None


@pytest.mark.parametrize(("name", "value"), [("resamples", -1), ("seed", -1), ("resamples", True)])
def test_numbers_of_the_bootstrap_are_checked(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 0, got {value}"):
        measure(["auroc"], **draw(), **{name: value})


def test_scores_with_nan_are_refused() -> None:
    scores = draw()
    scores["id_scores"][3] = np.nan
    with pytest.raises(ValueError, match="NaN in 1 of 80 scores"):
        measure(OOD_METRICS, **scores, resamples=5)


# Records


def test_records_survive_the_disk(tmp_path: Path) -> None:
    records = [build_record(), build_record(method="atd", suite="line\u2028separator \n Ä")]
    write_records(tmp_path / "results.jsonl", records)
    assert read_records(tmp_path / "results.jsonl") == records
    assert (tmp_path / "results.jsonl").read_bytes().count(b"\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_records_with_nan_are_not_written(tmp_path: Path) -> None:
    bad = build_record(metrics={"auroc": {"value": float("nan"), "low": None, "high": None}})
    with pytest.raises(ValueError, match="Record 1 \\(mcm on Far away\\) has a number that is not finite"):
        write_records(tmp_path / "results.jsonl", [build_record(), bad])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda line: line[:-40], "Line 2 of .*results.jsonl is no complete record"),
        (lambda line: line.replace("0.75", "NaN"), "Line 2 of .* has NaN in it"),
        (lambda line: line.replace("0.75", "-Infinity"), "Line 2 of .* has -Infinity in it"),
        (lambda line: line.replace('"schema_version": 1', '"schema_version": 2'), "Line 2 .* schema_version 2, but"),
        (lambda line: line.replace('"seed"', '"sed"'), "Line 2 of .* lacks `seed`"),
        (lambda line: "[1, 2]", "Line 2 of .* must be a record, got list"),
        (lambda line: "", "Line 1 of .* lacks `method`"),
    ],
)
def test_bad_lines_are_refused_by_their_number(tmp_path: Path, edit: Callable[[str], str], message: str) -> None:
    file = tmp_path / "results.jsonl"
    lines = [json.dumps(build_record()), edit(json.dumps(build_record()))]
    if not lines[1]:
        lines[0] = lines[0].replace('"method"', '"mehtod"')
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_records(file)


@pytest.mark.parametrize(("content", "message"), [(b"\n", "has no records"), (b"\xff\xfe", "is no text in UTF-8")])
def test_files_without_records_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "results.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / "results.jsonl")


# Scores


def test_scores_survive_the_disk(tmp_path: Path) -> None:
    scores = draw()
    evaluation = build_evaluation(build_record(), scores)
    saved = save_scores(evaluation, tmp_path)
    assert saved["file"].startswith("scores/model-mcm-far_away-0-")
    first = (tmp_path / saved["file"]).read_bytes()
    assert save_scores(evaluation, tmp_path) == saved
    assert (tmp_path / saved["file"]).read_bytes() == first
    found = load_scores(build_record(scores=saved), tmp_path)
    for name, values in scores.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def test_every_evaluation_has_a_file_of_its_own(tmp_path: Path) -> None:
    model = {"id": "org/model", "weights_sha256": "other"}
    records = [build_record(), build_record(method="atd"), build_record(seed=1), build_record(model=model)]
    files = {save_scores(build_evaluation(record, draw()), tmp_path)["file"] for record in records}
    assert len(files) == len(list((tmp_path / "scores").iterdir())) == 4


def test_scores_that_were_changed_are_refused(tmp_path: Path) -> None:
    record = build_record(scores=save_scores(build_evaluation(build_record(), draw()), tmp_path))
    file = tmp_path / record["scores"]["file"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="mcm on Far away in .* are not those of the record"):
        load_scores(record, tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="are missing from .*; keep the folder scores beside the records"):
        load_scores(record, tmp_path)
    with pytest.raises(ValueError, match="were not kept; evaluate again with a folder"):
        load_scores(build_record(), tmp_path)


# Comparisons


def test_the_same_images_are_drawn_for_both(save: Save) -> None:
    first, second = draw(0), draw(0)
    second["ood_scores"] = second["ood_scores"] + np.float32(0.5)
    a = save("a", (build_record(), first))
    b = save("b", (build_record(method="atd"), second))
    (comparison,) = compare(a, b, resamples=300, seed=5, progress=False)
    pairs = {name: np.stack([first[name], second[name]], axis=1) for name in ("id_scores", "ood_scores")}

    def difference(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
        return auroc(id_scores[:, 1], ood_scores[:, 1]) - auroc(id_scores[:, 0], ood_scores[:, 0])

    expected = bootstrap_interval(difference, **pairs, resamples=300, seed=5)
    assert (comparison.difference, comparison.low, comparison.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert comparison.difference == comparison.value_b - comparison.value_a
    assert (comparison.a, comparison.b) == ("org/model mcm", "org/model atd")
    assert comparison.low > 0
    assert comparison.p_value == pytest.approx(2 / 301)


def test_direction_and_metric(save: Save) -> None:
    a = save("a", (build_record(), draw(0)))
    b = save("b", (build_record(), draw(1)))
    forward, backward = (compare(*files, "fpr95", resamples=200, progress=False)[0] for files in ((a, b), (b, a)))
    scores = draw(1)
    assert forward.value_b == fpr_at_tpr(scores["id_scores"], scores["ood_scores"])
    assert forward.difference == -backward.difference
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == backward.p_value


def test_nothing_differs_from_itself(save: Save) -> None:
    a = save("a", (build_record(), draw()))
    for metric in METRICS:
        if metric in OOD_METRICS:
            (comparison,) = compare(a, a, metric, resamples=20, progress=False)
            assert comparison.difference == comparison.low == comparison.high == 0
            assert comparison.p_value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"count": 4, "sha256": "9" * 64}}, "the class lists \\(3 and 4 labels"),
        ({"id_set": {"name": "ID", "images": 81, "unreadable": 0, "sha256": "9" * 64}}, "the ID images \\(80 and 81"),
        (
            {"set": {"name": "Far away", "group": "far", "images": 50, "unreadable": 0, "sha256": "9", "note": ""}},
            "the images of Far away \\(50 and 50",
        ),
    ],
)
def test_other_data_cannot_be_compared(save: Save, change: dict[str, Any], message: str) -> None:
    a = save("a", (build_record(), draw()))
    b = save("b", (build_record(**change), draw()))
    with pytest.raises(ValueError, match=f"cannot be compared on tiny/Far away \\(seed 0\\), .*{message}"):
        compare(a, b, progress=False)


def test_records_are_paired_by_what_both_files_have(save: Save) -> None:
    other = {"id": "org/other", "weights_sha256": "5" * 64}
    both = save("both", (build_record(), draw(0)), (build_record(method="atd"), draw(1)))
    others = save("others", (build_record(model=other, method="atd"), draw(2)), (build_record(model=other), draw(3)))
    found = [(comparison.a, comparison.b) for comparison in compare(both, others, resamples=9, progress=False)]
    assert found == [("org/model mcm", "org/other mcm"), ("org/model atd", "org/other atd")]

    one = save("one", (build_record(method="atd"), draw(4)))
    found = [(comparison.a, comparison.b) for comparison in compare(both, one, resamples=9, progress=False)]
    assert found == [("org/model atd", "org/model atd")]

    strange = save("strange", (build_record(method="energy", model=other), draw(5)))
    with pytest.raises(ValueError, match="Several records of .*both.* and .*strange.* could be compared"):
        compare(both, strange, progress=False)


def test_files_without_common_sets_are_refused(save: Save) -> None:
    a = save("a", (build_record(), draw()))
    b = save("b", (build_record(seed=1), draw()))
    with pytest.raises(ValueError, match="no suite, set and seed in common: .* has tiny/Far away \\(seed 0\\) and"):
        compare(a, b, progress=False)


def test_tampered_scores_cannot_be_compared(save: Save) -> None:
    a = save("a", (build_record(), draw()))
    b = save("b", (build_record(method="atd"), draw(1)))
    (file,) = (b.parent / "scores").iterdir()
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError, match="atd on Far away in .* are not those of the record"):
        compare(a, b, progress=False)


def test_bad_arguments_of_compare(save: Save, tmp_path: Path) -> None:
    a = save("a", (build_record(), draw()))
    with pytest.raises(ValueError, match="`metric` must be one of auroc, .*, got 'auc'"):
        compare(a, a, "auc")
    with pytest.raises(ValueError, match="`resamples` must be at least 1"):
        compare(a, a, resamples=0)
    with pytest.raises(ValueError, match="has no records with the metric rejected_at_tpr95"):
        compare(a, a, "rejected_at_tpr95")
    with pytest.raises(FileNotFoundError):
        compare(a, tmp_path / "missing.jsonl")
