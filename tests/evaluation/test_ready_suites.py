# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The suites, class names and published results that the package ships."""

import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipn_hf.evaluation.published import published_results
from clipn_hf.evaluation.sets import SuiteData, load_suite_data
from clipn_hf.evaluation.suite import load_suite, ready_suites
from clipn_hf.negatives import filter_candidates

ROOT = Path(__file__).parents[2]
FOLDER = Path(str(files("clipn_hf.evaluation")))
SUITES = sorted(ready_suites())
CLASS_COUNTS = {"cifar100": 100, "imagenet1k": 1000, "imagenet100": 100, "imagenet200": 200, "tiny-imagenet": 100}
LOCAL_SUITES = [
    "cifar10",
    "cifar10-features",
    "cifar10-features-fitted",
    "cifar10-features-split",
    "emoji",
    "emoji-openmoji",
    "product-photos-features",
    "tiny-imagenet",
]


def read_class_names(name: str) -> dict[str, str]:
    lines = (FOLDER / "class_names" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split("\t")) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return dict(pairs)


@pytest.fixture(scope="module", params=LOCAL_SUITES)
def local_data(request: pytest.FixtureRequest, shared: Path) -> SuiteData:
    return load_suite_data(request.param, data_root=shared)


def test_the_papers_benchmarks_and_the_small_ones_are_there() -> None:
    papers = {"imagenet1k", "openood-imagenet1k", "openood-imagenet200", "openood-cifar10", "openood-cifar100"}
    papers |= {"cifar100", "clipos-cifar10", "clipos-cifar100", "clipos-imagenet100"}
    assert set(SUITES) == papers | set(LOCAL_SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_suite_is_valid_and_explains_itself(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name == (FOLDER / "suites" / f"{name}.yaml").stem
    assert ready_suites()[name] == suite.description
    assert suite.description.endswith(".") and len(suite.description) < 120
    assert "Beware" in suite.protocol or name in ("emoji-openmoji", "openood-imagenet200")
    assert all(image_set.group in ("near", "far") for image_set in suite.ood)
    assert all(image_set.note == "" or image_set.note.endswith(".") for image_set in suite.sets)


@pytest.mark.parametrize("name", SUITES)
def test_counts_are_those_of_the_protocol(name: str) -> None:
    suite = load_suite(name)
    assert suite.protocol is not None
    counts = {image_set.name: image_set.images for image_set in suite.sets if image_set.images is not None}
    assert all(f"{count:,}" in suite.protocol for count in counts.values())
    # Other suites take what there is.
    assert counts or name in ("emoji", "emoji-openmoji", "cifar10", "tiny-imagenet")


@pytest.mark.parametrize("name", SUITES)
def test_paths_stay_below_the_data_root(name: str) -> None:
    for image_set in load_suite(name).sets:
        source = image_set.source
        for path in (source.path, str(source.options.get("root", ""))):
            assert not Path(path).is_absolute() and ".." not in Path(path).parts


@pytest.mark.parametrize("name", SUITES)
def test_readme_names_the_suite(name: str) -> None:
    readme = (FOLDER / "suites" / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in readme


def test_every_list_of_class_names_is_used() -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "suites").glob("*.yaml"))
    assert set(re.findall(r"class_names/([\w-]+)\.txt", written)) == set(CLASS_COUNTS)
    assert {path.stem for path in (FOLDER / "class_names").iterdir()} == set(CLASS_COUNTS)


@pytest.mark.parametrize(("name", "count"), CLASS_COUNTS.items())
def test_class_names_are_distinct_and_in_the_order_of_the_data_set(name: str, count: int) -> None:
    names = read_class_names(name)
    assert len(names) == count
    assert list(names) == sorted(names)
    assert [label for label, times in Counter(label.casefold() for label in names.values()).items() if times > 1] == []
    assert all(label == label.strip() and "_" not in label for label in names.values())
    if name != "cifar100":
        assert all(re.fullmatch(r"n\d{8}", wordnet_id) for wordnet_id in names)


def test_subsets_of_imagenet_have_its_names() -> None:
    whole = read_class_names("imagenet1k")
    assert read_class_names("imagenet100").items() <= whole.items()
    assert read_class_names("imagenet200").items() <= whole.items()
    positions = {wordnet_id: position for position, wordnet_id in enumerate(whole)}
    # Class numbers that every copy of ImageNet-1k shares.
    assert positions["n01440764"] == 0 and whole["n01440764"] == "tench"
    assert positions["n02012849"] == 134 and whole["n02012849"] == "crane bird"
    assert positions["n03126707"] == 517 and whole["n03126707"] == "construction crane"
    assert positions["n15075141"] == 999 and whole["n15075141"] == "toilet paper"


def test_class_names_follow_those_of_the_embeddings(shared: Path) -> None:
    """Lists of another origin in the same order: names that agree must stand at the same places."""
    with np.load(shared / "features" / "clip_vitb32_openai_real.npz") as arrays:
        imagenet = [str(name) for name in arrays["imagenet1k_names"]]
        cifar = [str(name) for name in arrays["cifar100_names"]]
    assert list(read_class_names("cifar100")) == cifar
    ours = list(read_class_names("imagenet1k").values())
    common = set(ours) & {name for name, times in Counter(imagenet).items() if times == 1}
    assert len(common) > 600
    assert [name for name in common if ours.index(name) != imagenet.index(name)] == []


@pytest.mark.parametrize("name", ["emoji", "emoji-openmoji"])
def test_emoji_are_fitted_on_the_styles_that_the_checkpoint_has_seen(name: str) -> None:
    recipe = yaml.safe_load((ROOT / "training/recipes/clipn-tiny.yaml").read_text(encoding="utf-8"))
    seen = {style for rule in recipe["filter"] for style in rule.removeprefix("style=").split(",")}
    suite = load_suite(name)
    assert suite.fit is not None and set(suite.fit.where["style"]) == seen
    for image_set in (suite.id, *suite.covariate_shift, *suite.ood):
        assert not set(image_set.where["style"]) & seen


def test_published_results_stand_on_sets_of_their_suite() -> None:
    results = published_results()
    assert results
    for result in results:
        assert result.benchmark in SUITES
        assert set(result.results) <= {image_set.name for image_set in load_suite(result.benchmark).ood}
        assert result.source
        assert result.average or result.results


def test_published_averages_are_those_of_the_sets() -> None:
    """A slip in a digit would show here; two digits after the point leave 0.011 of rounding."""
    checked = 0
    for result in published_results():
        for metric, average in result.average.items():
            values = [metrics[metric] for metrics in result.results.values() if metric in metrics]
            if values:
                assert abs(sum(values) / len(values) - average) < 0.011, (result.method, metric)
                checked += 1
    assert checked >= 8


def test_local_suite_loads(local_data: SuiteData) -> None:
    labels = local_data.labels
    for image_set in (local_data.id, *local_data.ood):
        assert image_set.num_expected in (None, image_set.num_available)
    assert len(set(labels)) == len(labels)
    id_labels = local_data.id.labels
    assert id_labels is not None and set(id_labels) == set(range(len(labels)))
    for image_set in local_data.ood:
        assert len(image_set.names) > 0 and image_set.labels is None
        # What is OOD must not be called as an ID class is.
        assert not set(image_set.class_names or ()) & set(labels)
    names = [set(image_set.names) for image_set in (local_data.id, *local_data.ood)]
    if local_data.id.images is not None and local_data.suite.name.startswith("emoji"):
        assert sum(map(len, names)) == len(set().union(*names)), "a drawing is in two sets"


def test_emoji_draws_fifty_concepts_for_each_seed(shared: Path) -> None:
    first, second = (load_suite_data("emoji", data_root=shared, seed=seed) for seed in (0, 1))
    assert len(first.labels) == len(second.labels) == 50 and first.labels != second.labels
    assert len(first.id.names) == 50
    near, far = first.ood
    assert (len(near.names), near.group) == (557 - 50, "near")
    assert (len(far.names), far.group) == (1048 - 12, "far")
    assert first.fit is not None and first.fit.labels is not None and set(first.fit.labels) == set(range(50))
    for shifted in first.covariate_shift:
        assert shifted.labels is not None and set(shifted.labels) <= set(range(50)) and len(shifted.labels) <= 50


def test_cifar10_leaves_out_the_pickup_trucks(shared: Path) -> None:
    data = load_suite_data("cifar10", data_root=shared)
    near = data.ood[0]
    assert near.class_names is not None and len(set(near.class_names)) == 99
    assert near.num_excluded > 0 and "pickup_truck" not in near.class_names
    assert data.suite.image_size == 28


def test_tiny_imagenet_splits_the_classes_in_two(shared: Path) -> None:
    data = load_suite_data("tiny-imagenet", data_root=shared)
    other = data.ood[0].class_names
    assert other is not None
    assert len(data.labels) == len(set(other)) == 100
    assert not [name for name in (*data.labels, *other) if re.fullmatch(r"n\d{8}", name)]


def test_features_suite_agrees_with_the_known_zero_shot_accuracy(shared: Path) -> None:
    data = load_suite_data("cifar10-features", data_root=shared)
    assert data.text_bank is not None and data.id.embeddings is not None and data.id.labels is not None
    text = np.stack([data.text_bank[label] for label in data.labels]).astype(np.float32)
    predictions = (data.id.embeddings @ text.T).argmax(axis=1)
    assert np.mean(predictions == np.array(data.id.labels)) == pytest.approx(0.90, abs=0.01)


@pytest.mark.parametrize("name", [suite for suite in LOCAL_SUITES if "features" in suite])
def test_features_suites_have_names_for_negative_labels(name: str, shared: Path) -> None:
    data = load_suite_data(name, data_root=shared)
    assert data.negatives is not None and data.suite.protocol is not None
    candidates = data.negatives.pop("corpus")
    # Labels and the names that stand for them are no candidates.
    stand_ins = {"product-photos-features": ("flip-flop_(sandal)", "sandal_(type_of_shoe)")}
    assert not {*data.labels, *stand_ins.get(name, ("boat", "car_(automobile)"))}.intersection(candidates)
    assert f"{len(candidates):,} names of LVIS" in data.suite.protocol
    left, _ = filter_candidates(candidates, ["text"] * len(candidates), data.labels, data.negatives["filters"])
    kept = {candidates[place] for place in left}
    kinds = {"jet_plane": "airplane", "puppy": "dog", "dalmatian": "dog", "puffin": "bird", "trailer_truck": "truck"}
    for kind, label in kinds.items():
        assert (kind in kept) == (label not in data.labels)
    assert {"dog_collar", "horse_carriage", "birdhouse", "car_battery"} <= kept


def test_fitted_features_suite_fits_on_other_images(shared: Path) -> None:
    data = load_suite_data("cifar10-features-fitted", data_root=shared)
    assert data.fit is not None and data.fit.embeddings is not None and data.id.embeddings is not None
    assert len(data.fit.embeddings) == len(data.id.embeddings) == 250
    assert not {row.tobytes() for row in data.fit.embeddings} & {row.tobytes() for row in data.id.embeddings}


def test_product_photos_are_drawn_differently_by_each_seed(shared: Path) -> None:
    suite = load_suite("product-photos-features")
    draws = [load_suite_data(suite, data_root=shared, seed=seed) for seed in suite.seeds]
    assert len({tuple(data.labels) for data in draws}) == len(suite.seeds) == 10
    for data in draws:
        assert data.fit is not None and data.fit.labels is not None and data.fit.embeddings is not None
        assert Counter(data.fit.labels).keys() == {0, 1, 2} and min(Counter(data.fit.labels).values()) >= 10
        near, far = data.ood
        # All 1,000 photos of the second half but one are judged.
        assert len(data.id) + len(near) == 999 and len(far) == 500
        fitted_on = {row.tobytes() for row in data.fit.embeddings}
        for image_set in (data.id, near):
            assert image_set.embeddings is not None
            assert not fitted_on & {row.tobytes() for row in image_set.embeddings}


def make_files(root: Path, *paths: str) -> None:
    """Listing a set opens no image: empty files will do."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_imagenet_folders_get_their_labels(tmp_path: Path) -> None:
    make_files(tmp_path, "ImageNet/val/n12768682/a.JPEG", "ImageNet/val/n01440764/b.JPEG", "SUN/images/c.jpg")
    make_files(tmp_path, "iNaturalist/images/d.jpg", "Places/images/e.jpg", "dtd/images/banded/f.jpg")
    data = load_suite_data("imagenet1k", data_root=tmp_path)
    assert data.id.labels == [0, 990]
    assert data.id.class_names == ["tench", "horse chestnut seed"]
    assert [len(image_set) for image_set in data.ood] == [1, 1, 1, 1]


def test_imagenet100_passes_over_other_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wordnet_id in read_class_names("imagenet1k"):
            make_files(tmp_path, *(f"ImageNet/{split}/{wordnet_id}/{number}.JPEG" for number in range(3)))
    make_files(tmp_path, "dtd/images/banded/a.jpg", "places365/test_subset/b.jpg", "LSUN/test/c.jpg")
    make_files(tmp_path, "LSUN_resize/LSUN_resize/d.jpg", "iSUN/iSUN_patches/e.jpg")
    data = load_suite_data("clipos-imagenet100", data_root=tmp_path)
    assert len(data.labels) == 100 and len(data.id) == 300
    assert data.fit is not None and data.fit.labels is not None
    assert Counter(data.fit.labels) == dict.fromkeys(range(100), 2)


def test_openood_lists_number_the_labels(tmp_path: Path) -> None:
    suite = load_suite("openood-imagenet200")
    for image_set in suite.sets:
        folder = str(image_set.source.options["root"])
        make_files(
            tmp_path, image_set.source.path, f"{folder}/{image_set.name}/a.jpg", f"{folder}/{image_set.name}/b.jpg"
        )
        numbers = (199, 0) if image_set.group in ("id", "covariate-shift") else (-1, -1)
        lines = [f"{image_set.name}/{file} {number}" for file, number in zip(("a.jpg", "b.jpg"), numbers, strict=True)]
        (tmp_path / image_set.source.path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = load_suite_data(suite, data_root=tmp_path)
    for image_set in (data.id, *data.covariate_shift):
        assert image_set.labels is not None and image_set.class_names is not None
        assert sorted(zip(image_set.labels, image_set.class_names, strict=True)) == [(0, "goldfish"), (199, "acorn")]
    assert [image_set.group for image_set in data.ood] == ["near", "near", "far", "far", "far"]


def test_missing_data_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="What the suite needs, and where it comes from, is in .*README.md.$"):
        load_suite_data("imagenet1k", data_root=tmp_path)
