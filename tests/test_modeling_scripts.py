# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The scripts of `modeling/`, and the files of released checkpoints that both of them read."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from clipn_hf import CLIPNModel, CLIPNProcessor
from clipn_hf.prompts import validate_templates

MODELING = Path(__file__).parents[1] / "modeling"
ORIGINAL = Path(__file__).parent / "data" / "clipn_official.state_dict.safetensors"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", MODELING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(MODELING / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)


def test_convert(tmp_path: Path) -> None:
    config, output = tmp_path / "clipn.yaml", tmp_path / "clipn"
    config.write_text('base: somewhere/clip\nactivation: quick_gelu\ntemplates: ["an icon of a {}."]\n')
    done = run_script("convert", ORIGINAL, output, "--config", config, "--activation", "gelu")
    assert done.returncode == 0, done.stderr
    assert "activation       gelu" in done.stdout
    assert CLIPNModel.from_pretrained(output).config.templates == ["an icon of a {}."]


def test_errors_come_without_a_traceback(tmp_path: Path) -> None:
    done = run_script("convert", tmp_path / "absent.pt", tmp_path / "clipn")
    assert done.returncode == 1
    (last,) = [line for line in done.stderr.splitlines() if "absent.pt" in line]
    assert last.startswith("Error: No such checkpoint file: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["convert", "initialize"])
def test_bad_templates_come_without_a_traceback(tmp_path: Path, clip_folder: Path, script: str) -> None:
    config, output = tmp_path / "clipn.yaml", tmp_path / "clipn"
    config.write_text(f"base: {clip_folder}\ntemplates: [an icon]\n")
    source = [ORIGINAL] if script == "convert" else []
    done = run_script(script, *source, output, "--config", config)
    assert done.returncode == 1
    assert "Error: `templates[0]` must contain `{}` exactly once" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_a_damaged_base_comes_without_a_traceback(tmp_path: Path, clip_folder: Path) -> None:
    base = shutil.copytree(clip_folder, tmp_path / "clip")
    (base / "model.safetensors").write_bytes(b"")
    done = run_script("initialize", tmp_path / "clipn", "--base", base)
    assert done.returncode == 1
    assert f"Error: The checkpoint {base} cannot be read: " in done.stderr
    assert "Traceback" not in done.stderr


def test_initialize(tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, output = load_script("initialize"), tmp_path / "clipn"
    options = ["--config", MODELING / "clipn-tiny.yaml", "--base", clip_folder, "--processor", clip_folder]
    script.main(*script.parse_arguments([str(part) for part in (output, *options)]))
    assert capsys.readouterr().out.startswith(f"Written to {output}: ")
    model, processor = CLIPNModel.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert isinstance(processor, CLIPNProcessor)
    assert "a drawing of a {}." in model.config.templates
    clip = CLIPModel.from_pretrained(clip_folder)
    torch.testing.assert_close(model.no_text_projection.weight, clip.text_projection.weight, rtol=0, atol=0)


def test_initialize_needs_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("initialize").parse_arguments([str(tmp_path)])
    assert "the following arguments are required: --base" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(MODELING.glob("*.yaml")), ids=lambda path: path.stem)
def test_released_checkpoint_files(path: Path) -> None:
    conversion, source, output = load_script("convert").parse_arguments(["a", "b", "--config", str(path)])
    initialization, folder = load_script("initialize").parse_arguments(["b", "--config", str(path)])
    assert (source, output, folder) == ("a", "b", "b")
    assert conversion.processor == initialization.processor == initialization.base
    assert validate_templates(conversion.templates) == initialization.templates


def test_each_script_knows_the_keys_of_the_other() -> None:
    convert, initialize = load_script("convert"), load_script("initialize")
    of_convert = {item.name for item in fields(convert.ConversionArguments)}
    of_initialize = {item.name for item in fields(initialize.InitializationArguments)}
    assert set(convert.OTHER_KEYS) == of_initialize - of_convert
    assert set(initialize.OTHER_KEYS) == of_convert - of_initialize


def test_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("activation: gelu\nvision_head: 3\n")
    for name, positionals in (("convert", ["a", "b"]), ("initialize", ["b", "--base", "a"])):
        with pytest.raises(SystemExit):
            load_script(name).parse_arguments([*positionals, "--config", str(path)])
        assert (
            f"{path}: The file has keys that are no arguments: `vision_head` (did you mean" in capsys.readouterr().err
        )
