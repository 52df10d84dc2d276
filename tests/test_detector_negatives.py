# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Negative labels of detectors: what they are made of, what they explain, and when they are found anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import (
    CLIPNModel,
    DualEncoder,
    NegativeLabels,
    OODDetector,
    OODPipeline,
    PrecomputedEncoder,
    detector_files,
    detector_negatives,
    pipeline,
)
from clipn_hf.detector_negatives import PairEmbedder
from clipn_hf.detector_state import DetectorState
from clipn_hf.methods import METHODS

LABELS = ["cat", "dog", "red bird"]
CANDIDATES = ["car", "house", "moon", "piano", "river", "shoe", "spoon", "table", "violin", "wheel"]
MINING = {"corpus": CANDIDATES, "fraction": 0.5, "use_cache": False}
TEXTS = ["jellyfish", "parachute", "car"]
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)) for seed in range(5)]
HELD_OUT = torch.randn(100, 24, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def encoder(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clipn, tiny_processor)


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The labels for which negative labels were mined, call by call."""
    calls: list[list[str]] = []
    mine = NegativeLabels.mine

    def counting(model: Any, labels: list[str], *arguments: Any, **options: Any) -> NegativeLabels:
        calls.append(list(labels))
        return mine(model, labels, *arguments, **options)

    monkeypatch.setattr(NegativeLabels, "mine", staticmethod(counting))
    return calls


def bank_of(detector: OODDetector) -> NegativeLabels:
    assert detector.negatives is not None
    return detector.negatives


def detector_of(encoder: Any, method: str = "neglabel", **options: Any) -> OODDetector:
    # So warm that scores of random embeddings differ
    settings = {"temperature": 1.0} if "negatives" in METHODS[method].needs else {}
    return OODDetector(encoder, LABELS, method, **{"negatives": MINING, **settings, **options})


def test_every_way_to_give_them(encoder: DualEncoder, tmp_path: Path) -> None:
    templates = encoder.templates[:1]
    given = NegativeLabels.from_texts(encoder, TEXTS, LABELS, templates=templates)
    given.save(tmp_path / "bank.safetensors")
    (tmp_path / "texts.txt").write_text("# seen before\njellyfish\n\nparachute\ncar\n")
    every = [given, TEXTS, tuple(TEXTS), iter(TEXTS), np.array(TEXTS), [*TEXTS, TEXTS[0]]]
    (tmp_path / "again.txt").write_text("\n".join([*TEXTS, TEXTS[0]]))
    every += [tmp_path / "again.txt"]
    every += [tmp_path / "bank.safetensors", str(tmp_path / "bank.safetensors"), tmp_path / "texts.txt"]
    for negatives in every:
        bank = bank_of(detector_of(encoder, negatives=negatives))
        assert bank.labels == TEXTS and {type(label) for label in bank.labels} == {str}
        torch.testing.assert_close(bank.embeddings, encoder.class_embeddings(TEXTS, templates)[0])
    bank = bank_of(detector_of(encoder, negatives=MINING))
    assert (len(bank), bank.mined_for, bank.settings["templates"]) == (5, LABELS, templates)
    own = detector_of(encoder, templates=["the {}"])
    assert bank_of(own).settings["templates"] == own.templates == ["the {}"]


def test_methods_say_how_they_are_mined(
    encoder: DualEncoder, tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[dict[str, Any]] = []
    fake = NegativeLabels.from_texts(encoder, TEXTS)
    plain = DualEncoder(tiny_clip, tiny_processor)

    def mine(*_: Any, **options: Any) -> NegativeLabels:
        arguments.append(options)
        return fake

    monkeypatch.setattr(NegativeLabels, "mine", staticmethod(mine))
    for method in ("neglabel", "csp", "negrefine"):
        # A CLIPN brings the templates along that it was trained with; one is enough.
        for model, templates in ((plain, ["The nice {}."]), (encoder, encoder.templates[:1])):
            detector = OODDetector(model, LABELS, method)
            assert arguments.pop() == {"templates": templates, **METHODS[method].mining}
            assert detector.templates == templates
            OODDetector(model, LABELS, method, negatives={"fraction": 0.5})
            assert arguments.pop() == {"templates": templates, **METHODS[method].mining, "fraction": 0.5}
    OODDetector(encoder, LABELS, "mcm", negatives="wordnet-nouns")
    assert arguments.pop() == {"templates": encoder.templates, "corpus": "wordnet-nouns"}
    assert OODDetector(encoder, LABELS, "mcm").negatives is None
    assert not arguments


@pytest.mark.parametrize(
    ("negatives", "error", "message"),
    [
        ([], ValueError, "`negatives` is empty"),
        (["car", "Cat "], ValueError, r"`negatives` has 1 of the labels \('Cat '\)"),
        (["car", 3], TypeError, r"`negatives\[1\]` must be a string"),
        (["car", " "], ValueError, r"`negatives\[1\]` is empty"),
        (3, TypeError, "`negatives` must be negative labels, a list of texts, a file, or .*, got int"),
        (b"car", TypeError, "`negatives` must be negative labels"),
        ("no-such-file.txt", FileNotFoundError, "no-such-file.txt"),
        ("no-such-file.safetensors", FileNotFoundError, "no-such-file.safetensors"),
        ({"corpus": []}, ValueError, "is empty"),
        ({"corpus": LABELS}, ValueError, "nothing but labels"),
        ({"corpus": CANDIDATES, "quantile": 1.5}, ValueError, "`quantile`"),
        ("clown", FileNotFoundError, r"there is no file 'clown'; give a single text in a list, as in \['clown'\]"),
        (Dataset.from_dict({"name": ["car"]}), TypeError, r"`negatives` must be one column of the data set, got all"),
        ({"filters": None}, TypeError, "`filters` must be a list of names among id_names, .*, got NoneType"),
        ({"corpus": CANDIDATES, "max_candidates": 3.5}, TypeError, "`max_candidates` must be a whole number"),
        ({"fractoin": 0.5}, TypeError, "`negatives` does not know `fractoin`, did you mean `fraction`"),
        ({"templates": ["the {}"]}, TypeError, "`negatives` has `templates`, which is that of the detector"),
    ],
)
def test_bad_negatives(encoder: DualEncoder, negatives: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OODDetector(encoder, LABELS, "mcm", negatives=negatives)
    detector = detector_of(encoder, "mcm")
    before = detector.negatives
    with pytest.raises(error, match=message):
        detector.negatives = negatives
    assert detector.negatives is before


def test_more_groups_than_negatives(encoder: DualEncoder, clipn_folder: Path, tmp_path: Path) -> None:
    message = "^`num_groups` must be between 1 and the number of negative labels, got 4 groups for 3 negative labels"
    for method in ("neglabel", "csp", "negrefine"):
        with pytest.raises(ValueError, match=message):
            detector_of(encoder, method, negatives=TEXTS, num_groups=4)
        detector = detector_of(encoder, method, num_groups=4)
        before = bank_of(detector)
        with pytest.raises(ValueError, match=message):
            detector.negatives = TEXTS
        for other, changes in (
            (detector, {"negatives": TEXTS}),
            (detector_of(encoder, "mcm", negatives=TEXTS), {"method": method, "num_groups": 4}),
            (detector_of(encoder, method, negatives=TEXTS), {"num_groups": 4}),
        ):
            with pytest.raises(ValueError, match=message):
                other.with_changes(**changes)
        assert bank_of(detector) is before
        # Both at once are right where one after the other would not be.
        detector = detector.with_changes(negatives=TEXTS, num_groups=3)
        assert detector.with_changes(negatives=MINING, num_groups=5).settings["num_groups"] == 5
        for wrong in (0, True, "2"):
            with pytest.raises((TypeError, ValueError), match="^`num_groups` must be "):
                detector.with_changes(num_groups=wrong)
    assert torch.isfinite(detector_of(encoder, negatives=["car"]).score(HELD_OUT)).all()


def test_what_belongs_to_the_call(encoder: DualEncoder) -> None:
    for name in ("top_negatives", "top_k", "batch_size"):
        message = rf"^`{name}` belongs to the call; judge images by `detector\(images, {name}=…\)`"
        with pytest.raises(TypeError, match=message):
            detector_of(encoder, **{name: 1})
        with pytest.raises(TypeError, match=message):
            detector_of(encoder, "mcm").with_changes(**{name: 1})


@pytest.mark.parametrize("method", ["mcm", "atd", "neglabel"])
def test_results_list_what_images_look_like(encoder: DualEncoder, method: str) -> None:
    detector = detector_of(encoder, method)
    bank = bank_of(detector)
    images = encoder.image_embeddings(encoder.prepare_images(IMAGES))
    text, _ = encoder.class_embeddings(LABELS, detector.templates)
    temperature = 1.0 if method == "neglabel" else 0.01
    masses = (images @ torch.cat([text, bank.embeddings]).T / temperature).softmax(dim=1)[:, len(LABELS) :]
    for result, row in zip(detector(IMAGES, top_negatives=100), masses, strict=True):
        order = row.argsort(descending=True).tolist()
        assert [entry["label"] for entry in result["negatives"]] == [bank.labels[place] for place in order]
        assert [entry["score"] for entry in result["negatives"]] == pytest.approx(row[order].tolist(), rel=1e-3)
    full = detector(IMAGES, top_negatives=100)
    for count, kept in ((0, 0), (1, 1), (3, 3), (50, 5)):
        for judge in (detector, lambda _, top_negatives: detector.results(images, top_negatives=top_negatives)):
            found = [result["negatives"] for result in judge(IMAGES, top_negatives=count)]
            assert [len(row) for row in found] == [kept] * len(IMAGES)
        assert [[entry["label"] for entry in row] for row in found] == [
            [entry["label"] for entry in result["negatives"][:count]] for result in full
        ]
    assert len(detector(IMAGES[0])[0]["negatives"]) == 3
    for count in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="`top_negatives` must be an integer from 0, got"):
            detector(IMAGES[0], top_negatives=count)  # type: ignore[arg-type]


def test_explanations_that_nobody_asked_for_cost_nothing(
    encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of(encoder, "mcm")

    def refuse(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(detector_negatives, "top_negatives", refuse)
    assert detector(IMAGES[0], top_negatives=0)[0]["negatives"] == []
    assert OODDetector(encoder, LABELS, "mcm")(IMAGES[0])[0]["negatives"] == []
    assert detector.results(HELD_OUT[:0]) == []


def test_the_threshold_is_dropped_where_scores_change(encoder: DualEncoder, caplog: pytest.LogCaptureFixture) -> None:
    explained = detector_of(encoder, "mcm", threshold=0.5)
    expected = explained.score(HELD_OUT)
    for negatives in (TEXTS, None, MINING):
        explained.negatives = negatives
        assert explained.threshold == 0.5
        assert torch.equal(explained.score(HELD_OUT), expected)
    assert not caplog.records
    detector = detector_of(encoder, threshold=0.5)
    detector.negatives = MINING
    detector.negatives = bank_of(detector)
    assert detector.threshold == 0.5
    assert not caplog.records
    detector.negatives = TEXTS
    assert detector.threshold is None
    assert "its threshold (0.5), because `negatives` changed" in caplog.text
    other = detector_of(encoder, negatives=TEXTS)
    assert torch.equal(detector.score(HELD_OUT), other.score(HELD_OUT))


@pytest.mark.parametrize("negatives", [MINING, TEXTS])
def test_they_follow_every_change(
    encoder: DualEncoder, clipn_folder: Path, negatives: Any, mined: list[list[str]]
) -> None:
    def check(detector: OODDetector) -> None:
        fresh = OODDetector(
            DualEncoder(detector.image_encoder.model, detector.image_encoder.processor),
            detector.labels,
            "neglabel",
            templates=detector.templates,
            negatives=negatives,
            temperature=1.0,
        )
        assert bank_of(detector).labels == bank_of(fresh).labels
        assert torch.equal(detector.score(HELD_OUT), fresh.score(HELD_OUT))

    detector = detector_of(encoder, negatives=negatives)
    detector.labels = ["apple", "pear"]
    check(detector)
    detector.templates = ["the {}"]
    check(detector)
    with torch.no_grad():
        encoder.model.text_projection.weight.copy_(encoder.model.text_projection.weight.flip(0))
    detector.score(HELD_OUT)
    check(detector)
    detector.encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    check(detector)


def test_nothing_is_mined_twice(encoder: DualEncoder, clipn_folder: Path, mined: list[list[str]]) -> None:
    detector = detector_of(DualEncoder.from_pretrained(clipn_folder, device="cpu"))
    bank = bank_of(detector)
    assert mined == [LABELS]
    detector.labels = list(LABELS)
    detector.no_templates = ["no {}"]
    # The same weights, from another file or on another device
    detector.encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    detector.image_encoder.model.text_projection.weight.data = (
        detector.image_encoder.model.text_projection.weight.clone()
    )
    detector.score(HELD_OUT)
    assert detector.with_changes(threshold=0.5, num_groups=2).negatives is bank
    assert detector.with_changes(method="mcm", templates=detector.templates).negatives is not None
    assert mined == [LABELS]
    assert bank_of(detector) is bank
    for _ in range(2):
        detector.with_changes(labels=["apple", "pear"])
    assert mined == [LABELS, ["apple", "pear"]]


def test_a_given_bank_for_other_labels_is_mined_again(encoder: DualEncoder, mined: list[list[str]]) -> None:
    named = NegativeLabels.mine(encoder, ["apple"], "wordnet-nouns", max_candidates=30, use_cache=False)
    detector = detector_of(encoder, negatives=named)
    assert bank_of(detector).mined_for == LABELS
    assert bank_of(detector_of(encoder, negatives=bank_of(detector))) is bank_of(detector)
    gone = NegativeLabels.mine(encoder, LABELS, CANDIDATES, fraction=0.5, use_cache=False)
    detector = detector_of(encoder, negatives=gone)
    before = detector.score(HELD_OUT)
    message = (
        r"^The negative labels were mined for other labels, in other templates or by another model\. The candidates "
        r"of the negative labels \(own list\) are gone\. Give others as `negatives`, in `with_changes` together with "
        r"what changes\.$"
    )
    with pytest.raises(ValueError, match=message):
        detector.labels = ["apple", "pear"]
    assert detector.labels == LABELS
    assert torch.equal(detector.score(HELD_OUT), before)
    other = detector.with_changes(labels=["apple", "pear"], negatives=MINING)
    assert bank_of(other).mined_for == ["apple", "pear"]
    with pytest.raises(ValueError, match="are gone"):
        OODDetector(encoder, ["apple", "pear"], "neglabel", negatives=gone)


def test_negatives_that_only_explain_are_dropped_where_they_cannot_be_mined_again(
    clipn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    detector_of(encoder, "mcm", threshold=0.5).save_pretrained(tmp_path)
    said = "The detector has dropped its negative labels, which with method mcm only explain. The negative labels were"

    def load() -> OODDetector:
        caplog.clear()
        return OODDetector.from_pretrained(tmp_path, device="cpu")

    loaded = load()
    loaded.labels = ["apple", "pear"]
    fresh = OODDetector(encoder, ["apple", "pear"], "mcm")
    assert loaded.negatives is None
    assert [result["negatives"] for result in loaded(IMAGES)] == [[]] * len(IMAGES)
    torch.testing.assert_close(loaded.score(HELD_OUT), fresh.score(HELD_OUT), rtol=0, atol=1e-6)
    assert [message.startswith(said) for message in caplog.messages].count(True) == 1
    assert caplog.messages[0].endswith(
        "(own list) are gone. Give others as `negatives`, in `with_changes` together with what changes."
    )
    # They are gone for good.
    loaded.save_pretrained(tmp_path / "without")
    assert OODDetector.from_pretrained(tmp_path / "without", device="cpu").negatives is None
    # The same where the model is another one, or has become another one.
    loaded = load()
    with torch.no_grad():
        loaded.image_encoder.model.text_projection.weight += 1
    assert torch.isfinite(loaded.score(HELD_OUT)).all()
    assert loaded.negatives is None and caplog.messages[0].startswith(said)
    # A copy that differs drops its own alone, and says so once.
    loaded = load()
    for _ in range(3):
        assert loaded.with_changes(labels=["apple", "pear"]).negatives is None
    assert sum(message.startswith(said) for message in caplog.messages) == 1
    assert len(bank_of(loaded)) == 5
    with pytest.raises(ValueError, match="are gone"):
        loaded.with_changes(labels=["apple", "pear"], method="neglabel")


def test_banks_in_other_templates(encoder: DualEncoder, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "candidates.txt").write_text("\n".join(CANDIDATES))
    sketch, plain = ["a sketch of {}."], ["{}"]

    def mine(corpus: Any) -> NegativeLabels:
        return NegativeLabels.mine(encoder, LABELS, corpus, fraction=0.5, templates=plain, use_cache=False)

    named, gone, texts = (
        mine(tmp_path / "candidates.txt"),
        mine(CANDIDATES),
        NegativeLabels.from_texts(encoder, TEXTS, LABELS, templates=plain),
    )
    for bank in (named, gone, texts):
        # Labels follow where scores compare them with negative labels.
        detector = detector_of(encoder, negatives=bank)
        assert detector.templates == plain and bank_of(detector) is bank
        assert detector_of(encoder, "mcm", negatives=bank).templates == encoder.templates
    assert not caplog.messages
    # Else negative labels follow,
    for bank in (named, texts):
        detector = detector_of(encoder, negatives=bank, templates=sketch)
        assert bank_of(detector).settings == {**bank.settings, "templates": sketch}
        detector.templates = plain
        torch.testing.assert_close(bank_of(detector).embeddings, bank.embeddings)
        detector.templates = None
        assert detector.templates == plain
    assert bank_of(detector_of(encoder, "mcm", negatives=texts)).settings["templates"] == encoder.templates
    # but are not mined again only to explain.
    assert bank_of(detector_of(encoder, "mcm", negatives=named, templates=sketch)) is named
    assert not caplog.messages
    # What cannot follow is told.
    assert bank_of(detector_of(encoder, negatives=gone, templates=sketch)) is gone
    (message,) = caplog.messages
    assert "in the templates ['{}'], the labels in ['a sketch of {}.']" in message


def test_templates_of_a_bank_are_kept_in_files(encoder: DualEncoder, clipn_folder: Path, tmp_path: Path) -> None:
    model = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    bank = NegativeLabels.mine(model, LABELS, CANDIDATES, fraction=0.5, templates=["{}"], use_cache=False)
    detector = detector_of(model, negatives=bank)
    detector.save_pretrained(tmp_path)
    loaded = OODDetector.from_pretrained(tmp_path, device="cpu")
    assert loaded.templates == ["{}"]
    assert torch.equal(loaded.score(HELD_OUT), detector.score(HELD_OUT))


def test_later_changes_of_a_list_do_not_matter(encoder: DualEncoder) -> None:
    texts, candidates = [*TEXTS], [*CANDIDATES]
    taken = detector_of(encoder, negatives=texts)
    mined = detector_of(encoder, negatives={**MINING, "corpus": candidates})
    texts.append("moon")
    candidates.clear()
    for detector in (taken, mined):
        detector.templates = ["the {}"]
    assert bank_of(taken).labels == TEXTS
    assert len(bank_of(mined)) == 5


def test_detectors_without_a_model(encoder: DualEncoder) -> None:
    texts = [*LABELS, *CANDIDATES, *TEXTS[:2]]
    text, _ = encoder.class_embeddings(texts)
    precomputed = PrecomputedEncoder(dict(zip(texts, text, strict=True)), "some-clip", encoder.templates)
    with pytest.raises(ValueError, match="Method neglabel needs negative labels, got .*; give them as `negatives`"):
        OODDetector(precomputed, LABELS, "neglabel")
    with pytest.raises(ValueError, match="Method negrefine needs a model that can embed further texts"):
        OODDetector(precomputed, LABELS, "negrefine", negatives=TEXTS)
    for negatives in (TEXTS, MINING):
        detector, expected = (
            detector_of(one, negatives=negatives, templates=encoder.templates) for one in (precomputed, encoder)
        )
        assert bank_of(detector).labels == bank_of(expected).labels
        torch.testing.assert_close(detector.score(HELD_OUT), expected.score(HELD_OUT), rtol=1e-5, atol=1e-6)
        assert detector_of(precomputed, negatives=negatives).templates == encoder.templates
        assert detector.results(HELD_OUT)[0]["negatives"]
        with pytest.raises(ValueError, match="needs negative labels"):
            detector.negatives = None
    with pytest.raises(ValueError, match="has no embedding of 'ship'"):
        OODDetector(precomputed, LABELS, "mcm", negatives=["ship"])


def test_pairs_do_not_depend_on_what_is_in_memory(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def embedder() -> PairEmbedder:
        return PairEmbedder(encoder, LABELS, CANDIDATES, ["the {}", "a {}."])

    every = torch.cartesian_prod(torch.arange(len(LABELS)), torch.arange(len(CANDIDATES)))
    expected = embedder()(every)
    texts = [f"{LABELS[label]} and {CANDIDATES[negative]}" for label, negative in every.tolist()]
    torch.testing.assert_close(expected, encoder.class_embeddings(texts, ["the {}", "a {}."])[0])
    warm = embedder()
    warm(every[::3])
    assert torch.equal(warm(every), expected)
    assert torch.equal(embedder()(every[[4, 2, 4]]), expected[[4, 2, 4]])

    monkeypatch.setattr(detector_negatives, "MAX_REMEMBERED_PAIRS", 4)
    embedded: list[str] = []
    embed = DualEncoder.class_embeddings

    def counting(self: DualEncoder, labels: list[str], *arguments: Any, **options: Any) -> Any:
        embedded.extend(labels)
        return embed(self, labels, *arguments, **options)

    monkeypatch.setattr(DualEncoder, "class_embeddings", counting)
    small = embedder()
    assert torch.equal(small(every), expected)
    assert len(small._kept) == 4
    embedded.clear()
    assert torch.equal(small(every[-4:]), expected[-4:])
    assert not embedded
    assert torch.equal(small(every[:2]), expected[:2])
    assert embedded == texts[:2]


@pytest.mark.parametrize("method", ["neglabel", "negrefine", "mcm"])
@pytest.mark.parametrize("kind", ["bank", "texts", "corpus", "name"])
def test_saved_with_all_that_it_needs(
    clipn_folder: Path, tmp_path: Path, method: str, kind: str, mined: list[list[str]]
) -> None:
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    by_name = {"corpus": "wordnet-nouns", "max_candidates": 30, "use_cache": False, "filters": ()}
    negatives = {
        "bank": NegativeLabels.mine(encoder, LABELS, CANDIDATES, fraction=0.5, use_cache=False),
        "texts": TEXTS,
        "corpus": {**MINING, "filters": ()},
        "name": by_name,
    }[kind]
    detector = detector_of(encoder, method, negatives=negatives)
    detector.score(HELD_OUT[:50])
    detector.calibrate(HELD_OUT, 0.1)
    detector.save_pretrained(tmp_path / "one")
    mined.clear()
    loaded = OODDetector.from_pretrained(tmp_path / "one", device="cpu")
    assert loaded.results(HELD_OUT) == detector.results(HELD_OUT)
    assert loaded(IMAGES) == detector(IMAGES)
    assert bank_of(loaded).describe() == bank_of(detector).describe()
    assert "| Negative labels |" in (tmp_path / "one" / "README.md").read_text()
    loaded.save_pretrained(tmp_path / "two")
    assert OODDetector.from_pretrained(tmp_path / "two", device="cpu")(IMAGES) == detector(IMAGES)
    assert not mined
    if kind in ("bank", "corpus"):
        if method != "mcm":
            with pytest.raises(ValueError, match="are gone"):
                loaded.labels = ["apple", "pear"]
        loaded = loaded.with_changes(labels=["apple", "pear"], negatives=TEXTS)
    else:
        loaded.labels = ["apple", "pear"]
        detector.labels = ["apple", "pear"]
        assert bank_of(loaded).labels == bank_of(detector).labels
        # What two models embed anew may differ in the last bit.
        torch.testing.assert_close(loaded.score(HELD_OUT), detector.score(HELD_OUT), rtol=0, atol=1e-6)
    assert loaded.threshold is None


def test_pipeline_with_a_saved_bank(clipn_folder: Path, tmp_path: Path, mined: list[list[str]]) -> None:
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    detector_of(encoder, "mcm", negatives=TEXTS, threshold=0.5).save_pretrained(tmp_path)
    detect = pipeline("ood-detection", model=str(tmp_path), device="cpu")
    first = detect(IMAGES[0])
    assert {entry["label"] for entry in first["negatives"]} == set(TEXTS)
    assert detect(IMAGES[0], top_negatives=0)["negatives"] == []
    assert len(detect(IMAGES[0], top_negatives=1)["negatives"]) == 1
    other = detect(IMAGES[0], candidate_labels=["apple", "pear"])
    assert (other["label"] in ("apple", "pear"), other["threshold"], len(other["negatives"])) == (True, None, 3)
    with pytest.raises(ValueError, match=r"`negatives` has 1 of the labels \('car'\)"):
        detect(IMAGES[0], candidate_labels=["apple", "car"])
    own = detect(IMAGES[0], candidate_labels=["apple", "car"], negatives=["moon"])
    assert [entry["label"] for entry in own["negatives"]] == ["moon"]
    assert detect(IMAGES[0], negatives=["moon"])["threshold"] == 0.5
    assert detect(IMAGES[0]) == first
    for _ in range(3):
        result = detect(IMAGES[0], method="neglabel", negatives=MINING)
        assert result["method"] == "neglabel"
    assert len(mined) == 1


def test_pipeline_mines_once(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, mined: list[list[str]]) -> None:
    detect = OODPipeline(
        model=tiny_clipn, processor=tiny_processor, task="ood-detection", device="cpu", negatives=MINING
    )
    results = [detect(IMAGES, LABELS, method="neglabel", top_negatives=2) for _ in range(3)]
    assert results[0] == results[1] == results[2]
    assert [len(result["negatives"]) for result in results[0]] == [2] * len(IMAGES)
    assert mined == [LABELS]
    assert results[0] == OODDetector(detect.encoder, LABELS, "neglabel", negatives=MINING)(
        IMAGES, batch_size=1, top_negatives=2
    )


def test_version_1_is_read(clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was written before there were negative labels, and other models than CLIP and CLIPN."""
    detector = OODDetector(clipn_folder, LABELS, "mcm", device="cpu", threshold=0.5)
    write = detector_files.write_detector

    def write_old(folder: Path, values: dict[str, Any], tensors: Any) -> None:
        new = ("family", "logit_bias", "is_sigmoid")
        model = {name: value for name, value in values["model"].items() if name not in new}
        write(folder, {**{name: values[name] for name in values if name != "negatives"}, "model": model}, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(detector_files, "SCHEMA_VERSION", 1)
        patch.setattr("clipn_hf.detector_saving.write_detector", write_old)
        patch.setattr("clipn_hf.detector_saving.write_detector_card", lambda *_: None)
        detector.save_pretrained(tmp_path)
    assert '"schema_version": 1' in (tmp_path / "detector.json").read_text()
    loaded = OODDetector.from_pretrained(tmp_path, device="cpu")
    assert loaded(IMAGES) == detector(IMAGES)
    values = detector_files.read_detector(tmp_path)
    assert values is not None
    assert (values["schema_version"], values["negatives"], values["model"]["family"]) == (2, None, "clipn")


def test_sigmoid_methods(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> None:
    plain = DualEncoder(tiny_clipn, tiny_processor)
    with pytest.raises(ValueError, match=r"needs a model that was trained with a sigmoid loss, .*; use a SigLIP, or"):
        OODDetector(plain, LABELS, "sigmoid")
    text, _ = plain.class_embeddings(LABELS)
    encoder = PrecomputedEncoder(dict(zip(LABELS, text, strict=True)), "some-siglip", ["{}"], 10.0, -3.0)
    logits = 10 * torch.nn.functional.normalize(HELD_OUT) @ text.T - 3
    scores = {
        "sigmoid": 1 - logits.sigmoid().amax(dim=1),
        "joint_energy": -torch.nn.functional.softplus(logits).sum(dim=1),
        "max_logit": -logits.amax(dim=1),
    }
    for method, expected in scores.items():
        detector = OODDetector(encoder, LABELS, method)
        torch.testing.assert_close(detector.score(HELD_OUT), expected, rtol=1e-4, atol=1e-5)
        detector.calibrate(HELD_OUT)


def test_a_threshold_at_the_highest_score(caplog: pytest.LogCaptureFixture) -> None:
    text = {"cat": [1.0, 0.0, 0.0], "dog": [0.0, 1.0, 0.0], "lamp": [0.0, 0.0, 1.0]}
    encoder = PrecomputedEncoder(text, "some-clip", ["{}"])
    of_lamps = torch.tensor([[0.0, 0.1, 1.0]]) + 1e-3 * torch.rand(30, 3, generator=torch.Generator().manual_seed(3))
    between = of_lamps + torch.tensor([[1.0, 0.1, 0.0]])

    def detector() -> OODDetector:
        return OODDetector(encoder, ["cat", "dog"], "neglabel", negatives=["lamp"])

    detector().calibrate(between)
    assert not caplog.messages
    unwise = detector()
    assert unwise.calibrate(of_lamps).threshold > 1 - 1e-6
    (said,) = caplog.messages
    assert said.startswith(
        "The threshold lies within 1e-6 of 1, the highest score of method neglabel, so that practically no image can"
    )
    assert "raise the setting `temperature`" in said and "larger `max_id_rejection`" in said
    assert "known" in {result["verdict"] for result in unwise.results(torch.tensor([[0.0, 0.0, 1.0]]))}
    caplog.clear()
    other = detector().with_changes(temperature=1.0)
    assert other.calibrate(of_lamps).threshold < 1
    assert not caplog.messages
    caplog.clear()
    detector().calibrate(torch.cat([of_lamps, between]), per_label=True)
    (said,) = caplog.messages
    assert said.startswith("The threshold of 1 of 2 labels lies within 1e-6 of 1")
    assert "no image that looks most like these can be called unknown" in said


def test_representation_says_how_many(encoder: DualEncoder) -> None:
    assert isinstance(detector_of(encoder), DetectorState)
    assert repr(detector_of(encoder, "mcm")).startswith(
        "OODDetector('CLIPNModel', 3 labels, 5 negative labels, method="
    )
    assert ", 1 negative label, " in repr(detector_of(encoder, negatives=["car"]))
    # That in effect
    assert "num_groups=1," in repr(detector_of(encoder))
