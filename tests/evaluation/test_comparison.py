# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons of evaluations: pairs, differences, averages, seeds, and what is left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipn_hf.evaluation.comparison import compare
from clipn_hf.evaluation.metrics import auroc, bootstrap_interval, fpr_at_tpr, id_accuracy
from clipn_hf.evaluation.results import (
    METRICS,
    OOD_METRICS,
    SHIFT,
    SHIFT_METRICS,
    average_intervals,
    average_resamples,
    measure,
    save_scores,
    write_records,
)

Build = Callable[..., Any]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, build_evaluation: Build) -> Save:
    """Write an output folder of some records with their scores, and return its results.jsonl."""

    def save(name: str, *pairs: tuple[dict[str, Any], dict[str, np.ndarray]]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        records = []
        for record, scores in pairs:
            is_shifted = record["set"]["group"] == SHIFT
            found = measure(SHIFT_METRICS if is_shifted else OOD_METRICS, **scores, resamples=0)
            if is_shifted:
                found["accuracy"] = {"value": 0.0, "low": None, "high": None}
            else:
                found |= {f"{name}_full_spectrum": found[name] for name in ("auroc", "fpr95")}
            record = {**record, "metrics": found}
            labels = [1] * len(scores["ood_scores"]) if is_shifted else None
            evaluation = build_evaluation(record, scores, labels)
            records.append({**record, "scores": save_scores(evaluation, folder)})
        write_records(folder / "results.jsonl", records)
        return folder / "results.jsonl"

    return save


def test_the_same_images_are_drawn_for_both(save: Save, draw: Build, build_record: Build) -> None:
    first, second = draw(0), draw(0)
    second["ood_scores"] = second["ood_scores"] + np.float32(0.5)
    a = save("a", (build_record(), first))
    b = save("b", (build_record(method="atd"), second))
    (comparison,) = compare(a, b, resamples=300, seed=5, progress=False).comparisons
    pairs = {name: np.stack([first[name], second[name]], axis=1) for name in ("id_scores", "ood_scores")}

    def difference(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
        return auroc(id_scores[:, 1], ood_scores[:, 1]) - auroc(id_scores[:, 0], ood_scores[:, 0])

    expected = bootstrap_interval(difference, **pairs, resamples=300, seed=5)
    assert (comparison.difference, comparison.low, comparison.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert comparison.difference == comparison.value_b - comparison.value_a
    assert (comparison.a, comparison.b) == ("org/model mcm", "org/model atd")
    assert comparison.low > 0
    assert comparison.p_value == pytest.approx(2 / 301)


def test_direction_and_metric(save: Save, draw: Build, build_record: Build) -> None:
    a = save("a", (build_record(), draw(0)))
    b = save("b", (build_record(), draw(1)))
    forward, backward = (
        compare(*files, "fpr95", resamples=200, progress=False).comparisons[0] for files in ((a, b), (b, a))
    )
    scores = draw(1)
    assert forward.value_b == fpr_at_tpr(scores["id_scores"], scores["ood_scores"])
    assert forward.difference == -backward.difference
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == backward.p_value


def test_nothing_differs_from_itself(save: Save, draw: Build, build_record: Build) -> None:
    a = save("a", (build_record(), draw()))
    for metric in METRICS:
        if metric in OOD_METRICS:
            (comparison,) = compare(a, a, metric, resamples=20, progress=False).comparisons
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
def test_other_data_cannot_be_compared(
    save: Save, change: dict[str, Any], message: str, draw: Build, build_record: Build
) -> None:
    a = save("a", (build_record(), draw()))
    b = save("b", (build_record(**change), draw()))
    with pytest.raises(ValueError, match=f"cannot be compared on tiny/Far away \\(seed 0\\), .*{message}"):
        compare(a, b, progress=False)


def test_records_are_paired_by_what_both_files_have(save: Save, draw: Build, build_record: Build) -> None:
    other = {**build_record()["model"], "id": "org/other", "weights_sha256": "5" * 64}
    both = save("both", (build_record(), draw(0)), (build_record(method="atd"), draw(1)))
    others = save("others", (build_record(model=other, method="atd"), draw(2)), (build_record(model=other), draw(3)))
    found = [
        (comparison.a, comparison.b) for comparison in compare(both, others, resamples=9, progress=False).comparisons
    ]
    assert found == [("org/model mcm", "org/other mcm"), ("org/model atd", "org/other atd")]

    one = save("one", (build_record(method="atd"), draw(4)))
    (only,) = compare(both, one, resamples=9, progress=False).comparisons
    assert (only.a, only.b) == (f"org/model atd in {both}", f"org/model atd in {one}")

    strange = save("strange", (build_record(method="energy", model=other), draw(5)))
    with pytest.raises(ValueError, match="Several records of .*both.* and .*strange.* could be compared"):
        compare(both, strange, progress=False)


def test_files_without_common_sets_are_refused(save: Save, draw: Build, build_record: Build) -> None:
    a = save("a", (build_record(), draw()))
    b = save("b", (build_record(seed=1), draw()))
    with pytest.raises(
        ValueError, match="in common: .* has tiny \\(Far away; seed 0\\) and .* has tiny \\(Far away; seed 1\\)"
    ):
        compare(a, b, progress=False)


def test_tampered_scores_cannot_be_compared(save: Save, draw: Build, build_record: Build) -> None:
    a = save("a", (build_record(), draw()))
    b = save("b", (build_record(method="atd"), draw(1)))
    (file,) = (b.parent / "scores").iterdir()
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError, match="atd on Far away in .* are not those of the record"):
        compare(a, b, progress=False)


def test_bad_arguments_of_compare(save: Save, tmp_path: Path, draw: Build, build_record: Build) -> None:
    a = save("a", (build_record(), draw()))
    with pytest.raises(ValueError, match="`metric` must be one of auroc, .*, got 'auc'"):
        compare(a, a, "auc")
    with pytest.raises(ValueError, match="Did you mean 'auroc_full_spectrum'"):
        compare(a, a, "auroc_fullspectrum")
    with pytest.raises(ValueError, match="`resamples` must be at least 1"):
        compare(a, a, resamples=0)
    with pytest.raises(ValueError, match="has no records with the metric rejected_at_tpr95; there are auroc, fpr95, "):
        compare(a, a, "rejected_at_tpr95")
    with pytest.raises(FileNotFoundError, match="There is no file .*missing.jsonl; name"):
        compare(a, tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="There is nothing to compare: give a second file `b`, or two methods"):
        compare(a, method_a="mcm", method_b="mcm")
    with pytest.raises(ValueError, match="`method_b` must be one that .* has, mcm, got 'mmc'. Did you mean 'mcm'"):
        compare(a, method_b="mmc")
    with pytest.raises(ValueError, match="`model_a` must be one that .* has, org/model, got 'other'"):
        compare(a, model_a="other")


def describe(name: str, group: str = "far") -> dict[str, Any]:
    return {"name": name, "group": group, "images": 50, "unreadable": 0, "sha256": name, "note": ""}


def test_two_methods_of_one_file(save: Save, draw: Build, build_record: Build) -> None:
    file = save(
        "a", (build_record(), draw(0)), (build_record(method="atd"), draw(1)), (build_record(method="x"), draw())
    )
    result = compare(file, method_a="atd", method_b="mcm", resamples=9, progress=False)
    (comparison,) = result.comparisons
    assert (comparison.a, comparison.b) == ("org/model atd", "org/model mcm")
    assert comparison.value_b == auroc(draw(0)["id_scores"], draw(0)["ood_scores"])
    assert result.left_out == []
    # The folder is enough.
    assert compare(file.parent, method_a="atd", method_b="mcm", resamples=9, progress=False) == result


def test_two_models_of_one_file(save: Save, draw: Build, build_record: Build) -> None:
    other = {**build_record()["model"], "id": "org/other", "weights_sha256": "5" * 64}
    records = [
        build_record(method=method, model=model) for model in (build_record()["model"], other) for method in "xy"
    ]
    file = save("a", *((record, draw(seed)) for seed, record in enumerate(records)))
    found = compare(file, model_a="org/model", model_b="other", resamples=9, progress=False).comparisons
    assert [(one.a, one.b) for one in found] == [("org/model x", "org/other x"), ("org/model y", "org/other y")]


def test_settings_and_templates_tell_names_apart(save: Save, draw: Build, build_record: Build) -> None:
    a = save("a", (build_record(), draw(0)))
    b = save("b", (build_record(templates=["{}"], settings={"temperature": 2.0}), draw(1)))
    (comparison,) = compare(a, b, resamples=9, progress=False).comparisons
    assert comparison.a == 'org/model mcm (temperature 1.0, templates ["a photo of a {}."])'
    assert comparison.b == 'org/model mcm (temperature 2.0, templates ["{}"])'


def test_settings_pair_the_rows_of_one_method(save: Save, draw: Build, build_record: Build) -> None:
    rows = [(build_record(settings={"temperature": value}), draw(int(value))) for value in (1.0, 2.0)]
    a, b = save("a", *rows), save("b", *rows[::-1])
    found = compare(a, b, resamples=9, progress=False).comparisons
    assert [one.difference for one in found] == [0, 0]
    assert [one.a.split(" in ")[0] for one in found] == [
        f"org/model mcm (temperature {value})" for value in (1.0, 2.0)
    ]


def test_what_has_no_partner_is_said(save: Save, draw: Build, build_record: Build) -> None:
    def records(methods: str, seeds: range, *sets: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        return [
            (build_record(method=method, seed=seed, set=describe(name)), draw(seed))
            for method in methods
            for seed in seeds
            for name in sets
        ]

    a = save("a", *records("xy", range(1), "one", "two"))
    b = save("b", *records("yz", range(4), "one"))
    result = compare(a, b, resamples=9, progress=False)
    assert [(one.seed, one.set) for one in result.comparisons] == [(0, "one")]
    assert result.left_out == [
        f"Left out of A ({a}), for want of a partner: org/model x; set two.",
        f"Left out of B ({b}), for want of a partner: org/model z; seeds 1 to 3.",
    ]


def test_averages_are_paired(save: Save, draw: Build, build_record: Build, build_evaluation: Build) -> None:
    sets = ("b", "a")
    rows = [(build_record(set=describe(name)), draw(seed)) for seed, name in enumerate(sets)]
    others = [(build_record(method="atd", set=describe(name)), draw(seed + 5)) for seed, name in enumerate(sets)]
    result = compare(save("a", *rows), save("b", *others), resamples=99, progress=False)
    (average,) = result.averages
    assert [one.set for one in result.comparisons] == ["b", "a"]
    assert (average.set, average.group) == ("average", "far")
    assert average.difference == pytest.approx(np.mean([one.difference for one in result.comparisons]))
    for own, value in ((rows, average.value_a), (others, average.value_b)):
        (entry,) = average_intervals([build_evaluation(*pair) for pair in own], ["auroc"], resamples=99)
        assert entry["metrics"]["auroc"]["value"] == pytest.approx(value)
    assert average.low < average.difference < average.high
    drawn = [
        average_resamples(["auroc"], [tuple(scores.values()) for _, scores in own[::-1]], resamples=99, seed=0)[
            "auroc"
        ]
        for own in (rows, others)
    ]
    assert (average.low, average.high) == pytest.approx(tuple(np.quantile(drawn[1] - drawn[0], [0.025, 0.975])))
    widths = [one.high - one.low for one in result.comparisons]
    assert average.high - average.low < max(widths)
    # Nothing differs from itself, whatever is drawn.
    (same,) = compare(save("c", *rows), save("d", *rows), resamples=9, progress=False).averages
    assert (same.low, same.high, same.p_value) == (0, 0, 1)


def test_seeds_are_summarized(save: Save, draw: Build, build_record: Build) -> None:
    def rows(shift: int) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        return [
            (build_record(seed=seed, method=f"m{shift}", set=describe(name, group)), draw(seed + shift))
            for seed in range(3)
            for name, group in (("one", "near"), ("two", "far"), ("three", "near"))
        ]

    result = compare(save("a", *rows(0)), save("b", *rows(10)), resamples=9, progress=False)
    assert len(result.comparisons) == 9 and len(result.averages) == 3
    found = result.over_seeds()
    assert [(one.group, one.set) for one in found] == [
        ("near", "one"),
        ("near", "three"),
        ("near", "average"),
        ("far", "two"),
    ]
    differences = [one.difference for one in result.comparisons if one.set == "one"]
    assert found[0].difference == pytest.approx(np.mean(differences))
    assert found[0].deviation == pytest.approx(np.std(differences, ddof=1))
    assert (found[0].seeds, found[0].higher) == (3, sum(difference > 0 for difference in differences))
    single = compare(save("c", *rows(0)[:1]), save("d", *rows(10)[:1]), resamples=9, progress=False).over_seeds()
    assert [one.deviation for one in single] == [None]


def test_metrics_of_id_images_are_compared_once(save: Save, draw: Build, build_record: Build) -> None:
    rows = [(build_record(set=describe(name)), draw(0)) for name in ("one", "two")]
    a = save("a", *rows)
    for metric in ("id_accuracy", "aurc"):
        result = compare(a, a, metric, resamples=9, progress=False)
        assert [(one.group, one.set) for one in result.comparisons] == [("id", "ID")]
        assert result.averages == [] and result.left_out == []


@pytest.fixture
def shifted_rows(draw: Build, build_record: Build) -> Build:
    def shifted_rows(method: str, seed: int) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        sets = (("drawn", SHIFT), ("toys", SHIFT), ("far", "far"))
        every = [draw(seed + position) for position in range(3)]
        # The ID images are the same.
        for scores in every[1:]:
            scores |= {name: every[0][name] for name in scores if name != "ood_scores"}
        return [
            (build_record(method=method, set=describe(*place)), scores)
            for place, scores in zip(sets, every, strict=True)
        ]

    return shifted_rows


def test_full_spectrum(save: Save, shifted_rows: Build) -> None:
    rows = {method: shifted_rows(method, seed) for method, seed in (("mcm", 0), ("atd", 10))}
    a, b = (save(method, *rows[method]) for method in rows)
    (comparison,) = compare(a, b, "auroc_full_spectrum", resamples=30, progress=False).comparisons
    for method, value in (("mcm", comparison.value_a), ("atd", comparison.value_b)):
        drawn, toys, far = (scores for _, scores in rows[method])
        wide = np.concatenate([far["id_scores"], drawn["ood_scores"], toys["ood_scores"]])
        assert value == auroc(wide, far["ood_scores"])
    assert comparison.set == "far" and comparison.low <= comparison.difference <= comparison.high
    fewer = save("fewer", *rows["atd"][1:])
    with pytest.raises(ValueError, match="the records of shifted sets are not the same \\(drawn, toys and toys\\)"):
        compare(a, fewer, "fpr95_full_spectrum", progress=False)


def test_accuracy_on_shifted_sets(save: Save, tmp_path: Path, shifted_rows: Build) -> None:
    a, b = (save(method, *shifted_rows(method, 0)) for method in ("mcm", "atd"))
    result = compare(a, b, "accuracy", resamples=9, progress=False)
    assert [(one.group, one.set) for one in result.comparisons] == [(SHIFT, "drawn"), (SHIFT, "toys")]
    # All were taken for the first label and are of the second one.
    assert result.comparisons[0].value_a == id_accuracy([0] * 50, [1] * 50) == 0
    # Sets of another kind are no loss.
    assert result.left_out == []
    assert compare(a, b, "accuracy", resamples=9, progress=False).averages[0].set == "average"
