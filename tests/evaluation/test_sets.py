# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of suites: what is listed, what is drawn, and what is said when something is not there."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from clipn_hf.evaluation.sets import LoadedSet, SuiteData, load_suite_data
from clipn_hf.images import ImageError, NumberedImages, load_image, number_images

LABELS = ["cat", "dog", "owl"]


def write_image(path: Path, size: tuple[int, int] = (6, 4), colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_folder(folder: Path, counts: dict[str, int]) -> Path:
    """A folder per class. Its files are listed, not read, so that they need not be images."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{number:03}.png").touch()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pets", {"cat": 4, "dog": 4, "owl": 2})
    write_folder(tmp_path / "train", {"cat": 20, "dog": 20, "owl": 20})
    write_folder(tmp_path / "textures", {"banded": 3, "woven": 5})
    return tmp_path


def suite(**changes: Any) -> dict[str, Any]:
    return {
        "name": "pets",
        "description": "Pets against textures.",
        "labels": LABELS,
        "id": {"name": "Pets", "source": {"imagefolder": "pets"}},
        "ood": [{"name": "Textures", "group": "far", "source": {"imagefolder": "textures"}, "note": "Beware."}],
        **changes,
    }


def id_set(**changes: Any) -> dict[str, Any]:
    return {"name": "Pets", "source": {"imagefolder": "pets"}, **changes}


def ood_set(**changes: Any) -> dict[str, Any]:
    return {"name": "Textures", "group": "far", "source": {"imagefolder": "textures"}, **changes}


def contents(loaded: LoadedSet) -> tuple[list[str], list[int] | None, list[str] | None]:
    return loaded.names, loaded.labels, loaded.class_names


def test_image_folders(root: Path) -> None:
    data = load_suite_data(suite(), root)
    assert isinstance(data, SuiteData)
    assert data.labels == LABELS and data.seed == 0 and data.fit is None and data.text_bank is None
    assert len(data.id) == 10 and data.id.num_excluded == 0
    assert data.id.names[:5] == ["cat/000.png", "cat/001.png", "cat/002.png", "cat/003.png", "dog/000.png"]
    assert data.id.labels == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert data.id.class_names is not None and data.id.class_names[-1] == "owl"
    assert data.id.images is not None and data.id.images[4] == str(root / "pets/dog/000.png")
    (ood,) = data.ood
    assert (ood.name, ood.group, ood.note, ood.labels, ood.embeddings) == ("Textures", "far", "Beware.", None, None)
    assert ood.class_names == ["banded"] * 3 + ["woven"] * 5


def test_folders_hold_images_at_any_depth_or_without_classes(root: Path) -> None:
    for name in ("flat/b.png", "flat/a.JPG", "flat/.hidden.png", "flat/notes.txt", "deep/x/y/z.png", "deep/loose.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    sets = [ood_set(name=name, source={"imagefolder": name}) for name in ("flat", "deep")]
    flat, deep = load_suite_data(suite(ood=sets), root).ood
    assert (flat.names, flat.class_names) == (["a.JPG", "b.png"], None)
    # Of one image the class is not known.
    assert (deep.names, deep.class_names) == (["loose.png", "x/y/z.png"], None)


def test_listing_opens_no_image(root: Path) -> None:
    """All files of the fixture are empty; they are reported when they are read."""
    images = load_suite_data(suite(image_size=8), root).id.images
    assert images is not None
    with pytest.raises(ImageError, match="it is empty"):
        images[0]


def test_classes_are_renamed_and_left_out(root: Path) -> None:
    write_folder(root / "raw", {"n01": 2, "n02": 3, "junk": 1, "n03": 4})
    source = {"imagefolder": "raw"}
    rename = {"n01": "cat", "n02": "dog", "n03": "owl"}
    data = load_suite_data(suite(id=id_set(source=source, classes={"rename": rename, "exclude": ["junk"]})), root)
    assert Counter(data.id.class_names) == {"cat": 2, "dog": 3, "owl": 4}
    assert data.id.labels == [0] * 2 + [1] * 3 + [2] * 4
    assert data.id.num_excluded == 1
    data = load_suite_data(suite(id=id_set(source=source, classes={"rename": rename, "only": ["n02"]})), root)
    assert (data.id.class_names, data.id.num_excluded) == (["dog"] * 3, 7)
    data = load_suite_data(suite(id=id_set(source=source, classes={"rename": rename, "only": "labels"})), root)
    assert len(data.id) == 9
    # Two classes may become one.
    both = {"n01": "cat", "n02": "cat"}
    data = load_suite_data(suite(id=id_set(source=source, classes={"rename": both, "only": ["n01", "n02"]})), root)
    assert data.id.labels == [0] * 5


def test_a_file_of_labels_says_what_data_sets_call_them(root: Path) -> None:
    write_folder(root / "raw", {"n01": 2, "n02": 3})
    write_folder(root / "other", {"n01": 1, "n09": 1})
    (root / "names.txt").write_text("n01\tcat\nn02\tdog\n")
    path = root / "suite.yaml"
    path.write_text(
        "name: a\ndescription: b\nlabels: {file: names.txt}\nid: {name: i, source: {imagefolder: raw}}\n"
        "ood: [{name: o, group: far, source: {imagefolder: other}}]"
    )
    data = load_suite_data(path, root)
    assert data.id.labels == [0, 0, 1, 1, 1]
    assert data.ood[0].class_names == ["cat", "n09"]


def test_labels_are_the_classes_of_the_id_set(root: Path) -> None:
    data = load_suite_data(suite(labels={"from": "id"}, id=id_set(classes={"rename": {"cat": "tabby"}})), root)
    assert data.labels == ["dog", "owl", "tabby"]
    assert data.id.labels == [2] * 4 + [0] * 4 + [1] * 2


def test_drawn_labels(root: Path) -> None:
    names = [f"class {number:02}" for number in range(20)]
    write_folder(root / "id", dict.fromkeys(names, 2))
    write_folder(root / "fit", dict.fromkeys([*names, "more"], 3))
    write_folder(root / "shifted", dict.fromkeys(names[::2], 1))
    everything = suite(
        labels={"draw": 6, "from": "id"},
        id=id_set(source={"imagefolder": "id"}),
        fit={"name": "Fit", "source": {"imagefolder": "fit"}},
        covariate_shift=[{"name": "Shifted", "source": {"imagefolder": "shifted"}}],
        ood=[ood_set(source={"imagefolder": "fit"}, complement=True)],
    )
    everything["ood"].append(ood_set(name="Others"))
    # The complement of the same folder is no OOD of fitting images: they share no class.
    first, second = (load_suite_data(everything, root, seed) for seed in (0, 1))
    assert first.labels == sorted(first.labels) and len(set(first.labels)) == 6 and first.labels != second.labels
    assert load_suite_data(everything, root, 0).labels == first.labels
    assert set(first.id.class_names or ()) == set(first.labels) and len(first.id) == 12
    assert first.fit is not None and Counter(first.fit.class_names) == dict.fromkeys(first.labels, 3)
    assert set(first.covariate_shift[0].class_names or ()) == set(first.labels) & set(names[::2])
    near, far = first.ood
    assert Counter(near.class_names) == dict.fromkeys({*names, "more"} - set(first.labels), 3)
    assert near.num_excluded == 18 and near.labels is None
    assert len(far) == 8


def test_draws_do_not_change_with_versions(root: Path) -> None:
    """Results name the seed alone, so that what it draws must stay what it is."""
    names = [f"class {number:02}" for number in range(20)]
    write_folder(root / "id", dict.fromkeys(names, 2))
    drawn = load_suite_data(
        suite(labels={"draw": 3, "from": "id"}, id=id_set(source={"imagefolder": "id"}, limit=4)), root, seed=5
    )
    assert drawn.labels == ["class 04", "class 05", "class 11"]
    assert drawn.id.names == ["class 04/000.png", "class 04/001.png", "class 05/001.png", "class 11/001.png"]


def test_limit_is_stratified(root: Path) -> None:
    write_folder(root / "many", {"a": 50, "b": 30, "c": 20, "d": 1})
    drawn = load_suite_data(suite(ood=[ood_set(source={"imagefolder": "many"}, limit=10)]), root).ood[0]
    assert Counter(drawn.class_names) == {"a": 5, "b": 3, "c": 2}
    assert drawn.names == sorted(drawn.names) and drawn.num_excluded == 91
    other = load_suite_data(suite(ood=[ood_set(source={"imagefolder": "many"}, limit=10)]), root, seed=1).ood[0]
    assert drawn.names != other.names
    every = load_suite_data(suite(ood=[ood_set(source={"imagefolder": "many"}, limit=1000)]), root).ood[0]
    assert len(every) == 101


def test_equal_classes_have_equal_chances(root: Path) -> None:
    """What is left over after rounding goes to no class more than to another."""
    write_folder(root / "many", {f"{number:02}": 3 for number in range(30)})
    one = suite(ood=[ood_set(source={"imagefolder": "many"}, limit=10)])
    chosen: Counter[str] = Counter()
    for seed in range(60):
        loaded = load_suite_data(one, root, seed).ood[0]
        assert max(Counter(loaded.class_names).values()) == 1
        chosen.update(loaded.class_names or ())
    # 20 are expected; the bounds are five standard deviations away.
    assert len(chosen) == 30 and min(chosen.values()) > 1 and max(chosen.values()) < 39


def test_per_class(root: Path) -> None:
    fit = {"name": "Fit", "source": {"imagefolder": "train"}, "per_class": 16}
    first, second = (load_suite_data(suite(fit=fit), root, seed).fit for seed in (0, 1))
    assert first is not None and second is not None
    assert first.labels == [0] * 16 + [1] * 16 + [2] * 16 and first.num_excluded == 12
    assert first.names != second.names
    with pytest.raises(
        ValueError, match="'Fit' of the suite pets .* It has 20 images of 'cat', but `per_class` is 21"
    ):
        load_suite_data(suite(fit={**fit, "per_class": 21}), root)


def test_selection_is_independent_of_other_images(root: Path) -> None:
    """An image more changes a draw by one image at most, and the place of the data changes nothing."""
    write_folder(root / "many", {"a": 50})
    one = suite(ood=[ood_set(source={"imagefolder": "many"}, limit=10)])
    before = set(load_suite_data(one, root).ood[0].names)
    (root / "many" / "a" / "aaa.png").touch()
    assert len(before & set(load_suite_data(one, root).ood[0].names)) >= 9


def write_csv(root: Path, lines: Sequence[str]) -> None:
    root.joinpath("table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def test_csv(root: Path) -> None:
    write_csv(root, ["file,style,name", "a.png,flat,cat", "b.png,3d,dog", "c.png,flat,owl", '"d,e.png",flat,cat'])
    for name in ("a.png", "b.png", "c.png", "d,e.png"):
        write_image(root / name)
    source = {"csv": "table.csv", "image_column": "file", "label_column": "name"}
    data = load_suite_data(suite(id=id_set(source=source, where={"style": ["flat"]})), root)
    assert contents(data.id) == (["a.png", "c.png", "d,e.png"], [0, 2, 0], ["cat", "owl", "cat"])
    assert data.id.num_excluded == 1
    assert data.id.images is not None and data.id.images[2] == str(root / "d,e.png")

    (root / "images").mkdir()
    (root / "b.png").rename(root / "images" / "b.png")
    rooted = {**source, "root": "images"}
    data = load_suite_data(suite(id=id_set(source=rooted, where={"style": ["3d"]})), root)
    assert data.id.images is not None and load_image(data.id.images[0]).size == (6, 4)


def test_csv_of_numbers(root: Path) -> None:
    write_csv(root, ["image,label", "a.png,1", "b.png,0"])
    write_image(root / "a.png")
    source = {"csv": "table.csv", "label_column": "label", "label_names": ["cat", "dog"]}
    assert load_suite_data(suite(id=id_set(source=source)), root).id.labels == [1, 0]
    (root / "names.txt").write_text("n0\tdog\nn1\towl\n")
    data = load_suite_data(suite(id=id_set(source={**source, "label_names": "names.txt"})), root)
    assert data.id.labels == [2, 1]
    with pytest.raises(FileNotFoundError, match="There is no file .*nams.txt with the names of its classes"):
        load_suite_data(suite(id=id_set(source={**source, "label_names": "nams.txt"})), root)


def test_image_lists(root: Path) -> None:
    (root / "list.txt").write_text("cat/000.png 0\ndog/a photo.png 1\n\nowl/000.png 2\n")
    source = {"image_list": "list.txt", "root": "pets"}
    data = load_suite_data(suite(id=id_set(source=source)), root)
    assert contents(data.id) == (["cat/000.png", "dog/a photo.png", "owl/000.png"], [0, 1, 2], LABELS)
    named = {**source, "label_names": ["owl", "cat", "dog"]}
    assert load_suite_data(suite(id=id_set(source=named)), root).id.labels == [2, 0, 1]

    (root / "ood.txt").write_text("banded/000.png -1\nwoven/000.png -1\n")
    (root / "plain.txt").write_text("banded/001.png\nwoven/001.png\n")
    (root / "numbers.txt").write_text("banded/001.png 3\nwoven/001.png 4\n")
    for name in ("ood.txt", "plain.txt", "numbers.txt"):
        one = ood_set(source={"image_list": name, "root": "textures"})
        assert load_suite_data(suite(ood=[one]), root).ood[0].class_names is None

    with pytest.raises(
        ValueError, match="'Pets' .* The classes of its images are not known. Classes are the sub-fold"
    ):
        load_suite_data(suite(id=id_set(source={"image_list": "ood.txt", "root": "textures"})), root)
    (root / "list.txt").write_text("cat/000.png 3\n")
    with pytest.raises(
        ValueError, match="images of class number 3, but there are 3 names for the numbers from 0 to 2"
    ):
        load_suite_data(suite(id=id_set(source=source)), root)
    with pytest.raises(ValueError, match="Its classes are numbers; give their names as `label_names`"):
        load_suite_data(suite(labels={"from": "id"}, id=id_set(source=source)), root)


def build_table(folder: Path, features: datasets.Features | None = None) -> datasets.Dataset:
    for number, colour in enumerate(("red", "green", "blue")):
        write_image(folder / f"{number}.png", colour=colour)
    content = [{"bytes": (folder / f"{number}.png").read_bytes(), "path": None} for number in range(3)]
    columns = {"image": content, "label": [2, 0, 1], "style": ["a", "b", "a"]}
    features = features or datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS), "style": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_parquet(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("raw")
    build_table(folder).to_parquet(root / "part-0.parquet")
    build_table(folder).to_parquet(root / "part-1.parquet")
    source = {"parquet": "part-*.parquet", "label_column": "label"}
    data = load_suite_data(suite(id=id_set(source=source, where={"style": ["a"]})), root)
    assert contents(data.id) == (
        ["row 0", "row 2", "row 3", "row 5"], [2, 1, 2, 1], ["owl", "dog", "owl", "dog"]
    )  # fmt: skip
    assert data.id.num_excluded == 2
    images = pickle.loads(pickle.dumps(data.id.images))
    assert [load_image(image).getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)] * 2
    where = load_suite_data(suite(id=id_set(source=source, where={"label": ["cat"]})), root)
    assert where.id.names == ["row 1", "row 4"]


def test_tables_without_types_of_datasets(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("raw")
    value, text, number = datasets.Value("binary"), datasets.Value("string"), datasets.Value("int64")
    struct = {"bytes": value, "path": text}
    features = datasets.Features({"image": struct, "label": number, "style": text})
    table = build_table(folder, features)
    table.to_parquet(root / "struct.parquet")
    table.map(lambda row: {"image": row["image"]["bytes"]}, features=datasets.Features({**features, "image": value})
    ).to_parquet(root / "binary.parquet")  # fmt: skip
    for name in ("struct.parquet", "binary.parquet"):
        data = load_suite_data(suite(id=id_set(source={"parquet": name, "label_column": "label"})), root)
        # Numbers are positions in the labels of the suite.
        assert data.id.labels == [2, 0, 1] and data.id.class_names == ["owl", "cat", "dog"]
        assert data.id.images is not None and load_image(data.id.images[1]).getpixel((0, 0)) == (0, 128, 0)
    with pytest.raises(ValueError, match="The column 'style' must hold images or the bytes of image files"):
        load_suite_data(suite(id=id_set(source={"parquet": "struct.parquet", "image_column": "style"})), root)
    with pytest.raises(ValueError, match="`label_column` is 'lable', which is not there. Did you mean `label`"):
        load_suite_data(suite(id=id_set(source={"parquet": "struct.parquet", "label_column": "lable"})), root)


def test_hub(root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    table = build_table(tmp_path_factory.mktemp("raw"))
    calls = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        calls.append((arguments, options))
        if options["revision"] == "gone":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/pets' doesn't exist on the Hub")
        if options["split"] == "tset":
            raise ValueError('Unknown split "tset".')
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = {"hub": "org/pets", "label_column": "label"}
    data = load_suite_data(suite(id=id_set(source=source)), root)
    assert data.id.labels == [2, 0, 1] and data.id.names[0] == "row 0"
    load_suite_data(suite(id=id_set(source={**source, "config": "c", "split": "s", "revision": "r"})), root)
    assert calls == [
        (("org/pets", None), {"split": "test", "revision": None}),
        (("org/pets", "c"), {"split": "s", "revision": "r"}),
    ]
    with pytest.raises(FileNotFoundError, match="The dataset org/pets cannot be loaded .*doesn't exist on the Hub"):
        load_suite_data(suite(protocol="Fetch it.", id=id_set(source={**source, "revision": "gone"})), root)
    with pytest.raises(ValueError, match='The dataset org/pets cannot be loaded .Unknown split "tset"'):
        load_suite_data(suite(id=id_set(source={**source, "split": "tset"})), root)


def test_images_are_resized_to_their_short_side(root: Path) -> None:
    write_image(root / "id" / "cat" / "wide.png", (60, 40))
    write_image(root / "id" / "cat" / "tall.png", (5, 10))
    write_image(root / "id" / "dog" / "right.png", (30, 20), "blue")
    one = suite(image_size=20, id=id_set(source={"imagefolder": "id"}))
    images = load_suite_data(one, root).id.images
    assert images is not None
    numbered = number_images(images)
    assert isinstance(numbered, NumberedImages)
    sizes = [item.size for _, item in (numbered[index] for index in range(3))]
    assert sizes == [(20, 40), (30, 20), (30, 20)]
    assert images[2].getpixel((3, 3)) == images[-1].getpixel((3, 3)) == (0, 0, 255)
    assert [image.size for image in pickle.loads(pickle.dumps(images))[1:]] == [(30, 20), (30, 20)]
    with pytest.raises(IndexError):
        images[3]


def test_resizing_is_antialiased(root: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    (root / "id" / "cat").mkdir(parents=True)
    Image.fromarray(stripes).save(root / "id" / "cat" / "a.png")
    images = load_suite_data(suite(image_size=8, id=id_set(source={"imagefolder": "id"})), root).id.images
    assert images is not None
    assert np.abs(np.asarray(images[0], dtype=int)[:, 1:-1] - 127).max() < 12


def test_enlarging_has_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(root / "id" / "cat" / "line.png", (1000, 1))
    images = load_suite_data(suite(image_size=20, id=id_set(source={"imagefolder": "id"})), root).id.images
    assert images is not None and images[0].size == (20000, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(ImageError, match="with a short side of 20 pixels it would have a long one of 20000"):
        images[0]


def test_a_row_without_image_is_named(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = build_table(tmp_path_factory.mktemp("raw")).cast_column("image", datasets.Image(decode=False))
    features = table.features
    table = table.map(lambda row, index: {"image": None if index == 1 else row["image"]}, with_indices=True,
                      features=features)  # fmt: skip
    table.to_parquet(root / "a.parquet")
    source = {"parquet": "a.parquet", "label_column": "label"}
    plain, resized = (
        load_suite_data(suite(id=id_set(source=source), **size), root).id.images for size in ({}, {"image_size": 2})
    )
    assert plain is not None and plain[1] is None
    assert resized is not None and resized[2].size == (3, 2)
    with pytest.raises(ImageError, match="row 1"):
        resized[1]


FEATURES: dict[str, Any] = {
    "name": "pets",
    "description": "Embeddings.",
    "labels": LABELS,
    "id": {"name": "Pets", "source": {"features": "all.npz", "images": "id", "labels": "id_label"}},
    "ood": [{"name": "Other", "group": "far", "source": {"features": "all.npz", "images": "ood"}}],
    "text_features": {
        "path": "all.npz",
        "model": "clip",
        "banks": [{"embeddings": "text", "names": "text_names", "template": "a {}", "rename": {"tabby": "cat"}}],
    },
}


def feature_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "id": generator.standard_normal((8, 5)).astype(np.float16),
        "id_label": np.array([0, 1, 2, 0, 1, 2, 0, 1]),
        "id_names": np.array(["owl", "dog", "cat"]),
        "pixels": generator.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8),
        "ood": generator.standard_normal((6, 5)),
        "text": generator.standard_normal((5, 5)).astype(np.float32),
        "text_names": np.array(["dog", "cat", "tabby", "owl", "dog"]),
    }


def load_features(
    root: Path, change: Callable[[dict[str, Any]], object] | None = None, **arrays: np.ndarray
) -> SuiteData:
    np.savez(root / "all.npz", **{**feature_arrays(), **arrays})
    own = copy.deepcopy(FEATURES)
    if change:
        change(own)
    return load_suite_data(own, root)


def test_features(root: Path) -> None:
    arrays = feature_arrays()
    data = load_features(root)
    assert data.id.images is None and data.id.names[:2] == ["row 0", "row 1"]
    assert data.id.labels == arrays["id_label"].tolist()
    assert data.id.embeddings is not None and data.id.embeddings.dtype == np.float32
    expected = arrays["id"].astype(np.float32)
    np.testing.assert_allclose(
        data.id.embeddings, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6
    )
    assert data.ood[0].class_names is None and data.ood[0].labels is None
    assert data.text_bank is not None and set(data.text_bank) == {"dog", "cat", "owl"}
    # The suite's own name comes before that of the bank, and the first of equal names before the second.
    for label, row in (("cat", 2), ("dog", 0), ("owl", 3)):
        text = arrays["text"][row]
        np.testing.assert_allclose(data.text_bank[label], text / np.linalg.norm(text), rtol=1e-6)


def test_names_beside_the_labels_are_candidates_for_negative_labels(root: Path) -> None:
    def change(own: dict[str, Any]) -> None:
        own["negatives"] = {"corpus": "text_features", "fraction": 0.5}

    names = np.array(["dog", "boat", "tabby", "owl", "lamp_post"])
    # What is renamed to a label is one, and no candidate under its old name.
    found = load_features(root, change, text_names=names).negatives
    assert found is not None
    assert (sorted(found["corpus"]), found["fraction"]) == (["boat", "lamp_post"], 0.5)
    with pytest.raises(ValueError, match="negative labels of the suite pets cannot be mined: all names of its"):
        load_features(root, change)


def test_a_corpus_is_a_name_or_a_file_below_the_data_root(root: Path) -> None:
    def load(**negatives: Any) -> dict[str, Any] | None:
        return load_suite_data(suite(negatives=negatives), root).negatives

    assert load_suite_data(suite(), root).negatives is None
    assert load(corpus="csp", quantile=1) == {"corpus": "csp", "quantile": 1.0}
    assert load(fraction=0.2) == {"fraction": 0.2}
    (root / "lists").mkdir()
    (root / "lists" / "names.txt").write_text("jellyfish\nparachute\n")
    assert load(corpus="lists/names.txt") == {"corpus": str(root / "lists" / "names.txt")}
    with pytest.raises(
        FileNotFoundError, match="negative labels of the suite .* There is no file lists/name.txt. The"
    ):
        load(corpus="lists/name.txt")


def test_features_with_names_pixels_and_rows(root: Path) -> None:
    def change(own: dict[str, Any]) -> None:
        own["id"]["source"].update(label_names="id_names", pixels="pixels", rows="1::2")
        own["fit"] = copy.deepcopy(own["id"])
        own["fit"]["name"] = "Fit"
        own["fit"]["source"]["rows"] = "::2"

    data = load_features(root, change)
    arrays = feature_arrays()
    assert data.id.names == ["row 1", "row 3", "row 5", "row 7"]
    assert data.id.class_names == ["dog", "owl", "cat", "dog"] and data.id.labels == [1, 2, 0, 1]
    assert data.id.images is not None
    np.testing.assert_array_equal(data.id.images[2], arrays["pixels"][5])
    assert load_image(data.id.images[2]).size == (4, 4)
    assert data.fit is not None and data.fit.embeddings is not None and len(data.fit) == 4
    np.testing.assert_allclose(
        data.fit.embeddings[1], arrays["id"][2] / np.linalg.norm(arrays["id"][2].astype(np.float32)), rtol=1e-3
    )


def test_features_in_safetensors(root: Path) -> None:
    arrays = {name: array for name, array in feature_arrays().items() if array.dtype.kind != "U"}
    safetensors.numpy.save_file(arrays, root / "all.safetensors")
    own = copy.deepcopy(FEATURES)
    own["id"]["source"].update(features="all.safetensors", label_names=["owl", "dog", "cat"])
    own["ood"][0]["source"].update(features="all.safetensors")
    own["text_features"].update(path="all.safetensors")
    own["text_features"]["banks"][0].update(names=["dog", "cat", "tabby", "owl", "bear"])
    data = load_suite_data(own, root)
    np.testing.assert_array_equal(data.id.embeddings, load_features(root).id.embeddings)
    assert data.id.labels == [2, 1, 0, 2, 1, 0, 2, 1]
    assert data.text_bank is not None and "bear" in data.text_bank


@pytest.mark.parametrize(
    ("change", "arrays", "message"),
    [
        (None, {"ood": np.ones((6, 4))}, r"differ in width: 'Pets' has 5, 'Other' has 4, and the texts have 5"),
        (None, {"text": np.ones((5, 7))}, r"differ in width: .* and the texts have 7"),
        (None, {"text": np.ones((4, 5))}, "There are 5 names for 4 rows of `text`"),
        (
            lambda own: own.update(labels=["dog", "cats"], id={**own["id"], "classes": {"rename": {"cats": "dog"}}}),
            {"id_label": np.zeros(8, dtype=int)},
            "`classes.rename` names 'cats', which is none of its 1 classes",
        ),
        (
            lambda own: own["text_features"]["banks"][0].update(rename={"taby": "cat"}),
            {},
            "text features of the suite pets .* `rename` names 'taby', which is none of .* Did you mean `tabby`",
        ),
        (
            None,
            {"text_names": np.array(["dog", "cat", "tabby", "owls", "x"])},
            "Of 3 labels 1 have no embedding, such as 'owl'. Did you mean `owls`",
        ),
        (None, {"ood": np.zeros((6, 5))}, "'Other' .* Of 6 rows of `ood` 6 are zero or not finite, such as row 0"),
        (None, {"id": np.full((8, 5), np.nan)}, "Of 8 rows of `id` 8 are zero or not finite"),
        (None, {"ood": np.ones(6)}, r"`ood` must hold embeddings of shape .* got shape \(6,\)"),
        (None, {"ood": np.ones((0, 5))}, r"`ood` must hold embeddings of shape .* got shape \(0, 5\)"),
        (None, {"ood": np.ones((6, 5), dtype=int)}, "as floats, got .* dtype int64"),
        (None, {"id_label": np.zeros(7, dtype=int)}, "`labels` must have one row per image, got 7 rows and 8 images"),
        (None, {"id_label": np.zeros(8)}, "`labels` must be one number or name per image, got .* dtype float64"),
        (lambda own: own["id"]["source"].update(images="idd"), {}, "all.npz has no 'idd'. Did you mean `id`"),
        (lambda own: own["id"]["source"].update(pixels="id"), {}, "`pixels` must be of shape"),
        (lambda own: own["id"]["source"].update(rows="9:"), {}, "There are no images in all.npz"),
    ],
)
def test_bad_features(
    root: Path, change: Callable[[dict[str, Any]], object] | None, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_features(root, change, **arrays)


def test_files_of_features_that_cannot_be_read(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file all.npz. The data root is"):
        load_suite_data(FEATURES, root)
    (root / "all.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"all.npz cannot be read as .npz or .safetensors"):
        load_suite_data(FEATURES, root)
    # What a pickle does when it is opened, nobody knows.
    np.savez(root / "all.npz", **{**feature_arrays(), "id_label": np.array([{}] * 8, dtype=object)})
    with pytest.raises(ValueError, match=r"all.npz cannot be read as .npz or .safetensors"):
        load_suite_data(FEATURES, root)
    own = copy.deepcopy(FEATURES)
    own["id"]["source"]["features"] = "list.txt"
    (root / "list.txt").write_text("a")
    with pytest.raises(ValueError, match=r"list.txt cannot be read as .npz or .safetensors"):
        load_suite_data(own, root)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"imagefolder": "pest"}, "There is no folder pest"),
        ({"csv": "pets.csv"}, "There is no file pets.csv"),
        ({"parquet": "*.parquet"}, r"No file matches \*.parquet"),
        ({"image_list": "list.txt", "root": "pets"}, "There is no file list.txt"),
        ({"image_list": "there.txt", "root": "pest"}, "There is no folder pest"),
        (
            {"image_list": "there.txt", "root": "textures"},
            "Its only image is not in .*textures: there is no .*cat/000.png",
        ),
        ({"csv": "there.csv"}, "Its only image is not in .*: there is no .*gone.png"),
        ({"csv": "there.csv", "root": "pest"}, "There is no folder pest"),
    ],
)
def test_missing_files(root: Path, source: dict[str, str], message: str) -> None:
    (root / "there.txt").write_text("cat/000.png 0\n")
    (root / "there.csv").write_text("image\ngone.png\n")
    with pytest.raises(FileNotFoundError) as caught:
        load_suite_data(suite(protocol="Fetch it from the authors.", id=id_set(source=source)), root)
    caught.match(f"^The set 'Pets' of the suite pets cannot be used: {message}")
    caught.match(f"The data root is {root}. Where it comes from is in the `protocol` of the suite.$")
    assert "\n" not in str(caught.value)


def test_missing_data_root(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`data_root` is no folder: .*nowhere"):
        load_suite_data(suite(), root / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["cat", "dog", "owls"]}, "The 3 labels of the suite lack its class 'owl'. Did you mean `owls`"),
        ({"labels": ["a", "b"]}, "The 2 labels of the suite lack its classes 'cat', 'dog', 'owl'. Rename them"),
        ({"id": id_set(source={"imagefolder": "empty"})}, "There are no images in empty"),
        ({"id": id_set(source={"imagefolder": "flat"})}, "The classes of its images are not known. Classes are"),
        ({"id": id_set(source={"imagefolder": "mixed"})}, "loose.png has no class, but ID images need a label"),
        ({"labels": {"from": "id"}, "id": id_set(source={"imagefolder": "flat"})}, "are the classes of 'Pets', but"),
        ({"labels": {"from": "id", "draw": 4}}, "`labels.draw` of the suite pets is 4, but 'Pets' has 3 classes"),
        (
            {"labels": {"from": "id", "draw": 3}, "ood": [ood_set(source={"imagefolder": "train"}, complement=True)]},
            "'Textures' .* Labels of the suite are all of its classes, so that no images are left",
        ),
        ({"ood": [ood_set(classes={"only": "labels"})]}, "No labels of the suite are of its classes"),
        ({"ood": [ood_set(classes={"exclude": ["bandde"]})]}, "names 'bandde', .* 2 classes. Did you mean `banded`"),
        ({"ood": [ood_set(classes={"only": ["x"]})]}, "`classes.only` names 'x', which is none of its 2 classes"),
        ({"ood": [ood_set(classes={"rename": {"x": "y"}})]}, "`classes.rename` names 'x'"),
        ({"ood": [ood_set(classes={"exclude": ["banded", "woven"]})]}, "Its filters .* leave no images"),
        (
            {"ood": [ood_set(source={"imagefolder": "flat"}, classes={"exclude": ["x"]})]},
            "It has `classes.exclude`, but its classes are not known",
        ),
        ({"ood": [ood_set(source={"csv": "table.csv", "image_column": "img"})]}, "`image_column` is 'img'"),
        (
            {"ood": [ood_set(source={"csv": "table.csv"}, where={"stile": ["a"]})]},
            "`where` names the column 'stile', .* Did you mean `style`.* The columns are image, style",
        ),
        (
            {"ood": [ood_set(source={"csv": "table.csv"}, where={"style": ["flta"]})]},
            "No row has 'flta' in the column 'style'. Did you mean `flat`",
        ),
        (
            {"labels": ["cat"], "id": id_set(classes={"exclude": ["dog"]})},
            "The only label of the suite lacks its class 'owl'. Rename it with `classes.rename`, or leave it out",
        ),
        (
            {"id": id_set(source={"csv": "labelled.csv"})},
            "Name the column of the classes as `label_column` of its `source`. Did you mean `label`\\? The columns "
            "are image, label.",
        ),
        ({"id": id_set(source={"csv": "empty.csv"})}, "empty.csv is empty; its first line must name the columns."),
        ({"ood": [ood_set(source={"csv": "blank.csv"})]}, "Row 1 of blank.csv names no image in the column 'image'"),
        ({"ood": [ood_set(source={"csv": "binary.csv"})]}, "binary.csv cannot be read"),
        ({"ood": [ood_set(source={"image_list": "binary.csv", "root": "."})]}, "binary.csv cannot be read"),
        ({"ood": [ood_set(source={"parquet": "binary.csv"})]}, "binary.csv cannot be read"),
    ],
)
def test_bad_sets(root: Path, changes: dict[str, Any], message: str) -> None:
    (root / "empty").mkdir()
    for name in ("flat/a.png", "mixed/cat/a.png", "mixed/loose.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    write_csv(root, ["image,style", "flat/a.png,flat"])
    (root / "empty.csv").touch()
    (root / "labelled.csv").write_text("image,label\nflat/a.png,cat\n")
    (root / "blank.csv").write_text("image,style\nflat/a.png,x\n,y\n")
    (root / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=message):
        load_suite_data(suite(**changes), root)


def test_a_damaged_table_is_reported_once(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "damaged.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="damaged.parquet cannot be read"):
        load_suite_data(suite(id=id_set(source={"parquet": "damaged.parquet"})), root)
    assert "Failed" not in "".join(capfd.readouterr())
    # What else the library has to say is none of our business.
    assert datasets.logging.get_verbosity() < datasets.logging.CRITICAL


def test_counts_are_those_before_images_are_drawn(root: Path) -> None:
    data = load_suite_data(
        suite(
            id=id_set(images=8, classes={"exclude": ["owl"]}),
            fit={"name": "Fit", "source": {"imagefolder": "train"}, "per_class": 2},
            ood=[ood_set(images=10_000, limit=3)],
        ),
        root,
    )
    assert (len(data.id), data.id.num_available, data.id.num_expected) == (8, 8, 8)
    assert data.fit is not None
    assert (len(data.fit), data.fit.num_available, data.fit.num_expected) == (6, 60, None)
    (ood,) = data.ood
    assert (len(ood), ood.num_available, ood.num_expected) == (3, 8, 10_000)


@pytest.mark.parametrize("kind", ["fit", "covariate_shift", "ood"])
def test_sets_that_share_images_are_refused(root: Path, kind: str) -> None:
    """Also if they read the same files in two ways."""
    (root / "list.txt").write_text("cat/000.png 0\ndog/000.png 1\n")
    other: dict[str, Any] = {"name": "Other", "source": {"image_list": "list.txt", "root": "pets"}}
    values = {"fit": other, "covariate_shift": [other], "ood": [{**other, "group": "near"}]}
    with pytest.raises(ValueError, match="The sets 'Pets' and 'Other' share 2 images, such as 'cat/000.png'"):
        load_suite_data(suite(**{kind: values[kind]}), root)


def test_ood_images_are_not_for_fitting(root: Path) -> None:
    fit = {"name": "Fit", "source": {"imagefolder": "train"}}
    with pytest.raises(ValueError, match="The sets 'Fit' and 'Textures' share 60 images"):
        load_suite_data(suite(fit=fit, ood=[ood_set(source={"imagefolder": "train"})]), root)


def test_seeds_are_not_negative(root: Path) -> None:
    with pytest.raises(ValueError, match="`seed` must not be negative, got -1"):
        load_suite_data(suite(), root, seed=-1)


def test_real_image_folders(shared: Path) -> None:
    data = load_suite_data(
        {
            "name": "cifar10",
            "description": "CIFAR-10 against MNIST.",
            "labels": {"from": "id"},
            "image_size": 28,
            "id": {"name": "CIFAR-10", "source": {"imagefolder": "cifar10/test"}, "limit": 100},
            "fit": {"name": "Training", "source": {"imagefolder": "cifar10/train"}, "per_class": 16},
            "ood": [{"name": "MNIST", "group": "far", "source": {"imagefolder": "mnist"}}],
        },
        shared / "data",
    )
    assert data.labels[:2] == ["airplane", "automobile"] and len(data.labels) == 10
    assert Counter(data.id.labels) == dict.fromkeys(range(10), 10)
    assert data.fit is not None and len(data.fit) == 160
    assert len(data.ood[0]) == 300
    for loaded in (data.id, data.ood[0]):
        assert loaded.images is not None and loaded.images[0].size == (28, 28)


def test_real_captions(shared: Path) -> None:
    source = {"csv": "emoji/captions.csv", "label_column": "name"}
    where = {"style": ["twemoji"], "category": ["animals & nature", "food & drink", "objects"]}
    data = load_suite_data(
        {
            "name": "emoji",
            "description": "Some concepts against others.",
            "labels": {"draw": 50, "from": "id"},
            "id": {"name": "Twemoji", "source": source, "where": where},
            "covariate_shift": [{"name": "OpenMoji", "source": source, "where": {"style": ["openmoji"]}}],
            "ood": [{"name": "Rest", "group": "near", "source": source, "where": where, "complement": True}],
        },
        shared / "data",
        seed=3,
    )
    assert len(data.labels) == len(data.id) == 50
    assert all(name.startswith("twemoji/") for name in data.id.names)
    assert set(data.id.class_names or ()).isdisjoint(data.ood[0].class_names or ())
    assert len(data.id) + len(data.ood[0]) == 557
    assert set(data.covariate_shift[0].class_names or ()) <= set(data.labels)
    assert data.id.images is not None and load_image(data.id.images[0]).size == (64, 64)


def test_real_features(shared: Path) -> None:
    source = {"features": "features/clip_vitb32_openai_real.npz"}
    data = load_suite_data(
        {
            "name": "features",
            "description": "CIFAR-10 against product photos.",
            "labels": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
            "id": {
                "name": "CIFAR-10",
                "source": {
                    **source,
                    "images": "cifar10_test500_image",
                    "labels": "cifar10_test500_label",
                    "label_names": "cifar10_names",
                    "pixels": "cifar10_test500_pixels",
                },
            },
            "ood": [{"name": "Products", "group": "far", "source": {**source, "images": "fashion2000_image"}}],
            "text_features": {
                "path": source["features"],
                "model": "openai/clip-vit-base-patch32",
                "banks": [
                    {
                        "embeddings": "lvis1203_text_a",
                        "names": "lvis1203_names",
                        "template": "a {}",
                        "rename": {"car_(automobile)": "automobile", "boat": "ship"},
                    }
                ],
            },
        },
        shared,
    )
    assert data.text_bank is not None and data.id.embeddings is not None and data.ood[0].embeddings is not None
    texts = np.stack([data.text_bank[label] for label in data.labels])
    accuracy = np.mean((data.id.embeddings @ texts.T).argmax(axis=1) == data.id.labels)
    assert accuracy > 0.85
    assert data.ood[0].embeddings.shape == (2000, 512)
    assert data.id.images is not None and load_image(data.id.images[0]).size == (32, 32)
