# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The report: complete, self-contained, safe with any name, bounded with any number of sets."""

import base64
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipn_hf.evaluation import figures, report
from clipn_hf.evaluation.doctor import Finding
from clipn_hf.evaluation.report import write_report
from clipn_hf.methods import METHODS

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that elements close in order, and collects elements, texts and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def write(path: Path, result: Any, **options: Any) -> tuple[str, Page]:
    write_report(path, result, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def page(result: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    pytest.importorskip("matplotlib")
    return write(tmp_path_factory.mktemp("report") / "report.html", result)


def test_it_is_one_file_that_loads_nothing(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert text.startswith("<!doctype html>")
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert all(source.startswith("data:image/") for source in parsed.sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text


def test_it_says_what_was_evaluated_and_how(page: tuple[str, Page]) -> None:
    _, parsed = page
    for fact in (
        *("OOD detection: cifar10", "Made-up scores.", "2110.11334", "Draw numbers.", "airplane, cat, dog"),
        *("openai/clip-vit-base-patch16", "clipn-tiny", "a photo of a {}.", "temperature 1.0", "torch 2.13.0"),
        *("FPR95, ID positive, exact rule", "FPR95, OOD positive, exact rule", "average precision"),
        *("95 % bootstrap over images, 20 resamples", "Has known overlaps.", "mcm: the model has no text encoder."),
        *("near-synonyms", "Two labels mean the same; drop one.", "Covariate shift", "AUPR-out"),
    ):
        assert fact in parsed.text, fact
    assert "/data/me" not in parsed.text


def test_images_are_counted(page: tuple[str, Page]) -> None:
    counts = "".join(f'<td class="n">{count}</td>' for count in ("40", "3", "7", "10,000", "3" * 12))
    assert re.search(f"<td>MNIST</td><td>far</td><td>[^<]*</td>{counts}", page[0])
    # Of the ID images, the record does not say how many were left out.
    counts = "".join(f'<td class="n">{count}</td>' for count in ("80", "0", "", ""))
    assert f"<td>CIFAR-10</td><td>ID</td><td></td>{counts}" in page[0]
    assert "3 unreadable images of MNIST were left out." in page[1].text


def test_numbers_are_those_of_the_records(page: tuple[str, Page], result: Any) -> None:
    for record in result.records:
        if record["set"]["group"] != "covariate-shift":
            assert f">{100 * record['metrics']['fpr95']['value']:.1f}" in page[0]


def test_pictures_can_be_opened(page: tuple[str, Page]) -> None:
    kinds = []
    for source in page[1].sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        image.load()
        kinds.append(image.format)
    # Two figures of the suite and two of each of three sets; a sheet of each model for ID and for each set.
    assert (kinds.count("PNG"), kinds.count("JPEG")) == (2 + 2 * 3, 2 * (1 + 3))


def test_mistakes_are_the_worst_of_the_best_method(page: tuple[str, Page], result: Any) -> None:
    best = [evaluation for evaluation in result.evaluations if evaluation.record["method"] == "atd"]
    mnist = next(evaluation for evaluation in best if evaluation.record["set"]["name"] == "MNIST")
    lowest = mnist.ood_set.names[int(mnist.ood_scores.argmin())]
    highest = mnist.id_set.names[int(mnist.id_scores.argmax())]
    for name, score in ((lowest, mnist.ood_scores.min()), (highest, mnist.id_scores.max())):
        assert f"<tr><td>{name}</td><td>{score:.4f}</td>" in page[0]
    assert f"<td>{mnist.ood_set.names[int(mnist.ood_scores.argmax())]}</td>" not in page[0]


def test_names_cannot_break_out(result: Any, tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>'
    evaluations = []
    for evaluation in result.evaluations:
        record = {
            **evaluation.record,
            "method": f"{evaluation.record['method']}{attack}",
            "model": {**evaluation.record["model"], "id": attack},
            "templates": [attack],
            "set": {**evaluation.record["set"], "name": attack + evaluation.record["set"]["name"], "note": attack},
            "id_set": {**evaluation.record["id_set"], "name": attack},
            "versions": {attack: attack},
        }
        data = {
            name: dataclasses.replace(
                getattr(evaluation, name), names=[f"{attack}\udcff{index}" for index in range(len(evaluation.id_rows))]
            )
            for name in ("id_set", "ood_set")
        }
        labels = [f"{attack}{index}" for index in range(3)]
        evaluations.append(dataclasses.replace(evaluation, record=record, labels=labels, **data))
    suite = dataclasses.replace(
        result.suite, name=attack, description=attack, reference=attack, protocol=attack + "</pre></main>"
    )
    hostile = dataclasses.replace(
        result,
        suite=suite,
        evaluations=evaluations,
        findings=[Finding(attack, attack, attack, (attack,))],  # type: ignore[arg-type]
        skipped=[attack],
    )
    text, parsed = write(tmp_path / "report.html", hostile)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") > 50
    assert parsed.text.count(attack) > 50


def test_without_matplotlib_it_says_how_to_get_figures(
    result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, parsed = write(tmp_path / "report.html", result)
    assert figures.MISSING in parsed.text
    assert not any(source.startswith("data:image/png") for source in parsed.sources)
    assert any(source.startswith("data:image/jpeg") for source in parsed.sources)


def test_images_that_cannot_be_read_again_are_left_out(result: Any, tmp_path: Path) -> None:
    evaluations = []
    for evaluation in result.evaluations:
        # The worst one is gone.
        images = list(evaluation.ood_set.images)
        images[int(evaluation.ood_scores.argmin())] = str(tmp_path / "gone.png")
        evaluations.append(
            dataclasses.replace(evaluation, ood_set=dataclasses.replace(evaluation.ood_set, images=images))
        )
    text, _ = write(tmp_path / "report.html", dataclasses.replace(result, evaluations=evaluations), max_tiles=2)
    best = next(
        evaluation
        for evaluation in evaluations
        if (evaluation.record["method"], evaluation.record["set"]["name"]) == ("atd", "MNIST")
    )
    order = best.ood_scores.argsort()
    shown = [f"<td>{best.ood_set.names[index]}</td><td>{best.ood_scores[index]:.4f}</td>" in text for index in order]
    assert shown[:4] == [False, True, True, False]


def test_mistakes_say_what_they_look_like(make_result: Any, tmp_path: Path) -> None:
    made = make_result(models=["clip"], methods=["neglabel"], resamples=0)
    plain, _ = write(tmp_path / "report.html", made)
    assert "<th>looks like</th>" not in plain
    looks_like = [{"label": "<jellyfish>", "score": 0.31}, {"label": "parachute", "score": 0.123}]
    mining = {"corpus": "wordnet", "quantile": 0.95, "filters": ["id_names", "synonyms"], "corpus_sha256": "7" * 64}
    evaluations = [
        dataclasses.replace(
            evaluation,
            record={
                **evaluation.record,
                "model": {**evaluation.record["model"], "family": "siglip", "logit_bias": -16.5, "is_sigmoid": True},
                "settings": METHODS["neglabel"].settings,
                "negatives": {"count": 17_044, "sha256": "8" * 64, "settings": mining, "report": {}},
            },
            id_negatives={int(evaluation.id_scores.argmax()): looks_like},
        )
        for evaluation in made.evaluations
    ]
    text, parsed = write(tmp_path / "report.html", dataclasses.replace(made, evaluations=evaluations))
    assert "<td>&lt;jellyfish&gt; (0.31), parachute (0.12)</td>" in text
    assert "17,044: corpus wordnet, quantile 0.95, filters id_names, synonyms" in parsed.text
    assert "with their shares among all labels and negative labels at once" in parsed.text
    # How many groups so many negative labels give, where the settings leave it to them.
    assert "temperature 0.01, num_groups 100, seed 0" in parsed.text and "None" not in parsed.text
    assert "siglip" in parsed.text and "-16.5, sigmoid loss" in parsed.text
    # Of no negative label there is enough to be named.
    nothing = [{"label": "asterisk", "score": 0.0049}, {"label": "calamus", "score": 0.001}]
    faint = [
        dataclasses.replace(evaluation, id_negatives=dict.fromkeys(evaluation.id_negatives, nothing))
        for evaluation in evaluations
    ]
    faint_text, _ = write(tmp_path / "report.html", dataclasses.replace(made, evaluations=faint))
    assert "asterisk" not in faint_text and "<td>none of them</td>" in faint_text
    # The picture says it, too.
    before, after = (
        [source for source in page.sources if source.startswith("data:image/jpeg")] for page in (Page(plain), parsed)
    )
    assert before[0] != after[0] and before[1:] == after[1:]


def test_embeddings_without_pixels_are_named(seeds_result: Any, tmp_path: Path) -> None:
    _, parsed = write(tmp_path / "report.html", seeds_result)
    assert not any(source.startswith("data:image/jpeg") for source in parsed.sources)
    assert "Images with the lowest scores, atd with clipn-tiny" in parsed.text
    assert "MNIST/00" in parsed.text
    assert "Of 3 seeds, seed 0 is shown." in parsed.text
    assert "± is the standard deviation over 3 seeds." in parsed.text


def test_intervals_of_averages_are_shown(result: Any, tmp_path: Path) -> None:
    names = ("suite", "suite_sha256", "convention", "model", "method", "settings", "templates", "no_templates", "seed")
    entry = {
        **{name: result.records[0][name] for name in names},
        "group": "far",
        "sets": ["MNIST", "Textures & more"],
        "metrics": {"auroc": {"value": 0.5, "low": 0.111, "high": 0.999}},
    }
    spread = '<span class="spread">[11.1, 99.9]</span>'
    assert spread not in write(tmp_path / "report.html", result, max_tiles=0)[0]
    given = dataclasses.replace(result, averages=[entry])
    assert write(tmp_path / "report.html", given, max_tiles=0)[0].count(spread) == 1


def test_the_best_method_says_by_what(make_result: Any, tmp_path: Path) -> None:
    result = make_result(models=["clip"], methods=["mcm", "atd"], resamples=0, pixels=False)
    values = {("mcm", "near"): 0.7, ("mcm", "far"): 0.9, ("atd", "near"): 0.6, ("atd", "far"): 0.99}
    for record in result.records:
        if "auroc" in record["metrics"] and record["set"]["group"] != "covariate-shift":
            record["metrics"]["auroc"]["value"] = values[record["method"], record["set"]["group"]]
    _, parsed = write(tmp_path / "report.html", result)
    assert "Best method of each model" in parsed.text
    # 80 against 79.5 in the mean.
    assert "mcm with clip: AUROC near OOD 70.0, far OOD 90.0 (atd: 99.0)" in parsed.text
    assert "Best is the highest mean of near and far OOD, both counted alike" in parsed.text
    assert "The choice was made on these very sets" in parsed.text
    alone = dataclasses.replace(
        result, evaluations=[each for each in result.evaluations if each.record["method"] == "atd"]
    )
    _, parsed = write(tmp_path / "report.html", alone)
    assert "In short" in parsed.text and "The choice was made" not in parsed.text


def test_no_tiles_on_request(result: Any, tmp_path: Path) -> None:
    _, parsed = write(tmp_path / "report.html", result, max_tiles=0)
    assert not any(source.startswith("data:image/jpeg") for source in parsed.sources)
    assert "MNIST/00" not in parsed.text


def test_many_sets_stay_a_page(make_result: Any, tmp_path: Path) -> None:
    result = make_result(
        models=["clip"],
        methods=["mcm", "atd"],
        sets={"near": [f"near {index}" for index in range(100)], "far": [f"far {index}" for index in range(100)]},
        images=16,
        resamples=0,
    )
    findings = [Finding("note", "check", "Look.", tuple(map(str, range(99))))] * 300
    path = tmp_path / "report.html"
    _, parsed = write(path, dataclasses.replace(result, findings=findings), max_tiles=1)
    assert sum("png" in source[:20] for source in parsed.sources) <= 2 + 2 * report.MAX_SETS
    assert sum("jpeg" in source[:20] for source in parsed.sources) <= report.MAX_SHEETS
    assert "The 12 hardest of 200 sets are shown." in parsed.text
    assert "near 99" in parsed.text and "200 more are not listed." in parsed.text and "and 79 more" in parsed.text
    assert path.stat().st_size < 8e6


def test_published_results_come_on_request(make_result: Any, tmp_path: Path) -> None:
    result = make_result(
        models=["clip"], methods=["mcm"], sets={"far": ["iNaturalist"]}, name="imagenet1k", pixels=False
    )
    assert "Published" not in write(tmp_path / "report.html", result)[1].text
    other = dataclasses.replace(result, suite=dataclasses.replace(result.suite, name="mine"))
    text = write(tmp_path / "report.html", other, published=True)[1].text
    assert "No published results on the suite mine are known here" in text
    text = write(tmp_path / "report.html", result, published=True)[1].text
    assert "Published" in text and "19.11" in text and "arXiv 2308.12213" in text


def test_the_same_result_gives_the_same_file(result: Any, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, result, max_tiles=1)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_bad_arguments(result: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_tiles` must be at least 0, but is -1"):
        write_report(tmp_path / "report.html", result, max_tiles=-1)
    with pytest.raises(ValueError, match="`result.evaluations` is empty; a report needs at least one"):
        write_report(tmp_path / "report.html", dataclasses.replace(result, evaluations=[]))
    assert list(tmp_path.iterdir()) == []
