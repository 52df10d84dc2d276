# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: help, completion, wrong usage, and the list of methods."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from clipn_hf import cli, cli_options
from clipn_hf.methods import METHODS

if TYPE_CHECKING:
    from conftest import Command


def test_version_and_help(run: Command) -> None:
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "clipn-hf")
    assert out.split()[1][0].isdigit()
    code, out, _ = run("--help")
    assert code == 0
    assert {
        "detect",
        "explain",
        "calibrate",
        "mine",
        "evaluate",
        "attack",
        "compare",
        "methods",
        "info",
        "convert",
        "demo",
    } <= set(out.split())


UNFITTED = [name for name, method in METHODS.items() if method.fit is None]


@pytest.mark.parametrize(("subcommand", "methods"), [("detect", UNFITTED), ("calibrate", list(METHODS))])
def test_help_names_exit_codes_and_methods(
    run: Command, monkeypatch: pytest.MonkeyPatch, subcommand: str, methods: list[str]
) -> None:
    code, out, _ = run(subcommand, "--help")
    assert code == 0
    text = " ".join(out.replace("│", " ").split())
    assert "Exit codes: 0 all images were read; 1 bad input" in text
    assert "3 some images could not be read" in text
    *names, last = methods
    assert f"{', '.join(names)} or {last};" in text


def test_help_follows_the_table_of_methods() -> None:
    """The option is made from the table, not from a list of its own."""
    assert cli_options.alternatives(["a", "b", "c"]) == "a, b or c"
    assert cli_options.alternatives(["a"]) == "a"
    with_negatives = [name for name, method in METHODS.items() if "negatives" in method.needs]
    for subcommand, methods in (("detect", UNFITTED), ("calibrate", list(METHODS)), ("mine", with_negatives)):
        command = get_command(cli.app).commands[subcommand]
        parameter = next(p for p in command.params if p.name == "method")
        assert parameter.help.startswith(f"{cli_options.alternatives(methods)};")
        context = command.make_context(subcommand, [], resilient_parsing=True)
        for beginning in ("", "m", "neg"):
            found = [(item.value, item.help) for item in parameter.shell_complete(context, beginning)]
            assert found == [(name, METHODS[name].title) for name in methods if name.startswith(beginning)]


@pytest.fixture(params=["script", "module"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The two ways to start a process of the command."""
    if request.param == "module":
        return [sys.executable, "-m", "clipn_hf"]
    script = tmp_path / "clipn-hf"
    script.write_text("from clipn_hf.cli import main\nmain()\n")
    return [sys.executable, str(script)]


def test_help_version_and_completion_do_not_wait_for_torch(command: list[str]) -> None:
    completion = {"_CLIPN_HF_COMPLETE": "complete_bash", "COMP_WORDS": "clipn-hf detect --method m", "COMP_CWORD": "3"}
    for arguments, environment, shown in (
        (["--version"], {}, "clipn-hf "),
        (["--help"], {}, "detect"),
        (["detect", "--help"], {}, "--labels-file"),
        (["explain", "--help"], {}, "--absolute"),
        (["mine", "--help"], {}, "--max-similarity"),
        ([], completion, "mcm"),
    ):
        process = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment, "PYTHONPROFILEIMPORTTIME": "1"},
        )
        assert shown in process.stdout, process.stderr
        imported = {line.rsplit("|", 1)[-1].strip() for line in process.stderr.splitlines()}
        assert "clipn_hf.cli" in imported
        assert not {"torch", "transformers", "numpy", "PIL", "datasets"} & imported


def test_in_the_process_of_the_command_exports_are_there_when_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "clipn-hf"
    script.write_text(
        "import sys\n"
        "import clipn_hf\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(clipn_hf.__all__) <= set(dir(clipn_hf))\n"
        "assert 'torch' not in sys.modules\n"
        "from clipn_hf import OODPipeline, pipeline\n"
        "import transformers\n"
        "assert clipn_hf.pipeline is pipeline is transformers.pipeline\n"
        "assert all(hasattr(clipn_hf, name) for name in clipn_hf.__all__)\n"
        "assert not hasattr(clipn_hf, 'nonsense')\n"
    )
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_shell_completion(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CLIPN_HF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "clipn-hf de")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out.split() == ["detect", "demo"]


def test_methods_lists_the_table(run: Command) -> None:
    code, out, _ = run("methods")
    assert code == 0
    # Rows with many settings are folded.
    rows = re.sub(r"\n +", " ", out).splitlines()
    lines = {line.split()[0]: line for line in rows if line}
    for name, method in METHODS.items():
        assert method.title in lines[name]
        assert method.reference in lines[name]
        assert ("CLIPN" in lines[name]) == ("no" in method.needs)
        # As `--setting` takes them.
        for setting, value in method.settings.items():
            (given,) = re.findall(rf"\b{setting}=([\w.]+)", lines[name])
            assert cli_options.read_value(given) == value
            assert given != "None"
        # What needs pictures cannot do with any embeddings.
        assert ("images, not embeddings" in lines[name]) == bool(method.needs & {"pixels", "patches"})
        assert ("any model" in lines[name]) == (method.needs <= {"global"})
    assert "num_groups=null makes groups of at least 100 negative labels" in out
    # Each setting that the method finds itself is explained.
    found = {setting for method in METHODS.values() for setting, value in method.settings.items() if value is None}
    assert found <= {*re.findall(r"(\w+)=null", out.split("null: found by the method.")[1])}


@pytest.mark.parametrize(
    "arguments",
    [
        ["detect", "--labels", "a,b"],
        ["detect", "a.png"],
        ["detect", "a.png", "--labels", "a,b", "--labels-file", "labels.txt"],
        ["detect", "a.png", "--labels", "a,b", "--format", "xml"],
        ["detect", "a.png", "--labels", "a,b", "--batch-size", "0"],
        ["detect", "a.png", "--labels", "a,b", "--top-k", "0"],
        ["detect", "a.png", "--labels", "a,b", "--threshold", "high"],
        ["detect", "a.png", "--labels", "a,b", "--color"],
        ["calibrate", "--labels", "a,b", "--output", "x"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--guess"],
        ["calibrate", "--labels", "a,b", "--output", "x", "--guess", "--max-id-rejection", "0.05"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--rule", "quantile", "--delta", "0.1"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--rule", "text"],
        ["calibrate", "a.png", "--labels", "a,b", "--output", "x", "--max-ood-acceptance", "0.1"],
        ["fly"],
        ["convert", "a.pt"],
    ],
)
def test_wrong_usage(run: Command, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err
