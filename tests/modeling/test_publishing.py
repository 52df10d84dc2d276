# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor, CLIPConfig

from clipn_hf import CLIPNModel, CLIPNProcessor, save_shim

# a program that never imports clipn_hf itself, and then saves what it loaded
STRANGER = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

assert "clipn_hf" not in sys.modules
source, target = sys.argv[1:]
loaded = [
    auto_class.from_pretrained(source, trust_remote_code=True)
    for auto_class in (AutoProcessor, AutoConfig, AutoModel, AutoModelForZeroShotImageClassification)
]
print([f"{type(value).__module__}.{type(value).__name__}" for value in loaded])
for value in loaded:
    value.save_pretrained(target)
"""


@pytest.fixture
def shimmed(clipn_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shimmed"
    shutil.copytree(clipn_folder, folder)
    save_shim(folder)
    return folder


def run_stranger(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_MODULES_CACHE": str(target.parent / "modules")}
    return subprocess.run(
        [sys.executable, "-c", STRANGER, str(source), str(target)], capture_output=True, text=True, env=environment
    )


def test_shim_serves_programs_that_do_not_import_the_package(shimmed: Path, tmp_path: Path) -> None:
    process = run_stranger(shimmed, tmp_path / "saved")
    assert process.returncode == 0, process.stderr
    assert eval(process.stdout.splitlines()[-1]) == [
        "clipn_hf.modeling.processing_clipn.CLIPNProcessor",
        "clipn_hf.modeling.configuration_clipn.CLIPNConfig",
        "clipn_hf.modeling.modeling_clipn.CLIPNModel",
        "clipn_hf.modeling.modeling_clipn.CLIPNModel",
    ]
    # what it saved is code-free again
    assert not list((tmp_path / "saved").glob("*.py"))
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "saved" / name).read_text())
    CLIPNModel.from_pretrained(tmp_path / "saved")


def test_without_a_shim_such_programs_fail(clipn_folder: Path, tmp_path: Path) -> None:
    process = run_stranger(clipn_folder, tmp_path / "saved")
    assert process.returncode != 0
    assert "clipn" in process.stderr


def test_shim_does_not_matter_after_the_import(shimmed: Path) -> None:
    assert type(AutoModel.from_pretrained(shimmed)) is CLIPNModel
    assert type(AutoProcessor.from_pretrained(shimmed)) is CLIPNProcessor


def test_shim_holds_no_model_code(shimmed: Path) -> None:
    (module,) = shimmed.glob("*.py")
    assert len(module.read_text().splitlines()) < 10
    compile(module.read_text(), module.name, "exec")
    assert not list(shimmed.glob("*.partial"))
    before = module.read_text()
    save_shim(shimmed)
    assert module.read_text() == before


def test_checkpoints_are_saved_without_code(clipn_folder: Path) -> None:
    assert not list(clipn_folder.rglob("*.py"))
    for name in ("config.json", "processor_config.json"):
        text = (clipn_folder / name).read_text()
        assert "auto_map" not in text
        assert "custom_pipelines" not in text


def test_shim_needs_a_clipn_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No config.json"):
        save_shim(tmp_path)
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model type 'clip', expected 'clipn'"):
        save_shim(tmp_path)
    assert not list(tmp_path.glob("*.py"))
