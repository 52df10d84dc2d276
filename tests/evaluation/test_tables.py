# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tables: the right numbers in the right cells, conventions in every header, nothing pooled, everything escaped."""

import copy
import csv
import io
import json
import re
import statistics
from typing import Any

import pytest

from clipn_hf.evaluation.published import published_results
from clipn_hf.evaluation.tables import (
    METRICS,
    PUBLISHED_NOTE,
    csv_table,
    latex_table,
    markdown_table,
    metric_title,
    public_name,
    result_tables,
    row_key,
    row_names,
)

CLIP = "openai/clip-vit-base-patch16"


def values(result: Any, method: str, name: str, metric: str, model: str = CLIP) -> list[dict[str, float]]:
    return [
        record["metrics"][metric]
        for record in result.records
        if (record["model"]["id"], record["method"], record["set"]["name"]) == (model, method, name)
    ]


def parse(markdown: str) -> list[list[list[str]]]:
    """All tables of a text, as rows of cells."""
    tables = re.findall(r"(?:^\|.*\|\n?)+", markdown, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.strip().split("\n")]
        for table in tables
    ]


def average_of(record: dict[str, Any], sets: list[str], low: float, high: float) -> dict[str, Any]:
    """An entry of averages.json with the AUROC of a row on a group of sets."""
    names = ("suite", "suite_sha256", "convention", "model", "method", "settings", "templates", "no_templates", "seed")
    metrics = {"auroc": {"value": 0.5, "low": low, "high": high}}
    return {**{name: record[name] for name in names}, "group": "far", "sets": sets, "metrics": metrics}


def test_one_seed_has_intervals(result: Any) -> None:
    text = markdown_table(result.records)
    assert "In brackets: the 95 % bootstrap interval over images (20 resamples)." in text
    assert "±" not in text
    auroc, fpr = parse(text)[:2]
    assert auroc[0] == [
        *("AUROC ↑", "", "near: CIFAR-100 part", "far: MNIST", "far: Textures & more", "far average"),
    ]
    assert fpr[0][0] == "FPR95, ID positive, exact rule ↓"
    (mnist,) = values(result, "mcm", "MNIST", "auroc")
    assert auroc[2][:2] == [CLIP, "mcm"]
    assert auroc[2][3] == f"{100 * mnist['value']:.1f} [{100 * mnist['low']:.1f}, {100 * mnist['high']:.1f}]"


def test_averages_are_of_sets_and_not_of_images(result: Any) -> None:
    sets = [values(result, "mcm", name, "auroc")[0]["value"] for name in ("MNIST", "Textures & more")]
    # An average over sets has no interval of its own in the records.
    text = markdown_table(result.records)
    assert parse(text)[0][2][5] == f"{100 * statistics.fmean(sets):.1f}"
    assert "An average is the plain mean over the sets of its group, without an interval." in text


def test_averages_show_the_interval_that_is_theirs(result: Any) -> None:
    record, far = result.records[0], ["Textures & more", "MNIST"]
    entry = average_of(record, far, 0.123, 0.988)
    shown = parse(markdown_table(result.records, averages=[entry]))
    assert shown[0][2][5].endswith(" [12.3, 98.8]")
    assert "[12.3, 98.8]" not in str([shown[0][3:], shown[1:]])
    assert "without an interval" not in markdown_table(result.records, averages=[entry])
    assert r"{\scriptsize [12.3, 98.8]}" in latex_table(result.records, averages=iter([entry]))
    others = [
        {**entry, "sets": ["MNIST"]},
        {**entry, "seed": 1},
        {**entry, "group": "near"},
        {**entry, "suite_sha256": "other"},
        {**entry, "settings": {"temperature": 2.0}},
    ]
    assert markdown_table(result.records, averages=others) == markdown_table(result.records)
    # Over seeds, ± says how much an average varies.
    seeds = [*result.records, *({**record, "seed": 1} for record in result.records)]
    assert "[12.3, 98.8]" not in markdown_table(seeds, averages=[entry])


def test_several_seeds_have_standard_deviations(seeds_result: Any) -> None:
    text = markdown_table(seeds_result.records)
    assert "± is the standard deviation over 3 seeds." in text
    assert "bootstrap" not in text
    row = parse(text)[0][2]
    mnist, textures = (
        [each["value"] for each in values(seeds_result, "mcm", name, "auroc")] for name in ("MNIST", "Textures & more")
    )
    assert row[3] == f"{100 * statistics.fmean(mnist):.1f} ± {100 * statistics.stdev(mnist):.1f}"
    means = [statistics.fmean(pair) for pair in zip(mnist, textures, strict=True)]
    assert row[5] == f"{100 * statistics.fmean(means):.1f} ± {100 * statistics.stdev(means):.1f}"


@pytest.mark.parametrize(("metric", "best"), [("auroc", max), ("fpr95", min)])
def test_the_best_of_each_column_is_bold(result: Any, metric: str, best: Any) -> None:
    rows = parse(markdown_table(result.records, [metric]))[0][2:]
    for column in range(2, len(rows[0])):
        numbers = [float(re.search(r"[\d.]+", row[column])[0]) for row in rows]  # type: ignore[index]
        bold = [row[column].startswith("**") for row in rows]
        assert bold == [number == best(numbers) for number in numbers]


def test_what_is_printed_by_default(make_result: Any, result: Any) -> None:
    def metrics(records: Any) -> list[str]:
        return [table.metric for table in result_tables(records)[0].tables]

    default = ["auroc", "fpr95", "fpr95_ood_positive", "id_accuracy"]
    assert metrics(result.records) == default
    for text in (markdown_table(result.records), latex_table(result.records)):
        assert "FPR95, ID positive, exact rule" in text and "FPR95, OOD positive, exact rule" in text
        assert "ID accuracy" in text and "AUPR" not in text
    numbers = {"value": 0.5, "low": None, "high": None}
    shifted = [
        {**record, "metrics": {**record["metrics"], "auroc_full_spectrum": numbers, "fpr95_full_spectrum": numbers}}
        for record in result.records
    ]
    assert metrics(shifted) == [*default, "auroc_full_spectrum", "fpr95_full_spectrum"]


def test_other_metrics_come_on_request(result: Any) -> None:
    text = markdown_table(result.records, ["aupr_in", "aupr_in"])
    assert text.count("AUPR-in, average precision ↑") == 1
    assert "FPR95" not in text and "ot in these results" not in text
    absent = markdown_table(result.records, ["auroc", "auroc_full_spectrum", "accuracy"])
    assert "Not in these results: AUROC, full spectrum." in absent
    unshifted = [record for record in result.records if record["set"]["group"] != "covariate-shift"]
    bare = [{**record, "metrics": {"auroc": record["metrics"]["auroc"]}} for record in unshifted]
    text = markdown_table(bare, ["auroc", "accuracy", "oscr", "auroc_full_spectrum"])
    assert "Not in these results (there are no shifted sets): Accuracy; AUROC, full spectrum." in text
    assert "Not in these results: OSCR." in text
    assert text.count("ot in these results") == 2
    with pytest.raises(ValueError, match="`metrics` is empty; give at least one of auroc, fpr95"):
        markdown_table(result.records, [])


def test_unreadable_images_are_in_the_notes(result: Any) -> None:
    assert "3 unreadable images of MNIST were left out." in markdown_table(result.records)
    record = next(record for record in result.records if record["set"]["name"] == "MNIST")
    one = {**record, "set": {**record["set"], "unreadable": 1}}
    assert "1 unreadable image of MNIST was left out." in markdown_table([one])
    fit = {"name": "train", "images": 5, "unreadable": 1, "sha256": "4" * 64}
    both = [{**one, "fit_set": fit, "id_set": {**record["id_set"], "unreadable": 2}}]
    text = markdown_table([*both, {**record, "seed": 1}])
    assert "0 to 2 unreadable images of CIFAR-10, 1 of train and 1 to 3 of MNIST were left out." in text
    assert "unreadable" not in markdown_table([{**record, "set": {**record["set"], "unreadable": 0}}])


def test_nothing_is_bold_where_nothing_is_better(result: Any) -> None:
    same = [record for record in result.records if record["method"] == "mcm" and record["model"]["id"] == CLIP]
    assert "| **" not in markdown_table(same)
    # Of a shifted set, neither direction of AUROC is better.
    shifted = {table.metric: table for table in result_tables(result.records)[0].shifted_tables}
    assert not any(row.cells[0].best for row in shifted["auroc"].rows)
    assert any(row.cells[0].best for row in shifted["rejected_at_tpr95"].rows)


def test_covariate_shift_has_tables_of_its_own(result: Any) -> None:
    (suite,) = result_tables(result.records)
    assert all(group != "covariate-shift" for table in suite.tables for group, _ in table.columns)
    assert [table.metric for table in suite.shifted_tables] == ["accuracy", "rejected_at_tpr95", "auroc"]
    before, after = markdown_table(result.records).split("**Covariate shift**")
    assert "CIFAR-10, drawn" not in before
    assert "CIFAR-10, drawn" in after


def test_missing_results_leave_gaps_and_no_average(result: Any) -> None:
    records = [record for record in result.records if (record["method"], record["set"]["name"]) != ("energy", "MNIST")]
    row = next(row for row in parse(markdown_table(records))[0] if row[1] == "energy")
    assert row[3] == "–"
    assert row[5] == "–"
    assert row[4] != "–"


def test_every_metric_has_a_title_with_its_convention(result: Any) -> None:
    titles = {table.metric: table.heading for table in result_tables(result.records, METRICS)[0].tables}
    assert titles["fpr95_ood_positive"] == "FPR95, OOD positive, exact rule ↓"
    assert titles["aupr_in"] == "AUPR-in, average precision ↑"
    assert "auroc_full_spectrum" not in titles
    assert metric_title("fpr95", {"tpr": 0.9, "fpr_positive": "ood", "fpr_rule": "linear"}) == (
        "FPR90, OOD positive, linear rule"
    )
    for table in result_tables(result.records, ["id_accuracy", "aurc"])[0].tables:
        assert table.columns == (("", "CIFAR-10"),)


def test_what_does_not_depend_on_the_method_stands_once_for_each_model(make_result: Any) -> None:
    result = make_result(methods=["mcm", "atd"], resamples=0, pixels=False)
    accuracy = result_tables(result.records)[0].shifted_tables[0]
    assert [(row.model, row.method) for row in accuracy.rows] == [
        (CLIP, "every method"),
        ("clipn-tiny", "every method"),
    ]
    next(record for record in result.records if "accuracy" in record["metrics"])["metrics"]["accuracy"]["value"] = 0.7
    accuracy = result_tables(result.records)[0].shifted_tables[0]
    assert [row.method for row in accuracy.rows] == ["mcm", "atd", "every method"]


def test_methods_that_agree_share_a_row(make_result: Any) -> None:
    result = make_result(models=[CLIP], methods=["mcm", "msp", "knn", "energy"], resamples=0, pixels=False)
    for record in result.records:
        if "id_accuracy" in record["metrics"]:
            record["metrics"]["id_accuracy"]["value"] = 0.6 if record["method"] == "knn" else 0.9
    (table,) = result_tables(result.records, ["id_accuracy"])[0].tables
    assert [(row.method, row.cells[0].number) for row in table.rows] == [
        ("knn", "60.0"),
        ("every other method", "90.0"),
    ]


def test_other_conventions_and_suites_are_kept_apart(result: Any) -> None:
    other = [
        {**record, "convention": {**record["convention"], "fpr_rule": "linear"}, "suite_sha256": "abcdef0123"}
        for record in result.records
    ]
    text = markdown_table([*result.records, *other])
    assert "FPR95, ID positive, exact rule ↓" in text
    assert "FPR95, ID positive, linear rule ↓" in text
    assert "### cifar10 (abcdef01)" in text
    renamed = [{**record, "suite": "other"} for record in result.records]
    assert [suite.heading for suite in result_tables([*renamed, *result.records])] == ["other", "cifar10"]


def test_rows_that_look_alike_say_what_differs(result: Any) -> None:
    first = [record for record in result.records if record["method"] == "mcm" and record["model"]["id"] == CLIP]
    cold = [{**record, "settings": {"temperature": 0.01}} for record in first]
    half = [{**record, "model": {**record["model"], "dtype": "float16"}} for record in first]
    names = row_names([*first, *cold])
    assert [method for _, method in names.values()] == ["mcm (temperature 1.0)", "mcm (temperature 0.01)"]
    assert [model for model, _ in row_names([*first, *half]).values()] == [
        f"{CLIP} (dtype float32)",
        f"{CLIP} (dtype float16)",
    ]
    prompts = [{**record, "templates": ["{}"]} for record in first]
    assert [method for _, method in row_names([*first, *prompts]).values()] == [
        'mcm (templates ["a photo of a {}."])',
        'mcm (templates ["{}"])',
    ]
    assert row_key(first[0]) == row_key(first[1]) != row_key(cold[0])


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (
            [{"image_processor_sha256": None}, {"image_processor_sha256": "b" * 64}],
            [CLIP, f"{CLIP} (image processor bbbbbbbb)"],
        ),
        ([{}, {"extra": "x"}], [CLIP, f"{CLIP} (extra x)"]),
        ([{"id": "/data/a/tiny"}, {"id": "/data/a/tiny", "extra": "x"}], ["tiny (in a)", "tiny (extra x)"]),
        ([{}, {"extra": None}], [CLIP, f"{CLIP} (no. 2)"]),
        (
            [{"weights_sha256": "a" * 64}, {"weights_sha256": "a" * 63 + "b"}],
            [CLIP, f"{CLIP} (no. 2)"],
        ),
    ],
)
def test_what_is_not_known_is_in_no_name(result: Any, models: list[dict[str, Any]], expected: list[str]) -> None:
    first = next(record for record in result.records if record["model"]["id"] == CLIP)
    records = [{**first, "model": {**first["model"], **changes}} for changes in models]
    assert [model for model, _ in row_names(records).values()] == expected
    settings = [{**first, "no_templates": no_templates} for no_templates in (None, ["no {}"])]
    assert [method for _, method in row_names(settings).values()] == ["mcm", 'mcm (no templates ["no {}"])']


def test_paths_are_not_given_away(result: Any) -> None:
    for text in (markdown_table(result.records), latex_table(result.records)):
        assert "/data/me" not in text
        assert "clipn-tiny" in text
    assert "/data/me" not in csv_table(result.records)
    assert public_name(CLIP) == CLIP
    assert public_name("./runs/tiny/") == public_name("C:\\runs\\tiny") == public_name("a/b/tiny") == "tiny"
    two = [copy.deepcopy(result.records[0]) for _ in range(2)]
    two[0]["model"]["id"], two[1]["model"]["id"] = "/data/me/a/tiny", "/data/me/b/tiny"
    assert [model for model, _ in row_names(two).values()] == ["tiny (in a)", "tiny (in b)"]


def test_names_are_escaped() -> None:
    nasty = r"a|b <script> *x* _y_ [z] `c` & &lt; \ 100% $5 #1 {q} ~ ^"
    record = {
        "suite": nasty,
        "suite_sha256": None,
        "model": {"id": nasty, "class": "CLIPModel"},
        "method": "max_logit",
        "settings": {},
        "labels": {"count": 2},
        "seed": 0,
        "id_set": {"name": nasty, "images": 3},
        "set": {"name": nasty, "group": "far", "note": "line\nbreak"},
        "convention": {"fpr_positive": "id", "fpr_rule": "exact", "tpr": 0.95, "aupr_rule": "trapezoid"},
        "metrics": {"auroc": {"value": 0.5}},
    }
    text = markdown_table([record])
    assert {len(row) for row in parse(text)[0]} == {3}
    assert "<script>" not in text.replace(r"\<script>", "")
    assert r"\_y\_" in text and "| max_logit |" in text and "&amp;lt;" in text and r"\*x\*" in text
    latex = latex_table([record])
    assert r"100\% \$5 \#1 \{q\} \textasciitilde{} \textasciicircum{}" in latex
    assert r"a\textbar{}b \textless{}script\textgreater{}" in latex
    assert r"max\_logit" in latex
    # Each line of the body has as many cells as columns.
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert len(re.findall(r"(?<!\\)&", body)) == 2


def test_csv_is_long_and_not_rounded(result: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_table(result.records))))
    assert len(lines) == sum(len(record["metrics"]) for record in result.records)
    by_place = {(line["model"], line["method"], line["set"], line["metric"]): line for line in lines}
    for record in result.records:
        for metric, numbers in record["metrics"].items():
            line = by_place[public_name(record["model"]["id"]), record["method"], record["set"]["name"], metric]
            assert float(line["value"]) == numbers["value"]
            assert line["low"] == ("" if numbers["low"] is None else repr(numbers["low"]))
    fpr = by_place[CLIP, "mcm", "MNIST", "fpr95_ood_positive"]
    assert (fpr["fpr_positive"], fpr["fpr_rule"], fpr["tpr"]) == ("ood", "exact", "0.95")
    assert by_place[CLIP, "mcm", "MNIST", "fpr95"]["fpr_positive"] == "id"
    assert by_place[CLIP, "mcm", "MNIST", "auroc"]["fpr_positive"] == ""
    assert (fpr["unreadable"], fpr["excluded"], fpr["expected"]) == ("3", "7", "10000")


def test_negative_labels_are_in_notes_rows_and_csv(make_result: Any) -> None:
    made = make_result(models=[CLIP], methods=["mcm", "neglabel"], pixels=False)
    settings = {"corpus": "wordnet", "fraction": 0.15}
    records = [
        {**record, "negatives": {"count": 17044, "sha256": "7" * 64, "settings": settings, "report": {}}}
        if record["method"] == "neglabel"
        else record
        for record in made.records
    ]
    assert "Negative labels: 17,044 for neglabel (corpus wordnet)." in markdown_table(records)
    assert "Negative labels" not in markdown_table(made.records)
    by_method = {line["method"]: line["negatives"] for line in csv.DictReader(io.StringIO(csv_table(records)))}
    assert by_method["mcm"] == "" and json.loads(by_method["neglabel"])["count"] == 17044
    # Records of earlier versions, which have no such entry, are of the same rows as those that have none.
    assert row_key({**made.records[0], "negatives": None}) == row_key(made.records[0])
    # Other counts are other labels; other settings are another row.
    neglabel = records[-1]
    fewer = {**neglabel, "negatives": {**neglabel["negatives"], "count": 3, "sha256": "8" * 64}}
    assert row_key(fewer) == row_key(neglabel)
    other = {**neglabel, "negatives": {**neglabel["negatives"], "settings": {**settings, "fraction": 0.3}}}
    assert row_key(other) != row_key(neglabel)


def test_latex_has_rules_groups_and_bold(result: Any) -> None:
    text = latex_table(result.records)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 7
    assert r"\multicolumn{1}{c}{near OOD} & \multicolumn{3}{c}{far OOD} \\" in text
    assert r"\cmidrule(lr){3-3}\cmidrule(lr){4-6}" in text
    assert r"FPR95, ID positive, exact rule $\downarrow$" in text
    assert re.search(r"\\textbf\{[\d.]+\} \{\\scriptsize \[[\d.]+, [\d.]+\]\}", text)
    assert "±" not in text and "↑" not in text


def test_latex_has_deviations_over_seeds(seeds_result: Any) -> None:
    text = latex_table(seeds_result.records)
    assert re.search(r"[\d.]+ \{\\scriptsize \$\\pm\$ [\d.]+\}", text)
    assert "±" not in text


def test_published_numbers_come_on_request_and_apart(make_result: Any) -> None:
    result = make_result(
        models=[CLIP], methods=["mcm"], sets={"far": ["iNaturalist", "SUN"]}, name="imagenet1k", pixels=False
    )
    plain, text = markdown_table(result.records), markdown_table(result.records, published=True)
    assert "19.11" not in plain and "ublished" not in plain
    ours, theirs = text.split("#### Published on imagenet1k")
    assert ours.strip() == plain.strip()
    assert PUBLISHED_NOTE in theirs
    auroc, fpr = parse(theirs)
    assert auroc[0][:3] == ["published AUROC ↑", "model", "source"]
    assert fpr[0][:4] == ["published FPR95 ↓", "model", "positive", "source"]
    atd = next(row for row in fpr if "(ATD)" in row[0])
    assert atd[2] == "ID" and "19.11" in atd
    number = int(atd[3])
    source = next(result.source for result in published_results("imagenet1k", "atd"))
    assert f"\n{number}. {source}" in theirs.replace("\\", "")
    # Nothing is published on this one, or of this metric.
    other = [{**record, "suite": "mine"} for record in result.records]
    sentence = "No published results on the suite {} are known here for these metrics."
    assert markdown_table(other, published=True) == f"{markdown_table(other)}\n{sentence.format('mine')}\n"
    text = markdown_table(result.records, ["aurc"], published=True)
    assert sentence.format("imagenet1k") in text and "arXiv" not in text


def test_bad_arguments(result: Any) -> None:
    with pytest.raises(ValueError, match="`records` is empty; give the results of at least one evaluation"):
        markdown_table([])
    with pytest.raises(ValueError, match="one is 'aurok'; did you mean 'auroc'"):
        markdown_table(result.records, ["aurok"])
    with pytest.raises(ValueError, match=r"`metrics` must be a list of names, such as \['auroc'\]"):
        markdown_table(result.records, "auroc")
    twice = [*result.records, result.records[0]]
    with pytest.raises(ValueError, match="Two records are of mcm with openai/clip-vit-base-patch16 on CIFAR-100 part"):
        markdown_table(twice)
