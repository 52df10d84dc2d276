# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How cards name models."""

from pathlib import Path

import pytest

from clipn_hf.hub_names import EMBEDDED_NAME, is_hub_id, public_name
from clipn_hf.loading import EMBEDDED_CHECKPOINT


def test_ids_have_an_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/model-1.0")
    for name in ("model", "a/b/c", "/org/model", "./model", "../model", "~/model", ".", ""):
        assert not is_hub_id(name)
    (tmp_path / "org" / "model-1.0").mkdir(parents=True)
    assert not is_hub_id("org/model-1.0")


def test_of_paths_only_the_last_part_is_told() -> None:
    assert public_name("org/model") == "org/model"
    assert public_name("/models/somebody/model/") == "model"
    assert public_name("model") == "model"


def test_the_embedded_checkpoint_has_its_name() -> None:
    assert Path(EMBEDDED_CHECKPOINT).name == EMBEDDED_NAME
