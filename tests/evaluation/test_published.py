# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipn_hf.evaluation import published
from clipn_hf.evaluation.published import published_results

ENTRY = {
    "benchmark": "tiny",
    "method": "CLIPN-A (ATD)",
    "model": "ViT",
    "source": "arXiv 0000.00000",
    "fpr_positive": "id",
    "results": {"SUN": {"auroc": 94.18, "fpr95": 25}},
    "average": {"auroc": 93.45},
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(entries: Any) -> None:
        path = tmp_path / "published.yaml"
        path.write_text(yaml.safe_dump(entries), encoding="utf-8")
        monkeypatch.setattr(published, "_FILE", path)
        published._read.cache_clear()

    yield write
    published._read.cache_clear()


def test_the_file_of_the_package_is_read() -> None:
    (atd,) = [result for result in published_results("imagenet1k", "atd") if result.results]
    assert atd.results["iNaturalist"] == {"fpr95": 19.11, "auroc": 96.20}
    assert atd.fpr_positive == "id"
    assert atd.source
    # Under the names that the methods have here
    (neglabel,) = published_results("imagenet1k", "neglabel")
    assert neglabel.results["SUN"] == {"fpr95": 20.53, "auroc": 95.49}
    assert neglabel.average == {"fpr95": 25.40, "auroc": 94.21}
    (csp,) = published_results("imagenet1k", "csp")
    assert csp.average == {"fpr95": 17.51, "auroc": 95.76}
    (negrefine,) = published_results("imagenet1k", "negrefine")
    assert (dict(negrefine.results), negrefine.average) == ({}, {"auroc": 91.79})
    assert published_results("no such suite") == []
    assert {result.benchmark for result in published_results()} >= {"imagenet1k"}


def test_a_method_is_found_by_one_of_its_words(write: Any) -> None:
    write([ENTRY, {**ENTRY, "method": "GL-MCM"}, {**ENTRY, "method": "MCM"}])
    for asked, found in {"atd": "CLIPN-A (ATD)", "clipn-a": "CLIPN-A (ATD)", "MCM": "MCM", "gl-mcm": "GL-MCM"}.items():
        assert [result.method for result in published_results(method=asked)] == [found]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sourse": "x"}, r"published.yaml\[0\] has an unknown key 'sourse', did you mean 'source'\?"),
        ({"fpr_positive": "both"}, "`fpr_positive` must be 'id' or 'ood', but is 'both'"),
        ({"results": {"SUN": {"auroc": 942}}}, r"'auroc' must be a number of percent in \[0, 100\], but is 942"),
        ({"results": {"SUN": {"auroc": "94"}}}, "'auroc' must be a number of percent"),
        ({"results": [1]}, "`results` must map names of sets to metrics"),
        ({"average": [1]}, "`average` must map metrics to percent"),
    ],
)
def test_mistakes_in_the_file_are_named(write: Any, change: dict[str, Any], message: str) -> None:
    write([{**ENTRY, **change}])
    with pytest.raises(ValueError, match=message):
        published_results()


def test_missing_keys_and_other_shapes(write: Any) -> None:
    write([{"benchmark": "tiny"}])
    with pytest.raises(ValueError, match="lacks 'method', 'model', 'source', 'fpr_positive', 'results'"):
        published_results()
    write({"benchmark": "tiny"})
    with pytest.raises(ValueError, match="must be a list of results, but is dict"):
        published_results()
    write(["text"])
    with pytest.raises(ValueError, match="must be a mapping, but is 'text'"):
        published_results()
