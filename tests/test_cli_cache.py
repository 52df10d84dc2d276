# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands `cache info` and `cache clear`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from clipn_hf import cli_cache
from clipn_hf.feature_cache import FeatureStore, cache_info

if TYPE_CHECKING:
    from conftest import Command, Run


def test_cache_info_and_clear(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CLIPN_HF_CACHE", str(cache))
    assert run("cache", "info") == (0, f"0 bytes in {cache}\n", "")
    assert run("cache", "clear") == (0, f"There is nothing to delete in {cache}\n", "")

    store = FeatureStore("no_text", "0" * 64, cache, {"model": "a/model[red]", "settings": {"dtype": "torch.float32"}})
    store.add([bytes(32), b"1" * 32], np.zeros((2, 300), dtype=np.float32))
    store.flush()
    code, out, _ = run("cache", "info")
    assert code == 0
    heading, row, total = out.splitlines()
    assert heading.split() == ["of", "model", "dtype", "embeddings", "size"]
    assert row.split()[:5] == ['"no"', "texts", "a/model[red]", "float32", "2"]
    assert re.fullmatch(rf"[2-9]\.\d kB in {cache}", total)
    assert run("cache", "info", "--cache-dir", tmp_path / "other").out.startswith("0 bytes")

    def answer(text: str) -> Run:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return run("cache", "clear")

    for refusal in ("n\n", ""):
        assert answer(refusal).code == 1
        assert len(cache_info(cache).entries) == 1
    code, out, _ = answer("y\n")
    assert code == 0
    assert "Delete 2 embeddings (" in out and "Deleted 2 embeddings (" in out
    assert not list(cache.iterdir())
    store.flush()
    store = FeatureStore("image", "0" * 64, cache)
    store.add([bytes(32)], np.zeros((1, 3), dtype=np.float32))
    store.flush()
    code, out, _ = run("cache", "clear", "--yes", "--cache-dir", cache)
    assert code == 0
    assert out.startswith("Deleted 1 embeddings (")
    assert not cache_info(cache).entries


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (5 * 10**15, "5,000.0 TB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert cli_cache.readable_size(size) == text
