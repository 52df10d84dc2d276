# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector looked at, for all methods and kinds of texts."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, OODDetector, PrecomputedEncoder
from clipn_hf.detector_explanations import explained
from clipn_hf.methods import METHODS
from clipn_hf.modeling import add_context_tokens
from clipn_hf.similarity_maps import MAP_PATHS, similarity_maps

LABELS = ["cat", "dog", "red bird", "tree"]
NEGATIVES = ["car", "moon", "piano"]
ZERO_SHOT = [
    name for name, method in METHODS.items() if method.fit is None and not {"sigmoid", "unknown"} & method.needs
]


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8))


IMAGES = [noise(seed) for seed in range(3)]


@pytest.fixture
def encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor, "cpu")


@pytest.mark.parametrize("method", ZERO_SHOT)
def test_verdicts_are_those_of_the_detector_by_any_method(encoder: DualEncoder, method: str) -> None:
    detector = OODDetector(encoder, LABELS, method, negatives=NEGATIVES)
    expected = detector(IMAGES, top_k=2)
    found = detector.explain(IMAGES, top_k=2, top_negatives=2, batch_size=2, no=True)
    for one, result in zip(found, expected, strict=True):
        assert one.result["ood_score"] == pytest.approx(result["ood_score"], rel=1e-4, abs=1e-6)
        assert one.result["verdict"] == result["verdict"]
        listed = [entry["label"] for entry in result["labels"]]
        assert [each.text for each in one.of_kind("label")] == [each.text for each in one.of_kind("no")] == listed
        named = [entry["label"] for entry in result["negatives"]][:2]
        assert [each.text for each in one.of_kind("negative")] == named
        assert all(each.map.shape == (4, 4) and each.map.dtype == torch.float32 for each in one.evidence)


@pytest.mark.parametrize("path", MAP_PATHS)
def test_maps_are_those_of_similarity_maps(encoder: DualEncoder, path: str) -> None:
    detector = OODDetector(encoder, LABELS, "mcm", negatives=NEGATIVES, templates=["a drawing of a {}"])
    words = {"templates": ["a drawing of a {}"], "model": encoder}
    maps = {
        "labels": (LABELS, similarity_maps(IMAGES, LABELS, path, **words)),
        "negatives": (NEGATIVES, similarity_maps(IMAGES, NEGATIVES, path, **words)),
        "no": (LABELS, similarity_maps(IMAGES, LABELS, path, use_no_encoder=True, **words)),
    }
    found = detector.explain(IMAGES, path, top_k=None, relative=False, no=True)
    assert all(not one.relative and one.path == path for one in found)
    for row, one in enumerate(found):
        for kind, own in one.maps().items():
            if kind == "unknown":
                assert not own
                continue
            texts, expected = maps[kind]
            assert sorted(own) == sorted(texts)
            for position, text in enumerate(texts):
                torch.testing.assert_close(own[text], expected[row, position], rtol=0, atol=1e-5)


def test_relative_maps_compare_with_all_labels_also_with_those_that_are_not_listed(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, negatives=NEGATIVES)
    plain = similarity_maps(IMAGES, LABELS, model=encoder)
    common, no = plain.mean(dim=1), similarity_maps(IMAGES, LABELS, model=encoder, use_no_encoder=True)
    negative = similarity_maps(IMAGES, NEGATIVES, model=encoder)
    for row, one in enumerate(detector.explain(IMAGES, top_k=1)):
        assert one.relative
        for each in one.evidence:
            if each.kind == "negative":
                expected = negative[row, NEGATIVES.index(each.text)] - common[row]
            else:
                own = plain[row, LABELS.index(each.text)]
                expected = own - common[row] if each.kind == "label" else no[row, LABELS.index(each.text)] - own
            torch.testing.assert_close(each.map, expected, rtol=0, atol=1e-5)


def test_probabilities_and_cosines(encoder: DualEncoder) -> None:
    detector = OODDetector(encoder, LABELS, "ctw", negatives=NEGATIVES)
    embeddings = encoder.image_embeddings(encoder.prepare_images(IMAGES))
    text, no_text = encoder.class_embeddings(LABELS)
    assert no_text is not None
    for row, one in enumerate(detector.explain(IMAGES)):
        first = one.of_kind("no")[0]
        # Competing to win is what "no" says about the most probable label.
        assert first.probability == pytest.approx(one.result["ood_score"], abs=1e-5)
        for kind, key in (("label", "labels"), ("negative", "negatives")):
            assert [each.probability for each in one.of_kind(kind)] == [entry["score"] for entry in one.result[key]][
                :3
            ]
        for each in one.of_kind("label"):
            assert each.cosine == pytest.approx(float(embeddings[row] @ text[LABELS.index(each.text)]), abs=1e-5)
        assert first.cosine == pytest.approx(float(embeddings[row] @ no_text[LABELS.index(first.text)]), abs=1e-5)


def test_single_label_is_compared_with_nothing(encoder: DualEncoder) -> None:
    (one,) = OODDetector(encoder, ["cat"], "max_logit").explain(IMAGES[0])
    assert not one.relative
    expected = similarity_maps(IMAGES[0], ["cat"], model=encoder)[0, 0]
    torch.testing.assert_close(one.of_kind("label")[0].map, expected, rtol=0, atol=1e-6)


def test_clip_says_nothing_of_no(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    detector = OODDetector(tiny_clip, LABELS, "mcm", processor=tiny_processor)
    (one,) = detector.explain(IMAGES[0])
    assert {each.kind for each in one.evidence} == {"label"}
    assert one.maps()["no"] == one.maps()["negatives"] == one.maps()["unknown"] == {}
    with pytest.raises(TypeError, match='`no` needs a CLIPN, and CLIPModel has no "no" text encoder'):
        detector.explain(IMAGES[0], no=True)


def test_no_is_explained_where_the_method_judges_by_it(encoder: DualEncoder) -> None:
    for method, kinds in (("mcm", {"label"}), ("atd", {"label", "no"})):
        detector = OODDetector(encoder, LABELS, method)
        assert {each.kind for each in detector.explain(IMAGES[0])[0].evidence} == kinds
        for no in (True, False):
            found = {each.kind for each in detector.explain(IMAGES[0], no=no)[0].evidence}
            assert found == ({"label", "no"} if no else {"label"})


@pytest.mark.parametrize("combination", ["none", "mcm", "gl_mcm"])
def test_unknown_prompt(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, combination: str) -> None:
    add_context_tokens(tiny_clip, tiny_processor, LABELS, num_tokens=2, unknown=True, num_unknown_tokens=2)
    encoder = DualEncoder(tiny_clip, tiny_processor, "cpu")
    unknown = encoder.unknown_embedding()
    patches = encoder.local_image_embeddings(encoder.prepare_images(IMAGES), "surgery").unflatten(1, (4, 4))
    text = encoder.class_embeddings(LABELS)[0]
    probabilities = OODDetector(encoder, LABELS, "clip_os", combination="none").score(IMAGES)
    images = encoder.image_embeddings(encoder.prepare_images(IMAGES))
    for relative in (True, False):
        found = OODDetector(encoder, LABELS, "clip_os", combination=combination).explain(IMAGES, relative=relative)
        for row, one in enumerate(found):
            assert [each.kind for each in one.evidence] == ["label"] * 3 + ["unknown"]
            (own,) = one.of_kind("unknown")
            expected = patches[row] @ (unknown - text.mean(dim=0) * relative)
            torch.testing.assert_close(own.map, expected, rtol=0, atol=1e-5)
            assert own.probability == pytest.approx(float(probabilities[row]), abs=1e-5)
            assert own.cosine == pytest.approx(float(images[row] @ unknown), abs=1e-5)
            assert torch.equal(one.maps()["unknown"]["unknown"], own.map)
    assert OODDetector(encoder, LABELS, "mcm").explain(IMAGES)[0].of_kind("unknown") == []


def test_discrepancy_is_never_relative(encoder: DualEncoder) -> None:
    """It is that of CLIP-OS, also by default."""
    expected = similarity_maps(IMAGES, LABELS, "discrepancy", model=encoder)
    for row, one in enumerate(OODDetector(encoder, LABELS, "mcm").explain(IMAGES, "discrepancy", top_k=None)):
        assert not one.relative
        for each in one.evidence:
            torch.testing.assert_close(each.map, expected[row, LABELS.index(each.text)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", MAP_PATHS)
@pytest.mark.parametrize("method", ["mcm", "gl_mcm", "atd"])
def test_images_go_through_the_model_once(encoder: DualEncoder, method: str, path: str) -> None:
    passes = []
    detector = OODDetector(encoder, LABELS, method)
    embeddings = detector.embed_prepared(encoder.prepare_images(IMAGES))
    handle = encoder.model.vision_model.register_forward_hook(lambda *_: passes.append(1))
    found = detector.explain(IMAGES, path)
    assert len(passes) == 1
    handle.remove()
    again, _ = detector.embed_to_explain(encoder.prepare_images(IMAGES), path)
    assert torch.equal(again, embeddings)
    assert [one.result for one in found] == detector.results(embeddings, 3, 3, from_prepared=True)


def test_picture_is_the_middle_of_what_is_not_square(encoder: DualEncoder) -> None:
    image = Image.new("RGB", (96, 32), "white")
    image.paste("red", (32, 0, 64, 32))
    (one,) = OODDetector(encoder, LABELS).explain(image)
    assert one.image.size == (32, 32)
    assert (np.asarray(one.image)[4:-4, 4:-4] == (255, 0, 0)).all()


def test_result_for_pipelines(encoder: DualEncoder) -> None:
    (one,) = OODDetector(encoder, LABELS, negatives=NEGATIVES).explain(IMAGES[0])
    result = explained(one)
    assert {*result} == {*one.result, "maps", "overlay"}
    assert list(result["maps"]) == ["labels", "unknown", "no", "negatives"]
    assert isinstance(result["overlay"], Image.Image)


def test_errors(encoder: DualEncoder, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    detector = OODDetector(encoder, LABELS)
    with pytest.raises(ValueError, match="`path` must be one of"):
        detector.explain(IMAGES, "last")
    with pytest.raises(ValueError, match="`top_k`"):
        detector.explain(IMAGES, top_k=0)
    with pytest.raises(TypeError, match="These are embeddings"):
        detector.explain(torch.randn(3, 24))
    with pytest.raises(ValueError, match="must be fitted before it judges"):
        OODDetector(encoder, LABELS, "nearest_neighbors" if "nearest_neighbors" in METHODS else "knn").explain(IMAGES)
    embedded = PrecomputedEncoder({"cat": [1.0, 0.0], "dog": [0.0, 1.0]}, "plane", ["{}"], logit_scale=10.0)
    with pytest.raises(TypeError, match="no model for images"):
        OODDetector(embedded, ["cat", "dog"], "mcm").explain(IMAGES)
    # As that of SigLIP does.
    tiny_clip.vision_model.head = torch.nn.Identity()
    with pytest.raises(TypeError, match="CLIPModel gives no local features"):
        OODDetector(tiny_clip, LABELS, "mcm", processor=tiny_processor).explain(IMAGES)
    assert detector.explain([]) == []


@pytest.mark.gpu
def test_gpu(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> None:
    expected = OODDetector(DualEncoder(tiny_clipn, tiny_processor, "cpu"), LABELS, negatives=NEGATIVES).explain(IMAGES)
    found = OODDetector(DualEncoder(tiny_clipn, tiny_processor, "cuda"), LABELS, negatives=NEGATIVES).explain(IMAGES)
    for one, other in zip(found, expected, strict=True):
        for each, same in zip(one.evidence, other.evidence, strict=True):
            assert each.text == same.text
            torch.testing.assert_close(each.map, same.map, rtol=0, atol=1e-3)
