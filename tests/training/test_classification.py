# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images of classes and of none of them: arguments and loading."""

import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from clipn_hf.training.classification import (
    ClassificationData,
    ClassificationDataArguments,
    check_training_classes,
    load_classification_data,
    load_encoder,
    parse_ood_datasets,
)


def write_images(folder: Path, classes: dict[str, int]) -> Path:
    """A folder of images for each class."""
    generator = np.random.default_rng(len(str(folder)))
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos" / "train", {"bird": 2, "cat": 3, "dog": 2})
    write_images(tmp_path / "photos" / "test", {"bird": 1, "cat": 1, "dog": 2})
    return tmp_path / "photos"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pets", {"cat": 1, "dog": 2})


def test_labels_of_both_sets_count_alike(photos: Path, pets: Path, tmp_path: Path) -> None:
    noise = write_images(tmp_path / "noise", {"a": 2, "b": 1})
    args = ClassificationDataArguments(
        [str(photos)],
        id_dataset=[str(pets)],
        id_split="train",
        ood_datasets=[str(noise), f"again={noise}"],
        ood_split=["train"],
    )
    data = load_classification_data(args)
    assert data.labels == ["bird", "cat", "dog"]
    assert data.train["label"][:] == [0, 0, 1, 1, 1, 2, 2]
    assert data.id["label"][:] == [1, 2, 2]
    assert data.id.features["label"].names == data.labels
    assert {name: (len(rows), rows.column_names) for name, rows in data.ood.items()} == {
        "noise": (3, ["image"]),
        "again": (3, ["image"]),
    }


def test_test_images_of_other_classes_are_refused(photos: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", {"cat": 1, "zebra": 1})
    args = ClassificationDataArguments([str(photos)], id_dataset=[str(other)], id_split="train")
    with pytest.raises(
        ValueError, match="The test images are of 'zebra', among others, which is none of the 3 classes"
    ):
        load_classification_data(args)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # By their names
        (["dog", "cat", "bird"], [2, 2, 1, 1, 1, 0, 0]),
        (["dog", "cat", "bird", "fish"], [2, 2, 1, 1, 1, 0, 0]),
        # By their numbers
        (["Vogel", "Katze", "Hund"], [0, 0, 1, 1, 1, 2, 2]),
    ],
)
def test_names_of_classes(labels: list[str], expected: list[int], photos: Path) -> None:
    data = load_classification_data(ClassificationDataArguments([str(photos)], labels=labels))
    assert data.labels == labels
    assert data.train["label"][:] == expected
    assert data.id["label"][:] == [expected[0], expected[2], expected[-1], expected[-1]]
    with pytest.raises(ValueError, match="has 3 classes, but 2 names are given"):
        load_classification_data(ClassificationDataArguments([str(photos)], labels=["a", "b"]))


def test_training_images_without_labels(pets: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(plain / f"{index}.png")
    args = ClassificationDataArguments(
        [str(plain)], label_column="", labels=["cat", "dog"], id_dataset=[str(pets)], id_split="train"
    )
    data = load_classification_data(args)
    assert data.train.column_names == ["image"]
    assert data.labels == ["cat", "dog"]
    assert data.id["label"][:] == [0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": ""}, "Without `label_column` nothing tells what the classes are called"),
        ({"ood_datasets": ["a", "b", "c"], "ood_split": ["x", "y"]}, "one for each of the 3, got 2."),
        (
            {"ood_datasets": ["a", "b", "c"], "ood_image_column": ["x", "y"]},
            "`ood_image_column` takes one column for all OOD sets or one for each of the 3, got 2.",
        ),
        ({"ood_datasets": ["*.tar"]}, "cannot name the pattern '*.tar' by its folder; write name=*.tar."),
        ({"ood_datasets": ["x/a", "y/a"]}, "two sets called 'a', x/a and y/a; name them, as in first=x/a."),
        ({"ood_datasets": ["=a"]}, "takes sources, or name=source, got '=a'."),
        (
            {"id_filter": ["style"]},
            "`id_filter`: A filter has the form column=value or column=value,value, got 'style'",
        ),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ClassificationDataArguments(["photos"], **changes)


def test_sets_without_splits_are_taken_whole(photos: Path, pets: Path, tmp_path: Path) -> None:
    noise = write_images(tmp_path / "noise", {"a": 2})
    args = ClassificationDataArguments([str(pets)], id_dataset=[str(photos)], ood_datasets=[str(noise), str(photos)])
    # Of the set with splits, the test images.
    args.labels = ["cat", "dog", "bird"]
    data = load_classification_data(args)
    assert (len(data.train), len(data.id)) == (3, 4)
    assert {name: len(rows) for name, rows in data.ood.items()} == {"noise": 2, "photos": 4}
    (photos / "test").rename(photos / "validation")
    with pytest.raises(ValueError, match="`dataset` .*: There is no split 'test' among train, validation; name one"):
        load_classification_data(ClassificationDataArguments([str(photos)]))


def test_test_images_are_not_the_training_images_by_default(pets: Path) -> None:
    message = "Its only split is 'train', so that the test images would be the training images; give other images"
    for split in (None, "train", "train[:2]"):
        with pytest.raises(ValueError, match=message):
            load_classification_data(ClassificationDataArguments([str(pets)], split=split))
    # Who asks for them gets them.
    asked = ClassificationDataArguments([str(pets)], id_split="train")
    assert len(load_classification_data(asked).id) == 3
    parts = ClassificationDataArguments([str(pets)], id_filter=["label=0"])
    assert len(load_classification_data(parts).id) == 1


def test_models_that_cannot_be_loaded_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`model_name_or_path` .*: ") as error:
        load_encoder(str(tmp_path / "absent"))
    assert "\n" not in str(error.value)


def test_names_of_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ["../dtd10", "org/places", "org/set.v2", "data/textures.parquet", "shards/*.tar", "a/b/**/c-*.parquet"]
    assert parse_ood_datasets([*sources, "far=data/mnist"]) == {
        "dtd10": "../dtd10",
        "places": "org/places",
        "set.v2": "org/set.v2",
        "textures": "data/textures.parquet",
        "shards": "shards/*.tar",
        "b": "a/b/**/c-*.parquet",
        "far": "data/mnist",
    }
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    assert parse_ood_datasets(["a=b"]) == {"a=b": "a=b"}


def test_sets_with_columns_of_their_own(tmp_path: Path) -> None:
    def write(name: str, columns: dict[str, Any]) -> str:
        pixels = {"bytes": (tmp_path / "pixel.png").read_bytes(), "path": None}
        rows = {column: [pixels] * 3 if values is None else values for column, values in columns.items()}
        images = {column: datasets.Image() for column, values in columns.items() if values is None}
        data = datasets.Dataset.from_dict(rows)
        for column, feature in images.items():
            data = data.cast_column(column, feature)
        data.to_parquet(tmp_path / f"{name}.parquet")
        return str(tmp_path / f"{name}.parquet")

    Image.new("RGB", (8, 8)).save(tmp_path / "pixel.png")
    args = ClassificationDataArguments(
        [write("train", {"img": None, "label": ["cat", "dog", "cat"]})],
        image_column="img",
        id_dataset=[write("known", {"photo": None, "kind": ["dog", "dog", "cat"]})],
        id_image_column="photo",
        id_label_column="kind",
        ood_datasets=[write("near", {"img": None}), write("far", {"picture": None})],
        ood_image_column=["img", "picture"],
    )
    data = load_classification_data(args)
    assert data.id["label"][:] == [1, 1, 0]
    assert {name: rows.column_names for name, rows in data.ood.items()} == {"near": ["image"], "far": ["image"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["./absent"]}, "`dataset` ./absent: There is no folder ./absent"),
        ({"split": "training"}, "`split` training: Unknown split"),
        ({"id_split": "validation"}, "`id_split` validation: Unknown split"),
        (
            {"id_label_column": "kind", "id_split": "test"},
            "`id_split` test: The data set has no column 'kind'; it has image, label.",
        ),
        (
            {"ood_datasets": ["near=./absent"]},
            "`ood_datasets` ./absent: There is no folder ./absent",
        ),
    ],
)
def test_sets_that_cannot_be_loaded_are_named(
    changes: dict[str, Any], message: str, photos: Path, tmp_path: Path
) -> None:
    args = ClassificationDataArguments(**{"dataset": [str(photos)], **changes})
    with pytest.raises(ValueError, match=re.escape(message)):
        load_classification_data(args)


def test_training_images_of_one_class(pets: Path) -> None:
    def load(labels: list[str], **changes: Any) -> ClassificationData:
        args = ClassificationDataArguments([str(pets)], labels=labels, id_split="train", **changes)
        return load_classification_data(args)

    check_training_classes(load(["cat", "dog"]))
    with pytest.raises(ValueError, match="`dataset` has no training image of 1 of 3 classes, such as 'bird'; give"):
        check_training_classes(load(["cat", "bird", "dog"]))
    with pytest.raises(ValueError, match="`dataset` has training images of one class only, 'cat', which leaves"):
        check_training_classes(load(["cat", "dog"], filter=["label=0"]))
