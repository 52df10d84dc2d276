# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Suites: what a file may say, and how a mistake in it is named."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipn_hf.evaluation.suite import (
    ImageSet,
    Source,
    SuiteLabels,
    load_suite,
    read_names,
    ready_suites,
)

SUITE: dict[str, Any] = {
    "name": "pets",
    "description": "Cats and dogs against textures.",
    "labels": ["cat", "dog"],
    "id": {"name": "Pets", "source": {"imagefolder": "pets/test"}},
    "ood": [{"name": "Textures", "group": "far", "source": {"imagefolder": "dtd"}}],
}
FEATURES: dict[str, Any] = {
    **SUITE,
    "id": {"name": "Pets", "source": {"features": "all.npz", "images": "pets", "labels": "pets_label"}},
    "ood": [{"name": "Textures", "group": "far", "source": {"features": "all.npz", "images": "dtd"}}],
    "text_features": {
        "path": "all.npz",
        "model": "clip",
        "banks": [{"embeddings": "texts", "names": "text_names", "template": "a {}"}],
    },
}


def changed(change: Callable[[dict[str, Any]], object], suite: dict[str, Any] = SUITE) -> dict[str, Any]:
    suite = copy.deepcopy(suite)
    change(suite)
    return suite


def test_everything_a_suite_may_say(tmp_path: Path) -> None:
    path = tmp_path / "pets.yaml"
    path.write_text(
        """
name: pets
description: Cats and dogs.
reference: "2110.11334"
protocol: |
  Fetch it.
labels: {draw: 5, from: id}
templates: ["a photo of a {}.", "{}"]
image_size: 28
id:
  name: Pets
  source: {csv: pets.csv, root: images, image_column: file, label_column: species}
  where: {split: [test], year: [2020, 2021]}
  limit: 100
  classes: {rename: {0: zero, felis: cat}, exclude: [7], only: [0, felis]}
fit: {name: Training, source: {parquet: "train-*.parquet", label_column: label, label_names: [a, b]}, per_class: 16}
covariate_shift:
  - {name: Sketches, source: {hub: org/sketches, config: small, split: train, revision: abc}}
ood:
  - {name: Others, group: near, source: {image_list: list.txt, root: images}, complement: true, note: Beware.}
  - {name: Textures, group: far, source: {imagefolder: dtd}, classes: {only: labels}}
seeds: [0, 3]
methods: [mcm]
models: [org/model]
negatives:
  corpus: names.txt
  quantile: 1
  fraction: 0.3
  filters: [id_names, hyponyms]
  max_similarity: 0.9
  max_candidates: 1000
  seed: 2
  adjective_templates: ["a {} thing"]
""",
        encoding="utf-8",
    )
    suite = load_suite(path)
    assert (suite.name, suite.description, suite.reference) == ("pets", "Cats and dogs.", "2110.11334")
    assert suite.protocol == "Fetch it."
    assert suite.labels == SuiteLabels(draw=5)
    assert suite.templates == ("a photo of a {}.", "{}")
    assert (suite.image_size, suite.seeds, suite.methods, suite.models) == (28, (0, 3), ("mcm",), ("org/model",))
    assert suite.id == ImageSet(
        name="Pets",
        group="id",
        source=Source("csv", "pets.csv", {"root": "images", "image_column": "file", "label_column": "species"}),
        limit=100,
        rename={"0": "zero", "felis": "cat"},
        exclude=("7",),
        only=("0", "felis"),
        where={"split": ("test",), "year": ("2020", "2021")},
    )
    assert suite.fit is not None
    assert suite.fit.per_class == 16 and suite.fit.source.options["label_names"] == ("a", "b")
    assert suite.covariate_shift[0].group == "covariate-shift"
    near, far = suite.ood
    assert (near.group, near.complement, near.note) == ("near", True, "Beware.")
    assert (far.group, far.only, far.only_labels) == ("far", None, True)
    assert [one.name for one in suite.sets] == ["Pets", "Training", "Sketches", "Others", "Textures"]
    assert suite.negatives == {
        "corpus": "names.txt", "quantile": 1.0, "fraction": 0.3, "filters": ("id_names", "hyponyms"),
        "max_similarity": 0.9, "max_candidates": 1000, "seed": 2, "adjective_templates": ("a {} thing",),
    }  # fmt: skip
    assert len(suite.sha256) == 64


def test_defaults() -> None:
    suite = load_suite(SUITE)
    assert suite.labels.names == ("cat", "dog")
    assert suite.seeds == (0,)
    assert (suite.fit, suite.covariate_shift, suite.templates, suite.methods, suite.models) == (None, (), *[None] * 3)
    # A key without a value is as good as none, which allows to comment out what stands under it.
    assert load_suite({**SUITE, "fit": None, "methods": None}).methods is None
    assert suite.negatives is None
    assert load_suite({**SUITE, "negatives": {"corpus": "csp", "filters": None}}).negatives == {"corpus": "csp"}
    # Settings alone go before those of the methods.
    assert load_suite({**SUITE, "negatives": {"fraction": 0.5}}).negatives == {"fraction": 0.5}


def test_digest_tells_suites_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    text = "name: a\ndescription: b\nlabels: [x]\nid: {name: i, source: {imagefolder: i}}\n"
    digests = []
    for group in ("near", "far"):
        path.write_text(f"{text}ood: [{{name: o, group: {group}, source: {{imagefolder: o}}}}]\n")
        digests.append(load_suite(path).sha256)
    assert digests[0] != digests[1]
    assert load_suite(SUITE).sha256 == load_suite(copy.deepcopy(SUITE)).sha256 != load_suite(FEATURES).sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(lables=[]), r"The key `lables` is not known. Did you mean `labels`\? The keys are `name`"),
        (lambda s: s["ood"][0].update(gruop="far"), r"The key `ood\[0\].gruop` is not known. Did you mean `group`\?"),
        (
            lambda s: s["id"]["source"].update(imagefolder="x", image_colunm="x"),
            r"The key `id.source.image_colunm` is not known.* The keys in `id.source` are `imagefolder`",
        ),
        (
            lambda s: s["id"].update(source={"csv": "x", "label_colum": "y"}),
            r"The key `id.source.label_colum` is not known. Did you mean `label_column`\?",
        ),
        (
            lambda s: s["ood"][0].update(source={"imagefoldr": "x"}),
            r"The key `ood\[0\].source.imagefoldr` is not known. Did you mean `imagefolder`\?",
        ),
        (
            lambda s: s["id"].update(classes={"renam": {}}),
            r"The key `id.classes.renam` is not known. Did you mean `rename`\?",
        ),
        (lambda s: s["id"].update(per_class=3), r"The key `id.per_class` is not known"),
        (lambda s: s["id"].update(complement=True), r"The key `id.complement` is not known"),
        (lambda s: s.update(labels={"form": "id"}), r"The key `labels.form` is not known. Did you mean `from`\?"),
        (lambda s: s.pop("name"), "`name` is missing; give a text."),
        (lambda s: s.update(name="a/b"), "`name` must be made of letters, digits"),
        (lambda s: s.update(description=3), "`description` must be a text, got 3; put it in quotes."),
        (lambda s: s.update(reference=2110.1), "`reference` must be a text, got 2110.1; put it in quotes."),
        (lambda s: s.pop("labels"), "`labels` is missing"),
        (lambda s: s.update(labels=[]), r"`labels` must be a list of at least one item, got \[\]"),
        (lambda s: s.update(labels="cat"), "`labels` must be a list of at least one item, got 'cat'"),
        (lambda s: s.update(labels=["cat", "cat"]), "`labels` contains 'cat' twice"),
        (lambda s: s.update(labels=["cat", True]), r"`labels\[1\]` must be a string, got bool"),
        (lambda s: s.update(labels={"from": "ood"}), "`labels.from` must be `id`, got 'ood'"),
        (lambda s: s.update(labels={"draw": 3}), "`labels.from` is missing"),
        (lambda s: s.update(labels={"from": "id", "draw": 0}), "`labels.draw` must be a positive integer, got 0"),
        (lambda s: s.update(labels={"file": "a.txt", "draw": 2}), "`labels.file` stands alone"),
        (lambda s: s.update(templates=["a photo"]), r"`templates\[0\]` must contain `{}` exactly once"),
        (lambda s: s.update(templates=["{}", "{}"]), "`templates` has '{}' twice"),
        (lambda s: s.update(image_size=0), "`image_size` must be a positive integer, got 0"),
        (lambda s: s.update(image_size=28.0), "`image_size` must be a positive integer, got 28.0"),
        (lambda s: s.update(image_size=True), "`image_size` must be a positive integer, got True"),
        (lambda s: s.update(seeds=[]), r"`seeds` must be a list of at least one integer, got \[\]"),
        (lambda s: s.update(seeds=3), "`seeds` must be a list of at least one integer, got 3"),
        (lambda s: s.update(seeds=[0, -1]), r"`seeds\[1\]` must be an integer that is not negative, got -1"),
        (lambda s: s.update(seeds=[2, 2]), "`seeds` has 2 twice"),
        (lambda s: s.update(id=None), "`id` is missing; give the ID set."),
        (lambda s: s.update(id="pets"), "`id` must be a mapping of keys to values, got 'pets'"),
        (lambda s: s["id"].pop("source"), "`id.source` is missing"),
        (lambda s: s["id"].update(source="pets"), "`id.source` must be a mapping such as"),
        (lambda s: s["id"].update(source={"root": "x"}), "`id.source` must have exactly one of .*, got none"),
        (
            lambda s: s["id"]["source"].update(csv="x"),
            "`id.source` must have exactly one of .*, got `imagefolder` and `csv`",
        ),
        (lambda s: s["id"].update(source={"image_list": "x"}), "`id.source.root` is missing"),
        (lambda s: s["id"].update(source={"features": "x"}), "`id.source.images` is missing"),
        (lambda s: s["id"].update(source={"csv": 3}), "`id.source.csv` must be a text, got 3"),
        (lambda s: s.pop("ood"), "`ood` is missing; give at least one OOD set."),
        (lambda s: s.update(ood=[]), r"`ood` must be a list of at least one item, got \[\]"),
        (lambda s: s["ood"][0].pop("group"), r"`ood\[0\].group` is missing; give `near` or `far`."),
        (
            lambda s: s["ood"][0].update(group="nera"),
            r"`ood\[0\].group` must be one of near, far, got 'nera'. Did you mean `near`\?",
        ),
        (lambda s: s["ood"][0].update(name="pets"), "Two sets are called 'pets'"),
        (lambda s: s["ood"][0].update(limit=-1), r"`ood\[0\].limit` must be a positive integer, got -1"),
        (lambda s: s["id"].update(images="10000"), "`id.images` must be a positive integer, got '10000'"),
        (lambda s: s["ood"][0].update(complement="yes"), r"`ood\[0\].complement` must be true or false, got 'yes'"),
        (
            lambda s: s["ood"][0].update(complement=True, classes={"only": "labels"}),
            r"`ood\[0\]` has both `complement` and `classes.only: labels`",
        ),
        (lambda s: s["id"].update(classes={"exclude": "cat"}), "`id.classes.exclude` must be a list of at least one"),
        (lambda s: s["id"].update(classes={"only": [1.5]}), r"`id.classes.only\[0\]` must be a name, got 1.5"),
        (
            lambda s: s["id"].update(classes={"rename": {"a": False}}),
            "`id.classes.rename.a` must be a name, got False",
        ),
        (lambda s: s["id"].update(where={"style": ["x"]}), "`id.where` filters the rows of a table"),
        (
            lambda s: s["id"].update(source={"csv": "x"}, where={"style": "x"}),
            "`id.where.style` must be a list of at least one item, got 'x'",
        ),
        (
            lambda s: s.update(fit={"name": "f", "source": {"csv": "x"}, "limit": 1, "per_class": 1}),
            "`fit` has both `limit` and `per_class`",
        ),
        (lambda s: s.update(text_features=FEATURES["text_features"]), "`text_features` are for sets with a source"),
        (lambda s: s.update(negatives="wordnet"), "`negatives` must be a mapping of keys to values, got 'wordnet'"),
        (
            lambda s: s.update(negatives={"corpora": "wordnet"}),
            r"The key `negatives.corpora` is not known. Did you mean `corpus`\? The keys in `negatives` are `corpus`",
        ),
        (
            lambda s: s.update(negatives={"corpus": "wordnet-noun"}),
            r"`negatives.corpus` must be one of wordnet, .* ending such as .txt, got 'wordnet-noun'. Did you mean "
            r"`wordnet-nouns`\?",
        ),
        (lambda s: s.update(negatives={"corpus": 3}), "`negatives.corpus` must be a text, got 3"),
        (
            lambda s: s.update(negatives={"corpus": "text_features"}),
            "`negatives.corpus` is `text_features`, which only suites of `features` have; give one of wordnet, ",
        ),
        (
            lambda s: s.update(negatives={"quantile": 1.5}),
            "`negatives.quantile` must be a number from 0 to 1, got 1.5",
        ),
        (lambda s: s.update(negatives={"quantile": True}), "`negatives.quantile` must be a number from 0 to 1, got"),
        (lambda s: s.update(negatives={"fraction": 0}), "`negatives.fraction` must be above 0"),
        (lambda s: s.update(negatives={"fraction": "0.1"}), "`negatives.fraction` must be a number from 0 to 1, got"),
        (
            lambda s: s.update(negatives={"max_similarity": -2}),
            "`negatives.max_similarity` must be a number from -1 to 1, got -2",
        ),
        (lambda s: s.update(negatives={"max_candidates": 0}), "`negatives.max_candidates` must be a positive integer"),
        (
            lambda s: s.update(negatives={"seed": -1}),
            "`negatives.seed` must be an integer that is not negative, got -1",
        ),
        (lambda s: s.update(negatives={"filters": "id_names"}), "`negatives.filters` must be a list of at least one"),
        (
            lambda s: s.update(negatives={"filters": ["id_names", "hyponym"]}),
            r"`negatives.filters\[1\]` must be one of id_names, .*, got 'hyponym'. Did you mean `hyponyms`\?",
        ),
        (
            lambda s: s.update(negatives={"adjective_templates": ["a photo"]}),
            r"`negatives.adjective_templates\[0\]` must contain `{}` exactly once",
        ),
    ],
)
def test_mistakes_are_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^The suite (pets|a/b|given) is not valid: {message}"):
        load_suite(changed(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["id"].update(source={"imagefoldr": "x"}), "`id.source.imagefoldr` .* mean `imagefolder`"),
        (lambda s: s["ood"][0].update(limt=3), r"`ood\[0\].limt` is not known. Did you mean `limit`"),
        (lambda s: s["id"].update(classes={"renam": {}}), "`id.classes.renam` is not known"),
        (lambda s: s.update(covariate_shift=[{"nam": "x"}]), r"`covariate_shift\[0\].nam` is not known"),
        (lambda s: s.update(fit={"per_clas": 3}), "`fit.per_clas` is not known"),
        (lambda s: s.update(labels={"form": "id"}), "`labels.form` is not known"),
        (lambda s: s.update(text_features={"pth": "x"}), "`text_features.pth` is not known"),
        (lambda s: s.update(negatives={"filter": ["x"]}), "`negatives.filter` is not known. Did you mean `filters`"),
        (
            lambda s: s.update(text_features={"banks": [{"nams": "x"}]}),
            r"`text_features.banks\[0\].nams` is not known",
        ),
        # What is of a wrong type has no keys.
        (
            lambda s: s.update(ood=3, fit="x", text_features=[1], labels=None, id={"source": 3}),
            "`description` is missing",
        ),
    ],
)
def test_unknown_keys_come_before_missing_ones(change: Callable[[dict[str, Any]], object], message: str) -> None:
    suite = changed(change)
    del suite["description"]
    with pytest.raises(ValueError, match=message):
        load_suite(suite)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("text_features"), "`text_features` is missing"),
        (lambda s: s["ood"][0].update(source={"csv": "x"}), "Either all sets have a source of the kind `features`"),
        (lambda s: s.update(image_size=3), "`image_size` has no effect on `features`"),
        (lambda s: s.update(templates=["{}"]), "`templates` has no effect on `features`"),
        (lambda s: s.update(models=["a"]), "`models` has no effect on `features`"),
        (lambda s: s["id"]["source"].update(rows="3"), "`id.source.rows` must be a slice in quotes"),
        (lambda s: s["id"]["source"].update(rows="::0"), "`id.source.rows` must be a slice in quotes"),
        (lambda s: s["text_features"].update(logit_scale=0), "`text_features.logit_scale` must be a positive number"),
        (lambda s: s.update(negatives={"fraction": 0.5}), "`negatives.corpus` is missing; .* are `text_features`"),
        (
            lambda s: s.update(negatives={"corpus": "text_features", "adjective_templates": ["{}"]}),
            "`negatives.adjective_templates` has no effect on `features`",
        ),
        (lambda s: s["text_features"].update(logit_bias="x"), "`text_features.logit_bias` must be a finite number"),
        (lambda s: s["text_features"].update(banks=[]), "`text_features.banks` must be a list of at least one item"),
        (
            lambda s: s["text_features"]["banks"][0].update(template="a"),
            r"`text_features.banks\[0\].template\[0\]` must contain `{}`",
        ),
        (
            lambda s: s["text_features"]["banks"][0].update(nams="a"),
            r"The key `text_features.banks\[0\].nams` is not known. Did you mean `names`\?",
        ),
    ],
)
def test_mistakes_in_suites_of_features_are_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    load_suite(FEATURES)
    with pytest.raises(ValueError, match=message):
        load_suite(changed(change, FEATURES))


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nid:\n  name: i\n  limit: 3\n  limit: 4\n")
    with pytest.raises(ValueError, match="a.yaml cannot be read: The key `limit` is repeated in line 5"):
        load_suite(path)


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n", "\xff"])
def test_files_that_are_no_suite(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="a.yaml cannot be read"):
        load_suite(path)


def test_names_of_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tmp_path / "suites"
    ready.mkdir()
    monkeypatch.setattr("clipn_hf.evaluation.suite._SUITES", ready)
    monkeypatch.chdir(tmp_path)
    (ready / "ready-one.yaml").write_text(
        "name: ready-one\ndescription: First.\nlabels: [x]\nid: {name: i, source: {imagefolder: i}}\n"
        "ood: [{name: o, group: far, source: {imagefolder: o}}]\n"
    )
    # A folder of the data must not stand before the suite of the same name.
    Path("ready-one").mkdir()
    assert ready_suites() == {"ready-one": "First."}
    assert load_suite("ready-one").name == "ready-one"
    assert load_suite("suites/ready-one.yaml").sha256 == load_suite("ready-one").sha256
    with pytest.raises(ValueError, match="no ready suite 'ready-on'. Did you mean `ready-one`"):
        load_suite("ready-on")
    for missing in ("ready-two.yaml", "suites/ready-two", Path("ready-one")):
        with pytest.raises((FileNotFoundError, ValueError), match="There is no (ready suite|suite file)"):
            load_suite(missing)


def test_labels_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# Source: a list.\n\nn01\tgreat cat\nn02\tdog\n", encoding="utf-8")
    suite = tmp_path / "a.yaml"
    text = "name: a\ndescription: b\nid: {name: i, source: {imagefolder: i}}\n"
    text += "ood: [{name: o, group: far, source: {imagefolder: o}}]\nlabels: {file: %s}\n"
    suite.write_text(text % "names.txt")
    assert load_suite(suite).labels == SuiteLabels(("great cat", "dog"), rename={"n01": "great cat", "n02": "dog"})

    (tmp_path / "names.txt").write_text("n01\tcat\nn01\tdog\n")
    with pytest.raises(ValueError, match="no text may stand before two tabs"):
        load_suite(suite)
    (tmp_path / "names.txt").write_text("n01\tcat\ndog\n")
    with pytest.raises(ValueError, match="a tab in every line or in none"):
        load_suite(suite)
    suite.write_text(text % "nams.txt")
    with pytest.raises(
        FileNotFoundError, match="names a file that is not there; looked for .*nams.txt and .*nams.txt"
    ):
        load_suite(suite)


def test_labels_of_a_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "class_names").mkdir()
    (tmp_path / "class_names" / "two.txt").write_text("cat\ndog\n")
    monkeypatch.setattr("clipn_hf.evaluation.suite._FOLDER", tmp_path)
    assert load_suite({**SUITE, "labels": {"file": "class_names/two.txt"}}).labels.names == ("cat", "dog")


def test_read_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeff# comment\ncat \n\n n01 \t tabby cat\n", encoding="utf-8")
    assert read_names(path) == [(None, "cat"), ("n01", "tabby cat")]
    path.write_text("# comment\n")
    with pytest.raises(ValueError, match="holds no names"):
        read_names(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_names(path)


def test_texts_like_no_stay_texts(tmp_path: Path) -> None:
    """Truth values are those of YAML 1.2, so that labels may be any word."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "name: a\ndescription: b\nlabels: [no, off, y]\nid: {name: i, source: {imagefolder: i}}\n"
        "ood: [{name: o, group: far, source: {imagefolder: o}}]\n"
    )
    assert load_suite(path).labels.names == ("no", "off", "y")


def test_the_command_lists_suites_without_torch() -> None:
    code = (
        "import sys; sys.argv[0] = 'clipn-hf'\n"
        "from clipn_hf.evaluation.suite import ready_suites\n"
        "ready_suites()\n"
        "assert not {'torch', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
