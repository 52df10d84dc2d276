# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of any trainer: where they are resumed."""

from pathlib import Path

import pytest
from transformers import TrainingArguments

from clipn_hf.training.runs import find_last_checkpoint


@pytest.mark.parametrize("exists", [False, True])
def test_first_run_of_a_resumable_job(exists: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()

    def find(value: str | None) -> str | bool | None:
        return find_last_checkpoint(TrainingArguments(str(folder), resume_from_checkpoint=value, use_cpu=True))

    assert find("true") is None
    assert f"There is no checkpoint in {folder} to resume from; training starts from scratch." in caplog.text
    (folder / "checkpoint-3").mkdir(parents=True)
    caplog.clear()
    assert find("true") is True
    assert find(None) is None
    assert find("false") is None
    assert find("some/checkpoint-1") == "some/checkpoint-1"
    assert not caplog.text
