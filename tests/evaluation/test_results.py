# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Records on disk, metrics and averages with intervals that share their draws."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipn_hf.evaluation.metrics import auroc, bootstrap_interval
from clipn_hf.evaluation.results import (
    ID_METRICS,
    METRICS,
    OOD_METRICS,
    SHIFT,
    SHIFT_METRICS,
    Draws,
    Evaluation,
    average_intervals,
    load_scores,
    measure,
    read_averages,
    read_records,
    resample_metrics,
    save_scores,
    write_averages,
    write_records,
)

Build = Callable[..., Any]


# Metrics


@pytest.mark.parametrize("name", METRICS)
def test_intervals_are_those_of_the_bootstrap_of_each_metric(name: str, draw: Build) -> None:
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
        # Sums of floats may be taken in another order.
        assert list(found.values()) == pytest.approx(list(expected), rel=1e-13)


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("decimals", [0, 6])
@pytest.mark.parametrize("images", [(1, 1), (1, 30), (40, 1), (60, 90)])
def test_looking_only_where_runs_of_scores_end_changes_nothing(
    images: tuple[int, int], decimals: int, shift: float
) -> None:
    """Also where the two sets are apart, and where many or no scores are equal."""
    generator = np.random.default_rng(8)
    id_images, ood_images = images
    data = {
        "id_scores": generator.normal(0, 1, id_images).round(decimals),
        "ood_scores": generator.normal(shift, 1, ood_images).round(decimals),
        "predictions": generator.integers(0, 2, id_images),
        "labels": generator.integers(0, 2, id_images),
    }
    found = resample_metrics(METRICS, *data.values(), resamples=30, seed=1)  # type: ignore[arg-type]
    for name, metric in METRICS.items():
        own = {key: data[key] for key in data if key != "ood_scores" or metric.needs_ood}
        own = {key: value for key, value in own.items() if metric.needs_labels or key not in ("predictions", "labels")}
        if name == "id_accuracy":
            del own["id_scores"]
        for confidence in (0.1, 0.5, 0.9):
            expected = bootstrap_interval(
                metric.function, **own, resamples=30, seed=1, confidence=confidence, **metric.arguments
            )
            values = 1 - found[name] if metric.complement else found[name]
            ends = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
            assert ends == pytest.approx([expected.low, expected.high], rel=1e-12, abs=1e-12), name


def test_shared_draws_change_no_digit(draw: Build) -> None:
    draws = Draws()
    for seed in (0, 1, 0):
        for ood_images in (50, 20):
            scores = draw(seed, ood_images=ood_images)
            assert measure(METRICS, **scores, resamples=40, seed=seed, draws=draws) == measure(
                METRICS, **scores, resamples=40, seed=seed, draws=Draws(max_bytes=0)
            )


def test_draws_are_made_once_as_long_as_there_is_room() -> None:
    draws = Draws(max_bytes=300)
    first = np.concatenate(list(draws.counts(10, 20, 3, 0, rows=7)))
    assert first.shape == (20, 10) and (first.sum(axis=1) == 10).all()
    again = list(draws.counts(10, 20, 3, 0, rows=5))
    assert [len(chunk) for chunk in again] == [5, 5, 5, 5]
    assert all(chunk.base is again[0].base for chunk in again)
    np.testing.assert_array_equal(np.concatenate(again), first)
    # These have no room left.
    unknown = list(draws.counts(10, 20, 3, 1, rows=5))
    repeated = draws.counts(10, 20, 3, 1, rows=5)
    assert not any(np.shares_memory(*both) for both in zip(unknown, repeated, strict=True))
    other = [np.concatenate(list(draws.counts(10, 20, 3, 1, rows=rows))) for rows in (3, 20)]
    np.testing.assert_array_equal(*other)
    assert (other[0] != first).any()


def test_id_metrics_need_no_other_set(draw: Build) -> None:
    scores = draw()
    found = measure(ID_METRICS, scores["id_scores"], None, scores["id_predictions"], scores["id_labels"], resamples=20)
    assert set(found) == {"id_accuracy", "aurc"}
    assert found == measure(ID_METRICS, **scores, resamples=20)


def test_without_resamples_there_are_no_intervals(draw: Build) -> None:
    found = measure(["auroc"], **draw(), resamples=0)
    assert found["auroc"]["low"] is None and found["auroc"]["high"] is None


@pytest.mark.parametrize(("name", "value"), [("resamples", -1), ("seed", -1), ("resamples", True)])
def test_numbers_of_the_bootstrap_are_checked(name: str, value: int, draw: Build) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 0, got {value}"):
        measure(["auroc"], **draw(), **{name: value})


def test_scores_with_nan_are_refused(draw: Build) -> None:
    scores = draw()
    scores["id_scores"][3] = np.nan
    with pytest.raises(ValueError, match="NaN in 1 of 80 scores"):
        measure(OOD_METRICS, **scores, resamples=5)


# Averages


@pytest.fixture
def evaluations(build_record: Build, build_evaluation: Build) -> Build:
    def evaluations(*sets: tuple[str, str, dict[str, np.ndarray]], **changes: Any) -> list[Evaluation]:
        return [
            build_evaluation(build_record(set=describe(name, group), **changes), scores)
            for name, group, scores in sets
        ]

    return evaluations


def describe(name: str, group: str) -> dict[str, Any]:
    return {"name": name, "group": group, "images": 50, "unreadable": 0, "sha256": name, "note": ""}


def test_averages_draw_the_id_images_once_and_each_set_by_itself(draw: Build, evaluations: Build) -> None:
    one, two = draw(0), draw(0)
    two["ood_scores"] = draw(5, ood_images=50)["ood_scores"]
    (entry,) = average_intervals(evaluations(("B", "far", two), ("A", "far", one)), ["auroc"], resamples=200)
    generators = [np.random.default_rng([0, stream]) for stream in (0, 1, 2)]
    id_draws, *ood_draws = (
        generator.integers(images, size=(200, images))
        for generator, images in zip(generators, (80, 50, 50), strict=True)
    )
    drawn = [
        np.mean(
            [
                auroc(scores["id_scores"][id_draws[row]], scores["ood_scores"][ood_draws[position][row]])
                for position, scores in enumerate((one, two))
            ]
        )
        for row in range(200)
    ]
    value = (auroc(one["id_scores"], one["ood_scores"]) + auroc(two["id_scores"], two["ood_scores"])) / 2
    found = entry["metrics"]["auroc"]
    assert found["value"] == pytest.approx(value)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert (entry["group"], entry["sets"]) == ("far", ["A", "B"])
    assert entry["bootstrap"] == {"resamples": 200, "confidence": 0.95, "seed": 0}


def test_the_order_of_the_sets_does_not_change_an_average(draw: Build, evaluations: Build) -> None:
    sets = [(name, "near", draw(seed)) for seed, name in enumerate("abc")]
    assert average_intervals(evaluations(*sets), resamples=20) == average_intervals(
        evaluations(*sets[::-1]), resamples=20
    )


def test_averages_are_of_one_row_and_group(draw: Build, evaluations: Build) -> None:
    sets = [("a", "near", draw(1)), ("b", "near", draw(2)), ("c", "far", draw(3))]
    shifted = [("d", SHIFT, draw(4)), ("e", SHIFT, draw(5))]
    every = evaluations(*sets, *shifted) + evaluations(*sets, method="atd") + evaluations(*sets, seed=1)
    found = average_intervals(every, ["fpr95", "id_accuracy", "auroc_full_spectrum"], resamples=9)
    assert [(entry["method"], entry["seed"], entry["group"]) for entry in found] == [
        ("mcm", 0, "near"),
        ("mcm", 0, SHIFT),
        ("atd", 0, "near"),
        ("mcm", 1, "near"),
    ]
    assert [list(entry["metrics"]) for entry in found] == [["fpr95"], list(SHIFT_METRICS), ["fpr95"], ["fpr95"]]
    assert average_intervals(every, resamples=0) == []
    with pytest.raises(ValueError, match="`resamples` must be a whole number"):
        average_intervals(every, resamples=-1)


def test_averages_survive_the_disk(tmp_path: Path, draw: Build, evaluations: Build) -> None:
    averages = average_intervals(evaluations(("a", "near", draw(1)), ("b", "near", draw(2))), resamples=9)
    path = tmp_path / "averages.json"
    write_averages(path, averages)
    assert read_averages(path) == averages
    write_averages(path, [])
    assert read_averages(path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "no complete file of averages"),
        ("[NaN]", "no complete file of averages"),
        ("{}", "must hold a list of averages, got dict"),
        ('[{"schema_version": 2}]', "Average 0 of .* has schema_version 2"),
        ('[{"schema_version": 1}]', "Average 0 of .* lacks `suite`"),
    ],
)
def test_other_files_are_no_averages(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "averages.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_averages(path)


# Records


def test_records_survive_the_disk(tmp_path: Path, build_record: Build) -> None:
    records = [build_record(), build_record(method="atd", suite="line\u2028separator \n Ä")]
    write_records(tmp_path / "results.jsonl", records)
    assert read_records(tmp_path / "results.jsonl") == records
    assert (tmp_path / "results.jsonl").read_bytes().count(b"\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_records_with_nan_are_not_written(tmp_path: Path, build_record: Build) -> None:
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
        (
            lambda line: line.replace('"config_sha256"', '"x"').replace('"image_processor_sha256"', '"y"'),
            "Line 2 of .* lacks `model.config_sha256`, `model.image_processor_sha256`; evaluate again",
        ),
        (
            lambda line: json.dumps({**json.loads(line), "model": "org/model"}),
            "Line 2 of .* must have a description in `model`, got 'org/model'",
        ),
        (lambda line: "[1, 2]", "Line 2 of .* must be a record, got list"),
        (lambda line: "", "Line 1 of .* lacks `method`"),
    ],
)
def test_bad_lines_are_refused_by_their_number(
    tmp_path: Path, edit: Callable[[str], str], message: str, build_record: Build
) -> None:
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


def test_the_folder_of_records_is_enough(tmp_path: Path, build_record: Build) -> None:
    write_records(tmp_path / "results.jsonl", [build_record()])
    assert read_records(tmp_path) == [build_record()]
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="The folder .*other has no results.jsonl; name the output of an eval"):
        read_records(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="There is no file .*missing.jsonl; name the results.jsonl of an eval"):
        read_records(tmp_path / "missing.jsonl")


# Scores


def test_scores_survive_the_disk(tmp_path: Path, draw: Build, build_record: Build, build_evaluation: Build) -> None:
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


def test_labels_of_shifted_images_are_kept(
    tmp_path: Path, draw: Build, build_record: Build, build_evaluation: Build
) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 50)
    saved = save_scores(build_evaluation(build_record(), draw(), labels.tolist()), tmp_path)
    np.testing.assert_array_equal(load_scores(build_record(scores=saved), tmp_path)["ood_labels"], labels)


def test_every_evaluation_has_a_file_of_its_own(
    tmp_path: Path, draw: Build, build_record: Build, build_evaluation: Build
) -> None:
    model = {"id": "org/model", "weights_sha256": "other"}
    records = [build_record(), build_record(method="atd"), build_record(seed=1), build_record(model=model)]
    mined = {"count": 3, "sha256": "7" * 64, "settings": {"corpus": "wordnet"}, "report": {}}
    records += [build_record(negatives=mined), build_record(negatives={**mined, "sha256": "8" * 64})]
    files = {save_scores(build_evaluation(record, draw()), tmp_path)["file"] for record in records}
    assert len(files) == len(list((tmp_path / "scores").iterdir())) == 6
    # Where there are none, the name is that of a record of earlier versions.
    assert save_scores(build_evaluation(build_record(negatives=None), draw()), tmp_path)["file"] in files


def test_scores_that_were_changed_are_refused(
    tmp_path: Path, draw: Build, build_record: Build, build_evaluation: Build
) -> None:
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
