# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPModel, CLIPProcessor

from clipn_hf import DualEncoder, NegativeLabels, PrecomputedEncoder, mine_negative_labels
from clipn_hf.encoders import ALIGNMENT
from clipn_hf.feature_cache import cache_info, clear_cache
from clipn_hf.negatives import Corpus, load_corpus

LABELS = ["cat", "dog", "car"]
NICE, ADJECTIVE = ["The nice {}."], ["This is a {} photo"]
WORDS = ["couch", "jellyfish", "dachshund", "ice cream", "photo", "Paris", "tree", "house", "river", "lamp"]


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def mine(encoder: DualEncoder, cache: Path) -> Callable[..., NegativeLabels]:
    def mine(labels: list[str] = LABELS, corpus: Any = WORDS, **arguments: Any) -> NegativeLabels:
        return NegativeLabels.mine(encoder, labels, corpus, cache_dir=cache, progress=False, **arguments)

    return mine


def precomputed(**vectors: list[float]) -> PrecomputedEncoder:
    return PrecomputedEncoder({name.replace("_", " "): row for name, row in vectors.items()}, "my-clip", ["a {}."])


def same(one: NegativeLabels, other: NegativeLabels) -> bool:
    return (
        one.describe() == other.describe()
        and one.mined_for == other.mined_for
        and one.labels == other.labels
        and (torch.equal(one.embeddings, other.embeddings) and one.kinds == other.kinds)
    )


# What is mined


def test_each_kind_is_mined_by_itself_in_its_templates(
    encoder: DualEncoder, mine: Callable[..., NegativeLabels]
) -> None:
    corpus = load_corpus("wordnet", seed=3, max_candidates=60)
    bank = mine(corpus=corpus, quantile=0.5, fraction=0.4)
    id_text, _ = encoder.class_embeddings(LABELS, NICE)
    found = []
    for kind, templates in (("noun", NICE), ("adjective", ADJECTIVE)):
        words = [word for word, of_word in zip(corpus.words, corpus.kinds, strict=True) if of_word == kind]
        embeddings, _ = encoder.class_embeddings(words, templates)
        chosen = mine_negative_labels(id_text, embeddings, 0.5, 0.4).tolist()
        assert len(chosen) == int(0.4 * len(words)) > 0
        found += [(words[place], kind, embeddings[place]) for place in chosen]
    assert bank.labels == [word for word, _, _ in found]
    assert bank.kinds == [kind for _, kind, _ in found]
    torch.testing.assert_close(bank.embeddings, torch.stack([row for _, _, row in found]), rtol=0, atol=2e-6)
    assert bank.embeddings.dtype == torch.float32 and len(bank) == len(found)
    assert bank.mined_for == LABELS
    everything = len(load_corpus("wordnet", seed=3))
    assert bank.report == {
        "candidates": 60,
        "drawn_from": everything,
        "duplicates": corpus.duplicates,
        "mined": len(found),
    }
    assert bank.settings == {
        "corpus": "wordnet",
        "corpus_sha256": corpus.sha256,
        "templates": NICE,
        "adjective_templates": ADJECTIVE,
        "quantile": 0.5,
        "fraction": 0.4,
        "filters": [],
        "max_similarity": None,
        "max_candidates": None,
        "seed": 0,
    }
    assert bank.model["id"] == encoder.name and len(bank.model["text_encoder_sha256"]) == 64


def test_templates_may_be_chosen(encoder: DualEncoder, mine: Callable[..., NegativeLabels]) -> None:
    corpus = Corpus("mine", ("couch", "red"), ("noun", "adjective"))
    bank = mine(corpus=corpus, fraction=1.0, templates=["a {}", "the {}"], adjective_templates=["{} thing"])
    expected = [
        encoder.class_embeddings(["couch"], ["a {}", "the {}"])[0],
        encoder.class_embeddings(["red"], ["{} thing"])[0],
    ]
    torch.testing.assert_close(bank.embeddings, torch.cat(expected), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="`adjective_templates\\[0\\]` must contain"):
        mine(adjective_templates=["a"])


def test_candidates_that_are_too_similar_are_not_chosen() -> None:
    encoder = precomputed(
        cat=[1, 0, 0], dog=[0, 1, 0], lynx=[0.99, 0.1, 0], wolf=[0.1, 0.99, 0], lamp=[0.1, 0, 1], sea=[0, 0, -1]
    )
    words = ["lynx", "wolf", "lamp", "sea"]
    # At quantile 0 the most distant label counts, of which lamp and sea are as far. The fraction is of all words.
    for quantile, fraction, expected in (
        (0.0, 0.25, ["lamp"]),
        (1.0, 0.25, ["sea"]),
        (1.0, 0.5, ["sea", "lamp"]),
        (1.0, 1.0, ["sea", "lamp"]),
    ):
        bank = NegativeLabels.mine(
            encoder, ["cat", "dog"], words, quantile=quantile, fraction=fraction, max_similarity=0.9
        )
        assert bank.report == {"candidates": 4, "duplicates": 0, "max_similarity": 2, "mined": len(expected)}
        assert bank.labels == expected


def test_filters_are_counted(mine: Callable[..., NegativeLabels], caplog: pytest.LogCaptureFixture) -> None:
    bank = mine(corpus=[*WORDS, "Cats"], fraction=1.0, filters=["id_names", "hyponyms", "proper_nouns"])
    assert sorted(bank.labels) == sorted(set(WORDS) - {"dachshund", "Paris"})
    assert bank.report == {
        "candidates": 11,
        "duplicates": 0,
        "id_names": 1,
        "hyponyms": 1,
        "proper_nouns": 1,
        "mined": 8,
    }
    assert not caplog.messages


def test_labels_that_are_not_english_are_mined_for(
    mine: Callable[..., NegativeLabels], caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["Hund", "ネコ", "voiture"]
    assert len(mine(labels, fraction=0.5)) == 5
    assert not caplog.messages
    assert len(mine(labels, fraction=0.5, filters=["id_names"])) == 5
    assert not caplog.messages
    for _ in range(2):
        caplog.clear()
        mine([*labels, "dog"], fraction=0.5, filters=["synonyms"])
        (message,) = caplog.messages
        assert "WordNet does not have 3 of 4 labels ('Hund', 'ネコ', 'voiture')" in message


def test_negative_labels_that_are_labels_are_named(
    mine: Callable[..., NegativeLabels], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        mine(corpus=[*WORDS, "Dogs", "cat"], fraction=1.0)
        (message,) = caplog.messages
        assert "2 of 12 negative labels are labels, too" in message and "'cat'" in message and '"id_names"' in message


def test_bad_input_is_named(mine: Callable[..., NegativeLabels]) -> None:
    with pytest.raises(ValueError, match="is empty"):
        mine(corpus=[])
    # Before the share is looked at, of which 0.15 is less than one.
    for filters, corpus in (([], ["dog", "cat"]), (["id_names"], ["dog", "cat"]), ([], ["Dogs", "CAT"])):
        with pytest.raises(ValueError, match="'own list' has nothing but labels"):
            mine(corpus=corpus, filters=filters)
    with pytest.raises(ValueError, match=r"None of the 3 candidates.*\(id_names dropped 2, hyponyms dropped 1\)"):
        mine(corpus=["Dog", "cats", "dachshund"], filters=["id_names", "hyponyms"])
    with pytest.raises(ValueError, match=r"None of the 2 candidates.*\(max_similarity dropped 2\)"):
        mine(corpus=["lamp", "tree"], max_similarity=-1.0)
    with pytest.raises(ValueError, match="`fraction` 0.15 of 1 candidates is less than one"):
        mine(corpus=["lamp"])
    for name in ("quantile", "fraction"):
        with pytest.raises(ValueError, match=f"`{name}` must be between 0 and 1, got 1.5"):
            mine(**{name: 1.5})
    with pytest.raises(ValueError, match="`max_similarity` must be a cosine between -1 and 1, got 1.5"):
        mine(max_similarity=1.5)
    with pytest.raises(ValueError, match="`filters` must be among id_names"):
        mine(filters=["names"])
    for wrong in (None, 3, [3]):
        with pytest.raises(TypeError, match="`filters` must .* names among id_names"):
            mine(filters=wrong)
    for name, wrong in (("max_candidates", 2.5), ("max_candidates", True), ("seed", "1"), ("max_similarity", "1")):
        with pytest.raises(TypeError, match=f"`{name}` must be a .*number.*, got"):
            mine(**{name: wrong})
    with pytest.raises(ValueError, match="`labels` is empty"):
        mine(labels=[])
    with pytest.raises(TypeError, match="`model` must be a DualEncoder, .* got int"):
        NegativeLabels.mine(3, LABELS)


def test_numbers_may_be_those_of_numpy(mine: Callable[..., NegativeLabels]) -> None:
    one = mine(
        quantile=np.float64(0.5), fraction=np.float32(0.5), max_similarity=np.float64(1), max_candidates=np.int64(8)
    )
    json.dumps(one.settings)
    assert same(one, mine(quantile=0.5, fraction=0.5, max_similarity=1, max_candidates=8))


def test_embeddings_are_not_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count, dim = 100_000, 64
    words = [f"word {place}" for place in range(count)]
    kinds = ["noun", "compound"] * (count // 2)
    encoder = precomputed(cat=[1.0] + [0.0] * (dim - 1))
    embeddings = torch.zeros(count + 1, dim)
    embeddings[0, 0] = 1
    embeddings[range(1, count + 1), torch.arange(count) % dim] = 1
    monkeypatch.setattr("clipn_hf.negatives.bank._embed", lambda *_, **__: embeddings)
    # Chunks of a few rows
    monkeypatch.setattr("clipn_hf.negatives.mining._CHUNK_COSINES", 2**16)
    largest = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            results = result if isinstance(result, tuple | list) else [result]
            largest.append(max((one.numel() for one in results if isinstance(one, torch.Tensor)), default=0))
            return result

    with Largest():
        bank = NegativeLabels.mine(encoder, ["cat"], Corpus("mine", tuple(words), tuple(kinds)), fraction=0.01)
    assert len(bank) == count // 100
    # That many numbers say how near candidates are; their embeddings are 64 times as many.
    assert max(largest) <= 2 * count
    # The checks of a bank look at all, and what is written is no copy.
    whole = NegativeLabels(words, normalize(embeddings[1:], dim=-1), kinds)
    tracemalloc.start()
    whole.save(tmp_path / "negatives.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.embeddings.numel() * 4
    assert torch.equal(NegativeLabels.load(tmp_path / "negatives.safetensors").embeddings, whole.embeddings)
    assert torch.equal(load_file(tmp_path / "negatives.safetensors")["embeddings"], whole.embeddings)


def test_one_negative_label_is_enough(mine: Callable[..., NegativeLabels]) -> None:
    assert mine(corpus=["lamp"], fraction=1.0).labels == ["lamp"]


def test_a_model_by_its_folder(clip_folder: Path, encoder: DualEncoder, cache: Path) -> None:
    bank = NegativeLabels.mine(clip_folder, LABELS, WORDS, fraction=0.5, cache_dir=cache)
    assert bank.labels == NegativeLabels.mine(encoder, LABELS, WORDS, fraction=0.5, use_cache=False).labels
    assert bank.model["id"] == str(clip_folder)


# Embeddings that were computed before


def test_a_text_bank_has_to_have_the_candidates() -> None:
    encoder = precomputed(cat=[1, 0], hot_dog=[0, 1], lamp=[-1, 0])
    bank = NegativeLabels.mine(encoder, ["cat"], ["hot_dog", "lamp"], fraction=1.0)
    assert bank.labels == ["lamp", "hot dog"]
    assert bank.settings["templates"] == bank.settings["adjective_templates"] == ["a {}."]
    assert bank.model["id"] == "my-clip"
    with pytest.raises(ValueError, match="`text_bank` of my-clip has no embedding of 'couch' and 1 more"):
        NegativeLabels.mine(encoder, ["cat"], ["lamp", "couch", "sofa"])
    with pytest.raises(ValueError, match=r"computed with the templates \['a {}.'\], got \['the {}'\]"):
        NegativeLabels.mine(encoder, ["cat"], ["lamp"], fraction=1.0, templates=["the {}"])


def test_underscores_in_a_text_bank_do_not_matter() -> None:
    encoder = PrecomputedEncoder({"cat": [1.0, 0.0], "hot_dog": [0.0, 1.0]}, "my-clip", ["a {}."])
    assert NegativeLabels.mine(encoder, ["cat"], ["hot_dog"], fraction=1.0).labels == ["hot dog"]


# Texts as they are


def test_texts_are_taken_as_they_are(encoder: DualEncoder) -> None:
    texts = ["a hot_dog", "Paris"]
    bank = NegativeLabels.from_texts(encoder, texts, LABELS, templates=["a {}"])
    assert bank.labels == texts and bank.kinds == ["text", "text"] and bank.mined_for is None
    torch.testing.assert_close(bank.embeddings, encoder.class_embeddings(texts, ["a {}"])[0], rtol=0, atol=2e-6)
    assert bank.settings == {"corpus": "texts", "templates": ["a {}"]}
    assert NegativeLabels.from_texts(encoder, texts).settings["templates"] == NICE
    with pytest.raises(ValueError, match=r"`texts` has 2 of the labels \('Cat', 'dog'\)"):
        NegativeLabels.from_texts(encoder, ["Cat", "lamp", "dog"], LABELS)
    assert NegativeLabels.from_texts(encoder, ["lamp", "sofa", "lamp"]).labels == ["lamp", "sofa"]
    of_numpy = NegativeLabels.from_texts(encoder, [*np.array(["lamp", "sofa"])])
    assert {type(label) for label in of_numpy.labels} == {str}
    with pytest.raises(ValueError, match="`texts` is empty"):
        NegativeLabels.from_texts(encoder, [])
    with pytest.raises(TypeError, match="`texts` must be a list of strings"):
        NegativeLabels.from_texts(encoder, "lamp")


# Again, for other labels


def test_banks_are_renewed(encoder: DualEncoder, mine: Callable[..., NegativeLabels], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(WORDS))
    arguments: dict[str, Any] = {"fraction": 0.5, "quantile": 1.0, "filters": ["id_names"], "templates": ["a {}"]}
    for corpus in ("wordnet", str(names)):
        bank = mine(corpus=corpus, max_candidates=8, seed=4, **arguments)
        expected = mine(["lamp", "river"], corpus, max_candidates=8, seed=4, **arguments)
        assert same(bank.renew(encoder, ["lamp", "river"], use_cache=False), expected)
        renewed = bank.renew(encoder, LABELS, templates=["the {}"], use_cache=False)
        assert renewed.settings == {**bank.settings, "templates": ["the {}"]}
    bank = mine(corpus=names, **arguments)
    names.write_text("lamp")
    with pytest.raises(ValueError, match=r"names.txt\) are not those of before\. Give the candidates again"):
        bank.renew(encoder, ["lamp"])
    names.unlink()
    with pytest.raises(ValueError, match=r"names.txt\) are gone\. Give the candidates again"):
        bank.renew(encoder, ["lamp"])
    from_list = mine(**arguments)
    with pytest.raises(ValueError, match=r"\(own list\) are gone"):
        from_list.renew(encoder, ["lamp"])
    with pytest.raises(ValueError, match=r"\(own list\) are gone\.$"):
        from_list.load_candidates()
    assert from_list.load_candidates(WORDS) == load_corpus(WORDS)
    assert from_list.renew(encoder, ["lamp"], corpus=WORDS, use_cache=False).mined_for == ["lamp"]
    texts = NegativeLabels.from_texts(encoder, WORDS, templates=["a {}"])
    assert same(texts.renew(encoder, LABELS), texts)
    with pytest.raises(ValueError, match="1 of the labels"):
        texts.renew(encoder, ["lamp"])
    with pytest.raises(ValueError, match="texts that were given, without candidates"):
        texts.load_candidates()


def test_banks_know_their_model(encoder: DualEncoder) -> None:
    bank = NegativeLabels.from_texts(encoder, WORDS)
    assert bank.made_with(encoder)
    with torch.no_grad():
        encoder.model.text_projection.weight[0] += 1
    assert not bank.made_with(encoder)
    one, other = precomputed(cat=[1, 0]), precomputed(cat=[0, 1])
    assert NegativeLabels.from_texts(one, ["cat"]).made_with(one)
    assert not NegativeLabels.from_texts(one, ["cat"]).made_with(other)


# Files


def test_files_hold_everything(mine: Callable[..., NegativeLabels], tmp_path: Path) -> None:
    bank = mine(corpus=[*WORDS, "Käse 🧀"], fraction=1.0)
    path = tmp_path / "negatives.safetensors"
    bank.save(path)
    loaded = NegativeLabels.load(path)
    assert same(loaded, bank)
    assert loaded.embeddings.data_ptr() % ALIGNMENT == 0
    tensors = bank.to_tensors()
    assert set(tensors) == {"embeddings", "content"} and tensors["content"].dtype == torch.uint8
    assert same(NegativeLabels.from_tensors(tensors), bank)
    json.dumps(bank.describe())
    assert bank.describe()["count"] == 11 and bank.describe()["kinds"] == {"text": 11}
    assert "NegativeLabels(11 from 'own list': " in repr(bank)

    names = tmp_path / "negatives.txt"
    bank.save(names)
    assert names.read_text(encoding="utf-8").splitlines() == bank.labels == list(load_corpus(names).words)
    assert sorted(tmp_path.iterdir()) == sorted([path, names, tmp_path / "cache"])


def test_embeddings_at_odd_addresses_are_moved(mine: Callable[..., NegativeLabels]) -> None:
    tensors = mine(fraction=1.0).to_tensors()
    room = torch.empty(tensors["embeddings"].numel() + 1)
    odd = room[1:].view_as(tensors["embeddings"]).copy_(tensors["embeddings"])
    assert odd.data_ptr() % ALIGNMENT
    bank = NegativeLabels.from_tensors({**tensors, "embeddings": odd})
    assert bank.embeddings.data_ptr() % ALIGNMENT == 0 and torch.equal(bank.embeddings, odd)


def test_bad_files_are_named(mine: Callable[..., NegativeLabels], encoder: DualEncoder, tmp_path: Path) -> None:
    bank = mine(fraction=1.0)
    with pytest.raises(ValueError, match="must end in .safetensors or .txt, got .*negatives.csv"):
        bank.save(tmp_path / "negatives.csv")
    for text in ("# hash", "two\nlines"):
        with pytest.raises(ValueError, match="cannot be a line of a text file"):
            NegativeLabels.from_texts(encoder, [text]).save(tmp_path / "negatives.txt")
    with pytest.raises(FileNotFoundError, match="There is no file .*none.safetensors"):
        NegativeLabels.load(tmp_path / "none.safetensors")
    bank.save(tmp_path / "negatives.txt")
    with pytest.raises(ValueError, match="has texts without embeddings"):
        NegativeLabels.load(tmp_path / "negatives.txt")
    path = tmp_path / "negatives.safetensors"
    for content in (b"", b"nothing", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no negative labels that can be read"):
            NegativeLabels.load(path)
    save_file({"embeddings": torch.eye(2)}, path)
    with pytest.raises(ValueError, match="its format is None"):
        NegativeLabels.load(path)
    bank.save(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="holds no negative labels that can be read"):
        NegativeLabels.load(path)
    tensors = bank.to_tensors()
    for name in tensors:
        with pytest.raises(ValueError, match=f"lack {name}"):
            NegativeLabels.from_tensors({other: value for other, value in tensors.items() if other != name})
    for content in (b"[]", b"{}", b'{"format": "other"}', b"\xff"):
        changed = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with pytest.raises(ValueError, match="not those of negative labels"):
            NegativeLabels.from_tensors({**tensors, "content": changed})
    with pytest.raises(ValueError, match="not those of negative labels"):
        NegativeLabels.from_tensors({**tensors, "embeddings": tensors["embeddings"][1:]})


def test_banks_are_checked() -> None:
    unit = torch.eye(2)
    for labels, embeddings, kinds, message in (
        ([], unit[:0], [], "`negatives` is empty"),
        (["a"], unit, ["text"], "got 1 labels, embeddings of shape \\(2, 2\\) and 1 kinds"),
        (["a", "b"], unit, ["text"], "and 1 kinds"),
        (["a", "b"], unit.double(), ["text"] * 2, "must be float32 on the CPU, got torch.float64"),
        (["a", "b"], 2 * unit, ["text"] * 2, "of norm 1"),
        (["a", "b"], unit / 0, ["text"] * 2, "of norm 1"),
        (["a", "a"], unit, ["text"] * 2, "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            NegativeLabels(labels, embeddings, kinds)


# The cache


def test_what_was_mined_is_not_mined_again(
    mine: Callable[..., NegativeLabels], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mine(fraction=0.5)
    monkeypatch.setattr("clipn_hf.negatives.bank._mine", lambda *_: pytest.fail("It is mined again."))
    again = mine(fraction=0.5)
    assert same(again, first)
    assert again.embeddings.data_ptr() % ALIGNMENT == first.embeddings.data_ptr() % ALIGNMENT == 0
    for other in ({"fraction": 0.6}, {"labels": LABELS[::-1]}, {"templates": ["a {}"]}, {"corpus": WORDS[1:]}):
        with pytest.raises(pytest.fail.Exception):
            mine(**{"fraction": 0.5, **other})


def test_other_labels_need_no_encoding(
    encoder: DualEncoder, mine: Callable[..., NegativeLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine(fraction=0.5)
    texts = []
    original = encoder.class_embeddings

    def record(labels: list[str], *arguments: Any, **named: Any) -> Any:
        texts.extend(labels)
        return original(labels, *arguments, **named)

    monkeypatch.setattr(encoder, "class_embeddings", record)
    mine(["dog", "bicycle"], fraction=0.5)
    assert texts == ["bicycle"]


def test_what_was_embedded_before_an_interruption_is_kept(
    encoder: DualEncoder, mine: Callable[..., NegativeLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipn_hf.features.TEXT_BATCH_SIZE", 4)
    texts: list[str] = []
    original = encoder.class_embeddings
    interruptions = iter([False, False, True])

    def interrupt(labels: list[str], *arguments: Any, **named: Any) -> Any:
        if next(interruptions, False):
            raise KeyboardInterrupt
        texts.extend(labels)
        return original(labels, *arguments, **named)

    monkeypatch.setattr(encoder, "class_embeddings", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mine(fraction=0.5)
    assert len(texts) == 8
    assert len(mine(fraction=0.5)) == 5
    assert sorted(texts) == sorted([*LABELS, *WORDS])


def test_other_weights_are_mined_for_anew(
    encoder: DualEncoder, mine: Callable[..., NegativeLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mine(fraction=1.0)
    with torch.no_grad():
        encoder.model.text_projection.weight[3:, ::2] += 1
    after = mine(fraction=1.0)
    assert before.model != after.model
    assert not torch.allclose(before.embeddings, after.embeddings, atol=1e-3)


def test_without_the_cache_nothing_is_written(
    encoder: DualEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPN_HF_CACHE", str(cache))
    NegativeLabels.mine(encoder, LABELS, WORDS, fraction=0.5, use_cache=False)
    NegativeLabels.from_texts(encoder, WORDS)
    assert not cache.exists()
    NegativeLabels.mine(encoder, LABELS, WORDS, fraction=0.5)
    assert {entry.kind for entry in cache_info().entries} == {"text", "negatives"}


def test_the_cache_is_listed_and_cleared(
    encoder: DualEncoder, mine: Callable[..., NegativeLabels], cache: Path
) -> None:
    bank = mine(fraction=0.5)
    mine(["dog"], fraction=0.5)
    entries = [entry for entry in cache_info(cache).entries if entry.kind == "negatives"]
    assert [(entry.embeddings, entry.model, entry.dtype) for entry in entries] == [(5, "CLIPModel", "float32")] * 2
    record = json.loads((entries[0].folder / "settings.json").read_text(encoding="utf-8"))
    assert record["settings"]["labels"] in (LABELS, ["dog"]) and record["settings"]["fraction"] == 0.5
    assert clear_cache(cache) > 0
    assert not [path for path in cache.rglob("*") if path.is_file()]
    # A bank that is in use does not need its file.
    assert torch.isfinite(bank.embeddings).all()
    assert same(mine(fraction=0.5), bank)


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def exchange(path: Path) -> None:
    """Another bank under the same name, which is sound by itself."""
    tensors = load_file(path)
    save_file(tensors, path, metadata={"format": "clipn_hf negatives 1", "key": "0", "sha256": "0"})


@pytest.mark.parametrize("damage", [damage_middle, cut, exchange])
def test_damaged_files_are_mined_again(
    mine: Callable[..., NegativeLabels], cache: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    expected = mine(fraction=0.5)
    expected_embeddings = expected.embeddings.clone()
    (path,) = cache.glob("features/negatives-*/*.safetensors")
    copy = path.read_bytes()
    path.unlink()
    path.write_bytes(copy)
    damage(path)
    found = mine(fraction=0.5)
    assert found.labels == expected.labels and torch.equal(found.embeddings, expected_embeddings)
    assert any("are mined again" in message for message in caplog.messages)
    caplog.clear()
    assert mine(fraction=0.5).labels == expected.labels
    assert not caplog.messages


def test_what_cannot_be_written_is_returned_all_the_same(
    mine: Callable[..., NegativeLabels], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    assert len(mine(fraction=0.5)) == 5
    assert any("Negative labels cannot be written" in message for message in caplog.messages)


def test_unit_norm() -> None:
    """The norm that embeddings have after half precision is near enough."""
    NegativeLabels(["a"], normalize(torch.randn(1, 512), dim=-1).half().float(), ["text"])
