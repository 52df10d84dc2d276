# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers import CLIPModel, CLIPProcessor

from clipn_hf.encoders import DualEncoder, PrecomputedEncoder
from clipn_hf.evaluation.doctor import MAX_ITEMS, Finding, examine_images, examine_labels, format_findings

ANIMALS = ["cat", "dog", "horse", "frog", "zebra", "otter", "mouse", "goose"]


def checks(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings]


def only(findings: list[Finding], check: str) -> Finding:
    chosen = [finding for finding in findings if finding.check == check]
    assert len(chosen) == 1, checks(findings)
    return chosen[0]


def but_for_size(findings: list[Finding]) -> list[Finding]:
    """What is found in sets that are as small as those of tests."""
    return [finding for finding in findings if finding.check != "small-set"]


def test_good_labels_give_no_findings() -> None:
    assert examine_labels([*ANIMALS, "great white shark", "bicycle-built-for-two", "T-shirt", "jack-o'-lantern"]) == []


@pytest.mark.parametrize(
    ("labels", "severity", "check", "item"),
    [
        (["cat", "dog", "cat"], "error", "duplicate-label", "'cat' = 'cat'"),
        (["Cardigan", "dog", "cardigan"], "error", "duplicate-label", "'Cardigan' = 'cardigan'"),
        (["café", "dog", "cafe"], "error", "duplicate-label", "'café' = 'cafe'"),
        (["polar bear", "polar  bear", "dog"], "error", "duplicate-label", "'polar bear' = 'polar  bear'"),
        (["polar bear", "polar_bear", "dog"], "error", "duplicate-label", "'polar bear' = 'polar_bear'"),
        (["cat", " ", "dog"], "error", "blank-label", "position 1"),
        (["n01440764", "n01443537"], "error", "wordnet-id", "n01440764"),
        (["n02085620-Chihuahua", "dog"], "error", "wordnet-id", "n02085620-Chihuahua"),
        (["0", "1"], "warning", "numeric-label", "0"),
        (["class_3", "class_4"], "warning", "numeric-label", "class_3"),
        (["bat_(animal)", "dog"], "warning", "raw-label", "bat_(animal)"),
        (["airport_terminal", "dog"], "warning", "raw-label", "airport_terminal"),
        (["church/outdoor", "dog"], "warning", "raw-label", "church/outdoor"),
        (["AnnualCrop", "HerbaceousVegetation"], "warning", "raw-label", "AnnualCrop"),
        (["goldfish, Carassius auratus", "dog"], "warning", "synonym-list", "goldfish, Carassius auratus"),
        (["black and gold garde…", "dog"], "warning", "truncated-label", "black and gold garde…"),
        (["black and", "dog"], "warning", "truncated-label", "black and"),
        (["goldfish,", "dog"], "warning", "truncated-label", "goldfish,"),
        (["crane (bird", "dog"], "warning", "truncated-label", "crane (bird"),
        (["great white shar", "dog"], "warning", "truncated-label", "great white shar: great white shark"),
        (["African elephan", "dog"], "warning", "truncated-label", "African elephan: African elephant"),
        (["golden_retrieve", "dog"], "warning", "truncated-label", "golden_retrieve: golden retriever"),
        (["Chihuahu", "dog"], "warning", "truncated-label", "Chihuahu: Chihuahua"),
        (
            ["goldfish, Carassius aurat", "dog"],
            "warning",
            "truncated-label",
            "goldfish, Carassius aurat: Carassius auratus",
        ),
        (["cat ", "dog"], "note", "superfluous-space", "'cat '"),
        (["a cat", "dog"], "warning", "double-article", "a cat"),
        (["sunglass", "sunglasses"], "warning", "plural-label", "'sunglass' and 'sunglasses'"),
        (["berries", "berry"], "warning", "plural-label", "'berry' and 'berries'"),
        (["boxes", "box"], "warning", "plural-label", "'box' and 'boxes'"),
        (["colour wheel", "color wheel"], "note", "similar-spelling", "'colour wheel' and 'color wheel'"),
        (["racoon dog", "raccoon dog"], "note", "similar-spelling", "'racoon dog' and 'raccoon dog'"),
        (["kindergarden", "kindergarten"], "note", "similar-spelling", "'kindergarden' and 'kindergarten'"),
        (["cat", "cat face"], "note", "contained-label", "'cat' and 'cat face'"),
        (["wine bottle", "bottle"], "note", "contained-label", "'bottle' and 'wine bottle'"),
        (["fish", "fish_(food)"], "note", "contained-label", "'fish' and 'fish_(food)'"),
        (
            ["station wagon, wagon", "police van, wagon"],
            "warning",
            "shared-synonym",
            "'station wagon, wagon' and 'police van, wagon'",
        ),
    ],
)
def test_labels(labels: list[str], severity: str, check: str, item: str) -> None:
    finding = only(examine_labels(labels), check)
    assert finding.severity == severity
    assert item in finding.items
    assert finding.message[0].isupper() or finding.message[0].isdigit()
    assert finding.message.endswith(".")


@pytest.mark.parametrize(
    "labels",
    [
        ["castle", "cattle"],  # Short words with one other letter are words of their own.
        ["hammer", "hamper"],
        ["Boeing 707", "Boeing 717"],
        ["glass", "grass"],
        ["bus", "bush"],
        ["bass", "bas"],
        ["EntleBucher", "cat"],
        ["bow (weapon)", "bow (ribbon)"],
        ["caterpillar", "cat"],  # Not as a word of its own.
        ["한국", "日本"],
        ["applaud", "annoy", "admire"],  # Verbs, of which there are nouns.
        ["zigzagged", "polka-dotted"],
        ["puma's", "gnat!"],
        ["puma concolo", "tige"],  # Too short, or WordNet has no such name.
    ],
)
def test_false_alarms(labels: list[str]) -> None:
    assert examine_labels(labels) == []


def test_marks_of_other_scripts_are_letters() -> None:
    assert examine_labels(["किला", "कला"]) == []


def test_a_pair_is_reported_once() -> None:
    assert checks(examine_labels(["polar bear", "Polar bear", "dog"])) == ["duplicate-label"]
    assert checks(examine_labels(["raincoat", "raincoats"])) == ["plural-label"]


def test_head_nouns_come_first() -> None:
    items = only(examine_labels(["bee", "bee eater", "bottle", "beer bottle"]), "contained-label").items
    assert items == ("'bottle' and 'beer bottle'", "'bee' and 'bee eater'")


def test_an_article_does_no_harm_without_one_in_the_template() -> None:
    assert examine_labels(["a cat", "the dog"], templates=["This is {}."]) == []
    message = only(
        examine_labels(["a cat", "otter"], templates=["This is {}.", "a sketch of a {}."]), "double-article"
    )
    assert "'a sketch of a a cat.'" in message.message


FISH = ["tench", "goldfish", "stingray", "eel", "coho", "lionfish", "pufferfish", "gar", "sturgeon", "barracouta"]
COLOURS = ["red", "black", "spotted", "striped", "northern", "great white"]


@pytest.mark.parametrize("length", [12, 16])
def test_a_list_that_was_cut(length: int) -> None:
    whole = [f"{colour} {fish}" for colour in COLOURS for fish in FISH]
    assert "truncated-list" not in checks(examine_labels(whole))
    cut = [label[:length].strip() for label in whole]
    finding = only(examine_labels(cut), "truncated-list")
    assert f"exactly {length} characters" in finding.message
    assert all(len(item) == length for item in finding.items)


def test_codes_of_one_length_were_not_cut() -> None:
    assert "truncated-list" not in checks(examine_labels([f"identity {number:06}" for number in range(50)]))


def test_items_are_bounded_and_counted() -> None:
    finding = only(examine_labels([f"n{number:08}" for number in range(200)]), "wordnet-id")
    assert len(finding.items) == MAX_ITEMS == 10
    assert "200 labels" in finding.message and finding.message.endswith("And 190 more than are listed.")


def test_the_gravest_come_first() -> None:
    findings = examine_labels(["cat ", "sun_flower", "dog", "Dog", "wine bottle", "bottle"])
    order = ["error", "warning", "note"]
    severities = [order.index(finding.severity) for finding in findings]
    assert severities == sorted(severities) and set(severities) == {0, 1, 2}


@pytest.mark.parametrize("ood_label", ["truck", "Truck", "trucks", "truck, lorry", "motor_truck, truck"])
def test_ood_classes_that_are_labels(ood_label: str) -> None:
    finding = only(examine_labels(["truck", "cat"], [ood_label, "moose"]), "id-ood-overlap")
    assert finding.severity == "error"
    assert finding.items == (f"{ood_label!r} (OOD) and 'truck' (ID)",)
    assert "read the lists" in finding.message


def test_ood_class_among_the_synonyms_of_a_label() -> None:
    assert only(examine_labels(["tench, Tinca tinca", "cat"], ["Tinca tinca"]), "id-ood-overlap").severity == "error"


@pytest.mark.parametrize("ood_label", ["pickup_truck", "fire truck"])
def test_ood_classes_that_are_kinds_of_a_label(ood_label: str) -> None:
    findings = examine_labels(["truck", "cat"], [ood_label])
    assert only(findings, "id-ood-containment").severity == "warning"
    assert "id-ood-overlap" not in checks(findings)
    assert only(examine_labels([ood_label], ["truck"]), "id-ood-containment").items == (
        f"'truck' (OOD) and {ood_label!r} (ID)",
    )


def test_ood_classes_that_share_a_word_are_only_noted() -> None:
    findings = examine_labels(["baseball", "station wagon, wagon"], ["baseball bat", "police van, wagon", "moose"])
    finding = only(findings, "id-ood-shared-words")
    assert finding.severity == "note"
    assert [item.split(" (OOD)")[0] for item in finding.items] == ["'baseball bat'", "'police van, wagon'"]


def test_disjoint_ood_classes_give_no_findings() -> None:
    assert examine_labels(ANIMALS, ["truck", "sailing ship", "truck"]) == []


@pytest.mark.parametrize(
    ("labels", "ood_labels", "error", "message"),
    [
        ("cat", None, TypeError, "`labels` must be a list of strings"),
        (["cat", 3], None, TypeError, "`labels[1]` must be a string, got int: 3."),
        ([], None, ValueError, "`labels` is empty"),
        (["cat"], "dog", TypeError, "`ood_labels` must be a list of strings"),
    ],
)
def test_bad_labels(labels: Any, ood_labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        examine_labels(labels, ood_labels)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "severity", "item"),
    [
        (["couch", "dog", "sofa"], "warning", "'couch' and 'sofa': sofa, couch, lounge"),
        (["airplane", "aeroplane"], "warning", "'airplane' and 'aeroplane': airplane, aeroplane, plane"),
        (["grey wolf", "gray_wolf"], "warning", "'grey wolf' and 'gray_wolf': timber wolf, grey wolf, gray wolf, …"),
        (["car (vehicle)", "automobile"], "warning", "'car (vehicle)' and 'automobile': car, auto, automobile, …"),
        (["bicycle", "bike"], "note", "'bicycle' and 'bike': bicycle, bike, wheel, …"),
    ],
)
def test_labels_that_mean_the_same(labels: list[str], severity: str, item: str) -> None:
    finding = only(examine_labels(labels), "synonym-label")
    assert (finding.severity, finding.items) == (severity, (item,))


def test_labels_that_are_kinds_of_others() -> None:
    finding = only(examine_labels(["puppy", "dog", "zebra"]), "kind-of-label")
    assert (finding.severity, finding.items) == ("note", ("'puppy' and 'dog': puppy → dog",))
    # What the spelling has told is not told again.
    assert checks(examine_labels(["beer bottle", "bottle"])) == ["contained-label"]


@pytest.mark.parametrize(
    ("label", "other", "way"), [("lorry", "truck", "lorry → truck"), ("kitty", "cat", "kitty → ")]
)
def test_labels_that_may_be_kinds_of_others(label: str, other: str, way: str) -> None:
    (finding,) = examine_labels([label, other, "zebra"])
    assert (finding.check, finding.severity) == ("kind-of-label", "note")
    assert finding.items[0].startswith(f"{label!r} and {other!r}: {way}")
    assert "a rarer sense" in finding.message
    for labels, ood_labels in (([other], [label]), ([label], [other])):
        (finding,) = examine_labels(labels, ood_labels)
        assert (finding.check, finding.severity) == ("id-ood-kind-of", "note")
        assert finding.items[0].startswith(f"{ood_labels[0]!r} (OOD) and {labels[0]!r} (ID): {way}")
        assert "may be a kind of" in finding.message


@pytest.mark.parametrize(
    ("label", "ood_label", "severity"),
    [("airplane", "aeroplane", "error"), ("couch", "sofa", "warning"), ("bicycle", "bike", "note")],
)
def test_ood_classes_that_mean_the_same_as_a_label(label: str, ood_label: str, severity: str) -> None:
    finding = only(examine_labels([label, "zebra"], ["moose", ood_label]), "id-ood-synonym")
    assert finding.severity == severity
    assert finding.items[0].startswith(f"{ood_label!r} (OOD) and {label!r} (ID): ")
    assert checks(examine_labels([label, "zebra"], ["moose", ood_label])) == ["id-ood-synonym"]


def test_ood_classes_that_wordnet_knows_as_kinds_of_a_label() -> None:
    (finding,) = examine_labels(["dog", "cat"], ["moose", "husky", "seal"])
    assert (finding.check, finding.severity) == ("id-ood-kind-of", "warning")
    assert finding.items == ("'husky' (OOD) and 'dog' (ID): Eskimo dog → working dog → dog",)


def test_ood_classes_of_which_labels_are_kinds_are_noted_once() -> None:
    (finding,) = examine_labels(["husky", "beagle", "mackerel"], ["dog", "moose"])
    assert (finding.check, finding.severity) == ("id-ood-kind-of", "note")
    assert finding.items == ("'dog' (OOD) and 'husky' (ID) and 1 more",)


@pytest.mark.parametrize(("label", "ood_label"), [("dog", "hot dog"), ("pig", "guinea pig"), ("dog", "prairie dog")])
def test_wordnet_knows_what_is_no_kind_in_spite_of_its_name(label: str, ood_label: str) -> None:
    assert checks(examine_labels([label, "zebra"], [ood_label])) == ["id-ood-shared-words"]


def test_wordnet_ids_are_named() -> None:
    assert "such as 'goldfish' instead of 'n01443537'" in examine_labels(["n01443537", "n01629819"])[0].message
    assert "such as" not in examine_labels(["n99999999"])[0].message


def test_few_of_known_names_are_suspected_of_meaning_the_same(shared: Path) -> None:
    with np.load(shared / "features" / "clip_vitb32_openai_real.npz") as features:
        lists = {name: list(dict.fromkeys(features[f"{name}_names"].tolist())) for name in ("cifar10", "cifar100")}
        lists["lvis"] = features["lvis1203_names"].tolist()
    for name in ("cifar10", "cifar100"):
        assert "synonym-label" not in checks(examine_labels(lists[name]))
    (pairs,) = (
        finding
        for finding in examine_labels(lists["lvis"])
        if (finding.check, finding.severity) == ("synonym-label", "warning")
    )
    assert len(pairs.items) < 10
    _, possible = examine_labels(lists["cifar10"], lists["cifar100"])
    assert (possible.check, possible.severity) == ("id-ood-kind-of", "note")
    assert "'lion' (OOD) and 'cat' (ID): lion → big cat" in possible.items
    for labels in lists.values():
        assert "truncated-label" not in checks(examine_labels(labels))
    maybe = [finding for finding in examine_labels(lists["lvis"]) if "may be kinds" in finding.message]
    assert len(maybe) == 1 and len(maybe[0].items) == MAX_ITEMS


def bank(angles: dict[str, float], logit_scale: float = 100.0, dim: int = 64) -> PrecomputedEncoder:
    """Labels at given angles in pairs: each pair has a plane of its own."""
    embeddings = {}
    for place, (label, angle) in enumerate(angles.items()):
        vector = np.zeros(dim)
        vector[place // 2 * 2], vector[place // 2 * 2 + 1] = np.cos(angle), np.sin(angle)
        embeddings[label] = vector
    return PrecomputedEncoder(embeddings, "bank", ["a photo of a {}."], logit_scale)


def test_names_that_the_model_cannot_tell_apart() -> None:
    # The limit of the angle is about sqrt(dim) / logit_scale = 0.08.
    encoder = bank({"cat": 0.0, "feline": 0.07, "dog": 0.0, "wolf": 0.09})
    finding = only(examine_labels(["cat", "feline", "dog", "wolf"], encoder=encoder), "indistinct-labels")
    assert finding.severity == "warning"
    assert finding.items == ("'cat' and 'feline' (cosine 0.998)",)
    # A model with smaller logits tells fewer names apart.
    softer = bank({"cat": 0.0, "feline": 0.07, "dog": 0.0, "wolf": 0.09}, logit_scale=50.0)
    assert len(only(examine_labels(["cat", "feline", "dog", "wolf"], encoder=softer), "indistinct-labels").items) == 2


def test_names_that_are_unusually_close_for_their_list() -> None:
    angles = dict(zip(["cat", "feline", *ANIMALS[1:], *FISH[:5]], [0.0, 0.3] + [0.0, 1.0, 0.0, 1.1] * 3, strict=True))
    finding = only(examine_labels(list(angles), encoder=bank(angles)), "similar-labels")
    assert finding.severity == "note"
    assert finding.items == ("'cat' and 'feline' (cosine 0.955)",)


def test_what_spelling_has_told_is_not_told_again() -> None:
    encoder = bank({"sunglass": 0.0, "sunglasses": 0.01, "Cat": 0.0, "cat": 0.0})
    findings = examine_labels(["sunglass", "sunglasses", "Cat", "cat"], encoder=encoder)
    assert checks(findings) == ["duplicate-label", "plural-label"]


def test_ood_classes_that_mean_a_label() -> None:
    encoder = bank({"cat": 0.0, "feline": 0.05, "dog": 0.0, "wolf": 0.5})
    finding = only(examine_labels(["cat", "dog"], ["feline", "wolf", "cat"], encoder), "id-ood-indistinct")
    assert finding.severity == "warning"
    assert finding.items == ("'feline' (OOD) and 'cat' (ID) (cosine 0.999)",)


def test_ood_classes_that_are_unusually_close_to_a_label() -> None:
    angles = dict(
        zip([*ANIMALS, *FISH[:4]], [0.0, 1.0, 0.0, 1.1, 0.0, 0.9, 0.0, 1.0, 0.0, 1.0, 0.0, 1.1], strict=True)
    )
    encoder = bank({**angles, "ship": 0.0, "boat": 0.4})
    labels = [*angles, "ship"]
    assert only(examine_labels(labels, ["boat"], encoder), "id-ood-similarity").severity == "note"


def test_ood_classes_without_embeddings_are_compared_by_spelling() -> None:
    findings = examine_labels(["cat", "dog"], ["dogs", "moose"], bank({"cat": 0.0, "dog": 1.0}))
    assert checks(findings) == ["id-ood-overlap", "no-ood-embeddings"]
    assert "no embedding of 'dogs'" in findings[1].message


def test_labels_with_a_model(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    encoder = DualEncoder(tiny_clip, tiny_processor)
    long = "photo " * 80
    findings = examine_labels(["cat", "Cat", long, "dog", " "], ["car"], encoder, ["a photo of a {}."])
    assert [finding.check for finding in findings if finding.severity == "error"] == ["blank-label", "duplicate-label"]
    assert only(findings, "too-long-label").items[0].startswith("photo photo")
    assert "too-long-label" not in checks(examine_labels(["cat", "dog"], encoder=encoder))


@pytest.mark.parametrize(
    ("names", "embeddings", "expected"),
    [
        ("imagenet1k_names", "imagenet1k_text_a_photo_of_a", {"duplicate-label", "plural-label", "synonym-label"}),
        ("lvis1203_names", "lvis1203_text_a", {"raw-label", "synonym-label"}),
        ("cifar100_names", "cifar100_text_this_is_a_photo_of_a", {"raw-label"}),
    ],
)
def test_class_names_of_known_sets(shared: Path, names: str, embeddings: str, expected: set[str]) -> None:
    with np.load(shared / "features" / "clip_vitb32_openai_real.npz") as features:
        labels = features[names].tolist()
        # Where a name stands for two classes, either embedding will do.
        encoder = PrecomputedEncoder(
            dict(zip(labels, features[embeddings].astype(np.float32), strict=True)), "ViT-B/32", ["a {}"]
        )
    findings = examine_labels(labels, encoder=encoder)
    assert {finding.check for finding in findings if finding.severity != "note"} == expected


# Images.


@dataclass(frozen=True, eq=False)
class Images:
    name: str
    group: str
    images: Any
    names: Sequence[str]
    class_names: Sequence[str] | None = None


def scene(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = (generator.random(2) * size).astype(int).tolist()
        draw.ellipse((x, y, x + 7, y + 7), fill=tuple(generator.integers(0, 256, 3).tolist()))
    return image


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def image_set(
    name: str,
    group: str,
    seeds: Sequence[int],
    size: tuple[int, int] = (48, 48),
    image_format: str = "PNG",
    extra: Sequence[Any] = (),
) -> Images:
    images = [*(encoded(scene(seed, size), image_format) for seed in seeds), *extra]
    return Images(name, group, images, [f"{place}.png" for place in range(len(images))])


def test_good_images_give_no_findings() -> None:
    sets = [image_set("A", "id", range(20)), image_set("B", "near", range(100, 120)), image_set("C", "fit", [200])]
    assert examine_images(sets) == []
    assert examine_images(sets, labels=["cat"]) == []


@pytest.mark.parametrize(
    ("groups", "identical", "near"),
    [
        (("id", "far"), "error", "warning"),
        (("covariate-shift", "near"), "error", "warning"),
        (("fit", "near"), "error", "warning"),
        (("id", "fit"), "error", "warning"),
        (("fit", "covariate-shift"), "error", "warning"),
        (("id", "covariate-shift"), "warning", "note"),
        (("near", "far"), "note", "note"),
        (("covariate-shift", "covariate-shift"), "note", "note"),
    ],
)
def test_images_in_two_sets(groups: tuple[str, str], identical: str, near: str) -> None:
    copies = [encoded(scene(0)), encoded(scene(1), "JPEG", quality=80)]
    findings = examine_images([image_set("A", groups[0], range(5)), image_set("B", groups[1], [50], extra=copies)])
    same, alike = only(findings, "identical-images"), only(findings, "near-identical-images")
    assert (same.severity, alike.severity) == (identical, near)
    assert same.items == ("B: 1.png = A: 0.png",)
    assert alike.items == ("B: 2.png ≈ A: 1.png",)
    assert "1 image of 3 in 'B'" in same.message


def test_images_twice_in_a_set() -> None:
    copies = [encoded(scene(0)), encoded(scene(0)), encoded(scene(1), "JPEG", quality=80)]
    findings = examine_images([image_set("A", "id", range(4), extra=copies)])
    assert only(findings, "identical-images").items == ("A: 4.png = A: 0.png", "A: 5.png = A: 0.png")
    assert only(findings, "identical-images").severity == "warning"
    assert only(findings, "near-identical-images").severity == "note"


def test_copies_without_colours_are_copies_but_not_with_others() -> None:
    original = scene(0)
    red, green, _ = original.split()
    grey, other = original.convert("L"), Image.merge("RGB", (red, green, green))
    sets = [
        Images("A", "id", [original], ["a"]),
        Images("B", "far", [grey], ["grey"]),
        Images("C", "far", [other], ["other"]),
    ]
    findings = but_for_size(examine_images(sets))
    assert only(findings[:1], "near-identical-images").items == ("B: grey ≈ A: a",)
    assert "lost colours" in findings[0].message
    assert [finding.items for finding in findings[1:]] == [("C: other ≈ B: grey",)]


def test_many_copies_are_counted_and_bounded() -> None:
    findings = examine_images([image_set("A", "id", range(30)), image_set("B", "far", range(30))])
    finding = only(findings, "identical-images")
    assert len(finding.items) == MAX_ITEMS
    assert "30 images of 30" in finding.message and "20 more" in finding.message


def test_blank_images_are_told_but_are_no_copies() -> None:
    blank = [Image.new("RGB", (32, 32), color) for color in ("white", "black", "grey")]
    findings = examine_images([Images("A", "id", blank[:2], ["a", "b"]), Images("B", "far", blank[2:], ["c"])])
    assert checks(but_for_size(findings)) == ["blank-image"]
    assert only(findings, "blank-image").items == ("A: a", "A: b", "B: c")


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    extra = [str(broken), None, encoded(scene(5))[:200], str(tmp_path / "missing.png")]
    findings = examine_images([image_set("A", "id", range(3), extra=extra), Images("B", "far", [str(broken)], ["b"])])
    partly, wholly = (finding for finding in findings[::-1] if finding.check == "unreadable-image")
    assert (partly.severity, wholly.severity) == ("warning", "error")
    assert "4 images of 7 in 'A'" in partly.message
    assert [item.split(":")[1] for item in partly.items] == [" 3.png", " 4.png", " 5.png", " 6.png"]
    assert "there is no image" in partly.items[1]


@pytest.mark.parametrize(("size", "direction"), [((96, 96), "greater = OOD"), ((24, 24), "smaller = OOD")])
def test_resolution_that_tells_ood(size: tuple[int, int], direction: str) -> None:
    sets = [image_set("A", "id", range(12)), image_set("B", "near", range(50, 62), size)]
    finding = only(examine_images(sets), "resolution")
    assert finding.severity == "warning"
    assert f"`image_size: {min(48, size[0])}`" in finding.message
    assert finding.items == (f"B: AUROC 1.000, {direction} ({size[0]} px, ID 48 px)",)


def test_resolution_on_both_sides_of_that_of_id_images_tells_ood() -> None:
    both = [encoded(scene(seed, (24, 24) if seed % 2 else (96, 96))) for seed in range(50, 62)]
    finding = only(
        examine_images([image_set("A", "id", range(12)), image_set("B", "near", [], extra=both)]), "resolution"
    )
    assert finding.items[0].startswith("B: AUROC 1.000 (")


def test_resolution_that_tells_little_is_noted() -> None:
    sizes = [(48, 48)] * 14 + [(96, 96)] * 6
    mixed = [encoded(scene(50 + place, size)) for place, size in enumerate(sizes)]
    finding = only(
        examine_images([image_set("A", "id", range(20)), image_set("B", "far", [], extra=mixed)]), "resolution"
    )
    assert finding.severity == "note"
    assert "AUROC 0.650" in finding.items[0]


def test_the_size_that_a_set_gives_counts() -> None:
    class Resized(Sequence[Image.Image]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: Any) -> Any:
            return scene(50 + index, (96, 96)).resize((48, 48))

    resized = Images("B", "far", Resized(), [str(place) for place in range(12)])
    assert but_for_size(examine_images([image_set("A", "id", range(12)), resized])) == []


def test_file_format_aspect_ratio_and_colour_that_tell_ood() -> None:
    jpeg = image_set("B", "near", range(50, 62), image_format="JPEG")
    wide = image_set("C", "far", range(70, 82), (96, 48))
    grey = image_set("D", "far", [], extra=[encoded(scene(seed).convert("L")) for seed in range(90, 102)])
    findings = examine_images([image_set("A", "id", range(12)), jpeg, wide, grey])
    assert only(findings, "file-format").items == ("B: AUROC 1.000 (100% JPEG, ID 100% PNG)",)
    assert only(findings, "file-format").severity == "warning"
    assert only(findings, "aspect-ratio").items == ("C: AUROC 1.000, greater = OOD (2.00, ID 1.00)",)
    assert only(findings, "greyscale").items == ("D: AUROC 1.000 (100% grey, ID 100% coloured)",)
    assert {only(findings, check).severity for check in ("aspect-ratio", "greyscale")} == {"note"}
    assert "resolution" not in checks(findings)


def test_few_images_tell_nothing() -> None:
    sets = [image_set("A", "id", range(9)), image_set("B", "far", range(50, 59), (96, 96))]
    assert but_for_size(examine_images(sets)) == []


def test_ood_classes_that_sets_share_with_id() -> None:
    def with_classes(name: str, group: str, seeds: Sequence[int], classes: list[str]) -> Images:
        return Images(name, group, image_set(name, group, seeds).images, list(map(str, seeds)), classes)

    id_set = with_classes("A", "id", range(3), ["cat", "dog", "dog"])
    shifted = with_classes("B", "covariate-shift", [10], ["dog"])
    ood = with_classes("C", "near", range(20, 24), ["Cat", "moose", "dog", "dog"])
    finding = only(examine_images([id_set, shifted, ood]), "shared-class")
    assert finding.severity == "error"
    assert "3 images of 4 in the OOD set 'C'" in finding.message
    assert finding.items == ("'Cat' (1 image)", "'dog' (2 images)")


def test_sets_without_images_are_told() -> None:
    findings = examine_images([Images("A", "id", None, ["a"]), image_set("B", "far", [1])])
    assert checks(but_for_size(findings)) == ["no-images"]
    assert only(findings, "no-images").items == ("A",)


def test_paths_arrays_and_datasets_are_read(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    pixels = np.asarray(scene(1))
    sets = [
        Images("A", "id", [tmp_path / "a.png", pixels], ["a", "b"]),
        Images("B", "far", [str(tmp_path / "a.png"), pixels.copy()], ["c", "d"]),
    ]
    assert only(examine_images(sets, progress=False), "identical-images").items == ("B: c = A: a", "B: d = A: b")


def test_each_image_is_read_once() -> None:
    read = []

    class Counting(Sequence[bytes]):
        def __len__(self) -> int:
            return 70

        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return encoded(scene(index))

    examine_images([Images("A", "id", Counting(), [])])
    assert read == list(range(70))


def test_small_sets_are_told() -> None:
    broken = [b"nothing"] * 5
    sets = [
        image_set("A", "id", range(18), extra=broken),
        image_set("B", "far", range(100, 120)),
        image_set("C", "fit", [200]),
        Images("D", "near", None, ["a"]),
    ]
    finding = only(examine_images(sets), "small-set")
    assert finding.severity == "warning"
    assert finding.items == ("A (18 images)", "D (1 image)")


def test_labels_without_images_are_told() -> None:
    @dataclass(frozen=True, eq=False)
    class Labelled(Images):
        labels: Sequence[int] | None = None

    known = image_set("A", "id", range(20))
    id_set = Labelled(known.name, known.group, known.images, known.names, labels=[0, 3] * 10)
    labels = ["cat", "dog", "horse", "frog"]
    finding = only(examine_images([id_set, image_set("B", "far", range(100, 120))], labels=labels), "empty-class")
    assert (finding.severity, finding.items) == ("warning", ("dog", "horse"))
    assert "2 labels of 4 have no ID image" in finding.message
    assert examine_images([id_set], labels=None) == examine_images([known], labels=labels) == []
    with pytest.raises(TypeError, match="`labels` must be a list of strings"):
        examine_images([id_set], labels="cat")


def test_bad_sets() -> None:
    with pytest.raises(ValueError, match="`sets` is empty"):
        examine_images([])
    with pytest.raises(TypeError, match="`images` of the set 'A' must have a length"):
        examine_images([Images("A", "id", iter([]), [])])
    with pytest.raises(TypeError, match="Cannot read A: a: An image must be"):
        examine_images([Images("A", "id", [3], ["a"])])


def test_findings_as_text() -> None:
    finding = Finding(
        "warning", "raw-label", "1 label is written as in programs; " + "put spaces " * 12, ("a_b", "c\nd")
    )
    lines = format_findings([finding, Finding("note", "other", "Look.")], width=60)
    assert lines[0].startswith("Warning (raw-label): 1 label")
    assert max(map(len, lines)) <= 60
    assert lines[-3:] == ["    a_b", "    c d", "Note (other): Look."]
    assert format_findings([]) == ["Nothing to report."]


def test_errors_come_with_what_they_mean_for_results() -> None:
    findings = [Finding("error", check, "Wrong.") for check in ("blank-label", "wordnet-id", "blank-label")]
    assert format_findings(iter(findings[:1]))[-1] == (
        "Results are wrong in this respect until it is put right: blank-label."
    )
    assert format_findings(findings)[-1] == (
        "Results are wrong in these respects until they are put right: blank-label, wordnet-id."
    )


def test_a_train_image_of_cifar10_that_is_also_a_test_image(shared: Path) -> None:
    folder = shared / "data" / "cifar10"
    files = sorted((folder / "test" / "frog").glob("*.jpg")), sorted((folder / "train" / "frog").glob("*.jpg"))
    test, train = ([Image.open(file).resize((28, 28)) for file in part] for part in files)
    findings = examine_images(
        [
            Images("test", "id", test, [file.name for file in files[0]]),
            Images("train", "fit", train, [file.name for file in files[1]]),
        ]
    )
    assert checks(findings) == ["near-identical-images"]
    assert findings[0].items == ("train: 1604.jpg ≈ test: 0943.jpg",)
