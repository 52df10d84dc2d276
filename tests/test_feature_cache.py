# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Files of embeddings: written once, checked when opened, listed and deleted, and nothing else with them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clipn_hf import feature_cache
from clipn_hf.feature_cache import FeatureStore, cache_info, clear_cache, default_cache_dir

KEY = hashlib.sha256(b"settings").hexdigest()
OTHER_KEY = hashlib.sha256(b"other settings").hexdigest()
RECORD = {"model": "a/model", "settings": {"dtype": "torch.float32"}}


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def vectors(*numbers: int) -> np.ndarray:
    return np.array([[number, number + 0.5, -number] for number in numbers], dtype=np.float32)


def fill(cache: Path, *numbers: int, key: str = KEY) -> Path:
    """Write one file with the embeddings of some contents; return its name."""
    store = FeatureStore("image", key, cache, RECORD)
    before = set(shards(cache))
    store.add([content(number) for number in numbers], vectors(*numbers))
    store.flush()
    (path,) = set(shards(cache)) - before
    return path


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("features/*/*.safetensors"))


def test_embeddings_are_found_in_any_order(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2, 3)
    fill(tmp_path, 4, 5)
    store = FeatureStore("image", KEY, tmp_path)
    store.add([content(6)], vectors(6))
    order = [5, 2, 6, 2, 1, 4]
    np.testing.assert_array_equal(store.get([content(number) for number in order]), vectors(*order))
    assert len(store) == 6
    assert store.digests() == {content(number) for number in range(1, 7)}
    assert content(6) in store and content(7) not in store
    with pytest.raises(KeyError):
        store.get([content(7)])
    with pytest.raises(ValueError, match="`digests` is empty"):
        store.get([])


def test_a_file_is_written_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SHARD_ROWS", 3)
    store = FeatureStore("image", KEY, tmp_path, RECORD)
    for number in range(4):
        store.add([content(number)], vectors(number))
    assert len(shards(tmp_path)) == 1
    assert len(FeatureStore("image", KEY, tmp_path)) == 3
    store.flush()
    store.flush()
    assert len(shards(tmp_path)) == 2
    assert len(FeatureStore("image", KEY, tmp_path)) == 4


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("image", KEY, None)
    store.add([content(1)], vectors(1))
    store.flush()
    np.testing.assert_array_equal(store.get([content(1)]), vectors(1))
    assert not list(tmp_path.iterdir())


def test_kinds_and_keys_do_not_see_each_other(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    assert len(FeatureStore("image", OTHER_KEY, tmp_path)) == 0
    assert len(FeatureStore("text", KEY, tmp_path)) == 0


def change_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def change_digest(path: Path) -> None:
    data = path.read_bytes()
    assert content(1) in data
    path.write_bytes(data.replace(content(1), content(9)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def truncate_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("not features")


def replace_by_weights(path: Path) -> None:
    save_file({"weight": np.zeros(3, dtype=np.float32)}, path, metadata={"format": "pt"})


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    metadata = {"format": feature_cache._FORMAT, "key": KEY, "sha256": "0" * 64}
    save_file({"digests": tensors["digests"]}, path, metadata=metadata)


def swap_rows(path: Path) -> None:
    data = path.read_bytes()
    swapped = data.replace(content(1), b"?" * 32).replace(content(2), content(1)).replace(b"?" * 32, content(2))
    assert swapped != data
    path.write_bytes(swapped)


def put_another(path: Path) -> None:
    other = fill(path.parents[2], 1, 2, 3, key=OTHER_KEY)
    shutil.copy(other, path)


def put_another_with_this_key(path: Path) -> None:
    put_another(path)
    path.write_bytes(path.read_bytes().replace(OTHER_KEY.encode(), KEY.encode()))


@pytest.mark.parametrize(
    "damage",
    [
        change_value,
        change_digest,
        truncate,
        truncate_header,
        empty,
        replace_by_text,
        replace_by_weights,
        drop_a_tensor,
        swap_rows,
        put_another,
        put_another_with_this_key,
    ],
)
def test_damaged_and_foreign_files_are_reported_and_deleted(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = fill(tmp_path, 1, 2, 3)
    fill(tmp_path, 4)
    damage(path)
    store = FeatureStore("image", KEY, tmp_path)
    assert store.digests() == {content(4)}
    (warning,) = caplog.messages
    assert f"{path} are deleted and computed again: " in warning
    assert not path.exists()
    caplog.clear()
    assert len(FeatureStore("image", KEY, tmp_path)) == 1
    assert not caplog.messages


def test_unfinished_and_unknown_files_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = fill(tmp_path, 1)
    partial = path.with_name(f".{'0' * 32}.{'1' * 32}.partial.safetensors")
    partial.write_bytes(path.read_bytes()[:50])
    theirs = path.with_name("model.safetensors")
    theirs.write_bytes(b"theirs")
    assert len(FeatureStore("image", KEY, tmp_path)) == 1
    assert not caplog.messages
    assert partial.exists() and theirs.exists()


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = FeatureStore("image", KEY, tmp_path / "file", RECORD)
    for number in (1, 2):
        store.add([content(number)], vectors(number))
        store.flush()
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.messages[0] and "CLIPN_HF_CACHE" in caplog.messages[0]
    np.testing.assert_array_equal(store.get([content(2), content(1)]), vectors(2, 1))


def test_clearing_while_another_process_uses_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 1)
    store = FeatureStore("image", KEY, tmp_path, RECORD)
    store.add([content(2)], vectors(2))
    clear_cache(tmp_path)
    np.testing.assert_array_equal(store.get([content(1), content(2)]), vectors(1, 2))
    store.flush()
    assert not caplog.messages
    assert FeatureStore("image", KEY, tmp_path).digests() == {content(2)}


def test_info_counts_what_is_there(tmp_path: Path) -> None:
    assert cache_info(tmp_path / "nowhere").entries == []
    fill(tmp_path, 1, 2, 3)
    fill(tmp_path, 4)
    fill(tmp_path, 5, key=OTHER_KEY)
    info = cache_info(tmp_path)
    assert info.folder == tmp_path
    assert [(entry.kind, entry.model, entry.dtype, entry.embeddings) for entry in info.entries] == [
        ("image", "a/model", "float32", 4),
        ("image", "a/model", "float32", 1),
    ]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert info.size_on_disk == sum(path.stat().st_size for path in files) > 0
    assert json.loads((info.entries[0].folder / "settings.json").read_text()) == RECORD

    truncate(shards(info.entries[0].folder.parents[1])[0])
    (info.entries[1].folder / "settings.json").write_text("{")
    info = cache_info(tmp_path)
    assert sum(entry.embeddings for entry in info.entries) < 5
    assert "unknown" in {entry.model for entry in info.entries}


def test_clear_deletes_the_cache_and_nothing_else(tmp_path: Path) -> None:
    assert clear_cache(tmp_path) == 0
    shard = fill(tmp_path, 1)
    kept_entry = fill(tmp_path, 2, key=OTHER_KEY).parent
    shard.with_name(f".{'0' * 32}.{'1' * 32}.partial.safetensors").touch()
    theirs = [tmp_path / "features.txt", tmp_path / "features" / "notes.md", kept_entry / "model.safetensors"]
    (tmp_path / "features" / "photos").mkdir()
    theirs.append(tmp_path / "features" / "photos" / "settings.json")
    for path in theirs:
        path.write_text("theirs")
    size = cache_info(tmp_path).size_on_disk
    assert clear_cache(tmp_path) == size
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(theirs)
    assert not shard.parent.exists()

    for path in theirs:
        path.unlink()
    (tmp_path / "features" / "photos").rmdir()
    fill(tmp_path, 1)
    kept_entry.rmdir()
    clear_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CLIPN_HF_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "clipn_hf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "clipn_hf"
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert default_cache_dir() == tmp_path / "hf" / "clipn_hf"
    monkeypatch.setenv("CLIPN_HF_CACHE", "$HOME/own")
    assert default_cache_dir() == tmp_path / "own"
    fill(default_cache_dir(), 1)
    assert len(cache_info().entries) == len(cache_info("~/own").entries) == 1
    assert len(FeatureStore("image", KEY, "~/own")) == 1
    assert clear_cache() > 0
